//! The `tollgate` binary: parses the arguments, runs the command, prints what went wrong once.

use std::process::ExitCode;

use clap::Parser;
use tollgate::commands::{Cli, say};

// Its statistics are part of what tollgate shows of itself.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = failure.to_string();
            if !text.is_empty() {
                // Where nobody listens any more, or nobody reads, the exit code has to do.
                say(std::io::stderr(), text);
            }
            failure.exit_code()
        }
    }
}
