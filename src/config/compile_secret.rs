//! The secret that identities are hashed with in Redis, and the token of the admin API.

use crate::config_path;

use super::compile::ReadSecret;
use super::report::{Problem, Report};
use super::schema::Config;
use super::value::Redacted;

/// A shorter secret could be found by trying: as many bits as are kept of the hash.
const SECRET_BYTES_MIN: usize = 16;
const HINT: &str = "`openssl rand -hex 32` makes one";

/// The secret of `identity_hash_secret` or its file, if there is one.
pub fn identity_secret(
    config: &Config,
    read_secret: ReadSecret<'_>,
    report: &mut Report<'_>,
) -> Option<Redacted> {
    let in_file = config_path!["identity_hash_secret_file"];
    let (path, secret) = match (&config.identity_hash_secret, &config.identity_hash_secret_file) {
        (None, None) => return None,
        (Some(_), Some(_)) => {
            let problem = Problem::new("given beside identity_hash_secret");
            report.key(in_file, problem.expected("one of the two"));
            return None;
        }
        (Some(secret), None) => (config_path!["identity_hash_secret"], secret.clone()),
        (None, Some(file)) => match read_secret(file) {
            Ok(secret) => (in_file, Redacted::new(secret)),
            Err(reason) => {
                report.value(in_file, Problem::new(format!("{file}: {reason}")));
                return None;
            }
        },
    };
    let length = secret.expose().len();
    if length < SECRET_BYTES_MIN {
        let found = if length == 0 { "empty".to_owned() } else { format!("{length} bytes") };
        let expected = format!("at least {SECRET_BYTES_MIN} bytes");
        report.value(path, Problem::new(found).expected(expected).hint(HINT));
        return None;
    }
    if config.store.redis.is_none() {
        report.warn(path, Problem::new("without effect: there is no store.redis"));
    }
    Some(secret)
}

/// The token of `admin.token_file`, white space around it cut, if there is such a file.
pub fn admin_token(
    file: Option<&str>,
    read_secret: ReadSecret<'_>,
    report: &mut Report<'_>,
) -> Option<Redacted> {
    let file = file?;
    let path = config_path!["admin", "token_file"];
    let problem = match read_secret(file) {
        Err(reason) => Problem::new(format!("{file}: {reason}")),
        Ok(text) => {
            let token = text.trim();
            let is_sendable = token.bytes().all(|byte| byte.is_ascii_graphic());
            let length = token.len();
            if length > 0 && is_sendable {
                if length < SECRET_BYTES_MIN {
                    let found = format!("{file}: {length} bytes can be found by trying");
                    let expected = format!("at least {SECRET_BYTES_MIN} bytes");
                    report.warn(path, Problem::new(found).expected(expected).hint(HINT));
                }
                return Some(Redacted::new(token));
            }
            // A field of a request cannot carry anything else.
            let found = if length == 0 { "empty" } else { "not one word of visible ASCII" };
            Problem::new(format!("{file}: {found}")).expected("a token").hint(HINT)
        }
    };
    report.value(path, problem);
    None
}
