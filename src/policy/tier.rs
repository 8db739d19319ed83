//! Which tier a caller is on: everything that may say so, in order; the first that does, does.
//!
//! The request path takes the first answer, `explain` shows them all: they are the same steps.

use std::net::IpAddr;
use std::sync::Arc;

use super::caller::{Caller, Credential, Ordered};
use super::compiled::{Assigned, Policy};
use super::identity::{Identity, IpPrefix};
use super::plan::{TierId, TierSource};

/// Longest name that is looked for among tiers and subscriptions, in bytes; files hold none longer.
pub const PLAN_BYTES_MAX: usize = 256;

/// What one source says of a caller's tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierStep {
    /// Who was asked.
    pub source: TierSource,
    /// The answer.
    pub finding: Finding,
}

/// What a source answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// This tier.
    Tier(TierId),
    /// The caller is refused.
    Deny,
    /// A subscription that no tier is known for: it counts as none.
    Unknown(Arc<str>),
    /// Nothing.
    Nothing,
}

/// A caller's tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The tier; of who is refused, the default one.
    pub tier: TierId,
    /// Who said so.
    pub source: TierSource,
    /// Whether the caller is on the deny list.
    pub is_refused: bool,
    /// A subscription on the way that no tier is known for.
    pub unknown: Option<Arc<str>>,
}

impl Policy {
    /// Who a caller is: what was presented and verified, else the address.
    pub fn identity_of(&self, caller: &Caller) -> Identity {
        match &caller.credential {
            Some(credential) => credential.identity.clone(),
            None => Identity::Ip(IpPrefix::new(caller.address, self.prefixes)),
        }
    }

    /// The tier of a caller whose identity is `identity`.
    pub fn resolve(&self, identity: &Identity, caller: &Caller) -> Resolved {
        let mut unknown = None;
        for TierStep { source, finding } in self.tier_steps(identity, caller) {
            match finding {
                Finding::Tier(tier) => {
                    return Resolved { tier, source, is_refused: false, unknown };
                }
                Finding::Deny => {
                    let tier = self.default_tier;
                    return Resolved { tier, source, is_refused: true, unknown };
                }
                // Not of the caller's plan: the operator has seen it named where it was set.
                Finding::Unknown(_) if source == TierSource::Override => {}
                Finding::Unknown(name) => unknown = Some(name),
                Finding::Nothing => {}
            }
        }
        // Not reached: the default tier always answers.
        let source = TierSource::Default;
        Resolved { tier: self.default_tier, source, is_refused: false, unknown }
    }

    /// What every source says, in the order in which they count. Each is asked when its turn comes.
    pub fn tier_steps<'a>(
        &'a self,
        identity: &'a Identity,
        caller: &'a Caller,
    ) -> impl Iterator<Item = TierStep> + 'a {
        TierSource::ALL
            .into_iter()
            .map(move |source| TierStep { source, finding: self.ask(source, identity, caller) })
    }

    /// Whether the database of subscriptions may have a say in the caller's tier: a user whom
    /// nothing that goes before it has given one.
    pub fn asks_database(&self, credential: &Credential) -> bool {
        let Credential { identity, subscription } = credential;
        let is_user = matches!(identity, Identity::User(_));
        let is_known = subscription.as_deref().is_some_and(|name| self.tier_named(name).is_some());
        is_user && !is_known && !self.identities.contains_key(identity)
    }

    /// Whether some tier or subscription has that name, in any case of letters.
    pub fn knows_plan(&self, name: &str) -> bool {
        self.tier_named(name).is_some()
    }

    fn ask(&self, source: TierSource, identity: &Identity, caller: &Caller) -> Finding {
        match source {
            TierSource::Override => self.ordered(identity, caller),
            TierSource::Identities => self.assigned(identity, caller.address),
            TierSource::Credential => {
                let credential = caller.credential.as_ref();
                self.subscribed(credential.and_then(|it| it.subscription.as_ref()))
            }
            TierSource::Database => self.subscribed(caller.bought.as_ref()),
            TierSource::Networks => match identity {
                Identity::Ip(_) => {
                    let is_in =
                        |(network, _): &&(ipnet::IpNet, TierId)| network.contains(&caller.address);
                    let network = self.networks.iter().find(is_in);
                    network.map_or(Finding::Nothing, |(_, tier)| Finding::Tier(*tier))
                }
                Identity::User(_) | Identity::Key(_) => Finding::Nothing,
            },
            TierSource::Default => Finding::Tier(self.default_tier),
        }
    }

    /// Another tier lifts what the file says of this very identity, not that its address is refused.
    fn ordered(&self, identity: &Identity, caller: &Caller) -> Finding {
        match &caller.ordered {
            None => Finding::Nothing,
            Some(Ordered::Denied(_)) => Finding::Deny,
            Some(Ordered::Tier(_))
                if !matches!(identity, Identity::Ip(_)) && self.denies(caller.address) =>
            {
                Finding::Nothing
            }
            Some(Ordered::Tier(name)) => self.subscribed(Some(name)),
        }
    }

    /// Whether the file refuses an address, whoever the user is.
    fn denies(&self, address: IpAddr) -> bool {
        let by_address = Identity::Ip(IpPrefix::new(address, self.prefixes));
        self.identities.get(&by_address) == Some(&Assigned::Deny)
    }

    fn assigned(&self, identity: &Identity, address: IpAddr) -> Finding {
        if self.identities.is_empty() {
            return Finding::Nothing;
        }
        if self.denies(address) {
            return Finding::Deny;
        }
        match self.identities.get(identity) {
            Some(Assigned::Deny) => Finding::Deny,
            Some(Assigned::Tier(tier)) => Finding::Tier(*tier),
            None => Finding::Nothing,
        }
    }

    fn subscribed(&self, name: Option<&Arc<str>>) -> Finding {
        match name.map(|name| (name, self.tier_named(name))) {
            None => Finding::Nothing,
            Some((_, Some(tier))) => Finding::Tier(tier),
            Some((name, None)) => Finding::Unknown(Arc::clone(name)),
        }
    }

    /// The tier of a subscription; a tier's own name stands for itself, in any case of letters.
    fn tier_named(&self, name: &str) -> Option<TierId> {
        let mut lower = [0; PLAN_BYTES_MAX];
        let lower = lower.get_mut(..name.len())?;
        lower.copy_from_slice(name.as_bytes());
        lower.make_ascii_lowercase();
        self.plans.get(std::str::from_utf8(lower).ok()?).copied()
    }
}
