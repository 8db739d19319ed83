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
mod tests {
    use super::*;

    fn written(segments: &[Segment], below: bool) -> String {
        let mut text: String = segments
            .iter()
            .map(|segment| match segment {
                Segment::Literal(bytes) => format!("/{}", bytes.escape_ascii()),
                Segment::Any => "/{}".into(),
            })
            .collect();
        if below {
            text.push_str("/**");
        }
        text
    }

    /// How a pattern's strict and lenient forms look.
    fn check(path: &str, strict: &str, lenient: &str) {
        let pattern = PathPattern::parse(path).unwrap_or_else(|errors| panic!("{errors:?}"));
        assert_eq!(written(&pattern.strict, pattern.below), strict, "strict form of {path}");
        assert_eq!(written(&pattern.lenient, pattern.below), lenient, "lenient form of {path}");
    }

    fn check_refused(path: &str, words: &str) {
        let errors = PathPattern::parse(path).expect_err(path);
        let [error] = &errors[..] else { panic!("one error expected for {path}: {errors:?}") };
        assert!(error.contains(words), "{error:?} does not say {words:?}");
        assert!(error.starts_with(&format!("`{path}`")), "{error:?} does not name {path:?}");
    }

    #[test]
    fn what_a_pattern_may_be() {
        check("/", "/", "/");
        check("/**", "/**", "/**");
        check("/healthz", "/healthz", "/healthz");
        check("/fo/history/**", "/fo/history/**", "/fo/history/**");
        check("/reports/{id}/export", "/reports/{}/export", "/reports/{}/export");
        check("/{a}/{b}/**", "/{}/{}/**", "/{}/{}/**");
        check("/a/{user.id}", "/a/{}", "/a/{}");
        check("/users/", "/users/", "/users"); // some frameworks end every path so
        check("/{id}/", "/{}/", "/{}");
    }

    #[test]
    fn literals_take_each_reading() {
        check("/API/Users", "/API/Users", "/api/users");
        check("/%61pi/%7euser", "/api/~user", "/api/~user");
        check("/a%2fb", "/a%2Fb", "/a/b");
        check("/a%255Cb", "/a%255Cb", "/a/b");
        check("/a;v=1/b", "/a;v=1/b", "/a/b");
        check("/caf\u{e9}/a b", "/caf%C3%A9/a%20b", "/caf\\xc3\\xa9/a b");
        check("/%7Bid%7D", "/%7Bid%7D", "/{id}");
        check("/100%25", "/100%25", "/100%");
    }

    #[test]
    fn what_a_pattern_may_not_be() {
        check_refused("", "begins with `/`");
        check_refused("a/b", "begins with `/`");
        check_refused("**", "begins with `/`");
        check_refused("/a?b=c", "a query");
        check_refused("/a#b", "a fragment");
        check_refused("/a//b", "an empty segment");
        check_refused("//", "an empty segment");
        check_refused("/a//**", "an empty segment");
        check_refused("/**/a", "`/**` at the end");
        check_refused("/a**", "`/**` at the end");
        check_refused("/a/*", "`{name}` for any one segment");
        check_refused("/a/./b", "dot segment");
        check_refused("/a/..", "dot segment");
        check_refused("/a/%2e%2E/b", "dot segment");
        check_refused("/a/%252e", "dot segment");
        check_refused("/a/..;x/b", "dot segment");
        check_refused("/a%2f../b", "dot segment");
        check_refused("/;v=1/**", "reads as empty");
        check_refused("/a/%2f", "reads as empty");
        check_refused("/a%", "two hexadecimal digits");
        check_refused("/a%00", "NUL");
        check_refused("/a%2500", "NUL");
        check_refused("/a\\b", "raw backslash");
        check_refused("/a\tb", "raw control character");
        check_refused(&"/a".repeat(SEGMENTS_MAX + 1), "33 segments, expected at most 32");
        check_refused(&"/a%2fa".repeat(SEGMENTS_MAX), "64 segments, expected at most 32");
    }

    #[test]
    fn braces_are_whole_segments_with_names_of_their_own() {
        check_refused("/{}", "a name");
        check_refused("/{a b}", "a name");
        check_refused("/{*rest}", "a name");
        check_refused("/{+rest}", "a name");
        for path in ["/{", "/}", "/{a", "/a}", "/x{a}", "/{a}x", "/{a}{b}", "/{{a}}", "/}a{"] {
            check_refused(path, "`{name}` alone");
        }
        check_refused("/{id}/x/{id}", "each name once");
    }

    #[test]
    fn every_fault_of_a_pattern_is_told() {
        let errors = PathPattern::parse("/a//{}/./*").unwrap_err();
        assert_eq!(errors.len(), 4, "{errors:?}");
    }

    #[test]
    fn hosts_are_compared_without_case_port_and_final_dot() {
        for (text, host) in [
            ("Example.COM", "example.com"),
            ("example.com:8080", "example.com"),
            ("example.com.", "example.com"),
            ("EXAMPLE.com.:80", "example.com"),
            ("203.0.113.7:1", "203.0.113.7"),
            ("[2001:DB8:0::1]:443", "[2001:db8::1]"),
            ("[::1]", "[::1]"),
            ("my_host", "my_host"),
        ] {
            assert_eq!(normal_host(text), host, "{text}");
            assert_eq!(parse_host(text).as_deref(), Ok(host), "{text}");
        }
        assert_eq!(normal_host("user@example.com"), "example.com");
        assert_eq!(normal_host(""), "");
        assert_eq!(normal_host("["), "[");
    }

    #[test]
    fn what_a_host_may_not_be() {
        for (text, words) in [
            ("", "expected a host name"),
            ("::1", "in brackets: `[::1]`"),
            ("[::1", "expected a host name"),
            ("[example.com]", "expected a host name"),
            ("*.example.com", "no wildcards"),
            ("http://example.com", "expected a host name"),
            ("example.com/a", "expected a host name"),
            ("example.com:http", "expected a host name"),
            ("b\u{fc}cher.example", "expected a host name"),
            ("user@example.com", "expected a host name"),
        ] {
            let error = parse_host(text).expect_err(text);
            assert!(error.contains(words), "{error:?} does not say {words:?}");
        }
    }
}
