//! The upstream as a whole: one, or several that serve the same.
//!
//! Each has a health of its own. Together they are as well as what is left of them: while one may
//! be called, the upstream is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::metrics::labels::BreakerState;

use super::dependency::{DependencyStatus, DependencyView};
use super::upstream::UpstreamHealth;

/// All of them, shared by all workers.
#[derive(Debug)]
pub struct UpstreamGroup {
    members: Box<[Member]>,
    /// Requests without a whole answer: for want of a connection, or of time.
    errors: [AtomicU64; 2],
}

/// One of them.
#[derive(Debug)]
pub struct Member {
    /// As operators know it.
    pub name: Box<str>,
    /// What calls of it came to.
    pub health: UpstreamHealth,
    /// What is under way there: one reference each, and one of its own.
    flights: Arc<Line>,
}

/// A cache line of its own, so that the counts of two upstreams do not share one.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line;

/// A request that is under way at an upstream, or a tunnel, until it is dropped.
#[derive(Debug)]
#[must_use = "it counts only as long as it lives"]
pub struct Flight(#[allow(dead_code, reason = "its count is what it is for")] Arc<Line>);

/// One of several as it is seen now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// As operators know it.
    pub name: Box<str>,
    /// How it does.
    pub view: DependencyView,
    /// Requests and tunnels that are under way there.
    pub in_flight: usize,
}

impl Member {
    /// Nothing is under way.
    pub fn new(name: &str, health: UpstreamHealth) -> Self {
        Member { name: name.into(), health, flights: Arc::default() }
    }

    /// One more is under way.
    #[inline]
    pub fn enter(&self) -> Flight {
        Flight(Arc::clone(&self.flights))
    }

    /// How many are.
    #[inline]
    pub fn in_flight(&self) -> usize {
        Arc::strong_count(&self.flights).saturating_sub(1)
    }
}

impl UpstreamGroup {
    /// These, at least one.
    pub fn new(members: Vec<Member>) -> Self {
        UpstreamGroup { members: members.into(), errors: Default::default() }
    }

    /// Each of them.
    #[inline]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Each as it is seen by now, where there are several.
    pub fn views(&self, now: Instant) -> Vec<MemberView> {
        if self.members.len() < 2 {
            return Vec::new();
        }
        let view = |member: &Member| MemberView {
            name: member.name.clone(),
            view: member.health.view(now),
            in_flight: member.in_flight(),
        };
        self.members.iter().map(view).collect()
    }

    /// All together by now: as well as the one that there is; of several, healthy if all are, and
    /// out if none may be called.
    pub fn view(&self, now: Instant) -> DependencyView {
        let mut views = self.members.iter().map(|member| member.health.view(now));
        let Some(first) = views.next() else {
            return DependencyView { status: DependencyStatus::Healthy, breaker: None };
        };
        views.fold(first, |sum, view| DependencyView {
            status: if sum.status == view.status { sum.status } else { DependencyStatus::Degraded },
            breaker: sum.breaker.zip(view.breaker).map(
                |(a, b)| {
                    if a.index() <= b.index() { a } else { b }
                },
            ),
        })
    }

    /// How often a circuit breaker came to this state, all of them together.
    pub fn transitions(&self, to: BreakerState) -> u64 {
        let of = |member: &Member| member.health.breaker().transitions(to);
        self.members.iter().map(of).fold(0, u64::saturating_add)
    }

    /// Seconds until the first of them may be called again, at least one.
    pub fn retry_after(&self, now: Instant) -> u32 {
        let of = |member: &Member| member.health.breaker().retry_after(now);
        self.members.iter().map(of).min().unwrap_or(1)
    }

    /// A request got no whole answer: there was no connection or it broke off, or a deadline passed.
    pub fn count_error(&self, timed_out: bool) {
        let [connect, timeout] = &self.errors;
        let error = if timed_out { timeout } else { connect };
        error.fetch_add(1, Ordering::Relaxed);
    }

    /// How many of these there were.
    pub fn errors(&self) -> [(&'static str, u64); 2] {
        let [connect, timeout] = &self.errors;
        let count = |error: &AtomicU64| error.load(Ordering::Relaxed);
        [("connect", count(connect)), ("timeout", count(timeout))]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::health::breaker::Outcome;
    use crate::health::upstream::Admission;

    fn group(count: usize, now: Instant) -> UpstreamGroup {
        let member = |index| {
            let health = UpstreamHealth::new(None, Duration::from_secs(60), now);
            Member::new(&format!("10.0.0.{index}:80"), health)
        };
        UpstreamGroup::new((1..=count).map(member).collect())
    }

    fn fail(member: &Member, times: usize, now: Instant) {
        for _ in 0..times {
            let Admission::Call(ticket) = member.health.admit(|| now, || 0.5) else { return };
            member.health.called(ticket, Outcome::Bad, now, || 0.5);
        }
    }

    #[test]
    fn together_they_are_as_well_as_what_is_left_of_them() {
        let now = crate::clock::monotonic();
        let group = group(3, now);
        let state = |status, breaker| DependencyView { status, breaker: Some(breaker) };
        let healthy = state(DependencyStatus::Healthy, BreakerState::Closed);
        assert_eq!(group.view(now), healthy);
        let degraded = state(DependencyStatus::Degraded, BreakerState::Closed);
        for (index, member) in group.members().iter().enumerate() {
            fail(member, 5, now);
            let all_out = state(DependencyStatus::Unhealthy, BreakerState::Open);
            assert_eq!(group.view(now), if index == 2 { all_out } else { degraded });
        }
        assert_eq!(group.transitions(BreakerState::Open), 3);
        assert_eq!(group.views(now).len(), 3);
        let later = now + Duration::from_secs(5);
        let half = state(DependencyStatus::Degraded, BreakerState::HalfOpen);
        assert_eq!(group.view(later), half, "each may be probed");
    }

    #[test]
    fn one_alone_is_the_whole() {
        let now = crate::clock::monotonic();
        let group = group(1, now);
        fail(&group.members()[0], 1, now);
        assert_eq!(group.view(now), group.members()[0].health.view(now));
        assert!(group.views(now).is_empty(), "there is nothing to tell apart");
    }

    #[test]
    fn what_is_under_way_is_counted_until_it_ends() {
        let group = group(2, crate::clock::monotonic());
        let member = &group.members()[1];
        let (one, other) = (member.enter(), member.enter());
        assert_eq!(group.members().iter().map(Member::in_flight).collect::<Vec<_>>(), [0, 2]);
        drop(one);
        assert_eq!(member.in_flight(), 1);
        drop(other);
        assert_eq!(member.in_flight(), 0);
    }
}
