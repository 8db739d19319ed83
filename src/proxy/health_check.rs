//! Asks the upstream itself how it does, every now and then, beside the requests.
//!
//! Each check makes a connection of its own, by the same way as a request's: what is found out is
//! whether a new one can be made and whether the upstream answers on it. Checks are no requests:
//! no limit knows of them, no request's metric counts them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use crate::clock::monotonic;
use crate::errors::chain;
use crate::health::breaker::{Outcome, jitter};
use crate::health::upstream::CheckRules;
use crate::metrics::labels::{CheckResult, Dependency};

use super::circuit;
use super::connect::{ConnectError, Protocol, UpstreamIo, UpstreamSocket};
use super::gate::Gate;
use super::http2_message::to_http2;
use super::upstreams::Upstream;

/// How an upstream is checked.
#[derive(Clone, Debug)]
pub struct HealthCheck {
    /// When, and what follows from it.
    pub rules: CheckRules,
    /// What is asked for.
    pub target: PathAndQuery,
}

/// Why a check was not good.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("not within {0:?}")]
    Timeout(Duration),
    #[error("{}", chain(.0))]
    Connect(#[source] ConnectError),
    #[error("{}", chain(.0))]
    Broken(#[source] hyper::Error),
    #[error("the upstream's name cannot stand in Host")]
    Host,
    #[error("answered {0}, expected 200 to 399")]
    Status(StatusCode),
}

/// Checks one upstream for ever. One check ends before the next begins.
pub async fn run(gate: Arc<Gate>, check: HealthCheck, index: usize) {
    let Some(place) = gate.upstreams.place(index) else { return };
    let are_several = gate.upstreams.are_several();
    let name = gate.upstreams.member(index).filter(|_| are_several).map(|it| &*it.name);
    let mut was_good = None;
    loop {
        let started = monotonic();
        let limit = check.rules.timeout;
        let checked = tokio::time::timeout(limit, once(&gate, place, &check)).await;
        let checked = checked.unwrap_or(Err(Fault::Timeout(limit)));
        let result = match &checked {
            Ok(()) => CheckResult::Ok,
            Err(Fault::Timeout(_)) => CheckResult::Timeout,
            Err(_) => CheckResult::Error,
        };
        let took = monotonic().saturating_duration_since(started);
        gate.metrics.checks_of(Dependency::Upstream).record(result, took);
        tell(&checked, &mut was_good, name);
        let outcome = if checked.is_ok() { Outcome::Good } else { Outcome::Bad };
        circuit::note_check(&gate, index, outcome);
        // A fifth more or less, so that replicas do not ask in step.
        tokio::time::sleep(check.rules.interval.mul_f64(0.8 + 0.4 * jitter())).await;
    }
}

/// Says what has changed.
fn tell(checked: &Result<(), Fault>, was_good: &mut Option<bool>, upstream: Option<&str>) {
    let is_good = checked.is_ok();
    match (checked, was_good.replace(is_good)) {
        (Err(fault), Some(true) | None) => {
            tracing::warn!(upstream, reason = %fault, "the upstream's health check fails");
        }
        (Ok(()), Some(false)) => {
            tracing::info!(upstream, "the upstream's health check succeeds again")
        }
        _ => {}
    }
}

async fn once(gate: &Gate, place: &Upstream, check: &HealthCheck) -> Result<(), Fault> {
    let limit = check.rules.timeout;
    let deadline = monotonic() + limit;
    let connected = place.target.connect(false, limit, deadline).await;
    let (stream, is_http2) = connected.map_err(Fault::Connect)?;
    let io = TokioIo::new(UpstreamIo(UpstreamSocket::new(stream)));
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = Uri::from(check.target.clone());
    let headers = request.headers_mut();
    let host = place.authority.clone().ok_or(Fault::Host)?;
    headers.insert(HOST, host);
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    let agent = concat!("tollgate/", env!("CARGO_PKG_VERSION"), " (health check)");
    headers.insert(USER_AGENT, HeaderValue::from_static(agent));
    let head_bytes_max = gate.settings.pool.head_bytes_max;
    let status = if is_http2 {
        let is_tls = matches!(place.target.protocol, Protocol::Tls(_));
        to_http2(&mut request, is_tls).map_err(|_| Fault::Host)?;
        let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(head_bytes_max).unwrap_or(u32::MAX))
            .handshake(io)
            .await
            .map_err(Fault::Broken)?;
        status(sender.send_request(request), connection).await?
    } else {
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(head_bytes_max)
            .handshake(io)
            .await
            .map_err(Fault::Broken)?;
        status(sender.send_request(request), connection).await?
    };
    let is_expected = status.is_success() || status.is_redirection();
    if is_expected { Ok(()) } else { Err(Fault::Status(status)) }
}

/// The answer's status; of its body nothing is read. The connection ends with the check, however
/// the check ends.
async fn status(
    answer: impl Future<Output = hyper::Result<http::Response<hyper::body::Incoming>>>,
    connection: impl Future<Output = hyper::Result<()>>,
) -> Result<StatusCode, Fault> {
    let driven = async {
        // Its error reaches the answer too.
        connection.await.ok();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answer = answer => answer.map(|it| it.status()).map_err(Fault::Broken),
        () = driven => Err(Fault::Host),
    }
}
