//! How many replicas there are: each tells Redis every two seconds that it is there, and is told how
//! many have.
//!
//! Who ends orderly says so. While Redis is away, the last number holds. Redis also keeps a name that it was given when it
//! knew of nobody: once that is another, what it knew is lost.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use fred::bytes::Bytes;
use fred::interfaces::LuaInterface;
use fred::types::Value;
use fred::util::static_str;
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::health::breaker::jitter;
use crate::limiter::time::Timestamp;
use crate::metrics::labels::RedisErrorKind;
use crate::redis::node::Node;

use super::error::CheckError;
use super::link::Link;

const SCRIPT: &str = include_str!("replicas.lua");
/// Between two beats, before jitter.
const BEAT_INTERVAL: Duration = Duration::from_secs(2);
/// How long a replica counts that is not heard of.
const COUNTED_MS: u64 = 10_000;
/// How long the name is kept that tells this Redis from an empty one: longer than any window.
const NAME_KEPT_MS: u64 = 40 * 24 * 3_600_000;
/// How long one beat may take. Nobody's request waits for it.
const BUDGET: Duration = Duration::from_secs(1);

/// What is known of the replicas.
#[derive(Debug)]
pub struct Replicas {
    /// This process's name among them.
    name: String,
    expected: u32,
    counted: AtomicU32,
    /// Replicas whose names come before this one's.
    rank: AtomicU32,
    beat: Mutex<Beats>,
    /// Whether this one has said that it leaves: from then on it only looks.
    has_left: AtomicBool,
}

#[derive(Debug, Default)]
struct Beats {
    /// When the next beat is due; `None`: at once.
    due: Option<Instant>,
    /// The name that Redis had.
    generation: Option<Box<str>>,
}

/// What Redis says of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Those that count.
    pub replicas: u32,
    /// Those that were heard of since a given time.
    pub recent: u32,
    /// What Redis was named.
    pub generation: Box<str>,
    /// The time by its clock.
    pub now: Timestamp,
    /// How many have a name before this one's.
    pub rank: u32,
}

impl Replicas {
    /// Nothing known yet but how many are expected; 0: nothing.
    pub fn new(expected: u32) -> Self {
        Replicas {
            name: random_name(),
            expected,
            counted: AtomicU32::new(0),
            rank: AtomicU32::new(u32::MAX),
            beat: Mutex::default(),
            has_left: AtomicBool::new(false),
        }
    }

    /// How many there are, as far as is known, or as many as are expected; at least this one.
    pub fn count(&self) -> u32 {
        self.counted().max(self.expected).max(1)
    }

    /// How many Redis has last told of; 0: never.
    pub fn counted(&self) -> u32 {
        self.counted.load(Ordering::Relaxed)
    }

    /// This replica's part of so many places: as many as the others', and those that are left over
    /// go to the first. All parts come to the whole as long as the number of replicas is known.
    pub fn part(&self, places: u32) -> u32 {
        let replicas = self.count();
        let is_first = self.rank.load(Ordering::Relaxed) < places % replicas;
        (places / replicas).saturating_add(u32::from(is_first))
    }

    /// Whether a beat is due; who asks has to make it. One worker does it for all.
    pub fn takes_beat(&self, now: Instant) -> bool {
        let Some(mut beat) = self.beat.try_lock() else { return false };
        if beat.due.is_some_and(|due| now < due) {
            return false;
        }
        beat.due = Some(now + BEAT_INTERVAL.mul_f64(0.9 + jitter() / 5.0));
        true
    }

    /// The next beat is due now: Redis may be another.
    pub fn beat_soon(&self) {
        self.beat.lock().due = None;
    }

    /// Notes how many there are.
    pub fn note(&self, seen: &Seen) {
        self.counted.store(seen.replicas, Ordering::Relaxed);
        self.rank.store(seen.rank, Ordering::Relaxed);
    }

    /// Notes what Redis is named. Returns whether it had another name before.
    pub fn note_generation(&self, seen: &Seen) -> bool {
        let mut beat = self.beat.lock();
        let is_other = beat.generation.as_ref().is_some_and(|known| *known != seen.generation);
        if is_other || beat.generation.is_none() {
            beat.generation = Some(seen.generation.clone());
        }
        is_other
    }
}

impl Link {
    /// Tells Redis that this replica is there, unless `only_looks`, and asks for the others: those
    /// heard of since `since` apart.
    pub async fn beat(&self, only_looks: bool, since: Timestamp) -> Result<Seen, CheckError> {
        let says = if only_looks { Says::Nothing } else { Says::Here };
        let (keys, arguments) = self.words(says, since);
        self.heard(self.eval(SCRIPT, keys, arguments, BUDGET).await?)
    }

    /// The same over a connection that is not in use yet.
    pub async fn beat_over(&self, node: &Node, only_looks: bool) -> Result<Seen, CheckError> {
        let says = if only_looks { Says::Nothing } else { Says::Here };
        let (keys, arguments) = self.words(says, Timestamp::EPOCH);
        let arguments: Vec<Value> = arguments.into_iter().map(Value::Bytes).collect();
        let asked = node.client().eval::<Value, _, _, _>(static_str(SCRIPT), keys, arguments);
        let late = || CheckError::new(RedisErrorKind::Timeout, "no answer within the budget");
        self.heard(timeout(BUDGET, asked).await.map_err(|_| late())??)
    }

    /// Tells Redis that this replica ends, once, so that the others need not wait until it is not
    /// heard of any more. Where that fails they do.
    pub async fn leave(&self) {
        let shared = self.shared();
        shared.replicas.has_left.store(true, Ordering::Release);
        if !shared.breaker.is_closed() {
            return;
        }
        let (keys, arguments) = self.words(Says::Leaves, Timestamp::EPOCH);
        if let Err(error) = self.eval(SCRIPT, keys, arguments, BUDGET).await {
            shared.stats.count_error(error.kind);
        }
    }

    fn words(&self, says: Says, since: Timestamp) -> (Vec<Bytes>, Vec<Bytes>) {
        let shared = self.shared();
        let replicas = &shared.replicas;
        let is_named = match says {
            Says::Nothing => false,
            Says::Here => !replicas.has_left.load(Ordering::Acquire),
            Says::Leaves => true,
        };
        let name = if is_named { &replicas.name } else { "" };
        let number = |number: u64| Bytes::from(number.to_string());
        let mut arguments = vec![
            Bytes::copy_from_slice(name.as_bytes()),
            Bytes::from(random_name()),
            number(since.as_micros() / 1_000),
            number(COUNTED_MS),
            number(NAME_KEPT_MS),
        ];
        if says == Says::Leaves {
            arguments.push(Bytes::from_static(b"leaves"));
        }
        (shared.settings().names.replicas().to_vec(), arguments)
    }

    fn heard(&self, reply: Value) -> Result<Seen, CheckError> {
        let odd = "a reply that the script does not give";
        let seen = seen(reply).ok_or_else(|| CheckError::new(RedisErrorKind::Protocol, odd))?;
        self.shared().hear(seen.now);
        Ok(seen)
    }
}

/// What this replica says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Nothing,
    Here,
    Leaves,
}

/// A name that nobody else has. As random as what keeps the standard library's tables safe from who
/// picks their keys.
fn random_name() -> String {
    format!("{:016x}", RandomState::new().build_hasher().finish())
}

/// What a reply tells of the replicas; `None`: it is none that the script gives.
pub fn seen(reply: Value) -> Option<Seen> {
    let Value::Array(parts) = reply else { return None };
    let [replicas, recent, generation, now, rank] = parts.as_slice() else { return None };
    let count = |value: &Value| value.as_i64().and_then(|count| u32::try_from(count).ok());
    Some(Seen {
        replicas: count(replicas)?,
        recent: count(recent)?,
        generation: generation.as_str()?.as_ref().into(),
        now: Timestamp::from_micros(now.as_str()?.parse().ok()?),
        rank: count(rank)?,
    })
}
