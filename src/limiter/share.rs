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
use super::check::{self, Limits, State, States};
use super::decision::{Decision, SCOPES_USUAL, Verdict};
use super::own::{Own, windows_mut, windows_of};
use super::quota::{Bucket, Mode, Period};
use super::refund::{self, Grant};
use super::time::{Micros, Timestamp};

/// What is told to wait for who would have had room, but not in this replica's share: until when
/// nobody knows.
const RETRY: Micros = Micros::SECOND;

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
    pub(super) fn larger(self, other: Share) -> Share {
        let ours = u64::from(self.part).saturating_mul(other.whole.into());
        let theirs = u64::from(other.part).saturating_mul(self.whole.into());
        if ours >= theirs { self } else { other }
    }

    /// The bucket of which this part is taken, by one of so many replicas. One token of the burst
    /// is each replica's own, so that a small part of it is not nothing, and only the rest is shared.
    pub(super) fn bucket(self, bucket: Bucket, replicas: u32) -> Bucket {
        if self.part == self.whole {
            return bucket;
        }
        let one = self.whole.div_ceil(self.part.max(1));
        let burst = bucket.burst.get().saturating_add(one);
        let burst = burst.saturating_sub(replicas.saturating_add(1));
        Bucket { burst: NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN), ..bucket }
    }

    /// This part of `units`, rounded up.
    pub(super) fn of_units(self, units: u64) -> u64 {
        let ours = u128::from(units).saturating_mul(self.part.into());
        u64::try_from(ours.div_ceil(u128::from(self.whole))).unwrap_or(u64::MAX)
    }

    /// This part of `count`, rounded down.
    pub(super) fn of(self, count: u32) -> u32 {
        let ours = u64::from(count).saturating_mul(self.part.into()) / u64::from(self.whole);
        u32::try_from(ours).unwrap_or(u32::MAX)
    }
}

/// What a replica knows of itself and the others when it has to decide alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alone {
    /// Replicas, this one among them.
    pub replicas: u32,
    /// When the store was lost, by its clock; rather later than earlier, but not in the future. Until
    /// then the others could take what was left; from then on they are alone as well.
    pub since: Timestamp,
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
        if let Some(charge) = grant.charge(index) {
            owns.own(index).forgive(&limits.set, cost, &charge);
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
            Period::Day => limits.set.day,
            Period::Month => limits.set.month,
            Period::Concurrency => continue,
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

/// The states as [`check::check`] takes them.
struct Parts<'o, O>(&'o mut O);

impl<O: Owns> States for Parts<'_, O> {
    fn state(&mut self, index: usize) -> &mut State {
        self.0.own(index).state_mut()
    }

    fn share(&mut self, index: usize) -> Share {
        self.0.own(index).share_alone()
    }
}
