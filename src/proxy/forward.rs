//! To the upstream and back: one exchange on a connection of the pool.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::header::{CONNECTION, HOST, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode, request};
use hyper::body::{Body, Incoming};

use crate::clock;

use super::body::{Download, ProxyBody, UploadBody, UploadState};
use super::exchange::Decided;
use super::headers;
use super::io::ConnState;
use super::pool::{ConnectError, Lease};
use super::reply::Refusal;
use super::timer::Tick;
use super::tunnel;
use crate::metrics::TunnelGuard;
use super::worker::Worker;

/// An answer of the upstream's.
#[derive(Debug)]
pub struct Forwarded {
    /// Its head, made fit for the downstream, and its body, which streams.
    pub response: Response<ProxyBody>,
    /// From the request's sending to the answer's head.
    pub took: Duration,
}

/// No answer of the upstream's.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// What the downstream is told.
    pub refusal: Refusal,
    /// How long the upstream was waited for.
    pub took: Option<Duration>,
}

impl Failure {
    /// Whose fault it was.
    pub fn decided(&self) -> Decided {
        match self.refusal {
            Refusal::UpstreamUnreachable => Decided::UpstreamConnect,
            Refusal::ConnectTimeout | Refusal::ResponseTimeout => Decided::UpstreamTimeout,
            Refusal::UpstreamBroken => Decided::UpstreamBroken,
            _ => Decided::Request,
        }
    }
}

/// Sends the request and waits for the answer's head.
///
/// A connection that the upstream closed while it was idle is no reason to fail: what could not be
/// sent at all goes out on another, and so does, as often as is configured, what was sent but may
/// be sent twice (RFC 9110 §9.2.2, RFC 9112 §9.3.1).
///
/// # Errors
/// The upstream cannot be reached, breaks off or takes too long; or the request's body does.
/// Dropping the future cancels the exchange and closes the connection to the upstream.
pub async fn forward(
    worker: &Rc<Worker>,
    conn: &Arc<ConnState>,
    peer_is_trusted: bool,
    mut parts: request::Parts,
    body: Incoming,
) -> Result<Forwarded, Failure> {
    let settings = &worker.gate.settings;
    let upgrade = headers::wanted_upgrade(&parts);
    let downstream_upgrade =
        upgrade.is_some().then(|| parts.extensions.remove::<hyper::upgrade::OnUpgrade>()).flatten();
    parts.extensions.clear();
    headers::to_upstream(&mut parts, conn, peer_is_trusted, upgrade.as_ref());
    if let Some(host) = &settings.host_override {
        parts.headers.insert(HOST, host.clone());
    }
    let (body, upload) = if body.is_end_stream() {
        (UploadBody::empty(), None)
    } else {
        let (timeout, limit) = (settings.body_timeout, settings.body_bytes_max);
        let (body, state) = UploadBody::new(body, conn, timeout, limit);
        (body, Some(state))
    };
    let method = parts.method.clone();
    let may_repeat = upload.is_none() && is_idempotent(&method);
    let mut request = Request::from_parts(parts, body);
    let started = clock::monotonic();
    let mut tries_left = settings.retries;
    let mut wants_fresh = false;
    let (response, lease) = loop {
        let pooled = if wants_fresh { None } else { worker.pool.take(!may_repeat) };
        let mut lease = match pooled {
            Some(lease) => lease,
            None => worker.pool.connect().await.map_err(|error| connect_failure(&error, started))?,
        };
        let copy = (may_repeat && lease.is_reused && tries_left > 0).then(|| copy_of(&request));
        let sent = lease.sender.try_send_request(request);
        match answer_head(sent, worker, conn, upload.as_deref()).await {
            Head::Arrived(response) => break (response, lease),
            Head::TimedOut => return Err(failure(Refusal::ResponseTimeout, started)),
            Head::UploadFailed(refusal) => return Err(failure(refusal, started)),
            // Not a byte of it was sent: no harm in another try, whatever the method.
            Head::NotSent(returned) if lease.is_reused => request = *returned,
            Head::NotSent(_) => return Err(failure(Refusal::UpstreamBroken, started)),
            Head::Broken => match copy.filter(|_| !lease.has_answered()) {
                Some(copy) => {
                    request = copy;
                    tries_left = tries_left.saturating_sub(1);
                    wants_fresh = true;
                }
                None => return Err(failure(Refusal::UpstreamBroken, started)),
            },
        }
    };
    let took = since(started);
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (Some(wanted), Some(on_upgrade)) = (upgrade, downstream_upgrade) else {
            return Err(failure(Refusal::UpstreamBroken, started));
        };
        let response = switch(worker, conn, response, &wanted, on_upgrade, lease, crate::metrics::TunnelGuard)
            .ok_or_else(|| failure(Refusal::UpstreamBroken, started))?;
        return Ok(Forwarded { response, took });
    }
    let (mut parts, inner) = response.into_parts();
    headers::to_downstream(&mut parts.headers);
    parts.version = http::Version::HTTP_11;
    parts.extensions.clear();
    let download = Download {
        inner,
        lease: Some(lease),
        upload,
        conn: Arc::clone(conn),
        timeout: settings.upstream_idle_timeout,
        due: Tick::NEVER,
    };
    Ok(Forwarded { response: Response::from_parts(parts, ProxyBody::upstream(download)), took })
}

/// What came of waiting for an answer's head.
enum Head {
    Arrived(Response<Incoming>),
    TimedOut,
    UploadFailed(Refusal),
    NotSent(Box<Request<UploadBody>>),
    Broken,
}

type Sent = Result<Response<Incoming>, hyper::client::conn::TrySendError<Request<UploadBody>>>;

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
                Err(mut error) => match (upload.and_then(UploadState::failure), error.take_message())
                {
                    (Some(refusal), _) => Head::UploadFailed(refusal),
                    (None, Some(request)) => Head::NotSent(Box::new(request)),
                    (None, None) => Head::Broken,
                },
            });
        }
        if let Some(refusal) = upload.and_then(UploadState::failure) {
            return Poll::Ready(Head::UploadFailed(refusal));
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

/// Joins the two connections after a 101 that was asked for.
fn switch(
    worker: &Rc<Worker>,
    conn: &Arc<ConnState>,
    mut response: Response<Incoming>,
    wanted: &HeaderValue,
    downstream: hyper::upgrade::OnUpgrade,
    lease: Lease,
    guard: TunnelGuard,
) -> Option<Response<ProxyBody>> {
    let agreed = response.headers().get(UPGRADE)?.clone();
    if !agreed.as_bytes().eq_ignore_ascii_case(wanted.as_bytes()) {
        return None;
    }
    let upstream = hyper::upgrade::on(&mut response);
    tunnel::spawn(worker, conn, downstream, upstream, lease, &agreed, guard);
    let (mut parts, _) = response.into_parts();
    headers::to_downstream(&mut parts.headers);
    parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    parts.headers.insert(UPGRADE, agreed);
    parts.version = http::Version::HTTP_11;
    parts.extensions.clear();
    Some(Response::from_parts(parts, ProxyBody::own(bytes::Bytes::new())))
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

fn connect_failure(error: &ConnectError, started: Instant) -> Failure {
    let refusal = match error {
        ConnectError::Unreachable(_) => Refusal::UpstreamUnreachable,
        ConnectError::Timeout => Refusal::ConnectTimeout,
    };
    failure(refusal, started)
}

fn failure(refusal: Refusal, started: Instant) -> Failure {
    Failure { refusal, took: Some(since(started)) }
}

fn since(started: Instant) -> Duration {
    clock::monotonic().saturating_duration_since(started)
}
