//! The only file that reads the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::limiter::time::Timestamp;

/// A source of wall-clock time for limits. Latencies use [`monotonic`].
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The machine's clock. A step back is the limiter's business, which pays no debt for it.
    #[default]
    System,
    /// A clock that stands still until it is told otherwise: tests and simulations.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// A manual clock that shows `now`.
    pub fn manual(now: Timestamp) -> Self {
        Clock::Manual(Arc::new(AtomicU64::new(now.as_micros())))
    }

    /// The time by this clock.
    pub fn now(&self) -> Timestamp {
        match self {
            Clock::System => {
                #[expect(clippy::disallowed_methods, reason = "this is the one place")]
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Timestamp::from_micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
            }
            Clock::Manual(now) => Timestamp::from_micros(now.load(Ordering::Acquire)),
        }
    }

    /// Sets a manual clock; the system's is not ours to set.
    pub fn set(&self, to: Timestamp) {
        if let Clock::Manual(now) = self {
            now.store(to.as_micros(), Ordering::Release);
        }
    }
}

/// [`monotonic`] for what is measured and nothing else: no limit and no deadline hangs on it, so that
/// a build without signals need not ask.
#[inline]
pub fn stopwatch() -> Instant {
    #[cfg(feature = "without-signals")]
    {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *START.get_or_init(monotonic)
    }
    #[cfg(not(feature = "without-signals"))]
    monotonic()
}

/// A point in time for measuring spans: never steps, means nothing outside of this process.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn monotonic() -> Instant {
    Instant::now()
}
