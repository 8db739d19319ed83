//! A request's check: from what is leased, from what is denied already, by Redis, or without it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fred::bytes::Bytes;

use crate::clock::monotonic;
use crate::health::tasks::watched;
use crate::limiter::decision::{Decision, Verdict};
use crate::limiter::refund::Grant;
use crate::limiter::time::Timestamp;
use crate::metrics::labels::TaskType;
use crate::policy::compiled::FailureMode;
use crate::policy::plan::Plan;
use crate::store::deny::asker::{Claim, Heard, Turn};
use crate::store::deny::{self, Known};
use crate::store::lease::Subject;
use crate::store::share::Target;
use crate::store::{Backend, Checked};

use super::RedisStore;
use super::codec::{Call, ReplyError, Ticket};
use super::error::CheckError;
use super::link::{Late, Unanswered};
use super::recovery::Unsettled;
use super::stats::Reason;

/// The part of the timeout that a request may wait for what another hears. It has the rest to ask.
const WAIT_PART: u32 = 4;
/// Denials of others that a request waits for: one may be too old for it, the next one is not.
const ROUNDS_MAX: u32 = 2;

/// What is known of a request before Redis is asked.
#[expect(clippy::large_enum_variant, reason = "on the stack, and looked at in the next line")]
enum Before<'a> {
    Decided(Decision),
    /// Redis is to be asked, for others as well if there is a claim.
    Unknown(deny::Ticket, Option<Claim<'a>>),
}

impl RedisStore {
    /// Checks and charges every limit of the plan, all or nothing, within the settings' timeout.
    /// `now` is the local clock, for decisions that are made without Redis. What is leased is spent, and
    /// what Redis has denied is denied again, without asking it.
    ///
    /// Cancelled, the check may have been charged.
    pub async fn check(&self, plan: &Plan<'_>, now: Timestamp) -> Checked {
        let shared = self.shared();
        if plan.scopes().next().is_none() {
            let decision = Decision::new(Verdict::Allow, now);
            return Checked::Decided { decision, backend: Backend::Redis };
        }
        if !shared.breaker.is_closed() {
            return shared.decide_without(plan, now, Reason::BreakerOpen);
        }
        let mode = shared.mode(plan);
        if mode == FailureMode::Local && shared.outage.is_apart() {
            let checked = shared.decide_without(plan, now, Reason::BreakerOpen);
            if checked.is_alone() && shared.outage.is_told() {
                let link = Arc::clone(&self.link);
                let charge = link.charge_target(Target::new(&shared.share, plan));
                tokio::spawn(watched(TaskType::Redis, charge));
            }
            return checked;
        }
        let arrived = monotonic();
        let deadline = arrived + shared.settings.timeout;
        let subject = shared.leases.subject(plan);
        let (known, claim) = match self.without_asking(plan, subject.as_ref(), mode, arrived).await
        {
            Before::Decided(decision) => {
                return Checked::Decided { decision, backend: Backend::Cache };
            }
            Before::Unknown(ticket, claim) => (ticket, claim),
        };
        if !shared.breaker.is_closed() {
            // It has opened while this waited.
            claim.into_iter().for_each(Claim::is_for_nothing);
            return shared.decide_without(plan, now, Reason::BreakerOpen);
        }
        let at = monotonic();
        let budget = deadline.saturating_duration_since(at);
        let asking =
            subject.and_then(|subject| shared.leases.wish(&subject, shared.replicas(), at, budget));
        let answer = match &asking {
            Some(asking) => self.check_for_lease(plan, asking, budget).await,
            None => self.ask_for(plan, None, budget).await,
        };
        match answer {
            Ok(decision) => {
                let at = monotonic();
                match decision.verdict {
                    Verdict::Deny => shared.denials.note(&known, plan, &decision, at),
                    Verdict::Allow => shared.denials.charged(&plan.identity, decision.now, at),
                }
                if let Some(claim) = claim {
                    shared.denials.tell(claim, &known, &decision, at);
                }
                if mode == FailureMode::Local {
                    shared.share.note(plan, &decision);
                }
                Checked::Decided { decision, backend: Backend::Redis }
            }
            Err(unsaid) => {
                claim.into_iter().for_each(Claim::is_for_nothing);
                let reason = Reason::Failed(unsaid.error.kind);
                let checked = shared.decide_without(plan, now, reason);
                self.settle(plan, &checked, unsaid);
                checked
            }
        }
    }

    /// What can be said without asking Redis, which may take a wait for what another request hears.
    async fn without_asking(
        &self,
        plan: &Plan<'_>,
        subject: Option<&Subject>,
        mode: FailureMode,
        arrived: Instant,
    ) -> Before<'_> {
        let shared = self.shared();
        let timeout = shared.settings.timeout;
        let (mut now, mut came_with, mut claim) = (arrived, None, None);
        let mut rounds = 0;
        loop {
            if let Some(subject) = subject
                && let Some(decision) = shared.leases.spend(subject, plan, now)
            {
                if mode == FailureMode::Local {
                    shared.share.note(plan, &decision);
                }
                return Before::Decided(decision);
            }
            let ticket = match shared.denials.look(plan, now) {
                Known::Denied(decision) => return Before::Decided(decision),
                Known::Nothing(ticket) => ticket,
            };
            let left = (arrived + timeout / WAIT_PART).saturating_duration_since(now);
            if claim.is_some() || rounds >= ROUNDS_MAX || left.is_zero() {
                return Before::Unknown(ticket, claim);
            }
            let came_with = came_with.get_or_insert(ticket);
            let waiter = match shared.denials.turn(&ticket, timeout) {
                Turn::Own(claim) => return Before::Unknown(ticket, Some(claim)),
                Turn::Free => return Before::Unknown(ticket, None),
                Turn::Other(waiter) => waiter,
            };
            match waiter.wait(left).await {
                Heard::Denied(denial) => {
                    if let Some(decision) = shared.denials.hear(came_with, &denial) {
                        return Before::Decided(decision);
                    }
                    rounds += 1;
                }
                Heard::Own(own) => claim = Some(own),
                Heard::Nothing => rounds = ROUNDS_MAX,
            }
            now = monotonic();
        }
    }

    /// Has an answer waited for that did not come in time, for a request that was decided otherwise.
    fn settle(&self, plan: &Plan<'_>, checked: &Checked, unsaid: Unsaid) {
        let Unsaid { late, keys, ticket, .. } = unsaid;
        let target = Target::new(&self.shared().share, plan);
        let passed = match checked {
            Checked::Decided { decision, .. } => decision.verdict == Verdict::Allow,
            Checked::FailedOpen => true,
            Checked::FailedClosed => false,
        };
        let decided = match checked {
            Checked::Decided { decision, .. } if passed => {
                Some((target.clone(), Grant::new(decision, plan.scopes().count())))
            }
            _ => None,
        };
        if late.is_none() && decided.is_none() {
            return;
        }
        let identity = plan.identity.clone();
        let unsettled = Unsettled { identity, decided, passed, keys, ticket, target, late };
        let settled = Arc::clone(&self.link).settle(unsettled);
        tokio::spawn(watched(TaskType::Redis, settled));
    }

    /// Asks Redis, whatever the breaker says, within the settings' timeout. With `now` the script
    /// takes that for the time instead of Redis's clock. The plan has at least one scope.
    ///
    /// # Errors
    /// No decision, and why. After a timeout or a lost connection it may have been charged.
    pub async fn evaluate(
        &self,
        plan: &Plan<'_>,
        now: Option<Timestamp>,
    ) -> Result<Decision, CheckError> {
        self.ask_for(plan, now, self.shared().settings.timeout).await.map_err(Unsaid::give_up)
    }

    async fn ask_for(
        &self,
        plan: &Plan<'_>,
        now: Option<Timestamp>,
        budget: Duration,
    ) -> Result<Decision, Unsaid> {
        let shared = self.shared();
        let names = &shared.settings.names;
        let call = Call::new(names, plan, now, self.link.asker());
        if now.is_some() {
            return self.ask(call, budget, |ticket, reply| ticket.decode(plan, reply)).await;
        }
        let call = call.before(shared.outage.too_late(budget));
        let decision = self.ask(call, budget, |ticket, reply| ticket.decode(plan, reply)).await?;
        shared.hear(decision.now);
        Ok(decision)
    }

    pub(super) async fn ask<T>(
        &self,
        call: Call,
        budget: Duration,
        decode: impl FnOnce(&Ticket, &[u8]) -> Result<T, ReplyError>,
    ) -> Result<T, Unsaid> {
        let shared = self.shared();
        let (keys, ticket) = (call.keys.clone(), call.ticket);
        let result = match self.link.ask(call, budget).await {
            Ok(reply) => decode(&ticket, reply.as_bytes().unwrap_or_default())
                .map_err(|error| self.link.distrust(&error).into()),
            Err(unanswered) => Err(unanswered),
        };
        match &result {
            Ok(_) => shared.note_good(),
            Err(Unanswered { error, .. }) => shared.note_bad(error),
        }
        result.map_err(|Unanswered { error, late }| Unsaid { error, late, keys, ticket })
    }
}

/// What is left of a check that was not answered in time, or not as it has to be.
pub(super) struct Unsaid {
    error: CheckError,
    pub(super) late: Option<Late>,
    keys: Vec<Bytes>,
    pub(super) ticket: Ticket,
}

impl Unsaid {
    /// What may come of it yet is of no matter, but that it keeps its place until then.
    pub(super) fn give_up(self) -> CheckError {
        if let Some(late) = self.late {
            tokio::spawn(watched(TaskType::Redis, async move { _ = late.await }));
        }
        self.error
    }
}
