//! Whether the upstream is called at all, and what is noted of the calls that were made.
//!
//! A call counts for good once the head of an answer has come, whatever its status; a connection
//! that was upgraded, once it has lasted for a while or has ended as it should. It counts for bad
//! where there is no connection, where it breaks off before the head, and where a deadline passes.
//! What its downstream has broken off says nothing.

use std::time::{Duration, Instant};

use crate::clock::monotonic;
use crate::health::breaker::{Outcome, jitter};
use crate::health::shared_breaker::{Probe, Ticket};
use crate::health::upstream::Admission;
use crate::metrics::labels::BreakerState;

use super::gate::Gate;
use super::reply::Refusal;

/// An upgraded connection that has lasted for so long was a success.
pub const STABLE_AFTER: Duration = Duration::from_secs(5);

/// One call of the upstream that may be made. Dropped, it says nothing of the upstream.
#[derive(Debug)]
pub enum Permit {
    /// Among others.
    Call(Ticket),
    /// The one that finds out whether others may.
    Probe(Probe),
}

/// Asks for a call.
///
/// # Errors
/// The circuit is open.
#[inline]
pub fn ask(gate: &Gate) -> Result<Permit, Refusal> {
    match gate.upstream_health.admit(monotonic, jitter) {
        Admission::Call(ticket) => Ok(Permit::Call(ticket)),
        Admission::Probe(probe) => Ok(Permit::Probe(probe)),
        Admission::Refused(retry_after) => Err(Refusal::CircuitOpen { retry_after }),
    }
}

/// Notes what came of a call by `now`.
#[inline]
pub fn note(gate: &Gate, permit: Permit, outcome: Outcome, now: Instant) {
    if cfg!(feature = "without-signals") {
        return;
    }
    match permit {
        Permit::Call(ticket) => {
            let changed = gate.upstream_health.called(ticket, outcome, now, jitter);
            tell(gate, changed, None);
        }
        Permit::Probe(probe) => {
            let opened_at = gate.upstream_health.breaker().opened_at();
            tell(gate, probe.end(outcome, now, jitter()), opened_at);
        }
    }
}

/// Notes what came of a check.
pub fn note_check(gate: &Gate, outcome: Outcome) {
    let opened_at = gate.upstream_health.breaker().opened_at();
    tell(gate, gate.upstream_health.checked(outcome, monotonic(), jitter()), opened_at);
}

/// Says that the circuit has opened or closed.
fn tell(gate: &Gate, changed: Option<BreakerState>, opened_at: Option<Instant>) {
    let now = monotonic();
    match changed {
        Some(BreakerState::Open) => {
            let retry_after = gate.upstream_health.breaker().retry_after(now);
            tracing::warn!(
                retry_after,
                "the upstream's circuit is open: requests are answered with 503"
            );
        }
        Some(BreakerState::Closed) => {
            let away = opened_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
            tracing::info!(
                unavailable_ms = u64::try_from(away.as_millis()).unwrap_or(u64::MAX),
                "the upstream's circuit is closed again"
            );
        }
        Some(BreakerState::HalfOpen) | None => {}
    }
}
