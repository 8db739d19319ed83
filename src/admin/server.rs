//! The admin port's HTTP server.
//!
//! Small on purpose: one request per connection, a bound on connections, a deadline for the head
//! and one for the whole. Whoever connects and says nothing, or reads nothing, is cut off.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::health::tasks::watched;
use crate::metrics::labels::TaskType;

use super::access::{Caller, is_loopback};
use super::answers::{Answer, error_response, livez_response, metrics_response, readyz_response};
use super::api;
use super::health::{health_response, verbose_response};
use super::state::AdminState;

/// Connections served at once; further ones wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 64;
/// Pause after an error of the listener: usually there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a connection may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From its beginning to the end of the request's head.
    pub head: Duration,
    /// From its beginning to its end.
    pub whole: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts { head: Duration::from_secs(5), whole: Duration::from_secs(30) }
    }
}

/// Serves until `shutdown` completes; what is under way is cut off then.
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
    // Dropped on the way out, which ends its tasks.
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
    Ok(())
}

async fn serve_connection(stream: TcpStream, state: Arc<AdminState>, timeouts: Timeouts) {
    let both_ends = [stream.peer_addr(), stream.local_addr()];
    let is_local = both_ends.into_iter().all(|it| it.is_ok_and(|it| is_loopback(it.ip())));
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(&state, &request, is_local);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(timeouts.head)
        .serve_connection(TokioIo::new(stream), service);
    // A caller that breaks off or dawdles concerns nobody else.
    let _ = tokio::time::timeout(timeouts.whole, connection).await;
}

fn respond<B>(
    state: &AdminState,
    request: &Request<B>,
    is_local: bool,
) -> Response<Full<bytes::Bytes>> {
    let path = request.uri().path();
    let answer = if api::is_api(path) {
        let caller = Caller { is_local, uri: request.uri(), fields: request.headers() };
        api::respond(state, request.method(), caller)
    } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let answer = error_response(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed");
        answer.with_field(ALLOW, HeaderValue::from_static("GET, HEAD"))
    } else {
        open_page(path, request.uri().query())(state)
    };
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = answer.status;
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some((name, value)) = answer.field {
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
