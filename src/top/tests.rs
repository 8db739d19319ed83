//! The bounds, against an exact count.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::clock::monotonic;
use crate::policy::identity::{IDENTIFIER_BYTES_MAX, Identity, IpPrefix, PrefixLengths};

use super::minutes::{MINUTES_MAX, Minute, Minutes};
use super::space_saving::{COUNTERS, SpaceSaving};
use super::summary::{Item, Summary};
use super::talkers::{By, Reporter, TopTalkers};

fn identity(number: u32) -> Identity {
    match number % 8 {
        0 => Identity::User(number.to_string().into()),
        1 => Identity::Key(number.to_string().into()),
        _ => {
            let address = Ipv4Addr::from_bits(number).into();
            Identity::Ip(IpPrefix::new(address, PrefixLengths::default()))
        }
    }
}

/// As a hash, bad enough that different identities meet.
fn hash(number: u32) -> u64 {
    u64::from(number % 1_021).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A stream of identities: few that come often, all equally, each once, in runs, or each new one
/// exactly when a counter is to be had.
fn stream() -> impl Strategy<Value = Vec<u32>> {
    let zipf =
        (any::<u64>(), 1_000_usize..6_000, 0.6_f64..2.0).prop_map(|(seed, length, power)| {
            let mut random = Random(seed);
            let number = |_| (random.unit().powf(-1.0 / power) as u32).min(1_000_000);
            (0..length).map(number).collect()
        });
    let uniform = (1_u32..2_000).prop_flat_map(|most| prop::collection::vec(0..most, 0..4_000));
    let strangers =
        (0_u32..1_000, 0_u32..5_000).prop_map(|(from, count)| (from..from + count).collect());
    let runs = (1_u32..300, 1_u32..30).prop_map(|(count, length)| {
        (0..count).flat_map(|it| (0..length).map(move |_| it)).collect()
    });
    // Some fill the counters; then strangers come, and the one that was pushed out comes again.
    let adversarial = (50_u32..150, 1_u32..40, any::<u64>()).prop_map(|(fill, rounds, seed)| {
        let mut random = Random(seed);
        let mut stream: Vec<u32> = (0..fill).collect();
        for round in 0..rounds {
            let stranger = 10_000 + round;
            stream.extend([stranger, random.below(fill), stranger, random.below(fill)]);
            stream.extend(0..random.below(fill) + 1);
        }
        stream
    });
    prop_oneof![4 => zipf, 2 => uniform, 1 => strangers, 1 => runs, 2 => adversarial]
}

/// xorshift*, good enough to draw from.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0 = self.0.max(1);
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// In (0, 1].
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, most: u32) -> u32 {
        u32::try_from(self.next() % u64::from(most.max(1))).unwrap()
    }
}

fn counted(stream: &[u32]) -> SpaceSaving {
    let mut counters = SpaceSaving::default();
    for number in stream {
        counters.record(&identity(*number), hash(*number));
    }
    counters
}

fn exact<'a>(streams: impl IntoIterator<Item = &'a Vec<u32>>) -> HashMap<Identity, u64> {
    let mut exact = HashMap::new();
    for number in streams.into_iter().flatten() {
        *exact.entry(identity(*number)).or_default() += 1;
    }
    exact
}

/// Holds a summary against the truth: `missing` is how often one that is not listed may have been
/// seen.
fn check(
    summary: &Summary,
    truth: &HashMap<Identity, u64>,
    missing: u64,
) -> Result<(), TestCaseError> {
    let total: u64 = truth.values().sum();
    prop_assert_eq!(summary.total(), total);
    prop_assert!(summary.absent() <= missing, "{} > {missing}", summary.absent());
    let mut listed = HashMap::new();
    for Item { identity, count, error } in summary.items() {
        let seen = truth.get(identity).copied().unwrap_or(0);
        prop_assert!(seen <= *count, "{identity}: {seen} > {count}");
        prop_assert!(count - error <= seen, "{identity}: {count} - {error} > {seen}");
        prop_assert!(*error <= missing, "{identity}: error {error} > {missing}");
        prop_assert!(*count >= summary.absent());
        prop_assert!(listed.insert(identity.clone(), ()).is_none(), "{identity} twice");
    }
    let surely: u64 = summary.items().iter().map(|it| it.count - it.error).sum();
    prop_assert!(surely <= total);
    for (identity, seen) in truth {
        if !listed.contains_key(identity) {
            prop_assert!(*seen <= summary.absent(), "{identity} was seen {seen} times");
        }
        if *seen > missing {
            prop_assert!(listed.contains_key(identity), "{identity}: {seen} > {missing}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn one_stream_is_within_its_bounds(stream in stream()) {
        let counters = counted(&stream);
        let (summary, truth) = (counters.summary(), exact([&stream]));
        let total = stream.len() as u64;
        check(&summary, &truth, total / COUNTERS as u64)?;
        let counts: u64 = summary.items().iter().map(|it| it.count).sum();
        prop_assert_eq!(counts, total, "every event raises one count by one");
        if truth.len() <= COUNTERS {
            prop_assert!(summary.items().iter().all(|it| it.error == 0));
            prop_assert_eq!(summary.items().len(), truth.len());
        }
    }

    #[test]
    fn merged_streams_are_within_the_bounds_of_all(
        streams in prop::collection::vec(stream(), 1..9),
        missed in prop_oneof![Just(0_u64), 1_u64..50],
        is_chain in any::<bool>(),
    ) {
        let mut truth = exact(&streams);
        let total: u64 = truth.values().sum();
        let parts = streams.iter().map(|stream| counted(stream).summary());
        let merged = if is_chain {
            // As minutes are: one worker's after the other's.
            parts.fold(Summary::default(), |all, part| Summary::merged([all, part], COUNTERS))
        } else {
            Summary::merged(parts, COUNTERS)
        };
        prop_assert!(merged.items().len() <= COUNTERS);
        check(&merged, &truth, total / COUNTERS as u64)?;

        // Whoever the missed ones were.
        let merged = merged.with_missed(missed);
        *truth.entry(identity(3)).or_default() += missed;
        check(&merged, &truth, total / COUNTERS as u64 + missed)?;
    }

    #[test]
    fn a_window_is_the_sum_of_its_minutes(
        streams in prop::collection::vec((stream(), 0_u64..4, 0_usize..3), 1..8),
        minutes in 0_u64..5,
    ) {
        let start = monotonic();
        let talkers = Arc::new(TopTalkers::new(3, start));
        let workers: Vec<Reporter> =
            (0..3).map(|worker| Reporter::new(Arc::clone(&talkers), worker)).collect();
        let mut streams = streams;
        streams.sort_by_key(|(_, minute, _)| *minute);
        for (stream, minute, worker) in &streams {
            let worker = &workers[*worker];
            worker.tick(at(start, *minute));
            for (index, number) in stream.iter().enumerate() {
                worker.record(&identity(*number), index % 3 == 0);
            }
        }
        let within = |(_, minute, _): &&(Vec<u32>, u64, usize)| *minute + minutes >= 3;
        for by in [By::Requests, By::Blocked] {
            let of = |(stream, _, _): &(Vec<u32>, u64, usize)| -> Vec<u32> {
                let step = if by == By::Blocked { 3 } else { 1 };
                stream.iter().copied().step_by(step).collect()
            };
            let seen: Vec<Vec<u32>> = streams.iter().filter(within).map(of).collect();
            let (truth, total) = (exact(&seen), seen.iter().map(Vec::len).sum::<usize>());
            let top = talkers.top(by, minutes, COUNTERS, at(start, 3));
            for Item { identity, count, error } in &top {
                let seen = truth.get(identity).copied().unwrap_or(0);
                prop_assert!(count - error <= seen && seen <= *count, "{identity}");
                prop_assert!(*error <= (total / COUNTERS) as u64);
            }
            prop_assert!(top.is_sorted_by_key(|it| std::cmp::Reverse(it.count)));
            prop_assert_eq!(top.is_empty(), total == 0);
        }
    }
}

fn at(start: Instant, minute: u64) -> Instant {
    start + Duration::from_secs(minute * 60 + 30)
}

#[test]
fn a_flood_of_strangers_takes_no_more_memory() {
    let mut counters = SpaceSaving::default();
    for number in 0..1_000_000_u32 {
        counters.record(&identity(number), u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        if number % 4 == 0 {
            counters.record(&identity(7), 7);
        }
    }
    let summary = counters.summary();
    assert_eq!(summary.items().len(), COUNTERS);
    let (lookups, counters) = counters.capacity();
    assert!(lookups <= 4 * COUNTERS && counters == COUNTERS, "{lookups} {counters}");
    let first = summary.top(1).remove(0);
    assert_eq!((first.identity, first.error), (identity(7), 0));
}

#[test]
fn the_bound_of_memory_holds_for_the_longest_names() {
    let item = std::mem::size_of::<Item>();
    let name = IDENTIFIER_BYTES_MAX + 2 * std::mem::size_of::<usize>();
    let items = 2 * COUNTERS * usize::try_from(MINUTES_MAX).unwrap();
    assert_eq!(item, 40);
    assert_eq!(items * item, 480_000);
    // Rounded up to the allocator's next size.
    assert!(items * (item + name.next_multiple_of(64)) <= 4_400_000);
}

#[test]
fn minutes_go_when_they_are_old() {
    let mut minutes = Minutes::default();
    let minute = |number| Minute {
        number,
        requests: counted(&[1, 2, 2]).summary(),
        blocked: Summary::default(),
    };
    for number in [5, 3, 5, 4] {
        minutes.add(minute(number), 5);
    }
    let numbers: Vec<u64> = minutes.since(0).map(|it| it.number).collect();
    assert_eq!(numbers, [3, 4, 5]);
    let totals: Vec<u64> = minutes.since(4).map(|it| it.requests.total()).collect();
    assert_eq!(totals, [3, 6], "one of minute 4, two of minute 5");
    minutes.forget(MINUTES_MAX + 4);
    assert_eq!(minutes.since(0).map(|it| it.number).collect::<Vec<_>>(), [4, 5]);
    minutes.add(minute(2), MINUTES_MAX + 4);
    assert_eq!(minutes.since(0).count(), 2, "too old when it comes");
}

#[test]
fn an_idle_worker_keeps_nothing_back() {
    let start = monotonic();
    let talkers = Arc::new(TopTalkers::new(2, start));
    let busy = Reporter::new(Arc::clone(&talkers), 0);
    let idle = Reporter::new(Arc::clone(&talkers), 1);
    idle.record(&identity(1), true);
    for minute in 0..20 {
        busy.tick(at(start, minute));
        busy.record(&identity(2), false);
    }
    let top = |by, minutes, minute| {
        let items = talkers.top(by, minutes, 10, at(start, minute)).into_iter();
        items.map(|it| (it.identity, it.count, it.error)).collect::<Vec<_>>()
    };
    // Nobody has collected: the oldest minutes of the busy one have become one.
    assert_eq!(top(By::Requests, 60, 19), [(identity(2), 20, 0), (identity(1), 1, 0)]);
    assert_eq!(top(By::Blocked, 60, 19), [(identity(1), 1, 0)]);
    assert_eq!(top(By::Requests, 1, 19), [(identity(2), 2, 0)]);
    assert_eq!(top(By::Requests, 1, 20), [(identity(2), 1, 0)]);
    assert_eq!(top(By::Requests, 1, 21), []);
    assert_eq!(top(By::Requests, 60, 90), [], "an hour later");
}

#[test]
fn a_worker_does_not_wait_for_a_reader() {
    let start = monotonic();
    let talkers = Arc::new(TopTalkers::new(1, start));
    let worker = Reporter::new(Arc::clone(&talkers), 0);
    worker.record(&identity(1), true);
    {
        let _reader = talkers.hold(0);
        for _ in 0..300 {
            worker.record(&identity(2), true);
        }
        worker.tick(at(start, 0));
    }
    // What it had no room for may have been anybody's, and is in everybody's bound.
    worker.tick(at(start, 0));
    let top = talkers.top(By::Requests, 1, 10, at(start, 0));
    let top: Vec<_> = top.into_iter().map(|it| (it.identity, it.count, it.error)).collect();
    assert_eq!(top, [(identity(2), 300, 44), (identity(1), 45, 44)]);
}

#[test]
fn readers_and_workers_at_once_lose_nothing() {
    let start = monotonic();
    let talkers = Arc::new(TopTalkers::new(2, start));
    let (counted, reader_left) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(3)));
    let workers: Vec<_> = (0..2)
        .map(|index| {
            let talkers = Arc::clone(&talkers);
            let (counted, reader_left) = (Arc::clone(&counted), Arc::clone(&reader_left));
            std::thread::spawn(move || {
                let worker = Reporter::new(talkers, index);
                for number in 0..50_000_u32 {
                    worker.tick(at(start, u64::from(number / 10_000)));
                    worker.record(&identity(number % 10 * 8), number % 2 == 0);
                }
                counted.fetch_add(1, Ordering::Release);
                // What met a reader until now is handed over once there is none.
                reader_left.wait();
                worker.tick(at(start, 5));
            })
        })
        .collect();
    while counted.load(Ordering::Acquire) < workers.len() {
        talkers.top(By::Requests, 60, 10, at(start, 0));
    }
    reader_left.wait();
    workers.into_iter().for_each(|it| it.join().unwrap());
    let top = talkers.top(By::Requests, 60, 20, at(start, 5));
    assert_eq!(top.len(), 10);
    assert!(top.iter().all(|it| it.count - it.error <= 10_000 && it.count >= 10_000), "{top:?}");
}
