//! What an operator may write as the path and the host of an endpoint rule, and what it means to
//! each reading of a path.
//!
//! Pure translation: nothing here knows of other rules or of requests.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use super::path::{check_bytes, check_no_nul, decode_twice, forgiving_segments, push_normal};

/// The most segments that a pattern may have. Bounds the depth of a search; a path of a request
/// may be longer.
pub const SEGMENTS_MAX: usize = 32;
/// The longest host name (RFC 1035 §2.3.4, without the final dot).
const HOST_BYTES_MAX: usize = 253;

/// One segment of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Exactly these bytes; none of them behind a trailing slash.
    Literal(Box<[u8]>),
    /// `{name}`: any segment that is not empty.
    Any,
}

/// A pattern's path as each reading meets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    /// For the strict reading of a path.
    pub strict: Vec<Segment>,
    /// For the lenient one: literals are decoded and folded as the path is.
    pub lenient: Vec<Segment>,
    /// Ends in `/**`: the path and all below it.
    pub below: bool,
}

impl PathPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with what was expected.
    pub fn parse(path: &str) -> Result<Self, Vec<String>> {
        let Some(rooted) = path.strip_prefix('/') else {
            return Err(vec![format!("`{path}`, expected a path that begins with `/`")]);
        };
        if let Some(mark) = path.chars().find(|it| matches!(it, '?' | '#')) {
            let what = if mark == '?' { "a query" } else { "a fragment" };
            return Err(vec![format!("`{path}` holds {what}, expected a path alone")]);
        }
        let (segments, below) = match path.strip_suffix("/**") {
            // Of `/**` nothing is left, of `/a/**` it is `/a`.
            Some(base) => (base.strip_prefix('/'), true),
            None => (Some(rooted), false),
        };
        let segments: Vec<&str> = segments.map_or_else(Vec::new, |it| it.split('/').collect());

        let mut pattern = PathPattern { strict: Vec::new(), lenient: Vec::new(), below };
        let mut names = Vec::new();
        let mut errors = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            let is_trailing_slash = segment.is_empty() && index + 1 == segments.len() && !below;
            let result = if is_trailing_slash {
                pattern.strict.push(Segment::Literal(Box::default()));
                Ok(())
            } else if segment.contains(['{', '}']) {
                pattern.push_any(segment, &mut names)
            } else {
                pattern.push_literal(segment)
            };
            errors.extend(result.err().map(|what| format!("`{path}`: {what}")));
        }
        // The root's own slash is not cut.
        if pattern.lenient.is_empty() && !below {
            pattern.lenient.push(Segment::Literal(Box::default()));
        }
        let longest = pattern.strict.len().max(pattern.lenient.len());
        if longest > SEGMENTS_MAX {
            errors.push(format!("`{path}`: {longest} segments, expected at most {SEGMENTS_MAX}"));
        }
        if errors.is_empty() { Ok(pattern) } else { Err(errors) }
    }

    fn push_any<'a>(&mut self, segment: &'a str, names: &mut Vec<&'a str>) -> Result<(), String> {
        let name = segment
            .strip_prefix('{')
            .and_then(|it| it.strip_suffix('}'))
            .filter(|it| !it.contains(['{', '}']))
            .ok_or_else(|| {
                format!("segment `{segment}`, expected `{{name}}` alone (a literal brace is `%7B`)")
            })?;
        let is_word = |it: char| it.is_ascii_alphanumeric() || matches!(it, '_' | '-' | '.');
        if name.is_empty() || !name.chars().all(is_word) {
            return Err(format!(
                "segment `{segment}`, expected a name of ASCII letters, digits, `_`, `-` and `.` \
                 in the braces"
            ));
        }
        if names.contains(&name) {
            return Err(format!("two segments `{segment}`, expected each name once"));
        }
        names.push(name);
        self.strict.push(Segment::Any);
        self.lenient.push(Segment::Any);
        Ok(())
    }

    fn push_literal(&mut self, segment: &str) -> Result<(), String> {
        if segment.is_empty() {
            return Err("an empty segment, expected single slashes".into());
        }
        if segment.contains('*') {
            return Err(format!(
                "segment `{segment}`, expected `/**` at the end, or `{{name}}` for any one segment"
            ));
        }
        check_bytes(segment.as_bytes()).map_err(|error| error.to_string())?;
        let decoded = decode_twice(segment.as_bytes());
        check_no_nul(&decoded).map_err(|error| error.to_string())?;
        let mut strict = Vec::with_capacity(segment.len());
        push_normal(segment.as_bytes(), &mut strict);
        let is_dots = |it: &[u8]| matches!(it, b"." | b"..");
        if is_dots(&strict) || forgiving_segments(&decoded).any(is_dots) {
            return Err(format!("dot segment `{segment}`, expected a path without any"));
        }
        let before = self.lenient.len();
        self.lenient.extend(
            forgiving_segments(&decoded)
                .map(|it| Segment::Literal(it.to_ascii_lowercase().into_boxed_slice())),
        );
        if self.lenient.len() == before {
            return Err(format!(
                "segment `{segment}`, which a forgiving backend reads as empty, expected more than \
                 slashes and `;parameters`"
            ));
        }
        self.strict.push(Segment::Literal(strict.into()));
        Ok(())
    }
}

/// A request's authority as hosts are compared: no user, no port, no final dot, lower case; an
/// IPv6 literal in brackets and in its canonical form.
pub fn normal_host(authority: &str) -> Cow<'_, str> {
    let host = authority.rsplit('@').next().unwrap_or_default();
    if let Some(literal) = host.strip_prefix('[') {
        let literal = literal.split(']').next().unwrap_or_default();
        return match literal.parse::<Ipv6Addr>() {
            Ok(address) => Cow::Owned(format!("[{address}]")),
            Err(_) => Cow::Borrowed(host),
        };
    }
    let name = host.split(':').next().unwrap_or_default();
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

/// Reads the host of a rule. A port may be there; it does not count.
///
/// # Errors
/// What was found and what was expected.
pub fn parse_host(text: &str) -> Result<Box<str>, String> {
    const EXPECTED: &str = "expected a host name, an IPv4 address or `[IPv6]`";
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(format!("host `{text}`, expected it in brackets: `[{text}]`"));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (text, ""),
    };
    let host_is_fine = match host.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
        Some(literal) => literal.parse::<Ipv6Addr>().is_ok(),
        None => {
            let name = host.strip_suffix('.').unwrap_or(host);
            let is_word = |it: char| it.is_ascii_alphanumeric() || matches!(it, '-' | '_' | '.');
            !name.is_empty() && name.len() <= HOST_BYTES_MAX && name.chars().all(is_word)
        }
    };
    if host.contains('*') {
        return Err(format!("host `{text}`, {EXPECTED}; there are no wildcards here"));
    }
    if !host_is_fine || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("host `{text}`, {EXPECTED}"));
    }
    Ok(normal_host(text).into())
}

#[cfg(test)]
mod tests;
