//! Several limits of one request, all or nothing.

use super::bucket;
use super::decision::{Decision, LimitStatus, Verdict};
use super::quota::{LimitSet, Mode, Period};
use super::time::{Micros, Timestamp};
use super::window::Window;

/// What one identity has used of one scope.
///
/// An expired state and an untouched one mean the same, so absent is as good as default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    last: Timestamp,
    debt: u64,
    minute: Window,
    hour: Window,
}

/// The limits of one scope, and whether they refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

/// Checks every limit of every scope and charges `cost` to all of them, or to none.
///
/// A scope in shadow mode never refuses: where it has no room it is not charged, and the others
/// are. A denial changes no later answer.
pub fn check(states: &mut impl States, scopes: &[Limits], cost: u32, now: Timestamp) -> Decision {
    let mut waits = [Waits::default(); super::decision::SCOPES_MAX];
    let mut verdict = Verdict::Allow;
    for ((index, limits), waits) in scopes.iter().enumerate().zip(&mut waits) {
        let state = states.state(index);
        state.advance(&limits.set, now);
        *waits = state.waits(&limits.set, cost, now);
        if limits.mode == Mode::Enforce && !waits.longest().is_zero() {
            verdict = Verdict::Deny;
        }
    }
    let mut decision = Decision::new(verdict, now);
    for ((index, limits), waits) in scopes.iter().enumerate().zip(&waits) {
        let state = states.state(index);
        if verdict == Verdict::Allow && waits.longest().is_zero() {
            state.spend(&limits.set, cost);
        }
        state.report(limits, index, waits, &mut decision);
    }
    decision
}

/// The state of every limit, with nothing charged: what `check` would say of a request of `cost`.
pub fn peek(states: &mut impl States, scopes: &[Limits], cost: u32, now: Timestamp) -> Decision {
    let mut decision = Decision::new(Verdict::Allow, now);
    for (index, limits) in scopes.iter().enumerate() {
        let state = states.state(index);
        state.advance(&limits.set, now);
        let waits = state.waits(&limits.set, cost, now);
        if limits.mode == Mode::Enforce && !waits.longest().is_zero() {
            decision.verdict = Verdict::Deny;
        }
        state.report(limits, index, &waits, &mut decision);
    }
    decision
}

/// How long a cost would have to wait, by period.
#[derive(Clone, Copy, Default)]
struct Waits {
    second: Micros,
    minute: Micros,
    hour: Micros,
}

impl Waits {
    fn longest(&self) -> Micros {
        self.second.max(self.minute).max(self.hour)
    }
}

impl State {
    /// When everything here is whole again, if no more comes; never early. What the state's owner
    /// may forget it after. Limits that are not in `set` count with their whole period.
    pub fn expires_at(&self, set: &LimitSet) -> Timestamp {
        let bucket = set.second.map_or(Micros::ZERO, |it| bucket::until_whole(self.debt, it));
        let minute = self.minute.whole_at(self.last, Period::Minute.sub_bucket());
        let hour = self.hour.whole_at(self.last, Period::Hour.sub_bucket());
        self.last.plus(bucket).max(minute).max(hour)
    }

    /// Brings the state to `now`: pays debt back, drops what has left its window. A clock that
    /// stepped back takes the windows with it and pays nothing.
    fn advance(&mut self, set: &LimitSet, now: Timestamp) {
        if let Some(bucket) = set.second {
            self.debt = bucket::refilled(self.debt, bucket, now.since(self.last));
        }
        self.minute.advance(steps(self.last, now, Period::Minute));
        self.hour.advance(steps(self.last, now, Period::Hour));
        self.last = now;
    }

    fn waits(&self, set: &LimitSet, cost: u32, now: Timestamp) -> Waits {
        let window_wait = |window: &Window, limit: u32, period: Period| {
            if cost > limit {
                return Micros::NEVER;
            }
            // sum <= limit + what a lowered limit left over: both far below u32::MAX.
            let over = window.sum().saturating_add(cost).saturating_sub(limit);
            if over == 0 { Micros::ZERO } else { window.wait_for(over, now, period.sub_bucket()) }
        };
        Waits {
            second: set.second.map_or(Micros::ZERO, |it| bucket::wait(self.debt, it, cost)),
            minute: set
                .minute
                .map_or(Micros::ZERO, |it| window_wait(&self.minute, it.get(), Period::Minute)),
            hour: set
                .hour
                .map_or(Micros::ZERO, |it| window_wait(&self.hour, it.get(), Period::Hour)),
        }
    }

    fn spend(&mut self, set: &LimitSet, cost: u32) {
        if set.second.is_some() {
            self.debt = self.debt.saturating_add(bucket::units(cost));
        }
        if set.minute.is_some() {
            self.minute.add(cost);
        }
        if set.hour.is_some() {
            self.hour.add(cost);
        }
    }

    fn report(&self, limits: &Limits, scope: usize, waits: &Waits, decision: &mut Decision) {
        let now = self.last;
        let mut push = |period, quota, limit, remaining, wait: Micros, whole_at| {
            let blocked_in_shadow = limits.mode == Mode::Shadow && !waits.longest().is_zero();
            decision.push(LimitStatus {
                scope: u8::try_from(scope).unwrap_or(u8::MAX),
                period,
                mode: limits.mode,
                quota,
                limit,
                remaining: if blocked_in_shadow && !wait.is_zero() { 0 } else { remaining },
                wait,
                whole_at,
            });
        };
        if let Some(bucket) = limits.set.second {
            let whole_at = now.plus(bucket::until_whole(self.debt, bucket));
            let remaining = bucket::remaining(self.debt, bucket);
            let (rate, burst) = (bucket.rate.get(), bucket.burst.get());
            push(Period::Second, rate, burst, remaining, waits.second, whole_at);
        }
        let windows = [
            (Period::Minute, limits.set.minute, &self.minute, waits.minute),
            (Period::Hour, limits.set.hour, &self.hour, waits.hour),
        ];
        for (period, limit, window, wait) in windows {
            if let Some(limit) = limit.map(std::num::NonZeroU32::get) {
                let remaining = limit.saturating_sub(window.sum());
                let whole_at = window.whole_at(now, period.sub_bucket());
                push(period, limit, limit, remaining, wait, whole_at);
            }
        }
    }
}

/// Sub-buckets between two times; none where the clock stepped back.
fn steps(last: Timestamp, now: Timestamp, period: Period) -> u64 {
    let length = period.sub_bucket().as_micros().max(1);
    (now.as_micros() / length).saturating_sub(last.as_micros() / length)
}
