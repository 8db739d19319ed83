//! What went wrong in other rate limiters, tried on this one: each test is named after the thread
//! in which it was told. Real binaries and a real Redis, but where a clock has to be wrong.
//!
//! Of some threads another suite holds more:
//!
//! - Kong/kong#2629, requests at once slip through:
//!   `failover.rs`, `two_processes_on_one_redis_let_exactly_the_minutes_limit_pass`
//! - envoyproxy/ratelimit#462, a Redis that is slow delays every request:
//!   `failover.rs`, `a_redis_that_stands_still_holds_nobody_up`
//! - envoyproxy/ratelimit#1191, connections stay read-only until a restart:
//!   `redis_failover.rs`, `a_demoted_primary_counts_as_lost`
//! - envoyproxy/ratelimit#1143, no start without Redis:
//!   `failover.rs`, `without_redis_at_start_local_keeps_the_limits_here`
//! - sozu-proxy/sozu#1270, an IPv6 network is as many callers as it has addresses:
//!   `client_address.rs`, `prefixes_are_as_long_as_the_file_says`
//! - apache/apisix#12823, places are lost with their proxy:
//!   `quotas.rs`, `the_places_of_a_replica_that_is_killed_come_back`
//! - mailgun/gubernator#37, a changed limit holds once a window is over:
//!   `live_changes.rs`, `who_has_spent_more_than_a_lowered_limit_waits_and_nobody_else_notices`
//! - apache/apisix#6760, a reload begins all counters anew:
//!   `reload.rs`, `a_new_limit_finds_what_was_used_in_redis`
//! - express-rate-limit/rate-limit-redis#216, keys without an end:
//!   `redis_store.rs`, `every_key_expires_when_it_is_whole`
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test stops at the first surprise, and ends"
)]

#[path = "support/redis.rs"]
mod redis;
mod support;

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use redis::{RedisServer, Reply};
use serde_json::{Value, json};
use support::{Answer, Backend, Client, Start, Tollgate, tally, wait_until};
use tollgate::clock::Clock;
use tollgate::config::url;
use tollgate::limiter::check::Limits;
use tollgate::limiter::decision::Verdict;
use tollgate::limiter::quota::{Bucket, LimitSet, Mode};
use tollgate::limiter::time::{Micros, Timestamp};
use tollgate::policy::identity::{Identity, IpPrefix, PrefixLengths};
use tollgate::policy::plan::{Plan, Scope, TierId, TierSource};
use tollgate::store::memory::MemoryStore;
use tollgate::store::redis::settings::RedisSettings;
use tollgate::store::redis::{RedisShared, RedisStore};
use tollgate::store::{Backend as Decider, Checked};

/// A budget that only an outage misses.
const WIDE: &str = "10s";
/// A budget for a Redis that is gone.
const NARROW: &str = "100ms";
/// What a busy machine may add to a budget.
const SLACK: Duration = Duration::from_secs(5);

fn start(backend: &Backend, server: &RedisServer, timeout: &str, tiers: &str) -> Tollgate {
    let config = format!(
        "server: {{ workers: 2, trusted_proxies: [127.0.0.0/8] }}\n\
         store: {{ redis: {{ url: '{}', timeout: {timeout} }} }}\n",
        server.url()
    );
    Start::default().upstream(backend.address).config(&config).tiers(tiers).run()
}

fn pair(backend: &Backend, server: &RedisServer, tiers: &str) -> [Tollgate; 2] {
    [(); 2].map(|()| start(backend, server, WIDE, tiers))
}

fn free(limits: &str) -> String {
    format!("default_tier: free\ntiers:\n  free: {{ {limits} }}\n")
}

fn call(replica: &Tollgate, line: &str, body: Option<&Value>) -> Answer {
    let body = body.map(ToString::to_string).unwrap_or_default();
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    let request = format!(
        "{line} HTTP/1.1\r\nHost: {}\r\n{kind}Content-Length: {}\r\n\r\n{body}",
        replica.admin,
        body.len()
    );
    Client::connect(replica.admin).send(request).answer_to(line.split(' ').next().unwrap())
}

fn from(client: &mut Client, address: &str, path: &str) -> Answer {
    let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {address}\r\n\r\n");
    client.send(head).answer()
}

/// What decides there now, as an operator sees it.
fn mode(replica: &Tollgate) -> String {
    let health: Value = serde_json::from_slice(&replica.admin("/health").body).unwrap();
    health["rate_limiter"]["mode"].as_str().unwrap().to_owned()
}

// ------------------------------------------------------------------------- what is let pass

/// Kong/kong#2629, #5311: usage was read, then decided, then written.
#[test]
fn kong_2629_of_a_thousand_requests_at_once_five_pass() {
    let Some(server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let replicas = pair(&backend, &server, &free("per_hour: 5"));
    let (clients, each) = (50, 20);
    let begin = Barrier::new(clients);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients)
            .map(|index| {
                let (begin, mut client) = (&begin, replicas[index % 2].connect());
                scope.spawn(move || {
                    begin.wait();
                    // All that it has to say at once.
                    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(each));
                    (0..each).map(|_| client.answer().status).collect::<Vec<_>>()
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let tally = tally(statuses);
    assert_eq!((tally[&200], tally[&429]), (5, 995), "{tally:?}");
    assert_eq!(backend.seen().len(), 5);
}

/// TykTechnologies/tyk#3102: whoever asked at more than the rate was refused for ever.
#[test]
fn tyk_3102_at_twice_the_rate_half_passes() {
    let Some(server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let replicas = pair(&backend, &server, &free("per_second: 5, burst: 5"));
    let mut clients = replicas.each_ref().map(Tollgate::connect);
    let (started, mut passed, mut sent) = (Instant::now(), 0_u32, 0_u32);
    let mut passed_late = 0;
    while sent < 60 {
        let status = clients[sent as usize % 2].get("/").status;
        sent += 1;
        passed += u32::from(status == 200);
        passed_late += u32::from(status == 200 && sent > 30);
        let next = started + Duration::from_millis(100) * sent;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let elapsed = started.elapsed().as_secs_f64();
    assert!(f64::from(passed) <= 5.0 + 5.0 * elapsed, "{passed} in {elapsed} s");
    assert!(passed >= 25, "{passed} of {sent} in {elapsed} s");
    assert!(passed_late >= 10, "{passed_late} of the last thirty");
}

/// envoyproxy/ratelimit#427, #430: what one limit refused, the others counted.
#[test]
fn envoy_ratelimit_427_what_the_hour_refuses_the_second_does_not_count() {
    let Some(server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let tiers = free("per_second: 1, burst: 1000, per_day: 1000")
        + "endpoints:\n  - { name: heavy, path: /heavy, limits: { any: { per_hour: 3 } } }\n";
    let replicas = pair(&backend, &server, &tiers);
    let statuses: Vec<u16> =
        (0..103).map(|index| replicas[index % 2].get("/heavy").status).collect();
    assert_eq!(tally(statuses), [(200, 3), (429, 100)].into());
    let answer = call(&replicas[0], "GET /api/v1/identities/ip:127.0.0.1", None);
    let seen: Value = serde_json::from_slice(&answer.body).unwrap();
    for limit in seen["limits"].as_array().unwrap() {
        assert!(limit["used"].as_u64().unwrap() <= 3, "{seen}");
        assert!(limit["remaining"].as_u64() == Some(0) || limit["limit"] == 1000, "{seen}");
    }
    assert_eq!(replicas[1].get("/").number("x-ratelimit-remaining"), 996);
}

async fn connect(server: &RedisServer) -> RedisStore {
    let mut settings = RedisSettings::new(url::redis(&server.url()).unwrap().target());
    settings.timeout = Duration::from_secs(20);
    let shared = Arc::new(RedisShared::new(settings, Arc::new(MemoryStore::new(1_000))));
    let store = RedisStore::connect(shared);
    assert!(store.wait_connected(Duration::from_secs(20)).await, "no connection");
    store
}

/// spring-cloud/spring-cloud-gateway#2412: replicas sent their own time, and the one whose clock
/// was ahead filled the bucket for all.
#[tokio::test]
async fn spring_cloud_gateway_2412_a_replicas_clock_is_of_no_matter() {
    let Some(server) = RedisServer::spawn() else { return };
    let stores = [connect(&server).await, connect(&server).await, connect(&server).await];
    let some = |count| NonZeroU32::new(count).unwrap();
    let set = LimitSet {
        second: Some(Bucket { rate: some(1), burst: some(30) }),
        minute: NonZeroU32::new(1_000),
        ..LimitSet::default()
    };
    let mut plan = Plan::new(Identity::User("anna".into()), TierId(0), TierSource::Default);
    let limits = Limits { set, mode: Mode::Enforce };
    plan.push(Scope { rule: None, key: "i", key_hash: 0, limits });
    let started = Instant::now();
    let mut passed = 0;
    for round in 0..300 {
        let now = Clock::System.now();
        let five = Micros::from_micros(5_000_000);
        let skewed = [now.plus(five), now.minus(five), now][round % 3];
        let checked = stores[round % 3].check(&plan, skewed).await;
        let Checked::Decided { decision, backend } = checked else { panic!("{checked:?}") };
        assert!(matches!(backend, Decider::Redis | Decider::Cache));
        passed += u64::from(decision.verdict == Verdict::Allow);
        let off = |one: Timestamp| one.since(now).max(now.since(one));
        assert!(off(decision.now) < Micros::from_micros(4_000_000), "the time is Redis's");
    }
    let most = 30 + started.elapsed().as_secs() + 1;
    assert!((30..=most).contains(&passed), "{passed} of {most}");
}

/// sozu-proxy/sozu#1270: one customer has 2^64 addresses, and each was a caller.
#[test]
fn sozu_1270_all_addresses_of_a_network_are_one_caller() {
    let address = |index: u128| Ipv6Addr::from_bits((0x2001_0db8_0001_0002 << 64) | index);
    let spread = |index: u64| u128::from(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let addresses: HashSet<Ipv6Addr> = (1..=100_000).map(|it| address(spread(it))).collect();
    assert_eq!(addresses.len(), 100_000);
    let identity =
        |it: &Ipv6Addr| Identity::Ip(IpPrefix::new(IpAddr::V6(*it), PrefixLengths::default()));
    let identities: HashSet<Identity> = addresses.iter().map(identity).collect();
    assert_eq!(identities.len(), 1);

    // The same from outside, with what Redis holds of it.
    let Some(server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let replicas = pair(&backend, &server, &free("per_hour: 10"));
    let mut clients = replicas.each_ref().map(Tollgate::connect);
    let statuses: Vec<u16> = addresses
        .iter()
        .take(400)
        .enumerate()
        .map(|(index, it)| from(&mut clients[index % 2], &it.to_string(), "/").status)
        .collect();
    assert_eq!(tally(statuses), [(200, 10), (429, 390)].into());
    assert_eq!(server.keys().len(), 1, "{:?}", server.keys());
    assert_eq!(from(&mut clients[0], "2001:db8:1:3::1", "/").status, 200, "the next network");
}

// ---------------------------------------------------------------------------- Redis in trouble

/// One caller's requests until it is ended; the longest that one took, and all statuses.
struct Traffic {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<(Duration, Vec<u16>)>,
}

impl Traffic {
    fn to(replica: &Tollgate) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&answered));
        let mut client = replica.connect();
        let thread = std::thread::spawn(move || {
            let (mut longest, mut statuses) = (Duration::ZERO, Vec::new());
            while !stopped.load(Ordering::Acquire) {
                let sent = Instant::now();
                statuses.push(client.get("/").status);
                longest = longest.max(sent.elapsed());
                count.fetch_add(1, Ordering::AcqRel);
                std::thread::sleep(Duration::from_millis(3));
            }
            (longest, statuses)
        });
        Traffic { stop, answered, thread }
    }

    fn pass(&self, count: usize) {
        let before = self.answered.load(Ordering::Acquire);
        wait_until("answers", || self.answered.load(Ordering::Acquire) >= before + count);
    }

    fn end(self) -> Duration {
        self.stop.store(true, Ordering::Release);
        let (longest, statuses) = self.thread.join().unwrap();
        assert!(statuses.iter().all(|it| *it == 200), "{:?}", tally(statuses));
        longest
    }
}

/// envoyproxy/ratelimit#462, #1018: a Redis that stood still held every request for ten seconds.
#[test]
fn envoy_ratelimit_462_a_redis_that_stands_still_delays_nobody() {
    let Some(server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let replica = start(&backend, &server, NARROW, &free("per_hour: 1000000"));
    wait_until("Redis decides", || mode(&replica) == "exact");
    let traffic = Traffic::to(&replica);
    traffic.pass(20);
    server.pause();
    wait_until("it decides alone", || mode(&replica) == "local");
    traffic.pass(50);
    server.resume();
    wait_until("Redis decides again", || mode(&replica) == "exact");
    traffic.pass(20);
    let longest = traffic.end();
    assert!(longest < Duration::from_millis(100) + SLACK, "{longest:?}");
}

/// envoyproxy/ratelimit#1191, #297, #750: after a failover the pool wrote to a replica until
/// somebody restarted it.
#[test]
fn envoy_ratelimit_1191_a_redis_that_was_demoted_is_used_again_without_a_restart() {
    let Some(server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let replica = start(&backend, &server, NARROW, &free("per_hour: 1000000"));
    wait_until("Redis decides", || mode(&replica) == "exact");
    let traffic = Traffic::to(&replica);
    for _ in 0..2 {
        traffic.pass(10);
        server.words("REPLICAOF 127.0.0.1 1");
        wait_until("it decides alone", || mode(&replica) == "local");
        traffic.pass(10);
        server.words("REPLICAOF NO ONE");
        wait_until("Redis decides again", || mode(&replica) == "exact");
    }
    let keys = server.keys().len();
    assert!(keys > 0, "and it is written to");
    traffic.end();
}

/// envoyproxy/ratelimit#1143: without a Redis it ended, and was started again, and ended.
#[test]
fn envoy_ratelimit_1143_it_starts_without_redis_and_finds_it_later() {
    let Some(mut server) = RedisServer::prepare(&[]) else { return };
    let backend = Backend::ok();
    let replica = start(&backend, &server, NARROW, &free("per_hour: 1000000"));
    assert_eq!(replica.get("/").status, 200);
    wait_until("it is told", || mode(&replica) == "local");
    assert!(!server.is_running() && replica.admin("/livez").status == 200);
    server.start();
    wait_until("Redis decides", || mode(&replica) == "exact");
    assert_eq!(replica.get("/").status, 200);
    wait_until("what passed is counted there", || !server.keys().is_empty());
}

// ----------------------------------------------------------------------- changes, and leftovers

/// apache/apisix#12823: a proxy that died kept its connections counted for ever.
#[test]
fn apisix_12823_fifty_places_of_a_killed_proxy_come_back_within_the_lease() {
    let Some(server) = RedisServer::spawn() else { return };
    let inside = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&inside);
    let backend = Backend::spawn(move |mut connection| {
        while let Some(request) = connection.request() {
            if request.target() == "/slow" {
                seen.fetch_add(1, Ordering::AcqRel);
                // Until its caller is gone, or the test.
                connection.read_some(1);
                return;
            }
            if !connection.ok("ok") {
                return;
            }
        }
    });
    let [mut doomed, other] = pair(&backend, &server, &free("concurrency: 50"));
    let running: Vec<Client> = (0..50)
        .map(|_| {
            let mut client = doomed.connect();
            client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
            client
        })
        .collect();
    wait_until("all run", || inside.load(Ordering::Acquire) == 50);
    assert_eq!(other.get("/").status, 429);
    let killed = Instant::now();
    doomed.signal("KILL");
    doomed.wait();
    wait_until("all places are back", || {
        let answer = other.get("/");
        answer.status == 200 && answer.number("x-ratelimit-remaining") == 49
    });
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
    drop(running);
}

/// mailgun/gubernator#37: a limit that was changed held only once its window was over. And
/// apache/apisix#6760: a change began all counters anew.
#[test]
fn gubernator_37_apisix_6760_a_lowered_limit_holds_at_once_for_what_was_spent() {
    let Some(server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let replicas = pair(&backend, &server, &free("per_hour: 100"));
    for index in 0..40 {
        assert_eq!(replicas[index % 2].get("/").status, 200);
    }
    let put_in_force = |limits: &str| {
        for replica in &replicas {
            fs::write(replica.path("tiers.yaml"), free(limits)).unwrap();
            assert_eq!(call(replica, "POST /api/v1/reload", None).status, 200);
        }
    };
    put_in_force("per_hour: 40");
    for replica in &replicas {
        let answer = replica.get("/");
        assert_eq!((answer.status, answer.number("x-ratelimit-limit")), (429, 40));
    }
    // The same again, and a reload by which nothing changes: nothing of it is forgotten.
    put_in_force("per_hour: 41");
    put_in_force("per_hour: 41");
    let statuses = [0, 1, 0, 1].map(|index: usize| replicas[index].get("/").status);
    assert_eq!(statuses, [200, 429, 429, 429]);
}

/// express-rate-limit/rate-limit-redis#216: keys were left without an end, and their callers locked
/// out for ever. Here only what operators have said lasts until they say otherwise.
#[test]
fn rate_limit_redis_216_every_key_ends_by_itself() {
    let Some(server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let directory = tempfile::tempdir().unwrap();
    let config = format!(
        "server: {{ workers: 2, trusted_proxies: [127.0.0.0/8] }}\n\
         store: {{ redis: {{ url: '{}', timeout: 10s }} }}\n\
         usage: {{ sink: redis, dir: '{}', flush: 1s }}\n",
        server.url(),
        directory.path().display()
    );
    let tiers = "default_tier: free
tiers:
  free: { per_second: 50, burst: 60, per_minute: 500, per_hour: 600, per_day: 700, per_month: 900,
    concurrency: 5 }
  small: { per_second: 1, burst: 1 }
endpoints:
  - { name: heavy, path: /heavy, limits: { any: { per_month: 9, concurrency: 1 } } }
";
    let replicas = [(); 2]
        .map(|()| Start::default().upstream(backend.address).config(&config).tiers(tiers).run());
    let say = |line: &str, body: &Value| {
        let answer = call(&replicas[0], line, Some(body));
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    say("PUT /api/v1/identities/ip:192.0.2.1/override", &json!({ "tier": "small" }));
    say("PUT /api/v1/deny/ip:192.0.2.2", &json!({ "until": "2099-01-01T00:00:00Z" }));
    let mut clients = replicas.each_ref().map(Tollgate::connect);
    let mut statuses = Vec::new();
    let mut ask_all = || {
        for round in 0..60 {
            for address in ["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1"] {
                let path = if round % 5 == 0 { "/heavy" } else { "/" };
                let answer = from(&mut clients[round % 2], address, path);
                statuses.push(answer.status);
            }
        }
    };
    ask_all();
    assert_eq!(call(&replicas[1], "DELETE /api/v1/identities/ip:192.0.2.3", None).status, 204);
    ask_all();
    let seen = tally(statuses);
    assert!(seen.keys().all(|it| matches!(it, 200 | 403 | 429)), "{seen:?}");
    assert_eq!(seen.len(), 3, "passed, refused and denied: {seen:?}");
    let has = |part: &str| {
        let is_it = |key: &Vec<u8>| String::from_utf8_lossy(key).contains(part);
        server.all_keys().iter().any(is_it)
    };
    wait_until("replicas and usage have written", || has("{replicas}") && has("usage"));
    let mut without = HashSet::new();
    let keys = server.all_keys();
    for key in &keys {
        match server.command(&[b"PTTL", key]) {
            // Of -2, it has ended meanwhile.
            Reply::Integer(left) if left > 0 || left == -2 => {
                assert!(left < 420 * 86_400_000, "{left} ms of {}", String::from_utf8_lossy(key));
            }
            Reply::Integer(-1) => _ = without.insert(String::from_utf8_lossy(key).into_owned()),
            other => panic!("{other:?}"),
        }
    }
    let permanent = ["tg:{overrides}:table", "tg:{overrides}:log"].map(str::to_owned);
    assert_eq!(without, HashSet::from(permanent), "of {}", keys.len());
}

// ------------------------------------------------------------------------------- the list above

#[test]
fn each_test_that_is_named_above_is_there() {
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
    let this = fs::read_to_string(format!("{tests}/known_bugs.rs")).unwrap();
    let named: Vec<Vec<&str>> = this
        .lines()
        .filter(|line| line.starts_with("//!   `"))
        .map(|line| line.split('`').collect())
        .collect();
    assert_eq!(named.len(), 9);
    for names in named {
        let suite = fs::read_to_string(format!("{tests}/{}", names[1])).unwrap();
        assert!(suite.contains(&format!("fn {}()", names[3])), "{names:?}");
    }
}
