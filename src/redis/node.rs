//! One server of a Redis: its connection, and what is known of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::error::Error as FredError;
use fred::interfaces::ClientLike;
use fred::types::{ClusterHash, CustomCommand, Value};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::clock::monotonic;

use super::target::{CONNECT_MAX, RedisAddress};

/// For the answer to a look at a server, and to the question where the others are.
pub const PONG_MAX: Duration = Duration::from_millis(250);
/// Unanswered looks after which a connection is given up.
pub const MISSES_MAX: u32 = 3;

/// A task that ends with its owner.
#[derive(Debug)]
pub struct AbortOnDrop<T = ()>(pub JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One server, and the connection to it.
#[derive(Debug)]
pub struct Node {
    /// Where it is.
    pub address: RedisAddress,
    client: Client,
    /// Whether there was a connection to this server before, with another client.
    pub is_successor: bool,
    /// Whether it can be asked, as far as is known.
    pub up: watch::Sender<bool>,
    /// Whether its connection has been greeted, and it is a primary if it has to be.
    pub is_ready: AtomicBool,
    misses: AtomicU32,
    /// Failures in a row.
    pub failures: AtomicU32,
    /// Until when it is kept though it keeps no slot.
    pub kept_until: Mutex<Option<Instant>>,
    /// Told when it is not needed any more.
    pub retired: Notify,
    /// Scripts that it was given so far, and the right to give it one.
    pub loads: AtomicU64,
    /// See `loads`.
    pub loading: tokio::sync::Mutex<()>,
}

impl Node {
    /// A server that nothing is known of yet.
    pub fn new(address: &RedisAddress, client: Client, is_successor: bool) -> Self {
        let (up, _) = watch::channel(false);
        Node {
            address: address.clone(),
            client,
            is_successor,
            up,
            is_ready: AtomicBool::new(false),
            misses: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            kept_until: Mutex::default(),
            retired: Notify::new(),
            loads: AtomicU64::new(0),
            loading: tokio::sync::Mutex::new(()),
        }
    }

    /// The client of its connection.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether it can be asked, as far as is known.
    pub fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    /// It was looked at. Returns whether the connection is to be given up.
    pub fn looked(&self, is_well: bool) -> bool {
        if is_well {
            self.misses.store(0, Ordering::Relaxed);
            return false;
        }
        let is_over = self.misses.fetch_add(1, Ordering::Relaxed) + 1 >= MISSES_MAX;
        if is_over {
            self.misses.store(0, Ordering::Relaxed);
        }
        is_over
    }

    /// Waits until it can be asked, at most until then. Returns whether it can.
    pub async fn waited_for(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(monotonic());
        let mut up = self.up.subscribe();
        timeout(left, up.wait_for(|up| *up)).await.is_ok_and(|waited| waited.is_ok())
    }
}

/// Whom a command is sent to.
#[derive(Clone, Debug)]
pub struct Route {
    node: Arc<Node>,
    /// Whether it is asked for what it does not keep yet.
    pub is_asking: bool,
    /// Redirections that led here.
    pub hops: u8,
}

impl Route {
    /// To the one who keeps the key, as far as is known.
    pub fn new(node: Arc<Node>) -> Self {
        Route { node, is_asking: false, hops: 0 }
    }

    /// The server.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Sends a command there.
    ///
    /// # Errors
    /// What the server or the client says.
    pub async fn send(
        &self,
        command: &'static str,
        arguments: Vec<Value>,
    ) -> Result<Value, FredError> {
        let own = custom(command);
        // The client's future takes 7 KB. Apart, it is not copied at each call on the way to it.
        if self.is_asking {
            Box::pin(self.ask_and_send(own, arguments)).await
        } else {
            Box::pin(self.node.client.custom(own, arguments)).await
        }
    }

    /// One after the other on the connection, with nothing in between.
    async fn ask_and_send(
        &self,
        own: CustomCommand,
        arguments: Vec<Value>,
    ) -> Result<Value, FredError> {
        let both = self.node.client.pipeline();
        let _: Value = both.custom(custom("ASKING"), Vec::<Value>::new()).await?;
        let _: Value = both.custom(own, arguments).await?;
        both.last().await
    }
}

/// A command that the client knows nothing of.
pub fn custom(command: &'static str) -> CustomCommand {
    CustomCommand::new_static(command, ClusterHash::FirstKey, false)
}

/// Drives a client for ever. It ends by itself only on what no reconnection mends, as a server
/// that is no plain one; that too may change.
pub async fn drive(client: &Client) {
    loop {
        let mut driver = AbortOnDrop(client.connect());
        let _ = (&mut driver.0).await;
        sleep(CONNECT_MAX).await;
    }
}
