//! `GET /`: the status page, one file that `web/` builds and that asks for no other.
//!
//! Everybody may have it: it holds nothing but its own looks. What it shows it asks of `/api`, with
//! the token that its user types in.

use std::sync::OnceLock;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::StatusCode;
use http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, HeaderMap, HeaderName, HeaderValue,
    REFERRER_POLICY, VARY, X_FRAME_OPTIONS,
};

use super::answers::Answer;

const HTML: &str = "text/html; charset=utf-8";
const PAGE: &str = include_str!("page.html");
const PACKED: &[u8] = include_bytes!("page.html.gz");
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// The page, packed for whoever takes that.
pub fn page_response(fields: &HeaderMap) -> Answer {
    let is_packed = takes_gzip(fields);
    let body = if is_packed { PACKED } else { PAGE.as_bytes() };
    let answer = Answer {
        status: StatusCode::OK,
        content_type: HTML,
        body: Bytes::from_static(body),
        fields: vec![
            (CONTENT_SECURITY_POLICY, content_security_policy()),
            (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
            (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
            (OPENER_POLICY, HeaderValue::from_static("same-origin")),
            (RESOURCE_POLICY, HeaderValue::from_static("same-origin")),
            (VARY, HeaderValue::from_static("accept-encoding")),
        ],
    };
    if is_packed {
        answer.with_field(CONTENT_ENCODING, HeaderValue::from_static("gzip"))
    } else {
        answer
    }
}

/// What the page may do: run its one script, use its one style sheet, ask this very port. Markup made
/// of text is refused altogether (Trusted Types).
fn content_security_policy() -> HeaderValue {
    static POLICY: OnceLock<HeaderValue> = OnceLock::new();
    let make = || {
        let policy = format!(
            "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
             require-trusted-types-for 'script'; trusted-types 'none'",
            source(between("<script>", "</script>")),
            source(between("<style>", "</style>")),
        );
        // It is plain ASCII; a policy that forbids everything would stand in for one that is not.
        let strictest = HeaderValue::from_static("default-src 'none'");
        HeaderValue::try_from(policy).unwrap_or(strictest)
    };
    POLICY.get_or_init(make).clone()
}

/// Text of the page.
fn between(start: &str, end: &str) -> &'static str {
    let rest = PAGE.split_once(start).map_or("", |(_, rest)| rest);
    rest.split_once(end).map_or("", |(text, _)| text)
}

/// A script or style sheet by its hash, as a source of CSP.
fn source(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(digest(&SHA256, text.as_bytes())))
}

/// Whether gzip is among the encodings that are taken (RFC 9110 section 12.5.3).
fn takes_gzip(fields: &HeaderMap) -> bool {
    let lists = fields.get_all(ACCEPT_ENCODING).iter().filter_map(|it| it.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let is_gzip = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let refuses = |part: &str| {
            let weight = part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="));
            weight.is_some_and(|weight| weight.trim_matches(['0', '.']).is_empty())
        };
        is_gzip && !parts.any(refuses)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(field: &str) -> bool {
        let mut fields = HeaderMap::new();
        fields.insert(ACCEPT_ENCODING, HeaderValue::from_str(field).unwrap());
        takes_gzip(&fields)
    }

    #[test]
    fn it_is_packed_for_whoever_takes_that() {
        for yes in ["gzip", "br, gzip", "GZIP;q=0.5", "gzip ; q=1", "deflate, gzip;q=0.001"] {
            assert!(takes(yes), "{yes}");
        }
        for no in ["", "identity", "gzip;q=0", "gzip; q=0.000", "br", "xgzip"] {
            assert!(!takes(no), "{no}");
        }
        let packed = page_response(&HeaderMap::from_iter([(
            ACCEPT_ENCODING,
            HeaderValue::from_static("gzip"),
        )]));
        assert!(packed.body.starts_with(&[0x1f, 0x8b]));
        assert!(packed.fields.iter().any(|(name, _)| name == CONTENT_ENCODING));
        let plain = page_response(&HeaderMap::new());
        assert!(plain.body.starts_with(b"<!doctype html>"));
        assert!(plain.fields.iter().all(|(name, _)| name != CONTENT_ENCODING));
    }

    #[test]
    fn the_policy_allows_its_own_script_and_style_and_nothing_inline() {
        let policy = content_security_policy();
        let policy = policy.to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        for (start, end) in [("<script", "</script>"), ("<style", "</style>")] {
            assert_eq!(PAGE.matches(start).count(), 1, "one {start}> only");
            assert!(between(&format!("{start}>"), end).len() > 1_000);
        }
        assert!(!PAGE.contains(" style=\"") && !PAGE.contains(" onclick="));
    }
}
