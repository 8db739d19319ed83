//! One request, branch by branch.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, request};
use hyper::body::{Body, Incoming};

use crate::clock;
use crate::limiter::decision::{Decision, Verdict};
use crate::metrics::labels::{Ending, LimiterBackend};
use crate::policy::facts::RequestFacts;
use crate::policy::plan::{Disposition, Plan};
use crate::store::{Backend, Checked};

use super::body::ProxyBody;
use super::exchange::Exchange;
use super::forward::{Call, Forwarded};
use super::gate::Active;
use super::headers;
use super::io::ConnState;
use super::reply::{self, Refusal};
use super::worker::Worker;

/// Answers a request: refuses it, or forwards it and streams the answer. Every exit tells of the
/// exchange once, a downstream that leaves included.
///
/// # Errors
/// Never: what goes wrong is an answer.
pub async fn handle(
    worker: Rc<Worker>,
    conn: Arc<ConnState>,
    request: Request<Incoming>,
) -> Result<Response<ProxyBody>, Infallible> {
    let started = clock::monotonic();
    let active = worker.gate.active.load_full();
    let (parts, body) = request.into_parts();
    let mut exchange = Exchange::begin(&worker, &conn, &active, &parts.method, started);
    let is_cross_origin = headers::is_cross_origin(&parts.headers);
    let mut response = answer(&worker, &conn, &active, &mut exchange, parts, body).await;
    if is_cross_origin {
        headers::expose_to_scripts(response.headers_mut(), worker.gate.settings.fields);
    }
    if worker.gate.drain.is_draining() && response.status() != http::StatusCode::SWITCHING_PROTOCOLS
    {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response.body_mut().attach(exchange);
    Ok(response)
}

async fn answer(
    worker: &Rc<Worker>,
    conn: &Arc<ConnState>,
    active: &Arc<Active>,
    exchange: &mut Exchange,
    mut parts: request::Parts,
    body: Incoming,
) -> Response<ProxyBody> {
    let settings = &worker.gate.settings;
    if let Err(refusal) = headers::check_request(&mut parts) {
        return refused(exchange, refusal);
    }
    if let Some(response) = worker.gate.exposed(&parts) {
        exchange.keep_quiet();
        return response;
    }
    let facts = facts_of(&parts, conn);
    let Ok(plan) = active.policy.plan(&facts, None) else {
        return refused(exchange, Refusal::BadRequest);
    };
    exchange.planned(&plan);
    let is_too_large = |limit: u64| limit > 0 && body.size_hint().lower() > limit;
    if is_too_large(settings.body_bytes_max) {
        return refused(exchange, Refusal::ContentTooLarge);
    }
    let decision = match plan.disposition {
        Disposition::Refused => return refused(exchange, Refusal::Forbidden),
        Disposition::Exempt => None,
        Disposition::Unlimited => {
            exchange.evaluated(&plan);
            None
        }
        Disposition::Limited => {
            exchange.evaluated(&plan);
            match check(worker, active, &plan).await {
                Checked::FailedOpen => None,
                Checked::FailedClosed => return refused(exchange, Refusal::StoreUnavailable),
                Checked::Decided { decision, .. } if decision.verdict == Verdict::Deny => {
                    let response = denied(worker, &decision);
                    exchange.answered(response.status(), Ending::RateLimited, None);
                    return response;
                }
                Checked::Decided { decision, .. } => Some(decision),
            }
        }
    };
    let call = Call { worker, conn, active, endpoint: plan.endpoint };
    let mut response = match call.forward(parts, body).await {
        Ok(Forwarded { response, took }) => {
            let ending = if response.status().is_server_error() {
                Ending::Upstream5xx
            } else {
                Ending::Answered
            };
            exchange.answered(response.status(), ending, Some(took));
            response
        }
        Err(refusal) => refused(exchange, refusal),
    };
    if let Some(decision) = &decision
        && let Some(shown) = decision.shown()
    {
        headers::add_limit(response.headers_mut(), settings.fields, shown, decision.now);
    }
    response
}

/// Checks and charges the plan's limits, wherever their state is kept.
async fn check(worker: &Worker, active: &Active, plan: &Plan<'_>) -> Checked {
    let gate = &worker.gate;
    let started = clock::monotonic();
    let now = gate.clock.now();
    let checked = match &worker.redis {
        Some(redis) => redis.check(plan, now).await,
        None => {
            Checked::Decided { decision: gate.memory.check(plan, now), backend: Backend::Memory }
        }
    };
    if let Checked::Decided { decision, backend } = &checked {
        let backend = match backend {
            Backend::Memory => LimiterBackend::Memory,
            Backend::Redis => LimiterBackend::Redis,
            Backend::Local => LimiterBackend::Local,
        };
        let took = clock::monotonic().saturating_duration_since(started);
        if backend == LimiterBackend::Redis {
            gate.metrics.redis_answered(took);
        }
        active.metrics.decided(plan, decision, backend, took, now);
    }
    checked
}

fn denied(worker: &Worker, decision: &Decision) -> Response<ProxyBody> {
    let Some(shown) = decision.shown() else {
        // A denial always has a limit that denied.
        return reply::too_many_requests(None, 0, "second");
    };
    let period = shown.period.as_str();
    let mut response = reply::too_many_requests(decision.retry_after(), shown.quota, period);
    let fields = worker.gate.settings.fields;
    headers::add_limit(response.headers_mut(), fields, shown, decision.now);
    response
}

fn refused(exchange: &mut Exchange, refusal: Refusal) -> Response<ProxyBody> {
    let ending = match refusal {
        Refusal::StoreUnavailable => Ending::ProxyError,
        Refusal::UpstreamUnreachable | Refusal::UpstreamBroken => Ending::UpstreamConnect,
        Refusal::ConnectTimeout | Refusal::ResponseTimeout => Ending::UpstreamTimeout,
        Refusal::BadRequest
        | Refusal::Forbidden
        | Refusal::MethodNotAllowed
        | Refusal::RequestTimeout
        | Refusal::ContentTooLarge => Ending::Refused,
    };
    exchange.answered(refusal.status(), ending, None);
    reply::refuse(refusal)
}

fn facts_of<'a>(parts: &'a request::Parts, conn: &ConnState) -> RequestFacts<'a> {
    RequestFacts {
        method: &parts.method,
        path: parts.uri.path(),
        host: parts.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()),
        peer: conn.peer.ip(),
        headers: &parts.headers,
    }
}
