//! Every metric, as the page of metrics documents it: the page, the start, and what moves each of
//! them in a tollgate that really runs, with a real Redis and a real PostgreSQL.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/frames.rs"]
mod frames;
#[path = "support/moves.rs"]
mod moves;
#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/prometheus.rs"]
mod prometheus;
#[path = "support/redis.rs"]
mod redis;
#[path = "support/story.rs"]
mod story;
mod support;
#[path = "support/tokens.rs"]
mod tokens;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use tollgate::metrics::names;
use tollgate::metrics::page;

use moves::{MOVES, NOT_MOVED, Scrape};
use story::{World, request, scrape};
use support::{Backend, Start, nobody, wait_until};

#[test]
fn the_page_of_metrics_is_made_from_the_registry() {
    let printed = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["schema", "metrics"])
        .output()
        .expect("tollgate runs");
    assert!(printed.status.success());
    let printed = String::from_utf8(printed.stdout).unwrap();
    let shipped = std::fs::read_to_string("docs/metrics.md").unwrap();
    assert!(
        printed == shipped,
        "docs/metrics.md is not what the registry says; run: \
         cargo run -q -- schema metrics > docs/metrics.md"
    );
}

#[test]
fn every_metric_says_what_it_means_and_every_label_what_it_holds() {
    for desc in names::ALL {
        let name = desc.name;
        assert!(desc.meaning.len() > 20, "{name} has no meaning: its second text in names.rs");
        assert!(desc.meaning.ends_with('.'), "{name}: {}", desc.meaning);
        assert_ne!(desc.meaning, desc.help, "{name}");
        for (label, values) in desc.labels.iter().zip(desc.values) {
            let is_open = page::origin(label).is_some();
            assert!(
                values.is_empty() == is_open,
                "{name}: label {label} needs its closed set, `\"{label}\": TheEnum` in names.rs \
                 (an enum of metrics::labels), or else its origin in OPEN of metrics/page.rs"
            );
        }
    }
    for core in names::CORE {
        assert!(names::ALL.iter().any(|desc| desc.name == core), "{core} is promised");
    }
}

#[test]
fn every_metric_has_a_line_that_says_what_moves_it() {
    let declared: BTreeSet<&str> = names::ALL.iter().map(|desc| desc.name).collect();
    let lines = || MOVES.iter().map(|(name, ..)| *name).chain(NOT_MOVED.iter().map(|it| it.0));
    let told: BTreeSet<&str> = lines().collect();
    assert_eq!(told.len(), lines().count(), "a metric has two lines");
    let untold: Vec<_> = declared.difference(&told).collect();
    assert!(
        untold.is_empty(),
        "in MOVES of tests/support/moves.rs there is no line for {untold:?}"
    );
    let gone: Vec<_> = told.difference(&declared).collect();
    assert!(gone.is_empty(), "{gone:?} are no metrics");
    assert!(NOT_MOVED.len() <= 11, "the list of what is not moved may only become shorter");
    assert!(NOT_MOVED.iter().all(|(_, reason)| reason.len() > 15), "a reason for each");
}

/// A tollgate with nothing else: 205 rules, and room for few callers; of three backends one is two,
/// and one is not there.
fn alone() -> (Scrape, Scrape) {
    let backend = Backend::spawn(|mut connection| {
        while let Some(seen) = connection.request() {
            match seen.target() {
                "/broken" => return connection.reset(),
                "/late" => std::thread::sleep(Duration::from_millis(400)),
                _ => {}
            }
            connection.ok("ok");
        }
    });
    let rules: String =
        (0..205).map(|index| format!("- {{ name: r{index}, path: /r{index} }}\n")).collect();
    let tiers = format!(
        "default_tier: free\ntiers: {{ free: {{ per_minute: 100 }} }}\nendpoints:\n{rules}"
    );
    let config = format!(
        "server: {{ trusted_proxies: [127.0.0.0/8] }}\n\
         store: {{ memory: {{ max_identities: 1 }} }}\n\
         upstream: {{ per_try_timeout: 100ms, retry_budget: 1, urls: ['http://{}', \
         'http://localhost:{}', 'http://{}'] }}\n",
        backend.address,
        backend.address.port(),
        nobody(),
    );
    let tollgate = Start::default().config(&config).tiers(&tiers).run();
    let start = scrape(&tollgate);
    let from = |caller: usize| format!("X-Forwarded-For: 198.51.100.{}\r\n", caller % 250);
    assert_eq!(request(tollgate.data, "/late", &from(0)), 200);
    wait_until("the budget of retries is spent", || {
        // One in eight: a backend that broke off half of all would not be asked any more.
        for number in 0..80 {
            let path = if number % 8 == 0 { "/broken" } else { "/" };
            request(tollgate.data, path, &from(number));
        }
        tollgate.metric("tollgate_upstream_retries_skipped_total") >= 1.0
    });
    wait_until("callers are forgotten", || {
        for index in 0..100 {
            let field = format!("X-Forwarded-For: 203.0.113.{index}\r\n");
            assert_eq!(request(tollgate.data, "/", &field), 200);
        }
        tollgate.metric("tollgate_store_evictions_total") >= 1.0
    });
    std::fs::write(tollgate.path("tiers.yaml"), "tiers: nonsense").unwrap();
    let other = config.replace("store:", "headers: { expose_cors: false }\nstore:");
    std::fs::write(tollgate.path("tollgate.yaml"), other).unwrap();
    tollgate.signal("HUP");
    wait_until("both files are looked at", || {
        tollgate.metric("tollgate_config_last_reload_successful") == 0.0
            && tollgate.metric("tollgate_config_restart_pending") == 1.0
    });
    (start, scrape(&tollgate))
}

#[test]
fn every_documented_metric_moves_as_documented() {
    let Some(mut world) = World::new() else { return };
    let mut story = world.tell();
    (story.alone_start, story.alone) = alone();
    assert!(world.backend.connections() >= 2);

    let mut wrong = String::new();
    for (name, done, _) in MOVES.iter().filter(|(.., is_seen)| !is_seen(&story)) {
        wrong += &format!("{name} does not show it: {done}\n");
        let parts = ["", "_bucket", "_sum", "_count"];
        for series in parts.iter().map(|part| format!("{name}{part}")) {
            for (series, value) in story.end.matching(&series) {
                wrong += &format!("    {series} {} -> {value}\n", story.start.sum(series));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    for desc in names::ALL {
        let declared = format!("# TYPE {} ", desc.name);
        assert!(story.end.text.contains(&declared), "{} is not shown", desc.name);
        assert!(story.start.text.contains(&declared), "{} is not there at the start", desc.name);
    }
    lint(&story.end.text);
}

/// What Prometheus's own tool says of names that are as they are on purpose: one is a promise, the
/// other counts in the unit in which certificates are renewed.
const ON_PURPOSE: [&str; 2] = ["memory_objects_count ", "tollgate_tls_certificate_expiry_days "];

/// Asks Prometheus's own tool what is wrong with a reading.
fn lint(text: &str) {
    let Some(promtool) = prometheus::program("promtool") else { return };
    let mut command = Command::new(promtool);
    command.args(["check", "metrics"]).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let mut found = String::new();
    child.stdout.take().unwrap().read_to_string(&mut found).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut found).unwrap();
    child.wait().unwrap();
    let odd: Vec<&str> = found
        .lines()
        .filter(|line| !ON_PURPOSE.iter().any(|name| line.starts_with(name)))
        .collect();
    assert!(odd.is_empty(), "{odd:#?}");
}
