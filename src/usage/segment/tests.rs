//! A segment says what was added, wherever its writer stops and however the file is cut.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn words(count: usize) -> Vec<AtomicU64> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

/// What a file would hold.
fn file(words: &[AtomicU64]) -> Vec<u8> {
    words.iter().flat_map(|cell| cell.load(Relaxed).to_le_bytes()).collect()
}

const ID: SegmentId = SegmentId { stream: Stream { epoch: 7 << 64 | 9, worker: 3 }, sequence: 12 };

struct Shared(std::sync::Arc<Vec<AtomicU64>>);

impl AsRef<[AtomicU64]> for Shared {
    fn as_ref(&self) -> &[AtomicU64] {
        &self.0
    }
}

#[test]
fn what_was_added_is_read() {
    let shared = std::sync::Arc::new(words(100));
    let mut appender = Appender::begin(Shared(shared.clone()), ID, 5);
    assert!(parse(&file(&shared)).unwrap().rows.is_empty());
    let (tier, endpoint) = (appender.name("free").unwrap(), appender.name("history").unwrap());
    let at = appender.row(77, tier, endpoint, "user:żółw").unwrap();
    appender.add(at, Counts { requests: 1, units: 5, ..Counts::default() });
    appender.add(at, Counts { requests: 1, units: -2, bytes_out: 9, ..Counts::default() });
    let bytes = file(&shared);
    let parsed = parse(&bytes).unwrap();
    assert_eq!((parsed.id, parsed.made_at, parsed.unread), (ID, 5, 0));
    let counts = Counts { requests: 2, units: 3, denied: 0, bytes_in: 0, bytes_out: 9 };
    let (identity, tier, endpoint) = ("user:żółw", "free", "history");
    assert_eq!(parsed.rows, [Row { minute: 77, identity, tier, endpoint, counts }]);
    assert_eq!(appender.bytes(), bytes[..appender.used() * 8], "what is used is all there is");
}

#[test]
fn a_full_segment_takes_no_more_and_stays_as_it_is() {
    let mut appender = Appender::begin(words(HEADER_WORDS + 3), ID, 0);
    assert_eq!(appender.name("free"), Some(0));
    assert_eq!(appender.name("a name too long"), None);
    assert_eq!(appender.row(1, 0, 0, "a"), None);
    assert!(parse(&appender.bytes()).unwrap().rows.is_empty());
}

#[test]
fn what_is_no_segment_is_said_to_be_none() {
    assert_eq!(parse(b"").unwrap_err(), Broken::Empty);
    assert_eq!(parse(&[0; 4096]).unwrap_err(), Broken::Empty);
    assert_eq!(parse(&[1; 4096]).unwrap_err(), Broken::Header);
    let good = Appender::begin(words(20), ID, 0).bytes();
    for byte in 0..USED * 8 {
        let mut bad = good.clone();
        bad[byte] ^= 4;
        assert_eq!(parse(&bad).unwrap_err(), Broken::Header, "byte {byte}");
    }
}

/// Something to count.
fn step() -> impl Strategy<Value = (u32, String, &'static str, &'static str, Counts)> {
    let counts = (0..3_i64, -5..50_i64, 0..2_i64, 0..9_i64, 0..9_i64);
    let counts = counts.prop_map(|(a, b, c, d, e)| Counts::from_array([a, b, c, d, e]));
    let names = || prop::sample::select(vec!["free", "premium", "other", "a-longer-name"]);
    (0..4_u32, "[a-zé:]{1,40}", names(), names(), counts)
}

proptest! {
    /// Against a map; and after each store of the writer the file read so far is a state that was,
    /// or the one that is being made: an entry is there with zeros or not at all.
    #[test]
    fn a_segment_agrees_with_a_map(steps in prop::collection::vec(step(), 1..60)) {
        let mut appender = Appender::begin(words(4096), ID, 0);
        let (mut names, mut places) = (HashMap::new(), HashMap::new());
        let mut sums: HashMap<(u32, String, &str, &str), Counts> = HashMap::new();
        for (minute, identity, tier, endpoint, counts) in steps {
            let mut number = |name| {
                *names.entry(name).or_insert_with(|| appender.name(name).unwrap())
            };
            let (tier_number, endpoint_number) = (number(tier), number(endpoint));
            let key = (minute, identity.clone(), tier, endpoint);
            let at = *places.entry(key.clone()).or_insert_with(|| {
                appender.row(minute, tier_number, endpoint_number, &identity).unwrap()
            });
            appender.add(at, counts);
            *sums.entry(key).or_default() += counts;
        }
        let bytes = appender.bytes();
        let parsed = parse(&bytes).unwrap();
        prop_assert_eq!(parsed.unread, 0);
        prop_assert_eq!(parsed.rows.len(), sums.len());
        for row in parsed.rows {
            let key = (row.minute, row.identity.to_owned(), row.tier, row.endpoint);
            prop_assert_eq!(sums.get(&key), Some(&row.counts));
        }
    }

    /// Cut anywhere, or with any page lost, it gives rows that were there, in their order, and says
    /// how much it could not read.
    #[test]
    fn a_torn_file_gives_what_is_whole(
        steps in prop::collection::vec(step(), 1..40),
        cut in 0.0..1.0_f64,
        is_hole in any::<bool>(),
    ) {
        let mut appender = Appender::begin(words(4096), ID, 0);
        for (minute, identity, tier, endpoint, counts) in steps {
            let (tier, endpoint) = (appender.name(tier).unwrap(), appender.name(endpoint).unwrap());
            let at = appender.row(minute, tier, endpoint, &identity).unwrap();
            appender.add(at, counts);
        }
        let whole = appender.bytes();
        let from = HEADER_WORDS * 8 + ((whole.len() - HEADER_WORDS * 8) as f64 * cut) as usize;
        let mut torn = whole.clone();
        if is_hole {
            let end = whole.len().min(from + 256);
            torn[from..end].fill(0);
        } else {
            torn.truncate(from);
        }
        let all = parse(&whole).unwrap().rows;
        let some = parse(&torn).unwrap();
        prop_assert!(some.rows.len() <= all.len());
        let known = |row: &Row<'_>| (row.minute, row.identity.to_owned(), row.tier.to_owned());
        for (row, original) in some.rows.iter().zip(&all) {
            prop_assert_eq!(known(row), known(original));
        }
        prop_assert!(some.unread > 0 || some.rows.len() == all.len());
    }
}
