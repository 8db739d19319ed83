//! What is noted of the calls of an upstream that were made.
//!
//! A call counts for good once the head of an answer has come, whatever its status; a connection
//! that was upgraded, once it has lasted for a while or has ended as it should. It counts for bad
//! where there is no connection, where it breaks off before the head, and where a deadline passes.
//! What its downstream has broken off says nothing.

use std::time::{Duration, Instant};

use crate::clock::monotonic;
use crate::health::breaker::{Outcome, jitter};
use crate::health::upstreams::Member;
use crate::metrics::labels::BreakerState;

use super::gate::Gate;
use super::upstreams::{Admitted, Permit};

/// An upgraded connection that has lasted for so long was a success.
pub const STABLE_AFTER: Duration = Duration::from_secs(5);

/// Notes what came of a call by `now`.
#[inline]
pub fn note(gate: &Gate, permit: Permit, outcome: Outcome, now: Instant) {
    if cfg!(feature = "without-signals") {
        return;
    }
    let Some(member) = gate.upstreams.member(permit.member) else { return };
    match permit.admitted {
        Admitted::Call(ticket) => {
            let changed = member.health.called(ticket, outcome, now, jitter);
            tell(gate, member, changed, None);
        }
        Admitted::Probe(probe) => {
            let opened_at = member.health.breaker().opened_at();
            tell(gate, member, probe.end(outcome, now, jitter()), opened_at);
        }
    }
}

/// Notes what came of a check.
pub fn note_check(gate: &Gate, index: usize, outcome: Outcome) {
    let Some(member) = gate.upstreams.member(index) else { return };
    let opened_at = member.health.breaker().opened_at();
    tell(gate, member, member.health.checked(outcome, monotonic(), jitter()), opened_at);
}

/// Says that a circuit has opened or closed.
fn tell(gate: &Gate, member: &Member, changed: Option<BreakerState>, opened_at: Option<Instant>) {
    let now = monotonic();
    let are_several = gate.upstreams.are_several();
    let upstream = are_several.then_some(&*member.name);
    match changed {
        Some(BreakerState::Open) => {
            let retry_after = member.health.breaker().retry_after(now);
            if gate.upstreams.group.view(now).breaker == Some(BreakerState::Open) {
                tracing::warn!(
                    upstream,
                    retry_after,
                    "the upstream's circuit is open: requests are answered with 503"
                );
            } else {
                tracing::warn!(
                    upstream,
                    retry_after,
                    "the upstream's circuit is open: requests go to the others"
                );
            }
        }
        Some(BreakerState::Closed) => {
            let away = opened_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
            tracing::info!(
                upstream,
                unavailable_ms = u64::try_from(away.as_millis()).unwrap_or(u64::MAX),
                "the upstream's circuit is closed again"
            );
        }
        Some(BreakerState::HalfOpen) | None => {}
    }
}
