//! The minutes that are over, of all workers together.

use std::collections::VecDeque;

use super::space_saving::COUNTERS;
use super::summary::Summary;

/// Minutes that are kept beside the running one. With [`COUNTERS`] counters of 40 bytes for each of
/// two streams they take 480 KB, and 4.4 MB if every identity is as long as one may be.
pub const MINUTES_MAX: u64 = 60;

/// What was counted in one minute.
#[derive(Clone, Debug, Default)]
pub struct Minute {
    /// Which one: minutes since the start.
    pub number: u64,
    /// Every request that limits were evaluated for.
    pub requests: Summary,
    /// Those of them that were refused.
    pub blocked: Summary,
}

impl Minute {
    /// Both as one, with the later one's number.
    pub fn merged(self, other: Minute) -> Minute {
        Minute {
            number: self.number.max(other.number),
            requests: Summary::merged([self.requests, other.requests], COUNTERS),
            blocked: Summary::merged([self.blocked, other.blocked], COUNTERS),
        }
    }
}

/// The last minutes, oldest first, each once.
#[derive(Debug, Default)]
pub struct Minutes {
    minutes: VecDeque<Minute>,
}

impl Minutes {
    /// Adds what one worker has counted in a minute, and forgets what is too old by `now`.
    pub fn add(&mut self, minute: Minute, now: u64) {
        let place = self.minutes.partition_point(|it| it.number < minute.number);
        match self.minutes.get_mut(place) {
            Some(same) if same.number == minute.number => {
                *same = std::mem::take(same).merged(minute);
            }
            _ => self.minutes.insert(place, minute),
        }
        self.forget(now);
    }

    /// Forgets what is too old by `now`.
    pub fn forget(&mut self, now: u64) {
        let is_old = |it: &Minute| it.number.saturating_add(MINUTES_MAX) < now;
        while self.minutes.front().is_some_and(is_old) {
            self.minutes.pop_front();
        }
    }

    /// Those of number `from` and later.
    pub fn since(&self, from: u64) -> impl Iterator<Item = &Minute> {
        self.minutes.iter().filter(move |it| it.number >= from)
    }
}
