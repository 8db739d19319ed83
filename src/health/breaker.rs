//! The circuit breaker before a dependency: a state machine that is told the time.
//!
//! It is told of failures and of what became of probes, and decides whether calls are made.
//! Nothing here waits, connects or logs. Workers share one through
//! [`SharedBreaker`](super::shared_breaker::SharedBreaker), which counts what went well.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

use crate::metrics::labels::BreakerState;

/// Failures in a row that open a breaker.
pub const FAILURES_IN_A_ROW: u32 = 5;
/// Calls in a window below which the share of failures says nothing.
pub const WINDOW_CALLS_MIN: u32 = 20;
/// Good probes in a row that close a breaker.
pub const GOOD_PROBES: u32 = 3;
/// How long a call may keep others from finding out whether the upstream is back. As long as it
/// likes would be as long as its client likes, who may be slow to send its body.
pub const CALL_LEASE_MAX: Duration = Duration::from_secs(10);
/// First and longest time that the upstream's breaker stays open.
pub const UPSTREAM_PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// What became of a call or a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered, in time.
    Good,
    /// Not answered, late, or answered with an error.
    Bad,
}

/// How a breaker behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerSettings {
    /// Failures in a row that open it.
    pub failures_in_a_row: u32,
    /// Span over which the share of failures is counted, exact to a tenth of it; half opens it.
    pub window: Duration,
    /// Calls in a window below which that share says nothing.
    pub window_calls_min: u32,
    /// Good probes in a row that close it.
    pub good_probes: u32,
    /// From the failure that opened it to the first probe; doubled by each probe that fails, up to
    /// the second of the two.
    pub pauses: (Duration, Duration),
    /// What jitter adds to a pause, as shares of it: at 0, and at 1.
    pub jitter: (f64, f64),
    /// Least time between the beginnings of two probes.
    pub probe_gap: Duration,
    /// A probe of which nothing was heard for so long makes room for another; what it comes to
    /// counts all the same.
    pub probe_lease: Duration,
    /// Whether it counts as half-open as soon as its pause is over; if not, with the first probe
    /// that was good.
    pub is_half_open_when_due: bool,
}

impl BreakerSettings {
    /// For what is probed beside the traffic, which does not wait for it: four times a second at
    /// most.
    pub const STEADY: BreakerSettings = BreakerSettings {
        failures_in_a_row: FAILURES_IN_A_ROW,
        window: Duration::from_secs(1),
        window_calls_min: WINDOW_CALLS_MIN,
        good_probes: GOOD_PROBES,
        pauses: (Duration::from_millis(250), Duration::from_millis(250)),
        jitter: (0.0, 0.2),
        probe_gap: Duration::from_millis(250),
        probe_lease: Duration::from_secs(30),
        is_half_open_when_due: false,
    };

    /// For what is probed by the calls themselves: one at a time, after pauses that grow. A probe
    /// loses its place after `probe_lease`.
    pub const fn probed_by_calls(probe_lease: Duration) -> Self {
        BreakerSettings {
            window: Duration::from_secs(10),
            pauses: UPSTREAM_PAUSES,
            jitter: (-0.2, 0.2),
            probe_gap: Duration::ZERO,
            probe_lease,
            is_half_open_when_due: true,
            ..Self::STEADY
        }
    }

    /// For what is probed by checks of its own, every `interval`, each within `timeout`; `rise`
    /// good ones in a row close it.
    pub fn probed_by_checks(interval: Duration, timeout: Duration, rise: u32) -> Self {
        BreakerSettings {
            good_probes: rise.max(1),
            pauses: (interval, interval),
            is_half_open_when_due: false,
            ..Self::probed_by_calls(timeout.saturating_mul(2))
        }
    }

    fn pause(&self, times: u32, jitter: f64) -> Duration {
        let (first, longest) = self.pauses;
        let doubled = first.saturating_mul(1 << times.min(16)).min(longest);
        let (least, most) = self.jitter;
        let share = 1.0 + least + (most - least) * jitter.clamp(0.0, 1.0);
        doubled.mul_f64(share.max(0.0))
    }
}

/// What is known of the calls when one has failed, that one included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Failures since the last call that went well.
    pub in_a_row: u32,
    /// Failures in the window.
    pub failures: u32,
    /// Calls in the window.
    pub calls: u32,
}

/// Decides whether calls are made.
#[derive(Debug)]
pub struct Breaker {
    settings: BreakerSettings,
    state: BreakerState,
    opened_at: Option<Instant>,
    closed_at: Option<Instant>,
    next_probe: Option<Instant>,
    /// Pauses since it was well for long.
    pauses: u32,
    probe: Option<(Lease, Instant)>,
    leases: u64,
    /// How often it has opened or closed.
    round: u64,
    good_probes: u32,
}

/// The place of the one probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    number: u64,
    round: u64,
}

impl Breaker {
    /// Closed.
    pub const fn new(settings: BreakerSettings) -> Self {
        Breaker {
            settings,
            state: BreakerState::Closed,
            opened_at: None,
            closed_at: None,
            next_probe: None,
            pauses: 0,
            probe: None,
            leases: 0,
            round: 0,
            good_probes: 0,
        }
    }

    /// How it behaves.
    pub fn settings(&self) -> &BreakerSettings {
        &self.settings
    }

    /// The state.
    pub fn state(&self) -> BreakerState {
        self.state
    }

    /// Since when calls have not been made; `None` while closed.
    pub fn opened_at(&self) -> Option<Instant> {
        self.opened_at
    }

    /// A call has failed. What started before the breaker opened and ends after it says nothing
    /// new. `jitter` is between 0 and 1, here and below.
    pub fn fail(&mut self, evidence: Evidence, now: Instant, jitter: f64) {
        let Evidence { in_a_row, failures, calls } = evidence;
        let half_failed =
            calls >= self.settings.window_calls_min && failures.saturating_mul(2) >= calls;
        if in_a_row >= self.settings.failures_in_a_row || half_failed {
            self.open(now, jitter);
        }
    }

    /// Opens it for another reason than failed calls, if it is closed.
    pub fn open(&mut self, now: Instant, jitter: f64) {
        if self.state != BreakerState::Closed {
            return;
        }
        // Who fails again as soon as it is let is worth a longer pause than who fails once a day.
        let (_, longest) = self.settings.pauses;
        let is_soon = |at| now.saturating_duration_since(at) < longest;
        self.pauses = if self.closed_at.is_some_and(is_soon) { self.pauses } else { 0 };
        self.opened_at = Some(now);
        self.pause(now, jitter);
    }

    /// Lets time pass: a pause that is over ends the open state, where that is how it is shown.
    pub fn refresh(&mut self, now: Instant) {
        if self.state == BreakerState::Open
            && self.settings.is_half_open_when_due
            && self.is_due(now)
        {
            self.state = BreakerState::HalfOpen;
        }
    }

    /// The place of a probe, if one is due and none is running. It is the only one until it ends,
    /// is given up, or its lease is over.
    pub fn begin_probe(&mut self, now: Instant, jitter: f64) -> Option<Lease> {
        if self.is_due(now) { self.begin_probe_now(now, jitter) } else { None }
    }

    /// The same without waiting for the pause to be over.
    pub fn begin_probe_now(&mut self, now: Instant, jitter: f64) -> Option<Lease> {
        let is_running = self.probe.is_some_and(|(_, until)| now < until);
        if self.state == BreakerState::Closed || is_running {
            return None;
        }
        self.refresh(now);
        self.leases = self.leases.wrapping_add(1);
        let lease = Lease { number: self.leases, round: self.round };
        self.probe = Some((lease, now + self.settings.probe_lease));
        let (least, most) = self.settings.jitter;
        let gap = 1.0 + least + (most - least) * jitter.clamp(0.0, 1.0);
        self.next_probe = Some(now + self.settings.probe_gap.mul_f64(gap.max(0.0)));
        Some(lease)
    }

    /// Ends a probe. One that began before the breaker opened again, or closed, says nothing.
    pub fn end_probe(&mut self, lease: Lease, outcome: Outcome, now: Instant, jitter: f64) {
        self.give_up(lease);
        if lease.round != self.round {
            return;
        }
        if outcome == Outcome::Bad {
            self.pauses = self.pauses.saturating_add(1);
            return self.pause(now, jitter);
        }
        self.good_probes = self.good_probes.saturating_add(1);
        if self.good_probes < self.settings.good_probes {
            self.state = BreakerState::HalfOpen;
            return;
        }
        *self = Breaker {
            closed_at: Some(now),
            pauses: self.pauses.saturating_add(1),
            leases: self.leases,
            round: self.round.wrapping_add(1),
            ..Breaker::new(self.settings)
        };
    }

    /// Takes a probe's place away, if it has it still, without an outcome.
    pub fn give_up(&mut self, lease: Lease) {
        self.probe.take_if(|(running, _)| *running == lease);
    }

    /// How long until a call may be made as a probe, if nothing else happens: zero where one may
    /// now, `None` where one is running and nobody knows.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        if self.probe.is_some_and(|(_, until)| now < until) {
            return None;
        }
        Some(self.next_probe.map_or(Duration::ZERO, |at| at.saturating_duration_since(now)))
    }

    fn is_due(&self, now: Instant) -> bool {
        self.next_probe.is_some_and(|at| now >= at)
    }

    fn pause(&mut self, now: Instant, jitter: f64) {
        self.state = BreakerState::Open;
        self.round = self.round.wrapping_add(1);
        self.good_probes = 0;
        self.next_probe = Some(now + self.settings.pause(self.pauses, jitter));
    }
}

/// Between 0 and 1, another number each time: for pauses that workers, users and replicas must not
/// keep in step.
pub fn jitter() -> f64 {
    let random = RandomState::new().build_hasher().finish();
    (random % 1_000) as f64 / 1_000.0
}
