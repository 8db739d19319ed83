//! What is counted of credentials and of the keys that they are verified with.

use super::edge_labels::CacheResult;
use super::labels::{Attempt, BreakerState, Dependency};
use super::names;
use super::registry::Metrics;
use super::series::count;

impl Metrics {
    /// A token was looked for among those that are remembered.
    #[inline]
    pub fn token_looked_up(&self, is_known: bool) {
        let result = if is_known { CacheResult::Hit } else { CacheResult::Miss };
        self.process.with_own(|cells| count(&cells.token_lookups, result.index()));
    }

    /// So many tokens are remembered.
    pub fn set_tokens_remembered(&self, tokens: usize) {
        self.handles.gauge(&names::TOKEN_CACHE_ENTRIES, &[]).set(tokens as f64);
    }

    /// A key set is fetched from now on: its series are there.
    pub fn jwks_configured(&self) {
        for result in Attempt::ALL {
            self.handles.show(&names::JWKS_FETCHES, &[result.as_str()]);
        }
        self.handles.gauge(&names::JWKS_KEYS, &[]).set(0.0);
        self.set_breaker(Dependency::Jwks, BreakerState::Closed);
        self.checks_of(Dependency::Jwks);
    }

    /// A key set was fetched, or was not; so many keys are in force.
    pub fn jwks_fetched(&self, is_good: bool, keys: usize) {
        let result = if is_good { Attempt::Ok } else { Attempt::Error };
        self.handles.counter(&names::JWKS_FETCHES, &[result.as_str()]).increment(1);
        self.handles.gauge(&names::JWKS_KEYS, &[]).set(keys as f64);
    }

    /// A circuit breaker came to another state.
    pub fn breaker_changed(&self, service: Dependency, state: BreakerState) {
        let labels = [service.as_str(), state.as_str()];
        self.handles.counter(&names::BREAKER_TRANSITIONS, &labels).increment(1);
        self.set_breaker(service, state);
    }
}
