//! What logs and traces count by themselves.

use super::names;
use super::registry::Metrics;

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogFigures {
    /// Lines of the access log that were written.
    pub access_written: u64,
    /// Those that were lost.
    pub access_dropped: u64,
    /// Lines of tollgate's own log that were left out because there were too many of their kind.
    pub suppressed: u64,
    /// Those that were lost because nobody took them.
    pub dropped: u64,
    /// Recorded requests whose spans the collector has.
    pub spans_exported: u64,
    /// Those whose spans are lost.
    pub spans_dropped: u64,
}

impl Metrics {
    /// Takes over what logs and traces have counted.
    pub fn publish_logs(&self, figures: &LogFigures) {
        for (desc, total) in [
            (&names::ACCESS_LINES, figures.access_written),
            (&names::ACCESS_DROPPED, figures.access_dropped),
            (&names::LOG_SUPPRESSED, figures.suppressed),
            (&names::LOG_DROPPED, figures.dropped),
            (&names::TRACES_EXPORTED, figures.spans_exported),
            (&names::TRACES_DROPPED, figures.spans_dropped),
        ] {
            self.handles.counter(desc, &[]).absolute(total);
        }
    }
}

/// What usage metering has counted, totals since the start but for lag and size.
#[derive(Clone, Copy, Debug, Default)]
pub struct UsageFigures {
    /// Age of the oldest count that is not written.
    pub lag: std::time::Duration,
    /// Rows that were written.
    pub written: u64,
    /// Batches that were not taken.
    pub errors: u64,
    /// Size of the journal.
    pub journal_bytes: u64,
    /// Counts that are lost.
    pub lost: u64,
}

impl Metrics {
    /// Takes over what usage metering has counted.
    pub fn publish_usage(&self, figures: &UsageFigures) {
        let handles = &self.handles;
        handles.gauge(&names::USAGE_FLUSH_LAG, &[]).set(figures.lag.as_secs_f64());
        handles.gauge(&names::USAGE_JOURNAL, &[]).set(figures.journal_bytes as f64);
        for (desc, total) in [
            (&names::USAGE_WRITTEN, figures.written),
            (&names::USAGE_ERRORS, figures.errors),
            (&names::USAGE_LOST, figures.lost),
        ] {
            handles.counter(desc, &[]).absolute(total);
        }
    }
}
