//! The command line and its subcommands: configuration in, modules made and run.

pub mod example_backend;
pub mod serve;
