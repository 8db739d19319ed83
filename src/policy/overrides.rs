//! What operators have said of single identities while tollgate runs: another tier for a while, or
//! that an identity is refused.
//!
//! A value without I/O: who keeps it, and how it reaches other replicas, is not known here. A change
//! makes another one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::limiter::time::Timestamp;

use super::caller::{Caller, Ordered};
use super::compiled::Policy;
use super::identity::{Identity, IpPrefix};

/// What is said of an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// It has this tier, by the name that the policy knows it by.
    Tier(Arc<str>),
    /// It is refused with 403.
    Deny,
}

/// One identity's override or denial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// Whose.
    pub identity: Identity,
    /// What is said of it.
    pub order: Order,
    /// When it ends; `None`: when it is taken back.
    pub until: Option<Timestamp>,
    /// Why.
    pub reason: Option<Arc<str>>,
    /// When it was said.
    pub set_at: Timestamp,
    /// By whom, as they call themselves.
    pub set_by: Option<Arc<str>>,
    /// From where.
    pub set_from: IpAddr,
    /// On which replica.
    pub set_on: Arc<str>,
}

impl Override {
    /// Whether it holds at that time.
    pub fn holds_at(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

/// Every override and denial.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    tiers: HashMap<Identity, Arc<Override>>,
    denied: HashMap<Identity, Arc<Override>>,
}

impl Overrides {
    /// All of these; of two for one identity and of one kind, the last.
    pub fn new(all: impl IntoIterator<Item = Override>) -> Self {
        let mut overrides = Overrides::default();
        for it in all {
            overrides.insert(it);
        }
        overrides
    }

    /// Adds one, in place of the identity's other one of its kind.
    pub fn insert(&mut self, it: Override) {
        let of_kind = match it.order {
            Order::Tier(_) => &mut self.tiers,
            Order::Deny => &mut self.denied,
        };
        of_kind.insert(it.identity.clone(), Arc::new(it));
    }

    /// Takes one away, if there is one.
    pub fn remove(&mut self, identity: &Identity, is_denial: bool) -> Option<Arc<Override>> {
        let of_kind = if is_denial { &mut self.denied } else { &mut self.tiers };
        of_kind.remove(identity)
    }

    /// Takes away what has expired.
    pub fn prune(&mut self, now: Timestamp) {
        self.tiers.retain(|_, it| it.holds_at(now));
        self.denied.retain(|_, it| it.holds_at(now));
    }

    /// The other tier of an identity, whether it holds or has expired.
    pub fn tier_of(&self, identity: &Identity) -> Option<&Arc<Override>> {
        self.tiers.get(identity)
    }

    /// The denial of an identity, likewise.
    pub fn denial_of(&self, identity: &Identity) -> Option<&Arc<Override>> {
        self.denied.get(identity)
    }

    /// All other tiers, and all denials, in no order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Override>> {
        self.tiers.values().chain(self.denied.values())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.tiers.len() + self.denied.len()
    }

    /// Whether there is none, as there is nearly always.
    pub fn is_empty(&self) -> bool {
        self.tiers.is_empty() && self.denied.is_empty()
    }

    /// What holds for a caller at that time. A denied address is denied whoever the user is.
    pub fn of(&self, policy: &Policy, caller: &Caller, now: Timestamp) -> Option<Ordered> {
        let identity = policy.identity_of(caller);
        let address = || Identity::Ip(IpPrefix::new(caller.address, policy.prefixes));
        let denies = |identity: &Identity| {
            self.denied.get(identity).filter(|it| it.holds_at(now)).map(|it| it.identity.clone())
        };
        let denied = denies(&identity);
        let is_by_address = matches!(identity, Identity::Ip(_));
        if let Some(denied) = denied.or_else(|| denies(&address()).filter(|_| !is_by_address)) {
            return Some(Ordered::Denied(denied));
        }
        match &self.tiers.get(&identity).filter(|it| it.holds_at(now))?.order {
            Order::Tier(tier) => Some(Ordered::Tier(Arc::clone(tier))),
            Order::Deny => None,
        }
    }
}
