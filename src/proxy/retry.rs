//! How many requests may be asked of another upstream.
//!
//! A retry is one more call, and comes when upstreams do badly already. So there are only so many
//! of them for the requests that there are: what fails for all of them is not asked twice for all.

use std::time::Instant;

use parking_lot::Mutex;

use crate::health::recent::{Recent, SLOTS};
use crate::metrics::cells::PerShard;

/// Retries in each second whatever the requests, so that one of a few may be retried too.
pub const FLOOR_PER_SECOND: u32 = 3;
/// Threads that count apart; what is beyond shares their counters.
const SHARDS: usize = 32;
/// Seconds that are looked back at.
const WINDOW_SECONDS: u32 = SLOTS as u32;

/// What there may be of retries, of all workers together.
#[derive(Debug)]
pub struct Budget {
    percent: u32,
    made: Instant,
    requests: PerShard<Recent>,
    /// One at a time, so that no two spend the same.
    retries: Mutex<Recent>,
}

impl Budget {
    /// So many per cent of the requests of the last ten seconds, and [`FLOOR_PER_SECOND`] besides;
    /// of 0 per cent nothing at all.
    pub fn new(percent: u32, now: Instant) -> Self {
        Budget {
            percent,
            made: now,
            requests: PerShard::new(SHARDS),
            retries: Mutex::new(Recent::default()),
        }
    }

    /// Whether there are ever any.
    pub fn is_nothing(&self) -> bool {
        self.percent == 0
    }

    /// A request goes out for the first time.
    #[inline]
    pub fn requested(&self, now: Instant) {
        let slot = self.slot(now);
        self.requests.with_own(|recent| recent.note(slot));
    }

    /// Whether one may go out once more; if so, that is counted.
    pub fn spend(&self, now: Instant) -> bool {
        let slot = self.slot(now);
        let retries = self.retries.lock();
        if retries.count(slot) >= self.most(slot) {
            return false;
        }
        retries.note(slot);
        true
    }

    fn most(&self, slot: u32) -> u32 {
        if self.percent == 0 {
            return 0;
        }
        let requests = self.requests.iter().map(|recent| u64::from(recent.count(slot)));
        let share = requests.sum::<u64>().saturating_mul(u64::from(self.percent)) / 100;
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        share.saturating_add(FLOOR_PER_SECOND.saturating_mul(WINDOW_SECONDS))
    }

    fn slot(&self, now: Instant) -> u32 {
        let seconds = now.saturating_duration_since(self.made).as_secs();
        u32::try_from(seconds).unwrap_or(u32::MAX).saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn spent(budget: &Budget, wanted: usize, now: Instant) -> usize {
        (0..wanted).filter(|_| budget.spend(now)).count()
    }

    #[test]
    fn a_fifth_of_the_requests_and_three_a_second_may_be_retried() {
        let start = crate::clock::monotonic();
        let budget = Budget::new(20, start);
        (0..1_000).for_each(|_| budget.requested(start));
        assert_eq!(spent(&budget, 1_000, start), 200 + 30);
        let later = start + Duration::from_secs(5);
        (0..100).for_each(|_| budget.requested(later));
        assert_eq!(spent(&budget, 1_000, later), 20, "the others count still");
        let much_later = start + Duration::from_secs(14);
        assert_eq!(spent(&budget, 1_000, much_later), 30, "20 of them spent before");
        assert_eq!(spent(&budget, 1_000, start + Duration::from_secs(60)), 30, "nobody asks");
    }

    #[test]
    fn nothing_is_nothing() {
        let start = crate::clock::monotonic();
        let budget = Budget::new(0, start);
        (0..1_000).for_each(|_| budget.requested(start));
        assert!(budget.is_nothing() && !budget.spend(start));
    }

    #[test]
    fn threads_spend_no_more_together() {
        let start = crate::clock::monotonic();
        let budget = Budget::new(100, start);
        let all: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    let budget = &budget;
                    scope.spawn(move || {
                        (0..10).for_each(|_| budget.requested(start));
                        spent(budget, 100, start)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!((30..=80 + 30).contains(&all), "{all}");
    }
}
