//! Why a request is treated as it is: what was looked at, step by step, and what came of it.
//!
//! Asks the same functions that make a request's plan, and decides nothing itself.

pub mod render;
pub mod rules;

use std::net::IpAddr;

use http::HeaderMap;
use http::header::FORWARDED;

use crate::limiter::decision::{Decision, LimitStatus, Verdict};
use crate::limiter::quota::{Mode, Period};

use super::caller::{Caller, Ordered};
use super::compiled::{FailureMode, Policy};
use super::facts::RequestFacts;
use super::forwarded::{ClientAddress, ForwardedFault};
use super::identity::{Identity, IpPrefix};
use super::plan::{Plan, TierId, TierSource};
use super::tier::{Finding, TierStep};

/// Everything that is to be said of one request.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// Its method.
    pub method: String,
    /// Its path as it came; the query, which may hold a token, is left out.
    pub path: String,
    /// Which host it is for.
    pub host: String,
    /// The other end of the socket.
    pub peer: IpAddr,
    /// Whether limits are shown as they stand now, and not as after a caller's first request.
    pub is_live: bool,
    /// Who is asking.
    pub identity: Identity,
    /// Their tier's name.
    pub tier: String,
    /// Where that came from.
    pub tier_source: TierSource,
    /// The rule's name, `other` without one.
    pub endpoint: String,
    /// What it spends from every limit.
    pub cost: u32,
    /// The rule's mode, or that of all.
    pub mode: Mode,
    /// What comes of it.
    pub outcome: Outcome,
    /// Every limit that was checked, as it stands after the request.
    pub limits: Vec<Limit>,
    /// The fields that the answer carries.
    pub fields: Vec<(String, String)>,
    /// What decides while Redis does not answer; `None`: limits are kept in memory.
    pub on_failure: Option<FailureMode>,
    /// What was looked at, in order.
    pub steps: Vec<Step>,
    /// What looks like a slip in the request itself.
    pub warnings: Vec<String>,
}

/// One step on the way to the outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// `address`, `identity`, `tier`, `rule`.
    pub name: &'static str,
    /// What it came to.
    pub result: String,
    /// What was looked at, in the order in which it counts.
    pub looked_at: Vec<Look>,
    /// Why, in sentences.
    pub notes: Vec<String>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// Its name: a source, an entry, a reading.
    pub what: String,
    /// What was found there.
    pub found: String,
    /// Whether that is what counts.
    pub decides: bool,
}

impl Look {
    /// Something that was looked at, and whether it decides.
    pub fn new(what: impl Into<String>, found: impl Into<String>, decides: bool) -> Self {
        Look { what: what.into(), found: found.into(), decides }
    }
}

/// What comes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Refused before any limit is asked, with this status and for this reason.
    Refused {
        /// The answer's status.
        status: u16,
        /// Why.
        why: String,
    },
    /// The caller is on the deny list: 403.
    DenyListed,
    /// Answered by tollgate itself: a page that is exposed on the data port.
    OwnPage,
    /// Forwarded, and no limit is asked.
    Exempt,
    /// Forwarded: nothing limits it.
    Unlimited,
    /// Its limits were checked.
    Checked {
        /// Whether they let it pass.
        verdict: Verdict,
        /// Whether one in shadow would not have.
        shadow_denied: bool,
        /// Which limit refuses, or would.
        limited_by: Option<String>,
        /// Seconds until this very request passes; `None` where it was allowed or never will.
        retry_after: Option<u64>,
    },
}

/// One limit, as it stands after the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// `tier:minute`, `endpoint:history:minute`.
    pub name: String,
    /// `tier`, `endpoint:history`.
    pub scope: String,
    /// Its period.
    pub period: Period,
    /// Whether it refuses.
    pub mode: Mode,
    /// Requests a period.
    pub quota: u32,
    /// The most that there is: the burst for `second`.
    pub limit: u32,
    /// What is spent of it.
    pub used: u32,
    /// What is left.
    pub remaining: u32,
    /// Unix second at which it is whole again.
    pub reset: u64,
    /// Seconds until then.
    pub whole_in: u64,
}

impl Outcome {
    /// What a decision on the plan's limits comes to.
    pub fn checked(policy: &Policy, plan: &Plan<'_>, decision: &Decision) -> Self {
        let limited_by = decision.limited_by();
        Outcome::Checked {
            verdict: decision.verdict,
            shadow_denied: decision.shadow_denied(),
            limited_by: limited_by.map(|status| limit(policy, plan, decision, status).name),
            retry_after: decision.retry_after(),
        }
    }

    /// In a word: `allow`, `deny`, `shadow_deny`, `exempt`, or `none` where no limit and no list
    /// had a say.
    pub fn decision(&self) -> &'static str {
        match self {
            Outcome::Refused { .. } | Outcome::OwnPage => "none",
            Outcome::DenyListed => "deny",
            Outcome::Exempt => "exempt",
            Outcome::Unlimited => "allow",
            Outcome::Checked { verdict: Verdict::Deny, .. } => "deny",
            Outcome::Checked { shadow_denied: true, .. } => "shadow_deny",
            Outcome::Checked { .. } => "allow",
        }
    }

    /// The status of tollgate's own answer; `None`: the upstream's, or that of an exposed page.
    pub fn status(&self) -> Option<u16> {
        match self {
            Outcome::Refused { status, .. } => Some(*status),
            Outcome::DenyListed => Some(403),
            Outcome::Checked { verdict: Verdict::Deny, .. } => Some(429),
            Outcome::OwnPage | Outcome::Exempt | Outcome::Unlimited => None,
            Outcome::Checked { .. } => None,
        }
    }
}

/// Every limit that a decision looked at.
pub fn limits(policy: &Policy, plan: &Plan<'_>, decision: &Decision) -> Vec<Limit> {
    decision.statuses().iter().map(|status| limit(policy, plan, decision, status)).collect()
}

fn limit(policy: &Policy, plan: &Plan<'_>, decision: &Decision, status: &LimitStatus) -> Limit {
    let rule = plan.scope(status.scope).and_then(|scope| scope.rule);
    let scope = match rule {
        None => "tier".to_owned(),
        Some(_) => format!("endpoint:{}", policy.endpoint_name(rule)),
    };
    // What a limit in shadow shows as nothing left was not spent.
    let is_refused = status.mode == Mode::Shadow && !status.wait.is_zero();
    let used = if is_refused { 0 } else { status.limit.saturating_sub(status.remaining) };
    Limit {
        name: format!("{scope}:{}", status.period.as_str()),
        scope,
        period: status.period,
        mode: status.mode,
        quota: status.quota,
        limit: status.limit,
        used,
        remaining: status.remaining,
        reset: status.whole_at.as_secs_ceil(),
        whole_in: status.whole_at.since(decision.now).as_secs_ceil(),
    }
}

/// Where the request comes from.
pub fn address(policy: &Policy, facts: &RequestFacts<'_>) -> Step {
    let ClientAddress { address, fault } = policy.client_address(facts.peer, facts.headers);
    let peer = facts.peer.to_canonical();
    let fields = forwarding_fields(facts.headers);
    let (found, is_believed) = match fault {
        _ if fields.is_empty() => ("no forwarding field is there".to_owned(), false),
        None => (format!("{fields}, believed"), true),
        Some(ForwardedFault::Conflict) => {
            let found = "X-Forwarded-For, believed; Forwarded, which names somebody else, is not";
            (found.to_owned(), true)
        }
        Some(ForwardedFault::Untrusted) => {
            (format!("{fields}, not believed: anybody can send it"), false)
        }
        Some(ForwardedFault::Malformed) => {
            (format!("{fields}, which names nobody that can be read"), false)
        }
    };
    let trust = if policy.is_trusted(peer) { "is in" } else { "is not in" };
    let looked_at = vec![
        Look::new("peer", format!("{peer} {trust} server.trusted_proxies"), !is_believed),
        Look::new("forwarded", found, is_believed),
    ];
    let notes = everybody_behind(peer, fault, fields.is_empty(), policy.is_trusted(peer));
    Step { name: "address", result: address.to_string(), looked_at, notes }
}

/// Whose callers would all share one quota, and what to do about it.
fn everybody_behind(
    peer: IpAddr,
    fault: Option<ForwardedFault>,
    is_bare: bool,
    is_trusted: bool,
) -> Vec<String> {
    let note = match fault {
        Some(ForwardedFault::Untrusted) => format!(
            "If {peer} is your proxy, all callers behind it share one quota until its network is \
             in server.trusted_proxies."
        ),
        Some(ForwardedFault::Malformed) => {
            format!("So the request counts for {peer}, as do all others that cannot be read.")
        }
        None if is_trusted && is_bare => format!(
            "A proxy that sends neither X-Forwarded-For nor Forwarded has its callers share one \
             quota: that of {peer}."
        ),
        Some(ForwardedFault::Conflict) | None => return Vec::new(),
    };
    vec![note]
}

/// The names of the forwarding fields that are there; empty without any.
fn forwarding_fields(headers: &HeaderMap) -> String {
    let forwarded = headers.contains_key(FORWARDED).then_some("Forwarded");
    let list = headers.contains_key("x-forwarded-for").then_some("X-Forwarded-For");
    let names: Vec<&str> = [list, forwarded].into_iter().flatten().collect();
    names.join(", ")
}

/// Who could be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The database of subscriptions.
    pub database: Database,
    /// Whether what operators say of identities is known.
    pub overrides: bool,
}

/// What became of asking the database of subscriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    /// None is configured.
    Absent,
    /// It was asked, where it is asked at all.
    Answers,
    /// It was asked, and gave no answer in time, or none that can be used.
    Silent,
}

/// The caller's tier: what every source says, whichever decides.
pub fn tier(policy: &Policy, identity: &Identity, caller: &Caller, asked: Asked) -> Step {
    let mut result = String::new();
    let mut looked_at = Vec::new();
    for TierStep { source, finding } in policy.tier_steps(identity, caller) {
        let decides = result.is_empty() && matches!(finding, Finding::Tier(_) | Finding::Deny);
        if decides {
            result = match &finding {
                Finding::Tier(tier) => tier_name(policy, *tier).to_owned(),
                _ => "refused".to_owned(),
            };
        }
        let found = match &finding {
            Finding::Tier(tier) => told(policy, source, caller, identity, *tier),
            Finding::Deny => denied(policy, identity, caller),
            Finding::Unknown(name) => format!(
                "{} is the name of no tier and no subscription, so it counts as none",
                rules::shown(name.as_bytes())
            ),
            Finding::Nothing => nothing(policy, source, caller, identity, asked),
        };
        looked_at.push(Look::new(source.as_str(), found, decides));
    }
    Step { name: "tier", result, looked_at, notes: Vec::new() }
}

/// What a source says that knows the tier.
fn told(
    policy: &Policy,
    source: TierSource,
    caller: &Caller,
    identity: &Identity,
    tier: TierId,
) -> String {
    let name = tier_name(policy, tier);
    let plan = |plan: Option<&str>| match plan {
        Some(plan) if !plan.eq_ignore_ascii_case(name) => {
            format!("{}, which is {name}", rules::shown(plan.as_bytes()))
        }
        _ => name.to_owned(),
    };
    match source {
        TierSource::Override => format!("{identity} is {name}, by an operator's word"),
        TierSource::Identities => format!("{identity} is {name}"),
        TierSource::Credential => {
            let credential = caller.credential.as_ref();
            plan(credential.and_then(|it| it.subscription.as_deref()))
        }
        TierSource::Database => plan(caller.bought.as_deref()),
        TierSource::Networks => {
            let holds = |(network, _): &&(ipnet::IpNet, TierId)| network.contains(&caller.address);
            let network = policy.networks.iter().find(holds);
            let network = network.map(|(network, _)| network.to_string()).unwrap_or_default();
            format!("{} is in {network}, which is {name}", caller.address)
        }
        TierSource::Default => format!("default_tier is {name}"),
    }
}

fn denied(policy: &Policy, identity: &Identity, caller: &Caller) -> String {
    if let Some(Ordered::Denied(by_operator)) = &caller.ordered {
        let whoever = if by_operator == identity { "" } else { ", whoever the user is" };
        return format!("deny for {by_operator}, by an operator's word{whoever}");
    }
    let address = Identity::Ip(IpPrefix::new(caller.address, policy.prefixes));
    let by_address = Caller::by_address(caller.address);
    let first = policy.tier_steps(&address, &by_address).next();
    if *identity != address && first.is_some_and(|it| it.finding == Finding::Deny) {
        return format!("deny for {address}, whoever the user is");
    }
    format!("deny for {identity}")
}

/// What a source says that knows nothing.
fn nothing(
    policy: &Policy,
    source: TierSource,
    caller: &Caller,
    identity: &Identity,
    Asked { database, overrides }: Asked,
) -> String {
    let by_address = matches!(identity, Identity::Ip(_));
    match source {
        TierSource::Override if overrides => format!("none for {identity}"),
        TierSource::Override => "not asked: a tollgate that serves knows (--live)".to_owned(),
        TierSource::Identities => format!("nothing about {identity}"),
        TierSource::Credential if by_address => "none was presented and believed".to_owned(),
        TierSource::Credential => "names no tier and no subscription".to_owned(),
        TierSource::Database if database == Database::Absent => {
            "no tier_lookup is configured".to_owned()
        }
        TierSource::Database => match &caller.credential {
            Some(credential) if policy.asks_database(credential) => match database {
                Database::Silent => "gave no answer, so it has no say".to_owned(),
                _ => format!("knows no subscription of {identity}"),
            },
            Some(_) => "not asked: only where nothing before it has given a user a tier".to_owned(),
            None => "not asked: it knows users only".to_owned(),
        },
        TierSource::Networks if by_address => format!("none holds {}", caller.address),
        TierSource::Networks => "for callers that are known by their address only".to_owned(),
        TierSource::Default => String::new(),
    }
}

/// A tier's name.
pub fn tier_name(policy: &Policy, tier: TierId) -> &str {
    policy.tier(tier).map_or("", |tier| &tier.name)
}
