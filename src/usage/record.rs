//! What is counted, for whom, and how a minute is written.

use std::ops::AddAssign;
use std::time::{Duration, UNIX_EPOCH};

use crate::limiter::time::{Micros, Timestamp};

/// Minutes of an hour.
pub const HOUR: u32 = 60;
/// Minutes of a day.
pub const DAY: u32 = 24 * HOUR;

/// What is counted. Each is a sum of changes: what is given back later is a change below zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that were let through.
    pub requests: i64,
    /// What they cost.
    pub units: i64,
    /// Requests that a limit refused.
    pub denied: i64,
    /// Content received with requests that were let through.
    pub bytes_in: i64,
    /// Content sent in answer to them.
    pub bytes_out: i64,
}

/// How many numbers [`Counts`] has.
pub const COLUMNS: usize = 5;

impl Counts {
    /// In the order in which they are stored.
    pub fn to_array(self) -> [i64; COLUMNS] {
        [self.requests, self.units, self.denied, self.bytes_in, self.bytes_out]
    }

    /// From the order in which they are stored.
    pub fn from_array([requests, units, denied, bytes_in, bytes_out]: [i64; COLUMNS]) -> Self {
        Counts { requests, units, denied, bytes_in, bytes_out }
    }

    /// Whether nothing was counted.
    pub fn is_zero(self) -> bool {
        self == Counts::default()
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        let mut sums = self.to_array();
        for (sum, more) in sums.iter_mut().zip(other.to_array()) {
            *sum = sum.wrapping_add(more);
        }
        *self = Counts::from_array(sums);
    }
}

/// A row: a minute of an identity, in a tier, on an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// Minutes since the Unix epoch.
    pub minute: u32,
    /// Who, as `user:42`.
    pub identity: &'a str,
    /// The tier's name.
    pub tier: &'a str,
    /// The endpoint's name.
    pub endpoint: &'a str,
    /// What was counted.
    pub counts: Counts,
}

/// How far records are added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Period {
    /// A minute each; older ones may be there by the hour only.
    Minute,
    /// An hour each.
    #[default]
    Hour,
    /// A day each, in UTC.
    Day,
}

impl Period {
    /// Its length in minutes.
    pub const fn minutes(self) -> u32 {
        match self {
            Period::Minute => 1,
            Period::Hour => HOUR,
            Period::Day => DAY,
        }
    }

    /// The first minute of the period that a minute belongs to.
    pub const fn start(self, minute: u32) -> u32 {
        minute - minute % self.minutes()
    }

    /// `minute`, `hour` or `day`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Period::Minute => "minute",
            Period::Hour => "hour",
            Period::Day => "day",
        }
    }
}

/// A record as it is read: a period of an identity, in a tier, on an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Whose.
    pub key: Key,
    /// What was counted.
    pub counts: Counts,
}

/// What a record is about, in the order in which records are listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The period's first minute, since the Unix epoch.
    pub start: u32,
    /// Who.
    pub identity: Box<str>,
    /// The tier's name.
    pub tier: Box<str>,
    /// The endpoint's name.
    pub endpoint: Box<str>,
}

/// Which records are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The first minute.
    pub from: u32,
    /// The first minute that is not wanted any more.
    pub to: u32,
    /// This identity alone.
    pub identity: Option<Box<str>>,
    /// This tier alone.
    pub tier: Option<Box<str>>,
    /// How far they are added up.
    pub by: Period,
    /// Only what is listed behind this.
    pub after: Option<Key>,
    /// At most so many; at least 1.
    pub limit: usize,
}

impl Query {
    /// Everything there is, by the hour.
    pub fn everything(limit: usize) -> Self {
        let by = Period::Hour;
        Query { from: 0, to: u32::MAX, identity: None, tier: None, by, after: None, limit }
    }

    /// Whether a row of this minute may belong to it.
    pub fn takes_minute(&self, minute: u32) -> bool {
        let is_behind = self.after.as_ref().is_none_or(|it| self.by.start(minute) >= it.start);
        (self.from..self.to).contains(&minute) && is_behind
    }

    /// Whether a row belongs to it.
    pub fn takes(&self, row: &Row<'_>) -> bool {
        self.takes_minute(row.minute)
            && self.identity.as_deref().is_none_or(|it| it == row.identity)
            && self.tier.as_deref().is_none_or(|it| it == row.tier)
    }
}

/// The minute of a moment.
pub fn minute_of(at: Timestamp) -> u32 {
    let minute = at.as_micros().checked_div(Micros::MINUTE.as_micros()).unwrap_or_default();
    u32::try_from(minute).unwrap_or(u32::MAX)
}

/// A minute as RFC 3339 has it, in UTC.
pub fn written(minute: u32) -> String {
    let seconds = Duration::from_secs(u64::from(minute).saturating_mul(60));
    // The year 9999 is beyond what can be written; no record is from then.
    let at = UNIX_EPOCH.checked_add(seconds).unwrap_or(UNIX_EPOCH);
    humantime::format_rfc3339_seconds(at).to_string()
}

/// Reads a moment: `2026-11-30`, `2026-11-30T08:00` or `2026-11-30T08:00:00Z`, all in UTC. What is
/// below a minute must be zero.
///
/// # Errors
/// What is expected.
pub fn parse_minute(text: &str) -> Result<u32, &'static str> {
    const EXPECTED: &str = "a day or a minute in UTC, such as 2026-11-30 or 2026-11-30T08:00:00Z";
    let text = text.trim();
    let whole = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        16 => format!("{text}:00Z"),
        _ => text.to_owned(),
    };
    let at = humantime::parse_rfc3339_weak(&whole).map_err(|_| EXPECTED)?;
    let since = at.duration_since(UNIX_EPOCH).map_err(|_| EXPECTED)?;
    if since.subsec_nanos() != 0 || since.as_secs() % 60 != 0 {
        return Err(EXPECTED);
    }
    u32::try_from(since.as_secs() / 60).map_err(|_| EXPECTED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_read_as_it_is_written() {
        let minute = parse_minute("2026-11-30T08:07:00Z").unwrap();
        assert_eq!(written(minute), "2026-11-30T08:07:00Z");
        assert_eq!(parse_minute("2026-11-30T08:07"), Ok(minute));
        assert_eq!(parse_minute("2026-11-30"), Ok(Period::Day.start(minute)));
        assert_eq!(written(Period::Hour.start(minute)), "2026-11-30T08:00:00Z");
        for wrong in ["", "yesterday", "2026-13-01", "2026-11-30T08:07:30Z", "1969-12-31"] {
            assert!(parse_minute(wrong).is_err(), "{wrong}");
        }
    }
}
