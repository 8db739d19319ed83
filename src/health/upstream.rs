//! The upstream's health, from the outcomes of real calls and, where they are configured, of
//! checks.
//!
//! Any answer counts as a sign of life, one of 5xx too: it says something of the application, not
//! of the way there. What counts against it is a call without an answer: no connection, broken
//! off, too late. A check is stricter: it has an answer that it expects.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::metrics::labels::BreakerState;

use super::breaker::{BreakerSettings, CALL_LEASE_MAX, Outcome};
use super::dependency::{DependencyStatus, DependencyView};
use super::shared_breaker::{Probe, SharedBreaker, Ticket};

/// A failure that no later one confirmed says nothing after so long.
const STALE_AFTER: Duration = Duration::from_secs(60);
/// One failed call of so many within the window makes the upstream degraded.
const DEGRADED_OF: u32 = 10;

/// How the upstream is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckRules {
    /// Between two checks, before jitter.
    pub interval: Duration,
    /// For a whole check.
    pub timeout: Duration,
    /// Good checks in a row that bring an upstream back.
    pub rise: u32,
    /// Bad ones in a row that take it out.
    pub fall: u32,
}

/// What is known of one upstream, shared by all workers.
#[derive(Debug)]
pub struct UpstreamHealth {
    breaker: Arc<SharedBreaker>,
    checks: Option<CheckRules>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    last_failure: Option<Instant>,
    /// Checks that failed since the last good one.
    bad_checks: u32,
}

/// Whether a call may be made.
#[derive(Debug)]
pub enum Admission {
    /// Yes, as one among others.
    Call(Ticket),
    /// Yes, as the one that finds out whether others may.
    Probe(Probe),
    /// No, and in how many seconds it may be worth asking again.
    Refused(u32),
}

impl UpstreamHealth {
    /// Nothing known yet. Without checks, calls find out for themselves whether an upstream is
    /// back; one of which nothing is heard for `call_max`, or [`CALL_LEASE_MAX`], makes room.
    pub fn new(checks: Option<CheckRules>, call_max: Duration, now: Instant) -> Self {
        let settings = match checks {
            Some(CheckRules { interval, timeout, rise, .. }) => {
                BreakerSettings::probed_by_checks(interval, timeout, rise)
            }
            None => BreakerSettings::probed_by_calls(call_max.min(CALL_LEASE_MAX)),
        };
        UpstreamHealth {
            breaker: SharedBreaker::new(settings, now),
            checks,
            seen: Mutex::default(),
        }
    }

    /// Its circuit breaker.
    pub fn breaker(&self) -> &Arc<SharedBreaker> {
        &self.breaker
    }

    /// Asks whether a call may be made. While all goes well this is a load and nothing else: the
    /// clock is read only where it is looked at.
    #[inline]
    pub fn admit(&self, now: impl FnOnce() -> Instant, jitter: impl FnOnce() -> f64) -> Admission {
        match self.breaker.ticket() {
            Some(ticket) => Admission::Call(ticket),
            None => self.admit_probe(now(), jitter()),
        }
    }

    fn admit_probe(&self, now: Instant, jitter: f64) -> Admission {
        if self.checks.is_none()
            && let Some(probe) = self.breaker.try_probe(now, jitter)
        {
            return Admission::Probe(probe);
        }
        // Closed a moment ago: it is worth asking again at once.
        match self.breaker.ticket() {
            Some(ticket) => Admission::Call(ticket),
            None => Admission::Refused(self.breaker.retry_after(now)),
        }
    }

    /// A call came to this. Returns the breaker's new state if it changed.
    #[inline]
    pub fn called(
        &self,
        ticket: Ticket,
        outcome: Outcome,
        now: Instant,
        jitter: impl FnOnce() -> f64,
    ) -> Option<BreakerState> {
        if outcome == Outcome::Bad {
            self.seen.lock().last_failure = Some(now);
        }
        self.breaker.report(ticket, outcome, now, jitter)
    }

    /// A check came to this. Returns the breaker's new state if it changed.
    pub fn checked(&self, outcome: Outcome, now: Instant, jitter: f64) -> Option<BreakerState> {
        let fall = self.checks.map_or(u32::MAX, |rules| rules.fall);
        let is_out = {
            let mut seen = self.seen.lock();
            seen.bad_checks = match outcome {
                Outcome::Good => 0,
                Outcome::Bad => seen.bad_checks.saturating_add(1),
            };
            seen.bad_checks >= fall
        };
        if let Some(probe) = self.breaker.probe_now(now, jitter) {
            return probe.end(outcome, now, jitter);
        }
        if is_out { self.breaker.open(now, jitter) } else { None }
    }

    /// As it is seen by now. Without evidence, the upstream is taken for healthy; a single failure
    /// among many calls makes no difference.
    pub fn view(&self, now: Instant) -> DependencyView {
        let breaker = self.breaker.state_at(now);
        let status = match breaker {
            BreakerState::Open => DependencyStatus::Unhealthy,
            BreakerState::HalfOpen => DependencyStatus::Degraded,
            BreakerState::Closed if self.is_doubtful(now) => DependencyStatus::Degraded,
            BreakerState::Closed => DependencyStatus::Healthy,
        };
        DependencyView { status, breaker: Some(breaker) }
    }

    /// Whether one kind of check fails, though not so often that calls are not made.
    fn is_doubtful(&self, now: Instant) -> bool {
        let seen = self.seen.lock();
        if seen.bad_checks > 0 {
            return true;
        }
        let is_recent = |at| now.saturating_duration_since(at) < STALE_AFTER;
        let calls = self.breaker.evidence(now);
        seen.last_failure.is_some_and(is_recent)
            && (calls.in_a_row > 0
                || calls.failures > 0 && calls.failures.saturating_mul(DEGRADED_OF) >= calls.calls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDDLE: f64 = 0.5;
    const CALL_MAX: Duration = Duration::from_secs(60);
    const RULES: CheckRules = CheckRules {
        interval: Duration::from_secs(5),
        timeout: Duration::from_secs(2),
        rise: 2,
        fall: 3,
    };

    fn called(health: &UpstreamHealth, outcome: Outcome, now: Instant) {
        match health.admit(|| now, || MIDDLE) {
            Admission::Call(ticket) => drop(health.called(ticket, outcome, now, || MIDDLE)),
            Admission::Probe(probe) => drop(probe.end(outcome, now, MIDDLE)),
            Admission::Refused(_) => {}
        }
    }

    #[test]
    fn failures_add_up_and_three_answers_heal() {
        let start = crate::clock::monotonic();
        let health = UpstreamHealth::new(None, CALL_MAX, start);
        let at = |seconds| start + Duration::from_secs(seconds);
        let status = |seconds| health.view(at(seconds)).status;
        assert_eq!(status(0), DependencyStatus::Healthy);
        for second in 1..=4 {
            called(&health, Outcome::Bad, at(second));
            assert_eq!(status(second), DependencyStatus::Degraded);
        }
        assert_eq!(status(64), DependencyStatus::Healthy, "nobody asked for a minute");
        called(&health, Outcome::Bad, at(65));
        assert_eq!(status(65), DependencyStatus::Unhealthy);
        assert!(matches!(health.admit(|| at(66), || MIDDLE), Admission::Refused(4)));
        assert_eq!(status(70), DependencyStatus::Degraded, "the next call finds out");
        for _ in 0..3 {
            called(&health, Outcome::Good, at(70));
        }
        assert_eq!(status(70), DependencyStatus::Healthy);
    }

    #[test]
    fn one_failure_among_many_calls_is_none() {
        let start = crate::clock::monotonic();
        let health = UpstreamHealth::new(None, CALL_MAX, start);
        called(&health, Outcome::Bad, start);
        called(&health, Outcome::Good, start);
        assert_eq!(health.view(start).status, DependencyStatus::Degraded, "one of two");
        for _ in 0..9 {
            called(&health, Outcome::Good, start);
        }
        assert_eq!(health.view(start).status, DependencyStatus::Healthy);
    }

    #[test]
    fn three_bad_checks_take_it_out_and_two_good_ones_bring_it_back() {
        let start = crate::clock::monotonic();
        let health = UpstreamHealth::new(Some(RULES), CALL_MAX, start);
        let at = |seconds| start + Duration::from_secs(seconds);
        let check = |outcome, seconds| {
            health.checked(outcome, at(seconds), MIDDLE);
            health.view(at(seconds)).status
        };
        assert_eq!(check(Outcome::Bad, 1), DependencyStatus::Degraded);
        assert_eq!(check(Outcome::Good, 2), DependencyStatus::Healthy);
        assert_eq!(check(Outcome::Bad, 3), DependencyStatus::Degraded);
        assert_eq!(check(Outcome::Bad, 4), DependencyStatus::Degraded);
        assert_eq!(check(Outcome::Bad, 5), DependencyStatus::Unhealthy);
        assert!(matches!(health.admit(|| at(5), || MIDDLE), Admission::Refused(5)));
        assert!(
            matches!(health.admit(|| at(500), || MIDDLE), Admission::Refused(1)),
            "checks probe"
        );
        assert_eq!(check(Outcome::Good, 10), DependencyStatus::Degraded);
        assert_eq!(check(Outcome::Bad, 11), DependencyStatus::Unhealthy);
        assert_eq!(check(Outcome::Good, 12), DependencyStatus::Degraded);
        assert_eq!(check(Outcome::Good, 13), DependencyStatus::Healthy);
        assert!(matches!(health.admit(|| at(13), || MIDDLE), Admission::Call(_)));
    }

    #[test]
    fn failed_calls_open_it_though_checks_do_well_and_checks_bring_it_back() {
        let start = crate::clock::monotonic();
        let health = UpstreamHealth::new(Some(RULES), CALL_MAX, start);
        (0..5).for_each(|_| called(&health, Outcome::Bad, start));
        assert_eq!(health.view(start).status, DependencyStatus::Unhealthy);
        for _ in 0..2 {
            health.checked(Outcome::Good, start, MIDDLE);
        }
        assert_eq!(health.view(start).breaker, Some(BreakerState::Closed));
    }
}
