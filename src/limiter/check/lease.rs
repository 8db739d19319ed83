//! Several tokens at once, for a replica that then admits requests by itself for a moment.
//!
//! A lease is charged when it is granted, so that nobody else can spend what it holds, and it can be
//! spent until its *deadline* only, which is at most [`LEASE_MAX`] away and never beyond the end of
//! the second that it was granted in. No more is ever admitted than without leases:
//!
//! - **Windows, days and months** count the whole lease in the sub-bucket of the grant. Each begins
//!   and ends with a second, so that whatever is spent of the lease is spent in that very sub-bucket.
//! - **The bucket** is charged as if all of the lease were spent at its deadline: what the bucket earns
//!   until then is not lent. Call the time at which a bucket would be whole again its *horizon*: a grant
//!   of k tokens with deadline d moves it from h to `max(h, d) + k / rate`, and is only made where that
//!   is at most `burst / rate` away. So the horizon after a grant n is no earlier than, for every earlier
//!   grant m, `d(m) + (k(m) + … + k(n)) / rate`. Now take any stretch of time from a to b. Of the grants
//!   that something was spent of in it, let m be the first and n the last. What was spent in it is at
//!   most `k(m) + … + k(n)`, which is at most `rate * (horizon - d(m))`. The horizon was at most
//!   `burst / rate` after grant n, which was made by b, and d(m) is not before a. So it is at most
//!   `burst + rate * (b - a)`. A single check is a grant of its cost whose deadline is now.
//! - **What is not spent** leaves the sub-bucket that it was counted in, and the bucket's debt as far as
//!   no later grant has built on it ([`super::super::refund`]). Say that u of the k(j) tokens of grant j
//!   come back. For each later grant m the horizon has to stay at `d(m) + (what was granted from m on)
//!   / rate`. It was at `d(j) + k(j) / rate` beyond what was granted between the two and from m on, and
//!   d(m) is at most [`LEASE_MAX`] after the last charge. So `u - rate * (last + LEASE_MAX - d(j))` may
//!   come back, and nothing where that is below 0; the rest is earned in as short a time. What a single
//!   request gives back follows the same rule, with its own time for d(j).
//!
//! None of this needs to know who holds which lease, or how many replicas there are.

use std::num::NonZeroU32;

use super::{Limits, Share, State, States, check, peek};
use crate::limiter::bucket::{self, UNITS_PER_TOKEN};
use crate::limiter::decision::{Decision, Verdict};
use crate::limiter::quota::{LimitSet, Mode, Period};
use crate::limiter::time::{Micros, Timestamp};

/// The longest that a lease holds.
pub const LEASE_MAX: Micros = Micros::from_micros(250_000);
/// A shorter one is not worth having: the second is nearly over.
pub const LEASE_MIN: Micros = Micros::from_micros(10_000);
/// Buckets of this many tokens a second and more may be leased from.
pub const LEASED_RATE_MIN: u32 = 100;

/// What a replica asks for beside the request that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Tokens, those of the request included.
    pub tokens: u32,
    /// For so long, at most [`LEASE_MAX`]. Where it can only be for less, that many fewer tokens do.
    pub span: Micros,
    /// A lease is at most what is left, divided by this: twice the number of replicas leaves the
    /// others something.
    pub divisor: NonZeroU32,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leased {
    /// The decision on the request. With a lease, what is left is what is left beside it.
    pub decision: Decision,
    /// Tokens of the lease, the request's own among them; 0: it was an ordinary check.
    pub tokens: u32,
    /// How long they can be spent from the grant on.
    pub span: Micros,
}

/// Checks a request of `cost` and, where there is enough for at least two of them, grants a lease that
/// it is the first to spend of. Else it is an ordinary check.
///
/// For one enforced scope, that of index 0, without a limit of how many at once: places are given back
/// one by one.
pub fn lease(
    states: &mut impl States,
    limits: &Limits,
    cost: u32,
    wish: &Wish,
    now: Timestamp,
) -> Leased {
    let span = span(wish.span, now);
    let seen = peek(states, &[*limits], cost, now);
    let state = states.state(0);
    let left = seen.statuses().iter().map(|status| match status.period {
        Period::Second => state.left_until(&limits.set, span, now),
        _ => status.remaining,
    });
    let left = left.min().unwrap_or(0);
    let wished = wished(wish, span);
    let tokens = (left / wish.divisor).min(wished);
    let is_leased = limits.mode == Mode::Enforce && limits.set.concurrency.is_none();
    if !is_leased || span < LEASE_MIN || tokens / 2 < cost.max(1) {
        let decision = check(states, &[*limits], cost, now);
        return Leased { decision, tokens: 0, span: Micros::ZERO };
    }
    let present = state.present(&limits.set, now);
    state.settle(&present);
    if let Some(bucket) = limits.set.second {
        state.debt = state.debt.max(earned(bucket.rate, span));
    }
    state.spend(&limits.set, tokens, Share::WHOLE, now);
    let mut decision = peek(states, &[*limits], 0, now);
    decision.verdict = Verdict::Allow;
    Leased { decision, tokens, span }
}

/// How long a lease holds that is granted now.
fn span(wished: Micros, now: Timestamp) -> Micros {
    wished.min(LEASE_MAX).min(rest_of_second(now))
}

/// Until the next whole second.
pub fn rest_of_second(now: Timestamp) -> Micros {
    let second = Micros::SECOND.as_micros();
    let gone = now.as_micros().checked_rem(second).unwrap_or(0);
    Micros::from_micros(second.saturating_sub(gone))
}

/// Tokens that are wished for, for as long as it can be.
fn wished(wish: &Wish, span: Micros) -> u32 {
    let whole = wish.span.min(LEASE_MAX).as_micros();
    let share = u64::from(wish.tokens).saturating_mul(span.as_micros());
    let tokens = if whole == 0 { 0 } else { share.div_ceil(whole) };
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

/// What comes back to a bucket in a span, in units of debt.
fn earned(rate: NonZeroU32, span: Micros) -> u64 {
    span.as_micros().saturating_mul(u64::from(rate.get()))
}

impl State {
    /// Tokens of the bucket that could all be spent at the end of a span.
    fn left_until(&self, set: &LimitSet, span: Micros, now: Timestamp) -> u32 {
        let Some(bucket) = set.second else { return u32::MAX };
        let debt = self.present(set, now).debt.max(earned(bucket.rate, span));
        let left = bucket::units(bucket.burst.get()).saturating_sub(debt) / UNITS_PER_TOKEN;
        u32::try_from(left).unwrap_or(u32::MAX)
    }
}
