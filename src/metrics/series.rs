//! The hot cells, grouped by what a request finds together: its endpoint, its tier on it, the
//! scopes that limited it, the upstream that answered it, and the process as a whole.
//!
//! All of them live as long as the process and are found again by name, so that a reload of the
//! policy goes on counting where the old one stopped.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use crate::limiter::quota::Period;
use crate::limiter::time::Timestamp;
use crate::policy::identity::IdentifierType;

use super::cells::{Level, LevelGuard, PerShard};
use super::edge_labels::{CacheResult, HandshakeResult, PoolState};
use super::histogram::{HistogramCells, HistogramTotals, REQUEST_EDGES};
use super::labels::{
    CodeClass, Direction, ErrorType, LimitDecision, LimiterBackend, MethodLabel, Outcome,
};
use super::window::{LatencyRing, SlidingCount, SlidingMin};

/// Ways in which a request can end on one endpoint.
pub const ENDINGS: usize = MethodLabel::COUNT * CodeClass::COUNT * Outcome::COUNT;
/// Verdicts that one scope can give.
const VERDICTS: usize = Period::ALL.len() * LimitDecision::COUNT;
const IDENTIFIER_TYPES: usize = IdentifierType::ALL.len();

/// Adds one, where there is such a cell; the indices are made of closed enums, so there is.
#[inline]
pub fn count(cells: &[AtomicU64], index: usize) {
    count_many(cells, index, 1);
}

/// Adds so many.
#[inline]
pub fn count_many(cells: &[AtomicU64], index: usize, by: u64) {
    if let Some(cell) = cells.get(index) {
        cell.fetch_add(by, Ordering::Relaxed);
    }
}

/// The sum over shards of one cell of each.
pub fn total<'a>(cells: impl Iterator<Item = &'a AtomicU64>) -> u64 {
    cells.fold(0, |sum, cell| sum.wrapping_add(cell.load(Ordering::Relaxed)))
}

/// Everything that is labelled by endpoint alone, or with closed sets beside it.
#[derive(Debug)]
pub struct EndpointSeries {
    /// The label.
    pub name: Box<str>,
    /// Per worker.
    pub cells: PerShard<EndpointCells>,
    /// Upgraded connections that are open.
    pub websockets: Level,
}

/// One worker's part of an endpoint.
#[derive(Debug)]
#[repr(align(128))]
pub struct EndpointCells {
    /// By [`ending_index`].
    pub requests: [AtomicU64; ENDINGS],
    /// By error type.
    pub errors: [AtomicU64; ErrorType::COUNT],
    /// By outcome.
    pub durations: [HistogramCells; Outcome::COUNT],
    /// The last sixty seconds, whatever the outcome.
    pub latencies: LatencyRing,
}

impl Default for EndpointCells {
    fn default() -> Self {
        EndpointCells {
            requests: [const { AtomicU64::new(0) }; ENDINGS],
            errors: Default::default(),
            durations: Default::default(),
            latencies: LatencyRing::default(),
        }
    }
}

/// Where a request that ended so is counted.
pub const fn ending_index(method: MethodLabel, class: CodeClass, outcome: Outcome) -> usize {
    (method.index() * CodeClass::COUNT + class.index()) * Outcome::COUNT + outcome.index()
}

/// Every way of ending, in the order of [`ending_index`].
pub fn endings() -> impl Iterator<Item = (MethodLabel, CodeClass, Outcome)> {
    MethodLabel::ALL.iter().flat_map(|method| {
        CodeClass::ALL.iter().flat_map(move |class| {
            Outcome::ALL.iter().map(move |outcome| (*method, *class, *outcome))
        })
    })
}

impl EndpointSeries {
    /// Nothing counted yet.
    pub fn new(name: &str, shards: usize) -> Self {
        EndpointSeries {
            name: name.into(),
            cells: PerShard::new(shards),
            websockets: Level::new(shards),
        }
    }

    /// The histogram of one outcome, over all workers.
    pub fn durations(&self, outcome: Outcome) -> HistogramTotals {
        let cells = self.cells.iter();
        HistogramTotals::of(cells.filter_map(|cells| cells.durations.get(outcome.index())))
    }
}

/// Evaluated and refused requests of one tier on one endpoint.
#[derive(Debug)]
pub struct PairSeries {
    /// The tier's label.
    pub tier: Box<str>,
    /// The endpoint's label.
    pub endpoint: Box<str>,
    /// Per worker.
    pub cells: PerShard<PairCells>,
}

/// One worker's part of a tier on an endpoint; each by kind of identity.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct PairCells {
    /// Evaluated.
    pub hits: [AtomicU64; IDENTIFIER_TYPES],
    /// Answered 429.
    pub blocks: [AtomicU64; IDENTIFIER_TYPES],
}

/// What one tier's identities have left, and what they have used.
#[derive(Debug)]
pub struct TierSeries {
    /// The label.
    pub name: Box<str>,
    /// Per worker.
    pub cells: PerShard<TierCells>,
    /// By kind of identity; shared by all workers, because it is nearly only read.
    pub lowest: [SlidingMin; IDENTIFIER_TYPES],
    /// What an identity has that has sent nothing: the tier's tightest limit, plus one, so that
    /// zero says that it has none.
    ceiling: AtomicU64,
}

impl TierSeries {
    /// Nothing seen yet.
    pub fn new(name: &str, shards: usize) -> Self {
        TierSeries {
            name: name.into(),
            cells: PerShard::new(shards),
            lowest: Default::default(),
            ceiling: AtomicU64::new(0),
        }
    }

    /// Sets what an untouched identity has; `None` for a tier without limits.
    pub fn set_ceiling(&self, limit: Option<u32>) {
        let packed = limit.map_or(0, |limit| u64::from(limit).saturating_add(1));
        self.ceiling.store(packed, Ordering::Relaxed);
    }

    /// What an untouched identity has.
    pub fn ceiling(&self) -> Option<u64> {
        self.ceiling.load(Ordering::Relaxed).checked_sub(1)
    }
}

/// One worker's part of a tier.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct TierCells {
    /// Of each decision, the share of the tightest limit that is left, in billionths.
    pub shares: HistogramCells,
    /// Cost of what was admitted.
    pub units: AtomicU64,
    /// Requests that were let through, and those that a limit refused.
    pub metered: [AtomicU64; 2],
}

/// Verdicts of one scope's limits.
#[derive(Debug)]
pub struct ScopeSeries {
    /// The `rule` label.
    pub name: Box<str>,
    /// Per worker.
    pub cells: PerShard<ScopeCells>,
    /// Which periods it has limits for: one bit each.
    periods: AtomicU8,
}

impl ScopeSeries {
    /// Nothing counted yet.
    pub fn new(name: &str, shards: usize) -> Self {
        ScopeSeries { name: name.into(), cells: PerShard::new(shards), periods: AtomicU8::new(0) }
    }

    /// It has limits for these periods, and no others.
    pub fn set_periods(&self, periods: impl Iterator<Item = Period>) {
        let bits = periods.fold(0, |bits, period| bits | period_bit(period));
        self.periods.store(bits, Ordering::Relaxed);
    }

    /// Whether it has a limit for this period.
    pub fn has(&self, period: Period) -> bool {
        self.periods.load(Ordering::Relaxed) & period_bit(period) != 0
    }
}

const fn period_bit(period: Period) -> u8 {
    1 << period as u8
}

/// One worker's part of a scope, by [`verdict_index`].
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ScopeCells {
    /// How often each limit gave each verdict.
    pub verdicts: [AtomicU64; VERDICTS],
}

/// Where a verdict is counted.
pub const fn verdict_index(period: Period, decision: LimitDecision) -> usize {
    period as usize * LimitDecision::COUNT + decision.index()
}

/// Calls to one upstream.
#[derive(Debug)]
pub struct UpstreamSeries {
    /// The label: as it is configured where there are several, `default` for the only one.
    pub name: Box<str>,
    /// Per worker.
    pub cells: PerShard<UpstreamCells>,
}

/// One worker's part of an upstream.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct UpstreamCells {
    /// To the head of its answer.
    pub durations: HistogramCells,
    /// To an open connection.
    pub connects: HistogramCells,
}

impl UpstreamSeries {
    /// Nothing counted yet.
    pub fn new(name: &str, shards: usize) -> Self {
        UpstreamSeries { name: name.into(), cells: PerShard::new(shards) }
    }

    /// The head of an answer came after so long.
    #[inline]
    pub fn answered(&self, after: Duration) {
        self.cells.with_own(|cells| cells.durations.record(REQUEST_EDGES, after));
    }

    /// A connection was opened in so long.
    pub fn connected(&self, after: Duration) {
        self.cells.with_own(|cells| cells.connects.record(REQUEST_EDGES, after));
    }
}

/// Connections of one pool.
#[derive(Debug)]
pub struct PoolSeries {
    /// The label.
    pub name: Box<str>,
    /// Those that carry a call.
    active: Level,
    /// Those that wait for one.
    idle: Level,
    /// Calls that wait for a connection.
    waiting: Level,
    /// How long those waited that do no more.
    waits: PerShard<HistogramCells>,
}

impl PoolSeries {
    /// No connections yet.
    pub fn new(name: &str, shards: usize) -> Self {
        PoolSeries {
            name: name.into(),
            active: Level::new(shards),
            idle: Level::new(shards),
            waiting: Level::new(shards),
            waits: PerShard::new(shards),
        }
    }

    /// A connection carries a call, until the guard is dropped.
    #[inline]
    pub fn active(&self) -> LevelGuard {
        self.active.enter()
    }

    /// A connection waits for a call, until the guard is dropped.
    #[inline]
    pub fn idle(&self) -> LevelGuard {
        self.idle.enter()
    }

    /// A call waits for a connection, until the guard is dropped.
    #[inline]
    pub fn wait(&self) -> LevelGuard {
        self.waiting.enter()
    }

    /// A call has waited for so long.
    pub fn waited(&self, span: Duration) {
        self.waits.with_own(|cells| cells.record(REQUEST_EDGES, span));
    }

    /// Calls that wait for a connection.
    pub fn waiting(&self) -> usize {
        self.waiting.count()
    }

    /// How long calls have waited.
    pub fn waits(&self) -> HistogramTotals {
        HistogramTotals::of(self.waits.iter())
    }

    /// The label of each state, and how many connections are in it.
    pub fn counts(&self) -> [(&'static str, usize); 2] {
        [
            (PoolState::Active.as_str(), self.active.count()),
            (PoolState::Idle.as_str(), self.idle.count()),
        ]
    }
}

/// Connections of one listener.
#[derive(Debug)]
pub struct ListenerSeries {
    /// The label.
    pub name: Box<str>,
    /// Those that are open.
    pub active: Level,
    /// Those that ever were.
    pub accepted: AtomicU64,
    /// The end of its certificate, in microseconds since 1970; [`NO_CERTIFICATE`] where it has
    /// none.
    certificate_end: AtomicU64,
}

/// No certificate ends then.
const NO_CERTIFICATE: u64 = u64::MAX;

impl ListenerSeries {
    /// No connections yet.
    pub fn new(name: &str, shards: usize) -> Self {
        ListenerSeries {
            name: name.into(),
            active: Level::new(shards),
            accepted: AtomicU64::new(0),
            certificate_end: AtomicU64::new(NO_CERTIFICATE),
        }
    }

    /// It shows a certificate that ends then.
    pub fn set_certificate_end(&self, end: Timestamp) {
        self.certificate_end.store(end.as_micros(), Ordering::Relaxed);
    }

    /// When its certificate ends, where it has one.
    pub fn certificate_end(&self) -> Option<Timestamp> {
        let end = self.certificate_end.load(Ordering::Relaxed);
        (end != NO_CERTIFICATE).then_some(Timestamp::from_micros(end))
    }

    /// A connection was accepted; it is open until the guard is dropped.
    pub fn connection_opened(&self) -> LevelGuard {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        self.active.enter()
    }
}

/// One worker's part of what has no further label.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ProcessCells {
    /// Time in tollgate itself.
    pub overhead: HistogramCells,
    /// Time of a check, by backend.
    pub limiter: [HistogramCells; LimiterBackend::COUNT],
    /// Time of a call to Redis.
    pub redis: HistogramCells,
    /// Tokens, by whether they were known.
    pub token_lookups: [AtomicU64; CacheResult::COUNT],
    /// TLS handshakes with callers, by result.
    pub handshakes: [AtomicU64; HandshakeResult::COUNT],
    /// Upgraded connections, by how long they were open.
    pub tunnels: HistogramCells,
    /// Their messages, by direction.
    pub messages: [AtomicU64; Direction::COUNT],
    /// Requests that were admitted without the store, lately.
    pub admitted_alone: SlidingCount,
    bytes: [AtomicU64; Direction::COUNT],
}

impl ProcessCells {
    /// Adds body bytes.
    #[inline]
    pub fn add_bytes(&self, direction: Direction, bytes: u64) {
        if bytes > 0 {
            count_many(&self.bytes, direction.index(), bytes);
        }
    }

    /// The cell of one direction.
    pub fn bytes(&self, direction: Direction) -> Option<&AtomicU64> {
        self.bytes.get(direction.index())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ending_has_its_own_cell() {
        let indices: Vec<usize> = endings().map(|(m, c, o)| ending_index(m, c, o)).collect();
        assert_eq!(indices, (0..ENDINGS).collect::<Vec<_>>());
    }
}
