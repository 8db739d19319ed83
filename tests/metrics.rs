//! Every metric, as the page of metrics documents it: the page, the start, and what moves each of
//! them in a tollgate that really runs, with a real Redis and a real PostgreSQL.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/frames.rs"]
mod frames;
#[path = "support/moves.rs"]
mod moves;
#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/prometheus.rs"]
mod prometheus;
#[path = "support/redis.rs"]
mod redis;
mod support;
#[path = "support/tokens.rs"]
mod tokens;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jsonwebtoken::Algorithm;
use serde_json::json;
use tollgate::metrics::names;
use tollgate::metrics::page;

use moves::{MOVES, NOT_MOVED, Scrape, Story};
use postgres::PostgresServer;
use redis::RedisServer;
use support::{Backend, BackendConnection, Client, Start, Tollgate, wait_until};
use tokens::{Signer, in_seconds};

#[test]
fn the_page_of_metrics_is_made_from_the_registry() {
    let printed = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["schema", "metrics"])
        .output()
        .expect("tollgate runs");
    assert!(printed.status.success());
    let printed = String::from_utf8(printed.stdout).unwrap();
    let shipped = std::fs::read_to_string("docs/metrics.md").unwrap();
    assert!(
        printed == shipped,
        "docs/metrics.md is not what the registry says; run: \
         cargo run -q -- schema metrics > docs/metrics.md"
    );
}

#[test]
fn every_metric_says_what_it_means_and_every_label_what_it_holds() {
    for desc in names::ALL {
        let name = desc.name;
        assert!(desc.meaning.len() > 20, "{name} has no meaning: its second text in names.rs");
        assert!(desc.meaning.ends_with('.'), "{name}: {}", desc.meaning);
        assert_ne!(desc.meaning, desc.help, "{name}");
        for (label, values) in desc.labels.iter().zip(desc.values) {
            let is_open = page::origin(label).is_some();
            assert!(
                values.is_empty() == is_open,
                "{name}: label {label} needs its closed set, `\"{label}\": TheEnum` in names.rs \
                 (an enum of metrics::labels), or else its origin in OPEN of metrics/page.rs"
            );
        }
    }
    for core in names::CORE {
        assert!(names::ALL.iter().any(|desc| desc.name == core), "{core} is promised");
    }
}

#[test]
fn every_metric_has_a_line_that_says_what_moves_it() {
    let declared: BTreeSet<&str> = names::ALL.iter().map(|desc| desc.name).collect();
    let lines = || MOVES.iter().map(|(name, ..)| *name).chain(NOT_MOVED.iter().map(|it| it.0));
    let told: BTreeSet<&str> = lines().collect();
    assert_eq!(told.len(), lines().count(), "a metric has two lines");
    let untold: Vec<_> = declared.difference(&told).collect();
    assert!(
        untold.is_empty(),
        "in MOVES of tests/support/moves.rs there is no line for {untold:?}"
    );
    let gone: Vec<_> = told.difference(&declared).collect();
    assert!(gone.is_empty(), "{gone:?} are no metrics");
    assert!(NOT_MOVED.len() <= 11, "the list of what is not moved may only become shorter");
    assert!(NOT_MOVED.iter().all(|(_, reason)| reason.len() > 15), "a reason for each");
}

// ------------------------------------------------------------------------------------- the story

const TIERS: &str = "
default_tier: free
tiers:
  free: { per_second: 1000, burst: 1000, per_minute: 10000 }
  premium: { per_minute: 5000 }
  unused: { per_minute: 7000 }
subscriptions: { pro: premium }
endpoints:
- { name: tight, path: /tight, limits: { free: { per_minute: 2 } } }
- { name: shadow, path: /shadow, mode: shadow, limits: { free: { per_minute: 1 } } }
- { name: heavy, path: /heavy, cost: 5 }
- { name: ws, path: /ws, limits: { free: { per_minute: 2 } } }
- { name: exempt, path: /exempt, exempt: true }
";
/// User 1 is quick, user 2 is slow, users from 10 on are slower than anybody waits.
const USERS: &str = "create table users (id bigint primary key, subscription text, pause float8);
    insert into users select id, 'pro', case when id = 1 then 0 when id = 2 then 0.3 else 1.5 end
    from generate_series(1, 20) id;";
const QUERY: &str = "select u.subscription from (select * from users where id = $1 offset 0) u \
    cross join lateral pg_sleep(u.pause)";
const UPGRADE: &str =
    "GET /ws HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
/// A client's text message `hi`, and a Close frame, masked with zeros.
const HI: &[u8] = &[0x81, 0x82, 0, 0, 0, 0, b'h', b'i'];
const BYE: &[u8] = &[0x88, 0x80, 0, 0, 0, 0];

/// What the backend does, by path.
fn serve(mut connection: BackendConnection, is_held: &AtomicBool) {
    while let Some(seen) = connection.request() {
        match seen.target() {
            "/fail" => {
                connection.send("HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n");
            }
            "/slow" => {
                std::thread::sleep(Duration::from_millis(300));
                connection.ok("slow");
            }
            "/hang" => {
                // Until tollgate has had enough.
                connection.read_some(1);
                return;
            }
            "/drop" => return,
            "/hold" => {
                is_held.store(true, Ordering::SeqCst);
                wait_until("it is let go", || !is_held.load(Ordering::SeqCst));
                if !connection.ok("held") {
                    return;
                }
            }
            "/ws" => {
                connection.send(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                     Upgrade: websocket\r\n\r\n",
                );
                let first = connection.read_some(HI.len());
                if first == HI {
                    // An answer; then it goes on until the client leaves.
                    connection.send([0x82, 1, 7]);
                    while !connection.read_some(100).is_empty() {}
                } else {
                    // Another message: the backend says goodbye.
                    connection.send([0x88, 0]);
                }
                return;
            }
            _ => {
                connection.ok("ok");
            }
        }
    }
}

fn scrape(tollgate: &Tollgate) -> Scrape {
    Scrape::of(tollgate.admin("/metrics").text())
}

fn request(address: SocketAddr, target: &str, fields: &str) -> u16 {
    let head = format!("GET {target} HTTP/1.1\r\nHost: test\r\n{fields}\r\n");
    Client::connect(address).send(head).answer().status
}

fn as_user(address: SocketAddr, token: &str) -> u16 {
    request(address, "/ok", &format!("Authorization: Bearer {token}\r\n"))
}

/// Answers every request with this, after a moment.
fn slowly(body: String) -> Backend {
    Backend::spawn(move |mut connection| {
        while connection.request().is_some() {
            std::thread::sleep(Duration::from_millis(30));
            connection.ok(&body);
        }
    })
}

/// The servers that the story needs; `None` without a real Redis or PostgreSQL.
struct World {
    redis: RedisServer,
    _database: PostgresServer,
    _keys: Backend,
    _collector: Backend,
    backend: Backend,
    is_held: Arc<AtomicBool>,
    signer: Signer,
    directory: tempfile::TempDir,
    tollgate: Tollgate,
    tls: SocketAddr,
}

impl World {
    fn new() -> Option<Self> {
        let redis = RedisServer::spawn_tcp()?;
        let database = PostgresServer::spawn()?;
        database.sql(USERS);
        let signer = Signer::new(Algorithm::ES256);
        let keys = slowly(json!({ "keys": [signer.jwk("one")] }).to_string());
        let collector = Backend::ok();
        let is_held = Arc::new(AtomicBool::new(false));
        let held = Arc::clone(&is_held);
        let backend = Backend::spawn(move |connection| serve(connection, &held));
        let directory = tempfile::tempdir().unwrap();
        certificates::self_signed(directory.path(), "own", "own", 90);
        let at = |name: &str| directory.path().join(name).display().to_string();
        let config = format!(
            "server:
  workers: 2
  max_connections: 40
  listeners:
  - {{ address: '127.0.0.1:0' }}
  - {{ address: '127.0.0.1:0', tls: {{ cert: {cert}, key: {key} }} }}
upstream:
  url: http://{backend}
  response_timeout: 2s
  health_check: {{ path: /healthz, interval: 200ms }}
store: {{ redis: {{ url: '{redis}', timeout: 500ms }} }}
identity: [{{ jwt: {{ jwks_url: 'http://{keys}/keys', algorithms: [ES256] }} }}, {{ ip: {{}} }}]
tier_lookup:
  postgres: {{ url: '{database}', query: \"{QUERY}\", pool: 1, timeout: 1s }}
slow_thresholds: {{ upstream: 200ms, redis: 10ms, database: 100ms, jwks: 10ms }}
log: {{ access: {log} }}
tracing: {{ otlp_endpoint: 'http://{collector}', sample: 1.0 }}
",
            cert = at("own.crt"),
            key = at("own.key"),
            backend = backend.address,
            redis = redis.tcp_url(),
            keys = keys.address,
            database = database.url(),
            log = at("access.log"),
            collector = collector.address,
        );
        let tollgate = Start::default().config(&config).tiers(TIERS).listeners().run();
        let log = tollgate.log();
        let listening = log.lines().find(|line| line.contains("listening on")).unwrap();
        let of_tls = listening.split(", ").find(|it| it.ends_with(" (TLS)")).unwrap();
        let tls = of_tls.trim_end_matches(" (TLS)").parse().unwrap();
        Some(World {
            redis,
            _database: database,
            _keys: keys,
            _collector: collector,
            backend,
            is_held,
            signer,
            directory,
            tollgate,
            tls,
        })
    }

    fn get(&self, target: &str) -> u16 {
        request(self.tollgate.data, target, "")
    }

    fn token(&self, user: u32) -> String {
        let claims = json!({ "sub": user.to_string(), "exp": in_seconds(600) });
        self.signer.token_with_kid(Some("one"), &claims)
    }

    /// Waits for a reading that is as wished, and gives it.
    fn until(&self, what: &str, is_so: impl Fn(&Scrape) -> bool) -> Scrape {
        let mut seen = scrape(&self.tollgate);
        wait_until(what, || {
            seen = scrape(&self.tollgate);
            is_so(&seen)
        });
        seen
    }

    fn requests(&self) {
        for target in ["/ok", "/ok", "/ok", "/shadow", "/shadow", "/heavy", "/exempt", "/slow"] {
            assert_eq!(self.get(target), 200, "{target}");
        }
        assert_eq!([(); 4].map(|()| self.get("/tight")), [200, 200, 429, 429]);
        assert_eq!([self.get("/fail"), self.get("/hang"), self.get("/drop")], [500, 504, 502]);
        let post = "POST /ok HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(self.tollgate.connect().send(post).answer().status, 200);
        let brew = "BREW /ok HTTP/1.1\r\nHost: test\r\n\r\n";
        assert_eq!(self.tollgate.connect().send(brew).answer().status, 200);
        // One whose client leaves before its answer.
        let mut client = self.tollgate.connect();
        client.send("GET /hold HTTP/1.1\r\nHost: test\r\n\r\n");
        wait_until("it is held", || self.is_held.load(Ordering::SeqCst));
        // With a reset: an end alone might be a client that still waits.
        let socket = socket2::SockRef::from(&client.stream);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        self.until("its client has left", |it| {
            it.sum("error_rate_total{error_type=\"client_abort\"}") == 1.0
        });
        self.is_held.store(false, Ordering::SeqCst);
    }

    fn users(&self) {
        let address = self.tollgate.data;
        assert_eq!(as_user(address, "a.b.c"), 200, "known by address");
        let claims = json!({ "sub": "1", "exp": in_seconds(600) });
        assert_eq!(as_user(address, &self.signer.token_with_kid(Some("two"), &claims)), 200);
        let token = self.token(1);
        assert_eq!([(); 3].map(|()| as_user(address, &token)), [200; 3]);
        assert_eq!(as_user(address, &self.token(2)), 200, "slow");
    }

    /// Look-ups that take longer than anybody waits, one behind the other.
    fn waiting(&self) -> Scrape {
        let tokens = [10, 11, 12].map(|user| self.token(user));
        std::thread::scope(|scope| {
            for token in &tokens {
                scope.spawn(|| assert_eq!(as_user(self.tollgate.data, token), 200));
            }
            self.until("look-ups wait", |it| it.sum("backpressure_db_queue_size") >= 1.0)
        })
    }

    fn connections(&self) {
        let made = certificates::shell(
            self.directory.path(),
            &format!(
                "printf 'GET /ok HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n' | timeout \
                 20 openssl s_client -quiet -connect {} 2>/dev/null || true",
                self.tls
            ),
        );
        assert!(made.starts_with("HTTP/1.1 200"), "{made}");
        TcpStream::connect(self.tls).unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        self.until("it was no handshake", |it| {
            it.sum("tollgate_tls_handshakes_total{result=\"failed\"}") >= 1.0
        });

        let mut flood = TcpStream::connect(self.tollgate.data).unwrap();
        let mut reader = flood.try_clone().unwrap();
        let reading = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
        flood.write_all(frames::PREFACE).unwrap();
        flood.write_all(&frames::frame(frames::SETTINGS, 0, 0, b"")).unwrap();
        let pings = frames::frame(frames::PING, 0, 0, &[0; 8]).repeat(100);
        while flood.write_all(&pings).is_ok() {}
        reading.join().unwrap().ok();

        let many: Vec<_> =
            (0..60).filter_map(|_| TcpStream::connect(self.tollgate.data).ok()).collect();
        self.until("connections are refused", |it| {
            it.sum("tollgate_connections_refused_total{reason=\"max_connections\"}") >= 1.0
        });
        drop(many);
        self.until("all of them are gone", |it| it.sum("tollgate_connections_active") == 0.0);
    }

    /// Two tunnels and one that is refused, a request that waits, a handshake that does not begin;
    /// and what two scrapers see of it.
    fn busy(&self) -> Scrape {
        let mut left_by_backend = self.tollgate.connect();
        assert_eq!(left_by_backend.send(UPGRADE).head().status, 101);
        left_by_backend.send([0x81, 0x82, 0, 0, 0, 0, b'b', b'y']);
        assert_eq!(left_by_backend.read_exactly(2), [0x88, 0]);
        drop(left_by_backend);
        self.until("a tunnel has ended", |it| {
            it.sum("tollgate_websocket_duration_seconds_count") == 1.0
        });

        let mut tunnel = self.tollgate.connect();
        assert_eq!(tunnel.send(UPGRADE).head().status, 101);
        assert_eq!(tunnel.send(HI).read_exactly(3), [0x82, 1, 7]);
        assert_eq!(self.tollgate.connect().send(UPGRADE).answer().status, 429);
        let silent = TcpStream::connect(self.tls).unwrap();
        let address = self.tollgate.data;
        let held = std::thread::spawn(move || request(address, "/hold", ""));
        wait_until("it is held", || self.is_held.load(Ordering::SeqCst));
        let seen = self.until("the handshake is open", |it| {
            it.sum("tollgate_tls_handshakes_in_progress") == 1.0
        });
        let again = scrape(&self.tollgate);
        for peak in [
            "websocket_connections_active",
            "tollgate_requests_in_flight",
            "rate_limit_remaining_requests",
            "response_time_p95_seconds",
            "rate_limit_hits_total",
            "tollgate_request_duration_seconds",
        ] {
            let of = |scrape: &Scrape| -> Vec<(String, f64)> {
                scrape.matching(peak).map(|(series, value)| (series.to_owned(), value)).collect()
            };
            assert_eq!(of(&seen), of(&again), "two scrapers see the same");
        }

        drop(silent);
        self.is_held.store(false, Ordering::SeqCst);
        assert_eq!(held.join().unwrap(), 200);
        tunnel.send(BYE);
        drop(tunnel);
        self.until("no tunnel is open", |it| it.sum("websocket_connections_active") == 0.0);
        seen
    }

    /// Redis slow, standing still, back, killed, and back again.
    fn outage(&mut self) -> (Scrape, Scrape) {
        self.redis.words("CLIENT PAUSE 50 ALL");
        assert_eq!(self.get("/ok"), 200);
        self.redis.pause();
        let address = self.tollgate.data;
        let stalled = std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert_eq!(request(address, "/ok", ""), 200));
            }
            self.until("checks wait", |it| it.sum("backpressure_redis_queue_size") >= 1.0)
        });
        let outage = self.until("the circuit is open", |it| {
            assert_eq!(self.get("/ok"), 200);
            it.sum("circuit_breaker_state{service=\"redis\"}") == 2.0
                && it.sum("tollgate_limiter_fallback_total{reason=\"circuit_open\"}") >= 1.0
                && it.sum("tollgate_over_admission_estimate") >= 5.0
        });
        self.redis.resume();
        let is_back = |it: &Scrape| {
            it.sum("circuit_breaker_state{service=\"redis\"}") == 0.0
                && it.sum("dependency_health_status{dependency=\"redis\"}") == 1.0
        };
        self.until("Redis is back", is_back);
        self.redis.kill();
        self.redis.start();
        self.until("Redis is back again", |it| {
            it.sum("tollgate_redis_reconnects_total") >= 1.0 && is_back(it)
        });
        (stalled, outage)
    }

    fn reload(&self) -> Scrape {
        std::fs::write(self.tollgate.path("tiers.yaml"), TIERS.replace("7000", "8000")).unwrap();
        self.tollgate.signal("HUP");
        for (series, least) in [
            ("tollgate_config_reloads_total", 1.0),
            ("tollgate_trace_requests_exported_total", 1.0),
            ("tollgate_access_log_lines_total", 15.0),
            ("tollgate_runtime_busy_ratio", 0.001),
            ("memory_gc_collections_total{generation=\"0\"}", 1.0),
        ] {
            self.until(series, |it| it.sum(series) >= least);
        }
        self.until("nothing is open", |it| {
            it.sum("tollgate_connections_active") == 0.0
                && it.sum("tollgate_tls_handshakes_in_progress") == 0.0
                && it.sum("backpressure_db_queue_size") == 0.0
        })
    }
}

/// A tollgate with nothing else: 205 rules, and room for few callers.
fn alone() -> (Scrape, Scrape) {
    let backend = Backend::ok();
    let rules: String =
        (0..205).map(|index| format!("- {{ name: r{index}, path: /r{index} }}\n")).collect();
    let tiers = format!(
        "default_tier: free\ntiers: {{ free: {{ per_minute: 100 }} }}\nendpoints:\n{rules}"
    );
    let config = "server: { trusted_proxies: [127.0.0.0/8] }\n\
        store: { memory: { max_identities: 1 } }\n";
    let tollgate = Start::default().upstream(backend.address).config(config).tiers(&tiers).run();
    let start = scrape(&tollgate);
    wait_until("callers are forgotten", || {
        for index in 0..100 {
            let field = format!("X-Forwarded-For: 203.0.113.{index}\r\n");
            assert_eq!(request(tollgate.data, "/", &field), 200);
        }
        tollgate.metric("tollgate_store_evictions_total") >= 1.0
    });
    std::fs::write(tollgate.path("tiers.yaml"), "tiers: nonsense").unwrap();
    let other = config.replace("store:", "headers: { expose_cors: false }\nstore:");
    std::fs::write(tollgate.path("tollgate.yaml"), other).unwrap();
    tollgate.signal("HUP");
    wait_until("both files are looked at", || {
        tollgate.metric("tollgate_config_last_reload_successful") == 0.0
            && tollgate.metric("tollgate_config_restart_pending") == 1.0
    });
    (start, scrape(&tollgate))
}

#[test]
fn every_documented_metric_moves_as_documented() {
    let Some(mut world) = World::new() else { return };
    let start = world.until("the keys and the first check are there", |it| {
        it.sum("tollgate_jwks_keys") == 1.0
            && it.sum("dependency_health_status{dependency=\"redis\"}") == 1.0
    });
    let mut story = Story { start, ..Story::default() };
    world.requests();
    world.users();
    world.connections();
    story.busy = world.busy();
    story.waiting = world.waiting();
    (story.stalled, story.outage) = world.outage();
    story.end = world.reload();
    (story.alone_start, story.alone) = alone();
    assert!(world.backend.connections() >= 2);

    let mut wrong = String::new();
    for (name, done, _) in MOVES.iter().filter(|(.., is_seen)| !is_seen(&story)) {
        wrong += &format!("{name} does not show it: {done}\n");
        let parts = ["", "_bucket", "_sum", "_count"];
        for series in parts.iter().map(|part| format!("{name}{part}")) {
            for (series, value) in story.end.matching(&series) {
                wrong += &format!("    {series} {} -> {value}\n", story.start.sum(series));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    for desc in names::ALL {
        let declared = format!("# TYPE {} ", desc.name);
        assert!(story.end.text.contains(&declared), "{} is not shown", desc.name);
        assert!(story.start.text.contains(&declared), "{} is not there at the start", desc.name);
    }
    lint(&story.end.text);
}

/// What Prometheus's own tool says of names that are as they are on purpose: one is a promise, the
/// other counts in the unit in which certificates are renewed.
const ON_PURPOSE: [&str; 2] = ["memory_objects_count ", "tollgate_tls_certificate_expiry_days "];

/// Asks Prometheus's own tool what is wrong with a reading.
fn lint(text: &str) {
    let Some(promtool) = prometheus::program("promtool") else { return };
    let mut command = Command::new(promtool);
    command.args(["check", "metrics"]).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let mut found = String::new();
    child.stdout.take().unwrap().read_to_string(&mut found).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut found).unwrap();
    child.wait().unwrap();
    let odd: Vec<&str> = found
        .lines()
        .filter(|line| !ON_PURPOSE.iter().any(|name| line.starts_with(name)))
        .collect();
    assert!(odd.is_empty(), "{odd:#?}");
}
