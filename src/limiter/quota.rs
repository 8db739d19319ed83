//! What is limited: how much per period.

use std::num::NonZeroU32;

use super::time::Micros;

/// The largest rate, burst, window limit or cost that a configuration may ask for.
///
/// Two of them still fit a `u32`, and a bucket's debt, in millionths of tokens, still fits the
/// doubles that Redis's Lua counts in.
pub const LIMIT_MAX: u32 = 1_000_000_000;

/// The period that a limit is named by, in rising order of length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Period {
    /// A token bucket refilled every second.
    Second = 0,
    /// A strict sliding window of 60 seconds.
    Minute = 1,
    /// A strict sliding window of 60 minutes.
    Hour = 2,
}

impl Period {
    /// Every period, shortest first.
    pub const ALL: [Period; 3] = [Period::Second, Period::Minute, Period::Hour];

    /// The word for it in answers, labels and files: `second`, `minute`, `hour`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Period::Second => "second",
            Period::Minute => "minute",
            Period::Hour => "hour",
        }
    }

    /// Length of one sub-bucket of the sliding window; one second where there is no window.
    pub const fn sub_bucket(self) -> Micros {
        match self {
            Period::Second | Period::Minute => Micros::SECOND,
            Period::Hour => Micros::MINUTE,
        }
    }
}

/// A token bucket: never more than `burst + rate * T` requests in any `T` seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    /// Tokens that come back each second.
    pub rate: NonZeroU32,
    /// Capacity in tokens.
    pub burst: NonZeroU32,
}

/// The limits of one scope (a tier, or an endpoint rule) for one identity. An absent one does not
/// limit; a set without any is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LimitSet {
    /// Per second, with burst.
    pub second: Option<Bucket>,
    /// At most so many in any 60 seconds.
    pub minute: Option<NonZeroU32>,
    /// At most so many in any 60 minutes.
    pub hour: Option<NonZeroU32>,
}

impl LimitSet {
    /// Whether nothing is limited.
    pub const fn is_unlimited(&self) -> bool {
        self.second.is_none() && self.minute.is_none() && self.hour.is_none()
    }

    /// The most that one request may cost and still ever pass; `None` where nothing limits it.
    pub fn cost_max(&self) -> Option<u32> {
        [self.second.map(|bucket| bucket.burst), self.minute, self.hour]
            .into_iter()
            .flatten()
            .map(NonZeroU32::get)
            .min()
    }
}

/// Whether a limit refuses, or only reports what it would have refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Refuse.
    #[default]
    Enforce,
    /// Count and report, never refuse.
    Shadow,
}
