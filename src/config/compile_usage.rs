//! `usage` to settings that cannot be wrong: where records go, and what is needed to get there.

use std::path::PathBuf;
use std::time::Duration;

use crate::config_path;
use crate::subscriptions::settings::PostgresTarget;
use crate::usage::flush::JOURNAL_BYTES_MAX;
use crate::usage::sink::{Place, Settings};

use super::compile::{ReadSecret, RedisSettings, positive};
use super::compile_lookup::read_file;
use super::postgres_url;
use super::report::{Path, Problem, Report};
use super::schema::{Usage, UsageSink};
use super::value::HumanDuration;

/// Below that a worker would do little else than change files.
const FLUSH_MIN: Duration = Duration::from_millis(50);
/// Above that a start would find hours of work.
const FLUSH_MAX: Duration = Duration::from_secs(3600);
/// Records are added up by the hour, and by the minute for two days.
const RETENTION_MIN: Duration = Duration::from_secs(3600);

/// Compiles `usage`; `None`: nothing is metered. `redis`: that of the store, if there is one.
pub fn usage(
    usage: &Usage,
    redis: Option<&RedisSettings>,
    has_identity_secret: bool,
    read_secret: ReadSecret<'_>,
    report: &mut Report<'_>,
) -> Option<Settings> {
    let at = |key: &str| config_path!["usage", key];
    let flush = within("flush", usage.flush, FLUSH_MIN, FLUSH_MAX, report);
    let retention = within("retention", usage.retention, RETENTION_MIN, Duration::MAX, report);
    if usage.dir.is_empty() {
        report.value(at("dir"), Problem::new("empty").expected("a directory"));
    }
    let directory = PathBuf::from(&usage.dir);
    // Looked at whatever the sink is: what is wrong with it is wrong before it is used.
    let postgres = postgres(usage, read_secret, report);
    let place = match usage.sink {
        UsageSink::Off => return None,
        UsageSink::File => Place::File(directory.clone()),
        UsageSink::Redis => self::redis(redis, has_identity_secret, report)?,
        UsageSink::Postgres => {
            if usage.postgres.is_none() && usage.postgres_file.is_none() {
                let problem = Problem::new("postgres, and no database");
                report.value(at("sink"), problem.expected("usage.postgres or usage.postgres_file"));
            }
            Place::Postgres(postgres?)
        }
    };
    let journal_bytes_max = JOURNAL_BYTES_MAX;
    Some(Settings { place, flush, directory, retention, journal_bytes_max })
}

fn within(
    key: &str,
    found: HumanDuration,
    least: Duration,
    most: Duration,
    report: &mut Report<'_>,
) -> Duration {
    let path = || config_path!["usage", key];
    let span = positive(path(), found, report);
    if !span.is_zero() && !(least..=most).contains(&span) {
        let shown = |span: Duration| humantime::format_duration(span).to_string();
        let expected = if span < least {
            format!("at least {}", shown(least))
        } else {
            format!("at most {}", shown(most))
        };
        report.value(path(), Problem::new(shown(span)).expected(expected));
    }
    span
}

fn redis(
    redis: Option<&RedisSettings>,
    has_identity_secret: bool,
    report: &mut Report<'_>,
) -> Option<Place> {
    let path = config_path!["usage", "sink"];
    let Some(redis) = redis else {
        // A store that was reported is there all the same.
        if !report.has_errors_below(config_path!["store", "redis"]) {
            report.value(path, Problem::new("redis, and no store.redis").expected("store.redis"));
        }
        return None;
    };
    if has_identity_secret {
        // A bill needs names, and the secret promises that Redis has none.
        let found = "redis beside identity_hash_secret, which says that Redis holds no names";
        report.value(path, Problem::new(found).expected("file or postgres"));
        return None;
    }
    Some(Place::Redis(redis.url.target(), redis.key_prefix.as_str().into()))
}

fn postgres(
    usage: &Usage,
    read_secret: ReadSecret<'_>,
    report: &mut Report<'_>,
) -> Option<PostgresTarget> {
    let at = |key: &str| config_path!["usage", key];
    let (path, url): (Path, String) = match (&usage.postgres, &usage.postgres_file) {
        (Some(_), Some(_)) => {
            let problem = Problem::new("given beside usage.postgres").expected("one of the two");
            report.key(at("postgres_file"), problem);
            return None;
        }
        (Some(url), None) => (at("postgres"), url.expose().to_owned()),
        (None, Some(file)) => match read_secret(file) {
            Ok(text) => (at("postgres_file"), text),
            Err(reason) => {
                let problem = Problem::new(format!("{file}: {reason}"));
                report.value(at("postgres_file"), problem);
                return None;
            }
        },
        (None, None) => return None,
    };
    let target = postgres_url::postgres(&url, &read_file);
    target.map_err(|problem| report.value(path, problem)).ok()
}
