//! One scrape: the cells are added up, the sums published, the text written.
//!
//! Runs on the control thread; workers count on meanwhile and wait for nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::limiter::quota::Period;
use crate::limiter::time::Timestamp;
use crate::policy::identity::IdentifierType;
use crate::tls::certificate::days_left;

use super::exposition::{Family, assemble};
use super::handles::{Handles, Sums};
use super::histogram::{HistogramTotals, LIMITER_EDGES, OVERHEAD_EDGES, REQUEST_EDGES};
use super::labels::{CacheResult, Direction, ErrorType, LimitDecision, LimiterBackend, Outcome};
use super::names;
use super::registry::Metrics;
use super::series::{
    EndpointSeries, PairSeries, ScopeSeries, TierSeries, UpstreamSeries, endings, total,
    verdict_index,
};
use super::window::quantile;

/// The share of answers that [`names::P95`] speaks of.
const P95: f64 = 0.95;

impl Metrics {
    /// Everything in Prometheus's text format, as of `now`. A reading changes nothing: any number
    /// of scrapers see the same.
    pub fn render(&self, now: Timestamp) -> String {
        // In its own statement: the lock on names is not held while the text is made.
        let (endpoints, tiers, pairs, scopes, upstreams, pools, listeners, config_hash) = {
            let named = self.named.lock();
            let pairs: Vec<Arc<PairSeries>> = named.pairs.values().cloned().collect();
            (
                named.endpoints.all(),
                named.tiers.all(),
                pairs,
                named.scopes.all(),
                named.upstreams.all(),
                named.pools.all(),
                named.listeners.all(),
                named.config_hash.clone(),
            )
        };
        let handles = &self.handles;
        let mut sums = self.sums.lock();
        endpoints.iter().for_each(|it| publish_endpoint(handles, &mut sums, it, now));
        pairs.iter().for_each(|it| publish_pair(handles, &mut sums, it));
        scopes.iter().for_each(|it| publish_scope(handles, &mut sums, it));
        for pool in &pools {
            for (state, count) in pool.counts() {
                handles.gauge(&names::POOL_CONNECTIONS, &[&pool.name, state]).set(count as f64);
            }
        }
        let waiting: usize = pools.iter().map(|pool| pool.waiting()).sum();
        handles.gauge(&names::UPSTREAM_WAITING, &[]).set(waiting as f64);
        for listener in &listeners {
            let labels = [&*listener.name];
            let active = listener.active.count() as f64;
            handles.gauge(&names::CONNECTIONS_ACTIVE, &labels).set(active);
            let accepted = listener.accepted.load(Ordering::Relaxed);
            handles.counter(&names::CONNECTIONS, &labels).absolute(accepted);
            if let Some(end) = listener.certificate_end() {
                handles.gauge(&names::TLS_CERTIFICATE_EXPIRY, &labels).set(days_left(end, now));
            }
        }
        self.publish_process(handles);
        self.publish_tls(handles);
        let objects = self.objects(&endpoints, &listeners);
        self.publish_runtime(handles);

        let mut own = self.histograms(&endpoints, &upstreams);
        own.push(self.publish_checks());
        own.extend(self.histograms_of_pressure(&pools));
        own.push(remaining(&tiers, now));
        let mut hash = Family::new(&names::CONFIG_HASH);
        if !config_hash.is_empty() {
            hash.sample(&[&config_hash], 1);
        }
        own.push(hash);
        own.push(publish_system(handles));
        self.publish_memory();
        assemble(&self.exporter.render(), &own, objects)
    }

    fn publish_process(&self, handles: &Handles) {
        for direction in Direction::ALL {
            let sum = total(self.process.iter().filter_map(|cells| cells.bytes(*direction)));
            handles.counter(&names::BYTES, &[direction.as_str()]).absolute(sum);
        }
        for result in CacheResult::ALL {
            let cells = self.process.iter();
            let sum = total(cells.filter_map(|cells| cells.token_lookups.get(result.index())));
            handles.counter(&names::TOKEN_CACHE, &[result.as_str()]).absolute(sum);
        }
        handles.gauge(&names::IN_FLIGHT, &[]).set(self.requests_in_flight() as f64);
        handles.gauge(&names::REDIS_QUEUE, &[]).set(self.redis_queue() as f64);
    }

    fn histograms(
        &self,
        endpoints: &[Arc<EndpointSeries>],
        upstreams: &[Arc<UpstreamSeries>],
    ) -> Vec<Family> {
        let mut requests = Family::new(&names::REQUEST_DURATION);
        for endpoint in endpoints {
            for outcome in Outcome::ALL {
                let totals = endpoint.durations(*outcome);
                // Those that are common are there from the start, the others once they happen.
                let is_common = matches!(outcome, Outcome::Allowed | Outcome::Limited);
                if is_common || totals.count() > 0 {
                    requests.histogram(&[&endpoint.name, outcome.as_str()], REQUEST_EDGES, &totals);
                }
            }
        }
        let mut overhead = Family::new(&names::OVERHEAD);
        let totals = HistogramTotals::of(self.process.iter().map(|cells| &cells.overhead));
        overhead.histogram(&[], OVERHEAD_EDGES, &totals);
        let mut limiter = Family::new(&names::LIMITER_DURATION);
        for backend in LimiterBackend::ALL {
            let cells = self.process.iter();
            let totals =
                HistogramTotals::of(cells.filter_map(|cells| cells.limiter.get(backend.index())));
            limiter.histogram(&[backend.as_str()], LIMITER_EDGES, &totals);
        }
        let mut redis = Family::new(&names::REDIS_DURATION);
        let totals = HistogramTotals::of(self.process.iter().map(|cells| &cells.redis));
        redis.histogram(&[], LIMITER_EDGES, &totals);
        let mut durations = Family::new(&names::UPSTREAM_DURATION);
        let mut connects = Family::new(&names::UPSTREAM_CONNECT);
        for upstream in upstreams {
            let labels = [&*upstream.name];
            let cells = || upstream.cells.iter();
            let totals = HistogramTotals::of(cells().map(|cells| &cells.durations));
            durations.histogram(&labels, REQUEST_EDGES, &totals);
            let totals = HistogramTotals::of(cells().map(|cells| &cells.connects));
            connects.histogram(&labels, REQUEST_EDGES, &totals);
        }
        vec![requests, overhead, limiter, redis, durations, connects]
    }
}

fn publish_endpoint(
    handles: &Handles,
    sums: &mut Sums,
    endpoint: &Arc<EndpointSeries>,
    now: Timestamp,
) {
    let owner = Arc::as_ptr(endpoint).addr();
    let name = &*endpoint.name;
    for (index, (method, class, outcome)) in endings().enumerate() {
        let sum = total(endpoint.cells.iter().filter_map(|cells| cells.requests.get(index)));
        let labels = [name, method.as_str(), class.as_str(), outcome.as_str()];
        handles.publish(sums, &names::REQUESTS, (owner, index), sum, &labels);
    }
    for error in ErrorType::ALL {
        let index = error.index();
        let sum = total(endpoint.cells.iter().filter_map(|cells| cells.errors.get(index)));
        handles.publish(sums, &names::ERRORS, (owner, index), sum, &[error.as_str(), name]);
    }
    let rings = endpoint.cells.iter().map(|cells| &cells.latencies);
    handles.gauge(&names::P95, &[name]).set(quantile(rings, P95, now).unwrap_or(0.0));
    handles.gauge(&names::WEBSOCKETS, &[name]).set(endpoint.websockets.count() as f64);
}

fn publish_pair(handles: &Handles, sums: &mut Sums, pair: &Arc<PairSeries>) {
    let owner = Arc::as_ptr(pair).addr();
    for (index, kind) in IdentifierType::ALL.iter().enumerate() {
        let labels = [kind.as_str(), &pair.tier, &pair.endpoint];
        let hits = total(pair.cells.iter().filter_map(|cells| cells.hits.get(index)));
        handles.publish(sums, &names::HITS, (owner, index), hits, &labels);
        let blocks = total(pair.cells.iter().filter_map(|cells| cells.blocks.get(index)));
        handles.publish(sums, &names::BLOCKS, (owner, index), blocks, &labels);
    }
}

fn publish_scope(handles: &Handles, sums: &mut Sums, scope: &Arc<ScopeSeries>) {
    let owner = Arc::as_ptr(scope).addr();
    for period in Period::ALL {
        for decision in LimitDecision::ALL {
            let index = verdict_index(period, *decision);
            let sum = total(scope.cells.iter().filter_map(|cells| cells.verdicts.get(index)));
            let labels = [&*scope.name, period.as_str(), decision.as_str()];
            handles.publish(sums, &names::LIMIT_DECISIONS, (owner, index), sum, &labels);
        }
    }
}

fn remaining(tiers: &[Arc<TierSeries>], now: Timestamp) -> Family {
    let mut family = Family::new(&names::REMAINING);
    for tier in tiers {
        for (kind, lowest) in IdentifierType::ALL.iter().zip(&tier.lowest) {
            let value = lowest.lowest(now).map(u64::from).or_else(|| tier.ceiling());
            if let Some(value) = value {
                family.sample(&[kind.as_str(), &tier.name], value);
            }
        }
    }
    family
}

/// What the operating system says of the process. CPU time has fractions, which the recorder's
/// counters do not know, so that family is written here.
fn publish_system(handles: &Handles) -> Family {
    let process = metrics_process::collector::collect();
    let gauges = [
        (&names::PROCESS_START, process.start_time_seconds),
        (&names::PROCESS_FDS, process.open_fds),
        (&names::PROCESS_FDS_MAX, process.max_fds),
        (&names::PROCESS_RSS, process.resident_memory_bytes),
        (&names::PROCESS_VMS, process.virtual_memory_bytes),
        (&names::PROCESS_VMS_MAX, process.virtual_memory_max_bytes),
        (&names::PROCESS_THREADS, process.threads),
    ];
    for (desc, value) in gauges {
        if let Some(value) = value {
            handles.gauge(desc, &[]).set(value as f64);
        }
    }
    let mut cpu = Family::new(&names::PROCESS_CPU);
    if let Some(seconds) = process.cpu_seconds_total {
        cpu.sample(&[], seconds);
    }
    cpu
}
