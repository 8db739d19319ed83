//! What an operator says of an identity on one replica holds on all of them, lasts as long as it
//! should, and can be read by who may. Real binaries, a real Redis.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test stops at the first surprise, and ends"
)]

#[path = "support/redis.rs"]
mod redis;
mod support;

use std::time::{Duration, Instant, SystemTime};

use redis::{RedisServer, Reply};
use serde_json::{Value, json};
use support::{Answer, Backend, Client, Start, Tollgate, wait_until};

const TIERS: &str = "
tiers:
  free: { per_minute: 3 }
  premium: { per_minute: 1000 }
identities: { 'user:blocked': deny, 'ip:192.0.2.66': deny }
endpoints:
  - { name: heavy, path: /heavy, limits: { free: { per_minute: 2 } } }
";
const CONFIG: &str = "
server: { trusted_proxies: [127.0.0.0/8] }
identity: [ api_key: { header: X-API-Key, keys_file: KEYS } ]
";

fn config(more: &str) -> String {
    let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/config/keys.yaml");
    format!("{}{more}", CONFIG.replace("KEYS", keys))
}

fn redis_config(server: &RedisServer) -> String {
    config(&format!("store: {{ redis: {{ url: '{}', timeout: 200ms }} }}\n", server.url()))
}

fn start(backend: &Backend, config: &str) -> Tollgate {
    Start::default().upstream(backend.address).config(config).tiers(TIERS).run()
}

/// One call of the admin API.
fn call(tollgate: &Tollgate, method: &str, path: &str, body: Option<&Value>) -> Answer {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", tollgate.admin);
    let body = body.map(ToString::to_string).unwrap_or_default();
    if !body.is_empty() {
        head.push_str("Content-Type: application/json\r\n");
    }
    head.push_str("X-Tollgate-Operator: alice\r\n");
    let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    Client::connect(tollgate.admin).send(request).answer_to(method)
}

fn read(tollgate: &Tollgate, path: &str) -> Value {
    let answer = call(tollgate, "GET", path, None);
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    serde_json::from_slice(&answer.body).unwrap()
}

fn put(tollgate: &Tollgate, path: &str, body: &Value) -> Value {
    let answer = call(tollgate, "PUT", path, Some(body));
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    serde_json::from_slice(&answer.body).unwrap()
}

/// The status of a request from this address.
fn from(tollgate: &Tollgate, address: &str, path: &str) -> u16 {
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {address}\r\n\r\n");
    tollgate.connect().send(request).answer().status
}

/// The tier that an address has there.
fn tier(tollgate: &Tollgate, address: &str) -> String {
    read(tollgate, &format!("/api/v1/identities/ip:{address}"))["tier"].as_str().unwrap().into()
}

#[test]
fn one_replica_is_told_and_all_obey() {
    let Some(server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let config = redis_config(&server);
    let (one, two) = (start(&backend, &config), start(&backend, &config));
    let id = "/api/v1/identities/ip:192.0.2.1";

    for _ in 0..3 {
        assert_eq!(from(&one, "192.0.2.1", "/"), 200);
    }
    assert_eq!((from(&one, "192.0.2.1", "/"), from(&two, "192.0.2.1", "/")), (429, 429));
    let seen = read(&two, id);
    assert_eq!(seen["limits"][0]["used"], 3, "both share one truth: {seen}");
    assert_eq!(seen["limits"][0]["remaining"], 0);

    let body = json!({ "tier": "Premium", "until": "2099-01-01T00:00:00Z", "reason": "a sale" });
    let set = put(&one, &format!("{id}/override"), &body);
    assert_eq!(set["tier"], "premium");
    // The one that was told knows at once, the other soon.
    assert_eq!(from(&one, "192.0.2.1", "/"), 200);
    wait_until("the other replica obeys", || from(&two, "192.0.2.1", "/") == 200);
    let seen = read(&two, id);
    assert_eq!((&seen["tier"], &seen["tier_source"]), (&json!("premium"), &json!("override")));
    for (key, value) in [("set_by", "alice"), ("set_from", "127.0.0.1"), ("reason", "a sale")] {
        assert_eq!(seen["override"][key], value, "{seen}");
    }
    let listed = read(&two, "/api/v1/overrides");
    assert_eq!((&listed["items"], &listed["kept_in"]), (&json!([set]), &json!("redis")));

    let denied = put(&two, "/api/v1/deny/ip:192.0.2.1", &json!({}));
    assert_eq!((&denied["kind"], &denied["until"]), (&json!("deny"), &Value::Null));
    assert_eq!(from(&two, "192.0.2.1", "/"), 403);
    wait_until("the other replica refuses", || from(&one, "192.0.2.1", "/") == 403);
    assert_eq!(from(&one, "192.0.2.2", "/"), 200, "nobody else");
    assert_eq!(call(&one, "DELETE", "/api/v1/deny/ip:192.0.2.1", None).status, 204);
    wait_until("the other replica relents", || from(&two, "192.0.2.1", "/") == 200);
    assert_eq!(call(&one, "DELETE", &format!("{id}/override"), None).status, 204);
    wait_until("the override is gone", || tier(&two, "192.0.2.1") == "free");

    let told = read(&two, "/api/v1/changes");
    let actions: Vec<&str> =
        told["items"].as_array().unwrap().iter().map(|it| it["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["override.remove", "deny.remove", "deny.set", "override.set"]);
    assert_eq!(told["items"][3]["identity"], "ip:192.0.2.1");
    assert_eq!(told["items"][3]["detail"], "premium");
    assert_eq!(two.metric("tollgate_overrides{kind=\"override\"}"), 0.0);
}

#[test]
fn a_reset_forgets_what_was_used_on_every_replica() {
    let Some(server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let config = redis_config(&server);
    let (one, two) = (start(&backend, &config), start(&backend, &config));
    for path in ["/heavy", "/heavy", "/"] {
        assert_eq!(from(&one, "192.0.2.1", path), 200);
        assert_eq!(from(&two, "192.0.2.2", path), 200);
    }
    assert_eq!(from(&two, "192.0.2.1", "/heavy"), 429);
    let id = "/api/v1/identities/ip:192.0.2.1";
    let used = |it: &Value| {
        it["limits"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["used"].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(used(&read(&one, id)), [3, 2]);
    assert_eq!(call(&one, "DELETE", id, None).status, 204);
    assert_eq!(used(&read(&two, id)), [0, 0]);
    assert_eq!(used(&read(&two, "/api/v1/identities/ip:192.0.2.2")), [3, 2], "nobody else");
    // What it remembers of Redis's answers it forgets when it hears of the reset.
    wait_until("the other replica lets it pass", || from(&two, "192.0.2.1", "/heavy") == 200);
}

#[test]
fn what_was_counted_while_redis_was_away_is_reset_too() {
    let Some(mut server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let config = redis_config(&server);
    let (one, two) = (start(&backend, &config), start(&backend, &config));
    server.kill();
    // Both count for themselves now.
    wait_until("both are alone", || {
        [&one, &two].into_iter().all(|it| {
            from(it, "192.0.2.9", "/");
            it.admin("/health").text().contains("\"mode\":\"local\"")
        })
    });
    while from(&two, "192.0.2.1", "/") == 200 {}
    server.start();
    wait_until("a reset is heard", || {
        call(&one, "DELETE", "/api/v1/identities/ip:192.0.2.1", None).status == 204
    });
    let reset = |it: &Tollgate| {
        let told = read(it, "/api/v1/changes");
        told["items"].as_array().unwrap().iter().any(|it| it["action"] == "reset")
    };
    wait_until("the other heard of it", || reset(&two));
    server.kill();
    wait_until("the other is alone again", || {
        from(&two, "192.0.2.9", "/");
        two.admin("/health").text().contains("\"mode\":\"local\"")
    });
    assert_eq!(from(&two, "192.0.2.1", "/"), 200, "its own memory has forgotten, too");
}

#[test]
fn they_outlive_a_restart_and_an_outage_and_a_redis_that_lost_its_data() {
    let Some(mut server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let config = redis_config(&server);
    let one = start(&backend, &config);
    put(&one, "/api/v1/deny/ip:192.0.2.1", &json!({ "reason": "abuse" }));
    let body = json!({ "tier": "premium" });
    put(&one, "/api/v1/identities/ip:192.0.2.2/override", &body);
    drop(one);

    // A new process knows before it has served anybody, or very soon.
    let two = start(&backend, &config);
    wait_until("it is known after a restart", || from(&two, "192.0.2.1", "/") == 403);
    assert_eq!(tier(&two, "192.0.2.2"), "premium");

    server.kill();
    let refused = call(&two, "PUT", "/api/v1/deny/ip:192.0.2.3", Some(&json!({})));
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.text().contains("Redis does not answer"), "{}", refused.text());
    assert_eq!(from(&two, "192.0.2.1", "/"), 403, "what was known holds");
    assert_eq!(from(&two, "192.0.2.3", "/"), 200, "what could not be said does not");

    // It comes back with nothing.
    server.start();
    let fields = || match server.words("HLEN tg:{overrides}:table") {
        Reply::Integer(fields) => fields,
        other => panic!("{other:?}"),
    };
    wait_until("what was lost is put back", || fields() == 4);
    let three = start(&backend, &config);
    wait_until("others know it from there", || from(&three, "192.0.2.1", "/") == 403);
    assert_eq!(tier(&three, "192.0.2.2"), "premium");
    let listed = read(&three, "/api/v1/deny");
    assert_eq!(listed["items"][0]["reason"], "abuse");
}

#[test]
fn they_end_when_their_time_is_over() {
    let backend = Backend::ok();
    let one = start(&backend, &config(""));
    let soon = SystemTime::now() + Duration::from_millis(2_500);
    let until = humantime::format_rfc3339_millis(soon).to_string();
    put(&one, "/api/v1/deny/ip:192.0.2.1", &json!({ "until": until }));
    assert_eq!(from(&one, "192.0.2.1", "/"), 403);
    assert_eq!(read(&one, "/api/v1/deny")["kept_in"], "memory");
    assert_eq!(one.metric("tollgate_overrides{kind=\"deny\"}"), 1.0);
    wait_until("it is over", || from(&one, "192.0.2.1", "/") != 403);
    assert!(SystemTime::now() >= soon, "no sooner");
    assert_eq!(read(&one, "/api/v1/deny")["items"], json!([]));
    assert_eq!(one.metric("tollgate_overrides{kind=\"deny\"}"), 0.0);
    for until in ["2020-01-01T00:00:00Z", "tomorrow", "2027-01-01", ""] {
        let body = json!({ "until": until });
        let refused = call(&one, "PUT", "/api/v1/deny/ip:192.0.2.1", Some(&body));
        assert_eq!(refused.status, 400, "{until}: {}", refused.text());
    }
}

#[test]
fn an_operators_word_goes_before_the_files() {
    let backend = Backend::ok();
    let one = start(&backend, &config(""));
    assert_eq!(from(&one, "192.0.2.66", "/"), 403);
    let overridden = json!({ "tier": "premium" });
    put(&one, "/api/v1/identities/ip:192.0.2.66/override", &overridden);
    assert_eq!(from(&one, "192.0.2.66", "/"), 200, "said of this very identity");
    let by_key = |tollgate: &Tollgate, address: &str| {
        let head = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nX-API-Key: example-key-of-acme\r\nX-Forwarded-For: {address}\r\n\r\n"
        );
        tollgate.connect().send(head).answer().status
    };
    let key = read(&one, "/api/v1/identities/key:acme");
    assert_eq!((&key["tier"], &key["tier_source"]), (&json!("premium"), &json!("credential")));
    // A denied address is denied whoever the user is.
    put(&one, "/api/v1/deny/ip:192.0.2.77", &json!({}));
    assert_eq!((by_key(&one, "192.0.2.77"), by_key(&one, "192.0.2.78")), (403, 200));
    put(&one, "/api/v1/deny/key:acme", &json!({}));
    assert_eq!((by_key(&one, "192.0.2.78"), from(&one, "192.0.2.78", "/")), (403, 200));
    put(&one, "/api/v1/deny/ip:192.0.2.66", &json!({}));
    assert_eq!(from(&one, "192.0.2.66", "/"), 403, "a denial goes before another tier");
    for (path, body, error) in [
        (
            "/api/v1/identities/ip:1.2.3.4/override",
            json!({ "tier": "gold" }),
            "tier: gold, expected one of free, premium",
        ),
        ("/api/v1/identities/ip:1.2.3.4/override", json!({}), "body: missing field `tier`"),
        (
            "/api/v1/identities/nobody/override",
            json!({ "tier": "free" }),
            "identity: nobody, expected ip:ADDRESS, user:ID or key:ID",
        ),
        (
            "/api/v1/identities/ip:10.0.0.0%2F8/override",
            json!({ "tier": "free" }),
            "identity: ip:10.0.0.0/8, has another prefix than identities, expected an address, or /32",
        ),
        ("/api/v1/deny/user:%FF", json!({}), "path: not UTF-8 in percent-encoding"),
        ("/api/v1/deny/user:a", json!({ "til": 1 }), "body: unknown field `til`"),
    ] {
        let refused = call(&one, "PUT", path, Some(&body));
        assert_eq!(refused.status, 400, "{path} {body}: {}", refused.text());
        assert!(refused.text().contains(error), "{path} {body}: {}", refused.text());
    }
}

#[test]
fn with_a_secret_redis_learns_nobodys_name() {
    let Some(server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let config = redis_config(&server) + "identity_hash_secret: 0123456789abcdef0123456789abcdef\n";
    let (one, two) = (start(&backend, &config), start(&backend, &config));
    let body = json!({ "reason": "confidential" });
    put(&one, "/api/v1/deny/ip:192.0.2.1", &body);
    wait_until("the other can read it", || from(&two, "192.0.2.1", "/") == 403);
    for command in ["HGETALL tg:{overrides}:table", "LRANGE tg:{overrides}:log 0 -1"] {
        let held = format!("{:?}", server.words(command));
        assert!(held.len() > 40, "{held}");
        for word in ["192.0.2.1", "confidential", "alice", "deny"] {
            assert!(!held.contains(word), "{command}: {held}");
        }
    }
    // Who has another secret neither obeys nor crashes, and says so once.
    let stranger = start(&backend, &config.replace("0123456789abcdef0", "another-secret--0"));
    wait_until("it says so", || stranger.log().contains("cannot be read"));
    assert_eq!(from(&stranger, "192.0.2.1", "/"), 200);
}

/// `tests/long.sh overrides`: how long until another replica obeys.
#[test]
#[ignore = "a measurement"]
fn how_long_until_all_obey() {
    let Some(server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let config = redis_config(&server);
    let (one, two) = (start(&backend, &config), start(&backend, &config));
    let mut took: Vec<Duration> = Vec::new();
    for number in 0..200 {
        let address = format!("198.51.100.{number}");
        let started = Instant::now();
        put(&one, &format!("/api/v1/deny/ip:{address}"), &json!({}));
        while from(&two, &address, "/") != 403 {
            assert!(started.elapsed() < Duration::from_secs(20));
        }
        took.push(started.elapsed());
    }
    took.sort();
    println!("200 denials: median {:?}, p99 {:?}, longest {:?}", took[100], took[197], took[199]);
    assert!(took[199] < Duration::from_secs(1), "within a second");
}
