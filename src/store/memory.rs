//! Limiter state in this process's memory, shared by all workers.
//!
//! An identity's scopes live in one shard, so that one lock makes a check all or nothing. The
//! number of records is bounded; what has expired goes first. Reads no clock and
//! starts no task: whoever owns the store calls [`MemoryStore::sweep`] now and then.

mod index;
pub mod key;
pub mod shard;
pub mod shards;

use smallvec::SmallVec;

use crate::limiter::check::{Limits, State, States, check, peek};
use crate::limiter::decision::{Decision, LimitStatus, SCOPES_USUAL, Verdict};
use crate::limiter::quota::LimitSet;
use crate::limiter::refund::{Grant, refund};
use crate::limiter::time::Timestamp;
use crate::policy::identity::Identity;
use crate::policy::plan::{Plan, Scope};

use self::key::{IdentityHash, Key, Keys};
use self::shard::{Record, Shard};
use self::shards::{Padded, Shards};

/// State of every identity, shared by all workers.
#[derive(Debug)]
pub struct MemoryStore {
    keys: Keys,
    shards: Shards<State>,
}

/// What a request holds while it lasts.
#[derive(Clone, Debug)]
pub struct Places {
    hash: IdentityHash,
    scopes: SmallVec<[(Key, LimitSet); 1]>,
}

impl MemoryStore {
    /// An empty store for at most `capacity` records: one for each scope that an identity has
    /// used, which without endpoint rules is one for each identity.
    pub fn new(capacity: usize) -> Self {
        MemoryStore { keys: Keys::default(), shards: Shards::new(capacity) }
    }

    /// Checks and charges every limit of the plan, all or nothing.
    pub fn check(&self, plan: &Plan<'_>, now: Timestamp) -> Decision {
        let hash = self.keys.hash(&plan.identity);
        match self.shard_of(hash) {
            Some(Padded(shard)) => self.check_in(&mut shard.lock(), &Scopes::new(plan, hash), now),
            None => Decision::allow(now),
        }
    }

    /// The state of every limit of the plan, with nothing charged and nothing kept.
    pub fn peek(&self, plan: &Plan<'_>, now: Timestamp) -> Decision {
        let hash = self.keys.hash(&plan.identity);
        let scopes = Scopes::new(plan, hash);
        let mut copies = Copies(new_states(&scopes));
        if let Some(Padded(shard)) = self.shard_of(hash) {
            let shard = shard.lock();
            for (key, copy) in scopes.keys.iter().zip(&mut copies.0) {
                if let Some(record) = shard.find(*key).and_then(|place| shard.get(place)) {
                    copy.clone_from(&record.state);
                }
            }
        }
        peek(&mut copies, &scopes.limits, scopes.cost, now)
    }

    /// Takes a charge back out of whatever of its records are still held, and says how every limit
    /// stands then.
    pub fn refund(&self, plan: &Plan<'_>, grant: &Grant, now: Timestamp) -> Decision {
        let hash = self.keys.hash(&plan.identity);
        let Some(Padded(shard)) = self.shard_of(hash) else { return Decision::allow(now) };
        let scopes = Scopes::new(plan, hash);
        let mut shard = shard.lock();
        let mut used = Used::find(&mut shard, &scopes);
        // What is not held is a spare state that was last used at the epoch: nothing happens to it.
        refund(&mut used, &scopes.limits, scopes.cost, grant);
        let decision = peek(&mut used, &scopes.limits, scopes.cost, now);
        for (index, limits) in scopes.limits.iter().enumerate() {
            if let Some(record) = used.record(index) {
                let expires_at = record.state.expires_at(&limits.set);
                record.keep_until(expires_at, decision.is_exhausted(index));
            }
        }
        decision
    }

    /// The places that an allowed request of the plan holds until it has ended; `None`: it holds
    /// none.
    pub fn places(&self, plan: &Plan<'_>, decision: &Decision) -> Option<Places> {
        let holds = |scope: &Scope<'_>| scope.limits.set.concurrency.is_some();
        if decision.verdict == Verdict::Deny || !plan.scopes().any(holds) {
            return None;
        }
        let hash = self.keys.hash(&plan.identity);
        let charged = (0_u8..).zip(plan.scopes()).filter(|(index, scope)| {
            let is_its = |status: &&LimitStatus| status.scope == *index;
            let mut own = decision.statuses().iter().filter(is_its);
            holds(scope) && own.all(|status| status.wait.is_zero())
        });
        let scopes = charged.map(|(_, scope)| (hash.key(scope.key_hash), scope.limits.set));
        Some(Places { hash, scopes: scopes.collect() })
    }

    /// Gives them back: their request has ended.
    pub fn release(&self, places: &Places) {
        let Some(Padded(shard)) = self.shard_of(places.hash) else { return };
        let mut shard = shard.lock();
        for (key, set) in &places.scopes {
            let place = shard.find(*key);
            if let Some(record) = place.and_then(|place| shard.get_mut(place)) {
                record.state.release();
                record.keep_until(record.state.expires_at(set), false);
            }
        }
    }

    /// Forgets what an identity has used of these scopes, by the hashes of their names.
    pub fn reset(&self, identity: &Identity, scopes: impl Iterator<Item = u64>) {
        let hash = self.keys.hash(identity);
        let Some(Padded(shard)) = self.shard_of(hash) else { return };
        let mut shard = shard.lock();
        let forgotten = scopes.filter(|scope| {
            let key = hash.key(*scope);
            let record = shard.find(key).and_then(|place| shard.get_mut(place));
            // The requests that hold places are still there.
            let stays = record.is_some_and(|record| record.state.forget());
            !stays && shard.forget(key)
        });
        let forgotten = forgotten.count();
        self.shards.count_forgotten(forgotten);
    }

    /// Forgets what has expired in one shard, and says how much that was. Looks at a bounded number
    /// of records; in a shard that holds more, the next call goes on where this one ended.
    pub fn sweep(&self, now: Timestamp, shard: usize) -> usize {
        self.shards.sweep(now, shard)
    }

    /// Number of shards, for who calls [`MemoryStore::sweep`] on one after the other.
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

    /// Records that may be held.
    pub fn capacity(&self) -> usize {
        self.shards.capacity()
    }

    /// Records that were forgotten before their time, for want of room. Each may have let its
    /// identity pass its limits once more.
    pub fn evictions(&self) -> u64 {
        self.shards.evictions()
    }

    /// Rounds that [`MemoryStore::sweep`] has made: each ends with the last shard.
    pub fn sweeps(&self) -> u64 {
        self.shards.sweeps()
    }

    /// Records that were freed because they had expired.
    pub fn swept(&self) -> u64 {
        self.shards.swept()
    }

    fn check_in(&self, shard: &mut Shard, scopes: &Scopes, now: Timestamp) -> Decision {
        let mut used = Used::find(shard, scopes);
        let decision = check(&mut used, &scopes.limits, scopes.cost, now);
        // First those that are held: an insertion may free what looks expired until then.
        for (index, limits) in scopes.limits.iter().enumerate() {
            if let Some(record) = used.record(index) {
                let expires_at = record.state.expires_at(&limits.set);
                record.keep_until(expires_at, decision.is_exhausted(index));
            }
        }
        for (index, (key, limits)) in scopes.keys.iter().zip(&scopes.limits).enumerate() {
            if used.is_held(index) {
                continue;
            }
            let state = std::mem::take(nth(&mut used.spare, index));
            let expires_at = state.expires_at(&limits.set);
            // Where nothing was charged there is nothing to remember.
            if expires_at > now {
                let mut record = Record::new(*key, state);
                record.keep_until(expires_at, decision.is_exhausted(index));
                self.shards.insert(used.shard, record, now);
            }
        }
        decision
    }

    fn shard_of(&self, hash: IdentityHash) -> Option<&Padded<State>> {
        self.shards.of(hash)
    }
}

/// What a plan asks of the store, by index of the scope. With no more scopes than usual a check
/// allocates nothing.
struct Scopes {
    keys: SmallVec<[Key; SCOPES_USUAL]>,
    limits: SmallVec<[Limits; SCOPES_USUAL]>,
    cost: u32,
}

impl Scopes {
    fn new(plan: &Plan<'_>, hash: IdentityHash) -> Self {
        Scopes {
            keys: plan.scopes().map(|scope| hash.key(scope.key_hash)).collect(),
            limits: plan.scopes().map(|scope| scope.limits).collect(),
            cost: plan.cost,
        }
    }
}

/// The states of a request where they lie; of those that are not held, a new one beside it.
struct Used<'s> {
    shard: &'s mut Shard,
    places: SmallVec<[Option<u32>; SCOPES_USUAL]>,
    spare: SmallVec<[State; SCOPES_USUAL]>,
}

impl<'s> Used<'s> {
    fn find(shard: &'s mut Shard, scopes: &Scopes) -> Self {
        let places = scopes.keys.iter().map(|key| shard.find(*key)).collect();
        Used { shard, places, spare: new_states(scopes) }
    }

    fn is_held(&self, index: usize) -> bool {
        self.places.get(index).is_some_and(Option::is_some)
    }

    fn record(&mut self, index: usize) -> Option<&mut Record> {
        self.shard.get_mut(self.places.get(index).copied()??)
    }
}

impl States for Used<'_> {
    fn state(&mut self, index: usize) -> &mut State {
        let place = self.places.get(index).copied().flatten();
        match place.and_then(|place| self.shard.get_mut(place)) {
            Some(record) => &mut record.state,
            None => nth(&mut self.spare, index),
        }
    }
}

/// Copies of a request's states.
struct Copies(SmallVec<[State; SCOPES_USUAL]>);

impl States for Copies {
    fn state(&mut self, index: usize) -> &mut State {
        nth(&mut self.0, index)
    }
}

/// A state that is new for each scope.
fn new_states(scopes: &Scopes) -> SmallVec<[State; SCOPES_USUAL]> {
    scopes.keys.iter().map(|_| State::default()).collect()
}

#[expect(clippy::indexing_slicing, reason = "made by `new_states` of the scopes that are counted")]
fn nth(states: &mut [State], index: usize) -> &mut State {
    &mut states[index]
}
