//! A key set that is published at a URL, kept fresh beside the requests.
//!
//! The set is fetched at the start, every few minutes, and when a token names a key that is not in
//! it: providers rotate their keys. That last reason is a stranger's to give, so it counts only now
//! and then. The last good set stays through any outage.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::Uri;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::clock::{Clock, monotonic};
use crate::health::breaker::{BreakerSettings, Outcome, jitter};
use crate::health::dependency::{DependencyStatus, DependencyView};
use crate::health::shared_breaker::SharedBreaker;
use crate::health::slow::{SlowCall, SlowCalls};
use crate::metrics::labels::{BreakerState, CheckResult, Dependency, QueryType};
use crate::metrics::registry::Metrics;

use super::algorithm::Algorithm;
use super::fetch::{FetchError, Fetcher};
use super::keys::KeySet;

/// How often a set is fetched; a tenth more or less.
pub const INTERVAL: Duration = Duration::from_secs(300);
/// Least time between two fetches that tokens with unknown key ids bring about.
pub const UNKNOWN_KID_GAP: Duration = Duration::from_secs(5);
/// How long the request of such a token waits for the fetch.
pub const UNKNOWN_KID_PATIENCE: Duration = Duration::from_secs(1);
/// First and longest pause after a fetch that failed.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Keys, and which version of them.
#[derive(Debug, Default)]
pub struct Keys {
    /// The keys.
    pub set: KeySet,
    /// Another number for another set.
    pub generation: u64,
}

/// The keys in force; replaced as a whole.
#[derive(Debug, Default)]
pub struct KeySource(ArcSwap<Keys>);

impl KeySource {
    /// With these keys.
    pub fn new(set: KeySet) -> Self {
        KeySource(ArcSwap::from_pointee(Keys { set, generation: 0 }))
    }

    /// The keys.
    pub fn load(&self) -> arc_swap::Guard<Arc<Keys>> {
        self.0.load()
    }

    /// From now on these.
    pub fn replace(&self, set: KeySet) {
        let generation = self.0.load().generation.wrapping_add(1);
        self.0.store(Arc::new(Keys { set, generation }));
    }
}

/// A key set at a URL.
#[derive(Debug)]
pub struct RemoteKeys {
    /// The keys in force, none before the first fetch.
    pub source: Arc<KeySource>,
    fetcher: Fetcher,
    /// The URL without user, password and query.
    shown: String,
    algorithms: Box<[Algorithm]>,
    breaker: Arc<SharedBreaker>,
    attempt: Mutex<Attempt>,
    wanted: Notify,
    /// Attempts that have ended.
    ended: watch::Sender<u64>,
    slow: Duration,
    slow_calls: Arc<SlowCalls>,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Attempt {
    is_running: bool,
    last_ended: Option<Instant>,
    failures: u32,
    /// The bytes of the set in force.
    body: bytes::Bytes,
}

impl RemoteKeys {
    /// A set that was not fetched yet. A fetch that takes longer than `slow` is counted, and told
    /// of among `slow_calls`.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(
        url: &Uri,
        algorithms: &[Algorithm],
        slow: Duration,
        slow_calls: Arc<SlowCalls>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, rustls::Error> {
        let host = url.authority().map_or("", |it| it.as_str());
        let host = host.rsplit('@').next().unwrap_or_default();
        let shown = format!("{}://{host}{}", url.scheme_str().unwrap_or_default(), url.path());
        metrics.jwks_configured();
        Ok(RemoteKeys {
            source: Arc::default(),
            fetcher: Fetcher::new(url.clone())?,
            shown,
            algorithms: algorithms.into(),
            breaker: SharedBreaker::new(BreakerSettings::STEADY, monotonic()),
            attempt: Mutex::default(),
            wanted: Notify::new(),
            ended: watch::Sender::new(0),
            slow,
            slow_calls,
            metrics,
        })
    }

    /// Fetches the set now and then, for ever.
    pub async fn keep_fresh(&self) {
        loop {
            // What came of it has been noted, and told of.
            let _ = self.refresh().await;
            let pause = self.pause();
            // Whoever asks has been told whether they may.
            let _ = tokio::time::timeout(pause, self.wanted.notified()).await;
        }
    }

    /// Where it is published: the URL without user, password and query.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Fetches the set once.
    ///
    /// # Errors
    /// Why there is no new one; names no URL.
    pub async fn refresh(&self) -> Result<(), String> {
        self.attempt.lock().is_running = true;
        let started = monotonic();
        let fetched = self.fetcher.fetch().await;
        let now = monotonic();
        let took = now.saturating_duration_since(started);
        let timed_out = matches!(fetched, Err(FetchError::Timeout));
        if took > self.slow {
            self.metrics.slow_query(QueryType::Jwks);
        }
        if timed_out {
            self.metrics.query_timed_out(QueryType::Jwks);
        }
        if took > self.slow || timed_out {
            let call = SlowCall::new(QueryType::Jwks, Clock::System.now(), took, timed_out);
            self.slow_calls.note(call, now);
        }
        let result = fetched.map_err(|error| error.to_string()).and_then(|body| self.take(body));
        let checked = match &result {
            Ok(()) => CheckResult::Ok,
            Err(_) if timed_out => CheckResult::Timeout,
            Err(_) => CheckResult::Error,
        };
        self.metrics.checks_of(Dependency::Jwks).record(checked, took);
        self.metrics.jwks_fetched(result.is_ok(), self.source.load().set.len());
        self.note(&result, now);
        self.ended.send_modify(|count| *count = count.wrapping_add(1));
        result
    }

    /// Waits until a fetch has ended, of which one that runs or ran is as good as the next.
    pub async fn wait_fetched(&self, at_most: Duration) {
        let mut ended = self.ended.subscribe();
        let _ = tokio::time::timeout(at_most, ended.wait_for(|count| *count > 0)).await;
    }

    /// A token names a key that is not in the set. Where that is worth a fetch, or one is running,
    /// its end is worth waiting for; not so where one after the other has failed.
    pub fn worth_waiting(&self) -> Option<impl Future<Output = ()> + use<>> {
        if !self.breaker.is_closed() {
            return None;
        }
        let mut attempt = self.attempt.lock();
        if !attempt.is_running {
            let is_soon = attempt
                .last_ended
                .is_some_and(|at| monotonic().saturating_duration_since(at) < UNKNOWN_KID_GAP);
            if is_soon {
                return None;
            }
            attempt.is_running = true;
            self.wanted.notify_one();
        }
        // Subscribed under the lock, so that the end cannot be missed.
        let mut ended = self.ended.subscribe();
        ended.mark_unchanged();
        Some(async move {
            let _ = tokio::time::timeout(UNKNOWN_KID_PATIENCE, ended.changed()).await;
        })
    }

    /// What is to be said of it as a dependency.
    pub fn view(&self) -> DependencyView {
        let breaker = self.breaker.state();
        let failed = self.attempt.lock().failures > 0;
        let has_keys = !self.source.load().set.is_empty();
        let status = match (has_keys, failed) {
            (true, false) => DependencyStatus::Healthy,
            // What was fetched before still serves.
            (true, true) => DependencyStatus::Degraded,
            (false, _) => DependencyStatus::Unhealthy,
        };
        DependencyView { status, breaker: Some(breaker) }
    }

    /// Takes a set over, if it is another one.
    fn take(&self, body: bytes::Bytes) -> Result<(), String> {
        if !body.is_empty() && self.attempt.lock().body == body {
            return Ok(());
        }
        let set = KeySet::parse(&body, &self.algorithms).map_err(|error| error.to_string())?;
        tracing::info!(
            url = self.shown,
            keys = set.len(),
            skipped = set.skipped(),
            "a key set was fetched"
        );
        self.source.replace(set);
        self.attempt.lock().body = body;
        Ok(())
    }

    fn note(&self, result: &Result<(), String>, now: Instant) {
        let outcome = if result.is_ok() { Outcome::Good } else { Outcome::Bad };
        let changed = match self.breaker.probe_now(now, jitter()) {
            Some(probe) => probe.end(outcome, now, jitter()),
            None => self.breaker.record(outcome, now, jitter()),
        };
        if let Some(state) = changed {
            self.metrics.breaker_changed(Dependency::Jwks, state);
        }
        let mut attempt = self.attempt.lock();
        attempt.is_running = false;
        attempt.last_ended = Some(now);
        match result {
            Ok(()) => attempt.failures = 0,
            Err(error) => {
                attempt.failures = attempt.failures.saturating_add(1);
                let keys = self.source.load().set.len();
                let url = &self.shown;
                if keys > 0 {
                    tracing::warn!(
                        url,
                        error,
                        keys,
                        "a key set could not be fetched; the last good one holds"
                    );
                } else {
                    tracing::warn!(
                        url,
                        error,
                        "a key set could not be fetched, and there is none: no token is believed"
                    );
                }
            }
        }
    }

    /// How long until the next fetch.
    fn pause(&self) -> Duration {
        let failures = self.attempt.lock().failures;
        if failures == 0 && self.breaker.state() == BreakerState::Closed {
            return jittered(INTERVAL);
        }
        let (first, longest) = BACK_OFF;
        let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(10));
        // A fifth more or less.
        doubled.min(longest).mul_f64(0.8 + 0.4 * jitter())
    }
}

/// Nine to eleven tenths of it, so that replicas do not ask in step.
fn jittered(span: Duration) -> Duration {
    span.mul_f64(0.9 + jitter() / 5.0)
}
