//! Where a Redis is, who to be there, and how it is asked.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;
use fred::types::config::{
    Config, ConnectionConfig, PerformanceConfig, ReconnectPolicy, ServerConfig, TcpConfig,
    TlsConnector,
};
use rustls::ClientConfig;

use crate::tls::client::{ClientIdentity, client_config};
use crate::tls::roots::Roots;

/// For the connection and each command of its handshake.
pub const CONNECT_MAX: Duration = Duration::from_secs(1);
const RECONNECT_MIN_MS: u32 = 10;
/// Three good probes follow, and all of it is to take less than two seconds.
const RECONNECT_MAX_MS: u32 = 500;
const RECONNECT_JITTER_MS: u32 = 50;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RedisAddress {
    /// A host, without brackets, and a port.
    Tcp {
        /// A name or an address.
        host: String,
        /// Its port.
        port: u16,
    },
    /// A socket of this machine.
    Unix {
        /// Its absolute path.
        path: String,
    },
}

impl fmt::Display for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RedisAddress::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            RedisAddress::Tcp { host, port } => write!(f, "{host}:{port}"),
            RedisAddress::Unix { path } => f.write_str(path),
        }
    }
}

/// Of how many servers it is made, and how they are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// One server.
    Single(RedisAddress),
    /// One at a time, which sentinels name.
    Sentinel {
        /// The sentinels; at least one.
        sentinels: Vec<RedisAddress>,
        /// What they call it.
        service: String,
        /// Who to be there.
        account: Account,
    },
    /// Several, each of which keeps a part of the keys.
    Cluster {
        /// Those that are asked for the others; at least one.
        seeds: Vec<RedisAddress>,
    },
}

/// Who to be. `Debug` shows nothing of it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// The user of an ACL.
    pub username: Option<String>,
    /// The password.
    pub password: Option<String>,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Whom TLS believes, and what it shows.
#[derive(Clone)]
pub struct Trust {
    roots: Roots,
    identity: Option<ClientIdentity>,
    config: Arc<ClientConfig>,
}

impl Trust {
    /// These authorities, and this certificate where a server asks for one.
    ///
    /// # Errors
    /// There are no authorities, or the key is not the certificate's.
    pub fn new(roots: Roots, identity: Option<ClientIdentity>) -> Result<Self, String> {
        let config = Arc::new(client_config(&roots, identity.as_ref())?);
        Ok(Trust { roots, identity, config })
    }
}

impl PartialEq for Trust {
    fn eq(&self, other: &Self) -> bool {
        (&self.roots, &self.identity) == (&other.roots, &other.identity)
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("identity", &self.identity.is_some()).finish_non_exhaustive()
    }
}

/// A Redis, and who to be there. Written out, users and passwords are left out.
#[derive(Clone, PartialEq)]
pub struct RedisTarget {
    form: Form,
    account: Account,
    database: u8,
    trust: Option<Trust>,
}

impl RedisTarget {
    /// The Redis of this form, its database of this number. With `trust`, all connections use TLS,
    /// those to sentinels too.
    pub fn new(form: Form, account: Account, database: u8, trust: Option<Trust>) -> Self {
        RedisTarget { form, account, database, trust }
    }

    /// Its form.
    pub fn form(&self) -> &Form {
        &self.form
    }

    /// A client of one of its servers, not connected yet: tries for ever, sends no command twice,
    /// gives up on an answer after `answer_max`, and holds so many commands.
    pub fn client(&self, at: &RedisAddress, answer_max: Duration, commands_max: usize) -> Client {
        self.client_as(at, &self.account, self.database, answer_max, commands_max)
    }

    /// The same of a sentinel.
    pub fn sentinel_client(&self, at: &RedisAddress, answer_max: Duration) -> Client {
        let none = Account::default();
        let account = match &self.form {
            Form::Sentinel { account, .. } => account,
            Form::Single(_) | Form::Cluster { .. } => &none,
        };
        self.client_as(at, account, 0, answer_max, SENTINEL_COMMANDS_MAX)
    }

    fn client_as(
        &self,
        at: &RedisAddress,
        account: &Account,
        database: u8,
        answer_max: Duration,
        commands_max: usize,
    ) -> Client {
        let server = match at {
            RedisAddress::Tcp { host, port } => ServerConfig::new_centralized(host.as_str(), *port),
            RedisAddress::Unix { path } => ServerConfig::new_unix_socket(path),
        };
        let connector = |trust: &Trust| TlsConnector::Rustls(Arc::clone(&trust.config).into());
        let config = Config {
            server,
            username: account.username.clone(),
            password: account.password.clone(),
            database: (database > 0).then_some(database),
            tls: self.trust.as_ref().map(|trust| connector(trust).into()),
            // A Redis that is not there at start is the same as one that went away.
            fail_fast: false,
            ..Config::default()
        };
        let performance = PerformanceConfig {
            // The only timeout that EVALSHA heeds.
            default_command_timeout: answer_max,
            ..PerformanceConfig::default()
        };
        let connection = ConnectionConfig {
            connection_timeout: CONNECT_MAX,
            internal_command_timeout: CONNECT_MAX,
            // A second attempt would do again what was done and not heard of.
            max_command_attempts: 1,
            max_command_buffer_len: commands_max,
            reconnect_on_auth_error: true,
            tcp: TcpConfig { nodelay: Some(true), ..TcpConfig::default() },
            ..ConnectionConfig::default()
        };
        let mut policy = ReconnectPolicy::new_exponential(0, RECONNECT_MIN_MS, RECONNECT_MAX_MS, 2);
        policy.set_jitter(RECONNECT_JITTER_MS);
        Client::new(config, Some(performance), Some(connection), Some(policy))
    }
}

/// Commands that a sentinel's client may hold; there is one at a time.
const SENTINEL_COMMANDS_MAX: usize = 16;

impl fmt::Display for RedisTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.trust.is_some() { "rediss" } else { "redis" };
        let list = |f: &mut fmt::Formatter<'_>, addresses: &[RedisAddress]| {
            for (index, address) in addresses.iter().enumerate() {
                write!(f, "{}{address}", if index == 0 { "" } else { "," })?;
            }
            Ok(())
        };
        let database = self.database;
        match &self.form {
            Form::Single(RedisAddress::Unix { path }) => {
                write!(f, "redis+unix://{path}?db={database}")
            }
            Form::Single(address) => write!(f, "{scheme}://{address}/{database}"),
            Form::Sentinel { sentinels, service, .. } => {
                write!(f, "{scheme}-sentinel://")?;
                list(f, sentinels)?;
                write!(f, "/{service}")
            }
            Form::Cluster { seeds } => {
                write!(f, "{scheme}-cluster://")?;
                list(f, seeds)
            }
        }
    }
}

impl fmt::Debug for RedisTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_written_out() {
        let account = || Account { username: Some("me".into()), password: Some("s3cret".into()) };
        let address = |host: &str| RedisAddress::Tcp { host: host.into(), port: 6379 };
        let shown = |form| {
            let target = RedisTarget::new(form, account(), 2, None);
            assert_eq!(format!("{target:?}"), format!("\"{target}\""));
            target.to_string()
        };
        assert_eq!(shown(Form::Single(address("::1"))), "redis://[::1]:6379/2");
        let path = RedisAddress::Unix { path: "/run/redis".into() };
        assert_eq!(shown(Form::Single(path)), "redis+unix:///run/redis?db=2");
        let seeds = vec![address("a"), address("b")];
        assert_eq!(shown(Form::Cluster { seeds: seeds.clone() }), "redis-cluster://a:6379,b:6379");
        let service = "main".to_owned();
        let form = Form::Sentinel { sentinels: seeds, service, account: account() };
        assert!(!format!("{form:?}").contains("s3cret"));
        assert_eq!(shown(form), "redis-sentinel://a:6379,b:6379/main");
    }
}
