//! Listening sockets that come from somebody else, and go on to a successor.
//!
//! A connection that waits in the kernel's queue belongs to its socket, so nothing is lost as long as
//! that stays open: systemd holds it between two processes (sd_listen_fds(3)), or a process hands it to
//! the next one, which accepts from it before the last one stops. Sockets that merely share a port
//! (`SO_REUSEPORT`) have a queue each, and lose it when one is closed.
//!
//! Between processes it goes over a socket of the file system, in the ancillary data of one message
//! (unix(7), `SCM_RIGHTS`). The successor greets and is sent the sockets, a byte each; it says when it
//! is ready, and only then the predecessor drains. If it never says so, nothing has happened.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use listenfd::ListenFd;
use parking_lot::Mutex;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use socket2::SockRef;

/// What a successor says first, what it says once it serves, and what it is answered then.
const GREETING: &[u8] = b"tollgate sockets 1\n";
const READY: &[u8] = b"ready\n";
const DRAINING: &[u8] = b"draining\n";
/// Sockets that may go over at a time: as many as one message can bear (unix(7), `SCM_MAX_FD`).
const SOCKETS_MAX: usize = 253;
/// How long either side waits for what the other has at hand.
const AT_HAND: Duration = Duration::from_secs(5);
/// How long a successor may take to start.
const START_MAX: Duration = Duration::from_secs(120);

/// A listening socket.
#[derive(Debug)]
pub struct Listening {
    /// Accepts, and does not block.
    pub socket: TcpListener,
    /// Whether somebody else holds it too, and goes on to hold it.
    pub is_shared: bool,
}

/// Sockets that were there before this process was.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: Vec<(SocketAddr, Listening)>,
    predecessor: Option<UnixStream>,
}

/// Takes the sockets that systemd, or who does as it does, has opened. Called once, and before there
/// is a second thread: it takes what says so out of the environment.
///
/// # Errors
/// One of them is no listening socket of TCP.
pub fn from_systemd() -> anyhow::Result<Inherited> {
    let mut passed = ListenFd::from_env();
    let mut inherited = Inherited::default();
    for index in 0..passed.len() {
        let socket = passed.take_tcp_listener(index).with_context(|| {
            format!("socket {index} of LISTEN_FDS is none that tollgate can listen on")
        })?;
        if let Some(socket) = socket {
            inherited.add(socket, true)?;
        }
    }
    Ok(inherited)
}

impl Inherited {
    /// Asks the process that serves now, if there is one at `path`, for its sockets.
    ///
    /// # Errors
    /// There is one, and it does not hand them over.
    pub fn take_over(&mut self, path: &Path) -> anyhow::Result<()> {
        let what = || format!("cannot take over from the tollgate at {}", path.display());
        let mut stream = match UnixStream::connect(path) {
            Ok(stream) => stream,
            // Nobody serves, or somebody did and is gone.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error).with_context(what),
        };
        check_user(&stream).with_context(what)?;
        stream.set_read_timeout(Some(AT_HAND)).with_context(what)?;
        stream.set_write_timeout(Some(AT_HAND)).with_context(what)?;
        stream.write_all(GREETING).with_context(what)?;
        let Some(sockets) = receive(&stream).with_context(what)? else {
            tracing::info!("the tollgate before is about to end, and keeps its sockets");
            return Ok(());
        };
        for (socket, is_shared) in sockets {
            self.add(TcpListener::from(socket), is_shared).with_context(what)?;
        }
        self.predecessor = Some(stream);
        Ok(())
    }

    fn add(&mut self, socket: TcpListener, is_shared: bool) -> anyhow::Result<()> {
        let of_socket = SockRef::from(&socket);
        ensure!(of_socket.is_listener()?, "a socket that was handed over does not listen");
        // As with those that are opened here; accepted ones inherit it.
        of_socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        self.sockets.push((socket.local_addr()?, Listening { socket, is_shared }));
        Ok(())
    }

    /// The socket that listens on this address, if there is one. One on all addresses of one kind
    /// does for one on all of the other.
    pub fn claim(&mut self, address: SocketAddr) -> Option<Listening> {
        let fits = |held: SocketAddr| {
            let is_any = held.ip().is_unspecified() && address.ip().is_unspecified();
            held.port() == address.port() && (held.ip() == address.ip() || is_any)
        };
        let exact = self.sockets.iter().position(|(held, _)| *held == address);
        let place = exact.or_else(|| self.sockets.iter().position(|(held, _)| fits(*held)))?;
        Some(self.sockets.remove(place).1)
    }

    /// Ends the choice: what is left of a predecessor's is closed with it.
    ///
    /// # Errors
    /// There is one left that systemd has opened: what waits there would never be answered.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        for (address, left) in self.sockets.drain(..) {
            if left.is_shared && self.predecessor.is_none() {
                bail!("a socket on {address} was passed in LISTEN_FDS, and no listener is there");
            }
            tracing::info!(%address, "the predecessor's listener is not taken over");
        }
        Ok(())
    }

    /// Has the predecessor drain: whoever connects from now on is served here.
    pub fn ready(self) {
        let Some(mut predecessor) = self.predecessor else { return };
        let mut answer = [0; DRAINING.len()];
        let told = predecessor.write_all(READY).and_then(|()| predecessor.read_exact(&mut answer));
        match told {
            Ok(()) => tracing::info!("took over from the tollgate before, which drains"),
            // It had its end beside this, which comes to the same.
            Err(error) => tracing::warn!(%error, "the tollgate before has ended meanwhile"),
        }
    }
}

/// What is offered to a successor.
#[derive(Clone, Debug, Default)]
pub struct Offer(Arc<Mutex<Offered>>);

#[derive(Debug, Default)]
struct Offered {
    sockets: Option<Vec<Listening>>,
    /// Whether a successor has them and is still starting.
    is_lent: bool,
}

impl Offer {
    /// Ends the offer: as long as it stands, the sockets are open, whoever accepts from them. Whether
    /// a successor has them by now, ready or not: what is done to a socket here is done to it there.
    pub fn withdraw(&self) -> bool {
        let mut offered = self.0.lock();
        offered.sockets = None;
        offered.is_lent
    }
}

/// Offers these sockets to a successor at `path`, in place of whoever did so before; `taken` is
/// called once one is ready. Only who runs as the same user, or root, is listened to.
///
/// # Errors
/// The socket cannot be made there, or the thread not started.
pub fn offer(
    path: &Path,
    sockets: Vec<Listening>,
    taken: impl FnOnce() + Send + 'static,
) -> anyhow::Result<Offer> {
    ensure!(sockets.len() <= SOCKETS_MAX, "expected at most {SOCKETS_MAX} listeners");
    let what = || format!("cannot listen on {} (server.handover)", path.display());
    // In one step, so that there is always somebody to ask.
    let beside = beside(path);
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(what);
        }
        _ => {}
    }
    let listener = UnixListener::bind(&beside).with_context(what)?;
    std::fs::rename(&beside, path).with_context(what)?;
    let offered = Offered { sockets: Some(sockets), is_lent: false };
    let offer = Offer(Arc::new(Mutex::new(offered)));
    let offered = offer.clone();
    let thread = std::thread::Builder::new().name("handover".to_owned());
    thread
        .spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                match hand_over(stream, &offered) {
                    Ok(()) => return taken(),
                    Err(error) => {
                        offered.0.lock().is_lent = false;
                        tracing::warn!(%error, "the sockets were not handed over; this goes on");
                    }
                }
            }
        })
        .with_context(what)?;
    Ok(offer)
}

/// A name in the same directory.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}

/// Whether the other end runs as this user, or as root.
fn check_user(stream: &UnixStream) -> io::Result<()> {
    let user = rustix::net::sockopt::socket_peercred(stream)?.uid;
    if user == rustix::process::geteuid() || user.is_root() {
        return Ok(());
    }
    let error = format!("user {} is at the other end, not this process's", user.as_raw());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, error))
}

fn hand_over(mut stream: UnixStream, offer: &Offer) -> io::Result<()> {
    check_user(&stream)?;
    stream.set_read_timeout(Some(AT_HAND))?;
    stream.set_write_timeout(Some(AT_HAND))?;
    let mut greeting = [0; GREETING.len()];
    stream.read_exact(&mut greeting)?;
    if greeting != GREETING {
        return Err(io::Error::other("what asked for them is no tollgate of a known version"));
    }
    {
        let mut offered = offer.0.lock();
        let Some(sockets) = &offered.sockets else {
            return Err(io::Error::other("this is about to end"));
        };
        send(&stream, sockets)?;
        offered.is_lent = true;
    }
    tracing::info!("a successor starts");
    stream.set_read_timeout(Some(START_MAX))?;
    let mut ready = [0; READY.len()];
    stream
        .read_exact(&mut ready)
        .map_err(|error| io::Error::other(format!("the successor was never ready: {error}")))?;
    // It serves: whether it hears that this drains makes no difference.
    let _ = stream.write_all(DRAINING);
    Ok(())
}

fn send(stream: &UnixStream, sockets: &[Listening]) -> io::Result<()> {
    let shared: Vec<u8> = sockets.iter().map(|it| u8::from(it.is_shared)).collect();
    let borrowed: Vec<BorrowedFd<'_>> = sockets.iter().map(|it| it.socket.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other("too many sockets"));
    }
    let sent = sendmsg(stream, &[IoSlice::new(&shared)], &mut ancillary, SendFlags::NOSIGNAL)?;
    if sent == shared.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// The sockets that are sent; `None`: the other end keeps them.
fn receive(stream: &UnixStream) -> io::Result<Option<Vec<(OwnedFd, bool)>>> {
    let mut shared = [0; SOCKETS_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut shared)];
    let received = recvmsg(stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let sockets = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
        _ => None,
    });
    let sockets: Vec<OwnedFd> = sockets.flatten().collect();
    if received.bytes == 0 {
        return Ok(None);
    }
    if sockets.len() != received.bytes {
        return Err(io::Error::other("not as many sockets came as were sent"));
    }
    Ok(Some(
        sockets.into_iter().zip(shared).map(|(socket, shared)| (socket, shared != 0)).collect(),
    ))
}
