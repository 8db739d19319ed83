//! Load for tests that lose nothing: a fast backend, and a client of raw bytes that counts every
//! request and its outcome, and sends none of them a second time.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::certificates::{client, self_signed};
use super::http2::{
    ACK, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, block, frame,
};
use super::support::{GENEROUS, PATIENCE, Start, Tollgate};

#[path = "websocket.rs"]
pub mod websocket;

/// Content of an upload.
pub const UPLOAD: usize = 2000;
/// Content of a large answer.
const LARGE: usize = 100_000;
/// How long the backend takes for a slow one.
const SLOW: Duration = Duration::from_millis(20);
/// What is said of an answer whose head came.
pub const BROKE_OFF: &str = "the answer broke off";
/// The window of each stream, so large that no answer needs an update of it.
const WINDOW: u32 = 1 << 20;

// ------------------------------------------------------------------------------------ the backend

/// Answers `/KIND/NUMBER` with 200 and that path: `s` at once, `u` an upload, `w` after a while, `b`
/// with much behind it, in chunks. Of a WebSocket it echoes every message.
pub struct Fast {
    /// Where it listens.
    pub address: SocketAddr,
    serving: Arc<Serving>,
    acceptor: Option<std::thread::JoinHandle<()>>,
}

/// What all connections of a [`Fast`] share.
#[derive(Default)]
struct Serving {
    /// Nobody listens any more, and every answer is the last of its connection.
    ends: AtomicBool,
    /// Connections.
    open: AtomicUsize,
    /// Requests so far.
    requests: AtomicUsize,
}

impl Fast {
    /// On a port that is free, with one thread for each connection.
    pub fn spawn() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// On this one.
    pub fn on(listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let serving = Arc::new(Serving::default());
        let shared = Arc::clone(&serving);
        let acceptor = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if shared.ends.load(Relaxed) {
                    // Whoever is connected by now is served all the same.
                    listener.set_nonblocking(true).unwrap();
                }
                let shared = Arc::clone(&shared);
                shared.open.fetch_add(1, Relaxed);
                // Thousands of them may have to fit.
                let thread = std::thread::Builder::new().stack_size(256 << 10);
                let served = thread.spawn(move || {
                    serve(stream, &shared).ok();
                    shared.open.fetch_sub(1, Relaxed);
                });
                served.unwrap();
            }
        });
        Fast { address, serving, acceptor: Some(acceptor) }
    }

    /// Ends as a server does that means to lose nothing: it no longer listens, answers what comes on the
    /// connections that there are, each for the last time, and waits until none is left, or until those
    /// that are left have been silent for a second.
    pub fn wind_down(&mut self) {
        self.stop_listening();
        loop {
            let before = self.serving.requests.load(Relaxed);
            for _ in 0..100 {
                if self.serving.open.load(Relaxed) == 0 {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            if self.serving.requests.load(Relaxed) == before {
                return;
            }
        }
    }

    fn stop_listening(&mut self) {
        self.serving.ends.store(true, Relaxed);
        // Wakes the acceptor, so that it sees that.
        TcpStream::connect(self.address).ok();
        self.acceptor.take().map(std::thread::JoinHandle::join);
    }
}

impl Drop for Fast {
    fn drop(&mut self) {
        self.stop_listening();
    }
}

fn serve(stream: TcpStream, serving: &Serving) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let (mut length, mut key) = (0, None);
        while line != "\r\n" {
            line.clear();
            stream.read_line(&mut line)?;
            if let Some((name, value)) = line.split_once(':') {
                match name.to_ascii_lowercase().as_str() {
                    "content-length" => length = value.trim().parse().unwrap(),
                    "sec-websocket-key" => key = Some(derive_accept_key(value.trim().as_bytes())),
                    _ => {}
                }
            }
        }
        if let Some(key) = key {
            let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n";
            let head = format!("{head}Upgrade: websocket\r\nSec-WebSocket-Accept: {key}\r\n\r\n");
            stream.get_mut().write_all(head.as_bytes())?;
            return websocket::echo(&mut stream);
        }
        serving.requests.fetch_add(1, Relaxed);
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let kind = target.as_bytes().get(1).copied();
        let is_whole = kind != Some(b'u') || body == [b'u'; UPLOAD];
        if kind == Some(b'w') {
            std::thread::sleep(SLOW);
        }
        let ends = serving.ends.load(Relaxed);
        let field = if ends { "Connection: close\r\n" } else { "" };
        let answer = match (is_whole, kind) {
            (false, _) => "HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n".to_owned(),
            (true, Some(b'b')) => format!(
                "HTTP/1.1 200 OK\r\n{field}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{target}\r\n\
                 {LARGE:x}\r\n{}\r\n0\r\n\r\n",
                target.len(),
                "x".repeat(LARGE),
            ),
            _ => {
                let length = target.len();
                format!("HTTP/1.1 200 OK\r\n{field}Content-Length: {length}\r\n\r\n{target}")
            }
        };
        stream.get_mut().write_all(answer.as_bytes())?;
        if ends {
            return Ok(());
        }
    }
}

/// A request that it answers, with these further fields, each with its end of line.
pub fn request(path: &str, has_body: bool, fields: &str) -> String {
    if has_body {
        let body = "u".repeat(UPLOAD);
        format!(
            "POST {path} HTTP/1.1\r\nHost: test\r\n{fields}Content-Length: {UPLOAD}\r\n\r\n{body}"
        )
    } else {
        format!("GET {path} HTTP/1.1\r\nHost: test\r\n{fields}\r\n")
    }
}

// ----------------------------------------------------------------------------------- the tollgates

/// A tollgate that speaks in the clear, with limits that no test reaches.
pub fn plain(upstream: SocketAddr) -> (Tollgate, Target) {
    let tollgate = Start::default().upstream(upstream).tiers(GENEROUS).run();
    let target = Target { address: tollgate.data, tls: None };
    (tollgate, target)
}

/// With the certificate `shown.crt` of a directory, and clients that trust `a.crt` and `b.crt`.
pub fn with_tls(upstream: SocketAddr, directory: &Path, speaks: &[u8]) -> (Tollgate, Target) {
    let at = directory.display();
    let config = format!(
        "server:\n  listeners:\n  - address: 127.0.0.1:0\n    tls: {{ cert: {at}/shown.crt, key: \
         {at}/shown.key }}\n"
    );
    let start = Start::default().upstream(upstream).config(&config).listeners();
    let tollgate = start.tiers(GENEROUS).run();
    let tls = client(["a.crt", "b.crt"].map(|it| directory.join(it)), speaks);
    let target = Target { address: tollgate.data, tls: Some(tls) };
    (tollgate, target)
}

/// Makes two certificates, and shows the first.
pub fn two_certificates() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        self_signed(directory.path(), name, name, 90);
    }
    show(directory.path(), "a");
    directory
}

/// Puts the certificate of that name in the place of the one that is shown.
pub fn show(directory: &Path, name: &str) {
    for kind in ["crt", "key"] {
        let new = directory.join("new");
        fs::copy(directory.join(format!("{name}.{kind}")), &new).unwrap();
        fs::rename(&new, directory.join(format!("shown.{kind}"))).unwrap();
    }
}

// ------------------------------------------------------------------------------------- the client

/// What became of all requests.
#[derive(Debug, Default)]
pub struct Tally {
    /// Requests whose first byte was sent.
    pub sent: AtomicUsize,
    /// Those that were answered, each with its own answer and the whole of it.
    pub answered: AtomicUsize,
    /// Connections that were established.
    pub connections: AtomicUsize,
    /// The certificates that were shown.
    pub certificates: Mutex<HashSet<Vec<u8>>>,
    /// Connections of HTTP/2 that were said goodbye to in two steps.
    pub twice: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Tally {
    /// What failed, and why.
    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap().clone()
    }

    fn failed(&self, why: impl Into<String>) {
        self.failures.lock().unwrap().push(why.into());
    }
}

/// A client's view of a tollgate.
#[derive(Clone)]
pub struct Target {
    /// Where it is.
    pub address: SocketAddr,
    /// By TLS, with a configuration that agrees on the right version of HTTP.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

/// How one client behaves.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// HTTP/2 with so many requests at a time, or else HTTP/1.1.
    pub streams: Option<usize>,
    /// How many requests a connection carries before its client replaces it.
    pub requests_max: usize,
    /// How long the client pauses before a request.
    pub pause: Duration,
}

/// Clients that keep their connections, clients that replace them, and clients that pause.
pub const HTTP_1: &[Manner] = &[
    Manner { streams: None, requests_max: usize::MAX, pause: Duration::ZERO },
    Manner { streams: None, requests_max: usize::MAX, pause: Duration::ZERO },
    Manner { streams: None, requests_max: 1, pause: Duration::ZERO },
    Manner { streams: None, requests_max: 20, pause: Duration::from_millis(100) },
];
/// The same, of HTTP/2.
pub const HTTP_2: &[Manner] = &[
    Manner { streams: Some(16), requests_max: usize::MAX, pause: Duration::ZERO },
    Manner { streams: Some(50), requests_max: usize::MAX, pause: Duration::ZERO },
    Manner { streams: Some(4), requests_max: 20, pause: Duration::ZERO },
];

/// Waits until so many more are answered in all of these runs, or one has failed.
pub fn wait_answered(runs: &[Arc<Run>], more: usize) {
    let answered = || -> usize { runs.iter().map(|it| it.tally.answered.load(Relaxed)).sum() };
    let (enough, deadline) = (answered() + more, Instant::now() + PATIENCE * 10);
    while answered() < enough && runs.iter().all(|it| it.tally.failures().is_empty()) {
        assert!(Instant::now() < deadline, "too slow");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What became of a case.
#[derive(Default)]
pub struct Sum {
    pub sent: usize,
    pub answered: usize,
    pub connections: usize,
    /// Connections of HTTP/2 that were said goodbye to in two steps.
    pub twice: usize,
    pub failures: Vec<String>,
}

impl Sum {
    /// Adds a run that is over.
    pub fn add(&mut self, run: &Run) {
        self.sent += run.tally.sent.load(Relaxed);
        self.answered += run.tally.answered.load(Relaxed);
        self.connections += run.tally.connections.load(Relaxed);
        self.twice += run.tally.twice.load(Relaxed);
        self.failures.extend(run.tally.failures());
    }

    /// Prints it, and asserts that nothing was lost.
    pub fn tell(&self, case: &str, extra: &str) {
        println!(
            "{case}: {} sent, {} answered, {} failed, {} connections{extra}",
            self.sent,
            self.answered,
            self.failures.len(),
            self.connections
        );
        let failures = &self.failures[..self.failures.len().min(20)];
        assert!(failures.is_empty(), "{case}: {} failed: {failures:#?}", self.failures.len());
        assert_eq!(self.sent, self.answered, "{case}");
    }
}

/// What all clients of one run share.
pub struct Run {
    /// Where to.
    pub target: Target,
    /// Counts.
    pub tally: Tally,
    /// Requests to begin; after the last of them the clients end.
    pub requests_max: usize,
    /// Whether connections may be refused by now.
    pub may_refuse: AtomicBool,
    /// Where new connections go instead, once somebody has said so.
    elsewhere: Mutex<Option<SocketAddr>>,
    begun: AtomicUsize,
}

/// A connection in the clear or by TLS.
pub trait Duplex: Read + Write {}
impl<T: Read + Write> Duplex for T {}

impl Target {
    /// Connects, without a handshake of TLS.
    pub fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Shakes hands where that is asked for; `shown` gets the certificate that was shown.
    pub fn greet(
        &self,
        mut stream: TcpStream,
        shown: &Mutex<HashSet<Vec<u8>>>,
    ) -> io::Result<Box<dyn Duplex>> {
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let name = "localhost".try_into().unwrap();
        let mut client = rustls::ClientConnection::new(Arc::clone(tls), name).unwrap();
        while client.is_handshaking() {
            client.complete_io(&mut stream)?;
        }
        assert_eq!(client.alpn_protocol(), tls.alpn_protocols.first().map(|it| &it[..]));
        let certificates = client.peer_certificates().unwrap_or_default();
        shown.lock().unwrap().extend(certificates.iter().map(|it| it.to_vec()));
        Ok(Box::new(rustls::StreamOwned::new(client, stream)))
    }
}

impl Run {
    /// Nothing sent yet.
    pub fn new(target: Target, requests_max: usize) -> Arc<Self> {
        Arc::new(Run {
            target,
            tally: Tally::default(),
            requests_max,
            may_refuse: AtomicBool::new(false),
            elsewhere: Mutex::default(),
            begun: AtomicUsize::new(0),
        })
    }

    /// Starts one client on a thread of its own. It ends when it is refused a connection, or when
    /// there is nothing more to send.
    pub fn client(self: &Arc<Self>, manner: Manner) -> std::thread::JoinHandle<()> {
        let run = Arc::clone(self);
        std::thread::spawn(move || {
            while !run.is_done() {
                let stream = match run.connect() {
                    Ok(stream) => stream,
                    // Nothing was sent, and nothing is lost.
                    Err(_) if run.may_refuse.load(Relaxed) => return,
                    Err(error) => return run.tally.failed(format!("connect: {error}")),
                };
                run.tally.connections.fetch_add(1, Relaxed);
                match (run.target.greet(stream, &run.tally.certificates), manner.streams) {
                    (Ok(stream), Some(streams)) => run.http2(stream, manner, streams),
                    (Ok(stream), None) => run.http1(stream, manner),
                    (Err(error), _) => run.tally.failed(format!("handshake: {error}")),
                }
            }
        })
    }

    /// Has every connection that is not begun yet go to another address. Those that there are stay.
    pub fn go_elsewhere(&self, address: SocketAddr) {
        *self.elsewhere.lock().unwrap() = Some(address);
    }

    /// Has the clients end after the requests that they have begun.
    pub fn finish(&self) {
        self.begun.fetch_max(self.requests_max, Relaxed);
    }

    fn connect(&self) -> io::Result<TcpStream> {
        // Held to the end of it: nobody who was told before connects to the old address after.
        let elsewhere = self.elsewhere.lock().unwrap();
        let address = elsewhere.unwrap_or(self.target.address);
        Target { address, tls: None }.connect()
    }

    fn is_done(&self) -> bool {
        self.begun.load(Relaxed) >= self.requests_max
    }

    /// The next request: its path, and whether it has content.
    fn next(&self) -> (String, bool) {
        let number = self.begun.fetch_add(1, Relaxed);
        let kind = match number % 32 {
            7 | 15 | 23 => 'u',
            11 | 27 => 'w',
            31 => 'b',
            _ => 's',
        };
        (format!("/{kind}/{number}"), kind == 'u')
    }

    fn http1(&self, stream: Box<dyn Duplex>, manner: Manner) {
        let mut stream = BufReader::new(stream);
        for _ in 0..manner.requests_max {
            if self.is_done() {
                return;
            }
            std::thread::sleep(manner.pause);
            let (path, has_body) = self.next();
            let request = request(&path, has_body, "");
            self.tally.sent.fetch_add(1, Relaxed);
            let sent = stream.get_mut().write_all(request.as_bytes());
            match sent.and_then(|()| read_answer(&mut stream)) {
                Ok(told) if told.status != 200 || !is_own(&told.body, &path) => {
                    return self.tally.failed(format!("{path}: not its answer, {}", told.status));
                }
                Ok(told) => {
                    self.tally.answered.fetch_add(1, Relaxed);
                    if told.closes {
                        return;
                    }
                }
                Err(error) => return self.tally.failed(format!("{path}: {error}")),
            }
        }
    }

    fn http2(&self, stream: Box<dyn Duplex>, manner: Manner, streams: usize) {
        let mut stream = BufReader::new(stream);
        let mut settings = vec![0, 4];
        settings.extend(WINDOW.to_be_bytes());
        let mut begin = [PREFACE, &frame(SETTINGS, 0, 0, &settings)].concat();
        begin.extend(frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes()));
        let mut client = Http2 {
            run: self,
            open: HashMap::new(),
            next_id: 1,
            left: manner.requests_max,
            window: 65_535,
            goodbyes: Vec::new(),
        };
        if let Err(error) = stream.get_mut().write_all(&begin) {
            return client.lost(&error.to_string());
        }
        loop {
            let mut bytes = Vec::new();
            while client.open.len() < streams && client.may_send() {
                client.send(&mut bytes);
            }
            if let Err(error) = stream.get_mut().write_all(&bytes) {
                return client.lost(&error.to_string());
            }
            if client.open.is_empty() && client.goodbyes.is_empty() {
                return;
            }
            // Of a connection that was said goodbye to, the end is the server's to make.
            let frame = match read_frame(&mut stream) {
                Ok(frame) => frame,
                Err(error) => return client.lost(&error.to_string()),
            };
            let Some(reply) = client.take(&frame) else { return };
            if let Err(error) = stream.get_mut().write_all(&reply) {
                return client.lost(&error.to_string());
            }
        }
    }
}

/// An answer over HTTP/1.1.
pub struct Told {
    pub status: u16,
    /// Whether it is the last of its connection.
    pub closes: bool,
    /// What it says that the limit is.
    pub limit: Option<u64>,
    pub body: Vec<u8>,
}

/// Reads one answer, the whole of it.
///
/// # Errors
/// The connection's; [`io::ErrorKind::UnexpectedEof`] or not, one with "the answer broke off" came after
/// its head.
pub fn read_answer(stream: &mut impl BufRead) -> io::Result<Told> {
    let mut line = String::new();
    let mut next = |stream: &mut dyn BufRead| {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::Error::other("the connection ended"));
        }
        Ok(line.trim_end().to_owned())
    };
    let status = next(stream)?;
    let status = status.split(' ').nth(1).and_then(|it| it.parse().ok()).unwrap_or(0);
    let (mut length, mut closes, mut limit) = (None, false, None);
    loop {
        let field = next(stream)?;
        let Some((name, value)) = field.split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().ok(),
            "connection" => closes = value.trim() == "close",
            "x-ratelimit-limit" => limit = value.trim().parse().ok(),
            _ => {}
        }
    }
    let mut read = || -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        if let Some(length) = length {
            body.resize(length, 0);
            stream.read_exact(&mut body)?;
            return Ok(body);
        }
        loop {
            let size = usize::from_str_radix(&next(stream)?, 16).map_err(io::Error::other)?;
            let begin = body.len();
            body.resize(begin + size, 0);
            stream.read_exact(&mut body[begin..])?;
            next(stream)?;
            if size == 0 {
                return Ok(body);
            }
        }
    };
    let body = read().map_err(|it| io::Error::new(it.kind(), format!("{BROKE_OFF}, {it}")))?;
    Ok(Told { status, closes, limit, body })
}

/// Whether this is the whole answer to a request for that path.
pub fn is_own(body: &[u8], path: &str) -> bool {
    let more = if path.starts_with("/b") { LARGE } else { 0 };
    body.starts_with(path.as_bytes()) && body.len() == path.len() + more
}

/// One connection of HTTP/2 that keeps the rules.
struct Http2<'a> {
    run: &'a Run,
    /// Requests without a whole answer: path, whether it was 200, and what arrived.
    open: HashMap<u32, (String, bool, Vec<u8>)>,
    next_id: u32,
    left: usize,
    /// What may still be uploaded.
    window: usize,
    /// The last stream of each GOAWAY.
    goodbyes: Vec<u32>,
}

impl Http2<'_> {
    fn may_send(&self) -> bool {
        self.goodbyes.is_empty() && self.left > 0 && !self.run.is_done()
    }

    fn send(&mut self, bytes: &mut Vec<u8>) {
        let (path, has_body) = self.run.next();
        let (id, length) = (self.next_id, UPLOAD.to_string());
        self.next_id += 2;
        self.left -= 1;
        let has_body = has_body && self.window >= UPLOAD;
        // An upload that finds no room waits for none: it is one of the others.
        let path = if has_body { path } else { path.replacen("/u/", "/s/", 1) };
        let method = if has_body { "POST" } else { "GET" };
        let mut fields = vec![
            (":method", method),
            (":scheme", if self.run.target.tls.is_some() { "https" } else { "http" }),
            (":authority", "test"),
            (":path", &path),
        ];
        if has_body {
            fields.push(("content-length", &length));
            bytes.extend(frame(HEADERS, END_HEADERS, id, &block(&fields)));
            bytes.extend(frame(DATA, END_STREAM, id, &[b'u'; UPLOAD]));
            self.window -= UPLOAD;
        } else {
            bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, id, &block(&fields)));
        }
        self.run.tally.sent.fetch_add(1, Relaxed);
        self.open.insert(id, (path, false, Vec::new()));
    }

    /// Takes a frame, and says what to reply at once; `None` at the end of the connection.
    fn take(&mut self, frame: &Frame) -> Option<Vec<u8>> {
        let tally = &self.run.tally;
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes[..4].try_into().unwrap()) << 1 >> 1;
        let mut reply = Vec::new();
        match frame.kind {
            HEADERS => {
                if let Some((_, is_fine, _)) = self.open.get_mut(&frame.stream) {
                    // `:status: 200` of the static table (RFC 7541, appendix A).
                    *is_fine = frame.payload.first() == Some(&0x88);
                }
            }
            DATA => {
                if let Some((_, _, body)) = self.open.get_mut(&frame.stream) {
                    body.extend_from_slice(&frame.payload);
                }
                if !frame.payload.is_empty() {
                    let count = u32::try_from(frame.payload.len()).unwrap();
                    reply = super::http2::frame(WINDOW_UPDATE, 0, 0, &count.to_be_bytes());
                }
            }
            RST_STREAM => {
                if let Some((path, ..)) = self.open.remove(&frame.stream) {
                    tally.failed(format!("{path}: reset, {}", number(&frame.payload)));
                }
            }
            GOAWAY => {
                let (last, code) = (number(&frame.payload), number(&frame.payload[4..]));
                self.goodbyes.push(last);
                if self.goodbyes.len() == 2 && self.goodbyes[0] == u32::MAX >> 1 {
                    tally.twice.fetch_add(1, Relaxed);
                }
                if code != 0 {
                    tally.failed(format!("GOAWAY for {code}"));
                }
                self.open.retain(|id, (path, ..)| {
                    if *id > last {
                        tally.failed(format!("{path}: stream {id} above the last, {last}"));
                    }
                    *id <= last
                });
            }
            SETTINGS if frame.flags & ACK == 0 => {
                reply = super::http2::frame(SETTINGS, ACK, 0, b"");
            }
            PING if frame.flags & ACK == 0 => {
                reply = super::http2::frame(PING, ACK, 0, &frame.payload);
            }
            WINDOW_UPDATE if frame.stream == 0 => {
                self.window += usize::try_from(number(&frame.payload)).unwrap();
            }
            _ => {}
        }
        if matches!(frame.kind, HEADERS | DATA)
            && frame.flags & END_STREAM != 0
            && let Some((path, is_fine, body)) = self.open.remove(&frame.stream)
        {
            if is_fine && is_own(&body, &path) {
                tally.answered.fetch_add(1, Relaxed);
            } else {
                tally.failed(format!("{path}: not its answer, {} bytes", body.len()));
            }
        }
        Some(reply)
    }

    /// Whatever is open when the connection ends has failed.
    fn lost(&self, why: &str) {
        for (path, ..) in self.open.values() {
            let goodbyes = &self.goodbyes;
            self.run.tally.failed(format!("{path}: {why} after goodbyes {goodbyes:?}"));
        }
    }
}

/// The next frame.
///
/// # Errors
/// The connection's.
pub fn read_frame(stream: &mut impl Read) -> io::Result<Frame> {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut payload)?;
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    Ok(Frame { kind: head[3], flags: head[4], stream, payload })
}
