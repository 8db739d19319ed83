//! Several replicas that lose the store that they share, by the limiter's own arithmetic and a clock
//! that is passed in: before, while and after each decides alone, no window holds more than its
//! limit, and next to nothing is refused that would have passed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::num::NonZeroU32;

use tollgate::limiter::check::{self, Limits, State, States};
use tollgate::limiter::decision::{Decision, Verdict};
use tollgate::limiter::quota::{Bucket, LimitSet, Mode};
use tollgate::limiter::share::{self, Alone, Own, Owns};
use tollgate::limiter::time::Timestamp;

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
        Alone {
            replicas: self.replicas.len() as u32,
            since: Timestamp::from_micros(since),
            started: Timestamp::from_micros(START - HOUR),
        }
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
            share::charge(&mut self.store, &self.limits.set, &debit, now);
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

#[test]
#[ignore = "a table to look at"]
fn table() {
    let sets = [
        ("5/s b10, 100/m, 1000/h", limits(Some((5, 10)), 100, 1_000), 1.0),
        ("20/s b40, 1000/m", limits(Some((20, 40)), 1_000, 20_000), 16.0),
        ("1000/m", limits(None, 1_000, 0), 16.0),
        ("100/s b200", limits(Some((100, 200)), 0, 0), 100.0),
        ("100/s b200 6000/m", limits(Some((100, 200)), 6_000, 0), 100.0),
    ];
    let spreads: [(&str, &[u64]); 4] = [
        ("one", &[1]),
        ("even 4", &[1, 1, 1, 1]),
        ("50/25/15/10", &[50, 25, 15, 10]),
        ("97/1/1/1", &[97, 1, 1, 1]),
    ];
    for (name, limits, capacity) in sets {
        for (spread, weights) in spreads {
            for load in [0.5, 0.95, 1.5, 3.0] {
                for (before, forgets) in [(20, false), (200, load > 2.0)] {
                    let mut most = [0.0_f64; 3];
                    let (mut admitted, mut least) = (0.0, 2.0_f64);
                    let runs = 6;
                    for seed in 1..=runs {
                        let seed: u64 = seed;
                        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                        let outage = Outage {
                            from: START + before * SECOND + random.below(SECOND),
                            to: START + (before + 60) * SECOND + random.below(SECOND),
                            forgets,
                        };
                        let span = (before + 60 + 120) * SECOND;
                        let arrivals = traffic(&mut random, load * capacity, span, weights);
                        let outcome = run(limits, &arrivals, weights.len(), outage, &mut random);
                        for (most, it) in most.iter_mut().zip(outcome.most) {
                            *most = most.max(it);
                        }
                        admitted += outcome.admitted / runs as f64;
                        least = least.min(outcome.admitted);
                    }
                    println!(
                        "{name:22} {spread:12} load {load:4} after {before:3} s, empty {forgets:5}: \
                         most {:5.1}% {:5.1}% {:5.1}%  admitted {:5.1}% (least {:5.1}%)",
                        most[0] * 100.0,
                        most[1] * 100.0,
                        most[2] * 100.0,
                        admitted * 100.0,
                        least * 100.0
                    );
                }
            }
        }
    }
}
