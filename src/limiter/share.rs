//! What one of several replicas may let pass while the store that they share does not answer.
//!
//! While it answers, a replica notes of every identity what it let pass itself and what all of them
//! together had used, as the last answer said. From these two it takes its share of what is left, at
//! the first decision that it has to make alone; [`super::check`] then decides as ever, by limits
//! that are that much smaller. The shares of all replicas come to the whole and no more, as far as
//! their last answers were of one time, and so does what they admit: in no window that touches the
//! outage is there more than the limit.
//!
//! * **Window.** A replica may hold what it held, and its share of what nobody had used.
//! * **Bucket.** The debt is the whole's, and goes on from what the last answer said. The others do
//!   as this one does, in proportion: each token that is taken here stands for one divided by the
//!   share.

use std::num::NonZeroU32;

use smallvec::SmallVec;

use super::bucket;
use super::check::{self, Limits, State, States, steps};
use super::decision::{Decision, LimitStatus, SCOPES_USUAL, Verdict};
use super::quota::{Bucket, LimitSet, Mode, Period};
use super::refund::{self, Grant};
use super::time::{Micros, Timestamp};
use super::window::{SUB_BUCKETS, Window};

/// Periods whose windows are counted.
const WINDOWS: [Period; 2] = [Period::Minute, Period::Hour];
/// Requests that each replica is taken to have had before any that were counted: a few say little
/// of how many there will be, and of those that are new to all each replica gets as much.
const PRIOR: u64 = 2;
/// By what part more the others are taken to have used since the last answer than they did before.
const GROWTH: (u128, u128) = (3, 2);
/// What is told to wait for who would have had room, but not in this replica's share: until when
/// nobody knows.
const RETRY: Micros = Micros::SECOND;
/// By how much charges are taken to be younger than they are: the store's clock is known to less.
const STRICT: Micros = Micros::from_micros(50_000);

/// A part of the whole, at most all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    part: u32,
    whole: u32,
}

impl Share {
    /// All of it.
    pub const WHOLE: Share = Share { part: 1, whole: 1 };

    /// `part` of `whole`; no more than all.
    pub fn new(part: u64, whole: u64) -> Self {
        let (mut part, mut whole) = (part.min(whole), whole.max(1));
        while whole > u64::from(u32::MAX) {
            (part, whole) = (part >> 1, (whole >> 1).saturating_add(1));
        }
        let narrow = |number| u32::try_from(number).unwrap_or(u32::MAX);
        Share { part: narrow(part), whole: narrow(whole) }
    }

    /// What is added to the debt of all for `cost` tokens of this part, in the bucket's units;
    /// rounded up.
    pub fn units(self, cost: u32) -> u64 {
        if self.part == self.whole {
            return bucket::units(cost);
        }
        let wanted = u128::from(bucket::units(cost)).saturating_mul(self.whole.into());
        // Of nothing there is never enough; half of what is a number, for sums.
        let wanted = wanted.div_ceil(u128::from(self.part).max(1));
        if self.part == 0 && cost > 0 {
            return u64::MAX / 2;
        }
        u64::try_from(wanted).unwrap_or(u64::MAX / 2).min(u64::MAX / 2)
    }

    /// Whole tokens of this part in so many units of the whole.
    pub fn tokens(self, units: u64) -> u32 {
        if self.part == self.whole {
            return u32::try_from(units / bucket::UNITS_PER_TOKEN).unwrap_or(u32::MAX);
        }
        let ours = u128::from(units).saturating_mul(self.part.into()) / u128::from(self.whole);
        let tokens = ours / u128::from(bucket::UNITS_PER_TOKEN);
        u32::try_from(tokens).unwrap_or(u32::MAX)
    }

    /// The larger of two.
    fn larger(self, other: Share) -> Share {
        let ours = u64::from(self.part).saturating_mul(other.whole.into());
        let theirs = u64::from(other.part).saturating_mul(self.whole.into());
        if ours >= theirs { self } else { other }
    }

    /// The bucket of which this part is taken, by one of so many replicas. One token of the burst
    /// is each replica's own, so that a small part of it is not nothing, and only the rest is shared.
    fn bucket(self, bucket: Bucket, replicas: u32) -> Bucket {
        if self.part == self.whole {
            return bucket;
        }
        let one = self.whole.div_ceil(self.part.max(1));
        let burst = bucket.burst.get().saturating_add(one);
        let burst = burst.saturating_sub(replicas.saturating_add(1));
        Bucket { burst: NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN), ..bucket }
    }

    /// This part of `units`, rounded up.
    fn of_units(self, units: u64) -> u64 {
        let ours = u128::from(units).saturating_mul(self.part.into());
        u64::try_from(ours.div_ceil(u128::from(self.whole))).unwrap_or(u64::MAX)
    }

    /// This part of `count`, rounded down.
    fn of(self, count: u32) -> u32 {
        let ours = u64::from(count).saturating_mul(self.part.into()) / u64::from(self.whole);
        u32::try_from(ours).unwrap_or(u32::MAX)
    }
}

/// What a replica knows of itself and the others when it has to decide alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alone {
    /// Replicas, this one among them.
    pub replicas: u32,
    /// When the store last answered anything at all, by its clock. Until then the others could take
    /// what was left; from then on they are alone as well.
    pub since: Timestamp,
    /// Since when this replica has been there: what was used before is nobody's.
    pub started: Timestamp,
}

/// What one replica knows of what one identity has used of one scope.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// Windows: what this replica let pass. Debt: of all replicas, as far as is known.
    state: State,
    /// What all had used of each window, when the state was last brought to the present.
    used: [u32; WINDOWS.len()],
    /// Which of the windows are limited. That of a minute counts in any case, for the bucket.
    limited: [bool; WINDOWS.len()],
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
    /// The most that the replica may hold in each window.
    caps: [u32; WINDOWS.len()],
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
    pub windows: [Vec<(u64, u32)>; WINDOWS.len()],
}

impl Debit {
    /// The ages of the counts in sub-buckets at `now`, for windows of a minute and an hour; rather
    /// too young than too old, as sub-buckets may begin a little later elsewhere.
    pub fn ages(&self, now: Timestamp) -> [Vec<(u8, u32)>; WINDOWS.len()] {
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
        self.tokens == 0 && self.windows.iter().all(Vec::is_empty)
    }
}

/// Of a request's scopes, by index: lets a store keep them where it likes.
pub trait Owns {
    /// What is known of scope `index`.
    fn own(&mut self, index: usize) -> &mut Own;
}

/// Checks and charges this replica's share of every limit of every scope, or of none.
///
/// As [`check::check`] does; the answer speaks of the limits as they are, and of what is left of
/// them here.
pub fn check(
    owns: &mut impl Owns,
    scopes: &[Limits],
    cost: u32,
    now: Timestamp,
    alone: Alone,
) -> Decision {
    let (reduced, fits) = reduced(owns, scopes, cost, alone);
    let mut decision = if fits {
        check::check(&mut Parts(owns), &reduced, cost, now)
    } else {
        let mut decision = check::peek(&mut Parts(owns), &reduced, cost, now);
        decision.verdict = Verdict::Deny;
        decision
    };
    if decision.verdict == Verdict::Allow {
        for (index, limits) in scopes.iter().enumerate() {
            if decision.is_charged(index) {
                owns.own(index).note_alone(&limits.set, cost, now);
            }
        }
    }
    restate(owns, scopes, cost, &mut decision);
    decision
}

/// The state of every limit as this replica may use it, with nothing charged.
pub fn peek(
    owns: &mut impl Owns,
    scopes: &[Limits],
    cost: u32,
    now: Timestamp,
    alone: Alone,
) -> Decision {
    let (reduced, fits) = reduced(owns, scopes, cost, alone);
    let mut decision = check::peek(&mut Parts(owns), &reduced, cost, now);
    if !fits {
        decision.verdict = Verdict::Deny;
    }
    restate(owns, scopes, cost, &mut decision);
    decision
}

/// Takes a charge that was made alone back out, also of what the store is to be told of.
pub fn refund(owns: &mut impl Owns, scopes: &[Limits], cost: u32, grant: &Grant) {
    refund::refund(&mut Parts(owns), scopes, cost, grant);
    for (index, limits) in scopes.iter().enumerate() {
        if let (Some(charge), Some(apart)) = (grant.charge(index), &mut owns.own(index).apart) {
            apart.uncharged.give_back(&windows_of(&limits.set), cost, &charge);
            apart.tokens = apart.tokens.saturating_sub(bucket::units(cost));
        }
    }
}

/// The limits as this replica may use them, and whether the cost could pass at all.
fn reduced(
    owns: &mut impl Owns,
    scopes: &[Limits],
    cost: u32,
    alone: Alone,
) -> (SmallVec<[Limits; SCOPES_USUAL]>, bool) {
    let mut fits = true;
    let mut reduced = SmallVec::new();
    for (index, limits) in scopes.iter().enumerate() {
        let own = owns.own(index);
        let (share, caps) = own.leave_alone(&limits.set, alone);
        let mut set = windows_of(&limits.set);
        set.second = limits.set.second.map(|bucket| share.bucket(bucket, alone.replicas));
        for ((_, limit), cap) in windows_mut(&mut set).into_iter().zip(caps) {
            if limit.is_some() {
                fits &= cap >= cost || limits.mode == Mode::Shadow;
                // What may hold nothing refuses above.
                *limit = Some(NonZeroU32::new(cap).unwrap_or(NonZeroU32::MIN));
            }
        }
        reduced.push(Limits { set, mode: limits.mode });
    }
    (reduced, fits)
}

/// Has a decision by smaller limits speak of the limits as they are.
fn restate(owns: &mut impl Owns, scopes: &[Limits], cost: u32, decision: &mut Decision) {
    for status in decision.statuses_mut() {
        let index = usize::from(status.scope);
        let Some(limits) = scopes.get(index) else { continue };
        let limit = match status.period {
            Period::Second => limits.set.second.map(|bucket| bucket.burst),
            Period::Minute => limits.set.minute,
            Period::Hour => limits.set.hour,
            Period::Day | Period::Month | Period::Concurrency => continue,
        };
        let limit = limit.map_or(0, NonZeroU32::get);
        if status.period == Period::Second {
            status.limit = limit;
            status.remaining = status.remaining.min(limit);
        } else {
            (status.quota, status.limit) = (limit, limit);
            let cap = owns.own(index).cap(status.period);
            if cap == Some(0) {
                status.remaining = 0;
            }
            if cap.is_some_and(|cap| cap < cost) && status.mode == Mode::Enforce {
                status.wait = Micros::NEVER;
            }
        }
        if status.wait == Micros::NEVER && cost <= limit {
            status.wait = RETRY;
        }
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
        self.limited = windows(set).map(|(_, limit)| limit.is_some());
        self.bucket = set.second;
        for status in statuses {
            let used = status.limit.saturating_sub(status.remaining);
            if status.period == Period::Second {
                self.state.debt = bucket::units(used);
            }
            for (place, period) in self.used.iter_mut().zip(WINDOWS) {
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
            if apart.uncharged.is_whole() && apart.tokens == 0 {
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
        let is_due = |apart: &Apart| apart.tokens > 0 || !apart.uncharged.is_whole();
        self.apart.as_deref().is_some_and(is_due) || (all && !self.state.is_whole())
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
            debit.level = level;
        }
        if all {
            debit.level = level;
            debit.windows = entries(&self.state, now);
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
    fn note_alone(&mut self, set: &LimitSet, cost: u32, now: Timestamp) {
        let last = self.state.last.max(now);
        self.count_for_bucket(set, cost);
        self.limited = windows(set).map(|(_, limit)| limit.is_some());
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

    /// Without a limit by the minute nothing else says what part of the bucket is this replica's.
    fn count_for_bucket(&mut self, set: &LimitSet, cost: u32) {
        if set.second.is_some() && set.minute.is_none() {
            self.state.minute.add(cost);
        }
    }

    fn cap(&self, period: Period) -> Option<u32> {
        let caps = &self.apart.as_ref()?.caps;
        let place = WINDOWS.iter().position(|it| *it == period)?;
        caps.get(place).copied()
    }

    /// Fixes what this replica may let pass alone, unless it is alone already.
    fn leave_alone(&mut self, set: &LimitSet, alone: Alone) -> (Share, [u32; WINDOWS.len()]) {
        let is_alone = self.apart.as_ref().is_some_and(|apart| apart.is_alone);
        let fixed = (!is_alone).then(|| self.fix(set, alone));
        let apart = self.apart.get_or_insert_with(|| Box::new(Apart::answered()));
        if let Some((share, caps)) = fixed {
            (apart.share, apart.caps, apart.is_alone) = (share, caps, true);
        }
        (apart.share, apart.caps)
    }

    /// The share, and the most that may be held in each window.
    fn fix(&mut self, set: &LimitSet, alone: Alone) -> (Share, [u32; WINDOWS.len()]) {
        let since = self.state.last.max(alone.since);
        let share = self.share(set, alone, since);
        let caps = windows(set).map(|(period, limit)| {
            let limit = limit.map_or(0, NonZeroU32::get);
            let gone = steps(self.state.last, since, period);
            let held = self.window(period).aged(gone).sum();
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
            let own = u64::from(self.window(period).aged(0).sum());
            let used = self.used_by(since, period);
            if limit.is_some() && used > 0 {
                // Of what was used before this replica was there, nothing can be its own.
                let span = length(period).as_micros().max(1);
                let there = self.state.last.since(alone.started).as_micros().min(span);
                let used = u128::from(used).saturating_mul(there.into()).div_ceil(span.into());
                return of(own, u64::try_from(used).unwrap_or(u64::MAX));
            }
        }
        let even = Share::new(1, replicas);
        let own = u64::from(self.state.minute.aged(0).sum());
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
        let (unheard, span) = (since.since(self.state.last), length(period));
        let known = WINDOWS.iter().zip(self.used).find(|(it, _)| **it == period);
        let known = u64::from(known.map_or(0, |(_, used)| used));
        if unheard > span {
            return 0;
        }
        let uncharged = self.apart.as_ref().map_or(0, |apart| {
            let window = match period {
                Period::Hour => &apart.uncharged.hour,
                _ => &apart.uncharged.minute,
            };
            window.aged(steps(apart.uncharged.last, self.state.last, period)).sum()
        });
        let own = u64::from(self.window(period).aged(0).sum());
        let others = u128::from(known.saturating_sub(own));
        let spread = u128::from(self.spread(period).as_micros()).max(1);
        let more = others.saturating_mul(unheard.as_micros().into()).saturating_mul(GROWTH.0);
        let more = more.div_ceil(spread.saturating_mul(GROWTH.1));
        let more = u64::try_from(more).unwrap_or(u64::MAX);
        known.saturating_add(uncharged.into()).saturating_add(more)
    }

    /// Over what time that which is in the window was let pass here.
    fn spread(&self, period: Period) -> Micros {
        let oldest = self.window(period).entries().map(|(age, _)| u64::from(age)).max();
        let sub_bucket = period.sub_bucket().as_micros();
        let of_newest = self.state.last.as_micros().checked_rem(sub_bucket).unwrap_or_default();
        let older = oldest.unwrap_or_default().saturating_mul(sub_bucket);
        Micros::from_micros(older.saturating_add(of_newest).max(1))
    }

    fn window(&self, period: Period) -> &Window {
        match period {
            Period::Hour => &self.state.hour,
            _ => &self.state.minute,
        }
    }
}

impl Apart {
    /// Nothing to charge, and not alone.
    fn answered() -> Self {
        Apart {
            is_alone: false,
            share: Share::WHOLE,
            caps: [0; WINDOWS.len()],
            uncharged: State::default(),
            tokens: 0,
        }
    }
}

/// The states as [`check::check`] takes them.
struct Parts<'o, O>(&'o mut O);

impl<O: Owns> States for Parts<'_, O> {
    fn state(&mut self, index: usize) -> &mut State {
        &mut self.0.own(index).state
    }

    fn share(&mut self, index: usize) -> Share {
        self.0.own(index).apart.as_ref().map_or(Share::WHOLE, |apart| apart.share)
    }
}

/// What a state's windows still hold at `now`, by numbers of sub-buckets.
fn entries(state: &State, now: Timestamp) -> [Vec<(u64, u32)>; WINDOWS.len()] {
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

fn windows(set: &LimitSet) -> [(Period, Option<NonZeroU32>); WINDOWS.len()] {
    [(Period::Minute, set.minute), (Period::Hour, set.hour)]
}

fn windows_mut(set: &mut LimitSet) -> [(Period, &mut Option<NonZeroU32>); WINDOWS.len()] {
    [(Period::Minute, &mut set.minute), (Period::Hour, &mut set.hour)]
}

/// The windows alone.
fn windows_of(set: &LimitSet) -> LimitSet {
    LimitSet { minute: set.minute, hour: set.hour, ..LimitSet::default() }
}

const fn length(period: Period) -> Micros {
    match period {
        Period::Hour => Micros::from_micros(3_600_000_000),
        _ => Micros::MINUTE,
    }
}
