//! Which upstream is asked: of several that serve the same, the one with the fewest requests.
//!
//! Where there is one, nothing is looked at and nothing counted: asking for it is asking its
//! circuit breaker.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderValue;

use crate::clock::monotonic;
use crate::health::breaker::jitter;
use crate::health::shared_breaker::{Probe, Ticket};
use crate::health::upstream::Admission;
use crate::health::upstreams::{Flight, Member, UpstreamGroup};
use crate::metrics::labels::Dependency;
use crate::metrics::series::UpstreamSeries;

use super::connect::{Protocol, Target};
use super::gate::Gate;
use super::pool::{Pool, PoolSignals};
use super::reply::Refusal;
use super::retry::Budget;
use super::timer::{Tick, Timers};

/// What all workers share of the upstreams.
#[derive(Debug)]
pub struct Upstreams {
    /// How they do, in the order of `places`.
    pub group: Arc<UpstreamGroup>,
    /// How each is reached.
    pub places: Box<[Upstream]>,
    /// How many requests may be asked of another one.
    pub budget: Budget,
}

/// How one upstream is reached.
#[derive(Debug)]
pub struct Upstream {
    /// Where it is, and what is spoken there.
    pub target: Target,
    /// As `Host` names it.
    pub authority: Option<HeaderValue>,
    /// Calls to it.
    pub series: Arc<UpstreamSeries>,
}

/// Some of the upstreams, by their index: one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Among(u64);

/// One call of an upstream that may be made. Dropped, it says nothing of that.
#[derive(Debug)]
pub struct Permit {
    /// Which upstream.
    pub member: usize,
    /// What lets it be told how the call went.
    pub admitted: Admitted,
    /// Counts it there, where there are several.
    pub flight: Option<Flight>,
}

/// As what a call may be made.
#[derive(Debug)]
pub enum Admitted {
    /// Among others.
    Call(Ticket),
    /// As the one that finds out whether others may.
    Probe(Probe),
}

/// One worker's connections to the upstreams, and whose turn it is.
#[derive(Debug)]
pub struct Lines {
    pools: Box<[Rc<Pool>]>,
    turn: Cell<usize>,
    /// When each refused to be called last: it need not be asked for every request.
    refused: Box<[Cell<Option<Tick>>]>,
}

impl Among {
    /// Nobody.
    pub const NOBODY: Among = Among(0);

    /// The first of them, so many.
    fn first(count: usize) -> Self {
        let beyond = u32::try_from(count).ok().and_then(|count| u64::MAX.checked_shl(count));
        Among(!beyond.unwrap_or(0))
    }

    /// Whether it is nobody.
    pub fn is_empty(self) -> bool {
        self == Self::NOBODY
    }

    /// Those without this one.
    #[must_use]
    pub fn without(self, index: usize) -> Self {
        Among(self.0 & !Self::bit(index))
    }

    /// Whether it is one of them.
    pub fn has(self, index: usize) -> bool {
        self.0 & Self::bit(index) != 0
    }

    fn bit(index: usize) -> u64 {
        u32::try_from(index).ok().and_then(|index| 1_u64.checked_shl(index)).unwrap_or(0)
    }
}

impl Upstreams {
    /// Whether there are several.
    #[inline]
    pub fn are_several(&self) -> bool {
        self.places.len() > 1
    }

    /// How it is reached.
    pub fn place(&self, index: usize) -> Option<&Upstream> {
        self.places.get(index)
    }

    /// How it does.
    pub fn member(&self, index: usize) -> Option<&Member> {
        self.group.members().get(index)
    }

    /// Whom a request may be sent to: one that is to be upgraded only to those that can be, if any.
    pub fn among(&self, is_upgrade: bool) -> Among {
        let all = Among::first(self.places.len());
        if !is_upgrade || !self.are_several() {
            return all;
        }
        let unable = self.places.iter().enumerate().filter(|(_, it)| !it.can_upgrade());
        let able = unable.fold(all, |among, (index, _)| among.without(index));
        if able.is_empty() { all } else { able }
    }

    /// Whether a request that is to be upgraded has a chance.
    pub fn can_upgrade(&self) -> bool {
        self.places.iter().any(Upstream::can_upgrade)
    }
}

impl Upstream {
    /// Whether its connections can be upgraded at all.
    pub fn can_upgrade(&self) -> bool {
        !matches!(self.target.protocol, Protocol::Http2)
    }
}

impl Lines {
    /// No connections yet. Workers begin with different ones of the upstreams.
    pub fn new(gate: &Gate, timers: &Arc<Timers>, worker: usize) -> Self {
        let are_several = gate.upstreams.are_several();
        let pool = |(index, it): (usize, &Upstream)| {
            let name = gate.upstreams.member(index).filter(|_| are_several);
            let signals = PoolSignals {
                pool: gate.metrics.pool(Dependency::Upstream.as_str()),
                upstream: Arc::clone(&it.series),
                name: name.map(|it| it.name.clone()),
            };
            Pool::new(it.target.clone(), Arc::clone(timers), signals, gate.settings.pool)
        };
        let places = &gate.upstreams.places;
        Lines {
            pools: places.iter().enumerate().map(pool).collect(),
            turn: Cell::new(worker.checked_rem(places.len()).unwrap_or(0)),
            refused: places.iter().map(|_| Cell::new(None)).collect(),
        }
    }

    /// Its connections to this upstream.
    pub fn pool(&self, index: usize) -> Option<&Rc<Pool>> {
        self.pools.get(index)
    }

    /// Closes what need not be kept.
    pub fn sweep(&self) {
        self.pools.iter().for_each(|pool| pool.sweep());
    }

    /// Asks for the first call for a request.
    ///
    /// # Errors
    /// Every circuit is open.
    #[inline]
    pub fn ask(&self, upstreams: &Upstreams, among: Among, now: Tick) -> Result<Permit, Refusal> {
        let [only] = upstreams.group.members() else {
            return self.choose(upstreams, among, Probing::First, now).ok_or_else(|| {
                let retry_after = upstreams.group.retry_after(monotonic());
                Refusal::CircuitOpen { retry_after }
            });
        };
        let admitted = match only.health.admit(monotonic, jitter) {
            Admission::Call(ticket) => Admitted::Call(ticket),
            Admission::Probe(probe) => Admitted::Probe(probe),
            Admission::Refused(retry_after) => return Err(Refusal::CircuitOpen { retry_after }),
        };
        Ok(Permit { member: 0, admitted, flight: None })
    }

    /// Asks for one more call for a request whose first came to nothing.
    pub fn ask_another(&self, upstreams: &Upstreams, among: Among, now: Tick) -> Option<Permit> {
        self.choose(upstreams, among, Probing::Last, now)
    }

    /// The one with the fewest requests of those that may be called, the next in turn of several;
    /// or one that has to be probed.
    fn choose(
        &self,
        upstreams: &Upstreams,
        among: Among,
        probing: Probing,
        now: Tick,
    ) -> Option<Permit> {
        let members = upstreams.group.members();
        let turn = self.turn.get();
        if probing == Probing::First {
            self.turn.set(turn.saturating_add(1).checked_rem(members.len()).unwrap_or(0));
        }
        let (before, from) = members.split_at_checked(turn)?;
        let in_turn = (turn..).zip(from).chain(before.iter().enumerate());
        let mut fewest: Option<(usize, usize, &Member, Ticket)> = None;
        for (index, member) in in_turn.filter(|(index, _)| among.has(*index)) {
            let ticket = match member.health.breaker().ticket() {
                Some(ticket) => ticket,
                None if probing == Probing::Last => continue,
                None => match self.admit(index, member, now) {
                    Some(Admitted::Call(ticket)) => ticket,
                    Some(probe) => return Some(Permit::of(index, member, probe)),
                    None => continue,
                },
            };
            let count = member.in_flight();
            if fewest.as_ref().is_none_or(|(least, ..)| count < *least) {
                fewest = Some((count, index, member, ticket));
            }
        }
        if let Some((_, index, member, ticket)) = fewest {
            return Some(Permit::of(index, member, Admitted::Call(ticket)));
        }
        if probing == Probing::First {
            return None;
        }
        let mut out = members.iter().enumerate().filter(|(index, _)| among.has(*index));
        out.find_map(|(index, member)| {
            Some(Permit::of(index, member, self.admit(index, member, now)?))
        })
    }

    /// Asks one that is out whether it may be called as a probe, once in each tick.
    fn admit(&self, index: usize, member: &Member, now: Tick) -> Option<Admitted> {
        let refused = self.refused.get(index)?;
        if refused.get() == Some(now) {
            return None;
        }
        match member.health.admit(monotonic, jitter) {
            Admission::Call(ticket) => Some(Admitted::Call(ticket)),
            Admission::Probe(probe) => Some(Admitted::Probe(probe)),
            Admission::Refused(_) => {
                refused.set(Some(now));
                None
            }
        }
    }
}

/// When one that is out is probed by a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probing {
    /// As soon as it is due: or nobody would find out that it is back.
    First,
    /// Only where there is no other: the request has failed once.
    Last,
}

impl Permit {
    fn of(index: usize, member: &Member, admitted: Admitted) -> Self {
        Permit { member: index, admitted, flight: Some(member.enter()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_knows_whom_it_is_made_among() {
        let but_the_third = Among::first(64).without(2);
        assert!(but_the_third.has(0) && but_the_third.has(63));
        assert!(!but_the_third.has(2));
        assert!(!Among::first(64).has(64), "there are no more than 64");
        let of_two = Among::first(2);
        assert!(of_two.has(0) && of_two.has(1) && !of_two.has(2));
        assert!(of_two.without(0).without(1).is_empty());
    }
}
