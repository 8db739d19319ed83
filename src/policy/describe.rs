//! The policy as answers show it: what is in force, not how it was written.

use serde_json::{Map, Value, json};

use crate::limiter::quota::{LimitSet, Mode, Period};

use super::compiled::{Assigned, Policy, Rule};
use super::explain::tier_name;
use super::plan::TierId;
use super::route::Pattern;

/// Identities with a word of the file's own that are listed; of more, so many.
const IDENTITIES_MAX: usize = 1_000;

/// All of it, as JSON.
pub fn describe(policy: &Policy) -> Value {
    let tiers: Vec<Value> = policy
        .tiers()
        .iter()
        .map(|tier| {
            json!({
                "name": tier.name,
                "limits": limits(&tier.limits),
                "on_failure": tier.on_failure.map(|it| it.as_str()),
            })
        })
        .collect();
    let patterns = policy.router().patterns();
    let rules = policy.rules().iter().zip(patterns);
    let endpoints: Vec<Value> =
        rules.map(|(rule, pattern)| endpoint(policy, rule, pattern)).collect();
    let name = |tier: TierId| Value::from(tier_name(policy, tier));
    let is_tier = |plan: &str, tier: TierId| plan == tier_name(policy, tier);
    let mut subscriptions: Vec<_> =
        policy.plans.iter().filter(|(plan, tier)| !is_tier(plan, **tier)).collect();
    subscriptions.sort_by_key(|(plan, _)| *plan);
    let subscriptions: Map<String, Value> =
        subscriptions.into_iter().map(|(plan, tier)| (plan.to_string(), name(*tier))).collect();
    let networks: Map<String, Value> =
        policy.networks.iter().map(|(net, tier)| (net.to_string(), name(*tier))).collect();
    let mut identities: Vec<(String, Value)> = policy
        .identities
        .iter()
        .take(IDENTITIES_MAX)
        .map(|(identity, assigned)| match assigned {
            Assigned::Tier(tier) => (identity.to_string(), name(*tier)),
            Assigned::Deny => (identity.to_string(), "deny".into()),
        })
        .collect();
    identities.sort_by(|a, b| a.0.cmp(&b.0));
    json!({
        "mode": mode(policy.mode()),
        "default_tier": name(policy.default_tier),
        "tiers": tiers,
        "endpoints": endpoints,
        "subscriptions": subscriptions,
        "networks": networks,
        "identities": identities.into_iter().collect::<Map<String, Value>>(),
        "identities_total": policy.identities.len(),
    })
}

/// As files and answers write it.
pub fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Shadow => "shadow",
    }
}

/// The limits of a set, the shortest period first.
pub fn limits(set: &LimitSet) -> Vec<Value> {
    let described = |period: Period| {
        let (quota, limit) = set.quota_and_limit(period)?;
        Some(match period {
            Period::Second => json!({ "period": period.as_str(), "limit": quota, "burst": limit }),
            _ => json!({ "period": period.as_str(), "limit": limit }),
        })
    };
    Period::ALL.into_iter().filter_map(described).collect()
}

/// The values of fields that a rule asks for are nobody's business.
fn endpoint(policy: &Policy, rule: &Rule, pattern: &Pattern) -> Value {
    let methods: Vec<&str> = pattern.methods.iter().map(http::Method::as_str).collect();
    let headers: Vec<&str> = pattern.headers.iter().map(|(name, _)| name.as_str()).collect();
    let by_tier: Map<String, Value> = policy
        .tiers()
        .iter()
        .zip(&rule.limits)
        .filter_map(|(tier, set)| Some((tier.name.to_string(), limits(set.as_ref()?).into())))
        .collect();
    json!({
        "name": rule.name,
        "path": pattern.path,
        "match": if pattern.strict_only { "strict" } else { "any" },
        "methods": methods,
        "host": pattern.host,
        "headers": headers,
        "cost": rule.cost,
        "exempt": rule.exempt,
        "mode": mode(rule.mode),
        "limits": by_tier,
        "on_failure": rule.on_failure.map(|it| it.as_str()),
        "slow_threshold_seconds": rule.slow_threshold.map(|it| it.as_secs_f64()),
    })
}
