//! What patterns and hosts are read as, and which are refused.

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
