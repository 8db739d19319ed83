//! Asks a Redis: one field of a hash for each user, over one connection that is looked after.

use std::sync::Arc;
use std::time::Duration;

use fred::error::{Error as FredError, ErrorKind as FredKind};
use fred::interfaces::ClientLike;
use fred::types::Value;
use tokio::time::{sleep, timeout};

use crate::clock::monotonic;
use crate::redis::node::PONG_MAX;
use crate::redis::servers::{Nobody, Servers};

use super::settings::{HashKey, RedisSettings};
use super::stats::Waiting;
use super::{Failure, PLAN_BYTES_MAX};

/// Commands that the client may hold: more than there are look-ups at a time.
const COMMANDS_MAX: usize = 2_048;
/// Between two looks for a connection.
const CONNECTED_PAUSE: Duration = Duration::from_millis(10);

/// A Redis that is asked.
pub struct Redis {
    servers: Servers,
    work_max: Duration,
    hash: HashKey,
    field: Box<str>,
}

impl Redis {
    /// Connects to nothing yet. `work_max`: for a command, however long it is waited for.
    pub fn new(settings: &RedisSettings, work_max: Duration) -> Self {
        Redis {
            servers: Servers::new(settings.target.clone(), work_max, COMMANDS_MAX),
            work_max,
            hash: settings.hash.clone(),
            field: settings.field.clone(),
        }
    }

    /// Keeps the connections, for ever.
    pub async fn drive(&self) {
        self.servers.drive(&Nobody).await;
    }

    /// Connections in use, and idle ones: the one to each server carries all look-ups.
    pub fn connections(&self) -> (usize, usize) {
        (self.servers.nodes().iter().filter(|node| node.is_up()).count(), 0)
    }

    /// Looks a user up.
    pub async fn ask(&self, user: &str, waiting: Waiting) -> Result<Option<Arc<str>>, Failure> {
        drop(waiting);
        let key = self.hash.of(user);
        let arguments = vec![key.as_str().into(), (&*self.field).into()];
        let deadline = monotonic() + self.work_max;
        let asked = self.servers.run(key.as_bytes(), "HGET", arguments, deadline).await;
        let reply = asked.map_err(|error| failure(&error))?;
        match reply {
            Value::Null => Ok(None),
            reply => match reply.as_str() {
                Some(plan) if plan.len() > PLAN_BYTES_MAX => {
                    Err(Failure::User("a subscription with far too long a name".to_owned()))
                }
                Some(plan) => Ok(Some(&*plan).filter(|plan| !plan.is_empty()).map(Arc::from)),
                None => Err(Failure::User("a subscription that is no text".to_owned())),
            },
        }
    }

    /// There and back, to all of them.
    pub async fn greet(&self) -> Result<(), Failure> {
        if !self.servers.is_whole() {
            return Err(Failure::Lost("not connected".to_owned()));
        }
        for node in self.servers.nodes().iter().filter(|node| node.is_up()) {
            let pong = timeout(PONG_MAX, node.client().ping::<()>(None)).await;
            pong.map_err(|_| Failure::Timeout)?.map_err(|error| failure(&error))?;
        }
        Ok(())
    }

    /// Waits for a connection to all of them.
    pub async fn connected(&self) {
        while !self.servers.is_whole() {
            sleep(CONNECTED_PAUSE).await;
        }
    }

    /// Looks after the connections.
    pub async fn tend(&self) {
        self.servers.tend().await;
    }
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("hash", &self.hash).finish_non_exhaustive()
    }
}

/// Whom an error concerns.
fn failure(error: &FredError) -> Failure {
    let detail = error.details();
    match (error.kind(), detail.split_ascii_whitespace().next().unwrap_or_default()) {
        (FredKind::Timeout, _) => Failure::Timeout,
        (_, "WRONGTYPE") => Failure::User("a key that is no hash".to_owned()),
        (_, "NOPERM") => Failure::Query(detail.to_owned()),
        _ => Failure::Lost(detail.to_owned()),
    }
}
