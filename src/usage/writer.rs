//! A worker's side: finds the row of a request and adds to it.
//!
//! Nothing here waits for a disk, but for a segment that is needed before the flush has made it.

use std::cell::RefCell;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;

use crate::limiter::time::Timestamp;
use crate::policy::identity::Identity;
use crate::sys::mapping::Mapping;

use super::journal::Journal;
use super::record::{Counts, minute_of};
use super::segment::Appender;

/// Room of the index that is kept for the next segment.
const INDEX_KEPT: usize = 1024;

/// Whose request it is.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// Who asks.
    pub identity: &'a Identity,
    /// The name of their tier.
    pub tier: &'a str,
    /// The name of the endpoint.
    pub endpoint: &'a str,
}

/// Where a request was counted: what is known of it later belongs to the same minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    minute: u32,
    sequence: u64,
    at: u32,
}

/// Counts the requests of one worker. Dropped, it lets go of its segment.
#[derive(Debug)]
pub struct UsageWriter {
    journal: Arc<Journal>,
    worker: usize,
    seed: RandomState,
    inner: RefCell<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    open: Option<Open>,
    /// Of the rows of the open segment: indices into `rows`.
    index: HashTable<u32>,
    rows: Vec<Known>,
    /// Names of tiers and endpoints in the open segment, by their number in it.
    names: Vec<Box<str>>,
}

#[derive(Debug)]
struct Open {
    sequence: u64,
    since: Timestamp,
    segment: Appender<Mapping>,
}

/// A row of the open segment.
#[derive(Debug)]
struct Known {
    hash: u64,
    identity: Identity,
    minute: u32,
    tier: u16,
    endpoint: u16,
    at: u32,
}

impl UsageWriter {
    /// For the worker of this number.
    pub fn new(journal: Arc<Journal>, worker: usize) -> Self {
        UsageWriter { journal, worker, seed: RandomState::new(), inner: RefCell::default() }
    }

    /// Counts what became known at `now`.
    pub fn count(&self, who: Who<'_>, now: Timestamp, counts: Counts) -> Ticket {
        let minute = minute_of(now);
        self.add(who, minute, now, counts)
    }

    /// Counts more of a request that was counted before, in the minute in which it was.
    pub fn count_more(&self, who: Who<'_>, ticket: Ticket, now: Timestamp, counts: Counts) {
        if counts.is_zero() {
            return;
        }
        if let Some(open) = &self.inner.borrow().open
            && open.sequence == ticket.sequence
        {
            open.segment.add(ticket.at, counts);
            return;
        }
        self.add(who, ticket.minute, now, counts);
    }

    /// Lets go of a segment that is old enough. To be called several times in `usage.flush`.
    pub fn tick(&self, now: Timestamp) {
        let open_for = self.journal.open_for();
        let is_due = |open: &Open| now.since(open.since).as_micros() >= open_for;
        if self.inner.borrow().open.as_ref().is_some_and(is_due) {
            self.seal(false);
        }
    }

    /// Lets go of the segment, whatever its age.
    pub fn finish(&self) {
        self.seal(false);
    }

    fn add(&self, who: Who<'_>, minute: u32, now: Timestamp, counts: Counts) -> Ticket {
        let hash = self.hash(who, minute);
        // Full ones are let go of; a new one has room for any row.
        for _ in 0..2 {
            let mut inner = self.inner.borrow_mut();
            if inner.open.is_none() {
                let Some((sequence, segment)) = self.journal.take(self.worker, now) else { break };
                inner.open = Some(Open { sequence, since: now, segment });
            }
            if let Some((sequence, at)) = inner.place(hash, who, minute, &self.seed) {
                if let Some(open) = &inner.open {
                    open.segment.add(at, counts);
                }
                return Ticket { minute, sequence, at };
            }
            drop(inner);
            self.seal(true);
        }
        self.journal.lose();
        Ticket { minute, sequence: 0, at: 0 }
    }

    fn seal(&self, was_full: bool) {
        let mut inner = self.inner.borrow_mut();
        let Some(Open { sequence, segment, .. }) = inner.open.take() else { return };
        inner.index.clear();
        inner.rows.clear();
        inner.names.clear();
        inner.index.shrink_to(INDEX_KEPT, |_| 0);
        inner.rows.shrink_to(INDEX_KEPT);
        drop(segment);
        self.journal.seal(self.worker, sequence, was_full);
    }

    fn hash(&self, who: Who<'_>, minute: u32) -> u64 {
        let mut hasher = self.seed.build_hasher();
        who.identity.hash(&mut hasher);
        hasher.write_u32(minute);
        hasher.write(who.tier.as_bytes());
        hasher.write(who.endpoint.as_bytes());
        hasher.finish()
    }
}

impl Drop for UsageWriter {
    fn drop(&mut self) {
        self.seal(false);
    }
}

impl Inner {
    /// The row, made if need be; `None`: there is no room for it.
    fn place(
        &mut self,
        hash: u64,
        who: Who<'_>,
        minute: u32,
        seed: &RandomState,
    ) -> Option<(u64, u32)> {
        let (rows, names) = (&self.rows, &self.names);
        let is_named = |number: u16, name: &str| {
            names.get(usize::from(number)).is_some_and(|it| **it == *name)
        };
        let is_it = |index: &u32| {
            rows.get(*index as usize).is_some_and(|row| {
                row.hash == hash
                    && row.minute == minute
                    && row.identity == *who.identity
                    && is_named(row.tier, who.tier)
                    && is_named(row.endpoint, who.endpoint)
            })
        };
        let sequence = self.open.as_ref()?.sequence;
        if let Some(row) = self.index.find(hash, is_it).and_then(|it| rows.get(*it as usize)) {
            return Some((sequence, row.at));
        }
        let (tier, endpoint) = (self.name(who.tier)?, self.name(who.endpoint)?);
        let identity = who.identity.to_string();
        let at = self.open.as_mut()?.segment.row(minute, tier, endpoint, &identity)?;
        let index = u32::try_from(self.rows.len()).ok()?;
        let identity = who.identity.clone();
        self.rows.push(Known { hash, identity, minute, tier, endpoint, at });
        let rows = &self.rows;
        // Each row has its hash at hand; the seed's hash of nothing stands in for none.
        let hash_of =
            |index: &u32| rows.get(*index as usize).map_or(seed.hash_one(()), |it| it.hash);
        self.index.insert_unique(hash, index, hash_of);
        Some((sequence, at))
    }

    fn name(&mut self, name: &str) -> Option<u16> {
        if let Some(number) = self.names.iter().position(|it| **it == *name) {
            return u16::try_from(number).ok();
        }
        let number = self.open.as_mut()?.segment.name(name)?;
        self.names.push(name.into());
        Some(number)
    }
}

#[cfg(test)]
mod tests;
