//! What tokens are verified with: `jwt`'s algorithms, secrets, keys and where they come from.
//!
//! Collects every error, not the first. Key files are read here, so that what is wrong with them is
//! said at the start; a reload comes back for [`key_set`].

use http::Uri;

use crate::config_path;
use crate::identity::algorithm::Algorithm;
use crate::identity::keys::KeySet;

use super::load::{read_key_text, secret_in};
use super::reload::{Digest, digest};
use super::report::{Path, Problem, Report, Step, one_of};
use super::schema::Jwt;
use super::url::quoted;
use super::value::Redacted;

/// The keys that say what tokens are verified with.
const KEY_KEYS: [&str; 5] = ["secret", "secret_file", "public_key_file", "jwks_file", "jwks_url"];
/// Octets of the shortest shared secret: as many as HS256 makes (RFC 7518 §3.2).
const SECRET_BYTES_MIN: usize = 32;

/// Where keys come from.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyOrigin {
    /// The file itself.
    Secret(Redacted),
    /// Another file, which held what makes good keys.
    File(KeyFile),
    /// A key set at a URL.
    Url(Uri),
}

/// A file with something to verify tokens with.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyFile {
    /// Its name.
    pub path: String,
    /// What it holds.
    pub kind: KeyFileKind,
    /// What it held when it was read.
    pub content: Redacted,
    /// Of its bytes.
    pub digest: Digest,
}

/// What a file of keys holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFileKind {
    /// A shared secret.
    Secret,
    /// PEM, a JWK or a set of them.
    Keys,
}

/// `None`: they are wrong, so that nothing more can be said of the keys.
pub fn algorithms(
    index: usize,
    names: &[String],
    report: &mut Report<'_>,
) -> Option<Vec<Algorithm>> {
    let path = config_path!["identity", index, "jwt", "algorithms"];
    if names.is_empty() {
        let problem = Problem::new("an empty list").expected("at least one algorithm");
        report.value(path, problem);
        return None;
    }
    let known = || Algorithm::ALL.iter().map(|it| it.as_str());
    let mut algorithms = Vec::with_capacity(names.len());
    for (place, name) in names.iter().enumerate() {
        match Algorithm::parse(name) {
            Some(algorithm) if algorithms.contains(&algorithm) => {}
            Some(algorithm) => algorithms.push(algorithm),
            None => {
                let problem = Problem::new(quoted(name)).expected_one_of(name, known());
                let is_none = name.eq_ignore_ascii_case("none");
                let why = "a token without a signature proves nothing";
                let problem = if is_none { problem.hint(why) } else { problem };
                report.value([path.as_slice(), &[Step::Index(place)]].concat(), problem);
            }
        }
    }
    (algorithms.len() == names.len()).then_some(algorithms)
}

/// Where an entry's keys come from; `None` where that is wrong, or cannot be said for what else is.
pub fn keys(
    index: usize,
    jwt: &Jwt,
    algorithms: Option<&[Algorithm]>,
    report: &mut Report<'_>,
) -> Option<KeyOrigin> {
    let at = |key: &str| config_path!["identity", index, "jwt", key];
    let given: Vec<&str> = [
        ("secret", jwt.secret.is_some()),
        ("secret_file", jwt.secret_file.is_some()),
        ("public_key_file", jwt.public_key_file.is_some()),
        ("jwks_file", jwt.jwks_file.is_some()),
        ("jwks_url", jwt.jwks_url.is_some()),
    ]
    .into_iter()
    .filter_map(|(key, is_given)| is_given.then_some(key))
    .collect();
    let expected = one_of(KEY_KEYS);
    let key = match given[..] {
        [key] => key,
        // What was given is wrong in itself, and was reported.
        [] if KEY_KEYS.iter().any(|key| report.is_silent_below(&at(key))) => return None,
        [] => {
            let problem = Problem::new("nothing to verify tokens with").expected(expected);
            report.key(config_path!["identity", index, "jwt"], problem);
            return None;
        }
        [first, second, ..] => {
            let problem = Problem::new(format!("given beside {first}")).expected(expected);
            report.key(at(second), problem);
            return None;
        }
    };
    let Some(algorithms) = algorithms else {
        // Whatever they should be, an empty or a short secret is none.
        let secret = jwt.secret.as_ref().map(|secret| checked_secret(secret.expose(), &[]));
        secret.and_then(Result::err).into_iter().for_each(|it| report.value(at(key), it));
        return None;
    };
    let is_secret = key.starts_with("secret");
    if is_misplaced(index, key, algorithms, is_secret, report) {
        return None;
    }
    let path = at(key);
    let (file, kind) = match (&jwt.secret, &jwt.secret_file, &jwt.jwks_url) {
        (Some(secret), _, _) => {
            let good = checked_secret(secret.expose(), algorithms);
            return match good {
                Ok(warning) => {
                    warning.into_iter().for_each(|it| report.warn(path.clone(), it));
                    Some(KeyOrigin::Secret(secret.clone()))
                }
                Err(problem) => {
                    report.value(path, problem);
                    None
                }
            };
        }
        (_, _, Some(url)) => return key_url(path, url, report).map(KeyOrigin::Url),
        (_, Some(file), _) => (file, KeyFileKind::Secret),
        _ => (jwt.public_key_file.as_ref().or(jwt.jwks_file.as_ref())?, KeyFileKind::Keys),
    };
    let text = read_key_text(file).map_err(Problem::new);
    match text.and_then(|text| key_set(kind, &text, algorithms).map(|_| text)) {
        Ok(text) => {
            let digest = digest(text.as_bytes());
            let content = Redacted::new(text);
            Some(KeyOrigin::File(KeyFile { path: file.clone(), kind, content, digest }))
        }
        Err(Problem { found, expected, suggestion }) => {
            let found = format!("{file}: {found}");
            report.value(path, Problem { found, expected, suggestion });
            None
        }
    }
}

/// The keys that a file's content makes.
///
/// # Errors
/// It makes none that can be used, and why; nothing of it is repeated.
pub fn key_set(
    kind: KeyFileKind,
    content: &str,
    algorithms: &[Algorithm],
) -> Result<KeySet, Problem> {
    match kind {
        KeyFileKind::Secret => {
            let secret = secret_in(content);
            checked_secret(secret, algorithms)?;
            Ok(KeySet::of_secret(secret.as_bytes(), algorithms))
        }
        KeyFileKind::Keys => KeySet::parse(content.as_bytes(), algorithms)
            .map_err(|error| Problem::new(error.to_string())),
    }
}

/// A secret is for HMAC alone, and a published key never: who knows it could sign.
fn is_misplaced(
    index: usize,
    key: &str,
    algorithms: &[Algorithm],
    is_secret: bool,
    report: &mut Report<'_>,
) -> bool {
    let may_be_either = key == "jwks_file";
    let fits = |it: &Algorithm| may_be_either || it.is_symmetric() == is_secret;
    let Some(place) = algorithms.iter().position(|it| !fits(it)) else { return false };
    let path = config_path!["identity", index, "jwt", "algorithms"];
    let name = algorithms.get(place).map_or("", |it| it.as_str());
    let (expected, hint) = if is_secret {
        ("HS256, HS384 or HS512", "a shared secret verifies these alone".to_owned())
    } else {
        let hint =
            format!("name those that your tokens are signed with, such as [RS256], for {key}");
        ("RS256, PS256, ES256, EdDSA and their kin", hint)
    };
    let problem = Problem::new(format!("{name} with {key}")).expected(expected).hint(hint);
    if report.is_set(&path) {
        report.value([path.as_slice(), &[Step::Index(place)]].concat(), problem);
    } else {
        let problem = Problem::new("algorithms is not set, and its default is HS256")
            .expected(expected)
            .hint(problem.suggestion.unwrap_or_default());
        report.key(config_path!["identity", index, "jwt", key], problem);
    }
    true
}

/// Refuses a secret that is too short, and warns of one that is short for an algorithm.
fn checked_secret(secret: &str, algorithms: &[Algorithm]) -> Result<Option<Problem>, Problem> {
    let length = secret.len();
    let expected = format!("at least {SECRET_BYTES_MIN} bytes");
    let how = "openssl rand -base64 48 makes one";
    if length == 0 {
        return Err(Problem::new("an empty secret").expected(expected).hint(how));
    }
    if length < SECRET_BYTES_MIN {
        let problem = Problem::new(format!("a secret of {length} bytes")).expected(expected);
        let why = format!("a shorter one can be guessed from any token (RFC 7518 §3.2); {how}");
        return Err(problem.hint(why));
    }
    let longer = algorithms.iter().find(|it| it.hash_bytes() > length);
    Ok(longer.map(|it| {
        let (name, bytes) = (it.as_str(), it.hash_bytes());
        Problem::new(format!("a secret of {length} bytes; RFC 7518 asks for {bytes} with {name}"))
    }))
}

fn key_url(path: Path, text: &str, report: &mut Report<'_>) -> Option<Uri> {
    const FORM: &str = "https://HOST/PATH";
    // Nothing of it is repeated but its host: it may hold a password.
    let Some(url) = text.parse::<Uri>().ok().filter(|url| url.authority().is_some()) else {
        report.value(path, Problem::new("not a URL").expected(FORM));
        return None;
    };
    let host = url.host().unwrap_or_default();
    match url.scheme_str() {
        Some("https") => {}
        Some("http") => {
            let is_local = host == "localhost"
                || host
                    .trim_matches(['[', ']'])
                    .parse()
                    .is_ok_and(|it: std::net::IpAddr| it.is_loopback());
            if !is_local {
                let found = "keys over http: whoever is on the way can put theirs in place";
                report.warn(path.clone(), Problem::new(found).expected("https"));
            }
        }
        _ => {
            report.value(path, Problem::new("another scheme").expected(FORM));
            return None;
        }
    }
    if url.authority().is_some_and(|it| it.as_str().contains('@')) {
        report.value(path, Problem::new("a user or password").expected(FORM));
        return None;
    }
    Some(url)
}
