//! How connections spread over workers, and what each way to accept them costs.
//!
//! Four small echo servers on single-threaded runtimes: a listener of its own for each worker
//! (`SO_REUSEPORT`, the kernel's hash decides); one acceptor that hands each connection to the
//! worker with the fewest open; one listening socket that all workers wait for; and listeners of
//! their own whose worker passes a connection on when another has fewer. Measured is how uneven a
//! few long connections lie, and the servers' CPU time for each of many short ones. It is an
//! experiment on loopback: read the ratios, not the absolute figures.
//!
//! On two busy cores: with 4 workers and 8 connections the kernel's hash gave the busiest worker up
//! to 3.0 times the mean, the shared socket up to 4.0 (all of them), the other two 1.0 in every
//! trial; CPU for a short connection lay within the noise of one another (33 to 50 µs).
//!
//! `cargo bench --bench spread [-- --quick]`
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, reason = "an experiment")]
#![allow(clippy::disallowed_methods, reason = "it measures, and has no other clock")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

const WORKERS: [usize; 2] = [2, 4];
const LONG: [usize; 2] = [8, 16];
const CLIENTS: usize = 16;
const MESSAGE: [u8; 64] = [b'x'; 64];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    OwnListeners,
    Acceptor,
    SharedListener,
    PassOn,
}

const WAYS: [Way; 4] = [Way::OwnListeners, Way::Acceptor, Way::SharedListener, Way::PassOn];

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::OwnListeners => "reuseport",
            Way::Acceptor => "acceptor",
            Way::SharedListener => "shared socket",
            Way::PassOn => "reuseport+pass on",
        }
    }
}

/// How connections arrive: all before the first is served, or one after the other.
#[derive(Clone, Copy)]
enum Arrival {
    Burst,
    OneByOne,
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let (trials, rounds, short) = if quick { (10, 1, 2_000) } else { (50, 5, 12_000) };
    few_long(trials);
    many_short(rounds, short);
}

/// Keep-alive connections that stay: `max / mean` of connections per worker, 1.00 is even.
fn few_long(trials: usize) {
    println!("Few long connections: busiest worker over the mean, {trials} trials");
    println!(
        "{:>7} {:>5}  {:<18} {:>13} {:>8} {:>13} {:>8}  idle workers, worst",
        "workers", "conns", "way", "burst: mean", "worst", "in turn: mean", "worst"
    );
    for workers in WORKERS {
        for connections in LONG {
            for way in WAYS {
                let server = Server::start(way, workers);
                let burst = uneven(&server, connections, trials, Arrival::Burst);
                let in_turn = uneven(&server, connections, trials, Arrival::OneByOne);
                println!(
                    "{workers:>7} {connections:>5}  {:<18} {:>13.2} {:>8.2} {:>13.2} {:>8.2}  {}",
                    way.name(),
                    burst.mean,
                    burst.worst,
                    in_turn.mean,
                    in_turn.worst,
                    burst.idle.max(in_turn.idle),
                );
                server.stop();
            }
        }
    }
}

struct Uneven {
    mean: f64,
    worst: f64,
    idle: usize,
}

#[allow(clippy::cast_precision_loss, reason = "small counts")]
fn uneven(server: &Server, connections: usize, trials: usize, arrival: Arrival) -> Uneven {
    let (mut sum, mut worst, mut idle) = (0.0, 0.0_f64, 0);
    for _ in 0..trials {
        let mut streams = Vec::new();
        for _ in 0..connections {
            let mut stream = TcpStream::connect(server.address).unwrap();
            if let Arrival::OneByOne = arrival {
                ask(&mut stream);
            }
            streams.push(stream);
        }
        // Whoever has an answer has been accepted.
        streams.iter_mut().for_each(ask);
        let open = server.open();
        let most = *open.iter().max().unwrap() as f64;
        let ratio = most * open.len() as f64 / connections as f64;
        sum += ratio;
        worst = worst.max(ratio);
        idle = idle.max(open.iter().filter(|open| **open == 0).count());
        drop(streams);
        wait_until(|| server.open().iter().all(|open| *open == 0));
    }
    Uneven { mean: sum / trials as f64, worst, idle }
}

/// Connect, one request, close: what a connection costs the server's threads, and how many fit.
fn many_short(rounds: usize, connections: usize) {
    println!("\nMany short connections: {connections} from {CLIENTS} clients, median of {rounds}");
    println!(
        "{:>7}  {:<18} {:>12} {:>12} {:>14}  most over mean",
        "workers", "way", "CPU µs/conn", "(low..high)", "connections/s"
    );
    for workers in WORKERS {
        let mut figures: [Vec<Short>; 4] = Default::default();
        // Interleaved, so that a noisy minute meets every way.
        for _ in 0..rounds {
            for (way, figures) in WAYS.iter().zip(&mut figures) {
                figures.push(short_round(*way, workers, connections));
            }
        }
        for (way, figures) in WAYS.iter().zip(&figures) {
            let cpu = sorted(figures, |short| short.cpu_us);
            let rate = sorted(figures, |short| short.per_second);
            let uneven = sorted(figures, |short| short.uneven);
            let range = format!("{:.1}..{:.1}", cpu[0], cpu[cpu.len() - 1]);
            println!(
                "{workers:>7}  {:<18} {:>12.1} {:>12} {:>14.0}  {:.2}",
                way.name(),
                cpu[cpu.len() / 2],
                range,
                rate[rate.len() / 2],
                uneven[uneven.len() / 2],
            );
        }
    }
}

struct Short {
    cpu_us: f64,
    per_second: f64,
    uneven: f64,
}

fn sorted(figures: &[Short], of: impl Fn(&Short) -> f64) -> Vec<f64> {
    let mut values: Vec<f64> = figures.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn short_round(way: Way, workers: usize, connections: usize) -> Short {
    let server = Server::start(way, workers);
    let cpu_before = server.cpu();
    let started = Instant::now();
    let clients: Vec<JoinHandle<()>> = (0..CLIENTS)
        .map(|_| {
            let address = server.address;
            std::thread::spawn(move || {
                for _ in 0..connections / CLIENTS {
                    ask(&mut TcpStream::connect(address).unwrap());
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    let took = started.elapsed();
    wait_until(|| server.open().iter().all(|open| *open == 0));
    let cpu = server.cpu() - cpu_before;
    let served: Vec<usize> =
        server.workers.iter().map(|worker| worker.served.load(Ordering::Acquire)).collect();
    server.stop();
    let total = served.iter().sum::<usize>() as f64;
    Short {
        cpu_us: cpu.as_secs_f64() * 1e6 / total,
        per_second: total / took.as_secs_f64(),
        uneven: *served.iter().max().unwrap() as f64 * workers as f64 / total,
    }
}

fn ask(stream: &mut TcpStream) {
    let mut answer = [0; MESSAGE.len()];
    stream.write_all(&MESSAGE).unwrap();
    stream.read_exact(&mut answer).unwrap();
}

fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "connections did not close");
        std::thread::yield_now();
    }
}

struct Server {
    address: SocketAddr,
    workers: Vec<Worker>,
    /// The acceptor's thread, where there is one.
    acceptor: Option<(JoinHandle<()>, String)>,
    stopping: Arc<AtomicBool>,
    stop: watch::Sender<bool>,
}

struct Worker {
    open: Arc<AtomicUsize>,
    served: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
    /// The thread's entry below /proc, where its CPU time stands.
    task: String,
}

/// What a worker's thread is given.
struct Seat {
    index: usize,
    open: Arc<Vec<Arc<AtomicUsize>>>,
    served: Arc<AtomicUsize>,
    listener: Option<std::net::TcpListener>,
    inbox: mpsc::Receiver<std::net::TcpStream>,
    peers: Vec<mpsc::Sender<std::net::TcpStream>>,
    stop: watch::Receiver<bool>,
}

impl Server {
    fn start(way: Way, count: usize) -> Server {
        let first = listen("127.0.0.1:0".parse().unwrap());
        let address = first.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let open: Arc<Vec<Arc<AtomicUsize>>> =
            Arc::new((0..count).map(|_| Arc::default()).collect());
        let (senders, inboxes): (Vec<_>, Vec<_>) =
            (0..count).map(|_| mpsc::channel::<std::net::TcpStream>(1024)).unzip();

        let mut workers = Vec::new();
        for (index, inbox) in inboxes.into_iter().enumerate() {
            let listener = match way {
                Way::Acceptor => None,
                Way::SharedListener => Some(first.try_clone().unwrap()),
                Way::OwnListeners | Way::PassOn if index == 0 => Some(first.try_clone().unwrap()),
                Way::OwnListeners | Way::PassOn => Some(listen(address)),
            };
            let served = Arc::new(AtomicUsize::new(0));
            let seat = Seat {
                index,
                open: Arc::clone(&open),
                served: Arc::clone(&served),
                listener,
                inbox,
                peers: if way == Way::PassOn { senders.clone() } else { Vec::new() },
                stop: stopped.clone(),
            };
            let (thread, task) = spawn(move || work(seat));
            workers.push(Worker { open: Arc::clone(&open[index]), served, thread, task });
        }
        let stopping = Arc::new(AtomicBool::new(false));
        let acceptor = (way == Way::Acceptor).then(|| {
            let stopping = Arc::clone(&stopping);
            first.set_nonblocking(false).unwrap();
            spawn(move || accept_for_all(&first, &open, &senders, &stopping))
        });
        Server { address, workers, acceptor, stopping, stop }
    }

    fn open(&self) -> Vec<usize> {
        self.workers.iter().map(|worker| worker.open.load(Ordering::Acquire)).collect()
    }

    /// CPU time of the server's threads, the clients' left out.
    fn cpu(&self) -> Duration {
        let acceptor = self.acceptor.iter().map(|(_, task)| task);
        self.workers
            .iter()
            .map(|worker| &worker.task)
            .chain(acceptor)
            .map(|task| on_cpu(task))
            .sum()
    }

    fn stop(self) {
        self.stopping.store(true, Ordering::Release);
        self.stop.send(true).unwrap();
        if let Some((acceptor, _)) = self.acceptor {
            drop(TcpStream::connect(self.address));
            acceptor.join().unwrap();
        }
        for worker in self.workers {
            worker.thread.join().unwrap();
        }
    }
}

fn listen(address: SocketAddr) -> std::net::TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(1024).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

/// A thread, and its entry below /proc.
fn spawn(body: impl FnOnce() + Send + 'static) -> (JoinHandle<()>, String) {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::spawn(move || {
        let own = std::fs::read_link("/proc/thread-self").unwrap();
        tell.send(format!("/proc/{}/schedstat", own.display())).unwrap();
        body();
    });
    (thread, told.recv().unwrap())
}

fn on_cpu(task: &str) -> Duration {
    let text = std::fs::read_to_string(task).unwrap();
    Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
}

/// The index of the worker with the fewest open connections; ties go round.
fn least(open: &[Arc<AtomicUsize>], from: usize) -> usize {
    (0..open.len())
        .map(|step| (from + step) % open.len())
        .min_by_key(|index| open[*index].load(Ordering::Acquire))
        .unwrap()
}

fn accept_for_all(
    listener: &std::net::TcpListener,
    open: &[Arc<AtomicUsize>],
    senders: &[mpsc::Sender<std::net::TcpStream>],
    stopping: &AtomicBool,
) {
    let mut turn = 0;
    loop {
        let (stream, _) = listener.accept().unwrap();
        if stopping.load(Ordering::Acquire) {
            return;
        }
        stream.set_nonblocking(true).unwrap();
        turn += 1;
        let to = least(open, turn);
        open[to].fetch_add(1, Ordering::AcqRel);
        senders[to].blocking_send(stream).unwrap();
    }
}

fn work(seat: Seat) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = LocalSet::new();
    local.block_on(&runtime, async move {
        let Seat { index, open, served, listener, mut inbox, peers, mut stop } = seat;
        let listener = listener.map(|it| tokio::net::TcpListener::from_std(it).unwrap());
        let serve = |stream: tokio::net::TcpStream| {
            let open = Arc::clone(&open[index]);
            served.fetch_add(1, Ordering::AcqRel);
            tokio::task::spawn_local(async move {
                echo(stream).await;
                open.fetch_sub(1, Ordering::AcqRel);
            });
        };
        let accept = async || match &listener {
            Some(listener) => listener.accept().await,
            None => std::future::pending().await,
        };
        loop {
            tokio::select! {
                accepted = accept() => {
                    let (stream, _) = accepted.unwrap();
                    let to = if peers.is_empty() { index } else { least(&open, index) };
                    open[to].fetch_add(1, Ordering::AcqRel);
                    if to == index {
                        serve(stream);
                    } else {
                        peers[to].send(stream.into_std().unwrap()).await.unwrap();
                    }
                }
                Some(stream) = inbox.recv() => {
                    serve(tokio::net::TcpStream::from_std(stream).unwrap());
                }
                _ = stop.changed() => return,
            }
        }
    });
}

async fn echo(mut stream: tokio::net::TcpStream) {
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
