//! Accepts connections and hands each to the worker that has the fewest.
//!
//! One thread accepts for all workers. Sockets that share a port by `SO_REUSEPORT` would spare the
//! hand-over, but the kernel then picks the worker by a hash of the addresses: of a few long
//! connections, as a sidecar has, most can land on one. It also loses what is queued on a socket
//! that is closed. `benches/spread.rs` has the figures.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::SocketFlags;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::sync::mpsc;

use crate::clock;
use crate::metrics::cells::LevelGuard;
use crate::metrics::edge_labels::RefusalReason;
use crate::metrics::series::ListenerSeries;
use crate::tls::server::ServerTls;

use super::gate::Gate;
use super::per_address::AddressGuard;

/// Connections that wait in the kernel to be accepted; the system's own limit applies too.
const BACKLOG: i32 = 4096;
/// Connections that wait for a worker to take them up.
pub const INBOX: usize = 1024;
/// How often the acceptor looks whether a drain has begun.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long a handshake of TCP that is under way when a drain begins may take to end.
const SETTLE: Duration = Duration::from_millis(200);
/// How long connections stay in the kernel when no worker has room for one.
const FULL_PAUSE: Duration = Duration::from_millis(1);
/// How long to wait when the process is out of descriptors or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// A socket to accept on, and what is spoken there.
#[derive(Debug)]
pub struct Bound {
    /// Listens, and does not block.
    pub socket: TcpListener,
    /// The TLS to expect; `None`: plain.
    pub tls: Option<Arc<ServerTls>>,
    /// Whether it stays open when it is closed here, as somebody else holds it too.
    pub is_shared: bool,
}

/// A connection on its way to a worker.
#[derive(Debug)]
pub struct Accepted {
    /// The socket, which does not block.
    pub stream: TcpStream,
    /// Its other end.
    pub peer: SocketAddr,
    /// The TLS that its listener expects.
    pub tls: Option<Arc<ServerTls>>,
    /// Counts it as open.
    pub guard: ConnectionGuard,
}

/// Counts one open connection; dropping it ends that.
#[derive(Debug)]
pub struct ConnectionGuard {
    of_worker: Arc<AtomicUsize>,
    _of_listener: LevelGuard,
    /// As one of its address's, where those are bounded.
    pub of_address: Option<AddressGuard>,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.of_worker.fetch_sub(1, Relaxed);
    }
}

/// What the acceptor knows of a worker.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    /// Takes connections; bounded by [`INBOX`].
    pub inbox: mpsc::Sender<Accepted>,
    /// Connections that it has, those in its inbox included.
    pub connections: Arc<AtomicUsize>,
}

impl WorkerHandle {
    fn has_room(&self) -> bool {
        self.inbox.capacity() > 0
    }
}

/// Opens a listening socket.
///
/// # Errors
/// The address is in use, is not this machine's, or may not be bound.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `[::]` takes IPv4 too, whatever the system's default: one listener serves both.
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    // Accepted sockets inherit both: two system calls fewer for each connection.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Accepts until a drain begins, then takes what has begun to arrive and closes the sockets. Blocks
/// its thread.
pub fn accept(gate: Arc<Gate>, listeners: &[Bound], workers: Vec<WorkerHandle>) {
    let listeners: Vec<Listening<'_>> = listeners
        .iter()
        .map(|bound| {
            let name = bound.socket.local_addr().map(|it| it.to_string()).unwrap_or_default();
            Listening { bound, series: gate.metrics.listener(&name) }
        })
        .collect();
    let mut acceptor = Acceptor { gate: Arc::clone(&gate), workers, next: 0 };
    while !gate.drain.is_draining() {
        acceptor.accept_for(&listeners, LOOK_AGAIN);
    }
    // What waits on a socket that stays open is for whoever accepts from it next.
    let is_succeeded = gate.drain.is_succeeded();
    let listeners: Vec<Listening<'_>> =
        listeners.into_iter().filter(|it| !is_succeeded && !it.bound.is_shared).collect();
    if listeners.is_empty() {
        return;
    }
    // What is queued when a socket closes is reset, and its client thinks that it is connected: so
    // nothing may be queued between the last accept and the close.
    for listener in &listeners {
        if let Err(error) = begin_no_more(&listener.bound.socket) {
            tracing::debug!(%error, "a listener goes on until it is closed");
        }
    }
    let settled = clock::monotonic() + SETTLE;
    while let Some(left) = settled.checked_duration_since(clock::monotonic()) {
        acceptor.accept_for(&listeners, left.min(LOOK_AGAIN));
    }
    let last = clock::monotonic() + SETTLE;
    while acceptor.take_queued(&listeners).is_ok_and(|is_full| is_full) && clock::monotonic() < last
    {
        std::thread::sleep(FULL_PAUSE);
    }
}

/// Has the kernel begin no further connection on this socket, and finish those that have begun.
/// Who is not heard tries again in a second, and is refused then.
#[cfg(target_os = "linux")]
fn begin_no_more(socket: &TcpListener) -> io::Result<()> {
    use socket2::SockFilter;
    // In the classic language of packet filters: a segment's flags (RFC 9293 §3.1) are the byte at
    // 13; one with SYN and without ACK is dropped, everything else passes whole.
    const PROGRAM: [SockFilter; 5] = [
        SockFilter::new(0x30, 0, 0, 13),
        SockFilter::new(0x54, 0, 0, 0x12),
        SockFilter::new(0x15, 0, 1, 0x02),
        SockFilter::new(0x06, 0, 0, 0),
        SockFilter::new(0x06, 0, 0, u32::MAX),
    ];
    SockRef::from(socket).attach_filter(&PROGRAM)
}

#[cfg(not(target_os = "linux"))]
fn begin_no_more(_socket: &TcpListener) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

struct Listening<'a> {
    bound: &'a Bound,
    series: Arc<ListenerSeries>,
}

struct Acceptor {
    gate: Arc<Gate>,
    workers: Vec<WorkerHandle>,
    next: usize,
}

impl Acceptor {
    /// Waits for connections, for so long, and accepts what there is.
    fn accept_for(&mut self, listeners: &[Listening<'_>], span: Duration) {
        let span = Timespec { tv_sec: 0, tv_nsec: span.subsec_nanos().into() };
        let mut waited: Vec<PollFd<'_>> =
            listeners.iter().map(|it| PollFd::new(&it.bound.socket, PollFlags::IN)).collect();
        if !rustix::event::poll(&mut waited, Some(&span)).is_ok_and(|ready| ready > 0) {
            return;
        }
        match self.take_queued(listeners) {
            Ok(is_full) => {
                if is_full {
                    std::thread::sleep(FULL_PAUSE);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                std::thread::sleep(EXHAUSTED_PAUSE);
            }
        }
    }

    /// Accepts until nothing is queued on any socket, or no worker has room for one more; says
    /// whether it is that.
    fn take_queued(&mut self, listeners: &[Listening<'_>]) -> io::Result<bool> {
        listeners.iter().try_fold(false, |is_full, it| Ok(self.take_queued_on(it)? || is_full))
    }

    fn take_queued_on(&mut self, listener: &Listening<'_>) -> io::Result<bool> {
        // Only the acceptor fills inboxes: what has room now has it at the hand-over.
        while self.workers.iter().any(WorkerHandle::has_room) {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match rustix::net::acceptfrom_with(listener.bound.socket.as_fd(), flags) {
                Ok((socket, peer)) => {
                    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                    if let Some(peer) = peer {
                        self.hand_over(TcpStream::from(socket), peer, listener);
                    }
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
                // The caller gave up while it was queued, or a signal came: not the socket's fault.
                Err(
                    rustix::io::Errno::CONNABORTED
                    | rustix::io::Errno::INTR
                    | rustix::io::Errno::PROTO
                    | rustix::io::Errno::PERM,
                ) => {}
                Err(error) => {
                    let reason = RefusalReason::FileDescriptors;
                    self.gate.metrics.connection_refused(reason);
                    return Err(error.into());
                }
            }
        }
        Ok(true)
    }

    fn hand_over(&mut self, stream: TcpStream, peer: SocketAddr, listener: &Listening<'_>) {
        let metrics = &self.gate.metrics;
        let open: usize = self.workers.iter().map(|it| it.connections.load(Relaxed)).sum();
        if open >= self.gate.settings.connections_max {
            metrics.connection_refused(RefusalReason::MaxConnections);
            return;
        }
        let Ok(of_address) = self.count_by_address(peer.ip()) else {
            metrics.connection_refused(RefusalReason::MaxConnectionsPerIp);
            return;
        };
        // The fewest connections; among equals, the next in turn.
        self.next = self.next.wrapping_add(1);
        let (before, after) = self
            .workers
            .split_at_checked(self.next.checked_rem(self.workers.len()).unwrap_or(0))
            .unwrap_or_default();
        let has_room = after.iter().chain(before).filter(|it| it.has_room());
        let chosen = has_room.min_by_key(|it| it.connections.load(Relaxed));
        let Some(worker) = chosen else { return };
        worker.connections.fetch_add(1, Relaxed);
        let guard = ConnectionGuard {
            of_worker: Arc::clone(&worker.connections),
            _of_listener: listener.series.connection_opened(),
            of_address,
        };
        // A worker that is gone drops the connection, and its guard with it.
        let tls = listener.bound.tls.clone();
        if worker.inbox.try_send(Accepted { stream, peer, tls, guard }).is_err() {
            metrics.connection_refused(RefusalReason::MaxConnections);
        }
    }
}

impl Acceptor {
    /// Counts a connection as its peer's. A trusted proxy brings those of many: they are counted
    /// once it has said whose they are, if it says so.
    fn count_by_address(&self, peer: IpAddr) -> Result<Option<AddressGuard>, ()> {
        let Some(counts) = &self.gate.addresses else { return Ok(None) };
        if self.gate.active.load().policy.is_trusted(peer) {
            return Ok(None);
        }
        counts.enter(peer).map(Some).ok_or(())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_has_begun_is_accepted_and_nothing_begins_after_it() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let before = TcpStream::connect(address).unwrap();
        begin_no_more(&listener).unwrap();
        let span = Duration::from_millis(300);
        let error = TcpStream::connect_timeout(&address, span).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let (accepted, peer) = listener.accept().unwrap();
        assert_eq!(peer, before.local_addr().unwrap());
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        // The filter that it inherits is in nobody's way.
        drop(listener);
        use std::io::{Read, Write};
        (&before).write_all(b"hello").unwrap();
        accepted.set_nonblocking(false).unwrap();
        let mut heard = [0; 5];
        (&accepted).read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
    }
}
