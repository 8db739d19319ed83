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

/// Runs of every cell of the table.
const RUNS: u64 = 20;
/// Length of a run, where nothing else is said.
const HOURS: f64 = 3.0;
/// What a process has before anything grows.
const BASE: f64 = 60.0 * MIB;

/// What one run came to.
#[derive(Debug)]
struct Run {
    /// The last thing known.
    growth: Growth,
    /// Minutes until a leak was suspected first.
    suspected: Option<f64>,
    /// Every verdict, once for each change.
    verdicts: Vec<Verdict>,
}

/// The memory of a process at a minute, in bytes.
#[derive(Clone, Copy, Default)]
struct Now {
    resident: f64,
    slack: f64,
    connections: f64,
}

fn run(seed: u64, schedule: Schedule, hours: f64, memory: impl Fn(f64, &mut Random) -> Now) -> Run {
    run_until(|_| false, seed, schedule, hours, memory)
}

/// The same, up to a first suspicion.
fn suspicion(seed: u64, hours: f64, memory: impl Fn(f64, &mut Random) -> Now) -> Option<f64> {
    let is_over = |run: &Run| run.suspected.is_some();
    run_until(is_over, seed, Schedule::default(), hours, memory).suspected
}

fn run_until(
    is_over: impl Fn(&Run) -> bool,
    seed: u64,
    schedule: Schedule,
    hours: f64,
    memory: impl Fn(f64, &mut Random) -> Now,
) -> Run {
    let mut random = Random(seed.wrapping_mul(0x1234_5678_9abc_def1));
    let mut watch = MemoryWatch::new(schedule);
    let mut run = Run { growth: watch.growth(), suspected: None, verdicts: Vec::new() };
    let mut at = Duration::ZERO;
    while at.as_secs_f64() <= hours * 3_600.0 && !is_over(&run) {
        let minute = at.as_secs_f64() / 60.0;
        let now = memory(minute, &mut random);
        let sample = Sample {
            resident: now.resident as u64,
            slack: now.slack as u64,
            connections: now.connections as u64,
        };
        watch.observe(at, sample);
        run.growth = watch.growth();
        if run.growth.verdict == Verdict::SuspectedLeak {
            run.suspected.get_or_insert(minute);
        }
        if run.verdicts.last() != Some(&run.growth.verdict) {
            run.verdicts.push(run.growth.verdict);
        }
        at += schedule.sample;
    }
    assert!(watch.hour.len() <= 121 && watch.day.len() <= SLOW_WINDOWS, "bounded");
    run
}

/// A process with ten connections and no slack.
fn plain(resident: f64) -> Now {
    Now { resident, slack: 0.0, connections: 10.0 }
}

/// One line of the table: of [`RUNS`] runs, how many were suspected, and when the last of them.
/// A scenario gets the seed too, for a phase of its own in each run.
fn cell(name: &str, resident: impl Fn(u64, f64, &mut Random) -> f64) -> (u64, f64) {
    let found: Vec<f64> = (1..=RUNS)
        .filter_map(|seed| suspicion(seed, HOURS, |at, random| plain(resident(seed, at, random))))
        .collect();
    let latest = found.iter().copied().fold(0.0, f64::max);
    println!("{name:<40} {:>3} of {RUNS}, the last after {latest} minutes", found.len());
    (found.len() as u64, latest)
}

fn noise(random: &mut Random, mebibytes: f64) -> f64 {
    random.within(mebibytes * MIB)
}

/// Fills up to 80 MB with this time constant in minutes.
fn warm_up(minute: f64, tau: f64) -> f64 {
    80.0 * MIB * (1.0 - (-minute / tau).exp())
}

fn leak(minute: f64, kib_a_second: f64) -> f64 {
    minute * 60.0 * kib_a_second * KIB
}

/// A cache of 30 MB that is emptied every 20 minutes.
fn sawtooth(minute: f64) -> f64 {
    minute.rem_euclid(20.0) / 20.0 * 30.0 * MIB
}

/// From -1 to 1 and back within a day.
fn day(minute: f64) -> f64 {
    (minute / 1_440.0 * std::f64::consts::TAU).sin()
}

#[test]
fn what_is_flat_or_swings_is_no_leak() {
    let none = |name, resident: &dyn Fn(u64, f64, &mut Random) -> f64| {
        assert_eq!(cell(name, resident).0, 0, "{name}");
    };
    none("flat 60 MB", &|_, _, _| BASE);
    none("flat 60 MB +-1 MB", &|_, _, random| BASE + noise(random, 1.0));
    none("flat 500 MB +-10 MB", &|_, _, random| 500.0 * MIB + noise(random, 10.0));
    none("daily swing +-40 MB", &|seed, minute, random| {
        100.0 * MIB + 40.0 * MIB * day(minute + seed as f64 * 72.0) + noise(random, 1.0)
    });
    none("cache sawtooth 20 min, 30 MB", &|seed, minute, random| {
        BASE + sawtooth(minute + seed as f64) + noise(random, 1.0)
    });
    none("step +100 MB once", &|seed, minute, random| {
        let step = if minute > 60.0 + 5.0 * seed as f64 { 100.0 * MIB } else { 0.0 };
        BASE + step + noise(random, 1.0)
    });
    none("spikes, 1 % of samples 200 MB", &|_, _, random| {
        let spike = if random.unit() < 0.01 { 200.0 * MIB } else { 0.0 };
        BASE + spike + noise(random, 1.0)
    });
}

#[test]
fn a_warm_up_is_no_leak_and_a_trickle_is_below_the_threshold() {
    for tau in [20.0, 60.0, 90.0] {
        let name = format!("warm-up, tau {tau} min, +80 MB");
        let memory = |_, minute, random: &mut _| BASE + warm_up(minute, tau) + noise(random, 1.0);
        assert_eq!(cell(&name, memory).0, 0, "{name}");
    }
    let steep = |_, minute, random: &mut _| BASE + 5.0 * warm_up(minute, 60.0) + noise(random, 1.0);
    assert_eq!(cell("warm-up, tau 60 min, +400 MB", steep).0, 0);
    let trickle = |_, minute, random: &mut _| BASE + leak(minute, 5.0) + noise(random, 1.0);
    assert_eq!(cell("leak 5 KB/s", trickle).0, 0, "that is for the slow detector");
}

#[test]
fn every_leak_is_found() {
    for kib in [20.0, 100.0] {
        let all = |name: &str, resident: &dyn Fn(u64, f64, &mut Random) -> f64| {
            let (count, latest) = cell(&format!("leak {kib} KB/s{name}"), resident);
            assert_eq!(count, RUNS, "{kib} KB/s{name}");
            assert!((80.0..=120.0).contains(&latest), "{kib} KB/s{name}: {latest}");
        };
        all("", &|_, minute, random| BASE + leak(minute, kib) + noise(random, 1.0));
        all(" +-10 MB", &|_, minute, random| BASE + leak(minute, kib) + noise(random, 10.0));
        all(" with the sawtooth", &|seed, minute, random| {
            BASE + leak(minute, kib) + sawtooth(minute + seed as f64) + noise(random, 1.0)
        });
    }
}

#[test]
fn free_pages_of_the_allocator_are_fragmentation_and_no_leak() {
    for seed in 1..=RUNS {
        let creeping = run(seed, Schedule::default(), HOURS, |minute, random| Now {
            resident: BASE + leak(minute, 20.0) + noise(random, 1.0),
            slack: 5.0 * MIB + leak(minute, 20.0),
            connections: 10.0,
        });
        assert_eq!(creeping.suspected, None);
        assert_eq!(creeping.growth.verdict, Verdict::Fragmented);
        let after_a_burst = run(seed, Schedule::default(), 2.0, |_, random| Now {
            resident: 70.0 * MIB + noise(random, 1.0),
            slack: 55.0 * MIB,
            connections: 10.0,
        });
        assert_eq!(after_a_burst.growth.verdict, Verdict::Fragmented);
        // A heap full of holes does not hide that what is in use grows.
        let leaking = suspicion(seed, HOURS, |minute, random| Now {
            resident: 200.0 * MIB + leak(minute, 20.0) + noise(random, 1.0),
            slack: 150.0 * MIB,
            connections: 10.0,
        });
        assert!(leaking.is_some());
    }
}

#[test]
fn memory_that_comes_with_connections_is_traffic() {
    // 500 connections become 2,300; each takes 48 KB.
    let connections = |minute: f64| 500.0 + minute * 10.0;
    let traffic = |minute: f64| connections(minute) * 48.0 * KIB;
    for seed in 1..=RUNS {
        let growing = run(seed, Schedule::default(), HOURS, |minute, random| Now {
            resident: BASE + traffic(minute) + leak(minute, 3.0) + noise(random, 1.0),
            slack: 0.0,
            connections: connections(minute) + random.within(20.0),
        });
        assert_eq!(growing.suspected, None);
        assert_eq!(growing.growth.verdict, Verdict::Growing);
        let leaking = suspicion(seed, HOURS, |minute, random| Now {
            resident: BASE + traffic(minute) + leak(minute, 100.0) + noise(random, 1.0),
            slack: 0.0,
            connections: connections(minute) + random.within(20.0),
        });
        assert!(leaking.is_some(), "more for each connection");
        let few = suspicion(seed, HOURS, |minute, random| Now {
            resident: BASE + leak(minute, 20.0) + noise(random, 1.0),
            slack: 0.0,
            connections: 1.0 + (minute / 20.0).floor(),
        });
        assert!(few.is_some(), "no connection takes megabytes");
    }
}

#[test]
fn a_trickle_is_found_within_a_day_and_a_half_and_a_daily_swing_is_not_one() {
    // The fast detector has its own tests: here it is asked once an hour.
    let hourly = Schedule { evaluate: Duration::from_secs(3_600), ..Schedule::default() };
    for seed in 1..=RUNS {
        let of = |hours, memory: &dyn Fn(f64) -> f64| {
            run(seed, hourly, hours, |minute, random| plain(memory(minute) + noise(random, 5.0)))
        };
        let found = of(30.0, &|minute| BASE + leak(minute, 2.0)).suspected;
        assert!(found.is_some_and(|minute| minute >= 24.0 * 60.0), "{found:?}");
        let phase = seed as f64 * 72.0;
        let swing = of(60.0, &|minute| 300.0 * MIB + 100.0 * MIB * day(minute + phase));
        assert_eq!(swing.suspected, None, "seed {seed}");
    }
}

#[test]
fn nothing_is_said_before_the_window_is_full_and_a_suspicion_ends_with_the_growth() {
    let leaks_for = 120.0;
    let memory = |minute: f64, random: &mut Random| {
        plain(BASE + leak(minute.min(leaks_for), 50.0) + noise(random, 1.0))
    };
    let run = |hours| run(1, Schedule::default(), hours, memory);
    let early = run(69.0 / 60.0);
    assert_eq!(early.growth, Growth::default());
    assert_eq!(early.growth.verdict, Verdict::InsufficientData);
    let first = run(70.0 / 60.0);
    assert_eq!(first.growth.verdict, Verdict::Growing, "once is not often enough");
    assert!((first.growth.bytes_per_second / KIB - 50.0).abs() < 2.0, "{:?}", first.growth);
    let whole = run(5.0);
    let verdicts = [
        Verdict::InsufficientData,
        Verdict::Growing,
        Verdict::SuspectedLeak,
        Verdict::Growing,
        Verdict::Stable,
    ];
    assert_eq!(whole.suspected, Some(80.0));
    let without_growing = |it: &&Verdict| **it != Verdict::Growing;
    let shown: Vec<_> = whole.verdicts.iter().filter(without_growing).collect();
    let expected: Vec<_> = verdicts.iter().filter(without_growing).collect();
    assert_eq!(shown, expected, "{:?}", whole.verdicts);
    let falling = |minute: f64, _: &mut Random| plain(500.0 * MIB - leak(minute, 20.0));
    let shrinking = self::run(1, Schedule::default(), 2.0, falling);
    assert!(shrinking.growth.bytes_per_second < -19.0 * KIB);
    assert_eq!(shrinking.growth.verdict, Verdict::Stable);
}

#[test]
fn a_drills_schedule_keeps_the_proportions() {
    let drill = Schedule::with_window(Duration::from_secs(240));
    let expected = Schedule {
        sample: Duration::from_secs(2),
        evaluate: Duration::from_secs(20),
        grace: Duration::from_secs(40),
        window: Duration::from_secs(240),
    };
    assert_eq!(drill, expected);
    let found = run(1, drill, 0.1, |minute, random| Now {
        resident: BASE + leak(minute, 50.0) + noise(random, 0.2),
        ..Now::default()
    });
    assert!(found.suspected.is_some_and(|minute| minute < 5.5), "{found:?}");
}
