//! `tier_lookup` to settings that cannot be wrong: who is asked for a user's subscription, and how.

use std::io::Read;
use std::time::Duration;

use crate::config_path;
use crate::subscriptions::settings::{
    HashKey, PostgresSettings, PostgresTarget, RedisSettings, Settings, SourceSettings,
};

use super::compile::{ReadSecret, positive};
use super::compile_redis::redis_url_of;
use super::postgres_url;
use super::report::{ConfigError, Path, Problem, Report};
use super::schema::{PostgresLookup, RedisLookup, RedisTls, TierLookup};
use super::url::{RedisUrl, quoted};
use super::value::Redacted;

/// More connections of one replica are a typing error, and more than most servers have.
const POOL_MAX: u32 = 100;
/// A request that waits longer than that for its tier is better refused by its caller.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// Longest query.
const QUERY_BYTES_MAX: usize = 16 << 10;
/// Longest key and field of a hash.
const HASH_BYTES_MAX: usize = 512;
/// Most bytes that are read of a file of certificates.
const CERTIFICATES_BYTES_MAX: u64 = 4 << 20;

/// How subscriptions are looked up, and where that is written.
#[derive(Clone, Debug, PartialEq)]
pub struct LookupSettings {
    /// How.
    pub settings: Settings,
    /// The place of the query, for what only the database can say of it.
    pub query: ConfigError,
    /// The place of the URL, for what only a connection can say of it.
    pub url: ConfigError,
}

/// Compiles `tier_lookup`. `store` is the URL of `store.redis`, where there is one; `slow`: time
/// of a look-up above which it counts as slow.
pub fn lookup(
    lookup: Option<&TierLookup>,
    store: Option<&RedisUrl>,
    slow: Duration,
    read_secret: ReadSecret<'_>,
    report: &mut Report<'_>,
) -> Option<LookupSettings> {
    let lookup = lookup?;
    let at = |key: &str| config_path!["tier_lookup", key];
    let cache_ttl = positive(at("cache_ttl"), lookup.cache_ttl, report);
    let (source, timeout) = match (&lookup.postgres, &lookup.redis) {
        (Some(postgres), None) => {
            let timeout = timeout("postgres", postgres.timeout, report);
            (self::postgres(postgres, read_secret, report), timeout)
        }
        (None, Some(redis)) => {
            let timeout = timeout("redis", redis.timeout, report);
            (self::redis(redis, store, read_secret, report), timeout)
        }
        (Some(_), Some(_)) => {
            let problem = Problem::new("given beside tier_lookup.postgres");
            report.key(at("redis"), problem.expected("one of the two"));
            return None;
        }
        (None, None) => {
            let problem = Problem::new("nobody to ask").expected("postgres or redis");
            // What could not be read was reported; it is there all the same.
            if !report.has_errors_below(config_path!["tier_lookup"]) {
                report.key(config_path!["tier_lookup"], problem);
            }
            return None;
        }
    };
    let nothing = Problem::new("");
    Some(LookupSettings {
        settings: Settings { source: source?, timeout, cache_ttl, slow },
        query: report.locate(config_path!["tier_lookup", "postgres", "query"], &nothing),
        url: report.locate(config_path!["tier_lookup", "postgres", "url"], &nothing),
    })
}

fn timeout(who: &str, timeout: super::value::HumanDuration, report: &mut Report<'_>) -> Duration {
    let path = config_path!["tier_lookup", who, "timeout"];
    if timeout.0 > TIMEOUT_MAX {
        let problem = Problem::new(format!("{} s", timeout.0.as_secs()));
        report.value(path.clone(), problem.expected("at most 60s"));
    }
    positive(path, timeout, report)
}

fn postgres(
    postgres: &PostgresLookup,
    read_secret: ReadSecret<'_>,
    report: &mut Report<'_>,
) -> Option<SourceSettings> {
    let at = |key: &str| config_path!["tier_lookup", "postgres", key];
    if !(1..=POOL_MAX).contains(&postgres.pool) {
        let problem = Problem::new(postgres.pool.to_string());
        report.value(at("pool"), problem.expected(format!("1 to {POOL_MAX}")));
    }
    let query = postgres.query.trim();
    let expected =
        "a query with $1 for the user, such as select subscription from users where id = $1";
    if query.is_empty() {
        report.value(at("query"), Problem::new("nothing").expected(expected));
    } else if !names_the_user(query) {
        report.value(at("query"), Problem::new("a query without $1").expected(expected));
    } else if query.len() > QUERY_BYTES_MAX || query.contains('\0') {
        let problem = Problem::new(format!("{} bytes", query.len()));
        report.value(at("query"), problem.expected("at most 16KiB, and no NUL in it"));
    }
    let (path, url) =
        given_url("postgres", &postgres.url, &postgres.url_file, read_secret, report)?;
    let Some(url) = url else {
        let problem = Problem::new("missing").expected("url or url_file");
        report.key(config_path!["tier_lookup", "postgres"], problem);
        return None;
    };
    let target: Option<PostgresTarget> = postgres_url::postgres(&url, &read_file)
        .map_err(|problem| report.value(path, problem))
        .ok();
    Some(SourceSettings::Postgres(PostgresSettings {
        target: target?,
        query: query.into(),
        pool: usize::try_from(postgres.pool).unwrap_or(1),
    }))
}

/// Whether `$1` is in it, and is not the beginning of `$10`.
fn names_the_user(query: &str) -> bool {
    let mut after = query.split("$1").skip(1);
    after.any(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn redis(
    redis: &RedisLookup,
    store: Option<&RedisUrl>,
    read_secret: ReadSecret<'_>,
    report: &mut Report<'_>,
) -> Option<SourceSettings> {
    let at = |key: &str| config_path!["tier_lookup", "redis", key];
    let hash = HashKey::parse(&redis.hash).filter(|_| redis.hash.len() <= HASH_BYTES_MAX);
    if hash.is_none() {
        let problem = Problem::new(quoted(&redis.hash));
        report.value(at("hash"), problem.expected("a key with one {id} in it, such as user:{id}"));
    }
    if redis.field.is_empty() || redis.field.len() > HASH_BYTES_MAX {
        let problem = Problem::new(quoted(&redis.field));
        report.value(at("field"), problem.expected("the name of the hash's field"));
    }
    let (path, url) = given_url("redis", &redis.url, &redis.url_file, read_secret, report)?;
    let url = match (url, store) {
        (Some(url), _) => {
            let at = |key: &str| config_path!["tier_lookup", "redis", "tls", key];
            redis_url_of(&url, path, &redis.tls, "tier_lookup.redis.tls", &at, report)?
        }
        (None, Some(store)) => {
            if redis.tls != RedisTls::default() {
                let problem = Problem::new("of no use: store.redis.tls goes with its URL");
                report.warn(at("tls"), problem);
            }
            store.clone()
        }
        (None, None) => {
            let problem = Problem::new("no url here, and no store.redis whose URL would do");
            let path = config_path!["tier_lookup", "redis"];
            // A store that was reported is there all the same.
            if !report.has_errors_below(config_path!["store", "redis"]) {
                report.key(path, problem.expected("url or url_file"));
            }
            return None;
        }
    };
    Some(SourceSettings::Redis(RedisSettings {
        target: url.target(),
        hash: hash?,
        field: redis.field.as_str().into(),
    }))
}

/// The URL, where one is given, and the key that gives it. `None` where that went wrong.
fn given_url(
    who: &str,
    url: &Option<Redacted>,
    url_file: &Option<String>,
    read_secret: ReadSecret<'_>,
    report: &mut Report<'_>,
) -> Option<(Path, Option<String>)> {
    let at = |key: &str| config_path!["tier_lookup", who, key];
    match (url, url_file) {
        (Some(_), Some(_)) => {
            let problem = Problem::new(format!("given beside tier_lookup.{who}.url"));
            report.key(at("url_file"), problem.expected("one of the two"));
            None
        }
        (Some(url), None) => Some((at("url"), Some(url.expose().to_owned()))),
        (None, Some(file)) => match read_secret(file) {
            Ok(text) => Some((at("url_file"), Some(text))),
            Err(reason) => {
                report.value(at("url_file"), Problem::new(format!("{file}: {reason}")));
                None
            }
        },
        (None, None) => Some((at("url"), None)),
    }
}

/// Reads a file of certificates.
pub fn read_file(file: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(file)
        .and_then(|file| file.take(CERTIFICATES_BYTES_MAX).read_to_end(&mut bytes));
    read.map_err(|error| format!("cannot be read: {error}"))?;
    Ok(bytes)
}
