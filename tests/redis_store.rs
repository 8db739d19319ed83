//! Decisions of the store in Redis: the script against the limiter, and what it leaves behind.
//! Needs a `redis-server`; without one each test says that it is skipped.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/oracle.rs"]
mod oracle;
#[path = "support/redis.rs"]
mod redis;
#[path = "support/vectors.rs"]
mod vectors;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tollgate::clock::monotonic;
use tollgate::config::url;
use tollgate::limiter::check::{Limits, State, States, check, peek};
use tollgate::limiter::decision::{Decision, Verdict};
use tollgate::limiter::quota::{Bucket, LIMIT_MAX, LimitSet, Mode};
use tollgate::limiter::refund::{Grant, refund};
use tollgate::limiter::time::Timestamp;
use tollgate::policy::identity::Identity;
use tollgate::policy::plan::{Plan, Scope, TierId, TierSource};
use tollgate::store::memory::MemoryStore;
use tollgate::store::redis::names::KeyNames;
use tollgate::store::redis::settings::RedisSettings;
use tollgate::store::redis::{RedisShared, RedisStore};

use oracle::Oracle;
use redis::{RedisServer, Reply};

/// More than a check has room for without an allocation.
const KEYS: [&str; 5] = ["i", "e:reports", "e:search", "e:three", "e:four"];
const START: i64 = 1_700_000_000_123_456;
const SECOND: i64 = 1_000_000;

async fn connect(server: &RedisServer) -> RedisStore {
    let mut settings = RedisSettings::new(url::redis(&server.url()).unwrap().target());
    // These tests are about decisions: a busy machine must not make one late.
    settings.timeout = Duration::from_secs(20);
    let shared = Arc::new(RedisShared::new(settings, Arc::new(MemoryStore::new(1_000))));
    let store = RedisStore::connect(shared);
    assert!(store.wait_connected(Duration::from_secs(20)).await, "no connection");
    store
}

fn plan(user: &str, cost: u32, scopes: &[Limits]) -> Plan<'static> {
    let mut plan = Plan::new(Identity::User(user.into()), TierId(0), TierSource::Default);
    plan.cost = cost;
    for (key, limits) in KEYS.iter().zip(scopes) {
        plan.push(Scope { rule: None, key, key_hash: 0, limits: *limits });
    }
    plan
}

fn set(second: Option<(u32, u32)>, minute: u32, hour: u32) -> LimitSet {
    let second = second.map(|(rate, burst)| Bucket {
        rate: NonZeroU32::new(rate).unwrap(),
        burst: NonZeroU32::new(burst).unwrap(),
    });
    LimitSet {
        second,
        minute: NonZeroU32::new(minute),
        hour: NonZeroU32::new(hour),
        ..LimitSet::default()
    }
}

fn enforced(set: LimitSet) -> Limits {
    Limits { set, mode: Mode::Enforce }
}

fn at(micros: i64) -> Option<Timestamp> {
    Some(Timestamp::from_micros(micros.try_into().unwrap()))
}

fn key_of(user: &str, scope: &str) -> Vec<u8> {
    let names = KeyNames::new("tg");
    names.scope(&names.identity_hash(&Identity::User(user.into())), scope).to_vec()
}

/// The pure limiter, with nothing around it.
#[derive(Default)]
struct Pure([State; KEYS.len()]);

impl States for Pure {
    fn state(&mut self, index: usize) -> &mut State {
        &mut self.0[index]
    }
}

impl Pure {
    fn check(&mut self, plan: &Plan<'_>, now: Timestamp) -> Decision {
        let scopes: Vec<Limits> = plan.scopes().map(|scope| scope.limits).collect();
        check(self, &scopes, plan.cost, now)
    }

    fn peek(&self, plan: &Plan<'_>, now: Timestamp) -> Decision {
        let scopes: Vec<Limits> = plan.scopes().map(|scope| scope.limits).collect();
        peek(&mut Pure(self.0.clone()), &scopes, plan.cost, now)
    }
}

#[derive(Clone, Debug)]
struct Step {
    scopes: Vec<Limits>,
    cost: u32,
    advance: i64,
}

fn limits() -> impl Strategy<Value = Limits> {
    let second = prop_oneof![
        1 => Just(None),
        5 => (1..20_u32, 1..20_u32).prop_map(Some),
        1 => (prop_oneof![Just(1), Just(7), Just(LIMIT_MAX)], Just(LIMIT_MAX)).prop_map(Some),
    ];
    let window = |most| prop_oneof![2 => Just(0), 6 => 1..=most, 1 => Just(LIMIT_MAX)];
    let mode = prop_oneof![3 => Just(Mode::Enforce), 1 => Just(Mode::Shadow)];
    let quota = || prop_oneof![8 => Just(0_u32), 2 => 1..40_u32, 1 => Just(LIMIT_MAX)];
    (second, window(30_u32), window(60_u32), (quota(), quota()), mode)
        .prop_filter("a scope has limits", |(second, minute, hour, (day, month), _)| {
            second.is_some() || [minute, hour, day, month].into_iter().any(|limit| *limit > 0)
        })
        .prop_map(|(second, minute, hour, (day, month), mode)| {
            let (day, month) = (NonZeroU32::new(day), NonZeroU32::new(month));
            Limits { set: LimitSet { day, month, ..set(second, minute, hour) }, mode }
        })
}

fn advance() -> impl Strategy<Value = i64> {
    prop_oneof![
        4 => Just(0),
        6 => 0..SECOND,
        6 => 0..5 * SECOND,
        3 => 0..90 * SECOND,
        2 => 0..90 * 60 * SECOND,
        1 => prop_oneof![Just(86_400), Just(3 * 604_800), Just(65_536), Just(256)]
            .prop_map(|seconds| seconds * SECOND),
        // Two readings in the wrong order, at the border of what is taken for that, a clock set.
        2 => prop_oneof![0..10_i64, 0..SECOND, SECOND - 2..SECOND + 3].prop_map(|back| -back),
        1 => prop_oneof![1..90 * SECOND, 1..90 * 60 * SECOND, 1..3 * 604_800 * SECOND]
            .prop_map(|back| -back),
    ]
}

/// Runs of steps under one set of limits, then under others: lowered, raised, removed.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let cost = prop_oneof![6 => Just(1_u32), 3 => 1..5_u32, 1 => 1..40_u32,
        1 => Just(LIMIT_MAX), 1 => Just(u32::MAX)];
    let phase = (
        prop::collection::vec(limits(), 1..=KEYS.len()),
        prop::collection::vec((cost, advance()), 1..40),
    );
    prop::collection::vec(phase, 1..4).prop_map(|phases| {
        let steps = phases.into_iter().flat_map(|(scopes, steps)| {
            let step = move |(cost, advance)| Step { scopes: scopes.clone(), cost, advance };
            steps.into_iter().map(step)
        });
        steps.collect()
    })
}

#[test]
fn the_script_decides_as_the_limiter_does() {
    let Some(server) = RedisServer::spawn() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = runtime.block_on(connect(&server));
    let run = std::cell::Cell::new(0);
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() };
    let result = TestRunner::new(config).run(&steps(), |steps| {
        run.set(run.get() + 1);
        let user = format!("run {}", run.get());
        let mut limiter = Pure::default();
        let mut now = START;
        for (index, step) in steps.iter().enumerate() {
            now = (now + step.advance).max(1);
            let plan = plan(&user, step.cost, &step.scopes);
            // To look is to see what the check would find, and to leave all as it is: what the check
            // then finds is what it finds of a limiter that nobody has looked at.
            let budget = Duration::from_secs(20);
            let seen = runtime.block_on(store.peek(&plan, at(now), budget)).unwrap();
            prop_assert_eq!(seen, limiter.peek(&plan, at(now).unwrap()), "look {}", index);
            let found = runtime.block_on(store.evaluate(&plan, at(now))).unwrap();
            let expected = limiter.check(&plan, at(now).unwrap());
            prop_assert_eq!(found, expected, "step {} at {}: {:?}", index, now, step);
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn the_script_gives_back_as_the_limiter_does() {
    let Some(server) = RedisServer::spawn() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = runtime.block_on(connect(&server));
    let run = std::cell::Cell::new(0);
    let picks =
        prop::collection::vec(prop::option::weighted(0.5, any::<prop::sample::Index>()), 40 * 3);
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() };
    let result = TestRunner::new(config).run(&(steps(), picks), |(steps, picks)| {
        run.set(run.get() + 1);
        let user = format!("run {}", run.get());
        let mut limiter = Pure::default();
        let mut open = Vec::new();
        let mut now = START;
        for (index, (step, pick)) in steps.iter().zip(picks).enumerate() {
            now = (now + step.advance).max(1);
            let asked = plan(&user, step.cost, &step.scopes);
            let found = runtime.block_on(store.evaluate(&asked, at(now))).unwrap();
            let expected = limiter.check(&asked, at(now).unwrap());
            prop_assert_eq!(&found, &expected, "step {} at {}: {:?}", index, now, step);
            let grant = Grant::new(&found, step.scopes.len());
            prop_assert_eq!(&grant, &Grant::new(&expected, step.scopes.len()));
            open.push((step, grant));
            if let Some(pick) = pick {
                let (step, grant) = open.swap_remove(pick.index(open.len()));
                refund(&mut limiter, &step.scopes, step.cost, &grant);
                let plan = plan(&user, step.cost, &step.scopes);
                runtime.block_on(store.refund_in_redis(&plan, &grant)).unwrap();
            }
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    for key in server.keys() {
        let Reply::Integer(left) = server.command(&[b"PTTL", &key]) else { panic!() };
        assert!(left != -1, "{} never expires", String::from_utf8_lossy(&key));
    }
}

#[tokio::test]
async fn a_refund_by_the_servers_clock_leaves_nothing_of_the_only_charge() {
    let Some(server) = RedisServer::spawn() else { return };
    let store = connect(&server).await;
    let plan = plan("one", 3, &[enforced(set(Some((1, 10)), 100, 1_000)); 2]);
    let decision = store.evaluate(&plan, None).await.unwrap();
    assert_eq!(server.keys().len(), 2);
    let grant = Grant::new(&decision, 2);
    store.refund_in_redis(&plan, &grant).await.unwrap();
    assert_eq!(server.keys().len(), 0);
    store.refund_in_redis(&plan, &grant).await.unwrap();
    assert_eq!(server.keys().len(), 0, "a refund makes no key");
}

#[test]
fn the_script_decides_as_the_law_does() {
    // Not the limiter's twin alone: the definition of the limits, counted from every request.
    let Some(server) = RedisServer::spawn() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = runtime.block_on(connect(&server));
    let cost = prop_oneof![6 => Just(1_u32), 3 => 1..5_u32, 1 => 1..LIMIT_MAX];
    let steps = (
        prop::collection::vec(limits(), 1..=KEYS.len()),
        prop::collection::vec((cost, advance()), 1..80),
    );
    let run = std::cell::Cell::new(0);
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() };
    let result = TestRunner::new(config).run(&steps, |(scopes, steps)| {
        run.set(run.get() + 1);
        let mut oracle = Oracle::new(&scopes);
        let mut now = START;
        for (cost, advance) in steps {
            now = (now + advance).max(1);
            let plan = plan(&format!("run {}", run.get()), cost, &scopes);
            let found = runtime.block_on(store.evaluate(&plan, at(now))).unwrap();
            oracle::assert_same(&found, &oracle.check(cost, now.try_into().unwrap()));
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn vectors_hold_for_the_script() {
    let Some(server) = RedisServer::spawn() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = runtime.block_on(connect(&server));
    vectors::run_all(&mut |plan, now| runtime.block_on(store.evaluate(plan, Some(now))).unwrap());
}

#[tokio::test]
async fn two_replicas_share_one_truth() {
    let Some(server) = RedisServer::spawn() else { return };
    let replicas = [Arc::new(connect(&server).await), Arc::new(connect(&server).await)];
    let free = [enforced(set(Some((5, 10)), 100, 1_000))];
    let checks: Vec<_> = (0..1_000)
        .map(|index: usize| {
            let replica = Arc::clone(&replicas[index % 2]);
            let plan = plan("42", 1, &free);
            tokio::spawn(async move { replica.evaluate(&plan, at(START)).await })
        })
        .collect();
    let mut allowed = 0;
    for check in checks {
        allowed += usize::from(check.await.unwrap().unwrap().verdict == Verdict::Allow);
    }
    assert_eq!(allowed, 10);
}

#[tokio::test]
async fn without_a_time_of_the_callers_the_servers_clock_decides() {
    let Some(server) = RedisServer::spawn() else { return };
    let store = connect(&server).await;
    let decision =
        store.evaluate(&plan("42", 1, &[enforced(set(None, 1, 0))]), None).await.unwrap();
    let here = tollgate::clock::Clock::System.now();
    let apart = decision.now.since(here).max(here.since(decision.now));
    assert!(apart.as_secs_ceil() <= 60, "{decision:?}");
}

#[tokio::test]
async fn a_denial_writes_nothing() {
    let Some(server) = RedisServer::spawn() else { return };
    let store = connect(&server).await;
    let scopes = [enforced(set(Some((5, 10)), 0, 0)), enforced(set(None, 0, 2))];
    let check = async || store.evaluate(&plan("42", 1, &scopes), None).await.unwrap().verdict;
    assert_eq!(check().await, Verdict::Allow);
    assert_eq!(check().await, Verdict::Allow);
    let counter = || server.command(&[b"GET", &key_of("42", "e:reports")]);
    // Counts every change of the data set since the start.
    let written = || match server.words("INFO persistence") {
        Reply::Text(info) => {
            let info = String::from_utf8(info).unwrap();
            info.lines().find(|line| line.starts_with("rdb_changes")).unwrap().to_owned()
        }
        other => panic!("{other:?}"),
    };
    let (value_before, written_before) = (counter(), written());
    for _ in 0..10 {
        assert_eq!(check().await, Verdict::Deny);
    }
    // Nor where the clock is behind, as that of another request may be.
    let Reply::Text(ours) = &value_before else { panic!("no counter") };
    let last = ours[1..8].iter().rev().fold(0, |last, byte| last << 8 | i64::from(*byte));
    for behind in [1, 999_999, 1_000_000] {
        let decision = store.evaluate(&plan("42", 1, &scopes), at(last - behind)).await.unwrap();
        assert_eq!(decision.verdict, Verdict::Deny);
    }
    assert_eq!(counter(), value_before);
    assert_eq!(written(), written_before);
}

#[tokio::test]
async fn every_key_expires_when_it_is_whole() {
    let Some(server) = RedisServer::spawn() else { return };
    let store = connect(&server).await;
    let check = async |user: &str, limits| {
        let decision = store.evaluate(&plan(user, 1, &[enforced(limits)]), None).await.unwrap();
        assert_eq!(decision.verdict, Verdict::Allow);
    };
    for (user, limits, least_ms, most_ms) in [
        ("bucket", set(Some((1, 100)), 0, 0), 1, 1_000),
        ("minute", set(None, 10, 0), 50_000, 61_000),
        ("hour", set(Some((5, 10)), 100, 10), 3_500_000, 3_660_000),
    ] {
        check(user, limits).await;
        let Reply::Integer(ttl) = server.command(&[b"PTTL", &key_of(user, "i")]) else {
            panic!("no TTL")
        };
        // A bucket may be whole, and its key gone, before the question arrives.
        let is_gone = ttl == -2 && user == "bucket";
        assert!(is_gone || (least_ms..=most_ms).contains(&ttl), "{user}: {ttl} ms");
    }
    check("at once", set(Some((LIMIT_MAX, LIMIT_MAX)), 0, 0)).await;
    let deadline = monotonic() + Duration::from_secs(10);
    while server.keys().contains(&key_of("at once", "i")) {
        assert!(monotonic() < deadline, "the key of a whole bucket stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for key in server.keys() {
        assert_ne!(server.command(&[b"PTTL", &key]), Reply::Integer(-1), "a key without TTL");
    }
}

#[tokio::test]
async fn what_is_not_ours_counts_as_absent() {
    let Some(server) = RedisServer::spawn() else { return };
    let store = connect(&server).await;
    let limits = [enforced(set(Some((5, 10)), 100, 1_000))];
    let plan = plan("42", 1, &limits);
    let key = key_of("42", "i");
    let fresh = store.evaluate(&plan, at(START)).await.unwrap();
    let Reply::Text(ours) = server.command(&[b"GET", &key]) else { panic!("nothing written") };
    let next = [&[2], &ours[1..]].concat();
    let longer = [&ours[..], b"x"].concat();
    for value in [&b""[..], b"garbage", &next, &longer, &ours[..24], &[0xff; 25], &[0xff; 639]] {
        server.command(&[b"SET", &key, value]);
        assert_eq!(store.evaluate(&plan, at(START)).await.unwrap(), fresh, "{value:?}");
    }
    server.command(&[b"DEL", &key]);
    server.command(&[b"RPUSH", &key, b"a list"]);
    assert_eq!(store.evaluate(&plan, at(START)).await.unwrap(), fresh);
    assert_eq!(server.command(&[b"GET", &key]), Reply::Text(ours));
}

#[tokio::test]
async fn a_forged_value_is_never_an_error() {
    let Some(server) = RedisServer::spawn() else { return };
    let store = connect(&server).await;
    let key = key_of("42", "i");
    for (length, fill) in [25, 39, 44, 64, 339, 634, 1_614]
        .into_iter()
        .flat_map(|length| [0, 1, 0x3c, 0x7f, 0x80, 0xff].map(|fill: u8| (length, fill)))
    {
        let mut value = vec![fill; length];
        value[0] = 1;
        server.command(&[b"SET", &key, &value]);
        for limits in [set(Some((5, 10)), 100, 1_000), set(None, 1, 0), set(None, 0, 1)] {
            let plan = plan("42", 1, &[enforced(limits)]);
            for now in [None, at(START)] {
                let decision = store.evaluate(&plan, now).await;
                assert!(decision.is_ok(), "{length} bytes of {fill}: {decision:?}");
            }
        }
    }
}

#[tokio::test]
async fn values_stay_small() {
    let Some(server) = RedisServer::spawn() else { return };
    let store = connect(&server).await;
    let wide = [enforced(set(Some((1_000, 1_000)), 1_000_000, 1_000_000))];
    let value = |user: &str| match server.command(&[b"GET", &key_of(user, "i")]) {
        Reply::Text(value) => value.len(),
        other => panic!("{other:?}"),
    };
    store.evaluate(&plan("light", 1, &wide), at(START)).await.unwrap();
    assert_eq!(value("light"), 25);
    // Every minute of an hour, then every second of a minute, in use.
    let minutes = (0..60).map(|minute| START + minute * 60 * SECOND);
    let seconds = (0..=60).map(|second| START + 3_600 * SECOND + second * SECOND);
    for now in minutes.chain(seconds) {
        store.evaluate(&plan("full", 1, &wide), at(now)).await.unwrap();
    }
    assert_eq!(value("full"), 634);
}

#[tokio::test]
async fn a_wrong_number_of_arguments_is_refused() {
    let Some(server) = RedisServer::spawn() else { return };
    let script = tollgate::store::redis::codec::SCRIPT.as_bytes();
    for arguments in [&[&b"0"[..]][..], &[b"1", b"key"], &[b"1", b"key", b"short"]] {
        let reply = server.command(&[&[&b"EVAL"[..], script], arguments].concat());
        let Reply::Error(message) = reply else { panic!("{reply:?}") };
        assert!(message.contains("tollgate check"), "{message}");
    }
}
