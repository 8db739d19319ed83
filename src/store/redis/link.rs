//! One worker's connection: keeps it, loads the script over it, and bounds every call.
//!
//! Three tasks beside the calls: one drives the client, one follows its events, one watches. The
//! watcher is needed because a connection over which nothing comes back is not noticed by the
//! client while requests keep writing to it.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fred::bytes::Bytes;
use fred::bytes_utils::Str;
use fred::clients::Client;
use fred::interfaces::{ClientLike, EventInterface, KeysInterface, LuaInterface};
use fred::types::Value;
use fred::util::static_str;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::clock::monotonic;
use crate::health::breaker::{Outcome, jitter};
use crate::health::tasks::watched;
use crate::metrics::labels::{CheckResult, RedisErrorKind, TaskType};

use super::RedisShared;
use super::codec::{Asker, Call, ReplyError, SCRIPT};
use super::error::CheckError;
use super::places::Places;
use super::settings::CONNECT_MAX;

/// Checks of one worker that may wait for Redis, late ones included; more are decided without it.
const IN_FLIGHT_MAX: usize = 1_024;
/// Commands that the client may hold: the checks, and a few of ours.
const COMMANDS_MAX: usize = 2 * IN_FLIGHT_MAX;
/// How long an answer may still be counted as late; then its place is given up.
const LATE_MAX: Duration = Duration::from_secs(1);
/// Between two looks of the watcher, before jitter.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// Unanswered looks after which the connection is given up.
const MISSES_MAX: u32 = 3;

/// A task that ends with its owner.
#[derive(Debug)]
pub struct AbortOnDrop<T = ()>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The connection and what is waiting on it.
#[derive(Debug)]
pub struct Link {
    shared: Arc<RedisShared>,
    client: Client,
    /// Whether there is a connection, as far as is known.
    up: watch::Sender<bool>,
    in_flight: AtomicUsize,
    places: Places,
    sequence: AtomicU32,
    /// Stands for this worker of this process among all that hold places.
    holder: u64,
    /// Loads of the script so far, and the right to load it.
    loads: AtomicU64,
    loading: Mutex<()>,
    /// Set when an answer was not one to its call: the next look gives the connection up.
    distrusted: AtomicBool,
}

impl Link {
    /// Starts to connect.
    pub fn open(shared: Arc<RedisShared>) -> (Arc<Self>, [AbortOnDrop; 4]) {
        let client = client(&shared);
        let (up, _) = watch::channel(false);
        let link = Arc::new(Link {
            shared,
            client,
            up,
            in_flight: AtomicUsize::new(0),
            places: Places::default(),
            sequence: AtomicU32::new(0),
            holder: RandomState::new().hash_one(std::process::id()),
            loads: AtomicU64::new(0),
            loading: Mutex::new(()),
            distrusted: AtomicBool::new(false),
        });
        // Subscribed before the client starts, so that no event is missed.
        let follow = tokio::spawn(watched(TaskType::Redis, Arc::clone(&link).follow()));
        let drive = tokio::spawn(watched(TaskType::Redis, drive(link.client.clone())));
        let watch = tokio::spawn(watched(TaskType::Redis, Arc::clone(&link).watch()));
        let keep = tokio::spawn(watched(TaskType::Redis, Places::keep(Arc::clone(&link))));
        (link, [follow, drive, watch, keep].map(AbortOnDrop))
    }

    /// Runs a script of another kind, which is rare, and ends within `budget`.
    pub async fn eval(
        &self,
        script: &'static str,
        keys: Vec<Bytes>,
        arguments: Vec<Bytes>,
        budget: Duration,
    ) -> Result<Value, CheckError> {
        if !*self.up.borrow() {
            return Err(CheckError::new(RedisErrorKind::Io, "not connected"));
        }
        let arguments: Vec<Value> = arguments.into_iter().map(Value::Bytes).collect();
        match timeout(budget, self.client.eval(static_str(script), keys, arguments)).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(CheckError::new(RedisErrorKind::Timeout, "no answer within the budget")),
        }
    }

    /// Deletes keys, all of one slot, and ends within `budget`.
    pub async fn delete(&self, keys: Vec<Bytes>, budget: Duration) -> Result<(), CheckError> {
        if !*self.up.borrow() {
            return Err(CheckError::new(RedisErrorKind::Io, "not connected"));
        }
        match timeout(budget, self.client.unlink::<i64, _>(keys)).await {
            Ok(result) => Ok(result.map(|_| ())?),
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

    /// A number for the next call, which comes again after 2^32 others, and who makes it.
    pub fn asker(&self) -> Asker {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        Asker { holder: self.holder, sequence }
    }

    /// Waits for a connection, at most so long. Returns whether there is one.
    pub async fn wait_connected(&self, at_most: Duration) -> bool {
        let mut up = self.up.subscribe();
        timeout(at_most, up.wait_for(|up| *up)).await.is_ok_and(|waited| waited.is_ok())
    }

    /// Runs the script, and ends within `budget`. What is answered later is only counted.
    pub async fn call(self: &Arc<Self>, call: Call, budget: Duration) -> Result<Value, CheckError> {
        if !*self.up.borrow() {
            return Err(CheckError::new(RedisErrorKind::Io, "not connected"));
        }
        let place = Place::take(self)?;
        let deadline = monotonic() + budget;
        let mut attempt = Box::pin(async move {
            let link = &place.0;
            link.run_known(&call, deadline).await
        });
        match timeout(budget, attempt.as_mut()).await {
            Ok(result) => result,
            Err(_) => {
                let shared = Arc::clone(&self.shared);
                // Keeps its place: a Redis that stands still must not gather calls without bound.
                tokio::spawn(watched(TaskType::Redis, async move {
                    if attempt.await.is_ok() {
                        shared.stats.count_late_reply();
                    }
                }));
                Err(CheckError::new(RedisErrorKind::Timeout, "no answer within the budget"))
            }
        }
    }

    /// Gives the connection up soon: it answered what was not asked.
    pub fn distrust(&self, error: &ReplyError) -> CheckError {
        self.distrusted.store(true, Ordering::Relaxed);
        CheckError::new(RedisErrorKind::Protocol, &error.to_string())
    }

    /// Runs the script, and loads it first where Redis does not know it. Safe to repeat then:
    /// it did not run.
    async fn run_known(&self, call: &Call, deadline: Instant) -> Result<Value, CheckError> {
        let seen = self.loads.load(Ordering::Acquire);
        if let Some(hash) = self.shared.script.get() {
            match self.run(hash.clone(), call).await {
                Err(error) if error.kind == RedisErrorKind::Noscript => {
                    self.shared.stats.count_error(RedisErrorKind::Noscript);
                }
                result => return result,
            }
        }
        let hash = self.load(seen).await?;
        // Past the deadline the request has been decided without Redis: it must not spend now.
        if monotonic() >= deadline {
            return Err(CheckError::new(RedisErrorKind::Timeout, "no answer within the budget"));
        }
        self.run(hash, call).await
    }

    async fn run(&self, hash: Str, call: &Call) -> Result<Value, CheckError> {
        let argument = Value::Bytes(call.argument.clone());
        let keys = call.keys.clone();
        if let Some(how) = &call.how {
            let arguments = vec![argument, Value::Bytes(how.clone())];
            return Ok(self.client.evalsha(hash, keys, arguments).await?);
        }
        Ok(self.client.evalsha(hash, keys, argument).await?)
    }

    /// Loads the script unless somebody did since `seen`.
    async fn load(&self, seen: u64) -> Result<Str, CheckError> {
        let _right = self.loading.lock().await;
        if self.loads.load(Ordering::Acquire) != seen
            && let Some(hash) = self.shared.script.get()
        {
            return Ok(hash.clone());
        }
        let hash: Str = self.client.script_load(static_str(SCRIPT)).await?;
        if hash.len() != 40 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(CheckError::new(
                RedisErrorKind::Protocol,
                "SCRIPT LOAD did not give a hash",
            ));
        }
        self.loads.fetch_add(1, Ordering::Release);
        Ok(self.shared.script.get_or_init(|| hash).clone())
    }

    /// Notes whether there is a connection.
    pub fn set_up(&self, is_up: bool) {
        if !self.up.send_if_modified(|up| std::mem::replace(up, is_up) != is_up) {
            return;
        }
        if is_up {
            self.shared.connected.fetch_add(1, Ordering::Relaxed);
        } else {
            self.shared.connected.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Follows the client's events: a lost connection is known before a call has to find out.
    async fn follow(self: Arc<Self>) {
        let mut errors = self.client.error_rx();
        let mut connections = self.client.reconnect_rx();
        let mut is_first = true;
        loop {
            tokio::select! {
                biased;
                event = errors.recv() => match event {
                    Ok(_) | Err(RecvError::Lagged(_)) => self.set_up(false),
                    Err(RecvError::Closed) => return,
                },
                event = connections.recv() => {
                    if let Err(RecvError::Closed) = event {
                        return;
                    }
                    if !is_first {
                        self.shared.stats.count_reconnect();
                    }
                    is_first = false;
                    // Another server, or the same one restarted: it may not know the script. If
                    // this does not succeed, the first check will try again.
                    let _ = self.load(self.loads.load(Ordering::Acquire)).await;
                    self.set_up(true);
                }
            }
        }
    }

    /// Looks after the connection several times a second, and probes while the breaker is open.
    async fn watch(self: Arc<Self>) {
        let mut misses = 0;
        loop {
            tokio::time::sleep(WATCH_INTERVAL + watch_jitter()).await;
            if !self.client.is_connected() {
                self.set_up(false);
                misses = 0;
                self.shared.count_against(&CheckError::new(RedisErrorKind::Io, "not connected"));
                continue;
            }
            if self.look().await {
                misses = 0;
            } else {
                misses += 1;
            }
            if misses >= MISSES_MAX || self.distrusted.swap(false, Ordering::Relaxed) {
                misses = 0;
                self.set_up(false);
                self.shared.stats.count_forced_reconnect();
                let _ = timeout(CONNECT_MAX, self.client.force_reconnection()).await;
            }
        }
    }

    /// Probes if that is due, else pings. Returns whether all was well: a server that answers but
    /// cannot be written to is worth another connection too, as its name may lead elsewhere now.
    async fn look(self: &Arc<Self>) -> bool {
        let shared = &self.shared;
        let opened_at = shared.breaker.opened_at();
        if let Some(probe) = shared.breaker.try_probe(monotonic(), jitter()) {
            self.set_up(true);
            let outcome = match self.probe().await {
                Ok(()) => Outcome::Good,
                Err(error) => {
                    shared.stats.count_error(error.kind);
                    Outcome::Bad
                }
            };
            shared.note_probe(probe.end(outcome, monotonic(), jitter()), opened_at);
            return outcome == Outcome::Good;
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
        let started = monotonic();
        let answer = match timeout(WATCH_INTERVAL, self.client.ping::<()>(None)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(CheckError::from(error)),
            Err(_) => Err(CheckError::new(RedisErrorKind::Timeout, "no PONG")),
        };
        self.count_check(&answer, started);
        match answer {
            Ok(()) => self.set_up(true),
            Err(error) => {
                shared.count_against(&error);
                return false;
            }
        }
        true
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

/// Drives the client for ever. It ends by itself only on what no reconnection mends, as a server
/// that is no plain one; that too may change.
async fn drive(client: Client) {
    loop {
        let mut driver = AbortOnDrop(client.connect());
        let _ = (&mut driver.0).await;
        tokio::time::sleep(CONNECT_MAX + watch_jitter()).await;
    }
}

fn client(shared: &RedisShared) -> Client {
    let settings = &shared.settings;
    // Not the budget: answers up to here are counted.
    settings.target.client(LATE_MAX.max(settings.timeout), COMMANDS_MAX)
}

/// Up to a fifth of the watcher's interval, so that workers and replicas do not keep step.
fn watch_jitter() -> Duration {
    WATCH_INTERVAL.mul_f64(jitter() / 5.0)
}
