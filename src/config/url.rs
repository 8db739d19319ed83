//! Addresses and URLs of the configuration, read with errors that name the part that is wrong.
//!
//! No message repeats a password. Nothing is resolved here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::report::{Problem, shortened};
use super::value::Redacted;
use crate::redis::target::{Account, Form, RedisAddress, RedisTarget, Trust};
use crate::tls::roots::Roots;

/// Schemes of an upstream.
const UPSTREAM_SCHEMES: [&str; 4] = ["http", "https", "h2c", "unix"];
/// Schemes of a Redis.
const REDIS_SCHEMES: [&str; 7] = [
    "redis",
    "redis+unix",
    "rediss",
    "redis-cluster",
    "rediss-cluster",
    "redis-sentinel",
    "rediss-sentinel",
];

/// The system takes no longer path of a socket (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A URL taken apart; nothing is decoded.
#[derive(Debug)]
struct Parts<'a> {
    scheme: &'a str,
    userinfo: Option<&'a str>,
    host: &'a str,
    port: Option<&'a str>,
    path: &'a str,
    query: Option<&'a str>,
}

/// What is spoken with the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamScheme {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 or HTTP/1.1 over TLS, as the backend chooses.
    Https,
    /// HTTP/2 without TLS, and without asking (RFC 9113 §3.3).
    H2c,
}

/// Where the backend listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamPlace {
    /// On a port.
    Tcp {
        /// A name in lower case, or an address without brackets.
        host: String,
        /// The scheme's own where the URL names none.
        port: u16,
    },
    /// On a socket of this machine.
    Unix {
        /// Absolute.
        path: String,
    },
}

/// The backend's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl {
    /// What is spoken there.
    pub scheme: UpstreamScheme,
    /// Where it listens.
    pub place: UpstreamPlace,
}

impl UpstreamUrl {
    /// The backend as `Host` names it: without the port that its scheme has anyway.
    pub fn authority(&self) -> String {
        let UpstreamPlace::Tcp { host, port } = &self.place else { return "localhost".to_owned() };
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        if *port == self.scheme.port() { host } else { format!("{host}:{port}") }
    }

    /// The backend as operators know it: `HOST:PORT`, or `unix:/PATH`.
    pub fn label(&self) -> String {
        match &self.place {
            UpstreamPlace::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            UpstreamPlace::Tcp { host, port } => format!("{host}:{port}"),
            UpstreamPlace::Unix { path } => format!("unix:{path}"),
        }
    }
}

impl UpstreamScheme {
    /// The port where a URL names none.
    pub fn port(self) -> u16 {
        match self {
            UpstreamScheme::Http | UpstreamScheme::H2c => 80,
            UpstreamScheme::Https => 443,
        }
    }
}

/// A Redis, by its URL.
#[derive(Clone, Debug, PartialEq)]
pub struct RedisUrl {
    /// Of how many servers it is made, and where they are.
    pub form: Form,
    /// Whether it is reached over TLS.
    pub is_tls: bool,
    /// Who to be there.
    pub account: Account,
    /// The number of its database.
    pub database: u8,
    /// Whom TLS believes; there wherever TLS is used.
    pub trust: Option<Trust>,
}

impl RedisUrl {
    /// What is connected to.
    pub fn target(&self) -> RedisTarget {
        let trust = self.trust.clone();
        RedisTarget::new(self.form.clone(), self.account.clone(), self.database, trust)
    }
}

/// What to say of a feature that is not built yet.
pub fn not_yet() -> Problem {
    Problem::new("not supported yet")
}

/// Reads the backend's URL.
///
/// # Errors
/// The part that is wrong.
pub fn upstream(text: &str) -> Result<UpstreamUrl, Problem> {
    const FORM: &str = "http://HOST:PORT";
    if let Some(path) = unix_path(text) {
        return path.map(|path| UpstreamUrl {
            scheme: UpstreamScheme::Http,
            place: UpstreamPlace::Unix { path },
        });
    }
    let parts = split(text, FORM, "http")?;
    let scheme = match parts.scheme.to_ascii_lowercase().as_str() {
        "http" => UpstreamScheme::Http,
        "https" => UpstreamScheme::Https,
        "h2c" => UpstreamScheme::H2c,
        _ => return Err(bad_scheme(text, parts.scheme, &UPSTREAM_SCHEMES)),
    };
    let form = match scheme {
        UpstreamScheme::Http => FORM,
        UpstreamScheme::Https => "https://HOST:PORT",
        UpstreamScheme::H2c => "h2c://HOST:PORT",
    };
    if parts.userinfo.is_some() {
        return Err(Problem::new("a user or password").expected(form));
    }
    let host = host(parts.host)?;
    let port = port(parts.port)?.unwrap_or(scheme.port());
    if !matches!(parts.path, "" | "/") {
        let found = format!("path \"{}\"", shortened(parts.path));
        return Err(Problem::new(found).expected(format!("{form} without a path")));
    }
    if parts.query.is_some() {
        return Err(Problem::new("a query or fragment").expected(form));
    }
    Ok(UpstreamUrl { scheme, place: UpstreamPlace::Tcp { host, port } })
}

/// The path of `unix:/PATH` or `unix:///PATH`, byte for byte; `None` for any other scheme.
fn unix_path(text: &str) -> Option<Result<String, Problem>> {
    let (scheme, rest) = text.split_once(':')?;
    if !scheme.eq_ignore_ascii_case("unix") {
        return None;
    }
    let path = rest.strip_prefix("//").unwrap_or(rest);
    let wrong = |expected: String| {
        let found = format!("socket path \"{}\"", shortened(path));
        Some(Err(Problem::new(found).expected(expected)))
    };
    if !path.starts_with('/') || path.len() < 2 || path.contains('\0') {
        return wrong("unix:/PATH, an absolute path".to_owned());
    }
    if path.len() > SOCKET_PATH_BYTES_MAX {
        return wrong(format!("at most {SOCKET_PATH_BYTES_MAX} bytes"));
    }
    Some(Ok(path.to_owned()))
}

/// Reads a Redis's URL, in the forms of the fred client. TLS believes this machine's authorities.
///
/// # Errors
/// The part that is wrong; never the password.
pub fn redis(text: &str) -> Result<RedisUrl, Problem> {
    let mut url = redis_without_trust(text)?;
    if url.is_tls {
        url.trust = Some(Trust::new(Roots::System, None).map_err(Problem::new)?);
    }
    Ok(url)
}

/// The same, of which TLS believes nobody yet.
///
/// # Errors
/// The part that is wrong; never the password.
pub fn redis_without_trust(text: &str) -> Result<RedisUrl, Problem> {
    const FORM: &str = "redis://[USER:PASSWORD@]HOST:PORT/DATABASE or redis+unix:///PATH";
    let parts = split(text, FORM, "redis")?;
    let scheme = parts.scheme.to_ascii_lowercase();
    if !REDIS_SCHEMES.contains(&scheme.as_str()) {
        return Err(bad_scheme(text, parts.scheme, &REDIS_SCHEMES));
    }
    let (username, password) = credentials(parts.userinfo)?;
    let password = password.map(|it| it.expose().to_owned());
    // A user without a password is one whom any password lets in, not nobody.
    let password = password.or_else(|| username.as_ref().map(|_| String::new()));
    let account = Account { username, password };
    let (kind, is_tls) = match scheme.strip_prefix("rediss") {
        Some(kind) => (kind, true),
        None => (scheme.strip_prefix("redis").unwrap_or_default(), false),
    };
    let path = parts.path.trim_start_matches('/');
    let path = if path.is_empty() { "0" } else { path };
    let (form, database) = match kind {
        "+unix" => unix_redis(&parts)?,
        "-sentinel" => (sentinels(&parts)?, path),
        "-cluster" => {
            let (seeds, others) = nodes(&parts, 6379)?;
            if let Some((name, _)) = others.first() {
                return Err(bad_parameter(name).expected("node=HOST:PORT"));
            }
            if path != "0" {
                let problem = Problem::new(format!("database \"{}\"", shortened(path)));
                return Err(problem.expected("0, as a cluster has no other"));
            }
            (Form::Cluster { seeds }, path)
        }
        _ => {
            if parts.query.is_some() {
                return Err(Problem::new("a query or fragment").expected(FORM));
            }
            let host = host(parts.host)?;
            let port = port(parts.port)?.unwrap_or(6379);
            (Form::Single(RedisAddress::Tcp { host, port }), path)
        }
    };
    let database = database.parse().map_err(|_| {
        Problem::new(format!("database \"{}\"", shortened(database))).expected("a number up to 255")
    })?;
    Ok(RedisUrl { form, is_tls, account, database, trust: None })
}

fn unix_redis<'a>(parts: &Parts<'a>) -> Result<(Form, &'a str), Problem> {
    if !parts.host.is_empty() || parts.path.len() < 2 {
        let found = format!("socket path \"{}{}\"", parts.host, parts.path);
        return Err(Problem::new(found).expected("redis+unix:///PATH, an absolute path"));
    }
    let database = match parts.query {
        None => "0",
        Some(query) => query.strip_prefix("db=").ok_or_else(|| {
            Problem::new(format!("query \"{}\"", shortened(query))).expected("db=NUMBER")
        })?,
    };
    Ok((Form::Single(RedisAddress::Unix { path: parts.path.to_owned() }), database))
}

fn sentinels(parts: &Parts<'_>) -> Result<Form, Problem> {
    let (sentinels, others) = nodes(parts, 26_379)?;
    let (mut service, mut account) = (String::new(), Account::default());
    for (name, value) in others {
        match name {
            "sentinelServiceName" => service = value,
            "sentinelUsername" => account.username = Some(value),
            "sentinelPassword" => account.password = Some(value),
            _ => {
                let known = "node, sentinelServiceName, sentinelUsername or sentinelPassword";
                return Err(bad_parameter(name).expected(known));
            }
        }
    }
    if service.is_empty() {
        let problem = Problem::new("no name of what the sentinels watch");
        return Err(problem.expected("?sentinelServiceName=NAME"));
    }
    Ok(Form::Sentinel { sentinels, service, account })
}

/// A name and a value of a query.
type Parameter<'a> = (&'a str, String);

/// The servers that a URL names: that in front, and those of its query; and what else is in that.
fn nodes<'a>(
    parts: &Parts<'a>,
    port_else: u16,
) -> Result<(Vec<RedisAddress>, Vec<Parameter<'a>>), Problem> {
    let at = |of_host: &str, of_port: Option<&str>| {
        let port = port(of_port)?.unwrap_or(port_else);
        Ok(RedisAddress::Tcp { host: host(of_host)?, port })
    };
    let mut servers = vec![at(parts.host, parts.port)?];
    let mut others = Vec::new();
    for pair in parts.query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decoded(value)
            .filter(|value| !value.is_empty() && !value.contains('#'))
            .ok_or_else(|| bad_parameter(name).expected("NAME=VALUE, and %25 for %"))?;
        if name == "node" {
            let (host, port) = host_and_port(&value);
            let node = at(host, port)?;
            if !servers.contains(&node) {
                servers.push(node);
            }
        } else {
            others.push((name, value));
        }
    }
    Ok((servers, others))
}

fn host_and_port(text: &str) -> (&str, Option<&str>) {
    let host_end = text.rfind(']').map_or(0, |bracket| bracket + 1);
    match text.get(host_end..).and_then(|rest| rest.find(':')) {
        Some(colon) => {
            let (host, port) = text.split_at(host_end + colon);
            (host, port.strip_prefix(':'))
        }
        None => (text, None),
    }
}

fn bad_parameter(name: &str) -> Problem {
    Problem::new(format!("query \"{}\"", shortened(name)))
}

/// Reads an address to listen on.
///
/// # Errors
/// What was found, and a guess at what was meant.
pub fn listen(text: &str) -> Result<SocketAddr, Problem> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if let Some(port) = text.strip_prefix("localhost:").and_then(|port| port.parse().ok()) {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    let problem = Problem::new(quoted(text)).expected("ADDRESS:PORT, such as 0.0.0.0:8080");
    let port = text.strip_prefix('*').unwrap_or(text);
    let port = port.strip_prefix(':').unwrap_or(port);
    Err(match (port.parse::<u16>(), text.parse::<IpAddr>()) {
        (Ok(port), _) => problem.hint(format!("did you mean \"0.0.0.0:{port}\"?")),
        (_, Ok(IpAddr::V4(address))) => problem.hint(format!("did you mean \"{address}:8080\"?")),
        (_, Ok(IpAddr::V6(address))) => problem.hint(format!("did you mean \"[{address}]:8080\"?")),
        _ => problem,
    })
}

/// A network as it was read, and whether bits beyond its prefix were set.
pub fn network(text: &str) -> Result<(IpNet, bool), Problem> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let network = network.map_err(|_| {
        let problem = Problem::new(quoted(text));
        problem.expected("a network in CIDR form, such as 10.0.0.0/8, or an address")
    })?;
    let has_host_bits = network.trunc() != network;
    Ok((unmapped(network.trunc()), has_host_bits))
}

/// An IPv4 network written as one of IPv6 is the IPv4 network: that is how peers are compared.
fn unmapped(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let mapped = v6.addr().to_ipv4_mapped();
    let length = v6.prefix_len().checked_sub(96);
    match (mapped, length) {
        (Some(v4), Some(length)) => IpNet::new(IpAddr::V4(v4), length).unwrap_or(network),
        _ => network,
    }
}

/// A value in quotes, its passwords aside.
pub fn quoted(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    if let Some(at) = lower.find("password=")
        && let Some(before) = text.get(..at + "password=".len())
    {
        return quoted(&format!("{}***", before.trim_end_matches('=')));
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return format!("\"{}\"", shortened(text));
    };
    match rest.rsplit_once('@') {
        Some((_, rest)) => format!("\"{}\"", shortened(&format!("{scheme}://***@{rest}"))),
        None => format!("\"{}\"", shortened(text)),
    }
}

fn split<'a>(text: &'a str, form: &str, scheme: &str) -> Result<Parts<'a>, Problem> {
    if text.is_empty() {
        return Err(Problem::new("nothing").expected(form));
    }
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(Problem::new(quoted(text)).expected("no spaces or control characters"));
    }
    let Some((found_scheme, rest)) = text.split_once("://") else {
        let problem = Problem::new(format!("{} has no scheme", quoted_bare(text))).expected(form);
        return Err(match text.contains(['@', ':']) && text.contains('@') {
            true => problem,
            false => {
                let shown = quoted(text);
                problem.hint(format!("did you mean \"{scheme}://{}\"?", shown.trim_matches('"')))
            }
        });
    };
    let end = rest.find(['?', '#']).unwrap_or(rest.len());
    let (before_query, query) = rest.split_at(end);
    // It would be taken for host and port, and shown in a message.
    if query.contains('@') {
        let problem = Problem::new("a ? or # in front of the last @");
        return Err(problem.expected("%3F or %23, where it belongs to the password"));
    }
    // A password may hold a slash: the last `@` ends it.
    let (userinfo, rest) = match before_query.rsplit_once('@') {
        Some((userinfo, rest)) => (Some(userinfo), rest),
        None => (None, before_query),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let after_host = match authority.rfind(']') {
        Some(bracket) => bracket + 1,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at(after_host);
    let port = match port.strip_prefix(':') {
        Some(port) => Some(port),
        None if port.is_empty() => None,
        None => return Err(Problem::new(quoted(text)).expected(form)),
    };
    let query = (!query.is_empty()).then(|| query.get(1..).unwrap_or(""));
    Ok(Parts { scheme: found_scheme, userinfo, host, port, path, query })
}

/// What has no scheme may still begin with a user and a password.
fn quoted_bare(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((_, rest)) => format!("\"***@{}\"", shortened(rest)),
        None => quoted(text),
    }
}

fn bad_scheme(text: &str, scheme: &str, known: &'static [&'static str]) -> Problem {
    let mut problem = Problem::new(format!("scheme \"{}\"", shortened(scheme)))
        .expected_one_of(scheme, known.iter().copied());
    if let Some(near) = super::report::nearest(scheme, known.iter().copied()) {
        let rest = quoted(text);
        let rest = rest.trim_matches('"').split_once("://").map_or("", |(_, rest)| rest);
        problem.suggestion = Some(format!("did you mean \"{near}://{rest}\"?"));
    }
    problem
}

fn host(text: &str) -> Result<String, Problem> {
    if text.is_empty() {
        return Err(Problem::new("no host").expected("a name or an address"));
    }
    let wrong = || Problem::new(format!("host \"{}\"", shortened(text)));
    if let Some(inner) = text.strip_prefix('[') {
        let address = inner.strip_suffix(']').and_then(|inner| inner.parse::<Ipv6Addr>().ok());
        let address = address.ok_or_else(|| wrong().expected("an IPv6 address in brackets"))?;
        return Ok(address.to_string());
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let labels = text.strip_suffix('.').unwrap_or(text);
    let is_name = text.len() <= 253
        && text.bytes().all(allowed)
        && labels.split('.').all(|label| !label.is_empty() && label.len() <= 63);
    // A name that ends in a number would be read as an address by some and looked up by others.
    let last = labels.rsplit('.').next().unwrap_or("");
    let looks_numeric = last.bytes().all(|byte| byte.is_ascii_digit());
    if !is_name || (looks_numeric && text.parse::<Ipv4Addr>().is_err()) {
        return Err(wrong().expected("a name or an address"));
    }
    Ok(text.to_ascii_lowercase())
}

fn port(text: Option<&str>) -> Result<Option<u16>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(port) if port > 0 && is_number => Ok(Some(port)),
        _ => Err(Problem::new(format!("port \"{}\"", shortened(text))).expected("1 to 65535")),
    }
}

fn credentials(userinfo: Option<&str>) -> Result<(Option<String>, Option<Redacted>), Problem> {
    let Some(userinfo) = userinfo else { return Ok((None, None)) };
    let decoded = |text: &str| {
        percent_decoded(text).ok_or_else(|| {
            Problem::new("a user or password with a broken %-sequence").expected("%25 for %")
        })
    };
    let (username, password) = match userinfo.split_once(':') {
        Some((username, password)) => (username, Some(password)),
        None => (userinfo, None),
    };
    let username = Some(decoded(username)?).filter(|username| !username.is_empty());
    let password = password.map(decoded).transpose()?.filter(|password| !password.is_empty());
    Ok((username, password.map(Redacted::new)))
}

/// Text with its `%`-sequences read; `None` where one is broken, or no UTF-8 comes of it.
pub fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = char::from(rest.next()?).to_digit(16)?;
            let low = char::from(rest.next()?).to_digit(16)?;
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream_error(text: &str) -> String {
        upstream(text).unwrap_err().message()
    }

    #[test]
    fn upstreams() {
        let read = |text| {
            let url = upstream(text).unwrap();
            let UpstreamPlace::Tcp { host, port } = &url.place else { panic!("{url:?}") };
            (url.scheme, host.clone(), *port, url.authority())
        };
        use UpstreamScheme::{H2c, Http, Https};
        let plain = |it: &str| it.to_owned();
        for (text, scheme, host, port, authority) in [
            ("http://127.0.0.1:8081", Http, "127.0.0.1", 8081, "127.0.0.1:8081"),
            ("HTTP://Backend.local/", Http, "backend.local", 80, "backend.local"),
            ("http://[::1]:90", Http, "::1", 90, "[::1]:90"),
            ("http://my_service:1", Http, "my_service", 1, "my_service:1"),
            ("https://a", Https, "a", 443, "a"),
            ("https://a:80", Https, "a", 80, "a:80"),
            ("h2c://[::1]", H2c, "::1", 80, "[::1]"),
        ] {
            assert_eq!(read(text), (scheme, plain(host), port, plain(authority)), "{text}");
        }
        for text in ["unix:/run/x y", "unix:///run/x y", "UNIX:/run/x y"] {
            let url = upstream(text).unwrap();
            assert_eq!(url.place, UpstreamPlace::Unix { path: "/run/x y".into() });
            assert_eq!((url.scheme, url.authority().as_str()), (Http, "localhost"));
        }
    }

    #[test]
    fn wrong_upstreams_say_which_part() {
        let known = "expected one of http, https, h2c, unix";
        assert_eq!(upstream_error("htpp://a:1"), format!("scheme \"htpp\", {known}"));
        assert_eq!(
            upstream("htpp://a:1").unwrap_err().suggestion.unwrap(),
            "did you mean \"http://a:1\"?"
        );
        assert_eq!(
            upstream_error("127.0.0.1:80"),
            "\"127.0.0.1:80\" has no scheme, expected http://HOST:PORT"
        );
        assert_eq!(
            upstream_error("http://a:1/api"),
            "path \"/api\", expected http://HOST:PORT without a path"
        );
        assert_eq!(
            upstream_error("http://a:1?x"),
            "a query or fragment, expected http://HOST:PORT"
        );
        assert_eq!(upstream_error("http://u:p@a"), "a user or password, expected http://HOST:PORT");
        assert_eq!(upstream_error("http://:80"), "no host, expected a name or an address");
        assert_eq!(upstream_error("http://"), "no host, expected a name or an address");
        assert_eq!(upstream_error("http://a:99999"), "port \"99999\", expected 1 to 65535");
        assert_eq!(upstream_error("http://a:0"), "port \"0\", expected 1 to 65535");
        assert_eq!(upstream_error("http://a:"), "port \"\", expected 1 to 65535");
        assert_eq!(upstream_error("http://a:+1"), "port \"+1\", expected 1 to 65535");
        assert_eq!(
            upstream_error("http://1.2.3.400"),
            "host \"1.2.3.400\", expected a name or an address"
        );
        assert_eq!(upstream_error("http://::1:80"), "no host, expected a name or an address");
        assert_eq!(
            upstream_error("http://[::x]:80"),
            "host \"[::x]\", expected an IPv6 address in brackets"
        );
        assert_eq!(
            upstream_error("h2c://a/b"),
            "path \"/b\", expected h2c://HOST:PORT without a path"
        );
        for wrong in ["unix:", "unix:/", "unix:run/x", "unix://run/x"] {
            let error = upstream_error(wrong);
            assert!(error.ends_with(", expected unix:/PATH, an absolute path"), "{error}");
        }
        let long = format!("unix:/{}", "a".repeat(107));
        assert!(upstream_error(&long).ends_with(", expected at most 107 bytes"));
        for odd in
            ["", " ", "http://a b", "://", "http://[", "http://]", "http://[::1]x", "http://%"]
        {
            assert!(upstream(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn redis_urls() {
        let tcp = |host: &str, port| RedisAddress::Tcp { host: host.into(), port };
        let url = redis("redis://me:p%40ss@[::1]:7/3").unwrap();
        assert_eq!(url.form, Form::Single(tcp("::1", 7)));
        assert_eq!((url.account.username.as_deref(), url.database), (Some("me"), 3));
        assert_eq!(url.account.password.as_deref(), Some("p@ss"));
        let url = redis("redis+unix:///run/redis.sock?db=2").unwrap();
        assert_eq!(url.form, Form::Single(RedisAddress::Unix { path: "/run/redis.sock".into() }));
        assert_eq!(url.database, 2);
        let url = redis("redis://:a/b@host").unwrap();
        assert_eq!(url.form, Form::Single(tcp("host", 6379)));
        assert_eq!((url.account.username, url.account.password.as_deref()), (None, Some("a/b")));
        assert!(!url.is_tls && redis_without_trust("rediss://host").unwrap().is_tls);
        let url = redis("redis://me@host").unwrap();
        assert_eq!(
            (url.account.username.as_deref(), url.account.password.as_deref()),
            (Some("me"), Some(""))
        );
        let url =
            redis_without_trust("rediss-cluster://:pw@a:1?node=[::1]:2&node=b&node=a:1").unwrap();
        let seeds = vec![tcp("a", 1), tcp("::1", 2), tcp("b", 6379)];
        assert_eq!((url.form, url.is_tls), (Form::Cluster { seeds }, true));
        let url = "redis-sentinel://me:pw@a/4?sentinelServiceName=main&node=b:2\
            &sentinelUsername=it&sentinelPassword=s%26t";
        let url = redis(url).unwrap();
        let account = Account { username: Some("it".into()), password: Some("s&t".into()) };
        let sentinels = vec![tcp("a", 26_379), tcp("b", 2)];
        let service = "main".to_owned();
        assert_eq!(url.form, Form::Sentinel { sentinels, service, account });
        assert_eq!((url.account.password.as_deref(), url.database), (Some("pw"), 4));
    }

    #[test]
    fn wrong_redis_urls_say_which_part() {
        let error = |text| redis(text).unwrap_err().message();
        for (text, message) in [
            ("redis-cluster://a/3", "database \"3\", expected 0, as a cluster has no other"),
            ("redis-cluster://a?nodes=b", "query \"nodes\", expected node=HOST:PORT"),
            ("redis-cluster://a?node=b:x", "port \"x\", expected 1 to 65535"),
            ("redis-cluster://a?node", "query \"node\", expected NAME=VALUE, and %25 for %"),
            (
                "redis-sentinel://a?node=b",
                "no name of what the sentinels watch, expected ?sentinelServiceName=NAME",
            ),
            (
                "redis-sentinel://a?sentinelServicename=b",
                "query \"sentinelServicename\", expected node, sentinelServiceName, \
                 sentinelUsername or sentinelPassword",
            ),
            ("rediss://a:0", "port \"0\", expected 1 to 65535"),
        ] {
            assert_eq!(error(text), message, "{text}");
        }
    }

    #[test]
    fn wrong_redis_urls_keep_the_password() {
        for wrong in [
            "reddis://me:hunter2@host",
            "redis://me:hunter2@host:x/0",
            "redis://me:hunter2@host/x",
            "redis://me:hunter2%@host/0",
            "redis://me:hunter2@ho st/0",
            "redis://me:hunter2@",
            "me:hunter2@host:6379",
            "redis://me:hun?ter2@host",
            "redis://me:hunter2#hunter@host",
            "rediss://me:hunter2@host/x",
            "redis+unix://me:hunter2@run/x",
            "redis-sentinel://host?sentinelPassword=hunter2",
            "redis-sentinel://host?sentinelPassword=hun ter2&sentinelServiceName=a",
            "sentinel://host?sentinelPassword=hunter2",
            "host?sentinelPassword=hunter2",
            "redis-cluster://host?sentinelPassword=hunter2",
            "redis-sentinel://host?sentinelPassword=hunter2%",
        ] {
            let problem = redis(wrong).unwrap_err();
            assert!(!format!("{problem:?}").contains("hun"), "{problem:?}");
        }
    }

    #[test]
    fn listening_addresses() {
        assert_eq!(listen("[::]:80").unwrap().port(), 80);
        assert_eq!(listen("localhost:0").unwrap().to_string(), "127.0.0.1:0");
        let hint = |text| listen(text).unwrap_err().suggestion;
        assert_eq!(hint("8080").unwrap(), "did you mean \"0.0.0.0:8080\"?");
        assert_eq!(hint("*:90").unwrap(), "did you mean \"0.0.0.0:90\"?");
        assert_eq!(hint("::1").unwrap(), "did you mean \"[::1]:8080\"?");
        assert_eq!(hint("nowhere"), None);
    }

    #[test]
    fn networks() {
        let read = |text| network(text).map(|(net, bits)| (net.to_string(), bits));
        assert_eq!(read("10.0.0.0/8").unwrap(), ("10.0.0.0/8".into(), false));
        assert_eq!(read("10.1.2.3/8").unwrap(), ("10.0.0.0/8".into(), true));
        assert_eq!(read("192.0.2.7").unwrap(), ("192.0.2.7/32".into(), false));
        assert_eq!(read("::ffff:10.0.0.0/104").unwrap(), ("10.0.0.0/8".into(), false));
        assert!(read("10.0.0.0/33").is_err());
    }
}
