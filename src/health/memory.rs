//! Whether the process leaks memory.
//!
//! Samples and the time are passed in; what is kept of them is a window of medians and a day of
//! hourly minima, some kilobytes. A leak is a rise that is steep, large, one-way and does not
//! flatten out, that neither the allocator's free pages nor the traffic explains, and that is
//! found several times in a row. Everything short of that has a name of its own, so that an alarm
//! is worth getting up for. `docs/memory.md` has the reasons and what was measured.

use std::collections::VecDeque;
use std::time::Duration;

use super::trend::{Point, Trend, median};

const KIB: f64 = 1024.0;
const MIB: f64 = KIB * KIB;

/// Bytes a second above which an hour's growth is worth a look.
const LEAK_FAST: f64 = 10.0 * KIB;
/// The same of a day's.
const LEAK_SLOW: f64 = KIB;
/// What has to be gained over the window, at the least: less is noise whatever its slope.
const GROWTH_MIN: f64 = 8.0 * MIB;
/// The same as a part of what there is.
const GROWTH_SHARE: f64 = 0.05;
/// How one-way a rise has to be (Kendall's tau).
const TAU_MIN: f64 = 0.5;
/// The second half of the window has to rise at this part of the first's slope: what fills up does
/// not. At 0.6 a cache that fills with a time constant of an hour, whose halves are as 1 to 0.607,
/// was taken for a leak in half of all runs; at 0.75 nothing up to 100 minutes is, and every leak
/// of 20 KB/s is still found, some of them 25 minutes later.
const FLATTENING: f64 = 0.75;
/// Findings in a row that make a suspicion, and that end one.
const IN_A_ROW: u32 = 3;
/// The part of a rise that must be in use, and not free pages of the allocator, for a leak.
const USED_SHARE: f64 = 0.5;
/// No connection is taken to need more: a rise that would come to more for each further one is
/// not the traffic's.
const CONNECTION_MAX: f64 = MIB;
/// Free pages of the allocator that are worth a word: so many, and this part of all memory.
const SLACK_MIN: f64 = 32.0 * MIB;
const SLACK_SHARE: f64 = 0.5;
/// How far back the present state goes, in samples.
const PRESENT: usize = 20;
/// Samples that a point is the median of: one minute, both ends included.
const MEDIAN_OF: usize = 3;
/// Windows that the slow detector looks at the minima of.
const SLOW_WINDOWS: usize = 24;

/// When what is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Between two samples.
    pub sample: Duration,
    /// Between two evaluations.
    pub evaluate: Duration,
    /// After the start, before any sample counts: a start's growth is no leak.
    pub grace: Duration,
    /// What is evaluated.
    pub window: Duration,
}

impl Default for Schedule {
    fn default() -> Self {
        let minutes = |count: u64| Duration::from_secs(60 * count);
        Schedule {
            sample: Duration::from_secs(30),
            evaluate: minutes(5),
            grace: minutes(10),
            window: minutes(60),
        }
    }
}

impl Schedule {
    /// The same for another window, everything in proportion. For drills: no threshold is scaled.
    pub fn with_window(window: Duration) -> Self {
        let real = Schedule::default();
        let factor = window.as_secs_f64() / real.window.as_secs_f64();
        Schedule {
            sample: real.sample.mul_f64(factor),
            evaluate: real.evaluate.mul_f64(factor),
            grace: real.grace.mul_f64(factor),
            window,
        }
    }
}

/// What was measured at one moment, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Memory of the process, what was swapped out included: a leak that the kernel has put aside
    /// is one all the same.
    pub resident: u64,
    /// Of it, pages that the allocator keeps though nobody uses them.
    pub slack: u64,
    /// Open connections.
    pub connections: u64,
}

/// What the detector makes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// The window is not full yet.
    #[default]
    InsufficientData,
    /// No growth worth a word.
    Stable,
    /// It grows, and something other than a leak explains that so far: traffic, a cache that fills
    /// up, or it has not gone on for long enough.
    Growing,
    /// It grows steadily, and nothing explains it.
    SuspectedLeak,
    /// Much of the memory, or of its growth, is free pages of the allocator.
    Fragmented,
}

impl Verdict {
    /// As `/health` says it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Verdict::InsufficientData => "insufficient_data",
            Verdict::Stable => "stable",
            Verdict::Growing => "growing",
            Verdict::SuspectedLeak => "suspected_leak",
            Verdict::Fragmented => "fragmented",
        }
    }
}

/// What is known of the memory's growth.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Growth {
    /// Bytes a second over the window; 0 until it is full, below 0 where memory shrinks.
    pub bytes_per_second: f64,
    /// What is made of it.
    pub verdict: Verdict,
}

/// The memory of this process as it is seen now, in bytes; `None` is what cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MemoryView {
    /// Resident set.
    pub resident: Option<u64>,
    /// What it may use.
    pub limit: Option<u64>,
    /// What the program has asked its allocator for.
    pub allocated: Option<u64>,
    /// Where it goes.
    pub growth: Growth,
}

/// Watches the memory of one process.
#[derive(Debug)]
pub struct MemoryWatch {
    schedule: Schedule,
    recent: VecDeque<Sample>,
    hour: VecDeque<Moment>,
    day: VecDeque<Moment>,
    lowest: Option<Moment>,
    hour_ends: Duration,
    next_evaluation: Duration,
    fast: Suspicion,
    slow: Suspicion,
    growth: Growth,
}

impl MemoryWatch {
    /// Nothing known yet.
    pub fn new(schedule: Schedule) -> Self {
        MemoryWatch {
            schedule,
            recent: VecDeque::with_capacity(MEDIAN_OF),
            hour: VecDeque::new(),
            day: VecDeque::new(),
            lowest: None,
            hour_ends: schedule.grace.saturating_add(schedule.window),
            next_evaluation: schedule.grace.saturating_add(schedule.window),
            fast: Suspicion::default(),
            slow: Suspicion::default(),
            growth: Growth::default(),
        }
    }

    /// What is known.
    pub fn growth(&self) -> Growth {
        self.growth
    }

    /// A sample, so long after the start. To be called once in each [`Schedule::sample`].
    pub fn observe(&mut self, at: Duration, sample: Sample) {
        push_bounded(&mut self.recent, sample, MEDIAN_OF);
        if at < self.schedule.grace {
            return;
        }
        let moment = self.moment(at);
        // A late sample makes the window longer by no more than that.
        let kept = self.schedule.window.as_secs_f64() / self.schedule.sample.as_secs_f64();
        push_bounded(&mut self.hour, moment, (kept.round() as usize).saturating_add(1));
        if self.lowest.is_none_or(|lowest| moment.used() < lowest.used()) {
            self.lowest = Some(moment);
        }
        if at >= self.hour_ends {
            self.hour_ends = at.saturating_add(self.schedule.window);
            self.end_hour();
        }
        if at >= self.next_evaluation {
            self.next_evaluation = at.saturating_add(self.schedule.evaluate);
            self.evaluate();
        }
    }

    fn moment(&self, at: Duration) -> Moment {
        let of = |get: fn(&Sample) -> u64| {
            let mut values: Vec<f64> = self.recent.iter().map(|it| get(it) as f64).collect();
            median(&mut values).unwrap_or(0.0)
        };
        Moment {
            at: at.as_secs_f64(),
            resident: of(|it| it.resident),
            slack: of(|it| it.slack),
            connections: of(|it| it.connections),
        }
    }

    fn evaluate(&mut self) {
        let Some(resident) = Trend::of(&points(&self.hour, |it| it.resident)) else { return };
        let rise = rise(&self.hour, &resident, LEAK_FAST);
        self.fast.note(rise);
        self.growth = Growth {
            bytes_per_second: resident.slope,
            verdict: if self.fast.is_there || self.slow.is_there {
                Verdict::SuspectedLeak
            } else {
                match rise {
                    Rise::Unexplained | Rise::Flattening | Rise::Traffic => Verdict::Growing,
                    Rise::Slack => Verdict::Fragmented,
                    Rise::None if self.has_much_slack() => Verdict::Fragmented,
                    Rise::None => Verdict::Stable,
                }
            },
        };
    }

    fn end_hour(&mut self) {
        let Some(lowest) = self.lowest.take() else { return };
        push_bounded(&mut self.day, lowest, SLOW_WINDOWS);
        if self.day.len() == SLOW_WINDOWS
            && let Some(resident) = Trend::of(&points(&self.day, |it| it.resident))
        {
            self.slow.note(rise(&self.day, &resident, LEAK_SLOW));
        }
    }

    fn has_much_slack(&self) -> bool {
        let present = || self.hour.iter().rev().take(PRESENT);
        let mut slack: Vec<f64> = present().map(|it| it.slack).collect();
        let mut resident: Vec<f64> = present().map(|it| it.resident).collect();
        match (median(&mut slack), median(&mut resident)) {
            (Some(slack), Some(resident)) => slack > SLACK_MIN.max(resident * SLACK_SHARE),
            _ => false,
        }
    }
}

/// A sample without the noise of the minute around it.
#[derive(Clone, Copy, Debug)]
struct Moment {
    at: f64,
    resident: f64,
    slack: f64,
    connections: f64,
}

impl Moment {
    fn used(&self) -> f64 {
        self.resident - self.slack
    }
}

/// What a series of moments shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rise {
    /// None, or too small a one.
    None,
    /// One that flattens out.
    Flattening,
    /// One of pages that nobody uses.
    Slack,
    /// One that connections explain.
    Traffic,
    /// One that nothing explains.
    Unexplained,
}

fn rise(moments: &VecDeque<Moment>, resident: &Trend, threshold: f64) -> Rise {
    let enough = GROWTH_MIN.max(resident.median * GROWTH_SHARE);
    if resident.slope <= threshold || resident.growth() <= enough || resident.tau <= TAU_MIN {
        return Rise::None;
    }
    let used = Trend::of(&points(moments, Moment::used));
    if used.is_none_or(|used| used.slope < resident.slope * USED_SHARE) {
        return Rise::Slack;
    }
    if is_traffic(moments, resident) {
        return Rise::Traffic;
    }
    let all = points(moments, |it| it.resident);
    let (first, second) = all.split_at(all.len() / 2);
    match (Trend::of(first), Trend::of(second)) {
        (Some(first), Some(second)) if second.slope > first.slope * FLATTENING => Rise::Unexplained,
        _ => Rise::Flattening,
    }
}

/// Whether there is no more memory for each connection than before, and more connections.
fn is_traffic(moments: &VecDeque<Moment>, resident: &Trend) -> bool {
    let connections = Trend::of(&points(moments, |it| it.connections));
    let each = Trend::of(&points(moments, |it| it.resident / it.connections.max(1.0)));
    let (Some(connections), Some(each)) = (connections, each) else { return false };
    connections.tau > TAU_MIN
        && resident.growth() <= connections.growth() * CONNECTION_MAX
        && each.growth() <= each.median * GROWTH_SHARE
}

/// Whether what was found was found often enough.
#[derive(Clone, Copy, Debug, Default)]
struct Suspicion {
    found: u32,
    not_found: u32,
    is_there: bool,
}

impl Suspicion {
    fn note(&mut self, rise: Rise) {
        if rise == Rise::Unexplained {
            (self.found, self.not_found) = (self.found.saturating_add(1), 0);
        } else {
            (self.found, self.not_found) = (0, self.not_found.saturating_add(1));
        }
        self.is_there = match (self.found, self.not_found) {
            (IN_A_ROW.., _) => true,
            (_, IN_A_ROW..) => false,
            _ => self.is_there,
        };
    }
}

fn points(moments: &VecDeque<Moment>, value: impl Fn(&Moment) -> f64) -> Vec<Point> {
    moments.iter().map(|moment| (moment.at, value(moment))).collect()
}

fn push_bounded<T>(queue: &mut VecDeque<T>, item: T, bound: usize) {
    while queue.len() >= bound.max(1) {
        queue.pop_front();
    }
    queue.push_back(item);
}

#[cfg(test)]
mod tests;
