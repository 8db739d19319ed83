//! The families whose labels a policy names: endpoints, tiers, rules.
//!
//! They are written from the cells on each scrape and kept nowhere else, so that a series is gone
//! with its cells.

use std::sync::Arc;

use crate::limiter::quota::Period;
use crate::limiter::time::Timestamp;
use crate::policy::identity::IdentifierType;

use super::exposition::Family;
use super::histogram::{HistogramTotals, REQUEST_EDGES, SHARE_EDGES};
use super::labels::{CodeClass, ErrorType, LimitDecision, MethodLabel, Outcome};
use super::names;
use super::registry::Metrics;
use super::series::{
    ENDINGS, EndpointSeries, PairSeries, ScopeSeries, TierSeries, ending_index, total,
    verdict_index,
};
use super::window::quantile;

/// The share of answers that [`names::P95`] speaks of.
const P95: f64 = 0.95;
/// Methods that every endpoint has series for; those of another one come with its first request.
const USUAL_METHODS: [MethodLabel; 2] = [MethodLabel::Get, MethodLabel::Post];
/// Ways of ending that every method of an endpoint has series for; the others come as they happen:
/// upgrades, what breaks off within a body, what is refused before there is an answer.
const USUAL_ENDINGS: [(CodeClass, Outcome); 9] = [
    (CodeClass::Success, Outcome::Allowed),
    (CodeClass::Redirection, Outcome::Allowed),
    (CodeClass::ClientError, Outcome::Allowed),
    (CodeClass::ClientError, Outcome::Limited),
    (CodeClass::ServerError, Outcome::UpstreamError),
    (CodeClass::ServerError, Outcome::ProxyError),
    (CodeClass::ServerError, Outcome::Shed),
    (CodeClass::Success, Outcome::ClientAbort),
    (CodeClass::None, Outcome::ClientAbort),
];
/// Outcomes that every endpoint has a histogram for; the others come once they happen.
const USUAL_OUTCOMES: [Outcome; 2] = [Outcome::Allowed, Outcome::Limited];

impl Metrics {
    pub(super) fn policy_families(
        &self,
        (endpoints, tiers): (&[Arc<EndpointSeries>], &[Arc<TierSeries>]),
        (pairs, scopes): (&[Arc<PairSeries>], &[Arc<ScopeSeries>]),
        now: Timestamp,
    ) -> Vec<Family> {
        let mut families = of_endpoints(endpoints, now);
        families.extend(self.of_pairs(pairs));
        families.push(of_scopes(scopes));
        families.extend(self.of_tiers(tiers, now));
        families
    }

    fn of_pairs(&self, pairs: &[Arc<PairSeries>]) -> [Family; 2] {
        let (mut hits, mut blocks) = (Family::new(&names::HITS), Family::new(&names::BLOCKS));
        for pair in pairs {
            for (index, kind) in IdentifierType::ALL.iter().enumerate() {
                let evaluated = total(pair.cells.iter().filter_map(|cells| cells.hits.get(index)));
                if evaluated > 0 || self.can_be(*kind) {
                    let labels = [kind.as_str(), &pair.tier, &pair.endpoint];
                    hits.sample(&labels, evaluated);
                    let cells = pair.cells.iter().filter_map(|cells| cells.blocks.get(index));
                    blocks.sample(&labels, total(cells));
                }
            }
        }
        [hits, blocks]
    }

    fn of_tiers(&self, tiers: &[Arc<TierSeries>], now: Timestamp) -> [Family; 5] {
        let mut remaining = Family::new(&names::REMAINING);
        let mut shares = Family::new(&names::REMAINING_RATIO);
        let mut units = Family::new(&names::USAGE_UNITS);
        let mut admitted = Family::new(&names::USAGE_REQUESTS);
        let mut denied = Family::new(&names::USAGE_DENIED);
        for tier in tiers {
            for (kind, lowest) in IdentifierType::ALL.iter().zip(&tier.lowest) {
                let untouched = || tier.ceiling().filter(|_| self.can_be(*kind));
                if let Some(value) = lowest.lowest(now).map(u64::from).or_else(untouched) {
                    remaining.sample(&[kind.as_str(), &tier.name], value);
                }
            }
            let totals = HistogramTotals::of(tier.cells.iter().map(|cells| &cells.shares));
            shares.histogram(&[&tier.name], SHARE_EDGES, &totals);
            units.sample(&[&tier.name], total(tier.cells.iter().map(|cells| &cells.units)));
            for (family, index) in [(&mut admitted, 0), (&mut denied, 1)] {
                let cells = tier.cells.iter().filter_map(|cells| cells.metered.get(index));
                family.sample(&[&tier.name], total(cells));
            }
        }
        [remaining, shares, units, admitted, denied]
    }
}

fn of_endpoints(endpoints: &[Arc<EndpointSeries>], now: Timestamp) -> Vec<Family> {
    let mut requests = Family::new(&names::REQUESTS);
    let mut errors = Family::new(&names::ERRORS);
    let mut p95 = Family::new(&names::P95);
    let mut websockets = Family::new(&names::WEBSOCKETS);
    let mut durations = Family::new(&names::REQUEST_DURATION);
    for endpoint in endpoints {
        let name = &*endpoint.name;
        requests_of(&mut requests, endpoint);
        for error in ErrorType::ALL {
            let cells = endpoint.cells.iter();
            let sum = total(cells.filter_map(|cells| cells.errors.get(error.index())));
            errors.sample(&[error.as_str(), name], sum);
        }
        let rings = endpoint.cells.iter().map(|cells| &cells.latencies);
        p95.sample(&[name], quantile(rings, P95, now).unwrap_or(0.0));
        websockets.sample(&[name], endpoint.websockets.count());
        for outcome in Outcome::ALL {
            let totals = endpoint.durations(*outcome);
            if USUAL_OUTCOMES.contains(outcome) || totals.count() > 0 {
                durations.histogram(&[name, outcome.as_str()], REQUEST_EDGES, &totals);
            }
        }
    }
    vec![requests, errors, p95, websockets, durations]
}

fn requests_of(requests: &mut Family, endpoint: &EndpointSeries) {
    let mut sums = [0_u64; ENDINGS];
    for cells in endpoint.cells.iter() {
        for (sum, cell) in sums.iter_mut().zip(&cells.requests) {
            *sum = sum.wrapping_add(total(std::iter::once(cell)));
        }
    }
    for method in MethodLabel::ALL {
        let sum_of = |class, outcome| {
            sums.get(ending_index(*method, class, outcome)).copied().unwrap_or_default()
        };
        let all = || {
            CodeClass::ALL
                .iter()
                .flat_map(|class| Outcome::ALL.iter().map(|outcome| (*class, *outcome)))
        };
        if !USUAL_METHODS.contains(method)
            && all().all(|(class, outcome)| sum_of(class, outcome) == 0)
        {
            continue;
        }
        for (class, outcome) in all() {
            let sum = sum_of(class, outcome);
            if sum > 0 || USUAL_ENDINGS.contains(&(class, outcome)) {
                let labels = [&*endpoint.name, method.as_str(), class.as_str(), outcome.as_str()];
                requests.sample(&labels, sum);
            }
        }
    }
}

fn of_scopes(scopes: &[Arc<ScopeSeries>]) -> Family {
    let mut family = Family::new(&names::LIMIT_DECISIONS);
    for scope in scopes {
        for period in Period::ALL {
            for decision in LimitDecision::ALL {
                let index = verdict_index(period, *decision);
                let cells = scope.cells.iter().filter_map(|cells| cells.verdicts.get(index));
                let sum = total(cells);
                if sum > 0 || scope.has(period) {
                    family.sample(&[&scope.name, period.as_str(), decision.as_str()], sum);
                }
            }
        }
    }
    family
}
