//! The real binary and callers with tokens and API keys: who is limited as whom, what is refused,
//! what is counted, what the upstream gets to see, and what nobody ever sees.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/redis.rs"]
mod redis;
mod support;
#[path = "support/tokens.rs"]
mod tokens;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use redis::{RedisServer, Reply};
use support::{Answer, Backend, Client, Start, Tollgate, nobody, wait_until};
use tokens::{SECRET, Signer, hs256, in_seconds};

const TIERS: &str = "
default_tier: free
tiers:
  free: { per_minute: 3 }
  premium: { per_minute: 5 }
  enterprise: { per_minute: 7 }
subscriptions: { pro: premium }
identities: { 'user:vip': enterprise, 'user:bad': deny, 'key:partner': enterprise }
";

fn start(backend: &Backend, identity: &str) -> Tollgate {
    let config = format!("identity: {identity}\nlog: {{ level: trace }}\n");
    Start::default().upstream(backend.address).config(&config).tiers(TIERS).run()
}

fn by_secret(rest: &str) -> String {
    format!("[{{ jwt: {{ secret: '{SECRET}'{rest} }} }}, {{ ip: {{}} }}]")
}

fn get_with(tollgate: &Tollgate, fields: &[(&str, &str)]) -> Answer {
    request(tollgate.data, "/", fields)
}

fn request(address: SocketAddr, target: &str, fields: &[(&str, &str)]) -> Answer {
    let fields: String =
        fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("GET {target} HTTP/1.1\r\nHost: test\r\n{fields}\r\n");
    Client::connect(address).send(head).answer()
}

fn with_token(tollgate: &Tollgate, token: &str) -> Answer {
    get_with(tollgate, &[("Authorization", &format!("Bearer {token}"))])
}

/// Status and limit: 3 is FREE, 5 PREMIUM, 7 ENTERPRISE; and how many are left.
fn seen(answer: &Answer) -> (u16, u64, u64) {
    let limit = answer.number("x-ratelimit-limit");
    (answer.status, limit, answer.number("x-ratelimit-remaining"))
}

fn identity_errors(tollgate: &Tollgate, reason: &str) -> f64 {
    tollgate.metric(&format!("tollgate_identity_errors_total{{reason=\"{reason}\"}}"))
}

fn hits(tollgate: &Tollgate, kind: &str, tier: &str) -> f64 {
    let labels = format!("identifier_type=\"{kind}\",tier=\"{tier}\",endpoint=\"other\"");
    tollgate.metric(&format!("rate_limit_hits_total{{{labels}}}"))
}

#[test]
fn users_are_limited_by_who_they_are_not_where_they_are() {
    let backend = Backend::ok();
    let tollgate = start(&backend, &by_secret(""));
    let exp = in_seconds(600);
    let of = |claims: Value| hs256(&claims);
    let plain = of(json!({"user_id": 42, "exp": exp}));
    // The same user by another token, and by another claim.
    let other = of(json!({"sub": "42", "exp": exp, "jti": "2"}));
    assert_eq!(seen(&with_token(&tollgate, &plain)), (200, 3, 2));
    assert_eq!(seen(&with_token(&tollgate, &plain)), (200, 3, 1));
    assert_eq!(seen(&with_token(&tollgate, &other)), (200, 3, 0));
    assert_eq!(with_token(&tollgate, &plain).status, 429);
    // Another user of the same address, and the address itself.
    let another = of(json!({"user_id": 43, "exp": exp}));
    assert_eq!(seen(&with_token(&tollgate, &another)), (200, 3, 2));
    assert_eq!(seen(&tollgate.get("/")), (200, 3, 2));
    // The tier by the token, in any case of letters, and through subscriptions.
    for (user, tier, limit) in [
        ("a", json!("PREMIUM"), 5),
        ("b", json!("Pro"), 5),
        ("c", json!("enterprise"), 7),
        ("d", json!("gold"), 3),
        ("e", json!(null), 3),
        ("vip", json!("free"), 7),
    ] {
        let token = of(json!({"sub": user, "tier": tier, "exp": exp}));
        assert_eq!(seen(&with_token(&tollgate, &token)), (200, limit, limit - 1), "{user}");
    }
    let token = of(json!({"sub": "s", "subscription": "pro", "exp": exp}));
    assert_eq!(seen(&with_token(&tollgate, &token)), (200, 5, 4));
    assert_eq!(with_token(&tollgate, &of(json!({"sub": "bad", "exp": exp}))).status, 403);

    wait_until("everything is counted", || hits(&tollgate, "user", "free") >= 7.0);
    assert_eq!(hits(&tollgate, "user", "free"), 7.0);
    assert_eq!(hits(&tollgate, "user", "premium"), 3.0);
    assert_eq!(hits(&tollgate, "user", "enterprise"), 2.0);
    assert_eq!(hits(&tollgate, "ip", "free"), 1.0);
    assert_eq!(identity_errors(&tollgate, "unknown_subscription"), 1.0);
    assert_eq!(tollgate.log().matches("no tier is known for this subscription").count(), 1);
    assert!(tollgate.log().contains("gold"));
    // The backend sees the token: it has its own use for it.
    assert!(backend.seen().iter().any(|it| it.field("authorization").is_some()));
}

#[test]
fn tokens_are_found_in_cookies_and_queries_too() {
    let backend = Backend::ok();
    let tollgate = start(&backend, &by_secret(", cookie: session, query: access_token"));
    let token = |user: &str| hs256(&json!({"sub": user, "tier": "premium", "exp": in_seconds(60)}));
    let by_cookie = get_with(&tollgate, &[("Cookie", &format!("a=b; session={}", token("c")))]);
    assert_eq!(seen(&by_cookie), (200, 5, 4));
    let target = format!("/x?a=b&access_token={}", token("q"));
    assert_eq!(seen(&request(tollgate.data, &target, &[])), (200, 5, 4));
    assert_eq!(backend.last().target(), target);
    // The field goes before the cookie; another scheme of it is no token.
    let fields: [(&str, &str); 2] = [
        ("Authorization", &format!("bearer {}", token("c"))),
        ("Cookie", &format!("session={}", token("other"))),
    ];
    assert_eq!(seen(&get_with(&tollgate, &fields)), (200, 5, 3));
    let basic = get_with(&tollgate, &[("Authorization", "Basic dXNlcjpwYXNz")]);
    assert_eq!(seen(&basic), (200, 3, 2));
    assert_eq!(identity_errors(&tollgate, "malformed"), 0.0);
}

/// Each kind of bad token: by address and counted under `ip`, 401 under `reject`.
#[test]
fn invalid_tokens_are_counted_by_reason_and_limited_by_address_or_refused() {
    let backend = Backend::ok();
    let rest = ", issuer: us, max_bytes: 1KiB";
    let lenient = start(&backend, &by_secret(rest));
    let strict = start(&backend, &by_secret(&format!("{rest}, on_invalid: reject")));
    let exp = in_seconds(600);
    let forger = Signer::of_secret(Algorithm::HS256, &[9; 32]);
    let cases = [
        ("malformed", "rubbish".to_owned()),
        ("malformed", String::new()),
        ("malformed", hs256(&json!({"sub": "1", "iss": "us", "x": "x".repeat(2_000)}))),
        ("expired", hs256(&json!({"sub": "1", "iss": "us", "exp": in_seconds(-3_600)}))),
        ("expired", hs256(&json!({"sub": "1", "iss": "us", "nbf": in_seconds(3_600)}))),
        ("bad_signature", forger.token(&json!({"sub": "1", "iss": "us", "exp": exp}))),
        ("unacceptable", hs256(&json!({"sub": "1", "iss": "them", "exp": exp}))),
        ("unacceptable", Signer::new(Algorithm::RS256).token(&json!({"sub": "1", "iss": "us"}))),
        ("no_user", hs256(&json!({"iss": "us", "exp": exp}))),
    ];
    for (count, (reason, token)) in cases.iter().enumerate() {
        let before = identity_errors(&lenient, reason);
        let answer = with_token(&lenient, token);
        let expected = if count < 3 { 200 } else { 429 };
        assert_eq!(answer.status, expected, "{reason}: all of them are one address");
        wait_until("it is counted", || identity_errors(&lenient, reason) == before + 1.0);

        let answer = with_token(&strict, token);
        assert_eq!(answer.status, 401, "{reason}");
        assert_eq!(answer.text(), r#"{"error":"Unauthorized"}"#);
        assert_eq!(answer.field("content-type"), Some("application/json"));
        let challenge = "Bearer realm=\"tollgate\", error=\"invalid_token\"";
        assert_eq!(answer.field("www-authenticate"), Some(challenge));
        let status = "tollgate; error=http_request_denied";
        assert_eq!(answer.field("proxy-status"), Some(status));
        assert_eq!(answer.field("x-ratelimit-limit"), None);
    }
    let total = cases.len() as f64;
    for tollgate in [&lenient, &strict] {
        let errors = "error_rate_total{error_type=\"auth_invalid\",endpoint=\"other\"}";
        wait_until("errors are counted", || tollgate.metric(errors) == total);
    }
    // Nobody was charged for a 401, and a good token goes through all the while.
    assert_eq!(seen(&strict.get("/")), (200, 3, 2));
    let good = hs256(&json!({"sub": "7", "iss": "us", "exp": exp}));
    assert_eq!(seen(&with_token(&strict, &good)), (200, 3, 2));
    // Two lines of the field are no token: the backend may take the other one.
    let bearer = format!("Bearer {good}");
    let twice = [("Authorization", bearer.as_str()), ("Authorization", bearer.as_str())];
    assert_eq!(get_with(&strict, &twice).status, 401);
}

#[test]
fn a_flood_of_wrong_signatures_of_one_address_is_not_looked_at() {
    let backend = Backend::ok();
    let tollgate = start(&backend, &by_secret(""));
    let forger = Signer::of_secret(Algorithm::HS256, &[9; 32]);
    let good = hs256(&json!({"sub": "known", "exp": in_seconds(600)}));
    assert_eq!(with_token(&tollgate, &good).status, 200);
    let mut client = tollgate.connect();
    for number in 0..1_000 {
        let token = forger.token(&json!({"sub": number}));
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n"));
        client.answer();
    }
    wait_until("all are counted", || {
        identity_errors(&tollgate, "throttled") + identity_errors(&tollgate, "bad_signature")
            == 1_000.0
    });
    assert!(identity_errors(&tollgate, "throttled") > 0.0);
    assert!(identity_errors(&tollgate, "bad_signature") >= 50.0);
    // Whose token is known is not concerned.
    assert_eq!(seen(&with_token(&tollgate, &good)), (200, 3, 1));
    let hits = tollgate.metric("tollgate_token_cache_lookups_total{result=\"hit\"}");
    assert_eq!(hits, 1.0);
    assert!(tollgate.metric("tollgate_token_cache_entries") >= 50.0);
}

fn sha256(text: &str) -> String {
    tollgate::identity::cache::hash(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn keys_file(directory: &tempfile::TempDir, text: &str) -> String {
    let path = directory.path().join("keys.yaml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn api_keys_are_known_by_their_hash_and_stripped() {
    let backend = Backend::ok();
    let directory = tempfile::tempdir().unwrap();
    let text = format!(
        "keys:
  - {{ id: acme, sha256: {}, tier: premium, expires: null }}
  - {{ id: acme, sha256: {}, tier: Premium }}
  - {{ id: partner, sha256: {} }}
  - {{ id: late, sha256: {}, tier: premium, expires: 2020-01-01 }}
",
        sha256("key-one"),
        sha256("key-two"),
        sha256("key-partner"),
        sha256("key-late")
    );
    let file = keys_file(&directory, &text);
    let entry = |rest: &str| format!("[{{ api_key: {{ keys_file: {file}{rest} }} }}]");
    let tollgate = start(&backend, &entry(", strip: true"));
    let with_key = |key: &str| get_with(&tollgate, &[("X-API-Key", key)]);
    assert_eq!(seen(&with_key("key-one")), (200, 5, 4));
    assert_eq!(seen(&with_key("key-two")), (200, 5, 3), "two keys of one owner share a limit");
    assert_eq!(seen(&with_key("key-partner")), (200, 7, 6));
    assert_eq!(hits(&tollgate, "key", "premium"), 2.0);
    for (key, reason) in [("key-late", "expired"), ("key-three", "unknown_key")] {
        assert_eq!(with_key(key).status, 200, "by address");
        wait_until("it is counted", || identity_errors(&tollgate, reason) == 1.0);
    }
    assert!(backend.seen().iter().all(|it| it.field("x-api-key").is_none()));

    let strict = start(&backend, &entry(", header: X-Key, on_invalid: reject"));
    let answer = get_with(&strict, &[("X-Key", "key-three")]);
    assert_eq!((answer.status, answer.text()), (401, r#"{"error":"Unauthorized"}"#.to_owned()));
    assert_eq!(answer.field("www-authenticate"), Some("ApiKey realm=\"x-key\""));
    assert_eq!(get_with(&strict, &[("X-Key", "key-one")]).status, 200);
    assert_eq!(backend.last().field("x-key"), Some("key-one"), "not stripped unless asked for");
    assert_eq!(strict.get("/").status, 200, "nothing presented, nothing refused");
}

#[test]
fn what_is_wrong_with_a_file_of_keys_is_said_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let hash = sha256("x");
    let text = format!(
        "keys:
  - {{ id: a, sha256: {hash}, tier: gold }}
  - {{ id: b, sha256: {hash} }}
  - {{ sha256: my-secret-api-key }}
  - {{ id: c, sha265: {hash}, expires: soon }}
"
    );
    let file = keys_file(&directory, &text);
    let config = directory.path().join("tollgate.yaml");
    std::fs::write(&config, format!("identity: [{{ api_key: {{ keys_file: {file} }} }}]")).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["check", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stdout).unwrap();
    for line in [
        "keys.yaml:3:22: keys[1].sha256: the hash of keys[0] already",
        "keys.yaml:4:5: keys[2].id: missing, expected whose key it is",
        "keys.yaml:4:15: keys[2].sha256: 17 characters that are no hash, expected 64 hexadecimal",
        "keys.yaml:5:14: keys[3].sha265: unknown key, expected one of id, sha256, tier, expires",
        "did you mean \"sha256\"?",
        "keys[3].expires: \"soon\", expected a day, 2027-01-31, or a moment in UTC",
    ] {
        assert!(said.contains(line), "{line}\n--- is not in\n{said}");
    }
    std::fs::write(
        directory.path().join("keys.yaml"),
        text.lines().take(2).collect::<Vec<_>>().join("\n"),
    )
    .unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["check", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("keys[0].tier: \"gold\" is neither a tier nor a subscription"), "{said}");
    assert_eq!(output.status.code(), Some(0), "a warning is no error");
}

#[test]
fn files_of_keys_and_secrets_are_read_again_when_they_change() {
    let backend = Backend::ok();
    let directory = tempfile::tempdir().unwrap();
    let entry = |key: &str, tier: &str| {
        format!("keys: [{{ id: acme, sha256: {}, tier: {tier} }}]", sha256(key))
    };
    let keys = keys_file(&directory, &entry("first", "premium"));
    let secret = directory.path().join("secret");
    let secret_file = secret.display();
    std::fs::write(&secret, format!("{SECRET}\n")).unwrap();
    let identity = format!(
        "[{{ jwt: {{ secret_file: {secret_file}, on_invalid: reject }} }}, \
         {{ api_key: {{ keys_file: {keys}, on_invalid: reject }} }}]"
    );
    let tollgate = start(&backend, &identity);
    let with_key = |key: &str| get_with(&tollgate, &[("X-API-Key", key)]).status;
    let reloads = |result: &str| {
        tollgate.metric(&format!("tollgate_config_reloads_total{{result=\"{result}\"}}"))
    };
    assert_eq!((with_key("first"), with_key("second")), (200, 401));

    // Another list, whole from one moment to the next.
    let replace = |text: &str| {
        let new = directory.path().join("keys.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &keys).unwrap();
    };
    replace(&entry("second", "enterprise"));
    wait_until("the second key is known", || with_key("second") == 200);
    assert_eq!(with_key("first"), 401);
    assert_eq!(reloads("ok"), 1.0);

    // A mistake leaves what there was.
    replace("keys: [{ id: acme, sha256: nothing }]");
    wait_until("it is refused", || reloads("error") == 1.0);
    assert_eq!(with_key("second"), 200);
    assert!(tollgate.log().contains("keys.yaml:1:28: keys[0].sha256: 7 characters that are no"));

    // The secret is changed: tokens of the old one are worth nothing, those that are known too.
    let new_secret = "another secret, at least as long as it has to be";
    let old = hs256(&json!({"sub": "1", "exp": in_seconds(600)}));
    let new = Signer::of_secret(Algorithm::HS256, new_secret.as_bytes());
    let new = new.token(&json!({"sub": "1", "exp": in_seconds(600)}));
    assert_eq!(with_token(&tollgate, &old).status, 200);
    assert_eq!(with_token(&tollgate, &new).status, 401);
    std::fs::write(&secret, format!("{new_secret}\n")).unwrap();
    wait_until("the new secret counts", || with_token(&tollgate, &new).status == 200);
    assert_eq!(with_token(&tollgate, &old).status, 401);
    std::fs::write(&secret, "short").unwrap();
    wait_until("a short one is refused", || reloads("error") == 2.0);
    assert_eq!(with_token(&tollgate, &new).status, 200);
    assert!(!tollgate.log().contains(new_secret) && !tollgate.log().contains(SECRET));
}

/// A server of key sets: answers what it was last told to, and counts.
struct KeyServer {
    address: SocketAddr,
    body: Arc<Mutex<String>>,
    fetches: Arc<AtomicUsize>,
}

/// Answers one connection.
fn serve_keys(stream: &mut (impl Read + Write), body: &str) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }
    // An empty body stands for a server that fails.
    let status = if body.is_empty() { "500 Broken" } else { "200 OK" };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + body).as_bytes()).ok();
    stream.flush().ok();
}

impl KeyServer {
    fn spawn(body: &str) -> Self {
        Self::spawn_with(body, serve_keys)
    }

    /// The same over TLS, with this certificate and key.
    fn spawn_tls(body: &str, directory: &std::path::Path) -> Self {
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};
        let certificate = CertificateDer::from_pem_file(directory.join("server.crt")).unwrap();
        let key = PrivateKeyDer::from_pem_file(directory.join("server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let config = Arc::new(config);
        Self::spawn_with(body, move |stream, body| {
            let mut connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = rustls::Stream::new(&mut connection, stream);
            serve_keys(&mut stream, body);
            stream.conn.send_close_notify();
            stream.flush().ok();
        })
    }

    fn spawn_with(body: &str, serve: impl Fn(&mut TcpStream, &str) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let body = Arc::new(Mutex::new(body.to_owned()));
        let fetches = Arc::new(AtomicUsize::new(0));
        let (its_body, count) = (Arc::clone(&body), Arc::clone(&fetches));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                count.fetch_add(1, Ordering::SeqCst);
                let body = its_body.lock().unwrap().clone();
                serve(&mut stream, &body);
            }
        });
        KeyServer { address, body, fetches }
    }

    fn publish(&self, body: &str) {
        *self.body.lock().unwrap() = body.to_owned();
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }
}

fn key_set(keys: &[(&Signer, &str)]) -> String {
    let keys: Vec<Value> = keys.iter().map(|(signer, kid)| signer.jwk(kid)).collect();
    json!({ "keys": keys }).to_string()
}

#[test]
fn published_keys_are_fetched_rotated_and_kept_through_an_outage() {
    let backend = Backend::ok();
    let (old, new) = (Signer::new(Algorithm::RS256), Signer::new(Algorithm::ES256));
    let server = KeyServer::spawn(&key_set(&[(&old, "old")]));
    let url = format!("http://{}/.well-known/jwks.json", server.address);
    let rest = "algorithms: [RS256, ES256], on_invalid: reject";
    let tollgate = start(&backend, &format!("[{{ jwt: {{ jwks_url: '{url}', {rest} }} }}]"));
    let exp = in_seconds(600);
    let token = |signer: &Signer, kid: &str| {
        signer.token_with_kid(Some(kid), &json!({"sub": kid, "exp": exp}))
    };
    let stranger = Signer::new(Algorithm::ES256);
    let tokens: HashMap<&str, String> = [("old", &old), ("new", &new), ("stranger", &stranger)]
        .map(|(kid, signer)| (kid, token(signer, kid)))
        .into();
    let status_of = |kid: &str| with_token(&tollgate, &tokens[kid]).status;
    assert_eq!(server.fetches(), 1, "before the first request");
    assert_eq!(status_of("old"), 200);
    assert_eq!(tollgate.metric("tollgate_jwks_keys"), 1.0);
    assert_eq!(tollgate.metric("dependency_health_status{dependency=\"jwks\"}"), 1.0);
    let health = tollgate.admin("/health").text();
    let health: Value = serde_json::from_str(&health).unwrap();
    assert_eq!(health["dependencies"]["jwks"], "healthy");
    assert_eq!(health["circuit_breakers"]["jwks"], "closed");
    // The key is a stranger's: nothing that was just fetched again would help.
    assert_eq!(status_of("stranger"), 401);
    for number in 0..20 {
        let other = token(&stranger, &format!("stranger {number}"));
        assert_eq!(with_token(&tollgate, &other).status, 401);
    }
    assert!(server.fetches() <= 2, "{} fetches", server.fetches());
    wait_until("they are counted", || identity_errors(&tollgate, "unknown_kid") == 21.0);

    // A key that was rotated in is found by the first token that names it, once a fetch is due.
    server.publish(&key_set(&[(&old, "old"), (&new, "new")]));
    wait_until("the new key is known", || status_of("new") == 200);
    assert_eq!(tollgate.metric("tollgate_jwks_keys"), 2.0);
    assert_eq!(status_of("old"), 200);

    // An outage, and then rubbish: what was fetched holds.
    server.publish("");
    wait_until("a fetch has failed", || {
        status_of("stranger");
        tollgate.metric("tollgate_jwks_fetches_total{result=\"error\"}") >= 1.0
    });
    server.publish("<html>not a key set</html>");
    assert_eq!(status_of("new"), 200);
    assert_eq!(status_of("old"), 200);
    assert_eq!(tollgate.metric("dependency_health_status{dependency=\"jwks\"}"), 0.5);
    assert!(tollgate.log().contains("the last good one holds"));
    // The old key is withdrawn: its tokens, known ones too, are worth nothing.
    server.publish(&key_set(&[(&new, "new")]));
    wait_until("the old key is forgotten", || status_of("old") == 401);
    assert_eq!(tollgate.metric("dependency_health_status{dependency=\"jwks\"}"), 1.0);
}

#[test]
fn a_start_without_the_keys_serves_and_finds_them_later() {
    let backend = Backend::ok();
    let signer = Signer::new(Algorithm::EdDSA);
    let server = KeyServer::spawn("");
    let url = format!("http://{}/jwks", server.address);
    let tollgate =
        start(&backend, &format!("[{{ jwt: {{ jwks_url: '{url}', algorithms: [EdDSA] }} }}]"));
    let token = signer.token(&json!({"sub": "1", "tier": "premium", "exp": in_seconds(600)}));
    assert_eq!(seen(&with_token(&tollgate, &token)).1, 3, "by address until the keys are there");
    assert_eq!(tollgate.metric("dependency_health_status{dependency=\"jwks\"}"), 0.0);
    server.publish(&key_set(&[(&signer, "k")]));
    wait_until("the keys are there", || seen(&with_token(&tollgate, &token)).1 == 5);
}

#[test]
fn a_key_set_is_fetched_over_tls_from_who_can_prove_to_be_it() {
    let script = "
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \\
            -subj /CN=authority -keyout ca.key -out ca.crt &&
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \\
            -subj /CN=other -keyout other.key -out other.crt &&
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \\
            -subj /CN=localhost -keyout server.key -out server.csr &&
        printf 'subjectAltName=DNS:localhost\\n' > server.ext &&
        openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \\
            -extfile server.ext -out server.crt";
    let directory = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new("sh");
    let made = command.args(["-c", script]).current_dir(&directory).output().unwrap();
    assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));

    let backend = Backend::ok();
    let signer = Signer::new(Algorithm::ES256);
    let server = KeyServer::spawn_tls(&key_set(&[(&signer, "k")]), directory.path());
    let token = signer.token_with_kid(Some("k"), &json!({"sub": "1", "exp": in_seconds(600)}));
    let status = |name: &str, authority: &str| {
        let url = format!("https://{name}:{}/jwks", server.address.port());
        let rest = "algorithms: [ES256], on_invalid: reject";
        let config = format!("identity: [{{ jwt: {{ jwks_url: '{url}', {rest} }} }}]\n");
        let authority = directory.path().join(authority);
        let tollgate = Start::default()
            .upstream(backend.address)
            .config(&config)
            .variable("SSL_CERT_FILE", authority.to_str().unwrap())
            .run();
        (with_token(&tollgate, &token).status, tollgate.log())
    };
    assert_eq!(status("localhost", "ca.crt").0, 200);
    let (refused, log) = status("localhost", "other.crt");
    assert_eq!(refused, 401);
    assert!(log.contains("invalid peer certificate: UnknownIssuer"), "{log}");
    let (refused, log) = status("127.0.0.1", "ca.crt");
    assert_eq!(refused, 401);
    assert!(log.contains("invalid peer certificate"), "{log}");
}

/// Secrets are planted wherever tollgate is given one; then everything that it says is searched.
#[test]
fn no_secret_is_ever_said() {
    let backend = Backend::ok();
    let directory = tempfile::tempdir().unwrap();
    let key = "planted-api-key-5c1f";
    let file = keys_file(&directory, &format!("keys: [{{ id: acme, sha256: {} }}]", sha256(key)));
    let identity = format!(
        "[{{ jwt: {{ secret: '{SECRET}', cookie: sid, query: tok }} }}, \
         {{ api_key: {{ keys_file: {file} }} }}]"
    );
    let tollgate = start(&backend, &identity);
    let good = hs256(&json!({"sub": "secret-free", "exp": in_seconds(600)}));
    let bad = Signer::of_secret(Algorithm::HS256, &[3; 32]).token(&json!({"sub": "x"}));
    let expired = hs256(&json!({"sub": "x", "exp": 1}));
    let mut said = String::new();
    for token in [&good, &bad, &expired] {
        for fields in [
            vec![("Authorization", format!("Bearer {token}"))],
            vec![("Cookie", format!("sid={token}"))],
            vec![("Authorization", format!("Bearer  {token} ")), ("X-API-Key", key.to_owned())],
        ] {
            let fields: Vec<(&str, &str)> = fields.iter().map(|(n, v)| (*n, v.as_str())).collect();
            said += &get_with(&tollgate, &fields).head;
        }
        let answer = request(tollgate.data, &format!("/a?tok={token}"), &[]);
        said += &(answer.head.clone() + &answer.text());
    }
    for key in [key, "planted-unknown-key-9d2e"] {
        said += &get_with(&tollgate, &[("X-API-Key", key)]).head;
    }
    for path in ["/metrics", "/health", "/livez", "/readyz", "/nothing"] {
        said += &tollgate.admin(path).text();
    }
    said += &tollgate.log();
    let signature = |token: &str| token.rsplit('.').next().unwrap().to_owned();
    let planted = [SECRET.to_owned(), key.to_owned(), "planted-unknown-key-9d2e".to_owned()];
    let hashes = [sha256(key), sha256(&good)];
    let signatures = [&good, &bad, &expired].map(|token| signature(token));
    for secret in planted.iter().chain(&hashes).chain(&signatures) {
        assert!(!said.contains(secret.as_str()), "{secret} was said in\n{said}");
    }
    assert!(said.contains("rate_limit_hits_total"), "something was said at all");
}

/// The same for what is shared and what is asked: users in Redis, passwords of dependencies that
/// answer and of one that does not, secrets of files that are reloaded and refused.
#[test]
fn no_secret_reaches_redis_or_the_log_of_a_dependency() {
    let acl = ["--user", "planted", "on", ">planted-redis-pw", "~*", "&*", "+@all"];
    let Some(server) = RedisServer::spawn_tcp_with(&acl) else { return };
    let backend = Backend::ok();
    let directory = tempfile::tempdir().unwrap();
    let file = keys_file(&directory, "keys: []");
    let keys = KeyServer::spawn("");
    let config = format!(
        "identity:
  - jwt: {{ secret: '{SECRET}' }}
  - jwt: {{ header: X-Other, jwks_url: 'http://{}/set?key=planted-query', algorithms: [RS256] }}
  - api_key: {{ keys_file: {file} }}
identity_hash_secret: planted-identity-hash-secret
store: {{ redis: {{ url: 'redis://planted:planted-redis-pw@127.0.0.1:{}/0', timeout: 5s }} }}
tier_lookup: {{ postgres: {{ url: 'postgres://me:planted-database-pw@{}/plans' }} }}
log: {{ level: trace }}
",
        keys.address,
        server.port(),
        nobody()
    );
    let tollgate = Start::default().upstream(backend.address).config(&config).tiers(TIERS).run();
    let user = "planted-user-of-redis";
    let token = hs256(&json!({"sub": user, "exp": in_seconds(600)}));
    for _ in 0..3 {
        assert_eq!(with_token(&tollgate, &token).status, 200);
    }
    assert_eq!(with_token(&tollgate, &token).status, 429);
    assert_eq!(get_with(&tollgate, &[("X-Other", "Bearer a.b.c")]).status, 200);
    std::fs::write(&file, "keys: [{ id: a, sha256: planted-key-in-a-wrong-place }]").unwrap();
    tollgate.signal("HUP");
    wait_until("the file is refused", || {
        tollgate.metric("tollgate_config_reloads_total{result=\"error\"}") >= 1.0
    });

    let mut said = tollgate.log() + &tollgate.admin("/metrics").text();
    said += &tollgate.admin("/health").text();
    assert!(said.contains("no tier") || said.contains("database"), "the database was missed");
    let stored = server.keys();
    assert!(stored.len() >= 2, "the user and the address");
    for key in &stored {
        said += &String::from_utf8_lossy(key);
        if let Reply::Text(value) = server.command(&[b"GET", key]) {
            said += &String::from_utf8_lossy(&value);
        }
    }
    for secret in [
        SECRET,
        "planted-identity-hash-secret",
        "planted-redis-pw",
        "planted-database-pw",
        "planted-query",
        "planted-key-in-a-wrong-place",
        user,
    ] {
        assert!(!said.contains(secret), "{secret} was said in\n{said}");
    }
}
