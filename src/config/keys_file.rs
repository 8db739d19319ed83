//! The file of API keys: the mirror of it, and its compilation.
//!
//! It holds hashes, never keys. It may be replaced while tollgate runs, so it is read by itself.

use std::collections::HashMap;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config_path;
use crate::identity::api_key::{ApiKey, KEYS_MAX};
use crate::identity::cache;
use crate::limiter::time::Timestamp;
use crate::policy::identity::is_identifier;

use super::load::Source;
use super::reload::Digest;
use super::report::{ConfigError, ConfigErrors, Path, Problem, Report};
use super::url::quoted;

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "keys.yaml")]
pub struct KeysFile {
    /// Every key; `[]` for none; required.
    pub keys: Vec<KeySpec>,
}

/// One key.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KeySpec {
    /// Whose it is: `key:ID` is the identity. Several keys may have one id; required.
    pub id: Option<String>,
    /// SHA-256 of the key: 64 hexadecimal digits in lower case; required.
    #[schemars(extend("pattern" = "^[0-9a-f]{64}$"))]
    pub sha256: Option<String>,
    /// Tier, or subscription; null: the default tier.
    pub tier: Option<String>,
    /// When it ends, in UTC: `2027-01-31`, from which day on it is expired, or
    /// `2027-01-31T12:00:00Z`; null: never.
    pub expires: Option<String>,
}

/// What a file lists, and what is odd about it.
#[derive(Debug)]
pub struct Keys {
    /// Every key.
    pub keys: Vec<ApiKey>,
    /// Of the file's bytes.
    pub digest: Digest,
    /// What is odd, and no error.
    pub warnings: Vec<ConfigError>,
}

/// Reads what a file of this name holds; without `content`, from the file. `is_plan` says
/// whether some tier or subscription has that name, in any case of letters.
///
/// # Errors
/// Everything that is wrong with it, in the order of the file.
pub fn read(
    path: &FilePath,
    content: Option<Vec<u8>>,
    env: &dyn Fn(&str) -> Option<String>,
    is_plan: &dyn Fn(&str) -> bool,
) -> Result<Keys, ConfigErrors> {
    let source = match content {
        Some(content) => Source::of(path.display().to_string(), content, env),
        None => Source::read(Some(path), "", env),
    };
    let source = source.map_err(|error| ConfigErrors(without_excerpts(vec![*error])))?;
    let (file, mut report) = source.decoded::<KeysFile>();
    // A file that was cut short must not take every key away.
    let path = config_path!["keys"];
    if !report.is_set(&path) {
        let problem = Problem::new("not set").expected("the list of keys, or [] for none");
        report.key(path, problem);
    }
    if file.keys.len() > KEYS_MAX {
        let problem = Problem::new(format!("{} keys", file.keys.len()));
        report.key(config_path!["keys"], problem.expected(format!("at most {KEYS_MAX}")));
    }
    let mut seen = HashMap::with_capacity(file.keys.len());
    let mut keys = Vec::with_capacity(file.keys.len());
    for (index, spec) in file.keys.iter().enumerate() {
        let key = key(index, spec, is_plan, &mut report);
        if let Some(key) = key {
            if let Some(first) = seen.insert(key.sha256, index) {
                let problem = Problem::new(format!("the hash of keys[{first}] already"));
                report.value(config_path!["keys", index, "sha256"], problem);
            }
            keys.push(key);
        }
    }
    let (errors, warnings) = report.finish();
    let (errors, warnings) = (without_excerpts(errors), without_excerpts(warnings));
    let digest = source.digest().unwrap_or_default();
    if errors.is_empty() { Ok(Keys { keys, digest, warnings }) } else { Err(ConfigErrors(errors)) }
}

/// Keys stand where hashes should in many a first try, and no line of theirs is to be repeated.
fn without_excerpts(errors: Vec<ConfigError>) -> Vec<ConfigError> {
    errors.into_iter().map(|error| ConfigError { excerpt: None, ..error }).collect()
}

fn key(
    index: usize,
    spec: &KeySpec,
    is_plan: &dyn Fn(&str) -> bool,
    report: &mut Report<'_>,
) -> Option<ApiKey> {
    let at = |key: &str| config_path!["keys", index, key];
    let id = required(at("id"), spec.id.as_deref(), "whose key it is", report);
    if let Some(id) = id
        && !is_identifier(id)
    {
        let problem = Problem::new(quoted(id));
        report.value(at("id"), problem.expected("1 to 256 bytes without control characters"));
    }
    let sha256 = required(at("sha256"), spec.sha256.as_deref(), "the key's SHA-256", report)
        .and_then(|text| {
            let hash = unhex(text);
            if hash.is_none() {
                // It may be the key itself: it is not repeated.
                let found = format!("{} characters that are no hash", text.chars().count());
                let problem = Problem::new(found).expected("64 hexadecimal digits in lower case");
                report.value(at("sha256"), problem.hint("printf %s KEY | sha256sum makes it"));
            }
            // Made of a variable that was not set: whoever sends an empty field would be this
            // owner.
            if hash.is_some_and(|it| ["", "\n"].map(cache::hash).contains(&it)) {
                let problem = Problem::new("the hash of nothing").expected("that of a key");
                report.value(at("sha256"), problem.hint("printf %s KEY | sha256sum makes it"));
            }
            hash
        });
    if let Some(tier) = &spec.tier
        && !is_plan(tier)
    {
        let found = format!("{} is neither a tier nor a subscription", quoted(tier));
        let problem = Problem::new(found).hint("its bearers get the default tier");
        report.warn(at("tier"), problem);
    }
    let expires = match spec.expires.as_deref().map(|text| (text, moment(text))) {
        None => None,
        Some((_, Some(moment))) => Some(moment),
        Some((text, None)) => {
            let problem = Problem::new(quoted(text));
            report.value(
                at("expires"),
                problem.expected("a day, 2027-01-31, or a moment in UTC, 2027-01-31T12:00:00Z"),
            );
            None
        }
    };
    let tier: Option<Arc<str>> = spec.tier.as_deref().map(Into::into);
    Some(ApiKey { sha256: sha256?, id: id?.into(), tier, expires })
}

fn required<'t>(
    path: Path,
    text: Option<&'t str>,
    expected: &str,
    report: &mut Report<'_>,
) -> Option<&'t str> {
    if text.is_none() {
        report.value(path, Problem::new("missing").expected(expected));
    }
    text
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let bytes: Option<Vec<u8>> =
        pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
    bytes?.try_into().ok()
}

/// A day, or a moment, in UTC (RFC 3339).
fn moment(text: &str) -> Option<Timestamp> {
    let whole = if text.len() == "2027-01-31".len() {
        format!("{text}T00:00:00Z")
    } else {
        text.to_owned()
    };
    let since = humantime::parse_rfc3339_weak(&whole).ok()?.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_micros()).ok().map(Timestamp::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_cut_off_is_not_taken_for_no_keys() {
        let read =
            |text: &str| read(FilePath::new("keys.yaml"), Some(text.into()), &|_| None, &|_| true);
        assert!(read("keys: []\n").unwrap().keys.is_empty());
        for empty in ["", "# nothing\n"] {
            let error = read(empty).unwrap_err().to_string();
            assert!(
                error.ends_with("not set, expected the list of keys, or [] for none"),
                "{error}"
            );
        }
    }

    #[test]
    fn moments_and_hashes() {
        let seconds = |text| moment(text).map(|it| it.as_secs_ceil());
        assert_eq!(seconds("1970-01-02"), Some(86_400));
        assert_eq!(seconds("2027-01-31T12:00:00Z"), Some(1_801_396_800));
        for bad in ["", "2027", "2027-13-01", "2027-01-31T12:00:00+02:00", "1969-12-31", "soon"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(unhex(empty), Some(crate::identity::cache::hash("")));
        for bad in ["", "e3", &empty.to_uppercase(), &empty[1..], &format!("{empty}00")] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
    }
}
