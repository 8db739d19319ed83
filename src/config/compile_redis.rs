//! Where a Redis is and whom its TLS believes: of the store, and of the database of subscriptions.

use crate::config_path;
use crate::redis::target::Trust;

use super::compile::ReadSecret;
use super::compile_tls::{identity, roots};
use super::report::{Path, Problem, Report};
use super::schema::{REDIS_DEFAULT, RedisConfig, RedisTls};
use super::url::{self, RedisUrl};

/// Compiles `store.redis.url`, or the file that holds it, with `store.redis.tls`.
pub fn redis_url(
    redis: &RedisConfig,
    read_secret: ReadSecret<'_>,
    report: &mut Report<'_>,
) -> Option<RedisUrl> {
    let at = |key: &str| config_path!["store", "redis", key];
    let (path, text) = match (&redis.url, &redis.url_file) {
        (Some(_), Some(_)) => {
            let problem = Problem::new("given beside store.redis.url").expected("one of the two");
            report.key(at("url_file"), problem);
            return None;
        }
        (Some(url), None) => (at("url"), url.expose().to_owned()),
        (None, Some(file)) => match read_secret(file) {
            Ok(text) => (at("url_file"), text),
            Err(reason) => {
                report.value(at("url_file"), Problem::new(format!("{file}: {reason}")));
                return None;
            }
        },
        (None, None) => (at("url"), REDIS_DEFAULT.to_owned()),
    };
    let at_tls = |key: &str| config_path!["store", "redis", "tls", key];
    redis_url_of(&text, path, &redis.tls, "store.redis.tls", &at_tls, report)
}

/// Reads a Redis's URL; what is wrong with it is reported at `path`. `tls` are the certificates, a
/// key that is called `whose`; all of them, so that a wrong file is found before it is needed.
pub fn redis_url_of(
    text: &str,
    path: Path,
    tls: &RedisTls,
    whose: &str,
    at: &dyn Fn(&str) -> Path,
    report: &mut Report<'_>,
) -> Option<RedisUrl> {
    let url = url::redis_without_trust(text);
    let roots = roots(tls.ca.as_deref(), at("ca"), report);
    let (cert, key) = (tls.client_cert.as_deref(), tls.client_key.as_deref());
    let identity = identity(cert, key, whose, at, report);
    let mut url = url.map_err(|problem| report.value(path.clone(), problem)).ok()?;
    if !url.is_tls {
        if let Some(key) = first_key(tls) {
            report.warn(at(key), Problem::new("of no use: the URL's scheme is without TLS"));
        }
        return Some(url);
    }
    match Trust::new(roots?, identity) {
        Ok(trust) => {
            url.trust = Some(trust);
            Some(url)
        }
        Err(reason) => {
            report
                .value(path, Problem::new(reason).expected(format!("{whose}.ca, a file of them")));
            None
        }
    }
}

fn first_key(tls: &RedisTls) -> Option<&'static str> {
    let RedisTls { ca, client_cert, client_key } = tls;
    let keys = [("ca", ca), ("client_cert", client_cert), ("client_key", client_key)];
    keys.into_iter().find_map(|(key, value)| value.is_some().then_some(key))
}
