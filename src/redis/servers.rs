//! The servers of a Redis: a connection to each that has to be asked, and who is asked for a key.
//!
//! One server is a map with one entry. Behind sentinels it is that as well, and the entry changes.
//! In a cluster each primary has an entry. Redirections are followed here and not by the client:
//! it would do so under the same count of attempts that keeps it from sending a command twice
//! after a lost connection, would take another command's answer for that to `ASKING`, and would
//! send nothing to anybody while one of several servers is away.

mod seek;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use fred::error::{Error as FredError, ErrorKind as FredKind};
use fred::interfaces::{ClientLike, EventInterface};
use fred::types::Value;
use fred::types::config::Server;
use fred::util::redis_keyslot;
use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{sleep, timeout};

use crate::clock::monotonic;

use super::node::{Node, PONG_MAX, Route, custom, drive};
use super::slots::{Redirection, redirection};
use super::target::{CONNECT_MAX, Form, RedisAddress, RedisTarget};

/// Failures in a row after which one of several servers is not asked until it has answered a look.
const FAILURES_MAX: u32 = 5;
/// The least between two looks for where the servers are, however many ask for one.
const SEEK_GAP: Duration = Duration::from_millis(20);
/// Before a server is asked again whether it is a primary by now.
const ROLE_PAUSE: Duration = Duration::from_millis(50);
/// Before a server of a cluster is asked again that said `CLUSTERDOWN`.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
/// Redirections that are followed for one command.
const HOPS_MAX: u8 = 5;
/// Before a command is tried again of which some keys are on their way to another server.
const LATER_PAUSE: Duration = Duration::from_millis(2);
/// How long a server is kept that was named in a redirection and keeps no slot yet.
const NAMED_KEPT: Duration = Duration::from_secs(10);

/// Who is told of connections.
pub trait Attendant: Send + Sync {
    /// There is a new connection, over which nothing has been asked yet; what is done here comes
    /// first. Whether it is the server's first one.
    fn greet<'a>(
        &'a self,
        node: &'a Node,
        is_first: bool,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

    /// One more server can be asked, or one less.
    fn changed(&self);
}

/// Nobody has to be told.
#[derive(Clone, Copy, Debug)]
pub struct Nobody;

impl Attendant for Nobody {
    fn greet<'a>(&'a self, _: &'a Node, _: bool) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(std::future::ready(()))
    }

    fn changed(&self) {}
}

/// Who keeps what.
#[derive(Debug, Default)]
struct Map {
    nodes: Vec<Arc<Node>>,
    /// Of each slot the index of its keeper; empty: the first node keeps everything.
    owners: Vec<u16>,
    /// How many nodes, from the first, keep something.
    keepers: usize,
    /// Whether everything is kept by somebody.
    is_full: bool,
}

impl Map {
    fn owner(&self, key: &[u8]) -> Option<&Arc<Node>> {
        if self.owners.is_empty() {
            return self.nodes.first();
        }
        let index = self.owners.get(usize::from(redis_keyslot(key)))?;
        self.nodes.get(usize::from(*index))
    }

    /// Of a Redis that is not made of parts.
    fn of_one(node: Arc<Node>) -> Self {
        Map { nodes: vec![node], owners: Vec::new(), keepers: 1, is_full: true }
    }

    fn with(&self, more: impl IntoIterator<Item = Arc<Node>>) -> Self {
        let nodes = self.nodes.iter().cloned().chain(more).collect();
        Map { nodes, owners: self.owners.clone(), ..*self }
    }

    fn is_whole(&self) -> bool {
        self.is_full && self.nodes.iter().take(self.keepers).all(|node| node.is_up())
    }

    fn at(&self, address: &RedisAddress) -> Option<&Arc<Node>> {
        self.nodes.iter().find(|node| node.address == *address)
    }
}

/// The servers of a Redis.
#[derive(Debug)]
pub struct Servers {
    target: RedisTarget,
    answer_max: Duration,
    commands_max: usize,
    map: ArcSwap<Map>,
    /// Held while the map is changed.
    changing: Mutex<()>,
    /// Nodes whose connections nobody keeps yet.
    fresh: Mutex<Vec<Arc<Node>>>,
    changed: Notify,
    sought: Notify,
    complaint: Mutex<String>,
}

impl Servers {
    /// Connects to nothing yet. Each server's client gives up on an answer after `answer_max` and
    /// holds so many commands.
    pub fn new(target: RedisTarget, answer_max: Duration, commands_max: usize) -> Self {
        let servers = Servers {
            target,
            answer_max,
            commands_max,
            map: ArcSwap::default(),
            changing: Mutex::default(),
            fresh: Mutex::default(),
            changed: Notify::new(),
            sought: Notify::new(),
            complaint: Mutex::default(),
        };
        match servers.target.form() {
            Form::Single(address) => {
                servers.map.store(Arc::new(Map::of_one(servers.node(address))));
            }
            Form::Cluster { .. } => servers.call_seeds(),
            Form::Sentinel { .. } => {}
        }
        servers
    }

    /// Keeps the connections, and follows the servers where they go, for ever.
    pub async fn drive(&self, attendant: &dyn Attendant) {
        let mut kept = FuturesUnordered::new();
        let mut seek = std::pin::pin!(self.seek_for_ever());
        loop {
            for node in std::mem::take(&mut *self.fresh.lock()) {
                kept.push(self.keep(node, attendant));
            }
            tokio::select! {
                () = self.changed.notified() => {}
                () = &mut seek => return,
                _ = kept.next(), if !kept.is_empty() => {}
            }
        }
    }

    /// Whether each server keeps a part of the keys only.
    pub fn are_parts(&self) -> bool {
        matches!(self.target.form(), Form::Cluster { .. })
    }

    /// Whether any can be asked.
    pub fn is_up(&self) -> bool {
        self.map.load().nodes.iter().any(|node| node.is_up())
    }

    /// Whether whoever keeps a part can be asked.
    pub fn is_whole(&self) -> bool {
        self.map.load().is_whole()
    }

    /// All that there is a connection to, or should be.
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        self.map.load().nodes.clone()
    }

    /// Who is asked for a key; `None`: nobody can be.
    pub fn route(&self, key: &[u8]) -> Option<Route> {
        let map = self.map.load();
        let node = map.owner(key).filter(|node| node.is_up())?;
        Some(Route::new(Arc::clone(node)))
    }

    /// Whether one server keeps both keys, as far as is known.
    pub fn keeps_both(&self, key: &[u8], other: &[u8]) -> bool {
        let map = self.map.load();
        let owner = |key| map.owner(key).map(|node| &node.address);
        owner(key) == owner(other)
    }

    /// Whom to ask instead of a server that answered with this error; `None`: nobody. Such a
    /// command was not run. Takes until `deadline` at most.
    pub async fn next(&self, route: &Route, error: &str, deadline: Instant) -> Option<Route> {
        if !self.are_parts() {
            return None;
        }
        let (address, is_asking) = match redirection(error, &route.node().address)? {
            Redirection::Moved(address) => (address, false),
            Redirection::Ask(address) => (address, true),
            Redirection::Later => {
                sleep(LATER_PAUSE).await;
                return (monotonic() < deadline).then(|| route.clone());
            }
        };
        if !is_asking {
            self.seek();
        }
        let hops = route.hops.saturating_add(1);
        let node = self.named(&address);
        let is_fit = hops <= HOPS_MAX && node.waited_for(deadline).await;
        is_fit.then(|| {
            let mut route = Route::new(node);
            (route.is_asking, route.hops) = (is_asking, hops);
            route
        })
    }

    /// Sends a command to whoever keeps `key`; redirections are followed until `deadline`.
    ///
    /// # Errors
    /// What the server or the client says, or that there is no connection.
    pub async fn run(
        &self,
        key: &[u8],
        command: &'static str,
        arguments: Vec<Value>,
        deadline: Instant,
    ) -> Result<Value, FredError> {
        let Some(mut route) = self.route(key) else {
            return Err(FredError::new(FredKind::IO, "not connected"));
        };
        loop {
            match route.send(command, arguments.clone()).await {
                Ok(reply) => return Ok(reply),
                Err(error) => match self.next(&route, error.details(), deadline).await {
                    Some(next) => route = next,
                    None => return Err(error),
                },
            }
        }
    }

    /// Waits until whoever keeps `key` can be asked, at most so long. Returns whether it can.
    pub async fn wait_for(&self, key: &[u8], at_most: Duration) -> bool {
        let deadline = monotonic() + at_most;
        while self.route(key).is_none() {
            if monotonic() >= deadline {
                return false;
            }
            sleep(SEEK_GAP).await;
        }
        true
    }

    /// Looks soon for where the servers are.
    pub fn seek(&self) {
        self.sought.notify_one();
    }

    /// Notes whether a server can be asked. One that sentinels named cannot before it has said that
    /// it is a primary.
    pub fn set_up(&self, node: &Node, is_up: bool) {
        let is_sentinel = matches!(self.target.form(), Form::Sentinel { .. });
        let is_up = is_up && (!is_sentinel || node.is_ready.load(Ordering::Relaxed));
        let is_new = node.up.send_if_modified(|up| std::mem::replace(up, is_up) != is_up);
        if is_new {
            node.failures.store(0, Ordering::Relaxed);
            self.seek();
        }
    }

    /// A command to a server went well or did not come to an end. Of several, one that fails often
    /// is not asked any more. Returns whether that begins now.
    pub fn judge(&self, node: &Node, is_well: bool) -> bool {
        if is_well {
            if node.failures.load(Ordering::Relaxed) > 0 {
                node.failures.store(0, Ordering::Relaxed);
            }
            return false;
        }
        let is_over = node.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_MAX;
        let begins = self.are_parts() && is_over && node.is_up();
        if begins {
            self.set_up(node, false);
        }
        begins
    }

    /// Looks at every server, and gives up a connection over which nothing comes back: the client
    /// does not notice while commands keep being written to it.
    pub async fn tend(&self) {
        let nodes = self.nodes();
        join_all(nodes.iter().map(async |node| {
            if !node.client().is_connected() {
                self.set_up(node, false);
                node.looked(true);
                return;
            }
            let pong = timeout(PONG_MAX, node.client().ping::<()>(None)).await;
            let is_well = matches!(pong, Ok(Ok(())));
            if is_well {
                self.set_up(node, true);
            }
            if node.looked(is_well) {
                self.give_up(node).await;
            }
        }))
        .await;
    }

    /// Makes a new connection to a server in place of the one that there is.
    pub async fn give_up(&self, node: &Node) {
        node.is_ready.store(false, Ordering::Relaxed);
        self.set_up(node, false);
        let mut again = std::pin::pin!(node.client().force_reconnection());
        if timeout(PONG_MAX, &mut again).await.is_ok() {
            return;
        }
        if node.client().is_connected() {
            // It has not even begun to: it is writing, to somebody who reads nothing.
            return self.replace(node);
        }
        let _ = timeout(CONNECT_MAX, again).await;
    }

    /// Puts another client in the place of one that does not listen.
    fn replace(&self, stuck: &Node) {
        let _changing = self.changing.lock();
        let map = self.map.load();
        let place = map.nodes.iter().position(|node| std::ptr::eq(&**node, stuck));
        let Some(place) = place else { return };
        tracing::debug!(server = %stuck.address, "a connection that takes nothing is left behind");
        let fresh = self.node_after(&stuck.address, true);
        *fresh.kept_until.lock() = *stuck.kept_until.lock();
        let mut nodes = map.nodes.clone();
        if let Some(node) = nodes.get_mut(place) {
            *node = fresh;
        }
        self.map.store(Arc::new(Map { nodes, owners: map.owners.clone(), ..**map }));
        stuck.retired.notify_one();
    }

    fn node(&self, address: &RedisAddress) -> Arc<Node> {
        self.node_after(address, false)
    }

    fn node_after(&self, address: &RedisAddress, is_successor: bool) -> Arc<Node> {
        let client = self.target.client(address, self.answer_max, self.commands_max);
        let node = Arc::new(Node::new(address, client, is_successor));
        self.fresh.lock().push(Arc::clone(&node));
        self.changed.notify_one();
        node
    }

    /// The server that a redirection names, whether it was known before or not.
    fn named(&self, address: &RedisAddress) -> Arc<Node> {
        let _changing = self.changing.lock();
        let map = self.map.load();
        let node = match map.at(address) {
            Some(node) => Arc::clone(node),
            None => {
                let node = self.node(address);
                self.map.store(Arc::new(map.with([Arc::clone(&node)])));
                node
            }
        };
        *node.kept_until.lock() = Some(monotonic() + NAMED_KEPT);
        node
    }

    async fn keep(&self, node: Arc<Node>, attendant: &dyn Attendant) {
        // Subscribed before the client starts, so that no event is missed.
        let (errors, connections) = (node.client().error_rx(), node.client().reconnect_rx());
        let retired = async {
            node.retired.notified().await;
            // What was sent may still be answered.
            sleep(self.answer_max).await;
        };
        tokio::select! {
            () = drive(node.client()) => {}
            () = self.follow(&node, errors, connections, attendant) => {}
            () = retired => {}
        }
        node.is_ready.store(false, Ordering::Relaxed);
        self.set_up(&node, false);
        attendant.changed();
    }

    /// Follows a client's events: a lost connection is known before a call has to find out.
    async fn follow(
        &self,
        node: &Node,
        mut errors: Receiver<(FredError, Option<Server>)>,
        mut connections: Receiver<Server>,
        attendant: &dyn Attendant,
    ) {
        let (mut is_first, mut is_refused) = (!node.is_successor, false);
        loop {
            tokio::select! {
                biased;
                event = errors.recv() => {
                    match event {
                        Err(RecvError::Closed) => return,
                        Err(RecvError::Lagged(_)) => {}
                        Ok((error, _)) => is_refused |= error.details().starts_with("CLUSTERDOWN"),
                    }
                    node.is_ready.store(false, Ordering::Relaxed);
                    self.set_up(node, false);
                }
                event = connections.recv() => {
                    if let Err(RecvError::Closed) = event {
                        return;
                    }
                    // Whatever is asked of a cluster that lacks a slot costs the connection.
                    if std::mem::take(&mut is_refused) {
                        sleep(REFUSED_PAUSE).await;
                    }
                    attendant.greet(node, std::mem::replace(&mut is_first, false)).await;
                    if self.is_primary(node).await {
                        node.is_ready.store(true, Ordering::Relaxed);
                        self.set_up(node, true);
                    }
                }
            }
            attendant.changed();
        }
    }

    /// Waits until a server that sentinels named is a primary: they may be wrong, and it may become
    /// one. Returns false once the connection is lost.
    async fn is_primary(&self, node: &Node) -> bool {
        if !matches!(self.target.form(), Form::Sentinel { .. }) {
            return true;
        }
        while node.client().is_connected() {
            let role = node.client().custom::<Value, Value>(custom("ROLE"), Vec::new());
            let role = match timeout(PONG_MAX, role).await {
                Ok(Ok(Value::Array(role))) => role.first().and_then(Value::as_string),
                Ok(Ok(_)) | Err(_) => None,
                Ok(Err(error)) => {
                    self.complain(&node.address, error.details());
                    None
                }
            };
            if role.is_some_and(|role| role == "master") {
                return true;
            }
            sleep(ROLE_PAUSE).await;
        }
        false
    }
}
