//! To the upstream and back: a request made fit for it, and its answer for the downstream.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, HOST, SEC_WEBSOCKET_KEY, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;

use crate::clock;
use crate::health::breaker::Outcome;
use crate::policy::plan::RuleId;

use super::attempt::{Outgoing, Passage};
use super::body::{Download, ProxyBody, UploadBody};
use super::extended_connect;
use super::gate::Active;
use super::headers::{self, Present};
use super::io::ConnState;
use super::pool::Lease;
use super::reply::Refusal;
use super::timer::Tick;
use super::tunnel::{self, Held};
use super::upstreams::Upstream;
use super::worker::Worker;

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
    /// Returns the answer, made fit for the downstream, and the time from the request's sending to
    /// its head, all tries included.
    ///
    /// # Errors
    /// The upstream cannot be reached, breaks off or takes too long; or the request's body does.
    /// Dropping the future cancels the exchange and closes the connection to the upstream.
    pub async fn forward(
        self,
        mut request: Request<Incoming>,
        passage: &mut Passage,
    ) -> Result<(Response<ProxyBody>, Duration), Failure> {
        let settings = &self.worker.gate.settings;
        let upstreams = &self.worker.gate.upstreams;
        let can_upgrade = || upstreams.place(passage.member).is_some_and(Upstream::can_upgrade);
        // What cannot be upgraded is an ordinary request (RFC 9110 §7.8).
        let upgrade = headers::wanted_upgrade(&request, self.present).filter(|_| can_upgrade());
        let on_upgrade = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let is_extended_connect = extended_connect::is_settled(&request);
        let key = request.headers().get(SEC_WEBSOCKET_KEY).filter(|_| is_extended_connect).cloned();
        request.extensions_mut().clear();
        let is_trusted = self.active.policy.is_trusted(self.conn.peer.address.ip());
        let is_http_1_0 = request.version() == Version::HTTP_10;
        headers::to_upstream(&mut request, self.present, self.conn, is_trusted, upgrade.as_ref());
        // What goes out is HTTP/1.1 at least, which has to have one (RFC 9112 §3.2).
        let names_upstream =
            !settings.preserves_host || is_http_1_0 && !request.headers().contains_key(HOST);
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
        if upstreams.are_several() {
            upstreams.budget.requested(started);
        }
        let needs_http1 = upgrade.is_some();
        let upload_state = upload.as_deref();
        let outgoing = Outgoing { request, upload: upload_state, needs_http1, names_upstream };
        let (mut response, lease) = self.exchange(outgoing, passage).await?;
        let took = clock::stopwatch().saturating_duration_since(started);
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            // Only what was asked for, and by whom it was asked for.
            let wanted = upgrade.zip(on_upgrade).ok_or(Refusal::UpstreamBroken)?;
            let is_accepted = |key| extended_connect::is_accepted(key, response.headers_mut());
            if !key.as_ref().is_none_or(is_accepted) {
                return Err(Refusal::UpstreamBroken.into());
            }
            let switched = self.switch(response, wanted, lease, passage);
            let response = switched.ok_or(Refusal::UpstreamBroken)?;
            return Ok((response, took));
        }
        if is_extended_connect && response.status().is_success() {
            // To a CONNECT it would say that the tunnel is there (RFC 9110 §9.3.6).
            return Err(Refusal::NoWebSocket.into());
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

    /// Joins the two connections after a 101 that was asked for.
    fn switch(
        self,
        mut response: Response<Incoming>,
        (wanted, downstream): (HeaderValue, OnUpgrade),
        lease: Lease,
        passage: &mut Passage,
    ) -> Option<Response<ProxyBody>> {
        let agreed = response.headers().get(UPGRADE)?.clone();
        if !agreed.as_bytes().eq_ignore_ascii_case(wanted.as_bytes()) {
            return None;
        }
        headers::to_downstream(response.status(), response.headers_mut()).ok()?;
        let upstream = hyper::upgrade::on(&mut response);
        self.conn.switch();
        let guard = self.active.metrics.websocket_opened(self.endpoint);
        let held =
            Held { lease, guard, permit: passage.permit.take(), holds: passage.holds.take() };
        tunnel::spawn(self.worker, self.conn, (downstream, upstream), &agreed, held);
        let (mut parts, _) = response.into_parts();
        if self.conn.is_stream() {
            // RFC 8441 §5: what 101 says over HTTP/1.1, and nothing of the connection.
            parts.status = StatusCode::OK;
        } else {
            parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            parts.headers.insert(UPGRADE, agreed);
        }
        parts.version = http::Version::HTTP_11;
        parts.extensions.clear();
        Some(Response::from_parts(parts, ProxyBody::own(bytes::Bytes::new())))
    }
}
