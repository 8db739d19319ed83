//! Between this replica and Redis: whether it decides alone, and what Redis's clock says.
//!
//! From the breaker's opening on, a replica decides by its share; and still once Redis is back, until
//! it has told it what it let pass, and all the others have, too. See [`super::recovery`].

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use crate::clock::Clock;
use crate::limiter::time::{Micros, Timestamp};

/// By how much what was heard is kept less exactly than it could be, so that the workers need not
/// write for each answer.
const STEP_US: u64 = 1_000;
/// Within what time an answer is heard while there are any: the watcher's, and its jitter.
const LOOKED_FOR: Micros = Micros::from_micros(300_000);

/// The state of things between this replica and Redis.
#[derive(Debug)]
pub struct Outage {
    is_apart: AtomicBool,
    /// Whether Redis has lost what it was told.
    is_lost: AtomicBool,
    /// Whether something may be left that Redis was not told of.
    owes: AtomicBool,
    /// The right to tell it.
    is_recovering: AtomicBool,
    /// Time of the last answer, by Redis's clock.
    heard_us: AtomicU64,
    /// By how much that is ahead of this machine's; below 0: behind.
    ahead_us: AtomicI64,
}

/// The right to tell Redis what was let pass alone.
#[derive(Debug)]
pub struct Recovering<'o>(&'o Outage);

impl Drop for Recovering<'_> {
    fn drop(&mut self) {
        self.0.is_recovering.store(false, Ordering::Release);
    }
}

impl Outage {
    /// None.
    pub fn new() -> Self {
        Outage {
            is_apart: AtomicBool::new(false),
            is_lost: AtomicBool::new(false),
            owes: AtomicBool::new(false),
            is_recovering: AtomicBool::new(false),
            heard_us: AtomicU64::new(0),
            ahead_us: AtomicI64::new(0),
        }
    }

    /// Whether this replica decides by its share, Redis answering or not.
    pub fn is_apart(&self) -> bool {
        self.is_apart.load(Ordering::Acquire)
    }

    /// From now on it does.
    pub fn part(&self) {
        self.is_apart.store(true, Ordering::Release);
    }

    /// From now on Redis decides again.
    pub fn rejoin(&self) {
        self.is_apart.store(false, Ordering::Release);
    }

    /// Whether Redis has lost what it was told before, and was not told again.
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }

    /// Redis has lost what it was told, or has been told again.
    pub fn set_lost(&self, is_lost: bool) {
        self.is_lost.store(is_lost, Ordering::Release);
    }

    /// Whether something may be left to tell. Asked for, it is somebody's to do.
    pub fn takes_debt(&self) -> bool {
        self.owes.load(Ordering::Relaxed) && self.owes.swap(false, Ordering::AcqRel)
    }

    /// Something is left to tell.
    pub fn owe(&self) {
        self.owes.store(true, Ordering::Release);
    }

    /// The right to tell Redis, unless somebody has it.
    pub fn recovering(&self) -> Option<Recovering<'_>> {
        let is_free = !self.is_recovering.swap(true, Ordering::AcqRel);
        is_free.then(|| Recovering(self))
    }

    /// Redis has answered, at `now` by its clock.
    pub fn hear(&self, now: Timestamp) {
        let (heard, here) = (now.as_micros(), Clock::System.now().as_micros());
        let ahead = i64::try_from(heard).unwrap_or(i64::MAX).saturating_sub_unsigned(here);
        if self.ahead_us.load(Ordering::Relaxed).abs_diff(ahead) >= STEP_US {
            self.ahead_us.store(ahead, Ordering::Relaxed);
        }
        if self.heard_us.load(Ordering::Relaxed).abs_diff(heard) >= STEP_US {
            self.heard_us.store(heard, Ordering::Relaxed);
        }
    }

    /// Redis has answered, and did not say what its clock shows.
    pub fn hear_of(&self) {
        if self.heard() > Timestamp::EPOCH {
            self.heard_us.store(self.now().as_micros(), Ordering::Relaxed);
        }
    }

    /// When Redis may last have answered others, by its clock: no later than `now`.
    pub fn lost(&self, now: Timestamp) -> Timestamp {
        now.min(self.heard().plus(LOOKED_FOR))
    }

    /// When Redis has last answered anything, by its clock; the epoch if it never has.
    pub fn heard(&self) -> Timestamp {
        Timestamp::from_micros(self.heard_us.load(Ordering::Relaxed))
    }

    /// What Redis's clock shows when this machine's shows `here`.
    pub fn there(&self, here: Timestamp) -> Timestamp {
        let ahead = self.ahead_us.load(Ordering::Relaxed);
        Timestamp::from_micros(here.as_micros().saturating_add_signed(ahead))
    }

    /// The same now.
    pub fn now(&self) -> Timestamp {
        self.there(Clock::System.now())
    }

    /// When a call that is made now and may take `budget` is no longer waited for, by Redis's
    /// clock; `None`: that is not known. With room for what is not known of that clock.
    pub fn too_late(&self, budget: std::time::Duration) -> Option<Timestamp> {
        if self.heard() == Timestamp::EPOCH {
            return None;
        }
        let budget = u64::try_from(budget.as_micros()).unwrap_or(u64::MAX);
        let span = Micros::from_micros(budget.saturating_mul(2));
        Some(self.now().plus(span))
    }
}
