//! Frames of HTTP/2 as bytes, right ones and wrong ones: no library would send what has to be refused.

#![allow(dead_code, reason = "each test binary uses its own part")]

use crate::harness::{WAIT, Wire};

#[path = "frames.rs"]
mod frames;

pub use frames::*;

/// What a client says first: the preface and settings that settle nothing.
pub fn preface() -> Vec<u8> {
    [PREFACE.to_vec(), frame(SETTINGS, 0, 0, b"")].concat()
}

/// A whole head on a stream.
pub fn head<N: AsRef<[u8]>, V: AsRef<[u8]>>(stream: u32, flags: u8, fields: &[(N, V)]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, &block(fields))
}

/// The whole frames of what came.
pub fn frames(mut raw: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let [a, b, c, kind, flags, s0, s1, s2, s3, rest @ ..] = raw {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let Some(payload) = rest.get(..length) else { break };
        let stream = u32::from_be_bytes([s0 & 0x7f, *s1, *s2, *s3]);
        frames.push(Frame { kind: *kind, flags: *flags, stream, payload: payload.to_vec() });
        raw = &rest[length..];
    }
    frames
}

/// What came of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// An answer: its status, where it is one that HPACK has a number for, else 0; and its content.
    Answer(u16, Vec<u8>),
    /// The stream was reset, with this code.
    Reset(u32),
    /// The connection was ended.
    Gone,
    /// Nothing.
    Silence,
}

/// What came of a stream so far.
pub fn end_of(wire: &Wire, stream: u32) -> End {
    let (mut status, mut content) = (None, Vec::new());
    let frames = frames(&wire.raw);
    for frame in frames.iter().filter(|frame| frame.stream == stream) {
        match frame.kind {
            HEADERS if status.is_none() => status = Some(status_in(&frame.payload)),
            DATA => content.extend(&frame.payload),
            RST_STREAM => {
                // No error: the answer is whole, and what is left of the request is not wanted.
                let code = frame.payload.get(..4).and_then(|it| it.try_into().ok());
                let code = u32::from_be_bytes(code.unwrap_or_default());
                return match status {
                    Some(status) if code == 0 => End::Answer(status, content),
                    _ => End::Reset(code),
                };
            }
            _ => {}
        }
        if let Some(status) = status
            && matches!(frame.kind, HEADERS | DATA)
            && frame.flags & END_STREAM != 0
        {
            return End::Answer(status, content);
        }
    }
    if wire.has_ended || frames.iter().any(|frame| frame.kind == GOAWAY) {
        return End::Gone;
    }
    End::Silence
}

/// Reads until something has come of a stream.
pub fn wait_for(wire: &mut Wire, stream: u32) -> End {
    let deadline = std::time::Instant::now() + WAIT;
    loop {
        let end = end_of(wire, stream);
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        if end != End::Silence || left.is_zero() || wire.has_ended {
            return end;
        }
        let before = wire.raw.len();
        wire.wait(left, |raw| raw.len() > before);
    }
}

/// The status at the beginning of a head, if it is an entry of the static table (RFC 7541 A).
fn status_in(block: &[u8]) -> u16 {
    // Changes of the table's size come first.
    let first = block.iter().find(|byte| **byte & 0xe0 != 0x20);
    match first {
        Some(0x88) => 200,
        Some(0x89) => 204,
        Some(0x8a) => 206,
        Some(0x8b) => 304,
        Some(0x8c) => 400,
        Some(0x8d) => 404,
        Some(0x8e) => 500,
        _ => 0,
    }
}
