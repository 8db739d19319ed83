//! What was counted in a span of time, in a form that can be merged with others.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::policy::identity::Identity;

/// One identity, and how often it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Who.
    pub identity: Identity,
    /// Never less than how often it was seen.
    pub count: u64,
    /// How much more than that it may be: it was seen `count - error` times at least.
    pub error: u64,
}

/// The identities that were seen most.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// In no order.
    items: Vec<Item>,
    /// How often an identity that is not among them was seen at most; no item's count is below it.
    absent: u64,
    /// How often any was seen.
    total: u64,
}

impl Summary {
    /// From its parts.
    pub fn new(items: Vec<Item>, absent: u64, total: u64) -> Self {
        Summary { items, absent, total }
    }

    /// With `missed` more events of which is not known whose they were: anybody's.
    pub fn with_missed(mut self, missed: u64) -> Self {
        for item in &mut self.items {
            item.count = item.count.saturating_add(missed);
            item.error = item.error.saturating_add(missed);
        }
        self.absent = self.absent.saturating_add(missed);
        self.total = self.total.saturating_add(missed);
        self
    }

    /// One summary of all that `parts` have seen, of at most `keep` identities.
    ///
    /// What an identity may have done in a part that does not list it is added to its count and to
    /// its error. Where each part misses at most one `keep`-th of its total, so does the result
    /// (Agarwal et al. 2012: what is dropped is subtracted there, and left in the bound here).
    pub fn merged(parts: impl IntoIterator<Item = Summary>, keep: usize) -> Summary {
        // Of each identity: how far its count is above what an absent one may have, and how often
        // it surely was seen.
        let mut seen: HashMap<Identity, (u64, u64)> = HashMap::new();
        let (mut absent, mut total) = (0_u64, 0_u64);
        for part in parts {
            absent = absent.saturating_add(part.absent);
            total = total.saturating_add(part.total);
            for Item { identity, count, error } in part.items {
                let (above, surely) =
                    (count.saturating_sub(part.absent), count.saturating_sub(error));
                match seen.entry(identity) {
                    Entry::Vacant(place) => {
                        place.insert((above, surely));
                    }
                    Entry::Occupied(mut place) => {
                        let sums = place.get_mut();
                        *sums = (sums.0.saturating_add(above), sums.1.saturating_add(surely));
                    }
                }
            }
        }
        let items = seen.into_iter().map(|(identity, (above, surely))| {
            let count = absent.saturating_add(above);
            Item { identity, count, error: count.saturating_sub(surely) }
        });
        let mut items: Vec<Item> = items.collect();
        items.sort_unstable_by_key(|item| (Reverse(item.count), item.error));
        if let Some(dropped) = items.get(keep) {
            absent = absent.max(dropped.count);
            items.truncate(keep);
            items.shrink_to_fit();
        }
        Summary { items, absent, total }
    }

    /// The identities that were seen, in no order.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// How often an identity that is not among the items was seen at most.
    pub fn absent(&self) -> u64 {
        self.absent
    }

    /// How often any identity was seen.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The `limit` that were seen most, each first where its count is larger; of equal ones those
    /// that are surer, then by name.
    pub fn top(self, limit: usize) -> Vec<Item> {
        let mut items = self.items;
        items.sort_by_cached_key(|item| {
            (Reverse(item.count), item.error, item.identity.to_string())
        });
        items.truncate(limit);
        items
    }
}
