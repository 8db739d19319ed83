//! One request at one upstream, and at another where that came to nothing.
//!
//! What decides is whether the request may have had an effect. Of which not a byte was sent goes
//! to another upstream at once, whatever its method. One that was sent goes on only if it is
//! idempotent, has no body, and not a byte of an answer has come (RFC 9110 §9.2.2).

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use http::header::HOST;
use http::{HeaderValue, Method, Request, Response};
use hyper::body::Incoming;

use crate::clock;
use crate::health::breaker::Outcome;
use crate::metrics::edge_labels::RetryReason;
use crate::store::places::Holds;

use super::body::{UploadBody, UploadState};
use super::circuit;
use super::connect::ConnectError;
use super::forward::{Call, Failure};
use super::http2_message::{self as http2, Fate};
use super::pool::{Lease, Needs, Pool, Sent, Unsent};
use super::reply::Refusal;
use super::timer::Tick;
use super::upstreams::{Among, Permit};

/// How often a request that the upstream itself says it did nothing with is sent again.
const RESENDS_MAX: u32 = 3;
/// How long connecting to one of several upstreams may take at least, if there is so much time.
const CONNECT_SHARE_MIN: Duration = Duration::from_millis(250);

/// What a request has that goes to the upstream.
#[derive(Debug)]
pub struct Passage {
    /// What lets it be told how the call went; taken where that is not known yet.
    pub permit: Option<Permit>,
    /// Its places among its caller's requests at once; taken where a tunnel goes on to hold them.
    pub holds: Option<Holds>,
    /// The upstream that is asked, or was last.
    pub member: usize,
}

impl Passage {
    /// It has not been sent yet.
    pub fn new(permit: Permit, holds: Option<Holds>) -> Self {
        Passage { member: permit.member, permit: Some(permit), holds }
    }
}

/// A request that is fit for every upstream, but for its `Host`.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// The request itself.
    pub request: Request<UploadBody>,
    /// What is known of its body, if it has one.
    pub upload: Option<&'a UploadState>,
    /// It is to be upgraded.
    pub needs_http1: bool,
    /// `Host` is the upstream's own name.
    pub names_upstream: bool,
}

/// What is left of a request's tries, and what came of those that were made.
#[derive(Debug)]
struct Tries {
    /// At other upstreams, after it was sent.
    left: u32,
    /// On another connection, where one that was idle turned out to be closed.
    may_meet_stale: bool,
    /// For connecting.
    connect_left: Duration,
    /// Whom it may yet be sent to.
    among: Among,
    /// Whether any of it may have come to an upstream.
    has_sent: bool,
    /// When it was sent first, and last.
    began: Option<(Tick, Tick)>,
    /// Those that did not answer within `per_try_timeout`.
    late: Vec<Permit>,
}

/// What came of one upstream.
enum Attempt {
    Answered(Response<Incoming>, Lease),
    /// There is nothing more to be done.
    Failed(Failure),
    /// Another upstream may be asked.
    Returned(Box<Request<UploadBody>>, Failure, RetryReason),
    /// It took too long, and this one is asked.
    Late(Box<Request<UploadBody>>, Permit),
}

/// What came of waiting for an answer's head.
enum Head {
    Arrived(Response<Incoming>),
    TimedOut,
    Late(Permit),
    UploadFailed(Refusal),
    NotSent(Box<Request<UploadBody>>),
    Broken(Fate),
}

impl Call<'_> {
    /// Gets an answer's head, of one upstream or another.
    pub(super) async fn exchange(
        self,
        outgoing: Outgoing<'_>,
        passage: &mut Passage,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        let Outgoing { mut request, upload, needs_http1, names_upstream } = outgoing;
        let settings = &self.worker.gate.settings;
        let upstreams = &self.worker.gate.upstreams;
        let among = if upstreams.budget.is_nothing() {
            Among::NOBODY
        } else {
            upstreams.among(needs_http1).without(passage.member)
        };
        let mut tries = Tries {
            left: settings.retries,
            may_meet_stale: settings.retries > 0,
            connect_left: settings.pool.connect_timeout,
            among,
            has_sent: false,
            began: None,
            late: Vec::new(),
        };
        loop {
            if names_upstream && let Some(host) = self.authority(passage.member) {
                request.headers_mut().insert(HOST, host.clone());
            }
            let pool = self.worker.lines.pool(passage.member);
            let pool = pool.ok_or(Refusal::UpstreamUnreachable)?;
            let attempt = self.attempt(request, upload, needs_http1, pool, &mut tries).await;
            match attempt {
                Attempt::Answered(response, mut lease) => {
                    lease.carry(passage.permit.as_mut().and_then(|permit| permit.flight.take()));
                    self.settle(&mut tries);
                    return Ok((response, lease));
                }
                Attempt::Failed(failure) => return Err(failure),
                Attempt::Returned(returned, failure, reason) => {
                    let Some(next) = self.another(&mut tries, reason) else { return Err(failure) };
                    if let Some((permit, outcome)) = passage.permit.take().zip(failure.outcome) {
                        circuit::note(&self.worker.gate, permit, outcome, clock::monotonic());
                    }
                    (passage.member, passage.permit) = (next.member, Some(next));
                    request = *returned;
                }
                Attempt::Late(copy, next) => {
                    if let Some(mut permit) = passage.permit.take() {
                        permit.flight = None;
                        tries.late.push(permit);
                    }
                    (passage.member, passage.permit) = (next.member, Some(next));
                    request = *copy;
                }
            }
        }
    }

    fn authority(&self, member: usize) -> Option<&HeaderValue> {
        self.worker.gate.upstreams.place(member)?.authority.as_ref()
    }

    /// One upstream's part. A connection that it closed while it was idle is no reason to fail:
    /// what could not be sent at all goes out on another, and so does, once, what was sent but may
    /// be sent twice.
    async fn attempt(
        self,
        mut request: Request<UploadBody>,
        upload: Option<&UploadState>,
        needs_http1: bool,
        pool: &Rc<Pool>,
        tries: &mut Tries,
    ) -> Attempt {
        let may_repeat = upload.is_none() && is_idempotent(request.method());
        let mut resends_left = RESENDS_MAX;
        let mut wants_fresh = false;
        loop {
            let needs = Needs {
                http1: needs_http1,
                is_alive: !may_repeat || !tries.may_meet_stale,
                is_fresh: wants_fresh,
            };
            let mut lease = match pool.take(needs) {
                Some(lease) => lease,
                None => match self.connect(pool, needs, tries).await {
                    Ok(lease) => lease,
                    Err(error) => {
                        let failure = tries.failure(connect_refusal(&error));
                        let returned = Box::new(request);
                        return Attempt::Returned(returned, failure, RetryReason::Connect);
                    }
                },
            };
            let is_http2 = lease.is_http2();
            let can_repeat = may_repeat && lease.is_reused && tries.may_meet_stale;
            let can_resend = is_http2 && upload.is_none() && resends_left > 0;
            let can_move = may_repeat && tries.left > 0 && !tries.among.is_empty();
            let copy = (can_repeat || can_resend || can_move).then(|| copy_of(&request));
            if is_http2 && let Err(refusal) = http2::to_http2(&mut request, pool.is_tls()) {
                return Attempt::Failed(refusal.into());
            }
            let sent = lease.send(request);
            match self.answer_head(sent, upload, &lease, can_move, tries).await {
                Head::Arrived(response) => return Attempt::Answered(response, lease),
                Head::TimedOut => return Attempt::Failed(Refusal::ResponseTimeout.into()),
                Head::UploadFailed(refusal) => return Attempt::Failed(refusal.into()),
                Head::Late(next) => {
                    tries.has_sent = true;
                    return match copy {
                        Some(copy) => Attempt::Late(Box::new(copy), next),
                        None => Attempt::Failed(Refusal::ResponseTimeout.into()),
                    };
                }
                // Not a byte of it was sent: no harm in another try, whatever the method.
                Head::NotSent(mut returned) => {
                    if is_http2 {
                        http2::from_http2(&mut returned);
                        lease.retire();
                    }
                    let may_go_on = if is_http2 { resends_left > 0 } else { lease.is_reused };
                    if !may_go_on {
                        let failure = tries.failure(Refusal::UpstreamBroken);
                        return Attempt::Returned(returned, failure, RetryReason::Connect);
                    }
                    resends_left = resends_left.saturating_sub(u32::from(is_http2));
                    request = *returned;
                }
                Head::Broken(fate) => {
                    if fate != Fate::StreamReset && fate != Fate::Refused {
                        lease.retire();
                    }
                    // The upstream says itself that it did nothing with it.
                    let is_untouched = matches!(fate, Fate::Refused | Fate::GoneAway);
                    tries.has_sent |= !(is_untouched && can_resend);
                    let copy = match fate {
                        Fate::Refused | Fate::GoneAway => copy,
                        Fate::Unknown => copy.filter(|_| may_repeat && !lease.has_answered()),
                        Fate::StreamReset | Fate::Garbage => None,
                    };
                    // Of one that it gave up alone, the upstream may be very well: whoever can
                    // have it give up requests must not have it shut to others.
                    let bad = Some(Outcome::Bad).filter(|_| fate != Fate::StreamReset);
                    let failure = Failure { outcome: bad, ..Refusal::UpstreamBroken.into() };
                    let Some(copy) = copy else { return Attempt::Failed(failure) };
                    if is_untouched && can_resend {
                        resends_left = resends_left.saturating_sub(1);
                    } else if !is_untouched && can_repeat {
                        (tries.may_meet_stale, wants_fresh) = (false, true);
                    } else if can_move {
                        let copy = Box::new(copy);
                        return Attempt::Returned(copy, failure, RetryReason::Broken);
                    } else {
                        return Attempt::Failed(failure);
                    }
                    request = copy;
                }
            }
        }
    }

    /// A new connection, in what is left of the time for that. Where others may be asked they are
    /// left half of it: one that swallows what it is sent must not use up all of it.
    async fn connect(
        self,
        pool: &Rc<Pool>,
        needs: Needs,
        tries: &mut Tries,
    ) -> Result<Lease, ConnectError> {
        let mut limit = tries.connect_left;
        if !tries.among.is_empty() {
            limit = (limit / 2).max(CONNECT_SHARE_MIN).min(limit);
        }
        let started = clock::monotonic();
        let connected = pool.connect(needs, limit).await;
        let took = clock::monotonic().saturating_duration_since(started);
        tries.connect_left = tries.connect_left.saturating_sub(took);
        connected
    }

    /// Leave to ask another upstream, if there is one, and if there may be another retry.
    fn another(&self, tries: &mut Tries, reason: RetryReason) -> Option<Permit> {
        let gate = &self.worker.gate;
        let is_too_late = reason == RetryReason::Connect && tries.connect_left.is_zero();
        if tries.among.is_empty() || is_too_late {
            return None;
        }
        let now = self.worker.timers.now();
        let next = self.worker.lines.ask_another(&gate.upstreams, tries.among, now)?;
        if !gate.upstreams.budget.spend(clock::monotonic()) {
            gate.metrics.upstream_retry_skipped();
            return None;
        }
        gate.metrics.upstream_retried(reason);
        tries.among = tries.among.without(next.member);
        if reason != RetryReason::Connect {
            tries.left = tries.left.saturating_sub(1);
        }
        Some(next)
    }

    /// Notes what is to be said of upstreams that were late, now that one has answered: nothing, if
    /// that one took as long.
    fn settle(&self, tries: &mut Tries) {
        let (gate, now) = (&self.worker.gate, self.worker.timers.now());
        let Some((limit, (_, last))) = gate.settings.per_try_timeout.zip(tries.began) else {
            return;
        };
        let was_in_time = now.since(last) < limit;
        for permit in tries.late.drain(..).filter(|_| was_in_time) {
            circuit::note(gate, permit, Outcome::Bad, clock::monotonic());
        }
    }

    /// Waits for an answer's head: as long as there is for all tries, or as there is for one, if
    /// another upstream may be asked then.
    async fn answer_head(
        self,
        sent: impl Future<Output = Sent>,
        upload: Option<&UploadState>,
        lease: &Lease,
        can_move: bool,
        tries: &mut Tries,
    ) -> Head {
        let Call { worker, conn, .. } = self;
        let settings = &worker.gate.settings;
        let now = worker.timers.now();
        let (began, _) = *tries.began.insert((tries.began.map_or(now, |(first, _)| first), now));
        let mut share = settings.per_try_timeout.filter(|_| can_move).map(|it| now.plus(it));
        let mut sent = pin!(sent);
        poll_fn(|cx| {
            if let Poll::Ready(sent) = sent.as_mut().poll(cx) {
                return Poll::Ready(match sent {
                    Ok(response) => Head::Arrived(response),
                    Err(unsent) => match (upload.and_then(UploadState::failure), unsent) {
                        (Some(refusal), _) => Head::UploadFailed(refusal),
                        (None, Unsent::Returned(request)) => Head::NotSent(request),
                        (None, Unsent::Failed(error)) => Head::Broken(Fate::of(&error)),
                    },
                });
            }
            if let Some(refusal) = upload.and_then(UploadState::failure) {
                return Poll::Ready(Head::UploadFailed(refusal));
            }
            if upload.is_some_and(UploadState::is_awaited) {
                // The downstream has its own time, which `failure` keeps.
                return Poll::Pending;
            }
            // The upstream's time runs from the last of the request that it took.
            let since = upload.map_or(began, |upload| began.max(upload.last_progress()));
            let due = since.plus(settings.response_timeout);
            if worker.timers.is_past(due) {
                return Poll::Ready(Head::TimedOut);
            }
            conn.alarm.arm(due);
            if let Some(until) = share {
                if !worker.timers.is_past(until) {
                    conn.alarm.arm(until);
                    return Poll::Pending;
                }
                // Once: whoever may not move on now waits for this one.
                share = None;
                let next =
                    (!lease.has_answered()).then(|| self.another(tries, RetryReason::Timeout));
                if let Some(next) = next.flatten() {
                    return Poll::Ready(Head::Late(next));
                }
            }
            Poll::Pending
        })
        .await
    }
}

impl Tries {
    /// A failure of which no byte was sent, unless one was before.
    fn failure(&self, refusal: Refusal) -> Failure {
        Failure { may_have_arrived: self.has_sent, ..refusal.into() }
    }
}

fn copy_of(request: &Request<UploadBody>) -> Request<UploadBody> {
    let mut copy = Request::new(UploadBody::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// RFC 9110 §9.2.2.
fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE)
}

fn connect_refusal(error: &ConnectError) -> Refusal {
    match error {
        ConnectError::Unreachable(_) => Refusal::UpstreamUnreachable,
        ConnectError::Timeout => Refusal::ConnectTimeout,
        ConnectError::Refused(_) => Refusal::UpstreamBroken,
    }
}
