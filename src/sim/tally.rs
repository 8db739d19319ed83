//! What a replay comes to: counts by tier, endpoint, identity and limit, and over time.

use smallvec::SmallVec;

use crate::limiter::quota::Period;
use crate::limiter::time::Timestamp;
use crate::policy::compiled::Policy;
use crate::policy::plan::{RuleId, TierId};

use super::replay::{By, Ruled, Ruling};
use super::timeline::Timeline;

/// Requests, and those of them that were refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of them.
    pub requests: u64,
    /// Those that were refused.
    pub blocked: u64,
    /// Those that a limit in shadow would have refused.
    pub shadow: u64,
    /// Refused, and not before: by the policy to compare with, else by the log.
    pub newly: u64,
    /// Not refused, and refused before.
    pub freed: u64,
}

/// What a limit did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitCounts {
    /// Requests that were checked for it.
    pub requests: u64,
    /// Those that it was the one to refuse.
    pub blocked: u64,
    /// Those that it would have refused, in shadow.
    pub shadow: u64,
}

/// One identity.
#[derive(Clone, Debug)]
pub struct Person {
    /// Its requests.
    pub counts: Counts,
    /// Its tier, by its last request.
    pub tier: TierId,
    /// When it was first refused.
    pub first_blocked: Option<Timestamp>,
    /// Which limits refused it, or would have, how often.
    pub by: SmallVec<[(By, u64); 1]>,
}

/// All counts of a replay.
#[derive(Debug, Default)]
pub struct Tally {
    /// All requests.
    pub all: Counts,
    /// By index of the tier.
    pub by_tier: Vec<Counts>,
    /// By index of the rule, and behind them what met none.
    pub by_endpoint: Vec<Counts>,
    /// By limit; the deny list is none.
    by_limit: Vec<LimitCounts>,
    /// What the deny list refused.
    pub listed: u64,
    /// By number of the identity.
    pub people: Vec<Person>,
    /// Over time.
    pub timeline: Timeline,
    /// The first request's moment, and the last one's.
    pub span: Option<(Timestamp, Timestamp)>,
}

impl Counts {
    /// Those that pass.
    pub fn allowed(&self) -> u64 {
        self.requests.saturating_sub(self.blocked)
    }

    fn add(&mut self, ruled: &Ruled) {
        let Ruled { is_blocked, is_shadow, was_blocked } = *ruled;
        self.requests += 1;
        self.blocked += u64::from(is_blocked);
        self.shadow += u64::from(is_shadow);
        self.newly += u64::from(is_blocked && !was_blocked);
        self.freed += u64::from(was_blocked && !is_blocked);
    }
}

impl Tally {
    /// Nothing yet, for what this policy has.
    pub fn new(policy: &Policy) -> Self {
        let (tiers, rules) = (policy.tiers().len(), policy.rules().len());
        Tally {
            by_tier: vec![Counts::default(); tiers],
            by_endpoint: vec![Counts::default(); rules + 1],
            by_limit: vec![LimitCounts::default(); (rules + 1) * Period::ALL.len()],
            ..Tally::default()
        }
    }

    /// Counts a limit that a request was checked for.
    pub fn met(&mut self, by: By) {
        if let Some(limit) = self.limit_mut(by) {
            limit.requests += 1;
        }
    }

    /// Counts a request of the identity with this number.
    pub fn add(
        &mut self,
        at: Timestamp,
        identity: u32,
        tier: TierId,
        ruling: &Ruling,
        was_blocked: bool,
    ) {
        let ruled =
            Ruled { is_blocked: ruling.is_blocked, is_shadow: ruling.is_shadow, was_blocked };
        self.all.add(&ruled);
        if let Some(counts) = self.by_tier.get_mut(usize::from(tier.0)) {
            counts.add(&ruled);
        }
        let none = self.by_endpoint.len().saturating_sub(1);
        let endpoint = ruling.endpoint.map_or(none, |rule| usize::from(rule.0));
        if let Some(counts) = self.by_endpoint.get_mut(endpoint) {
            counts.add(&ruled);
        }
        self.timeline.add(at, &ruled);
        self.span = Some((self.span.map_or(at, |(first, _)| first), at));
        match ruling.by {
            Some(By::List) => self.listed += 1,
            Some(by) => {
                if let Some(limit) = self.limit_mut(by) {
                    limit.blocked += u64::from(ruling.is_blocked);
                    limit.shadow += u64::from(ruling.is_shadow);
                }
            }
            None => {}
        }
        let place = usize::try_from(identity).unwrap_or(0);
        if self.people.len() <= place {
            let nobody = Person {
                counts: Counts::default(),
                tier,
                first_blocked: None,
                by: SmallVec::new(),
            };
            self.people.resize(place + 1, nobody);
        }
        if let Some(person) = self.people.get_mut(place) {
            person.counts.add(&ruled);
            person.tier = tier;
            if ruling.is_blocked {
                person.first_blocked.get_or_insert(at);
            }
            if let Some(by) = ruling.by {
                match person.by.iter_mut().find(|(known, _)| *known == by) {
                    Some((_, count)) => *count += 1,
                    None => person.by.push((by, 1)),
                }
            }
        }
    }

    /// Every limit that any request was checked for, and what it did.
    pub fn limits(&self) -> impl Iterator<Item = (By, LimitCounts)> {
        let periods = Period::ALL.len();
        let met = self.by_limit.iter().enumerate().filter(|(_, counts)| counts.requests > 0);
        met.filter_map(move |(index, counts)| {
            let rule = match index / periods {
                0 => None,
                rule => Some(RuleId(u16::try_from(rule - 1).ok()?)),
            };
            let period = Period::ALL.get(index % periods)?;
            Some((By::Limit(rule, *period), *counts))
        })
    }

    fn limit_mut(&mut self, by: By) -> Option<&mut LimitCounts> {
        let By::Limit(rule, period) = by else { return None };
        let rule = rule.map_or(0, |rule| usize::from(rule.0) + 1);
        self.by_limit.get_mut(rule * Period::ALL.len() + period as usize)
    }
}
