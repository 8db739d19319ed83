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
#[derive(Clone, Debug)]
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
#[derive(Clone, Debug)]
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

    /// The window as it will be after so many more sub-buckets; itself it stays as it is.
    pub fn aged(&self, steps: u64) -> Aged<'_> {
        Aged { window: self, steps: u8::try_from(steps).unwrap_or(u8::MAX) }
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.aged(0).sum() == 0
    }

    /// Counts `cost` in the current sub-bucket.
    pub fn add(&mut self, cost: u32) {
        self.add_at(0, cost);
    }

    /// Counts `cost` as of `age` sub-buckets ago; nothing where that has left the window.
    pub fn add_at(&mut self, age: u64, cost: u32) {
        let Ok(age @ 0..=SUB_BUCKETS) = u8::try_from(age) else { return };
        if let Window::Sparse(entries) = self {
            let is_it = |entry: &Entry| entry.count() > 0 && entry.age() == age;
            let same = entries.iter().position(is_it);
            let place = same.or_else(|| entries.iter().position(|entry| entry.count() == 0));
            if let Some(entry) = place.and_then(|index| entries.get_mut(index)) {
                let count = entry.count().saturating_add(cost);
                if count <= INLINE_COUNT_MAX {
                    *entry = if count == 0 { Entry::default() } else { Entry::new(age, count) };
                    return;
                }
            }
            *self = Window::Dense(Box::new(Ring::from_entries(entries)));
        }
        if let Window::Dense(ring) = self {
            ring.add(age, cost);
        }
    }

    /// What is counted, by age: the newest first where there are many, else in no order.
    pub fn entries(&self) -> impl Iterator<Item = (u8, u32)> {
        let (few, many) = match self {
            Window::Sparse(entries) => (Some(entries), None),
            Window::Dense(ring) => (None, Some(ring)),
        };
        let few = few.into_iter().flatten().map(|entry| (entry.age(), entry.count()));
        let many = many.into_iter().flat_map(|ring| (0..=SUB_BUCKETS).zip(ring.newest_first()));
        few.chain(many).filter(|(_, count)| *count > 0)
    }

    /// Takes up to `cost` out of what was counted `age` sub-buckets ago.
    pub fn remove(&mut self, age: u64, cost: u32) {
        let Ok(age @ 0..=SUB_BUCKETS) = u8::try_from(age) else { return };
        match self {
            Window::Sparse(entries) => {
                let is_it = |entry: &&mut Entry| entry.count() > 0 && entry.age() == age;
                if let Some(entry) = entries.iter_mut().find(is_it) {
                    let count = entry.count().saturating_sub(cost);
                    *entry = if count == 0 { Entry::default() } else { Entry::new(age, count) };
                }
            }
            Window::Dense(ring) => {
                ring.remove(age, cost);
                if ring.sum == 0 {
                    *self = Window::default();
                }
            }
        }
    }
}

/// A window seen at a later time.
#[derive(Clone, Copy, Debug)]
pub struct Aged<'w> {
    window: &'w Window,
    steps: u8,
}

impl Aged<'_> {
    /// Everything that is still in the window.
    pub fn sum(self) -> u32 {
        match self.window {
            // At most three 24-bit counts.
            Window::Sparse(entries) => entries
                .iter()
                .filter(|entry| self.age(entry.age()) <= SUB_BUCKETS)
                .fold(0, |sum, entry| sum.saturating_add(entry.count())),
            Window::Dense(ring) => {
                let left = ring.newest_first().rev().take(usize::from(self.steps));
                left.fold(ring.sum, u32::saturating_sub)
            }
        }
    }

    /// How long from `now` until `freed` requests have left the window; [`Micros::NEVER`] if it
    /// does not hold that many.
    pub fn wait_for(self, freed: u64, now: Timestamp, sub_bucket: Micros) -> Micros {
        let age = match self.window {
            Window::Sparse(entries) => {
                let mut oldest_first = *entries;
                oldest_first.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.age()));
                let aged = oldest_first.iter().map(|it| (self.age(it.age()), it.count()));
                age_of(freed, aged.filter(|(age, _)| *age <= SUB_BUCKETS))
            }
            Window::Dense(ring) => {
                let left = usize::from(self.steps);
                let aged = (0..=SUB_BUCKETS).rev().zip(ring.newest_first().rev().skip(left));
                age_of(freed, aged)
            }
        };
        age.map_or(Micros::NEVER, |age| leaves_at(age, now, sub_bucket).since(now))
    }

    /// When the newest entry leaves; `now` where there is none.
    pub fn whole_at(self, now: Timestamp, sub_bucket: Micros) -> Timestamp {
        let newest = match self.window {
            Window::Sparse(entries) => {
                entries.iter().filter(|entry| entry.count() > 0).map(|entry| entry.age()).min()
            }
            Window::Dense(ring) => (0..=SUB_BUCKETS)
                .zip(ring.newest_first())
                .find_map(|(age, count)| (count > 0).then_some(age)),
        };
        match newest.map(|age| self.age(age)) {
            Some(age @ 0..=SUB_BUCKETS) => leaves_at(age, now, sub_bucket),
            _ => now,
        }
    }

    fn age(self, before: u8) -> u8 {
        before.saturating_add(self.steps)
    }
}

/// The age at which a count over `oldest_first`, pairs of age and count, reaches `freed`.
fn age_of(freed: u64, oldest_first: impl Iterator<Item = (u8, u32)>) -> Option<u8> {
    let mut left: u64 = 0;
    for (age, count) in oldest_first {
        left = left.saturating_add(u64::from(count));
        if left >= freed && count > 0 {
            return Some(age);
        }
    }
    None
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
            let back = usize::from(entry.age()) % AGES;
            if let Some(count) = ring.counts.get_mut((AGES - back) % AGES) {
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

    fn add(&mut self, age: u8, cost: u32) {
        let place = self.place(age);
        if let Some(count) = self.counts.get_mut(place) {
            *count = count.saturating_add(cost);
            self.sum = self.sum.saturating_add(cost);
        }
    }

    fn place(&self, age: u8) -> usize {
        (usize::from(self.head) + AGES).saturating_sub(usize::from(age)) % AGES
    }

    fn remove(&mut self, age: u8, cost: u32) {
        let place = self.place(age);
        if let Some(count) = self.counts.get_mut(place) {
            let removed = cost.min(*count);
            *count -= removed;
            self.sum = self.sum.saturating_sub(removed);
        }
    }

    /// The counts of ages 0 to [`SUB_BUCKETS`].
    fn newest_first(&self) -> impl DoubleEndedIterator<Item = u32> {
        // The head is always a place of the ring; clamped, so that no split can fail.
        let newer = usize::from(self.head).saturating_add(1).min(AGES);
        let (up_to_head, behind) = self.counts.split_at(newer);
        up_to_head.iter().rev().chain(behind.iter().rev()).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUB: Micros = Micros::SECOND;

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_micros(secs * 1_000_000)
    }

    /// The same history kept inline and in a ring.
    fn both(history: &[(u64, u32)]) -> [Window; 2] {
        let mut windows = [Window::default(), Window::Dense(Box::new(Ring::from_entries(&[])))];
        for window in &mut windows {
            for (steps, cost) in history {
                window.advance(*steps);
                window.add(*cost);
            }
        }
        windows
    }

    #[test]
    fn an_entry_counts_in_61_sub_buckets_and_then_leaves() {
        for mut window in both(&[(0, 7)]) {
            assert_eq!(window.aged(0).whole_at(at(5), SUB), at(66));
            let mut moved = window.clone();
            moved.advance(60);
            for later in [window.aged(60), moved.aged(0)] {
                assert_eq!(later.sum(), 7);
                assert_eq!(later.wait_for(7, at(65), SUB), SUB);
                assert_eq!(later.whole_at(at(65), SUB), at(66));
            }
            window = moved;
            assert_eq!(window.aged(1).sum(), 0);
            assert_eq!(window.aged(1).wait_for(1, at(66), SUB), Micros::NEVER);
            assert_eq!(window.aged(u64::MAX).whole_at(at(66), SUB), at(66));
            window.advance(1);
            assert!(window.is_empty());
            assert!(matches!(window, Window::Sparse(_)), "an empty ring is given back");
        }
    }

    #[test]
    fn the_wait_ends_when_enough_of_the_oldest_have_left() {
        for window in both(&[(0, 2), (10, 3), (10, 4)]) {
            let now = at(120);
            let wait = |freed| window.aged(0).wait_for(freed, now, SUB).as_micros() / 1_000_000;
            // Ages 20, 10 and 0.
            assert_eq!([1, 2, 3, 5, 6, 9].map(wait), [41, 41, 51, 51, 61, 61]);
            assert_eq!(window.aged(0).wait_for(10, now, SUB), Micros::NEVER);
            assert_eq!(window.aged(0).whole_at(now, SUB), at(181));
        }
    }

    #[test]
    fn to_look_ahead_is_to_wait() {
        for window in both(&[(0, 2), (10, 3), (1, 1), (10, 4), (39, 5)]) {
            let mut moved = window.clone();
            for steps in 0..70 {
                let now = at(1_000 + steps);
                let (ahead, there) = (window.aged(steps), moved.aged(0));
                assert_eq!(ahead.sum(), there.sum());
                assert_eq!(ahead.whole_at(now, SUB), there.whole_at(now, SUB));
                for freed in 1..16 {
                    let waits = [ahead, there].map(|it| it.wait_for(freed, now, SUB));
                    assert_eq!(waits[0], waits[1], "{freed} of {moved:?}");
                }
                moved.advance(1);
            }
        }
    }

    #[test]
    fn a_count_too_large_for_an_inline_entry_is_kept_whole() {
        let mut window = Window::default();
        window.add(INLINE_COUNT_MAX);
        window.add(2);
        assert_eq!(window.aged(0).sum(), INLINE_COUNT_MAX + 2);
        window.advance(61);
        assert!(window.is_empty());
    }

    #[test]
    fn what_is_removed_is_of_its_sub_bucket_alone() {
        for mut window in both(&[(0, 2), (10, 3), (10, 4)]) {
            window.remove(10, 2);
            assert_eq!(window.aged(0).sum(), 7);
            window.remove(10, 7);
            assert_eq!(window.aged(0).sum(), 6, "no more than is there");
            for nothing in [1, 10, 61, 276, u64::MAX] {
                window.remove(nothing, 1);
            }
            assert_eq!(window.aged(40).sum(), 6);
            assert_eq!(window.aged(41).sum(), 4);
            window.remove(0, 4);
            assert_eq!(window.aged(0).whole_at(at(120), SUB), at(161));
            window.remove(20, 2);
            assert!(window.is_empty());
            assert!(matches!(window, Window::Sparse(_)), "an empty ring is given back");
        }
    }

    #[test]
    fn a_window_takes_16_bytes() {
        assert_eq!(size_of::<Window>(), 16);
    }
}
