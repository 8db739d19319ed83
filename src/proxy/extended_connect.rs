//! A WebSocket on a stream of HTTP/2: an extended CONNECT (RFC 8441), told to the upstream as the
//! upgrade of HTTP/1.1 that it means.
//!
//! From here on the request is the GET that the same client would have sent over HTTP/1.1, so that
//! rules, limits, logs and metrics know one kind of WebSocket. What that handshake has and this one
//! has not, the key and the proof that it was read, is tollgate's own to make and to check.

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY};
use http::{HeaderMap, HeaderValue, Method, Request, Version};
use hyper::ext::Protocol;

/// The one protocol that is asked for so (RFC 8441 §5).
pub const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
/// What a server adds to the key (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Makes a CONNECT that asks for a WebSocket the GET that means the same, and says whether it did.
/// Any other request is left as it is.
pub fn settle<B>(request: &mut Request<B>) -> bool {
    if protocol_of(request).is_none_or(|it| !it.as_str().eq_ignore_ascii_case("websocket")) {
        return false;
    }
    let Some(key) = key() else { return false };
    *request.method_mut() = Method::GET;
    // One that the client sent means nothing (RFC 8441 §5).
    request.headers_mut().insert(SEC_WEBSOCKET_KEY, key);
    true
}

/// The protocol that a CONNECT asks for beside its target.
pub fn protocol_of<B>(request: &Request<B>) -> Option<&Protocol> {
    let is_connect = *request.method() == Method::CONNECT && request.version() == Version::HTTP_2;
    is_connect.then(|| request.extensions().get()).flatten()
}

/// Whether the request was made of an extended CONNECT.
pub fn is_settled<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_2
        && *request.method() == Method::GET
        && request.extensions().get::<Protocol>().is_some()
}

/// Whether the upstream has read the key (RFC 6455 §4.1), of which the client is told nothing.
pub fn is_accepted(key: &HeaderValue, headers: &mut HeaderMap) -> bool {
    let Some(accept) = headers.remove(SEC_WEBSOCKET_ACCEPT) else { return false };
    let mut proof = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    proof.update(key.as_bytes());
    proof.update(GUID);
    STANDARD.encode(proof.finish()).as_bytes() == accept.as_bytes()
}

/// Sixteen bytes that nobody can have known (RFC 6455 §4.1).
fn key() -> Option<HeaderValue> {
    let mut nonce = [0; 16];
    rand::fill(&mut nonce).ok()?;
    HeaderValue::try_from(STANDARD.encode(nonce)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(protocol: Option<&'static str>) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = "https://a/chat?x".parse().unwrap();
        if let Some(protocol) = protocol {
            request.extensions_mut().insert(Protocol::from_static(protocol));
        }
        request
    }

    #[test]
    fn a_websocket_becomes_a_get_with_a_key_of_its_own() {
        let mut keys = Vec::new();
        for _ in 0..2 {
            let mut request = connect(Some("websocket"));
            request.headers_mut().append(SEC_WEBSOCKET_KEY, HeaderValue::from_static("its"));
            request.headers_mut().append(SEC_WEBSOCKET_KEY, HeaderValue::from_static("own"));
            assert!(settle(&mut request));
            assert_eq!(*request.method(), Method::GET);
            assert!(is_settled(&request));
            let sent: Vec<_> = request.headers().get_all(SEC_WEBSOCKET_KEY).iter().collect();
            assert_eq!(sent.len(), 1);
            assert_eq!(STANDARD.decode(sent[0]).unwrap().len(), 16);
            keys.push(sent[0].clone());
        }
        assert_ne!(keys[0], keys[1]);
    }

    #[test]
    fn nothing_else_is_touched() {
        let mut udp = connect(Some("connect-udp"));
        assert!(!settle(&mut udp) && protocol_of(&udp).is_some());
        let mut plain = connect(None);
        assert!(!settle(&mut plain) && protocol_of(&plain).is_none());
        let mut over_http_1 = connect(Some("websocket"));
        *over_http_1.version_mut() = Version::HTTP_11;
        assert!(!settle(&mut over_http_1));
        assert_eq!(*over_http_1.method(), Method::CONNECT);
        let mut get = connect(None);
        *get.method_mut() = Method::GET;
        assert!(!is_settled(&get));
    }

    /// The pair of RFC 6455 §1.3.
    #[test]
    fn only_who_read_the_key_has_accepted() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        let mut headers = HeaderMap::new();
        assert!(!is_accepted(&key, &mut headers));
        for (accept, is_right) in
            [("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", true), ("s3pPLMBiTxaQ9kYGzzhZRbK+xOp=", false)]
        {
            headers.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(is_accepted(&key, &mut headers), is_right);
            assert!(headers.is_empty(), "nothing of it goes on");
        }
    }
}
