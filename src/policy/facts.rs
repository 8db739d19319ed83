//! A borrowed view of what a policy may look at in a request.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::HOST;
use http::{HeaderMap, Method};

use crate::limiter::time::Timestamp;

/// The facts of one request. A log line or a command line makes one as well as a connection does.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    /// The method as it came.
    pub method: &'a Method,
    /// The target's path as it came: no query, nothing decoded. `*` for `OPTIONS *`.
    pub path: &'a str,
    /// What stands behind the path's `?`, as it came.
    pub query: Option<&'a str>,
    /// The authority that the request is for, without port handling: `Host`, or `:authority`.
    pub host: Option<&'a str>,
    /// The other end of the socket.
    pub peer: IpAddr,
    /// The header fields.
    pub headers: &'a HeaderMap,
    /// What its connection's client showed of itself, once it was verified.
    pub certificate: Option<&'a ClientCertificate>,
}

/// What is known of a client by its verified certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The common name of its subject.
    pub common_name: CommonName,
    /// The last second in which it is valid.
    pub not_after: Timestamp,
}

/// The common name of a certificate's subject (RFC 5280 §4.1.2.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommonName {
    /// It has none.
    Absent,
    /// It has several, or one that is no text.
    Unclear,
    /// It has this one.
    Is(Arc<str>),
}

impl ClientCertificate {
    /// Somebody of this name, for as long as one likes: for a question of what would be.
    pub fn named(common_name: &str) -> Self {
        let common_name = CommonName::Is(common_name.into());
        ClientCertificate { common_name, not_after: Timestamp::from_micros(u64::MAX) }
    }
}

impl<'a> RequestFacts<'a> {
    /// The facts of a request, wherever its head comes from. `Host` says which host it is for.
    pub fn of(
        method: &'a Method,
        path: &'a str,
        query: Option<&'a str>,
        headers: &'a HeaderMap,
        peer: IpAddr,
    ) -> Self {
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        RequestFacts { method, path, query, host, peer, headers, certificate: None }
    }

    /// The same, from a client that showed this certificate.
    pub fn shown(self, certificate: Option<&'a ClientCertificate>) -> Self {
        RequestFacts { certificate, ..self }
    }
}
