//! The calls for single identities: what they have used, a reset, another tier, the deny list, and
//! who did what.

use std::sync::Arc;

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::limiter::time::Timestamp;
use crate::log::limit::AUDIT;
use crate::overrides::OverrideError;
use crate::overrides::change::{Action, Change};
use crate::policy::caller::{Caller, Credential};
use crate::policy::compiled::Policy;
use crate::policy::explain;
use crate::policy::identity::Identity;
use crate::policy::overrides::{Order, Override};
use crate::policy::plan::Disposition;
use crate::store::Backend;
use crate::subscriptions::Bought;

use super::answers::{Answer, error_response, json, no_content};
use super::api::{Answered, Asked, Pending, Reply, bad_request};
use super::health::rfc3339;
use super::parameters::{moment, short};
use super::state::AdminState;

/// Limits of so many rules are shown of an identity, the tier's own first.
const SCOPES_MAX: usize = 200;
/// Longest reason, in characters.
const REASON_CHARS_MAX: usize = 200;

/// `GET /api/v1/identities/{id}`.
pub fn inspect(state: Arc<AdminState>, asked: Asked) -> Pending {
    Box::pin(async move {
        let policy = (state.policy)();
        let caller = caller(&state, &policy, &asked.id).await?;
        let now = state.clock.now();
        let plan = policy.standing(&caller, SCOPES_MAX);
        let (decision, backend) = state.counters.peek(&plan, now).await;
        let limits: Vec<Value> = explain::limits(&policy, &plan, &decision)
            .iter()
            .map(explain::Limit::to_json)
            .collect();
        let overrides = state.overrides.current();
        let set = |it: Option<&Arc<Override>>| it.filter(|it| it.holds_at(now)).map(|it| entry(it));
        let identity = json!({
            "identity": plan.identity.to_string(),
            "identifier_type": plan.identity.identifier_type().as_str(),
            "tier": explain::tier_name(&policy, plan.tier),
            "tier_source": plan.tier_source.as_str(),
            "refused": plan.disposition == Disposition::Refused,
            "override": set(overrides.tier_of(&plan.identity)),
            "denied": set(overrides.denial_of(&plan.identity)),
            "backend": match backend {
                Backend::Memory => "memory",
                Backend::Redis => "redis",
                Backend::Local => "local",
                Backend::Cache => "cache",
            },
            "limits": limits,
        });
        Ok(Reply::Answer(json(StatusCode::OK, &identity)))
    })
}

/// `DELETE /api/v1/identities/{id}`: resets its counters.
pub fn reset(state: Arc<AdminState>, asked: Asked) -> Pending {
    Box::pin(async move {
        let identity = identity(&(state.policy)(), &asked.id)?;
        let change = change(&state, &asked, Action::Reset, Some(&identity), None);
        done(&state, &change.clone(), state.overrides.reset(&identity, change).await)?;
        Ok(Reply::Answer(no_content()))
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetTier {
    tier: String,
    until: Option<String>,
    reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetDenial {
    until: Option<String>,
    reason: Option<String>,
}

/// `PUT /api/v1/identities/{id}/override`.
pub fn set_override(state: Arc<AdminState>, asked: Asked) -> Pending {
    Box::pin(async move {
        let SetTier { tier, until, reason } = asked.json()?;
        let policy = (state.policy)();
        let known = policy.tiers().iter().map(|it| &*it.name);
        let Some(tier) = known.clone().find(|it| it.eq_ignore_ascii_case(&tier)) else {
            let known = known.collect::<Vec<_>>().join(", ");
            return Err(bad_request(&format!("tier: {}, expected one of {known}", short(&tier))));
        };
        let order = Order::Tier(tier.into());
        set(&state, &asked, &policy, order, until.as_deref(), reason).await
    })
}

/// `PUT /api/v1/deny/{id}`.
pub fn deny(state: Arc<AdminState>, asked: Asked) -> Pending {
    Box::pin(async move {
        let SetDenial { until, reason } = asked.json()?;
        set(&state, &asked, &(state.policy)(), Order::Deny, until.as_deref(), reason).await
    })
}

/// `DELETE /api/v1/identities/{id}/override`.
pub fn remove_override(state: Arc<AdminState>, asked: Asked) -> Pending {
    Box::pin(async move { remove(&state, &asked, false).await })
}

/// `DELETE /api/v1/deny/{id}`.
pub fn allow(state: Arc<AdminState>, asked: Asked) -> Pending {
    Box::pin(async move { remove(&state, &asked, true).await })
}

/// `GET /api/v1/overrides` and `GET /api/v1/deny`: those that hold, the newest first.
pub fn list(state: &AdminState, denials: bool) -> Answer {
    let (overrides, now) = (state.overrides.current(), state.clock.now());
    let is_listed = |it: &&Arc<Override>| it.holds_at(now) && (it.order == Order::Deny) == denials;
    let mut listed: Vec<&Arc<Override>> = overrides.all().filter(is_listed).collect();
    listed.sort_by_key(|it| std::cmp::Reverse(it.set_at));
    let items: Vec<Value> = listed.into_iter().map(|it| entry(it)).collect();
    let kept_in = if state.overrides.is_transient() { "memory" } else { "redis" };
    json(StatusCode::OK, &json!({ "kept_in": kept_in, "items": items }))
}

/// `GET /api/v1/changes`.
pub fn changes(state: &AdminState) -> Answer {
    let items: Vec<Value> = state.overrides.changes().iter().map(told).collect();
    json(StatusCode::OK, &json!({ "items": items }))
}

/// Notes that the files were read anew.
pub async fn reloaded(state: &AdminState, asked: &Asked, hash: &str) {
    let change = change(state, asked, Action::Reload, None, Some(hash.into()));
    // That it was done is not undone by an outage of Redis.
    let _ = done(state, &change.clone(), state.overrides.tell(change).await);
}

async fn set(
    state: &AdminState,
    asked: &Asked,
    policy: &Policy,
    order: Order,
    until: Option<&str>,
    reason: Option<String>,
) -> Answered {
    let identity = identity(policy, &asked.id)?;
    let until = until.map(|until| to_come(until, state.clock.now())).transpose()?;
    let reason = reason.filter(|reason| !reason.is_empty()).map(read_reason).transpose()?;
    let (action, detail) = match &order {
        Order::Tier(tier) => (Action::OverrideSet, Some(Arc::clone(tier))),
        Order::Deny => (Action::DenySet, None),
    };
    let change = change(state, asked, action, Some(&identity), detail);
    let it = Override {
        identity,
        order,
        until,
        reason,
        set_at: change.at,
        set_by: change.by.clone(),
        set_from: change.from,
        set_on: Arc::clone(&change.on),
    };
    let answer = entry(&it);
    done(state, &change.clone(), state.overrides.set(it, change).await)?;
    Ok(Reply::Answer(json(StatusCode::OK, &answer)))
}

async fn remove(state: &AdminState, asked: &Asked, is_denial: bool) -> Answered {
    let identity = identity(&(state.policy)(), &asked.id)?;
    let action = if is_denial { Action::DenyRemoved } else { Action::OverrideRemoved };
    let change = change(state, asked, action, Some(&identity), None);
    let removed = state.overrides.remove(&identity, is_denial, change.clone()).await;
    done(state, &change, removed)?;
    Ok(Reply::Answer(no_content()))
}

/// Counts a change and logs it, or answers why there was none.
fn done(
    state: &AdminState,
    change: &Change,
    result: Result<(), OverrideError>,
) -> Result<(), Answer> {
    let Change { action, identity, detail, by, from, .. } = change;
    let (action_name, identity) = (action.as_str(), identity.as_ref().map(ToString::to_string));
    let (identity, detail, by) = (identity.as_deref(), detail.as_deref(), by.as_deref());
    match result {
        Ok(()) => {
            state.metrics.admin_changed(action.label());
            tracing::info!(
                target: AUDIT, action = action_name, identity, detail, by, %from,
                "changed by the admin API"
            );
            Ok(())
        }
        Err(error) => {
            tracing::warn!(
                target: AUDIT, action = action_name, identity, detail, by, %from,
                "not changed: {error}"
            );
            let status = match error {
                OverrideError::Full => StatusCode::CONFLICT,
                OverrideError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            };
            Err(error_response(status, &error.to_string()))
        }
    }
}

fn change(
    state: &AdminState,
    asked: &Asked,
    action: Action,
    identity: Option<&Identity>,
    detail: Option<Arc<str>>,
) -> Change {
    Change {
        action,
        identity: identity.cloned(),
        detail,
        at: state.clock.now(),
        by: asked.operator.name.as_deref().map(Into::into),
        from: asked.operator.address,
        on: (*state.instance).into(),
    }
}

/// Who an identity's requests come from, as far as that is known without one.
async fn caller(state: &AdminState, policy: &Policy, id: &str) -> Result<Caller, Answer> {
    let identity = identity(policy, id)?;
    let now = state.clock.now();
    let mut caller = match &identity {
        Identity::Ip(prefix) => Caller::by_address(prefix.address()),
        Identity::User(_) | Identity::Key(_) => {
            let mut caller = Caller::by_address(std::net::Ipv4Addr::UNSPECIFIED.into());
            let subscription = state.identifier.subscription_of(&identity, now);
            caller.credential = Some(Credential { identity: identity.clone(), subscription });
            caller
        }
    };
    if let (Some(subscriptions), Some(credential), Identity::User(user)) =
        (&state.subscriptions, &caller.credential, &identity)
        && policy.asks_database(credential)
    {
        caller.bought = Bought::into_plan(subscriptions.of(user).await);
    }
    caller.ordered = state.overrides.current().of(policy, &caller, now);
    Ok(caller)
}

fn identity(policy: &Policy, id: &str) -> Result<Identity, Answer> {
    Identity::parse(id, policy.prefixes())
        .map_err(|fault| bad_request(&format!("identity: {}, {fault}", short(id))))
}

/// A time to come.
fn to_come(text: &str, now: Timestamp) -> Result<Timestamp, Answer> {
    let expected = "expected a time to come, as 2027-01-01T00:00:00Z";
    let wrong = || bad_request(&format!("until: {}, {expected}", short(text)));
    moment(text).filter(|at| *at > now).ok_or_else(wrong)
}

fn read_reason(reason: String) -> Result<Arc<str>, Answer> {
    let is_short = reason.chars().count() <= REASON_CHARS_MAX;
    if is_short && !reason.chars().any(char::is_control) {
        return Ok(reason.into());
    }
    let expected = format!("expected at most {REASON_CHARS_MAX} characters in one line");
    Err(bad_request(&format!("reason: {}, {expected}", short(&reason))))
}

fn entry(it: &Override) -> Value {
    let (kind, tier) = match &it.order {
        Order::Tier(tier) => ("override", Some(&**tier)),
        Order::Deny => ("deny", None),
    };
    json!({
        "identity": it.identity.to_string(),
        "kind": kind,
        "tier": tier,
        "until": it.until.map(rfc3339),
        "reason": it.reason.as_deref(),
        "set_at": rfc3339(it.set_at),
        "set_by": it.set_by.as_deref(),
        "set_from": it.set_from,
        "set_on": &*it.set_on,
    })
}

fn told(change: &Change) -> Value {
    json!({
        "at": rfc3339(change.at),
        "action": change.action.as_str(),
        "identity": change.identity.as_ref().map(ToString::to_string),
        "detail": change.detail.as_deref(),
        "by": change.by.as_deref(),
        "from": change.from,
        "on": &*change.on,
    })
}
