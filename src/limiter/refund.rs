//! Gives a charge back, as far as nobody else has had the use of it.
//!
//! To simply add the tokens again would let more pass than was promised: what the bucket earned
//! between the charge and the refund it would have earned in vain had it been full, and what is in
//! a window leaves it with the sub-bucket that it was counted in. Hence what a charge wrote is kept
//! with its request, and only that is taken out again.

use std::num::NonZeroU32;

use smallvec::{SmallVec, smallvec};

use super::check::lease::{LEASE_MAX, LEASED_RATE_MIN};
use super::check::{Limits, States};
use super::decision::{Decision, SCOPES_USUAL, Verdict};
use super::quota::Period;
use super::time::{Micros, Timestamp};
use super::window::SUB_BUCKETS;

/// Where the charges of an allowed request are, small enough to be kept until its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// When it was decided, by the clock of the store that decided.
    at: Timestamp,
    /// By index of the scope; `None` where nothing was charged.
    stamps: SmallVec<[Option<Stamp>; SCOPES_USUAL]>,
    is_beside_leases: bool,
}

/// How many sub-buckets after that of the decision's own time a scope's charge was counted: more
/// than 0 where the state's clock was a little ahead and stood still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stamp {
    minute: u8,
    hour: u8,
}

/// One scope's part of a [`Grant`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// When it was decided.
    pub at: Timestamp,
    /// Number since the epoch of the minute's sub-bucket that it was counted in.
    pub minute: u64,
    /// The same for the hour's.
    pub hour: u64,
    /// Whether leases may have been granted since, which are charged as if spent later.
    pub is_beside_leases: bool,
}

impl Charge {
    /// How much later than the last charge something may be charged to a bucket of this rate.
    pub fn ahead(&self, rate: NonZeroU32) -> Micros {
        let is_leased = self.is_beside_leases && rate.get() >= LEASED_RATE_MIN;
        if is_leased { LEASE_MAX } else { Micros::ZERO }
    }
}

impl Grant {
    /// What `decision` charged, for a plan of so many scopes: in shadow mode only those that had
    /// room, and nothing at all on a denial.
    pub fn new(decision: &Decision, scopes: usize) -> Self {
        Self::as_of(decision, scopes, decision.now)
    }

    /// What a lease has charged to its one scope, to give back what is not spent of it. Its bucket was
    /// charged as if at its deadline, and so may be that of leases granted since, [`LEASE_MAX`] after
    /// the last of them: that is as if this were granted so long before its deadline.
    pub fn of_lease(decision: &Decision, span: Micros) -> Self {
        Self::as_of(decision, 1, decision.now.plus(span).minus(LEASE_MAX))
    }

    /// The same charge, in scopes from which leases may have been taken since: what those were charged
    /// to the bucket for the time until their deadline is not given back.
    pub fn beside_leases(self) -> Self {
        Grant { is_beside_leases: true, ..self }
    }

    fn as_of(decision: &Decision, scopes: usize, at: Timestamp) -> Self {
        let charged = (decision.verdict == Verdict::Allow).then(Stamp::default);
        let stamps = smallvec![charged; scopes];
        let mut grant = Grant { at, stamps, is_beside_leases: false };
        if charged.is_none() {
            return grant;
        }
        for status in decision.statuses() {
            let Some(stamp) = grant.stamps.get_mut(usize::from(status.scope)) else { continue };
            if !status.wait.is_zero() {
                *stamp = None;
                continue;
            }
            let Some(stamp) = stamp else { continue };
            // The charge is what is newest in a window, so that it says when that is whole again.
            let length = status.period.sub_bucket().as_micros().max(1);
            let leaves = status.whole_at.as_micros() / length;
            let counted = leaves.saturating_sub(u64::from(SUB_BUCKETS).saturating_add(1));
            let later = counted.saturating_sub(at.as_micros() / length);
            let later = u8::try_from(later).unwrap_or(u8::MAX);
            match status.period {
                Period::Minute => stamp.minute = later,
                Period::Hour => stamp.hour = later,
                // By the decision's time alone.
                Period::Second | Period::Day | Period::Month | Period::Concurrency => {}
            }
        }
        grant
    }

    /// When it was decided, by the clock of the store that decided.
    pub fn at(&self) -> Timestamp {
        self.at
    }

    /// What was charged to scope `index`; `None` if nothing.
    pub fn charge(&self, index: usize) -> Option<Charge> {
        let stamp = (*self.stamps.get(index)?)?;
        let number = |period: Period, later: u8| {
            let length = period.sub_bucket().as_micros().max(1);
            (self.at.as_micros() / length).saturating_add(u64::from(later))
        };
        Some(Charge {
            at: self.at,
            minute: number(Period::Minute, stamp.minute),
            hour: number(Period::Hour, stamp.hour),
            is_beside_leases: self.is_beside_leases,
        })
    }
}

/// Takes the charges of `grant` back out of the states, as if its request had not come.
///
/// A window, a day and a month lose exactly what was counted for the request; nothing if that has
/// left. The place that the request holds is given back when it has ended, and not here. A bucket's
/// debt falls by the cost, less what was earned between the charge and the last one after it: the
/// debt is then never below what it would be without the request, and the same if nothing came
/// between. Where leases may have come between, it is less by what those are charged ahead of their
/// time. Waits for nothing, so the time is of no matter: what is earned from the last charge on
/// is earned either way.
///
/// A state whose clock was set back since, as far as can be told by its being before the grant, is
/// left alone: what it has earned since nobody knows. One that was set back and has run past the
/// grant again within the request's time cannot be told; it gives back no more than the request's
/// cost, but maybe from a later charge. The same is true of a state that was evicted and is there
/// again, and of a rate that a reload raised in that time.
pub fn refund(states: &mut impl States, scopes: &[Limits], cost: u32, grant: &Grant) {
    for (index, limits) in scopes.iter().enumerate() {
        if let Some(charge) = grant.charge(index) {
            states.state(index).give_back(&limits.set, cost, &charge);
        }
    }
}
