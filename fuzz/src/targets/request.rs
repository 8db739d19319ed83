//! Whole requests through a running tollgate, to a backend that notes every byte that it gets.
//!
//! Both run in this process, once for all inputs. What an input sends is in `recipe.rs`, what the
//! backend reads is judged by `strict.rs`.

#[path = "recipe.rs"]
mod recipe;
#[path = "strict.rs"]
mod strict;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, mpsc};
use std::time::Duration;

use http::{HeaderMap, Method};
use tokio::signal::unix::{SignalKind, signal};

use tollgate::commands::logging::Recorders;
use tollgate::commands::serve::DataPath;
use tollgate::commands::wiring::Wired;
use tollgate::config::compile_upstream::UpstreamNeed;
use tollgate::config::load::{LoadRequest, Overrides, load};
use tollgate::health::tasks::watched_root;
use tollgate::limiter::quota::Period;
use tollgate::policy::facts::RequestFacts;
use tollgate::proxy::gate::Gate;
use tollgate::proxy::listener::{Bound, bind};

use recipe::Sent;
use strict::{Next, Seen};

/// How long nothing may come from tollgate before a request is taken for one that it waits for.
const QUIET: Duration = Duration::from_millis(10);
/// The same for a request that has to be answered, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// So many requests of a day that no run makes them.
const POLICY: &str = "default_tier: all\ntiers: {all: {per_day: 1000000000}}\n";
/// After so many inputs an ordinary request has to be answered.
const PROOF_EVERY: u64 = 64;

/// What all inputs are sent to.
static RUNNING: LazyLock<Running> = LazyLock::new(Running::start);

struct Running {
    tollgate: SocketAddr,
    gate: Arc<Gate>,
    noted: Arc<Mutex<Noted>>,
    /// One input at a time.
    turn: Mutex<u64>,
    /// The day, by its number, of which the backend has counted.
    day: Mutex<u64>,
}

/// What the backend has seen since the last look at it, and since the start.
#[derive(Default)]
struct Noted {
    seen: Vec<Seen>,
    faults: Vec<String>,
    count: u64,
}

/// The first byte says how the rest is read: as bytes of a connection (`r`), as what to make
/// requests of HTTP/1.1 of, or frames of HTTP/2 (`h`).
///
/// Whatever is sent, what reaches the backend is requests of which each has one framing that can be
/// read in one way, none has a field that belongs to one connection, and no more of them are there
/// than were counted.
pub fn request(data: &[u8]) {
    let running = &*RUNNING;
    let mut turn = running.turn.lock().unwrap_or_else(PoisonError::into_inner);
    *turn += 1;
    if turn.is_multiple_of(PROOF_EVERY) {
        let arrived = running.outcome(&recipe::ordinary(), PATIENCE);
        // Of the input before there may have been some left on their way.
        assert!(!arrived.is_empty(), "an ordinary request does not arrive");
    }
    let Some(sent) = recipe::sent(data, *turn) else { return };
    for seen in running.outcome(&sent, QUIET) {
        sent.check(&seen);
    }
}

impl Running {
    fn start() -> Self {
        let noted = Arc::new(Mutex::new(Noted::default()));
        let backend = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let upstream = backend.local_addr().expect("its address");
        let notes = Arc::clone(&noted);
        std::thread::spawn(move || {
            for stream in backend.incoming().flatten() {
                let notes = Arc::clone(&notes);
                std::thread::spawn(move || serve(stream, &notes));
            }
        });
        let tiers = written(POLICY);
        let loaded = load(&LoadRequest {
            config: None,
            tiers: Some(&tiers),
            overrides: Overrides {
                upstream: Some(format!("http://{upstream}")),
                ..Overrides::default()
            },
            upstream: UpstreamNeed::Required,
            env: &|_| None,
        });
        std::fs::remove_file(&tiers).expect("it was just written");
        let loaded = loaded.expect("a valid policy");
        let wired = Wired::new(loaded, 1, None, Recorders::default(), None).expect("no TLS");
        let gate = Arc::clone(&wired.gate);
        let socket = bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
        let tollgate = socket.local_addr().expect("its address");
        let (started, has_started) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build_local(Default::default())
                .expect("a runtime");
            let loops = &wired.gate.loops;
            loops.sit(loops.control(), runtime.metrics());
            runtime.block_on(watched_root(async {
                // In a test and in the binary it is ignored from the start. Here it would end the
                // fuzzer without a word once a client is gone to whom something is written.
                let _broken_pipes = signal(SignalKind::pipe()).expect("a handler");
                let listeners = vec![Bound { socket, tls: None, is_shared: false }];
                let started_path = DataPath::start(&wired.gate, listeners, 1, |_| {}).await;
                let data_path = started_path.expect("threads");
                started.send(()).expect("it is waited for");
                data_path.ended().await;
            }));
        });
        has_started.recv().expect("it starts");
        let running = Running { tollgate, gate, noted, turn: Mutex::new(0), day: Mutex::new(0) };
        let (day, _) = running.counted();
        *running.day.lock().unwrap_or_else(PoisonError::into_inner) = day;
        running
    }

    /// What reached the backend of what was sent.
    fn outcome(&self, sent: &Sent, quiet: Duration) -> Vec<Seen> {
        self.exchange(sent, quiet);
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let (seen, faults) = (std::mem::take(&mut noted.seen), std::mem::take(&mut noted.faults));
        let count = noted.count;
        drop(noted);
        let shown = sent.bytes.escape_ascii();
        assert!(faults.is_empty(), "{faults:#?} of {shown}");
        // Counted is what is let pass, before it goes on its way. The other way round, a request that
        // could not be forwarded may have been counted.
        let (day, counted) = self.counted();
        if std::mem::replace(&mut *self.day.lock().unwrap_or_else(PoisonError::into_inner), day)
            != day
        {
            // A new day begins with nothing.
            self.noted.lock().unwrap_or_else(PoisonError::into_inner).count = counted;
            return seen;
        }
        assert!(count <= counted, "{count} requests arrived, {counted} were counted: {shown}");
        seen
    }

    /// Sends it, and waits until tollgate has answered the last of it, has ended the connection, or
    /// waits for more.
    fn exchange(&self, sent: &Sent, quiet: Duration) {
        let mut stream = TcpStream::connect(self.tollgate).expect("it listens");
        let socket = socket2::SockRef::from(&stream);
        // What is not wanted any more ends at once, and takes no port with it.
        socket.set_linger(Some(Duration::ZERO)).expect("set");
        stream.set_nodelay(true).expect("set");
        stream.set_read_timeout(Some(quiet)).expect("set");
        stream.set_write_timeout(Some(quiet)).expect("set");
        let mut answer = Vec::new();
        for piece in sent.pieces() {
            if stream.write_all(piece).is_err() {
                break;
            }
        }
        let mut buffer = [0; 16 << 10];
        while !sent.is_answered(&answer) {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => answer.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    }

    /// The number of the day, and requests of this machine that its limit was charged for.
    fn counted(&self) -> (u64, u64) {
        let headers = HeaderMap::new();
        let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let facts = RequestFacts::of(&Method::GET, "/", None, &headers, peer);
        let policy = &self.gate.active.load().policy;
        let plan = policy.plan(&facts, &policy.anonymous(&facts)).expect("a good path");
        let now = self.gate.clock.now();
        let decision = self.gate.memory.peek(&plan, now);
        let of_day = decision.statuses().iter().find(|it| it.period == Period::Day);
        let of_day = of_day.expect("the policy's only limit");
        (now.as_micros() / 86_400_000_000, u64::from(of_day.limit - of_day.remaining))
    }
}

/// A file of its own for this process.
fn written(text: &str) -> PathBuf {
    let name = format!("tollgate-fuzz-{}.yaml", std::process::id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, text).expect("there is room");
    path
}

/// Reads requests off one connection of tollgate's, and answers each once it is whole.
fn serve(mut stream: TcpStream, notes: &Mutex<Noted>) {
    stream.set_nodelay(true).expect("set");
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 << 10];
    // Whether the request that stands at the beginning was noted as one already.
    let mut is_noted = false;
    let note = |change: &dyn Fn(&mut Noted)| {
        change(&mut notes.lock().unwrap_or_else(PoisonError::into_inner));
    };
    loop {
        match strict::next(&bytes) {
            Next::Head if bytes.is_empty() => {}
            Next::Head => {}
            Next::Body if is_noted => {}
            // Of a request whose head is there, the backend may have acted on it.
            Next::Body => {
                note(&|it| it.count += 1);
                is_noted = true;
            }
            Next::Whole(seen, length) => {
                note(&|it| {
                    it.count += u64::from(!is_noted);
                    it.seen.push(seen.clone());
                });
                is_noted = false;
                bytes.drain(..length);
                let body = if seen.method == "HEAD" { "" } else { "ok" };
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{body}");
                if stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
                continue;
            }
            Next::Fault(fault) => {
                let shown = bytes.escape_ascii().to_string();
                note(&|it| it.faults.push(format!("{fault}: {shown}")));
                return;
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}
