//! Spans as `ExportTraceServiceRequest` in OTLP's JSON (OTLP 1.0, "JSON Protobuf Encoding"), named
//! and attributed by OpenTelemetry's semantic conventions for HTTP.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::limiter::time::Timestamp;
use crate::trace::SpanId;

use super::span::{LimiterSpan, RequestSpan, UpstreamSpan};

// `SpanKind` and `StatusCode` of the protocol.
const KIND_INTERNAL: u8 = 1;
const KIND_SERVER: u8 = 2;
const KIND_CLIENT: u8 = 3;
const STATUS_ERROR: u8 = 2;

/// Whose spans they are.
#[derive(Clone, Debug)]
pub struct Resource {
    /// tollgate's version.
    pub version: &'static str,
    /// This replica.
    pub instance: Box<str>,
}

/// A batch, as the body of a request.
pub fn batch(resource: &Resource, spans: &[RequestSpan]) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(spans.len().saturating_mul(3));
    for span in spans {
        push_request(&mut encoded, span);
    }
    let of_resource = attributes([
        ("service.name", text("tollgate")),
        ("service.version", text(resource.version)),
        ("service.instance.id", text(&resource.instance)),
    ]);
    let request = json!({ "resourceSpans": [{
        "resource": { "attributes": of_resource },
        "scopeSpans": [{
            "scope": { "name": "tollgate", "version": resource.version },
            "spans": encoded,
        }],
    }] });
    request.to_string().into_bytes()
}

/// Spans of a request: one to three.
fn push_request(encoded: &mut Vec<Value>, span: &RequestSpan) {
    let method = span.method.unwrap_or("_OTHER");
    let mut of_server = vec![
        ("http.request.method", text(method)),
        ("http.response.status_code", number(span.status.into())),
        ("http.route", text(&span.endpoint)),
        ("url.path", text(&span.path)),
        ("url.scheme", text(span.scheme)),
        ("network.protocol.version", text(span.version)),
        ("tollgate.decision", text(span.decision)),
    ];
    of_server.extend(span.tier.as_deref().map(|tier| ("tollgate.tier", text(tier))));
    of_server.extend(span.limited_by.as_deref().map(|it| ("tollgate.limited_by", text(it))));
    of_server.extend(span.error.map(|error| ("error.type", text(error))));
    // What cannot be named by its method is named `HTTP`.
    let name = format!("{} {}", span.method.unwrap_or("HTTP"), span.endpoint);
    let ends = (Duration::ZERO, span.duration);
    let mut server = object(span, span.context.server, (&name, KIND_SERVER), ends, of_server);
    if span.error.is_some() {
        server.insert("status".to_owned(), json!({ "code": STATUS_ERROR }));
    }
    encoded.push(Value::Object(server));
    if let Some(LimiterSpan { id, after, took, backend }) = span.limiter {
        let of_limiter = vec![("tollgate.backend", text(backend))];
        let shown = ("limiter check", KIND_INTERNAL);
        encoded.push(Value::Object(object(span, id, shown, (after, took), of_limiter)));
    }
    if let Some(UpstreamSpan { after, took, status }) = span.upstream {
        let mut of_upstream = vec![("http.request.method", text(method))];
        of_upstream.extend(status.map(|it| ("http.response.status_code", number(it.into()))));
        // Towards a server a 4xx is an error, too.
        let is_error = status.is_none_or(|status| status >= 400);
        let kind = status.map_or_else(|| "no_answer".to_owned(), |status| status.to_string());
        of_upstream.extend(is_error.then(|| ("error.type", text(&kind))));
        let shown = (span.method.unwrap_or("HTTP"), KIND_CLIENT);
        let id = span.context.upstream;
        let mut client = object(span, id, shown, (after, took), of_upstream);
        if is_error {
            client.insert("status".to_owned(), json!({ "code": STATUS_ERROR }));
        }
        encoded.push(Value::Object(client));
    }
}

fn object(
    span: &RequestSpan,
    id: SpanId,
    (name, kind): (&str, u8),
    (after, took): (Duration, Duration),
    of_span: Vec<(&str, Value)>,
) -> Map<String, Value> {
    // A child's parent is the request's span; that one's is the caller's.
    let is_server = id == span.context.server;
    let parent = if is_server { span.context.parent } else { Some(span.context.server) };
    let mut object = Map::new();
    object.insert("traceId".to_owned(), span.context.trace.to_string().into());
    object.insert("spanId".to_owned(), id.to_string().into());
    if let Some(parent) = parent {
        object.insert("parentSpanId".to_owned(), parent.to_string().into());
    }
    object.insert("name".to_owned(), name.into());
    object.insert("kind".to_owned(), kind.into());
    object.insert("startTimeUnixNano".to_owned(), nanos(span.start, after).into());
    let end = nanos(span.start, after.saturating_add(took));
    object.insert("endTimeUnixNano".to_owned(), end.into());
    object.insert("attributes".to_owned(), attributes(of_span));
    object
}

/// As a string: JSON's numbers do not hold it.
fn nanos(start: Timestamp, after: Duration) -> String {
    let start = u128::from(start.as_micros()).saturating_mul(1000);
    start.saturating_add(after.as_nanos()).to_string()
}

fn attributes<'a>(all: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    all.into_iter().map(|(key, value)| json!({ "key": key, "value": value })).collect()
}

fn text(value: &str) -> Value {
    json!({ "stringValue": value })
}

fn number(value: u64) -> Value {
    json!({ "intValue": value.to_string() })
}
