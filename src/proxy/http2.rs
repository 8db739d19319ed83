//! A downstream connection of HTTP/2: one task for the connection, one for each of its streams.
//!
//! hyper and h2 do the protocol. Here is what they leave to the proxy: how long a connection may be
//! idle, a head may take and a reader may take nothing; how many frames may bring nothing; and an
//! end in two steps, so that no request is lost to it (RFC 9113 §6.8).

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::health::tasks::watched;
use crate::metrics::edge_labels::CutReason;
use crate::metrics::labels::TaskType;

use super::connection::linger;
use super::frames::{FrameWatch, head_due};
use super::http2_message::is_flood;
use super::io::ConnState;
use super::service;
use super::timer::{TICK, Tick};
use super::transport::Transport;
use super::worker::Worker;

/// Requests of one connection that may be under way at a time.
const STREAMS_MAX: u32 = 128;
/// Of a request's body, what may be on its way to tollgate for one stream and for all.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Of an answer's body, what is kept for one stream whose reader is slow.
const SEND_BUFFER: usize = 64 << 10;
/// Streams that were reset before they were looked at (CVE-2023-44487).
const PENDING_RESETS_MAX: usize = 20;
/// Streams that had to be reset for what their client sent (CVE-2025-8671).
const OWN_RESETS_MAX: usize = 64;
/// How long a connection that was said goodbye to may be without a stream and stay.
const FAREWELL: Duration = Duration::from_secs(1);
/// Longest write that may be no more than an answer to a frame of the connection itself.
const ACKNOWLEDGEMENT_BYTES: usize = 64;

/// Serves a connection whose client speaks HTTP/2, to its end.
pub async fn serve(worker: Rc<Worker>, transport: Transport, conn: Arc<ConnState>) {
    let link = Rc::new(Link::new(&conn, transport, worker.gate.settings.phases.idle));
    let service = {
        let (worker, link) = (Rc::clone(&worker), Rc::clone(&link));
        service_fn(move |request| {
            let stream = link.conn.stream();
            link.begun.replace(Some(Arc::clone(&stream)));
            let (worker, link) = (Rc::clone(&worker), Rc::clone(&link));
            async move {
                let answered = service::handle(worker, Arc::clone(&stream), request).await;
                if stream.is_switched() {
                    link.begun.replace(Some(stream));
                }
                answered
            }
        })
    };
    let settings = &worker.gate.settings;
    let io = Http2Io(Rc::clone(&link));
    let mut builder = http2::Builder::new(Streams(Rc::clone(&link)));
    if worker.gate.upstreams.can_upgrade() {
        // WebSockets on streams (RFC 8441 §3).
        builder.enable_connect_protocol();
    }
    let mut connection = builder
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(settings.header_bytes_max).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(OWN_RESETS_MAX)
        .serve_connection(TokioIo::new(io), service);

    let mut farewell = None;
    let (ended, cut) = poll_fn(|cx| {
        conn.alarm.register(cx.waker());
        if farewell.is_none() && (worker.gate.drain.is_draining() || link.is_idle_for_too_long()) {
            farewell = Some(conn.timers.after(FAREWELL));
            Pin::new(&mut connection).graceful_shutdown();
        }
        if let Poll::Ready(ended) = Pin::new(&mut connection).poll(cx) {
            let ended = ended.err();
            let is_flood = ended.as_ref().is_some_and(|error| is_flood(error));
            let cut = (is_flood || link.is_flooded.get()).then_some(CutReason::Flood);
            return Poll::Ready((ended, cut));
        }
        let head_due = head_due(link.frames.borrow().head_since(), settings.phases.header);
        if !link.is_before(head_due) {
            return Poll::Ready((None, Some(CutReason::HeadTimeout)));
        }
        if !link.is_before(link.reader_due()) {
            return Poll::Ready((None, Some(CutReason::ReaderStalled)));
        }
        // Who was told to go, and has nothing to wait for, goes: unless it goes on bringing
        // requests, as one does that is slow to hear it.
        let quiet = link.quiet_since.get().plus(FAREWELL);
        if !link.has_streams() && farewell.is_some_and(|due| !link.is_before(quiet.max(due))) {
            return Poll::Ready((None, None));
        }
        Poll::Pending
    })
    .await;
    drop(connection);
    if let Some(reason) = cut {
        worker.gate.metrics.http2_cut(reason);
        return;
    }
    if let Some(error) = ended {
        tracing::debug!(%error, "a connection of HTTP/2 broke");
        return;
    }
    // The last of an answer may still be on its way, and its reader may say something to it.
    let mut io = Http2Io(link);
    if tokio::time::timeout(TICK, io.shutdown()).await.is_ok_and(|shut| shut.is_ok()) {
        linger(io).await;
    }
}

/// What the connection, its socket and its streams know of each other.
#[derive(Debug)]
struct Link {
    conn: Arc<ConnState>,
    transport: RefCell<Transport>,
    idle_timeout: Duration,
    frames: RefCell<FrameWatch>,
    /// Of the request that hyper has just handed over, or of the stream that has just become a
    /// tunnel: the state, for the task that hyper asks for next.
    begun: RefCell<Option<Arc<ConnState>>>,
    streams: Cell<usize>,
    is_flooded: Cell<bool>,
    /// When the connection last served anybody.
    quiet_since: Cell<Tick>,
    /// Since when the peer takes nothing at all.
    blocked_since: Cell<Option<Tick>>,
}

impl Link {
    fn new(conn: &Arc<ConnState>, transport: Transport, idle_timeout: Duration) -> Self {
        let now = conn.timers.now();
        Link {
            conn: Arc::clone(conn),
            transport: RefCell::new(transport),
            idle_timeout,
            frames: RefCell::new(FrameWatch::new(now)),
            begun: RefCell::new(None),
            streams: Cell::new(0),
            is_flooded: Cell::new(false),
            quiet_since: Cell::new(now),
            blocked_since: Cell::new(None),
        }
    }

    fn has_streams(&self) -> bool {
        self.streams.get() > 0
    }

    /// Whether the moment is still to come; if so, the connection's task is woken then.
    fn is_before(&self, due: Tick) -> bool {
        self.conn.alarm.arm(due);
        !self.conn.timers.is_past(due)
    }

    fn is_idle_for_too_long(&self) -> bool {
        !self.has_streams() && !self.is_before(self.after(self.quiet_since.get()))
    }

    /// When a peer that takes nothing at all will have done so for too long.
    fn reader_due(&self) -> Tick {
        self.blocked_since.get().map_or(Tick::NEVER, |since| self.after(since))
    }

    fn after(&self, since: Tick) -> Tick {
        if self.idle_timeout.is_zero() { Tick::NEVER } else { since.plus(self.idle_timeout) }
    }

    fn note_write(&self, result: &Poll<io::Result<usize>>) {
        match result {
            Poll::Ready(Ok(count)) => {
                self.blocked_since.set(None);
                self.frames.borrow_mut().wrote(*count);
                if *count > ACKNOWLEDGEMENT_BYTES {
                    self.quiet_since.set(self.conn.timers.now());
                }
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                let now = self.conn.timers.now();
                self.blocked_since.set(Some(self.blocked_since.get().unwrap_or(now)));
            }
        }
    }
}

/// Spawns the streams of one connection, each with its own deadlines.
#[derive(Clone, Debug)]
struct Streams(Rc<Link>);

impl<F: Future<Output = ()> + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let link = Rc::clone(&self.0);
        // hyper asks for a task right after it called the service, and for another right after that
        // has answered, if it agreed to a tunnel.
        let Some(conn) = link.begun.take() else { return };
        let open = OpenStream::new(link);
        if conn.is_switched() {
            let sent = async move {
                let _open = open;
                sent_to_end(&conn, stream).await;
            };
            tokio::task::spawn_local(watched(TaskType::Request, sent));
            return;
        }
        let served = async move {
            let _open = open;
            let mut stream = pin!(stream);
            poll_fn(|cx| {
                conn.alarm.register(cx.waker());
                match stream.as_mut().poll(cx) {
                    // Dropping it resets the stream: its reader has taken nothing for too long.
                    Poll::Pending if conn.is_overdue() => Poll::Ready(()),
                    polled => polled,
                }
            })
            .await;
        };
        tokio::task::spawn_local(watched(TaskType::Request, served));
    }
}

/// Brings out what a tunnel has for its client, and lasts as long as the tunnel: one half of it can
/// outlive the other. The tunnel knows how long it may be silent; once it is over, what is left has
/// the time of any answer.
async fn sent_to_end(conn: &ConnState, sending: impl Future<Output = ()>) {
    let mut sending = pin!(Some(sending));
    poll_fn(|cx| {
        conn.alarm.register(cx.waker());
        if sending.as_mut().as_pin_mut().is_some_and(|it| it.poll(cx).is_ready()) {
            // The tunnel waits for this to be gone.
            sending.set(None);
        }
        let is_over = !conn.is_switched() && (sending.is_none() || conn.is_overdue());
        if is_over { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Counts a stream as open; dropping it ends that.
struct OpenStream(Rc<Link>);

impl OpenStream {
    fn new(link: Rc<Link>) -> Self {
        link.streams.set(link.streams.get().saturating_add(1));
        OpenStream(link)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let link = &self.0;
        link.streams.set(link.streams.get().saturating_sub(1));
        let now = link.conn.timers.now();
        link.quiet_since.set(now);
        link.conn.alarm.arm(now.plus(FAREWELL).min(link.after(now)));
    }
}

/// The socket of such a connection.
#[derive(Debug)]
struct Http2Io(Rc<Link>);

impl AsyncRead for Http2Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut *self.0.transport.borrow_mut()).poll_read(cx, buf))?;
        let read = buf.filled().get(before..).unwrap_or_default();
        let fed = self.0.frames.borrow_mut().feed(read, self.0.conn.timers.now());
        Poll::Ready(fed.map_err(|flood| {
            self.0.is_flooded.set(true);
            io::Error::new(io::ErrorKind::InvalidData, flood)
        }))
    }
}

impl AsyncWrite for Http2Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut *self.0.transport.borrow_mut()).poll_write(cx, buf);
        self.0.note_write(&result);
        result
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut *self.0.transport.borrow_mut()).poll_write_vectored(cx, bufs);
        self.0.note_write(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.0.transport.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.transport.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.transport.borrow_mut()).poll_shutdown(cx)
    }
}
