//! `upstream` to settings that cannot be wrong: where the backend is, and how it is spoken to.

use std::time::Duration;

use http::uri::PathAndQuery;

use crate::config_path;
use crate::tls::client::{ClientSettings, server_name};

use super::compile::positive;
use super::compile_tls::{identity, roots};
use super::report::{Path, Problem, Report};
use super::schema::{HealthCheck, Upstream, UpstreamTls};
use super::url::{self, UpstreamPlace, UpstreamScheme, UpstreamUrl, quoted};

/// The backend.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamSettings {
    /// Where it listens, and what is spoken there.
    pub url: UpstreamUrl,
    /// How it proves who it is; only with `https`.
    pub tls: Option<ClientSettings>,
    /// For a new connection.
    pub connect_timeout: Duration,
    /// To the head of an answer.
    pub response_timeout: Duration,
    /// Between bytes of an answer's body.
    pub idle_timeout: Duration,
    /// Between bytes of an upgraded connection.
    pub tunnel_idle_timeout: Duration,
    /// Most connections that are kept for reuse; may be zero.
    pub max_idle_connections: usize,
    /// Whether a request that surely had no effect is tried again.
    pub retries: u32,
    /// Whether `Host` is passed on as it came.
    pub preserve_host: bool,
    /// A name is resolved again at least this often; may be zero.
    pub dns_ttl: Duration,
    /// How it is checked, if it is.
    pub health_check: Option<HealthCheckSettings>,
}

/// How the backend is checked beside the requests.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthCheckSettings {
    /// What is asked for: a path, perhaps with a query.
    pub target: PathAndQuery,
    /// Between two checks.
    pub interval: Duration,
    /// For a whole check.
    pub timeout: Duration,
    /// Good ones in a row that bring the backend back; at least 1.
    pub rise: u32,
    /// Bad ones in a row that take it out; at least 1.
    pub fall: u32,
}

/// Whether there must be an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamNeed {
    /// For serving.
    Required,
    /// For everything that only looks at the policy.
    Optional,
}

/// Compiles `upstream`.
pub fn upstream(
    upstream: &Upstream,
    need: UpstreamNeed,
    report: &mut Report<'_>,
) -> Option<UpstreamSettings> {
    let at = |key: &str| config_path!["upstream", key];
    let url = match (&upstream.url, need) {
        (Some(url), _) => match url::upstream(url) {
            Ok(url) => Some(url),
            Err(problem) => {
                report.value(at("url"), problem);
                None
            }
        },
        // Several backends were refused already; one error is enough.
        (None, UpstreamNeed::Required) if upstream.urls.is_none() => {
            let problem = Problem::new("not set").expected("the backend's URL");
            report.key(at("url"), problem.hint("give --upstream URL or upstream.url"));
            None
        }
        (None, _) => None,
    };
    let mut timeout = |key: &str, value| positive(at(key), value, report);
    let connect_timeout = timeout("connect_timeout", upstream.connect_timeout);
    let response_timeout = timeout("response_timeout", upstream.response_timeout);
    let idle_timeout = timeout("idle_timeout", upstream.idle_timeout);
    let tunnel_idle_timeout = timeout("tunnel_idle_timeout", upstream.tunnel_idle_timeout);
    let tls = tls(&upstream.tls, url.as_ref(), report);
    let health_check = health_check(&upstream.health_check, report);
    Some(UpstreamSettings {
        url: url?,
        tls,
        connect_timeout,
        response_timeout,
        idle_timeout,
        tunnel_idle_timeout,
        max_idle_connections: usize::try_from(upstream.max_idle_connections).unwrap_or(usize::MAX),
        retries: upstream.retries,
        preserve_host: upstream.preserve_host,
        dns_ttl: upstream.dns_ttl.0,
        health_check,
    })
}

/// Compiles `upstream.health_check`; all of it, so that what is wrong is found before a path is
/// given.
fn health_check(check: &HealthCheck, report: &mut Report<'_>) -> Option<HealthCheckSettings> {
    let at = |key: &str| config_path!["upstream", "health_check", key];
    let interval = positive(at("interval"), check.interval, report);
    let timeout = positive(at("timeout"), check.timeout, report);
    for (key, value) in [("rise", check.rise), ("fall", check.fall)] {
        if value == 0 {
            report.value(at(key), Problem::new("0").expected("at least 1"));
        }
    }
    let path = check.path.as_ref()?;
    let target = PathAndQuery::try_from(path.as_str()).ok().filter(|_| path.starts_with('/'));
    if target.is_none() {
        let problem = Problem::new(quoted(path)).expected("a path, as /healthz");
        report.value(at("path"), problem);
    }
    let (rise, fall) = (check.rise, check.fall);
    Some(HealthCheckSettings { target: target?, interval, timeout, rise, fall })
}

/// Compiles `upstream.tls`; whatever the scheme, so that a wrong file is found before it is needed.
fn tls(
    tls: &UpstreamTls,
    url: Option<&UpstreamUrl>,
    report: &mut Report<'_>,
) -> Option<ClientSettings> {
    let roots = roots(tls.ca.as_deref(), at("ca"), report)?;
    let given = tls.server_name.as_ref().map(|name| {
        let parsed = server_name(name);
        if parsed.is_none() {
            let problem = Problem::new(quoted(name)).expected("a name or an address");
            report.value(at("server_name"), problem);
        }
        parsed
    });
    let (cert, key) = (tls.client_cert.as_deref(), tls.client_key.as_deref());
    let identity = identity(cert, key, "upstream.tls", &at, report);
    let url = url?;
    if url.scheme != UpstreamScheme::Https {
        if let Some(key) = first_key(tls) {
            let problem = Problem::new("of no use: upstream.url is not https");
            report.warn(at(key), problem);
        }
        return None;
    }
    let of_host = || match &url.place {
        UpstreamPlace::Tcp { host, .. } => {
            let name = server_name(host);
            if name.is_none() {
                let problem =
                    Problem::new(format!("{} cannot stand in a certificate", quoted(host)));
                report.value(
                    config_path!["upstream", "url"],
                    problem.expected("upstream.tls.server_name, the name that does"),
                );
            }
            name
        }
        UpstreamPlace::Unix { .. } => None,
    };
    let server_name = given.unwrap_or_else(of_host)?;
    Some(ClientSettings { roots, server_name, identity })
}

fn at(key: &str) -> Path {
    config_path!["upstream", "tls", key]
}

fn first_key(tls: &UpstreamTls) -> Option<&'static str> {
    let UpstreamTls { ca, server_name, client_cert, client_key } = tls;
    let keys = [
        ("ca", ca),
        ("server_name", server_name),
        ("client_cert", client_cert),
        ("client_key", client_key),
    ];
    keys.into_iter().find_map(|(key, value)| value.is_some().then_some(key))
}
