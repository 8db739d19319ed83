//! Where the record of a hash is: a table of 8-byte slots, open addressing, linear probing.
//!
//! A lookup touches one cache line as a rule, where a general table touches one for its tags and
//! another for its entry: among a million identities that line is what a check waits for. Slots
//! carry their hash, so that growth looks at no record, and any size will do, so that growth can
//! be by half and little memory lies idle.

/// An index over the records of one shard.
#[derive(Debug, Default)]
pub struct Index {
    slots: Box<[Slot]>,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    hash: u32,
    /// [`EMPTY`] where there is none.
    place: u32,
}

const EMPTY: u32 = u32::MAX;
/// Slots of the smallest table.
const SLOTS_MIN: usize = 16;

impl Index {
    /// The place with this hash that `is_it` says yes to.
    pub fn find(&self, hash: u32, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let (before, from) = self.slots.split_at(self.home(hash));
        from.iter()
            .chain(before)
            .take_while(|slot| slot.place != EMPTY)
            .find(|slot| slot.hash == hash && is_it(slot.place))
            .map(|slot| slot.place)
    }

    /// Adds a place that is not there yet; below [`u32::MAX`].
    pub fn insert(&mut self, hash: u32, place: u32) {
        // At most three quarters full: on average nine slots, one or two lines, to find nothing.
        if self.len.saturating_add(1) > self.slots.len() / 4 * 3 {
            self.grow();
        }
        self.put(Slot { hash, place });
        self.len = self.len.saturating_add(1);
    }

    /// Takes a place out.
    pub fn remove(&mut self, hash: u32, place: u32) {
        let count = self.slots.len();
        let is_it = |slot: &Slot| slot.hash == hash && slot.place == place;
        let home = self.home(hash);
        let (before, from) = self.slots.split_at(home);
        let Some(steps) = from.iter().chain(before).position(is_it) else { return };
        let found = (home + steps) % count;
        let mut gap = found;
        // What was pushed past the gap moves back into it, so that no probe stops short.
        for step in 1..count {
            let at = (found + step) % count;
            let Some(slot) = self.slots.get(at).copied().filter(|slot| slot.place != EMPTY) else {
                break;
            };
            let distance = |from: usize| (at + count - from) % count;
            if distance(self.home(slot.hash)) >= distance(gap) {
                self.set(gap, slot);
                gap = at;
            }
        }
        self.set(gap, Slot { hash: 0, place: EMPTY });
        self.len = self.len.saturating_sub(1);
    }

    /// Any place at all.
    pub fn any(&self) -> Option<u32> {
        self.slots.iter().map(|slot| slot.place).find(|place| *place != EMPTY)
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the probing for a hash begins; 0 in a table without slots.
    fn home(&self, hash: u32) -> usize {
        (u64::from(hash).wrapping_mul(self.slots.len() as u64) >> 32) as usize
    }

    fn grow(&mut self) {
        let count = (self.slots.len() / 2 * 3).max(SLOTS_MIN);
        let empty = Slot { hash: 0, place: EMPTY };
        let old = std::mem::replace(&mut self.slots, vec![empty; count].into());
        // Homes rise with the hash: the new table is filled nearly in order.
        for slot in old.iter().filter(|slot| slot.place != EMPTY) {
            self.put(*slot);
        }
    }

    fn put(&mut self, slot: Slot) {
        let home = self.home(slot.hash);
        let (before, from) = self.slots.split_at_mut(home);
        if let Some(free) = from.iter_mut().chain(before).find(|it| it.place == EMPTY) {
            *free = slot;
        }
    }

    fn set(&mut self, at: usize, slot: Slot) {
        if let Some(place) = self.slots.get_mut(at) {
            *place = slot;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn it_holds_what_a_map_holds_through_growth_and_removal() {
        let (mut index, mut map) = (Index::default(), HashMap::new());
        let mut random = 1_u64;
        for step in 0..200_000_u32 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // Few hashes, all at the two ends: long runs, equal hashes, wraps round the end.
            let hash = (random >> 40) as u32 % 97;
            let hash = if hash.is_multiple_of(2) { hash << 20 } else { u32::MAX - hash };
            let place = (random >> 20) as u32 % 300;
            if random % 5 < 3 && map.len() < 200 {
                if map.insert((hash, place), ()).is_none() {
                    index.insert(hash, place);
                }
            } else {
                map.remove(&(hash, place));
                index.remove(hash, place);
            }
            assert_eq!(
                index.find(hash, |it| it == place).is_some(),
                map.contains_key(&(hash, place))
            );
            if step % 1_000 == 0 {
                assert_eq!(index.len, map.len());
                assert!(
                    map.keys().all(|(hash, place)| index.find(*hash, |it| it == *place).is_some())
                );
            }
        }
    }

    #[test]
    fn an_empty_index_finds_nothing() {
        let mut index = Index::default();
        assert_eq!(index.find(u32::MAX, |_| true), None);
        index.remove(7, 7);
        assert!(index.is_empty() && index.any().is_none());
        index.insert(u32::MAX, 3);
        assert_eq!(index.find(u32::MAX, |_| true), Some(3));
        assert_eq!(index.any(), Some(3));
    }
}
