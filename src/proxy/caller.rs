//! Who sent a request: the address, the credential, and what a database knows of the user.
//!
//! Asks whoever knows, counts what is not believed, and decides nothing.

use std::collections::HashSet;

use parking_lot::Mutex;

use crate::identity::identifier::{Identified, Invalid};
use crate::metrics::edge_labels::IdentityError;
use crate::policy::caller::{Caller, Credential};
use crate::policy::compiled::Policy;
use crate::policy::facts::RequestFacts;
use crate::policy::identity::Identity;
use crate::policy::plan::Plan;
use crate::subscriptions::{Bought, Subscriptions};

use super::address;
use super::gate::{Active, Gate};
use super::headers::Present;

/// Unknown subscriptions that are told of, each once.
const UNKNOWN_TOLD_MAX: usize = 64;

/// Finds out who sent a request. What was presented and not believed comes beside it.
pub async fn of(
    gate: &Gate,
    active: &Active,
    facts: &RequestFacts<'_>,
    present: Present,
) -> (Caller, Option<Invalid>) {
    let (mut caller, invalid) = identified(gate, active, facts, present).await;
    let overrides = gate.overrides.current();
    if !overrides.is_empty() {
        caller.ordered = overrides.of(&active.policy, &caller, gate.clock.now());
    }
    (caller, invalid)
}

async fn identified(
    gate: &Gate,
    active: &Active,
    facts: &RequestFacts<'_>,
    present: Present,
) -> (Caller, Option<Invalid>) {
    let address = address::of(gate, active, facts, present);
    let mut caller = Caller::by_address(address);
    let identify = || gate.identifier.identify(facts, address, gate.clock.now());
    let mut identified = identify();
    if let Some(fetched) = gate.identifier.worth_waiting(&identified) {
        // Boxed, as the other wait below: hardly any request needs the room.
        Box::pin(fetched).await;
        identified = identify();
    }
    match identified {
        Identified::Anonymous => (caller, None),
        Identified::Known(credential, _) => {
            let subscriptions = gate.subscriptions.as_deref();
            let asked = ask_database(subscriptions, &active.policy, &credential).await;
            caller.bought = asked.and_then(Bought::into_plan);
            caller.credential = Some(credential);
            (caller, None)
        }
        Identified::Invalid(invalid) => {
            gate.metrics.identity_error(invalid.reason);
            let (reason, rejected) = (invalid.reason.as_str(), invalid.is_rejected);
            tracing::debug!(%address, reason, rejected, "a credential is not believed");
            (caller, Some(invalid))
        }
    }
}

/// What the database knows that a user has bought; `None`: it is not asked.
pub async fn ask_database(
    subscriptions: Option<&Subscriptions>,
    policy: &Policy,
    credential: &Credential,
) -> Option<Bought> {
    let subscriptions = subscriptions?;
    let Identity::User(user) = &credential.identity else { return None };
    if !policy.asks_database(credential) {
        return None;
    }
    match subscriptions.remembered(user) {
        Some(bought) => Some(bought),
        None => Some(Box::pin(subscriptions.of(user)).await),
    }
}

/// Subscriptions that no tier is known for: counted always, told of once each.
#[derive(Debug, Default)]
pub struct UnknownSubscriptions(Mutex<HashSet<Box<str>>>);

impl UnknownSubscriptions {
    /// Takes note of a plan's, if it has one.
    pub fn note(&self, gate: &Gate, plan: &Plan<'_>) {
        let Some(name) = &plan.unknown_subscription else { return };
        gate.metrics.identity_error(IdentityError::UnknownSubscription);
        let mut told = self.0.lock();
        if told.len() < UNKNOWN_TOLD_MAX && told.insert((**name).into()) {
            tracing::warn!(
                subscription = %name.escape_debug(),
                "no tier is known for this subscription, so it counts as none; \
                 name it under subscriptions in the policy"
            );
        }
    }
}
