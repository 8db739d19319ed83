//! What a user has bought, asked of a database: never longer than a request may wait, mostly out
//! of memory.
//!
//! [`Subscriptions`] is one for the process. Workers read its memory themselves; what is not in
//! there they ask of one thread of its own, which has the connections, asks once for a user
//! whoever waits, and goes on asking when they have stopped waiting. Nothing here knows of tiers,
//! of HTTP or of metrics' names.

pub mod memory;
pub mod parameter;
mod postgres;
mod redis;
mod service;
pub mod settings;
pub mod stats;
pub mod tls;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::clock::monotonic;
use crate::health::breaker::BreakerSettings;
use crate::health::dependency::DependencyStatus;
use crate::health::shared_breaker::SharedBreaker;
use crate::health::slow::SlowCalls;
use crate::metrics::labels::{BreakerState, LookupResult};

use memory::{Memory, Recalled};
use service::{Answer, Job, Source};
use settings::Settings;
use stats::Stats;

/// Requests that may wait for an answer; more go without.
pub const WAITERS_MAX: usize = 4_096;
/// Look-ups that the thread has not seen yet.
const JOBS_MAX: usize = 1_024;
/// A longer user is nobody in any database.
const USER_BYTES_MAX: usize = 256;
/// A longer name of a subscription is none.
const PLAN_BYTES_MAX: usize = 256;
/// For a look-up with all that it needs, a connection too. Longer than a request waits: an answer
/// that comes too late for one is there for the next.
const WORK_MAX: Duration = Duration::from_secs(3);
/// How long a start waits to see whether the database takes the query.
const START_MAX: Duration = Duration::from_secs(5);

/// What a user has bought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bought {
    /// The subscription of this name, as the database has it.
    Plan(Arc<str>),
    /// Nothing: the database does not know the user, or no subscription of theirs.
    None,
    /// No answer, and none remembered.
    Unknown,
}

impl Bought {
    /// The subscription, if there is one.
    pub fn into_plan(self) -> Option<Arc<str>> {
        match self {
            Bought::Plan(name) => Some(name),
            Bought::None | Bought::Unknown => None,
        }
    }
}

/// Why there was no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Failure {
    /// The server cannot be reached, or refuses us.
    Lost(String),
    /// It takes too long.
    Timeout,
    /// It refuses the query, for everybody.
    Query(String),
    /// It answers with an error for this user.
    User(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Lost(why) | Failure::Query(why) | Failure::User(why) => f.write_str(why),
            Failure::Timeout => f.write_str("no answer in time"),
        }
    }
}

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database answers, and says that the query is wrong.
    #[error("the database refuses the query: {0}")]
    Query(String),
    /// There is nothing to check the server's certificate against.
    #[error("{0}")]
    Authorities(String),
    /// The thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[from] io::Error),
}

/// What users have bought. Dropped, it ends its thread.
#[derive(Debug)]
pub struct Subscriptions {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
}

/// What workers and the thread share.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    source: Source,
    memory: Memory,
    breaker: Arc<SharedBreaker>,
    slow_calls: Arc<SlowCalls>,
    stats: Arc<Stats>,
    waiters: AtomicUsize,
    /// Whether the last call to the database was answered.
    is_well: AtomicBool,
}

impl Subscriptions {
    /// Starts the thread, and waits some seconds at most to see whether the database takes the
    /// query. One that cannot be reached is no error. `shards`: threads that will ask;
    /// `slow_calls`: where look-ups are told of that are slow.
    ///
    /// # Errors
    /// The query is wrong; there is nothing to check a certificate against; no thread.
    pub fn start(
        settings: Settings,
        shards: usize,
        slow_calls: Arc<SlowCalls>,
    ) -> Result<Self, StartError> {
        let source = Source::new(&settings).map_err(StartError::Authorities)?;
        let shared = Arc::new(Shared {
            memory: Memory::new(settings.cache_ttl, monotonic()),
            settings,
            source,
            breaker: SharedBreaker::new(BreakerSettings::STEADY, monotonic()),
            slow_calls,
            stats: Arc::new(Stats::new(shards)),
            waiters: AtomicUsize::new(0),
            is_well: AtomicBool::new(true),
        });
        let (jobs, inbox) = mpsc::channel(JOBS_MAX);
        let (started, has_started) = std::sync::mpsc::sync_channel(1);
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("subscriptions".to_owned())
            .spawn(move || service::run(of_thread, inbox, &started))?;
        match has_started.recv() {
            Ok(None) => Ok(Subscriptions { shared, jobs }),
            Ok(Some(error)) => Err(error),
            // It ended without a word.
            Err(_) => Err(StartError::Thread(io::ErrorKind::Other.into())),
        }
    }

    /// What this user has bought, if it is remembered: read at once, nothing is waited for. An
    /// answer that is past its time is given all the same, while somebody sees to a new one.
    #[inline]
    pub fn remembered(&self, user: &str) -> Option<Bought> {
        match self.shared.memory.recall(user, monotonic()) {
            Recalled::Fresh(bought) => {
                self.shared.stats.count(LookupResult::Hit);
                Some(bought)
            }
            Recalled::Stale { bought, is_to_refresh } => {
                self.shared.stats.count(LookupResult::Stale);
                if is_to_refresh && self.shared.breaker.is_closed() {
                    // Where there is no room it is left to a later request.
                    let _ = self.jobs.try_send(Job::refresh(user));
                }
                Some(bought)
            }
            Recalled::Failed => {
                self.shared.stats.count(LookupResult::Error);
                Some(Bought::Unknown)
            }
            Recalled::Nothing => None,
        }
    }

    /// What this user has bought, within the settings' timeout. Cancelled, the look-up goes on for
    /// whoever asks next.
    pub async fn of(&self, user: &str) -> Bought {
        if let Some(bought) = self.remembered(user) {
            return bought;
        }
        let (bought, result) = self.asked(user).await;
        self.shared.stats.count(result);
        bought
    }

    async fn asked(&self, user: &str) -> (Bought, LookupResult) {
        let without = |result| (Bought::Unknown, result);
        if user.len() > USER_BYTES_MAX {
            return (Bought::None, LookupResult::None);
        }
        if !self.shared.breaker.is_closed() {
            return without(LookupResult::CircuitOpen);
        }
        let Some(_place) = Place::take(&self.shared) else {
            return without(LookupResult::Overload);
        };
        let (job, answer) = Job::new(user);
        if self.jobs.try_send(job).is_err() {
            return without(LookupResult::Overload);
        }
        match timeout(self.shared.settings.timeout, answer).await {
            Ok(Ok(Answer::Bought(Bought::Unknown) | Answer::Failed) | Err(_)) => {
                without(LookupResult::Error)
            }
            Ok(Ok(Answer::Bought(Bought::None))) => (Bought::None, LookupResult::None),
            Ok(Ok(Answer::Bought(plan))) => (plan, LookupResult::Found),
            Ok(Ok(Answer::Overload)) => without(LookupResult::Overload),
            Ok(Ok(Answer::Late)) | Err(_) => without(LookupResult::Timeout),
        }
    }

    /// Users whose answer is kept.
    pub fn users_remembered(&self) -> usize {
        self.shared.memory.len()
    }

    /// The counters.
    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// The breaker's state.
    pub fn breaker_state(&self) -> BreakerState {
        self.shared.breaker.state()
    }

    /// How well the database does.
    pub fn status(&self) -> DependencyStatus {
        match self.breaker_state() {
            // The thread is gone, which only a fault of ours brings about.
            _ if self.jobs.is_closed() => DependencyStatus::Unhealthy,
            BreakerState::Open => DependencyStatus::Unhealthy,
            BreakerState::HalfOpen => DependencyStatus::Degraded,
            BreakerState::Closed if self.shared.is_well.load(Ordering::Relaxed) => {
                DependencyStatus::Healthy
            }
            BreakerState::Closed => DependencyStatus::Degraded,
        }
    }

    /// Connections in use, and idle ones.
    pub fn connections(&self) -> (usize, usize) {
        self.shared.source.connections()
    }
}

/// A place among the requests that wait.
struct Place<'s>(&'s AtomicUsize);

impl<'s> Place<'s> {
    fn take(shared: &'s Shared) -> Option<Self> {
        // Made first: dropped, it gives back what it took.
        let taken = shared.waiters.fetch_add(1, Ordering::Relaxed);
        let place = Place(&shared.waiters);
        (taken < WAITERS_MAX).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Job {
    /// For whoever waits.
    fn new(user: &str) -> (Self, oneshot::Receiver<Answer>) {
        let (reply, answer) = oneshot::channel();
        (Job { user: user.into(), asked_at: monotonic(), reply: Some(reply) }, answer)
    }

    /// For the memory alone.
    fn refresh(user: &str) -> Self {
        Job { user: user.into(), asked_at: monotonic(), reply: None }
    }
}
