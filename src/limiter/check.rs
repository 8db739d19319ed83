//! Several limits of one request, all or nothing.

pub mod lease;

use std::num::NonZeroU32;

use smallvec::SmallVec;

use super::bucket;
use super::calendar::{self, Calendar, DAY};
use super::decision::{Decision, LimitStatus, SCOPES_USUAL, Verdict};
use super::quota::{LimitSet, Mode, Period};
use super::refund::Charge;
use super::share::Share;
use super::time::{Micros, Timestamp};
use super::window::{Aged, SUB_BUCKETS, Window};

/// What one identity has used of one scope.
///
/// An expired state and an untouched one mean the same, so absent is as good as default.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(super) last: Timestamp,
    pub(super) debt: u64,
    pub(super) minute: Window,
    pub(super) hour: Window,
    /// Nothing where no limit has needed it.
    rest: Option<Box<Rest>>,
}

/// What few scopes have a limit for.
#[derive(Clone, Debug, Default)]
struct Rest {
    calendar: Calendar,
    in_flight: u32,
}

/// How long a request that finds no place is told to wait: when one is free, nobody knows.
const PLACE_WAIT: Micros = Micros::SECOND;

/// How far behind a state's last use the clock may be and be taken to stand still.
///
/// Callers read the clock before they wait for the state's lock, so the later of two may bring the
/// earlier time. Were the windows moved back with each of them, then to and fro over the border of
/// a sub-bucket would age everything by one each time.
pub const STANDSTILL: Micros = Micros::SECOND;

/// The limits of one scope, and whether they refuse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The limits.
    pub set: LimitSet,
    /// Whether they refuse.
    pub mode: Mode,
}

/// The states of a request's scopes, by index: lets a store keep them where it likes.
pub trait States {
    /// The state of scope `index`.
    fn state(&mut self, index: usize) -> &mut State;

    /// The part of scope `index`'s bucket that is to be had here: all of it, but where others take
    /// from it unseen.
    fn share(&mut self, _index: usize) -> Share {
        Share::WHOLE
    }
}

/// Checks every limit of every scope and charges `cost` to all of them, or to none.
///
/// A scope in shadow mode never refuses: where it has no room it is not charged, and the others
/// are. A state that is not charged stays as it is, so that a denial changes no later answer,
/// whatever becomes of limits and clock until then; but it moves with a clock that steps back, for
/// else it would stay where it is until that clock has caught up.
pub fn check(states: &mut impl States, scopes: &[Limits], cost: u32, now: Timestamp) -> Decision {
    let (verdict, looks) = look(states, scopes, cost, now);
    let mut decision = Decision::new(verdict, now);
    for ((index, limits), look) in scopes.iter().enumerate().zip(&looks) {
        let share = states.share(index);
        let state = states.state(index);
        let mut present = look.present;
        if verdict == Verdict::Allow && look.waits.longest().is_zero() {
            state.settle(&present);
            state.spend(&limits.set, cost, share, now);
            present = state.as_left();
        } else if present.now < state.last {
            state.settle(&present);
        }
        state.report(limits, index, &Look { present, ..*look }, share, &mut decision);
    }
    decision
}

/// The state of every limit, with nothing charged: what `check` would say of a request of `cost`.
pub fn peek(states: &mut impl States, scopes: &[Limits], cost: u32, now: Timestamp) -> Decision {
    let (verdict, looks) = look(states, scopes, cost, now);
    let mut decision = Decision::new(verdict, now);
    for ((index, limits), look) in scopes.iter().enumerate().zip(&looks) {
        let share = states.share(index);
        states.state(index).report(limits, index, look, share, &mut decision);
    }
    decision
}

/// Looks at every scope, and says what comes of it.
fn look(
    states: &mut impl States,
    scopes: &[Limits],
    cost: u32,
    now: Timestamp,
) -> (Verdict, Looks) {
    let mut verdict = Verdict::Allow;
    let mut looks = Looks::new();
    for (index, limits) in scopes.iter().enumerate() {
        let share = states.share(index);
        let state = states.state(index);
        let present = state.present(&limits.set, now);
        let waits = state.waits(&limits.set, &present, cost, share, now);
        if limits.mode == Mode::Enforce && !waits.longest().is_zero() {
            verdict = Verdict::Deny;
        }
        looks.push(Look { present, waits });
    }
    (verdict, looks)
}

/// By index of the scope.
type Looks = SmallVec<[Look; SCOPES_USUAL]>;

/// What was found of one scope.
#[derive(Clone, Copy, Default)]
struct Look {
    present: Present,
    waits: Waits,
}

/// How a state stands at a later time; the state itself stays as it is.
#[derive(Clone, Copy, Default)]
pub(super) struct Present {
    /// The time, by the state's own clock.
    pub(super) now: Timestamp,
    /// What is left of the debt.
    pub(super) debt: u64,
    /// Sub-buckets by which the window of a minute is older.
    pub(super) minute: u64,
    /// The same for the hour's.
    pub(super) hour: u64,
}

/// How long a cost would have to wait, by period.
#[derive(Clone, Copy, Default)]
struct Waits {
    second: Micros,
    minute: Micros,
    hour: Micros,
    day: Micros,
    month: Micros,
    concurrency: Micros,
}

impl Waits {
    fn longest(&self) -> Micros {
        let sliding = self.second.max(self.minute).max(self.hour);
        sliding.max(self.day).max(self.month).max(self.concurrency)
    }
}

impl State {
    /// When everything here is whole again, if no more comes; never early. What the state's owner
    /// may forget it after. Windows that `set` has no limit for count as long as they hold
    /// anything.
    pub fn expires_at(&self, set: &LimitSet) -> Timestamp {
        let rest = self.rest.as_ref().map_or(self.last, |rest| {
            if rest.in_flight > 0 {
                // For whoever gives the place back.
                return Timestamp::from_micros(u64::MAX);
            }
            let is_over = rest.calendar.is_over(self.last);
            let period = if set.month.is_some() { Period::Month } else { Period::Day };
            // A day more, for a clock that is set back once the period is over.
            if is_over { self.last } else { calendar::end(period, self.last).plus(DAY) }
        });
        let bucket = set.second.map_or(Micros::ZERO, |it| bucket::until_whole(self.debt, it));
        let minute = self.minute.aged(0).whole_at(self.last, Period::Minute.sub_bucket());
        let hour = self.hour.aged(0).whole_at(self.last, Period::Hour.sub_bucket());
        self.last.plus(bucket).max(minute).max(hour).max(rest)
    }

    /// Gives back what memory the state needs no longer at `now`; changes no answer.
    pub fn trim(&mut self, now: Timestamp) {
        for (window, period) in [(&mut self.minute, Period::Minute), (&mut self.hour, Period::Hour)]
        {
            if steps(self.last, now, period) > u64::from(SUB_BUCKETS) {
                *window = Window::default();
            }
        }
        let is_over =
            |rest: &mut Box<Rest>| rest.in_flight == 0 && rest.calendar.is_over(now.minus(DAY));
        self.rest.take_if(is_over);
    }

    /// Gives back the place of a request that has ended.
    pub fn release(&mut self) {
        if let Some(rest) = &mut self.rest {
            rest.in_flight = rest.in_flight.saturating_sub(1);
        }
    }

    /// How the state stands at `now`: debt paid back, what has left its window not counted.
    ///
    /// A clock up to [`STANDSTILL`] behind stands still until it has caught up. One that stepped
    /// back further takes the windows with it and pays nothing: it neither resets nor locks out.
    pub(super) fn present(&self, set: &LimitSet, now: Timestamp) -> Present {
        let behind = self.last.since(now);
        // A state that holds nothing is like no state at all, and has no time of its own.
        let stands_still = behind <= STANDSTILL && !self.is_whole();
        let now = if stands_still { now.max(self.last) } else { now };
        let refilled = |bucket| bucket::refilled(self.debt, bucket, now.since(self.last));
        Present {
            now,
            // Without a rate nothing could ever pay it back.
            debt: set.second.map_or(0, refilled),
            minute: steps(self.last, now, Period::Minute),
            hour: steps(self.last, now, Period::Hour),
        }
    }

    /// Brings the state to the present.
    pub(super) fn settle(&mut self, present: &Present) {
        self.last = present.now;
        self.debt = present.debt;
        self.minute.advance(present.minute);
        self.hour.advance(present.hour);
    }

    /// How the state stands at the time that it was brought to.
    fn as_left(&self) -> Present {
        Present { now: self.last, debt: self.debt, minute: 0, hour: 0 }
    }

    pub(super) fn is_whole(&self) -> bool {
        self.debt == 0 && self.minute.is_empty() && self.hour.is_empty()
    }

    /// How long `cost` would have to wait from `now` on, whose [`Present`] this is.
    fn waits(
        &self,
        set: &LimitSet,
        present: &Present,
        cost: u32,
        share: Share,
        now: Timestamp,
    ) -> Waits {
        // What a standing clock has to catch up with before any time passes for the state.
        let behind = present.now.since(now);
        let from_now = |wait: Micros| match wait {
            Micros::ZERO | Micros::NEVER => wait,
            wait => Micros::from_micros(wait.as_micros().saturating_add(behind.as_micros())),
        };
        let units = share.units(cost);
        let bucket_wait = |bucket| from_now(bucket::wait_for(present.debt, bucket, units));
        let window_wait = |window: Aged<'_>, limit: NonZeroU32, period: Period| {
            if cost > limit.get() {
                return Micros::NEVER;
            }
            let wanted = u64::from(window.sum()).saturating_add(u64::from(cost));
            match wanted.saturating_sub(u64::from(limit.get())) {
                0 => Micros::ZERO,
                over => from_now(window.wait_for(over, present.now, period.sub_bucket())),
            }
        };
        let minute_wait =
            |limit| window_wait(self.minute.aged(present.minute), limit, Period::Minute);
        let hour_wait = |limit| window_wait(self.hour.aged(present.hour), limit, Period::Hour);
        Waits {
            second: set.second.map_or(Micros::ZERO, bucket_wait),
            minute: set.minute.map_or(Micros::ZERO, minute_wait),
            hour: set.hour.map_or(Micros::ZERO, hour_wait),
            day: set.day.map_or(Micros::ZERO, |it| self.quota_wait(it, Period::Day, cost, now)),
            month: set
                .month
                .map_or(Micros::ZERO, |it| self.quota_wait(it, Period::Month, cost, now)),
            concurrency: match set.concurrency {
                Some(limit) if self.in_flight() >= limit.get() => PLACE_WAIT,
                _ => Micros::ZERO,
            },
        }
    }

    fn quota_wait(&self, limit: NonZeroU32, period: Period, cost: u32, now: Timestamp) -> Micros {
        if cost > limit.get() {
            return Micros::NEVER;
        }
        // Neither is above 2^31. A clock that was ahead may have used up some of those to come.
        let has_room = |at| self.spent(period, at).saturating_add(cost) <= limit.get();
        let mut at = now;
        for _ in 0..calendar::AHEAD_MAX {
            if has_room(at) {
                break;
            }
            at = calendar::end(period, at);
        }
        at.since(now)
    }

    /// What counts against a quota at `now`.
    fn spent(&self, period: Period, now: Timestamp) -> u32 {
        self.rest.as_ref().map_or(0, |rest| rest.calendar.spent(period, now))
    }

    /// What is counted of days or months, by their numbers.
    pub(super) fn quota_counts(&self, period: Period) -> Vec<(u32, u32)> {
        let counts = |rest: &Rest| rest.calendar.counts(period).collect();
        self.rest.as_deref().map(counts).unwrap_or_default()
    }

    /// Counts something in a day or a month.
    pub(super) fn add_quota(&mut self, period: Period, number: u32, cost: u32) {
        self.rest.get_or_insert_default().calendar.add_at(period, number, cost);
    }

    /// What a window, a day or a month of `now` holds; no later than it has.
    pub(super) fn counted(&self, period: Period, now: Timestamp) -> u32 {
        let gone = steps(self.last, now, period);
        match period {
            Period::Minute => self.minute.aged(gone).sum(),
            Period::Hour => self.hour.aged(gone).sum(),
            Period::Day | Period::Month => self.spent(period, now),
            Period::Second | Period::Concurrency => 0,
        }
    }

    /// Forgets all that was spent. Whether requests still hold places here, which stay.
    pub fn forget(&mut self) -> bool {
        let in_flight = self.in_flight();
        let rest = (in_flight > 0).then(|| Box::new(Rest { in_flight, ..Rest::default() }));
        *self = State { rest, ..State::default() };
        in_flight > 0
    }

    /// Requests that hold a place.
    pub fn in_flight(&self) -> u32 {
        self.rest.as_ref().map_or(0, |rest| rest.in_flight)
    }

    pub(super) fn spend(&mut self, set: &LimitSet, cost: u32, share: Share, now: Timestamp) {
        if set.second.is_some() {
            self.debt = self.debt.saturating_add(share.units(cost));
        }
        if set.minute.is_some() {
            self.minute.add(cost);
        }
        if set.hour.is_some() {
            self.hour.add(cost);
        }
        if set.has_calendar() || set.concurrency.is_some() {
            let rest = self.rest.get_or_insert_default();
            for (limit, period) in [(set.day, Period::Day), (set.month, Period::Month)] {
                if limit.is_some() {
                    rest.calendar.add(period, now, cost);
                }
            }
            if set.concurrency.is_some() {
                rest.in_flight = rest.in_flight.saturating_add(1);
            }
        }
    }

    /// Takes a charge of `cost` out again; see [`super::refund::refund`] for what is left of it.
    pub(super) fn give_back(&mut self, set: &LimitSet, cost: u32, charge: &Charge) {
        if let Some(rest) = &mut self.rest {
            for (limit, period) in [(set.day, Period::Day), (set.month, Period::Month)] {
                if limit.is_some() {
                    rest.calendar.remove(period, charge.at, cost);
                }
            }
        }
        if self.last < charge.at {
            return;
        }
        if let Some(bucket) = set.second {
            let ahead = charge.ahead(bucket.rate);
            let earned = self.last.plus(ahead).since(charge.at);
            let credit = bucket::refilled(bucket::units(cost), bucket, earned);
            self.debt = self.debt.saturating_sub(credit);
        }
        let windows = [
            (set.minute, &mut self.minute, charge.minute, Period::Minute),
            (set.hour, &mut self.hour, charge.hour, Period::Hour),
        ];
        for (limit, window, counted, period) in windows {
            let current = self.last.as_micros() / period.sub_bucket().as_micros().max(1);
            if limit.is_some()
                && let Some(age) = current.checked_sub(counted)
            {
                window.remove(age, cost);
            }
        }
    }

    fn report(
        &self,
        limits: &Limits,
        scope: usize,
        look: &Look,
        share: Share,
        decision: &mut Decision,
    ) {
        let Look { present, waits } = look;
        // The calendar goes by the clock as it is, and not by the state's.
        let (now, asked_at) = (present.now, decision.now);
        let scope = u8::try_from(scope).unwrap_or(u8::MAX);
        let mode = limits.mode;
        let mut push = |period, quota, limit, remaining, wait: Micros, whole_at| {
            // A limit in shadow shows what its caller would have met: nothing left.
            let refuses_in_shadow = mode == Mode::Shadow && !wait.is_zero();
            let remaining = if refuses_in_shadow { 0 } else { remaining };
            let status =
                LimitStatus { scope, period, mode, quota, limit, remaining, wait, whole_at };
            decision.push(status);
        };
        if let Some(bucket) = limits.set.second {
            let whole_at = now.plus(bucket::until_whole(present.debt, bucket));
            let remaining = share.tokens(bucket::left(present.debt, bucket));
            let (rate, burst) = (bucket.rate.get(), bucket.burst.get());
            push(Period::Second, rate, burst, remaining, waits.second, whole_at);
        }
        let windows = [
            (Period::Minute, limits.set.minute, self.minute.aged(present.minute), waits.minute),
            (Period::Hour, limits.set.hour, self.hour.aged(present.hour), waits.hour),
        ];
        for (period, limit, window, wait) in windows {
            if let Some(limit) = limit.map(NonZeroU32::get) {
                let remaining = limit.saturating_sub(window.sum());
                let whole_at = window.whole_at(now, period.sub_bucket());
                push(period, limit, limit, remaining, wait, whole_at);
            }
        }
        let quotas = [
            (Period::Day, limits.set.day, waits.day),
            (Period::Month, limits.set.month, waits.month),
        ];
        for (period, limit, wait) in quotas {
            if let Some(limit) = limit.map(NonZeroU32::get) {
                let remaining = limit.saturating_sub(self.spent(period, asked_at));
                let whole_at = match &self.rest {
                    Some(rest) => rest.calendar.whole_at(period, asked_at),
                    None => asked_at,
                };
                push(period, limit, limit, remaining, wait, whole_at);
            }
        }
        if let Some(limit) = limits.set.concurrency.map(NonZeroU32::get) {
            let held = self.in_flight();
            let whole_at = if held > 0 { asked_at.plus(PLACE_WAIT) } else { asked_at };
            let left = limit.saturating_sub(held);
            push(Period::Concurrency, limit, limit, left, waits.concurrency, whole_at);
        }
    }
}

/// Sub-buckets between two times; none where the clock stepped back.
pub(super) fn steps(last: Timestamp, now: Timestamp, period: Period) -> u64 {
    let length = period.sub_bucket().as_micros().max(1);
    (now.as_micros() / length).saturating_sub(last.as_micros() / length)
}
