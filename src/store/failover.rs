//! What decides a request while Redis does not answer.

use crate::limiter::time::Timestamp;
use crate::policy::compiled::FailureMode;
use crate::policy::plan::Plan;

use super::memory::MemoryStore;
use super::{Backend, Checked};

/// Decides without Redis, by `mode`.
pub fn decide_without(
    mode: FailureMode,
    local: &MemoryStore,
    plan: &Plan<'_>,
    now: Timestamp,
) -> Checked {
    match mode {
        FailureMode::Local => {
            Checked::Decided { decision: local.check(plan, now), backend: Backend::Local }
        }
        FailureMode::Open => Checked::FailedOpen,
        FailureMode::Closed => Checked::FailedClosed,
    }
}
