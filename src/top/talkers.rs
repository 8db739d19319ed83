//! The counters of all workers, and how they get from these to whoever asks.
//!
//! Each worker has a lock of its own, which nobody but a reader contends for, and that for a few
//! microseconds. A worker that meets it does not wait: it keeps what it had to say for the next
//! time, at its next tick at the latest.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::policy::identity::Identity;

use super::minutes::{MINUTES_MAX, Minute, Minutes};
use super::space_saving::SpaceSaving;
use super::summary::{Item, Summary};

/// Minutes that a worker has closed and nobody has collected; the oldest two become one rather than
/// that there are more. They are collected every few seconds.
const CLOSED_MAX: usize = 4;
/// Events that a worker keeps while a reader holds its lock. Those above it are anybody's.
const PENDING_MAX: usize = 256;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Requests that were refused by a limit, with 429.
    Blocked,
    /// Requests that limits were evaluated for, those that were refused among them.
    Requests,
}

/// The counters of all workers. Those of a running minute take some 30 KB for each worker, 100 KB if
/// every identity is as long as one may be; the minutes that are over are kept once for all.
pub struct TopTalkers {
    started: Instant,
    seed: RandomState,
    workers: Box<[OwnLine<Mutex<Counting>>]>,
    over: Mutex<Minutes>,
}

/// On cache lines of its own, so that workers do not slow each other.
#[repr(align(128))]
#[derive(Debug, Default)]
struct OwnLine<T>(T);

/// What one worker counts.
#[derive(Debug, Default)]
struct Counting {
    minute: u64,
    requests: SpaceSaving,
    blocked: SpaceSaving,
    missed: Missed,
    closed: VecDeque<Minute>,
}

/// Events of which is not known whose they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Missed {
    requests: u64,
    blocked: u64,
}

impl TopTalkers {
    /// For so many workers; minutes are counted from `started`.
    pub fn new(workers: usize, started: Instant) -> Self {
        TopTalkers {
            started,
            seed: RandomState::new(),
            workers: (0..workers.max(1)).map(|_| OwnLine::default()).collect(),
            over: Mutex::default(),
        }
    }

    /// The most frequent of the running minute and the `minutes` before it, at most `limit` of
    /// them: nothing of that span is left out, and what is older by less than a minute may be in.
    pub fn top(&self, by: By, minutes: u64, limit: usize, now: Instant) -> Vec<Item> {
        let now = self.minute_of(now);
        let from = now.saturating_sub(minutes.min(MINUTES_MAX));
        let of = |minute: Minute| match by {
            By::Blocked => minute.blocked,
            By::Requests => minute.requests,
        };
        let mut over = self.over.lock();
        // In one look at each worker: a minute that it closed meanwhile would be seen nowhere.
        let mut parts = Vec::new();
        self.take_closed(&mut over, now, |counting| parts.push(counting.running()));
        parts.extend(over.since(from).cloned());
        drop(over);
        let parts = parts.into_iter().filter(|it| it.number >= from).map(of);
        Summary::merged(parts, usize::MAX).top(limit)
    }

    /// Takes over what workers have closed, and what one has left open that had nothing to do
    /// since. To be called every few seconds, and not on a worker.
    pub fn collect(&self, now: Instant) {
        self.take_closed(&mut self.over.lock(), self.minute_of(now), |_| ());
    }

    /// Holds a worker's lock, as a reader does.
    #[cfg(test)]
    pub fn hold(&self, worker: usize) -> impl Drop + '_ {
        self.workers[worker].0.lock()
    }

    fn take_closed(&self, over: &mut Minutes, now: u64, mut look: impl FnMut(&Counting)) {
        for worker in &self.workers {
            let closed = {
                let mut counting = worker.0.lock();
                if counting.minute < now {
                    counting.close();
                }
                look(&counting);
                std::mem::take(&mut counting.closed)
            };
            for minute in closed {
                over.add(minute, now);
            }
        }
        over.forget(now);
    }

    fn minute_of(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_secs() / 60
    }
}

impl fmt::Debug for TopTalkers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TopTalkers").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}

impl Counting {
    fn record(&mut self, identity: &Identity, at: Event) {
        if at.minute > self.minute {
            self.close();
            self.minute = at.minute;
        }
        self.requests.record(identity, at.hash);
        if at.is_blocked {
            self.blocked.record(identity, at.hash);
        }
    }

    /// What was counted of the running minute.
    fn running(&self) -> Minute {
        Minute {
            number: self.minute,
            requests: self.requests.summary().with_missed(self.missed.requests),
            blocked: self.blocked.summary().with_missed(self.missed.blocked),
        }
    }

    /// Ends the running minute.
    fn close(&mut self) {
        if self.requests.total() == 0 && self.missed == Missed::default() {
            return;
        }
        let minute = self.running();
        self.requests.clear();
        self.blocked.clear();
        self.missed = Missed::default();
        self.closed.push_back(minute);
        if self.closed.len() > CLOSED_MAX
            && let (Some(first), Some(second)) = (self.closed.pop_front(), self.closed.pop_front())
        {
            self.closed.push_front(first.merged(second));
        }
    }
}

/// A worker's side: what it tells of each request.
#[derive(Debug)]
pub struct Reporter {
    talkers: Arc<TopTalkers>,
    worker: usize,
    own: RefCell<Pending>,
}

/// What a worker has not told yet.
#[derive(Debug, Default)]
struct Pending {
    minute: u64,
    events: Vec<(Identity, Event)>,
    missed: Missed,
}

/// A request, whoever's it was.
#[derive(Clone, Copy, Debug)]
struct Event {
    /// Of the identity.
    hash: u64,
    minute: u64,
    is_blocked: bool,
}

impl Reporter {
    /// For the worker of this number.
    pub fn new(talkers: Arc<TopTalkers>, worker: usize) -> Self {
        Reporter { talkers, worker, own: RefCell::default() }
    }

    /// A request of this identity was allowed or refused. Never waits.
    pub fn record(&self, identity: &Identity, is_blocked: bool) {
        if cfg!(feature = "without-signals") {
            return;
        }
        let hash = self.talkers.seed.hash_one(identity);
        let mut own = self.own.borrow_mut();
        let event = Event { hash, minute: own.minute, is_blocked };
        if let Some(mut counting) = self.counting() {
            own.tell(&mut counting);
            counting.record(identity, event);
        } else {
            own.keep(identity, event);
        }
    }

    /// The time has gone on: to be called several times a second. Tells what is still to tell.
    pub fn tick(&self, now: Instant) {
        let mut own = self.own.borrow_mut();
        own.minute = self.talkers.minute_of(now);
        if own.has_something()
            && let Some(mut counting) = self.counting()
        {
            own.tell(&mut counting);
        }
    }

    fn counting(&self) -> Option<parking_lot::MutexGuard<'_, Counting>> {
        self.talkers.workers.get(self.worker)?.0.try_lock()
    }
}

impl Pending {
    fn keep(&mut self, identity: &Identity, event: Event) {
        if self.events.len() < PENDING_MAX {
            self.events.push((identity.clone(), event));
        } else {
            self.missed.requests = self.missed.requests.saturating_add(1);
            let blocked = u64::from(event.is_blocked);
            self.missed.blocked = self.missed.blocked.saturating_add(blocked);
        }
    }

    fn has_something(&self) -> bool {
        // Events are missed only where others are kept.
        !self.events.is_empty()
    }

    fn tell(&mut self, counting: &mut Counting) {
        if !self.has_something() {
            return;
        }
        for (identity, event) in self.events.drain(..) {
            counting.record(&identity, event);
        }
        let Missed { requests, blocked } = std::mem::take(&mut self.missed);
        counting.missed.requests = counting.missed.requests.saturating_add(requests);
        counting.missed.blocked = counting.missed.blocked.saturating_add(blocked);
    }
}
