//! The real binary whose files change while it serves: every way in which a file changes, what of
//! the state lives on, what a bad file does (nothing), and that nobody notices a hundred of them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/redis.rs"]
mod redis;
mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use redis::RedisServer;
use support::{Answer, Backend, Client, Start, Tollgate, wait_until};

/// Limits that no test reaches, with an hour's of `limit`.
fn hourly(limit: u32) -> String {
    format!("default_tier: free\ntiers:\n  free: {{ per_hour: {limit} }}\n")
}

/// Puts a new file in place of an old one, as careful editors do.
fn rename_over(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).unwrap();
    fs::rename(beside, path).unwrap();
}

fn reloads(tollgate: &Tollgate, result: &str) -> f64 {
    tollgate.metric(&format!("tollgate_config_reloads_total{{result=\"{result}\"}}"))
}

fn is_successful(tollgate: &Tollgate) -> bool {
    tollgate.metric("tollgate_config_last_reload_successful") == 1.0
}

fn is_restart_pending(tollgate: &Tollgate) -> bool {
    tollgate.metric("tollgate_config_restart_pending") == 1.0
}

fn config_hash(tollgate: &Tollgate) -> String {
    let health: serde_json::Value =
        serde_json::from_slice(&tollgate.admin("/health").body).unwrap();
    health["config_hash"].as_str().unwrap().to_owned()
}

/// Puts a policy in force and waits until it is.
fn put_in_force(tollgate: &Tollgate, policy: &str) {
    let before = reloads(tollgate, "ok");
    rename_over(&tollgate.path("tiers.yaml"), policy);
    tollgate.signal("HUP");
    wait_until("the policy is in force", || reloads(tollgate, "ok") > before);
}

/// Waits until the limit that answers speak of is this one.
fn expect_limit(tollgate: &Tollgate, limit: u64) {
    wait_until("the new limit holds", || tollgate.get("/").number("x-ratelimit-limit") == limit);
}

/// The log's events that say this.
fn events(tollgate: &Tollgate, text: &str) -> Vec<serde_json::Value> {
    let log = tollgate.log();
    let events = log.lines().filter_map(|line| serde_json::from_str(line).ok());
    let says = |event: &serde_json::Value| {
        event["message"].as_str().is_some_and(|message| message.contains(text))
    };
    events.filter(says).collect()
}

fn wait_for_event(tollgate: &Tollgate, text: &str) -> serde_json::Value {
    wait_until(text, || !events(tollgate, text).is_empty());
    events(tollgate, text).pop().unwrap()
}

/// A GET for somebody behind a trusted proxy.
fn get_for(client: &mut Client, address: &str, path: &str) -> Answer {
    let head = format!("GET {path} HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: {address}\r\n\r\n");
    client.send(head).answer()
}

#[test]
fn a_file_edited_in_place_or_renamed_over_takes_effect() {
    let backend = Backend::ok();
    let tollgate = Start::default().upstream(backend.address).tiers(&hourly(100_000)).run();
    let path = tollgate.path("tiers.yaml");
    expect_limit(&tollgate, 100_000);
    let (hash, loaded_at) = (config_hash(&tollgate), loaded_at(&tollgate));
    assert!(loaded_at > 1.7e9 && is_successful(&tollgate));

    fs::write(&path, hourly(200_000)).unwrap();
    expect_limit(&tollgate, 200_000);
    rename_over(&path, &hourly(300_000));
    expect_limit(&tollgate, 300_000);
    // In two steps, with nothing there for a moment.
    fs::rename(&path, path.with_extension("old")).unwrap();
    fs::write(&path, hourly(400_000)).unwrap();
    expect_limit(&tollgate, 400_000);

    wait_until("it is counted", || reloads(&tollgate, "ok") == 3.0);
    assert_eq!(reloads(&tollgate, "error"), 0.0);
    assert!(self::loaded_at(&tollgate) > loaded_at && is_successful(&tollgate));
    let now = config_hash(&tollgate);
    assert_ne!(now, hash);
    assert_eq!(tollgate.metric(&format!("tollgate_config_hash_info{{hash=\"{now}\"}}")), 1.0);
    assert_eq!(tollgate.metric(&format!("tollgate_config_hash_info{{hash=\"{hash}\"}}")), 0.0);
    wait_until("the last reload is told", || events(&tollgate, "policy reloaded").len() == 3);
    let event = wait_for_event(&tollgate, "policy reloaded");
    assert_eq!(event["level"], "INFO");
    assert_eq!(event["hash"], now.as_str());
    assert_eq!((&event["tiers"], &event["rules"]), (&1.into(), &0.into()));
}

fn loaded_at(tollgate: &Tollgate) -> f64 {
    tollgate.metric("tollgate_config_last_reload_success_timestamp_seconds")
}

#[test]
fn a_config_map_of_kubernetes_takes_effect() {
    let backend = Backend::ok();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let publish = |version: &str, policy: &str| {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("tiers.yaml"), policy).unwrap();
        symlink(version, at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
    };
    publish("..2026_a", &hourly(100_000));
    symlink("..data/tiers.yaml", at("tiers.yaml")).unwrap();
    let path = at("tiers.yaml").display().to_string();
    let start = Start::default().upstream(backend.address);
    let tollgate = start.arguments(&["--tiers", path.as_str()]).run();
    expect_limit(&tollgate, 100_000);
    let mut old = "..2026_a".to_owned();
    for (index, limit) in [200_000_u32, 300_000].into_iter().enumerate() {
        let new = format!("..2026_{}", index + 1);
        publish(&new, &hourly(limit));
        fs::remove_dir_all(at(&old)).unwrap();
        expect_limit(&tollgate, limit.into());
        old = new;
    }
    wait_until("both are counted", || reloads(&tollgate, "ok") == 2.0);
    assert_eq!(reloads(&tollgate, "error"), 0.0);
}

/// What has been used counts against whatever limit comes.
fn a_new_limit_finds_what_was_used(start: Start) {
    let backend = Backend::ok();
    let tollgate = start.upstream(backend.address).tiers(&hourly(10)).run();
    let mut client = tollgate.connect();
    for left in (5..10).rev() {
        assert_eq!(client.get("/").number("x-ratelimit-remaining"), left);
    }
    put_in_force(&tollgate, &hourly(20));
    let answer = client.get("/");
    assert_eq!(answer.number("x-ratelimit-limit"), 20);
    assert_eq!(answer.number("x-ratelimit-remaining"), 14);

    put_in_force(&tollgate, &hourly(4));
    let answer = client.get("/");
    assert_eq!(answer.status, 429);
    assert_eq!(answer.number("x-ratelimit-limit"), 4);
    assert_eq!(answer.number("x-ratelimit-remaining"), 0);
    let wait = answer.number("retry-after");
    assert!((3_500..=3_660).contains(&wait), "{wait}");
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((&body["limit"], &body["period"]), (&4.into(), &"hour".into()));

    // Another tier's limits come and go, a rule comes: what was used of the tier's stays.
    let other = "default_tier: late
tiers:
  early: { per_minute: 1 }
  late: { per_second: 1000, per_hour: 7 }
endpoints:
  - { name: new, path: /new/**, limits: { any: { per_hour: 1 } } }
";
    put_in_force(&tollgate, other);
    let answer = client.get("/new/1");
    assert_eq!((answer.status, answer.number("x-ratelimit-remaining")), (200, 0));
    assert_eq!(client.get("/new/1").status, 429);
    // The rule is gone, the tier unlimited; both are back, and so is what they had counted.
    put_in_force(&tollgate, "default_tier: free\ntiers:\n  free: {}\n");
    let answer = client.get("/new/1");
    assert_eq!((answer.status, answer.field("x-ratelimit-limit")), (200, None));
    put_in_force(&tollgate, &other.replace("per_hour: 1 ", "per_hour: 2 ").replace("7", "9"));
    let answer = client.get("/new/1");
    assert_eq!((answer.status, answer.number("x-ratelimit-remaining")), (200, 0));
    assert_eq!(answer.number("x-ratelimit-limit"), 2, "the rule's, which is tighter");
    put_in_force(&tollgate, &hourly(9));
    let answer = client.get("/");
    assert_eq!((answer.status, answer.number("x-ratelimit-remaining")), (200, 0));
    assert_eq!(client.get("/").status, 429);
}

#[test]
fn a_new_limit_finds_what_was_used_in_memory() {
    a_new_limit_finds_what_was_used(Start::default());
}

#[test]
fn a_new_limit_finds_what_was_used_in_redis() {
    let Some(redis) = RedisServer::spawn() else { return };
    a_new_limit_finds_what_was_used(Start::default().config(&in_redis(&redis)));
}

fn in_redis(redis: &RedisServer) -> String {
    format!(
        "server: {{ trusted_proxies: [127.0.0.0/8] }}
store: {{ redis: {{ url: '{}', timeout: 10s }} }}
",
        redis.url()
    )
}

#[test]
fn a_bad_file_keeps_the_old_policy_and_says_where_it_is_wrong() {
    let backend = Backend::ok();
    let tollgate = Start::default().upstream(backend.address).tiers(&hourly(100_000)).run();
    let path = tollgate.path("tiers.yaml");
    let hash = config_hash(&tollgate);
    let loaded_at = loaded_at(&tollgate);
    fs::write(&path, "default_tier: free\ntiers:\n  free: { per_houre: 5, per_minute: 0 }\n")
        .unwrap();
    wait_until("it is refused", || reloads(&tollgate, "error") == 1.0);
    assert!(!is_successful(&tollgate));
    let event = wait_for_event(&tollgate, "not reloaded");
    assert_eq!(event["level"], "ERROR");
    assert_eq!(event["file"], path.display().to_string());
    let message = event["message"].as_str().unwrap();
    for told in [
        &*format!("{}:3:11: tiers.free.per_houre: unknown key", path.display()),
        "did you mean \"per_hour\"?",
        &*format!("{}:3:37: tiers.free.per_minute: 0, expected", path.display()),
    ] {
        assert!(message.contains(told), "{told:?} is not in {message}");
    }
    assert_eq!(tollgate.get("/").number("x-ratelimit-limit"), 100_000);
    assert_eq!(config_hash(&tollgate), hash);

    // No YAML, no text, nothing in it, no file, and a directory in its place: each is told once.
    let bads = [Some(&b"tiers: ["[..]), Some(b"\xff\xfe"), Some(b"# cut off\n"), None];
    for (count, bad) in bads.into_iter().enumerate() {
        match bad {
            None => fs::remove_file(&path).unwrap(),
            Some(bad) => fs::write(&path, bad).unwrap(),
        }
        wait_until("it is refused", || reloads(&tollgate, "error") == 2.0 + count as f64);
    }
    wait_for_event(&tollgate, "cannot be read");
    fs::create_dir(&path).unwrap();
    wait_until("it is refused", || reloads(&tollgate, "error") == 6.0);
    assert_eq!(tollgate.get("/").number("x-ratelimit-limit"), 100_000);
    assert!(!is_successful(&tollgate) && self::loaded_at(&tollgate) == loaded_at);
    assert_eq!(reloads(&tollgate, "ok"), 0.0);

    // The old file again: no other policy, and nothing is wrong any more.
    fs::remove_dir(&path).unwrap();
    fs::write(&path, hourly(100_000)).unwrap();
    wait_until("all is well", || is_successful(&tollgate));
    assert_eq!(config_hash(&tollgate), hash);
    assert_eq!((reloads(&tollgate, "ok"), reloads(&tollgate, "error")), (1.0, 6.0));
    fs::write(&path, hourly(200_000)).unwrap();
    expect_limit(&tollgate, 200_000);
}

/// A file that was cut short, as by a full disk, is no wish for the built-in tiers.
#[test]
fn an_empty_file_puts_no_built_in_tier_in_force() {
    let backend = Backend::ok();
    let policy = format!("{}identities: {{ 'ip:127.0.0.1': deny }}\n", hourly(70));
    let tollgate = Start::default().upstream(backend.address).tiers(&policy).run();
    assert_eq!(tollgate.get("/").status, 403);
    for (count, text) in ["", "# to be written\n"].into_iter().enumerate() {
        fs::write(tollgate.path("tiers.yaml"), text).unwrap();
        let is_refused = || reloads(&tollgate, "error") == (count + 1) as f64;
        wait_until("it is looked at", || is_refused() || reloads(&tollgate, "ok") > 0.0);
        assert_eq!(tollgate.get("/").status, 403);
    }
    assert!(tollgate.log().contains("an empty file, expected a policy"), "{}", tollgate.log());
}

#[test]
fn a_hang_up_reads_the_files_whether_they_have_changed_or_not() {
    let backend = Backend::ok();
    let tollgate = Start::default()
        .upstream(backend.address)
        .config("log: { level: info }\n")
        .tiers("default_tier: free\ntiers:\n  free:\n    per_hour: ${LIMIT:-700000}\n")
        .run();
    expect_limit(&tollgate, 700_000);
    tollgate.signal("HUP");
    wait_until("it is counted", || reloads(&tollgate, "ok") == 1.0);
    wait_for_event(&tollgate, "says what runs");
    put_in_force(&tollgate, &hourly(800_000));
    expect_limit(&tollgate, 800_000);
    // What is wrong is told again to who asks again.
    fs::write(tollgate.path("tiers.yaml"), "tiers: 1").unwrap();
    wait_until("it is refused", || reloads(&tollgate, "error") >= 1.0);
    let before = reloads(&tollgate, "error");
    tollgate.signal("HUP");
    wait_until("it is refused again", || reloads(&tollgate, "error") == before + 1.0);
    assert_eq!(tollgate.get("/").number("x-ratelimit-limit"), 800_000);
}

#[test]
fn without_a_file_a_hang_up_says_that_there_is_none() {
    let backend = Backend::ok();
    let tollgate = Tollgate::in_front_of(backend.address);
    tollgate.signal("HUP");
    let event = wait_for_event(&tollgate, "no file was given at the start");
    assert_eq!(event["level"], "WARN");
    assert_eq!(tollgate.get("/").status, 200);
    assert!(is_successful(&tollgate) && !is_restart_pending(&tollgate));
    assert_eq!((reloads(&tollgate, "ok"), reloads(&tollgate, "error")), (0.0, 0.0));
}

#[test]
fn a_policy_without_a_file_behind_it_is_served_and_not_watched() {
    let backend = Backend::ok();
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let written = pipe.clone();
    let writer = std::thread::spawn(move || fs::write(written, hourly(5)).unwrap());
    let path = pipe.display().to_string();
    let tollgate =
        Start::default().upstream(backend.address).arguments(&["--tiers", path.as_str()]).run();
    writer.join().unwrap();
    wait_for_event(&tollgate, "it is not watched");
    tollgate.signal("HUP");
    wait_for_event(&tollgate, "no file was given");
    assert_eq!(tollgate.get("/").number("x-ratelimit-limit"), 5);
}

#[test]
fn a_changed_configuration_is_told_of_and_changes_nothing() {
    let backend = Backend::ok();
    let config = "server: { trusted_proxies: [127.0.0.0/8] }\nlog: { level: info }\n";
    let tollgate =
        Start::default().upstream(backend.address).config(config).tiers(&hourly(100)).run();
    let path = tollgate.path("tollgate.yaml");
    assert!(!is_restart_pending(&tollgate));
    // To touch the policy, and to write the same again, is no reload: the configuration, which is
    // looked at after it, tells when it must have been seen.
    fs::write(tollgate.path("tiers.yaml"), hourly(100)).unwrap();
    rename_over(&path, "server: { max_connections: 5 }\nlog: { level: debug }\nheaders: {}\n");
    wait_until("it is told", || is_restart_pending(&tollgate));
    let event = wait_for_event(&tollgate, "takes a restart");
    assert_eq!(event["level"], "WARN");
    assert_eq!(event["file"], path.display().to_string());
    assert_eq!(event["keys"], "headers, log, server");
    assert_eq!((reloads(&tollgate, "ok"), reloads(&tollgate, "error")), (0.0, 0.0));

    // A policy that comes now is for what runs: the proxy is still believed.
    put_in_force(&tollgate, &hourly(200));
    let mut client = tollgate.connect();
    for address in ["192.0.2.1", "192.0.2.2"] {
        assert_eq!(get_for(&mut client, address, "/").number("x-ratelimit-remaining"), 199);
    }
    // Told once by itself, and once to who asked.
    wait_until("it is told again", || events(&tollgate, "takes a restart").len() == 2);

    fs::write(&path, "server: { workers: many }\n").unwrap();
    let event = wait_for_event(&tollgate, "a start would fail");
    assert_eq!(event["level"], "WARN");
    let told = format!("{}:1:20: server.workers:", path.display());
    assert!(event["message"].as_str().unwrap().contains(&told), "{event}");
    assert!(is_restart_pending(&tollgate) && is_successful(&tollgate));
    // As it was, with a comment.
    fs::write(&path, format!("# as before\n{config}")).unwrap();
    wait_until("nothing is pending", || !is_restart_pending(&tollgate));
    assert_eq!(reloads(&tollgate, "error"), 0.0);
}

#[test]
fn a_request_under_way_ends_under_the_policy_that_it_began_with() {
    let (arrived, has_arrived) = mpsc::sync_channel(1);
    let (go, may_go) = mpsc::sync_channel::<()>(1);
    let may_go = Mutex::new(may_go);
    let backend = Backend::spawn(move |mut connection| {
        while let Some(seen) = connection.request() {
            if seen.target() == "/slow" {
                arrived.send(()).unwrap();
                may_go.lock().unwrap().recv().unwrap();
            }
            connection.ok("ok");
        }
    });
    let before = "default_tier: last
tiers:
  first: { per_hour: 5 }
  last: { per_hour: 50 }
endpoints:
  - { name: other-rule, path: /else }
  - { name: slow, path: /slow, limits: { any: { per_hour: 7 } } }
";
    let tollgate = Start::default().upstream(backend.address).tiers(before).run();
    let mut client = tollgate.connect();
    client.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    has_arrived.recv_timeout(support::PATIENCE).unwrap();
    put_in_force(&tollgate, "default_tier: only\ntiers:\n  only: { per_hour: 3 }\n");
    assert_eq!(tollgate.get("/").number("x-ratelimit-remaining"), 1);
    go.send(()).unwrap();
    let answer = client.answer();
    assert_eq!((answer.status, answer.number("x-ratelimit-limit")), (200, 7));
    let hits = |tier: &str, endpoint: &str| {
        let labels = format!("identifier_type=\"ip\",tier=\"{tier}\",endpoint=\"{endpoint}\"");
        tollgate.metric(&format!("rate_limit_hits_total{{{labels}}}"))
    };
    wait_until("it is counted", || hits("last", "slow") == 1.0);
    assert_eq!(hits("only", "other"), 1.0);
    // A tier that is gone shows no limit of its own any more.
    let remaining = "rate_limit_remaining_requests{identifier_type=\"ip\",tier=\"first\"}";
    assert!(!tollgate.admin("/metrics").text().contains(remaining));
}

/// Two versions that differ in the order of everything and in more, and agree on SMALL and HUGE.
const ONE: &str = "default_tier: huge
tiers:
  huge: { per_second: 1000000, per_hour: 1000000 }
  small: { per_hour: 500 }
identities: { 'ip:192.0.2.1': small }
endpoints:
  - { name: red, path: /red/**, limits: { any: { per_hour: 1000000 } } }
  - { name: blue, path: /blue/** }
";
const TWO: &str = "default_tier: huge
tiers:
  small: { per_minute: 1000000, per_hour: 500 }
  middle: { per_hour: 1 }
  huge: { per_second: 500000, per_hour: 1000000 }
networks: { 198.51.100.0/24: middle }
identities: { 'ip:192.0.2.1': small }
endpoints:
  - { name: green, path: /green/**, limits: { any: { per_hour: 3 } } }
  - { name: blue, path: /blue/**, mode: shadow, limits: { huge: { per_hour: 2 } } }
  - { name: red, path: /red/**, cost: 1, limits: { any: { per_minute: 900000, per_hour: 1000000 } } }
";
const PATHS: [&str; 3] = ["/red/1", "/blue/1", "/"];

/// Threads that send without pause until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    threads: Vec<std::thread::JoinHandle<Vec<(usize, u16)>>>,
}

impl Load {
    /// One thread for each address, on a connection of its own to one of `tollgates`.
    fn start(tollgates: &[&Tollgate], addresses: &[&'static str]) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let thread = |(index, address): (usize, &&'static str)| {
            let mut client = tollgates[index % tollgates.len()].connect();
            let (stop, sent, address) = (Arc::clone(&stop), Arc::clone(&sent), *address);
            std::thread::spawn(move || {
                let mut seen = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let path = seen.len() % PATHS.len();
                    seen.push((path, get_for(&mut client, address, PATHS[path]).status));
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                seen
            })
        };
        let threads = addresses.iter().enumerate().map(thread).collect();
        Load { stop, sent, threads }
    }

    fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    /// By thread, the path and the status of each answer, in order.
    fn end(self) -> Vec<Vec<(usize, u16)>> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }
}

fn sum(tollgate: &Tollgate, name: &str, labels: &[String]) -> f64 {
    let page = tollgate.admin("/metrics").text();
    let samples = page.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    let samples = samples.filter(|line| labels.iter().all(|label| line.contains(label.as_str())));
    samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[test]
fn a_hundred_reloads_under_load_fail_no_request_and_lose_no_count() {
    let backend = Backend::ok();
    let config = "server: { workers: 2, trusted_proxies: [127.0.0.0/8] }\n";
    let tollgate = Start::default().upstream(backend.address).config(config).tiers(ONE).run();
    let addresses = ["192.0.2.10", "192.0.2.11", "192.0.2.1", "192.0.2.12", "192.0.2.1"];
    let load = Load::start(&[&tollgate], &addresses);
    for flip in 0..100_usize {
        let before = (reloads(&tollgate, "ok"), load.sent());
        rename_over(&tollgate.path("tiers.yaml"), if flip % 2 == 0 { TWO } else { ONE });
        // Most are asked for, which is quicker; some are left to be seen.
        if flip % 10 != 0 {
            tollgate.signal("HUP");
        }
        wait_until("it is reloaded", || reloads(&tollgate, "ok") > before.0);
        wait_until("requests have met it", || load.sent() >= before.1 + addresses.len());
    }
    wait_until("the small one has met its limit", || {
        sum(&tollgate, "rate_limit_blocks_total", &["tier=\"small\"".to_owned()]) > 0.0
    });
    let seen = load.end();
    assert!(reloads(&tollgate, "ok") >= 100.0 && reloads(&tollgate, "error") == 0.0);

    let of = |address: &str| -> Vec<(usize, u16)> {
        let own = addresses.iter().zip(&seen).filter(|(it, _)| **it == address);
        own.flat_map(|(_, answers)| answers.clone()).collect()
    };
    let small = of("192.0.2.1");
    let count = |status| small.iter().filter(|(_, it)| *it == status).count();
    assert_eq!(count(200), 500, "exactly the limit that both versions have");
    assert_eq!(count(200) + count(429), small.len());
    for address in ["192.0.2.10", "192.0.2.11", "192.0.2.12"] {
        assert!(of(address).iter().all(|(_, status)| *status == 200), "{address}");
    }
    // Every request has been counted, where it belongs.
    let total: usize = seen.iter().map(Vec::len).sum();
    wait_until("all are counted", || sum(&tollgate, "rate_limit_hits_total", &[]) == total as f64);
    for (index, endpoint) in ["red", "blue", "other"].into_iter().enumerate() {
        let is_there = |(path, _): &&(usize, u16)| *path == index;
        let small = small.iter().filter(is_there).count();
        let huge = seen.iter().flatten().filter(is_there).count() - small;
        for (tier, count) in [("small", small), ("huge", huge)] {
            let labels = [format!("tier=\"{tier}\""), format!("endpoint=\"{endpoint}\"")];
            let hits = sum(&tollgate, "rate_limit_hits_total", &labels);
            assert_eq!(hits, count as f64, "{tier} {endpoint}");
        }
    }
    let blocks = sum(&tollgate, "rate_limit_blocks_total", &[]);
    assert_eq!(blocks, count(429) as f64);
    assert_eq!(sum(&tollgate, "tollgate_requests_total", &[]), total as f64);
    println!("{total} requests over {} reloads", reloads(&tollgate, "ok"));
}

#[test]
fn replicas_with_two_versions_of_the_policy_keep_one_count() {
    let Some(redis) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let start = |policy: &str| {
        Start::default().upstream(backend.address).config(&in_redis(&redis)).tiers(policy).run()
    };
    let (one, two) = (start(ONE), start(TWO));
    let load = Load::start(&[&one, &two], &["192.0.2.1"; 4]);
    wait_until("both have refused", || {
        let is_blocked = |it| sum(it, "rate_limit_blocks_total", &[]) > 0.0;
        is_blocked(&one) && is_blocked(&two)
    });
    // The first follows the second.
    put_in_force(&one, TWO);
    assert_eq!(config_hash(&one), config_hash(&two));
    let before = load.sent();
    wait_until("requests have met it", || load.sent() > before + 20);
    let seen = load.end();
    let count = |status| seen.iter().flatten().filter(|(_, it)| *it == status).count();
    assert_eq!(count(200), 500, "exactly the limit that both versions have");
    let total: usize = seen.iter().map(Vec::len).sum();
    assert_eq!(count(200) + count(429), total);
    let both = |name: &str| sum(&one, name, &[]) + sum(&two, name, &[]);
    wait_until("all are counted", || both("rate_limit_hits_total") == total as f64);
    assert_eq!(both("rate_limit_blocks_total"), count(429) as f64);
    assert_eq!(both("tollgate_limiter_fallback_total"), 0.0, "Redis decided all of them");
    // What is left is the same to whomever one asks.
    let mut left = Vec::new();
    for tollgate in [&one, &two, &one] {
        let answer = get_for(&mut tollgate.connect(), "192.0.2.20", "/");
        left.push(answer.number("x-ratelimit-remaining"));
    }
    assert_eq!(left, [999_999, 999_998, 999_997]);
}

#[test]
fn a_tollgate_that_drains_still_ends_when_it_was_asked_to_reload() {
    let backend = Backend::ok();
    let mut tollgate = Start::default().upstream(backend.address).tiers(&hourly(10)).run();
    for _ in 0..20 {
        tollgate.signal("HUP");
    }
    tollgate.signal("TERM");
    assert_eq!(tollgate.wait().code(), Some(0));
}
