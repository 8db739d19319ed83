//! Everything that the admin port looks at.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Mutex, RwLock};

use crate::clock::{Clock, monotonic};
use crate::health::dependency::{DependencyView, LimiterView};
use crate::health::detector::Detector;
use crate::health::heartbeat::Heartbeats;
use crate::health::history::History;
use crate::health::memory::MemoryView;
use crate::health::readiness::Readiness;
use crate::health::slow::SlowCalls;
use crate::health::upstream::UpstreamHealth;
use crate::metrics::registry::Metrics;
use crate::top::talkers::TopTalkers;
use crate::usage::flush::Usage;

use super::access::AdminToken;
use super::failures::TokenFailures;

/// A question that another module answers: what it knows at this moment.
pub type View<T> = Box<dyn Fn() -> T + Send + Sync>;

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
    /// Hash of the configuration in force; a reload replaces it.
    pub config_hash: RwLock<Box<str>>,
    /// What `/api` asks for; without one it answers on loopback alone.
    pub token: Option<AdminToken>,
    /// Who presented something else.
    pub failures: TokenFailures,
    /// Bound, draining.
    pub readiness: Arc<Readiness>,
    /// Whether it keeps up.
    pub detector: Arc<Detector>,
    /// The workers' hearts.
    pub heartbeats: Arc<Heartbeats>,
    /// What calls to the upstream came to.
    pub upstream: Arc<UpstreamHealth>,
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
    /// How limits are decided.
    pub limiter: View<LimiterView>,
    /// Sets gauges whose sources are asked when somebody looks, such as the size of the store.
    pub before_scrape: View<()>,
}

impl AdminState {
    /// Replaces the hash of the configuration in force.
    pub fn set_config_hash(&self, hash: &str) {
        *self.config_hash.write() = hash.into();
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
