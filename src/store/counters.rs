//! What single identities have used, for whoever looks at it or resets it: not the way of requests,
//! which have a connection of their worker's.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::limiter::decision::Decision;
use crate::limiter::time::Timestamp;
use crate::policy::identity::Identity;
use crate::policy::plan::Plan;

use super::Backend;
use super::memory::MemoryStore;
use super::redis::error::CheckError;
use super::redis::{RedisShared, RedisStore};

/// How long Redis may take to tell or to forget.
const BUDGET: Duration = Duration::from_secs(1);

/// Limiter state, wherever it is kept.
#[derive(Debug)]
pub struct Counters {
    memory: Arc<MemoryStore>,
    shared: Option<Arc<RedisShared>>,
    redis: OnceLock<RedisStore>,
}

impl Counters {
    /// Of these stores. `memory` is where state is kept without Redis, and while it is away.
    pub fn new(memory: Arc<MemoryStore>, shared: Option<Arc<RedisShared>>) -> Self {
        Counters { memory, shared, redis: OnceLock::new() }
    }

    /// The connection to Redis, made when it is first asked for; `None`: state is in memory. To be
    /// called on the runtime that goes on to use it.
    pub fn redis(&self) -> Option<&RedisStore> {
        let shared = self.shared.as_ref()?;
        Some(self.redis.get_or_init(|| RedisStore::connect(Arc::clone(shared))))
    }

    /// How Redis is reached, where state is kept there.
    pub fn shared(&self) -> Option<&RedisShared> {
        self.shared.as_deref()
    }

    /// How every limit of a plan stands, and what the request would come to; nothing is charged.
    /// While Redis does not answer: as this process alone knows it.
    pub async fn peek(&self, plan: &Plan<'_>, now: Timestamp) -> (Decision, Backend) {
        if plan.scopes().next().is_none() {
            return (Decision::allow(now), Backend::Memory);
        }
        let Some(redis) = self.redis() else {
            return (self.memory.peek(plan, now), Backend::Memory);
        };
        // Redis knows nothing yet of what was let pass without it.
        if redis.shared().is_apart() {
            return (redis.shared().peek_alone(plan, now), Backend::Local);
        }
        redis.wait_connected(BUDGET).await;
        match redis.peek(plan, None, BUDGET).await {
            Ok(decision) => (decision, Backend::Redis),
            Err(_) => (redis.shared().peek_alone(plan, now), Backend::Local),
        }
    }

    /// Forgets what an identity has used of these scopes, by their names and hashes; in Redis first,
    /// then in this process.
    ///
    /// # Errors
    /// Redis did not say that it has: then nothing is forgotten here either.
    pub async fn reset(
        &self,
        identity: &Identity,
        scopes: &[(&str, u64)],
    ) -> Result<(), CheckError> {
        if let Some(redis) = self.redis() {
            let names: Vec<&str> = scopes.iter().map(|(name, _)| *name).collect();
            redis.wait_connected(BUDGET).await;
            redis.reset(identity, &names).await?;
        }
        self.reset_here(identity, scopes.iter().map(|(_, hash)| *hash));
        Ok(())
    }

    /// The same in this process alone: what was counted while Redis was away.
    pub fn reset_here(&self, identity: &Identity, scopes: impl Iterator<Item = u64>) {
        match &self.shared {
            Some(shared) => shared.share().reset(identity, scopes),
            None => self.memory.reset(identity, scopes),
        }
        self.forget_answers();
    }

    /// What Redis has said so far is to be asked for anew: somebody has changed what it depends on.
    pub fn forget_answers(&self) {
        if let Some(shared) = &self.shared {
            shared.forget_answers();
        }
    }
}
