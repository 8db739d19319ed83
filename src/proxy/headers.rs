//! Header fields: what makes a request unfit, what stays on one connection, what tollgate adds.

use std::cell::RefCell;

use http::header::{
    ACCESS_CONTROL_EXPOSE_HEADERS, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName,
    HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::uri::Authority;
use http::{Method, Request, StatusCode, Uri, Version};

use crate::limiter::decision::LimitStatus;
use crate::limiter::time::Timestamp;

use super::extended_connect;
use super::io::ConnState;
use super::reply::Refusal;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const PROXY: HeaderName = HeaderName::from_static("proxy");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// How `X-RateLimit-Reset` tells the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reset {
    /// Unix seconds.
    #[default]
    Epoch,
    /// Seconds from now.
    Delta,
}

/// Which fields tollgate adds to answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseFields {
    /// `X-RateLimit-Limit`, `-Remaining`, `-Reset`.
    pub x_ratelimit: bool,
    /// What `-Reset` says.
    pub reset: Reset,
    /// Name them in `Access-Control-Expose-Headers` of cross-origin answers.
    pub expose_cors: bool,
}

/// Which of the fields that a proxy has to look at a message has. Found in one pass over the names:
/// asking the map for each of them, most of which are not there, costs ten times as much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Present(u16);

impl Present {
    const CONNECTION: Present = Present(1);
    const HOP_BY_HOP: Present = Present(1 << 1);
    const TRANSFER_ENCODING: Present = Present(1 << 2);
    const TE: Present = Present(1 << 3);
    const UPGRADE: Present = Present(1 << 4);
    const EXPECT: Present = Present(1 << 5);
    const FORWARDING: Present = Present(1 << 6);
    const UNDERSCORE: Present = Present(1 << 7);
    const ORIGIN: Present = Present(1 << 8);
    const CONTENT_TYPE: Present = Present(1 << 9);
    const TRACE: Present = Present(1 << 10);

    /// Looks through the names.
    pub fn in_fields(headers: &HeaderMap) -> Self {
        headers.keys().fold(Present::default(), |present, name| {
            Present(present.0 | Self::of(name.as_str()).0)
        })
    }

    fn of(name: &str) -> Present {
        // By length first, so that nearly every name is compared with one other or none.
        match name.len() {
            2 if name == "te" => Present::TE,
            6 if name == "expect" => Present::EXPECT,
            6 if name == "origin" => Present::ORIGIN,
            7 if name == "upgrade" => Present::UPGRADE,
            9 if name == "forwarded" || name == "x-real-ip" => Present::FORWARDING,
            10 if name == "connection" => Present::CONNECTION,
            10 if name == "keep-alive" => Present::HOP_BY_HOP,
            5 if name == "proxy" => Present::FORWARDING,
            11 if name == "traceparent" => Present::TRACE,
            12 if name == "content-type" => Present::CONTENT_TYPE,
            14 if name == "http2-settings" => Present::HOP_BY_HOP,
            16 if name == "proxy-connection" => Present::HOP_BY_HOP,
            17 if name == "transfer-encoding" => Present::TRANSFER_ENCODING,
            15.. if name.starts_with("x-forwarded-") => Present::FORWARDING,
            _ if name.as_bytes().contains(&b'_') => Present::UNDERSCORE,
            _ => Present::default(),
        }
    }

    /// Whether the sender waits for a sign before it sends its body.
    pub fn expects(self) -> bool {
        self.has(Present::EXPECT)
    }

    /// Whether there may be fields that say whom the request comes from.
    pub fn names_others(self) -> bool {
        self.has(Present::FORWARDING)
    }

    /// Whether there are names with `_` in them.
    pub fn has_underscores(self) -> bool {
        self.has(Present::UNDERSCORE)
    }

    /// Whether a browser's script on another origin asks.
    pub fn is_cross_origin(self) -> bool {
        self.has(Present::ORIGIN)
    }

    /// Whether it says which trace it belongs to.
    pub fn names_trace(self) -> bool {
        self.has(Present::TRACE)
    }

    /// Whether a call of gRPC asks, in any of its forms, which reads no refusal but in its own terms.
    pub fn is_grpc(self, headers: &HeaderMap) -> bool {
        const GRPC: &[u8] = b"application/grpc";
        let is_grpc = |value: &HeaderValue| {
            let value = value.as_bytes().get(..GRPC.len());
            value.is_some_and(|value| value.eq_ignore_ascii_case(GRPC))
        };
        self.has(Present::CONTENT_TYPE)
            && headers.get(http::header::CONTENT_TYPE).is_some_and(is_grpc)
    }

    fn has(self, any: Present) -> bool {
        self.0 & any.0 != 0
    }
}

/// Checks what hyper leaves to the proxy, and settles the request's one authority in `Host`.
///
/// # Errors
/// What RFC 9112 wants refused: no `Host`, two of them, one that is no authority (§3.2), two lengths
/// (§6.3), a `Transfer-Encoding` other than `chunked` or in HTTP/1.0 (§6.1); CONNECT and TRACE,
/// which are no business of a reverse proxy, as are streams of HTTP/2 that are to speak another
/// protocol than WebSocket.
pub fn check_request<B>(request: &mut Request<B>, present: Present) -> Result<(), Refusal> {
    if *request.method() == Method::CONNECT || *request.method() == Method::TRACE {
        let is_extended = extended_connect::protocol_of(request).is_some();
        return Err(if is_extended { Refusal::UnknownProtocol } else { Refusal::MethodNotAllowed });
    }
    let version = request.version();
    if version == Version::HTTP_2 {
        settle_http2(request)?;
    }
    let headers = request.headers();
    let has_repeated = headers.len() != headers.keys_len();
    match headers.get(HOST) {
        Some(host) => check_authority(host)?,
        None if version == Version::HTTP_11 => return Err(Refusal::BadRequest),
        None => {}
    }
    // Of HTTP/1.1 hyper has made one length of equal ones; what HTTP/2 brings would go on as it came.
    let is_twice = |name: HeaderName| headers.get_all(name).iter().nth(1).is_some();
    if has_repeated && (is_twice(HOST) || is_twice(CONTENT_LENGTH)) {
        return Err(Refusal::BadRequest);
    }
    if present.has(Present::TRANSFER_ENCODING)
        && (!is_chunked_alone(headers) || version != Version::HTTP_11)
    {
        return Err(Refusal::BadRequest);
    }
    check_target(request)?;
    // RFC 9112 §3.2.2: the authority of an absolute-form target replaces Host.
    if let Some(authority) = request.uri().authority() {
        let host = HeaderValue::try_from(authority.as_str()).map_err(|_| Refusal::BadRequest)?;
        check_authority(&host)?;
        request.headers_mut().insert(HOST, host);
    }
    Ok(())
}

/// Fields of a request over HTTP/2, a cookie's pieces being one: what hyper allows over HTTP/1.1. A
/// field can cost a byte to send (RFC 7541 §6.1) and a hundred to keep.
const FIELDS_MAX: usize = 100;

/// Makes a request of HTTP/2 what one of HTTP/1.1 would be, where the library has not refused it:
/// one `Host`, one `Cookie`.
///
/// # Errors
/// What RFC 9113 calls malformed and the library lets pass: no authority, or two that differ, an
/// empty scheme, a path without its slash (§8.3.1); a value that begins or ends with a space, a name
/// with a quote (§8.2.1). More fields than HTTP/1.1 may have.
fn settle_http2<B>(request: &mut Request<B>) -> Result<(), Refusal> {
    let headers = request.headers_mut();
    if headers.len() != headers.keys_len() {
        join_cookies(headers);
    }
    if headers.len() > FIELDS_MAX {
        return Err(Refusal::TooManyFields);
    }
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let has_space = |value: &HeaderValue| {
        is_space(value.as_bytes().first()) || is_space(value.as_bytes().last())
    };
    let has_quote = |name: &HeaderName| name.as_str().contains('"');
    let headers = request.headers();
    if headers.values().any(has_space) || headers.keys().any(has_quote) {
        return Err(Refusal::BadRequest);
    }
    let uri = request.uri();
    let has_slash = uri.path_and_query().is_some_and(|it| it.as_str().starts_with(['/', '*']));
    if !has_slash || uri.scheme_str().is_some_and(str::is_empty) {
        return Err(Refusal::BadRequest);
    }
    match (request.headers().get(HOST), request.uri().authority()) {
        (None, None) => return Err(Refusal::BadRequest),
        (Some(host), Some(authority)) => {
            let authority = authority.as_str().as_bytes();
            if !host.as_bytes().eq_ignore_ascii_case(authority) {
                return Err(Refusal::BadRequest);
            }
        }
        _ => {}
    }
    Ok(())
}

/// Puts the pieces of a cookie together that HTTP/2 sent one by one (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(http::header::COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else { return };
    let mut cookie = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        cookie.extend_from_slice(b"; ");
        cookie.extend_from_slice(crumb.as_bytes());
    }
    // Parts that were field values make a field value.
    if let Ok(cookie) = HeaderValue::from_bytes(&cookie) {
        headers.insert(http::header::COOKIE, cookie);
    }
}

/// A path or a whole URI; `*` is for OPTIONS alone, an authority alone for CONNECT (RFC 9112 §3.2).
fn check_target<B>(request: &Request<B>) -> Result<(), Refusal> {
    let uri = request.uri();
    let is_asterisk = uri.path() == "*" && *request.method() == Method::OPTIONS;
    let is_authority = uri.scheme().is_none() && uri.authority().is_some();
    if is_authority || !(uri.path().starts_with('/') || is_asterisk) {
        return Err(Refusal::BadRequest);
    }
    Ok(())
}

fn check_authority(host: &HeaderValue) -> Result<(), Refusal> {
    let bytes = host.as_bytes();
    // Nearly every Host is letters, digits and dots, and perhaps a port: no need to parse it.
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    let (name, port) = match bytes.iter().position(|byte| *byte == b':') {
        Some(colon) => bytes.split_at(colon),
        None => (bytes, &b":"[..]),
    };
    let port = port.get(1..).unwrap_or_default();
    if name.first().is_some_and(u8::is_ascii_alphanumeric) && name.iter().all(is_plain) {
        return if is_port(port) { Ok(()) } else { Err(Refusal::BadRequest) };
    }
    let authority = Authority::try_from(bytes).map_err(|_| Refusal::BadRequest)?;
    let port = authority.as_str().get(authority.host().len()..).unwrap_or_default().as_bytes();
    let port_is_fine = port.is_empty() || port.strip_prefix(b":").is_some_and(is_port);
    if authority.host().is_empty()
        || bytes.contains(&b'@')
        || !port_is_fine
        || !is_ip_literal_or_none(authority.host())
    {
        return Err(Refusal::BadRequest);
    }
    Ok(())
}

/// What stands in brackets is an address of version 6 or of a later one (RFC 3986 §3.2.2); the
/// parser of `http` looks no further than the brackets.
fn is_ip_literal_or_none(host: &str) -> bool {
    let Some(literal) = host.strip_prefix('[') else { return true };
    let Some(address) = literal.strip_suffix(']') else { return false };
    address.parse::<std::net::Ipv6Addr>().is_ok() || address.starts_with(['v', 'V'])
}

/// Digits of a number below 65,536, or none (RFC 3986 §3.2.3).
fn is_port(digits: &[u8]) -> bool {
    let number = digits.iter().try_fold(0_u32, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u32::from(digit - b'0'))?;
        Some(number.saturating_mul(10).saturating_add(digit))
    });
    number.is_some_and(|number| number <= u32::from(u16::MAX))
}

/// The protocol that the request asks to upgrade to, if it may (RFC 9110 §7.8): HTTP/1.1, and the
/// `Connection` option with it; or a WebSocket on a stream of HTTP/2.
pub fn wanted_upgrade<B>(request: &Request<B>, present: Present) -> Option<HeaderValue> {
    if request.version() == Version::HTTP_2 {
        return extended_connect::is_settled(request).then_some(extended_connect::WEBSOCKET);
    }
    if !present.has(Present::UPGRADE) {
        return None;
    }
    let upgrade = request.headers().get(UPGRADE)?;
    // A change to HTTP/2 is never the origin's to accept through a proxy, wherever in the list.
    let is_h2c = upgrade.as_bytes().split(|byte| *byte == b',').any(|protocol| {
        let name = protocol.trim_ascii().get(..3);
        name.is_some_and(|name| name.eq_ignore_ascii_case(b"h2c"))
    });
    let asked = connection_options(request.headers()).any(|it| it.eq_ignore_ascii_case(b"upgrade"));
    (request.version() == Version::HTTP_11 && asked && !is_h2c).then(|| upgrade.clone())
}

/// Makes a downstream's fields fit for the upstream: takes out what belongs to the connection it
/// came on, then adds tollgate's own, so that no `Connection` option can name those.
pub fn to_upstream<B>(
    request: &mut Request<B>,
    present: Present,
    conn: &ConnState,
    peer_is_trusted: bool,
    upgrade: Option<&HeaderValue>,
) {
    let version = request.version();
    let headers = request.headers_mut();
    let wants_trailers = present.has(Present::TE) && headers.get(TE).is_some_and(names_trailers);
    strip_hop_by_hop(headers, present);
    if present.has(Present::EXPECT) {
        headers.remove(EXPECT);
    }
    if present.has(Present::TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = upgrade {
        headers.insert(UPGRADE, protocol.clone());
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if present.has(Present::UNDERSCORE) {
        drop_shadowing(headers);
    }
    let host = headers.get(HOST).cloned();
    if peer_is_trusted {
        append_forwarded_for(headers, &conn.peer.field);
        if !headers.contains_key(X_FORWARDED_PROTO) {
            headers.insert(X_FORWARDED_PROTO, conn.peer.scheme.clone());
        }
        if let (false, Some(host)) = (headers.contains_key(X_FORWARDED_HOST), host) {
            headers.insert(X_FORWARDED_HOST, host);
        }
    } else {
        if present.has(Present::FORWARDING) {
            drop_forwarding(headers);
        }
        headers.insert(X_FORWARDED_FOR, conn.peer.field.clone());
        headers.insert(X_FORWARDED_PROTO, conn.peer.scheme.clone());
        match host {
            Some(host) => headers.insert(X_FORWARDED_HOST, host),
            None => headers.remove(X_FORWARDED_HOST),
        };
    }
    // The protocol that the request came by (RFC 9110 §7.6.3).
    let via = match version {
        Version::HTTP_10 => "1.0 tollgate",
        Version::HTTP_2 => "2.0 tollgate",
        _ => "1.1 tollgate",
    };
    headers.append(VIA, HeaderValue::from_static(via));
    *request.version_mut() = Version::HTTP_11;
    if request.uri().scheme().is_some() || request.uri().authority().is_some() {
        *request.uri_mut() = origin_form(request.uri());
    }
}

/// Takes out of an answer what belongs to the upstream's connection. Its framing is decided anew
/// for the downstream's.
///
/// # Errors
/// It frames the body in a coding other than `chunked`, or says two lengths (RFC 9112 §6.3).
pub fn to_downstream(status: StatusCode, headers: &mut HeaderMap) -> Result<(), Refusal> {
    let present = Present::in_fields(headers);
    if present.has(Present::TRANSFER_ENCODING) {
        if !is_chunked_alone(headers) {
            return Err(Refusal::UpstreamBroken);
        }
        // RFC 9112 §6.3: where both are there, Transfer-Encoding framed the body.
        headers.remove(CONTENT_LENGTH);
    } else {
        settle_content_length(headers)?;
    }
    if status == StatusCode::NO_CONTENT {
        // RFC 9110 §8.6. Clients of HTTP/2 take one for a broken stream.
        headers.remove(CONTENT_LENGTH);
    }
    strip_hop_by_hop(headers, present);
    Ok(())
}

/// Whether `Transfer-Encoding` is `chunked`, once. hyper looks only at the end of each line, and
/// takes the chunks apart but no coding below them.
fn is_chunked_alone(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let first = codings.next().is_some_and(|coding| {
        let coding = coding.as_bytes().trim_ascii();
        coding.eq_ignore_ascii_case(b"chunked")
    });
    first && codings.next().is_none()
}

/// Makes one length of several equal ones: hyper would pass a list on as it came, and cannot send
/// two lines in answer to HEAD.
fn settle_content_length(headers: &mut HeaderMap) -> Result<(), Refusal> {
    let mut lines = headers.iter().filter(|(name, _)| *name == CONTENT_LENGTH);
    let Some((_, first)) = lines.next() else { return Ok(()) };
    // No more digits than a u64 surely holds.
    let is_digits = |it: &[u8]| (1..20).contains(&it.len()) && it.iter().all(u8::is_ascii_digit);
    if lines.next().is_none() && is_digits(first.as_bytes()) {
        return Ok(());
    }
    let mut lengths = headers
        .get_all(CONTENT_LENGTH)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii);
    let length = lengths.next().unwrap_or_default();
    if !is_digits(length) || lengths.any(|other| other != length) {
        return Err(Refusal::UpstreamBroken);
    }
    let length = HeaderValue::from_bytes(length).map_err(|_| Refusal::UpstreamBroken)?;
    headers.insert(CONTENT_LENGTH, length);
    Ok(())
}

/// Takes out of a trailer what frames a message, routes it, says who sends it or belongs to
/// tollgate (RFC 9110 §6.5.1): an upstream that merges trailers into its fields would believe it.
/// `credentials`: fields that say who sends it, beside those that are known to.
pub fn strip_trailers<'n>(
    trailers: &mut HeaderMap,
    credentials: impl Iterator<Item = &'n HeaderName>,
) {
    for name in credentials {
        trailers.remove(name);
    }
    let unfit: Vec<HeaderName> = trailers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            name.contains('_')
                || name.starts_with("x-forwarded-")
                || name.starts_with("x-ratelimit-")
                || name.starts_with("proxy-")
                || matches!(
                    name,
                    "authorization"
                        | "connection"
                        | "content-encoding"
                        | "content-length"
                        | "content-type"
                        | "cookie"
                        | "expect"
                        | "forwarded"
                        | "host"
                        | "http2-settings"
                        | "keep-alive"
                        | "retry-after"
                        | "set-cookie"
                        | "te"
                        | "trailer"
                        | "transfer-encoding"
                        | "upgrade"
                        | "via"
                        | "x-api-key"
                        | "x-real-ip"
                )
        })
        .cloned()
        .collect();
    for name in unfit {
        trailers.remove(name);
    }
}

/// Shows the state of one limit in an answer, in place of what the upstream said of its own.
pub fn add_limit(
    headers: &mut HeaderMap,
    fields: ResponseFields,
    shown: &LimitStatus,
    now: Timestamp,
    numbers: &Numbers,
) {
    if !fields.x_ratelimit {
        return;
    }
    let reset = match fields.reset {
        Reset::Epoch => shown.whole_at.as_secs_ceil(),
        Reset::Delta => shown.whole_at.since(now).as_secs_ceil(),
    };
    headers.insert(X_RATELIMIT_LIMIT, numbers.written(&numbers.limit, shown.limit.into()));
    headers.insert(X_RATELIMIT_REMAINING, HeaderValue::from(shown.remaining));
    headers.insert(X_RATELIMIT_RESET, numbers.written(&numbers.reset, reset));
}

/// The last limit and the last reset that a worker wrote out: most answers of one second have
/// both in common.
#[derive(Debug, Default)]
pub struct Numbers {
    limit: RefCell<Option<(u64, HeaderValue)>>,
    reset: RefCell<Option<(u64, HeaderValue)>>,
}

impl Numbers {
    fn written(&self, last: &RefCell<Option<(u64, HeaderValue)>>, number: u64) -> HeaderValue {
        let mut last = last.borrow_mut();
        match &*last {
            Some((known, value)) if *known == number => value.clone(),
            _ => {
                let value = HeaderValue::from(number);
                *last = Some((number, value.clone()));
                value
            }
        }
    }
}

/// Lets a browser's script read the limit's fields.
pub fn expose_to_scripts(headers: &mut HeaderMap, fields: ResponseFields) {
    if fields.x_ratelimit && fields.expose_cors {
        let names = "X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, Retry-After";
        headers.append(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(names));
    }
}

/// Removes the fields of one connection (RFC 9110 §7.6.1): those that `Connection` names, on any
/// of its lines, and those that always are.
fn strip_hop_by_hop(headers: &mut HeaderMap, present: Present) {
    if present.has(Present::CONNECTION) {
        // One line that names nothing else is what nearly everybody sends.
        let is_plain = |line: &HeaderValue| {
            let line = line.as_bytes();
            line.eq_ignore_ascii_case(b"keep-alive") || line.eq_ignore_ascii_case(b"close")
        };
        if !headers.get_all(CONNECTION).iter().all(is_plain) {
            let named: Vec<HeaderName> = connection_options(headers)
                .filter_map(|option| HeaderName::try_from(option).ok())
                .filter(|name| !is_end_to_end(name))
                .collect();
            for name in named {
                headers.remove(name);
            }
        }
        headers.remove(CONNECTION);
    }
    if present.has(Present::HOP_BY_HOP) {
        headers.remove(KEEP_ALIVE);
        headers.remove(PROXY_CONNECTION);
        headers.remove(HTTP2_SETTINGS);
    }
    if present.has(Present::TRANSFER_ENCODING) {
        headers.remove(TRANSFER_ENCODING);
    }
    if present.has(Present::TE) {
        headers.remove(TE);
    }
    if present.has(Present::UPGRADE) {
        headers.remove(UPGRADE);
    }
}

/// Fields that no `Connection` option may take away: they say what the message is, for whom, and
/// who may see it.
fn is_end_to_end(name: &HeaderName) -> bool {
    const KEPT: [HeaderName; 8] = [
        HOST,
        CONTENT_LENGTH,
        http::header::CONTENT_TYPE,
        http::header::AUTHORIZATION,
        http::header::COOKIE,
        http::header::CACHE_CONTROL,
        TRAILER,
        X_FORWARDED_FOR,
    ];
    KEPT.contains(name)
}

/// Read as bytes: one option that is no text must not hide those beside it.
fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|option| !option.is_empty())
}

fn names_trailers(te: &HeaderValue) -> bool {
    te.to_str()
        .is_ok_and(|te| te.split(',').any(|coding| coding.trim().eq_ignore_ascii_case("trailers")))
}

/// Drops what only a trusted peer may say of who asks, and for what. `Proxy` is none of these, but
/// becomes the environment variable `HTTP_PROXY` of a CGI program (CVE-2016-5385).
fn drop_forwarding(headers: &mut HeaderMap) {
    let vouching: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let is_other = [FORWARDED, X_REAL_IP, PROXY].contains(name);
            is_other || name.as_str().starts_with("x-forwarded-")
        })
        .cloned()
        .collect();
    for name in vouching {
        headers.remove(name);
    }
}

/// Drops fields whose names differ from ones that tollgate vouches for in `_` for `-` only: many
/// backends read both as one (`X_Forwarded_For`, `Content_Length`).
fn drop_shadowing(headers: &mut HeaderMap) {
    let shadowing: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().contains('_'))
        .filter(|name| {
            let real = name.as_str().replace('_', "-");
            real.starts_with("x-forwarded-")
                || matches!(
                    real.as_str(),
                    "content-length"
                        | "transfer-encoding"
                        | "x-real-ip"
                        | "forwarded"
                        | "host"
                        | "via"
                        | "connection"
                        | "authorization"
                        | "x-api-key"
                )
        })
        .cloned()
        .collect();
    for name in shadowing {
        headers.remove(name);
    }
}

/// Adds the peer behind the chain that a trusted peer sent, as one line.
fn append_forwarded_for(headers: &mut HeaderMap, peer: &HeaderValue) {
    let mut chain: Vec<u8> = Vec::new();
    for line in headers.get_all(X_FORWARDED_FOR) {
        chain.extend_from_slice(line.as_bytes());
        chain.extend_from_slice(b", ");
    }
    chain.extend_from_slice(peer.as_bytes());
    // Parts that were field values make a field value.
    let chain = HeaderValue::from_bytes(&chain).unwrap_or_else(|_| peer.clone());
    headers.insert(X_FORWARDED_FOR, chain);
}

/// The target as an origin server wants it: path and query, byte for byte (RFC 9112 §3.2.1).
fn origin_form(uri: &Uri) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = uri.path_and_query().cloned();
    Uri::from_parts(parts).unwrap_or_default()
}
