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
