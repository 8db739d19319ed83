//! The small backend of `tollgate demo`: it stands for the one that a team already has.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

/// Longest answer of `/slow`.
const SLOW_MAX: Duration = Duration::from_secs(30);
const SEC_WEBSOCKET_KEY: &str = "sec-websocket-key";

static FLAKY_CALLS: AtomicU64 = AtomicU64::new(0);

/// Starts the backend on a thread of its own, on a free port of loopback. It ends with the
/// process.
///
/// # Errors
/// No port, or no thread.
pub fn start() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    std::thread::Builder::new().name("example-backend".to_owned()).spawn(move || {
        if let Err(error) = run(listener) {
            tracing::error!(%error, "the example backend has stopped");
        }
    })?;
    Ok(address)
}

fn run(listener: TcpListener) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default())?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::task::spawn_local(async move {
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(hyper_util::rt::TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service_fn(answer))
                    .with_upgrades();
                // A caller that leaves is no news here.
                connection.await.ok();
            });
        }
    })
}

async fn answer(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let response = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/fo/strike-distribution") => strike_distribution(&query),
        (&Method::GET | &Method::HEAD, "/healthz") => {
            json(StatusCode::OK, &serde_json::json!({"status": "ok"}))
        }
        (_, "/slow") => {
            let millis = parameter(&query, "ms").and_then(|ms| ms.parse().ok()).unwrap_or(2_000);
            tokio::time::sleep(Duration::from_millis(millis).min(SLOW_MAX)).await;
            json(StatusCode::OK, &serde_json::json!({"slept_ms": millis}))
        }
        (_, "/flaky") if FLAKY_CALLS.fetch_add(1, Relaxed).is_multiple_of(3) => {
            json(StatusCode::INTERNAL_SERVER_ERROR, &serde_json::json!({"error": "flaky"}))
        }
        (_, "/flaky") => json(StatusCode::OK, &serde_json::json!({"status": "ok"})),
        (&Method::GET, "/ws") => web_socket(&mut request),
        _ => json(StatusCode::NOT_FOUND, &serde_json::json!({"error": "not found"})),
    };
    Ok(response)
}

/// Open interest by strike, made up from the symbol so that the same question has the same answer.
fn strike_distribution(query: &str) -> Response<Full<Bytes>> {
    let symbol = parameter(query, "symbol").unwrap_or("NIFTY50");
    let seed: u64 = symbol.bytes().map(u64::from).sum();
    let center = 18_000_u64.saturating_add(seed.wrapping_rem(40).saturating_mul(50));
    let strikes: Vec<_> = (0_u64..11)
        .map(|step| {
            let strike = center.saturating_add(step.saturating_mul(50)).saturating_sub(250);
            let calls = seed.wrapping_mul(step.wrapping_add(3)).wrapping_rem(9_000);
            let puts = seed.wrapping_mul(step.wrapping_add(7)).wrapping_rem(9_000);
            serde_json::json!({"strike": strike, "call_oi": calls, "put_oi": puts})
        })
        .collect();
    json(
        StatusCode::OK,
        &serde_json::json!({
            "symbol": symbol,
            "timeframe": parameter(query, "timeframe").unwrap_or("5"),
            "expiry": parameter(query, "expiry").unwrap_or("2025-11-04"),
            "strikes": strikes,
        }),
    )
}

/// Echoes every message.
fn web_socket(request: &mut Request<Incoming>) -> Response<Full<Bytes>> {
    let accept = request
        .headers()
        .get(SEC_WEBSOCKET_KEY)
        .and_then(|key| HeaderValue::try_from(derive_accept_key(key.as_bytes())).ok());
    let Some(accept) = accept else {
        return json(StatusCode::UPGRADE_REQUIRED, &serde_json::json!({"error": "WebSocket only"}));
    };
    let upgrade = hyper::upgrade::on(request);
    tokio::task::spawn_local(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let io = TokioIo::new(upgraded);
        let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                break;
            }
        }
    });
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    response
}

fn json(status: StatusCode, value: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// One parameter of a query, as it stands there.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|it| it.1)
}
