//! The law of the breaker, case by case, and against an oracle.

use std::time::Duration;

use proptest::prelude::*;

use super::super::breaker::{FAILURES_IN_A_ROW, UPSTREAM_PAUSES};
use super::*;

/// Adds nothing to a pause of traffic's, whose jitter goes both ways.
const MIDDLE: f64 = 0.5;
const LEASE: Duration = Duration::from_secs(30);

fn after(start: Instant, millis: u64) -> Instant {
    start + Duration::from_millis(millis)
}

fn steady(start: Instant) -> Arc<SharedBreaker> {
    SharedBreaker::new(BreakerSettings::STEADY, start)
}

fn traffic(start: Instant) -> Arc<SharedBreaker> {
    SharedBreaker::new(BreakerSettings::probed_by_calls(LEASE), start)
}

fn opened(breaker: Arc<SharedBreaker>, start: Instant, jitter: f64) -> Arc<SharedBreaker> {
    for _ in 0..FAILURES_IN_A_ROW {
        breaker.record(Outcome::Bad, start, jitter);
    }
    assert_eq!(breaker.state(), BreakerState::Open);
    breaker
}

#[test]
fn five_failures_in_a_row_open_it_and_a_success_starts_the_count_again() {
    let start = crate::clock::monotonic();
    let breaker = steady(start);
    for _ in 0..4 {
        assert_eq!(breaker.record(Outcome::Bad, start, 0.0), None);
    }
    assert_eq!(breaker.record(Outcome::Good, start, 0.0), None);
    for _ in 0..4 {
        assert_eq!(breaker.record(Outcome::Bad, start, 0.0), None);
    }
    assert!(breaker.is_closed());
    let fifth = breaker.record(Outcome::Bad, after(start, 5), 0.0);
    assert_eq!(fifth, Some(BreakerState::Open));
    assert_eq!(breaker.opened_at(), Some(after(start, 5)));
    assert!(!breaker.is_closed());
    assert_eq!(breaker.transitions(BreakerState::Open), 1);
}

#[test]
fn half_of_twenty_calls_of_a_window_open_it() {
    let start = crate::clock::monotonic();
    for (breaker, step) in [(steady(start), 1), (traffic(start), 400)] {
        for call in 0..9 {
            let at = after(start, call * step);
            assert_eq!(breaker.record(Outcome::Good, at, 0.0), None);
            assert_eq!(breaker.record(Outcome::Bad, at, 0.0), None);
        }
        let at = after(start, 9 * step);
        assert_eq!(breaker.record(Outcome::Good, at, 0.0), None);
        assert_eq!(breaker.record(Outcome::Bad, at, 0.0), Some(BreakerState::Open));
    }
}

#[test]
fn what_went_well_before_counts_against_a_few_failures() {
    let start = crate::clock::monotonic();
    let breaker = traffic(start);
    for call in 0..1_000 {
        breaker.record(Outcome::Good, after(start, call * 5), 0.0);
    }
    for _ in 0..15 {
        for outcome in [Outcome::Bad, Outcome::Bad, Outcome::Good] {
            assert_eq!(breaker.record(outcome, after(start, 5_000), 0.0), None);
        }
    }
}

#[test]
fn failures_of_another_window_do_not_count_together() {
    let start = crate::clock::monotonic();
    let breaker = steady(start);
    for call in 0..60_u64 {
        // Every other call fails, but never twenty in a second.
        let outcome = if call % 2 == 0 { Outcome::Bad } else { Outcome::Good };
        assert_eq!(breaker.record(outcome, after(start, call * 60), 0.0), None, "call {call}");
    }
}

#[test]
fn what_began_before_it_opened_changes_nothing() {
    let start = crate::clock::monotonic();
    let breaker = traffic(start);
    let ticket = breaker.ticket().unwrap();
    opened(Arc::clone(&breaker), start, MIDDLE);
    assert_eq!(breaker.report(ticket, Outcome::Bad, after(start, 1), || MIDDLE), None);
    assert_eq!(breaker.opened_at(), Some(start));
    for _ in 0..3 {
        let probe = breaker.try_probe(after(start, 5_000), MIDDLE).unwrap();
        probe.end(Outcome::Good, after(start, 5_000), MIDDLE);
    }
    assert!(breaker.is_closed());
    // A minute's worth of calls that time out only now.
    for _ in 0..100 {
        assert_eq!(breaker.report(ticket, Outcome::Bad, after(start, 5_001), || MIDDLE), None);
    }
    assert!(breaker.is_closed());
}

#[test]
fn what_opened_it_does_not_open_it_again() {
    let start = crate::clock::monotonic();
    let breaker = traffic(start);
    for _ in 0..30 {
        breaker.record(Outcome::Bad, start, MIDDLE);
    }
    for _ in 0..3 {
        breaker.try_probe(after(start, 5_000), MIDDLE).unwrap().end(
            Outcome::Good,
            after(start, 5_000),
            MIDDLE,
        );
    }
    for _ in 0..4 {
        assert_eq!(breaker.record(Outcome::Bad, after(start, 5_001), MIDDLE), None);
    }
}

#[test]
fn one_probe_at_a_time_and_three_good_ones_close_it() {
    let start = crate::clock::monotonic();
    let breaker = opened(steady(start), start, 0.0);
    let ended = |probe: Probe, at| probe.end(Outcome::Good, after(start, at), 0.0);
    assert!(breaker.try_probe(after(start, 249), 0.0).is_none());
    let probe = breaker.try_probe(after(start, 250), 0.0).unwrap();
    assert!(breaker.try_probe(after(start, 900), 0.0).is_none(), "one is running");
    assert_eq!(ended(probe, 260), Some(BreakerState::HalfOpen));
    assert!(!breaker.is_closed(), "requests still go without");

    let probe = breaker.try_probe(after(start, 500), 0.0).unwrap();
    assert_eq!(ended(probe, 500), None);
    assert!(breaker.try_probe(after(start, 501), 0.0).is_none(), "not due yet");
    let probe = breaker.try_probe(after(start, 750), 0.0).unwrap();
    assert_eq!(ended(probe, 750), Some(BreakerState::Closed));
    assert!(breaker.is_closed());
    assert_eq!(breaker.opened_at(), None);
    assert!(breaker.try_probe(after(start, 2_000), 0.0).is_none());
}

#[test]
fn a_bad_probe_starts_over() {
    let start = crate::clock::monotonic();
    let breaker = opened(steady(start), start, 0.0);
    let probe = |at, outcome| {
        let probe = breaker.try_probe(after(start, at), 0.0).unwrap();
        probe.end(outcome, after(start, at), 0.0)
    };
    assert_eq!(probe(250, Outcome::Bad), None);
    assert_eq!(probe(500, Outcome::Good), Some(BreakerState::HalfOpen));
    assert_eq!(probe(750, Outcome::Bad), Some(BreakerState::Open));
    assert_eq!(probe(1_000, Outcome::Good), Some(BreakerState::HalfOpen));
    assert_eq!(probe(1_250, Outcome::Good), None);
    assert_eq!(probe(1_500, Outcome::Good), Some(BreakerState::Closed));
}

#[test]
fn a_dropped_probe_makes_room_for_the_next_and_counts_neither_way() {
    let start = crate::clock::monotonic();
    let breaker = opened(steady(start), start, 0.0);
    let probe = |at| breaker.try_probe(after(start, at), 0.0);
    let good = |at| probe(at).unwrap().end(Outcome::Good, after(start, at), 0.0);
    assert_eq!(good(250), Some(BreakerState::HalfOpen));
    drop(probe(500).unwrap());
    assert_eq!(breaker.state(), BreakerState::HalfOpen);
    assert!(probe(501).is_none(), "the interval holds all the same");
    assert_eq!(good(750), None);
    assert_eq!(good(1_000), Some(BreakerState::Closed));
}

#[test]
fn the_calls_own_probes_need_no_gap() {
    let start = crate::clock::monotonic();
    let breaker = opened(traffic(start), start, MIDDLE);
    assert_eq!(breaker.state_at(after(start, 4_999)), BreakerState::Open);
    assert_eq!(breaker.state_at(after(start, 5_000)), BreakerState::HalfOpen);
    drop(breaker.try_probe(after(start, 5_000), MIDDLE).unwrap());
    let probe = breaker.try_probe(after(start, 5_000), MIDDLE).unwrap();
    assert_eq!(breaker.retry_after(after(start, 5_000)), 1, "one is running");
    assert_eq!(probe.end(Outcome::Bad, after(start, 5_000), MIDDLE), Some(BreakerState::Open));
}

#[test]
fn pauses_double_up_to_a_minute_and_jitter_is_a_fifth_either_way() {
    let start = crate::clock::monotonic();
    let (first, longest) = UPSTREAM_PAUSES;
    for (jitter, share) in [(0.0, 0.8), (MIDDLE, 1.0), (1.0, 1.2)] {
        let breaker = traffic(start);
        for _ in 0..FAILURES_IN_A_ROW {
            breaker.record(Outcome::Bad, start, jitter);
        }
        let mut at = start;
        for doubled in [1, 2, 4, 8, 12, 12] {
            let pause = (first * doubled).min(longest).mul_f64(share);
            let early = at + pause - Duration::from_millis(1);
            assert!(breaker.try_probe(early, jitter).is_none());
            assert_eq!(breaker.retry_after(at), pause.as_secs_f64().ceil() as u32);
            assert_eq!(breaker.retry_after(early), 1);
            at += pause;
            breaker.try_probe(at, jitter).unwrap().end(Outcome::Bad, at, jitter);
        }
    }
}

#[test]
fn who_fails_again_soon_after_it_closed_waits_longer() {
    let start = crate::clock::monotonic();
    let breaker = opened(traffic(start), start, MIDDLE);
    let close = |at| {
        for _ in 0..3 {
            breaker.try_probe(at, MIDDLE).unwrap().end(Outcome::Good, at, MIDDLE);
        }
        assert!(breaker.is_closed());
    };
    let open = |at| (0..5).filter_map(|_| breaker.record(Outcome::Bad, at, MIDDLE)).count();
    close(after(start, 5_000));
    assert_eq!(open(after(start, 6_000)), 1);
    assert_eq!(breaker.retry_after(after(start, 6_000)), 10);
    close(after(start, 16_000));
    assert_eq!(open(after(start, 80_000)), 1);
    assert_eq!(breaker.retry_after(after(start, 80_000)), 5, "it was well for a minute");
}

#[test]
fn a_probe_of_which_nothing_is_heard_loses_its_place_and_counts_all_the_same() {
    let start = crate::clock::monotonic();
    let breaker = opened(traffic(start), start, MIDDLE);
    let lost = breaker.try_probe(after(start, 5_000), MIDDLE).unwrap();
    assert!(breaker.try_probe(after(start, 34_999), MIDDLE).is_none());
    let other = breaker.try_probe(after(start, 35_000), MIDDLE).unwrap();
    let changed = lost.end(Outcome::Bad, after(start, 35_001), MIDDLE);
    assert_eq!(changed, Some(BreakerState::Open));
    // The other one runs on, began before that, and says nothing any more.
    assert!(breaker.try_probe(after(start, 45_001), MIDDLE).is_none());
    assert_eq!(other.end(Outcome::Good, after(start, 45_002), MIDDLE), None);
    let late = breaker.try_probe(after(start, 45_003), MIDDLE).unwrap();
    let next = breaker.try_probe(after(start, 75_003), MIDDLE).unwrap();
    for probe in [late, next] {
        assert_eq!(probe.end(Outcome::Good, after(start, 75_004), MIDDLE), None);
    }
    let third = breaker.try_probe(after(start, 75_005), MIDDLE).unwrap();
    let changed = third.end(Outcome::Good, after(start, 75_006), MIDDLE);
    assert_eq!(changed, Some(BreakerState::Closed), "an upstream that is slow is well");
}

#[test]
fn checks_open_and_close_it() {
    let start = crate::clock::monotonic();
    let (interval, timeout) = (Duration::from_secs(2), Duration::from_secs(1));
    let breaker =
        SharedBreaker::new(BreakerSettings::probed_by_checks(interval, timeout, 2), start);
    assert!(breaker.probe_now(start, MIDDLE).is_none());
    assert_eq!(breaker.open(start, MIDDLE), Some(BreakerState::Open));
    assert_eq!(breaker.open(start, MIDDLE), None);
    let check = |at, outcome| {
        breaker.probe_now(after(start, at), MIDDLE).unwrap().end(outcome, after(start, at), MIDDLE)
    };
    assert_eq!(check(1, Outcome::Bad), None);
    assert_eq!(check(2, Outcome::Good), Some(BreakerState::HalfOpen));
    assert_eq!(check(3, Outcome::Bad), Some(BreakerState::Open));
    assert_eq!(breaker.retry_after(after(start, 3)), 2);
    assert_eq!(check(4, Outcome::Good), Some(BreakerState::HalfOpen));
    assert_eq!(check(5, Outcome::Good), Some(BreakerState::Closed));
}

#[test]
fn many_threads_ask_a_half_open_breaker_and_one_is_let_through() {
    let start = crate::clock::monotonic();
    for round in 0..50 {
        let breaker = opened(traffic(start), start, MIDDLE);
        let barrier = std::sync::Barrier::new(8);
        let probes: Vec<Option<Probe>> = std::thread::scope(|scope| {
            let ask = || {
                barrier.wait();
                breaker.try_probe(after(start, 5_000), MIDDLE)
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(probes.iter().flatten().count(), 1, "round {round}");
    }
}

/// What may happen to a breaker.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A call begins, if it is let.
    Ask,
    /// A call or probe that is under way ends.
    End { which: usize, outcome: Option<Outcome> },
    /// Time passes.
    Wait { millis: u64 },
}

fn event() -> impl Strategy<Value = Event> {
    let outcome = prop_oneof![
        3 => Just(Some(Outcome::Bad)),
        2 => Just(Some(Outcome::Good)),
        1 => Just(None),
    ];
    prop_oneof![
        4 => Just(Event::Ask),
        4 => (0..8_usize, outcome).prop_map(|(which, outcome)| Event::End { which, outcome }),
        1 => prop_oneof![0..400_u64, 4_000..12_000_u64, 25_000..90_000_u64]
            .prop_map(|millis| Event::Wait { millis }),
    ]
}

enum UnderWay {
    Call(Ticket),
    Probe(Probe, Instant),
}

/// The law, written down once more: everything is kept, and added up when it is asked for.
struct Oracle {
    state: BreakerState,
    /// Since it closed: the slot that each call ended in, and how.
    ended: Vec<(u32, Outcome)>,
    until: Instant,
    pauses: u32,
    closed_at: Option<Instant>,
    goods: u32,
    generation: u32,
    /// Who has the place of the probe, and until when.
    holder: Option<(usize, Instant)>,
}

impl Oracle {
    fn refresh(&mut self, now: Instant) {
        if self.state == BreakerState::Open && now >= self.until {
            self.state = BreakerState::HalfOpen;
        }
    }

    fn open(&mut self, now: Instant) {
        let seconds = (5_u64 << self.pauses.min(10)).min(60);
        (self.state, self.goods) = (BreakerState::Open, 0);
        self.until = now + Duration::from_secs(seconds);
        self.generation += 1;
    }

    fn call_ended(&mut self, outcome: Outcome, slot: u32, now: Instant) {
        self.ended.push((slot, outcome));
        let recent: Vec<Outcome> =
            self.ended.iter().filter(|(at, _)| at + 10 > slot).map(|(_, it)| *it).collect();
        let bad = recent.iter().filter(|it| **it == Outcome::Bad).count();
        let row = self.ended.iter().rev().take_while(|(_, it)| *it == Outcome::Bad).count();
        if outcome == Outcome::Bad && (row >= 5 || recent.len() >= 20 && bad * 2 >= recent.len()) {
            let is_soon = |at| now - at < Duration::from_secs(60);
            self.pauses = if self.closed_at.is_some_and(is_soon) { self.pauses } else { 0 };
            self.open(now);
        }
    }

    fn probe_ended(&mut self, outcome: Outcome, now: Instant) {
        if outcome == Outcome::Bad {
            self.pauses += 1;
            return self.open(now);
        }
        self.goods += 1;
        if self.goods == 3 {
            self.state = BreakerState::Closed;
            self.pauses += 1;
            self.goods = 0;
            // What opened it is not to open it again; what went well before that still counts.
            self.ended.retain(|(_, outcome)| *outcome == Outcome::Good);
            self.closed_at = Some(now);
            self.generation += 1;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever happens in whatever order: the breaker is where the law says, never more than one
    /// call is let through while it is not closed, and from everywhere there is a way back.
    #[test]
    fn it_follows_the_law_and_every_state_can_be_left(
        events in prop::collection::vec(event(), 0..300)
    ) {
        let start = crate::clock::monotonic();
        let breaker = traffic(start);
        let mut now = start;
        let mut under_way: Vec<(usize, u32, UnderWay)> = Vec::new();
        let mut oracle = Oracle {
            state: BreakerState::Closed,
            ended: Vec::new(),
            until: start,
            pauses: 0,
            closed_at: None,
            goods: 0,
            generation: 0,
            holder: None,
        };
        for (number, event) in events.into_iter().enumerate() {
            oracle.refresh(now);
            prop_assert_eq!(breaker.state_at(now), oracle.state);
            match event {
                Event::Wait { millis } => now += Duration::from_millis(millis),
                Event::Ask => {
                    let is_held = oracle.holder.is_some_and(|(_, until)| now < until);
                    let may_probe = oracle.state == BreakerState::HalfOpen && !is_held;
                    let ticket = breaker.ticket();
                    let probe = breaker.try_probe(now, MIDDLE);
                    prop_assert_eq!(ticket.is_some(), oracle.state == BreakerState::Closed);
                    prop_assert_eq!(probe.is_some(), may_probe);
                    if let Some(probe) = probe {
                        oracle.holder = Some((number, now + LEASE));
                        let until = now + LEASE;
                        under_way.push((number, oracle.generation, UnderWay::Probe(probe, until)));
                    } else if let Some(ticket) = ticket {
                        under_way.push((number, oracle.generation, UnderWay::Call(ticket)));
                    }
                }
                Event::End { which, outcome } if !under_way.is_empty() => {
                    let (id, generation, it) = under_way.remove(which % under_way.len());
                    match (it, outcome) {
                        (UnderWay::Call(ticket), Some(outcome)) => {
                            breaker.report(ticket, outcome, now, || MIDDLE);
                            let is_current = generation == oracle.generation;
                            if oracle.state == BreakerState::Closed && is_current {
                                oracle.call_ended(outcome, breaker.slot(now), now);
                            }
                        }
                        (UnderWay::Call(_), None) => {}
                        (UnderWay::Probe(probe, _), outcome) => {
                            match outcome {
                                Some(outcome) => drop(probe.end(outcome, now, MIDDLE)),
                                None => drop(probe),
                            }
                            if oracle.holder.is_some_and(|(holder, _)| holder == id) {
                                oracle.holder = None;
                            }
                            if let Some(outcome) = outcome
                                && generation == oracle.generation
                            {
                                oracle.probe_ended(outcome, now);
                            }
                        }
                    }
                }
                Event::End { .. } => {}
            }
            let holders = under_way.iter().filter(|(_, _, it)| {
                matches!(it, UnderWay::Probe(_, until) if now < *until)
            });
            prop_assert!(holders.count() <= 1, "a crowd was let through");
        }
        // Those under way are never heard of again; the longest pause and a lease pass.
        std::mem::forget(under_way);
        now += Duration::from_secs(60) * 2;
        let mut calls = 0;
        while !breaker.is_closed() {
            let probe = breaker.try_probe(now, MIDDLE);
            prop_assert!(probe.is_some() && calls < 3, "stuck in {:?}", breaker.state_at(now));
            probe.map(|probe| probe.end(Outcome::Good, now, MIDDLE));
            calls += 1;
        }
    }
}
