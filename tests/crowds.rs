//! Many connections at once: kept ones that are used again and again, and WebSockets. All are
//! answered, each with its own, and the memory for each of them stays within what is said here.
//!
//! With every change some hundreds of each; `tests/long.sh connections` takes 10,000 and
//! `tests/long.sh websockets` 5,000, and print what they cost. Client, tollgate and backend are a process
//! each, as each needs a file for every connection that it has. docs/load.md says more.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::disallowed_methods, reason = "tests wait by the real time, and end")]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/http2.rs"]
mod http2;
#[path = "support/load.rs"]
mod load;
#[path = "support/member.rs"]
mod member;
#[path = "support/paced.rs"]
mod paced;
#[path = "support/random.rs"]
mod random;
mod support;

use std::fs;
use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use load::websocket::{BINARY, CLOSE, FIN, frame, read_frame};
use load::{is_own, read_answer, request};
use member::Member;
use paced::Histogram;
use random::Random;
use support::{GENEROUS, PATIENCE, Start, Tollgate, allow_descriptors, wait_until};

/// Of everything that is drawn by chance.
const SEED: u64 = 27;
/// Clients at a time, each with its part of the connections.
const CLIENTS: usize = 64;
/// More than a connection may need even without optimisation, everything that is kept for reuse
/// included.
const CONNECTION_MAX: f64 = 96.0;
const TUNNEL_MAX: f64 = 160.0;

fn start(backend: SocketAddr) -> Tollgate {
    allow_descriptors();
    // A connection that is drawn by chance is not used for long.
    let config = "server: { idle_timeout: 10m, workers: 2 }\n";
    Start::default().upstream(backend).config(config).tiers(GENEROUS).run()
}

/// Memory, and what takes it.
#[derive(Clone, Copy)]
struct Sample {
    /// In KiB.
    resident: f64,
    allocated: f64,
    descriptors: usize,
}

impl Sample {
    fn take(tollgate: &Tollgate) -> Self {
        let allocated = tollgate.metric("memory_allocator_bytes{kind=\"allocated\"}");
        let descriptors = fs::read_dir(format!("/proc/{}/fd", tollgate.pid())).unwrap().count();
        let resident = tollgate.resident() as f64 / 1024.0;
        Sample { resident, allocated: allocated / 1024.0, descriptors }
    }

    /// What came to each of so many since an earlier one, in KiB: resident, and allocated.
    fn each(&self, before: &Sample, count: usize) -> [f64; 2] {
        [self.resident - before.resident, self.allocated - before.allocated]
            .map(|it| it / count as f64)
    }

    fn print(&self, state: &str, before: &Sample, count: usize) {
        let [resident, allocated] = self.each(before, count);
        println!(
            "| {state} | {:.1} | {:.1} | {resident:.1} | {allocated:.1} | {} |",
            self.resident / 1024.0,
            self.allocated / 1024.0,
            self.descriptors
        );
    }
}

/// But connections to the backend that are kept, and those that ask.
fn assert_nothing_is_left(tollgate: &Tollgate, before: &Sample, after: &Sample) {
    let kept = tollgate.sum("tollgate_pool_connections{pool=\"upstream\"") as usize;
    let most = before.descriptors + kept + 8;
    assert!(after.descriptors <= most, "{} descriptors, expected {most}", after.descriptors);
}

const HEAD: &str = "| | RSS MiB | allocated MiB | RSS KiB each | allocated KiB each | descriptors |\n\
                    |---|---|---|---|---|---|";

fn threads<T: Send>(parts: &mut [Vec<T>], work: impl Fn(usize, &mut Vec<T>) + Sync) {
    std::thread::scope(|scope| {
        for (number, part) in parts.iter_mut().enumerate() {
            let work = &work;
            scope.spawn(move || work(number, part));
        }
    });
}

// ------------------------------------------------------------------------------------- connections

type Kept = BufReader<TcpStream>;

fn connect(address: SocketAddr) -> Kept {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    // Small: there are many.
    BufReader::with_capacity(512, stream)
}

fn ask(stream: &mut Kept, path: &str) -> io::Result<()> {
    stream.get_mut().write_all(request(path, false, "").as_bytes())?;
    let told = read_answer(stream)?;
    if told.status != 200 || told.closes || !is_own(&told.body, path) {
        return Err(io::Error::other(format!("{}, closes: {}", told.status, told.closes)));
    }
    Ok(())
}

/// Uses connections at random, all together at a rate; how long each took after it was due.
fn use_at(parts: &mut [Vec<Kept>], rate: f64, span: Duration, row: &str) -> usize {
    let pause = Duration::from_secs_f64(parts.len() as f64 / rate);
    let (latencies, failures) = (Histogram::default(), Mutex::new(Vec::new()));
    let began = Instant::now();
    threads(parts, |number, part| {
        let (mut random, mut due) = (Random::new(SEED + number as u64), began);
        for round in 0.. {
            due += random.pause(pause);
            if due > began + span {
                break;
            }
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let path = format!("/s/{number}-{round}");
            let which = usize::try_from(random.below(part.len() as u64)).unwrap();
            match ask(&mut part[which], &path) {
                Ok(()) => latencies.add(due.elapsed()),
                Err(error) => failures.lock().unwrap().push(format!("{path}: {error}")),
            }
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{failures:?}");
    let count = latencies.count();
    let reached = count as f64 / began.elapsed().as_secs_f64();
    let [half, most, all] = [0.5, 0.99, 1.0].map(|it| latencies.percentile(it));
    println!("| {row} | {count} | {reached:.0} | {half:.2} | {most:.2} | {all:.1} |");
    usize::try_from(count).unwrap()
}

/// Every one once, in turn.
fn use_all(parts: &mut [Vec<Kept>]) {
    threads(parts, |number, part| {
        for (index, connection) in part.iter_mut().enumerate() {
            ask(connection, &format!("/s/{number}-{index}")).unwrap();
        }
    });
}

fn connections(count: usize, rate: f64, span: Duration) {
    let member = Member::spawn("127.0.1.1");
    let tollgate = start(member.address);
    let open = || tollgate.sum("tollgate_connections_active");
    let address = tollgate.data;
    let few = |_| vec![connect(address)];
    let mut few: Vec<Vec<Kept>> = (0..CLIENTS).map(few).collect();
    println!(
        "| connections | requests | a second | p50 ms | p99 ms | most |\n|---|---|---|---|---|---|"
    );
    let mut sent = use_at(&mut few, rate, span / 4, &format!("{CLIENTS}, to warm up"));
    sent += use_at(&mut few, rate, span, &CLIENTS.to_string());
    drop(few);
    wait_until("those are gone", || open() < 0.5);
    let before = Sample::take(&tollgate);

    let mut parts: Vec<Vec<Kept>> = (0..CLIENTS).map(|_| Vec::new()).collect();
    let each = count / CLIENTS;
    threads(&mut parts, |_, part| part.extend((0..each).map(|_| connect(address))));
    let count = each * CLIENTS;
    wait_until("all are there", || open() as usize == count);
    let silent = Sample::take(&tollgate);
    use_all(&mut parts);
    std::thread::sleep(span / 4);
    let idle = Sample::take(&tollgate);
    sent += use_at(&mut parts, rate, span, &count.to_string()) + 2 * count;
    let after = Sample::take(&tollgate);
    assert_eq!(open() as usize, count, "none of them was closed");
    use_all(&mut parts);
    let answered = tollgate.sum("tollgate_requests_total") as usize;
    drop(parts);
    wait_until("nobody is connected", || open() < 0.5);
    let closed = Sample::take(&tollgate);
    println!("\n{HEAD}");
    before.print("before", &before, count);
    silent.print(&format!("{count} that have asked nothing"), &before, count);
    idle.print("each was answered once", &before, count);
    after.print("used again and again", &before, count);
    closed.print("closed", &before, count);
    println!("{sent} sent, {answered} answered");
    assert_eq!(sent, answered);
    for sample in [silent, idle, after] {
        let [resident, _] = sample.each(&before, count);
        assert!(resident < CONNECTION_MAX, "{resident:.1} KiB for each");
    }
    assert_nothing_is_left(&tollgate, &before, &closed);
}

#[test]
fn hundreds_of_kept_connections_are_all_answered() {
    connections(512, 200.0, Duration::from_secs(4));
}

#[test]
#[ignore = "minutes: tests/long.sh connections"]
fn ten_thousand_connections() {
    connections(number("CONNECTIONS", 10_000), 2_000.0, Duration::from_secs(60));
}

// --------------------------------------------------------------------------------------- WebSockets

/// A tunnel, and its number.
type Tunnel = (usize, TcpStream);

fn open_tunnel(address: SocketAddr, number: usize) -> Tunnel {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let request = "GET /ws HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    (number, stream)
}

/// Its own, of some length up to 4 KiB, so that no tunnel's message is another's.
fn message(number: usize, round: usize) -> Vec<u8> {
    let mut random = Random::new((number * 1_000 + round) as u64);
    let mut bytes = format!("tunnel {number}, message {round}: ").into_bytes();
    let length = random.below(4_096);
    bytes.extend((0..length).map(|_| random.below(256) as u8));
    bytes
}

/// Sends each tunnel of a part its message, and then reads all of them.
fn echo_all(part: &mut [Tunnel], round: usize) -> usize {
    let mut wrong = 0;
    for batch in part.chunks_mut(100) {
        for (number, stream) in &mut *batch {
            stream.write_all(&frame(FIN | BINARY, &message(*number, round))).unwrap();
        }
        for (number, stream) in batch {
            let frame = read_frame(stream).unwrap().unwrap();
            let expected = message(*number, round);
            wrong += usize::from(frame.first != FIN | BINARY || frame.payload != expected);
        }
    }
    wrong
}

fn websockets(count: usize, rounds: usize, idle: Duration) {
    let parts = 8;
    let member = Member::spawn("127.0.1.1");
    let tollgate = start(member.address);
    let gauges = || {
        let tunnels = "memory_objects_count{type=\"websocket_tunnels\"}";
        let tasks = "backpressure_async_tasks_pending{task_type=\"websocket\"}";
        ["websocket_connections_active", tunnels, tasks, "tollgate_connections_active"]
            .map(|it| tollgate.sum(it) as usize)
    };
    let address = tollgate.data;
    // What the first of all take once is none of theirs.
    drop((0..32).map(|it| open_tunnel(address, it)).collect::<Vec<_>>());
    wait_until("those are gone", || gauges() == [0; 4]);
    let before = Sample::take(&tollgate);

    let each = count / parts;
    let count = each * parts;
    let mut tunnels: Vec<Vec<Tunnel>> = (0..parts).map(|_| Vec::new()).collect();
    let began = Instant::now();
    threads(&mut tunnels, |number, part| {
        part.extend((0..each).map(|it| open_tunnel(address, number * each + it)));
    });
    let opened = began.elapsed();
    wait_until("all are there", || gauges() == [count; 4]);
    std::thread::sleep(idle);
    let silent = Sample::take(&tollgate);
    let (began, wrong) = (Instant::now(), Mutex::new(0));
    for round in 0..rounds {
        threads(&mut tunnels, |_, part| *wrong.lock().unwrap() += echo_all(part, round));
    }
    let took = began.elapsed().as_secs_f64();
    let used = Sample::take(&tollgate);
    std::thread::sleep(idle);
    let rested = Sample::take(&tollgate);
    assert_eq!(gauges(), [count; 4], "none of them was closed");
    // Half of them say goodbye, and are said goodbye to; the others just go.
    threads(&mut tunnels, |_, part| {
        for (number, mut stream) in part.drain(..) {
            if number % 2 == 0 {
                stream.write_all(&frame(FIN | CLOSE, &1000_u16.to_be_bytes())).unwrap();
                assert_eq!(read_frame(&mut stream).unwrap().unwrap().first, FIN | CLOSE);
            }
        }
    });
    wait_until("all gauges are at 0", || gauges() == [0; 4]);
    wait_until("their memory is given back", || {
        let [_, allocated] = Sample::take(&tollgate).each(&before, count);
        allocated < 1.0
    });
    let closed = Sample::take(&tollgate);
    std::thread::sleep(idle);
    let settled = Sample::take(&tollgate);
    println!("{HEAD}");
    before.print("before", &before, count);
    silent.print(&format!("{count} idle tunnels"), &before, count);
    used.print("after their messages", &before, count);
    rested.print("idle once more", &before, count);
    closed.print("closed", &before, count);
    settled.print("a while later", &before, count);
    let messages = count * rounds;
    println!(
        "opened in {:.1} s; {messages} messages in {took:.1} s, {:.0} a second, each echoed, {} wrong",
        opened.as_secs_f64(),
        messages as f64 / took,
        wrong.lock().unwrap()
    );
    assert_eq!(*wrong.lock().unwrap(), 0);
    for sample in [silent, used, rested] {
        let [resident, _] = sample.each(&before, count);
        assert!(resident < TUNNEL_MAX, "{resident:.1} KiB for each");
    }
    assert_nothing_is_left(&tollgate, &before, &closed);
}

#[test]
fn hundreds_of_websockets_echo_their_own_bytes() {
    websockets(400, 3, Duration::ZERO);
}

#[test]
#[ignore = "minutes: tests/long.sh websockets"]
fn five_thousand_websockets() {
    websockets(number("WEBSOCKETS", 5_000), 20, Duration::from_secs(15));
}

fn number(name: &str, usual: usize) -> usize {
    std::env::var(name).map_or(usual, |it| it.parse().unwrap())
}

/// No test: a process of its own.
#[test]
#[ignore = "what others start"]
fn serve_as_a_backend() {
    member::serve_if_asked();
}
