//! The mirror of `tollgate.yaml` to values that cannot be wrong.
//!
//! Collects every error, not the first. What it makes belongs to no file any more: plain numbers,
//! addresses and durations, which whoever wires the modules hands on to each.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::config_path;
use crate::policy::compiled::FailureMode;

use super::compile_identity::{IdentitySettings, identity};
use super::compile_listeners::{ListenerSettings, listeners};
use super::compile_lookup::{LookupSettings, lookup};
use super::compile_redis::redis_url;
use super::compile_secret::{admin_token, identity_secret};
use super::compile_signals::{LogSettings, TracingSettings, log, self_service, tracing};
use super::compile_upstream::{UpstreamNeed, UpstreamSettings, upstream};
use super::compile_usage::usage;
use super::report::{Path, Problem, Report, nearest};
use super::schema::{
    Config, Exposed, Leases, OnFailure, ProxyProtocol, Reset, Server, StoreConfig,
};
use super::unsupported::refuse_in_config;
use super::url::{self, RedisUrl, quoted};
use super::value::{DURATION_MAX, HumanDuration, Redacted};
use super::warnings;

/// More threads than that are a typing error.
const WORKERS_MAX: u32 = 1024;
/// The HTTP parser needs so much room for a head.
const HEADER_BYTES_MIN: u64 = 8 << 10;
/// A head longer than that is a typing error, and memory for whoever asks.
const HEADER_BYTES_MAX: u64 = 16 << 20;
/// It stands in front of every key of Redis.
const KEY_PREFIX_BYTES_MAX: usize = 64;

/// Reads a file that holds a secret; the error says why it cannot be read.
pub type ReadSecret<'a> = &'a dyn Fn(&str) -> Result<String, String>;

/// Everything of `tollgate.yaml`, in the form in which it is obeyed.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The data port.
    pub server: ServerSettings,
    /// Where operators ask.
    pub admin_listen: SocketAddr,
    /// What they have to know to be answered under `/api`.
    pub admin_token: Option<Redacted>,
    /// The backend; `None` only where none was required.
    pub upstream: Option<UpstreamSettings>,
    /// Shared state; `None`: in memory.
    pub redis: Option<RedisSettings>,
    /// The database of subscriptions.
    pub lookup: Option<LookupSettings>,
    /// Most identities whose state is kept in memory.
    pub max_identities: usize,
    /// Peers whose forwarding fields are believed; the policy holds them too.
    pub trusted_proxies: Vec<IpNet>,
    /// How callers are known.
    pub identity: IdentitySettings,
    /// Which fields answers carry.
    pub headers: HeaderSettings,
    /// Time to the backend's response head above which an answer counts as slow.
    pub slow_upstream: Duration,
    /// Time of a check above which Redis counts as slow.
    pub slow_redis: Duration,
    /// Time of a fetch above which a key set's server counts as slow.
    pub slow_jwks: Duration,
    /// Logs.
    pub log: LogSettings,
    /// Where callers read their own limits.
    pub self_service: Option<Box<str>>,
    /// Spans of requests, if they are sent anywhere.
    pub tracing: Option<TracingSettings>,
    /// How usage is metered, if it is.
    pub usage: Option<crate::usage::sink::Settings>,
}

/// The data port.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerSettings {
    /// At least one.
    pub listeners: Vec<ListenerSettings>,
    /// Worker threads; 0: one per core.
    pub workers: usize,
    /// Whether `/health` is answered here too.
    pub expose_health: bool,
    /// Whether `/metrics` is answered here too.
    pub expose_metrics: bool,
    /// Most connections at once, at least 1.
    pub max_connections: usize,
    /// Most connections of one address.
    pub max_connections_per_ip: Option<NonZeroU32>,
    /// What trusted proxies say in front of all else.
    pub proxy_protocol: ProxyProtocol,
    /// For the whole head of a request.
    pub header_timeout: Duration,
    /// For a kept connection without a request.
    pub idle_timeout: Duration,
    /// Between bytes of a request's body.
    pub body_timeout: Duration,
    /// Longest head of a request, at least 8 KiB.
    pub max_header_bytes: usize,
    /// Longest body of a request.
    pub max_body_bytes: Option<NonZeroU64>,
    /// For what still runs at the end; may be zero.
    pub drain_timeout: Duration,
    /// Where the next process takes the listeners over.
    pub handover: Option<PathBuf>,
}

/// A Redis, and how it is used.
#[derive(Clone, Debug, PartialEq)]
pub struct RedisSettings {
    /// Address, credentials, database.
    pub url: RedisUrl,
    /// Budget of one check.
    pub timeout: Duration,
    /// What decides while it does not answer.
    pub on_failure: FailureMode,
    /// Whether tokens may be leased.
    pub leases: bool,
    /// What every key begins with.
    pub key_prefix: String,
    /// As how many replicas this one is taken for one of at least; 0: as many as there are.
    pub expected_replicas: u32,
    /// What identities are hashed with, at least 16 bytes.
    pub identity_secret: Option<Redacted>,
}

/// Which fields answers carry.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderSettings {
    /// `X-RateLimit-*`.
    pub x_ratelimit: bool,
    /// What `X-RateLimit-Reset` says.
    pub reset: ResetForm,
    /// Names the fields in `Access-Control-Expose-Headers`.
    pub expose_cors: bool,
}

/// What `X-RateLimit-Reset` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetForm {
    /// Unix seconds.
    Epoch,
    /// Seconds from now.
    Delta,
}

/// Compiles the file. Where the report has errors, what is returned must not be used: it stands in
/// so that the other file can be checked against it.
pub fn settings(
    config: &Config,
    need: UpstreamNeed,
    read_secret: ReadSecret<'_>,
    report: &mut Report<'_>,
) -> Settings {
    refuse_in_config(config, report);
    let server = server(&config.server, report);
    let admin_listen = address(config_path!["admin", "listen"], &config.admin.listen, report);
    let is_taken = server.listeners.iter().any(|it| it.address == admin_listen);
    if admin_listen.port() != 0 && is_taken {
        let problem = Problem::new(format!("{admin_listen} is the data port's"));
        report.value(config_path!["admin", "listen"], problem.expected("another address"));
    }
    let admin_token = admin_token(config.admin.token_file.as_deref(), read_secret, report);
    let slow = &config.slow_thresholds;
    let slow_upstream =
        positive(config_path!["slow_thresholds", "upstream"], slow.upstream, report);
    let slow_redis = positive(config_path!["slow_thresholds", "redis"], slow.redis, report);
    let slow_jwks = positive(config_path!["slow_thresholds", "jwks"], slow.jwks, report);
    let upstream = upstream(&config.upstream, need, report);
    let mut redis = redis(&config.store, read_secret, report);
    let identity_secret = identity_secret(config, read_secret, report);
    let has_secret = identity_secret.is_some();
    if let Some(redis) = &mut redis {
        redis.identity_secret = identity_secret;
    }
    let slow_database =
        positive(config_path!["slow_thresholds", "database"], slow.database, report);
    let store_url = redis.as_ref().map(|it| &it.url);
    let lookup = lookup(config.tier_lookup.as_ref(), store_url, slow_database, read_secret, report);
    let usage = usage(&config.usage, redis.as_ref(), has_secret, read_secret, report);
    let identity = identity(&config.identity, report);
    let asks_clients =
        |it: &ListenerSettings| it.tls.as_ref().is_some_and(|it| it.clients.is_some());
    if !server.listeners.iter().any(asks_clients) {
        warnings::unasked(&config.identity, report);
    }
    let tracing = tracing(&config.tracing, report);
    let self_service = self_service(config, report);
    let trusted_proxies = trusted_proxies(&config.server.trusted_proxies, report);
    if trusted_proxies.is_empty() && config.server.proxy_protocol != ProxyProtocol::Off {
        let problem = Problem::new("no proxy is trusted, so no header is read");
        let problem = problem.expected("server.trusted_proxies, whose headers are believed");
        report.warn(config_path!["server", "proxy_protocol"], problem);
    }
    let max_identities = at_least_one(
        config_path!["store", "memory", "max_identities"],
        config.store.memory.max_identities,
        report,
    );
    Settings {
        server,
        admin_listen,
        admin_token,
        upstream,
        redis,
        lookup,
        max_identities,
        trusted_proxies,
        identity,
        headers: HeaderSettings {
            x_ratelimit: config.headers.x_ratelimit,
            reset: match config.headers.reset {
                Reset::Epoch => ResetForm::Epoch,
                Reset::Delta => ResetForm::Delta,
            },
            expose_cors: config.headers.expose_cors,
        },
        slow_upstream,
        slow_redis,
        slow_jwks,
        log: log(&config.log),
        self_service,
        tracing,
        usage,
    }
}

/// What decides without Redis, in the policy's words.
pub fn failure_mode(on_failure: OnFailure) -> FailureMode {
    match on_failure {
        OnFailure::Local => FailureMode::Local,
        OnFailure::Open => FailureMode::Open,
        OnFailure::Closed => FailureMode::Closed,
    }
}

fn server(server: &Server, report: &mut Report<'_>) -> ServerSettings {
    let at = |key: &str| config_path!["server", key];
    let listeners = listeners(server, report);
    if server.workers > WORKERS_MAX {
        let problem = Problem::new(server.workers.to_string());
        report.value(at("workers"), problem.expected(format!("at most {WORKERS_MAX}")));
    }
    let max_connections = at_least_one(at("max_connections"), server.max_connections, report);
    let header_bytes = server.max_header_bytes.0;
    if !(HEADER_BYTES_MIN..=HEADER_BYTES_MAX).contains(&header_bytes) {
        let problem = Problem::new(format!("{header_bytes} bytes"));
        report.value(at("max_header_bytes"), problem.expected("8KiB to 16MiB"));
    }
    ServerSettings {
        listeners,
        workers: usize::try_from(server.workers).unwrap_or(usize::MAX),
        expose_health: server.expose.contains(&Exposed::Health),
        expose_metrics: server.expose.contains(&Exposed::Metrics),
        max_connections,
        max_connections_per_ip: NonZeroU32::new(server.max_connections_per_ip),
        proxy_protocol: server.proxy_protocol,
        header_timeout: positive(at("header_timeout"), server.header_timeout, report),
        idle_timeout: positive(at("idle_timeout"), server.idle_timeout, report),
        body_timeout: positive(at("body_timeout"), server.body_timeout, report),
        max_header_bytes: usize::try_from(header_bytes).unwrap_or(usize::MAX),
        max_body_bytes: NonZeroU64::new(server.max_body_bytes.0),
        drain_timeout: server.drain_timeout.0,
        handover: handover(server.handover.as_deref(), report),
    }
}

/// Longest name of a socket in the file system (unix(7)), what is added for a moment included.
const SOCKET_NAME_MAX: usize = 107 - "..4194304".len();

fn handover(path: Option<&str>, report: &mut Report<'_>) -> Option<PathBuf> {
    let path = path?;
    let has_name = std::path::Path::new(path).file_name().is_some() && !path.ends_with('/');
    if !has_name || path.len() > SOCKET_NAME_MAX {
        let expected = format!("the name of a socket, at most {SOCKET_NAME_MAX} bytes");
        report.value(
            config_path!["server", "handover"],
            Problem::new(quoted(path)).expected(expected),
        );
    }
    Some(path.into())
}

fn redis(
    store: &StoreConfig,
    read_secret: ReadSecret<'_>,
    report: &mut Report<'_>,
) -> Option<RedisSettings> {
    let redis = store.redis.as_ref()?;
    let at = |key: &str| config_path!["store", "redis", key];
    let timeout = positive(at("timeout"), redis.timeout, report);
    let prefix = &redis.key_prefix;
    // Braces would tell a cluster what to hash, in place of the keys' own.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:/".contains(&byte);
    if prefix.is_empty() || prefix.len() > KEY_PREFIX_BYTES_MAX || !prefix.bytes().all(is_plain) {
        let problem = Problem::new(quoted(prefix));
        report
            .value(at("key_prefix"), problem.expected("1 to 64 letters, digits, or any of _-.:/"));
    }
    if let Some(expected) = redis.expected_replicas {
        at_least_one(at("expected_replicas"), expected, report);
    }
    let url = redis_url(redis, read_secret, report)?;
    Some(RedisSettings {
        url,
        timeout,
        on_failure: failure_mode(redis.on_failure),
        leases: redis.leases == Leases::Auto,
        key_prefix: prefix.clone(),
        expected_replicas: redis.expected_replicas.unwrap_or(0),
        identity_secret: None,
    })
}

fn trusted_proxies(texts: &[String], report: &mut Report<'_>) -> Vec<IpNet> {
    let mut networks = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let path = || config_path!["server", "trusted_proxies", index];
        match url::network(text) {
            Ok((network, has_host_bits)) => {
                if has_host_bits {
                    report.warn(path(), host_bits(text, &network));
                }
                if network.prefix_len() == 0 {
                    let found = format!("{network} believes what every caller says of its address");
                    report.warn(path(), Problem::new(found).expected("your proxies' networks"));
                }
                networks.push(network);
            }
            Err(problem) => report.value(path(), problem),
        }
    }
    networks
}

/// The warning of a network that is written with bits beyond its prefix.
pub fn host_bits(text: &str, network: &IpNet) -> Problem {
    Problem::new(format!("{} has bits beyond its prefix", quoted(text)))
        .expected(format!("{network}"))
}

/// A name that should be among `names`, with the nearest of them suggested.
pub fn not_defined<'a>(
    what: &str,
    name: &str,
    names: impl IntoIterator<Item = &'a str> + Clone,
) -> Problem {
    let mut problem = Problem::new(format!("{what} {} is not defined", quoted(name)))
        .expected(super::report::one_of(names.clone()));
    if let Some(near) = nearest(name, names) {
        problem = problem.hint(format!("did you mean \"{near}\"?"));
    }
    problem
}

/// Port 0 stands in for an address that was reported: it is nobody else's.
pub fn address(path: Path, text: &str, report: &mut Report<'_>) -> SocketAddr {
    url::listen(text).unwrap_or_else(|problem| {
        report.value(path, problem);
        SocketAddr::from(([0, 0, 0, 0], 0))
    })
}

fn at_least_one(path: Path, number: u32, report: &mut Report<'_>) -> usize {
    if number == 0 {
        report.value(path, Problem::new("0").expected("at least 1"));
    }
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// A duration above zero, or it is reported.
pub fn positive(path: Path, duration: HumanDuration, report: &mut Report<'_>) -> Duration {
    debug_assert!(duration.0 <= DURATION_MAX, "parsed durations are bounded");
    if duration.0.is_zero() {
        report.value(path, Problem::new("0").expected("a duration above zero"));
    }
    duration.0
}
