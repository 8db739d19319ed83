//! `GET /api/v1/usage`: usage records, a page at a time; and what the sink has of this process.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::usage::flush::Usage;
use crate::usage::record::{Counts, Key, Period, Query, Record, minute_of, parse_minute, written};
use crate::usage::sink::SinkError;

use super::answers::{Answer, error_response, json};
use super::api::{Answered, Asked, Reply};
use super::state::AdminState;

/// What the call knows.
pub const PARAMETERS: &[&str] = &["from", "to", "identity", "tier", "by", "limit", "after"];
/// Records of a page.
const LIMIT_DEFAULT: usize = 1_000;
const LIMIT_MAX: usize = 10_000;

/// A record as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The period's first minute, RFC 3339 in UTC.
    pub start: String,
    /// `minute`, `hour` or `day`.
    pub period: String,
    /// Who.
    pub identity: String,
    /// The tier's name.
    pub tier: String,
    /// The endpoint's name.
    pub endpoint: String,
    /// What was counted.
    #[serde(flatten)]
    pub counts: Numbers,
}

/// What was counted, as it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbers {
    /// Requests that were let through.
    pub requests: i64,
    /// What they cost.
    pub units: i64,
    /// Requests that a limit refused.
    pub denied: i64,
    /// Content received.
    pub bytes_in: i64,
    /// Content sent.
    pub bytes_out: i64,
}

impl From<Counts> for Numbers {
    fn from(counts: Counts) -> Self {
        let Counts { requests, units, denied, bytes_in, bytes_out } = counts;
        Numbers { requests, units, denied, bytes_in, bytes_out }
    }
}

impl Shown {
    /// A record, added up by `period`.
    pub fn new(record: &Record, period: Period) -> Self {
        Shown {
            start: written(record.key.start),
            period: period.as_str().to_owned(),
            identity: record.key.identity.to_string(),
            tier: record.key.tier.to_string(),
            endpoint: record.key.endpoint.to_string(),
            counts: record.counts.into(),
        }
    }
}

/// A page as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShownPage {
    /// The records in their order.
    pub records: Vec<Shown>,
    /// `after` of the next page; null behind the last.
    pub next: Option<String>,
}

/// What the sink has of a process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShownTotals {
    /// The id of the process in the records' batches.
    pub replica: String,
    /// Age of the oldest count that the sink has not taken, in seconds.
    pub lag_seconds: f64,
    /// Sums by tier.
    pub tiers: BTreeMap<String, Numbers>,
}

/// The answer of `/api/v1/usage`.
///
/// # Errors
/// A parameter that cannot be understood; there is no sink; it does not answer.
pub async fn records(state: Arc<AdminState>, asked: Asked) -> Answered {
    let usage = metering(&state)?;
    let query = query(&asked, minute_of(state.clock.now()))?;
    let by = query.by;
    let page = usage.page(query).await.map_err(|error| unavailable(&error))?;
    let records = page.records.iter().map(|record| Shown::new(record, by)).collect();
    let shown = ShownPage { records, next: page.next.as_ref().map(cursor) };
    Ok(Reply::Answer(json(StatusCode::OK, &shown)))
}

/// The answer of `/api/v1/usage/totals`.
///
/// # Errors
/// There is no sink; it does not answer.
pub async fn totals(state: Arc<AdminState>) -> Answered {
    let usage = metering(&state)?;
    let totals = usage.totals().await.map_err(|error| unavailable(&error))?;
    let shown = ShownTotals {
        replica: format!("{:032x}", usage.journal().epoch()),
        lag_seconds: usage.lag().as_secs_f64(),
        tiers: totals.into_iter().map(|(tier, it)| (tier.to_string(), it.into())).collect(),
    };
    Ok(Reply::Answer(json(StatusCode::OK, &shown)))
}

fn query(asked: &Asked, now: u32) -> Result<Query, Answer> {
    let given = &asked.parameters;
    let by = given.read("by", Period::Hour, "minute, hour or day", |text| match text {
        "minute" => Some(Period::Minute),
        "hour" => Some(Period::Hour),
        "day" => Some(Period::Day),
        _ => None,
    })?;
    let expected = "a day, hour or minute in UTC, as 2026-11-30 or 2026-11-30T08:00:00Z, at which \
                    a period (by) begins";
    let minute = |text: &str| parse_minute(text).ok().filter(|it| by.start(*it) == *it);
    let text = |name| given.read(name, None, "text", |text| Some(Some(Box::from(text))));
    Ok(Query {
        from: given.read("from", 0, expected, minute)?,
        to: given.read("to", now.saturating_add(1), expected, minute)?,
        identity: text("identity")?,
        tier: text("tier")?,
        by,
        after: given.read("after", None, "`next` of the page before", |text| {
            parse_cursor(text).map(Some)
        })?,
        limit: given.number("limit", LIMIT_DEFAULT, (1, LIMIT_MAX))?,
    })
}

fn metering(state: &AdminState) -> Result<Arc<Usage>, Answer> {
    let none = || error_response(StatusCode::NOT_FOUND, "usage is not metered: usage.sink is off");
    state.usage.clone().ok_or_else(none)
}

fn unavailable(error: &SinkError) -> Answer {
    error_response(StatusCode::SERVICE_UNAVAILABLE, &error.to_string())
}

/// A place among the records, for a URL.
pub fn cursor(key: &Key) -> String {
    let text = format!("{}\0{}\0{}\0{}", key.start, key.identity, key.tier, key.endpoint);
    URL_SAFE_NO_PAD.encode(text)
}

fn parse_cursor(text: &str) -> Option<Key> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
    let mut parts = text.splitn(4, '\0');
    Some(Key {
        start: parts.next()?.parse().ok()?,
        identity: parts.next()?.into(),
        tier: parts.next()?.into(),
        endpoint: parts.next()?.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back() {
        let (identity, tier, endpoint) = ("user:ü,\n".into(), "free".into(), "a\0b".into());
        let key = Key { start: 29_000_000, identity, tier, endpoint };
        assert_eq!(parse_cursor(&cursor(&key)), Some(key));
        for wrong in ["", "a", "AAAA", "é"] {
            assert_eq!(parse_cursor(wrong), None, "{wrong}");
        }
    }
}
