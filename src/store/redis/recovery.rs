//! What follows when Redis is back: it is told what this replica let pass meanwhile, and decides again
//! once the others have told it, too.
//!
//! Told is told once: a charge says by when it has to be made, and if nothing is heard of it that is
//! taken for a no, so that it may be counted twice and never not at all. Also here: what becomes of a
//! check that is answered after its request was decided.

use std::sync::Arc;
use std::time::Duration;

use fred::bytes::Bytes;
use tokio::task::JoinSet;

use crate::clock::monotonic;
use crate::health::tasks::watched;
use crate::limiter::decision::{Decision, Verdict};
use crate::limiter::refund::Grant;
use crate::limiter::time::Timestamp;
use crate::metrics::labels::{RedisErrorKind, TaskType};
use crate::policy::identity::Identity;
use crate::redis::node::Node;
use crate::store::share::{Cursor, Owed, Target, Told};

use super::codec::{Call, Ticket};
use super::error::CheckError;
use super::link::{Late, Link};
use super::replicas::Seen;

/// Charges that wait for Redis at the same time: what is ahead of every check that is made meanwhile, by
/// this replica or by another one. Redis takes some 50 µs for each, so these are a few milliseconds of a
/// check's budget, and as many as keep Redis busy.
const CHARGES_AT_ONCE: usize = 32;
/// How long one may take. Nobody's request waits for it.
const CHARGE_BUDGET: Duration = Duration::from_secs(1);
/// How long replicas are waited for that were there before the outage.
const SETTLE_MAX: Duration = Duration::from_secs(5);
/// Between two looks at who is back.
const SETTLE_INTERVAL: Duration = Duration::from_millis(100);

/// A check that was not answered in time, after its request was decided.
pub struct Unsettled {
    /// Who sent the request.
    pub identity: Identity,
    /// What this replica decided by its share; `None`: nothing was counted here.
    pub decided: Option<(Target, Grant)>,
    /// Whether the request was let pass.
    pub passed: bool,
    /// The keys, and the reader of the reply.
    pub keys: Vec<Bytes>,
    /// Reads the reply.
    pub ticket: Ticket,
    /// Limits and cost.
    pub target: Target,
    /// What may come of it yet.
    pub late: Option<Late>,
}

impl Link {
    /// What has to be done now and then while Redis answers. Returns at once.
    pub fn tend(self: &Arc<Self>) {
        let shared = self.shared();
        if !shared.breaker.is_closed() || !self.is_up() {
            return;
        }
        let link = Arc::clone(self);
        if shared.outage.is_apart() {
            tokio::spawn(watched(TaskType::Redis, link.recover()));
        } else if shared.replicas.takes_beat(monotonic()) {
            tokio::spawn(watched(TaskType::Redis, link.beat_once()));
        } else if shared.outage.takes_debt() {
            tokio::spawn(watched(TaskType::Redis, async move { _ = link.charge_all(false).await }));
        }
    }

    /// The first words over a new connection: whether it leads to the Redis that is known. Of
    /// several servers one alone knows that.
    pub async fn recognise(&self, node: &Node) {
        if self.is_of_parts() {
            return self.shared().replicas.beat_soon();
        }
        match self.beat_over(node, self.shared().outage.is_apart()).await {
            Ok(seen) => self.note_beat(&seen),
            Err(_) => self.shared().replicas.beat_soon(),
        }
    }

    async fn beat_once(self: Arc<Self>) {
        if let Ok(seen) = self.beat(false, Timestamp::EPOCH).await {
            self.note_beat(&seen);
        }
    }

    fn note_beat(&self, seen: &Seen) {
        let shared = self.shared();
        if shared.replicas.note_generation(seen) {
            tracing::warn!("redis has lost what it was told, and is told again");
            shared.outage.set_lost(true);
            shared.outage.part();
        } else if !shared.outage.is_apart() {
            shared.replicas.note(seen);
        }
    }

    /// Tells Redis what was let pass without it, waits for the others to do so, and lets it decide
    /// again. Ends early where Redis is lost again; then it is begun anew.
    async fn recover(self: Arc<Self>) {
        let shared = self.shared();
        let Some(_right) = shared.outage.recovering() else { return };
        if !shared.outage.is_apart() {
            return;
        }
        let back = match self.beat(true, Timestamp::EPOCH).await {
            Ok(back) => {
                self.note_beat(&back);
                Some(back)
            }
            // The others decide without the one that knows of replicas.
            Err(_) if self.lacks_a_part() => None,
            Err(_) => return,
        };
        let is_lost = back.is_some() && shared.outage.is_lost();
        if !self.charge_all(is_lost).await {
            return;
        }
        if is_lost {
            shared.outage.set_lost(false);
        }
        shared.outage.set_told();
        // Only from here on does this replica count as one that has told what it let pass.
        let (others, deadline) = (shared.replicas.counted(), monotonic() + SETTLE_MAX);
        while let Some(back) = &back {
            match self.beat(false, back.now).await {
                Ok(seen) if seen.recent >= others || monotonic() >= deadline => {
                    shared.replicas.note(&seen);
                    break;
                }
                Ok(_) => {}
                Err(_) if self.lacks_a_part() => break,
                Err(_) => return,
            }
            tokio::time::sleep(SETTLE_INTERVAL).await;
            if !shared.breaker.is_closed() || !self.charge_all(false).await {
                return;
            }
        }
        shared.outage.rejoin();
        // What was let pass while the last beat was made.
        shared.outage.owe();
    }

    /// Whether others of several servers can be asked, and some cannot: nobody waits for those.
    fn lacks_a_part(&self) -> bool {
        self.is_of_parts() && self.is_up() && self.shared().breaker.is_closed()
    }

    /// Charges all that was let pass alone, and with `is_lost` all that was let pass: of several
    /// servers to the one that has lost what it knew, which is the one that is known by its name.
    /// Returns whether Redis was there to the end.
    async fn charge_all(self: &Arc<Self>, is_lost: bool) -> bool {
        let shared = self.shared();
        let [name, _] = shared.settings().names.replicas();
        let told = |key: &[u8]| {
            if !self.is_there(key) {
                shared.outage.owe();
                Told::Nothing
            } else if is_lost && self.are_together(key, &name) {
                Told::All
            } else {
                Told::Debts
            }
        };
        let (mut cursor, mut charges) = (Cursor::default(), JoinSet::new());
        let mut is_well = true;
        let now = || shared.outage.now();
        while let Some(owed) = shared.share.owed_from(&mut cursor, now(), is_lost, told) {
            for owed in owed {
                while charges.len() >= CHARGES_AT_ONCE {
                    is_well &= charges.join_next().await.is_none_or(|it| it.unwrap_or(false));
                }
                if is_well {
                    charges.spawn(watched(TaskType::Redis, Arc::clone(self).charge(owed)));
                } else {
                    shared.share.put_back(&owed, shared.outage.now());
                    shared.outage.owe();
                }
            }
            if !is_well || !shared.breaker.is_closed() {
                is_well = false;
                break;
            }
        }
        while let Some(charged) = charges.join_next().await {
            is_well &= charged.unwrap_or(false);
        }
        is_well
    }

    /// Charges what one record owes; what is not charged for certain it goes on to owe. Returns
    /// whether it was.
    async fn charge(self: Arc<Self>, owed: Owed) -> bool {
        let shared = self.shared();
        let outage = &shared.outage;
        let before = outage.too_late(CHARGE_BUDGET / 2);
        let asker = self.asker();
        let call = Call::charge(owed.redis_keys.to_vec(), &owed.debit, outage.now(), before, asker);
        let ticket = call.ticket;
        let result = self.call(call, CHARGE_BUDGET).await.and_then(|reply| {
            let reply = ticket.decode_charge(reply.as_bytes().unwrap_or_default());
            reply.map_err(|error| self.distrust(&error))
        });
        match &result {
            Ok(now) => shared.hear(*now),
            Err(error) => {
                shared.stats.count_error(error.kind);
                shared.share.put_back(&owed, outage.now());
                outage.owe();
            }
        }
        shared.stats.count_charge(result.is_ok());
        // What one of several servers is not told is owed until that one is there.
        result.is_ok() || self.lacks_a_part()
    }

    /// Charges at once what a request's scopes owe.
    pub async fn charge_target(self: Arc<Self>, target: Target) {
        let shared = self.shared();
        for owed in shared.share.owed_by(&target, shared.outage.now()) {
            Arc::clone(&self).charge(owed).await;
        }
    }

    /// Waits for the answer to a check whose request was decided without it, and makes good what
    /// was decided otherwise.
    pub async fn settle(self: Arc<Self>, unsettled: Unsettled) {
        let Unsettled { identity, decided, passed, keys, ticket, target, late } = unsettled;
        let shared = self.shared();
        let answer = match late {
            Some(late) => late.await,
            None => Err(CheckError::new(RedisErrorKind::Io, "no answer")),
        };
        let decision = answer.ok().and_then(|reply| {
            ticket.decode_of(target.limits(), reply.as_bytes().unwrap_or_default()).ok()
        });
        let is_granted = |decision: &Decision| decision.verdict == Verdict::Allow;
        match decision.filter(is_granted) {
            // Redis has counted it after all.
            Some(decision) if passed => {
                shared.denials.charged(&identity, decision.now, monotonic());
                if let Some((target, grant)) = &decided {
                    shared.share.forgive(target, grant);
                }
            }
            Some(decision) => {
                let grant = Grant::new(&decision, keys.len());
                let asker = self.asker();
                let limits = target.limits();
                let refund = Call::refund_of(keys, target.cost(), limits, &grant, asker);
                let budget = shared.settings.timeout;
                let result = self.call(refund, budget).await;
                // Then, and not before: what is denied until Redis has it back is denied rightly.
                shared.denials.given_back(&identity);
                if let Err(error) = result {
                    shared.stats.count_error(error.kind);
                }
            }
            None => {
                if let Some((target, _)) = decided {
                    if shared.breaker.is_closed() && !shared.outage.is_apart() && self.is_up() {
                        Arc::clone(&self).charge_target(target).await;
                        shared.denials.charged(&identity, shared.outage.now(), monotonic());
                    } else {
                        shared.outage.owe();
                    }
                }
            }
        }
    }
}
