//! The header of the PROXY protocol, however it is cut, beside a reader of the specification.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use tollgate::proxy::announced::{self, Versions};

/// What version 2 begins with.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest line of version 1 (section 2.1).
const V1_BYTES_MAX: usize = 107;
/// Longest that tollgate lets a header of version 2 be, behind its first 16 bytes.
const V2_BYTES_MAX: usize = 4096;

/// What is believed of a header: whom it names, and how long it is.
type Believed = Option<(Option<SocketAddr>, usize)>;

/// The first byte says which versions are understood, the second how what follows is cut.
///
/// Read in one piece and read in many, it names the same, and leaves the same for who reads on.
pub fn proxy_protocol(data: &[u8]) {
    let [flags, cut, bytes @ ..] = data else { return };
    let versions = Versions { v1: flags & 1 == 0, v2: flags & 2 == 0 };
    let expected = by_the_specification(bytes, versions);
    for cut in [0, *cut] {
        let (named, left) = read(bytes, versions, cut);
        match (named, expected) {
            (Ok(named), Some((address, length))) => {
                assert_eq!(named, address, "{}", bytes.escape_ascii());
                assert_eq!(left, bytes[length..], "{}", bytes.escape_ascii());
            }
            (Ok(named), None) => panic!("{} is believed: {named:?}", bytes.escape_ascii()),
            (Err(error), Some(it)) => panic!("{}: {error}, not {it:?}", bytes.escape_ascii()),
            (Err(_), None) => {
                let max = if bytes.starts_with(V2) { 16 + V2_BYTES_MAX } else { V1_BYTES_MAX };
                assert!(bytes.ends_with(&left), "{}", bytes.escape_ascii());
                assert!(bytes.len() - left.len() <= max, "{}", bytes.escape_ascii());
                assert!(
                    bytes.starts_with(V2)
                        || bytes.starts_with(b"PROXY ")
                        || left.len() + 12 >= bytes.len()
                );
            }
        }
    }
    let whole = expected.and_then(|(_, length)| bytes.get(..length));
    if let Some((header, (address, _))) = whole.zip(expected) {
        assert_eq!(announced::named(header).ok(), Some(address), "{}", header.escape_ascii());
    }
    let _ = announced::named(bytes);
}

/// What is read of these bytes on a connection, and what is left on it. `cut` 0: they come at once.
fn read(
    bytes: &[u8],
    versions: Versions,
    cut: u8,
) -> (Result<Option<SocketAddr>, announced::HeaderError>, Vec<u8>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("its address");
        let mut client = TcpStream::connect(address).expect("it listens");
        let (server, _) = listener.accept().expect("a connection");
        // Its port is free again at once.
        socket2::SockRef::from(&server).set_linger(Some(std::time::Duration::ZERO)).expect("set");
        client.set_nodelay(true).expect("set");
        server.set_nonblocking(true).expect("set");
        let mut server = tokio::net::TcpStream::from_std(server).expect("a socket");
        let write = async {
            let (mut rest, mut state) = (bytes, u32::from(cut));
            while !rest.is_empty() {
                state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345);
                let count = if cut == 0 { rest.len() } else { 1 + (state >> 16) as usize % 9 };
                // So that the header's end is not always met by one of many small pieces.
                let count = if cut % 3 == 1 { count * 16 } else { count };
                let (piece, next) = rest.split_at(count.min(rest.len()));
                client.write_all(piece).expect("there is room");
                rest = next;
                // Twice: for the socket to be seen as readable, and for it to be read.
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
            }
            client.shutdown(std::net::Shutdown::Write).expect("it is open");
        };
        let (named, ()) = tokio::join!(announced::read(&mut server, versions), write);
        let mut server = server.into_std().expect("a socket");
        server.set_nonblocking(false).expect("set");
        let mut left = Vec::new();
        server.read_to_end(&mut left).expect("it was ended");
        (named, left)
    })
}

fn by_the_specification(bytes: &[u8], versions: Versions) -> Believed {
    if let Some(rest) = bytes.strip_prefix(V2) {
        return if versions.v2 { version_2(rest) } else { None };
    }
    let end = bytes.windows(2).take(V1_BYTES_MAX - 1).position(|it| it == b"\r\n")?;
    let line = std::str::from_utf8(&bytes[..end]).ok().filter(|it| it.is_ascii())?;
    let rest = line.strip_prefix("PROXY ").filter(|_| versions.v1)?;
    // A line feed alone ends it, too, and no good header has one.
    if line.contains('\n') {
        return None;
    }
    let address = match rest.strip_prefix("UNKNOWN") {
        // Whatever else there is on the line is of no matter.
        Some(rest) if rest.is_empty() || rest.starts_with(' ') => None,
        Some(_) => return None,
        None => Some(version_1(rest)?),
    };
    Some((address, end + 2))
}

fn version_1(rest: &str) -> Option<SocketAddr> {
    let words: Vec<&str> = rest.split(' ').collect();
    let [family, source, destination, port, to_port] = words[..] else { return None };
    let number = |text: &str| {
        let is_plain = text.bytes().all(|it| it.is_ascii_digit()) && !text.is_empty();
        let is_short = text == "0" || !text.starts_with('0');
        text.parse::<u16>().ok().filter(|_| is_plain && is_short)
    };
    let (port, _) = (number(port)?, number(to_port)?);
    let source: IpAddr = match family {
        "TCP4" => {
            (source.parse::<Ipv4Addr>().ok()?, destination.parse::<Ipv4Addr>().ok()?).0.into()
        }
        "TCP6" => {
            (source.parse::<Ipv6Addr>().ok()?, destination.parse::<Ipv6Addr>().ok()?).0.into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(source, port))
}

fn version_2(rest: &[u8]) -> Believed {
    let [command, family, high, low, rest @ ..] = rest else { return None };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let block = rest.get(..length).filter(|_| length <= V2_BYTES_MAX)?;
    let whole = V2.len() + 4 + length;
    let port = |at: usize| Some(u16::from_be_bytes(block.get(at..at + 2)?.try_into().ok()?));
    match (command, family) {
        // The proxy's own connection: the block is skipped, and the family with it.
        (0x20, _) | (0x21, 0x00) => Some((None, whole)),
        (0x21, 0x11) => {
            let source: [u8; 4] = block.get(..4)?.try_into().ok()?;
            let _ = port(10)?;
            Some((Some(SocketAddr::new(source.into(), port(8)?)), whole))
        }
        (0x21, 0x21) => {
            let source: [u8; 16] = block.get(..16)?.try_into().ok()?;
            let _ = port(34)?;
            Some((Some(SocketAddr::new(source.into(), port(32)?)), whole))
        }
        (0x21, 0x31) if length >= 216 => Some((None, whole)),
        _ => None,
    }
}
