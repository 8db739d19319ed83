//! One request, as a line of a log tells it; and which of the formats a log is in.

use std::borrow::Cow;

use memchr::{memchr, memrchr};

use crate::limiter::time::{Micros, Timestamp};
use crate::log::access::Decided;

use super::{combined, json, own};

/// Whom the requests of a log are counted for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum IdentityFrom {
    /// What tollgate's own log says; else the log's user, where there is one; else the address.
    #[default]
    Log,
    /// The address, whoever the user is.
    Address,
    /// The log's user; who is none is known by address.
    User,
    /// What this field holds, taken for a user; where it is empty, the address.
    Field(Box<str>),
}

/// What is asked of a log beyond what every log has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Whom requests are counted for.
    pub identity: IdentityFrom,
    /// The field that holds a tier or a subscription.
    pub tier_field: Option<Box<str>>,
}

/// How a log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The common or combined format of nginx and Apache, perhaps with more behind it.
    Combined,
    /// One object of JSON a line, with names that nginx, Caddy, Traefik, Envoy and others use.
    Json,
    /// tollgate's own access log.
    Own,
}

/// What the moment of a line is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Moment {
    /// The request came then.
    #[default]
    Began,
    /// Its answer had been sent.
    Ended,
}

/// One request. What a line does not say is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line<'a> {
    /// When.
    pub at: Timestamp,
    /// What that is the moment of.
    pub moment: Moment,
    /// Its method.
    pub method: Cow<'a, str>,
    /// Its target, as it came, with the query where the log has it.
    pub target: Cow<'a, str>,
    /// Which host it was for.
    pub host: Option<Cow<'a, str>>,
    /// Who connected, or who was behind the proxies, as the log has it.
    pub address: Option<Cow<'a, str>>,
    /// The user, as the log has it.
    pub user: Option<Cow<'a, str>>,
    /// The identity, as tollgate writes it.
    pub identity: Option<Cow<'a, str>>,
    /// What the field holds that [`IdentityFrom::Field`] names.
    pub named: Option<Cow<'a, str>>,
    /// The tier or subscription.
    pub tier: Option<Cow<'a, str>>,
    /// The answer's status.
    pub status: Option<u16>,
    /// From the request's arrival to the answer's end.
    pub duration: Option<Micros>,
    /// What tollgate decided.
    pub decided: Option<Decided>,
    /// Whether no upstream was asked.
    pub is_unasked: bool,
}

/// Why a line is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not written as its format says: what was expected.
    Unreadable(&'static str),
    /// It tells of something that was no request: `-`, or bytes of another protocol.
    NoRequest,
}

impl Format {
    /// As the command line names it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Format::Combined => "combined",
            Format::Json => "json",
            Format::Own => "tollgate",
        }
    }

    /// The format of a log with this line.
    pub fn of(line: &[u8]) -> Format {
        if !line.trim_ascii_start().starts_with(b"{") {
            Format::Combined
        } else if own::is_own(line) {
            Format::Own
        } else {
            Format::Json
        }
    }

    /// Reads a line.
    ///
    /// # Errors
    /// It is no request.
    pub fn read<'a>(self, line: &'a [u8], wanted: &Wanted) -> Result<Line<'a>, Fault> {
        match self {
            Format::Combined => combined::read(line, wanted),
            Format::Json => json::read(line, wanted),
            Format::Own => own::read(line, wanted),
        }
    }
}

impl Wanted {
    /// The field that holds the identity, if one is named.
    pub fn identity_field(&self) -> Option<&str> {
        match &self.identity {
            IdentityFrom::Field(name) => Some(name),
            _ => None,
        }
    }
}

impl<'a> Line<'a> {
    /// Takes a request line apart: `GET /path HTTP/1.1`.
    ///
    /// # Errors
    /// It is none.
    pub fn set_request(&mut self, request: Cow<'a, str>) -> Result<(), Fault> {
        let parts = |text: &str| {
            let method = memchr(b' ', text.as_bytes())?;
            let last = memrchr(b' ', text.as_bytes())?;
            let is_version = text.get(last + 1..).is_some_and(|it| it.starts_with("HTTP/"));
            // Without a version it is HTTP/0.9, or what a client without manners sent.
            let end = if is_version && last > method { last } else { text.len() };
            Some((method, method + 1..end))
        };
        let (method, target) = parts(&request).ok_or(Fault::NoRequest)?;
        if target.is_empty() || method == 0 {
            return Err(Fault::NoRequest);
        }
        match request {
            Cow::Borrowed(text) => {
                self.method = Cow::Borrowed(text.get(..method).unwrap_or_default());
                self.target = Cow::Borrowed(text.get(target).unwrap_or_default());
            }
            Cow::Owned(text) => {
                self.method = Cow::Owned(text.get(..method).unwrap_or_default().to_owned());
                self.target = Cow::Owned(text.get(target).unwrap_or_default().to_owned());
            }
        }
        Ok(())
    }

    /// When it came, as far as that can be told.
    pub fn began(&self) -> Timestamp {
        match self.moment {
            Moment::Began => self.at,
            Moment::Ended => self.at.minus(self.duration.unwrap_or(Micros::ZERO)),
        }
    }
}

/// What a log writes where there is nothing.
pub fn is_nothing(text: &[u8]) -> bool {
    matches!(text, b"" | b"-")
}

/// Longest span that is believed, in microseconds: some thirty years.
pub const SPAN_MAX: u64 = 1_000_000_000_000_000;

/// A span in seconds, as `0.25`.
pub fn seconds(text: &[u8]) -> Option<Micros> {
    span(std::str::from_utf8(text).ok()?, 1e6)
}

/// A span in units of so many microseconds.
pub fn span(text: &str, unit: f64) -> Option<Micros> {
    let micros = text.parse::<f64>().ok()? * unit;
    (0.0..SPAN_MAX as f64).contains(&micros).then(|| Micros::from_micros(micros.round() as u64))
}
