//! Some minutes in the life of a service, for the pictures of the dashboards: callers of every kind
//! in front of a tollgate with everything that it can depend on, a burst, an outage of Redis, a flood
//! that is refused, a new policy, and a backend that is unwell for a while.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::disallowed_methods, reason = "traffic is paced by the real time")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use jsonwebtoken::Algorithm;
use serde_json::json;

use crate::certificates;
use crate::postgres::PostgresServer;
use crate::redis::RedisServer;
use crate::support::{Backend, BackendConnection, Client, Start, Tollgate};
use crate::tokens::{Signer, in_seconds};

/// How long it lasts, in seconds.
pub const LASTS: u64 = 340;
/// When what happens, in seconds from the start.
const BURST: std::ops::Range<u64> = 55..80;
const OUTAGE: std::ops::Range<u64> = 100..180;
const FLOOD: std::ops::Range<u64> = 200..240;
const NEW_POLICY: u64 = 255;
const UNWELL: std::ops::Range<u64> = 275..300;

const TIERS: &str = "
default_tier: free
tiers:
  free: { per_second: 5, burst: 20, per_minute: 120, per_hour: 5000 }
  basic: { per_second: 10, burst: 40, per_minute: 400 }
  premium: { per_second: 50, burst: 200, per_minute: 3000 }
subscriptions: { b: basic, p: premium }
endpoints:
- { name: login, path: /login, limits: { free: { per_minute: 10 } } }
- { name: search, path: /search, cost: 3 }
- { name: reports, path: /reports, mode: shadow, limits: { free: { per_minute: 5 } } }
- { name: api, path: /api/** }
- { name: live, path: /live }
- { name: assets, path: /assets/**, exempt: true }
";
const USERS: &str = "create table users (id bigint primary key, subscription text);
    insert into users select id, case when id % 3 = 0 then 'p' else 'b' end
    from generate_series(1, 60) id;";
const UPGRADE: &str =
    "GET /live HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n";
/// A client's text message, masked with zeros.
const MESSAGE: &[u8] = &[0x81, 0x82, 0, 0, 0, 0, b'h', b'i'];

/// Numbers that look random, and are the same in each run.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        #[allow(clippy::cast_precision_loss, reason = "a share")]
        let share = (self.0 >> 11) as f64 / (1_u64 << 53) as f64;
        share
    }

    fn below(&mut self, bound: usize) -> usize {
        #[allow(clippy::cast_precision_loss, reason = "small")]
        let wide = self.next() * bound as f64;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
        let index = wide as usize;
        index.min(bound - 1)
    }
}

fn pause(milliseconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(milliseconds / 1000.0));
}

/// What the backend does, by path; `is_unwell` makes it slow, and fail.
fn serve(mut connection: BackendConnection, dice: &mut Dice, is_unwell: &AtomicBool) {
    // The head alone: what is asked for whole is remembered, and this is many.
    while let Some(seen) = connection.head() {
        let target = seen.target().to_owned();
        // Mostly quick, and now and then three times as slow.
        let tail = if dice.next() < 0.06 { 3.0 } else { 1.0 };
        let (least, spread) = match target.split('?').next().unwrap() {
            "/healthz" => (0.0, 1.0),
            "/login" => (20.0, 15.0),
            "/search" => (25.0, 60.0),
            "/reports" => (180.0, 240.0),
            it if it.starts_with("/assets") => (0.3, 1.0),
            _ => (3.0, 12.0),
        };
        let unwell = if is_unwell.load(Relaxed) && target != "/healthz" { 6.0 } else { 1.0 };
        pause((least + spread * dice.next()) * tail * unwell);
        if target == "/live" {
            tunnel(&mut connection);
            return;
        }
        let fails = if unwell > 1.0 { 0.22 } else { 0.0003 };
        let is_sent = if dice.next() < fails {
            connection.send("HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n")
        } else {
            connection.ok(&"x".repeat(200 + dice.below(6000)))
        };
        if !is_sent {
            return;
        }
    }
}

fn tunnel(connection: &mut BackendConnection) {
    connection.send(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    );
    while connection.read_some(MESSAGE.len()).len() == MESSAGE.len() {
        if !connection.send([0x82, 1, 7]) {
            return;
        }
    }
}

/// What callers share.
struct Callers {
    tollgate: std::net::SocketAddr,
    tokens: Vec<String>,
    start: Instant,
}

impl Callers {
    fn seconds(&self) -> u64 {
        self.start.elapsed().as_secs()
    }

    fn is_over(&self) -> bool {
        self.seconds() >= LASTS
    }

    /// Requests one after the other on one connection, by many callers.
    fn call(&self, seed: u64) {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1);
        let mut client = Client::connect(self.tollgate);
        while !self.is_over() {
            let target = match dice.below(100) {
                0..=54 => format!("/api/items/{}", dice.below(500)),
                55..=69 => "/search?q=a".to_owned(),
                70..=72 => "/login".to_owned(),
                73..=75 => "/reports".to_owned(),
                76..=93 => format!("/assets/{}.css", dice.below(20)),
                _ => "/about".to_owned(),
            };
            let who = match dice.below(100) {
                0..=59 => {
                    let token = &self.tokens[dice.below(self.tokens.len())];
                    format!("Authorization: Bearer {token}\r\n")
                }
                60 => "Authorization: Bearer not.a.token\r\n".to_owned(),
                _ => format!("X-Forwarded-For: 203.0.113.{}\r\n", dice.below(120)),
            };
            let answer = client.send(head(&target, &who)).answer();
            if answer.status == 0 || !answer.is_complete {
                client = Client::connect(self.tollgate);
            }
            let pace = if BURST.contains(&self.seconds()) { 30.0 } else { 110.0 };
            pause(pace * (0.5 + dice.next()));
        }
    }

    /// A few addresses that want far more than they may.
    fn flood(&self, seed: u64) {
        let mut dice = Dice(seed + 77);
        let mut client = Client::connect(self.tollgate);
        while !self.is_over() {
            if !FLOOD.contains(&self.seconds()) {
                pause(100.0);
                continue;
            }
            let who = format!("X-Forwarded-For: 198.51.100.{}\r\n", dice.below(4));
            let answer = client.send(head("/api/items/1", &who)).answer();
            if answer.status == 0 {
                client = Client::connect(self.tollgate);
            }
            pause(4.0 + 4.0 * dice.next());
        }
    }

    /// WebSockets that come and go, each with a message now and then.
    fn live(&self) {
        let (mut open, mut dice) = (Vec::new(), Dice(4711));
        while !self.is_over() {
            #[allow(clippy::cast_precision_loss, reason = "minutes")]
            let wave = (self.start.elapsed().as_secs_f64() / 40.0).sin();
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
            let wished = (14.0 + 9.0 * wave) as usize;
            if open.len() < wished {
                let who = format!("X-Forwarded-For: 203.0.113.{}\r\n", dice.below(120));
                let mut client = Client::connect(self.tollgate);
                if client.send(format!("{UPGRADE}{who}\r\n")).head().status == 101 {
                    open.push(client);
                }
            } else if open.len() > wished {
                // Its client leaves.
                open.remove(dice.below(open.len()));
            }
            for _ in 0..3 {
                if !open.is_empty() {
                    let at = dice.below(open.len());
                    open[at].send(MESSAGE).read_exactly(3);
                }
            }
            pause(150.0);
        }
    }
}

fn head(target: &str, who: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: test\r\n{who}\r\n")
}

/// The service, before its first request.
pub struct Service {
    redis: RedisServer,
    _database: PostgresServer,
    _keys: Backend,
    _collector: Backend,
    _backend: Backend,
    is_unwell: Arc<AtomicBool>,
    signer: Signer,
    _directory: tempfile::TempDir,
    /// tollgate in front of it.
    pub tollgate: Tollgate,
}

impl Service {
    /// Starts everything; `None`, with a printed line, where a program is missing.
    pub fn start(program: Option<PathBuf>) -> Option<Self> {
        let redis = RedisServer::spawn_tcp()?;
        let database = PostgresServer::spawn()?;
        database.sql(USERS);
        let signer = Signer::new(Algorithm::ES256);
        let set = json!({ "keys": [signer.jwk("one")] }).to_string();
        let keys = Backend::spawn(
            move |mut connection| {
                while connection.request().is_some() && connection.ok(&set) {}
            },
        );
        let collector = Backend::ok();
        let is_unwell = Arc::new(AtomicBool::new(false));
        let unwell = Arc::clone(&is_unwell);
        let seed = std::sync::atomic::AtomicU64::new(1);
        let backend = Backend::spawn(move |connection| {
            let mut dice = Dice(seed.fetch_add(1, Relaxed).wrapping_mul(0x2545_f491_4f6c_dd1d));
            serve(connection, &mut dice, &unwell);
        });
        let directory = tempfile::tempdir().unwrap();
        certificates::self_signed(directory.path(), "own", "own", 90);
        let at = |name: &str| directory.path().join(name).display().to_string();
        let config = format!(
            "server:
  workers: 2
  trusted_proxies: [127.0.0.0/8]
  listeners:
  - {{ address: '127.0.0.1:0' }}
  - {{ address: '127.0.0.1:0', tls: {{ cert: {cert}, key: {key} }} }}
upstream:
  url: http://{backend}
  response_timeout: 5s
  health_check: {{ path: /healthz, interval: 1s }}
store: {{ redis: {{ url: '{redis}', timeout: 100ms }} }}
identity: [{{ jwt: {{ jwks_url: 'http://{keys}/keys', algorithms: [ES256] }} }}, {{ ip: {{}} }}]
tier_lookup:
  postgres:
    url: '{database}'
    query: select subscription from users where id = $1
    pool: 4
slow_thresholds: {{ upstream: 1s }}
log: {{ access: {log} }}
tracing: {{ otlp_endpoint: 'http://{collector}', sample: 0.1 }}
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
        let start = Start::default().config(&config).tiers(TIERS).listeners();
        let tollgate = program.into_iter().fold(start, Start::program).run();
        Some(Service {
            redis,
            _database: database,
            _keys: keys,
            _collector: collector,
            _backend: backend,
            is_unwell,
            signer,
            _directory: directory,
            tollgate,
        })
    }

    /// Lets everything happen.
    pub fn live(&self) {
        let tokens = (1..=60).map(|user: u32| {
            let claims = json!({ "sub": user.to_string(), "exp": in_seconds(3600) });
            self.signer.token_with_kid(Some("one"), &claims)
        });
        let callers = Callers {
            tollgate: self.tollgate.data,
            tokens: tokens.collect(),
            start: Instant::now(),
        };
        std::thread::scope(|scope| {
            let callers = &callers;
            for seed in 0..24 {
                scope.spawn(move || callers.call(seed));
            }
            for seed in 0..3 {
                scope.spawn(move || callers.flood(seed));
            }
            scope.spawn(|| callers.live());
            let (mut is_stopped, mut has_new_policy) = (false, false);
            while !callers.is_over() {
                let now = callers.seconds();
                self.is_unwell.store(UNWELL.contains(&now), Relaxed);
                if OUTAGE.contains(&now) != is_stopped {
                    is_stopped = !is_stopped;
                    if is_stopped { self.redis.pause() } else { self.redis.resume() }
                }
                if now >= NEW_POLICY && !has_new_policy {
                    has_new_policy = true;
                    let policy = TIERS.replace("per_minute: 400", "per_minute: 500");
                    std::fs::write(self.tollgate.path("tiers.yaml"), policy).unwrap();
                    self.tollgate.signal("HUP");
                }
                pause(100.0);
            }
        });
    }
}
