//! From what was loaded to the modules that run: each gets its own settings from here alone.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderValue, Response};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot};

use crate::admin::access::AdminToken;
use crate::admin::answers::{Answer, metrics_response};
use crate::admin::failures::TokenFailures;
use crate::admin::health::health_response;
use crate::admin::state::{AdminState, InForce, View};
use crate::admin::stream::Streams;
use crate::clock::{self, Clock};
use crate::config::compile::{RedisSettings as LoadedRedis, ResetForm, Settings as Loadable};

use crate::config::compile_upstream::UpstreamSettings;
use crate::config::load::Loaded;
use crate::config::schema::ProxyProtocol;
use crate::health::dependency::{DependencyStatus, DependencyView, LimiterView};
use crate::health::detector::{Detector, Queues};
use crate::health::heartbeat::Heartbeats;
use crate::health::loops::Loops;
use crate::health::readiness::Readiness;
use crate::identity::identifier::Identifier;
use crate::metrics::edge_labels::OverrideKind;
use crate::metrics::labels::{
    BreakerState, Dependency, FallbackMode, FallbackReason, LimiterMode, RedisErrorKind,
};
use crate::metrics::policy::PolicyMetrics;
use crate::metrics::registry::{Build, Metrics, RedisFigures};
use crate::overrides::{OverrideStore, PolicyInForce};
use crate::policy::compiled::FailureMode;
use crate::proxy::address::Once;
use crate::proxy::announced::Versions;
use crate::proxy::caller::UnknownSubscriptions;
use crate::proxy::gate::{Active, Drain, Gate, Page, Settings};
use crate::proxy::headers::{Reset, ResponseFields};
use crate::proxy::health_check::HealthCheck;
use crate::proxy::io::PhaseTimeouts;
use crate::proxy::per_address::AddressCounts;
use crate::proxy::pool::PoolSettings;
use crate::proxy::self_service::SelfService;
use crate::store::counters::Counters;
use crate::store::memory::MemoryStore;
use crate::store::redis::RedisShared;
use crate::store::redis::names::KeyNames;
use crate::store::redis::settings::RedisSettings;
use crate::store::redis::stats::Reason;
use crate::subscriptions::Subscriptions;
use crate::top::talkers::TopTalkers;
use crate::usage::flush::Usage;

use super::identity::{Slow, identifier};
use super::logging::Recorders;
use super::memory::{self, SharedWatch};
use super::{subscriptions, upstreams};

/// Digits of the policy's hash that are shown.
const HASH_DIGITS: usize = 12;
/// Pages of the admin port that wait to be made for the data ports.
const PAGES_WANTED_MAX: usize = 64;
/// Largest head of an upstream's answer, in bytes.
const UPSTREAM_HEAD_BYTES_MAX: usize = 64 << 10;

/// A page of the admin port that was asked for on a data port.
pub struct WantedPage {
    make: fn(&AdminState) -> Answer,
    reply: oneshot::Sender<Response<bytes::Bytes>>,
}

impl WantedPage {
    /// Makes it. That takes milliseconds: not for a worker.
    pub fn serve(self, admin: &AdminState) {
        let answer = (self.make)(admin);
        let mut response = Response::new(answer.body);
        *response.status_mut() = answer.status;
        let content_type = HeaderValue::from_static(answer.content_type);
        response.headers_mut().insert(http::header::CONTENT_TYPE, content_type);
        // Who asked may be gone.
        let _ = self.reply.send(response);
    }
}

/// Everything that runs, ready to be started.
pub struct Wired {
    /// The data path's.
    pub gate: Arc<Gate>,
    /// The admin port's.
    pub admin: Arc<AdminState>,
    /// What is asked of the admin port's pages on the data ports, for whoever makes them.
    pub wanted_pages: Option<mpsc::Receiver<WantedPage>>,
    /// How long the upstream's addresses hold.
    pub dns_ttl: Duration,
    /// Where the process's memory goes.
    pub memory_watch: Arc<SharedWatch>,
    /// How the upstream is checked, if it is.
    pub health_check: Option<HealthCheck>,
}

impl Wired {
    /// Makes every module from what was loaded.
    ///
    /// # Errors
    /// TLS towards the upstream or a key set's server cannot be set up.
    pub fn new(
        loaded: Loaded,
        workers: usize,
        subscriptions: Option<Arc<Subscriptions>>,
        recorders: Recorders,
        usage: Option<Arc<Usage>>,
    ) -> anyhow::Result<Self> {
        Self::with_clock(loaded, workers, subscriptions, recorders, usage, Clock::System)
    }

    /// The same, with another clock for limits.
    ///
    /// # Errors
    /// The same.
    pub fn with_clock(
        loaded: Loaded,
        workers: usize,
        subscriptions: Option<Arc<Subscriptions>>,
        recorders: Recorders,
        usage: Option<Arc<Usage>>,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let Loaded { settings, policy, policy_hash, .. } = loaded;
        let (access_log, tracer) = (recorders.access_log.clone(), recorders.tracer.clone());
        let slow_calls = Arc::clone(&recorders.slow_calls);
        let build = Build {
            version: env!("CARGO_PKG_VERSION"),
            commit: env!("TOLLGATE_COMMIT"),
            rustc: env!("TOLLGATE_RUSTC"),
        };
        let metrics = Metrics::new(workers, build, settings.slow_redis);
        let slow_fetches = Slow { after: settings.slow_jwks, calls: &slow_calls };
        let identifier = identifier(&settings.identity, slow_fetches, &metrics)?;
        let identifier = Arc::new(identifier);
        metrics.set_identifier_types(&identifier.kinds());
        let policy_metrics = PolicyMetrics::new(&metrics, &policy, settings.slow_upstream);
        let memory = Arc::new(MemoryStore::new(settings.max_identities));
        let redis = settings
            .redis
            .as_ref()
            .map(|it| Arc::new(RedisShared::new(redis_settings(it), Arc::clone(&memory))));
        let active = Active { policy: Arc::new(policy), metrics: policy_metrics };
        let active = Arc::new(ArcSwap::from_pointee(active));
        let policy_in_force = || -> PolicyInForce {
            let active = Arc::clone(&active);
            Box::new(move || Arc::clone(&active.load().policy))
        };
        let counters = Arc::new(Counters::new(Arc::clone(&memory), redis.clone()));
        let overrides = Arc::new(OverrideStore::new(Arc::clone(&counters), policy_in_force()));
        let memory_watch = Arc::new(SharedWatch::new(memory::schedule()));
        let upstream = settings.upstream.clone();
        let health_check = upstream.as_ref().and_then(|it| it.health_check.as_ref());
        let health_check = health_check.map(upstreams::health_check);
        adopt_checks(&metrics, health_check.as_ref(), redis.as_deref(), subscriptions.as_deref());
        let upstreams = upstreams::upstreams(upstream.as_ref(), health_check.as_ref(), &metrics)?;
        let heartbeats = Arc::new(Heartbeats::new(workers, clock::monotonic()));
        let loops = Loops::new(metrics.runtime(), workers, clock::monotonic());
        let detector =
            detector(&loops, &heartbeats, &metrics, redis.clone(), subscriptions.clone());
        let top = Arc::new(TopTalkers::new(workers, clock::monotonic()));
        let admin = Arc::new(AdminState {
            metrics: Arc::clone(&metrics),
            clock: clock.clone(),
            started: clock::monotonic(),
            version: build.version,
            instance: instance(),
            in_force: RwLock::new(InForce {
                hash: shown_hash(&policy_hash).into(),
                at: clock.now(),
                since: clock::monotonic(),
            }),
            token: settings.admin_token.as_ref().map(|it| AdminToken::new(it.expose())),
            failures: TokenFailures::default(),
            policy: policy_in_force(),
            overrides: Arc::clone(&overrides),
            counters: Arc::clone(&counters),
            identifier: Arc::clone(&identifier),
            subscriptions: subscriptions.clone(),
            explain: OnceLock::new(),
            reload: OnceLock::new(),
            readiness: Arc::new(Readiness::default()),
            detector: Arc::clone(&detector),
            heartbeats,
            upstream: Arc::clone(&upstreams.group),
            slow_calls: Arc::clone(&slow_calls),
            redis: redis
                .clone()
                .map(|redis| -> View<DependencyView> { Box::new(move || redis_view(&redis)) }),
            redis_errors: redis_errors(redis.clone()),
            database: subscriptions
                .clone()
                .map(|it| -> View<DependencyView> { Box::new(move || subscriptions::view(&it)) }),
            jwks: jwks_view(&identifier),
            memory: {
                let watch = Arc::clone(&memory_watch);
                Box::new(move || watch.view())
            },
            top: Arc::clone(&top),
            usage: usage.clone(),
            history: Mutex::default(),
            reloads: Arc::default(),
            streams: Streams::default(),
            limiter: limiter_view(redis.clone(), clock.clone()),
            before_scrape: {
                let (metrics, memory) = (Arc::clone(&metrics), Arc::clone(&memory));
                let (redis, subscriptions) = (redis.clone(), subscriptions.clone());
                let (overrides, clock) = (Arc::clone(&overrides), clock.clone());
                let (identifier, watch) = (Arc::clone(&identifier), Arc::clone(&memory_watch));
                let detector = Arc::clone(&detector);
                let (upstream, usage) = (Arc::clone(&upstreams.group), usage.clone());
                Box::new(move || {
                    upstreams::publish(&upstream, &metrics);
                    recorders.publish(&metrics);
                    let (tiers, denied) = overrides.count(clock.now());
                    metrics.set_overrides(OverrideKind::Override, tiers);
                    metrics.set_overrides(OverrideKind::Deny, denied);
                    detector.observe(clock::monotonic());
                    let bought = subscriptions.as_deref();
                    let of_redis = redis.as_deref();
                    memory::publish(&metrics, &watch, &memory, of_redis, &identifier, bought);
                    metrics.set_tokens_remembered(identifier.tokens_remembered());
                    let (held, evictions) = match &redis {
                        Some(redis) => (redis.share().len(), redis.share().evictions()),
                        None => (memory.len(), memory.evictions()),
                    };
                    metrics.set_memory_store(held as u64, evictions);
                    if let Some(usage) = &usage {
                        metrics.publish_usage(&super::usage::figures(usage));
                    }
                    if let Some(redis) = &redis {
                        metrics.publish_redis(&redis_figures(redis));
                    }
                    if let Some(subscriptions) = &subscriptions {
                        metrics.publish_database(&subscriptions::figures(subscriptions));
                    }
                })
            },
        });
        metrics.set_config_hash(shown_hash(&policy_hash));
        metrics.set_config_loaded(clock.now());
        let (exposed, wanted_pages) = exposed(&settings);
        let gate = Arc::new(Gate {
            settings: proxy_settings(&settings, upstream.as_ref(), workers),
            active,
            overrides,
            identifier,
            unknown_subscriptions: UnknownSubscriptions::default(),
            clock,
            metrics,
            loops,
            upstreams,
            slow_calls,
            memory,
            redis,
            subscriptions,
            top,
            exposed,
            addresses: settings
                .server
                .max_connections_per_ip
                .map(|most| AddressCounts::new(most, settings.identity.prefixes)),
            unannounced: Once::default(),
            self_service: settings.self_service.as_deref().map(SelfService::new),
            untrusted: Once::default(),
            access_log,
            tracer,
            usage: usage.map(|it| Arc::clone(it.journal())),
            drain: Drain::default(),
        });
        let dns_ttl = upstream.map_or(Duration::ZERO, |it| it.dns_ttl);
        let wanted_pages = Some(wanted_pages);
        Ok(Wired { gate, admin, wanted_pages, dns_ttl, health_check, memory_watch })
    }
}

/// As much of a policy's hash as is shown.
pub fn shown_hash(hash: &str) -> &str {
    hash.get(..HASH_DIGITS).unwrap_or(hash)
}

fn versions(proxy_protocol: ProxyProtocol) -> Option<Versions> {
    match proxy_protocol {
        ProxyProtocol::Off => None,
        ProxyProtocol::V1 => Some(Versions { v1: true, v2: false }),
        ProxyProtocol::V2 => Some(Versions { v1: false, v2: true }),
        ProxyProtocol::Any => Some(Versions { v1: true, v2: true }),
    }
}

fn proxy_settings(
    settings: &Loadable,
    upstream: Option<&UpstreamSettings>,
    workers: usize,
) -> Settings {
    let server = &settings.server;
    let of_upstream = |get: fn(&UpstreamSettings) -> Duration| upstream.map_or(Duration::ZERO, get);
    Settings {
        phases: PhaseTimeouts { header: server.header_timeout, idle: server.idle_timeout },
        body_timeout: server.body_timeout,
        header_bytes_max: server.max_header_bytes,
        body_bytes_max: server.max_body_bytes.map_or(0, std::num::NonZeroU64::get),
        drain_timeout: server.drain_timeout,
        connections_max: server.max_connections,
        announced: versions(server.proxy_protocol),
        pool: PoolSettings {
            connect_timeout: of_upstream(|it| it.connect_timeout),
            idle_max: upstream.map_or(0, |it| it.max_idle_connections).div_ceil(workers.max(1)),
            idle_timeout: of_upstream(|it| it.idle_timeout),
            head_bytes_max: UPSTREAM_HEAD_BYTES_MAX,
        },
        response_timeout: of_upstream(|it| it.response_timeout),
        per_try_timeout: upstream.and_then(|it| it.per_try_timeout),
        upstream_idle_timeout: of_upstream(|it| it.idle_timeout),
        tunnel_idle_timeout: of_upstream(|it| it.tunnel_idle_timeout),
        retries: upstream.map_or(0, |it| it.retries),
        preserves_host: upstream.is_none_or(|it| it.preserve_host),
        fields: ResponseFields {
            x_ratelimit: settings.headers.x_ratelimit,
            reset: match settings.headers.reset {
                ResetForm::Epoch => Reset::Epoch,
                ResetForm::Delta => Reset::Delta,
            },
            expose_cors: settings.headers.expose_cors,
        },
    }
}

/// Shows what checks come to, for each dependency that is checked.
fn adopt_checks(
    metrics: &Metrics,
    check: Option<&HealthCheck>,
    redis: Option<&RedisShared>,
    subscriptions: Option<&Subscriptions>,
) {
    if check.is_some() {
        metrics.checks_of(Dependency::Upstream);
    }
    if let Some(redis) = redis {
        metrics.adopt_checks(Dependency::Redis, redis.stats().checks());
    }
    if let Some(subscriptions) = subscriptions {
        metrics.adopt_checks(Dependency::Database, subscriptions.stats().checks());
    }
}

fn redis_errors(redis: Option<Arc<RedisShared>>) -> View<Vec<(&'static str, u64)>> {
    Box::new(move || {
        let Some(redis) = &redis else { return Vec::new() };
        let errors = |kind: &RedisErrorKind| (kind.as_str(), redis.stats().errors(*kind));
        RedisErrorKind::ALL.iter().map(errors).collect()
    })
}

fn redis_settings(settings: &LoadedRedis) -> RedisSettings {
    let mut names = KeyNames::new(&settings.key_prefix);
    if let Some(secret) = &settings.identity_secret {
        names = names.with_secret(secret.expose().as_bytes());
    }
    RedisSettings {
        target: settings.url.target(),
        timeout: settings.timeout,
        on_failure: settings.on_failure,
        leases: settings.leases,
        names,
        expected_replicas: settings.expected_replicas,
    }
}

fn detector(
    loops: &Arc<Loops>,
    heartbeats: &Arc<Heartbeats>,
    metrics: &Metrics,
    redis: Option<Arc<RedisShared>>,
    subscriptions: Option<Arc<Subscriptions>>,
) -> Arc<Detector> {
    let upstream = metrics.pool(Dependency::Upstream.as_str());
    Detector::new(Arc::clone(loops), Arc::clone(heartbeats), upstream, move || Queues {
        redis: redis.as_ref().map_or(0, |redis| redis.stats().in_flight()),
        database: subscriptions.as_ref().map(|it| it.stats().queue()),
    })
}

fn redis_view(redis: &RedisShared) -> DependencyView {
    let breaker = redis.breaker_state();
    let is_settling = redis.is_apart() && redis.settings().on_failure == FailureMode::Local;
    let status = match breaker {
        BreakerState::Closed if redis.is_connected() && redis.is_writable() && !is_settling => {
            DependencyStatus::Healthy
        }
        BreakerState::Closed if redis.connected() > 0 => DependencyStatus::Degraded,
        BreakerState::HalfOpen => DependencyStatus::Degraded,
        BreakerState::Closed | BreakerState::Open => DependencyStatus::Unhealthy,
    };
    DependencyView { status, breaker: Some(breaker) }
}

/// Of several key sets, the worst that is to be said of any.
fn jwks_view(identifier: &Arc<Identifier>) -> Option<View<DependencyView>> {
    identifier.remotes().next()?;
    let identifier = Arc::clone(identifier);
    Some(Box::new(move || {
        let views: Vec<DependencyView> = identifier.remotes().map(|remote| remote.view()).collect();
        let statuses = views.iter().map(|view| view.status);
        let breakers = views.iter().filter_map(|view| view.breaker);
        DependencyView {
            status: statuses
                .min_by(|a, b| a.value().total_cmp(&b.value()))
                .unwrap_or(DependencyStatus::Healthy),
            breaker: breakers.max_by_key(|state| state.index()),
        }
    }))
}

/// How limits are decided; since when is known to the moment of the last look at it.
fn limiter_view(redis: Option<Arc<RedisShared>>, clock: Clock) -> View<LimiterView> {
    let last = Mutex::new(LimiterView { mode: LimiterMode::Exact, since: clock.now() });
    Box::new(move || {
        let mode = match &redis {
            Some(redis) if redis_view(redis).status != DependencyStatus::Healthy => {
                match redis.settings().on_failure {
                    FailureMode::Local => LimiterMode::Local,
                    FailureMode::Open => LimiterMode::Open,
                    FailureMode::Closed => LimiterMode::Closed,
                }
            }
            _ => LimiterMode::Exact,
        };
        let mut last = last.lock();
        if last.mode != mode {
            *last = LimiterView { mode, since: clock.now() };
        }
        *last
    })
}

fn redis_figures(redis: &RedisShared) -> RedisFigures {
    let (stats, leases) = (redis.stats(), redis.leases().figures());
    let mut figures = RedisFigures {
        queue: stats.in_flight(),
        reconnects: stats.reconnects(),
        denied_from_cache: redis.denials().hits(),
        late_replies: stats.late_replies(),
        replicas: redis.replicas(),
        admitted_alone: redis.share().admitted(),
        charged: stats.charges(true),
        leases: [leases.granted, leases.refused],
        lease_tokens: [leases.tokens_spent, leases.tokens_returned, leases.tokens_lost],
        lease_tokens_held: leases.tokens_held,
        ..RedisFigures::default()
    };
    for (count, kind) in figures.errors.iter_mut().zip(RedisErrorKind::ALL) {
        *count = stats.errors(*kind);
    }
    let modes = [
        (FailureMode::Local, FallbackMode::Local),
        (FailureMode::Open, FallbackMode::Open),
        (FailureMode::Closed, FallbackMode::Closed),
    ];
    for (mode, label) in modes {
        let failed = RedisErrorKind::ALL.iter().map(|kind| Reason::Failed(*kind));
        for reason in failed.chain([Reason::BreakerOpen]) {
            let row = figures.fallbacks.get_mut(label.index());
            if let Some(count) = row.and_then(|row| row.get_mut(reason_label(reason).index())) {
                *count = count.saturating_add(stats.fallbacks(mode, reason));
            }
        }
    }
    for (count, state) in figures.transitions.iter_mut().zip(BreakerState::ALL) {
        *count = stats.transitions(*state);
    }
    figures
}

fn reason_label(reason: Reason) -> FallbackReason {
    match reason {
        Reason::BreakerOpen => FallbackReason::CircuitOpen,
        Reason::Failed(RedisErrorKind::Timeout) => FallbackReason::Timeout,
        Reason::Failed(RedisErrorKind::Overload) => FallbackReason::Overload,
        Reason::Failed(_) => FallbackReason::Error,
    }
}

fn exposed(settings: &Loadable) -> (Vec<(&'static str, Page)>, mpsc::Receiver<WantedPage>) {
    let (wanted, receiver) = mpsc::channel(PAGES_WANTED_MAX);
    let page = |make: fn(&AdminState) -> Answer| -> Page {
        let wanted = wanted.clone();
        Box::new(move || {
            let (reply, answer) = oneshot::channel();
            // With too many waiting it is dropped, which the asker sees.
            let _ = wanted.try_send(WantedPage { make, reply });
            answer
        })
    };
    let mut pages = Vec::new();
    if settings.server.expose_health {
        pages.push(("/health", page(health_response)));
    }
    if settings.server.expose_metrics {
        pages.push(("/metrics", page(metrics_response)));
    }
    (pages, receiver)
}

/// The name of this replica: the machine's.
pub fn instance() -> Box<str> {
    rustix::system::uname().nodename().to_string_lossy().into()
}
