//! What the store counts about itself: plain numbers for whoever exports them. No names of metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::checks::CheckCells;
use crate::metrics::labels::{BreakerState, RedisErrorKind};
use crate::policy::compiled::FailureMode;

const KINDS: usize = RedisErrorKind::COUNT;

/// Why a decision was made without Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Redis was asked, to no avail.
    Failed(RedisErrorKind),
    /// The breaker is open: Redis was not asked.
    BreakerOpen,
}

impl Reason {
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
    errors: [AtomicU64; KINDS],
    fallbacks: [[AtomicU64; KINDS + 1]; 3],
    transitions: [AtomicU64; 3],
    reconnects: AtomicU64,
    forced_reconnects: AtomicU64,
    late_replies: AtomicU64,
    charges: [AtomicU64; 2],
    in_flight: AtomicU64,
    checks: Arc<CheckCells>,
}

impl RedisStats {
    /// Failures of this kind, probes and a `NOSCRIPT` that was mended included.
    pub fn errors(&self, kind: RedisErrorKind) -> u64 {
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

    /// Charges of what was let pass alone: those that were made, or those of which that is not
    /// certain and which are made again.
    pub fn charges(&self, made: bool) -> u64 {
        read(&self.charges, usize::from(made))
    }

    /// Checks sent to Redis and not answered yet.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// What checks of the watchers came to: PINGs, and calls of the script that write.
    pub fn checks(&self) -> &Arc<CheckCells> {
        &self.checks
    }

    pub(super) fn count_error(&self, kind: RedisErrorKind) {
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

    pub(super) fn count_charge(&self, made: bool) {
        add_one(&self.charges, usize::from(made));
    }

    pub(super) fn enter_flight(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn leave_flight(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
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
    fn fallbacks_are_counted_by_mode_and_reason() {
        let stats = RedisStats::default();
        stats.count_fallback(FailureMode::Open, Reason::BreakerOpen);
        stats.count_fallback(FailureMode::Open, Reason::Failed(RedisErrorKind::Timeout));
        assert_eq!(stats.fallbacks(FailureMode::Open, Reason::BreakerOpen), 1);
        assert_eq!(stats.fallbacks(FailureMode::Local, Reason::BreakerOpen), 0);
    }
}
