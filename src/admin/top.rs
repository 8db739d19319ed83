//! `GET /api/v1/top`: who asks most, and who is refused most.

use std::time::Duration;

use http::StatusCode;
use serde::Serialize;

use crate::clock::monotonic;
use crate::top::minutes::MINUTES_MAX;
use crate::top::space_saving::COUNTERS;
use crate::top::summary::Item;
use crate::top::talkers::By;

use super::answers::{Answer, json};
use super::parameters::{BadParameter, Parameters};
use super::state::AdminState;

/// What the call knows.
pub const PARAMETERS: &[&str] = &["by", "window", "limit"];
const WINDOW_DEFAULT_MINUTES: u64 = 5;
const LIMIT_DEFAULT: usize = 20;

/// The answer of `/api/v1/top`.
///
/// # Errors
/// A parameter that cannot be understood.
pub fn top(state: &AdminState, given: &Parameters) -> Result<Answer, BadParameter> {
    let by = given.read("by", By::Blocked, "blocked or requests", |text| match text {
        "blocked" => Some(By::Blocked),
        "requests" => Some(By::Requests),
        _ => None,
    })?;
    let expected = "whole minutes from 1m to 60m";
    let minutes = given.read("window", WINDOW_DEFAULT_MINUTES, expected, minutes)?;
    let limit = given.number("limit", LIMIT_DEFAULT, (1, COUNTERS))?;
    let items = state.top.top(by, minutes, limit, monotonic());
    let top = Top { window: format!("{minutes}m"), items: listed(items) };
    Ok(json(StatusCode::OK, &top))
}

/// As they are told.
pub fn listed(items: Vec<Item>) -> Vec<Listed> {
    let listed = |item: Item| Listed {
        identity: item.identity.to_string(),
        count: item.count,
        error: item.error,
    };
    items.into_iter().map(listed).collect()
}

fn minutes(text: &str) -> Option<u64> {
    let window: Duration = humantime::parse_duration(text).ok()?;
    let minutes = window.as_secs() / 60;
    let is_whole = Duration::from_secs(minutes * 60) == window;
    (is_whole && (1..=MINUTES_MAX).contains(&minutes)).then_some(minutes)
}

#[derive(Serialize)]
struct Top {
    window: String,
    items: Vec<Listed>,
}

/// Who, how often, and how much of that is uncertain.
#[derive(Serialize)]
pub struct Listed {
    identity: String,
    count: u64,
    error: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_whole_minutes() {
        for (text, expected) in [
            ("1m", Some(1)),
            ("5m", Some(5)),
            ("300s", Some(5)),
            ("1h", Some(60)),
            ("60m", Some(60)),
            ("61m", None),
            ("0m", None),
            ("30s", None),
            ("90s", None),
            ("5", None),
            ("", None),
            ("-5m", None),
            ("99999999999999999999y", None),
        ] {
            assert_eq!(minutes(text), expected, "{text}");
        }
    }
}
