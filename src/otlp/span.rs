//! What is known of a recorded request when it has ended.

use std::time::Duration;

use crate::limiter::time::Timestamp;
use crate::trace::SpanId;

use super::context::SpanContext;

/// One request: a span of its own, and one for each of the two that it waited for.
#[derive(Clone, Debug)]
pub struct RequestSpan {
    /// Which trace it is part of.
    pub context: SpanContext,
    /// When its head had arrived.
    pub start: Timestamp,
    /// From there to the answer's end.
    pub duration: Duration,
    /// Its method, if it is a usual one.
    pub method: Option<&'static str>,
    /// Its path without the query, cut if it is long.
    pub path: Box<str>,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// `1.0`, `1.1` or `2`.
    pub version: &'static str,
    /// The answer's status.
    pub status: u16,
    /// The endpoint rule that names it, or `other`.
    pub endpoint: Box<str>,
    /// The tier that was found.
    pub tier: Option<Box<str>>,
    /// What was decided.
    pub decision: &'static str,
    /// Which limit refused it, or would have.
    pub limited_by: Option<Box<str>>,
    /// What went wrong, if it is not the caller's doing.
    pub error: Option<&'static str>,
    /// The check of its limits.
    pub limiter: Option<LimiterSpan>,
    /// The call of the upstream.
    pub upstream: Option<UpstreamSpan>,
}

/// The check of a request's limits.
#[derive(Clone, Copy, Debug)]
pub struct LimiterSpan {
    /// Its id.
    pub id: SpanId,
    /// After the request's start.
    pub after: Duration,
    /// How long it took.
    pub took: Duration,
    /// Which store decided.
    pub backend: &'static str,
}

/// The call of the upstream, to the head of its answer.
#[derive(Clone, Copy, Debug)]
pub struct UpstreamSpan {
    /// After the request's start.
    pub after: Duration,
    /// How long it took.
    pub took: Duration,
    /// The status that the upstream answered, if it did.
    pub status: Option<u16>,
}
