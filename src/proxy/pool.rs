//! One worker's connections to the upstream.
//!
//! Each worker keeps its own, so that taking one and giving it back costs no lock and wakes no
//! other thread. Of those that speak HTTP/1.1 the one used last is taken first: the others grow old
//! and are let go. Those that speak HTTP/2 are in `multiplex`.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use crate::clock;
use crate::errors::chain;
use crate::health::tasks::watched;
use crate::health::upstreams::Flight;
use crate::metrics::cells::LevelGuard;
use crate::metrics::labels::TaskType;
use crate::metrics::series::{PoolSeries, UpstreamSeries};

use super::body::UploadBody;
use super::connect::{ConnectError, Look, Protocol, Target, UpstreamIo, UpstreamSocket};
use super::multiplex::{Bounds, Connections, Stream};
use super::timer::{Tick, Timers};

/// How often a worker says at most why the upstream is not spoken to.
const TELL_PAUSE: Duration = Duration::from_secs(10);

/// How connections to the upstream are made and kept.
#[derive(Clone, Copy, Debug)]
pub struct PoolSettings {
    /// Bound of making one, name and all addresses included.
    pub connect_timeout: Duration,
    /// Idle ones of each upstream kept by this worker.
    pub idle_max: usize,
    /// How long an idle one is kept.
    pub idle_timeout: Duration,
    /// Largest response head, in bytes.
    pub head_bytes_max: usize,
}

/// What a request needs of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// It is to be upgraded, which HTTP/2 does not know.
    pub http1: bool,
    /// The request could not be sent a second time: the kernel is asked too whether the upstream
    /// has closed the connection meanwhile.
    pub is_alive: bool,
    /// No connection that was there before.
    pub is_fresh: bool,
}

/// The connections of one worker to one upstream.
#[derive(Debug)]
pub struct Pool {
    idle: RefCell<Vec<Idle>>,
    http2: Rc<Connections>,
    /// Whether the upstream chose HTTP/2 when it was last asked.
    chose_http2: Cell<Option<bool>>,
    target: Target,
    timers: Arc<Timers>,
    signals: PoolSignals,
    settings: PoolSettings,
    told: Cell<Option<Instant>>,
}

/// Where a pool counts.
#[derive(Clone, Debug)]
pub struct PoolSignals {
    /// Its connections.
    pub pool: Arc<PoolSeries>,
    /// How long making one took.
    pub upstream: Arc<UpstreamSeries>,
    /// What the log calls the upstream; `None` where there is no other.
    pub name: Option<Box<str>>,
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<UploadBody>,
    socket: Arc<UpstreamSocket>,
    until: Tick,
    _counted: LevelGuard,
}

/// A connection to the upstream, or a stream on one, lent to one exchange. Dropping it closes the
/// connection, or resets the stream if it has not ended.
#[derive(Debug)]
pub struct Lease {
    /// Whether it carried an exchange before.
    pub is_reused: bool,
    line: Line,
    /// Counts the exchange at its upstream, where there are several.
    flight: Option<Flight>,
}

#[derive(Debug)]
enum Line {
    Http1 {
        sender: http1::SendRequest<UploadBody>,
        socket: Arc<UpstreamSocket>,
        pool: Rc<Pool>,
        _counted: LevelGuard,
    },
    Http2(Stream),
}

/// An answer's head, or why there is none.
pub type Sent = Result<Response<Incoming>, Unsent>;

/// Why there is no answer's head.
#[derive(Debug)]
pub enum Unsent {
    /// Not a byte of the request was sent; here it is.
    Returned(Box<Request<UploadBody>>),
    /// Some of it may have been.
    Failed(hyper::Error),
}

impl Pool {
    /// An empty pool.
    pub fn new(
        target: Target,
        timers: Arc<Timers>,
        signals: PoolSignals,
        settings: PoolSettings,
    ) -> Rc<Self> {
        let bounds = Bounds {
            connections_max: settings.idle_max.max(1),
            idle_timeout: settings.idle_timeout,
            silence_max: settings.idle_timeout,
            head_bytes_max: settings.head_bytes_max,
        };
        let http2 = Connections::new(bounds, Arc::clone(&timers), Arc::clone(&signals.pool));
        Rc::new(Pool {
            idle: RefCell::new(Vec::new()),
            http2,
            chose_http2: Cell::new(None),
            target,
            timers,
            signals,
            settings,
            told: Cell::new(None),
        })
    }

    /// Whether the upstream is spoken to over TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self.target.protocol, Protocol::Tls(_))
    }

    /// The connection used last of those that are idle and still stand, or a stream on one that has
    /// room.
    pub fn take(self: &Rc<Self>, needs: Needs) -> Option<Lease> {
        if needs.is_fresh {
            return None;
        }
        if !needs.http1
            && !matches!(self.target.protocol, Protocol::Http1)
            && let Some(stream) = self.http2.take(needs.is_alive)
        {
            return Some(Lease::on(stream));
        }
        let mut idle = self.idle.borrow_mut();
        while let Some(candidate) = idle.pop() {
            let stands = candidate.sender.is_ready()
                && !self.timers.is_past(candidate.until)
                && (!needs.is_alive || candidate.socket.look() == Look::Quiet);
            if stands {
                candidate.socket.forget_read();
                let Idle { sender, socket, .. } = candidate;
                return Some(self.lend(sender, socket, true));
            }
        }
        None
    }

    /// A new connection, or a stream on one: where HTTP/2 is spoken, there may be room on one that
    /// others make, or soon will be on one that there is. Takes `limit` at most, name and all
    /// addresses included.
    ///
    /// # Errors
    /// No address took it, or none in time; or what did is not the upstream.
    pub async fn connect(
        self: &Rc<Self>,
        needs: Needs,
        limit: Duration,
    ) -> Result<Lease, ConnectError> {
        let _waiting = Wait::begin(&self.signals.pool);
        let deadline = clock::monotonic() + limit;
        // Boxed, so that not every request is as large as a handshake.
        let connecting = Box::pin(self.acquire(needs, limit, deadline));
        let connected = match tokio::time::timeout(limit, connecting).await {
            Ok(connected) => connected,
            Err(_elapsed) => Err(ConnectError::Timeout),
        };
        connected.inspect_err(|error| self.tell(error))
    }

    async fn acquire(
        self: &Rc<Self>,
        needs: Needs,
        limit: Duration,
        deadline: Instant,
    ) -> Result<Lease, ConnectError> {
        loop {
            let may_be_http2 = match self.target.protocol {
                Protocol::Http1 => false,
                Protocol::Http2 => true,
                Protocol::Tls(_) => !needs.http1 && self.chose_http2.get() != Some(false),
            };
            if !may_be_http2 {
                return self.open(needs, limit, deadline).await;
            }
            if self.http2.may_open(needs.is_fresh) {
                let _opening = self.http2.opening();
                return self.open(needs, limit, deadline).await;
            }
            if let Some(stream) = self.http2.wait(needs.is_alive).await {
                return Ok(Lease::on(stream));
            }
        }
    }

    async fn open(
        self: &Rc<Self>,
        needs: Needs,
        limit: Duration,
        deadline: Instant,
    ) -> Result<Lease, ConnectError> {
        let started = clock::monotonic();
        let connected = self.target.connect(needs.http1, limit, deadline).await;
        let (stream, is_http2) = connected?;
        self.signals.upstream.connected(clock::monotonic().saturating_duration_since(started));
        let socket = UpstreamSocket::new(stream);
        if self.is_tls() && !needs.http1 {
            self.chose_http2.set(Some(is_http2));
        }
        if is_http2 {
            let opened = self.http2.open(socket).await.map_err(ConnectError::Refused);
            return opened.map(Lease::on);
        }
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(self.settings.head_bytes_max)
            .max_header_size(self.settings.head_bytes_max)
            .handshake(TokioIo::new(UpstreamIo(Arc::clone(&socket))))
            .await
            .map_err(|error| ConnectError::Unreachable(io::Error::other(error)))?;
        // Its errors reach the exchange through `sender` and the body.
        tokio::task::spawn_local(watched(TaskType::Connection, connection.with_upgrades()));
        Ok(self.lend(sender, socket, false))
    }

    fn lend(
        self: &Rc<Self>,
        sender: http1::SendRequest<UploadBody>,
        socket: Arc<UpstreamSocket>,
        is_reused: bool,
    ) -> Lease {
        let (pool, counted) = (Rc::clone(self), self.signals.pool.active());
        let line = Line::Http1 { sender, socket, pool, _counted: counted };
        Lease { is_reused, line, flight: None }
    }

    /// Says why the upstream is not spoken to: the answer does not.
    fn tell(&self, error: &ConnectError) {
        let now = clock::monotonic();
        let is_soon = |last: Instant| now.saturating_duration_since(last) < TELL_PAUSE;
        if !self.told.get().is_some_and(is_soon) {
            self.told.set(Some(now));
            let (what, reason) = match error {
                ConnectError::Refused(reason) => ("refused", chain(reason)),
                ConnectError::Unreachable(reason) => ("not reached", chain(reason)),
                ConnectError::Timeout => ("not reached", "connect_timeout is over".to_owned()),
            };
            let upstream = self.signals.name.as_deref();
            tracing::warn!(upstream, reason, "the upstream is {what} (said at most every 10 s)");
        }
    }

    /// Closes what has been idle for too long, and what the upstream has closed.
    pub fn sweep(&self) {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|entry| !self.timers.is_past(entry.until) && !entry.sender.is_closed());
        self.http2.sweep();
    }
}

/// A request that has to wait for its connection.
struct Wait<'a> {
    pool: &'a PoolSeries,
    since: Instant,
    _counted: LevelGuard,
}

impl<'a> Wait<'a> {
    fn begin(pool: &'a PoolSeries) -> Self {
        Wait { pool, since: clock::monotonic(), _counted: pool.wait() }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        // Whoever went away meanwhile has waited too.
        self.pool.waited(clock::monotonic().saturating_duration_since(self.since));
    }
}

impl Lease {
    fn on(stream: Stream) -> Self {
        Lease { is_reused: stream.is_reused(), line: Line::Http2(stream), flight: None }
    }

    /// Has the exchange counted at its upstream until it ends.
    pub fn carry(&mut self, flight: Option<Flight>) {
        self.flight = flight;
    }

    /// Sends the request.
    pub fn send(&mut self, mut request: Request<UploadBody>) -> impl Future<Output = Sent> + use<> {
        let sent = match &mut self.line {
            Line::Http1 { sender, .. } => Ok(sender.try_send_request(request)),
            Line::Http2(stream) => {
                request.body_mut().set_stream(stream.state());
                // Boxed, so that requests over HTTP/1.1 need not have the room.
                Err(Box::pin(stream.send(request)))
            }
        };
        async move {
            match sent {
                Ok(sent) => sent.await.map_err(|mut error| match error.take_message() {
                    Some(request) => Unsent::Returned(Box::new(request)),
                    None => Unsent::Failed(error.into_error()),
                }),
                Err(sent) => sent.await,
            }
        }
    }

    /// Whether it is a stream among others.
    pub fn is_http2(&self) -> bool {
        matches!(self.line, Line::Http2(_))
    }

    /// Has the connection take no more requests, whatever becomes of this one.
    pub fn retire(&self) {
        if let Line::Http2(stream) = &self.line {
            stream.retire_connection();
        }
    }

    /// Back to the pool, for the next exchange.
    pub fn give_back(self) {
        let Line::Http1 { sender, socket, pool, .. } = self.line else { return };
        if sender.is_closed() {
            return;
        }
        let mut idle = pool.idle.borrow_mut();
        if idle.len() < pool.settings.idle_max {
            let until = pool.timers.after(pool.settings.idle_timeout);
            let counted = pool.signals.pool.idle();
            idle.push(Idle { sender, socket, until, _counted: counted });
        }
    }

    /// Whether any byte of an answer has arrived in this exchange. On a connection that others
    /// share, what arrives may be theirs.
    pub fn has_answered(&self) -> bool {
        match &self.line {
            Line::Http1 { socket, .. } => socket.has_read(),
            Line::Http2(_) => false,
        }
    }
}
