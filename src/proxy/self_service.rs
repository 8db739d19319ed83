//! A caller's own view: which tier they have, and how each of its limits stands. Costs no quota.
//!
//! Since it costs none, each identity may ask only so often, by a bucket of the same limiter.

use std::num::NonZeroU32;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::limiter::check::Limits;
use crate::limiter::decision::{Decision, Verdict};
use crate::limiter::quota::{Bucket, LimitSet, Mode};
use crate::metrics::edge_labels::SelfServiceResult;
use crate::policy::caller::Caller;
use crate::policy::compiled::Policy;
use crate::policy::explain::{limits, tier_name};
use crate::policy::plan::{Disposition, Plan, Scope};
use crate::store::memory::MemoryStore;

use super::body::ProxyBody;
use super::reply::{self, Refusal};
use super::worker::Worker;

/// Questions of one identity a second, and at once.
pub const PER_SECOND: u32 = 5;
/// The same at once.
pub const BURST: u32 = 20;
/// Identities whose questions are counted.
const IDENTITIES_MAX: usize = 20_000;
/// Limits of so many rules are shown, the tier's own first.
const SCOPES_MAX: usize = 100;

/// Where callers ask, and how often they did.
#[derive(Debug)]
pub struct SelfService {
    path: Box<str>,
    asked: MemoryStore,
}

impl SelfService {
    /// At this path.
    pub fn new(path: &str) -> Self {
        SelfService { path: path.into(), asked: MemoryStore::new(IDENTITIES_MAX) }
    }

    /// Whether this request asks.
    pub fn is_asked<B>(&self, request: &Request<B>) -> bool {
        request.uri().path() == &*self.path
            && matches!(*request.method(), Method::GET | Method::HEAD)
    }

    /// What the caller is told.
    pub async fn answer(
        &self,
        worker: &Worker,
        policy: &Policy,
        caller: &Caller,
    ) -> Response<ProxyBody> {
        let gate = &worker.gate;
        let plan = policy.standing(caller, SCOPES_MAX);
        if plan.disposition == Disposition::Refused {
            gate.metrics.self_service(SelfServiceResult::Refused);
            return reply::refuse(Refusal::Forbidden);
        }
        let now = gate.clock.now();
        let asked = self.asked.check(&question(&plan), now);
        if asked.verdict == Verdict::Deny {
            gate.metrics.self_service(SelfServiceResult::Throttled);
            return reply::too_many_requests(asked.retry_after(), PER_SECOND, "second");
        }
        let decision = match &worker.redis {
            _ if plan.scopes().next().is_none() => Decision::allow(now),
            None => gate.memory.peek(&plan, now),
            Some(redis) => match redis.peek(&plan, None, redis.shared().settings().timeout).await {
                Ok(decision) => decision,
                // What decides meanwhile, if anything does.
                Err(_) => gate.memory.peek(&plan, now),
            },
        };
        gate.metrics.self_service(SelfServiceResult::Ok);
        let body = told(policy, &plan, &decision);
        let mut response = reply::json(StatusCode::OK, Bytes::from(body.to_string()));
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

/// Of each limit what its holder needs; not what operators try out (`mode: shadow`).
fn told(policy: &Policy, plan: &Plan<'_>, decision: &Decision) -> Value {
    let limits = limits(policy, plan, decision).into_iter();
    let limits: Vec<Value> = limits
        .filter(|limit| limit.mode == Mode::Enforce)
        .map(|limit| {
            json!({
                "name": limit.name,
                "scope": limit.scope,
                "period": limit.period.as_str(),
                "limit": limit.limit,
                "used": limit.used,
                "remaining": limit.remaining,
                "reset": limit.reset,
            })
        })
        .collect();
    json!({
        "identity": plan.identity.to_string(),
        "tier": tier_name(policy, plan.tier),
        "limits": limits,
    })
}

fn question(plan: &Plan<'_>) -> Plan<'static> {
    let number = |number| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
    let bucket = Bucket { rate: number(PER_SECOND), burst: number(BURST) };
    let set = LimitSet { second: Some(bucket), ..LimitSet::default() };
    let limits = Limits { set, mode: Mode::Enforce };
    let mut question = Plan::new(plan.identity.clone(), plan.tier, plan.tier_source);
    question.push(Scope { rule: None, key: "s", key_hash: 0, limits });
    question
}
