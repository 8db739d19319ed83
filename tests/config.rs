//! From the operator's files to settings and a policy, and every way in which that goes wrong.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use tollgate::config::compile::{ResetForm, Settings};
use tollgate::config::compile_upstream::UpstreamNeed;
use tollgate::config::load::{LoadRequest, Loaded, Overrides, load};
use tollgate::config::report::ConfigErrors;
use tollgate::config::url;
use tollgate::config::value::Redacted;
use tollgate::limiter::quota::Mode;
use tollgate::policy::compiled::FailureMode;
use tollgate::redis::target::{Form, RedisAddress};

/// Loads two texts, or the defaults in their place, with some overrides.
fn load_texts(
    config: Option<&[u8]>,
    tiers: Option<&[u8]>,
    overrides: Overrides,
) -> Result<Loaded, ConfigErrors> {
    let directory = tempfile::tempdir().unwrap();
    let written = |name: &str, text: Option<&[u8]>| {
        text.map(|text| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        })
    };
    let (config, tiers) = (written("tollgate.yaml", config), written("tiers.yaml", tiers));
    let env = |name: &str| match name {
        "PORT" => Some("8085".to_owned()),
        "EMPTY" => Some(String::new()),
        "REDIS_URL" => Some("redis://me:hunter2@cache:7000/2".to_owned()),
        "HASH_SECRET" => Some("0123456789abcdef".to_owned()),
        _ => None,
    };
    let loaded = load(&LoadRequest {
        config: config.as_deref(),
        tiers: tiers.as_deref(),
        overrides,
        upstream: UpstreamNeed::Optional,
        env: &env,
    });
    let prefix = format!("{}/", directory.path().display());
    loaded.map_err(|mut errors| {
        for error in &mut errors.0 {
            error.file = error.file.as_ref().map(|file| file.replace(&prefix, ""));
        }
        errors
    })
}

fn config(text: &str) -> Result<Loaded, ConfigErrors> {
    load_texts(Some(text.as_bytes()), None, Overrides::default())
}

fn tiers(text: &str) -> Result<Loaded, ConfigErrors> {
    load_texts(None, Some(text.as_bytes()), Overrides::default())
}

/// The first line of every error.
fn heads(result: Result<Loaded, ConfigErrors>) -> Vec<String> {
    match result {
        Ok(_) => Vec::new(),
        Err(errors) => errors
            .0
            .iter()
            .map(|error| error.to_string().lines().next().unwrap().to_owned())
            .collect(),
    }
}

#[track_caller]
fn check_config(text: &str, expected: &[&str]) {
    assert_eq!(heads(config(text)), expected, "in\n{text}");
}

#[track_caller]
fn check_tiers(text: &str, expected: &[&str]) {
    assert_eq!(heads(tiers(text)), expected, "in\n{text}");
}

fn warnings(loaded: &Loaded) -> Vec<String> {
    let short = |warning: &tollgate::config::report::ConfigError| {
        format!("{}: {}", warning.path, warning.message)
    };
    loaded.warnings.iter().map(short).collect()
}

fn addresses(settings: &Settings) -> Vec<String> {
    settings.server.listeners.iter().map(|it| it.address.to_string()).collect()
}

fn repository(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

// ------------------------------------------------------------------------------- what is right

#[test]
fn without_files_the_four_tiers_hold_in_memory() {
    let overrides = Overrides { upstream: Some("http://127.0.0.1:1".into()), ..Default::default() };
    let loaded = load(&LoadRequest {
        config: None,
        tiers: None,
        overrides,
        upstream: UpstreamNeed::Required,
        env: &|_| None,
    })
    .unwrap();
    assert_eq!(addresses(&loaded.settings), ["0.0.0.0:8080"]);
    assert_eq!(loaded.settings.admin_listen, "127.0.0.1:9900".parse().unwrap());
    assert!(loaded.settings.redis.is_none() && loaded.warnings.is_empty());
    let tier = |name: &str, second: u32, burst: u32, minute: u32, hour: u32| {
        let tier = loaded.policy.tiers().iter().find(|tier| *tier.name == *name).unwrap();
        let bucket = tier.limits.second.unwrap();
        assert_eq!((bucket.rate.get(), bucket.burst.get()), (second, burst));
        assert_eq!(tier.limits.minute.unwrap().get(), minute);
        assert_eq!(tier.limits.hour.unwrap().get(), hour);
    };
    tier("free", 5, 10, 100, 1000);
    tier("premium", 20, 50, 500, 10_000);
    tier("enterprise", 100, 200, 3000, 50_000);
    tier("internal", 1000, 2000, 30_000, 500_000);
}

#[test]
fn an_empty_file_is_all_defaults() {
    let nothing = load_texts(None, None, Overrides::default()).unwrap();
    for empty in ["", "\n", "# nothing\n", "---\n", "{}", "null", "\u{feff}"] {
        let loaded =
            load_texts(Some(empty.as_bytes()), Some(empty.as_bytes()), Overrides::default());
        let loaded = loaded.unwrap();
        assert_eq!(loaded.settings, nothing.settings, "{empty:?}");
        assert_eq!(loaded.policy.tiers().len(), 4, "{empty:?}");
        // Of a policy it is a mishap as a rule, which those that run would refuse.
        assert_eq!(loaded.warnings.len(), usize::from(empty != "{}"), "{empty:?}");
    }
    // A section whose every line is commented out is as good as none.
    let loaded = config("server:\nstore:\n  redis:\nidentity:\nlog: ~\n").unwrap();
    assert_eq!(loaded.settings, nothing.settings);
}

/// One mistake, one error: what is said of the value is not said of its absence, too.
#[test]
fn a_missing_secret_is_told_once_and_its_variable_is_shown() {
    let errors = config("identity:\n  - jwt:\n      secret: ${NOPE}\n").unwrap_err();
    assert_eq!(
        errors.to_string(),
        "\
tollgate.yaml:3:15: identity[0].jwt.secret: environment variable NOPE is not set
  3 |       secret: ${NOPE}
    |               ^^^^^^^
  = set it, or give a default: ${NOPE:-default}"
    );
}

#[test]
fn a_bad_secret_is_told_beside_bad_algorithms() {
    let text = "identity:\n  - jwt:\n      algorithms: [none]\n      secret: ''\n";
    let found: Vec<String> =
        config(text).unwrap_err().0.into_iter().map(|error| error.path).collect();
    assert_eq!(found, ["identity[0].jwt.algorithms[0]", "identity[0].jwt.secret"]);
}

#[test]
fn files_in_each_others_place_are_noticed() {
    let suggestions = |result: Result<Loaded, ConfigErrors>| -> Vec<Option<String>> {
        result.unwrap_err().0.into_iter().map(|error| error.suggestion).collect()
    };
    let policy = "a key of the policy, which --tiers names".to_owned();
    assert_eq!(suggestions(config("identities: {}\n")), [Some(policy)]);
    let configuration = "a key of the configuration, which --config names".to_owned();
    assert_eq!(suggestions(tiers("identity: []\n")), [Some(configuration)]);
    assert_eq!(
        suggestions(tiers("tiers: { free: { per_hour: '1_000' } }\n")),
        [Some("write 1000".into())]
    );
}

#[test]
fn the_shipped_files_load_cleanly_and_hold_the_defaults() {
    let files = |config: &str, tiers: Option<&str>| {
        let (config, tiers) = (repository(config), tiers.map(repository));
        load(&LoadRequest {
            config: Some(&config),
            tiers: tiers.as_deref(),
            overrides: Overrides::default(),
            upstream: UpstreamNeed::Required,
            env: &|_| None,
        })
        .unwrap_or_else(|errors| panic!("{errors}"))
    };
    let loaded = files("config/tollgate.yaml", Some("config/tiers.yaml"));
    assert_eq!(warnings(&loaded), [""; 0]);
    assert_eq!(loaded.tests.len(), 4);
    let minimal = files("config/minimal.yaml", None);
    assert_eq!(loaded.settings, minimal.settings, "tollgate.yaml shows another default");
    let replicas = files("config/replicas.yaml", None);
    assert!(replicas.settings.redis.is_some());
    // Each of the forms that are shown can be read.
    let text = std::fs::read_to_string(repository("config/redis-forms.yaml")).unwrap();
    let urls = text
        .lines()
        .filter_map(|line| line.trim_start_matches([' ', '#']).strip_prefix("url: redis"));
    let forms: Vec<bool> = urls
        .map(|rest| {
            let url = format!("redis{rest}")
                .replace("${REDIS_PASSWORD:-}", "pw")
                .replace("${REDIS_PASSWORD}", "pw");
            let read = url::redis_without_trust(&url)
                .unwrap_or_else(|it| panic!("{url}: {}", it.message()));
            matches!(read.form, Form::Single(_))
        })
        .collect();
    assert_eq!(forms, [true, true, true, false, false]);
    // What the shipped file shows commented out is written as it would be read.
    let text = std::fs::read_to_string(repository("config/tollgate.yaml")).unwrap();
    let shown: String = text
        .lines()
        .skip_while(|line| !line.starts_with("  # redis:"))
        .take_while(|line| line.starts_with("  #"))
        .map(|line| line.replacen("  # ", "  ", 1) + "\n")
        .collect();
    let with_redis = config(&format!("store:\n{shown}")).unwrap();
    let by_default = config("store: { redis: {} }").unwrap();
    assert_eq!(with_redis.settings, by_default.settings);
}

/// The contract's file as it is printed, what is optional in it aside.
const EVERY_KEY: &str = "\
server:
  listen: 0.0.0.0:8080
  listeners: null
  workers: 0
  trusted_proxies: []
  proxy_protocol: off
  expose: []
  max_connections: 20000
  max_connections_per_ip: 0
  header_timeout: 10s
  idle_timeout: 60s
  body_timeout: 30s
  max_header_bytes: 64KiB
  max_body_bytes: 0
  drain_timeout: 30s
admin: { listen: 127.0.0.1:9900, token_file: null }
upstream:
  url: http://127.0.0.1:8081
  urls: null
  connect_timeout: 2s
  response_timeout: 60s
  idle_timeout: 60s
  tunnel_idle_timeout: 1h
  max_idle_connections: 256
  retries: 1
  preserve_host: true
  tls: { ca: null, server_name: null, client_cert: null, client_key: null }
  dns_ttl: 30s
  health_check: { path: null, interval: 5s, timeout: 2s, rise: 2, fall: 3 }
store:
  redis:
    url: redis://127.0.0.1:6379/0
    timeout: 20ms
    on_failure: local
    key_prefix: tg
    leases: auto
    expected_replicas: null
    tls: { ca: null, client_cert: null, client_key: null }
  memory: { max_identities: 1000000 }
identity:
  - ip: { ipv4_prefix: 32, ipv6_prefix: 64 }
identity_hash_secret: null
tier_lookup: null
headers: { x_ratelimit: true, reset: epoch, ietf: off, expose_cors: true }
shedding: { mode: off, max_in_flight: 1024 }
slow_thresholds: { upstream: 1s, redis: 10ms, database: 100ms, jwks: 1s }
self_service: { path: null }
usage: { sink: off, flush: 1s, dir: /var/lib/tollgate/usage, retention: 90d, postgres: null }
log: { level: info, format: json, access: off, query: false }
tracing: { otlp_endpoint: null, sample: 0.01 }
";

#[test]
fn every_key_is_accepted_at_its_default() {
    let settings = config(EVERY_KEY).unwrap().settings;
    let defaults = config("upstream: { url: 'http://127.0.0.1:8081' }\nstore: { redis: {} }\n");
    assert_eq!(settings, defaults.unwrap().settings);
    for other in ["'off'", "false", "Off", "no"] {
        let again = config(&EVERY_KEY.replace(" off", &format!(" {other}"))).unwrap();
        assert_eq!(again.settings, settings, "{other}");
    }
}

#[test]
fn what_is_built_is_obeyed() {
    let loaded = config(
        "\
server:
  listeners: [{ address: 127.0.0.1:0 }, { address: '[::1]:81' }]
  workers: 3
  trusted_proxies: [10.0.0.0/8, 192.0.2.1]
  expose: [health, metrics]
  max_connections: 7
  header_timeout: 1s
  idle_timeout: 2s
  body_timeout: 3s
  max_header_bytes: 16KiB
  max_body_bytes: 10MiB
  drain_timeout: 0
admin: { listen: localhost:9 }
upstream:
  url: http://Backend:90/
  connect_timeout: 250ms
  response_timeout: 1m
  idle_timeout: 1h30m
  tunnel_idle_timeout: 1d
  max_idle_connections: 0
  retries: 0
  preserve_host: no
  dns_ttl: 5s
store:
  redis: { url: 'redis://me:pw@cache/3', timeout: 5ms, on_failure: closed, key_prefix: a, leases: off }
  memory: { max_identities: 5 }
identity: [ip: { ipv4_prefix: 24, ipv6_prefix: 56 }]
headers: { x_ratelimit: off, reset: delta, expose_cors: false }
slow_thresholds: { upstream: 2s, redis: 3ms }
log: { level: debug, format: human }
",
    );
    let settings = loaded.unwrap().settings;
    let server = &settings.server;
    assert_eq!(addresses(&settings), ["127.0.0.1:0", "[::1]:81"]);
    assert_eq!((server.workers, server.max_connections, server.max_header_bytes), (3, 7, 16 << 10));
    assert!(server.expose_health && server.expose_metrics);
    assert_eq!(server.max_body_bytes.unwrap().get(), 10 << 20);
    assert_eq!(server.header_timeout, Duration::from_secs(1));
    assert_eq!(server.drain_timeout, Duration::ZERO);
    let upstream = settings.upstream.unwrap();
    assert_eq!((upstream.members[0].url.authority().as_str(), upstream.retries), ("backend:90", 0));
    assert_eq!(upstream.idle_timeout, Duration::from_secs(5400));
    assert!(!upstream.preserve_host);
    let redis = settings.redis.unwrap();
    assert_eq!(
        redis.url.form,
        Form::Single(RedisAddress::Tcp { host: "cache".into(), port: 6379 })
    );
    assert_eq!((redis.url.database, redis.on_failure), (3, FailureMode::Closed));
    assert!(!format!("{redis:?}").contains("pw"));
    assert_eq!(settings.max_identities, 5);
    assert_eq!((settings.identity.prefixes.ipv4, settings.identity.prefixes.ipv6), (24, 56));
    assert_eq!(settings.trusted_proxies.len(), 2);
    assert!(!settings.headers.x_ratelimit && !settings.headers.expose_cors);
    assert_eq!(settings.headers.reset, ResetForm::Delta);
    assert_eq!((settings.log.level, settings.log.is_json), ("debug", false));
}

#[test]
fn a_policy_is_compiled_in_the_order_of_the_file() {
    let loaded = tiers(
        "\
default_tier: b
tiers:
  b: { per_second: 3 }
  a: { per_minute: 7, on_failure: open }
  none: {}
subscriptions: { Pro: a }
networks: { 10.0.0.0/8: a, 192.0.2.7: b }
identities: { 'ip:2001:db8:1:2:3::4': deny, 'ip:2001:db8:1:9::/64': a, user:42: a, 'key:k': none }
mode: shadow
endpoints:
  - name: one
    path: /one/**
    methods: [GET, PURGE]
    host: api.example.com
    headers: { X-Kind: v2 }
    match: strict
    slow_threshold: 5s
    on_failure: closed
    mode: shadow
    limits: { b: { per_second: 2, burst: 9 }, any: { per_hour: 4 }, none: {} }
  - { name: two, path: /two, cost: 3, limits: {} }
",
    )
    .unwrap();
    let policy = &loaded.policy;
    let names: Vec<&str> = policy.tiers().iter().map(|tier| &*tier.name).collect();
    assert_eq!(names, ["b", "a", "none"]);
    assert_eq!(policy.tiers()[0].limits.second.unwrap().burst.get(), 3, "burst is the rate");
    assert_eq!(policy.tiers()[1].on_failure, Some(FailureMode::Open));
    let rule = &policy.rules()[0];
    assert_eq!((&*rule.name, rule.cost, rule.mode), ("one", 1, Mode::Shadow));
    assert_eq!(rule.slow_threshold, Some(Duration::from_secs(5)));
    assert_eq!(rule.on_failure, Some(FailureMode::Closed));
    assert_eq!(rule.limits[0].unwrap().second.unwrap().burst.get(), 9);
    assert_eq!(rule.limits[1].unwrap().hour.unwrap().get(), 4, "any holds for who is not named");
    assert_eq!(rule.limits[2], None, "a tier that is named is not any");
    assert_eq!(policy.rules()[1].cost, 3);
}

#[test]
fn the_hash_is_of_the_policy_not_of_its_layout() {
    let hash = |text: &str| tiers(text).unwrap().policy_hash;
    let one = hash("tiers: { free: { per_second: 5 } }");
    assert_eq!(one, hash("# comment\ntiers:\n  free:\n    per_second:   5\n"));
    assert_ne!(one, hash("tiers: { free: { per_second: 6 } }"));
    assert_eq!(one.len(), 64);
}

#[test]
fn anchors_are_read() {
    let loaded = tiers("tiers: { free: &f { per_second: 5 }, gold: *f }").unwrap();
    assert_eq!(loaded.policy.tiers()[1].limits.second.unwrap().rate.get(), 5);
}

// ------------------------------------------------------------------------------ the environment

#[test]
fn variables_stand_for_any_value() {
    let loaded = config(
        "\
server: { listen: '127.0.0.1:${PORT}', workers: \"${WORKERS:-2}\" }
upstream: { url: 'http://${HOST:-backend}:${PORT}' }
store:
  redis:
    url: ${REDIS_URL}
admin:
  token_file: ${EMPTY}
",
    );
    // A quoted number is text, as everywhere in YAML.
    assert_eq!(
        heads(loaded),
        ["tollgate.yaml:1:49: server.workers: \"2\", expected a whole number from 0 to 4294967295"]
    );
    let loaded = config(
        "\
server:
  listen: 127.0.0.1:${PORT}
  workers: ${WORKERS:-2}
store:
  redis:
    url: ${REDIS_URL}
admin:
  token_file: ${EMPTY}
",
    );
    let settings = loaded.unwrap().settings;
    assert_eq!((settings.server.listeners[0].address.port(), settings.server.workers), (8085, 2));
    assert_eq!(settings.redis.unwrap().url.account.password.as_deref(), Some("hunter2"));
}

#[test]
fn a_missing_variable_is_named_at_its_place() {
    let result =
        config("server:\n  workers: ${NOPE}\n  listen: '0.0.0.0:${NOPE_2}'\n  body_timeout: 0\n");
    let errors = result.unwrap_err();
    assert_eq!(
        errors.to_string(),
        "\
tollgate.yaml:2:12: server.workers: environment variable NOPE is not set
  2 |   workers: ${NOPE}
    |            ^^^^^^^
  = set it, or give a default: ${NOPE:-default}
tollgate.yaml:3:20: server.listen: environment variable NOPE_2 is not set
  3 |   listen: '0.0.0.0:${NOPE_2}'
    |                    ^^^^^^^^^
  = set it, or give a default: ${NOPE_2:-default}
tollgate.yaml:4:17: server.body_timeout: 0, expected a duration above zero
  4 |   body_timeout: 0
    |                 ^"
    );
}

#[test]
fn a_variable_in_braces_asks_for_quotes() {
    let errors = config("store: { redis: { url: ${REDIS_URL} } }\n").unwrap_err();
    assert!(errors.to_string().contains("stands in quotes"), "{errors}");
}

#[test]
fn a_secret_comes_from_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("url");
    let text = format!("store:\n  redis:\n    url_file: {}\n", path.display());
    let missing = heads(config(&text));
    assert!(missing[0].starts_with("tollgate.yaml:3:15: store.redis.url_file: "), "{missing:?}");
    assert!(missing[0].contains("cannot be read: No such file"), "{missing:?}");
    std::fs::write(&path, "redis://:hunter2@host/0\n").unwrap();
    let redis = config(&text).unwrap().settings.redis.unwrap();
    assert_eq!(redis.url.account.password.as_deref(), Some("hunter2"));
    std::fs::write(&path, "redis://:hunter2@host/x\n").unwrap();
    let errors = config(&text).unwrap_err();
    assert!(errors.to_string().contains("database \"x\""), "{errors}");
    assert!(!errors.to_string().contains("hunter2"), "{errors}");
    check_config(
        "store: { redis: { url: 'redis://a', url_file: /x } }",
        &[
            "tollgate.yaml:1:37: store.redis.url_file: given beside store.redis.url, expected one of the two",
        ],
    );
}

// ----------------------------------------------------------------------------- the command line

#[test]
fn identities_are_hashed_with_a_secret_of_the_file_or_of_its_own() {
    let secret_of = |text: &str| {
        let loaded = config(text).unwrap();
        assert!(!format!("{:?}", loaded.settings).contains("0123456789"));
        let secret = loaded.settings.redis.as_ref().and_then(|it| it.identity_secret.clone());
        (secret.map(|it| it.expose().to_owned()), warnings(&loaded))
    };
    let given = Some("0123456789abcdef".to_owned());
    let no_warning = Vec::<String>::new();
    assert_eq!(secret_of("store: { redis: {} }"), (None, no_warning.clone()));
    let text = "store: { redis: {} }\nidentity_hash_secret: ${HASH_SECRET}\n";
    assert_eq!(secret_of(text), (given.clone(), no_warning.clone()));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    std::fs::write(&path, "0123456789abcdef\n").unwrap();
    let text = format!("store: {{ redis: {{}} }}\nidentity_hash_secret_file: {}\n", path.display());
    assert_eq!(secret_of(&text), (given, no_warning));
    // Where nothing is stored in Redis there is nothing to hash.
    let without = "identity_hash_secret: ${HASH_SECRET}\n";
    let warned = "identity_hash_secret: without effect: there is no store.redis".to_owned();
    assert_eq!(secret_of(without), (None, vec![warned]));

    std::fs::write(&path, "hunter2\n").unwrap();
    let errors = config(&text).unwrap_err().to_string();
    assert!(
        errors.contains("identity_hash_secret_file: 7 bytes, expected at least 16"),
        "{errors}"
    );
    assert!(errors.contains("openssl rand -hex 32") && !errors.contains("hunter"), "{errors}");
}

#[test]
fn options_stand_in_for_the_file() {
    let overrides = Overrides {
        upstream: Some("http://other:1".into()),
        listen: Some("127.0.0.1:0".into()),
        admin: Some("127.0.0.1:1".into()),
        redis: Some(Redacted::new("redis://host:7/1")),
    };
    let file = "\
server: { listeners: [{ address: 0.0.0.0:80 }, { address: 0.0.0.0:81 }] }
upstream: { url: 'htpp://wrong' }
store: { redis: { timeout: 7ms } }
";
    let settings = load_texts(Some(file.as_bytes()), None, overrides).unwrap().settings;
    assert_eq!(addresses(&settings), ["127.0.0.1:0"]);
    assert_eq!(settings.upstream.unwrap().members[0].url.authority(), "other:1");
    let redis = settings.redis.unwrap();
    assert_eq!(redis.timeout, Duration::from_millis(7), "--redis is the URL only");
    assert_eq!(redis.url.form, Form::Single(RedisAddress::Tcp { host: "host".into(), port: 7 }));
}

#[test]
fn wrong_options_are_named() {
    let overrides = Overrides {
        upstream: Some("htpp://127.0.0.1:1".into()),
        listen: Some("8080".into()),
        admin: Some("nowhere".into()),
        redis: Some(Redacted::new("reddis://me:hunter2@host")),
    };
    let errors = load_texts(Some(EVERY_KEY.as_bytes()), None, overrides).unwrap_err();
    let expected = "\
--listen: \"8080\", expected ADDRESS:PORT, such as 0.0.0.0:8080
  = did you mean \"0.0.0.0:8080\"?
--admin: \"nowhere\", expected ADDRESS:PORT, such as 0.0.0.0:8080
--upstream: scheme \"htpp\", expected one of http, https, h2c, unix
  = did you mean \"http://127.0.0.1:1\"?
--redis: scheme \"reddis\", expected one of redis, redis+unix, rediss, redis-cluster, \
rediss-cluster, redis-sentinel, rediss-sentinel
  = did you mean \"redis://***@host\"?";
    assert_eq!(errors.to_string(), expected);
    assert_eq!(errors.0[2].path, "upstream.url");
}

#[test]
fn an_upstream_is_asked_for_where_one_is_needed() {
    let load = |config: Option<&Path>| {
        load(&LoadRequest {
            config,
            tiers: None,
            overrides: Overrides::default(),
            upstream: UpstreamNeed::Required,
            env: &|_| None,
        })
    };
    let missing = "upstream.url: not set, expected the backend's URL\n  \
                   = give --upstream URL or upstream.url";
    assert_eq!(load(None).unwrap_err().to_string(), missing);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.yaml");
    std::fs::write(&path, "log: {}\nupstream:\n  retries: 0\n").unwrap();
    let errors = load(Some(&path)).unwrap_err();
    assert_eq!((errors.0[0].line, errors.0[0].column), (Some(2), Some(1)));
}

// -------------------------------------------------------------------------------- what is wrong

#[test]
fn an_error_shows_the_place_and_what_was_meant() {
    let errors =
        tiers("tiers:\n  free:    { per_second: 5 }\n  premium: { per_second: 5, bust: 0 }\n");
    assert_eq!(
        errors.unwrap_err().to_string(),
        "\
tiers.yaml:3:29: tiers.premium.bust: unknown key, expected one of per_second, burst, per_minute, \
per_hour, per_day, per_month, concurrency, priority, on_failure
  3 |   premium: { per_second: 5, bust: 0 }
    |                             ^^^^
  = did you mean \"burst\"?"
    );
    let errors = tiers("tiers: { free: {} }\ndefault_tier: fre\n").unwrap_err();
    assert_eq!(
        errors.to_string(),
        "\
tiers.yaml:2:15: default_tier: tier \"fre\" is not defined, expected free
  2 | default_tier: fre
    |               ^^^
  = did you mean \"free\"?"
    );
    let error = &errors.0[0];
    assert_eq!(
        (error.line, error.column, error.path.as_str()),
        (Some(2), Some(15), "default_tier")
    );
    assert_eq!(error.expected.as_deref(), Some("free"));
}

#[test]
fn wrong_text() {
    check_config(
        "server:\n\tlisten: x\n",
        &[
            "tollgate.yaml:2:2: invalid YAML: tabs disallowed within this context (block indentation)",
        ],
    );
    check_config(
        "server: [",
        &[
            "tollgate.yaml:2:1: invalid YAML: while parsing a node, did not find expected node content",
        ],
    );
    check_config(
        "- a\n- b\n",
        &[
            "tollgate.yaml: a list, expected a mapping with one of server, admin, upstream, store, identity, identity_hash_secret, identity_hash_secret_file, tier_lookup, headers, shedding, slow_thresholds, self_service, usage, log, tracing",
        ],
    );
    check_tiers(
        "a: 1\n---\nb: 1\n",
        &["tiers.yaml:2:1: a second document, expected one in a file"],
    );
    let result = load_texts(Some(b"a: 1\nb: \xc3\x28\n"), None, Overrides::default());
    assert_eq!(heads(result), ["tollgate.yaml:2:4: bytes that are no UTF-8, expected UTF-8 text"]);
    let long = vec![b'#'; (8 << 20) + 1];
    let result = load_texts(Some(&long), None, Overrides::default());
    assert_eq!(heads(result), ["tollgate.yaml: too long, expected at most 8388608 bytes"]);
}

#[test]
fn files_that_cannot_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let message = |path: &Path| {
        let result = load(&LoadRequest {
            config: Some(path),
            tiers: Some(Path::new("/nonexistent/tiers.yaml")),
            overrides: Overrides::default(),
            upstream: UpstreamNeed::Optional,
            env: &|_| None,
        });
        heads(result)
    };
    let of_tiers =
        "/nonexistent/tiers.yaml: cannot be read: No such file or directory (os error 2)";
    let path = directory.path();
    let of_config = format!("{}: a directory, expected a file", path.display());
    assert_eq!(message(path), [of_config.as_str(), of_tiers]);
    let broken = path.join("broken.yaml");
    std::fs::write(&broken, "sever: 1\n").unwrap();
    assert!(message(&broken)[0].contains("broken.yaml:1:1: sever: unknown key"));
}

#[test]
fn wrong_shapes_all_at_once() {
    check_config(
        "\
sever: {}
server:
  workers: -1
  expose: [health, metric]
  header_timeout: 10
  max_header_bytes: 64K
  max_connections: many
  trusted_proxies: 10.0.0.0/8
upstream: http://127.0.0.1:1
headers: { x_ratelimit: maybe, reset: epoc }
tracing: { sample: .nan }
",
        &[
            "tollgate.yaml:1:1: sever: unknown key, expected one of server, admin, upstream, store, identity, identity_hash_secret, identity_hash_secret_file, tier_lookup, headers, shedding, slow_thresholds, self_service, usage, log, tracing",
            "tollgate.yaml:3:12: server.workers: -1, expected a whole number from 0 to 4294967295",
            "tollgate.yaml:4:20: server.expose[1]: metric, expected one of health, metrics",
            "tollgate.yaml:5:19: server.header_timeout: 10, expected a duration with its unit, such as 250ms, 5s, 10m, 1h or 90d",
            "tollgate.yaml:6:21: server.max_header_bytes: 64K, expected a size, such as 65536, 64KiB or 10MiB",
            "tollgate.yaml:7:20: server.max_connections: many, expected a whole number from 0 to 4294967295",
            "tollgate.yaml:8:20: server.trusted_proxies: 10.0.0.0/8, expected a list",
            "tollgate.yaml:9:11: upstream: http://127.0.0.1:1, expected a mapping with one of url, urls, connect_timeout, response_timeout, per_try_timeout, idle_timeout, tunnel_idle_timeout, max_idle_connections, retries, retry_budget, preserve_host, tls, dns_ttl, health_check",
            "tollgate.yaml:10:25: headers.x_ratelimit: maybe, expected true or false",
            "tollgate.yaml:10:39: headers.reset: epoc, expected one of epoch, delta",
            "tollgate.yaml:11:20: tracing.sample: .nan, expected a number",
        ],
    );
}

#[test]
fn errors_of_shape_and_of_meaning_come_together() {
    // A tier that is no mapping is still a tier: nothing that names it is wrong for that.
    check_tiers(
        "tiers: { free: 5, gold: { burst: x, per_second: 0 }, b: }\nendpoints: [{ name: a, path: /a, limits: { free: {} } }, 7]\n",
        &[
            "tiers.yaml:1:16: tiers.free: 5, expected a mapping with one of per_second, burst, per_minute, per_hour, per_day, per_month, concurrency, priority, on_failure",
            "tiers.yaml:1:34: tiers.gold.burst: x, expected a whole number from 0 to 4294967295",
            "tiers.yaml:1:49: tiers.gold.per_second: 0, expected at least 1",
            "tiers.yaml:1:54: tiers.b: nothing, expected a mapping with one of per_second, burst, per_minute, per_hour, per_day, per_month, concurrency, priority, on_failure",
            "tiers.yaml:2:58: endpoints[1]: 7, expected a mapping with one of name, path, methods, host, headers, match, slow_threshold, limits, cost, exempt, mode, enforce_percent, on_failure",
        ],
    );
}

#[test]
fn duplicate_keys_are_found_wherever_they_are() {
    check_tiers(
        "tiers:\n  free: { per_second: 1, per_second: 2 }\n  free: {}\nmode: shadow\nmode: enforce\n",
        &[
            "tiers.yaml:2:26: tiers.free.per_second: duplicate key, first on line 2",
            "tiers.yaml:3:3: tiers.free: duplicate key, first on line 2",
            "tiers.yaml:5:1: mode: duplicate key, first on line 4",
        ],
    );
    check_config(
        "server: {}\n'server': {}\n",
        &["tollgate.yaml:2:1: server: duplicate key, first on line 1"],
    );
}

#[test]
fn wrong_values() {
    let vectors = include_str!("vectors/config_errors.txt");
    let mut count = 0;
    for block in vectors.split("----\n").skip(1) {
        let (text, expected) = block.split_once("=> ").unwrap();
        let is_config = expected.starts_with("tollgate.yaml");
        let found = heads(if is_config { config(text) } else { tiers(text) });
        assert_eq!(found, [expected.trim_end()], "in\n{text}");
        count += 1;
    }
    assert!(count > 60, "{count}");
}

#[test]
fn equal_rules_are_found_by_their_places() {
    // The rule in between is wrong in itself: it takes no part, and shifts nobody.
    let found = heads(tiers(
        "\
endpoints:
- { name: a, path: /a }
- { name: b, path: /a, methods: [get] }
- { name: c, path: /c/** }
- { name: d, path: /a }
- { name: e, path: c }
",
    ));
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].starts_with("tiers.yaml:3:34: endpoints[1].methods[0]: \"get\""), "{found:?}");
    assert!(found[1].starts_with("tiers.yaml:5:20: endpoints[3].path: "), "{found:?}");
    assert!(found[1].contains("endpoints[0]"), "{found:?}");
    assert!(found[2].starts_with("tiers.yaml:6:20: endpoints[4].path: `c`"), "{found:?}");
}

#[test]
fn odd_limits_are_warned_of() {
    let loaded = tiers(
        "\
tiers:
  free: { per_second: 5, burst: 2, per_minute: 1000, per_hour: 900 }
networks: { 10.1.0.0/8: free }
endpoints: [{ name: a, path: /a, exempt: true, cost: 3 }]
",
    );
    assert_eq!(
        warnings(&loaded.unwrap()),
        [
            "tiers.free.burst: burst 2 is below per_second 5",
            "tiers.free.per_minute: 1000 can never bind",
            "networks[\"10.1.0.0/8\"]: \"10.1.0.0/8\" has bits beyond its prefix, expected 10.0.0.0/8",
            "endpoints[0].cost: without effect: the rule is exempt",
        ]
    );
}

#[test]
fn what_is_not_built_yet_is_refused_at_any_other_value() {
    let vectors = include_str!("vectors/config_not_yet.txt");
    for line in vectors.lines().filter(|line| !line.starts_with('#')) {
        let (path, text) = line.split_once(" | ").unwrap();
        let errors = config(text).unwrap_err();
        let found: Vec<_> =
            errors.0.iter().map(|error| (error.path.as_str(), error.message.as_str())).collect();
        assert_eq!(found, [(path, "not supported yet")], "{text}");
        assert!(errors.0[0].line.is_some(), "{text}");
    }
    check_tiers(
        "tiers: { free: { priority: 5 } }",
        &["tiers.yaml:1:28: tiers.free.priority: not supported yet"],
    );
    check_tiers(
        "endpoints: [{ name: a, path: /a, enforce_percent: 25 }]",
        &["tiers.yaml:1:51: endpoints[0].enforce_percent: not supported yet"],
    );
}

#[test]
fn secrets_stay_out_of_messages() {
    let errors = config("store: { redis: { url: 'reddis://me:hunter2@host/0' } }\n").unwrap_err();
    assert!(errors.to_string().contains("'reddis://**********@host/0'"), "{errors}");
    let errors = config("identity_hash_secret: hunter2\nidentity: [jwt: { secret: [hunter2] }]\n");
    let errors = errors.unwrap_err();
    assert!(!errors.to_string().contains("hunter"), "{errors}");
}

// ----------------------------------------------------------------------------- many, and hostile

#[test]
fn thousands_of_rules_compile() {
    let mut text = String::from("endpoints:\n");
    for rule in 0..10_000 {
        text.push_str(&format!(
            "- {{ name: r{rule}, path: /a{rule}/**, limits: {{ free: {{ per_minute: 3 }} }} }}\n"
        ));
    }
    assert_eq!(tiers(&text).unwrap().policy.rules().len(), 10_000);
    let wrong = text.replace("per_minute", "per_minuet");
    assert_eq!(heads(tiers(&wrong)).len(), 64, "errors of shape have a bound");
    let zero = heads(tiers(&text.replace("per_minute: 3", "per_minute: 0")));
    assert_eq!(zero.len(), 101, "so have those of meaning");
    assert_eq!(zero[100], "tiers.yaml: 9900 more errors, not shown");
    let many: String = (0..65_536).map(|tier| format!("  t{tier}: {{}}\n")).collect();
    check_tiers(
        &format!("tiers:\n{many}"),
        &["tiers.yaml:1:1: tiers: 65536 tiers, expected at most 65535"],
    );
}

/// A valid file with some bytes replaced, put in or taken out.
fn mutated(text: &'static str) -> impl Strategy<Value = Vec<u8>> {
    const PIECES: [&str; 24] = [
        "", "\t", ":", ": ", "\n", "- ", "[", "}", "&a ", "*a", "'", "\"", "${", "|", "? ", "!!x ",
        "0", "-1", "null", "\u{1}", "\r", "é", "---\n", "<<: *a",
    ];
    let piece = prop_oneof![
        20 => prop::sample::select(&PIECES[..]).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => Just(b"\xff".to_vec()),
    ];
    let change = (any::<prop::sample::Index>(), 0..12_usize, piece);
    prop::collection::vec(change, 1..6).prop_map(move |changes| {
        let mut bytes = text.as_bytes().to_vec();
        for (at, removed, piece) in changes {
            let start = at.index(bytes.len() + 1);
            let end = (start + removed).min(bytes.len());
            bytes.splice(start..end, piece);
        }
        bytes
    })
}

fn survives(config: &[u8], tiers: &[u8]) {
    if let Err(errors) = load_texts(Some(config), Some(tiers), Overrides::default()) {
        assert!(!errors.0.is_empty());
        assert!(!errors.to_string().is_empty());
        for error in errors.0 {
            assert!(error.file.is_some(), "{error}");
            assert!(error.line != Some(0) && error.column != Some(0), "{error}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_break_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        survives(&bytes, &bytes);
    }

    #[test]
    fn no_text_breaks_the_reader(text in "[a-z:\\-\\[\\]{}'\"#&*!|>%@`?,\\\\ \t\n\r0-9$.é\u{85}\u{2028}]{0,200}") {
        survives(text.as_bytes(), text.as_bytes());
    }

    #[test]
    fn no_slip_of_the_pen_breaks_the_reader(
        config in mutated(EVERY_KEY),
        tiers in mutated(include_str!("../config/tiers.yaml")),
    ) {
        survives(&config, &tiers);
    }
}
