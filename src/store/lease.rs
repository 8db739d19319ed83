//! Leases of this process: for whom it may take several tokens of Redis at once, what it holds, and
//! what goes back.
//!
//! The law of leases, and why no limit is ever exceeded by one, is [`crate::limiter::check::lease`]. Here
//! is who gets one. An identity is leased for while this process sees enough requests of it for a lease
//! to spare calls, and only where its tier allows a hundred requests a second or more: below that every
//! check is one of Redis's own. How many tokens are asked for is what the identity has asked for of late.
//! Where Redis has too little left to lend, each request asks for itself.
//!
//! While one request asks for a lease, others of its identity do ordinary checks: nobody waits for
//! anybody. A lease is counted from the moment of asking for it by a clock that never steps, so that it
//! is over here before it is in Redis, whatever either believes of the time.
//!
//! Reads no clock, and asks nobody itself.

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hashbrown::HashTable;
use parking_lot::Mutex;

use crate::limiter::check::Limits;
use crate::limiter::check::lease::{
    LEASE_MAX, LEASE_MIN, LEASED_RATE_MIN, Leased, Wish, rest_of_second,
};
use crate::limiter::decision::{Decision, LimitStatus, Verdict};
use crate::limiter::quota::{LimitSet, Mode};
use crate::limiter::refund::Grant;
use crate::limiter::time::Micros;
use crate::policy::identity::Identity;
use crate::policy::plan::Plan;

/// Identities whose demand is known at most; who asked longest ago gives way.
pub const IDENTITIES_MAX: usize = SHARDS * SHARD_MAX;
/// What is to be given back and waits for that, at most. More is not given back.
pub const RETURNS_MAX: usize = 4_096;

const SHARDS: usize = 64;
const SHARD_MAX: usize = 128;
/// Requests within a lease's time from which on one is asked for, and below which none is any more.
const ENTER: f64 = 4.0;
const LEAVE: f64 = 2.0;
/// Over which demand is measured.
const DEMAND_SPAN: Duration = Duration::from_millis(200);
/// After a denial, and where Redis had too little left to lend: for so long it will have no more.
const QUIET: Duration = Duration::from_millis(50);
/// By how much earlier a lease ends here, since no two clocks run alike.
const MARGIN: Duration = Duration::from_millis(1);

/// Leases of all workers.
#[derive(Debug)]
pub struct LeaseTable {
    is_on: bool,
    seed: RandomState,
    /// Times are kept as microseconds from here.
    base: Instant,
    generation: AtomicU64,
    shards: Box<[Shard]>,
    returns: Mutex<Vec<Return>>,
    stats: Stats,
}

/// On cache lines of its own, so that its lock disturbs no neighbour.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(Mutex<HashTable<Entry>>);

/// What was counted; all of it only rises.
#[derive(Debug, Default)]
struct Stats {
    granted: AtomicU64,
    refused: AtomicU64,
    tokens_spent: AtomicU64,
    tokens_returned: AtomicU64,
    tokens_lost: AtomicU64,
}

/// What leases have come to so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Leases that were granted.
    pub granted: u64,
    /// Wishes that were answered by an ordinary check, or a denial.
    pub refused: u64,
    /// Tokens of leases that are over: those that requests have spent.
    pub tokens_spent: u64,
    /// Those that went back to Redis, as far as is known.
    pub tokens_returned: u64,
    /// Those that nobody spent and that did not go back.
    pub tokens_lost: u64,
    /// Leases that have something left.
    pub held: usize,
    /// What they have left.
    pub tokens_held: u64,
}

/// Whose requests these are, where they may be leased for.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    hash: u64,
    limits: Limits,
    span: Micros,
    cost: u32,
}

/// A request that asks for a lease.
#[derive(Clone, Copy, Debug)]
pub struct Asking {
    /// What for.
    pub wish: Wish,
    subject: Subject,
    generation: u64,
    sent: u64,
}

/// Tokens to be given back in Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Return {
    /// Whose.
    pub identity: Identity,
    /// The limits of its tier.
    pub limits: Limits,
    /// How many.
    pub tokens: u32,
    /// Where they were charged.
    pub grant: Grant,
    generation: u64,
}

#[derive(Debug)]
struct Entry {
    hash: u64,
    identity: Identity,
    limits: Limits,
    /// Tokens a second that were asked for of late, when last asked.
    demand: f64,
    seen: u64,
    /// Whether it is leased for.
    is_in: bool,
    /// No lease is asked for before: another request is asking, or it would be in vain.
    not_before: u64,
    lease: Option<Box<Lease>>,
}

#[derive(Debug)]
struct Lease {
    /// What Redis has said when it was granted.
    decision: Decision,
    span: Micros,
    tokens: u32,
    left: u32,
    until: u64,
    generation: u64,
}

impl Subject {
    /// Whether a plan may be leased for: one that meets its tier's limits alone, which refuse, and are
    /// generous.
    fn of(seed: &RandomState, plan: &Plan<'_>) -> Option<Self> {
        let mut scopes = plan.scopes();
        let (scope, None) = (scopes.next()?, scopes.next()) else { return None };
        let set = &scope.limits.set;
        let is_leased = scope.rule.is_none()
            && scope.limits.mode == Mode::Enforce
            && set.concurrency.is_none()
            && sustained(set) >= LEASED_RATE_MIN;
        let span = is_leased.then(|| span(set)).filter(|span| *span >= LEASE_MIN)?;
        let hash = seed.hash_one(&plan.identity);
        Some(Subject { hash, limits: scope.limits, span, cost: plan.cost })
    }
}

/// Requests a second that may come for long.
fn sustained(set: &LimitSet) -> u32 {
    let of_minute = set.minute.map_or(0, |limit| limit.get() / 60);
    set.second.map_or(of_minute, |bucket| bucket.rate.get())
}

/// How long leases are for: what the bucket earns meanwhile, and does not lend, is a quarter of the
/// burst at most.
fn span(set: &LimitSet) -> Micros {
    let most = set.second.map_or(LEASE_MAX, |bucket| {
        let burst = u64::from(bucket.burst.get()).saturating_mul(Micros::SECOND.as_micros());
        Micros::from_micros(burst / u64::from(bucket.rate.get()) / 4)
    });
    most.min(LEASE_MAX)
}

impl LeaseTable {
    /// An empty one, for whom nobody is leased for unless `is_on`. `now` is any time before all others.
    pub fn new(is_on: bool, now: Instant) -> Self {
        LeaseTable {
            is_on,
            seed: RandomState::new(),
            base: now,
            generation: AtomicU64::new(0),
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            returns: Mutex::default(),
            stats: Stats::default(),
        }
    }

    /// Whether a plan's requests may be leased for.
    pub fn subject(&self, plan: &Plan<'_>) -> Option<Subject> {
        if self.is_on { Subject::of(&self.seed, plan) } else { None }
    }

    /// Spends of the lease that there is. What the decision says is left is what was left in Redis
    /// beside the lease, and what is left of that. To be called once for each request: it measures
    /// the demand, too.
    pub fn spend(&self, subject: &Subject, plan: &Plan<'_>, now: Instant) -> Option<Decision> {
        let (at, generation) = (self.micros(now), self.generation());
        let mut entries = self.shard(subject)?.lock();
        let Some(entry) = find(&mut entries, subject) else {
            self.insert(&mut entries, Entry::new(subject, &plan.identity, at));
            return None;
        };
        entry.ask(subject, at);
        let holds = entry.lease.as_ref().is_some_and(|lease| lease.holds(at, generation));
        if !holds || entry.limits != subject.limits {
            self.end(entry, generation);
            entry.limits = subject.limits;
        }
        let lease = entry.lease.as_mut()?;
        lease.left = lease.left.checked_sub(subject.cost)?;
        Some(lease.decision())
    }

    /// Whether this request should ask for a lease, with so many replicas. Then the answer is to be
    /// told by [`LeaseTable::granted`] or [`LeaseTable::refused`], and nobody else asks before
    /// `patience` is over.
    pub fn wish(
        &self,
        subject: &Subject,
        replicas: u32,
        now: Instant,
        patience: Duration,
    ) -> Option<Asking> {
        let (at, generation) = (self.micros(now), self.generation());
        let mut entries = self.shard(subject)?.lock();
        let entry = find(&mut entries, subject)?;
        let lease = entry.lease.as_deref();
        if at < entry.not_before
            || lease.is_some_and(|it| it.holds(at, generation) && it.left >= subject.cost)
        {
            return None;
        }
        let wanted = entry.demand * seconds(subject.span);
        let requests = wanted / f64::from(subject.cost.max(1));
        entry.is_in = requests >= if entry.is_in { LEAVE } else { ENTER };
        if !entry.is_in {
            return None;
        }
        entry.not_before = at.saturating_add(micros(patience));
        let divisor = replicas.max(1).saturating_mul(2);
        let divisor = NonZeroU32::new(divisor).unwrap_or(NonZeroU32::MIN);
        let wish = Wish { tokens: wanted.ceil() as u32, span: subject.span, divisor };
        Some(Asking { wish, subject: *subject, generation, sent: at })
    }

    /// Redis has not granted one: it had too little left, or the second was nearly over, as `answer`
    /// tells, it has denied the request, or did not answer.
    pub fn refused(&self, asking: &Asking, answer: Option<&Decision>, now: Instant) {
        add(&self.stats.refused, 1);
        let mut quiet = micros(QUIET);
        if let Some(answer) = answer.filter(|it| it.verdict == Verdict::Allow) {
            let rest = rest_of_second(answer.now);
            if rest < LEASE_MIN {
                quiet = rest.as_micros();
            }
        }
        let quiet = self.micros(now).saturating_add(quiet);
        let Some(shard) = self.shard(&asking.subject) else { return };
        if let Some(entry) = find(&mut shard.lock(), &asking.subject) {
            entry.not_before = quiet;
        }
    }

    /// Redis has granted one, as is known `now`. Returns the decision on the request that asked, as
    /// [`LeaseTable::spend`] would.
    pub fn granted(
        &self,
        asking: &Asking,
        leased: Leased,
        identity: &Identity,
        now: Instant,
    ) -> Decision {
        add(&self.stats.granted, 1);
        let (at, generation) = (self.micros(now), self.generation());
        let span = leased.span.as_micros().saturating_sub(micros(MARGIN));
        let lease = Box::new(Lease {
            decision: leased.decision,
            span: leased.span,
            tokens: leased.tokens,
            left: leased.tokens.saturating_sub(asking.subject.cost),
            // It was granted after it was asked for.
            until: asking.sent.saturating_add(span),
            generation: asking.generation,
        });
        let decision = lease.decision();
        let Some(shard) = self.shard(&asking.subject) else { return decision };
        let mut entries = shard.lock();
        match find(&mut entries, &asking.subject) {
            Some(entry) => {
                entry.not_before = 0;
                self.end(entry, generation);
                if lease.holds(at, generation) && entry.limits == asking.subject.limits {
                    entry.lease = Some(lease);
                    return decision;
                }
                self.give_back(*lease, identity.clone(), asking.subject.limits, generation);
            }
            None => self.give_back(*lease, identity.clone(), asking.subject.limits, generation),
        }
        decision
    }

    /// Puts back what a request has spent of a lease, if that still holds. `grant` is of the decision
    /// that [`LeaseTable::spend`] made. Returns what is left then.
    pub fn put_back(&self, plan: &Plan<'_>, grant: &Grant, now: Instant) -> Option<Decision> {
        let (at, generation) = (self.micros(now), self.generation());
        let subject = self.subject(plan)?;
        let mut entries = self.shard(&subject)?.lock();
        let entry = find(&mut entries, &subject)?;
        let lease = entry.lease.as_mut().filter(|it| it.holds(at, generation))?;
        // Of this lease, and of no other: it is counted where this one was charged.
        if lease.decision.now != grant.at() {
            return None;
        }
        lease.left = lease.left.saturating_add(plan.cost);
        Some(lease.decision())
    }

    /// Makes void what is held, and does not give it back: counters have been reset, or an operator's
    /// word has changed.
    pub fn forget(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Takes what is to go back to Redis: of leases that are over, or with `all`, of all.
    pub fn take_returns(&self, now: Instant, all: bool) -> Vec<Return> {
        let (at, generation) = (self.micros(now), self.generation());
        for Shard(shard) in &self.shards {
            let mut entries = shard.lock();
            for entry in entries.iter_mut() {
                if entry.lease.as_ref().is_some_and(|it| all || !it.holds(at, generation)) {
                    self.end(entry, generation);
                }
            }
        }
        let mut returns = std::mem::take(&mut *self.returns.lock());
        let lost: u64 = returns
            .extract_if(.., |it| it.generation != generation)
            .map(|it| u64::from(it.tokens))
            .sum();
        self.stats.tokens_lost.fetch_add(lost, Ordering::Relaxed);
        returns
    }

    /// Notes whether what was taken has gone back.
    pub fn returned(&self, tokens: u32, has_gone: bool) {
        add(if has_gone { &self.stats.tokens_returned } else { &self.stats.tokens_lost }, tokens);
    }

    /// Identities whose demand is known.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|Shard(shard)| shard.lock().len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What leases have come to so far.
    pub fn figures(&self) -> Figures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut figures = Figures {
            granted: read(&self.stats.granted),
            refused: read(&self.stats.refused),
            tokens_spent: read(&self.stats.tokens_spent),
            tokens_returned: read(&self.stats.tokens_returned),
            tokens_lost: read(&self.stats.tokens_lost),
            ..Figures::default()
        };
        for Shard(shard) in &self.shards {
            for lease in shard.lock().iter().filter_map(|entry| entry.lease.as_ref()) {
                figures.held = figures.held.saturating_add(usize::from(lease.left > 0));
                figures.tokens_held = figures.tokens_held.saturating_add(u64::from(lease.left));
            }
        }
        figures
    }

    /// Ends an entry's lease.
    fn end(&self, entry: &mut Entry, generation: u64) {
        if let Some(lease) = entry.lease.take() {
            self.give_back(*lease, entry.identity.clone(), entry.limits, generation);
        }
    }

    fn give_back(&self, lease: Lease, identity: Identity, limits: Limits, generation: u64) {
        add(&self.stats.tokens_spent, lease.tokens.saturating_sub(lease.left));
        if lease.left == 0 {
            return;
        }
        let mut returns = self.returns.lock();
        if lease.generation != generation || returns.len() >= RETURNS_MAX {
            add(&self.stats.tokens_lost, lease.left);
            return;
        }
        let grant = Grant::of_lease(&lease.decision, lease.span);
        let tokens = lease.left;
        returns.push(Return { identity, limits, tokens, grant, generation });
    }

    fn insert(&self, entries: &mut HashTable<Entry>, entry: Entry) {
        if entries.len() >= SHARD_MAX {
            let oldest = entries.iter().min_by_key(|entry| entry.seen).map(|entry| entry.hash);
            let place =
                oldest.and_then(|hash| entries.find_entry(hash, |entry| entry.hash == hash).ok());
            if let Some(place) = place {
                let (mut evicted, _) = place.remove();
                self.end(&mut evicted, self.generation());
            }
        }
        entries.insert_unique(entry.hash, entry, |entry| entry.hash);
    }

    fn shard(&self, subject: &Subject) -> Option<&Mutex<HashTable<Entry>>> {
        // The table takes the low bits of what is left.
        self.shards.get((subject.hash >> 32) as usize % SHARDS).map(|Shard(shard)| shard)
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn micros(&self, at: Instant) -> u64 {
        micros(at.saturating_duration_since(self.base))
    }
}

fn find<'e>(entries: &'e mut HashTable<Entry>, subject: &Subject) -> Option<&'e mut Entry> {
    entries.find_mut(subject.hash, |entry| entry.hash == subject.hash)
}

impl Entry {
    fn new(subject: &Subject, identity: &Identity, at: u64) -> Self {
        Entry {
            hash: subject.hash,
            identity: identity.clone(),
            limits: subject.limits,
            demand: f64::from(subject.cost) / DEMAND_SPAN.as_secs_f64(),
            seen: at,
            is_in: false,
            not_before: 0,
            lease: None,
        }
    }

    /// Counts a request: what was asked for before weighs less the longer it is ago.
    fn ask(&mut self, subject: &Subject, at: u64) {
        let ago = Duration::from_micros(at.saturating_sub(self.seen)).as_secs_f64();
        let span = DEMAND_SPAN.as_secs_f64();
        self.demand = self.demand * (-ago / span).exp() + f64::from(subject.cost) / span;
        self.seen = at.max(self.seen);
    }
}

impl Lease {
    fn holds(&self, at: u64, generation: u64) -> bool {
        at < self.until && self.generation == generation
    }

    /// Allowed, with what is left.
    fn decision(&self) -> Decision {
        let mut decision = Decision::new(Verdict::Allow, self.decision.now);
        for status in self.decision.statuses() {
            let remaining = status.remaining.saturating_add(self.left).min(status.limit);
            decision.push(LimitStatus { remaining, ..*status });
        }
        decision
    }
}

fn add(counter: &AtomicU64, number: u32) {
    counter.fetch_add(u64::from(number), Ordering::Relaxed);
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

fn seconds(span: Micros) -> f64 {
    Duration::from_micros(span.as_micros()).as_secs_f64()
}
