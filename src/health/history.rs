//! What the status was in the last hour, and since when it is what it is.

use std::collections::VecDeque;

use crate::limiter::time::{Micros, Timestamp};
use crate::metrics::labels::Dependency;

use super::signs::{Sign, Signs};
use super::verdict::{Evidence, Verdict, is_well};

/// What ended so long ago is forgotten.
pub const KEPT: Micros = Micros::from_micros(60 * Micros::MINUTE.as_micros());
/// More changes than that are forgotten sooner: of a status that changes every ten seconds an hour
/// is kept, and of one that flaps faster, less. At a hundred bytes each.
pub const ENTRIES_MAX: usize = 360;

/// A verdict, and when it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When its like was first seen.
    pub since: Timestamp,
    /// What was found last.
    pub verdict: Verdict,
}

/// The verdicts of the last hour: changes only. Told of the time; a clock that steps back makes
/// entries of the same moment.
#[derive(Debug, Default)]
pub struct History {
    /// Oldest first; the last one holds.
    entries: VecDeque<Entry>,
    /// Whether each is well, and since when.
    dependencies: [Option<(bool, Timestamp)>; Dependency::COUNT],
    /// What checks and calls came to last.
    signs: [(Signs, Signs); Dependency::COUNT],
}

impl History {
    /// Notes what is the case at `now`.
    pub fn observe(&mut self, evidence: &Evidence, verdict: &Verdict, now: Timestamp) {
        for (known, view) in self.dependencies.iter_mut().zip(evidence.dependencies) {
            let is_well = view.map(is_well);
            if known.map(|(was_well, _)| was_well) != is_well {
                *known = is_well.map(|is_well| (is_well, now));
            }
        }
        match self.entries.back_mut() {
            Some(last) if last.verdict.is_like(verdict) => last.verdict.clone_from(verdict),
            last => {
                let since = last.map_or(now, |last| last.since.max(now));
                if self.entries.len() >= ENTRIES_MAX {
                    self.entries.pop_front();
                }
                self.entries.push_back(Entry { since, verdict: verdict.clone() });
            }
        }
        // An entry ends where the next one begins.
        while self.entries.get(1).is_some_and(|next| now.since(next.since) >= KEPT) {
            self.entries.pop_front();
        }
    }

    /// Looks at how many checks of a dependency came to what, and how many calls of it failed how.
    pub fn count(
        &mut self,
        dependency: Dependency,
        checks: impl IntoIterator<Item = (&'static str, u64)>,
        errors: impl IntoIterator<Item = (&'static str, u64)>,
        now: Timestamp,
    ) {
        if let Some((of_checks, of_errors)) = self.signs.get_mut(dependency.index()) {
            of_checks.observe(checks, now);
            of_errors.observe(errors, now);
        }
    }

    /// What the last check of a dependency came to.
    pub fn last_check(&self, dependency: Dependency) -> Option<Sign> {
        self.signs.get(dependency.index())?.0.last()
    }

    /// How a call of a dependency failed last.
    pub fn last_error(&self, dependency: Dependency) -> Option<Sign> {
        self.signs.get(dependency.index())?.1.last()
    }

    /// The verdicts of the last hour, the newest first; that one holds.
    pub fn newest_first(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().rev()
    }

    /// Since when a dependency is well, or is not; `None` where it was not seen.
    pub fn since(&self, dependency: Dependency) -> Option<Timestamp> {
        Some(self.dependencies.get(dependency.index()).copied()??.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::dependency::{DependencyStatus, DependencyView};
    use crate::health::pressure::Severity;
    use crate::metrics::labels::{BreakerState, LimiterMode};

    /// Redis at a second of a simulated clock.
    fn observe(history: &mut History, second: u64, redis: DependencyStatus) {
        observe_both(history, second, redis, BreakerState::Closed);
    }

    fn observe_both(
        history: &mut History,
        second: u64,
        status: DependencyStatus,
        breaker: BreakerState,
    ) {
        let mut evidence = Evidence {
            unready: None,
            is_alive: true,
            workers: 1,
            workers_stuck: 0,
            severity: Severity::Normal,
            limiter: LimiterMode::Exact,
            dependencies: [None; Dependency::COUNT],
        };
        let view = DependencyView { status, breaker: Some(breaker) };
        evidence.dependencies[Dependency::Redis.index()] = Some(view);
        history.observe(&evidence, &Verdict::of(&evidence), at(second));
    }

    fn at(second: u64) -> Timestamp {
        Timestamp::from_micros(second * 1_000_000)
    }

    fn written(history: &History) -> Vec<(u64, &'static str)> {
        let entry = |it: &Entry| (it.since.as_secs_ceil(), it.verdict.status.as_str());
        history.newest_first().map(entry).collect()
    }

    #[test]
    fn changes_are_kept_for_an_hour() {
        let mut history = History::default();
        assert_eq!(history.since(Dependency::Redis), None);
        for second in 0..10_000 {
            let is_gone = (1_000..1_060).contains(&second) || (5_000..5_001).contains(&second);
            let redis =
                if is_gone { DependencyStatus::Unhealthy } else { DependencyStatus::Healthy };
            observe(&mut history, second, redis);
            let expected: &[(u64, &str)] = match second {
                0..1_000 => &[(0, "healthy")],
                1_000..1_060 => &[(1_000, "degraded"), (0, "healthy")],
                1_060..4_600 => &[(1_060, "healthy"), (1_000, "degraded"), (0, "healthy")],
                // The first one ended an hour ago, then the second did.
                4_600..4_660 => &[(1_060, "healthy"), (1_000, "degraded")],
                4_660..5_000 => &[(1_060, "healthy")],
                5_000 => &[(5_000, "degraded"), (1_060, "healthy")],
                5_001..8_600 => &[(5_001, "healthy"), (5_000, "degraded"), (1_060, "healthy")],
                8_600 => &[(5_001, "healthy"), (5_000, "degraded")],
                8_601.. => &[(5_001, "healthy")],
            };
            assert_eq!(written(&history), expected, "{second}");
        }
        assert_eq!(history.since(Dependency::Redis), Some(at(5_001)));
        assert_eq!(history.since(Dependency::Database), None);
    }

    #[test]
    fn a_status_that_flaps_takes_no_more_memory() {
        let mut history = History::default();
        for second in 0..10_000 {
            let statuses = [DependencyStatus::Healthy, DependencyStatus::Unhealthy];
            observe(&mut history, second, statuses[usize::from(second % 2 == 0)]);
        }
        assert_eq!(history.newest_first().count(), ENTRIES_MAX);
        assert_eq!(written(&history)[0].0, 9_999);
    }

    #[test]
    fn probes_of_what_is_gone_are_no_news() {
        let mut history = History::default();
        observe(&mut history, 0, DependencyStatus::Healthy);
        observe(&mut history, 10, DependencyStatus::Unhealthy);
        for second in 11..1_000 {
            let (status, breaker) = match second % 2 {
                0 => (DependencyStatus::Degraded, BreakerState::HalfOpen),
                _ => (DependencyStatus::Unhealthy, BreakerState::Open),
            };
            observe_both(&mut history, second, status, breaker);
        }
        assert_eq!(written(&history), [(10, "degraded"), (0, "healthy")]);
        assert_eq!(history.since(Dependency::Redis), Some(at(10)));
        let last = &history.newest_first().next().unwrap().verdict.reasons;
        let said: Vec<String> = last.iter().map(ToString::to_string).collect();
        assert_eq!(said, ["redis unhealthy", "redis circuit open"]);
        observe(&mut history, 1_000, DependencyStatus::Healthy);
        assert_eq!(history.since(Dependency::Redis), Some(at(1_000)));
    }

    #[test]
    fn a_clock_that_steps_back_makes_no_entry_begin_before_the_last() {
        let mut history = History::default();
        observe(&mut history, 5_000, DependencyStatus::Healthy);
        observe(&mut history, 1_000, DependencyStatus::Unhealthy);
        observe(&mut history, 1_001, DependencyStatus::Unhealthy);
        assert_eq!(written(&history), [(5_000, "degraded"), (5_000, "healthy")]);
        observe(&mut history, 9_000, DependencyStatus::Unhealthy);
        assert_eq!(written(&history), [(5_000, "degraded")]);
    }
}
