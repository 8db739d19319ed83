//! Nothing is lost to a drain or to a reload: the real binary under load, and a client that sends
//! no request twice. Every request that was sent on an established connection has to be answered.
//!
//! `DRAIN_REQUESTS` says how many each case sends; `tests/long.sh drain` takes 100,000.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::disallowed_methods, reason = "tests wait by the real time, and end")]

#[path = "support/http2.rs"]
mod http2;
#[path = "support/load.rs"]
mod load;
mod support;

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use load::{Fast, Manner, Run, Target};
use support::{GENEROUS, Start, Tollgate, wait_until};

/// Of each case.
fn requests() -> usize {
    std::env::var("DRAIN_REQUESTS").map_or(2000, |it| it.parse().unwrap())
}

/// Clients that keep their connections, clients that replace them, and clients that pause.
const HTTP_1: &[Manner] = &[
    Manner { streams: None, requests_max: usize::MAX, pause: Duration::ZERO },
    Manner { streams: None, requests_max: usize::MAX, pause: Duration::ZERO },
    Manner { streams: None, requests_max: 1, pause: Duration::ZERO },
    Manner { streams: None, requests_max: 20, pause: Duration::from_millis(100) },
];
const HTTP_2: &[Manner] = &[
    Manner { streams: Some(16), requests_max: usize::MAX, pause: Duration::ZERO },
    Manner { streams: Some(50), requests_max: usize::MAX, pause: Duration::ZERO },
    Manner { streams: Some(4), requests_max: 20, pause: Duration::ZERO },
];

/// What became of a case.
#[derive(Default)]
struct Sum {
    sent: usize,
    answered: usize,
    connections: usize,
    twice: usize,
    failures: Vec<String>,
}

impl Sum {
    fn add(&mut self, run: &Run) {
        self.sent += run.tally.sent.load(Relaxed);
        self.answered += run.tally.answered.load(Relaxed);
        self.connections += run.tally.connections.load(Relaxed);
        self.twice += run.tally.twice.load(Relaxed);
        self.failures.extend(run.tally.failures());
    }

    fn tell(&self, case: &str, extra: &str) {
        println!(
            "{case}: {} sent, {} answered, {} failed, {} connections{extra}",
            self.sent,
            self.answered,
            self.failures.len(),
            self.connections
        );
        let failures = &self.failures[..self.failures.len().min(20)];
        assert!(failures.is_empty(), "{case}: {} failed: {failures:#?}", self.failures.len());
        assert_eq!(self.sent, self.answered, "{case}");
        assert!(self.sent >= requests(), "{case}");
    }
}

/// One tollgate after the other is sent SIGTERM under load until enough was sent.
fn drain(case: &str, manners: &[Manner], start: impl Fn() -> (Tollgate, Target)) {
    let (mut sum, mut drains) = (Sum::default(), 0);
    // Each time at another place in its clients' lives.
    let each = (requests() / 20).clamp(400, 5000);
    while sum.sent < requests() {
        let (mut tollgate, target) = start();
        let run = Run::new(target, usize::MAX);
        let clients: Vec<_> =
            manners.iter().cycle().take(manners.len() * 4).map(|it| run.client(*it)).collect();
        let enough = each + 37 * drains % each;
        wait_until_answered(&run, enough);
        run.may_refuse.store(true, Relaxed);
        tollgate.signal("TERM");
        for client in clients {
            client.join().unwrap();
        }
        assert!(tollgate.wait().success());
        sum.add(&run);
        drains += 1;
    }
    sum.tell(case, &format!(", {drains} drains, {} said goodbye to twice", sum.twice));
    assert!(manners.iter().all(|it| it.streams.is_none()) || sum.twice > 0);
}

fn wait_until_answered(run: &Run, count: usize) {
    let deadline = Instant::now() + support::PATIENCE * 5;
    while run.tally.answered.load(Relaxed) < count && run.tally.failures().is_empty() {
        assert!(Instant::now() < deadline, "too slow");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn plain(backend: &Fast) -> (Tollgate, Target) {
    let tollgate = Start::default().upstream(backend.address).tiers(GENEROUS).run();
    let target = Target { address: tollgate.data, tls: None };
    (tollgate, target)
}

#[test]
fn a_drain_under_load_loses_nothing_over_http_1() {
    let backend = Fast::spawn();
    drain("SIGTERM, HTTP/1.1", HTTP_1, || plain(&backend));
}

#[test]
fn a_drain_under_load_loses_nothing_over_http_2() {
    let backend = Fast::spawn();
    drain("SIGTERM, HTTP/2", HTTP_2, || plain(&backend));
}

/// The policy's file is rewritten and SIGHUP sent all the time.
#[test]
fn reloads_of_the_policy_under_load_lose_nothing() {
    let backend = Fast::spawn();
    let (tollgate, target) = plain(&backend);
    let run = Run::new(target, requests());
    let manners = [HTTP_1, HTTP_2].concat();
    let clients: Vec<_> = manners.iter().map(|it| run.client(*it)).collect();
    let mut written = 0;
    while clients.iter().any(|it| !it.is_finished()) {
        written += 1;
        std::fs::write(tollgate.path("tiers.yaml"), format!("# {written}\n{GENEROUS}")).unwrap();
        tollgate.signal("HUP");
        std::thread::sleep(Duration::from_millis(50));
    }
    for client in clients {
        client.join().unwrap();
    }
    let mut sum = Sum::default();
    sum.add(&run);
    let reloads = || tollgate.metric(r#"tollgate_config_reloads_total{result="ok"}"#);
    wait_until("it was reloaded", || reloads() > 0.0);
    sum.tell("policy reloads", &format!(", {} reloads", reloads()));
}
