//! What is remembered of each user: the last answer and how old it is, or that there was none.
//!
//! Bounded; who has not been asked for goes first. Reads take a shared lock of one of many shards
//! and write nothing. Only the thread that asks the database writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;

use crate::health::breaker::jitter;

use super::Bought;

/// Users whose answer is kept: some 25 MB where users and subscriptions have short names.
pub const USERS_MAX: usize = 100_000;
/// An answer that is older says nothing any more, however long the database is away.
pub const STALE_MAX: Duration = Duration::from_secs(24 * 3_600);
/// A user whose look-up failed is not looked up again sooner; half as long again for some.
pub const RETRY_AFTER: Duration = Duration::from_secs(2);
/// No entry stays fresh up to this part of its time longer than another.
const TTL_SPREAD: f64 = 0.1;

/// What is known of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recalled {
    /// As good as asked.
    Fresh(Bought),
    /// Past its time, but better than nothing.
    Stale {
        /// The last answer.
        bought: Bought,
        /// Whether the caller is the one that has to see to a new one.
        is_to_refresh: bool,
    },
    /// The last look-up failed, a moment ago.
    Failed,
    /// Nothing.
    Nothing,
}

#[derive(Debug)]
struct Entry {
    /// [`Bought::Unknown`] where the look-up failed.
    bought: Bought,
    /// Milliseconds after the start, as the other two.
    fresh_until: u64,
    stale_until: u64,
    /// From when on a stale answer may be asked for again.
    refresh_from: AtomicU64,
}

/// What is remembered of each user.
#[derive(Debug)]
pub struct Memory {
    started: Instant,
    ttl: Duration,
    users: Cache<Box<str>, Arc<Entry>>,
}

impl Memory {
    /// Nothing yet. Answers are fresh for about `ttl`.
    pub fn new(ttl: Duration, now: Instant) -> Self {
        Memory { started: now, ttl, users: Cache::new(USERS_MAX) }
    }

    /// What is known of this user.
    pub fn recall(&self, user: &str, now: Instant) -> Recalled {
        let Some(entry) = self.users.get(user) else { return Recalled::Nothing };
        let now = self.millis(now);
        if now < entry.fresh_until {
            return match &entry.bought {
                Bought::Unknown => Recalled::Failed,
                bought => Recalled::Fresh(bought.clone()),
            };
        }
        if now >= entry.stale_until {
            return Recalled::Nothing;
        }
        let from = entry.refresh_from.load(Ordering::Relaxed);
        let is_to_refresh = now >= from
            && entry
                .refresh_from
                .compare_exchange(
                    from,
                    now.saturating_add(retry_after()),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok();
        Recalled::Stale { bought: entry.bought.clone(), is_to_refresh }
    }

    /// The database answered.
    pub fn answered(&self, user: &str, bought: Bought, now: Instant) {
        let now = self.millis(now);
        let ttl = self.ttl.mul_f64(1.0 - TTL_SPREAD * jitter());
        let fresh_until = now.saturating_add(whole_millis(ttl).max(1));
        let stale_until = now.saturating_add(whole_millis(STALE_MAX)).max(fresh_until);
        self.users.insert(user.into(), entry(bought, fresh_until, stale_until));
    }

    /// The database did not answer. What it said before goes on to hold.
    pub fn failed(&self, user: &str, now: Instant) {
        let now = self.millis(now);
        let until = now.saturating_add(retry_after());
        match self.users.peek(user) {
            Some(entry) if entry.bought != Bought::Unknown && now < entry.stale_until => {
                entry.refresh_from.store(until, Ordering::Relaxed);
            }
            _ => self.users.insert(user.into(), entry(Bought::Unknown, until, until)),
        }
    }

    /// Users who are remembered.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn millis(&self, now: Instant) -> u64 {
        whole_millis(now.saturating_duration_since(self.started))
    }
}

fn entry(bought: Bought, fresh_until: u64, stale_until: u64) -> Arc<Entry> {
    let refresh_from = AtomicU64::new(fresh_until);
    Arc::new(Entry { bought, fresh_until, stale_until, refresh_from })
}

fn retry_after() -> u64 {
    whole_millis(RETRY_AFTER.mul_f64(1.0 + jitter() / 2.0))
}

fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    fn pro() -> Bought {
        Bought::Plan("pro".into())
    }

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn an_answer_is_fresh_then_stale_then_gone() {
        let start = crate::clock::monotonic();
        let memory = Memory::new(TTL, start);
        assert_eq!(memory.recall("anna", start), Recalled::Nothing);
        memory.answered("anna", pro(), start);
        memory.answered("bert", Bought::None, start);
        assert_eq!(memory.recall("anna", at(start, 53)), Recalled::Fresh(pro()));
        assert_eq!(memory.recall("bert", at(start, 53)), Recalled::Fresh(Bought::None));
        let stale = |is_to_refresh| Recalled::Stale { bought: pro(), is_to_refresh };
        assert_eq!(memory.recall("anna", at(start, 61)), stale(true));
        assert_eq!(memory.recall("anna", at(start, 61)), stale(false), "one is enough");
        assert_eq!(memory.recall("anna", at(start, 65)), stale(true), "nothing came of it");
        let day = STALE_MAX.as_secs();
        assert_eq!(memory.recall("anna", at(start, day - 1)), stale(true));
        assert_eq!(memory.recall("anna", at(start, day)), Recalled::Nothing);
    }

    #[test]
    fn a_failure_is_remembered_for_a_moment_and_takes_nothing_away() {
        let start = crate::clock::monotonic();
        let memory = Memory::new(TTL, start);
        memory.failed("anna", start);
        assert_eq!(memory.recall("anna", at(start, 1)), Recalled::Failed);
        assert_eq!(memory.recall("anna", at(start, 3)), Recalled::Nothing);
        memory.answered("anna", pro(), start);
        memory.failed("anna", at(start, 70));
        let stale = |is_to_refresh| Recalled::Stale { bought: pro(), is_to_refresh };
        assert_eq!(memory.recall("anna", at(start, 71)), stale(false));
        assert_eq!(memory.recall("anna", at(start, 73)), stale(true));
        memory.failed("anna", at(start, STALE_MAX.as_secs() + 1));
        let later = at(start, STALE_MAX.as_secs() + 2);
        assert_eq!(memory.recall("anna", later), Recalled::Failed);
    }

    #[test]
    fn a_time_longer_than_stale_answers_are_kept_holds_all_the_same() {
        let start = crate::clock::monotonic();
        let memory = Memory::new(STALE_MAX * 10, start);
        memory.answered("anna", pro(), start);
        let later = start + STALE_MAX * 8;
        assert_eq!(memory.recall("anna", later), Recalled::Fresh(pro()));
    }

    #[test]
    fn it_is_bounded() {
        let start = crate::clock::monotonic();
        let memory = Memory::new(TTL, start);
        for user in 0..2 * USERS_MAX {
            memory.answered(&user.to_string(), Bought::None, start);
        }
        assert!(memory.users.len() <= USERS_MAX, "{}", memory.users.len());
    }
}
