//! `tollgate usage`: records for billing, and whether they agree with the counters. And from the
//! settings of metering to the thread that does it.

mod export;
mod reconcile;
mod source;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::clock::Clock;
use crate::config::compile::Settings;
use crate::metrics::logs::UsageFigures;
use crate::usage::flush::Usage;
use crate::usage::record::Period;

use super::{Failure, Format};

/// Options of `tollgate usage`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  tollgate usage export --config tollgate.yaml --by day > usage.csv
  tollgate usage reconcile --admin http://127.0.0.1:9900")]
pub struct UsageArgs {
    #[command(subcommand)]
    command: UsageCommand,
}

#[derive(Subcommand, Clone, Debug)]
enum UsageCommand {
    /// Print usage records, as CSV or as lines of JSON
    Export(ExportArgs),
    /// Compare the records of a running tollgate with its counters; exit 1 if they differ
    Reconcile(ReconcileArgs),
}

/// Options of `tollgate usage export`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  tollgate usage export --config tollgate.yaml --from 2026-11-01 --to 2026-12-01 --by day > november.csv
  tollgate usage export --source http://127.0.0.1:9900 --identity user:42 --format json
  tollgate usage export --source /var/lib/tollgate/usage --tier premium
  tollgate usage export --source postgres://billing@db/tollgate --by hour

Without --source the records are read where the configuration's `usage.sink` has them written.
Moments are in UTC; --from is the first that is wanted, --to the first that is not.")]
pub struct ExportArgs {
    /// From this day, hour or minute on, as 2026-11-30 or 2026-11-30T08:00:00Z [default: all there is]
    #[arg(long, value_name = "TIME", env = "TOLLGATE_FROM")]
    from: Option<String>,
    /// Up to, and without, this day, hour or minute [default: now]
    #[arg(long, value_name = "TIME", env = "TOLLGATE_TO")]
    to: Option<String>,
    /// Of this identity alone, as user:42
    #[arg(long, value_name = "ID", env = "TOLLGATE_IDENTITY")]
    identity: Option<String>,
    /// Of this tier alone
    #[arg(long, value_name = "TIER", env = "TOLLGATE_TIER")]
    tier: Option<String>,
    /// How far to add up
    #[arg(long, value_enum, default_value = "hour", env = "TOLLGATE_BY")]
    by: Period,
    /// How to print the records
    #[arg(long, value_enum, default_value = "csv", env = "TOLLGATE_FORMAT")]
    format: ExportFormat,
    /// Where they are: the URL of an admin port, of a Redis or a PostgreSQL, or a directory
    #[arg(long, value_name = "URL", env = "TOLLGATE_SOURCE", hide_env_values = true)]
    source: Option<String>,
    /// The configuration whose sink is read where no source is named
    #[arg(long, value_name = "FILE", env = "TOLLGATE_CONFIG")]
    config: Option<PathBuf>,
    /// A file with the admin port's token
    #[arg(long, value_name = "FILE", env = "TOLLGATE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

/// How records are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ExportFormat {
    /// Comma-separated values with a line of names.
    Csv,
    /// An object a line.
    Json,
}

/// Options of `tollgate usage reconcile`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  tollgate usage reconcile
  tollgate usage reconcile --admin http://127.0.0.1:9900 --format json

Counters count a request when it is over, records when it is let through: while requests are under
way the two differ by these, so that it waits for a moment in which they agree.

Exit codes: 0 they agree; 1 they do not, or cannot be read.")]
pub struct ReconcileArgs {
    /// The admin port of the tollgate to ask
    #[arg(
        long,
        value_name = "URL",
        env = "TOLLGATE_ADMIN",
        default_value = "http://127.0.0.1:9900"
    )]
    admin: String,
    /// A file with its token
    #[arg(long, value_name = "FILE", env = "TOLLGATE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// How long to wait for them to agree
    #[arg(long, value_name = "TIME", env = "TOLLGATE_WAIT", default_value = "10s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// How to print the result
    #[arg(long, value_enum, default_value_t, env = "TOLLGATE_FORMAT")]
    format: Format,
}

/// Runs the command.
///
/// # Errors
/// What cannot be read; records and counters that differ.
pub fn usage(args: &UsageArgs) -> Result<(), Failure> {
    match &args.command {
        UsageCommand::Export(args) => export::export(args),
        UsageCommand::Reconcile(args) => reconcile::reconcile(args).map_err(Failure::Running),
    }
}

/// Starts metering, where it is configured. A sink that is away is no error.
///
/// # Errors
/// The journal's directory cannot be used.
pub fn start(settings: &Settings, workers: usize) -> anyhow::Result<Option<Arc<Usage>>> {
    let Some(usage) = &settings.usage else { return Ok(None) };
    let directory = usage.directory.display().to_string();
    let started = Usage::start(usage.clone(), workers, Clock::System);
    let started = started.with_context(|| {
        format!("usage.dir: {directory}, expected a directory that can be written and mapped")
    })?;
    Ok(Some(Arc::new(started)))
}

/// What metering has counted.
pub fn figures(usage: &Usage) -> UsageFigures {
    UsageFigures {
        lag: usage.lag(),
        written: usage.written(),
        errors: usage.errors(),
        journal_bytes: usage.journal_bytes(),
        lost: usage.lost(),
    }
}
