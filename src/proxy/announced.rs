//! The PROXY protocol: in front of all else, a proxy says for whom it makes a connection
//! (HAProxy's `proxy-protocol.txt`, versions 1 and 2).
//!
//! Where it is spoken at all, trusted proxies have to speak it, and nobody else is listened to:
//! whether there is a header is never guessed (section 2.2), as whoever guesses can be lied to.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ppp::{v1, v2};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Longest header of version 1, its end of line included (section 2.1).
const V1_BYTES_MAX: usize = 107;
/// What every header of version 1 begins with.
const V1_BEGINS: &[u8] = b"PROXY ";
/// What every header of version 2 begins with; no header of version 1 is as short.
const V2_BEGINS: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Longest that a header of version 2 may be behind its first 16 bytes: addresses, and what else a
/// proxy may want to tell (TLVs), such as the certificate of its client.
const V2_BYTES_MAX: usize = 4096;
/// Where the length stands in version 2.
const V2_FIXED_BYTES: usize = 16;
/// Version 2, of a connection that the proxy makes for itself.
const V2_LOCAL: u8 = 0x20;
/// Of none, TCP over IPv4, TCP over IPv6, a stream of this machine. There are those of datagrams
/// besides, and all others are to be refused (section 2.2).
const V2_FAMILIES: [u8; 4] = [0x00, 0x11, 0x21, 0x31];
/// How long a proxy may take to say it: it is its first packet.
pub const LIMIT: Duration = Duration::from_secs(5);

/// The versions that are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The text.
    pub v1: bool,
    /// The binary form.
    pub v2: bool,
}

/// Why it is not known for whom a connection was made.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// It is not the PROXY protocol.
    #[error("no header of the PROXY protocol")]
    Missing,
    /// It is the other version.
    #[error("a header of version {0}, which server.proxy_protocol leaves out")]
    Version(u8),
    /// It is longer than any header has to be.
    #[error("a header that is too long")]
    TooLong,
    /// It is no good one.
    #[error("a broken header: {0}")]
    V1(#[from] v1::ParseError),
    /// It is no good one.
    #[error("a broken header: {0}")]
    V2(#[from] v2::ParseError),
    /// It is no text.
    #[error("a broken header: not ASCII")]
    NotAscii,
    /// It is of another protocol than TCP.
    #[error("a header of a connection that is not of TCP")]
    NotTcp,
    /// Not within [`LIMIT`].
    #[error("no header in time")]
    Timeout,
    /// The socket's.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Reads the header, and not a byte of what follows it. Whom it names; `None`: the proxy speaks for
/// itself, as in its checks of health, or does not know.
///
/// # Errors
/// There is none that is fit to be believed, and nothing else on this connection is.
pub async fn read(
    stream: &mut TcpStream,
    versions: Versions,
) -> Result<Option<SocketAddr>, HeaderError> {
    let header = tokio::time::timeout(LIMIT, read_header(stream, versions));
    named(&header.await.map_err(|_elapsed| HeaderError::Timeout)??)
}

/// Whom a whole header names.
///
/// # Errors
/// It is broken, or of no connection of TCP.
pub fn named(header: &[u8]) -> Result<Option<SocketAddr>, HeaderError> {
    if header.starts_with(&V2_BEGINS) { named_v2(header) } else { named_v1(header) }
}

fn named_v1(header: &[u8]) -> Result<Option<SocketAddr>, HeaderError> {
    let text = std::str::from_utf8(header).ok().filter(|it| it.is_ascii());
    let text = text.ok_or(HeaderError::NotAscii)?;
    if is_unknown(text) {
        return Ok(None);
    }
    if !text.ends_with("\r\n") {
        // The parser takes a space for the carriage return.
        return Err(v1::ParseError::InvalidSuffix.into());
    }
    if text.contains('+') {
        // Digits only; the standard library's numbers may have a sign.
        return Err(v1::ParseError::InvalidSourcePort(None).into());
    }
    let header = v1::Header::try_from(text)?;
    Ok(match header.addresses {
        v1::Addresses::Tcp4(it) => Some((it.source_address, it.source_port).into()),
        v1::Addresses::Tcp6(it) => Some((it.source_address, it.source_port).into()),
        v1::Addresses::Unknown => None,
    })
}

/// Whether a line says that the proxy does not know; what else is on it is to be ignored
/// (section 2.1), however many words that are.
fn is_unknown(line: &str) -> bool {
    let rest = line.strip_prefix("PROXY UNKNOWN").and_then(|rest| rest.strip_suffix("\r\n"));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

fn named_v2(header: &[u8]) -> Result<Option<SocketAddr>, HeaderError> {
    let (command, family) = match header.get(V2_BEGINS.len()..V2_FIXED_BYTES) {
        Some([command, family, ..]) => (*command, *family),
        _ => return Err(v2::ParseError::Incomplete(header.len()).into()),
    };
    if command == V2_LOCAL {
        // What follows is to be skipped, whatever family it says that it is of (section 2.2).
        return Ok(None);
    }
    let header = v2::Header::try_from(header)?;
    if !V2_FAMILIES.contains(&family) {
        return Err(HeaderError::NotTcp);
    }
    Ok(match header.addresses {
        v2::Addresses::IPv4(it) => Some((it.source_address, it.source_port).into()),
        v2::Addresses::IPv6(it) => Some((it.source_address, it.source_port).into()),
        v2::Addresses::Unix(_) | v2::Addresses::Unspecified => None,
    })
}

async fn read_header(stream: &mut TcpStream, versions: Versions) -> Result<Vec<u8>, HeaderError> {
    let mut header = vec![0; V2_BEGINS.len()];
    stream.read_exact(&mut header).await?;
    if header == V2_BEGINS {
        if !versions.v2 {
            return Err(HeaderError::Version(2));
        }
        read_v2(stream, &mut header).await?;
    } else if header.starts_with(V1_BEGINS) {
        if !versions.v1 {
            return Err(HeaderError::Version(1));
        }
        read_v1(stream, &mut header).await?;
    } else {
        return Err(HeaderError::Missing);
    }
    Ok(header)
}

async fn read_v2(stream: &mut TcpStream, header: &mut Vec<u8>) -> Result<(), HeaderError> {
    let begun = header.len();
    header.resize(V2_FIXED_BYTES, 0);
    stream.read_exact(header.get_mut(begun..).unwrap_or_default()).await?;
    let length = match header.as_slice() {
        [.., high, low] => usize::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    };
    if length > V2_BYTES_MAX {
        return Err(HeaderError::TooLong);
    }
    header.resize(V2_FIXED_BYTES.saturating_add(length), 0);
    stream.read_exact(header.get_mut(V2_FIXED_BYTES..).unwrap_or_default()).await?;
    Ok(())
}

/// As far as the end of the line. What is there is looked at before it is taken, so that what
/// follows stays where it is.
async fn read_v1(stream: &mut TcpStream, header: &mut Vec<u8>) -> Result<(), HeaderError> {
    while header.last() != Some(&b'\n') {
        let begun = header.len();
        if begun >= V1_BYTES_MAX {
            return Err(HeaderError::TooLong);
        }
        header.resize(V1_BYTES_MAX, 0);
        let room = header.get_mut(begun..).unwrap_or_default();
        let seen = stream.peek(room).await?;
        if seen == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let seen = room.get(..seen).unwrap_or_default();
        let end = seen.iter().position(|byte| *byte == b'\n');
        let count = end.map_or(seen.len(), |it| it.saturating_add(1));
        stream.read_exact(room.get_mut(..count).unwrap_or_default()).await?;
        header.truncate(begun.saturating_add(count));
    }
    Ok(())
}
