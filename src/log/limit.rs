//! Keeps tollgate's own log readable, and cheap, whatever callers and dependencies do: of one kind
//! of line only so many are written.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use crate::clock;

/// The target of lines that say what operators changed: all of them are written, whatever the level
/// but `off`.
pub const AUDIT: &str = "tollgate::audit";
/// Lines of one kind at once, after a quiet time: a configuration may have many warnings.
pub const BURST: u32 = 100;
/// Lines of one kind a second from then on.
pub const PER_SECOND: u32 = 10;

/// A token bucket for each place in the code that logs. There are as many as the program has.
#[derive(Debug, Default)]
pub struct LineLimiter {
    sites: Mutex<HashMap<Identifier, Site>>,
    suppressed: AtomicU64,
}

#[derive(Debug)]
struct Site {
    metadata: &'static Metadata<'static>,
    bucket: Bucket,
    untold: u64,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// In thousandths.
    tokens: u64,
    last: Instant,
}

impl Bucket {
    const FULL: u64 = BURST as u64 * 1000;

    fn new(now: Instant) -> Self {
        Bucket { tokens: Self::FULL, last: now }
    }

    /// Whether one more may pass at `now`.
    fn take(&mut self, now: Instant) -> bool {
        let millis = now.saturating_duration_since(self.last).as_millis();
        let earned = u64::try_from(millis).unwrap_or(u64::MAX).saturating_mul(PER_SECOND.into());
        if earned > 0 {
            self.last = now;
            self.tokens = self.tokens.saturating_add(earned).min(Self::FULL);
        }
        match self.tokens.checked_sub(1000) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }
}

/// Lines of one place that were left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The module that they are from.
    pub target: &'static str,
    /// Its line.
    pub line: u32,
    /// How many.
    pub count: u64,
}

impl LineLimiter {
    /// Lines that were left out since the start.
    pub fn suppressed(&self) -> u64 {
        self.suppressed.load(Relaxed)
    }

    /// Those that were not told of yet. They are now.
    pub fn take_untold(&self) -> Vec<LeftOut> {
        let mut sites = self.sites.lock();
        let untold = sites.values_mut().filter(|site| site.untold > 0);
        let mut left_out: Vec<LeftOut> = untold
            .map(|site| LeftOut {
                target: site.metadata.target(),
                line: site.metadata.line().unwrap_or(0),
                count: std::mem::take(&mut site.untold),
            })
            .collect();
        left_out.sort_by_key(|it| (it.target, it.line));
        left_out
    }

    fn may_pass(&self, metadata: &'static Metadata<'static>, now: Instant) -> bool {
        let mut sites = self.sites.lock();
        let site = sites.entry(metadata.callsite()).or_insert_with(|| Site {
            metadata,
            bucket: Bucket::new(now),
            untold: 0,
        });
        let passes = site.bucket.take(now);
        if !passes {
            site.untold = site.untold.saturating_add(1);
            self.suppressed.fetch_add(1, Relaxed);
        }
        passes
    }
}

/// The limiter in the way of every line.
#[derive(Clone, Debug)]
pub struct Limited(pub std::sync::Arc<LineLimiter>);

impl<S: Subscriber> Layer<S> for Limited {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        metadata.target() == AUDIT || self.0.may_pass(metadata, clock::monotonic())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn so_many_at_once_and_so_many_a_second() {
        let start = clock::monotonic();
        let mut bucket = Bucket::new(start);
        let passed = |bucket: &mut Bucket, at: Duration| {
            (0..1000).filter(|_| bucket.take(start + at)).count()
        };
        assert_eq!(passed(&mut bucket, Duration::ZERO), 100);
        assert_eq!(passed(&mut bucket, Duration::from_millis(99)), 0);
        assert_eq!(passed(&mut bucket, Duration::from_millis(199)), 1);
        assert_eq!(passed(&mut bucket, Duration::from_secs(2)), 19);
        assert_eq!(passed(&mut bucket, Duration::from_secs(3600)), 100);
    }
}
