//! What a request will be checked for, and why.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::limiter::check::Limits;
use crate::limiter::decision::SCOPES_USUAL;

use super::compiled::FailureMode;
use super::identity::Identity;

/// Index of a tier in the policy, in the order of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TierId(pub u16);

/// Index of an endpoint rule in the policy, in the order of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub u16);

/// Where the tier of a request came from, in the order in which they are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierSource {
    /// An operator has said so, by the admin API.
    Override,
    /// `identities:` names it.
    Identities,
    /// The token or key carries it, by name or through `subscriptions:`.
    Credential,
    /// The database of subscriptions knows it, likewise.
    Database,
    /// `networks:` names the caller's network.
    Networks,
    /// None of the others did.
    Default,
}

/// What happens to the request before any upstream is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Its limits are checked.
    Limited,
    /// No limit is checked: the endpoint is exempt. Not counted among the evaluated either.
    Exempt,
    /// Nothing limits it: a tier without limits and no rule that has any.
    Unlimited,
    /// Refused whatever its limits: the identity is on the deny list.
    Refused,
}

/// One scope whose limits the request meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope<'p> {
    /// `None`: the tier's own limits; else the endpoint rule's.
    pub rule: Option<RuleId>,
    /// What the scope is called in Redis: `i` for the tier, `e:NAME` for a rule. By content, not
    /// by position, so that a reload keeps its counters.
    pub key: &'p str,
    /// Hash of `key`, for the store in memory.
    pub key_hash: u64,
    /// The limits and their mode.
    pub limits: Limits,
}

/// Everything that the policy has to say about one request.
#[derive(Clone, Debug)]
pub struct Plan<'p> {
    /// Who is asking.
    pub identity: Identity,
    /// Their tier.
    pub tier: TierId,
    /// Why that tier.
    pub tier_source: TierSource,
    /// A subscription of the caller's that no tier is known for.
    pub unknown_subscription: Option<Arc<str>>,
    /// The rule that names the request in labels: the strict reading's, else the lenient one's.
    pub endpoint: Option<RuleId>,
    /// What to do with it.
    pub disposition: Disposition,
    /// Tokens that it spends from every limit: at least 1.
    pub cost: u32,
    /// What decides without Redis, where the tier or the endpoint says so.
    pub on_failure: Option<FailureMode>,
    scopes: SmallVec<[Scope<'p>; SCOPES_USUAL]>,
}

impl TierSource {
    /// Every source, in the order in which they are asked.
    pub const ALL: [TierSource; 6] = [
        TierSource::Override,
        TierSource::Identities,
        TierSource::Credential,
        TierSource::Database,
        TierSource::Networks,
        TierSource::Default,
    ];

    /// As answers name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            TierSource::Override => "override",
            TierSource::Identities => "identities",
            TierSource::Credential => "credential",
            TierSource::Database => "database",
            TierSource::Networks => "networks",
            TierSource::Default => "default",
        }
    }
}

impl<'p> Plan<'p> {
    /// A plan without scopes.
    pub fn new(identity: Identity, tier: TierId, tier_source: TierSource) -> Self {
        Plan {
            identity,
            tier,
            tier_source,
            unknown_subscription: None,
            endpoint: None,
            disposition: Disposition::Unlimited,
            cost: 1,
            on_failure: None,
            scopes: SmallVec::new(),
        }
    }

    /// Adds a scope behind the others: the tier's first, then one for each rule that is met.
    pub fn push(&mut self, scope: Scope<'p>) {
        self.scopes.push(scope);
    }

    /// The scopes to check, the tier's first.
    pub fn scopes(&self) -> impl Iterator<Item = &Scope<'p>> + Clone {
        self.scopes.iter()
    }

    /// The scope at `index`, as a decision numbers them.
    pub fn scope(&self, index: u8) -> Option<&Scope<'p>> {
        self.scopes.get(usize::from(index))
    }
}
