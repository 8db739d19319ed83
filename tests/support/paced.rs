//! Load at a rate that does not depend on how quickly it is answered, by clients that send nothing a
//! second time: every request, its outcome, and how long after the moment it was due.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::disallowed_methods, reason = "tests wait by the real time, and end")]

use std::io::{BufReader, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::sync::Semaphore;

use super::http2::{self, Polite};
use super::load::{BROKE_OFF, Duplex, Target, UPLOAD, is_own, read_answer, request};
use super::random::Random;
use super::support::PATIENCE;

// ---------------------------------------------------------------------------------------- durations

/// Buckets of a doubling: what is read from them is at most 1.6 % too long.
const PARTS: u64 = 64;
/// Up to 2^32 µs.
const BUCKETS: usize = 27 * PARTS as usize + PARTS as usize;

/// How often what took how long; any thread may add to it.
pub struct Histogram(Vec<AtomicU64>);

impl Default for Histogram {
    fn default() -> Self {
        Histogram((0..BUCKETS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Histogram {
    /// Counts one.
    pub fn add(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let index = if micros < PARTS {
            micros
        } else {
            let shift = u64::from(micros.ilog2()) - u64::from(PARTS.ilog2());
            (shift + 1) * PARTS + ((micros >> shift) - PARTS)
        };
        self.0[usize::try_from(index).unwrap().min(BUCKETS - 1)].fetch_add(1, Relaxed);
    }

    /// Moves everything over to another one.
    pub fn drain_into(&self, other: &Histogram) {
        for (from, to) in self.0.iter().zip(&other.0) {
            to.fetch_add(from.swap(0, Relaxed), Relaxed);
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|it| it.load(Relaxed)).sum()
    }

    /// What this part of all, 0 to 1, did not exceed, in milliseconds; 0 of none.
    pub fn percentile(&self, part: f64) -> f64 {
        let wanted = (self.count() as f64 * part).ceil() as u64;
        let mut seen = 0;
        for (index, count) in (0..).zip(&self.0) {
            seen += count.load(Relaxed);
            if seen >= wanted.max(1) {
                let shift = (index / PARTS).saturating_sub(1);
                let low = if index < PARTS { index } else { PARTS + index % PARTS };
                return ((low + 1) << shift) as f64 / 1000.0;
            }
        }
        0.0
    }
}

// ------------------------------------------------------------------------------------------- counts

/// A request that was not answered as it should have been.
#[derive(Clone, Debug)]
pub struct Loss {
    /// When it was begun, and when that was known.
    pub sent: Instant,
    pub ended: Instant,
    /// `POST /u/17`
    pub what: String,
    /// Whether an answer had begun to come.
    pub is_begun: bool,
    /// What came of it.
    pub why: String,
}

/// What all clients of a run share.
#[derive(Default)]
pub struct Ledger {
    is_over: AtomicBool,
    begun: AtomicUsize,
    /// Requests whose first byte was sent.
    pub sent: AtomicUsize,
    /// Those that were answered with 200, each with its own answer and the whole of it.
    pub answered: AtomicUsize,
    /// Connections that were established.
    pub connections: AtomicUsize,
    /// From the moment a request was due to the last byte of its answer.
    pub recent: Histogram,
    losses: Mutex<Vec<Loss>>,
}

/// How clients of a run behave.
#[derive(Clone)]
pub struct Manner {
    /// Whom they talk to.
    pub target: Target,
    /// On average between two requests of a client; none: one as soon as the last is answered.
    pub pause: Duration,
    /// How many requests a connection carries before its client replaces it.
    pub requests_max: usize,
    /// Who they say that they ask for: fields of a request, drawn by chance.
    pub fields: fn(&mut Random) -> String,
}

impl Ledger {
    /// Has the clients end after what they have under way.
    pub fn finish(&self) {
        self.is_over.store(true, Relaxed);
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Relaxed)
    }

    /// What was lost.
    pub fn losses(&self) -> Vec<Loss> {
        self.losses.lock().unwrap().clone()
    }

    fn lost(&self, sent: Instant, what: String, why: impl ToString) {
        let why = why.to_string();
        let is_begun = why.contains(BROKE_OFF);
        self.losses.lock().unwrap().push(Loss { sent, ended: Instant::now(), what, is_begun, why });
    }

    /// The next request: its path, and whether it has content.
    fn next(&self, random: &mut Random) -> (String, bool) {
        let number = self.begun.fetch_add(1, Relaxed);
        let kind = match random.below(100) {
            0..75 => 's',
            75..90 => 'u',
            90..95 => 'w',
            _ => 'b',
        };
        (format!("/{kind}/{number}"), kind == 'u')
    }

    /// Counts what came of a request.
    fn count(
        &self,
        due: Instant,
        sent: Instant,
        path: &str,
        outcome: Result<(u16, Vec<u8>), String>,
    ) {
        let what = || format!("{} {path}", if path.starts_with("/u") { "POST" } else { "GET" });
        match outcome {
            Ok((200, body)) if is_own(&body, path) => {
                self.answered.fetch_add(1, Relaxed);
                self.recent.add(due.elapsed());
            }
            Ok((status, body)) => {
                let text = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
                self.lost(sent, what(), format!("{status}: {text}"));
            }
            Err(why) => self.lost(sent, what(), why),
        }
    }

    /// One client of HTTP/1.1, until it is over. What falls due while it waits for an answer is sent
    /// right after it, and waited too long by then.
    pub fn http1(&self, manner: &Manner, mut random: Random) {
        let mut kept: Option<(BufReader<Box<dyn Duplex>>, usize)> = None;
        let mut due = Instant::now();
        while !self.is_over() {
            due += random.pause(manner.pause);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if manner.pause.is_zero() {
                due = Instant::now();
            }
            let (mut stream, left) = match kept.take() {
                Some(kept) => kept,
                None => match self.connect(&manner.target) {
                    Ok(stream) => (BufReader::new(stream), manner.requests_max),
                    Err(error) => {
                        self.lost(due, "connect".to_owned(), error);
                        continue;
                    }
                },
            };
            let (path, has_body) = self.next(&mut random);
            let request = request(&path, has_body, &(manner.fields)(&mut random));
            let sent = Instant::now();
            self.sent.fetch_add(1, Relaxed);
            let told = stream.get_mut().write_all(request.as_bytes());
            let told = told.and_then(|()| stream.get_mut().flush());
            let told = told.and_then(|()| read_answer(&mut stream));
            if told.as_ref().is_ok_and(|it| !it.closes) && left > 1 {
                kept = Some((stream, left - 1));
            }
            let outcome = told.map(|it| (it.status, it.body)).map_err(|it| it.to_string());
            self.count(due, sent, &path, outcome);
        }
    }

    fn connect(&self, target: &Target) -> std::io::Result<Box<dyn Duplex>> {
        let stream = target.greet(target.connect()?, &Mutex::default())?;
        self.connections.fetch_add(1, Relaxed);
        Ok(stream)
    }

    /// One client of HTTP/2 by TLS, with so many connections in turn and at most so many requests at a
    /// time, until it is over.
    pub async fn http2(
        self: Arc<Self>,
        manner: Manner,
        mut random: Random,
        connections: usize,
        streams: usize,
    ) {
        let places = Arc::new(Semaphore::new(streams));
        let mut kept: Vec<Option<(Polite, usize)>> = (0..connections).map(|_| None).collect();
        let mut due = Instant::now();
        for number in 0_usize.. {
            due += random.pause(manner.pause);
            tokio::time::sleep_until(due.into()).await;
            let place = Arc::clone(&places).acquire_owned().await.unwrap();
            if self.is_over() {
                break;
            }
            if manner.pause.is_zero() {
                due = Instant::now();
            }
            let slot = &mut kept[number % connections];
            if slot.as_ref().is_some_and(|(it, left)| *left == 0 || it.ended.is_finished()) {
                *slot = None;
            }
            if slot.is_none() {
                match connect_http2(&manner.target).await {
                    Ok(polite) => *slot = Some((polite, manner.requests_max)),
                    Err(error) => {
                        self.lost(due, "connect".to_owned(), error);
                        continue;
                    }
                }
                self.connections.fetch_add(1, Relaxed);
            }
            let Some((polite, left)) = slot else { continue };
            *left -= 1;
            let (path, has_body) = self.next(&mut random);
            let mut asked = http2::request(if has_body { "POST" } else { "GET" }, &path);
            if has_body {
                asked = asked.header("content-length", UPLOAD);
            }
            for line in (manner.fields)(&mut random).lines() {
                let (name, value) = line.split_once(": ").unwrap();
                asked = asked.header(name, value);
            }
            let (ledger, requests) = (Arc::clone(&self), polite.requests.clone());
            tokio::spawn(async move {
                let sent = Instant::now();
                ledger.sent.fetch_add(1, Relaxed);
                let asked = ask_http2(requests, asked.body(()).unwrap(), has_body);
                let outcome = tokio::time::timeout(PATIENCE, asked).await;
                let outcome = outcome.unwrap_or_else(|_| Err("nothing came for long".to_owned()));
                ledger.count(due, sent, &path, outcome);
                drop(place);
            });
        }
        // What is under way comes to its end.
        let all = u32::try_from(streams).unwrap();
        drop(places.acquire_many(all).await);
    }
}

async fn ask_http2(
    requests: SendRequest<Bytes>,
    request: http::Request<()>,
    has_body: bool,
) -> Result<(u16, Vec<u8>), String> {
    let mut requests = requests.ready().await.map_err(|it| it.to_string())?;
    let sent = requests.send_request(request, !has_body);
    let (answer, mut sending) = sent.map_err(|it| it.to_string())?;
    if has_body {
        let body = Bytes::from_static(&[b'u'; UPLOAD]);
        sending.send_data(body, true).map_err(|it| it.to_string())?;
    }
    let answer = answer.await.map_err(|it| it.to_string())?;
    let whole = http2::whole(answer).await.map_err(|it| format!("{BROKE_OFF}, {it}"))?;
    Ok((whole.status, whole.body))
}

async fn connect_http2(target: &Target) -> std::io::Result<Polite> {
    let stream = tokio::net::TcpStream::connect(target.address).await?;
    stream.set_nodelay(true)?;
    let connector = tokio_rustls::TlsConnector::from(target.tls.clone().unwrap());
    let stream = connector.connect("localhost".try_into().unwrap(), stream).await?;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    Ok(Polite::over(stream).await)
}
