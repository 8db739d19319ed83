//! The places that a request holds while it lasts, wherever they are counted.

use std::sync::Arc;

use crate::limiter::decision::{Decision, Verdict};
use crate::policy::plan::Plan;

use super::Checked;
use super::memory::{MemoryStore, Places};
use super::redis::places::HeldPlaces;

/// What one request holds. Dropped, it is free for others.
#[derive(Debug)]
pub struct Holds(Held);

#[derive(Debug)]
enum Held {
    Memory(Arc<MemoryStore>, Places),
    Redis(#[expect(dead_code, reason = "held to be dropped")] HeldPlaces),
}

impl Holds {
    /// What `decision` of the store in memory lets a request hold. `None`: nothing.
    pub fn in_memory(
        store: &Arc<MemoryStore>,
        plan: &Plan<'_>,
        decision: &Decision,
    ) -> Option<Self> {
        let places = store.places(plan, decision)?;
        Some(Holds(Held::Memory(Arc::clone(store), places)))
    }

    /// What is left of the places that were expected, once the request was checked. One that passes
    /// without Redis holds them, too: Redis is told of them when it is back.
    pub fn in_redis(expected: HeldPlaces, checked: &Checked) -> Option<Self> {
        let Checked::Decided { decision, .. } = checked else { return None };
        if decision.verdict == Verdict::Deny {
            expected.refused();
            return None;
        }
        Some(Holds(Held::Redis(expected.granted(decision))))
    }
}

impl Drop for Holds {
    fn drop(&mut self) {
        if let Held::Memory(store, places) = &self.0 {
            store.release(places);
        }
    }
}
