//! What the store counts about itself: plain numbers for whoever exports them. No names of metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::policy::compiled::FailureMode;
use crate::store::failover::BreakerState;

use super::error::ErrorKind;

/// Upper bounds of the latency buckets, in microseconds; one more bucket holds what is above.
pub const LATENCY_BOUNDS_US: [u64; 12] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 20_000, 50_000, 100_000, 250_000, 1_000_000];
const LATENCY_BUCKETS: usize = LATENCY_BOUNDS_US.len() + 1;
const KINDS: usize = ErrorKind::ALL.len();

/// Why a decision was made without Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Redis was asked, to no avail.
    Failed(ErrorKind),
    /// The breaker is open: Redis was not asked.
    BreakerOpen,
}

impl Reason {
    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::Failed(kind) => kind.as_str(),
            Reason::BreakerOpen => "breaker_open",
        }
    }

    const fn index(self) -> usize {
        match self {
            Reason::Failed(kind) => kind as usize,
            Reason::BreakerOpen => KINDS,
        }
    }
}

/// Counters of all workers together. They only grow, but `in_flight`.
#[derive(Debug, Default)]
pub struct RedisStats {
    checks: AtomicU64,
    errors: [AtomicU64; KINDS],
    fallbacks: [[AtomicU64; KINDS + 1]; 3],
    transitions: [AtomicU64; 3],
    reconnects: AtomicU64,
    forced_reconnects: AtomicU64,
    late_replies: AtomicU64,
    in_flight: AtomicU64,
    latency: [AtomicU64; LATENCY_BUCKETS],
    latency_sum_us: AtomicU64,
}

impl RedisStats {
    /// Checks that were asked for, whoever decided them.
    pub fn checks(&self) -> u64 {
        self.checks.load(Ordering::Relaxed)
    }

    /// Failures of this kind, probes and a `NOSCRIPT` that was mended included.
    pub fn errors(&self, kind: ErrorKind) -> u64 {
        read(&self.errors, kind as usize)
    }

    /// Decisions made without Redis, by mode and reason.
    pub fn fallbacks(&self, mode: FailureMode, reason: Reason) -> u64 {
        self.fallbacks.get(mode_index(mode)).map_or(0, |row| read(row, reason.index()))
    }

    /// How often the breaker entered this state.
    pub fn transitions(&self, to: BreakerState) -> u64 {
        read(&self.transitions, to as usize)
    }

    /// Connections made after the first one of a worker.
    pub fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Relaxed)
    }

    /// Connections that were given up because nothing came back over them.
    pub fn forced_reconnects(&self) -> u64 {
        self.forced_reconnects.load(Ordering::Relaxed)
    }

    /// Answers that came after their check was decided without them. What they granted was spent
    /// in Redis all the same.
    pub fn late_replies(&self) -> u64 {
        self.late_replies.load(Ordering::Relaxed)
    }

    /// Checks sent to Redis and not answered yet.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Answered checks by latency: one count for each of [`LATENCY_BOUNDS_US`] (not cumulative)
    /// and one for what is above.
    pub fn latency(&self) -> [u64; LATENCY_BUCKETS] {
        std::array::from_fn(|index| read(&self.latency, index))
    }

    /// Sum of the latencies of answered checks.
    pub fn latency_sum(&self) -> Duration {
        Duration::from_micros(self.latency_sum_us.load(Ordering::Relaxed))
    }

    pub(super) fn count_check(&self) {
        self.checks.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_error(&self, kind: ErrorKind) {
        add_one(&self.errors, kind as usize);
    }

    pub(super) fn count_fallback(&self, mode: FailureMode, reason: Reason) {
        if let Some(row) = self.fallbacks.get(mode_index(mode)) {
            add_one(row, reason.index());
        }
    }

    pub(super) fn count_transition(&self, to: BreakerState) {
        add_one(&self.transitions, to as usize);
    }

    pub(super) fn count_reconnect(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_forced_reconnect(&self) {
        self.forced_reconnects.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_late_reply(&self) {
        self.late_replies.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn enter_flight(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn leave_flight(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn record_latency(&self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_US.partition_point(|bound| *bound < micros);
        add_one(&self.latency, bucket);
        self.latency_sum_us.fetch_add(micros, Ordering::Relaxed);
    }
}

const fn mode_index(mode: FailureMode) -> usize {
    match mode {
        FailureMode::Local => 0,
        FailureMode::Open => 1,
        FailureMode::Closed => 2,
    }
}

fn add_one(counters: &[AtomicU64], index: usize) {
    if let Some(counter) = counters.get(index) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn read(counters: &[AtomicU64], index: usize) -> u64 {
    counters.get(index).map_or(0, |counter| counter.load(Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_falls_into_the_first_bucket_that_holds_it() {
        let stats = RedisStats::default();
        for micros in [0, 100, 101, 20_000, 2_000_000] {
            stats.record_latency(Duration::from_micros(micros));
        }
        assert_eq!(stats.latency(), [2, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]);
        assert_eq!(stats.latency_sum(), Duration::from_micros(2_020_201));
    }

    #[test]
    fn fallbacks_are_counted_by_mode_and_reason() {
        let stats = RedisStats::default();
        stats.count_fallback(FailureMode::Open, Reason::BreakerOpen);
        stats.count_fallback(FailureMode::Open, Reason::Failed(ErrorKind::Timeout));
        assert_eq!(stats.fallbacks(FailureMode::Open, Reason::BreakerOpen), 1);
        assert_eq!(stats.fallbacks(FailureMode::Local, Reason::BreakerOpen), 0);
    }
}
