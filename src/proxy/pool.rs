//! One worker's connections to the upstream.
//!
//! Each worker keeps its own, so that taking one and giving it back costs no lock and wakes no
//! other thread. The one used last is taken first: the others grow old and are let go.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::clock;
use crate::metrics::cells::LevelGuard;
use crate::metrics::series::{PoolSeries, UpstreamSeries};

use super::body::UploadBody;
use super::resolve::Addresses;
use super::timer::{Tick, Timers};

/// How long an address is tried at least, however many there are, if the time allows.
const SHARE_MIN: Duration = Duration::from_millis(250);

/// How connections to the upstream are made and kept.
#[derive(Clone, Copy, Debug)]
pub struct PoolSettings {
    /// Bound of making one, name and all addresses included.
    pub connect_timeout: Duration,
    /// Idle ones kept by this worker.
    pub idle_max: usize,
    /// How long an idle one is kept.
    pub idle_timeout: Duration,
    /// Largest response head, in bytes.
    pub head_bytes_max: usize,
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
}

/// The idle connections of one worker.
#[derive(Debug)]
pub struct Pool {
    idle: RefCell<Vec<Idle>>,
    addresses: Arc<Addresses>,
    timers: Arc<Timers>,
    signals: PoolSignals,
    settings: PoolSettings,
}

/// Where a pool counts.
#[derive(Clone, Debug)]
pub struct PoolSignals {
    /// Its connections.
    pub pool: Arc<PoolSeries>,
    /// How long making one took.
    pub upstream: Arc<UpstreamSeries>,
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<UploadBody>,
    socket: Arc<UpstreamSocket>,
    until: Tick,
    _counted: LevelGuard,
}

/// A connection to the upstream, lent to one exchange. Dropping it closes the connection.
#[derive(Debug)]
pub struct Lease {
    /// Sends the request.
    pub sender: http1::SendRequest<UploadBody>,
    /// Whether it carried an exchange before.
    pub is_reused: bool,
    socket: Arc<UpstreamSocket>,
    pool: Rc<Pool>,
    _counted: LevelGuard,
}

/// The socket, reachable from beside hyper's connection task.
#[derive(Debug)]
struct UpstreamSocket {
    stream: Mutex<TcpStream>,
    bytes_read: AtomicU64,
}

impl Pool {
    /// An empty pool.
    pub fn new(
        addresses: Arc<Addresses>,
        timers: Arc<Timers>,
        signals: PoolSignals,
        settings: PoolSettings,
    ) -> Rc<Self> {
        Rc::new(Pool { idle: RefCell::new(Vec::new()), addresses, timers, signals, settings })
    }

    /// The idle connection used last, if there is one that still stands.
    ///
    /// `must_be_alive` asks the kernel too whether the upstream has closed it meanwhile: for a
    /// request that could not be sent a second time.
    pub fn take(self: &Rc<Self>, must_be_alive: bool) -> Option<Lease> {
        let mut idle = self.idle.borrow_mut();
        while let Some(candidate) = idle.pop() {
            let stands = candidate.sender.is_ready()
                && !self.timers.is_past(candidate.until)
                && (!must_be_alive || candidate.socket.is_open());
            if stands {
                candidate.socket.bytes_read.store(0, Relaxed);
                return Some(Lease {
                    sender: candidate.sender,
                    is_reused: true,
                    socket: candidate.socket,
                    pool: Rc::clone(self),
                    _counted: self.signals.pool.active(),
                });
            }
        }
        None
    }

    /// A new connection.
    ///
    /// # Errors
    /// No address took it, or none in time.
    pub async fn connect(self: &Rc<Self>) -> Result<Lease, ConnectError> {
        let limit = self.settings.connect_timeout;
        let started = clock::monotonic();
        let stream = match tokio::time::timeout(limit, self.connect_any()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(ConnectError::Timeout);
            }
            Ok(Err(error)) => return Err(ConnectError::Unreachable(error)),
            Err(_elapsed) => return Err(ConnectError::Timeout),
        };
        self.signals.upstream.connected(clock::monotonic().saturating_duration_since(started));
        let socket =
            Arc::new(UpstreamSocket { stream: Mutex::new(stream), bytes_read: AtomicU64::new(0) });
        let io = TokioIo::new(UpstreamIo(Arc::clone(&socket)));
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(self.settings.head_bytes_max)
            .max_header_size(self.settings.head_bytes_max)
            .handshake(io)
            .await
            .map_err(|error| ConnectError::Unreachable(io::Error::other(error)))?;
        // Its errors reach the exchange through `sender` and the body.
        tokio::task::spawn_local(async move { connection.with_upgrades().await.ok() });
        let counted = self.signals.pool.active();
        Ok(Lease { sender, is_reused: false, socket, pool: Rc::clone(self), _counted: counted })
    }

    /// Closes what has been idle for too long, and what the upstream has closed.
    pub fn sweep(&self) {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|entry| !self.timers.is_past(entry.until) && !entry.sender.is_closed());
    }

    async fn connect_any(&self) -> io::Result<TcpStream> {
        let addresses = self.addresses.get().await?;
        let in_turn = self.addresses.rotated(&addresses);
        let connected =
            connect_in_turn(in_turn, addresses.len(), self.settings.connect_timeout).await;
        if connected.is_err() {
            self.addresses.refresh();
        }
        connected
    }
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

impl Lease {
    /// Back to the pool, for the next exchange.
    pub fn give_back(self) {
        if self.sender.is_closed() {
            return;
        }
        let pool = &self.pool;
        let mut idle = pool.idle.borrow_mut();
        if idle.len() < pool.settings.idle_max {
            let until = pool.timers.after(pool.settings.idle_timeout);
            let counted = pool.signals.pool.idle();
            let Lease { sender, socket, .. } = self;
            idle.push(Idle { sender, socket, until, _counted: counted });
        }
    }

    /// Whether any byte of an answer has arrived in this exchange.
    pub fn has_answered(&self) -> bool {
        self.socket.bytes_read.load(Relaxed) > 0
    }
}

impl UpstreamSocket {
    /// Whether nothing waits to be read: neither the upstream's farewell, nor bytes that nobody
    /// asked for.
    fn is_open(&self) -> bool {
        let stream = self.stream.lock();
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let peeked = SockRef::from(&*stream).peek(&mut byte);
        matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

#[derive(Debug)]
struct UpstreamIo(Arc<UpstreamSocket>);

impl AsyncRead for UpstreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut *self.0.stream.lock()).poll_read(cx, buf))?;
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
        Pin::new(&mut *self.0.stream.lock()).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.stream.lock()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.lock()).poll_shutdown(cx)
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
