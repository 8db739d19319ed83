//! What the detector says of processes whose memory is known, on a simulated clock.

use super::*;

/// Seeded, so that a run can be had again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From `-width` to `width`.
    fn within(&mut self, width: f64) -> f64 {
        (self.unit() * 2.0 - 1.0) * width
    }
}

const RUNS: u64 = 20;
const HOURS: f64 = 3.0;

/// What one run came to.
#[derive(Debug, Default)]
struct Outcome {
    /// Minutes until a leak was suspected first.
    suspected: Option<f64>,
    /// The last verdict.
    verdict: Verdict,
    growth: f64,
}

/// Runs `hours` of a process. `memory` gives resident bytes, slack and connections at a minute.
fn run(
    seed: u64,
    hours: f64,
    mut memory: impl FnMut(f64, &mut Random) -> (f64, f64, f64),
) -> Outcome {
    let mut random = Random(seed.wrapping_mul(0x1234_5678_9abc_def1));
    let schedule = Schedule::default();
    let mut watch = MemoryWatch::new(schedule);
    let mut outcome = Outcome::default();
    let mut at = Duration::ZERO;
    while at.as_secs_f64() <= hours * 3_600.0 {
        let minute = at.as_secs_f64() / 60.0;
        let (resident, slack, connections) = memory(minute, &mut random);
        let sample = Sample {
            resident: resident as u64,
            slack: slack as u64,
            connections: connections as u64,
        };
        watch.observe(at, sample);
        let growth = watch.growth();
        if growth.verdict == Verdict::SuspectedLeak {
            outcome.suspected.get_or_insert(minute);
        }
        (outcome.verdict, outcome.growth) = (growth.verdict, growth.bytes_per_second);
        at += schedule.sample;
    }
    outcome
}

/// Of [`RUNS`] runs, how many suspected a leak, and after how many minutes the last of them did.
fn suspected(name: &str, hours: f64, memory: impl Fn(f64, &mut Random) -> f64) -> (u64, f64) {
    let (mut count, mut latest) = (0, 0.0_f64);
    for seed in 1..=RUNS {
        let outcome = run(seed, hours, |minute, random| (memory(minute, random), 0.0, 10.0));
        if let Some(minute) = outcome.suspected {
            count += 1;
            latest = latest.max(minute);
        }
    }
    println!("{name:<44} {:>5.0} %  {latest:>6.1} min", count as f64 * 100.0 / RUNS as f64);
    (count, latest)
}

fn warm_up(minute: f64, tau: f64) -> f64 {
    80.0 * MIB * (1.0 - (-minute / tau).exp())
}

fn leak(minute: f64, kib_a_second: f64) -> f64 {
    minute * 60.0 * kib_a_second * KIB
}

fn sawtooth(minute: f64, period: f64, height: f64) -> f64 {
    minute.rem_euclid(period) / period * height
}

#[test]
fn explore() {
    let n = 1.0 * MIB;
    let b = 60.0 * MIB;
    suspected("flat 60 MB +-1", HOURS, |_, r| b + r.within(n));
    suspected("flat 500 +-10", HOURS, |_, r| 500.0 * MIB + r.within(10.0 * MIB));
    for tau in [20.0, 40.0, 60.0, 90.0, 120.0] {
        suspected(&format!("warm-up tau {tau}"), HOURS, |m, r| b + warm_up(m, tau) + r.within(n));
    }
    suspected("daily swing 24 h", 48.0, |m, r| {
        100.0 * MIB + 40.0 * MIB * (m / 1440.0 * std::f64::consts::TAU).sin() + r.within(n)
    });
    suspected("sawtooth", HOURS, |m, r| b + sawtooth(m, 20.0, 30.0 * MIB) + r.within(n));
    suspected("step", HOURS, |m, r| b + if m > 90.0 { 100.0 * MIB } else { 0.0 } + r.within(n));
    suspected("spikes", HOURS, |_, r| {
        b + if r.unit() < 0.01 { 200.0 * MIB } else { 0.0 } + r.within(n)
    });
    for kib in [5.0, 20.0, 100.0] {
        suspected(&format!("leak {kib}"), HOURS, |m, r| b + leak(m, kib) + r.within(n));
        suspected(&format!("leak {kib} +-10"), HOURS, |m, r| b + leak(m, kib) + r.within(10.0 * n));
        suspected(&format!("leak {kib} saw"), HOURS, |m, r| {
            b + leak(m, kib) + sawtooth(m, 20.0, 30.0 * MIB) + r.within(n)
        });
    }
}
