//! Whether tollgate can keep up: a verdict over how late its workers are and how much waits.
//!
//! Pure: numbers and the time come in, a verdict comes out. It rises at once, or after a short
//! confirmation where a burst is harmless; it falls only once the cause has stayed clearly below its
//! mark for a while. So a value that dances around a mark changes the verdict once.

use std::time::{Duration, Instant};

/// How bad it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Nothing waits for long.
    #[default]
    Normal,
    /// Callers can notice.
    Warning,
    /// Callers wait, or are refused.
    Critical,
}

impl Severity {
    /// As `/health` says it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Severity::Normal => "normal",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// How long a cause has to stay below its lower mark before the verdict falls.
pub const HOLD: Duration = Duration::from_secs(10);
/// How long a queue has to stay above its mark: a burst that a second clears is no pressure.
pub const CONFIRM: Duration = Duration::from_secs(1);
/// The lower mark, as a share of the upper one.
pub const LOWER: f64 = 0.8;

/// From where on a value is a reason for which verdict.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Marks {
    /// From here on a warning.
    pub warning: f64,
    /// From here on critical; infinite where nothing is.
    pub critical: f64,
    /// How long it has to be there.
    pub confirm: Duration,
}

impl Marks {
    const fn of_queue(warning: f64, critical: f64) -> Self {
        Marks { warning, critical, confirm: CONFIRM }
    }

    /// What a value is a reason for, with both marks lowered to this share.
    fn reached(&self, value: f64, share: f64) -> Severity {
        if value >= self.critical * share {
            Severity::Critical
        } else if value >= self.warning * share {
            Severity::Warning
        } else {
            Severity::Normal
        }
    }
}

/// Seconds for which a worker did not come round. At 50 ms a caller can feel it; at 250 ms every
/// deadline of a quarter of a second is missed for no fault of the backend. What is observed is the
/// peak of 15 seconds already, so it needs no confirmation.
pub const LAG: Marks = Marks { warning: 0.05, critical: 0.25, confirm: Duration::ZERO };
/// Checks that Redis has not answered, for each worker. One takes 1,024 at most and decides what is
/// beyond without Redis: the marks are half of that, and nine tenths.
pub const REDIS_QUEUE: Marks = Marks::of_queue(512.0, 922.0);
/// Look-ups that wait for a database connection. Answers are remembered and a user is asked for once
/// at a time, so in health none waits; above ten the alert `DatabasePoolExhaustion` fires too.
pub const DATABASE_QUEUE: Marks = Marks::of_queue(6.0, 11.0);
/// Requests that wait for the upstream, for each worker: as many as one connection of HTTP/2 may have
/// streams, and ten times as many.
pub const UPSTREAM_QUEUE: Marks = Marks::of_queue(100.0, 1_000.0);
/// Live tasks; the alert `HighAsyncTaskCount` has the same mark. Many idle connections are many
/// tasks too, so that alone is never critical.
pub const TASKS: Marks = Marks::of_queue(5_001.0, f64::INFINITY);
/// Requests are refused for load: tollgate protects itself and the backend.
pub const SHEDDING: Marks =
    Marks { warning: 1.0, critical: f64::INFINITY, confirm: Duration::ZERO };
/// Workers that hang: whoever is connected to one waits for as long as it does.
pub const WORKERS_STUCK: Marks = Marks { warning: 1.0, critical: 1.0, confirm: Duration::ZERO };

/// What the verdict is made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// The worst lag of any worker.
    pub lag: Duration,
    /// Workers that hang.
    pub workers_stuck: usize,
    /// Checks that Redis has not answered.
    pub redis_queue: u64,
    /// Look-ups that wait for a database connection.
    pub database_queue: u64,
    /// Requests that wait for a connection to the upstream.
    pub upstream_waiting: usize,
    /// Live tasks.
    pub tasks: usize,
    /// Whether requests are refused for load.
    pub is_shedding: bool,
}

/// One cause, and what it is a reason for at the moment.
#[derive(Clone, Debug)]
struct Cause {
    marks: Marks,
    severity: Severity,
    /// The least that it was a reason for since then, above `severity`.
    rising: Option<(Severity, Instant)>,
    /// The most that it was a reason for since then by the lower marks, below `severity`.
    falling: Option<(Severity, Instant)>,
}

impl Cause {
    fn new(marks: Marks) -> Self {
        Cause { marks, severity: Severity::Normal, rising: None, falling: None }
    }

    fn observe(&mut self, value: f64, now: Instant) -> Severity {
        let reached = self.marks.reached(value, 1.0);
        self.rising = (reached > self.severity).then(|| match self.rising {
            Some((least, since)) => (least.min(reached), since),
            None => (reached, now),
        });
        if let Some((least, since)) = self.rising
            && now.saturating_duration_since(since) >= self.marks.confirm
        {
            self.severity = least;
            // What is still above that begins its own confirmation.
            self.rising = (reached > least).then_some((reached, now));
        }
        let kept = self.marks.reached(value, LOWER);
        self.falling = (kept < self.severity).then(|| match self.falling {
            Some((most, since)) => (most.max(kept), since),
            None => (kept, now),
        });
        if let Some((most, since)) = self.falling
            && now.saturating_duration_since(since) >= HOLD
        {
            self.severity = most;
            self.falling = (kept < most).then_some((kept, now));
        }
        self.severity
    }
}

/// The verdict over all causes: the worst of theirs.
#[derive(Clone, Debug)]
pub struct Pressure {
    workers: f64,
    lag: Cause,
    workers_stuck: Cause,
    redis: Cause,
    database: Cause,
    upstream: Cause,
    tasks: Cause,
    shedding: Cause,
}

impl Pressure {
    /// Of a process with so many workers: the marks of what each of them has are for one.
    pub fn new(workers: usize) -> Self {
        Pressure {
            workers: workers.max(1) as f64,
            lag: Cause::new(LAG),
            workers_stuck: Cause::new(WORKERS_STUCK),
            redis: Cause::new(REDIS_QUEUE),
            database: Cause::new(DATABASE_QUEUE),
            upstream: Cause::new(UPSTREAM_QUEUE),
            tasks: Cause::new(TASKS),
            shedding: Cause::new(SHEDDING),
        }
    }

    /// Takes the load at this moment into account, and says how bad it is. To be told of it every
    /// [`OBSERVE_INTERVAL`]: what nobody looks at counts as what it was.
    pub fn observe(&mut self, load: &Load, now: Instant) -> Severity {
        let per_worker = |count: f64| count / self.workers;
        let worst = [
            self.lag.observe(load.lag.as_secs_f64(), now),
            self.workers_stuck.observe(load.workers_stuck as f64, now),
            self.redis.observe(per_worker(load.redis_queue as f64), now),
            self.database.observe(load.database_queue as f64, now),
            self.upstream.observe(per_worker(load.upstream_waiting as f64), now),
            self.tasks.observe(load.tasks as f64, now),
            self.shedding.observe(f64::from(u8::from(load.is_shedding)), now),
        ];
        worst.into_iter().max().unwrap_or_default()
    }
}

/// How often the load is looked at.
pub const OBSERVE_INTERVAL: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::monotonic;

    /// Observes each value for so many steps of [`OBSERVE_INTERVAL`]; returns every change of the
    /// verdict, with the milliseconds from the beginning.
    fn changes(marks: Marks, values: &[(f64, u32)]) -> Vec<(u128, Severity)> {
        let start = monotonic();
        let (mut cause, mut now, mut last) = (Cause::new(marks), start, Severity::Normal);
        let mut changes = Vec::new();
        for value in values.iter().flat_map(|(value, steps)| (0..*steps).map(|_| *value)) {
            let severity = cause.observe(value, now);
            if severity != last {
                changes.push(((now - start).as_millis(), severity));
                last = severity;
            }
            now += OBSERVE_INTERVAL;
        }
        changes
    }

    #[test]
    fn lag_is_told_at_once_and_taken_back_late() {
        let shown = changes(LAG, &[(0.049, 10), (0.05, 1), (0.0, 100)]);
        assert_eq!(shown, [(2_000, Severity::Warning), (12_200, Severity::Normal)]);
        let shown = changes(LAG, &[(0.25, 1), (0.06, 100), (0.0, 100)]);
        let expected =
            [(0, Severity::Critical), (10_200, Severity::Warning), (30_200, Severity::Normal)];
        assert_eq!(shown, expected);
    }

    #[test]
    fn between_the_marks_it_stays_what_it_was() {
        assert_eq!(changes(LAG, &[(0.041, 300)]), []);
        assert_eq!(changes(LAG, &[(0.06, 1), (0.041, 300)]), [(0, Severity::Warning)]);
        let shown = changes(LAG, &[(0.3, 1), (0.21, 300), (0.19, 51)]);
        assert_eq!(shown, [(0, Severity::Critical), (70_200, Severity::Warning)]);
    }

    #[test]
    fn a_queue_has_to_last_a_second() {
        assert_eq!(changes(REDIS_QUEUE, &[(1_024.0, 5), (0.0, 10), (1_024.0, 5), (0.0, 9)]), []);
        let shown = changes(REDIS_QUEUE, &[(600.0, 3), (1_024.0, 4)]);
        assert_eq!(shown, [(1_000, Severity::Warning)], "for a second it was as much as that");
        let shown = changes(REDIS_QUEUE, &[(600.0, 3), (1_024.0, 9)]);
        assert_eq!(shown, [(1_000, Severity::Warning), (2_000, Severity::Critical)]);
    }

    #[test]
    fn a_value_that_dances_around_a_mark_changes_the_verdict_once() {
        for period in 1..=50 {
            let dance: Vec<(f64, u32)> =
                (0..400).map(|turn| (if turn % 2 == 0 { 0.051 } else { 0.039 }, period)).collect();
            assert_eq!(changes(LAG, &dance), [(0, Severity::Warning)], "{period}");
        }
    }

    #[test]
    fn every_cause_counts_and_the_worst_one_tells() {
        let start = monotonic();
        let check = |load: Load, expected: Severity| {
            let mut pressure = Pressure::new(2);
            pressure.observe(&load, start);
            let shown = pressure.observe(&load, start + CONFIRM);
            assert_eq!(shown, expected, "{load:?}");
        };
        let load = Load::default();
        check(load, Severity::Normal);
        check(Load { lag: Duration::from_millis(49), ..load }, Severity::Normal);
        check(Load { lag: Duration::from_millis(50), ..load }, Severity::Warning);
        check(Load { lag: Duration::from_millis(250), ..load }, Severity::Critical);
        check(Load { workers_stuck: 1, ..load }, Severity::Critical);
        check(Load { redis_queue: 1_023, ..load }, Severity::Normal);
        check(Load { redis_queue: 1_024, ..load }, Severity::Warning);
        check(Load { redis_queue: 2_048, ..load }, Severity::Critical);
        check(Load { database_queue: 5, ..load }, Severity::Normal);
        check(Load { database_queue: 10, ..load }, Severity::Warning);
        check(Load { database_queue: 11, ..load }, Severity::Critical);
        check(Load { upstream_waiting: 200, ..load }, Severity::Warning);
        check(Load { upstream_waiting: 2_000, ..load }, Severity::Critical);
        check(Load { tasks: 5_000, ..load }, Severity::Normal);
        check(Load { tasks: 1_000_000, ..load }, Severity::Warning);
        check(Load { is_shedding: true, ..load }, Severity::Warning);
        let both = Load { is_shedding: true, workers_stuck: 1, ..load };
        check(both, Severity::Critical);
    }

    proptest! {
        /// Against what is obviously right: every past value is kept and looked at again.
        #[test]
        fn it_rises_confirmed_and_falls_only_after_the_hold(
            runs in prop::collection::vec((0.0_f64..1_500.0, 1_u32..80), 1..40),
            is_quick in any::<bool>(),
        ) {
            let confirm = if is_quick { Duration::ZERO } else { CONFIRM };
            let marks = Marks { confirm, ..REDIS_QUEUE };
            let (mut cause, mut now) = (Cause::new(marks), monotonic());
            let mut past: Vec<(Instant, f64)> = Vec::new();
            let mut last = (Severity::Normal, None::<Instant>);
            for value in runs.iter().flat_map(|(value, steps)| (0..*steps).map(|_| *value)) {
                past.push((now, value));
                let severity = cause.observe(value, now);
                let within = |span: Duration| past.iter().rev()
                    .take_while(move |(at, _)| now.saturating_duration_since(*at) <= span);
                let is_covered = |span: Duration| now.saturating_duration_since(past[0].0) >= span;
                if severity > last.0 {
                    prop_assert!(is_covered(confirm));
                    prop_assert!(within(confirm).all(|(_, it)| marks.reached(*it, 1.0) >= severity));
                }
                if severity < last.0 {
                    prop_assert!(is_covered(HOLD));
                    prop_assert!(within(HOLD).all(|(_, it)| marks.reached(*it, LOWER) <= severity));
                    prop_assert!(last.1.is_none_or(|at| now.saturating_duration_since(at) >= HOLD));
                }
                // And it does rise and fall where it has to.
                if is_covered(2 * CONFIRM) {
                    let lasting = within(2 * CONFIRM).map(|(_, it)| marks.reached(*it, 1.0)).min();
                    prop_assert!(Some(severity) >= lasting);
                }
                if is_covered(2 * HOLD) {
                    let lasting = within(2 * HOLD).map(|(_, it)| marks.reached(*it, LOWER)).max();
                    prop_assert!(Some(severity) <= lasting);
                }
                if severity != last.0 {
                    last = (severity, Some(now));
                }
                now += OBSERVE_INTERVAL;
            }
        }
    }
}
