//! Bodies stream: what has arrived goes out at once, whoever is slow is waited for, and memory stays
//! where it was, over every protocol and both ways.
//!
//! `STREAM_MIB` says how much goes each way; `tests/long.sh streaming` takes 1 GiB and prints what
//! came of it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::disallowed_methods, reason = "tests wait by the real time, and end")]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/http2.rs"]
mod http2;
#[path = "support/http2_backend.rs"]
mod http2_backend;
#[path = "support/load.rs"]
mod load;
mod support;

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http2::{
    ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, block, frame,
};
use http2_backend::{Exchange, Http2Backend};
use load::{Duplex, Target, read_frame};
use support::{Backend, BackendConnection, GENEROUS, PATIENCE, Start, Tollgate, wait_until};

const MIB: usize = 1 << 20;
/// What tollgate may grow by, however much streams through it.
const GROWTH_MAX: u64 = 12 << 20;

/// What goes each way, in bytes.
fn amount() -> usize {
    std::env::var("STREAM_MIB").map_or(64, |it| it.parse().unwrap()) * MIB
}

/// The ways in which a client can come.
const WAYS: [(&str, bool, bool); 4] = [
    ("HTTP/1.1", false, false),
    ("HTTP/2", true, false),
    ("HTTP/1.1 by TLS", false, true),
    ("HTTP/2 by TLS", true, true),
];

fn start(backend: &Backend, is_http2: bool, is_tls: bool) -> (Tollgate, Target) {
    if !is_tls {
        return load::plain(backend.address);
    }
    let certificates = load::two_certificates();
    let speaks: &[u8] = if is_http2 { b"h2" } else { b"http/1.1" };
    load::with_tls(backend.address, certificates.path(), speaks)
}

fn in_front_of_http2(backend: &Http2Backend) -> (Tollgate, Target) {
    let upstream = backend.h2c();
    let start = Start::default().arguments(&["--upstream", &upstream]).tiers(GENEROUS);
    let tollgate = start.run();
    let target = Target { address: tollgate.data, tls: None };
    (tollgate, target)
}

// -------------------------------------------------------------------------------------- the client

/// One request whose content and whose answer's content are sent and read piece by piece.
enum Transfer {
    Http1(BufReader<Box<dyn Duplex>>, Framing),
    Http2(Box<Http2>),
}

/// How the rest of an answer is framed.
enum Framing {
    Unknown,
    Length(usize),
    Chunked,
}

struct Http2 {
    stream: BufReader<Box<dyn Duplex>>,
    /// What may be sent.
    windows: [i64; 2],
    /// What was read and not given back yet.
    taken: usize,
    pieces: VecDeque<Vec<u8>>,
    has_ended: bool,
}

impl Transfer {
    fn begin(target: &Target, is_http2: bool, method: &str, path: &str, length: usize) -> Self {
        let shown = Mutex::default();
        let stream = target.greet(target.connect().unwrap(), &shown).unwrap();
        let mut stream = BufReader::with_capacity(1 << 16, stream);
        if is_http2 {
            let mut bytes = PREFACE.to_vec();
            // A megabyte for the stream and more for the connection, as browsers have.
            bytes.extend(frame(SETTINGS, 0, 0, &[0, 4, 0, 0x10, 0, 0]));
            bytes.extend(frame(WINDOW_UPDATE, 0, 0, &(16_u32 << 20).to_be_bytes()));
            bytes.extend(request_head(1, method, path, length));
            stream.get_mut().write_all(&bytes).unwrap();
            return Transfer::Http2(Box::new(Http2 {
                stream,
                windows: [65_535; 2],
                taken: 0,
                pieces: VecDeque::new(),
                has_ended: false,
            }));
        }
        let has_content = method != "GET";
        let length =
            if has_content { format!("Content-Length: {length}\r\n") } else { String::new() };
        let head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n{length}\r\n");
        stream.get_mut().write_all(head.as_bytes()).unwrap();
        Transfer::Http1(stream, Framing::Unknown)
    }

    fn send(&mut self, bytes: &[u8], is_last: bool) {
        match self {
            Transfer::Http1(stream, _) => stream.get_mut().write_all(bytes).unwrap(),
            Transfer::Http2(http2) => http2.send(bytes, is_last),
        }
    }

    /// The next piece of the answer, `None` at its end.
    fn piece(&mut self) -> Option<Vec<u8>> {
        let (stream, framing) = match self {
            Transfer::Http1(stream, framing) => (stream, framing),
            Transfer::Http2(http2) => return http2.piece(),
        };
        if matches!(framing, Framing::Unknown) {
            *framing = read_head(stream);
        }
        match framing {
            Framing::Length(0) => None,
            Framing::Length(left) => {
                let mut piece = stream.fill_buf().unwrap().to_vec();
                assert!(!piece.is_empty(), "{left} bytes are missing");
                piece.truncate(*left);
                stream.consume(piece.len());
                *left -= piece.len();
                Some(piece)
            }
            _ => {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                let size = usize::from_str_radix(line.trim(), 16).unwrap();
                let mut piece = vec![0; size + 2];
                stream.read_exact(&mut piece).unwrap();
                piece.truncate(size);
                (size > 0).then_some(piece)
            }
        }
    }
}

fn read_head(stream: &mut impl BufRead) -> Framing {
    let mut framing = Framing::Unknown;
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 200 "), "{line}");
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line).unwrap();
        let lower = line.to_ascii_lowercase();
        if let Some(length) = lower.strip_prefix("content-length:") {
            framing = Framing::Length(length.trim().parse().unwrap());
        } else if lower.starts_with("transfer-encoding:") {
            framing = Framing::Chunked;
        }
    }
    framing
}

fn request_head(stream: u32, method: &str, path: &str, length: usize) -> Vec<u8> {
    let length = length.to_string();
    let mut fields =
        vec![(":method", method), (":scheme", "http"), (":authority", "test"), (":path", path)];
    let mut flags = END_HEADERS;
    if method == "GET" {
        flags |= END_STREAM;
    } else {
        fields.push(("content-length", &length));
    }
    frame(HEADERS, flags, stream, &block(&fields))
}

impl Http2 {
    fn send(&mut self, mut bytes: &[u8], is_last: bool) {
        while !bytes.is_empty() {
            let room = usize::try_from(self.windows[0].min(self.windows[1])).unwrap_or(0);
            let count = bytes.len().min(room).min(16_384);
            if count == 0 {
                self.take_frame();
                continue;
            }
            let (now, later) = bytes.split_at(count);
            bytes = later;
            let flags = if is_last && bytes.is_empty() { END_STREAM } else { 0 };
            self.stream.get_mut().write_all(&frame(DATA, flags, 1, now)).unwrap();
            self.windows = self.windows.map(|it| it - i64::try_from(count).unwrap());
        }
    }

    fn piece(&mut self) -> Option<Vec<u8>> {
        while self.pieces.is_empty() && !self.has_ended {
            self.take_frame();
        }
        let piece = self.pieces.pop_front()?;
        self.taken += piece.len();
        if self.taken >= MIB / 4 {
            let taken = u32::try_from(self.taken).unwrap().to_be_bytes();
            let update = [0, 1].map(|stream| frame(WINDOW_UPDATE, 0, stream, &taken));
            self.stream.get_mut().write_all(&update.concat()).unwrap();
            self.taken = 0;
        }
        Some(piece)
    }

    fn take_frame(&mut self) {
        let taken = read_frame(&mut self.stream).unwrap();
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes[..4].try_into().unwrap()) << 1 >> 1;
        let mut reply = Vec::new();
        match taken.kind {
            SETTINGS if taken.flags & ACK == 0 => {
                for setting in taken.payload.chunks(6).filter(|it| it[..2] == [0, 4]) {
                    self.windows[1] += i64::from(number(&setting[2..])) - 65_535;
                }
                reply = frame(SETTINGS, ACK, 0, b"");
            }
            PING if taken.flags & ACK == 0 => reply = frame(PING, ACK, 0, &taken.payload),
            WINDOW_UPDATE => {
                let window = usize::from(taken.stream != 0);
                self.windows[window] += i64::from(number(&taken.payload));
            }
            HEADERS => assert_eq!(taken.payload[0], 0x88, "`:status: 200`"),
            DATA if !taken.payload.is_empty() => self.pieces.push_back(taken.payload),
            RST_STREAM | GOAWAY => panic!("{taken:?}"),
            _ => {}
        }
        if matches!(taken.kind, HEADERS | DATA) && taken.flags & END_STREAM != 0 {
            self.has_ended = true;
        }
        self.stream.get_mut().write_all(&reply).unwrap();
    }
}

// --------------------------------------------------------------------------------- flat memory

/// Answers `/down/COUNT` with so many bytes, and `/up` once its content is there.
fn bulk(mut connection: BackendConnection) {
    while let Some(seen) = connection.head() {
        if let Some(count) = seen.target().strip_prefix("/down/") {
            let count: usize = count.parse().unwrap();
            connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {count}\r\n\r\n"));
            let chunk = vec![b'x'; 1 << 16];
            let mut left = count;
            while left > 0 && connection.send(&chunk[..left.min(1 << 16)]) {
                left -= left.min(1 << 16);
            }
        } else {
            let mut left: usize = seen.field("content-length").unwrap().parse().unwrap();
            while left > 0 {
                let count = connection.read_some(left.min(1 << 16)).len();
                if count == 0 {
                    return;
                }
                left -= count;
            }
            connection.ok("got");
        }
    }
}

fn download(target: &Target, is_http2: bool, count: usize) {
    let path = format!("/down/{count}");
    let mut transfer = Transfer::begin(target, is_http2, "GET", &path, 0);
    let mut received = 0;
    while let Some(piece) = transfer.piece() {
        received += piece.len();
    }
    assert_eq!(received, count);
}

fn upload(target: &Target, is_http2: bool, count: usize) {
    let mut transfer = Transfer::begin(target, is_http2, "POST", "/up", count);
    let chunk = vec![b'x'; 1 << 16];
    for index in 1..=count >> 16 {
        transfer.send(&chunk, index == count >> 16);
    }
    assert_eq!(transfer.piece().unwrap(), b"got");
}

/// The same over HTTP/2.
async fn bulk_http2(mut exchange: Exchange) {
    let Some(count) = exchange.head.uri.path().strip_prefix("/down/") else {
        while let Some(Ok(piece)) = exchange.body.data().await {
            exchange.body.flow_control().release_capacity(piece.len()).unwrap();
        }
        return exchange.ok("got");
    };
    let count: usize = count.parse().unwrap();
    let answer = http::Response::builder().header("content-length", count).body(()).unwrap();
    let mut sending = exchange.respond.send_response(answer, false).unwrap();
    let chunk = Bytes::from(vec![b'x'; 1 << 16]);
    let mut left = count;
    while left > 0 {
        sending.reserve_capacity(left.min(chunk.len()));
        let room = std::future::poll_fn(|cx| sending.poll_capacity(cx)).await;
        let Some(Ok(room)) = room else { return };
        left -= room;
        sending.send_data(chunk.slice(..room), left == 0).unwrap();
    }
}

fn measure(way: &str, is_http2: bool, start: impl Fn() -> (Tollgate, Target)) {
    for (direction, transfer) in [("down", download as fn(&Target, bool, usize)), ("up", upload)] {
        let (tollgate, target) = start();
        let before = tollgate.peak();
        let began = Instant::now();
        transfer(&target, is_http2, amount());
        let took = began.elapsed().as_secs_f64();
        let peak = tollgate.peak();
        println!(
            "{way}, {direction}: {} MiB, {:.0} MB/s, peak {:.1} MiB, {:.1} MiB at the start",
            amount() / MIB,
            amount() as f64 / took / 1e6,
            peak as f64 / MIB as f64,
            before as f64 / MIB as f64,
        );
        assert!(peak - before < GROWTH_MAX, "{way}, {direction}: {before} to {peak} bytes");
    }
}

#[test]
fn much_streams_through_little_memory() {
    let backend = Backend::spawn(bulk);
    for (way, is_http2, is_tls) in WAYS {
        measure(way, is_http2, || start(&backend, is_http2, is_tls));
    }
    let backend = Http2Backend::spawn(bulk_http2);
    measure("HTTP/1.1 to h2c", false, || in_front_of_http2(&backend));
    measure("HTTP/2 to h2c", true, || in_front_of_http2(&backend));
}

// ------------------------------------------------------------------------------------ backpressure

/// Counts what goes through it, and tells once nothing has for a while.
fn wait_until_stuck(moved: &AtomicUsize) -> usize {
    let deadline = Instant::now() + PATIENCE;
    let (mut seen, mut since) = (0, Instant::now());
    while since.elapsed() < Duration::from_millis(500) {
        assert!(Instant::now() < deadline, "nothing holds it back");
        let now = moved.load(Relaxed);
        if now != seen || now == 0 {
            (seen, since) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    seen
}

/// Twenty answers that nobody reads, on one connection whose windows are shut.
#[test]
fn a_client_that_reads_nothing_holds_little() {
    let moved = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&moved);
    let backend = Backend::spawn(move |mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        let chunk = vec![b'x'; 1 << 16];
        while connection.send(&chunk) {
            counted.fetch_add(chunk.len(), Relaxed);
        }
    });
    let (tollgate, target) = load::plain(backend.address);
    assert_eq!(tollgate.get("/%00").status, 400, "and it is warm");
    let before = tollgate.resident();
    let mut stream = target.connect().unwrap();
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    for index in 0..20 {
        bytes.extend(request_head(2 * index + 1, "GET", "/", 0));
    }
    stream.write_all(&bytes).unwrap();
    wait_until("all are asked for", || backend.seen().len() == 20);
    let sent = wait_until_stuck(&moved);
    let grown = tollgate.peak().saturating_sub(before);
    println!("20 streams at zero window: {sent} bytes sent, grown by {} KiB", grown >> 10);
    assert!(sent < 1_000_000_000);
    assert!(grown < 64 << 20, "grown by {grown} bytes");
}

/// The same of an upstream that speaks HTTP/2.
#[test]
fn a_client_that_reads_nothing_holds_little_of_http_2() {
    let moved = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&moved);
    let backend = Http2Backend::spawn(move |mut exchange| {
        let counted = Arc::clone(&counted);
        async move {
            let answer = http::Response::new(());
            let mut sending = exchange.respond.send_response(answer, false).unwrap();
            loop {
                sending.reserve_capacity(1 << 14);
                let room = std::future::poll_fn(|cx| sending.poll_capacity(cx)).await;
                let Some(Ok(room)) = room else { return };
                counted.fetch_add(room, Relaxed);
                sending.send_data(vec![b'x'; room].into(), false).unwrap();
            }
        }
    });
    let (tollgate, target) = in_front_of_http2(&backend);
    assert_eq!(tollgate.get("/%00").status, 400, "and it is warm");
    let before = tollgate.resident();
    let mut stream = target.connect().unwrap();
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    for index in 0..20 {
        bytes.extend(request_head(2 * index + 1, "GET", "/", 0));
    }
    stream.write_all(&bytes).unwrap();
    wait_until("all are asked for", || backend.requests() == 20);
    let sent = wait_until_stuck(&moved);
    let grown = tollgate.peak().saturating_sub(before);
    println!("20 streams at zero window of h2c: {sent} sent, grown by {} KiB", grown >> 10);
    assert!(grown < 64 << 20, "grown by {grown} bytes");
}

/// Twenty uploads that nobody reads, on one connection.
#[test]
fn an_origin_that_reads_nothing_is_waited_for() {
    let (leave, may_leave) = mpsc::channel::<()>();
    let may_leave = Arc::new(Mutex::new(may_leave));
    let heads = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&heads);
    let backend = Backend::spawn(move |mut connection| {
        connection.head();
        counted.fetch_add(1, Relaxed);
        // Until the test is over.
        let _ = may_leave.lock().unwrap().recv();
    });
    let (tollgate, target) = load::plain(backend.address);
    assert_eq!(tollgate.get("/%00").status, 400, "and it is warm");
    let before = tollgate.resident();
    let moved = Arc::new(AtomicUsize::new(0));
    // Each stream takes what its window lets it, and the connection's is for all of them.
    let mut stream = target.connect().unwrap();
    let mut bytes = [PREFACE, &frame(SETTINGS, 0, 0, b"")].concat();
    for index in 0..20 {
        bytes.extend(request_head(2 * index + 1, "POST", "/", 1_000_000_000));
    }
    stream.write_all(&bytes).unwrap();
    let counted = Arc::clone(&moved);
    std::thread::spawn(move || {
        let (mut all, mut each) = (65_535_i64, [65_535_i64; 20]);
        let chunk = [b'x'; 16_384];
        loop {
            for (index, window) in each.iter_mut().enumerate() {
                while all >= 16_384 && *window >= 16_384 {
                    let id = 2 * u32::try_from(index).unwrap() + 1;
                    if stream.write_all(&frame(DATA, 0, id, &chunk)).is_err() {
                        return;
                    }
                    counted.fetch_add(chunk.len(), Relaxed);
                    (all, *window) = (all - 16_384, *window - 16_384);
                }
            }
            let Ok(taken) = read_frame(&mut stream) else { return };
            let number = |bytes: &[u8]| i64::from(u32::from_be_bytes(bytes.try_into().unwrap()));
            match (taken.kind, taken.stream) {
                (WINDOW_UPDATE, 0) => all += number(&taken.payload),
                (WINDOW_UPDATE, id) => {
                    each[usize::try_from(id / 2).unwrap()] += number(&taken.payload);
                }
                (SETTINGS, _) if taken.flags & ACK == 0 => {
                    for setting in taken.payload.chunks(6).filter(|it| it[..2] == [0, 4]) {
                        each = each.map(|it| it + number(&setting[2..]) - 65_535);
                    }
                    stream.write_all(&frame(SETTINGS, ACK, 0, b"")).unwrap();
                }
                _ => {}
            }
        }
    });
    wait_until("all are there", || heads.load(Relaxed) == 20);
    let sent = wait_until_stuck(&moved);
    let grown = tollgate.peak().saturating_sub(before);
    println!("20 uploads to nobody: {sent} bytes sent, grown by {} KiB", grown >> 10);
    assert!(grown < 64 << 20, "grown by {grown} bytes");
    drop(leave);
}

// ----------------------------------------------------------------------------------------- at once

/// Each event is seen by the client before the next is sent, and each piece of an upload by the
/// backend: whoever held one back would wait for ever.
#[test]
fn what_has_arrived_goes_out_at_once() {
    let (seen, is_seen) = mpsc::channel::<()>();
    let is_seen = Mutex::new(is_seen);
    let (arrived, has_arrived) = mpsc::channel::<()>();
    let arrived = Mutex::new(arrived);
    let backend = Backend::spawn(move |mut connection| {
        while let Some(head) = connection.head() {
            if head.target() == "/up" {
                for _ in 0..EVENTS {
                    let mut piece = Vec::new();
                    while piece.len() < 8 {
                        let more = connection.read_some(8 - piece.len());
                        assert!(!more.is_empty());
                        piece.extend(more);
                    }
                    arrived.lock().unwrap().send(()).unwrap();
                }
                connection.ok("got");
                continue;
            }
            connection.send(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: \
                 chunked\r\n\r\n",
            );
            for _ in 0..EVENTS {
                connection.send("9\r\ndata: a\n\n\r\n");
                is_seen.lock().unwrap().recv_timeout(PATIENCE).expect("the client has seen it");
            }
            connection.send("0\r\n\r\n");
        }
    });
    for (way, is_http2, is_tls) in WAYS {
        let (_tollgate, target) = start(&backend, is_http2, is_tls);
        converse(way, is_http2, &target, || seen.send(()).unwrap(), &has_arrived);
    }
}

/// How many pieces a conversation has each way.
const EVENTS: usize = 20;

/// Takes events and tells of each; sends pieces and waits for each.
fn converse(
    way: &str,
    is_http2: bool,
    target: &Target,
    seen: impl Fn(),
    has_arrived: &mpsc::Receiver<()>,
) {
    let mut events = Transfer::begin(target, is_http2, "GET", "/events", 0);
    for _ in 0..EVENTS {
        assert_eq!(events.piece().unwrap(), b"data: a\n\n", "{way}");
        seen();
    }
    assert!(events.piece().is_none_or(|it| it.is_empty()), "{way}");
    let mut upload = Transfer::begin(target, is_http2, "POST", "/up", 8 * EVENTS);
    for event in 1..=EVENTS {
        upload.send(b"a piece.", event == EVENTS);
        has_arrived.recv_timeout(PATIENCE).expect(way);
    }
    assert_eq!(upload.piece().unwrap(), b"got", "{way}");
}

/// The same with an upstream that speaks HTTP/2.
#[test]
fn what_has_arrived_goes_out_at_once_over_h2c() {
    let seen = Arc::new(tokio::sync::Semaphore::new(0));
    let is_seen = Arc::clone(&seen);
    let (arrived, has_arrived) = mpsc::channel::<()>();
    let backend = Http2Backend::spawn(move |mut exchange| {
        let (is_seen, arrived) = (Arc::clone(&is_seen), arrived.clone());
        async move {
            if exchange.head.uri.path() == "/up" {
                let mut bytes = 0;
                while let Some(Ok(piece)) = exchange.body.data().await {
                    bytes += piece.len();
                    for _ in 0..bytes / 8 {
                        arrived.send(()).unwrap();
                    }
                    bytes %= 8;
                }
                return exchange.ok("got");
            }
            let answer = http::Response::new(());
            let mut sending = exchange.respond.send_response(answer, false).unwrap();
            for _ in 0..EVENTS {
                sending.send_data(Bytes::from_static(b"data: a\n\n"), false).unwrap();
                is_seen.acquire().await.unwrap().forget();
            }
            sending.send_data(Bytes::new(), true).unwrap();
        }
    });
    for is_http2 in [false, true] {
        let (_tollgate, target) = in_front_of_http2(&backend);
        converse("h2c", is_http2, &target, || seen.add_permits(1), &has_arrived);
    }
}
