//! Frames of WebSocket (RFC 6455 §5.2) as bytes, and an end that echoes them.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;

use crate::support::BackendConnection;

// Opcodes.
pub const CONTINUATION: u8 = 0x0;
pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xa;
/// The last frame of a message.
pub const FIN: u8 = 0x80;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const MASKED: u8 = 0x80;

/// A frame as it was read, without its mask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// FIN, the reserved bits and the opcode.
    pub first: u8,
    pub payload: Vec<u8>,
}

/// A frame as clients send it: masked.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = head(first, payload.len(), MASKED);
    bytes.extend(MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

fn head(first: u8, length: usize, masked: u8) -> Vec<u8> {
    let mut bytes = vec![first];
    match length {
        short @ 0..=125 => bytes.push(masked | u8::try_from(short).unwrap()),
        medium @ 126..=65_535 => {
            bytes.push(masked | 126);
            bytes.extend(u16::try_from(medium).unwrap().to_be_bytes());
        }
        long => {
            bytes.push(masked | 127);
            bytes.extend((long as u64).to_be_bytes());
        }
    }
    bytes
}

/// The next frame; `None` at the end of the connection.
///
/// # Errors
/// The connection's, and its end within a frame.
pub fn read_frame(reader: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut head = [0; 2];
    match reader.read(&mut head[..1])? {
        0 => return Ok(None),
        _ => reader.read_exact(&mut head[1..])?,
    }
    let length = match head[1] & !MASKED {
        126 => {
            let mut length = [0; 2];
            reader.read_exact(&mut length)?;
            u64::from(u16::from_be_bytes(length))
        }
        127 => {
            let mut length = [0; 8];
            reader.read_exact(&mut length)?;
            u64::from_be_bytes(length)
        }
        short => u64::from(short),
    };
    let mut mask = [0; 4];
    if head[1] & MASKED != 0 {
        reader.read_exact(&mut mask)?;
    }
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    reader.read_exact(&mut payload)?;
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    Ok(Some(Frame { first: head[0], payload }))
}

/// Sends every frame back, a Close as the last.
///
/// # Errors
/// The connection's.
pub fn echo(stream: &mut BufReader<TcpStream>) -> io::Result<()> {
    while let Some(Frame { first, payload }) = read_frame(stream)? {
        let bytes = [head(first, payload.len(), 0), payload].concat();
        stream.get_mut().write_all(&bytes)?;
        if first == FIN | CLOSE {
            break;
        }
    }
    Ok(())
}

/// A tunnel that is at its end on one side before the other: `/client-first`, or any other path for the
/// server's.
pub fn half_by_half(connection: &mut BackendConnection, path: &str) {
    if path == "/client-first" {
        // All that is sent until the client's end, and then a word of one's own.
        assert_eq!(connection.read_exactly(5), b"first");
        assert!(connection.read_some(1).is_empty(), "the client's end comes through");
        connection.send("and last");
    } else {
        connection.send("first");
        connection.end_writing();
        assert_eq!(connection.read_exactly(8), b"and last");
        assert!(connection.read_some(1).is_empty());
    }
}
