//! Histograms of durations with fixed buckets.
//!
//! The exporter's own histogram keeps every sample until someone tidies up, so its memory grows
//! with traffic. These are a handful of atomics, and the sum is a whole number of nanoseconds, so
//! that adding never loses anything.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Most edges that a histogram has.
pub const EDGES_MAX: usize = 14;

/// Upper edges of the buckets, in nanoseconds, rising; the last bucket has no edge.
pub type Edges = &'static [u64];

const MICROS: u64 = 1_000;
const MILLIS: u64 = 1_000_000;
const SECONDS: u64 = 1_000_000_000;

/// For whole requests and calls to an upstream: 1 ms to 10 s.
pub const REQUEST_EDGES: Edges = &[
    MILLIS,
    2_500 * MICROS,
    5 * MILLIS,
    10 * MILLIS,
    25 * MILLIS,
    50 * MILLIS,
    100 * MILLIS,
    250 * MILLIS,
    500 * MILLIS,
    SECONDS,
    2_500 * MILLIS,
    5 * SECONDS,
    7_500 * MILLIS,
    10 * SECONDS,
];

/// For what tollgate itself takes: 50 µs to 100 ms.
pub const OVERHEAD_EDGES: Edges = &[
    50 * MICROS,
    100 * MICROS,
    250 * MICROS,
    500 * MICROS,
    MILLIS,
    2_500 * MICROS,
    5 * MILLIS,
    10 * MILLIS,
    25 * MILLIS,
    100 * MILLIS,
];

/// For the limiter, which takes less than a microsecond in memory and a round trip in Redis. The
/// edge at 1 ms is what the objective is measured at.
pub const LIMITER_EDGES: Edges = &[
    MICROS,
    5 * MICROS,
    25 * MICROS,
    100 * MICROS,
    250 * MICROS,
    500 * MICROS,
    MILLIS,
    2_500 * MICROS,
    5 * MILLIS,
    10 * MILLIS,
    20 * MILLIS,
    50 * MILLIS,
];

/// For upgraded connections: a second to a day.
pub const TUNNEL_EDGES: Edges = &[
    SECONDS,
    5 * SECONDS,
    15 * SECONDS,
    60 * SECONDS,
    300 * SECONDS,
    900 * SECONDS,
    3_600 * SECONDS,
    14_400 * SECONDS,
    86_400 * SECONDS,
];

/// For shares of a whole, in billionths, so that they print as what they are: 0 to 1.
pub const SHARE_EDGES: Edges = &[
    0,
    50 * MILLIS,
    100 * MILLIS,
    200 * MILLIS,
    300 * MILLIS,
    400 * MILLIS,
    500 * MILLIS,
    750 * MILLIS,
    900 * MILLIS,
    SECONDS,
];

/// The cells of one histogram. The same edges must be given on every call.
#[derive(Debug, Default)]
pub struct HistogramCells {
    buckets: [AtomicU64; EDGES_MAX + 1],
    sum_nanos: AtomicU64,
}

impl HistogramCells {
    /// Adds one duration.
    #[inline]
    pub fn record(&self, edges: Edges, duration: Duration) {
        self.record_billionths(edges, u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds one value, in the unit of the edges.
    #[inline]
    pub fn record_billionths(&self, edges: Edges, nanos: u64) {
        let bucket = edges.iter().position(|edge| nanos <= *edge).unwrap_or(edges.len());
        if let Some(cell) = self.buckets.get(bucket) {
            cell.fetch_add(1, Ordering::Relaxed);
            self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
        }
    }
}

/// A histogram added up over shards.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HistogramTotals {
    buckets: [u64; EDGES_MAX + 1],
    sum_nanos: u64,
}

impl HistogramTotals {
    /// Adds what one shard has.
    pub fn add(&mut self, cells: &HistogramCells) {
        for (total, cell) in self.buckets.iter_mut().zip(&cells.buckets) {
            *total = total.wrapping_add(cell.load(Ordering::Relaxed));
        }
        self.sum_nanos = self.sum_nanos.wrapping_add(cells.sum_nanos.load(Ordering::Relaxed));
    }

    /// The sum of several shards' cells.
    pub fn of<'a>(cells: impl Iterator<Item = &'a HistogramCells>) -> Self {
        let mut totals = HistogramTotals::default();
        cells.for_each(|cells| totals.add(cells));
        totals
    }

    /// Counts up to and including each edge, the last without an edge: what `le` means.
    pub fn cumulative(&self, edges: Edges) -> impl Iterator<Item = (Option<u64>, u64)> {
        let edges = edges.iter().copied().map(Some).chain(std::iter::once(None));
        edges.zip(&self.buckets).scan(0_u64, |below, (edge, count)| {
            *below = below.wrapping_add(*count);
            Some((edge, *below))
        })
    }

    /// How many durations were recorded.
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, count| sum.wrapping_add(*count))
    }

    /// Their sum in seconds.
    pub fn sum_seconds(&self) -> f64 {
        self.sum_nanos as f64 / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_belongs_to_the_bucket_below_it() {
        let cells = HistogramCells::default();
        for micros in [0, 1000, 1001, 20_000_000] {
            cells.record(REQUEST_EDGES, Duration::from_micros(micros));
        }
        let totals = HistogramTotals::of([&cells, &HistogramCells::default()].into_iter());
        let cumulative: Vec<_> = totals.cumulative(REQUEST_EDGES).collect();
        assert_eq!(cumulative[0], (Some(1_000_000), 2));
        assert_eq!(cumulative[1], (Some(2_500_000), 3));
        assert_eq!(cumulative[13], (Some(10_000_000_000), 3));
        assert_eq!(cumulative[14], (None, 4));
        assert_eq!(totals.count(), 4);
        assert!((totals.sum_seconds() - 20.002_001).abs() < 1e-9);
    }

    #[test]
    fn every_set_of_edges_rises_and_fits() {
        for edges in [REQUEST_EDGES, OVERHEAD_EDGES, LIMITER_EDGES, TUNNEL_EDGES, SHARE_EDGES] {
            assert!(edges.len() <= EDGES_MAX);
            assert!(edges.is_sorted_by(|a, b| a < b));
        }
        assert!(LIMITER_EDGES.contains(&1_000_000), "the objective is measured at 1 ms");
        assert_eq!((REQUEST_EDGES.len(), OVERHEAD_EDGES.len()), (14, 10));
    }
}
