//! Files of records: frames behind each other, each with its length and a checksum.
//!
//! Names say what a file is: `2026-11-30T08-EPOCH.log` takes the batches of one process in that
//! hour as they come; `….minutes` are the same added up; `….hours` the same by the hour. Of files
//! that differ in the ending alone the later kind counts, so that one can take the other's place
//! by a rename.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::journal::SEGMENT_BYTES_MAX;
use super::record::{Counts, parse_minute, written};
use super::segment::{Parsed, Stream, parse};

const SEGMENT_FRAME: [u8; 8] = *b"TGBATCH1";
const SUMMARY_FRAME: [u8; 8] = *b"TGSUMM_1";
const HEAD_BYTES: u64 = 24;
/// Of a segment, so much says which it is.
const SEGMENT_HEAD_BYTES: usize = 64;
/// Largest summary: some hundred thousand streams.
const SUMMARY_BYTES_MAX: u64 = 64 << 20;

/// What a file is; the later counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    Log,
    Minutes,
    Hours,
}

/// What a file's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Name {
    /// The hour in which batches came, by its first minute.
    pub hour: u32,
    /// Who wrote it first.
    pub epoch: u128,
    pub kind: Kind,
}

impl Name {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (stem, ending) = text.split_once('.')?;
        let kind = match ending {
            "log" => Kind::Log,
            "minutes" => Kind::Minutes,
            "hours" => Kind::Hours,
            _ => return None,
        };
        let (hour, epoch) = (stem.get(..13)?, stem.get(13..)?.strip_prefix('-')?);
        let hour = parse_minute(&format!("{hour}:00")).ok()?;
        Some(Name { hour, epoch: u128::from_str_radix(epoch, 16).ok()?, kind })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ending = match self.kind {
            Kind::Log => "log",
            Kind::Minutes => "minutes",
            Kind::Hours => "hours",
        };
        let hour = written(self.hour);
        write!(f, "{}-{:032x}.{ending}", hour.get(..13).unwrap_or_default(), self.epoch)
    }
}

/// What a file of added-up records says of itself, at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Summary {
    /// The last batch of each stream that is in it, as `EPOCH-WORKER`.
    pub streams: BTreeMap<String, u64>,
    /// Sums by epoch and tier.
    pub totals: BTreeMap<String, BTreeMap<Box<str>, [i64; 5]>>,
    pub first_minute: u32,
    pub last_minute: u32,
}

impl Summary {
    /// Takes a batch into account.
    pub(super) fn add(&mut self, parsed: &Parsed<'_>) {
        let last = self.streams.entry(stream_name(parsed.id.stream)).or_default();
        *last = parsed.id.sequence.max(*last);
        for row in &parsed.rows {
            self.first_minute = match self.first_minute {
                0 => row.minute,
                first => first.min(row.minute),
            };
            self.last_minute = self.last_minute.max(row.minute);
            let epoch = format!("{:032x}", parsed.id.stream.epoch);
            let tiers = self.totals.entry(epoch).or_default();
            if !tiers.contains_key(row.tier) {
                tiers.insert(row.tier.into(), [0; 5]);
            }
            if let Some(sums) = tiers.get_mut(row.tier) {
                let mut counts = Counts::from_array(*sums);
                counts += row.counts;
                *sums = counts.to_array();
            }
        }
    }
}

/// A stream as summaries name it.
pub(super) fn stream_name(stream: Stream) -> String {
    format!("{:032x}-{}", stream.epoch, stream.worker)
}

/// Appends a frame, or nothing: where it fails the file is cut to what it was.
pub(super) fn append_segment(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    append(file, SEGMENT_FRAME, bytes)
}

pub(super) fn append_summary(file: &mut File, summary: &Summary) -> io::Result<()> {
    append(file, SUMMARY_FRAME, &serde_json::to_vec(summary)?)
}

fn append(file: &mut File, magic: [u8; 8], payload: &[u8]) -> io::Result<()> {
    let start = file.seek(SeekFrom::End(0))?;
    let mut frame = Vec::with_capacity(payload.len().saturating_add(24));
    frame.extend(magic);
    frame.extend((payload.len() as u64).to_le_bytes());
    frame.extend(checksum(payload).to_le_bytes());
    frame.extend(payload);
    file.write_all(&frame).inspect_err(|_| {
        let _ = file.set_len(start);
    })
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(0x9e37_79b9_7f4a_7c15, |hash: u64, chunk| {
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(chunk) {
            *to = *from;
        }
        (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x2545_f491_4f6c_dd1d).rotate_left(29)
    })
}

/// A frame as it is read.
pub(super) enum Frame<'a> {
    Segment(Parsed<'a>),
    Summary(Summary),
}

/// Reads every whole frame of a file. Returns the bytes at its end that are none: the last frame of
/// a machine that lost its power, whose batch is in the journal still.
pub(super) fn read(path: &Path, each: &mut dyn FnMut(Frame<'_>)) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut at = 0_u64;
    let mut payload = Vec::new();
    while let Some((magic, size, check)) = head(&mut file, at, length)? {
        payload.resize(usize::try_from(size).unwrap_or(0), 0);
        file.read_exact(&mut payload)?;
        if checksum(&payload) != check {
            break;
        }
        match magic {
            SEGMENT_FRAME => {
                let Ok(parsed) = parse(&payload) else { break };
                each(Frame::Segment(parsed));
            }
            _ => {
                let Ok(summary) = serde_json::from_slice(&payload) else { break };
                each(Frame::Summary(summary));
            }
        }
        at = at.saturating_add(HEAD_BYTES).saturating_add(size);
    }
    Ok(length.saturating_sub(at))
}

/// Which batches a log has, by their heads alone.
pub(super) fn heads(path: &Path, each: &mut dyn FnMut(Parsed<'_>)) -> io::Result<()> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut at = 0_u64;
    while let Some((magic, size, check)) = head(&mut file, at, length)? {
        let end = at.saturating_add(HEAD_BYTES).saturating_add(size);
        let is_last = end == length || head(&mut file, end, length)?.is_none();
        file.seek(SeekFrom::Start(at.saturating_add(HEAD_BYTES)))?;
        // Only the last one can be torn.
        let wanted = if is_last { size } else { size.min(SEGMENT_HEAD_BYTES as u64) };
        let mut some = vec![0; usize::try_from(wanted).unwrap_or(0)];
        file.read_exact(&mut some)?;
        if is_last && checksum(&some) != check {
            break;
        }
        some.truncate(SEGMENT_HEAD_BYTES);
        if magic == SEGMENT_FRAME
            && let Ok(parsed) = parse(&some)
        {
            each(parsed);
        }
        at = end;
    }
    Ok(())
}

/// The summary at a file's end.
pub(super) fn summary(path: &Path) -> io::Result<Option<Summary>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut at = 0_u64;
    while let Some((magic, size, _)) = head(&mut file, at, length)? {
        if magic == SUMMARY_FRAME {
            let mut payload = vec![0; usize::try_from(size).unwrap_or(0)];
            file.read_exact(&mut payload)?;
            return Ok(serde_json::from_slice(&payload).ok());
        }
        at = at.saturating_add(HEAD_BYTES).saturating_add(size);
    }
    Ok(None)
}

/// The head of the frame at `at`, if the whole of it is there; the file stands behind it.
fn head(file: &mut File, at: u64, length: u64) -> io::Result<Option<([u8; 8], u64, u64)>> {
    if at.saturating_add(HEAD_BYTES) > length {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(at))?;
    let (mut magic, mut size, mut check) = ([0; 8], [0; 8], [0; 8]);
    file.read_exact(&mut magic)?;
    file.read_exact(&mut size)?;
    file.read_exact(&mut check)?;
    let size = u64::from_le_bytes(size);
    let is_ours = match magic {
        SEGMENT_FRAME => size <= SEGMENT_BYTES_MAX,
        SUMMARY_FRAME => size <= SUMMARY_BYTES_MAX,
        _ => false,
    };
    let is_whole = at.saturating_add(HEAD_BYTES).saturating_add(size) <= length;
    Ok((is_ours && is_whole).then(|| (magic, size, u64::from_le_bytes(check))))
}
