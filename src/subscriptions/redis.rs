//! Asks a Redis: one field of a hash for each user, over one connection that is looked after.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fred::clients::Client;
use fred::error::{Error as FredError, ErrorKind as FredKind};
use fred::interfaces::ClientLike;
use fred::types::config::{
    Config, ConnectionConfig, PerformanceConfig, ReconnectPolicy, ServerConfig, TcpConfig,
};
use fred::types::{ClusterHash, CustomCommand, Value};
use tokio::time::timeout;

use super::settings::{HashKey, RedisPlace, RedisSettings, RedisTarget};
use super::stats::Waiting;
use super::{Failure, PLAN_BYTES_MAX};

/// Commands that the client may hold: more than there are look-ups at a time.
const COMMANDS_MAX: usize = 2_048;
/// For the connection and each command of its handshake.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// For the answer to a look of the watcher.
const PONG_MAX: Duration = Duration::from_millis(250);
/// Unanswered looks after which the connection is given up.
const MISSES_MAX: u32 = 3;
const RECONNECT_MIN_MS: u32 = 10;
const RECONNECT_MAX_MS: u32 = 1_000;
const RECONNECT_JITTER_MS: u32 = 50;

/// A Redis that is asked.
pub struct Redis {
    client: Client,
    hash: HashKey,
    field: Box<str>,
    misses: AtomicU32,
}

impl Redis {
    /// Connects to nothing yet. `work_max`: for a command, however long it is waited for.
    pub fn new(settings: &RedisSettings, work_max: Duration) -> Self {
        Redis {
            client: client(&settings.target, work_max),
            hash: settings.hash.clone(),
            field: settings.field.clone(),
            misses: AtomicU32::new(0),
        }
    }

    /// Keeps the connection, for ever. It ends by itself only on what no reconnection mends, as a
    /// server that is no plain one; that too may change.
    pub async fn drive(&self) {
        loop {
            let _ = self.client.connect().await;
            tokio::time::sleep(CONNECT_MAX).await;
        }
    }

    /// Connections in use, and idle ones: the one there is carries all look-ups.
    pub fn connections(&self) -> (usize, usize) {
        (usize::from(self.client.is_connected()), 0)
    }

    /// Looks a user up.
    pub async fn ask(&self, user: &str, waiting: Waiting) -> Result<Option<Arc<str>>, Failure> {
        drop(waiting);
        if !self.client.is_connected() {
            return Err(Failure::Lost("not connected".to_owned()));
        }
        let command = CustomCommand::new_static("HGET", ClusterHash::FirstKey, false);
        let arguments = vec![self.hash.of(user), String::from(&*self.field)];
        let reply: Value =
            self.client.custom(command, arguments).await.map_err(|error| failure(&error))?;
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

    /// There and back.
    pub async fn greet(&self) -> Result<(), Failure> {
        if !self.client.is_connected() {
            return Err(Failure::Lost("not connected".to_owned()));
        }
        self.client.ping::<()>(None).await.map_err(|error| failure(&error))
    }

    /// Waits for a connection.
    pub async fn connected(&self) -> Result<(), Failure> {
        self.client.wait_for_connect().await.map_err(|error| failure(&error))
    }

    /// Looks after the connection: one over which nothing comes back is not noticed by the client
    /// while look-ups keep writing to it.
    pub async fn tend(&self) {
        if !self.client.is_connected() {
            self.misses.store(0, Ordering::Relaxed);
            return;
        }
        let is_well = matches!(timeout(PONG_MAX, self.client.ping::<()>(None)).await, Ok(Ok(())));
        if is_well {
            self.misses.store(0, Ordering::Relaxed);
        } else if self.misses.fetch_add(1, Ordering::Relaxed) + 1 >= MISSES_MAX {
            self.misses.store(0, Ordering::Relaxed);
            let _ = timeout(CONNECT_MAX, self.client.force_reconnection()).await;
        }
    }
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("hash", &self.hash).finish_non_exhaustive()
    }
}

fn client(target: &RedisTarget, work_max: Duration) -> Client {
    let server = match &target.place {
        RedisPlace::Tcp(host, port) => ServerConfig::new_centralized(String::from(&**host), *port),
        RedisPlace::Unix(path) => ServerConfig::new_unix_socket(&**path),
    };
    let config = Config {
        server,
        username: target.username.as_deref().map(str::to_owned),
        password: target.password.as_deref().map(str::to_owned),
        database: (target.database > 0).then_some(target.database),
        // A Redis that is not there at start is the same as one that went away.
        fail_fast: false,
        ..Config::default()
    };
    let performance =
        PerformanceConfig { default_command_timeout: work_max, ..PerformanceConfig::default() };
    let connection = ConnectionConfig {
        connection_timeout: CONNECT_MAX,
        internal_command_timeout: CONNECT_MAX,
        max_command_attempts: 1,
        max_command_buffer_len: COMMANDS_MAX,
        reconnect_on_auth_error: true,
        tcp: TcpConfig { nodelay: Some(true), ..TcpConfig::default() },
        ..ConnectionConfig::default()
    };
    let mut policy = ReconnectPolicy::new_exponential(0, RECONNECT_MIN_MS, RECONNECT_MAX_MS, 2);
    policy.set_jitter(RECONNECT_JITTER_MS);
    Client::new(config, Some(performance), Some(connection), Some(policy))
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
