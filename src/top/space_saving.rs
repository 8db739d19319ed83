//! Space-Saving: the most frequent identities of a stream, in bounded memory.
//!
//! A fixed number of counters, each for one identity. An identity without a counter takes over the
//! least one and goes on from its count, which is also its error: so often it may have been seen
//! less.

use hashbrown::HashTable;

use crate::policy::identity::Identity;

use super::summary::{Item, Summary};

/// Counters of one stream.
pub const COUNTERS: usize = 100;
/// Room for taking out and putting in without growing: hashbrown cleans up in place while no more
/// than half is in use.
const INDEX_CAPACITY: usize = 2 * COUNTERS;

/// The counters of one stream.
#[derive(Debug)]
pub struct SpaceSaving {
    counters: Vec<Counter>,
    /// Where an identity's counter is.
    index: HashTable<usize>,
    /// A count that no counter is below, and a place that no counter with that count is before.
    least: u64,
    cursor: usize,
    total: u64,
}

#[derive(Debug)]
struct Counter {
    identity: Identity,
    hash: u64,
    count: u64,
    error: u64,
}

impl Default for SpaceSaving {
    fn default() -> Self {
        SpaceSaving {
            counters: Vec::with_capacity(COUNTERS),
            index: HashTable::with_capacity(INDEX_CAPACITY),
            least: 0,
            cursor: 0,
            total: 0,
        }
    }
}

impl SpaceSaving {
    /// Counts one event. `hash` is the identity's, the same each time. Allocates nothing.
    pub fn record(&mut self, identity: &Identity, hash: u64) {
        self.total = self.total.saturating_add(1);
        let counters = &mut self.counters;
        let is_it = |place: &usize| counters.get(*place).is_some_and(|it| it.identity == *identity);
        if let Some(&place) = self.index.find(hash, is_it) {
            if let Some(counter) = counters.get_mut(place) {
                counter.count = counter.count.saturating_add(1);
            }
            return;
        }
        let place = if counters.len() < COUNTERS {
            counters.push(Counter { identity: identity.clone(), hash, count: 1, error: 0 });
            counters.len().saturating_sub(1)
        } else {
            self.take_over(identity, hash)
        };
        let counters = &self.counters;
        self.index.insert_unique(hash, place, |it| counters.get(*it).map_or(0, |it| it.hash));
    }

    /// What was counted so far.
    pub fn summary(&self) -> Summary {
        let items = self.counters.iter().map(|it| Item {
            identity: it.identity.clone(),
            count: it.count,
            error: it.error,
        });
        Summary::new(items.collect(), self.absent(), self.total)
    }

    /// Begins afresh, the counters' memory kept.
    pub fn clear(&mut self) {
        self.counters.clear();
        self.index.clear();
        (self.least, self.cursor, self.total) = (0, 0, 0);
    }

    /// How often any identity was seen.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Room in the index, and for counters.
    #[cfg(test)]
    pub fn capacity(&self) -> (usize, usize) {
        (self.index.capacity(), self.counters.capacity())
    }

    /// Gives a counter with the least count to another identity; says which one.
    fn take_over(&mut self, identity: &Identity, hash: u64) -> usize {
        let place = self.find_least();
        let Some(counter) = self.counters.get_mut(place) else { return place };
        if let Ok(entry) = self.index.find_entry(counter.hash, |it| *it == place) {
            entry.remove();
        }
        let (count, error) = (counter.count.saturating_add(1), counter.count);
        *counter = Counter { identity: identity.clone(), hash, count, error };
        place
    }

    /// A counter with the least count. Counts only grow, so that those which were passed need no
    /// second look until none is left: over a flood of strangers that is a step or two for each.
    fn find_least(&mut self) -> usize {
        let has_least = |least: u64| move |it: &Counter| it.count == least;
        let rest = self.counters.get(self.cursor..).unwrap_or_default();
        if let Some(steps) = rest.iter().position(has_least(self.least)) {
            self.cursor = self.cursor.saturating_add(steps);
        } else {
            self.least = self.counters.iter().map(|it| it.count).min().unwrap_or(0);
            let first = self.counters.iter().position(has_least(self.least));
            self.cursor = first.unwrap_or(0);
        }
        self.cursor
    }

    /// How often an identity without a counter was seen at most: whoever lost its counter had the
    /// least count then, and that never falls.
    fn absent(&self) -> u64 {
        if self.counters.len() < COUNTERS {
            return 0;
        }
        self.counters.iter().map(|it| it.count).min().unwrap_or(0)
    }
}
