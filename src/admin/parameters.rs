//! The query of a call: `by=blocked&window=5m`, each parameter known and given once.

use std::fmt;
use std::str::FromStr;
use std::time::UNIX_EPOCH;

use http::StatusCode;

use crate::limiter::time::Timestamp;

use super::answers::{Answer, error_response};

/// Of what a caller wrote, a message repeats so much.
const REPEATED_CHARS_MAX: usize = 40;

/// What is wrong with a query: answered with 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadParameter(String);

/// The parameters of a call, decoded.
#[derive(Debug, Default)]
pub struct Parameters {
    /// In the order in which they came.
    given: Vec<(&'static str, String)>,
}

impl Parameters {
    /// Reads a query (`application/x-www-form-urlencoded`).
    ///
    /// # Errors
    /// A parameter that is not among `known`, is given twice or cannot be decoded.
    pub fn parse(query: &str, known: &[&'static str]) -> Result<Self, BadParameter> {
        let mut given: Vec<(&'static str, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded = |text| {
                let why =
                    || BadParameter(format!("{}: not UTF-8 in percent-encoding", short(text)));
                decode(text, of_form).ok_or_else(why)
            };
            let (name, value) = (decoded(name)?, decoded(value)?);
            let Some(name) = known.iter().find(|it| **it == name) else {
                let expected = match known {
                    [] => "expected none".to_owned(),
                    known => format!("expected one of {}", known.join(", ")),
                };
                let found = short(&name);
                return Err(BadParameter(format!("{found}: unknown parameter, {expected}")));
            };
            if given.iter().any(|(it, _)| it == name) {
                return Err(BadParameter(format!("{name}: given twice, expected once")));
            }
            given.push((name, value));
        }
        Ok(Parameters { given })
    }

    /// A parameter's value, read by `read`; `default` where it is not given.
    ///
    /// # Errors
    /// `read` makes nothing of it; `expected` says what it would have understood.
    pub fn read<T>(
        &self,
        name: &str,
        default: T,
        expected: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, BadParameter> {
        let Some((_, value)) = self.given.iter().find(|(it, _)| *it == name) else {
            return Ok(default);
        };
        read(value)
            .ok_or_else(|| BadParameter(format!("{name}: {}, expected {expected}", short(value))))
    }

    /// A whole number within `bounds`; `default` where it is not given.
    ///
    /// # Errors
    /// Anything else.
    pub fn number<T: FromStr + PartialOrd + fmt::Display + Copy>(
        &self,
        name: &str,
        default: T,
        bounds: (T, T),
    ) -> Result<T, BadParameter> {
        let (least, most) = bounds;
        let expected = format!("a number from {least} to {most}");
        self.read(name, default, &expected, |text| {
            let number = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok());
            number.flatten().filter(|it| (least..=most).contains(it))
        })
    }
}

impl From<BadParameter> for Answer {
    fn from(wrong: BadParameter) -> Self {
        error_response(StatusCode::BAD_REQUEST, &wrong.0)
    }
}

/// What stands in a path for a parameter, decoded: there a `+` is itself. `None`: it cannot be.
pub fn decode_segment(text: &str) -> Option<String> {
    decode(text, |byte| byte)
}

/// The first second of the year 10000, which RFC 3339 cannot write.
const YEAR_10000: i64 = 253_402_300_800;

/// A moment after 1970 (RFC 3339), at whatever offset from UTC it is written. `None`: it is none, or
/// one that cannot be written in UTC.
pub fn moment(text: &str) -> Option<Timestamp> {
    let text = text.to_ascii_uppercase();
    let (local, ahead) = match text.strip_suffix('Z') {
        Some(local) => (local, 0),
        None => {
            let (local, offset) = text.split_at_checked(text.len().checked_sub("+00:00".len())?)?;
            (local, minutes_ahead(offset)?)
        }
    };
    // One offset is enough, which the parser does not ask for.
    if local.ends_with('Z') {
        return None;
    }
    let local = humantime::parse_rfc3339(&format!("{local}Z")).ok()?;
    let micros = local.duration_since(UNIX_EPOCH).ok()?.as_micros();
    let micros = i64::try_from(micros).ok()? - ahead * 60_000_000;
    (micros < YEAR_10000 * 1_000_000).then_some(())?;
    Some(Timestamp::from_micros(u64::try_from(micros).ok()?))
}

/// `+01:30` is 90.
fn minutes_ahead(offset: &str) -> Option<i64> {
    let (sign, rest) = offset.split_at_checked(1)?;
    let sign = match sign {
        "+" => 1,
        "-" => -1,
        _ => return None,
    };
    let (hours, minutes) = rest.split_once(':')?;
    let number = |text: &str, below: i64| {
        let is_number = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse::<i64>().ok()).flatten().filter(|it| *it < below)
    };
    Some(sign * (number(hours, 24)? * 60 + number(minutes, 60)?))
}

/// What was written, cut to what a message has room for.
pub fn short(text: &str) -> String {
    if text.is_empty() {
        return "empty".to_owned();
    }
    let mut shown: String = text.chars().take(REPEATED_CHARS_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

/// In forms a `+` is a space.
fn of_form(byte: u8) -> u8 {
    if byte == b'+' { b' ' } else { byte }
}

fn decode(text: &str, plain: fn(u8) -> u8) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high * 16 + low).ok()?
            }
            byte => plain(byte),
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[&str] = &["by", "limit"];

    fn limit(query: &str) -> Result<u32, String> {
        let parameters = Parameters::parse(query, KNOWN).map_err(|it| it.to_string())?;
        parameters.number("limit", 20, (1, 100)).map_err(|it| it.to_string())
    }

    #[test]
    fn a_moment_is_one_wherever_its_clock_stands() {
        let noon = moment("2027-01-01T12:00:00Z");
        assert_eq!(noon, Some(Timestamp::from_micros(1_798_804_800_000_000)));
        for same in [
            "2027-01-01t12:00:00z",
            "2027-01-01T12:00:00.000Z",
            "2027-01-01T12:00:00+00:00",
            "2027-01-01T12:00:00-00:00",
            "2027-01-01T13:30:00+01:30",
            "2026-12-31T13:00:00-23:00",
        ] {
            assert_eq!(moment(same), noon, "{same}");
        }
        for none in [
            "",
            "Z",
            "2027-01-01",
            "2027-01-01T12:00:00",
            "2027-01-01 12:00:00Z",
            "2027-01-01T12:00:00+1:30",
            "2027-01-01T12:00:00+24:00",
            "2027-01-01T12:00:00+01:60",
            "2027-01-01T12:00:00+01.00",
            "2027-01-01T12:00:00Z+01:00",
            "2027-01-01T12:00:00ZZ",
            "2027-02-30T12:00:00Z",
            "1970-01-01T00:00:00+01:00",
            "1969-01-01T00:00:00Z",
            "9999-12-31T23:59:59-00:01",
            "2027-01-01T12:00:00é01:00",
        ] {
            assert_eq!(moment(none), None, "{none}");
        }
    }

    #[test]
    fn a_parameter_is_known_given_once_and_within_its_bounds() {
        assert_eq!(limit(""), Ok(20));
        assert_eq!(limit("limit=7&by="), Ok(7));
        assert_eq!(limit("&&%6cimit=%37&"), Ok(7));
        for (query, message) in [
            ("limit=0", "limit: 0, expected a number from 1 to 100"),
            ("limit=101", "limit: 101, expected a number from 1 to 100"),
            ("limit=+7", "limit:  7, expected a number from 1 to 100"),
            ("limit=", "limit: empty, expected a number from 1 to 100"),
            ("limit", "limit: empty, expected a number from 1 to 100"),
            ("limit=1&limit=1", "limit: given twice, expected once"),
            ("window=1", "window: unknown parameter, expected one of by, limit"),
            ("=1", "empty: unknown parameter, expected one of by, limit"),
            ("by=%", "%: not UTF-8 in percent-encoding"),
            ("by=%zz", "%zz: not UTF-8 in percent-encoding"),
            ("by=%ff", "%ff: not UTF-8 in percent-encoding"),
        ] {
            assert_eq!(limit(query), Err(message.to_owned()), "{query}");
        }
        let long = format!("limit={}", "9".repeat(5_000));
        assert!(limit(&long).unwrap_err().len() < 100);
        let error = Parameters::parse("a=1", &[]).unwrap_err().to_string();
        assert_eq!(error, "a: unknown parameter, expected none");
    }
}
