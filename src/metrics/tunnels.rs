//! What is counted of upgraded connections.

use std::time::Duration;

use super::edge_labels::TunnelEvent;
use super::exposition::Family;
use super::handles::{Handles, increment};
use super::histogram::{HistogramTotals, TUNNEL_EDGES};
use super::labels::Direction;
use super::names;
use super::registry::Metrics;
use super::series::{count_many, total};

impl Metrics {
    /// Something happened to an upgraded connection, or in its place.
    pub fn tunnel_event(&self, event: TunnelEvent) {
        increment(&self.events.tunnels, event.index());
    }

    /// An upgraded connection has ended, after so long.
    pub fn tunnel_closed(&self, event: TunnelEvent, after: Duration) {
        self.tunnel_event(event);
        self.process.with_own(|cells| cells.tunnels.record(TUNNEL_EDGES, after));
    }

    /// So many messages were passed on that way.
    #[inline]
    pub fn tunnel_messages(&self, direction: Direction, messages: u64) {
        if messages > 0 {
            let index = direction.index();
            self.process.with_own(|cells| count_many(&cells.messages, index, messages));
        }
    }

    pub(super) fn publish_tunnels(&self, handles: &Handles) -> Family {
        for direction in Direction::ALL {
            let cells = self.process.iter();
            let sum = total(cells.filter_map(|cells| cells.messages.get(direction.index())));
            handles.counter(&names::TUNNEL_MESSAGES, &[direction.as_str()]).absolute(sum);
        }
        let mut family = Family::new(&names::TUNNEL_DURATION);
        let totals = HistogramTotals::of(self.process.iter().map(|cells| &cells.tunnels));
        family.histogram(&[], TUNNEL_EDGES, &totals);
        family
    }
}
