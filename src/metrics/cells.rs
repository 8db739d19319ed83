//! Cells that a thread counts in without meeting other threads.
//!
//! A counter that every worker adds to is one cache line that travels between cores. So each
//! worker has its own copy of the hot cells, and a scrape adds them up. Every cell is atomic, so
//! two threads on one shard are slower, never wrong.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

thread_local! {
    static SHARD: Cell<usize> = const { Cell::new(usize::MAX) };
}
static NEXT_SHARD: AtomicUsize = AtomicUsize::new(0);

/// Ties the calling thread to a shard: each worker calls it once with its own number. Threads that
/// never call it are spread over the shards.
pub fn use_shard(index: usize) {
    SHARD.set(index);
}

fn shard() -> usize {
    let index = SHARD.get();
    if index != usize::MAX {
        return index;
    }
    let index = NEXT_SHARD.fetch_add(1, Ordering::Relaxed);
    SHARD.set(index);
    index
}

/// One `T` per shard, made when the shard first needs it: an endpoint that one worker never sees
/// costs that worker nothing.
#[derive(Debug)]
pub struct PerShard<T> {
    shards: Box<[OnceLock<Box<T>>]>,
}

impl<T: Default> PerShard<T> {
    /// For so many shards; at least one.
    pub fn new(shards: usize) -> Self {
        PerShard { shards: (0..shards.max(1)).map(|_| OnceLock::new()).collect() }
    }

    /// Runs `use_it` on the calling thread's own.
    #[inline]
    pub fn with_own(&self, use_it: impl FnOnce(&T)) {
        if cfg!(feature = "without-signals") {
            return;
        }
        let index = shard();
        // Workers number below the shards, so the division is for the others only.
        let shard = self.shards.get(index).or_else(|| {
            let wrapped = index.checked_rem(self.shards.len())?;
            self.shards.get(wrapped)
        });
        if let Some(shard) = shard {
            use_it(shard.get_or_init(Box::default));
        }
    }

    /// Those of all shards that have any.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.shards.iter().filter_map(OnceLock::get).map(Box::as_ref)
    }
}

/// How many of something there are at the moment. Taking part is cloning an `Arc` of one's own
/// shard: the reference count is the counter, and dropping it on any path counts down.
#[derive(Debug)]
pub struct Level {
    shards: Box<[Arc<Line>]>,
}

/// A cache line of its own, so that the reference counts of two shards do not share one.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line;

/// One of those that a [`Level`] counts, until it is dropped.
#[derive(Debug)]
#[must_use = "it counts only as long as it lives"]
pub struct LevelGuard {
    _line: Option<Arc<Line>>,
}

impl Level {
    /// None yet.
    pub fn new(shards: usize) -> Self {
        Level { shards: (0..shards.max(1)).map(|_| Arc::new(Line)).collect() }
    }

    /// One more, until the guard is dropped.
    #[inline]
    pub fn enter(&self) -> LevelGuard {
        if cfg!(feature = "without-signals") {
            return LevelGuard { _line: None };
        }
        let index = shard();
        let line = self.shards.get(index).or_else(|| {
            let wrapped = index.checked_rem(self.shards.len())?;
            self.shards.get(wrapped)
        });
        LevelGuard { _line: line.cloned() }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.shards.iter().map(|line| Arc::strong_count(line).saturating_sub(1)).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn threads_count_apart_and_add_up() {
        let cells: PerShard<AtomicU64> = PerShard::new(2);
        let level = Level::new(2);
        let kept = level.enter();
        std::thread::scope(|scope| {
            for index in 0..5 {
                let (cells, level) = (&cells, &level);
                scope.spawn(move || {
                    use_shard(index);
                    for _ in 0..1000 {
                        let _one = level.enter();
                        cells.with_own(|cell| {
                            cell.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(cells.iter().map(|cell| cell.load(Ordering::Relaxed)).sum::<u64>(), 5000);
        assert_eq!(level.count(), 1);
        drop(kept);
        assert_eq!(level.count(), 0);
    }
}
