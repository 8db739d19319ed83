//! Limiter state in Redis: one script call decides and charges every limit of a request.
//!
//! [`RedisShared`] is one for the process; each worker has a [`RedisStore`] with its own
//! connection. A check takes no longer than its budget, whatever Redis does: what is not answered
//! by then is decided by the failure mode. Nothing here knows of HTTP or of metrics' names.

pub mod board;
mod check;
pub mod codec;
pub mod error;
pub mod further;
pub mod leasing;
mod link;
pub mod names;
mod outage;
pub mod places;
mod recovery;
pub mod replicas;
pub mod settings;
pub mod stats;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fred::bytes_utils::Str;
use parking_lot::Mutex;

use crate::clock::monotonic;
use crate::health::breaker::{BreakerSettings, Outcome, jitter};
use crate::health::shared_breaker::SharedBreaker;
use crate::health::tasks::watched;
use crate::limiter::decision::{Decision, LimitStatus, Verdict};
use crate::limiter::quota::Mode;
use crate::limiter::refund::Grant;
use crate::limiter::share::Alone;
use crate::limiter::time::Timestamp;
use crate::metrics::labels::{BreakerState, RedisErrorKind, TaskType};
use crate::policy::compiled::FailureMode;
use crate::policy::plan::{Plan, Scope};
use crate::redis::node::AbortOnDrop;

use super::deny::DenyCache;
use super::failover::decide_without;
use super::lease::LeaseTable;
use super::memory::MemoryStore;
use super::share::ShareStore;
use super::{Backend, Checked};
use codec::Call;
use error::CheckError;
use further::Kind;
use link::Link;
use outage::Outage;
use places::{HeldPlaces, Here};
use replicas::Replicas;
use settings::RedisSettings;
use stats::{Reason, RedisStats};

/// Between two checks of whether Redis can be written to, while requests are checked there.
const WRITE_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// What the stores of all workers share.
#[derive(Debug)]
pub struct RedisShared {
    settings: RedisSettings,
    share: ShareStore,
    replicas: Replicas,
    here: Here,
    outage: Outage,
    breaker: Arc<SharedBreaker>,
    stats: RedisStats,
    denials: DenyCache,
    leases: LeaseTable,
    /// The script's hash, as the first load told it; depends on nothing but the script.
    script: OnceLock<Str>,
    /// Stores, one for each worker.
    stores: AtomicUsize,
    /// Those of them that have a connection.
    connected: AtomicUsize,
    /// Those that lack one to some of several servers.
    parted: AtomicUsize,
    is_parted_told: AtomicBool,
    /// When it was last tried whether it can be written to, and whether it could.
    write_check: Mutex<Option<Instant>>,
    is_writable: AtomicBool,
}

impl RedisShared {
    /// As many identities are remembered for when Redis does not answer and `on_failure` is `local`
    /// as `memory` may hold.
    pub fn new(settings: RedisSettings, memory: Arc<MemoryStore>) -> Self {
        RedisShared {
            leases: LeaseTable::new(settings.leases, monotonic()),
            share: ShareStore::new(memory.capacity(), settings.names.clone()),
            replicas: Replicas::new(settings.expected_replicas),
            here: Here::default(),
            outage: Outage::new(),
            settings,
            breaker: SharedBreaker::new(BreakerSettings::STEADY, monotonic()),
            stats: RedisStats::default(),
            denials: DenyCache::new(monotonic()),
            script: OnceLock::new(),
            stores: AtomicUsize::new(0),
            connected: AtomicUsize::new(0),
            parted: AtomicUsize::new(0),
            is_parted_told: AtomicBool::new(false),
            write_check: Mutex::default(),
            is_writable: AtomicBool::new(true),
        }
    }

    /// What the stores were made with.
    pub fn settings(&self) -> &RedisSettings {
        &self.settings
    }

    /// The counters.
    pub fn stats(&self) -> &RedisStats {
        &self.stats
    }

    /// What this replica let pass.
    pub fn share(&self) -> &ShareStore {
        &self.share
    }

    /// How many replicas there are, as far as is known.
    pub fn replicas(&self) -> u32 {
        self.replicas.count()
    }

    /// Whether this replica decides by its share where the mode is `local`: while Redis is away, and
    /// until it has been told by all what they let pass meanwhile.
    pub fn is_apart(&self) -> bool {
        self.outage.is_apart()
    }

    /// The state of every limit of the plan as this replica may use it alone; nothing is charged.
    pub fn peek_alone(&self, plan: &Plan<'_>, now: Timestamp) -> Decision {
        let now = self.outage.there(now);
        self.share.peek(plan, now, self.alone(now))
    }

    fn alone(&self, now: Timestamp) -> Alone {
        Alone { replicas: self.replicas.count(), since: self.outage.lost(now) }
    }

    /// Notes that Redis has answered, at `now` by its clock.
    fn hear(&self, now: Timestamp) {
        self.outage.hear(now);
    }

    /// Denials that Redis need not make again.
    pub fn denials(&self) -> &DenyCache {
        &self.denials
    }

    /// The breaker's state.
    pub fn breaker_state(&self) -> BreakerState {
        self.breaker.state()
    }

    /// Since when, by [`monotonic`], no request has been checked in Redis; `None` while they are.
    pub fn unavailable_since(&self) -> Option<Instant> {
        self.breaker.opened_at()
    }

    /// Workers that have a connection to Redis.
    pub fn connected(&self) -> usize {
        self.connected.load(Ordering::Relaxed)
    }

    /// Whether every worker has one, to every server that is needed. One without decides by the
    /// failure mode.
    pub fn is_connected(&self) -> bool {
        let connected = self.connected();
        let is_parted = self.parted.load(Ordering::Relaxed) > 0;
        connected > 0 && connected >= self.stores.load(Ordering::Relaxed) && !is_parted
    }

    /// Whether the last check of whether it can be written to was good, or none was made yet: a
    /// primary that was demoted answers a PING as before.
    pub fn is_writable(&self) -> bool {
        self.is_writable.load(Ordering::Relaxed)
    }

    /// Whether such a check is due; who asks has to make it. One worker does it for all.
    fn takes_write_check(&self, now: Instant) -> bool {
        let Some(mut last) = self.write_check.try_lock() else { return false };
        let is_soon = |at| now.saturating_duration_since(at) < WRITE_CHECK_INTERVAL;
        if last.is_some_and(is_soon) {
            return false;
        }
        *last = Some(now);
        true
    }

    fn decide_without(&self, plan: &Plan<'_>, now: Timestamp, reason: Reason) -> Checked {
        let mode = self.mode(plan);
        self.stats.count_fallback(mode, reason);
        decide_without(mode, || {
            let there = self.outage.there(now);
            let alone = self.alone(there);
            let places = places::alone(self, plan, there);
            let is_full = |it: &LimitStatus| it.mode == Mode::Enforce && !it.wait.is_zero();
            let mut decision = if places.iter().any(is_full) {
                let mut seen = self.share.peek(plan, there, alone);
                seen.verdict = Verdict::Deny;
                seen
            } else {
                self.share.check(plan, there, alone)
            };
            places.into_iter().for_each(|status| decision.push(status));
            decision
        })
    }

    /// What the requests of this replica hold.
    fn here(&self) -> &Here {
        &self.here
    }

    fn replicas_here(&self) -> &Replicas {
        &self.replicas
    }

    fn mode(&self, plan: &Plan<'_>) -> FailureMode {
        plan.on_failure.unwrap_or(self.settings.on_failure)
    }

    fn note_good(&self) {
        self.breaker.record(Outcome::Good, monotonic(), 0.0);
    }

    fn note_bad(&self, error: &CheckError) {
        self.stats.count_error(error.kind);
        self.count_against(error);
    }

    /// Counts a failure towards the breaker. A full queue is not one: it follows from those that
    /// are. Nor is the missing connection of one worker while others have theirs, or what one of
    /// several servers does.
    fn count_against(&self, error: &CheckError) {
        let is_own = (error.kind == RedisErrorKind::Io || error.of_part) && self.connected() > 0;
        if error.kind == RedisErrorKind::Overload || is_own {
            return;
        }
        if let Some(state) = self.breaker.record(Outcome::Bad, monotonic(), jitter()) {
            self.outage.part();
            self.stats.count_transition(state);
            tracing::warn!(
                server = %self.settings.target,
                on_failure = self.settings.on_failure.as_str(),
                error = %error,
                "redis is unavailable, requests are decided without it"
            );
        }
    }

    /// One more worker, or one less, lacks the connection to one of several servers.
    fn note_parted(&self, is_parted: bool) {
        let server = &self.settings.target;
        if is_parted {
            // All were there before: until then there is nothing to tell of.
            if self.parted.fetch_add(1, Ordering::Relaxed) == 0 {
                self.is_parted_told.store(true, Ordering::Relaxed);
                tracing::warn!(
                    %server,
                    "a server of the redis cluster is away, its identities are decided without it"
                );
            }
        } else if self.parted.fetch_sub(1, Ordering::Relaxed) == 1
            && self.is_parted_told.swap(false, Ordering::Relaxed)
        {
            tracing::info!(%server, "all servers of the redis cluster are there");
        }
    }

    fn note_probe(&self, changed: Option<BreakerState>, opened_at: Option<Instant>) {
        let Some(state) = changed else { return };
        self.stats.count_transition(state);
        if state == BreakerState::Closed {
            self.forget_answers();
            let away = opened_at.map_or(Duration::ZERO, |at| monotonic().duration_since(at));
            tracing::info!(
                server = %self.settings.target,
                unavailable_ms = u64::try_from(away.as_millis()).unwrap_or(u64::MAX),
                "redis is back"
            );
        }
    }
}

/// One worker's store: its own connection, on the runtime that it was made on.
#[derive(Debug)]
pub struct RedisStore {
    link: Arc<Link>,
    _tasks: [AbortOnDrop; 3],
}

impl RedisStore {
    /// Returns at once and connects in the background, for ever if need be. Must be called on the
    /// runtime that will check, which may be single-threaded.
    pub fn connect(shared: Arc<RedisShared>) -> Self {
        shared.stores.fetch_add(1, Ordering::Relaxed);
        let (link, tasks) = Link::open(shared);
        RedisStore { link, _tasks: tasks }
    }

    /// Waits for the first connection, at most so long. Worth a moment at start, so that the first
    /// requests are not decided without Redis. Returns whether there is one.
    pub async fn wait_connected(&self, at_most: Duration) -> bool {
        self.link.wait_connected(at_most).await
    }

    fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// What is shared with the other workers.
    pub fn shared(&self) -> &Arc<RedisShared> {
        self.link.shared()
    }

    /// Counts a request that is about to be checked among those that hold places, if its plan has
    /// any. To be called right before the check, and told what has come of it.
    pub fn expect_places(&self, plan: &Plan<'_>) -> Option<HeldPlaces> {
        let holds = |scope: &Scope<'_>| Kind::Places.is_in(&scope.limits.set);
        if !plan.scopes().any(holds) {
            return None;
        }
        let names = &self.shared().settings.names;
        let hash = names.identity_hash(&plan.identity);
        let letter = Kind::Places.letter();
        let holding = plan.scopes().enumerate().filter(|(_, scope)| holds(scope));
        let keys = holding.map(|(index, scope)| (index, names.further(&hash, letter, scope.key)));
        Some(HeldPlaces::expect(&self.link, keys))
    }

    /// What a check of the plan would come to; charges nothing. Says nothing of Redis that checks will
    /// not. With `now` the script takes that for the time. The plan has at least one scope.
    ///
    /// # Errors
    /// Redis gave no answer within `budget`.
    pub async fn peek(
        &self,
        plan: &Plan<'_>,
        now: Option<Timestamp>,
        budget: Duration,
    ) -> Result<Decision, CheckError> {
        let names = &self.shared().settings.names;
        let call = Call::peek(names, plan, now, self.link.asker());
        let ticket = call.ticket;
        let reply = self.link.call(call, budget).await?;
        let reply = reply.as_bytes().unwrap_or_default();
        ticket.decode(plan, reply).map_err(|error| self.link.distrust(&error))
    }

    /// Takes back what a check by `backend` charged. In this process's memory, or in the lease that it
    /// was spent of, at once, and then it says how the limits stand; in Redis some time soon, or
    /// never: it is tried once, waits for Redis no longer than a check does, beside as many, and is
    /// not waited for here. That it failed costs its caller some tokens and is counted among the
    /// errors, but says nothing of Redis that checks will not.
    pub fn refund(
        &self,
        plan: &Plan<'_>,
        grant: &Grant,
        backend: Backend,
        now: Timestamp,
    ) -> Option<Decision> {
        let shared = self.shared();
        if backend == Backend::Local {
            let now = shared.outage.there(now);
            return Some(shared.share.refund(plan, grant, now, shared.alone(now)));
        }
        if shared.mode(plan) == FailureMode::Local {
            shared.share.refunded(plan, grant);
        }
        if let Some(left) = shared.leases.put_back(plan, grant, monotonic()) {
            return Some(left);
        }
        // What decides meanwhile knows nothing of this charge.
        if shared.breaker.is_closed() && plan.scopes().next().is_some() {
            let grant = grant.clone().beside_leases();
            tokio::spawn(watched(TaskType::Redis, self.refund_in_redis(plan, &grant)));
        }
        None
    }

    /// The same in Redis alone, whatever the breaker says, to be waited for. The plan has at least
    /// one scope.
    pub fn refund_in_redis(
        &self,
        plan: &Plan<'_>,
        grant: &Grant,
    ) -> impl Future<Output = Result<(), CheckError>> + Send + use<> {
        let link = Arc::clone(&self.link);
        let settings = &self.shared().settings;
        let budget = settings.timeout;
        let call = Call::refund(&settings.names, plan, grant, link.asker());
        let identity = plan.identity.clone();
        async move {
            let result = link.call(call, budget).await.map(|_| ());
            // Then, and not before: what is denied until Redis has it back is denied rightly.
            link.shared().denials.given_back(&identity);
            if let Err(error) = &result {
                link.shared().stats.count_error(error.kind);
            }
            result
        }
    }
}

impl Drop for RedisStore {
    fn drop(&mut self) {
        self.link.close();
        self.shared().stores.fetch_sub(1, Ordering::Relaxed);
    }
}
