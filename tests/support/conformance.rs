//! The bench of the conformance suite: a proxy under test, an origin that records raw bytes, a client
//! that sends them. The same cases run against tollgate and, where they are installed, its peers.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "tests wait by the real time, and end")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::{GENEROUS, Start, Tollgate, nobody, signal};

/// How long anything that has to happen may take.
pub const WAIT: Duration = Duration::from_secs(6);

/// How long what must not happen is waited for.
pub const QUIET: Duration = Duration::from_millis(200);

/// A piece of the checklist.
pub struct Line {
    /// Its name, which is its test's.
    pub name: &'static str,
    /// The part of the checklist that it is of.
    pub group: &'static str,
    /// Where it is written.
    pub source: &'static str,
    /// What is sent, and what must come of it.
    pub cases: Vec<Case>,
}

/// One thing that is sent, and what must come of it.
pub struct Case {
    /// What is special about it.
    pub name: String,
    /// How the proxy is set up.
    pub profile: Profile,
    /// Those that have no such thing.
    pub not_for: Vec<Kind>,
    /// Why tollgate does not pass it yet.
    pub known: Option<&'static str>,
    run: Box<dyn Fn(&Bench) -> Checked + Send + Sync>,
}

/// Whether a case passed, or what was wrong.
pub type Checked = Result<(), String>;

/// A case on a proxy of the plain profile.
pub fn case(
    name: impl Into<String>,
    run: impl Fn(&Bench) -> Checked + Send + Sync + 'static,
) -> Case {
    let name = name.into();
    Case { name, profile: Profile::Plain, not_for: Vec::new(), known: None, run: Box::new(run) }
}

impl Case {
    /// With another setup.
    pub fn with(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// Left out for a peer that has no such thing.
    pub fn not_for(mut self, kinds: &[Kind]) -> Self {
        self.not_for.extend(kinds);
        self
    }

    /// That tollgate does not pass it, and why.
    pub fn known(mut self, why: &'static str) -> Self {
        self.known = Some(why);
        self
    }

    /// Runs on a proxy and an origin of its own; `None` where it does not apply.
    pub fn run(&self, kind: Kind) -> Option<Checked> {
        if self.not_for.contains(&kind) {
            return None;
        }
        let origin = Origin::spawn();
        let upstream = if self.profile == Profile::Down { nobody() } else { origin.address };
        let subject = Subject::start(kind, self.profile, upstream);
        Some((self.run)(&Bench { kind, subject, origin }))
    }
}

/// A message where the condition does not hold.
pub fn check(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(what()) }
}

/// A proxy under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The binary of this crate.
    Tollgate,
    /// nginx, from the system.
    Nginx,
    /// HAProxy, from the system.
    Haproxy,
}

/// Both peers.
pub const PEERS: [Kind; 2] = [Kind::Nginx, Kind::Haproxy];

/// How the proxy under test is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Nothing out of the ordinary, and limits that nothing reaches.
    Plain,
    /// The upstream may be silent for a second, no more.
    Impatient,
    /// In front of nobody.
    Down,
    /// Ten requests a minute and caller, no more.
    Ten,
    /// One request a minute and caller on `/heavy/x`, whatever the rest.
    HeavyPath,
    /// Ten requests, and loopback may say who asks.
    TenTrusting,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// A free port of loopback, of those that the system gives nobody who asks for any: a peer has to be
/// told its port, and whoever took it meanwhile would answer in its place.
fn free_port() -> SocketAddr {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let start = usize::try_from(std::process::id()).unwrap() * 97;
    loop {
        let port = 12_000 + (start + NEXT.fetch_add(1, Ordering::AcqRel)) % 18_000;
        let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// What the three call themselves.
pub fn versions() -> Vec<String> {
    [("nginx", "-v"), ("haproxy", "-v")]
        .iter()
        .map(|(program, argument)| {
            let output = Command::new(program).arg(argument).output();
            let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
            let said = [output.stdout, output.stderr].concat();
            let line = String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned();
            let words: Vec<&str> =
                line.split(' ').filter(|word| !word.starts_with("http")).collect();
            words.join(" ").trim_end_matches([' ', '-']).replace("nginx version: ", "")
        })
        .chain([format!("tollgate {}", env!("CARGO_PKG_VERSION"))])
        .collect()
}

/// A proxy that runs, and ends with its value.
pub struct Subject {
    /// Where it serves.
    pub address: SocketAddr,
    process: Process,
}

enum Process {
    Own(Box<Tollgate>),
    Peer { child: Child, _directory: tempfile::TempDir },
}

impl Subject {
    /// Starts one in front of `upstream`.
    pub fn start(kind: Kind, profile: Profile, upstream: SocketAddr) -> Self {
        match kind {
            Kind::Tollgate => {
                let tollgate = own(profile, upstream);
                Subject { address: tollgate.data, process: Process::Own(Box::new(tollgate)) }
            }
            Kind::Nginx => Self::peer(nginx_config(profile, upstream), "nginx", &["-p", ".", "-c"]),
            Kind::Haproxy => {
                Self::peer(haproxy_config(profile, upstream), "haproxy", &["-db", "-f"])
            }
        }
    }

    fn peer(config: impl Fn(SocketAddr) -> String, program: &str, arguments: &[&str]) -> Self {
        // The port was free a moment ago; somebody may have been quicker.
        for _ in 0..5 {
            let (directory, address) = (tempfile::tempdir().unwrap(), free_port());
            let file = directory.path().join("proxy.conf");
            std::fs::write(&file, config(address)).unwrap();
            let mut child = Command::new(program)
                .args(arguments)
                .arg(&file)
                .current_dir(directory.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(std::fs::File::create(directory.path().join("stderr")).unwrap())
                .spawn()
                .unwrap();
            let deadline = Instant::now() + WAIT;
            while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
                if TcpStream::connect(address).is_ok() {
                    let process = Process::Peer { child, _directory: directory };
                    return Subject { address, process };
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            child.kill().ok();
            child.wait().ok();
            eprintln!("{}", std::fs::read_to_string(directory.path().join("stderr")).unwrap());
        }
        panic!("{program} does not start");
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        match &self.process {
            Process::Own(tollgate) => tollgate.pid(),
            Process::Peer { child, .. } => child.id(),
        }
    }

    /// Asks it to end without harm to anybody, as its manual says.
    pub fn drain(&self, kind: Kind) {
        let name = match kind {
            Kind::Tollgate => "TERM",
            Kind::Nginx => "QUIT",
            Kind::Haproxy => "USR1",
        };
        signal(self.pid(), name);
    }

    /// Whether it has ended by then.
    pub fn has_ended(&self, within: Duration) -> bool {
        let stat = format!("/proc/{}/stat", self.pid());
        let deadline = Instant::now() + within;
        loop {
            let text = std::fs::read_to_string(&stat).unwrap_or_default();
            let state = text.rsplit(") ").next().and_then(|rest| rest.chars().next());
            if state.is_none_or(|state| state == 'Z') {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Bytes resident, those of its workers with it.
    pub fn resident(&self) -> u64 {
        let pid = self.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        let pids = children.split_whitespace().filter_map(|it| it.parse().ok()).chain([pid]);
        pids.map(|pid: u32| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
            text.split(' ').nth(1).and_then(|it| it.parse::<u64>().ok()).unwrap_or(0) * 4096
        })
        .sum()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Process::Peer { child, .. } = self {
            // Killed outright, nginx would leave its workers behind.
            signal(child.id(), "TERM");
            child.wait().ok();
        }
    }
}

fn own(profile: Profile, upstream: SocketAddr) -> Tollgate {
    const TEN: &str = "default_tier: t\ntiers: { t: { per_minute: 10 } }";
    let start = Start::default().upstream(upstream);
    match profile {
        Profile::Plain | Profile::Down | Profile::Http2 => start.tiers(GENEROUS),
        Profile::Impatient => start
            .tiers(GENEROUS)
            .config("upstream: { response_timeout: 1s, idle_timeout: 1s, connect_timeout: 1s }"),
        Profile::Ten => start.tiers(TEN),
        Profile::TenTrusting => {
            start.tiers(TEN).config("server: { trusted_proxies: [127.0.0.0/8, 10.0.0.0/8] }")
        }
        Profile::HeavyPath => start.tiers(
            "default_tier: t\ntiers: { t: {} }\nendpoints:\n\
             - { name: heavy, path: /heavy/x, limits: { any: { per_minute: 1 } } }",
        ),
    }
    .run()
}

fn nginx_config(profile: Profile, upstream: SocketAddr) -> impl Fn(SocketAddr) -> String {
    // Otherwise its workers would be nobody's, who may not write into our directory.
    let is_root = std::fs::metadata("/proc/self")
        .is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0);
    move |listen| {
        let user = if is_root { "user root;" } else { "" };
        let http2 = if profile == Profile::Http2 { " http2" } else { "" };
        let (zone, limit) = match profile {
            Profile::Ten | Profile::TenTrusting => {
                ("rate=1r/m", "limit_req zone=z burst=9 nodelay;")
            }
            Profile::HeavyPath => ("rate=1r/m", ""),
            _ => ("rate=10000r/s", ""),
        };
        let timeout = if profile == Profile::Impatient { "1s" } else { "60s" };
        let heavy = if profile == Profile::HeavyPath {
            "location = /heavy/x { limit_req zone=z; proxy_pass http://origin; }"
        } else {
            ""
        };
        let trusted = if profile == Profile::TenTrusting {
            "set_real_ip_from 127.0.0.0/8; set_real_ip_from 10.0.0.0/8; \
             real_ip_header X-Forwarded-For; real_ip_recursive on;"
        } else {
            ""
        };
        format!(
            "{user} daemon off; worker_processes 1; pid nginx.pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
    access_log off; server_tokens off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u;
    scgi_temp_path s;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    limit_req_zone $binary_remote_addr zone=z:1m {zone}; limit_req_status 429; {trusted}
    upstream origin {{ server {upstream}; keepalive 16; }}
    server {{
        listen {listen}{http2};
        proxy_http_version 1.1;
        proxy_set_header Host $host;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $connection_upgrade;
        proxy_set_header X-Real-IP $remote_addr;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Forwarded-Host $host;
        proxy_connect_timeout {timeout}; proxy_read_timeout {timeout}; proxy_send_timeout {timeout};
        {limit}
        {heavy}
        location / {{ proxy_pass http://origin; }}
    }}
}}
"
        )
    }
}

fn haproxy_config(profile: Profile, upstream: SocketAddr) -> impl Fn(SocketAddr) -> String {
    move |listen| {
        let proto = if profile == Profile::Http2 { " proto h2" } else { "" };
        let server = if profile == Profile::Impatient { "1s" } else { "60s" };
        let limit = match profile {
            Profile::Ten | Profile::TenTrusting => {
                "stick-table type ip size 1k expire 2m store http_req_rate(60s)
    http-request track-sc0 src
    http-request deny deny_status 429 if { sc_http_req_rate(0) gt 10 }"
            }
            Profile::HeavyPath => {
                "stick-table type ip size 1k expire 2m store http_req_rate(60s)
    http-request track-sc0 src if { path /heavy/x }
    http-request deny deny_status 429 if { path /heavy/x } { sc_http_req_rate(0) gt 1 }"
            }
            _ => "",
        };
        format!(
            "global
    maxconn 1000
    hard-stop-after 30s
defaults
    mode http
    option http-keep-alive
    timeout connect 1s
    timeout client 60s
    timeout http-request 10s
    timeout http-keep-alive 60s
    timeout server {server}
    timeout tunnel 60s
frontend front
    bind {listen}{proto}
    option forwardfor
    http-request set-header X-Forwarded-Proto http
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    {limit}
    default_backend origin
backend origin
    http-reuse safe
    server one {upstream}
"
        )
    }
}

/// A proxy between the case and its origin.
pub struct Bench {
    /// Which proxy.
    pub kind: Kind,
    /// The proxy.
    pub subject: Subject,
    /// What is behind it.
    pub origin: Origin,
}

impl Bench {
    /// A connection to the proxy.
    pub fn connect(&self) -> Wire {
        Wire::connect(self.subject.address)
    }

    /// Sends bytes on a connection of their own, and waits for as many answers as there are methods.
    pub fn exchange(&self, bytes: impl AsRef<[u8]>, methods: &[&str]) -> Outcome {
        let mut wire = self.connect();
        wire.send(bytes).until(methods);
        self.outcome(&wire, methods)
    }

    /// The same, but waits for the end of the connection.
    pub fn exchange_to_end(&self, bytes: impl AsRef<[u8]>, methods: &[&str]) -> Outcome {
        let mut wire = self.connect();
        wire.send(bytes).until_end();
        self.outcome(&wire, methods)
    }

    /// What has come of it so far.
    pub fn outcome(&self, wire: &Wire, methods: &[&str]) -> Outcome {
        let (answers, interims, rest) = wire.answers(methods);
        let (has_ended, forwarded) = (wire.has_ended, self.origin.forwarded());
        Outcome { answers, interims, rest, has_ended, forwarded, sent_back: wire.raw.clone() }
    }
}

/// What came of an exchange.
#[derive(Debug)]
pub struct Outcome {
    /// Final answers, in order.
    pub answers: Vec<Message>,
    /// Interim ones.
    pub interims: Vec<Message>,
    /// What came behind the last answer that was asked for.
    pub rest: Vec<u8>,
    /// Whether the proxy closed.
    pub has_ended: bool,
    /// What the origin got until now.
    pub forwarded: Vec<Message>,
    /// Everything that came back, as it came.
    pub sent_back: Vec<u8>,
}

impl Outcome {
    /// The first answer's status; 0 without one.
    pub fn status(&self) -> u16 {
        self.answers.first().map_or(0, |answer| answer.status)
    }

    /// The only request that the origin has seen.
    pub fn only(&self) -> Result<&Message, String> {
        match self.forwarded.as_slice() {
            [only] => Ok(only),
            all => Err(format!("the origin got {} requests; {}", all.len(), self.told())),
        }
    }

    /// The first answer has this status.
    pub fn is(&self, status: u16) -> Checked {
        check(self.status() == status, || format!("not {status}; {}", self.told()))
    }

    /// In a few words.
    pub fn told(&self) -> String {
        let cut = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
            format!("{text:?}")
        };
        let forwarded: Vec<String> = self.forwarded.iter().map(|it| cut(&it.head)).collect();
        format!(
            "answer {} (closed: {}), origin got {}",
            cut(&self.sent_back),
            self.has_ended,
            if forwarded.is_empty() { "nothing".to_owned() } else { forwarded.join(" and ") }
        )
    }
}

/// A request or an answer as it came.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// Of a request: the number of the connection that it came on.
    pub connection: usize,
    /// The head, its empty line included.
    pub head: Vec<u8>,
    /// Its first line.
    pub line: String,
    /// Of an answer.
    pub status: u16,
    /// Fields in order: names in lower case, a char for each byte of the value.
    pub fields: Vec<(String, String)>,
    /// The content as it was framed.
    pub raw_body: Vec<u8>,
    /// The content.
    pub body: Vec<u8>,
    /// The trailer section as it came.
    pub trailers: String,
    /// Whether all of it came.
    pub is_complete: bool,
}

impl Message {
    /// Every value of a field.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let of_name = self.fields.iter().filter(|(it, _)| it == name);
        of_name.map(|(_, value)| value.as_str()).collect()
    }

    /// The first value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    /// The target of a request.
    pub fn target(&self) -> &str {
        let (_, rest) = self.line.split_once(' ').unwrap_or_default();
        rest.rsplit_once(' ').map_or(rest, |(target, _)| target)
    }

    /// One framing, if any, and it is a clean one.
    pub fn is_framed_once(&self) -> bool {
        match (self.all("content-length").as_slice(), self.all("transfer-encoding").as_slice()) {
            ([], []) => true,
            ([], [coding]) => coding.eq_ignore_ascii_case("chunked"),
            ([length], []) => !length.is_empty() && length.bytes().all(|it| it.is_ascii_digit()),
            _ => false,
        }
    }

    fn of_head(head: &[u8]) -> Self {
        let mut message = Message { head: head.to_vec(), ..Message::default() };
        let text: String = head.iter().map(|byte| char::from(*byte)).collect();
        let mut lines = text.split("\r\n");
        message.line = lines.next().unwrap_or_default().to_owned();
        message.status = message.line.split(' ').nth(1).and_then(|it| it.parse().ok()).unwrap_or(0);
        for line in lines.filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            message
                .fields
                .push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()));
        }
        message
    }

    /// Takes the content off the beginning of `bytes`; false if there is more to come.
    fn take_body(&mut self, bytes: &[u8], framing: Framing, has_ended: bool) -> Option<usize> {
        match framing {
            Framing::None => self.is_complete = true,
            Framing::Length(length) => {
                let have = bytes.len().min(length);
                (self.raw_body, self.is_complete) = (bytes[..have].to_vec(), have == length);
                self.body.clone_from(&self.raw_body);
            }
            Framing::Chunked => {
                let taken = self.take_chunks(bytes);
                self.raw_body = bytes[..taken].to_vec();
            }
            Framing::UntilEnd => {
                (self.raw_body, self.is_complete) = (bytes.to_vec(), has_ended);
                self.body.clone_from(&self.raw_body);
            }
        }
        self.is_complete.then_some(self.raw_body.len())
    }

    fn take_chunks(&mut self, bytes: &[u8]) -> usize {
        self.body.clear();
        let mut at = 0;
        loop {
            let Some(end) = find(&bytes[at..], b"\r\n") else { return bytes.len() };
            let line = String::from_utf8_lossy(&bytes[at..at + end]).into_owned();
            let size = line.split([';', ' ']).next().unwrap_or_default();
            let Ok(size) = usize::from_str_radix(size, 16) else { return bytes.len() };
            at += end + 2;
            if size == 0 {
                break;
            }
            if bytes.len() < at + size + 2 {
                self.body
                    .extend_from_slice(&bytes[at.min(bytes.len())..bytes.len().min(at + size)]);
                return bytes.len();
            }
            self.body.extend_from_slice(&bytes[at..at + size]);
            at += size + 2;
        }
        let end = if bytes[at..].starts_with(b"\r\n") {
            Some(0)
        } else {
            find(&bytes[at..], b"\r\n\r\n").map(|end| end + 2)
        };
        let Some(end) = end else { return bytes.len() };
        self.trailers = String::from_utf8_lossy(&bytes[at..at + end]).into_owned();
        self.is_complete = true;
        at + end + 2
    }
}

#[derive(Clone, Copy)]
enum Framing {
    None,
    Length(usize),
    Chunked,
    UntilEnd,
}

impl Framing {
    fn of(message: &Message, or_else: Framing) -> Self {
        if message.field("transfer-encoding").is_some() {
            Framing::Chunked
        } else if let Some(length) = message.field("content-length") {
            Framing::Length(length.parse().unwrap_or(0))
        } else {
            or_else
        }
    }
}

/// Where a piece of bytes begins.
pub fn find(bytes: &[u8], piece: &[u8]) -> Option<usize> {
    bytes.windows(piece.len()).position(|it| it == piece)
}

/// A client's connection.
pub struct Wire {
    /// The socket.
    pub stream: TcpStream,
    /// Everything that came.
    pub raw: Vec<u8>,
    /// Whether the other side closed or reset.
    pub has_ended: bool,
}

impl Wire {
    /// Connects.
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_write_timeout(Some(WAIT)).unwrap();
        Wire { stream, raw: Vec::new(), has_ended: false }
    }

    /// Sends bytes as they are; whoever has refused may be gone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.stream.write_all(bytes.as_ref()).ok();
        self
    }

    /// Says that nothing more comes.
    pub fn finish(&mut self) -> &mut Self {
        self.stream.shutdown(std::net::Shutdown::Write).ok();
        self
    }

    /// Reads until this is true, the end, or the time is over. Says whether it is true.
    pub fn wait(&mut self, within: Duration, is_enough: impl Fn(&[u8]) -> bool) -> bool {
        let deadline = Instant::now() + within;
        let mut buffer = vec![0; 1 << 16];
        while !is_enough(&self.raw) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.has_ended {
                return false;
            }
            self.stream.set_read_timeout(Some(left)).unwrap();
            match self.stream.read(&mut buffer) {
                Ok(0) => self.has_ended = true,
                Ok(count) => self.raw.extend_from_slice(&buffer[..count]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => self.has_ended = true,
            }
        }
        true
    }

    /// Reads until there are answers to all of these.
    pub fn until(&mut self, methods: &[&str]) -> &mut Self {
        self.wait(WAIT, |raw| {
            let (answers, _, _) = answers_in(raw, methods, false);
            answers.len() >= methods.len() && answers.iter().all(|answer| answer.is_complete)
        });
        self
    }

    /// Reads until the other side closes.
    pub fn until_end(&mut self) -> &mut Self {
        self.wait(WAIT, |_| false);
        self
    }

    /// The answers so far, the interim ones, and what is behind them.
    pub fn answers(&self, methods: &[&str]) -> (Vec<Message>, Vec<Message>, Vec<u8>) {
        answers_in(&self.raw, methods, self.has_ended)
    }
}

fn answers_in(
    raw: &[u8],
    methods: &[&str],
    has_ended: bool,
) -> (Vec<Message>, Vec<Message>, Vec<u8>) {
    let (mut answers, mut interims, mut at) = (Vec::new(), Vec::new(), 0);
    while answers.len() < methods.len() {
        let Some(end) = find(&raw[at..], b"\r\n\r\n").map(|end| at + end + 4) else { break };
        let mut answer = Message::of_head(&raw[at..end]);
        at = end;
        if (100..200).contains(&answer.status) && answer.status != 101 {
            interims.push(answer);
            continue;
        }
        let has_none = methods[answers.len()] == "HEAD" || matches!(answer.status, 101 | 204 | 304);
        let framing =
            if has_none { Framing::None } else { Framing::of(&answer, Framing::UntilEnd) };
        let taken = answer.take_body(&raw[at..], framing, has_ended);
        answers.push(answer);
        let Some(taken) = taken else {
            at = raw.len();
            break;
        };
        at += taken;
    }
    (answers, interims, raw[at..].to_vec())
}

/// What becomes of the origin's connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It waits for the next request.
    Keep,
    /// It closes.
    Close,
    /// It resets.
    Reset,
}

type Script = Arc<dyn Fn(&mut OriginSide) -> Then + Send + Sync>;

/// What is behind the proxy: it answers by a script and records every byte.
pub struct Origin {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    script: Mutex<Script>,
    log: Mutex<Vec<Arc<Mutex<Message>>>>,
    connections: AtomicUsize,
    closed: AtomicUsize,
    stop: AtomicBool,
}

impl Origin {
    fn spawn() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let script: Script = Arc::new(|side: &mut OriginSide| side.read_body_and_answer(OK));
        let shared = Arc::new(Shared {
            script: Mutex::new(script),
            log: Mutex::new(Vec::new()),
            connections: AtomicUsize::new(0),
            closed: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let acceptor = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if acceptor.stop.load(Ordering::Acquire) {
                    return;
                }
                stream.set_nodelay(true).unwrap();
                let shared = Arc::clone(&acceptor);
                let number = shared.connections.fetch_add(1, Ordering::AcqRel);
                std::thread::spawn(move || OriginSide::new(stream, number, shared).serve());
            }
        });
        Origin { address, shared }
    }

    /// Does this with each request whose head has come.
    pub fn script(&self, script: impl Fn(&mut OriginSide) -> Then + Send + Sync + 'static) {
        *self.shared.script.lock().unwrap() = Arc::new(script);
    }

    /// Reads each request to its end and sends these bytes.
    pub fn answers(&self, bytes: impl AsRef<[u8]>, then: Then) {
        let bytes = bytes.as_ref().to_vec();
        self.script(move |side| {
            side.read_body();
            side.send(&bytes);
            then
        });
    }

    /// What has come so far.
    pub fn forwarded(&self) -> Vec<Message> {
        self.shared.log.lock().unwrap().iter().map(|it| it.lock().unwrap().clone()).collect()
    }

    /// Waits until what has come is this.
    pub fn wait(&self, is_so: impl Fn(&[Message]) -> bool) -> bool {
        let deadline = Instant::now() + WAIT;
        while !is_so(&self.forwarded()) {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Waits until the origin has closed this many connections.
    pub fn wait_closed(&self, count: usize) -> bool {
        let deadline = Instant::now() + WAIT;
        while self.shared.closed.load(Ordering::Acquire) < count {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Acquire)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        TcpStream::connect(self.address).ok();
    }
}

/// The answer where a case says nothing of it.
pub const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// One connection of the origin.
pub struct OriginSide {
    /// The socket.
    pub stream: TcpStream,
    /// Whether the proxy closed.
    pub has_ended: bool,
    buffer: Vec<u8>,
    number: usize,
    shared: Arc<Shared>,
    now: Arc<Mutex<Message>>,
}

impl OriginSide {
    fn new(stream: TcpStream, number: usize, shared: Arc<Shared>) -> Self {
        let (buffer, now) = (Vec::new(), Arc::default());
        OriginSide { stream, has_ended: false, buffer, number, shared, now }
    }

    fn serve(mut self) {
        loop {
            let head_end = loop {
                if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                    break end + 4;
                }
                if self.fill(None) == 0 {
                    return;
                }
            };
            let mut message = Message::of_head(&self.buffer[..head_end]);
            self.buffer.drain(..head_end);
            message.connection = self.number;
            self.now = Arc::new(Mutex::new(message));
            self.shared.log.lock().unwrap().push(Arc::clone(&self.now));
            let script = Arc::clone(&self.shared.script.lock().unwrap());
            match script(&mut self) {
                Then::Keep => {}
                Then::Close => {
                    // What is unread would turn the close into a reset.
                    self.stream.shutdown(std::net::Shutdown::Write).ok();
                    while self.fill(Some(QUIET)) > 0 {}
                    self.shared.closed.fetch_add(1, Ordering::AcqRel);
                    return;
                }
                Then::Reset => {
                    let socket = socket2::SockRef::from(&self.stream);
                    socket.set_linger(Some(Duration::ZERO)).unwrap();
                    let shared = Arc::clone(&self.shared);
                    drop(self);
                    shared.closed.fetch_add(1, Ordering::AcqRel);
                    return;
                }
            }
        }
    }

    fn fill(&mut self, within: Option<Duration>) -> usize {
        self.stream.set_read_timeout(within).unwrap();
        let mut buffer = vec![0; 1 << 16];
        match self.stream.read(&mut buffer) {
            Ok(count) => {
                self.has_ended |= count == 0;
                self.buffer.extend_from_slice(&buffer[..count]);
                count
            }
            Err(error) => {
                let is_late = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                self.has_ended |= !is_late;
                0
            }
        }
    }

    /// The request.
    pub fn request(&self) -> Message {
        self.now.lock().unwrap().clone()
    }

    /// Reads the request's content to its end, or to that of the connection.
    pub fn read_body(&mut self) -> bool {
        loop {
            let mut message = self.now.lock().unwrap();
            let framing = Framing::of(&message, Framing::None);
            let taken = message.take_body(&self.buffer, framing, false);
            drop(message);
            if let Some(taken) = taken {
                self.buffer.drain(..taken);
                return true;
            }
            if self.fill(Some(WAIT * 2)) == 0 {
                return false;
            }
        }
    }

    /// Reads the request and sends an answer, if there was a whole one.
    pub fn read_body_and_answer(&mut self, bytes: impl AsRef<[u8]>) -> Then {
        if self.read_body() && self.send(bytes) { Then::Keep } else { Then::Close }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Bytes behind the head, as they come: at least so many, or what comes within the time.
    pub fn read_raw(&mut self, count: usize, within: Duration) -> Vec<u8> {
        let deadline = Instant::now() + within;
        while self.buffer.len() < count && !self.has_ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.fill(Some(left));
        }
        let count = self.buffer.len().min(count);
        self.buffer.drain(..count).collect()
    }
}
