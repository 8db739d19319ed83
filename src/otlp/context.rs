//! Which trace a request belongs to, and whether it is recorded.

use std::cell::Cell;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use crate::trace::{SpanId, TraceId, TraceParent};

/// A request that is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanContext {
    /// Its trace.
    pub trace: TraceId,
    /// Whoever called tollgate; `None`: the trace begins here.
    pub parent: Option<SpanId>,
    /// The span of the request in tollgate.
    pub server: SpanId,
    /// The span of the call of the upstream, which is the parent of whatever the upstream does.
    pub upstream: SpanId,
}

impl SpanContext {
    /// What the upstream is told.
    pub fn for_upstream(&self) -> TraceParent {
        TraceParent { trace: self.trace, span: self.upstream, is_sampled: true }
    }
}

/// The part of the traces that begin here which is recorded, by the trace's id: whoever decides by
/// the same rule (OpenTelemetry's `TraceIdRatioBased`) decides alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio(u64);

impl Ratio {
    const ALL: u64 = 1 << 63;

    /// From 0 to 1; what is beyond is taken for the nearer end.
    pub fn new(part: f64) -> Self {
        // Saturates, and makes nothing of what is no number.
        Ratio((part.clamp(0.0, 1.0) * Self::ALL as f64) as u64)
    }

    fn takes(self, trace: TraceId) -> bool {
        let TraceId(id) = trace;
        let low = u64::try_from(id & u128::from(u64::MAX)).unwrap_or(0);
        low >> 1 < self.0
    }
}

/// One worker's source of ids. They have to differ, not to be secret.
#[derive(Debug)]
pub struct Ids(Cell<u64>, Cell<u64>);

impl Default for Ids {
    fn default() -> Self {
        // Keyed by the operating system's randomness.
        let random = |salt: u64| RandomState::new().hash_one(salt);
        Ids(Cell::new(random(1)), Cell::new(random(2)))
    }
}

impl Ids {
    fn trace(&self) -> TraceId {
        let id = u128::from(next(&self.0)) << 64 | u128::from(next(&self.1));
        TraceId(id.max(1))
    }

    /// An id for a span.
    pub fn span(&self) -> SpanId {
        SpanId(next(&self.1).max(1))
    }

    /// Whether a request is recorded, and as what. A caller's decision is followed; where there is
    /// none, `ratio` decides.
    pub fn decide(&self, parent: Option<TraceParent>, ratio: Ratio) -> Option<SpanContext> {
        let (trace, parent) = match parent {
            Some(parent) if !parent.is_sampled => return None,
            Some(parent) => (parent.trace, Some(parent.span)),
            None => {
                let trace = self.trace();
                if !ratio.takes(trace) {
                    return None;
                }
                (trace, None)
            }
        };
        Some(SpanContext { trace, parent, server: self.span(), upstream: self.span() })
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
fn next(state: &Cell<u64>) -> u64 {
    let seed = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    state.set(seed);
    let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_s_decision_is_followed() {
        let ids = Ids::default();
        let parent = |is_sampled| TraceParent { trace: TraceId(7), span: SpanId(8), is_sampled };
        let context = ids.decide(Some(parent(true)), Ratio::new(0.0)).unwrap();
        assert_eq!((context.trace, context.parent), (TraceId(7), Some(SpanId(8))));
        assert!(context.server != context.upstream && context.server != SpanId(8));
        assert_eq!(context.for_upstream().span, context.upstream);
        assert_eq!(ids.decide(Some(parent(false)), Ratio::new(1.0)), None);
    }

    #[test]
    fn a_part_of_the_traces_that_begin_here_is_recorded() {
        let ids = Ids::default();
        let recorded = |part: f64| {
            (0..20_000).filter(|_| ids.decide(None, Ratio::new(part)).is_some()).count()
        };
        assert_eq!((recorded(0.0), recorded(f64::NAN), recorded(1.0)), (0, 0, 20_000));
        assert!((1_700..2_300).contains(&recorded(0.1)), "{}", recorded(0.1));
        assert_eq!(ids.decide(None, Ratio::new(1.0)).unwrap().parent, None);
        // By the lower half of the id, as OpenTelemetry's SDKs have it.
        assert!(Ratio::new(0.5).takes(TraceId(0x7fff_ffff_ffff_fffe)));
        assert!(!Ratio::new(0.5).takes(TraceId(0x8000_0000_0000_0001)));
    }
}
