//! The thread that writes lines: to a file that may be moved away under it, to a full disk, to a
//! pipe that nobody reads. It alone waits for them.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::clock;

use super::queue::{Chunk, LineQueue, Message, Shared, queue};

/// Who may read a new file: its owner, and the group's members.
const MODE: u32 = 0o640;
/// How often the file is looked after while nothing comes, and tried again while it cannot be
/// written.
const PAUSE: Duration = Duration::from_millis(250);
/// How often it is looked at whether the file still has a name.
const LOOK: Duration = Duration::from_secs(1);
/// Between two lines about a file that cannot be written.
const TELL_PAUSE: Duration = Duration::from_secs(60);

/// Bounds of a queue.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Chunks.
    pub chunks: usize,
    /// Bytes in them.
    pub bytes: usize,
}

/// Where lines go.
#[derive(Debug)]
pub enum Target {
    /// Standard output.
    Stdout,
    /// Standard error. Nothing is told of its failures, for it would be told there.
    Stderr,
    /// The end of this file, which is made if need be.
    File(PathBuf),
}

/// Starts the thread that writes to `target`.
///
/// # Errors
/// The file cannot be opened; the thread cannot be started.
pub fn start(name: &str, target: Target, room: Room) -> io::Result<LineQueue> {
    let (path, file) = match target {
        Target::Stdout => (None, File::from(io::stdout().as_fd().try_clone_to_owned()?)),
        Target::Stderr => (None, File::from(io::stderr().as_fd().try_clone_to_owned()?)),
        Target::File(path) => {
            let file = open(&path)?;
            (Some(path), file)
        }
    };
    let (lines, receiver, shared) = queue(room.chunks, room.bytes);
    let looked = clock::monotonic();
    let writer = Writer { receiver, shared, path, file: Some(file), looked, trouble: None };
    std::thread::Builder::new().name(name.to_owned()).spawn(move || writer.run())?;
    Ok(lines)
}

/// Without waiting for whoever reads it, should it be a named pipe.
fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    OpenOptions::new().append(true).create(true).mode(MODE).custom_flags(flags).open(path)
}

struct Writer {
    receiver: Receiver<Message>,
    shared: Arc<Shared>,
    /// `None`: it is no file that could be opened anew.
    path: Option<PathBuf>,
    file: Option<File>,
    looked: Instant,
    trouble: Option<Trouble>,
}

/// A time during which lines cannot be written.
struct Trouble {
    dropped_before: u64,
    told: Instant,
}

impl Writer {
    fn run(mut self) {
        loop {
            let message = if self.shared.ending.load(Relaxed) {
                match self.receiver.try_recv() {
                    Ok(message) => message,
                    Err(_) => break,
                }
            } else if self.path.is_some() {
                match self.receiver.recv_timeout(LOOK) {
                    Ok(message) => message,
                    Err(RecvTimeoutError::Timeout) => Message::Wake,
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            } else {
                match self.receiver.recv() {
                    Ok(message) => message,
                    Err(_) => break,
                }
            };
            self.look_after_file();
            if let Message::Lines(chunk) = message {
                let bytes = chunk.bytes.len();
                match self.write(&chunk) {
                    0 => {}
                    lost => self.shared.counts.add_dropped(lost),
                }
                self.shared.queued.fetch_sub(bytes, Relaxed);
            }
        }
        self.shared.set_ended();
    }

    /// Writes all of it, however long that takes, unless tollgate ends. Returns the lines lost.
    fn write(&mut self, chunk: &Chunk) -> u64 {
        let mut rest = chunk.bytes.as_slice();
        while !rest.is_empty() {
            let Some(file) = &mut self.file else {
                let error = self.reopen().err();
                if let Some(error) = error
                    && !self.may_go_on(&error)
                {
                    break;
                }
                // Where a file ended within a line, the next begins with the whole of it.
                rest = from_line_start(&chunk.bytes, rest);
                continue;
            };
            match file.write(rest) {
                Ok(0) => {
                    if !self.may_go_on(&io::ErrorKind::WriteZero.into()) {
                        break;
                    }
                }
                Ok(count) => {
                    rest = rest.get(count..).unwrap_or_default();
                    self.recovered();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_writable(file);
                    if self.shared.ending.load(Relaxed) {
                        break;
                    }
                }
                // Whoever read it has gone, for good if it is no named pipe.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe && self.path.is_none() => {
                    break;
                }
                Err(error) => {
                    if !self.may_go_on(&error) {
                        break;
                    }
                }
            }
        }
        let lost = lines(rest);
        self.shared.counts.add_written(chunk.lines.saturating_sub(lost));
        lost
    }

    /// After a failure: tells of it, waits a moment, and says whether to try again.
    fn may_go_on(&mut self, error: &io::Error) -> bool {
        if self.shared.ending.load(Relaxed) {
            return false;
        }
        let now = clock::monotonic();
        let is_new = self.trouble.is_none();
        let dropped = self.shared.counts.dropped();
        let trouble = self.trouble.get_or_insert(Trouble { dropped_before: dropped, told: now });
        if is_new || now.saturating_duration_since(trouble.told) >= TELL_PAUSE {
            trouble.told = now;
            if let Some(path) = &self.path {
                let dropped = dropped.saturating_sub(trouble.dropped_before);
                let file = path.display();
                tracing::warn!(%file, %error, dropped, "the access log cannot be written");
            }
        }
        std::thread::sleep(PAUSE);
        self.look_after_file();
        true
    }

    fn recovered(&mut self) {
        if let Some(Trouble { dropped_before, .. }) = self.trouble.take()
            && let Some(path) = &self.path
        {
            let dropped = self.shared.counts.dropped().saturating_sub(dropped_before);
            tracing::info!(file = %path.display(), dropped, "the access log is written again");
        }
    }

    /// Opens the file anew if that was asked for, or if it has no name any more, so that nobody
    /// would ever read what is written to it.
    fn look_after_file(&mut self) {
        if self.path.is_none() {
            return;
        }
        let is_asked = self.shared.reopen.swap(false, Relaxed);
        let now = clock::monotonic();
        let is_due = now.saturating_duration_since(self.looked) >= LOOK;
        if is_due {
            self.looked = now;
        }
        let is_gone = |file: &File| file.metadata().is_ok_and(|it| it.nlink() == 0);
        let is_lost = is_due && self.file.as_ref().is_some_and(is_gone);
        if is_lost {
            self.file = None;
        }
        if !is_asked && !is_lost {
            return;
        }
        if let Err(error) = self.reopen() {
            let file = self.path.as_deref().unwrap_or(Path::new("")).display();
            // What is open still takes lines, and whoever moved it away can read them there.
            tracing::warn!(%file, %error, "the access log cannot be opened anew");
            self.shared.reopen.store(self.file.is_some() && is_asked, Relaxed);
        } else if is_asked && let Some(path) = &self.path {
            tracing::info!(file = %path.display(), "the access log is opened anew");
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        if let Some(path) = &self.path {
            self.file = Some(open(path)?);
        }
        Ok(())
    }
}

/// Waits a moment for whoever reads a pipe.
fn wait_writable(file: &File) {
    let mut waited = [PollFd::new(file, PollFlags::OUT)];
    let span = Timespec { tv_sec: 0, tv_nsec: PAUSE.subsec_nanos().into() };
    poll(&mut waited, Some(&span)).ok();
}

/// The rest with what is missing of its first line.
fn from_line_start<'c>(whole: &'c [u8], rest: &'c [u8]) -> &'c [u8] {
    let done = whole.get(..whole.len().saturating_sub(rest.len())).unwrap_or_default();
    let start = done.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end.saturating_add(1));
    whole.get(start..).unwrap_or(rest)
}

fn lines(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.iter().filter(|byte| **byte == b'\n').count()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room { chunks: 4, bytes: 1000 };

    fn chunk(text: &str) -> Chunk {
        Chunk { bytes: text.as_bytes().to_vec(), lines: lines(text.as_bytes()) }
    }

    fn wait_until(mut condition: impl FnMut() -> bool) {
        let deadline = clock::monotonic() + Duration::from_secs(20);
        while !condition() {
            assert!(clock::monotonic() < deadline);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn what_was_handed_over_is_there_when_it_has_finished() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.log");
        let log = start("test", Target::File(path.clone()), ROOM).unwrap();
        log.offer(chunk("one\ntwo\n")).unwrap();
        log.offer(chunk("three\n")).unwrap();
        log.finish(Duration::from_secs(20));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\nthree\n");
        assert_eq!((log.counts().written(), log.counts().dropped()), (3, 0));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o027, 0, "not for everybody");
    }

    #[test]
    fn a_pipe_that_nobody_reads_holds_up_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        assert!(start("test", Target::File(path.clone()), ROOM).is_err(), "nobody has it open");
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap();
        let reader = OpenOptions::new().read(true).custom_flags(flags).open(&path).unwrap();
        let room = Room { chunks: 4, bytes: 200_000 };
        let log = start("test", Target::File(path), room).unwrap();
        let large = format!("{}\n", "x".repeat(99_999));
        wait_until(|| log.offer(chunk(&large)).is_err());
        log.give_up(1);
        let began = clock::monotonic();
        log.finish(Duration::from_secs(20));
        assert!(clock::monotonic() - began < Duration::from_secs(10), "does not wait for a reader");
        assert!(log.counts().dropped() >= 2);
        drop(reader);
    }

    #[test]
    fn a_file_that_is_gone_is_made_again_and_begins_with_a_whole_line() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("logs");
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("a.log");
        let log = start("test", Target::File(path.clone()), ROOM).unwrap();
        log.offer(chunk("one\n")).unwrap();
        wait_until(|| log.counts().written() == 1);
        std::fs::remove_dir_all(&folder).unwrap();
        log.reopen();
        // With the folder gone it cannot be opened; what waits is written once it is back.
        std::thread::sleep(LOOK + PAUSE);
        log.offer(chunk("two\n")).unwrap();
        std::fs::create_dir(&folder).unwrap();
        wait_until(|| std::fs::read_to_string(&path).is_ok_and(|text| text == "two\n"));
        log.finish(Duration::from_secs(20));
    }

    #[test]
    fn a_line_that_was_cut_is_written_whole_again() {
        let whole = b"one\ntwo\nthree\n";
        assert_eq!(from_line_start(whole, &whole[6..]), b"two\nthree\n");
        assert_eq!(from_line_start(whole, &whole[8..]), b"three\n");
        assert_eq!(from_line_start(whole, whole), whole);
        assert_eq!(from_line_start(whole, &whole[1..]), whole);
    }
}
