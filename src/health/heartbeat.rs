//! Whether the workers' event loops still turn.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A heart that has not beaten for so long counts as stopped.
pub const STOPPED_AFTER: Duration = Duration::from_secs(5);
/// How often a worker should beat.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// One heart for each worker.
#[derive(Debug)]
pub struct Heartbeats {
    started: Instant,
    /// Milliseconds after the start.
    beats: Box<[AtomicU64]>,
}

impl Heartbeats {
    /// So many hearts, all of which beat at `now`.
    pub fn new(workers: usize, now: Instant) -> Self {
        Heartbeats { started: now, beats: (0..workers).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The worker's event loop has come round.
    pub fn beat(&self, worker: usize, now: Instant) {
        if let Some(beat) = self.beats.get(worker) {
            beat.store(self.millis(now), Ordering::Relaxed);
        }
    }

    /// Workers whose heart has stopped.
    pub fn stopped(&self, now: Instant) -> usize {
        (0..self.beats.len()).filter(|worker| self.has_stopped(*worker, now)).count()
    }

    /// Whether the heart of this worker has stopped.
    pub fn has_stopped(&self, worker: usize, now: Instant) -> bool {
        let now = self.millis(now);
        let limit = u64::try_from(STOPPED_AFTER.as_millis()).unwrap_or(u64::MAX);
        let age = |beat: &AtomicU64| now.saturating_sub(beat.load(Ordering::Relaxed));
        self.beats.get(worker).is_some_and(|beat| age(beat) >= limit)
    }

    /// How many hearts there are.
    pub fn workers(&self) -> usize {
        self.beats.len()
    }

    /// How long ago each worker's heart has beaten last.
    pub fn ages(&self, now: Instant) -> impl Iterator<Item = Duration> {
        let now = self.millis(now);
        let age = move |beat: &AtomicU64| now.saturating_sub(beat.load(Ordering::Relaxed));
        self.beats.iter().map(move |beat| Duration::from_millis(age(beat)))
    }

    /// Whether any worker's heart beats. Without workers there is none that could have stopped.
    pub fn is_alive(&self, now: Instant) -> bool {
        self.beats.is_empty() || self.stopped(now) < self.beats.len()
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::monotonic;

    #[test]
    fn one_beating_heart_is_life_enough() {
        let start = monotonic();
        let hearts = Heartbeats::new(2, start);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(hearts.is_alive(at(4)), "a start counts as a beat");
        assert!(!hearts.is_alive(at(5)));
        hearts.beat(1, at(6));
        assert!(hearts.is_alive(at(10)));
        assert_eq!(hearts.stopped(at(10)), 1);
        assert!(!hearts.is_alive(at(11)));
        hearts.beat(7, at(11));
        assert!(!hearts.is_alive(at(11)), "a worker that does not exist");
        assert!(hearts.is_alive(start));
    }
}
