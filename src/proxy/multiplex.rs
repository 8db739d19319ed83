//! One worker's HTTP/2 connections to the upstream, and the streams on them.
//!
//! hyper takes any number of requests for a connection and says nothing of those that it holds
//! back. So streams are counted here, and a connection is given no more of them than the upstream
//! allows at a time: what is beyond that opens another connection, or waits where its time is kept.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::Request;
use hyper::client::conn::http2;
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;

use crate::health::tasks::watched;
use crate::metrics::cells::LevelGuard;
use crate::metrics::labels::TaskType;
use crate::metrics::series::PoolSeries;

use super::body::UploadBody;
use super::connect::{Look, UpstreamIo, UpstreamSocket};
use super::pool::{Sent, Unsent};
use super::timer::{Tick, Timers};

/// Streams on one connection at a time, whatever the upstream allows.
const STREAMS_MAX: usize = 100;
/// What the upstream may send of one answer before its reader has taken any of it, in bytes.
const STREAM_WINDOW: u32 = 256 << 10;
/// The same for all answers on a connection: no slow reader holds up another.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS_MAX as u32;
/// What may wait to be written of one request's body, in bytes.
const SEND_BUFFER: usize = 128 << 10;
/// An upstream that does not answer a ping for so long is gone.
const PING_PATIENCE: Duration = Duration::from_secs(10);

/// Bounds of what is kept here.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at a time.
    pub connections_max: usize,
    /// How long one without streams is kept.
    pub idle_timeout: Duration,
    /// Longest silence of an answer; half of it without a byte brings on a ping.
    pub silence_max: Duration,
    /// Largest response head, in bytes.
    pub head_bytes_max: usize,
}

/// The HTTP/2 connections of one worker.
#[derive(Debug)]
pub struct Connections {
    all: RefCell<Vec<Rc<Connection>>>,
    /// Being made.
    pending: Cell<usize>,
    /// Requests that wait for a stream.
    waiting: Cell<usize>,
    /// A stream has ended, a connection has been made, or could not be.
    freed: Notify,
    bounds: Bounds,
    timers: Arc<Timers>,
    series: Arc<PoolSeries>,
}

/// One connection, shared by its streams.
#[derive(Debug)]
struct Connection {
    /// `None` once it takes no more requests.
    sender: RefCell<Option<http2::SendRequest<UploadBody>>>,
    socket: Arc<UpstreamSocket>,
    driver: Rc<Driver>,
    streams: Cell<usize>,
    has_carried: Cell<bool>,
    until: Cell<Tick>,
    counted: RefCell<LevelGuard>,
}

/// What the tasks of a connection tell.
#[derive(Debug, Default)]
struct Driver {
    /// Streams that the upstream allows; 0 before it has said so.
    streams_max: Cell<usize>,
    has_ended: Cell<bool>,
    failure: RefCell<Option<io::Error>>,
    changed: Notify,
    /// Wakes the task that reads what the upstream allows.
    waker: RefCell<Option<Waker>>,
    /// The stream whose body was just polled for the first time: what is spawned next sends it.
    begun: RefCell<Option<Rc<StreamState>>>,
}

/// A stream, lent to one exchange. Dropped, it is over: what is left of its request's body is not
/// sent any more, and the upstream is told so by a reset.
#[derive(Debug)]
pub struct Stream(Rc<StreamState>);

/// What keeps a stream's place: the exchange, and the tasks that still send its body.
#[derive(Debug)]
pub struct StreamState {
    connections: Rc<Connections>,
    connection: Rc<Connection>,
    is_over: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Connections {
    /// None yet.
    pub fn new(bounds: Bounds, timers: Arc<Timers>, series: Arc<PoolSeries>) -> Rc<Self> {
        Rc::new(Connections {
            all: RefCell::default(),
            pending: Cell::new(0),
            waiting: Cell::new(0),
            freed: Notify::new(),
            bounds,
            timers,
            series,
        })
    }

    /// A stream on a connection that there is, for one who comes now: not before those who wait.
    pub fn take(self: &Rc<Self>, must_be_alive: bool) -> Option<Stream> {
        if self.waiting.get() > 0 { None } else { self.take_any(must_be_alive) }
    }

    fn take_any(self: &Rc<Self>, must_be_alive: bool) -> Option<Stream> {
        // The oldest with room: the others grow idle and are let go.
        let all = self.all.borrow();
        let free = all.iter().find(|it| it.has_room() && (!must_be_alive || it.looks_alive()));
        free.map(|connection| self.begin(connection))
    }

    /// Begins a stream on this connection.
    fn begin(self: &Rc<Self>, connection: &Rc<Connection>) -> Stream {
        if connection.streams.replace(connection.streams.get().saturating_add(1)) == 0 {
            *connection.counted.borrow_mut() = self.series.active();
        }
        Stream(Rc::new(StreamState {
            connections: Rc::clone(self),
            connection: Rc::clone(connection),
            is_over: Cell::new(false),
            waker: RefCell::default(),
        }))
    }

    /// Whether another connection may be made now, and is worth it: those that are being made
    /// already may have room for all who wait.
    pub fn may_open(&self, wants_fresh: bool) -> bool {
        let pending = self.pending.get();
        let coming = pending.saturating_mul(STREAMS_MAX);
        self.all.borrow().len().saturating_add(pending) < self.bounds.connections_max
            && (wants_fresh || self.waiting.get() >= coming)
    }

    /// Counts a connection that is being made, until the guard is dropped.
    pub fn opening(self: &Rc<Self>) -> Opening {
        self.pending.set(self.pending.get().saturating_add(1));
        Opening(Rc::clone(self))
    }

    /// Waits for a stream, or until something has changed. How long is the caller's to bound.
    pub async fn wait(self: &Rc<Self>, must_be_alive: bool) -> Option<Stream> {
        let freed = self.freed.notified();
        let _waiting = Waiting::begin(self);
        freed.await;
        let stream = self.take_any(must_be_alive);
        if stream.is_some() && self.all.borrow().iter().any(|it| it.has_room()) {
            // There is more: the next one need not wait for another sign.
            self.freed.notify_one();
        }
        stream
    }

    /// Speaks HTTP/2 on a new socket, and begins the first stream there once the upstream has said
    /// how many it allows (RFC 9113 §3.4). How long that takes is the caller's to bound.
    ///
    /// # Errors
    /// The other side does not speak HTTP/2, or allows no stream before it closes.
    pub async fn open(self: &Rc<Self>, socket: Arc<UpstreamSocket>) -> io::Result<Stream> {
        let driver = Rc::new(Driver::default());
        let is_first = Rc::new(Cell::new(true));
        let executor = LocalExecutor { driver: Rc::clone(&driver), is_first };
        let (sender, connection) = http2::Builder::new(executor)
            .timer(TokioTimer::new())
            // Replaced by what the upstream says, without a limit if it says nothing.
            .initial_max_send_streams(0)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(u32::try_from(self.bounds.head_bytes_max).unwrap_or(u32::MAX))
            .keep_alive_interval(Some(self.bounds.silence_max / 2).filter(|it| !it.is_zero()))
            .keep_alive_timeout(PING_PATIENCE)
            .handshake(TokioIo::new(UpstreamIo(Arc::clone(&socket))))
            .await
            .map_err(io::Error::other)?;
        let driving = drive(connection, Rc::clone(self), Rc::clone(&driver));
        tokio::task::spawn_local(watched(TaskType::Connection, driving));
        let shared = Rc::new(Connection {
            sender: RefCell::new(Some(sender)),
            socket,
            driver: Rc::clone(&driver),
            streams: Cell::new(0),
            has_carried: Cell::new(false),
            until: Cell::new(Tick::NEVER),
            counted: RefCell::new(self.series.active()),
        });
        while driver.streams_max.get() == 0 {
            if driver.has_ended.get() {
                let failure = driver.failure.take();
                return Err(failure.unwrap_or(io::ErrorKind::UnexpectedEof.into()));
            }
            driver.changed.notified().await;
        }
        let stream = self.begin(&shared);
        self.all.borrow_mut().push(shared);
        Ok(stream)
    }

    /// Lets those go that had no stream for too long, and those that have ended.
    pub fn sweep(&self) {
        self.all.borrow_mut().retain(|connection| {
            let is_old =
                connection.streams.get() == 0 && self.timers.is_past(connection.until.get());
            if is_old {
                connection.retire();
            }
            connection.is_open()
        });
    }

    fn forget_ended(&self) {
        self.all.borrow_mut().retain(|connection| connection.is_open());
        self.freed.notify_waiters();
    }
}

/// A connection that is being made.
#[derive(Debug)]
pub struct Opening(Rc<Connections>);

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.pending.set(self.0.pending.get().saturating_sub(1));
        self.0.freed.notify_waiters();
    }
}

/// A request that waits for a stream.
struct Waiting(Rc<Connections>);

impl Waiting {
    fn begin(connections: &Rc<Connections>) -> Self {
        connections.waiting.set(connections.waiting.get().saturating_add(1));
        Waiting(Rc::clone(connections))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get().saturating_sub(1));
    }
}

impl Connection {
    fn is_open(&self) -> bool {
        self.sender.borrow().is_some() && !self.driver.has_ended.get()
    }

    fn has_room(&self) -> bool {
        self.is_open() && self.streams.get() < self.driver.streams_max.get()
    }

    /// Asks the kernel whether the upstream has closed it meanwhile. What waits to be read where
    /// nobody asked for anything is most likely a farewell.
    fn looks_alive(&self) -> bool {
        match self.socket.look() {
            Look::Quiet => true,
            Look::Bytes => self.streams.get() > 0,
            Look::Closed => false,
        }
    }

    /// Takes no more requests; closes with the last stream.
    fn retire(&self) {
        drop(self.sender.take());
    }
}

impl Stream {
    /// Sends the request, whose body must know this stream.
    pub fn send(&self, request: Request<UploadBody>) -> impl Future<Output = Sent> + use<> {
        let connection = &self.0.connection;
        connection.has_carried.set(true);
        let sent = match &mut *connection.sender.borrow_mut() {
            Some(sender) => Ok(sender.try_send_request(request)),
            None => Err(request),
        };
        async move {
            match sent {
                Ok(sent) => sent.await.map_err(|mut error| match error.take_message() {
                    Some(request) => Unsent::Returned(Box::new(request)),
                    None => Unsent::Failed(error.into_error()),
                }),
                Err(request) => Err(Unsent::Returned(Box::new(request))),
            }
        }
    }

    /// What the request's body must hold on to.
    pub fn state(&self) -> Rc<StreamState> {
        Rc::clone(&self.0)
    }

    /// Whether the connection carried a request before.
    pub fn is_reused(&self) -> bool {
        self.0.connection.has_carried.get()
    }

    /// Has the connection take no more requests.
    pub fn retire_connection(&self) {
        self.0.connection.retire();
        self.0.connections.forget_ended();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.is_over.set(true);
        if let Some(waker) = self.0.waker.take() {
            waker.wake();
        }
    }
}

impl StreamState {
    /// Notes that the body is polled: what hyper spawns next is the task that sends it.
    pub fn begin_upload(self: &Rc<Self>) {
        if self.waker.borrow().is_none() && !self.is_over.get() {
            *self.connection.driver.begun.borrow_mut() = Some(Rc::clone(self));
        }
    }
}

impl Drop for StreamState {
    fn drop(&mut self) {
        let connection = &self.connection;
        let left = connection.streams.get().saturating_sub(1);
        connection.streams.set(left);
        if left == 0 {
            let timers = &self.connections.timers;
            connection.until.set(timers.after(self.connections.bounds.idle_timeout));
            *connection.counted.borrow_mut() = self.connections.series.idle();
        }
        self.connections.freed.notify_one();
    }
}

/// Drives a connection until it takes no more requests, and reads what the upstream allows.
async fn drive<E>(
    connection: http2::Connection<TokioIo<UpstreamIo>, UploadBody, E>,
    connections: Rc<Connections>,
    driver: Rc<Driver>,
) where
    E: hyper::rt::bounds::Http2ClientConnExec<UploadBody, TokioIo<UpstreamIo>> + Unpin,
{
    let mut connection = pin!(connection);
    let ended = poll_fn(|cx| {
        *driver.waker.borrow_mut() = Some(cx.waker().clone());
        let ended = connection.as_mut().poll(cx);
        drop(driver.begun.take());
        let streams_max = connection.current_max_send_streams().min(STREAMS_MAX);
        if driver.streams_max.replace(streams_max) != streams_max {
            driver.changed.notify_one();
            connections.freed.notify_waiters();
        }
        ended
    })
    .await;
    // Where streams are left, the connection goes on in a task of hyper's own until they end.
    drop(driver.waker.take());
    *driver.failure.borrow_mut() = ended.err().map(io::Error::other);
    driver.has_ended.set(true);
    driver.changed.notify_one();
    connections.forget_ended();
}

/// Spawns on the worker's thread.
#[derive(Clone, Debug)]
struct LocalExecutor {
    driver: Rc<Driver>,
    is_first: Rc<Cell<bool>>,
}

impl<F: Future<Output = ()> + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        if self.is_first.replace(false) {
            // The connection's own task: whenever something has arrived, the upstream may allow
            // more streams or fewer, or none at all any more.
            let driver = Rc::clone(&self.driver);
            let whole = async move {
                let mut future = pin!(future);
                poll_fn(|cx| {
                    let polled = future.as_mut().poll(cx);
                    if let Some(waker) = &*driver.waker.borrow() {
                        waker.wake_by_ref();
                    }
                    polled
                })
                .await;
            };
            tokio::task::spawn_local(watched(TaskType::Connection, whole));
            return;
        }
        match self.driver.begun.take() {
            Some(stream) => {
                let sent = UntilOver { future: Some(Box::pin(future)), stream };
                tokio::task::spawn_local(watched(TaskType::Request, sent))
            }
            None => tokio::task::spawn_local(watched(TaskType::Request, future)),
        };
    }
}

/// A task that sends a request's body, ended with its exchange. hyper would go on sending what
/// nobody waits for, and would not let go while the upstream takes nothing.
struct UntilOver<F> {
    future: Option<Pin<Box<F>>>,
    stream: Rc<StreamState>,
}

impl<F: Future<Output = ()>> Future for UntilOver<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.stream.is_over.get() {
            // Without its sender the stream is reset.
            self.future = None;
            return Poll::Ready(());
        }
        *self.stream.waker.borrow_mut() = Some(cx.waker().clone());
        match &mut self.future {
            Some(future) => future.as_mut().poll(cx),
            None => Poll::Ready(()),
        }
    }
}
