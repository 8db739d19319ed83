//! A request as HTTP/2 wants it, and what its errors say of what became of one (RFC 9113).

use std::error::Error;

use bytes::Bytes;
use h2::Reason;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::uri::{Authority, Parts, PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Request, Uri, Version};
use hyper::body::Body;

use super::reply::Refusal;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// What became of a request whose answer has no head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The upstream refused the stream: it did nothing (§8.7).
    Refused,
    /// The upstream had stopped taking requests before this one: it did nothing (§6.8).
    GoneAway,
    /// The upstream gave this request up, and this one alone.
    StreamReset,
    /// What came back is no HTTP/2.
    Garbage,
    /// The connection broke.
    Unknown,
}

impl Fate {
    /// Reads it from the error and what it came from.
    pub fn of(error: &(dyn Error + 'static)) -> Fate {
        h2_error(error).map_or(Fate::Unknown, Self::of_h2)
    }

    fn of_h2(error: &h2::Error) -> Fate {
        match (error.is_remote(), error.is_reset(), error.is_go_away()) {
            (true, true, _) if error.reason() == Some(Reason::REFUSED_STREAM) => Fate::Refused,
            // Only streams above the last one that the upstream took up end in its farewell.
            (true, _, true) => Fate::GoneAway,
            (true, true, _) => Fate::StreamReset,
            _ if error.is_library() => Fate::Garbage,
            _ => Fate::Unknown,
        }
    }
}

/// Whether the library has ended a connection as its peer sent too much of something (§10.5).
pub fn is_flood(error: &(dyn Error + 'static)) -> bool {
    h2_error(error)
        .is_some_and(|it| it.is_library() && it.reason() == Some(Reason::ENHANCE_YOUR_CALM))
}

fn h2_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a h2::Error> {
    let mut error = Some(error);
    while let Some(it) = error {
        if let Some(it) = it.downcast_ref() {
            return Some(it);
        }
        error = it.source();
    }
    None
}

/// Makes a request that is fit for HTTP/1.1 fit for HTTP/2: its authority and scheme are part of the
/// target, and nothing is said of a connection (§8.2.2, §8.3.1).
///
/// # Errors
/// Its `Host` is no authority.
pub fn to_http2<B: Body>(request: &mut Request<B>, is_tls: bool) -> Result<(), Refusal> {
    if request.uri().scheme().is_none() {
        let host = request.headers_mut().remove(HOST).ok_or(Refusal::BadRequest)?;
        let authority = Authority::from_maybe_shared(Bytes::copy_from_slice(host.as_bytes()));
        let mut parts = Parts::default();
        parts.scheme = Some(if is_tls { Scheme::HTTPS } else { Scheme::HTTP });
        parts.authority = Some(authority.map_err(|_| Refusal::BadRequest)?);
        let path = request.uri().path_and_query().cloned();
        parts.path_and_query = Some(path.unwrap_or(PathAndQuery::from_static("/")));
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Refusal::BadRequest)?;
    }
    let headers = request.headers_mut();
    headers.remove(TRANSFER_ENCODING);
    headers.remove(CONNECTION);
    headers.remove(KEEP_ALIVE);
    *request.version_mut() = Version::HTTP_2;
    Ok(())
}

/// The way back, for a request that was not sent after all.
pub fn from_http2<B: Body>(request: &mut Request<B>) {
    let parts = std::mem::take(request.uri_mut()).into_parts();
    let host = parts.authority.and_then(|it| HeaderValue::from_str(it.as_str()).ok());
    let mut origin = Parts::default();
    origin.path_and_query = parts.path_and_query;
    *request.uri_mut() = Uri::from_parts(origin).unwrap_or_default();
    let has_unknown_length =
        !request.body().is_end_stream() && !request.headers().contains_key(CONTENT_LENGTH);
    let headers = request.headers_mut();
    if let Some(host) = host {
        headers.insert(HOST, host);
    }
    if has_unknown_length {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    *request.version_mut() = Version::HTTP_11;
}

#[cfg(test)]
mod tests {
    use super::super::body::UploadBody;
    use super::*;

    #[test]
    fn a_request_comes_back_as_it_went() {
        for (target, authority) in [("/a?b", "a:1"), ("*", "[::1]:90"), ("//x", "h")] {
            let mut request = Request::new(UploadBody::empty());
            *request.uri_mut() = target.parse().unwrap();
            request.headers_mut().insert(HOST, authority.parse().unwrap());
            to_http2(&mut request, true).unwrap();
            assert_eq!(request.uri().scheme_str(), Some("https"));
            assert_eq!(request.uri().authority().unwrap(), authority);
            assert_eq!(request.uri().path_and_query().unwrap(), target);
            assert!(request.headers().is_empty());
            from_http2(&mut request);
            assert_eq!(request.uri(), target);
            assert_eq!(request.headers()[HOST], authority);
        }
    }
}
