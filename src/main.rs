//! The `tollgate` binary: parses the arguments, runs the command, prints what went wrong once.

use std::process::ExitCode;

use clap::Parser;
use tollgate::commands::Cli;

// Its statistics are part of what tollgate shows of itself.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            failure.exit_code()
        }
    }
}
