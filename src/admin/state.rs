//! Everything that the admin port looks at.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::{Mutex, RwLock};

use crate::clock::{Clock, monotonic};
use crate::health::dependency::{DependencyView, LimiterView};
use crate::health::detector::Detector;
use crate::health::heartbeat::Heartbeats;
use crate::health::history::History;
use crate::health::memory::MemoryView;
use crate::health::readiness::Readiness;
use crate::health::reloads::Reloads;
use crate::health::slow::SlowCalls;
use crate::health::upstreams::UpstreamGroup;
use crate::identity::identifier::Identifier;
use crate::limiter::time::Timestamp;
use crate::metrics::registry::Metrics;
use crate::overrides::{OverrideStore, PolicyInForce};
use crate::store::counters::Counters;
use crate::subscriptions::Subscriptions;
use crate::top::talkers::TopTalkers;
use crate::usage::flush::Usage;

use super::access::AdminToken;
use super::answers::Answer;
use super::api::Pending;
use super::explain::ExplainRequest;
use super::failures::TokenFailures;
use super::stream::Streams;

/// A question that another module answers: what it knows at this moment.
pub type View<T> = Box<dyn Fn() -> T + Send + Sync>;

/// Has the files read anew, and waits for what comes of it; an error is its answer.
pub type Reload = Box<dyn Fn() -> Reloading + Send + Sync>;
/// A reload under way.
pub type Reloading = Pin<Box<dyn Future<Output = Result<(), Answer>> + Send>>;

/// Which policy is in force, and since when.
#[derive(Clone, Debug)]
pub struct InForce {
    /// Its hash, as much of it as is shown.
    pub hash: Box<str>,
    /// Since when.
    pub at: Timestamp,
    /// The same by the monotonic clock.
    pub since: Instant,
}

/// A question that another module takes its time to answer.
pub type Question<Q> = Box<dyn Fn(Q) -> Pending + Send + Sync>;

/// What the admin port looks at.
pub struct AdminState {
    /// Every metric.
    pub metrics: Arc<Metrics>,
    /// The time, for windows.
    pub clock: Clock,
    /// When the process started, by the monotonic clock.
    pub started: Instant,
    /// tollgate's version.
    pub version: &'static str,
    /// The name of this replica.
    pub instance: Box<str>,
    /// The policy in force, by its hash; a reload replaces it.
    pub in_force: RwLock<InForce>,
    /// What `/api` asks for; without one it answers on loopback alone.
    pub token: Option<AdminToken>,
    /// Who presented something else.
    pub failures: TokenFailures,
    /// The policy in force.
    pub policy: PolicyInForce,
    /// What operators say of single identities.
    pub overrides: Arc<OverrideStore>,
    /// What those have used.
    pub counters: Arc<Counters>,
    /// Knows what tier keys and tokens carry.
    pub identifier: Arc<Identifier>,
    /// Knows what users have bought, where there is a database.
    pub subscriptions: Option<Arc<Subscriptions>>,
    /// What becomes of a request; there once tollgate serves.
    pub explain: OnceLock<Question<ExplainRequest>>,
    /// Has the files read anew; there once tollgate serves.
    pub reload: OnceLock<Reload>,
    /// Bound, draining.
    pub readiness: Arc<Readiness>,
    /// Whether it keeps up.
    pub detector: Arc<Detector>,
    /// The workers' hearts.
    pub heartbeats: Arc<Heartbeats>,
    /// What calls to the upstream came to.
    pub upstream: Arc<UpstreamGroup>,
    /// Calls that were slow, whoever was asked.
    pub slow_calls: Arc<SlowCalls>,
    /// Redis, where it is configured.
    pub redis: Option<View<DependencyView>>,
    /// Calls to Redis that failed, by kind.
    pub redis_errors: View<Vec<(&'static str, u64)>>,
    /// The database of subscriptions, where it is configured.
    pub database: Option<View<DependencyView>>,
    /// The key sets that are fetched, where there are any; of several, the one that does worst.
    pub jwks: Option<View<DependencyView>>,
    /// The process's memory.
    pub memory: View<MemoryView>,
    /// Who asks most.
    pub top: Arc<TopTalkers>,
    /// Usage metering, where there is a sink.
    pub usage: Option<Arc<Usage>>,
    /// What the status was.
    pub history: Mutex<History>,
    /// What the last reload came to.
    pub reloads: Arc<Reloads>,
    /// Who is told of it all, second by second.
    pub streams: Streams,
    /// How limits are decided.
    pub limiter: View<LimiterView>,
    /// Sets gauges whose sources are asked when somebody looks, such as the size of the store.
    pub before_scrape: View<()>,
}

impl AdminState {
    /// Another policy is in force from now on.
    pub fn set_in_force(&self, hash: &str) {
        let (at, since) = (self.clock.now(), monotonic());
        *self.in_force.write() = InForce { hash: hash.into(), at, since };
        self.metrics.set_config_hash(hash);
    }

    /// The upstream as it is seen now.
    pub fn upstream_view(&self) -> DependencyView {
        self.upstream.view(monotonic())
    }
}

impl fmt::Debug for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminState").field("instance", &self.instance).finish_non_exhaustive()
    }
}
