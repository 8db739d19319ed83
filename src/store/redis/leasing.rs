//! Asking for leases, and giving back what is left of them.

use std::time::Duration;

use crate::clock::monotonic;
use crate::health::tasks::watched;
use crate::limiter::decision::Decision;
use crate::metrics::labels::TaskType;
use crate::policy::compiled::TIER_SCOPE;
use crate::policy::plan::{Plan, Scope, TierId, TierSource};
use crate::store::lease::{Asking, LeaseTable, Return};

use super::error::CheckError;
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

    /// Makes void whatever Redis has said and lent so far: counters, limits or an operator's word have
    /// changed.
    pub fn forget_answers(&self) {
        self.denials.forget();
        self.leases.forget();
    }
}

impl RedisStore {
    /// Checks a request that asks for a lease.
    ///
    /// # Errors
    /// Those of [`RedisStore::lease`].
    pub(super) async fn check_for_lease(
        &self,
        plan: &Plan<'_>,
        asking: &Asking,
    ) -> Result<Decision, CheckError> {
        let leases = &self.shared().leases;
        let leased = self.lease(plan, &asking.wish, None).await;
        match leased {
            Ok(leased) if leased.tokens > 0 => {
                Ok(leases.granted(asking, leased, &plan.identity, monotonic()))
            }
            other => {
                let answer = other.as_ref().ok().map(|leased| &leased.decision);
                leases.refused(asking, answer, monotonic());
                other.map(|leased| leased.decision)
            }
        }
    }

    /// Gives back what is left of leases that are over, or of all: once, as far as Redis is there.
    pub async fn give_leases_back(&self, all: bool) {
        let shared = self.shared();
        let mut returns = shared.leases.take_returns(monotonic(), all);
        while !returns.is_empty() {
            let rest = returns.split_off(returns.len().min(RETURNS_AT_ONCE));
            let sent: Vec<_> = returns.into_iter().map(|it| self.give_back(it)).collect();
            for sent in sent {
                // A task that is cut off has told nobody whether it has gone.
                let _ = sent.await;
            }
            returns = rest;
        }
    }

    fn give_back(&self, returned: Return) -> tokio::task::JoinHandle<()> {
        let Return { identity, limits, tokens, grant, .. } = returned;
        let mut plan = Plan::new(identity, TierId(0), TierSource::Default);
        plan.cost = tokens;
        plan.push(Scope { rule: None, key: TIER_SCOPE, key_hash: 0, limits });
        let shared = std::sync::Arc::clone(self.shared());
        let sent = shared.breaker.is_closed().then(|| self.refund_in_redis(&plan, &grant));
        tokio::spawn(watched(TaskType::Redis, async move {
            let has_gone = match sent {
                Some(sent) => sent.await.is_ok(),
                None => false,
            };
            shared.leases.returned(tokens, has_gone);
        }))
    }
}
