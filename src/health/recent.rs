//! How often something happened of late: a ring of ten slots that whoever counts turns on.

use std::sync::atomic::{AtomicU64, Ordering};

/// Slots that a window is made of: it is exact to a tenth of itself.
pub const SLOTS: u64 = 10;

/// Counts of the last [`SLOTS`] slots. Any number of threads may count beside each other.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Recent {
    /// Each the slot's number in the upper half, what was counted in the lower one.
    slots: [AtomicU64; SLOTS as usize],
}

impl Recent {
    /// One more in this slot; slots are numbered from 1 on. What comes late, to a slot that is
    /// gone, is not counted.
    #[inline]
    pub fn note(&self, slot: u32) {
        let Some(cell) = self.cell(slot) else { return };
        let mut found = cell.load(Ordering::Relaxed);
        loop {
            let counted = match number(found).cmp(&slot) {
                std::cmp::Ordering::Equal => found.saturating_add(1),
                std::cmp::Ordering::Less => u64::from(slot) << 32 | 1,
                std::cmp::Ordering::Greater => return,
            };
            let (set, failed) = (Ordering::Relaxed, Ordering::Relaxed);
            match cell.compare_exchange_weak(found, counted, set, failed) {
                Ok(_) => return,
                Err(other) => found = other,
            }
        }
    }

    /// What was counted in this slot and the nine before it.
    pub fn count(&self, slot: u32) -> u32 {
        let oldest = u64::from(slot).saturating_sub(SLOTS - 1);
        let is_recent = |found: &u64| {
            let number = number(*found);
            number != 0 && number <= slot && u64::from(number) >= oldest
        };
        let cells = self.slots.iter().map(|cell| cell.load(Ordering::Relaxed));
        cells.filter(is_recent).fold(0, |sum, found| sum.saturating_add(found as u32))
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.slots.iter().for_each(|cell| cell.store(0, Ordering::Relaxed));
    }

    fn cell(&self, slot: u32) -> Option<&AtomicU64> {
        self.slots.get(usize::try_from(u64::from(slot) % SLOTS).ok()?)
    }
}

const fn number(found: u64) -> u32 {
    (found >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_slots_count_together_and_what_is_older_does_not() {
        let recent = Recent::default();
        assert_eq!(recent.count(1), 0);
        for slot in [1, 1, 5, 10] {
            recent.note(slot);
        }
        assert_eq!(recent.count(10), 4);
        assert_eq!(recent.count(11), 2, "the first slot is gone");
        assert_eq!(recent.count(4), 2, "what is still to come does not count");
        recent.note(11);
        assert_eq!(recent.count(11), 3);
        recent.note(1);
        assert_eq!(recent.count(11), 3, "too late");
        assert_eq!(recent.count(21), 0);
        recent.clear();
        assert_eq!(recent.count(11), 0);
    }
}
