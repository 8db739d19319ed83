//! Files are added up and deleted on time, and say the same before and after.

use proptest::prelude::*;

use super::*;
use crate::limiter::time::Micros;
use crate::usage::record::Record;
use crate::usage::segment::HEADER_WORDS;

/// A quarter past an hour in 2026.
const NOW: u32 = 29_664_015;

fn at(minute: u32) -> Timestamp {
    Timestamp::from_micros(u64::from(minute) * Micros::MINUTE.as_micros())
}

fn batch(id: SegmentId, rows: &[(u32, &str, i64)]) -> Vec<u8> {
    let words: Vec<AtomicU64> =
        (0..HEADER_WORDS + rows.len() * 32 + 8).map(|_| AtomicU64::new(0)).collect();
    let mut segment = Appender::begin(words, id, 0);
    let (tier, endpoint) = (segment.name("free").unwrap(), segment.name("other").unwrap());
    for (minute, identity, requests) in rows {
        let place = segment.row(*minute, tier, endpoint, identity).unwrap();
        segment.add(place, Counts { requests: *requests, ..Counts::default() });
    }
    segment.bytes()
}

fn id(epoch: u128, sequence: u64) -> SegmentId {
    SegmentId { stream: Stream { epoch, worker: 0 }, sequence }
}

fn take(sink: &mut FileSink, id: SegmentId, rows: &[(u32, &str, i64)], now: u32) -> bool {
    let bytes = batch(id, rows);
    let parsed = parse(&bytes).unwrap();
    let taken = sink.take(Batch { id, parsed: &parsed, bytes: &bytes, kept_from: 0 }, at(now));
    let is_new = taken.unwrap();
    sink.commit().unwrap();
    is_new
}

fn sums(sink: &FileSink) -> Vec<(u32, String, i64)> {
    let page = sink.page(&Query::everything(1000)).unwrap();
    let record = |it: Record| (it.key.start, it.key.identity.to_string(), it.counts.requests);
    page.records.into_iter().map(record).collect()
}

fn kinds(sink: &FileSink) -> Vec<Kind> {
    sink.names(false).unwrap().into_iter().map(|name| name.kind).collect()
}

#[test]
fn what_is_old_is_added_up_and_says_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let mut sink = FileSink::new(directory.path(), 1);
    assert!(take(&mut sink, id(1, 1), &[(NOW, "a", 1), (NOW, "b", 2)], NOW));
    assert!(take(&mut sink, id(1, 2), &[(NOW + 1, "a", 3), (NOW - 90, "a", 4)], NOW + 1));
    assert!(!take(&mut sink, id(1, 2), &[(NOW + 1, "a", 3)], NOW + 1), "came before");
    assert!(take(&mut sink, id(1, 3), &[(NOW, "b", -2)], NOW + 2), "given back");
    let hour = Period::Hour.start(NOW);
    let (a, b) = (sums(&sink), sink.totals(1).unwrap());
    assert_eq!(a, [(hour - 120, "a".to_owned(), 4), (hour, "a".to_owned(), 4)]);
    sink.tidy(at(NOW + 5), 0).unwrap();
    assert_eq!(kinds(&sink), [Kind::Log], "the hour is not over");
    // The next hour has a file of its own, and the last one is added up.
    assert!(take(&mut sink, id(1, 4), &[(NOW + 60, "c", 1)], NOW + 60));
    sink.tidy(at(NOW + 60), 0).unwrap();
    assert_eq!(kinds(&sink), [Kind::Minutes, Kind::Log]);
    let with_c = [&a[..], &[(hour + 60, "c".to_owned(), 1)]].concat();
    assert_eq!(sums(&sink), with_c);
    // Whoever comes next knows what was taken, wherever it is by now.
    let mut heir = FileSink::new(directory.path(), 2);
    for sequence in 1..=4 {
        assert!(!take(&mut heir, id(1, sequence), &[(NOW, "a", 9)], NOW + 61), "{sequence}");
    }
    assert!(take(&mut heir, id(1, 5), &[(NOW, "a", 1)], NOW + 61));
    let late = NOW + MINUTES_KEPT + 120;
    heir.tidy(at(late), 0).unwrap();
    heir.tidy(at(late), 0).unwrap();
    assert!(
        kinds(&heir).iter().filter(|it| **it == Kind::Hours).count() == 3,
        "{:?}",
        kinds(&heir)
    );
    let mut expected = with_c;
    expected[1].2 += 1;
    assert_eq!(sums(&heir), expected);
    let mut totals = heir.totals(1).unwrap();
    totals.get_mut("free").unwrap().requests -= 2;
    assert_eq!(totals, b);
    let minutes = Query { by: Period::Minute, ..Query::everything(1000) };
    assert!(heir.page(&minutes).unwrap().records.iter().all(|it| it.key.start % HOUR == 0));
    // Not kept any longer: the earlier hour goes with its file.
    heir.tidy(at(late), NOW + 30).unwrap();
    assert_eq!(sums(&heir), expected[2..].to_vec());
}

#[test]
fn a_file_that_was_replaced_but_not_deleted_does_not_count_twice() {
    let directory = tempfile::tempdir().unwrap();
    let mut sink = FileSink::new(directory.path(), 1);
    take(&mut sink, id(1, 1), &[(NOW, "a", 1)], NOW);
    let name = sink.names(false).unwrap()[0];
    let log = fs::read(sink.path(name)).unwrap();
    sink.log = None;
    sink.add_up(name, Kind::Minutes).unwrap();
    // Killed between the rename and the deletion.
    fs::write(sink.path(name), log).unwrap();
    assert_eq!(sums(&sink).len(), 1);
    assert_eq!(sums(&sink)[0].2, 1);
    let mut again = FileSink::new(directory.path(), 1);
    assert!(take(&mut again, id(1, 2), &[(NOW, "a", 1)], NOW), "in a log of another hour");
    assert_eq!(sums(&again)[0].2, 2);
    again.tidy(at(NOW), 0).unwrap();
    assert_eq!(sums(&again)[0].2, 2);
}

#[test]
fn a_torn_frame_is_the_end_of_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut sink = FileSink::new(directory.path(), 1);
    take(&mut sink, id(1, 1), &[(NOW, "a", 1)], NOW);
    take(&mut sink, id(1, 2), &[(NOW, "a", 1)], NOW);
    let path = sink.path(sink.names(false).unwrap()[0]);
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let expected = i64::from(length >= whole.len() / 2);
        assert_eq!(sums(&sink).first().map_or(0, |it| it.2), expected, "{length} bytes");
        let taken = sink.taken_by_stream().unwrap();
        let last = taken.values().next().copied().unwrap_or(0);
        assert_eq!(last, expected.unsigned_abs(), "what is torn comes again");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Batches of several processes, some of them again, with files added up at any time between:
    /// each counts once.
    #[test]
    fn each_batch_counts_once(
        steps in prop::collection::vec((1..4_u128, any::<bool>(), 0..90_u32, 0..3_usize), 1..40),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let (mut now, mut expected) = (NOW, 0);
        let mut last = [0_u64; 4];
        let mut sink = FileSink::new(directory.path(), 9);
        for (epoch, is_again, minutes, action) in steps {
            let known = &mut last[epoch as usize];
            let sequence = if is_again && *known > 0 { *known } else { *known + 1 };
            let is_new = take(&mut sink, id(epoch, sequence), &[(now, "a", 1)], now);
            prop_assert_eq!(is_new, sequence > *known);
            expected += i64::from(is_new);
            *known = sequence;
            now += minutes;
            match action {
                0 => sink.tidy(at(now), 0).unwrap(),
                // Another start.
                1 => sink = FileSink::new(directory.path(), 9),
                _ => {}
            }
            let sum: i64 = sums(&sink).iter().map(|it| it.2).sum();
            prop_assert_eq!(sum, expected);
        }
        let of = |epoch| sink.totals(epoch).unwrap().get("free").map_or(0, |it| it.requests);
        prop_assert_eq!((1..4).map(of).sum::<i64>(), expected);
    }
}
