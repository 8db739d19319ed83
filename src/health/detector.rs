//! The detector of backpressure: what the loops, the queues and the tasks say, in one report.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::metrics::series::PoolSeries;

use super::heartbeat::Heartbeats;
use super::loops::Loops;
use super::pressure::{Load, Pressure, Severity};

/// What waits outside of the event loops.
#[derive(Clone, Copy, Debug, Default)]
pub struct Queues {
    /// Checks that Redis has not answered.
    pub redis: u64,
    /// Look-ups that wait for a database connection; `None` without a database.
    pub database: Option<u64>,
}

/// How it stands at this moment.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// The verdict.
    pub severity: Severity,
    /// The worst lag of any worker in the last 15 seconds.
    pub lag: Duration,
    /// Workers that hang.
    pub workers_stuck: usize,
    /// What waits.
    pub queues: Queues,
    /// Requests that wait for a connection to the upstream.
    pub upstream_waiting: usize,
    /// Live tasks.
    pub tasks: usize,
}

/// Looks at everything that can hold requests up.
pub struct Detector {
    loops: Arc<Loops>,
    hearts: Arc<Heartbeats>,
    upstream: Arc<PoolSeries>,
    queues: Box<dyn Fn() -> Queues + Send + Sync>,
    is_shedding: AtomicBool,
    pressure: Mutex<Pressure>,
}

impl Detector {
    /// Over these event loops and hearts, and the connections to the upstream; `queues` must be
    /// quick to answer.
    pub fn new(
        loops: Arc<Loops>,
        hearts: Arc<Heartbeats>,
        upstream: Arc<PoolSeries>,
        queues: impl Fn() -> Queues + Send + Sync + 'static,
    ) -> Arc<Self> {
        let pressure = Mutex::new(Pressure::new(loops.control()));
        Arc::new(Detector {
            loops,
            hearts,
            upstream,
            queues: Box::new(queues),
            is_shedding: AtomicBool::new(false),
            pressure,
        })
    }

    /// The event loops that it looks at.
    pub fn loops(&self) -> &Arc<Loops> {
        &self.loops
    }

    /// Whether requests are refused for load now: to be told by whoever refuses them.
    pub fn set_shedding(&self, is_shedding: bool) {
        self.is_shedding.store(is_shedding, Relaxed);
    }

    /// Looks at the queues and at what the loops have come to, and has the metrics show it.
    pub fn observe(&self, now: Instant) -> Report {
        let lag = self.loops.lag(now);
        let workers_stuck = self.loops.stuck(&self.hearts, now);
        let queues = (self.queues)();
        let upstream_waiting = self.upstream.waiting();
        let tasks = self.loops.cells().all_tasks();
        let load = Load {
            lag,
            workers_stuck,
            redis_queue: queues.redis,
            database_queue: queues.database.unwrap_or(0),
            upstream_waiting,
            tasks,
            is_shedding: self.is_shedding.load(Relaxed),
        };
        let severity = self.pressure.lock().observe(&load, now);
        self.loops.cells().set_workers(lag, workers_stuck);
        Report { severity, lag, workers_stuck, queues, upstream_waiting, tasks }
    }
}

impl fmt::Debug for Detector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detector").finish_non_exhaustive()
    }
}
