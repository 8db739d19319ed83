//! What decides a request while Redis does not answer.

use crate::limiter::decision::Decision;
use crate::policy::compiled::FailureMode;

use super::{Backend, Checked};

/// Decides without Redis, by `mode`. `alone` decides by this replica's share.
pub fn decide_without(mode: FailureMode, alone: impl FnOnce() -> Decision) -> Checked {
    match mode {
        FailureMode::Local => Checked::Decided { decision: alone(), backend: Backend::Local },
        FailureMode::Open => Checked::FailedOpen,
        FailureMode::Closed => Checked::FailedClosed,
    }
}
