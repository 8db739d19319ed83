//! What operators say of single identities, and how all replicas come to know it.
//!
//! Without Redis it is kept in this process and ends with it. With Redis it is kept there, in one
//! table that every replica asks several times a second whether it has changed; so a change is in
//! force everywhere within a second, and is still there after a restart. While Redis is away, what
//! was known last goes on holding and nothing can be changed. A table that was lost is begun anew
//! with what the replicas remember.
//!
//! Requests read [`OverrideStore::current`], a pointer; nothing here waits on their way.

pub mod change;
pub mod codec;

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;

use crate::limiter::time::{Micros, Timestamp};
use crate::policy::compiled::Policy;
use crate::policy::identity::Identity;
use crate::policy::overrides::{Order, Override, Overrides};
use crate::store::counters::Counters;
use crate::store::redis::board::{Board, Change as BoardChange, ChangeError, Version};
use crate::store::redis::error::CheckError;
use crate::store::redis::{RedisShared, RedisStore};

use change::Change;
use codec::{Codec, Entry, Reset};

/// Most overrides, denials and remembered resets.
pub const ENTRIES_MAX: usize = 10_000;
/// Changes that are kept for eyes.
pub const CHANGES_MAX: usize = 100;
/// How often Redis is asked whether anything has changed: well below the second within which every
/// replica has to know.
pub const SYNC_INTERVAL: Duration = Duration::from_millis(200);
/// How long a reset is told to other replicas: none remembers a use for longer.
const RESET_TOLD: Micros = Micros::from_micros(2 * 3600 * 1_000_000);
/// Expired entries that one change clears away.
const CLEARED_AT_ONCE: usize = 100;

/// Why something was not changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OverrideError {
    /// There are [`ENTRIES_MAX`] already.
    #[error("there are {ENTRIES_MAX} overrides and denials already; take some back first")]
    Full,
    /// Redis did not say that it was changed.
    #[error("Redis does not answer, so nothing is known to have changed ({0})")]
    Unavailable(#[from] CheckError),
}

/// Where the policy in force is to be had.
pub type PolicyInForce = Box<dyn Fn() -> Arc<Policy> + Send + Sync>;

/// Overrides and denials, wherever they are kept.
pub struct OverrideStore {
    current: ArcSwap<Overrides>,
    /// Newest first.
    changes: Mutex<VecDeque<Change>>,
    revision: AtomicU64,
    counters: Arc<Counters>,
    policy: PolicyInForce,
    /// Where all replicas share a Redis.
    codec: Option<Codec>,
    synced: tokio::sync::Mutex<Synced>,
    has_told_of_unreadable: AtomicBool,
}

/// What was read last.
#[derive(Debug, Default)]
struct Synced {
    is_read: bool,
    version: Option<Version>,
    /// By field.
    resets: HashMap<String, Timestamp>,
}

impl OverrideStore {
    /// An empty one.
    pub fn new(counters: Arc<Counters>, policy: PolicyInForce) -> Self {
        let names = counters.shared().map(|shared: &RedisShared| shared.settings().names.clone());
        OverrideStore {
            current: ArcSwap::default(),
            changes: Mutex::default(),
            revision: AtomicU64::new(0),
            counters,
            policy,
            codec: names.map(Codec::new),
            synced: tokio::sync::Mutex::default(),
            has_told_of_unreadable: AtomicBool::new(false),
        }
    }

    /// What holds now.
    pub fn current(&self) -> Guard<Arc<Overrides>> {
        self.current.load()
    }

    /// The last [`CHANGES_MAX`] changes, newest first; those of all replicas that share a Redis.
    pub fn changes(&self) -> Vec<Change> {
        self.changes.lock().iter().cloned().collect()
    }

    /// Another number after each change.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Relaxed)
    }

    /// Whether a restart forgets it all: there is no Redis.
    pub fn is_transient(&self) -> bool {
        self.codec.is_none()
    }

    /// Sets an identity's override or denial, in place of the one that there was.
    ///
    /// # Errors
    /// There are too many, or Redis does not answer.
    pub async fn set(&self, it: Override, change: Change) -> Result<(), OverrideError> {
        let Some((redis, codec)) = self.shared() else {
            let mut next = Overrides::clone(&self.current.load());
            next.prune(change.at);
            let is_new = match it.order {
                Order::Tier(_) => next.tier_of(&it.identity).is_none(),
                Order::Deny => next.denial_of(&it.identity).is_none(),
            };
            if is_new && next.len() >= ENTRIES_MAX {
                return Err(OverrideError::Full);
            }
            next.insert(it);
            self.adopt(next);
            self.note(change);
            return Ok(());
        };
        let (field, value) = codec.write(&Entry::Override(it));
        self.change(redis, codec, (field, Some(value)), &change).await
    }

    /// Takes an identity's override or denial back, if there is one.
    ///
    /// # Errors
    /// Redis does not answer.
    pub async fn remove(
        &self,
        identity: &Identity,
        is_denial: bool,
        change: Change,
    ) -> Result<(), OverrideError> {
        let Some((redis, codec)) = self.shared() else {
            let mut next = Overrides::clone(&self.current.load());
            if next.remove(identity, is_denial).is_some() {
                self.adopt(next);
                self.note(change);
            }
            return Ok(());
        };
        let field = codec.field(if is_denial { 'd' } else { 'o' }, identity);
        self.change(redis, codec, (field, None), &change).await
    }

    /// Forgets what an identity has used, everywhere.
    ///
    /// # Errors
    /// Redis does not answer.
    pub async fn reset(&self, identity: &Identity, change: Change) -> Result<(), OverrideError> {
        let policy = (self.policy)();
        let scopes: Vec<(&str, u64)> = policy.scope_names().collect();
        self.counters.reset(identity, &scopes).await?;
        let Some((redis, codec)) = self.shared() else {
            self.note(change);
            return Ok(());
        };
        let reset = Entry::Reset(Reset { identity: identity.clone(), at: change.at });
        let (field, value) = codec.write(&reset);
        self.change(redis, codec, (field, Some(value)), &change).await
    }

    /// Notes a change that is of no identity.
    ///
    /// # Errors
    /// Redis does not answer; it is noted here nevertheless.
    pub async fn tell(&self, change: Change) -> Result<(), OverrideError> {
        let Some((redis, codec)) = self.shared() else {
            self.note(change);
            return Ok(());
        };
        let line = Some(codec.write_line(&change));
        let told = redis.change_board(&board_change(line, Vec::new())).await;
        if told.is_err() {
            self.note(change);
        }
        told.map_err(OverrideError::from)
    }

    /// Asks Redis whether anything has changed, and takes over what has. To be called every
    /// [`SYNC_INTERVAL`].
    ///
    /// # Errors
    /// Redis does not answer: what was known goes on holding.
    pub async fn sync(&self) -> Result<(), CheckError> {
        let Some((redis, codec)) = self.shared() else { return Ok(()) };
        self.refresh(redis, codec, &mut *self.synced.lock().await).await
    }

    /// How many hold at that time: overrides and denials.
    pub fn count(&self, now: Timestamp) -> (usize, usize) {
        let current = self.current.load();
        let holding = current.all().filter(|it| it.holds_at(now));
        holding.fold((0, 0), |(tiers, denied), it| match it.order {
            Order::Tier(_) => (tiers + 1, denied),
            Order::Deny => (tiers, denied + 1),
        })
    }

    fn shared(&self) -> Option<(&RedisStore, &Codec)> {
        self.counters.redis().zip(self.codec.as_ref())
    }

    async fn change(
        &self,
        redis: &RedisStore,
        codec: &Codec,
        field: (String, Option<bytes::Bytes>),
        change: &Change,
    ) -> Result<(), OverrideError> {
        let mut synced = self.synced.lock().await;
        // What was lost meanwhile is put back first, and what all others did is known.
        self.refresh(redis, codec, &mut synced).await?;
        let mut fields = self.expired(codec, &mut synced, change.at);
        fields.retain(|(expired, _)| *expired != field.0);
        fields.push(field);
        let line = Some(codec.write_line(change));
        redis.change_board(&board_change(line, fields)).await?;
        self.read(redis, codec, &mut synced).await?;
        Ok(())
    }

    /// Fields whose time is over, to be deleted.
    fn expired(
        &self,
        codec: &Codec,
        synced: &mut Synced,
        now: Timestamp,
    ) -> Vec<(String, Option<bytes::Bytes>)> {
        let current = self.current.load();
        let of_overrides = current.all().filter(|it| !it.holds_at(now)).map(|it| {
            let kind = if it.order == Order::Deny { 'd' } else { 'o' };
            codec.field(kind, &it.identity)
        });
        let is_over = |at: &Timestamp| now.since(*at) > RESET_TOLD;
        let of_resets = synced.resets.iter().filter(|(_, at)| is_over(at));
        let expired = of_overrides.chain(of_resets.map(|(field, _)| field.clone()));
        expired.take(CLEARED_AT_ONCE).map(|field| (field, None)).collect()
    }

    /// Reads the table, unless it is the one that was read last.
    async fn refresh(
        &self,
        redis: &RedisStore,
        codec: &Codec,
        synced: &mut Synced,
    ) -> Result<(), CheckError> {
        if synced.is_read && redis.board_version().await? == synced.version {
            return Ok(());
        }
        self.read(redis, codec, synced).await
    }

    /// Reads the whole table.
    async fn read(
        &self,
        redis: &RedisStore,
        codec: &Codec,
        synced: &mut Synced,
    ) -> Result<(), CheckError> {
        let mut board = redis.board().await?;
        if was_lost(synced.version.as_ref(), board.version.as_ref()) {
            let missing = self.missing(codec, &board);
            if !missing.is_empty() {
                tracing::warn!(
                    entries = missing.len(),
                    "redis has lost overrides and denials that hold here; they are put back"
                );
                match redis.change_board(&board_change(None, missing)).await {
                    Ok(()) | Err(ChangeError::Full) => board = redis.board().await?,
                    Err(ChangeError::Redis(error)) => return Err(error),
                }
            }
        }
        self.take(codec, synced, board);
        Ok(())
    }

    /// What holds here and stands in no field of a table.
    fn missing(&self, codec: &Codec, board: &Board) -> Vec<(String, Option<bytes::Bytes>)> {
        let current = self.current.load();
        let written = current.all().map(|it| codec.write(&Entry::Override(Override::clone(it))));
        let there: HashSet<&str> = board.fields.iter().map(|(field, _)| &**field).collect();
        let missing = written.filter(|(field, _)| !there.contains(&**field));
        missing.map(|(field, value)| (field, Some(value))).collect()
    }

    fn take(&self, codec: &Codec, synced: &mut Synced, board: Board) {
        let mut unreadable = 0;
        let (mut overrides, mut resets) = (Vec::new(), HashMap::new());
        for (field, value) in board.fields {
            match codec.read(&field, &value) {
                Some(Entry::Override(it)) => overrides.push(it),
                Some(Entry::Reset(reset)) => {
                    // The first time that the table is read, too: Redis may have been away till then.
                    if synced.resets.get(&field) != Some(&reset.at) {
                        let policy = (self.policy)();
                        let scopes = policy.scope_names().map(|(_, hash)| hash);
                        self.counters.reset_here(&reset.identity, scopes);
                    }
                    resets.insert(field, reset.at);
                }
                None => unreadable += 1,
            }
        }
        if unreadable > 0 && !self.has_told_of_unreadable.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                entries = unreadable,
                "overrides and denials in redis cannot be read: they were written under another \
                 identity_hash_secret, and do not hold here"
            );
        }
        let changes = board.log.iter().filter_map(|line| codec.read_line(line)).collect();
        *self.changes.lock() = changes;
        *synced = Synced { is_read: true, version: board.version, resets };
        self.adopt(Overrides::new(overrides));
    }

    fn adopt(&self, next: Overrides) {
        self.current.store(Arc::new(next));
        self.counters.forget_answers();
        self.revision.fetch_add(1, Ordering::Relaxed);
    }

    fn note(&self, change: Change) {
        let mut changes = self.changes.lock();
        changes.push_front(change);
        changes.truncate(CHANGES_MAX);
        self.revision.fetch_add(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for OverrideStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OverrideStore").field("current", &self.current).finish_non_exhaustive()
    }
}

impl From<ChangeError> for OverrideError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Full => OverrideError::Full,
            ChangeError::Redis(error) => OverrideError::Unavailable(error),
        }
    }
}

/// Whether a table that was known is not the one that is there now, or went back in time.
fn was_lost(known: Option<&Version>, found: Option<&Version>) -> bool {
    match (known, found) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(known), Some(found)) => known.table != found.table || known.changes > found.changes,
    }
}

fn board_change(
    line: Option<bytes::Bytes>,
    fields: Vec<(String, Option<bytes::Bytes>)>,
) -> BoardChange {
    // What is named need only differ: the operating system's randomness keys the hash.
    let table = format!("{:016x}", RandomState::new().hash_one(0_u8));
    BoardChange { table, fields_max: ENTRIES_MAX, log_max: CHANGES_MAX, line, fields }
}
