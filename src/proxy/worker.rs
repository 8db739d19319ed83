//! One worker: a single-threaded runtime, and all of the connections that were handed to it.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use crate::store::redis::RedisStore;

use super::gate::Gate;
use super::headers::Numbers;
use super::io::{ConnState, DownstreamIo, Phase};
use super::listener::Accepted;
use super::pool::{Pool, PoolSignals};
use super::service;
use super::timer::{TICK, Timers};

/// How long a connection that is idle when a drain begins may still bring a request: whoever is
/// about to send one gets an answer that says goodbye instead of a reset.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long a peer that was refused may go on sending before the connection is reset.
const LINGER: Duration = Duration::from_secs(3);

/// How long a starting worker waits for its first connection to Redis.
const REDIS_AT_START: Duration = Duration::from_millis(500);

/// A worker's side of its [`WorkerHandle`](super::listener::WorkerHandle).
#[derive(Debug)]
pub struct Inbox {
    /// What the acceptor hands over.
    pub accepted: mpsc::Receiver<Accepted>,
    /// Counted down as connections end.
    pub connections: Arc<AtomicUsize>,
    /// Dropped once the worker is ready to serve.
    pub ready: oneshot::Sender<()>,
}

/// What one worker has to itself.
#[derive(Debug)]
pub struct Worker {
    /// Shared with the others.
    pub gate: Arc<Gate>,
    /// Its connections to the upstream.
    pub pool: Rc<Pool>,
    /// Its connection to Redis, if there is one.
    pub redis: Option<RedisStore>,
    /// Its coarse clock.
    pub timers: Arc<Timers>,
    /// What it wrote into answers last.
    pub numbers: Numbers,
}

/// Runs a worker until a drain has ended and its last connection has closed. Blocks its thread.
///
/// # Errors
/// The runtime could not be made.
pub fn run(
    gate: Arc<Gate>,
    index: usize,
    inbox: Inbox,
    beat: impl Fn(usize) + 'static,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default())?;
    runtime.block_on(serve(gate, index, inbox, beat));
    // Whatever is left by now had its time.
    runtime.shutdown_background();
    Ok(())
}

async fn serve(gate: Arc<Gate>, index: usize, mut inbox: Inbox, beat: impl Fn(usize) + 'static) {
    crate::metrics::cells::use_shard(index);
    let timers = Timers::new();
    let worker = Rc::new(Worker {
        pool: Pool::new(
            gate.target.clone(),
            Arc::clone(&timers),
            PoolSignals {
                pool: gate.metrics.pool("upstream"),
                upstream: Arc::clone(&gate.upstream_series),
            },
            gate.settings.pool,
        ),
        redis: gate.redis.as_ref().map(|shared| RedisStore::connect(Arc::clone(shared))),
        timers,
        numbers: Numbers::default(),
        gate,
    });
    tokio::task::spawn_local(tick(Rc::clone(&worker), index, beat));
    if let Some(redis) = &worker.redis {
        // So that the first requests are not decided without Redis; if it is not there, so be it.
        redis.wait_connected(REDIS_AT_START).await;
    }
    drop(inbox.ready);
    // The inbox closes when the acceptor has ended, which is when a drain begins.
    while let Some(accepted) = inbox.accepted.recv().await {
        let worker = Rc::clone(&worker);
        tokio::task::spawn_local(async move { worker.connection(accepted).await });
    }
    let deadline = tokio::time::sleep(worker.gate.settings.drain_timeout);
    let mut deadline = pin!(deadline);
    while inbox.connections.load(Relaxed) > 0 {
        tokio::select! {
            () = &mut deadline => return,
            () = tokio::time::sleep(TICK / 5) => {}
        }
    }
}

async fn tick(worker: Rc<Worker>, index: usize, beat: impl Fn(usize)) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut since_pool_sweep = 0_u32;
    let mut told_of_drain = false;
    loop {
        interval.tick().await;
        beat(index);
        worker.timers.sweep();
        if worker.gate.drain.is_draining() && !told_of_drain {
            told_of_drain = true;
            worker.timers.wake_all();
        }
        since_pool_sweep = since_pool_sweep.wrapping_add(1);
        if since_pool_sweep.is_multiple_of(20) {
            worker.pool.sweep();
        }
    }
}

impl Worker {
    async fn connection(self: Rc<Self>, accepted: Accepted) {
        let Accepted { stream, peer, guard, .. } = accepted;
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, "an accepted socket cannot be used");
                return;
            }
        };
        let state = ConnState::new(peer, guard, &self.timers, self.gate.settings.phases);
        let io = DownstreamIo::new(stream, Arc::clone(&state));
        let service = {
            let (worker, state) = (Rc::clone(&self), Arc::clone(&state));
            service_fn(move |request| {
                service::handle(Rc::clone(&worker), Arc::clone(&state), request)
            })
        };
        let mut connection = http1::Builder::new()
            .header_read_timeout(None)
            .max_header_size(self.gate.settings.header_bytes_max)
            .max_buf_size(self.gate.settings.header_bytes_max.max(8192))
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();

        let mut farewell = None;
        let mut said_farewell = false;
        let ended = poll_fn(|cx| {
            state.alarm.register(cx.waker());
            if self.gate.drain.is_draining() && !said_farewell {
                let due = *farewell.get_or_insert_with(|| self.timers.after(FAREWELL));
                state.alarm.arm(due);
                if self.timers.is_past(due) {
                    said_farewell = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
            }
            match Pin::new(&mut connection).poll(cx) {
                Poll::Ready(_) => Poll::Ready(None),
                Poll::Pending if state.is_overdue() => Poll::Ready(Some(state.phase())),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        // Nothing is left of a connection that was upgraded.
        let Some(parts) = connection.into_parts() else { return };
        let mut stream = parts.io.into_inner();
        if ended == Some(Phase::Head) && state.is_settled() {
            // hyper has seen no request, so the answer is written by hand: not into the middle of
            // one that its reader is slow to take.
            let answer = super::reply::REQUEST_TIMEOUT_RAW.as_bytes();
            let _ = tokio::time::timeout(TICK, stream.write_all(answer)).await;
            let _ = stream.shutdown().await;
            state.leave_unread();
        }
        if state.ends_in_reset() {
            // The only way to tell HTTP/1.0 that a body without a length was cut (RFC 9112 §8).
            let _ = SockRef::from(stream.stream()).set_linger(Some(Duration::ZERO));
        } else if state.may_have_unread() {
            linger(stream).await;
        }
    }
}

/// Reads and forgets until the peer closes, for a while. To close a socket with something unread
/// resets the connection, and that can take the answer away before the peer has read it
/// (RFC 9112 §9.6).
async fn linger(mut stream: impl AsyncRead + Unpin) {
    let mut forgotten = vec![0; 16 * 1024];
    let until_end = async { while let Ok(1..) = stream.read(&mut forgotten).await {} };
    let _ = tokio::time::timeout(LINGER, until_end).await;
}
