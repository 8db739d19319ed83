//! The status page: what is served at `/`, the stream that feeds it, and the page itself in a real
//! Chromium in front of a real tollgate (`web/test/status-page.mjs`).
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

#[path = "support/browser.rs"]
mod browser;
#[path = "support/redis.rs"]
mod redis;
mod support;
#[path = "support/tokens.rs"]
mod tokens;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use browser::chromium;
use redis::RedisServer;
use support::{Backend, Client, PATIENCE, Start, Tollgate, wait_until};
use tokens::{SECRET, hs256};

const TOKEN: &str = "the-token-of-this-test";
const TIERS: &str = "
default_tier: free
tiers:
  free: { per_minute: 10 }
  premium: { per_second: 100, per_minute: 5000 }
endpoints:
  - { name: history, path: /fo/history/**, methods: [GET], limits: { free: { per_minute: 5 } } }
";

/// The page as it is served to a client that takes no encoding.
fn page(tollgate: &Tollgate, fields: &str) -> support::Answer {
    let mut client = Client::connect(tollgate.admin);
    client.send(format!("GET / HTTP/1.1\r\nHost: {}\r\n{fields}\r\n", tollgate.admin));
    client.answer()
}

/// A stream, after its head.
fn stream(admin: SocketAddr) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(admin).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET /api/v1/stream HTTP/1.1\r\nHost: {admin}\r\n\r\n").unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    (stream, String::from_utf8(head).unwrap())
}

/// The next frame of a stream.
fn frame(reader: &mut impl BufRead) -> Value {
    loop {
        let mut line = String::new();
        assert!(reader.read_line(&mut line).unwrap() > 0, "the stream ended");
        if let Some(data) = line.strip_prefix("data: ") {
            return serde_json::from_str(data).unwrap();
        }
    }
}

const TASKS: &str = "backpressure_async_tasks_pending{task_type=\"status_page\"}";

#[test]
fn the_page_is_one_file_that_may_ask_nobody_else() {
    let backend = Backend::ok();
    let tollgate = Tollgate::in_front_of(backend.address);
    let plain = page(&tollgate, "");
    assert_eq!(plain.status, 200);
    assert_eq!(plain.field("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(plain.field("content-encoding"), None);
    let policy = plain.field("content-security-policy").unwrap();
    for part in [
        "default-src 'none'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ] {
        assert!(policy.contains(part), "{part} in {policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
    assert_eq!(plain.field("referrer-policy"), Some("no-referrer"));
    assert_eq!(plain.field("x-content-type-options"), Some("nosniff"));
    assert_eq!(plain.field("cache-control"), Some("no-store"));
    assert_eq!(plain.text(), include_str!("../src/admin/page.html"));
    let packed = page(&tollgate, "Accept-Encoding: br, gzip\r\n");
    assert_eq!(packed.field("content-encoding"), Some("gzip"));
    assert!(packed.body.len() < 64 << 10, "{} bytes", packed.body.len());
    assert_eq!(packed.body, include_bytes!("../src/admin/page.html.gz"));
}

#[test]
fn one_task_tells_all_who_listen_and_ends_with_the_last() {
    let backend = Backend::ok();
    let tollgate = Tollgate::in_front_of(backend.address);
    assert_eq!(tollgate.metric(TASKS), 0.0, "nobody looks");
    let (one, head) = stream(tollgate.admin);
    assert!(head.contains("content-type: text/event-stream; charset=utf-8\r\n"), "{head}");
    let (other, _) = stream(tollgate.admin);
    let (mut one, mut other) = (BufReader::new(one), BufReader::new(other));
    let first = frame(&mut one);
    assert_eq!(first["requests_per_second"], Value::Null, "there is nothing to compare with");
    frame(&mut other);
    assert_eq!(tollgate.metric(TASKS), 1.0);
    for _ in 0..3 {
        assert_eq!(tollgate.get("/").status, 200);
    }
    let seen = loop {
        let seen = frame(&mut one);
        if seen["requests_total"] == 3 {
            break seen;
        }
    };
    let free = seen["tiers"].as_array().unwrap().iter().find(|it| it["name"] == "free").unwrap();
    assert_eq!((&free["allowed"], &free["blocked"]), (&json!(3), &json!(0)));
    assert!(seen["latency"]["p99_ms"].as_f64().unwrap() > 0.0, "{seen}");
    assert_eq!(seen["status"], "healthy");
    drop((one, other));
    wait_until("the task is gone", || tollgate.metric(TASKS) == 0.0);
}

#[test]
fn there_are_sixteen_streams_at_most_and_none_outlives_tollgate() {
    let backend = Backend::ok();
    let mut tollgate = Tollgate::in_front_of(backend.address);
    let streams: Vec<_> = (0..16).map(|_| stream(tollgate.admin)).collect();
    for (_, head) in &streams {
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    }
    let mut client = Client::connect(tollgate.admin);
    client.send(format!("GET /api/v1/stream HTTP/1.1\r\nHost: {}\r\n\r\n", tollgate.admin));
    let refused = client.answer();
    assert_eq!(refused.status, 503);
    assert_eq!(refused.field("retry-after"), Some("5"));
    assert_eq!(tollgate.admin("/livez").status, 200, "others are served meanwhile");
    tollgate.signal("TERM");
    assert!(tollgate.wait().success());
    for (mut stream, _) in streams {
        let mut rest = Vec::new();
        // A reset is an end, too.
        let _ = stream.read_to_end(&mut rest);
    }
}

fn has_browser() -> bool {
    let modules = web().join("node_modules/playwright-core");
    let node = Command::new("node").arg("--version").stdout(Stdio::null()).status();
    browser::has_all(&[
        ("node", node.is_ok_and(|it| it.success())),
        ("chromium", chromium().exists()),
        ("web/node_modules (npm ci in web/)", modules.exists()),
    ])
}

fn web() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("web")
}

#[test]
fn the_committed_page_is_what_its_source_builds() {
    if !has_browser() {
        return;
    }
    let check = Command::new("npm").args(["run", "--silent", "check"]).current_dir(web()).output();
    let check = check.unwrap();
    let said = [&check.stdout[..], &check.stderr].concat();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn the_page_does_what_it_promises_in_a_browser() {
    if !has_browser() {
        return;
    }
    let Some(redis) = RedisServer::spawn_tcp() else { return };
    play(Stage::new(redis, TIERS), "test/status-page.mjs", &[]);
}

/// `tests/long.sh page-pictures`: the pictures of `docs/status-page.md`.
#[test]
#[ignore = "takes three minutes; tests/long.sh page-pictures"]
fn pictures() {
    assert!(has_browser(), "pictures take a browser");
    let redis = RedisServer::spawn_tcp().expect("pictures take a Redis");
    let to = std::env::var("PICTURES")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/docs/status-page").to_owned());
    std::fs::create_dir_all(&to).unwrap();
    let tiers = include_str!("../config/tiers.yaml");
    play(Stage::new(redis, tiers), "test/pictures.mjs", &[("PICTURES", &to)]);
}

/// Runs a script, and does what it asks for.
fn play(mut stage: Stage, script: &str, variables: &[(&str, &str)]) {
    let open = Tollgate::in_front_of(stage.backend.address);
    let mut script = Command::new("node")
        .arg(script)
        .current_dir(web())
        .envs(variables.iter().copied())
        .env("ADMIN_URL", format!("http://{}", stage.tollgate.admin))
        .env("OPEN_URL", format!("http://{}", open.admin))
        .env("TOKEN", TOKEN)
        .env("CHROMIUM", chromium())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut answers = script.stdin.take().unwrap();
    let mut is_done = false;
    for line in BufReader::new(script.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some(wish) = line.strip_prefix("DO ") {
            let done = stage.act(&serde_json::from_str(wish).unwrap());
            writeln!(answers, "{done}").unwrap();
        } else {
            println!("{line}");
            is_done |= line == "DONE";
        }
    }
    let status = script.wait().unwrap();
    assert!(status.success() && is_done, "{status}\n{}", stage.tollgate.log());
}

/// Who sends requests for pictures: name, tier, path, pauses in milliseconds.
const CALLERS: &[(&str, &str, &str, u64)] = &[
    ("alice", "premium", "/fo/strike-distribution", 70),
    ("bob", "free", "/fo/strike-distribution", 400),
    ("mallory", "free", "/fo/history/2025", 90),
    ("carol", "enterprise", "/fo/strike-distribution", 22),
    ("dave", "enterprise", "/fo/history/2024", 60),
    ("erin", "free", "/fo/strike-distribution", 1_400),
    ("reports", "internal", "/fo/strike-distribution", 180),
];

/// What the script may have done to the world.
struct Stage {
    tollgate: Tollgate,
    redis: RedisServer,
    is_backend_up: Arc<AtomicBool>,
    tiers: &'static str,
    /// Whether callers send requests by themselves.
    traffic: Arc<AtomicBool>,
    backend: Backend,
    _directory: tempfile::TempDir,
}

impl Stage {
    fn new(redis: RedisServer, tiers: &'static str) -> Self {
        let is_backend_up = Arc::new(AtomicBool::new(true));
        let is_up = Arc::clone(&is_backend_up);
        // While it is down it hangs up on every request.
        let backend = Backend::spawn(move |mut connection| {
            while connection.request().is_some()
                && is_up.load(Ordering::Acquire)
                && connection.ok("ok")
            {}
        });
        let directory = tempfile::tempdir().unwrap();
        let token = directory.path().join("token");
        std::fs::write(&token, TOKEN).unwrap();
        let config = format!(
            "admin: {{ token_file: {} }}
store: {{ redis: {{ url: \"{}\", timeout: 1s }} }}
identity: [ {{ jwt: {{ secret: \"{SECRET}\" }} }}, {{ ip: {{}} }} ]
",
            token.display(),
            redis.tcp_url(),
        );
        let start = Start::default().upstream(backend.address).config(&config).tiers(tiers);
        let tollgate = start.run();
        let traffic = Arc::default();
        Stage { tollgate, redis, is_backend_up, tiers, traffic, backend, _directory: directory }
    }

    fn act(&mut self, wish: &Value) -> Value {
        let is_up = || wish["isUp"].as_bool().unwrap();
        match wish["what"].as_str().unwrap() {
            "requests" => self.requests(wish),
            "status" => json!({ "status": self.request(wish) }),
            "redis" if is_up() => {
                self.redis.start();
                json!(null)
            }
            "redis" => {
                self.redis.kill();
                json!(null)
            }
            "backend" if is_up() => {
                self.is_backend_up.store(true, Ordering::Release);
                // The breaker closes once several of them have passed.
                wait_until("all is well", || {
                    self.request(&json!({ "user": "p" }));
                    self.tollgate.admin("/health").text().contains("\"status\":\"healthy\"")
                });
                json!(null)
            }
            "backend" => {
                self.is_backend_up.store(false, Ordering::Release);
                wait_until("the breaker opens", || self.request(&json!({ "user": "p" })) == 503);
                json!(null)
            }
            "tollgate" => {
                self.tollgate.signal(if is_up() { "CONT" } else { "STOP" });
                json!(null)
            }
            "tiers" => {
                let is_good = wish["isGood"].as_bool().unwrap();
                let bad = self.tiers.replacen("per_minute: 10", "per_minute: ten", 1);
                assert_ne!(bad, self.tiers);
                let text = if is_good { self.tiers } else { &bad };
                std::fs::write(self.tollgate.path("tiers.yaml"), text).unwrap();
                json!(null)
            }
            "traffic" => {
                self.traffic.store(wish["isOn"].as_bool().unwrap(), Ordering::Release);
                CALLERS.iter().for_each(|caller| self.call(*caller));
                json!(null)
            }
            "tasks" => json!({ "tasks": self.tollgate.metric(TASKS) as u64 }),
            "no-tasks" => {
                wait_until("the task is gone", || self.tollgate.metric(TASKS) == 0.0);
                json!({ "tasks": 0 })
            }
            other => panic!("nobody knows how to do {other}"),
        }
    }

    /// One of them sends requests until it is told to stop, now faster, now slower.
    fn call(&self, (name, tier, path, pause): (&'static str, &'static str, &'static str, u64)) {
        let (traffic, data) = (Arc::clone(&self.traffic), self.tollgate.data);
        let claims = json!({ "sub": name, "tier": tier, "exp": tokens::in_seconds(3_600) });
        let token = hs256(&claims);
        std::thread::spawn(move || {
            let mut round = 0_u64;
            while traffic.load(Ordering::Acquire) {
                let mut client = Client::connect(data);
                for _ in 0..20 {
                    client.send(format!(
                        "GET {path} HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {token}\r\n\r\n"
                    ));
                    client.answer();
                    round += 1;
                    let swing = (round as f64 * pause as f64 / 9_000.0).sin() * 0.45 + 1.0;
                    std::thread::sleep(Duration::from_millis((pause as f64 * swing) as u64));
                }
            }
        });
    }

    /// Sends so many, one after the other, and counts what came of them.
    fn requests(&self, wish: &Value) -> Value {
        let (mut allowed, mut blocked) = (0, 0);
        for _ in 0..wish["count"].as_u64().unwrap() {
            match self.request(wish) {
                200 => allowed += 1,
                429 => blocked += 1,
                other => panic!("answered {other}"),
            }
        }
        json!({ "allowed": allowed, "blocked": blocked })
    }

    fn request(&self, wish: &Value) -> u16 {
        let token = wish["user"].as_str().map(|user| {
            let tier = if user == "p" { "premium" } else { "free" };
            let claims = json!({ "sub": user, "tier": tier, "exp": tokens::in_seconds(600) });
            format!("Authorization: Bearer {}\r\n", hs256(&claims))
        });
        let mut client = self.tollgate.connect();
        let fields = token.unwrap_or_default();
        client.send(format!("GET /a HTTP/1.1\r\nHost: t\r\nConnection: close\r\n{fields}\r\n"));
        client.answer().status
    }
}
