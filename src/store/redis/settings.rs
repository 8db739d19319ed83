//! Where Redis is and how it is asked.

use std::fmt;
use std::time::Duration;

use fred::types::config::Config;

use crate::policy::compiled::FailureMode;

/// Settings of the store in Redis.
#[derive(Clone, Debug)]
pub struct RedisSettings {
    /// Where it is.
    pub url: RedisUrl,
    /// Budget of one check; what is not answered by then is decided without Redis.
    pub timeout: Duration,
    /// What decides then, where neither endpoint nor tier say.
    pub on_failure: FailureMode,
    /// First part of every key, and part of the hash in it.
    pub key_prefix: Box<str>,
}

impl RedisSettings {
    /// The defaults for a server at `url`.
    pub fn new(url: RedisUrl) -> Self {
        RedisSettings {
            url,
            timeout: Duration::from_millis(20),
            on_failure: FailureMode::Local,
            key_prefix: "tg".into(),
        }
    }
}

/// A server's address with its credentials. Written out, the password is `***`.
#[derive(Clone)]
pub struct RedisUrl {
    config: Config,
    shown: Box<str>,
}

/// An address that cannot be used. Does not repeat it, since a password may be in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedisUrlError {
    /// The scheme is none that is spoken.
    #[error("scheme {0:?}, expected redis:// or redis+unix://")]
    Scheme(Box<str>),
    /// Not of the form that its scheme has.
    #[error("expected redis://[user:password@]host[:port][/database] or redis+unix:///path")]
    Form,
}

impl RedisUrl {
    /// Reads `redis://[user:password@]host[:port][/database]` or `redis+unix:///path`.
    ///
    /// # Errors
    /// Another scheme, or another form.
    pub fn parse(url: &str) -> Result<Self, RedisUrlError> {
        let (scheme, rest) = url.split_once("://").ok_or(RedisUrlError::Form)?;
        let config = match scheme {
            "redis" => Config::from_url_centralized(url),
            "redis+unix" if rest.contains('/') => Config::from_url_unix(url),
            "redis+unix" => return Err(RedisUrlError::Form),
            other => return Err(RedisUrlError::Scheme(other.into())),
        };
        let config = config.map_err(|_| RedisUrlError::Form)?;
        // An `@` in a password is percent-encoded, or the parser would not have read a host.
        let shown = match rest.rsplit_once('@') {
            None => url.into(),
            Some((credentials, host)) => {
                let user = credentials.split(':').next().unwrap_or_default();
                let secret = if credentials.contains(':') { ":***" } else { "" };
                [scheme, "://", user, secret, "@", host].concat().into()
            }
        };
        Ok(RedisUrl { config, shown })
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.shown, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_written_out() {
        for (url, shown) in [
            ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
            ("redis://user:s3cret@redis.example:6379/2", "redis://user:***@redis.example:6379/2"),
            ("redis://:s3cret@localhost", "redis://:***@localhost"),
            ("redis+unix:///run/redis.sock", "redis+unix:///run/redis.sock"),
            ("redis://user:s3%40cr%2Fet@localhost", "redis://user:***@localhost"),
        ] {
            let parsed = RedisUrl::parse(url).unwrap();
            assert_eq!(parsed.to_string(), shown);
            let settings = format!("{:?}", RedisSettings::new(parsed));
            assert!(!settings.contains("s3"), "{settings}");
        }
    }

    #[test]
    fn an_address_that_cannot_be_used_is_refused_without_repeating_it() {
        let parse = |url| RedisUrl::parse(url).unwrap_err();
        assert_eq!(parse("rediss://host"), RedisUrlError::Scheme("rediss".into()));
        assert_eq!(parse("localhost:6379"), RedisUrlError::Form);
        assert_eq!(parse("redis://"), RedisUrlError::Form);
        assert_eq!(parse("redis://host/database"), RedisUrlError::Form);
        assert_eq!(parse("redis://u:s3cret@host:port"), RedisUrlError::Form);
    }
}
