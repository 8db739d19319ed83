//! Whose quota a request meets: the socket's peer, or whom trusted proxies name. The real binary,
//! its callers at several addresses of loopback.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod support;

use std::net::{Ipv6Addr, SocketAddr, TcpListener};

use support::{Answer, Backend, Client, Start, Tollgate, wait_until};

/// Ten a minute for everybody; nobody's window moves on within a test.
const TIERS: &str = "
default_tier: free
tiers: { free: { per_minute: 10 }, inside: { per_minute: 20 } }
networks: { 127.0.0.1/32: inside }
identities: { 'ip:198.51.100.66': deny }
";
const TRUSTING: &str = "server: { trusted_proxies: [127.0.0.1/32, 10.0.0.0/8] }";
/// A peer that no test trusts.
const STRANGER: &str = "127.0.0.2";
/// The warning that is said once.
const WARNING: &str = "server.trusted_proxies does not name it";

fn start(backend: &Backend, config: &str) -> Tollgate {
    Start::default().upstream(backend.address).config(config).tiers(TIERS).run()
}

/// A request with these lines in its head, from this address.
fn ask(tollgate: &Tollgate, source: &str, lines: &[&str]) -> Answer {
    let mut request = "GET / HTTP/1.1\r\nHost: a\r\n".to_owned();
    for line in lines {
        request += &format!("{line}\r\n");
    }
    Client::connect_from(source, tollgate.data).send(request + "\r\n").answer()
}

/// The limit of the caller that a request counts for, and what it has left.
fn quota(answer: &Answer) -> (u64, u64) {
    assert_eq!(answer.status, 200, "{}", answer.head);
    (answer.number("x-ratelimit-limit"), answer.number("x-ratelimit-remaining"))
}

fn counted(tollgate: &Tollgate, reason: &str) -> f64 {
    tollgate.metric(&format!("tollgate_identity_errors_total{{reason=\"{reason}\"}}"))
}

fn expect_counted(tollgate: &Tollgate, untrusted: f64, malformed: f64, conflict: f64) {
    let found =
        ["xff_untrusted", "xff_malformed", "xff_conflict"].map(|reason| counted(tollgate, reason));
    assert_eq!(found, [untrusted, malformed, conflict]);
}

#[test]
fn callers_behind_a_trusted_proxy_have_a_quota_each() {
    let backend = Backend::ok();
    let tollgate = start(&backend, TRUSTING);
    let mut left = std::collections::HashMap::new();
    let mut ask = |caller: &'static str, lines: &[&str]| {
        let left = left.entry(caller).or_insert(10);
        *left -= 1;
        assert_eq!(quota(&ask(&tollgate, "127.0.0.1", lines)), (10, *left), "{lines:?}");
    };
    ask("a", &["X-Forwarded-For: 203.0.113.1"]);
    ask("b", &["X-Forwarded-For: 203.0.113.2"]);
    ask("a", &["X-Forwarded-For: 203.0.113.1"]);
    // Through more proxies, over more lines, in other notations; whatever the caller sent first.
    ask("a", &["X-Forwarded-For: 203.0.113.1, 10.1.2.3"]);
    ask("a", &["x-forwarded-for: 203.0.113.2", "x-forwarded-for: 203.0.113.1:80,10.1.2.3"]);
    ask("a", &["X-Forwarded-For: ::ffff:203.0.113.1"]);
    ask("a", &["X-Forwarded-For: junk, \", 203.0.113.1,, [::ffff:10.1.2.3]:9"]);
    ask("b", &["Forwarded: for=\"203.0.113.2:4711\";proto=https"]);
    ask("b", &["Forwarded: for=\"open, for=203.0.113.2, For=10.1.2.3"]);
    ask("c", &["Forwarded: for=203.0.113.2", "Forwarded: by=_x;for=\"[2001:db8:1:2::1]\""]);
    // One /64, one caller.
    ask("c", &["X-Forwarded-For: 2001:db8:1:2:ffff::9"]);
    ask("d", &["X-Forwarded-For: 2001:db8:1:3::1"]);
    expect_counted(&tollgate, 0.0, 0.0, 0.0);
    assert!(!tollgate.log().contains(WARNING), "{}", tollgate.log());
}

#[test]
fn prefixes_are_as_long_as_the_file_says() {
    let backend = Backend::ok();
    let config = format!("{TRUSTING}\nidentity: [ip: {{ ipv4_prefix: 24, ipv6_prefix: 48 }}]\n");
    let tollgate = start(&backend, &config);
    let ask =
        |from: &str| quota(&ask(&tollgate, "127.0.0.1", &[&format!("X-Forwarded-For: {from}")])).1;
    assert_eq!([ask("203.0.113.1"), ask("203.0.113.255"), ask("203.0.112.1")], [9, 8, 9]);
    assert_eq!([ask("2001:db8:1:2::1"), ask("2001:db8:1:3::1"), ask("2001:db8:2::1")], [9, 8, 9]);
}

#[test]
fn a_spoofed_field_from_an_untrusted_peer_changes_nothing_and_is_said_once() {
    let backend = Backend::ok();
    // On two workers: both must not say it.
    let tollgate = start(
        &backend,
        "server: { workers: 2, trusted_proxies: [127.0.0.1/32] }\nlog: { level: warn }",
    );
    assert_eq!(quota(&ask(&tollgate, STRANGER, &[])), (10, 9));
    expect_counted(&tollgate, 0.0, 0.0, 0.0);
    assert!(!tollgate.log().contains(WARNING), "{}", tollgate.log());
    for (count, line) in [
        "X-Forwarded-For: 203.0.113.1",
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-For: ",
        "Forwarded: for=203.0.113.2",
        "Forwarded: junk",
    ]
    .iter()
    .enumerate()
    {
        let left = 8 - u64::try_from(count).unwrap();
        assert_eq!(quota(&ask(&tollgate, STRANGER, &[line])), (10, left), "{line}");
        assert_eq!(backend.last().all("x-forwarded-for"), [STRANGER], "{line}");
    }
    expect_counted(&tollgate, 5.0, 0.0, 0.0);
    // A field that names nobody is no reason to say anything.
    ask(&tollgate, STRANGER, &["X-Forwarded-Proto: https", "X-Real-IP: 203.0.113.1"]);
    expect_counted(&tollgate, 5.0, 0.0, 0.0);

    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for host in 3..13 {
                    let source = format!("127.0.0.{host}");
                    ask(&tollgate, &source, &["X-Forwarded-For: 203.0.113.1"]);
                }
            });
        }
    });
    expect_counted(&tollgate, 85.0, 0.0, 0.0);
    wait_until("the warning is said", || tollgate.log().contains(WARNING));
    let log = tollgate.log();
    assert_eq!(log.matches(WARNING).count(), 1, "{log}");
    let line = log.lines().find(|line| line.contains(WARNING)).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["level"], "WARN", "{line}");
    assert!(line.to_string().contains(r#""peer":"127.0.0.2""#), "{line}");
    assert!(!log.contains("203.0.113.1"), "a caller's words are not logged: {log}");
}

#[test]
fn a_chain_that_cannot_be_read_counts_for_the_peer() {
    let backend = Backend::ok();
    let tollgate = start(&backend, TRUSTING);
    let lines = [
        "X-Forwarded-For: 203.0.113.1, junk",
        "X-Forwarded-For: 203.0.113.1, unknown, 10.1.2.3",
        "X-Forwarded-For: fe80::1%eth0",
        "X-Forwarded-For: 203.0.113.01",
        "Forwarded: for=203.0.113.1, for=unknown",
        "Forwarded: for=_hidden",
        "Forwarded: for=203.0.113.1;for=203.0.113.2",
        "Forwarded: proto=https",
    ];
    for (count, line) in (1_u32..).zip(lines) {
        let found = quota(&ask(&tollgate, "127.0.0.1", &[line]));
        assert_eq!(found, (20, 20 - u64::from(count)), "{line}");
        expect_counted(&tollgate, 0.0, count.into(), 0.0);
    }
    // Nobody's word at all is no fault.
    assert_eq!(quota(&ask(&tollgate, "127.0.0.1", &["X-Forwarded-For: ,"])), (20, 11));
    assert_eq!(quota(&ask(&tollgate, "127.0.0.1", &[])), (20, 10));
    expect_counted(&tollgate, 0.0, 8.0, 0.0);
}

#[test]
fn a_second_field_lets_nobody_be_somebody_else() {
    let backend = Backend::ok();
    let tollgate = start(&backend, TRUSTING);
    let ask = |list: &str, elements: &str| {
        let lines = [&*format!("Forwarded: {elements}"), &format!("X-Forwarded-For: {list}")];
        ask(&tollgate, "127.0.0.1", &lines)
    };
    assert_eq!(quota(&ask("203.0.113.1", "for=203.0.113.1")), (10, 9));
    expect_counted(&tollgate, 0.0, 0.0, 0.0);
    // Neither another caller, nor the proxy with its network's tier, nor off the deny list.
    assert_eq!(quota(&ask("203.0.113.1", "for=203.0.113.2")), (10, 8));
    assert_eq!(quota(&ask("203.0.113.1", "for=unknown")), (10, 7));
    assert_eq!(ask("198.51.100.66", "for=203.0.113.1").status, 403);
    expect_counted(&tollgate, 0.0, 0.0, 3.0);
}

#[test]
fn ipv4_in_ipv6_is_ipv4() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        println!("SKIPPED: this machine has no IPv6");
        return;
    }
    let backend = Backend::ok();
    // A socket for both families sees 127.0.0.2 as ::ffff:127.0.0.2.
    let tollgate = Start::default()
        .listen("[::]")
        .upstream(backend.address)
        .config("server: { trusted_proxies: ['127.0.0.1', '::1'] }")
        .tiers(TIERS)
        .run();
    let over = |source: &str, from: &str| {
        let host =
            if source.contains(':') { Ipv6Addr::LOCALHOST.into() } else { [127, 0, 0, 1].into() };
        let mut client = Client::connect_from(source, SocketAddr::new(host, tollgate.data.port()));
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{from}\r\n");
        quota(&client.send(request).answer())
    };
    assert_eq!(over("127.0.0.2", ""), (10, 9));
    assert_eq!(over("127.0.0.1", "X-Forwarded-For: 127.0.0.2\r\n"), (10, 8));
    assert_eq!(over("::1", "X-Forwarded-For: ::ffff:7f00:2\r\n"), (10, 7));
    assert_eq!(over("::1", "Forwarded: for=\"[::ffff:127.0.0.2]:80\"\r\n"), (10, 6));
    // And the peer itself, of a network that the policy knows by its IPv4 address; ::1 is none.
    assert_eq!(over("127.0.0.1", ""), (20, 19));
    assert_eq!(over("::1", ""), (10, 9));
    // Another address of the same /64 is the same caller.
    assert_eq!(over("::1", "X-Forwarded-For: ::2\r\n"), (10, 8));
}
