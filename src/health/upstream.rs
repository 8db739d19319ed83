//! The upstream's health, from the outcomes of real calls.
//!
//! Any answer counts as a sign of life, one of 5xx too: it says something of the application, not
//! of the way there. What counts against it is a call without an answer: no connection, broken
//! off, too late.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::limiter::time::{Micros, Timestamp};

use super::dependency::DependencyStatus;

/// Failures in a row after which the upstream counts as unhealthy.
const FAILURES_UNHEALTHY: u64 = 5;
/// A failure that no later one confirmed says nothing after so long.
const STALE_AFTER: Micros = Micros::MINUTE;

/// The last outcomes of calls to one upstream, shared by all workers.
#[derive(Debug, Default)]
pub struct UpstreamHealth {
    failures_in_a_row: AtomicU64,
    last_failure_micros: AtomicU64,
}

impl UpstreamHealth {
    /// A call was answered. While all goes well this is a load and nothing else.
    #[inline]
    pub fn answered(&self) {
        if self.failures_in_a_row.load(Ordering::Relaxed) != 0 {
            self.failures_in_a_row.store(0, Ordering::Relaxed);
        }
    }

    /// A call was not answered.
    pub fn failed(&self, at: Timestamp) {
        self.last_failure_micros.store(at.as_micros(), Ordering::Relaxed);
        self.failures_in_a_row.fetch_add(1, Ordering::Relaxed);
    }

    /// The verdict as of `now`. Without evidence, the upstream is taken for healthy.
    pub fn status(&self, now: Timestamp) -> DependencyStatus {
        let last = Timestamp::from_micros(self.last_failure_micros.load(Ordering::Relaxed));
        match self.failures_in_a_row.load(Ordering::Relaxed) {
            0 => DependencyStatus::Healthy,
            _ if now.since(last) >= STALE_AFTER => DependencyStatus::Healthy,
            FAILURES_UNHEALTHY.. => DependencyStatus::Unhealthy,
            _ => DependencyStatus::Degraded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_add_up_and_one_answer_heals() {
        let health = UpstreamHealth::default();
        let at = |seconds: u64| Timestamp::from_micros(seconds * 1_000_000);
        assert_eq!(health.status(at(0)), DependencyStatus::Healthy);
        for second in 1..=4 {
            health.failed(at(second));
            assert_eq!(health.status(at(second)), DependencyStatus::Degraded);
        }
        health.failed(at(5));
        assert_eq!(health.status(at(5)), DependencyStatus::Unhealthy);
        assert_eq!(health.status(at(64)), DependencyStatus::Unhealthy);
        assert_eq!(health.status(at(65)), DependencyStatus::Healthy, "nobody asked for a minute");
        health.failed(at(70));
        assert_eq!(health.status(at(70)), DependencyStatus::Unhealthy);
        health.answered();
        assert_eq!(health.status(at(70)), DependencyStatus::Healthy);
    }
}
