//! What a check costs Redis, in CPU time and in bytes, beside the least that anything costs there.
//! Not a test but a measurement: `tests/long.sh redis-cost`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/redis.rs"]
mod redis;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tollgate::clock::monotonic;
use tollgate::limiter::check::Limits;
use tollgate::limiter::quota::{Bucket, LimitSet, Mode};
use tollgate::limiter::time::Timestamp;
use tollgate::policy::identity::Identity;
use tollgate::policy::plan::{Plan, Scope, TierId, TierSource};
use tollgate::store::memory::MemoryStore;
use tollgate::store::redis::codec::{Asker, Call, SCRIPT};
use tollgate::store::redis::names::KeyNames;
use tollgate::store::redis::settings::RedisSettings;
use tollgate::store::redis::{RedisShared, RedisStore};

use redis::{RedisServer, Reply};

const CALLS: usize = 10_000;
const ROUNDS: usize = 9;
const START: u64 = 1_700_000_000_000_000;

type Command = Vec<Vec<u8>>;

fn set(rate: u32, burst: u32, minute: u32, hour: u32) -> LimitSet {
    let second = NonZeroU32::new(rate)
        .zip(NonZeroU32::new(burst))
        .map(|(rate, burst)| Bucket { rate, burst });
    LimitSet {
        second,
        minute: NonZeroU32::new(minute),
        hour: NonZeroU32::new(hour),
        ..LimitSet::default()
    }
}

fn free() -> LimitSet {
    set(5, 10, 100, 1_000)
}

fn plan(user: usize, sets: &[LimitSet]) -> Plan<'static> {
    let user = Identity::User(user.to_string().into());
    let mut plan = Plan::new(user, TierId(0), TierSource::Default);
    for (key, set) in ["i", "e:reports"].into_iter().zip(sets) {
        let limits = Limits { set: *set, mode: Mode::Enforce };
        plan.push(Scope { rule: None, key, key_hash: 0, limits });
    }
    plan
}

fn call(sha: &[u8], user: usize, sets: &[LimitSet], now: Option<u64>) -> Command {
    let call = Call::new(
        &KeyNames::new("tg"),
        &plan(user, sets),
        now.map(Timestamp::from_micros),
        Asker { holder: 1, sequence: 7 },
    );
    let keys = call.keys.len().to_string().into_bytes();
    let mut command = vec![b"EVALSHA".to_vec(), sha.to_vec(), keys];
    command.extend(call.keys.iter().map(|key| key.to_vec()));
    command.push(call.argument.to_vec());
    command.extend(call.how.map(|how| how.to_vec()));
    command
}

fn load(server: &RedisServer, script: &str) -> Vec<u8> {
    match server.command(&[b"SCRIPT", b"LOAD", script.as_bytes()]) {
        Reply::Text(sha) => sha,
        other => panic!("{other:?}"),
    }
}

/// CPU time that the server has used in user mode, in microseconds.
fn cpu_us(server: &RedisServer) -> f64 {
    let Reply::Text(info) = server.words("INFO cpu") else { panic!("no INFO") };
    let info = String::from_utf8(info).unwrap();
    let field = |name: &str| {
        info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok())
    };
    field("used_cpu_user_main_thread:").or_else(|| field("used_cpu_user:")).unwrap() * 1e6
}

/// The least that anybody could write for three limits: plain token buckets in one packed value,
/// with the time of the server, all or nothing; no windows, no report, no shadow, no end of its own
/// but a minute.
const THREE_BUCKETS: &str = "
local raw, time = redis.call('GET', KEYS[1]), redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local last, a, b, c = now, 10, 100, 1000
if raw then last, a, b, c = struct.unpack('<dddd', raw) end
local passed = (now - last) / 1000000
a = math.min(10, a + passed * 5)
b = math.min(100, b + passed * 100 / 60)
c = math.min(1000, c + passed * 1000 / 3600)
if a < 1 or b < 1 or c < 1 then return {0, math.floor(a), math.floor(b), math.floor(c)} end
redis.call('SET', KEYS[1], struct.pack('<dddd', now, a - 1, b - 1, c - 1), 'PX', 60000)
return {1, math.floor(a - 1), math.floor(b - 1), math.floor(c - 1)}
";

#[test]
#[ignore = "a measurement"]
fn cost() {
    let Some(server) = RedisServer::spawn() else { return };
    let check = load(&server, SCRIPT);
    let empty = load(&server, "return 1");
    let buckets = load(&server, THREE_BUCKETS);
    let of = |count: usize, make: &dyn Fn(usize) -> Command| (0..count).map(make).collect();
    let wide = set(1_000_000, 1_000_000, 1_000_000, 1_000_000);
    let two = [free(), set(0, 0, 50, 500)];
    let warm_keys: Vec<Command> = of(CALLS, &|user| call(&check, user, &[free()], None));
    let two_warm: Vec<Command> = of(CALLS, &|user| call(&check, user, &two, None));
    // One key with every minute of an hour in use, and then one more each second.
    let full: Vec<Command> = (0..60)
        .map(|minute| START + minute * 60_000_000)
        .chain((0..61).map(|second| START + 3_600_000_000 + second * 1_000_000))
        .map(|now| call(&check, 0, &[wide], Some(now)))
        .collect();
    let full_moving = of(CALLS, &|second| {
        let now = START + 3_661_000_000 + second as u64 * 1_000_000;
        call(&check, 0, &[wide], Some(now))
    });
    let incr = of(CALLS, &|user| vec![b"INCR".to_vec(), format!("c{user}").into_bytes()]);
    let expire = of(CALLS, &|user| {
        vec![b"PEXPIRE".to_vec(), format!("c{user}").into_bytes(), b"60000".to_vec()]
    });
    let incr_and_expire: Vec<Command> =
        std::iter::zip(incr, expire).flat_map(|(incr, expire)| [incr, expire]).collect();
    let spent = of(20, &|_| call(&check, 1, &[free()], None));
    let plain: Vec<Command> = of(CALLS, &|user| {
        let key = format!("tg:{{{user:032x}}}:i").into();
        vec![b"EVALSHA".to_vec(), buckets.clone(), b"1".to_vec(), key]
    });
    let calendar =
        LimitSet { day: NonZeroU32::new(10_000), month: NonZeroU32::new(100_000), ..free() };
    let with_calendar: Vec<Command> = of(CALLS, &|user| call(&check, user, &[calendar], None));
    let places = LimitSet { concurrency: NonZeroU32::new(1_000_000), ..free() };
    let with_places: Vec<Command> = of(CALLS, &|user| call(&check, user, &[places], None));

    let cases: [(&str, &[Command], &[Command]); 11] = [
        (
            "empty script",
            &[],
            &of(CALLS, &|user| {
                vec![b"EVALSHA".to_vec(), empty.clone(), b"1".to_vec(), format!("c{user}").into()]
            }),
        ),
        ("INCR + PEXPIRE", &[], &incr_and_expire),
        ("FREE allowed, first of its identity", &[], &warm_keys),
        ("FREE allowed, second", &warm_keys, &warm_keys),
        ("FREE denied", &spent, &of(CALLS, &|_| call(&check, 1, &[free()], None))),
        ("one hot key, allowed", &[], &of(CALLS, &|_| call(&check, 1, &[wide], None))),
        ("full key, moving on", &full, &full_moving),
        ("FREE and a rule allowed, second", &two_warm, &two_warm),
        ("three plain token buckets, second", &plain, &plain),
        ("FREE with day and month, second", &with_calendar, &with_calendar),
        ("FREE with requests at once, second", &with_places, &with_places),
    ];
    let mut results = vec![Vec::new(); cases.len()];
    for _ in 0..ROUNDS {
        for ((_, before, commands), results) in cases.iter().zip(&mut results) {
            server.words("FLUSHALL");
            server.pipeline(before);
            let start = cpu_us(&server);
            server.pipeline(commands);
            results.push((cpu_us(&server) - start) / CALLS as f64);
        }
    }
    println!("user CPU of Redis, us each: least (median) of {ROUNDS} rounds of {CALLS}");
    for ((name, ..), mut results) in cases.into_iter().zip(results) {
        results.sort_by(f64::total_cmp);
        println!("  {name:40} {:5.1} ({:.1})", results[0], results[ROUNDS / 2]);
    }

    let bytes = |commands: &[Command]| {
        server.words("FLUSHALL");
        server.pipeline(commands);
        server.command(&[b"MEMORY", b"USAGE", &server.keys()[0]])
    };
    println!("MEMORY USAGE: light {:?}, full {:?}", bytes(&spent), bytes(&full));
}

/// How long a check takes at so many in flight, through the store that the proxy uses, and what it
/// costs either side. Optimised, as `tests/long.sh` builds it, else it is the compiler that is
/// measured.
#[test]
#[ignore = "a measurement"]
fn latency() {
    let Some(server) = RedisServer::spawn() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let url = tollgate::config::url::redis(&server.url()).unwrap().target();
    let settings = RedisSettings { timeout: Duration::from_secs(10), ..RedisSettings::new(url) };
    let memory = Arc::new(MemoryStore::new(1_000));
    let shared = Arc::new(RedisShared::new(settings, memory));
    let store = runtime.block_on(async { Arc::new(RedisStore::connect(shared)) });
    assert!(runtime.block_on(store.wait_connected(Duration::from_secs(10))));

    println!("a check, median of {ROUNDS} rounds (least):");
    println!("                     p50, us         p99, us      a second   CPU here, of Redis, us");
    let lasting = |in_flight: usize| {
        runtime.block_on(one_after_the_other(&store, in_flight, 40_000 / in_flight.max(8)))
    };
    let mut most = 0.0;
    for in_flight in [1, 64, 512] {
        let rounds = (0..ROUNDS).map(|_| measured(&server, || lasting(in_flight))).collect();
        let rate = told(&format!("{in_flight} in flight"), rounds);
        if in_flight == 64 {
            most = rate;
        }
    }
    // What 64 callers at once meet where the machine is idle, which it is not when each of them
    // asks again at once.
    for part in [0.1, 0.3] {
        let every = Duration::from_secs_f64(64.0 / (most * part));
        let bursts = || runtime.block_on(in_bursts(&store, 64, every, 150));
        let rounds = (0..ROUNDS).map(|_| measured(&server, bursts)).collect();
        told(&format!("64 at once, {:.0} %", part * 100.0), rounds);
    }
}

/// How long each of some checks took, over how long all did, and CPU time for each, here and there.
struct Round {
    took: Vec<Duration>,
    all: Duration,
    here: f64,
    there: f64,
}

fn measured(server: &RedisServer, run: impl FnOnce() -> Vec<Duration>) -> Round {
    server.words("FLUSHALL");
    let clocks = || {
        let here = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        (Duration::try_from(here).unwrap().as_secs_f64() * 1e6, all_cpu_us(server))
    };
    let (before, started) = (clocks(), monotonic());
    let mut took = run();
    let (all, after) = (started.elapsed(), clocks());
    took.sort_unstable();
    let each = |before: f64, after: f64| (after - before) / took.len() as f64;
    let (here, there) = (each(before.0, after.0), each(before.1, after.1));
    Round { took, all, here, there }
}

/// Prints rounds, and gives their median of checks a second.
fn told(what: &str, rounds: Vec<Round>) -> f64 {
    let figures = |of: &dyn Fn(&Round) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        (all[all.len() / 2], all[0])
    };
    let at = |part: f64| {
        let of = |round: &Round| round.took[(round.took.len() as f64 * part) as usize];
        let (median, least) = figures(&|round| of(round).as_secs_f64() * 1e6);
        format!("{median:7.0} ({least:5.0})")
    };
    let (rate, _) = figures(&|round| round.took.len() as f64 / round.all.as_secs_f64());
    let (here, there) = (figures(&|round| round.here).0, figures(&|round| round.there).0);
    let (p50, p99) = (at(0.5), at(0.99));
    println!("  {what:16} {p50}  {p99}  {rate:9.0}   {here:6.1}  {there:6.1}");
    rate
}

/// CPU time of the server, the kernel's for it included, in microseconds.
fn all_cpu_us(server: &RedisServer) -> f64 {
    let Reply::Text(info) = server.words("INFO cpu") else { panic!("no INFO") };
    let info = String::from_utf8(info).unwrap();
    let field = |name: &str| {
        info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok())
    };
    (field("used_cpu_user:").unwrap() + field("used_cpu_sys:").unwrap()) * 1e6
}

/// How long since then until a check is answered.
async fn one_check(store: &RedisStore, user: usize, started: Instant) -> Duration {
    store.evaluate(&plan(user, &[free()]), None).await.unwrap();
    started.elapsed()
}

/// So many callers, each of whom asks again when it is answered.
async fn one_after_the_other(
    store: &Arc<RedisStore>,
    callers: usize,
    rounds: usize,
) -> Vec<Duration> {
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                let mut took = Vec::with_capacity(rounds);
                for round in 0..rounds {
                    took.push(one_check(&store, caller * rounds + round, monotonic()).await);
                }
                took
            })
        })
        .collect();
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await.unwrap());
    }
    took
}

/// So many at the same time, and again when it is time again.
async fn in_bursts(
    store: &Arc<RedisStore>,
    at_once: usize,
    every: Duration,
    bursts: usize,
) -> Vec<Duration> {
    let mut interval = tokio::time::interval(every);
    let mut took = Vec::new();
    for burst in 0..bursts {
        interval.tick().await;
        let started = monotonic();
        let asked: Vec<_> = (0..at_once)
            .map(|caller| {
                let store = Arc::clone(store);
                tokio::spawn(
                    async move { one_check(&store, burst * at_once + caller, started).await },
                )
            })
            .collect();
        for check in asked {
            took.push(check.await.unwrap());
        }
    }
    took
}
