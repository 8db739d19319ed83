//! Whether new requests should be sent here.

use std::sync::atomic::{AtomicBool, Ordering};

/// Set by whoever binds and drains, read by probes.
#[derive(Debug, Default)]
pub struct Readiness {
    bound: AtomicBool,
    draining: AtomicBool,
}

/// Why no new requests should be sent here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unready {
    /// The listeners are not bound yet.
    Starting,
    /// What runs is finished, and nothing new is taken.
    Draining,
    /// No store, and `on_failure: closed`: every request would be refused.
    LimiterClosed,
}

impl Unready {
    /// As a probe's answer says it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Unready::Starting => "starting",
            Unready::Draining => "draining",
            Unready::LimiterClosed => "limiter_closed",
        }
    }
}

impl Readiness {
    /// Every listener is bound.
    pub fn set_bound(&self) {
        self.bound.store(true, Ordering::Release);
    }

    /// The drain begins; there is no way back.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether a drain is under way.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Why not, as far as the listeners go; `None` when ready.
    pub fn unready(&self) -> Option<Unready> {
        if self.is_draining() {
            Some(Unready::Draining)
        } else if !self.bound.load(Ordering::Acquire) {
            Some(Unready::Starting)
        } else {
            None
        }
    }
}
