//! `log:`, `tracing:` and `self_service:`.

use std::path::PathBuf;

use http::Uri;

use crate::config_path;

use super::report::{Problem, Report};
use super::schema::{Config, Exposed, Log, LogFormat, LogLevel, Tracing};
use super::url::quoted;
use super::value::AccessLog;

/// Where an OTLP collector takes spans over HTTP, below what the configuration names (OTLP 1.0,
/// "OTLP/HTTP Request").
const TRACES_PATH: &str = "/v1/traces";

/// Longest path of `self_service`, in bytes.
const SELF_SERVICE_BYTES_MAX: usize = 256;

/// Logs.
#[derive(Clone, Debug, PartialEq)]
pub struct LogSettings {
    /// `off`, `error`, `warn`, `info`, `debug` or `trace`.
    pub level: &'static str,
    /// One JSON object a line; else for eyes.
    pub is_json: bool,
    /// Where the access log goes, if there is one.
    pub access: Option<AccessTarget>,
    /// Whether it shows query strings.
    pub with_query: bool,
}

/// Where an access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessTarget {
    /// Standard output.
    Stdout,
    /// This file.
    File(PathBuf),
}

/// Spans of requests.
#[derive(Clone, Debug, PartialEq)]
pub struct TracingSettings {
    /// What they are posted to.
    pub url: Uri,
    /// The part of the traces that begin here which is recorded, 0 to 1.
    pub sample: f64,
}

/// `self_service:`
pub fn self_service(config: &Config, report: &mut Report<'_>) -> Option<Box<str>> {
    let path = config.self_service.path.as_deref()?;
    let at = || config_path!["self_service", "path"];
    let is_plain = path.len() <= SELF_SERVICE_BYTES_MAX
        && path.strip_prefix('/').is_some_and(|rest| !rest.is_empty())
        && path.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#%*\\{}".contains(&byte));
    if !is_plain {
        let problem = Problem::new(quoted(path));
        report.value(at(), problem.expected("a plain path, such as /.well-known/rate-limit"));
        return None;
    }
    let exposed = [(Exposed::Health, "/health"), (Exposed::Metrics, "/metrics")];
    if exposed.iter().any(|(page, its)| path == *its && config.server.expose.contains(page)) {
        let problem = Problem::new(format!("{} is a page of server.expose", quoted(path)));
        report.value(at(), problem.expected("another path"));
        return None;
    }
    Some(path.into())
}

/// `log:`
pub fn log(log: &Log) -> LogSettings {
    LogSettings {
        level: match log.level {
            LogLevel::Off => "off",
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        },
        is_json: log.format == LogFormat::Json,
        access: match &log.access {
            AccessLog::Off => None,
            AccessLog::Stdout => Some(AccessTarget::Stdout),
            AccessLog::File(file) => Some(AccessTarget::File(file.into())),
        },
        with_query: log.query,
    }
}

/// `tracing:`. `None`: nothing is to be sent.
pub fn tracing(tracing: &Tracing, report: &mut Report<'_>) -> Option<TracingSettings> {
    // What is no number is in no range.
    if !(0.0..=1.0).contains(&tracing.sample) {
        let found = tracing.sample.to_string();
        report.value(config_path!["tracing", "sample"], Problem::new(found).expected("0 to 1"));
    }
    let endpoint = tracing.otlp_endpoint.as_deref()?;
    match collector(endpoint) {
        Ok(url) => Some(TracingSettings { url, sample: tracing.sample }),
        Err(found) => {
            let problem = Problem::new(found).expected("http://HOST:4318 or https://HOST");
            report.value(config_path!["tracing", "otlp_endpoint"], problem);
            None
        }
    }
}

/// The endpoint is what OpenTelemetry's `OTEL_EXPORTER_OTLP_ENDPOINT` is: the path of traces comes
/// below it, unless it is there already. Nothing of it is repeated, for it may hold a password.
fn collector(endpoint: &str) -> Result<Uri, &'static str> {
    let not_a_url = "not a URL";
    let url: Uri = endpoint.parse().map_err(|_| not_a_url)?;
    let (Some(scheme), Some(authority)) = (url.scheme_str(), url.authority()) else {
        return Err(not_a_url);
    };
    if !["http", "https"].contains(&scheme) {
        return Err("another scheme (spans go over HTTP, not over gRPC)");
    }
    if authority.as_str().contains('@') {
        return Err("a user or password");
    }
    if authority.port_u16() == Some(4317) {
        return Err("4317 is the port of OTLP over gRPC; spans go over HTTP, whose port is 4318");
    }
    if url.query().is_some() {
        return Err("a query string");
    }
    let path = url.path().trim_end_matches('/');
    let below = if path.ends_with(TRACES_PATH) { "" } else { TRACES_PATH };
    format!("{scheme}://{authority}{path}{below}").parse().map_err(|_| not_a_url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_posted_where_opentelemetry_s_own_would_be() {
        for (endpoint, expected) in [
            ("http://otel:4318", Ok("http://otel:4318/v1/traces")),
            ("http://otel:4318/", Ok("http://otel:4318/v1/traces")),
            ("https://otel.test/base/", Ok("https://otel.test/base/v1/traces")),
            ("https://otel.test/v1/traces", Ok("https://otel.test/v1/traces")),
            ("otel:4318", Err("")),
            ("grpc://otel:4318", Err("")),
            ("http://otel:4317", Err("")),
            ("http://a:b@otel:4318", Err("")),
            ("http://otel:4318/?a=b", Err("")),
            ("", Err("")),
        ] {
            let found = collector(endpoint).map(|url| url.to_string());
            assert_eq!(found.as_deref().map_err(|_| ""), expected, "{endpoint}");
        }
    }
}
