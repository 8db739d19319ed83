//! The circuit breaker before a dependency: a state machine that is told the time.
//!
//! It counts what became of calls and decides whether they are made. Nothing here waits, connects
//! or logs.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::metrics::labels::BreakerState;

/// Failures in a row that open the breaker.
pub const FAILURES_IN_A_ROW: u32 = 5;
/// Span over which the share of failures is counted.
pub const WINDOW: Duration = Duration::from_secs(1);
/// Calls in a window below which their share of failures says nothing.
pub const WINDOW_CALLS_MIN: u32 = 20;
/// Least time between two probes.
pub const PROBE_INTERVAL: Duration = Duration::from_millis(250);
/// Good probes in a row that close the breaker.
pub const GOOD_PROBES: u32 = 3;

/// What became of a call or a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered, in time.
    Good,
    /// Not answered, late, or answered with an error.
    Bad,
}

/// Counts outcomes and decides whether calls are made.
///
/// Opens after [`FAILURES_IN_A_ROW`], or when half of at least [`WINDOW_CALLS_MIN`] calls of one
/// [`WINDOW`] failed. From then on only probes are made, one at a time; [`GOOD_PROBES`] in a row
/// close it.
#[derive(Debug)]
pub struct Breaker {
    state: BreakerState,
    in_a_row: u32,
    window_start: Option<Instant>,
    calls: u32,
    failures: u32,
    opened_at: Option<Instant>,
    next_probe: Option<Instant>,
    is_probing: bool,
    good_probes: u32,
}

impl Default for Breaker {
    fn default() -> Self {
        Breaker {
            state: BreakerState::Closed,
            in_a_row: 0,
            window_start: None,
            calls: 0,
            failures: 0,
            opened_at: None,
            next_probe: None,
            is_probing: false,
            good_probes: 0,
        }
    }
}

impl Breaker {
    /// The state.
    pub fn state(&self) -> BreakerState {
        self.state
    }

    /// Since when calls have not been made; `None` while closed.
    pub fn opened_at(&self) -> Option<Instant> {
        self.opened_at
    }

    /// Counts the outcome of a call. What started before the breaker opened and ends after it says
    /// nothing new. Returns the new state if it changed.
    pub fn record(&mut self, outcome: Outcome, now: Instant) -> Option<BreakerState> {
        if self.state != BreakerState::Closed {
            return None;
        }
        let is_current =
            self.window_start.is_some_and(|start| now.saturating_duration_since(start) < WINDOW);
        if !is_current {
            self.window_start = Some(now);
            self.calls = 0;
            self.failures = 0;
        }
        self.calls = self.calls.saturating_add(1);
        if outcome == Outcome::Good {
            self.in_a_row = 0;
            return None;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.failures = self.failures.saturating_add(1);
        let half_failed =
            self.calls >= WINDOW_CALLS_MIN && self.failures.saturating_mul(2) >= self.calls;
        if self.in_a_row < FAILURES_IN_A_ROW && !half_failed {
            return None;
        }
        self.opened_at = Some(now);
        self.next_probe = Some(now + PROBE_INTERVAL);
        self.good_probes = 0;
        self.enter(BreakerState::Open)
    }

    /// Whether a probe may be made now. If so it is the only one until [`Breaker::end_probe`], and
    /// the next one is due [`PROBE_INTERVAL`] and `jitter` later.
    pub fn begin_probe(&mut self, now: Instant, jitter: Duration) -> bool {
        let is_due = self.next_probe.is_some_and(|at| now >= at);
        if self.state == BreakerState::Closed || self.is_probing || !is_due {
            return false;
        }
        self.is_probing = true;
        self.next_probe = Some(now + PROBE_INTERVAL + jitter);
        true
    }

    /// Ends the probe; `None` for one that was given up, which says nothing either way. Returns
    /// the new state if it changed.
    pub fn end_probe(&mut self, outcome: Option<Outcome>) -> Option<BreakerState> {
        self.is_probing = false;
        match outcome {
            None => None,
            Some(Outcome::Bad) => {
                self.good_probes = 0;
                self.enter(BreakerState::Open)
            }
            Some(Outcome::Good) => {
                self.good_probes = self.good_probes.saturating_add(1);
                if self.good_probes < GOOD_PROBES {
                    return self.enter(BreakerState::HalfOpen);
                }
                *self = Breaker::default();
                Some(BreakerState::Closed)
            }
        }
    }

    fn enter(&mut self, state: BreakerState) -> Option<BreakerState> {
        let changed = self.state != state;
        self.state = state;
        changed.then_some(state)
    }
}

/// A breaker that all workers share.
#[derive(Debug, Default)]
pub struct SharedBreaker {
    breaker: Mutex<Breaker>,
    /// Copy of the breaker's state, so that asking takes no lock.
    state: AtomicU8,
}

impl SharedBreaker {
    /// Whether calls are made.
    pub fn is_closed(&self) -> bool {
        self.state.load(Ordering::Relaxed) == BreakerState::Closed as u8
    }

    /// The state.
    pub fn state(&self) -> BreakerState {
        self.breaker.lock().state()
    }

    /// Since when calls have not been made; `None` while they are.
    pub fn opened_at(&self) -> Option<Instant> {
        self.breaker.lock().opened_at()
    }

    /// Counts the outcome of a call. Returns the new state if it changed.
    pub fn record(&self, outcome: Outcome, now: Instant) -> Option<BreakerState> {
        self.change(|breaker| breaker.record(outcome, now))
    }

    /// A probe, if one is due and none is running.
    pub fn try_probe(&self, now: Instant, jitter: Duration) -> Option<Probe<'_>> {
        if self.is_closed() {
            return None;
        }
        // Made only when it was begun: dropping a probe ends it.
        let began = self.breaker.lock().begin_probe(now, jitter);
        began.then(|| Probe { breaker: self, ended: false })
    }

    fn change(
        &self,
        event: impl FnOnce(&mut Breaker) -> Option<BreakerState>,
    ) -> Option<BreakerState> {
        let mut breaker = self.breaker.lock();
        let changed = event(&mut breaker);
        if let Some(state) = changed {
            self.state.store(state as u8, Ordering::Relaxed);
        }
        changed
    }
}

/// The one running probe. Dropped without an end, as when its task is cancelled, it makes room for
/// the next.
#[derive(Debug)]
pub struct Probe<'b> {
    breaker: &'b SharedBreaker,
    ended: bool,
}

impl Probe<'_> {
    /// Ends the probe. Returns the new state if it changed.
    pub fn end(mut self, outcome: Outcome) -> Option<BreakerState> {
        self.ended = true;
        self.breaker.change(|breaker| breaker.end_probe(Some(outcome)))
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.breaker.change(|breaker| breaker.end_probe(None));
        }
    }
}

/// Between 0 and 1, another number each time: for pauses that workers, users and replicas must not
/// keep in step.
pub fn jitter() -> f64 {
    let random = RandomState::new().build_hasher().finish();
    (random % 1_000) as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_JITTER: Duration = Duration::ZERO;

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    fn opened(start: Instant) -> SharedBreaker {
        let gate = SharedBreaker::default();
        for _ in 0..FAILURES_IN_A_ROW {
            gate.record(Outcome::Bad, start);
        }
        assert_eq!(gate.state(), BreakerState::Open);
        gate
    }

    #[test]
    fn five_failures_in_a_row_open_it_and_a_success_starts_the_count_again() {
        let start = crate::clock::monotonic();
        let gate = SharedBreaker::default();
        for _ in 0..4 {
            assert_eq!(gate.record(Outcome::Bad, start), None);
        }
        assert_eq!(gate.record(Outcome::Good, start), None);
        for _ in 0..4 {
            assert_eq!(gate.record(Outcome::Bad, start), None);
        }
        assert!(gate.is_closed());
        assert_eq!(gate.record(Outcome::Bad, after(start, 5)), Some(BreakerState::Open));
        assert_eq!(gate.opened_at(), Some(after(start, 5)));
        assert!(!gate.is_closed());
    }

    #[test]
    fn half_of_twenty_calls_of_a_second_open_it() {
        let start = crate::clock::monotonic();
        let mut breaker = Breaker::default();
        for call in 0..9 {
            assert_eq!(breaker.record(Outcome::Good, after(start, call)), None);
            assert_eq!(breaker.record(Outcome::Bad, after(start, call)), None);
        }
        assert_eq!(breaker.record(Outcome::Good, after(start, 20)), None);
        assert_eq!(breaker.record(Outcome::Bad, after(start, 21)), Some(BreakerState::Open));
    }

    #[test]
    fn failures_of_another_second_do_not_count_together() {
        let start = crate::clock::monotonic();
        let mut breaker = Breaker::default();
        for call in 0..60_u64 {
            // Every other call fails, but never twenty in a second.
            let outcome = if call % 2 == 0 { Outcome::Bad } else { Outcome::Good };
            assert_eq!(breaker.record(outcome, after(start, call * 60)), None, "call {call}");
        }
    }

    #[test]
    fn what_ends_after_it_opened_changes_nothing() {
        let start = crate::clock::monotonic();
        let gate = opened(start);
        assert_eq!(gate.record(Outcome::Good, after(start, 1)), None);
        assert_eq!(gate.record(Outcome::Bad, after(start, 2)), None);
        assert_eq!(gate.opened_at(), Some(start));
    }

    #[test]
    fn one_probe_at_a_time_and_three_good_ones_close_it() {
        let start = crate::clock::monotonic();
        let gate = opened(start);
        assert!(gate.try_probe(after(start, 249), NO_JITTER).is_none());
        let probe = gate.try_probe(after(start, 250), NO_JITTER).unwrap();
        assert!(gate.try_probe(after(start, 900), NO_JITTER).is_none(), "one is running");
        assert_eq!(probe.end(Outcome::Good), Some(BreakerState::HalfOpen));
        assert!(!gate.is_closed(), "requests still go without");

        let probe = gate.try_probe(after(start, 500), NO_JITTER).unwrap();
        assert_eq!(probe.end(Outcome::Good), None);
        assert!(gate.try_probe(after(start, 501), NO_JITTER).is_none(), "not due yet");
        let probe = gate.try_probe(after(start, 750), NO_JITTER).unwrap();
        assert_eq!(probe.end(Outcome::Good), Some(BreakerState::Closed));
        assert!(gate.is_closed());
        assert_eq!(gate.opened_at(), None);
        assert!(gate.try_probe(after(start, 2_000), NO_JITTER).is_none());
    }

    #[test]
    fn a_bad_probe_starts_over() {
        let start = crate::clock::monotonic();
        let gate = opened(start);
        let probe = |at, outcome| gate.try_probe(after(start, at), NO_JITTER).unwrap().end(outcome);
        assert_eq!(probe(250, Outcome::Bad), None);
        assert_eq!(probe(500, Outcome::Good), Some(BreakerState::HalfOpen));
        assert_eq!(probe(750, Outcome::Bad), Some(BreakerState::Open));
        assert_eq!(probe(1_000, Outcome::Good), Some(BreakerState::HalfOpen));
        assert_eq!(probe(1_250, Outcome::Good), None);
        assert_eq!(probe(1_500, Outcome::Good), Some(BreakerState::Closed));
    }

    #[test]
    fn a_dropped_probe_makes_room_for_the_next_and_counts_neither_way() {
        let start = crate::clock::monotonic();
        let gate = opened(start);
        let probe = |at| gate.try_probe(after(start, at), NO_JITTER);
        assert_eq!(probe(250).unwrap().end(Outcome::Good), Some(BreakerState::HalfOpen));
        drop(probe(500).unwrap());
        assert_eq!(gate.state(), BreakerState::HalfOpen);
        assert!(probe(501).is_none(), "the interval holds all the same");
        assert_eq!(probe(750).unwrap().end(Outcome::Good), None);
        assert_eq!(probe(1_000).unwrap().end(Outcome::Good), Some(BreakerState::Closed));
    }

    #[test]
    fn jitter_delays_the_next_probe() {
        let start = crate::clock::monotonic();
        let gate = opened(start);
        let jitter = Duration::from_millis(40);
        gate.try_probe(after(start, 250), jitter).unwrap().end(Outcome::Bad);
        assert!(gate.try_probe(after(start, 539), jitter).is_none());
        assert!(gate.try_probe(after(start, 540), jitter).is_some());
    }
}
