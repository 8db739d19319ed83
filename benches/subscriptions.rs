//! What it costs to know what a user has bought: remembered, and asked of a Redis on the same
//! machine. `cargo bench --bench subscriptions`; needs a `redis-server`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use tollgate::clock::monotonic;
use tollgate::config::url;
use tollgate::metrics::cells::use_shard;
use tollgate::subscriptions::settings::{HashKey, RedisSettings, Settings, SourceSettings};
use tollgate::subscriptions::{Bought, Subscriptions};

use redis::RedisServer;

#[path = "../tests/support/redis.rs"]
#[allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "of tests")]
mod redis;

const USERS: usize = 20_000;
const ROUNDS: usize = 50;

fn main() {
    let Some(server) = RedisServer::spawn_tcp() else { return };
    let settings = Settings {
        source: SourceSettings::Redis(RedisSettings {
            target: url::redis(&server.tcp_url()).expect("a URL").target(),
            hash: HashKey::parse("user:{id}").expect("a key with a place for the user"),
            field: "subscription".into(),
        }),
        timeout: Duration::from_secs(5),
        cache_ttl: Duration::from_secs(3_600),
        slow: Duration::from_secs(1),
    };
    let subscriptions =
        Arc::new(Subscriptions::start(settings, 2, Arc::default()).expect("a thread"));
    let users: Vec<String> = (0..USERS).map(|user| (1_000_000 + user).to_string()).collect();
    let set: Vec<Vec<Vec<u8>>> = users
        .iter()
        .map(|user| {
            let key = format!("user:{user}");
            ["HSET", &key, "subscription", "pro"].map(|word| word.as_bytes().to_vec()).to_vec()
        })
        .collect();
    server.pipeline(&set);

    use_shard(0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let started = monotonic();
    runtime.block_on(async {
        for user in &users {
            assert_eq!(subscriptions.of(user).await, Bought::Plan("pro".into()));
        }
    });
    let each = started.elapsed().as_nanos() / USERS as u128;
    println!("asked of Redis, one after the other: {each} ns");

    println!("remembered, {USERS} users in turn, one thread: {} ns", best(&subscriptions, &users));
    let one = vec!["1000000".to_owned(); USERS];
    println!("remembered, always the same user, one thread: {} ns", best(&subscriptions, &one));
    let other = (Arc::clone(&subscriptions), users.clone());
    let thread = std::thread::spawn(move || {
        use_shard(1);
        best(&other.0, &other.1)
    });
    let here = best(&subscriptions, &users);
    let there = thread.join().expect("no panic");
    println!("remembered, {USERS} users in turn, two threads: {here} and {there} ns");
}

/// The best round's mean, in ns for a look-up by `of`, which is ready at once.
fn best(subscriptions: &Subscriptions, users: &[String]) -> u128 {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    (0..ROUNDS)
        .map(|_| {
            let started = monotonic();
            for user in users {
                let future = std::pin::pin!(subscriptions.of(user));
                assert!(black_box(future.poll(&mut context)).is_ready());
            }
            started.elapsed().as_nanos() / users.len() as u128
        })
        .min()
        .unwrap_or_default()
}
