//! The downstream socket, and what it tells about where its connection stands.
//!
//! hyper has one timer for a request's head that also bounds the time between requests. tollgate
//! promises a bound for each, and one for a reader that takes nothing: so the socket itself notes
//! what happens on it, and the connection's task compares that with the clock.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::policy::facts::ClientCertificate;

use super::listener::ConnectionGuard;
use super::reply;
use super::timer::{Alarm, TICK, Tick, Timers};
use super::transport::Transport;

/// How long a client that has said its last word is still answered, from the last of the answer that
/// went out. Whether it only will not send any more (RFC 9112 §9.6) or is gone cannot be told apart;
/// one that is gone must not keep the upstream busy for long.
const HALF_CLOSED: Duration = Duration::from_secs(1);
/// The same where some of its request is still to be read, which it may be by then.
const HALF_CLOSED_UPLOAD: Duration = TICK.saturating_mul(2);

/// Where a connection stands between two requests or in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing of a next request has arrived.
    Idle,
    /// Some of a request's head has arrived.
    Head,
    /// A request is being answered; its own deadlines hold.
    Request,
}

/// How long each phase may last.
#[derive(Clone, Copy, Debug)]
pub struct PhaseTimeouts {
    /// From a head's first byte to its last.
    pub header: Duration,
    /// Between requests, and for a reader that takes nothing.
    pub idle: Duration,
}

/// The other end of a downstream connection.
#[derive(Debug)]
pub struct Peer {
    /// The socket's.
    pub address: SocketAddr,
    /// The same without its port, as `X-Forwarded-For` writes it.
    pub field: HeaderValue,
    /// `http` or `https`, as `X-Forwarded-Proto` writes it.
    pub scheme: HeaderValue,
    /// What it showed of itself, once its handshake is over.
    pub certificate: OnceLock<ClientCertificate>,
    /// Counts the connection as open, an upgraded one too.
    _guard: ConnectionGuard,
}

impl Peer {
    /// Who just connected, and whether by TLS.
    pub fn new(address: SocketAddr, is_tls: bool, guard: ConnectionGuard) -> Arc<Self> {
        let field = address.ip().to_canonical().to_string();
        Arc::new(Peer {
            address,
            // An address has no byte that a field value may not have.
            field: HeaderValue::try_from(field).unwrap_or(HeaderValue::from_static("?")),
            scheme: HeaderValue::from_static(if is_tls { "https" } else { "http" }),
            certificate: OnceLock::new(),
            _guard: guard,
        })
    }
}

/// State of one downstream connection, shared by its socket, its task and its requests; or that of
/// one stream of HTTP/2, which is to its request what a connection of HTTP/1 is. All of them live on
/// one thread; atomics only because hyper wants an upgraded socket to be `Send`.
#[derive(Debug)]
pub struct ConnState {
    /// The other end.
    pub peer: Arc<Peer>,
    /// Wakes the connection's task.
    pub alarm: Arc<Alarm>,
    /// The worker's coarse clock.
    pub timers: Arc<Timers>,
    timeouts: PhaseTimeouts,
    is_stream: bool,
    phase: AtomicU8,
    due: AtomicU64,
    has_read: AtomicBool,
    may_have_unread: AtomicBool,
    is_settled: AtomicBool,
    is_switched: AtomicBool,
    is_uploading: AtomicBool,
    ends_in_reset: AtomicBool,
    is_to_look: AtomicBool,
    found_unread: AtomicBool,
    is_last: AtomicBool,
}

impl ConnState {
    /// The state of a connection that was just accepted: its first head is awaited.
    pub fn new(peer: Arc<Peer>, timers: &Arc<Timers>, timeouts: PhaseTimeouts) -> Arc<Self> {
        let state = Self::made(peer, timers, timeouts, false);
        state.set_due(timers.after(timeouts.header));
        Arc::new(state)
    }

    /// The state of a stream whose head has just arrived on another one's connection.
    pub fn stream(&self) -> Arc<Self> {
        Arc::new(Self::made(Arc::clone(&self.peer), &self.timers, self.timeouts, true))
    }

    fn made(
        peer: Arc<Peer>,
        timers: &Arc<Timers>,
        timeouts: PhaseTimeouts,
        is_stream: bool,
    ) -> Self {
        ConnState {
            peer,
            alarm: timers.alarm(),
            timers: Arc::clone(timers),
            timeouts,
            is_stream,
            phase: AtomicU8::new(Phase::Idle as u8),
            due: AtomicU64::new(u64::MAX),
            has_read: AtomicBool::new(false),
            may_have_unread: AtomicBool::new(false),
            is_settled: AtomicBool::new(true),
            is_switched: AtomicBool::new(false),
            is_uploading: AtomicBool::new(false),
            ends_in_reset: AtomicBool::new(false),
            is_to_look: AtomicBool::new(false),
            found_unread: AtomicBool::new(false),
            is_last: AtomicBool::new(false),
        }
    }

    /// Begins the time of the first head anew: what came before was a handshake.
    pub fn greeted(&self) {
        self.set_due(self.timers.after(self.timeouts.header));
    }

    /// Whether it is one stream of many on its connection.
    pub fn is_stream(&self) -> bool {
        self.is_stream
    }

    /// Notes that a part of the answer was handed over, and that it is the reader who is waited
    /// for. Of a connection of HTTP/1 its socket tells that.
    pub fn await_reader(&self) {
        if self.is_stream {
            self.set_due(self.timers.after(self.timeouts.idle));
        }
    }

    /// Notes that the reader has taken all that there was.
    pub fn reader_waits(&self) {
        if self.is_stream {
            self.due.store(u64::MAX, Relaxed);
        }
    }

    /// The phase the connection is in.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Idle,
            1 => Phase::Head,
            _ => Phase::Request,
        }
    }

    /// A whole head is there; from here on the request's own deadlines hold.
    pub fn enter_request(&self) {
        self.phase.store(Phase::Request as u8, Relaxed);
        self.is_settled.store(false, Relaxed);
        self.due.store(u64::MAX, Relaxed);
    }

    /// The answer has been handed over; the next request is awaited.
    pub fn enter_idle(&self) {
        self.phase.store(Phase::Idle as u8, Relaxed);
        self.set_due(self.timers.after(self.timeouts.idle));
    }

    /// Notes that a request's body is read, or that this has ended. It can outlive the answer.
    pub fn set_uploading(&self, is_uploading: bool) {
        self.is_uploading.store(is_uploading, Relaxed);
    }

    /// Notes that the connection must not end like one whose last answer was whole.
    pub fn end_in_reset(&self) {
        self.ends_in_reset.store(true, Relaxed);
    }

    /// Whether the connection is to end in a reset.
    pub fn ends_in_reset(&self) -> bool {
        self.ends_in_reset.load(Relaxed)
    }

    /// Notes that no further request may be read from this connection of HTTP/1.
    pub fn end_after_answer(&self) {
        self.is_last.store(true, Relaxed);
    }

    /// Whether the present request is the last one.
    pub fn is_last(&self) -> bool {
        self.is_last.load(Relaxed)
    }

    /// Notes that the connection will speak another protocol from here on.
    pub fn switch(&self) {
        self.is_switched.store(true, Relaxed);
    }

    /// Whether it speaks another protocol.
    pub fn is_switched(&self) -> bool {
        self.is_switched.load(Relaxed)
    }

    /// Notes that the other protocol has come to its end. Of a stream, what was still to go out has
    /// as long as a reader may take nothing; a connection of HTTP/1 went with it.
    pub fn switch_ended(&self) {
        if self.is_stream {
            self.is_switched.store(false, Relaxed);
            self.set_due(self.timers.after(self.timeouts.idle));
            self.alarm.arm(self.timers.now());
        }
    }

    /// Whether every answer has been written out: what is written next is hyper's own.
    pub fn is_settled(&self) -> bool {
        self.is_settled.load(Relaxed) && !self.is_switched.load(Relaxed)
    }

    /// Whether the last request is over, its answer written out, and nothing of a next one there.
    pub fn is_between_requests(&self) -> bool {
        let is_idle = self.phase() == Phase::Idle && !self.is_uploading.load(Relaxed);
        is_idle && self.is_settled()
    }

    /// Has the socket look, when it is next read, whether the kernel has something for it.
    pub fn look_for_unread(&self) {
        self.is_to_look.store(true, Relaxed);
        self.found_unread.store(false, Relaxed);
    }

    /// What that look has found.
    pub fn found_unread(&self) -> bool {
        self.found_unread.load(Relaxed)
    }

    /// Notes that the connection is about to end while its peer may still be sending.
    pub fn leave_unread(&self) {
        self.may_have_unread.store(true, Relaxed);
    }

    /// Whether the peer may still be sending what nobody will read.
    pub fn may_have_unread(&self) -> bool {
        self.may_have_unread.load(Relaxed)
    }

    /// Whether the phase has lasted too long.
    pub fn is_overdue(&self) -> bool {
        let due = Tick::from_millis(self.due.load(Relaxed));
        if self.timers.is_past(due) {
            return true;
        }
        if due != Tick::NEVER {
            self.alarm.arm(due);
        }
        false
    }

    fn set_due(&self, due: Tick) {
        self.due.store(due.as_millis(), Relaxed);
        self.alarm.arm(due);
    }

    fn on_read(&self, count: usize) {
        if self.phase() != Phase::Idle || count == 0 || self.is_switched.load(Relaxed) {
            return;
        }
        if self.is_uploading.load(Relaxed) || !self.is_settled() {
            // The rest of an answered request, or what follows it while the answer is still being
            // taken: no head that is waited for.
            self.set_due(self.timers.after(self.timeouts.idle));
        } else {
            // The first head's time runs from the accept: who says nothing gets no more.
            self.phase.store(Phase::Head as u8, Relaxed);
            if self.has_read.swap(true, Relaxed) {
                self.set_due(self.timers.after(self.timeouts.header));
            }
        }
    }

    fn on_write(&self) {
        match self.phase() {
            Phase::Request => self.due.store(u64::MAX, Relaxed),
            // The tail of an answer: the reader is slow, not gone.
            Phase::Idle => self.set_due(self.timers.after(self.timeouts.idle)),
            Phase::Head => {}
        }
    }

    fn on_flush(&self) {
        if self.phase() != Phase::Request {
            self.is_settled.store(true, Relaxed);
        }
    }

    fn on_write_blocked(&self) {
        if self.phase() == Phase::Request && self.due.load(Relaxed) == u64::MAX {
            self.set_due(self.timers.after(self.timeouts.idle));
        }
    }
}

/// A downstream socket that keeps its [`ConnState`] up to date.
#[derive(Debug)]
pub struct DownstreamIo {
    stream: Transport,
    state: Arc<ConnState>,
    /// What is left to write in place of an answer that hyper makes itself.
    instead: Option<&'static [u8]>,
    /// Since when the end of what the client sends is kept from hyper, which would drop the answer.
    end_held_since: Option<Tick>,
    /// Whether hyper waits for bytes. It does not while it still has some of a next request.
    is_read_awaited: bool,
    /// Since when the end is known of what a client sends that hyper does not read.
    end_seen_since: Option<Tick>,
    is_write_blocked: bool,
    /// Bytes of the present head's first line so far, and whether it has ended.
    line: (usize, bool),
    line_bytes_max: usize,
}

impl DownstreamIo {
    /// Wraps an accepted connection. `line_bytes_max`: the first line of a head above which it is
    /// the target that is too long, and not the fields.
    pub fn new(stream: Transport, state: Arc<ConnState>, line_bytes_max: usize) -> Self {
        DownstreamIo {
            stream,
            state,
            instead: None,
            end_held_since: None,
            is_read_awaited: false,
            end_seen_since: None,
            is_write_blocked: false,
            line: (0, false),
            line_bytes_max,
        }
    }

    /// The connection itself.
    pub fn transport(&self) -> &Transport {
        &self.stream
    }
}

impl AsyncRead for DownstreamIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(since) = self.end_held_since {
            return self.poll_end(since);
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.is_read_awaited = polled.is_pending();
        if polled.is_pending() && self.state.is_to_look.swap(false, Relaxed) {
            self.state.found_unread.store(self.stream.has_unread(), Relaxed);
        }
        ready!(polled)?;
        let count = buf.filled().len().saturating_sub(before);
        if count == 0 && buf.remaining() > 0 {
            let now = self.state.timers.now();
            self.end_held_since = Some(now);
            // hyper looks for the end as soon as it has a head, and only then begins to answer.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.follow_line(buf.filled().get(before..).unwrap_or_default());
        self.state.on_read(count);
        Poll::Ready(Ok(()))
    }
}

impl DownstreamIo {
    /// The end of what the client sends: told once the answer is out, or has taken too long.
    fn poll_end(&self, since: Tick) -> Poll<io::Result<()>> {
        let state = &self.state;
        let is_answered = state.phase() != Phase::Request && state.is_settled();
        if is_answered || state.is_switched.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let is_uploading = state.is_uploading.load(Relaxed);
        let due = since.plus(if is_uploading { HALF_CLOSED_UPLOAD } else { HALF_CLOSED });
        // A reader that is slow is there, and has a time of its own.
        if !self.is_write_blocked && state.timers.is_past(due) {
            return Poll::Ready(Ok(()));
        }
        state.alarm.arm(due);
        Poll::Pending
    }

    /// Whether a client is gone that sent more than the request that is answered, as far as that can
    /// be told: hyper reads no more before the answer is out, and would not find out.
    fn is_deserted(&mut self, cx: &mut Context<'_>) -> bool {
        let state = &self.state;
        let is_read = self.is_read_awaited || self.end_held_since.is_some();
        if is_read
            || self.is_write_blocked
            || state.phase() != Phase::Request
            || state.is_uploading.load(Relaxed)
            || state.is_switched.load(Relaxed)
        {
            self.end_seen_since = None;
            return false;
        }
        let now = state.timers.now();
        if self.stream.is_ended(cx) {
            let since = *self.end_seen_since.get_or_insert(now);
            let due = since.plus(HALF_CLOSED);
            state.alarm.arm(due);
            return state.timers.is_past(due);
        }
        state.alarm.arm(now.plus(HALF_CLOSED));
        false
    }

    /// Notes how long the first line of a head is.
    fn follow_line(&mut self, read: &[u8]) {
        match self.state.phase() {
            Phase::Idle => self.line = (0, false),
            Phase::Head if !self.line.1 => {}
            Phase::Head | Phase::Request => return,
        }
        let end = read.iter().position(|byte| *byte == b'\n');
        let (bytes, _) = self.line;
        self.line = (bytes.saturating_add(end.unwrap_or(read.len())), end.is_some());
    }

    /// Writes tollgate's own words where hyper answers a head that it could not read.
    fn poll_write_instead(
        &mut self,
        cx: &mut Context<'_>,
        replaced: &[u8],
    ) -> Option<Poll<io::Result<()>>> {
        if self.instead.is_none() {
            if !self.state.is_settled() {
                return None;
            }
            let is_line = self.line.0 >= self.line_bytes_max;
            self.instead = Some(reply::unreadable_head(replaced, is_line)?);
            self.state.leave_unread();
        }
        while let Some(left) = self.instead.filter(|left| !left.is_empty()) {
            match Pin::new(&mut self.stream).poll_write(cx, left) {
                Poll::Ready(Ok(count)) => self.instead = left.get(count..),
                Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(error))),
                Poll::Pending => return Some(Poll::Pending),
            }
        }
        self.instead = None;
        Some(Poll::Ready(Ok(())))
    }

    fn wrote(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.is_write_blocked = result.is_pending();
        match &result {
            Poll::Ready(Ok(_)) => {
                self.end_held_since = self.end_held_since.map(|_| self.state.timers.now());
                self.end_seen_since = None;
                self.state.on_write();
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.state.on_write_blocked(),
        }
        result
    }
}

impl AsyncWrite for DownstreamIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(instead) = self.poll_write_instead(cx, buf) {
            return instead.map_ok(|()| buf.len());
        }
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = bufs.first().map_or(&[][..], |first| first);
        if let Some(instead) = self.poll_write_instead(cx, first) {
            return instead.map_ok(|()| bufs.iter().map(|it| it.len()).sum());
        }
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.state.on_flush();
        if self.end_held_since.is_some() {
            // Now it may be told.
            self.state.alarm.arm(self.state.timers.now());
        }
        // hyper comes by here whenever it is polled.
        if self.is_deserted(cx) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
