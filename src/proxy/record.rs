//! What the access log and traces have to know of a request beside what is counted. Where neither
//! is wanted, a worker has no [`Recorder`], and requests carry nothing of it.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, StatusCode, Version};

use crate::clock;
use crate::limiter::decision::{Decision, LimitStatus, Verdict};
use crate::limiter::quota::Period;
use crate::limiter::time::{Micros, Timestamp};
use crate::log::access::{AccessLines, AccessLog, Decided, Entry, LimitName};
use crate::metrics::labels::{Ending, LimiterBackend};
use crate::otlp::context::{Ids, SpanContext};
use crate::otlp::export::Tracer;
use crate::otlp::span::{LimiterSpan, RequestSpan, UpstreamSpan};
use crate::policy::compiled::Policy;
use crate::policy::identity::Identity;
use crate::policy::plan::{Plan, RuleId, TierId};
use crate::trace::{TraceId, TraceParent};

use super::io::ConnState;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// What is told of an exchange whose downstream left before an answer began, as nginx has it.
const CLIENT_CLOSED: u16 = 499;
/// Bytes of a path that a span holds.
const SPAN_PATH_MAX: usize = 1024;

/// Where one worker's requests are told of.
#[derive(Debug)]
pub struct Recorder {
    access: Option<RefCell<AccessLines>>,
    tracer: Option<Tracer>,
    ids: Ids,
}

/// What is noted of one request.
#[derive(Debug)]
pub struct Notes {
    method: Method,
    target: Target,
    version: Version,
    trace: Option<TraceId>,
    span: Option<SpanContext>,
    identity: Option<Identity>,
    tier: Option<TierId>,
    decided: Decided,
    /// The moment that its limits counted it at.
    counted_at: Option<Timestamp>,
    limited_by: Option<(Option<RuleId>, Period)>,
    remaining: Option<u32>,
    retry_after: Option<u64>,
    limiter: Option<(Instant, Duration, LimiterBackend)>,
    upstream: Option<UpstreamNotes>,
}

#[derive(Debug)]
enum Target {
    Path(PathAndQuery),
    /// Of a CONNECT.
    Authority(Authority),
    None,
}

#[derive(Clone, Copy, Debug)]
struct UpstreamNotes {
    started: Instant,
    took: Option<Duration>,
    status: Option<StatusCode>,
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    /// The policy that it was held to.
    pub policy: &'a Policy,
    /// The connection that it came on.
    pub conn: &'a ConnState,
    /// When its head had arrived.
    pub started: Instant,
    /// From then on.
    pub duration: Duration,
    /// The end, by the clock of limits.
    pub at: Timestamp,
    /// The rule that names it.
    pub endpoint: Option<RuleId>,
    /// 0: no answer was begun.
    pub status: u16,
    /// How it ended.
    pub ending: Ending,
    /// Content of the request.
    pub bytes_in: u64,
    /// Content of the answer.
    pub bytes_out: u64,
}

impl Recorder {
    /// For a worker. `None`: nothing is to be told.
    pub fn new(access: Option<&AccessLog>, tracer: Option<&Tracer>) -> Option<Self> {
        if access.is_none() && tracer.is_none() {
            return None;
        }
        let access = access.map(|log| RefCell::new(AccessLines::new(log.clone())));
        Some(Recorder { access, tracer: tracer.cloned(), ids: Ids::default() })
    }

    /// Begins with a request's head, and what it says of its trace. `None`: nothing will be told of
    /// it.
    pub fn begin<B>(
        &self,
        request: &Request<B>,
        parent: Option<&HeaderValue>,
    ) -> Option<Box<Notes>> {
        let parent = parent.and_then(|field| TraceParent::parse(field.as_bytes()));
        let span = self.tracer.as_ref().and_then(|it| self.ids.decide(parent, it.ratio));
        if self.access.is_none() && span.is_none() {
            return None;
        }
        let uri = request.uri();
        let target = match (uri.path_and_query(), uri.authority()) {
            (Some(path), _) => Target::Path(path.clone()),
            (None, Some(authority)) => Target::Authority(authority.clone()),
            (None, None) => Target::None,
        };
        Some(Box::new(Notes {
            method: request.method().clone(),
            target,
            version: request.version(),
            trace: span.map(|span| span.trace).or(parent.map(|parent| parent.trace)),
            span,
            identity: None,
            tier: None,
            decided: Decided::Nothing,
            counted_at: None,
            limited_by: None,
            remaining: None,
            retry_after: None,
            limiter: None,
            upstream: None,
        }))
    }

    /// Hands over the lines that there are.
    pub fn flush(&self) {
        if let Some(access) = &self.access {
            access.borrow_mut().flush();
        }
    }

    /// Tells of a request that has ended.
    pub fn tell(&self, notes: &Notes, ended: &Ended<'_>) {
        if let Some(access) = &self.access {
            access.borrow_mut().push(&notes.entry(ended));
        }
        if let (Some(tracer), Some(context)) = (&self.tracer, notes.span) {
            tracer.record(notes.request_span(context, &self.ids, ended));
        }
    }
}

impl Notes {
    /// The trace that the request belongs to.
    pub fn trace(&self) -> Option<TraceId> {
        self.trace
    }

    /// Who sent it, and what holds for them.
    pub fn planned(&mut self, plan: &Plan<'_>) {
        self.identity = Some(plan.identity.clone());
        self.tier = Some(plan.tier);
    }

    /// What was decided without a check of limits.
    pub fn decided(&mut self, decided: Decided) {
        self.decided = decided;
    }

    /// What its limits say, and how long it took to know.
    pub fn checked(
        &mut self,
        plan: &Plan<'_>,
        decision: &Decision,
        limiter: (Instant, Duration, LimiterBackend),
    ) {
        let (shown, by) = (decision.shown(), decision.limited_by());
        let decided = match decision.verdict {
            Verdict::Deny => Decided::Deny,
            Verdict::Allow if by.is_some() => Decided::ShadowDeny,
            Verdict::Allow => Decided::Allow,
        };
        let rule = |status: &LimitStatus| plan.scope(status.scope).and_then(|scope| scope.rule);
        self.decided = decided;
        self.counted_at = Some(decision.now);
        self.limited_by = by.map(|status| (rule(status), status.period));
        self.remaining = shown.map(|status| status.remaining);
        self.retry_after = decision.retry_after();
        self.limiter = Some(limiter);
    }

    /// It goes to the upstream now. Of a request that is recorded, the upstream sees tollgate's
    /// span as its parent; else what the caller said (W3C Trace Context, §4.3).
    pub fn asks_upstream(&mut self, headers: &mut HeaderMap) {
        let (started, took, status) = (clock::monotonic(), None, None);
        self.upstream = Some(UpstreamNotes { started, took, status });
        let Some(span) = self.span else { return };
        if span.parent.is_none() {
            // What it may say is of a trace that this one is none of.
            headers.remove(TRACESTATE);
        }
        if let Ok(value) = HeaderValue::try_from(span.for_upstream().to_string()) {
            headers.insert(TRACEPARENT, value);
        }
    }

    /// The upstream answered, after so long.
    pub fn upstream_answered(&mut self, answered: StatusCode, after: Duration) {
        if let Some(upstream) = &mut self.upstream {
            (upstream.took, upstream.status) = (Some(after), Some(answered));
        }
    }

    /// The upstream did not answer. What the request was charged may have come back, so that this
    /// is left.
    pub fn upstream_failed(&mut self, remaining: Option<u32>) {
        self.remaining = remaining;
        if let Some(upstream) = &mut self.upstream {
            let passed = clock::monotonic().saturating_duration_since(upstream.started);
            upstream.took = Some(passed);
        }
    }

    fn entry<'a>(&'a self, ended: &Ended<'a>) -> Entry<'a> {
        let (path, query) = match &self.target {
            Target::Path(path) => (path.path(), path.query()),
            Target::Authority(authority) => (authority.as_str(), None),
            Target::None => ("", None),
        };
        let policy = ended.policy;
        let limited_by = self.limited_by.map(|(rule, period)| LimitName {
            rule: rule.map(|rule| policy.endpoint_name(Some(rule))),
            period,
        });
        Entry {
            // What is replayed of it later is counted at the same moment.
            at: self.counted_at.unwrap_or_else(|| ended.began()),
            method: self.method.as_str(),
            path,
            query,
            status: if ended.status == 0 { CLIENT_CLOSED } else { ended.status },
            identity: self.identity.as_ref(),
            tier: self.tier_name(policy),
            endpoint: policy.endpoint_name(ended.endpoint),
            decided: self.decided,
            limited_by,
            remaining: self.remaining,
            retry_after: self.retry_after,
            duration_us: micros(ended.duration),
            upstream_us: self.upstream.and_then(|it| it.took).map(micros),
            limiter_us: self.limiter.map(|(_, took, _)| micros(took)),
            bytes_in: ended.bytes_in,
            bytes_out: ended.bytes_out,
            peer: ended.conn.peer.address,
            trace: self.trace,
        }
    }

    fn tier_name<'p>(&self, policy: &'p Policy) -> Option<&'p str> {
        policy.tier(self.tier?).map(|tier| &*tier.name)
    }

    fn request_span(&self, context: SpanContext, ids: &Ids, ended: &Ended<'_>) -> RequestSpan {
        let entry = self.entry(ended);
        let since = |at: Instant| at.saturating_duration_since(ended.started);
        RequestSpan {
            context,
            start: ended.began(),
            duration: ended.duration,
            method: usual(&self.method),
            path: start_of(entry.path, SPAN_PATH_MAX).into(),
            scheme: if ended.conn.peer.scheme == "https" { "https" } else { "http" },
            version: match self.version {
                Version::HTTP_10 => "1.0",
                Version::HTTP_2 => "2",
                _ => "1.1",
            },
            status: entry.status,
            endpoint: entry.endpoint.into(),
            tier: entry.tier.map(Into::into),
            decision: entry.decided.as_str(),
            limited_by: entry.limited_by.map(|limit| {
                let period = limit.period.as_str();
                let name = match limit.rule {
                    None => format!("tier:{period}"),
                    Some(rule) => format!("endpoint:{rule}:{period}"),
                };
                name.into()
            }),
            error: error_of(ended),
            limiter: self.limiter.map(|(started, took, backend)| LimiterSpan {
                id: ids.span(),
                after: since(started),
                took,
                backend: backend.as_str(),
            }),
            upstream: self.upstream.map(|upstream| UpstreamSpan {
                after: since(upstream.started),
                took: upstream
                    .took
                    .unwrap_or_else(|| ended.duration.saturating_sub(since(upstream.started))),
                status: upstream.status.map(|status| status.as_u16()),
            }),
        }
    }
}

impl Ended<'_> {
    fn began(&self) -> Timestamp {
        self.at.minus(Micros::from_micros(micros(self.duration)))
    }
}

/// What was wrong with an exchange, if that was not the caller's doing.
fn error_of(ended: &Ended<'_>) -> Option<&'static str> {
    match ended.ending {
        Ending::UpstreamConnect => Some("upstream_connect"),
        Ending::UpstreamTimeout => Some("upstream_timeout"),
        _ if ended.status >= 500 => Some("5xx"),
        _ => None,
    }
}

/// The field in which the caller names its trace. Two are as good as none (W3C Trace Context, §3.2).
pub fn parent_field(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut fields = headers.get_all(TRACEPARENT).iter();
    fields.next().filter(|_| fields.next().is_none())
}

/// The methods that OpenTelemetry's conventions know.
fn usual(method: &Method) -> Option<&'static str> {
    Some(match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::CONNECT => "CONNECT",
        Method::OPTIONS => "OPTIONS",
        Method::TRACE => "TRACE",
        Method::PATCH => "PATCH",
        _ => return None,
    })
}

fn start_of(text: &str, bytes_max: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes_max)).unwrap_or(text)
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
