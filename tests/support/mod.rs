//! What the integration tests share: the real binary, a backend that records raw bytes, a client
//! that sends raw bytes. Everything listens on a free port of loopback and ends with its test.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::disallowed_methods, reason = "tests wait by the real time, and end")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Longest wait for anything that ought to happen: generous, since the machine may be busy. No
/// test passes sooner for it being short.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Listens on a port of its own, on a runtime of its own, for as long as `serve` does.
pub fn listen<F: Future<Output = ()>>(
    serve: impl FnOnce(tokio::net::TcpListener) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            serve(tokio::net::TcpListener::from_std(listener).unwrap()).await;
        });
    });
    address
}

/// Lets this process, and those that it starts, have as many files open as it may.
pub fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

/// A running `tollgate`, killed when dropped.
pub struct Tollgate {
    child: Child,
    /// Where it serves.
    pub data: SocketAddr,
    /// Its admin port.
    pub admin: SocketAddr,
    log: Arc<Mutex<String>>,
    directory: tempfile::TempDir,
}

/// How to start a [`Tollgate`].
#[derive(Default)]
pub struct Start {
    program: Option<std::path::PathBuf>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    listen: Option<&'static str>,
    admin: Option<SocketAddr>,
    has_listeners: bool,
    config: Option<String>,
    tiers: Option<String>,
}

impl Start {
    /// In front of this upstream.
    pub fn upstream(mut self, address: SocketAddr) -> Self {
        self.arguments.extend(["--upstream".to_owned(), format!("http://{address}")]);
        self
    }

    /// With this `tollgate.yaml`.
    pub fn config(mut self, text: &str) -> Self {
        self.config = Some(text.to_owned());
        self
    }

    /// With this `tiers.yaml`.
    pub fn tiers(mut self, text: &str) -> Self {
        self.tiers = Some(text.to_owned());
        self
    }

    /// Serving on this address in place of IPv4's loopback, on a port that is free.
    pub fn listen(mut self, host: &'static str) -> Self {
        self.listen = Some(host);
        self
    }

    /// With the admin port here, in place of one that is free.
    pub fn admin(mut self, address: SocketAddr) -> Self {
        self.admin = Some(address);
        self
    }

    /// Serving where its `tollgate.yaml` says, and nowhere else.
    pub fn listeners(mut self) -> Self {
        self.has_listeners = true;
        self
    }

    /// With these further arguments.
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|it| (*it).to_owned()));
        self
    }

    /// This build of tollgate in place of the tests' own.
    pub fn program(mut self, path: std::path::PathBuf) -> Self {
        self.program = Some(path);
        self
    }

    /// With this variable in its environment.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts `tollgate run` and waits until it is ready.
    pub fn run(self) -> Tollgate {
        let directory = tempfile::tempdir().unwrap();
        let own = || env!("CARGO_BIN_EXE_tollgate").into();
        let mut command = Command::new(self.program.unwrap_or_else(own));
        let listen = format!("{}:0", self.listen.unwrap_or("127.0.0.1"));
        let admin = self.admin.map_or_else(|| "127.0.0.1:0".to_owned(), |it| it.to_string());
        command.args(["run", "--admin", &admin]);
        if !self.has_listeners {
            command.args(["--listen", &listen]);
        }
        for (option, name, text) in
            [("--config", "tollgate.yaml", &self.config), ("--tiers", "tiers.yaml", &self.tiers)]
        {
            if let Some(text) = text {
                let path = directory.path().join(name);
                std::fs::write(&path, text).unwrap();
                command.arg(option).arg(path);
            }
        }
        command.args(&self.arguments).envs(self.environment);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (sender, lines) = mpsc::channel();
        for stream in [
            Box::new(child.stdout.take().unwrap()) as Box<dyn Read + Send>,
            Box::new(child.stderr.take().unwrap()),
        ] {
            let (log, sender) = (Arc::clone(&log), sender.clone());
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    log.lock().unwrap().push_str(&(line.clone() + "\n"));
                    sender.send(line).ok();
                }
            });
        }
        drop(sender);
        // `listening on 127.0.0.1:1234, admin on 127.0.0.1:1235`
        let (mut data, mut admin) = (None, None);
        while data.is_none() || admin.is_none() {
            let line = lines.recv_timeout(PATIENCE).unwrap_or_else(|_| {
                panic!("tollgate did not start: {}", log.lock().unwrap());
            });
            data = data.or_else(|| address_after(&line, "listening on "));
            admin = admin.or_else(|| address_after(&line, "admin on "));
        }
        Tollgate { child, data: data.unwrap(), admin: admin.unwrap(), log, directory }
    }
}

fn address_after(line: &str, word: &str) -> Option<SocketAddr> {
    let rest = &line[line.find(word)? + word.len()..];
    let end = rest.find(|c: char| !(c.is_ascii_hexdigit() || ".:[]".contains(c)));
    rest[..end.unwrap_or(rest.len())].parse().ok()
}

impl Tollgate {
    /// In front of `upstream`, everything else by default.
    pub fn in_front_of(upstream: SocketAddr) -> Self {
        Start::default().upstream(upstream).run()
    }

    /// In front of `backend`, with limits that no test reaches.
    pub fn generous(backend: &Backend) -> Self {
        Start::default().upstream(backend.address).tiers(GENEROUS).run()
    }

    /// A connection to the data port.
    pub fn connect(&self) -> Client {
        Client::connect(self.data)
    }

    /// One GET on a connection of its own.
    pub fn get(&self, path: &str) -> Answer {
        self.connect().get(path)
    }

    /// One GET of the admin port.
    pub fn admin(&self, path: &str) -> Answer {
        Client::connect(self.admin).get(path)
    }

    /// The value of one series; 0 where it does not exist.
    pub fn metric(&self, series: &str) -> f64 {
        let page = self.admin("/metrics").text();
        page.lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
            .unwrap_or(0.0)
    }

    /// The sum of all series that begin so.
    pub fn sum(&self, series: &str) -> f64 {
        sum(&self.admin("/metrics").text(), series)
    }

    /// Everything that it has printed so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Where its `tollgate.yaml` or `tiers.yaml` is.
    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// Its part of `/health`, by a JSON pointer.
    pub fn health(&self, pointer: &str) -> serde_json::Value {
        let health: serde_json::Value =
            serde_json::from_str(&self.admin("/health").text()).unwrap();
        health.pointer(pointer).cloned().unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its resident set, in bytes.
    pub fn resident(&self) -> u64 {
        let pages = std::fs::read_to_string(format!("/proc/{}/statm", self.pid())).unwrap();
        pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    /// Its largest resident set so far, in bytes.
    pub fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// Sends it a signal, by the name that `kill` knows.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Waits until it ends.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "tollgate did not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The sum of all series of a page of metrics that begin so.
pub fn sum(page: &str, series: &str) -> f64 {
    let lines = page.lines().filter(|it| it.starts_with(series));
    lines.filter_map(|it| it.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

impl Drop for Tollgate {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("--- tollgate said\n{}---", self.log());
        }
    }
}

/// Sends a signal to a process, by the name that `kill` knows.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(status.unwrap().success());
}

/// A connection on which raw bytes are sent and answers read.
pub struct Client {
    /// The socket.
    pub stream: TcpStream,
    reader: BufReader<TcpStream>,
}

/// An answer as it came.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// The head's bytes, the empty line included.
    pub head: String,
    /// Fields in order, names in lower case.
    pub fields: Vec<(String, String)>,
    /// The content, chunks put together.
    pub body: Vec<u8>,
    /// Trailer fields.
    pub trailers: Vec<(String, String)>,
    /// Whether it ended as its framing says.
    pub is_complete: bool,
}

impl Answer {
    /// The content as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The first field of this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }

    /// Every field of this name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(it, _)| it == name).map(|(_, value)| value.as_str()).collect()
    }

    /// A field as a number.
    pub fn number(&self, name: &str) -> u64 {
        let field = self.field(name).unwrap_or_else(|| panic!("no {name} in {}", self.head));
        field.parse().unwrap()
    }
}

impl Client {
    /// Connects.
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).unwrap())
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { reader: BufReader::new(stream.try_clone().unwrap()), stream }
    }

    /// Connects from this address of this machine.
    pub fn connect_from(source: &str, address: SocketAddr) -> Self {
        let source = SocketAddr::new(source.parse().unwrap(), 0);
        let domain = socket2::Domain::for_address(source);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
        socket.bind(&source.into()).unwrap();
        socket.connect(&address.into()).unwrap();
        Self::over(socket.into())
    }

    /// Sends no more.
    pub fn end_writing(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        // A peer that has already refused may have closed: its answer is what counts.
        self.stream.write_all(bytes.as_ref()).ok();
        self
    }

    /// GET, and the answer.
    pub fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")).answer()
    }

    /// The next answer to a request that is not HEAD.
    pub fn answer(&mut self) -> Answer {
        self.answer_to("GET")
    }

    /// The next answer, interim ones left out.
    pub fn answer_to(&mut self, method: &str) -> Answer {
        loop {
            let answer = read_answer(&mut self.reader, method);
            if answer.status == 101 || !(100..200).contains(&answer.status) {
                return answer;
            }
        }
    }

    /// The next head, interim ones too.
    pub fn head(&mut self) -> Answer {
        read_head(&mut self.reader)
    }

    /// So many bytes.
    pub fn read_exactly(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.reader.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Everything until the other side closes, or resets.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.reader.read_to_end(&mut bytes) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("{error} after {bytes:?}"),
        }
        bytes
    }
}

fn read_head(reader: &mut impl BufRead) -> Answer {
    let mut answer = Answer::default();
    loop {
        let mut line = String::new();
        let is_end = reader.read_line(&mut line).unwrap_or(0) == 0;
        answer.head.push_str(&line);
        if is_end || line == "\r\n" {
            break;
        }
        if answer.status == 0 {
            answer.status = line.split(' ').nth(1).and_then(|it| it.parse().ok()).unwrap_or(0);
        } else if let Some((name, value)) = line.split_once(':') {
            answer.fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    answer
}

fn read_answer(reader: &mut impl BufRead, method: &str) -> Answer {
    let mut answer = read_head(reader);
    let has_none = method == "HEAD" || matches!(answer.status, 0 | 100..200 | 204 | 304);
    if has_none {
        answer.is_complete = answer.status != 0;
    } else if answer.field("transfer-encoding").is_some() {
        answer.is_complete = read_chunks(reader, &mut answer);
    } else if let Some(length) = answer.field("content-length") {
        let length: u64 = length.parse().unwrap();
        reader.take(length).read_to_end(&mut answer.body).ok();
        answer.is_complete = answer.body.len() as u64 == length;
    } else {
        answer.is_complete = reader.read_to_end(&mut answer.body).is_ok();
    }
    answer
}

fn read_chunks(reader: &mut impl BufRead, answer: &mut Answer) -> bool {
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return false;
        }
        let Ok(size) = u64::from_str_radix(line.trim().split(';').next().unwrap(), 16) else {
            return false;
        };
        if size == 0 {
            break;
        }
        let before = answer.body.len() as u64;
        reader.take(size).read_to_end(&mut answer.body).ok();
        if answer.body.len() as u64 != before + size || reader.read_line(&mut line).unwrap_or(0) < 2
        {
            return false;
        }
    }
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return false;
        }
        match line.trim().split_once(':') {
            None => return line == "\r\n",
            Some((name, value)) => {
                answer.trailers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
    }
}

/// A request as a backend saw it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The request line, without its end.
    pub line: String,
    /// Fields in order, names as they came.
    pub fields: Vec<(String, String)>,
    /// The content, chunks put together.
    pub body: Vec<u8>,
    /// Trailer fields.
    pub trailers: Vec<(String, String)>,
    /// Number of the connection that it came on, from 0.
    pub connection: usize,
}

impl Seen {
    /// The first field of this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    /// Every field of this name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.fields
            .iter()
            .filter(|(it, _)| it.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect()
    }

    /// The target of the request line.
    pub fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }
}

/// One connection of a [`Backend`].
pub struct BackendConnection {
    /// The socket.
    pub stream: TcpStream,
    reader: BufReader<TcpStream>,
    number: usize,
    log: Arc<Mutex<Vec<Seen>>>,
}

impl BackendConnection {
    /// The connection itself, where it has come to speak another protocol.
    pub fn upgraded(&mut self) -> &mut BufReader<TcpStream> {
        &mut self.reader
    }

    /// The next request's head; `None` at the end of the connection.
    pub fn head(&mut self) -> Option<Seen> {
        let mut seen = Seen { connection: self.number, ..Seen::default() };
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim_end_matches(['\r', '\n']);
            if seen.line.is_empty() {
                seen.line = line.to_owned();
            } else if line.is_empty() {
                return Some(seen);
            } else if let Some((name, value)) = line.split_once(':') {
                seen.fields.push((name.to_owned(), value.trim().to_owned()));
            }
        }
    }

    /// The next request, body and all, recorded.
    pub fn request(&mut self) -> Option<Seen> {
        let mut seen = self.head()?;
        if seen.field("transfer-encoding").is_some() {
            let mut answer = Answer::default();
            if !read_chunks(&mut self.reader, &mut answer) {
                return None;
            }
            (seen.body, seen.trailers) = (answer.body, answer.trailers);
        } else if let Some(length) = seen.field("content-length") {
            let length: u64 = length.parse().unwrap();
            (&mut self.reader).take(length).read_to_end(&mut seen.body).ok()?;
            if seen.body.len() as u64 != length {
                return None;
            }
        }
        self.log.lock().unwrap().push(seen.clone());
        Some(seen)
    }

    /// Up to so many bytes as they come; empty at the end.
    pub fn read_some(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let read = self.reader.read(&mut bytes).unwrap_or(0);
        bytes.truncate(read);
        bytes
    }

    /// So many bytes, or as many as come before the end.
    pub fn read_exactly(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let count = u64::try_from(count).unwrap();
        let _ = (&mut self.reader).take(count).read_to_end(&mut bytes);
        bytes
    }

    /// Sends no more.
    pub fn end_writing(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// Sends bytes as they are; false if the other side is gone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// A 200 with this content.
    pub fn ok(&mut self, body: &str) -> bool {
        self.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
    }

    /// Closes with a reset in place of a farewell.
    pub fn reset(self) {
        let socket = socket2::SockRef::from(&self.stream);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// A backend that answers by a script and records what it saw.
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Backend {
    /// Runs `script` on a thread of its own for each connection.
    pub fn spawn(script: impl Fn(BackendConnection) + Send + Sync + 'static) -> Self {
        Self::spawn_on(TcpListener::bind("127.0.0.1:0").unwrap(), script)
    }

    fn spawn_on(
        listener: TcpListener,
        script: impl Fn(BackendConnection) + Send + Sync + 'static,
    ) -> Self {
        // The library's 128 are soon full where a thousand connect at once.
        rustix::net::listen(&listener, 4096).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let backend = Backend {
            address,
            seen: Arc::clone(&seen),
            connections: Arc::clone(&connections),
            stop: Arc::clone(&stop),
        };
        let script = Arc::new(script);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                stream.set_nodelay(true).unwrap();
                let connection = BackendConnection {
                    reader: BufReader::new(stream.try_clone().unwrap()),
                    stream,
                    number: connections.fetch_add(1, Ordering::AcqRel),
                    log: Arc::clone(&seen),
                };
                let script = Arc::clone(&script);
                std::thread::spawn(move || script(connection));
            }
        });
        backend
    }

    /// Answers every request with 200 and `ok`.
    pub fn ok() -> Self {
        Self::spawn(|mut connection| while connection.request().is_some() && connection.ok("ok") {})
    }

    /// The same, where so far was nobody.
    pub fn ok_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        Self::spawn_on(
            listener,
            |mut connection| {
                while connection.request().is_some() && connection.ok("ok") {}
            },
        )
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The last request.
    pub fn last(&self) -> Seen {
        self.seen().pop().unwrap()
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Acquire)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the acceptor, so that it sees the flag.
        TcpStream::connect(self.address).ok();
    }
}

/// An address of loopback on which nothing listens.
pub fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A policy with limits that no test reaches.
pub const GENEROUS: &str = "
default_tier: free
tiers:
  free: { per_second: 100000, burst: 100000, per_minute: 1000000, per_hour: 10000000 }
";

/// Counts how often each value occurs.
pub fn tally<T: std::hash::Hash + Eq>(values: impl IntoIterator<Item = T>) -> HashMap<T, usize> {
    let mut counts = HashMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    counts
}
