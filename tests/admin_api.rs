//! `/api/v1/…` of a running tollgate: who may call it, what its calls answer.
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

use std::io::{Read, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use support::{Answer, Backend, Client, Start, Tollgate, wait_until};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// One request of the admin port, whose head ends with these lines.
fn ask(tollgate: &Tollgate, line: &str, fields: &str) -> Answer {
    let method = line.split(' ').next().unwrap();
    let mut client = Client::connect(tollgate.admin);
    client.send(format!("{line} HTTP/1.1\r\n{fields}\r\n")).answer_to(method)
}

/// A GET as `curl` sends it on this machine.
fn get(tollgate: &Tollgate, path: &str) -> Answer {
    ask(tollgate, &format!("GET {path}"), &format!("Host: {}\r\n", tollgate.admin))
}

fn error(answer: &Answer) -> (u16, String) {
    assert_eq!(answer.field("content-type"), Some("application/json"), "{}", answer.head);
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let (error, keys) = (body["error"].as_str().unwrap(), body.as_object().unwrap().len());
    assert_eq!(keys, 1, "{body}");
    (answer.status, error.to_owned())
}

/// With this token, its file as an editor leaves it.
fn with_token(backend: &Backend, token: &str) -> (Tollgate, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("admin.token");
    std::fs::write(&file, format!("\n  {token}\r\n\n")).unwrap();
    let config = format!("admin: {{ token_file: {} }}", file.display());
    (Start::default().upstream(backend.address).config(&config).run(), directory)
}

#[test]
fn without_a_token_only_this_machine_is_answered() {
    let backend = Backend::ok();
    let tollgate = Tollgate::in_front_of(backend.address);
    assert_eq!(error(&get(&tollgate, "/api/v1/nothing")), (404, "Not found".to_owned()));
    for host in ["localhost:9900", "127.0.0.1", "[::1]:1"] {
        let fields = format!("Host: {host}\r\n");
        assert_eq!(ask(&tollgate, "GET /api/v1/nothing", &fields).status, 404, "{host}");
    }
    for fields in [
        "Host: evil.test\r\n",
        "Host: 127.0.0.1.evil.test\r\n",
        "Host: localhost\r\nHost: evil.test\r\n",
        "Host: localhost\r\nOrigin: https://evil.test\r\n",
        "Host: localhost\r\nSec-Fetch-Site: cross-site\r\n",
    ] {
        let (status, why) = error(&ask(&tollgate, "GET /api/v1/nothing", fields));
        assert!(status == 403 && why.contains("admin.token_file"), "{fields}: {status} {why}");
    }
    assert_eq!(ask(&tollgate, "GET http://evil.test/api/v1/a", "Host: localhost\r\n").status, 403);
    assert_eq!(ask(&tollgate, "POST /api", "Host: evil.test\r\n").status, 403);
    // What is open stays open, and what begins alike is not the API.
    for path in ["/health", "/livez", "/readyz", "/metrics"] {
        assert_eq!(ask(&tollgate, &format!("GET {path}"), "Host: evil.test\r\n").status, 200);
    }
    assert_eq!(ask(&tollgate, "GET /apis", "Host: evil.test\r\n").status, 404);
}

#[test]
fn a_token_is_asked_for_where_there_is_one() {
    let backend = Backend::ok();
    let (tollgate, _directory) = with_token(&backend, TOKEN);
    let with = |field: &str| {
        let fields = format!("Host: tollgate.test\r\nAuthorization: {field}\r\n");
        ask(&tollgate, "GET /api/v1/nothing", &fields)
    };
    assert_eq!(with(&format!("Bearer {TOKEN}")).status, 404);
    assert_eq!(with(&format!("bearer {TOKEN}")).status, 404);
    let wrong = [format!("Bearer {}", &TOKEN[1..]), format!("Basic {TOKEN}"), "Bearer".to_owned()];
    for wrong in &wrong {
        let answer = with(wrong);
        assert_eq!(error(&answer), (401, "Unauthorized".to_owned()), "{wrong}");
        assert_eq!(answer.field("www-authenticate"), Some("Bearer realm=\"tollgate\""));
    }
    // This machine has no privilege either.
    assert_eq!(get(&tollgate, "/api/v1/nothing").status, 401);
    assert_eq!(get(&tollgate, "/health").status, 200);
    assert!(!tollgate.log().contains(TOKEN), "{}", tollgate.log());
}

#[test]
fn a_token_that_cannot_be_used_keeps_it_from_starting() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("admin.token");
    let config = directory.path().join("tollgate.yaml");
    std::fs::write(&config, format!("admin: {{ token_file: {} }}", file.display())).unwrap();
    let refused = |content: Option<&str>, expected: &str| {
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command.args(["run", "--upstream", "http://127.0.0.1:1", "--listen", "127.0.0.1:0"]);
        let output = command.arg("--config").arg(&config).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{errors}");
        let expected = format!("admin.token_file: {}: {expected}", file.display());
        assert!(errors.contains(&expected), "{errors}");
        assert!(!errors.contains("s3cret"), "{errors}");
    };
    refused(None, "cannot be read: No such file");
    refused(Some(" \r\n\t"), "empty, expected a token");
    refused(Some("s3cret\nand another"), "not one word of visible ASCII, expected a token");
    refused(Some("s3cret\u{e9}"), "not one word of visible ASCII, expected a token");
}

/// What `top` lists: who, how often, and how much less it may be.
fn listed(tollgate: &Tollgate, query: &str) -> (String, Vec<(String, u64, u64)>) {
    let answer = get(tollgate, &format!("/api/v1/top{query}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let top: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(top.as_object().unwrap().len(), 2, "{top}");
    let items = top["items"].as_array().unwrap().iter().map(|item| {
        assert_eq!(item.as_object().unwrap().len(), 3, "{item}");
        let number = |key: &str| item[key].as_u64().unwrap();
        (item["identity"].as_str().unwrap().to_owned(), number("count"), number("error"))
    });
    (top["window"].as_str().unwrap().to_owned(), items.collect())
}

#[test]
fn top_lists_who_asks_most_and_who_is_refused_most() {
    let backend = Backend::ok();
    let tollgate = Start::default()
        .upstream(backend.address)
        .config("server: { workers: 2, trusted_proxies: [127.0.0.0/8] }")
        .tiers(
            "tiers: { free: { per_hour: 20 }, staff: {} }\n\
                default_tier: free\n\
                networks: { 10.0.0.0/8: staff }\n\
                identities: { 'ip:192.0.2.1': deny }\n\
                endpoints: [{ name: open, path: /open, exempt: true }]\n",
        )
        .run();
    assert_eq!(listed(&tollgate, ""), ("5m".to_owned(), Vec::new()));

    // A crowd of 200, the first of whom comes 60 times, the second 30 times, the third 20 times.
    let mut sent: Vec<(String, u64)> = Vec::new();
    let mut refused: Vec<(String, u64)> = Vec::new();
    let mut clients: Vec<Client> = (0..8).map(|_| tollgate.connect()).collect();
    for place in 1..=200_u64 {
        // IPv6 callers are folded to what one customer has.
        let (address, identity) = match place % 3 {
            0 => (
                format!("2001:db8:{place:x}:1::{place:x}"),
                format!("ip:2001:db8:{place:x}:1::/64"),
            ),
            _ => (format!("198.51.100.{place}"), format!("ip:198.51.100.{place}")),
        };
        let request = format!("GET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: {address}\r\n\r\n");
        let count = 60 / place;
        for turn in 0..usize::try_from(count).unwrap() {
            let status = clients[turn % 8].send(&request).answer().status;
            assert!(matches!(status, 200 | 429), "{status}");
            if status == 429 {
                match refused.last_mut() {
                    Some((last, count)) if *last == identity => *count += 1,
                    _ => refused.push((identity.clone(), 1)),
                }
            }
        }
        sent.extend((count > 0).then_some((identity, count)));
    }
    let exact = |expected: &[(String, u64)]| -> Vec<(String, u64, u64)> {
        let mut expected = expected.to_vec();
        expected.sort_by_key(|(identity, count)| (std::cmp::Reverse(*count), identity.clone()));
        expected.into_iter().map(|(identity, count)| (identity, count, 0)).collect()
    };
    assert_eq!(refused.iter().map(|it| it.1).collect::<Vec<_>>(), [40, 10]);
    let (sent, refused) = (exact(&sent), exact(&refused));
    // Not sixty of them: fewer than there are counters, so that all are exact.
    assert_eq!(listed(&tollgate, "?by=requests&limit=100"), ("5m".to_owned(), sent.clone()));
    assert_eq!(listed(&tollgate, "?by=requests&limit=3").1, sent[..3]);
    assert_eq!(listed(&tollgate, "?by=requests").1, sent[..20]);
    assert_eq!(listed(&tollgate, ""), ("5m".to_owned(), refused.clone()));
    assert_eq!(listed(&tollgate, "?by=blocked&window=1h&limit=20"), ("60m".to_owned(), refused));

    // Without limits is evaluated all the same; exempt and denied callers are not.
    for (address, path) in [("10.1.2.3", "/"), ("10.1.2.4", "/open"), ("192.0.2.1", "/")] {
        let fields = format!("Host: test\r\nX-Forwarded-For: {address}\r\n");
        clients[0].send(format!("GET {path} HTTP/1.1\r\n{fields}\r\n")).answer();
    }
    let (_, all) = listed(&tollgate, "?by=requests&limit=100");
    assert_eq!(all.len(), sent.len() + 1);
    assert!(all.contains(&("ip:10.1.2.3".to_owned(), 1, 0)), "{all:?}");
}

#[test]
fn top_is_bounded_whoever_comes() {
    let backend = Backend::ok();
    let tollgate = Start::default()
        .upstream(backend.address)
        .config("server: { workers: 2, trusted_proxies: [127.0.0.0/8] }")
        .tiers("default_tier: none\ntiers: { none: {} }")
        .run();
    let mut clients: Vec<Client> = (0..2).map(|_| tollgate.connect()).collect();
    let mut ask = |count: u32, from: u32| {
        for number in from..from + count {
            let [_, b, c, d] = number.to_be_bytes();
            // Every fourth is of the same caller.
            let address = if number % 4 == 0 { [203, 0, 113, 7] } else { [10, b, c, d] };
            let address = std::net::Ipv4Addr::from(address);
            let fields = format!("Host: test\r\nX-Forwarded-For: {address}\r\n");
            let client = &mut clients[usize::from(number % 8 < 4)];
            client.send(format!("GET / HTTP/1.1\r\n{fields}\r\n"));
            assert_eq!(client.answer().status, 200);
        }
    };
    ask(3_000, 0);
    let (_, top) = listed(&tollgate, "?by=requests&limit=100");
    assert_eq!(top.len(), 100);
    assert_eq!(
        (top[0].0.as_str(), top[0].1 - top[0].2 <= 750, top[0].1 >= 750),
        ("ip:203.0.113.7", true, true)
    );
    // No more than a hundredth of what each worker has seen in a minute; it may have been two.
    assert!(top.iter().all(|(_, count, error)| *error <= 30 && error <= count), "{top:?}");
}

#[test]
fn a_call_says_what_it_understands() {
    let backend = Backend::ok();
    let tollgate = Tollgate::in_front_of(backend.address);
    let window = "expected whole minutes from 1m to 60m";
    for (query, message) in [
        ("by=both", "by: both, expected blocked or requests"),
        ("by=", "by: empty, expected blocked or requests"),
        ("window=5", &format!("window: 5, {window}")),
        ("window=2h", &format!("window: 2h, {window}")),
        ("window=90s", &format!("window: 90s, {window}")),
        ("limit=0", "limit: 0, expected a number from 1 to 100"),
        ("limit=101", "limit: 101, expected a number from 1 to 100"),
        ("limit=ten", "limit: ten, expected a number from 1 to 100"),
        ("limit=1&limit=2", "limit: given twice, expected once"),
        ("n=1", "n: unknown parameter, expected one of by, window, limit"),
        ("by=%zz", "%zz: not UTF-8 in percent-encoding"),
    ] {
        let answer = get(&tollgate, &format!("/api/v1/top?{query}"));
        assert_eq!(error(&answer), (400, message.to_owned()), "{query}");
    }
    assert_eq!(get(&tollgate, "/api/v1/top?by=%62locked&&").status, 200);
    assert_eq!(get(&tollgate, "/api/v1/top/").status, 404);
    let fields = format!("Host: {}\r\n", tollgate.admin);
    let answer = ask(&tollgate, "DELETE /api/v1/top", &fields);
    assert_eq!(error(&answer), (405, "Method not allowed".to_owned()));
    assert_eq!(answer.field("allow"), Some("GET, HEAD"));
    let answer = ask(&tollgate, "HEAD /api/v1/top", &fields);
    assert_eq!((answer.status, answer.body.len()), (200, 0));
}

/// One call on this machine, with a body of this type.
fn send(tollgate: &Tollgate, line: &str, kind: &str, body: &str) -> Answer {
    let length = body.len();
    let fields =
        format!("Host: {}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n", tollgate.admin);
    let mut client = Client::connect(tollgate.admin);
    client.send(format!("{line} HTTP/1.1\r\n{fields}\r\n{body}")).answer()
}

#[test]
fn bodies_targets_and_heads_are_bounded() {
    let backend = Backend::ok();
    let tollgate = Tollgate::in_front_of(backend.address);
    let line = "PUT /api/v1/deny/user:1";
    // What is right, and white space up to the last byte that may be.
    let padded = |bytes: usize| format!("{{}}{}", " ".repeat(bytes - 2));
    assert_eq!(send(&tollgate, line, "application/json", &padded(64 << 10)).status, 200);
    let answer = send(&tollgate, line, "application/json", &padded((64 << 10) + 1));
    assert_eq!(error(&answer), (413, "Content too large".to_owned()));
    // What does not say how long it is.
    let json = "Content-Type: application/json\r\n";
    let host = format!("Host: {}\r\n{json}", tollgate.admin);
    let chunk = format!("4000\r\n{}\r\n", " ".repeat(0x4000));
    let chunked = format!("{line} HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n");
    let many = |count: usize| format!("{chunked}2\r\n{{}}\r\n{}0\r\n\r\n", chunk.repeat(count));
    let mut answers =
        [3, 4].map(|count| Client::connect(tollgate.admin).send(many(count)).answer());
    assert_eq!(answers[0].status, 200, "{}", answers[0].text());
    assert_eq!(error(&answers[1]), (413, "Content too large".to_owned()));
    // One that breaks off says so, and one that stalls is not waited for.
    let cut = format!("{line} HTTP/1.1\r\n{host}Content-Length: 5\r\n\r\n{{");
    let mut client = Client::connect(tollgate.admin);
    client.send(&cut).stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(matches!(client.answer().status, 0 | 400));
    let answer = Client::connect(tollgate.admin).send(&cut).answer();
    assert_eq!(error(&answer), (408, "Request timeout".to_owned()));

    let target = |begin: &str, bytes: usize| {
        let target = format!("{begin}{}", "a".repeat(bytes - begin.len()));
        get(&tollgate, &target)
    };
    for (begin, found) in [("/api/v1/", 404), ("/health?", 200), ("/livez?", 200)] {
        assert_eq!(target(begin, 8 << 10).status, found, "{begin}");
        let answer = target(begin, (8 << 10) + 1);
        assert_eq!(error(&answer), (414, "URI too long".to_owned()), "{begin}");
    }
    let with =
        |fields: String| ask(&tollgate, "GET /livez", &format!("Host: a\r\n{fields}")).status;
    assert_eq!(with("A: b\r\n".repeat(63)), 200);
    assert_eq!(with("A: b\r\n".repeat(64)), 431);
    assert_eq!(with(format!("A: {}\r\n", "b".repeat(65 << 10))), 431);
    answers = [0, 1].map(|_| get(&tollgate, "/api/v1/deny"));
    assert!(answers.iter().all(|it| it.status == 200), "it goes on");
}

#[test]
fn a_body_is_an_object_of_json_with_the_keys_that_are_known() {
    let backend = Backend::ok();
    let tollgate = Tollgate::in_front_of(backend.address);
    let line = "PUT /api/v1/identities/user:1/override";
    let right = r#"{"tier":"PREMIUM","until":"2999-12-31T23:59:59+02:00"}"#;
    for kind in ["application/json", "Application/JSON; charset=utf-8"] {
        let answer = send(&tollgate, line, kind, right);
        assert_eq!(answer.status, 200, "{kind}: {}", answer.text());
        assert!(answer.text().contains(r#""until":"2999-12-31T21:59:59Z""#), "{}", answer.text());
    }
    for kind in ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonl"] {
        let (status, why) = error(&send(&tollgate, line, kind, right));
        assert_eq!((status, why.contains("application/json")), (415, true), "{kind}: {why}");
    }
    let expected = "expected one of `tier`, `until`, `reason`";
    let to_come = "expected a time to come, as 2027-01-01T00:00:00Z";
    let tiers = "expected one of free, premium, enterprise, internal";
    let long = format!(r#"{{"tier":"free","reason":"{}"}}"#, "é".repeat(201));
    for (body, why) in [
        (r#"{"tier":"free","till":1}"#, format!("body: unknown field `till`, {expected}")),
        (r#"{"tier":"free","tier":"free"}"#, "body: duplicate field `tier`".to_owned()),
        (r#"{"tier":1}"#, "body: invalid type: integer `1`".to_owned()),
        ("{}", "body: missing field `tier`".to_owned()),
        ("", "body: missing field `tier`".to_owned()),
        (r#"["free"]"#, "body: expected an object of JSON".to_owned()),
        ("null", "body: expected an object of JSON".to_owned()),
        (r#"{"tier":"free"} x"#, "body: trailing characters".to_owned()),
        ("{", "body: EOF while parsing".to_owned()),
        (r#"{"tier":"gold"}"#, format!("tier: gold, {tiers}")),
        (
            r#"{"tier":"free","until":"2001-01-01T00:00:00Z"}"#,
            format!("until: 2001-01-01T00:00:00Z, {to_come}"),
        ),
        (r#"{"tier":"free","until":"soon"}"#, format!("until: soon, {to_come}")),
        (
            r#"{"tier":"free","reason":"a\nb"}"#,
            "reason: a\nb, expected at most 200 characters".to_owned(),
        ),
        (&long, "reason: éééé".to_owned()),
    ] {
        let (status, found) = error(&send(&tollgate, line, "application/json", body));
        // A message repeats forty characters, and no more.
        let why: String = why.chars().take(40).collect();
        assert_eq!((status, found.starts_with(&why)), (400, true), "{body}: {found}");
    }
    let held = get(&tollgate, "/api/v1/overrides").text();
    assert!(held.contains(r#""tier":"premium""#), "what was wrong changed nothing: {held}");
}

#[test]
fn who_guesses_tokens_waits() {
    let backend = Backend::ok();
    let (tollgate, _directory) = with_token(&backend, TOKEN);
    let present = |from: &str, token: &str| {
        let mut client = Client::connect_from(from, tollgate.admin);
        let fields = format!("Host: test\r\nAuthorization: Bearer {token}\r\n");
        client.send(format!("GET /api/v1/deny HTTP/1.1\r\n{fields}\r\n")).answer()
    };
    // Who presents nothing does not guess, and who presents the right one did not.
    for _ in 0..20 {
        assert_eq!(get(&tollgate, "/api/v1/deny").status, 401);
        assert_eq!(present("127.0.0.1", TOKEN).status, 200);
    }
    let mut refused = None;
    for _ in 0..20 {
        let answer = present("127.0.0.1", "guess");
        match answer.status {
            401 => {}
            _ => refused = refused.or(Some(answer)),
        }
    }
    let refused = refused.unwrap();
    assert_eq!(error(&refused), (429, "Too many wrong tokens".to_owned()));
    assert!((1..=6).contains(&refused.number("retry-after")), "{}", refused.head);
    // Else the answer to the right one would tell it from the wrong ones.
    assert_eq!(present("127.0.0.1", TOKEN).status, 429);
    assert_eq!(present("127.0.0.2", TOKEN).status, 200, "another address");
    assert_eq!(present("127.0.0.2", "guess").status, 401);
    assert_eq!(get(&tollgate, "/health").status, 200);
    let count = |reason: &str| {
        tollgate.metric(&format!("tollgate_admin_refused_total{{reason=\"{reason}\"}}"))
    };
    assert!(count("throttled") >= 9.0 && count("token") >= 30.0);

    // The log says who, once for each address that has to wait, and nothing of what was presented.
    for _ in 0..20 {
        present("127.0.0.3", "guess");
    }
    let told = |from: &str| {
        let log = tollgate.log();
        let of_it = log.lines().filter(|it| it.contains("too many wrong tokens"));
        of_it.filter(|it| it.contains(&format!(r#""from":"{from}""#))).count()
    };
    wait_until("both are told of", || told("127.0.0.1") > 0 && told("127.0.0.3") > 0);
    assert_eq!(["127.0.0.1", "127.0.0.2", "127.0.0.3"].map(told), [1, 0, 1]);
    let log = tollgate.log();
    assert!(!log.contains(TOKEN) && !log.contains("guess"), "{log}");
}

#[test]
fn without_a_token_no_other_page_changes_anything() {
    let backend = Backend::ok();
    let tollgate = Tollgate::in_front_of(backend.address);
    let line = |method: &str| format!("{method} /api/v1/deny/user:1");
    let with = |method: &str, fields: &str| {
        let fields = format!("Host: {}\r\n{fields}", tollgate.admin);
        ask(&tollgate, &line(method), &fields).status
    };
    let own = format!("Origin: http://{}\r\nSec-Fetch-Site: same-origin\r\n", tollgate.admin);
    for fields in [
        "Origin: http://localhost:3000\r\n",
        "Origin: https://evil.test\r\n",
        "Origin: null\r\n",
        "Sec-Fetch-Site: same-site\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
    ] {
        assert_eq!([with("PUT", fields), with("DELETE", fields)], [403; 2], "{fields}");
    }
    assert!(!get(&tollgate, "/api/v1/deny").text().contains("user:1"));
    assert_eq!([with("PUT", &own), with("PUT", ""), with("DELETE", &own)], [200, 200, 204]);
    // With one, it is the token that counts, which no page has.
    let (tollgate, _directory) = with_token(&backend, TOKEN);
    let fields = format!("Host: a\r\nOrigin: https://b\r\nAuthorization: Bearer {TOKEN}\r\n");
    assert_eq!(ask(&tollgate, &line("PUT"), &fields).status, 200);
}

/// The lines of the log that say who did what.
fn audited(tollgate: &Tollgate) -> Vec<serde_json::Value> {
    let log = tollgate.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str(line).ok());
    lines.filter(|it: &serde_json::Value| !it["action"].is_null()).collect()
}

#[test]
fn every_change_is_logged_whatever_the_level_and_the_token_never_is() {
    let backend = Backend::ok();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("admin.token");
    std::fs::write(&file, TOKEN).unwrap();
    let config = format!("admin: {{ token_file: {} }}\nlog: {{ level: warn }}", file.display());
    let tollgate = Start::default().upstream(backend.address).config(&config).run();
    let as_operator = |line: &str, name: &str, body: &str| {
        let length = body.len();
        let fields = format!(
            "Host: test\r\nAuthorization: Bearer {TOKEN}\r\nX-Tollgate-Operator: {name}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let mut client = Client::connect(tollgate.admin);
        client.send(format!("{line} HTTP/1.1\r\n{fields}")).answer_to("DELETE").status
    };
    let one = "/api/v1/identities/user:7";
    let expected = [
        (format!("PUT {one}/override"), "override.set", Some("user:7"), Some("premium")),
        (format!("DELETE {one}/override"), "override.remove", Some("user:7"), None),
        ("PUT /api/v1/deny/ip:192.0.2.1".to_owned(), "deny.set", Some("ip:192.0.2.1"), None),
        ("DELETE /api/v1/deny/ip:192.0.2.1".to_owned(), "deny.remove", Some("ip:192.0.2.1"), None),
        (format!("DELETE {one}"), "reset", Some("user:7"), None),
    ];
    for (line, action, ..) in &expected {
        let body = if *action == "override.set" { r#"{"tier":"premium"}"# } else { "{}" };
        assert!(matches!(as_operator(line, "Zoë A.", body), 200 | 204), "{line}");
    }
    assert_eq!(as_operator("POST /api/v1/reload", "", ""), 400, "a name is not empty");
    assert_eq!(as_operator("POST /api/v1/reload", &"a".repeat(65), ""), 400);
    assert_eq!(as_operator("POST /api/v1/reload", "Alice", ""), 200);
    wait_until("all are logged", || audited(&tollgate).len() >= 6);
    let lines = audited(&tollgate);
    for (line, (_, action, identity, detail)) in lines.iter().zip(&expected) {
        assert_eq!(line["level"], "INFO", "{line}");
        assert_eq!(line["action"], *action, "{line}");
        assert_eq!(line["identity"].as_str(), *identity, "{line}");
        assert_eq!(line["detail"].as_str(), *detail, "{line}");
        assert_eq!((&line["by"], &line["from"]), (&"Zoë A.".into(), &"127.0.0.1".into()), "{line}");
    }
    assert_eq!((&lines[5]["action"], &lines[5]["by"]), (&"reload".into(), &"Alice".into()));
    assert_eq!(lines.len(), 6, "{lines:#?}");
    assert!(!tollgate.log().contains(TOKEN), "{}", tollgate.log());
    // The answer tells it, too, the newest first.
    let fields = format!("Host: test\r\nAuthorization: Bearer {TOKEN}\r\n");
    let told = ask(&tollgate, "GET /api/v1/changes", &fields);
    let told: serde_json::Value = serde_json::from_slice(&told.body).unwrap();
    let actions: Vec<_> =
        told["items"].as_array().unwrap().iter().map(|it| it["action"].as_str().unwrap()).collect();
    let mut logged: Vec<_> = lines.iter().map(|it| it["action"].as_str().unwrap()).collect();
    logged.reverse();
    assert_eq!(actions, logged);
}

#[test]
fn what_was_not_changed_is_said_and_logged() {
    let backend = Backend::ok();
    let tollgate = Start::default()
        .upstream(backend.address)
        .arguments(&["--redis", &format!("redis://{}", support::nobody())])
        .run();
    for line in ["PUT /api/v1/deny/user:1", "DELETE /api/v1/identities/user:1"] {
        let answer = send(&tollgate, line, "application/json", "");
        let (status, why) = error(&answer);
        assert_eq!((status, why.starts_with("Redis does not answer")), (503, true), "{why}");
    }
    wait_until("both are logged", || audited(&tollgate).len() == 2);
    for line in audited(&tollgate) {
        assert_eq!(line["level"], "WARN", "{line}");
        assert!(line["message"].as_str().unwrap().starts_with("not changed: "), "{line}");
    }
    assert!(!get(&tollgate, "/api/v1/deny").text().contains("user:1"));
}

#[test]
fn explain_asks_a_tollgate_that_serves() {
    let backend = Backend::ok();
    let (tollgate, directory) = with_token(&backend, TOKEN);
    assert_eq!([(); 3].map(|()| tollgate.get("/").status), [200; 3]);
    let url = format!("http://{}", tollgate.admin);
    let explain = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command.args(["explain", "GET", "/orders?key=s3cret", "--live", &url]).args(more);
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let file = directory.path().join("admin.token").display().to_string();
    let (code, text, errors) = explain(&["--token-file", &file]);
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{text}");
    assert!(text.starts_with("GET /orders\nto localhost, from 127.0.0.1, as things stand now\n"));
    for line in ["override    none for ip:127.0.0.1", "tier:minute"] {
        assert!(text.contains(line), "no {line} in {text}");
    }
    let header = ["--header", "X-Key: s3cret", "--format", "json"];
    let all = [&["--token-file", &file][..], &header].concat();
    let (code, json, errors) = explain(&all);
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{json}");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let limits = json["limits"].as_array().unwrap();
    let minute = limits.iter().find(|it| it["name"] == "tier:minute").unwrap();
    assert_eq!((&minute["used"], &minute["remaining"]), (&3.into(), &97.into()), "{json:#}");
    assert!(!json.to_string().contains("s3cret") && !text.contains("s3cret"));
    // Nothing was charged for asking.
    let (_, again, _) = explain(&all);
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    assert_eq!(again["limits"][1]["used"], json["limits"][1]["used"]);

    let (code, output, errors) = explain(&[]);
    assert_eq!((code, output.as_str()), (Some(1), ""));
    assert!(errors.contains("401") && errors.contains("--token-file"), "{errors}");
    std::fs::write(directory.path().join("wrong"), "wrong").unwrap();
    let wrong = directory.path().join("wrong").display().to_string();
    assert_eq!(explain(&["--token-file", &wrong]).0, Some(1));
    let (code, _, errors) = explain(&["--token-file", "/nowhere"]);
    assert!(code == Some(1) && errors.contains("--token-file: /nowhere"), "{errors}");
}

#[test]
fn a_request_that_is_explained_is_read_as_it_stands() {
    let backend = Backend::ok();
    let tollgate = Tollgate::in_front_of(backend.address);
    for (body, expected) in [
        (r#"{"method":"GET","path":"/","headers":{"A: B":"c"}}"#, "headers: expected the names"),
        (r#"{"method":"GET","path":"/","headers":{"A":"s3cret\n"}}"#, "headers: a control char"),
        (r#"{"method":"G T","path":"/"}"#, "method: \"G T\", expected a method of HTTP"),
        (r#"{"method":"GET","path":"s3cret"}"#, "path: another form, expected a path"),
        (r#"{"method":"GET","path":"/","ip":"localhost"}"#, "body: invalid IP address"),
        (r#"{"method":"GET","path":"/","host":"a"}"#, "body: unknown field `host`"),
        (r#"{"path":"/"}"#, "body: missing field `method`"),
    ] {
        let answer = send(&tollgate, "POST /api/v1/explain", "application/json", body);
        let (status, why) = error(&answer);
        assert_eq!((status, why.starts_with(expected)), (400, true), "{body}: {why}");
        assert!(!why.contains("s3cret"), "{why}");
    }
    let (status, why) = error(&get(&tollgate, "/api/v1/top?format=json"));
    assert_eq!((status, why.contains("unknown parameter")), (400, true), "{why}");
}

#[test]
fn files_are_read_anew_when_an_operator_says_so() {
    let backend = Backend::ok();
    let tiers = "default_tier: free\ntiers: { free: { per_minute: 100 } }\n";
    let tollgate = Start::default().upstream(backend.address).tiers(tiers).run();
    let policy = || -> serde_json::Value {
        serde_json::from_slice(&get(&tollgate, "/api/v1/policy").body).unwrap()
    };
    let reload = || {
        let answer = send(&tollgate, "POST /api/v1/reload", "", "");
        let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        (answer.status, body)
    };
    let before = policy();
    assert_eq!(before["tiers"][0]["limits"][0]["limit"], 100);
    let file = tollgate.path("tiers.yaml");
    std::fs::write(&file, tiers.replace("100", "200")).unwrap();
    let (status, body) = reload();
    assert_eq!((status, &body["reloaded"]), (200, &true.into()), "{body}");
    let after = policy();
    assert_eq!(after["tiers"][0]["limits"][0]["limit"], 200);
    assert_eq!((&after["hash"], &after["last_reload"]["ok"]), (&body["hash"], &true.into()));
    assert_ne!(after["hash"], before["hash"]);

    std::fs::write(&file, tiers.replace("per_minute: 100", "per_minuet: 100, per_huor: 9"))
        .unwrap();
    let (status, body) = reload();
    assert_eq!(status, 422, "{body}");
    // One text for each file, with all that is wrong in it.
    let errors: Vec<_> = body["errors"].as_array().unwrap().iter().collect();
    let text = errors[0].as_str().unwrap();
    let place = |column: usize| format!("{}:2:{column}: tiers.free.per_", file.display());
    assert!(text.starts_with(&place(18)) && text.contains(&format!("\n{}", place(35))), "{text}");
    assert!(errors.len() == 1 && text.contains("did you mean \"per_minute\"?"), "{text}");
    let now = policy();
    assert_eq!((&now["hash"], &now["tiers"]), (&after["hash"], &after["tiers"]));
    assert_eq!(now["last_reload"]["ok"], false);
    assert!(now["last_reload"]["error"].as_str().unwrap().contains("per_minuet"), "{now:#}");

    let without = Tollgate::in_front_of(backend.address);
    let answer = send(&without, "POST /api/v1/reload", "", "");
    let why = "no file was given at the start, so there is none to reload";
    assert_eq!(error(&answer), (409, why.to_owned()));
}

// --------------------------------------------------------------------------------------- /health

fn health(tollgate: &Tollgate, query: &str) -> (u16, serde_json::Value) {
    let answer = tollgate.admin(&format!("/health{query}"));
    (answer.status, serde_json::from_slice(&answer.body).unwrap())
}

fn keys(value: &serde_json::Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn health_has_the_promised_keys() {
    let backend = Backend::ok();
    let tollgate = Tollgate::in_front_of(backend.address);
    let (status, health) = health(&tollgate, "");
    assert_eq!((status, &health["status"]), (200, &"healthy".into()), "{health}");
    let promised = [
        ("backpressure", &["has_backpressure", "severity", "event_loop_lag_ms"][..]),
        ("memory", &["rss_mb", "percent", "growth_rate_mb_per_sec"]),
        ("dependencies", &["database", "jwks", "redis", "upstream"]),
        ("rate_limiter", &["mode", "since", "algorithm"]),
    ];
    for (section, names) in promised {
        for name in names {
            assert!(keys(&health[section]).contains(name), "{section}.{name} in {health}");
        }
    }
    let queues = ["db_queue_size", "redis_queue_size", "async_tasks_pending", "workers_stuck"];
    for name in queues {
        assert!(keys(&health["backpressure"]).contains(&name), "{name} in {health}");
    }
    let rest =
        ["circuit_breakers", "config_hash", "instance", "status", "uptime_seconds", "version"];
    for name in rest {
        assert!(keys(&health).contains(&name), "{name} in {health}");
    }
    assert_eq!(health["backpressure"]["has_backpressure"], false);
    assert_eq!(health["backpressure"]["severity"], "normal");
    assert!(health["memory"]["rss_mb"].as_f64().unwrap() > 1.0);
    assert!(health["memory"]["percent"].as_f64().unwrap() > 0.0);
    assert_eq!(health["dependencies"]["database"], "not_configured");
    assert!(health["circuit_breakers"].is_object());
    assert_eq!(health["rate_limiter"]["mode"], "exact");
    assert_eq!(health.get("history"), None);
    assert_eq!(health.get("details"), None);
    assert_eq!(health.get("reasons"), None);
}

#[test]
fn health_says_why_and_since_when_and_what_was_before() {
    let backend = Backend::ok();
    let address = backend.address;
    let tollgate = Start::default().upstream(address).config("server: { workers: 2 }").run();
    let (status, well) = health(&tollgate, "?verbose=1");
    assert_eq!((status, &well["reasons"]), (200, &serde_json::json!([])));
    assert_eq!(well["history"].as_array().unwrap().len(), 1, "{well}");
    assert_eq!(well["history"][0]["status"], "healthy");
    assert_eq!(well["history"][0]["reason"], serde_json::Value::Null);
    let workers = well["details"]["workers"].as_array().unwrap();
    let stuck: Vec<_> = workers.iter().map(|it| (&it["worker"], &it["stuck"])).collect();
    assert_eq!(stuck, [(&0.into(), &false.into()), (&1.into(), &false.into())]);
    assert_eq!(well["details"]["dependencies"]["redis"]["status"], "not_configured");
    assert_eq!(well["details"]["dependencies"]["redis"]["since"], serde_json::Value::Null);

    drop(backend);
    let mut status = 0;
    support::wait_until("a request fails", || {
        status = tollgate.get("/").status;
        matches!(status, 502 | 503)
    });
    let (status, gone) = health(&tollgate, "?verbose=1");
    assert_eq!((status, &gone["status"]), (200, &"degraded".into()), "{gone}");
    assert!(gone["reasons"][0].as_str().unwrap().starts_with("upstream "), "{gone}");
    let upstream = &gone["details"]["dependencies"]["upstream"];
    assert_ne!(upstream["status"], "healthy");
    assert_eq!(upstream["last_error"]["result"], "connect", "{gone}");
    assert!(upstream["last_error"]["at"].as_str() >= upstream["since"].as_str(), "{gone}");
    assert_eq!(upstream["last_check"], serde_json::Value::Null, "no checks are configured");
    let history = gone["history"].as_array().unwrap();
    assert_eq!(history.len(), 2, "{gone}");
    assert_eq!(
        (&history[0]["status"], &history[1]["status"]),
        (&"degraded".into(), &"healthy".into())
    );
    assert!(history[0]["reason"].as_str().unwrap().starts_with("upstream "), "{gone}");
    assert!(history[0]["since"].as_str() >= history[1]["since"].as_str());
    assert!(
        history[0]["since"].as_str()
            >= gone["details"]["dependencies"]["upstream"]["since"].as_str()
    );

    // Not on the data port: what is wrong inside is nobody else's business.
    let exposed = Start::default()
        .upstream(address)
        .config("server: { expose: [health] }")
        .run()
        .get("/health?verbose=1");
    assert_eq!(exposed.status, 200);
    assert!(!exposed.text().contains("history"), "{}", exposed.text());
}

#[test]
fn the_history_goes_on_while_nobody_asks() {
    let backend = Backend::ok();
    let tollgate = Start::default()
        .upstream(backend.address)
        .arguments(&["--redis", &format!("redis://{}", support::nobody())])
        .run();
    // Redis was looked for and not found before anybody asked.
    let mut history = serde_json::Value::Null;
    support::wait_until("it has noticed", || {
        history = health(&tollgate, "?verbose=1").1["history"].clone();
        history[0]["status"] == "degraded"
    });
    let reason = history[0]["reason"].as_str().unwrap();
    assert!(reason.contains("limits decided in mode local"), "{history}");
    assert!(reason.contains("redis unhealthy"), "{history}");
}

#[test]
fn what_a_check_and_a_failed_call_came_to_is_told() {
    let backend = Backend::ok();
    let Some(server) = redis::RedisServer::spawn() else { return };
    let config = format!("store: {{ redis: {{ url: '{}', timeout: 200ms }} }}", server.url());
    let tollgate = Start::default().upstream(backend.address).config(&config).run();
    assert_eq!(tollgate.get("/").status, 200);
    let of_redis = || health(&tollgate, "?verbose=1").1["details"]["dependencies"]["redis"].clone();
    assert_eq!(of_redis()["last_error"], serde_json::Value::Null);

    server.pause();
    support::wait_until("calls and checks fail, and are told of", || {
        tollgate.get("/");
        let redis = of_redis();
        redis["last_error"]["result"] == "timeout" && redis["last_check"]["result"] == "timeout"
    });
    server.resume();
    support::wait_until("checks are good again", || {
        let redis = of_redis();
        assert_eq!(redis["last_error"]["result"], "timeout", "{redis}");
        redis["last_check"]["result"] == "ok" && redis["status"] == "healthy"
    });
}

/// `tollgate health`, and how long it took.
fn health_command(arguments: &[&str]) -> (Option<i32>, String, String, Duration) {
    let started = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    let output = command.arg("health").args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr), started.elapsed())
}

#[test]
fn the_health_command_ends_whatever_it_meets() {
    let backend = Backend::ok();
    let tollgate = Tollgate::in_front_of(backend.address);
    let port = tollgate.admin.port();
    for url in [format!("http://localhost:{port}/"), format!("0.0.0.0:{port}")] {
        let (code, output, errors, _) = health_command(&["--admin", &url]);
        assert_eq!((code, errors.as_str()), (Some(0), ""), "{url}");
        let health: serde_json::Value = serde_json::from_str(&output).unwrap();
        assert_eq!(health["status"], "healthy");
    }
    let url = format!("http://127.0.0.1:{port}");
    let (code, output, _, _) = health_command(&["--admin", &url, "--format", "human"]);
    assert_eq!(code, Some(0));
    assert!(output.starts_with("healthy\ntollgate "), "{output}");
    assert!(output.contains("\n  upstream: healthy"), "{output}");

    // Somebody else who answers with 200 is no tollgate that is well.
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = other.accept().unwrap();
        let mut request = String::new();
        while !request.ends_with("\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            request.push(char::from(byte[0]));
        }
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n{\"up\":true}").unwrap();
        request
    });
    let (code, _, errors, _) = health_command(&["--admin", &address]);
    assert_eq!(code, Some(1));
    assert!(answering.join().unwrap().starts_with("GET /health HTTP/1.0\r\n"));
    assert!(errors.contains("is no admin port: no status in its answer"), "{errors}");
}

#[test]
fn the_health_command_waits_five_seconds_and_no_longer() {
    // One that accepts and says nothing, and one that says a little again and again.
    let check = |drips: bool| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            while stopped.recv_timeout(Duration::from_millis(200)).is_err() {
                if drips && stream.write_all(b"a").is_err() {
                    break;
                }
            }
        });
        let (code, output, errors, took) = health_command(&["--admin", &address]);
        assert_eq!((code, output.as_str()), (Some(1), ""));
        assert!(errors.starts_with(&format!("tollgate: cannot ask {address}: ")), "{errors}");
        assert!(took < Duration::from_secs(15), "{took:?}");
        stop.send(()).ok();
        server.join().unwrap();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| check(false));
        scope.spawn(|| check(true));
    });
}
