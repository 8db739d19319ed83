//! `tollgate simulate`: access logs through the limiter, in virtual time.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;

use crate::clock::monotonic;
use crate::config::compile_upstream::UpstreamNeed;
use crate::config::load::{LoadRequest, Overrides, load};
use crate::policy::compiled::Policy;
use crate::sim::fit::{Fitted, fit};
use crate::sim::line::{Format as LineFormat, IdentityFrom, Wanted};
use crate::sim::lines::Lines;
use crate::sim::logs::{Log, Merged};
use crate::sim::report;
use crate::sim::simulation::Simulation;
use crate::sim::suggest::suggest;
use crate::sim::summary::Summary;
use crate::sim::text::{self, Asked};

use super::{Failure, Format, print};

/// Between two drawings of the bar.
const BAR_EVERY: Duration = Duration::from_millis(100);

/// Options of `tollgate simulate`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  tollgate simulate --tiers new.yaml /var/log/nginx/access.log
  tollgate simulate --tiers new.yaml --against tiers.yaml --report what-if.html access.log*
  zcat logs/*.gz | tollgate simulate --tiers new.yaml --format json - | jq .by_tier
  tollgate simulate --identity field:jwt_sub --tier-field plan app.json
  tollgate simulate --tiers tiers.yaml --target-block-rate 1 access.log
  tollgate simulate --suggest access.log > tiers.yaml

Nothing is served and nothing asked: each request meets the limits at the moment that its line names,
as it would have met them in a tollgate that nobody had asked anything before the log begins.

Exit codes: 0 whatever is blocked; 1 a log cannot be read; 2 wrong usage, or an error in a file.")]
pub struct SimulateArgs {
    /// The configuration, for how addresses are folded; defaults without it
    #[arg(long, value_name = "FILE", env = "TOLLGATE_CONFIG")]
    config: Option<PathBuf>,
    /// The policy to try; the four built-in tiers without it
    #[arg(long, value_name = "FILE", env = "TOLLGATE_TIERS")]
    tiers: Option<PathBuf>,
    /// Another policy, beside which to show what is newly blocked and what is freed
    #[arg(long, value_name = "FILE", env = "TOLLGATE_AGAINST")]
    against: Option<PathBuf>,
    /// How the logs are written
    #[arg(long, value_enum, default_value = "auto", env = "TOLLGATE_LOG_FORMAT")]
    log_format: LogFormat,
    /// Whom requests are counted for: `auto`, `ip`, `user`, or `field:NAME` of the log
    #[arg(long, value_name = "SOURCE", default_value = "auto", env = "TOLLGATE_IDENTITY")]
    identity: String,
    /// The field of the log that holds a caller's tier or subscription
    #[arg(long, value_name = "NAME", env = "TOLLGATE_TIER_FIELD")]
    tier_field: Option<String>,
    /// Propose limits by which at most so many requests of a hundred are blocked
    #[arg(long, value_name = "PERCENT", env = "TOLLGATE_TARGET_BLOCK_RATE")]
    target_block_rate: Option<f64>,
    /// Print a policy for the logs in place of a result: tiers and heavy endpoints, as a tiers.yaml
    #[arg(long, env = "TOLLGATE_SUGGEST")]
    suggest: bool,
    /// Write a page of HTML with charts, which needs nothing else
    #[arg(long, value_name = "FILE.html", env = "TOLLGATE_REPORT")]
    report: Option<PathBuf>,
    /// How to print the result
    #[arg(long, value_enum, default_value_t, env = "TOLLGATE_FORMAT")]
    format: Format,
    /// Access logs, packed by gzip or not, in any order; `-` is standard input
    #[arg(value_name = "LOG", required = true)]
    logs: Vec<PathBuf>,
}

/// How a log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// As the first line of each looks.
    Auto,
    /// The common or combined format.
    Combined,
    /// An object of JSON a line.
    Json,
    /// tollgate's own.
    Tollgate,
}

/// Replays logs, and says what would have been blocked.
///
/// # Errors
/// Wrong usage, an error in a file, a log that cannot be read.
pub fn simulate(args: &SimulateArgs) -> Result<(), Failure> {
    let identity = identity_from(&args.identity)?;
    let target = args.target_block_rate.map(share_of).transpose()?;
    let tried = policy(args, args.tiers.as_deref())?;
    let against = args.against.as_deref().map(|file| policy(args, Some(file))).transpose()?;
    let wanted = Wanted { identity, tier_field: args.tier_field.as_deref().map(Into::into) };

    let (mut logs, mut bar) = open(args)?;
    let mut simulation = Simulation::new(&tried, against.as_ref(), wanted);
    if target.is_some() || args.suggest {
        simulation = simulation.keeping();
    }
    if args.suggest {
        simulation = simulation.with_templates();
    }
    let replayed = simulation.run(&mut logs, &mut |lines| bar.show(lines));
    bar.clear();
    replayed.map_err(|error| Failure::Running(error.into()))?;

    if args.suggest {
        print(suggest(&simulation, &names(&logs)).trim_end());
        return Ok(());
    }
    let summary = Summary::of(&simulation);
    let fitted = target.map(|share| fit(&simulation, share));
    tell(args, &logs, &summary, fitted.as_ref())
}

fn tell(
    args: &SimulateArgs,
    logs: &Merged,
    summary: &Summary,
    fitted: Option<&Fitted>,
) -> Result<(), Failure> {
    let shown = |path: &Path| path.display().to_string();
    let policy = args.tiers.as_deref().map_or_else(|| "the built-in tiers".to_owned(), shown);
    let against = args.against.as_deref().map(shown);
    let logs = names(logs);
    let asked = Asked { logs: &logs, policy: &policy, against: against.as_deref() };
    if let Some(path) = &args.report {
        let page = report::html(summary, &asked, fitted).context("cannot draw the report")?;
        std::fs::write(path, page)
            .with_context(|| format!("cannot write --report {}", path.display()))?;
    }
    match args.format {
        Format::Human => print(text::text(summary, &asked, fitted)),
        Format::Json => {
            print(report::json(summary, fitted).context("cannot write the result as JSON")?);
        }
    }
    Ok(())
}

/// `access.log (combined)`, of several the first ones.
fn names(logs: &Merged) -> String {
    const SHOWN_MAX: usize = 3;
    let shown = logs.logs().iter().take(SHOWN_MAX).map(|log| match log.format() {
        Some(format) => format!("{} ({})", log.name, format.as_str()),
        None => format!("{} (empty)", log.name),
    });
    let mut names = shown.collect::<Vec<String>>().join(", ");
    let more = logs.logs().len().saturating_sub(SHOWN_MAX);
    if more > 0 {
        names.push_str(&format!(" and {more} more"));
    }
    names
}

fn identity_from(text: &str) -> Result<IdentityFrom, Failure> {
    match text {
        "auto" => Ok(IdentityFrom::Log),
        "ip" => Ok(IdentityFrom::Address),
        "user" => Ok(IdentityFrom::User),
        _ => match text.strip_prefix("field:").filter(|name| !name.is_empty()) {
            Some(name) => Ok(IdentityFrom::Field(name.into())),
            None => usage(format_args!(
                "--identity: found {text:?}, expected auto, ip, user or field:NAME"
            )),
        },
    }
}

fn share_of(percent: f64) -> Result<f64, Failure> {
    if (0.0..=100.0).contains(&percent) {
        return Ok(percent / 100.0);
    }
    usage(format_args!("--target-block-rate: found {percent}, expected 0 to 100"))
}

/// Says what is wrong with an option.
fn usage<T>(what: std::fmt::Arguments<'_>) -> Result<T, Failure> {
    let _ = writeln!(io::stderr(), "tollgate: {what}");
    Err(Failure::Reported)
}

fn policy(args: &SimulateArgs, tiers: Option<&Path>) -> Result<Policy, Failure> {
    let loaded = load(&LoadRequest {
        config: args.config.as_deref(),
        tiers,
        overrides: Overrides::default(),
        upstream: UpstreamNeed::Optional,
        env: &|name| std::env::var(name).ok(),
    })?;
    Ok(loaded.policy)
}

/// Opens every log before anything is replayed.
fn open(args: &SimulateArgs) -> Result<(Merged, Bar), Failure> {
    let format = match args.log_format {
        LogFormat::Auto => None,
        LogFormat::Combined => Some(LineFormat::Combined),
        LogFormat::Json => Some(LineFormat::Json),
        LogFormat::Tollgate => Some(LineFormat::Own),
    };
    let read = Arc::new(AtomicU64::new(0));
    let (mut logs, mut total) = (Vec::new(), Some(0_u64));
    for path in &args.logs {
        let name = path.display().to_string();
        let opened = || -> anyhow::Result<(Lines, Option<u64>)> {
            let (reader, size): (Box<dyn Read + Send>, Option<u64>) = if name == "-" {
                (Box::new(io::stdin()), None)
            } else {
                let file = File::open(path)?;
                let about = file.metadata()?;
                anyhow::ensure!(!about.is_dir(), "it is a directory");
                (Box::new(file), Some(about.len()).filter(|_| about.is_file()))
            };
            let counted = Counted { reader, read: Arc::clone(&read) };
            Ok((Lines::new(Box::new(counted))?, size))
        };
        let (lines, size) = opened().with_context(|| format!("cannot read {name}"))?;
        total = total.zip(size).map(|(total, size)| total.saturating_add(size));
        logs.push(Log::new(name, lines, format));
    }
    Ok((Merged::new(logs), Bar::new(read, total)))
}

/// Counts what is read.
struct Counted {
    reader: Box<dyn Read + Send>,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(into)?;
        self.read.fetch_add(count as u64, Relaxed);
        Ok(count)
    }
}

/// How far it is, on a terminal.
struct Bar {
    is_shown: bool,
    read: Arc<AtomicU64>,
    total: Option<u64>,
    started: Instant,
    drawn: Option<Instant>,
}

impl Bar {
    fn new(read: Arc<AtomicU64>, total: Option<u64>) -> Self {
        let is_shown = io::stderr().is_terminal();
        Bar { is_shown, read, total, started: monotonic(), drawn: None }
    }

    fn show(&mut self, lines: u64) {
        let now = monotonic();
        let is_fresh = self.drawn.is_some_and(|drawn| now.duration_since(drawn) < BAR_EVERY);
        if !self.is_shown || is_fresh {
            return;
        }
        self.drawn = Some(now);
        let seconds = now.duration_since(self.started).as_secs_f64().max(0.001);
        let rate = (lines as f64 / seconds) as u64;
        let far = match self.total.filter(|total| *total > 0) {
            Some(total) => {
                const WIDTH: usize = 30;
                let share = (self.read.load(Relaxed) as f64 / total as f64).min(1.0);
                let full = (share * WIDTH as f64) as usize;
                let bar = format!("{}{}", "█".repeat(full), "░".repeat(WIDTH - full));
                format!("{bar} {:3.0} %", share * 100.0)
            }
            None => "reading".to_owned(),
        };
        let (lines, rate) = (text::number(lines), text::number(rate));
        let _ = write!(io::stderr(), "\r{far}  {lines} lines, {rate} a second\u{1b}[K");
    }

    fn clear(&self) {
        if self.drawn.is_some() {
            let _ = write!(io::stderr(), "\r\u{1b}[K");
        }
    }
}
