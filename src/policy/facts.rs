//! A borrowed view of what a policy may look at in a request.

use std::net::IpAddr;

use http::header::HOST;
use http::{HeaderMap, Method};

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
        RequestFacts { method, path, query, host, peer, headers }
    }
}
