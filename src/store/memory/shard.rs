//! One shard of a store in memory: records that never move, an index over them, and their end.
//!
//! Knows nothing of plans or limits: a record is a key, a state of whatever kind and the second from
//! which on the state means the same as none. Callers hold the shard's lock.

use crate::limiter::check::State;
use crate::limiter::time::{Micros, Timestamp};

use super::index::Index;
use super::key::Key;

/// Records of one chunk: 4 KiB, so that a shard grows by pages and nothing is ever copied.
const CHUNK: usize = 64;
/// Records that a full shard compares to find the one that is missed least.
const SAMPLE: u32 = 8;
/// For how long state that has expired is kept for callers whose reading of the clock is older:
/// more than the limiter's tolerance for them.
const GRACE: Micros = Micros::from_micros(2_000_000);
/// In place of an index where there is none.
const NONE: u32 = u32::MAX;

/// What a record can hold.
pub trait Kept: Default {
    /// Gives back what memory is needed no longer at `now`; changes no answer.
    fn trim(&mut self, now: Timestamp);
}

impl Kept for State {
    fn trim(&mut self, now: Timestamp) {
        State::trim(self, now);
    }
}

/// What one identity has used of one scope.
#[derive(Debug, Default)]
pub struct Record<T = State> {
    /// Whose it is; in a free record the next free one.
    key: Key,
    /// When it may be forgotten, in whole seconds; 0 marks a free record.
    expires_s: u32,
    /// What has been used.
    pub state: T,
}

const _: () = assert!(size_of::<Record<State>>() == 72);

/// What had to go for a new record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evicted {
    /// Something that nobody will miss.
    Expired,
    /// State that still meant something.
    Live,
}

/// One shard. The caller bounds how many records it holds.
#[derive(Debug)]
pub struct Shard<T = State> {
    index: Index,
    chunks: Vec<Box<[Record<T>; CHUNK]>>,
    /// The first free record; each names the next.
    free: u32,
    /// Places handed out so far, free ones included.
    places: u32,
    /// Where the next sweep goes on.
    cursor: u32,
    random: u64,
}

impl<T> Record<T> {
    /// A record of a state. [`Record::keep_until`] says how long for.
    pub fn new(key: Key, state: T) -> Self {
        Record { key, expires_s: 1, state }
    }

    /// Whose it is.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Moves the time from which on the state means the same as none. A record with nothing left
    /// to spend is the last to be evicted.
    pub fn keep_until(&mut self, at: Timestamp, exhausted: bool) {
        self.expires_s = u32::try_from(at.as_secs_ceil()).unwrap_or(u32::MAX).max(1);
        self.key = self.key.marked(exhausted);
    }

    fn is_free(&self) -> bool {
        self.expires_s == 0
    }

    fn is_expired(&self, now: Timestamp) -> bool {
        let oldest_reading_s = now.minus(GRACE).as_micros() / Micros::SECOND.as_micros();
        !self.is_free() && oldest_reading_s >= u64::from(self.expires_s)
    }
}

impl<T: Kept> Shard<T> {
    /// An empty shard. `seed` varies what is sampled.
    pub fn new(seed: u64) -> Self {
        Shard {
            index: Index::default(),
            chunks: Vec::new(),
            free: NONE,
            places: 0,
            cursor: 0,
            random: seed | 1,
        }
    }

    /// Where the record of `key` is.
    pub fn find(&self, key: Key) -> Option<u32> {
        let is_it = |place| self.get(place).is_some_and(|record| record.key.matches(key));
        self.index.find(key.index_hash(), is_it)
    }

    /// The record at `place`.
    pub fn get(&self, place: u32) -> Option<&Record<T>> {
        let place = place as usize;
        self.chunks.get(place / CHUNK)?.get(place % CHUNK)
    }

    /// The record at `place`, to be changed.
    pub fn get_mut(&mut self, place: u32) -> Option<&mut Record<T>> {
        let place = place as usize;
        self.chunks.get_mut(place / CHUNK)?.get_mut(place % CHUNK)
    }

    /// The record at `place`, to be changed, unless the place is free.
    pub fn held_mut(&mut self, place: u32) -> Option<&mut Record<T>> {
        self.get_mut(place).filter(|record| !record.is_free())
    }

    /// Adds a record, whose key the shard does not hold yet.
    pub fn insert(&mut self, record: Record<T>) {
        let hash = record.key.index_hash();
        let place = self.free_place();
        if let Some(slot) = self.get_mut(place) {
            *slot = record;
            self.index.insert(hash, place);
        }
    }

    /// Takes away the record of a key, if it is held.
    pub fn forget(&mut self, key: Key) -> bool {
        let place = self.find(key);
        place.inspect(|place| self.remove(*place)).is_some()
    }

    /// Looks at the next `count` places, frees those that have expired, and says how many.
    pub fn sweep(&mut self, now: Timestamp, count: u32) -> usize {
        let mut freed = 0;
        for _ in 0..count.min(self.places) {
            let place = self.cursor;
            self.cursor = if place.saturating_add(1) >= self.places { 0 } else { place + 1 };
            let Some(record) = self.get_mut(place) else { continue };
            if record.is_expired(now) {
                self.remove(place);
                freed += 1;
            } else {
                record.state.trim(now.minus(GRACE));
            }
        }
        freed
    }

    /// Frees the record that is missed least among a few: an expired one, else the one that is
    /// whole soonest, and one with nothing left only among its like. `None` in an empty shard.
    pub fn evict(&mut self, now: Timestamp) -> Option<Evicted> {
        if self.index.is_empty() {
            return None;
        }
        let (mut sampled, mut best) = (0, None::<(bool, u32, u32)>);
        // A small shard is looked at whole; else free places among the probes cost a few more.
        let is_small = self.places as usize <= CHUNK;
        let probes = if is_small { self.places } else { 4 * SAMPLE };
        for probe in 0..probes {
            let place = if is_small { probe } else { self.random_place() };
            let Some(record) = self.get(place).filter(|record| !record.is_free()) else { continue };
            let spared = record.key.is_marked() && !record.is_expired(now);
            let candidate = (spared, record.expires_s, place);
            best = Some(best.map_or(candidate, |best| best.min(candidate)));
            sampled += 1;
            if sampled == SAMPLE && !is_small {
                break;
            }
        }
        // The probes may have met free places only.
        let place = best.map(|(_, _, place)| place).or_else(|| self.index.any())?;
        let expired = self.get(place)?.is_expired(now);
        self.remove(place);
        Some(if expired { Evicted::Expired } else { Evicted::Live })
    }

    /// Places handed out so far, for who looks at all records: those below, some of them free.
    pub fn places(&self) -> u32 {
        self.places
    }

    fn remove(&mut self, place: u32) {
        let next = self.free;
        let Some(record) = self.get_mut(place) else { return };
        let hash = record.key.index_hash();
        *record = Record { key: Key::link(next), ..Record::default() };
        self.free = place;
        self.index.remove(hash, place);
        if self.index.is_empty() {
            *self = Shard::new(self.random);
        }
    }

    fn free_place(&mut self) -> u32 {
        let place = self.free;
        if let Some(record) = self.get(place) {
            self.free = record.key.as_link();
            return place;
        }
        let place = self.places;
        if place as usize / CHUNK >= self.chunks.len() {
            self.chunks.push(Box::new(std::array::from_fn(|_| Record::default())));
        }
        self.places = self.places.saturating_add(1);
        place
    }

    fn random_place(&mut self) -> u32 {
        // xorshift64: what is sampled need not be unpredictable, only spread.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let scaled = (self.random >> 32).wrapping_mul(u64::from(self.places)) >> 32;
        scaled as u32
    }
}
