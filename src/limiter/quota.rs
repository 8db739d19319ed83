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
    /// A day of UTC, from midnight to midnight.
    Day = 3,
    /// A month of UTC.
    Month = 4,
    /// No period at all: requests at the same time.
    Concurrency = 5,
}

impl Period {
    /// Every period, shortest first, and concurrency behind them.
    pub const ALL: [Period; 6] = [
        Period::Second,
        Period::Minute,
        Period::Hour,
        Period::Day,
        Period::Month,
        Period::Concurrency,
    ];
    /// Those that slide: the bucket and the two windows.
    pub const SLIDING: [Period; 3] = [Period::Second, Period::Minute, Period::Hour];

    /// The word for it in answers, labels and files: `second`, `minute`, `hour`, `day`, `month`,
    /// `concurrency`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Period::Second => "second",
            Period::Minute => "minute",
            Period::Hour => "hour",
            Period::Day => "day",
            Period::Month => "month",
            Period::Concurrency => "concurrency",
        }
    }

    /// Length of one sub-bucket of the sliding window; one second where there is no window.
    pub const fn sub_bucket(self) -> Micros {
        match self {
            Period::Hour => Micros::MINUTE,
            _ => Micros::SECOND,
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
    /// At most so many in a day of UTC.
    pub day: Option<NonZeroU32>,
    /// At most so many in a month of UTC.
    pub month: Option<NonZeroU32>,
    /// At most so many at the same time. A request holds one place, whatever it costs.
    pub concurrency: Option<NonZeroU32>,
}

impl LimitSet {
    /// Whether nothing is limited.
    pub const fn is_unlimited(&self) -> bool {
        let slides = self.second.is_some() || self.minute.is_some() || self.hour.is_some();
        !slides && !self.has_calendar() && self.concurrency.is_none()
    }

    /// Whether days or months are limited.
    pub const fn has_calendar(&self) -> bool {
        self.day.is_some() || self.month.is_some()
    }

    /// The most that one request may cost and still ever pass; `None` where nothing limits it.
    pub fn cost_max(&self) -> Option<u32> {
        [self.second.map(|bucket| bucket.burst), self.minute, self.hour, self.day, self.month]
            .into_iter()
            .flatten()
            .map(NonZeroU32::get)
            .min()
    }

    /// The quota of a period, and the most that can be left of it: both the same but for the
    /// bucket, whose quota is its rate and whose limit is its burst. `None`: no such limit.
    pub fn quota_and_limit(&self, period: Period) -> Option<(u32, u32)> {
        let limit = match period {
            Period::Second => {
                return self.second.map(|bucket| (bucket.rate.get(), bucket.burst.get()));
            }
            Period::Minute => self.minute,
            Period::Hour => self.hour,
            Period::Day => self.day,
            Period::Month => self.month,
            Period::Concurrency => self.concurrency,
        };
        limit.map(|limit| (limit.get(), limit.get()))
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
