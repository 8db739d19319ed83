//! What the status page is told every second: a few sums over the cells, and no text.

use std::sync::Arc;

use crate::limiter::time::Timestamp;

use super::registry::Metrics;
use super::series::{EndpointSeries, ListenerSeries, PairSeries, total};
use super::window::quantiles;

/// Shares of answers whose latency is told.
const SHARES: [f64; 3] = [0.50, 0.95, 0.99];
/// Slots of ten seconds that latencies are taken from: the running one and the one before.
const SLOTS: u64 = 2;

/// How it goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Pulse {
    /// Requests that are over, whatever became of them, since the start.
    pub requests: u64,
    /// What each tier's callers were answered, by the tier's name.
    pub tiers: Vec<TierTotals>,
    /// P50, P95 and P99 of the last ten to twenty seconds, in seconds; `None` where nothing was
    /// answered.
    pub latencies: Option<[f64; 3]>,
    /// Open connections of all listeners.
    pub connections: usize,
}

/// What a tier's callers were answered since the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierTotals {
    /// Its name.
    pub name: Box<str>,
    /// Requests whose limits were evaluated, those that were refused among them.
    pub evaluated: u64,
    /// Requests that were answered 429.
    pub blocked: u64,
}

impl Metrics {
    /// How it goes, as of `now`. Takes a lock that no request takes.
    pub fn pulse(&self, now: Timestamp) -> Pulse {
        let (endpoints, tiers, pairs, listeners) = {
            let named = self.named.lock();
            let pairs: Vec<Arc<PairSeries>> = named.pairs.values().cloned().collect();
            (named.endpoints.all(), named.tiers.all(), pairs, named.listeners.all())
        };
        let mut totals: Vec<TierTotals> = tiers
            .iter()
            .map(|tier| TierTotals { name: tier.name.clone(), evaluated: 0, blocked: 0 })
            .collect();
        for pair in &pairs {
            let Some(tier) = totals.iter_mut().find(|it| it.name == pair.tier) else { continue };
            for cells in pair.cells.iter() {
                tier.evaluated = tier.evaluated.wrapping_add(total(cells.hits.iter()));
                tier.blocked = tier.blocked.wrapping_add(total(cells.blocks.iter()));
            }
        }
        Pulse {
            requests: requests(&endpoints),
            tiers: totals,
            latencies: latencies(&endpoints, now),
            connections: connections(&listeners),
        }
    }
}

fn requests(endpoints: &[Arc<EndpointSeries>]) -> u64 {
    let cells = endpoints.iter().flat_map(|endpoint| endpoint.cells.iter());
    total(cells.flat_map(|cells| &cells.requests))
}

fn latencies(endpoints: &[Arc<EndpointSeries>], now: Timestamp) -> Option<[f64; 3]> {
    let cells = endpoints.iter().flat_map(|endpoint| endpoint.cells.iter());
    quantiles(cells.map(|cells| &cells.latencies), SHARES, SLOTS, now)
}

fn connections(listeners: &[Arc<ListenerSeries>]) -> usize {
    listeners.iter().map(|listener| listener.active.count()).sum()
}
