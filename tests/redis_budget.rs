//! The real binary with a Redis that takes nothing any more, until all that the kernel holds for it is
//! full: nobody waits for longer than a check's budget, what waits is bounded, and all mends itself.
//! Needs a `redis-server`; without one each test says that it is skipped.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/redis.rs"]
mod redis;
mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tollgate::clock::monotonic;

use redis::{RedisServer, Reply};
use support::{Backend, Client, Start, Tollgate, wait_until};

/// Wide enough for all requests to be sent before the first of them is decided without Redis.
const BUDGET: Duration = Duration::from_secs(4);
/// What a busy machine may add to that before it is a fault.
const SLACK: Duration = Duration::from_secs(10);
/// Checks of one worker that may wait for Redis.
const PENDING_MAX: u64 = 1_024;
/// More than those.
const CALLERS: usize = 1_500;

fn start(backend: &Backend, url: &str, on_failure: &str) -> Tollgate {
    let config = format!(
        "server: {{ workers: 1 }}
store: {{ redis: {{ url: '{url}', timeout: {}ms, on_failure: {on_failure}, leases: off }} }}
log: {{ level: debug }}
",
        BUDGET.as_millis()
    );
    // Several limits make a check long.
    let limits = "per_second: 90000, per_minute: 900000, per_hour: 900000";
    let tiers = format!(
        "default_tier: free
tiers:
  free: {{ {limits} }}
endpoints:
  - {{ name: all, path: /**, limits: {{ any: {{ {limits} }} }} }}
"
    );
    Start::default().upstream(backend.address).config(&config).tiers(&tiers).run()
}

fn health(tollgate: &Tollgate) -> serde_json::Value {
    serde_json::from_slice(&tollgate.admin("/health").body).unwrap()
}

fn wait_recovered(tollgate: &Tollgate) {
    wait_until("redis is back", || health(tollgate)["rate_limiter"]["mode"] == "exact");
}

fn pending(tollgate: &Tollgate) -> u64 {
    health(tollgate)["backpressure"]["redis_queue_size"].as_u64().unwrap()
}

/// How much of what is sent over it a socket of this machine holds.
fn held_by_kernel() -> u64 {
    let text = std::fs::read_to_string("/proc/sys/net/core/wmem_default").unwrap();
    text.trim().parse().unwrap()
}

/// What Redis has been sent so far.
fn received(server: &RedisServer) -> u64 {
    let Reply::Text(text) = server.words("INFO stats") else { panic!("no statistics") };
    let text = String::from_utf8(text).unwrap();
    let line = text.lines().find_map(|it| it.strip_prefix("total_net_input_bytes:"));
    line.unwrap().trim().parse().unwrap()
}

/// Callers who are connected and have not asked for anything yet.
fn callers(tollgate: &Tollgate) -> Vec<Client> {
    let limit = getrlimit(Resource::Nofile);
    let more = Rlimit { current: limit.maximum, ..limit };
    setrlimit(Resource::Nofile, more).unwrap();
    (0..CALLERS).map(|_| tollgate.connect()).collect()
}

/// All ask at once: so many checks wait that the kernel holds no more. Then all are answered in time, as
/// `expected` says.
fn ask_at_once(tollgate: &Tollgate, clients: &mut [Client], enough: u64, expected: u16) {
    let began = monotonic();
    for client in clients.iter_mut() {
        client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    }
    let mut most = 0;
    wait_until("the kernel holds no more", || {
        most = most.max(pending(tollgate));
        most > enough
    });
    for client in clients {
        let answer = client.answer();
        assert_eq!(answer.status, expected, "{}\n{}", answer.head, tollgate.log());
    }
    let took = began.elapsed();
    most = most.max(pending(tollgate));
    println!("{CALLERS} requests are answered within {took:?}; {most} checks were seen to wait");
    assert!(took < BUDGET + SLACK, "{took:?}");
    assert!(most <= PENDING_MAX, "{most}");
}

/// A few more, which need not wait at all.
fn go_on(tollgate: &Tollgate, expected: u16) {
    let mut client = tollgate.connect();
    for _ in 0..50 {
        assert_eq!(client.get("/").status, expected, "{}", tollgate.log());
    }
}

/// How many checks are more than the kernel holds.
fn enough(server: &RedisServer, tollgate: &Tollgate) -> u64 {
    let before = received(server);
    for _ in 0..20 {
        assert_eq!(tollgate.get("/").status, 200);
    }
    let one = (received(server) - before) / 20;
    let enough = held_by_kernel() / one;
    println!("a check is {one} bytes; the kernel holds {enough} of them");
    assert!(enough < PENDING_MAX, "{one} bytes a check are too few");
    enough
}

fn stands_still_until_all_is_full(on_failure: &str, expected: u16) {
    let Some(server) = RedisServer::spawn() else { return };
    let backend = Backend::ok();
    let tollgate = start(&backend, &server.url(), on_failure);
    wait_recovered(&tollgate);
    let enough = enough(&server, &tollgate);
    let mut clients = callers(&tollgate);
    server.pause();
    ask_at_once(&tollgate, &mut clients, enough, expected);
    go_on(&tollgate, expected);
    server.resume();
    wait_recovered(&tollgate);
    go_on(&tollgate, 200);
    wait_until("nothing waits", || pending(&tollgate) == 0);
}

#[test]
fn a_redis_that_stands_still_until_all_buffers_are_full_is_decided_without_local() {
    stands_still_until_all_is_full("local", 200);
}

#[test]
fn a_redis_that_stands_still_until_all_buffers_are_full_is_decided_without_closed() {
    stands_still_until_all_is_full("closed", 503);
}

/// A relay between two sockets of this machine.
struct Relay {
    path: PathBuf,
    accepted: Arc<AtomicUsize>,
    stuck: Arc<AtomicUsize>,
}

impl Relay {
    fn spawn(directory: &Path, to: PathBuf) -> Self {
        let path = directory.join("relay.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (accepted, stuck) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let relay = Relay { path, accepted: Arc::clone(&accepted), stuck: Arc::clone(&stuck) };
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = UnixListener::from_std(listener).unwrap();
                while let Ok((near, _)) = listener.accept().await {
                    let number = accepted.fetch_add(1, Ordering::SeqCst);
                    let far = UnixStream::connect(&to).await.unwrap();
                    let (near_read, near_write) = near.into_split();
                    let (far_read, far_write) = far.into_split();
                    tokio::spawn(pass(near_read, far_write, number, Arc::clone(&stuck)));
                    tokio::spawn(pass(far_read, near_write, number, Arc::clone(&stuck)));
                }
            });
        });
        relay
    }

    /// From now on nothing is read from the connections that there are; new ones work.
    fn stick(&self) {
        self.stuck.store(self.accepted.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    number: usize,
    stuck: Arc<AtomicUsize>,
) {
    let mut buffer = [0; 1_024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if number < stuck.load(Ordering::SeqCst) {
            // Neither read nor closed, for ever.
            std::future::pending::<()>().await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

#[test]
fn connections_that_take_nothing_any_more_are_replaced() {
    let Some(server) = RedisServer::spawn() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = PathBuf::from(server.url().strip_prefix("redis+unix://").unwrap());
    let relay = Relay::spawn(directory.path(), path);
    let backend = Backend::ok();
    let tollgate = start(&backend, &format!("redis+unix://{}", relay.path.display()), "local");
    wait_recovered(&tollgate);
    let enough = enough(&server, &tollgate);
    let mut clients = callers(&tollgate);
    relay.stick();
    ask_at_once(&tollgate, &mut clients, enough, 200);
    wait_until("it is noticed", || health(&tollgate)["rate_limiter"]["mode"] == "local");
    let noticed = monotonic();
    wait_recovered(&tollgate);
    assert!(tollgate.metric("tollgate_redis_reconnects_total") >= 1.0);
    println!("decided in Redis again after {:?}", noticed.elapsed());
    go_on(&tollgate, 200);
    wait_until("nothing waits", || pending(&tollgate) == 0);
}
