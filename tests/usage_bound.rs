//! A sink that stays away for so long that the journal meets its bound: the oldest batches give way,
//! each is counted, and what is left is taken once the sink is back.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/redis.rs"]
mod redis;

use std::sync::Arc;
use std::time::Duration;

use tollgate::clock::{Clock, monotonic};
use tollgate::config::url;
use tollgate::limiter::time::Timestamp;
use tollgate::policy::identity::Identity;
use tollgate::usage::flush::Usage;
use tollgate::usage::journal::segments;
use tollgate::usage::record::Counts;
use tollgate::usage::sink::{Place, Settings};
use tollgate::usage::writer::{UsageWriter, Who};

use redis::RedisServer;

const BATCHES: u64 = 200;
/// Room for sixteen of the smallest segments.
const JOURNAL_BYTES_MAX: u64 = 1 << 20;

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = monotonic() + Duration::from_secs(60);
    while !condition() {
        assert!(monotonic() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn above_its_bound_the_journal_gives_up_its_oldest_batches_and_says_how_many_requests_were_in_them()
{
    let Some(mut server) = RedisServer::prepare(&[]) else { return };
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings {
        place: Place::Redis(url::redis(&server.url()).unwrap().target(), "tg".into()),
        flush: Duration::from_millis(50),
        directory: directory.path().to_owned(),
        retention: Duration::from_secs(90 * 86_400),
        journal_bytes_max: JOURNAL_BYTES_MAX,
    };
    let now = Timestamp::from_micros(1_780_000_000_000_000);
    let usage = Usage::start(settings, 1, Clock::manual(now)).unwrap();
    let writer = UsageWriter::new(Arc::clone(usage.journal()), 0);
    let identity = Identity::User("42".into());
    let who = Who { identity: &identity, tier: "free", endpoint: "other" };
    // Each has another number of requests in it, so that one cannot stand for another.
    for requests in 1..=BATCHES {
        let requests = i64::try_from(requests).unwrap();
        writer.count(who, now, Counts { requests, units: requests, ..Counts::default() });
        writer.finish();
    }
    let counted = BATCHES * (BATCHES + 1) / 2;
    wait_until("the oldest have given way", || usage.lost() > 0);
    let held = || segments(usage.journal().directory()).unwrap().len();
    wait_until("it is within its bound", || held() <= 20);

    // The newest are there still, and nothing of them is lost or counted twice.
    server.start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let recorded = || {
        let totals = runtime.block_on(usage.totals()).ok()?;
        Some(u64::try_from(totals.get("free")?.requests).unwrap())
    };
    wait_until("all is told of", || recorded().is_some_and(|it| it + usage.lost() == counted));
    let newest = recorded().unwrap();
    assert!(newest >= BATCHES, "the newest batch is among them: {newest}");
    drop(writer);
    usage.finish();
    assert_eq!(newest + usage.lost(), counted);
}
