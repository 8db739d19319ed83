//! A tollgate under attack: honest requests that are sent meanwhile, one by one and at a steady
//! pace, and the highest memory that the attack brings it to.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::disallowed_methods, reason = "tests wait by the real time, and end")]

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::certificates::{client, self_signed};
use super::load::{Duplex, Target};
use super::support::{Backend, Client, GENEROUS, Start, Tollgate, allow_descriptors, wait_until};

/// Between two honest requests.
const PACE: Duration = Duration::from_millis(20);
/// In the long form an attack is done again until it has taken so long.
const LONG: Duration = Duration::from_secs(8);
/// How long a connection may have been idle that is used again: less than any `idle_timeout` here, so
/// that a machine that is busy makes no request meet a connection that is just being closed.
const KEPT: Duration = Duration::from_secs(1);
/// Honest requests before the attack: what they need is no growth.
const WARM_UP: usize = 50;
/// Every so manieth honest request comes on a connection of its own.
const FRESH: usize = 5;
/// All of loopback but the address that is honest.
const ATTACKERS: usize = 200;

/// One attack, and what it is tried against.
pub struct Attack {
    /// As the table has it.
    pub name: &'static str,
    /// Lines below `server:`.
    pub server: &'static str,
    /// Whether the listener has TLS.
    pub is_tls: bool,
    /// Whether new connections are to be served, too.
    pub is_open: bool,
    /// The rest of `tollgate.yaml`.
    pub config: &'static str,
    /// The policy.
    pub tiers: &'static str,
    /// Fields of honest requests.
    pub fields: fn() -> String,
    /// How far resident memory may grow in the short form, in MiB.
    pub growth_max: u64,
    /// Does it, to its end, and says what was done and what came of it.
    pub run: fn(&Siege) -> Outcome,
}

/// What an attack with nothing special about it is tried against.
pub const PLAIN: Attack = Attack {
    name: "",
    server: "",
    is_tls: false,
    is_open: true,
    config: "",
    tiers: GENEROUS,
    fields: String::new,
    growth_max: 0,
    run: |_| unreachable!(),
};

/// What came of an attack.
pub struct Outcome {
    /// What was sent.
    pub sent: String,
    /// What became of the attackers' connections.
    pub fate: String,
}

/// One row of the table.
pub struct Row {
    name: &'static str,
    outcome: Outcome,
    /// How often that was done.
    rounds: usize,
    /// In bytes.
    pub growth: u64,
    /// Honest requests.
    pub sent: usize,
    /// Those that were answered with 200.
    pub answered: usize,
    /// What became of the others.
    pub failures: Vec<String>,
    percentiles: [Duration; 3],
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [half, most, all] = self.percentiles.map(|it| it.as_secs_f64() * 1000.0);
        let Row { name, outcome, answered, sent, .. } = self;
        let growth = self.growth >> 20;
        let often =
            if self.rounds > 1 { format!(", {} times", self.rounds) } else { String::new() };
        write!(
            f,
            "| {name} | {}{often} | {growth} | {answered} / {sent} | {half:.1} | {most:.1} | {all:.1} | {} |",
            outcome.sent, outcome.fate
        )
    }
}

/// A tollgate under attack.
pub struct Siege {
    /// What is attacked.
    pub tollgate: Tollgate,
    /// How long and how much: the long form's, or that of every day.
    pub is_long: bool,
}

impl Siege {
    /// So many of something.
    pub fn scale(&self, short: usize, long: usize) -> usize {
        if self.is_long { long } else { short }
    }

    /// A connection from one of the attackers' addresses.
    pub fn connect(&self, number: usize) -> TcpStream {
        let source = format!("127.0.0.{}", 2 + number % ATTACKERS);
        Client::connect_from(&source, self.tollgate.data).stream
    }

    /// The same, with little room for what is not read.
    pub fn connect_narrow(&self, number: usize) -> TcpStream {
        use socket2::{Domain, Socket, Type};
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(8192).unwrap();
        let source = std::net::Ipv4Addr::new(127, 0, 0, (2 + number % ATTACKERS) as u8);
        socket.bind(&std::net::SocketAddr::from((source, 0)).into()).unwrap();
        socket.connect(&self.tollgate.data.into()).unwrap();
        socket.into()
    }

    /// Many of them.
    pub fn crowd(&self, count: usize) -> Vec<TcpStream> {
        (0..count).map(|number| self.connect(number)).collect()
    }

    /// One attack after another on several threads; how many of them came out well.
    pub fn each(&self, count: usize, attack: impl Fn(usize) -> bool + Sync) -> usize {
        let (next, good) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let number = next.fetch_add(1, Relaxed)
                        && number < count
                    {
                        good.fetch_add(usize::from(attack(number)), Relaxed);
                    }
                });
            }
        });
        good.into_inner()
    }

    /// Has every connection send a byte each tenth of a second, or nothing, until all have ended, and
    /// says what each was told.
    pub fn hold(&self, connections: Vec<TcpStream>, drip: &[u8]) -> Vec<Vec<u8>> {
        let count = connections.len();
        let mut open: Vec<(TcpStream, Vec<u8>)> =
            connections.into_iter().map(|it| (it, Vec::new())).collect();
        let mut told = Vec::new();
        for (connection, _) in &open {
            connection.set_nonblocking(true).unwrap();
        }
        wait_until("all of them end", || {
            open.retain_mut(|(connection, heard)| {
                let is_over = is_over(connection, heard, drip);
                if is_over {
                    told.push(std::mem::take(heard));
                }
                !is_over
            });
            std::thread::sleep(Duration::from_millis(100));
            open.is_empty()
        });
        assert_eq!(told.len(), count);
        told
    }

    /// Waits until nothing but honest requests is under way.
    pub fn wait_until_over(&self) {
        wait_until("no attack is under way", || {
            self.tollgate.metric("tollgate_requests_in_flight") <= 1.0
        });
    }
}

/// Whether a connection has ended; it is read from, and sent something, until then.
fn is_over(connection: &mut TcpStream, heard: &mut Vec<u8>, drip: &[u8]) -> bool {
    let mut buffer = [0; 1024];
    match connection.read(&mut buffer) {
        Ok(0) => return true,
        Ok(count) => heard.extend(&buffer[..count]),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(_) => return true,
    }
    if !drip.is_empty() {
        // Whether it is over, the next read tells.
        connection.write_all(drip).ok();
    }
    false
}

/// Serves anything at once, but for `/endless`, `/begun`, of which a megabyte comes, and `/silent`; of
/// uploads it never has enough.
fn backend() -> Backend {
    Backend::spawn(|mut connection| {
        while let Some(seen) = connection.head() {
            let has_body = |name| seen.field(name).is_some();
            if seen.target() == "/large" && connection.ok(&"x".repeat(100_000)) {
                continue;
            } else if seen.target() == "/endless" {
                connection.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
                // At a pace: hundreds of threads in a hurry would take the machine from tollgate.
                while connection.send([b'x'; 65536]) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            } else if seen.target() == "/begun" {
                connection.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
                connection.send(vec![b'x'; 1 << 20]);
                while !connection.read_some(65536).is_empty() {}
            } else if seen.target() == "/silent"
                || has_body("content-length")
                || has_body("transfer-encoding")
            {
                while !connection.read_some(65536).is_empty() {}
            } else if connection.ok("ok") {
                continue;
            }
            return;
        }
    })
}

fn start(attack: &Attack, backend: &Backend, directory: &Path) -> (Tollgate, Target) {
    let Attack { server, config, tiers, .. } = attack;
    if !attack.is_tls {
        let config = format!("server:\n  workers: 2\n{server}{config}");
        let start = Start::default().upstream(backend.address).config(&config).tiers(tiers);
        let tollgate = start.run();
        let target = Target { address: tollgate.data, tls: None };
        return (tollgate, target);
    }
    self_signed(directory, "a", "a", 90);
    let at = directory.display();
    let config = format!(
        "server:\n  workers: 2\n{server}  listeners: [{{ address: '127.0.0.1:0', tls: {{ cert: \
         {at}/a.crt, key: {at}/a.key }} }}]\n{config}"
    );
    let start = Start::default().upstream(backend.address).config(&config).listeners();
    let tollgate = start.tiers(tiers).run();
    let tls = client([directory.join("a.crt")], b"http/1.1");
    let target = Target { address: tollgate.data, tls: Some(tls) };
    (tollgate, target)
}

/// Runs an attack, with honest requests from before its beginning to after its end.
pub fn run(attack: &Attack, is_long: bool) -> Row {
    allow_descriptors();
    let (backend, directory) = (backend(), tempfile::tempdir().unwrap());
    let (tollgate, target) = start(attack, &backend, directory.path());
    let honest = Arc::new(Honest {
        target,
        is_open: attack.is_open,
        fields: (attack.fields)(),
        is_over: AtomicBool::new(false),
        sent: AtomicUsize::new(0),
        latencies: Mutex::default(),
        failures: Mutex::default(),
    });
    let asking = std::thread::spawn({
        let honest = Arc::clone(&honest);
        move || honest.ask()
    });
    wait_until("it is warm", || honest.sent.load(Relaxed) >= WARM_UP);
    let siege = Siege { tollgate, is_long };
    let before = siege.tollgate.resident();
    honest.latencies.lock().unwrap().clear();
    let warm = honest.sent.load(Relaxed);
    let (begun, mut rounds) = (Instant::now(), 1);
    let mut outcome = (attack.run)(&siege);
    while is_long && begun.elapsed() < LONG {
        outcome = (attack.run)(&siege);
        rounds += 1;
    }
    // Some of them after it, so that it has done no lasting harm.
    let during = honest.sent.load(Relaxed);
    wait_until("it is served after it", || honest.sent.load(Relaxed) >= during + 10);
    honest.is_over.store(true, Relaxed);
    asking.join().unwrap();
    let failures = std::mem::take(&mut *honest.failures.lock().unwrap());
    let mut latencies = std::mem::take(&mut *honest.latencies.lock().unwrap());
    latencies.sort_unstable();
    let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100];
    let sent = honest.sent.load(Relaxed) - warm;
    Row {
        name: attack.name,
        outcome,
        rounds,
        growth: siege.tollgate.peak().saturating_sub(before),
        sent,
        answered: sent.saturating_sub(failures.len()),
        failures,
        percentiles: [at(50), at(99), at(100)],
    }
}

type Kept = BufReader<Box<dyn Duplex>>;

/// One client that means no harm.
struct Honest {
    target: Target,
    is_open: bool,
    fields: String,
    is_over: AtomicBool,
    sent: AtomicUsize,
    latencies: Mutex<Vec<Duration>>,
    failures: Mutex<Vec<String>>,
}

impl Honest {
    /// Asks until it is over: on one connection, and now and then on another one.
    fn ask(&self) {
        let mut kept = None;
        let mut next = Instant::now();
        for number in 0_usize.. {
            if self.is_over.load(Relaxed) {
                return;
            }
            let begun = Instant::now();
            let asked = if self.is_open && number % FRESH == FRESH - 1 {
                self.ask_on(&mut None)
            } else {
                self.ask_on(&mut kept)
            };
            match asked {
                Ok(()) => self.latencies.lock().unwrap().push(begun.elapsed()),
                Err(error) => self.failures.lock().unwrap().push(format!("{number}: {error}")),
            }
            self.sent.fetch_add(1, Relaxed);
            next += PACE;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }

    fn ask_on(&self, kept: &mut Option<(Instant, Kept)>) -> io::Result<()> {
        let mut stream = match kept.take() {
            Some((last, stream)) if last.elapsed() < KEPT => stream,
            _ => {
                let stream = self.target.connect()?;
                BufReader::new(self.target.greet(stream, &Mutex::default())?)
            }
        };
        let head = format!("GET /honest HTTP/1.1\r\nHost: test\r\n{}\r\n", self.fields);
        stream.get_mut().write_all(head.as_bytes())?;
        stream.get_mut().flush()?;
        let mut line = String::new();
        stream.read_line(&mut line)?;
        if !line.starts_with("HTTP/1.1 200 ") {
            return Err(io::Error::other(format!("answered {line:?}")));
        }
        let mut length = 0;
        while line != "\r\n" {
            line.clear();
            if stream.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        if body != b"ok" {
            return Err(io::Error::other("another one's answer"));
        }
        *kept = Some((Instant::now(), stream));
        Ok(())
    }
}
