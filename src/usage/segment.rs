//! The bytes of a segment: a header, and entries that are only ever added behind each other.
//!
//! A segment is what a sink takes at once: a *batch*. It has the id of the process that counted
//! (the epoch, which is new with each start), the number of the worker, and a sequence number. One
//! thread writes it; anybody may read it at any moment, the writer killed or not. So an entry
//! counts from the moment when the number of used words in the header has passed it, which is the
//! last thing that is stored, and its numbers are single words. What must be said twice after a
//! loss of power (names, and whose row it is) has a checksum: pages reach the disk in any order.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::record::{COLUMNS, Counts, Row};

/// The first word.
const MAGIC: u64 = u64::from_le_bytes(*b"TGUSAGE1");
/// Words of the header: magic, epoch (2), worker, sequence number, made at, checksum, words used.
pub const HEADER_WORDS: usize = 8;
const USED: usize = 7;
/// Words of an entry before its text.
const NAME_WORDS: usize = 1;
const ROW_WORDS: usize = 2 + COLUMNS;
/// Kinds of entries, in the lowest byte of their first word. Zero is none.
const NAME: u64 = 1;
const ROW: u64 = 2;
/// Names of tiers and endpoints in one segment.
const NAMES_MAX: usize = 1 << 16;
/// Longest text of an entry, in bytes.
const TEXT_BYTES_MAX: usize = 1 << 16;

/// Which segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentId {
    /// Whose.
    pub stream: Stream,
    /// Its number: rises by one with each of this stream; from 1.
    pub sequence: u64,
}

/// One worker of one process: the segments of a stream follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stream {
    /// The process: a random number that it took when it started.
    pub epoch: u128,
    /// The number of its worker.
    pub worker: u32,
}

/// Adds to a segment; there is one for each.
#[derive(Debug)]
pub struct Appender<W> {
    words: W,
    used: usize,
    names: usize,
}

impl<W: AsRef<[AtomicU64]>> Appender<W> {
    /// Begins a segment in words that are all zero. `made_at`: microseconds since the Unix epoch.
    pub fn begin(words: W, id: SegmentId, made_at: u64) -> Self {
        let epoch = id.stream.epoch;
        let head = [
            MAGIC,
            (epoch >> 64) as u64,
            epoch as u64,
            u64::from(id.stream.worker),
            id.sequence,
            made_at,
        ];
        let cells = words.as_ref();
        for (cell, word) in cells.iter().zip(head) {
            cell.store(word, Relaxed);
        }
        if let (Some(check), Some(used)) = (cells.get(head.len()), cells.get(USED)) {
            check.store(u64::from(checksum(&head, b"")), Relaxed);
            used.store(HEADER_WORDS as u64, Release);
        }
        Appender { words, used: HEADER_WORDS, names: 0 }
    }

    /// Words used so far.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Adds the name of a tier or an endpoint and gives its number; `None`: no room.
    pub fn name(&mut self, name: &str) -> Option<u16> {
        let number = u16::try_from(self.names).ok().filter(|_| self.names < NAMES_MAX)?;
        let first = first_word(NAME, name)?;
        self.entry(&[first], NAME_WORDS, name)?;
        self.names = self.names.saturating_add(1);
        Some(number)
    }

    /// Adds a row with all its numbers at zero, and gives the place of these; `None`: no room.
    pub fn row(&mut self, minute: u32, tier: u16, endpoint: u16, identity: &str) -> Option<u32> {
        let second = u64::from(minute) << 32 | u64::from(tier) << 16 | u64::from(endpoint);
        let at = self.entry(&[first_word(ROW, identity)?, second], ROW_WORDS, identity)?;
        u32::try_from(at.saturating_add(2)).ok()
    }

    /// Adds to the numbers at this place. No other thread writes, so that a load and a store do.
    #[inline]
    pub fn add(&self, at: u32, counts: Counts) {
        let cells = self.words.as_ref().get(at as usize..).unwrap_or_default();
        for (cell, more) in cells.iter().zip(counts.to_array()) {
            if more != 0 {
                cell.store(cell.load(Relaxed).wrapping_add(more as u64), Relaxed);
            }
        }
    }

    /// Writes an entry and then, last of all, that it is there.
    fn entry(&mut self, head: &[u64], fixed: usize, text: &str) -> Option<usize> {
        let (at, cells) = (self.used, self.words.as_ref());
        let end = at.checked_add(fixed)?.checked_add(text.len().div_ceil(8))?;
        let place = cells.get(at..end)?;
        let check = u64::from(checksum(head, text.as_bytes())) << 32;
        for (index, (cell, word)) in place.iter().zip(head).enumerate() {
            cell.store(if index == 0 { word | check } else { *word }, Relaxed);
        }
        for (cell, bytes) in place.iter().skip(fixed).zip(text.as_bytes().chunks(8)) {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(bytes) {
                *to = *from;
            }
            cell.store(u64::from_le_bytes(word), Relaxed);
        }
        cells.get(USED)?.store(end as u64, Release);
        self.used = end;
        Some(at)
    }
}

impl<W: AsRef<[AtomicU64]>> Appender<W> {
    /// What is used of it, as it would be in a file.
    pub fn bytes(&self) -> Vec<u8> {
        let cells = self.words.as_ref().get(..self.used).unwrap_or_default();
        cells.iter().flat_map(|cell| cell.load(Acquire).to_le_bytes()).collect()
    }
}

/// Kind in the lowest byte, then 24 bits of the text's length; the upper half is the checksum's.
fn first_word(kind: u64, text: &str) -> Option<u64> {
    let length = u64::try_from(text.len()).ok().filter(|it| *it <= TEXT_BYTES_MAX as u64)?;
    Some(kind | length << 8)
}

/// What a segment says.
#[derive(Debug)]
pub struct Parsed<'a> {
    /// Which it is.
    pub id: SegmentId,
    /// When it was begun, in microseconds since the Unix epoch.
    pub made_at: u64,
    /// Its rows, in the order in which they were begun.
    pub rows: Vec<Row<'a>>,
    /// Words behind which nothing can be read, although something should be there: a page that did
    /// not reach the disk.
    pub unread: usize,
}

/// Why a file is no segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It was never begun: its maker ended first.
    #[error("empty")]
    Empty,
    /// It is something else, or its header did not reach the disk.
    #[error("its header is broken")]
    Header,
}

/// Reads a segment, complete or not.
///
/// # Errors
/// It is none.
pub fn parse(bytes: &[u8]) -> Result<Parsed<'_>, Broken> {
    let mut reader = Reader { bytes, at: 0 };
    let mut head = [0; HEADER_WORDS];
    for word in &mut head {
        *word = reader.word().ok_or(Broken::Empty)?;
    }
    let [magic, high, low, worker, sequence, made_at, check, used] = head;
    if used == 0 {
        return Err(Broken::Empty);
    }
    let said = [magic, high, low, worker, sequence, made_at];
    let worker = u32::try_from(worker).map_err(|_| Broken::Header)?;
    if magic != MAGIC || check != u64::from(checksum(&said, b"")) {
        return Err(Broken::Header);
    }
    let stream = Stream { epoch: u128::from(high) << 64 | u128::from(low), worker };
    let used = usize::try_from(used).unwrap_or(usize::MAX);
    let mut parsed =
        Parsed { id: SegmentId { stream, sequence }, made_at, rows: Vec::new(), unread: 0 };
    let mut names: Vec<&str> = Vec::new();
    while reader.at < used {
        let before = reader.at;
        if entry(&mut reader, &mut names, &mut parsed.rows).is_none() {
            parsed.unread = used.saturating_sub(before);
            break;
        }
    }
    Ok(parsed)
}

fn entry<'a>(
    reader: &mut Reader<'a>,
    names: &mut Vec<&'a str>,
    rows: &mut Vec<Row<'a>>,
) -> Option<()> {
    let first = reader.word()?;
    let length = usize::try_from(first >> 8 & 0x00ff_ffff).ok()?;
    let (plain, check) = (first & 0xffff_ffff, (first >> 32) as u32);
    match first & 0xff {
        NAME => {
            let text = reader.text(length)?;
            (checksum(&[plain], text.as_bytes()) == check).then_some(())?;
            names.push(text);
        }
        ROW => {
            let second = reader.word()?;
            let mut numbers = [0_i64; COLUMNS];
            for number in &mut numbers {
                *number = reader.word()? as i64;
            }
            let identity = reader.text(length)?;
            (checksum(&[plain, second], identity.as_bytes()) == check).then_some(())?;
            let name = |shift: u32| names.get((second >> shift & 0xffff) as usize).copied();
            let (tier, endpoint) = (name(16)?, name(0)?);
            let (minute, counts) = ((second >> 32) as u32, Counts::from_array(numbers));
            rows.push(Row { minute, identity, tier, endpoint, counts });
        }
        _ => return None,
    }
    Some(())
}

struct Reader<'a> {
    bytes: &'a [u8],
    /// In words.
    at: usize,
}

impl<'a> Reader<'a> {
    fn word(&mut self) -> Option<u64> {
        let start = self.at.checked_mul(8)?;
        let word = self.bytes.get(start..)?.first_chunk()?;
        self.at = self.at.saturating_add(1);
        Some(u64::from_le_bytes(*word))
    }

    fn text(&mut self, length: usize) -> Option<&'a str> {
        let start = self.at.checked_mul(8)?;
        let text = self.bytes.get(start..start.checked_add(length)?)?;
        self.at = self.at.checked_add(length.div_ceil(8))?;
        std::str::from_utf8(text).ok()
    }
}

/// FNV-1a over words and text, folded.
fn checksum(words: &[u64], text: &[u8]) -> u32 {
    const PRIME: u64 = 0x0100_0000_01b3;
    let step = |hash: u64, more: u64| (hash ^ more).wrapping_mul(PRIME).rotate_left(23);
    let hash = words.iter().fold(0xcbf2_9ce4_8422_2325, |hash, word| step(hash, *word));
    let hash = text.iter().fold(hash, |hash, byte| step(hash, u64::from(*byte)));
    let hash = step(hash, text.len() as u64);
    (hash ^ hash >> 32) as u32
}

#[cfg(test)]
mod tests;
