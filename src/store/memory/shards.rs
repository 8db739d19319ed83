//! The shards of a store in memory, and the bound on what all of them hold together.
//!
//! Reads no clock and starts no task: whoever owns them sweeps now and then.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::limiter::time::Timestamp;

use super::key::IdentityHash;
use super::shard::{Evicted, Kept, Record, Shard};

/// Shards of a large store: few enough to be swept one by one, so many that two workers rarely
/// meet at one, and each so small that its growth stalls nobody for long.
const SHARDS_MAX: usize = 1024;
/// Records that a shard should have room for, so that chance spreads them evenly enough.
const SHARD_CAPACITY_MIN: usize = 1024;
/// Places that an insertion looks at for expired state: two for one keeps ahead of any growth.
const SWEPT_BY_INSERT: u32 = 2;
/// Places that one sweep looks at: well below a millisecond, for the lock and for who calls it.
const SWEPT_AT_ONCE: u32 = 4096;

/// All shards.
#[derive(Debug)]
pub struct Shards<T> {
    shards: Box<[Padded<T>]>,
    capacity: usize,
    len: AtomicUsize,
    evictions: AtomicU64,
    sweeps: AtomicU64,
    swept: AtomicU64,
}

/// A shard on cache lines of its own, so that its lock disturbs no neighbour.
#[derive(Debug)]
#[repr(align(128))]
pub struct Padded<T>(pub Mutex<Shard<T>>);

impl<T: Kept> Shards<T> {
    /// Empty ones, for at most `capacity` records together.
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        let shards = (capacity / SHARD_CAPACITY_MIN).clamp(1, SHARDS_MAX);
        // A power of two, so that a mask picks one.
        let shards = 1_usize << shards.ilog2();
        let seeds = 1..=shards as u64;
        Shards {
            shards: seeds
                .map(|seed| {
                    Padded(Mutex::new(Shard::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
                })
                .collect(),
            capacity,
            len: AtomicUsize::new(0),
            evictions: AtomicU64::new(0),
            sweeps: AtomicU64::new(0),
            swept: AtomicU64::new(0),
        }
    }

    /// The shard of an identity; there always is one.
    pub fn of(&self, hash: IdentityHash) -> Option<&Padded<T>> {
        self.shards.get(hash.shard(self.shards.len()))
    }

    /// Adds a record to a locked shard, in place of another where there is no room.
    pub fn insert(&self, shard: &mut Shard<T>, record: Record<T>, now: Timestamp) {
        self.sweep_some(shard, now, SWEPT_BY_INSERT);
        // The place is taken first, so that workers at other shards cannot take it too.
        if self.len.fetch_add(1, Ordering::Relaxed) >= self.capacity
            && let Some(evicted) = shard.evict(now)
        {
            self.len.fetch_sub(1, Ordering::Relaxed);
            if evicted == Evicted::Live {
                self.evictions.fetch_add(1, Ordering::Relaxed);
            }
        }
        shard.insert(record);
    }

    /// So many records of a shard were forgotten.
    pub fn count_forgotten(&self, forgotten: usize) {
        self.len.fetch_sub(forgotten, Ordering::Relaxed);
    }

    /// Forgets what has expired in one shard, and says how much that was. Looks at a bounded number
    /// of records; in a shard that holds more, the next call goes on where this one ended.
    pub fn sweep(&self, now: Timestamp, shard: usize) -> usize {
        let Some(Padded(locked)) = self.shards.get(shard) else { return 0 };
        let freed = self.sweep_some(&mut locked.lock(), now, SWEPT_AT_ONCE);
        if shard.saturating_add(1) == self.shards.len() {
            self.sweeps.fetch_add(1, Ordering::Relaxed);
        }
        freed
    }

    /// One of them by its number, for who looks at all records.
    pub fn get(&self, shard: usize) -> Option<&Padded<T>> {
        self.shards.get(shard)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.shards.len()
    }

    /// Records held now.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Records that may be held.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Records that were forgotten before their time, for want of room.
    pub fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    /// Rounds that [`Shards::sweep`] has made: each ends with the last shard.
    pub fn sweeps(&self) -> u64 {
        self.sweeps.load(Ordering::Relaxed)
    }

    /// Records that were freed because they had expired.
    pub fn swept(&self) -> u64 {
        self.swept.load(Ordering::Relaxed)
    }

    fn sweep_some(&self, shard: &mut Shard<T>, now: Timestamp, count: u32) -> usize {
        let freed = shard.sweep(now, count);
        if freed > 0 {
            self.len.fetch_sub(freed, Ordering::Relaxed);
            self.swept.fetch_add(freed as u64, Ordering::Relaxed);
        }
        freed
    }
}
