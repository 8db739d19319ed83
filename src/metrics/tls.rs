//! What is counted of TLS with callers.

use std::sync::atomic::{AtomicBool, Ordering};

use super::cells::{Level, LevelGuard};
use super::edge_labels::HandshakeResult;
use super::handles::Handles;
use super::names;
use super::registry::Metrics;
use super::series::{count, total};

/// What there is of TLS beside the counters of each worker.
#[derive(Debug)]
pub(super) struct TlsCells {
    /// Whether some listener speaks it: without one there are no series.
    is_configured: AtomicBool,
    in_progress: Level,
}

impl TlsCells {
    pub(super) fn new(shards: usize) -> Self {
        TlsCells { is_configured: AtomicBool::new(false), in_progress: Level::new(shards) }
    }
}

impl Metrics {
    /// A listener speaks TLS: from now on its series are there.
    pub fn tls_configured(&self) {
        self.tls.is_configured.store(true, Ordering::Relaxed);
    }

    /// A handshake with a caller begins; it is in progress until the guard is dropped.
    #[inline]
    pub fn tls_handshake_started(&self) -> LevelGuard {
        self.tls.in_progress.enter()
    }

    /// A handshake with a caller has ended.
    #[inline]
    pub fn tls_handshake_ended(&self, result: HandshakeResult) {
        self.process.with_own(|cells| count(&cells.handshakes, result.index()));
    }

    pub(super) fn publish_tls(&self, handles: &Handles) {
        if !self.tls.is_configured.load(Ordering::Relaxed) {
            return;
        }
        for result in HandshakeResult::ALL {
            let cells = self.process.iter();
            let sum = total(cells.filter_map(|cells| cells.handshakes.get(result.index())));
            handles.counter(&names::TLS_HANDSHAKES, &[result.as_str()]).absolute(sum);
        }
        let in_progress = self.tls.in_progress.count() as f64;
        handles.gauge(&names::TLS_HANDSHAKES_IN_PROGRESS, &[]).set(in_progress);
    }
}
