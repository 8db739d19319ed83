//! The access log, tollgate's own log and spans, of the real binary: what is in them, that nothing
//! is lost or broken, and that no request ever waits for whoever reads them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "tests wait by the real time, and end")]

#[path = "support/http2.rs"]
mod http2;
mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use support::{Backend, Client, GENEROUS, PATIENCE, Start, Tollgate, nobody, signal, wait_until};

const POLICY: &str = "
default_tier: free
tiers:
  free: { per_minute: 3 }
  wide: { per_minute: 1000 }
networks: { 127.0.0.8/32: wide }
identities: { 'ip:127.0.0.9': deny }
endpoints:
  - { name: history, path: '/fo/history/**', limits: { any: { per_minute: 2 } } }
  - { name: live, path: '/live/**', mode: shadow, limits: { any: { per_minute: 1 } } }
  - { name: health, path: /healthz, exempt: true }
";

/// Every line of a file, as JSON; panics where one is none.
fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    assert!(text.is_empty() || text.ends_with('\n'), "the last line has no end");
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Waits for so many lines.
fn wait_lines(path: &Path, count: usize) -> Vec<Value> {
    let is_whole = |text: &str| text.lines().count() >= count && text.ends_with('\n');
    wait_until(&format!("{count} lines are in the access log"), || {
        std::fs::read_to_string(path).is_ok_and(|text| is_whole(&text))
    });
    lines(path)
}

/// A tollgate with an access log, and where that is.
fn start(upstream: SocketAddr, policy: &str, rest: &str) -> (Tollgate, tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let config = format!("log: {{ access: '{}', {rest} }}\n", path.display());
    let tollgate = Start::default().upstream(upstream).config(&config).tiers(policy).run();
    (tollgate, directory, path)
}

#[test]
fn a_line_says_what_its_answer_said() {
    let backend = Backend::ok();
    let (tollgate, _directory, path) = start(backend.address, POLICY, "");
    let get =
        |source: &str, target: &str| Client::connect_from(source, tollgate.data).get(target).status;
    let mut expected = Vec::new();
    let mut expect = |answered: u16, line: Value| {
        assert_eq!(answered, line["status"], "{line}");
        expected.push(line);
    };
    let allowed = |endpoint: &str, path: &str, remaining: Value| {
        json!({ "path": path, "status": 200, "identity": "ip:127.0.0.1", "tier": "free",
            "endpoint": endpoint, "decision": "allow", "limited_by": null,
            "remaining": remaining, "retry_after": null, "bytes_in": 0, "bytes_out": 2 })
    };
    expect(get("127.0.0.1", "/a/b?secret=1"), allowed("other", "/a/b", json!(2)));
    expect(get("127.0.0.1", "/fo/history/1"), allowed("history", "/fo/history/1", json!(1)));
    expect(
        get("127.0.0.1", "/fo/history/%22x%0a"),
        allowed("history", "/fo/history/%22x%0a", json!(0)),
    );
    let denied = json!({ "status": 429, "tier": "free", "decision": "deny", "limited_by": "tier:minute",
        "remaining": 0, "upstream_us": null, "bytes_out": 76 });
    expect(get("127.0.0.1", "/a"), denied);
    for _ in 0..2 {
        expect(get("127.0.0.8", "/fo/history/2"), json!({ "status": 200, "tier": "wide" }));
    }
    let by_rule = json!({ "status": 429, "decision": "deny", "identity": "ip:127.0.0.8",
        "limited_by": "endpoint:history:minute" });
    expect(get("127.0.0.8", "/fo/history/2"), by_rule);
    expect(get("127.0.0.8", "/live/1"), json!({ "status": 200, "decision": "allow" }));
    let shadowed = json!({ "status": 200, "decision": "shadow_deny", "remaining": 0,
        "limited_by": "endpoint:live:minute", "retry_after": null });
    expect(get("127.0.0.8", "/live/1"), shadowed);
    let exempt = json!({ "status": 200, "decision": "exempt", "endpoint": "health",
        "remaining": null, "limiter_us": null });
    expect(get("127.0.0.1", "/healthz"), exempt);
    let listed = json!({ "status": 403, "decision": "deny", "limited_by": null,
        "identity": "ip:127.0.0.9", "upstream_us": null });
    expect(get("127.0.0.9", "/a"), listed);
    let refused = json!({ "status": 400, "decision": "none", "identity": null, "tier": null,
        "path": "/%zz" });
    expect(get("127.0.0.8", "/%zz"), refused);
    let post = "POST /in HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\
        traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00\r\n\r\nhello";
    let posted = json!({ "status": 200, "method": "POST", "bytes_in": 5,
        "trace_id": "0af7651916cd43dd8448eb211c80319c" });
    expect(Client::connect_from("127.0.0.8", tollgate.data).send(post).answer().status, posted);

    let found = wait_lines(&path, expected.len());
    // Two workers hand their lines over on their own.
    let sorted = {
        let mut found = found;
        found.sort_by_key(|line| line["ts"].as_str().unwrap().to_owned());
        found
    };
    assert_eq!(sorted.len(), expected.len());
    for (line, expected) in sorted.iter().zip(&expected) {
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&line[key], value, "{key} of {line}");
        }
        let keys: Vec<&str> = line.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys.len(), 18, "{keys:?}");
        let peer: SocketAddr = line["peer"].as_str().unwrap().parse().unwrap();
        assert!(peer.ip().is_loopback());
        if line["decision"] == "deny" && line["status"] == 429 {
            assert!((50..=61).contains(&line["retry_after"].as_u64().unwrap()), "{line}");
        }
        let duration = line["duration_us"].as_u64().unwrap();
        assert!(line["upstream_us"].as_u64().is_none_or(|it| it <= duration), "{line}");
        assert!(line["limiter_us"].as_u64().is_none_or(|it| it <= duration), "{line}");
    }
    assert_eq!(
        backend.last().field("traceparent").unwrap().split('-').nth(2),
        Some("b7ad6b7169203331")
    );
    wait_until("they are counted", || {
        tollgate.metric("tollgate_access_log_lines_total") == sorted.len() as f64
    });
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o027, 0);
    // Its own pages are in no log.
    assert_eq!(tollgate.admin("/health").status, 200);
}

#[test]
fn an_upstream_that_is_not_there_and_a_caller_that_leaves_have_lines() {
    let (tollgate, _directory, path) = start(nobody(), GENEROUS, "");
    assert_eq!(tollgate.get("/a").status, 502);
    let line = wait_lines(&path, 1).remove(0);
    assert_eq!((&line["status"], &line["decision"]), (&json!(502), &json!("allow")));
    assert!(line["upstream_us"].is_u64(), "{line}");
    drop(tollgate);

    let silent = Backend::spawn(|mut connection| {
        connection.request();
        connection.read_some(1);
    });
    let (tollgate, _directory, path) = start(silent.address, GENEROUS, "");
    let mut client = tollgate.connect();
    client.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    wait_until("the backend has it", || !silent.seen().is_empty());
    drop(client);
    let line = wait_lines(&path, 1).remove(0);
    assert_eq!((&line["status"], &line["path"]), (&json!(499), &json!("/slow")));
}

#[test]
fn query_strings_are_shown_if_asked_for_and_tokens_never() {
    let backend = Backend::ok();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let config = format!(
        "identity: [{{ jwt: {{ secret: '0123456789abcdef0123456789abcdef', query: token }} }}, {{ ip: {{}} }}]\n\
         log: {{ access: '{}', query: true, level: trace }}\n",
        path.display()
    );
    let tollgate = Start::default().upstream(backend.address).config(&config).tiers(GENEROUS).run();
    for query in ["a=1&token=SECRET.a.b&c=2", "%74oken=SECRET", "x=1;TOKEN=SECRET"] {
        tollgate.get(&format!("/a?{query}"));
    }
    let shown: Vec<String> =
        wait_lines(&path, 3).iter().map(|line| line["path"].as_str().unwrap().to_owned()).collect();
    for expected in ["/a?a=1&token=***&c=2", "/a?%74oken=***", "/a?x=1;TOKEN=***"] {
        assert!(shown.iter().any(|it| it == expected), "{expected} in {shown:?}");
    }
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("SECRET"));
    assert!(!tollgate.log().contains("SECRET"));
}

#[test]
fn a_rotation_under_load_loses_no_line() {
    const CLIENTS: usize = 4;
    let backend = Backend::ok();
    let (tollgate, directory, path) = start(backend.address, GENEROUS, "");
    let (is_over, data) = (Arc::new(AtomicBool::new(false)), tollgate.data);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let is_over = Arc::clone(&is_over);
            std::thread::spawn(move || {
                let mut client = Client::connect(data);
                let mut count = 0_usize;
                while !is_over.load(Ordering::Acquire) {
                    assert_eq!(client.get("/a").status, 200);
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut files = Vec::new();
    for number in 0..8 {
        wait_until("there are lines to move away", || {
            std::fs::metadata(&path).is_ok_and(|it| it.len() > 10_000)
        });
        let moved = directory.path().join(format!("access.log.{number}"));
        std::fs::rename(&path, &moved).unwrap();
        signal(tollgate.pid(), "HUP");
        files.push(moved);
        wait_until("the file is there again", || path.exists());
    }
    is_over.store(true, Ordering::Release);
    let asked: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
    files.push(path);
    let count = |files: &[PathBuf]| files.iter().map(|it| lines(it).len()).sum::<usize>();
    let mut tollgate = tollgate;
    // The end flushes what is left: nothing is waited for here.
    signal(tollgate.pid(), "TERM");
    assert!(tollgate.wait().success());
    assert_eq!(count(&files), asked);
    assert!(asked > 100, "{asked}");
    assert!(tollgate.log().contains("the access log is opened anew"));
}

#[test]
fn a_full_disk_is_told_once_and_no_request_fails_for_it() {
    let backend = Backend::ok();
    let config = "log: { access: /dev/full }\n";
    let tollgate = Start::default().upstream(backend.address).config(config).tiers(GENEROUS).run();
    let mut client = tollgate.connect();
    let long = format!("/{}", "x".repeat(4000));
    // More than waits for a disk to have room again.
    for _ in 0..1400 {
        assert_eq!(client.get(&long).status, 200);
    }
    wait_until("lines are dropped and counted", || {
        tollgate.metric("tollgate_access_log_dropped_total") > 0.0
    });
    assert_eq!(tollgate.log().matches("the access log cannot be written").count(), 1);
    assert!(tollgate.log().contains("No space left"), "{}", tollgate.log());
    assert_eq!(tollgate.metric("tollgate_access_log_lines_total"), 0.0);
}

#[test]
fn a_file_that_cannot_be_opened_keeps_tollgate_from_starting() {
    let output = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["run", "--upstream", "http://127.0.0.1:1", "--listen", "127.0.0.1:0", "--admin"])
        .args(["127.0.0.1:0", "--config"])
        .arg({
            let path =
                std::env::temp_dir().join(format!("tollgate-logs-{}.yaml", std::process::id()));
            std::fs::write(&path, "log: { access: /nowhere/access.log }\n").unwrap();
            path
        })
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("/nowhere/access.log") && said.contains("No such file"), "{said}");
}

/// A process, ended with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// An end of a socket that takes nothing more: who writes to it waits for ever.
fn blocked() -> (OwnedFd, UnixStream) {
    let (full, unread) = UnixStream::pair().unwrap();
    full.set_nonblocking(true).unwrap();
    while (&full).write(&[b'x'; 4096]).is_ok() {}
    while (&full).write(b"x").is_ok() {}
    full.set_nonblocking(false).unwrap();
    (full.into(), unread)
}

#[test]
fn requests_are_answered_while_nobody_reads_what_is_printed() {
    let backend = Backend::ok();
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("tollgate.yaml");
    // Each request has a line of its own in both.
    let identity =
        "identity: [{ jwt: { secret: '0123456789abcdef0123456789abcdef' } }, { ip: {} }]";
    std::fs::write(&config, format!("{identity}\nlog: {{ access: stdout, level: trace }}\n"))
        .unwrap();
    let tiers = directory.path().join("tiers.yaml");
    std::fs::write(&tiers, GENEROUS).unwrap();
    let (full, _unread) = blocked();
    let child = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .args(["--upstream", &format!("http://{}", backend.address)])
        .arg("--config")
        .arg(&config)
        .arg("--tiers")
        .arg(&tiers)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(full)
        .spawn()
        .unwrap();
    let mut child = Running(child);
    let mut printed = BufReader::new(child.0.stdout.take().unwrap());
    let mut line = String::new();
    printed.read_line(&mut line).unwrap();
    let after = |word: &str| -> SocketAddr {
        let rest = &line[line.find(word).unwrap() + word.len()..];
        rest[..rest.find([',', ' ']).unwrap()].parse().unwrap()
    };
    let (data, admin) = (after("listening on "), after("admin on "));
    // From here on nobody reads.
    let mut client = Client::connect(data);
    let long = "x".repeat(4000);
    for _ in 0..1600 {
        let request =
            format!("GET /{long} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer wrong\r\n\r\n");
        assert_eq!(client.send(request).answer().status, 200);
    }
    signal(child.0.id(), "HUP");
    let metric = |name: &str| -> f64 {
        let page = Client::connect(admin).get("/metrics").text();
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
    };
    wait_until("access lines are dropped", || metric("tollgate_access_log_dropped_total") > 0.0);
    assert!(metric("tollgate_log_lines_suppressed_total") > 1000.0);
    assert_eq!(Client::connect(data).get("/a").status, 200);
    // Its end waits for nobody either.
    signal(child.0.id(), "TERM");
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.0.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success());
}

#[test]
fn tollgate_starts_and_fails_where_nobody_reads_a_word() {
    let backend = Backend::ok();
    for (upstream, is_serving) in [(backend.address, true), (backend.address, false)] {
        let (out, _unread_out) = blocked();
        let (err, _unread_err) = blocked();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command.args(["run", "--admin", "127.0.0.1:0", "--upstream"]);
        command.arg(format!("http://{upstream}"));
        let data = nobody();
        command.arg("--listen").arg(if is_serving {
            data.to_string()
        } else {
            upstream.to_string()
        });
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let mut child = Running(command.spawn().unwrap());
        if is_serving {
            wait_until("it serves", || std::net::TcpStream::connect(data).is_ok());
            assert_eq!(Client::connect(data).get("/").status, 200);
        } else {
            // The address is taken: it ends, though it cannot say why.
            wait_until("it ends", || child.0.try_wait().unwrap().is_some());
            assert_eq!(child.0.wait().unwrap().code(), Some(1));
        }
    }
}

#[test]
fn a_flood_of_lines_of_one_kind_is_cut_and_counted() {
    let backend = Backend::ok();
    let config = "identity: [{ jwt: { secret: '0123456789abcdef0123456789abcdef' } }, { ip: {} }]\n\
        log: { level: debug }\n";
    let tollgate = Start::default().upstream(backend.address).config(config).tiers(GENEROUS).run();
    let mut client = tollgate.connect();
    let began = Instant::now();
    for _ in 0..500 {
        let request = "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer wrong\r\n\r\n";
        assert_eq!(client.send(request).answer().status, 200);
    }
    let written = || tollgate.log().matches("a credential is not believed").count();
    let suppressed = || tollgate.metric("tollgate_log_lines_suppressed_total");
    wait_until("all are written or counted", || written() as f64 + suppressed() >= 500.0);
    let seconds = began.elapsed().as_secs_f64().ceil() as usize;
    assert!(written() >= 100 && written() <= 100 + 10 * seconds, "{}", written());
    wait_until("it is told", || tollgate.log().contains("lines of one kind were left out"));
    assert!(tollgate.log().contains("\"target\":\"tollgate::proxy::caller\""));
}

/// A collector of spans, and what it got.
struct Collector(Backend);

impl Collector {
    fn spawn() -> Self {
        Collector(Backend::spawn(
            |mut connection| {
                while connection.request().is_some() && connection.ok("{}") {}
            },
        ))
    }

    fn spans(&self) -> Vec<Value> {
        let mut spans = Vec::new();
        for seen in self.0.seen() {
            assert_eq!(seen.line, "POST /v1/traces HTTP/1.1");
            assert_eq!(seen.field("content-type"), Some("application/json"));
            let body: Value = serde_json::from_slice(&seen.body).unwrap();
            let of_resource = &body["resourceSpans"][0]["resource"]["attributes"];
            let name = json!({ "key": "service.name", "value": { "stringValue": "tollgate" } });
            assert!(of_resource.as_array().unwrap().contains(&name));
            let sent = &body["resourceSpans"][0]["scopeSpans"][0]["spans"];
            spans.extend(sent.as_array().unwrap().iter().cloned());
        }
        spans
    }
}

fn attribute<'s>(span: &'s Value, key: &str) -> &'s Value {
    let all = span["attributes"].as_array().unwrap();
    let found = all.iter().find(|it| it["key"] == key).map(|it| &it["value"]);
    found.and_then(|it| it.as_object()?.values().next()).unwrap_or(&Value::Null)
}

fn traced(upstream: SocketAddr, collector: SocketAddr, sample: &str, policy: &str) -> Tollgate {
    let config = format!("tracing: {{ otlp_endpoint: 'http://{collector}', sample: {sample} }}\n");
    Start::default().upstream(upstream).config(&config).tiers(policy).run()
}

fn get_with(address: SocketAddr, target: &str, fields: &str) -> u16 {
    let head = format!("GET {target} HTTP/1.1\r\nHost: test\r\n{fields}\r\n");
    Client::connect(address).send(head).answer().status
}

#[test]
fn spans_of_a_request_hang_together_and_below_its_caller_s() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const CALLER: &str = "b7ad6b7169203331";
    let (backend, collector) = (Backend::ok(), Collector::spawn());
    let tollgate = traced(backend.address, collector.0.address, "0.0", POLICY);
    let fields = format!("traceparent: 00-{TRACE}-{CALLER}-01\r\ntracestate: a=b\r\n");
    assert_eq!(get_with(tollgate.data, "/fo/history/1?token=SECRET", &fields), 200);
    wait_until("the spans are there", || collector.spans().len() == 3);
    let spans = collector.spans();
    let of_kind = |kind: u64| spans.iter().find(|it| it["kind"] == kind).unwrap();
    let (server, limiter, client) = (of_kind(2), of_kind(1), of_kind(3));
    for span in &spans {
        assert_eq!(span["traceId"], TRACE);
        assert_eq!(span["spanId"].as_str().unwrap().len(), 16);
        let nanos = |key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
        assert!(nanos("startTimeUnixNano") <= nanos("endTimeUnixNano"));
        let start = server["startTimeUnixNano"].as_str().unwrap().parse::<u64>().unwrap();
        assert!(nanos("startTimeUnixNano") >= start);
    }
    assert_eq!(server["parentSpanId"], CALLER);
    assert_eq!(limiter["parentSpanId"], server["spanId"]);
    assert_eq!(client["parentSpanId"], server["spanId"]);
    assert_eq!(server["name"], "GET history");
    assert_eq!(limiter["name"], "limiter check");
    for (key, value) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("http.route", "history"),
        ("url.path", "/fo/history/1"),
        ("url.scheme", "http"),
        ("network.protocol.version", "1.1"),
        ("tollgate.decision", "allow"),
        ("tollgate.tier", "free"),
    ] {
        assert_eq!(attribute(server, key), value, "{key}");
    }
    let text = spans.iter().map(ToString::to_string).collect::<String>();
    assert!(!text.contains("SECRET") && !text.contains("127.0.0.1"), "{text}");
    // The backend is told of the span of the call, and of the rest as it came.
    let seen = backend.last();
    let told = format!("00-{TRACE}-{}-01", client["spanId"].as_str().unwrap());
    assert_eq!(seen.all("traceparent"), [told.as_str()]);
    assert_eq!(seen.field("tracestate"), Some("a=b"));
    wait_until("it is counted", || {
        tollgate.metric("tollgate_trace_requests_exported_total") == 1.0
    });

    // Not recorded by its caller: passed on as it came. So is one that tollgate does not sample.
    let unsampled = format!("00-{TRACE}-{CALLER}-00");
    assert_eq!(get_with(tollgate.data, "/a", &format!("traceparent: {unsampled}\r\n")), 200);
    assert_eq!(backend.last().field("traceparent"), Some(unsampled.as_str()));
    assert_eq!(get_with(tollgate.data, "/a", ""), 200);
    assert_eq!(backend.last().field("traceparent"), None);
    assert_eq!(get_with(tollgate.data, "/a", "traceparent: nonsense\r\n"), 429);
    assert_eq!(collector.spans().len(), 3);
}

#[test]
fn traces_begin_at_tollgate_where_their_caller_says_nothing_that_can_be_read() {
    let (backend, collector) = (Backend::ok(), Collector::spawn());
    let tollgate = traced(backend.address, collector.0.address, "1.0", POLICY);
    let bad = "traceparent: 00-00000000000000000000000000000000-b7ad6b7169203331-01\r\n\
        tracestate: a=b\r\n";
    assert_eq!(get_with(tollgate.data, "/a", bad), 200);
    let seen = backend.last();
    let told = seen.field("traceparent").unwrap().to_owned();
    assert!(told.starts_with("00-") && told.ends_with("-01") && !told.contains("-0000"), "{told}");
    assert_eq!(seen.field("tracestate"), None, "it is of another trace");
    assert_eq!(get_with(tollgate.data, "/a", ""), 200);
    assert_ne!(backend.last().field("traceparent").unwrap(), told);
    assert_eq!(get_with(tollgate.data, "/a", ""), 200);
    assert_eq!(get_with(tollgate.data, "/a", ""), 429);
    // Three of three spans; of the refused request no call of the upstream.
    wait_until("the spans are there", || collector.spans().len() == 11);
    let spans = collector.spans();
    let denied = spans.iter().find(|it| attribute(it, "tollgate.decision") == "deny").unwrap();
    assert_eq!(attribute(denied, "tollgate.limited_by"), "tier:minute");
    assert_eq!(attribute(denied, "http.response.status_code"), "429");
    assert!(denied.get("parentSpanId").is_none() && denied.get("status").is_none());
}

#[test]
fn a_collector_that_hangs_or_is_absent_holds_up_no_request() {
    let backend = Backend::ok();
    let hanging = Backend::spawn(|mut connection| {
        connection.request();
        std::thread::sleep(PATIENCE);
    });
    for collector in [hanging.address, nobody()] {
        let mut tollgate = traced(backend.address, collector, "1.0", GENEROUS);
        let mut client = tollgate.connect();
        // More than the queue and a batch hold.
        for _ in 0..5200 {
            assert_eq!(client.get("/a").status, 200);
        }
        wait_until("spans are dropped and counted", || {
            tollgate.metric("tollgate_trace_requests_dropped_total") > 0.0
        });
        assert_eq!(tollgate.metric("tollgate_trace_requests_exported_total"), 0.0);
        wait_until("it is told", || {
            tollgate.log().contains("the collector of traces takes no spans")
        });
        assert_eq!(tollgate.log().matches("takes no spans").count(), 1);
        signal(tollgate.pid(), "TERM");
        assert!(tollgate.wait().success());
    }
}

#[test]
fn spans_that_wait_are_sent_before_the_end() {
    let (backend, collector) = (Backend::ok(), Collector::spawn());
    let mut tollgate = traced(backend.address, collector.0.address, "1.0", GENEROUS);
    for _ in 0..10 {
        assert_eq!(tollgate.get("/a").status, 200);
    }
    signal(tollgate.pid(), "TERM");
    assert!(tollgate.wait().success());
    assert_eq!(collector.spans().len(), 30);
}

#[test]
fn every_way_to_ask_has_its_line() {
    let backend = Backend::spawn(|mut connection| {
        while let Some(seen) = connection.request() {
            if seen.field("upgrade").is_none() {
                connection.ok("ok");
                continue;
            }
            connection.send(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            );
            connection.read_some(1);
        }
    });
    let (tollgate, _directory, path) = start(backend.address, POLICY, "");
    let grpc = || http2::request("POST", "/grpc").header("content-type", "application/grpc");
    http2::run(async {
        let mut client = http2::Polite::connect(tollgate.data).await;
        assert_eq!(client.get("/h2").await.status, 200);
        for status in ["200", "200", "429"] {
            let answer = client.ask(grpc().body(()).unwrap(), Some(b"x")).await.unwrap();
            let refused = answer.headers.contains_key("grpc-status");
            assert_eq!((answer.status, refused), (200, status == "429"));
        }
    });
    let mut client = Client::connect_from("127.0.0.8", tollgate.data);
    let upgrade =
        "GET /ws HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(client.send(upgrade).head().status, 101);
    // While the tunnel is open: a line is written with the 101.
    let lines = wait_lines(&path, 5);
    let statuses = |path: &str| -> Vec<u64> {
        let of_path = lines.iter().filter(|line| line["path"] == path);
        of_path.map(|line| line["status"].as_u64().unwrap()).collect()
    };
    assert_eq!(statuses("/h2"), [200]);
    assert_eq!(statuses("/grpc"), [200, 200, 429]);
    assert_eq!(statuses("/ws"), [101]);
}
