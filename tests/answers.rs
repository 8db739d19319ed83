//! What callers are told: the real binary, its fields, its refusals, its exactness.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "tests wait by the real time, and end")]

mod support;

use std::sync::{Arc, Barrier};
use std::time::{SystemTime, UNIX_EPOCH};

use support::{Answer, Backend, Client, Start, Tollgate, tally};

fn in_front_of(backend: &Backend, tiers: &str) -> Tollgate {
    Start::default().upstream(backend.address).tiers(tiers).run()
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// One tier with these limits, and nothing else.
fn tier(limits: &str) -> String {
    format!("default_tier: t\ntiers: {{ t: {{ {limits} }} }}\n")
}

fn shown(answer: &Answer) -> (u64, u64) {
    (answer.number("x-ratelimit-limit"), answer.number("x-ratelimit-remaining"))
}

#[test]
fn the_first_answer_shows_the_minute() {
    let backend = Backend::ok();
    let tollgate = Tollgate::in_front_of(backend.address);
    let before = unix_seconds();
    let answer = tollgate.get("/fo/strike-distribution?symbol=NIFTY50");
    let after = unix_seconds();
    assert_eq!(answer.status, 200);
    assert_eq!(shown(&answer), (100, 99));
    // Whole again when the second that it was spent in has left the window.
    let reset = answer.number("x-ratelimit-reset");
    assert!((before + 61..=after + 61).contains(&reset), "{before} {reset} {after}");
    assert_eq!(tollgate.get("/").number("x-ratelimit-remaining"), 98);
}

#[test]
fn the_eleventh_at_once_is_refused_to_the_byte() {
    let backend = Backend::ok();
    // So slow a refill that none comes while the test runs: one token in 1,000 seconds is the
    // least that the file can say, so the window is what holds still.
    let tollgate = in_front_of(&backend, &tier("per_minute: 10"));
    let mut client = tollgate.connect();
    for left in (0..10).rev() {
        assert_eq!(shown(&client.get("/")), (10, left));
    }
    let before = unix_seconds();
    let refused = client.get("/");
    assert_eq!(refused.status, 429);
    assert!(refused.head.starts_with("HTTP/1.1 429 Too Many Requests\r\n"));
    assert_eq!(shown(&refused), (10, 0));
    let wait = refused.number("retry-after");
    assert_eq!(
        refused.text(),
        format!(
            r#"{{"error":"Rate limit exceeded","retry_after":{wait},"limit":10,"period":"minute"}}"#
        )
    );
    assert_eq!(refused.field("content-type"), Some("application/json"));
    assert_eq!(refused.field("proxy-status"), Some("tollgate; error=http_request_denied"));
    assert_eq!(refused.number("content-length"), refused.body.len() as u64);
    assert!((1..=61).contains(&wait));
    assert!(wait <= refused.number("x-ratelimit-reset") - before);
    // The connection goes on, and HEAD has no body.
    let head = client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").answer_to("HEAD");
    assert_eq!(head.status, 429);
    assert_eq!(client.get("/").status, 429);
    assert_eq!(backend.seen().len(), 10);
}

#[test]
fn a_burst_that_blocks_speaks_of_the_second() {
    let backend = Backend::ok();
    let tollgate = in_front_of(&backend, &tier("per_second: 1, burst: 2, per_hour: 1000"));
    let mut client = tollgate.connect();
    let answers: Vec<Answer> = (0..6).map(|_| client.get("/")).collect();
    let refused = answers.iter().find(|it| it.status == 429).expect("six within three seconds");
    assert_eq!(
        refused.text(),
        r#"{"error":"Rate limit exceeded","retry_after":1,"limit":1,"period":"second"}"#
    );
    assert_eq!(shown(refused), (2, 0));
    // What passed shows the window, not the bucket.
    assert_eq!(shown(&answers[0]), (1000, 999));
    // Refusals have spent nothing of the hour.
    let passed = answers.iter().filter(|it| it.status == 200).count() as u64;
    let last = answers.iter().rev().find(|it| it.status == 200).unwrap();
    assert_eq!(last.number("x-ratelimit-remaining"), 1000 - passed);
}

#[test]
fn a_thousand_at_once_against_ten_let_ten_pass() {
    let backend = Backend::ok();
    let tollgate = in_front_of(&backend, &tier("per_minute: 10"));
    assert_eq!(statuses_at_once(&[&tollgate], 1000), (10, 990));
    assert_eq!(backend.seen().len(), 10);
}

/// Allowed and refused of so many requests, each on a connection of its own, all at once.
fn statuses_at_once(tollgates: &[&Tollgate], count: usize) -> (usize, usize) {
    let barrier = Arc::new(Barrier::new(50));
    let threads: Vec<_> = (0..50)
        .map(|thread| {
            let barrier = Arc::clone(&barrier);
            let addresses: Vec<_> = (0..count / 50)
                .map(|index| tollgates[(thread + index) % tollgates.len()].data)
                .collect();
            std::thread::spawn(move || {
                let mut clients: Vec<Client> = addresses.into_iter().map(Client::connect).collect();
                barrier.wait();
                for client in &mut clients {
                    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
                }
                clients.iter_mut().map(|client| client.answer().status).collect::<Vec<_>>()
            })
        })
        .collect();
    let statuses = tally(threads.into_iter().flat_map(|thread| thread.join().unwrap()));
    assert_eq!(statuses.values().sum::<usize>(), count);
    let of = |status| statuses.get(&status).copied().unwrap_or(0);
    (of(200), of(429))
}

#[test]
fn a_rule_comes_on_top_and_is_all_or_nothing() {
    let backend = Backend::ok();
    let tiers = tier("per_minute: 100")
        + "endpoints:
  - { name: heavy, path: /heavy/**, limits: { any: { per_minute: 2 } } }
  - { name: dear, path: /dear, cost: 10 }
  - { name: healthz, path: /healthz, exempt: true }
";
    let tollgate = in_front_of(&backend, &tiers);
    assert_eq!(shown(&tollgate.get("/heavy/a")), (2, 1));
    assert_eq!(shown(&tollgate.get("/HEAVY//b/")), (2, 0), "no spelling escapes");
    let refused = tollgate.get("/heavy/c");
    assert_eq!((refused.status, shown(&refused)), (429, (2, 0)));
    assert!(refused.text().ends_with(r#""limit":2,"period":"minute"}"#));
    // The refusal has spent nothing of the tier's: two so far.
    assert_eq!(shown(&tollgate.get("/other")), (100, 97));
    assert_eq!(shown(&tollgate.get("/dear")), (100, 87));
    let exempt = tollgate.get("/healthz");
    assert_eq!((exempt.status, exempt.field("x-ratelimit-limit")), (200, None));
    let hits = |endpoint: &str| {
        tollgate.metric(&format!(
            r#"rate_limit_hits_total{{identifier_type="ip",tier="t",endpoint="{endpoint}"}}"#
        ))
    };
    assert_eq!((hits("heavy"), hits("dear"), hits("other"), hits("healthz")), (3., 1., 1., 0.));
    assert_eq!(
        tollgate
            .metric(r#"rate_limit_blocks_total{identifier_type="ip",tier="t",endpoint="heavy"}"#),
        1.
    );
}

/// A name with slashes in it is one segment to a backend, or two or three: each depth has a rule
/// here, so that the path meets more of them than most ever will. It is no attack, and passes.
#[test]
fn a_path_that_is_many_endpoints_is_counted_for_each_and_not_refused() {
    let backend = Backend::ok();
    let tiers = tier("per_minute: 100")
        + "endpoints:
  - { name: one, path: '/{x}', limits: { any: { per_minute: 3 } } }
  - { name: two, path: '/{x}/{y}', limits: { any: { per_minute: 8 } } }
  - { name: three, path: '/{x}/{y}/{z}', limits: { any: { per_minute: 7 } } }
";
    let tollgate = in_front_of(&backend, &tiers);
    // Not decoded, decoded once, decoded twice.
    let name = "/a%2Fb%252Fc";
    assert_eq!(shown(&tollgate.get(name)), (3, 2));
    // Each has been charged for it.
    assert_eq!(shown(&tollgate.get("/q/q")), (8, 6));
    assert_eq!(shown(&tollgate.get("/q/q/q")), (7, 5));
    assert_eq!(shown(&tollgate.get("/q")), (3, 1));
    assert_eq!(shown(&tollgate.get(name)), (3, 0));
    let refused = tollgate.get(name);
    assert_eq!((refused.status, shown(&refused)), (429, (3, 0)));
    // The refusal has spent nothing of the others.
    assert_eq!(shown(&tollgate.get("/q/q")), (8, 4));
}

#[test]
fn shadow_reports_and_never_refuses() {
    let backend = Backend::ok();
    let tiers = tier("per_minute: 100")
        + "endpoints:
  - { name: live, path: /live, mode: shadow, limits: { any: { per_minute: 1 } } }
";
    let tollgate = in_front_of(&backend, &tiers);
    assert_eq!(shown(&tollgate.get("/live")), (1, 0));
    for spent in 2..5 {
        let answer = tollgate.get("/live");
        assert_eq!((answer.status, shown(&answer)), (200, (1, 0)), "{spent}");
    }
    assert_eq!(shown(&tollgate.get("/")), (100, 95), "the tier's own are charged");
    let would_block = tollgate.metric(
        r#"tollgate_limit_decisions_total{rule="live",window="minute",decision="shadow_block"}"#,
    );
    assert_eq!(would_block, 3.);
}

#[test]
fn addresses_have_their_tier_and_some_are_denied() {
    let backend = Backend::ok();
    let tiers = "
default_tier: small
tiers:
  small: { per_minute: 5 }
  large: { per_minute: 50 }
  free_of_limits: {}
networks: { 10.0.0.0/8: large, 10.9.0.0/16: free_of_limits }
identities: { 'ip:192.0.2.7': deny, 'ip:192.0.2.8': large }
";
    let tollgate = Start::default()
        .upstream(backend.address)
        .tiers(tiers)
        .config("server: { trusted_proxies: [127.0.0.1/32] }")
        .run();
    let ask = |from: &str| {
        tollgate
            .connect()
            .send(format!("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {from}\r\n\r\n"))
            .answer()
    };
    assert_eq!(shown(&ask("203.0.113.1")), (5, 4));
    assert_eq!(shown(&ask("10.1.1.1")), (50, 49));
    assert_eq!(shown(&ask("192.0.2.8")), (50, 49));
    assert_eq!(shown(&ask("1.1.1.1, 203.0.113.1, 127.0.0.1")), (5, 3));
    assert_eq!(shown(&ask("2001:db8:1:2::1")), (5, 4));
    assert_eq!(shown(&ask("2001:db8:1:2:ffff::9")), (5, 3), "one /64, one caller");
    assert_eq!(ask("10.9.1.1").field("x-ratelimit-limit"), None, "no limits, no fields");
    let denied = ask("192.0.2.7");
    assert_eq!((denied.status, denied.text().as_str()), (403, r#"{"error":"Forbidden"}"#));
    assert_eq!(denied.field("proxy-status"), Some("tollgate; error=http_request_denied"));
}

#[test]
fn the_fields_can_be_told_otherwise() {
    let backend = Backend::spawn(|mut connection| {
        while connection.request().is_some() {
            connection.send(
                "HTTP/1.1 200 OK\r\nX-RateLimit-Limit: 7\r\nX-RateLimit-Reset: 7\r\n\
                 Content-Length: 0\r\n\r\n",
            );
        }
    });
    let delta =
        Start::default().upstream(backend.address).config("headers: { reset: delta }").run();
    let request = "GET / HTTP/1.1\r\nHost: a\r\nOrigin: https://app.test\r\n\r\n";
    let answer = delta.connect().send(request).answer();
    assert!((60..=61).contains(&answer.number("x-ratelimit-reset")));
    assert_eq!(answer.all("x-ratelimit-limit"), ["100"], "the upstream's own are replaced");
    let exposed = answer.field("access-control-expose-headers").unwrap();
    for name in ["X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "Retry-After"] {
        assert!(exposed.contains(name));
    }
    let without =
        Start::default().upstream(backend.address).config("headers: { x_ratelimit: false }").run();
    let answer = without.connect().send(request).answer();
    assert_eq!(answer.field("x-ratelimit-limit"), Some("7"), "the upstream's own pass");
    assert_eq!(answer.field("access-control-expose-headers"), None);
}

#[test]
fn health_and_metrics_on_the_data_port_where_asked_for() {
    let backend = Backend::ok();
    let tollgate = Start::default()
        .upstream(backend.address)
        .config("server: { expose: [health, metrics] }")
        .run();
    let health = tollgate.get("/health");
    assert_eq!(health.status, 200);
    let health: serde_json::Value = serde_json::from_slice(&health.body).unwrap();
    assert_eq!(health["dependencies"]["upstream"], "healthy");
    assert!(tollgate.get("/metrics").text().contains("rate_limit_hits_total"));
    assert_eq!(backend.seen().len(), 0);
    // Everything else is the backend's, and so are these where nobody asked.
    let plain = Tollgate::in_front_of(backend.address);
    assert_eq!(plain.get("/health").text(), "ok");
}

#[test]
fn what_never_reached_the_upstream_is_given_back() {
    let address = support::nobody();
    let tollgate = Start::default().upstream(address).tiers(&tier("per_minute: 3")).run();
    let mut client = tollgate.connect();
    // More than the limit, and fewer than open the upstream's circuit.
    for _ in 0..4 {
        let answer = client.get("/");
        assert_eq!((answer.status, shown(&answer)), (502, (3, 3)));
    }
    let hits = r#"rate_limit_hits_total{identifier_type="ip",tier="t",endpoint="other"}"#;
    assert_eq!(tollgate.metric(hits), 4.);
    let _backend = Backend::ok_at(address);
    let statuses = [(); 4].map(|()| client.get("/").status);
    assert_eq!(statuses, [200, 200, 200, 429]);
}

#[test]
fn what_the_upstream_saw_stays_spent() {
    let backend = Backend::spawn(|mut connection| {
        connection.request();
        connection.reset();
    });
    let tollgate = in_front_of(&backend, &tier("per_minute: 3"));
    let statuses = [(); 4].map(|()| tollgate.get("/").status);
    assert_eq!(statuses, [502, 502, 502, 429]);
}
