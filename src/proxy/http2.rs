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
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::{FrameWatch, head_due};
use super::io::ConnState;
use super::service;
use super::timer::Tick;
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
/// How long a connection that was said goodbye to, and that has no stream, may stay.
const FAREWELL: Duration = Duration::from_secs(1);
/// Longest write that may be no more than an answer to a frame of the connection itself.
const ACKNOWLEDGEMENT_BYTES: usize = 64;

/// Serves a connection whose client speaks HTTP/2, to its end.
pub async fn serve(worker: Rc<Worker>, transport: Transport, conn: Arc<ConnState>) {
    let link = Rc::new(Link::new(&conn, worker.gate.settings.phases.idle));
    let service = {
        let (worker, link) = (Rc::clone(&worker), Rc::clone(&link));
        service_fn(move |request| {
            let stream = link.conn.stream();
            link.begun.replace(Some(Arc::clone(&stream)));
            service::handle(Rc::clone(&worker), stream, request)
        })
    };
    let settings = &worker.gate.settings;
    let io = Http2Io { transport, link: Rc::clone(&link) };
    let mut connection = http2::Builder::new(Streams(Rc::clone(&link)))
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(settings.header_bytes_max).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(OWN_RESETS_MAX)
        .serve_connection(TokioIo::new(io), service);

    let mut farewell = None;
    let ended = poll_fn(|cx| {
        conn.alarm.register(cx.waker());
        if farewell.is_none() && (worker.gate.drain.is_draining() || link.is_idle_for_too_long()) {
            farewell = Some(conn.timers.after(FAREWELL));
            Pin::new(&mut connection).graceful_shutdown();
        }
        if let Poll::Ready(ended) = Pin::new(&mut connection).poll(cx) {
            return Poll::Ready(ended.err());
        }
        let may_stay = link.has_streams() || farewell.is_none_or(|due| link.is_before(due));
        if may_stay && link.is_before(link.due(settings.phases.header)) {
            return Poll::Pending;
        }
        Poll::Ready(None)
    })
    .await;
    if let Some(error) = ended {
        tracing::debug!(%error, "a connection of HTTP/2 broke");
    }
}

/// What the connection, its socket and its streams know of each other.
#[derive(Debug)]
struct Link {
    conn: Arc<ConnState>,
    idle_timeout: Duration,
    frames: RefCell<FrameWatch>,
    /// The state of the request that hyper has just handed over, for the task that it asks for next.
    begun: RefCell<Option<Arc<ConnState>>>,
    streams: Cell<usize>,
    /// When the connection last served anybody.
    quiet_since: Cell<Tick>,
    /// Since when the peer takes nothing at all.
    blocked_since: Cell<Option<Tick>>,
}

impl Link {
    fn new(conn: &Arc<ConnState>, idle_timeout: Duration) -> Self {
        let now = conn.timers.now();
        Link {
            conn: Arc::clone(conn),
            idle_timeout,
            frames: RefCell::new(FrameWatch::new(now)),
            begun: RefCell::new(None),
            streams: Cell::new(0),
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

    /// When the peer will have taken too long, whatever it is that it is waited for.
    fn due(&self, head_timeout: Duration) -> Tick {
        let head = head_due(self.frames.borrow().head_since(), head_timeout);
        self.blocked_since.get().map_or(head, |since| head.min(self.after(since)))
    }

    fn after(&self, since: Tick) -> Tick {
        if self.idle_timeout.is_zero() { Tick::NEVER } else { since.plus(self.idle_timeout) }
    }

    fn note_write(&self, result: &Poll<io::Result<usize>>) {
        match result {
            Poll::Ready(Ok(count)) => {
                self.blocked_since.set(None);
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
        // hyper asks for a task right after it called the service.
        let Some(conn) = link.begun.take() else { return };
        let open = OpenStream::new(link);
        tokio::task::spawn_local(async move {
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
        });
    }
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
struct Http2Io {
    transport: Transport,
    link: Rc<Link>,
}

impl AsyncRead for Http2Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.transport).poll_read(cx, buf))?;
        let read = buf.filled().get(before..).unwrap_or_default();
        let fed = self.link.frames.borrow_mut().feed(read, self.link.conn.timers.now());
        Poll::Ready(fed.map_err(|flood| io::Error::new(io::ErrorKind::InvalidData, flood)))
    }
}

impl AsyncWrite for Http2Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.transport).poll_write(cx, buf);
        self.link.note_write(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.transport).poll_write_vectored(cx, bufs);
        self.link.note_write(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}
