//! Where Redis is and how it is asked.

use std::fmt;
use std::time::Duration;

use fred::clients::Client;
use fred::types::config::{
    Config, ConnectionConfig, PerformanceConfig, ReconnectPolicy, ServerConfig, TcpConfig,
};

use crate::policy::compiled::FailureMode;

use super::names::KeyNames;

/// For the connection and each command of its handshake.
pub const CONNECT_MAX: Duration = Duration::from_secs(1);
const RECONNECT_MIN_MS: u32 = 10;
const RECONNECT_MAX_MS: u32 = 1_000;
const RECONNECT_JITTER_MS: u32 = 50;

/// Settings of the store in Redis.
#[derive(Clone, Debug)]
pub struct RedisSettings {
    /// Where it is.
    pub target: RedisTarget,
    /// Budget of one check; what is not answered by then is decided without Redis.
    pub timeout: Duration,
    /// What decides then, where neither endpoint nor tier say.
    pub on_failure: FailureMode,
    /// How keys are named.
    pub names: KeyNames,
    /// As how many replicas this one is taken for one of at least; 0: as many as there are.
    pub expected_replicas: u32,
}

impl RedisSettings {
    /// The defaults for this server.
    pub fn new(target: RedisTarget) -> Self {
        RedisSettings {
            target,
            timeout: Duration::from_millis(20),
            on_failure: FailureMode::Local,
            names: KeyNames::new("tg"),
            expected_replicas: 0,
        }
    }
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// A server, and who to be there. Written out, the password is left out.
#[derive(Clone)]
pub struct RedisTarget {
    config: Config,
    shown: Box<str>,
}

impl RedisTarget {
    /// The server at `address`, its database of this number.
    pub fn new(
        address: &RedisAddress,
        username: Option<&str>,
        password: Option<&str>,
        database: u8,
    ) -> Self {
        let (server, shown) = match address {
            RedisAddress::Tcp { host, port } => {
                let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                let shown = format!("redis://{bracketed}:{port}/{database}");
                (ServerConfig::new_centralized(host.clone(), *port), shown)
            }
            RedisAddress::Unix { path } => {
                let shown = format!("redis+unix://{path}?db={database}");
                (ServerConfig::new_unix_socket(path), shown)
            }
        };
        let config = Config {
            server,
            username: username.map(str::to_owned),
            password: password.map(str::to_owned),
            database: (database > 0).then_some(database),
            ..Config::default()
        };
        RedisTarget { config, shown: shown.into() }
    }

    /// A client of the server, not connected yet: tries for ever, sends no command twice, gives up
    /// on an answer after `answer_max`, and holds so many commands.
    pub fn client(&self, answer_max: Duration, commands_max: usize) -> Client {
        // Not fast to fail: a Redis that is not there at start is the same as one that went away.
        let config = Config { fail_fast: false, ..self.config.clone() };
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

impl PartialEq for RedisTarget {
    fn eq(&self, other: &Self) -> bool {
        self.config == other.config
    }
}

impl fmt::Display for RedisTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for RedisTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.shown, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_written_out() {
        let address = RedisAddress::Tcp { host: "::1".into(), port: 6379 };
        let target = RedisTarget::new(&address, Some("user"), Some("s3cret"), 2);
        assert_eq!(target.to_string(), "redis://[::1]:6379/2");
        let settings = format!("{:?}", RedisSettings::new(target));
        assert!(!settings.contains("s3cret"), "{settings}");
    }
}
