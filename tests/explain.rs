//! `tollgate explain` by the real binary: it says of a request what a running tollgate does with it,
//! and it tells no secret.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/redis.rs"]
mod redis;
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use support::{Answer, Backend, Start, Tollgate, nobody};

const SECRET: &str = "a secret of at least thirty-two bytes, for tests";
const API_KEY: &str = "the-key-of-acme";

const TIERS: &str = r#"
default_tier: free
tiers:
  free:    { per_second: 5,  burst: 10, per_minute: 100, per_hour: 1000 }
  premium: { per_second: 20, burst: 50, per_minute: 500, per_hour: 10000 }
  staff:   {}
subscriptions: { pro: premium }
networks: { 10.0.0.0/8: premium, 10.9.0.0/16: staff }
identities:
  "ip:192.0.2.7": deny
  "user:vip": premium
endpoints:
  - { name: history, path: "/fo/history/**", methods: [GET], limits: { free: { per_minute: 30 } } }
  - { name: fo, path: "/fo/**", cost: 3 }
  - { name: partner, path: "/fo/history/**", host: partner.test, limits: { any: { per_hour: 7 } } }
  - { name: health, path: /healthz, exempt: true }
  - { name: live, path: "/ws/**", mode: shadow }
  - { name: trial, path: /trial, mode: shadow, cost: 2, limits: { any: { per_minute: 20 } } }
  - { name: second, path: /second, limits: { any: { per_second: 1, burst: 4 } } }
  - { name: dear, path: /DEAR, match: strict, cost: 9 }
  - { name: cheap, path: "/{any}", limits: { any: { per_minute: 8 } } }
"#;

/// The two files, in a folder that lives as long as this.
struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn new(config: &str, tiers: &str) -> Self {
        let files = Files { directory: tempfile::tempdir().unwrap() };
        let sha256: String =
            Sha256::digest(API_KEY).iter().map(|byte| format!("{byte:02x}")).collect();
        let keys = format!("keys: [ {{ id: acme, sha256: {sha256}, tier: pro }} ]\n");
        let keys_file = files.path("keys.yaml");
        std::fs::write(&keys_file, keys).unwrap();
        std::fs::write(files.path("tollgate.yaml"), config.replace("KEYS", &keys_file)).unwrap();
        std::fs::write(files.path("tiers.yaml"), tiers).unwrap();
        files
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn options(&self) -> [String; 4] {
        let (config, tiers) = (self.path("tollgate.yaml"), self.path("tiers.yaml"));
        ["--config".to_owned(), config, "--tiers".to_owned(), tiers]
    }

    fn run(&self, backend: &Backend) -> Tollgate {
        let options = self.options();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        Start::default().upstream(backend.address).arguments(&options).run()
    }

    fn explain(&self, arguments: &[&str]) -> Ended {
        explain(&[arguments, &self.options().each_ref().map(String::as_str)].concat())
    }

    fn explain_json(&self, arguments: &[&str]) -> Value {
        let ended = self.explain(&[arguments, &["--format", "json"]].concat());
        assert_eq!((ended.code, ended.errors.as_str()), (Some(0), ""), "{arguments:?}");
        serde_json::from_str(&ended.output).unwrap()
    }
}

struct Ended {
    code: Option<i32>,
    output: String,
    errors: String,
}

fn explain(arguments: &[&str]) -> Ended {
    end_of(command(arguments))
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.arg("explain").args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TOLLGATE_") {
            command.env_remove(name);
        }
    }
    command
}

fn end_of(mut command: Command) -> Ended {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { code: output.status.code(), output: text(&output.stdout), errors: text(&output.stderr) }
}

fn token(claims: &Value) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), claims, &key).unwrap()
}

fn config(on_invalid: &str) -> String {
    format!(
        "server: {{ trusted_proxies: [127.0.0.0/8], max_body_bytes: 1KiB, expose: [health] }}\n\
         identity:\n  - jwt: {{ secret: \"{SECRET}\", query: token, on_invalid: {on_invalid} }}\n  \
         - api_key: {{ header: X-API-Key, keys_file: \"KEYS\", on_invalid: {on_invalid} }}\n"
    )
}

/// Counters that tell of a request: by tier and endpoint where limits were asked, else by endpoint.
fn counted(tollgate: &Tollgate) -> BTreeMap<String, f64> {
    let page = tollgate.admin("/metrics").text();
    let lines = page.lines().filter_map(|line| line.rsplit_once(' '));
    let of = |name: &str| {
        let name = format!("{name}{{");
        lines.clone().filter(move |(series, _)| series.starts_with(&name))
    };
    let mut counted = BTreeMap::new();
    for (series, value) in of("rate_limit_hits_total").chain(of("tollgate_requests_total")) {
        counted.insert(series.to_owned(), value.parse().unwrap());
    }
    counted
}

fn label<'a>(series: &'a str, name: &str) -> &'a str {
    let rest = series.split(&format!("{name}=\"")).nth(1).unwrap_or_default();
    rest.split('"').next().unwrap_or_default()
}

/// The labels of the one series of a metric that has risen.
fn risen(
    before: &BTreeMap<String, f64>,
    after: &BTreeMap<String, f64>,
    metric: &str,
) -> Option<[String; 3]> {
    let mut risen = after
        .iter()
        .filter(|(series, _)| series.starts_with(metric))
        .filter(|(series, value)| before.get(*series).copied().unwrap_or(0.0) < **value)
        .map(|(series, _)| {
            ["identifier_type", "tier", "endpoint"].map(|it| label(series, it).to_owned())
        });
    let first = risen.next();
    assert_eq!(risen.next(), None, "more than one series of {metric} has risen");
    first
}

/// Sends one request to a running tollgate, explains the same, and compares.
fn agrees(files: &Files, tollgate: &Tollgate, method: &str, path: &str, fields: &[&str]) -> Value {
    let what = format!("{method} {path} {fields:?}");
    let before = counted(tollgate);
    let answer = sent(tollgate, method, path, fields);
    let mut after = counted(tollgate);
    // It is told of when the answer has been sent, which the client may see first.
    support::wait_until("the request is counted", || {
        after = counted(tollgate);
        path == "/health" || before.values().sum::<f64>() < after.values().sum::<f64>()
    });
    let mut arguments = vec![method, path];
    let fields: Vec<&str> = fields.iter().flat_map(|field| ["--header", field]).collect();
    arguments.extend(fields);
    let said = files.explain_json(&arguments);

    let status = said["status"].as_u64().unwrap_or(200);
    assert_eq!(u64::from(answer.status), status, "{what}: {said:#}");
    for name in ["X-RateLimit-Limit", "X-RateLimit-Remaining", "WWW-Authenticate"] {
        let shown = answer.field(&name.to_ascii_lowercase());
        assert_eq!(said["fields"][name].as_str(), shown, "{what}: {said:#}");
    }
    let [identifier_type, tier, endpoint] =
        ["identifier_type", "tier", "endpoint"].map(|key| said[key].as_str().unwrap().to_owned());
    if let Some([.., its_endpoint]) = risen(&before, &after, "tollgate_requests_total") {
        assert_eq!(its_endpoint, endpoint, "{what}: {said:#}");
    }
    let hit = risen(&before, &after, "rate_limit_hits_total");
    let is_evaluated =
        matches!(said["decision"].as_str().unwrap(), "allow" | "shadow_deny") || status == 429;
    let labels = is_evaluated.then_some([identifier_type, tier, endpoint]);
    assert_eq!(hit, labels, "{what}: {said:#}");
    said
}

fn sent(tollgate: &Tollgate, method: &str, path: &str, fields: &[&str]) -> Answer {
    let mut head = format!("{method} {path} HTTP/1.1\r\n");
    if !fields.iter().any(|field| field.to_ascii_lowercase().starts_with("host:")) {
        head.push_str("Host: localhost\r\n");
    }
    for field in fields {
        head.push_str(&format!("{field}\r\n"));
    }
    let mut client = tollgate.connect();
    client.send(head + "\r\n").answer_to(method)
}

#[test]
fn it_says_what_a_running_tollgate_does() {
    let backend = Backend::ok();
    let files = Files::new(&config("ip"), TIERS);
    let tollgate = files.run(&backend);
    let from = |address: &str| format!("X-Forwarded-For: {address}");
    let bearer = |claims: Value| format!("Authorization: Bearer {}", token(&claims));
    let check = |method: &str, path: &str, fields: &[&str], expected: Value| {
        let said = agrees(&files, &tollgate, method, path, fields);
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&said[key], value, "{method} {path}: {key} of {said:#}");
        }
        said
    };

    // An address of its own for each, so that each meets whole limits.
    let free = json!({ "identity": "ip:203.0.113.1", "identifier_type": "ip", "tier": "free",
        "tier_source": "default", "endpoint": "other", "cost": 1, "mode": "enforce",
        "decision": "allow" });
    check("GET", "/a/b", &[&from("203.0.113.1")], free);
    let network = json!({ "tier": "premium", "tier_source": "networks", "endpoint": "history" });
    check("GET", "/fo/history/2025", &[&from("10.1.2.3")], network);
    let nothing = json!({ "tier": "staff", "decision": "allow", "limits": [], "fields": {} });
    check("GET", "/a/b", &[&from("10.9.2.3")], nothing);
    let strict = json!({ "tier": "free", "endpoint": "history", "cost": 1 });
    let said = check("GET", "/fo/history/2025?x=%2F", &[&from("203.0.113.2")], strict);
    assert_eq!(said["fields"]["X-RateLimit-Limit"], "30");
    let said = check(
        "GET",
        "//fo/History/%2e/x",
        &[&from("203.0.113.3")],
        json!({
        "endpoint": "history" }),
    );
    let limit = &said["limits"][3];
    assert_eq!(
        (&limit["name"], &limit["scope"]),
        (&json!("endpoint:history:minute"), &json!("endpoint:history"))
    );
    assert_eq!(
        (&limit["period"], &limit["limit"], &limit["used"]),
        (&json!("minute"), &json!(30), &json!(3)),
        "a backend that tells letters apart takes it for fo, which costs 3"
    );
    check("POST", "/fo/history/x", &[&from("203.0.113.4")], json!({ "endpoint": "fo", "cost": 3 }));
    let host = [from("203.0.113.5"), "Host: Partner.test:80".to_owned()];
    check("GET", "/fo/history/x", &[&host[0], &host[1]], json!({ "endpoint": "partner" }));

    let user = bearer(json!({ "user_id": 42, "tier": "PRO", "exp": 4_000_000_000_u64 }));
    check(
        "GET",
        "/a/b",
        &[&user, &from("203.0.113.6")],
        json!({ "identity": "user:42",
        "identifier_type": "user", "tier": "premium", "tier_source": "credential" }),
    );
    let vip = bearer(json!({ "sub": "vip" }));
    check("GET", "/a/b", &[&vip], json!({ "identity": "user:vip", "tier_source": "identities" }));
    let by_query = format!("/a/b?token={}", token(&json!({ "sub": "q", "tier": "gold" })));
    check("GET", &by_query, &[], json!({ "identity": "user:q", "tier": "free" }));
    let expired = bearer(json!({ "sub": "old", "exp": 1 }));
    check(
        "GET",
        "/a/b",
        &[&expired, &from("203.0.113.7")],
        json!({ "identity": "ip:203.0.113.7" }),
    );
    let key = format!("X-API-Key: {API_KEY}");
    check(
        "GET",
        "/a/b",
        &[&key],
        json!({ "identity": "key:acme", "identifier_type": "key",
        "tier": "premium", "tier_source": "credential" }),
    );
    check(
        "GET",
        "/a/b",
        &["x-api-key: nobody's", &from("203.0.113.8")],
        json!({
        "identity": "ip:203.0.113.8" }),
    );

    let denied = json!({ "decision": "deny", "status": 403, "limits": [] });
    check("GET", "/a/b", &[&from("192.0.2.7")], denied.clone());
    check("GET", "/a/b", &[&from("192.0.2.7"), &vip], denied);
    check(
        "GET",
        "/healthz",
        &[&from("203.0.113.9")],
        json!({ "decision": "exempt",
        "endpoint": "health", "limits": [] }),
    );
    check(
        "GET",
        "/HEALTHZ",
        &[&from("203.0.113.10")],
        json!({ "decision": "allow",
        "endpoint": "cheap" }),
    );
    let said = check(
        "GET",
        "/ws/x",
        &[&from("203.0.113.11")],
        json!({ "mode": "shadow",
        "endpoint": "live", "decision": "allow" }),
    );
    assert!(said["limits"].as_array().unwrap().iter().all(|it| it["mode"] == "shadow"), "{said:#}");
    check("GET", "/trial", &[&from("203.0.113.12")], json!({ "mode": "shadow", "cost": 2 }));
    check("GET", "/second", &[&from("10.9.0.1")], json!({ "endpoint": "second" }));
    // Costs more than the rule of the other reading ever has.
    check(
        "GET",
        "/DEAR",
        &[&from("203.0.113.13")],
        json!({ "endpoint": "dear", "cost": 9,
        "decision": "deny", "status": 429, "limited_by": "endpoint:cheap:minute", "retry_after": null }),
    );
    check("GET", "/a/%zz", &[], json!({ "decision": "none", "status": 400, "endpoint": "other" }));
    check("GET", "/a/../../b", &[], json!({ "decision": "none", "status": 400 }));
    check("GET", "*", &[], json!({ "decision": "none", "status": 400 }));
    check("GET", "/a", &["Host: a", "Host: b"], json!({ "decision": "none", "status": 400 }));
    check("TRACE", "/a", &[], json!({ "decision": "none", "status": 405 }));
    check("HEAD", "/fo/history/y", &[&from("203.0.113.14")], json!({ "endpoint": "history" }));
    check("GET", "/health", &[], json!({ "decision": "none", "status": null }));
}

#[test]
fn it_says_401_where_a_running_tollgate_does() {
    let backend = Backend::ok();
    let files = Files::new(&config("reject"), TIERS);
    let tollgate = files.run(&backend);
    let refused = |fields: &[&str]| {
        let said = agrees(&files, &tollgate, "GET", "/a/b", fields);
        assert_eq!((&said["decision"], &said["status"]), (&json!("none"), &json!(401)), "{said:#}");
    };
    refused(&["Authorization: Bearer x.y.z"]);
    refused(&["Authorization: Bearer ", "X-API-Key: unknown"]);
    refused(&["X-API-Key: unknown"]);
    let other = agrees(&files, &tollgate, "GET", "/a/b", &["Authorization: Basic dTpw"]);
    assert_eq!(other["identity"], "ip:127.0.0.1");
    // The deny list comes first.
    let fields = ["X-API-Key: unknown", "X-Forwarded-For: 192.0.2.7"];
    assert_eq!(agrees(&files, &tollgate, "GET", "/a/b", &fields)["status"], 403);
}

#[test]
fn it_says_what_is_wrong_with_a_token() {
    let config = format!(
        "identity:\n  - jwt: {{ secret: \"{SECRET}\", issuer: me, audience: api, user_claim: [sub], \
         on_invalid: reject }}\n"
    );
    let files = Files::new(&config, TIERS);
    let said = |token: String| {
        let field = format!("Authorization: Bearer {token}");
        let ended = files.explain(&["GET", "/", "--header", &field]);
        assert_eq!(ended.code, Some(0), "{}", ended.errors);
        // Lines are broken where they end.
        ended.output.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let encoded = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let of = |claims: Value| token(&claims);
    let none = format!("{}.{}.AA", encoded(r#"{"alg":"RS256"}"#), encoded("{}"));
    for (token, expected) in [
        (none, "its alg is RS256, and algorithms has HS256"),
        (of(json!({ "sub": "a" })), "its iss is not there, and issuer is me"),
        (of(json!({ "iss": "me", "aud": ["a"] })), "its aud is [\"a\"], and audience is api"),
        (of(json!({ "iss": "me", "aud": "api" })), "no claim of user_claim (sub) names a user"),
        (
            of(json!({ "iss": "me", "aud": "api", "sub": "a", "exp": 1000 })),
            "it has expired (1970-01-01T00:16:40Z)",
        ),
    ] {
        let said = said(token);
        assert!(said.contains(&format!("not believed: {expected};")), "{expected}: {said}");
        assert!(said.contains("ip not asked: the request is refused"), "{said}");
        assert!(said.contains("6 Verdict refused"), "{said}");
    }
}

#[test]
fn it_says_who_shares_a_quota_behind_a_proxy() {
    let files = Files::new("server: { trusted_proxies: [10.0.0.0/8] }\n", TIERS);
    let notes = |arguments: &[&str]| {
        let arguments = [&["GET", "/", "--format", "json"][..], arguments].concat();
        let ended = files.explain(&arguments);
        let said: Value = serde_json::from_str(&ended.output).unwrap();
        said["steps"][0]["notes"].as_array().unwrap().len()
    };
    let field = ["--header", "X-Forwarded-For: 203.0.113.9"];
    assert_eq!(notes(&["--ip", "192.168.0.1", field[0], field[1]]), 1);
    assert_eq!(notes(&["--ip", "10.0.0.1"]), 1);
    assert_eq!(notes(&["--ip", "10.0.0.1", field[0], field[1]]), 0);
    assert_eq!(notes(&["--ip", "203.0.113.9"]), 0);
}

/// The key set's server answers, or does not.
#[test]
fn a_key_set_is_fetched_once() {
    let pair = Ed25519KeyPair::generate().unwrap();
    let x = URL_SAFE_NO_PAD.encode(pair.public_key());
    let keys = json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "one", "x": x }] });
    let backend =
        Backend::spawn(
            move |mut connection| {
                while connection.request().is_some() && connection.ok(&keys.to_string()) {}
            },
        );
    let message = [json!({ "alg": "EdDSA", "kid": "one" }), json!({ "sub": "ann", "exp": 4e9 })]
        .map(|part| URL_SAFE_NO_PAD.encode(part.to_string()))
        .join(".");
    let signature = URL_SAFE_NO_PAD.encode(pair.sign(message.as_bytes()).as_ref());
    let field = format!("Authorization: Bearer {message}.{signature}");
    let of = |url: &str, fields: &[&str]| {
        let config =
            format!("identity:\n  - jwt: {{ jwks_url: \"{url}\", algorithms: [EdDSA] }}\n");
        let files = Files::new(&config, TIERS);
        let arguments: Vec<&str> = fields.iter().flat_map(|field| ["--header", field]).collect();
        let said = files.explain_json(&[&["GET", "/"], &arguments[..]].concat());
        (said["identity"].as_str().unwrap().to_owned(), said["steps"][1].to_string())
    };
    let url = format!("http://{}/keys", backend.address);
    assert_eq!(of(&url, &[]).0, "ip:127.0.0.1");
    assert_eq!(backend.seen().len(), 0, "nothing was presented, so nothing is fetched");
    let (identity, step) = of(&url, &[&field]);
    assert_eq!((identity.as_str(), backend.seen().len()), ("user:ann", 1), "{step}");
    assert!(step.contains("1 key was fetched"), "{step}");
    assert!(step.contains("valid until 2096-10-02T07:06:40Z"), "{step}");
    let (identity, step) = of(&format!("http://{}/keys", nobody()), &[&field]);
    assert_eq!(identity, "ip:127.0.0.1");
    assert!(step.contains("could not be fetched"), "{step}");
}

#[test]
fn no_secret_is_ever_printed() {
    let files = Files::new(&config("ip"), TIERS);
    let good = token(&json!({ "sub": "s", "tier": "pro" }));
    let bad = format!("{good}x");
    let fields = [
        format!("Authorization: Bearer {good}"),
        format!("Authorization: Bearer {bad}"),
        format!("X-API-Key: {API_KEY}"),
        "X-API-Key: hunter2".to_owned(),
        "Cookie: session=hunter2".to_owned(),
    ];
    let query = format!("/a?token={good}");
    let url = format!("http://user:hunter2@host.test{query}");
    let secrets = [good.as_str(), &bad, API_KEY, "hunter2", SECRET];
    let check = |arguments: &[&str]| {
        for format in ["human", "json"] {
            let ended = files.explain(&[arguments, &["--format", format]].concat());
            let said = ended.output + &ended.errors;
            for secret in secrets {
                assert!(!said.contains(secret), "{arguments:?} told {secret}: {said}");
            }
        }
    };
    for field in &fields {
        check(&["GET", "/a/b", "--header", field]);
        check(&["GET", &query, "--header", &field.replace(':', "")]);
        check(&["GET", &url, "--header", &field.replace(": ", " x: ")]);
    }
    check(&["GET", &query[1..]]);
    check(&["GET", &format!("hunter2:{good}")]);
}

#[test]
fn wrong_usage_ends_with_2() {
    let check = |arguments: &[&str], expected: &str| {
        let ended = explain(arguments);
        assert_eq!((ended.code, ended.output.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(ended.errors.contains(expected), "{arguments:?}: {}", ended.errors);
    };
    check(&["GET"], "<PATH>");
    check(&["G T", "/"], "METHOD: \"G T\", expected a method of HTTP, such as GET");
    check(&["GET", "a"], "PATH: another form, expected a path that begins with /, or a whole URL");
    check(&["GET", "/", "--ip", "nowhere"], "'nowhere' for '--ip <ADDR>'");
    check(
        &["GET", "/", "--header", "X-A: b", "--header", "none"],
        "--header: no colon in header 2, expected 'NAME: VALUE'",
    );
    check(&["GET", "/", "--format", "xml"], "human, json");
    check(&["GET", "/", "--header", "no colon"], "--header: no colon in header 1");
    check(&["GET", "/", "--tiers", "/nowhere.yaml"], "cannot be read");
}

#[test]
fn a_variable_says_the_same_as_an_option() {
    let mut command = command(&["GET", "/fo/history/1"]);
    let files = Files::new(&config("ip"), TIERS);
    command.env("TOLLGATE_CONFIG", files.path("tollgate.yaml"));
    command.env("TOLLGATE_TIERS", files.path("tiers.yaml"));
    command.env("TOLLGATE_IP", "127.0.0.9").env("TOLLGATE_FORMAT", "json");
    command.env("TOLLGATE_HEADER", "X-Forwarded-For: 10.0.0.1\nHost: partner.test");
    let said: Value = serde_json::from_str(&end_of(command).output).unwrap();
    assert_eq!(said["request"]["peer"], "127.0.0.9");
    let [tier, endpoint] = ["tier", "endpoint"].map(|key| said[key].as_str().unwrap());
    assert_eq!((tier, endpoint), ("premium", "partner"));
}

#[test]
fn it_reads_well() {
    let ended = explain(&["GET", "/anything/else", "--ip", "2001:db8::1"]);
    assert_eq!((ended.code, ended.errors.as_str()), (Some(0), ""));
    for line in [
        "GET /anything/else",
        "2  Identity  ip:2001:db8::/64",
        "             → default     default_tier is free",
        "             → path  /anything/else meets no rule",
        "             tier:minute    100     1    99  in 61 s      enforce",
        "6  Verdict   allow",
        "             Forwarded: every limit has room.",
        "               X-RateLimit-Remaining: 99",
    ] {
        assert!(ended.output.lines().any(|it| it == line), "no {line:?} in\n{}", ended.output);
    }

    let files = Files::new(&config("ip"), TIERS);
    let long = format!("/fo/{}/{}", "long ".repeat(40).replace(' ', "%20"), "x".repeat(300));
    let user = format!("Authorization: Bearer {}", token(&json!({ "sub": "u".repeat(256) })));
    for arguments in [
        &["get", "/fo/%1b%5b2J/%250a", "--header", "X-Forwarded-For: 10.0.0.1"][..],
        &["GET", &long, "--header", &user],
        &["GET", "/fo/history/x", "--header", "Host: \u{202e}"],
        &["GET", "/DEAR"],
        &["GET", "/a\u{9b}2J"],
    ] {
        let ended = files.explain(arguments);
        assert_eq!(ended.code, Some(0), "{}", ended.errors);
        for line in ended.output.lines() {
            assert!(line.chars().count() <= 100, "{} characters: {line}", line.chars().count());
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
    }
    let ended = files.explain(&["get", "/"]);
    let warning = "warning: get is another method than GET: methods are case-sensitive";
    assert!(ended.output.lines().any(|line| line == warning), "{}", ended.output);
}

#[test]
fn it_says_why_a_rule_wins_and_which_it_nearly_met() {
    let files = Files::new(&config("ip"), TIERS);
    let notes = |arguments: &[&str]| {
        let said = files.explain_json(arguments);
        let notes: Vec<String> =
            said["steps"][3]["notes"].as_array().unwrap().iter().map(|it| it.to_string()).collect();
        notes.join("\n")
    };
    let said = notes(&["GET", "/fo/history/x"]);
    assert!(
        said.contains("history wins over fo (/fo/**): in segment 2, history is closer"),
        "{said}"
    );
    assert!(
        said.contains("partner (/fo/history/** on partner.test) has this path, but another host"),
        "{said}"
    );
    let said = notes(&["GET", "http://partner.test/fo/history/x"]);
    assert!(
        said.contains("partner wins over history (GET /fo/history/**): it names the host"),
        "{said}"
    );
    let said = notes(&["GET", "/healthz"]);
    assert!(
        said.contains("health wins over cheap (/{any}): in segment 1, healthz is closer"),
        "{said}"
    );
    assert!(said.contains("health is exempt"), "{said}");
    let said = notes(&["POST", "/fo/history/x"]);
    assert!(
        said.contains("history (GET /fo/history/**) has this path, but another method"),
        "{said}"
    );
}

#[test]
fn the_shipped_files_are_explained() {
    let repository =
        |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(name).display().to_string();
    let (config, tiers) = (repository("config/tollgate.yaml"), repository("config/tiers.yaml"));
    let files = ["--config", &config, "--tiers", &tiers, "--format", "json"];
    let of = |request: &[&str]| -> Value {
        serde_json::from_str(&explain(&[request, &files].concat()).output).unwrap()
    };
    assert_eq!(of(&["GET", "/fo/history/2025"])["endpoint"], "history");
    assert_eq!(of(&["GET", "/reports/7/export"])["cost"], 10);
    assert_eq!(of(&["GET", "/ws/feed"])["mode"], "shadow");
    let redis = Files::new("store: { redis: { on_failure: closed } }\n", TIERS);
    assert_eq!(redis.explain_json(&["GET", "/"])["on_failure"], "closed");
}

/// A database of subscriptions is asked for users alone, and has no say where it does not answer.
#[test]
fn the_database_of_subscriptions_is_asked() {
    let of = |url: &str, claims: &Value| {
        let lookup = format!(
            "{}tier_lookup: {{ redis: {{ url: \"{url}\", hash: \"user:{{id}}\", field: plan }} }}\n",
            config("ip")
        );
        let files = Files::new(&lookup, TIERS);
        let bearer = format!("Authorization: Bearer {}", token(claims));
        let said = files.explain_json(&["GET", "/a/b", "--header", &bearer]);
        let database = said["steps"][2]["looked_at"][3]["found"].as_str().unwrap().to_owned();
        (said["tier"].as_str().unwrap().to_owned(), database)
    };
    let silent = of(&format!("redis://{}", nobody()), &json!({ "sub": "ann" }));
    assert_eq!(silent, ("free".into(), "gave no answer, so it has no say".into()));
    let plan = of(&format!("redis://{}", nobody()), &json!({ "sub": "ann", "tier": "pro" }));
    assert!(plan.0 == "premium" && plan.1.starts_with("not asked"), "{plan:?}");

    let Some(server) = redis::RedisServer::spawn_tcp() else { return };
    server.words("HSET user:ann plan Pro");
    let found = of(&server.tcp_url(), &json!({ "sub": "ann" }));
    assert_eq!(found, ("premium".into(), "Pro, which is premium".into()));
    let nothing = of(&server.tcp_url(), &json!({ "sub": "bob" }));
    assert_eq!(nothing, ("free".into(), "knows no subscription of user:bob".into()));
}

/// Apart from the time, which stands in for itself.
#[test]
fn the_readme_shows_what_it_says() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let block = |start: &str| {
        let text = &readme[readme.find(start).unwrap_or_else(|| panic!("no {start:?}"))..];
        text[..text.find("```").unwrap()].to_owned()
    };
    let directory = tempfile::tempdir().unwrap();
    let policy = block("default_tier: free\ntiers:\n");
    std::fs::write(directory.path().join("tiers.yaml"), policy).unwrap();
    let shown = block("$ tollgate explain ");
    let (line, shown) = shown.split_once('\n').unwrap();
    let arguments: Vec<&str> = line.split(' ').skip(3).collect();
    let mut command = command(&arguments);
    command.current_dir(directory.path());
    let said = end_of(command).output;
    let timeless = |text: &str| {
        let of = |line: &str| match line.split_once("Reset: ") {
            Some((before, _)) => before.to_owned(),
            None if line.contains("tier:hour") => {
                line.split_whitespace().filter(|word| !word.starts_with("36")).collect()
            }
            None => line.to_owned(),
        };
        text.lines().map(of).collect::<Vec<String>>()
    };
    assert_eq!(timeless(&said), timeless(shown));
}
