//! A Redis that is gone, stands still, comes back, lies: no check takes longer than its budget, and
//! all mends itself. Needs a `redis-server`; without one each test says that it is skipped.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/redis.rs"]
mod redis;
#[path = "support/relay.rs"]
mod relay;

use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tollgate::clock::{Clock, monotonic};
use tollgate::config::url;
use tollgate::limiter::check::Limits;
use tollgate::limiter::decision::Verdict;
use tollgate::limiter::quota::{LimitSet, Mode};
use tollgate::metrics::labels::{BreakerState, RedisErrorKind};
use tollgate::policy::compiled::FailureMode;
use tollgate::policy::identity::Identity;
use tollgate::policy::plan::{Plan, Scope, TierId, TierSource};
use tollgate::store::memory::MemoryStore;
use tollgate::store::redis::settings::RedisSettings;
use tollgate::store::redis::stats::Reason;
use tollgate::store::redis::{RedisShared, RedisStore};
use tollgate::store::{Backend, Checked};

use redis::{RedisServer, Reply};
use relay::Relay;

/// Budget of a check here. Wide enough that a busy machine seldom misses it with a healthy Redis.
const BUDGET: Duration = Duration::from_millis(200);
/// What a busy machine may add to a budget before that is a fault.
const SLACK: Duration = Duration::from_secs(2);
/// By when whatever must happen by itself has happened.
const SOON: Duration = Duration::from_secs(30);

fn store(url: &str, on_failure: FailureMode) -> RedisStore {
    let mut settings = RedisSettings::new(url::redis(url).unwrap().target());
    settings.timeout = BUDGET;
    settings.on_failure = on_failure;
    RedisStore::connect(Arc::new(RedisShared::new(settings, Arc::new(MemoryStore::new(1_000)))))
}

async fn connected(url: &str, on_failure: FailureMode) -> RedisStore {
    let store = store(url, on_failure);
    assert!(store.wait_connected(SOON).await, "no connection");
    store
}

fn plan(user: &str, hour: u32) -> Plan<'static> {
    let mut plan = Plan::new(Identity::User(user.into()), TierId(0), TierSource::Default);
    let set = LimitSet { hour: NonZeroU32::new(hour), ..LimitSet::default() };
    let limits = Limits { set, mode: Mode::Enforce };
    plan.push(Scope { rule: None, key: "i", key_hash: 0, limits });
    plan
}

/// Checks, and holds the check to its budget.
async fn check(store: &RedisStore, plan: &Plan<'_>) -> Checked {
    let started = monotonic();
    let checked = store.check(plan, Clock::System.now()).await;
    let took = started.elapsed();
    assert!(took < BUDGET + SLACK, "{took:?} for a check with a budget of {BUDGET:?}");
    checked
}

fn backend(checked: &Checked) -> Option<Backend> {
    match checked {
        Checked::Decided { backend, .. } => Some(*backend),
        Checked::FailedOpen | Checked::FailedClosed => None,
    }
}

/// Checks until Redis decides.
async fn recovered(store: &RedisStore) {
    let deadline = monotonic() + SOON;
    while backend(&check(store, &plan("probe of the test", 1_000_000)).await)
        != Some(Backend::Redis)
    {
        assert!(monotonic() < deadline, "no recovery: {:?}", store.shared());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let shared = store.shared();
    assert_eq!(shared.breaker_state(), BreakerState::Closed);
    assert_eq!(shared.unavailable_since(), None);
}

/// Checks until the breaker is open; each of them is decided as `mode` says.
async fn opened(store: &RedisStore, mode: FailureMode) {
    let deadline = monotonic() + SOON;
    while store.shared().breaker_state() == BreakerState::Closed {
        expect_mode(&check(store, &plan("while it opens", 1_000_000)).await, mode);
        assert!(monotonic() < deadline, "the breaker stays closed");
    }
}

fn expect_mode(checked: &Checked, mode: FailureMode) {
    match mode {
        FailureMode::Local => assert_eq!(backend(checked), Some(Backend::Local)),
        FailureMode::Open => assert!(matches!(checked, Checked::FailedOpen), "{checked:?}"),
        FailureMode::Closed => assert!(matches!(checked, Checked::FailedClosed), "{checked:?}"),
    }
}

#[tokio::test]
async fn a_forgotten_script_is_loaded_again_once() {
    let Some(server) = RedisServer::spawn() else { return };
    let store = Arc::new(connected(&server.url(), FailureMode::Closed).await);
    recovered(&store).await;
    assert_eq!(server.words("SCRIPT FLUSH"), Reply::Text(b"OK".into()));
    server.words("CONFIG RESETSTAT");
    let checks: Vec<_> = (0..50)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { check(&store, &plan("42", 50)).await })
        })
        .collect();
    for check in checks {
        assert_eq!(backend(&check.await.unwrap()), Some(Backend::Redis));
    }
    // Each ran once: all fifty fit, and not one more.
    let Checked::Decided { decision, .. } = check(&store, &plan("42", 50)).await else { panic!() };
    assert_eq!(decision.verdict, Verdict::Deny);
    assert!(store.shared().stats().errors(RedisErrorKind::Noscript) >= 1);
    let Reply::Text(stats) = server.words("INFO commandstats") else { panic!("no statistics") };
    let stats = String::from_utf8(stats).unwrap();
    let loads = stats.lines().find(|line| line.starts_with("cmdstat_script")).unwrap();
    assert!(loads.contains("calls=1,"), "{loads}");
}

#[tokio::test]
async fn a_restart_with_empty_memory_is_survived() {
    let Some(mut server) = RedisServer::spawn() else { return };
    let store = connected(&server.url(), FailureMode::Local).await;
    recovered(&store).await;
    server.kill();
    opened(&store, FailureMode::Local).await;
    assert!(store.shared().unavailable_since().is_some());
    server.start();
    recovered(&store).await;
    let stats = store.shared().stats();
    assert!(stats.reconnects() >= 1);
    assert_eq!(stats.transitions(BreakerState::Open), 1);
    assert_eq!(stats.transitions(BreakerState::Closed), 1);
    assert!(stats.fallbacks(FailureMode::Local, Reason::Failed(RedisErrorKind::Io)) >= 1);
}

#[tokio::test]
async fn it_starts_without_redis_and_finds_it_later() {
    let Some(mut server) = RedisServer::prepare(&[]) else { return };
    let store = store(&server.url(), FailureMode::Local);
    // The limits hold meanwhile, in this process.
    for _ in 0..3 {
        let Checked::Decided { decision, backend } = check(&store, &plan("42", 3)).await else {
            panic!("no decision")
        };
        assert_eq!((decision.verdict, backend), (Verdict::Allow, Backend::Local));
    }
    let Checked::Decided { decision, .. } = check(&store, &plan("42", 3)).await else { panic!() };
    assert_eq!(decision.verdict, Verdict::Deny);
    server.start();
    recovered(&store).await;
}

#[tokio::test]
async fn without_traffic_too_an_outage_and_its_end_are_noticed() {
    let Some(mut server) = RedisServer::spawn() else { return };
    let store = connected(&server.url(), FailureMode::Local).await;
    let becomes = async |state| {
        let deadline = monotonic() + SOON;
        while store.shared().breaker_state() != state {
            assert!(monotonic() < deadline, "never {state:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    server.kill();
    becomes(BreakerState::Open).await;
    server.start();
    becomes(BreakerState::Closed).await;
}

async fn stands_still(mode: FailureMode) {
    let Some(server) = RedisServer::spawn() else { return };
    let store = connected(&server.url(), mode).await;
    recovered(&store).await;
    server.pause();
    opened(&store, mode).await;
    let stats = store.shared().stats();
    assert!(stats.errors(RedisErrorKind::Timeout) >= 1);
    // With the breaker open Redis is not even asked: none of these waits for anything.
    let failed = || {
        RedisErrorKind::ALL
            .iter()
            .map(|kind| stats.fallbacks(mode, Reason::Failed(*kind)))
            .collect::<Vec<_>>()
    };
    let (before, failed_before) = (stats.fallbacks(mode, Reason::BreakerOpen), failed());
    for _ in 0..100 {
        expect_mode(&check(&store, &plan("meanwhile", 1_000_000)).await, mode);
    }
    assert_eq!(stats.fallbacks(mode, Reason::BreakerOpen), before + 100);
    assert_eq!(failed(), failed_before);
    server.resume();
    recovered(&store).await;
}

#[tokio::test]
async fn a_redis_that_stands_still_is_decided_without_local() {
    stands_still(FailureMode::Local).await;
}

#[tokio::test]
async fn a_redis_that_stands_still_is_decided_without_open() {
    stands_still(FailureMode::Open).await;
}

#[tokio::test]
async fn a_redis_that_stands_still_is_decided_without_closed() {
    stands_still(FailureMode::Closed).await;
}

#[tokio::test]
async fn the_plans_mode_goes_before_the_stores() {
    let Some(server) = RedisServer::prepare(&[]) else { return };
    let store = store(&server.url(), FailureMode::Local);
    let mut payment = plan("42", 10);
    payment.on_failure = Some(FailureMode::Closed);
    expect_mode(&check(&store, &payment).await, FailureMode::Closed);
    payment.on_failure = Some(FailureMode::Open);
    expect_mode(&check(&store, &payment).await, FailureMode::Open);
}

#[tokio::test]
async fn calls_in_flight_are_bounded() {
    let Some(server) = RedisServer::spawn() else { return };
    let store = Arc::new(connected(&server.url(), FailureMode::Open).await);
    recovered(&store).await;
    server.pause();
    let checks: Vec<_> = (0..3_000)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { check(&store, &plan("42", 1_000_000)).await })
        })
        .collect();
    let mut most = 0;
    for check in checks {
        most = most.max(store.shared().stats().in_flight());
        expect_mode(&check.await.unwrap(), FailureMode::Open);
    }
    let stats = store.shared().stats();
    assert_eq!(most, 1_024);
    let overload = Reason::Failed(RedisErrorKind::Overload);
    assert!(stats.fallbacks(FailureMode::Open, overload) >= 1_000);
    server.resume();
    recovered(&store).await;
    let deadline = monotonic() + SOON;
    while stats.in_flight() > 0 {
        assert!(monotonic() < deadline, "{} calls never end", stats.in_flight());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn late_answers_are_counted() {
    let Some(server) = RedisServer::spawn() else { return };
    let store = connected(&server.url(), FailureMode::Open).await;
    let stats = store.shared().stats();
    let deadline = monotonic() + SOON;
    while stats.late_replies() == 0 {
        recovered(&store).await;
        // Longer than the budget, shorter than a late answer is waited for.
        server.words("CLIENT PAUSE 400");
        expect_mode(&check(&store, &plan("42", 1_000_000)).await, FailureMode::Open);
        while stats.in_flight() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(monotonic() < deadline, "{stats:?}");
    }
}

/// What Redis has counted for a plan of an hour's limit, once nothing is on its way any more.
async fn counted(store: &RedisStore, plan: &Plan<'_>) -> u32 {
    let deadline = monotonic() + SOON;
    while store.shared().stats().in_flight() > 0 {
        assert!(monotonic() < deadline, "calls never end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let decision = store.peek(plan, None, SOON).await.unwrap();
    decision.statuses().iter().map(|it| it.limit - it.remaining).sum()
}

/// Waits until Redis has counted so much.
async fn counts(store: &RedisStore, plan: &Plan<'_>, expected: u32) {
    let deadline = monotonic() + SOON;
    while counted(store, plan).await != expected {
        let found = counted(store, plan).await;
        assert!(monotonic() < deadline, "{found}, expected {expected}: {:?}", store.shared());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_late_answer_counts_once_and_no_answer_counts_too() {
    let Some(server) = RedisServer::spawn_tcp() else { return };
    let relay = Relay::spawn(server.port()).await;
    let url = format!("redis://{}", relay.address());
    let store = connected(&url, FailureMode::Local).await;
    recovered(&store).await;
    // Redis grants and says so too late: it was let pass here as well.
    let late = plan("late", 1_000_000);
    relay.delay(2 * BUDGET);
    let mut passed = 0;
    for _ in 0..3 {
        expect_mode(&check(&store, &late).await, FailureMode::Local);
        passed += 1;
    }
    relay.delay(Duration::ZERO);
    recovered(&store).await;
    counts(&store, &late, passed).await;
    assert!(store.shared().stats().late_replies() >= 1);
    // Nothing arrives, and nothing comes back: only Redis's being told later counts.
    let lost = plan("lost", 1_000_000);
    relay.swallow();
    let mut passed = 0;
    while store.shared().breaker_state() == BreakerState::Closed {
        expect_mode(&check(&store, &lost).await, FailureMode::Local);
        passed += 1;
    }
    for _ in 0..20 {
        expect_mode(&check(&store, &lost).await, FailureMode::Local);
        passed += 1;
    }
    recovered(&store).await;
    counts(&store, &lost, passed).await;
}

#[tokio::test]
async fn days_and_months_go_on_alone_and_redis_is_told() {
    let Some(server) = RedisServer::spawn() else { return };
    let store = connected(&server.url(), FailureMode::Local).await;
    recovered(&store).await;
    let mut plan = Plan::new(Identity::User("42".into()), TierId(0), TierSource::Default);
    let set =
        LimitSet { day: NonZeroU32::new(6), month: NonZeroU32::new(50), ..LimitSet::default() };
    let limits = Limits { set, mode: Mode::Enforce };
    plan.push(Scope { rule: None, key: "i", key_hash: 0, limits });
    let left = async || {
        let Checked::Decided { decision, .. } = check(&store, &plan).await else { panic!() };
        let left = decision.statuses().iter().map(|it| it.remaining).collect::<Vec<_>>();
        (decision.verdict == Verdict::Allow, left)
    };
    assert_eq!(left().await, (true, vec![5, 49]));
    assert_eq!(left().await, (true, vec![4, 48]));
    server.pause();
    opened(&store, FailureMode::Local).await;
    assert_eq!(left().await, (true, vec![3, 47]));
    assert_eq!(left().await, (true, vec![2, 46]));
    server.resume();
    recovered(&store).await;
    // Of the day and of the month.
    counts(&store, &plan, 4 + 4).await;
    assert_eq!(left().await, (true, vec![1, 45]));
    assert_eq!(left().await, (true, vec![0, 44]));
    assert!(!left().await.0);
}

/// What Redis is told is ahead of every check that is made meanwhile, by this replica or by another.
#[tokio::test]
async fn redis_is_told_of_few_callers_at_a_time() {
    let Some(server) = RedisServer::spawn_tcp() else { return };
    let relay = Relay::spawn(server.port()).await;
    let store = connected(&format!("redis://{}", relay.address()), FailureMode::Local).await;
    recovered(&store).await;
    server.pause();
    opened(&store, FailureMode::Local).await;
    for number in 0..400 {
        let checked = check(&store, &plan(&format!("caller {number}"), 100)).await;
        expect_mode(&checked, FailureMode::Local);
    }
    // Answers take a while, so that what is asked can be seen.
    relay.delay(BUDGET / 10);
    server.resume();
    let (stats, deadline, mut most) = (store.shared().stats(), monotonic() + SOON, 0);
    while stats.charges(true) < 400 {
        most = most.max(stats.in_flight());
        assert!(monotonic() < deadline, "{} told", stats.charges(true));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // And what the store asks for itself.
    assert!((16..=40).contains(&most), "{most} at a time");
    relay.delay(Duration::ZERO);
    recovered(&store).await;
}

#[tokio::test]
async fn what_was_refused_here_and_granted_late_is_given_back() {
    let Some(server) = RedisServer::spawn_tcp() else { return };
    let relay = Relay::spawn(server.port()).await;
    let url = format!("redis://{}", relay.address());
    let mut settings = RedisSettings::new(url::redis(&url).unwrap().target());
    settings.timeout = BUDGET;
    // So many that the share of any of them is nothing.
    settings.expected_replicas = 1_000;
    let shared = RedisShared::new(settings, Arc::new(MemoryStore::new(1_000)));
    let store = RedisStore::connect(Arc::new(shared));
    recovered(&store).await;
    let stranger = plan("stranger", 100);
    relay.delay(2 * BUDGET);
    let Checked::Decided { decision, backend } = check(&store, &stranger).await else { panic!() };
    assert_eq!((decision.verdict, backend), (Verdict::Deny, Backend::Local));
    // It is not for ever, as it would be were it above the limit.
    assert_eq!(decision.retry_after(), Some(1));
    let status = decision.shown().unwrap();
    assert_eq!((status.limit, status.remaining), (100, 0));
    relay.delay(Duration::ZERO);
    counts(&store, &stranger, 0).await;
    assert_eq!(store.shared().stats().late_replies(), 1);
}

#[tokio::test]
async fn a_demoted_primary_counts_as_lost() {
    let Some(server) = RedisServer::spawn() else { return };
    let store = connected(&server.url(), FailureMode::Closed).await;
    recovered(&store).await;
    server.words("REPLICAOF 127.0.0.1 1");
    opened(&store, FailureMode::Closed).await;
    assert!(store.shared().stats().errors(RedisErrorKind::Readonly) >= 1);
    server.words("REPLICAOF NO ONE");
    recovered(&store).await;
}

#[tokio::test]
async fn a_connection_that_swallows_everything_is_given_up_under_steady_traffic() {
    let Some(server) = RedisServer::spawn_tcp() else { return };
    let relay = Relay::spawn(server.port()).await;
    let url = format!("redis://{}", relay.address());
    let store = Arc::new(connected(&url, FailureMode::Local).await);
    recovered(&store).await;
    relay.swallow();
    opened(&store, FailureMode::Local).await;
    recovered(&store).await;
    assert!(store.shared().stats().forced_reconnects() >= 1);
}

#[tokio::test]
async fn a_server_that_talks_nonsense_decides_nothing() {
    for nonsense in ["+OK\r\n", "$3\r\nfoo\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n", ":1\r\n*"] {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut buffer = [0; 4_096];
                    while let Ok(1..) = stream.read(&mut buffer).await {
                        let _ = stream.write_all(nonsense.as_bytes()).await;
                    }
                });
            }
        });
        let store = store(&url, FailureMode::Local);
        store.wait_connected(Duration::from_millis(500)).await;
        for _ in 0..20 {
            expect_mode(&check(&store, &plan("42", 1_000)).await, FailureMode::Local);
        }
        server.abort();
    }
}

#[tokio::test]
async fn a_password_is_used_and_a_wrong_one_is_an_outage() {
    let Some(server) = RedisServer::spawn_with(&["--requirepass", "s3cret"]) else { return };
    let with = |password: &str| {
        server.url().replace("redis+unix://", &format!("redis+unix://default:{password}@"))
    };
    let store = connected(&with("s3cret"), FailureMode::Closed).await;
    recovered(&store).await;
    assert!(!format!("{store:?}").contains("s3cret"), "{store:?}");
    let store = self::store(&with("other"), FailureMode::Closed);
    opened(&store, FailureMode::Closed).await;
}
