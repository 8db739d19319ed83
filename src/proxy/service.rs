//! One request, branch by branch.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use hyper::body::{Body, Incoming};

use crate::clock;
use crate::health::breaker::Outcome;
use crate::identity::identifier::Invalid;
use crate::limiter::decision::{Decision, LimitStatus, Verdict};
use crate::limiter::refund::Grant;
use crate::limiter::time::Timestamp;
use crate::log::access::Decided;
use crate::metrics::edge_labels::TunnelEvent;
use crate::metrics::labels::{Ending, LimiterBackend, QueryType};
use crate::policy::facts::RequestFacts;
use crate::policy::plan::{Disposition, Plan, RuleId};
use crate::store::places::Holds;
use crate::store::{Backend, Checked};

use super::attempt::Passage;
use super::body::ProxyBody;
use super::caller;
use super::circuit;
use super::exchange::Exchange;
use super::extended_connect;
use super::forward::Call;
use super::gate::Active;
use super::headers::{self, Present};
use super::io::ConnState;
use super::record::parent_field;
use super::reply::{self, Refusal};
use super::upstreams::Permit;
use super::worker::Worker;

const CLOSE: HeaderValue = HeaderValue::from_static("close");
/// How much of a refused request's body is read for the sake of its connection, and for how long:
/// what came along with the head.
const FORGET_BYTES_MAX: u64 = 16 * 1024;
const FORGET_PATIENCE: Duration = Duration::from_millis(50);

/// Answers a request: refuses it, or forwards it and streams the answer. Every exit tells of the
/// exchange once, a downstream that leaves included.
///
/// # Errors
/// Never: what goes wrong is an answer.
pub async fn handle(
    worker: Rc<Worker>,
    conn: Arc<ConnState>,
    mut request: Request<Incoming>,
) -> Result<Response<ProxyBody>, Infallible> {
    let started = clock::stopwatch();
    let active = worker.gate.active.load_full();
    let is_extended_connect = extended_connect::settle(&mut request);
    let present = Present::in_fields(request.headers());
    let traceparent = present.names_trace().then(|| parent_field(request.headers())).flatten();
    let traceparent = traceparent.cloned();
    let mut exchange = Exchange::begin(&worker, &conn, &active, &request, (traceparent, started));
    let is_grpc = present.is_grpc(request.headers());
    let is_head = *request.method() == Method::HEAD;
    let has_body = !request.body().is_end_stream();
    let next = decide(&worker, &conn, &active, &mut exchange, &mut request, present).await;
    let mut response = match next {
        Next::Answer(mut response) => {
            // Where a request that was not understood ends is anybody's guess.
            let is_unclear = response.status() == StatusCode::BAD_REQUEST;
            if is_unclear || has_body && !is_forgotten(&mut request, &conn, present).await {
                close_after(&mut response, &conn);
            }
            response
        }
        Next::Forward { endpoint, mut shown, charged, permit, holds } => {
            if let Some(notes) = exchange.notes() {
                notes.asks_upstream(request.headers_mut());
            }
            let call = Call { worker: &worker, conn: &conn, active: &active, endpoint, present };
            let mut passage = Passage::new(permit, holds);
            let called = call.forward(request, &mut passage).await;
            exchange.hold(passage.holds);
            exchange.asked(passage.member);
            let now = clock::stopwatch();
            let outcome = called.as_ref().map_or_else(|it| it.outcome, |_| Some(Outcome::Good));
            if let Some((permit, outcome)) = passage.permit.zip(outcome) {
                circuit::note(&worker.gate, permit, outcome, now);
            }
            let mut response = match called {
                Ok((response, took)) => {
                    let ending = ending_of(response.status());
                    if let Some(notes) = exchange.notes() {
                        notes.upstream_answered(response.status(), took);
                    }
                    exchange.answered(response.status(), ending, Some(took), now);
                    response
                }
                Err(failure) => {
                    if !failure.may_have_arrived {
                        exchange.given_back();
                        shown = charged.and_then(|it| it.give_back(&worker)).or(shown);
                    }
                    if let Some(notes) = exchange.notes() {
                        notes.upstream_failed(shown.as_ref().map(|(shown, _)| shown.remaining));
                    }
                    let refusal = failure.refusal;
                    exchange.unanswered(refusal.status(), refusal.ending());
                    let mut response = reply::refuse(refusal);
                    if has_body {
                        // How much of it was read is not known here.
                        close_after(&mut response, &conn);
                    }
                    response
                }
            };
            if let Some((shown, now)) = &shown {
                let fields = worker.gate.settings.fields;
                headers::add_limit(response.headers_mut(), fields, shown, *now, &worker.numbers);
            }
            response
        }
    };
    if is_extended_connect && response.status().is_success() && !conn.is_switched() {
        // A page of tollgate's own. To a CONNECT it would say that the tunnel is there.
        response = reply::refuse(Refusal::NoWebSocket);
    }
    if response.body().is_own() {
        if is_grpc {
            reply::speak_grpc(&mut response);
        } else if is_head && conn.is_stream() {
            // Over HTTP/1.1 hyper leaves the body out, over HTTP/2 nobody does.
            *response.body_mut() = ProxyBody::own(bytes::Bytes::new());
        }
    }
    if present.is_cross_origin() {
        headers::expose_to_scripts(response.headers_mut(), worker.gate.settings.fields);
    }
    if worker.gate.drain.is_draining() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        // A next request may be on its way already: it must not take this answer away.
        close_after(&mut response, &conn);
    }
    response.body_mut().attach(exchange);
    Ok(response)
}

/// Ends the connection with this answer, however much of the request is still to come. A stream of
/// HTTP/2 leaves nothing behind that could be taken for the next request.
fn close_after(response: &mut Response<ProxyBody>, conn: &ConnState) {
    if conn.is_stream() {
        return;
    }
    response.headers_mut().insert(CONNECTION, CLOSE);
    conn.leave_unread();
}

/// Reads a refused request's body to its end, so that the connection can be kept; gives up on one
/// that is large or slow, and says so. It must not be what the next request is read from.
async fn is_forgotten(request: &mut Request<Incoming>, conn: &ConnState, present: Present) -> bool {
    if conn.is_stream() {
        return true;
    }
    let body = request.body_mut();
    // To read a body that is still held back would be to ask for it.
    if present.expects() || body.size_hint().lower() > FORGET_BYTES_MAX {
        return false;
    }
    let to_end = async {
        let mut bytes: u64 = 0;
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            let Ok(frame) = frame else { return false };
            let length = frame.data_ref().map_or(0, bytes::Bytes::len);
            bytes = bytes.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
            if bytes > FORGET_BYTES_MAX {
                return false;
            }
        }
        true
    };
    // Boxed, so that not every request is as large as this one.
    Box::pin(tokio::time::timeout(FORGET_PATIENCE, to_end)).await.unwrap_or(false)
}

/// What is to be done with a request.
enum Next<'a> {
    /// It is answered without the upstream.
    Answer(Response<ProxyBody>),
    /// It goes to the upstream. `shown` is the limit that the answer will speak of, at its time.
    Forward {
        endpoint: Option<RuleId>,
        shown: Option<(LimitStatus, Timestamp)>,
        charged: Option<Charged<'a>>,
        permit: Permit,
        /// Places for requests at once.
        holds: Option<Holds>,
    },
}

impl Next<'_> {
    /// It goes to the upstream, and no limit knows of it.
    fn unlimited(endpoint: Option<RuleId>, permit: Permit) -> Self {
        Next::Forward { endpoint, shown: None, charged: None, permit, holds: None }
    }
}

/// What a request has spent, and where.
struct Charged<'a> {
    plan: Plan<'a>,
    grant: Grant,
    backend: Backend,
}

impl Charged<'_> {
    /// Takes it back, and says what the answer will speak of now. Redis is not waited for, so that
    /// an answer goes on speaking of what was charged there: fewer requests left than there will
    /// be, never more.
    fn give_back(self, worker: &Worker) -> Option<(LimitStatus, Timestamp)> {
        let Charged { plan, grant, backend } = &self;
        let now = worker.gate.clock.now();
        let decision = match &worker.redis {
            Some(redis) => redis.refund(plan, grant, *backend, now)?,
            None => worker.gate.memory.refund(plan, grant, now),
        };
        decision.shown().map(|shown| (*shown, decision.now))
    }
}

async fn decide<'a>(
    worker: &Rc<Worker>,
    conn: &Arc<ConnState>,
    active: &'a Active,
    exchange: &mut Exchange,
    request: &mut Request<Incoming>,
    present: Present,
) -> Next<'a> {
    let settings = &worker.gate.settings;
    if let Err(refusal) = headers::check_request(request, present) {
        return Next::Answer(refused(exchange, refusal));
    }
    if let Some(page) = worker.gate.exposed(request) {
        exchange.keep_quiet();
        let page = page().await.map(|page| page.map(ProxyBody::own));
        return Next::Answer(page.unwrap_or_else(|_| reply::refuse(Refusal::StoreUnavailable)));
    }
    let gate = &worker.gate;
    let facts = facts_of(request, conn);
    let (caller, invalid) = caller::of(gate, active, &facts, present).await;
    if let Some(own) = gate.self_service.as_ref().filter(|own| own.is_asked(request)) {
        return Next::Answer(match invalid.filter(|invalid| invalid.is_rejected) {
            Some(invalid) => unauthorized(worker, exchange, invalid),
            None => {
                exchange.keep_quiet();
                // Boxed, so that not every request is as large as this one.
                Box::pin(own.answer(worker, &active.policy, &caller)).await
            }
        });
    }
    let Ok(plan) = active.policy.plan(&facts, &caller) else {
        return Next::Answer(refused(exchange, Refusal::BadRequest));
    };
    exchange.planned(&plan);
    gate.unknown_subscriptions.note(gate, &plan);
    gate.identifier.withhold(request.headers_mut(), present.has_underscores());
    if let Some(invalid) = invalid {
        if invalid.is_rejected && plan.disposition != Disposition::Refused {
            return Next::Answer(unauthorized(worker, exchange, invalid));
        }
        active.metrics.credential_invalid(plan.endpoint);
    }
    let limit = settings.body_bytes_max;
    if limit > 0 && request.body().size_hint().lower() > limit {
        return Next::Answer(refused(exchange, Refusal::ContentTooLarge));
    }
    let endpoint = plan.endpoint;
    let permit = match plan.disposition {
        Disposition::Refused => {
            decided(exchange, Decided::Deny);
            Err(Refusal::Forbidden)
        }
        // Before the limits: what is not forwarded spends nothing.
        Disposition::Exempt | Disposition::Unlimited | Disposition::Limited => {
            let is_upgrade = headers::wanted_upgrade(request, present).is_some();
            let among = gate.upstreams.among(is_upgrade);
            worker.lines.ask(&gate.upstreams, among, worker.timers.now())
        }
    };
    let permit = match permit {
        Ok(permit) => permit,
        Err(refusal) => return Next::Answer(refused(exchange, refusal)),
    };
    if plan.disposition == Disposition::Exempt {
        decided(exchange, Decided::Exempt);
        exchange.admitted(&plan, 0);
        return Next::unlimited(endpoint, permit);
    }
    exchange.evaluated(&plan);
    if plan.disposition == Disposition::Unlimited {
        decided(exchange, Decided::Allow);
        exchange.admitted(&plan, plan.cost);
        worker.top.record(&plan.identity, false);
        return Next::unlimited(endpoint, permit);
    }
    let (checked, holds) = check(worker, active, exchange, &plan).await;
    worker.top.record(&plan.identity, checked.is_denied());
    match checked {
        Checked::FailedOpen => {
            decided(exchange, Decided::Allow);
            exchange.admitted(&plan, plan.cost);
            Next::unlimited(endpoint, permit)
        }
        Checked::FailedClosed => Next::Answer(refused(exchange, Refusal::StoreUnavailable)),
        Checked::Decided { decision, .. } if decision.verdict == Verdict::Deny => {
            if headers::wanted_upgrade(request, present).is_some() {
                gate.metrics.tunnel_event(TunnelEvent::RefusedLimit);
            }
            exchange.denied(&plan);
            let response = denied(worker, &decision);
            exchange.answered(response.status(), Ending::RateLimited, None, clock::stopwatch());
            Next::Answer(response)
        }
        Checked::Decided { decision, backend } => {
            exchange.admitted(&plan, plan.cost);
            let shown = decision.shown().map(|shown| (*shown, decision.now));
            let grant = Grant::new(&decision, plan.scopes().count());
            let charged = Some(Charged { plan, grant, backend });
            Next::Forward { endpoint, shown, charged, permit, holds }
        }
    }
}

/// Notes what was decided where there was no limit to check.
fn decided(exchange: &mut Exchange, decided: Decided) {
    if let Some(notes) = exchange.notes() {
        notes.decided(decided);
    }
}

fn ending_of(status: StatusCode) -> Ending {
    if status.is_server_error() { Ending::Upstream5xx } else { Ending::Answered }
}

/// Checks and charges the plan's limits, wherever their state is kept.
async fn check(
    worker: &Worker,
    active: &Active,
    exchange: &mut Exchange,
    plan: &Plan<'_>,
) -> (Checked, Option<Holds>) {
    let gate = &worker.gate;
    let started = clock::stopwatch();
    let now = gate.clock.now();
    let (checked, holds) = match &worker.redis {
        Some(redis) => {
            let expected = redis.expect_places(plan);
            let checked = redis.check(plan, now).await;
            let holds = expected.and_then(|expected| Holds::in_redis(expected, &checked));
            (checked, holds)
        }
        None => {
            let decision = gate.memory.check(plan, now);
            let holds = Holds::in_memory(&gate.memory, plan, &decision);
            (Checked::Decided { decision, backend: Backend::Memory }, holds)
        }
    };
    let took = clock::stopwatch().saturating_duration_since(started);
    if checked.is_alone() {
        gate.metrics.admitted_alone(now);
    }
    let mut is_answered = false;
    if let Checked::Decided { decision, backend } = &checked {
        let backend = match backend {
            Backend::Memory => LimiterBackend::Memory,
            Backend::Redis => LimiterBackend::Redis,
            Backend::Local => LimiterBackend::Local,
            Backend::Cache => LimiterBackend::Cache,
        };
        is_answered = backend == LimiterBackend::Redis;
        if is_answered {
            gate.metrics.redis_answered(took);
        }
        active.metrics.decided(plan, decision, backend, took, now);
        if let Some(notes) = exchange.notes() {
            notes.checked(plan, decision, (started, took, backend));
        }
    }
    if let Some(redis) = &worker.redis {
        // What Redis does not answer is decided otherwise as soon as its time is over.
        let timed_out = !is_answered && took >= redis.shared().settings().timeout;
        if timed_out || is_answered && gate.metrics.is_redis_slow(took) {
            exchange.note_slow(QueryType::Redis, took, timed_out);
        }
    }
    (checked, holds)
}

fn denied(worker: &Worker, decision: &Decision) -> Response<ProxyBody> {
    let Some(shown) = decision.shown() else {
        // A denial always has a limit that denied.
        return reply::too_many_requests(None, 0, "second");
    };
    let period = shown.period.as_str();
    let mut response = reply::too_many_requests(decision.retry_after(), shown.quota, period);
    let fields = worker.gate.settings.fields;
    headers::add_limit(response.headers_mut(), fields, shown, decision.now, &worker.numbers);
    response
}

/// 401, and what to present instead.
fn unauthorized(worker: &Worker, exchange: &mut Exchange, invalid: Invalid) -> Response<ProxyBody> {
    let mut response = refused(exchange, Refusal::Unauthorized);
    let challenge = worker.gate.identifier.challenge(invalid.method);
    if let Ok(challenge) = HeaderValue::try_from(challenge) {
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    response
}

fn refused(exchange: &mut Exchange, refusal: Refusal) -> Response<ProxyBody> {
    exchange.answered(refusal.status(), refusal.ending(), None, clock::stopwatch());
    reply::refuse(refusal)
}

fn facts_of<'a>(request: &'a Request<Incoming>, conn: &'a ConnState) -> RequestFacts<'a> {
    let uri = request.uri();
    let (path, query) = (uri.path(), uri.query());
    RequestFacts::of(request.method(), path, query, request.headers(), conn.peer.address.ip())
        .shown(conn.peer.certificate.get())
}
