//! Logs and traces: started before everything else, ended after it.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::compile::Settings;
use crate::config::compile_identity::MethodSettings;
use crate::config::compile_signals::{AccessTarget, LogSettings, TracingSettings};
use crate::health::slow::SlowCalls;
use crate::health::tasks::watched;
use crate::log::access::AccessLog;
use crate::log::limit::{AUDIT, LeftOut, Limited, LineLimiter};
use crate::log::queue::{Chunk, LineQueue};
use crate::log::writer::{self, Room, Target};
use crate::metrics::labels::TaskType;
use crate::metrics::logs::LogFigures;
use crate::metrics::registry::Metrics;
use crate::otlp::context::Ratio;
use crate::otlp::encode::Resource;
use crate::otlp::export::{Exporter, Tracer, exporter};

/// Of tollgate's own lines.
const OWN_ROOM: Room = Room { chunks: 1024, bytes: 1 << 20 };
/// Of access lines, beside what each worker keeps.
const ACCESS_ROOM: Room = Room { chunks: 1024, bytes: 4 << 20 };
/// How long the end waits for the lines of each log to be written.
const AT_END: Duration = Duration::from_secs(1);
/// How long it waits for spans to be sent: longer than the exporter does itself.
const SPANS_AT_END: Duration = Duration::from_secs(2);
/// How often it is told what was left out.
const TELL_INTERVAL: Duration = Duration::from_secs(5);
/// How many times as long passes between two lines about what was lost.
const LOSSES_EVERY: u32 = 12;

/// The logs of a process.
#[derive(Debug)]
pub struct Logs {
    own: LineQueue,
    limiter: Arc<LineLimiter>,
    access: Option<AccessLog>,
}

/// Where requests are told of.
#[derive(Debug, Default)]
pub struct Recorders {
    /// One by one.
    pub access_log: Option<AccessLog>,
    /// As spans.
    pub tracer: Option<Tracer>,
    /// Those that were slow, and calls of others that were.
    pub slow_calls: Arc<SlowCalls>,
    logs: Option<Arc<Logs>>,
}

impl Recorders {
    /// Publishes what was written and what was lost.
    pub fn publish(&self, metrics: &Metrics) {
        let counts = self.logs.as_ref().map(|logs| logs.figures()).unwrap_or_default();
        let spans = self.tracer.as_ref().map(Tracer::counts);
        metrics.publish_logs(&LogFigures {
            spans_exported: spans.map_or(0, |it| it.exported()),
            spans_dropped: spans.map_or(0, |it| it.dropped()),
            ..counts
        });
    }
}

impl Logs {
    /// Begins to log. Log lines go to standard error, results to standard output.
    ///
    /// # Errors
    /// A thread cannot be started; the access log's file cannot be opened.
    pub fn start(settings: &Settings) -> anyhow::Result<Self> {
        let own = writer::start("log", Target::Stderr, OWN_ROOM).context("cannot start the log")?;
        let limiter = Arc::new(LineLimiter::default());
        let access = settings.log.access.as_ref();
        let mut logs = Logs { own, limiter, access: None };
        logs.subscribe(&settings.log);
        logs.access = access.map(|target| access_log(target, settings)).transpose()?;
        Ok(logs)
    }

    fn subscribe(&self, settings: &LogSettings) {
        let layer = tracing_subscriber::fmt::layer()
            .with_target(false)
            .with_writer(OwnLines(self.own.clone()));
        let layer = if settings.is_json {
            layer.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
        } else {
            let colours = std::io::stderr().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
            layer.with_ansi(colours).boxed()
        };
        let filter = match settings.level {
            "off" => "off".to_owned(),
            level => format!("{level},{AUDIT}=info"),
        };
        let subscriber = tracing_subscriber::registry()
            .with(layer)
            .with(Limited(Arc::clone(&self.limiter)))
            .with(EnvFilter::new(filter));
        // A second one in the same process keeps the first: that is for tests only.
        if subscriber.try_init().is_ok() {
            hook_panics(self.own.clone());
        }
    }

    /// What requests are told of by.
    ///
    /// # Errors
    /// TLS towards the collector cannot be set up.
    pub fn recorders(
        logs: &Arc<Logs>,
        tracing: Option<&TracingSettings>,
        resource: Resource,
    ) -> anyhow::Result<(Recorders, Option<Exporter>)> {
        let both = tracing.map(|TracingSettings { url, sample }| {
            exporter(url.clone(), Ratio::new(*sample), resource).map_err(anyhow::Error::msg)
        });
        let both = both.transpose().context("cannot set up TLS towards tracing.otlp_endpoint")?;
        let (tracer, exporter) = both.unzip();
        let (access_log, logs) = (logs.access.clone(), Some(Arc::clone(logs)));
        let slow_calls = Arc::default();
        Ok((Recorders { access_log, tracer, slow_calls, logs }, exporter))
    }

    /// Opens the access log's file anew, by its name.
    pub fn reopen(&self) {
        if let Some(access) = &self.access {
            access.lines.reopen();
        }
    }

    /// Tells now and then what was left out and what was lost. Runs on the control thread.
    pub async fn tell_losses(&self) {
        let mut told = self.figures();
        let mut is_quiet_for = 0_u32;
        loop {
            tokio::time::sleep(TELL_INTERVAL).await;
            self.tell_left_out();
            is_quiet_for = is_quiet_for.saturating_sub(1);
            let now = self.figures();
            let access = now.access_dropped.saturating_sub(told.access_dropped);
            let own = now.dropped.saturating_sub(told.dropped);
            if is_quiet_for == 0 && (access > 0 || own > 0) {
                is_quiet_for = LOSSES_EVERY;
                told = now;
                tracing::warn!(access_log = access, this_log = own, "lines were lost");
            }
        }
    }

    fn tell_left_out(&self) {
        for LeftOut { target, line, count } in self.limiter.take_untold() {
            tracing::warn!(target, line, count, "lines of one kind were left out");
        }
    }

    /// Has everything written, if that can be done soon.
    pub fn finish(&self) {
        self.tell_left_out();
        if let Some(access) = &self.access {
            access.lines.finish(AT_END);
        }
        self.own.finish(AT_END);
    }

    fn figures(&self) -> LogFigures {
        let (own, access) = (self.own.counts(), self.access.as_ref().map(|it| it.lines.counts()));
        LogFigures {
            access_written: access.map_or(0, |it| it.written()),
            access_dropped: access.map_or(0, |it| it.dropped()),
            suppressed: self.limiter.suppressed(),
            dropped: own.dropped(),
            ..LogFigures::default()
        }
    }
}

fn access_log(target: &AccessTarget, settings: &Settings) -> anyhow::Result<AccessLog> {
    let (target, name) = match target {
        AccessTarget::Stdout => (Target::Stdout, "standard output".to_owned()),
        AccessTarget::File(path) => (Target::File(path.clone()), path.display().to_string()),
    };
    let lines = writer::start("access-log", target, ACCESS_ROOM);
    let lines = lines.with_context(|| format!("log.access: cannot write to {name}"))?;
    let parameters = settings.identity.methods.iter().filter_map(|method| match method {
        MethodSettings::Jwt(jwt) => jwt.places.query.clone(),
        MethodSettings::ApiKey(_) | MethodSettings::Mtls | MethodSettings::Ip => None,
    });
    let secret_parameters = parameters.collect();
    Ok(AccessLog { lines, with_query: settings.log.with_query, secret_parameters })
}

/// Sends spans until told to end.
#[derive(Debug)]
pub struct Exporting {
    end: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Exporting {
    /// On the control thread.
    pub fn spawn(exporter: Exporter) -> Self {
        let (end, is_ending) = watch::channel(false);
        Exporting {
            end,
            task: tokio::task::spawn_local(watched(TaskType::Background, exporter.run(is_ending))),
        }
    }

    /// Sends what is left, if that can be done soon.
    pub async fn finish(self) {
        self.end.send_replace(true);
        tokio::time::timeout(SPANS_AT_END, self.task).await.ok();
    }
}

/// A panic is told of like everything else, so that whoever panics waits for no reader; on the main
/// thread for a moment, since it may end the process.
fn hook_panics(own: LineQueue) {
    std::panic::set_hook(Box::new(move |panic| {
        let payload = panic.payload();
        let said = payload.downcast_ref::<&str>().copied();
        let said = said.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        tracing::error!(thread, place, "panic: {}", said.unwrap_or("of unknown reason"));
        if thread == "main" {
            own.settle(AT_END);
        }
    }));
}

/// Takes each line as a whole, and drops it where there is no room.
#[derive(Clone, Debug)]
struct OwnLines(LineQueue);

impl<'a> MakeWriter<'a> for OwnLines {
    type Writer = OwnLines;

    fn make_writer(&'a self) -> OwnLines {
        self.clone()
    }
}

impl std::io::Write for OwnLines {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if let Err(chunk) = self.0.offer(Chunk { bytes: line.to_vec(), lines: 1 }) {
            self.0.give_up(chunk.lines);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
