//! What the status page is told in one second: a value, made of what is known and of what was known
//! a second ago.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::clock::monotonic;
use crate::health::verdict::Reason;
use crate::metrics::pulse::{Pulse, TierTotals};
use crate::top::talkers::By;

use super::health::{
    Backpressure, Memory, RateLimiter, backpressure, memory, observe, rate_limiter, rounded,
};
use super::health_details::Dependencies;
use super::policy::{LastReload, last_reload};
use super::slow::Item;
use super::state::AdminState;
use super::top::{Listed, listed};

/// Who was refused most: of so many minutes, so many of them.
const TOP_MINUTES: u64 = 5;
const TOP_MAX: usize = 10;
/// Slow calls that are told; `/api/v1/slow` has more.
const SLOW_MAX: usize = 10;

/// The totals of a moment, from which the rates of the next one are made.
#[derive(Debug)]
pub struct Before {
    at: Instant,
    requests: u64,
    tiers: HashMap<Box<str>, (u64, u64)>,
}

/// One second of tollgate.
#[derive(Serialize)]
struct Frame<'a> {
    /// Unix time.
    at_ms: u64,
    instance: &'a str,
    version: &'static str,
    uptime_seconds: u64,
    config_hash: &'a str,
    status: &'static str,
    reasons: Vec<String>,
    rate_limiter: RateLimiter,
    dependencies: Dependencies,
    requests_total: u64,
    requests_per_second: Option<f64>,
    tiers: Vec<Tier>,
    latency: Option<Latency>,
    backpressure: Backpressure,
    memory: Memory,
    connections: usize,
    top: Top,
    slow: Slow<'a>,
    reload: LastReload,
    /// Identities that have another tier for now, and those that are denied.
    overrides: usize,
    denied: usize,
    /// Another number once something was set, removed or reset.
    changes: u64,
}

/// What a tier's callers were answered. Rates are `null` in a stream's first frame.
#[derive(Debug, PartialEq, Serialize)]
struct Tier {
    name: Box<str>,
    allowed: u64,
    blocked: u64,
    allowed_per_second: Option<f64>,
    blocked_per_second: Option<f64>,
}

#[derive(Serialize)]
struct Latency {
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
}

#[derive(Serialize)]
struct Top {
    window: String,
    items: Vec<Listed>,
}

#[derive(Serialize)]
struct Slow<'a> {
    /// Since the start.
    total: u64,
    items: Vec<Item<'a>>,
}

/// A frame as JSON, and what the next one needs of it.
pub fn frame(state: &AdminState, before: Option<&Before>) -> (Vec<u8>, Before) {
    let (now, at) = (state.clock.now(), monotonic());
    let (evidence, verdict) = observe(state);
    let pulse = state.metrics.pulse(now);
    let elapsed = before.map(|it| at.saturating_duration_since(it.at));
    let (slow_total, slow_calls) = state.slow_calls.latest(SLOW_MAX);
    let top = state.top.top(By::Blocked, TOP_MINUTES, TOP_MAX, at);
    let (overrides, denied) = state.overrides.count(now);
    let config_hash = state.in_force.read().hash.clone();
    let frame = Frame {
        at_ms: now.as_micros() / 1_000,
        instance: &state.instance,
        version: state.version,
        uptime_seconds: at.saturating_duration_since(state.started).as_secs(),
        config_hash: &config_hash,
        status: verdict.status.as_str(),
        reasons: verdict.reasons.iter().map(Reason::to_string).collect(),
        rate_limiter: rate_limiter(state),
        dependencies: Dependencies::of(state, &evidence, &state.history.lock()),
        requests_total: pulse.requests,
        requests_per_second: rate(pulse.requests, before.map(|it| it.requests), elapsed),
        tiers: pulse.tiers.iter().map(|tier| Tier::of(tier, before, elapsed)).collect(),
        latency: pulse.latencies.map(Latency::of),
        backpressure: backpressure(state),
        memory: memory(state),
        connections: pulse.connections,
        top: Top { window: format!("{TOP_MINUTES}m"), items: listed(top) },
        slow: Slow { total: slow_total, items: slow_calls.iter().map(Item::from).collect() },
        reload: last_reload(state),
        overrides,
        denied,
        changes: state.overrides.revision(),
    };
    // Structs of strings and finite numbers always serialise.
    (serde_json::to_vec(&frame).unwrap_or_default(), Before::of(pulse, at))
}

impl Before {
    fn of(pulse: Pulse, at: Instant) -> Self {
        let tiers = pulse.tiers.into_iter().map(|it| (it.name, (it.evaluated, it.blocked)));
        Before { at, requests: pulse.requests, tiers: tiers.collect() }
    }
}

impl Tier {
    fn of(tier: &TierTotals, before: Option<&Before>, elapsed: Option<Duration>) -> Self {
        let TierTotals { name, evaluated, blocked } = tier;
        // The two are counted one after the other, and read while they are.
        let allowed = |evaluated: u64, blocked: u64| evaluated.saturating_sub(blocked);
        // A tier that a reload brought begins at nothing.
        let was = before.map(|it| it.tiers.get(name).copied().unwrap_or_default());
        let was_allowed = was.map(|(evaluated, blocked)| allowed(evaluated, blocked));
        let allowed = allowed(*evaluated, *blocked);
        Tier {
            name: name.clone(),
            allowed,
            blocked: *blocked,
            allowed_per_second: rate(allowed, was_allowed, elapsed),
            blocked_per_second: rate(*blocked, was.map(|(_, blocked)| blocked), elapsed),
        }
    }
}

impl Latency {
    fn of(seconds: [f64; 3]) -> Self {
        let [p50_ms, p95_ms, p99_ms] = seconds.map(|it| rounded(it * 1e3, 1_000.0));
        Latency { p50_ms, p95_ms, p99_ms }
    }
}

/// Events a second, to a tenth: what came since then, over the time that has really passed.
fn rate(total: u64, before: Option<u64>, elapsed: Option<Duration>) -> Option<f64> {
    let (new, seconds) = (total.saturating_sub(before?), elapsed?.as_secs_f64());
    (seconds > 0.0).then(|| rounded(new as f64 / seconds, 10.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tier(name: &str, evaluated: u64, blocked: u64) -> TierTotals {
        TierTotals { name: name.into(), evaluated, blocked }
    }

    fn pulse(requests: u64, tiers: Vec<TierTotals>) -> Pulse {
        Pulse { requests, tiers, latencies: None, connections: 0 }
    }

    #[test]
    fn a_rate_is_over_the_time_that_has_passed() {
        let second = Some(Duration::from_secs(1));
        assert_eq!(rate(15, Some(5), second), Some(10.0));
        assert_eq!(rate(15, Some(5), Some(Duration::from_millis(1_500))), Some(6.7));
        assert_eq!(rate(15, None, second), None, "nothing to compare with");
        assert_eq!(rate(15, Some(5), Some(Duration::ZERO)), None);
        assert_eq!(rate(5, Some(15), second), Some(0.0), "a counter that was forgotten");
    }

    #[test]
    fn a_tier_has_its_rates() {
        let before = Before::of(pulse(100, vec![tier("free", 50, 10)]), monotonic());
        let of = |now: &TierTotals| Tier::of(now, Some(&before), Some(Duration::from_secs(2)));
        let expected = Tier {
            name: "free".into(),
            allowed: 60,
            blocked: 20,
            allowed_per_second: Some(10.0),
            blocked_per_second: Some(5.0),
        };
        assert_eq!(of(&tier("free", 80, 20)), expected);
        let new = of(&tier("new", 4, 0));
        assert_eq!((new.allowed, new.allowed_per_second), (4, Some(2.0)));
        let first = Tier::of(&tier("free", 80, 20), None, None);
        assert_eq!((first.allowed, first.allowed_per_second), (60, None));
    }
}
