//! The command line and its subcommands: configuration in, modules made and run.

pub mod admin_client;
pub mod check;
pub mod demo;
#[cfg(feature = "leak-drill")]
mod drill;
pub mod example_backend;
pub mod explain;
pub mod handover;
mod health;
mod identity;
mod live;
pub mod logging;
pub mod manual;
mod memory;
mod reference;
pub mod reload;
pub mod reload_files;
pub mod run;
pub mod schema;
pub mod serve;
mod simulate;
mod subscriptions;
mod tls;
mod upstreams;
mod usage;
pub mod watchdog;
pub mod wiring;

use std::fmt;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::load::Overrides;
use crate::config::report::ConfigErrors;
use crate::config::value::Redacted;

/// Version and commit.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("TOLLGATE_COMMIT"), ")");

/// A rate-limiting reverse proxy: tiers, exact limits in memory or Redis, metrics.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version = VERSION, arg_required_else_help = true, after_help = "\
Examples:
  tollgate demo                                      see it work, with nothing else running
  tollgate run --upstream http://127.0.0.1:8081      in front of your backend, limits in memory
  tollgate run --config tollgate.yaml --tiers tiers.yaml
  tollgate check --config tollgate.yaml --tiers tiers.yaml
  tollgate explain GET /reports/2026 --tiers tiers.yaml --ip 203.0.113.9
  tollgate simulate --tiers tiers.yaml access.log    what it would have blocked last week")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve: forward what the limits allow, answer 429 to the rest
    Run(RunArgs),
    /// Show the main job with nothing else running: a small backend, and tollgate in front
    Demo(DemoArgs),
    /// Validate both files and run the policy's own tests; every error at once
    Check(CheckArgs),
    /// Show who a request is, which tier, rule and limits it meets, and why
    Explain(ExplainArgs),
    /// Replay access logs through the limits: who would have been blocked, when, by which
    Simulate(simulate::SimulateArgs),
    /// Print the health of a running tollgate; exit 0 if it serves, 1 if not
    Health(HealthArgs),
    /// Usage records for billing
    Usage(usage::UsageArgs),
    /// Print the JSON Schema of a file, for editors, or a page of the documentation
    Schema(SchemaArgs),
    /// Print a script with which a shell completes this command line
    Completions(CompletionsArgs),
    /// Print a page of the manual, for `man`
    Man(ManArgs),
}

/// Where the two files are.
#[derive(Args, Clone, Debug, Default)]
pub struct FileArgs {
    /// The configuration; defaults without it
    #[arg(long, value_name = "FILE", env = "TOLLGATE_CONFIG")]
    pub config: Option<PathBuf>,
    /// The policy; the four built-in tiers without it
    #[arg(long, value_name = "FILE", env = "TOLLGATE_TIERS")]
    pub tiers: Option<PathBuf>,
}

/// Options of `tollgate run`.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = "\
Examples:
  tollgate run --upstream http://127.0.0.1:8081
  tollgate run --upstream http://127.0.0.1:8081 --redis redis://127.0.0.1:6379/0
  tollgate run --config config/tollgate.yaml --tiers config/tiers.yaml --listen 0.0.0.0:80

A change of the policy's file takes effect while tollgate runs; SIGHUP has it read at once. SIGTERM
and SIGINT end tollgate once what runs is finished; a second one ends it now.")]
pub struct RunArgs {
    #[command(flatten)]
    files: FileArgs,
    /// The backend, in place of the file's `upstream.url` or `urls`
    #[arg(long, value_name = "URL", env = "TOLLGATE_UPSTREAM")]
    upstream: Option<String>,
    /// The data port, in place of the file's listeners [default: 0.0.0.0:8080]
    #[arg(long, value_name = "ADDR", env = "TOLLGATE_LISTEN")]
    listen: Option<String>,
    /// The admin port [default: 127.0.0.1:9900]
    #[arg(long, value_name = "ADDR", env = "TOLLGATE_ADMIN")]
    admin: Option<String>,
    /// Keep the limits in this Redis, so that many replicas share one truth
    #[arg(long, value_name = "URL", env = "TOLLGATE_REDIS", hide_env_values = true)]
    redis: Option<String>,
}

impl RunArgs {
    fn overrides(&self) -> Overrides {
        Overrides {
            upstream: self.upstream.clone(),
            listen: self.listen.clone(),
            admin: self.admin.clone(),
            redis: self.redis.clone().map(Redacted::new),
        }
    }
}

/// Options of `tollgate demo`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  tollgate demo
  tollgate demo --listen 127.0.0.1:18080 --admin 127.0.0.1:19900")]
pub struct DemoArgs {
    /// The data port
    #[arg(long, value_name = "ADDR", env = "TOLLGATE_LISTEN", default_value = "127.0.0.1:8080")]
    listen: String,
    /// The admin port
    #[arg(long, value_name = "ADDR", env = "TOLLGATE_ADMIN", default_value = "127.0.0.1:9900")]
    admin: String,
}

/// Options of `tollgate check`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  tollgate check --tiers config/tiers.yaml
  tollgate check --config config/tollgate.yaml --tiers config/tiers.yaml --format json

Exit codes: 0 fine, warnings or not; 2 errors, or a test of the policy that fails.")]
pub struct CheckArgs {
    #[command(flatten)]
    files: FileArgs,
    /// How to print the result
    #[arg(long, value_enum, default_value_t, env = "TOLLGATE_FORMAT")]
    format: Format,
}

/// Options of `tollgate explain`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  tollgate explain GET /fo/history/2025 --tiers config/tiers.yaml --ip 203.0.113.9
  tollgate explain GET http://api.example.com/reports/7/export --tiers config/tiers.yaml
  tollgate explain GET / --config config/tollgate.yaml --header \"Authorization: Bearer $TOKEN\"
  tollgate explain POST /orders --ip 10.1.2.3 --format json | jq .tier
  tollgate explain GET / --ip 203.0.113.9 --live http://127.0.0.1:9900

The limits shown are those of a caller who has sent nothing yet; with --live, they are shown as they
stand now, by the tollgate that is asked, with its own files. A token or key is verified as `tollgate
run` would, and never printed.

Exit codes: 0 whatever becomes of the request; 1 the tollgate of --live does not answer; 2 wrong usage,
or an error in a file.")]
pub struct ExplainArgs {
    /// The request's method, such as GET
    method: String,
    /// Its path, perhaps with a query; or a whole URL, whose host is the request's
    path: String,
    /// Who connects: the other end of the socket
    #[arg(long, value_name = "ADDR", env = "TOLLGATE_IP", default_value = "127.0.0.1")]
    ip: IpAddr,
    /// A header field, 'NAME: VALUE'; may be given often (in the variable: one a line)
    #[arg(
        long,
        value_name = "FIELD",
        env = "TOLLGATE_HEADER",
        value_delimiter = '\n',
        hide_env_values = true
    )]
    header: Vec<String>,
    /// The common name of the certificate that the client shows, as verified
    #[arg(long, value_name = "CN", env = "TOLLGATE_CLIENT_CERT")]
    client_cert: Option<String>,
    /// Ask the tollgate whose admin port this is: its policy, its overrides, and what is used now
    #[arg(long, value_name = "ADMIN_URL", env = "TOLLGATE_LIVE")]
    live: Option<String>,
    /// The file that holds its admin token, if it asks for one
    #[arg(long, value_name = "FILE", env = "TOLLGATE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    files: FileArgs,
    /// How to print the result
    #[arg(long, value_enum, default_value_t, env = "TOLLGATE_FORMAT")]
    format: Format,
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For eyes.
    #[default]
    Human,
    /// For programs.
    Json,
}

/// Options of `tollgate health`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  tollgate health
  tollgate health --admin http://127.0.0.1:9900 --format human")]
pub struct HealthArgs {
    /// The admin port of the tollgate to ask
    #[arg(
        long,
        value_name = "URL",
        env = "TOLLGATE_ADMIN",
        default_value = "http://127.0.0.1:9900"
    )]
    admin: String,
    /// How to print it: as tollgate answers, or in short
    #[arg(long, value_enum, default_value = "json", env = "TOLLGATE_FORMAT")]
    format: Format,
}

/// Options of `tollgate schema`.
#[derive(Args, Clone, Copy, Debug)]
#[command(after_help = "\
Examples:
  tollgate schema config > tollgate.schema.json
  tollgate schema tiers > tiers.schema.json
  tollgate schema keys > keys.schema.json
  tollgate schema metrics | less
  tollgate schema configuration | less

An editor that reads YAML with schemas then needs one comment at the top of the file:
  # yaml-language-server: $schema=./tiers.schema.json")]
pub struct SchemaArgs {
    /// Which of the files; or `metrics`, `configuration`
    #[arg(value_enum, value_name = "FILE")]
    file: SchemaFile,
}

/// What can be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SchemaFile {
    /// tollgate.yaml.
    Config,
    /// tiers.yaml.
    Tiers,
    /// The file of API keys.
    Keys,
    /// Every metric, in Markdown.
    Metrics,
    /// Every option and every key, in Markdown.
    Configuration,
}

/// Options of `tollgate completions`.
#[derive(Args, Clone, Copy, Debug)]
#[command(after_help = "\
Examples:
  source <(tollgate completions bash)                      in this shell
  tollgate completions bash > ~/.local/share/bash-completion/completions/tollgate
  tollgate completions zsh > \"${fpath[1]}/_tollgate\"
  tollgate completions fish > ~/.config/fish/completions/tollgate.fish")]
pub struct CompletionsArgs {
    /// Whose language it is in
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Options of `tollgate man`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  tollgate man | man -l -
  tollgate man run > tollgate-run.1")]
pub struct ManArgs {
    /// The page of this command, as `run`; without it, the page of tollgate
    command: Option<String>,
}

/// Prints a line of a command's result. Whoever was to read it may be gone (`tollgate check |
/// head`), which is no reason to panic, and none to stop serving.
pub fn print(line: impl fmt::Display) {
    let mut output = std::io::stdout();
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}

/// Prints a line, and waits at most a second for whoever is to read it: for a program that goes on
/// to serve, or ends, whether it is read or not.
pub fn say(output: impl Write + Send + 'static, line: impl fmt::Display) {
    let (mut output, line) = (output, line.to_string());
    let (said, is_said) = sync_channel(1);
    std::thread::spawn(move || {
        let _ = writeln!(output, "{line}").and_then(|()| output.flush());
        let _ = said.send(());
    });
    let _ = is_said.recv_timeout(Duration::from_secs(1));
}

/// Why a command ended without success.
#[derive(Debug)]
pub enum Failure {
    /// Wrong usage, or invalid configuration: exit code 2.
    Configuration(ConfigErrors),
    /// What is wrong has been printed as the command's result: exit code 2.
    Reported,
    /// It failed while running: exit code 1.
    Running(anyhow::Error),
}

impl Failure {
    /// What the process ends with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Configuration(_) | Failure::Reported => ExitCode::from(2),
            Failure::Running(_) => ExitCode::FAILURE,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Configuration(errors) => write!(f, "{errors}"),
            Failure::Reported => Ok(()),
            Failure::Running(error) => write!(f, "tollgate: {error:#}"),
        }
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Self {
        Failure::Configuration(errors)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure::Running(error)
    }
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// What the command's own documentation says.
    pub fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Run(args) => run::run(&args),
            Command::Demo(args) => demo::demo(&args),
            Command::Check(args) => check::check(&args),
            Command::Explain(args) => explain::explain(&args),
            Command::Simulate(args) => simulate::simulate(&args),
            Command::Health(args) => health::health(&args).map_err(Failure::Running),
            Command::Usage(args) => usage::usage(&args),
            Command::Schema(args) => {
                schema::schema(&args);
                Ok(())
            }
            Command::Completions(args) => {
                manual::completions(args);
                Ok(())
            }
            Command::Man(args) => manual::man(&args),
        }
    }
}
