//! Handles of the exporter's recorder, for what happens rarely and for the sums of a scrape.

use std::fmt;

use metrics::{Counter, Gauge, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::PrometheusRecorder;

use super::edge_labels::{
    AdminChange, AdminRefusal, CutReason, IdentityError, LeaseResult, LeaseTokens, OverrideKind,
    RefusalReason, RetryReason, SelfServiceResult, ShedReason, TunnelEvent,
};
use super::exposition::for_exporter;
use super::labels::{Attempt, FallbackMode, FallbackReason, QueryType, RedisErrorKind};
use super::names::{self, Desc, Kind};

const METADATA: Metadata<'static> = Metadata::new("tollgate", Level::INFO, None);

/// Tells the recorder the help and unit of every metric that it writes.
pub(super) fn describe_all(recorder: &PrometheusRecorder) {
    for desc in names::ALL {
        let (name, unit, help) = (desc.name.into(), Some(desc.unit), desc.help.into());
        match desc.kind {
            Kind::Counter => recorder.describe_counter(name, unit, help),
            Kind::Gauge => recorder.describe_gauge(name, unit, help),
            Kind::Histogram => {}
        }
    }
}

/// A local recorder. Registering takes a lock of one of its many shards for an instant, so a
/// worker may do it too.
pub(super) struct Handles {
    recorder: PrometheusRecorder,
}

impl Handles {
    pub(super) fn new(recorder: PrometheusRecorder) -> Self {
        Handles { recorder }
    }

    /// The counter with these labels; it is shown from now on.
    pub(super) fn counter(&self, desc: &'static Desc, labels: &[&str]) -> Counter {
        debug_assert_eq!(desc.kind, Kind::Counter, "{}", desc.name);
        self.recorder.register_counter(&key(desc, labels), &METADATA)
    }

    /// The gauge with these labels; it is shown from now on.
    pub(super) fn gauge(&self, desc: &'static Desc, labels: &[&str]) -> Gauge {
        debug_assert_eq!(desc.kind, Kind::Gauge, "{}", desc.name);
        self.recorder.register_gauge(&key(desc, labels), &METADATA)
    }

    /// Makes the counter with these labels, at zero, so that a rate sees its first increment.
    pub(super) fn show(&self, desc: &'static Desc, labels: &[&str]) {
        self.counter(desc, labels).increment(0);
    }
}

impl fmt::Debug for Handles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handles").finish_non_exhaustive()
    }
}

fn key(desc: &'static Desc, labels: &[&str]) -> Key {
    debug_assert_eq!(desc.labels.len(), labels.len(), "{}", desc.name);
    let pairs = desc.labels.iter().zip(labels);
    let labels: Vec<Label> =
        pairs.map(|(label, value)| Label::new(*label, for_exporter(value))).collect();
    Key::from_parts(desc.name, labels)
}

/// What happens rarely enough for the exporter's own counters, all there from the start.
pub(super) struct Events {
    pub(super) fallbacks: Box<[Counter]>,
    pub(super) redis_errors: Box<[Counter]>,
    pub(super) redis_reconnects: Counter,
    pub(super) deny_cache_hits: Counter,
    pub(super) late_replies: Counter,
    pub(super) outage_admitted: Counter,
    pub(super) outage_charged: Counter,
    pub(super) leases: Box<[Counter]>,
    pub(super) lease_tokens: Box<[Counter]>,
    pub(super) slow: Box<[Counter]>,
    pub(super) timeouts: Box<[Counter]>,
    pub(super) refused: Box<[Counter]>,
    pub(super) http2_cut: Box<[Counter]>,
    pub(super) identity_errors: Box<[Counter]>,
    pub(super) reloads: Box<[Counter]>,
    pub(super) admin_refused: Box<[Counter]>,
    pub(super) admin_changes: Box<[Counter]>,
    pub(super) self_service: Box<[Counter]>,
    pub(super) tunnels: Box<[Counter]>,
    pub(super) upstream_retries: Box<[Counter]>,
    pub(super) upstream_retries_skipped: Counter,
    pub(super) degraded: Gauge,
}

impl Events {
    pub(super) fn new(handles: &Handles) -> Self {
        let each = |desc: &'static Desc, values: &[&str]| -> Box<[Counter]> {
            values.iter().map(|value| handles.counter(desc, &[value])).collect()
        };
        let queries: Vec<&str> = QueryType::ALL.iter().map(|it| it.as_str()).collect();
        let kinds: Vec<&str> = RedisErrorKind::ALL.iter().map(|it| it.as_str()).collect();
        let refusals: Vec<&str> = RefusalReason::ALL.iter().map(|it| it.as_str()).collect();
        let cuts: Vec<&str> = CutReason::ALL.iter().map(|it| it.as_str()).collect();
        let identity: Vec<&str> = IdentityError::ALL.iter().map(|it| it.as_str()).collect();
        let reloads: Vec<&str> = Attempt::ALL.iter().map(|it| it.as_str()).collect();
        let refused: Vec<&str> = AdminRefusal::ALL.iter().map(|it| it.as_str()).collect();
        let changes: Vec<&str> = AdminChange::ALL.iter().map(|it| it.as_str()).collect();
        let answers: Vec<&str> = SelfServiceResult::ALL.iter().map(|it| it.as_str()).collect();
        let leases: Vec<&str> = LeaseResult::ALL.iter().map(|it| it.as_str()).collect();
        let lease_tokens: Vec<&str> = LeaseTokens::ALL.iter().map(|it| it.as_str()).collect();
        handles.gauge(&names::LEASE_TOKENS_HELD, &[]).set(0.0);
        for kind in OverrideKind::ALL {
            handles.gauge(&names::OVERRIDES, &[kind.as_str()]).set(0.0);
        }
        let retries: Vec<&str> = RetryReason::ALL.iter().map(|it| it.as_str()).collect();
        let tunnels: Vec<&str> = TunnelEvent::ALL.iter().map(|it| it.as_str()).collect();
        // Nothing is shed yet, and nothing limits what is in flight.
        for reason in ShedReason::ALL {
            handles.show(&names::SHED, &[reason.as_str()]);
        }
        handles.gauge(&names::CONCURRENCY_LIMIT, &[]).set(0.0);
        for gauge in [&names::USAGE_FLUSH_LAG, &names::USAGE_JOURNAL] {
            handles.gauge(gauge, &[]).set(0.0);
        }
        for counter in [&names::USAGE_WRITTEN, &names::USAGE_ERRORS, &names::USAGE_LOST] {
            handles.show(counter, &[]);
        }
        let fallbacks = FallbackMode::ALL.iter().flat_map(|mode| {
            FallbackReason::ALL.iter().map(|reason| [mode.as_str(), reason.as_str()])
        });
        Events {
            fallbacks: fallbacks
                .map(|labels| handles.counter(&names::LIMITER_FALLBACK, &labels))
                .collect(),
            redis_errors: each(&names::REDIS_ERRORS, &kinds),
            redis_reconnects: handles.counter(&names::REDIS_RECONNECTS, &[]),
            deny_cache_hits: handles.counter(&names::DENY_CACHE_HITS, &[]),
            late_replies: handles.counter(&names::LATE_REPLIES, &[]),
            outage_admitted: handles.counter(&names::OUTAGE_ADMITTED, &[]),
            outage_charged: handles.counter(&names::OUTAGE_CHARGED, &[]),
            leases: each(&names::LEASES, &leases),
            lease_tokens: each(&names::LEASE_TOKENS, &lease_tokens),
            slow: each(&names::SLOW_QUERIES, &queries),
            timeouts: each(&names::QUERY_TIMEOUTS, &queries),
            refused: each(&names::CONNECTIONS_REFUSED, &refusals),
            http2_cut: each(&names::HTTP2_CUT, &cuts),
            identity_errors: each(&names::IDENTITY_ERRORS, &identity),
            reloads: each(&names::CONFIG_RELOADS, &reloads),
            admin_refused: each(&names::ADMIN_REFUSED, &refused),
            self_service: each(&names::SELF_SERVICE, &answers),
            admin_changes: each(&names::ADMIN_CHANGES, &changes),
            tunnels: each(&names::TUNNEL_EVENTS, &tunnels),
            upstream_retries: each(&names::UPSTREAM_RETRIES, &retries),
            upstream_retries_skipped: handles.counter(&names::UPSTREAM_RETRIES_SKIPPED, &[]),
            degraded: handles.gauge(&names::DEGRADED, &[]),
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

/// One more, where there is such a counter; the indices are made of closed enums, so there is.
pub(super) fn increment(counters: &[Counter], index: usize) {
    if let Some(counter) = counters.get(index) {
        counter.increment(1);
    }
}

/// Sets each counter to the total beside it.
pub(super) fn set_all(counters: &[Counter], totals: &[u64]) {
    for (counter, total) in counters.iter().zip(totals) {
        counter.absolute(*total);
    }
}
