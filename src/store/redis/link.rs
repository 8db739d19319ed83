//! One worker's connections: keeps them, loads the script over them, and bounds every call.
//!
//! Two tasks beside the calls: one drives the connections, one watches. The watcher is needed
//! because a connection over which nothing comes back is not noticed by the client while requests
//! keep writing to it.

mod watcher;

use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fred::bytes::Bytes;
use fred::bytes_utils::Str;
use fred::interfaces::LuaInterface;
use fred::types::Value;
use fred::util::static_str;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::clock::monotonic;
use crate::health::tasks::watched;
use crate::metrics::labels::{RedisErrorKind, TaskType};
use crate::redis::node::{AbortOnDrop, Node, Route};
use crate::redis::servers::{Attendant, Servers};

use super::RedisShared;
use super::codec::{Asker, Call, ReplyError, SCRIPT};
use super::error::CheckError;
use super::places::Places;

/// Checks of one worker that may wait for Redis, late ones included; more are decided without it.
const IN_FLIGHT_MAX: usize = 1_024;
/// Commands that the client may hold: the checks, and a few of ours.
const COMMANDS_MAX: usize = 2 * IN_FLIGHT_MAX;
/// How long an answer may still be counted as late; then its place is given up.
const LATE_MAX: Duration = Duration::from_secs(1);
/// Between two looks for the connections to all of several servers.
const WHOLE_PAUSE: Duration = Duration::from_millis(5);

/// An answer after its time, or that there is none.
pub type Late = Pin<Box<dyn Future<Output = Result<Value, CheckError>> + Send>>;

/// A call that was not answered in time.
pub struct Unanswered {
    /// Why.
    pub error: CheckError,
    /// What may come of it yet.
    pub late: Option<Late>,
}

impl From<CheckError> for Unanswered {
    fn from(error: CheckError) -> Self {
        Unanswered { error, late: None }
    }
}

/// The connection and what is waiting on it.
#[derive(Debug)]
pub struct Link {
    shared: Arc<RedisShared>,
    servers: Servers,
    /// Whether there is a connection, as far as is known.
    up: watch::Sender<bool>,
    /// Whether there is one to every server that is needed.
    is_whole: AtomicBool,
    in_flight: AtomicUsize,
    places: Places,
    sequence: AtomicU32,
    /// Stands for this worker of this process among all that hold places.
    holder: u64,
    /// Set when an answer was not one to its call: the next look gives the connection up.
    distrusted: AtomicBool,
}

impl Link {
    /// Starts to connect.
    pub fn open(shared: Arc<RedisShared>) -> (Arc<Self>, [AbortOnDrop; 3]) {
        let settings = &shared.settings;
        // Not the budget: answers up to here are counted.
        let answer_max = LATE_MAX.max(settings.timeout);
        let servers = Servers::new(settings.target.clone(), answer_max, COMMANDS_MAX);
        let (up, _) = watch::channel(false);
        if servers.are_parts() {
            shared.parted.fetch_add(1, Ordering::Relaxed);
        }
        let link = Arc::new(Link {
            shared,
            servers,
            up,
            is_whole: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            places: Places::default(),
            sequence: AtomicU32::new(0),
            holder: RandomState::new().hash_one(std::process::id()),
            distrusted: AtomicBool::new(false),
        });
        let driven = Arc::clone(&link);
        let drive = async move { driven.servers.drive(&*driven).await };
        let drive = tokio::spawn(watched(TaskType::Redis, drive));
        let watch = tokio::spawn(watched(TaskType::Redis, Arc::clone(&link).watch()));
        let keep = tokio::spawn(watched(TaskType::Redis, Places::keep(Arc::clone(&link))));
        (link, [drive, watch, keep].map(AbortOnDrop))
    }

    /// Runs a script of another kind, which is rare, and ends within `budget`.
    pub async fn eval(
        &self,
        script: &'static str,
        keys: Vec<Bytes>,
        arguments: Vec<Bytes>,
        budget: Duration,
    ) -> Result<Value, CheckError> {
        let first = keys.first().cloned().unwrap_or_default();
        let count = i64::try_from(keys.len()).unwrap_or(i64::MAX);
        let mut all = vec![Value::from_static_str(script), count.into()];
        all.extend(keys.into_iter().chain(arguments).map(Value::Bytes));
        self.rare(&first, "EVAL", all, budget).await
    }

    /// Deletes keys, all of one slot, and ends within `budget`.
    pub async fn delete(&self, keys: Vec<Bytes>, budget: Duration) -> Result<(), CheckError> {
        let first = keys.first().cloned().unwrap_or_default();
        let keys = keys.into_iter().map(Value::Bytes).collect();
        self.rare(&first, "UNLINK", keys, budget).await.map(drop)
    }

    async fn rare(
        &self,
        key: &[u8],
        command: &'static str,
        arguments: Vec<Value>,
        budget: Duration,
    ) -> Result<Value, CheckError> {
        let deadline = monotonic() + budget;
        match timeout(budget, self.servers.run(key, command, arguments, deadline)).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(CheckError::new(RedisErrorKind::Timeout, "no answer within the budget")),
        }
    }

    /// What the links of all workers share.
    pub fn shared(&self) -> &Arc<RedisShared> {
        &self.shared
    }

    /// The places that this worker's requests hold.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// Whether it is worth a call to tell Redis something.
    pub fn can_be_told(&self) -> bool {
        *self.up.borrow() && self.shared.breaker.is_closed()
    }

    /// Whether there is a connection.
    pub fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    /// Whether who keeps a key can be asked; of a Redis that is not of parts: yes.
    pub fn is_there(&self, key: &[u8]) -> bool {
        !self.is_of_parts() || self.servers.route(key).is_some()
    }

    /// Whether one server keeps both keys.
    pub fn are_together(&self, key: &[u8], other: &[u8]) -> bool {
        self.servers.keeps_both(key, other)
    }

    /// Whether each of several servers keeps a part of the keys.
    pub fn is_of_parts(&self) -> bool {
        self.servers.are_parts()
    }

    /// A number for the next call, which comes again after 2^32 others, and who makes it.
    pub fn asker(&self) -> Asker {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        Asker { holder: self.holder, sequence }
    }

    /// Waits for a connection, of several servers for all of them, at most so long. Returns whether
    /// there is any.
    pub async fn wait_connected(&self, at_most: Duration) -> bool {
        let mut up = self.up.subscribe();
        let whole = async {
            while up.wait_for(|up| *up).await.is_ok() && !self.servers.is_whole() {
                tokio::time::sleep(WHOLE_PAUSE).await;
            }
        };
        let _ = timeout(at_most, whole).await;
        *self.up.borrow()
    }

    /// Waits for a connection to whoever keeps `key`, at most so long.
    pub async fn wait_for(&self, key: &[u8], at_most: Duration) -> bool {
        self.servers.wait_for(key, at_most).await
    }

    /// Runs the script, and ends within `budget`. What is answered later is only counted.
    pub async fn call(self: &Arc<Self>, call: Call, budget: Duration) -> Result<Value, CheckError> {
        match self.ask(call, budget).await {
            Ok(reply) => Ok(reply),
            Err(Unanswered { error, late }) => {
                if let Some(late) = late {
                    let counted = async move { _ = late.await };
                    tokio::spawn(watched(TaskType::Redis, counted));
                }
                Err(error)
            }
        }
    }

    /// Runs the script, and ends within `budget`. What is answered later can be waited for, and is
    /// to be: only then is its place free.
    pub async fn ask(self: &Arc<Self>, call: Call, budget: Duration) -> Result<Value, Unanswered> {
        let Some(route) = self.servers.route(call.keys.first().map_or(&[], |key| &**key)) else {
            return Err(CheckError::new(RedisErrorKind::Io, "not connected").into());
        };
        let place = Place::take(self)?;
        let deadline = monotonic() + budget;
        let asked = route.clone();
        let mut attempt = Box::pin(async move {
            let link = &place.0;
            link.run_routed(route, &call, deadline).await
        });
        match timeout(budget, attempt.as_mut()).await {
            Ok(result) => Ok(result?),
            Err(_) => {
                let shared = Arc::clone(&self.shared);
                // Keeps its place: a Redis that stands still must not gather calls without bound.
                let late =
                    Box::pin(
                        async move { attempt.await.inspect(|_| shared.stats.count_late_reply()) },
                    );
                let why = "no answer within the budget";
                let error = self.judged(&asked, CheckError::new(RedisErrorKind::Timeout, why));
                Err(Unanswered { error, late: Some(late) })
            }
        }
    }

    /// A failure of one of several servers says nothing of the others.
    fn judged(&self, asked: &Route, error: CheckError) -> CheckError {
        if self.servers.judge(asked.node(), false) {
            self.changed();
        }
        CheckError { of_part: self.servers.are_parts(), ..error }
    }

    /// Follows redirections. Safe to repeat then: it did not run.
    async fn run_routed(
        &self,
        mut route: Route,
        call: &Call,
        deadline: Instant,
    ) -> Result<Value, CheckError> {
        loop {
            let error = match self.run_known(&route, call, deadline).await {
                Ok(reply) => {
                    self.servers.judge(route.node(), true);
                    return Ok(reply);
                }
                Err(error) => error,
            };
            match error.kind {
                RedisErrorKind::Io | RedisErrorKind::Timeout => {
                    return Err(self.judged(&route, error));
                }
                // Who was demoted is not the one that sentinels name.
                RedisErrorKind::Readonly => self.servers.seek(),
                _ => {}
            }
            match Box::pin(self.servers.next(&route, &error.detail, deadline)).await {
                Some(next) if monotonic() < deadline => {
                    // That it sends others on is an answer.
                    self.servers.judge(route.node(), true);
                    route = next;
                }
                _ => return Err(CheckError { of_part: self.servers.are_parts(), ..error }),
            }
        }
    }

    /// Gives the connection up soon: it answered what was not asked.
    pub fn distrust(&self, error: &ReplyError) -> CheckError {
        if let ReplyError::TooLate(now) = error {
            // In time for us: then its clock is not what it was.
            self.shared.hear(*now);
            return CheckError::new(RedisErrorKind::Timeout, &error.to_string());
        }
        self.distrusted.store(true, Ordering::Relaxed);
        CheckError::new(RedisErrorKind::Protocol, &error.to_string())
    }

    /// Runs the script, and loads it first where Redis does not know it. Safe to repeat then:
    /// it did not run.
    async fn run_known(
        &self,
        route: &Route,
        call: &Call,
        deadline: Instant,
    ) -> Result<Value, CheckError> {
        let seen = route.node().loads.load(Ordering::Acquire);
        if let Some(hash) = self.shared.script.get() {
            match self.run(route, hash.clone(), call).await {
                Err(error) if error.kind == RedisErrorKind::Noscript => {
                    self.shared.stats.count_error(RedisErrorKind::Noscript);
                }
                result => return result,
            }
        }
        let hash = Box::pin(self.load(route.node(), seen)).await?;
        // Past the deadline the request has been decided without Redis: it must not spend now.
        if monotonic() >= deadline {
            return Err(CheckError::new(RedisErrorKind::Timeout, "no answer within the budget"));
        }
        self.run(route, hash, call).await
    }

    async fn run(&self, route: &Route, hash: Str, call: &Call) -> Result<Value, CheckError> {
        let count = i64::try_from(call.keys.len()).unwrap_or(i64::MAX);
        let mut arguments = Vec::with_capacity(call.keys.len() + 4);
        arguments.extend([Value::String(hash), count.into()]);
        arguments.extend(call.keys.iter().cloned().map(Value::Bytes));
        arguments.push(Value::Bytes(call.argument.clone()));
        // The third is where it is whether there is a second or not.
        let how = call.how.clone().or_else(|| call.wish.as_ref().map(|_| Bytes::new()));
        if let Some(how) = how {
            arguments.push(Value::Bytes(how));
        }
        if let Some(wish) = &call.wish {
            arguments.push(Value::Bytes(wish.clone()));
        }
        if let Some(counts) = &call.counts {
            let charge = Value::from_static_str("charge");
            arguments.extend([Value::Bytes(counts.clone()), charge]);
        }
        Ok(route.send("EVALSHA", arguments).await?)
    }

    /// Loads the script unless somebody did since `seen`.
    async fn load(&self, node: &Node, seen: u64) -> Result<Str, CheckError> {
        let _right = node.loading.lock().await;
        if node.loads.load(Ordering::Acquire) != seen
            && let Some(hash) = self.shared.script.get()
        {
            return Ok(hash.clone());
        }
        let hash: Str = node.client().script_load(static_str(SCRIPT)).await?;
        if hash.len() != 40 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(CheckError::new(
                RedisErrorKind::Protocol,
                "SCRIPT LOAD did not give a hash",
            ));
        }
        node.loads.fetch_add(1, Ordering::Release);
        Ok(self.shared.script.get_or_init(|| hash).clone())
    }

    /// It has no connections any more.
    pub fn close(&self) {
        self.set_up(false);
        if self.servers.are_parts() && !self.is_whole.swap(true, Ordering::Relaxed) {
            self.shared.parted.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Notes whether there is a connection.
    fn set_up(&self, is_up: bool) {
        if !self.up.send_if_modified(|up| std::mem::replace(up, is_up) != is_up) {
            return;
        }
        if is_up {
            self.shared.connected.fetch_add(1, Ordering::Relaxed);
        } else {
            self.shared.connected.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether there is a connection to every server that is needed changes.
    fn set_whole(&self, is_whole: bool) {
        if self.is_whole.swap(is_whole, Ordering::Relaxed) == is_whole {
            return;
        }
        if self.servers.are_parts() {
            self.shared.note_parted(!is_whole);
        }
    }
}

/// A place among the checks that wait for Redis.
struct Place(Arc<Link>);

impl Place {
    fn take(link: &Arc<Link>) -> Result<Self, CheckError> {
        if link.in_flight.fetch_add(1, Ordering::Relaxed) >= IN_FLIGHT_MAX {
            link.in_flight.fetch_sub(1, Ordering::Relaxed);
            return Err(CheckError::new(RedisErrorKind::Overload, "too many checks are waiting"));
        }
        link.shared.stats.enter_flight();
        Ok(Place(Arc::clone(link)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.0.shared.stats.leave_flight();
    }
}

impl Attendant for Link {
    fn greet<'a>(
        &'a self,
        node: &'a Node,
        is_first: bool,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        if !is_first {
            self.shared.stats.count_reconnect();
        }
        // Another server, or the same one restarted: it may not know the script. If this does not
        // succeed, the first check will try again.
        Box::pin(async move {
            let _ = self.load(node, node.loads.load(Ordering::Acquire)).await;
            self.recognise(node).await;
        })
    }

    fn changed(&self) {
        self.set_up(self.servers.is_up());
        self.set_whole(self.servers.is_whole());
    }
}
