//! How late each event loop is: by its own timer, and by a look at it from outside.
//!
//! Neither is enough alone. A timer tells how late it fired, but only once it has; a look from
//! another thread sees the poll that does not end, but none that is shorter than two looks are
//! apart. The lag of a worker is the larger of the two, at its highest in the last
//! [`PEAK_SPAN`]. Several readers see the same: a reading takes nothing away.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::RuntimeMetrics;

use crate::metrics::runtime::RuntimeCells;

use super::heartbeat::Heartbeats;
use super::tasks::{self, PollStamp, Seat};

/// How often the watchdog looks. A poll's length is known to this span, and never overstated.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// What a timer may be late by without anybody being at fault: the runtime rounds its deadlines up
/// to a millisecond, and so does the kernel's wait.
pub const TIMER_GRANULARITY: Duration = Duration::from_millis(2);
/// For how long a peak is shown, at least.
pub const PEAK_SPAN: Duration = Duration::from_secs(15);
/// A poll that has run for so long is not slow any more, but stuck.
pub const STUCK_AFTER: Duration = Duration::from_secs(1);
/// The span that the share of busy time is of.
pub const BUSY_SPAN: Duration = Duration::from_secs(5);

/// Slots of a second each; one more than the span has, since the newest is not over yet.
const PEAK_SLOTS: usize = 16;

/// The highest value of the last [`PEAK_SPAN`], or up to a second more.
#[derive(Debug, Default)]
struct Peak {
    /// The second in the upper half, its highest value in the lower, in microseconds.
    slots: [AtomicU64; PEAK_SLOTS],
}

impl Peak {
    fn observe(&self, second: u64, value: Duration) {
        let micros = u32::try_from(value.as_micros()).unwrap_or(u32::MAX);
        let index = usize::try_from(second % PEAK_SLOTS as u64).unwrap_or(0);
        if let Some(slot) = self.slots.get(index) {
            // A later second is a larger number whatever its value: it takes the slot over.
            slot.fetch_max((second << 32) | u64::from(micros), Relaxed);
        }
    }

    fn highest(&self, second: u64) -> Duration {
        let recent = self.slots.iter().map(|slot| slot.load(Relaxed)).filter(|packed| {
            let of = packed >> 32;
            of <= second && second - of <= PEAK_SPAN.as_secs()
        });
        Duration::from_micros(recent.map(|packed| packed & u64::from(u32::MAX)).max().unwrap_or(0))
    }
}

/// The event loops of this process: the workers' in order, and the control thread's after them.
#[derive(Debug)]
pub struct Loops {
    started: Instant,
    cells: Arc<RuntimeCells>,
    workers: usize,
    loops: Box<[Loop]>,
}

#[derive(Debug)]
struct Loop {
    stamp: Arc<PollStamp>,
    peak: Peak,
    /// How long the poll that runs has done so for sure, as of the last look.
    running_ms: AtomicU64,
    runtime: OnceLock<RuntimeMetrics>,
    /// It has ended, as it should: in a drain one worker is done before another.
    has_ended: AtomicBool,
    /// The watchdog's; nobody else has it for longer than an instant.
    look: Mutex<Look>,
}

/// What the watchdog saw last.
#[derive(Debug)]
struct Look {
    poll: Option<(u64, Instant)>,
    busy: Duration,
    busy_at: Instant,
}

impl Loops {
    /// Of so many workers, and of the control thread.
    pub fn new(cells: &Arc<RuntimeCells>, workers: usize, now: Instant) -> Arc<Self> {
        let look = || Look { poll: None, busy: Duration::ZERO, busy_at: now };
        let one = |_| Loop {
            stamp: Arc::default(),
            peak: Peak::default(),
            running_ms: AtomicU64::new(0),
            runtime: OnceLock::new(),
            has_ended: AtomicBool::new(false),
            look: Mutex::new(look()),
        };
        Arc::new(Loops {
            started: now,
            cells: Arc::clone(cells),
            workers,
            loops: (0..=workers).map(one).collect(),
        })
    }

    /// The calling thread runs this event loop: its tasks are counted and seen from now on.
    pub fn sit(&self, index: usize, runtime: RuntimeMetrics) {
        let Some(of) = self.loops.get(index) else { return };
        // A thread that takes the place of another keeps the first one's figures.
        let _ = of.runtime.set(runtime);
        tasks::sit(Seat { stamp: Arc::clone(&of.stamp), cells: Arc::clone(&self.cells) });
    }

    /// This event loop has ended, and not by a fault: its silence is no sign any more.
    pub fn end(&self, index: usize) {
        if let Some(of) = self.loops.get(index) {
            of.has_ended.store(true, Relaxed);
        }
    }

    /// The place of the control thread.
    pub fn control(&self) -> usize {
        self.workers
    }

    /// What is counted of them.
    pub fn cells(&self) -> &Arc<RuntimeCells> {
        &self.cells
    }

    /// What the runtime of an event loop says of itself.
    pub fn runtime(&self, index: usize) -> Option<&RuntimeMetrics> {
        self.loops.get(index)?.runtime.get()
    }

    /// The event loop was to wake at `due`, and did at `now`.
    pub fn woke(&self, index: usize, due: Instant, now: Instant) {
        let Some(of) = self.loops.get(index) else { return };
        let late = now.saturating_duration_since(due).saturating_sub(TIMER_GRANULARITY);
        of.peak.observe(self.second(now), late);
        self.cells.woke_late(index, late);
    }

    /// The watchdog's look at all of them.
    pub fn look(&self, now: Instant) {
        for (index, of) in self.loops.iter().enumerate() {
            let mut look = of.look.lock();
            let running = of.stamp.running();
            let since = match (look.poll, running) {
                (Some((before, since)), Some(number)) if before == number => since,
                _ => now,
            };
            look.poll = running.map(|number| (number, since));
            let age = now.saturating_duration_since(since);
            of.running_ms.store(u64::try_from(age.as_millis()).unwrap_or(u64::MAX), Relaxed);
            of.peak.observe(self.second(now), age);
            self.look_how_busy(index, of, &mut look, (age, now));
        }
    }

    fn look_how_busy(
        &self,
        index: usize,
        of: &Loop,
        look: &mut Look,
        (age, now): (Duration, Instant),
    ) {
        let span = now.saturating_duration_since(look.busy_at);
        if span < BUSY_SPAN {
            return;
        }
        if let Some(runtime) = of.runtime.get() {
            let busy = runtime.worker_total_busy_duration(0);
            // The runtime adds a poll once it has ended.
            let spent = busy.saturating_sub(look.busy).max(age.min(span));
            self.cells.set_busy(index, (spent.as_secs_f64() / span.as_secs_f64()).min(1.0));
            look.busy = busy;
        }
        look.busy_at = now;
    }

    /// How long the poll that this event loop runs has lasted, as of the watchdog's last look.
    pub fn running(&self, index: usize) -> Duration {
        let of = self.loops.get(index);
        Duration::from_millis(of.map_or(0, |of| of.running_ms.load(Relaxed)))
    }

    /// The lag of one event loop.
    pub fn lag_of(&self, index: usize, now: Instant) -> Duration {
        self.loops.get(index).map_or(Duration::ZERO, |of| of.peak.highest(self.second(now)))
    }

    /// The worst lag of all workers.
    pub fn lag(&self, now: Instant) -> Duration {
        let lags = (0..self.workers).map(|index| self.lag_of(index, now));
        lags.max().unwrap_or_default()
    }

    /// Workers that hang: in a poll without end, or with a heart that has stopped.
    pub fn stuck(&self, hearts: &Heartbeats, now: Instant) -> usize {
        let hangs =
            |index: &usize| self.running(*index) >= STUCK_AFTER || hearts.has_stopped(*index, now);
        let has_ended =
            |index: usize| self.loops.get(index).is_some_and(|of| of.has_ended.load(Relaxed));
        (0..self.workers).filter(|index| !has_ended(*index)).filter(hangs).count()
    }

    /// Seconds since the start, counted from so many that an untouched slot is of long ago.
    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_secs().saturating_add(PEAK_SLOTS as u64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::monotonic;

    fn loops(workers: usize) -> (Arc<Loops>, Instant) {
        let now = monotonic();
        (Loops::new(&Arc::new(RuntimeCells::new(workers, 1)), workers, now), now)
    }

    fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_poll_is_as_old_as_the_first_look_at_it() {
        let (loops, start) = loops(2);
        let stamp = Arc::clone(&loops.loops[1].stamp);
        loops.look(start);
        let first = stamp.begin();
        loops.look(start + millis(20));
        assert_eq!(loops.lag(start + millis(20)), Duration::ZERO, "seen once only");
        loops.look(start + millis(320));
        assert_eq!(loops.running(1), millis(300));
        assert_eq!(loops.lag_of(1, start + millis(320)), millis(300));
        assert_eq!(loops.lag_of(0, start + millis(320)), Duration::ZERO);
        drop(first);
        let _second = stamp.begin();
        loops.look(start + millis(340));
        assert_eq!(loops.running(1), Duration::ZERO, "another poll");
        assert_eq!(loops.lag(start + millis(340)), millis(300), "the peak stays");
    }

    #[test]
    fn a_timer_is_late_by_more_than_its_own_granularity() {
        let (loops, start) = loops(1);
        loops.woke(0, start, start + millis(1));
        assert_eq!(loops.lag(start + millis(1)), Duration::ZERO);
        loops.woke(0, start, start + millis(62));
        assert_eq!(loops.lag(start + millis(62)), millis(60));
        // The control thread's is no worker's.
        loops.woke(1, start, start + millis(500));
        assert_eq!(loops.lag(start + millis(500)), millis(60));
        assert_eq!(loops.lag_of(loops.control(), start + millis(500)), millis(498));
    }

    #[test]
    fn a_worker_is_stuck_by_its_poll_or_by_its_heart() {
        let (loops, start) = loops(2);
        let hearts = Heartbeats::new(2, start);
        let _poll = loops.loops[0].stamp.begin();
        loops.look(start);
        loops.look(start + millis(999));
        assert_eq!(loops.stuck(&hearts, start + millis(999)), 0);
        loops.look(start + millis(1_000));
        assert_eq!(loops.stuck(&hearts, start + millis(1_000)), 1);
        // The other one stands still in what is no poll of a task.
        assert_eq!(loops.stuck(&hearts, start + millis(5_000)), 2);
        hearts.beat(1, start + millis(5_001));
        assert_eq!(loops.stuck(&hearts, start + millis(5_001)), 1);
        loops.end(1);
        assert_eq!(loops.stuck(&hearts, start + millis(60_000)), 1, "drained, not stuck");
    }

    proptest! {
        #[test]
        fn the_peak_is_that_of_the_last_fifteen_seconds_or_one_more(
            gaps in prop::collection::vec((0_u64..4_000, 0_u64..1_000), 1..60),
        ) {
            let (loops, start) = loops(1);
            let mut now = start + millis(1);
            let mut all = Vec::new();
            for (gap, late) in gaps {
                now += millis(gap);
                loops.woke(0, now - millis(late).min(now - start), now);
                all.push((now, millis(late).min(now - start).saturating_sub(TIMER_GRANULARITY)));
                let of_last = |span| {
                    let recent = all.iter().filter(|(at, _)| now - *at <= span);
                    recent.map(|(_, late)| *late).max().unwrap_or_default()
                };
                let shown = loops.lag(now);
                prop_assert_eq!(shown, loops.lag(now), "a reading takes nothing away");
                prop_assert!(shown >= of_last(PEAK_SPAN));
                prop_assert!(shown <= of_last(PEAK_SPAN + Duration::from_secs(1)));
            }
        }
    }
}
