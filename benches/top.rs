//! What one request costs the counters of top talkers, and what a look at them costs.
//! `cargo bench --bench top`.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tollgate::clock::monotonic;
use tollgate::policy::identity::{Identity, IpPrefix, PrefixLengths};
use tollgate::top::talkers::{By, Reporter, TopTalkers};

const EVENTS: usize = 10_000;
const ROUNDS: usize = 200;

fn main() {
    println!("ns per request, best of {ROUNDS} rounds of {EVENTS}");
    let addresses = |count: usize| -> Vec<Identity> { (0..count).map(address).collect() };
    let users: Vec<Identity> =
        (0..50).map(|it| Identity::User(format!("user-{it:032}").into())).collect();
    for (name, identities, is_blocked) in [
        ("one caller", addresses(1), false),
        ("50 callers, by address", addresses(50), false),
        ("50 callers, by token", users, false),
        ("50 callers, all refused", addresses(50), true),
        ("1,000,000 callers in turn", addresses(1_000_000), false),
        ("1,000,000 callers in turn, all refused", addresses(1_000_000), true),
    ] {
        println!("{name:<42} {:>7.1}", record(&identities, is_blocked));
    }
    for (name, minutes) in [("a look at 5 minutes", 5), ("a look at 60 minutes", 60)] {
        println!("{name:<42} {:>7.0} us", look(minutes) / 1_000.0);
    }
}

fn address(number: usize) -> Identity {
    let bits = u32::try_from(number).unwrap_or(0).wrapping_mul(2_654_435_761);
    Identity::Ip(IpPrefix::new(Ipv4Addr::from_bits(bits).into(), PrefixLengths::default()))
}

fn record(identities: &[Identity], is_blocked: bool) -> f64 {
    let talkers = Arc::new(TopTalkers::new(1, monotonic()));
    let worker = Reporter::new(talkers, 0);
    let mut turn = identities.iter().cycle();
    best(EVENTS, || {
        for identity in turn.by_ref().take(EVENTS) {
            worker.record(black_box(identity), is_blocked);
        }
    })
}

/// Every minute full, with identities of its own.
fn look(minutes: u64) -> f64 {
    let start = monotonic();
    let talkers = Arc::new(TopTalkers::new(2, start));
    let workers = [0, 1].map(|worker| Reporter::new(Arc::clone(&talkers), worker));
    let at = |minute: u64| start + Duration::from_secs(minute * 60);
    for minute in 0..=60 {
        for (index, worker) in workers.iter().enumerate() {
            worker.tick(at(minute));
            for number in 0..1_000 {
                let number = number + 1_000 * (index + 2 * usize::try_from(minute).unwrap_or(0));
                worker.record(&address(number), false);
            }
        }
        talkers.collect(at(minute));
    }
    best(1, || {
        black_box(talkers.top(By::Requests, minutes, 20, at(60)));
    })
}

/// The best round's time of one of its steps, in nanoseconds.
fn best(steps: usize, mut round: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let started = monotonic();
        round();
        let took = monotonic().saturating_duration_since(started);
        best = best.min(took.as_nanos() as f64 / steps as f64);
    }
    best
}
