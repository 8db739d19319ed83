//! What the limiter ought to say, by the law alone: every admitted request is kept for ever, and
//! every answer is counted anew from all of them. Slow, and simple enough to be believed.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::num::NonZeroU32;

use tollgate::limiter::check::Limits;
use tollgate::limiter::decision::{Decision, Verdict};
use tollgate::limiter::quota::{Bucket, LimitSet, Mode, Period};
use tollgate::limiter::time::Micros;

const SECOND: u64 = 1_000_000;
const MINUTE: u64 = 60 * SECOND;
const DAY: u64 = 24 * 60 * MINUTE;

/// Limits of one identity.
pub struct Oracle {
    scopes: Vec<Scope>,
    requests: usize,
}

/// What the oracle expects of one request.
pub struct Expected {
    allow: bool,
    statuses: Vec<Status>,
}

#[derive(Debug, PartialEq)]
struct Status {
    scope: u8,
    period: Period,
    remaining: u32,
    /// `None`: it can never pass.
    wait: Option<u64>,
    whole_at: u64,
}

#[derive(Clone)]
struct Scope {
    limits: Limits,
    /// The time of the last charge, by the clock as it was then.
    last: u64,
    /// How long this scope has lived: time that has really passed, steps back left out.
    lived: u128,
    admitted: Vec<Admitted>,
    /// Days, and months, that are counted, by number, and what was spent in each.
    days: Vec<(u64, u64)>,
    months: Vec<(u64, u64)>,
    /// Number, time and cost of the requests that were counted there.
    spent: Vec<(usize, u64, u32)>,
    /// Requests that hold a place.
    held: u32,
}

#[derive(Clone, Copy)]
struct Admitted {
    lived: u128,
    second: i128,
    minute: i128,
    cost: u32,
    /// Which request it was, by number, and what the clock said when it came.
    request: usize,
    came: u64,
    /// Refunded: no window counts it any more.
    is_refunded: bool,
    /// Millionths of tokens that a refund took off the debt.
    credit: u128,
}

impl Oracle {
    pub fn new(scopes: &[Limits]) -> Self {
        let scope = |limits: &Limits| Scope {
            limits: *limits,
            last: 0,
            lived: 0,
            admitted: Vec::new(),
            days: Vec::new(),
            months: Vec::new(),
            spent: Vec::new(),
            held: 0,
        };
        Oracle { scopes: scopes.iter().map(scope).collect(), requests: 0 }
    }

    pub fn check(&mut self, cost: u32, now: u64) -> Expected {
        let lived = |scope: &Scope| scope.clone().lived_until(now);
        let seen: Vec<Scope> = self.scopes.iter().map(lived).collect();
        let fits = |scope: &Scope| scope.waits(cost, now).iter().all(|wait| *wait == Some(0));
        let enforced = |scope: &&Scope| scope.limits.mode == Mode::Enforce;
        let allow = seen.iter().filter(enforced).all(fits);
        let mut statuses = Vec::new();
        for (index, (mut seen, scope)) in seen.into_iter().zip(&mut self.scopes).enumerate() {
            let waits = seen.waits(cost, now);
            let is_charged = allow && fits(&seen);
            if is_charged {
                seen.admit(cost, self.requests, now);
            }
            let mut found = seen.statuses(index as u8, now);
            for (status, wait) in found.iter_mut().zip(waits) {
                status.wait = wait;
                if seen.limits.mode == Mode::Shadow && wait != Some(0) {
                    status.remaining = 0;
                }
            }
            statuses.extend(found);
            // What is refused has not happened, but for the clock that stepped back.
            if is_charged || seen.last < scope.last {
                *scope = seen;
            }
        }
        self.requests += 1;
        Expected { allow, statuses }
    }

    /// Gives back the place of one request in scope `index`.
    pub fn release(&mut self, index: usize) {
        self.scopes[index].held = self.scopes[index].held.saturating_sub(1);
    }

    /// Takes request `number` back, counted from 0; for clocks that are never set back.
    pub fn refund(&mut self, number: usize) {
        for scope in &mut self.scopes {
            // By the calendar whatever the clock has done since.
            let spent = scope.spent.iter().position(|(request, ..)| *request == number);
            if let Some((_, came, cost)) = spent.map(|index| scope.spent.remove(index)) {
                for (is_day, counts) in [(true, &mut scope.days), (false, &mut scope.months)] {
                    let number = date(came, is_day).0;
                    for (_, spent) in counts.iter_mut().filter(|(it, _)| *it == number) {
                        *spent = spent.saturating_sub(u64::from(cost));
                    }
                }
            }
            let is_it = |it: &&mut Admitted| it.request == number && !it.is_refunded;
            let Some(charge) = scope.admitted.iter_mut().find(is_it) else { continue };
            // With nothing left of it, a scope has no time of its own either.
            let Some(elapsed) = scope.last.checked_sub(charge.came) else { continue };
            charge.is_refunded = true;
            let rate = scope.limits.set.second.map_or(0, |bucket| u128::from(bucket.rate.get()));
            let earned = u128::from(elapsed) * rate;
            let credit = tokens(charge.cost).saturating_sub(earned);
            let refund = Admitted { lived: scope.lived, cost: 0, credit, ..*charge };
            scope.admitted.push(refund);
        }
    }
}

impl Scope {
    fn lived_until(mut self, now: u64) -> Self {
        if now >= self.last {
            self.lived += u128::from(now - self.last);
        } else if self.last - now > SECOND {
            let moved = |length| i128::from(self.last / length) - i128::from(now / length);
            let (seconds, minutes) = (moved(SECOND), moved(MINUTE));
            for admitted in &mut self.admitted {
                admitted.second -= seconds;
                admitted.minute -= minutes;
            }
        } else if self.is_used() {
            return self;
        } else {
            // A refund has left nothing of it. What had left before does not come back because the
            // next reading is a moment older: it is a sub-bucket beyond the promise already.
            self.admitted.iter_mut().for_each(|it| it.is_refunded = true);
        }
        self.last = now;
        self
    }

    fn is_used(&self) -> bool {
        let in_debt = self.limits.set.second.is_some_and(|bucket| self.debt(bucket, 0) > 0);
        let windows = self.windows();
        let mut used =
            windows.iter().map(|(period, length, _)| self.used(*period, self.last / length));
        in_debt || used.any(|used| used > 0)
    }

    fn admit(&mut self, cost: u32, request: usize, came: u64) {
        self.admitted.push(Admitted {
            lived: self.lived,
            second: i128::from(self.last / SECOND),
            minute: i128::from(self.last / MINUTE),
            cost,
            request,
            came,
            is_refunded: false,
            credit: 0,
        });
        let set = self.limits.set;
        self.spent.push((request, came, cost));
        self.held += u32::from(set.concurrency.is_some());
        for (limit, is_day) in [(set.day, true), (set.month, false)] {
            if limit.is_none() {
                continue;
            }
            let counts = if is_day { &mut self.days } else { &mut self.months };
            let number = date(came, is_day).0;
            if !counts.iter().any(|(it, _)| *it == number) {
                counts.retain(|(_, spent)| *spent > 0);
                // Beside the present one the next is kept, else the latest of those before.
                counts.sort_unstable_by_key(|(it, _)| (*it <= number + 1, *it));
                if counts.len() == 2 {
                    counts.remove(0);
                }
                counts.push((number, 0));
            }
            let count = counts.iter_mut().find(|(it, _)| *it == number).unwrap();
            count.1 += u64::from(cost);
        }
    }

    /// What days and months are limited to, what they have seen, and when they end.
    fn quotas(&self, now: u64) -> Vec<(Period, u64, u64, u64)> {
        let set = self.limits.set;
        let quotas = [(Period::Day, set.day, &self.days), (Period::Month, set.month, &self.months)];
        let quota = |(period, limit, counts): (_, Option<NonZeroU32>, &Vec<(u64, u64)>)| {
            let number = date(now, period == Period::Day).0;
            let spent = |number| counts.iter().find(|(it, _)| *it == number).map_or(0, |it| it.1);
            // What a clock that was set back will meet again counts already.
            let (present, next) = (spent(number), spent(number + 1));
            let (mut at, mut end) = (now, now);
            for ahead in 0..4 {
                at = date(at, period == Period::Day).1;
                if spent(number + ahead) > 0 {
                    end = at;
                }
            }
            Some((period, u64::from(limit?.get()), present.max(next), end))
        };
        quotas.into_iter().filter_map(quota).collect()
    }

    fn windows(&self) -> Vec<(Period, u64, u32)> {
        let set = &self.limits.set;
        let minute = set.minute.map(|limit| (Period::Minute, SECOND, limit.get()));
        let hour = set.hour.map(|limit| (Period::Hour, MINUTE, limit.get()));
        minute.into_iter().chain(hour).collect()
    }

    /// One for each limit: how long from `now` until `cost` fits.
    fn waits(&self, cost: u32, now: u64) -> Vec<Option<u64>> {
        let behind = self.last.saturating_sub(now);
        let bucket = self.limits.set.second.map(|bucket| {
            let room = |debt: u128| debt + tokens(cost) <= tokens(bucket.burst.get());
            room(0).then(|| first(|wait| room(self.debt(bucket, wait))))
        });
        let windows = self.windows().into_iter().map(|(period, length, limit)| {
            let room = |at| self.used(period, at / length) + u64::from(cost) <= u64::from(limit);
            if room(self.last) {
                return Some(0);
            }
            let border = |ahead| (self.last / length + ahead) * length;
            (1..=61).map(border).find(|border| room(*border)).map(|border| border - self.last)
        });
        let waits = bucket.into_iter().chain(windows);
        let waits = waits.map(|wait| wait.map(|wait| if wait == 0 { 0 } else { wait + behind }));
        let quotas = self.quotas(now).into_iter().map(|(period, limit, ..)| {
            let fits = |at| {
                let (_, _, spent, _) =
                    self.quotas(at).into_iter().find(|it| it.0 == period).unwrap();
                spent + u64::from(cost) <= limit
            };
            let mut at = now;
            while u64::from(cost) <= limit && !fits(at) {
                at = date(at, period == Period::Day).1;
            }
            Some(at - now).filter(|_| u64::from(cost) <= limit)
        });
        let set = self.limits.set;
        let places =
            set.concurrency.map(|limit| Some(u64::from(self.held >= limit.get()) * SECOND));
        waits.chain(quotas).chain(places).collect()
    }

    fn statuses(&self, scope: u8, now: u64) -> Vec<Status> {
        let status = |period, remaining: u128, whole_at| {
            let remaining = u32::try_from(remaining).unwrap();
            Status { scope, period, remaining, wait: None, whole_at }
        };
        let bucket = self.limits.set.second.map(|bucket| {
            let left = tokens(bucket.burst.get()).saturating_sub(self.debt(bucket, 0));
            let whole_in = first(|wait| self.debt(bucket, wait) == 0);
            status(Period::Second, left / 1_000_000, self.last + whole_in)
        });
        let windows = self.windows().into_iter().map(|(period, length, limit)| {
            let left = u64::from(limit).saturating_sub(self.used(period, self.last / length));
            let borders = (1..=61).map(|ahead| (self.last / length + ahead) * length);
            let whole_at = std::iter::once(self.last)
                .chain(borders)
                .find(|at| self.used(period, at / length) == 0);
            status(period, u128::from(left), whole_at.unwrap())
        });
        let quotas = self.quotas(now).into_iter().map(|(period, limit, spent, end)| {
            let left = u128::from(limit.saturating_sub(spent));
            status(period, left, end)
        });
        let places = self.limits.set.concurrency.map(|limit| {
            let left = limit.get().saturating_sub(self.held);
            let later = now + SECOND;
            status(Period::Concurrency, left.into(), if self.held > 0 { later } else { now })
        });
        bucket.into_iter().chain(windows).chain(quotas).chain(places).collect()
    }

    /// What counts in sub-bucket `current`: it and the sixty before it.
    fn used(&self, period: Period, current: u64) -> u64 {
        let oldest = i128::from(current) - 60;
        let own =
            |it: &&Admitted| oldest <= if period == Period::Minute { it.second } else { it.minute };
        self.admitted
            .iter()
            .filter(|it| !it.is_refunded)
            .filter(own)
            .map(|it| u64::from(it.cost))
            .sum()
    }

    /// Millionths of tokens owed `wait` from now on: nothing but the definition of a bucket.
    fn debt(&self, bucket: Bucket, wait: u64) -> u128 {
        let rate = u128::from(bucket.rate.get());
        let (mut debt, mut since) = (0_u128, 0_u128);
        for admitted in &self.admitted {
            debt = debt.saturating_sub((admitted.lived - since) * rate) + tokens(admitted.cost);
            debt = debt.saturating_sub(admitted.credit);
            since = admitted.lived;
        }
        debt.saturating_sub((self.lived + u128::from(wait) - since) * rate)
    }
}

/// The smallest number for which `holds`, which then holds for all larger ones.
fn first(holds: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0_u64, 1 << 60);
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

/// The number of a day or month, and when it ends: counted from 1970 on, one after the other.
fn date(at: u64, is_day: bool) -> (u64, u64) {
    let day = at / DAY;
    if is_day {
        return (day, (day + 1) * DAY);
    }
    let lengths = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let (mut ends, mut number) = (0, 0);
    loop {
        let year = 1970 + number / 12;
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        ends += lengths[number as usize % 12] + u64::from(number % 12 == 1 && is_leap);
        if day < ends {
            return (number, ends * DAY);
        }
        number += 1;
    }
}

fn tokens(count: u32) -> u128 {
    u128::from(count) * 1_000_000
}

/// Fails unless the decision is the expected one, limit by limit.
pub fn assert_same(decision: &Decision, expected: &Expected) {
    assert_eq!(decision.verdict == Verdict::Allow, expected.allow, "{decision:?}");
    let found: Vec<Status> = decision
        .statuses()
        .iter()
        .map(|status| Status {
            scope: status.scope,
            period: status.period,
            remaining: status.remaining,
            wait: (status.wait < Micros::NEVER).then(|| status.wait.as_micros()),
            whole_at: status.whole_at.as_micros(),
        })
        .collect();
    assert_eq!(found, expected.statuses);
}

/// Fails if any stretch of time, wherever it is laid, holds more of `admitted` than was promised.
pub fn assert_promises(set: &LimitSet, admitted: &[(u64, u32)]) {
    let windows = [(set.minute, MINUTE), (set.hour, 60 * MINUTE)];
    for (limit, length) in windows {
        let Some(limit) = limit.map(NonZeroU32::get) else { continue };
        for (index, (end, _)) in admitted.iter().enumerate() {
            let inside = admitted[..=index].iter().filter(|(at, _)| at + length >= *end);
            let sum: u64 = inside.map(|(_, cost)| u64::from(*cost)).sum();
            assert!(sum <= u64::from(limit), "{sum} of {limit} in the {length} us before {end}");
        }
    }
    for (limit, is_day) in [(set.day, true), (set.month, false)] {
        let Some(limit) = limit.map(NonZeroU32::get) else { continue };
        let mut sums = std::collections::BTreeMap::<u64, u64>::new();
        for (at, cost) in admitted {
            *sums.entry(date(*at, is_day).0).or_default() += u64::from(*cost);
        }
        assert!(sums.values().all(|sum| *sum <= u64::from(limit)), "{sums:?} of {limit}");
    }
    let Some(bucket) = set.second else { return };
    for (index, (end, _)) in admitted.iter().enumerate() {
        let mut sum = 0;
        for (start, cost) in admitted[..=index].iter().rev() {
            sum += tokens(*cost);
            let paid = u128::from(end - start) * u128::from(bucket.rate.get());
            assert!(sum <= tokens(bucket.burst.get()) + paid, "{sum} in {start}..={end}");
        }
    }
}
