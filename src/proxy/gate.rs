//! What all workers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Method;
use tokio::sync::{oneshot, watch};

use crate::clock::Clock;
use crate::health::loops::Loops;
use crate::health::slow::SlowCalls;
use crate::identity::identifier::Identifier;
use crate::log::access::AccessLog;
use crate::metrics::policy::PolicyMetrics;
use crate::metrics::registry::Metrics;
use crate::otlp::export::Tracer;
use crate::overrides::OverrideStore;
use crate::policy::compiled::Policy;
use crate::store::memory::MemoryStore;
use crate::store::redis::RedisShared;
use crate::subscriptions::Subscriptions;
use crate::top::talkers::TopTalkers;
use crate::usage::journal::Journal;

use super::address::Once;
use super::announced::Versions;
use super::caller::UnknownSubscriptions;
use super::headers::ResponseFields;
use super::io::PhaseTimeouts;
use super::per_address::AddressCounts;
use super::pool::PoolSettings;
use super::self_service::SelfService;
use super::upstreams::Upstreams;

/// How the data path behaves; see `config/tollgate.yaml` for each.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bounds of a downstream connection's phases.
    pub phases: PhaseTimeouts,
    /// Between bytes of a request's body.
    pub body_timeout: Duration,
    /// Largest request head, in bytes.
    pub header_bytes_max: usize,
    /// Largest request body, in bytes; 0 is no limit.
    pub body_bytes_max: u64,
    /// Bound of a drain.
    pub drain_timeout: Duration,
    /// Downstream connections at a time.
    pub connections_max: usize,
    /// What trusted proxies say in front of all else; `None`: nothing.
    pub announced: Option<Versions>,
    /// To the upstream, for each worker.
    pub pool: PoolSettings,
    /// To the upstream's response head, all tries together.
    pub response_timeout: Duration,
    /// Between bytes of an answer's body.
    pub upstream_idle_timeout: Duration,
    /// Between bytes of an upgraded connection.
    pub tunnel_idle_timeout: Duration,
    /// To the head of an answer of one try, where another may be made.
    pub per_try_timeout: Option<Duration>,
    /// Further tries of a request that may be repeated.
    pub retries: u32,
    /// Whether an upstream sees `Host` as it came; else its own name.
    pub preserves_host: bool,
    /// Which fields answers carry.
    pub fields: ResponseFields,
}

/// Asks for the answer of a path that tollgate itself answers on the data port. It takes too long
/// for a worker, so that it is made elsewhere; dropped by its maker, it cannot be had now.
pub type Page = Box<dyn Fn() -> oneshot::Receiver<http::Response<bytes::Bytes>> + Send + Sync>;

/// The policy in force, with its metrics at hand.
#[derive(Debug)]
pub struct Active {
    /// Decides.
    pub policy: Arc<Policy>,
    /// Counts.
    pub metrics: PolicyMetrics,
}

/// Everything that all workers share.
pub struct Gate {
    /// How the data path behaves.
    pub settings: Settings,
    /// The policy in force.
    pub active: Arc<ArcSwap<Active>>,
    /// What operators say of single identities.
    pub overrides: Arc<OverrideStore>,
    /// Who callers are.
    pub identifier: Arc<Identifier>,
    /// What callers have that no tier is known for.
    pub unknown_subscriptions: UnknownSubscriptions,
    /// The time of limits.
    pub clock: Clock,
    /// The process's metrics.
    pub metrics: Arc<Metrics>,
    /// The workers' event loops, as they are seen from outside.
    pub loops: Arc<Loops>,
    /// Where the upstreams are, and what calls of them came to.
    pub upstreams: Upstreams,
    /// Calls that were slow, whoever was asked.
    pub slow_calls: Arc<SlowCalls>,
    /// Limiter state in memory.
    pub memory: Arc<MemoryStore>,
    /// Limiter state in Redis, if it is configured.
    pub redis: Option<Arc<RedisShared>>,
    /// What users have bought, if there is a database to ask.
    pub subscriptions: Option<Arc<Subscriptions>>,
    /// Who asks most.
    pub top: Arc<TopTalkers>,
    /// Paths that tollgate answers itself on the data port: `server.expose`.
    pub exposed: Vec<(&'static str, Page)>,
    /// Where callers read their own limits, if they may.
    pub self_service: Option<SelfService>,
    /// Downstream connections of each address, where those are bounded.
    pub addresses: Option<Arc<AddressCounts>>,
    /// Whether it was said that a trusted proxy does not speak the PROXY protocol.
    pub unannounced: Once,
    /// Whether it was said that a private peer's forwarding fields are not believed.
    pub untrusted: Once,
    /// Where requests are told of one by one, if they are.
    pub access_log: Option<AccessLog>,
    /// Where spans of requests go, if they go anywhere.
    pub tracer: Option<Tracer>,
    /// Where usage is counted for billing, if it is.
    pub usage: Option<Arc<Journal>>,
    /// Whether tollgate is about to stop.
    pub drain: Drain,
}

impl Gate {
    /// The exposed page, if this is a request for one.
    pub fn exposed<B>(&self, request: &http::Request<B>) -> Option<&Page> {
        if self.exposed.is_empty() || !matches!(*request.method(), Method::GET | Method::HEAD) {
            return None;
        }
        let (_, page) = self.exposed.iter().find(|(path, _)| *path == request.uri().path())?;
        Some(page)
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Tells every connection that tollgate is about to stop.
#[derive(Debug)]
pub struct Drain {
    is_draining: AtomicBool,
    /// Whether somebody else accepts from the listeners.
    is_succeeded: AtomicBool,
    sender: watch::Sender<bool>,
}

impl Default for Drain {
    fn default() -> Self {
        Drain {
            is_draining: AtomicBool::new(false),
            is_succeeded: AtomicBool::new(false),
            sender: watch::Sender::new(false),
        }
    }
}

impl Drain {
    /// From now on nothing new is begun.
    pub fn begin(&self) {
        self.is_draining.store(true, Relaxed);
        self.sender.send_replace(true);
    }

    /// The same, where a successor accepts from the same sockets.
    pub fn begin_succeeded(&self) {
        self.is_succeeded.store(true, Relaxed);
        self.begin();
    }

    /// Whether a successor accepts from the same sockets.
    pub fn is_succeeded(&self) -> bool {
        self.is_succeeded.load(Relaxed)
    }

    /// Whether it has begun.
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Relaxed)
    }

    /// Waits until it begins.
    pub async fn begun(&self) {
        let mut receiver = self.sender.subscribe();
        // The sender lives as long as `self`.
        let _ = receiver.wait_for(|begun| *begun).await;
    }
}
