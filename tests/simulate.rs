//! `tollgate simulate`, from the outside: what a replay says of a log is what the proxy did with those
//! very requests; logs of every format, packed, from standard input, several at a time.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use tollgate::clock::Clock;
use tollgate::commands::logging::Recorders;
use tollgate::commands::serve::DataPath;
use tollgate::commands::wiring::Wired;
use tollgate::config::compile_upstream::UpstreamNeed;
use tollgate::config::load::{LoadRequest, Overrides, load};
use tollgate::health::tasks::watched_root;
use tollgate::limiter::time::Timestamp;
use tollgate::log::access::AccessLog;
use tollgate::log::writer::{self, Room, Target};
use tollgate::proxy::listener::{Bound, bind};

#[path = "support/browser.rs"]
mod browser;
#[path = "support/random.rs"]
mod random;
mod support;

use random::Random;
use support::{Backend, Client};

/// A Monday, so that nothing special happens: 2026-01-05 00:00:00 UTC.
const MONDAY: u64 = 1_767_571_200_000_000;
const SECOND: u64 = 1_000_000;

const CONFIG: &str = "\
server: { trusted_proxies: [127.0.0.1] }
identity:
  - api_key: { keys_file: KEYS }
";

/// Every kind of limit and of rule, with callers of several tiers.
const TIERS: &str = "\
default_tier: free
tiers:
  free:    { per_second: 2, burst: 4, per_minute: 30, per_hour: 200 }
  premium: { per_second: 5, burst: 20, per_minute: 100, per_day: 900 }
  staff:   {}
networks: { 10.9.0.0/16: staff }
identities: { \"ip:10.0.0.3\": premium, \"ip:10.0.0.4\": deny }
endpoints:
  - { name: heavy, path: \"/heavy/{id}\", cost: 3, limits: { any: { per_minute: 12 } } }
  - { name: export, path: /export/**, methods: [POST], limits: { free: { per_hour: 5 } } }
  - { name: trial, path: /trial/**, limits: { any: { per_minute: 1 } }, mode: shadow }
  - { name: health, path: /healthz, exempt: true }
";

/// tollgate in this process, by a clock that a test sets, with an access log.
struct InProcess {
    data: SocketAddr,
    clock: Clock,
    log: PathBuf,
    lines: tollgate::log::queue::LineQueue,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl InProcess {
    fn start(directory: &Path, upstream: SocketAddr, tiers: &str) -> Self {
        let at = |name: &str| directory.join(name);
        let key = |name: &str, tier: &str| {
            use sha2::Digest as _;
            let sha256 = sha2::Sha256::digest(name);
            let hex: String = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("  - {{ id: {name}, sha256: {hex}, tier: {tier} }}\n")
        };
        let keys = format!("keys:\n{}{}", key("acme", "premium"), key("tiny", "free"));
        std::fs::write(at("keys.yaml"), keys).unwrap();
        let config = CONFIG.replace("KEYS", at("keys.yaml").to_str().unwrap());
        std::fs::write(at("tollgate.yaml"), config).unwrap();
        std::fs::write(at("tiers.yaml"), tiers).unwrap();
        let loaded = load(&LoadRequest {
            config: Some(&at("tollgate.yaml")),
            tiers: Some(&at("tiers.yaml")),
            overrides: Overrides {
                upstream: Some(format!("http://{upstream}")),
                ..Overrides::default()
            },
            upstream: UpstreamNeed::Required,
            env: &|_| None,
        })
        .unwrap();
        let room = Room { chunks: 1 << 16, bytes: 1 << 30 };
        let log = at("access.log");
        let lines = writer::start("access-log", Target::File(log.clone()), room).unwrap();
        let access_log =
            AccessLog { lines: lines.clone(), with_query: true, secret_parameters: Box::default() };
        let mut recorders = Recorders::default();
        recorders.access_log = Some(access_log);
        let clock = Clock::manual(Timestamp::from_micros(MONDAY));
        let wired = Wired::with_clock(loaded, 1, None, recorders, None, clock.clone()).unwrap();
        let socket = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let data = socket.local_addr().unwrap();
        let (started, has_started) = mpsc::sync_channel(1);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build_local(Default::default())
                .unwrap();
            wired.gate.loops.sit(wired.gate.loops.control(), runtime.metrics());
            runtime.block_on(watched_root(async {
                let listeners = vec![Bound { socket, tls: None, is_shared: false }];
                let data_path = DataPath::start(&wired.gate, listeners, 1, |_| {}).await.unwrap();
                started.send(()).unwrap();
                stopped.await.ok();
                wired.gate.drain.begin();
                data_path.ended().await;
            }));
        });
        has_started.recv().unwrap();
        let (stop, thread) = (Some(stop), Some(thread));
        InProcess { data, clock, log, lines, stop, thread }
    }

    /// Ends it, and has its log written.
    fn end(mut self) -> PathBuf {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
        self.lines.finish(Duration::from_secs(60));
        self.log.clone()
    }
}

/// One request of made-up traffic.
struct Made {
    at: u64,
    head: String,
    /// As the combined format has it.
    line: String,
}

/// Traffic of several callers, with rests and bursts, at moments of such a grain.
fn traffic(seed: u64, requests: usize, grain: u64) -> Vec<Made> {
    let mut random = Random::new(seed);
    let mut at = MONDAY;
    let mut made = Vec::new();
    for _ in 0..requests {
        at += match random.below(60) {
            0 => random.below(1_200 * SECOND / grain) * grain,
            1..=9 => random.below(3 * SECOND / grain) * grain,
            _ => random.below((SECOND / 5).div_ceil(grain)) * grain,
        };
        let address = match random.below(12) {
            0 => "10.9.1.1".to_owned(),
            1 => "10.0.0.4".to_owned(),
            number => format!("10.0.0.{}", 1 + number % 3),
        };
        // The log does not say which address a key came from.
        let keys = if address == "10.0.0.4" { 1 } else { 5 };
        let key = ["", "", "", "acme", "tiny"][random.below(keys) as usize];
        let (method, path) = [
            ("GET", "/"),
            ("GET", "/a?b=c"),
            ("GET", "/heavy/7"),
            ("GET", "/Heavy/8/"),
            ("POST", "/export/x"),
            ("GET", "/export/x"),
            ("GET", "/trial/1"),
            ("GET", "/healthz"),
        ][random.below(8) as usize];
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {address}\r\n");
        if !key.is_empty() {
            write!(head, "X-API-Key: {key}\r\n").unwrap();
        }
        if method == "POST" {
            head.push_str("Content-Length: 0\r\n");
        }
        head.push_str("\r\n");
        let time = combined_time(at);
        let user = if key.is_empty() { "-" } else { key };
        let line = format!("{address} - {user} [{time}] \"{method} {path} HTTP/1.1\" STATUS 2\n");
        made.push(Made { at, head, line });
    }
    made
}

/// `05/Jan/2026:00:00:00 +0000`, of a day in January.
fn combined_time(at: u64) -> String {
    let second = at / SECOND;
    let (day, of_day) = (second / 86_400 - 20_453, second % 86_400);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    assert!((5..=31).contains(&day), "not January any more");
    format!("{day:02}/Jan/2026:{hour:02}:{minute:02}:{second:02} +0000")
}

/// Sends all of it, one after the other; the statuses.
fn send(tollgate: &InProcess, made: &[Made]) -> Vec<u16> {
    let mut client = Client::connect(tollgate.data);
    made.iter()
        .map(|request| {
            tollgate.clock.set(Timestamp::from_micros(request.at));
            client.send(&request.head).answer().status
        })
        .collect()
}

fn simulate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tollgate")).arg("simulate").args(arguments).output().unwrap()
}

/// What a replay says as JSON.
fn json_of(arguments: &[&str]) -> Value {
    let output = simulate(&[arguments, &["--format", "json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text_of(arguments: &[&str]) -> String {
    let output = simulate(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn written(directory: &Path, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = directory.join(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_replay_decides_every_request_as_the_proxy_did() {
    let directory = tempfile::tempdir().unwrap();
    let backend = Backend::ok();
    for seed in 1..=3 {
        let made = traffic(seed, 3_000, 1);
        let tollgate = InProcess::start(directory.path(), backend.address, TIERS);
        let statuses = send(&tollgate, &made);
        let log = tollgate.end();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let found = json_of(&["--tiers", &path("tiers.yaml"), log.to_str().unwrap()]);
        let of = |status: u16| statuses.iter().filter(|it| **it == status).count();
        let (refused, passed, listed) = (of(429), of(200), of(403));
        let is_enough = refused > 200 && passed > 200 && listed > 50;
        assert!(is_enough, "seed {seed} tries too little: {refused}, {passed}, {listed}");
        assert_eq!(found["requests"], statuses.len());
        assert_eq!(found["blocked"], of(429) + of(403), "seed {seed}: {found:#}");
        // Each of them, and not only as many.
        assert_eq!(found["recorded"]["newly_blocked"], 0, "seed {seed}");
        assert_eq!(found["recorded"]["freed"], 0, "seed {seed}");
        assert_eq!(found["recorded"]["shadow_differs"], 0, "seed {seed}");
        assert!(found["shadow_blocked"].as_u64() > Some(20));
        let log = std::fs::read_to_string(log).unwrap();
        assert_eq!(found["by_limit"], by_limit(&log, &found["by_limit"]), "seed {seed}");
        std::fs::remove_file(directory.path().join("access.log")).unwrap();
    }
}

/// What the log says of each limit, in the form of a replay's; how many were checked for it, a log does
/// not say.
fn by_limit(log: &str, like: &Value) -> Value {
    let mut blocked: BTreeMap<String, u64> = BTreeMap::new();
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if line["decision"] == "deny" {
            let by = line["limited_by"].as_str().unwrap_or("deny");
            *blocked.entry(by.to_owned()).or_default() += 1;
        }
    }
    let like = like.as_object().unwrap();
    for by in blocked.keys() {
        assert!(like.contains_key(by), "nothing is said of {by}");
    }
    let limits = like.iter().map(|(name, counts)| {
        let requests = counts["requests"].as_u64().unwrap();
        let blocked = blocked.get(name).copied().unwrap_or(0);
        let counts =
            json!({ "requests": requests, "allowed": requests - blocked, "blocked": blocked });
        (name.clone(), counts)
    });
    Value::Object(limits.collect())
}

#[test]
fn a_log_of_another_proxy_says_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let backend = Backend::ok();
    // To the second, as that format has it.
    let made = traffic(4, 2_000, SECOND);
    let tollgate = InProcess::start(directory.path(), backend.address, TIERS);
    let statuses = send(&tollgate, &made);
    let own = tollgate.end();
    let combined: String = made
        .iter()
        .zip(&statuses)
        // What the deny list refuses is told by 403 here, which says nothing of limits.
        .map(|(made, status)| {
            made.line.replace("STATUS", if *status == 403 { "429" } else { status_text(*status) })
        })
        .collect();
    // Keys are users here, and the log has no tier of theirs.
    let tiers = TIERS
        .replace("identities: {", "identities: { \"user:acme\": premium, \"user:tiny\": free,");
    let tiers = written(directory.path(), "users.yaml", tiers);
    let combined = written(directory.path(), "combined.log", combined);
    let found = json_of(&["--tiers", &tiers, &combined]);
    let expected = json_of(&["--tiers", &tiers, own.to_str().unwrap()]);
    assert_eq!(
        found["recorded"],
        json!({ "blocked": found["blocked"], "newly_blocked": 0, "freed": 0 })
    );
    for key in
        ["requests", "allowed", "blocked", "shadow_blocked", "by_endpoint", "by_limit", "by_tier"]
    {
        assert_eq!(found[key], expected[key], "{key}");
    }
}

fn status_text(status: u16) -> &'static str {
    match status {
        200 => "200",
        429 => "429",
        other => panic!("{other}"),
    }
}

#[test]
fn shadow_and_a_replay_agree_on_the_same_traffic() {
    let directory = tempfile::tempdir().unwrap();
    let backend = Backend::ok();
    let made = traffic(5, 3_000, 1);
    let shadow = format!("{TIERS}mode: shadow\n").replace(", \"ip:10.0.0.4\": deny", "");
    let tollgate = InProcess::start(directory.path(), backend.address, &shadow);
    let statuses = send(&tollgate, &made);
    assert!(statuses.iter().all(|status| *status == 200));
    let log = tollgate.end();
    let text = std::fs::read_to_string(&log).unwrap();
    let would: Vec<&str> = text.lines().filter(|line| line.contains("\"shadow_deny\"")).collect();
    let found = json_of(&[
        "--tiers",
        directory.path().join("tiers.yaml").to_str().unwrap(),
        log.to_str().unwrap(),
    ]);
    assert!(would.len() > 200);
    assert_eq!(found["blocked"], 0);
    assert_eq!(found["shadow_blocked"], would.len());
    assert_eq!(found["recorded"]["shadow_differs"], 0);
    for (limit, count) in found["shadow_by_limit"].as_object().unwrap() {
        let quoted = format!("\"limited_by\":\"{limit}\"");
        assert_eq!(count, would.iter().filter(|line| line.contains(&quoted)).count(), "{limit}");
    }
}

/// A few requests of one caller in each format; of ten in one moment, a burst of four passes.
fn ten(format: &str) -> String {
    let line = |number: u32| match format {
        "combined" => format!(
            "192.0.2.7 - - [05/Jan/2026:00:00:00 +0000] \"GET /{number} HTTP/1.1\" 200 2 \"-\" \"curl\"\n"
        ),
        "json" => {
            json!({
                "time": "2026-01-05T00:00:00Z", "remote_addr": "192.0.2.7", "status": 200,
                "request": format!("GET /{number} HTTP/1.1"),
            })
            .to_string()
                + "\n"
        }
        "tollgate" => format!(
            "{{\"ts\":\"2026-01-05T00:00:00.000000Z\",\"method\":\"GET\",\"path\":\"/{number}\",\"status\":200,\
             \"identity\":\"ip:192.0.2.7\",\"tier\":\"free\",\"endpoint\":\"other\",\"decision\":\"allow\",\
             \"limited_by\":null,\"remaining\":1,\"retry_after\":null,\"duration_us\":800,\"upstream_us\":700,\
             \"limiter_us\":3,\"bytes_in\":0,\"bytes_out\":2,\"peer\":\"192.0.2.7:4711\",\"trace_id\":null}}\n"
        ),
        _ => panic!("{format}"),
    };
    (0..10).map(line).collect()
}

const FOUR: &str = "default_tier: a\ntiers: { a: { per_second: 2, burst: 4 } }\n";

#[test]
fn every_format_packed_or_not_from_files_or_standard_input() {
    let directory = tempfile::tempdir().unwrap();
    let tiers = written(directory.path(), "tiers.yaml", FOUR);
    for format in ["combined", "json", "tollgate"] {
        let log = written(directory.path(), "access.log", ten(format));
        let packed = Command::new("gzip").args(["-kf", &log]).status().unwrap();
        assert!(packed.success());
        let packed = format!("{log}.gz");
        for arguments in [
            vec![&*log],
            vec![&*packed],
            vec!["--log-format", format, &log],
            vec!["--log-format", "auto", &packed],
        ] {
            let found = json_of(&[&["--tiers", &*tiers], &arguments[..]].concat());
            let counts = json!({ "requests": 10, "allowed": 4, "blocked": 6 });
            assert_eq!(found["by_identity"], json!({ "ip:192.0.2.7": counts }), "{arguments:?}");
            assert_eq!(found["by_tier"], json!({ "a": counts }));
            assert_eq!(found["by_endpoint"], json!({ "other": counts }));
            assert_eq!(found["by_limit"], json!({ "tier:second": counts }));
            let all = [&found["requests"], &found["allowed"], &found["blocked"]];
            assert_eq!(all, [&json!(10), &json!(4), &json!(6)]);
        }
        for content in [std::fs::read(&log).unwrap(), std::fs::read(&packed).unwrap()] {
            let found = by_standard_input(&["--tiers", &tiers, "--format", "json", "-"], &content);
            assert_eq!(found["blocked"], 6, "{format}");
        }
    }
}

fn by_standard_input(arguments: &[&str], content: &[u8]) -> Value {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .arg("simulate")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(content).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn several_logs_are_replayed_in_the_order_of_time() {
    let directory = tempfile::tempdir().unwrap();
    let tiers = written(
        directory.path(),
        "tiers.yaml",
        "default_tier: a\ntiers: { a: { per_minute: 60 } }\n",
    );
    // A request each second for four minutes, dealt out to three files, one of them backwards.
    let mut files = [Vec::new(), Vec::new(), Vec::new()];
    for second in 0..240 {
        let time = combined_time(MONDAY + second * SECOND);
        let line = format!("192.0.2.7 - - [{time}] \"GET / HTTP/1.1\" 200 2\n");
        files[(second * 7 % 3) as usize].push(line);
    }
    files[1].reverse();
    let names: Vec<String> = files
        .iter()
        .enumerate()
        .map(|(number, lines)| written(directory.path(), &format!("{number}.log"), lines.concat()))
        .collect();
    let [a, b, c] = &names[..] else { panic!() };
    for order in [[a, b, c], [c, b, a], [b, a, c]] {
        let found = json_of(&["--tiers", &tiers, order[0], order[1], order[2]]);
        // The 61st second is the first one's: the oldest of 60 sub-buckets counts whole.
        assert_eq!(found["requests"], 240);
        let together = json_of(&["--tiers", &tiers, &{
            let mut lines: Vec<String> = files.concat();
            lines.sort();
            written(directory.path(), "all.log", lines.concat())
        }]);
        assert_eq!(found["blocked"], together["blocked"]);
        assert_eq!(found["timeline"], together["timeline"]);
    }
}

#[test]
fn what_is_no_request_is_counted_and_shown_and_what_cannot_be_read_ends_it() {
    let directory = tempfile::tempdir().unwrap();
    let log = format!(
        "{}what is this\n127.0.0.1 - - [05/Jan/2026:00:00:00 +0000] \"-\" 400 0\n\
         host - - [05/Jan/2026:00:00:00 +0000] \"GET / HTTP/1.1\" 200 2\n\
         127.0.0.1 - - [05/Jan/2026:00:00:00 +0000] \"GET /%zz HTTP/1.1\" 400 2\n\n",
        ten("combined")
    );
    let log = written(directory.path(), "access.log", log);
    let found = json_of(&[&log]);
    assert_eq!((&found["requests"], &found["lines"]), (&json!(10), &json!(14)));
    let left = &found["left_out"];
    assert_eq!(left["total"], 4);
    for kind in ["unreadable", "no_request", "nobody", "bad_path"] {
        assert_eq!(left[kind], 1, "{kind}");
    }
    let example = left["examples"][0].as_str().unwrap();
    assert!(example.contains("access.log:11: expected ADDRESS - USER"), "{example}");
    let text = text_of(&[&log]);
    assert!(text.contains("left out: 4 of 14 lines (1 not readable, 1 no request"), "{text}");

    let mut packed = Command::new("gzip").arg("-c").arg(&log).output().unwrap().stdout;
    packed.truncate(packed.len() / 2);
    let cut = written(directory.path(), "cut.gz", packed);
    let missing = directory.path().join("nowhere.log").to_str().unwrap().to_owned();
    for (arguments, code, message) in [
        (vec![&*cut], 1, "cut.gz"),
        (vec![&*log, &*missing], 1, "cannot read "),
        (vec![directory.path().to_str().unwrap()], 1, "it is a directory"),
        (vec!["--tiers", &*log, &*log], 2, "access.log"),
        (vec!["--identity", "nobody", &*log], 2, "expected auto, ip, user or field:NAME"),
        (vec!["--target-block-rate", "101", &*log], 2, "expected 0 to 100"),
        (vec![], 2, "<LOG>"),
    ] {
        let output = simulate(&arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(message), "{arguments:?}: {error}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn the_difference_of_two_policies() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str, tiers: &str| written(directory.path(), name, tiers);
    let old =
        at("old.yaml", "default_tier: a\ntiers: { a: { per_minute: 5 }, b: { per_minute: 5 } }\n");
    let new = at(
        "new.yaml",
        "default_tier: a\ntiers: { a: { per_minute: 3 }, b: { per_minute: 8 } }\n\
         networks: { 192.0.2.0/24: b }\n",
    );
    let mut log = String::new();
    for address in ["192.0.2.7", "198.51.100.7"] {
        for _ in 0..10 {
            let time = combined_time(MONDAY);
            writeln!(log, "{address} - - [{time}] \"GET / HTTP/1.1\" 200 2").unwrap();
        }
    }
    let log = at("access.log", &log);
    let found = json_of(&["--tiers", &new, "--against", &old, &log]);
    assert_eq!(found["blocked"], 2 + 7);
    let against = &found["against"];
    assert_eq!(against["blocked"], 10);
    assert_eq!((&against["newly_blocked"], &against["freed"]), (&json!(2), &json!(3)));
    assert_eq!(
        against["by_identity"],
        json!([
            { "name": "ip:198.51.100.7", "requests": 10, "newly_blocked": 2, "freed": 0 },
            { "name": "ip:192.0.2.7", "requests": 10, "newly_blocked": 0, "freed": 3 },
        ])
    );
    let text = text_of(&["--tiers", &new, "--against", &old, &log]);
    assert!(text.contains("newly blocked  2\nfreed          3\n"), "{text}");
}

#[test]
fn whom_requests_are_counted_for() {
    let directory = tempfile::tempdir().unwrap();
    let line = |user: &str, sub: &str, plan: &str| {
        json!({ "time": "2026-01-05T00:00:00Z", "remote_addr": "192.0.2.7", "method": "GET",
            "path": "/", "user": user, "jwt_sub": sub, "plan": plan })
        .to_string()
            + "\n"
    };
    let log = [line("ann", "u1", "pro"), line("", "u2", ""), line("bob", "", "basic")].concat();
    let log = written(directory.path(), "app.log", log);
    for (arguments, identities, tiers) in [
        (vec![], vec!["ip:192.0.2.7", "user:ann", "user:bob"], vec!["free"]),
        (vec!["--identity", "ip"], vec!["ip:192.0.2.7"], vec!["free"]),
        (vec!["--identity", "user"], vec!["ip:192.0.2.7", "user:ann", "user:bob"], vec!["free"]),
        (
            vec!["--identity", "field:jwt_sub", "--tier-field", "plan"],
            vec!["ip:192.0.2.7", "user:u1", "user:u2"],
            vec!["free", "premium"],
        ),
    ] {
        let found = json_of(&[&arguments[..], &[&*log]].concat());
        let names = |key: &str| -> Vec<String> {
            found[key].as_object().unwrap().keys().cloned().collect()
        };
        assert_eq!(names("by_identity"), identities, "{arguments:?}");
        assert_eq!(names("by_tier"), tiers, "{arguments:?}");
    }
}

/// Fifty callers who are quiet, and one who is not.
fn a_week(random: &mut Random) -> String {
    let mut lines: Vec<(u64, String)> = Vec::new();
    for caller in 0..51_u64 {
        let is_loud = caller == 50;
        let mut at = MONDAY + random.below(3_600) * SECOND;
        for _ in 0..if is_loud { 6_000 } else { 120 } {
            at += random.below(if is_loud { 3 } else { 120 }) * SECOND;
            let is_export = random.below(20) == 0;
            let path = if is_export {
                format!("/reports/{}/export", random.below(1_000))
            } else {
                format!("/items/{}", random.below(1_000))
            };
            let took = if is_export { "2.500" } else { "0.020" };
            let time = combined_time(at);
            let line = format!(
                "198.51.100.{caller} - - [{time}] \"GET {path} HTTP/1.1\" 200 2 \"-\" \"-\" rt={took}\n"
            );
            lines.push((at, line));
        }
    }
    lines.sort();
    lines.into_iter().map(|(_, line)| line).collect()
}

#[test]
fn limits_are_proposed_for_a_share_of_blocked_requests() {
    let directory = tempfile::tempdir().unwrap();
    let log = written(directory.path(), "access.log", a_week(&mut Random::new(11)));
    for percent in ["0", "5", "40"] {
        let found = json_of(&["--target-block-rate", percent, &log]);
        let scopes = found["proposed"]["scopes"].as_array().unwrap();
        assert_eq!(scopes.len(), 1);
        let (proposed, requests) =
            (&scopes[0]["proposed"], scopes[0]["requests"].as_u64().unwrap());
        // The proposal, tried as a policy of its own, does what it says.
        let tiers = format!("default_tier: free\ntiers: {{ free: {proposed} }}\n");
        let tiers = written(directory.path(), "proposed.yaml", tiers);
        let tried = json_of(&["--tiers", &tiers, &log]);
        assert_eq!(tried["blocked"], scopes[0]["proposed_blocked"], "{percent} %");
        let most = requests * percent.parse::<u64>().unwrap() / 100;
        let blocked = tried["blocked"].as_u64().unwrap();
        assert!(blocked <= most, "{percent} %: {blocked} of {requests}");
        assert!(blocked * 4 >= most, "{percent} %: {blocked} of at most {most} is far too little");
        let text = text_of(&["--target-block-rate", percent, &log]);
        assert!(text.contains("limits by which at most "), "{text}");
    }
}

#[test]
fn a_policy_is_suggested_that_can_be_used_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let log = written(directory.path(), "access.log", a_week(&mut Random::new(12)));
    let suggested = text_of(&["--suggest", &log]);
    let tiers = written(directory.path(), "suggested.yaml", &suggested);
    let check = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["check", "--tiers", &tiers])
        .output()
        .unwrap();
    assert!(check.status.success(), "{suggested}\n{}", String::from_utf8_lossy(&check.stdout));
    assert!(suggested.contains("\"ip:198.51.100.50\": premium"), "{suggested}");
    assert!(suggested.contains("path: \"/reports/{id}/export\""), "{suggested}");
    assert!(!suggested.contains("/items/"), "{suggested}");
    let found = json_of(&["--tiers", &tiers, &log]);
    let (blocked, requests) =
        (found["blocked"].as_u64().unwrap(), found["requests"].as_u64().unwrap());
    assert!(blocked * 100 <= requests, "{blocked} of {requests}:\n{suggested}");
}

#[test]
fn the_report_is_one_page_that_chromium_draws() {
    let chromium = browser::chromium();
    if !browser::has_all(&[("Chromium", chromium.exists())]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut log = a_week(&mut Random::new(13));
    // What means harm to whoever opens the page.
    for _ in 0..500 {
        let time = combined_time(MONDAY + 20 * SECOND);
        writeln!(log, "10.1.1.1 - </script><script>document.title='owned'</script> [{time}] \"GET / HTTP/1.1\" 429 2").unwrap();
    }
    let log = written(directory.path(), "access.log", log);
    let page = directory.path().join("report.html");
    let output = simulate(&["--report", page.to_str().unwrap(), "--target-block-rate", "1", &log]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let html = std::fs::read_to_string(&page).unwrap();
    // Names of SVG are no addresses.
    assert!(
        !html.replace("http://www.w3.org/2000/svg", "").contains("://"),
        "it asks for something"
    );
    let profile = directory.path().join("profile");
    let output = Command::new(&chromium)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let drawn = String::from_utf8_lossy(&output.stdout);
    assert!(drawn.contains("data-drawn=\"yes\""), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(drawn.contains("<title>tollgate simulate</title>"), "a log's text is run");
    assert!(drawn.contains("user:&lt;/script&gt;"), "{drawn}");
    for part in [
        "callers blocked",
        "Over time",
        "Callers who are blocked most",
        "tier:",
        "<svg",
        "Limits that block at most 1 %",
    ] {
        assert!(drawn.contains(part), "no {part}");
    }
}
