//! A look at the frames that a client of HTTP/2 sends, for what the HTTP/2 library does not bound:
//! how long a head may take, and how many frames may come that bring nothing.
//!
//! It sees the bytes before they are decoded, and keeps no more of them than a frame's nine-byte
//! header (RFC 9113 §4.1). What is wrong with a frame is the library's to find.

use std::time::Duration;

use super::timer::Tick;

/// What a client says before its first frame (RFC 9113 §3.4), in bytes.
const PREFACE_BYTES: usize = 24;
/// Frames without content that may come at once.
const BUDGET: u32 = 1000;
/// And how many more each second.
const REFILL_PER_SECOND: u64 = 200;
/// Of window updates an honest reader sends many, so that only some of them count.
const WINDOW_UPDATES_PER_TOKEN: u8 = 16;
/// And none do that answer what was written: one for so many bytes, fewer than the smallest answer
/// has. A reader may say two for each frame of data, as quickly as data comes.
const BYTES_PER_WINDOW_UPDATE: u64 = 32;
/// Bytes written that are remembered for it.
const WRITTEN_MAX: u64 = 1 << 20;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// More frames without content than anybody has a use for: CVE-2019-9512 (pings), -9514 (resets),
/// -9515 (settings), -9518 (empty frames), CVE-2023-44487 (rapid reset).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a flood of frames without content")]
pub struct Flood;

/// What one connection's frames told so far.
#[derive(Debug)]
pub struct FrameWatch {
    preface_left: usize,
    header: [u8; 9],
    header_bytes: usize,
    payload_left: u32,
    /// Type and flags of the frame that `payload_left` belongs to.
    frame: (u8, u8),
    head_since: Option<Tick>,
    budget: u32,
    refilled: Tick,
    window_updates: u8,
    /// Bytes written that no window update has answered yet.
    written: u64,
}

impl FrameWatch {
    /// Of a connection that begins now, preface included.
    pub fn new(now: Tick) -> Self {
        FrameWatch {
            preface_left: PREFACE_BYTES,
            header: [0; 9],
            header_bytes: 0,
            payload_left: 0,
            frame: (0, 0),
            head_since: None,
            budget: BUDGET,
            refilled: now,
            window_updates: 0,
            written: 0,
        }
    }

    /// Notes that so much was written to the client, who may answer it with window updates.
    pub fn wrote(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.written = self.written.saturating_add(bytes).min(WRITTEN_MAX);
    }

    /// Since when a request's head has been arriving that is not whole yet.
    pub fn head_since(&self) -> Option<Tick> {
        self.head_since
    }

    /// Looks at what was read.
    ///
    /// # Errors
    /// Too many frames that bring nothing.
    pub fn feed(&mut self, mut bytes: &[u8], now: Tick) -> Result<(), Flood> {
        let skipped = self.preface_left.min(bytes.len());
        self.preface_left = self.preface_left.saturating_sub(skipped);
        bytes = bytes.get(skipped..).unwrap_or_default();
        loop {
            if self.payload_left > 0 {
                let left = usize::try_from(self.payload_left).unwrap_or(usize::MAX);
                let skipped = left.min(bytes.len());
                let count = u32::try_from(skipped).unwrap_or(u32::MAX);
                self.payload_left = self.payload_left.saturating_sub(count);
                bytes = bytes.get(skipped..).unwrap_or_default();
                if self.payload_left == 0 {
                    self.frame_ended();
                }
            }
            let Some((first, rest)) = bytes.split_first() else { return Ok(()) };
            if let Some(place) = self.header.get_mut(self.header_bytes) {
                *place = *first;
            }
            self.header_bytes = self.header_bytes.saturating_add(1);
            bytes = rest;
            if self.header_bytes == self.header.len() {
                self.header_bytes = 0;
                self.frame_began(now)?;
            }
        }
    }

    fn frame_began(&mut self, now: Tick) -> Result<(), Flood> {
        let [l0, l1, l2, kind, flags, ..] = self.header;
        self.payload_left = u32::from_be_bytes([0, l0, l1, l2]);
        self.frame = (kind, flags);
        let is_empty = self.payload_left == 0;
        match kind {
            HEADERS => self.head_since = self.head_since.or(Some(now)),
            DATA if !is_empty || flags & END_STREAM != 0 => {}
            CONTINUATION if !is_empty => {}
            WINDOW_UPDATE if self.written >= BYTES_PER_WINDOW_UPDATE => {
                self.written = self.written.saturating_sub(BYTES_PER_WINDOW_UPDATE);
            }
            WINDOW_UPDATE => {
                self.window_updates = self.window_updates.wrapping_add(1);
                if self.window_updates.is_multiple_of(WINDOW_UPDATES_PER_TOKEN) {
                    self.spend(now)?;
                }
            }
            _ => self.spend(now)?,
        }
        if is_empty {
            self.frame_ended();
        }
        Ok(())
    }

    fn frame_ended(&mut self) {
        let (kind, flags) = self.frame;
        if matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS != 0 {
            self.head_since = None;
        }
    }

    fn spend(&mut self, now: Tick) -> Result<(), Flood> {
        if self.budget == 0 {
            let millis = u64::try_from(now.since(self.refilled).as_millis()).unwrap_or(u64::MAX);
            let more = millis.saturating_mul(REFILL_PER_SECOND) / 1000;
            self.budget = u32::try_from(more).unwrap_or(BUDGET).min(BUDGET);
            self.refilled = now;
        }
        self.budget = self.budget.checked_sub(1).ok_or(Flood)?;
        Ok(())
    }
}

/// The moment at which a head that began then has taken too long.
pub fn head_due(since: Option<Tick>, limit: Duration) -> Tick {
    since.map_or(Tick::NEVER, |since| since.plus(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        bytes.extend(vec![0xff; payload]);
        bytes
    }

    fn at(millis: u64) -> Tick {
        Tick::from_millis(millis)
    }

    #[test]
    fn a_head_is_followed_in_pieces_of_any_size() {
        let bytes = [
            PREFACE.to_vec(),
            frame(4, 0, 18),
            frame(HEADERS, END_STREAM, 70_000),
            frame(CONTINUATION, 0, 9),
            frame(CONTINUATION, END_HEADERS, 5),
            frame(DATA, 0, 300),
        ]
        .concat();
        let head_begins = PREFACE.len() + 9 + 18 + 9;
        let head_ends = bytes.len() - 309;
        for piece in [1, 2, 7, 9, 64, 100_000] {
            let mut watch = FrameWatch::new(at(0));
            let mut fed = 0;
            for part in bytes.chunks(piece) {
                watch.feed(part, at(5)).unwrap();
                fed += part.len();
                let is_in_head = (head_begins..head_ends).contains(&fed);
                assert_eq!(watch.head_since().is_some(), is_in_head, "{piece} {fed}");
            }
        }
    }

    #[test]
    fn floods_of_nothing_are_told_and_what_brings_something_is_not() {
        let many = |frame: Vec<u8>, count: usize| {
            let mut watch = FrameWatch::new(at(0));
            watch.feed(PREFACE, at(0)).unwrap();
            (0..count).try_for_each(|_| watch.feed(&frame, at(0)))
        };
        for (kind, flags, payload) in [
            (2, 0, 5),
            (3, 0, 4),
            (4, 0, 0),
            (6, 0, 8),
            (DATA, 0, 0),
            (CONTINUATION, 0, 0),
            (99, 0, 1),
        ] {
            assert_eq!(many(frame(kind, flags, payload), 1000), Ok(()), "{kind}");
            assert_eq!(many(frame(kind, flags, payload), 1001), Err(Flood), "{kind}");
        }
        assert_eq!(many(frame(WINDOW_UPDATE, 0, 4), 16_000), Ok(()));
        assert_eq!(many(frame(WINDOW_UPDATE, 0, 4), 16_016), Err(Flood));
        for (kind, flags, payload) in
            [(DATA, 0, 1), (DATA, END_STREAM, 0), (HEADERS, END_HEADERS | END_STREAM, 20)]
        {
            assert_eq!(many(frame(kind, flags, payload), 100_000), Ok(()), "{kind}");
        }
    }

    #[test]
    fn window_updates_that_answer_what_was_written_are_no_flood() {
        let update = frame(WINDOW_UPDATE, 0, 4);
        let mut watch = FrameWatch::new(at(0));
        watch.feed(PREFACE, at(0)).unwrap();
        // A gigabyte in frames of 16 KiB, and two for each, all at once.
        for _ in 0..65_536 {
            watch.wrote(9 + 16_384);
            for _ in 0..2 {
                watch.feed(&update, at(0)).unwrap();
            }
        }
        // What was not answered is not kept for ever.
        let left = (0..1_000_000).take_while(|_| watch.feed(&update, at(0)).is_ok()).count();
        assert_eq!(left, 16_015 + (1 << 20) / 32 - 2);
    }

    #[test]
    fn time_brings_back_what_was_spent() {
        let mut watch = FrameWatch::new(at(0));
        watch.feed(PREFACE, at(0)).unwrap();
        let settings = frame(4, 0, 0);
        let mut sent = 0;
        while watch.feed(&settings, at(0)).is_ok() {
            sent += 1;
        }
        assert_eq!(sent, 1000);
        for second in 1..=10 {
            let of_second =
                (0..1000).take_while(|_| watch.feed(&settings, at(second * 1000)).is_ok());
            assert_eq!(of_second.count(), 200, "second {second}");
        }
    }
}
