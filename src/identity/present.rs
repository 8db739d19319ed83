//! Where a request carries a credential: a header field, a cookie, a parameter of the query.
//!
//! Finds, and judges nothing.

use http::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderName};

use crate::policy::facts::RequestFacts;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presented<'r> {
    /// Nothing of the kind.
    Nothing,
    /// This credential.
    One(&'r str),
    /// Something that cannot be one: bytes that are no text, two in place of one.
    Unclear,
}

/// Where tokens are looked for, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPlaces {
    /// A header field. In `Authorization` it stands behind `Bearer`; in others that is optional.
    pub header: HeaderName,
    /// A cookie.
    pub cookie: Option<Box<str>>,
    /// A parameter of the query.
    pub query: Option<Box<str>>,
}

impl TokenPlaces {
    /// The token that the request carries.
    pub fn find<'r>(&self, facts: &RequestFacts<'r>) -> Presented<'r> {
        let found = in_field(facts, &self.header, |value| bearer(&self.header, value));
        if found != Presented::Nothing {
            return found;
        }
        let found = self.cookie.as_deref().map_or(Presented::Nothing, |name| cookie(facts, name));
        if found != Presented::Nothing {
            return found;
        }
        let parameter = self.query.as_deref().and_then(|name| parameter(facts.query?, name));
        parameter.map_or(Presented::Nothing, Presented::One)
    }
}

/// Whether a header field holds something that cannot be a credential, and that the backend may
/// take for one all the same.
pub fn is_unclear(headers: &HeaderMap, name: &HeaderName) -> bool {
    let mut lines = headers.get_all(name).iter();
    lines.next().is_some_and(|line| line.to_str().is_err() || lines.next().is_some())
}

/// What a header field holds. Two lines of it are no answer: the backend may take the other one.
pub fn in_field<'r>(
    facts: &RequestFacts<'r>,
    name: &HeaderName,
    read: impl Fn(&'r str) -> Option<&'r str>,
) -> Presented<'r> {
    let mut lines = facts.headers.get_all(name).iter();
    let Some(line) = lines.next() else { return Presented::Nothing };
    if lines.next().is_some() {
        return Presented::Unclear;
    }
    match line.to_str().map(|value| read(value.trim_ascii())) {
        Ok(Some(credential)) => Presented::One(credential),
        Ok(None) => Presented::Nothing,
        Err(_) => Presented::Unclear,
    }
}

/// The token of a field (RFC 6750 §2.1). Another scheme of `Authorization` presents none. A tab
/// divides as well as a space: backends that divide at any white space would find the token.
fn bearer<'r>(header: &HeaderName, value: &'r str) -> Option<&'r str> {
    let (scheme, rest) = value.split_once([' ', '\t']).unwrap_or((value, ""));
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim_ascii());
    }
    (*header != AUTHORIZATION && !value.is_empty()).then_some(value)
}

/// The first cookie of that name (RFC 6265 §5.4), quotation marks taken off. Other cookies need not
/// be text, as browsers do not hold them to that.
fn cookie<'r>(facts: &RequestFacts<'r>, name: &str) -> Presented<'r> {
    let lines = facts.headers.get_all(COOKIE).iter();
    let mut cookies = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    let found = cookies.find_map(|cookie| {
        let (key, value) = cookie.split_at_checked(cookie.iter().position(|it| *it == b'=')?)?;
        let value = value.get(1..).filter(|value| !value.is_empty())?;
        (key.trim_ascii() == name.as_bytes()).then_some(value.trim_ascii())
    });
    let Some(value) = found else { return Presented::Nothing };
    let value = value.strip_prefix(b"\"").and_then(|it| it.strip_suffix(b"\"")).unwrap_or(value);
    std::str::from_utf8(value).map_or(Presented::Unclear, Presented::One)
}

/// The first parameter of that name, divided from others by `&`, or by `;` as some backends still
/// have it. Its value as it stands: tokens hold nothing that is encoded. Not so its name, which a
/// sender could hide from us and not from the backend.
fn parameter<'r>(query: &'r str, name: &str) -> Option<&'r str> {
    query.split(['&', ';']).find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (!value.is_empty() && is_encoded(key, name)).then_some(value)
    })
}

/// Whether the name is what these percent-encoded bytes (RFC 3986 §2.1) stand for.
fn is_encoded(encoded: &str, name: &str) -> bool {
    let mut bytes = encoded.bytes();
    let mut next = || {
        let byte = bytes.next()?;
        if byte != b'%' {
            return Some(Some(byte));
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let value = digit().zip(digit()).map(|(high, low)| high << 4 | low);
        Some(value.and_then(|value| u8::try_from(value).ok()))
    };
    name.bytes().all(|byte| next() == Some(Some(byte))) && next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue, Method};

    fn places() -> TokenPlaces {
        let named = |name: &str| Some(name.into());
        TokenPlaces { header: AUTHORIZATION, cookie: named("session"), query: named("token") }
    }

    fn found(places: &TokenPlaces, fields: &[(&str, &[u8])], query: &str) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        let peer = "192.0.2.1".parse().unwrap();
        let facts = RequestFacts {
            method: &Method::GET,
            path: "/",
            query: Some(query),
            host: None,
            peer,
            headers: &headers,
            certificate: None,
        };
        format!("{:?}", places.find(&facts))
    }

    #[test]
    fn tokens_are_found_where_they_are_looked_for() {
        let of = |fields: &[(&str, &[u8])], query| found(&places(), fields, query);
        assert_eq!(of(&[("authorization", b"Bearer a.b.c")], ""), r#"One("a.b.c")"#);
        assert_eq!(of(&[("authorization", b"bEARER   a.b.c ")], ""), r#"One("a.b.c")"#);
        assert_eq!(of(&[("authorization", b"Bearer")], ""), r#"One("")"#);
        assert_eq!(of(&[("authorization", b"Basic YTpi")], ""), "Nothing");
        assert_eq!(of(&[("authorization", b"Bearer \xff")], ""), "Unclear");
        let twice: [(&str, &[u8]); 2] = [("authorization", b"Bearer a"); 2];
        assert_eq!(of(&twice, ""), "Unclear");
        let cookies: [(&str, &[u8]); 1] = [("cookie", b"a=1; session=\"x.y.z\"; session=2")];
        assert_eq!(of(&cookies, "token=q"), r#"One("x.y.z")"#);
        assert_eq!(of(&[("cookie", b"xsession=1")], "a=1&token=q.r.s&token=t"), r#"One("q.r.s")"#);
        assert_eq!(of(&[("authorization", b"Basic YTpi")], "token=q"), r#"One("q")"#);
        assert_eq!(of(&[], "token="), "Nothing");
        assert_eq!(of(&[("authorization", b"Bearer\ta.b.c")], ""), r#"One("a.b.c")"#);
        assert_eq!(of(&[("cookie", b"a=\xff; session=x")], ""), r#"One("x")"#);
        assert_eq!(of(&[("cookie", b"session=\xff")], "token=q"), "Unclear");
        assert_eq!(of(&[("cookie", b"session=; session; =session")], ""), "Nothing");
        assert_eq!(of(&[], "%74oke%6E=q"), r#"One("q")"#);
        for other in ["token%=q", "%74oken%20=q", "%2574oken=q", "toke=q", "tokens=q", "%7=q"] {
            assert_eq!(of(&[], other), "Nothing", "{other}");
        }
    }

    #[test]
    fn another_field_needs_no_scheme() {
        let header = HeaderName::from_static("x-token");
        let places = TokenPlaces { header, cookie: None, query: None };
        assert_eq!(found(&places, &[("x-token", b"a.b.c")], "token=1"), r#"One("a.b.c")"#);
        assert_eq!(found(&places, &[("x-token", b"Bearer a.b.c")], ""), r#"One("a.b.c")"#);
        assert_eq!(found(&places, &[("cookie", b"session=1")], ""), "Nothing");
    }
}
