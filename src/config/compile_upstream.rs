//! `upstream` to settings that cannot be wrong: where the backend is, and how it is spoken to.

use std::time::Duration;

use http::uri::PathAndQuery;

use crate::config_path;
use crate::tls::client::{ClientSettings, server_name};

use super::compile::positive;
use super::compile_tls::{identity, roots};
use super::report::{Path, Problem, Report, written};
use super::schema::{HealthCheck, Upstream, UpstreamTls};
use super::url::{self, UpstreamPlace, UpstreamScheme, UpstreamUrl, quoted};

/// Most backends.
const MEMBERS_MAX: usize = 64;
/// Most further tries of one request.
const RETRIES_MAX: u32 = 10;

/// The backend, or several that serve the same.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamSettings {
    /// Each of them; at least one.
    pub members: Vec<MemberSettings>,
    /// For a new connection.
    pub connect_timeout: Duration,
    /// To the head of an answer, all tries together.
    pub response_timeout: Duration,
    /// To the head of an answer of one of several, where another may be asked.
    pub per_try_timeout: Option<Duration>,
    /// Between bytes of an answer's body.
    pub idle_timeout: Duration,
    /// Between bytes of an upgraded connection.
    pub tunnel_idle_timeout: Duration,
    /// Most connections to each that are kept for reuse; may be zero.
    pub max_idle_connections: usize,
    /// Further tries of a request that may be repeated.
    pub retries: u32,
    /// Per cent of the requests that may be asked of another one; 0 is none.
    pub retry_budget: u32,
    /// Whether `Host` is passed on as it came.
    pub preserve_host: bool,
    /// A name is resolved again at least this often; may be zero.
    pub dns_ttl: Duration,
    /// How it is checked, if it is.
    pub health_check: Option<HealthCheckSettings>,
}

/// One backend.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberSettings {
    /// Where it listens, and what is spoken there.
    pub url: UpstreamUrl,
    /// How it proves who it is; only with `https`.
    pub tls: Option<ClientSettings>,
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
    let urls = urls(upstream, need, report);
    let mut timeout = |key: &str, value| positive(at(key), value, report);
    let connect_timeout = timeout("connect_timeout", upstream.connect_timeout);
    let response_timeout = timeout("response_timeout", upstream.response_timeout);
    let idle_timeout = timeout("idle_timeout", upstream.idle_timeout);
    let tunnel_idle_timeout = timeout("tunnel_idle_timeout", upstream.tunnel_idle_timeout);
    let per_try_timeout = upstream.per_try_timeout.map(|value| timeout("per_try_timeout", value));
    if per_try_timeout.is_some_and(|each| each >= response_timeout) {
        let problem = Problem::new("not below upstream.response_timeout");
        report.value(at("per_try_timeout"), problem.expected("less time than for all tries"));
    }
    for (key, value, most) in
        [("retries", upstream.retries, RETRIES_MAX), ("retry_budget", upstream.retry_budget, 100)]
    {
        if value > most {
            let problem = Problem::new(value.to_string()).expected(format!("0 to {most}"));
            report.value(at(key), problem);
        }
    }
    let members = tls(&upstream.tls, urls, report);
    let health_check = health_check(&upstream.health_check, report);
    let members = members.filter(|members| !members.is_empty())?;
    if let Some(reason) = no_second_try(members.len(), upstream) {
        report.warn(at("per_try_timeout"), Problem::new(format!("of no use: {reason}")));
    }
    Some(UpstreamSettings {
        members,
        connect_timeout,
        response_timeout,
        per_try_timeout,
        idle_timeout,
        tunnel_idle_timeout,
        max_idle_connections: usize::try_from(upstream.max_idle_connections).unwrap_or(usize::MAX),
        retries: upstream.retries,
        retry_budget: upstream.retry_budget,
        preserve_host: upstream.preserve_host,
        dns_ttl: upstream.dns_ttl.0,
        health_check,
    })
}

/// A backend's URL, and where it was written.
type Written = (UpstreamUrl, Path);

/// The backends that are named; none where there was an error, or need not be any.
fn urls(upstream: &Upstream, need: UpstreamNeed, report: &mut Report<'_>) -> Vec<Written> {
    let at = |key: &str| config_path!["upstream", key];
    let texts: Vec<(&String, Path)> = match (&upstream.url, &upstream.urls, need) {
        (Some(_), Some(_), _) => {
            let problem = Problem::new("given beside upstream.url").expected("one of the two");
            report.key(at("urls"), problem);
            return Vec::new();
        }
        (Some(url), None, _) => vec![(url, at("url"))],
        (None, Some(urls), _) => {
            if urls.is_empty() || urls.len() > MEMBERS_MAX {
                let problem = Problem::new(format!("{} backends", urls.len()));
                report.value(at("urls"), problem.expected(format!("1 to {MEMBERS_MAX}")));
                return Vec::new();
            }
            let at = |index| config_path!["upstream", "urls", index];
            urls.iter().enumerate().map(|(index, url)| (url, at(index))).collect()
        }
        (None, None, UpstreamNeed::Required) => {
            let problem = Problem::new("not set").expected("the backend's URL");
            report.key(at("url"), problem.hint("give --upstream URL or upstream.url"));
            return Vec::new();
        }
        (None, None, UpstreamNeed::Optional) => return Vec::new(),
    };
    let (mut found, count) = (Vec::<Written>::new(), texts.len());
    for (text, path) in texts {
        match url::upstream(text) {
            Ok(url) => {
                if let Some((_, first)) = found.iter().find(|(other, _)| other.place == url.place) {
                    let problem = Problem::new(format!("the backend of {}", written(first)));
                    report.value(path, problem.expected("each once"));
                } else {
                    found.push((url, path));
                }
            }
            Err(problem) => report.value(path, problem),
        }
    }
    // With one that is wrong, nothing is to be said of the others together.
    if found.len() == count { found } else { Vec::new() }
}

/// Why no other backend is ever asked, if `per_try_timeout` says that one should be.
fn no_second_try(members: usize, upstream: &Upstream) -> Option<&'static str> {
    upstream.per_try_timeout?;
    match (members, upstream.retries, upstream.retry_budget) {
        (0 | 1, ..) => Some("there is one backend"),
        (_, 0, _) => Some("upstream.retries is 0"),
        (_, _, 0) => Some("upstream.retry_budget is 0"),
        _ => None,
    }
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

/// Compiles `upstream.tls`, for each backend that speaks it; whatever the scheme, so that a wrong
/// file is found before it is needed.
fn tls(
    tls: &UpstreamTls,
    urls: Vec<Written>,
    report: &mut Report<'_>,
) -> Option<Vec<MemberSettings>> {
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
    let is_https = |url: &UpstreamUrl| url.scheme == UpstreamScheme::Https;
    if !urls.is_empty()
        && !urls.iter().any(|(url, _)| is_https(url))
        && let Some(key) = first_key(tls)
    {
        report.warn(at(key), Problem::new("of no use: upstream.url is not https"));
    }
    let of_host = |url: &UpstreamUrl, path: Path, report: &mut Report<'_>| match &url.place {
        UpstreamPlace::Tcp { host, .. } => {
            let name = server_name(host);
            if name.is_none() {
                let problem =
                    Problem::new(format!("{} cannot stand in a certificate", quoted(host)));
                let expected = "upstream.tls.server_name, the name that does";
                report.value(path, problem.expected(expected));
            }
            name
        }
        UpstreamPlace::Unix { .. } => None,
    };
    let mut members = Vec::new();
    for (url, path) in urls {
        let mut tls = None;
        if is_https(&url) {
            let name = given.clone().unwrap_or_else(|| of_host(&url, path, report))?;
            let (roots, identity) = (roots.clone(), identity.clone());
            tls = Some(ClientSettings { roots, server_name: name, identity });
        }
        members.push(MemberSettings { url, tls });
    }
    Some(members)
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
