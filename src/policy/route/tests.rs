//! Which rules requests meet.

use std::net::{IpAddr, Ipv4Addr};

use http::HeaderMap;

use super::*;

fn rule(path: &str) -> Pattern {
    Pattern { path: path.into(), ..Pattern::default() }
}

fn with_methods(path: &str, methods: &[Method]) -> Pattern {
    Pattern { methods: methods.to_vec(), ..rule(path) }
}

fn with_host(path: &str, host: &str) -> Pattern {
    Pattern { host: Some(host.into()), ..rule(path) }
}

fn with_headers(path: &str, headers: &[(&'static str, &'static str)]) -> Pattern {
    let headers = headers
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    Pattern { headers: headers.collect(), ..rule(path) }
}

fn strict_only(path: &str) -> Pattern {
    Pattern { strict_only: true, ..rule(path) }
}

fn router(patterns: &[Pattern]) -> Router {
    Router::new(patterns).unwrap_or_else(|errors| panic!("{errors:?}"))
}

/// A request as the tests write it: `GET /path`, `GET host/path` or `OPTIONS *`, and fields.
fn find(
    router: &Router,
    request: &str,
    fields: &[(&'static str, &'static str)],
) -> Result<Matched, PathError> {
    let (method, target) = request.split_once(' ').unwrap();
    let (host, path) = match target.find('/') {
        Some(slash) if slash > 0 => (Some(&target[..slash]), &target[slash..]),
        _ => (None, target),
    };
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, HeaderValue::from_static(value));
    }
    router.find(&RequestFacts {
        method: &method.parse().unwrap(),
        path,
        query: None,
        host,
        peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
        headers: &headers,
        certificate: None,
    })
}

/// Checks what the strict and the lenient reading of a request meet.
fn check(router: &Router, request: &str, strict: Option<u16>, lenient: Option<u16>) {
    check_with(router, request, &[], strict, lenient);
}

fn check_with(
    router: &Router,
    request: &str,
    fields: &[(&'static str, &'static str)],
    strict: Option<u16>,
    lenient: Option<u16>,
) {
    let found = find(router, request, fields).map(|it| (it.strict, it.lenient));
    let expected = (strict.map(RuleId), lenient.map(RuleId));
    assert_eq!(found, Ok(expected), "{request} {fields:?}");
}

/// Checks that the last pattern clashes with the first.
fn check_clash(patterns: &[Pattern], words: &str) {
    let errors = Router::new(patterns).err().unwrap_or_default();
    let [error] = &errors[..] else { panic!("one error expected: {errors:?}") };
    assert_eq!((error.pattern, error.other), (patterns.len() - 1, Some(0)), "{error}");
    assert!(error.message.contains(words), "{error}");
    assert!(error.message.contains(&patterns[0].path), "{error}");
    assert!(error.message.contains(&patterns[error.pattern].path), "{error}");
}

#[test]
fn without_rules_paths_are_read_all_the_same() {
    let none = Router::default();
    check(&none, "GET /a", None, None);
    check(&none, "OPTIONS *", None, None);
    assert_eq!(find(&none, "GET /%00", &[]), Err(PathError::Nul));
    assert_eq!(find(&none, "GET /..", &[]), Err(PathError::AboveRoot));
}

#[test]
fn literals_meet_themselves_alone() {
    let rules = router(&[rule("/healthz"), rule("/"), rule("/a/b")]);
    check(&rules, "GET /healthz", Some(0), Some(0));
    check(&rules, "GET /", Some(1), Some(1));
    check(&rules, "GET /a/b", Some(2), Some(2));
    for path in ["GET /a", "GET /a/b/c", "GET /health", "GET /healthzz", "OPTIONS *"] {
        check(&rules, path, None, None);
    }
}

#[test]
fn a_trailing_slash_is_another_path_to_the_strict_reading() {
    let rules = router(&[rule("/healthz"), rule("/users/"), rule("/a/{id}")]);
    check(&rules, "GET /healthz/", None, Some(0));
    check(&rules, "GET /users/", Some(1), Some(1));
    check(&rules, "GET /users", None, Some(1));
    check(&rules, "GET /a/", None, None); // `{id}` is not empty
    check(&rules, "GET /a/7/", None, Some(2));
    let both = router(&[rule("/users"), strict_only("/users/")]);
    check(&both, "GET /users", Some(0), Some(0));
    check(&both, "GET /users/", Some(1), Some(0));
}

#[test]
fn below_is_the_path_itself_and_all_below_it() {
    let rules = router(&[rule("/ws/**")]);
    for path in ["GET /ws", "GET /ws/", "GET /ws/x", "GET /ws/x/y/", "GET /ws//x"] {
        check(&rules, path, Some(0), Some(0));
    }
    for path in ["GET /", "GET /w", "GET /wss", "GET /x/ws", "OPTIONS *"] {
        check(&rules, path, None, None);
    }
    let all = router(&[rule("/**")]);
    for path in ["GET /", "GET /a/b/c", "OPTIONS *", "GET /a//b/"] {
        check(&all, path, Some(0), Some(0));
    }
}

#[test]
fn names_meet_one_segment() {
    let rules = router(&[rule("/reports/{id}/export"), rule("/{a}/{b}/**")]);
    check(&rules, "GET /reports/7/export", Some(0), Some(0));
    check(&rules, "GET /reports/7/8/export", Some(1), Some(1));
    check(&rules, "GET /reports//export", None, Some(1));
    check(&rules, "GET /reports", None, None);
    // An encoded slash is one segment by the letter, two to who decodes it.
    check(&rules, "GET /reports/a%2fb/export", Some(0), Some(1));
}

#[test]
fn the_most_specific_path_wins_from_the_left() {
    let rules = router(&[
        rule("/**"),
        rule("/a/**"),
        rule("/{x}/b"),
        rule("/a/{x}"),
        rule("/a/b"),
        rule("/a"),
        rule("/a/{x}/c"),
        rule("/a/{x}/**"),
    ]);
    for (request, expected) in [
        ("GET /a/b", 4),
        ("GET /a/c", 3),
        ("GET /c/b", 2),
        ("GET /a", 5),
        ("GET /a/b/c", 6),
        ("GET /a/b/d", 7),
        ("GET /c", 0),
        ("GET /c/d", 0),
        ("GET /a/", 1),
    ] {
        let lenient = if request.ends_with("/a/") { 5 } else { expected };
        check(&rules, request, Some(expected), Some(lenient));
    }
}

#[test]
fn the_next_specific_rule_steps_in() {
    let rules = router(&[
        with_methods("/a/b/c", &[Method::POST]),
        with_methods("/a/{x}/c", &[Method::PUT]),
        with_methods("/a/**", &[Method::DELETE]),
        rule("/{x}/b/**"),
    ]);
    for (method, expected) in [("POST", 0), ("PUT", 1), ("DELETE", 2), ("GET", 3)] {
        check(&rules, &format!("{method} /a/b/c"), Some(expected), Some(expected));
    }
    check(&rules, "GET /a/c/c", None, None);
}

#[test]
fn get_includes_head_and_nothing_else_does() {
    let rules = router(&[with_methods("/a", &[Method::GET]), with_methods("/b", &[Method::POST])]);
    check(&rules, "GET /a", Some(0), Some(0));
    check(&rules, "HEAD /a", Some(0), Some(0));
    check(&rules, "POST /a", None, None);
    check(&rules, "get /a", None, None); // RFC 9110 §9.1: methods have case
    check(&rules, "HEAD /b", None, None);
    let head = router(&[with_methods("/a", &[Method::HEAD])]);
    check(&head, "GET /a", None, None);
}

#[test]
fn hosts_meet_without_case_and_port() {
    let rules = router(&[
        with_host("/a", "API.example.com"),
        with_host("/a", "[2001:db8:0::1]"),
        rule("/a"),
    ]);
    for (request, expected) in [
        ("GET api.example.com/a", 0),
        ("GET Api.Example.Com:8443/a", 0),
        ("GET api.example.com./a", 0),
        ("GET [2001:DB8::1]:80/a", 1),
        ("GET example.com/a", 2),
        ("GET api.example.com.evil/a", 2),
        ("GET /a", 2),
    ] {
        check(&rules, request, Some(expected), Some(expected));
    }
}

#[test]
fn headers_meet_by_exact_value_on_any_line() {
    let rules = router(&[
        with_headers("/a", &[("x-plan", "bulk")]),
        with_headers("/a", &[("x-plan", "bulk"), ("x-beta", "1")]),
        with_headers("/a", &[("x-plan", "trial")]),
    ]);
    check_with(&rules, "GET /a", &[("x-plan", "bulk")], Some(0), Some(0));
    check_with(&rules, "GET /a", &[("x-beta", "1"), ("x-plan", "bulk")], Some(1), Some(1));
    check_with(&rules, "GET /a", &[("x-plan", "Bulk")], None, None);
    check_with(&rules, "GET /a", &[("x-plan", "bulk, trial")], None, None);
    check_with(&rules, "GET /a", &[("x-plan", "none"), ("x-plan", "trial")], Some(2), Some(2));
    // Two lines that two rules ask for: the first rule of the file.
    check_with(&rules, "GET /a", &[("x-plan", "trial"), ("x-plan", "bulk")], Some(0), Some(0));
    check(&rules, "GET /a", None, None);
}

#[test]
fn host_comes_before_methods_before_headers() {
    let with_all = Pattern { host: Some("h".into()), ..with_methods("/a", &[Method::GET]) };
    let rules = router(&[
        rule("/a"),
        with_headers("/a", &[("x-a", "1"), ("x-b", "1")]),
        with_methods("/a", &[Method::GET]),
        with_host("/a", "h"),
        with_all,
    ]);
    let fields = [("x-a", "1"), ("x-b", "1")];
    check_with(&rules, "GET h/a", &fields, Some(4), Some(4));
    check_with(&rules, "POST h/a", &fields, Some(3), Some(3));
    check_with(&rules, "GET /a", &fields, Some(2), Some(2));
    check_with(&rules, "POST /a", &fields, Some(1), Some(1));
    check_with(&rules, "POST /a", &[], Some(0), Some(0));
    // The path comes before all of them.
    let rules = router(&[with_host("/{x}", "h"), rule("/a")]);
    check(&rules, "GET h/a", Some(1), Some(1));
    check(&rules, "GET h/b", Some(0), Some(0));
}

#[test]
fn patterns_are_folded_for_the_lenient_reading() {
    let rules = router(&[rule("/API/Users"), rule("/files%2Fold/{name}")]);
    check(&rules, "GET /API/Users", Some(0), Some(0));
    check(&rules, "GET /api/users", None, Some(0));
    check(&rules, "GET /Api/uSERS", None, Some(0));
    check(&rules, "GET /files%2fold/x", Some(1), Some(1));
    check(&rules, "GET /files/old/x", None, Some(1));
    check(&rules, "GET /%41PI/%55sers", Some(0), Some(0));
}

#[test]
fn no_spelling_escapes_its_rule() {
    let rules = router(&[rule("/fo/history/**"), rule("/healthz")]);
    for (spelling, strict) in [
        ("/fo/histor%79/2025", Some(0)),        // RFC 3986 §6.2.2.2
        ("/fo/./history/2025", Some(0)),        // RFC 3986 §6.2.2.3
        ("/x/../fo/history/2025", Some(0)),     // RFC 3986 §6.2.2.3
        ("/fo/x/%2e%2E/history/2025", Some(0)), // both
        ("/healthz/..//fo/history", None),      // merged slashes
        ("//fo/history/2025", None),            // GHSA-x732-6j76-qmhm
        ("/fo//history/2025", None),
        ("/fo;a=b/history/2025", None),
        ("/healthz/..;a=b/fo/history/1", None), // CVE-2026-73551
        ("/FO/History/2025", None),
        ("/fo%5chistory/2025", None),
        ("/fo%2fhistory%2f2025", None), // GHSA-gm3x-23wp-hc2c, CVE-2021-29492
        ("/fo%252fhistory", None),
        ("/fo/%2568istory", None),
        ("/%66o/history/", Some(0)),
    ] {
        check(&rules, &format!("GET {spelling}"), strict, Some(0));
    }
    // What leaves the rule by one reading stays under it by the other.
    check(&rules, "GET /fo/history/..;/..;/healthz", Some(0), Some(1));
    check(&rules, "GET /fo/history/%252e%252e/%252e%252e/healthz", Some(0), Some(1));
}

#[test]
fn every_reading_has_to_agree_and_needless_escapes_are_no_disagreement() {
    let rules = router(&[rule("/healthz"), rule("/{page}"), rule("/x/healthz")]);
    let is_certain = |path: &str| {
        let matched = find(&rules, &format!("GET {path}"), &[]).unwrap();
        matched.all(|rule| rule == RuleId(0))
    };
    let alone = router(&[rule("/healthz")]);
    let is_certain_alone = |path: &str| {
        let matched = find(&alone, &format!("GET {path}"), &[]).unwrap();
        matched.all(|rule| rule == RuleId(0))
    };
    for (path, among_others, by_itself) in [
        ("/healthz", true, true),
        // To a backend that decodes nothing it is some page, where there are pages.
        ("/he%61lthz", false, true),
        ("/healthz/", false, false),
        ("/HEALTHZ", false, false),
        ("//healthz", false, false),
        ("/x/../healthz", false, false),
    ] {
        assert_eq!(is_certain(path), among_others, "{path} among others");
        assert_eq!(is_certain_alone(path), by_itself, "{path} by itself");
    }
}

#[test]
fn strict_rules_are_met_by_the_strict_reading_alone() {
    let rules = router(&[strict_only("/Files/a%2Fb"), rule("/**")]);
    check(&rules, "GET /Files/a%2fb", Some(0), Some(1));
    check(&rules, "GET /files/a/b", Some(1), Some(1));
    // Where there is no doubt about the path, what it meets by the letter is what it meets.
    let rules = router(&[strict_only("/healthz"), rule("/{x}")]);
    check(&rules, "GET /healthz", Some(0), Some(0));
    check(&rules, "GET /he%61lthz", Some(0), Some(0));
    check(&rules, "GET //healthz", None, Some(1));
    check(&rules, "GET /Healthz", Some(1), Some(1));
    // A rule as specific whose folded pattern is this very path still holds.
    let rules = router(&[strict_only("/a"), rule("/A")]);
    check(&rules, "GET /a", Some(0), Some(1));
    check(&rules, "GET /A", Some(1), Some(1));
}

#[test]
fn equally_specific_rules_are_an_error() {
    check_clash(&[rule("/a/{id}"), rule("/a/{name}")], "is as specific as");
    check_clash(&[rule("/a/**"), rule("/b"), rule("/a/**")], "endpoints[0]");
    check_clash(&[rule("/%61"), rule("/a")], "is as specific as");
    check_clash(
        &[with_methods("/a", &[Method::GET, Method::POST]), with_methods("/a", &[Method::POST])],
        "`POST /a`",
    );
    // GET includes HEAD.
    check_clash(&[with_methods("/a", &[Method::HEAD]), with_methods("/a", &[Method::GET])], "HEAD");
    check_clash(&[with_host("/a", "h:80"), with_host("/a", "H")], "is as specific as");
    check_clash(
        &[with_headers("/a", &[("x-a", "1")]), with_headers("/a", &[("x-b", "1")])],
        "is as specific as",
    );
    let twice = with_headers("/a", &[("x-a", "1"), ("x-a", "1")]);
    check_clash(&[with_headers("/a", &[("x-a", "1")]), twice], "is as specific as");
}

#[test]
fn rules_that_are_equal_once_folded_are_an_error_too() {
    check_clash(&[rule("/Foo"), rule("/foo")], "`match: strict` on one of them");
    check_clash(&[rule("/a/"), rule("/a")], "trailing slash");
    check_clash(&[rule("/a%2Fb"), rule("/a/b")], "escapes decoded");
    router(&[rule("/Foo"), strict_only("/foo")]);
    // Told once where both readings see it.
    let errors = Router::new(&[rule("/a"), rule("/a")]).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
}

#[test]
fn rules_that_no_request_can_meet_at_once_are_none() {
    router(&[
        with_methods("/a", &[Method::POST]),
        with_methods("/a", &[Method::GET]),
        with_host("/a", "h"),
        with_host("/a", "i"),
        with_headers("/a", &[("x-a", "1")]),
        with_headers("/a", &[("x-a", "2")]),
        with_headers("/a", &[("x-a", "2"), ("x-b", "1")]),
        rule("/a"),
        rule("/a/**"),
        rule("/{x}"),
    ]);
}

#[test]
fn every_error_is_reported() {
    let errors = Router::new(&[
        rule("a"),
        rule("/b"),
        with_host("/c//{}", "*"),
        rule("/b"),
        rule("/b"),
        with_headers("/d", &[("x-a", "1")]),
    ])
    .unwrap_err();
    let places: Vec<(usize, Option<usize>)> =
        errors.iter().map(|it| (it.pattern, it.other)).collect();
    let expected = [(0, None), (2, None), (2, None), (2, None), (3, Some(1)), (4, Some(1))];
    assert_eq!(places, expected, "{errors:?}");
}

#[test]
fn more_rules_than_there_are_ids_are_refused() {
    let many: Vec<Pattern> = (0..=65_536).map(|index| rule(&format!("/r{index}"))).collect();
    let errors = Router::new(&many).unwrap_err();
    assert_eq!(errors.len(), 1);
    assert!(errors[0].message.contains("65537 rules, expected at most 65536"), "{}", errors[0]);
    assert!(Router::new(&many[..65_536]).is_ok());
}

/// Every combination of `a` and `{x}` twelve segments deep, so that a search has to come back from
/// each: 8,191 nodes. See the bound at the head of `table`; a search without it would not end.
#[test]
fn backtracking_is_bounded_by_the_rules() {
    let mut patterns: Vec<Pattern> = (0..4096_u32)
        .map(|bits| {
            let segment = |at: usize| match bits >> at & 1 {
                0 => "/a".to_owned(),
                _ => format!("/{{x{at}}}"),
            };
            with_methods(&(0..12).map(segment).collect::<String>(), &[Method::POST])
        })
        .collect();
    patterns.push(rule("/**"));
    let rules = router(&patterns);
    let path = "/a".repeat(12);
    for _ in 0..100 {
        check(&rules, &format!("GET {path}"), Some(4096), Some(4096));
        check(&rules, &format!("GET {path}/b"), Some(4096), Some(4096));
    }
    check(&rules, &format!("POST {path}"), Some(0), Some(0));
    // A long segment is looked at once, however many nodes ask for it.
    let long = format!("{path}/{}", "b".repeat(60_000));
    check(&rules, &format!("GET {long}"), Some(4096), Some(4096));
    let deep = "/a".repeat(30_000);
    check(&rules, &format!("GET {deep}"), Some(4096), Some(4096));
}

/// One path for thousands of tenants: found by host, not one after another.
#[test]
fn many_hosts_share_a_path() {
    let mut patterns: Vec<Pattern> =
        (0..5000).map(|index| with_host("/**", &format!("t{index}.example.com"))).collect();
    patterns.push(rule("/**"));
    let rules = router(&patterns);
    check(&rules, "GET t0.example.com/a", Some(0), Some(0));
    check(&rules, "GET T4999.example.com:8080/a", Some(4999), Some(4999));
    check(&rules, "GET t5000.example.com/a", Some(5000), Some(5000));
}
