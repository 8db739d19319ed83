//! One request and its answer, from the head's arrival to the body's end, and what is told of it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderValue, Request, StatusCode};

use crate::clock;
use crate::health::slow::SlowCall;
use crate::limiter::time::Timestamp;
use crate::metrics::cells::LevelGuard;
use crate::metrics::labels::{Ending, MethodLabel, QueryType};
use crate::metrics::policy::{Metered, RequestRecord};
use crate::policy::identity::{IdentifierType, Identity};
use crate::policy::plan::{Plan, RuleId, TierId};
use crate::store::places::Holds;
use crate::trace::TraceParent;
use crate::usage::record::Counts;
use crate::usage::writer::{Ticket, UsageWriter, Who};

use super::gate::Active;
use super::io::ConnState;
use super::record::{Ended, Notes};
use super::worker::Worker;

/// How an answer's body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The whole answer was handed over.
    Complete,
    /// The downstream left before that.
    DownstreamGone,
    /// The upstream broke off within the body.
    UpstreamBroke,
    /// The upstream fell silent within the body.
    UpstreamStalled,
}

/// One exchange. Dropped before [`Exchange::finish`], it counts as one that its downstream left.
#[derive(Debug)]
pub struct Exchange {
    worker: Rc<Worker>,
    conn: Arc<ConnState>,
    active: Arc<Active>,
    facts: Option<Facts>,
}

/// What is known of an exchange by now.
#[derive(Debug)]
struct Facts {
    started: Instant,
    method: MethodLabel,
    endpoint: Option<RuleId>,
    tier: Option<TierId>,
    /// As it came: it is read only of a call that was slow.
    traceparent: Option<HeaderValue>,
    evaluated: Option<(TierId, IdentifierType)>,
    /// What it has spent.
    units: u32,
    /// As what it was counted for billing, until that is given back.
    metered: Option<Metered>,
    /// Where its usage was counted.
    usage: Option<(Identity, Ticket)>,
    status: u16,
    /// `None`: not to be told of.
    ending: Option<Ending>,
    overhead: Option<Duration>,
    upstream: Option<Duration>,
    /// Which one was asked last.
    member: usize,
    bytes_in: u64,
    bytes_out: u64,
    /// Its places among the requests at once, until it is over.
    holds: Option<Holds>,
    /// What the access log and traces want to know besides.
    notes: Option<Box<Notes>>,
    _in_flight: LevelGuard,
}

impl Exchange {
    /// Begins with a whole head: which trace it says that it belongs to, and when it was there.
    pub fn begin<B>(
        worker: &Rc<Worker>,
        conn: &Arc<ConnState>,
        active: &Arc<Active>,
        request: &Request<B>,
        (traceparent, started): (Option<HeaderValue>, Instant),
    ) -> Self {
        let parent = traceparent.as_ref();
        conn.enter_request();
        let facts = Facts {
            started,
            method: MethodLabel::of(request.method()),
            endpoint: None,
            tier: None,
            evaluated: None,
            units: 0,
            metered: None,
            usage: None,
            status: 0,
            ending: Some(Ending::ClientAbort),
            overhead: None,
            upstream: None,
            member: 0,
            bytes_in: 0,
            bytes_out: 0,
            holds: None,
            notes: worker.recorder.as_ref().and_then(|it| it.begin(request, parent)),
            traceparent,
            _in_flight: worker.gate.metrics.request_started(),
        };
        Exchange {
            worker: Rc::clone(worker),
            conn: Arc::clone(conn),
            active: Arc::clone(active),
            facts: Some(facts),
        }
    }

    /// Notes which rule names the request, and whose tier it has.
    pub fn planned(&mut self, plan: &Plan<'_>) {
        if let Some(facts) = &mut self.facts {
            facts.endpoint = plan.endpoint;
            facts.tier = Some(plan.tier);
            if let Some(notes) = &mut facts.notes {
                notes.planned(plan);
            }
        }
    }

    /// Notes which upstream was asked.
    pub fn asked(&mut self, member: usize) {
        if let Some(facts) = &mut self.facts {
            facts.member = member;
        }
    }

    /// Keeps the request's places until all of its answer is sent.
    pub fn hold(&mut self, holds: Option<Holds>) {
        if let Some(facts) = &mut self.facts {
            facts.holds = holds;
        }
    }

    /// Notes that limits were evaluated, and whose.
    pub fn evaluated(&mut self, plan: &Plan<'_>) {
        if let Some(facts) = &mut self.facts {
            facts.evaluated = Some((plan.tier, plan.identity.identifier_type()));
        }
    }

    /// Notes that the request goes to the upstream, and what it has spent for that. Counted for
    /// billing at once: what an upstream sees has been counted.
    pub fn admitted(&mut self, plan: &Plan<'_>, units: u32) {
        let Some(facts) = &mut self.facts else { return };
        (facts.units, facts.metered) = (units, Some(Metered::Admitted));
        let counts = Counts { requests: 1, units: units.into(), ..Counts::default() };
        let ticket = count(&self.worker, &self.active, plan, counts);
        facts.usage = ticket.map(|ticket| (plan.identity.clone(), ticket));
    }

    /// Notes that a limit has refused the request.
    pub fn denied(&mut self, plan: &Plan<'_>) {
        if let Some(facts) = &mut self.facts {
            facts.metered = Some(Metered::Denied);
        }
        let counts = Counts { denied: 1, ..Counts::default() };
        count(&self.worker, &self.active, plan, counts);
    }

    /// Notes that nothing of the request came to the upstream: what it has spent is given back.
    pub fn given_back(&mut self) {
        let Some(facts) = &mut self.facts else { return };
        let units = i64::from(facts.units);
        (facts.units, facts.metered) = (0, None);
        if let Some(usage) = &self.worker.usage {
            let counts = Counts { requests: -1, units: -units, ..Counts::default() };
            facts.count_more(&self.active, usage, self.worker.gate.clock.now(), counts);
            facts.usage = None;
        }
    }

    /// Notes that the upstream was asked, and gave no answer that could be passed on.
    pub fn unanswered(&mut self, status: StatusCode, ending: Ending) {
        self.answered(status, ending, None, clock::stopwatch());
        if let Some(facts) = &mut self.facts {
            // How much of the time went into waiting is not known.
            facts.overhead = None;
        }
    }

    /// Notes the answer's head, at `now`, and how it will have ended if nothing else happens.
    /// `upstream` is how long the upstream took for it.
    pub fn answered(
        &mut self,
        status: StatusCode,
        ending: Ending,
        upstream: Option<Duration>,
        now: Instant,
    ) {
        if let Some(facts) = &mut self.facts {
            facts.status = status.as_u16();
            facts.ending = Some(ending);
            facts.upstream = upstream;
            let total = now.saturating_duration_since(facts.started);
            facts.overhead = Some(total.saturating_sub(upstream.unwrap_or_default()));
        }
    }

    /// Notes a call, made for this request, that was slow or timed out.
    pub fn note_slow(&self, query: QueryType, took: Duration, timed_out: bool) {
        let Some(facts) = &self.facts else { return };
        let gate = &self.worker.gate;
        let call = SlowCall::new(query, gate.clock.now(), took, timed_out);
        gate.slow_calls.note(facts.described(&self.active, call), clock::monotonic());
    }

    /// What the access log and traces know of it, if they want to.
    pub fn notes(&mut self) -> Option<&mut Notes> {
        self.facts.as_mut()?.notes.as_deref_mut()
    }

    /// Has nothing told: the request was for tollgate itself.
    pub fn keep_quiet(&mut self) {
        if let Some(facts) = &mut self.facts {
            facts.ending = None;
        }
    }

    /// Counts content on its way to the downstream.
    pub fn add_bytes_out(&mut self, count: usize) {
        if let Some(facts) = &mut self.facts {
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            facts.bytes_out = facts.bytes_out.saturating_add(count);
        }
    }

    /// Ends the exchange and tells of it, once. `bytes_in` is the request's content.
    pub fn finish(mut self, end: End, bytes_in: u64) {
        if let Some(facts) = &mut self.facts {
            facts.bytes_in = bytes_in;
        }
        self.tell(end);
    }

    fn tell(&mut self, end: End) {
        let Some(mut facts) = self.facts.take() else { return };
        // At once: its caller may be asking again already.
        drop(facts.holds.take());
        self.conn.enter_idle();
        let Some(ending) = facts.ending else { return };
        if cfg!(feature = "without-signals") {
            return;
        }
        let ending = match end {
            End::Complete => ending,
            End::DownstreamGone => Ending::ClientAbort,
            End::UpstreamBroke => Ending::UpstreamConnect,
            End::UpstreamStalled => Ending::UpstreamTimeout,
        };
        let gate = &self.worker.gate;
        let at = gate.clock.now();
        if let Some(usage) = &self.worker.usage {
            let (bytes_in, bytes_out) = (signed(facts.bytes_in), signed(facts.bytes_out));
            let counts = Counts { bytes_in, bytes_out, ..Counts::default() };
            facts.count_more(&self.active, usage, at, counts);
        }
        if let (Some(tier), Some(metered)) = (facts.tier, facts.metered) {
            self.active.metrics.metered(tier, metered);
        }
        let now = clock::monotonic();
        let duration = now.saturating_duration_since(facts.started);
        let timed_out = ending == Ending::UpstreamTimeout;
        if timed_out || ending == Ending::UpstreamConnect {
            gate.upstreams.group.count_error(timed_out);
        }
        let series = gate.upstreams.place(facts.member).map(|it| &*it.series);
        let (_, slow_after) = self.active.metrics.slow_after(facts.endpoint);
        if timed_out || facts.upstream.is_some_and(|took| took > slow_after) {
            let call = SlowCall {
                upstream: series.map(|it| it.name.clone()),
                to_head: facts.upstream,
                status: Some(facts.status),
                ..SlowCall::new(QueryType::Upstream, at, duration, timed_out)
            };
            gate.slow_calls.note(facts.described(&self.active, call), now);
        }
        if let (Some(notes), Some(recorder)) = (&facts.notes, &self.worker.recorder) {
            let ended = Ended {
                policy: &self.active.policy,
                conn: &self.conn,
                started: facts.started,
                duration,
                at,
                endpoint: facts.endpoint,
                status: facts.status,
                ending,
                bytes_in: facts.bytes_in,
                bytes_out: facts.bytes_out,
            };
            recorder.tell(notes, &ended);
        }
        self.active.metrics.record(&RequestRecord {
            endpoint: facts.endpoint,
            evaluated: facts.evaluated,
            units: facts.units,
            method: facts.method,
            status: facts.status,
            ending,
            at,
            duration,
            overhead: facts.overhead,
            upstream: series.zip(facts.upstream),
            bytes_in: facts.bytes_in,
            bytes_out: facts.bytes_out,
        });
    }
}

/// Counts for billing, if that is done.
fn count(worker: &Worker, active: &Active, plan: &Plan<'_>, counts: Counts) -> Option<Ticket> {
    let usage = worker.usage.as_ref()?;
    let tier = &active.policy.tier(plan.tier)?.name;
    let endpoint = active.policy.endpoint_name(plan.endpoint);
    let who = Who { identity: &plan.identity, tier, endpoint };
    Some(usage.count(who, worker.gate.clock.now(), counts))
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Facts {
    /// Counts more of it for billing, in the minute in which it was let through.
    fn count_more(&self, active: &Active, usage: &UsageWriter, now: Timestamp, counts: Counts) {
        let Some((identity, ticket)) = &self.usage else { return };
        let Some(tier) = self.tier.and_then(|tier| active.policy.tier(tier)) else { return };
        let endpoint = active.policy.endpoint_name(self.endpoint);
        usage.count_more(Who { identity, tier: &tier.name, endpoint }, *ticket, now, counts);
    }

    /// Adds to a call what is known of its request.
    fn described(&self, active: &Active, call: SlowCall) -> SlowCall {
        let (endpoint, _) = active.metrics.slow_after(self.endpoint);
        let tier = self.tier.and_then(|tier| active.policy.tiers().get(usize::from(tier.0)));
        let parent = || TraceParent::parse(self.traceparent.as_ref()?.as_bytes());
        let trace = self.notes.as_ref().and_then(|notes| notes.trace());
        SlowCall {
            endpoint: Some(endpoint.into()),
            method: Some(self.method),
            tier: tier.map(|tier| tier.name.clone()),
            trace: trace.or_else(|| parent().map(|parent| parent.trace)),
            ..call
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.tell(End::DownstreamGone);
    }
}
