//! What the last sixty seconds looked like: a quantile, and a minimum.
//!
//! Both are rings of six slots of ten seconds that whoever records turns on; a reading changes
//! nothing, so two scrapers see the same. A slot that belongs to another time is as good as empty,
//! whether the clock went on or stepped back.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::limiter::time::Timestamp;

const SLOTS: u64 = 6;
const SLOT_MICROS: u64 = 10_000_000;
/// Buckets per doubling: neighbours differ by 9 %, so the middle of one is off by 4.4 % at most.
const PER_OCTAVE: f32 = 8.0;
/// From 1 µs over 27 doublings, which is 134 s; what is outside goes to the first or last.
const BUCKETS: usize = 27 * 8;

/// The slot's time: ten-second spans since 1970, counted from one so that zero means never.
fn epoch(at: Timestamp) -> u64 {
    (at.as_micros() / SLOT_MICROS).saturating_add(1)
}

fn slot_index(epoch: u64) -> usize {
    usize::try_from(epoch % SLOTS).unwrap_or(0)
}

fn is_recent(slot: u64, now: u64) -> bool {
    slot <= now && slot.saturating_add(SLOTS) > now
}

/// Durations of the last sixty seconds, in buckets of logarithmic width.
#[derive(Debug)]
pub struct LatencyRing {
    slots: [LatencySlot; SLOTS as usize],
}

#[derive(Debug)]
struct LatencySlot {
    epoch: AtomicU64,
    counts: [AtomicU32; BUCKETS],
}

impl Default for LatencyRing {
    fn default() -> Self {
        let slot = |_| LatencySlot {
            epoch: AtomicU64::new(0),
            counts: [const { AtomicU32::new(0) }; BUCKETS],
        };
        LatencyRing { slots: std::array::from_fn(slot) }
    }
}

impl LatencyRing {
    /// Adds a duration that ended at `at`.
    #[inline]
    pub fn record(&self, duration: Duration, at: Timestamp) {
        let epoch = epoch(at);
        let Some(slot) = self.slots.get(slot_index(epoch)) else { return };
        let found = slot.epoch.load(Ordering::Relaxed);
        if found != epoch
            && slot
                .epoch
                .compare_exchange(found, epoch, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        {
            // A thread that shares the shard may lose a count here, once in ten seconds.
            slot.counts.iter().for_each(|count| count.store(0, Ordering::Relaxed));
        }
        if let Some(count) = slot.counts.get(bucket(duration)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
fn bucket(duration: Duration) -> usize {
    let index = (duration.as_secs_f32() * 1e6).log2() * PER_OCTAVE;
    (index.max(0.0) as usize).min(BUCKETS - 1)
}

/// The quantile, in seconds, of what several rings recorded in the sixty seconds before `now`:
/// the nearest rank, within 5 % of the true sample. `None` where there was nothing.
pub fn quantile<'a>(
    rings: impl Iterator<Item = &'a LatencyRing>,
    share: f64,
    now: Timestamp,
) -> Option<f64> {
    quantiles(rings, [share], SLOTS, now).map(|[found]| found)
}

/// Several of them at once, over the running slot of ten seconds and those before it, `slots` in
/// all.
pub fn quantiles<'a, const N: usize>(
    rings: impl Iterator<Item = &'a LatencyRing>,
    shares: [f64; N],
    slots: u64,
    now: Timestamp,
) -> Option<[f64; N]> {
    let now = epoch(now);
    let is_wanted = |slot: u64| is_recent(slot, now) && slot.saturating_add(slots) > now;
    let mut counts = [0_u64; BUCKETS];
    let all = rings.flat_map(|ring| &ring.slots);
    for slot in all.filter(|slot| is_wanted(slot.epoch.load(Ordering::Acquire))) {
        for (total, count) in counts.iter_mut().zip(&slot.counts) {
            *total = total.saturating_add(u64::from(count.load(Ordering::Relaxed)));
        }
    }
    let total: u64 = counts.iter().sum();
    let of = |share: f64| {
        let rank = ((total as f64) * share).ceil().max(1.0);
        let mut below = 0_u64;
        let index = counts.iter().position(|count| {
            below = below.saturating_add(*count);
            below as f64 >= rank
        });
        // The rank is at most the total, so that it is met.
        let octaves = (index.unwrap_or(BUCKETS) as f64 + 0.5) / f64::from(PER_OCTAVE);
        octaves.exp2() / 1e6
    };
    (total > 0).then(|| shares.map(of))
}

/// The lowest value of the last sixty seconds.
#[derive(Debug, Default)]
pub struct SlidingMin {
    /// The slot's time in the upper half, its lowest value in the lower.
    slots: [AtomicU64; SLOTS as usize],
}

impl SlidingMin {
    /// Takes a value into account. Usually a load and no more: only a lower one is written.
    #[inline]
    pub fn observe(&self, value: u32, at: Timestamp) {
        let epoch = epoch(at);
        let Some(slot) = self.slots.get(slot_index(epoch)) else { return };
        let packed = (epoch << 32) | u64::from(value);
        // It fails only where the slot holds this very time and no higher value.
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |found| {
            (found >> 32 != packed >> 32 || found > packed).then_some(packed)
        });
    }

    /// The lowest value of the sixty seconds before `now`.
    pub fn lowest(&self, now: Timestamp) -> Option<u32> {
        let now = epoch(now);
        self.slots
            .iter()
            .map(|slot| slot.load(Ordering::Relaxed))
            .filter(|found| *found != 0 && is_recent(found >> 32, now))
            .map(|found| u32::try_from(found & u64::from(u32::MAX)).unwrap_or(u32::MAX))
            .min()
    }
}

/// How many there were in the last sixty seconds.
#[derive(Debug, Default)]
pub struct SlidingCount {
    /// The slot's time in the upper half, its count in the lower.
    slots: [AtomicU64; SLOTS as usize],
}

impl SlidingCount {
    /// One more.
    pub fn add_one(&self, at: Timestamp) {
        let epoch = epoch(at);
        let Some(slot) = self.slots.get(slot_index(epoch)) else { return };
        let first = (epoch << 32) | 1;
        let next = |found: u64| match found >> 32 == first >> 32 {
            // Full only after four thousand million in ten seconds.
            true if found & u64::from(u32::MAX) == u64::from(u32::MAX) => None,
            true => Some(found.saturating_add(1)),
            false => Some(first),
        };
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    /// How many there were in the sixty seconds before `now`.
    pub fn count(&self, now: Timestamp) -> u64 {
        let now = epoch(now);
        self.slots
            .iter()
            .map(|slot| slot.load(Ordering::Relaxed))
            .filter(|found| *found != 0 && is_recent(found >> 32, now))
            .map(|found| found & u64::from(u32::MAX))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    proptest! {
        #[test]
        fn a_quantile_is_within_five_percent_of_the_sorted_samples(
            micros in prop::collection::vec(
                prop_oneof![1_u64..100, 100_u64..100_000, 100_000_u64..130_000_000], 1..400),
            share in prop_oneof![Just(0.5), Just(0.95), Just(0.99)],
        ) {
            let rings = [LatencyRing::default(), LatencyRing::default()];
            for (index, sample) in micros.iter().enumerate() {
                rings[index % 2].record(Duration::from_micros(*sample), at(1_000 + index as u64 / 10));
            }
            let mut sorted = micros.clone();
            sorted.sort_unstable();
            let rank = (sorted.len() as f64 * share).ceil() as usize;
            let exact = sorted[rank.max(1) - 1] as f64 / 1e6;
            let found = quantile(rings.iter(), share, at(1_040)).unwrap();
            prop_assert!((found / exact - 1.0).abs() <= 0.05, "{found} for {exact}");
        }
    }

    #[test]
    fn what_is_older_than_a_minute_is_forgotten() {
        let ring = LatencyRing::default();
        ring.record(Duration::from_secs(5), at(1_000));
        ring.record(Duration::from_millis(1), at(1_055));
        let p95 = |now| quantile(std::iter::once(&ring), 0.95, at(now));
        assert!(p95(1_059).unwrap() > 4.0);
        assert!(p95(1_060).unwrap() < 0.002);
        assert_eq!(p95(1_200), None);
        ring.record(Duration::from_secs(1), at(1_060));
        assert!(p95(1_060).unwrap() < 1.05, "the slot of 1,000 s was taken over");
    }

    #[test]
    fn fewer_slots_see_less_of_the_past() {
        let ring = LatencyRing::default();
        ring.record(Duration::from_secs(5), at(1_005));
        ring.record(Duration::from_millis(1), at(1_015));
        let both = |slots| quantiles(std::iter::once(&ring), [0.01, 0.99], slots, at(1_019));
        let [low, high] = both(2).unwrap();
        assert!(low < 0.002 && high > 4.0, "{low} {high}");
        let [_, high] = both(1).unwrap();
        assert!(high < 0.002, "{high}");
        assert_eq!(quantiles(std::iter::once(&ring), [0.5], 1, at(1_020)), None);
    }

    #[test]
    fn extremes_saturate() {
        let ring = LatencyRing::default();
        for duration in [Duration::ZERO, Duration::MAX] {
            ring.record(duration, at(5));
        }
        assert!(quantile(std::iter::once(&ring), 0.95, at(5)).unwrap() > 100.0);
    }

    #[test]
    fn the_minimum_slides() {
        let lowest = SlidingMin::default();
        assert_eq!(lowest.lowest(at(0)), None);
        lowest.observe(7, at(0));
        lowest.observe(90, at(1_000));
        lowest.observe(3, at(1_001));
        lowest.observe(80, at(1_002));
        lowest.observe(50, at(1_030));
        assert_eq!(lowest.lowest(at(1_030)), Some(3));
        assert_eq!(lowest.lowest(at(1_059)), Some(3));
        assert_eq!(lowest.lowest(at(1_060)), Some(50));
        assert_eq!(lowest.lowest(at(1_090)), None);
    }

    #[test]
    fn a_count_slides() {
        let count = SlidingCount::default();
        assert_eq!(count.count(at(0)), 0);
        for second in [1_000, 1_001, 1_030, 1_059] {
            count.add_one(at(second));
        }
        assert_eq!([1_059, 1_060, 1_090, 1_120].map(|now| count.count(at(now))), [4, 2, 1, 0]);
        count.add_one(at(1_060));
        assert_eq!(count.count(at(1_060)), 3, "the slot of 1,000 s was taken over");
    }

    #[test]
    fn a_clock_that_stepped_back_does_not_see_the_future() {
        let lowest = SlidingMin::default();
        lowest.observe(3, at(5_000));
        assert_eq!(lowest.lowest(at(1_000)), None);
        lowest.observe(8, at(1_000));
        assert_eq!(lowest.lowest(at(1_000)), Some(8));
    }
}
