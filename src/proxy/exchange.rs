//! One request and its answer, from the head's arrival to the body's end, and what is told of it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};

use crate::clock;
use crate::policy::identity::IdentifierType;
use crate::policy::plan::{Plan, RuleId, TierId};

use super::gate::Active;
use super::io::ConnState;
use super::worker::Worker;

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The whole answer was handed over.
    Complete,
    /// The downstream left before that.
    DownstreamGone,
    /// The upstream broke off within the body.
    UpstreamBroke,
}

/// Who decided the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decided {
    /// The request was forwarded and the upstream answered.
    Upstream,
    /// A limit.
    Limit,
    /// tollgate, because of what the request is: 4xx of its own.
    Request,
    /// tollgate, because it has no store to ask.
    Store,
    /// tollgate, because the upstream could not be reached.
    UpstreamConnect,
    /// tollgate, because the upstream took too long.
    UpstreamTimeout,
    /// tollgate, because the upstream broke off before its head.
    UpstreamBroken,
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
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// When its head was whole.
    pub started: Instant,
    /// The rule that names it.
    pub endpoint: Option<RuleId>,
    /// The caller's tier, once it is planned.
    pub caller: Option<(TierId, IdentifierType)>,
    /// The status that was answered.
    pub status: StatusCode,
    /// By whom.
    pub decided: Decided,
    /// From the request's sending to the answer's head, where it was forwarded.
    pub upstream: Option<Duration>,
    /// From the head's arrival to the answer's head, less `upstream`.
    pub overhead: Duration,
    /// Bytes of the answer's content.
    pub bytes_out: u64,
    /// Method, as a label knows it.
    pub method: crate::metrics::MethodLabel,
}

impl Exchange {
    /// Begins with a whole head.
    pub fn begin(
        worker: &Rc<Worker>,
        conn: &Arc<ConnState>,
        active: &Arc<Active>,
        method: &Method,
        started: Instant,
    ) -> Self {
        conn.enter_request();
        worker.in_flight.set(worker.in_flight.get().saturating_add(1));
        Exchange {
            worker: Rc::clone(worker),
            conn: Arc::clone(conn),
            active: Arc::clone(active),
            facts: Some(Facts {
                started,
                endpoint: None,
                caller: None,
                status: StatusCode::OK,
                decided: Decided::Request,
                upstream: None,
                overhead: Duration::ZERO,
                bytes_out: 0,
                method: crate::metrics::MethodLabel::of(method),
            }),
        }
    }

    /// Notes who asks and which rule names the request.
    pub fn planned(&mut self, plan: &Plan<'_>) {
        if let Some(facts) = &mut self.facts {
            facts.endpoint = plan.endpoint;
            facts.caller = Some((plan.tier, plan.identity.identifier_type()));
        }
    }

    /// Notes the answer's head. `upstream` is how long the upstream took for it.
    pub fn answered(&mut self, status: StatusCode, decided: Decided, upstream: Option<Duration>) {
        if let Some(facts) = &mut self.facts {
            facts.status = status;
            facts.decided = decided;
            facts.upstream = upstream;
            let total = clock::monotonic().saturating_duration_since(facts.started);
            facts.overhead = total.saturating_sub(upstream.unwrap_or_default());
        }
    }

    /// Counts content on its way to the downstream.
    pub fn add_bytes_out(&mut self, count: usize) {
        if let Some(facts) = &mut self.facts {
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            facts.bytes_out = facts.bytes_out.saturating_add(count);
        }
    }

    /// Ends the exchange and tells of it, once.
    pub fn finish(mut self, end: End) {
        self.tell(end);
    }

    fn tell(&mut self, end: End) {
        let Some(facts) = self.facts.take() else { return };
        self.conn.enter_idle();
        self.worker.in_flight.set(self.worker.in_flight.get().saturating_sub(1));
        let took = clock::monotonic().saturating_duration_since(facts.started);
        self.active.metrics.exchange(&facts, end, took);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.tell(End::DownstreamGone);
    }
}
