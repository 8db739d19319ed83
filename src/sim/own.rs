//! Lines of tollgate's own access log.
//!
//! As tollgate writes them they are read here without a parser of JSON, which would take several times
//! as long as everything else; whatever is written differently goes to [`super::json`].

use std::borrow::Cow;

use memchr::memchr;

use crate::limiter::time::Micros;
use crate::log::access::Decided;

use super::line::{Fault, Line, Moment, SPAN_MAX, Wanted};
use super::{json, moment};

const BEGIN: &[u8] = b"{\"ts\":\"";

/// Whether a line of JSON looks like one of tollgate's.
pub fn is_own(line: &[u8]) -> bool {
    let has = |name: &[u8]| memchr::memmem::find(line, name).is_some();
    line.starts_with(BEGIN) && has(b"\"decision\":\"") && has(b"\"limited_by\":")
}

/// Reads a line.
///
/// # Errors
/// It is no request.
pub fn read<'a>(line: &'a [u8], wanted: &Wanted) -> Result<Line<'a>, Fault> {
    let asks_more = wanted.identity_field().is_some() || wanted.tier_field.is_some();
    if !asks_more && let Some(read) = at_once(line) {
        return Ok(read);
    }
    let mut read = json::read(line, wanted)?;
    read.moment = Moment::Began;
    Ok(read)
}

/// `None`: it is written in another way.
fn at_once(line: &[u8]) -> Option<Line<'_>> {
    let mut rest = Rest(line);
    rest.pass(BEGIN)?;
    let at = moment::of_rfc3339(rest.text()?.as_bytes())?;
    rest.pass(b",\"method\":\"")?;
    let method = rest.text()?;
    rest.pass(b",\"path\":\"")?;
    let target = rest.text()?;
    rest.pass(b",\"status\":")?;
    let status = rest.number()?;
    rest.pass(b",\"identity\":")?;
    let identity = rest.text_or_null()?;
    rest.pass(b",\"tier\":")?;
    let tier = rest.text_or_null()?;
    rest.pass(b",\"endpoint\":\"")?;
    rest.text()?;
    rest.pass(b",\"decision\":\"")?;
    let decided = Decided::of(rest.text()?)?;
    rest.pass(b",\"limited_by\":")?;
    rest.text_or_null()?;
    rest.pass(b",\"remaining\":")?;
    rest.number_or_null()?;
    rest.pass(b",\"retry_after\":")?;
    rest.number_or_null()?;
    rest.pass(b",\"duration_us\":")?;
    let duration = rest.number()?;
    rest.pass(b",\"upstream_us\":")?;
    let upstream = rest.number_or_null()?;
    rest.pass(b",\"limiter_us\":")?;
    rest.number_or_null()?;
    rest.pass(b",\"bytes_in\":")?;
    rest.number()?;
    rest.pass(b",\"bytes_out\":")?;
    rest.number()?;
    rest.pass(b",\"peer\":\"")?;
    let peer = rest.text()?;
    // What is left says nothing that is asked for, but it has to end as a line does.
    rest.0.trim_ascii_end().ends_with(b"}").then_some(())?;
    Some(Line {
        at,
        moment: Moment::Began,
        method: Cow::Borrowed(method),
        target: Cow::Borrowed(target),
        address: Some(Cow::Borrowed(peer)),
        identity: identity.map(Cow::Borrowed),
        tier: tier.map(Cow::Borrowed),
        status: Some(u16::try_from(status).ok()?),
        duration: Some(duration).filter(|it| *it < SPAN_MAX).map(Micros::from_micros),
        decided: Some(decided),
        is_unasked: upstream.is_none(),
        ..Line::default()
    })
}

/// What is not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn pass(&mut self, expected: &[u8]) -> Option<()> {
        self.0 = self.0.strip_prefix(expected)?;
        Some(())
    }

    /// A text without escapes, whose opening quote is passed.
    fn text(&mut self) -> Option<&'a str> {
        let (text, rest) = self.0.split_at_checked(memchr(b'"', self.0)?)?;
        if memchr(b'\\', text).is_some() {
            return None;
        }
        self.0 = rest.get(1..)?;
        std::str::from_utf8(text).ok()
    }

    fn text_or_null(&mut self) -> Option<Option<&'a str>> {
        if self.pass(b"null").is_some() {
            return Some(None);
        }
        self.pass(b"\"")?;
        self.text().map(Some)
    }

    fn number(&mut self) -> Option<u64> {
        let digits = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (number, rest) = self.0.split_at_checked(digits)?;
        self.0 = rest;
        std::str::from_utf8(number).ok()?.parse().ok()
    }

    fn number_or_null(&mut self) -> Option<Option<u64>> {
        if self.pass(b"null").is_some() { Some(None) } else { self.number().map(Some) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"ts":"2026-01-01T00:00:00.000250Z","method":"GET","path":"/a","status":429,"identity":"user:42","tier":"free","endpoint":"other","decision":"deny","limited_by":"tier:minute","remaining":0,"retry_after":30,"duration_us":812,"upstream_us":null,"limiter_us":4,"bytes_in":0,"bytes_out":79,"peer":"192.0.2.1:4711","trace_id":null}"#;

    #[test]
    fn both_ways_read_the_same() {
        for line in [
            LINE.to_owned(),
            LINE.replace("\"user:42\"", "null").replace("\"free\"", "null"),
            LINE.replace("\"upstream_us\":null", "\"upstream_us\":5").replace("deny", "allow"),
            LINE.replace("null", "7").replace("\"trace_id\":7", "\"trace_id\":\"0af7\""),
        ] {
            let read = at_once(line.as_bytes()).unwrap();
            let mut other = json::read(line.as_bytes(), &Wanted::default()).unwrap();
            other.moment = Moment::Began;
            assert_eq!(read, other, "{line}");
            assert!(is_own(line.as_bytes()));
        }
    }

    #[test]
    fn what_is_written_otherwise_is_read_as_json() {
        let escaped = LINE.replace("/a", r"/\u00e9\\");
        let spaced = LINE.replace("\",\"", "\", \"");
        for (line, target) in [(&escaped, "/é\\"), (&spaced, "/a")] {
            assert!(at_once(line.as_bytes()).is_none());
            let read = read(line.as_bytes(), &Wanted::default()).unwrap();
            assert_eq!((read.target, read.moment), (target.into(), Moment::Began));
        }
        let cut = &LINE[..LINE.len() - 20];
        assert!(matches!(read(cut.as_bytes(), &Wanted::default()), Err(Fault::Unreadable(_))));
    }
}
