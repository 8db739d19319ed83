//! The health of one dependency, and of the limiter that may have lost its own.

use crate::limiter::time::Timestamp;
use crate::metrics::labels::{BreakerState, LimiterMode};

/// How well a dependency does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DependencyStatus {
    /// It answers.
    Healthy,
    /// Some calls fail.
    Degraded,
    /// It does not answer.
    Unhealthy,
}

impl DependencyStatus {
    /// As `/health` says it.
    pub const fn as_str(self) -> &'static str {
        match self {
            DependencyStatus::Healthy => "healthy",
            DependencyStatus::Degraded => "degraded",
            DependencyStatus::Unhealthy => "unhealthy",
        }
    }

    /// As the gauge says it.
    pub const fn value(self) -> f64 {
        match self {
            DependencyStatus::Healthy => 1.0,
            DependencyStatus::Degraded => 0.5,
            DependencyStatus::Unhealthy => 0.0,
        }
    }
}

/// One dependency as it is seen now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DependencyView {
    /// Its health.
    pub status: DependencyStatus,
    /// Its circuit breaker, where it has one.
    pub breaker: Option<BreakerState>,
}

/// How limits are decided, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimiterView {
    /// By the store, or by the failure mode that applies where no tier or rule says otherwise.
    pub mode: LimiterMode,
    /// When that began.
    pub since: Timestamp,
}
