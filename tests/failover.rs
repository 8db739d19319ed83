//! The real binary with a real Redis that is shared, late, gone, back, and empty: what callers are
//! told, what operators can see, and that all mends itself. Needs a `redis-server`; without one
//! each test says that it is skipped.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/redis.rs"]
mod redis;
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tollgate::clock::monotonic;

use redis::{RedisServer, Reply};
use support::{Answer, Backend, Client, Start, Tollgate, tally, wait_until};

/// A budget that only an outage misses: these tests are about what is decided.
const WIDE: &str = "10s";
/// A budget for a Redis that stands still, so that the first to notice need not wait for long.
const NARROW: Duration = Duration::from_millis(200);
/// What a busy machine may add to a budget before that is a fault.
const SLACK: Duration = Duration::from_secs(8);

const MODES: [&str; 3] = ["local", "open", "closed"];

fn start(backend: &Backend, url: &str, timeout: &str, on_failure: &str, tiers: &str) -> Tollgate {
    let config = format!(
        "server: {{ workers: 2 }}
store: {{ redis: {{ url: '{url}', timeout: {timeout}, on_failure: {on_failure} }} }}
log: {{ level: trace }}
"
    );
    Start::default().upstream(backend.address).config(&config).tiers(tiers).run()
}

fn tier(limits: &str) -> String {
    format!("default_tier: free\ntiers:\n  free: {{ {limits} }}\n")
}

/// Sum of all series of `name` whose labels hold `label`.
fn sum(tollgate: &Tollgate, name: &str, label: &str) -> f64 {
    let page = tollgate.admin("/metrics").text();
    let samples = page.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    samples
        .filter(|line| line.contains(label))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

fn fallbacks(tollgate: &Tollgate, mode: &str) -> f64 {
    sum(tollgate, "tollgate_limiter_fallback_total", &format!("mode=\"{mode}\""))
}

fn breaker(tollgate: &Tollgate) -> f64 {
    tollgate.metric("circuit_breaker_state{service=\"redis\"}")
}

fn health(tollgate: &Tollgate) -> (u16, serde_json::Value) {
    let answer = tollgate.admin("/health");
    (answer.status, serde_json::from_slice(&answer.body).unwrap())
}

/// What an operator sees while Redis is there.
fn expect_exact(tollgate: &Tollgate) {
    let (status, health) = health(tollgate);
    assert_eq!((status, &health["status"]), (200, &"healthy".into()), "{health}");
    assert_eq!(health["dependencies"]["redis"], "healthy");
    assert_eq!(health["circuit_breakers"]["redis"], "closed");
    assert_eq!(health["rate_limiter"]["mode"], "exact");
    assert_eq!(tollgate.admin("/readyz").status, 200);
    assert_eq!(tollgate.metric("rate_limit_degraded"), 0.0);
    assert_eq!(tollgate.metric("dependency_health_status{dependency=\"redis\"}"), 1.0);
    assert_eq!(breaker(tollgate), 0.0);
}

/// What an operator sees while it is away.
fn expect_degraded(tollgate: &Tollgate, mode: &str) {
    let is_closed = mode == "closed";
    let (status, health) = health(tollgate);
    let expected = if is_closed { (503, "unhealthy") } else { (200, "degraded") };
    assert_eq!((status, health["status"].as_str().unwrap()), expected, "{health}");
    assert_eq!(health["dependencies"]["redis"], "unhealthy");
    assert_eq!(health["circuit_breakers"]["redis"], "open");
    assert_eq!(health["rate_limiter"]["mode"], mode);
    assert_eq!(tollgate.admin("/livez").status, 200);
    let ready = tollgate.admin("/readyz");
    assert_eq!(ready.status, if is_closed { 503 } else { 200 }, "{}", ready.text());
    let level = MODES.iter().position(|it| *it == mode).unwrap() + 1;
    assert_eq!(tollgate.metric("rate_limit_degraded"), level as f64);
    assert_eq!(tollgate.metric("dependency_health_status{dependency=\"redis\"}"), 0.0);
}

fn wait_opened(tollgate: &Tollgate) {
    wait_until("the breaker is open", || breaker(tollgate) == 2.0);
}

/// Redis is asked, by every worker.
fn wait_recovered(tollgate: &Tollgate) {
    wait_until("redis is back", || health(tollgate).1["status"] == "healthy");
    expect_exact(tollgate);
}

/// How often each of the two messages stands in the log.
fn said(tollgate: &Tollgate) -> (usize, usize) {
    let log = tollgate.log();
    (log.matches("redis is unavailable").count(), log.matches("redis is back").count())
}

/// The redirection-free rest of a refusal for want of a store.
fn expect_refused(answer: &Answer) {
    assert_eq!(answer.status, 503, "{}", answer.head);
    assert!(answer.number("retry-after") >= 1);
    assert_eq!(answer.text(), r#"{"error":"Service unavailable"}"#);
    assert_eq!(answer.field("content-type"), Some("application/json"));
    let status = answer.field("proxy-status");
    assert_eq!(status, Some("tollgate; error=destination_unavailable"));
    expect_no_fields(answer);
}

fn expect_no_fields(answer: &Answer) {
    assert!(!answer.head.to_ascii_lowercase().contains("ratelimit"), "{}", answer.head);
}

/// So many requests, in turn to each of them, two hundred at once.
fn at_once(tollgates: &[&Tollgate], count: usize) -> Vec<Answer> {
    let mut clients: Vec<Client> =
        (0..200).map(|index| tollgates[index % tollgates.len()].connect()).collect();
    let mut answers = Vec::new();
    while answers.len() < count {
        for client in &mut clients {
            client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
        }
        answers.extend(clients.iter_mut().map(Client::answer));
    }
    answers
}

/// Requests that go on in the background, one after the other on one connection.
struct Traffic {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    thread: JoinHandle<(Vec<Answer>, Duration)>,
}

impl Traffic {
    fn to(address: SocketAddr) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let thread = {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            std::thread::spawn(move || {
                let mut client = Client::connect(address);
                let (mut answers, mut longest) = (Vec::new(), Duration::ZERO);
                while !stop.load(Ordering::Relaxed) {
                    let started = monotonic();
                    answers.push(client.get("/"));
                    longest = longest.max(started.elapsed());
                    sent.fetch_add(1, Ordering::Relaxed);
                    // Enough for a steady stream, and something left for the others.
                    std::thread::sleep(Duration::from_millis(1));
                }
                (answers, longest)
            })
        };
        Traffic { stop, sent, thread }
    }

    fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until so many more have been answered.
    fn pass(&self, count: usize) {
        let enough = self.sent() + count;
        wait_until("more requests are answered", || self.sent() >= enough);
    }

    /// Every answer, and the longest wait for one.
    fn end(self) -> (Vec<Answer>, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

// ---- one truth

#[test]
fn two_processes_on_one_redis_let_exactly_the_minutes_limit_pass() {
    let Some(server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let limits = tier("per_minute: 10");
    let first = start(&backend, &server.url(), WIDE, "closed", &limits);
    let second = start(&backend, &server.url(), WIDE, "closed", &limits);
    [&first, &second].into_iter().for_each(wait_recovered);
    let answers = at_once(&[&first, &second], 1_000);
    let (passed, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|it| it.status == 200);
    assert_eq!((passed.len(), refused.len()), (10, 990), "{:?}", tally_of(&answers));
    assert_eq!(backend.seen().len(), 10);
    // Each of the ten was a different one, wherever it came in.
    let mut left: Vec<u64> = passed.iter().map(|it| it.number("x-ratelimit-remaining")).collect();
    left.sort_unstable();
    assert_eq!(left, (0..10).collect::<Vec<_>>());
    assert!(answers.iter().all(|it| it.number("x-ratelimit-limit") == 10));
    // From the last of the ten on both know the same window.
    let reset = passed.iter().map(|it| it.number("x-ratelimit-reset")).max().unwrap();
    for answer in refused {
        assert_eq!(answer.status, 429);
        assert_eq!(answer.number("x-ratelimit-remaining"), 0);
        assert_eq!(answer.number("x-ratelimit-reset"), reset);
        let retry_after = answer.number("retry-after");
        assert!((1..=61).contains(&retry_after), "{}", answer.head);
        let body = format!(
            r#"{{"error":"Rate limit exceeded","retry_after":{retry_after},"limit":10,"period":"minute"}}"#
        );
        assert_eq!(answer.text(), body);
    }
    for tollgate in [&first, &second] {
        assert_eq!(fallbacks(tollgate, "closed"), 0.0);
        expect_exact(tollgate);
    }
}

fn tally_of(answers: &[Answer]) -> std::collections::HashMap<u16, usize> {
    tally(answers.iter().map(|it| it.status))
}

#[test]
fn two_processes_on_one_redis_share_one_bucket() {
    let Some(server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let limits = tier("per_second: 1, burst: 10");
    let first = start(&backend, &server.url(), WIDE, "closed", &limits);
    let second = start(&backend, &server.url(), WIDE, "closed", &limits);
    [&first, &second].into_iter().for_each(wait_recovered);
    let started = monotonic();
    let answers = at_once(&[&first, &second], 1_000);
    // One token comes back each second: ten where all is over within the first.
    let most = 10 + started.elapsed().as_secs() as usize;
    let passed = answers.iter().filter(|it| it.status == 200).count();
    assert!((10..=most).contains(&passed), "{passed} of {most}: {:?}", tally_of(&answers));
    assert_eq!(backend.seen().len(), passed);
    for answer in answers.iter().filter(|it| it.status == 429) {
        assert_eq!(answer.number("retry-after"), 1);
        assert_eq!(answer.number("x-ratelimit-limit"), 10);
        assert_eq!(answer.number("x-ratelimit-remaining"), 0);
        let body = r#"{"error":"Rate limit exceeded","retry_after":1,"limit":1,"period":"second"}"#;
        assert_eq!(answer.text(), body);
    }
    assert_eq!(fallbacks(&first, "closed") + fallbacks(&second, "closed"), 0.0);
}

#[test]
fn a_replica_that_drains_is_counted_no_more_at_once_and_one_that_is_killed_later() {
    let Some(server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let limits = tier("per_minute: 10");
    let replica = || start(&backend, &server.url(), WIDE, "local", &limits);
    let (first, mut second, mut third) = (replica(), replica(), replica());
    let known = || {
        let details: serde_json::Value =
            serde_json::from_slice(&first.admin("/health?verbose=1").body).unwrap();
        let known = details["details"]["dependencies"]["redis"]["replicas"].as_u64().unwrap();
        assert_eq!(details["details"]["dependencies"]["upstream"].get("replicas"), None);
        known
    };
    wait_until("all know of each other", || known() == 3);
    assert_eq!(first.metric("tollgate_replicas"), 3.0);
    second.signal("TERM");
    assert!(second.wait().success());
    assert_eq!(server.words("ZCARD tg:{replicas}"), Reply::Integer(2));
    wait_until("the others hear of it", || known() == 2);
    // Who has no time to say so counts until it has not been heard of for a while.
    third.signal("KILL");
    third.wait();
    assert_eq!(server.words("ZCARD tg:{replicas}"), Reply::Integer(2));
    wait_until("it is missed", || known() == 1);
    assert_eq!(server.words("ZCARD tg:{replicas}"), Reply::Integer(1));
}

// ---- not there at start

/// Starts without Redis, sees to what callers get, then lets Redis appear.
fn starts_without_redis(mode: &str, passed: u64, answers_meanwhile: impl Fn(&Tollgate)) {
    let Some(mut server) = RedisServer::prepare(&[]) else { return };
    let backend = Backend::ok();
    let tollgate = start(&backend, &server.url(), WIDE, mode, &tier("per_minute: 3"));
    answers_meanwhile(&tollgate);
    wait_opened(&tollgate);
    expect_degraded(&tollgate, mode);
    let before = fallbacks(&tollgate, mode);
    tollgate.get("/");
    assert_eq!(fallbacks(&tollgate, mode), before + 1.0);
    assert_eq!(before, 5.0, "every request so far was decided without Redis");
    for other in MODES.iter().filter(|it| **it != mode) {
        assert_eq!(fallbacks(&tollgate, other), 0.0);
    }
    let open = "tollgate_circuit_breaker_transitions_total{service=\"redis\",to=\"open\"}";
    assert_eq!(tollgate.metric(open), 1.0);
    assert_eq!(said(&tollgate), (1, 0));

    server.start();
    wait_recovered(&tollgate);
    // What was counted meanwhile Redis is told: the limit holds, exactly.
    let answers: Vec<Answer> = (0..4).map(|_| tollgate.get("/")).collect();
    let shown = |it: &Answer| (it.status, it.number("x-ratelimit-remaining"));
    let left = (0..3 - passed).rev().map(|left| (200, left));
    let expected: Vec<_> = left.chain(std::iter::repeat((429, 0))).take(4).collect();
    assert_eq!(answers.iter().map(shown).collect::<Vec<_>>(), expected);
    assert_eq!(fallbacks(&tollgate, mode), before + 1.0);
    let is_ours = |key: &&Vec<u8>| key.starts_with(b"tg:{") && key.ends_with(b"}:i");
    assert_eq!(server.keys().iter().filter(is_ours).count(), 1);
    assert_eq!(said(&tollgate), (1, 1));
}

#[test]
fn without_redis_at_start_local_keeps_the_limits_here() {
    starts_without_redis("local", 3, |tollgate| {
        let answers: Vec<Answer> = (0..5).map(|_| tollgate.get("/")).collect();
        let shown = |it: &Answer| (it.status, it.number("x-ratelimit-remaining"));
        let expected = [(200, 2), (200, 1), (200, 0), (429, 0), (429, 0)];
        assert_eq!(answers.iter().map(shown).collect::<Vec<_>>(), expected);
    });
}

#[test]
fn without_redis_at_start_open_lets_all_pass_and_claims_nothing() {
    starts_without_redis("open", 0, |tollgate| {
        for _ in 0..5 {
            let answer = tollgate.get("/");
            assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
            expect_no_fields(&answer);
        }
    });
}

#[test]
fn without_redis_at_start_closed_refuses() {
    starts_without_redis("closed", 0, |tollgate| {
        for _ in 0..5 {
            expect_refused(&tollgate.get("/"));
        }
    });
}

// ---- outages

#[test]
fn a_redis_that_stands_still_holds_nobody_up() {
    let Some(server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let timeout = format!("{}ms", NARROW.as_millis());
    let tollgates = MODES.map(|mode| {
        let generous = "per_minute: 1000000";
        (mode, start(&backend, &server.url(), &timeout, mode, &tier(generous)))
    });
    for (_, tollgate) in &tollgates {
        wait_recovered(tollgate);
    }
    let traffic = [0, 1, 2].map(|index| Traffic::to(tollgates[index].1.data));
    traffic.iter().for_each(|it| it.pass(20));
    server.pause();
    for (mode, tollgate) in &tollgates {
        wait_opened(tollgate);
        expect_degraded(tollgate, mode);
    }
    traffic.iter().for_each(|it| it.pass(20));
    server.resume();
    for (_, tollgate) in &tollgates {
        wait_recovered(tollgate);
    }
    traffic.iter().for_each(|it| it.pass(20));
    for ((mode, tollgate), traffic) in tollgates.iter().zip(traffic) {
        let (answers, longest) = traffic.end();
        assert!(longest < NARROW + SLACK, "{mode}: {longest:?}");
        assert!(fallbacks(tollgate, mode) >= 20.0);
        let mut without_fields = 0;
        for answer in &answers {
            let is_checked = answer.field("x-ratelimit-limit").is_some();
            without_fields += usize::from(!is_checked);
            match (*mode, answer.status) {
                ("local", 200) => assert!(is_checked),
                ("open", 200) => {}
                ("closed", 200) => assert!(is_checked),
                ("closed", 503) => expect_refused(answer),
                _ => panic!("{mode}: {}", answer.head),
            }
        }
        assert_eq!(without_fields >= 20, *mode != "local", "{mode}: {without_fields}");
    }
}

#[test]
fn a_redis_that_is_killed_and_comes_back_empty_is_exact_again() {
    let Some(mut server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let tollgate = start(&backend, &server.url(), WIDE, "local", &tier("per_minute: 10"));
    let remaining = || {
        let answer = tollgate.get("/");
        assert_eq!(answer.status, 200, "{}", answer.head);
        answer.number("x-ratelimit-remaining")
    };
    wait_recovered(&tollgate);
    assert_eq!([remaining(), remaining(), remaining()], [9, 8, 7]);
    server.kill();
    // From here on what this process knows: all that was let pass, as there is no other.
    wait_opened(&tollgate);
    assert_eq!([remaining(), remaining()], [6, 5]);
    expect_degraded(&tollgate, "local");
    server.start();
    wait_recovered(&tollgate);
    // It has been told again, of what was let pass before and without it.
    assert_eq!([remaining(), remaining()], [4, 3]);
    assert_eq!(fallbacks(&tollgate, "local"), 2.0);
    assert_eq!(said(&tollgate), (1, 1));
    assert!(tollgate.metric("tollgate_redis_reconnects_total") >= 1.0);
}

#[test]
fn a_redis_that_forgot_the_script_is_told_it_again_within_the_request() {
    let Some(server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let tollgate = start(&backend, &server.url(), WIDE, "closed", &tier("per_minute: 100"));
    wait_recovered(&tollgate);
    for round in 0..3 {
        let left: Vec<u64> =
            (0..4).map(|_| tollgate.get("/").number("x-ratelimit-remaining")).collect();
        assert_eq!(left, (96 - 4 * round..100 - 4 * round).rev().collect::<Vec<_>>());
        assert_eq!(server.words("SCRIPT FLUSH"), Reply::Text(b"OK".into()));
    }
    assert_eq!(fallbacks(&tollgate, "closed"), 0.0);
    assert!(sum(&tollgate, "tollgate_redis_errors_total", "noscript") >= 2.0);
    assert_eq!(said(&tollgate), (0, 0));
    expect_exact(&tollgate);
}

#[test]
fn a_restart_under_local_makes_no_5xx() {
    let Some(mut server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let tollgate = start(&backend, &server.url(), "1s", "local", &tier("per_minute: 100000000"));
    wait_recovered(&tollgate);
    let traffic = [0; 4].map(|_| Traffic::to(tollgate.data));
    let total = || traffic.iter().map(Traffic::sent).sum::<usize>();
    traffic.iter().for_each(|it| it.pass(50));
    server.kill();
    traffic.iter().for_each(|it| it.pass(50));
    wait_opened(&tollgate);
    server.start();
    wait_recovered(&tollgate);
    wait_until("a thousand are answered", || total() >= 1_000);
    for traffic in traffic {
        for answer in traffic.end().0 {
            assert_eq!(answer.status, 200, "{}", answer.head);
            assert!(answer.field("x-ratelimit-remaining").is_some(), "{}", answer.head);
        }
    }
    assert!(fallbacks(&tollgate, "local") >= 50.0);
    assert_eq!(said(&tollgate), (1, 1));
}

// ---- who decides what happens

#[test]
fn a_tiers_and_an_endpoints_own_mode_go_before_the_stores() {
    let Some(mut server) = RedisServer::prepare(&[]) else { return };
    let backend = Backend::ok();
    let policy = |tier: &str| {
        format!(
            "default_tier: {tier}
tiers:
  plain: {{ per_minute: 1000 }}
  strict: {{ per_minute: 1000, on_failure: closed }}
endpoints:
  - {{ name: pay, path: /pay/**, on_failure: closed }}
  - {{ name: read, path: /read/**, on_failure: open }}
  - {{ name: near, path: /near/**, on_failure: local, limits: {{ any: {{ per_minute: 2 }} }} }}
"
        )
    };
    let plain = start(&backend, &server.url(), WIDE, "local", &policy("plain"));
    let strict = start(&backend, &server.url(), WIDE, "open", &policy("strict"));
    for _ in 0..2 {
        assert_eq!(plain.get("/").number("x-ratelimit-limit"), 1000);
        // The tier's goes before the store's.
        expect_refused(&strict.get("/"));
        for tollgate in [&plain, &strict] {
            // The endpoint's goes before both.
            expect_refused(&tollgate.get("/pay/now"));
            let read = tollgate.get("/read/this");
            assert_eq!(read.status, 200);
            expect_no_fields(&read);
            assert_eq!(tollgate.get("/near/by").number("x-ratelimit-limit"), 2);
        }
    }
    assert_eq!(plain.get("/near/by").status, 429);
    for tollgate in [&plain, &strict] {
        wait_opened(tollgate);
    }
    // The store's own is what the whole is called; a tier that is closed makes nobody unready.
    expect_degraded(&plain, "local");
    expect_degraded(&strict, "open");
    assert_eq!(MODES.map(|mode| fallbacks(&plain, mode)), [5.0, 2.0, 2.0]);
    assert_eq!(MODES.map(|mode| fallbacks(&strict, mode)), [2.0, 2.0, 4.0]);
    server.start();
    for tollgate in [&plain, &strict] {
        wait_recovered(tollgate);
        for path in ["/", "/pay/now", "/read/this"] {
            let answer = tollgate.get(path);
            assert_eq!(answer.status, 200, "{path}: {}", answer.head);
            assert!(answer.field("x-ratelimit-remaining").is_some());
        }
        // Redis was told of what was let pass by either.
        assert_eq!(tollgate.get("/near/by").status, 429);
    }
}

// ---- secrets

const PASSWORD: &str = "correct-horse";

/// Everything that a process shows to anybody.
fn everything_shown(tollgate: &Tollgate) -> String {
    let mut shown = tollgate.log();
    for path in ["/metrics", "/health", "/livez", "/readyz", "/", "/api/v1/policy", "/nowhere"] {
        let answer = tollgate.admin(path);
        shown += &(answer.head.clone() + &answer.text());
    }
    for _ in 0..3 {
        let answer = tollgate.get("/");
        shown += &(answer.head.clone() + &answer.text());
    }
    shown
}

#[test]
fn a_password_is_used_and_never_shown() {
    let second = format!(">{PASSWORD}-2");
    let user = ["--user", "gate", "on", &second, "~*", "&*", "+@all"];
    let options = [&["--requirepass", PASSWORD][..], &user].concat();
    let Some(mut server) = RedisServer::spawn_tcp_with(&options) else { return };
    let backend = Backend::ok();
    for user in [format!("default:{PASSWORD}"), format!("gate:{PASSWORD}-2")] {
        let over_tcp = server.tcp_url().replace("redis://", &format!("redis://{user}@"));
        let over_socket = server.url().replace("redis+unix://", &format!("redis+unix://{user}@"));
        for url in [over_tcp, over_socket] {
            let tollgate = start(&backend, &url, WIDE, "closed", &tier("per_hour: 1000"));
            wait_recovered(&tollgate);
            assert_eq!(tollgate.get("/").status, 200);
            server.kill();
            wait_opened(&tollgate);
            let away = everything_shown(&tollgate);
            server.start();
            wait_recovered(&tollgate);
            let back = everything_shown(&tollgate);
            assert_eq!(said(&tollgate), (1, 1));
            assert!(!(away + &back).contains(PASSWORD), "{}", tollgate.log());
        }
    }
}

#[test]
fn with_a_secret_a_key_is_an_hmac_and_replicas_of_one_secret_share_it() {
    let Some(server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let start = |secret: &str| {
        let config = format!(
            "store: {{ redis: {{ url: '{}', timeout: {WIDE}, on_failure: closed }} }}
log: {{ level: trace }}
{secret}",
            server.url()
        );
        Start::default()
            .upstream(backend.address)
            .config(&config)
            .tiers(&tier("per_minute: 10"))
            .run()
    };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret");
    std::fs::write(&file, "correct horse battery staple\n").unwrap();
    let first = start("identity_hash_secret: correct horse battery staple\n");
    let second = start(&format!("identity_hash_secret_file: {}\n", file.display()));
    let other = start("identity_hash_secret: another horse battery staple\n");
    let none = start("");
    let all = [&first, &second, &other, &none];
    all.into_iter().for_each(wait_recovered);
    let left = |tollgate: &Tollgate| tollgate.get("/").number("x-ratelimit-remaining");
    assert_eq!([left(&first), left(&second), left(&first), left(&second)], [9, 8, 7, 6]);
    // Whoever has another secret, or none, begins anew.
    assert_eq!([left(&other), left(&none)], [9, 9]);

    // First 128 bits of the HMAC-SHA-256 of "tg" NUL "ip:127.0.0.1", by Python's hmac; without a
    // secret, of its SHA-256.
    let expected = [
        "b1e61b49884f9d6e987991d02de96305",
        "f67d9d0c1ac7415d457e784106bd74d7",
        "da9ec890f2bdc9d345b65fd1e538c2fc",
    ];
    let mut keys: Vec<String> =
        server.keys().into_iter().map(|key| String::from_utf8(key).unwrap()).collect();
    keys.retain(|key| !key.contains("{probe}"));
    keys.sort();
    let mut expected = expected.map(|hash| format!("tg:{{{hash}}}:i"));
    expected.sort();
    assert_eq!(keys, expected);
    for tollgate in all {
        let shown = everything_shown(tollgate);
        assert!(!shown.contains("horse battery"), "{shown}");
    }
}

#[test]
fn a_wrong_password_is_an_outage_that_does_not_show_it() {
    let Some(server) = RedisServer::spawn_tcp_with(&["--requirepass", "another"]) else { return };
    let backend = Backend::ok();
    let url = server.tcp_url().replace("redis://", &format!("redis://default:{PASSWORD}@"));
    let tollgate = start(&backend, &url, WIDE, "local", &tier("per_hour: 1000"));
    assert_eq!(tollgate.get("/").status, 200);
    wait_opened(&tollgate);
    expect_degraded(&tollgate, "local");
    let shown = everything_shown(&tollgate);
    assert!(!shown.contains(PASSWORD), "{shown}");
    assert_eq!(said(&tollgate), (1, 0));
    // Nor does a start without any password to a server that wants one.
    let without = start(&backend, &server.tcp_url(), WIDE, "local", &tier("per_hour: 1000"));
    wait_opened(&without);
    expect_degraded(&without, "local");
}

#[test]
fn what_never_reached_the_upstream_is_given_back_in_redis() {
    let Some(server) = RedisServer::spawn() else { return };
    let address = support::nobody();
    let config = format!("store: {{ redis: {{ url: '{}', timeout: {WIDE} }} }}", server.url());
    let start = Start::default().upstream(address).config(&config);
    let tollgate = start.tiers(&tier("per_minute: 3")).run();
    let mut client = tollgate.connect();
    // More than the limit, and fewer than open the upstream's circuit.
    for _ in 0..4 {
        assert_eq!(client.get("/").status, 502);
        // Nobody waits for a refund but this test.
        wait_until("the charge is gone", || server.keys().is_empty());
    }
    let _backend = Backend::ok_at(address);
    let statuses = [(); 4].map(|()| client.get("/").status);
    assert_eq!(statuses, [200, 200, 200, 429]);
}
