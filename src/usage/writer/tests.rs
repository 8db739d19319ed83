//! What a worker counts is in its files, at every moment.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::limiter::time::Micros;
use crate::usage::journal::{file_name, segments_of};
use crate::usage::segment::parse;

const START: u64 = 1_780_000_000_000_000;

type Sums = HashMap<(u32, String, String, String), Counts>;

/// Everything that the journal's files say, added up.
fn read(journal: &Journal) -> Sums {
    let mut sums = Sums::new();
    for id in segments_of(journal.directory(), journal.epoch()).unwrap() {
        let bytes = std::fs::read(journal.directory().join(file_name(id))).unwrap();
        let Ok(parsed) = parse(&bytes) else { continue };
        assert_eq!((parsed.id, parsed.unread), (id, 0));
        for row in parsed.rows {
            let names = [row.identity, row.tier, row.endpoint].map(str::to_owned);
            let [identity, tier, endpoint] = names;
            *sums.entry((row.minute, identity, tier, endpoint)).or_default() += row.counts;
        }
    }
    sums.retain(|_, counts| !counts.is_zero());
    sums
}

fn user(number: usize) -> Identity {
    Identity::User(format!("{number}-{}", "x".repeat(number % 200)).into())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Any requests, at any time, with segments let go of between: the files, read as somebody would
    /// after a kill, say what a map says, after every step.
    #[test]
    fn files_agree_with_a_map_after_every_step(
        steps in prop::collection::vec((0..40_usize, 0..3_usize, 0..2_usize, 0..90_u64, 0..5_i64, 0..8_u8), 1..60),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let journal = Arc::new(Journal::open(directory.path(), 1, Duration::from_secs(1)).unwrap());
        let writer = UsageWriter::new(Arc::clone(&journal), 0);
        let (tiers, endpoints) = (["free", "premium", "internal"], ["other", "history"]);
        let mut expected = Sums::new();
        let mut tickets: Vec<(Identity, usize, usize, Ticket)> = Vec::new();
        let mut now = START;
        for (number, tier, endpoint, seconds, units, action) in steps {
            now += seconds * 1_000_000;
            let at = Timestamp::from_micros(now);
            let key = |minute, identity: &Identity, tier: usize, endpoint: usize| {
                let (tier, endpoint) = (tiers[tier].to_owned(), endpoints[endpoint].to_owned());
                (minute, identity.to_string(), tier, endpoint)
            };
            match action {
                0 => writer.finish(),
                1 => writer.tick(at),
                2 | 3 if !tickets.is_empty() => {
                    let (identity, tier, endpoint, ticket) = tickets.swap_remove(number % tickets.len());
                    let more = Counts { requests: -1, bytes_out: units, ..Counts::default() };
                    let who = Who { identity: &identity, tier: tiers[tier], endpoint: endpoints[endpoint] };
                    writer.count_more(who, ticket, at, more);
                    *expected.entry(key(ticket.minute, &identity, tier, endpoint)).or_default() += more;
                }
                _ => {
                    let identity = user(number);
                    let counts = Counts { requests: 1, units, ..Counts::default() };
                    let who = Who { identity: &identity, tier: tiers[tier], endpoint: endpoints[endpoint] };
                    let ticket = writer.count(who, at, counts);
                    *expected.entry(key(minute_of(at), &identity, tier, endpoint)).or_default() += counts;
                    tickets.push((identity, tier, endpoint, ticket));
                }
            }
            let mut expected = expected.clone();
            expected.retain(|_, counts| !counts.is_zero());
            prop_assert_eq!(read(&journal), expected);
        }
        prop_assert_eq!(journal.lost(), 0);
    }
}

#[test]
fn more_identities_than_a_segment_has_room_for_take_more_segments() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Arc::new(Journal::open(directory.path(), 1, Duration::from_secs(1)).unwrap());
    let writer = UsageWriter::new(Arc::clone(&journal), 0);
    let at = Timestamp::from_micros(START);
    let counts = Counts { requests: 1, units: 1, ..Counts::default() };
    for round in 0..2 {
        for number in 0..20_000 {
            let identity = Identity::User(format!("{number}").into());
            writer.count(Who { identity: &identity, tier: "free", endpoint: "other" }, at, counts);
        }
        let sums = read(&journal);
        assert_eq!(sums.len(), 20_000);
        assert!(sums.values().all(|it| it.requests == round + 1));
    }
    assert!(journal.sealed(0) >= 1);
    assert_eq!(journal.lost(), 0);
}

/// A file that is read while it is written is one that a kill at that moment would have left.
#[test]
fn whenever_it_is_read_it_says_what_was_counted_by_then() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Arc::new(Journal::open(directory.path(), 1, Duration::from_secs(60)).unwrap());
    let done = std::sync::atomic::AtomicI64::new(0);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    use std::sync::atomic::Ordering::SeqCst;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let writer = UsageWriter::new(Arc::clone(&journal), 0);
            let span = Micros::MINUTE.as_micros() / 100;
            for turn in 0..100_000_u64 {
                let identity = user((turn % 997) as usize);
                let who = Who { identity: &identity, tier: "free", endpoint: "other" };
                let counts = Counts { requests: 1, ..Counts::default() };
                writer.count(who, Timestamp::from_micros(START + turn * span / 100), counts);
                done.fetch_add(1, SeqCst);
            }
            is_over.store(true, SeqCst);
        });
        let mut looks = 0;
        while !is_over.load(SeqCst) || looks == 0 {
            let before = done.load(SeqCst);
            let sum: i64 = read(&journal).values().map(|it| it.requests).sum();
            let after = done.load(SeqCst);
            assert!((before..=after + 1).contains(&sum), "{sum} of {before} to {after}");
            looks += 1;
        }
        println!("{looks} looks");
    });
    let sum: i64 = read(&journal).values().map(|it| it.requests).sum();
    assert_eq!(sum, 100_000);
}

#[test]
fn a_directory_without_room_is_counted_and_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("journal");
    let journal = Arc::new(Journal::open(&place, 1, Duration::from_secs(1)).unwrap());
    let writer = UsageWriter::new(Arc::clone(&journal), 0);
    let who = Who { identity: &user(1), tier: "free", endpoint: "other" };
    let counts = Counts { requests: 1, ..Counts::default() };
    let at = Timestamp::from_micros(START);
    std::fs::remove_dir_all(&place).unwrap();
    // The one that was made beforehand still takes them.
    writer.count(who, at, counts);
    assert_eq!(journal.lost(), 0);
    writer.finish();
    for _ in 0..3 {
        writer.count(who, at, counts);
    }
    assert_eq!(journal.lost(), 3);
    std::fs::create_dir(&place).unwrap();
    writer.count(who, at, counts);
    assert_eq!((journal.lost(), read(&journal).len()), (3, 1));
}
