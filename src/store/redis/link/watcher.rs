//! Looks after a worker's connections, and finds out whether a Redis that was away is back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fred::interfaces::ClientLike;
use futures_util::future::join_all;
use tokio::time::timeout;

use crate::clock::monotonic;
use crate::health::breaker::{Outcome, jitter};
use crate::metrics::labels::{CheckResult, RedisErrorKind};
use crate::redis::node::{Node, PONG_MAX};
use crate::redis::servers::Attendant;

use super::super::codec::Call;
use super::super::error::CheckError;
use super::Link;

/// Between two looks, before jitter.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// Between two looks for whether a probe is due, while they are.
const PROBE_STEP: Duration = Duration::from_millis(50);

impl Link {
    /// Looks after the connections several times a second, and probes while the breaker is open.
    pub async fn watch(self: Arc<Self>) {
        let mut waited = Duration::ZERO;
        loop {
            if self.shared.breaker.is_closed() {
                tokio::time::sleep(WATCH_INTERVAL + watch_jitter()).await;
            } else {
                // Not to miss the moment at which a probe is due: three of them stand between a
                // Redis that is back and its being asked.
                tokio::time::sleep(PROBE_STEP).await;
                waited = waited.saturating_add(PROBE_STEP);
                if waited < WATCH_INTERVAL {
                    self.probe_if_due().await;
                    // The probe that found it back: what has to be told first is told at once.
                    self.tend();
                    continue;
                }
            }
            waited = Duration::ZERO;
            if self.servers.are_parts() {
                self.look_at_parts().await;
            } else if let Some(node) = self.servers.nodes().first() {
                self.look_at(node).await;
            } else {
                self.shared.count_against(&CheckError::new(RedisErrorKind::Io, "not connected"));
            }
            self.tend();
        }
    }

    /// Between two looks: probes, if one is due.
    async fn probe_if_due(self: &Arc<Self>) {
        if self.servers.are_parts() {
            self.probed_parts(self.servers.is_up());
        } else if let Some(node) = self.servers.nodes().first()
            && node.client().is_connected()
            && let Some(is_well) = self.probed(node).await
            && node.looked(is_well)
        {
            self.give_up(node).await;
        }
    }

    /// Ends a probe of several servers, if one is due: any of them will do. Returns whether it was.
    fn probed_parts(&self, is_any_well: bool) -> bool {
        let shared = &self.shared;
        let opened_at = shared.breaker.opened_at();
        let Some(probe) = shared.breaker.try_probe(monotonic(), jitter()) else { return false };
        let outcome = if is_any_well { Outcome::Good } else { Outcome::Bad };
        shared.note_probe(probe.end(outcome, monotonic(), jitter()), opened_at);
        true
    }

    /// Probes the one server, if that is due; whether it went well.
    async fn probed(self: &Arc<Self>, node: &Node) -> Option<bool> {
        let shared = &self.shared;
        let opened_at = shared.breaker.opened_at();
        let probe = shared.breaker.try_probe(monotonic(), jitter())?;
        self.mark(node, true);
        let outcome = match self.probe().await {
            Ok(()) => Outcome::Good,
            Err(error) => {
                shared.stats.count_error(error.kind);
                Outcome::Bad
            }
        };
        shared.note_probe(probe.end(outcome, monotonic(), jitter()), opened_at);
        Some(outcome == Outcome::Good)
    }

    /// Looks after the one server that there is.
    async fn look_at(self: &Arc<Self>, node: &Node) {
        if !node.client().is_connected() {
            self.mark(node, false);
            node.looked(true);
            self.shared.count_against(&CheckError::new(RedisErrorKind::Io, "not connected"));
            return;
        }
        let is_over = node.looked(self.look(node).await);
        if is_over || self.distrusted.swap(false, Ordering::Relaxed) {
            self.give_up(node).await;
        }
    }

    /// Looks after each of several servers, all at once: one that stands still is not waited for
    /// on behalf of the others.
    async fn look_at_parts(self: &Arc<Self>) {
        let shared = &self.shared;
        let nodes = self.servers.nodes();
        let is_distrusted = self.distrusted.swap(false, Ordering::Relaxed);
        let looks = join_all(nodes.iter().map(async |node| {
            let is_well = node.client().is_connected() && self.ping(node).await.is_ok();
            self.mark(node, is_well);
            if is_distrusted || (node.client().is_connected() && node.looked(is_well)) {
                self.give_up(node).await;
            }
            is_well
        }))
        .await;
        let is_any_well = looks.contains(&true);
        if self.probed_parts(is_any_well) {
            return;
        }
        if !is_any_well {
            shared.count_against(&CheckError::new(RedisErrorKind::Io, "not connected"));
        } else if shared.breaker.is_closed()
            && (shared.takes_write_check(monotonic()) || !shared.is_writable())
        {
            match self.probe().await {
                Ok(()) => shared.note_good(),
                Err(error) => shared.note_bad(&error),
            }
        }
    }

    /// Probes if that is due, else pings. Returns whether all was well: a server that answers but
    /// cannot be written to is worth another connection too, as its name may lead elsewhere now.
    async fn look(self: &Arc<Self>, node: &Node) -> bool {
        let shared = &self.shared;
        if let Some(is_well) = self.probed(node).await {
            return is_well;
        }
        if shared.breaker.is_closed() && shared.takes_write_check(monotonic()) {
            return match self.probe().await {
                Ok(()) => {
                    shared.note_good();
                    true
                }
                Err(error) => {
                    shared.note_bad(&error);
                    false
                }
            };
        }
        match self.ping(node).await {
            Ok(()) => self.mark(node, true),
            Err(error) => {
                shared.count_against(&error);
                return false;
            }
        }
        true
    }

    async fn ping(&self, node: &Node) -> Result<(), CheckError> {
        let started = monotonic();
        let answer = match timeout(PONG_MAX, node.client().ping::<()>(None)).await {
            Ok(Ok(())) => {
                self.shared.outage.hear_of();
                Ok(())
            }
            Ok(Err(error)) => Err(CheckError::from(error)),
            Err(_) => Err(CheckError::new(RedisErrorKind::Timeout, "no PONG")),
        };
        self.count_check(&answer, started);
        answer
    }

    fn mark(&self, node: &Node, is_up: bool) {
        self.servers.set_up(node, is_up);
        self.changed();
    }

    async fn give_up(&self, node: &Node) {
        self.mark(node, false);
        self.shared.stats.count_forced_reconnect();
        self.servers.give_up(node).await;
    }

    fn count_check(&self, answer: &Result<(), CheckError>, started: Instant) {
        let result = match answer {
            Ok(()) => CheckResult::Ok,
            Err(error) if error.kind == RedisErrorKind::Timeout => CheckResult::Timeout,
            Err(_) => CheckResult::Error,
        };
        let took = monotonic().saturating_duration_since(started);
        self.shared.stats.checks().record(result, took);
    }

    /// Runs the script as a check does that writes.
    async fn probe(self: &Arc<Self>) -> Result<(), CheckError> {
        let started = monotonic();
        let written = self.write().await;
        self.count_check(&written, started);
        self.shared.is_writable.store(written.is_ok(), Ordering::Relaxed);
        written
    }

    async fn write(self: &Arc<Self>) -> Result<(), CheckError> {
        let settings = &self.shared.settings;
        let call = Call::probe(&settings.names, self.asker().sequence);
        let ticket = call.ticket;
        let reply = self.call(call, settings.timeout).await?;
        match ticket.decode_probe(reply.as_bytes().unwrap_or_default()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(CheckError::new(RedisErrorKind::Protocol, "the probe was denied")),
            Err(error) => Err(self.distrust(&error)),
        }
    }
}

/// Up to a fifth of the watcher's interval, so that workers and replicas do not keep step.
fn watch_jitter() -> Duration {
    WATCH_INTERVAL.mul_f64(jitter() / 5.0)
}
