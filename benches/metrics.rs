//! What a request pays for being counted, and what a scrape costs.
//!
//! `cargo bench --bench metrics`

use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tollgate::clock::monotonic;
use tollgate::limiter::check::Limits;
use tollgate::limiter::decision::{Decision, LimitStatus, Verdict};
use tollgate::limiter::quota::{Bucket, LimitSet, Mode, Period};
use tollgate::limiter::time::{Micros, Timestamp};
use tollgate::metrics::cells::use_shard;
use tollgate::metrics::labels::{Ending, LimiterBackend, MethodLabel};
use tollgate::metrics::policy::{PolicyMetrics, RequestRecord};
use tollgate::metrics::registry::{Build, Metrics};
use tollgate::policy::compiled::{Policy, PolicyParts, Rule, Tier};
use tollgate::policy::identity::{IdentifierType, Identity, IpPrefix, PrefixLengths};
use tollgate::policy::plan::{Plan, RuleId, Scope, TierId, TierSource};

const NOW: Timestamp = Timestamp::from_micros(1_767_225_601_000_000);
const ROUNDS: u64 = 5_000_000;

fn limits() -> LimitSet {
    let some = NonZeroU32::new(100).unwrap_or(NonZeroU32::MIN);
    let second = Some(Bucket { rate: some, burst: some });
    LimitSet { second, minute: Some(some), hour: Some(some), ..LimitSet::default() }
}

fn policy(rules: usize) -> Policy {
    let tier = |name: &str| Tier { name: name.into(), limits: limits(), on_failure: None };
    let rule = |index| Rule {
        name: format!("rule-{index}").into(),
        cost: 1,
        exempt: false,
        mode: Mode::Enforce,
        limits: vec![Some(limits()); 4].into(),
        on_failure: None,
        slow_threshold: None,
    };
    Policy::new(PolicyParts {
        tiers: ["free", "premium", "enterprise", "internal"].map(tier).into(),
        rules: (0..rules).map(rule).collect(),
        ..PolicyParts::default()
    })
}

fn decision() -> Decision {
    let mut decision = Decision::new(Verdict::Allow, NOW);
    for period in Period::ALL {
        decision.push(LimitStatus {
            scope: 0,
            period,
            mode: Mode::Enforce,
            quota: 100,
            limit: 100,
            remaining: 50,
            wait: Micros::ZERO,
            whole_at: NOW,
        });
    }
    decision
}

/// Nanoseconds for all that one allowed request of three limits counts.
fn per_request(metrics: &Arc<Metrics>, counted: &PolicyMetrics, worker: usize) -> f64 {
    use_shard(worker);
    let upstream = metrics.upstream("default");
    let Ok(address) = "203.0.113.7".parse() else { return 0.0 };
    let identity = Identity::Ip(IpPrefix::new(address, PrefixLengths::default()));
    let mut plan = Plan::new(identity, TierId(0), TierSource::Default);
    let limits = Limits { set: limits(), mode: Mode::Enforce };
    plan.push(Scope { rule: None, key: "i", key_hash: 1, limits });
    let decision = decision();
    let start = monotonic();
    for round in 0..ROUNDS {
        let _in_flight = metrics.request_started();
        let at = NOW.plus(Micros::from_micros(round));
        let took = Duration::from_nanos(300 + round % 256);
        counted.decided(black_box(&plan), &decision, LimiterBackend::Memory, took, at);
        counted.record(black_box(&RequestRecord {
            endpoint: Some(RuleId(3)),
            evaluated: Some((TierId(0), IdentifierType::Ip)),
            units: 1,
            method: MethodLabel::Get,
            status: 200,
            ending: Ending::Answered,
            at,
            duration: Duration::from_micros(500 + round % 4096),
            overhead: Some(Duration::from_micros(20 + round % 64)),
            upstream: Some((&upstream, Duration::from_micros(400 + round % 4096))),
            bytes_in: 0,
            bytes_out: 1024,
        }));
    }
    start.elapsed().as_nanos() as f64 / ROUNDS as f64
}

fn main() {
    let build = Build { version: "bench", commit: "bench", rustc: "bench" };
    let metrics = Metrics::new(2, build, Duration::from_millis(10));
    let counted = PolicyMetrics::new(&metrics, &policy(60), Duration::from_secs(1));
    println!("one worker:  {:6.1} ns a request", per_request(&metrics, &counted, 0));
    std::thread::scope(|scope| {
        let both: Vec<_> = (0..2)
            .map(|worker| {
                let (metrics, counted) = (&metrics, &counted);
                scope.spawn(move || per_request(metrics, counted, worker))
            })
            .collect();
        for worker in both {
            println!("two workers: {:6.1} ns a request", worker.join().unwrap_or(f64::NAN));
        }
    });
    scrape(&metrics);
    // A large policy: what a scrape of five thousand series and more costs.
    let large = Metrics::new(2, build, Duration::from_millis(10));
    let rules = policy(90);
    let counted = PolicyMetrics::new(&large, &rules, Duration::from_secs(1));
    for worker in 0..2 {
        touch_all(&large, &counted, worker, 90);
    }
    scrape(&large);
}

/// Has a worker count something of every endpoint and tier.
fn touch_all(metrics: &Arc<Metrics>, counted: &PolicyMetrics, worker: usize, rules: u16) {
    use_shard(worker);
    let upstream = metrics.upstream("default");
    for round in 0..200_u64 {
        for (rule, tier) in (0..rules).flat_map(|rule| (0..4).map(move |tier| (rule, tier))) {
            counted.record(&RequestRecord {
                endpoint: Some(RuleId(rule)),
                evaluated: Some((TierId(tier), IdentifierType::Ip)),
                units: 1,
                method: MethodLabel::Get,
                status: 200,
                ending: Ending::Answered,
                at: NOW,
                duration: Duration::from_micros(500 + 777 * round),
                overhead: Some(Duration::from_micros(20 + round)),
                upstream: Some((&upstream, Duration::from_micros(400 + 777 * round))),
                bytes_in: 0,
                bytes_out: 1024,
            });
        }
    }
}

fn scrape(metrics: &Metrics) {
    let text = metrics.render(NOW);
    let mut times: Vec<Duration> = (0..50)
        .map(|_| {
            let start = monotonic();
            black_box(metrics.render(NOW));
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    let (median, worst) = (times.get(25).copied(), times.last().copied());
    println!(
        "scrape: {series} series, {} KiB, median {:?}, worst of 50 {:?}",
        text.len() / 1024,
        median.unwrap_or_default(),
        worst.unwrap_or_default()
    );
}
