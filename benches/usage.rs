//! What it costs to count a request for billing, and what a million identities take.
//!
//! `tests/long.sh usage-bench`; with `million`, the second part alone.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a bench")]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tollgate::clock::{Clock, monotonic};
use tollgate::limiter::time::Timestamp;
use tollgate::policy::identity::Identity;
use tollgate::usage::file::FileSink;
use tollgate::usage::flush::{JOURNAL_BYTES_MAX, Usage};
use tollgate::usage::journal::Journal;
use tollgate::usage::page::RECORDS_MAX;
use tollgate::usage::record::{Counts, Period, Query};
use tollgate::usage::sink::{Place, Settings};
use tollgate::usage::writer::{UsageWriter, Who};

const START: u64 = 1_780_000_000_000_000;
const MINUTE: u64 = 60_000_000;

fn main() {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    if wanted != "million" {
        count();
    }
    million();
}

fn who(identity: &Identity) -> Who<'_> {
    Who { identity, tier: "premium", endpoint: "history" }
}

fn count() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path(), 1, Duration::from_secs(3600)).unwrap();
    let writer = UsageWriter::new(Arc::new(journal), 0);
    let counts = Counts { requests: 1, units: 1, ..Counts::default() };
    let at = Timestamp::from_micros(START);
    for identities in [1, 100, 10_000] {
        let users: Vec<Identity> =
            (0..identities).map(|it| Identity::User(format!("user-{it:08}").into())).collect();
        let rounds = 2_000_000;
        for warm in [true, false] {
            let started = monotonic();
            for turn in 0..rounds {
                let user = &users[turn * 7919 % identities];
                black_box(writer.count(who(black_box(user)), at, counts));
            }
            let took = monotonic().duration_since(started).as_nanos();
            if !warm {
                println!("count, {identities} identities: {} ns", took / rounds as u128);
            }
        }
    }
    let user = Identity::User("user-00000001".into());
    let ticket = writer.count(who(&user), at, counts);
    let bytes = Counts { bytes_in: 10, bytes_out: 1000, ..Counts::default() };
    let rounds = 10_000_000;
    let started = monotonic();
    for _ in 0..rounds {
        writer.count_more(who(black_box(&user)), ticket, at, bytes);
    }
    let took = monotonic().duration_since(started).as_nanos();
    println!("bytes of a request that was counted: {} ns", took / rounds);
}

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096 / (1 << 20)
}

fn size(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory).unwrap();
    files.map(|it| it.unwrap().metadata().unwrap().len()).sum::<u64>() >> 20
}

fn million() {
    const IDENTITIES: u64 = 1_000_000;
    let directory = tempfile::tempdir().unwrap();
    let (journal, records) = (directory.path().join("journal"), directory.path().join("records"));
    let settings = Settings {
        place: Place::File(directory.path().to_owned()),
        flush: Duration::from_secs(1),
        directory: directory.path().to_owned(),
        retention: Duration::from_secs(90 * 86_400),
        journal_bytes_max: JOURNAL_BYTES_MAX,
    };
    let clock = Clock::manual(Timestamp::from_micros(START));
    let usage = Usage::start(settings, 2, clock).unwrap();
    let writers = [0, 1].map(|worker| UsageWriter::new(Arc::clone(usage.journal()), worker));
    let counts = Counts { requests: 1, units: 1, ..Counts::default() };
    println!("before: {} MiB resident", resident());
    let (started, mut highest, mut of_journal) = (monotonic(), 0, 0);
    for turn in 0..IDENTITIES {
        let user = Identity::User(format!("user-{turn:08}").into());
        let at = Timestamp::from_micros(START + turn * MINUTE / IDENTITIES);
        let writer = &writers[(turn % 2) as usize];
        writer.count(who(&user), at, counts);
        if turn % 1000 == 0 {
            writers.iter().for_each(|it| it.tick(at));
        }
        if turn % 50_000 == 0 {
            highest = resident().max(highest);
            of_journal = size(&journal).max(of_journal);
        }
    }
    println!(
        "a million identities, each once: {:.2} s, highest {highest} MiB resident, journal {of_journal} MiB",
        monotonic().duration_since(started).as_secs_f64()
    );
    drop(writers);
    let started = monotonic();
    usage.finish();
    let took = monotonic().duration_since(started).as_secs_f64();
    println!("written {took:.2} s later: records {} MiB, lost {}", size(&records), usage.lost());
    assert_eq!(usage.lost(), 0);
    let heir = FileSink::new(directory.path(), 1);
    let mut sink = FileSink::new(directory.path(), 2);
    for (what, hours) in [("added up by minute", 2), ("added up by hour", 50)] {
        let started = monotonic();
        sink.tidy(Timestamp::from_micros(START + hours * 60 * MINUTE), 0).unwrap();
        let took = monotonic().duration_since(started).as_secs_f64();
        println!(
            "{what}: {took:.2} s, records {} MiB, {} MiB resident",
            size(&records),
            resident()
        );
    }
    let started = monotonic();
    let mut query = Query { by: Period::Day, ..Query::everything(RECORDS_MAX) };
    let (mut pages, mut found, mut requests) = (0, 0, 0);
    loop {
        let page = heir.page(&query).unwrap();
        pages += 1;
        found += page.records.len() as u64;
        requests += page.records.iter().map(|it| it.counts.requests).sum::<i64>();
        query.after = page.next;
        if query.after.is_none() {
            break;
        }
    }
    let took = monotonic().duration_since(started).as_secs_f64();
    println!("{found} records read in {pages} pages: {took:.2} s, {} MiB resident", resident());
    assert_eq!((found, requests), (IDENTITIES, IDENTITIES as i64));
}
