//! What a check decided, and the state of every limit that it looked at.

use smallvec::SmallVec;

use super::quota::{Mode, Period};
use super::time::{Micros, Timestamp};

/// Scopes that there is room for without an allocation: the tier's, and the rules' of the two
/// readings of a path. Only a path of doubtful spelling can meet more.
pub const SCOPES_USUAL: usize = 3;
/// Limits of as many scopes, which by day, month or concurrency few have.
const LIMITS_USUAL: usize = SCOPES_USUAL * Period::SLIDING.len();

/// The outcome for the request as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every enforced limit had room and was charged.
    Allow,
    /// At least one enforced limit had no room; nothing was charged anywhere.
    Deny,
}

/// One limit as it stands after the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitStatus {
    /// Index of the scope in the request's plan: 0 is the tier, later ones are endpoint rules.
    pub scope: u8,
    /// Which limit of the scope.
    pub period: Period,
    /// Whether it refuses.
    pub mode: Mode,
    /// Requests per period: the rate for `second`, the window's limit otherwise.
    pub quota: u32,
    /// Ceiling of `remaining`: the burst for `second`, equal to `quota` otherwise.
    pub limit: u32,
    /// Whole requests of cost 1 that would still pass, after this one.
    pub remaining: u32,
    /// How long this very request would have had to wait here; zero where it had room.
    pub wait: Micros,
    /// When the limit is whole again if nothing more is sent.
    pub whole_at: Timestamp,
}

/// The decision on one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Allowed or denied.
    pub verdict: Verdict,
    /// The time the decision was made at, by the clock of the store that made it.
    pub now: Timestamp,
    statuses: SmallVec<[LimitStatus; LIMITS_USUAL]>,
}

impl Decision {
    /// A decision that has looked at no limit yet.
    pub fn new(verdict: Verdict, now: Timestamp) -> Self {
        Decision { verdict, now, statuses: SmallVec::new() }
    }

    /// A request that no limit was asked about.
    pub fn allow(now: Timestamp) -> Self {
        Decision::new(Verdict::Allow, now)
    }

    /// Adds the state of one limit.
    pub fn push(&mut self, status: LimitStatus) {
        self.statuses.push(status);
    }

    /// Every limit that was looked at, in the plan's order.
    pub fn statuses(&self) -> &[LimitStatus] {
        &self.statuses
    }

    /// The same, to be put in other words.
    pub(super) fn statuses_mut(&mut self) -> &mut [LimitStatus] {
        &mut self.statuses
    }

    /// Whether the request was charged to this scope: in shadow mode only where it had room.
    pub fn is_charged(&self, scope: usize) -> bool {
        let mut own = self.statuses.iter().filter(|status| usize::from(status.scope) == scope);
        self.verdict == Verdict::Allow && own.all(|status| status.wait.is_zero())
    }

    /// The limit that the answer speaks of: on a denial the enforced one with the longest wait
    /// (ties: the longer period, then the rule's); else the tightest window of a minute or longer
    /// (least remaining; same ties), or the bucket where there is no such window, or how many at
    /// once.
    pub fn shown(&self) -> Option<&LimitStatus> {
        match self.verdict {
            Verdict::Deny => self
                .statuses()
                .iter()
                .filter(|status| status.mode == Mode::Enforce && !status.wait.is_zero())
                .max_by_key(|status| (status.wait, status.period, status.scope)),
            Verdict::Allow => self.statuses().iter().min_by_key(|status| {
                let rank = match status.period {
                    Period::Second => 1,
                    Period::Concurrency => 2,
                    _ => 0,
                };
                (
                    rank,
                    status.remaining,
                    std::cmp::Reverse(status.period),
                    std::cmp::Reverse(status.scope),
                )
            }),
        }
    }

    /// The limit that refuses the request, or would have in shadow mode: the one that the answer
    /// speaks of, or the first in shadow that had no room.
    pub fn limited_by(&self) -> Option<&LimitStatus> {
        match self.verdict {
            Verdict::Deny => self.shown(),
            Verdict::Allow => self
                .statuses()
                .iter()
                .find(|status| status.mode == Mode::Shadow && !status.wait.is_zero()),
        }
    }

    /// On a denial, whole seconds until this very request would pass if nothing else came: at
    /// least 1, never too short. `None` if it was allowed, or can never pass.
    pub fn retry_after(&self) -> Option<u64> {
        let shown = self.shown().filter(|_| self.verdict == Verdict::Deny)?;
        (shown.wait < Micros::NEVER).then(|| shown.wait.as_secs_ceil().max(1))
    }

    /// Whether a limit of this scope has nothing left, or had not enough for this request.
    pub fn is_exhausted(&self, scope: usize) -> bool {
        self.statuses().iter().any(|status| {
            usize::from(status.scope) == scope && (status.remaining == 0 || !status.wait.is_zero())
        })
    }

    /// Whether a limit in shadow mode would have refused the request.
    pub fn shadow_denied(&self) -> bool {
        self.statuses().iter().any(|status| status.mode == Mode::Shadow && !status.wait.is_zero())
    }
}
