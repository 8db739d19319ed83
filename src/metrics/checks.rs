//! What checks of dependencies came to, and how long they took.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::exposition::Family;
use super::histogram::{HistogramCells, HistogramTotals, REQUEST_EDGES};
use super::labels::{CheckResult, Dependency};
use super::names;
use super::registry::Metrics;
use super::series::{count, total};

/// The checks of one dependency. They are rare: one set of cells does for all threads.
#[derive(Debug, Default)]
pub struct CheckCells {
    results: [AtomicU64; CheckResult::COUNT],
    durations: HistogramCells,
}

impl CheckCells {
    /// A check came to this after so long.
    pub fn record(&self, result: CheckResult, took: Duration) {
        count(&self.results, result.index());
        self.durations.record(REQUEST_EDGES, took);
    }

    /// So many checks came to this.
    pub fn count(&self, result: CheckResult) -> u64 {
        total(self.results.get(result.index()).into_iter())
    }
}

impl Metrics {
    /// The cells of a dependency that is checked: from now on its series are there.
    pub fn checks_of(&self, dependency: Dependency) -> Arc<CheckCells> {
        Arc::clone(self.named.lock().checks.entry(dependency.index()).or_default())
    }

    /// How many checks of a dependency came to what; empty where it is not checked.
    pub fn check_totals(&self, dependency: Dependency) -> Vec<(&'static str, u64)> {
        let named = self.named.lock();
        let Some(cells) = named.checks.get(&dependency.index()) else { return Vec::new() };
        CheckResult::ALL.iter().map(|it| (it.as_str(), cells.count(*it))).collect()
    }

    /// Shows what was counted elsewhere.
    pub fn adopt_checks(&self, dependency: Dependency, cells: &Arc<CheckCells>) {
        self.named.lock().checks.insert(dependency.index(), Arc::clone(cells));
    }

    pub(super) fn publish_checks(&self) -> Family {
        let checks = self.named.lock().checks.clone();
        let mut durations = Family::new(&names::HEALTHCHECK_DURATION);
        for (index, cells) in checks {
            let Some(dependency) = Dependency::ALL.get(index) else { continue };
            for result in CheckResult::ALL {
                let labels = [dependency.as_str(), result.as_str()];
                let counter = self.handles.counter(&names::HEALTHCHECKS, &labels);
                counter.absolute(cells.count(*result));
            }
            let totals = HistogramTotals::of(std::iter::once(&cells.durations));
            durations.histogram(&[dependency.as_str()], REQUEST_EDGES, &totals);
        }
        durations
    }
}
