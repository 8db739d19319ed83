//! Callers who want to be somebody else, or nobody: every way around the entries of `identity` that
//! differs from an honest request in form only. The real binary, with raw bytes.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod support;
#[path = "support/tokens.rs"]
mod tokens;

use std::net::TcpListener;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use support::{Answer, Backend, Client, Start, Tollgate, wait_until};
use tokens::{SECRET, hs256, in_seconds};
use tollgate::identity::algorithm::Algorithm;
use tollgate::identity::cache::TokenCache;
use tollgate::identity::identifier::{Identified, Identifier, JwtMethod, Method, OnInvalid};
use tollgate::identity::jwks::{KeySource, RemoteKeys};
use tollgate::identity::keys::KeySet;
use tollgate::identity::present::TokenPlaces;
use tollgate::identity::token::TokenRules;
use tollgate::limiter::time::{Micros, Timestamp};
use tollgate::metrics::registry::{Build, Metrics};
use tollgate::policy::facts::RequestFacts;

const TIERS: &str = "
default_tier: free
tiers: { free: { per_minute: 30 } }
identities: { 'user:bad': deny, 'key:bad': deny }
";

fn start(backend: &Backend, identity: &str) -> Tollgate {
    let config = format!("identity: {identity}\n");
    Start::default().upstream(backend.address).config(&config).tiers(TIERS).run()
}

/// Sends a head and what follows it, as they are.
fn raw(tollgate: &Tollgate, request: impl AsRef<[u8]>) -> Answer {
    Client::connect(tollgate.data).send(request).answer()
}

fn get(tollgate: &Tollgate, target: &str, fields: &[u8]) -> Answer {
    let head = format!("GET {target} HTTP/1.1\r\nHost: test\r\n");
    raw(tollgate, [head.as_bytes(), fields, b"\r\n"].concat())
}

fn sha256(text: &str) -> String {
    tollgate::identity::cache::hash(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A token that the backend will find must not be one that tollgate passes over.
#[test]
fn a_denied_user_is_found_in_whatever_form_the_token_comes() {
    let backend = Backend::ok();
    let places = "cookie: session, query: access_token, on_invalid: reject";
    let tollgate = start(&backend, &format!("[{{ jwt: {{ secret: '{SECRET}', {places} }} }}]"));
    let token = hs256(&json!({"sub": "bad", "exp": in_seconds(600)}));
    let bytes = token.as_bytes();
    let line = |before: &[u8], after: &[u8]| [before, bytes, after, b"\r\n"].concat();
    for (fields, target) in [
        (line(b"Authorization: Bearer ", b""), "/".to_owned()),
        (line(b"Authorization: bearer\t", b""), "/".to_owned()),
        (line(b"Authorization: BEARER \t ", b"\t"), "/".to_owned()),
        (line(b"Cookie: session=", b""), "/".to_owned()),
        // What some other cookie holds is no reason not to see this one.
        (line("Cookie: name=Jos\u{e9}; session=".as_bytes(), b""), "/".to_owned()),
        (line(b"Cookie: a=\xff; session=\"", b"\"; b=\xfe"), "/".to_owned()),
        (line(b"Cookie: a=b\r\nCookie: \xff\r\nCookie: session=", b""), "/".to_owned()),
        (Vec::new(), format!("/?access_token={token}")),
        (Vec::new(), format!("/?access%5Ftoken={token}")),
        (Vec::new(), format!("/?a=b;access_token={token};c=d")),
        (Vec::new(), format!("/?a=b&%61ccess_toke%6e={token}&c")),
    ] {
        let answer = get(&tollgate, &target, &fields);
        let shown = String::from_utf8_lossy(&fields).into_owned();
        assert_eq!(answer.status, 403, "{target} {shown}");
    }
    // What has to be decoded to be a token is not believed, and not passed over.
    let encoded = token.replace('.', "%2E");
    assert_eq!(get(&tollgate, &format!("/?access_token={encoded}"), b"").status, 401);
    assert!(backend.seen().is_empty());
}

/// Of two credentials in one field tollgate believes none, and the backend must not pick one.
#[test]
fn the_backend_sees_no_credential_that_was_not_clear() {
    let backend = Backend::ok();
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys.yaml");
    std::fs::write(&keys, format!("keys: [{{ id: bad, sha256: {} }}]", sha256("k"))).unwrap();
    let file = keys.display();
    let identity =
        format!("[{{ jwt: {{ secret: '{SECRET}' }} }}, {{ api_key: {{ keys_file: {file} }} }}]");
    let tollgate = start(&backend, &identity);
    let token = hs256(&json!({"sub": "bad", "exp": in_seconds(600)}));
    for fields in [
        format!("Authorization: Bearer {token}\r\nAuthorization: Bearer {token}\r\n"),
        format!("Authorization: Bearer {token}\r\nX-A: b\r\nauthorization: Basic YTpi\r\n"),
        "X-API-Key: k\r\nx-api-key: k\r\n".to_owned(),
        "X-API-Key: k\r\nx-api-key: \r\n".to_owned(),
    ] {
        assert_eq!(get(&tollgate, "/", fields.as_bytes()).status, 200, "known by address");
        let seen = backend.last();
        assert_eq!(seen.field("authorization"), None, "{fields}");
        assert_eq!(seen.field("x-api-key"), None, "{fields}");
    }
    assert_eq!(get(&tollgate, "/", b"X-API-Key: k\r\n").status, 403);
    // What is clear goes on as it came, whoever it is believed to be.
    assert_eq!(get(&tollgate, "/", b"Authorization: Basic YTpi\r\n").status, 200);
    assert_eq!(backend.last().field("authorization"), Some("Basic YTpi"));
}

/// `X_Key` is `X-Key` for many a backend, and a trailer may be taken for a field.
#[test]
fn a_field_that_bears_credentials_has_no_double() {
    let backend = Backend::ok();
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys.yaml");
    std::fs::write(&keys, format!("keys: [{{ id: bad, sha256: {} }}]", sha256("k"))).unwrap();
    let file = keys.display();
    let identity = format!(
        "[{{ jwt: {{ secret: '{SECRET}', header: X-User-Token }} }}, \
         {{ api_key: {{ header: X-Partner-Key, keys_file: {file}, strip: true }} }}]"
    );
    let tollgate = start(&backend, &identity);
    let fields = "X_Partner_Key: k\r\nX-Partner_Key: k\r\nX_User-Token: t\r\nX_Fine: yes\r\n";
    assert_eq!(get(&tollgate, "/", fields.as_bytes()).status, 200);
    let seen = backend.last();
    for (name, _) in &seen.fields {
        let name = name.to_ascii_lowercase().replace('_', "-");
        assert!(!["x-partner-key", "x-user-token"].contains(&name.as_str()), "{name}");
    }
    assert_eq!(seen.field("x_fine"), Some("yes"));

    let trailers = "X-Partner-Key: k\r\nX-User-Token: t\r\nX-Fine: yes\r\n";
    let names = "Trailer: X-Partner-Key, X-User-Token, X-Fine\r\n";
    let body = format!("Transfer-Encoding: chunked\r\n{names}\r\n2\r\nab\r\n0\r\n{trailers}\r\n");
    let answer = raw(&tollgate, format!("POST / HTTP/1.1\r\nHost: a\r\n{body}"));
    assert_eq!(answer.status, 200);
    let names: Vec<String> =
        backend.last().trailers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    assert_eq!(names, ["x-fine"]);
}

/// A connection goes on behind a 401 where it left off, or ends.
#[test]
fn what_follows_a_401_is_read_from_where_it_begins() {
    let backend = Backend::ok();
    let tollgate =
        start(&backend, &format!("[{{ jwt: {{ secret: '{SECRET}', on_invalid: reject }} }}]"));
    let hidden = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";
    let length = hidden.len();
    for framing in [
        format!("Content-Length: {length}\r\n\r\n{hidden}"),
        format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{hidden}\r\n0\r\n\r\n"),
    ] {
        let mut client = Client::connect(tollgate.data);
        let head = "POST / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\n";
        client.send(format!("{head}{framing}GET /next HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(client.answer().status, 401);
        assert_eq!(client.answer().status, 200);
        assert_eq!(backend.last().target(), "/next");
    }
    let mut client = Client::connect(tollgate.data);
    let head =
        |method: &str| format!("{method} / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\n\r\n");
    for method in ["HEAD", "OPTIONS", "GET"] {
        assert_eq!(client.send(head(method)).answer_to(method).status, 401, "{method}");
    }
    assert_eq!(client.get("/next").status, 200);
    assert!(backend.seen().iter().all(|it| it.target() == "/next"));
}

fn metrics() -> Arc<Metrics> {
    Metrics::new(1, Build { version: "0", commit: "", rustc: "" }, Duration::from_secs(1))
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

/// A machine whose clock was ahead must not go on refusing who was refused for that.
#[test]
fn a_token_that_a_wrong_clock_found_expired_is_good_once_the_clock_is_right() {
    let jwt = JwtMethod {
        places: TokenPlaces { header: http::header::AUTHORIZATION, cookie: None, query: None },
        rules: TokenRules {
            algorithms: [Algorithm::Hs256].into(),
            user_claims: ["sub".into()].into(),
            tier_claims: [].into(),
            issuer: None,
            audience: None,
            leeway: Micros::ZERO,
            bytes_max: 8192,
        },
        keys: Arc::new(KeySource::new(KeySet::of_secret(SECRET.as_bytes(), &[Algorithm::Hs256]))),
        remote: None,
        on_invalid: OnInvalid::Reject,
        cache: TokenCache::default(),
    };
    let identifier = Identifier::new(vec![Method::Jwt(Box::new(jwt))], metrics());
    let token = hs256(&json!({"sub": "1", "nbf": 1_000, "exp": 2_000}));
    let mut headers = http::HeaderMap::new();
    headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
    let address = "192.0.2.1".parse().unwrap();
    let facts = RequestFacts::of(&http::Method::GET, "/", None, &headers, address);
    let is_known = |seconds| {
        let identified = identifier.identify(&facts, address, at(seconds));
        matches!(identified, Identified::Known(..))
    };
    assert!(!is_known(2_500), "the clock is ahead");
    assert!(is_known(1_500), "it is right again");
    assert!(!is_known(2_000));
    assert!(!is_known(999), "it is behind");
    assert!(is_known(1_000));
}

/// Once a key set's server has failed again and again, no request waits for the next attempt.
#[test]
fn nobody_waits_for_a_fetch_that_is_not_expected_to_succeed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/jwks", listener.local_addr().unwrap()).parse().unwrap();
    std::thread::spawn(move || {
        // Closes five, then holds what comes and never answers.
        let held: Vec<_> = listener.incoming().skip(5).take(1).collect();
        std::thread::park();
        drop(held);
    });
    let remote = RemoteKeys::new(
        &url,
        &[Algorithm::Rs256],
        Duration::from_secs(1),
        Arc::default(),
        metrics(),
    )
    .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        assert!(remote.worth_waiting().is_some(), "the first may bring the key");
        for _ in 0..5 {
            assert!(remote.refresh().await.is_err());
        }
        let mut sixth = pin!(remote.refresh());
        tokio::select! {
            biased;
            _ = &mut sixth => panic!("it is never answered"),
            is_worth_it = async { remote.worth_waiting().is_some() } => assert!(!is_worth_it),
        }
    });
}

/// What `check` says of this configuration, where `JWT_SECRET` is set.
fn check(config: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tollgate.yaml");
    std::fs::write(&path, format!("upstream: {{ url: 'http://127.0.0.1:1' }}\n{config}")).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .env("JWT_SECRET", PLANTED)
        .env("JWT_SECRET_FILE", "/nowhere/secret")
        .args(["check", "--config"])
        .arg(&path)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
}

const PLANTED: &str = "planted-secret-planted-secret-planted-secret-planted-secret-planted-secret";

/// A variable that was filled into a wrong field is not read out from there.
#[test]
fn no_error_of_the_configuration_repeats_a_secret_that_stands_in_a_wrong_place() {
    for entry in [
        "jwt: ${JWT_SECRET}",
        "jwt: { secret_file: '${JWT_SECRET}' }",
        "jwt: { secret: '${JWT_SECRET}', algorithms: '${JWT_SECRET}' }",
        "jwt: { secret: '${JWT_SECRET}', algorithms: ['${JWT_SECRET}'] }",
        "jwt: { secret: '${JWT_SECRET}', header: 'Bearer ${JWT_SECRET}' }",
        "jwt: { secret: '${JWT_SECRET}', cookie: 'a ${JWT_SECRET}' }",
        "jwt: { secret: '${JWT_SECRET}', leeway: '${JWT_SECRET}' }",
        "jwt: { secret: '${JWT_SECRET}', on_invalid: '${JWT_SECRET}' }",
        "jwt: { jwks_url: '${JWT_SECRET}', algorithms: [RS256] }",
        "api_key: { keys_file: '${JWT_SECRET}' }",
        "api_key: { header: '${JWT_SECRET} ', keys_file: /dev/null }",
        "ip: { ipv4_prefix: '${JWT_SECRET}' }",
    ] {
        let said = check(&format!("identity: [ {entry} ]"));
        let said = if entry.starts_with("jwt: $") {
            check(&format!("identity:\n  - {entry}"))
        } else {
            said
        };
        assert!(said.contains("1 error"), "{entry}: {said}");
        assert!(!said.contains("planted-secret"), "{entry}: {said}");
        assert!(said.contains("tollgate.yaml:"), "{entry}: {said}");
    }
    // The name of a file is no secret.
    let said = check("identity: [jwt: { secret_file: '${JWT_SECRET_FILE}' }]");
    assert!(said.contains("/nowhere/secret: cannot be read"), "{said}");
    let said = check("identity: [jwt: { secret: '${JWT_SECRET}', leeway: 2h }]");
    assert!(said.contains("7200 s, expected at most 1h"), "{said}");
}

/// `printf %s "$KEY" | sha256sum`, where nobody has set it, would let in whoever sends nothing.
#[test]
fn the_hash_of_nothing_is_no_key() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys.yaml");
    for nothing in ["", "\n"] {
        std::fs::write(&keys, format!("keys: [{{ id: a, sha256: {} }}]", sha256(nothing))).unwrap();
        let said = check(&format!("identity: [api_key: {{ keys_file: {} }}]", keys.display()));
        let line = "keys.yaml:1:25: keys[0].sha256: the hash of nothing, expected that of a key";
        assert!(said.contains(line), "{said}");
    }
}

/// A file that was cut short, as by a full disk, lists no keys, and that is not what it says.
#[test]
fn an_empty_file_takes_nobodys_key_away() {
    let backend = Backend::ok();
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys.yaml");
    std::fs::write(&keys, format!("keys: [{{ id: a, sha256: {} }}]", sha256("k"))).unwrap();
    let entry = format!("api_key: {{ keys_file: {}, on_invalid: reject }}", keys.display());
    let tollgate = start(&backend, &format!("[{{ {entry} }}]"));
    let reloads = |result: &str| {
        tollgate.metric(&format!("tollgate_config_reloads_total{{result=\"{result}\"}}"))
    };
    for (count, text) in ["", "# keys of partners\n"].into_iter().enumerate() {
        std::fs::write(&keys, text).unwrap();
        let is_refused = || reloads("error") == (count + 1) as f64;
        wait_until("it is looked at", || is_refused() || reloads("ok") > 0.0);
        assert_eq!(get(&tollgate, "/", b"X-API-Key: k\r\n").status, 200);
    }
    let line = "keys.yaml: keys: not set, expected the list of keys, or [] for none";
    assert!(tollgate.log().contains(line), "{}", tollgate.log());
    std::fs::write(&keys, "keys: []").unwrap();
    wait_until("none is known", || get(&tollgate, "/", b"X-API-Key: k\r\n").status == 401);
}

/// What a start would refuse, a reload does.
#[test]
fn a_file_of_keys_that_has_grown_too_long_is_refused_while_tollgate_runs_too() {
    let backend = Backend::ok();
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    std::fs::write(&secret, SECRET).unwrap();
    let entry = format!("jwt: {{ secret_file: {}, on_invalid: reject }}", secret.display());
    let tollgate = start(&backend, &format!("[{{ {entry} }}]"));
    std::fs::write(&secret, "s".repeat((1 << 20) + 1)).unwrap();
    wait_until("it is refused", || {
        tollgate.metric("tollgate_config_reloads_total{result=\"error\"}") == 1.0
    });
    // Counted first, told by a thread of its own.
    wait_until("it is told", || {
        tollgate.log().contains("secret: too long, expected at most 1048576 bytes")
    });
    let token = hs256(&json!({"sub": "1", "exp": in_seconds(600)}));
    let fields = format!("Authorization: Bearer {token}\r\n");
    assert_eq!(get(&tollgate, "/", fields.as_bytes()).status, 200);
}

/// Editors of one system put a mark of the byte order first, and carriage returns at the end.
#[test]
fn a_secret_of_a_file_is_what_was_typed() {
    let backend = Backend::ok();
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    let token = hs256(&json!({"sub": "1", "exp": in_seconds(600)}));
    let fields = format!("Authorization: Bearer {token}\r\n");
    for text in [format!("\u{feff}{SECRET}\r\n"), format!("{SECRET}\n"), SECRET.to_owned()] {
        std::fs::write(&secret, &text).unwrap();
        let entry = format!("jwt: {{ secret_file: {}, on_invalid: reject }}", secret.display());
        let tollgate = start(&backend, &format!("[{{ {entry} }}]"));
        assert_eq!(get(&tollgate, "/", fields.as_bytes()).status, 200, "{text:?}");
    }
}
