//! The way from whoever has lines to the thread that writes them: bounded, and never waited on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// How often it is looked whether a queue is empty.
const SETTLE_PAUSE: Duration = Duration::from_millis(5);

/// Some whole lines, each with its end.
#[derive(Debug, Default)]
pub struct Chunk {
    /// The lines.
    pub bytes: Vec<u8>,
    /// How many they are.
    pub lines: u64,
}

/// Lines since the start.
#[derive(Debug, Default)]
pub struct Counts {
    written: AtomicU64,
    dropped: AtomicU64,
}

impl Counts {
    /// Those that were handed to the operating system.
    pub fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    /// Those that nobody will read.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// So many more were written.
    pub fn add_written(&self, lines: u64) {
        self.written.fetch_add(lines, Relaxed);
    }

    /// So many more are lost.
    pub fn add_dropped(&self, lines: u64) {
        self.dropped.fetch_add(lines, Relaxed);
    }
}

/// What the writing thread is told.
#[derive(Debug)]
pub(super) enum Message {
    Lines(Chunk),
    /// Look at the flags.
    Wake,
}

/// What both sides see.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) counts: Arc<Counts>,
    /// Bytes that are queued.
    pub(super) queued: AtomicUsize,
    /// Whether the file is to be opened anew.
    pub(super) reopen: AtomicBool,
    /// Whether nothing more will come.
    pub(super) ending: AtomicBool,
    has_ended: Mutex<bool>,
    ended: Condvar,
}

impl Shared {
    pub(super) fn set_ended(&self) {
        *self.has_ended.lock() = true;
        self.ended.notify_all();
    }
}

/// Hands lines over. Clones share one queue.
#[derive(Clone, Debug)]
pub struct LineQueue {
    channel: SyncSender<Message>,
    shared: Arc<Shared>,
    bytes_max: usize,
}

/// A queue of so many chunks, and so many bytes in them.
pub(super) fn queue(
    chunks_max: usize,
    bytes_max: usize,
) -> (LineQueue, Receiver<Message>, Arc<Shared>) {
    let (channel, receiver) = sync_channel(chunks_max);
    let shared = Arc::new(Shared::default());
    (LineQueue { channel, shared: Arc::clone(&shared), bytes_max }, receiver, shared)
}

impl LineQueue {
    /// Hands lines over.
    ///
    /// # Errors
    /// They do not fit now. They come back, to be offered again or [given up](Self::give_up).
    pub fn offer(&self, chunk: Chunk) -> Result<(), Chunk> {
        let bytes = chunk.bytes.len();
        let queued = self.shared.queued.fetch_add(bytes, Relaxed);
        let refused = if queued.saturating_add(bytes) > self.bytes_max {
            chunk
        } else {
            use std::sync::mpsc::TrySendError::{Disconnected, Full};
            match self.channel.try_send(Message::Lines(chunk)) {
                Ok(()) => return Ok(()),
                Err(Full(Message::Lines(chunk)) | Disconnected(Message::Lines(chunk))) => chunk,
                Err(Full(Message::Wake) | Disconnected(Message::Wake)) => Chunk::default(),
            }
        };
        self.shared.queued.fetch_sub(bytes, Relaxed);
        Err(refused)
    }

    /// Counts lines as lost.
    pub fn give_up(&self, lines: u64) {
        self.shared.counts.add_dropped(lines);
    }

    /// What became of lines so far.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.shared.counts
    }

    /// Has the file opened anew, by its name.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Relaxed);
        self.wake();
    }

    /// Has everything written that was handed over, and waits for that at most so long. What is
    /// handed over from now on may be lost.
    pub fn finish(&self, within: Duration) {
        self.shared.ending.store(true, Relaxed);
        self.wake();
        let mut has_ended = self.shared.has_ended.lock();
        if !*has_ended {
            self.shared.ended.wait_for(&mut has_ended, within);
        }
    }

    /// Waits until nothing is queued, at most so long.
    pub fn settle(&self, within: Duration) {
        let mut left = within;
        while self.shared.queued.load(Relaxed) > 0 && !left.is_zero() {
            let pause = left.min(SETTLE_PAUSE);
            std::thread::sleep(pause);
            left = left.saturating_sub(pause);
        }
    }

    fn wake(&self) {
        // If the queue is full, the thread is not asleep.
        self.channel.try_send(Message::Wake).ok();
    }
}
