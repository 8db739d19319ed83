//! A request's check: from what is leased, from what is denied already, by Redis, or without it.

use std::sync::Arc;

use fred::bytes::Bytes;

use crate::clock::monotonic;
use crate::health::tasks::watched;
use crate::limiter::decision::{Decision, Verdict};
use crate::limiter::refund::Grant;
use crate::limiter::time::Timestamp;
use crate::metrics::labels::TaskType;
use crate::policy::compiled::FailureMode;
use crate::policy::plan::Plan;
use crate::store::deny::Known;
use crate::store::deny::asker::Turn;
use crate::store::share::Target;
use crate::store::{Backend, Checked};

use tokio::time::timeout;

use super::RedisStore;
use super::codec::{Call, ReplyError, Ticket};
use super::error::CheckError;
use super::link::{Late, Unanswered};
use super::recovery::Unsettled;
use super::stats::Reason;

/// Answers that a request waits for: one lets somebody else pass, the next one tells that no more can.
const TURNS_MAX: u32 = 2;

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
        let at = monotonic();
        let subject = shared.leases.subject(plan);
        if let Some(subject) = &subject
            && let Some(decision) = shared.leases.spend(subject, plan, at)
        {
            if mode == FailureMode::Local {
                shared.share.note(plan, &decision);
            }
            return Checked::Decided { decision, backend: Backend::Cache };
        }
        let mut waited = 0;
        let (known, _claim) = loop {
            let known = match shared.denials.look(plan, monotonic()) {
                Known::Denied(decision) => {
                    return Checked::Decided { decision, backend: Backend::Cache };
                }
                Known::Nothing(ticket) => ticket,
            };
            match shared.denials.turn(&known, waited > 0, shared.settings.timeout) {
                Turn::Own(claim) => break (known, Some(claim)),
                Turn::Other(mut told) if waited < TURNS_MAX => {
                    let left =
                        (at + shared.settings.timeout / 2).saturating_duration_since(monotonic());
                    if timeout(left, told.changed()).await.is_err() {
                        break (known, None);
                    }
                    waited += 1;
                }
                Turn::Other(_) | Turn::Free => break (known, None),
            }
        };
        let asking = subject.and_then(|subject| {
            shared.leases.wish(&subject, shared.replicas(), at, shared.settings.timeout)
        });
        let answer = match &asking {
            Some(asking) => self.check_for_lease(plan, asking).await,
            None => self.ask_for(plan, None).await,
        };
        match answer {
            Ok(decision) => {
                match decision.verdict {
                    Verdict::Deny => shared.denials.note(&known, plan, &decision, monotonic()),
                    Verdict::Allow => {
                        shared.denials.charged(&plan.identity, decision.now, monotonic());
                    }
                }
                if mode == FailureMode::Local {
                    shared.share.note(plan, &decision);
                }
                Checked::Decided { decision, backend: Backend::Redis }
            }
            Err(unsaid) => {
                let reason = Reason::Failed(unsaid.error.kind);
                let checked = shared.decide_without(plan, now, reason);
                self.settle(plan, &checked, unsaid);
                checked
            }
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
        self.ask_for(plan, now).await.map_err(Unsaid::give_up)
    }

    async fn ask_for(&self, plan: &Plan<'_>, now: Option<Timestamp>) -> Result<Decision, Unsaid> {
        let shared = self.shared();
        let names = &shared.settings.names;
        let call = Call::new(names, plan, now, self.link.asker());
        if now.is_some() {
            return self.ask(call, |ticket, reply| ticket.decode(plan, reply)).await;
        }
        let call = call.before(shared.outage.too_late(shared.settings.timeout));
        let decision = self.ask(call, |ticket, reply| ticket.decode(plan, reply)).await?;
        shared.hear(decision.now);
        Ok(decision)
    }

    pub(super) async fn ask<T>(
        &self,
        call: Call,
        decode: impl FnOnce(&Ticket, &[u8]) -> Result<T, ReplyError>,
    ) -> Result<T, Unsaid> {
        let shared = self.shared();
        let (keys, ticket) = (call.keys.clone(), call.ticket);
        let result = match self.link.ask(call, shared.settings.timeout).await {
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
