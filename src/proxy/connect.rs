//! Making one connection to the upstream: names, addresses, sockets, TLS.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::clock;
use crate::tls::client::{ALPN_HTTP2, ClientTls};

use super::resolve::Addresses;

/// How long an address is tried at least, however many there are, if the time allows.
const SHARE_MIN: Duration = Duration::from_millis(250);
/// What a failed look-up leaves of the time, so that the failure before it is what is told.
const TO_TELL: Duration = Duration::from_millis(5);

/// The upstream, and what is spoken there.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where it listens.
    pub place: Place,
    /// What is spoken.
    pub protocol: Protocol,
}

/// Where the upstream listens.
#[derive(Clone, Debug)]
pub enum Place {
    /// On a port of these addresses.
    Tcp(Arc<Addresses>),
    /// On a socket of this machine.
    Unix(PathBuf),
}

/// What is spoken with the upstream.
#[derive(Clone, Debug)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS (RFC 9113 §3.3).
    Http2,
    /// What the upstream chooses, over TLS.
    Tls(Arc<ClientTls>),
}

/// Why no connection could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No address of the upstream took the connection.
    #[error("cannot connect to the upstream")]
    Unreachable(#[source] io::Error),
    /// None did in time.
    #[error("connecting to the upstream took too long")]
    Timeout,
    /// It took the connection, and was not what was expected there.
    #[error("the upstream does not speak what is configured, or is not who it should be")]
    Refused(#[source] io::Error),
}

/// A socket to the upstream.
#[derive(Debug)]
pub enum Stream {
    /// Plain.
    Tcp(TcpStream),
    /// Of this machine.
    Unix(UnixStream),
    /// With TLS. Boxed: it is far larger than the others, and only they are in a hurry.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Target {
    /// A connection, and whether HTTP/2 is spoken on it. Asks for HTTP/1.1 alone where
    /// `needs_http1`. Gives up by itself at `deadline`, as far as names are concerned.
    ///
    /// # Errors
    /// Nobody takes it, or whoever does is not the upstream.
    pub async fn connect(
        &self,
        needs_http1: bool,
        limit: Duration,
        deadline: Instant,
    ) -> Result<(Stream, bool), ConnectError> {
        let stream = match &self.place {
            Place::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix),
            Place::Tcp(addresses) => connect_any(addresses, limit, deadline).await.map(Stream::Tcp),
        };
        let stream = stream.map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => ConnectError::Timeout,
            _ => ConnectError::Unreachable(error),
        })?;
        match (&self.protocol, stream) {
            (Protocol::Tls(tls), Stream::Tcp(stream)) => {
                let config = if needs_http1 { &tls.http1 } else { &tls.any };
                let connector = TlsConnector::from(Arc::clone(config));
                let stream = connector.connect(tls.server_name.clone(), stream).await;
                let stream = stream.map_err(ConnectError::Refused)?;
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(ALPN_HTTP2);
                Ok((Stream::Tls(Box::new(stream)), is_http2))
            }
            (Protocol::Http2, stream) => Ok((stream, true)),
            (Protocol::Http1 | Protocol::Tls(_), stream) => Ok((stream, false)),
        }
    }
}

/// Tries every address that is known, and where all of them fail, those that a look-up adds.
async fn connect_any(
    addresses: &Addresses,
    limit: Duration,
    deadline: Instant,
) -> io::Result<TcpStream> {
    let known = addresses.get().await?;
    let in_turn = addresses.rotated(&known);
    let failure = match connect_in_turn(in_turn, known.len(), limit).await {
        Ok(stream) => return Ok(stream),
        Err(failure) => failure,
    };
    let until = deadline.checked_sub(TO_TELL).unwrap_or(deadline);
    let beyond = async {
        let beyond = addresses.beyond(&known).await;
        if beyond.is_empty() {
            return None;
        }
        let left = deadline.saturating_duration_since(clock::monotonic());
        let count = beyond.len();
        connect_in_turn(beyond.into_iter(), count, left).await.ok()
    };
    let beyond = tokio::time::timeout_at(until.into(), beyond).await;
    beyond.ok().flatten().ok_or(failure)
}

/// Tries one address after the other, each for its share of the time: one that swallows what is
/// sent to it must not keep the others from being asked.
async fn connect_in_turn(
    addresses: impl Iterator<Item = SocketAddr>,
    count: usize,
    limit: Duration,
) -> io::Result<TcpStream> {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let share = limit.checked_div(count).unwrap_or(limit).max(SHARE_MIN);
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => failure = error,
            Err(_elapsed) => failure = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failure)
}

/// The socket, reachable from beside hyper's connection task. The lock is never contended: it is
/// there because hyper wants an upgraded socket to be `Send`.
#[derive(Debug)]
pub struct UpstreamSocket {
    stream: Mutex<Stream>,
    bytes_read: AtomicU64,
}

/// What a look at a socket shows, without reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing waits to be read.
    Quiet,
    /// Bytes wait.
    Bytes,
    /// The upstream has closed it, or it is broken.
    Closed,
}

impl UpstreamSocket {
    /// Takes a socket that was just connected.
    pub fn new(stream: Stream) -> Arc<Self> {
        Arc::new(UpstreamSocket { stream: Mutex::new(stream), bytes_read: AtomicU64::new(0) })
    }

    /// Asks the kernel what waits to be read.
    pub fn look(&self) -> Look {
        let stream = self.stream.lock();
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let peeked = match &*stream {
            Stream::Tcp(stream) => SockRef::from(stream).peek(&mut byte),
            Stream::Unix(stream) => SockRef::from(stream).peek(&mut byte),
            Stream::Tls(stream) => SockRef::from(stream.get_ref().0).peek(&mut byte),
        };
        match peeked {
            Ok(1..) => Look::Bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Look::Quiet,
            Ok(0) | Err(_) => Look::Closed,
        }
    }

    /// Forgets what was read so far.
    pub fn forget_read(&self) {
        self.bytes_read.store(0, Relaxed);
    }

    /// Whether any byte has arrived since then.
    pub fn has_read(&self) -> bool {
        self.bytes_read.load(Relaxed) > 0
    }
}

/// What hyper reads from and writes to.
#[derive(Debug)]
pub struct UpstreamIo(pub Arc<UpstreamSocket>);

/// Hands a poll on to whichever socket it is.
macro_rules! poll_stream {
    ($io:expr, $stream:ident => $poll:expr) => {
        match &mut *$io.0.stream.lock() {
            Stream::Tcp($stream) => $poll,
            Stream::Unix($stream) => $poll,
            Stream::Tls($stream) => $poll,
        }
    };
}

impl AsyncRead for UpstreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(poll_stream!(self, stream => Pin::new(stream).poll_read(cx, buf)))?;
        let count = buf.filled().len().saturating_sub(before);
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.0.bytes_read.store(self.0.bytes_read.load(Relaxed).saturating_add(count), Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        poll_stream!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        poll_stream!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        poll_stream!(self, stream => stream.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        poll_stream!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        poll_stream!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_silent_address_leaves_time_for_the_next() {
        let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let silent = silent.unwrap();
        silent.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        silent.listen(0).unwrap();
        let silent_address = silent.local_addr().unwrap().as_socket().unwrap();
        // Its backlog is full before long, and from then on it does not answer.
        let mut filling = Vec::new();
        for _ in 0..4 {
            let connect = TcpStream::connect(silent_address);
            filling.push(tokio::time::timeout(Duration::from_millis(50), connect).await);
        }
        assert!(filling.iter().any(Result::is_err), "the silent address is not silent");

        let live = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let live_address = live.local_addr().unwrap();
        let addresses = vec![silent_address, live_address];
        let stream =
            connect_in_turn(addresses.into_iter(), 2, Duration::from_secs(1)).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), live_address);

        let failure =
            connect_in_turn([silent_address].into_iter(), 1, SHARE_MIN).await.unwrap_err();
        assert_eq!(failure.kind(), io::ErrorKind::TimedOut);
    }
}
