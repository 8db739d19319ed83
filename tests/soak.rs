//! An hour under steady load, with everything going wrong in turn that operators have to reckon with:
//! Redis is killed and restarted, one of two backends is killed and restarted, certificates are renewed,
//! the policy is changed. No request is lost that a client which sends none twice should have had
//! answered, and tollgate's own detector finds no leak.
//!
//! `tests/long.sh soak` takes the hour, `SOAK_MINUTES` another time. With every change each event
//! comes once, one after the other. docs/load.md says what a client is entitled to.
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
#[path = "support/redis.rs"]
mod redis;
mod support;

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufReader, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use load::{Target, read_answer, show, two_certificates};
use member::Member;
use paced::{Histogram, Ledger, Loss, Manner};
use random::Random;
use redis::RedisServer;
use support::{PATIENCE, Start, Tollgate, allow_descriptors, sum};

/// Of everything that is drawn by chance.
const SEED: u64 = 27;
/// Callers that are told apart, each with a limit that it does not reach.
const CALLERS: u64 = 2_000;
/// One in so many requests is of the one busy caller.
const BUSY: u64 = 3;
/// Threads with a connection each: in the clear, and by TLS.
const PLAIN: usize = 20;
const TLS: usize = 16;
/// The part of HTTP/2: of so many threads each with connections, and requests at a time.
const HTTP_2_PART: f64 = 0.28;
const HTTP_2_CONNECTIONS: usize = 8;
const HTTP_2_STREAMS: usize = 128;
/// What the caller who asks for too much may have a minute, before and after each change.
const SMALL: [u64; 2] = [60, 72];
/// How often it asks.
const SMALL_PAUSE: Duration = Duration::from_millis(100);
/// How much closer together requests may be at tollgate than at their client.
const JITTER: Duration = Duration::from_secs(1);
/// For how long after a backend was killed somebody may write to it who has not heard of that yet.
const UNHEARD: Duration = Duration::from_secs(1);

/// Waits until it is so, without asking too often: what is asked is at work.
#[track_caller]
fn calmly(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE * 3;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

// ------------------------------------------------------------------------------------ what is tried

/// Everything that takes part.
struct Service {
    tollgate: Tollgate,
    redis: RedisServer,
    members: [Member; 2],
    certificates: tempfile::TempDir,
    /// In the clear; by TLS with HTTP/1.1, and with HTTP/2.
    plain: Target,
    tls: Target,
    http2: Target,
    /// Not before this moment a backend was killed, for each time that one was.
    kills: Vec<Instant>,
    policies: usize,
}

fn policy(round: usize) -> String {
    let small = SMALL[round % 2];
    format!(
        "# {round}
default_tier: free
tiers:
  free: {{ per_second: 100, burst: 200, per_minute: 6000 }}
  busy: {{ per_second: 100000 }}
  small: {{ per_minute: {small} }}
identities: {{ 'ip:127.0.0.1': busy, 'ip:192.0.2.1': small }}
"
    )
}

impl Service {
    fn start(window: Duration) -> Option<Self> {
        allow_descriptors();
        let redis = RedisServer::spawn()?;
        let members = [Member::spawn("127.0.1.1"), Member::spawn("127.0.1.2")];
        let certificates = two_certificates();
        let at = certificates.path().display();
        let config = format!(
            "server:
  trusted_proxies: [127.0.0.1]
  listeners:
  - address: 127.0.0.1:0
  - address: 127.0.0.1:0
    tls: {{ cert: {at}/shown.crt, key: {at}/shown.key }}
upstream:
  urls: ['http://{}', 'http://{}']
  health_check: {{ path: /s/health, interval: 1s }}
store: {{ redis: {{ url: '{}' }} }}
",
            members[0].address,
            members[1].address,
            redis.url()
        );
        let start = Start::default().config(&config).tiers(&policy(0)).listeners();
        let window = format!("{}s", window.as_secs().max(1));
        let start = start.variable("TOLLGATE_LEAK_DRILL_WINDOW", &window);
        let tollgate = match std::env::var_os("TOLLGATE_BIN") {
            Some(program) => start.program(program.into()).run(),
            None => start.run(),
        };
        let said = tollgate.log();
        let (_, secure) = said.split_once("listening on ").unwrap().1.split_once(", ").unwrap();
        let secure = secure.split_once(" (TLS)").unwrap().0.parse().unwrap();
        let by = |speaks: &[u8]| {
            let files = ["a.crt", "b.crt"].map(|it| certificates.path().join(it));
            Target { address: secure, tls: Some(certificates::client(files, speaks)) }
        };
        let plain = Target { address: tollgate.data, tls: None };
        let (tls, http2) = (by(b"http/1.1"), by(b"h2"));
        calmly("it is with Redis", || tollgate.health("/rate_limiter/mode") == "exact");
        let (kills, policies) = (Vec::new(), 0);
        Some(Service { tollgate, redis, members, certificates, plain, tls, http2, kills, policies })
    }

    fn is_exact(&self) -> bool {
        self.tollgate.health("/rate_limiter/mode") == "exact"
    }

    fn member_is_healthy(&self, which: usize) -> bool {
        let upstream = self.members[which].address;
        let series = format!("tollgate_upstream_member_healthy{{upstream=\"{upstream}\"}}");
        self.tollgate.metric(&series) > 0.5
    }

    /// The certificate that somebody new is shown.
    fn shown(&self) -> Vec<u8> {
        let mut tls = (**self.tls.tls.as_ref().unwrap()).clone();
        // A session that is resumed shows the one that it began with.
        tls.resumption = rustls::client::Resumption::disabled();
        let target = Target { tls: Some(Arc::new(tls)), ..self.tls.clone() };
        let shown = Mutex::new(HashSet::new());
        target.greet(target.connect().unwrap(), &shown).unwrap();
        shown.into_inner().unwrap().into_iter().next().unwrap()
    }

    fn reloads(&self) -> f64 {
        self.tollgate.metric(r#"tollgate_config_reloads_total{result="ok"}"#)
    }
}

/// What happens, once a minute each.
#[derive(Clone, Copy, Debug)]
enum Event {
    Redis,
    Member,
    Certificate,
    Policy,
}

use Event::{Certificate, Policy, Redis};

impl Event {
    /// Brings it about for the so manieth time, and waits until it is over; what was done.
    fn happen(
        self,
        service: &mut Service,
        round: usize,
        random: &mut Random,
        small: &Small,
    ) -> String {
        match self {
            Redis => {
                let how = if round.is_multiple_of(2) {
                    service.redis.kill();
                    "killed"
                } else {
                    service.redis.stop();
                    "ended"
                };
                // Now long enough for its absence to be noticed, now so short that it need not be.
                let is_long = round % 4 < 2;
                if is_long {
                    calmly("Redis is missed", || !service.is_exact());
                }
                service.redis.start();
                calmly("Redis decides again", || service.is_exact());
                let away = if is_long { "until that was noticed" } else { "for a moment" };
                format!("Redis {how}, away {away}")
            }
            Event::Member => {
                let which = usize::try_from(random.below(2)).unwrap();
                let is_killed = round.is_multiple_of(2);
                if is_killed {
                    service.kills.push(Instant::now());
                    service.members[which].kill();
                } else {
                    service.members[which].stop();
                }
                if round % 4 < 2 {
                    calmly("it is out", || !service.member_is_healthy(which));
                }
                service.members[which].start();
                calmly("it is back", || service.member_is_healthy(which));
                let how = if is_killed { "killed" } else { "ended" };
                format!("backend {which} {how} and started")
            }
            Certificate => {
                let before = service.shown();
                let name = ["b", "a"][round % 2];
                show(service.certificates.path(), name);
                if !round.is_multiple_of(2) {
                    service.tollgate.signal("HUP");
                }
                calmly("the new certificate is shown", || service.shown() != before);
                format!("certificate {name}")
            }
            Policy => {
                service.policies += 1;
                let reloads = service.reloads();
                let (path, new) = (service.tollgate.path("tiers.yaml"), policy(service.policies));
                // In one step: a file that is half written is none.
                fs::write(path.with_extension("new"), new).unwrap();
                fs::rename(path.with_extension("new"), path).unwrap();
                if !round.is_multiple_of(2) {
                    service.tollgate.signal("HUP");
                }
                let expected = SMALL[service.policies % 2];
                calmly("it is in force", || {
                    service.reloads() > reloads && small.limit.load(Relaxed) == expected
                });
                format!("policy, {expected} a minute")
            }
        }
    }
}

// ---------------------------------------------------------------------------------------- who asks

/// Who a request is for: a third of them one caller, the others one of many.
fn caller(random: &mut Random) -> String {
    if random.below(BUSY) == 0 {
        return String::new();
    }
    let number = random.below(CALLERS);
    format!("X-Forwarded-For: 10.0.{}.{}\r\n", number / 250, 1 + number % 250)
}

/// All clients but the one who asks for too much, together at this rate, or as quickly as they are
/// answered.
fn clients(service: &Service, ledger: &Arc<Ledger>, rate: Option<f64>) -> Vec<JoinHandle<()>> {
    let pause = |part: f64| {
        rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(1.0 / (rate * part)))
    };
    let each = (1.0 - HTTP_2_PART) / (PLAIN + TLS) as f64;
    let mut threads = Vec::new();
    for number in 0..PLAIN + TLS {
        let target = if number < PLAIN { &service.plain } else { &service.tls };
        let (target, pause, fields) =
            (target.clone(), pause(each), caller as fn(&mut Random) -> String);
        let manner = Manner { target, pause, requests_max: 500, fields };
        let (ledger, random) = (Arc::clone(ledger), Random::new(SEED + number as u64));
        threads.push(std::thread::spawn(move || ledger.http1(&manner, random)));
    }
    let streams = if rate.is_some() { HTTP_2_STREAMS } else { PLAIN };
    let (target, pause) = (service.http2.clone(), pause(HTTP_2_PART));
    let manner = Manner { target, pause, requests_max: 2_000, fields: caller };
    let ledger = Arc::clone(ledger);
    threads.push(std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let random = Random::new(SEED);
        runtime.block_on(ledger.http2(manner, random, HTTP_2_CONNECTIONS, streams));
    }));
    threads
}

/// The caller who asks for too much.
#[derive(Default)]
struct Small {
    /// What it was last told that its limit is.
    limit: AtomicU64,
    /// When requests were let pass, and how many were not.
    passed: Mutex<Vec<Instant>>,
    refused: AtomicU64,
    /// What was neither.
    failures: Mutex<Vec<String>>,
}

impl Small {
    fn ask(&self, target: &Target, ledger: &Ledger) {
        let mut kept = None;
        for number in 0.. {
            if ledger.is_over() {
                return;
            }
            std::thread::sleep(SMALL_PAUSE);
            if let Err(error) = self.ask_once(target, &mut kept, &format!("/s/small{number}")) {
                self.failures.lock().unwrap().push(format!("{number}: {error}"));
            }
        }
    }

    fn ask_once(
        &self,
        target: &Target,
        kept: &mut Option<BufReader<TcpStream>>,
        path: &str,
    ) -> io::Result<()> {
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => BufReader::new(target.connect()?),
        };
        let request = load::request(path, false, "X-Forwarded-For: 192.0.2.1\r\n");
        stream.get_mut().write_all(request.as_bytes())?;
        let told = read_answer(&mut stream)?;
        match told.status {
            200 => self.passed.lock().unwrap().push(Instant::now()),
            429 => drop(self.refused.fetch_add(1, Relaxed)),
            status => return Err(io::Error::other(status.to_string())),
        }
        if let Some(limit) = told.limit {
            self.limit.store(limit, Relaxed);
        }
        *kept = (!told.closes).then_some(stream);
        Ok(())
    }

    /// The most that passed in any minute.
    fn most(&self) -> usize {
        let passed = self.passed.lock().unwrap();
        let minute = Duration::from_secs(60) - JITTER;
        let within = |first: usize| {
            let end = passed[first] + minute;
            passed[first..].iter().take_while(|it| **it < end).count()
        };
        (0..passed.len()).map(within).max().unwrap_or(0)
    }
}

// ------------------------------------------------------------------------------- what came of it

/// What is known of tollgate at one moment.
#[derive(Clone, Debug, Default)]
struct Sample {
    resident: u64,
    allocated: f64,
    descriptors: usize,
    connections: f64,
    tasks: f64,
    verdict: String,
}

impl Sample {
    fn take(tollgate: &Tollgate) -> Self {
        let page = tollgate.admin("/metrics").text();
        let descriptors = fs::read_dir(format!("/proc/{}/fd", tollgate.pid())).unwrap().count();
        Sample {
            resident: tollgate.resident(),
            allocated: sum(&page, "memory_allocator_bytes{kind=\"allocated\"}"),
            descriptors,
            connections: sum(&page, "tollgate_connections_active"),
            tasks: sum(&page, "backpressure_async_tasks_pending"),
            verdict: tollgate.health("/memory/verdict").as_str().unwrap_or_default().to_owned(),
        }
    }

    fn row(&self, name: &str) -> String {
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        format!(
            "| {name} | {:.1} | {:.1} | {} | {} | {} | {} |",
            mib(self.resident as f64),
            mib(self.allocated),
            self.descriptors,
            self.connections,
            self.tasks,
            self.verdict
        )
    }
}

/// Losses that a client which repeats nothing has to reckon with: of a backend that was killed, uploads
/// that it had, and answers that had begun.
fn is_owed(loss: &Loss, kills: &[Instant]) -> bool {
    let is_upload = loss.what.starts_with("POST") && loss.why.starts_with("502");
    let is_bound_to_one = loss.is_begun || is_upload;
    let met = |kill: &Instant| loss.sent < *kill + UNHEARD && loss.ended >= *kill;
    !(is_bound_to_one && kills.iter().any(met))
}

/// How long it goes on, and how.
struct Plan {
    /// One round of all events each; none: as quickly as they are over, and one of each kind.
    minutes: Option<u64>,
    /// How long it is measured how much there can be.
    measured: Duration,
    /// In place of half of that.
    rate: Option<f64>,
}

fn soak(plan: &Plan) {
    let whole = Duration::from_secs(plan.minutes.unwrap_or(1) * 60);
    // In the hour it gives its verdict after 42 minutes, and every three from there on.
    let Some(mut service) = Service::start(whole.mul_f64(0.6)) else { return };
    let before = Sample::take(&service.tollgate);
    let rate = plan.rate.unwrap_or_else(|| capacity(&service, plan.measured) / 2.0);
    println!("rate: {rate:.0} requests a second");

    let (ledger, small) = (Arc::new(Ledger::default()), Arc::new(Small::default()));
    let mut threads = clients(&service, &ledger, Some(rate));
    threads.push({
        let (ledger, small, target) =
            (Arc::clone(&ledger), Arc::clone(&small), service.plain.clone());
        std::thread::spawn(move || small.ask(&target, &ledger))
    });
    calmly("everybody is served", || small.limit.load(Relaxed) == SMALL[0]);
    let course = match plan.minutes {
        Some(minutes) => run_for(minutes, &mut service, &ledger, &small),
        None => run_once(&mut service, &ledger, &small),
    };
    ledger.finish();
    for thread in threads {
        thread.join().unwrap();
    }
    calmly("nobody is connected", || Sample::take(&service.tollgate).connections < 0.5);
    let after = Sample::take(&service.tollgate);

    println!("\n| | RSS MiB | allocated MiB | descriptors | connections | tasks | verdict |");
    println!("|---|---|---|---|---|---|---|");
    println!("{}", before.row("before"));
    for (name, sample) in &course.samples {
        println!("{}", sample.row(name));
    }
    println!("{}", after.row("after"));
    println!("\n| quarter | requests | p50 ms | p99 ms | most |\n|---|---|---|---|---|");
    for (number, quarter) in (1..).zip(&course.quarters) {
        let [half, most, all] = [0.5, 0.99, 1.0].map(|it| quarter.percentile(it));
        println!("| {number} | {} | {half:.1} | {most:.1} | {all:.1} |", quarter.count());
    }
    judge(&service, &ledger, &small, &course, [&before, &after]);
}

/// How many requests a second there can be, with as many at a time as it has clients.
fn capacity(service: &Service, measured: Duration) -> f64 {
    let ledger = Arc::new(Ledger::default());
    let threads = clients(service, &ledger, None);
    // Without the handshakes at its beginning.
    calmly("it is warm", || ledger.answered.load(Relaxed) > 1_000);
    let (before, began) = (ledger.answered.load(Relaxed), Instant::now());
    std::thread::sleep(measured);
    let rate = (ledger.answered.load(Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
    ledger.finish();
    for thread in threads {
        thread.join().unwrap();
    }
    let losses = ledger.losses();
    assert!(losses.is_empty(), "{:#?}", &losses[..losses.len().min(20)]);
    println!("capacity: {rate:.0} requests a second, measured for {} s", measured.as_secs());
    rate
}

/// What there is to say of the way to the end.
#[derive(Default)]
struct Course {
    samples: Vec<(String, Sample)>,
    quarters: Vec<Histogram>,
    verdicts: Vec<String>,
}

const EVENTS: [Event; 4] = [Redis, Event::Member, Certificate, Policy];

/// Every kind of event in each of its forms, with requests before, during and after it.
fn run_once(service: &mut Service, ledger: &Arc<Ledger>, small: &Small) -> Course {
    let (mut random, mut course) = (Random::new(SEED), Course::default());
    let quarter = Histogram::default();
    for round in 0..2 {
        for event in EVENTS {
            let enough = ledger.answered.load(Relaxed) + 200;
            calmly("they are answered", || ledger.answered.load(Relaxed) > enough);
            println!("{}", event.happen(service, round, &mut random, small));
        }
        course.samples.push((format!("round {round}"), Sample::take(&service.tollgate)));
    }
    ledger.recent.drain_into(&quarter);
    course.quarters.push(quarter);
    course
}

/// Each event once a minute, at a moment that is drawn.
fn run_for(minutes: u64, service: &mut Service, ledger: &Arc<Ledger>, small: &Small) -> Course {
    let (mut random, mut course) = (Random::new(SEED), Course::default());
    course.quarters.extend((0..4).map(|_| Histogram::default()));
    let (began, mut told) = (Instant::now(), 0);
    for minute in 0..minutes {
        let start = began + Duration::from_secs(60) * u32::try_from(minute).unwrap();
        let mut done = String::new();
        for (number, event) in (0..).zip(EVENTS) {
            let due = start + Duration::from_millis(15_000 * number + random.below(5_000));
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let round = usize::try_from(minute).unwrap();
            let (begun, what) = (Instant::now(), event.happen(service, round, &mut random, small));
            write!(done, "; {what} ({:.1} s)", begun.elapsed().as_secs_f64()).unwrap();
        }
        let end = start + Duration::from_secs(60);
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        let (recent, sample) = (Histogram::default(), Sample::take(&service.tollgate));
        ledger.recent.drain_into(&recent);
        let losses = ledger.losses();
        let owed = losses.iter().filter(|it| is_owed(it, &service.kills)).count();
        println!(
            "minute {}: {} sent, {} answered, {} lost, {owed} of them owed; p50 {:.1} ms, p99 {:.1} ms, most \
             {:.1} ms{done}; {}",
            minute + 1,
            ledger.sent.load(Relaxed),
            ledger.answered.load(Relaxed),
            losses.len(),
            recent.percentile(0.5),
            recent.percentile(0.99),
            recent.percentile(1.0),
            sample.row("now")
        );
        let new = losses[std::mem::replace(&mut told, losses.len())..].iter();
        for loss in new.filter(|it| is_owed(it, &service.kills)).take(20) {
            let at = loss.sent.saturating_duration_since(began).as_secs_f64();
            let took = (loss.ended - loss.sent).as_secs_f64();
            println!("  owed: {at:.3} s, after {took:.3} s: {}: {}", loss.what, loss.why);
        }
        recent.drain_into(&course.quarters[usize::try_from(minute * 4 / minutes).unwrap()]);
        if course.verdicts.last() != Some(&sample.verdict) {
            course.verdicts.push(sample.verdict.clone());
        }
        if minute == 0 || (minute + 1) % (minutes / 4).max(1) == 0 {
            course.samples.push((format!("minute {}", minute + 1), sample));
        }
    }
    course
}

fn judge(
    service: &Service,
    ledger: &Ledger,
    small: &Small,
    course: &Course,
    [before, after]: [&Sample; 2],
) {
    let (sent, answered) = (ledger.sent.load(Relaxed), ledger.answered.load(Relaxed));
    let (losses, kills) = (ledger.losses(), &service.kills);
    let (owed, others): (Vec<_>, Vec<_>) = losses.iter().partition(|it| is_owed(it, kills));
    let mut by_kind = BTreeMap::<String, usize>::new();
    for loss in &others {
        let method = loss.what.split(' ').next().unwrap();
        let begun = if loss.is_begun { ", its answer begun" } else { "" };
        *by_kind.entry(format!("{method}{begun}")).or_default() += 1;
    }
    let passed = small.passed.lock().unwrap().len();
    println!(
        "\n{sent} sent, {answered} answered, {} owed and lost; {} more lost by {} kills of a backend: \
         {by_kind:?}; {} connections",
        owed.len(),
        others.len(),
        kills.len(),
        ledger.connections.load(Relaxed)
    );
    println!(
        "the caller above its limit: {passed} passed, {} refused, at most {} in a minute",
        small.refused.load(Relaxed),
        small.most()
    );
    println!("verdicts: {:?}", course.verdicts);
    let page = service.tollgate.admin("/metrics").text();
    let told = [
        "tollgate_upstream_retries_total",
        "tollgate_upstream_retries_skipped_total",
        "tollgate_outage_admitted_total",
        "tollgate_outage_charged_total",
        "tollgate_redis_errors_total",
        "tollgate_config_reloads_total",
        "tollgate_tls_handshakes_total",
    ];
    for line in page.lines().filter(|line| told.iter().any(|it| line.starts_with(it))) {
        println!("  {line}");
    }
    assert!(owed.is_empty(), "{:#?}", &owed[..owed.len().min(20)]);
    assert_eq!(sent, answered + others.iter().filter(|it| it.what != "connect").count());
    let failures = small.failures.lock().unwrap();
    assert!(failures.is_empty(), "{failures:?}");
    assert!(small.most() <= usize::try_from(SMALL[1]).unwrap(), "{} in a minute", small.most());
    // Beside what there was before, connections to the backends that are kept to be used again, and
    // those that asked.
    let kept = service.tollgate.sum("tollgate_pool_connections{pool=\"upstream\"");
    let more = after.descriptors as f64 - before.descriptors as f64;
    assert!(more <= kept + 8.0, "{more} more descriptors, {kept} connections");
    assert!(after.tasks - before.tasks <= kept + 8.0, "{} more tasks", after.tasks - before.tasks);
    assert!(!course.verdicts.iter().any(|it| it == "suspected_leak"), "{:?}", course.verdicts);
    if cfg!(feature = "leak-drill") && course.verdicts.len() > 1 {
        assert_ne!(after.verdict, "insufficient_data");
    }
}

#[test]
fn every_event_once_and_nothing_is_lost() {
    soak(&Plan { minutes: None, measured: Duration::ZERO, rate: Some(300.0) });
}

/// The real thing.
#[test]
#[ignore = "an hour: tests/long.sh soak"]
fn an_hour() {
    let number = |name: &str| std::env::var(name).ok().map(|it| it.parse::<f64>().unwrap());
    let minutes = number("SOAK_MINUTES").unwrap_or(60.0) as u64;
    let measured = Duration::from_secs(10);
    soak(&Plan { minutes: Some(minutes), measured, rate: number("SOAK_RATE") });
}

/// No test: a process of its own.
#[test]
#[ignore = "what others start"]
fn serve_as_a_backend() {
    member::serve_if_asked();
}
