//! The limiter and the store in memory: vectors, an oracle that keeps every timestamp, and the
//! promises that are made to users.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, as it should"
)]

#[path = "support/oracle.rs"]
mod oracle;
#[path = "support/vectors.rs"]
mod vectors;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use tollgate::limiter::check::{Limits, State, States, check, peek};
use tollgate::limiter::decision::{Decision, Verdict};
use tollgate::limiter::quota::{Bucket, LimitSet, Mode, Period};
use tollgate::limiter::refund::{Grant, refund};
use tollgate::limiter::time::{Micros, Timestamp};
use tollgate::policy::identity::Identity;
use tollgate::policy::plan::{Plan, Scope, TierId, TierSource};
use tollgate::store::memory::MemoryStore;

use oracle::Oracle;

const START_US: u64 = 1_767_225_600_000_000;
/// More than a check has room for without an allocation.
const KEYS: [&str; 5] = ["i", "e:one", "e:two", "e:three", "e:four"];

/// The states of one identity, with nothing around them.
#[derive(Clone, Default)]
struct Pure([State; KEYS.len()]);

impl States for Pure {
    fn state(&mut self, index: usize) -> &mut State {
        &mut self.0[index]
    }
}

/// The pure limiter as a store: states by identity and scope.
#[derive(Default)]
struct PureStore(HashMap<(Identity, u64), State>);

impl PureStore {
    fn check(&mut self, plan: &Plan<'_>, now: Timestamp) -> Decision {
        let scopes: Vec<Limits> = plan.scopes().map(|scope| scope.limits).collect();
        let keys: Vec<_> =
            plan.scopes().map(|scope| (plan.identity.clone(), scope.key_hash)).collect();
        let mut states = Pure::default();
        for (state, key) in states.0.iter_mut().zip(&keys) {
            *state = self.0.remove(key).unwrap_or_default();
        }
        let decision = check(&mut states, &scopes, plan.cost, now);
        self.0.extend(keys.into_iter().zip(states.0));
        decision
    }
}

fn limit_set(bucket: Option<(u32, u32)>, minute: Option<u32>, hour: Option<u32>) -> LimitSet {
    let some = |value| NonZeroU32::new(value).unwrap();
    LimitSet {
        second: bucket.map(|(rate, burst)| Bucket { rate: some(rate), burst: some(burst) }),
        minute: minute.map(some),
        hour: hour.map(some),
        ..LimitSet::default()
    }
}

fn free() -> LimitSet {
    limit_set(Some((5, 10)), Some(100), Some(1000))
}

fn enforced(set: LimitSet) -> Limits {
    Limits { set, mode: Mode::Enforce }
}

fn plan(identity: &str, scopes: &[Limits], cost: u32) -> Plan<'static> {
    let mut plan = Plan::new(Identity::User(identity.into()), TierId(0), TierSource::Default);
    plan.cost = cost;
    for (index, (limits, key)) in scopes.iter().zip(KEYS).enumerate() {
        plan.push(Scope { rule: None, key, key_hash: 77 + index as u64, limits: *limits });
    }
    plan
}

fn at(us: u64) -> Timestamp {
    Timestamp::from_micros(us)
}

// ---- vectors

#[test]
fn vectors_hold_for_the_pure_limiter() {
    let mut store = PureStore::default();
    vectors::run_all(&mut |plan, now| store.check(plan, now));
}

#[test]
fn vectors_hold_for_the_store_in_memory() {
    let store = MemoryStore::new(10_000);
    vectors::run_all(&mut |plan, now| store.check(plan, now));
}

// ---- properties

/// Small limits are met often; a large one now and then.
fn any_limit() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 1_u32..8, 4 => 8_u32..120, 1 => 1_000_u32..1_000_000_000]
}

fn any_set() -> impl Strategy<Value = LimitSet> {
    let bucket = prop_oneof![
        1 => Just(None),
        3 => (1_u32..50, 1_u32..30).prop_map(Some),
        1 => (any_limit(), any_limit()).prop_map(Some),
    ];
    let window = || prop::option::weighted(0.7, any_limit());
    let quota = || prop::option::weighted(0.2, any_limit());
    (bucket, window(), window(), quota(), quota()).prop_map(|(bucket, minute, hour, day, month)| {
        let some = |value| NonZeroU32::new(value).unwrap();
        let (day, month) = (day.map(some), month.map(some));
        LimitSet { day, month, ..limit_set(bucket, minute, hour) }
    })
}

fn any_limits() -> impl Strategy<Value = Limits> {
    let mode = prop_oneof![4 => Just(Mode::Enforce), 1 => Just(Mode::Shadow)];
    (any_set(), mode).prop_map(|(set, mode)| Limits { set, mode })
}

fn any_scopes() -> impl Strategy<Value = Vec<Limits>> {
    prop::collection::vec(any_limits(), 1..=KEYS.len())
}

/// Microseconds until the next request: bursts, paces, borders of sub-buckets, silence.
fn any_gap() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => Just(0_u64),
        4 => 1_u64..1_000,
        6 => 1_000_u64..2_000_000,
        3 => (0_u64..70).prop_map(|secs| secs * 1_000_000),
        2 => (0_u64..70).prop_map(|minutes| minutes * 60_000_000),
        2 => 2_000_000_u64..70_000_000,
        1 => 70_000_000_u64..5_000_000_000,
        1 => Just(86_400_000_000_u64 * 3),
    ]
}

/// A gap, or a step of the clock back.
fn any_step() -> impl Strategy<Value = i64> {
    let back = prop_oneof![0_i64..1_000, 0_i64..3_000_000, 0_i64..10_000_000_000];
    prop_oneof![12 => any_gap().prop_map(|gap| gap as i64), 1 => back.prop_map(|back| -back)]
}

fn any_cost() -> impl Strategy<Value = u32> {
    prop_oneof![6 => Just(1_u32), 2 => 1_u32..6, 1 => 1_u32..40, 1 => 1_u32..1_000_000_000]
}

/// Now and then one of those before.
fn any_pick() -> impl Strategy<Value = Option<prop::sample::Index>> {
    prop::option::weighted(0.4, any::<prop::sample::Index>())
}

fn any_start() -> impl Strategy<Value = u64> {
    // One in the minutes before a month ends: 28 February 2026, 23:50.
    let before_march = START_US + 59 * 86_400_000_000 - 600_000_000;
    prop_oneof![START_US..START_US + 4_000_000_000, before_march..before_march + 700_000_000]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_decision_equals_the_oracles(
        scopes in any_scopes(),
        start in any_start(),
        requests in prop::collection::vec((any_step(), any_cost()), 1..150),
    ) {
        let (mut states, mut oracle) = (Pure::default(), Oracle::new(&scopes));
        let mut now = start;
        for (step, cost) in requests {
            now = now.saturating_add_signed(step);
            let decision = check(&mut states, &scopes, cost, at(now));
            let expected = oracle.check(cost, now);
            oracle::assert_same(&decision, &expected);
        }
    }

    #[test]
    fn places_are_held_until_they_are_given_back(
        scopes in prop::collection::vec((any_limits(), prop::option::of(1_u32..6)), 1..4),
        start in any_start(),
        requests in prop::collection::vec((any_gap(), 1_u32..4, any_pick()), 1..150),
    ) {
        let with_places = |(limits, places): (Limits, Option<u32>)| {
            let concurrency = places.and_then(NonZeroU32::new);
            Limits { set: LimitSet { concurrency, ..limits.set }, ..limits }
        };
        let scopes: Vec<Limits> = scopes.into_iter().map(with_places).collect();
        let (mut states, mut oracle) = (Pure::default(), Oracle::new(&scopes));
        let store = MemoryStore::new(1_000);
        let mut open = Vec::new();
        let mut now = start;
        for (gap, cost, pick) in requests {
            now += gap;
            let plan = plan("one", &scopes, cost);
            let decision = check(&mut states, &scopes, cost, at(now));
            oracle::assert_same(&decision, &oracle.check(cost, now));
            prop_assert_eq!(&decision, &store.check(&plan, at(now)));
            open.push((Grant::new(&decision, scopes.len()), store.places(&plan, &decision)));
            if let Some(pick) = pick {
                let (grant, places) = open.swap_remove(pick.index(open.len()));
                for (index, limits) in scopes.iter().enumerate() {
                    if limits.set.concurrency.is_some() && grant.charge(index).is_some() {
                        states.0[index].release();
                        oracle.release(index);
                    }
                }
                places.iter().for_each(|places| store.release(places));
            }
            for (state, limits) in states.0.iter().zip(&scopes) {
                let places = limits.set.concurrency.map_or(0, NonZeroU32::get);
                prop_assert!(state.in_flight() <= places);
            }
        }
    }

    #[test]
    fn no_window_ever_holds_more_than_its_limit(
        set in any_set(),
        start in any_start(),
        requests in prop::collection::vec((any_gap(), any_cost()), 1..400),
    ) {
        let mut states = Pure::default();
        let mut admitted: Vec<(u64, u32)> = Vec::new();
        let mut now = start;
        for (gap, cost) in requests {
            now += gap;
            if check(&mut states, &[enforced(set)], cost, at(now)).verdict == Verdict::Allow {
                admitted.push((now, cost));
            }
        }
        oracle::assert_promises(&set, &admitted);
    }

    #[test]
    fn a_request_passes_when_its_wait_is_over_and_not_a_microsecond_before(
        scopes in any_scopes(),
        start in any_start(),
        requests in prop::collection::vec((any_step(), any_cost()), 1..80),
    ) {
        let mut states = Pure::default();
        let mut now = start;
        for (step, cost) in requests {
            now = now.saturating_add_signed(step);
            let before = states.clone();
            let decision = check(&mut states, &scopes, cost, at(now));
            let Some(shown) = decision.shown() else { continue };
            if decision.verdict == Verdict::Allow {
                prop_assert_eq!(decision.retry_after(), None);
                continue;
            }
            if shown.wait == Micros::NEVER {
                prop_assert_eq!(decision.retry_after(), None);
                let mut years_later = before.clone();
                let later = at(now + 100_000_000_000_000);
                prop_assert_eq!(check(&mut years_later, &scopes, cost, later).verdict, Verdict::Deny);
                continue;
            }
            let wait = shown.wait.as_micros();
            // As a caller reads it, who sees whole seconds only.
            let reset = shown.whole_at.as_secs_ceil();
            let retry_after = decision.retry_after().unwrap();
            prop_assert!(retry_after >= 1);
            prop_assert!(retry_after <= reset - now / 1_000_000);
            prop_assert!(retry_after * 1_000_000 >= wait && (retry_after - 1) * 1_000_000 < wait);
            let verdict = |offset| check(&mut states.clone(), &scopes, cost, at(now + offset)).verdict;
            prop_assert_eq!(verdict(wait), Verdict::Allow);
            prop_assert_eq!(verdict(wait - 1), Verdict::Deny);
        }
    }

    #[test]
    fn a_denial_and_a_peek_change_no_later_answer(
        // Other limits come with a reload, and their number stays.
        reloads in prop::collection::vec(prop::array::uniform5(any_limits()), 1..4),
        scopes in 1..=KEYS.len(),
        start in any_start(),
        requests in prop::collection::vec((any_step(), any_cost(), any_cost()), 1..80),
    ) {
        let (mut disturbed, mut quiet) = (Pure::default(), Pure::default());
        let mut now = start;
        for (index, (step, cost, other_cost)) in requests.into_iter().enumerate() {
            let other_scopes = &reloads[index / 5 % reloads.len()][..scopes];
            let scopes = &reloads[(index + 2) / 5 % reloads.len()][..scopes];
            // In between, the one is asked for what it refuses, and what it would say: then, and
            // in years to come. Not in the past: the states would have to follow.
            for offset in [0, step.unsigned_abs() / 3, step.unsigned_abs() * 1_000] {
                let then = at(now + offset);
                let peeked = peek(&mut disturbed, other_scopes, other_cost, then);
                let mut tried = disturbed.clone();
                let decision = check(&mut tried, other_scopes, other_cost, then);
                prop_assert_eq!(peeked.verdict, decision.verdict);
                let waits = |it: &Decision| it.statuses().iter().map(|it| it.wait).collect::<Vec<_>>();
                prop_assert_eq!(waits(&peeked), waits(&decision));
                if decision.verdict == Verdict::Deny {
                    prop_assert_eq!(&peeked, &decision);
                    disturbed = tried;
                }
            }
            now = now.saturating_add_signed(step);
            let decision = check(&mut disturbed, scopes, cost, at(now));
            prop_assert_eq!(decision, check(&mut quiet, scopes, cost, at(now)));
        }
    }

    #[test]
    fn after_refunds_every_decision_still_equals_the_oracles(
        scopes in any_scopes(),
        start in any_start(),
        requests in prop::collection::vec(
            ((any_gap(), 0_u64..=1_000_000), any_cost(), any_pick()), 1..150),
    ) {
        let (mut states, mut oracle) = (Pure::default(), Oracle::new(&scopes));
        let mut open: Vec<(usize, u32, Grant)> = Vec::new();
        let mut now = start;
        for (number, ((gap, behind), cost, pick)) in requests.into_iter().enumerate() {
            now += gap;
            let read = if gap % 2 == 0 { now } else { now - behind };
            let decision = check(&mut states, &scopes, cost, at(read));
            oracle::assert_same(&decision, &oracle.check(cost, read));
            open.push((number, cost, Grant::new(&decision, scopes.len())));
            if let Some(pick) = pick {
                let (number, cost, grant) = open.swap_remove(pick.index(open.len()));
                refund(&mut states, &scopes, cost, &grant);
                oracle.refund(number);
            }
        }
    }

    #[test]
    fn what_was_not_refunded_never_exceeds_a_limit(
        set in any_set(),
        start in any_start(),
        requests in prop::collection::vec((any_gap(), any_cost(), any_pick()), 1..300),
    ) {
        let (scopes, mut states) = ([enforced(set)], Pure::default());
        let mut admitted: Vec<(u64, u32, Grant)> = Vec::new();
        let mut now = start;
        for (gap, cost, pick) in requests {
            now += gap;
            let decision = check(&mut states, &scopes, cost, at(now));
            if decision.verdict == Verdict::Allow {
                admitted.push((now, cost, Grant::new(&decision, 1)));
            }
            if let Some(pick) = pick && !admitted.is_empty() {
                let (_, cost, grant) = admitted.remove(pick.index(admitted.len()));
                refund(&mut states, &scopes, cost, &grant);
            }
        }
        let kept: Vec<_> = admitted.iter().map(|(at, cost, _)| (*at, *cost)).collect();
        oracle::assert_promises(&set, &kept);
    }

    #[test]
    fn a_refund_before_anything_else_came_leaves_no_trace(
        scopes in any_scopes(),
        start in any_start(),
        requests in prop::collection::vec((any_gap(), any_cost(), any_cost(), any_gap()), 1..80),
    ) {
        let (mut disturbed, mut quiet) = (Pure::default(), Pure::default());
        let mut now = start;
        for (gap, cost, other_cost, other_gap) in requests {
            now += other_gap;
            let decision = check(&mut disturbed, &scopes, other_cost, at(now));
            refund(&mut disturbed, &scopes, other_cost, &Grant::new(&decision, scopes.len()));
            now += gap;
            let decision = check(&mut disturbed, &scopes, cost, at(now));
            prop_assert_eq!(decision, check(&mut quiet, &scopes, cost, at(now)));
        }
    }

    #[test]
    fn the_order_of_scopes_changes_no_verdict(
        scopes in any_scopes(),
        start in any_start(),
        requests in prop::collection::vec((any_step(), any_cost()), 1..80),
    ) {
        let reversed: Vec<Limits> = scopes.iter().rev().copied().collect();
        let (mut states, mut others) = (Pure::default(), Pure::default());
        let mut now = start;
        for (step, cost) in requests {
            now = now.saturating_add_signed(step);
            let decision = check(&mut states, &scopes, cost, at(now));
            let other = check(&mut others, &reversed, cost, at(now));
            prop_assert_eq!(decision.verdict, other.verdict);
            prop_assert_eq!(decision.retry_after(), other.retry_after());
            let mirrored = |scope: u8| (scopes.len() - 1) as u8 - scope;
            for status in decision.statuses() {
                let same = other.statuses().iter().find(|it| {
                    (it.scope, it.period) == (mirrored(status.scope), status.period)
                });
                let mut same = *same.unwrap();
                same.scope = status.scope;
                prop_assert_eq!(*status, same);
            }
        }
    }

    #[test]
    fn what_has_expired_means_the_same_as_nothing(
        set in any_set(),
        start in any_start(),
        requests in prop::collection::vec((any_gap(), any_cost()), 1..60),
        later in any_gap(),
    ) {
        let (scopes, mut states) = ([enforced(set)], Pure::default());
        let mut now = start;
        for (gap, cost) in requests {
            now += gap;
            check(&mut states, &scopes, cost, at(now));
        }
        let end = at(states.0[0].expires_at(&set).as_micros().max(now) + later);
        let fresh = peek(&mut Pure::default(), &scopes, 1, end);
        prop_assert_eq!(peek(&mut states.clone(), &scopes, 1, end), fresh.clone());
        states.0[0].trim(end);
        prop_assert_eq!(peek(&mut states, &scopes, 1, end), fresh);
    }

    #[test]
    fn the_store_in_memory_decides_as_the_pure_limiter(
        tier in any_set(),
        rules in any_scopes(),
        start in any_start(),
        // A reading of the clock may be up to a second old when it comes to the store.
        requests in prop::collection::vec(
            ((any_gap(), 0_u64..=1_000_000), any_cost(), 0_usize..40, any::<bool>()), 1..300),
    ) {
        let (mut pure, store) = (PureStore::default(), MemoryStore::new(8192));
        let with_rules: Vec<Limits> =
            std::iter::once(enforced(tier)).chain(rules.into_iter().take(2)).collect();
        let mut now = start;
        for ((gap, behind), cost, who, meets_rules) in requests {
            now += gap;
            let read = at(if gap % 2 == 0 { now } else { now - behind });
            let scopes = if meets_rules { &with_rules[..] } else { &with_rules[..1] };
            let plan = plan(&format!("{who}"), scopes, cost);
            let peeked = store.peek(&plan, read);
            let decision = store.check(&plan, read);
            prop_assert_eq!(peeked.verdict, decision.verdict);
            prop_assert_eq!(decision, pure.check(&plan, read));
            if gap % 3 == 0 {
                store.sweep(at(now), who % store.shards());
            }
        }
        prop_assert_eq!(store.evictions(), 0);
    }
}

// ---- refunds

#[test]
fn a_refund_is_worth_less_the_longer_others_earned_meanwhile() {
    let scopes = [enforced(limit_set(Some((2, 10)), None, None))];
    let remaining = |later_us: u64| {
        let mut states = Pure::default();
        let first = check(&mut states, &scopes, 5, at(START_US));
        check(&mut states, &scopes, 1, at(START_US + later_us));
        refund(&mut states, &scopes, 5, &Grant::new(&first, 1));
        peek(&mut states, &scopes, 1, at(START_US + later_us)).statuses()[0].remaining
    };
    // Without the first, one of ten is spent, whenever the second comes.
    assert_eq!([0, 1_000_000, 2_000_000, 9_000_000].map(remaining), [9, 9, 9, 9]);
    // A bucket that was full between the two earned nothing then; that is not given back.
    let mut states = Pure::default();
    let first = check(&mut states, &scopes, 1, at(START_US));
    check(&mut states, &scopes, 10, at(START_US + 500_000));
    refund(&mut states, &scopes, 1, &Grant::new(&first, 1));
    assert_eq!(peek(&mut states, &scopes, 1, at(START_US + 500_000)).verdict, Verdict::Deny);
}

#[test]
fn a_state_whose_clock_was_set_back_gives_nothing_back() {
    let scopes = [enforced(free())];
    let mut states = Pure::default();
    let first = check(&mut states, &scopes, 5, at(START_US));
    let back = at(START_US - 5_000_000);
    check(&mut states, &scopes, 1, back);
    let before = peek(&mut states, &scopes, 1, back);
    refund(&mut states, &scopes, 5, &Grant::new(&first, 1));
    assert_eq!(peek(&mut states, &scopes, 1, back), before);
}

#[test]
fn a_shadow_without_room_was_not_charged_and_gets_nothing_back() {
    let set = limit_set(None, Some(2), Some(2));
    let scopes = [enforced(free()), Limits { set, mode: Mode::Shadow }];
    let mut states = Pure::default();
    let spent = [2, 2].map(|cost| check(&mut states, &scopes, cost, at(START_US)));
    refund(&mut states, &scopes, 2, &Grant::new(&spent[1], 2));
    let left: Vec<_> = peek(&mut states, &scopes, 1, at(START_US))
        .statuses()
        .iter()
        .map(|status| status.remaining)
        .collect();
    assert_eq!(left, [8, 98, 998, 0, 0]);
    refund(&mut states, &scopes, 2, &Grant::new(&spent[0], 2));
    let whole = peek(&mut Pure::default(), &scopes, 1, at(START_US));
    assert_eq!(peek(&mut states, &scopes, 1, at(START_US)), whole);
}

#[test]
fn a_denial_has_nothing_to_give_back() {
    let scopes = [enforced(limit_set(None, Some(1), None))];
    let mut states = Pure::default();
    check(&mut states, &scopes, 1, at(START_US));
    let denied = check(&mut states, &scopes, 1, at(START_US));
    refund(&mut states, &scopes, 1, &Grant::new(&denied, 1));
    assert_eq!(check(&mut states, &scopes, 1, at(START_US)).verdict, Verdict::Deny);
}

#[test]
fn the_store_in_memory_gives_back_what_it_still_holds() {
    let store = MemoryStore::new(1_000);
    let plan = plan("one", &[enforced(limit_set(Some((1, 3)), Some(3), None)); 2], 1);
    for _ in 0..10 {
        let decision = store.check(&plan, at(START_US));
        assert_eq!(decision.verdict, Verdict::Allow);
        let after = store.refund(&plan, &Grant::new(&decision, 2), at(START_US));
        assert_eq!(after.statuses().iter().map(|it| it.remaining).min(), Some(3));
    }
    let last = store.check(&plan, at(START_US));
    let later = at(START_US + 100_000_000);
    (0..store.shards()).for_each(|shard| _ = store.sweep(later, shard));
    assert!(store.is_empty());
    store.refund(&plan, &Grant::new(&last, 2), later);
    assert!(store.is_empty(), "a refund makes no record");
}

// ---- the store in memory

#[test]
fn concurrent_requests_against_a_burst_of_ten_pass_ten_times() {
    const THREADS: usize = 4;
    let store = MemoryStore::new(1000);
    let (passed, start) = (AtomicUsize::new(0), Barrier::new(THREADS));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let plan = plan("one", &[enforced(free())], 1);
                start.wait();
                for _ in 0..1000 {
                    if store.check(&plan, at(START_US)).verdict == Verdict::Allow {
                        passed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(passed.into_inner(), 10);
}

#[test]
fn readings_of_the_clock_in_the_wrong_order_age_nothing() {
    let store = MemoryStore::new(1000);
    let plan = plan("one", &[enforced(limit_set(None, Some(100), None))], 1);
    // To and fro over the borders of seconds, for less than a minute.
    let allowed = |step: u64| {
        let now = at(START_US + step * 5_800 + (step * 7919) % 900_000);
        store.check(&plan, now).verdict == Verdict::Allow
    };
    assert_eq!((0..10_000).filter(|step| allowed(*step)).count(), 100);
}

#[test]
fn identities_and_scopes_do_not_meet() {
    let store = MemoryStore::new(100_000);
    let set = limit_set(None, Some(1), None);
    for who in 0..20_000 {
        let plan = plan(&format!("user {who}"), &[enforced(set); 3], 1);
        assert_eq!(store.check(&plan, at(START_US)).verdict, Verdict::Allow);
        assert_eq!(store.check(&plan, at(START_US)).verdict, Verdict::Deny);
    }
    assert_eq!((store.len(), store.evictions()), (60_000, 0));
}

#[test]
fn what_nothing_was_charged_to_takes_no_place() {
    let store = MemoryStore::new(1000);
    let too_dear = plan("one", &[enforced(free())], 11);
    assert_eq!(store.check(&too_dear, at(START_US)).verdict, Verdict::Deny);
    store.peek(&plan("two", &[enforced(free())], 1), at(START_US));
    assert!(store.is_empty());
}

#[test]
fn a_sweep_forgets_what_is_whole_and_nothing_else() {
    let store = MemoryStore::new(10_000);
    let scopes = [enforced(limit_set(None, Some(1), None))];
    for who in 0..5_000 {
        let now = at(START_US + if who % 2 == 0 { 0 } else { 30_000_000 });
        store.check(&plan(&format!("{who}"), &scopes, 1), now);
    }
    let sweep = |secs: u64| -> usize {
        (0..store.shards()).map(|shard| store.sweep(at(START_US + secs * 1_000_000), shard)).sum()
    };
    assert_eq!(sweep(60), 0);
    assert_eq!(sweep(64), 2_500);
    for who in 0..5_000 {
        let decision = store.peek(&plan(&format!("{who}"), &scopes, 1), at(START_US + 64_000_000));
        assert_eq!(decision.verdict == Verdict::Allow, who % 2 == 0, "{who}");
    }
    assert_eq!(sweep(94), 2_500);
    assert!(store.is_empty());
    assert_eq!(store.sweep(at(START_US), store.shards()), 0, "no such shard");
}

#[test]
fn insertions_alone_keep_the_store_from_growing() {
    let store = MemoryStore::new(100_000);
    let scopes = [enforced(limit_set(Some((5, 10)), None, None))];
    for who in 0..50_000_u64 {
        // A thousand new identities a second, each whole again after a fifth of one.
        store.check(&plan(&format!("{who}"), &scopes, 1), at(START_US + who * 1_000));
    }
    assert!(store.len() < 15_000, "{} are held", store.len());
    assert_eq!(store.evictions(), 0);
}

#[test]
fn a_full_store_forgets_the_soonest_to_be_whole_and_spares_the_denied() {
    for capacity in [1, 7, 64, 1_000, 5_000] {
        let store = MemoryStore::new(capacity);
        let now = at(START_US);
        let attacker = plan("attacker", &[enforced(free())], 1);
        while store.check(&attacker, now).verdict == Verdict::Allow {}
        for who in 0..4 * capacity {
            store.check(&plan(&format!("{who}"), &[enforced(free())], 1), now);
        }
        assert_eq!(store.len(), capacity, "full, and no fuller");
        assert_eq!(store.evictions() as usize, 4 * capacity + 1 - capacity);
        if capacity > 1 {
            let decision = store.check(&attacker, now);
            assert_eq!(decision.verdict, Verdict::Deny, "evicted from {capacity}");
        }
    }
}

#[test]
fn a_full_store_lets_the_expired_go_first() {
    let store = MemoryStore::new(1_000);
    let short = [enforced(limit_set(None, Some(5), None))];
    let long = [enforced(limit_set(None, None, Some(5)))];
    for who in 0..500 {
        store.check(&plan(&format!("long {who}"), &long, 1), at(START_US));
        store.check(&plan(&format!("short {who}"), &short, 1), at(START_US));
    }
    let later = at(START_US + 100_000_000);
    for who in 0..400 {
        store.check(&plan(&format!("new {who}"), &long, 1), later);
    }
    assert_eq!(store.evictions(), 0);
    for who in 0..500 {
        let decision = store.peek(&plan(&format!("long {who}"), &long, 1), later);
        assert_eq!(decision.statuses()[0].remaining, 4);
    }
}

#[test]
fn a_decision_shows_every_limit_in_the_plans_order() {
    let store = MemoryStore::new(10);
    let decision = store.check(&plan("one", &[enforced(free()); 2], 1), at(START_US));
    let order: Vec<_> = decision.statuses().iter().map(|it| (it.scope, it.period)).collect();
    let periods = |scope| Period::SLIDING.map(|period| (scope, period));
    assert_eq!(order, [periods(0), periods(1)].concat());
}
