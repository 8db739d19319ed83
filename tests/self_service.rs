//! `self_service.path`: a caller's own view, which costs no quota.
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

use redis::RedisServer;
use serde_json::{Value, json};
use support::{Answer, Backend, Start, Tollgate};

const TIERS: &str = "
tiers: { free: { per_second: 50, burst: 60, per_minute: 100 }, premium: { per_minute: 1000 } }
identities: { 'ip:192.0.2.66': deny }
endpoints:
  - { name: heavy, path: /heavy, limits: { free: { per_minute: 2 } } }
  - { name: trial, path: /trial, mode: shadow, limits: { free: { per_minute: 1 } } }
";
const PATH: &str = "/.well-known/rate-limit";

fn start(backend: &Backend, more: &str) -> Tollgate {
    let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/config/keys.yaml");
    let config = format!(
        "server: {{ trusted_proxies: [127.0.0.0/8] }}\n\
         identity: [ api_key: {{ header: X-API-Key, keys_file: {keys}, on_invalid: reject }} ]\n{more}"
    );
    Start::default().upstream(backend.address).config(&config).tiers(TIERS).run()
}

fn ask(tollgate: &Tollgate, line: &str, field: &str) -> Answer {
    let method = line.split(' ').next().unwrap();
    let request = format!("{line} HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n");
    tollgate.connect().send(request).answer_to(method)
}

fn own(tollgate: &Tollgate, field: &str) -> Value {
    let answer = ask(tollgate, &format!("GET {PATH}"), field);
    assert_eq!((answer.status, answer.field("cache-control")), (200, Some("no-store")));
    serde_json::from_slice(&answer.body).unwrap()
}

fn holds_for(tollgate: &Tollgate, backend: &Backend) {
    let from = "X-Forwarded-For: 192.0.2.1";
    let used = |it: &Value| -> Vec<(String, u64)> {
        let limits = it["limits"].as_array().unwrap().iter();
        limits
            .map(|it| {
                let number = |key: &str| it[key].as_u64().unwrap();
                assert_eq!(number("limit") - number("remaining"), number("used"), "{it}");
                (it["name"].as_str().unwrap().to_owned(), number("used"))
            })
            .collect()
    };
    for _ in 0..3 {
        assert_eq!(ask(tollgate, "GET /", from).status, 200);
    }
    assert_eq!(ask(tollgate, "GET /heavy", from).status, 200);
    let before = backend.seen().len();
    for _ in 0..3 {
        // However often it is asked, nothing is spent, and the backend hears nothing.
        let told = own(tollgate, from);
        assert_eq!((&told["identity"], &told["tier"]), (&json!("ip:192.0.2.1"), &json!("free")));
        let of_windows: Vec<_> =
            used(&told).into_iter().filter(|it| it.0 != "tier:second").collect();
        assert_eq!(
            of_windows,
            [("tier:minute".to_owned(), 4), ("endpoint:heavy:minute".to_owned(), 1)]
        );
    }
    assert_eq!(backend.seen().len(), before);
    let other = own(tollgate, "X-Forwarded-For: 192.0.2.2");
    assert!(used(&other).iter().all(|(_, used)| *used == 0), "{other}");
    let key = own(tollgate, "X-API-Key: example-key-of-acme");
    assert_eq!((&key["identity"], &key["tier"]), (&json!("key:acme"), &json!("premium")));
    assert!(!ask(tollgate, &format!("GET {PATH}"), from).head.contains("x-ratelimit"));
}

#[test]
fn a_caller_reads_their_own_limits_and_spends_nothing() {
    let backend = Backend::ok();
    let more = format!("self_service: {{ path: {PATH} }}");
    let tollgate = start(&backend, &more);
    holds_for(&tollgate, &backend);
    let hits = tollgate
        .metric(r#"rate_limit_hits_total{identifier_type="ip",tier="free",endpoint="other"}"#);
    assert_eq!(hits, 3.0);
    let head = ask(&tollgate, &format!("HEAD {PATH}"), "X-Forwarded-For: 192.0.2.1");
    assert_eq!((head.status, head.body.len()), (200, 0));
    // Another method is the backend's matter.
    let post = ask(&tollgate, &format!("POST {PATH}"), "Content-Length: 0");
    assert_eq!((post.status, backend.last().target()), (200, PATH));
    // Who is refused is told no more here.
    let denied = ask(&tollgate, &format!("GET {PATH}"), "X-Forwarded-For: 192.0.2.66");
    assert_eq!((denied.status, denied.text()), (403, "{\"error\":\"Forbidden\"}".to_owned()));
    let wrong = ask(&tollgate, &format!("GET {PATH}"), "X-API-Key: wrong");
    assert_eq!(wrong.status, 401);
}

#[test]
fn in_redis_too() {
    let Some(server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let more = format!(
        "self_service: {{ path: {PATH} }}\nstore: {{ redis: {{ url: '{}', timeout: 500ms }} }}",
        server.url()
    );
    let tollgate = start(&backend, &more);
    let before = server.keys().len();
    own(&tollgate, "X-Forwarded-For: 192.0.2.3");
    assert_eq!(server.keys().len(), before, "a look leaves nothing behind");
    holds_for(&tollgate, &backend);
}

#[test]
fn who_asks_all_the_time_has_to_wait() {
    let backend = Backend::ok();
    let tollgate = start(&backend, &format!("self_service: {{ path: {PATH} }}"));
    let ask = |address: &str| {
        ask(&tollgate, &format!("GET {PATH}"), &format!("X-Forwarded-For: {address}"))
    };
    let answers: Vec<Answer> = (0..200).map(|_| ask("192.0.2.1")).collect();
    assert!(answers[..20].iter().all(|it| it.status == 200));
    let throttled = answers.iter().find(|it| it.status == 429).unwrap();
    assert_eq!(throttled.field("retry-after"), Some("1"));
    assert_eq!(ask("192.0.2.2").status, 200, "nobody else does");
    let series = |result: &str| {
        tollgate.metric(&format!("tollgate_self_service_total{{result=\"{result}\"}}"))
    };
    assert_eq!(series("ok") + series("throttled"), 201.0);
    assert!(series("throttled") > 0.0);
}

#[test]
fn off_by_default() {
    let backend = Backend::ok();
    let tollgate = start(&backend, "");
    assert_eq!(ask(&tollgate, &format!("GET {PATH}"), "A: b").status, 200);
    assert_eq!(backend.last().target(), PATH);
}
