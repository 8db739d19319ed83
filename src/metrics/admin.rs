//! What is counted of the admin API, and of callers who look at their own limits.

use super::edge_labels::{AdminChange, AdminRefusal, OverrideKind, SelfServiceResult};
use super::handles::increment;
use super::names;
use super::registry::Metrics;

impl Metrics {
    /// A call was turned away.
    pub fn admin_refused(&self, reason: AdminRefusal) {
        increment(&self.events.admin_refused, reason.index());
    }

    /// An operator changed something.
    pub fn admin_changed(&self, change: AdminChange) {
        increment(&self.events.admin_changes, change.index());
    }

    /// A caller asked for their own limits.
    pub fn self_service(&self, result: SelfServiceResult) {
        increment(&self.events.self_service, result.index());
    }

    /// So many identities have another tier, or are refused, by an operator's word.
    pub fn set_overrides(&self, kind: OverrideKind, count: usize) {
        self.handles.gauge(&names::OVERRIDES, &[kind.as_str()]).set(count as f64);
    }
}
