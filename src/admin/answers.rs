//! The answers themselves: plain functions of the state, without a connection.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;

use crate::clock::monotonic;
use crate::health::dependency::{DependencyStatus, DependencyView};
use crate::health::readiness::Unready;
use crate::limiter::time::Timestamp;
use crate::metrics::labels::{BreakerState, Dependency, LimiterMode};

use super::memory;
use super::state::AdminState;

const JSON: &str = "application/json";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const NOT_CONFIGURED: &str = "not_configured";
/// Calls to Redis under way above which the store is said to hold requests up.
const REDIS_QUEUE_WARNING: u64 = 1_000;
const MEBIBYTE: f64 = 1_048_576.0;

/// An answer: status, content type, body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: StatusCode,
    /// The content type.
    pub content_type: &'static str,
    /// The body.
    pub body: Bytes,
}

/// `/metrics`. Takes milliseconds: for the control thread, whichever port it was asked on.
pub fn metrics_response(state: &AdminState) -> Answer {
    (state.before_scrape)();
    let metrics = &state.metrics;
    let redis = state.redis.as_ref().map(|view| (Dependency::Redis, view()));
    let database = state.database.as_ref().map(|view| (Dependency::Database, view()));
    let jwks = state.jwks.as_ref().map(|view| (Dependency::Jwks, view()));
    let upstream = Some((Dependency::Upstream, state.upstream_view()));
    for (dependency, view) in [upstream, redis, database, jwks].into_iter().flatten() {
        metrics.set_dependency_health(dependency, view.status.value());
        if let Some(breaker) = view.breaker {
            metrics.set_breaker(dependency, breaker);
        }
    }
    metrics.set_limiter_mode((state.limiter)().mode);
    let body = metrics.render(state.clock.now());
    Answer { status: StatusCode::OK, content_type: PROMETHEUS, body: body.into() }
}

/// `/livez`: 503 only when no worker's heart beats.
pub fn livez_response(state: &AdminState) -> Answer {
    if state.heartbeats.is_alive(monotonic()) {
        json(StatusCode::OK, &Probe { status: "alive", reason: None })
    } else {
        let reason = Some("no worker has come round for 5 seconds");
        json(StatusCode::SERVICE_UNAVAILABLE, &Probe { status: "stuck", reason })
    }
}

/// `/readyz`: 503 before the listeners are bound, while draining, and when every request would be
/// refused for want of a store.
pub fn readyz_response(state: &AdminState) -> Answer {
    match unready(state) {
        None => json(StatusCode::OK, &Probe { status: "ready", reason: None }),
        Some(why) => {
            let probe = Probe { status: "not_ready", reason: Some(why.as_str()) };
            json(StatusCode::SERVICE_UNAVAILABLE, &probe)
        }
    }
}

/// `/health`: 200 for healthy and degraded, 503 when tollgate cannot serve.
pub fn health_response(state: &AdminState) -> Answer {
    // Where nobody scrapes, nobody else asks the stores for what they have counted.
    (state.before_scrape)();
    let upstream = state.upstream_view();
    let redis = state.redis.as_ref().map(|view| view());
    let database = state.database.as_ref().map(|view| view());
    let jwks = state.jwks.as_ref().map(|view| view());
    let limiter = (state.limiter)();
    let status = status(state, [Some(upstream), redis, database, jwks], limiter.mode);
    let process = metrics_process::collector::collect();
    let rss = process.resident_memory_bytes;
    let redis_queue = state.metrics.redis_queue();
    let has_backpressure = redis_queue >= REDIS_QUEUE_WARNING;
    let config_hash = state.config_hash.read().clone();
    let health = Health {
        status: status.as_str(),
        version: state.version,
        uptime_seconds: monotonic().saturating_duration_since(state.started).as_secs(),
        instance: &state.instance,
        config_hash: &config_hash,
        backpressure: Backpressure {
            has_backpressure,
            severity: if has_backpressure { "warning" } else { "normal" },
            event_loop_lag_ms: None,
            db_queue_size: state.metrics.database_queue(),
            redis_queue_size: redis_queue,
            async_tasks_pending: None,
            requests_in_flight: state.metrics.requests_in_flight(),
            workers_stuck: state.heartbeats.stopped(monotonic()),
        },
        memory: Memory {
            rss_mb: rss.map(|rss| rounded(rss as f64 / MEBIBYTE, 10.0)),
            percent: rss.zip(memory::limit_bytes()).and_then(|(rss, limit)| {
                (limit > 0).then(|| rounded(rss as f64 * 100.0 / limit as f64, 100.0))
            }),
            growth_rate_mb_per_sec: None,
        },
        dependencies: Dependencies {
            database: database.map_or(NOT_CONFIGURED, |view| view.status.as_str()),
            jwks: jwks.map_or(NOT_CONFIGURED, |view| view.status.as_str()),
            redis: redis.map_or(NOT_CONFIGURED, |view| view.status.as_str()),
            upstream: upstream.status.as_str(),
        },
        circuit_breakers: Breakers {
            database: database.and_then(|view| view.breaker).map(BreakerState::as_str),
            jwks: jwks.and_then(|view| view.breaker).map(BreakerState::as_str),
            redis: redis.and_then(|view| view.breaker).map(BreakerState::as_str),
            upstream: upstream.breaker.map(BreakerState::as_str),
        },
        rate_limiter: RateLimiter {
            mode: limiter.mode.as_str(),
            since: rfc3339(limiter.since),
            algorithm: "multi-window",
        },
    };
    let code = match status {
        DependencyStatus::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
        DependencyStatus::Healthy | DependencyStatus::Degraded => StatusCode::OK,
    };
    json(code, &health)
}

/// `{"error":"…"}`.
pub fn error_response(status: StatusCode, error: &str) -> Answer {
    json(status, &Problem { error })
}

fn unready(state: &AdminState) -> Option<Unready> {
    let closed = || (state.limiter)().mode == LimiterMode::Closed;
    state.readiness.unready().or_else(|| closed().then_some(Unready::LimiterClosed))
}

/// A backend that is gone does not make tollgate unhealthy: restarting tollgate, which is what
/// orchestrators do to the unhealthy, would help nobody.
fn status(
    state: &AdminState,
    dependencies: [Option<DependencyView>; 4],
    mode: LimiterMode,
) -> DependencyStatus {
    if unready(state).is_some() || !state.heartbeats.is_alive(monotonic()) {
        return DependencyStatus::Unhealthy;
    }
    let impaired = |view: DependencyView| {
        view.status != DependencyStatus::Healthy
            || view.breaker.is_some_and(|breaker| breaker != BreakerState::Closed)
    };
    if mode != LimiterMode::Exact || dependencies.into_iter().flatten().any(impaired) {
        DependencyStatus::Degraded
    } else {
        DependencyStatus::Healthy
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    // Structs of strings and finite numbers always serialise.
    let body = serde_json::to_vec(value).unwrap_or_default();
    Answer { status, content_type: JSON, body: body.into() }
}

fn rounded(value: f64, steps: f64) -> f64 {
    (value * steps).round() / steps
}

/// A time in UTC, to the second; nothing beyond the year 9999, which only a broken clock shows.
fn rfc3339(at: Timestamp) -> String {
    let seconds = Duration::from_secs(at.as_micros() / 1_000_000);
    let mut text = String::new();
    let _ = write!(text, "{}", humantime::format_rfc3339_seconds(UNIX_EPOCH + seconds));
    text
}

#[derive(Serialize)]
struct Problem<'a> {
    error: &'a str,
}

#[derive(Serialize)]
struct Probe {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
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
    dependencies: Dependencies,
    circuit_breakers: Breakers,
    rate_limiter: RateLimiter,
}

#[derive(Serialize)]
struct Backpressure {
    has_backpressure: bool,
    severity: &'static str,
    event_loop_lag_ms: Option<f64>,
    db_queue_size: u64,
    redis_queue_size: u64,
    async_tasks_pending: Option<usize>,
    requests_in_flight: usize,
    workers_stuck: usize,
}

#[derive(Serialize)]
struct Memory {
    rss_mb: Option<f64>,
    percent: Option<f64>,
    growth_rate_mb_per_sec: Option<f64>,
}

#[derive(Serialize)]
struct Dependencies {
    database: &'static str,
    jwks: &'static str,
    redis: &'static str,
    upstream: &'static str,
}

#[derive(Serialize)]
struct Breakers {
    #[serde(skip_serializing_if = "Option::is_none")]
    database: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwks: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    redis: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<&'static str>,
}

#[derive(Serialize)]
struct RateLimiter {
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
