//! Several upstreams that serve the same: who is asked, who is not, and what callers see of it when
//! some of them fail. The real binary, and backends that count.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test stops at the first surprise, and ends"
)]

#[path = "support/http2_backend.rs"]
mod http2_backend;
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use http2_backend::Http2Backend;
use support::{Answer, Backend, BackendConnection, GENEROUS, Start, Tollgate, nobody, wait_until};

/// In front of these, with further keys of `upstream`.
fn start(addresses: &[SocketAddr], upstream: &str) -> Tollgate {
    let urls: Vec<String> = addresses.iter().map(|it| format!("http://{it}")).collect();
    start_urls(&urls, upstream)
}

fn start_urls(urls: &[String], upstream: &str) -> Tollgate {
    let urls: Vec<String> = urls.iter().map(|url| format!("'{url}'")).collect();
    let urls = urls.join(", ");
    let config = format!("server: {{ workers: 2 }}\nupstream: {{ urls: [{urls}], {upstream} }}\n");
    Start::default().config(&config).tiers(GENEROUS).run()
}

fn addresses<const N: usize>(backends: [&Backend; N]) -> [SocketAddr; N] {
    backends.map(|backend| backend.address)
}

/// Requests that a backend has seen, checks left out.
fn count(backend: &Backend) -> usize {
    backend.seen().iter().filter(|seen| seen.target() != "/healthz").count()
}

fn post(tollgate: &Tollgate, path: &str) -> Answer {
    let mut client = tollgate.connect();
    client.send(format!("POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nbody"));
    client.answer()
}

fn retries(tollgate: &Tollgate, reason: &str) -> f64 {
    tollgate.metric(&format!("tollgate_upstream_retries_total{{reason=\"{reason}\"}}"))
}

fn skipped(tollgate: &Tollgate) -> f64 {
    tollgate.metric("tollgate_upstream_retries_skipped_total")
}

fn of_member(tollgate: &Tollgate, metric: &str, address: SocketAddr) -> f64 {
    tollgate.metric(&format!("tollgate_upstream_member_{metric}{{upstream=\"{address}\"}}"))
}

fn members(tollgate: &Tollgate) -> Vec<(String, String)> {
    let health = tollgate.admin("/health?verbose=1");
    let health: serde_json::Value = serde_json::from_slice(&health.body).unwrap();
    let members = &health["details"]["dependencies"]["upstream"]["members"];
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let member = |it: &serde_json::Value| (text(&it["name"]), text(&it["circuit_breaker"]));
    members.as_array().unwrap().iter().map(member).collect()
}

fn dependency(tollgate: &Tollgate) -> f64 {
    tollgate.metric("dependency_health_status{dependency=\"upstream\"}")
}

/// A gate that holds up whoever comes, until it is opened.
#[derive(Clone, Default)]
struct Door(Arc<(Mutex<bool>, Condvar)>);

impl Door {
    fn wait(&self) {
        let (is_open, changed) = &*self.0;
        drop(changed.wait_while(is_open.lock().unwrap(), |is_open| !*is_open).unwrap());
    }

    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

/// Opens it at the end of a test, however it ends.
struct OpensAtEnd(Door);

impl Drop for OpensAtEnd {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// Answers `/hang` when the door opens, and everything else at once.
fn hanging(door: &Door) -> Backend {
    let door = door.clone();
    Backend::spawn(move |mut connection| {
        while let Some(seen) = connection.request() {
            if seen.target().starts_with("/hang") {
                door.wait();
            }
            if !connection.ok("ok") {
                return;
            }
        }
    })
}

/// Breaks every connection as soon as it has read a request.
fn breaking() -> Backend {
    Backend::spawn(|mut connection: BackendConnection| {
        if connection.request().is_some() {
            connection.reset();
        }
    })
}

#[test]
fn requests_are_spread_and_one_that_is_busy_gets_fewer() {
    let door = Door::default();
    let _opens = OpensAtEnd(door.clone());
    let (slow, fast, other) = (hanging(&door), Backend::ok(), Backend::ok());
    let tollgate = start(&addresses([&slow, &fast, &other]), "");
    let mut client = tollgate.connect();
    for _ in 0..30 {
        assert_eq!(client.get("/").status, 200);
    }
    // On one connection, so by one worker: each in its turn.
    assert_eq!([&slow, &fast, &other].map(count), [10, 10, 10]);
    // One hangs wherever it came to, and from then on there is always one with fewer.
    let mut held = Vec::new();
    while count_hanging(&slow) == 0 {
        let mut client = tollgate.connect();
        let before = [&slow, &fast, &other].map(count).iter().sum::<usize>();
        client.send("GET /hang HTTP/1.1\r\nHost: test\r\n\r\n");
        held.push(client);
        wait_until("it has come to somebody", || {
            [&slow, &fast, &other].map(count).iter().sum::<usize>() > before
        });
    }
    wait_until("only that one is under way", || {
        of_member(&tollgate, "requests_in_flight", slow.address) == 1.0
            && of_member(&tollgate, "requests_in_flight", fast.address) == 0.0
            && of_member(&tollgate, "requests_in_flight", other.address) == 0.0
    });
    let before = count(&slow);
    for _ in 0..50 {
        assert_eq!(tollgate.get("/").status, 200);
    }
    assert_eq!(count(&slow), before, "it is busy, and the others are not");
    assert!(count(&fast) >= 25 && count(&other) >= 25);
    door.open();
    for mut client in held {
        assert_eq!(client.answer().status, 200);
    }
    wait_until("nothing is under way", || {
        of_member(&tollgate, "requests_in_flight", slow.address) == 0.0
    });
    assert_eq!([retries(&tollgate, "connect"), retries(&tollgate, "broken")], [0.0, 0.0]);
}

fn count_hanging(backend: &Backend) -> usize {
    backend.seen().iter().filter(|seen| seen.target().starts_with("/hang")).count()
}

#[test]
fn who_is_not_there_is_passed_over_at_once_whatever_the_method() {
    let (there, gone) = (Backend::ok(), nobody());
    let tollgate = start(&[gone, there.address], "retries: 0, health_check: {}");
    for number in 0..20 {
        let answer = if number % 2 == 0 { tollgate.get("/") } else { post(&tollgate, "/") };
        assert_eq!(answer.status, 200, "{}", answer.head);
    }
    assert_eq!(count(&there), 20, "each came once");
    assert!(retries(&tollgate, "connect") >= 5.0);
    assert_eq!(skipped(&tollgate), 0.0);
    // After five in a row it is out, and nobody waits for it.
    wait_until("it is out", || of_member(&tollgate, "healthy", gone) == 0.0);
    assert_eq!(of_member(&tollgate, "healthy", there.address), 1.0);
    assert_eq!(dependency(&tollgate), 0.5);
    assert_eq!(tollgate.metric("circuit_breaker_state{service=\"upstream\"}"), 0.0);
    let open = "tollgate_circuit_breaker_transitions_total{service=\"upstream\",to=\"open\"}";
    assert!(tollgate.metric(open) >= 1.0);
    let found = members(&tollgate);
    assert_eq!(found[0], (gone.to_string(), "open".to_owned()));
    assert_eq!(found[1], (there.address.to_string(), "closed".to_owned()));
    assert!(tollgate.log().contains("requests go to the others"), "{}", tollgate.log());
    // It costs callers nothing, and nothing of this is theirs to know.
    let answer = tollgate.get("/");
    assert!(!answer.head.contains(&gone.port().to_string()), "{}", answer.head);
}

#[test]
fn one_that_dies_is_missed_by_nobody_and_has_its_part_when_it_is_back() {
    let stays = Backend::ok();
    let dies = Mortal::new();
    let address = dies.address;
    let tollgate = start(&[stays.address, address], "");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|number| {
                let (tollgate, is_over) = (&tollgate, &is_over);
                scope.spawn(move || {
                    let mut client = tollgate.connect();
                    let (mut sent, mut bad) = (0, Vec::new());
                    while !is_over.load(Ordering::Acquire) {
                        let path = format!("/{number}");
                        let answer = client.get(&path);
                        sent += 1;
                        if answer.status != 200 {
                            bad.push(answer.status);
                        }
                    }
                    (sent, bad)
                })
            })
            .collect();
        wait_until("both are asked", || count(&stays) > 20 && dies.count() > 20);
        dies.die();
        wait_until("it is out", || of_member(&tollgate, "healthy", address) == 0.0);
        let before = count(&stays);
        wait_until("the other goes on", || count(&stays) > before + 20);
        let back = Backend::ok_at(address);
        // A pause of 5 s, and three good probes.
        wait_until("it is back", || of_member(&tollgate, "healthy", address) == 1.0);
        let before = count(&back);
        wait_until("it has its part", || count(&back) > before + 20);
        is_over.store(true, Ordering::Release);
        for client in clients {
            let (sent, bad) = client.join().unwrap();
            assert!(sent > 0 && bad.is_empty(), "{sent} sent, {bad:?}");
        }
    });
    assert!(tollgate.log().contains("circuit is closed again"));
    assert_eq!(dependency(&tollgate), 1.0);
    assert_eq!(skipped(&tollgate), 0.0);
}

/// A backend that can be killed: its listener closes, and all of its connections.
struct Mortal {
    address: SocketAddr,
    seen: Arc<AtomicUsize>,
    sockets: Arc<Mutex<Vec<std::net::TcpStream>>>,
    is_dead: Arc<AtomicBool>,
    acceptor: Option<std::thread::JoinHandle<()>>,
}

impl Mortal {
    fn new() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, is_dead) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let sockets = Arc::new(Mutex::new(Vec::new()));
        let (counts, dead, all) = (Arc::clone(&seen), Arc::clone(&is_dead), Arc::clone(&sockets));
        let acceptor = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if dead.load(Ordering::Acquire) {
                    return;
                }
                all.lock().unwrap().push(stream.try_clone().unwrap());
                let counts = Arc::clone(&counts);
                std::thread::spawn(move || {
                    answer_all(stream.try_clone().unwrap(), stream, &counts)
                });
            }
        });
        Mortal { address, seen, sockets, is_dead, acceptor: Some(acceptor) }
    }

    fn count(&self) -> usize {
        self.seen.load(Ordering::Acquire)
    }

    fn die(mut self) {
        self.is_dead.store(true, Ordering::Release);
        std::net::TcpStream::connect(self.address).ok();
        self.acceptor.take().unwrap().join().unwrap();
        for socket in self.sockets.lock().unwrap().drain(..) {
            socket.shutdown(std::net::Shutdown::Both).ok();
        }
    }
}

/// Answers every request without a body with 200.
fn answer_all(reads: impl Read, mut writes: impl Write, counts: &AtomicUsize) {
    let mut lines = BufReader::new(reads).lines();
    while let Some(Ok(line)) = lines.next() {
        if line.is_empty() {
            counts.fetch_add(1, Ordering::AcqRel);
            if writes.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
                return;
            }
        }
    }
}

#[test]
fn what_breaks_off_is_asked_of_another_if_it_may_be_repeated() {
    let (good, bad) = (Backend::ok(), breaking());
    let tollgate = start(&addresses([&bad, &good]), "");
    for _ in 0..8 {
        assert_eq!(tollgate.get("/").status, 200);
    }
    assert_eq!(count(&good), 8);
    let at_bad = count(&bad);
    assert!(at_bad >= 3, "{at_bad}");
    assert_eq!(retries(&tollgate, "broken"), at_bad as f64);
}

#[test]
fn a_post_never_arrives_twice() {
    let (one, other) = (breaking(), breaking());
    let tollgate = start(&addresses([&one, &other]), "retries: 10");
    for number in 0..8 {
        assert_eq!(post(&tollgate, &format!("/{number}")).status, 502);
    }
    let seen = [one.seen(), other.seen()].concat();
    let targets = support::tally(seen.iter().map(|seen| seen.target().to_owned()));
    assert_eq!(targets.len(), 8);
    assert!(targets.values().all(|count| *count == 1), "{targets:?}");
    assert_eq!(retries(&tollgate, "broken"), 0.0);
}

#[test]
fn an_answer_that_has_begun_is_never_asked_for_again() {
    let half = Backend::spawn(|mut connection| {
        if connection.request().is_some() {
            connection.send("HTTP/1.1 200 OK\r\nContent-");
            connection.reset();
        }
    });
    let also = Backend::spawn(|mut connection| {
        if connection.request().is_some() {
            connection.send("HTTP/1.1 200 O");
        }
    });
    let tollgate = start(&addresses([&half, &also]), "retries: 10");
    for _ in 0..4 {
        assert_eq!(tollgate.get("/").status, 502);
    }
    assert_eq!(count(&half) + count(&also), 4);
}

#[test]
fn one_that_is_late_is_left_for_another_and_its_request_is_given_up() {
    let door = Door::default();
    let _opens = OpensAtEnd(door.clone());
    let (hangs, good) = (hanging(&door), Backend::ok());
    let tollgate = start(&addresses([&hangs, &good]), "per_try_timeout: 200ms");
    let mut client = tollgate.connect();
    for _ in 0..12 {
        let answer = client.get("/hang");
        assert_eq!(answer.status, 200, "{}", answer.head);
    }
    assert_eq!(count(&good), 12);
    assert_eq!(retries(&tollgate, "timeout"), count(&hangs) as f64);
    // Another answered the same in time: it is not the request that is slow.
    wait_until("it is out", || of_member(&tollgate, "healthy", hangs.address) == 0.0);
    assert!(count(&hangs) >= 5);
    wait_until("what was given up is not under way", || {
        of_member(&tollgate, "requests_in_flight", hangs.address) == 0.0
    });
}

#[test]
fn where_no_other_may_be_asked_the_late_one_has_all_the_time() {
    let slow = || {
        Backend::spawn(|mut connection| {
            while connection.request().is_some() {
                std::thread::sleep(Duration::from_millis(600));
                if !connection.ok("ok") {
                    return;
                }
            }
        })
    };
    let (one, other) = (slow(), slow());
    let keys = "per_try_timeout: 100ms, response_timeout: 20s";
    let tollgate = start(&addresses([&one, &other]), keys);
    // A request that may not be repeated.
    assert_eq!(post(&tollgate, "/").status, 200);
    assert_eq!(count(&one) + count(&other), 1);
    // The last one of those that there are.
    for _ in 0..12 {
        assert_eq!(tollgate.get("/").status, 200);
    }
    // All are as slow: that is no reason to ask nobody.
    assert_eq!(dependency(&tollgate), 1.0);
    assert_eq!(count(&one) + count(&other), 1 + 24);
}

#[test]
fn retries_are_no_more_than_their_budget() {
    // Every request for `/bad` breaks off, wherever it goes.
    let moody = || {
        Backend::spawn(|mut connection| {
            while let Some(seen) = connection.request() {
                if seen.target() == "/bad" {
                    return connection.reset();
                }
                connection.ok("ok");
            }
        })
    };
    let (one, other) = (moody(), moody());
    let tollgate = start(&addresses([&one, &other]), "retry_budget: 1");
    let started = std::time::Instant::now();
    let (requests, mut bad) = (600, 0);
    for number in 0..requests {
        // Far from half of them, and never five in a row.
        let is_bad = number % 10 < 3 && number % 2 == 0;
        bad += usize::from(is_bad);
        let status = tollgate.get(if is_bad { "/bad" } else { "/" }).status;
        assert!(status == if is_bad { 502 } else { 200 }, "{status} of {number}");
    }
    let made = retries(&tollgate, "broken");
    assert_eq!(made + skipped(&tollgate), bad as f64);
    // What a machine that is slow may have of the floor by the second is not held against it.
    let most = requests as f64 * 0.01 + 30.0 + 3.0 * started.elapsed().as_secs_f64().ceil();
    assert!(made <= most && made >= 30.0, "{made} of {most}");
    assert!(skipped(&tollgate) > 0.0);
    // On a connection that was idle there may be one more to the same backend, once for each.
    let tries = count(&one) + count(&other);
    assert!(tries <= requests + made as usize + bad, "{tries} tries for {requests} requests");
}

#[test]
fn a_budget_of_nothing_is_no_retry_at_all() {
    let (good, gone) = (Backend::ok(), nobody());
    let tollgate = start(&[gone, good.address], "retry_budget: 0");
    let statuses = support::tally((0..8).map(|_| tollgate.get("/").status));
    assert!(statuses[&502] >= 1 && statuses[&200] >= 1, "{statuses:?}");
    assert_eq!(count(&good), statuses[&200]);
    assert_eq!([retries(&tollgate, "connect"), skipped(&tollgate)], [0.0, 0.0]);
}

#[test]
fn each_is_checked_for_itself() {
    let is_ill = Arc::new(AtomicBool::new(false));
    let of_backend = Arc::clone(&is_ill);
    let ill = Backend::spawn(move |mut connection| {
        while let Some(seen) = connection.request() {
            if seen.target() == "/healthz" && of_backend.load(Ordering::Acquire) {
                connection.send("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n");
            } else {
                connection.ok("ok");
            }
        }
    });
    let well = Backend::ok();
    let check = "health_check: { path: /healthz, interval: 50ms, rise: 2, fall: 2 }";
    let tollgate = start(&addresses([&ill, &well]), check);
    wait_until("both are checked", || !ill.seen().is_empty() && !well.seen().is_empty());
    for backend in [&ill, &well] {
        let seen = backend.seen().into_iter().find(|it| it.target() == "/healthz").unwrap();
        assert_eq!(seen.field("host"), Some(backend.address.to_string().as_str()));
    }
    is_ill.store(true, Ordering::Release);
    wait_until("it is out", || of_member(&tollgate, "healthy", ill.address) == 0.0);
    assert_eq!(of_member(&tollgate, "healthy", well.address), 1.0);
    let before = count(&ill);
    for _ in 0..10 {
        assert_eq!(tollgate.get("/").status, 200);
    }
    assert_eq!(count(&ill), before, "requests do not probe it");
    assert!(tollgate.log().contains("health check fails"));
    assert!(tollgate.log().contains(&ill.address.to_string()));
    is_ill.store(false, Ordering::Release);
    wait_until("it is back", || of_member(&tollgate, "healthy", ill.address) == 1.0);
    wait_until("it is asked", || {
        assert_eq!(tollgate.get("/").status, 200);
        count(&ill) > before
    });
}

#[test]
fn host_is_the_name_of_whoever_is_asked() {
    let (good, bad) = (Backend::ok(), breaking());
    let tollgate = start(&addresses([&bad, &good]), "preserve_host: false");
    for _ in 0..4 {
        assert_eq!(tollgate.get("/").status, 200);
    }
    assert!(count(&bad) >= 1);
    for backend in [&good, &bad] {
        for seen in backend.seen() {
            assert_eq!(seen.all("host"), [backend.address.to_string()]);
        }
    }
    let kept = start(&addresses([&bad, &good]), "");
    assert_eq!(kept.get("/").status, 200);
    assert_eq!(good.last().field("host"), Some("test"));
    // HTTP/1.0 need not say one: then it is the upstream's own, whichever that is.
    let mut client = kept.connect();
    assert_eq!(client.send("GET / HTTP/1.0\r\n\r\n").answer().status, 200);
    assert_eq!(good.last().all("host"), [good.address.to_string()]);
}

#[test]
fn sockets_ports_and_http2_serve_together() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backend.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let by_socket = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&by_socket);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let counts = Arc::clone(&counts);
            std::thread::spawn(move || answer_all(stream.try_clone().unwrap(), stream, &counts));
        }
    });
    let (by_port, by_http2) = (Backend::ok(), Http2Backend::ok());
    let urls = [
        format!("unix:{}", path.display()),
        format!("http://{}", by_port.address),
        by_http2.h2c(),
        format!("http://{}", nobody()),
    ];
    let tollgate = start_urls(&urls, "preserve_host: false");
    let mut client = tollgate.connect();
    for _ in 0..16 {
        let answer = client.get("/");
        assert_eq!(answer.status, 200, "{}", answer.head);
    }
    assert!(by_socket.load(Ordering::Acquire) >= 4);
    assert!(count(&by_port) >= 4);
    assert!(by_http2.requests() >= 4);
    let name = format!("unix:{}", path.display());
    assert!(members(&tollgate).contains(&(name, "closed".to_owned())));
}

#[test]
fn where_all_are_out_it_is_said_when_to_come_back() {
    let gone = [nobody(), nobody()];
    let tollgate = start(&gone, "");
    let mut statuses = Vec::new();
    wait_until("nobody is left", || {
        statuses.push(post(&tollgate, "/").status);
        statuses.last() == Some(&503)
    });
    let failed = statuses.len() - 1;
    assert!(statuses[..failed].iter().all(|status| *status == 502), "{statuses:?}");
    let answer = tollgate.get("/");
    assert_eq!(answer.status, 503);
    assert!((1..=6).contains(&answer.number("retry-after")));
    assert!(answer.field("proxy-status").unwrap().contains("destination_unavailable"));
    assert_eq!(dependency(&tollgate), 0.0);
    assert_eq!(tollgate.metric("circuit_breaker_state{service=\"upstream\"}"), 2.0);
    assert_eq!(tollgate.admin("/readyz").status, 200);
    assert!(tollgate.log().contains("requests are answered with 503"));
    // Both, or one, come back, and requests find out for themselves.
    let back = Backend::ok_at(gone[1]);
    wait_until("it is back", || tollgate.get("/").status == 200);
    wait_until("it is called again", || {
        tollgate.get("/");
        of_member(&tollgate, "healthy", gone[1]) == 1.0
    });
    assert!(count(&back) >= 3);
    assert_eq!(dependency(&tollgate), 0.5);
}

/// Accepts an upgrade and says nothing more.
fn upgrading() -> Backend {
    Backend::spawn(|mut connection| {
        if connection.request().is_some() {
            connection.send(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            );
            while !connection.read_some(100).is_empty() {}
        }
    })
}

#[test]
fn a_websocket_counts_as_long_as_it_lives_and_goes_where_it_can() {
    let (one, other) = (upgrading(), upgrading());
    let by_http2 = Http2Backend::ok();
    let urls =
        [by_http2.h2c(), format!("http://{}", one.address), format!("http://{}", other.address)];
    let tollgate = start_urls(&urls, "");
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = tollgate.connect();
        client.send(
            "GET /ws HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        );
        assert_eq!(client.head().status, 101);
        clients.push(client);
    }
    // HTTP/2 knows no upgrade; of the others, whoever had none was next.
    assert_eq!([count(&one), count(&other)], [2, 2]);
    assert_eq!(by_http2.requests(), 0);
    for backend in [&one, &other] {
        assert_eq!(of_member(&tollgate, "requests_in_flight", backend.address), 2.0);
    }
    drop(clients);
    wait_until("none is open", || {
        of_member(&tollgate, "requests_in_flight", one.address) == 0.0
            && of_member(&tollgate, "requests_in_flight", other.address) == 0.0
    });
}

#[test]
fn a_drain_waits_for_what_is_under_way_at_each() {
    let door = Door::default();
    let _opens = OpensAtEnd(door.clone());
    let (one, other) = (hanging(&door), hanging(&door));
    let mut tollgate = start(&addresses([&one, &other]), "");
    let mut clients: Vec<_> = (0..2).map(|_| tollgate.connect()).collect();
    for client in &mut clients {
        client.send("GET /hang HTTP/1.1\r\nHost: test\r\n\r\n");
        wait_until("it is under way", || count(&one) + count(&other) > 0);
    }
    wait_until("both are under way", || count(&one) + count(&other) == 2);
    tollgate.signal("TERM");
    wait_until("it drains", || tollgate.log().contains("draining"));
    door.open();
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
    assert!(tollgate.wait().success());
}

#[test]
fn an_option_stands_for_all_of_them() {
    let (asked, written) = (Backend::ok(), Backend::ok());
    let config = format!("upstream: {{ urls: ['http://{}'] }}\n", written.address);
    let tollgate = Start::default().upstream(asked.address).config(&config).run();
    assert_eq!(tollgate.get("/").status, 200);
    assert_eq!([count(&asked), count(&written)], [1, 0]);
    assert!(!tollgate.admin("/metrics").text().contains("tollgate_upstream_member_healthy{"));
    drop(tollgate);
    // One alone is as one by `url`.
    let tollgate = Start::default().config(&config).run();
    assert_eq!(tollgate.get("/").status, 200);
    let durations = "tollgate_upstream_duration_seconds_count{upstream=\"default\"}";
    assert_eq!(tollgate.metric(durations), 1.0);
}
