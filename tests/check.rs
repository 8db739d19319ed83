//! What is told of files that are no errors, what is kept secret in all of it, and the schemas that
//! editors hold the files against: each compared with the reader, the router and the limiter.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::num::NonZeroU32;
use std::path::Path;
use std::process::Command;

use http::{HeaderMap, HeaderValue, Method};
use proptest::prelude::*;
use serde_json::Value;

use tollgate::config::compile_upstream::UpstreamNeed;
use tollgate::config::json_schema::{of_config, of_keys, of_tiers};
use tollgate::config::load::{LoadRequest, Loaded, Overrides, Rejected, examine};
use tollgate::config::report::ConfigError;
use tollgate::config::value::Redacted;
use tollgate::limiter::check::{Limits, State, States, check};
use tollgate::limiter::quota::{Bucket, LimitSet, Mode};
use tollgate::limiter::time::Timestamp;
use tollgate::policy::facts::RequestFacts;

const SECOND: u64 = 1_000_000;
/// Where a minute, and so a second, begins.
const START_US: u64 = 1_767_225_600_000_000;

fn load_both(config: &str, tiers: &str, overrides: Overrides) -> Result<Loaded, Rejected> {
    let directory = tempfile::tempdir().unwrap();
    let written = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    // A policy of nothing is warned of, and most of what is tried here needs none.
    let tiers = if tiers.is_empty() { "{}" } else { tiers };
    let (config, tiers) = (written("tollgate.yaml", config), written("tiers.yaml", tiers));
    let loaded = examine(&LoadRequest {
        config: Some(&config),
        tiers: Some(&tiers),
        overrides,
        upstream: UpstreamNeed::Optional,
        env: &|name| match name {
            "REDIS_URL" => Some("redis://me:hunter2@cache/2".to_owned()),
            "PASSWORD" | "SECRET" => Some("hunter2".to_owned()),
            "LONG" => Some("hunter2 and then as much as a secret takes".to_owned()),
            _ => None,
        },
    });
    let short = |told: &mut Vec<ConfigError>| {
        for error in told {
            let name = error.file.as_deref().and_then(|file| file.rsplit('/').next());
            error.file = name.map(str::to_owned);
        }
    };
    match loaded {
        Ok(mut loaded) => {
            short(&mut loaded.warnings);
            Ok(loaded)
        }
        Err(mut errors) => {
            short(&mut errors.errors.0);
            short(&mut errors.warnings);
            Err(errors)
        }
    }
}

/// A warning, its excerpt aside.
fn told(warning: &ConfigError) -> String {
    let lines: Vec<String> = warning.to_string().lines().map(str::to_owned).collect();
    let is_excerpt = |line: &str| line.contains(" | ");
    lines.into_iter().filter(|line| !is_excerpt(line)).collect::<Vec<_>>().join("\n")
}

fn warnings(config: &str, tiers: &str) -> Vec<ConfigError> {
    let loaded = load_both(config, tiers, Overrides::default());
    loaded.unwrap_or_else(|errors| panic!("{}\n{config}{tiers}", errors.errors)).warnings
}

fn repository(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

// ------------------------------------------------------------------------------------- warnings

#[test]
fn what_is_odd_is_warned_of_and_nothing_else() {
    let vectors = include_str!("vectors/config_warnings.txt");
    let mut count = 0;
    for block in vectors.split("\n---- ").skip(1) {
        let (file, rest) = block.split_once('\n').unwrap();
        let (text, expected) = rest.split_once("=> ").unwrap_or((rest, ""));
        let found = match file {
            "tiers.yaml" => warnings("", text),
            _ => warnings(text, ""),
        };
        let found: Vec<String> = found.iter().map(told).collect();
        let expected: Vec<&str> =
            expected.split("=> ").map(str::trim_end).filter(|it| !it.is_empty()).collect();
        assert_eq!(found, expected, "in {file}\n{text}");
        count += 1;
    }
    assert!(count > 25, "{count}");
}

#[test]
fn the_other_file_may_make_it_right_or_wrong() {
    let paths = |config: &str, tiers: &str| -> Vec<String> {
        warnings(config, tiers).into_iter().map(|warning| warning.path).collect()
    };
    let networks = "networks: { 10.0.0.0/8: internal }";
    assert_eq!(paths("", networks), ["networks[\"10.0.0.0/8\"]"]);
    assert_eq!(paths("server: { trusted_proxies: [10.1.0.0/16] }", networks), [""; 0]);

    let rules = "endpoints:\n- { name: a, path: /health, exempt: true }\n\
        - { name: b, path: /metrics, methods: [POST] }\n- { name: c, path: /metrics/ , match: strict }\n";
    assert_eq!(paths("", rules), [""; 0]);
    assert_eq!(paths("server: { expose: [health, metrics] }", rules), ["endpoints[0].path"]);
}

#[test]
fn a_deny_that_rubbish_lifts_is_warned_of() {
    let tiers =
        "identities: { 'user:7': deny, 'key:a': deny, 'ip:192.0.2.1': deny, 'user:8': free }";
    let secret = "${LONG}";
    let paths = |identity: &str| -> Vec<String> {
        let config = format!("identity: [{identity}]");
        warnings(&config, tiers).iter().map(|it| it.path.clone()).collect()
    };
    let denied = ["identities[\"user:7\"]", "identities[\"key:a\"]"];
    assert_eq!(paths(&format!("jwt: {{ secret: '{secret}' }}")), denied);
    assert_eq!(paths(&format!("jwt: {{ secret: '{secret}', on_invalid: reject }}")), [""; 0]);
    assert_eq!(paths("ip: {}"), [""; 0]);
}

#[test]
fn warnings_come_beside_errors_and_have_a_bound() {
    let tiers = "tiers: { free: { per_second: 5, burst: 2 }, Gold: {} }";
    let errors = load_both("server: { workers: x }", tiers, Overrides::default()).unwrap_err();
    assert_eq!(errors.errors.0.len(), 2, "{}", errors.errors);
    assert_eq!(
        errors.warnings.iter().map(|it| it.path.as_str()).collect::<Vec<_>>(),
        ["tiers.free.burst"]
    );

    let many: String =
        (0..150).map(|tier| format!("  t{tier}: {{ per_second: 5, burst: 2 }}\n")).collect();
    let found = warnings("", &format!("default_tier: t0\ntiers:\n{many}"));
    assert_eq!(found.len(), 101);
    assert_eq!(found[100].to_string(), "tiers.yaml: 50 more warnings, not shown");
}

#[test]
fn a_secret_of_the_command_line_or_of_the_environment_is_none_of_the_file() {
    let redis = |url: &str| Overrides { redis: Some(Redacted::new(url)), ..Overrides::default() };
    for config in ["", "store: { redis: { url: 'redis://:hunter2@host' } }"] {
        let loaded = load_both(config, "", redis("redis://:hunter2@other")).unwrap();
        assert!(loaded.warnings.is_empty(), "{config}");
    }
}

/// Keys whose features are not built yet are errors at any value, and their secrets are told of
/// all the same.
#[test]
fn every_key_that_holds_a_secret_is_looked_at() {
    let found = |config: &str| -> Vec<String> {
        match load_both(config, "", Overrides::default()) {
            Ok(loaded) => loaded.warnings,
            Err(errors) => errors.warnings,
        }
        .iter()
        .filter(|warning| warning.message.contains("in plain text"))
        .map(|warning| warning.path.clone())
        .collect()
    };
    for (path, config) in [
        ("identity_hash_secret", "identity_hash_secret: VALUE"),
        ("identity[1].jwt.secret", "identity: [ip: {}, jwt: { secret: 'VALUE' }]"),
    ] {
        assert_eq!(found(&config.replace("VALUE", "hunter2")), [path]);
        assert_eq!(found(&config.replace("VALUE", "12345")), [path]);
        assert_eq!(found(&config.replace("VALUE", "null").replace('\'', "")), [""; 0]);
    }
    for value in ["${SECRET}", "${SECRET}${PASSWORD}", "${SECRET:-}"] {
        assert_eq!(found(&format!("identity_hash_secret: '{value}'")), [""; 0], "{value}");
    }
    for value in ["${SECRET:-hunter2}", "$${SECRET}"] {
        assert_eq!(found(&format!("identity_hash_secret: '{value}'")).len(), 1, "{value}");
    }
    assert_eq!(found("identity_hash_secret: a${SECRET}").len(), 1);
    for (path, config) in [
        ("tier_lookup.postgres.url", "tier_lookup: { postgres: { url: 'VALUE' } }"),
        ("tier_lookup.redis.url", "tier_lookup: { redis: { url: 'VALUE' } }"),
        ("usage.postgres", "usage: { postgres: 'VALUE' }"),
    ] {
        for plain in [
            "postgres://me:hunter2@host/db",
            "postgres://host/db?user=me&password=hunter2",
            "host=a user=me password=hunter2",
            "host=a password = hunter2",
            "postgres://me:${SECRET}x@host/db",
        ] {
            assert_eq!(found(&config.replace("VALUE", plain)), [path], "{plain}");
        }
        for safe in [
            "postgres://me@host/db",
            "postgres://host:5432/db?user=me",
            "postgres://me:${SECRET}@host/db",
            "host=a user=me password=${SECRET}",
            "${SECRET}",
        ] {
            assert_eq!(found(&config.replace("VALUE", safe)), [""; 0], "{safe}");
        }
    }
}

/// Whatever is wrong around a secret, neither message nor excerpt shows it.
#[test]
fn no_secret_is_ever_shown() {
    let layouts = [
        "identity_hash_secret: hunter2\nlog: 5\n",
        "identity_hash_secret: [hunter2]\n",
        "identity_hash_secret:\n  - hunter2\n",
        "identity_hash_secret:\n  a: hunter2\n",
        "identity_hash_secret: |\n  hunter2\n  ${NOT_SET}\n",
        "identity_hash_secret: \"x${hunter2!}\"\n",
        "identity_hash_secret: \"${NOT_SET}hunter2\"\n",
        "identity_hash_secret: hunter2\nidentity_hash_secret: hunter2\n",
        "identity_hash_secert: hunter2\n",
        "identity_hash_secret: 'hunter2\n",
        "identity_hash_secret: hunter2: x\n",
        "identity_hash_secret: \"hunter2\" x\n",
        "{ \"identity_hash_secret\":\n\"hunter2\", log: 5 }\n",
        "identity: [jwt: { secret: hunter2, algorithm: HS256 }]\n",
        "identity: [{ jwt: { algorithms: HS256, 'secret' : 'hunter2' } }]\n",
        "identity:\n  - jwt:\n      secret: >-\n        hunter2\n      leeway: 1\n",
        "identity:\n  - jwt:\n      secert: hunter2\n",
        "identity:\n  - jwt: { secret:\n        hunter2, leeway: 1 }\n",
        "store: { redis: { url: 'redis://me:hunter2@host/x', timeout: 1 } }\n",
        "store: { redis: { url: 'redis://me:hunter2@host:x' } }\n",
        "store: { redis: { url: 'me:hunter2@host' } }\n",
        "store: { redis: { url: [redis://me:hunter2@host] } }\n",
        "store: { redis: { \"url\": \"redis://me:hunter2\\\n   @host\", timeout: 1 } }\n",
        "store: { redis: { urll: 'redis://me:hunter2@host' } }\n",
        "store: { redis: 'redis://me:hunter2@host' }\n",
        "store: 'redis://me:hunter2@host'\n",
        "upstream: { url: 'http://me:hunter2@host' }\n",
        "tier_lookup: { postgres: { url: 'host=a password=hunter2', pool: x } }\n",
        "tier_lookup: { postgres: { url: 'postgres://me:hunter2@host', pool: x } }\n",
        "tier_lookup: { redis: { url: 'redis://me:hunter2@host', pool: 1 } }\n",
        "usage: { postgres: 'postgres://a/b?password=hunter2', flush: 1 }\n",
        "usage: { postgres: [a, 'postgres://me:hunter2@host'] }\n",
    ];
    for config in layouts {
        let (errors, warnings) = match load_both(config, "", Overrides::default()) {
            Ok(loaded) => (Vec::new(), loaded.warnings),
            Err(errors) => (errors.errors.0, errors.warnings),
        };
        for told in errors.iter().chain(&warnings) {
            let all = format!("{told} {:?} {:?}", told.expected, told.suggestion);
            assert!(!all.contains("hunter"), "{config}{all}");
        }
    }
}

// ------------------------------------------------------------------ warnings against the limiter

#[derive(Clone, Default)]
struct Pure([State; 2]);

impl States for Pure {
    fn state(&mut self, index: usize) -> &mut State {
        &mut self.0[index]
    }
}

fn enforced(set: LimitSet) -> Limits {
    Limits { set, mode: Mode::Enforce }
}

fn number(number: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(number)
}

/// The keys of a tier's limits.
fn written(set: &LimitSet) -> String {
    let mut text = String::new();
    if let Some(Bucket { rate, burst }) = set.second {
        text += &format!("per_second: {rate}, burst: {burst}, ");
    }
    for (key, limit) in [("per_minute", set.minute), ("per_hour", set.hour)] {
        text += &limit.map_or(String::new(), |limit| format!("{key}: {limit}, "));
    }
    format!("{{ {text} }}")
}

/// Which limits of this tier are said never to bind.
fn never_bind(set: &LimitSet) -> Vec<String> {
    warnings("", &format!("tiers: {{ free: {} }}", written(set)))
        .into_iter()
        .filter(|warning| warning.message.ends_with("can never bind"))
        .map(|warning| warning.path.replace("tiers.free.", ""))
        .collect()
}

/// Whether some moment of the schedule is refused by one set and not by the other.
fn differ(set: LimitSet, other: LimitSet, schedule: impl Iterator<Item = u64>) -> bool {
    let (mut states, mut others) = (Pure::default(), Pure::default());
    schedule.into_iter().any(|now| {
        let now = Timestamp::from_micros(now);
        let one = check(&mut states, &[enforced(set)], 1, now).verdict;
        one != check(&mut others, &[enforced(other)], 1, now).verdict
    })
}

/// As much as can be, in one window: the whole burst where its first sub-bucket begins, and then
/// each token as it comes.
fn greedy(bucket: Bucket, seconds: u64) -> impl Iterator<Item = u64> {
    let (rate, burst) = (u64::from(bucket.rate.get()), u64::from(bucket.burst.get()));
    let burst = (0..burst).map(|_| START_US);
    burst.chain((1..=rate * seconds).map(move |token| START_US + (token * SECOND).div_ceil(rate)))
}

#[test]
fn the_bounds_of_what_never_binds_are_exact() {
    for (rate, burst) in [(1, 1), (1, 7), (2, 3), (5, 10), (20, 50)] {
        let bucket = Bucket { rate: number(rate).unwrap(), burst: number(burst).unwrap() };
        let second = Some(bucket);
        let only = LimitSet { second, ..LimitSet::default() };
        let most = burst + 61 * rate - 1;
        for (minute, binds) in [(most - 1, true), (most, false), (most + 1, false)] {
            let set = LimitSet { minute: number(minute), ..only };
            assert_eq!(never_bind(&set).is_empty(), binds, "{set:?}");
            assert_eq!(differ(set, only, greedy(bucket, 61)), binds, "{set:?}");
        }
        let most = burst + 3660 * rate - 1;
        for (hour, binds) in [(most - 1, true), (most, false)] {
            let set = LimitSet { hour: number(hour), ..only };
            assert_eq!(never_bind(&set).is_empty(), binds, "{set:?}");
            assert_eq!(differ(set, only, greedy(bucket, 3660)), binds, "{set:?}");
        }
    }
    for minute in [1, 2, 10] {
        let only = LimitSet { minute: number(minute), ..LimitSet::default() };
        // All of a minute's at once, and again as soon as the window has forgotten them.
        let bursts = (0..61).flat_map(|burst| {
            std::iter::repeat_n(
                START_US + burst * 61 * SECOND - 1_000 * u64::from(burst == 60),
                minute as usize + 1,
            )
        });
        for (hour, binds) in [(60 * minute - 1, true), (60 * minute, false)] {
            let set = LimitSet { hour: number(hour), ..only };
            assert_eq!(never_bind(&set).is_empty(), binds, "{set:?}");
            assert_eq!(differ(set, only, bursts.clone()), binds, "{set:?}");
        }
    }
}

fn any_set() -> impl Strategy<Value = LimitSet> {
    let bucket = prop::option::of((1_u32..6, 1_u32..12)).prop_map(|bucket| {
        bucket.map(|(rate, burst)| Bucket {
            rate: number(rate).unwrap(),
            burst: number(burst).unwrap(),
        })
    });
    let minute = prop::option::of(prop_oneof![1_u32..20, 60_u32..400]);
    let hour = prop::option::of(prop_oneof![1_u32..30, 60_u32..1_500, 3_600_u32..25_000]);
    (bucket, minute, hour).prop_map(|(second, minute, hour)| LimitSet {
        second,
        minute: minute.and_then(number),
        hour: hour.and_then(number),
        ..LimitSet::default()
    })
}

/// A rule's limits beside a tier's, most of them near to those.
fn any_tier_and_rule() -> impl Strategy<Value = (LimitSet, LimitSet)> {
    let near =
        |own: Option<NonZeroU32>, free: Option<NonZeroU32>, (kind, more): (u8, u32)| match kind {
            0 => None,
            1 => free,
            _ => own.and_then(|own| number(own.get() + more)).or(free),
        };
    let choice = || (0_u8..6, 0_u32..3);
    (any_set(), any_set(), choice(), choice(), choice()).prop_map(
        move |(tier, free, second, minute, hour)| {
            let wider = |bucket: Bucket| Bucket {
                rate: number(bucket.rate.get() + second.1).unwrap(),
                ..bucket
            };
            let rule = LimitSet {
                second: if second.0 == 0 { None } else { tier.second.map(wider) },
                minute: near(tier.minute, free.minute, minute),
                hour: near(tier.hour, free.hour, hour),
                ..LimitSet::default()
            };
            (tier, rule)
        },
    )
}

/// Gaps that let things run full, and that come to the edges of sub-buckets.
fn any_gaps() -> impl Strategy<Value = Vec<u64>> {
    let gap = prop_oneof![
        8 => Just(0_u64),
        6 => prop::sample::select(vec![SECOND / 5, SECOND / 2, SECOND, 1]),
        2 => (1_u64..62).prop_map(|seconds| seconds * SECOND),
        2 => (1_u64..62).prop_map(|seconds| seconds * SECOND - 1),
        1 => (1_u64..62).prop_map(|minutes| minutes * 60 * SECOND),
    ];
    prop::collection::vec(gap, 1..600)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_limit_that_is_said_never_to_bind_never_does(set in any_set(), gaps in any_gaps()) {
        let mut without = set;
        for key in never_bind(&set) {
            match key.as_str() {
                "per_minute" => without.minute = None,
                "per_hour" => without.hour = None,
                other => prop_assert!(false, "{}", other),
            }
        }
        let mut now = START_US;
        let schedule = gaps.into_iter().map(|gap| { now += gap; now });
        prop_assert!(!differ(set, without, schedule), "{:?}", set);
    }

    #[test]
    fn a_rule_that_is_said_never_to_refuse_never_does(
        (tier, rule) in any_tier_and_rule(),
        gaps in any_gaps(),
        others in prop::collection::vec((any::<bool>(), 1_u32..3), 600),
    ) {
        let text = format!(
            "tiers: {{ free: {} }}\nendpoints: [{{ name: a, path: /a, limits: {{ free: {} }} }}]",
            written(&tier), written(&rule)
        );
        let is_warned = warnings("", &text)
            .iter()
            .any(|warning| warning.path == "endpoints[0].limits.free");
        if !is_warned {
            return Ok(());
        }
        let scopes = [enforced(tier), enforced(rule)];
        let mut states = Pure::default();
        let mut now = START_US;
        for (gap, (is_rule, cost)) in gaps.into_iter().zip(others) {
            now += gap;
            let scopes = if is_rule { &scopes[..] } else { &scopes[..1] };
            let at = Timestamp::from_micros(now);
            let alone = check(&mut states.clone(), &scopes[..1], cost, at).verdict;
            let both = check(&mut states, scopes, cost, at).verdict;
            prop_assert_eq!(alone, both, "{}", text);
        }
    }
}

// ------------------------------------------------------------------- warnings against the router

/// Requests enough to meet every rule that [`any_rules`] makes, if any request can.
fn universe() -> Vec<(Method, &'static str, Option<&'static str>, HeaderMap)> {
    let methods = ["GET", "HEAD", "POST", "PURGE"].map(|text| text.parse::<Method>().unwrap());
    let paths =
        ["/", "//", "/a", "/A", "/a/", "/a/b", "/a/c", "/a//c", "/a/b/", "/a/b/c", "/b", "/%61"];
    let mut requests = Vec::new();
    for method in methods {
        for path in paths {
            for host in [None, Some("one.example"), Some("two.example")] {
                for values in [&[][..], &["1"], &["2"], &["1", "2"]] {
                    let mut headers = HeaderMap::new();
                    for value in values {
                        headers.append("x-a", HeaderValue::from_static(value));
                    }
                    requests.push((method.clone(), path, host, headers));
                }
            }
        }
    }
    requests
}

fn any_rules() -> impl Strategy<Value = Vec<String>> {
    let path = prop::sample::select(vec![
        "/",
        "/**",
        "/a",
        "/a/",
        "/a/**",
        "/a/b",
        "/a/{x}",
        "/a/{x}/**",
        "/{x}",
        "/A",
    ]);
    let methods = prop::sample::select(vec![
        "",
        "",
        "GET",
        "HEAD",
        "POST",
        "GET, POST",
        "TRACE",
        "TRACE, CONNECT",
        "TRACE, POST",
    ]);
    let host = prop::sample::select(vec!["", "", "host: one.example, "]);
    let value = prop::sample::select(vec!["", "", "", "1", "2", "1 ", "\\t2"]);
    let matching = prop::sample::select(vec!["lenient", "lenient", "strict"]);
    let rule = (path, methods, host, value, matching).prop_map(
        |(path, methods, host, value, matching)| {
            let value = if value.is_empty() {
                String::new()
            } else {
                format!("headers: {{ X-A: \"{value}\" }}, ")
            };
            format!("path: \"{path}\", methods: [{methods}], {host}{value}match: {matching}")
        },
    );
    prop::collection::vec(rule, 1..10)
}

/// Leaves out rules that are as specific as one before, until the rest compiles.
fn compiled(mut rules: Vec<String>) -> (Vec<String>, Loaded) {
    loop {
        let text: String = rules
            .iter()
            .enumerate()
            .map(|(index, rule)| format!("- {{ name: r{index}, {rule} }}\n"))
            .collect();
        match load_both("", &format!("endpoints:\n{text}"), Overrides::default()) {
            Ok(loaded) => return (rules, loaded),
            Err(errors) => {
                let path = &errors.errors.0.last().unwrap().path;
                let index = path["endpoints[".len()..].split(']').next().unwrap();
                rules.remove(index.parse().unwrap());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_rule_is_warned_of_where_no_request_meets_it(rules in any_rules()) {
        let (rules, loaded) = compiled(rules);
        let mut is_met = vec![false; rules.len()];
        for (method, path, host, headers) in universe() {
            let facts = RequestFacts {
                method: &method,
                path,
                host,
                query: None,
                peer: "203.0.113.9".parse().unwrap(),
                headers: &headers,
                certificate: None,
            };
            let plan = loaded.policy.plan(&facts, &loaded.policy.anonymous(&facts)).unwrap();
            if let Some(rule) = plan.endpoint {
                is_met[usize::from(rule.0)] = true;
            }
        }
        for (index, is_met) in is_met.into_iter().enumerate() {
            let prefix = format!("endpoints[{index}].");
            let is_warned = loaded.warnings.iter().any(|warning| {
                warning.path.starts_with(&prefix) && warning.message == "no request meets this rule"
            });
            prop_assert_eq!(is_warned, !is_met, "rule {} of {:#?}", index, rules);
        }
    }
}

// --------------------------------------------------------------------------------- JSON Schemas

fn schema(file: &str) -> Value {
    match file {
        "tiers" => of_tiers(),
        "keys" => of_keys(),
        _ => of_config(),
    }
}

fn parsed(yaml: &str) -> Option<Value> {
    serde_yaml::from_str(yaml).ok()
}

#[test]
fn the_shipped_schemas_are_those_of_the_command() {
    for (argument, file) in [("config", "tollgate"), ("tiers", "tiers"), ("keys", "keys")] {
        let path = format!("config/schema/{file}.schema.json");
        let output = Command::new(env!("CARGO_BIN_EXE_tollgate"))
            .args(["schema", argument])
            .output()
            .unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &[][..]));
        let shipped = std::fs::read_to_string(repository(&path)).unwrap();
        assert!(
            String::from_utf8(output.stdout).unwrap() == shipped,
            "{path} is not what `tollgate schema {argument}` prints; run it again"
        );
    }
}

#[test]
fn every_shipped_file_names_its_schema_and_keeps_to_it() {
    let mut count = 0;
    for entry in std::fs::read_dir(repository("config")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let named = text.lines().next().unwrap().strip_prefix("# yaml-language-server: $schema=./");
        let named = named.unwrap_or_else(|| panic!("{}: no schema", path.display()));
        let schema: Value =
            serde_json::from_str(&std::fs::read_to_string(path.with_file_name(named)).unwrap())
                .unwrap();
        let validator = jsonschema::draft7::new(&schema).unwrap();
        let value = parsed(&text).unwrap();
        if let Err(error) = validator.validate(&value) {
            panic!("{}: {}: {error}", path.display(), error.instance_path());
        }
        count += 1;
    }
    assert_eq!(count, 11);
}

#[test]
fn schemas_are_schemas_and_describe_every_key() {
    fn walk(schema: &Value, path: &str, keys: &mut usize) {
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{key}");
            let description = property["description"].as_str().unwrap_or_default();
            assert!(!description.is_empty(), "{path} has no description");
            assert!(!description.contains("[`"), "{path} speaks to readers of the source");
            walk(property, &path, keys);
            walk(&property["items"], &path, keys);
            walk(&property["additionalProperties"], &path, keys);
            *keys += 1;
        }
        if schema.get("properties").is_some() {
            assert_eq!(schema["additionalProperties"], false, "{path}");
        }
    }
    let mut keys = 0;
    for file in ["config", "tiers"] {
        let schema = schema(file);
        jsonschema::draft7::meta::validate(&schema).unwrap();
        walk(&schema, file, &mut keys);
    }
    assert!(keys > 150, "{keys}");
    let config = of_config();
    let server = &config["properties"]["server"]["properties"];
    assert_eq!(server["max_header_bytes"]["default"], "64KiB");
    assert_eq!(server["drain_timeout"]["default"], "30s");
    assert_eq!(server["proxy_protocol"]["default"], "off");
    assert_eq!(config["properties"]["usage"]["properties"]["retention"]["default"], "90d");
}

/// What the reader takes, editors must not mark; what it refuses for its shape, they must.
#[test]
fn schemas_take_what_the_reader_takes() {
    let is_valid = |file: &str, text: &str| {
        jsonschema::draft7::new(&schema(file)).unwrap().is_valid(&parsed(text).unwrap())
    };
    for good in [
        "",
        "server:\nstore:\n  redis:\n",
        "server: { workers: 3, drain_timeout: 0, max_header_bytes: 65536 }",
        "server: { workers: null, idle_timeout: 1h30m, body_timeout: 1d1ms, max_body_bytes: 10 MiB }",
        "server:\n  workers: ${WORKERS:-2}\n  drain_timeout: ${DRAIN}\n  proxy_protocol: ${PP}\n  max_body_bytes: ${MAX}",
        "server: { proxy_protocol: off }",
        "server: { proxy_protocol: false }",
        "server: { proxy_protocol: No }",
        "upstream: { preserve_host: no }",
        "upstream:\n  preserve_host: ${KEEP}\n",
        "log: { access: stdout, query: on }",
        "log: { access: false }",
        "identity_hash_secret: 12345",
        "store: { redis: {} }",
        "store: { redis: { expected_replicas: null } }",
        "identity: [ip: { ipv4_prefix: 24 }]",
        "tracing: { sample: 0.5 }",
        "tracing: { sample: 1 }",
    ] {
        assert!(is_valid("config", good), "{good}");
    }
    for good in [
        "tiers: { free: {}, gold: { per_second: 5, on_failure: open } }",
        "endpoints: [{ name: 404, path: /a, headers: { X-A: 1 }, methods: [GET], slow_threshold: 5s }]",
        "tests: [{ request: GET /, identity: 'user:42', subscription: pro, expect: { cost: 1 } }]",
        "mode:\n",
    ] {
        assert!(is_valid("tiers", good), "{good}");
    }
    for (file, bad) in [
        ("config", "sever: {}"),
        ("config", "server: { liste: 1 }"),
        ("config", "server: { header_timeout: 10 }"),
        ("config", "server: { header_timeout: 30m1h }"),
        ("config", "server: { header_timeout: '' }"),
        ("config", "server: { max_header_bytes: 64K }"),
        ("config", "server: { listeners: [{}] }"),
        ("config", "server: { expose: [metric] }"),
        ("config", "server: { workers: 4294967296 }"),
        ("config", "store: { redis: { leases: on } }"),
        ("config", "- a"),
        ("tiers", "tiers: { free: }"),
        ("tiers", "endpoints: [{ path: /a }]"),
        ("tiers", "endpoints: [{ name: a }]"),
        ("tiers", "tests: [{}]"),
        ("tiers", "mode: off"),
        ("keys", ""),
        ("keys", "keys: [{ id: a, sha256: abc }]"),
    ] {
        assert!(!is_valid(file, bad), "{bad}");
    }
}

#[test]
fn schemas_refuse_what_the_reader_refuses_for_its_shape() {
    let validators =
        ["config", "tiers"].map(|file| jsonschema::draft7::new(&schema(file)).unwrap());
    let mut count = 0;
    let vectors = include_str!("vectors/config_errors.txt");
    for block in vectors.split("----\n").skip(1) {
        let (text, expected) = block.split_once("=> ").unwrap();
        let validator = &validators[usize::from(expected.starts_with("tiers.yaml"))];
        let is_of_shape = [
            "unknown key",
            "expected a whole number",
            "expected a list",
            "expected a mapping",
            "expected true or false",
            "expected one of local",
            "expected stale",
            "expected one of lenient",
            "expected one of enforce",
            ".name: missing",
            "].path: missing",
            ".request: missing",
            ".address: missing",
        ]
        .iter()
        .any(|words| expected.contains(words));
        let value = parsed(text).unwrap();
        if is_of_shape {
            assert!(!validator.is_valid(&value), "{text}");
            count += 1;
        } else if let Err(error) = validator.validate(&value) {
            // Not wrong of them; but then it is one of shape, and the list above should say so.
            panic!("{text}: {error}");
        }
    }
    assert!(count > 8, "{count}");
}
