//! From the settings of look-ups to the thread that makes them, and what is shown of it.

use std::sync::Arc;

use crate::config::compile::Settings;
use crate::config::report::{ConfigErrors, Problem};
use crate::health::dependency::DependencyView;
use crate::health::slow::SlowCalls;
use crate::metrics::labels::{BreakerState, LookupResult};
use crate::metrics::registry::DatabaseFigures;
use crate::subscriptions::{StartError, Subscriptions};

use super::Failure;

/// Starts it, where it is configured. Waits some seconds at most for the database to say what it
/// thinks of the query.
///
/// # Errors
/// It thinks nothing of it; there is nothing to check its certificate against; no thread.
pub fn start(
    settings: &Settings,
    workers: usize,
    slow_calls: &Arc<SlowCalls>,
) -> Result<Option<Arc<Subscriptions>>, Failure> {
    let Some(lookup) = &settings.lookup else { return Ok(None) };
    // One more for the control thread.
    let shards = workers.saturating_add(1);
    let started = Subscriptions::start(lookup.settings.clone(), shards, Arc::clone(slow_calls));
    let (place, problem) = match started {
        Ok(subscriptions) => return Ok(Some(Arc::new(subscriptions))),
        Err(StartError::Thread(error)) => {
            let error =
                anyhow::Error::from(error).context("cannot start the subscriptions' thread");
            return Err(Failure::Running(error));
        }
        Err(error @ StartError::Query(_)) => (&lookup.query, Problem::new(error.to_string())),
        Err(error @ StartError::Authorities(_)) => (&lookup.url, Problem::new(error.to_string())),
    };
    Err(Failure::Configuration(ConfigErrors(vec![place.clone().saying(&problem)])))
}

/// How the database does.
pub fn view(subscriptions: &Subscriptions) -> DependencyView {
    let breaker = Some(subscriptions.breaker_state());
    DependencyView { status: subscriptions.status(), breaker }
}

/// What look-ups have counted.
pub fn figures(subscriptions: &Subscriptions) -> DatabaseFigures {
    let stats = subscriptions.stats();
    let (active, idle) = subscriptions.connections();
    let mut figures = DatabaseFigures {
        queue: stats.queue(),
        active,
        idle,
        waits: stats.waits(),
        timeouts: stats.timeouts(),
        slow: stats.slow(),
        ..DatabaseFigures::default()
    };
    for (count, result) in figures.results.iter_mut().zip(LookupResult::ALL) {
        *count = stats.results(*result);
    }
    for (count, state) in figures.transitions.iter_mut().zip(BreakerState::ALL) {
        *count = stats.transitions(*state);
    }
    figures
}
