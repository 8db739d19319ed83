//! Points in time and spans, in whole microseconds.

/// Microseconds since the Unix epoch (UTC, leap seconds ignored as POSIX does).
///
/// Stays below 2^53 until the year 2255, so that Redis's Lua, which counts in doubles, holds it
/// exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(u64);

/// A span of time in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(u64);

impl Timestamp {
    /// The Unix epoch itself.
    pub const EPOCH: Timestamp = Timestamp(0);

    /// From microseconds since the Unix epoch.
    pub const fn from_micros(micros: u64) -> Self {
        Timestamp(micros)
    }

    /// Microseconds since the Unix epoch.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Whole seconds since the Unix epoch, rounded up: a reset shown to a caller is never early.
    pub const fn as_secs_ceil(self) -> u64 {
        self.0.div_ceil(Micros::SECOND.0)
    }

    /// The span from `earlier` to `self`; zero where `earlier` is later.
    pub const fn since(self, earlier: Timestamp) -> Micros {
        Micros(self.0.saturating_sub(earlier.0))
    }

    /// The point `span` earlier; the epoch where there is none.
    pub const fn minus(self, span: Micros) -> Timestamp {
        Timestamp(self.0.saturating_sub(span.0))
    }

    /// The point `span` later.
    pub const fn plus(self, span: Micros) -> Timestamp {
        Timestamp(self.0.saturating_add(span.0))
    }
}

impl Micros {
    /// No time at all.
    pub const ZERO: Micros = Micros(0);
    /// One second.
    pub const SECOND: Micros = Micros(1_000_000);
    /// One minute.
    pub const MINUTE: Micros = Micros(60_000_000);
    /// A wait that never ends: the cost is above the limit, so no amount of time helps. Below
    /// 2^53, so that Lua can say it too.
    pub const NEVER: Micros = Micros(4_000_000_000_000_000);

    /// From microseconds.
    pub const fn from_micros(micros: u64) -> Self {
        Micros(micros)
    }

    /// As microseconds.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Whole seconds, rounded up: a wait told to a caller is never too short.
    pub const fn as_secs_ceil(self) -> u64 {
        self.0.div_ceil(Micros::SECOND.0)
    }

    /// Whether this is no time at all.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}
