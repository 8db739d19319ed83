//! One worker: a single-threaded runtime, and all of the connections that were handed to it.

use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::clock;
use crate::health::tasks::{watched, watched_root};
use crate::metrics::labels::TaskType;
use crate::store::redis::RedisStore;
use crate::top::talkers::Reporter;
use crate::usage::writer::UsageWriter;

use super::connection;
use super::gate::Gate;
use super::handshake::Handshakes;
use super::headers::Numbers;
use super::listener::Accepted;
use super::record::Recorder;
use super::timer::{TICK, Timers};
use super::upstreams::Lines;

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
    /// Its connections to the upstreams.
    pub lines: Lines,
    /// Its connection to Redis, if there is one.
    pub redis: Option<RedisStore>,
    /// Its coarse clock.
    pub timers: Arc<Timers>,
    /// Its TLS handshakes that are under way.
    pub handshakes: Handshakes,
    /// What it wrote into answers last.
    pub numbers: Numbers,
    /// Where its requests are told of, if they are.
    pub recorder: Option<Recorder>,
    /// Whose requests it has seen.
    pub top: Reporter,
    /// Where their usage is counted, if it is.
    pub usage: Option<UsageWriter>,
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
    gate.loops.sit(index, runtime.metrics());
    let loops = Arc::clone(&gate.loops);
    runtime.block_on(watched_root(serve(gate, index, inbox, beat)));
    loops.end(index);
    // Whatever is left by now had its time.
    runtime.shutdown_background();
    Ok(())
}

async fn serve(gate: Arc<Gate>, index: usize, mut inbox: Inbox, beat: impl Fn(usize) + 'static) {
    crate::metrics::cells::use_shard(index);
    let timers = Timers::new();
    let worker = Rc::new(Worker {
        lines: Lines::new(&gate, &timers, index),
        redis: gate.redis.as_ref().map(|shared| RedisStore::connect(Arc::clone(shared))),
        timers,
        handshakes: Handshakes::default(),
        numbers: Numbers::default(),
        recorder: Recorder::new(gate.access_log.as_ref(), gate.tracer.as_ref()),
        top: Reporter::new(Arc::clone(&gate.top), index),
        usage: gate.usage.as_ref().map(|it| UsageWriter::new(Arc::clone(it), index)),
        gate,
    });
    let ticking = tick(Rc::clone(&worker), index, beat);
    tokio::task::spawn_local(watched(TaskType::Background, ticking));
    if let Some(redis) = &worker.redis {
        // So that the first requests are not decided without Redis; if it is not there, so be it.
        redis.wait_connected(REDIS_AT_START).await;
    }
    drop(inbox.ready);
    // The inbox closes when the acceptor has ended, which is when a drain begins.
    while let Some(accepted) = inbox.accepted.recv().await {
        let served = connection::serve(Rc::clone(&worker), accepted);
        tokio::task::spawn_local(watched(TaskType::Connection, served));
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
        let due = interval.tick().await.into_std();
        if cfg!(not(feature = "without-signals")) {
            worker.gate.loops.woke(index, due, clock::monotonic());
            worker.top.tick(clock::monotonic());
            beat(index);
        }
        worker.timers.sweep();
        if let Some(recorder) = &worker.recorder {
            recorder.flush();
        }
        if let Some(usage) = &worker.usage {
            usage.tick(worker.gate.clock.now());
        }
        if worker.gate.drain.is_draining() && !told_of_drain {
            told_of_drain = true;
            worker.timers.wake_all();
        }
        since_pool_sweep = since_pool_sweep.wrapping_add(1);
        if since_pool_sweep.is_multiple_of(20) {
            worker.lines.sweep();
        }
    }
}
