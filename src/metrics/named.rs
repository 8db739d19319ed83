//! Series that configuration names: found again by name, bounded in number, and forgotten an hour
//! after the last policy that knew them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::limiter::time::{Micros, Timestamp};
use crate::policy::compiled::NO_RULE;

use super::checks::CheckCells;
use super::series::{
    EndpointSeries, ListenerSeries, PairSeries, PoolSeries, ScopeSeries, TierSeries, UpstreamSeries,
};

/// Distinct endpoints that get series of their own.
pub const ENDPOINTS_MAX: usize = 200;
/// Distinct tiers that do.
pub const TIERS_MAX: usize = 64;
/// Distinct upstreams, pools and listeners, each.
pub const PEERS_MAX: usize = 64;
/// How long the series of what a reload took away are shown: for the last scrapes, and for a rule
/// that comes back.
pub const KEPT_FOR: Micros = Micros::from_micros(60 * Micros::MINUTE.as_micros());

/// What configuration names.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) endpoints: Names<EndpointSeries>,
    pub(super) tiers: Names<TierSeries>,
    /// By tier and endpoint; bounded because both of them are.
    pub(super) pairs: BTreeMap<(Box<str>, Box<str>), Arc<PairSeries>>,
    pub(super) scopes: Names<ScopeSeries>,
    pub(super) upstreams: Names<UpstreamSeries>,
    pub(super) pools: Names<PoolSeries>,
    pub(super) listeners: Names<ListenerSeries>,
    /// By the index of the dependency.
    pub(super) checks: BTreeMap<usize, Arc<CheckCells>>,
    pub(super) config_hash: Box<str>,
}

impl Default for Named {
    fn default() -> Self {
        Named {
            endpoints: Names::new(ENDPOINTS_MAX),
            tiers: Names::new(TIERS_MAX),
            pairs: BTreeMap::new(),
            // The tier's own scope beside those of the rules.
            scopes: Names::new(ENDPOINTS_MAX.saturating_add(1)),
            upstreams: Names::new(PEERS_MAX),
            pools: Names::new(PEERS_MAX),
            listeners: Names::new(PEERS_MAX),
            checks: BTreeMap::new(),
            config_hash: Box::default(),
        }
    }
}

impl Named {
    /// Forgets what no policy has known for an hour. An endpoint with open tunnels stays.
    pub(super) fn expire(&mut self, now: Timestamp) {
        let endpoints = self.endpoints.expire(now, |it| it.websockets.count() > 0);
        let tiers = self.tiers.expire(now, |_| false);
        self.scopes.expire(now, |_| false);
        if endpoints || tiers {
            self.drop_pairs();
        }
    }

    /// Forgets pairs of which one side is gone.
    pub(super) fn drop_pairs(&mut self) {
        let (tiers, endpoints) = (&self.tiers, &self.endpoints);
        self.pairs.retain(|(tier, endpoint), _| tiers.has(tier) && endpoints.has(endpoint));
    }
}

/// Series by name, up to a bound; what is beyond it shares `other`.
#[derive(Debug)]
pub(super) struct Names<T> {
    map: BTreeMap<Box<str>, Kept<T>>,
    bound: usize,
    /// Names that share `other` now.
    folded: BTreeSet<Box<str>>,
    /// Those that did under the policy before: a policy that comes again folds nothing anew.
    folded_before: BTreeSet<Box<str>>,
    newly_folded: u64,
}

#[derive(Debug)]
struct Kept<T> {
    series: Arc<T>,
    is_in_force: bool,
    /// When it was first seen not to be in force.
    gone_since: Option<Timestamp>,
}

impl<T> Names<T> {
    fn new(bound: usize) -> Self {
        Names {
            map: BTreeMap::new(),
            bound,
            folded: BTreeSet::new(),
            folded_before: BTreeSet::new(),
            newly_folded: 0,
        }
    }

    /// A policy that knows these names, and no others, takes the place of the one before.
    pub(super) fn begin<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        self.map.values_mut().for_each(|kept| kept.is_in_force = false);
        for name in names {
            if let Some(kept) = self.map.get_mut(name) {
                (kept.is_in_force, kept.gone_since) = (true, None);
            }
        }
        self.folded_before = std::mem::take(&mut self.folded);
        self.newly_folded = 0;
    }

    /// Names that share `other`, and did not before the last [`Names::begin`].
    pub(super) fn newly_folded(&self) -> u64 {
        self.newly_folded
    }

    /// The series of that name, or of `other`.
    pub(super) fn get(&mut self, name: &str, make: impl FnOnce(&str) -> T) -> Arc<T> {
        let name = if self.has(name) || name == NO_RULE || self.has_room() {
            name
        } else {
            if self.folded.insert(name.into()) && !self.folded_before.contains(name) {
                self.newly_folded = self.newly_folded.saturating_add(1);
            }
            NO_RULE
        };
        let kept = self.map.entry(name.into()).or_insert_with(|| Kept {
            series: Arc::new(make(name)),
            is_in_force: true,
            gone_since: None,
        });
        (kept.is_in_force, kept.gone_since) = (true, None);
        Arc::clone(&kept.series)
    }

    /// Whether one more may have a place of its own. One that is out of force gives up its own.
    fn has_room(&mut self) -> bool {
        let others = usize::from(self.has(NO_RULE));
        if self.map.len().saturating_sub(others) < self.bound {
            return true;
        }
        let mut entries = self.map.iter();
        let gone = entries.find(|(name, kept)| !kept.is_in_force && ***name != *NO_RULE);
        let gone = gone.map(|(name, _)| name.clone());
        gone.is_some_and(|name| self.map.remove(&name).is_some())
    }

    fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// Forgets those that have been out of force for an hour, and says whether there were any.
    fn expire(&mut self, now: Timestamp, is_in_use: impl Fn(&T) -> bool) -> bool {
        let before = self.map.len();
        self.map.retain(|_, kept| {
            if kept.is_in_force {
                return true;
            }
            let since = *kept.gone_since.get_or_insert(now);
            now.since(since) < KEPT_FOR || is_in_use(&kept.series)
        });
        self.map.len() != before
    }

    /// Every series, in the order of their names.
    pub(super) fn all(&self) -> Vec<Arc<T>> {
        self.map.values().map(|kept| Arc::clone(&kept.series)).collect()
    }

    /// Those that the policy in force does not know.
    pub(super) fn gone(&self) -> impl Iterator<Item = &T> {
        self.map.values().filter(|kept| !kept.is_in_force).map(|kept| &*kept.series)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: u64) -> Timestamp {
        Timestamp::from_micros((1_000_000 + minutes) * Micros::MINUTE.as_micros())
    }

    fn begin(names: &mut Names<String>, of: &[&str]) -> u64 {
        names.begin(of.iter().copied());
        for name in of {
            names.get(name, str::to_owned);
        }
        names.newly_folded()
    }

    fn all(names: &Names<String>) -> Vec<String> {
        names.all().iter().map(|it| it.to_string()).collect()
    }

    #[test]
    fn what_a_reload_took_away_is_forgotten_after_an_hour() {
        let mut names = Names::new(10);
        begin(&mut names, &["a", "b"]);
        begin(&mut names, &["b"]);
        assert!(!names.expire(at(0), |_| false));
        assert!(!names.expire(at(59), |_| false));
        assert_eq!(all(&names), ["a", "b"]);
        // It comes back, and its hour begins anew when it goes again.
        begin(&mut names, &["a", "b"]);
        names.expire(at(70), |_| false);
        begin(&mut names, &["b"]);
        names.expire(at(90), |_| false);
        assert!(!names.expire(at(149), |_| false));
        assert!(!names.expire(at(150), |it| it == "a"), "it is in use");
        assert!(names.expire(at(151), |_| false));
        assert_eq!(all(&names), ["b"]);
        // A clock that steps back keeps it longer, and a step forward does not matter to others.
        begin(&mut names, &[]);
        names.expire(at(100), |_| false);
        assert!(!names.expire(at(0), |_| false));
        assert!(names.expire(at(160), |_| false));
    }

    #[test]
    fn what_is_gone_makes_room_at_once_and_what_is_in_force_never_does() {
        let mut names = Names::new(3);
        assert_eq!(begin(&mut names, &["a", "b", "c"]), 0);
        // The new one comes first, and takes the place of the one that is gone.
        assert_eq!(begin(&mut names, &["d", "b", "c"]), 0);
        assert_eq!(all(&names), ["b", "c", "d"]);
        assert_eq!(begin(&mut names, &["e", "b", "c", "d"]), 1);
        assert_eq!(all(&names), ["b", "c", "d", NO_RULE]);
        assert_eq!(begin(&mut names, &["e", "b", "c", "d"]), 0, "it was folded before");
        assert_eq!(begin(&mut names, &["e", "f", "b", "c", "d"]), 1);
        assert_eq!(begin(&mut names, &["e", "b", "c"]), 0, "there is room now");
        assert_eq!(all(&names), ["b", "c", "e", NO_RULE]);
    }
}
