//! What a change does, row by row of the table of that name in `docs/limits.md`: two real replicas
//! on one real Redis, a load that goes on while their files change, and what has passed counted.
//!
//! Replicas read their files one after the other, so for a moment they run different policies. In
//! none of that does anything fail, and afterwards exactly as much has passed as the table says.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test stops at the first surprise, and ends"
)]

#[path = "support/redis.rs"]
mod redis;
mod support;

use std::collections::HashMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redis::RedisServer;
use serde_json::{Value, json};
use support::{Answer, Backend, Client, Start, Tollgate, wait_until};

/// Two replicas, and what they share.
struct Pair {
    replicas: [Tollgate; 2],
    _backend: Backend,
    _server: RedisServer,
}

impl Pair {
    /// Both by the same file; `None` where there is no Redis.
    fn start(tiers: &str) -> Option<Self> {
        Self::in_front_of(Backend::ok(), tiers)
    }

    fn in_front_of(backend: Backend, tiers: &str) -> Option<Self> {
        let server = RedisServer::spawn()?;
        // A budget that only an outage misses.
        let config = format!(
            "server: {{ workers: 2, trusted_proxies: [127.0.0.0/8] }}\n\
             store: {{ redis: {{ url: '{}', timeout: 10s, leases: 'off' }} }}\n",
            server.url()
        );
        let replicas = [(); 2].map(|()| {
            Start::default().upstream(backend.address).config(&config).tiers(tiers).run()
        });
        Some(Pair { replicas, _backend: backend, _server: server })
    }

    /// Puts a policy in force on one replica after the other.
    fn put_in_force(&self, tiers: &str) {
        self.replicas.iter().for_each(|replica| put_in_force(replica, tiers));
    }

    fn load(&self, path: &'static str) -> Load {
        Load::start(&self.replicas, path)
    }
}

fn call(replica: &Tollgate, line: &str, body: Option<&Value>) -> Answer {
    let body = body.map(ToString::to_string).unwrap_or_default();
    let method = line.split(' ').next().unwrap();
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    let request = format!(
        "{line} HTTP/1.1\r\nHost: {}\r\n{kind}Content-Length: {}\r\n\r\n{body}",
        replica.admin,
        body.len()
    );
    Client::connect(replica.admin).send(request).answer_to(method)
}

/// Once it returns, each request is checked by this policy.
fn put_in_force(replica: &Tollgate, tiers: &str) {
    let path = replica.path("tiers.yaml");
    let beside = path.with_extension("new");
    fs::write(&beside, tiers).unwrap();
    fs::rename(&beside, &path).unwrap();
    let answer = call(replica, "POST /api/v1/reload", None);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn free(limits: &str) -> String {
    format!("default_tier: free\ntiers:\n  free: {{ {limits} }}\n")
}

/// Answers by their status and the limit that they speak of, 0 where of none.
type Tally = HashMap<(u16, u64), u64>;

/// One caller's requests, a few hundred a second to each replica, until it is ended.
struct Load {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<[Tally; 2]>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(replicas: &[Tollgate; 2], path: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Mutex::new([Tally::new(), Tally::new()]));
        let clients = (0..2).map(|index| {
            let (stop, tally) = (Arc::clone(&stop), Arc::clone(&tally));
            let mut client = replicas[index].connect();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    let answer = client.get(path);
                    let limit =
                        answer.field("x-ratelimit-limit").map_or(0, |it| it.parse().unwrap());
                    *tally.lock().unwrap()[index].entry((answer.status, limit)).or_default() += 1;
                    std::thread::sleep(Duration::from_millis(3));
                }
            })
        });
        Load { clients: clients.collect(), stop, tally }
    }

    /// Answers of either replica of which `is_it` is true of status and limit.
    fn count(&self, is_it: impl Fn(u16, u64) -> bool) -> u64 {
        let tally = self.tally.lock().unwrap();
        let all = tally.iter().flatten();
        all.filter(|((status, limit), _)| is_it(*status, *limit)).map(|(_, count)| count).sum()
    }

    /// What has passed under a limit of so many.
    fn passed(&self, limit: u64) -> u64 {
        self.count(|status, of| (status, of) == (200, limit))
    }

    fn passed_at_all(&self) -> u64 {
        self.count(|status, _| status == 200)
    }

    fn of(&self, index: usize, status: u16) -> u64 {
        let tally = self.tally.lock().unwrap();
        tally[index].iter().filter(|((of, _), _)| *of == status).map(|(_, count)| count).sum()
    }

    /// Waits until each replica has given so many more answers of this status.
    fn wait_more(&self, status: u16, count: u64) {
        let before = [0, 1].map(|index| self.of(index, status));
        wait_until("more such answers", || {
            [0, 1].iter().all(|index| self.of(*index, status) >= before[*index] + count)
        });
    }

    /// Waits until no more passes, and gives what has passed under a limit of so many.
    fn settled(&self, limit: u64) -> u64 {
        wait_until("it is used up", || {
            let before = self.passed_at_all();
            self.wait_more(429, 10);
            self.passed_at_all() == before
        });
        self.passed(limit)
    }

    /// Ends it; nothing has failed in all of it.
    fn end(self) -> [Tally; 2] {
        self.stop.store(true, Ordering::Release);
        self.clients.into_iter().for_each(|client| client.join().unwrap());
        let tally = std::mem::take(&mut *self.tally.lock().unwrap());
        let is_fine = |(status, _): &(u16, u64)| matches!(status, 200 | 429);
        assert!(tally.iter().flat_map(HashMap::keys).all(is_fine), "{tally:?}");
        tally
    }
}

#[test]
fn of_a_raised_limit_the_difference_can_be_spent_at_once() {
    let Some(pair) = Pair::start(&free("per_hour: 60")) else { return };
    let load = pair.load("/");
    assert_eq!(load.settled(60), 60);
    pair.put_in_force(&free("per_hour: 100"));
    assert_eq!(load.settled(100), 40);
    // By signal, and while there is something left.
    for replica in &pair.replicas {
        let path = replica.path("tiers.yaml");
        fs::write(&path, free("per_hour: 150")).unwrap();
        replica.signal("HUP");
    }
    wait_until("the signal is heard", || load.passed(150) > 0);
    assert_eq!(load.settled(150), 50);
    assert_eq!(load.passed_at_all(), 150);
    load.end();
}

#[test]
fn who_has_spent_more_than_a_lowered_limit_waits_and_nobody_else_notices() {
    let Some(pair) = Pair::start(&free("per_minute: 10000, per_hour: 9000")) else { return };
    let other = |replica: &Tollgate| {
        let head = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n";
        replica.connect().send(head).answer()
    };
    for replica in &pair.replicas {
        assert_eq!(other(replica).status, 200);
    }
    let load = pair.load("/");
    wait_until("something is spent", || load.passed_at_all() >= 60);
    pair.put_in_force(&free("per_minute: 10000, per_hour: 50"));
    let spent = load.passed_at_all();
    load.wait_more(429, 20);
    // An answer that was on its way on each replica may have been counted after that.
    assert!(load.passed_at_all() <= spent + 2, "{} after {spent}", load.passed_at_all());
    assert_eq!(load.passed(50), 0, "all that had passed had passed before");
    // Who has spent two of them has the rest of the fifty, and no more.
    let left: Vec<u64> =
        pair.replicas.iter().map(|it| other(it).number("x-ratelimit-remaining")).collect();
    assert_eq!(left, [47, 46]);
    // What was spent above the limit counts: raised to ten more, ten pass.
    let spent = load.passed_at_all();
    pair.put_in_force(&free(&format!("per_minute: 10000, per_hour: {}", spent + 10)));
    assert_eq!(load.settled(spent + 10), 10);
    load.end();
}

#[test]
fn debt_stays_and_is_paid_back_at_the_new_rate() {
    let Some(pair) = Pair::start(&free("per_second: 1, burst: 60")) else { return };
    let load = pair.load("/");
    let started = Instant::now();
    wait_until("the burst is spent", || load.passed_at_all() >= 60);
    load.wait_more(429, 10);
    // A larger burst: the difference, and what comes back in the time.
    pair.put_in_force(&free("per_second: 1, burst: 90"));
    wait_until("the difference is spent", || load.passed(90) >= 30);
    load.wait_more(429, 10);
    let most = 90 + started.elapsed().as_secs() + 1;
    assert!((90..=most).contains(&load.passed_at_all()), "{} of {most}", load.passed_at_all());

    // A smaller one: of a debt of 90, 80 and one more have to be paid back first.
    pair.put_in_force(&free("per_second: 1, burst: 10"));
    let passed = load.passed_at_all();
    load.wait_more(429, 20);
    assert!(load.passed_at_all() <= passed + 2, "nothing but what was on its way");
    for replica in &pair.replicas {
        let wait = replica.get("/").number("retry-after");
        assert!((60..=81).contains(&wait), "{wait}");
    }
    // And at the new rate that takes no time.
    pair.put_in_force(&free("per_second: 50, burst: 10"));
    let (raised, before) = (Instant::now(), load.passed_at_all());
    let wait = pair.replicas[0].get("/").field("retry-after").map(str::to_owned);
    assert!(matches!(wait.as_deref(), None | Some("1" | "2")), "{wait:?}");
    wait_until("it passes again", || load.passed_at_all() >= before + 20);
    let most = 10.0 + 50.0 * raised.elapsed().as_secs_f64() + 3.0;
    assert!(((load.passed_at_all() - before) as f64) <= most);
    load.end();
}

#[test]
fn a_removed_limit_does_not_refuse_nor_count_and_comes_back_with_what_was_spent() {
    let Some(pair) = Pair::start(&free("per_minute: 5000, per_hour: 40")) else { return };
    let load = pair.load("/");
    assert_eq!(load.settled(40), 40);
    pair.put_in_force(&free("per_minute: 5000"));
    wait_until("it refuses no more", || load.passed(5000) >= 60);
    pair.put_in_force(&free("per_minute: 5000, per_hour: 55"));
    assert_eq!(load.settled(55), 15, "from then on, and the forty before it left");
    load.end();
}

#[test]
fn a_removed_bucket_comes_back_full() {
    let bucket = free("per_second: 1, burst: 40");
    let Some(pair) = Pair::start(&bucket) else { return };
    let load = pair.load("/");
    wait_until("it is used up", || load.passed(40) >= 40);
    load.wait_more(429, 10);
    pair.put_in_force(&free("per_minute: 5000"));
    wait_until("it refuses no more", || load.passed(5000) >= 20);
    let before = load.passed(40);
    pair.put_in_force(&bucket);
    // While one replica had it and the other had not, what passed there emptied it no further.
    let (both, again) = (load.passed(40), Instant::now());
    wait_until("it is used up anew", || load.passed(40) >= before + 40);
    load.wait_more(429, 10);
    let most = both + 40 + again.elapsed().as_secs() + 2;
    assert!(load.passed(40) <= most, "{} of {most}", load.passed(40));
    load.end();
}

#[test]
fn an_added_limit_counts_from_then_on() {
    let Some(pair) = Pair::start(&free("per_minute: 5000")) else { return };
    let load = pair.load("/");
    wait_until("something is spent", || load.passed(5000) >= 60);
    pair.put_in_force(&free("per_minute: 5000, per_hour: 45"));
    assert_eq!(load.settled(45), 45, "nothing of what was spent before");
    // One of a second as well, and of a day, which begins with nothing.
    pair.put_in_force(&free("per_minute: 5000, per_day: 30"));
    assert_eq!(load.settled(30), 30);
    load.end();
}

#[test]
fn a_renamed_rule_begins_anew_and_the_tier_does_not() {
    let policy = |rule: &str| {
        free("per_hour: 1000")
            + &format!("endpoints:\n  - {{ {rule}, limits: {{ any: {{ per_hour: 25 }} }} }}\n")
    };
    let Some(pair) = Pair::start(&policy("name: old, path: /heavy")) else { return };
    let load = pair.load("/heavy");
    assert_eq!(load.settled(25), 25);
    // Another path, cost and place: the same counters. Nothing more passes.
    pair.put_in_force(&policy("name: old, path: '/{any}', cost: 2"));
    load.wait_more(429, 20);
    assert_eq!(load.passed_at_all(), 25);
    pair.put_in_force(&policy("name: new, path: /heavy"));
    wait_until("the new one is used up", || load.passed_at_all() >= 50);
    load.wait_more(429, 20);
    assert_eq!(load.passed_at_all(), 50);
    load.end();
    let left = pair.replicas.each_ref().map(|it| it.get("/").number("x-ratelimit-remaining"));
    assert_eq!(left, [1000 - 51, 1000 - 52]);
}

#[test]
fn another_tier_by_file_or_override_finds_the_callers_counters() {
    let policy = |tier: &str| {
        format!(
            "default_tier: {tier}\ntiers:\n  free: {{ per_hour: 30 }}\n  premium: {{ per_hour: 70 \
             }}\n  small: {{ per_hour: 90 }}\n"
        )
    };
    let Some(pair) = Pair::start(&policy("free")) else { return };
    let load = pair.load("/");
    assert_eq!(load.settled(30), 30);
    pair.put_in_force(&policy("premium"));
    assert_eq!(load.settled(70), 40);
    let line = "PUT /api/v1/identities/ip:127.0.0.1/override";
    let answer = call(&pair.replicas[0], line, Some(&json!({ "tier": "small" })));
    assert_eq!(answer.status, 200, "{}", answer.text());
    wait_until("both obey", || load.of(0, 200) + load.of(1, 200) >= 90);
    assert_eq!(load.settled(90), 20);
    let line = "DELETE /api/v1/identities/ip:127.0.0.1/override";
    assert_eq!(call(&pair.replicas[1], line, None).status, 204);
    wait_until("both have their tier again", || {
        pair.replicas.iter().all(|it| it.get("/").number("x-ratelimit-limit") == 70)
    });
    load.wait_more(429, 10);
    assert_eq!(load.passed_at_all(), 90);
    load.end();
}

#[test]
fn requests_that_run_when_places_are_added_hold_none() {
    let gate = Arc::new(Gate::default());
    let waits = Arc::clone(&gate);
    let backend = Backend::spawn(move |mut connection| {
        while let Some(seen) = connection.request() {
            if seen.target() == "/slow" {
                waits.wait();
            }
            if !connection.ok("ok") {
                return;
            }
        }
    });
    let Some(pair) = Pair::in_front_of(backend, &free("per_hour: 5000")) else { return };
    let slow = |index: usize| {
        let before = gate.inside();
        let mut client = pair.replicas[index % 2].connect();
        client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
        wait_until("it runs", || gate.inside() > before);
        client
    };
    let mut running: Vec<Client> = (0..5).map(slow).collect();
    pair.put_in_force(&free("per_hour: 5000, concurrency: 3"));
    running.extend((0..3).map(slow));
    for replica in &pair.replicas {
        let answer = replica.get("/");
        assert_eq!((answer.status, answer.number("x-ratelimit-limit")), (429, 3));
    }
    // One more place, which is free at once; then fewer than are held, and none is.
    pair.put_in_force(&free("per_hour: 5000, concurrency: 4"));
    running.push(slow(0));
    pair.put_in_force(&free("concurrency: 2"));
    for replica in &pair.replicas {
        assert_eq!(replica.get("/").status, 429);
    }
    gate.open();
    for client in &mut running {
        assert_eq!(client.answer().status, 200);
    }
    wait_until("all places are free", || {
        let answer = pair.replicas[1].get("/");
        answer.status == 200 && answer.number("x-ratelimit-remaining") == 1
    });
}

/// Where requests wait.
#[derive(Default)]
struct Gate {
    inside: Mutex<usize>,
    is_open: AtomicBool,
}

impl Gate {
    fn wait(&self) {
        *self.inside.lock().unwrap() += 1;
        let until = Instant::now() + support::PATIENCE;
        while !self.is_open.load(Ordering::Acquire) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn inside(&self) -> usize {
        *self.inside.lock().unwrap()
    }

    fn open(&self) {
        self.is_open.store(true, Ordering::Release);
    }
}

#[test]
fn a_reset_begins_anew_on_all_replicas() {
    let policy = free("per_hour: 35, per_day: 400");
    let Some(pair) = Pair::start(&policy) else { return };
    let load = pair.load("/");
    assert_eq!(load.settled(35), 35);
    for round in 2..4 {
        let replica = &pair.replicas[round as usize % 2];
        let answer = call(replica, "DELETE /api/v1/identities/ip:127.0.0.1", None);
        assert_eq!(answer.status, 204, "{}", answer.text());
        wait_until("it is used up anew", || load.passed_at_all() >= 35 * round);
        load.wait_more(429, 20);
        assert_eq!(load.settled(35), 35 * round);
    }
    load.end();
}

#[test]
fn of_two_replicas_with_different_files_the_stricter_refuses_earlier() {
    let Some(pair) = Pair::start(&free("per_hour: 40")) else { return };
    put_in_force(&pair.replicas[1], &free("per_hour: 100"));
    let load = pair.load("/");
    wait_until("the stricter one refuses", || load.of(0, 429) >= 5);
    wait_until("the other as well", || load.of(1, 429) >= 5);
    let [strict, lenient] = load.end();
    assert!(strict[&(200, 40)] <= 40, "{strict:?}");
    assert_eq!(strict[&(200, 40)] + lenient[&(200, 100)], 100, "what either lets pass counts");
}
