//! The mirror of `tollgate.yaml`: every key, its type and its default. No behaviour.
//!
//! A key that is null counts as not given. What is not built yet stands here all the same, so that
//! it is known, and refused by [`super::unsupported`] rather than ignored.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::value::{AccessLog, ByteSize, HumanDuration, Ordered, Redacted};

/// `server.listen` where neither it nor `server.listeners` is given.
pub const LISTEN_DEFAULT: &str = "0.0.0.0:8080";
/// `store.redis.url` where neither it nor `url_file` is given.
pub const REDIS_DEFAULT: &str = "redis://127.0.0.1:6379/0";

/// The configuration of tollgate: where it listens, what it forwards to, where it keeps its
/// counters.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "tollgate.yaml")]
pub struct Config {
    /// The data port and what it bears.
    pub server: Server,
    /// The operators' port.
    pub admin: Admin,
    /// The backend.
    pub upstream: Upstream,
    /// Where limiter state lives.
    pub store: StoreConfig,
    /// Who a caller is, tried in order; the last resort is always the address.
    pub identity: Vec<IdentityEntry>,
    /// Key of the HMAC that hides identities in Redis, at least 16 bytes; null: plain hashes. Equal
    /// for all replicas; another one means that every counter begins anew.
    pub identity_hash_secret: Option<Redacted>,
    /// A file that holds `identity_hash_secret`.
    pub identity_hash_secret_file: Option<String>,
    /// Where a user's subscription is looked up.
    pub tier_lookup: Option<TierLookup>,
    /// Which fields answers carry.
    pub headers: Headers,
    /// Refusing for load.
    pub shedding: Shedding,
    /// What counts as slow.
    pub slow_thresholds: SlowThresholds,
    /// A caller's own tier and limits.
    pub self_service: SelfService,
    /// Accounting for billing.
    pub usage: Usage,
    /// Logs.
    pub log: Log,
    /// Traces.
    pub tracing: Tracing,
}

impl Default for Config {
    fn default() -> Self {
        let ip = IdentityEntry { ip: Some(IpIdentity::default()), ..IdentityEntry::default() };
        Config {
            server: Server::default(),
            admin: Admin::default(),
            upstream: Upstream::default(),
            store: StoreConfig::default(),
            identity: vec![ip],
            identity_hash_secret: None,
            identity_hash_secret_file: None,
            tier_lookup: None,
            headers: Headers::default(),
            shedding: Shedding::default(),
            slow_thresholds: SlowThresholds::default(),
            self_service: SelfService::default(),
            usage: Usage::default(),
            log: Log::default(),
            tracing: Tracing::default(),
        }
    }
}

/// `server:`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Short for one plain listener; `0.0.0.0:8080` where nothing else is said.
    #[schemars(extend("default" = LISTEN_DEFAULT))]
    pub listen: Option<String>,
    /// The general form, instead of `listen`: several, with TLS or without.
    pub listeners: Option<Vec<Listener>>,
    /// Threads that serve, at most 1024; 0: one per core.
    pub workers: u32,
    /// Networks or addresses of proxies whose `X-Forwarded-For` and `Forwarded` are believed.
    pub trusted_proxies: Vec<String>,
    /// The PROXY protocol, in which trusted proxies, and nobody else, then have to say whom each
    /// connection is for.
    pub proxy_protocol: ProxyProtocol,
    /// What tollgate answers itself on the data port, too.
    pub expose: Vec<Exposed>,
    /// Most connections at once; further ones are closed unread, and counted.
    pub max_connections: u32,
    /// Most connections of one address (with as much of it as `identity[].ip` takes); further ones
    /// are closed unread, and counted; 0: no limit. For those of a trusted proxy it holds by the
    /// address that the PROXY protocol names, and not at all without it.
    pub max_connections_per_ip: u32,
    /// For the whole head of a request; for a TLS handshake, too.
    pub header_timeout: HumanDuration,
    /// For a kept connection without a request.
    pub idle_timeout: HumanDuration,
    /// Between bytes of a request's body.
    pub body_timeout: HumanDuration,
    /// Longest head of a request, 8KiB to 16MiB; above it: 431, or 414 for its target.
    pub max_header_bytes: ByteSize,
    /// Longest body of a request; above it: 413; 0: no limit.
    pub max_body_bytes: ByteSize,
    /// For what still runs when tollgate is told to stop; what is left then is cut.
    pub drain_timeout: HumanDuration,
    /// A socket in the file system by which the next process takes the listeners over from this one,
    /// which drains then: a restart or a newer version without a connection lost. Its directory is
    /// tollgate's own.
    pub handover: Option<String>,
}

impl Default for Server {
    fn default() -> Self {
        Server {
            listen: None,
            listeners: None,
            workers: 0,
            trusted_proxies: Vec::new(),
            proxy_protocol: ProxyProtocol::Off,
            expose: Vec::new(),
            max_connections: 20_000,
            max_connections_per_ip: 0,
            header_timeout: HumanDuration::secs(10),
            idle_timeout: HumanDuration::secs(60),
            body_timeout: HumanDuration::secs(30),
            max_header_bytes: ByteSize(64 << 10),
            max_body_bytes: ByteSize(0),
            drain_timeout: HumanDuration::secs(30),
            handover: None,
        }
    }
}

/// One of `server.listeners`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["address"]))]
pub struct Listener {
    /// Address and port; required.
    pub address: Option<String>,
    /// The certificate that it shows; a plain listener has none.
    pub tls: Option<ListenerTls>,
}

/// `tls:` of a listener.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["cert", "key"]))]
pub struct ListenerTls {
    /// File of the certificate chain, in PEM, the server's own certificate first; required.
    pub cert: Option<String>,
    /// File of the private key, in PEM, without a passphrase; required.
    pub key: Option<String>,
    /// Further certificates, by the server name that a client asks for, `*.NAME` for any one label
    /// before it; `cert` is for all others.
    pub sni: Ordered<SniCertificate>,
    /// File of the authorities, in PEM, whose certificates clients have to show.
    pub client_ca: Option<String>,
    /// File of the lists, in PEM, of certificates that those authorities have taken back; with it,
    /// each authority in a client's chain needs a list in it.
    pub client_crl: Option<String>,
    /// Whether a client without a certificate is let in; a wrong one never is.
    pub client_auth: ClientAuthMode,
}

/// What is asked of clients where there is a `client_ca`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuthMode {
    /// A certificate; without one there is no connection.
    #[default]
    Required,
    /// A certificate, if it has one.
    Optional,
}

/// A certificate of `sni:`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["cert", "key"]))]
pub struct SniCertificate {
    /// File of the certificate chain, in PEM; required.
    pub cert: Option<String>,
    /// File of the private key, in PEM, without a passphrase; required.
    pub key: Option<String>,
}

/// Versions of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// Not spoken.
    Off,
    /// The text form.
    V1,
    /// The binary form.
    V2,
    /// Either.
    Any,
}

/// What the data port may answer itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Exposed {
    /// `/health`.
    Health,
    /// `/metrics`.
    Metrics,
}

/// `admin:`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Address and port of the operators' side.
    pub listen: String,
    /// A file that holds the token of `/api/…`; null: only this machine's own callers are
    /// answered.
    pub token_file: Option<String>,
}

impl Default for Admin {
    fn default() -> Self {
        Admin { listen: "127.0.0.1:9900".to_owned(), token_file: None }
    }
}

/// `upstream:`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Upstream {
    /// The backend: `http`, `https` or `h2c://HOST:PORT`, or `unix:/PATH`; required, here, in `urls`
    /// or as `--upstream`.
    pub url: Option<String>,
    /// Several backends that serve the same, in place of `url`: 1 to 64. Every other key holds for
    /// each of them.
    pub urls: Option<Vec<String>>,
    /// For a new connection: name, TLS and HTTP/2's first words included.
    pub connect_timeout: HumanDuration,
    /// To the head of an answer, all tries together.
    pub response_timeout: HumanDuration,
    /// To the head of an answer of one of `urls`, after which another is asked if the request may
    /// be repeated; below `response_timeout`. Null: as long as that.
    pub per_try_timeout: Option<HumanDuration>,
    /// Between bytes of an answer's body.
    pub idle_timeout: HumanDuration,
    /// Between bytes of an upgraded connection.
    pub tunnel_idle_timeout: HumanDuration,
    /// Most connections to each backend that are kept for reuse; over HTTP/2, most at a time.
    pub max_idle_connections: u32,
    /// Further tries of a request that may be repeated and has no answer yet, with `urls` at another
    /// backend each: 0 to 10. A try that reached nobody does not count.
    pub retries: u32,
    /// Per cent of the requests of the last 10 s that may be asked of another of `urls`, and 3 a
    /// second besides: 0 to 100; 0 is none at all.
    pub retry_budget: u32,
    /// Whether `Host` is passed on as it came.
    pub preserve_host: bool,
    /// Certificates towards the backend.
    pub tls: UpstreamTls,
    /// A name is resolved again at least this often.
    pub dns_ttl: HumanDuration,
    /// Probing the backend.
    pub health_check: HealthCheck,
}

impl Default for Upstream {
    fn default() -> Self {
        Upstream {
            url: None,
            urls: None,
            connect_timeout: HumanDuration::secs(2),
            response_timeout: HumanDuration::secs(60),
            per_try_timeout: None,
            idle_timeout: HumanDuration::secs(60),
            tunnel_idle_timeout: HumanDuration::secs(3600),
            max_idle_connections: 256,
            retries: 1,
            retry_budget: 20,
            preserve_host: true,
            tls: UpstreamTls::default(),
            dns_ttl: HumanDuration::secs(30),
            health_check: HealthCheck::default(),
        }
    }
}

/// `upstream.tls:`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamTls {
    /// File of the authorities that are trusted; null: this machine's.
    pub ca: Option<String>,
    /// The name that the certificate must bear; null: the URL's host.
    pub server_name: Option<String>,
    /// File of the certificate that tollgate shows.
    pub client_cert: Option<String>,
    /// File of its private key.
    pub client_key: Option<String>,
}

/// `upstream.health_check:`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HealthCheck {
    /// What is asked for, of which an answer of 200 to 399 is expected; null: no probing.
    pub path: Option<String>,
    /// How often it is asked, a fifth more or less.
    pub interval: HumanDuration,
    /// How long its answer may take.
    pub timeout: HumanDuration,
    /// Good answers in a row that bring the backend back, at least 1.
    pub rise: u32,
    /// Bad ones in a row that take it out, at least 1.
    pub fall: u32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        HealthCheck {
            path: None,
            interval: HumanDuration::secs(5),
            timeout: HumanDuration::secs(2),
            rise: 2,
            fall: 3,
        }
    }
}

/// `store:`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// State shared by all replicas; left out: in memory.
    pub redis: Option<RedisConfig>,
    /// State in this process.
    pub memory: MemoryConfig,
}

/// `store.redis:`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RedisConfig {
    /// `redis://[USER:PASSWORD@]HOST:PORT/DATABASE`, or with `rediss` over TLS;
    /// `redis+unix:///PATH`;
    /// `redis-sentinel://[USER:PASSWORD@]HOST:PORT/DATABASE?sentinelServiceName=NAME&node=HOST:PORT`,
    /// which names sentinels, with `sentinelUsername` and `sentinelPassword` for those;
    /// `redis-cluster://[USER:PASSWORD@]HOST:PORT?node=HOST:PORT`; `rediss-sentinel` and
    /// `rediss-cluster` over TLS.
    #[schemars(extend("default" = REDIS_DEFAULT))]
    pub url: Option<Redacted>,
    /// A file that holds the URL.
    pub url_file: Option<String>,
    /// Budget of one check: no request waits longer for Redis.
    pub timeout: HumanDuration,
    /// What decides while Redis does not answer.
    pub on_failure: OnFailure,
    /// What every key begins with: 1 to 64 letters, digits, or any of `_-.:/`.
    pub key_prefix: String,
    /// Whether replicas lease tokens of generous limits, a quarter of a second's at a time, in place
    /// of asking for each request. No limit is exceeded by it.
    pub leases: Leases,
    /// How many replicas there are at least, for `local`: while Redis is away each lets pass its share
    /// of a limit, of callers that it has not seen one in so many. `null`: as many as Redis has last
    /// heard of.
    pub expected_replicas: Option<u32>,
    /// Certificates towards Redis, its sentinels, and all servers of a cluster.
    pub tls: RedisTls,
}

impl Default for RedisConfig {
    fn default() -> Self {
        RedisConfig {
            url: None,
            url_file: None,
            timeout: HumanDuration::millis(20),
            on_failure: OnFailure::Local,
            key_prefix: "tg".to_owned(),
            leases: Leases::Auto,
            expected_replicas: None,
            tls: RedisTls::default(),
        }
    }
}

/// `store.redis.tls:`, `tier_lookup.redis.tls:`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RedisTls {
    /// File of the authorities that are trusted; null: this machine's.
    pub ca: Option<String>,
    /// File of the certificate that tollgate shows.
    pub client_cert: Option<String>,
    /// File of its private key.
    pub client_key: Option<String>,
}

/// What decides without Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// The limits, in this process's memory.
    Local,
    /// Nothing: requests pass.
    Open,
    /// Nothing: requests are refused.
    Closed,
}

/// `leases:`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Leases {
    /// Every check asks Redis.
    Off,
    /// For busy callers of tiers that allow a hundred requests a second or more.
    Auto,
}

/// `store.memory:`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryConfig {
    /// Most identities whose state is kept.
    pub max_identities: u32,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        MemoryConfig { max_identities: 1_000_000 }
    }
}

/// One of `identity:`; exactly one of its keys is given.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IdentityEntry {
    /// A signed token.
    pub jwt: Option<Jwt>,
    /// A key from a list.
    pub api_key: Option<ApiKey>,
    /// A verified client certificate.
    pub mtls: Option<Mtls>,
    /// The address.
    pub ip: Option<IpIdentity>,
}

/// `jwt:`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Jwt {
    /// The header field that bears the token.
    pub header: Option<String>,
    /// The cookie that bears it.
    pub cookie: Option<String>,
    /// The query parameter that bears it.
    pub query: Option<String>,
    /// The shared secret, at least 32 bytes.
    pub secret: Option<Redacted>,
    /// A file that holds it.
    pub secret_file: Option<String>,
    /// A file with the public key.
    pub public_key_file: Option<String>,
    /// Where the key set is fetched, at the start and every five minutes.
    pub jwks_url: Option<String>,
    /// A file with the key set.
    pub jwks_file: Option<String>,
    /// Algorithms that are accepted: HS, RS or PS with 256, 384 or 512, ES256, ES384, EdDSA.
    pub algorithms: Vec<String>,
    /// Claims that name the user, the first that is there; `/a/b` is nested.
    pub user_claim: Vec<String>,
    /// Claims that name the tier or the subscription.
    pub tier_claim: Vec<String>,
    /// The issuer that a token must name.
    pub issuer: Option<String>,
    /// The audience that a token must name.
    pub audience: Option<String>,
    /// How far clocks may differ, at most 1h.
    pub leeway: HumanDuration,
    /// Longest token that is looked at, 1 byte to 64KiB; a longer one is invalid.
    pub max_bytes: ByteSize,
    /// What an invalid token means.
    pub on_invalid: OnInvalid,
}

impl Default for Jwt {
    fn default() -> Self {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Jwt {
            header: Some("Authorization".to_owned()),
            cookie: None,
            query: None,
            secret: None,
            secret_file: None,
            public_key_file: None,
            jwks_url: None,
            jwks_file: None,
            algorithms: names(&["HS256"]),
            user_claim: names(&["user_id", "sub"]),
            tier_claim: names(&["tier", "subscription"]),
            issuer: None,
            audience: None,
            leeway: HumanDuration::secs(30),
            max_bytes: ByteSize(8 << 10),
            on_invalid: OnInvalid::Ip,
        }
    }
}

/// What an invalid credential means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnInvalid {
    /// The caller is known by address.
    Ip,
    /// 401.
    Reject,
}

/// `api_key:`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ApiKey {
    /// The header field that bears the key.
    pub header: String,
    /// A file with the hashes of keys, each with id and tier; required.
    pub keys_file: Option<String>,
    /// Whether the field is taken out of what the backend sees.
    pub strip: bool,
    /// What an unknown or expired key means.
    pub on_invalid: OnInvalid,
}

impl Default for ApiKey {
    fn default() -> Self {
        ApiKey {
            header: "X-API-Key".to_owned(),
            keys_file: None,
            strip: false,
            on_invalid: OnInvalid::Ip,
        }
    }
}

/// `mtls:` the user that a client's verified certificate names; see `server.listeners[].tls.client_ca`.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Mtls {
    /// The part of the subject that names the user.
    pub subject: Subject,
}

impl Default for Mtls {
    fn default() -> Self {
        Mtls { subject: Subject::Cn }
    }
}

/// A part of a certificate's subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// The common name.
    Cn,
}

/// `ip:`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IpIdentity {
    /// Bits of an IPv4 address that make an identity, 0 to 32.
    pub ipv4_prefix: u8,
    /// Bits of an IPv6 address that make an identity, 0 to 128.
    pub ipv6_prefix: u8,
}

impl Default for IpIdentity {
    fn default() -> Self {
        IpIdentity { ipv4_prefix: 32, ipv6_prefix: 64 }
    }
}

/// `tier_lookup:`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TierLookup {
    /// A database that is asked by SQL.
    pub postgres: Option<PostgresLookup>,
    /// A hash of a Redis.
    pub redis: Option<RedisLookup>,
    /// How long an answer holds, "none" among them.
    pub cache_ttl: HumanDuration,
    /// What holds without an answer.
    pub on_failure: LookupFailure,
}

impl Default for TierLookup {
    fn default() -> Self {
        TierLookup {
            postgres: None,
            redis: None,
            cache_ttl: HumanDuration::secs(60),
            on_failure: LookupFailure::Stale,
        }
    }
}

/// `tier_lookup.postgres:`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PostgresLookup {
    /// `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, with `?sslmode=` and `sslrootcert=` as libpq
    /// reads them; required, here or as `url_file`.
    pub url: Option<Redacted>,
    /// A file that holds the URL.
    pub url_file: Option<String>,
    /// The query: `$1` is the user, and the answer one column of text.
    pub query: String,
    /// Connections, 1 to 100.
    pub pool: u32,
    /// How long a request waits for the answer, at most 60s.
    pub timeout: HumanDuration,
}

impl Default for PostgresLookup {
    fn default() -> Self {
        PostgresLookup {
            url: None,
            url_file: None,
            query: "select subscription from users where id = $1".to_owned(),
            pool: 4,
            timeout: HumanDuration::millis(100),
        }
    }
}

/// `tier_lookup.redis:`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RedisLookup {
    /// The server; that of `store.redis` where it is not given.
    pub url: Option<Redacted>,
    /// A file that holds the URL.
    pub url_file: Option<String>,
    /// Certificates towards it, where it has a URL of its own.
    pub tls: RedisTls,
    /// The hash's key; `{id}` is the user.
    pub hash: String,
    /// Its field.
    pub field: String,
    /// How long a request waits for the answer, at most 60s.
    pub timeout: HumanDuration,
}

impl Default for RedisLookup {
    fn default() -> Self {
        RedisLookup {
            url: None,
            url_file: None,
            tls: RedisTls::default(),
            hash: "user:{id}".to_owned(),
            field: "subscription".to_owned(),
            timeout: HumanDuration::millis(100),
        }
    }
}

/// What holds while the database does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LookupFailure {
    /// The last answer, then the default tier.
    Stale,
}

/// `headers:`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Headers {
    /// `X-RateLimit-*`.
    pub x_ratelimit: bool,
    /// What `X-RateLimit-Reset` says.
    pub reset: Reset,
    /// `RateLimit` and `RateLimit-Policy`.
    pub ietf: Ietf,
    /// Names the fields in `Access-Control-Expose-Headers` of cross-origin answers.
    pub expose_cors: bool,
}

impl Default for Headers {
    fn default() -> Self {
        Headers { x_ratelimit: true, reset: Reset::Epoch, ietf: Ietf::Off, expose_cors: true }
    }
}

/// What `X-RateLimit-Reset` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Reset {
    /// The moment, in Unix seconds.
    Epoch,
    /// Seconds from now.
    Delta,
}

/// The IETF's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ietf {
    /// None.
    Off,
    /// As of draft 10.
    #[serde(rename = "draft-10")]
    Draft10,
}

/// `shedding:`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Shedding {
    /// Whether and how requests are refused for load.
    pub mode: SheddingMode,
    /// Most requests at once.
    pub max_in_flight: u32,
}

impl Default for Shedding {
    fn default() -> Self {
        Shedding { mode: SheddingMode::Off, max_in_flight: 1024 }
    }
}

/// `shedding.mode:`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SheddingMode {
    /// Never.
    Off,
    /// Above `max_in_flight`.
    Static,
    /// Above what the backend is found to bear.
    Adaptive,
}

/// `slow_thresholds:`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SlowThresholds {
    /// Of the backend, to the head of its answer, where no rule says otherwise.
    pub upstream: HumanDuration,
    /// Of Redis.
    pub redis: HumanDuration,
    /// Of the database of subscriptions.
    pub database: HumanDuration,
    /// Of fetching a key set.
    pub jwks: HumanDuration,
}

impl Default for SlowThresholds {
    fn default() -> Self {
        SlowThresholds {
            upstream: HumanDuration::secs(1),
            redis: HumanDuration::millis(10),
            database: HumanDuration::millis(100),
            jwks: HumanDuration::secs(1),
        }
    }
}

/// `self_service:`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SelfService {
    /// Where a caller reads their own tier and limits, which costs no quota; null: nowhere.
    pub path: Option<String>,
}

/// `usage:`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Usage {
    /// Where records go.
    pub sink: UsageSink,
    /// How often they are written; at most so much is lost with the machine's power.
    pub flush: HumanDuration,
    /// The directory of the journal, whatever the sink, and of the records of `sink: file`.
    pub dir: String,
    /// How long records are kept; those of single minutes for two days.
    pub retention: HumanDuration,
    /// The URL of the database of `sink: postgres`.
    pub postgres: Option<Redacted>,
    /// A file that holds its URL.
    pub postgres_file: Option<String>,
}

impl Default for Usage {
    fn default() -> Self {
        Usage {
            sink: UsageSink::Off,
            flush: HumanDuration::secs(1),
            dir: "/var/lib/tollgate/usage".to_owned(),
            retention: HumanDuration::secs(90 * 86_400),
            postgres: None,
            postgres_file: None,
        }
    }
}

/// `usage.sink:`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UsageSink {
    /// Nowhere.
    Off,
    /// Files.
    File,
    /// Hashes in the Redis of `store.redis`.
    Redis,
    /// Tables of a PostgreSQL.
    Postgres,
}

/// `log:`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Least severity that is written.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
    /// Where the access log goes, a line for each request; SIGHUP opens a file anew.
    pub access: AccessLog,
    /// Whether the access log shows query strings, less what bears tokens.
    pub query: bool,
}

impl Default for Log {
    fn default() -> Self {
        Log { level: LogLevel::Info, format: LogFormat::Json, access: AccessLog::Off, query: false }
    }
}

/// `log.level:`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What is broken.
    Error,
    /// What is odd.
    Warn,
    /// What an operator wants to know.
    Info,
    /// What a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

/// `log.format:`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One object a line.
    Json,
    /// For eyes.
    Human,
}

/// `tracing:`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tracing {
    /// Where spans go, by OTLP over HTTP, as `http://HOST:4318`; null: nowhere.
    pub otlp_endpoint: Option<String>,
    /// The part of the traces that begin here, 0 to 1; a caller's own decision is followed.
    pub sample: f64,
}

impl Default for Tracing {
    fn default() -> Self {
        Tracing { otlp_endpoint: None, sample: 0.01 }
    }
}
