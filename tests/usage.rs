//! Usage records: exact, once, whatever is killed, stopped or sent again; in each of the sinks.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]
#![allow(clippy::disallowed_methods, reason = "tests wait by the real time, and end")]

#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/redis.rs"]
mod redis;
mod support;

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postgres::PostgresServer;
use redis::RedisServer;
use support::{Answer, Backend, Client, PATIENCE, Start, Tollgate, nobody, wait_until};

/// Callers are told apart by what a trusted proxy says of them.
const PROXY: &str = "server: { trusted_proxies: [127.0.0.0/8], workers: 2 }\n";

const POLICY: &str = "
default_tier: free
tiers:
  free: { per_hour: 100000 }
  paid: { per_hour: 100000 }
identities: { 'ip:203.0.113.9': paid }
endpoints:
  - { name: heavy, path: /heavy, cost: 5 }
  - { name: tight, path: /tight, limits: { any: { per_hour: 2 } } }
  - { name: exempt, path: /exempt, exempt: true }
";

/// A sink with its server, and the configuration that names it.
struct Sink {
    config: String,
    directory: tempfile::TempDir,
    redis: Option<RedisServer>,
    postgres: Option<PostgresServer>,
}

impl Sink {
    fn file() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path().display();
        let config = format!("usage: {{ sink: file, flush: 100ms, dir: '{dir}' }}\n");
        Sink { config, directory, redis: None, postgres: None }
    }

    fn redis() -> Option<Self> {
        let server = RedisServer::spawn_tcp()?;
        let directory = tempfile::tempdir().unwrap();
        let (dir, url) = (directory.path().display(), server.tcp_url());
        let config = format!(
            "usage: {{ sink: redis, flush: 100ms, dir: '{dir}' }}\n\
             store: {{ redis: {{ url: '{url}', on_failure: open }} }}\n"
        );
        Some(Sink { config, directory, redis: Some(server), postgres: None })
    }

    fn postgres() -> Option<Self> {
        let server = PostgresServer::spawn()?;
        let directory = tempfile::tempdir().unwrap();
        let (dir, url) = (directory.path().display(), server.url());
        let config =
            format!("usage: {{ sink: postgres, flush: 100ms, dir: '{dir}', postgres: '{url}' }}\n");
        Some(Sink { config, directory, redis: None, postgres: Some(server) })
    }

    fn start(&self, upstream: SocketAddr, tiers: &str) -> Tollgate {
        let config = format!("{PROXY}{}upstream: {{ retries: 0 }}\n", self.config);
        Start::default().upstream(upstream).config(&config).tiers(tiers).run()
    }

    /// Where `tollgate usage export` finds it.
    fn source(&self) -> String {
        match (&self.redis, &self.postgres) {
            (Some(redis), _) => redis.tcp_url(),
            (_, Some(postgres)) => postgres.url(),
            _ => self.directory.path().display().to_string(),
        }
    }

    fn records(&self) -> Records {
        records(&export(&["--source", &self.source(), "--by", "day"]))
    }

    fn journal(&self) -> std::path::PathBuf {
        self.directory.path().join("journal")
    }
}

/// By identity, tier and endpoint: requests, units, denied, bytes in and out.
type Records = BTreeMap<(String, String, String), [i64; 5]>;

fn tollgate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tollgate")).args(arguments).output().unwrap()
}

fn export(arguments: &[&str]) -> String {
    let output = tollgate(&[&["usage", "export"], arguments].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

fn records(csv: &str) -> Records {
    let mut lines = csv.lines();
    let head = "start,period,identity,tier,endpoint,requests,units,denied,bytes_in,bytes_out";
    assert_eq!(lines.next(), Some(head));
    let mut records = Records::new();
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        let key = (fields[2].to_owned(), fields[3].to_owned(), fields[4].to_owned());
        let sums = records.entry(key).or_default();
        for (sum, field) in sums.iter_mut().zip(&fields[5..]) {
            *sum += field.parse::<i64>().unwrap();
        }
    }
    records
}

fn expected(lines: &[(&str, &str, &str, [i64; 5])]) -> Records {
    let key = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
    lines.iter().map(|(a, b, c, numbers)| (key(a, b, c), *numbers)).collect()
}

/// A GET as somebody behind the proxy.
fn get(client: &mut Client, path: &str, who: &str) -> u16 {
    let head = format!("GET {path} HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: {who}\r\n\r\n");
    client.send(head).answer().status
}

/// Bytes are counted when an answer has ended, which its reader may see first.
fn comes_to(sink: &Sink, expected: &Records) {
    let deadline = Instant::now() + PATIENCE;
    while sink.records() != *expected && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(sink.records(), *expected);
}

fn flushed(tollgate: &Tollgate) {
    wait_until("all is written", || tollgate.metric("tollgate_usage_flush_lag_seconds") == 0.0);
}

/// The same requests for every sink.
fn some_of_each(tollgate: &Tollgate) {
    let mut client = tollgate.connect();
    for _ in 0..3 {
        assert_eq!(get(&mut client, "/", "203.0.113.1"), 200);
        assert_eq!(get(&mut client, "/heavy", "203.0.113.1"), 200);
        assert_eq!(get(&mut client, "/heavy", "203.0.113.9"), 200);
        assert_eq!(get(&mut client, "/exempt", "203.0.113.1"), 200);
    }
    for status in [200, 200, 429, 429, 429] {
        assert_eq!(get(&mut client, "/tight", "203.0.113.1"), status);
    }
    let post = "POST / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: 203.0.113.1\r\n\
                Content-Length: 7\r\n\r\n1234567";
    assert_eq!(client.send(post).answer().status, 200);
    // None of these is usage.
    assert_eq!(client.send("GET / HTTP/1.1\r\n\r\n").answer().status, 400);
}

fn what_that_is() -> Records {
    expected(&[
        ("ip:203.0.113.1", "free", "exempt", [3, 0, 0, 0, 6]),
        ("ip:203.0.113.1", "free", "heavy", [3, 15, 0, 0, 6]),
        ("ip:203.0.113.1", "free", "other", [4, 4, 0, 7, 8]),
        ("ip:203.0.113.1", "free", "tight", [2, 2, 3, 0, 4]),
        ("ip:203.0.113.9", "paid", "heavy", [3, 15, 0, 0, 6]),
    ])
}

/// Counts, reads back in every way, restarts, and counts on.
fn is_exact(sink: &Sink) {
    let backend = Backend::ok();
    let mut tollgate = sink.start(backend.address, POLICY);
    some_of_each(&tollgate);
    comes_to(sink, &what_that_is());
    flushed(&tollgate);
    let admin = format!("http://{}", tollgate.admin);
    let all = export(&["--source", &admin, "--by", "day"]);
    assert_eq!(records(&all), what_that_is());
    assert_eq!(all, export(&["--source", &sink.source(), "--by", "day"]));
    let one = export(&["--source", &admin, "--by", "minute", "--identity", "ip:203.0.113.9"]);
    assert_eq!(records(&one).len(), 1);
    assert!(export(&["--source", &admin, "--tier", "none"]).lines().count() == 1);
    assert!(export(&["--source", &admin, "--to", "2026-01-01"]).lines().count() == 1);
    let config = tollgate.path("tollgate.yaml");
    let of_config = export(&["--config", config.to_str().unwrap(), "--format", "json"]);
    assert_eq!(of_config.lines().count(), what_that_is().len());
    for line in of_config.lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(record["units"].is_i64() && record["start"].as_str().unwrap().ends_with("00Z"));
    }
    let output = tollgate_reconcile(&tollgate);
    assert!(output.status.success(), "{output:?}");
    tollgate.signal("TERM");
    assert!(tollgate.wait().success());
    let left: Vec<_> = std::fs::read_dir(sink.journal()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    let again = sink.start(backend.address, POLICY);
    let mut client = again.connect();
    assert_eq!(get(&mut client, "/heavy", "203.0.113.9"), 200);
    let mut expected = what_that_is();
    let key = ("ip:203.0.113.9".to_owned(), "paid".to_owned(), "heavy".to_owned());
    expected.insert(key, [4, 20, 0, 0, 8]);
    comes_to(sink, &expected);
}

fn tollgate_reconcile(running: &Tollgate) -> Output {
    tollgate(&["usage", "reconcile", "--admin", &format!("http://{}", running.admin)])
}

#[test]
fn files_are_exact() {
    is_exact(&Sink::file());
}

#[test]
fn redis_is_exact() {
    Sink::redis().iter().for_each(is_exact);
    if let Some(sink) = Sink::redis() {
        let backend = Backend::ok();
        let tollgate = sink.start(backend.address, POLICY);
        some_of_each(&tollgate);
        comes_to(&sink, &what_that_is());
        let server = sink.redis.as_ref().unwrap();
        let usage: Vec<_> =
            server.keys().into_iter().filter(|key| key.starts_with(b"tg:{usage}:")).collect();
        assert!(usage.len() >= 4, "{usage:?}");
        for key in usage {
            let redis::Reply::Integer(left) = server.command(&[b"TTL", &key]) else { panic!() };
            assert!(left > 0, "{} has no end", String::from_utf8_lossy(&key));
        }
    }
}

#[test]
fn postgres_is_exact() {
    Sink::postgres().iter().for_each(is_exact);
}

#[test]
fn what_did_not_reach_the_upstream_is_taken_back() {
    let sink = Sink::file();
    let tollgate = sink.start(nobody(), POLICY);
    let mut client = tollgate.connect();
    for path in ["/", "/heavy", "/exempt"] {
        assert_eq!(get(&mut client, path, "203.0.113.1"), 502);
    }
    flushed(&tollgate);
    assert!(sink.records().values().all(|it| it[0] == 0 && it[1] == 0), "{:?}", sink.records());
    assert!(tollgate_reconcile(&tollgate).status.success());
}

#[test]
fn a_policy_with_other_names_counts_under_these() {
    let sink = Sink::file();
    let backend = Backend::ok();
    let tollgate = sink.start(backend.address, POLICY);
    let mut client = tollgate.connect();
    assert_eq!(get(&mut client, "/heavy", "203.0.113.1"), 200);
    let other = POLICY.replace("free", "basic").replace("name: heavy", "name: weighty");
    std::fs::write(tollgate.path("tiers.yaml"), other).unwrap();
    tollgate.signal("HUP");
    wait_until("the policy is another", || {
        get(&mut client, "/", "203.0.113.2");
        flushed(&tollgate);
        sink.records().keys().any(|key| key.1 == "basic")
    });
    assert_eq!(get(&mut client, "/heavy", "203.0.113.1"), 200);
    flushed(&tollgate);
    let records = sink.records();
    let of = |tier: &str, endpoint: &str| {
        records[&("ip:203.0.113.1".to_owned(), tier.to_owned(), endpoint.to_owned())][1]
    };
    assert_eq!((of("free", "heavy"), of("basic", "weighty")), (5, 5));
}

/// The sink is away for a while; nothing is missing afterwards, and the lag tells of it.
fn is_outlived(sink: &mut Sink, away: fn(&mut Sink), back: fn(&mut Sink)) {
    let backend = Backend::ok();
    let mut tollgate = sink.start(backend.address, POLICY);
    assert_eq!(get(&mut tollgate.connect(), "/", "203.0.113.1"), 200);
    flushed(&tollgate);
    away(sink);
    for _ in 0..10 {
        assert_eq!(get(&mut tollgate.connect(), "/", "203.0.113.1"), 200);
    }
    wait_until("the lag rises", || tollgate.metric("tollgate_usage_flush_lag_seconds") > 1.0);
    wait_until("errors are counted", || tollgate.metric("tollgate_usage_flush_errors_total") > 0.0);
    let reconciled = ["usage", "reconcile", "--wait", "100ms", "--admin"];
    let output =
        self::tollgate(&[&reconciled[..], &[&format!("http://{}", tollgate.admin)]].concat());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    // Killed meanwhile: the journal outlives it.
    tollgate.signal("KILL");
    tollgate.wait();
    let tollgate = sink.start(backend.address, POLICY);
    // Nobody has asked this one for anything yet: what waits is what the other has left.
    let lag = || tollgate.metric("tollgate_usage_flush_lag_seconds");
    wait_until("the lag is that of what was left", || lag() > 1.0);
    assert!(!tollgate.log().contains("written again"), "nothing was written");
    assert_eq!(get(&mut tollgate.connect(), "/", "203.0.113.1"), 200);
    back(sink);
    let key = ("ip:203.0.113.1".to_owned(), "free".to_owned(), "other".to_owned());
    let sum = |it: &Sink| it.records().get(&key).map_or(0, |it| it[0]);
    wait_until("all is there", || {
        let output = self::tollgate(&["usage", "export", "--source", &sink.source()]);
        output.status.success() && sum(sink) == 12
    });
    flushed(&tollgate);
    assert_eq!(sum(sink), 12);
}

#[test]
fn redis_may_be_away() {
    if let Some(mut sink) = Sink::redis() {
        is_outlived(
            &mut sink,
            |sink| sink.redis.as_ref().unwrap().pause(),
            |sink| sink.redis.as_ref().unwrap().resume(),
        );
    }
}

#[test]
fn postgres_may_be_away() {
    if let Some(mut sink) = Sink::postgres() {
        is_outlived(
            &mut sink,
            |sink| sink.postgres.as_mut().unwrap().stop(),
            |sink| sink.postgres.as_mut().unwrap().start(),
        );
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// The journal as it was before it was taken is put back, and met by another start: once is enough.
fn a_journal_that_comes_again_counts_once(sink: &Sink) {
    let backend = Backend::ok();
    let aside = tempfile::tempdir().unwrap();
    let mut tollgate = sink.start(backend.address, POLICY);
    some_of_each(&tollgate);
    wait_until("it is over", || tollgate.metric("tollgate_requests_in_flight") == 0.0);
    tollgate.signal("KILL");
    tollgate.wait();
    let counted = what_that_is();
    copy(&sink.journal(), aside.path());
    for _ in 0..3 {
        let mut tollgate = sink.start(backend.address, POLICY);
        wait_until("what was left is taken up", || tollgate.log().contains("taken up"));
        tollgate.signal("TERM");
        tollgate.wait();
        assert_eq!(sink.records(), counted);
        copy(aside.path(), &sink.journal());
    }
}

#[test]
fn a_journal_that_comes_again_counts_once_in_files() {
    a_journal_that_comes_again_counts_once(&Sink::file());
}

#[test]
fn a_journal_that_comes_again_counts_once_in_redis() {
    Sink::redis().iter().for_each(a_journal_that_comes_again_counts_once);
}

#[test]
fn a_journal_that_comes_again_counts_once_in_postgres() {
    Sink::postgres().iter().for_each(a_journal_that_comes_again_counts_once);
}

#[test]
fn a_directory_that_cannot_be_used_is_an_error_with_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let config = directory.path().join("tollgate.yaml");
    let text = format!("usage: {{ sink: file, dir: '{}' }}\n", file.display());
    std::fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    let output = tollgate(&[
        "run",
        "--config",
        config,
        "--upstream",
        "http://127.0.0.1:1",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
    ]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("usage.dir: ") && said.contains("file"), "{said}");
}

#[test]
fn wrong_questions_are_refused() {
    for (arguments, code, part) in [
        (&["--source", "ftp://x"][..], 1, "expected http://"),
        (&["--source", "/nowhere/at/all"], 1, "no such directory"),
        (&["--source", "/", "--from", "yesterday"], 2, "--from: yesterday, expected a day"),
        (&["--source", "/", "--from", "2026-01-01T00:30"], 2, "the beginning of a hour"),
        (&[], 1, "usage.sink is off"),
    ] {
        let output = tollgate(&[&["usage", "export"], arguments].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
}

/// What `tollgate check` says of a configuration, and its exit code.
fn checked(config: &str) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tollgate.yaml");
    std::fs::write(&file, config).unwrap();
    let output = tollgate(&["check", "--config", file.to_str().unwrap()]);
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[test]
fn a_sink_that_cannot_be_is_an_error() {
    let secret = "identity_hash_secret: 0123456789abcdef0123456789abcdef\n";
    let redis = "store: { redis: {} }\n";
    for (config, part) in [
        ("usage: { sink: redis }".to_owned(), "redis, and no store.redis"),
        (format!("{secret}{redis}usage: {{ sink: redis }}"), "says that Redis holds no names"),
        ("usage: { sink: postgres }".to_owned(), "expected usage.postgres or usage.postgres_file"),
        ("usage: { postgres: 'postgres://a/b', postgres_file: c }".to_owned(), "one of the two"),
        ("usage: { sink: postgres, postgres: 'postgres:///b' }".to_owned(), "no host"),
        ("usage: { sink: file, dir: '' }".to_owned(), "expected a directory"),
        ("usage: { flush: 10ms }".to_owned(), "expected at least 50ms"),
        ("usage: { flush: 2h }".to_owned(), "expected at most 1h"),
        ("usage: { retention: 1m }".to_owned(), "expected at least 1h"),
    ] {
        let (code, said) = checked(&config);
        assert_eq!(code, Some(2), "{config}: {said}");
        assert!(said.contains(part), "{config}: {said}");
    }
    for config in [format!("{redis}usage: {{ sink: redis }}"), "usage: { sink: file }".to_owned()] {
        let (code, said) = checked(&config);
        assert_eq!(code, Some(0), "{config}: {said}");
    }
}

/// Asks the API as somebody on the same machine.
fn ask(tollgate: &Tollgate, query: &str) -> Answer {
    let head = format!("GET /api/v1/usage{query} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    Client::connect(tollgate.admin).send(head).answer()
}

#[test]
fn the_api_gives_page_after_page() {
    let sink = Sink::file();
    let backend = Backend::ok();
    let tollgate = sink.start(backend.address, POLICY);
    some_of_each(&tollgate);
    comes_to(&sink, &what_that_is());
    let (mut after, mut found) = (String::new(), Vec::new());
    loop {
        let answer = ask(&tollgate, &format!("?limit=2&by=day{after}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let page: serde_json::Value = serde_json::from_str(&answer.text()).unwrap();
        let records = page["records"].as_array().unwrap();
        assert!(records.len() <= 2);
        found.extend(records.iter().map(|it| it["endpoint"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert_eq!(found, ["exempt", "heavy", "other", "tight", "heavy"]);
    for wrong in ["by=week", "limit=0", "limit=10001", "from=x", "from=2026-01-01T00:30", "after=x"]
    {
        assert_eq!(ask(&tollgate, &format!("?{wrong}")).status, 400, "{wrong}");
    }
    let without = Start::default().upstream(backend.address).run();
    let answer = ask(&without, "");
    let none = r#"{"error":"usage is not metered: usage.sink is off"}"#;
    assert_eq!((answer.status, answer.text().as_str()), (404, none));
}

#[test]
fn postgres_adds_up_and_deletes_what_is_old() {
    let Some(sink) = Sink::postgres() else { return };
    let server = sink.postgres.as_ref().unwrap();
    let backend = Backend::ok();
    let count = |table: &str| server.sql(&format!("select count(*) from tollgate_usage_{table}"));
    drop({
        let tollgate = sink.start(backend.address, POLICY);
        wait_until("there are tables", || {
            server.sql("select to_regclass('tollgate_usage_totals') is not null") == ["t"]
        });
        tollgate
    });
    // Three days ago, a minute each; and too long ago.
    server.sql(
        "insert into tollgate_usage_minutes select date_trunc('hour', now()) - interval '3 days' \
         + minute * interval '1 minute', 'user:' || who, 'free', 'other', 1, 2, 0, 0, 0 \
         from generate_series(0, 119) as minute, generate_series(1, 100) as who; \
         insert into tollgate_usage_hours values \
         (now() - interval '91 days', 'user:1', 'free', 'other', 1, 1, 0, 0, 0), \
         (now() - interval '89 days', 'user:1', 'free', 'other', 1, 1, 0, 0, 0)",
    );
    let source = ["--source", &sink.source(), "--by", "day", "--from", "2026-01-01"];
    let before = export(&source[..4]);
    let _tollgate = sink.start(backend.address, POLICY);
    wait_until("minutes are hours", || count("minutes") == ["0"] && count("hours") == ["201"]);
    // The same but for the one that is gone.
    assert_eq!(export(&source[..4]).lines().count(), before.lines().count() - 1);
    let sum = server.sql("select sum(units) from tollgate_usage_hours");
    assert_eq!(sum, [(120 * 100 * 2 + 1).to_string()]);
}

/// What each caller has sent, and what of it the backend has seen.
#[derive(Default)]
struct Tally {
    sent: Mutex<HashMap<String, i64>>,
    seen: Mutex<HashMap<String, i64>>,
}

fn note(of: &Mutex<HashMap<String, i64>>, who: &str) {
    *of.lock().unwrap().entry(who.to_owned()).or_default() += 1;
}

/// Kills tollgate under load at random moments, again and again. Every request that the backend saw
/// is in the records, and the records have nothing that was not sent; what lies between the two
/// was on its way when tollgate was killed: at most one for each caller and kill.
fn kills(sink: &Sink, kills: u64) {
    const CALLERS: u64 = 4;
    let tally = Arc::new(Tally::default());
    let of_backend = Arc::clone(&tally);
    let backend = Backend::spawn(move |mut connection| {
        while let Some(seen) = connection.head() {
            let who = seen.field("X-Forwarded-For").unwrap().to_owned();
            note(&of_backend.seen, who.split(',').next().unwrap());
            if !connection.ok("ok") {
                return;
            }
        }
    });
    let address = Arc::new(Mutex::new(None::<SocketAddr>));
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (tally, address) = (Arc::clone(&tally), Arc::clone(&address));
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            std::thread::spawn(move || {
                let mut turn = caller;
                while !stop.load(SeqCst) {
                    let Some(to) = *address.lock().unwrap() else {
                        std::thread::yield_now();
                        continue;
                    };
                    let Ok(mut stream) = TcpStream::connect(to) else { continue };
                    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    while !stop.load(SeqCst) {
                        turn += 1;
                        let who = format!("203.0.113.{}", caller * 50 + turn % 50);
                        note(&tally.sent, &who);
                        let head = format!(
                            "GET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: {who}\r\n\r\n"
                        );
                        if stream.write_all(head.as_bytes()).is_err() || !read_ok(&mut reader) {
                            break;
                        }
                        answered.fetch_add(1, SeqCst);
                    }
                }
            })
        })
        .collect();
    let mut random = std::process::id() as u64 | 1;
    for _ in 0..kills {
        let before = answered.load(SeqCst);
        let mut tollgate = sink.start(backend.address, support::GENEROUS);
        *address.lock().unwrap() = Some(tollgate.data);
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Some work at least, and then any moment.
        wait_until("requests are answered", || answered.load(SeqCst) > before + 5);
        std::thread::sleep(Duration::from_micros(random % 400_000));
        tollgate.signal("KILL");
        *address.lock().unwrap() = None;
        tollgate.wait();
    }
    stop.store(true, SeqCst);
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    let mut last = sink.start(backend.address, support::GENEROUS);
    last.signal("TERM");
    assert!(last.wait().success());
    let mut recorded: HashMap<String, i64> = HashMap::new();
    for ((identity, ..), numbers) in sink.records() {
        assert_eq!(numbers[0], numbers[1], "requests and units of {identity}");
        *recorded.entry(identity.trim_start_matches("ip:").to_owned()).or_default() += numbers[0];
    }
    let (sent, seen) = (tally.sent.lock().unwrap(), tally.seen.lock().unwrap());
    for (who, sent) in sent.iter() {
        let of = |map: &HashMap<String, i64>| map.get(who).copied().unwrap_or(0);
        let (seen, recorded) = (of(&seen), of(&recorded));
        assert!(seen <= recorded, "{who}: the backend saw {seen}, recorded are {recorded}");
        assert!(recorded <= *sent, "{who}: {sent} were sent, recorded are {recorded}");
    }
    let sum = |map: &HashMap<String, i64>| map.values().sum::<i64>();
    let (sent, seen, recorded) = (sum(&sent), sum(&seen), sum(&recorded));
    println!("{kills} kills: sent {sent}, seen by the backend {seen}, recorded {recorded}");
    assert!(recorded - seen <= (CALLERS * kills) as i64, "more than was on its way");
    assert!(seen > (kills * 5) as i64);
}

fn read_ok(reader: &mut BufReader<TcpStream>) -> bool {
    let mut line = String::new();
    loop {
        line.clear();
        match reader.read_line(&mut line) {
            Ok(0) | Err(_) => return false,
            Ok(_) if line == "\r\n" => {
                let mut body = [0; 2];
                return std::io::Read::read_exact(reader, &mut body).is_ok();
            }
            Ok(_) => {}
        }
    }
}

/// How many; `tests/long.sh usage-kills` asks for more.
fn kills_wanted(sink: &str) -> u64 {
    let wanted = std::env::var(format!("USAGE_KILLS_{sink}"));
    wanted.ok().and_then(|it| it.parse().ok()).unwrap_or(5)
}

#[test]
fn kills_lose_nothing_and_double_nothing_in_files() {
    kills(&Sink::file(), kills_wanted("FILE"));
}

#[test]
fn kills_lose_nothing_and_double_nothing_in_redis() {
    if let Some(sink) = Sink::redis() {
        kills(&sink, kills_wanted("REDIS"));
    }
}

#[test]
fn kills_lose_nothing_and_double_nothing_in_postgres() {
    if let Some(sink) = Sink::postgres() {
        kills(&sink, kills_wanted("POSTGRES"));
    }
}
