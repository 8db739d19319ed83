//! The counters of one compiled policy: from the indices of a plan to the cells of its series.
//!
//! Made once, when a policy is compiled. After that a request finds everything that it counts in
//! tables, by rule, tier and closed enums: no label, no hash, no lock, no allocation.

use std::sync::Arc;
use std::time::Duration;

use crate::limiter::decision::Decision;
use crate::limiter::quota::{LimitSet, Mode, Period};
use crate::limiter::time::Timestamp;
use crate::policy::compiled::{NO_RULE, Policy};
use crate::policy::identity::IdentifierType;
use crate::policy::plan::{Plan, RuleId, TierId};

use super::cells::{LevelGuard, PerShard};
use super::edge_labels::TunnelEvent;
use super::histogram::{OVERHEAD_EDGES, REQUEST_EDGES, SHARE_EDGES};
use super::labels::{
    CodeClass, Direction, Ending, ErrorType, LimitDecision, LimiterBackend, MethodLabel, QueryType,
};
use super::named::Named;
use super::names;
use super::registry::Metrics;
use super::series::{
    EndpointSeries, PairSeries, ScopeSeries, TierSeries, UpstreamSeries, count, count_many,
    ending_index, verdict_index,
};

/// What the `rule` label calls the tier's own limits.
const TIER_RULE: &str = "tier";
/// The parts of a limit of which one that is left is near its end.
const NEAR: u64 = 5;

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

/// As what a request counts for billing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metered {
    /// It was let through.
    Admitted = 0,
    /// A limit has refused it.
    Denied = 1,
}

/// One request, when it is over.
#[derive(Clone, Copy, Debug)]
pub struct RequestRecord<'a> {
    /// The rule that names it.
    pub endpoint: Option<RuleId>,
    /// Whose limits were evaluated; `None` where none were asked: exempt, malformed, shed.
    pub evaluated: Option<(TierId, IdentifierType)>,
    /// What it has spent; 0 if nothing, or if it was given back.
    pub units: u32,
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
        let rules = || policy.rules().iter();
        named.endpoints.begin(rules().map(|rule| &*rule.name).chain([NO_RULE]));
        named.scopes.begin(rules().map(|rule| &*rule.name).chain([TIER_RULE]));
        named.tiers.begin(policy.tiers().iter().map(|tier| &*tier.name));
        let thresholds = rules().map(|rule| (&*rule.name, rule.slow_threshold));
        let endpoints: Box<[Endpoint]> = thresholds
            .chain([(NO_RULE, None)])
            .map(|(name, own)| Endpoint {
                series: named.endpoints.get(name, |name| EndpointSeries::new(name, shards)),
                slow_after: own.unwrap_or(slow_after),
            })
            .collect();
        let tiers: Box<[Arc<TierSeries>]> = policy
            .tiers()
            .iter()
            .map(|tier| {
                let series = named.tiers.get(&tier.name, |name| TierSeries::new(name, shards));
                series.set_ceiling(untouched(&tier.limits));
                series
            })
            .collect();
        // A tier that was given up has nothing to show once its last callers are a minute ago.
        named.tiers.gone().for_each(|gone| gone.set_ceiling(None));
        let rule_limits = rules().map(|rule| rule.limits.iter().flatten().collect());
        let tier_limits = policy.tiers().iter().map(|tier| &tier.limits).collect();
        let limits: Vec<Vec<&LimitSet>> = rule_limits.chain([tier_limits]).collect();
        let scopes = rules().map(|rule| &*rule.name).chain([TIER_RULE]);
        let scopes: Box<[Arc<ScopeSeries>]> = scopes
            .zip(&limits)
            .map(|(name, limits)| {
                let series = named.scopes.get(name, |name| ScopeSeries::new(name, shards));
                series.set_periods(Period::ALL.into_iter().filter(|period| has(limits, *period)));
                series
            })
            .collect();
        let pairs = pairs(&mut named, &endpoints, &tiers, shards);
        named.drop_pairs();
        let dropped = [
            ("endpoint", named.endpoints.newly_folded()),
            ("tier", named.tiers.newly_folded()),
            ("rule", named.scopes.newly_folded()),
        ];
        drop(named);

        for desc in names::ALL {
            let folded = dropped.iter().filter(|(label, _)| desc.labels.contains(label));
            let folded: Vec<u64> = folded.map(|(_, count)| *count).collect();
            if !folded.is_empty() {
                let counter = metrics.handles.counter(&names::SERIES_DROPPED, &[desc.name]);
                counter.increment(folded.iter().sum());
            }
        }
        PolicyMetrics { metrics: Arc::clone(metrics), endpoints, tiers, pairs, scopes }
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
        if request.units > 0
            && let Some(tier) = request.evaluated.and_then(|(tier, _)| self.tier(tier))
        {
            let units = u64::from(request.units);
            tier.cells.with_own(|cells| count_many(std::slice::from_ref(&cells.units), 0, units));
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

    /// Counts what a request was for billing, when it is over.
    pub fn metered(&self, tier: TierId, metered: Metered) {
        if let Some(tier) = self.tier(tier) {
            tier.cells.with_own(|cells| count(&cells.metered, metered as usize));
        }
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
        if cfg!(feature = "without-signals") {
            return;
        }
        self.metrics.limiter_checked(backend, took);
        let mut tightest = None;
        for status in decision.statuses() {
            let (left, limit) = (u64::from(status.remaining), u64::from(status.limit));
            let has_room = status.wait.is_zero();
            let verdict = match status.mode {
                _ if has_room => LimitDecision::Allow,
                Mode::Enforce => LimitDecision::Block,
                Mode::Shadow => LimitDecision::ShadowBlock,
            };
            let rule = plan.scope(status.scope).and_then(|scope| scope.rule);
            let scope = match rule {
                Some(rule) => self.scopes.get(usize::from(rule.0)),
                None => self.scopes.last(),
            };
            if let Some(scope) = scope {
                scope.cells.with_own(|cells| {
                    count(&cells.verdicts, verdict_index(status.period, verdict));
                    if has_room && left.saturating_mul(NEAR) <= limit {
                        let near = verdict_index(status.period, LimitDecision::Near);
                        count(&cells.verdicts, near);
                    }
                });
            }
            if status.mode == Mode::Enforce && is_tighter((left, limit), tightest) {
                tightest = Some((left, limit));
            }
        }
        let Some(tier) = self.tier(plan.tier) else { return };
        if let Some(share) = tightest.and_then(billionths) {
            tier.cells.with_own(|cells| cells.shares.record_billionths(SHARE_EDGES, share));
        }
        let lowest = tier.lowest.get(plan.identity.identifier_type() as usize);
        if let (Some(lowest), Some(shown)) = (lowest, decision.shown()) {
            lowest.observe(shown.remaining, at);
        }
    }

    /// A connection was upgraded; it is open until the guard is dropped, reloads or not.
    pub fn websocket_opened(&self, endpoint: Option<RuleId>) -> Option<LevelGuard> {
        self.metrics.tunnel_event(TunnelEvent::Open);
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

    fn tier(&self, tier: TierId) -> Option<&TierSeries> {
        self.tiers.get(usize::from(tier.0)).map(Arc::as_ref)
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
}

/// Whether the share of the first is the smaller one.
fn is_tighter(one: (u64, u64), other: Option<(u64, u64)>) -> bool {
    // Both of them are numbers of 32 bits.
    other.is_none_or(|other| one.0.saturating_mul(other.1) < other.0.saturating_mul(one.1))
}

/// The share, in billionths.
fn billionths((left, limit): (u64, u64)) -> Option<u64> {
    left.saturating_mul(1_000_000_000).checked_div(limit)
}

fn has(limits: &[&LimitSet], period: Period) -> bool {
    limits.iter().any(|set| set.quota_and_limit(period).is_some())
}

/// What an identity has left that has sent nothing: its tightest window, or else its burst.
fn untouched(limits: &LimitSet) -> Option<u32> {
    let windows =
        [limits.minute, limits.hour, limits.day, limits.month].into_iter().flatten().min();
    windows.or(limits.second.map(|bucket| bucket.burst)).map(std::num::NonZeroU32::get)
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
