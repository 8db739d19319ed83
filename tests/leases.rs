//! Leases: the law against its twin in Redis, and both against every request that was ever let pass.
//! However many replicas there are and however they spend: never more than without leases.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test stops at the first surprise, and ends"
)]

#[path = "support/oracle.rs"]
mod oracle;
#[path = "support/redis.rs"]
mod redis;
mod support;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tollgate::clock::monotonic;
use tollgate::config::url;
use tollgate::limiter::check::lease::{LEASE_MAX, LEASE_MIN, Leased, Wish, lease};
use tollgate::limiter::check::{Limits, State, States, check};
use tollgate::limiter::decision::{Decision, Verdict};
use tollgate::limiter::quota::{Bucket, LIMIT_MAX, LimitSet, Mode};
use tollgate::limiter::refund::{Grant, refund};
use tollgate::limiter::time::{Micros, Timestamp};
use tollgate::policy::identity::Identity;
use tollgate::policy::plan::{Plan, Scope, TierId, TierSource};
use tollgate::store::deny::{DenyCache, Known, Ticket as DenyTicket};
use tollgate::store::lease::{Asking, IDENTITIES_MAX, LeaseTable, Return};
use tollgate::store::memory::MemoryStore;
use tollgate::store::redis::settings::RedisSettings;
use tollgate::store::redis::{RedisShared, RedisStore};

use redis::{RedisServer, Reply};
use support::{Backend, Client, Start, Tollgate, wait_until};

const START: u64 = 1_700_000_000_123_456;
const SECOND: u64 = 1_000_000;

fn at(micros: u64) -> Timestamp {
    Timestamp::from_micros(micros)
}

fn set(second: Option<(u32, u32)>, minute: u32, hour: u32) -> LimitSet {
    let second = second.map(|(rate, burst)| Bucket {
        rate: NonZeroU32::new(rate).unwrap(),
        burst: NonZeroU32::new(burst).unwrap(),
    });
    let (minute, hour) = (NonZeroU32::new(minute), NonZeroU32::new(hour));
    LimitSet { second, minute, hour, ..LimitSet::default() }
}

fn enforced(set: LimitSet) -> Limits {
    Limits { set, mode: Mode::Enforce }
}

fn plan(user: &str, cost: u32, limits: Limits) -> Plan<'static> {
    let mut plan = Plan::new(Identity::User(user.into()), TierId(0), TierSource::Default);
    plan.cost = cost;
    plan.push(Scope { rule: None, key: "i", key_hash: 0, limits });
    plan
}

fn wish(tokens: u32, span_ms: u64, divisor: u32) -> Wish {
    let divisor = NonZeroU32::new(divisor).unwrap();
    Wish { tokens, span: Micros::from_micros(span_ms * 1_000), divisor }
}

#[derive(Clone, Default)]
struct Pure(State);

impl States for Pure {
    fn state(&mut self, _: usize) -> &mut State {
        &mut self.0
    }
}

// --------------------------------------------------------------------------------------- the law

#[test]
fn a_lease_ends_with_the_second_and_has_what_the_others_leave() {
    let limits = enforced(set(Some((1_000, 2_000)), 30_000, 0));
    let second = 1_700_000_000 * SECOND;
    let grant = |now, wish: &Wish| lease(&mut Pure::default(), &limits, 1, wish, at(now));
    let Leased { decision, tokens, span } = grant(second, &wish(200, 250, 2));
    assert_eq!((decision.verdict, tokens, span), (Verdict::Allow, 200, LEASE_MAX));
    let left: Vec<u32> = decision.statuses().iter().map(|it| it.remaining).collect();
    // The bucket does not lend what it earns until the deadline.
    assert_eq!(left, [2_000 - 250 - 200, 30_000 - 200]);
    // Of 1,750 that it has then, half for each of two replicas would be too much: a quarter.
    assert_eq!(grant(second, &wish(u32::MAX, 250, 4)).tokens, 437);
    let late = grant(second + 800_000, &wish(200, 250, 2));
    assert_eq!((late.span.as_micros(), late.tokens), (200_000, 160), "for less time, fewer");
    let last = grant(second + 990_000, &wish(200, 250, 2));
    assert_eq!((last.span, last.tokens), (LEASE_MIN, 8));
    for (now, small) in [
        (second + 990_001, wish(200, 250, 2)),
        (second, wish(1, 250, 2)),
        (second, wish(200, 9, 2)),
        (second, wish(200, 250, 1_000)),
    ] {
        let check = grant(now, &small);
        assert_eq!((check.decision.verdict, check.tokens), (Verdict::Allow, 0), "{small:?}");
        assert_eq!(check.decision.statuses()[1].remaining, 29_999, "one request is charged");
    }
}

#[test]
fn days_and_months_bound_a_lease_and_what_is_limited_at_once_is_not_leased() {
    let most = NonZeroU32::new;
    let wide = set(Some((1_000, 2_000)), 30_000, 0);
    let now = at(1_700_000_000 * SECOND);
    let tokens = |set, mode| {
        let limits = Limits { set, mode };
        lease(&mut Pure::default(), &limits, 1, &wish(200, 250, 2), now).tokens
    };
    assert_eq!(tokens(wide, Mode::Enforce), 200);
    assert_eq!(tokens(LimitSet { day: most(100), ..wide }, Mode::Enforce), 50);
    assert_eq!(tokens(LimitSet { month: most(100), ..wide }, Mode::Enforce), 50);
    assert_eq!(tokens(LimitSet { concurrency: most(100), ..wide }, Mode::Enforce), 0);
    assert_eq!(tokens(wide, Mode::Shadow), 0);
}

#[test]
fn who_has_no_room_is_denied_and_nothing_is_charged() {
    let limits = enforced(set(Some((100, 200)), 10, 0));
    let (mut states, now) = (Pure::default(), at(START));
    for _ in 0..10 {
        assert_eq!(check(&mut states, &[limits], 1, now).verdict, Verdict::Allow);
    }
    let denied = check(&mut states.clone(), &[limits], 1, now);
    let leased = lease(&mut states, &limits, 1, &wish(50, 250, 2), now);
    assert_eq!((leased.decision, leased.tokens), (denied, 0));
}

/// What a replica does next.
#[derive(Clone, Debug)]
enum Act {
    Check {
        cost: u32,
    },
    Lease {
        cost: u32,
        tokens: u32,
        span_ms: u64,
        divisor: u32,
        spends: Vec<u64>,
        keeps: u32,
    },
    /// One of the leases or requests that are open is given back, what is not spent of it.
    GiveBack(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let cost = || prop_oneof![6 => Just(1_u32), 1 => 1..4_u32, 3 => 1..400_u32];
    let tokens = prop_oneof![3 => 2..60_u32, 3 => 2..600_u32, 1 => Just(u32::MAX)];
    let divisor = prop_oneof![3 => Just(1_u32), 1 => 1..9_u32];
    // At which thousandth of its span something is spent: early, late, anywhere.
    let spend = prop_oneof![1 => Just(0_u64), 3 => Just(999), 1 => 0..1_000_u64];
    let span = prop_oneof![3 => Just(250_u64), 1 => 0..300_u64, 1 => 20..60_u64];
    let spends = prop::collection::vec(spend, 1..3);
    let keeps = prop_oneof![3 => Just(0_u32), 2 => 0..60_u32, 1 => Just(u32::MAX)];
    prop_oneof![
        3 => cost().prop_map(|cost| Act::Check { cost }),
        6 => (cost(), tokens, span, divisor, spends, keeps).prop_map(
            |(cost, tokens, span_ms, divisor, spends, keeps)| Act::Lease {
                cost, tokens, span_ms, divisor, spends, keeps
            }
        ),
        3 => any::<usize>().prop_map(Act::GiveBack),
    ]
}

fn gap() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0..3_000_u64, 3 => 0..30_000_u64, 6 => 0..260_000_u64, 2 => 0..2 * SECOND,
        1 => 0..70 * SECOND]
}

/// Limits that leases are for, and such as they are not for: the law holds for all.
fn any_set() -> impl Strategy<Value = LimitSet> {
    let rate = prop_oneof![2 => 100..2_000_u32, 1 => Just(100_u32)];
    let burst = prop_oneof![1..2_000_u32, 1..200_u32];
    let second = prop::option::weighted(0.8, (rate, burst));
    let minute = prop_oneof![2 => Just(0_u32), 3 => 10..3_000_u32];
    let hour = prop_oneof![2 => Just(0_u32), 1 => 10..4_000_u32];
    (second, minute, hour)
        .prop_filter("there are limits", |(second, minute, hour)| {
            second.is_some() || minute + hour > 0
        })
        .prop_map(|(second, minute, hour)| set(second, minute, hour))
}

/// What a lease or a request has left to give back, and where it was charged.
struct Open {
    grant: Grant,
    unspent: u32,
    /// Index into what was let pass, for a request: given back, it has not passed.
    passed: Option<usize>,
}

/// Lives through acts, and says what was let pass when. `gives_back_all`: in place of the refund of
/// the law, tokens are simply added again.
fn live(set: LimitSet, acts: &[(u64, Act)], gives_back_all: bool) -> Vec<(u64, u32)> {
    let (limits, mut states) = (enforced(set), Pure::default());
    let mut last = None;
    let mut passed: Vec<Option<(u64, u32)>> = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    let mut now = START;
    for (gap, act) in acts {
        now += gap;
        match act {
            Act::Check { cost } => {
                let decision = check(&mut states, &[limits], *cost, at(now));
                if decision.verdict == Verdict::Allow {
                    let grant = Grant::new(&decision, 1).beside_leases();
                    passed.push(Some((now, *cost)));
                    last = Some(decision);
                    open.push(Open { grant, unspent: *cost, passed: Some(passed.len() - 1) });
                }
            }
            Act::Lease { cost, tokens, span_ms, divisor, spends, keeps } => {
                let wish = wish(*tokens, *span_ms, *divisor);
                let leased = lease(&mut states, &limits, *cost, &wish, at(now));
                if leased.decision.verdict == Verdict::Deny {
                    continue;
                }
                passed.push(Some((now, *cost)));
                if leased.tokens == 0 {
                    continue;
                }
                let mut left = leased.tokens - cost;
                let keeps = left.min(*keeps);
                let share = (left - keeps) / spends.len() as u32;
                for (index, when) in spends.iter().enumerate() {
                    let is_last = index + 1 == spends.len();
                    let tokens = if is_last { left - keeps } else { share };
                    left -= tokens;
                    let span = leased.span.as_micros() - 1;
                    passed.push((tokens > 0).then_some((now + span * when / 999, tokens)));
                }
                let grant = Grant::of_lease(&leased.decision, leased.span);
                open.push(Open { grant, unspent: left, passed: None });
                last = Some(leased.decision);
            }
            Act::GiveBack(pick) if !open.is_empty() => {
                let Open { grant, unspent, passed: of } = open.swap_remove(pick % open.len());
                if let Some(index) = of {
                    passed[index] = None;
                }
                if let Some(last) = last.as_ref().filter(|_| gives_back_all) {
                    // As if it had been charged last.
                    refund(&mut states, &[limits], unspent, &Grant::new(last, 1));
                } else {
                    refund(&mut states, &[limits], unspent, &grant);
                }
            }
            Act::GiveBack(_) => {}
        }
    }
    let mut passed: Vec<(u64, u32)> = passed.into_iter().flatten().collect();
    passed.sort_unstable();
    passed
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 600, failure_persistence: None, ..ProptestConfig::default()
    })]

    /// Any number of replicas, and any clocks of theirs: a lease is spent at any time until its deadline.
    #[test]
    fn never_more_is_let_pass_than_without_leases(
        set in any_set(),
        acts in prop::collection::vec((gap(), act()), 1..150),
    ) {
        oracle::assert_promises(&set, &live(set, &acts, false));
    }
}

#[test]
fn what_a_short_lease_gives_back_is_not_lent_a_second_time() {
    // Its deadline is long past when a longer one is charged ahead of its time.
    let set = set(Some((1_000, 500)), 0, 0);
    let lease = |span_ms, keeps| Act::Lease {
        cost: 1,
        tokens: u32::MAX,
        span_ms,
        divisor: if span_ms == 250 { 1 } else { 4 },
        spends: vec![999],
        keeps,
    };
    let to_the_end_of_a_second = 1_700_000_000_975_000 - START;
    let most = (1..=500).rev().find(|cost| {
        let acts = [
            (to_the_end_of_a_second, lease(25, u32::MAX)),
            (26_000, lease(250, 0)),
            (0, Act::GiveBack(0)),
            (250_000, Act::Check { cost: *cost }),
        ];
        let passed = live(set, &acts, false);
        oracle::assert_promises(&set, &passed);
        passed.iter().any(|(_, passed)| passed == cost)
    });
    assert!(most.is_some());
}

#[test]
fn tokens_that_are_simply_added_again_let_more_pass() {
    // The test above can fail: this is what it would find.
    let case = (any_set(), prop::collection::vec((gap(), act()), 1..150));
    let mut runner = TestRunner::deterministic();
    let breaks_it = (0..2_000).find(|_| {
        let (set, acts) = case.new_tree(&mut runner).unwrap().current();
        let set = LimitSet { second: set.second, ..LimitSet::default() };
        let passed = live(set, &acts, true);
        // What it says is not told: it is what is looked for.
        std::thread::spawn(move || oracle::assert_promises(&set, &passed)).join().is_err()
    });
    println!("found by case {breaks_it:?}");
    assert!(breaks_it.is_some());
}

// ---------------------------------------------------------------------------------- the law's twin

async fn connect(server: &RedisServer) -> RedisStore {
    let mut settings = RedisSettings::new(url::redis(&server.url()).unwrap().target());
    settings.timeout = Duration::from_secs(20);
    let shared = Arc::new(RedisShared::new(settings, Arc::new(MemoryStore::new(1_000))));
    let store = RedisStore::connect(shared);
    assert!(store.wait_connected(Duration::from_secs(20)).await, "no connection");
    store
}

#[test]
fn the_script_grants_as_the_law_does() {
    let Some(server) = RedisServer::spawn() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = runtime.block_on(connect(&server));
    let run = std::cell::Cell::new(0);
    // Back as well: readings in the wrong order, and a clock that was set.
    let gap = prop_oneof![8 => gap().prop_map(|gap| gap as i64),
        2 => prop_oneof![0..10_i64, 0..1_100_000_i64, 0..90_000_000_i64].prop_map(|back| -back)];
    let mode = prop_oneof![5 => Just(Mode::Enforce), 1 => Just(Mode::Shadow)];
    let wide = (Just(LIMIT_MAX), prop_oneof![Just(1), Just(LIMIT_MAX)])
        .prop_map(|(rate, burst)| set(Some((rate, burst)), LIMIT_MAX, LIMIT_MAX));
    let quota = || prop_oneof![2 => Just(0_u32), 1 => 5..2_000_u32];
    let with_quotas = (any_set(), quota(), quota()).prop_map(|(set, day, month)| LimitSet {
        day: NonZeroU32::new(day),
        month: NonZeroU32::new(month),
        ..set
    });
    let any = prop_oneof![6 => any_set(), 3 => with_quotas, 1 => wide];
    let sets = prop::collection::vec((any, mode), 1..4);
    let acts = prop::collection::vec((gap, act()), 1..60);
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() };
    let result = TestRunner::new(config).run(&(sets, acts), |(sets, acts)| {
        run.set(run.get() + 1);
        let user = format!("run {}", run.get());
        let mut states = Pure::default();
        let mut open = Vec::new();
        let mut now = START;
        for (index, (gap, act)) in acts.iter().enumerate() {
            now = now.saturating_add_signed(*gap);
            // Limits change in between, as a reload does it.
            let (set, mode) = sets[index * sets.len() / acts.len()];
            let limits = Limits { set, mode };
            match act {
                Act::Check { cost } => {
                    let plan = plan(&user, *cost, limits);
                    let found = runtime.block_on(store.evaluate(&plan, Some(at(now)))).unwrap();
                    let expected = check(&mut states, &[limits], *cost, at(now));
                    prop_assert_eq!(&found, &expected, "step {}", index);
                    open.push((limits, *cost, Grant::new(&found, 1).beside_leases()));
                }
                Act::Lease { cost, tokens, span_ms, divisor, keeps, .. } => {
                    let plan = plan(&user, *cost, limits);
                    let wish = wish(*tokens, *span_ms, *divisor);
                    let asked = store.lease(&plan, &wish, Some(at(now)));
                    let found = runtime.block_on(asked).unwrap();
                    let expected = lease(&mut states, &limits, *cost, &wish, at(now));
                    prop_assert_eq!(&found, &expected, "step {}: {:?}", index, wish);
                    let grant = Grant::of_lease(&found.decision, found.span);
                    open.push((limits, found.tokens.min(*keeps), grant));
                }
                Act::GiveBack(pick) if !open.is_empty() => {
                    let (limits, cost, grant) = open.swap_remove(pick % open.len());
                    let plan = plan(&user, cost, limits);
                    refund(&mut states, &[limits], cost, &grant);
                    runtime.block_on(store.refund_in_redis(&plan, &grant)).unwrap();
                }
                Act::GiveBack(_) => {}
            }
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

// ---------------------------------------------------------------------------------- the table

/// A table that has granted a lease of ten tokens, one of them spent, at `now`.
fn with_lease(plan: &Plan<'_>, now: Instant) -> (LeaseTable, Decision) {
    let table = LeaseTable::new(true, now);
    let subject = table.subject(plan).unwrap();
    let patience = Duration::from_millis(20);
    while table.spend(&subject, plan, now).is_none() {
        let Some(asking) = table.wish(&subject, 1, now, patience) else { continue };
        assert!(table.wish(&subject, 1, now, patience).is_none(), "one asks for all");
        assert_eq!(asking.wish.divisor.get(), 2);
        let limits = plan.scope(0).unwrap().limits;
        let wish = Wish { tokens: 10, ..asking.wish };
        let second = at(1_700_000_000 * SECOND);
        let leased = lease(&mut Pure::default(), &limits, 1, &wish, second);
        assert_eq!(leased.tokens, 10);
        let decision = table.granted(&asking, leased, &plan.identity, now);
        assert_eq!(decision.statuses()[1].remaining, 29_999, "what is leased is left");
        return (table, decision);
    }
    panic!("nothing to spend of");
}

#[test]
fn a_lease_is_spent_put_back_into_and_over_in_time() {
    let (now, limits) = (monotonic(), enforced(internal()));
    let plan = plan("a", 1, limits);
    let (table, first) = with_lease(&plan, now);
    let subject = table.subject(&plan).unwrap();
    let spend = |now| table.spend(&subject, &plan, now);
    let left = |it: &Decision| it.statuses()[1].remaining;
    let second = spend(now).unwrap();
    assert_eq!((left(&first), left(&second)), (29_999, 29_998));
    let put_back = |of: &Decision| table.put_back(&plan, &Grant::new(of, 1), now);
    assert_eq!(left(&put_back(&second).unwrap()), 29_999);
    let mut other = second.clone();
    other.now = other.now.plus(Micros::SECOND);
    assert_eq!(put_back(&other), None, "of another lease");
    for _ in 0..9 {
        assert!(spend(now).is_some());
    }
    assert_eq!(spend(now), None, "all is spent");

    let (table, _) = with_lease(&plan, now);
    let end = now + Duration::from_micros(LEASE_MAX.as_micros());
    let subject = table.subject(&plan).unwrap();
    assert!(table.take_returns(end - Duration::from_millis(2), false).is_empty());
    assert!(table.spend(&subject, &plan, end - Duration::from_millis(2)).is_some());
    assert_eq!(table.spend(&subject, &plan, end - Duration::from_millis(1)), None);
    let returns = table.take_returns(end, false);
    assert_eq!(returns.iter().map(|it| it.tokens).collect::<Vec<_>>(), [8]);
    table.returned(8, true);
    let figures = table.figures();
    assert_eq!((figures.tokens_spent, figures.tokens_returned, figures.tokens_lost), (2, 8, 0));
    assert_eq!((figures.held, figures.tokens_held), (0, 0));
}

#[test]
fn what_is_void_is_neither_spent_nor_given_back() {
    let now = monotonic();
    let plan = plan("a", 1, enforced(internal()));
    let (table, first) = with_lease(&plan, now);
    table.forget();
    let subject = table.subject(&plan).unwrap();
    assert_eq!(table.put_back(&plan, &Grant::new(&first, 1), now), None);
    assert_eq!(table.spend(&subject, &plan, now), None);
    assert!(table.take_returns(now, true).is_empty());
    assert_eq!(table.figures().tokens_lost, 9);
    // With all, what still holds goes back, too: the process ends.
    let (table, _) = with_lease(&plan, now);
    assert_eq!(table.take_returns(now, true).len(), 1);
}

#[test]
fn only_generous_limits_of_a_tier_alone_are_leased_from() {
    let table = LeaseTable::new(true, monotonic());
    let may = |limits| table.subject(&plan("a", 1, limits)).is_some();
    assert!(may(enforced(set(Some((100, 200)), 0, 0))));
    assert!(may(enforced(set(None, 6_000, 0))));
    assert!(!may(enforced(set(Some((99, 200)), 100_000, 0))));
    assert!(!may(enforced(set(None, 5_999, 0))));
    assert!(!may(enforced(set(Some((1_000, 30)), 0, 0))), "no burst to speak of");
    assert!(!may(Limits { set: internal(), mode: Mode::Shadow }));
    let concurrency = NonZeroU32::new(9);
    assert!(!may(enforced(LimitSet { concurrency, ..internal() })));
    let mut two = plan("a", 1, enforced(internal()));
    let rule = Scope { key: "e:reports", ..*two.scope(0).unwrap() };
    two.push(rule);
    assert!(table.subject(&two).is_none());
    let off = LeaseTable::new(false, monotonic());
    assert!(off.subject(&plan("a", 1, enforced(internal()))).is_none());
}

#[test]
fn the_table_is_bounded_and_who_is_refused_is_quiet_for_a_while() {
    let now = monotonic();
    let (table, patience) = (LeaseTable::new(true, now), Duration::from_secs(1));
    let busy = plan("busy", 1, enforced(internal()));
    let subject = table.subject(&busy).unwrap();
    for _ in 0..10 {
        assert_eq!(table.spend(&subject, &busy, now), None);
    }
    let asking = table.wish(&subject, 1, now, patience).unwrap();
    table.refused(&asking, None, now);
    let wish = |after| table.wish(&subject, 1, now + Duration::from_millis(after), patience);
    assert!(wish(49).is_none());
    assert!(wish(50).is_some());
    for user in 0..2 * IDENTITIES_MAX {
        let plan = plan(&user.to_string(), 1, enforced(internal()));
        table.spend(&table.subject(&plan).unwrap(), &plan, now + Duration::from_secs(1));
    }
    assert!((1..=IDENTITIES_MAX).contains(&table.len()), "{}", table.len());
}

// ------------------------------------------------------------------------- replicas in virtual time

/// One replica as it is with Redis: leases, denials that are remembered, returns.
struct Replica {
    leases: LeaseTable,
    denials: DenyCache,
}

#[derive(Debug)]
enum Event {
    Comes,
    IsChecked(usize, DenyTicket),
    IsDecided(usize, DenyTicket, Box<Decision>),
    IsAsked(usize, DenyTicket, Asking),
    IsGranted(usize, DenyTicket, Asking, Box<Leased>),
    Looks(usize),
    IsReturned(usize, Return),
}

/// What a run has come to.
#[derive(Debug, Default)]
struct Run {
    came: u64,
    passed: Vec<u64>,
    calls: u64,
    exact: u64,
}

impl Run {
    fn calls_for_each(&self) -> f64 {
        self.calls as f64 / self.passed.len() as f64
    }

    fn lost(&self) -> f64 {
        1.0 - self.passed.len() as f64 / self.exact as f64
    }
}

/// A generator that gives the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Microseconds until the next of so many a second that know nothing of each other.
    fn gap(&mut self, rate: f64) -> u64 {
        (-(1.0 - self.unit()).ln() / rate * 1e6) as u64
    }
}

/// `rate` requests a second of one identity, spread by chance over `replicas`, for `seconds`, with
/// half a millisecond to Redis and back.
fn simulate(set: LimitSet, replicas: usize, rate: f64, seconds: u64, seed: u64) -> Run {
    let base = monotonic();
    let instant = |at: u64| base + Duration::from_micros(at);
    let time = |now: u64| at(1_700_000_000 * SECOND + now);
    let all: Vec<Replica> = (0..replicas)
        .map(|_| Replica { leases: LeaseTable::new(true, base), denials: DenyCache::new(base) })
        .collect();
    let (limits, way) = (enforced(set), 250);
    let (mut redis, mut exact) = (Pure::default(), Pure::default());
    let plan = plan("busy", 1, limits);
    let (mut random, mut run) = (Random(seed), Run::default());
    let mut events: BTreeMap<(u64, u64), Event> = BTreeMap::new();
    let mut number = 0;
    let mut later = |events: &mut BTreeMap<_, _>, at: u64, event| {
        number += 1;
        events.insert((at, number), event);
    };
    later(&mut events, 0, Event::Comes);
    for replica in 0..replicas {
        later(&mut events, 50_000 * replica as u64 / replicas as u64, Event::Looks(replica));
    }
    while let Some(((now, _), event)) = events.pop_first() {
        if now > seconds * SECOND {
            break;
        }
        match event {
            Event::Comes => {
                later(&mut events, now + random.gap(rate), Event::Comes);
                run.came += 1;
                run.exact +=
                    u64::from(check(&mut exact, &[limits], 1, time(now)).verdict == Verdict::Allow);
                let index = (random.next() % replicas as u64) as usize;
                let Replica { leases, denials } = &all[index];
                let subject = leases.subject(&plan).unwrap();
                if leases.spend(&subject, &plan, instant(now)).is_some() {
                    run.passed.push(now);
                    continue;
                }
                let Known::Nothing(ticket) = denials.look(&plan, instant(now)) else { continue };
                let patience = Duration::from_millis(20);
                run.calls += 1;
                match leases.wish(&subject, replicas as u32, instant(now), patience) {
                    Some(asking) => {
                        later(&mut events, now + way, Event::IsAsked(index, ticket, asking))
                    }
                    None => later(&mut events, now + way, Event::IsChecked(index, ticket)),
                }
            }
            Event::IsChecked(index, ticket) => {
                let decision = check(&mut redis, &[limits], 1, time(now));
                if decision.verdict == Verdict::Allow {
                    run.passed.push(now);
                }
                later(&mut events, now + way, Event::IsDecided(index, ticket, Box::new(decision)));
            }
            Event::IsDecided(index, ticket, decision) => {
                all[index].denials.note(&ticket, &plan, &decision, instant(now));
            }
            Event::IsAsked(index, ticket, asking) => {
                let leased = lease(&mut redis, &limits, 1, &asking.wish, time(now));
                if leased.decision.verdict == Verdict::Allow {
                    run.passed.push(now);
                }
                let granted = Event::IsGranted(index, ticket, asking, Box::new(leased));
                later(&mut events, now + way, granted);
            }
            Event::IsGranted(index, ticket, asking, leased) => {
                let Replica { leases, denials } = &all[index];
                if leased.tokens > 0 {
                    leases.granted(&asking, *leased, &plan.identity, instant(now));
                } else {
                    leases.refused(&asking, Some(&leased.decision), instant(now));
                    denials.note(&ticket, &plan, &leased.decision, instant(now));
                }
            }
            Event::Looks(index) => {
                for returned in all[index].leases.take_returns(instant(now), false) {
                    run.calls += 1;
                    later(&mut events, now + way, Event::IsReturned(index, returned));
                }
                later(&mut events, now + 50_000, Event::Looks(index));
            }
            Event::IsReturned(index, Return { tokens, grant, .. }) => {
                refund(&mut redis, &[limits], tokens, &grant);
                all[index].denials.given_back(&plan.identity);
            }
        }
    }
    run.passed.sort_unstable();
    run
}

/// Fails if any stretch of time holds more than was promised; in one go over all that passed.
fn assert_kept(set: &LimitSet, passed: &[u64]) {
    if let Some(minute) = set.minute.map(|limit| limit.get() as usize) {
        for window in passed.windows(minute + 1) {
            let (first, last) = (window[0], window[minute]);
            assert!(last - first > 60 * SECOND, "{} in {} us", minute + 1, last - first);
        }
    }
    let Some(bucket) = set.second else { return };
    let (mut debt, mut last) = (0_u64, 0);
    for now in passed {
        debt = debt.saturating_sub((now - last) * u64::from(bucket.rate.get())) + SECOND;
        last = *now;
        assert!(debt <= u64::from(bucket.burst.get()) * SECOND, "{debt} at {now}");
    }
}

fn internal() -> LimitSet {
    set(Some((1_000, 2_000)), 30_000, 500_000)
}

#[test]
fn a_busy_caller_costs_few_calls_and_loses_next_to_nothing() {
    println!("INTERNAL, requests a second of one caller over all replicas, two minutes:");
    println!("replicas  offered  passed  exact    lost  calls a request");
    for replicas in [1, 2, 4, 8] {
        for rate in [450.0, 500.0, 1_500.0] {
            let run = simulate(internal(), replicas, rate, 125, replicas as u64 * 7 + rate as u64);
            assert_kept(&internal(), &run.passed);
            println!(
                "{replicas:8} {rate:8} {:7} {:6} {:6.3} % {:8.4}",
                run.passed.len(),
                run.exact,
                run.lost() * 100.0,
                run.calls_for_each()
            );
            assert!(run.lost() <= 0.002, "{replicas} replicas at {rate}");
            // Who asks for three times their limit has nothing left to lend.
            let most = if replicas <= 2 { 0.05 } else { 0.2 };
            assert!(rate > 500.0 || run.calls_for_each() <= most, "{replicas} replicas at {rate}");
        }
    }
}

#[test]
fn of_a_burst_no_more_is_lost_than_is_earned_while_a_lease_lasts() {
    for (replicas, seed) in [(1, 1), (3, 2), (8, 3)] {
        let enterprise = set(Some((100, 200)), 3_000, 50_000);
        let run = simulate(enterprise, replicas, 400.0, 125, seed);
        assert_kept(&enterprise, &run.passed);
        println!(
            "ENTERPRISE, {replicas}: {} of {}, {} calls",
            run.passed.len(),
            run.exact,
            run.calls
        );
        // A quarter of a second's 100, once, and what is on its way at the end.
        assert!(run.exact - run.passed.len() as u64 <= 25 + 10);
    }
}

// ----------------------------------------------------------------------- real processes, a real Redis

/// Calls of the script so far.
fn calls(server: &RedisServer) -> u64 {
    let Reply::Text(text) = server.words("INFO commandstats") else { panic!("no INFO") };
    let text = String::from_utf8(text).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

/// A backend that notes when each request came.
fn noting() -> (Backend, Arc<Mutex<Vec<Instant>>>) {
    let came = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&came);
    let backend = Backend::spawn(move |mut connection| {
        while connection.head().is_some() {
            notes.lock().unwrap().push(monotonic());
            connection.ok("ok");
        }
    });
    (backend, came)
}

fn start(backend: &Backend, server: &RedisServer, limits: &str, leases: &str) -> Tollgate {
    let config = format!(
        "server: {{ workers: 1 }}\nstore: {{ redis: {{ url: '{}', timeout: 5s, leases: {leases} }} }}\n",
        server.url()
    );
    let tiers = format!("default_tier: internal\ntiers:\n  internal: {{ {limits} }}\n");
    Start::default().upstream(backend.address).config(&config).tiers(&tiers).run()
}

/// What many connections to all of these came to.
#[derive(Clone, Copy, Debug, Default)]
struct Hammered {
    passed: u64,
    refused: u64,
    took: Duration,
}

/// Hammers on all of them with so many connections each, as one caller, until `ends` says so of how
/// many have passed, or for `most`. Each connection sends no faster than one request in `pace`.
fn hammer(
    tollgates: &[&Tollgate],
    connections: usize,
    pace: Duration,
    most: Duration,
    ends: impl Fn(u64) -> bool,
) -> Hammered {
    let (passed, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let stop = Arc::new(AtomicBool::new(false));
    let (started, count) = (monotonic(), connections * tollgates.len());
    let threads: Vec<_> = (0..count)
        .map(|index| {
            let address = tollgates[index % tollgates.len()].data;
            let (passed, refused) = (Arc::clone(&passed), Arc::clone(&refused));
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut client = Client::connect(address);
                // Not all of them at the same moment.
                let mut next = started + pace.mul_f64(index as f64 / count as f64);
                while !stop.load(Relaxed) {
                    next += pace;
                    std::thread::sleep(next.saturating_duration_since(monotonic()));
                    match client.get("/").status {
                        200 => passed.fetch_add(1, Relaxed),
                        429 => refused.fetch_add(1, Relaxed),
                        other => panic!("{other}"),
                    };
                }
            })
        })
        .collect();
    while started.elapsed() < most && !ends(passed.load(Relaxed)) {
        std::thread::sleep(Duration::from_millis(5));
    }
    stop.store(true, Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let took = started.elapsed();
    Hammered { passed: passed.load(Relaxed), refused: refused.load(Relaxed), took }
}

/// Fails if any stretch of time held more than burst and rate allow, with what a busy machine may add
/// between the decision and the backend; or all of it more than the minute's limit.
fn assert_kept_by_clock(came: &[Instant], rate: f64, burst: f64, minute: usize) {
    assert!(came.len() <= minute, "{} of {minute}", came.len());
    const LATE: f64 = 0.5;
    for (first, start) in came.iter().enumerate().step_by(7) {
        for (last, end) in came.iter().enumerate().skip(first).step_by(7) {
            let most = burst + rate * (end.duration_since(*start).as_secs_f64() + LATE);
            assert!((last - first + 1) as f64 <= most, "{} of {most}", last - first + 1);
        }
    }
}

#[test]
fn two_processes_let_one_caller_pass_a_minutes_limit_and_not_one_request_more() {
    let Some(server) = RedisServer::spawn() else { return };
    let (backend, came) = noting();
    let limits = "per_second: 1000, burst: 2000, per_minute: 2500";
    let two = [(); 2].map(|()| start(&backend, &server, limits, "auto"));
    let hammered =
        hammer(&two.each_ref(), 4, Duration::from_millis(2), Duration::from_secs(30), |passed| {
            passed >= 2_500
        });
    // Leases that are over have gone back, and can be spent by whoever asks then.
    let more =
        hammer(&two.each_ref(), 2, Duration::from_millis(5), Duration::from_secs(2), |_| false);
    let came = came.lock().unwrap().clone();
    let leased: f64 =
        two.iter().map(|it| it.metric("tollgate_leases_total{result=\"granted\"}")).sum();
    let passed = hammered.passed + more.passed;
    println!("{hammered:?}, then {more:?}; {leased} leases");
    assert_eq!(came.len() as u64, passed);
    assert_kept_by_clock(&came, 1_000.0, 2_000.0, 2_500);
    assert!(leased >= 5.0, "they were leased for");
    let whole = hammered.took + more.took < Duration::from_secs(50);
    assert!(!whole || passed >= 2_495, "{passed} of 2500");
}

#[test]
fn a_bucket_is_kept_by_three_processes() {
    let Some(server) = RedisServer::spawn() else { return };
    let (backend, came) = noting();
    let limits = "per_second: 150, burst: 300";
    let three = [(); 3].map(|()| start(&backend, &server, limits, "auto"));
    let pace = Duration::from_millis(4);
    let hammered = hammer(&three.each_ref(), 2, pace, Duration::from_secs(5), |_| false);
    let came = came.lock().unwrap().clone();
    println!("{hammered:?}");
    assert!(hammered.refused > 0, "more was asked for than there was");
    assert_eq!(came.len() as u64, hammered.passed);
    let most = 300.0 + 150.0 * hammered.took.as_secs_f64();
    assert!(hammered.passed as f64 <= most, "{} of {most}", hammered.passed);
    assert_kept_by_clock(&came, 150.0, 300.0, usize::MAX);
}

#[test]
fn a_busy_caller_asks_redis_once_for_many_requests_and_off_means_each_time() {
    let Some(server) = RedisServer::spawn() else { return };
    let (backend, _) = noting();
    let limits = "per_second: 1000, burst: 2000, per_minute: 30000";
    for (leases, is_met) in
        [("auto", (|share| share <= 0.2) as fn(f64) -> bool), ("off", |share| share >= 1.0)]
    {
        let tollgate = start(&backend, &server, limits, leases);
        let before = calls(&server);
        let hammered =
            hammer(&[&tollgate], 4, Duration::from_millis(8), Duration::from_secs(4), |_| false);
        let share = (calls(&server) - before) as f64 / hammered.passed as f64;
        println!("leases: {leases}: {hammered:?}, {share:.3} calls a request");
        assert_eq!(hammered.refused, 0);
        assert!(is_met(share), "{leases}: {share}");
        let held = |name: &str| tollgate.metric(name);
        if leases == "off" {
            assert_eq!(held("tollgate_leases_total{result=\"granted\"}"), 0.0);
            continue;
        }
        wait_until("what is left has gone back", || {
            held("memory_objects_count{type=\"leases\"}") == 0.0
                && held("tollgate_lease_tokens_held") == 0.0
        });
        assert_eq!(held("tollgate_lease_tokens_total{outcome=\"lost\"}"), 0.0);
        let of_cache = held("tollgate_limiter_duration_seconds_count{backend=\"cache\"}");
        assert!(of_cache >= 0.5 * hammered.passed as f64, "{of_cache}");
        // What Redis has counted is what passed, now that all of the rest is back.
        let used = {
            let path = "/api/v1/identities/ip:127.0.0.1";
            let head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", tollgate.admin);
            let answer = Client::connect(tollgate.admin).send(head).answer().text();
            let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
            let limits = answer["limits"].as_array().unwrap().clone();
            limits.iter().find(|it| it["period"] == "minute").unwrap()["used"].as_u64().unwrap()
        };
        assert!(used <= hammered.passed && used >= hammered.passed * 9 / 10, "{used}");
        server.words("FLUSHALL");
    }
}

/// `tests/long.sh leases`.
#[test]
#[ignore = "a minute for each number of processes"]
fn curve() {
    let limits = "per_second: 1000, burst: 2000, per_minute: 30000";
    println!("INTERNAL, one caller, 20 s; requests a second over all processes:");
    println!("processes  offered  passed  refused  calls a request  most that may pass");
    for processes in [1, 2, 4, 8] {
        for offered in [400, 1_500] {
            let Some(server) = RedisServer::spawn() else { return };
            let (backend, came) = noting();
            let all: Vec<Tollgate> =
                (0..processes).map(|_| start(&backend, &server, limits, "auto")).collect();
            let connections = 8 / processes;
            let pace = Duration::from_secs_f64(8.0 / f64::from(offered));
            let before = calls(&server);
            let all: Vec<&Tollgate> = all.iter().collect();
            let hammered = hammer(&all, connections, pace, Duration::from_secs(20), |_| false);
            let share = (calls(&server) - before) as f64 / hammered.passed as f64;
            let most = 2_000.0 + 1_000.0 * hammered.took.as_secs_f64();
            println!(
                "{processes:9} {:8.0} {:7} {:8} {share:16.3} {:19.0}",
                (hammered.passed + hammered.refused) as f64 / hammered.took.as_secs_f64(),
                hammered.passed,
                hammered.refused,
                most.min(30_000.0)
            );
            assert_kept_by_clock(&came.lock().unwrap(), 1_000.0, 2_000.0, 30_000);
            assert!(hammered.passed as f64 <= most);
        }
    }
}
