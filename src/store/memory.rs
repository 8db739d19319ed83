//! Limiter state in this process's memory. (First version: one table under one lock.)

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::limiter::check::{Limits, State, States, check};
use crate::limiter::decision::Decision;
use crate::limiter::time::Timestamp;
use crate::policy::identity::Identity;
use crate::policy::plan::Plan;

/// State of every identity, shared by all workers.
#[derive(Debug)]
pub struct MemoryStore {
    table: Mutex<HashMap<(Identity, u64), State>>,
}

struct Borrowed(Vec<State>);

impl States for Borrowed {
    #[allow(clippy::indexing_slicing)]
    fn state(&mut self, index: usize) -> &mut State {
        &mut self.0[index]
    }
}

impl MemoryStore {
    /// An empty store for at most `identities_max` states.
    pub fn new(_identities_max: usize) -> Self {
        MemoryStore { table: Mutex::new(HashMap::new()) }
    }

    /// Checks and charges every limit of the plan, all or nothing.
    pub fn check(&self, plan: &Plan<'_>, now: Timestamp) -> Decision {
        let mut table = self.table.lock();
        let scopes: Vec<Limits> = plan.scopes().map(|scope| scope.limits).collect();
        let key = |hash| (plan.identity.clone(), hash);
        let states = plan
            .scopes()
            .map(|scope| table.get(&key(scope.key_hash)).cloned().unwrap_or_default())
            .collect();
        let mut states = Borrowed(states);
        let decision = check(&mut states, &scopes, plan.cost, now);
        for (scope, state) in plan.scopes().zip(states.0) {
            table.insert(key(scope.key_hash), state);
        }
        decision
    }
}
