//! `/api/v1/slow`: the last calls that were slow or timed out.

use std::time::Duration;

use http::StatusCode;
use serde::Serialize;

use crate::health::slow::SlowCall;
use crate::metrics::labels::MethodLabel;

use super::answers::{Answer, json};
use super::health::written;
use super::state::AdminState;

/// The calls that are kept, the last one first.
pub fn slow_response(state: &AdminState) -> Answer {
    let calls = state.slow_calls.newest_first();
    json(StatusCode::OK, &Slow { items: calls.iter().map(Item::from).collect() })
}

#[derive(Serialize)]
struct Slow<'a> {
    items: Vec<Item<'a>>,
}

/// One call. `null` is what it does not have, or what is not known of it.
#[derive(Serialize)]
pub struct Item<'a> {
    time: String,
    query_type: &'static str,
    endpoint: Option<&'a str>,
    method: Option<&'static str>,
    upstream: Option<&'a str>,
    ttfb_ms: Option<f64>,
    total_ms: f64,
    status: Option<u16>,
    tier: Option<&'a str>,
    trace_id: Option<String>,
    timed_out: bool,
}

impl<'a> From<&'a SlowCall> for Item<'a> {
    fn from(call: &'a SlowCall) -> Self {
        Item {
            time: written(call.at, humantime::format_rfc3339_millis),
            query_type: call.query.as_str(),
            endpoint: call.endpoint.as_deref(),
            method: call.method.map(MethodLabel::as_str),
            upstream: call.upstream.as_deref(),
            ttfb_ms: call.to_head.map(millis),
            total_ms: millis(call.total),
            status: call.status,
            tier: call.tier.as_deref(),
            trace_id: call.trace.map(|trace| trace.to_string()),
            timed_out: call.timed_out,
        }
    }
}

/// To a tenth of a millisecond.
fn millis(span: Duration) -> f64 {
    (span.as_secs_f64() * 10_000.0).round() / 10.0
}
