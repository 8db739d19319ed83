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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tollgate::clock::monotonic;
use tollgate::policy::identity::Identity;
use tollgate::store::redis::names::KeyNames;

use certificates::Authority;
use redis::{RedisServer, Reply};
use redis_forms::{Cluster, SILENCE_MS, Sentinel, Watched, agreed, has_sentinels, ok, slot, text};
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
    start_with(backend, url, more, "", tiers)
}

fn start_with(backend: &Backend, url: &str, more: &str, top: &str, tiers: &str) -> Tollgate {
    let config = format!(
        "server: {{ workers: 2, trusted_proxies: [127.0.0.1/32] }}
store: {{ redis: {{ url: '{url}', timeout: 250ms, on_failure: local{more} }} }}
log: {{ level: debug }}
{top}"
    );
    Start::default().upstream(backend.address).config(&config).tiers(tiers).run()
}

/// Limits that no test reaches.
const WIDE: &str = "default_tier: free\ntiers:\n  free: { per_hour: 1000000 }\n";

/// Sum of all series of `name` whose labels hold `label`.
fn sum(tollgate: &Tollgate, name: &str, label: &str) -> f64 {
    sum_of(&tollgate.admin("/metrics").text(), name, label)
}

/// The same of a page of metrics.
fn sum_of(page: &str, name: &str, label: &str) -> f64 {
    let samples = page.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    samples
        .filter(|line| line.contains(label))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

const FALLBACKS: &str = "tollgate_limiter_fallback_total";

fn fallbacks(tollgate: &Tollgate) -> f64 {
    sum(tollgate, FALLBACKS, "")
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

/// Holds the time from the moment when the servers were ready to the last decision without them, among
/// those of the traffic, to what is promised.
#[track_caller]
fn in_time(tollgate: &Tollgate, traffic: &Traffic, what: &str, ready: Instant) {
    wait_in_redis(tollgate);
    let took = traffic.last_without().saturating_duration_since(ready);
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
    watcher: JoinHandle<()>,
    last_without: Arc<Mutex<Instant>>,
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
        let last_without = Arc::new(Mutex::new(monotonic()));
        let watcher = {
            let (is_over, last) = (Arc::clone(&is_over), Arc::clone(&last_without));
            let admin = tollgate.admin;
            std::thread::spawn(move || {
                let mut before = 0.0;
                while !is_over.load(Ordering::Relaxed) {
                    let asked = monotonic();
                    let page = support::Client::connect(admin).get("/metrics").text();
                    let count = sum_of(&page, FALLBACKS, "");
                    if count > before {
                        *last.lock().unwrap() = asked;
                    }
                    before = count;
                    std::thread::sleep(Duration::from_millis(5));
                }
            })
        };
        Traffic { is_over, threads, watcher, last_without }
    }

    /// When one of the requests was last decided without Redis, to some milliseconds; when it began, if
    /// none was.
    fn last_without(&self) -> Instant {
        *self.last_without.lock().unwrap()
    }

    fn of_all(tollgate: &Tollgate) -> Self {
        Self::of(tollgate, &(0..CALLERS).map(caller).collect::<Vec<_>>())
    }

    /// How often each status was seen.
    fn end(self) -> HashMap<u16, usize> {
        self.is_over.store(true, Ordering::Relaxed);
        self.watcher.join().unwrap();
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

/// What the guide tells to type of an ACL, with what it says of these cases.
fn rights(cases: &[&str]) -> String {
    let guide = std::fs::read_to_string("docs/redis.md").unwrap();
    let find = |begin: &str| guide.lines().find(|line| line.starts_with(begin)).unwrap();
    let more = cases.iter().map(|case| find(case).rsplit('`').nth(1).unwrap());
    let all = std::iter::once(find("ACL SETUSER tollgate")).chain(more).collect::<Vec<_>>();
    all.join(" ").replace("PASSWORD", PASSWORD)
}

const PASSWORD: &str = "s3cret";
/// In front of a URL's host.
const USER_INFO: &str = "tollgate:s3cret@";

/// Whoever was let in was refused nothing.
fn expect_rights(server: &RedisServer) {
    assert_eq!(server.words("ACL LOG"), Reply::List(Vec::new()));
}

/// The key of what is known of a caller, without the scope's name.
fn key_of(caller: &str) -> String {
    let identity = Identity::parse_written(&format!("ip:{caller}")).unwrap();
    format!("tg:{{{}}}", KeyNames::new("tg").identity_hash(&identity))
}

// ------------------------------------------------------------------------------------ one server

#[test]
fn one_server_that_forgets_ends_and_is_demoted() {
    let Some(mut server) = RedisServer::spawn_tcp() else { return };
    let backend = Backend::ok();
    let tollgate = start(&backend, &server.tcp_url(), "", WIDE);
    wait_in_redis(&tollgate);
    ok(&server, "SCRIPT FLUSH");
    assert!(is_in_redis(&tollgate), "each request brings the script, if it is not there");
    let is_open = || tollgate.metric("circuit_breaker_state{service=\"redis\"}") == 2.0;
    let traffic = Traffic::of_all(&tollgate);
    server.kill();
    wait_until("it is given up", is_open);
    server.start();
    in_time(&tollgate, &traffic, "one server that started with nothing", monotonic());
    ok(&server, "REPLICAOF 127.0.0.1 1");
    wait_until("it is given up", is_open);
    ok(&server, "REPLICAOF NO ONE");
    in_time(&tollgate, &traffic, "one server that was a replica for a while", monotonic());
    traffic.end_well();
    expect_ends([&server]);
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

#[test]
fn a_cluster_and_sentinels_may_use_tls_too() {
    let authority = Authority::new();
    let (ca, cert, key) =
        (authority.file("ca.crt"), authority.file("server.crt"), authority.file("server.key"));
    let tls = |port: &str| {
        let words = [
            "--tls-port",
            port,
            "--tls-ca-cert-file",
            &ca,
            "--tls-cert-file",
            &cert,
            "--tls-key-file",
            &key,
            "--tls-auth-clients",
            "no",
            "--tls-replication",
            "yes",
        ];
        words.map(str::to_owned).to_vec()
    };
    let backend = Backend::ok();
    let own = format!(", tls: {{ ca: {ca} }}");

    let port = redis::free_port().to_string();
    let options = tls(&port);
    let mut options: Vec<&str> = options.iter().map(String::as_str).collect();
    options.extend(["--tls-cluster", "yes"]);
    let Some(cluster) = Cluster::spawn(1, 0, &options) else { return };
    let tollgate = start(&backend, &format!("rediss-cluster://127.0.0.1:{port}"), &own, WIDE);
    wait_in_redis(&tollgate);
    expect_ends(&cluster.servers);

    let port = redis::free_port().to_string();
    let options = tls(&port);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let (Some(server), Some(())) = (RedisServer::spawn_with(&options), has_sentinels()) else {
        return;
    };
    let sentinel = redis::free_port().to_string();
    let _sentinel = Sentinel::spawn_over_tls(&port, &tls(&sentinel));
    let url =
        format!("rediss-sentinel://127.0.0.1:{sentinel}?sentinelServiceName={}", Watched::SERVICE);
    let tollgate = start(&backend, &url, &own, WIDE);
    wait_in_redis(&tollgate);
    expect_ends([&server]);
}

// -------------------------------------------------------------------------------------- Sentinel

#[test]
fn a_primary_that_sentinels_replace_is_followed() {
    const OF_SENTINELS: &str = "sentinels-s3cret";
    let Some(mut watched) = Watched::spawn(2, Some(OF_SENTINELS)) else { return };
    let rights = rights(&["- behind sentinels"]);
    let backend = Backend::ok();
    for server in &watched.servers {
        ok(server, &rights);
    }
    let url = watched.url(USER_INFO, &format!("&sentinelPassword={OF_SENTINELS}"));
    let tollgate = start(&backend, &url, "", WIDE);
    wait_in_redis(&tollgate);

    // One that is killed.
    let traffic = Traffic::of_all(&tollgate);
    watched.servers[0].kill();
    let (primary, named) = watched.replaced(0);
    println!("the sentinels name it {} ms after it is a primary", (named - primary).as_millis());
    in_time(&tollgate, &traffic, "a primary that was killed", named);
    traffic.end_well();
    expect_ends(watched.servers.iter().filter(|it| it.is_running()));

    // One that is told to be a replica, while the first sentinel of the URL is stuck.
    let before = watched.primary().unwrap();
    watched.servers[0].start();
    ok(&watched.servers[0], &rights);
    agreed("the old one follows the new", || {
        let info = watched.servers[0].try_command(&[b"INFO", b"replication"]);
        let Ok(Reply::Text(info)) = info else { return false };
        String::from_utf8_lossy(&info).contains("master_link_status:up")
    });
    let traffic = Traffic::of_all(&tollgate);
    watched.fail_over();
    let (_, named) = watched.replaced(before);
    watched.pause_first_sentinel();
    in_time(&tollgate, &traffic, "a primary that was demoted", named);
    traffic.end_well();
    expect_ends(&watched.servers);
    watched.servers.iter().for_each(expect_rights);
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
    let (primary, whole) = cluster.wait_promoted(4);
    println!(
        "the cluster is whole {} ms after it has another primary",
        (whole - primary).as_millis()
    );
    in_time(&tollgate, &traffic, "a primary of a cluster that was killed", whole);
    traffic.end_well();
    assert!(of_dead.iter().all(|caller| ask(&tollgate, caller) == 200));
    expect_ends(cluster.running());

    // Back again, as a replica, and then in its old place because somebody says so.
    cluster.servers[1].start();
    agreed("it follows who stood in", || {
        text(&cluster.servers[1], "INFO replication").contains("master_link_status:up")
    });
    let traffic = Traffic::of_all(&tollgate);
    cluster.hand_over(1);
    in_time(&tollgate, &traffic, "a primary of a cluster that handed over", monotonic());
    traffic.end_well();
    expect_ends(cluster.running());
}

#[test]
fn a_primary_that_stands_still_holds_nobody_up_but_its_own() {
    let options = ["--cluster-require-full-coverage", "no"];
    let Some(cluster) = Cluster::spawn(3, 0, &options) else { return };
    let backend = Backend::ok();
    let tollgate = start(&backend, &cluster.url(&[0]), "", WIDE);
    wait_in_redis(&tollgate);
    let keeper = |caller: &String| cluster.first_keeper(slot(&cluster.servers[0], &key_of(caller)));
    let (of_stuck, of_others): (Vec<String>, Vec<String>) =
        (0..CALLERS).map(caller).partition(|caller| keeper(caller) == 2);
    cluster.servers[2].pause();
    let traffic = Traffic::of(&tollgate, &of_stuck);
    wait_until("it is not asked any more", || {
        let asked = monotonic();
        assert_eq!(ask(&tollgate, &of_stuck[0]), 200);
        asked.elapsed() < Duration::from_millis(100)
    });
    traffic.end_well();
    // Nobody else is decided without Redis, however long it takes.
    let before = fallbacks(&tollgate);
    for caller in of_others.iter().cycle().take(500) {
        assert_eq!(ask(&tollgate, caller), 200);
    }
    assert_eq!(fallbacks(&tollgate), before, "{}", tollgate.log());
    assert_eq!(tollgate.metric("circuit_breaker_state{service=\"redis\"}"), 0.0);
    let health = tollgate.admin("/health").text();
    assert!(health.contains("\"redis\":\"degraded\""), "{health}");
    let traffic = Traffic::of_all(&tollgate);
    cluster.servers[2].resume();
    cluster.wait_whole();
    in_time(&tollgate, &traffic, "a primary that stood still", monotonic());
    traffic.end_well();
    wait_until("all is well", || {
        tollgate.admin("/health").text().contains("\"redis\":\"healthy\"")
    });
}

#[test]
fn a_slot_is_handed_on_under_traffic_and_every_request_counts_once() {
    const LIMIT: usize = 1_500;
    // Who hands over its last slot stays a primary.
    let own = ["--cluster-allow-replica-migration", "no"];
    let Some(cluster) = Cluster::spawn_with_spares(3, 0, 1, &own) else { return };
    let backend = Backend::ok();
    let tiers = format!("default_tier: free\ntiers:\n  free: {{ per_hour: {LIMIT} }}\n");
    let tollgate = start(&backend, &cluster.url(&[2, 1]), "", &tiers);
    wait_in_redis(&tollgate);
    let moved = "10.9.9.9".to_owned();
    assert_eq!(ask(&tollgate, &moved), 200);
    let slot = slot(&cluster.servers[0], &key_of(&moved));
    let mut at = cluster.first_keeper(slot);
    let before = fallbacks(&tollgate);
    let decided = || {
        tollgate.metric("tollgate_limiter_duration_seconds_count{backend=\"redis\"}")
            + tollgate.metric("tollgate_limiter_duration_seconds_count{backend=\"cache\"}")
    };
    let some_more = || {
        let so_far = decided();
        wait_until("more requests are decided", || decided() > so_far + 40.0);
    };
    let traffic = Traffic::of(&tollgate, &vec![moved.clone(); 4]);
    // The first goes to a server that nobody has asked for anything yet.
    for to in [3, 0, 1, 2, 3].into_iter().filter(|to| *to != at).collect::<Vec<_>>() {
        cluster.begin_move(slot, at, to);
        some_more();
        cluster.move_keys(slot, at, to, |_| true);
        // Now the old keeper sends each request on, this once.
        some_more();
        cluster.end_move(slot, at, to);
        some_more();
        at = to;
    }
    wait_until("all is used up", || ask(&tollgate, &moved) == 429);
    let seen = traffic.end();
    assert_eq!(fallbacks(&tollgate), before, "{}", tollgate.log());
    let statuses: Vec<u16> = seen.keys().copied().filter(|it| ![200, 429].contains(it)).collect();
    assert_eq!(statuses, [0_u16; 0], "{seen:?}");
    // One before the traffic, and what was let pass while it was waited for the end.
    let passed = backend
        .seen()
        .iter()
        .filter(|it| it.field("x-forwarded-for").is_some_and(|it| it.starts_with(&moved)))
        .count();
    assert_eq!(passed, LIMIT);
    expect_ends(&cluster.servers);
}

#[test]
fn while_half_of_an_identity_has_moved_it_is_decided_without_redis_and_then_there_again() {
    let Some(cluster) = Cluster::spawn(3, 0, &[]) else { return };
    let backend = Backend::ok();
    let tiers = format!(
        "{WIDE}endpoints:\n  - {{ name: all, path: /**, limits: {{ free: {{ per_hour: 999999 }} }} }}\n"
    );
    let tollgate = start(&backend, &cluster.url(&[0]), "", &tiers);
    wait_in_redis(&tollgate);
    let caller = caller(0);
    let slot = slot(&cluster.servers[0], &key_of(&caller));
    let from = cluster.first_keeper(slot);
    let to = (from + 1) % 3;
    let traffic = Traffic::of_all(&tollgate);
    cluster.begin_move(slot, from, to);
    cluster.move_keys(slot, from, to, |key| key.ends_with("}:i"));
    let before = fallbacks(&tollgate);
    assert_eq!(ask(&tollgate, &caller), 200);
    wait_until("without Redis", || fallbacks(&tollgate) > before);
    // One slot under way is no outage.
    assert_eq!(tollgate.metric("circuit_breaker_state{service=\"redis\"}"), 0.0);
    cluster.move_keys(slot, from, to, |_| true);
    cluster.end_move(slot, from, to);
    in_time(&tollgate, &traffic, "an identity of two keys that moved", monotonic());
    traffic.end_well();
    expect_ends(&cluster.servers);
}

#[test]
fn what_a_cluster_forgets_is_brought_again() {
    let Some(mut cluster) = Cluster::spawn(3, 0, &[]) else { return };
    let backend = Backend::ok();
    let tollgate = start(&backend, &cluster.url(&[0, 1, 2]), "", WIDE);
    wait_in_redis(&tollgate);
    for server in &cluster.servers {
        ok(server, "SCRIPT FLUSH");
    }
    assert!(is_in_redis(&tollgate), "each request brings the script, if it is not there");
    let traffic = Traffic::of_all(&tollgate);
    cluster.servers[2].kill();
    cluster.servers[2].start();
    cluster.wait_whole();
    in_time(&tollgate, &traffic, "a primary that started with nothing", monotonic());
    traffic.end_well();
    expect_ends(&cluster.servers);
}

// --------------------------------------------------------------------------------- all the others

/// Usage records in the store's Redis, with a journal there.
fn usage_in(directory: &tempfile::TempDir) -> String {
    format!("usage: {{ sink: redis, flush: 100ms, dir: '{}' }}\n", directory.path().display())
}

/// A call of the admin API.
fn call(tollgate: &Tollgate, method: &str, path: &str, body: &str) -> u16 {
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}",
        tollgate.admin
    );
    support::Client::connect(tollgate.admin).send(request).answer_to(method).status
}

/// Overrides, resets and usage records, which are kept in slots of their own.
fn expect_the_rest(tollgate: &Tollgate, url: &str, requests: usize) {
    let id = "/api/v1/identities/ip:10.0.0.1";
    assert_eq!(call(tollgate, "DELETE", id, ""), 204);
    assert_eq!(call(tollgate, "PUT", "/api/v1/deny/ip:10.7.7.7", "{}"), 200);
    wait_until("the deny list holds", || ask(tollgate, "10.7.7.7") == 403);
    assert_eq!(call(tollgate, "DELETE", "/api/v1/deny/ip:10.7.7.7", ""), 204);
    wait_until("the deny list is empty", || ask(tollgate, "10.7.7.7") == 200);
    wait_until("usage is there", || {
        let export = std::process::Command::new(env!("CARGO_BIN_EXE_tollgate"))
            .args(["usage", "export", "--source", url])
            .output()
            .unwrap();
        assert!(export.status.success(), "{}", String::from_utf8_lossy(&export.stderr));
        let text = String::from_utf8(export.stdout).unwrap();
        text.lines().filter(|line| line.contains("ip:10.0.0.")).count() >= requests
    });
}

#[test]
fn a_cluster_keeps_overrides_usage_and_subscriptions_too() {
    use tollgate::config::url;
    use tollgate::subscriptions::settings::{HashKey, RedisSettings, Settings, SourceSettings};
    use tollgate::subscriptions::{Bought, Subscriptions};

    let Some(cluster) = Cluster::spawn(3, 0, &[]) else { return };
    let backend = Backend::ok();
    let directory = tempfile::tempdir().unwrap();
    for server in &cluster.servers {
        ok(server, &rights(&["- of a cluster", "- for `usage.sink: redis`"]));
        ok(server, "ACL SETUSER tollgate ~user:*");
    }
    let url = cluster.url(&[1]).replace("://", &format!("://{USER_INFO}"));
    let usage = usage_in(&directory);
    let tollgate = start_with(&backend, &url, "", &usage, WIDE);
    wait_in_redis(&tollgate);
    expect_the_rest(&tollgate, &url, CALLERS);
    expect_ends(&cluster.servers);

    let users: Vec<String> = (0..20).map(|user| format!("u{user}")).collect();
    for user in &users {
        let key = format!("user:{user}");
        let place = cluster.first_keeper(slot(&cluster.servers[0], &key));
        cluster.servers[place].words(&format!("HSET {key} subscription plan-of-{user}"));
    }
    let settings = Settings {
        source: SourceSettings::Redis(RedisSettings {
            target: url::redis(&url).unwrap().target(),
            hash: HashKey::parse("user:{id}").unwrap(),
            field: "subscription".into(),
        }),
        timeout: Duration::from_secs(5),
        cache_ttl: Duration::from_secs(60),
        slow: Duration::from_secs(1),
    };
    let subscriptions = Subscriptions::start(settings, 1, Arc::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for user in &users {
            let bought = subscriptions.of(user).await;
            assert_eq!(bought, Bought::Plan(format!("plan-of-{user}").into()), "{user}");
        }
    });
    cluster.servers.iter().for_each(expect_rights);
}

#[test]
fn the_rights_that_the_guide_names_are_enough_and_all_are_used() {
    let Some(server) = RedisServer::spawn_tcp() else { return };
    let rights = rights(&["- for `usage.sink: redis`"]);
    ok(&server, &rights);
    ok(&server, "CONFIG RESETSTAT");
    let backend = Backend::ok();
    let directory = tempfile::tempdir().unwrap();
    let url = format!("redis://{USER_INFO}127.0.0.1:{}", server.port());
    let usage = usage_in(&directory);
    let tollgate = start_with(&backend, &url, "", &usage, WIDE);
    wait_in_redis(&tollgate);
    expect_the_rest(&tollgate, &url, CALLERS);
    // What did not reach the backend is given back.
    let nowhere = Start::default()
        .upstream(support::nobody())
        .config(&format!("store: {{ redis: {{ url: '{url}' }} }}\nupstream: {{ retries: 0 }}\n"))
        .tiers(WIDE)
        .run();
    wait_until("what did not arrive is given back", || {
        assert_eq!(nowhere.get("/").status, 502);
        text(&server, "INFO commandstats").contains("cmdstat_del:")
    });
    expect_rights(&server);
    let used = text(&server, "INFO commandstats");
    for right in rights.split(' ').filter_map(|it| it.strip_prefix('+')) {
        assert!(used.contains(&format!("cmdstat_{right}:")), "{right} is not used:\n{used}");
    }
    expect_ends([&server]);
    assert!(!tollgate.log().contains(PASSWORD), "{}", tollgate.log());
}
