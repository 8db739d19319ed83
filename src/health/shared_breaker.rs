//! A circuit breaker that all workers share.
//!
//! While it is closed, to ask takes a load and a good outcome a counter of the worker's own:
//! nobody waits for anybody. The lock is for failures and for probes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::metrics::cells::PerShard;
use crate::metrics::labels::BreakerState;

use super::breaker::{Breaker, BreakerSettings, Evidence, Lease, Outcome};
use super::recent::{Recent, SLOTS};

/// Threads that count apart; what is beyond shares their counters.
const SHARDS: usize = 32;

/// A breaker that all workers share.
#[derive(Debug)]
pub struct SharedBreaker {
    breaker: Mutex<Breaker>,
    /// Copy of the breaker's state in the lowest byte, so that asking takes no lock; above it how
    /// often it has changed.
    word: AtomicU64,
    /// Failures since the last call that went well.
    in_a_row: AtomicU32,
    goods: PerShard<Recent>,
    bads: Recent,
    transitions: [AtomicU64; BreakerState::COUNT],
    made: Instant,
    /// Length of one of the slots that a window is made of, in microseconds.
    slot_micros: u64,
}

/// A call that the breaker let pass. What becomes of it counts as long as the breaker has not
/// opened meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

impl SharedBreaker {
    /// Closed.
    pub fn new(settings: BreakerSettings, now: Instant) -> Arc<Self> {
        let slot = settings.window.as_micros() / u128::from(SLOTS);
        Arc::new(SharedBreaker {
            breaker: Mutex::new(Breaker::new(settings)),
            word: AtomicU64::new(BreakerState::Closed as u64),
            in_a_row: AtomicU32::new(0),
            goods: PerShard::new(SHARDS),
            bads: Recent::default(),
            transitions: Default::default(),
            made: now,
            slot_micros: u64::try_from(slot).unwrap_or(u64::MAX).max(1),
        })
    }

    /// Whether calls are made.
    #[inline]
    pub fn is_closed(&self) -> bool {
        self.ticket().is_some()
    }

    /// What lets a call pass, while calls are made.
    #[inline]
    pub fn ticket(&self) -> Option<Ticket> {
        let word = self.word.load(Ordering::Relaxed);
        (word & 0xff == BreakerState::Closed as u64).then_some(Ticket(word))
    }

    /// The state, as far as anything has happened.
    pub fn state(&self) -> BreakerState {
        self.breaker.lock().state()
    }

    /// The state by now: a pause may be over.
    pub fn state_at(&self, now: Instant) -> BreakerState {
        self.change(|breaker| breaker.refresh(now));
        self.state()
    }

    /// Since when calls have not been made; `None` while they are.
    pub fn opened_at(&self) -> Option<Instant> {
        self.breaker.lock().opened_at()
    }

    /// How often it entered this state.
    pub fn transitions(&self, to: BreakerState) -> u64 {
        self.transitions.get(to.index()).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// What is known of calls by now.
    pub fn evidence(&self, now: Instant) -> Evidence {
        let slot = self.slot(now);
        let failures = self.bads.count(slot);
        let goods = self.goods.iter().map(|recent| recent.count(slot));
        let calls = goods.fold(failures, u32::saturating_add);
        Evidence { in_a_row: self.in_a_row.load(Ordering::Relaxed), failures, calls }
    }

    /// Counts the outcome of a call. Returns the new state if it changed. `jitter` is between 0 and
    /// 1, here and below.
    #[inline]
    pub fn record(&self, outcome: Outcome, now: Instant, jitter: f64) -> Option<BreakerState> {
        self.report(self.ticket()?, outcome, now, || jitter)
    }

    /// The same for a call that was let pass with this ticket: it says nothing once the breaker has
    /// opened, closed again or not.
    #[inline]
    pub fn report(
        &self,
        ticket: Ticket,
        outcome: Outcome,
        now: Instant,
        jitter: impl FnOnce() -> f64,
    ) -> Option<BreakerState> {
        if self.ticket() != Some(ticket) {
            return None;
        }
        match outcome {
            Outcome::Good => {
                let slot = self.slot(now);
                self.goods.with_own(|recent| recent.note(slot));
                // Nearly always a load and nothing else.
                if self.in_a_row.load(Ordering::Relaxed) != 0 {
                    self.in_a_row.store(0, Ordering::Relaxed);
                }
                None
            }
            Outcome::Bad => self.fail(ticket, now, jitter()),
        }
    }

    fn fail(&self, ticket: Ticket, now: Instant, jitter: f64) -> Option<BreakerState> {
        self.change(|breaker| {
            // Another one may have opened it a moment ago.
            if self.ticket() != Some(ticket) {
                return;
            }
            self.bads.note(self.slot(now));
            self.in_a_row.fetch_add(1, Ordering::Relaxed);
            breaker.fail(self.evidence(now), now, jitter);
        })
    }

    /// Opens it for another reason than failed calls, if it is closed.
    pub fn open(&self, now: Instant, jitter: f64) -> Option<BreakerState> {
        self.change(|breaker| breaker.open(now, jitter))
    }

    /// A probe, if one is due and none is running.
    pub fn try_probe(self: &Arc<Self>, now: Instant, jitter: f64) -> Option<Probe> {
        if self.is_closed() {
            return None;
        }
        self.begin(|breaker| breaker.begin_probe(now, jitter))
    }

    /// A probe, if none is running, whether one is due or not.
    pub fn probe_now(self: &Arc<Self>, now: Instant, jitter: f64) -> Option<Probe> {
        self.begin(|breaker| breaker.begin_probe_now(now, jitter))
    }

    fn begin(self: &Arc<Self>, begin: impl FnOnce(&mut Breaker) -> Option<Lease>) -> Option<Probe> {
        let mut lease = None;
        self.change(|breaker| lease = begin(breaker));
        // Made only when it was begun: dropping a probe ends it.
        lease.map(|lease| Probe { breaker: Arc::clone(self), lease: Some(lease) })
    }

    /// Whole seconds until a call may be made, at least one; a guess where a probe is running.
    pub fn retry_after(&self, now: Instant) -> u32 {
        let wait = self.breaker.lock().wait(now).unwrap_or_default();
        let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
        u32::try_from(seconds).unwrap_or(u32::MAX).max(1)
    }

    fn slot(&self, now: Instant) -> u32 {
        let micros = now.saturating_duration_since(self.made).as_micros();
        let slot = u64::try_from(micros).unwrap_or(u64::MAX) / self.slot_micros;
        u32::try_from(slot).unwrap_or(u32::MAX).saturating_add(1)
    }

    fn change(&self, event: impl FnOnce(&mut Breaker)) -> Option<BreakerState> {
        let mut breaker = self.breaker.lock();
        let before = breaker.state();
        event(&mut breaker);
        let state = breaker.state();
        if state == before {
            return None;
        }
        if let Some(count) = self.transitions.get(state.index()) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if state == BreakerState::Closed {
            // What opened it is not to open it again.
            self.bads.clear();
            self.in_a_row.store(0, Ordering::Relaxed);
        }
        let changes = (self.word.load(Ordering::Relaxed) >> 8).wrapping_add(1);
        self.word.store(changes << 8 | state as u64, Ordering::Relaxed);
        Some(state)
    }
}

/// The one running probe. Dropped without an end, as when its task is cancelled, it makes room for
/// the next.
#[derive(Debug)]
pub struct Probe {
    breaker: Arc<SharedBreaker>,
    lease: Option<Lease>,
}

impl Probe {
    /// Ends the probe. Returns the new state if it changed.
    pub fn end(mut self, outcome: Outcome, now: Instant, jitter: f64) -> Option<BreakerState> {
        let lease = self.lease.take()?;
        self.breaker.change(|breaker| breaker.end_probe(lease, outcome, now, jitter))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            self.breaker.change(|breaker| breaker.give_up(lease));
        }
    }
}

#[cfg(test)]
mod tests;
