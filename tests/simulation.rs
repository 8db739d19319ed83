//! Replicas on one Redis, simulated from a seed: the limiter's own law, leases, refunds, shares,
//! the cache of denials and the store in memory as they are; the network, the clocks and the Redis
//! are made up, and do what they like. What was let pass is written down apart from all of that,
//! and held to what is promised. A failure names its seed:
//!
//! ```sh
//! SIMULATION_SEED=17 SIMULATION_SEEDS=1 cargo test --test simulation
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::large_enum_variant,
    reason = "a test stops at the first surprise, and ends"
)]

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use tollgate::limiter::check::lease::{LEASE_MAX, LEASED_RATE_MIN, Wish, lease};
use tollgate::limiter::check::{Limits, State, States, check, peek};
use tollgate::limiter::decision::{Decision, Verdict};
use tollgate::limiter::own::{self, Own};
use tollgate::limiter::quota::{Bucket, LimitSet, Mode};
use tollgate::limiter::refund::{Grant, refund};
use tollgate::limiter::share::{self, Alone, Owns};
use tollgate::limiter::time::{Micros, Timestamp};
use tollgate::policy::identity::Identity;
use tollgate::policy::plan::{Plan, Scope, TierId, TierSource};
use tollgate::store::deny::{DenyCache, Known, LIFE_MAX, Ticket};
use tollgate::store::memory::MemoryStore;

const MILLI: u64 = 1_000;
const SECOND: u64 = 1_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const START: u64 = 1_700_000_017_345_678;
/// Longer than anything lasts that is on its way when limits or the clock change.
const SETTLED: u64 = 4 * SECOND;

/// xorshift64: seeded, the same everywhere.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Random(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * u128::from(bound)) >> 64) as u64
    }

    fn is_one_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// How long a message takes.
    fn delay(&mut self) -> u64 {
        if self.is_one_in(20) { self.below(80 * MILLI) } else { 50 + self.below(2 * MILLI) }
    }
}

/// What is to come, in order.
struct Agenda<E> {
    events: BTreeMap<(u64, u64), E>,
    number: u64,
}

impl<E> Agenda<E> {
    fn new() -> Self {
        Agenda { events: BTreeMap::new(), number: 0 }
    }

    fn put(&mut self, at: u64, event: E) {
        self.number += 1;
        self.events.insert((at, self.number), event);
    }

    fn next(&mut self) -> Option<(u64, E)> {
        self.events.pop_first().map(|((at, _), event)| (at, event))
    }
}

struct One<'s>(&'s mut State);

impl States for One<'_> {
    fn state(&mut self, _: usize) -> &mut State {
        self.0
    }
}

struct OneOwn<'s>(&'s mut Own);

impl Owns for OneOwn<'_> {
    fn own(&mut self, _: usize) -> &mut Own {
        self.0
    }
}

fn ts(micros: u64) -> Timestamp {
    Timestamp::from_micros(micros)
}

fn enforced(set: LimitSet) -> Limits {
    Limits { set, mode: Mode::Enforce }
}

fn any_set(random: &mut Random, is_large: bool) -> LimitSet {
    let some = |count: u64| NonZeroU32::new(count as u32 + 1);
    let mut set = LimitSet::default();
    if !random.is_one_in(4) {
        let rate = if is_large { 99 + random.below(400) } else { random.below(30) };
        let burst = random.below(if is_large { 600 } else { 60 });
        set.second = some(rate).zip(some(burst)).map(|(rate, burst)| Bucket { rate, burst });
    }
    let scale = if is_large { 40 } else { 1 };
    if set.second.is_none() || random.is_one_in(2) {
        set.minute = some(scale * (5 + random.below(100)));
    }
    if random.is_one_in(2) {
        set.hour = some(scale * (20 + random.below(400)));
    }
    if random.is_one_in(4) {
        set.day = some(scale * (50 + random.below(400)));
    }
    set
}

fn plan(identity: usize, set: LimitSet, cost: u32) -> Plan<'static> {
    let user = Identity::User(format!("user {identity}").into());
    let mut plan = Plan::new(user, TierId(0), TierSource::Default);
    plan.cost = cost;
    plan.push(Scope { rule: None, key: "i", key_hash: 0, limits: enforced(set) });
    plan
}

/// Runs seeds one after the other, for a while at most, and names the one that fails.
fn each_seed(what: &str, run: impl Fn(u64) -> Count) {
    let number = |name: &str| std::env::var(name).ok().and_then(|it| it.parse::<u64>().ok());
    let first = number("SIMULATION_SEED").unwrap_or(1);
    let seeds = number("SIMULATION_SEEDS").unwrap_or(100_000);
    let most = number("SIMULATION_SECONDS").unwrap_or(10);
    let (started, mut all, mut ran) = (Instant::now(), Count::default(), 0);
    for seed in first..first.saturating_add(seeds) {
        match catch_unwind(AssertUnwindSafe(|| run(seed))) {
            Ok(count) => all.add(&count),
            Err(_) => panic!("{what}: SIMULATION_SEED={seed} fails"),
        }
        ran += 1;
        if started.elapsed() > Duration::from_secs(most) {
            break;
        }
    }
    println!("{what}: {ran} seeds from {first} on in {:?}: {all:?}", started.elapsed());
    assert!(ran >= 5.min(seeds), "{ran} seeds say little");
}

/// What was seen, so that a simulation of nothing is noticed.
#[derive(Debug, Default)]
struct Count {
    requests: u64,
    passed: u64,
    denied: u64,
    cached: u64,
    leases: u64,
    refunds: u64,
    lost: u64,
    /// Seeds in which an outage let more pass than the limit, or places were taken by others.
    over: u64,
}

impl Count {
    fn add(&mut self, other: &Count) {
        let Count { requests, passed, denied, cached, leases, refunds, lost, over } = other;
        self.requests += requests;
        self.passed += passed;
        self.denied += denied;
        self.cached += cached;
        self.leases += leases;
        self.refunds += refunds;
        self.lost += lost;
        self.over += over;
    }
}

/// What was let pass of one identity, written down by whoever let it pass.
#[derive(Default)]
struct Log(Vec<Option<(u64, u32)>>);

impl Log {
    /// No stretch of time holds more than was promised; what is written is used up.
    fn hold_to(&mut self, set: &LimitSet) {
        self.hold_with(set, 0);
    }

    /// The same, with so many more in a window. How many more there were at most.
    fn hold_with(&mut self, set: &LimitSet, more: u64) -> u64 {
        let mut over = 0;
        let mut passed: Vec<(u64, u64)> =
            self.0.drain(..).flatten().map(|(at, cost)| (at, cost.into())).collect();
        passed.sort_unstable();
        for (limit, length) in [(set.minute, MINUTE), (set.hour, HOUR)] {
            let Some(limit) = limit.map(|it| u64::from(it.get())) else { continue };
            let (mut first, mut sum) = (0, 0);
            for (at, cost) in &passed {
                sum += cost;
                while passed[first].0 + length < *at {
                    sum -= passed[first].1;
                    first += 1;
                }
                let most = limit + more;
                assert!(sum <= most, "{sum} of {limit} in the {length} us before {at}");
                over = over.max(sum.saturating_sub(limit));
            }
        }
        if let Some(limit) = set.day.map(|it| u64::from(it.get())) {
            let mut days = BTreeMap::<u64, u64>::new();
            passed.iter().for_each(|(at, cost)| *days.entry(at / (24 * HOUR)).or_default() += cost);
            assert!(days.values().all(|sum| *sum <= limit), "{days:?} of {limit}");
        }
        if let Some(bucket) = set.second {
            let [rate, burst] = [bucket.rate, bucket.burst].map(|it| u64::from(it.get()));
            // In millionths: what was let pass, less what has come back while there was any.
            let (mut debt, mut last) = (0_u64, 0);
            for (at, cost) in &passed {
                debt = debt.saturating_sub((at - last).saturating_mul(rate)) + cost * SECOND;
                assert!(debt <= burst * SECOND, "{debt} of {burst} tokens at {at}");
                last = *at;
            }
        }
        over
    }
}

// --------------------------------------------------------- with Redis: checks, leases, refunds

/// One limit at a time: what every replica has read.
struct Exact {
    random: Random,
    agenda: Agenda<Event>,
    now: u64,
    /// Redis's wall clock is so far ahead.
    ahead: i64,
    redis: Vec<State>,
    /// The real store beside the law, where it can be told the same.
    memory: Option<MemoryStore>,
    sets: Vec<LimitSet>,
    /// How often limits or the clock have changed, and when last.
    era: u64,
    changed: u64,
    /// When the newest check came by Redis's clock; when something was last charged, and given back.
    newest: Vec<u64>,
    charged: Vec<Vec<Charge>>,
    given_back: Vec<u64>,
    replicas: Vec<Replica>,
    base: Instant,
    logs: Vec<Log>,
    leases: bool,
    loses: bool,
    count: Count,
}

/// What Redis has charged, of which one replica may hear.
#[derive(Clone, Copy)]
struct Charge {
    at: u64,
    replica: usize,
    is_told: bool,
}

struct Replica {
    denials: DenyCache,
    leases: Vec<Option<Lease>>,
}

struct Lease {
    left: u32,
    until: u64,
    grant: Grant,
    era: u64,
    set: LimitSet,
}

/// A request at Redis.
struct Call {
    replica: usize,
    identity: usize,
    cost: u32,
    set: LimitSet,
    sent: u64,
    ticket: Ticket,
    wish: Option<Wish>,
}

enum Event {
    Arrives {
        replica: usize,
        identity: usize,
        cost: u32,
    },
    AtRedis(Call),
    Replied {
        call: Call,
        decision: Decision,
        lease: Option<(u32, Micros)>,
        era: u64,
        charged: u64,
    },
    GiveBack {
        replica: usize,
        identity: usize,
        cost: u32,
        set: LimitSet,
        grant: Grant,
        era: u64,
    },
    GivenBack {
        replica: usize,
        identity: usize,
    },
    LeaseEnds {
        replica: usize,
        identity: usize,
    },
    /// Limits change on every replica at once.
    Reload,
    /// Redis's wall clock is set.
    Jump,
}

impl Exact {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let identities = 1 + random.below(4) as usize;
        let leases = random.is_one_in(2);
        let (reloads, jumps) = (random.is_one_in(2), random.is_one_in(2));
        let sets: Vec<LimitSet> = (0..identities).map(|_| any_set(&mut random, leases)).collect();
        let base = Instant::now();
        let replica = |_| Replica {
            denials: DenyCache::new(base),
            leases: (0..identities).map(|_| None).collect(),
        };
        let replicas: Vec<Replica> = (0..1 + random.below(6)).map(replica).collect();
        let mut agenda = Agenda::new();
        let mut at = START;
        let requests = 300 + random.below(900);
        // Now and then a crowd, now and then nobody.
        let mut pace = SECOND;
        for _ in 0..requests {
            if random.is_one_in(40) {
                pace = random.pick(&[MILLI, 5 * MILLI, 30 * MILLI, 300 * MILLI, 2 * SECOND]);
            }
            at += random.below(2 * pace);
            if random.is_one_in(300) {
                at += random.pick(&[30 * SECOND, 61 * SECOND, 30 * MINUTE, 2 * HOUR]);
            }
            let replica = random.below(replicas.len() as u64) as usize;
            let identity = random.below(identities as u64) as usize;
            let cost = if random.is_one_in(8) { 1 + random.below(12) as u32 } else { 1 };
            agenda.put(at, Event::Arrives { replica, identity, cost });
            if reloads && random.is_one_in(250) {
                agenda.put(at, Event::Reload);
            }
            if jumps && random.is_one_in(250) {
                agenda.put(at, Event::Jump);
            }
        }
        let memory = (!leases && !jumps).then(|| MemoryStore::new(1_000));
        Exact {
            agenda,
            now: START,
            ahead: 0,
            redis: vec![State::default(); identities],
            memory,
            sets,
            era: 0,
            changed: 0,
            newest: vec![0; identities],
            charged: vec![Vec::new(); identities],
            given_back: vec![0; identities],
            replicas,
            base,
            logs: (0..identities).map(|_| Log::default()).collect(),
            leases,
            loses: random.is_one_in(2),
            count: Count::default(),
            random,
        }
    }

    fn wall(&self) -> u64 {
        self.now.saturating_add_signed(self.ahead)
    }

    fn instant(&self, at: u64) -> Instant {
        self.base + Duration::from_micros(at - START)
    }

    fn run(mut self) -> Count {
        while let Some((at, event)) = self.agenda.next() {
            self.now = at;
            match event {
                Event::Arrives { replica, identity, cost } => self.arrives(replica, identity, cost),
                Event::AtRedis(call) => self.at_redis(call),
                Event::Replied { call, decision, lease, era, charged } => {
                    self.replied(call, &decision, lease, era, charged);
                }
                Event::GiveBack { replica, identity, cost, set, grant, era } => {
                    self.give_back(replica, identity, cost, set, &grant, era);
                }
                Event::GivenBack { replica, identity } => {
                    let user = plan(identity, LimitSet::default(), 1).identity;
                    self.replicas[replica].denials.given_back(&user);
                }
                Event::LeaseEnds { replica, identity } => self.lease_ends(replica, identity),
                Event::Reload => {
                    self.change();
                    for set in &mut self.sets {
                        if self.random.is_one_in(2) {
                            *set = any_set(&mut self.random, self.leases);
                        }
                    }
                }
                Event::Jump => {
                    self.change();
                    let by = [SECOND / 2, 2 * SECOND, 90 * SECOND, HOUR, 30 * HOUR];
                    let by = self.random.pick(&by) as i64;
                    self.ahead += if self.random.is_one_in(2) { by } else { -by };
                }
            }
        }
        self.change();
        self.count
    }

    /// Limits or the clock are about to change: what was promised until now was kept.
    fn change(&mut self) {
        for (log, set) in self.logs.iter_mut().zip(&self.sets) {
            log.hold_to(set);
        }
        (self.era, self.changed) = (self.era + 1, self.now);
    }

    /// Writes down what passes. What was on its way when something changed had been granted under
    /// what was before: it is charged, so that to leave it out asks for more and not for less.
    fn pass(&mut self, identity: usize, cost: u32) -> Option<usize> {
        self.count.passed += 1;
        if self.era > 0 && self.now < self.changed + SETTLED {
            return None;
        }
        let at = self.wall();
        self.logs[identity].0.push(Some((at, cost)));
        Some(self.logs[identity].0.len() - 1)
    }

    fn arrives(&mut self, replica: usize, identity: usize, cost: u32) {
        self.count.requests += 1;
        let (now, set) = (self.now, self.sets[identity]);
        if let Some(lease) = &mut self.replicas[replica].leases[identity]
            && now < lease.until
            && lease.set == set
            && lease.left >= cost
        {
            lease.left -= cost;
            self.pass(identity, cost);
            return;
        }
        let plan = plan(identity, set, cost);
        let ticket = match self.replicas[replica].denials.look(&plan, self.instant(now)) {
            Known::Denied(decision) => {
                self.count.cached += 1;
                self.hold_cached(replica, identity, &set, cost, &decision);
                return;
            }
            Known::Nothing(ticket) => ticket,
        };
        let has_none = self.replicas[replica].leases[identity].is_none();
        let is_for_it = set.second.is_none_or(|it| it.rate.get() >= LEASED_RATE_MIN);
        let wish = (self.leases && has_none && is_for_it && self.random.is_one_in(2)).then(|| {
            let divisor = NonZeroU32::new(2 * self.replicas.len() as u32).unwrap();
            Wish { tokens: 2 + self.random.below(200) as u32, span: LEASE_MAX, divisor }
        });
        let call = Call { replica, identity, cost, set, sent: now, ticket, wish };
        let at = now + self.random.delay();
        self.agenda.put(at, Event::AtRedis(call));
    }

    /// What is denied again without Redis, Redis would deny, and for no longer.
    fn hold_cached(
        &mut self,
        replica: usize,
        identity: usize,
        set: &LimitSet,
        cost: u32,
        decision: &Decision,
    ) {
        assert_eq!(decision.verdict, Verdict::Deny);
        let since = self.now.saturating_sub(LIFE_MAX.as_micros() as u64);
        if self.given_back[identity] >= since || (self.era > 0 && self.changed >= since) {
            return;
        }
        let wall = self.wall();
        let states = &mut One(&mut self.redis[identity]);
        let there = peek(states, &[enforced(*set)], cost, ts(wall));
        assert_eq!(there.verdict, Verdict::Deny, "{decision:?}");
        // Others may have been let pass meanwhile, at less cost: then the wait is longer, of which
        // this replica knows what it was told.
        self.charged[identity].retain(|it| it.at >= since);
        let is_known = |it: &Charge| it.replica == replica && it.is_told;
        if !self.charged[identity].iter().all(is_known) {
            return;
        }
        let waits = [decision, &there].map(|it| it.shown().unwrap().wait);
        assert!(waits[0] >= waits[1], "sooner than it passes: {waits:?}");
        let late = waits[0].as_micros() - waits[1].as_micros();
        assert!(late <= 200 * MILLI || waits[0] == Micros::NEVER, "{late} us too late");
    }

    fn at_redis(&mut self, call: Call) {
        let Call { identity, cost, set, .. } = call;
        let (now, limits) = (ts(self.wall()), [enforced(set)]);
        let before = self.redis[identity].clone();
        let state = &mut self.redis[identity];
        let (decision, granted) = match &call.wish {
            Some(wish) => {
                let leased = lease(&mut One(state), &limits[0], cost, wish, now);
                let granted = (leased.tokens > 0).then_some((leased.tokens, leased.span));
                (leased.decision, granted)
            }
            None => (check(&mut One(state), &limits, cost, now), None),
        };
        if let Some(memory) = &self.memory {
            assert_eq!(memory.check(&plan(identity, set, cost), now), decision);
        }
        if decision.verdict == Verdict::Allow {
            let charge = Charge { at: self.now, replica: call.replica, is_told: false };
            self.charged[identity].push(charge);
        } else {
            self.count.denied += 1;
            self.hold_denial(before, &call, &decision);
        }
        self.newest[identity] = self.newest[identity].max(self.wall());
        let at = self.now + self.random.delay();
        let era = self.era;
        if self.loses && self.random.is_one_in(30) {
            // It was charged, and nobody knows: `on_failure: closed` refuses.
            self.count.lost += 1;
            return;
        }
        let charged = self.now;
        self.agenda.put(at, Event::Replied { call, decision, lease: granted, era, charged });
    }

    /// A denial changes nothing, and its request passes when its wait is over and no sooner.
    fn hold_denial(&mut self, mut before: State, call: &Call, decision: &Decision) {
        let Call { identity, cost, set, .. } = *call;
        let (wall, limits) = (self.wall(), [enforced(set)]);
        let mut after = self.redis[identity].clone();
        if wall >= self.newest[identity] {
            for later in [0, MILLI, SECOND, MINUTE, HOUR] {
                let at = ts(wall + later);
                let looks = [&mut before, &mut after].map(|it| peek(&mut One(it), &limits, 1, at));
                assert_eq!(looks[0], looks[1], "a denial has changed something");
            }
        }
        let wait = decision.shown().unwrap().wait;
        let years = 100 * 365 * 24 * HOUR;
        let verdict = |later| check(&mut One(&mut after.clone()), &limits, cost, ts(wall + later));
        if wait == Micros::NEVER {
            assert_eq!(verdict(years).verdict, Verdict::Deny);
            assert_eq!(decision.retry_after(), None);
            return;
        }
        let wait = wait.as_micros();
        assert_eq!(verdict(wait).verdict, Verdict::Allow, "it said {wait} us");
        assert_eq!(verdict(wait - 1).verdict, Verdict::Deny, "it said {wait} us");
        let seconds = decision.retry_after().unwrap();
        assert!(seconds * SECOND >= wait && (seconds - 1) * SECOND < wait);
    }

    fn replied(
        &mut self,
        call: Call,
        decision: &Decision,
        lease: Option<(u32, Micros)>,
        era: u64,
        charged: u64,
    ) {
        let Call { replica, identity, cost, set, sent, .. } = call;
        let now = self.instant(self.now);
        let is_same = self.sets[identity] == set;
        let own = &mut self.replicas[replica];
        if decision.verdict == Verdict::Deny {
            own.denials.note(&call.ticket, &plan(identity, set, cost), decision, now);
            return;
        }
        own.denials.charged(&plan(identity, set, cost).identity, decision.now, now);
        let is_it = |it: &&mut Charge| it.replica == replica && it.at == charged && !it.is_told;
        if let Some(charge) = self.charged[identity].iter_mut().find(is_it) {
            charge.is_told = true;
        }
        // It passed when Redis said so. Written down now, it is as late as its answer: leases that
        // were granted later may be spent sooner, so the time is that of the decision.
        let at = decision.now.as_micros();
        let is_settled = self.era == 0 || self.now >= self.changed + SETTLED;
        let place = (era == self.era && is_settled).then(|| {
            self.logs[identity].0.push(Some((at, cost)));
            self.logs[identity].0.len() - 1
        });
        self.count.passed += 1;
        if let Some((tokens, span)) = lease {
            self.count.leases += 1;
            let until = sent + span.as_micros();
            let grant = Grant::of_lease(decision, span);
            let lease = Lease { left: tokens - cost, until, grant, era, set };
            if own.leases[identity].is_none() && self.now < until && is_same {
                own.leases[identity] = Some(lease);
                let early = self.random.below(2 * span.as_micros());
                let at = until.min(self.now + early);
                self.agenda.put(at, Event::LeaseEnds { replica, identity });
            } else {
                self.end(replica, identity, lease);
            }
        } else if self.random.is_one_in(10) {
            // It did not reach its upstream.
            if let Some(place) = place {
                self.logs[identity].0[place] = None;
            }
            let grant = Grant::new(decision, 1).beside_leases();
            let at = self.now + self.random.below(2 * SECOND);
            self.agenda.put(at, Event::GiveBack { replica, identity, cost, set, grant, era });
        }
    }

    fn lease_ends(&mut self, replica: usize, identity: usize) {
        if let Some(lease) = self.replicas[replica].leases[identity].take() {
            self.end(replica, identity, lease);
        }
    }

    /// What is left of a lease goes back, unless its replica forgets it, or is no more.
    fn end(&mut self, replica: usize, identity: usize, lease: Lease) {
        let Lease { left: cost, grant, era, set, .. } = lease;
        if cost > 0 && !self.random.is_one_in(5) {
            let at = self.now + self.random.delay();
            self.agenda.put(at, Event::GiveBack { replica, identity, cost, set, grant, era });
        }
    }

    fn give_back(
        &mut self,
        replica: usize,
        identity: usize,
        cost: u32,
        set: LimitSet,
        grant: &Grant,
        era: u64,
    ) {
        // A clock that was set and has come past the grant again, and a rate that was raised, give
        // back too much: that is said where it is, and is no part of the promise.
        if era != self.era {
            return;
        }
        self.count.refunds += 1;
        refund(&mut One(&mut self.redis[identity]), &[enforced(set)], cost, grant);
        if let Some(memory) = &self.memory {
            memory.refund(&plan(identity, set, cost), grant, ts(self.wall()));
        }
        self.given_back[identity] = self.now;
        let at = self.now + self.random.delay();
        self.agenda.put(at, Event::GivenBack { replica, identity });
    }
}

#[test]
fn with_redis_no_limit_is_exceeded_waits_are_true_and_denials_are_free() {
    each_seed("with Redis", |seed| Exact::new(seed).run());
}

// -------------------------------------------------------------------------- Redis lost and found

/// Replicas that lose Redis all at once, and find it again one after the other. Callers do as they
/// did before: who changes his ways just then is what is left (`docs/failure-modes.md`).
struct Outage {
    random: Random,
    set: LimitSet,
    redis: State,
    owns: Vec<Own>,
    from: u64,
    to: u64,
    forgets: bool,
    back: Vec<u64>,
    has_charged: Vec<bool>,
    /// When Redis let something pass, and of when the newest is that each replica has heard of.
    granted: Vec<u64>,
    heard: Vec<u64>,
    log: Log,
    count: Count,
}

enum Way {
    Arrives { replica: usize },
    AtRedis { replica: usize },
    Replied { replica: usize, decision: Decision },
    Back { replica: usize },
}

impl Outage {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let replicas = 1 + random.below(6);
        let some = |count: u64| NonZeroU32::new(count as u32);
        let minute = some(60 + random.below(2_000));
        let hour = some(2 * u64::from(minute.unwrap().get()) + random.below(4_000));
        let hour = hour.filter(|_| random.is_one_in(2));
        let set = LimitSet { minute, hour, ..LimitSet::default() };
        let from = START + (70 + random.below(60)) * SECOND + random.below(SECOND);
        let to = from + (1 + random.below(90)) * SECOND;
        Outage {
            set,
            redis: State::default(),
            owns: (0..replicas).map(|_| Own::default()).collect(),
            from,
            to,
            forgets: random.is_one_in(4),
            back: (0..replicas).map(|_| to + random.below(2 * SECOND)).collect(),
            has_charged: vec![false; replicas as usize],
            granted: Vec::new(),
            heard: vec![START; replicas as usize],
            log: Log::default(),
            count: Count::default(),
            random,
        }
    }

    fn run(mut self) -> Count {
        let mut agenda = Agenda::new();
        let weights: Vec<u64> = self.owns.iter().map(|_| 1 + self.random.below(20)).collect();
        let load = [30, 90, 150, 400][self.random.below(4) as usize];
        let per_minute = u64::from(self.set.minute.unwrap().get()) * load / 100;
        let (mut at, pace) = (START, MINUTE / per_minute.max(1));
        while at < self.to + 70 * SECOND {
            at += self.random.below(2 * pace) + 1;
            let mut place = self.random.below(weights.iter().sum());
            let replica = weights.iter().position(|weight| {
                let is_it = place < *weight;
                place = place.wrapping_sub(*weight);
                is_it
            });
            agenda.put(at, Way::Arrives { replica: replica.unwrap() });
        }
        for replica in 0..self.owns.len() {
            agenda.put(self.back[replica], Way::Back { replica });
        }
        let settled = *self.back.iter().max().unwrap();
        while let Some((now, way)) = agenda.next() {
            let is_away = now >= self.from && now < settled;
            match way {
                Way::Arrives { replica } => {
                    self.count.requests += 1;
                    if is_away {
                        self.decide_alone(replica, now);
                    } else {
                        agenda.put(now + self.random.delay(), Way::AtRedis { replica });
                    }
                }
                // On its way when Redis went: nobody hears of it, and its replica decides.
                Way::AtRedis { replica } | Way::Replied { replica, .. } if is_away => {
                    self.count.lost += 1;
                    self.decide_alone(replica, now);
                }
                Way::AtRedis { replica } => {
                    let limits = [enforced(self.set)];
                    let decision = check(&mut One(&mut self.redis), &limits, 1, ts(now));
                    if now < self.from && decision.verdict == Verdict::Allow {
                        self.granted.push(now);
                    }
                    agenda.put(now + self.random.delay(), Way::Replied { replica, decision });
                }
                Way::Replied { replica, decision } => {
                    let passed = decision.verdict == Verdict::Allow;
                    let own = &mut self.owns[replica];
                    let charged = passed.then_some(1);
                    own.note(&self.set, decision.statuses().iter(), charged, decision.now);
                    if now < self.from {
                        self.heard[replica] = decision.now.as_micros();
                    }
                    self.decided(passed, decision.now.as_micros());
                }
                Way::Back { replica } => {
                    if self.forgets && !self.has_charged.contains(&true) {
                        self.redis = State::default();
                    }
                    self.has_charged[replica] = true;
                    self.charge(replica, self.forgets, now);
                }
            }
        }
        // What others were let have since its last answer a replica can only estimate.
        let oldest = *self.heard.iter().min().unwrap();
        let unheard = self.granted.iter().filter(|at| **at > oldest).count() as u64;
        let one_in_a_hundred = u64::from(self.set.minute.unwrap().get()).div_ceil(100);
        let over = self.log.hold_with(&self.set, unheard.min(one_in_a_hundred));
        self.count.over += u64::from(over > 0);
        self.count
    }

    fn decide_alone(&mut self, replica: usize, now: u64) {
        let alone = Alone { replicas: self.owns.len() as u32, since: ts(self.from) };
        let limits = [enforced(self.set)];
        let own = &mut OneOwn(&mut self.owns[replica]);
        let decision = share::check(own, &limits, 1, ts(now), alone);
        self.decided(decision.verdict == Verdict::Allow, now);
        if self.has_charged[replica] {
            self.charge(replica, false, now);
        }
    }

    fn charge(&mut self, replica: usize, all: bool, now: u64) {
        let own = &mut self.owns[replica];
        if own.has_debit(all) {
            let debit = own.take_debit(ts(now), all);
            own::charge(&mut self.redis, &self.set, &debit, ts(now));
        }
    }

    fn decided(&mut self, passed: bool, at: u64) {
        if passed {
            self.count.passed += 1;
            self.log.0.push(Some((at, 1)));
        } else {
            self.count.denied += 1;
        }
    }
}

#[test]
fn without_redis_replicas_together_let_no_more_pass_than_the_limit() {
    each_seed("without Redis", |seed| Outage::new(seed).run());
}

// ---------------------------------------------------------------------------- requests at once

/// How long Redis takes a place for held that it does not hear of, and how often it hears of it: as
/// in `src/store/redis/further.rs` and `places.rs`.
const PLACE_LEASE: u64 = 8 * SECOND;
const RENEWAL: u64 = 2_500 * MILLI;

/// Places in Redis, as `places.lua` and `check.lua` keep them: a count for each holder, never a
/// difference, and until when.
struct Places {
    random: Random,
    agenda: Agenda<Step>,
    limit: u64,
    redis: Vec<(u64, u64)>,
    holders: Vec<Holder>,
    /// Somebody came back after others may have had its places.
    cut_off: bool,
    count: Count,
}

#[derive(Clone, Copy, Default)]
struct Holder {
    /// Requests that run, and those that Redis is being asked for.
    expected: u64,
    running: u64,
    is_dead: bool,
    is_cut_off: bool,
    heard: u64,
}

#[derive(Clone, Copy)]
enum Step {
    Arrives { holder: usize },
    AtRedis { holder: usize },
    Replied { holder: usize, passed: bool },
    Ends { holder: usize },
    Renews { holder: usize },
    Told { holder: usize, count: u64 },
    Dies { holder: usize },
    CutOff { holder: usize, is_cut_off: bool },
}

impl Places {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let holders = 1 + random.below(8) as usize;
        let mut agenda = Agenda::new();
        let mut at = START;
        for _ in 0..1_500 {
            at += random.below(60 * MILLI);
            agenda.put(at, Step::Arrives { holder: random.below(holders as u64) as usize });
            if random.is_one_in(400) {
                agenda.put(at, Step::Dies { holder: random.below(holders as u64) as usize });
            }
            if random.is_one_in(400) {
                let holder = random.below(holders as u64) as usize;
                let back = at + random.below(20 * SECOND);
                agenda.put(at, Step::CutOff { holder, is_cut_off: true });
                agenda.put(back, Step::CutOff { holder, is_cut_off: false });
            }
        }
        for holder in 0..holders {
            agenda.put(START + random.below(RENEWAL), Step::Renews { holder });
        }
        Places {
            limit: 1 + random.below(30),
            redis: vec![(0, 0); holders],
            holders: vec![Holder { heard: START, ..Holder::default() }; holders],
            cut_off: false,
            count: Count::default(),
            agenda,
            random,
        }
    }

    fn run(mut self) -> Count {
        let end = START + 120 * SECOND;
        while let Some((now, step)) = self.agenda.next() {
            self.step(now, step);
            // Who was not heard of for the lease has lost its claim, though its requests go on.
            let is_known = |it: &&Holder| !it.is_dead && now < it.heard + PLACE_LEASE;
            let running: u64 = self.holders.iter().filter(is_known).map(|it| it.running).sum();
            assert!(running <= self.limit || self.cut_off, "{running} of {}", self.limit);
            if now > end {
                break;
            }
        }
        // Whoever has died, and whatever was lost: all are free in the end.
        let held = self.redis.iter().filter(|(_, until)| *until > end).map(|(count, _)| count);
        assert_eq!(held.sum::<u64>(), 0);
        self.count.over += u64::from(self.cut_off);
        self.count
    }

    fn step(&mut self, now: u64, step: Step) {
        match step {
            Step::Arrives { holder } => {
                let own = &mut self.holders[holder];
                self.count.requests += 1;
                if !own.is_dead && !own.is_cut_off {
                    own.expected += 1;
                    self.agenda.put(now + MILLI, Step::AtRedis { holder });
                }
            }
            Step::AtRedis { holder } => {
                let held = self.redis.iter().filter(|(_, until)| *until > now);
                let passed = held.map(|(count, _)| count).sum::<u64>() < self.limit;
                if passed {
                    let (count, until) = self.redis[holder];
                    let count = if until > now { count } else { 0 };
                    self.cut_off |= until <= now && self.holders[holder].running > 0;
                    self.redis[holder] = (count + 1, now + PLACE_LEASE);
                }
                self.agenda.put(now + MILLI, Step::Replied { holder, passed });
            }
            Step::Replied { holder, passed } => {
                let own = &mut self.holders[holder];
                if own.is_dead {
                    return;
                }
                if passed {
                    own.running += 1;
                    own.heard = own.heard.max(now - MILLI);
                    self.count.passed += 1;
                    let most = if self.random.is_one_in(20) { 30 } else { 2 };
                    let lasts = self.random.below(most);
                    let at = now + lasts * SECOND + self.random.below(SECOND);
                    self.agenda.put(at, Step::Ends { holder });
                } else {
                    own.expected -= 1;
                    self.count.denied += 1;
                }
            }
            Step::Ends { holder } => {
                let own = &mut self.holders[holder];
                own.running -= u64::from(!own.is_dead);
                own.expected -= u64::from(!own.is_dead);
                self.tell(holder, now);
            }
            Step::Renews { holder } => {
                self.agenda.put(now + RENEWAL, Step::Renews { holder });
                self.tell(holder, now);
            }
            Step::Told { holder, count } => {
                self.redis[holder] = (count, now + PLACE_LEASE);
                // Again after longer than the lease: others may have its places by then.
                self.cut_off |= count > 0 && now >= self.holders[holder].heard + PLACE_LEASE;
                self.holders[holder].heard = now;
            }
            Step::Dies { holder } => {
                // Its requests end with it; another process has another name.
                self.holders[holder].is_dead = true;
                (self.holders[holder].running, self.holders[holder].expected) = (0, 0);
            }
            Step::CutOff { holder, is_cut_off } => {
                self.holders[holder].is_cut_off = is_cut_off;
                self.tell(holder, now);
            }
        }
    }

    /// The count itself, which may get lost. On one connection what is said later comes later.
    fn tell(&mut self, holder: usize, now: u64) {
        let own = self.holders[holder];
        if own.is_dead || own.is_cut_off {
            return;
        }
        if self.random.is_one_in(10) {
            self.count.lost += 1;
            return;
        }
        self.agenda.put(now + MILLI, Step::Told { holder, count: own.expected });
    }
}

#[test]
fn places_are_never_more_than_there_are_and_all_come_back() {
    each_seed("places", |seed| Places::new(seed).run());
}
