//! Coarse deadlines of one worker's connections.
//!
//! A request meets half a dozen deadlines and nearly never reaches one of them, so none of them
//! is worth an entry in the runtime's timer wheel. Instead each connection has one [`Alarm`]: the
//! earliest moment at which its task has to look again. A sweep every [`TICK`] wakes the tasks
//! whose moment has come; whoever waits then compares its own deadline with the coarse clock.
//! A deadline is never early and at most two ticks late.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::clock;

/// How often the alarms are looked at.
pub const TICK: Duration = Duration::from_millis(50);

/// Milliseconds on the worker's coarse clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(u64);

impl Tick {
    /// A moment that never comes.
    pub const NEVER: Tick = Tick(u64::MAX);

    /// From milliseconds on the same clock.
    pub const fn from_millis(millis: u64) -> Self {
        Tick(millis)
    }

    /// The moment `span` later, and one sweep, so that it is never early.
    pub fn plus(self, span: Duration) -> Tick {
        let span = u64::try_from((span + TICK).as_millis()).unwrap_or(u64::MAX);
        Tick(self.0.saturating_add(span))
    }

    /// The span since `earlier`.
    pub const fn since(self, earlier: Tick) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// In milliseconds, to be kept in an atomic.
    pub const fn as_millis(self) -> u64 {
        self.0
    }
}

/// The coarse clock of one worker, and the alarms of its connections.
#[derive(Debug)]
pub struct Timers {
    started: Instant,
    now_ms: AtomicU64,
    alarms: Mutex<Vec<Arc<Alarm>>>,
}

/// The earliest moment at which a connection's task has to look at its deadlines again.
#[derive(Debug)]
pub struct Alarm {
    due_ms: AtomicU64,
    waker: Mutex<Option<Waker>>,
}

impl Timers {
    /// A clock that begins now.
    pub fn new() -> Arc<Self> {
        Arc::new(Timers {
            started: clock::monotonic(),
            now_ms: AtomicU64::new(0),
            alarms: Mutex::new(Vec::new()),
        })
    }

    /// The present moment, as of the last sweep.
    pub fn now(&self) -> Tick {
        Tick(self.now_ms.load(Relaxed))
    }

    /// The moment that is surely `span` away; a zero span never comes.
    pub fn after(&self, span: Duration) -> Tick {
        if span.is_zero() {
            return Tick::NEVER;
        }
        self.now().plus(span)
    }

    /// Whether the moment has come.
    pub fn is_past(&self, due: Tick) -> bool {
        due.0 <= self.now_ms.load(Relaxed)
    }

    /// A new alarm. It is forgotten by the first sweep after its owner dropped it.
    pub fn alarm(&self) -> Arc<Alarm> {
        let alarm = Arc::new(Alarm { due_ms: AtomicU64::new(u64::MAX), waker: Mutex::new(None) });
        self.alarms.lock().push(Arc::clone(&alarm));
        alarm
    }

    /// Advances the clock and wakes whose moment has come. Returns how many alarms there are.
    pub fn sweep(&self) -> usize {
        self.advance(clock::monotonic() - self.started)
    }

    /// The same, at a moment so long after the beginning.
    pub(super) fn advance(&self, since_start: Duration) -> usize {
        let now = u64::try_from(since_start.as_millis()).unwrap_or(u64::MAX);
        self.now_ms.store(now, Relaxed);
        let mut alarms = self.alarms.lock();
        alarms.retain(|alarm| {
            if alarm.due_ms.load(Relaxed) <= now {
                alarm.due_ms.store(u64::MAX, Relaxed);
                alarm.ring();
            }
            Arc::strong_count(alarm) > 1
        });
        if alarms.capacity() > 64 && alarms.capacity() / 4 > alarms.len() {
            alarms.shrink_to_fit();
        }
        alarms.len()
    }
}

impl Timers {
    /// Wakes every task, whatever it waits for: something has changed for all of them.
    pub fn wake_all(&self) {
        for alarm in &*self.alarms.lock() {
            alarm.ring();
        }
    }
}

impl Alarm {
    /// Has the task woken at `due` or earlier.
    pub fn arm(&self, due: Tick) {
        // One task arms and one sweep disarms, both on the worker's thread: no lost update.
        if due.0 < self.due_ms.load(Relaxed) {
            self.due_ms.store(due.0, Relaxed);
        }
    }

    /// Wakes the task now.
    pub fn ring(&self) {
        if let Some(waker) = &*self.waker.lock() {
            waker.wake_by_ref();
        }
    }

    /// Says which task to wake.
    pub fn register(&self, waker: &Waker) {
        let mut place = self.waker.lock();
        if !place.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *place = Some(waker.clone());
        }
    }
}
