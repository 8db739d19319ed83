//! The last calls that were slow or timed out, whoever was asked.
//!
//! Neither identities nor paths are kept: what is shown here is shown to whoever may look after
//! tollgate. The lock is taken only for a call that was slow.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::limiter::time::Timestamp;
use crate::metrics::labels::{MethodLabel, QueryType};
use crate::trace::TraceId;

/// Calls that are kept; the oldest goes first.
pub const CALLS_MAX: usize = 100;
/// Log lines of a second; what is beyond is counted.
pub const LINES_MAX: u32 = 10;

/// A call that took longer than its threshold, or was cut off by its deadline.
#[derive(Clone, Debug, PartialEq)]
pub struct SlowCall {
    /// When it ended.
    pub at: Timestamp,
    /// What was asked for.
    pub query: QueryType,
    /// The rule that names the request, as metrics call it; `None` where the call is not one
    /// request's.
    pub endpoint: Option<Box<str>>,
    /// The request's method.
    pub method: Option<MethodLabel>,
    /// The upstream by its configured name, if one was asked.
    pub upstream: Option<Box<str>>,
    /// To the head of the answer; `None` where none came, or where an answer has no head.
    pub to_head: Option<Duration>,
    /// The whole call.
    pub total: Duration,
    /// The status that the request was answered with.
    pub status: Option<u16>,
    /// The request's tier.
    pub tier: Option<Box<str>>,
    /// The trace that the request belongs to, if its caller named one.
    pub trace: Option<TraceId>,
    /// Whether it was cut off.
    pub timed_out: bool,
}

impl SlowCall {
    /// A call that is not one request's, or of whose request nothing is known.
    pub fn new(query: QueryType, at: Timestamp, total: Duration, timed_out: bool) -> Self {
        SlowCall {
            at,
            query,
            endpoint: None,
            method: None,
            upstream: None,
            to_head: None,
            total,
            status: None,
            tier: None,
            trace: None,
            timed_out,
        }
    }
}

/// The last [`CALLS_MAX`] of them.
#[derive(Debug, Default)]
pub struct SlowCalls(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    calls: VecDeque<SlowCall>,
    /// When the present second of log lines began, and how many it had.
    second: Option<(Instant, u32)>,
    suppressed: u64,
    /// All that there were.
    total: u64,
}

impl SlowCalls {
    /// Keeps a call, and tells of it in the log.
    pub fn note(&self, call: SlowCall, now: Instant) {
        let mut kept = self.0.lock();
        if let Some(suppressed) = kept.line(now) {
            tell(&call, suppressed);
        }
        if kept.calls.len() >= CALLS_MAX {
            kept.calls.pop_front();
        }
        kept.calls.push_back(call);
        kept.total = kept.total.saturating_add(1);
    }

    /// How many there were since the start, and the last `limit` of them, the last one first.
    pub fn latest(&self, limit: usize) -> (u64, Vec<SlowCall>) {
        let kept = self.0.lock();
        (kept.total, kept.calls.iter().rev().take(limit).cloned().collect())
    }

    /// All that are kept, the last one first.
    pub fn newest_first(&self) -> Vec<SlowCall> {
        self.0.lock().calls.iter().rev().cloned().collect()
    }
}

impl Kept {
    /// Whether a line may be written now, and how many were not since the last one.
    fn line(&mut self, now: Instant) -> Option<u64> {
        let is_over =
            |begun: Instant| now.saturating_duration_since(begun) >= Duration::from_secs(1);
        match &mut self.second {
            Some((begun, lines)) if !is_over(*begun) => {
                if *lines >= LINES_MAX {
                    self.suppressed = self.suppressed.saturating_add(1);
                    return None;
                }
                *lines = lines.saturating_add(1);
            }
            second => *second = Some((now, 1)),
        }
        Some(std::mem::take(&mut self.suppressed))
    }
}

fn tell(call: &SlowCall, suppressed: u64) {
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    tracing::warn!(
        query_type = call.query.as_str(),
        endpoint = call.endpoint.as_deref(),
        method = call.method.map(MethodLabel::as_str),
        upstream = call.upstream.as_deref(),
        ttfb_ms = call.to_head.map(millis),
        total_ms = millis(call.total),
        status = call.status,
        tier = call.tier.as_deref(),
        trace_id = call.trace.map(tracing::field::display),
        timed_out = call.timed_out,
        suppressed,
        "a slow call"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(number: u64) -> SlowCall {
        let at = Timestamp::from_micros(number);
        SlowCall::new(QueryType::Redis, at, Duration::from_millis(number), false)
    }

    #[test]
    fn the_last_hundred_are_kept_newest_first() {
        let calls = SlowCalls::default();
        let now = crate::clock::monotonic();
        assert!(calls.newest_first().is_empty());
        (0..250).for_each(|number| calls.note(call(number), now));
        let kept = calls.newest_first();
        assert_eq!(kept.len(), CALLS_MAX);
        assert_eq!((&kept[0], &kept[99]), (&call(249), &call(150)));
        assert_eq!(calls.latest(2), (250, vec![call(249), call(248)]));
    }

    #[test]
    fn ten_lines_a_second_and_the_others_are_counted() {
        let mut kept = Kept::default();
        let start = crate::clock::monotonic();
        let at = |millis| start + Duration::from_millis(millis);
        let lines = |kept: &mut Kept, millis, calls: u32| {
            (0..calls).filter_map(|_| kept.line(at(millis))).collect::<Vec<u64>>()
        };
        assert_eq!(lines(&mut kept, 0, 30), [0; 10]);
        assert!(lines(&mut kept, 999, 5).is_empty());
        assert_eq!(lines(&mut kept, 1_000, 2), [25, 0]);
        assert_eq!(lines(&mut kept, 1_500, 20), [0; 8]);
        assert_eq!(lines(&mut kept, 9_000, 1), [12]);
    }
}
