//! Asking for leases, and giving back what is left of them.

use std::sync::Arc;
use std::time::Duration;

use fred::bytes::Bytes;
use fred::types::Value;

use crate::clock::monotonic;
use crate::health::tasks::watched;
use crate::limiter::check::Limits;
use crate::limiter::check::lease::{Leased, Wish};
use crate::limiter::decision::Decision;
use crate::limiter::refund::Grant;
use crate::limiter::time::Timestamp;
use crate::metrics::labels::TaskType;
use crate::policy::compiled::TIER_SCOPE;
use crate::policy::identity::Identity;
use crate::policy::plan::{Plan, Scope, TierId, TierSource};
use crate::store::lease::{Asking, LeaseTable, Return};

use super::check::Unsaid;
use super::codec::{Call, without_lease};
use super::error::CheckError;
use super::link::Link;
use super::{RedisShared, RedisStore};

/// Between two looks for leases that are over: what is left of one is soon where others find it.
pub const RETURN_INTERVAL: Duration = Duration::from_millis(50);
/// Returns that are on their way at a time.
const RETURNS_AT_ONCE: usize = 64;

impl RedisShared {
    /// What this process may spend by itself.
    pub fn leases(&self) -> &LeaseTable {
        &self.leases
    }

    /// Makes void what is denied from memory, as other limits hold now. Leases stay: they are for
    /// those limits alone that they were granted under, and what is left of them goes back.
    pub fn forget_denials(&self) {
        self.denials.forget();
    }

    /// Makes void whatever Redis has said and lent so far: counters, limits or an operator's word have
    /// changed.
    pub fn forget_answers(&self) {
        self.denials.forget();
        self.leases.forget();
    }
}

impl RedisStore {
    /// Asks Redis to check a plan of one scope, and for a lease. With `now` the script takes that for
    /// the time.
    ///
    /// # Errors
    /// No decision, and why. After a timeout or a lost connection it may have been charged, with the
    /// lease.
    pub async fn lease(
        &self,
        plan: &Plan<'_>,
        wish: &Wish,
        now: Option<Timestamp>,
    ) -> Result<Leased, CheckError> {
        let budget = self.shared().settings.timeout;
        self.ask_for_lease(plan, wish, now, budget).await.map_err(Unsaid::give_up)
    }

    async fn ask_for_lease(
        &self,
        plan: &Plan<'_>,
        wish: &Wish,
        now: Option<Timestamp>,
        budget: Duration,
    ) -> Result<Leased, Unsaid> {
        let shared = self.shared();
        let mut call = Call::lease(&shared.settings.names, plan, wish, now, self.link.asker());
        if now.is_none() {
            call = call.before(shared.outage.too_late(budget));
        }
        let limits = || plan.scopes().map(|scope| scope.limits);
        let leased =
            self.ask(call, budget, |ticket, reply| ticket.decode_lease(limits(), reply)).await?;
        if now.is_none() {
            shared.hear(leased.decision.now);
        }
        Ok(leased)
    }

    /// Checks a request that asks for a lease, within `budget`.
    pub(super) async fn check_for_lease(
        &self,
        plan: &Plan<'_>,
        asking: &Asking,
        budget: Duration,
    ) -> Result<Decision, Unsaid> {
        let leases = &self.shared().leases;
        match self.ask_for_lease(plan, &asking.wish, None, budget).await {
            Ok(leased) if leased.tokens > 0 => {
                Ok(leases.granted(asking, leased, &plan.identity, monotonic()))
            }
            Ok(leased) => {
                leases.refused(asking, Some(&leased.decision), monotonic());
                Ok(leased.decision)
            }
            Err(unsaid) => {
                leases.refused(asking, None, monotonic());
                Err(self.only_the_check(plan, unsaid))
            }
        }
    }

    /// Makes of what may still come of a lease what may come of an ordinary check: all but the
    /// request's own tokens go back.
    fn only_the_check(&self, plan: &Plan<'_>, mut unsaid: Unsaid) -> Unsaid {
        let (Some(late), Some(scope)) = (unsaid.late.take(), plan.scope(0)) else { return unsaid };
        let (link, ticket) = (Arc::clone(&self.link), unsaid.ticket);
        let (identity, limits, cost) = (plan.identity.clone(), scope.limits, plan.cost);
        unsaid.late = Some(Box::pin(async move {
            let reply = late.await?;
            let bytes = reply.as_bytes().unwrap_or_default();
            let check = Bytes::copy_from_slice(without_lease(bytes));
            if let Ok(leased) = ticket.decode_lease(std::iter::once(limits), bytes)
                && leased.tokens > cost
            {
                let tokens = leased.tokens.saturating_sub(cost);
                let grant = Grant::of_lease(&leased.decision, leased.span);
                let has_gone = link.give_back(identity, limits, tokens, &grant).await;
                link.shared().leases.returned(tokens, has_gone);
            }
            Ok(Value::Bytes(check))
        }));
        unsaid
    }

    /// The process ends: tells the other replicas that it goes, and gives back what nobody can spend any
    /// more.
    pub async fn leave(&self) {
        self.link.leave().await;
        self.give_leases_back(true).await;
    }

    /// Gives back what is left of leases that are over, or of all: once, as far as Redis is there.
    pub async fn give_leases_back(&self, all: bool) {
        let shared = self.shared();
        let mut returns = shared.leases.take_returns(monotonic(), all);
        while !returns.is_empty() {
            let rest = returns.split_off(returns.len().min(RETURNS_AT_ONCE));
            let sent = returns.into_iter().map(|it| {
                let link = Arc::clone(&self.link);
                tokio::spawn(watched(TaskType::Redis, async move {
                    let Return { identity, limits, tokens, grant, .. } = it;
                    let has_gone = link.give_back(identity, limits, tokens, &grant).await;
                    link.shared().leases.returned(tokens, has_gone);
                }))
            });
            let sent: Vec<_> = sent.collect();
            for sent in sent {
                // A task that is cut off has told nobody whether it has gone.
                let _ = sent.await;
            }
            returns = rest;
        }
    }
}

impl Link {
    /// Gives back tokens of a lease, once. Returns whether Redis says that it has them.
    async fn give_back(
        self: &Arc<Self>,
        identity: Identity,
        limits: Limits,
        tokens: u32,
        grant: &Grant,
    ) -> bool {
        let shared = self.shared();
        if !shared.breaker.is_closed() {
            return false;
        }
        let mut plan = Plan::new(identity, TierId(0), TierSource::Default);
        plan.cost = tokens;
        plan.push(Scope { rule: None, key: TIER_SCOPE, key_hash: 0, limits });
        let settings = &shared.settings;
        let call = Call::refund(&settings.names, &plan, grant, self.asker());
        let result = self.call(call, settings.timeout).await;
        // Then, and not before: what is denied until Redis has it back is denied rightly.
        shared.denials.given_back(&plan.identity);
        if let Err(error) = &result {
            shared.stats.count_error(error.kind);
        }
        result.is_ok()
    }
}
