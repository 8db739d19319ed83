//! The files of `deploy/` in a real Prometheus and a real Alertmanager, beside a running tollgate
//! with a real Redis: what breaks arrives at a webhook, once, and so does that it is over.
//!
//! The files are those that ship, with three changes. Time runs fifteen times as fast: every
//! duration in them (`for`, intervals, windows, offsets, waits) is divided by fifteen, so that the
//! scrape interval of 15 seconds is one second and all else stays in proportion. Targets are where
//! this test's servers listen, and jobs of programs that do not run here are left out. And every
//! receiver has a webhook of its name. Expressions, thresholds, labels, routes and inhibition are
//! as shipped.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]
#![allow(clippy::disallowed_methods, reason = "tests wait by the real time, and end")]

#[path = "support/prometheus.rs"]
mod prometheus;
#[path = "support/redis.rs"]
mod redis;
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use prometheus::{Server, program};
use redis::RedisServer;
use support::{Backend, Start, Tollgate};

/// How many times faster time runs than the files say.
const HASTE: u64 = 15;

/// Longest wait for a notification: three times what it takes on an idle machine, and more.
const PATIENCE: Duration = Duration::from_secs(60);

/// Rules of Prometheus that are loaded.
const RULES: [&str; 4] =
    ["alerts.yml", "extra_alerts.yml", "recording_rules.yml", "slo_alerts.yml"];

/// A duration as Prometheus writes it, such as `90s` or `1h`; `None` for anything else.
fn milliseconds(word: &str) -> Option<u64> {
    let digits = word.find(|c: char| !c.is_ascii_digit())?;
    let unit = match &word[digits..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    Some(word[..digits].parse::<u64>().ok()? * unit)
}

/// Every duration in a text, divided.
fn hasten(text: &str) -> String {
    let (mut hastened, mut rest) = (String::new(), text);
    let is_word = |c: char| c.is_ascii_alphanumeric() || "_.".contains(c);
    while let Some(start) = rest.find(is_word) {
        let end = rest[start..].find(|c| !is_word(c)).map_or(rest.len(), |it| start + it);
        hastened.push_str(&rest[..start]);
        match milliseconds(&rest[start..end]) {
            Some(duration) => hastened.push_str(&format!("{}ms", (duration / HASTE).max(1))),
            None => hastened.push_str(&rest[start..end]),
        }
        rest = &rest[end..];
    }
    hastened + rest
}

#[test]
fn durations_and_nothing_else_are_shortened() {
    let expression = "max by (job) (avg_over_time(a5m:rate5m{le=\"0.001\"}[1m])) > 0.5 * 30 \
                      and x[6h:5m] offset 5m";
    let hastened = "max by (job) (avg_over_time(a5m:rate5m{le=\"0.001\"}[4000ms])) > 0.5 * 30 \
                    and x[1440000ms:20000ms] offset 20000ms";
    assert_eq!(hasten(expression), hastened);
}

/// Keys whose text is durations, or has some.
const TIMED: [&str; 9] = [
    "expr",
    "for",
    "interval",
    "scrape_interval",
    "scrape_timeout",
    "evaluation_interval",
    "group_wait",
    "group_interval",
    "repeat_interval",
];

fn hasten_keys(value: &mut Value) {
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                match value {
                    Value::String(text) if TIMED.contains(&key.as_str()) => *text = hasten(text),
                    other => hasten_keys(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hasten_keys),
        _ => {}
    }
}

/// A file that ships, read, with its durations shortened.
fn hastened(path: &str) -> Value {
    let text = std::fs::read_to_string(path).unwrap();
    let mut value = serde_yaml::from_str(&text).unwrap();
    hasten_keys(&mut value);
    value
}

fn write(directory: &Path, name: &str, value: &Value) -> std::path::PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, serde_yaml::to_string(value).unwrap()).unwrap();
    path
}

/// All that runs. Dropped from the top down.
struct World {
    prometheus: Server,
    alertmanager: Server,
    tollgate: Tollgate,
    redis: RedisServer,
    webhook: Backend,
    _backend: Backend,
    _directory: tempfile::TempDir,
}

impl World {
    /// `None` where a program is missing.
    fn new() -> Option<Self> {
        let prometheus = program("prometheus")?;
        let alertmanager = program("prometheus-alertmanager")?;
        let redis = RedisServer::spawn_tcp()?;
        let (backend, webhook) = (Backend::ok(), Backend::ok());
        let config = format!("store: {{ redis: {{ url: \"{}\" }} }}", redis.tcp_url());
        let tollgate = Start::default().upstream(backend.address).config(&config).run();
        let directory = tempfile::tempdir().unwrap();

        let mut config = hastened("deploy/alertmanager/alertmanager.yml");
        for receiver in config["receivers"].as_array_mut().unwrap() {
            let url = format!("http://{}/{}", webhook.address, receiver["name"].as_str().unwrap());
            receiver["webhook_configs"] = json!([{ "url": url, "send_resolved": true }]);
        }
        let config = write(directory.path(), "alertmanager.yml", &config);
        let alertmanager = Server::alertmanager(&alertmanager, &config, directory.path());

        for name in RULES {
            write(directory.path(), name, &hastened(&format!("deploy/prometheus/{name}")));
        }
        let mut config = hastened("deploy/prometheus/prometheus.yml");
        let target = |address: &str| json!([{ "targets": [address] }]);
        config["alerting"]["alertmanagers"][0]["static_configs"] =
            target(&alertmanager.address.to_string());
        let jobs = config["scrape_configs"].as_array_mut().unwrap();
        jobs.retain(|job| job["job_name"] == "tollgate");
        jobs[0]["static_configs"] = target(&tollgate.admin.to_string());
        let config = write(directory.path(), "prometheus.yml", &config);
        let prometheus = Server::prometheus(&prometheus, &config, directory.path());
        let _directory = directory;
        Some(World {
            prometheus,
            alertmanager,
            tollgate,
            redis,
            webhook,
            _backend: backend,
            _directory,
        })
    }

    /// What came to a receiver: alerts with their own status, oldest first.
    fn notified(&self, receiver: &str) -> Vec<Value> {
        let mut alerts = Vec::new();
        for seen in self.webhook.seen() {
            if seen.target().trim_start_matches('/') == receiver {
                let body: Value = serde_json::from_slice(&seen.body).unwrap();
                alerts.extend(body["alerts"].as_array().unwrap().clone());
            }
        }
        alerts
    }

    /// Waits until a receiver was told of an alert with this status.
    fn told(&self, receiver: &str, name: &str, status: &str) -> Value {
        let is_it = |it: &&Value| it["labels"]["alertname"] == name && it["status"] == status;
        let mut found = None;
        self.wait(&format!("{receiver} is told that {name} is {status}"), || {
            found = self.notified(receiver).iter().find(is_it).cloned();
            found.is_some()
        });
        found.unwrap()
    }

    fn wait(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            if Instant::now() > deadline {
                let firing = self.prometheus.json("/api/v1/alerts");
                let known = self.alertmanager.json("/api/v2/alerts");
                panic!("waited in vain until {what}\n{firing:#}\n{known:#}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn texts(value: &Value) -> BTreeMap<&str, &str> {
    let entries = value.as_object().unwrap().iter();
    entries.map(|(key, value)| (key.as_str(), value.as_str().unwrap())).collect()
}

/// One caller, as fast as it is answered, until told to stop.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    fn of(tollgate: &Tollgate) -> Self {
        let (stop, mut client) = (Arc::new(AtomicBool::new(false)), tollgate.connect());
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                client.get("/");
                // A few hundred a second are enough, and leave the machine to the others.
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Flood { stop, thread: Some(thread) }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the flood broke off");
    }
}

#[test]
fn what_breaks_arrives_once_and_so_does_its_end() {
    let Some(world) = World::new() else { return };
    let started = Instant::now();
    world.wait("Redis is seen to be healthy", || {
        world.prometheus.query("dependency_health_status{dependency=\"redis\"}") == [1.0]
    });

    // A Redis that hangs: connections stay, nothing answers.
    world.redis.pause();
    let fired = world.told("pager", "RedisUnhealthy", "firing");
    let instance = world.tollgate.admin.to_string();
    let expected = [
        ("alertname", "RedisUnhealthy"),
        ("category", "dependency"),
        ("cluster", "default"),
        ("instance", &instance),
        ("job", "tollgate"),
        ("severity", "critical"),
        ("team", "platform"),
    ];
    assert_eq!(texts(&fired["labels"]), BTreeMap::from(expected));
    let summary = format!("Redis does not answer {instance}");
    let annotations = texts(&fired["annotations"]);
    assert_eq!(annotations["summary"], summary);
    let description = annotations["description"];
    assert!(description.starts_with("Its health is 0"), "{description}");
    assert!(description.ends_with("on_failure: local, open or closed."), "{description}");
    assert_eq!(annotations["runbook_url"], "docs/runbooks/RedisUnhealthy.md");
    assert_eq!(annotations["dashboard"], "tollgate-overview");
    println!("RedisUnhealthy arrived after {:.1} s", started.elapsed().as_secs_f64());

    // Its circuit is open as well, which nobody need be told: same cause, same instance.
    world.wait("what follows from it is inhibited", || {
        let known = world.alertmanager.json("/api/v2/alerts");
        let follows = |it: &&Value| it["labels"]["alertname"] == "CircuitBreakerOpen";
        let inhibited = known.as_array().unwrap().iter().filter(follows).map(|it| {
            assert_eq!(it["labels"]["service"], "redis");
            it["status"]["state"] == "suppressed"
                && !it["status"]["inhibitedBy"].as_array().unwrap().is_empty()
        });
        inhibited.eq([true])
    });

    world.redis.resume();
    let flood = Flood::of(&world.tollgate);
    let resolved = world.told("pager", "RedisUnhealthy", "resolved");
    assert_eq!(resolved["labels"], fired["labels"]);
    println!("and that it is over after {:.1} s", started.elapsed().as_secs_f64());

    // One caller who is refused some hundred times a second: the pager, and those of security.
    let fired = world.told("pager", "PossibleDDoSAttack", "firing");
    assert_eq!(world.told("security", "PossibleDDoSAttack", "firing")["labels"], fired["labels"]);
    let expected = [
        ("alertname", "PossibleDDoSAttack"),
        ("category", "ratelimit"),
        ("cluster", "default"),
        ("job", "tollgate"),
        ("severity", "critical"),
        ("team", "platform"),
    ];
    assert_eq!(texts(&fired["labels"]), BTreeMap::from(expected));
    let description = texts(&fired["annotations"])["description"];
    assert!(description.contains("requests a second are answered 429"), "{description}");
    println!("PossibleDDoSAttack arrived after {:.1} s", started.elapsed().as_secs_f64());
    drop(flood);
    world.told("security", "PossibleDDoSAttack", "resolved");
    println!("and that it is over after {:.1} s", started.elapsed().as_secs_f64());

    // And nothing else woke anybody. Lag is not asked about: it is the machine's, and what the
    // gauge calls 15 seconds is as long here.
    let mut names: Vec<String> = world
        .notified("pager")
        .iter()
        .filter(|it| it["labels"]["category"] != "backpressure")
        .map(|it| it["labels"]["alertname"].as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names.dedup();
    assert_eq!(names, ["PossibleDDoSAttack", "RedisUnhealthy"]);
}
