//! The admin port's HTTP server.
//!
//! Small on purpose: one request per connection, a bound on connections, a deadline for the head
//! and one for the whole. Whoever connects and says nothing, or reads nothing, is cut off.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::clock::monotonic;
use crate::health::tasks::watched;
use crate::metrics::labels::TaskType;

use super::access::{Caller, is_loopback};
use super::answers::{Answer, error_response, livez_response, metrics_response, readyz_response};
use super::api::{self, Reply};
use super::body::{AdminBody, Deadline};
use super::health::{health_response, verbose_response};
use super::page::page_response;
use super::state::AdminState;

/// Connections served at once; further ones wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 64;
/// Pause after an error of the listener: usually there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Largest head of a request, in bytes, and how many fields it may have.
const HEAD_BYTES_MAX: usize = 32 << 10;
const FIELDS_MAX: usize = 64;
/// Largest body of a request, in bytes: a call's is a few hundred.
pub const BODY_BYTES_MAX: usize = 64 << 10;
/// How long a body may take to come.
const BODY_TIME_MAX: Duration = Duration::from_secs(5);
/// Longest target of a request, in bytes.
pub const TARGET_BYTES_MAX: usize = 8 << 10;
/// How long the last part of a body that went on may take to be sent.
pub const LAST_PART_MAX: Duration = Duration::from_secs(5);

/// How long a connection may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From its beginning to the end of the request's head.
    pub head: Duration,
    /// From its beginning to its end; what is told bit by bit is not held to it.
    pub whole: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts { head: Duration::from_secs(5), whole: Duration::from_secs(30) }
    }
}

/// Serves until `shutdown` completes; what is under way then may end, each in its own time.
///
/// # Errors
/// The listener cannot be handed to the runtime.
pub async fn serve(
    listener: std::net::TcpListener,
    state: Arc<AdminState>,
    timeouts: Timeouts,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let accept = async {
        loop {
            // Closed only when dropped, which this very function does.
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let state = Arc::clone(&state);
                    connections.spawn(watched(TaskType::Background, async move {
                        let _permit = permit;
                        serve_connection(stream, state, timeouts).await;
                    }));
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin listener did not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
    };
    tokio::select! {
        () = accept => {}
        () = shutdown => {}
    }
    connections.detach_all();
    Ok(())
}

async fn serve_connection(stream: TcpStream, state: Arc<AdminState>, timeouts: Timeouts) {
    let peer = stream.peer_addr().map(|it| it.ip());
    let local = stream.local_addr().map(|it| it.ip());
    let (Ok(peer), Ok(local)) = (peer, local) else { return };
    let is_local = is_loopback(peer) && is_loopback(local);
    let deadline = Deadline::new(monotonic() + timeouts.whole);
    let of_service = deadline.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (state, deadline) = (Arc::clone(&state), of_service.clone());
        async move {
            let is_head = *request.method() == Method::HEAD;
            let reply = respond(&state, request, Origin { is_local, peer }).await;
            Ok::<_, Infallible>(response(reply, is_head, deadline))
        }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(timeouts.head)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(FIELDS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    // A caller that breaks off or dawdles concerns nobody else.
    tokio::select! {
        _ = connection => {}
        () = deadline.passed() => {}
    }
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
struct Origin {
    is_local: bool,
    peer: std::net::IpAddr,
}

async fn respond(state: &Arc<AdminState>, request: Request<Incoming>, from: Origin) -> Reply {
    let (parts, body) = request.into_parts();
    let is_reading = matches!(parts.method, Method::GET | Method::HEAD);
    let path = parts.uri.path();
    if parts.uri.path_and_query().is_some_and(|it| it.as_str().len() > TARGET_BYTES_MAX) {
        return Reply::Answer(error_response(StatusCode::URI_TOO_LONG, "URI too long"));
    }
    if api::is_api(path) {
        let caller = Caller {
            is_local: from.is_local,
            peer: from.peer,
            is_reading,
            uri: &parts.uri,
            fields: &parts.headers,
        };
        return match api::call(state, &parts.method, caller) {
            Err(refused) => Reply::Answer(refused),
            // Only of those who may call is a body read.
            Ok(call) => match whole(&parts.headers, body).await {
                Ok(body) => call.answer(Arc::clone(state), &body).await,
                Err(refused) => Reply::Answer(refused),
            },
        };
    }
    if !is_reading {
        let answer = error_response(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed");
        return Reply::Answer(answer.with_field(ALLOW, HeaderValue::from_static("GET, HEAD")));
    }
    if path == "/" {
        return Reply::Answer(page_response(&parts.headers));
    }
    Reply::Answer(open_page(path, parts.uri.query())(state))
}

/// The whole body of a request, if it is no larger than any call's may be.
async fn whole(fields: &http::HeaderMap, body: Incoming) -> Result<Bytes, Answer> {
    let too_large = || error_response(StatusCode::PAYLOAD_TOO_LARGE, "Content too large");
    let is_none = body.is_end_stream() && !fields.contains_key(CONTENT_LENGTH);
    if is_none {
        return Ok(Bytes::new());
    }
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    let body = Limited::new(body, BODY_BYTES_MAX).collect();
    match tokio::time::timeout(BODY_TIME_MAX, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(error_response(StatusCode::BAD_REQUEST, "the body broke off")),
        Err(_) => Err(error_response(StatusCode::REQUEST_TIMEOUT, "Request timeout")),
    }
}

fn response(reply: Reply, is_head: bool, deadline: Deadline) -> Response<AdminBody> {
    let (status, content_type, extra, body) = match reply {
        Reply::Answer(Answer { status, content_type, body, fields }) => {
            (status, content_type, fields, AdminBody::Whole(Some(body)))
        }
        Reply::Events(_) if is_head => {
            (StatusCode::OK, api::EVENT_STREAM, Vec::new(), AdminBody::Whole(None))
        }
        Reply::Events(events) => {
            let body = AdminBody::Events(events.lifting(deadline));
            (StatusCode::OK, api::EVENT_STREAM, Vec::new(), body)
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let fields = response.headers_mut();
    if !content_type.is_empty() {
        fields.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    for (name, value) in extra {
        fields.insert(name, value);
    }
    response
}

/// What is answered to everybody.
fn open_page(path: &str, query: Option<&str>) -> fn(&AdminState) -> Answer {
    let is_verbose = || query.is_some_and(|it| it.split('&').any(|pair| pair == "verbose=1"));
    match path {
        "/metrics" => metrics_response,
        "/health" if is_verbose() => verbose_response,
        "/health" => health_response,
        "/livez" => livez_response,
        "/readyz" => readyz_response,
        _ => |_| error_response(StatusCode::NOT_FOUND, "Not found"),
    }
}
