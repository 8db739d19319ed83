//! How well this process does, over all that is known of it: the `status` of `/health`.
//!
//! A dependency that is gone does not make tollgate unhealthy: restarting tollgate, which is what
//! orchestrators do to the unhealthy, would help nobody. Only what keeps it from serving does.

use std::fmt;

use crate::metrics::labels::{BreakerState, Dependency, LimiterMode};

use super::dependency::{DependencyStatus, DependencyView};
use super::pressure::Severity;
use super::readiness::Unready;

/// What the verdict is made of.
#[derive(Clone, Copy, Debug)]
pub struct Evidence {
    /// Why no new requests should be sent here.
    pub unready: Option<Unready>,
    /// Whether the heart of any worker beats.
    pub is_alive: bool,
    /// How many workers there are.
    pub workers: usize,
    /// Those of them that hang.
    pub workers_stuck: usize,
    /// How bad the backpressure is.
    pub severity: Severity,
    /// How limits are decided.
    pub limiter: LimiterMode,
    /// Each dependency, in the order of [`Dependency::ALL`]; `None`: not configured.
    pub dependencies: [Option<DependencyView>; Dependency::COUNT],
}

/// The status, and what speaks against a better one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Healthy; degraded: it serves, but not all is well; unhealthy: it cannot serve.
    pub status: DependencyStatus,
    /// Why, the worst first. Empty when healthy.
    pub reasons: Vec<Reason>,
}

/// What speaks against a better status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No new requests should be sent here.
    Unready(Unready),
    /// So many workers of so many hang.
    WorkersStuck(usize, usize),
    /// It cannot keep up.
    Pressure(Severity),
    /// The store does not decide the limits.
    Limiter(LimiterMode),
    /// A dependency does not answer, or not always.
    Dependency(Dependency, DependencyStatus),
    /// A dependency is not asked, or no more than to see whether it is back.
    Breaker(Dependency, BreakerState),
}

impl Evidence {
    /// Each dependency's name and view, by name.
    pub fn by_name(&self) -> impl Iterator<Item = (&'static str, Option<DependencyView>)> {
        let mut all: Vec<_> = Dependency::ALL.iter().zip(self.dependencies).collect();
        all.sort_unstable_by_key(|(dependency, _)| dependency.as_str());
        all.into_iter().map(|(dependency, view)| (dependency.as_str(), view))
    }
}

impl Verdict {
    /// The verdict over this evidence.
    pub fn of(evidence: &Evidence) -> Self {
        let Evidence { unready, is_alive, workers, workers_stuck, severity, .. } = *evidence;
        let Evidence { limiter, dependencies, .. } = *evidence;
        let mut reasons = Vec::new();
        reasons.extend(unready.map(Reason::Unready));
        reasons.extend((workers_stuck > 0).then_some(Reason::WorkersStuck(workers_stuck, workers)));
        // A warning comes and goes with a burst, and says so in its own place.
        let is_pressed = severity == Severity::Critical;
        reasons.extend(is_pressed.then_some(Reason::Pressure(severity)));
        reasons.extend((limiter != LimiterMode::Exact).then_some(Reason::Limiter(limiter)));
        for (dependency, view) in Dependency::ALL.iter().zip(dependencies) {
            let Some(DependencyView { status, breaker }) = view else { continue };
            let is_impaired = status != DependencyStatus::Healthy;
            reasons.extend(is_impaired.then_some(Reason::Dependency(*dependency, status)));
            let breaker = breaker.filter(|it| *it != BreakerState::Closed);
            reasons.extend(breaker.map(|it| Reason::Breaker(*dependency, it)));
        }
        let status = if unready.is_some() || !is_alive {
            DependencyStatus::Unhealthy
        } else if reasons.is_empty() {
            DependencyStatus::Healthy
        } else {
            DependencyStatus::Degraded
        };
        Verdict { status, reasons }
    }

    /// Whether both say much the same: how many workers hang, and whether a dependency that is not
    /// well is being probed just now, is of no account.
    pub fn is_like(&self, other: &Verdict) -> bool {
        self.status == other.status && self.causes().eq(other.causes())
    }

    fn causes(&self) -> impl Iterator<Item = Reason> {
        let mut last = None;
        let causes = self.reasons.iter().map(|reason| match *reason {
            Reason::WorkersStuck(..) => Reason::WorkersStuck(0, 0),
            Reason::Dependency(which, _) | Reason::Breaker(which, _) => {
                Reason::Dependency(which, DependencyStatus::Unhealthy)
            }
            reason => reason,
        });
        // The two of one dependency stand side by side.
        causes.filter(move |cause| last.replace(*cause) != Some(*cause))
    }
}

/// Whether a dependency answers, and all calls pass.
pub fn is_well(view: DependencyView) -> bool {
    let DependencyView { status, breaker } = view;
    status == DependencyStatus::Healthy && breaker.is_none_or(|it| it == BreakerState::Closed)
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Unready(why) => write!(f, "not ready: {}", why.as_str()),
            Reason::WorkersStuck(stuck, workers) => write!(f, "{stuck} of {workers} workers stuck"),
            Reason::Pressure(severity) => write!(f, "backpressure {}", severity.as_str()),
            Reason::Limiter(mode) => write!(f, "limits decided in mode {}", mode.as_str()),
            Reason::Dependency(which, status) => {
                write!(f, "{} {}", which.as_str(), status.as_str())
            }
            Reason::Breaker(which, state) => {
                write!(f, "{} circuit {}", which.as_str(), state.as_str())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Evidence = Evidence {
        unready: None,
        is_alive: true,
        workers: 2,
        workers_stuck: 0,
        severity: Severity::Normal,
        limiter: LimiterMode::Exact,
        dependencies: [None; Dependency::COUNT],
    };

    fn check(evidence: &Evidence, status: DependencyStatus, reasons: &[&str]) {
        let verdict = Verdict::of(evidence);
        let said: Vec<String> = verdict.reasons.iter().map(ToString::to_string).collect();
        assert_eq!(
            (verdict.status, said),
            (status, reasons.iter().map(|it| (*it).into()).collect())
        );
    }

    fn with(dependency: Dependency, status: DependencyStatus, breaker: BreakerState) -> Evidence {
        let mut evidence = WELL;
        evidence.dependencies[dependency.index()] =
            Some(DependencyView { status, breaker: Some(breaker) });
        evidence
    }

    #[test]
    fn only_what_keeps_it_from_serving_is_unhealthy() {
        use DependencyStatus::{Degraded, Healthy, Unhealthy};
        check(&WELL, Healthy, &[]);
        check(&with(Dependency::Redis, Healthy, BreakerState::Closed), Healthy, &[]);
        let half_open = with(Dependency::Redis, Healthy, BreakerState::HalfOpen);
        check(&half_open, Degraded, &["redis circuit half_open"]);
        let gone = with(Dependency::Upstream, Unhealthy, BreakerState::Open);
        check(&gone, Degraded, &["upstream unhealthy", "upstream circuit open"]);
        let local = Evidence { limiter: LimiterMode::Local, ..WELL };
        check(&local, Degraded, &["limits decided in mode local"]);
        let pressed = Evidence { severity: Severity::Critical, workers_stuck: 1, ..WELL };
        check(&pressed, Degraded, &["1 of 2 workers stuck", "backpressure critical"]);
        check(&Evidence { severity: Severity::Warning, ..WELL }, Healthy, &[]);
        let all_hang = Evidence { workers_stuck: 2, ..WELL };
        check(&all_hang, Degraded, &["2 of 2 workers stuck"]);
        let dead = Evidence { is_alive: false, ..all_hang };
        check(&dead, Unhealthy, &["2 of 2 workers stuck"]);
        for (why, text) in [
            (Unready::Starting, "not ready: starting"),
            (Unready::Draining, "not ready: draining"),
            (Unready::LimiterClosed, "not ready: limiter_closed"),
        ] {
            check(&Evidence { unready: Some(why), ..WELL }, Unhealthy, &[text]);
        }
    }
}
