//! The journal's directory: whose files are in it, how new ones are made, and which are complete.
//!
//! A process holds a lock on the file of its epoch as long as it lives. Whoever can take that lock
//! knows that its owner has ended, and that nothing will be added to its segments any more.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};

use crate::limiter::time::Timestamp;
use crate::sys::mapping::Mapping;

use super::segment::{Appender, SegmentId, Stream};

/// Words of a segment: some hundred identities.
const SMALL_WORDS: usize = (64 << 10) / 8;
/// The same where the one before was full before its time: some ten thousand.
const LARGE_WORDS: usize = (4 << 20) / 8;
/// Largest file that is taken for a segment, in bytes.
pub const SEGMENT_BYTES_MAX: u64 = (LARGE_WORDS * 8) as u64;
/// While the sink is this far behind, segments stay open longer, so that they stay few.
const BEHIND: Duration = Duration::from_secs(30);
/// How long they stay open then.
const OPEN_WHILE_BEHIND: Duration = Duration::from_secs(60);
/// Tries to become somebody.
const EPOCHS_MAX: u32 = 8;
/// Identities are nobody else's business.
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// The journal of this process.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    epoch: u128,
    /// Locked as long as this lives.
    _lock: File,
    desks: Box<[Desk]>,
    flush: Duration,
    open_for: AtomicU64,
    lost: AtomicU64,
}

/// What a worker and the flush share.
#[derive(Debug, Default)]
struct Desk {
    next: Mutex<Next>,
    /// The last segment that its worker has let go of.
    sealed: AtomicU64,
    /// When the first count went into that one, in microseconds.
    sealed_since: AtomicU64,
    /// The last segment that the sink has taken.
    taken: AtomicU64,
    /// When the first count went into the segment that is open, in microseconds; 0: none is.
    open_since: AtomicU64,
    wants_large: AtomicBool,
}

#[derive(Debug, Default)]
struct Next {
    /// The number of the last segment that has a file.
    made: u64,
    ready: Option<Mapping>,
}

impl Journal {
    /// Makes the directory, if need be, and becomes an epoch in it.
    ///
    /// # Errors
    /// It cannot be made, written or mapped; the error says which path.
    pub fn open(directory: &Path, workers: usize, flush: Duration) -> io::Result<Self> {
        make_directory(directory)?;
        let (epoch, lock) = (0..EPOCHS_MAX)
            .find_map(|_| new_epoch(directory).transpose())
            .unwrap_or_else(|| Err(io::Error::other("no epoch could be locked")))?;
        let journal = Journal {
            directory: directory.to_owned(),
            epoch,
            _lock: lock,
            desks: (0..workers.max(1)).map(|_| Desk::default()).collect(),
            flush,
            open_for: AtomicU64::new(micros(flush)),
            lost: AtomicU64::new(0),
        };
        // What cannot be mapped is found out now, not by the first request.
        for worker in 0..journal.desks.len() {
            journal.prepare(worker)?;
        }
        Ok(journal)
    }

    /// The id of this process.
    pub fn epoch(&self) -> u128 {
        self.epoch
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// How many workers it has.
    pub fn workers(&self) -> usize {
        self.desks.len()
    }

    /// Counts that found no room on the disk.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// A count found no room.
    pub(super) fn lose(&self) {
        self.lost.fetch_add(1, Relaxed);
    }

    /// How long a segment stays open, in microseconds.
    pub(super) fn open_for(&self) -> u64 {
        self.open_for.load(Relaxed)
    }

    /// Has segments stay open longer while the sink is behind.
    pub fn note_lag(&self, lag: Duration) {
        let open_for = if lag > BEHIND { self.flush.max(OPEN_WHILE_BEHIND) } else { self.flush };
        self.open_for.store(micros(open_for), Relaxed);
    }

    /// The last segment of a worker that never changes any more; 0: none yet.
    pub fn sealed(&self, worker: usize) -> u64 {
        self.desks.get(worker).map_or(0, |desk| desk.sealed.load(Acquire))
    }

    /// When the oldest count was made that the sink has not taken. `oldest`: of the segments that
    /// wait, as it was found in their files.
    pub fn waits_since(&self, oldest: Option<Timestamp>) -> Option<Timestamp> {
        let since = self.desks.iter().flat_map(|desk| {
            // In this order: what is let go of meanwhile is seen once at least.
            let open = Some(desk.open_since.load(Acquire)).filter(|it| *it > 0);
            let waits = desk.sealed.load(Acquire) > desk.taken.load(Acquire);
            let sealed = waits.then(|| desk.sealed_since.load(Relaxed));
            [open, sealed]
        });
        since.flatten().map(Timestamp::from_micros).chain(oldest).min()
    }

    /// The sink has taken all segments of a worker up to this one.
    pub(super) fn note_taken(&self, worker: usize, sequence: u64) {
        if let Some(desk) = self.desks.get(worker) {
            desk.taken.store(sequence, Release);
        }
    }

    /// The next segment of a worker; almost always made before.
    pub(super) fn take(&self, worker: usize, now: Timestamp) -> Option<(u64, Appender<Mapping>)> {
        let desk = self.desks.get(worker)?;
        let mut next = desk.next.lock();
        if next.ready.is_none() {
            self.make(worker, desk, &mut next).ok()?;
        }
        let id = SegmentId { stream: self.stream(worker)?, sequence: next.made };
        let mapping = next.ready.take()?;
        desk.open_since.store(now.as_micros(), Relaxed);
        Some((id.sequence, Appender::begin(mapping, id, now.as_micros())))
    }

    /// A worker writes no more to this segment, which it has unmapped.
    pub(super) fn seal(&self, worker: usize, sequence: u64, was_full: bool) {
        if let Some(desk) = self.desks.get(worker) {
            desk.wants_large.store(was_full, Relaxed);
            desk.sealed_since.store(desk.open_since.load(Relaxed), Relaxed);
            desk.sealed.store(sequence, Release);
            desk.open_since.store(0, Release);
        }
    }

    /// Makes the next segment of a worker before it is needed.
    ///
    /// # Errors
    /// No room, or the like.
    pub fn prepare(&self, worker: usize) -> io::Result<()> {
        let Some(desk) = self.desks.get(worker) else { return Ok(()) };
        let mut next = desk.next.lock();
        if next.ready.is_none() { self.make(worker, desk, &mut next) } else { Ok(()) }
    }

    fn make(&self, worker: usize, desk: &Desk, next: &mut Next) -> io::Result<()> {
        let Some(stream) = self.stream(worker) else { return Ok(()) };
        let sequence = next.made.saturating_add(1);
        let path = self.directory.join(file_name(SegmentId { stream, sequence }));
        let words = if desk.wants_large.load(Relaxed) { LARGE_WORDS } else { SMALL_WORDS };
        let made = new_file(&path).and_then(|file| Mapping::of_new(&file, words));
        match made {
            Ok(mapping) => {
                next.made = sequence;
                next.ready = Some(mapping);
                Ok(())
            }
            Err(error) => {
                // So that the same name can be taken at the next try.
                let _ = fs::remove_file(&path);
                Err(naming(error, &path))
            }
        }
    }

    fn stream(&self, worker: usize) -> Option<Stream> {
        Some(Stream { epoch: self.epoch, worker: u32::try_from(worker).ok()? })
    }
}

impl Journal {
    /// Nobody counts any more: what was made and not used goes, and with no segment left the epoch
    /// has ended and left nothing.
    pub(super) fn close(&self) {
        for (worker, desk) in self.desks.iter().enumerate() {
            let mut next = desk.next.lock();
            if let (Some(_), Some(stream)) = (next.ready.take(), self.stream(worker)) {
                let id = SegmentId { stream, sequence: next.made };
                let _ = fs::remove_file(self.directory.join(file_name(id)));
            }
        }
        let is_empty = segments_of(&self.directory, self.epoch).is_ok_and(|it| it.is_empty());
        if is_empty {
            let _ = fs::remove_file(self.directory.join(lock_name(self.epoch)));
        }
    }
}

/// An epoch whose process has ended. As long as this lives, nobody else takes it up.
#[derive(Debug)]
pub struct Abandoned {
    /// Which.
    pub epoch: u128,
    path: PathBuf,
    _lock: File,
}

impl Abandoned {
    /// Every epoch of a directory whose process has ended.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn all(directory: &Path) -> io::Result<Vec<Self>> {
        let mut epochs = BTreeSet::new();
        for entry in fs::read_dir(directory)? {
            epochs.extend(epoch_of_lock(&entry?.path()));
        }
        // A segment without a lock has been put there, or was begun when its process had ended.
        epochs.extend(segments(directory)?.iter().map(|id| id.stream.epoch));
        let mut all = Vec::new();
        for epoch in epochs {
            let path = directory.join(lock_name(epoch));
            let mut options = OpenOptions::new();
            let options = options.create(true).truncate(false).write(true).mode(FILE_MODE);
            let Ok(file) = options.open(&path) else { continue };
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                all.push(Abandoned { epoch, path, _lock: file });
            }
        }
        Ok(all)
    }

    /// Nothing of it is left.
    pub fn finish(self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The segments of an epoch that have files, in their order.
///
/// # Errors
/// The directory cannot be read.
pub fn segments_of(directory: &Path, epoch: u128) -> io::Result<Vec<SegmentId>> {
    let mut all = segments(directory)?;
    all.retain(|id| id.stream.epoch == epoch);
    Ok(all)
}

/// All segments that have files, in their order.
///
/// # Errors
/// The directory cannot be read.
pub fn segments(directory: &Path) -> io::Result<Vec<SegmentId>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory)? {
        all.extend(entry?.file_name().to_str().and_then(parse_file_name));
    }
    all.sort_unstable();
    Ok(all)
}

/// The name of a segment's file.
pub fn file_name(id: SegmentId) -> String {
    format!("{:032x}-{}-{}.segment", id.stream.epoch, id.stream.worker, id.sequence)
}

fn parse_file_name(name: &str) -> Option<SegmentId> {
    let mut parts = name.strip_suffix(".segment")?.split('-');
    let epoch = u128::from_str_radix(parts.next()?, 16).ok()?;
    let (worker, sequence) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(SegmentId { stream: Stream { epoch, worker }, sequence })
}

fn lock_name(epoch: u128) -> String {
    format!("{epoch:032x}.lock")
}

fn epoch_of_lock(path: &Path) -> Option<u128> {
    u128::from_str_radix(path.file_name()?.to_str()?.strip_suffix(".lock")?, 16).ok()
}

/// `None`: somebody took it for an abandoned one before it was locked.
fn new_epoch(directory: &Path) -> io::Result<Option<(u128, File)>> {
    let mut random = [0; 16];
    let filled = SystemRandom::new().fill(&mut random);
    filled.map_err(|_| io::Error::other("no random numbers"))?;
    let epoch = u128::from_be_bytes(random);
    let path = directory.join(lock_name(epoch));
    let file = new_file(&path)?;
    let is_locked = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
    let is_there = fs::metadata(&path).is_ok_and(|it| {
        file.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (it.dev(), it.ino()))
    });
    Ok((is_locked && is_there).then_some((epoch, file)))
}

/// Makes a directory that only its owner may look into; one that is there stays as it is.
///
/// # Errors
/// It cannot be made; the error says which path.
pub fn make_directory(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(DIRECTORY_MODE).create(path).map_err(|it| naming(it, path))
}

/// A new file that only its owner may read.
pub(super) fn new_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(FILE_MODE);
    options.open(path).map_err(|error| naming(error, path))
}

/// An error that says which path it is about.
pub(super) fn naming(error: io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
