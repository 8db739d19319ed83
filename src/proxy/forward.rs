//! To the upstream and back: one exchange on a connection of the pool.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::header::{CONNECTION, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;

use crate::clock;
use crate::health::breaker::Outcome;
use crate::policy::plan::RuleId;
use crate::store::places::Holds;

use super::body::{Download, ProxyBody, UploadBody, UploadState};
use super::circuit::Permit;
use super::connect::ConnectError;
use super::gate::Active;
use super::headers::{self, Present};
use super::http2_message::{self as http2, Fate};
use super::io::ConnState;
use super::pool::{Lease, Needs, Sent, Unsent};
use super::reply::Refusal;
use super::timer::Tick;
use super::tunnel::{self, Held};
use super::worker::Worker;

/// How often a request that the upstream itself says it did nothing with is sent again.
const RESENDS_MAX: u32 = 3;

/// One call of the upstream, for one request.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Whose pool and clock are used.
    pub worker: &'a Rc<Worker>,
    /// The connection that the request came on.
    pub conn: &'a Arc<ConnState>,
    /// The policy in force.
    pub active: &'a Active,
    /// The rule that names the request.
    pub endpoint: Option<RuleId>,
    /// Which fields the request has.
    pub present: Present,
}

/// Why there is no answer of the upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What to answer instead.
    pub refusal: Refusal,
    /// Whether any of the request may have come to the upstream.
    pub may_have_arrived: bool,
    /// What it says of the upstream, if it says anything.
    pub outcome: Option<Outcome>,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Failure { refusal, may_have_arrived: true, outcome: refusal.of_upstream() }
    }
}

impl Call<'_> {
    /// Sends the request and waits for the answer's head.
    ///
    /// A connection that the upstream closed while it was idle is no reason to fail: what could
    /// not be sent at all goes out on another, and so does, as often as is configured, what was
    /// sent but may be sent twice (RFC 9110 §9.2.2, RFC 9112 §9.3.1).
    ///
    /// Returns the answer, made fit for the downstream, and the time from the request's sending to
    /// its head. The permit is taken where it is not known yet what the call came to, and the
    /// request's places where a tunnel goes on to hold them.
    ///
    /// # Errors
    /// The upstream cannot be reached, breaks off or takes too long; or the request's body does.
    /// Dropping the future cancels the exchange and closes the connection to the upstream.
    pub async fn forward(
        self,
        mut request: Request<Incoming>,
        (permit, holds): (&mut Option<Permit>, &mut Option<Holds>),
    ) -> Result<(Response<ProxyBody>, Duration), Failure> {
        let settings = &self.worker.gate.settings;
        let upgrade = headers::wanted_upgrade(&request, self.present)
            // What cannot be upgraded is an ordinary request (RFC 9110 §7.8).
            .filter(|_| self.worker.pool.can_upgrade());
        let on_upgrade = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        request.extensions_mut().clear();
        let is_trusted = self.active.policy.is_trusted(self.conn.peer.address.ip());
        let is_http_1_0 = request.version() == Version::HTTP_10;
        headers::to_upstream(&mut request, self.present, self.conn, is_trusted, upgrade.as_ref());
        if let Some(host) = &settings.host_override {
            request.headers_mut().insert(HOST, host.clone());
        } else if is_http_1_0
            && !request.headers().contains_key(HOST)
            && let Some(host) = &settings.upstream_authority
        {
            // What goes out is HTTP/1.1, which has to have one (RFC 9112 §3.2).
            request.headers_mut().insert(HOST, host.clone());
        }
        if request.body().size_hint().exact().is_none() {
            // HTTP/2 needs no length, and HTTP/1.1 no length and a framing of its own: without it
            // hyper would leave out the body of a GET.
            let chunked = HeaderValue::from_static("chunked");
            request.headers_mut().insert(TRANSFER_ENCODING, chunked);
        }
        let mut upload = None;
        let request = request.map(|body| {
            if body.is_end_stream() {
                return UploadBody::empty();
            }
            let (timeout, limit) = (settings.body_timeout, settings.body_bytes_max);
            let identifier = &self.worker.gate.identifier;
            let (body, state) = UploadBody::new(body, self.conn, timeout, limit, identifier);
            upload = Some(state);
            body
        });
        let started = clock::stopwatch();
        let needs_http1 = upgrade.is_some();
        let exchanged = self.exchange(request, upload.as_deref(), needs_http1).await;
        let (mut response, lease) = exchanged?;
        let took = clock::stopwatch().saturating_duration_since(started);
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            // Only what was asked for, and by whom it was asked for.
            let wanted = upgrade.zip(on_upgrade).ok_or(Refusal::UpstreamBroken)?;
            let switched = self.switch(response, wanted, lease, (permit, holds));
            let response = switched.ok_or(Refusal::UpstreamBroken)?;
            return Ok((response, took));
        }
        headers::to_downstream(response.status(), response.headers_mut())?;
        *response.version_mut() = Version::HTTP_11;
        // Its extensions stay: all that is there is the reason phrase, where it is an unusual one.
        let response = response.map(|inner| {
            ProxyBody::upstream(Download {
                inner,
                lease: Some(lease),
                upload,
                conn: Arc::clone(self.conn),
                timeout: settings.upstream_idle_timeout,
                due: Tick::NEVER,
                has_ended: false,
                is_until_close: is_http_1_0,
                failure: None,
            })
        });
        Ok((response, took))
    }

    /// Finds a connection and gets an answer's head on it.
    async fn exchange(
        self,
        mut request: Request<UploadBody>,
        upload: Option<&UploadState>,
        needs_http1: bool,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        let pool = &self.worker.pool;
        let may_repeat = upload.is_none() && is_idempotent(request.method());
        let mut tries_left = self.worker.gate.settings.retries;
        let mut resends_left = RESENDS_MAX;
        let mut wants_fresh = false;
        loop {
            // A fresh one is wanted only after the request went out on another.
            let failure = |refusal: Refusal| Failure {
                may_have_arrived: wants_fresh,
                ..Failure::from(refusal)
            };
            let needs = Needs {
                http1: needs_http1,
                is_alive: !may_repeat || tries_left == 0,
                is_fresh: wants_fresh,
            };
            let mut lease = match pool.take(needs) {
                Some(lease) => lease,
                None => {
                    let connected = pool.connect(needs).await;
                    connected.map_err(|error| failure(connect_refusal(error)))?
                }
            };
            let is_http2 = lease.is_http2();
            let can_repeat = may_repeat && lease.is_reused && tries_left > 0;
            let can_resend = is_http2 && upload.is_none() && resends_left > 0;
            let copy = (can_repeat || can_resend).then(|| copy_of(&request));
            if is_http2 {
                http2::to_http2(&mut request, pool.is_tls())?;
            }
            let sent = lease.send(request);
            match answer_head(sent, self.worker, self.conn, upload).await {
                Head::Arrived(response) => return Ok((response, lease)),
                Head::TimedOut => return Err(Refusal::ResponseTimeout.into()),
                Head::UploadFailed(refusal) => return Err(refusal.into()),
                // Not a byte of it was sent: no harm in another try, whatever the method.
                Head::NotSent(returned) if is_http2 && resends_left > 0 => {
                    request = *returned;
                    http2::from_http2(&mut request);
                    resends_left = resends_left.saturating_sub(1);
                    lease.retire();
                }
                Head::NotSent(returned) if !is_http2 && lease.is_reused => request = *returned,
                Head::NotSent(_) => return Err(failure(Refusal::UpstreamBroken)),
                Head::Broken(fate) => {
                    if fate != Fate::StreamReset && fate != Fate::Refused {
                        lease.retire();
                    }
                    let copy = match fate {
                        // The upstream says itself that it did nothing with it.
                        Fate::Refused | Fate::GoneAway if can_resend => {
                            resends_left = resends_left.saturating_sub(1);
                            request = copy.ok_or(Refusal::UpstreamBroken)?;
                            continue;
                        }
                        Fate::Unknown if can_repeat => copy,
                        _ => None,
                    };
                    let copy = copy.filter(|_| !lease.has_answered());
                    // Of one that it gave up alone, the upstream may be very well: whoever can
                    // have it give up requests must not have it shut to others.
                    let bad = Some(Outcome::Bad).filter(|_| fate != Fate::StreamReset);
                    let broken = Failure { outcome: bad, ..Refusal::UpstreamBroken.into() };
                    request = copy.ok_or(broken)?;
                    tries_left = tries_left.saturating_sub(1);
                    wants_fresh = true;
                }
            }
        }
    }

    /// Joins the two connections after a 101 that was asked for.
    fn switch(
        self,
        mut response: Response<Incoming>,
        (wanted, downstream): (HeaderValue, OnUpgrade),
        lease: Lease,
        (permit, holds): (&mut Option<Permit>, &mut Option<Holds>),
    ) -> Option<Response<ProxyBody>> {
        let agreed = response.headers().get(UPGRADE)?.clone();
        if !agreed.as_bytes().eq_ignore_ascii_case(wanted.as_bytes()) {
            return None;
        }
        headers::to_downstream(response.status(), response.headers_mut()).ok()?;
        let upstream = hyper::upgrade::on(&mut response);
        self.conn.switch();
        let guard = self.active.metrics.websocket_opened(self.endpoint);
        let held = Held { lease, guard, permit: permit.take(), holds: holds.take() };
        tunnel::spawn(self.worker, self.conn, (downstream, upstream), &agreed, held);
        let (mut parts, _) = response.into_parts();
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, agreed);
        parts.version = http::Version::HTTP_11;
        parts.extensions.clear();
        Some(Response::from_parts(parts, ProxyBody::own(bytes::Bytes::new())))
    }
}

/// What came of waiting for an answer's head.
enum Head {
    Arrived(Response<Incoming>),
    TimedOut,
    UploadFailed(Refusal),
    NotSent(Box<Request<UploadBody>>),
    Broken(Fate),
}

async fn answer_head(
    sent: impl Future<Output = Sent>,
    worker: &Worker,
    conn: &ConnState,
    upload: Option<&UploadState>,
) -> Head {
    let began = worker.timers.now();
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
        let due = since.plus(worker.gate.settings.response_timeout);
        if worker.timers.is_past(due) {
            return Poll::Ready(Head::TimedOut);
        }
        conn.alarm.arm(due);
        Poll::Pending
    })
    .await
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

fn connect_refusal(error: ConnectError) -> Refusal {
    match error {
        ConnectError::Unreachable(_) => Refusal::UpstreamUnreachable,
        ConnectError::Timeout => Refusal::ConnectTimeout,
        ConnectError::Refused(_) => Refusal::UpstreamBroken,
    }
}
