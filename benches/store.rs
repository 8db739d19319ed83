//! What a check costs in the store in memory: nanoseconds, bytes per identity, longest pause.
//!
//! `cargo bench --bench store` prints one line for each; `-- small` leaves ten million identities
//! out, and a case's name runs that case alone. Times are the thread's own on the processor, so that others on the machine cost cache
//! lines but no waits; nothing is pinned.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tollgate::limiter::check::Limits;
use tollgate::limiter::decision::Verdict;
use tollgate::limiter::quota::{Bucket, LimitSet, Mode};
use tollgate::limiter::time::Timestamp;
use tollgate::policy::identity::{Identity, IpPrefix, PrefixLengths};
use tollgate::policy::plan::{Plan, Scope, TierId, TierSource};
use tollgate::store::memory::MemoryStore;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// 2026-01-01T00:00:00Z.
const START_US: u64 = 1_767_225_600_000_000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let cases: &[(&str, fn())] = &[
        ("memory", memory),
        ("hot", hot),
        ("denied", denied),
        ("1M", || identities(1_000_000)),
        ("10M", || identities(10_000_000)),
        ("full", || every_sub_bucket(100_000)),
        ("threads", two_threads),
    ];
    if let Some((_, case)) = cases.iter().find(|(name, _)| args.iter().any(|arg| arg == name)) {
        return case();
    }
    println!("machine not reserved, threads not pinned: read every time as an upper bound");
    let is_small = args.iter().any(|arg| arg == "small");
    let myself = std::env::current_exe().expect("a process knows its file");
    for (name, _) in cases.iter().filter(|(name, _)| !(is_small && *name == "10M")) {
        // A process for each, so that none finds memory that another has left.
        let status = std::process::Command::new(&myself).arg(name).status();
        assert!(status.is_ok_and(|status| status.success()), "{name}");
    }
}

fn hot() {
    let store = MemoryStore::new(1_000_000);
    let mut plan = plan(free(), 1);
    plan.identity = address(7);
    let mut now = START_US;
    // Four a second for 25 seconds, then a pause until everything is whole: all allowed.
    let keys = std::hash::RandomState::new();
    report("for scale: the keyed hash of an address", 5_000_000, |_| {
        std::hint::black_box(std::hash::BuildHasher::hash_one(&keys, &plan.identity));
    });
    report("hot identity, FREE, paced", 5_000_000, |step| {
        now += if step % 100 == 0 { 3_700_000_000 } else { 250_000 };
        assert!(store.check(&plan, Timestamp::from_micros(now)).verdict == Verdict::Allow);
    });
    let mut plan = self::plan(internal(), 1);
    plan.identity = address(8);
    report("hot identity, INTERNAL, 500/s", 5_000_000, |_| {
        now += 8_000;
        store.check(&plan, Timestamp::from_micros(now));
    });
    let mut plan = self::plan(free(), 2);
    plan.identity = address(9);
    report("hot identity, FREE and a rule", 5_000_000, |step| {
        now += if step % 100 == 0 { 3_700_000_000 } else { 250_000 };
        store.check(&plan, Timestamp::from_micros(now));
    });
}

fn denied() {
    let store = MemoryStore::new(1_000_000);
    let mut plan = plan(free(), 1);
    plan.identity = address(7);
    let mut now = START_US;
    for _ in 0..100 {
        now += 250_000;
        store.check(&plan, Timestamp::from_micros(now));
    }
    report("denial, hot identity", 5_000_000, |_| {
        now += 1;
        assert!(store.check(&plan, Timestamp::from_micros(now)).verdict == Verdict::Deny);
    });
}

fn identities(count: u32) {
    let millions = count / 1_000_000;
    let mut plan = plan(free(), 1);
    let now = Timestamp::from_micros(START_US);
    let before = resident_bytes();
    let store = MemoryStore::new(count as usize);
    let started = on_processor();
    for id in 0..count {
        plan.identity = address(id);
        store.check(&plan, now);
    }
    line(&format!("{millions} M: insert"), started, count);
    let bytes = resident_bytes().saturating_sub(before);
    println!(
        "{:<44}{:>9.1} B",
        format!("{millions} M: resident per identity"),
        bytes as f64 / f64::from(count)
    );
    assert_eq!((store.len(), store.evictions()), (count as usize, 0));

    let mut random = Random(1);
    report(&format!("{millions} M: uniform random"), 5_000_000, |step| {
        plan.identity = address(random.below(count));
        store.check(&plan, Timestamp::from_micros(START_US + u64::from(step)));
    });
    let mut longest = 0;
    let fresh = MemoryStore::new(count as usize);
    let started = on_processor();
    for id in 0..count {
        plan.identity = address(id);
        let begun = on_processor();
        fresh.check(&plan, now);
        longest = longest.max((on_processor() - begun).as_micros());
    }
    line(&format!("{millions} M: insert, each one timed"), started, count);
    println!("{:<44}{longest:>9} us", format!("{millions} M: longest insert"));
    let later = Timestamp::from_micros(START_US + 3_800_000_000);
    let started = on_processor();
    let mut longest = 0;
    while !store.is_empty() {
        for shard in 0..store.shards() {
            let begun = on_processor();
            store.sweep(later, shard);
            longest = longest.max((on_processor() - begun).as_micros());
        }
    }
    line(&format!("{millions} M: sweep, all expired"), started, count);
    println!("{:<44}{longest:>9} us", format!("{millions} M: longest sweep"));
}

/// What the machine asks for one read of memory that no cache holds, with nothing else to do.
fn memory() {
    const WORDS: u32 = 32 << 20;
    let mut random = Random(1);
    let words: Vec<u32> = (0..WORDS).map(|_| random.below(WORDS)).collect();
    let mut at = 0;
    report("for scale: a dependent read within 128 MiB", 5_000_000, |step| {
        at = words.get(at as usize).copied().unwrap_or(0) ^ (step & 0xff);
    });
    std::hint::black_box(at);
}

fn every_sub_bucket(count: u32) {
    let mut plan = plan(internal(), 1);
    let before = resident_bytes();
    let store = MemoryStore::new(count as usize);
    let minutes = (0..61).map(|minute| START_US + minute * 60_000_000);
    let seconds = (0..61).map(|second| START_US + 3_600_000_000 + second * 1_000_000);
    for at in minutes.chain(seconds) {
        for id in 0..count {
            plan.identity = address(id);
            store.check(&plan, Timestamp::from_micros(at));
        }
    }
    let bytes = resident_bytes().saturating_sub(before);
    println!("{:<44}{:>9.1} B", "every sub-bucket used: resident", bytes as f64 / f64::from(count));
    let mut random = Random(1);
    report("every sub-bucket used: uniform random", 2_000_000, |step| {
        plan.identity = address(random.below(count));
        let at = START_US + 3_661_000_000 + u64::from(step);
        store.check(&plan, Timestamp::from_micros(at));
    });
}

fn two_threads() {
    const EACH: u32 = 5_000_000;
    let store = MemoryStore::new(1_000_000);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let store = &store;
            scope.spawn(move || {
                let mut plan = plan(free(), 1);
                let mut random = Random(u64::from(thread) + 1);
                report("one of 2 threads, 50 k identities each", EACH, |step| {
                    plan.identity = address(thread * 50_000 + random.below(50_000));
                    store.check(&plan, Timestamp::from_micros(START_US + u64::from(step)));
                });
            });
        }
    });
}

fn report(what: &str, count: u32, mut body: impl FnMut(u32)) {
    for step in 0..1000 {
        body(step);
    }
    let started = on_processor();
    for step in 0..count {
        body(step);
    }
    line(what, started, count);
}

fn line(what: &str, started: Duration, count: u32) {
    let each = (on_processor() - started).as_secs_f64() * 1e9 / f64::from(count);
    println!("{what:<44}{each:>9.1} ns");
}

fn plan(set: LimitSet, scopes: u8) -> Plan<'static> {
    let mut plan = Plan::new(address(0), TierId(0), TierSource::Default);
    for index in 0..scopes {
        let limits = Limits { set, mode: Mode::Enforce };
        let key_hash = 0xcbf2_9ce4_8422_2325_u64.wrapping_mul(u64::from(index) + 1);
        plan.push(Scope { rule: None, key: "i", key_hash, limits });
    }
    plan
}

fn free() -> LimitSet {
    limits(5, 10, 100, 1000)
}

fn internal() -> LimitSet {
    limits(1000, 2000, 30_000, 500_000)
}

fn limits(rate: u32, burst: u32, minute: u32, hour: u32) -> LimitSet {
    let bucket = |rate, burst| Some(Bucket { rate, burst });
    LimitSet {
        second: NonZeroU32::new(rate)
            .zip(NonZeroU32::new(burst))
            .and_then(|(rate, burst)| bucket(rate, burst)),
        minute: NonZeroU32::new(minute),
        hour: NonZeroU32::new(hour),
        ..LimitSet::default()
    }
}

fn address(id: u32) -> Identity {
    Identity::Ip(IpPrefix::new(IpAddr::V4(Ipv4Addr::from_bits(id)), PrefixLengths::default()))
}

/// xorshift64: the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (((self.0 >> 32) * u64::from(bound)) >> 32) as u32
    }
}

/// Time that this thread has spent on a processor.
fn on_processor() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
