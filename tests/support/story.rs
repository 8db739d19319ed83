//! A tollgate with everything that can be configured, in front of a backend that does what its path
//! says, with a real Redis, a real PostgreSQL, key sets and a collector; and the story that moves every
//! metric of it. `tests/metrics.rs` holds what is seen of it to `moves.rs`; `tests/dashboard_data.rs`
//! has a Prometheus look at it.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jsonwebtoken::Algorithm;
use serde_json::json;

use crate::moves::{Scrape, Story};
use crate::postgres::PostgresServer;
use crate::redis::RedisServer;
use crate::support::{Backend, BackendConnection, Client, Start, Tollgate, wait_until};
use crate::tokens::{Signer, in_seconds};
use crate::{certificates, frames};

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
- { name: often, path: /often, cost: 1 }
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

/// What it says now.
pub fn scrape(tollgate: &Tollgate) -> Scrape {
    Scrape::of(tollgate.admin("/metrics").text())
}

/// One request on a connection of its own.
pub fn request(address: SocketAddr, target: &str, fields: &str) -> u16 {
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
pub struct World {
    redis: RedisServer,
    _database: PostgresServer,
    _keys: Backend,
    _collector: Backend,
    /// The backend.
    pub backend: Backend,
    is_held: Arc<AtomicBool>,
    signer: Signer,
    directory: tempfile::TempDir,
    /// The tollgate.
    pub tollgate: Tollgate,
    tls: SocketAddr,
}

impl World {
    /// Starts everything.
    pub fn new() -> Option<Self> {
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
  urls: ['http://{backend}', 'http://localhost:{port}']
  response_timeout: 2s
  health_check: {{ path: /healthz, interval: 200ms }}
store: {{ redis: {{ url: '{redis}', timeout: 500ms }} }}
usage: {{ sink: redis, flush: 100ms, dir: {usage} }}
identity: [{{ jwt: {{ jwks_url: 'http://{keys}/keys', algorithms: [ES256] }} }}, {{ ip: {{}} }}]
tier_lookup:
  postgres: {{ url: '{database}', query: \"{QUERY}\", pool: 1, timeout: 1s }}
slow_thresholds: {{ upstream: 200ms, redis: 10ms, database: 100ms, jwks: 10ms }}
self_service: {{ path: /own }}
log: {{ access: {log} }}
tracing: {{ otlp_endpoint: 'http://{collector}', sample: 1.0 }}
",
            cert = at("own.crt"),
            key = at("own.key"),
            backend = backend.address,
            port = backend.address.port(),
            redis = redis.tcp_url(),
            keys = keys.address,
            database = database.url(),
            log = at("access.log"),
            usage = at("usage"),
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

    /// Everything that happens, and what was seen at each turn.
    pub fn tell(&mut self) -> Story {
        let start = self.until("the keys and the first check are there", |it| {
            it.sum("tollgate_jwks_keys") == 1.0
                && it.sum("dependency_health_status{dependency=\"redis\"}") == 1.0
        });
        let mut story = Story { start, ..Story::default() };
        story.leased = self.requests();
        self.users();
        assert_eq!(self.get("/own"), 200);
        self.operate("PUT", "identities/user:98/override", r#"{"tier":"premium"}"#);
        self.operate("PUT", "identities/user:99/override", r#"{"tier":"unused"}"#);
        self.operate("DELETE", "identities/user:98/override", "");
        self.operate("PUT", "deny/ip:192.0.2.1", "");
        self.operate("DELETE", "identities/ip:192.0.2.2", "");
        let other = "GET /api/v1/deny HTTP/1.1\r\nHost: other\r\n\r\n";
        let refused = || Client::connect(self.tollgate.admin).send(other).answer().status;
        assert_eq!([refused(), refused()], [403; 2]);
        self.connections();
        story.busy = self.busy();
        story.waiting = self.waiting();
        (story.stalled, story.outage) = self.outage();
        story.end = self.reload();
        story
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

    /// What an operator does by the admin API.
    fn operate(&self, method: &str, path: &str, body: &str) {
        let length = body.len();
        let fields = format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
        let head = format!("{method} /api/v1/{path} HTTP/1.1\r\nHost: localhost\r\n{fields}");
        let answer = Client::connect(self.tollgate.admin).send(head + "\r\n" + body).answer();
        assert!((200..300).contains(&answer.status), "{method} {path}: {}", answer.text());
    }

    fn requests(&self) -> Scrape {
        for target in ["/ok", "/ok", "/ok", "/shadow", "/shadow", "/heavy", "/exempt", "/slow"] {
            assert_eq!(self.get(target), 200, "{target}");
        }
        assert_eq!([(); 4].map(|()| self.get("/tight")), [200, 200, 429, 429]);
        let often = || assert!([(); 20].map(|()| self.get("/often")).iter().all(|it| *it == 200));
        let leased = self.until("a lease has something left", |it| {
            often();
            it.sum("tollgate_lease_tokens_held") >= 1.0
        });
        self.until("what it had left has gone back", |it| {
            it.sum("tollgate_lease_tokens_total{outcome=\"returned\"}") >= 1.0
        });
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
        leased
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
        // Longer than a check waits, and not so long that its answer is given up.
        self.redis.words("CLIENT PAUSE 800 ALL");
        assert_eq!(self.get("/ok"), 200);
        self.until("a late answer", |it| it.sum("tollgate_redis_late_replies_total") >= 1.0);
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
                && it.sum("tollgate_usage_flush_lag_seconds") >= 0.5
                && it.sum("tollgate_usage_flush_errors_total") >= 1.0
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
            it.sum("tollgate_redis_reconnects_total") >= 1.0
                && it.sum("tollgate_outage_charged_total") >= 1.0
                && is_back(it)
        });
        (stalled, outage)
    }

    fn reload(&self) -> Scrape {
        std::fs::write(self.tollgate.path("tiers.yaml"), TIERS.replace("7000", "8000")).unwrap();
        self.operate("POST", "reload", "");
        self.operate("DELETE", "deny/ip:192.0.2.1", "");
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
