//! The real binary with a real Redis in each form that it may have: over TLS, as a user of an ACL,
//! behind sentinels, as a cluster; and what becomes of limits while servers die, are replaced, and
//! hand their slots on. Needs a `redis-server` and a `redis-sentinel`; without one each test says
//! that it is skipped.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/redis.rs"]
mod redis;
#[path = "support/redis_forms.rs"]
mod redis_forms;
mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tollgate::clock::monotonic;
use tollgate::policy::identity::Identity;
use tollgate::store::redis::names::KeyNames;

use certificates::Authority;
use redis::{RedisServer, Reply};
use redis_forms::{Cluster, SILENCE_MS, Watched, agreed, ok, slot, text};
use support::{Backend, Start, Tollgate, wait_until};

/// Within so long after the servers are ready again, limits are decided there again.
const RECOVERY: Duration = Duration::from_secs(2);
/// What a busy machine may add to that before it is a fault.
const SLACK: Duration = Duration::from_secs(6);
/// Callers that a look at all of a Redis takes: no third of the slots is without some of them.
const CALLERS: usize = 60;
/// The keys that have no end: what operators have said holds until they say otherwise.
const ENDLESS: [&str; 2] = ["tg:{overrides}:table", "tg:{overrides}:log"];

fn start(backend: &Backend, url: &str, more: &str, tiers: &str) -> Tollgate {
    let config = format!(
        "server: {{ workers: 2, trusted_proxies: [127.0.0.1/32] }}
store: {{ redis: {{ url: '{url}', timeout: 250ms, on_failure: local{more} }} }}
log: {{ level: debug }}
"
    );
    Start::default().upstream(backend.address).config(&config).tiers(tiers).run()
}

/// Limits that no test reaches.
const WIDE: &str = "default_tier: free\ntiers:\n  free: { per_hour: 1000000 }\n";

/// Sum of all series of `name` whose labels hold `label`.
fn sum(tollgate: &Tollgate, name: &str, label: &str) -> f64 {
    let page = tollgate.admin("/metrics").text();
    let samples = page.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    samples
        .filter(|line| line.contains(label))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

fn fallbacks(tollgate: &Tollgate) -> f64 {
    sum(tollgate, "tollgate_limiter_fallback_total", "")
}

/// The address of a caller.
fn caller(index: usize) -> String {
    format!("10.0.{}.{}", index / 250, index % 250 + 1)
}

/// One request of a caller.
fn ask(tollgate: &Tollgate, caller: &str) -> u16 {
    let request = format!("GET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: {caller}\r\n\r\n");
    tollgate.connect().send(request).answer().status
}

/// Whether Redis decides for every caller, whichever server keeps what is known of him.
fn is_in_redis(tollgate: &Tollgate) -> bool {
    let before = fallbacks(tollgate);
    for index in 0..CALLERS {
        assert_eq!(ask(tollgate, &caller(index)), 200, "{}", tollgate.log());
    }
    fallbacks(tollgate) == before
}

/// Waits until it does.
#[track_caller]
fn wait_in_redis(tollgate: &Tollgate) {
    wait_until("Redis decides", || is_in_redis(tollgate));
}

/// Holds the time since the servers were ready to what is promised.
#[track_caller]
fn in_time(tollgate: &Tollgate, what: &str, ready: Instant) {
    wait_in_redis(tollgate);
    let took = ready.elapsed();
    println!("{what}: decided in Redis {} ms after it was ready", took.as_millis());
    assert!(took < RECOVERY + SLACK, "{what}: {took:?}\n{}", tollgate.log());
}

/// Every key but those that operators make has an end.
fn expect_ends<'a>(servers: impl IntoIterator<Item = &'a RedisServer>) {
    let mut keys_seen = 0;
    for server in servers {
        for key in server.keys() {
            let name = String::from_utf8_lossy(&key).into_owned();
            // Gone between the two looks is ended, too.
            let left = server.command(&[b"PTTL", &key]);
            let ends = matches!(left, Reply::Integer(left) if left > 0 || left == -2);
            let is_asked_elsewhere =
                matches!(&left, Reply::Error(error) if error.starts_with("MOVED"));
            let is_endless = ENDLESS.contains(&name.as_str());
            assert!(ends || is_endless || is_asked_elsewhere, "{name}: {left:?}");
            keys_seen += 1;
        }
    }
    assert!(keys_seen > 0, "no key at all");
}

/// Callers who keep asking, each one after the other, on connections of their own.
struct Traffic {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<HashMap<u16, usize>>>,
}

impl Traffic {
    fn of(tollgate: &Tollgate, callers: &[String]) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let threads = callers
            .chunks(callers.len().div_ceil(4))
            .map(|callers| {
                let (is_over, callers) = (Arc::clone(&is_over), callers.to_vec());
                let mut client = tollgate.connect();
                std::thread::spawn(move || {
                    let mut seen = HashMap::new();
                    for caller in callers.iter().cycle() {
                        if is_over.load(Ordering::Relaxed) {
                            break;
                        }
                        client.send(format!(
                            "GET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: {caller}\r\n\r\n"
                        ));
                        *seen.entry(client.answer().status).or_default() += 1;
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    seen
                })
            })
            .collect();
        Traffic { is_over, threads }
    }

    fn of_all(tollgate: &Tollgate) -> Self {
        Self::of(tollgate, &(0..CALLERS).map(caller).collect::<Vec<_>>())
    }

    /// How often each status was seen.
    fn end(self) -> HashMap<u16, usize> {
        self.is_over.store(true, Ordering::Relaxed);
        let mut all: HashMap<u16, usize> = HashMap::new();
        for thread in self.threads {
            for (status, count) in thread.join().unwrap() {
                *all.entry(status).or_default() += count;
            }
        }
        all
    }

    /// Nothing but 200 was seen.
    #[track_caller]
    fn end_well(self) {
        let seen = self.end();
        assert_eq!(seen.keys().collect::<Vec<_>>(), [&200], "{seen:?}");
    }
}

/// The key of what is known of a caller, without the scope's name.
fn key_of(caller: &str) -> String {
    let identity = Identity::parse_written(&format!("ip:{caller}")).unwrap();
    format!("tg:{{{}}}", KeyNames::new("tg").identity_hash(&identity))
}

// ------------------------------------------------------------------------------------------- TLS

#[test]
fn tls_trusts_the_authority_it_was_given_and_shows_its_certificate() {
    let authority = Authority::new();
    let port = redis::free_port().to_string();
    let (ca, cert, key) =
        (authority.file("ca.crt"), authority.file("server.crt"), authority.file("server.key"));
    let Some(server) = RedisServer::spawn_with(&[
        "--tls-port",
        &port,
        "--tls-auth-clients",
        "yes",
        "--tls-ca-cert-file",
        &ca,
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
    ]) else {
        return;
    };
    let backend = Backend::ok();
    let url = format!("rediss://127.0.0.1:{port}/2");
    let own = format!(
        ", tls: {{ ca: {ca}, client_cert: {}, client_key: {} }}",
        authority.file("client.crt"),
        authority.file("client.key")
    );
    let tollgate = start(&backend, &url, &own, WIDE);
    wait_in_redis(&tollgate);
    assert!(text(&server, "INFO keyspace").contains("db2:keys="));
    // Nobody is told anything in plain text, and whoever cannot be believed is not talked to.
    for wrong in [
        String::new(),
        format!(", tls: {{ ca: {ca} }}"),
        format!(", tls: {{ ca: {} }}", authority.file("other.crt")),
    ] {
        let other = start(&backend, &url, &wrong, WIDE);
        wait_until("the breaker is open", || {
            other.metric("circuit_breaker_state{service=\"redis\"}") == 2.0
        });
        assert_eq!(ask(&other, &caller(0)), 200);
        assert!(other.log().contains(&url), "{}", other.log());
    }
}

// -------------------------------------------------------------------------------------- Sentinel

#[test]
fn a_primary_that_sentinels_replace_is_followed() {
    const PASSWORD: &str = "sentinels-s3cret";
    let Some(mut watched) = Watched::spawn(2, Some(PASSWORD)) else { return };
    let backend = Backend::ok();
    for server in &watched.servers {
        ok(server, "ACL SETUSER tollgate on >s3cret-too ~tg:* +@all");
    }
    let url = watched.url("tollgate:s3cret-too@", &format!("&sentinelPassword={PASSWORD}"));
    let tollgate = start(&backend, &url, "", WIDE);
    wait_in_redis(&tollgate);

    // One that is killed.
    let traffic = Traffic::of_all(&tollgate);
    watched.servers[0].kill();
    agreed("another primary", || watched.primary().is_some_and(|it| it != 0));
    in_time(&tollgate, "a primary that was killed", monotonic());
    traffic.end_well();
    expect_ends(watched.servers.iter().filter(|it| it.is_running()));

    // One that is told to be a replica, while the first sentinel of the URL is stuck.
    let before = watched.primary().unwrap();
    watched.servers[0].start();
    ok(&watched.servers[0], "ACL SETUSER tollgate on >s3cret-too ~tg:* +@all");
    agreed("the old one follows the new", || {
        text(&watched.servers[0], "INFO replication").contains("master_link_status:up")
    });
    let traffic = Traffic::of_all(&tollgate);
    watched.fail_over();
    agreed("another primary", || watched.primary().is_some_and(|it| it != before));
    watched.pause_first_sentinel();
    in_time(&tollgate, "a primary that was demoted", monotonic());
    traffic.end_well();
    expect_ends(&watched.servers);
    let log = tollgate.log();
    assert!(!log.contains("s3cret"), "{log}");
}

// --------------------------------------------------------------------------------------- Cluster

#[test]
fn a_cluster_goes_on_without_one_of_its_primaries() {
    let Some(mut cluster) = Cluster::spawn(3, 3, &[]) else { return };
    let backend = Backend::ok();
    let tollgate = start(&backend, &cluster.url(&[0, 1]), "", WIDE);
    wait_in_redis(&tollgate);
    let (of_dead, of_living): (Vec<String>, Vec<String>) = (0..CALLERS)
        .map(caller)
        .partition(|caller| cluster.first_keeper(slot(&cluster.servers[0], &key_of(caller))) == 1);
    assert!(!of_dead.is_empty() && !of_living.is_empty());

    let traffic = Traffic::of_all(&tollgate);
    cluster.servers[1].kill();
    let killed = monotonic();
    wait_until("the lost connection is noticed", || fallbacks(&tollgate) > 0.0);
    traffic.end_well();
    // Those whom the others keep do not notice, before the cluster itself does.
    let before = fallbacks(&tollgate);
    let mut asked = 0;
    while killed.elapsed() < Duration::from_millis(SILENCE_MS.parse().unwrap()) {
        assert_eq!(ask(&tollgate, &of_living[asked % of_living.len()]), 200);
        asked += 1;
    }
    println!("{asked} requests were decided by the others meanwhile");
    assert_eq!(fallbacks(&tollgate), before, "{}", tollgate.log());
    let traffic = Traffic::of_all(&tollgate);
    cluster.wait_promoted(4);
    in_time(&tollgate, "a primary of a cluster that was killed", monotonic());
    traffic.end_well();
    assert!(of_dead.iter().all(|caller| ask(&tollgate, caller) == 200));
    expect_ends(cluster.running());
}
