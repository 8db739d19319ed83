//! The compiled policy: from the facts of a request to its plan.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use http::HeaderMap;
use ipnet::IpNet;

use crate::limiter::check::Limits;
use crate::limiter::quota::{LimitSet, Mode};

use super::caller::Caller;
use super::facts::RequestFacts;
use super::forwarded::{self, ClientAddress};
use super::identity::{Identity, PrefixLengths};
use super::plan::{Disposition, Plan, RuleId, Scope, TierId};
use super::route::{Matched, PathError, Router};
use super::tier::Resolved;

/// What Redis calls the scope of a tier's own limits.
pub const TIER_SCOPE: &str = "i";
/// The `endpoint` label, and the name in answers, of what no rule matched.
pub const NO_RULE: &str = "other";

/// What decides a request while Redis does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FailureMode {
    /// The limits, kept in this process's memory.
    #[default]
    Local,
    /// Let it pass.
    Open,
    /// Refuse it with 503.
    Closed,
}

impl FailureMode {
    /// As files write it: `local`, `open`, `closed`.
    pub const fn as_str(self) -> &'static str {
        match self {
            FailureMode::Local => "local",
            FailureMode::Open => "open",
            FailureMode::Closed => "closed",
        }
    }
}

/// A named set of limits.
#[derive(Clone, Debug)]
pub struct Tier {
    /// Lower case, as in files, labels and answers.
    pub name: Box<str>,
    /// Its limits.
    pub limits: LimitSet,
    /// What decides without Redis, where it differs from the store's.
    pub on_failure: Option<FailureMode>,
}

/// An endpoint rule, its pattern aside.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The `endpoint` label.
    pub name: Box<str>,
    /// Tokens that a request spends.
    pub cost: u32,
    /// No limits at all.
    pub exempt: bool,
    /// Whether its limits refuse; for a rule without limits, whether the tier's do on its path.
    pub mode: Mode,
    /// Its own limits by tier, `any` already filled in; `None` where the tier has none here.
    pub limits: Box<[Option<LimitSet>]>,
    /// What decides without Redis, where it differs from the tier's.
    pub on_failure: Option<FailureMode>,
    /// Time to the response head above which an answer counts as slow.
    pub slow_threshold: Option<Duration>,
}

/// What `identities:` says of one identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assigned {
    /// This tier.
    Tier(TierId),
    /// 403, always.
    Deny,
}

/// The parts that a policy is made of; [`Policy::new`] puts them together.
#[derive(Debug, Default)]
pub struct PolicyParts {
    /// At least one.
    pub tiers: Vec<Tier>,
    /// Index into `tiers`.
    pub default_tier: usize,
    /// Subscription, lower case, to index into `tiers`.
    pub subscriptions: HashMap<Box<str>, usize>,
    /// Network to index into `tiers`.
    pub networks: Vec<(IpNet, usize)>,
    /// Identities with a tier of their own, or on the deny list. Addresses are folded already.
    pub identities: HashMap<Identity, Assigned>,
    /// Parallel to the router's patterns.
    pub rules: Vec<Rule>,
    /// The compiled patterns.
    pub router: Router,
    /// `mode:` for all.
    pub mode: Mode,
    /// Peers whose forwarding fields are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// How much of an address makes an identity.
    pub prefixes: PrefixLengths,
}

/// The compiled policy. Immutable: a reload makes another one.
#[derive(Debug)]
pub struct Policy {
    tiers: Box<[Tier]>,
    pub(super) default_tier: TierId,
    /// Subscriptions and tiers by name, lower case.
    pub(super) plans: HashMap<Box<str>, TierId>,
    pub(super) networks: Box<[(IpNet, TierId)]>,
    pub(super) identities: HashMap<Identity, Assigned>,
    rules: Box<[Rule]>,
    scope_keys: Box<[Box<str>]>,
    scope_hashes: Box<[u64]>,
    tier_scope_hash: u64,
    router: Router,
    mode: Mode,
    trusted_proxies: Box<[IpNet]>,
    pub(super) prefixes: PrefixLengths,
}

impl Policy {
    /// Puts the parts together.
    pub fn new(parts: PolicyParts) -> Self {
        let tier_id = |index: usize| TierId(u16::try_from(index).unwrap_or(u16::MAX));
        let mut networks: Vec<(IpNet, TierId)> =
            parts.networks.iter().map(|(net, tier)| (*net, tier_id(*tier))).collect();
        networks.sort_by_key(|(net, _)| std::cmp::Reverse(net.prefix_len()));
        let scope_keys: Box<[Box<str>]> =
            parts.rules.iter().map(|rule| format!("e:{}", rule.name).into()).collect();
        // A subscription of a tier's name goes before the tier.
        let tiers = parts.tiers.iter().enumerate().map(|(index, tier)| (tier.name.clone(), index));
        let plans = tiers.chain(parts.subscriptions).map(|(name, tier)| (name, tier_id(tier)));
        Policy {
            default_tier: tier_id(parts.default_tier),
            plans: plans.collect(),
            tiers: parts.tiers.into(),
            networks: networks.into(),
            identities: parts.identities,
            rules: parts.rules.into(),
            scope_hashes: scope_keys.iter().map(|key| fnv1a(key)).collect(),
            scope_keys,
            tier_scope_hash: fnv1a(TIER_SCOPE),
            router: parts.router,
            mode: parts.mode,
            trusted_proxies: parts.trusted_proxies.into(),
            prefixes: parts.prefixes,
        }
    }

    /// The plan of one request: identity, tier, rules, cost and limits, and why each.
    ///
    /// # Errors
    /// A path that cannot be read without doubt; the request is refused with 400.
    pub fn plan(&self, facts: &RequestFacts<'_>, caller: &Caller) -> Result<Plan<'_>, PathError> {
        let matched = self.router.find(facts)?;
        let identity = self.identity_of(caller);
        let resolved = self.resolve(&identity, caller);
        Ok(self.plan_of(identity, resolved, &matched))
    }

    /// The plan of a request whose caller and rules are known.
    pub fn plan_of(&self, identity: Identity, resolved: Resolved, matched: &Matched) -> Plan<'_> {
        let Resolved { tier, source, is_refused, unknown } = resolved;
        let mut plan = Plan::new(identity, tier, source);
        plan.unknown_subscription = unknown;
        plan.endpoint = matched.strict.or(matched.lenient);
        let rules = || matched.rules().filter_map(|id| Some((id, self.rule(id)?)));
        plan.cost = rules().map(|(_, rule)| rule.cost).max().unwrap_or(1);
        plan.on_failure = rules()
            .find_map(|(_, rule)| rule.on_failure)
            .or_else(|| self.tier(tier).and_then(|tier| tier.on_failure));
        if is_refused {
            plan.disposition = Disposition::Refused;
            return plan;
        }
        // Exempt only if every reading says so: one without a rule does not.
        if matched.all(|id| self.rule(id).is_some_and(|it| it.exempt)) {
            plan.disposition = Disposition::Exempt;
            return plan;
        }

        // A rule without limits of its own puts the tier's in shadow for its path, but only if
        // no other reading of the path says otherwise.
        let relaxes =
            |rule: &Rule| rule.mode == Mode::Shadow && rule.limits.iter().all(Option::is_none);
        let tier_relaxed = matched.all(|id| self.rule(id).is_some_and(relaxes));
        let tier_mode = if tier_relaxed { Mode::Shadow } else { self.mode };
        if let Some(limits) = self.tier(tier).map(|tier| tier.limits)
            && !limits.is_unlimited()
        {
            let limits = Limits { set: limits, mode: tier_mode };
            let key_hash = self.tier_scope_hash;
            let scope = Scope { rule: None, key: TIER_SCOPE, key_hash, limits };
            plan.push(scope);
        }
        for (id, rule) in rules().filter(|(_, rule)| !rule.exempt) {
            let index = usize::from(id.0);
            let set = rule.limits.get(usize::from(tier.0)).copied().flatten();
            let names = self.scope_keys.get(index).zip(self.scope_hashes.get(index));
            if let (Some(set), Some((key, key_hash))) = (set, names)
                && !set.is_unlimited()
            {
                let mode = if self.mode == Mode::Shadow { Mode::Shadow } else { rule.mode };
                let limits = Limits { set, mode };
                let scope = Scope { rule: Some(id), key, key_hash: *key_hash, limits };
                plan.push(scope);
            }
        }
        if plan.scopes().next().is_some() {
            plan.disposition = Disposition::Limited;
        }
        plan
    }

    /// What holds for a caller whatever they ask for: the tier's limits, and those of every rule that
    /// has any for that tier, as far as `scopes_max` of them. What the rules' modes and costs are does
    /// not count here.
    pub fn standing(&self, caller: &Caller, scopes_max: usize) -> Plan<'_> {
        let identity = self.identity_of(caller);
        let Resolved { tier, source, is_refused, unknown } = self.resolve(&identity, caller);
        let mut plan = Plan::new(identity, tier, source);
        plan.unknown_subscription = unknown;
        let of_tier = self.tier(tier).map(|tier| tier.limits).into_iter();
        let of_tier = of_tier.map(|set| (None, TIER_SCOPE, self.tier_scope_hash, self.mode, set));
        let of_rules = self.rules.iter().zip(&self.scope_keys).zip(&self.scope_hashes).enumerate();
        let of_rules = of_rules.filter(|(_, ((rule, _), _))| !rule.exempt);
        let of_rules = of_rules.filter_map(|(index, ((rule, key), key_hash))| {
            let set = rule.limits.get(usize::from(tier.0)).copied().flatten()?;
            let mode = if self.mode == Mode::Shadow { Mode::Shadow } else { rule.mode };
            Some((Some(RuleId(u16::try_from(index).ok()?)), &**key, *key_hash, mode, set))
        });
        let limited = of_tier.chain(of_rules).filter(|(.., set)| !set.is_unlimited());
        for (rule, key, key_hash, mode, set) in limited.take(scopes_max) {
            plan.push(Scope { rule, key, key_hash, limits: Limits { set, mode } });
        }
        if is_refused {
            plan.disposition = Disposition::Refused;
        } else if plan.scopes().next().is_some() {
            plan.disposition = Disposition::Limited;
        }
        plan
    }

    /// Whether `identities:` refuses any address, which it does whoever the user is.
    pub fn refuses_addresses(&self) -> bool {
        let mut assigned = self.identities.iter();
        assigned.any(|(who, what)| matches!((who, what), (Identity::Ip(_), Assigned::Deny)))
    }

    /// The scopes that an identity may have used, by name and by hash: the tier's, and each rule's.
    pub fn scope_names(&self) -> impl Iterator<Item = (&str, u64)> {
        let of_rules =
            self.scope_keys.iter().map(|key| &**key).zip(self.scope_hashes.iter().copied());
        std::iter::once((TIER_SCOPE, self.tier_scope_hash)).chain(of_rules)
    }

    /// How much of an address makes an identity.
    pub fn prefixes(&self) -> PrefixLengths {
        self.prefixes
    }

    /// A tier by its index.
    pub fn tier(&self, id: TierId) -> Option<&Tier> {
        self.tiers.get(usize::from(id.0))
    }

    /// Every tier, in the order of the file.
    pub fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    /// A rule by its index.
    pub fn rule(&self, id: RuleId) -> Option<&Rule> {
        self.rules.get(usize::from(id.0))
    }

    /// Every rule, in the order of the file.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Finds the rules that a request meets.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// Whether all of it is in shadow.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The `endpoint` label of a request.
    pub fn endpoint_name(&self, endpoint: Option<RuleId>) -> &str {
        endpoint.and_then(|id| self.rule(id)).map_or(NO_RULE, |rule| &rule.name)
    }

    /// Whether this peer's forwarding fields are believed.
    pub fn is_trusted(&self, peer: IpAddr) -> bool {
        forwarded::is_trusted(peer, &self.trusted_proxies)
    }

    /// The caller's address: the socket's peer, or, from a trusted peer, whom its forwarding
    /// fields name.
    pub fn client_address(&self, peer: IpAddr, headers: &HeaderMap) -> ClientAddress {
        forwarded::client_address(peer, headers, &self.trusted_proxies)
    }

    /// The caller of whom nothing but the address is known.
    pub fn anonymous(&self, facts: &RequestFacts<'_>) -> Caller {
        Caller::by_address(self.client_address(facts.peer, facts.headers).address)
    }
}

/// FNV-1a: names of the operator's own, so no attacker chooses them, and the same in every run.
fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
