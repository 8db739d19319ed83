//! The leak drill: the detector as it runs, in processes that really leak, warm up, or do neither.
//! Takes minutes, and a build that leaks on purpose: `tests/long.sh leak-drill`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]
#![allow(clippy::disallowed_methods, reason = "it waits by the real time, and ends")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

mod support;

use support::{Backend, GENEROUS, Start, Tollgate};

/// What stands for the detector's hour.
fn window() -> Duration {
    let text = std::env::var("LEAK_DRILL_WINDOW").unwrap_or_default();
    let seconds = text.trim_end_matches('s').parse().unwrap_or(240);
    Duration::from_secs(seconds)
}

/// A process of the drill, and what it has said of its memory.
struct Drill {
    name: &'static str,
    tollgate: Arc<Tollgate>,
    verdicts: Vec<(u64, String)>,
}

impl Drill {
    fn start(name: &'static str, what: &str, backend: &Backend) -> Self {
        let window = format!("{}s", window().as_secs());
        let start = Start::default().upstream(backend.address).tiers(GENEROUS);
        let start = start.variable("TOLLGATE_LEAK_DRILL", what);
        let tollgate = Arc::new(start.variable("TOLLGATE_LEAK_DRILL_WINDOW", &window).run());
        Drill { name, tollgate, verdicts: Vec::new() }
    }

    fn look(&mut self, second: u64) {
        let health: serde_json::Value =
            serde_json::from_str(&self.tollgate.admin("/health").text()).unwrap();
        let memory = &health["memory"];
        let verdict = memory["verdict"].as_str().unwrap().to_owned();
        let is_new = self.verdicts.last().is_none_or(|(_, last)| *last != verdict);
        if is_new || second.is_multiple_of(30) {
            println!(
                "{second:>4} s  {:<8} rss {:>6} MB, allocated {:>6} MB, growth {:>8} MB/s  {verdict}",
                self.name,
                memory["rss_mb"],
                memory["allocated_mb"],
                memory["growth_rate_mb_per_sec"],
            );
        }
        if is_new {
            self.verdicts.push((second, verdict));
        }
    }

    fn when(&self, verdict: &str) -> Option<u64> {
        self.verdicts.iter().find(|(_, it)| it == verdict).map(|(second, _)| *second)
    }
}

#[test]
fn a_leak_is_found_and_a_warm_up_is_not() {
    let backend = Backend::ok();
    let mut drills = [
        Drill::start("leak", "leak 51200", &backend),
        Drill::start("warm-up", "warm-up 83886080", &backend),
        Drill::start("quiet", "", &backend),
    ];
    let is_over = Arc::new(AtomicBool::new(false));
    let traffic = drills.each_ref().map(|drill| {
        let (tollgate, is_over) = (Arc::clone(&drill.tollgate), Arc::clone(&is_over));
        std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                // Now and then a connection of its own, mostly one that is kept.
                let mut client = tollgate.connect();
                for _ in 0..50 {
                    assert_eq!(client.get("/").status, 200);
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        })
    });
    let (started, whole) = (Instant::now(), window().mul_f64(1.7));
    while started.elapsed() < whole {
        let second = started.elapsed().as_secs();
        drills.iter_mut().for_each(|drill| drill.look(second));
        std::thread::sleep(Duration::from_secs(1));
    }
    is_over.store(true, Ordering::Relaxed);
    traffic.into_iter().for_each(|thread| thread.join().unwrap());
    let [leak, warm_up, quiet] = &drills;
    for drill in &drills {
        println!("{}: {:?}", drill.name, drill.verdicts);
    }
    assert!(leak.when("suspected_leak").is_some(), "{:?}", leak.verdicts);
    for innocent in [warm_up, quiet] {
        assert_eq!(innocent.when("suspected_leak"), None, "{:?}", innocent.verdicts);
        assert!(innocent.verdicts.len() > 1, "a verdict was given: {:?}", innocent.verdicts);
    }
}
