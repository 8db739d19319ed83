//! Denials that Redis made, answered again from memory until their request could pass.
//!
//! Whoever is out of tokens and goes on asking would cost Redis a call for each refusal. But only time
//! frees tokens: what was denied at a moment, with a wait, is denied until that wait is over, at the
//! same cost and under the same limits. So a denial is as good as Redis's own until then, and whoever
//! is admitted is admitted at the same moments as without this.
//!
//! What else may free tokens is a charge that is given back, a reset, and other limits. Limits are part
//! of what a denial is found by. A reset, and whatever an operator says of an identity, makes all
//! denials void on every replica ([`DenyCache::forget`]); what this replica gives back does so for its
//! identity at once ([`DenyCache::given_back`]). And what is charged to an identity, to a request that
//! costs less or asks for something else, makes its other waits longer: what was denied before that is
//! void, too ([`DenyCache::charged`]). What another replica gives back or charges is not known here, so
//! that no denial is remembered for longer than [`LIFE_MAX`].
//!
//! When one has ended, a single request asks again for all that are the same ([`asker`]).
//!
//! Answers overtake each other. Whether a denial was made before a charge is certain where its question
//! was sent after the answer that told of the charge; else Redis's clock says.
//!
//! Reads no clock: the time is an argument, by a clock that never steps.

pub mod asker;

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::limiter::bucket;
use crate::limiter::decision::{Decision, LimitStatus, Verdict};
use crate::limiter::quota::{Mode, Period};
use crate::limiter::time::{Micros, Timestamp};
use crate::policy::identity::Identity;
use crate::policy::plan::Plan;

use asker::{Askers, Claim, Denial, Turn};

/// How long a denial is remembered at most, however long its wait: what another replica gives back
/// can be used here after so long.
pub const LIFE_MAX: Duration = Duration::from_secs(1);
/// Denials that are remembered at most: about 7 MiB. One that is pushed out costs a call of Redis.
pub const ENTRIES_MAX: usize = SHARDS * SETS * WAYS;

const SHARDS: usize = 64;
const SETS: usize = 128;
/// Places where a denial may be, of which a new one takes the one that ends soonest.
const WAYS: usize = 8;
/// Places for what becomes of identities; two that share one make each other's denials void.
const SLOTS: usize = 16_384;
/// Limits that there is room for in an entry itself: a tier's own.
const LIMITS_INLINE: usize = 3;
/// What [`Micros::NEVER`] is kept as.
const NEVER: u64 = (1 << 48) - 1;

/// Denials of all workers.
#[derive(Debug)]
pub struct DenyCache {
    seed: RandomState,
    /// Times are kept as microseconds from here.
    base: Instant,
    generation: AtomicU32,
    slots: Box<[Slot]>,
    askers: Askers,
    shards: Box<[Shard]>,
}

/// What was found.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "on the stack, and looked at in the next line")]
pub enum Known {
    /// The request is denied, as Redis would.
    Denied(Decision),
    /// Nothing is known of it; what Redis says of it may be noted with this.
    Nothing(Ticket),
}

/// A request of which Redis is asked.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    place: Place,
    /// What was void then is not to be noted later.
    stamp: u32,
    sent: u64,
    /// Whether there was a denial of it, which has ended.
    was_denied: bool,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    slot: usize,
    shard: usize,
    key: u64,
}

/// What makes denials of an identity void.
#[derive(Debug, Default)]
struct Slot {
    /// How often something was given back to it.
    given_back: AtomicU32,
    charged: Charged,
}

/// The last charge: when it was made, by Redis's clock, and when that was known here.
#[derive(Debug, Default)]
struct Charged {
    at: AtomicU64,
    told: AtomicU64,
}

/// On cache lines of its own, so that its lock disturbs no neighbour.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Empty until the first denial, then all of it.
    entries: Vec<Entry>,
    len: usize,
    hits: u64,
}

/// A denial; one that lives no time is none.
#[derive(Clone, Debug, Default)]
struct Entry {
    /// Keyed hash of identity, scopes, limits and cost.
    key: u64,
    /// When Redis's answer came, which is no earlier than when it was made: no wait that is counted
    /// from here is too short.
    told: u64,
    /// From then on.
    lives: u32,
    /// Until then from when Redis was asked.
    took: u32,
    stamp: u32,
    /// When it was made, by Redis's clock.
    now: Timestamp,
    limits: SmallVec<[Packed; LIMITS_INLINE]>,
}

/// A limit's state, without what the plan knows.
#[derive(Clone, Copy, Debug)]
struct Packed {
    scope: u8,
    period: Period,
    remaining: [u8; 4],
    wait: [u8; 6],
    /// From the decision on.
    whole_in: [u8; 6],
}

impl DenyCache {
    /// An empty one. `now` is any time before all others.
    pub fn new(now: Instant) -> Self {
        DenyCache {
            seed: RandomState::new(),
            base: now,
            generation: AtomicU32::new(0),
            slots: (0..SLOTS).map(|_| Slot::default()).collect(),
            askers: Askers::default(),
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
        }
    }

    /// What is known of a request at `now`; allocates nothing for a plan of a usual size.
    pub fn look(&self, plan: &Plan<'_>, now: Instant) -> Known {
        let place = self.place(plan);
        let at = self.micros(now);
        // Before Redis is asked: what becomes void while it is asked must not be noted.
        let stamp = self.stamp(place.slot);
        let mut ticket = Ticket { place, stamp, sent: at, was_denied: false };
        let (Some(slot), Some(shard)) = (self.slots.get(place.slot), self.shards.get(place.shard))
        else {
            return Known::Nothing(ticket);
        };
        let mut table = shard.table.lock();
        let was_denied = &mut ticket.was_denied;
        let holds = |entry: &Entry| {
            let holds = entry.stamp == stamp && at < entry.until() && slot.charged.is_before(entry);
            *was_denied = !holds;
            holds
        };
        match table.find(place.key, holds).and_then(|entry| entry.decision(plan, at)) {
            Some(decision) => {
                table.hits = table.hits.wrapping_add(1);
                Known::Denied(decision)
            }
            None => Known::Nothing(ticket),
        }
    }

    /// Whose turn it is to ask what a request was looked for with, for no longer than `patience`.
    pub fn turn(&self, ticket: &Ticket, patience: Duration) -> Turn<'_> {
        let patience = u64::try_from(patience.as_micros()).unwrap_or(u64::MAX);
        self.askers.turn(ticket.place.key, ticket.sent, patience, ticket.was_denied)
    }

    /// Tells those that wait what Redis has said, `now`, to the one that asked with `ticket`; call
    /// [`DenyCache::note`] or [`DenyCache::charged`] before.
    pub fn tell(&self, claim: Claim<'_>, ticket: &Ticket, decision: &Decision, now: Instant) {
        let at = self.micros(now);
        match decision.verdict {
            Verdict::Allow => claim.admitted(at),
            // There may be a place at any moment, also when this is told.
            Verdict::Deny if is_of_places(decision) => claim.is_for_nothing(),
            Verdict::Deny => claim.denied(at, || Denial {
                decision: decision.clone(),
                sent: ticket.sent,
                stamp: ticket.stamp,
            }),
        }
    }

    /// The denial for a request that came with `ticket`, and has heard this of one that is the same:
    /// the same caller, limits and cost.
    ///
    /// It is one if Redis would have made it at some moment since the request came. Redis made it
    /// after it was `sent`, and would have again until the wait was over, which is no sooner than
    /// `sent` and the wait. So it holds for all who came before it was sent, and for who came later,
    /// but before that end. It may have been made before those came, so that they also need what the
    /// memory of denials does: that nothing was made void before they came, and that no charge is
    /// known that it does not tell of. Whatever is given back, reset or charged later, they may as
    /// well have asked before.
    ///
    /// It is given as it was made, not older: who waited for it would have been told the same.
    pub fn hear(&self, ticket: &Ticket, denial: &Denial) -> Option<Decision> {
        let is_after = ticket.sent <= denial.sent || self.still_held(ticket, denial);
        if !is_after {
            return None;
        }
        self.askers.count_told();
        Some(denial.decision.clone())
    }

    fn still_held(&self, ticket: &Ticket, denial: &Denial) -> bool {
        let wait = denial.decision.shown().map_or(Micros::ZERO, |shown| shown.wait);
        let slot = self.slots.get(ticket.place.slot);
        ticket.stamp == denial.stamp
            && ticket.sent < denial.sent.saturating_add(wait.as_micros())
            && slot.is_some_and(|slot| slot.charged.is_told_by(denial.sent, denial.decision.now))
    }

    /// Remembers what Redis has said, `now`, of a request that was looked for before; nothing of an
    /// admission, nor of a denial for too many at once, which may be over at any moment.
    pub fn note(&self, ticket: &Ticket, plan: &Plan<'_>, decision: &Decision, now: Instant) {
        let Some(shown) = decision.shown() else { return };
        if decision.verdict == Verdict::Allow || is_of_places(decision) {
            return;
        }
        let told = self.micros(now);
        let life_max = u64::try_from(LIFE_MAX.as_micros()).unwrap_or(u64::MAX);
        // The decision was made after the question was sent, so its wait is not over by then.
        let until = ticket.sent.saturating_add(shown.wait.as_micros().min(life_max));
        let lives = u32::try_from(until.saturating_sub(told)).unwrap_or(u32::MAX);
        if lives == 0 || ticket.stamp != self.stamp(ticket.place.slot) {
            return;
        }
        let limits = decision.statuses().iter().map(|status| Packed::new(status, decision.now));
        let Place { slot, shard, key } = ticket.place;
        let (stamp, now, limits) = (ticket.stamp, decision.now, limits.collect());
        // As it lives on, it took less than a second.
        let took = u32::try_from(told.saturating_sub(ticket.sent)).unwrap_or(u32::MAX);
        let entry = Entry { key, told, lives, took, stamp, now, limits };
        debug_assert!(plan.scopes().count() > 0, "what nothing limits is not denied");
        if let (Some(slot), Some(shard)) = (self.slots.get(slot), self.shards.get(shard))
            && slot.charged.is_before(&entry)
        {
            shard.table.lock().insert(entry, told);
        }
    }

    /// Redis has charged an identity at `at`, by its clock, as is known here at `now`: what it was
    /// denied before that is void.
    pub fn charged(&self, identity: &Identity, at: Timestamp, now: Instant) {
        if let Some(slot) = self.slots.get(slot_of(self.seed.hash_one(identity))) {
            slot.charged.note(at, self.micros(now));
        }
    }

    /// Makes void whatever is remembered, and what is on its way: limits, an operator's word or
    /// counters have changed, or Redis was away.
    pub fn forget(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// An identity has got something back in Redis: its denials are void, and those of a few others.
    pub fn given_back(&self, identity: &Identity) {
        if let Some(slot) = self.slots.get(slot_of(self.seed.hash_one(identity))) {
            slot.given_back.fetch_add(1, Ordering::Release);
        }
    }

    /// Frees what is over in one shard. What is void is so within [`LIFE_MAX`].
    pub fn sweep(&self, shard: usize, now: Instant) {
        let Some(of) = self.shards.get(shard) else { return };
        of.table.lock().sweep(self.micros(now));
    }

    /// Number of shards, for who calls [`DenyCache::sweep`] on one after the other.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Requests that were denied from here.
    pub fn hits(&self) -> u64 {
        let hits = |shard: &Shard| shard.table.lock().hits;
        self.shards.iter().map(hits).fold(self.askers.told(), u64::wrapping_add)
    }

    /// Denials that are held, those that are over but not swept yet included.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.table.lock().len).sum()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Two counters that only rise: their sum is the same while neither does.
    fn stamp(&self, slot: usize) -> u32 {
        let given_back = self.slots.get(slot).map_or(0, |it| it.given_back.load(Ordering::Acquire));
        self.generation.load(Ordering::Acquire).wrapping_add(given_back)
    }

    fn place(&self, plan: &Plan<'_>) -> Place {
        let mut hasher = self.seed.build_hasher();
        plan.identity.hash(&mut hasher);
        let identity = hasher.finish();
        let (slot, shard) = (slot_of(identity), shard_of(identity));
        for scope in plan.scopes() {
            hasher.write_u64(scope.key_hash);
            scope.limits.set.hash(&mut hasher);
            scope.limits.mode.hash(&mut hasher);
        }
        hasher.write_u32(plan.cost);
        Place { slot, shard, key: hasher.finish() }
    }

    fn micros(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.base);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }
}

/// Whether it is for too many at once.
fn is_of_places(denial: &Decision) -> bool {
    denial.shown().is_none_or(|shown| shown.period == Period::Concurrency)
}

fn shard_of(identity_hash: u64) -> usize {
    identity_hash as usize % SHARDS
}

fn slot_of(identity_hash: u64) -> usize {
    identity_hash as usize % SLOTS
}

impl Charged {
    fn note(&self, at: Timestamp, told: u64) {
        // In this order: who sees that it is known sees when it was made.
        self.at.fetch_max(at.as_micros(), Ordering::Relaxed);
        self.told.fetch_max(told, Ordering::Release);
    }

    /// Whether the denial was made after it.
    fn is_before(&self, entry: &Entry) -> bool {
        let sent = entry.told.saturating_sub(u64::from(entry.took));
        self.is_told_by(sent, entry.now)
    }

    /// The same of one that was asked for at `sent`, and made at `made` by Redis's clock.
    fn is_told_by(&self, sent: u64, made: Timestamp) -> bool {
        sent > self.told.load(Ordering::Acquire)
            || made.as_micros() > self.at.load(Ordering::Relaxed)
    }
}

impl Table {
    /// The denial of this key if it holds; one that does not is freed.
    fn find(&mut self, key: u64, mut holds: impl FnMut(&Entry) -> bool) -> Option<&Entry> {
        let set = self.entries.chunks_exact_mut(WAYS).nth(set_of(key))?;
        let entry = set.iter_mut().find(|entry| entry.lives > 0 && entry.key == key)?;
        if holds(entry) {
            return Some(entry);
        }
        *entry = Entry::default();
        self.len = self.len.saturating_sub(1);
        None
    }

    /// Puts an entry in the place of its own key, else of what is over, else of what will be soonest.
    fn insert(&mut self, new: Entry, at: u64) {
        if self.entries.is_empty() {
            self.entries.resize_with(SETS * WAYS, Entry::default);
        }
        let Some(set) = self.entries.chunks_exact_mut(WAYS).nth(set_of(new.key)) else { return };
        let left = |entry: &Entry| match entry.lives {
            _ if entry.key == new.key => (0, 0),
            0 => (1, 0),
            _ => (2, entry.until().saturating_sub(at)),
        };
        let Some(entry) = set.iter_mut().min_by_key(|entry| left(entry)) else { return };
        if entry.lives == 0 {
            self.len = self.len.saturating_add(1);
        }
        *entry = new;
    }

    fn sweep(&mut self, at: u64) {
        if self.len == 0 {
            return;
        }
        for entry in self.entries.iter_mut().filter(|entry| entry.lives > 0) {
            if at >= entry.until() {
                *entry = Entry::default();
                self.len = self.len.saturating_sub(1);
            }
        }
    }
}

fn set_of(key: u64) -> usize {
    key as usize % SETS
}

impl Entry {
    fn until(&self) -> u64 {
        self.told.saturating_add(u64::from(self.lives))
    }

    /// The denial as Redis would make it now: waits are shorter by what has passed since.
    fn decision(&self, plan: &Plan<'_>, at: u64) -> Option<Decision> {
        let elapsed = Micros::from_micros(at.saturating_sub(self.told));
        let now = self.now.plus(elapsed);
        let mut decision = Decision::new(Verdict::Deny, now);
        for limit in &self.limits {
            let scope = plan.scope(limit.scope)?;
            let (quota, ceiling) = scope.limits.set.quota_and_limit(limit.period)?;
            let mode = scope.limits.mode;
            let wait = match unpack(&limit.wait) {
                NEVER => Micros::NEVER,
                wait => Micros::from_micros(wait.saturating_sub(elapsed.as_micros())),
            };
            let whole_in = Micros::from_micros(unpack(&limit.whole_in));
            let whole_at = self.now.plus(whole_in).max(now);
            // What has come back to a window meanwhile is not known, and not shown.
            let mut remaining = u32::from_le_bytes(limit.remaining);
            if let Some(bucket) = scope.limits.set.second
                && limit.period == Period::Second
                && (mode == Mode::Enforce || wait.is_zero())
            {
                let rate = u64::from(bucket.rate.get());
                let debt = whole_at.since(now).as_micros().saturating_mul(rate);
                remaining = remaining.max(bucket::remaining(debt, bucket));
            }
            decision.push(LimitStatus {
                scope: limit.scope,
                period: limit.period,
                mode,
                quota,
                limit: ceiling,
                remaining,
                wait,
                whole_at,
            });
        }
        Some(decision)
    }
}

impl Packed {
    fn new(status: &LimitStatus, now: Timestamp) -> Self {
        let wait = if status.wait >= Micros::NEVER { NEVER } else { status.wait.as_micros() };
        Packed {
            scope: status.scope,
            period: status.period,
            remaining: status.remaining.to_le_bytes(),
            wait: pack(wait),
            whole_in: pack(status.whole_at.since(now).as_micros()),
        }
    }
}

/// 48 bits are nine years.
fn pack(micros: u64) -> [u8; 6] {
    let [a, b, c, d, e, f, ..] = micros.min(NEVER).to_le_bytes();
    [a, b, c, d, e, f]
}

fn unpack(packed: &[u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = *packed;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_takes_104_bytes() {
        assert_eq!(size_of::<Packed>(), 18);
        assert!(size_of::<Entry>() <= 104, "{}", size_of::<Entry>());
    }
}
