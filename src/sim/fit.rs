//! Limits for a share of refused requests: found by replaying the requests of each scope with limits
//! that are tried, by the very function that checks them.
//!
//! A scope is what limits are kept for: a tier, or a rule for the callers of a tier. Each of its limits
//! is first fitted alone, as small as the share allows; then all of them together, with a smaller share
//! for each until together they refuse no more.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use serde_json::{Map, Value, json};

use crate::limiter::check::{Limits, State, States, check};
use crate::limiter::decision::Verdict;
use crate::limiter::quota::{Bucket, LIMIT_MAX, LimitSet, Mode, Period};
use crate::limiter::time::Timestamp;
use crate::policy::plan::{Disposition, RuleId, TierId};

use super::simulation::Simulation;
use super::text::{number, percent};

/// Requests that a scope has to have: of fewer nothing is said.
const REQUESTS_MIN: usize = 100;
/// A bucket's burst, in seconds of its rate.
const BURST_SECONDS: u32 = 2;
/// How often the share of a single limit is halved between too much and too little.
const JOINT_STEPS: u32 = 6;

/// One request of a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Whose, by number.
    pub identity: u32,
    /// What it spends.
    pub cost: u32,
    /// When.
    pub at: Timestamp,
}

/// What was found.
#[derive(Debug)]
pub struct Fitted {
    /// The share that may be refused, of 1.
    pub share: f64,
    /// By scope, tiers first.
    pub scopes: Vec<FittedScope>,
}

/// What was found for one scope.
#[derive(Debug)]
pub struct FittedScope {
    /// The tier's name.
    pub tier: String,
    /// The rule's; `None`: the tier's own limits.
    pub rule: Option<String>,
    /// Its requests in the logs.
    pub requests: u64,
    /// The limits that it has.
    pub has: LimitSet,
    /// What they refuse.
    pub has_blocked: u64,
    /// The limits that are proposed.
    pub fits: LimitSet,
    /// What those refuse.
    pub fits_blocked: u64,
}

/// Proposes limits by which at most `share` of each scope's requests is refused.
pub fn fit(simulation: &Simulation<'_>, share: f64) -> Fitted {
    let policy = simulation.policy();
    let mut scopes = Vec::new();
    for ((rule, tier), demands) in by_scope(simulation) {
        if demands.len() < REQUESTS_MIN {
            continue;
        }
        let has = match rule {
            None => policy.tier(tier).map(|tier| tier.limits),
            Some(rule) => policy
                .rule(rule)
                .and_then(|rule| rule.limits.get(usize::from(tier.0)).copied().flatten()),
        };
        let has = has.unwrap_or_default();
        let most = (demands.len() as f64 * share) as u64;
        let fits = fit_together(&demands, &periods_of(&has), most);
        scopes.push(FittedScope {
            tier: policy.tier(tier).map_or_else(String::new, |tier| tier.name.to_string()),
            rule: rule.and_then(|rule| policy.rule(rule)).map(|rule| rule.name.to_string()),
            requests: demands.len() as u64,
            has_blocked: blocked(&demands, &has),
            has,
            fits_blocked: blocked(&demands, &fits),
            fits,
        });
    }
    Fitted { share, scopes }
}

/// The requests of every scope, by caller and then by time.
fn by_scope(simulation: &Simulation<'_>) -> BTreeMap<(Option<RuleId>, TierId), Vec<Demand>> {
    let policy = simulation.policy();
    let mut scopes: BTreeMap<(Option<RuleId>, TierId), Vec<Demand>> = BTreeMap::new();
    for kept in simulation.kept.iter().flatten() {
        let (Some(entry), Some(route)) =
            (simulation.reader.callers.get(kept.caller), simulation.reader.routes.get(kept.route))
        else {
            continue;
        };
        let [Some(known), _] = &entry.known else { continue };
        let [Some(Ok(matched)), _] = &route.matched else { continue };
        let plan = policy.plan_of(known.identity.clone(), known.resolved.clone(), matched);
        if matches!(plan.disposition, Disposition::Exempt | Disposition::Refused) {
            continue;
        }
        let demand = Demand { identity: entry.identity, cost: plan.cost, at: kept.at };
        scopes.entry((None, plan.tier)).or_default().push(demand);
        for rule in plan.scopes().filter_map(|scope| scope.rule) {
            scopes.entry((Some(rule), plan.tier)).or_default().push(demand);
        }
    }
    for demands in scopes.values_mut() {
        demands.sort_by_key(|demand| (demand.identity, demand.at));
    }
    scopes
}

/// Which limits are to be found: those that there are, else the usual three.
fn periods_of(has: &LimitSet) -> Vec<Period> {
    let counted = |period: &Period| *period != Period::Concurrency;
    let periods: Vec<Period> = Period::ALL
        .into_iter()
        .filter(counted)
        .filter(|period| has.quota_and_limit(*period).is_some())
        .collect();
    if periods.is_empty() { Period::SLIDING.to_vec() } else { periods }
}

/// Limits of these periods that together refuse at most `most` of the requests, which are sorted by
/// caller and time.
pub fn fit_together(demands: &[Demand], periods: &[Period], most: u64) -> LimitSet {
    let each = |most: u64| {
        let mut set = LimitSet::default();
        for period in periods {
            let limit = fit_alone(demands, *period, most);
            set = with(set, *period, limit);
        }
        set
    };
    let mut fits = each(most);
    if blocked(demands, &fits) <= most {
        return fits;
    }
    // None refuses anything alone, so that together they do not either.
    let (mut few, mut many) = (0, most);
    fits = each(few);
    for _ in 0..JOINT_STEPS {
        let middle = few.midpoint(many);
        let tried = each(middle);
        if blocked(demands, &tried) <= most {
            (few, fits) = (middle, tried);
        } else {
            many = middle;
        }
    }
    fits
}

/// The smallest limit of a period, to two digits, that refuses at most `most` of the requests.
fn fit_alone(demands: &[Demand], period: Period, most: u64) -> u32 {
    let of_caller = |own: &[Demand]| own.iter().map(|it| u64::from(it.cost)).sum::<u64>();
    let largest = demands.chunk_by(same_caller).map(of_caller).max().unwrap_or(1);
    let cost = demands.iter().map(|demand| demand.cost).max().unwrap_or(1);
    let is_enough =
        |limit: u32| blocked(demands, &with(LimitSet::default(), period, limit)) <= most;
    // What all requests of the busiest caller fit into refuses nobody.
    let (mut below, mut enough) = (0, u32::try_from(largest).unwrap_or(LIMIT_MAX).min(LIMIT_MAX));
    while enough.saturating_sub(below) > 1 {
        let middle = below.midpoint(enough);
        if is_enough(middle) { enough = middle } else { below = middle }
    }
    let mut limit = rounded(enough.max(cost));
    // More may refuse more, now and then: another request passes in place of two.
    while !is_enough(limit) && limit < LIMIT_MAX {
        limit = rounded(limit.saturating_add(limit / 10).saturating_add(1));
    }
    limit
}

/// The number, or the next one with at most two digits that are not zero.
pub fn rounded(limit: u32) -> u32 {
    let digits = limit.max(1).ilog10();
    let unit = 10_u32.pow(digits.saturating_sub(1));
    limit.div_ceil(unit).saturating_mul(unit).min(LIMIT_MAX)
}

/// The set with a limit more.
pub fn with(set: LimitSet, period: Period, limit: u32) -> LimitSet {
    let limit = NonZeroU32::new(limit.clamp(1, LIMIT_MAX));
    match period {
        Period::Second => LimitSet {
            second: limit.and_then(|rate| {
                let burst = rate.get().saturating_mul(BURST_SECONDS).min(LIMIT_MAX);
                Some(Bucket { rate, burst: NonZeroU32::new(burst)? })
            }),
            ..set
        },
        Period::Minute => LimitSet { minute: limit, ..set },
        Period::Hour => LimitSet { hour: limit, ..set },
        Period::Day => LimitSet { day: limit, ..set },
        Period::Month => LimitSet { month: limit, ..set },
        Period::Concurrency => LimitSet { concurrency: limit, ..set },
    }
}

/// How many of the requests these limits refuse; places of `concurrency` are not counted.
pub fn blocked(demands: &[Demand], set: &LimitSet) -> u64 {
    let limits = Limits { set: LimitSet { concurrency: None, ..*set }, mode: Mode::Enforce };
    let Some(least) = limits.set.cost_max() else { return 0 };
    let mut blocked = 0;
    for own in demands.chunk_by(same_caller) {
        let total: u64 = own.iter().map(|demand| u64::from(demand.cost)).sum();
        // All of it fits into the smallest: nothing is refused.
        if total <= u64::from(least) {
            continue;
        }
        let mut state = One(State::default());
        for demand in own {
            let decision = check(&mut state, &[limits], demand.cost, demand.at);
            blocked += u64::from(decision.verdict == Verdict::Deny);
        }
    }
    blocked
}

/// Whether both are of one caller, who is then followed by another one.
pub fn same_caller(first: &Demand, second: &Demand) -> bool {
    first.identity == second.identity
}

/// The state of one scope of one caller.
struct One(State);

impl States for One {
    fn state(&mut self, _index: usize) -> &mut State {
        &mut self.0
    }
}

/// Limits as `tiers.yaml` has them: `{ per_second: 5, burst: 10, per_minute: 100 }`.
pub fn yaml(set: &LimitSet) -> String {
    let parts: Vec<String> =
        pairs(set).into_iter().map(|(key, limit)| format!("{key}: {limit}")).collect();
    if parts.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", parts.join(", ")) }
}

fn pairs(set: &LimitSet) -> Vec<(&'static str, u32)> {
    let limit = |limit: Option<NonZeroU32>| limit.map(NonZeroU32::get);
    [
        ("per_second", limit(set.second.map(|bucket| bucket.rate))),
        ("burst", limit(set.second.map(|bucket| bucket.burst))),
        ("per_minute", limit(set.minute)),
        ("per_hour", limit(set.hour)),
        ("per_day", limit(set.day)),
        ("per_month", limit(set.month)),
        ("concurrency", limit(set.concurrency)),
    ]
    .into_iter()
    .filter_map(|(key, limit)| Some((key, limit?)))
    .collect()
}

impl Fitted {
    /// For eyes, and to be copied into a policy.
    pub fn text(&self) -> String {
        let target = self.share * 100.0;
        let mut out = format!(
            "limits by which at most {target} % of the requests of each are blocked, found by \
             replaying them:\n"
        );
        if self.scopes.is_empty() {
            out.push_str("  none: no tier has as many as a hundred requests\n");
        }
        let name = |it: &FittedScope| match &it.rule {
            None => it.tier.clone(),
            Some(rule) => format!("{rule}, {}", it.tier),
        };
        let width = self.scopes.iter().map(|it| name(it).len()).max().unwrap_or(0);
        for scope in &self.scopes {
            out.push_str(&format!(
                "  {:width$}  {}\n  {:width$}  # blocks {} of {}; now {} ({})\n",
                name(scope),
                yaml(&scope.fits),
                "",
                percent(scope.fits_blocked, scope.requests),
                number(scope.requests),
                percent(scope.has_blocked, scope.requests),
                yaml(&scope.has),
            ));
        }
        out
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let limits = |set: &LimitSet| -> Map<String, Value> {
            pairs(set).into_iter().map(|(key, limit)| (key.to_owned(), json!(limit))).collect()
        };
        let scopes = self.scopes.iter().map(|scope| {
            json!({
                "tier": scope.tier,
                "endpoint": scope.rule,
                "requests": scope.requests,
                "now": limits(&scope.has),
                "now_blocked": scope.has_blocked,
                "proposed": limits(&scope.fits),
                "proposed_blocked": scope.fits_blocked,
            })
        });
        json!({ "target": self.share, "scopes": scopes.collect::<Vec<Value>>() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn demands(callers: &[Vec<u64>]) -> Vec<Demand> {
        let mut demands = Vec::new();
        for (identity, steps) in (0..).zip(callers) {
            let mut at = 1_000_000_000_000_000;
            for step in steps {
                at += step * 1_000;
                demands.push(Demand { identity, cost: 1, at: Timestamp::from_micros(at) });
            }
        }
        demands
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn no_more_is_refused_than_may_be_and_less_would_refuse_more(
            callers in prop::collection::vec(prop::collection::vec(0..30_000_u64, 1..80), 1..8),
            percent in 0..60_u64,
        ) {
            let demands = demands(&callers);
            let most = demands.len() as u64 * percent / 100;
            for period in Period::SLIDING {
                let limit = fit_alone(&demands, period, most);
                prop_assert!(blocked(&demands, &with(LimitSet::default(), period, limit)) <= most);
                // Rounding takes up to a tenth; what is well below that refuses more.
                let less = limit * 8 / 10;
                if less >= 1 && less < limit {
                    let less = with(LimitSet::default(), period, less);
                    prop_assert!(blocked(&demands, &less) > most, "{limit} of {period:?}");
                }
            }
            let set = fit_together(&demands, &Period::SLIDING, most);
            prop_assert!(blocked(&demands, &set) <= most);
        }
    }

    #[test]
    fn numbers_are_rounded_to_two_digits() {
        for (limit, expected) in [(1, 1), (9, 9), (10, 10), (99, 99), (101, 110), (1_234, 1_300)] {
            assert_eq!(rounded(limit), expected);
        }
    }
}
