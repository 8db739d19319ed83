//! The thread that asks the database: one look-up for a user at a time, whoever waits for it.
//!
//! Everything here runs on one single-threaded runtime, so that what is under way needs no lock.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::clock::{Clock, monotonic};
use crate::health::breaker::{FAILURES_IN_A_ROW, Outcome, jitter};
use crate::health::slow::SlowCall;
use crate::metrics::labels::{BreakerState, CheckResult, QueryType};

use super::memory::Recalled;
use super::postgres::Postgres;
use super::redis::Redis;
use super::settings::{Settings, SourceSettings};
use super::stats::Waiting;
use super::{Bought, Failure, START_MAX, Shared, StartError, WORK_MAX};

/// Look-ups at a time, those that wait for a connection included.
pub const FLIGHTS_MAX: usize = 1_024;
/// The same for those that no request waits for.
const REFRESHES_MAX: usize = FLIGHTS_MAX / 2;
/// Between two looks after the database while something is amiss, before jitter.
const TEND_INTERVAL: Duration = Duration::from_millis(250);
/// While it stays away the interval grows to so many of these: for a PostgreSQL each look is a
/// process of its own, and a line in its log.
const TEND_INTERVALS_MAX: u32 = 4;
/// A database of which nothing was heard for so long is looked at.
const LOOK_AFTER: Duration = Duration::from_secs(5);
/// Errors that concern single users are told of at most so often.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// A look-up that is asked for.
#[derive(Debug)]
pub struct Job {
    /// Whose.
    pub user: Box<str>,
    /// When.
    pub asked_at: Instant,
    /// Who waits, if anybody does.
    pub reply: Option<oneshot::Sender<Answer>>,
}

/// What those who wait are told.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The answer.
    Bought(Bought),
    /// There will be one, or there was one, too late.
    Late,
    /// There is none.
    Failed,
    /// Too many are under way.
    Overload,
}

/// Who is asked.
#[derive(Debug)]
pub enum Source {
    /// A PostgreSQL.
    Postgres(Postgres),
    /// A Redis.
    Redis(Box<Redis>),
}

impl Source {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// There is nothing to check a certificate against.
    pub fn new(settings: &Settings) -> Result<Self, String> {
        Ok(match &settings.source {
            SourceSettings::Postgres(postgres) => Source::Postgres(Postgres::new(postgres)?),
            SourceSettings::Redis(redis) => {
                Source::Redis(Box::new(Redis::new(redis, WORK_MAX.max(settings.timeout))))
            }
        })
    }

    /// Connections in use, and idle ones.
    pub fn connections(&self) -> (usize, usize) {
        match self {
            Source::Postgres(postgres) => postgres.connections(),
            Source::Redis(redis) => redis.connections(),
        }
    }

    async fn ask(&self, user: &str, waiting: Waiting) -> Result<Option<Arc<str>>, Failure> {
        match self {
            Source::Postgres(postgres) => postgres.ask(user, waiting).await,
            Source::Redis(redis) => redis.ask(user, waiting).await,
        }
    }

    /// Whether it can be asked at all.
    async fn check(&self) -> Result<(), Failure> {
        match self {
            Source::Postgres(postgres) => postgres.check().await,
            Source::Redis(redis) => {
                redis.connected().await;
                redis.greet().await
            }
        }
    }

    /// Looks a user up, or anything, within `budget`.
    async fn probe(
        &self,
        user: Option<&str>,
        budget: Duration,
        waiting: Waiting,
    ) -> Result<Option<Option<Arc<str>>>, Failure> {
        match (self, user) {
            (Source::Postgres(postgres), user) => {
                drop(waiting);
                postgres.probe(user, budget).await
            }
            (Source::Redis(redis), Some(user)) => {
                let answer = timeout(budget, redis.ask(user, waiting)).await;
                answer.unwrap_or(Err(Failure::Timeout)).map(Some)
            }
            (Source::Redis(redis), None) => {
                let answer = timeout(budget, redis.greet()).await;
                answer.unwrap_or(Err(Failure::Timeout)).map(|()| None)
            }
        }
    }

    /// Looks after what nobody else does.
    async fn tend(&self) {
        match self {
            Source::Postgres(_) => {}
            Source::Redis(redis) => redis.tend().await,
        }
    }
}

/// Runs until nobody can ask any more. Tells once whether it has started.
pub fn run(
    shared: Arc<Shared>,
    inbox: mpsc::Receiver<Job>,
    started: &SyncSender<Option<StartError>>,
) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
    match runtime {
        Ok(runtime) => {
            runtime.block_on(serve(shared, inbox, started));
            runtime.shutdown_background();
        }
        Err(error) => {
            let _ = started.send(Some(StartError::Thread(error)));
        }
    }
}

async fn serve(
    shared: Arc<Shared>,
    mut inbox: mpsc::Receiver<Job>,
    started: &SyncSender<Option<StartError>>,
) {
    let service = Rc::new(Service::new(shared));
    if let Source::Redis(_) = service.shared.source {
        let service = Rc::clone(&service);
        spawn_local(async move {
            if let Source::Redis(redis) = &service.shared.source {
                redis.drive().await;
            }
        });
    }
    let error = service.first_look().await;
    let is_refused = error.is_some();
    // Whoever started it waits for this.
    if started.send(error).is_err() || is_refused {
        return;
    }
    spawn_local(Rc::clone(&service).tend());
    while let Some(job) = inbox.recv().await {
        service.take(job);
    }
}

/// A look-up under way.
#[derive(Default)]
struct Flight {
    waiters: Vec<oneshot::Sender<Answer>>,
    /// Nobody waits any more.
    is_late: bool,
}

struct Service {
    shared: Arc<Shared>,
    flights: RefCell<HashMap<Rc<str>, Flight>>,
    /// The user whose look-up failed last: who is worth asking for, to see whether it works.
    failed_user: RefCell<Option<Rc<str>>>,
    last_contact: Cell<Instant>,
    /// Looks in a row that came to nothing.
    vain_looks: Cell<u32>,
    /// What was last said of the query.
    complaint: RefCell<Option<String>>,
    complained_of_users_at: Cell<Option<Instant>>,
}

impl Service {
    fn new(shared: Arc<Shared>) -> Self {
        Service {
            shared,
            flights: RefCell::default(),
            failed_user: RefCell::default(),
            last_contact: Cell::new(monotonic()),
            vain_looks: Cell::new(0),
            complaint: RefCell::default(),
            complained_of_users_at: Cell::new(None),
        }
    }

    /// Whether to start at all. A database that is away is no reason against it.
    async fn first_look(&self) -> Option<StartError> {
        let looked = timeout(START_MAX, self.shared.source.check()).await;
        match looked.unwrap_or(Err(Failure::Timeout)) {
            Ok(()) | Err(Failure::User(_)) => {
                tracing::info!(server = self.server(), "subscriptions can be looked up");
                self.last_contact.set(monotonic());
                None
            }
            Err(Failure::Query(why)) => Some(StartError::Query(why)),
            Err(error @ (Failure::Lost(_) | Failure::Timeout)) => {
                tracing::warn!(
                    server = self.server(),
                    error = %error,
                    "the database of subscriptions is not there yet, the default tier holds"
                );
                // No request has to find out by waiting.
                self.shared.is_well.store(false, Ordering::Relaxed);
                for _ in 0..FAILURES_IN_A_ROW {
                    if let Some(state) =
                        self.shared.breaker.record(Outcome::Bad, monotonic(), jitter())
                    {
                        self.shared.stats.count_transition(state);
                    }
                }
                None
            }
        }
    }

    /// Begins a look-up, or joins the one that is under way for the same user.
    fn take(self: &Rc<Self>, job: Job) {
        let Job { user, asked_at, reply } = job;
        let tell = |reply: Option<oneshot::Sender<Answer>>, answer| {
            // Whoever waited may be gone.
            reply.map(|reply| reply.send(answer).ok())
        };
        let mut flights = self.flights.borrow_mut();
        if let Some(flight) = flights.get_mut(&*user) {
            if flight.is_late {
                tell(reply, Answer::Late);
            } else {
                flight.waiters.extend(reply);
            }
            return;
        }
        // Answered while this one was on its way here.
        if reply.is_some()
            && let Recalled::Fresh(bought) = self.shared.memory.recall(&user, monotonic())
        {
            tell(reply, Answer::Bought(bought));
            return;
        }
        let most = if reply.is_some() { FLIGHTS_MAX } else { REFRESHES_MAX };
        if flights.len() >= most {
            tell(reply, Answer::Overload);
            return;
        }
        let user: Rc<str> = user.into();
        let flight = Flight { waiters: reply.into_iter().collect(), is_late: false };
        flights.insert(Rc::clone(&user), flight);
        drop(flights);
        let waiting = Waiting::new(&self.shared.stats);
        spawn_local(Rc::clone(self).fly(user, asked_at, waiting));
    }

    /// One look-up to its end. Those who wait are told within the timeout; the answer is
    /// remembered even if it comes later.
    async fn fly(self: Rc<Self>, user: Rc<str>, asked_at: Instant, waiting: Waiting) {
        let budget = self.shared.settings.timeout;
        let most = WORK_MAX.max(budget);
        let left = budget.saturating_sub(monotonic().saturating_duration_since(asked_at));
        let mut work = pin!(timeout(most, self.shared.source.ask(&user, waiting)));
        let (result, is_late) = match timeout(left, work.as_mut()).await {
            Ok(result) => (result, false),
            Err(_) => {
                self.shared.stats.count_timeout();
                self.note_bad(&Failure::Timeout, Some(&user));
                self.shared.memory.failed(&user, monotonic());
                self.tell(&user, &Answer::Late);
                (work.await, true)
            }
        };
        let result = result.unwrap_or(Err(Failure::Timeout));
        let now = monotonic();
        let took = now.saturating_duration_since(asked_at);
        let is_slow = took > self.shared.settings.slow;
        if is_slow {
            self.shared.stats.count_slow();
        }
        if is_slow || is_late {
            let at = Clock::System.now();
            let call = SlowCall::new(QueryType::Database, at, took, is_late);
            self.shared.slow_calls.note(call, now);
        }
        // The memory first: who asks once the flight has landed finds it there.
        let answer = match result {
            Ok(plan) => {
                let bought = bought(plan);
                self.shared.memory.answered(&user, bought.clone(), now);
                if !is_late {
                    self.note_good();
                }
                Answer::Bought(bought)
            }
            Err(error) => {
                self.shared.memory.failed(&user, now);
                if !is_late {
                    self.note_bad(&error, Some(&user));
                }
                Answer::Failed
            }
        };
        self.tell(&user, &answer);
        self.flights.borrow_mut().remove(&user);
    }

    /// Tells all who wait; from now on nobody does.
    fn tell(&self, user: &str, answer: &Answer) {
        if let Some(flight) = self.flights.borrow_mut().get_mut(user) {
            flight.is_late = true;
            for waiter in flight.waiters.drain(..) {
                // Whoever waited may be gone.
                let _ = waiter.send(answer.clone());
            }
        }
    }

    /// Looks after the database: while it is away, while it is doubtful, and when nothing was
    /// heard of it for long.
    async fn tend(self: Rc<Self>) {
        loop {
            let intervals = (1 + self.vain_looks.get() / 4).min(TEND_INTERVALS_MAX);
            tokio::time::sleep((TEND_INTERVAL * intervals).mul_f64(1.0 + jitter() / 5.0)).await;
            self.shared.source.tend().await;
            let breaker = &self.shared.breaker;
            if breaker.is_closed() {
                let since = monotonic().saturating_duration_since(self.last_contact.get());
                let is_well = self.shared.is_well.load(Ordering::Relaxed);
                if !is_well || since >= LOOK_AFTER {
                    match self.look().await {
                        Ok(()) => self.note_contact(),
                        Err(error) => self.note_bad(&error, None),
                    }
                }
                continue;
            }
            let opened_at = breaker.opened_at();
            let Some(probe) = breaker.try_probe(monotonic(), jitter()) else { continue };
            let outcome = match self.look().await {
                Ok(()) => Outcome::Good,
                Err(error) => {
                    self.complain(&error);
                    Outcome::Bad
                }
            };
            let changed = probe.end(outcome, monotonic(), jitter());
            if outcome == Outcome::Good {
                self.note_contact();
            }
            self.note_change(changed, opened_at);
        }
    }

    /// Whether the database answers in time: asked for the user whose look-up failed last.
    async fn look(&self) -> Result<(), Failure> {
        let user = self.failed_user.borrow().clone();
        let waiting = Waiting::new(&self.shared.stats);
        let budget = self.shared.settings.timeout;
        let started = monotonic();
        let answer = self.shared.source.probe(user.as_deref(), budget, waiting).await;
        let result = match &answer {
            Ok(_) | Err(Failure::User(_)) => CheckResult::Ok,
            Err(Failure::Timeout) => CheckResult::Timeout,
            Err(Failure::Lost(_) | Failure::Query(_)) => CheckResult::Error,
        };
        let took = monotonic().saturating_duration_since(started);
        self.shared.stats.checks().record(result, took);
        self.vain_looks.set(match &answer {
            Ok(_) | Err(Failure::User(_)) => 0,
            Err(_) => self.vain_looks.get().saturating_add(1),
        });
        match answer {
            Ok(plan) => {
                if let (Some(user), Some(plan)) = (user, plan) {
                    self.shared.memory.answered(&user, bought(plan), monotonic());
                    self.failed_user.take();
                }
                Ok(())
            }
            // It answers. Of others there is nothing to be feared.
            Err(Failure::User(_)) => {
                self.failed_user.take();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn note_good(&self) {
        self.shared.breaker.record(Outcome::Good, monotonic(), 0.0);
        self.note_contact();
    }

    fn note_contact(&self) {
        self.last_contact.set(monotonic());
        self.shared.is_well.store(true, Ordering::Relaxed);
        if self.complaint.take().is_some() {
            tracing::info!(server = self.server(), "the query of subscriptions works");
        }
    }

    fn note_bad(&self, error: &Failure, user: Option<&Rc<str>>) {
        self.complain(error);
        if let Failure::User(_) = error {
            return self.note_good();
        }
        if let Some(user) = user {
            self.failed_user.replace(Some(Rc::clone(user)));
        }
        self.shared.is_well.store(false, Ordering::Relaxed);
        if let Some(state) = self.shared.breaker.record(Outcome::Bad, monotonic(), jitter()) {
            self.shared.stats.count_transition(state);
            tracing::warn!(
                server = self.server(),
                error = %error,
                "the database of subscriptions is unavailable, last answers and the default tier hold"
            );
        }
    }

    fn note_change(&self, changed: Option<BreakerState>, opened_at: Option<Instant>) {
        let Some(state) = changed else { return };
        self.shared.stats.count_transition(state);
        if state == BreakerState::Closed {
            let away = opened_at.map_or(Duration::ZERO, |at| monotonic().duration_since(at));
            tracing::info!(
                server = self.server(),
                unavailable_ms = u64::try_from(away.as_millis()).unwrap_or(u64::MAX),
                "the database of subscriptions is back"
            );
        }
    }

    /// Says what does not mend itself: of the query once for each error, of users now and then.
    fn complain(&self, error: &Failure) {
        match error {
            Failure::Lost(_) | Failure::Timeout => {}
            Failure::Query(why) => {
                if self.complaint.borrow().as_ref() != Some(why) {
                    tracing::error!(
                        server = self.server(),
                        error = why,
                        "the database of subscriptions refuses the query"
                    );
                    self.complaint.replace(Some(why.clone()));
                }
            }
            Failure::User(why) => {
                let now = monotonic();
                let last = self.complained_of_users_at.get();
                if last.is_none_or(|at| now.saturating_duration_since(at) >= COMPLAINT_INTERVAL) {
                    self.complained_of_users_at.set(Some(now));
                    tracing::warn!(
                        server = self.server(),
                        error = why,
                        "a user's subscription cannot be looked up"
                    );
                }
            }
        }
    }

    fn server(&self) -> String {
        match &self.shared.settings.source {
            SourceSettings::Postgres(postgres) => postgres.target.to_string(),
            SourceSettings::Redis(redis) => redis.target.to_string(),
        }
    }
}

fn bought(plan: Option<Arc<str>>) -> Bought {
    plan.map_or(Bought::None, Bought::Plan)
}
