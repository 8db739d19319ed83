//! Denials that are answered from memory: the same as Redis's own, counted like them, void when they
//! should be; and how few calls a flood costs. The limiter alone, then a real Redis and real binaries;
//! without a `redis-server` those tests say that they are skipped.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test stops at the first surprise, and ends"
)]

#[path = "support/redis.rs"]
mod redis;
#[path = "support/relay.rs"]
mod relay;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tollgate::clock::{Clock, monotonic};
use tollgate::config::url;
use tollgate::limiter::check::{Limits, State, States, check, peek};
use tollgate::limiter::decision::{Decision, LimitStatus, Verdict};
use tollgate::limiter::quota::{Bucket, LimitSet, Mode};
use tollgate::limiter::refund::Grant;
use tollgate::limiter::time::{Micros, Timestamp};
use tollgate::policy::compiled::FailureMode;
use tollgate::policy::identity::Identity;
use tollgate::policy::plan::{Plan, Scope, TierId, TierSource};
use tollgate::store::deny::asker::{Claim, Heard, Turn};
use tollgate::store::deny::{DenyCache, ENTRIES_MAX, Known, LIFE_MAX, Ticket};
use tollgate::store::memory::MemoryStore;
use tollgate::store::redis::settings::RedisSettings;
use tollgate::store::redis::{RedisShared, RedisStore};
use tollgate::store::{Backend, Checked};

use redis::{RedisServer, Reply};
use relay::Relay;
use support::{Client, Start, Tollgate, wait_until};

const KEYS: [&str; 3] = ["i", "e:reports", "e:search"];
const START_US: u64 = 1_700_000_000_123_456;
const MS: u64 = 1_000;

fn plan(user: &str, cost: u32, scopes: &[Limits]) -> Plan<'static> {
    let mut plan = Plan::new(Identity::User(user.into()), TierId(0), TierSource::Default);
    plan.cost = cost;
    for (index, (key, limits)) in KEYS.iter().zip(scopes).enumerate() {
        plan.push(Scope { rule: None, key, key_hash: index as u64, limits: *limits });
    }
    plan
}

fn set(second: Option<(u32, u32)>, minute: u32, hour: u32) -> LimitSet {
    let second = second.map(|(rate, burst)| Bucket {
        rate: NonZeroU32::new(rate).unwrap(),
        burst: NonZeroU32::new(burst).unwrap(),
    });
    LimitSet {
        second,
        minute: NonZeroU32::new(minute),
        hour: NonZeroU32::new(hour),
        ..LimitSet::default()
    }
}

fn enforced(set: LimitSet) -> Limits {
    Limits { set, mode: Mode::Enforce }
}

#[derive(Clone, Default)]
struct Pure([State; KEYS.len()]);

impl States for Pure {
    fn state(&mut self, index: usize) -> &mut State {
        &mut self.0[index]
    }
}

fn limits() -> impl Strategy<Value = Limits> {
    let second = prop::option::weighted(0.7, (1..20_u32, 1..12_u32));
    let mode = prop_oneof![4 => Just(Mode::Enforce), 1 => Just(Mode::Shadow)];
    (second, 0..20_u32, 0..40_u32, mode)
        .prop_filter("a scope has limits", |(second, minute, hour, _)| {
            second.is_some() || *minute + *hour > 0
        })
        .prop_map(|(second, minute, hour, mode)| Limits { set: set(second, minute, hour), mode })
}

/// What happens at a time, in a world of one replica and one Redis.
enum Event {
    Asks(usize),
    IsEvaluated(usize, Ticket),
    IsAnswered(usize, Ticket, Box<Decision>),
}

#[derive(Clone, Debug)]
struct Request {
    gap: u64,
    there: u64,
    back: u64,
    who: usize,
    cost: u32,
    has_rules: bool,
    /// Whether it is dropped while Redis answers it.
    is_lost: bool,
}

/// A request that waits for what another hears.
struct Waits<'a> {
    index: usize,
    ticket: Ticket,
    heard: Pin<Box<dyn Future<Output = Heard<'a>> + 'a>>,
    /// Whether it would have been denied at some moment since it came.
    was_deniable: bool,
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let gap = prop_oneof![4 => 0..2 * MS, 6 => 0..300 * MS, 2 => 0..3_000 * MS,
        1 => 0..70_000 * MS];
    let way = || prop_oneof![6 => 0..2 * MS, 1 => 0..400 * MS];
    let is_lost = prop::bool::weighted(0.05);
    let request = (gap, way(), way(), 0..3_usize, 1..4_u32, any::<bool>(), is_lost);
    let request = request.prop_map(|(gap, there, back, who, cost, has_rules, is_lost)| Request {
        gap,
        there,
        back,
        who,
        cost,
        has_rules,
        is_lost,
    });
    prop::collection::vec(request, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Requests are on their way to and from Redis beside each other. A denial changes no state, so
    /// that it is enough that each one from memory is one that the limiter would make then, and each
    /// one that another has heard one that it would have made since the request came.
    #[test]
    fn who_is_denied_from_memory_would_be_by_the_limiter(
        scopes in prop::collection::vec(limits(), 1..=KEYS.len()),
        mut requests in requests(),
        are_alike in any::<bool>(),
    ) {
        if are_alike {
            requests.iter_mut().for_each(|it| (it.cost, it.has_rules) = (2, true));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        let base = monotonic();
        let (cache, mut states) = (DenyCache::new(base), vec![Pure::default(); 3]);
        let instant = |at: u64| base + Duration::from_micros(at);
        let time = |at: u64| Timestamp::from_micros(START_US + at);
        let mut events: BTreeMap<(u64, usize), Event> = BTreeMap::new();
        let mut number = 0;
        let mut later = |events: &mut BTreeMap<_, _>, at: u64, event| {
            number += 1;
            events.insert((at, number), event);
        };
        let mut at = 0;
        for (index, request) in requests.iter().enumerate() {
            at += request.gap;
            later(&mut events, at, Event::Asks(index));
        }
        let limits = |it: &Request| if it.has_rules { &scopes[..] } else { &scopes[..1] };
        let mut hits = 0;
        // Charges that Redis has made and not told of yet.
        let mut untold = [0_usize; 3];
        let mut claims: BTreeMap<usize, Claim<'_>> = BTreeMap::new();
        let mut waiting: Vec<Waits<'_>> = Vec::new();
        while let Some(((at, _), event)) = events.pop_first() {
            let (Event::Asks(index) | Event::IsEvaluated(index, _)
                | Event::IsAnswered(index, ..)) = &event;
            let request = &requests[*index];
            let plan = plan(&request.who.to_string(), request.cost, limits(request));
            match event {
                Event::Asks(index) => match cache.look(&plan, instant(at)) {
                    Known::Nothing(ticket) => match cache.turn(&ticket, Duration::from_secs(2)) {
                        Turn::Other(waiter) => waiting.push(Waits {
                            index,
                            ticket,
                            heard: Box::pin(waiter.wait(Duration::from_secs(99))),
                            was_deniable: false,
                        }),
                        turn => {
                            if let Turn::Own(claim) = turn {
                                claims.insert(index, claim);
                            }
                            let evaluated = Event::IsEvaluated(index, ticket);
                            later(&mut events, at + request.there, evaluated);
                        }
                    },
                    Known::Denied(found) => {
                        hits += 1;
                        let states = &mut states[request.who];
                        let exact = peek(states, limits(request), request.cost, time(at));
                        prop_assert_eq!(found.verdict, exact.verdict);
                        let (shown, expected) = (found.shown().unwrap(), exact.shown().unwrap());
                        if shown.wait < Micros::NEVER {
                            let reset = shown.whole_at.as_secs_ceil();
                            let seconds = found.now.as_micros() / 1_000_000;
                            prop_assert!(found.retry_after().unwrap() <= reset - seconds);
                        }
                        // Later than it need be by no more than Redis's answer took.
                        let (wait, least) = (shown.wait.as_micros(), expected.wait.as_micros());
                        prop_assert!(wait <= least + 400 * MS, "{wait} for {least}");
                        if untold[request.who] > 0 {
                            // What else has passed may have made the wait longer.
                            continue;
                        }
                        prop_assert!(wait >= least, "{wait} for {least}");
                        for (found, exact) in found.statuses().iter().zip(exact.statuses()) {
                            let limit = |it: &LimitStatus| (it.scope, it.period, it.mode, it.limit);
                            prop_assert_eq!(limit(found), limit(exact));
                            prop_assert!(found.remaining <= exact.remaining);
                            // What is whole already is whole at whatever time it is.
                            let is_whole = exact.whole_at <= time(at);
                            prop_assert!(is_whole || found.whole_at >= exact.whole_at);
                        }
                    }
                },
                Event::IsEvaluated(index, ticket) => {
                    let states = &mut states[request.who];
                    let decision = check(states, limits(request), request.cost, time(at));
                    untold[request.who] += usize::from(decision.verdict == Verdict::Allow);
                    if request.is_lost {
                        claims.remove(&index);
                    } else {
                    let answer = Event::IsAnswered(index, ticket, Box::new(decision));
                    later(&mut events, at + request.back, answer);
                    }
                }
                Event::IsAnswered(index, ticket, decision) => {
                    if decision.verdict == Verdict::Allow {
                        untold[request.who] -= 1;
                        cache.charged(&plan.identity, decision.now, instant(at));
                    } else {
                        cache.note(&ticket, &plan, &decision, instant(at));
                    }
                    if let Some(claim) = claims.remove(&index) {
                        cache.tell(claim, &ticket, &decision, instant(at));
                    }
                }
            }
            // Between two events waits only get shorter.
            for it in &mut waiting {
                let request = &requests[it.index];
                let states = &mut states[request.who];
                let exact = peek(states, limits(request), request.cost, time(at));
                it.was_deniable |= exact.verdict == Verdict::Deny;
            }
            // Who hears something may have others hear something.
            let mut next = 0;
            while next < waiting.len() {
                let it = &mut waiting[next];
                let mut context = Context::from_waker(Waker::noop());
                let Poll::Ready(heard) = it.heard.as_mut().poll(&mut context) else {
                    next += 1;
                    continue;
                };
                let Waits { index, ticket, was_deniable, .. } = waiting.remove(next);
                next = 0;
                let request = &requests[index];
                let plan = self::plan(&request.who.to_string(), request.cost, limits(request));
                let claim = match heard {
                    Heard::Denied(denial) => {
                        if let Some(decision) = cache.hear(&ticket, &denial) {
                            hits += 1;
                            prop_assert!(was_deniable, "{decision:?} at {at}");
                            continue;
                        }
                        None
                    }
                    Heard::Own(claim) => Some(claim),
                    Heard::Nothing => None,
                };
                let Known::Nothing(ticket) = cache.look(&plan, instant(at)) else {
                    hits += 1;
                    continue;
                };
                claims.extend(claim.map(|claim| (index, claim)));
                later(&mut events, at + request.there, Event::IsEvaluated(index, ticket));
            }
        }
        prop_assert!(waiting.is_empty(), "{} wait for nobody", waiting.len());
        prop_assert_eq!(cache.hits(), hits);
    }
}

/// A denial of a request, with a wait.
fn denial(plan: &Plan<'_>, wait: Duration) -> Decision {
    let limits: Vec<Limits> = plan.scopes().map(|scope| scope.limits).collect();
    let mut states = Pure::default();
    let at = |micros: u128| Timestamp::from_micros(START_US + u64::try_from(micros).unwrap());
    while check(&mut states, &limits, plan.cost, at(0)).verdict == Verdict::Allow {}
    let whole = check(&mut states, &limits, plan.cost, at(0)).shown().unwrap().wait;
    let decision = check(
        &mut states,
        &limits,
        plan.cost,
        at(u128::from(whole.as_micros()) - wait.as_micros()),
    );
    assert_eq!(decision.verdict, Verdict::Deny);
    decision
}

/// One that is asked for and told at `now`.
fn deny(cache: &DenyCache, plan: &Plan<'_>, wait: Duration, now: Instant) {
    cache.note(&asked(cache, plan, now), plan, &denial(plan, wait), now);
}

fn asked(cache: &DenyCache, plan: &Plan<'_>, now: Instant) -> Ticket {
    let Known::Nothing(ticket) = cache.look(plan, now) else { panic!("known already") };
    ticket
}

fn is_known(cache: &DenyCache, plan: &Plan<'_>, now: Instant) -> bool {
    matches!(cache.look(plan, now), Known::Denied(_))
}

#[test]
fn a_denial_is_known_until_its_wait_is_over_and_for_a_second_at_most() {
    let start = monotonic();
    let cache = DenyCache::new(start);
    let minute = [enforced(set(None, 10, 0))];
    for (user, wait, lives) in [
        ("short", Duration::from_millis(30), Duration::from_millis(30)),
        ("long", Duration::from_secs(40), LIFE_MAX),
    ] {
        let plan = plan(user, 1, &minute);
        deny(&cache, &plan, wait, start);
        assert!(is_known(&cache, &plan, start));
        assert!(is_known(&cache, &plan, start + lives - Duration::from_micros(1)));
        assert!(!is_known(&cache, &plan, start + lives));
        assert!(cache.is_empty(), "what is over is freed when it is met");
    }
    assert_eq!(cache.hits(), 4);
}

#[test]
fn another_cost_identity_or_limit_is_another_request() {
    let now = monotonic();
    let cache = DenyCache::new(now);
    let limits = |minute| [enforced(set(None, minute, 0))];
    deny(&cache, &plan("a", 2, &limits(10)), Duration::from_secs(9), now);
    assert!(is_known(&cache, &plan("a", 2, &limits(10)), now));
    assert!(!is_known(&cache, &plan("a", 1, &limits(10)), now), "a smaller cost may pass");
    assert!(!is_known(&cache, &plan("b", 2, &limits(10)), now));
    assert!(!is_known(&cache, &plan("a", 2, &limits(11)), now), "a reload has raised it");
    let with_rule = [limits(10)[0], enforced(set(None, 5, 0))];
    assert!(!is_known(&cache, &plan("a", 2, &with_rule), now));
}

#[test]
fn what_is_void_is_not_known_nor_noted_by_who_asked_before() {
    let now = monotonic();
    let cache = DenyCache::new(now);
    let plans = ["a", "b"].map(|user| plan(user, 1, &[enforced(set(None, 10, 0))]));
    let wait = Duration::from_secs(9);
    let [a, b] = &plans;

    deny(&cache, a, wait, now);
    let before = asked(&cache, b, now);
    cache.forget();
    assert!(!is_known(&cache, a, now));
    cache.note(&before, b, &denial(b, wait), now);
    assert!(!is_known(&cache, b, now), "asked before, answered after");

    deny(&cache, a, wait, now);
    deny(&cache, b, wait, now);
    cache.given_back(&a.identity);
    assert_eq!([a, b].map(|plan| is_known(&cache, plan, now)), [false, true]);
}

#[test]
fn what_was_denied_before_a_charge_is_void_whichever_is_told_first() {
    let start = monotonic();
    let cache = DenyCache::new(start);
    let limits = [enforced(set(None, 10, 0))];
    let [dear, other] = ["a", "b"].map(|user| plan(user, 2, &limits));
    let decision = denial(&dear, Duration::from_secs(9));
    let made = decision.now.as_micros();
    let [before, after] = [made - 1, made + 1].map(Timestamp::from_micros);
    let later = |ms: u64| start + Duration::from_millis(ms);

    // Told of before the charge.
    deny(&cache, &other, Duration::from_secs(9), later(1));
    let ticket = asked(&cache, &dear, later(1));
    cache.note(&ticket, &dear, &decision, later(2));
    cache.charged(&dear.identity, before, later(3));
    assert!(is_known(&cache, &dear, later(3)), "it knows of this charge");
    cache.charged(&dear.identity, after, later(4));
    assert!(!is_known(&cache, &dear, later(4)));
    assert!(is_known(&cache, &other, later(4)), "whoever else is denied still is");

    // Told of after it.
    cache.note(&ticket, &dear, &decision, later(5));
    assert!(!is_known(&cache, &dear, later(5)));
    cache.charged(&dear.identity, before, later(6));
    cache.note(&ticket, &dear, &decision, later(7));
    assert!(!is_known(&cache, &dear, later(7)), "an older charge changes nothing");

    // Asked for after it, by a clock that was set back.
    cache.note(&asked(&cache, &dear, later(8)), &dear, &decision, later(9));
    assert!(is_known(&cache, &dear, later(9)));
}

#[test]
fn who_is_one_too_many_at_once_may_pass_at_any_moment() {
    let now = monotonic();
    let cache = DenyCache::new(now);
    let two = LimitSet { concurrency: NonZeroU32::new(2), ..set(None, 10, 0) };
    let (plan, mut states) = (plan("a", 1, &[enforced(two)]), Pure::default());
    let mut check = || check(&mut states, &[enforced(two)], 1, Timestamp::from_micros(START_US));
    let Known::Nothing(ticket) = cache.look(&plan, now) else { panic!() };
    let [.., decision] = [(); 3].map(|()| check());
    assert_eq!(decision.verdict, Verdict::Deny);
    cache.note(&ticket, &plan, &decision, now);
    assert!(!is_known(&cache, &plan, now));
}

/// Whether who comes at so many milliseconds is denied by what another hears at 20 ms, which has asked
/// at 10 ms: a denial for 5 ms. Between the two something happens.
fn is_denied_with_another(came: u64, happens: impl FnOnce(&DenyCache, &Plan<'_>, Instant)) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let start = monotonic();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let cache = DenyCache::new(start);
    let plan = plan("a", 2, &[enforced(set(None, 10, 0))]);
    deny(&cache, &plan, Duration::from_millis(9), at(0));

    let asks = asked(&cache, &plan, at(10));
    let Turn::Own(claim) = cache.turn(&asks, Duration::from_secs(1)) else { panic!() };
    happens(&cache, &plan, at(11));
    let waits = asked(&cache, &plan, at(came));
    let Turn::Other(waiter) = cache.turn(&waits, Duration::from_secs(1)) else { panic!() };
    let told = denial(&plan, Duration::from_millis(5));
    cache.note(&asks, &plan, &told, at(20));
    assert!(!is_known(&cache, &plan, at(20)), "it is over");
    cache.tell(claim, &asks, &told, at(20));
    let heard = runtime.block_on(waiter.wait(Duration::from_secs(99)));
    let Heard::Denied(denial) = heard else { panic!("{heard:?}") };
    let before = cache.hits();
    let decision = cache.hear(&waits, &denial);
    assert_eq!(cache.hits() - before, u64::from(decision.is_some()));
    assert!(decision.as_ref().is_none_or(|decision| *decision == told));
    decision.is_some()
}

#[test]
fn what_another_hears_denies_who_came_while_it_held() {
    let nothing = |_: &DenyCache, _: &Plan<'_>, _: Instant| {};
    assert!(is_denied_with_another(10, nothing));
    assert!(is_denied_with_another(14, nothing));
    assert!(!is_denied_with_another(15, nothing), "it may have been over when this came");

    // Whoever came before such a thing would be denied, but this one came after it.
    assert!(!is_denied_with_another(12, |cache, _, _| cache.forget()));
    assert!(!is_denied_with_another(12, |cache, plan, _| cache.given_back(&plan.identity)));
    let charged = |by: i64| {
        move |cache: &DenyCache, plan: &Plan<'_>, now: Instant| {
            let made = denial(plan, Duration::from_millis(5)).now.as_micros();
            let at = Timestamp::from_micros(made.checked_add_signed(by).unwrap());
            cache.charged(&plan.identity, at, now);
        }
    };
    assert!(is_denied_with_another(12, charged(-1)), "it tells of this charge");
    assert!(!is_denied_with_another(12, charged(1)));
    assert!(is_denied_with_another(10, charged(1)), "it may have asked before");
}

#[test]
fn the_cache_is_bounded_and_what_is_over_is_swept() {
    let now = monotonic();
    let cache = DenyCache::new(now);
    let limits = [enforced(set(None, 1, 0))];
    for user in 0..ENTRIES_MAX + ENTRIES_MAX / 4 {
        let plan = plan(&user.to_string(), 1, &limits);
        if let Known::Nothing(_) = cache.look(&plan, now) {
            deny(&cache, &plan, Duration::from_secs(30), now);
        }
    }
    let held = cache.len();
    assert!((ENTRIES_MAX / 2..=ENTRIES_MAX).contains(&held), "{held}");
    for shard in 0..cache.shards() {
        cache.sweep(shard, now);
    }
    assert_eq!(cache.len(), held, "they still hold");
    for shard in 0..cache.shards() {
        cache.sweep(shard, now + LIFE_MAX);
    }
    assert!(cache.is_empty());
}

// ------------------------------------------------------------------------------- with a real Redis

/// Calls of the script so far.
fn calls(server: &RedisServer) -> u64 {
    let Reply::Text(text) = server.words("INFO commandstats") else { panic!("no INFO") };
    let text = String::from_utf8(text).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

async fn connect(server: &RedisServer) -> RedisStore {
    connect_with(&server.url(), |settings| settings.timeout = Duration::from_secs(20)).await
}

async fn connect_with(url: &str, change: impl FnOnce(&mut RedisSettings)) -> RedisStore {
    let mut settings = RedisSettings::new(url::redis(url).unwrap().target());
    change(&mut settings);
    let shared = Arc::new(RedisShared::new(settings, Arc::new(MemoryStore::new(1_000))));
    let store = RedisStore::connect(shared);
    assert!(store.wait_connected(Duration::from_secs(20)).await, "no connection");
    store
}

async fn decided(store: &RedisStore, plan: &Plan<'_>) -> (Verdict, Backend, Decision) {
    match store.check(plan, Clock::System.now()).await {
        Checked::Decided { decision, backend } => (decision.verdict, backend, decision),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_was_given_back_here_can_be_used_here_at_once() {
    let Some(server) = RedisServer::spawn() else { return };
    let store = connect(&server).await;
    let plan = plan("42", 1, &[enforced(set(None, 0, 1))]);
    let (verdict, _, granted) = decided(&store, &plan).await;
    assert_eq!(verdict, Verdict::Allow);
    let (_, backend, asked) = decided(&store, &plan).await;
    assert_eq!((asked.verdict, backend), (Verdict::Deny, Backend::Redis));
    let before = calls(&server);
    let (_, backend, known) = decided(&store, &plan).await;
    assert_eq!((known.verdict, backend), (Verdict::Deny, Backend::Cache));
    assert_eq!(calls(&server), before);
    assert!(known.now >= asked.now, "the time goes on");
    let waits = [&asked, &known].map(|it| it.now.plus(it.shown().unwrap().wait));
    assert_eq!(waits[0], waits[1], "and the wait ends when it did");
    store.refund_in_redis(&plan, &Grant::new(&granted, 1)).await.unwrap();
    assert_eq!(decided(&store, &plan).await.0, Verdict::Allow);
}

#[tokio::test]
async fn a_cheaper_request_that_passes_makes_the_wait_of_a_dearer_one_longer() {
    let Some(server) = RedisServer::spawn() else { return };
    let store = connect(&server).await;
    // A token a second, and minutes to wait.
    let limits = [enforced(set(Some((1, 1_000)), 0, 0))];
    let [cheap, dear] = [500, 600].map(|cost| plan("42", cost, &limits));
    assert_eq!(decided(&store, &cheap).await.0, Verdict::Allow);
    let (first, asked) = loop {
        let asked = monotonic();
        let (verdict, _, first) = decided(&store, &dear).await;
        assert_eq!(verdict, Verdict::Deny, "{first:?}");
        // What takes a second to come is not remembered.
        if is_known(store.shared().denials(), &dear, asked) {
            break (first, asked);
        }
    };
    assert_eq!(decided(&store, &cheap).await.0, Verdict::Allow);
    assert!(!is_known(store.shared().denials(), &dear, asked), "{first:?}");
    let (verdict, backend, second) = decided(&store, &dear).await;
    assert_eq!((verdict, backend), (Verdict::Deny, Backend::Redis));
    let until = [&first, &second].map(|it| it.now.plus(it.shown().unwrap().wait));
    assert_eq!(
        until[1].since(until[0]),
        Micros::from_micros(500 * 1_000 * MS),
        "as much more to wait for"
    );
    let (_, backend, third) = decided(&store, &dear).await;
    assert!(backend == Backend::Redis || third.now.plus(third.shown().unwrap().wait) == until[1]);
}

#[tokio::test]
async fn what_is_answered_too_late_is_known_here_once_it_is() {
    let Some(server) = RedisServer::spawn_tcp() else { return };
    let relay = Relay::spawn(server.port()).await;
    let url = format!("redis://{}", relay.address());
    // Refused, its charge goes back; let pass, it stays charged.
    for on_failure in [FailureMode::Closed, FailureMode::Open] {
        let store = connect_with(&url, |settings| {
            (settings.timeout, settings.on_failure) = (Duration::from_millis(50), on_failure);
        })
        .await;
        let denials = store.shared().denials();
        let is_settled = async |user: &str| {
            let limits = [enforced(set(None, 0, 1_000))];
            let [cheap, dear] = [1, 2].map(|cost| plan(user, cost, &limits));
            let other = plan(&format!("not {user}"), 2, &limits);
            let at = monotonic();
            for plan in [&dear, &other] {
                deny(denials, plan, Duration::from_secs(900), at);
            }
            relay.delay(Duration::from_millis(400));
            let checked = store.check(&cheap, Clock::System.now()).await;
            relay.delay(Duration::ZERO);
            if matches!(checked, Checked::Decided { .. }) {
                return false;
            }
            // What is late by too much is never heard of.
            let deadline = monotonic() + Duration::from_secs(5);
            while is_known(denials, &dear, at) && monotonic() < deadline {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            !is_known(denials, &dear, at) && is_known(denials, &other, at)
        };
        let mut users = 0..10;
        let settled = async {
            for user in &mut users {
                if is_settled(&user.to_string()).await {
                    return true;
                }
            }
            false
        };
        assert!(settled.await, "{on_failure:?}: it is denied as if nothing had come of it");
    }
}

#[tokio::test]
async fn when_a_denial_ends_one_request_asks_for_all() {
    let Some(server) = RedisServer::spawn() else { return };
    let store = connect(&server).await;
    let limits = [enforced(set(Some((20, 10)), 0, 0))];
    let plan = plan("42", 1, &limits);
    let before = calls(&server);
    let admitted = AtomicU64::new(0);
    let ends = Mutex::new(BTreeSet::new());
    let many = 64;
    let asks_on = async || {
        while admitted.load(Ordering::Relaxed) < 40 {
            match decided(&store, &plan).await {
                (Verdict::Allow, ..) => _ = admitted.fetch_add(1, Ordering::Relaxed),
                (_, Backend::Redis, denied) => {
                    let end = denied.now.plus(denied.shown().unwrap().wait);
                    ends.lock().unwrap().insert(end);
                }
                _ => tokio::task::yield_now().await,
            }
        }
    };
    futures_util::future::join_all((0..many).map(|_| asks_on())).await;
    let calls = calls(&server) - before;
    let (admitted, periods) = (admitted.into_inner(), ends.into_inner().unwrap().len() as u64);
    println!("{calls} calls, {admitted} admitted, {periods} times of denials");
    // At first nobody knows of a denial.
    assert!(calls <= admitted + 3 * periods + many, "{calls}: {admitted}, {periods}");
    let denials = store.shared().denials();
    assert!(denials.hits() > 0);
}

#[tokio::test]
async fn who_asks_for_others_and_goes_away_leaves_them_an_answer() {
    let Some(server) = RedisServer::spawn() else { return };
    // Nobody loses patience.
    let store =
        connect_with(&server.url(), |settings| settings.timeout = Duration::from_secs(36_000))
            .await;
    let plan = plan("42", 1, &[enforced(set(None, 0, 1))]);
    let (denials, at) = (store.shared().denials(), monotonic());
    deny(denials, &plan, Duration::from_millis(1), at);
    tokio::time::sleep_until((at + Duration::from_millis(2)).into()).await;

    let mut checks: Vec<_> = (0..4).map(|_| Box::pin(decided(&store, &plan))).collect();
    let before = calls(&server);
    for check in &mut checks {
        // Until it has asked, or waits.
        assert!(futures_util::poll!(check.as_mut()).is_pending());
    }
    assert_eq!(calls(&server), before, "nothing has been sent yet");
    let gone = checks.remove(0);
    drop(gone);
    let answers =
        tokio::time::timeout(Duration::from_secs(60), futures_util::future::join_all(checks));
    let answers = answers.await.expect("nobody is left to wait for");
    let of = |backend| answers.iter().filter(|it| it.1 == backend).count();
    let passed = answers.iter().filter(|it| it.0 == Verdict::Allow).count();
    assert!(passed <= 1, "{answers:?}");
    assert!(of(Backend::Cache) >= 1, "{answers:?}");
    assert!(calls(&server) - before <= 3);
}

/// So many requests on as many connections, each as soon as the one before is answered: statuses.
fn flood(tollgate: &Tollgate, connections: usize, each: usize) -> BTreeMap<u16, u64> {
    let address = tollgate.data;
    let flooding: Vec<_> = (0..connections)
        .map(|_| {
            std::thread::spawn(move || {
                let mut client = Client::connect(address);
                let mut seen = BTreeMap::new();
                for _ in 0..each {
                    *seen.entry(client.get("/").status).or_insert(0) += 1;
                }
                seen
            })
        })
        .collect();
    let mut all = BTreeMap::new();
    for statuses in flooding {
        for (status, count) in statuses.join().unwrap() {
            *all.entry(status).or_insert(0) += count;
        }
    }
    all
}

fn start(backend: &support::Backend, server: &RedisServer, tiers: &str) -> Tollgate {
    let config = format!(
        "store: {{ redis: {{ url: '{}', timeout: 10s, leases: off }} }}
server: {{ workers: 2, trusted_proxies: [127.0.0.0/8] }}
log: {{ access: stdout }}
",
        server.url()
    );
    Start::default().upstream(backend.address).config(&config).tiers(tiers).run()
}

#[test]
fn a_flood_costs_redis_one_call_in_a_hundred_refusals_and_all_are_counted() {
    let Some(server) = RedisServer::spawn() else { return };
    let backend = support::Backend::ok();
    let tiers =
        "default_tier: free\ntiers:\n  free: { per_second: 500, burst: 500, per_minute: 20 }\n";
    let tollgate = start(&backend, &server, tiers);
    let before = calls(&server);
    let statuses = flood(&tollgate, 4, 2_000);
    let asked = calls(&server) - before;
    let (allowed, denied) = (statuses[&200], statuses[&429]);
    println!("{denied} refused, {allowed} let through, {asked} calls of Redis");
    assert_eq!((allowed, allowed + denied), (20, 8_000), "{statuses:?}");
    assert!(asked - allowed <= denied / 100, "{asked} calls for {denied} refusals");

    let metric = |series: &str| tollgate.metric(series) as u64;
    let of = "endpoint=\"other\",identifier_type=\"ip\",tier=\"free\"";
    wait_until("all are counted", || {
        metric("tollgate_usage_denied_total{tier=\"free\"}") == denied
    });
    let page = tollgate.admin("/metrics").text();
    let sum = |name: &str, label: &str| -> u64 {
        let lines = page.lines().filter(|line| line.starts_with(name) && line.contains(label));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
    };
    assert_eq!(sum("rate_limit_blocks_total{", "tier=\"free\""), denied, "{of}");
    assert_eq!(sum("rate_limit_hits_total{", "tier=\"free\""), 8_000);
    let window = "tollgate_limit_decisions_total{rule=\"tier\",window=\"minute\"";
    assert_eq!(sum(window, "decision=\"block\""), denied);
    assert_eq!(sum(window, "decision=\"allow\""), 20);
    let (hits, denials) = (
        metric("tollgate_deny_cache_hits_total"),
        sum("tollgate_limiter_duration_seconds_count{", "cache"),
    );
    assert_eq!(
        (hits, hits),
        (denials, denied + allowed - sum("tollgate_redis_duration_seconds_count", ""))
    );
    let head = format!("GET /api/v1/top?by=blocked HTTP/1.1\r\nHost: {}\r\n\r\n", tollgate.admin);
    let top = Client::connect(tollgate.admin).send(head).answer().text();
    assert!(top.contains(&format!("\"count\":{denied}")), "{top}");
    wait_until("each has its line", || {
        tollgate.log().matches("\"status\":429").count() as u64 == denied
    });
}

#[test]
fn a_reset_on_one_replica_frees_the_identity_on_the_other() {
    let Some(server) = RedisServer::spawn() else { return };
    let backend = support::Backend::ok();
    let tiers = "default_tier: free\ntiers:\n  free: { per_minute: 1 }\n";
    let replicas = [start(&backend, &server, tiers), start(&backend, &server, tiers)];
    let mut least = Duration::MAX;
    for address in ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"] {
        let ask = |client: &mut Client| {
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {address}\r\n\r\n");
            client.send(head).answer().status
        };
        let mut clients = replicas.each_ref().map(Tollgate::connect);
        assert_eq!(ask(&mut clients[0]), 200);
        assert_eq!([ask(&mut clients[0]), ask(&mut clients[1])], [429, 429]);
        let reset = format!(
            "DELETE /api/v1/identities/ip:{address} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\n\r\n",
            replicas[0].admin
        );
        let answer = Client::connect(replicas[0].admin).send(reset).answer_to("DELETE");
        assert_eq!(answer.status, 204, "{}", answer.text());
        // A denial that is new, so that only the reset can make it void this soon.
        let started = monotonic();
        wait_until("the other replica knows", || ask(&mut clients[1]) == 200);
        least = least.min(started.elapsed());
    }
    println!("known on the other replica after {least:?} at best");
    assert!(least < LIFE_MAX / 2, "{least:?}: nothing but the end of its life freed it");
}

/// `tests/long.sh flood`.
#[test]
#[ignore = "a minute of ten thousand requests a second"]
fn ten_thousand_a_second() {
    let Some(server) = RedisServer::spawn() else { return };
    let backend = support::Backend::ok();
    let requests = std::env::var("FLOOD_REQUESTS").map_or(160_000, |it| it.parse().unwrap());
    println!("limit  connections  requests/s  admitted  refused  calls  calls for refusals");
    let mut shares = Vec::new();
    for limits in [
        "per_second: 5, burst: 10, per_minute: 100",
        "per_second: 5, burst: 10",
        "per_second: 50, burst: 50",
    ] {
        let tiers = format!("default_tier: free\ntiers:\n  free: {{ {limits} }}\n");
        for connections in [16, 64] {
            server.words("FLUSHALL");
            let tollgate = start(&backend, &server, &tiers);
            let (before, started) = (calls(&server), monotonic());
            let statuses = flood(&tollgate, connections, requests / connections);
            let (asked, took) = (calls(&server) - before, started.elapsed());
            let (allowed, denied) = (statuses[&200], statuses[&429]);
            let share = (asked - allowed) as f64 / denied as f64;
            println!(
                "{limits}  {connections}  {:.0}  {allowed}  {denied}  {asked}  {:.3} %",
                (allowed + denied) as f64 / took.as_secs_f64(),
                share * 100.0
            );
            shares.push(share);
        }
    }
    assert!(shares.iter().all(|share| *share <= 0.01), "{shares:?}");
}
