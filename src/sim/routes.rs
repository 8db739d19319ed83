//! Which rules the requests of a log meet: each combination of rules once.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use foldhash::quality::RandomState;
use http::{HeaderMap, Method};

use crate::policy::compiled::Policy;
use crate::policy::facts::RequestFacts;
use crate::policy::route::{Matched, PathError};

use super::line::{Fault, Line};

/// Targets whose rules are remembered; then all of them are forgotten.
const REMEMBERED_MAX: usize = 1 << 17;
/// What is longer is not remembered.
const REMEMBERED_BYTES_MAX: usize = 512;

/// What the two policies have for a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// By the policy that is tried, and the one that it is compared with.
    pub matched: [Option<Result<Matched, PathError>>; 2],
}

/// All that a log's requests meet.
#[derive(Debug)]
pub struct Routes<'p> {
    policies: [Option<&'p Policy>; 2],
    remembered: HashMap<Box<[u8]>, u32, RandomState>,
    routes: Vec<Route>,
    by_route: HashMap<Route, u32>,
    key: Vec<u8>,
}

impl<'p> Routes<'p> {
    /// None yet, for the policy that is tried and the one that it is compared with.
    pub fn new(policies: [Option<&'p Policy>; 2]) -> Self {
        Routes {
            policies,
            remembered: HashMap::default(),
            routes: Vec::new(),
            by_route: HashMap::new(),
            key: Vec::new(),
        }
    }

    /// The number of a line's route.
    ///
    /// # Errors
    /// It was no request that a proxy forwards.
    pub fn number(&mut self, line: &Line<'_>) -> Result<u32, Fault> {
        let (host, path) = split(line);
        let host = host.or(line.host.as_deref());
        self.key.clear();
        for part in [&*line.method, host.unwrap_or_default(), path] {
            self.key.extend_from_slice(part.as_bytes());
            self.key.push(0);
        }
        if let Some(number) = self.remembered.get(&*self.key) {
            return Ok(*number);
        }
        let method = Method::from_bytes(line.method.as_bytes()).map_err(|_| Fault::NoRequest)?;
        if method == Method::CONNECT || path.is_empty() {
            return Err(Fault::NoRequest);
        }
        let headers = HeaderMap::new();
        let facts = RequestFacts {
            method: &method,
            path,
            query: None,
            host,
            peer: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            headers: &headers,
            certificate: None,
        };
        let matched = self.policies.map(|policy| policy.map(|it| it.router().find(&facts)));
        let route = Route { matched };
        let number = match self.by_route.get(&route) {
            Some(number) => *number,
            None => {
                let number = u32::try_from(self.routes.len()).map_err(|_| Fault::NoRequest)?;
                self.by_route.insert(route.clone(), number);
                self.routes.push(route);
                number
            }
        };
        if self.key.len() <= REMEMBERED_BYTES_MAX {
            if self.remembered.len() >= REMEMBERED_MAX {
                self.remembered.clear();
            }
            self.remembered.insert(self.key.clone().into(), number);
        }
        Ok(number)
    }

    /// A route by its number.
    pub fn get(&self, number: u32) -> Option<&Route> {
        self.routes.get(usize::try_from(number).ok()?)
    }
}

/// The host of an absolute target (RFC 9112 §3.2.2), and the path without its query.
pub fn split<'a>(line: &'a Line<'_>) -> (Option<&'a str>, &'a str) {
    let target = &*line.target;
    let absolute = ["http://", "https://"].iter().find_map(|scheme| target.strip_prefix(scheme));
    let (host, path) = match absolute {
        None => (None, target),
        Some(rest) => {
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            let (host, path) = rest.split_at(end);
            (Some(host), if path.starts_with('/') { path } else { "/" })
        }
    };
    (host, path.split_once('?').map_or(path, |(path, _)| path))
}
