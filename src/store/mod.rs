//! Where limiter state lives, and the one call that checks and charges it.

pub mod counters;
pub mod deny;
pub mod failover;
pub mod lease;
pub mod memory;
pub mod places;
pub mod redis;
pub mod share;

use crate::limiter::decision::{Decision, Verdict};

/// Which store made a decision: the `backend` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The store in memory, by configuration.
    Memory,
    /// Redis.
    Redis,
    /// This process's memory, because Redis did not answer.
    Local,
    /// What Redis has said or lent a moment ago.
    Cache,
}

/// What a store says of a request.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly always the large one; a box is an allocation"
)]
pub enum Checked {
    /// Its limits were checked.
    Decided {
        /// Allowed or denied, and the state of each limit.
        decision: Decision,
        /// By whom.
        backend: Backend,
    },
    /// The store did not answer and `on_failure: open` lets the request pass unchecked.
    FailedOpen,
    /// The store did not answer and `on_failure: closed` refuses the request with 503.
    FailedClosed,
}

impl Checked {
    /// Whether the request passes although the store that all replicas share was not asked.
    pub fn is_alone(&self) -> bool {
        match self {
            Checked::Decided { decision, backend } => {
                *backend == Backend::Local && decision.verdict == Verdict::Allow
            }
            Checked::FailedOpen => true,
            Checked::FailedClosed => false,
        }
    }

    /// Whether a limit has refused the request.
    pub fn is_denied(&self) -> bool {
        matches!(self, Checked::Decided { decision, .. } if decision.verdict == Verdict::Deny)
    }
}
