//! What one replica knows of what one identity has used: its own part, what all of them had used, and
//! what it let pass alone and the store has to be told of.
//!
//! What may be let pass alone is fixed here, and [`super::share`] holds requests to it.

use std::num::NonZeroU32;

use super::bucket;
use super::calendar::{DAY, number};
use super::check::{State, steps};
use super::decision::LimitStatus;
use super::quota::{Bucket, LimitSet, Period};
use super::refund;
use super::share::{Alone, Share};
use super::time::{Micros, Timestamp};
use super::window::SUB_BUCKETS;

/// Periods that are counted, the shortest first: windows, then days and months.
const COUNTED: [Period; 4] = [Period::Minute, Period::Hour, Period::Day, Period::Month];
/// Those that are windows.
const WINDOWS: usize = 2;
/// Those that are not.
const QUOTAS: [Period; 2] = [Period::Day, Period::Month];
/// Requests that each replica is taken to have had before any that were counted: a few say little
/// of how many there will be, and of those that are new to all each replica gets as much.
const PRIOR: u64 = 2;
/// By what part more the others are taken to have used since the last answer than they did before.
const GROWTH: (u128, u128) = (3, 2);
/// By how much charges are taken to be younger than they are: the store's clock is known to less.
const STRICT: Micros = Micros::from_micros(50_000);

/// What one replica knows of what one identity has used of one scope.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// Windows: what this replica let pass. Debt: of all replicas, as far as is known.
    state: State,
    /// What all had used of each period, when the state was last brought to the present.
    used: [u32; COUNTED.len()],
    /// Which of the windows are limited. That of a minute counts in any case, for the bucket.
    limited: [bool; WINDOWS],
    /// The bucket, if there is one.
    bucket: Option<Bucket>,
    /// While the replica is alone with it, and until all is charged that it then let pass.
    apart: Option<Box<Apart>>,
}

/// What was fixed when the replica was left alone, and what it has let pass since.
#[derive(Clone, Debug)]
struct Apart {
    /// Whether it is still alone: no answer has come since.
    is_alone: bool,
    share: Share,
    /// The most that the replica may hold in each period.
    caps: [u32; COUNTED.len()],
    /// What the store has not been told of: windows, and tokens in the bucket's units.
    uncharged: State,
    tokens: u64,
}

/// What one replica let pass and the store has to be told of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Debit {
    /// Tokens a second of the bucket; 0: none.
    pub rate: u32,
    /// For the bucket, in its units.
    pub tokens: u64,
    /// What the bucket's debt comes to at least, as far as this replica knows of the others.
    pub level: u64,
    /// For the windows of a minute and an hour: numbers of sub-buckets since the epoch, by the
    /// store's clock as this replica has it, and counts.
    pub windows: [Vec<(u64, u32)>; WINDOWS],
    /// For days and for months: their numbers since the epoch, two at most, and counts.
    pub quotas: [Vec<(u32, u32)>; 2],
}

impl Debit {
    /// The ages of the counts in sub-buckets at `now`, for windows of a minute and an hour; rather
    /// too young than too old, as sub-buckets may begin a little later elsewhere.
    pub fn ages(&self, now: Timestamp) -> [Vec<(u8, u32)>; WINDOWS] {
        let [minute, hour] = &self.windows;
        [(minute, Period::Minute), (hour, Period::Hour)].map(|(window, period)| {
            let length = period.sub_bucket().as_micros().max(1);
            let current = now.minus(STRICT).as_micros() / length;
            let aged =
                window.iter().map(|(number, count)| (current.saturating_sub(*number), count));
            let aged = aged.filter_map(|(age, count)| Some((u8::try_from(age).ok()?, *count)));
            aged.filter(|(age, _)| *age <= SUB_BUCKETS).collect()
        })
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        let is_counted = self.windows.iter().any(|it| !it.is_empty());
        self.tokens == 0 && !is_counted && !self.has_quotas()
    }

    /// Whether there is anything of days and months in it.
    pub fn has_quotas(&self) -> bool {
        self.quotas.iter().any(|it| !it.is_empty())
    }
}

/// Charges what a replica let pass alone, whatever room there is: what the store does with a debit.
pub fn charge(state: &mut State, set: &LimitSet, debit: &Debit, now: Timestamp) {
    let present = state.present(set, now);
    state.settle(&present);
    if set.second.is_some() {
        // The others tell of theirs a little earlier or later, and meanwhile the bucket fills at its
        // whole rate: what each adds for itself would not come to what all of them have taken.
        state.debt = state.debt.saturating_add(debit.tokens).max(debit.level);
    }
    let [minute, hour] = debit.ages(present.now);
    minute.iter().for_each(|(age, count)| state.minute.add_at((*age).into(), *count));
    hour.iter().for_each(|(age, count)| state.hour.add_at((*age).into(), *count));
    for (counts, period) in debit.quotas.iter().zip(QUOTAS) {
        counts.iter().for_each(|(number, count)| state.add_quota(period, *number, *count));
    }
}

impl Own {
    /// Notes what the store decided, at `now` by its clock: these are the states of one scope's
    /// limits, and `is_charged` whether the cost was charged to it.
    pub fn note<'s>(
        &mut self,
        set: &LimitSet,
        statuses: impl Iterator<Item = &'s LimitStatus>,
        charged: Option<u32>,
        now: Timestamp,
    ) {
        let present = self.state.present(set, now);
        self.state.settle(&present);
        if let Some(cost) = charged {
            self.state.spend(&windows_of(set), cost, Share::WHOLE, now);
            self.count_for_bucket(set, cost);
        }
        self.limited = [set.minute.is_some(), set.hour.is_some()];
        self.bucket = set.second;
        for status in statuses {
            let used = status.limit.saturating_sub(status.remaining);
            if status.period == Period::Second {
                self.state.debt = bucket::units(used);
            }
            for (place, period) in self.used.iter_mut().zip(COUNTED) {
                if period == status.period {
                    *place = used;
                }
            }
        }
        self.note_answer();
    }

    /// The store has answered: what was fixed for the time without it holds no longer.
    fn note_answer(&mut self) {
        if let Some(apart) = &mut self.apart {
            apart.is_alone = false;
            if !self.has_debit(false) {
                self.apart = None;
            }
        }
    }

    /// When nothing of it means anything any more.
    pub fn expires_at(&self, set: &LimitSet) -> Timestamp {
        self.state.expires_at(set)
    }

    /// Gives back what memory is needed no longer at `now`.
    pub fn trim(&mut self, now: Timestamp) {
        self.state.trim(now);
    }

    /// Whether there is anything to tell the store of. With `all`, for a store that has lost what
    /// it was told: of all that this replica let pass.
    pub fn has_debit(&self, all: bool) -> bool {
        let has_quotas =
            |state: &State| QUOTAS.iter().any(|period| !state.quota_counts(*period).is_empty());
        let is_due = |apart: &Apart| {
            apart.tokens > 0 || !apart.uncharged.is_whole() || has_quotas(&apart.uncharged)
        };
        self.apart.as_deref().is_some_and(is_due)
            || (all && (!self.state.is_whole() || has_quotas(&self.state)))
    }

    /// Takes out what the store is to be told of, at `now`.
    pub fn take_debit(&mut self, now: Timestamp, all: bool) -> Debit {
        let rate = self.bucket.map_or(0, |bucket| bucket.rate.get());
        let burst = self.bucket.map_or(0, |bucket| bucket::units(bucket.burst.get()));
        let of_all = debt_at(&self.state, rate, now);
        // The last token taken here stood for many of others, who may have taken none.
        let stood_for = self
            .apart
            .as_ref()
            .map_or(0, |apart| apart.share.units(1).saturating_sub(bucket::UNITS_PER_TOKEN));
        let level = of_all.saturating_sub(stood_for).min(burst);
        let mut debit = Debit { rate, ..Debit::default() };
        if let Some(apart) = &mut self.apart {
            let uncharged = std::mem::take(&mut apart.uncharged);
            // The others tell of theirs: of the whole debt only this share is ours.
            debit.tokens = std::mem::take(&mut apart.tokens).min(apart.share.of_units(of_all));
            debit.windows = entries(&uncharged, now);
            debit.quotas = QUOTAS.map(|period| uncharged.quota_counts(period));
            debit.level = level;
        }
        if all {
            debit.level = level;
            debit.windows = entries(&self.state, now);
            debit.quotas = QUOTAS.map(|period| self.state.quota_counts(period));
            for (window, is_limited) in debit.windows.iter_mut().zip(self.limited) {
                if !is_limited {
                    window.clear();
                }
            }
        }
        debit
    }

    /// Puts back what the store was not told of after all.
    pub fn put_back(&mut self, debit: &Debit, now: Timestamp) {
        let apart = self.apart.get_or_insert_with(|| Box::new(Apart::answered()));
        let present = apart.uncharged.present(&LimitSet::default(), now);
        apart.uncharged.settle(&present);
        apart.tokens = apart.tokens.saturating_add(debit.tokens);
        for (counts, period) in debit.quotas.iter().zip(QUOTAS) {
            for (number, count) in counts {
                apart.uncharged.add_quota(period, *number, *count);
            }
        }
        let [minute, hour] = &debit.windows;
        let State { minute: of_minute, hour: of_hour, last, .. } = &mut apart.uncharged;
        for (window, entries, period) in
            [(of_minute, minute, Period::Minute), (of_hour, hour, Period::Hour)]
        {
            let current = last.as_micros() / period.sub_bucket().as_micros().max(1);
            for (number, count) in entries {
                window.add_at(current.saturating_sub(*number), *count);
            }
        }
    }

    /// Takes back out what the store turned out to have charged itself.
    pub fn forgive(&mut self, set: &LimitSet, cost: u32, charge: &refund::Charge) {
        if let Some(apart) = &mut self.apart {
            apart.uncharged.give_back(&windows_of(set), cost, charge);
            apart.tokens = apart.tokens.saturating_sub(bucket::units(cost));
        }
    }

    /// A charge that the store has taken back, or that this replica has.
    pub fn give_back(&mut self, set: &LimitSet, cost: u32, charge: &refund::Charge) {
        self.state.give_back(&windows_of(set), cost, charge);
    }

    /// What was let pass alone, whose charge [`check::check`] has put into the state.
    pub(super) fn note_alone(&mut self, set: &LimitSet, cost: u32, now: Timestamp) {
        let last = self.state.last.max(now);
        self.count_for_bucket(set, cost);
        self.limited = [set.minute.is_some(), set.hour.is_some()];
        self.bucket = set.second;
        if let Some(apart) = &mut self.apart {
            let present = apart.uncharged.present(&LimitSet::default(), last);
            apart.uncharged.settle(&present);
            apart.uncharged.spend(&windows_of(set), cost, Share::WHOLE, last);
            if set.second.is_some() {
                apart.tokens = apart.tokens.saturating_add(bucket::units(cost));
            }
        }
    }

    pub(super) fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    /// The share that was fixed.
    pub(super) fn share_alone(&self) -> Share {
        self.apart.as_ref().map_or(Share::WHOLE, |apart| apart.share)
    }

    /// Without a limit by the minute nothing else says what part of the bucket is this replica's.
    fn count_for_bucket(&mut self, set: &LimitSet, cost: u32) {
        if set.second.is_some() && set.minute.is_none() {
            self.state.minute.add(cost);
        }
    }

    pub(super) fn cap(&self, period: Period) -> Option<u32> {
        let caps = &self.apart.as_ref()?.caps;
        let place = COUNTED.iter().position(|it| *it == period)?;
        caps.get(place).copied()
    }

    /// Fixes what this replica may let pass alone, unless it is alone already.
    pub(super) fn leave_alone(
        &mut self,
        set: &LimitSet,
        alone: Alone,
    ) -> (Share, [u32; COUNTED.len()]) {
        let is_alone = self.apart.as_ref().is_some_and(|apart| apart.is_alone);
        let fixed = (!is_alone).then(|| self.fix(set, alone));
        let apart = self.apart.get_or_insert_with(|| Box::new(Apart::answered()));
        if let Some((share, caps)) = fixed {
            (apart.share, apart.caps, apart.is_alone) = (share, caps, true);
        }
        (apart.share, apart.caps)
    }

    /// The share, and the most that may be held in each window.
    fn fix(&mut self, set: &LimitSet, alone: Alone) -> (Share, [u32; COUNTED.len()]) {
        let since = self.state.last.max(alone.since);
        let share = self.share(set, alone, since);
        let caps = windows(set).map(|(period, limit)| {
            let limit = limit.map_or(0, NonZeroU32::get);
            let held = self.state.counted(period, since);
            let used = u32::try_from(self.used_by(since, period)).unwrap_or(u32::MAX);
            held.saturating_add(share.of(limit.saturating_sub(used))).min(limit)
        });
        self.turn_to(set, since);
        (share, caps)
    }

    /// Brings the state to the time at which the replica was left alone.
    fn turn_to(&mut self, set: &LimitSet, since: Timestamp) {
        let (debt, unheard) = (self.state.debt, since.since(self.state.last));
        let present = self.state.present(set, since);
        self.state.settle(&present);
        if let Some(of_second) = set.second {
            // What came back in the time that the bucket takes to fill, others may have taken.
            let filled = bucket::until_whole(bucket::units(of_second.burst.get()), of_second);
            let idle = unheard.as_micros().saturating_sub(filled.as_micros());
            self.state.debt = bucket::refilled(debt, of_second, Micros::from_micros(idle));
        }
    }

    /// This replica's part of what is left.
    fn share(&self, set: &LimitSet, alone: Alone, since: Timestamp) -> Share {
        let replicas = u64::from(alone.replicas);
        if replicas <= 1 {
            return Share::WHOLE;
        }
        let unheard = since.since(self.state.last);
        let prior = PRIOR.saturating_mul(replicas);
        let of = |own: u64, used: u64| {
            Share::new(own.saturating_add(PRIOR), used.max(own).saturating_add(prior))
        };
        for (period, limit) in windows(set) {
            let own = u64::from(self.state.counted(period, self.state.last));
            let used = self.used_by(since, period);
            if limit.is_some() && used > 0 {
                return of(own, used);
            }
        }
        let even = Share::new(1, replicas);
        let own = u64::from(self.state.counted(Period::Minute, self.state.last));
        match set.second {
            Some(of_second) if own > 0 && unheard <= Micros::MINUTE => {
                // All together took no more than what came back and a burst, and no less while
                // there was next to nothing left.
                let spread = self.spread(Period::Minute);
                let came = spread.as_micros().saturating_mul(of_second.rate.get().into());
                // What the burst held when the count began is among it only while the count is new.
                let burst = if spread < Micros::MINUTE { self.state.debt } else { came / 64 };
                let most = came.saturating_add(burst).div_ceil(bucket::UNITS_PER_TOKEN);
                let taken = of(own, most);
                let is_spent = self.state.debt >= bucket::units(of_second.burst.get()) / 2;
                if is_spent { taken } else { taken.larger(even) }
            }
            _ => even,
        }
    }

    /// What all have used of a window: what the store knew at its last answer, what it was not told
    /// of yet, and what the others have used until `since`, if they went on as they did.
    fn used_by(&self, since: Timestamp, period: Period) -> u64 {
        let answered = self.state.last;
        let unheard = since.since(answered);
        let known = COUNTED.iter().zip(self.used).find(|(it, _)| **it == period);
        let known = u64::from(known.map_or(0, |(_, used)| used));
        if is_over(period, answered, since) {
            return 0;
        }
        let uncharged =
            self.apart.as_ref().map_or(0, |apart| apart.uncharged.counted(period, answered));
        let own = u64::from(self.state.counted(period, answered));
        let others = u128::from(known.saturating_sub(own));
        let spread = u128::from(self.spread(period).as_micros()).max(1);
        let more = others.saturating_mul(unheard.as_micros().into()).saturating_mul(GROWTH.0);
        let more = more.div_ceil(spread.saturating_mul(GROWTH.1));
        let more = u64::try_from(more).unwrap_or(u64::MAX);
        known.saturating_add(uncharged.into()).saturating_add(more)
    }

    /// Over what time that which is counted was let pass here.
    fn spread(&self, period: Period) -> Micros {
        let last = self.state.last.as_micros();
        let window = match period {
            Period::Minute => &self.state.minute,
            Period::Hour => &self.state.hour,
            // Since the day began, or a part of the month that is no longer than it.
            _ => return Micros::from_micros(last.checked_rem(DAY.as_micros()).unwrap_or(0).max(1)),
        };
        let oldest = window.entries().map(|(age, _)| u64::from(age)).max();
        let sub_bucket = period.sub_bucket().as_micros();
        let of_newest = last.checked_rem(sub_bucket).unwrap_or_default();
        let older = oldest.unwrap_or_default().saturating_mul(sub_bucket);
        Micros::from_micros(older.saturating_add(of_newest).max(1))
    }
}

impl Apart {
    /// Nothing to charge, and not alone.
    fn answered() -> Self {
        Apart {
            is_alone: false,
            share: Share::WHOLE,
            caps: [0; COUNTED.len()],
            uncharged: State::default(),
            tokens: 0,
        }
    }
}

/// What a state's windows still hold at `now`, by numbers of sub-buckets.
fn entries(state: &State, now: Timestamp) -> [Vec<(u64, u32)>; WINDOWS] {
    [(&state.minute, Period::Minute), (&state.hour, Period::Hour)].map(|(window, period)| {
        let last = state.last.as_micros() / period.sub_bucket().as_micros().max(1);
        let gone = steps(state.last, now, period);
        let is_in = |age: u64| age.saturating_add(gone) <= SUB_BUCKETS.into();
        let entries = window.entries().map(|(age, count)| (u64::from(age), count));
        let kept = entries.filter(|(age, _)| is_in(*age));
        kept.map(|(age, count)| (last.saturating_sub(age), count)).collect()
    })
}

fn debt_at(state: &State, rate: u32, now: Timestamp) -> u64 {
    let earned = now.since(state.last).as_micros().saturating_mul(rate.into());
    state.debt.saturating_sub(earned)
}

fn windows(set: &LimitSet) -> [(Period, Option<NonZeroU32>); COUNTED.len()] {
    let [minute, hour, day, month] = COUNTED;
    [(minute, set.minute), (hour, set.hour), (day, set.day), (month, set.month)]
}

pub(super) fn windows_mut(
    set: &mut LimitSet,
) -> [(Period, &mut Option<NonZeroU32>); COUNTED.len()] {
    let [minute, hour, day, month] = COUNTED;
    [(minute, &mut set.minute), (hour, &mut set.hour), (day, &mut set.day), (month, &mut set.month)]
}

/// What is counted, and nothing else.
pub(super) fn windows_of(set: &LimitSet) -> LimitSet {
    LimitSet { second: None, concurrency: None, ..*set }
}

/// Whether nothing that was counted at `answered` counts any more at `since`.
fn is_over(period: Period, answered: Timestamp, since: Timestamp) -> bool {
    match period {
        Period::Day | Period::Month => number(period, answered) != number(period, since),
        Period::Hour => since.since(answered) > Micros::from_micros(3_600_000_000),
        Period::Second | Period::Minute | Period::Concurrency => {
            since.since(answered) > Micros::MINUTE
        }
    }
}
