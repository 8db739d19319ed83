//! Follows the servers where they go: asks sentinels who the primary is, and the servers of a cluster
//! who keeps which slot.

use std::sync::Arc;
use std::time::Duration;

use fred::interfaces::ClientLike;
use fred::types::Value;
use tokio::time::{sleep, timeout};

use crate::clock::monotonic;

use super::super::node::{PONG_MAX, custom};
use super::super::sentinels::Sentinels;
use super::super::slots::{Range, SLOTS, ranges};
use super::super::target::{Form, RedisAddress};
use super::{Map, SEEK_GAP, Servers};

/// Between two looks for where the servers are: while all is well, and while it is not.
const SEEK_REST: Duration = Duration::from_secs(1);
const SEEK_HASTE: Duration = Duration::from_millis(100);
/// Of a slot that nobody keeps.
const NOBODY: u16 = u16::MAX;

impl Servers {
    /// For ever, where they can go elsewhere at all.
    pub async fn seek_for_ever(&self) {
        match self.target.form() {
            Form::Single(_) => std::future::pending().await,
            Form::Sentinel { .. } => {
                let Some(sentinels) = Sentinels::of(&self.target) else { return };
                tokio::select! {
                    () = sentinels.drive() => {}
                    () = self.seek_primary(&sentinels) => {}
                }
            }
            Form::Cluster { .. } => self.seek_slots().await,
        }
    }

    async fn seek_primary(&self, sentinels: &Sentinels) {
        loop {
            let known = self.map.load().nodes.first().cloned();
            let is_up = known.as_ref().is_some_and(|node| node.is_up());
            let named = sentinels.named(known.as_ref().map(|node| &node.address), is_up).await;
            let is_new = |it: &RedisAddress| known.as_ref().is_none_or(|at| at.address != *it);
            if let Some(best) = named.filter(is_new) {
                let _changing = self.changing.lock();
                tracing::info!(server = %self.target, primary = %best, "sentinels name a primary");
                self.map.store(Arc::new(Map::of_one(self.node(&best))));
                if let Some(known) = known {
                    known.retired.notify_one();
                }
            }
            self.pause().await;
        }
    }

    async fn seek_slots(&self) {
        let mut turn = 0_usize;
        loop {
            match self.slots(turn).await {
                Some(ranges) => self.adopt(&ranges),
                None if !self.is_up() => self.call_seeds(),
                None => {}
            }
            turn = turn.wrapping_add(1);
            self.pause().await;
        }
    }

    /// Asks one after the other of those that can be asked, another one first each time.
    async fn slots(&self, turn: usize) -> Option<Vec<Range>> {
        let mut nodes = self.nodes();
        nodes.retain(|node| node.is_up());
        let first = turn.checked_rem(nodes.len())?;
        nodes.rotate_left(first);
        for node in nodes {
            let asked =
                node.client().custom::<Value, Value>(custom("CLUSTER"), vec!["SLOTS".into()]);
            match timeout(PONG_MAX, asked).await {
                Ok(Ok(reply)) => {
                    let found = ranges(&reply, &node.address).filter(|found| !found.is_empty());
                    if found.is_some() {
                        return found;
                    }
                    self.complain(&node.address, "it knows of nobody who keeps a slot");
                }
                Ok(Err(error)) => self.complain(&node.address, error.details()),
                Err(_) => {}
            }
        }
        None
    }

    /// Says once why a server does not tell what it is asked.
    pub fn complain(&self, of: &RedisAddress, why: &str) {
        let mut complaint = self.complaint.lock();
        if *complaint != why {
            why.clone_into(&mut complaint);
            tracing::warn!(server = %self.target, of = %of, error = why, "redis does not say who is who");
        }
    }

    /// Makes a new map, and lets those go that are not needed any more.
    fn adopt(&self, ranges: &[Range]) {
        let _changing = self.changing.lock();
        let old = self.map.load();
        let mut map = Map { owners: vec![NOBODY; SLOTS], ..Map::default() };
        for range in ranges {
            let place = map.nodes.iter().position(|node| node.address == range.owner);
            let index = place.unwrap_or_else(|| {
                let known = old.at(&range.owner).cloned();
                map.nodes.push(known.unwrap_or_else(|| self.node(&range.owner)));
                map.nodes.len() - 1
            });
            let index = u16::try_from(index).unwrap_or(NOBODY);
            let slots = usize::from(range.first)..=usize::from(range.last);
            map.owners.get_mut(slots).into_iter().for_each(|slots| slots.fill(index));
        }
        map.keepers = map.nodes.len();
        map.is_full = !map.owners.contains(&NOBODY);
        let is_whole = map.is_whole();
        let now = monotonic();
        for node in &old.nodes {
            if map.at(&node.address).is_some() {
                continue;
            }
            let is_named = node.kept_until.lock().is_some_and(|until| until > now);
            // While some owner is away, whoever answers is worth asking.
            if is_named || (node.is_up() && !is_whole) {
                map.nodes.push(Arc::clone(node));
            } else {
                node.retired.notify_one();
            }
        }
        self.map.store(Arc::new(map));
    }

    /// Nobody can be asked: the servers that the configuration names may know others by now.
    pub fn call_seeds(&self) {
        let Form::Cluster { seeds } = self.target.form() else { return };
        let _changing = self.changing.lock();
        let map = self.map.load();
        let unknown: Vec<_> = seeds.iter().filter(|seed| map.at(seed).is_none()).collect();
        if unknown.is_empty() {
            return;
        }
        self.map.store(Arc::new(map.with(unknown.into_iter().map(|seed| self.node(seed)))));
    }

    async fn pause(&self) {
        sleep(SEEK_GAP).await;
        let rest = if self.is_whole() { SEEK_REST } else { SEEK_HASTE };
        let _ = timeout(rest, self.sought.notified()).await;
    }
}
