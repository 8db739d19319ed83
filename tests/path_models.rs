//! The spelling of a path opens no door: models of five backends beside the real policy.
//!
//! The fuzzer runs the same models for longer; `fuzz/src/targets/models.rs` has them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "../fuzz/src/targets/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the other targets are replayed elsewhere")]
mod targets;

use proptest::prelude::*;
use proptest::sample::select;

use targets::models::MODELS;
use targets::path::no_backend_serves_it_uncounted as counted;

/// Spellings that opened doors elsewhere, and those that opened one here, each with a backend that
/// would serve the limited resource for it.
const SPELLINGS: &[(&str, &str, &str)] = &[
    ("GHSA-x732-6j76-qmhm", "//api/limited", "nginx"),
    ("GHSA-gm3x-23wp-hc2c", "/x%2f..%2fapi/limited", "nginx"),
    ("CVE-2025-32431", "/x/%2e%2e/api/limited", "nginx"),
    ("CVE-2021-29492", "/x%2f..%5c..%2fy/../api/limited", "express.static"),
    ("CVE-2021-29492", "/api%2flimited", "starlette"),
    ("CVE-2026-73551", "/x/..;a=b/api/limited", "tomcat"),
    ("GHSA-xcx5-93pw-jw2w", "/api;v=1/limited", "tomcat"),
    ("CVE-2021-41773", "/x/%252e%252e/api/limited", "tomcat"),
    ("case", "/API/Limited", "express"),
    ("trailing slash", "/api/limited/", "express"),
    ("no dot segments removed", "/fo/history/../../x", "express"),
    ("no dot segments removed", "/fo/history/%2e%2e/%2e%2e/x", "starlette"),
    ("dot segment as a name", "/reports/../export", "starlette"),
    ("encoded, then parameters of dots", "/fo%2fhistory/..;/..;/x", "nginx"),
    ("case, and a slash in a name", "/REPORTS/a%2fb/export", "express"),
    ("case, and a name of parameters alone", "/REPORTS/;x/export", "express"),
    ("a line feed behind the end", "/api/limited%0A", "starlette"),
    ("a word that is none", "/fo/history/%70ublic", "express"),
    ("a word in other letters", "/fo%2fhistory/PUBLIC", "nginx"),
    ("a word encoded twice", "/reports%2f%2561ll/export", "starlette"),
    ("backslashes", "/x%5c..%5capi%5climited", "express.static"),
];

#[test]
fn every_known_spelling_is_counted_or_refused() {
    for (what, path, backend) in SPELLINGS {
        let (_, model) = MODELS.iter().find(|(name, _)| name == backend).unwrap();
        let served = model(path.as_bytes());
        assert!(
            *what == "CVE-2021-29492" || !served.is_empty(),
            "{backend} serves {path} ({what})"
        );
        counted(path);
    }
}

/// Links as applications make them: nothing of them is refused.
#[test]
fn no_honest_link_is_refused() {
    for path in [
        "/",
        "/a/",
        "/a//b",
        "/.well-known/x",
        "/caf%C3%A9",
        "/100%25",
        "/a%2Fb",
        "/a%5Cb",
        "/a;v=1",
        "/https%3A%2F%2Fa.example%2Fb",
        "/a+b",
        "/a%20b",
        "/%7Euser",
        "/~user",
        "/a%253A",
        "/...",
        // An address as the name of something, where each depth has a rule.
        "/a%2F%2Fb",
        "/a%2Fb%252Fc",
        "/https%3A%2F%2Fa.example%2Fb%2F%2Fc%2F..%2F",
    ] {
        assert!(!targets::models::is_to_be_refused(path.as_bytes()), "{path}");
        targets::path(path.as_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4096) })]

    #[test]
    fn no_backend_serves_a_limited_path_uncounted(
        pieces in prop::collection::vec(select(vec![
            "/", "/", "/", "%2f", "%2F", "%252f", "%5c", "%255C", ".", "..", "%2e%2e", "%252e%252e",
            ".%2e", ";", ";a=b", "%3b", "api", "API", "%61pi", "limited", "fo", "Fo", "history",
            "HISTORY", "reports", "Reports", "export", "7", "a", "public", "PUBLIC", "%70ublic", "all", "All", "%2561ll", "%0a", "%25", "%C3%A9",
        ]), 0..16),
    ) {
        targets::path(format!("/{}", pieces.concat()).as_bytes());
    }

    #[test]
    fn no_twist_of_a_limited_path_is_uncounted(
        base in select(vec!["/api/limited", "/fo/history/2025", "/reports/7/export"]),
        twists in prop::collection::vec((0..100_usize, select(vec![
            "/", "/.", "/x/..", "/..", ";p", "/;", "%2f", "%2fx%2f..", "%5c", "/%2e", "%0a", "/%2e%2e",
        ])), 0..5),
        upper in any::<bool>(),
    ) {
        let mut path = if upper { base.to_ascii_uppercase() } else { base.to_owned() };
        for (place, twist) in twists {
            let place = place % (path.len() + 1);
            path.insert_str(place, twist);
        }
        if path.starts_with('/') {
            targets::path(path.as_bytes());
        }
    }
}
