//! What this replica let pass of what Redis decides, so that it knows its share when it has to decide
//! alone; and what it let pass then, for Redis to be told.
//!
//! One record for each scope of an identity that was let pass here; their number is bounded, what
//! has expired goes first. Times are by Redis's clock, as far as it is known. Reads no clock and
//! starts no task.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::RwLock;
use smallvec::SmallVec;

use crate::limiter::check::Limits;
use crate::limiter::decision::{Decision, SCOPES_USUAL, Verdict};
use crate::limiter::own::{Debit, Own};
use crate::limiter::refund::Grant;
use crate::limiter::share::{self, Alone, Owns};
use crate::limiter::time::Timestamp;
use crate::policy::identity::Identity;
use crate::policy::plan::Plan;

use super::memory::key::{IdentityHash, Key, Keys};
use super::memory::shard::{Kept, Record, Shard};
use super::memory::shards::{Padded, Shards};
use super::redis::further::Kind;
use super::redis::names::{HASH_BYTES, KeyNames};

/// Records that are looked at under one lock: well below a millisecond.
const LOOKED_AT_ONCE: u32 = 4096;

/// What this replica let pass, of every identity; shared by all workers.
#[derive(Debug)]
pub struct ShareStore {
    keys: Keys,
    names: KeyNames,
    shards: Shards<Held>,
    /// Names of scopes by their hashes: as many as a policy has, and those of policies before it.
    scopes: RwLock<HashMap<u64, Arc<str>>>,
    admitted: AtomicU64,
}

/// One record.
#[derive(Debug, Default)]
struct Held {
    own: Own,
    /// What stands for the identity in Redis.
    identity: [u8; HASH_BYTES],
    scope: u64,
}

/// The scopes of a request that outlives its plan, by index.
#[derive(Clone, Debug)]
pub struct Target {
    hash: IdentityHash,
    keys: SmallVec<[Key; SCOPES_USUAL]>,
    limits: SmallVec<[Limits; SCOPES_USUAL]>,
    cost: u32,
}

/// What Redis has to be told of one record.
#[derive(Clone, Debug)]
pub struct Owed {
    shard: usize,
    key: Key,
    /// The key of the scope in Redis, and where days and months are owed that of those.
    pub redis_keys: SmallVec<[Bytes; 2]>,
    /// What was let pass.
    pub debit: Debit,
}

/// How much of what this replica let pass Redis is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Nothing: what is owed stays so.
    Nothing,
    /// What it does not know of.
    Debts,
    /// All of it: it has lost what it knew.
    All,
}

/// What is owed is taken in parts; this is where to go on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    shard: usize,
    place: u32,
}

impl Kept for Held {
    fn trim(&mut self, now: Timestamp) {
        self.own.trim(now);
    }
}

impl Target {
    /// Of a plan that this store has made a decision on.
    pub fn new(store: &ShareStore, plan: &Plan<'_>) -> Self {
        let hash = store.keys.hash(&plan.identity);
        Target {
            hash,
            keys: plan.scopes().map(|scope| hash.key(scope.key_hash)).collect(),
            limits: plan.scopes().map(|scope| scope.limits).collect(),
            cost: plan.cost,
        }
    }

    /// Its limits, by index of the scope.
    pub fn limits(&self) -> impl Iterator<Item = Limits> + Clone {
        self.limits.iter().copied()
    }

    /// What it costs.
    pub fn cost(&self) -> u32 {
        self.cost
    }
}

impl ShareStore {
    /// Empty, for at most `capacity` records. `names` are the keys in Redis.
    pub fn new(capacity: usize, names: KeyNames) -> Self {
        ShareStore {
            keys: Keys::default(),
            names,
            shards: Shards::new(capacity),
            scopes: RwLock::default(),
            admitted: AtomicU64::new(0),
        }
    }

    /// Notes what Redis decided. Of who was never let pass here nothing is kept.
    pub fn note(&self, plan: &Plan<'_>, decision: &Decision) {
        let hash = self.keys.hash(&plan.identity);
        let Some(Padded(shard)) = self.shards.of(hash) else { return };
        let mut shard = shard.lock();
        for (index, scope) in plan.scopes().enumerate() {
            let key = hash.key(scope.key_hash);
            let set = &scope.limits.set;
            let statuses = decision.statuses().iter();
            let statuses = statuses.filter(|status| usize::from(status.scope) == index);
            let charged = decision.is_charged(index).then_some(plan.cost);
            let place = shard.find(key);
            if let Some(record) = place.and_then(|place| shard.get_mut(place)) {
                record.state.own.note(set, statuses, charged, decision.now);
                let expires_at = record.state.own.expires_at(set);
                record.keep_until(expires_at, decision.is_exhausted(index));
            } else if charged.is_some() {
                let mut own = Own::default();
                own.note(set, statuses, charged, decision.now);
                let held = self.held(plan, index, own);
                self.insert(&mut shard, key, held, scope.limits, decision, index);
            }
        }
    }

    /// Decides alone, by this replica's share.
    pub fn check(&self, plan: &Plan<'_>, now: Timestamp, alone: Alone) -> Decision {
        let target = Target::new(self, plan);
        let Some(Padded(shard)) = self.shards.of(target.hash) else { return Decision::allow(now) };
        let mut shard = shard.lock();
        let mut used = Used::find(&mut shard, &target);
        let decision = share::check(&mut used, &target.limits, target.cost, now, alone);
        if decision.verdict == Verdict::Allow {
            self.admitted.fetch_add(1, Ordering::Relaxed);
        }
        for (index, limits) in target.limits.iter().enumerate() {
            if let Some(record) = used.record(index) {
                let expires_at = record.state.own.expires_at(&limits.set);
                record.keep_until(expires_at, decision.is_exhausted(index));
            }
        }
        for (index, (key, limits)) in target.keys.iter().zip(&target.limits).enumerate() {
            if used.is_held(index) || !decision.is_charged(index) {
                continue;
            }
            let own = std::mem::take(used.own(index));
            let held = self.held(plan, index, own);
            self.insert(used.shard, *key, held, *limits, &decision, index);
        }
        decision
    }

    /// The state of every limit as this replica may use it; nothing is charged or kept.
    pub fn peek(&self, plan: &Plan<'_>, now: Timestamp, alone: Alone) -> Decision {
        let target = Target::new(self, plan);
        let Some(Padded(shard)) = self.shards.of(target.hash) else { return Decision::allow(now) };
        let mut shard = shard.lock();
        let mut copies = Copies(SmallVec::new());
        for key in &target.keys {
            let place = shard.find(*key);
            let record = place.and_then(|place| shard.get_mut(place));
            copies.0.push(record.map_or_else(Own::default, |it| it.state.own.clone()));
        }
        drop(shard);
        share::peek(&mut copies, &target.limits, target.cost, now, alone)
    }

    /// Takes a charge back out that was made alone, and says how the limits stand then.
    pub fn refund(&self, plan: &Plan<'_>, grant: &Grant, now: Timestamp, alone: Alone) -> Decision {
        let target = Target::new(self, plan);
        if let Some(Padded(shard)) = self.shards.of(target.hash) {
            let mut shard = shard.lock();
            let mut used = Used::find(&mut shard, &target);
            share::refund(&mut used, &target.limits, target.cost, grant);
        }
        self.peek(plan, now, alone)
    }

    /// Takes a charge back out that Redis is told to take back.
    pub fn refunded(&self, plan: &Plan<'_>, grant: &Grant) {
        let target = Target::new(self, plan);
        self.change(&target, |index, own, limits| {
            if let Some(charge) = grant.charge(index) {
                own.give_back(&limits.set, target.cost, &charge);
            }
        });
    }

    /// Takes back out of what Redis is to be told what it turned out to have charged itself. `grant`
    /// is the decision that was made here.
    pub fn forgive(&self, target: &Target, grant: &Grant) {
        self.change(target, |index, own, limits| {
            if let Some(charge) = grant.charge(index) {
                own.forgive(&limits.set, target.cost, &charge);
            }
        });
    }

    /// Forgets what an identity has used of these scopes, by the hashes of their names.
    pub fn reset(&self, identity: &Identity, scopes: impl Iterator<Item = u64>) {
        let hash = self.keys.hash(identity);
        let Some(Padded(shard)) = self.shards.of(hash) else { return };
        let mut shard = shard.lock();
        let forgotten = scopes.filter(|scope| shard.forget(hash.key(*scope))).count();
        self.shards.count_forgotten(forgotten);
    }

    /// Takes out what Redis has to be told of a request's scopes.
    pub fn owed_by(&self, target: &Target, now: Timestamp) -> Vec<Owed> {
        let number = target.hash.shard(self.shards.count());
        let Some(Padded(shard)) = self.shards.get(number) else { return Vec::new() };
        let mut shard = shard.lock();
        let mut owed = Vec::new();
        for key in &target.keys {
            let place = shard.find(*key);
            if let Some(record) = place.and_then(|place| shard.get_mut(place)) {
                owed.extend(self.owed(number, record, now, false, |_| Told::Debts));
            }
        }
        owed
    }

    /// Takes out what Redis has to be told, of some records: as much as `told` says of a record's key
    /// there, which is `Told::All` only with `any_all`. `None`: that was all of it. At most some
    /// thousands at a time.
    pub fn owed_from(
        &self,
        cursor: &mut Cursor,
        now: Timestamp,
        any_all: bool,
        told: impl Fn(&[u8]) -> Told,
    ) -> Option<Vec<Owed>> {
        let Padded(shard) = self.shards.get(cursor.shard)?;
        let mut shard = shard.lock();
        let end = cursor.place.saturating_add(LOOKED_AT_ONCE).min(shard.places());
        let mut owed = Vec::new();
        for place in cursor.place..end {
            if let Some(record) = shard.held_mut(place) {
                owed.extend(self.owed(cursor.shard, record, now, any_all, &told));
            }
        }
        *cursor = if end < shard.places() {
            Cursor { place: end, ..*cursor }
        } else {
            Cursor { shard: cursor.shard.saturating_add(1), place: 0 }
        };
        Some(owed)
    }

    /// Puts back what Redis was not told after all, unless it was forgotten meanwhile.
    pub fn put_back(&self, owed: &Owed, now: Timestamp) {
        let Some(Padded(shard)) = self.shards.get(owed.shard) else { return };
        let mut shard = shard.lock();
        let place = shard.find(owed.key);
        if let Some(record) = place.and_then(|place| shard.get_mut(place)) {
            record.state.own.put_back(&owed.debit, now);
        }
    }

    /// Requests that were let pass alone.
    pub fn admitted(&self) -> u64 {
        self.admitted.load(Ordering::Relaxed)
    }

    /// The shards, for who sweeps them and counts what they hold.
    pub fn sweep(&self, now: Timestamp, shard: usize) -> usize {
        self.shards.sweep(now, shard)
    }

    /// Number of shards, for who calls [`ShareStore::sweep`] on one after the other.
    pub fn shards(&self) -> usize {
        self.shards.count()
    }

    /// Records held now.
    pub fn len(&self) -> usize {
        self.shards.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Records that were forgotten before their time, for want of room.
    pub fn evictions(&self) -> u64 {
        self.shards.evictions()
    }

    fn change(&self, target: &Target, mut change: impl FnMut(usize, &mut Own, &Limits)) {
        let Some(Padded(shard)) = self.shards.of(target.hash) else { return };
        let mut shard = shard.lock();
        for (index, (key, limits)) in target.keys.iter().zip(&target.limits).enumerate() {
            let place = shard.find(*key);
            if let Some(record) = place.and_then(|place| shard.get_mut(place)) {
                change(index, &mut record.state.own, limits);
            }
        }
    }

    fn owed(
        &self,
        shard: usize,
        record: &mut Record<Held>,
        now: Timestamp,
        any_all: bool,
        told: impl Fn(&[u8]) -> Told,
    ) -> Option<Owed> {
        // Of most there is nothing to tell, and no key to make.
        if !record.state.own.has_debit(any_all) {
            return None;
        }
        let scope = self.scopes.read().get(&record.state.scope).cloned()?;
        let key = self.names.scope_of(&record.state.identity, &scope);
        let all = match told(&key) {
            Told::Nothing => return None,
            Told::Debts => false,
            Told::All => true,
        };
        if !record.state.own.has_debit(all) {
            return None;
        }
        let debit = record.state.own.take_debit(now, all);
        let mut redis_keys = SmallVec::new();
        redis_keys.push(key);
        if debit.has_quotas() {
            let kind = Kind::Calendar.letter();
            redis_keys.push(self.names.further_of(&record.state.identity, kind, &scope));
        }
        (!debit.is_empty()).then(|| Owed { shard, key: record.key(), redis_keys, debit })
    }

    fn held(&self, plan: &Plan<'_>, index: usize, own: Own) -> Held {
        let identity = self.names.identity_bytes(&plan.identity);
        let mut held = Held { own, identity, scope: 0 };
        if let Some(scope) = plan.scopes().nth(index) {
            held.scope = scope.key_hash;
            if !self.scopes.read().contains_key(&scope.key_hash) {
                self.scopes.write().insert(scope.key_hash, scope.key.into());
            }
        }
        held
    }

    fn insert(
        &self,
        shard: &mut Shard<Held>,
        key: Key,
        held: Held,
        limits: Limits,
        decision: &Decision,
        index: usize,
    ) {
        let expires_at = held.own.expires_at(&limits.set);
        let mut record = Record::new(key, held);
        record.keep_until(expires_at, decision.is_exhausted(index));
        self.shards.insert(shard, record, decision.now);
    }
}

/// A request's records where they lie; of those that are not held, new ones beside them.
struct Used<'s> {
    shard: &'s mut Shard<Held>,
    places: SmallVec<[Option<u32>; SCOPES_USUAL]>,
    spare: SmallVec<[Own; SCOPES_USUAL]>,
}

impl<'s> Used<'s> {
    fn find(shard: &'s mut Shard<Held>, target: &Target) -> Self {
        let places = target.keys.iter().map(|key| shard.find(*key)).collect();
        Used { shard, places, spare: target.keys.iter().map(|_| Own::default()).collect() }
    }

    fn is_held(&self, index: usize) -> bool {
        self.places.get(index).is_some_and(Option::is_some)
    }

    fn record(&mut self, index: usize) -> Option<&mut Record<Held>> {
        self.shard.get_mut(self.places.get(index).copied()??)
    }
}

impl Owns for Used<'_> {
    fn own(&mut self, index: usize) -> &mut Own {
        let place = self.places.get(index).copied().flatten();
        match place.and_then(|place| self.shard.get_mut(place)) {
            Some(record) => &mut record.state.own,
            None => nth(&mut self.spare, index),
        }
    }
}

/// Copies of a request's records.
struct Copies(SmallVec<[Own; SCOPES_USUAL]>);

impl Owns for Copies {
    fn own(&mut self, index: usize) -> &mut Own {
        nth(&mut self.0, index)
    }
}

#[expect(clippy::indexing_slicing, reason = "there is one for each scope that is counted")]
fn nth(owns: &mut [Own], index: usize) -> &mut Own {
    &mut owns[index]
}
