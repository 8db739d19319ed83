//! Several replicas that lose the store that they share, by the limiter's own arithmetic and a clock
//! that is passed in: before, while and after each decides alone, no window holds more than its
//! limit, and next to nothing is refused that would have passed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/redis.rs"]
mod redis;

use std::num::NonZeroU32;

use bytes::Bytes;
use tollgate::limiter::check::{self, Limits, State, States};
use tollgate::limiter::decision::{Decision, Verdict};
use tollgate::limiter::own::{self, Own};
use tollgate::limiter::quota::{Bucket, LimitSet, Mode};
use tollgate::limiter::share::{self, Alone, Owns};
use tollgate::limiter::time::Timestamp;
use tollgate::policy::identity::Identity;
use tollgate::policy::plan::{Plan, Scope, TierId, TierSource};
use tollgate::store::redis::codec::{Asker, Call, ReplyError, SCRIPT};
use tollgate::store::redis::names::KeyNames;

use redis::{RedisServer, Reply};

const SECOND: u64 = 1_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
/// No round number, so that sub-buckets begin anywhere.
const START: u64 = 1_700_000_017_345_678;

fn limits(second: Option<(u32, u32)>, minute: u32, hour: u32) -> Limits {
    let bucket = |(rate, burst)| Bucket {
        rate: NonZeroU32::new(rate).unwrap(),
        burst: NonZeroU32::new(burst).unwrap(),
    };
    let mut limits = Limits { set: LimitSet::default(), mode: Mode::Enforce };
    limits.set.second = second.map(bucket);
    limits.set.minute = NonZeroU32::new(minute);
    limits.set.hour = NonZeroU32::new(hour);
    limits
}

/// xorshift64: seeded, the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * u128::from(bound)) >> 64) as u64
    }

    /// Exponentially distributed, of this mean.
    fn pause(&mut self, mean: u64) -> u64 {
        let uniform = (self.below(1 << 53) as f64 + 1.0) / (1_u64 << 53) as f64;
        (-uniform.ln() * mean as f64) as u64
    }
}

/// A request: when, and at which replica.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    at: u64,
    replica: usize,
}

/// Requests at `per_second` on average for so long, spread over replicas by `weights`.
fn traffic(random: &mut Random, per_second: f64, micros: u64, weights: &[u64]) -> Vec<Arrival> {
    let mean = (1e6 / per_second) as u64;
    let whole = weights.iter().sum();
    let (mut arrivals, mut at) = (Vec::new(), START);
    loop {
        at += random.pause(mean);
        if at >= START + micros {
            return arrivals;
        }
        let mut place = random.below(whole);
        let is_it = |weight: &u64| {
            let found = place < *weight;
            place = place.wrapping_sub(*weight);
            found
        };
        arrivals.push(Arrival { at, replica: weights.iter().position(is_it).unwrap() });
    }
}

struct One<'s>(&'s mut State);

impl States for One<'_> {
    fn state(&mut self, _index: usize) -> &mut State {
        self.0
    }
}

struct OneOwn<'s>(&'s mut Own);

impl Owns for OneOwn<'_> {
    fn own(&mut self, _index: usize) -> &mut Own {
        self.0
    }
}

/// What happens to the store.
#[derive(Clone, Copy, Debug)]
struct Outage {
    from: u64,
    to: u64,
    /// Whether it has lost everything when it is back.
    forgets: bool,
}

/// The store, and the replicas before it.
struct World {
    limits: Limits,
    store: State,
    replicas: Vec<Own>,
    outage: Option<Outage>,
    /// When each replica has found the store again.
    back: Vec<u64>,
    has_charged: Vec<bool>,
    admitted: Vec<(u64, usize)>,
}

impl World {
    fn new(limits: Limits, replicas: usize, outage: Option<Outage>, random: &mut Random) -> Self {
        let to = outage.map_or(0, |it| it.to);
        World {
            limits,
            store: State::default(),
            replicas: (0..replicas).map(|_| Own::default()).collect(),
            outage,
            back: (0..replicas).map(|_| to + random.below(2 * SECOND)).collect(),
            has_charged: vec![false; replicas],
            admitted: Vec::new(),
        }
    }

    fn alone(&self) -> Alone {
        let since = self.outage.map_or(0, |it| it.from);
        Alone { replicas: self.replicas.len() as u32, since: Timestamp::from_micros(since) }
    }

    /// Replicas that have found the store again tell it what they let pass.
    fn recover(&mut self, now: u64) {
        let Some(outage) = self.outage else { return };
        for index in 0..self.replicas.len() {
            if now >= self.back[index] && !self.has_charged[index] {
                self.has_charged[index] = true;
                self.charge(index, outage.forgets, self.back[index]);
            }
        }
    }

    fn charge(&mut self, index: usize, all: bool, now: u64) {
        let now = Timestamp::from_micros(now);
        if self.replicas[index].has_debit(all) {
            let debit = self.replicas[index].take_debit(now, all);
            own::charge(&mut self.store, &self.limits.set, &debit, now);
        }
    }

    fn request(&mut self, arrival: Arrival) -> Decision {
        let Arrival { at: now, replica } = arrival;
        let at = Timestamp::from_micros(now);
        let settled = self.back.iter().max().copied().unwrap_or_default();
        if self
            .outage
            .is_some_and(|it| now >= it.to && it.forgets && !self.has_charged.contains(&true))
        {
            self.store = State::default();
        }
        self.recover(now);
        let is_alone = self.outage.is_some_and(|it| now >= it.from && now < settled);
        let alone = self.alone();
        let own = &mut self.replicas[replica];
        let decision = if is_alone {
            let decision = share::check(&mut OneOwn(own), &[self.limits], 1, at, alone);
            if self.has_charged[replica] {
                self.charge(replica, false, now);
            }
            decision
        } else {
            let decision = check::check(&mut One(&mut self.store), &[self.limits], 1, at);
            let charged = (decision.verdict == Verdict::Allow).then_some(1);
            own.note(&self.limits.set, decision.statuses().iter(), charged, decision.now);
            decision
        };
        if decision.verdict == Verdict::Allow {
            self.admitted.push((now, replica));
        }
        decision
    }

    /// The most that any window of this length held.
    fn most_in(&self, length: u64) -> usize {
        let mut first = 0;
        let mut most = 0;
        for (index, (at, _)) in self.admitted.iter().enumerate() {
            while self.admitted[first].0 + length <= *at {
                first += 1;
            }
            most = most.max(index - first + 1);
        }
        most
    }

    /// The most that the bucket was ever in debt, in tokens.
    fn most_debt(&self, bucket: Bucket) -> f64 {
        let (mut debt, mut last, mut most) = (0.0_f64, 0, 0.0_f64);
        for (at, _) in &self.admitted {
            let paid = (at - last) as f64 / 1e6 * f64::from(bucket.rate.get());
            debt = (debt - paid).max(0.0) + 1.0;
            last = *at;
            most = most.max(debt);
        }
        most
    }
}

/// What a run came to.
#[derive(Debug)]
struct Outcome {
    /// The most that was held of the limits, in parts of them: bucket, minute, hour.
    most: [f64; 3],
    /// What was admitted from the outage's begin to a minute after its end, in parts of what would
    /// have been.
    admitted: f64,
}

fn run(
    limits: Limits,
    arrivals: &[Arrival],
    replicas: usize,
    outage: Outage,
    random: &mut Random,
) -> Outcome {
    let mut with = World::new(limits, replicas, Some(outage), random);
    let mut without = World::new(limits, replicas, None, random);
    for arrival in arrivals {
        with.request(*arrival);
        without.request(*arrival);
    }
    let counted = |world: &World| {
        let is_in = |it: &&(u64, usize)| it.0 >= outage.from && it.0 < outage.to + MINUTE;
        world.admitted.iter().filter(is_in).count() as f64
    };
    let set = limits.set;
    let part = |most: f64, limit: u32| most / f64::from(limit);
    let window = |length, limit: Option<NonZeroU32>| {
        limit.map_or(0.0, |it| part(with.most_in(length) as f64, it.get()))
    };
    Outcome {
        most: [
            set.second.map_or(0.0, |it| part(with.most_debt(it), it.burst.get())),
            window(MINUTE, set.minute),
            window(HOUR, set.hour),
        ],
        admitted: counted(&with) / counted(&without).max(1.0),
    }
}

/// Limits, spreads over replicas, and requests in parts of what the limits let pass.
const SPREADS: [&[u64]; 4] = [&[1], &[1, 1, 1, 1], &[50, 25, 15, 10], &[97, 1, 1, 1]];
const LOADS: [f64; 4] = [0.5, 0.95, 1.5, 3.0];

/// Name, limits, and requests a second that they let pass.
fn sets() -> [(&'static str, Limits, f64); 4] {
    [
        ("5/s b10, 100/min, 1000/h", limits(Some((5, 10)), 100, 1_000), 1.6),
        ("20/s b40, 1000/min", limits(Some((20, 40)), 1_000, 20_000), 16.0),
        ("1000/min", limits(None, 1_000, 0), 16.0),
        ("20/s b40", limits(Some((20, 40)), 0, 0), 20.0),
    ]
}

/// The outcome of each seed: an outage of a minute, `before` seconds after the first request.
fn runs(
    (limits, capacity): (Limits, f64),
    weights: &[u64],
    load: f64,
    (before, forgets): (u64, bool),
    seeds: u64,
) -> Vec<Outcome> {
    let run = |seed: u64| {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let outage = Outage {
            from: START + before * SECOND + random.below(SECOND),
            to: START + (before + 60) * SECOND + random.below(SECOND),
            forgets,
        };
        let span = (before + 60 + 70) * SECOND;
        let arrivals = traffic(&mut random, load * capacity, span, weights);
        run(limits, &arrivals, weights.len(), outage, &mut random)
    };
    (1..=seeds).map(run).collect()
}

#[test]
fn no_window_holds_more_than_the_limit_and_little_is_lost() {
    for (name, limits, capacity) in sets() {
        for (index, weights) in SPREADS.into_iter().enumerate() {
            for load in LOADS {
                let forgets = load > 2.0;
                let outcomes = runs((limits, capacity), weights, load, (130, forgets), 4);
                let case = format!("{name}, {weights:?}, load {load}: {outcomes:?}");
                let slack = match (index, limits.set.minute) {
                    (0, _) => 0.0,
                    // What others did between a replica's last answer and the outage is an estimate.
                    (_, Some(minute)) => 2.0 / f64::from(minute.get()),
                    (_, None) => 0.0,
                };
                for outcome in &outcomes {
                    assert!(outcome.most.iter().all(|most| *most <= 1.0 + slack), "{case}");
                }
                let admitted: f64 = outcomes.iter().map(|it| it.admitted).sum();
                let least = if capacity < 2.0 { 0.86 } else { 0.96 };
                assert!(admitted / outcomes.len() as f64 >= least, "{case}");
            }
        }
    }
}

/// `cargo test --test share table -- --ignored --nocapture`
#[test]
#[ignore = "a table to look at"]
fn table() {
    for (name, limits, capacity) in sets() {
        for weights in SPREADS {
            for load in LOADS {
                for (before, forgets) in [(20, false), (200, false), (200, true)] {
                    let outcomes = runs((limits, capacity), weights, load, (before, forgets), 6);
                    let most = |index: usize| {
                        outcomes.iter().map(|it| it.most[index]).fold(0.0, f64::max) * 100.0
                    };
                    let admitted: f64 = outcomes.iter().map(|it| it.admitted).sum();
                    println!(
                        "{name:25} {weights:?} load {load}, {before} s, empty {forgets}: most \
                         {:.1} {:.1} {:.1} %, admitted {:.1} %",
                        most(0),
                        most(1),
                        most(2),
                        admitted * 100.0 / outcomes.len() as f64
                    );
                }
            }
        }
    }
}

/// What the limiter says of charges, the script says too.
#[test]
fn the_script_charges_as_the_law_does() {
    let Some(server) = RedisServer::spawn() else { return };
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for round in 0..60_u32 {
        let key = Bytes::from(format!("tg:{{{round}}}:i"));
        let second = (random.below(3) > 0).then(|| (1 + random.below(9) as u32, 50));
        let limits = limits(second, random.below(2) as u32 * 300, random.below(2) as u32 * 900);
        let mut state = State::default();
        for step in 0..12_u32 {
            let now = server_time(&server);
            if random.below(2) == 0 {
                let call = check_call(&key, limits, 1 + random.below(4) as u32, step);
                let reply = eval(&server, &call);
                let decision = call.ticket.decode_of([limits].into_iter(), &reply).unwrap();
                let cost = u32::from_le_bytes(call.argument[12..16].try_into().unwrap());
                let law = check::check(&mut One(&mut state), &[limits], cost, decision.now);
                assert_eq!(decision, law, "round {round}, step {step}");
                continue;
            }
            let rate = second.map_or(0, |(rate, _)| rate);
            let mut debit = own::Debit { rate, ..own::Debit::default() };
            if second.is_some() {
                debit.tokens = random.below(20_000_000);
                debit.level = random.below(20_000_000);
            }
            for (index, length) in [SECOND, MINUTE].into_iter().enumerate() {
                let number = now.as_micros() / length;
                for _ in 0..random.below(5) {
                    debit.windows[index]
                        .push((number - random.below(66), random.below(9) as u32 + 1));
                }
            }
            let call = Call::charge(vec![key.clone()], &debit, now, None, asker(step));
            let at = call.ticket.decode_charge(&eval(&server, &call)).unwrap();
            // The very ages that were sent, at the time that it was done.
            let ages = debit.ages(now);
            for (index, length) in [SECOND, MINUTE].into_iter().enumerate() {
                let current = (at.as_micros() - 50_000) / length;
                let numbers =
                    ages[index].iter().map(|(age, count)| (current - u64::from(*age), *count));
                debit.windows[index] = numbers.collect();
            }
            own::charge(&mut state, &limits.set, &debit, at);
        }
        let Reply::Integer(ttl) = server.command(&[b"PTTL", &key]) else { panic!() };
        assert!(ttl != -1, "it stays for ever");
    }
    let late = Call::charge(
        vec!["tg:{late}:i".into()],
        &own::Debit::default(),
        Timestamp::EPOCH,
        Some(Timestamp::from_micros(1)),
        asker(7),
    );
    assert!(matches!(
        late.ticket.decode_charge(&eval(&server, &late)),
        Err(ReplyError::TooLate(_))
    ));
    assert_eq!(server.command(&[b"EXISTS", b"tg:{late}:i"]), Reply::Integer(0));
}

fn server_time(server: &RedisServer) -> Timestamp {
    let Reply::List(parts) = server.words("TIME") else { panic!() };
    let number = |reply: &Reply| -> u64 {
        let Reply::Text(text) = reply else { panic!() };
        String::from_utf8_lossy(text).parse().unwrap()
    };
    Timestamp::from_micros(number(&parts[0]) * SECOND + number(&parts[1]))
}

fn asker(sequence: u32) -> Asker {
    Asker { holder: 1, sequence }
}

fn check_call(key: &Bytes, limits: Limits, cost: u32, sequence: u32) -> Call {
    let mut plan = Plan::new(Identity::User("42".into()), TierId(0), TierSource::Default);
    plan.cost = cost;
    plan.push(Scope { rule: None, key: "i", key_hash: 1, limits });
    let call = Call::new(&KeyNames::new("tg"), &plan, None, asker(sequence));
    Call { keys: vec![key.clone()], ..call }
}

fn eval(server: &RedisServer, call: &Call) -> Vec<u8> {
    let mut words: Vec<&[u8]> =
        vec![b"EVAL", SCRIPT.as_bytes(), b"1", &call.keys[0], &call.argument];
    if let Some(counts) = &call.counts {
        words.extend([&counts[..], b"charge"]);
    }
    match server.command(&words) {
        Reply::Text(reply) => reply,
        other => panic!("{other:?}"),
    }
}
