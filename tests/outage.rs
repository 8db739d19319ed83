//! Several real processes before one backend lose the Redis that they share, and get it back: what the
//! backend saw is held to the limits, and to what would have passed had Redis been there. Needs a
//! `redis-server`; without one each test says that it is skipped.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/redis.rs"]
mod redis;
mod support;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tollgate::clock::monotonic;
use tollgate::limiter::check::{Limits, State, States, check};
use tollgate::limiter::decision::Verdict;
use tollgate::limiter::quota::{Bucket, LimitSet, Mode};
use tollgate::limiter::time::Timestamp;

use redis::RedisServer;
use support::{Backend, Start, Tollgate, wait_until};

/// By how much requests may come closer together on their way through a busy machine.
const JITTER: Duration = Duration::from_millis(500);

/// How Redis is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// It stands still, and goes on with all that it has.
    Pause,
    /// It is killed, and comes back empty.
    Kill,
}

/// One run.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Of 100 requests, so many come in at each process.
    weights: &'static [u64],
    per_second: f64,
    tier: &'static str,
    limits: Limits,
    loss: Loss,
    /// Seconds before, in and after the outage.
    spans: [u64; 3],
}

/// What it came to.
struct Outcome {
    /// When a request was sent, and when one came to the backend; since the beginning.
    sent: Vec<Duration>,
    seen: Vec<Duration>,
    outage: [Duration; 2],
    statuses: Vec<u16>,
}

fn limits(second: Option<(u32, u32)>, minute: u32) -> Limits {
    let some = |number| std::num::NonZeroU32::new(number);
    let mut limits = Limits { set: LimitSet::default(), mode: Mode::Enforce };
    limits.set.second = second
        .map(|(rate, burst)| Bucket { rate: some(rate).unwrap(), burst: some(burst).unwrap() });
    limits.set.minute = some(minute);
    limits
}

/// A backend that notes when it was asked.
fn backend(seen: &Arc<Mutex<Vec<Instant>>>) -> Backend {
    let seen = Arc::clone(seen);
    Backend::spawn(move |mut connection| {
        while connection.head().is_some() {
            seen.lock().unwrap().push(monotonic());
            if !connection.ok("ok") {
                return;
            }
        }
    })
}

fn start(backend: &Backend, server: &RedisServer, run: &Run) -> Tollgate {
    let config = format!(
        "server: {{ workers: 1 }}
store: {{ redis: {{ url: '{}', timeout: 50ms, expected_replicas: {} }} }}
",
        server.url(),
        run.weights.len()
    );
    let tiers = format!("default_tier: free\ntiers:\n  free: {{ {} }}\n", run.tier);
    let start = Start::default().upstream(backend.address).config(&config).tiers(&tiers);
    match std::env::var_os("TOLLGATE_BIN") {
        Some(program) => start.program(program.into()).run(),
        None => start.run(),
    }
}

fn mode(tollgate: &Tollgate) -> String {
    let health = tollgate.admin("/health").text();
    let health: serde_json::Value = serde_json::from_str(&health).unwrap();
    health["rate_limiter"]["mode"].as_str().unwrap().to_owned()
}

/// When each process is asked: evenly spread, with the first of each a little later than the one
/// before.
fn schedule(run: &Run, process: usize) -> Vec<Duration> {
    let whole: u64 = run.weights.iter().sum();
    let every = whole as f64 / (run.per_second * run.weights[process] as f64);
    let seconds = run.spans.iter().sum::<u64>() as f64;
    let first = 0.013 * process as f64;
    let count = ((seconds - first) / every) as usize;
    (0..count).map(|index| Duration::from_secs_f64(first + every * index as f64)).collect()
}

fn play(run: Run) -> Option<Outcome> {
    let mut server = RedisServer::spawn()?;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let backend = backend(&seen);
    let processes: Vec<Tollgate> =
        run.weights.iter().map(|_| start(&backend, &server, &run)).collect();
    wait_until("all are with redis", || processes.iter().all(|it| mode(it) == "exact"));
    let began = monotonic();
    let at = |seconds: u64| began + Duration::from_secs(seconds);
    let clients: Vec<_> = processes
        .iter()
        .enumerate()
        .map(|(index, process)| {
            let (mut client, schedule) = (process.connect(), schedule(&run, index));
            std::thread::spawn(move || {
                let mut sent = Vec::new();
                for due in schedule {
                    std::thread::sleep((began + due).saturating_duration_since(monotonic()));
                    let at = monotonic();
                    sent.push((at.duration_since(began), client.get("/").status));
                }
                sent
            })
        })
        .collect();
    std::thread::sleep(at(run.spans[0]).saturating_duration_since(monotonic()));
    let lost = began.elapsed();
    match run.loss {
        Loss::Pause => server.pause(),
        Loss::Kill => server.kill(),
    }
    std::thread::sleep(at(run.spans[0] + run.spans[1]).saturating_duration_since(monotonic()));
    assert!(processes.iter().all(|it| mode(it) == "local"), "{run:?}");
    let back = began.elapsed();
    match run.loss {
        Loss::Pause => server.resume(),
        Loss::Kill => server.start(),
    }
    let mut sent: Vec<(Duration, u16)> =
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    sent.sort_unstable();
    wait_until("all are with redis again", || processes.iter().all(|it| mode(it) == "exact"));
    let mut seen: Vec<Duration> =
        seen.lock().unwrap().iter().map(|at| at.duration_since(began)).collect();
    seen.sort_unstable();
    let by_second = |times: &mut dyn Iterator<Item = Duration>| {
        let mut seconds = std::collections::BTreeMap::new();
        times.for_each(|at| *seconds.entry(at.as_secs()).or_insert(0) += 1);
        seconds.into_values().collect::<Vec<usize>>()
    };
    println!("lost at {lost:?}, back at {back:?}");
    println!("sent {:?}", by_second(&mut sent.iter().map(|(at, _)| *at)));
    println!("seen {:?}", by_second(&mut seen.iter().copied()));
    let (sent, statuses) = sent.into_iter().unzip();
    Some(Outcome { sent, seen, outage: [lost, back], statuses })
}

struct One(State);

impl States for One {
    fn state(&mut self, _index: usize) -> &mut State {
        &mut self.0
    }
}

impl Outcome {
    /// The most that any minute held.
    fn most_in_a_minute(&self) -> usize {
        let minute = Duration::from_secs(60) - JITTER;
        let (mut first, mut most) = (0, 0);
        for (index, at) in self.seen.iter().enumerate() {
            while self.seen[first] + minute <= *at {
                first += 1;
            }
            most = most.max(index - first + 1);
        }
        most
    }

    /// The most that a bucket of this rate was ever in debt.
    fn most_debt(&self, rate: f64) -> f64 {
        let (mut debt, mut last, mut most) = (0.0_f64, Duration::ZERO, 0.0_f64);
        for at in &self.seen {
            debt = (debt - (*at - last).as_secs_f64() * rate).max(0.0) + 1.0;
            (last, most) = (*at, most.max(debt));
        }
        most
    }

    /// What passed from the outage's beginning on, in parts of what the limiter alone would have let
    /// pass of the same requests.
    fn passed(&self, limits: Limits) -> f64 {
        let mut state = One(State::default());
        let mut expected = 0_usize;
        for at in &self.sent {
            let now = Timestamp::from_micros(1_700_000_000_000_000 + at.as_micros() as u64);
            let decision = check(&mut state, &[limits], 1, now);
            expected += usize::from(decision.verdict == Verdict::Allow && *at >= self.outage[0]);
        }
        let passed = self.seen.iter().filter(|at| **at >= self.outage[0]).count();
        passed as f64 / expected as f64
    }
}

/// Nobody meets an error, and nobody waits.
fn expect_decided(outcome: &Outcome) {
    assert!(outcome.statuses.iter().all(|it| [200, 429].contains(it)), "{:?}", outcome.statuses);
}

const SKEWED: &[u64] = &[60, 30, 10];

fn a_minutes_limit_holds(loss: Loss) {
    let limits = limits(None, 100);
    let tier = "per_minute: 100";
    let run = Run { weights: SKEWED, per_second: 30.0, tier, limits, loss, spans: [2, 4, 4] };
    let Some(outcome) = play(run) else { return };
    expect_decided(&outcome);
    // All of it lies within one minute.
    assert!(outcome.seen.len() <= 100, "{} of 100", outcome.seen.len());
    // How much is lost is measured by `tests/long.sh outage`; that it is not all of it is seen here.
    assert!(outcome.seen.len() >= 60, "{} of 100", outcome.seen.len());
}

#[test]
fn a_minutes_limit_holds_through_a_pause_of_redis() {
    a_minutes_limit_holds(Loss::Pause);
}

#[test]
fn a_minutes_limit_holds_though_redis_comes_back_empty() {
    a_minutes_limit_holds(Loss::Kill);
}

#[test]
fn a_bucket_holds_through_a_pause_of_redis() {
    let limits = limits(Some((20, 40)), 1_000);
    let tier = "per_second: 20, burst: 40, per_minute: 1000";
    let loss = Loss::Pause;
    let run = Run { weights: SKEWED, per_second: 60.0, tier, limits, loss, spans: [4, 4, 4] };
    let Some(outcome) = play(run) else { return };
    expect_decided(&outcome);
    let most = outcome.most_debt(20.0);
    assert!(most <= 40.0 + 20.0 * JITTER.as_secs_f64(), "{most} of 40");
    let passed = outcome.passed(limits);
    assert!(passed >= 0.6, "{passed} of what would have passed");
}

/// `tests/long.sh outage`
#[test]
#[ignore = "minutes of four processes"]
fn a_minute_without_redis() {
    let mut results = Vec::new();
    for loss in [Loss::Pause, Loss::Kill] {
        let run = Run {
            weights: &[50, 25, 15, 10],
            per_second: 150.0,
            tier: "per_second: 120, burst: 240, per_minute: 6000, per_hour: 1000000",
            limits: limits(Some((120, 240)), 6_000),
            loss,
            spans: [75, 60, 75],
        };
        let Some(outcome) = play(run) else { return };
        expect_decided(&outcome);
        let minute = outcome.most_in_a_minute() as f64 / 6_000.0;
        let bucket = outcome.most_debt(120.0) / 240.0;
        let passed = outcome.passed(run.limits);
        println!(
            "{loss:?}: sent {}, the backend saw {}; most in a minute {:.2} %, in the bucket {:.2} %; \
             from the outage on {:.2} % of what would have passed",
            outcome.sent.len(),
            outcome.seen.len(),
            minute * 100.0,
            bucket * 100.0,
            passed * 100.0
        );
        results.push((minute, bucket, passed));
    }
    for (minute, bucket, passed) in results {
        assert!(minute <= 1.0, "{minute}");
        assert!(bucket <= 1.0 + JITTER.as_secs_f64() / 2.0, "{bucket}");
        assert!(passed >= 0.985, "{passed}");
    }
}
