//! What is counted of the event loops and of the tasks that they run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use super::cells::{Level, LevelGuard};
use super::exposition::Family;
use super::handles::Handles;
use super::histogram::{HistogramCells, HistogramTotals, REQUEST_EDGES};
use super::labels::{Dependency, TaskType};
use super::names;
use super::registry::Metrics;
use super::series::PoolSeries;

/// What the control thread's event loop is called.
pub const CONTROL: &str = "control";

/// The event loops' cells: one for each worker, in order, and the control thread's after them.
#[derive(Debug)]
pub struct RuntimeCells {
    tasks: [Level; TaskType::COUNT],
    loops: Box<[LoopCells]>,
    lag_nanos: AtomicU64,
    stuck: AtomicUsize,
}

/// One event loop's.
#[derive(Debug)]
#[repr(align(128))]
pub struct LoopCells {
    name: Box<str>,
    lag: HistogramCells,
    /// Of an `f64`.
    busy_bits: AtomicU64,
}

impl RuntimeCells {
    /// For so many workers and the control thread.
    pub fn new(workers: usize, shards: usize) -> Self {
        let names = (0..workers).map(|index| index.to_string().into());
        let cells = |name| LoopCells {
            name,
            lag: HistogramCells::default(),
            busy_bits: AtomicU64::new(0.0_f64.to_bits()),
        };
        RuntimeCells {
            tasks: std::array::from_fn(|_| Level::new(shards)),
            loops: names.chain([CONTROL.into()]).map(cells).collect(),
            lag_nanos: AtomicU64::new(0),
            stuck: AtomicUsize::new(0),
        }
    }

    /// A task lives, until the guard is dropped.
    #[inline]
    pub fn task(&self, kind: TaskType) -> Option<LevelGuard> {
        self.tasks.get(kind.index()).map(Level::enter)
    }

    /// Tasks of this kind that live.
    pub fn tasks(&self, kind: TaskType) -> usize {
        self.tasks.get(kind.index()).map_or(0, Level::count)
    }

    /// Tasks that live.
    pub fn all_tasks(&self) -> usize {
        self.tasks.iter().map(Level::count).sum()
    }

    /// The timer of this event loop was so late.
    pub fn woke_late(&self, index: usize, by: Duration) {
        if let Some(cells) = self.loops.get(index) {
            cells.lag.record(REQUEST_EDGES, by);
        }
    }

    /// The share of a span that this event loop was busy.
    pub fn set_busy(&self, index: usize, ratio: f64) {
        if let Some(cells) = self.loops.get(index) {
            cells.busy_bits.store(ratio.to_bits(), Ordering::Relaxed);
        }
    }

    /// How the workers do: the worst lag, and how many of them hang.
    pub fn set_workers(&self, lag: Duration, stuck: usize) {
        let nanos = u64::try_from(lag.as_nanos()).unwrap_or(u64::MAX);
        self.lag_nanos.store(nanos, Ordering::Relaxed);
        self.stuck.store(stuck, Ordering::Relaxed);
    }
}

impl Metrics {
    /// The event loops' cells.
    pub fn runtime(&self) -> &Arc<RuntimeCells> {
        &self.runtime
    }

    pub(super) fn publish_runtime(&self, handles: &Handles) {
        let runtime = &self.runtime;
        for kind in TaskType::ALL {
            let count = runtime.tasks(*kind) as f64;
            handles.gauge(&names::ASYNC_TASKS, &[kind.as_str()]).set(count);
        }
        let lag = Duration::from_nanos(runtime.lag_nanos.load(Ordering::Relaxed));
        handles.gauge(&names::EVENT_LOOP_LAG, &[]).set(lag.as_secs_f64());
        let stuck = runtime.stuck.load(Ordering::Relaxed) as f64;
        handles.gauge(&names::WORKERS_STUCK, &[]).set(stuck);
        for cells in &runtime.loops {
            let ratio = f64::from_bits(cells.busy_bits.load(Ordering::Relaxed));
            handles.gauge(&names::BUSY_RATIO, &[&cells.name]).set(ratio);
        }
    }

    /// The histograms of event loops, and of waiting for connections.
    pub(super) fn histograms_of_pressure(&self, pools: &[Arc<PoolSeries>]) -> [Family; 2] {
        let mut lags = Family::new(&names::RUNTIME_LAG);
        for cells in &self.runtime.loops {
            let totals = HistogramTotals::of(std::iter::once(&cells.lag));
            lags.histogram(&[&cells.name], REQUEST_EDGES, &totals);
        }
        let mut waits = Family::new(&names::POOL_WAIT);
        if let Some(totals) = *self.database_waits.lock() {
            waits.histogram(&[Dependency::Database.as_str()], REQUEST_EDGES, &totals);
        }
        for pool in pools {
            waits.histogram(&[&pool.name], REQUEST_EDGES, &pool.waits());
        }
        [lags, waits]
    }
}
