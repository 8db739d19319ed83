//! What operators did, who they were, and when: the last of it, for eyes.

use std::net::IpAddr;
use std::sync::Arc;

use crate::limiter::time::Timestamp;
use crate::metrics::edge_labels::AdminChange;
use crate::policy::identity::Identity;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// An identity got another tier.
    OverrideSet,
    /// It lost it again.
    OverrideRemoved,
    /// An identity was refused from then on.
    DenySet,
    /// It was not any more.
    DenyRemoved,
    /// Its counters were reset.
    Reset,
    /// The files were read anew.
    Reload,
}

/// One thing that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What.
    pub action: Action,
    /// To whom.
    pub identity: Option<Identity>,
    /// The tier, or the policy's hash.
    pub detail: Option<Arc<str>>,
    /// When.
    pub at: Timestamp,
    /// By whom, as they call themselves.
    pub by: Option<Arc<str>>,
    /// From where.
    pub from: IpAddr,
    /// On which replica.
    pub on: Arc<str>,
}

impl Action {
    const ALL: [Action; 6] = [
        Action::OverrideSet,
        Action::OverrideRemoved,
        Action::DenySet,
        Action::DenyRemoved,
        Action::Reset,
        Action::Reload,
    ];

    /// As answers name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Action::OverrideSet => "override.set",
            Action::OverrideRemoved => "override.remove",
            Action::DenySet => "deny.set",
            Action::DenyRemoved => "deny.remove",
            Action::Reset => "reset",
            Action::Reload => "reload",
        }
    }

    /// The action of that name.
    pub fn named(name: &str) -> Option<Self> {
        Action::ALL.into_iter().find(|it| it.as_str() == name)
    }

    /// What it is counted as.
    pub const fn label(self) -> AdminChange {
        match self {
            Action::OverrideSet => AdminChange::OverrideSet,
            Action::OverrideRemoved => AdminChange::OverrideRemoved,
            Action::DenySet => AdminChange::DenySet,
            Action::DenyRemoved => AdminChange::DenyRemoved,
            Action::Reset => AdminChange::Reset,
            Action::Reload => AdminChange::Reload,
        }
    }
}
