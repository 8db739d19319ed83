//! Records as files: batches in the order in which they come, later added up by minute and by hour.
//!
//! Reading is for anybody at any time: a file that takes another's place does so by a rename, and a
//! reader that finds one gone begins anew.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use rustix::fs::{FlockOperation, flock};

use crate::limiter::time::Timestamp;

use super::files::{
    Frame, Kind, Name, Summary, append_segment, append_summary, heads, read, stream_name, summary,
};
use super::journal::{self, SEGMENT_BYTES_MAX, make_directory, naming, new_file};
use super::page::{Collector, Page};
use super::record::{Counts, DAY, HOUR, Key, Period, Query, Row, minute_of};
use super::segment::{Appender, Parsed, SegmentId, Stream, parse};
use super::sink::{Batch, SinkError, Totals};

/// Below `usage.dir`: the journal, and what was made of it.
pub const JOURNAL: &str = "journal";
const RECORDS: &str = "records";
/// Records of so many hours are there by the minute.
pub const MINUTES_KEPT: u32 = 2 * DAY;
/// Records that are added up in memory at a time; more are written in several parts.
const ADDED_UP_MAX: usize = 200_000;
/// Words of a part: room for some ten thousand records.
const PART_WORDS: usize = (SEGMENT_BYTES_MAX / 8) as usize;
/// How often a reader begins anew because files were replaced while it read.
const READS_MAX: u32 = 8;

/// The sink of files.
#[derive(Debug)]
pub struct FileSink {
    journal: PathBuf,
    records: PathBuf,
    epoch: u128,
    log: Option<Log>,
    /// Of streams of others: the last batch that was taken, once it was looked up.
    others: HashMap<Stream, u64>,
}

#[derive(Debug)]
struct Log {
    hour: u32,
    file: File,
}

impl FileSink {
    /// Below this directory; nothing is made yet.
    pub fn new(directory: &Path, epoch: u128) -> Self {
        let (journal, records) = (directory.join(JOURNAL), directory.join(RECORDS));
        FileSink { journal, records, epoch, log: None, others: HashMap::new() }
    }

    /// See [`Sink::take`](super::sink::Sink::take).
    ///
    /// # Errors
    /// The disk is full, or the like.
    pub fn take(&mut self, batch: Batch<'_>, now: Timestamp) -> Result<bool, SinkError> {
        let stream = batch.id.stream;
        if stream.epoch != self.epoch && !self.others.contains_key(&stream) {
            // Taken by somebody who ended before the journal's file was deleted?
            let taken = read_again(|| self.taken_by_stream())?;
            let last = taken.get(&stream_name(stream)).copied().unwrap_or(0);
            self.others.insert(stream, last);
        }
        let last = self.others.get(&stream).copied().unwrap_or(0);
        if batch.id.sequence <= last {
            return Ok(false);
        }
        let file = self.log(now).map_err(error)?;
        append_segment(file, batch.bytes).map_err(error)?;
        self.others.insert(stream, batch.id.sequence);
        Ok(true)
    }

    /// See [`Sink::commit`](super::sink::Sink::commit).
    ///
    /// # Errors
    /// The disk refuses.
    pub fn commit(&mut self) -> Result<(), SinkError> {
        self.log.as_ref().map_or(Ok(()), |log| log.file.sync_data()).map_err(error)
    }

    /// The log of this hour. Never one that was added up already, whatever the clock says.
    fn log(&mut self, now: Timestamp) -> io::Result<&mut File> {
        let wanted = Period::Hour.start(minute_of(now));
        let is_old = self.log.as_ref().is_none_or(|log| log.hour < wanted);
        if is_old {
            make_directory(&self.records)?;
            let mut hour = wanted;
            let name = |hour, kind| Name { hour, epoch: self.epoch, kind }.to_string();
            while [Kind::Log, Kind::Minutes, Kind::Hours]
                .iter()
                .any(|kind| self.records.join(name(hour, *kind)).exists())
            {
                hour = hour.saturating_add(HOUR);
            }
            let file = new_file(&self.records.join(name(hour, Kind::Log)))?;
            File::open(&self.records)?.sync_all()?;
            if let Some(old) = &self.log {
                old.file.sync_data()?;
            }
            self.log = Some(Log { hour, file });
        }
        let log = self.log.as_mut().map(|log| &mut log.file);
        log.ok_or_else(|| ErrorKind::NotFound.into())
    }

    /// See [`Sink::tidy`](super::sink::Sink::tidy).
    ///
    /// # Errors
    /// A file cannot be read or written; the others are looked after first.
    pub fn tidy(&mut self, now: Timestamp, kept_from: u32) -> Result<(), SinkError> {
        if !self.records.exists() {
            return Ok(());
        }
        let lock = self.records.join("tidy.lock");
        let lock = File::options().create(true).truncate(false).write(true).open(lock);
        let lock = lock.map_err(error)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            // Another process of this directory is at it.
            return Ok(());
        }
        let mut first_error = Ok(());
        for name in self.names(true).map_err(error)? {
            let tidied = self.tidy_one(name, now, kept_from);
            if first_error.is_ok() {
                first_error = tidied.map_err(|it| error(naming(it, &self.path(name))));
            }
        }
        first_error
    }

    fn tidy_one(&mut self, name: Name, now: Timestamp, kept_from: u32) -> io::Result<()> {
        let minute = minute_of(now);
        match name.kind {
            Kind::Log => {
                let is_over = name.hour.saturating_add(HOUR) <= minute;
                let is_own = name.epoch == self.epoch;
                let is_written = if is_own {
                    false
                } else {
                    let lock = format!("{:032x}.lock", name.epoch);
                    self.journal.join(lock).exists()
                };
                if is_over && !is_written {
                    if is_own && self.log.as_ref().is_some_and(|log| log.hour == name.hour) {
                        // What comes next has a file of its own, whatever the clock says.
                        self.log = None;
                    }
                    self.add_up(name, Kind::Minutes)?;
                }
            }
            Kind::Minutes if name.hour.saturating_add(MINUTES_KEPT) <= minute => {
                self.add_up(name, Kind::Hours)?;
            }
            Kind::Minutes | Kind::Hours => {
                let summary = summary(&self.path(name))?;
                let last = summary.map_or(name.hour, |it| it.last_minute);
                if last < kept_from {
                    fs::remove_file(self.path(name))?;
                }
            }
        }
        Ok(())
    }

    /// Replaces a file by one of the next kind.
    fn add_up(&self, from: Name, kind: Kind) -> io::Result<()> {
        let to = Name { kind, ..from };
        let temporary = self.records.join(format!("{to}.part"));
        let _ = fs::remove_file(&temporary);
        let mut adder = Adder {
            file: new_file(&temporary)?,
            period: if kind == Kind::Hours { Period::Hour } else { Period::Minute },
            sums: HashMap::new(),
            part: SegmentId { stream: Stream { epoch: from.epoch, worker: u32::MAX }, sequence: 0 },
        };
        let mut said = Summary::default();
        let mut failed = Ok(());
        read(&self.path(from), &mut |frame| match frame {
            Frame::Segment(parsed) => {
                if from.kind == Kind::Log {
                    said.add(&parsed);
                }
                let added = parsed.rows.iter().try_for_each(|row| adder.add(row));
                failed = std::mem::replace(&mut failed, Ok(())).and(added);
            }
            Frame::Summary(summary) => said = summary,
        })?;
        failed?;
        adder.write()?;
        append_summary(&mut adder.file, &said)?;
        adder.file.sync_data()?;
        fs::rename(&temporary, self.path(to))?;
        File::open(&self.records)?.sync_all()?;
        fs::remove_file(self.path(from))
    }

    /// Files of records in the order of their hours. With `all` those too in whose place there are
    /// others.
    fn names(&self, all: bool) -> io::Result<Vec<Name>> {
        let mut names: BTreeMap<(u32, u128), Vec<Kind>> = BTreeMap::new();
        for entry in fs::read_dir(&self.records)? {
            let file = entry?.file_name();
            if let Some(name) = file.to_str().and_then(Name::parse) {
                names.entry((name.hour, name.epoch)).or_default().push(name.kind);
            }
        }
        let mut listed = Vec::new();
        for ((hour, epoch), mut kinds) in names {
            kinds.sort_unstable();
            let (last, before) = kinds.split_last().map_or((None, &[][..]), |(a, b)| (Some(*a), b));
            if all {
                for kind in before {
                    // Its successor is whole, or it would not have its name.
                    let _ = fs::remove_file(self.path(Name { hour, epoch, kind: *kind }));
                }
            }
            listed.extend(last.map(|kind| Name { hour, epoch, kind }));
        }
        Ok(listed)
    }

    fn path(&self, name: Name) -> PathBuf {
        self.records.join(name.to_string())
    }

    /// The last batch of each stream that files have.
    fn taken_by_stream(&self) -> io::Result<BTreeMap<String, u64>> {
        let mut taken = BTreeMap::new();
        let mut note = |stream: String, sequence: u64| {
            let last = taken.entry(stream).or_insert(0);
            *last = sequence.max(*last);
        };
        for name in self.names_if_any()? {
            match name.kind {
                Kind::Log => heads(&self.path(name), &mut |head| {
                    note(stream_name(head.id.stream), head.id.sequence);
                })?,
                Kind::Minutes | Kind::Hours => {
                    let summary = summary(&self.path(name))?.unwrap_or_default();
                    summary.streams.into_iter().for_each(|(stream, last)| note(stream, last));
                }
            }
        }
        Ok(taken)
    }

    fn names_if_any(&self) -> io::Result<Vec<Name>> {
        match self.names(false) {
            Err(error) if error.kind() == ErrorKind::NotFound && !self.records.exists() => {
                Ok(Vec::new())
            }
            names => names,
        }
    }

    /// A page of records, those in the journal included.
    ///
    /// # Errors
    /// Files cannot be read.
    pub fn page(&self, query: &Query) -> Result<Page, SinkError> {
        read_again(|| {
            let mut collector = Collector::new(query);
            self.visit(&|name| self.may_have(name, query), &mut |segment| {
                segment.rows.iter().for_each(|row| collector.add(row));
            })?;
            Ok(collector.finish())
        })
    }

    /// What a process has counted, by tier, its journal included.
    ///
    /// # Errors
    /// Files cannot be read.
    pub fn totals(&self, epoch: u128) -> Result<Totals, SinkError> {
        read_again(|| {
            let mut said = Summary::default();
            self.visit(&|name| name.kind == Kind::Log, &mut |segment| said.add(segment))?;
            let wanted = format!("{epoch:032x}");
            let mut totals = Totals::new();
            let mut add = |summary: Summary| {
                for (tier, sums) in summary.totals.get(&wanted).into_iter().flatten() {
                    *totals.entry(tier.clone()).or_default() += Counts::from_array(*sums);
                }
            };
            add(said);
            for name in self.names_if_any()?.into_iter().filter(|it| it.kind != Kind::Log) {
                add(summary(&self.path(name))?.unwrap_or_default());
            }
            Ok(totals)
        })
    }

    /// Whether a file may have something of what is wanted.
    fn may_have(&self, name: Name, query: &Query) -> bool {
        // What came in an hour was counted then or before.
        if name.hour.saturating_add(HOUR) <= query.from {
            return false;
        }
        if name.kind == Kind::Log {
            return true;
        }
        match summary(&self.path(name)) {
            Ok(Some(summary)) => {
                let from = query.after.as_ref().map_or(query.from, |it| it.start.max(query.from));
                summary.first_minute < query.to && summary.last_minute >= from
            }
            // What is wrong with it is said when it is read.
            Ok(None) | Err(_) => true,
        }
    }

    /// Every segment of the journal that is in no file yet, and every one of the files, each once.
    fn visit(
        &self,
        is_wanted: &dyn Fn(Name) -> bool,
        each: &mut dyn FnMut(&Parsed<'_>),
    ) -> io::Result<()> {
        let taken = self.taken_by_stream()?;
        let mut visited: HashSet<SegmentId> = HashSet::new();
        let ids = match journal::segments(&self.journal) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            ids => ids?,
        };
        for id in ids {
            let last = taken.get(&stream_name(id.stream)).copied().unwrap_or(0);
            if id.sequence <= last {
                continue;
            }
            // Gone: it has been taken meanwhile, and is met below.
            let Ok(bytes) = fs::read(self.journal.join(journal::file_name(id))) else { continue };
            if let Ok(parsed) = parse(&bytes) {
                each(&parsed);
                visited.insert(id);
            }
        }
        for name in self.names_if_any()?.into_iter().filter(|name| is_wanted(*name)) {
            read(&self.path(name), &mut |frame| {
                if let Frame::Segment(parsed) = frame
                    && (name.kind != Kind::Log || !visited.contains(&parsed.id))
                {
                    each(&parsed);
                }
            })?;
        }
        Ok(())
    }
}

/// Adds up rows and writes them in parts.
struct Adder {
    file: File,
    period: Period,
    sums: HashMap<Key, Counts>,
    part: SegmentId,
}

impl Adder {
    fn add(&mut self, row: &Row<'_>) -> io::Result<()> {
        let key = Key {
            start: self.period.start(row.minute),
            identity: row.identity.into(),
            tier: row.tier.into(),
            endpoint: row.endpoint.into(),
        };
        *self.sums.entry(key).or_default() += row.counts;
        if self.sums.len() >= ADDED_UP_MAX { self.write() } else { Ok(()) }
    }

    /// Writes what there is, in order.
    fn write(&mut self) -> io::Result<()> {
        let mut sums: Vec<_> = self.sums.drain().filter(|(_, counts)| !counts.is_zero()).collect();
        sums.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let mut rest = sums.as_slice();
        while !rest.is_empty() {
            self.part.sequence = self.part.sequence.saturating_add(1);
            let words: Vec<AtomicU64> = (0..PART_WORDS).map(|_| AtomicU64::new(0)).collect();
            let mut part = Appender::begin(words, self.part, 0);
            let mut names: HashMap<&str, u16> = HashMap::new();
            let written = rest.iter().take_while(|it| put(&mut part, &mut names, it)).count();
            if written == 0 {
                return Err(io::Error::other("a record that is larger than a part"));
            }
            append_segment(&mut self.file, &part.bytes())?;
            rest = rest.get(written..).unwrap_or_default();
        }
        Ok(())
    }
}

/// Puts a record into a part; `false`: it has no room.
fn put<'k>(
    part: &mut Appender<Vec<AtomicU64>>,
    names: &mut HashMap<&'k str, u16>,
    (key, counts): &'k (Key, Counts),
) -> bool {
    let mut number = |name: &'k str| {
        if let Some(number) = names.get(name) {
            return Some(*number);
        }
        let number = part.name(name)?;
        names.insert(name, number);
        Some(number)
    };
    let Some((tier, endpoint)) = number(&key.tier).zip(number(&key.endpoint)) else { return false };
    let Some(at) = part.row(key.start, tier, endpoint, &key.identity) else { return false };
    part.add(at, *counts);
    true
}

/// Reads, and does so again where files were replaced meanwhile.
fn read_again<T>(mut reading: impl FnMut() -> io::Result<T>) -> Result<T, SinkError> {
    let mut tries = 1;
    loop {
        match reading() {
            Err(error) if error.kind() == ErrorKind::NotFound && tries < READS_MAX => tries += 1,
            result => return result.map_err(error),
        }
    }
}

fn error(error: io::Error) -> SinkError {
    SinkError(error.to_string())
}

#[cfg(test)]
mod tests;
