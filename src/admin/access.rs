//! Who may call `/api`: whoever knows the token, or, where there is none, this machine alone.
//!
//! Without a token the API stands open to every program of the machine, its browsers among them.
//! Pages reach it in two ways: by a name of theirs that resolves to loopback (DNS rebinding), which
//! `Host` gives away, and by a request to loopback itself, which `Origin` and `Sec-Fetch-Site` give
//! away.

use std::fmt;
use std::net::IpAddr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{self, digest};
use http::header::{
    AUTHORIZATION, HOST, HeaderName, HeaderValue, ORIGIN, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::uri::Authority;
use http::{HeaderMap, StatusCode, Uri};

use crate::limiter::time::Timestamp;
use crate::metrics::edge_labels::AdminRefusal;

use super::answers::{Answer, error_response};
use super::failures::{TokenFailures, Wait};

/// W3C Fetch Metadata: where the page is from that a browser asks for.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"tollgate\"");
const FORBIDDEN: &str = "Forbidden: without admin.token_file, /api is for this machine's own \
                         callers, by a loopback address or localhost";

/// The token of `/api`, as its SHA-256: what is not kept cannot leak, and hashes are equally long.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminToken([u8; digest::SHA256_OUTPUT_LEN]);

impl AdminToken {
    /// From the token itself.
    pub fn new(token: &str) -> Self {
        AdminToken(hash(token.as_bytes()))
    }

    /// Whether this is the token. Takes as long for a wrong one, however much of it is right.
    fn is(&self, token: &[u8]) -> bool {
        verify_slices_are_equal(&self.0, &hash(token)).is_ok()
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken(..)")
    }
}

/// A request as far as access to it goes.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// Whether both ends of its connection are this machine's loopback.
    pub is_local: bool,
    /// The other end of its connection.
    pub peer: IpAddr,
    /// Whether it changes nothing: GET or HEAD.
    pub is_reading: bool,
    /// Its target.
    pub uri: &'a Uri,
    /// Its fields.
    pub fields: &'a HeaderMap,
}

/// Why a caller may not use the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The token is missing or wrong.
    Unauthorized,
    /// There were too many wrong tokens from its address.
    Throttled(Wait),
    /// There is no token, and the request is not this machine's own.
    Forbidden,
}

impl Denied {
    /// What it is counted as.
    pub fn reason(self) -> AdminRefusal {
        match self {
            Denied::Unauthorized => AdminRefusal::Token,
            Denied::Throttled(_) => AdminRefusal::Throttled,
            Denied::Forbidden => AdminRefusal::Forbidden,
        }
    }

    /// What the caller is answered: 401 with what to present (RFC 9110 section 11.6.1), 403, or
    /// 429.
    pub fn answer(self) -> Answer {
        match self {
            Denied::Unauthorized => error_response(StatusCode::UNAUTHORIZED, "Unauthorized")
                .with_field(WWW_AUTHENTICATE, CHALLENGE),
            Denied::Throttled(wait) => {
                error_response(StatusCode::TOO_MANY_REQUESTS, "Too many wrong tokens")
                    .with_field(RETRY_AFTER, HeaderValue::from(wait.seconds))
            }
            Denied::Forbidden => error_response(StatusCode::FORBIDDEN, FORBIDDEN),
        }
    }
}

/// Whether the caller may use the API at `now`.
///
/// # Errors
/// Why not.
pub fn check(
    token: Option<&AdminToken>,
    failures: &TokenFailures,
    caller: Caller<'_>,
    now: Timestamp,
) -> Result<(), Denied> {
    let Some(token) = token else {
        return if is_own(caller) { Ok(()) } else { Err(Denied::Forbidden) };
    };
    let mut fields = caller.fields.get_all(AUTHORIZATION).iter();
    // Nobody guesses who presents nothing: the page does so before its user has signed in.
    let given = fields.next().ok_or(Denied::Unauthorized)?;
    let given = bearer(given).filter(|_| fields.next().is_none());
    failures.admits(caller.peer, now).map_err(Denied::Throttled)?;
    match given {
        Some(given) if token.is(given) => Ok(()),
        _ => {
            failures.failed(caller.peer, now);
            Err(Denied::Unauthorized)
        }
    }
}

/// Whether an address is this machine's loopback.
pub fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// The token of a `Bearer` credential (RFC 6750 section 2.1); the scheme's case is of no account.
fn bearer(field: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = field.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

fn is_own(caller: Caller<'_>) -> bool {
    let mut hosts = caller.fields.get_all(HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok());
    // A target in absolute form stands above Host (RFC 9112 section 3.2.2).
    let named = caller.uri.authority().is_none_or(is_loopback_name);
    caller.is_local
        && named
        && hosts.next().is_none()
        && host.and_then(|host| host.parse().ok()).is_some_and(|host| is_loopback_name(&host))
        && is_same_machine(caller.fields)
        && (caller.is_reading || is_no_other_page(caller.fields))
}

/// Whether no page sent it but tollgate's own. Another one of this machine may ask for what it
/// cannot read, but is not to change anything.
fn is_no_other_page(fields: &HeaderMap) -> bool {
    let host = fields.get(HOST).and_then(|host| host.to_str().ok());
    let is_ours = |origin: &HeaderValue| {
        let origin = origin.to_str().ok().and_then(|it| it.parse::<Uri>().ok());
        let authority = origin.as_ref().and_then(|it| it.authority());
        authority.map(Authority::as_str).is_some_and(|it| host == Some(it))
    };
    let is_from_here = |site: &HeaderValue| site == "same-origin" || site == "none";
    fields.get_all(ORIGIN).iter().all(is_ours)
        && fields.get_all(SEC_FETCH_SITE).iter().all(is_from_here)
}

/// Whether no page of another machine has sent it.
fn is_same_machine(fields: &HeaderMap) -> bool {
    let of_origin = |origin: &HeaderValue| {
        let origin = origin.to_str().ok()?.parse::<Uri>().ok()?;
        origin.authority().map(is_loopback_name)
    };
    fields.get_all(ORIGIN).iter().all(|origin| of_origin(origin).unwrap_or(false))
        && fields.get_all(SEC_FETCH_SITE).iter().all(|site| site != "cross-site")
}

fn is_loopback_name(authority: &Authority) -> bool {
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse().is_ok_and(is_loopback)
}

fn hash(token: &[u8]) -> [u8; digest::SHA256_OUTPUT_LEN] {
    let mut hash = [0; digest::SHA256_OUTPUT_LEN];
    // SHA-256 is as long as that.
    hash.copy_from_slice(digest(&digest::SHA256, token).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::super::failures::{BURST, FORGIVEN_AFTER};
    use super::*;
    use crate::limiter::time::Micros;

    const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

    fn status(token: Option<&str>, is_local: bool, uri: &str, fields: &[(&str, &str)]) -> u16 {
        ask(token, is_local, true, uri, fields)
    }

    fn ask(
        token: Option<&str>,
        is_local: bool,
        is_reading: bool,
        uri: &str,
        fields: &[(&str, &str)],
    ) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            let name: HeaderName = name.parse().unwrap();
            map.append(name, HeaderValue::from_str(value).unwrap());
        }
        let uri = uri.parse().unwrap();
        let token = token.map(AdminToken::new);
        let peer = IpAddr::from([192, 0, 2, 1]);
        let caller = Caller { is_local, peer, is_reading, uri: &uri, fields: &map };
        match check(token.as_ref(), &TokenFailures::default(), caller, NOW) {
            Ok(()) => 200,
            Err(denied) => denied.answer().status.as_u16(),
        }
    }

    #[test]
    fn a_token_opens_the_api_from_anywhere() {
        let check = |fields: &[(&str, &str)], expected: u16| {
            for is_local in [false, true] {
                assert_eq!(status(Some("s3cret"), is_local, "/", fields), expected, "{fields:?}");
            }
        };
        check(&[("authorization", "Bearer s3cret")], 200);
        check(&[("authorization", "bEARER  s3cret "), ("host", "evil.test")], 200);
        for wrong in
            ["Bearer s3cre", "Bearer s3cret2", "Bearer ", "Bearer", "s3cret", "Basic s3cret"]
        {
            check(&[("authorization", wrong)], 401);
        }
        check(&[("host", "127.0.0.1")], 401);
        let twice = [("authorization", "Bearer s3cret"), ("authorization", "Bearer s3cret")];
        check(&twice, 401);
        assert_eq!(format!("{:?}", AdminToken::new("s3cret")), "AdminToken(..)");
    }

    #[test]
    fn without_a_token_the_host_has_to_be_loopback() {
        for host in
            ["127.0.0.1", "127.9.9.9:9900", "localhost:1", "LocalHost", "[::1]", "[::1]:9900"]
        {
            assert_eq!(status(None, true, "/", &[("host", host)]), 200, "{host}");
            assert_eq!(status(None, false, "/", &[("host", host)]), 403, "{host}");
        }
        for host in [
            "evil.test",
            "localhost.evil.test",
            "127.0.0.1.evil.test",
            "127.0.0.1@evil.test",
            "evil.test#127.0.0.1",
            "[::2]",
            "::1",
            "0.0.0.0",
            "10.0.0.1:9900",
            "",
        ] {
            assert_eq!(status(None, true, "/", &[("host", host)]), 403, "{host}");
        }
        assert_eq!(status(None, true, "/", &[]), 403);
        assert_eq!(status(None, true, "/", &[("host", "localhost"), ("host", "localhost")]), 403);
        let own = [("host", "localhost")];
        assert_eq!(status(None, true, "http://evil.test/", &own), 403);
        assert_eq!(status(None, true, "http://127.0.0.1:9900/", &own), 200);
    }

    #[test]
    fn without_a_token_no_foreign_page_gets_in() {
        let check = |name: &str, value: &str, expected: u16| {
            let fields = [("host", "127.0.0.1:9900"), (name, value)];
            assert_eq!(status(None, true, "/", &fields), expected, "{name}: {value}");
        };
        check("origin", "http://127.0.0.1:9900", 200);
        check("origin", "http://localhost:3000", 200);
        check("origin", "https://evil.test", 403);
        check("origin", "null", 403);
        check("sec-fetch-site", "same-origin", 200);
        check("sec-fetch-site", "none", 200);
        check("sec-fetch-site", "cross-site", 403);
    }

    #[test]
    fn without_a_token_no_other_page_of_this_machine_changes_anything() {
        let check = |fields: &[(&str, &str)], expected: u16| {
            let fields: Vec<_> =
                [("host", "127.0.0.1:9900")].into_iter().chain(fields.iter().copied()).collect();
            assert_eq!(ask(None, true, false, "/", &fields), expected, "{fields:?}");
        };
        check(&[], 200);
        check(&[("origin", "http://127.0.0.1:9900"), ("sec-fetch-site", "same-origin")], 200);
        check(&[("sec-fetch-site", "none")], 200);
        check(&[("origin", "http://localhost:3000")], 403);
        check(&[("origin", "http://127.0.0.1:9901")], 403);
        check(&[("origin", "null")], 403);
        check(&[("sec-fetch-site", "same-site")], 403);
        check(&[("sec-fetch-site", "cross-site")], 403);
    }

    #[test]
    fn who_presents_too_many_wrong_tokens_has_to_wait_even_with_the_right_one() {
        let (token, failures) = (AdminToken::new("s3cret"), TokenFailures::default());
        let uri = Uri::from_static("/");
        let present = |given: Option<&str>, peer: u8, now: Timestamp| {
            let mut fields = HeaderMap::new();
            if let Some(given) = given {
                let field = HeaderValue::try_from(format!("Bearer {given}")).unwrap();
                fields.insert(AUTHORIZATION, field);
            }
            let (is_local, is_reading, peer) = (false, true, IpAddr::from([192, 0, 2, peer]));
            let caller = Caller { is_local, peer, is_reading, uri: &uri, fields: &fields };
            check(Some(&token), &failures, caller, now)
        };
        for _ in 0..100 {
            assert_eq!(present(None, 1, NOW), Err(Denied::Unauthorized), "no guess");
        }
        for _ in 0..BURST {
            assert_eq!(present(Some("wrong"), 1, NOW), Err(Denied::Unauthorized));
        }
        let throttled = |seconds, is_first| Denied::Throttled(Wait { seconds, is_first });
        assert_eq!(present(Some("wrong"), 1, NOW), Err(throttled(FORGIVEN_AFTER, true)));
        assert_eq!(present(Some("s3cret"), 1, NOW), Err(throttled(FORGIVEN_AFTER, false)));
        assert_eq!(present(Some("s3cret"), 2, NOW), Ok(()), "another address");
        let later = NOW.plus(Micros::from_micros(FORGIVEN_AFTER * 1_000_000));
        assert_eq!(present(Some("s3cret"), 1, later), Ok(()));
        let answer = throttled(6, false).answer();
        assert_eq!(answer.status, 429);
        assert_eq!(answer.fields, [(RETRY_AFTER, HeaderValue::from_static("6"))]);
    }
}
