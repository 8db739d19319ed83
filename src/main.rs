//! The `tollgate` binary: parses the arguments, runs the command, prints what went wrong once.

use std::io::Write;
use std::process::ExitCode;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use clap::Parser;
use tollgate::commands::Cli;

// Its statistics are part of what tollgate shows of itself.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = failure.to_string();
            if !text.is_empty() {
                say(text);
            }
            failure.exit_code()
        }
    }
}

/// Where nobody listens any more, or nobody reads, the exit code has to do.
fn say(text: String) {
    let (said, is_said) = sync_channel(1);
    std::thread::spawn(move || {
        let _ = writeln!(std::io::stderr(), "{text}");
        let _ = said.send(());
    });
    let _ = is_said.recv_timeout(Duration::from_secs(1));
}
