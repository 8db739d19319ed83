//! Every answer that tollgate makes itself, and the only map from an error to a status.

use bytes::{Bytes, BytesMut};
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use crate::health::breaker::Outcome;
use crate::metrics::labels::Ending;

use super::body::ProxyBody;

/// Names the proxy and its reason (RFC 9209).
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
// The codes of gRPC that a refusal can have.
const CANCELLED: u16 = 1;
const UNKNOWN: u16 = 2;
const PERMISSION_DENIED: u16 = 7;
const RESOURCE_EXHAUSTED: u16 = 8;
const UNIMPLEMENTED: u16 = 12;
const INTERNAL: u16 = 13;
const UNAVAILABLE: u16 = 14;
const UNAUTHENTICATED: u16 = 16;
/// A whole 408, for a head that hyper never saw the end of.
pub const REQUEST_TIMEOUT_RAW: &str = "HTTP/1.1 408 Request Timeout\r\n\
    content-type: application/json\r\ncontent-length: 27\r\nconnection: close\r\n\
    proxy-status: tollgate; error=http_request_error\r\n\r\n{\"error\":\"Request timeout\"}";
/// Fields of an own answer, `date` included.
const FIELDS: usize = 12;
/// Whole answers to heads that hyper could not read.
const UNREADABLE: [(&[u8], &str); 3] = [
    (
        b"HTTP/1.1 400 ",
        "HTTP/1.1 400 Bad Request\r\n\
        content-type: application/json\r\ncontent-length: 23\r\nconnection: close\r\n\
        proxy-status: tollgate; error=http_request_error\r\n\r\n{\"error\":\"Bad request\"}",
    ),
    (
        b"HTTP/1.1 414 ",
        "HTTP/1.1 414 URI Too Long\r\n\
        content-type: application/json\r\ncontent-length: 24\r\nconnection: close\r\n\
        proxy-status: tollgate; error=http_request_error\r\n\r\n{\"error\":\"URI too long\"}",
    ),
    (
        b"HTTP/1.1 431 ",
        "HTTP/1.1 431 Request Header Fields Too Large\r\n\
        content-type: application/json\r\ncontent-length: 43\r\nconnection: close\r\n\
        proxy-status: tollgate; error=http_request_error\r\n\r\n\
        {\"error\":\"Request header fields too large\"}",
    ),
];
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What tollgate says with a status: in the body, and in the terms of gRPC.
struct Words {
    status: StatusCode,
    /// The whole body.
    body: &'static str,
    message: &'static str,
    grpc_status: u16,
}

macro_rules! words {
    ($($status:ident $message:literal $grpc_status:ident,)*) => {
        const WORDS: &[Words] = &[$(Words {
            status: StatusCode::$status,
            body: concat!(r#"{"error":""#, $message, r#""}"#),
            message: $message,
            grpc_status: $grpc_status,
        }),*];
    };
}

words! {
    // The protocol maps the statuses of HTTP so, where ours does not say more.
    BAD_REQUEST "Bad request" INTERNAL,
    UNAUTHORIZED "Unauthorized" UNAUTHENTICATED,
    FORBIDDEN "Forbidden" PERMISSION_DENIED,
    METHOD_NOT_ALLOWED "Method not allowed" UNKNOWN,
    REQUEST_TIMEOUT "Request timeout" CANCELLED,
    PAYLOAD_TOO_LARGE "Content too large" RESOURCE_EXHAUSTED,
    REQUEST_HEADER_FIELDS_TOO_LARGE "Request header fields too large" RESOURCE_EXHAUSTED,
    TOO_MANY_REQUESTS "Rate limit exceeded" RESOURCE_EXHAUSTED,
    NOT_IMPLEMENTED "Not implemented" UNIMPLEMENTED,
    BAD_GATEWAY "Bad gateway" UNAVAILABLE,
    SERVICE_UNAVAILABLE "Service unavailable" UNAVAILABLE,
    GATEWAY_TIMEOUT "Gateway timeout" UNAVAILABLE,
}

impl Words {
    fn of(status: StatusCode) -> Option<&'static Words> {
        WORDS.iter().find(|words| words.status == status)
    }
}

/// Why tollgate answers a request itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Malformed or ambiguous: 400.
    BadRequest,
    /// A credential that is not believed, where that is not passed over: 401.
    Unauthorized,
    /// The identity is on the deny list: 403.
    Forbidden,
    /// CONNECT or TRACE: 405.
    MethodNotAllowed,
    /// A stream is to speak a protocol that is not spoken: 501 (RFC 9220 §3).
    UnknownProtocol,
    /// A stream was to become a WebSocket, and what it asked for is none: 400.
    NoWebSocket,
    /// The body stalled: 408.
    RequestTimeout,
    /// The body is above the limit: 413.
    ContentTooLarge,
    /// The head has too many fields: 431.
    TooManyFields,
    /// The upstream could not be reached: 502.
    UpstreamUnreachable,
    /// The upstream broke off before its head, or what it sent is no HTTP: 502.
    UpstreamBroken,
    /// No connection to the upstream in time: 504.
    ConnectTimeout,
    /// No response head in time: 504.
    ResponseTimeout,
    /// The store does not answer and the failure mode is `closed`: 503.
    StoreUnavailable,
    /// The upstream has failed so often that it is not asked: 503.
    CircuitOpen {
        /// Whole seconds until it may be asked again, at least one.
        retry_after: u32,
    },
}

impl Refusal {
    /// How a request ends that is refused so.
    pub const fn ending(self) -> Ending {
        match self {
            Refusal::StoreUnavailable => Ending::ProxyError,
            Refusal::CircuitOpen { .. } => Ending::CircuitOpen,
            Refusal::Unauthorized => Ending::Unauthorized,
            Refusal::UpstreamUnreachable | Refusal::UpstreamBroken => Ending::UpstreamConnect,
            Refusal::ConnectTimeout | Refusal::ResponseTimeout => Ending::UpstreamTimeout,
            Refusal::BadRequest
            | Refusal::Forbidden
            | Refusal::MethodNotAllowed
            | Refusal::UnknownProtocol
            | Refusal::NoWebSocket
            | Refusal::RequestTimeout
            | Refusal::ContentTooLarge
            | Refusal::TooManyFields => Ending::Refused,
        }
    }

    /// The status that it is answered with.
    pub fn status(self) -> StatusCode {
        self.parts().0
    }

    /// What it says of the upstream, if it says anything.
    pub fn of_upstream(self) -> Option<Outcome> {
        match self {
            Refusal::UpstreamUnreachable
            | Refusal::UpstreamBroken
            | Refusal::ConnectTimeout
            | Refusal::ResponseTimeout => Some(Outcome::Bad),
            // It answered.
            Refusal::NoWebSocket => Some(Outcome::Good),
            Refusal::BadRequest
            | Refusal::Unauthorized
            | Refusal::Forbidden
            | Refusal::MethodNotAllowed
            | Refusal::UnknownProtocol
            | Refusal::RequestTimeout
            | Refusal::ContentTooLarge
            | Refusal::TooManyFields
            | Refusal::StoreUnavailable
            | Refusal::CircuitOpen { .. } => None,
        }
    }

    /// Status, and the value of `Proxy-Status`.
    fn parts(self) -> (StatusCode, &'static str) {
        const FORM: &str = "tollgate; error=http_request_error";
        const DENIED: &str = "tollgate; error=http_request_denied";
        const NO_TUNNEL: &str = "tollgate; error=http_upgrade_failed";
        const UNAVAILABLE: &str = "tollgate; error=destination_unavailable";
        match self {
            Refusal::BadRequest => (StatusCode::BAD_REQUEST, FORM),
            Refusal::Unauthorized => (StatusCode::UNAUTHORIZED, DENIED),
            Refusal::Forbidden => (StatusCode::FORBIDDEN, DENIED),
            Refusal::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, FORM),
            Refusal::UnknownProtocol => (StatusCode::NOT_IMPLEMENTED, FORM),
            Refusal::NoWebSocket => (StatusCode::BAD_REQUEST, NO_TUNNEL),
            Refusal::RequestTimeout => (StatusCode::REQUEST_TIMEOUT, FORM),
            Refusal::ContentTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, FORM),
            Refusal::TooManyFields => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, FORM),
            Refusal::UpstreamUnreachable => {
                (StatusCode::BAD_GATEWAY, "tollgate; error=connection_refused")
            }
            Refusal::UpstreamBroken => {
                (StatusCode::BAD_GATEWAY, "tollgate; error=connection_terminated")
            }
            Refusal::ConnectTimeout => {
                (StatusCode::GATEWAY_TIMEOUT, "tollgate; error=connection_timeout")
            }
            Refusal::ResponseTimeout => {
                (StatusCode::GATEWAY_TIMEOUT, "tollgate; error=http_response_timeout")
            }
            Refusal::StoreUnavailable | Refusal::CircuitOpen { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE)
            }
        }
    }

    /// Seconds after which the same request may be answered otherwise.
    fn retry_after(self) -> Option<u32> {
        match self {
            Refusal::StoreUnavailable => Some(1),
            Refusal::CircuitOpen { retry_after } => Some(retry_after),
            _ => None,
        }
    }
}

/// A whole 400, for what is not spoken where it arrives.
pub fn bad_request_raw() -> &'static [u8] {
    let [(_, whole), ..] = UNREADABLE;
    whole.as_bytes()
}

/// What to say in place of the bodiless answer that hyper gives to a head that it cannot read.
/// `is_line`: if it is too large, its first line alone is.
pub fn unreadable_head(answer: &[u8], is_line: bool) -> Option<&'static [u8]> {
    let [_, (_, too_long), (too_large, _)] = UNREADABLE;
    if is_line && answer.starts_with(too_large) {
        return Some(too_long.as_bytes());
    }
    let (_, whole) = UNREADABLE.iter().find(|(line, _)| answer.starts_with(line))?;
    Some(whole.as_bytes())
}

/// The answer to a refused request.
pub fn refuse(refusal: Refusal) -> Response<ProxyBody> {
    let (status, proxy_status) = refusal.parts();
    let body = Words::of(status).map_or("", |words| words.body);
    let mut response = json(status, Bytes::from_static(body.as_bytes()));
    let headers = response.headers_mut();
    headers.insert(PROXY_STATUS, HeaderValue::from_static(proxy_status));
    if let Some(seconds) = refusal.retry_after() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if refusal == Refusal::MethodNotAllowed {
        // RFC 9110 §15.5.6: a 405 lists what would be allowed.
        let allowed = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
        headers.insert(ALLOW, HeaderValue::from_static(allowed));
    }
    response
}

/// The 429 of a limit: `retry_after` in seconds, absent where no wait would help.
pub fn too_many_requests(
    retry_after: Option<u64>,
    quota: u32,
    period: &'static str,
) -> Response<ProxyBody> {
    // Put together by hand: a flood of refusals is what tollgate is there for.
    let seconds = HeaderValue::from(retry_after.unwrap_or(0));
    let quota = HeaderValue::from(quota);
    let mut body = BytesMut::with_capacity(128);
    for part in [
        br#"{"error":"Rate limit exceeded","retry_after":"#,
        seconds.as_bytes(),
        br#","limit":"#,
        quota.as_bytes(),
        br#","period":""#,
        period.as_bytes(),
        br#""}"#,
    ] {
        body.extend_from_slice(part);
    }
    let mut response = json(StatusCode::TOO_MANY_REQUESTS, body.freeze());
    let headers = response.headers_mut();
    if retry_after.is_some() {
        headers.insert(RETRY_AFTER, seconds);
    }
    let denied = HeaderValue::from_static("tollgate; error=http_request_denied");
    headers.insert(PROXY_STATUS, denied);
    response
}

/// Says a refusal in the terms of gRPC, whose clients read no status of HTTP and no body: 200, and
/// what would be trailers in the head ("Trailers-Only" in the protocol's own description).
pub fn speak_grpc(response: &mut Response<ProxyBody>) {
    let status = response.status();
    if status == StatusCode::SWITCHING_PROTOCOLS || status.is_success() {
        return;
    }
    let (code, message) =
        Words::of(status).map_or((UNKNOWN, "Refused"), |words| (words.grpc_status, words.message));
    *response.status_mut() = StatusCode::OK;
    *response.body_mut() = ProxyBody::own(Bytes::new());
    let headers = response.headers_mut();
    headers.remove(CONTENT_LENGTH);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, HeaderValue::from(code));
    headers.insert(GRPC_MESSAGE, HeaderValue::from_static(message));
}

/// A JSON answer of any status.
pub fn json(status: StatusCode, body: Bytes) -> Response<ProxyBody> {
    let length = HeaderValue::from(body.len());
    let mut response = Response::new(ProxyBody::own(body));
    *response.status_mut() = status;
    // Room for all that a refusal carries: a map that grows does so twice on the way there.
    *response.headers_mut() = HeaderMap::with_capacity(FIELDS);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(CONTENT_LENGTH, length);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answers_written_by_hand_have_the_length_that_they_say() {
        for whole in UNREADABLE.map(|(_, whole)| whole).iter().chain([&REQUEST_TIMEOUT_RAW]) {
            let (head, body) = whole.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("\r\ncontent-length: {}\r\n", body.len())), "{whole}");
        }
    }

    #[test]
    fn every_refusal_is_json_and_names_its_cause() {
        for refusal in [
            Refusal::BadRequest,
            Refusal::Unauthorized,
            Refusal::Forbidden,
            Refusal::MethodNotAllowed,
            Refusal::RequestTimeout,
            Refusal::ContentTooLarge,
            Refusal::TooManyFields,
            Refusal::UpstreamUnreachable,
            Refusal::UpstreamBroken,
            Refusal::ConnectTimeout,
            Refusal::ResponseTimeout,
            Refusal::StoreUnavailable,
            Refusal::CircuitOpen { retry_after: 5 },
        ] {
            let response = refuse(refusal);
            let words = Words::of(response.status()).unwrap();
            assert_eq!(words.body, format!(r#"{{"error":"{}"}}"#, words.message));
            assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
            assert!(response.headers()[PROXY_STATUS].to_str().unwrap().starts_with("tollgate; "));
            assert_eq!(
                response.headers().contains_key(RETRY_AFTER),
                response.status() == StatusCode::SERVICE_UNAVAILABLE
            );
        }
    }
}
