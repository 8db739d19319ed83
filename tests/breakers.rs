//! Dependencies that fail, hang, flap and come back: what callers are told, what the dependency is
//! spared, and that all mends itself. The real binary.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test stops at the first surprise, and ends"
)]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/http2_backend.rs"]
mod http2_backend;
#[path = "support/redis.rs"]
mod redis;
mod support;

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::time::Duration;

use certificates::Authority;
use http2_backend::{How, Http2Backend};
use redis::RedisServer;
use support::{Answer, Backend, BackendConnection, Client, Start, Tollgate, nobody, wait_until};

/// What a [`Moody`] backend does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Mood {
    /// 200.
    Serve,
    /// The connection is reset before an answer.
    Break,
    /// No answer until the mood is another.
    Hang,
    /// 500.
    Fail,
}

/// A backend whose mood changes.
struct Moody {
    backend: Backend,
    mood: Arc<(AtomicU8, Mutex<()>, Condvar)>,
    /// What it answers to `/healthz`.
    health: Arc<AtomicU8>,
}

impl Moody {
    fn new(mood: Mood) -> Self {
        let mood = Arc::new((AtomicU8::new(mood as u8), Mutex::new(()), Condvar::new()));
        let health = Arc::new(AtomicU8::new(Mood::Serve as u8));
        let (of_backend, of_health) = (Arc::clone(&mood), Arc::clone(&health));
        let backend = Backend::spawn(move |mut connection| {
            while let Some(seen) = connection.request() {
                let is_check = seen.target() == "/healthz";
                let mood = if is_check { &of_health } else { &of_backend.0 };
                if mood.load(Ordering::SeqCst) == Mood::Hang as u8 {
                    let (mood, lock, changed) = &*of_backend;
                    let guard = lock.lock().unwrap();
                    let is_hanging = |(): &mut ()| mood.load(Ordering::SeqCst) == Mood::Hang as u8;
                    drop(changed.wait_while(guard, is_hanging).unwrap());
                }
                match mood.load(Ordering::SeqCst) {
                    it if it == Mood::Break as u8 => return connection.reset(),
                    it if it == Mood::Fail as u8 => {
                        connection.send("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
                    }
                    _ => drop(connection.ok("ok")),
                }
            }
        });
        Moody { backend, mood, health }
    }

    fn set(&self, mood: Mood) {
        let (cell, lock, changed) = &*self.mood;
        let _guard = lock.lock().unwrap();
        cell.store(mood as u8, Ordering::SeqCst);
        changed.notify_all();
    }

    fn set_health(&self, mood: Mood) {
        self.health.store(mood as u8, Ordering::SeqCst);
    }

    /// Requests so far, checks left out.
    fn requests(&self) -> usize {
        self.backend.seen().iter().filter(|seen| seen.target() != "/healthz").count()
    }

    fn checks(&self) -> usize {
        self.backend.seen().len() - self.requests()
    }
}

impl Drop for Moody {
    fn drop(&mut self) {
        self.set(Mood::Serve);
    }
}

const FIVE_TIERS: &str = "
default_tier: free
tiers:
  free: { per_minute: 1000 }
endpoints:
  - { name: slow, path: '/slow/**', slow_threshold: 50ms }
  - { name: open, path: '/open', exempt: true }
";

fn start(backend: &Backend, upstream: &str) -> Tollgate {
    let url = format!("http://{}", backend.address);
    let config = format!("upstream: {{ url: '{url}', {upstream} }}\n");
    Start::default().config(&config).tiers(FIVE_TIERS).run()
}

fn state(tollgate: &Tollgate, service: &str) -> f64 {
    tollgate.metric(&format!("circuit_breaker_state{{service=\"{service}\"}}"))
}

fn transitions(tollgate: &Tollgate, service: &str, to: &str) -> f64 {
    let name = "tollgate_circuit_breaker_transitions_total";
    tollgate.metric(&format!("{name}{{service=\"{service}\",to=\"{to}\"}}"))
}

fn health(tollgate: &Tollgate) -> serde_json::Value {
    serde_json::from_slice(&tollgate.admin("/health").body).unwrap()
}

fn dependency(tollgate: &Tollgate, name: &str) -> f64 {
    tollgate.metric(&format!("dependency_health_status{{dependency=\"{name}\"}}"))
}

/// The last slow calls.
fn slow(tollgate: &Tollgate) -> Vec<serde_json::Value> {
    let mut client = Client::connect(tollgate.admin);
    let answer = client.send("GET /api/v1/slow HTTP/1.1\r\nHost: localhost\r\n\r\n").answer();
    assert_eq!(answer.status, 200, "{}", answer.head);
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    body["items"].as_array().unwrap().clone()
}

fn expect_unavailable(answer: &Answer) -> u64 {
    assert_eq!(answer.status, 503, "{}", answer.head);
    assert_eq!(answer.text(), r#"{"error":"Service unavailable"}"#);
    assert_eq!(answer.field("content-type"), Some("application/json"));
    let cause = Some("tollgate; error=destination_unavailable");
    assert_eq!(answer.field("proxy-status"), cause);
    assert_eq!(answer.field("x-ratelimit-limit"), None, "no limit was asked");
    answer.number("retry-after")
}

#[test]
fn an_upstream_that_breaks_off_is_spared_until_one_call_finds_it_well_again() {
    let upstream = Moody::new(Mood::Serve);
    let tollgate = start(&upstream.backend, "retries: 0");
    assert_eq!(state(&tollgate, "upstream"), 0.0);
    let page = tollgate.admin("/metrics").text();
    for to in ["closed", "half_open", "open"] {
        let name = "tollgate_circuit_breaker_transitions_total";
        let series = format!("{name}{{service=\"upstream\",to=\"{to}\"}} 0\n");
        assert!(page.contains(&series), "{series}");
    }
    let mut client = tollgate.connect();
    assert_eq!(client.get("/").status, 200);
    assert_eq!(health(&tollgate)["circuit_breakers"]["upstream"], "closed");

    upstream.set(Mood::Break);
    for call in 1..=5 {
        let answer = client.get("/");
        assert_eq!(answer.status, 502);
        let left = answer.number("x-ratelimit-remaining");
        assert_eq!(left, 999 - call, "what reached the upstream is spent");
    }
    let connections = upstream.backend.connections();
    let requests = upstream.requests();
    for path in ["/", "/slow/a", "/open"] {
        let wait = expect_unavailable(&client.get(path));
        assert!((1..=6).contains(&wait), "{wait}");
    }
    for _ in 0..50 {
        expect_unavailable(&tollgate.get("/"));
    }
    let refused = client
        .send("POST /a.B/C HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\n")
        .send("Content-Length: 0\r\n\r\n")
        .answer();
    assert_eq!((refused.status, refused.field("grpc-status")), (200, Some("14")));
    assert_eq!(refused.field("grpc-message"), Some("Service unavailable"));
    assert_eq!((upstream.backend.connections(), upstream.requests()), (connections, requests));
    assert_eq!((state(&tollgate, "upstream"), dependency(&tollgate, "upstream")), (2.0, 0.0));
    let shown = health(&tollgate);
    assert_eq!((&shown["status"], tollgate.admin("/readyz").status), (&"degraded".into(), 200));
    assert_eq!(shown["dependencies"]["upstream"], "unhealthy");
    assert_eq!(shown["circuit_breakers"]["upstream"], "open");
    assert_eq!(transitions(&tollgate, "upstream", "open"), 1.0);
    let series = "error_rate_total{error_type=\"upstream_connect\",endpoint=\"open\"}";
    wait_until("it is counted", || tollgate.metric(series) == 1.0);

    // The pause is over: of a crowd one is let through, whatever the others do.
    upstream.set(Mood::Hang);
    wait_until("the pause is over", || state(&tollgate, "upstream") == 1.0);
    assert_eq!(health(&tollgate)["circuit_breakers"]["upstream"], "half_open");
    assert_eq!(dependency(&tollgate, "upstream"), 0.5);
    let crowd: usize = 20;
    let (address, barrier) = (tollgate.data, Arc::new(Barrier::new(crowd)));
    let threads: Vec<_> = (0..crowd)
        .map(|_| {
            let barrier = Arc::clone(&barrier);
            std::thread::spawn(move || {
                let mut client = Client::connect(address);
                barrier.wait();
                client.get("/")
            })
        })
        .collect();
    let is_one_left = || threads.iter().filter(|it| !it.is_finished()).count() == 1;
    wait_until("all but one are answered", is_one_left);
    wait_until("that one is asked", || upstream.requests() > requests);
    assert_eq!(expect_unavailable(&tollgate.get("/")), 1);
    upstream.set(Mood::Serve);
    let answers: Vec<Answer> = threads.into_iter().map(|it| it.join().unwrap()).collect();
    let served = answers.iter().filter(|it| it.status == 200).count();
    assert_eq!((served, upstream.requests()), (1, requests + 1), "a crowd came through");
    answers.iter().filter(|it| it.status != 200).for_each(|it| {
        expect_unavailable(it);
    });

    // Two more good ones close it, and nothing of all that was spent.
    for _ in 0..2 {
        assert_eq!(tollgate.get("/").status, 200);
    }
    assert_eq!((state(&tollgate, "upstream"), dependency(&tollgate, "upstream")), (0.0, 1.0));
    assert_eq!(transitions(&tollgate, "upstream", "closed"), 1.0);
    assert_eq!(tollgate.get("/").number("x-ratelimit-remaining"), 999 - 5 - 4);
}

#[test]
fn each_failure_doubles_the_pause_until_the_upstream_has_been_well_for_a_minute() {
    let upstream = Moody::new(Mood::Break);
    let tollgate = start(&upstream.backend, "retries: 0");
    let opens = |wanted: std::ops::RangeInclusive<u64>, times: f64| {
        let wait = expect_unavailable(&tollgate.get("/"));
        assert!(wanted.contains(&wait), "{wait} s, wanted {wanted:?}");
        assert_eq!(transitions(&tollgate, "upstream", "open"), times);
    };
    let fail = || assert_eq!(tollgate.get("/").status, 502);
    let half_open = || wait_until("the pause is over", || state(&tollgate, "upstream") == 1.0);
    (0..5).for_each(|_| fail());
    // 5 s, give or take a fifth, in whole seconds of which none is too early.
    opens(4..=6, 1.0);
    half_open();
    fail();
    opens(8..=12, 2.0);
    half_open();
    upstream.set(Mood::Serve);
    for _ in 0..3 {
        assert_eq!(tollgate.get("/").status, 200);
    }
    assert_eq!(state(&tollgate, "upstream"), 0.0);
    assert_eq!(transitions(&tollgate, "upstream", "closed"), 1.0);
    upstream.set(Mood::Break);
    (0..5).for_each(|_| fail());
    // It was well for a moment only.
    opens(16..=24, 3.0);
}

#[test]
fn an_upstream_that_is_not_there_opens_the_circuit_and_5xx_and_client_aborts_do_not() {
    let tollgate = Tollgate::in_front_of(nobody());
    for _ in 0..5 {
        let answer = tollgate.get("/");
        let cause = answer.field("proxy-status");
        assert_eq!((answer.status, cause), (502, Some("tollgate; error=connection_refused")));
        assert_eq!(answer.number("x-ratelimit-remaining"), 100, "nothing was sent");
    }
    expect_unavailable(&tollgate.get("/"));
    assert_eq!(state(&tollgate, "upstream"), 2.0);

    let upstream = Moody::new(Mood::Fail);
    let tollgate = start(&upstream.backend, "retries: 0");
    for _ in 0..40 {
        assert_eq!(tollgate.get("/").status, 500);
    }
    upstream.set(Mood::Hang);
    for number in 1..=10 {
        let mut client = tollgate.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        wait_until("it is asked", || upstream.requests() == 40 + number);
    }
    let aborts = "error_rate_total{error_type=\"client_abort\",endpoint=\"other\"}";
    wait_until("they are gone", || tollgate.metric(aborts) == 10.0);
    assert_eq!((state(&tollgate, "upstream"), dependency(&tollgate, "upstream")), (0.0, 1.0));
}

#[test]
fn an_upstream_that_hangs_opens_the_circuit_and_is_told_of_among_the_slow_calls() {
    let upstream = Moody::new(Mood::Hang);
    let tollgate = start(&upstream.backend, "response_timeout: 100ms");
    assert!(slow(&tollgate).is_empty());
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let traced = format!(
        "DELETE /slow/secret-path?token=s3cret HTTP/1.1\r\nHost: a\r\n\
         traceparent: 00-{trace}-b7ad6b7169203331-01\r\n\r\n"
    );
    for _ in 0..4 {
        assert_eq!(tollgate.get("/").status, 504);
    }
    assert_eq!(tollgate.connect().send(&traced).answer().status, 504);
    expect_unavailable(&tollgate.get("/"));
    let timeouts = "query_timeout_count_total{query_type=\"upstream\"}";
    wait_until("they are counted", || tollgate.metric(timeouts) == 5.0);
    let calls = slow(&tollgate);
    assert_eq!(calls.len(), 5, "what was not asked is not slow");
    let call = &calls[0];
    for (key, value) in [
        ("query_type", "upstream"),
        ("endpoint", "slow"),
        ("method", "DELETE"),
        ("upstream", "default"),
        ("tier", "free"),
        ("trace_id", trace),
    ] {
        assert_eq!(call[key], value, "{call}");
    }
    assert!(call["ttfb_ms"].is_null() && call["total_ms"].as_f64().unwrap() >= 100.0, "{call}");
    assert_eq!((&call["status"], &call["timed_out"]), (&504.into(), &true.into()));
    assert!(humantime::parse_rfc3339(call["time"].as_str().unwrap()).is_ok(), "{call}");
    assert!(calls[1]["trace_id"].is_null() && calls[1]["endpoint"] == "other", "{calls:?}");
    let told = tollgate.log();
    assert_eq!(told.matches("a slow call").count(), 5, "{told}");
    assert!(told.contains(trace) && !told.contains("secret-path") && !told.contains("s3cret"));
}

#[test]
fn a_slow_answer_is_slow_by_its_rules_own_threshold() {
    let backend = Backend::spawn(|mut connection| {
        while connection.request().is_some() {
            std::thread::sleep(Duration::from_millis(60));
            connection.ok("ok");
        }
    });
    let tollgate = start(&backend, "retries: 0");
    assert_eq!(tollgate.get("/").status, 200);
    assert_eq!(tollgate.get("/slow/a").status, 200);
    let count = "slow_query_count_total{query_type=\"upstream\"}";
    wait_until("it is counted", || tollgate.metric(count) >= 1.0);
    let calls = slow(&tollgate);
    assert_eq!((calls.len(), tollgate.metric(count)), (1, 1.0), "{calls:?}");
    assert_eq!((&calls[0]["endpoint"], &calls[0]["timed_out"]), (&"slow".into(), &false.into()));
    assert!(calls[0]["ttfb_ms"].as_f64().unwrap() >= 50.0, "{calls:?}");
}

#[test]
fn checks_take_an_upstream_out_and_bring_it_back_by_themselves() {
    let upstream = Moody::new(Mood::Serve);
    let checked = "health_check: { path: '/healthz', interval: 50ms, rise: 2, fall: 3 }";
    let tollgate = start(&upstream.backend, checked);
    let checks = |result: &str| {
        let name = "tollgate_healthcheck_total";
        tollgate.metric(&format!("{name}{{dependency=\"upstream\",result=\"{result}\"}}"))
    };
    wait_until("it is checked", || checks("ok") >= 2.0);
    assert_eq!((checks("error"), dependency(&tollgate, "upstream")), (0.0, 1.0));
    let seen = upstream.backend.last();
    let host = upstream.backend.address.to_string();
    assert_eq!((&*seen.line, seen.field("host")), ("GET /healthz HTTP/1.1", Some(&*host)));
    assert!(seen.field("user-agent").unwrap().starts_with("tollgate/"));

    // It answers requests as before, and says that it had better not be asked.
    upstream.set_health(Mood::Fail);
    wait_until("it is out", || tollgate.get("/").status == 503);
    assert_eq!((state(&tollgate, "upstream"), dependency(&tollgate, "upstream")), (2.0, 0.0));
    assert!(checks("error") >= 3.0);
    let (requests, bad) = (upstream.requests(), checks("error"));
    wait_until("it is checked on", || checks("error") >= bad + 3.0);
    assert_eq!(expect_unavailable(&tollgate.get("/")), 1);
    assert_eq!(upstream.requests(), requests, "no request finds out what checks do");

    upstream.set_health(Mood::Serve);
    wait_until("it is back", || tollgate.get("/").status == 200);
    wait_until("it is well", || dependency(&tollgate, "upstream") == 1.0);
    let count = "tollgate_healthcheck_duration_seconds_count{dependency=\"upstream\"}";
    assert!(tollgate.metric(count) >= 8.0);
    let all = tollgate.admin("/metrics").text();
    let counted: f64 = all
        .lines()
        .filter(|line| line.starts_with("tollgate_requests_total{"))
        .filter(|line| line.contains("outcome=\"allowed\""))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert!(counted <= upstream.requests() as f64, "checks are no requests");
    assert!(upstream.checks() > 0);
    assert!(tollgate.log().contains("the upstream's health check fails"), "{}", tollgate.log());
}

#[test]
fn an_upstream_that_goes_away_is_missed_by_its_checks_and_found_again() {
    let upstream = Moody::new(Mood::Serve);
    let checked = "retries: 0, \
                   health_check: { path: '/healthz', interval: 50ms, timeout: 100ms, rise: 1 }";
    let tollgate = start(&upstream.backend, checked);
    upstream.set_health(Mood::Break);
    // Nobody asks for anything.
    wait_until("it is missed", || state(&tollgate, "upstream") == 2.0);
    expect_unavailable(&tollgate.get("/"));
    assert_eq!(upstream.requests(), 0);
    upstream.set_health(Mood::Serve);
    wait_until("it is back", || tollgate.get("/").status == 200);
}

#[test]
fn checks_go_the_way_of_requests() {
    let health_check = "health_check: { path: '/healthz?full=1', interval: 50ms }";
    let found_well = |tollgate: &Tollgate| {
        let series = "tollgate_healthcheck_total{dependency=\"upstream\",result=\"ok\"}";
        wait_until("it is found well", || tollgate.metric(series) >= 2.0);
        assert_eq!(dependency(tollgate, "upstream"), 1.0);
    };
    let start = |url: &str, more: &str| {
        let config = format!("upstream: {{ url: '{url}', {more} {health_check} }}\n");
        Start::default().config(&config).run()
    };

    let backend = Http2Backend::ok();
    found_well(&start(&backend.h2c(), ""));
    let head = backend.last();
    assert_eq!(head.uri.path_and_query().unwrap(), "/healthz?full=1");
    assert_eq!(head.uri.authority().unwrap().as_str(), backend.address.to_string());

    let authority = Authority::new();
    let tls = Some(authority.server(&[b"h2"], false));
    let script = |mut exchange: http2_backend::Exchange| async move { exchange.ok("ok") };
    let backend = Http2Backend::spawn_with(How { tls, ..How::default() }, script);
    let url = format!("https://127.0.0.1:{}", backend.address.port());
    let trust = format!("tls: {{ ca: '{}' }},", authority.file("ca.crt"));
    found_well(&start(&url, &trust));
    assert!(backend.requests() > 0);

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backend");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut head = [0; 1024];
            if stream.read(&mut head).is_ok() {
                stream.write_all(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n").ok();
            }
        }
    });
    found_well(&start(&format!("unix:{}", path.display()), ""));
}

/// Answers upgrades, and lets `ending` have the connection.
fn upgrading(ending: impl Fn(BackendConnection) + Send + Sync + 'static) -> Backend {
    Backend::spawn(move |mut connection| {
        if connection.request().is_some() {
            connection.send(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                 Upgrade: websocket\r\n\r\n",
            );
            ending(connection);
        }
    })
}

fn upgraded(tollgate: &Tollgate) -> Client {
    let mut client = tollgate.connect();
    client.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    client
}

#[test]
fn a_websocket_that_is_dropped_at_once_is_no_success() {
    let backend = upgrading(drop);
    let tollgate = Tollgate::in_front_of(backend.address);
    for call in 1..=5 {
        let mut client = upgraded(&tollgate);
        assert_eq!(client.head().status, 101, "call {call}");
        client.read_to_end();
        drop(client);
    }
    wait_until("the circuit is open", || state(&tollgate, "upstream") == 2.0);
    assert_eq!(backend.connections(), 5);
    expect_unavailable(&upgraded(&tollgate).answer());
}

/// A client that breaks the protocol has its connection dropped, and shuts the backend to nobody.
#[test]
fn a_websocket_that_is_dropped_for_what_its_client_said_is_no_failure() {
    let backend = upgrading(|mut connection| {
        connection.read_some(1);
    });
    let tollgate = Tollgate::generous(&backend);
    for call in 0..20 {
        let mut client = upgraded(&tollgate);
        assert_eq!(client.head().status, 101, "call {call}");
        client.send([0xff; 2]).read_to_end();
    }
    let open = "websocket_connections_active{endpoint=\"other\"}";
    wait_until("they have ended", || tollgate.metric(open) == 0.0);
    assert_eq!((state(&tollgate, "upstream"), dependency(&tollgate, "upstream")), (0.0, 1.0));
}

#[test]
fn a_websocket_that_says_goodbye_or_whose_client_leaves_is_no_failure() {
    let backend = upgrading(|mut connection| {
        if connection.read_some(1) == b"x" {
            connection.send([0x88, 2, 0x03, 0xe8]);
        }
    });
    let tollgate = Tollgate::generous(&backend);
    for call in 0..16 {
        let mut client = upgraded(&tollgate);
        assert_eq!(client.head().status, 101);
        if call % 2 == 0 {
            // A whole frame of a client's: one masked byte.
            client.send([b'x', 0x81, 0, 0, 0, 0, 0]);
            assert_eq!(client.read_exactly(4), [0x88, 2, 0x03, 0xe8]);
        }
    }
    let open = "websocket_connections_active{endpoint=\"other\"}";
    wait_until("they have ended", || tollgate.metric(open) == 0.0);
    assert_eq!((state(&tollgate, "upstream"), dependency(&tollgate, "upstream")), (0.0, 1.0));
}

#[test]
fn dependencies_have_the_same_names_everywhere_and_mend_by_themselves() {
    let Some(store) = RedisServer::spawn() else { return };
    let Some(database) = RedisServer::spawn_tcp() else { return };
    let backend = Backend::ok();
    let config = format!(
        "
store: {{ redis: {{ url: '{}', timeout: 200ms }} }}
tier_lookup:
  redis: {{ url: '{}', hash: 'user:{{id}}', field: plan }}
identity:
  - jwt: {{ jwks_url: 'http://{}/keys', algorithms: [RS256] }}
",
        store.url(),
        database.tcp_url(),
        nobody(),
    );
    let start = Start::default().upstream(backend.address).config(&config);
    let tollgate = start.tiers(support::GENEROUS).run();
    let names = ["upstream", "redis", "database", "jwks"];
    let page = tollgate.admin("/metrics").text();
    let shown = health(&tollgate);
    for name in names {
        for series in [
            format!("dependency_health_status{{dependency=\"{name}\"}} "),
            format!("circuit_breaker_state{{service=\"{name}\"}} "),
            format!(
                "tollgate_circuit_breaker_transitions_total{{service=\"{name}\",to=\"open\"}} "
            ),
            format!("slow_query_count_total{{query_type=\"{name}\"}} "),
            format!("query_timeout_count_total{{query_type=\"{name}\"}} "),
        ] {
            assert!(page.contains(&series), "no {series}");
        }
        assert!(shown["dependencies"][name].is_string(), "{shown}");
        assert!(shown["circuit_breakers"][name].is_string(), "{shown}");
    }
    let checks = |dependency: &str, result: &str| {
        let labels = format!("dependency=\"{dependency}\",result=\"{result}\"");
        tollgate.metric(&format!("tollgate_healthcheck_total{{{labels}}}"))
    };
    wait_until("redis is checked", || checks("redis", "ok") >= 2.0);
    assert!(checks("jwks", "error") >= 1.0);
    assert_eq!((dependency(&tollgate, "jwks"), dependency(&tollgate, "redis")), (0.0, 1.0));
    assert_eq!(health(&tollgate)["dependencies"]["jwks"], "unhealthy");

    store.pause();
    database.pause();
    for name in ["redis", "database"] {
        wait_until("its circuit is open", || {
            tollgate.get("/");
            state(&tollgate, name) == 2.0
        });
        let shown = health(&tollgate);
        assert_eq!(shown["circuit_breakers"][name], "open", "{shown}");
        assert_eq!(
            (&shown["dependencies"][name], dependency(&tollgate, name)),
            (&"unhealthy".into(), 0.0)
        );
        assert!(transitions(&tollgate, name, "open") >= 1.0);
        // What stands still is late, and then lost.
        assert!(checks(name, "timeout") + checks(name, "error") >= 1.0, "{name}");
    }
    assert_eq!(tollgate.get("/").status, 200, "limits are kept here meanwhile");
    let of_redis = |call: &&serde_json::Value| call["query_type"] == "redis";
    let calls = slow(&tollgate);
    let call = calls.iter().find(of_redis).expect("a check of limits that timed out");
    assert_eq!((&call["timed_out"], &call["tier"]), (&true.into(), &"free".into()), "{call}");

    store.resume();
    database.resume();
    for name in ["redis", "database"] {
        wait_until("it is back", || {
            state(&tollgate, name) == 0.0 && dependency(&tollgate, name) == 1.0
        });
        assert!(transitions(&tollgate, name, "closed") >= 1.0);
    }
}

#[test]
fn a_primary_that_was_demoted_is_noticed_while_nobody_asks() {
    let Some(store) = RedisServer::spawn_with(&["--replica-read-only", "yes"]) else { return };
    let backend = Backend::ok();
    let config = format!("store: {{ redis: {{ url: '{}', timeout: 5s }} }}\n", store.url());
    let tollgate = Start::default().upstream(backend.address).config(&config).run();
    wait_until("redis is well", || dependency(&tollgate, "redis") == 1.0);
    // It answers a PING as before.
    store.words("REPLICAOF 127.0.0.1 1");
    wait_until("it is noticed", || dependency(&tollgate, "redis") < 1.0);
    assert_eq!(health(&tollgate)["dependencies"]["redis"], "degraded");
    store.words("REPLICAOF NO ONE");
    wait_until("redis is well again", || dependency(&tollgate, "redis") == 1.0);
    assert_eq!(transitions(&tollgate, "redis", "open"), 0.0, "a single write failed");
}

#[test]
fn a_stream_that_the_upstream_resets_says_nothing_of_the_others() {
    let backend = Http2Backend::spawn(|mut exchange| async move {
        match exchange.head.uri.path() {
            "/poison" => exchange.respond.send_reset(h2::Reason::INTERNAL_ERROR),
            _ => exchange.ok("ok"),
        }
    });
    let config = format!("upstream: {{ url: '{}', retries: 0 }}\n", backend.h2c());
    let tollgate = Start::default().config(&config).tiers(support::GENEROUS).run();
    // Whoever finds a request that is given up cannot have the upstream shut to all.
    for _ in 0..20 {
        assert_eq!(tollgate.get("/poison").status, 502);
    }
    assert_eq!(tollgate.get("/").status, 200);
    assert_eq!(state(&tollgate, "upstream"), 0.0);
}
