//! The counters of one compiled policy: from the indices of a plan to the cells of its series.
//!
//! Made once, when a policy is compiled. After that a request finds everything that it counts in
//! tables, by rule, tier and closed enums: no label, no hash, no lock, no allocation.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::limiter::decision::Decision;
use crate::limiter::quota::{LimitSet, Mode, Period};
use crate::limiter::time::Timestamp;
use crate::policy::compiled::{NO_RULE, Policy};
use crate::policy::identity::IdentifierType;
use crate::policy::plan::{Plan, RuleId, TierId};

use super::cells::{LevelGuard, PerShard};
use super::handles::Handles;
use super::histogram::{OVERHEAD_EDGES, REQUEST_EDGES};
use super::labels::{
    CodeClass, Direction, Ending, ErrorType, LimitDecision, LimiterBackend, MethodLabel, Outcome,
    QueryType,
};
use super::names;
use super::registry::{Metrics, Named};
use super::series::{
    EndpointSeries, PairSeries, ScopeSeries, TierSeries, UpstreamSeries, count, ending_index,
    verdict_index,
};

/// What the `rule` label calls the tier's own limits.
const TIER_RULE: &str = "tier";
/// Pairs of tier and endpoint up to which every kind of identity is there from the start; beyond
/// it addresses only, and the others once they are seen.
const PAIRS_WITH_ALL_KINDS_MAX: usize = 250;

/// The counters of one policy.
#[derive(Debug)]
pub struct PolicyMetrics {
    metrics: Arc<Metrics>,
    /// By rule; the last is for requests that no rule matched.
    endpoints: Box<[Endpoint]>,
    tiers: Box<[Arc<TierSeries>]>,
    /// By endpoint, then tier.
    pairs: Box<[Arc<PairSeries>]>,
    /// By rule; the last is the tier's own.
    scopes: Box<[Arc<ScopeSeries>]>,
}

#[derive(Debug)]
struct Endpoint {
    series: Arc<EndpointSeries>,
    slow_after: Duration,
}

/// One request, when it is over.
#[derive(Clone, Copy, Debug)]
pub struct RequestRecord<'a> {
    /// The rule that names it.
    pub endpoint: Option<RuleId>,
    /// Whose limits were evaluated; `None` where none were asked: exempt, malformed, shed.
    pub evaluated: Option<(TierId, IdentifierType)>,
    /// Its method.
    pub method: MethodLabel,
    /// The status of the answer; 0 if none was begun.
    pub status: u16,
    /// How it ended.
    pub ending: Ending,
    /// When it ended.
    pub at: Timestamp,
    /// From its head to the end of its answer; for an upgrade, to its 101.
    pub duration: Duration,
    /// What of it was spent in tollgate itself, waiting for no one; `None` if that is not known.
    pub overhead: Option<Duration>,
    /// Who was asked, and the time to the head of the answer, if one came.
    pub upstream: Option<(&'a UpstreamSeries, Duration)>,
    /// Body bytes from the caller.
    pub bytes_in: u64,
    /// Body bytes to the caller.
    pub bytes_out: u64,
}

impl PolicyMetrics {
    /// Finds or makes every series that the policy needs. A rule without a threshold of its own
    /// counts an upstream's answer as slow after `slow_after`.
    pub fn new(metrics: &Arc<Metrics>, policy: &Policy, slow_after: Duration) -> Self {
        let shards = metrics.shards;
        let mut named = metrics.named.lock();
        let rules = policy.rules().iter();
        let thresholds = rules.clone().map(|rule| rule.slow_threshold.unwrap_or(slow_after));
        let (mut dropped, mut folded) = (0_u64, BTreeSet::new());
        // A policy that comes again folds nothing anew.
        let known = std::mem::take(&mut named.folded);
        let mut endpoint = |name: &str, slow_after| {
            let series = named.endpoints.get(name, |name| EndpointSeries::new(name, shards));
            if *series.name != *name {
                dropped = dropped.saturating_add(u64::from(!known.contains(name)));
                folded.insert(name.into());
            }
            Endpoint { series, slow_after }
        };
        let mut endpoints: Vec<Endpoint> =
            rules.zip(thresholds).map(|(rule, slow)| endpoint(&rule.name, slow)).collect();
        endpoints.push(endpoint(NO_RULE, slow_after));
        named.folded = folded;
        let tiers: Box<[Arc<TierSeries>]> = policy
            .tiers()
            .iter()
            .map(|tier| {
                let series = named.tiers.get(&tier.name, TierSeries::new);
                series.set_ceiling(untouched(&tier.limits));
                series
            })
            .collect();
        // A tier that was given up has nothing to show once its last callers are a minute ago.
        for gone in
            named.tiers.all().iter().filter(|it| !tiers.iter().any(|tier| Arc::ptr_eq(tier, it)))
        {
            gone.set_ceiling(None);
        }
        let pairs = pairs(&mut named, &endpoints, &tiers, shards);
        let rule_names = policy.rules().iter().map(|rule| &*rule.name);
        let scopes =
            rule_names.chain([TIER_RULE]).map(|name| scope(&mut named, name, shards)).collect();
        drop(named);

        let made = PolicyMetrics {
            metrics: Arc::clone(metrics),
            endpoints: endpoints.into(),
            tiers,
            pairs,
            scopes,
        };
        let handles = &metrics.handles;
        made.show_from_the_start(handles, policy);
        for desc in names::ALL.iter().filter(|desc| desc.labels.contains(&"endpoint")) {
            handles.counter(&names::SERIES_DROPPED, &[desc.name]).increment(dropped);
        }
        made
    }

    /// Counts a request that is over. To be called once for each, on every way out.
    pub fn record(&self, request: &RequestRecord<'_>) {
        let outcome = request.ending.outcome();
        let class = CodeClass::of(request.status);
        if let Some(endpoint) = self.endpoint(request.endpoint) {
            endpoint.series.cells.with_own(|cells| {
                count(&cells.requests, ending_index(request.method, class, outcome));
                if let Some(error) = request.ending.error_type() {
                    count(&cells.errors, error.index());
                }
                if let Some(durations) = cells.durations.get(outcome.index()) {
                    durations.record(REQUEST_EDGES, request.duration);
                }
                cells.latencies.record(request.duration, request.at);
            });
            if request.upstream.is_some_and(|(_, after)| after > endpoint.slow_after) {
                self.metrics.slow_query(QueryType::Upstream);
            }
        }
        if let Some((tier, kind)) = request.evaluated
            && let Some(pair) = self.pair(request.endpoint, tier)
        {
            pair.cells.with_own(|cells| {
                count(&cells.hits, kind as usize);
                if request.ending == Ending::RateLimited {
                    count(&cells.blocks, kind as usize);
                }
            });
        }
        if request.ending == Ending::UpstreamTimeout {
            self.metrics.query_timed_out(QueryType::Upstream);
        }
        if let Some((upstream, after)) = request.upstream {
            upstream.answered(after);
        }
        self.metrics.process.with_own(|cells| {
            if let Some(overhead) = request.overhead {
                cells.overhead.record(OVERHEAD_EDGES, overhead);
            }
            cells.add_bytes(Direction::In, request.bytes_in);
            cells.add_bytes(Direction::Out, request.bytes_out);
        });
    }

    /// Counts a decision: the time it took, each limit's verdict, and what was left at `at` by
    /// this process's clock.
    pub fn decided(
        &self,
        plan: &Plan<'_>,
        decision: &Decision,
        backend: LimiterBackend,
        took: Duration,
        at: Timestamp,
    ) {
        self.metrics.limiter_checked(backend, took);
        for status in decision.statuses() {
            let verdict = match status.mode {
                _ if status.wait.is_zero() => LimitDecision::Allow,
                Mode::Enforce => LimitDecision::Block,
                Mode::Shadow => LimitDecision::ShadowBlock,
            };
            let rule = plan.scope(status.scope).and_then(|scope| scope.rule);
            let scope = match rule {
                Some(rule) => self.scopes.get(usize::from(rule.0)),
                None => self.scopes.last(),
            };
            if let Some(scope) = scope {
                let index = verdict_index(status.period, verdict);
                scope.cells.with_own(|cells| count(&cells.verdicts, index));
            }
        }
        let kind = plan.identity.identifier_type() as usize;
        let lowest = self.tiers.get(usize::from(plan.tier.0)).and_then(|it| it.lowest.get(kind));
        if let (Some(lowest), Some(shown)) = (lowest, decision.shown()) {
            lowest.observe(shown.remaining, at);
        }
    }

    /// A connection was upgraded; it is open until the guard is dropped, reloads or not.
    pub fn websocket_opened(&self, endpoint: Option<RuleId>) -> Option<LevelGuard> {
        self.endpoint(endpoint).map(|endpoint| endpoint.series.websockets.enter())
    }

    /// What the label `endpoint` calls the requests that this rule names, and the time to the head
    /// of the upstream's answer above which one of them counts as slow.
    pub fn slow_after(&self, endpoint: Option<RuleId>) -> (&str, Duration) {
        let endpoint = self.endpoint(endpoint);
        endpoint.map_or((NO_RULE, Duration::MAX), |it| (&it.series.name, it.slow_after))
    }

    /// An invalid credential was passed over (`on_invalid: ip`), so that the request went on.
    pub fn credential_invalid(&self, endpoint: Option<RuleId>) {
        if let Some(endpoint) = self.endpoint(endpoint) {
            let index = ErrorType::AuthInvalid.index();
            endpoint.series.cells.with_own(|cells| count(&cells.errors, index));
        }
    }

    fn endpoint_index(&self, rule: Option<RuleId>) -> usize {
        let last = self.endpoints.len().saturating_sub(1);
        rule.map_or(last, |rule| usize::from(rule.0).min(last))
    }

    fn endpoint(&self, rule: Option<RuleId>) -> Option<&Endpoint> {
        self.endpoints.get(self.endpoint_index(rule))
    }

    fn pair(&self, rule: Option<RuleId>, tier: TierId) -> Option<&PairSeries> {
        let row = self.endpoint_index(rule).checked_mul(self.tiers.len())?;
        self.pairs.get(row.checked_add(usize::from(tier.0))?).map(Arc::as_ref)
    }

    /// Makes the series that are sure to come, at zero: a rate cannot see the first increment of
    /// a series that was not there before.
    fn show_from_the_start(&self, handles: &Handles, policy: &Policy) {
        for Endpoint { series, .. } in &self.endpoints {
            for method in [MethodLabel::Get, MethodLabel::Post] {
                for (class, outcome) in [
                    (CodeClass::Success, Outcome::Allowed),
                    (CodeClass::ClientError, Outcome::Allowed),
                    (CodeClass::ServerError, Outcome::UpstreamError),
                    (CodeClass::ClientError, Outcome::Limited),
                ] {
                    let rest = [method.as_str(), class.as_str(), outcome.as_str()];
                    let [method, class, outcome] = rest;
                    handles.show(&names::REQUESTS, &[&series.name, method, class, outcome]);
                }
            }
            for error in ErrorType::ALL {
                handles.show(&names::ERRORS, &[error.as_str(), &series.name]);
            }
        }
        let all_kinds = self.pairs.len() <= PAIRS_WITH_ALL_KINDS_MAX;
        let kinds = IdentifierType::ALL;
        for kind in kinds.iter().filter(|kind| all_kinds || **kind == IdentifierType::Ip) {
            for pair in &self.pairs {
                let labels = [kind.as_str(), &pair.tier, &pair.endpoint];
                handles.show(&names::HITS, &labels);
                handles.show(&names::BLOCKS, &labels);
            }
        }
        let rule_limits = policy.rules().iter().map(|rule| rule.limits.iter().flatten().collect());
        let tier_limits = policy.tiers().iter().map(|tier| &tier.limits).collect();
        let limits = rule_limits.chain([tier_limits]);
        for (scope, limits) in self.scopes.iter().zip(limits) {
            let limits: Vec<&LimitSet> = limits;
            for period in Period::ALL.iter().filter(|period| has(&limits, **period)) {
                for decision in LimitDecision::ALL {
                    let labels = [&*scope.name, period.as_str(), decision.as_str()];
                    handles.show(&names::LIMIT_DECISIONS, &labels);
                }
            }
        }
    }
}

fn has(limits: &[&LimitSet], period: Period) -> bool {
    limits.iter().any(|set| match period {
        Period::Second => set.second.is_some(),
        Period::Minute => set.minute.is_some(),
        Period::Hour => set.hour.is_some(),
    })
}

/// What an identity has left that has sent nothing: its tightest window, or else its burst.
fn untouched(limits: &LimitSet) -> Option<u32> {
    let windows = [limits.minute, limits.hour].into_iter().flatten().min();
    windows.or(limits.second.map(|bucket| bucket.burst)).map(std::num::NonZeroU32::get)
}

fn scope(named: &mut Named, name: &str, shards: usize) -> Arc<ScopeSeries> {
    let make = |name: &str| ScopeSeries { name: name.into(), cells: PerShard::new(shards) };
    named.scopes.get(name, make)
}

fn pairs(
    named: &mut Named,
    endpoints: &[Endpoint],
    tiers: &[Arc<TierSeries>],
    shards: usize,
) -> Box<[Arc<PairSeries>]> {
    let labels = endpoints.iter().flat_map(|endpoint| {
        tiers.iter().map(|tier| (tier.name.clone(), endpoint.series.name.clone()))
    });
    labels
        .map(|(tier, endpoint)| {
            let entry = named.pairs.entry((tier.clone(), endpoint.clone()));
            let make = || PairSeries { tier, endpoint, cells: PerShard::new(shards) };
            Arc::clone(entry.or_insert_with(|| Arc::new(make())))
        })
        .collect()
}
