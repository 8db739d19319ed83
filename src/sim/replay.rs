//! The replay: every request meets the limiter that enforces, at the moment at which it came.
//!
//! Virtual time: the clock is a request's own moment. State is kept as the proxy keeps it, by
//! [`MemoryStore`], and freed in the same way.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use crate::limiter::decision::Verdict;
use crate::limiter::quota::Period;
use crate::limiter::time::{Micros, Timestamp};
use crate::policy::compiled::Policy;
use crate::policy::plan::{Disposition, RuleId};
use crate::policy::route::Matched;
use crate::store::memory::{MemoryStore, Places};

use super::callers::Known;
use super::record::Record;

/// Records of state: more than any log needs at one moment, so that nothing is forgotten early.
const STATES_MAX: usize = 200_000_000;
/// Requests between two sweeps, each of one shard.
const SWEPT_EVERY: u64 = 1024;

/// Which limit spoke. `None` for the rule is the tier's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum By {
    /// The deny list.
    List,
    /// A limit.
    Limit(Option<RuleId>, Period),
}

/// What is decided on one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// Whether it is refused.
    pub is_blocked: bool,
    /// Whether a limit in shadow would have refused it.
    pub is_shadow: bool,
    /// Which limit refuses, or would.
    pub by: Option<By>,
    /// The rule that names it.
    pub endpoint: Option<RuleId>,
}

/// What is counted of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ruled {
    /// Whether it is refused.
    pub is_blocked: bool,
    /// Whether a limit in shadow would have refused it.
    pub is_shadow: bool,
    /// Whether it was refused before: by the policy to compare with, else by the log.
    pub was_blocked: bool,
}

/// One policy, with the state of its limits.
#[derive(Debug)]
pub struct Lane<'p> {
    policy: &'p Policy,
    store: MemoryStore,
    /// Places of `concurrency`, by the moment at which they are free again.
    held: BinaryHeap<Reverse<Held>>,
    asked: u64,
    shard: usize,
    /// Requests that a limit of `concurrency` was met by, and whose end is not known.
    endless: u64,
}

/// What a request holds.
#[derive(Debug)]
struct Held {
    until: Timestamp,
    places: Places,
}

impl<'p> Lane<'p> {
    /// Nobody has sent anything yet.
    pub fn new(policy: &'p Policy) -> Self {
        Lane {
            policy,
            store: MemoryStore::new(STATES_MAX),
            held: BinaryHeap::new(),
            asked: 0,
            shard: 0,
            endless: 0,
        }
    }

    /// The policy.
    pub fn policy(&self) -> &'p Policy {
        self.policy
    }

    /// Decides a request; `met` is told of every limit that it is checked for.
    pub fn decide(
        &mut self,
        known: &Known,
        matched: &Matched,
        record: &Record,
        mut met: impl FnMut(By),
    ) -> Ruling {
        let now = record.at;
        self.pass_time(now);
        let plan = self.policy.plan_of(known.identity.clone(), known.resolved.clone(), matched);
        let endpoint = plan.endpoint;
        let none = Ruling { is_blocked: false, is_shadow: false, by: None, endpoint };
        match plan.disposition {
            Disposition::Exempt | Disposition::Unlimited => return none,
            Disposition::Refused => {
                return Ruling { is_blocked: true, by: Some(By::List), ..none };
            }
            Disposition::Limited => {}
        }
        let decision = self.store.check(&plan, now);
        let rule = |scope: u8| plan.scope(scope).and_then(|scope| scope.rule);
        for status in decision.statuses() {
            met(By::Limit(rule(status.scope), status.period));
        }
        if let Some(places) = self.store.places(&plan, &decision) {
            match record.lasts {
                Some(lasts) => {
                    self.held.push(Reverse(Held { until: now.plus(lasts), places }));
                }
                None => {
                    self.endless += 1;
                    self.store.release(&places);
                }
            }
        }
        let by = decision.limited_by();
        Ruling {
            is_blocked: decision.verdict == Verdict::Deny,
            is_shadow: decision.verdict == Verdict::Allow && by.is_some(),
            by: by.map(|status| By::Limit(rule(status.scope), status.period)),
            endpoint,
        }
    }

    /// Requests whose places of `concurrency` were given back at once, since nobody knows when they
    /// ended.
    pub fn endless(&self) -> u64 {
        self.endless
    }

    /// States that were forgotten before their time.
    pub fn evictions(&self) -> u64 {
        self.store.evictions()
    }

    /// Gives back what is over at `now`, and frees what has expired.
    fn pass_time(&mut self, now: Timestamp) {
        while self.held.peek().is_some_and(|Reverse(held)| held.until <= now)
            && let Some(Reverse(held)) = self.held.pop()
        {
            self.store.release(&held.places);
        }
        self.asked += 1;
        if self.asked.is_multiple_of(SWEPT_EVERY) {
            // A clock may stand still within a second of a state's last use.
            self.store.sweep(now.minus(Micros::SECOND), self.shard);
            self.shard = (self.shard + 1) % self.store.shards();
        }
    }
}

impl By {
    /// As the access log has it: `tier:minute`, `endpoint:history:minute`; `deny` for the list.
    pub fn name(self, policy: &Policy) -> String {
        match self {
            By::List => "deny".to_owned(),
            By::Limit(None, period) => format!("tier:{}", period.as_str()),
            By::Limit(Some(rule), period) => {
                let name = policy.rule(rule).map_or("", |rule| &rule.name);
                format!("endpoint:{name}:{}", period.as_str())
            }
        }
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.until == other.until
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> Ordering {
        self.until.cmp(&other.until)
    }
}
