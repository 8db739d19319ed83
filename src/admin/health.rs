//! `/health`: one summary of this process and of all that it depends on.
//!
//! The sections are built one by one, each from the module that knows; this file owns what they are
//! called and the verdict over all of them.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use serde::{Serialize, Serializer};

use crate::clock::monotonic;
use crate::health::dependency::{DependencyStatus, DependencyView};
use crate::health::pressure::Severity;
use crate::health::verdict::{Evidence, Verdict};
use crate::limiter::time::Timestamp;
use crate::metrics::labels::Dependency;

use super::answers::{Answer, json, unready};
use super::health_details::Details;
use super::state::AdminState;

/// The status of a dependency that the configuration does not name.
pub const NOT_CONFIGURED: &str = "not_configured";
const MEBIBYTE: f64 = 1_048_576.0;

/// `/health`: 200 for healthy and degraded, 503 when tollgate cannot serve.
pub fn health_response(state: &AdminState) -> Answer {
    answer(state, None)
}

/// `/health?verbose=1`: the same, with details.
pub fn verbose_response(state: &AdminState) -> Answer {
    answer(state, Some(Details::of))
}

/// Looks at everything, and notes the verdict. To be called about once a second.
pub fn observe(state: &AdminState) -> (Evidence, Verdict) {
    let evidence = evidence(state);
    let verdict = Verdict::of(&evidence);
    let now = state.clock.now();
    let mut history = state.history.lock();
    history.observe(&evidence, &verdict, now);
    for dependency in Dependency::ALL {
        let errors = match dependency {
            Dependency::Upstream => state.upstream.errors().to_vec(),
            Dependency::Redis => (state.redis_errors)(),
            // They are not called by requests: what fails is a check, too.
            Dependency::Database | Dependency::Jwks => Vec::new(),
        };
        history.count(*dependency, state.metrics.check_totals(*dependency), errors, now);
    }
    drop(history);
    (evidence, verdict)
}

fn answer(
    state: &AdminState,
    details: Option<fn(&AdminState, &Evidence, &Verdict) -> Details>,
) -> Answer {
    // Where nobody scrapes, nobody else asks the stores for what they have counted.
    (state.before_scrape)();
    let (evidence, verdict) = observe(state);
    let config_hash = state.in_force.read().hash.clone();
    let health = Health {
        status: verdict.status.as_str(),
        version: state.version,
        uptime_seconds: monotonic().saturating_duration_since(state.started).as_secs(),
        instance: &state.instance,
        config_hash: &config_hash,
        backpressure: backpressure(state),
        memory: memory(state),
        dependencies: Dependencies(&evidence),
        circuit_breakers: Breakers(&evidence),
        rate_limiter: rate_limiter(state),
        details: details.map(|make| make(state, &evidence, &verdict)),
    };
    let code = match verdict.status {
        DependencyStatus::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
        DependencyStatus::Healthy | DependencyStatus::Degraded => StatusCode::OK,
    };
    json(code, &health)
}

/// How limits are decided.
pub fn rate_limiter(state: &AdminState) -> RateLimiter {
    let limiter = (state.limiter)();
    RateLimiter {
        mode: limiter.mode.as_str(),
        since: rfc3339(limiter.since),
        algorithm: "multi-window",
    }
}

fn evidence(state: &AdminState) -> Evidence {
    let of = |dependency: &Dependency| match dependency {
        Dependency::Upstream => Some(state.upstream_view()),
        Dependency::Redis => state.redis.as_ref().map(|view| view()),
        Dependency::Database => state.database.as_ref().map(|view| view()),
        Dependency::Jwks => state.jwks.as_ref().map(|view| view()),
    };
    let mut dependencies = [None; Dependency::COUNT];
    for (view, dependency) in dependencies.iter_mut().zip(Dependency::ALL) {
        *view = of(dependency);
    }
    let now = monotonic();
    let pressure = state.detector.observe(now);
    Evidence {
        unready: unready(state),
        is_alive: state.heartbeats.is_alive(now),
        workers: state.heartbeats.workers(),
        workers_stuck: pressure.workers_stuck,
        severity: pressure.severity,
        limiter: (state.limiter)().mode,
        dependencies,
    }
}

/// How it keeps up.
pub fn backpressure(state: &AdminState) -> Backpressure {
    let report = state.detector.observe(monotonic());
    Backpressure {
        has_backpressure: report.severity > Severity::Normal,
        severity: report.severity.as_str(),
        event_loop_lag_ms: rounded(report.lag.as_secs_f64() * 1e3, 10.0),
        db_queue_size: report.queues.database,
        redis_queue_size: report.queues.redis,
        upstream_waiting: report.upstream_waiting,
        async_tasks_pending: report.tasks,
        requests_in_flight: state.metrics.requests_in_flight(),
        workers_stuck: report.workers_stuck,
    }
}

/// What memory it has.
pub fn memory(state: &AdminState) -> Memory {
    let view = (state.memory)();
    let mebibytes = |bytes: u64| rounded(bytes as f64 / MEBIBYTE, 10.0);
    Memory {
        rss_mb: view.resident.map(mebibytes),
        percent: view.resident.zip(view.limit).and_then(|(resident, limit)| {
            (limit > 0).then(|| rounded(resident as f64 * 100.0 / limit as f64, 100.0))
        }),
        growth_rate_mb_per_sec: rounded(view.growth.bytes_per_second / MEBIBYTE, 1e5),
        verdict: view.growth.verdict.as_str(),
        allocated_mb: view.allocated.map(mebibytes),
    }
}

/// To one of so many steps of a whole.
pub fn rounded(value: f64, steps: f64) -> f64 {
    // Nothing is shown as -0.
    (value * steps).round() / steps + 0.0
}

/// A time in UTC, to the second.
pub fn rfc3339(at: Timestamp) -> String {
    written(at, humantime::format_rfc3339_seconds)
}

/// A time in UTC; nothing beyond the year 9999, which only a broken clock shows.
pub fn written(at: Timestamp, format: fn(SystemTime) -> humantime::Rfc3339Timestamp) -> String {
    let mut text = String::new();
    let _ = write!(text, "{}", format(UNIX_EPOCH + Duration::from_micros(at.as_micros())));
    text
}

/// `null` is what is not measured yet.
#[derive(Serialize)]
struct Health<'a> {
    status: &'static str,
    version: &'static str,
    uptime_seconds: u64,
    instance: &'a str,
    config_hash: &'a str,
    backpressure: Backpressure,
    memory: Memory,
    dependencies: Dependencies<'a>,
    circuit_breakers: Breakers<'a>,
    rate_limiter: RateLimiter,
    #[serde(flatten)]
    details: Option<Details>,
}

/// The section `backpressure`.
#[derive(Serialize)]
pub struct Backpressure {
    has_backpressure: bool,
    severity: &'static str,
    event_loop_lag_ms: f64,
    /// `null` where no database is configured, which `dependencies` says too.
    db_queue_size: Option<u64>,
    redis_queue_size: u64,
    upstream_waiting: usize,
    async_tasks_pending: usize,
    requests_in_flight: usize,
    workers_stuck: usize,
}

/// The section `memory`.
#[derive(Serialize)]
pub struct Memory {
    rss_mb: Option<f64>,
    percent: Option<f64>,
    growth_rate_mb_per_sec: f64,
    verdict: &'static str,
    allocated_mb: Option<f64>,
}

/// Each dependency's status.
struct Dependencies<'a>(&'a Evidence);

/// Each dependency's circuit breaker, where it has one.
struct Breakers<'a>(&'a Evidence);

impl Serialize for Dependencies<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let written =
            |view: Option<DependencyView>| view.map_or(NOT_CONFIGURED, |it| it.status.as_str());
        serializer.collect_map(self.0.by_name().map(|(name, view)| (name, written(view))))
    }
}

impl Serialize for Breakers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let breakers = self.0.by_name().filter_map(|(name, view)| Some((name, view?.breaker?)));
        serializer.collect_map(breakers.map(|(name, breaker)| (name, breaker.as_str())))
    }
}

/// The section `rate_limiter`.
#[derive(Serialize)]
pub struct RateLimiter {
    mode: &'static str,
    since: String,
    algorithm: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        let check = |seconds: u64, expected: &str| {
            assert_eq!(rfc3339(Timestamp::from_micros(seconds * 1_000_000)), expected);
        };
        check(0, "1970-01-01T00:00:00Z");
        check(951_782_399, "2000-02-28T23:59:59Z");
        check(951_782_400, "2000-02-29T00:00:00Z");
        check(1_767_225_661, "2026-01-01T00:01:01Z");
        check(4_107_542_400, "2100-03-01T00:00:00Z");
    }
}
