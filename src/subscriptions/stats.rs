//! What look-ups count about themselves: plain numbers for whoever exports them. No names of
//! metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::clock::monotonic;
use crate::metrics::cells::PerShard;
use crate::metrics::checks::CheckCells;
use crate::metrics::histogram::{HistogramCells, HistogramTotals, REQUEST_EDGES};
use crate::metrics::labels::{BreakerState, LookupResult};

/// Counters of all workers together, and how many look-ups wait.
#[derive(Debug)]
pub struct Stats {
    results: PerShard<Results>,
    timeouts: AtomicU64,
    slow: AtomicU64,
    transitions: [AtomicU64; BreakerState::COUNT],
    queue: AtomicU64,
    waits: HistogramCells,
    checks: Arc<CheckCells>,
}

/// One worker's part.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Results([AtomicU64; LookupResult::COUNT]);

impl Stats {
    /// Nothing counted yet; for so many threads that count beside each other.
    pub fn new(shards: usize) -> Self {
        Stats {
            results: PerShard::new(shards),
            timeouts: AtomicU64::new(0),
            slow: AtomicU64::new(0),
            transitions: Default::default(),
            queue: AtomicU64::new(0),
            waits: HistogramCells::default(),
            checks: Arc::default(),
        }
    }

    /// Requests that got their answer so.
    pub fn results(&self, result: LookupResult) -> u64 {
        let cells = self.results.iter().filter_map(|cells| cells.0.get(result.index()));
        cells.map(|cell| cell.load(Ordering::Relaxed)).sum()
    }

    /// Look-ups that were not answered in time, whoever waited for them.
    pub fn timeouts(&self) -> u64 {
        self.timeouts.load(Ordering::Relaxed)
    }

    /// Look-ups that took longer than the threshold.
    pub fn slow(&self) -> u64 {
        self.slow.load(Ordering::Relaxed)
    }

    /// How often the breaker entered this state.
    pub fn transitions(&self, to: BreakerState) -> u64 {
        self.transitions.get(to.index()).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// What looks after the database came to.
    pub fn checks(&self) -> &Arc<CheckCells> {
        &self.checks
    }

    /// Look-ups that wait for a connection.
    pub fn queue(&self) -> u64 {
        self.queue.load(Ordering::Relaxed)
    }

    /// How long look-ups have waited for a connection.
    pub fn waits(&self) -> HistogramTotals {
        HistogramTotals::of(std::iter::once(&self.waits))
    }

    #[inline]
    pub(super) fn count(&self, result: LookupResult) {
        self.results.with_own(|cells| {
            if let Some(cell) = cells.0.get(result.index()) {
                cell.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    pub(super) fn count_timeout(&self) {
        self.timeouts.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_slow(&self) {
        self.slow.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_transition(&self, to: BreakerState) {
        if let Some(count) = self.transitions.get(to.index()) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// One look-up that waits for a connection, until it is dropped.
#[derive(Debug)]
pub struct Waiting {
    stats: Arc<Stats>,
    since: Instant,
}

impl Waiting {
    /// One more waits.
    pub fn new(stats: &Arc<Stats>) -> Self {
        stats.queue.fetch_add(1, Ordering::Relaxed);
        Waiting { stats: Arc::clone(stats), since: monotonic() }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.stats.queue.fetch_sub(1, Ordering::Relaxed);
        let span = monotonic().saturating_duration_since(self.since);
        self.stats.waits.record(REQUEST_EDGES, span);
    }
}
