//! The real binary with a cluster of which a part is away, or comes back with nothing in it: what
//! becomes of limits there, and of the others. Needs a `redis-server`; without one each test says that
//! it is skipped.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/redis.rs"]
mod redis;
#[path = "support/redis_forms.rs"]
mod redis_forms;
mod support;

use tollgate::policy::identity::Identity;
use tollgate::store::redis::names::KeyNames;

use redis::Reply;
use redis_forms::{Cluster, slot};
use support::{Answer, Backend, Start, Tollgate, wait_until};

/// What a caller may do in an hour.
const LIMIT: u64 = 1_000;
/// So many that no third of the slots is without some of them.
const CALLERS: usize = 60;
/// Whoever is left goes on.
const OPTIONS: [&str; 2] = ["--cluster-require-full-coverage", "no"];

fn start(backend: &Backend, cluster: &Cluster) -> Tollgate {
    let config = format!(
        "server: {{ workers: 2, trusted_proxies: [127.0.0.1/32] }}
store: {{ redis: {{ url: '{}', timeout: 250ms, on_failure: local }} }}
log: {{ level: debug }}
",
        cluster.url(&[0, 1, 2])
    );
    let tiers = format!("default_tier: free\ntiers:\n  free: {{ per_hour: {LIMIT} }}\n");
    Start::default().upstream(backend.address).config(&config).tiers(&tiers).run()
}

fn ask(tollgate: &Tollgate, caller: &str) -> Answer {
    let request = format!("GET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: {caller}\r\n\r\n");
    let answer = tollgate.connect().send(request).answer();
    assert_eq!(answer.status, 200, "{caller}: {}\n{}", answer.head, tollgate.log());
    answer
}

/// Asks for each of them; what each has left.
fn left(tollgate: &Tollgate, callers: &[String]) -> Vec<u64> {
    callers.iter().map(|it| ask(tollgate, it).number("x-ratelimit-remaining")).collect()
}

fn fallbacks(tollgate: &Tollgate) -> f64 {
    let page = tollgate.admin("/metrics").text();
    let samples = page.lines().filter(|line| line.starts_with("tollgate_limiter_fallback_total{"));
    samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// Waits until all of them are decided in Redis; so often each was asked.
fn wait_in_redis(tollgate: &Tollgate, callers: &[String]) -> u64 {
    let mut asked = 0;
    wait_until("Redis decides", || {
        let before = fallbacks(tollgate);
        left(tollgate, callers);
        asked += 1;
        fallbacks(tollgate) == before
    });
    asked
}

fn is_exact(tollgate: &Tollgate) -> bool {
    let health = tollgate.admin("/health").text();
    let health: serde_json::Value = serde_json::from_str(&health).unwrap();
    health["rate_limiter"]["mode"] == "exact"
}

/// Which server keeps what replicas know of each other.
fn keeper_of_replicas(cluster: &Cluster) -> usize {
    cluster.first_keeper(slot(&cluster.servers[0], "replicas"))
}

/// Those whom this server keeps, and those whom the others do.
fn callers_of(cluster: &Cluster, place: usize) -> (Vec<String>, Vec<String>) {
    let names = KeyNames::new("tg");
    let callers = (0..CALLERS).map(|index| format!("10.0.0.{}", index + 1));
    let (here, elsewhere): (Vec<_>, Vec<_>) = callers.partition(|caller| {
        let identity = Identity::parse_written(&format!("ip:{caller}")).unwrap();
        cluster.first_keeper(slot(&cluster.servers[0], &names.identity_hash(&identity))) == place
    });
    assert!(!here.is_empty() && !elsewhere.is_empty());
    (here, elsewhere)
}

#[test]
fn a_part_that_was_away_is_told_what_was_let_pass_without_it() {
    let Some(cluster) = Cluster::spawn(3, 0, &OPTIONS) else { return };
    let backend = Backend::ok();
    let tollgate = start(&backend, &cluster);
    let place = (keeper_of_replicas(&cluster) + 1) % 3;
    let (here, elsewhere) = callers_of(&cluster, place);
    let of_others = wait_in_redis(&tollgate, &elsewhere);
    let mut asked = wait_in_redis(&tollgate, &here);
    cluster.servers[place].pause();
    for _ in 0..3 {
        left(&tollgate, &here);
        asked += 1;
    }
    cluster.servers[place].resume();
    cluster.wait_whole();
    // Whoever decides, this replica alone knows of all of it; in Redis once it has been told.
    wait_until("Redis has been told, and decides", || {
        let before = fallbacks(&tollgate);
        let left = left(&tollgate, &here);
        asked += 1;
        fallbacks(&tollgate) == before && left.iter().all(|left| *left == LIMIT - asked)
    });
    assert!(left(&tollgate, &elsewhere).iter().all(|left| *left == LIMIT - of_others - 1));
}

#[test]
fn what_one_server_forgot_is_told_to_it_alone() {
    let Some(mut cluster) = Cluster::spawn(3, 0, &OPTIONS) else { return };
    let backend = Backend::ok();
    let tollgate = start(&backend, &cluster);
    let place = keeper_of_replicas(&cluster);
    let (here, elsewhere) = callers_of(&cluster, place);
    let (of_it, of_others) =
        (wait_in_redis(&tollgate, &here), wait_in_redis(&tollgate, &elsewhere));
    wait_until("Redis has its name", || {
        cluster.servers[place].words("GET tg:{replicas}:generation") != Reply::Nil
    });
    cluster.servers[place].kill();
    cluster.servers[place].start();
    cluster.wait_whole();
    wait_until("it is told again", || {
        tollgate.log().contains("redis has lost what it was told") && is_exact(&tollgate)
    });
    let before = fallbacks(&tollgate);
    let left_now = left(&tollgate, &here);
    assert!(left_now.iter().all(|left| *left == LIMIT - of_it - 1), "{of_it}: {left_now:?}");
    let left_now = left(&tollgate, &elsewhere);
    let is_once = |left: &u64| *left == LIMIT - of_others - 1;
    assert!(left_now.iter().all(is_once), "{of_others}: {left_now:?}");
    assert_eq!(fallbacks(&tollgate), before, "{}", tollgate.log());
}

/// All are away, and all but one come back.
fn the_others_decide_without(of: impl Fn(&Cluster) -> usize) {
    let Some(cluster) = Cluster::spawn(3, 0, &OPTIONS) else { return };
    let backend = Backend::ok();
    let tollgate = start(&backend, &cluster);
    let place = of(&cluster);
    let (here, elsewhere) = callers_of(&cluster, place);
    wait_in_redis(&tollgate, &here);
    wait_in_redis(&tollgate, &elsewhere);
    cluster.servers.iter().for_each(redis::RedisServer::pause);
    wait_until("all of it is given up", || {
        left(&tollgate, &here[..1]);
        left(&tollgate, &elsewhere[..1]);
        tollgate.metric("circuit_breaker_state{service=\"redis\"}") == 2.0
    });
    left(&tollgate, &here);
    left(&tollgate, &elsewhere);
    for (index, server) in cluster.servers.iter().enumerate() {
        if index != place {
            server.resume();
        }
    }
    wait_in_redis(&tollgate, &elsewhere);
    left(&tollgate, &here);
    cluster.servers[place].resume();
    cluster.wait_whole();
    wait_in_redis(&tollgate, &here);
    wait_until("all is well", || is_exact(&tollgate));
}

#[test]
fn the_others_decide_while_one_is_not_back() {
    the_others_decide_without(|cluster| (keeper_of_replicas(cluster) + 1) % 3);
}

#[test]
fn the_others_decide_while_the_one_that_knows_of_replicas_is_not_back() {
    the_others_decide_without(keeper_of_replicas);
}
