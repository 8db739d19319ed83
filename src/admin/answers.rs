//! The answers themselves: plain functions of the state, without a connection.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use serde::Serialize;

use crate::clock::monotonic;
use crate::health::readiness::Unready;
use crate::metrics::labels::{Dependency, LimiterMode};

use super::state::AdminState;

const JSON: &str = "application/json";
/// Held to the calls by `tests/openapi.rs`.
const OPENAPI: &str = include_str!("openapi.json");
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// An answer: status, content type, body, and perhaps more fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: StatusCode,
    /// The content type; empty where there is no content.
    pub content_type: &'static str,
    /// The body.
    pub body: Bytes,
    /// Fields that it needs besides, such as `Allow`; one of the usual ones is replaced.
    pub fields: Vec<(HeaderName, HeaderValue)>,
}

/// `/metrics`. Takes milliseconds: for the control thread, whichever port it was asked on.
pub fn metrics_response(state: &AdminState) -> Answer {
    (state.before_scrape)();
    let metrics = &state.metrics;
    let redis = state.redis.as_ref().map(|view| (Dependency::Redis, view()));
    let database = state.database.as_ref().map(|view| (Dependency::Database, view()));
    let jwks = state.jwks.as_ref().map(|view| (Dependency::Jwks, view()));
    let upstream = Some((Dependency::Upstream, state.upstream_view()));
    for (dependency, view) in [upstream, redis, database, jwks].into_iter().flatten() {
        metrics.set_dependency_health(dependency, view.status.value());
        if let Some(breaker) = view.breaker {
            metrics.set_breaker(dependency, breaker);
        }
    }
    metrics.set_limiter_mode((state.limiter)().mode);
    let body = metrics.render(state.clock.now());
    Answer {
        status: StatusCode::OK,
        content_type: PROMETHEUS,
        body: body.into(),
        fields: Vec::new(),
    }
}

/// `/api/v1/openapi.json`: the API, described.
pub fn openapi_response() -> Answer {
    let body = Bytes::from_static(OPENAPI.as_bytes());
    Answer { status: StatusCode::OK, content_type: JSON, body, fields: Vec::new() }
}

/// `/livez`: 503 only when no worker's heart beats.
pub fn livez_response(state: &AdminState) -> Answer {
    if state.heartbeats.is_alive(monotonic()) {
        json(StatusCode::OK, &Probe { status: "alive", reason: None })
    } else {
        let reason = Some("no worker has come round for 5 seconds");
        json(StatusCode::SERVICE_UNAVAILABLE, &Probe { status: "stuck", reason })
    }
}

/// `/readyz`: 503 before the listeners are bound, while draining, and when every request would be
/// refused for want of a store.
pub fn readyz_response(state: &AdminState) -> Answer {
    match unready(state) {
        None => json(StatusCode::OK, &Probe { status: "ready", reason: None }),
        Some(why) => {
            let probe = Probe { status: "not_ready", reason: Some(why.as_str()) };
            json(StatusCode::SERVICE_UNAVAILABLE, &probe)
        }
    }
}

impl Answer {
    /// The same answer with this field.
    pub fn with_field(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.fields.push((name, value));
        self
    }
}

/// A text for eyes.
pub fn text(text: String) -> Answer {
    let (status, body) = (StatusCode::OK, text.into());
    Answer { status, content_type: "text/plain; charset=utf-8", body, fields: Vec::new() }
}

/// 204.
pub fn no_content() -> Answer {
    let (content_type, body) = ("", Bytes::new());
    Answer { status: StatusCode::NO_CONTENT, content_type, body, fields: Vec::new() }
}

/// `{"error":"…"}`.
pub fn error_response(status: StatusCode, error: &str) -> Answer {
    json(status, &Problem { error })
}

/// Why no new requests should be sent here; `None` when ready.
pub fn unready(state: &AdminState) -> Option<Unready> {
    let closed = || (state.limiter)().mode == LimiterMode::Closed;
    state.readiness.unready().or_else(|| closed().then_some(Unready::LimiterClosed))
}

/// A value as JSON.
pub fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    // Structs of strings and finite numbers always serialise.
    let body = serde_json::to_vec(value).unwrap_or_default();
    Answer { status, content_type: JSON, body: body.into(), fields: Vec::new() }
}

#[derive(Serialize)]
struct Problem<'a> {
    error: &'a str,
}

#[derive(Serialize)]
struct Probe {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}
