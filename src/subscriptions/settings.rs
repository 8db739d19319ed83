//! Where subscriptions are looked up, and how.

use std::fmt;
use std::time::Duration;

use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::redis::target::RedisTarget;

use super::tls::{ServerCheck, connector};

/// For the connection to one address; the next one is tried then.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// A peer that went away without a word is noticed after so long and a few tries.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);

/// Where subscriptions are looked up, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Who is asked.
    pub source: SourceSettings,
    /// Longest time that a request waits for an answer; above zero.
    pub timeout: Duration,
    /// How long an answer holds; above zero. A tenth less for some of them, so that those that
    /// were asked together are not asked together again.
    pub cache_ttl: Duration,
    /// Time of a look-up above which it counts as slow.
    pub slow: Duration,
}

/// Who is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceSettings {
    /// A PostgreSQL.
    Postgres(PostgresSettings),
    /// A Redis.
    Redis(RedisSettings),
}

/// A PostgreSQL, and what it is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct PostgresSettings {
    /// Where it is, and who to be there.
    pub target: PostgresTarget,
    /// The query; `$1` is the user.
    pub query: Box<str>,
    /// Most connections; at least 1.
    pub pool: usize,
}

/// A PostgreSQL by its URL. Written out, user and password are left out.
#[derive(Clone, PartialEq)]
pub struct PostgresTarget {
    config: Box<tokio_postgres::Config>,
    check: ServerCheck,
}

/// Whether TLS is used: the part of libpq's `sslmode` that is no check of the certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsUse {
    /// Never.
    Never,
    /// Where the server can.
    Prefer,
    /// Always.
    Require,
}

impl PostgresTarget {
    /// Reads a URL of which `sslmode` and `sslrootcert` have been taken out.
    ///
    /// # Errors
    /// What is wrong; never a value out of the URL.
    pub fn parse(url: &str, tls: TlsUse, check: ServerCheck) -> Result<Self, String> {
        let mut config: tokio_postgres::Config =
            url.parse().map_err(|error: tokio_postgres::Error| {
                // The cause alone: above it stands that it is no connection string, which is known.
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                cause.unwrap_or_else(|| error.to_string())
            })?;
        let hosts = config.get_hosts();
        if hosts.is_empty() && config.get_hostaddrs().is_empty() {
            return Err("no host".to_owned());
        }
        // As libpq has it: there is no TLS over a socket of this machine.
        let is_local = !hosts.is_empty() && hosts.iter().all(|it| matches!(it, Host::Unix(_)));
        config.ssl_mode(match tls {
            _ if is_local => SslMode::Disable,
            TlsUse::Never => SslMode::Disable,
            TlsUse::Prefer => SslMode::Prefer,
            TlsUse::Require => SslMode::Require,
        });
        if config.get_application_name().is_none() {
            config.application_name("tollgate");
        }
        Ok(PostgresTarget { config: Box::new(config), check })
    }

    /// What a connection is made with.
    ///
    /// # Errors
    /// There are no authorities to check the server's certificate against.
    pub fn connecting(&self) -> Result<(tokio_postgres::Config, MakeRustlsConnect), String> {
        let unused = ServerCheck::None;
        let tls = connector(if self.uses_tls() { &self.check } else { &unused })?;
        let mut config = (*self.config).clone();
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_MAX);
        }
        if config.get_keepalives_idle() > KEEPALIVE_IDLE {
            config.keepalives_idle(KEEPALIVE_IDLE);
        }
        Ok((config, tls))
    }

    fn uses_tls(&self) -> bool {
        self.config.get_ssl_mode() != SslMode::Disable
    }
}

impl fmt::Display for PostgresTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres://")?;
        for (index, host) in self.config.get_hosts().iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            match host {
                Host::Tcp(host) if host.contains(':') => write!(f, "{separator}[{host}]")?,
                Host::Tcp(host) => write!(f, "{separator}{host}")?,
                Host::Unix(path) => write!(f, "{separator}{}", path.display())?,
            }
            let ports = self.config.get_ports();
            if let Some(port) = ports.get(index).or_else(|| ports.first()) {
                write!(f, ":{port}")?;
            }
        }
        write!(f, "/{}", self.config.get_dbname().unwrap_or_default())
    }
}

impl fmt::Debug for PostgresTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// A Redis, and what it is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct RedisSettings {
    /// Where it is, and who to be there.
    pub target: RedisTarget,
    /// The key of a user's hash.
    pub hash: HashKey,
    /// The hash's field.
    pub field: Box<str>,
}

/// The key of a user's hash: a text with a place for the user in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashKey {
    before: Box<str>,
    after: Box<str>,
}

impl HashKey {
    /// What stands for the user.
    pub const PLACE: &str = "{id}";

    /// Reads a key with one `{id}` in it; `None` where there is none, or a second one.
    pub fn parse(text: &str) -> Option<Self> {
        let (before, after) = text.split_once(Self::PLACE)?;
        let is_single = !after.contains(Self::PLACE);
        is_single.then(|| HashKey { before: before.into(), after: after.into() })
    }

    /// The key of this user's hash.
    pub fn of(&self, user: &str) -> String {
        [&*self.before, user, &*self.after].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_written_out() {
        let target = PostgresTarget::parse(
            "postgres://me:s3cret@db:5433,[::1]/plans",
            TlsUse::Prefer,
            ServerCheck::None,
        );
        let target = target.unwrap();
        assert_eq!(target.to_string(), "postgres://db:5433,[::1]:5432/plans");
        assert!(!format!("{target:?}").contains("s3cret"));
    }

    #[test]
    fn errors_of_a_url_hold_no_value_of_it() {
        let wrong = |url| PostgresTarget::parse(url, TlsUse::Never, ServerCheck::None).unwrap_err();
        assert_eq!(wrong("postgres://h?port=hunter2"), "invalid value for option `port`");
        assert_eq!(wrong("postgres://h?colour=hunter2"), "unknown option `colour`");
        assert_eq!(wrong("postgres:///db"), "no host");
    }

    #[test]
    fn tls_is_for_the_network() {
        let uses = |url| {
            PostgresTarget::parse(url, TlsUse::Require, ServerCheck::None).unwrap().uses_tls()
        };
        assert!(uses("postgres://db/plans"));
        assert!(!uses("postgres://%2Frun%2Fpostgresql/plans"));
    }

    #[test]
    fn a_key_has_one_place_for_the_user() {
        assert_eq!(HashKey::parse("user:{id}:plan").unwrap().of("a{id}"), "user:a{id}:plan");
        assert!(HashKey::parse("user").is_none() && HashKey::parse("{id}{id}").is_none());
    }
}
