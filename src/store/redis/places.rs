//! Places for requests at once that one worker's requests hold in Redis.
//!
//! A check takes them, in one step with its other limits. They are given back, and kept while they
//! are held, by telling Redis how many there are: the count itself, never a difference, so that
//! what was lost, late or told twice is right again with the next word. Redis lets go of what it
//! has not heard of for [`PLACE_LEASE`](super::further::PLACE_LEASE): a process that died holds
//! nothing for longer.
//!
//! One worker has one connection, over which Redis does one thing after the other; so each worker
//! is a holder of its own.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use fred::bytes::Bytes;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::health::tasks::watched;
use crate::limiter::decision::{Decision, LimitStatus};
use crate::limiter::quota::Period;
use crate::limiter::time::{Micros, Timestamp};
use crate::metrics::labels::TaskType;
use crate::policy::plan::{Plan, Scope};

use super::RedisShared;
use super::codec::Call;
use super::further::Kind;
use super::link::Link;

/// Between two words of a place that is still held.
const RENEW_INTERVAL: Duration = Duration::from_millis(2_500);
/// Locks over what is held here.
const SHARDS: usize = 64;
/// Words that are on their way at a time.
const AT_ONCE: usize = 64;

/// What this worker's requests hold. As many entries as there are requests, and those that Redis
/// has not been told of yet.
#[derive(Debug, Default)]
pub struct Places {
    held: Mutex<HashMap<Bytes, Held>>,
    /// Some are to be told of.
    is_due: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// Requests, those included that Redis is being asked for.
    count: u32,
    /// How often Redis was told of it.
    told: u32,
    /// Redis may believe something else.
    is_due: bool,
}

/// What the requests of all workers hold, for when they have to be counted without Redis.
#[derive(Debug)]
pub struct Here {
    hasher: RandomState,
    shards: Box<[Mutex<HashMap<Bytes, u32>>]>,
}

impl Default for Here {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Here { hasher: RandomState::new(), shards }
    }
}

impl Here {
    fn add(&self, name: &Bytes) {
        if let Some(shard) = self.shard(name) {
            let mut shard = shard.lock();
            let count = shard.entry(name.clone()).or_default();
            *count = count.saturating_add(1);
        }
    }

    fn remove(&self, name: &Bytes) {
        let Some(shard) = self.shard(name) else { return };
        let mut shard = shard.lock();
        let Some(count) = shard.get_mut(name) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 {
            shard.remove(name);
        }
    }

    /// Requests that hold a place under this key or are about to.
    pub fn count(&self, name: &Bytes) -> u32 {
        self.shard(name).map_or(0, |shard| shard.lock().get(name).copied().unwrap_or(0))
    }

    fn shard(&self, name: &Bytes) -> Option<&Mutex<HashMap<Bytes, u32>>> {
        let shards = self.shards.len() as u64;
        let index = self.hasher.hash_one(name).checked_rem(shards)?;
        self.shards.get(usize::try_from(index).ok()?)
    }
}

/// How the places of a plan stand for a replica that has to decide alone, of a request that is
/// counted among those [`Here`] already: it may have its part of them.
pub fn alone(shared: &RedisShared, plan: &Plan<'_>, now: Timestamp) -> Vec<LimitStatus> {
    let limit_of = |scope: &Scope<'_>| scope.limits.set.concurrency.map(NonZeroU32::get);
    if plan.scopes().all(|scope| limit_of(scope).is_none()) {
        return Vec::new();
    }
    let names = &shared.settings().names;
    let hash = names.identity_hash(&plan.identity);
    let status = |(index, scope): (u8, &Scope<'_>)| {
        let limit = limit_of(scope)?;
        let name = names.further(&hash, Kind::Places.letter(), scope.key);
        let (held, part) = (shared.here().count(&name), shared.replicas_here().part(limit));
        let wait = if held > part { Micros::SECOND } else { Micros::ZERO };
        Some(LimitStatus {
            scope: index,
            period: Period::Concurrency,
            mode: scope.limits.mode,
            quota: limit,
            limit,
            remaining: part.saturating_sub(held),
            wait,
            whole_at: now.plus(Micros::SECOND),
        })
    };
    (0_u8..).zip(plan.scopes()).filter_map(status).collect()
}

/// The places of one request. Dropped, they are free.
#[derive(Debug)]
pub struct HeldPlaces {
    link: Arc<Link>,
    keys: SmallVec<[Key; 1]>,
}

#[derive(Debug)]
struct Key {
    /// Index of the scope whose places they are.
    scope: usize,
    name: Bytes,
    /// How often Redis had been told of it when it was asked.
    told: u32,
}

impl HeldPlaces {
    /// Counts a request that is about to ask for places of these scopes, by index, under these
    /// keys.
    pub fn expect(link: &Arc<Link>, keys: impl Iterator<Item = (usize, Bytes)>) -> Self {
        let mut held = link.places().held.lock();
        let keys = keys.map(|(scope, name)| {
            link.shared().here().add(&name);
            let entry = held.entry(name.clone()).or_default();
            entry.count = entry.count.saturating_add(1);
            Key { scope, name, told: entry.told }
        });
        HeldPlaces { keys: keys.collect(), link: Arc::clone(link) }
    }

    /// Redis has refused them: it need not be told, unless it was told of them meanwhile.
    pub fn refused(mut self) {
        self.give_up(|_| true);
    }

    /// Redis has charged the scopes that had room: those in shadow may have had none.
    #[must_use]
    pub fn granted(mut self, decision: &Decision) -> Self {
        let mut statuses = decision.statuses().iter();
        if statuses.any(|status| !status.wait.is_zero()) {
            self.give_up(|scope| {
                let is_its = |status: &&LimitStatus| usize::from(status.scope) == scope;
                let mut own = decision.statuses().iter().filter(is_its);
                own.any(|status| !status.wait.is_zero())
            });
        }
        self
    }

    fn give_up(&mut self, is_refused: impl Fn(usize) -> bool) {
        let mut held = self.link.places().held.lock();
        self.keys.retain(|key| {
            if !is_refused(key.scope) {
                return true;
            }
            self.link.shared().here().remove(&key.name);
            if let Some(entry) = held.get_mut(&key.name) {
                entry.count = entry.count.saturating_sub(1);
                if entry.told != key.told {
                    entry.is_due = true;
                    self.link.places().is_due.notify_one();
                } else if entry.count == 0 && !entry.is_due {
                    held.remove(&key.name);
                }
            }
            false
        });
    }
}

impl Drop for HeldPlaces {
    fn drop(&mut self) {
        if self.keys.is_empty() {
            return;
        }
        let mut held = self.link.places().held.lock();
        for key in &self.keys {
            self.link.shared().here().remove(&key.name);
            if let Some(entry) = held.get_mut(&key.name) {
                entry.count = entry.count.saturating_sub(1);
                entry.is_due = true;
            }
        }
        self.link.places().is_due.notify_one();
    }
}

impl Places {
    /// Tells Redis of what has changed as soon as it has, and of what is held now and then.
    pub async fn keep(link: Arc<Link>) {
        let places = link.places();
        let mut renewal = tokio::time::interval(RENEW_INTERVAL);
        loop {
            let renews = tokio::select! {
                () = places.is_due.notified() => false,
                _ = renewal.tick() => true,
            };
            let due = places.due(renews);
            if !link.can_be_told() {
                // What is held is told of once Redis is there; the rest it lets go of by itself.
                places.held.lock().retain(|_, held| held.count > 0);
                continue;
            }
            for keys in due.chunks(AT_ONCE) {
                let mut words = JoinSet::new();
                for key in keys.iter().cloned() {
                    let link = Arc::clone(&link);
                    words.spawn(watched(TaskType::Redis, async move { link.tell(key).await }));
                }
                while words.join_next().await.is_some() {}
            }
        }
    }

    fn due(&self, renews: bool) -> Vec<Bytes> {
        let held = self.held.lock();
        let is_due = |held: &Held| held.is_due || renews && held.count > 0;
        held.iter().filter(|(_, held)| is_due(held)).map(|(key, _)| key.clone()).collect()
    }

    /// How many are held under a key, to be told at once.
    fn take(&self, key: &Bytes) -> Option<u32> {
        let mut held = self.held.lock();
        let entry = held.get_mut(key)?;
        entry.is_due = false;
        entry.told = entry.told.wrapping_add(1);
        Some(entry.count)
    }

    /// Redis has been told, or cannot be.
    fn told(&self, key: &Bytes, is_told: bool) {
        let mut held = self.held.lock();
        let Some(entry) = held.get_mut(key) else { return };
        if entry.count == 0 && !entry.is_due {
            held.remove(key);
        } else if !is_told {
            // With the next renewal.
            entry.is_due = entry.is_due || entry.count > 0;
        }
    }
}

impl Link {
    /// Tells Redis how many places are held under a key.
    async fn tell(self: &Arc<Self>, key: Bytes) {
        // Read in the same step in which the call is handed to the connection: a check that is made
        // later comes to Redis later, too.
        let Some(count) = self.places().take(&key) else { return };
        let call = Call::places(key.clone(), count, self.asker());
        let budget = self.shared().settings().timeout;
        let result = self.call(call, budget).await;
        self.places().told(&key, result.is_ok());
    }
}
