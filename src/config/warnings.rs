//! What is no error, and hardly what was meant.
//!
//! Warns only of what is certain: a limit that can never refuse, a rule that nothing can meet, a
//! secret that can be read in the file. Each has a sentence that says why.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;

use ipnet::IpNet;

use crate::config_path;
use crate::identity::identifier::OnInvalid;
use crate::limiter::quota::{Bucket, LimitSet};
use crate::policy::compiled::{PolicyParts, Tier};

use super::compile::{ServerSettings, Settings};
use super::compile_identity::MethodSettings;
use super::compile_limits::Names;
use super::report::{Path, Problem, Report, Step};
use super::schema::{Config, IdentityEntry};
use super::schema_tiers::{Endpoint, TiersFile};
use super::tree::FILLED_IN;

/// Seconds that a minute's window may count: 60 sub-buckets, and the one that is being filled.
const MINUTE_SECONDS: u64 = 61;
/// Seconds that an hour's window may count: 61 minutes.
const HOUR_SECONDS: u64 = 61 * 60;
/// Most that an hour's window can hold, in full minutes' windows: 3,660 seconds are 60 times the
/// 61 of which a minute's window counts all.
const MINUTES_IN_HOUR: u64 = HOUR_SECONDS / MINUTE_SECONDS;

/// Networks in which an ingress or a load balancer stands (RFC 1918, 6598, 4193, loopback).
const PRIVATE: [&str; 7] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "fc00::/7",
    "::1/128",
];

/// A policy's file without a word in it, comments aside: cut off, or not yet written.
pub fn empty(report: &mut Report<'_>) {
    let problem = Problem::new("an empty file: the built-in tiers hold").expected("a policy");
    let hint = "a tollgate that runs would refuse it; {} says that it is meant";
    report.warn(Path::new(), problem.hint(hint));
}

const HOURS_IN_DAY: u64 = 24;
const DAYS_IN_MONTH: u64 = 31;

/// Limits of one tier, or of a rule for one tier, that get in each other's way. `has_burst`: it is
/// given, and not the rate's stand-in.
pub fn limits(path: &[Step], set: &LimitSet, has_burst: bool, report: &mut Report<'_>) {
    let below = |key: &str| [path, &[Step::from(key)]].concat();
    let never = |number: NonZeroU32| Problem::new(format!("{number} can never bind"));
    let minute_and_hour = [(set.minute, "per_minute"), (set.hour, "per_hour")];
    if let Some(Bucket { rate, burst }) = set.second {
        let (key, value) = if has_burst { ("burst", burst) } else { ("per_second", rate) };
        if burst < rate {
            let problem = Problem::new(format!("burst {burst} is below per_second {rate}"));
            let hint = "requests at the same moment get the burst only";
            report.warn(below("burst"), problem.hint(hint));
        }
        let least = minute_and_hour.iter().filter_map(|(limit, key)| Some(((*limit)?, *key))).min();
        if let Some((limit, longer)) = least.filter(|(limit, _)| *limit < burst) {
            let problem = Problem::new(format!("{value} can never be used whole"));
            report.warn(below(key), problem.hint(format!("{longer} is {limit}")));
        }
    }
    if let (Some(minute), Some(hour)) = (set.minute, set.hour)
        && minute >= hour
    {
        let hint = format!("per_hour is {hour}, and no minute can hold more");
        report.warn(below("per_minute"), never(minute).hint(hint));
    } else if let (Some(minute), Some(most)) = (set.minute, most_of(set.second, MINUTE_SECONDS))
        && wide(minute) >= most
    {
        let hint = format!("per_second and burst let at most {most} pass in a minute's window");
        report.warn(below("per_minute"), never(minute).hint(hint));
    }
    calendar(path, set, report);
    let Some(hour) = set.hour else { return };
    if let Some(minute) = set.minute
        && wide(hour) >= wide(minute) * MINUTES_IN_HOUR
    {
        let most = wide(minute) * MINUTES_IN_HOUR;
        let hint = format!("per_minute lets at most {most} pass in an hour");
        report.warn(below("per_hour"), never(hour).hint(hint));
    } else if let Some(most) = most_of(set.second, HOUR_SECONDS)
        && wide(hour) >= most
    {
        let hint = format!("per_second and burst let at most {most} pass in an hour's window");
        report.warn(below("per_hour"), never(hour).hint(hint));
    }
}

/// The same for days and months, beside what is next shorter.
fn calendar(path: &[Step], set: &LimitSet, report: &mut Report<'_>) {
    let below = |key: &str| [path, &[Step::from(key)]].concat();
    let pairs = [
        ((set.hour, "per_hour", "hour"), (set.day, "per_day", "day"), HOURS_IN_DAY),
        ((set.day, "per_day", "day"), (set.month, "per_month", "month"), DAYS_IN_MONTH),
    ];
    for ((shorter, short_key, short), (longer, long_key, long), times) in pairs {
        let Some((shorter, longer)) = shorter.zip(longer) else { continue };
        let never = |number: NonZeroU32| Problem::new(format!("{number} can never bind"));
        if shorter >= longer {
            let hint = format!("{long_key} is {longer}, and no {short} can hold more");
            report.warn(below(short_key), never(shorter).hint(hint));
        } else if wide(longer) >= wide(shorter) * times {
            let most = wide(shorter) * times;
            let hint = format!("{short_key} lets at most {most} pass in a {long}");
            report.warn(below(long_key), never(longer).hint(hint));
        }
    }
}

/// The most that a bucket lets pass in less than so many seconds.
fn most_of(bucket: Option<Bucket>, seconds: u64) -> Option<u64> {
    bucket.map(|Bucket { rate, burst }| wide(burst) + wide(rate) * seconds - 1)
}

fn wide(number: NonZeroU32) -> u64 {
    u64::from(number.get())
}

/// Whether a rule's limits refuse nothing that the tier's do not refuse as well. Whatever is spent
/// from the rule's is spent from the tier's too, so each of the rule's windows only has to be as
/// large as one of the tier's that counts at least as long.
fn is_covered(rule: &LimitSet, tier: &LimitSet) -> bool {
    let second = rule.second.is_none_or(|own| {
        tier.second.is_some_and(|tier| own.rate >= tier.rate && own.burst >= tier.burst)
    });
    let window = |own: Option<NonZeroU32>, most: [Option<u64>; 3]| {
        own.is_none_or(|own| most.into_iter().flatten().any(|most| wide(own) >= most))
    };
    let (minute, hour) = (tier.minute.map(wide), tier.hour.map(wide));
    let in_an_hour = minute.map(|minute| minute * MINUTES_IN_HOUR);
    let (day, month) = (tier.day.map(wide), tier.month.map(wide));
    let in_a_day = hour.map(|hour| hour * HOURS_IN_DAY);
    let in_a_month = day.map(|day| day * DAYS_IN_MONTH);
    let concurrency = rule.concurrency.is_none_or(|own| {
        // A request holds one place of both.
        tier.concurrency.is_some_and(|tier| own >= tier)
    });
    second
        && concurrency
        && window(rule.day, [day, month, in_a_day])
        && window(rule.month, [month, in_a_month, None])
        && window(rule.minute, [minute, hour, most_of(tier.second, MINUTE_SECONDS)])
        && window(rule.hour, [hour, in_an_hour, most_of(tier.second, HOUR_SECONDS)])
}

/// Parts of a rule that have no effect. `limits`: what was made of its own, by tier, and for which
/// of the tiers the rule names them.
pub fn rule(
    index: usize,
    spec: &Endpoint,
    limits: (&[Option<LimitSet>], &[bool]),
    (tiers, names): (&[Tier], &Names<'_>),
    report: &mut Report<'_>,
) {
    let at = |key: &str| config_path!["endpoints", index, key];
    if spec.exempt {
        for (key, is_given) in [("cost", spec.cost != 1), ("limits", !spec.limits.0.is_empty())] {
            if is_given {
                report.warn(at(key), Problem::new("without effect: the rule is exempt"));
            }
        }
        return;
    }
    let (limits, named) = limits;
    let covered = |tier: usize| {
        let own = (*limits.get(tier)?)?;
        Some(is_covered(&own, &tiers.get(tier)?.limits))
    };
    let mut unnamed = named.iter().enumerate().filter(|(_, is_named)| !**is_named).peekable();
    for (key, _) in spec.limits.iter() {
        let path = || config_path!["endpoints", index, "limits", key];
        let hint = "a rule's limits come on top of the tier's, never instead";
        if key != "any" {
            if names.index.get(key).copied().and_then(covered) == Some(true) {
                let found = format!("never refuses what tier \"{key}\" does not refuse anyway");
                report.warn(path(), Problem::new(found).hint(hint));
            }
        } else if unnamed.peek().is_none() {
            report.warn(path(), Problem::new("without effect: every tier is named beside it"));
        } else if unnamed.all(|(tier, _)| covered(tier) == Some(true)) {
            let found = "never refuses what the tiers do not refuse anyway";
            report.warn(path(), Problem::new(found).hint(hint));
        }
    }
}

/// A rule that no request can meet. Rules cannot take all of each other's requests: of two equally
/// specific ones the router makes an error, and a more specific one leaves some to the other. So
/// what is left are conditions that no request fulfils.
pub fn unreachable(index: usize, spec: &Endpoint, report: &mut Report<'_>) {
    let problem = |hint: &str| Problem::new("no request meets this rule").hint(hint);
    let is_refused = |method: &String| matches!(method.as_str(), "CONNECT" | "TRACE");
    if !spec.methods.is_empty() && spec.methods.iter().all(is_refused) {
        let hint = "CONNECT and TRACE are refused with 405, whatever the rules say";
        report.warn(config_path!["endpoints", index, "methods"], problem(hint));
    }
    for (name, value) in spec.headers.iter() {
        if value.trim_matches([' ', '\t']) != value.as_str() {
            let hint = "no field's value begins or ends with a blank";
            report.warn(config_path!["endpoints", index, "headers", name], problem(hint));
        }
    }
}

/// Rules for what tollgate answers itself on the data port.
pub fn exposed(file: &TiersFile, server: &ServerSettings, report: &mut Report<'_>) {
    let pages = [("/health", server.expose_health), ("/metrics", server.expose_metrics)];
    for (index, rule) in file.endpoints.iter().enumerate() {
        let is_own =
            |(path, is_exposed): &(&str, bool)| *is_exposed && rule.path.as_deref() == Some(*path);
        let takes = |method: &String| matches!(method.as_str(), "GET" | "HEAD");
        if rule.methods.iter().all(takes) && pages.iter().any(is_own) {
            let problem = Problem::new("tollgate answers this path itself");
            let hint = "server.expose says so; the backend gets other methods and spellings only";
            report.warn(config_path!["endpoints", index, "path"], problem.hint(hint));
        }
    }
}

/// Private networks with a better tier than the default one, while no proxy is trusted: behind an
/// ingress everybody comes from one.
pub fn networks(
    file: &TiersFile,
    parts: &PolicyParts,
    settings: &Settings,
    report: &mut Report<'_>,
) {
    if !settings.trusted_proxies.is_empty() {
        return;
    }
    let Some(default) = parts.tiers.get(parts.default_tier) else { return };
    let by_name: HashMap<&str, &Tier> =
        parts.tiers.iter().map(|tier| (&*tier.name, tier)).collect();
    let private: Vec<IpNet> = PRIVATE.iter().filter_map(|text| text.parse().ok()).collect();
    for (text, name) in file.networks.iter() {
        let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        let tier = by_name.get(name.as_str()).copied();
        let (Ok(network), Some(tier)) = (network, tier) else { continue };
        let is_private = private.iter().any(|it| it.contains(&network) || network.contains(it));
        if is_private && allows_more(&tier.limits, &default.limits) {
            let found = format!("behind an ingress or load balancer everybody would be on {name}");
            let problem = Problem::new(found).hint(
                "callers then have its address: name its network in server.trusted_proxies first, \
                 and check both files together",
            );
            report.warn(config_path!["networks", text], problem);
        }
    }
}

/// Certificates of clients as identities, where no listener asks for one.
pub fn unasked(entries: &[IdentityEntry], report: &mut Report<'_>) {
    for (index, entry) in entries.iter().enumerate() {
        if entry.mtls.is_some() {
            let problem = Problem::new("never finds anybody: no listener asks for certificates");
            let problem = problem.expected("server.listeners[].tls.client_ca");
            report.warn(config_path!["identity", index, "mtls"], problem);
        }
    }
}

/// Users and keys on the deny list, where a credential that is not believed makes its sender an
/// address: another credential that is tried first, and is rubbish, and the deny no longer finds them.
pub fn denied(file: &TiersFile, settings: &Settings, report: &mut Report<'_>) {
    let passes_over = settings.identity.methods.iter().any(|method| match method {
        MethodSettings::Jwt(jwt) => jwt.on_invalid == OnInvalid::Ip,
        MethodSettings::ApiKey(api_key) => api_key.on_invalid == OnInvalid::Ip,
        // What no authority has signed never gets here.
        MethodSettings::Mtls | MethodSettings::Ip => false,
    });
    for (identity, assigned) in file.identities.iter() {
        let is_presented = identity.starts_with("user:") || identity.starts_with("key:");
        if passes_over && is_presented && assigned == "deny" {
            let problem =
                Problem::new("a denied caller can hide behind a credential that is rubbish");
            let hint = "who sends one is an address under on_invalid: ip; reject refuses them";
            report.warn(config_path!["identities", identity], problem.hint(hint));
        }
    }
}

/// Whether some window of one set is larger than the other's.
fn allows_more(set: &LimitSet, other: &LimitSet) -> bool {
    fn is_more<T: PartialOrd>(own: Option<T>, other: Option<T>) -> bool {
        match (own, other) {
            (None, Some(_)) => true,
            (Some(own), Some(other)) => own > other,
            (_, None) => false,
        }
    }
    let rate = |set: &LimitSet| set.second.map(|bucket| bucket.rate);
    let burst = |set: &LimitSet| set.second.map(|bucket| bucket.burst);
    is_more(rate(set), rate(other))
        || is_more(burst(set), burst(other))
        || is_more(set.minute, other.minute)
        || is_more(set.hour, other.hour)
        || is_more(set.day, other.day)
        || is_more(set.month, other.month)
        || is_more(set.concurrency, other.concurrency)
}

/// Secrets that everybody can read who can read the file.
pub fn secrets(config: &Config, report: &mut Report<'_>) {
    let of_tokens =
        (0..config.identity.len()).map(|index| config_path!["identity", index, "jwt", "secret"]);
    for path in of_tokens.chain([config_path!["identity_hash_secret"]]) {
        warn_of_secret(path, "a secret", is_written, report);
    }
    for path in [
        config_path!["store", "redis", "url"],
        config_path!["tier_lookup", "postgres", "url"],
        config_path!["tier_lookup", "redis", "url"],
        config_path!["usage", "postgres"],
    ] {
        warn_of_secret(path, "a password", holds_password, report);
    }
}

fn warn_of_secret(path: Path, what: &str, is_plain: fn(&str) -> bool, report: &mut Report<'_>) {
    let Some(literal) = report.literal(&path).filter(|literal| is_plain(literal)) else { return };
    let beside = literal.contains(FILLED_IN);
    let place = if beside { ", beside a variable or as its default" } else { "" };
    let Some(Step::Key(key)) = path.last() else { return };
    let problem = Problem::new(format!("{what} in plain text{place}"))
        .expected(format!("a variable, such as ${{NAME}}, or {key}_file"));
    report.warn(path, problem);
}

/// Whether anything of the text stands in the file itself.
fn is_written(literal: &str) -> bool {
    literal.chars().any(|c| c != FILLED_IN)
}

/// Whether a URL, or a database's `key=value` parameters, hold a password of their own.
fn holds_password(literal: &str) -> bool {
    let user_info = literal
        .split_once("://")
        .map(|(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or(rest))
        .and_then(|authority| authority.rsplit_once('@'))
        .and_then(|(user_info, _)| user_info.split_once(':'));
    let lower = literal.to_ascii_lowercase();
    let parameters = lower.match_indices("password").filter_map(|(at, key)| {
        let value = literal.get(at + key.len()..)?.trim_start().strip_prefix('=')?.trim_start();
        value.split(['&', ' ', '#']).next()
    });
    user_info.map(|(_, password)| password).into_iter().chain(parameters).any(is_written)
}
