//! One scrape: the cells are added up, the sums published, the text written.
//!
//! Runs on the control thread; workers count on meanwhile and wait for nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::limiter::time::Timestamp;
use crate::tls::certificate::days_left;

use super::edge_labels::CacheResult;
use super::exposition::{Family, assemble};
use super::handles::Handles;
use super::histogram::{HistogramTotals, LIMITER_EDGES, OVERHEAD_EDGES, REQUEST_EDGES};
use super::labels::{Direction, LimiterBackend};
use super::names;
use super::registry::Metrics;
use super::series::{PairSeries, UpstreamSeries, total};

impl Metrics {
    /// Everything in Prometheus's text format, as of `now`. A reading changes nothing: any number
    /// of scrapers see the same.
    pub fn render(&self, now: Timestamp) -> String {
        // In its own statement: the lock on names is not held while the text is made.
        let (endpoints, tiers, pairs, scopes, upstreams, pools, listeners, config_hash) = {
            let mut named = self.named.lock();
            named.expire(now);
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

        let mut own = self.policy_families((&endpoints, &tiers), (&pairs, &scopes), now);
        own.extend(self.histograms(&upstreams));
        own.push(self.publish_checks());
        own.extend(self.histograms_of_pressure(&pools));
        own.push(self.publish_tunnels(handles));
        let mut alone = Family::new(&names::OVER_ADMISSION);
        alone.sample(
            &[],
            self.process.iter().map(|cells| cells.admitted_alone.count(now)).sum::<u64>(),
        );
        own.push(alone);
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

    fn histograms(&self, upstreams: &[Arc<UpstreamSeries>]) -> Vec<Family> {
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
        vec![overhead, limiter, redis, durations, connects]
    }
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
