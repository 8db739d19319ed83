//! The process's metrics: where series are found by name, and what is counted without a policy.
//!
//! Series outlive the policies that use them. Their number is bounded whatever configurations
//! come and go: names beyond the bound share `other`, and are counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;

use crate::limiter::time::Timestamp;
use crate::policy::identity::IdentifierType;

use super::cells::{Level, LevelGuard, PerShard};
use super::edge_labels::{
    CutReason, IdentityError, LeaseResult, LeaseTokens, PoolState, RefusalReason, RetryReason,
};
use super::handles::{Events, Handles, describe_all, increment, set_all};
use super::histogram::{HistogramTotals, LIMITER_EDGES};
use super::labels::{
    Attempt, BreakerState, Dependency, FallbackMode, FallbackReason, LimiterBackend, LimiterMode,
    LookupResult, QueryType, RedisErrorKind,
};
use super::memory::MemoryCells;
use super::named::Named;
use super::names;
use super::runtime::RuntimeCells;
use super::series::{ListenerSeries, PoolSeries, ProcessCells, UpstreamSeries};
use super::tls::TlsCells;

/// What is running.
#[derive(Clone, Copy, Debug)]
pub struct Build {
    /// tollgate's version.
    pub version: &'static str,
    /// The commit it was built from, or `unknown`.
    pub commit: &'static str,
    /// The compiler, or `unknown`.
    pub rustc: &'static str,
}

/// What the store in Redis counts by itself: totals since the start, and the present queue.
#[derive(Clone, Copy, Debug, Default)]
pub struct RedisFigures {
    /// Checks that wait for an answer.
    pub queue: u64,
    /// Failures, by kind.
    pub errors: [u64; RedisErrorKind::COUNT],
    /// Decisions made without Redis, by mode and reason.
    pub fallbacks: [[u64; FallbackReason::COUNT]; FallbackMode::COUNT],
    /// Connections made anew.
    pub reconnects: u64,
    /// Requests that were denied without asking again.
    pub denied_from_cache: u64,
    /// Answers that came too late.
    pub late_replies: u64,
    /// Replicas, as far as is known.
    pub replicas: u32,
    /// Requests that were let pass by this replica's share.
    pub admitted_alone: u64,
    /// Charges for them.
    pub charged: u64,
    /// Leases that were asked for, by what came of it.
    pub leases: [u64; LeaseResult::COUNT],
    /// Their tokens, by where they went.
    pub lease_tokens: [u64; LeaseTokens::COUNT],
    /// Tokens that are held now.
    pub lease_tokens_held: u64,
    /// Changes of the circuit breaker, by the state that it came to.
    pub transitions: [u64; BreakerState::COUNT],
}

/// What look-ups in the database of subscriptions count by themselves: totals since the start, and
/// the present queue and connections.
#[derive(Clone, Copy, Debug, Default)]
pub struct DatabaseFigures {
    /// Look-ups that wait for a connection.
    pub queue: u64,
    /// How long look-ups have waited for a connection.
    pub waits: HistogramTotals,
    /// Connections in use.
    pub active: usize,
    /// Connections that wait to be used.
    pub idle: usize,
    /// Requests by what they came to know.
    pub results: [u64; LookupResult::COUNT],
    /// Look-ups that were not answered in time.
    pub timeouts: u64,
    /// Look-ups that took longer than their threshold.
    pub slow: u64,
    /// Changes of the circuit breaker, by the state that it came to.
    pub transitions: [u64; BreakerState::COUNT],
}

/// Every metric of this process. Tests may have several.
#[derive(Debug)]
pub struct Metrics {
    pub(super) shards: usize,
    pub(super) process: PerShard<ProcessCells>,
    pub(super) events: Events,
    in_flight: Level,
    pub(super) runtime: Arc<RuntimeCells>,
    pub(super) tls: TlsCells,
    pub(super) memory: MemoryCells,
    redis_queue: AtomicU64,
    /// As last published; none without a database.
    pub(super) database_waits: Mutex<Option<HistogramTotals>>,
    redis_slow: Duration,
    /// Kinds of identities that there can be: one bit each.
    identifier_types: AtomicU8,
    /// Taken when a policy is compiled and for a moment in a scrape, never by a request.
    pub(super) named: Mutex<Named>,
    pub(super) handles: Handles,
    pub(super) exporter: PrometheusHandle,
}

impl Metrics {
    /// For so many workers. `redis_slow` is the time above which a call to Redis counts as slow.
    pub fn new(workers: usize, build: Build, redis_slow: Duration) -> Arc<Self> {
        // One more for the control thread.
        let shards = workers.saturating_add(1);
        let recorder = PrometheusBuilder::new().build_recorder();
        let exporter = recorder.handle();
        describe_all(&recorder);
        let handles = Handles::new(recorder);
        handles.gauge(&names::BUILD_INFO, &[build.version, build.commit, build.rustc]).set(1.0);
        handles.gauge(&names::DB_QUEUE, &[]).set(0.0);
        for desc in [&names::RSS, &names::VMS, &names::MEMORY_GROWTH] {
            handles.gauge(desc, &[]).set(0.0);
        }
        handles.gauge(&names::DEGRADED, &[]).set(0.0);
        handles.gauge(&names::UPSTREAM_WAITING, &[]).set(0.0);
        handles.gauge(&names::CONFIG_LOADED_AT, &[]).set(0.0);
        handles.gauge(&names::CONFIG_RELOAD_OK, &[]).set(1.0);
        handles.gauge(&names::RESTART_PENDING, &[]).set(0.0);
        names::OF_LOGS.iter().for_each(|desc| handles.show(desc, &[]));
        Arc::new(Metrics {
            shards,
            process: PerShard::new(shards),
            events: Events::new(&handles),
            in_flight: Level::new(shards),
            runtime: Arc::new(RuntimeCells::new(workers, shards)),
            tls: TlsCells::new(shards),
            memory: MemoryCells::new(shards),
            redis_queue: AtomicU64::new(0),
            database_waits: Mutex::default(),
            redis_slow,
            identifier_types: AtomicU8::new(u8::MAX),
            named: Mutex::default(),
            handles,
            exporter,
        })
    }

    /// Only these kinds of identities can be: the others get no series before they are seen.
    pub fn set_identifier_types(&self, kinds: &[IdentifierType]) {
        let bits = kinds.iter().fold(0, |bits, kind| bits | identifier_bit(*kind));
        self.identifier_types.store(bits, Ordering::Relaxed);
    }

    /// Whether there can be identities of this kind.
    pub(super) fn can_be(&self, kind: IdentifierType) -> bool {
        self.identifier_types.load(Ordering::Relaxed) & identifier_bit(kind) != 0
    }

    /// A request was admitted that no other replica knows of, because the store did not answer.
    pub fn admitted_alone(&self, at: Timestamp) {
        self.process.with_own(|cells| cells.admitted_alone.add_one(at));
    }

    /// A request begins; it is in flight until the guard is dropped.
    #[inline]
    pub fn request_started(&self) -> LevelGuard {
        self.in_flight.enter()
    }

    /// Requests in flight.
    pub fn requests_in_flight(&self) -> usize {
        self.in_flight.count()
    }

    /// The limits of a request were checked, by whom, and how long it took.
    #[inline]
    pub fn limiter_checked(&self, backend: LimiterBackend, took: Duration) {
        self.process.with_own(|cells| {
            if let Some(histogram) = cells.limiter.get(backend.index()) {
                histogram.record(LIMITER_EDGES, took);
            }
        });
    }

    /// A check was answered by Redis after so long.
    #[inline]
    pub fn redis_answered(&self, took: Duration) {
        self.process.with_own(|cells| cells.redis.record(LIMITER_EDGES, took));
        if self.is_redis_slow(took) {
            self.slow_query(QueryType::Redis);
        }
    }

    /// Whether a check that took so long counts as slow.
    #[inline]
    pub fn is_redis_slow(&self, took: Duration) -> bool {
        took > self.redis_slow
    }

    /// Checks that wait for Redis, as last published.
    pub fn redis_queue(&self) -> u64 {
        self.redis_queue.load(Ordering::Relaxed)
    }

    /// Takes over what the store in Redis has counted.
    pub fn publish_redis(&self, figures: &RedisFigures) {
        self.redis_queue.store(figures.queue, Ordering::Relaxed);
        let events = &self.events;
        set_all(&events.redis_errors, &figures.errors);
        set_all(&events.fallbacks, figures.fallbacks.as_flattened());
        events.redis_reconnects.absolute(figures.reconnects);
        events.deny_cache_hits.absolute(figures.denied_from_cache);
        events.late_replies.absolute(figures.late_replies);
        events.outage_admitted.absolute(figures.admitted_alone);
        events.outage_charged.absolute(figures.charged);
        self.handles.gauge(&names::REPLICAS, &[]).set(f64::from(figures.replicas));
        set_all(&events.leases, &figures.leases);
        set_all(&events.lease_tokens, &figures.lease_tokens);
        self.handles.gauge(&names::LEASE_TOKENS_HELD, &[]).set(figures.lease_tokens_held as f64);
        if let Some(timeouts) = events.timeouts.get(QueryType::Redis.index()) {
            let index = RedisErrorKind::Timeout.index();
            timeouts.absolute(figures.errors.get(index).copied().unwrap_or(0));
        }
        self.publish_transitions(Dependency::Redis, figures.transitions);
    }

    /// Takes over what look-ups in the database of subscriptions have counted.
    pub fn publish_database(&self, figures: &DatabaseFigures) {
        *self.database_waits.lock() = Some(figures.waits);
        let (handles, events) = (&self.handles, &self.events);
        handles.gauge(&names::DB_QUEUE, &[]).set(figures.queue as f64);
        let states = [(PoolState::Active, figures.active), (PoolState::Idle, figures.idle)];
        for (state, count) in states {
            let labels = [Dependency::Database.as_str(), state.as_str()];
            handles.gauge(&names::POOL_CONNECTIONS, &labels).set(count as f64);
        }
        for (result, count) in LookupResult::ALL.iter().zip(figures.results) {
            handles.counter(&names::LOOKUPS, &[result.as_str()]).absolute(count);
        }
        let of_database = QueryType::Database.index();
        if let Some(timeouts) = events.timeouts.get(of_database) {
            timeouts.absolute(figures.timeouts);
        }
        if let Some(slow) = events.slow.get(of_database) {
            slow.absolute(figures.slow);
        }
        self.publish_transitions(Dependency::Database, figures.transitions);
    }

    /// Takes over how often a circuit breaker came to each state.
    pub fn publish_transitions(&self, service: Dependency, totals: [u64; BreakerState::COUNT]) {
        for (to, count) in BreakerState::ALL.iter().zip(totals) {
            let labels = [service.as_str(), to.as_str()];
            self.handles.counter(&names::BREAKER_TRANSITIONS, &labels).absolute(count);
        }
    }

    /// A call took longer than its threshold.
    pub fn slow_query(&self, query: QueryType) {
        increment(&self.events.slow, query.index());
    }

    /// A call was cut off by its deadline.
    pub fn query_timed_out(&self, query: QueryType) {
        increment(&self.events.timeouts, query.index());
    }

    /// A connection was closed unread.
    pub fn connection_refused(&self, reason: RefusalReason) {
        increment(&self.events.refused, reason.index());
    }

    /// A connection of HTTP/2 was cut.
    pub fn http2_cut(&self, reason: CutReason) {
        increment(&self.events.http2_cut, reason.index());
    }

    /// A credential or forwarding field was not believed.
    pub fn identity_error(&self, reason: IdentityError) {
        increment(&self.events.identity_errors, reason.index());
    }

    /// The state of a circuit breaker. From the first call on, its series are there.
    pub fn set_breaker(&self, service: Dependency, state: BreakerState) {
        let handles = &self.handles;
        for to in BreakerState::ALL {
            handles.show(&names::BREAKER_TRANSITIONS, &[service.as_str(), to.as_str()]);
        }
        handles.gauge(&names::BREAKER_STATE, &[service.as_str()]).set(state.index() as f64);
    }

    /// The health of a dependency: 1, 0.5 or 0.
    pub fn set_dependency_health(&self, dependency: Dependency, health: f64) {
        self.handles.gauge(&names::DEPENDENCY_HEALTH, &[dependency.as_str()]).set(health);
    }

    /// How limits are decided now.
    pub fn set_limiter_mode(&self, mode: LimiterMode) {
        self.events.degraded.set(mode.index() as f64);
    }

    /// What the store in memory holds, and how many it forgot early since the start.
    pub fn set_memory_store(&self, identities: u64, evictions: u64) {
        let handles = &self.handles;
        handles.gauge(&names::STORE_IDENTITIES, &[]).set(identities as f64);
        handles.counter(&names::STORE_EVICTIONS, &[]).absolute(evictions);
    }

    /// The hash of the configuration in force.
    pub fn set_config_hash(&self, hash: &str) {
        self.named.lock().config_hash = hash.into();
    }

    /// What the files said took effect: at the start, and with every reload.
    pub fn set_config_loaded(&self, at: Timestamp) {
        let seconds = at.as_micros() as f64 / 1e6;
        self.handles.gauge(&names::CONFIG_LOADED_AT, &[]).set(seconds);
    }

    /// A watched file was read anew. `is_all_good`: no watched file is one that was refused.
    pub fn config_reloaded(&self, result: Attempt, is_all_good: bool, at: Timestamp) {
        increment(&self.events.reloads, result.index());
        self.handles.gauge(&names::CONFIG_RELOAD_OK, &[]).set(f64::from(u8::from(is_all_good)));
        if result == Attempt::Ok {
            self.set_config_loaded(at);
        }
    }

    /// Whether the configuration differs from what runs.
    pub fn set_restart_pending(&self, is_pending: bool) {
        let value = f64::from(u8::from(is_pending));
        self.handles.gauge(&names::RESTART_PENDING, &[]).set(value);
    }

    /// The series of an upstream, by its configured name.
    pub fn upstream(&self, name: &str) -> Arc<UpstreamSeries> {
        self.named.lock().upstreams.get(name, |name| UpstreamSeries::new(name, self.shards))
    }

    /// A request is asked of another upstream.
    pub fn upstream_retried(&self, reason: RetryReason) {
        increment(&self.events.upstream_retries, reason.index());
    }

    /// It is not, because too many were of late.
    pub fn upstream_retry_skipped(&self) {
        self.events.upstream_retries_skipped.increment(1);
    }

    /// How one of several upstreams does, by its configured name.
    pub fn set_upstream_member(&self, name: &str, is_called: bool, in_flight: usize) {
        let (handles, labels) = (&self.handles, [name]);
        let is_called = f64::from(u8::from(is_called));
        handles.gauge(&names::UPSTREAM_MEMBER_HEALTHY, &labels).set(is_called);
        handles.gauge(&names::UPSTREAM_MEMBER_IN_FLIGHT, &labels).set(in_flight as f64);
    }

    /// The series of a pool of connections: `upstream`, `redis`, `database`.
    pub fn pool(&self, name: &str) -> Arc<PoolSeries> {
        self.named.lock().pools.get(name, |name| PoolSeries::new(name, self.shards))
    }

    /// The series of a listener.
    pub fn listener(&self, name: &str) -> Arc<ListenerSeries> {
        self.named.lock().listeners.get(name, |name| ListenerSeries::new(name, self.shards))
    }
}

const fn identifier_bit(kind: IdentifierType) -> u8 {
    1 << kind as u8
}
