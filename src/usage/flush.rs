//! The thread that hands batches to the sink: in their order, again and again until they are taken.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::clock::{Clock, monotonic};
use crate::limiter::time::Timestamp;

use super::journal::{Abandoned, Journal, SEGMENT_BYTES_MAX, file_name, segments, segments_of};
use super::page::Page;
use super::record::Query;
use super::segment::{Broken, SegmentId, Stream, parse};
use super::sink::{Batch, Settings, Sink, SinkError, Totals, kept_from};

/// Bounds of the pause between two rounds: a quarter of `usage.flush`, within these.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// For the sink to take one batch.
const TAKE_MAX: Duration = Duration::from_secs(15);
/// After a failure, the next try waits so long, doubled up to the other.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Batches that are taken before it is made sure of them.
const COMMIT_BATCHES: usize = 64;
/// How often what is old is added up, and what others have left is looked for.
const TIDY_INTERVAL: Duration = Duration::from_secs(30);
/// Between two tries to write what others have left.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// How often the journal's size is looked at.
const SIZE_INTERVAL: Duration = Duration::from_secs(5);
/// What the journal may take of its disk: above that the oldest batches give way, counted and told of
/// one by one.
pub const JOURNAL_BYTES_MAX: u64 = 16 << 30;
/// At the end, for what is left; the rest is there for the next start.
const END_MAX: Duration = Duration::from_secs(10);
/// Between two lines about a sink that does not take batches.
const TELL_PAUSE: Duration = Duration::from_secs(60);
/// Questions that wait.
const QUESTIONS_MAX: usize = 16;

/// What is known of the flush from outside.
#[derive(Debug, Default)]
struct Figures {
    /// Rows that the sink has taken.
    written: AtomicU64,
    errors: AtomicU64,
    journal_bytes: AtomicU64,
    /// When the oldest count was made that is let go of and not taken; 0: none is.
    oldest: AtomicU64,
    lost: AtomicU64,
}

/// What is asked of the records.
enum Question {
    Page(Query, oneshot::Sender<Result<Page, SinkError>>),
    Totals(oneshot::Sender<Result<Totals, SinkError>>),
}

/// Usage metering of this process.
#[derive(Debug)]
pub struct Usage {
    journal: Arc<Journal>,
    figures: Arc<Figures>,
    questions: mpsc::Sender<Question>,
    is_ending: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
    clock: Clock,
}

impl Usage {
    /// Opens the journal and starts the thread. A sink that is away is no error.
    ///
    /// # Errors
    /// The journal's directory cannot be used; no thread; nothing to check a certificate against.
    pub fn start(settings: Settings, workers: usize, clock: Clock) -> io::Result<Self> {
        let directory = settings.directory.join(super::file::JOURNAL);
        let journal = Arc::new(Journal::open(&directory, workers, settings.flush)?);
        let sink = Sink::new(&settings.place, journal.epoch(), settings.retention);
        let sink = sink.map_err(|error| io::Error::other(error.0))?;
        let figures = Arc::new(Figures::default());
        let is_ending = Arc::new(AtomicBool::new(false));
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        let now = monotonic();
        let flush = Flush {
            journal: Arc::clone(&journal),
            sink,
            figures: Arc::clone(&figures),
            is_ending: Arc::clone(&is_ending),
            clock: clock.clone(),
            next: vec![1; journal.workers()],
            untold_lost: 0,
            abandoned_since: 0,
            has_abandoned: true,
            retry: None,
            tidied: now,
            measured: now.checked_sub(SIZE_INTERVAL).unwrap_or(now),
            told: None,
            told_room: None,
            next_look: now,
            done: Vec::new(),
            settings,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("usage".to_owned());
        let thread = thread.spawn(move || {
            runtime.block_on(flush.run(asked));
            runtime.shutdown_background();
        })?;
        let thread = Mutex::new(Some(thread));
        Ok(Usage { journal, figures, questions, is_ending, thread, clock })
    }

    /// Where workers count.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Writes what is left, for some seconds at most, and ends the thread. To be called when no
    /// worker counts any more.
    pub fn finish(&self) {
        self.is_ending.store(true, Release);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
            self.journal.close();
        }
    }

    /// Age of the oldest count that the sink has not taken; zero where there is none.
    pub fn lag(&self) -> Duration {
        lag(&self.journal, &self.figures, self.clock.now())
    }

    /// Rows that the sink has taken.
    pub fn written(&self) -> u64 {
        self.figures.written.load(Relaxed)
    }

    /// Batches that the sink did not take when they were handed to it.
    pub fn errors(&self) -> u64 {
        self.figures.errors.load(Relaxed)
    }

    /// Size of the journal's files.
    pub fn journal_bytes(&self) -> u64 {
        self.figures.journal_bytes.load(Relaxed)
    }

    /// Counts that found no room, and those in batches that had to give way.
    pub fn lost(&self) -> u64 {
        self.journal.lost().saturating_add(self.figures.lost.load(Relaxed))
    }

    /// A page of the sink's records.
    ///
    /// # Errors
    /// They cannot be read, or too many ask.
    pub async fn page(&self, query: Query) -> Result<Page, SinkError> {
        self.ask(|reply| Question::Page(query, reply)).await
    }

    /// What the sink has of this process, by tier.
    ///
    /// # Errors
    /// As above.
    pub async fn totals(&self) -> Result<Totals, SinkError> {
        self.ask(Question::Totals).await
    }

    async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<Result<T, SinkError>>) -> Question,
    ) -> Result<T, SinkError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.questions.try_send(question(reply));
        sent.map_err(|_| SinkError("too many ask for usage records at once".to_owned()))?;
        answer.await.unwrap_or_else(|_| Err(SinkError("usage metering has ended".to_owned())))
    }
}

fn lag(journal: &Journal, figures: &Figures, now: Timestamp) -> Duration {
    let oldest = Some(figures.oldest.load(Relaxed)).filter(|it| *it > 0);
    let since = journal.waits_since(oldest.map(Timestamp::from_micros));
    since.map_or(Duration::ZERO, |it| Duration::from_micros(now.since(it).as_micros().max(1)))
}

struct Flush {
    settings: Settings,
    journal: Arc<Journal>,
    sink: Sink,
    figures: Arc<Figures>,
    is_ending: Arc<AtomicBool>,
    clock: Clock,
    /// The next batch of each worker.
    next: Vec<u64>,
    untold_lost: u64,
    /// Whether others may have left something.
    has_abandoned: bool,
    /// When the oldest count was made that others have left and no sink has taken; 0: none is.
    abandoned_since: u64,
    /// After a failure: when to try again, and how long was waited.
    retry: Option<(Instant, Duration)>,
    tidied: Instant,
    measured: Instant,
    told: Option<Instant>,
    told_room: Option<Instant>,
    /// When to look again for what others have left.
    next_look: Instant,
    /// Taken, and not made sure of yet.
    done: Vec<Done>,
}

/// A batch that may be deleted once it is made sure of.
struct Done {
    path: PathBuf,
    rows: usize,
}

impl Flush {
    async fn run(mut self, mut asked: mpsc::Receiver<Question>) {
        let pause = (self.settings.flush / 4).clamp(PAUSE_MIN, PAUSE_MAX);
        let mut is_first = true;
        loop {
            let is_ending = self.is_ending.load(Acquire);
            let now = monotonic();
            let may_try = self.retry.is_none_or(|(at, _)| now >= at);
            if is_first || now.saturating_duration_since(self.tidied) >= TIDY_INTERVAL {
                self.tidied = now;
                is_first = false;
                self.has_abandoned = true;
                let retention = self.settings.retention;
                if let Err(error) = self.sink.tidy(self.clock.now(), retention).await {
                    self.failed(&error);
                }
            }
            if self.has_abandoned && now >= self.next_look && !is_ending {
                self.next_look = now + LOOK_PAUSE;
                self.has_abandoned = !self.take_up_abandoned().await;
            }
            if may_try || is_ending {
                self.round().await;
            }
            self.look_around(now);
            if is_ending {
                let end = self.flush_rest();
                let _ = timeout(END_MAX, end).await;
                return;
            }
            // A question wakes it as well as the time.
            if let Ok(Some(question)) = timeout(pause, asked.recv()).await {
                self.answer(question).await;
            }
        }
    }

    async fn flush_rest(&mut self) {
        while !self.is_all_taken() {
            self.round().await;
            if self.retry.is_some() {
                tokio::time::sleep(RETRY_MIN).await;
            }
        }
    }

    fn is_all_taken(&self) -> bool {
        let mut next = self.next.iter().enumerate();
        next.all(|(worker, next)| *next > self.journal.sealed(worker))
    }

    /// Everything that workers have let go of.
    async fn round(&mut self) {
        let mut is_well = true;
        let written = self.figures.written.load(Relaxed);
        for worker in 0..self.next.len() {
            if let Err(error) = self.journal.prepare(worker) {
                self.no_room(&error);
            }
            let sealed = self.journal.sealed(worker);
            while is_well
                && let Some(next) = self.next.get(worker).copied()
                && next <= sealed
            {
                let number = u32::try_from(worker).unwrap_or(u32::MAX);
                let stream = Stream { epoch: self.journal.epoch(), worker: number };
                is_well = self.hand_over(SegmentId { stream, sequence: next }).await;
                if is_well && let Some(it) = self.next.get_mut(worker) {
                    *it = next.saturating_add(1);
                }
                if self.done.len() >= COMMIT_BATCHES {
                    is_well &= self.commit().await;
                }
            }
        }
        is_well &= self.commit().await;
        // Where there was nothing to write, nothing is known of the sink.
        if is_well && self.figures.written.load(Relaxed) != written {
            self.recovered();
        }
        self.note_oldest();
    }

    /// What processes have left that ended without finishing, each file until it is taken.
    /// Returns whether nothing is left.
    async fn take_up_abandoned(&mut self) -> bool {
        let directory = self.journal.directory().to_owned();
        let abandoned = match Abandoned::all(&directory) {
            Ok(abandoned) => abandoned,
            Err(error) => {
                self.failed(&SinkError(error.to_string()));
                return false;
            }
        };
        let mut is_all = true;
        self.abandoned_since = 0;
        for abandoned in abandoned {
            let mut is_well = true;
            let ids = segments_of(&directory, abandoned.epoch).unwrap_or_default();
            let batches = ids.len();
            for id in ids {
                is_well = is_well && self.hand_over(id).await;
                if self.done.len() >= COMMIT_BATCHES {
                    is_well &= self.commit().await;
                }
            }
            is_well &= self.commit().await;
            let is_empty = segments_of(&directory, abandoned.epoch).is_ok_and(|it| it.is_empty());
            if is_well && is_empty {
                let epoch = format!("{:032x}", abandoned.epoch);
                tracing::info!(epoch, batches, "usage that another process has left was taken up");
                abandoned.finish();
            } else {
                is_all = false;
                let first = segments_of(&directory, abandoned.epoch).ok();
                let first = first.and_then(|ids| ids.into_iter().min_by_key(|id| id.sequence));
                let made_at = first.map_or(0, |id| made_at(&directory.join(file_name(id))));
                self.abandoned_since = earlier(self.abandoned_since, made_at);
            }
        }
        is_all
    }

    /// Hands a batch to the sink. `false`: it did not take it.
    async fn hand_over(&mut self, id: SegmentId) -> bool {
        let path = self.journal.directory().join(file_name(id));
        let bytes = match read_segment(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = path.display();
                tracing::error!(%file, "a segment of the usage journal has gone");
                return true;
            }
            Err(error) => {
                self.failed(&SinkError(format!("{}: {error}", path.display())));
                return false;
            }
        };
        let parsed = match parse(&bytes) {
            Ok(parsed) if parsed.id == id => parsed,
            Err(Broken::Empty) => {
                self.done.push(Done { path, rows: 0 });
                return true;
            }
            Ok(_) | Err(Broken::Header) => {
                // Kept for whoever wants to look, under a name that nobody reads.
                let file = path.display();
                tracing::error!(%file, "a segment of the usage journal is broken; set aside");
                let _ = fs::rename(&path, path.with_extension("broken"));
                return true;
            }
        };
        if parsed.unread > 0 {
            let (file, bytes) = (path.display(), parsed.unread.saturating_mul(8));
            tracing::error!(%file, bytes, "a segment of the usage journal was cut by a loss of power");
        }
        if parsed.rows.is_empty() {
            self.done.push(Done { path, rows: 0 });
            return true;
        }
        let now = self.clock.now();
        let kept_from = kept_from(now, self.settings.retention);
        // Only the part that is used, which is all that counts.
        let batch = Batch { id, parsed: &parsed, bytes: &bytes, kept_from };
        let taken = timeout(TAKE_MAX, self.sink.take(batch, now)).await;
        let taken = taken.unwrap_or_else(|_| Err(SinkError("no answer in time".to_owned())));
        match taken {
            Ok(is_new) => {
                let rows = if is_new { parsed.rows.len() } else { 0 };
                self.done.push(Done { path, rows });
                true
            }
            Err(error) => {
                self.failed(&error);
                false
            }
        }
    }

    async fn commit(&mut self) -> bool {
        if self.done.is_empty() {
            return true;
        }
        if let Err(error) = self.sink.commit().await {
            self.failed(&error);
            // Taken they are: only a loss of power could undo that. They stay until it is sure.
            return false;
        }
        for Done { path, rows } in self.done.drain(..) {
            let _ = fs::remove_file(&path);
            self.figures.written.fetch_add(rows as u64, Relaxed);
        }
        true
    }

    fn failed(&mut self, error: &SinkError) {
        self.figures.errors.fetch_add(1, Relaxed);
        let now = monotonic();
        let waited = self.retry.map_or(RETRY_MIN, |(_, waited)| (waited * 2).min(RETRY_MAX));
        self.retry = Some((now + waited, waited));
        let is_due = |told| now.saturating_duration_since(told) >= TELL_PAUSE;
        if self.told.is_none_or(is_due) {
            self.told = Some(now);
            let lag = lag(&self.journal, &self.figures, self.clock.now()).as_secs();
            tracing::warn!(%error, lag, "usage is not written; the journal keeps it");
        }
    }

    /// A segment could not be made beforehand.
    fn no_room(&mut self, error: &io::Error) {
        let now = monotonic();
        let is_due = |told| now.saturating_duration_since(told) >= TELL_PAUSE;
        if self.told_room.is_none_or(is_due) {
            self.told_room = Some(now);
            tracing::error!(%error, "the usage journal cannot grow");
        }
    }

    fn recovered(&mut self) {
        self.retry = None;
        if !self.has_abandoned && self.told.take().is_some() {
            tracing::info!("usage is written again");
        }
    }

    /// Notes since when something waits, makes sure of it on the disk, and has segments stay open
    /// longer if that is long.
    fn note_oldest(&mut self) {
        let mut oldest = self.abandoned_since;
        for (worker, next) in self.next.iter().enumerate() {
            if *next > self.journal.sealed(worker) {
                if self.done.is_empty() {
                    self.journal.note_taken(worker, next.saturating_sub(1));
                }
                continue;
            }
            let number = u32::try_from(worker).unwrap_or(u32::MAX);
            let stream = Stream { epoch: self.journal.epoch(), worker: number };
            let path =
                self.journal.directory().join(file_name(SegmentId { stream, sequence: *next }));
            oldest = earlier(oldest, made_at(&path));
            // Those that wait are cut to what they hold, and made sure of.
            let sealed = SegmentId { stream, sequence: self.journal.sealed(worker) };
            let _ = settle(&self.journal.directory().join(file_name(sealed)));
        }
        self.figures.oldest.store(oldest, Relaxed);
        self.journal.note_lag(lag(&self.journal, &self.figures, self.clock.now()));
    }

    /// The journal's size and bound; what was lost is told of.
    fn look_around(&mut self, now: Instant) {
        if now.saturating_duration_since(self.measured) < SIZE_INTERVAL {
            return;
        }
        self.measured = now;
        let directory = self.journal.directory().to_owned();
        let Ok(ids) = segments(&directory) else { return };
        let sizes = ids.iter().map(|id| {
            let path = directory.join(file_name(*id));
            (*id, fs::metadata(path).map_or(0, |it| it.len()))
        });
        let mut sizes: Vec<_> = sizes.collect();
        let mut bytes: u64 = sizes.iter().map(|(_, size)| size).sum();
        let most = self.settings.journal_bytes_max;
        if bytes > most {
            sizes.retain(|(id, _)| id.stream.epoch == self.journal.epoch());
            sizes.sort_unstable_by_key(|(id, _)| (id.sequence, id.stream.worker));
            for (id, size) in sizes {
                if bytes <= most {
                    break;
                }
                if self.give_way(&directory, id) {
                    bytes = bytes.saturating_sub(size);
                }
            }
        }
        self.figures.journal_bytes.store(bytes, Relaxed);
        let lost = self.journal.lost();
        if lost > self.untold_lost {
            let counts = lost.saturating_sub(self.untold_lost);
            tracing::error!(counts, "usage was not counted: the journal has no room on its disk");
            self.untold_lost = lost;
        }
    }

    /// Deletes a batch that the sink does not take, and says what was in it.
    fn give_way(&mut self, directory: &Path, id: SegmentId) -> bool {
        let worker = id.stream.worker as usize;
        if id.sequence > self.journal.sealed(worker) {
            return false;
        }
        let path = directory.join(file_name(id));
        let Ok(bytes) = read_segment(&path) else { return false };
        let requests: i64 =
            parse(&bytes).map_or(0, |it| it.rows.iter().map(|row| row.counts.requests).sum());
        let file = path.display();
        tracing::error!(%file, requests, "usage was given up: the journal has met its bound");
        self.figures.lost.fetch_add(u64::try_from(requests).unwrap_or(0), Relaxed);
        fs::remove_file(&path).is_ok()
    }

    async fn answer(&mut self, question: Question) {
        // Who asked may be gone.
        match question {
            Question::Page(query, reply) => {
                let page = timeout(TAKE_MAX, self.sink.page(&query)).await;
                let late = || Err(SinkError("no answer in time".to_owned()));
                let _ = reply.send(page.unwrap_or_else(|_| late()));
            }
            Question::Totals(reply) => {
                let totals = timeout(TAKE_MAX, self.sink.totals(self.journal.epoch())).await;
                let late = || Err(SinkError("no answer in time".to_owned()));
                let _ = reply.send(totals.unwrap_or_else(|_| late()));
            }
        }
    }
}

/// When the first count of a segment was made; 0: it cannot be read.
fn made_at(path: &Path) -> u64 {
    fs::read(path).ok().and_then(|it| parse(&it).ok().map(|it| it.made_at)).unwrap_or(0)
}

/// The earlier of two moments, of which 0 is none.
fn earlier(one: u64, other: u64) -> u64 {
    match (one, other) {
        (0, at) | (at, 0) => at,
        (one, other) => one.min(other),
    }
}

/// What is used of a segment's file.
fn read_segment(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if file.metadata()?.len() > SEGMENT_BYTES_MAX {
        return Err(io::Error::other("larger than any segment"));
    }
    let mut bytes = fs::read(path)?;
    bytes.truncate(used_bytes(&bytes));
    Ok(bytes)
}

/// By its header; all of it where that says nothing sensible.
fn used_bytes(bytes: &[u8]) -> usize {
    let word = bytes.get(56..).and_then(|it| it.first_chunk()).map(|it| u64::from_le_bytes(*it));
    let used = word.and_then(|it| usize::try_from(it).ok()).and_then(|it| it.checked_mul(8));
    used.filter(|it| (64..=bytes.len()).contains(it)).unwrap_or(bytes.len())
}

/// Cuts a file that waits to what it holds, and makes sure of it.
fn settle(path: &Path) -> io::Result<()> {
    let bytes = fs::read(path)?;
    let used = used_bytes(&bytes);
    let file = File::options().write(true).open(path)?;
    if used < bytes.len() {
        file.set_len(used as u64)?;
    }
    file.sync_data()
}
