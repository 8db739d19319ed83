//! Counts over time, in slots of one width that grows with the span of the log.

use crate::limiter::time::{Micros, Timestamp};

use super::replay::Ruled;

/// Most slots; with one more, the width grows.
const SLOTS_MAX: u64 = 480;
/// Widths in seconds, each a multiple of the one before; behind the last one it grows fourfold.
const WIDTHS: [u64; 11] = [1, 5, 15, 60, 300, 900, 3_600, 10_800, 43_200, 86_400, 604_800];

/// What came in one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Requests.
    pub requests: u64,
    /// Those that were blocked.
    pub blocked: u64,
    /// Those that a limit in shadow would have blocked.
    pub shadow: u64,
    /// Those that were blocked before: by the policy to compare with, else by the log.
    pub before: u64,
}

/// Counts over time.
#[derive(Debug)]
pub struct Timeline {
    width: u64,
    /// The number of the first slot since the epoch.
    first: u64,
    slots: Vec<Slot>,
}

impl Default for Timeline {
    fn default() -> Self {
        let [width, ..] = WIDTHS;
        Timeline { width, first: 0, slots: Vec::new() }
    }
}

impl Timeline {
    /// Counts a request. Time does not go back.
    pub fn add(&mut self, at: Timestamp, ruled: &Ruled) {
        let second = at.as_micros() / Micros::SECOND.as_micros();
        if self.slots.is_empty() {
            self.first = second / self.width;
        }
        while (second / self.width).saturating_sub(self.first) >= SLOTS_MAX {
            self.widen();
        }
        let place = (second / self.width).saturating_sub(self.first);
        let place = usize::try_from(place).unwrap_or(0);
        if self.slots.len() <= place {
            self.slots.resize(place + 1, Slot::default());
        }
        if let Some(slot) = self.slots.get_mut(place) {
            slot.requests += 1;
            slot.blocked += u64::from(ruled.is_blocked);
            slot.shadow += u64::from(ruled.is_shadow);
            slot.before += u64::from(ruled.was_blocked);
        }
    }

    /// Seconds of a slot.
    pub fn width(&self) -> u64 {
        self.width
    }

    /// Every slot with the moment at which it begins, empty ones as well.
    pub fn slots(&self) -> impl Iterator<Item = (Timestamp, Slot)> {
        let begin = |number: u64| {
            Timestamp::from_micros((self.first + number) * self.width * Micros::SECOND.as_micros())
        };
        (0..).zip(&self.slots).map(move |(number, slot)| (begin(number), *slot))
    }

    fn widen(&mut self) {
        let wider = WIDTHS.into_iter().find(|width| *width > self.width);
        let wider = wider.unwrap_or(self.width * 4);
        let factor = wider / self.width;
        let first = self.first / factor;
        let mut slots: Vec<Slot> = Vec::new();
        for (number, slot) in (self.first..).zip(&self.slots) {
            let place = usize::try_from(number / factor - first).unwrap_or(0);
            slots.resize(slots.len().max(place + 1), Slot::default());
            if let Some(sum) = slots.get_mut(place) {
                sum.requests += slot.requests;
                sum.blocked += slot.blocked;
                sum.shadow += slot.shadow;
                sum.before += slot.before;
            }
        }
        (self.width, self.first, self.slots) = (wider, first, slots);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nothing_is_lost_and_each_is_in_its_slot(
            steps in prop::collection::vec(0..200_000_u64, 1..200), start in 0..2_000_000_000_u64,
        ) {
            let mut timeline = Timeline::default();
            let mut second = start;
            let mut moments = Vec::new();
            for (number, step) in steps.iter().enumerate() {
                second += step;
                moments.push(second);
                let ruled = Ruled {
                    is_blocked: number % 3 == 0, is_shadow: number % 5 == 0,
                    was_blocked: number % 7 == 0,
                };
                timeline.add(Timestamp::from_micros(second * 1_000_000 + 999_999), &ruled);
            }
            prop_assert!(timeline.slots.len() as u64 <= SLOTS_MAX);
            for (begin, slot) in timeline.slots() {
                let begin = begin.as_micros() / 1_000_000;
                prop_assert_eq!(begin % timeline.width(), 0);
                let within = |second: &u64| (begin..begin + timeline.width()).contains(second);
                let own = moments.iter().enumerate().filter(|(_, second)| within(second));
                let own: Vec<usize> = own.map(|(number, _)| number).collect();
                let count = |of: usize| own.iter().filter(|it| *it % of == 0).count() as u64;
                let expected =
                    Slot { requests: count(1), blocked: count(3), shadow: count(5), before: count(7) };
                prop_assert_eq!(slot, expected);
            }
            let total: u64 = timeline.slots().map(|(_, slot)| slot.requests).sum();
            prop_assert_eq!(total, steps.len() as u64);
        }
    }
}
