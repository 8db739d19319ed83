//! The store in memory while millions of identities come and go: how long a check ever waits, and
//! what an idle identity takes. Measures, so it is left out of the usual run:
//! `tests/long.sh memory-churn`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tollgate::clock::monotonic;
use tollgate::limiter::check::Limits;
use tollgate::limiter::quota::{Bucket, LimitSet, Mode};
use tollgate::limiter::time::Timestamp;
use tollgate::policy::identity::Identity;
use tollgate::policy::plan::{Plan, Scope, TierId, TierSource};
use tollgate::store::memory::MemoryStore;

/// That of the binary.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const START: u64 = 1_700_000_000_000_000;

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|it| it.parse().ok()).unwrap_or(usual)
}

/// FREE, with or without its hour, so that identities are over after a minute or stay.
fn plan(user: u64, hour: Option<u32>) -> Plan<'static> {
    let some = |count| NonZeroU32::new(count).unwrap();
    let set = LimitSet {
        second: Some(Bucket { rate: some(5), burst: some(10) }),
        minute: NonZeroU32::new(100),
        hour: hour.and_then(NonZeroU32::new),
        ..LimitSet::default()
    };
    let user = Identity::User(user.to_string().into());
    let mut plan = Plan::new(user, TierId(0), TierSource::Default);
    let limits = Limits { set, mode: Mode::Enforce };
    plan.push(Scope { rule: None, key: "i", key_hash: 0, limits });
    plan
}

fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Prints what these came to, and gives the longest.
fn told(what: &str, mut took: Vec<u32>) -> Duration {
    took.sort_unstable();
    let place = |part: f64| {
        let index = ((took.len() - 1) as f64 * part) as usize;
        Duration::from_nanos(u64::from(took[index]))
    };
    let [median, high, longest] = [0.5, 0.9999, 1.0].map(place);
    println!("{what}: p50 {median:?}, p99.99 {high:?}, max {longest:?}");
    longest
}

#[test]
#[ignore = "takes minutes, and measures"]
fn no_check_waits_while_millions_come_and_go() {
    let all = number("MEMORY_CHURN_IDENTITIES", 10_000_000);
    let store = MemoryStore::new(all as usize);
    // A microsecond of the store's clock for each tenth of an identity: what came a minute ago,
    // six of ten, is over.
    let (clock, done) = (AtomicU64::new(START), AtomicU64::new(0));
    let at = |micros: u64| Timestamp::from_micros(micros);
    // The same on a store that nobody else uses: what longer waits than those are there for.
    let quiet = MemoryStore::new(10_000);
    let [took, control] = std::thread::scope(|scope| {
        scope.spawn(|| {
            for user in 0..all {
                let now = clock.fetch_add(10, Ordering::Relaxed);
                store.check(&plan(user, None), at(now));
                if user % 500 == 0 {
                    store.sweep(at(now), (user / 500) as usize % store.shards());
                }
            }
            done.store(1, Ordering::Release);
        });
        let mut took = [Vec::new(), Vec::new()];
        let mut user = 0_u64;
        while done.load(Ordering::Acquire) == 0 {
            user = user.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let plan = plan(all + (user >> 33) % 1_000, None);
            let now = at(clock.load(Ordering::Relaxed));
            for (store, took) in [&store, &quiet].into_iter().zip(&mut took) {
                let begun = monotonic();
                store.check(&plan, now);
                let elapsed = begun.elapsed();
                took.push(u32::try_from(elapsed.as_nanos()).unwrap_or(u32::MAX));
            }
        }
        took
    });
    println!("{all} identities, {} held at the end, {} checks", store.len(), took.len());
    let longest = told("while they come and go", took);
    told("on a quiet store beside it", control);
    let most = Duration::from_millis(number("MEMORY_CHURN_PAUSE_MS", 3));
    assert!(longest <= most, "{longest:?}");
}

#[test]
#[ignore = "takes a gigabyte, and measures"]
fn an_idle_identity_takes_at_most_128_bytes() {
    let all = number("MEMORY_CHURN_RESIDENT", 5_000_000);
    let store = MemoryStore::new(2 * all as usize);
    let before = resident();
    for user in 0..all {
        store.check(&plan(user, Some(1_000)), Timestamp::from_micros(START));
    }
    assert_eq!(store.len() as u64, all);
    let bytes = (resident() - before) as f64 / all as f64;
    println!("{all} idle identities: {bytes:.1} bytes each");
    assert!(bytes <= 128.0, "{bytes}");
}
