//! Limits that few scopes have and the script keeps under keys of their own: days and months, and
//! places for requests at once.

use std::time::Duration;

use fred::bytes::Bytes;

use crate::limiter::calendar;
use crate::limiter::quota::{LimitSet, Period};
use crate::limiter::refund::Grant;
use crate::policy::plan::Plan;

use super::names::KeyNames;

/// For how long a place is held without a word from its holder. Longer than three renewals, and so
/// short that the places of a process that died are free again within ten seconds.
pub const PLACE_LEASE: Duration = Duration::from_secs(8);

const HEAD: usize = 13;
const EACH: usize = 10;

/// What the script is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Task {
    /// Check and charge.
    Check = 0,
    /// Say what a check would come to.
    Look = 1,
    /// Take a charge back.
    GiveBack = 2,
    /// Note how many places somebody holds.
    Hold = 3,
}

/// What is kept under one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// What was spent in days and months.
    Calendar = 1,
    /// Requests at once, by who holds them.
    Places = 2,
}

impl Kind {
    /// How its keys are named.
    pub const fn letter(self) -> &'static str {
        match self {
            Kind::Calendar => "q",
            Kind::Places => "c",
        }
    }

    /// The periods that it counts, in the order of the script's reply.
    pub const fn periods(self) -> [Option<Period>; 2] {
        match self {
            Kind::Calendar => [Some(Period::Day), Some(Period::Month)],
            Kind::Places => [Some(Period::Concurrency), None],
        }
    }

    /// Whether a scope of these limits has any of the kind.
    pub const fn is_in(self, set: &LimitSet) -> bool {
        match self {
            Kind::Calendar => set.has_calendar(),
            Kind::Places => set.concurrency.is_some(),
        }
    }
}

/// Every kind, in the order of keys.
pub const KINDS: [Kind; 2] = [Kind::Calendar, Kind::Places];

/// The further limits of scopes, by index, of which these are the limits.
pub fn of(
    sets: impl Iterator<Item = LimitSet> + Clone,
) -> impl Iterator<Item = (usize, LimitSet, Kind)> + Clone {
    sets.enumerate().flat_map(|(index, set)| {
        let has = move |kind: &Kind| kind.is_in(&set);
        KINDS.into_iter().filter(has).map(move |kind| (index, set, kind))
    })
}

/// Their keys.
pub fn keys<'a>(
    names: &'a KeyNames,
    hash: &'a str,
    plan: &'a Plan<'_>,
) -> impl Iterator<Item = Bytes> + 'a {
    plan.scopes().flat_map(move |scope| {
        let has = move |kind: &Kind| kind.is_in(&scope.limits.set);
        let key = move |kind: Kind| names.further(hash, kind.letter(), scope.key);
        KINDS.into_iter().filter(has).map(key)
    })
}

/// The script's second argument. `None`: an ordinary check, which needs none.
pub fn argument(
    task: Task,
    holder: u64,
    sets: impl Iterator<Item = LimitSet> + Clone,
    grant: Option<&Grant>,
) -> Option<Bytes> {
    let count = of(sets.clone()).count();
    if task == Task::Check && count == 0 {
        return None;
    }
    let mut argument = head(task, holder, EACH.saturating_mul(count));
    for (index, set, kind) in of(sets) {
        let counted_at = grant.and_then(|grant| grant.charge(index)).map(|charge| charge.at);
        let number = |period: Option<Period>| {
            let Some((_, limit)) = period.and_then(|period| set.quota_and_limit(period)) else {
                return 0;
            };
            match (task, period, counted_at) {
                (Task::GiveBack, Some(period @ (Period::Day | Period::Month)), Some(at)) => {
                    calendar::number(period, at)
                }
                (Task::GiveBack, ..) => 0,
                _ => limit,
            }
        };
        // Scopes are counted from 1, as Lua does; a plan with more than 255 is refused nowhere,
        // and has no further limits beyond.
        argument.push(u8::try_from(index.saturating_add(1)).unwrap_or(u8::MAX));
        argument.push(kind as u8);
        for period in kind.periods() {
            argument.extend_from_slice(&number(period).to_le_bytes());
        }
    }
    Some(argument.into())
}

/// The same for a word on how many places `holder` holds.
pub fn places(holder: u64, count: u32) -> Bytes {
    let mut argument = head(Task::Hold, holder, size_of::<u32>());
    argument.extend_from_slice(&count.to_le_bytes());
    argument.into()
}

/// Room for so many bytes behind it.
fn head(task: Task, holder: u64, room: usize) -> Vec<u8> {
    let mut argument = Vec::with_capacity(HEAD.saturating_add(room));
    argument.push(task as u8);
    argument.extend_from_slice(&holder.to_le_bytes());
    let lease = u32::try_from(PLACE_LEASE.as_millis()).unwrap_or(u32::MAX);
    argument.extend_from_slice(&lease.to_le_bytes());
    argument
}
