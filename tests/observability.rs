//! Metrics and health, from the outside: the text that Prometheus reads, and the admin port.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tollgate::admin::failures::TokenFailures;
use tollgate::admin::server::{Timeouts, serve};
use tollgate::admin::state::{AdminState, InForce};
use tollgate::clock::{Clock, monotonic};
use tollgate::health::breaker::Outcome;
use tollgate::health::dependency::{DependencyStatus, DependencyView, LimiterView};
use tollgate::health::detector::{Detector, Queues};
use tollgate::health::heartbeat::Heartbeats;
use tollgate::health::loops::Loops;
use tollgate::health::memory::{Growth, MemoryView, Verdict};
use tollgate::health::readiness::Readiness;
use tollgate::health::upstream::UpstreamHealth;
use tollgate::health::upstreams::{Member, UpstreamGroup};
use tollgate::identity::identifier::Identifier;
use tollgate::limiter::quota::{Bucket, LimitSet, Mode};
use tollgate::limiter::time::{Micros, Timestamp};
use tollgate::metrics::edge_labels::{HandshakeResult, RefusalReason};
use tollgate::metrics::labels::{
    BreakerState, CheckResult, Dependency, Ending, FallbackMode, FallbackReason, LimiterBackend,
    LimiterMode, MethodLabel, RedisErrorKind,
};
use tollgate::metrics::names::{self, Kind};
use tollgate::metrics::policy::{PolicyMetrics, RequestRecord};
use tollgate::metrics::registry::{Build, DatabaseFigures, Metrics, RedisFigures};
use tollgate::overrides::OverrideStore;
use tollgate::policy::compiled::{Policy, PolicyParts, Rule, Tier};
use tollgate::policy::identity::{IdentifierType, Identity, IpPrefix, PrefixLengths};
use tollgate::policy::plan::{Plan, RuleId, Scope, TierId, TierSource};
use tollgate::store::counters::Counters;
use tollgate::store::memory::MemoryStore;
use tollgate::top::talkers::TopTalkers;

const NOW: Timestamp = Timestamp::from_micros(1_767_225_601_000_000);
const BUILD: Build = Build { version: "0.1.0", commit: "c0ffee", rustc: "1.95.0" };
const HOUR: Micros = Micros::from_micros(3_600_000_000);
const SLOW: Duration = Duration::from_secs(1);

fn metrics() -> Arc<Metrics> {
    Metrics::new(2, BUILD, Duration::from_millis(10))
}

fn limits(second: u32, burst: u32, minute: u32) -> LimitSet {
    let some = |value| NonZeroU32::new(value).unwrap();
    LimitSet {
        second: Some(Bucket { rate: some(second), burst: some(burst) }),
        minute: Some(some(minute)),
        ..LimitSet::default()
    }
}

/// Tiers `free` and `premium`, and rules by these names.
fn policy(rules: &[&str]) -> Policy {
    let tier = |name: &str, limits| Tier { name: name.into(), limits, on_failure: None };
    let rule = |name: &&str| Rule {
        name: (*name).into(),
        cost: 1,
        exempt: false,
        mode: Mode::Enforce,
        limits: [Some(limits(1, 1, 30)), None].into(),
        on_failure: None,
        slow_threshold: (**name == *"history").then(|| Duration::from_secs(5)),
    };
    Policy::new(PolicyParts {
        tiers: vec![tier("free", limits(5, 10, 100)), tier("premium", limits(20, 50, 500))],
        rules: rules.iter().map(rule).collect(),
        ..PolicyParts::default()
    })
}

fn record(ending: Ending, status: u16) -> RequestRecord<'static> {
    RequestRecord {
        endpoint: None,
        evaluated: Some((TierId(0), IdentifierType::Ip)),
        units: 1,
        method: MethodLabel::Get,
        status,
        ending,
        at: NOW,
        duration: Duration::from_millis(3),
        overhead: Some(Duration::from_micros(80)),
        upstream: None,
        bytes_in: 0,
        bytes_out: 100,
    }
}

/// A sample's name and sorted labels, as one string.
type Series = String;

/// The exposition, taken apart.
struct Exposition {
    kinds: BTreeMap<String, String>,
    samples: BTreeMap<Series, f64>,
}

impl Exposition {
    fn get(&self, series: &str) -> f64 {
        *self.samples.get(series).unwrap_or_else(|| panic!("no {series}"))
    }

    fn find(&self, start: &str) -> Vec<&str> {
        self.samples.keys().map(String::as_str).filter(|key| key.starts_with(start)).collect()
    }
}

/// A strict reader of the text format: HELP then TYPE, once, before the family's samples; all
/// samples of a family together; no series twice; nothing that is neither.
fn parse(text: &str) -> Exposition {
    let mut kinds = BTreeMap::new();
    let mut samples = BTreeMap::new();
    let mut help: Option<&str> = None;
    let mut family: Option<(&str, &str)> = None;
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, text) = rest.split_once(' ').expect("HELP has a text");
            assert!(!text.trim().is_empty(), "{line}");
            help = Some(name);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("TYPE has a type");
            assert_eq!(help, Some(name), "TYPE follows HELP");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "twice: {name}");
            family = Some((name, kind));
        } else {
            let (name, labels, value) = sample(line);
            let (base, kind) = family.expect("a sample belongs to a family");
            let suffix = name.strip_prefix(base).unwrap_or_else(|| panic!("{name} in {base}"));
            let fits = match kind {
                "histogram" => ["_bucket", "_sum", "_count"].contains(&suffix),
                _ => suffix.is_empty(),
            };
            assert!(fits, "{line} in a family of {kind}");
            let labels: BTreeMap<String, String> = labels.into_iter().collect();
            let pairs: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let series = format!("{name}{{{}}}", pairs.join(","));
            assert!(samples.insert(series, value).is_none(), "twice: {line}");
        }
    }
    Exposition { kinds, samples }
}

fn sample(line: &str) -> (&str, Vec<(String, String)>, f64) {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let end = line.find(|c| !is_name(c)).unwrap_or_else(|| panic!("no value: {line}"));
    let (name, rest) = line.split_at(end);
    assert!(!name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()), "{line}");
    let mut labels = Vec::new();
    let mut rest = rest;
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            assert!(label.chars().all(is_name), "{line}");
            let mut value = String::new();
            let mut characters = after.char_indices();
            let closed = loop {
                match characters.next().unwrap_or_else(|| panic!("open value: {line}")) {
                    (_, '\\') => match characters.next() {
                        Some((_, 'n')) => value.push('\n'),
                        Some((_, c @ ('\\' | '"'))) => value.push(c),
                        other => panic!("escape {other:?}: {line}"),
                    },
                    (index, '"') => break index,
                    (_, other) => value.push(other),
                }
            };
            labels.push((label.to_owned(), value));
            rest = &after[closed + 1..];
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("{line}"));
    (name, labels, value.parse().unwrap_or_else(|_| panic!("value: {line}")))
}

/// Every metric that can be made to happen, once.
fn exercise(metrics: &Arc<Metrics>, policy_metrics: &PolicyMetrics) {
    for ending in [
        Ending::Answered,
        Ending::Upstream5xx,
        Ending::UpstreamConnect,
        Ending::UpstreamTimeout,
        Ending::RateLimited,
        Ending::Shed,
        Ending::Unauthorized,
        Ending::Refused,
        Ending::ProxyError,
        Ending::ClientAbort,
    ] {
        policy_metrics.record(&record(ending, 200));
    }
    let upstream = metrics.upstream("default");
    upstream.connected(Duration::from_millis(1));
    upstream.answered(Duration::from_millis(1));
    let _pooled = metrics.pool("upstream").idle();
    metrics.set_upstream_member("10.0.0.1:80", true, 1);
    let listener = metrics.listener("0.0.0.0:8080");
    let _open = listener.connection_opened();
    listener.set_certificate_end(NOW);
    metrics.tls_configured();
    metrics.connection_refused(RefusalReason::MaxConnections);
    let mut figures = RedisFigures { queue: 3, reconnects: 1, ..RedisFigures::default() };
    figures.errors[RedisErrorKind::Timeout.index()] = 1;
    figures.fallbacks[FallbackMode::Local.index()][FallbackReason::Timeout.index()] = 1;
    figures.transitions[BreakerState::Open.index()] = 1;
    metrics.publish_redis(&figures);
    metrics.publish_database(&DatabaseFigures { queue: 2, ..DatabaseFigures::default() });
    metrics.redis_answered(Duration::from_millis(20));
    metrics.set_breaker(Dependency::Redis, BreakerState::Open);
    metrics.set_dependency_health(Dependency::Redis, 0.5);
    metrics.set_limiter_mode(LimiterMode::Local);
    metrics.set_memory_store(7, 1);
    metrics.publish_database(&DatabaseFigures::default());
    metrics.jwks_configured();
    metrics.checks_of(Dependency::Upstream).record(CheckResult::Ok, Duration::from_millis(1));
    metrics.token_looked_up(false);
    metrics.set_tokens_remembered(1);
    metrics.set_config_hash("9f2c");
}

#[test]
fn every_declared_metric_is_shown_as_declared_and_no_other() {
    let metrics = metrics();
    let policy_metrics = PolicyMetrics::new(&metrics, &policy(&["history"]), SLOW);
    exercise(&metrics, &policy_metrics);
    let shown = parse(&metrics.render(NOW));
    let declared: BTreeSet<&str> = names::ALL.iter().map(|desc| desc.name).collect();
    assert_eq!(declared.len(), names::ALL.len(), "a name is declared twice");
    let families: BTreeSet<&str> = shown.kinds.keys().map(String::as_str).collect();
    assert_eq!(families, declared);
    for desc in names::ALL {
        let kind = match desc.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        assert_eq!(shown.kinds[desc.name], kind, "{}", desc.name);
        assert!(desc.help.len() > 10 && desc.help.ends_with('.'), "{}", desc.name);
        assert_eq!(desc.kind == Kind::Counter, desc.name.ends_with("_total"), "{}", desc.name);
        let end = if desc.kind == Kind::Histogram { "_count{" } else { "{" };
        let found = shown.find(&format!("{}{end}", desc.name));
        let first = found.first().expect("a sample");
        let labels = first.split_once('{').unwrap().1.matches('=').count();
        assert_eq!(labels, desc.labels.len(), "{first}");
    }
    let samples = shown.samples.len() as f64;
    assert_eq!(shown.get("tollgate_metric_series{}"), samples);
}

#[test]
fn metric_names_stand_in_one_file_only() {
    let mut folders = vec![std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") && !path.ends_with("names.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                for desc in names::ALL {
                    let quoted = format!("\"{}", desc.name);
                    assert!(!text.contains(&quoted), "{} in {}", desc.name, path.display());
                }
                files += 1;
            }
        }
    }
    assert!(files > 10);
}

#[test]
fn the_contract_is_there_before_the_first_request() {
    let metrics = metrics();
    let _policy_metrics = PolicyMetrics::new(&metrics, &policy(&["history"]), SLOW);
    let shown = parse(&metrics.render(NOW));
    for series in [
        "rate_limit_hits_total{endpoint=history,identifier_type=ip,tier=free}",
        "rate_limit_blocks_total{endpoint=other,identifier_type=user,tier=premium}",
        "error_rate_total{endpoint=history,error_type=upstream_5xx}",
        "slow_query_count_total{query_type=upstream}",
        "query_timeout_count_total{query_type=redis}",
        "websocket_connections_active{endpoint=history}",
        "response_time_p95_seconds{endpoint=other}",
        "backpressure_db_queue_size{}",
        "backpressure_redis_queue_size{}",
        "backpressure_event_loop_lag_seconds{}",
        "backpressure_async_tasks_pending{task_type=connection}",
        "backpressure_async_tasks_pending{task_type=usage_flush}",
        "tollgate_runtime_workers_stuck{}",
        "tollgate_runtime_busy_ratio{worker=1}",
        "tollgate_runtime_lag_seconds_bucket{le=0.05,worker=control}",
        "tollgate_upstream_waiting{}",
        "rate_limit_degraded{}",
        "tollgate_limit_decisions_total{decision=block,rule=tier,window=minute}",
        "tollgate_limit_decisions_total{decision=shadow_block,rule=history,window=second}",
        "tollgate_requests_total{code_class=4xx,endpoint=other,method=GET,outcome=limited}",
        "tollgate_overhead_seconds_count{}",
        "tollgate_limiter_duration_seconds_bucket{backend=memory,le=0.001}",
        "tollgate_overhead_seconds_bucket{le=0.00005}",
        "tollgate_request_duration_seconds_bucket{endpoint=other,le=10,outcome=allowed}",
    ] {
        assert_eq!(shown.get(series), 0.0, "{series}");
    }
    assert_eq!(shown.get("rate_limit_remaining_requests{identifier_type=ip,tier=free}"), 100.0);
    let build = "tollgate_build_info{commit=c0ffee,rustc=1.95.0,version=0.1.0}";
    assert_eq!(shown.get(build), 1.0);
    assert!(shown.get("memory_rss_bytes{}") > 100_000.0);
    assert_eq!(shown.get("memory_rss_bytes{}"), shown.get("process_resident_memory_bytes{}"));
    assert!(shown.get("process_start_time_seconds{}") > 1.7e9);
}

#[test]
fn handshakes_are_counted_where_there_is_tls_and_a_certificate_runs_out() {
    let metrics = metrics();
    assert!(parse(&metrics.render(NOW)).find("tollgate_tls").is_empty());
    metrics.tls_configured();
    metrics.listener("[::]:443").set_certificate_end(NOW);
    metrics.listener("[::]:80");
    let shown = parse(&metrics.render(NOW.minus(HOUR)));
    for result in ["ok", "failed", "timeout", "evicted"] {
        assert_eq!(shown.get(&format!("tollgate_tls_handshakes_total{{result={result}}}")), 0.0);
    }
    assert_eq!(shown.get("tollgate_tls_handshakes_in_progress{}"), 0.0);
    let days = "tollgate_tls_certificate_expiry_days{listener=[::]:443}";
    assert_eq!(shown.find("tollgate_tls_certificate"), [days]);
    assert_eq!(shown.get(days), 1.0 / 24.0);

    let first = metrics.tls_handshake_started();
    let second = metrics.tls_handshake_started();
    metrics.tls_handshake_ended(HandshakeResult::Ok);
    drop(first);
    let shown = parse(&metrics.render(NOW.plus(HOUR)));
    assert_eq!(shown.get(days), -1.0 / 24.0, "it is over");
    assert_eq!(shown.get("tollgate_tls_handshakes_in_progress{}"), 1.0);
    assert_eq!(shown.get("tollgate_tls_handshakes_total{result=ok}"), 1.0);
    metrics.tls_handshake_ended(HandshakeResult::Evicted);
    drop(second);
    let shown = parse(&metrics.render(NOW));
    assert_eq!(shown.get("tollgate_tls_handshakes_in_progress{}"), 0.0);
    assert_eq!(shown.get("tollgate_tls_handshakes_total{result=evicted}"), 1.0);
    assert_eq!(shown.get("tollgate_tls_handshakes_total{result=failed}"), 0.0);
}

#[test]
fn histograms_are_cumulative_and_add_up() {
    let metrics = metrics();
    let policy_metrics = PolicyMetrics::new(&metrics, &policy(&[]), SLOW);
    for millis in [0, 1, 2, 30, 999, 20_000] {
        let duration = Duration::from_millis(millis);
        policy_metrics.record(&RequestRecord { duration, ..record(Ending::Answered, 200) });
    }
    let shown = parse(&metrics.render(NOW));
    let mut groups: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (series, value) in shown.samples.iter().filter(|(key, _)| key.contains("_bucket{")) {
        let (name, labels) = series.split_once("_bucket{").unwrap();
        let labels = labels.trim_end_matches('}').split(',');
        let (edge, rest): (Vec<&str>, Vec<&str>) = labels.partition(|it| it.starts_with("le="));
        let edge = edge[0]["le=".len()..].parse().unwrap();
        let group = format!("{name}|{}", rest.join(","));
        groups.entry(group).or_default().push((edge, *value));
    }
    assert!(groups.len() > 6);
    for (group, mut buckets) in groups {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{group}: {buckets:?}");
        let (name, labels) = group.split_once('|').unwrap();
        let last = buckets.last().unwrap();
        assert_eq!(last.0, f64::INFINITY);
        assert_eq!(last.1, shown.get(&format!("{name}_count{{{labels}}}")));
    }
    let labels = "{endpoint=other,outcome=allowed}";
    assert_eq!(shown.get(&format!("tollgate_request_duration_seconds_count{labels}")), 6.0);
    let sum = shown.get(&format!("tollgate_request_duration_seconds_sum{labels}"));
    assert!((sum - 21.032).abs() < 1e-6, "{sum}");
}

#[test]
fn what_is_evaluated_is_a_hit_and_what_is_answered_429_a_block() {
    let metrics = metrics();
    let policy_metrics = PolicyMetrics::new(&metrics, &policy(&["history"]), SLOW);
    let on_rule = |ending, status| RequestRecord {
        endpoint: Some(RuleId(0)),
        evaluated: Some((TierId(1), IdentifierType::User)),
        ..record(ending, status)
    };
    for _ in 0..3 {
        policy_metrics.record(&on_rule(Ending::Answered, 200));
    }
    policy_metrics.record(&on_rule(Ending::RateLimited, 429));
    policy_metrics.record(&on_rule(Ending::UpstreamConnect, 502));
    // Exempt, shed, malformed: not evaluated.
    for ending in [Ending::Answered, Ending::Shed, Ending::Refused] {
        policy_metrics.record(&RequestRecord { evaluated: None, ..on_rule(ending, 200) });
    }
    let shown = parse(&metrics.render(NOW));
    let labels = "{endpoint=history,identifier_type=user,tier=premium}";
    assert_eq!(shown.get(&format!("rate_limit_hits_total{labels}")), 5.0);
    assert_eq!(shown.get(&format!("rate_limit_blocks_total{labels}")), 1.0);
    let all: f64 = shown.find("rate_limit_hits_total").iter().map(|it| shown.get(it)).sum();
    assert_eq!(all, 5.0);
    let error =
        |kind| shown.get(&format!("error_rate_total{{endpoint=history,error_type={kind}}}"));
    assert_eq!([error("rate_limited"), error("upstream_connect"), error("shed")], [1.0; 3]);
    assert_eq!(error("proxy_error"), 0.0, "a malformed request is no fault of ours");
    assert_eq!(shown.get("tollgate_bytes_total{direction=out}"), 800.0);
}

#[test]
fn a_slow_answer_is_slow_by_the_rules_own_threshold() {
    let metrics = metrics();
    let policy_metrics = PolicyMetrics::new(&metrics, &policy(&["history"]), SLOW);
    let upstream = metrics.upstream("default");
    for endpoint in [None, Some(RuleId(0))] {
        let upstream = Some((&*upstream, Duration::from_secs(2)));
        policy_metrics.record(&RequestRecord {
            endpoint,
            upstream,
            ..record(Ending::Answered, 200)
        });
    }
    let shown = parse(&metrics.render(NOW));
    assert_eq!(shown.get("slow_query_count_total{query_type=upstream}"), 1.0);
    assert_eq!(shown.get("tollgate_upstream_duration_seconds_count{upstream=default}"), 2.0);
}

#[test]
fn counters_survive_a_reload_and_so_does_the_last_minute() {
    let metrics = metrics();
    let first = PolicyMetrics::new(&metrics, &policy(&["a", "history"]), SLOW);
    let on = |rule| RequestRecord { endpoint: Some(RuleId(rule)), ..record(Ending::Answered, 200) };
    first.record(&on(1));
    // The rule has moved to another place; a request that began under the old policy ends after.
    let second = PolicyMetrics::new(&metrics, &policy(&["history", "b"]), SLOW);
    second.record(&on(0));
    first.record(&on(1));
    let socket = first.websocket_opened(Some(RuleId(1)));
    drop(first);
    let shown = parse(&metrics.render(NOW));
    let labels = "{endpoint=history,identifier_type=ip,tier=free}";
    assert_eq!(shown.get(&format!("rate_limit_hits_total{labels}")), 3.0);
    assert_eq!(shown.get("websocket_connections_active{endpoint=history}"), 1.0);
    let p95 = shown.get("response_time_p95_seconds{endpoint=history}");
    assert!((p95 / 0.003 - 1.0).abs() < 0.05, "{p95}");
    drop(socket);
    let shown = parse(&metrics.render(NOW));
    assert_eq!(shown.get("websocket_connections_active{endpoint=history}"), 0.0);
}

#[test]
fn nothing_is_lost_while_workers_count_and_others_scrape() {
    let metrics = metrics();
    let policy_metrics = PolicyMetrics::new(&metrics, &policy(&[]), SLOW);
    const EACH: u32 = 5_000;
    let hits = "rate_limit_hits_total{endpoint=other,identifier_type=ip,tier=free}";
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let policy_metrics = &policy_metrics;
                scope.spawn(move || {
                    tollgate::metrics::cells::use_shard(worker);
                    (0..EACH).for_each(|_| policy_metrics.record(&record(Ending::Answered, 200)));
                })
            })
            .collect();
        let mut last = 0.0;
        while !workers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            let seen = parse(&metrics.render(NOW)).get(hits);
            assert!(seen >= last, "a counter fell from {last} to {seen}");
            last = seen;
        }
    });
    let shown = parse(&metrics.render(NOW));
    assert_eq!(shown.get(hits), f64::from(4 * EACH));
    assert_eq!(shown.get("tollgate_overhead_seconds_count{}"), f64::from(4 * EACH));
    assert_eq!(shown.get("tollgate_requests_in_flight{}"), 0.0);
}

#[test]
fn two_scrapers_see_the_same() {
    let metrics = metrics();
    let policy_metrics = PolicyMetrics::new(&metrics, &policy(&["history", "export"]), SLOW);
    exercise(&metrics, &policy_metrics);
    let stable = |text: String| -> Vec<String> {
        let of_the_system =
            |line: &&str| !line.starts_with("process_") && !line.starts_with("memory_");
        text.lines().filter(of_the_system).map(str::to_owned).collect()
    };
    assert_eq!(stable(metrics.render(NOW)), stable(metrics.render(NOW)));
}

#[test]
fn labels_are_escaped_by_either_writer() {
    let metrics = metrics();
    let name = "a\"b\\\"c\\\\d\ne";
    let policy_metrics = PolicyMetrics::new(&metrics, &policy(&[name, "a\"b"]), SLOW);
    policy_metrics
        .record(&RequestRecord { endpoint: Some(RuleId(0)), ..record(Ending::Answered, 200) });
    let shown = parse(&metrics.render(NOW));
    let hits = format!("rate_limit_hits_total{{endpoint={name},identifier_type=ip,tier=free}}");
    assert_eq!(shown.get(&hits), 1.0);
    let count =
        format!("tollgate_request_duration_seconds_count{{endpoint={name},outcome=allowed}}");
    assert_eq!(shown.get(&count), 1.0);
}

#[test]
fn rules_beyond_the_bound_share_other() {
    let metrics = metrics();
    let rules: Vec<String> = (0..205).map(|index| format!("r{index:03}")).collect();
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    let policy_metrics = PolicyMetrics::new(&metrics, &policy(&rules), SLOW);
    for rule in [0, 199, 200, 204] {
        let endpoint = Some(RuleId(rule));
        policy_metrics.record(&RequestRecord { endpoint, ..record(Ending::Answered, 200) });
    }
    let text = metrics.render(NOW);
    let shown = parse(&text);
    let hits = |endpoint: &str| {
        shown.get(&format!(
            "rate_limit_hits_total{{endpoint={endpoint},identifier_type=ip,tier=free}}"
        ))
    };
    assert_eq!([hits("r000"), hits("r199"), hits("other")], [1.0, 1.0, 2.0]);
    assert!(shown.find("rate_limit_hits_total{endpoint=r200").is_empty());
    let dropped = "tollgate_metric_series_dropped_total{metric=rate_limit_hits_total}";
    assert_eq!(shown.get(dropped), 5.0);
    // A reload of the same rules folds nothing that was not folded already; one more rule does.
    PolicyMetrics::new(&metrics, &policy(&rules), SLOW);
    assert_eq!(parse(&metrics.render(NOW)).get(dropped), 5.0);
    PolicyMetrics::new(&metrics, &policy(&[&rules[..], &["more"]].concat()), SLOW);
    assert_eq!(parse(&metrics.render(NOW)).get(dropped), 6.0);
}

#[test]
fn decisions_are_counted_by_limit_and_the_lowest_remaining_is_kept() {
    let metrics = metrics();
    let policy = policy(&["history"]);
    let policy_metrics = PolicyMetrics::new(&metrics, &policy, SLOW);
    let store = MemoryStore::new(100);
    let address = "203.0.113.7".parse().unwrap();
    let mut plan = Plan::new(
        Identity::Ip(IpPrefix::new(address, PrefixLengths::default())),
        TierId(0),
        TierSource::Default,
    );
    let scope = |rule, key, key_hash, mode| Scope {
        rule,
        key,
        key_hash,
        limits: tollgate::limiter::check::Limits {
            set: if rule.is_none() { limits(5, 10, 100) } else { limits(1, 1, 30) },
            mode,
        },
    };
    plan.push(scope(None, "i", 1, Mode::Enforce));
    plan.push(scope(Some(RuleId(0)), "e:history", 2, Mode::Shadow));
    for _ in 0..11 {
        let decision = store.check(&plan, NOW);
        let took = Duration::from_nanos(400);
        policy_metrics.decided(&plan, &decision, LimiterBackend::Memory, took, NOW);
    }
    let shown = parse(&metrics.render(NOW));
    let verdicts = |rule: &str, window: &str, decision: &str| {
        shown.get(&format!(
            "tollgate_limit_decisions_total{{decision={decision},rule={rule},window={window}}}"
        ))
    };
    assert_eq!(verdicts("tier", "second", "allow"), 10.0);
    assert_eq!(verdicts("tier", "second", "block"), 1.0);
    assert_eq!(verdicts("tier", "minute", "allow"), 11.0);
    assert_eq!(verdicts("history", "second", "shadow_block"), 10.0);
    assert_eq!(verdicts("history", "second", "block"), 0.0);
    let count = "tollgate_limiter_duration_seconds_bucket{backend=memory,le=0.000001}";
    assert_eq!(shown.get(count), 11.0);
    let remaining = "rate_limit_remaining_requests{identifier_type=ip,tier=free}";
    assert_eq!(shown.get(remaining), 0.0);
    let later = Timestamp::from_micros(NOW.as_micros() + 70_000_000);
    assert_eq!(parse(&metrics.render(later)).get(remaining), 100.0);
}

#[test]
fn the_number_of_series_stays_within_the_budget() {
    let metrics = metrics();
    let rules: Vec<String> = (0..29).map(|index| format!("r{index}")).collect();
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    let policy_metrics = PolicyMetrics::new(&metrics, &policy(&rules), SLOW);
    exercise(&metrics, &policy_metrics);
    let shown = parse(&metrics.render(NOW));
    assert!(shown.samples.len() < 3_100, "{}", shown.samples.len());
    // What grows with the policy: endpoints x (tiers x kinds x 2 + outcomes x classes + buckets x 3).
    let endpoints = rules.len() + 1;
    let bound = endpoints * (2 * 3 * 2 + 6 * 6 + 15 * 3);
    let grows = shown.samples.keys().filter(|series| series.contains("endpoint=")).count();
    assert!(grows <= bound, "{grows} of {bound}");
}

#[test]
fn the_series_of_a_rule_that_is_gone_are_shown_for_an_hour() {
    let metrics = metrics();
    let first = PolicyMetrics::new(&metrics, &policy(&["history", "export"]), SLOW);
    let endpoint = Some(RuleId(1));
    first.record(&RequestRecord { endpoint, ..record(Ending::Answered, 200) });
    let hits = "rate_limit_hits_total{endpoint=export,identifier_type=ip,tier=free}";
    let of_rule = |at: Timestamp| {
        let shown = parse(&metrics.render(at));
        let named = |series: &&String| series.contains("=export");
        (shown.samples.keys().filter(named).count(), shown.samples.get(hits).copied())
    };
    let (before, value) = of_rule(NOW);
    assert!(before > 50 && value == Some(1.0), "{before} {value:?}");
    PolicyMetrics::new(&metrics, &policy(&["history"]), SLOW);
    assert_eq!(of_rule(NOW), (before, Some(1.0)));
    let tunnel = first.websocket_opened(endpoint);
    let almost = NOW.plus(HOUR).minus(Micros::SECOND);
    assert_eq!(of_rule(almost), (before, Some(1.0)));
    // Its tunnel is still open, and counted; the rule's own limits are not shown any more.
    let (left, value) = of_rule(NOW.plus(HOUR));
    assert!(left > 50 && left < before && value == Some(1.0), "{left} of {before}");
    drop(tunnel);
    assert_eq!(of_rule(NOW.plus(HOUR)), (0, None));
    // A request that began under the old policy may end yet. It does no harm.
    first.record(&RequestRecord { endpoint, ..record(Ending::Answered, 200) });
    assert_eq!(of_rule(NOW.plus(HOUR)), (0, None));
    PolicyMetrics::new(&metrics, &policy(&["history", "export"]), SLOW);
    assert_eq!(of_rule(NOW.plus(HOUR)), (before, Some(0.0)));
}

/// An admin port on loopback, served by a thread of its own.
struct Admin {
    address: SocketAddr,
    state: Arc<AdminState>,
    limiter: Arc<AtomicU8>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

const MODES: [LimiterMode; 3] = [LimiterMode::Exact, LimiterMode::Local, LimiterMode::Closed];

impl Admin {
    fn spawn(timeouts: Timeouts) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = metrics();
        let limiter = Arc::new(AtomicU8::new(0));
        let mode = Arc::clone(&limiter);
        let scraped = Arc::clone(&metrics);
        let heartbeats = Arc::new(Heartbeats::new(2, monotonic()));
        let loops = Loops::new(metrics.runtime(), 2, monotonic());
        let (hearts, upstream) = (Arc::clone(&heartbeats), metrics.pool("upstream"));
        let counters = Arc::new(Counters::new(Arc::new(MemoryStore::new(1)), None));
        let no_policy = || Arc::new(Policy::new(PolicyParts::default()));
        let state = Arc::new(AdminState {
            metrics,
            clock: Clock::manual(NOW),
            started: monotonic(),
            version: "0.1.0",
            instance: "a".into(),
            in_force: parking_lot::RwLock::new(InForce {
                hash: "9f2c".into(),
                at: NOW,
                since: monotonic(),
            }),
            token: None,
            failures: TokenFailures::default(),
            policy: Box::new(no_policy),
            overrides: Arc::new(OverrideStore::new(Arc::clone(&counters), Box::new(no_policy))),
            counters,
            identifier: Arc::new(Identifier::new(Vec::new(), Arc::clone(&scraped))),
            subscriptions: None,
            usage: None,
            explain: OnceLock::new(),
            reload: OnceLock::new(),
            readiness: Arc::new(Readiness::default()),
            detector: Detector::new(loops, hearts, upstream, Queues::default),
            heartbeats,
            upstream: {
                let health = UpstreamHealth::new(None, Duration::from_secs(60), monotonic());
                Arc::new(UpstreamGroup::new(vec![Member::new("default", health)]))
            },
            slow_calls: Arc::default(),
            redis: Some(Box::new(|| DependencyView {
                status: DependencyStatus::Healthy,
                breaker: Some(BreakerState::Closed),
            })),
            redis_errors: Box::new(Vec::new),
            database: None,
            jwks: None,
            memory: Box::new(|| MemoryView {
                resident: Some(300 << 20),
                limit: Some(1 << 30),
                allocated: Some(200 << 20),
                growth: Growth { bytes_per_second: 20.0 * 1024.0, verdict: Verdict::Growing },
            }),
            top: Arc::new(TopTalkers::new(2, monotonic())),
            reloads: Arc::default(),
            streams: Default::default(),
            history: parking_lot::Mutex::default(),
            limiter: Box::new(move || LimiterView {
                mode: MODES[usize::from(mode.load(Ordering::Relaxed))],
                since: NOW,
            }),
            before_scrape: Box::new(move || scraped.set_memory_store(3, 0)),
        });
        state.set_in_force("9f2c");
        state.readiness.set_bound();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let served = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let shutdown = async move {
                let _ = stopped.await;
            };
            runtime.unwrap().block_on(serve(listener, served, timeouts, shutdown)).unwrap();
        });
        Admin { address, state, limiter, stop: Some(stop), thread: Some(thread) }
    }

    fn send(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    }

    fn raw(&self, bytes: &[u8]) -> String {
        let mut answer = Vec::new();
        // A refusal may end in a reset; what came before it counts.
        let _ = self.send(bytes).read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    fn get(&self, path: &str) -> (u16, String, String) {
        let answer = self.raw(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_ascii_lowercase(), body.to_owned())
    }

    /// As if its pause were over, and three calls had gone well.
    fn reach_upstream_again(&self) {
        let breaker = self.state.upstream.members()[0].health.breaker();
        for _ in 0..3 {
            let probe = breaker.probe_now(monotonic(), 0.5).unwrap();
            probe.end(Outcome::Good, monotonic(), 0.5);
        }
    }

    fn health(&self) -> (u16, serde_json::Value) {
        let (status, head, body) = self.get("/health");
        assert!(head.contains("content-type: application/json"), "{head}");
        (status, serde_json::from_str(&body).unwrap())
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.stop.take().map(|stop| stop.send(()));
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

#[test]
fn the_admin_port_answers_metrics() {
    let admin = Admin::spawn(Timeouts::default());
    let (status, head, body) = admin.get("/metrics?x=1");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{head}");
    assert!(head.contains("cache-control: no-store"), "{head}");
    let shown = parse(&body);
    assert_eq!(shown.get("dependency_health_status{dependency=upstream}"), 1.0);
    assert_eq!(shown.get("dependency_health_status{dependency=redis}"), 1.0);
    assert_eq!(shown.get("circuit_breaker_state{service=redis}"), 0.0);
    assert_eq!(shown.get("tollgate_store_identities{}"), 3.0);
    assert_eq!(shown.get("tollgate_config_hash_info{hash=9f2c}"), 1.0);
    for _ in 0..5 {
        admin.state.upstream.members()[0].health.breaker().record(Outcome::Bad, monotonic(), 0.5);
    }
    let (_, _, body) = admin.get("/metrics");
    assert_eq!(parse(&body).get("dependency_health_status{dependency=upstream}"), 0.0);
}

#[test]
fn health_has_the_promised_shape() {
    let admin = Admin::spawn(Timeouts::default());
    let (status, health) = admin.health();
    assert_eq!((status, &health["status"]), (200, &"healthy".into()));
    assert_eq!(health["backpressure"]["has_backpressure"], false);
    assert_eq!(health["backpressure"]["severity"], "normal");
    assert_eq!(health["backpressure"]["event_loop_lag_ms"], 0.0);
    assert!(health["backpressure"]["db_queue_size"].is_null(), "no database");
    assert_eq!(health["backpressure"]["workers_stuck"], 0);
    assert_eq!(health["backpressure"]["async_tasks_pending"], 0);
    let memory = serde_json::json!(
        {
            "rss_mb": 300.0,
            "percent": 29.3,
            "growth_rate_mb_per_sec": 0.01953,
            "verdict": "growing",
            "allocated_mb": 200.0,
        }
    );
    assert_eq!(health["memory"], memory);
    let dependencies = serde_json::json!(
        {
            "database": "not_configured",
            "jwks": "not_configured",
            "redis": "healthy",
            "upstream": "healthy",
        }
    );
    assert_eq!(health["dependencies"], dependencies);
    let breakers = serde_json::json!({"redis": "closed", "upstream": "closed"});
    assert_eq!(health["circuit_breakers"], breakers);
    let limiter = serde_json::json!(
        {"mode": "exact", "since": "2026-01-01T00:00:01Z", "algorithm": "multi-window"}
    );
    assert_eq!(health["rate_limiter"], limiter);
    assert_eq!((&health["instance"], &health["config_hash"]), (&"a".into(), &"9f2c".into()));
}

#[test]
fn probes_follow_the_state() {
    let admin = Admin::spawn(Timeouts::default());
    assert_eq!(admin.get("/readyz").0, 200);
    assert_eq!(admin.get("/livez").0, 200);
    for _ in 0..5 {
        admin.state.upstream.members()[0].health.breaker().record(Outcome::Bad, monotonic(), 0.5);
    }
    let (status, health) = admin.health();
    assert_eq!((status, &health["status"]), (200, &"degraded".into()), "the backend's fault");
    admin.reach_upstream_again();

    admin.limiter.store(1, Ordering::Relaxed);
    assert_eq!(admin.get("/readyz").0, 200, "a lost Redis does not take us out");
    assert_eq!(admin.health().1["status"], "degraded");
    admin.limiter.store(2, Ordering::Relaxed);
    let (status, _, body) = admin.get("/readyz");
    assert_eq!((status, &*body), (503, r#"{"status":"not_ready","reason":"limiter_closed"}"#));
    assert_eq!(admin.health().0, 503);

    admin.limiter.store(0, Ordering::Relaxed);
    admin.state.readiness.set_draining();
    assert_eq!(admin.get("/readyz").0, 503);
    assert_eq!(admin.health().0, 503);
    assert_eq!(admin.get("/livez").0, 200);
}

#[test]
fn an_unbound_listener_is_not_ready() {
    assert!(Readiness::default().unready().is_some());
}

#[test]
fn only_known_paths_and_reading_methods_are_answered() {
    let admin = Admin::spawn(Timeouts::default());
    let (status, _, body) = admin.get("/metrics/");
    assert_eq!((status, &*body), (404, r#"{"error":"Not found"}"#));
    let answer = admin.raw(b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("allow: get, head\r\n"), "{answer}");
    assert!(answer.ends_with(r#"{"error":"Method not allowed"}"#), "{answer}");
    let answer = admin.raw(b"HEAD /livez HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn malformed_requests_do_no_harm() {
    let admin = Admin::spawn(Timeouts::default());
    let huge = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "a".repeat(2_000_000));
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n\r\n\r\n",
    ] {
        let stream = admin.send(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        let _ = (&stream).read_to_string(&mut answer);
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let mut stream = TcpStream::connect(admin.address).unwrap();
    // It is cut off before it has sent all.
    let _ = stream.write_all(huge.as_bytes());
    drop(stream);
    assert_eq!(admin.get("/livez").0, 200);
}

#[test]
fn whoever_dawdles_is_cut_off_and_others_come_through() {
    let head = Duration::from_millis(200);
    let admin = Admin::spawn(Timeouts { head, whole: Duration::from_secs(2) });
    // More than may be open at once: the last ones wait until the first are cut off.
    let slow: Vec<TcpStream> = (0..100).map(|_| admin.send(b"GET /livez HTT")).collect();
    assert_eq!(admin.get("/livez").0, 200);
    for mut stream in slow {
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}
