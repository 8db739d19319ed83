//! Strict sliding window with 60 sub-buckets.
//!
//! The oldest, partly expired sub-bucket counts whole, so that no window of the period's length,
//! wherever it is laid, ever holds more than the limit; the price is that what was used comes back
//! up to one sub-bucket late. Entries are kept by their age in sub-buckets relative to the state's
//! last use: a clock that steps back then moves the window with it instead of emptying it.

use super::time::{Micros, Timestamp};

/// Sub-buckets of a window; an entry leaves when it is older than this.
pub const SUB_BUCKETS: u8 = 60;
/// Distinct ages that an entry can have: 0 to [`SUB_BUCKETS`].
const AGES: usize = SUB_BUCKETS as usize + 1;
/// Entries that are kept without an allocation. Three of four bytes: with the tag, 16 bytes.
const INLINE: usize = 3;
/// Largest count of an inline entry.
const INLINE_COUNT_MAX: u32 = (1 << 24) - 1;

/// What was admitted in the window, by age.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Window {
    /// At most three sub-buckets in use: most callers, most of the time.
    Sparse([Entry; INLINE]),
    /// Every sub-bucket has its place.
    Dense(Box<Ring>),
}

/// Age in the low 8 bits, count above; a count of 0 is a free place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry(u32);

/// Counts by age, the newest at `head`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    sum: u32,
    head: u8,
    counts: [u32; AGES],
}

impl Entry {
    fn new(age: u8, count: u32) -> Self {
        Entry(u32::from(age) | (count << 8))
    }

    fn age(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    fn count(self) -> u32 {
        self.0 >> 8
    }
}

impl Default for Window {
    fn default() -> Self {
        Window::Sparse([Entry::default(); INLINE])
    }
}

impl Window {
    /// Ages everything by `steps` sub-buckets and drops what is too old.
    pub fn advance(&mut self, steps: u64) {
        if steps == 0 {
            return;
        }
        let steps = u8::try_from(steps).unwrap_or(u8::MAX);
        match self {
            Window::Sparse(entries) => {
                for entry in entries {
                    let age = entry.age().saturating_add(steps);
                    let count = if age > SUB_BUCKETS { 0 } else { entry.count() };
                    *entry = if count == 0 { Entry::default() } else { Entry::new(age, count) };
                }
            }
            Window::Dense(ring) => {
                ring.advance(steps);
                if ring.sum == 0 {
                    *self = Window::default();
                }
            }
        }
    }

    /// Everything that is still in the window.
    pub fn sum(&self) -> u32 {
        match self {
            // At most three 24-bit counts.
            Window::Sparse(entries) => {
                entries.iter().fold(0, |sum, entry| sum.saturating_add(entry.count()))
            }
            Window::Dense(ring) => ring.sum,
        }
    }

    /// Counts `cost` in the current sub-bucket.
    pub fn add(&mut self, cost: u32) {
        if let Window::Sparse(entries) = self {
            let current = entries.iter().position(|entry| entry.count() > 0 && entry.age() == 0);
            let place = current.or_else(|| entries.iter().position(|entry| entry.count() == 0));
            if let Some(entry) = place.and_then(|index| entries.get_mut(index)) {
                let count = entry.count().saturating_add(cost);
                if count <= INLINE_COUNT_MAX {
                    *entry = Entry::new(0, count);
                    return;
                }
            }
            *self = Window::Dense(Box::new(Ring::from_entries(entries)));
        }
        if let Window::Dense(ring) = self {
            ring.add(cost);
        }
    }

    /// How long from `now` until `freed` requests have left the window; [`Micros::NEVER`] if it
    /// does not hold that many.
    pub fn wait_for(&self, freed: u32, now: Timestamp, sub_bucket: Micros) -> Micros {
        let mut left: u32 = 0;
        for age in (0..=SUB_BUCKETS).rev() {
            left = left.saturating_add(self.count_at(age));
            if left >= freed {
                return leaves_at(age, now, sub_bucket).since(now);
            }
        }
        Micros::NEVER
    }

    /// When the newest entry leaves; `now` where there is none.
    pub fn whole_at(&self, now: Timestamp, sub_bucket: Micros) -> Timestamp {
        (0..=SUB_BUCKETS)
            .find(|age| self.count_at(*age) > 0)
            .map_or(now, |age| leaves_at(age, now, sub_bucket))
    }

    fn count_at(&self, age: u8) -> u32 {
        match self {
            Window::Sparse(entries) => entries
                .iter()
                .find(|entry| entry.count() > 0 && entry.age() == age)
                .map_or(0, |entry| entry.count()),
            Window::Dense(ring) => ring.count_at(age),
        }
    }
}

/// When an entry of this age leaves the window: the end of its 61st sub-bucket.
fn leaves_at(age: u8, now: Timestamp, sub_bucket: Micros) -> Timestamp {
    let length = sub_bucket.as_micros().max(1);
    let current = now.as_micros() / length;
    let steps = u64::from(SUB_BUCKETS.saturating_sub(age)).saturating_add(1);
    Timestamp::from_micros(current.saturating_add(steps).saturating_mul(length))
}

impl Ring {
    fn from_entries(entries: &[Entry]) -> Self {
        let mut ring = Ring { sum: 0, head: 0, counts: [0; AGES] };
        for entry in entries {
            let index = ring.index_of(entry.age());
            if let Some(count) = ring.counts.get_mut(index) {
                *count = count.saturating_add(entry.count());
                ring.sum = ring.sum.saturating_add(entry.count());
            }
        }
        ring
    }

    fn advance(&mut self, steps: u8) {
        for _ in 0..steps.min(AGES as u8) {
            self.head = if usize::from(self.head) + 1 == AGES { 0 } else { self.head + 1 };
            if let Some(count) = self.counts.get_mut(usize::from(self.head)) {
                self.sum = self.sum.saturating_sub(*count);
                *count = 0;
            }
        }
    }

    fn add(&mut self, cost: u32) {
        if let Some(count) = self.counts.get_mut(usize::from(self.head)) {
            *count = count.saturating_add(cost);
            self.sum = self.sum.saturating_add(cost);
        }
    }

    fn count_at(&self, age: u8) -> u32 {
        self.counts.get(self.index_of(age)).copied().unwrap_or(0)
    }

    fn index_of(&self, age: u8) -> usize {
        let back = usize::from(age) % AGES;
        (usize::from(self.head) + AGES - back) % AGES
    }
}
