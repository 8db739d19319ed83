//! `docs/configuration.md` is what the types say, and what it says of them is so: every key, the
//! true default, what is not built, and what a running tollgate takes over.
//!
//! The page is read here as its readers would read it, row by row, and held to the schemas, to the
//! loader and to a process.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/certificates.rs"]
mod certificates;
mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tollgate::config::compile_upstream::UpstreamNeed;
use tollgate::config::json_schema::{of_config, of_keys, of_tiers};
use tollgate::config::load::{LoadRequest, Loaded, Overrides, load};
use tollgate::config::report::ConfigErrors;

use support::{Start, wait_until};

/// A row of the page's tables of keys.
#[derive(Debug)]
struct Row {
    /// `tollgate.yaml`, and so on.
    file: String,
    /// `store.redis.url`
    path: String,
    kind: String,
    default: String,
    change: String,
    says: String,
}

impl Row {
    fn is_built(&self) -> bool {
        !self.says.contains("Not built yet")
    }

    /// The value behind the default, where it is one.
    fn default_value(&self) -> Option<Value> {
        let text = self.default.strip_prefix('`')?.strip_suffix('`')?;
        Some(match serde_yaml::from_str(text) {
            Ok(value) if self.kind != "text" || text == "null" => value,
            _ => json!(text),
        })
    }
}

fn rows() -> Vec<Row> {
    let page = std::fs::read_to_string("docs/configuration.md").unwrap();
    let (mut rows, mut file, mut section) = (Vec::new(), String::new(), String::new());
    for line in page.lines() {
        if let Some(name) = line.strip_prefix("## ") {
            (file, section) = (name.to_owned(), String::new());
        } else if let Some(name) = line.strip_prefix("### `").and_then(|it| it.strip_suffix('`')) {
            section = format!("{name}.");
        }
        let cells: Vec<&str> = line.split(" | ").collect();
        if !file.ends_with(".yaml") || !line.starts_with("| `") || cells.len() < 5 {
            continue;
        }
        let key = cells[0].trim_start_matches("| `").trim_end_matches('`');
        rows.push(Row {
            file: file.clone(),
            path: format!("{section}{key}"),
            kind: cells[1].to_owned(),
            default: cells[2].trim().to_owned(),
            change: cells[3].to_owned(),
            says: cells[4..].join(" | "),
        });
    }
    assert!(rows.len() > 150, "the page's tables were not understood");
    rows
}

fn rows_of(file: &str) -> Vec<Row> {
    rows().into_iter().filter(|row| row.file == file).collect()
}

#[test]
fn the_page_is_made_from_the_types() {
    let command = ["schema", "configuration"];
    let output = Command::new(env!("CARGO_BIN_EXE_tollgate")).args(command).output().unwrap();
    assert!(output.status.success());
    assert!(
        String::from_utf8(output.stdout).unwrap()
            == std::fs::read_to_string("docs/configuration.md").unwrap(),
        "docs/configuration.md is not what the types say; run: \
         cargo run -q -- schema configuration > docs/configuration.md"
    );
}

#[test]
fn every_key_of_the_schemas_has_its_row() {
    fn walk(schema: &Value, under: &str, keys: &mut BTreeSet<String>) {
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            keys.insert(format!("{under}{key}"));
            walk(property, &format!("{under}{key}."), keys);
            walk(&property["items"], &format!("{under}{key}[]."), keys);
            walk(&property["additionalProperties"], &format!("{under}{key}.NAME."), keys);
        }
    }
    for (file, schema) in
        [("tollgate.yaml", of_config()), ("tiers.yaml", of_tiers()), ("keys.yaml", of_keys())]
    {
        let mut keys = BTreeSet::new();
        walk(&schema, "", &mut keys);
        let shown: BTreeSet<String> = rows_of(file).into_iter().map(|row| row.path).collect();
        assert_eq!(shown, keys, "{file}");
    }
}

#[test]
fn every_secret_has_a_twin_in_a_file() {
    let rows = rows();
    let secrets: Vec<&Row> = rows.iter().filter(|row| row.kind == "secret").collect();
    for secret in &secrets {
        let twin = format!("{}_file", secret.path);
        let row = rows.iter().find(|row| row.path == twin && row.kind == "file");
        assert!(row.is_some(), "no {twin}");
    }
    assert_eq!(secrets.len(), 6);
}

/// Puts a value at a path of the page: into the first entry of a list, under the name `free`.
fn put(document: &mut Value, path: &str, value: Value) {
    let mut at = document;
    for step in path.split('.') {
        let (key, is_list) = step.strip_suffix("[]").map_or((step, false), |key| (key, true));
        let key = if key == "NAME" { "free" } else { key };
        at = &mut at[key];
        if is_list {
            if at.is_null() {
                *at = json!([{}]);
            }
            at = &mut at[0];
        }
    }
    *at = value;
}

fn load_value(file: &str, document: &Value) -> Result<Loaded, ConfigErrors> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(file);
    // JSON is YAML.
    std::fs::write(&path, document.to_string()).unwrap();
    let path = Some(path.as_path());
    load(&LoadRequest {
        config: path.filter(|_| file == "tollgate.yaml"),
        tiers: path.filter(|_| file == "tiers.yaml"),
        overrides: Overrides::default(),
        upstream: UpstreamNeed::Optional,
        env: &|_| None,
    })
}

/// A file in which every mapping is there that a key may stand in, with no more than it asks for.
fn skeleton(path: &str) -> Value {
    let identity = if path.starts_with("identity[].api_key") {
        json!([{ "api_key": { "keys_file": "config/keys.yaml" } }])
    } else if path.starts_with("identity[].ip") {
        json!([{ "ip": {} }])
    } else {
        json!([{ "jwt": { "secret": "0123456789abcdef0123456789abcdef" } }])
    };
    let lookup = if path.starts_with("tier_lookup.redis") {
        json!({ "redis": {} })
    } else {
        json!({ "postgres": { "url": "postgres://somebody@127.0.0.1/db" } })
    };
    let mut skeleton = json!({
        "upstream": { "url": "http://127.0.0.1:8081" },
        "store": { "redis": {} },
        "identity": identity,
        "tier_lookup": lookup,
    });
    for top in ["identity", "tier_lookup"] {
        if path == top {
            skeleton[top] = Value::Null;
        }
    }
    skeleton
}

#[test]
fn defaults_of_the_configuration_are_the_true_ones() {
    let mut compared = 0;
    for row in rows_of("tollgate.yaml") {
        let Some(default) = row.default_value() else { continue };
        // What cannot be left out where it stands, and what is refused as a whole.
        let needs_more = ["server.listeners[]", "identity[].mtls"];
        let is_given = row.path.ends_with("jwt.secret") || row.path.ends_with("postgres.url");
        if needs_more.iter().any(|it| row.path.starts_with(it)) || row.path == "upstream.url" {
            continue;
        }
        if is_given || row.path.ends_with("tier_lookup.postgres") || default.is_null() {
            continue;
        }
        let without = skeleton(&row.path);
        let mut with = without.clone();
        put(&mut with, &row.path, default);
        let [without, with] = [without, with].map(|document| {
            let mut settings = load_value("tollgate.yaml", &document)
                .unwrap_or_else(|errors| panic!("{}: {errors}\n{document}", row.path))
                .settings;
            // The rest of it knows places in the file.
            let lookup = settings.lookup.take().map(|lookup| lookup.settings);
            (settings, lookup)
        });
        assert_eq!(with, without, "{} is not {} by default", row.path, row.default);
        compared += 1;
    }
    assert!(compared > 60, "{compared}");
}

fn policy(document: &Value) -> Result<String, ConfigErrors> {
    let loaded = load_value("tiers.yaml", document)?;
    // Without its place in the file.
    let of_test = |it| format!("{it:?}").split_once("method: ").unwrap().1.to_owned();
    let tests: Vec<String> = loaded.tests.iter().map(of_test).collect();
    Ok(format!("{:?} {:?} {tests:?}", loaded.policy.tiers(), loaded.policy.rules()))
}

#[test]
fn defaults_of_the_policy_are_the_true_ones() {
    let skeleton = json!({
        "tiers": { "free": { "per_second": 5 } },
        "endpoints": [{ "name": "a", "path": "/a", "limits": { "free": { "per_minute": 2 } } }],
        "tests": [{ "request": "GET /" }],
    });
    let mut compared = 0;
    for row in rows_of("tiers.yaml") {
        let Some(default) = row.default_value().filter(|it| !it.is_null()) else { continue };
        // What is no value of its own is said in words that name another key.
        let is_key = ["`per_second`", "`slow_thresholds.upstream`"].contains(&&*row.default);
        if is_key || ["endpoints", "endpoints[].limits", "tests"].contains(&&*row.path) {
            continue;
        }
        let mut with = skeleton.clone();
        put(&mut with, &row.path, default);
        let found = policy(&with).unwrap_or_else(|errors| panic!("{}: {errors}", row.path));
        assert_eq!(found, policy(&skeleton).unwrap(), "{} is not {}", row.path, row.default);
        compared += 1;
    }
    assert!(compared > 12, "{compared}");
    let burst = |text: &str| policy(&serde_yaml::from_str(text).unwrap()).unwrap();
    assert_eq!(
        burst("tiers: { free: { per_second: 5 } }"),
        burst("tiers: { free: { per_second: 5, burst: 5 } }")
    );
}

#[test]
fn what_is_not_built_is_marked_and_nothing_else() {
    let vectors = include_str!("vectors/config_not_yet.txt");
    let listed: BTreeSet<String> = vectors
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(" | ").next().unwrap().replace("[0]", "[]"))
        // Some of their values are built, which their own texts say.
        .filter(|path| path != "upstream.retries" && path != "store.redis.url")
        .collect();
    let rows = rows_of("tollgate.yaml");
    for path in &listed {
        let row = rows.iter().find(|row| row.path == *path).unwrap_or_else(|| panic!("no {path}"));
        assert!(!row.is_built(), "{path} is not built");
    }
    for row in rows.iter().filter(|row| !row.is_built()) {
        let covers = |it: &&String| row.path.starts_with(it.as_str());
        assert!(listed.iter().any(|it| covers(&it)), "{} is built", row.path);
    }
    // Of the policy: whatever takes a number is given one.
    let policy = json!({
        "tiers": { "free": { "per_second": 500, "burst": 500 } },
        "endpoints": [{ "name": "a", "path": "/a", "limits": { "free": { "per_second": 500 } } }],
    });
    let mut count = 0;
    for row in rows_of("tiers.yaml").iter().filter(|row| row.kind == "whole number") {
        let mut document = policy.clone();
        put(&mut document, &row.path, json!(25));
        let is_refused = load_value("tiers.yaml", &document)
            .is_err_and(|errors| errors.to_string().contains("not supported yet"));
        assert_eq!(is_refused, !row.is_built(), "{}", row.path);
        count += usize::from(is_refused);
    }
    assert_eq!(count, 3);
}

const FILES: &str = r#"
server:
  listeners:
    - address: 127.0.0.1:0
      tls:
        cert: DIR/a.crt
        key: DIR/a.key
        sni: { localhost: { cert: DIR/c.crt, key: DIR/c.key } }
        client_ca: DIR/d.crt
        client_crl: DIR/d.crl
admin: { listen: 127.0.0.1:0, token_file: DIR/token }
upstream:
  url: http://127.0.0.1:9
  tls: { ca: DIR/b.crt, client_cert: DIR/b.crt, client_key: DIR/b.key }
store: { redis: { url_file: DIR/redis } }
tier_lookup: { postgres: { url_file: DIR/postgres } }
identity_hash_secret_file: DIR/hash
identity:
  - jwt: { header: X-A, secret_file: DIR/secret, algorithms: [HS256] }
  - jwt: { header: X-B, public_key_file: DIR/public, algorithms: [ES256] }
  - jwt: { header: X-C, jwks_file: DIR/jwks, algorithms: [ES256] }
  - api_key: { keys_file: DIR/keys }
log: { format: human }
"#;

/// The public key that RFC 7517 shows in its appendix A.1.
const JWK: &str = r#"{"kty":"EC","crv":"P-256","kid":"1",
    "x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
    "y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}"#;

/// Every file is spoilt; a running tollgate complains of those that it follows, and of no other.
#[test]
fn of_files_it_takes_over_what_the_page_says() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path();
    certificates::self_signed(home, "a", "a", 90);
    for name in ["b", "c", "d"] {
        certificates::self_signed(home, name, name, 90);
    }
    certificates::taken_back(home, "d", "-crldays 3");
    let secret = "0123456789abcdef0123456789abcdef";
    for (name, content) in [
        ("token", secret),
        ("redis", "redis://127.0.0.1:9/0"),
        ("postgres", "postgres://somebody@127.0.0.1:9/db"),
        ("hash", secret),
        ("secret", secret),
        ("public", JWK),
        ("jwks", JWK),
        ("keys", "keys: []"),
    ] {
        std::fs::write(home.join(name), content).unwrap();
    }
    let config = FILES.replace("DIR", home.to_str().unwrap());
    let tollgate = Start::default().config(&config).listeners().run();
    let document: Value = serde_yaml::from_str(&config).unwrap();
    let file_of = |path: &str| named(&document, path);

    let rows = rows_of("tollgate.yaml");
    let files = rows.iter().filter(|row| row.kind == "file" && row.is_built());
    let (followed, others): (Vec<&Row>, Vec<&Row>) =
        files.partition(|row| row.change == "restart; content: reload");
    assert_eq!(followed.len(), 10);
    let spoil = |path: &str| {
        for file in file_of(path) {
            std::fs::write(Path::new(&file), "spoilt: [").unwrap();
        }
        file_of(path).len()
    };
    let spoilt: usize = others.iter().map(|row| spoil(&row.path)).sum();
    assert_eq!(spoilt, 7, "{others:?}");
    let errors = || tollgate.metric("tollgate_config_reloads_total{result=\"error\"}");
    for (index, row) in followed.iter().enumerate() {
        assert_eq!(spoil(&row.path), 1, "{}", row.path);
        let expected = (index + 1) as f64;
        wait_until(&row.path, || errors() >= expected);
        assert!((errors() - expected).abs() < 0.5, "{} of {expected}: {}", errors(), row.path);
    }
}

/// The names at a path of the page, in whichever entry of a list they stand.
fn named(document: &Value, path: &str) -> Vec<String> {
    let mut found = vec![document];
    for step in path.split('.') {
        let (key, is_list) = step.strip_suffix("[]").map_or((step, false), |key| (key, true));
        found = found
            .into_iter()
            .flat_map(|value| match value.as_object() {
                // A name that is the reader's to choose.
                Some(any) if key == "NAME" => any.values().collect(),
                _ => vec![&value[key]],
            })
            .collect();
        if is_list {
            found =
                found.into_iter().flat_map(|list| list.as_array().into_iter().flatten()).collect();
        }
    }
    found.into_iter().filter_map(Value::as_str).map(str::to_owned).collect()
}
