//! Quotas of days and months, and requests at once: the real binary, in memory and with Redis.
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

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redis::{RedisServer, Reply};
use support::{Answer, Backend, Client, Start, Tollgate, tally, wait_until};

const DAY: u64 = 86_400;

/// A backend that keeps `/slow` waiting until it is told, and speaks WebSocket on `/ws`.
struct Slow {
    backend: Backend,
    gate: Arc<(Mutex<(bool, usize)>, Condvar)>,
}

impl Slow {
    fn new() -> Self {
        let gate = Arc::new((Mutex::new((false, 0)), Condvar::new()));
        let waits = Arc::clone(&gate);
        let backend = Backend::spawn(move |mut connection| {
            while let Some(seen) = connection.request() {
                if seen.target() == "/ws" {
                    connection.send(
                        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                         Upgrade: websocket\r\n\r\n",
                    );
                    while !connection.read_some(64).is_empty() {}
                    return;
                }
                if seen.target() == "/slow" {
                    let (lock, changed) = &*waits;
                    let mut state = lock.lock().unwrap();
                    state.1 += 1;
                    changed.notify_all();
                    let done =
                        changed.wait_timeout_while(state, Duration::from_secs(60), |it| !it.0);
                    drop(done);
                }
                if !connection.ok("ok") {
                    return;
                }
            }
        });
        Slow { backend, gate }
    }

    /// Sends a request, and returns once the backend has it.
    fn send(&self, tollgate: &Tollgate) -> Client {
        let (lock, changed) = &*self.gate;
        let before = lock.lock().unwrap().1;
        let mut client = tollgate.connect();
        client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
        let limit = Duration::from_secs(20);
        let state = lock.lock().unwrap();
        let (_held, timeout) =
            changed.wait_timeout_while(state, limit, |it| it.1 == before).unwrap();
        assert!(!timeout.timed_out(), "the backend has not seen it: {}", tollgate.log());
        client
    }

    fn let_go(&self) {
        self.gate.0.lock().unwrap().0 = true;
        self.gate.1.notify_all();
    }
}

fn tiers(limits: &str) -> String {
    format!("default_tier: free\ntiers:\n  free: {{ {limits} }}\n")
}

fn start(backend: &Backend, store: &str, tiers: &str) -> Tollgate {
    let config = format!("server: {{ workers: 2 }}\nstore: {{ {store} }}\n");
    Start::default().upstream(backend.address).config(&config).tiers(tiers).run()
}

fn redis_store(server: &RedisServer) -> String {
    // A budget that only an outage misses.
    format!("redis: {{ url: '{}', timeout: 10s }}", server.url())
}

/// In memory, and with a Redis where there is one.
fn on_each_store(test: impl Fn(&str)) {
    test("");
    if let Some(server) = RedisServer::spawn() {
        test(&redis_store(&server));
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// So that no midnight comes between.
fn away_from_midnight() {
    let left = DAY - now() % DAY;
    if left < 30 {
        std::thread::sleep(Duration::from_secs(left + 1));
    }
}

fn expect_no_place(answer: &Answer) {
    assert_eq!(answer.status, 429, "{answer:?}");
    assert_eq!(answer.field("retry-after"), Some("1"));
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((body["limit"].as_u64(), body["period"].as_str()), (Some(2), Some("concurrency")));
}

#[test]
fn a_day_and_a_month_hold_so_many() {
    away_from_midnight();
    on_each_store(|store| {
        let backend = Backend::ok();
        let tollgate = start(&backend, store, &tiers("per_day: 3, per_month: 5"));
        for left in [2, 1, 0] {
            let answer = tollgate.get("/");
            assert_eq!(answer.status, 200);
            assert_eq!(
                (answer.number("x-ratelimit-limit"), left),
                (3, answer.number("x-ratelimit-remaining"))
            );
            let midnight = (now() / DAY + 1) * DAY;
            assert_eq!(answer.number("x-ratelimit-reset"), midnight);
        }
        let answer = tollgate.get("/");
        assert_eq!(answer.status, 429);
        let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((body["limit"].as_u64(), body["period"].as_str()), (Some(3), Some("day")));
        let left = DAY - now() % DAY;
        assert!(answer.number("retry-after").abs_diff(left) <= 2, "{answer:?}");
        assert_eq!(backend.seen().len(), 3, "a denial is not forwarded");
    });
}

#[test]
fn a_quota_of_a_rule_is_its_own_and_all_replicas_share_it() {
    away_from_midnight();
    let Some(server) = RedisServer::spawn() else { return };
    let policy = "default_tier: free\ntiers:\n  free: { per_day: 100 }\nendpoints:\n\
        - { name: export, path: /export, cost: 2, limits: { any: { per_month: 10 } } }\n";
    let backend = Backend::ok();
    let replicas = [(); 2].map(|()| start(&backend, &redis_store(&server), policy));
    let mut statuses = Vec::new();
    for request in 0..8 {
        statuses.push(replicas[request % 2].get("/export").status);
    }
    assert_eq!(statuses, [200, 200, 200, 200, 200, 429, 429, 429]);
    let answer = replicas[0].get("/");
    assert_eq!(answer.number("x-ratelimit-remaining"), 100 - 5 * 2 - 1);
    for key in server.keys() {
        let Reply::Integer(left) = server.command(&[b"PTTL", &key]) else { panic!() };
        assert!(left > 0, "{} has no end", String::from_utf8_lossy(&key));
    }
}

#[test]
fn so_many_requests_run_at_once_and_no_more() {
    on_each_store(|store| {
        let slow = Slow::new();
        let tollgate = start(&slow.backend, store, &tiers("concurrency: 2"));
        let mut running = [slow.send(&tollgate), slow.send(&tollgate)];
        for _ in 0..3 {
            expect_no_place(&tollgate.get("/"));
        }
        assert_eq!(slow.backend.seen().len(), 2);
        slow.let_go();
        for client in &mut running {
            let answer = client.answer();
            assert_eq!(answer.status, 200);
            assert_eq!(answer.number("x-ratelimit-limit"), 2);
        }
        // Each is over when its answer is.
        for _ in 0..10 {
            wait_until("a place is free", || tollgate.get("/").status == 200);
        }
    });
}

#[test]
fn who_hangs_up_leaves_a_place() {
    on_each_store(|store| {
        let slow = Slow::new();
        let tollgate = start(&slow.backend, store, &tiers("concurrency: 2"));
        let running = [slow.send(&tollgate), slow.send(&tollgate)];
        expect_no_place(&tollgate.get("/"));
        drop(running);
        wait_until("both places are free", || {
            let answer = tollgate.get("/");
            answer.status == 200 && answer.number("x-ratelimit-remaining") == 1
        });
        slow.let_go();
    });
}

#[test]
fn a_websocket_holds_its_place_for_as_long_as_it_is_open() {
    on_each_store(|store| {
        let slow = Slow::new();
        let policy = "default_tier: free\ntiers:\n  free: {}\nendpoints:\n\
            - { name: live, path: /ws, limits: { any: { concurrency: 2 } } }\n";
        let tollgate = start(&slow.backend, store, policy);
        let open = || {
            let mut client = tollgate.connect();
            client.send(
                "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            );
            let head = client.head();
            (client, head.status)
        };
        let sockets = [open(), open()];
        assert_eq!([sockets[0].1, sockets[1].1], [101, 101]);
        // Longer than a place is held without a word of it.
        let until = Instant::now() + Duration::from_secs(if store.is_empty() { 1 } else { 10 });
        while Instant::now() < until {
            assert_eq!(open().1, 429);
            std::thread::sleep(Duration::from_millis(250));
        }
        assert_eq!(tollgate.get("/").status, 200, "the rule's places are its own");
        drop(sockets);
        wait_until("a place is free", || open().1 == 101);
        slow.let_go();
    });
}

#[test]
fn the_places_of_a_replica_that_is_killed_come_back() {
    let Some(server) = RedisServer::spawn() else { return };
    let slow = Slow::new();
    let policy = tiers("concurrency: 50");
    let mut doomed = start(&slow.backend, &redis_store(&server), &policy);
    let other = start(&slow.backend, &redis_store(&server), &policy);
    let running: Vec<Client> = (0..50).map(|_| slow.send(&doomed)).collect();
    assert_eq!(other.get("/").status, 429);
    doomed.signal("KILL");
    let killed = Instant::now();
    doomed.wait();
    assert_eq!(other.get("/").status, 429, "nobody knows yet");
    wait_until("the places are free", || other.get("/").status == 200);
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
    wait_until("all of them", || other.get("/").number("x-ratelimit-remaining") == 49);
    drop(running);
    slow.let_go();
}

#[test]
fn two_replicas_never_hold_more_places_than_there_are() {
    let Some(server) = RedisServer::spawn() else { return };
    let most = Arc::new(Mutex::new((0_u32, 0_u32)));
    let seen = Arc::clone(&most);
    let backend = Backend::spawn(move |mut connection| {
        while connection.request().is_some() {
            {
                let mut count = seen.lock().unwrap();
                count.0 += 1;
                count.1 = count.1.max(count.0);
            }
            std::thread::sleep(Duration::from_millis(3));
            seen.lock().unwrap().0 -= 1;
            if !connection.ok("ok") {
                return;
            }
        }
    });
    let policy = tiers("concurrency: 3");
    let replicas = [(); 2].map(|()| start(&backend, &redis_store(&server), &policy));
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|client| {
                let replica = &replicas[client % 2];
                scope.spawn(move || {
                    let mut connection = replica.connect();
                    (0..100).map(|_| connection.get("/").status).collect::<Vec<_>>()
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let tally = tally(statuses);
    assert_eq!(tally.keys().filter(|it| !matches!(it, 200 | 429)).count(), 0, "{tally:?}");
    assert!(tally[&200] >= 100, "{tally:?}");
    assert!(most.lock().unwrap().1 <= 3, "{most:?}");
    wait_until("all are free again", || replicas[0].get("/").number("x-ratelimit-remaining") == 2);
}

#[test]
fn a_reset_gives_back_a_day_and_no_place() {
    away_from_midnight();
    on_each_store(|store| {
        let slow = Slow::new();
        let tollgate = start(&slow.backend, store, &tiers("per_day: 3, concurrency: 2"));
        let running = [slow.send(&tollgate), slow.send(&tollgate)];
        let reset = |tollgate: &Tollgate| {
            let mut client = Client::connect(tollgate.admin);
            let host = tollgate.admin;
            client.send(format!(
                "DELETE /api/v1/identities/ip:127.0.0.1 HTTP/1.1\r\nHost: {host}\r\n\r\n"
            ));
            client.answer().status
        };
        assert_eq!(reset(&tollgate), 204);
        expect_no_place(&tollgate.get("/"));
        slow.let_go();
        drop(running);
        for _ in 0..3 {
            wait_until("a place is free", || tollgate.get("/").status == 200);
        }
        assert_eq!(tollgate.get("/").status, 429);
    });
}

#[test]
fn without_redis_replicas_part_the_places_among_them() {
    let Some(mut server) = RedisServer::spawn() else { return };
    let slow = Slow::new();
    let policy = tiers("concurrency: 4");
    let store = format!("redis: {{ url: '{}' }}", server.url());
    let replicas = [(); 3].map(|()| start(&slow.backend, &store, &policy));
    let there = || match server.command(&[b"ZCARD", b"tg:{replicas}"]) {
        Reply::Integer(there) => there,
        other => panic!("{other:?}"),
    };
    wait_until("all have been heard of", || there() == 3);
    // One more round of heartbeats, by which each knows its place among them.
    std::thread::sleep(Duration::from_secs(3));
    server.kill();
    for replica in &replicas {
        let state = "circuit_breaker_state{service=\"redis\"}";
        wait_until("it is noticed", || replica.metric(state) != 0.0);
    }
    // Each is asked for more than there are in all.
    let mut held = Vec::new();
    for replica in &replicas {
        for _ in 0..5 {
            let before = slow.gate.0.lock().unwrap().1;
            let mut client = replica.connect();
            client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
            // It waits, or is told at once that there is no place.
            client.stream.set_nonblocking(true).unwrap();
            wait_until("it is there or refused", || {
                slow.gate.0.lock().unwrap().1 > before
                    || client.stream.peek(&mut [0]).is_ok_and(|count| count > 0)
            });
            client.stream.set_nonblocking(false).unwrap();
            held.push(client);
        }
    }
    assert_eq!(slow.gate.0.lock().unwrap().1, 4, "no more than there are, and none is lost");
    server.start();
    slow.let_go();
    drop(held);
    for replica in &replicas {
        wait_until("all are free in Redis", || {
            let answer = replica.get("/");
            answer.status == 200 && answer.number("x-ratelimit-remaining") == 3
        });
    }
}
