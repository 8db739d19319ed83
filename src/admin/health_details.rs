//! What `/health?verbose=1` says beyond `/health`: why, since when, and what it was before.

use serde::Serialize;

use crate::clock::monotonic;
use crate::health::dependency::DependencyView;
use crate::health::heartbeat::STOPPED_AFTER;
use crate::health::history::History;
use crate::health::signs::Sign;
use crate::health::upstreams::MemberView;
use crate::health::verdict::{Evidence, Reason, Verdict};
use crate::metrics::labels::{BreakerState, Dependency};
use crate::store::redis::RedisShared;

use super::health::{NOT_CONFIGURED, rfc3339};
use super::state::AdminState;

/// The details.
#[derive(Serialize)]
pub struct Details {
    /// What speaks against a better status; empty when healthy.
    reasons: Vec<String>,
    details: Parts,
    /// The last hour, the newest first.
    history: Vec<Past>,
}

#[derive(Serialize)]
struct Parts {
    dependencies: Dependencies,
    workers: Vec<Worker>,
}

/// Each dependency.
#[derive(Serialize)]
pub struct Dependencies {
    database: One,
    jwks: One,
    redis: One,
    upstream: One,
}

/// `null` is what there is none of.
#[derive(Serialize)]
struct One {
    status: &'static str,
    /// Since when it is well, or is not; to a second.
    since: Option<String>,
    circuit_breaker: Option<&'static str>,
    last_error: Option<Noticed>,
    last_check: Option<Noticed>,
    /// Each of several backends; absent of anything that is one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    members: Vec<OfSeveral>,
    /// How many replicas share it, as far as is known; of Redis alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    replicas: Option<u32>,
}

/// One of several backends.
#[derive(Serialize)]
struct OfSeveral {
    /// As it is configured.
    name: Box<str>,
    status: &'static str,
    circuit_breaker: Option<&'static str>,
    requests_in_flight: usize,
}

/// What was noticed, within a second.
#[derive(Serialize)]
struct Noticed {
    at: String,
    result: &'static str,
}

#[derive(Serialize)]
struct Worker {
    worker: usize,
    last_beat_ms: u64,
    stuck: bool,
}

#[derive(Serialize)]
struct Past {
    since: String,
    status: &'static str,
    /// `null` when healthy.
    reason: Option<String>,
}

impl Details {
    /// What is known now.
    pub fn of(state: &AdminState, evidence: &Evidence, verdict: &Verdict) -> Self {
        let history = state.history.lock();
        let beats = state.heartbeats.ages(monotonic()).enumerate();
        Details {
            reasons: verdict.reasons.iter().map(Reason::to_string).collect(),
            details: Parts {
                dependencies: Dependencies::of(state, evidence, &history),
                workers: beats
                    .map(|(worker, age)| Worker {
                        worker,
                        last_beat_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
                        stuck: age >= STOPPED_AFTER,
                    })
                    .collect(),
            },
            history: history
                .newest_first()
                .map(|entry| {
                    let reasons: Vec<String> =
                        entry.verdict.reasons.iter().map(Reason::to_string).collect();
                    Past {
                        since: rfc3339(entry.since),
                        status: entry.verdict.status.as_str(),
                        reason: (!reasons.is_empty()).then(|| reasons.join(", ")),
                    }
                })
                .collect(),
        }
    }
}

impl Dependencies {
    /// What is known of each.
    pub fn of(state: &AdminState, evidence: &Evidence, history: &History) -> Self {
        let one = |dependency| One::of(dependency, evidence, history);
        let replicas = state.counters.shared().map(RedisShared::replicas);
        let members = state.upstream.views(monotonic()).into_iter().map(OfSeveral::from).collect();
        Dependencies {
            database: one(Dependency::Database),
            jwks: one(Dependency::Jwks),
            redis: One { replicas, ..one(Dependency::Redis) },
            upstream: One { members, ..one(Dependency::Upstream) },
        }
    }
}

impl One {
    fn of(dependency: Dependency, evidence: &Evidence, history: &History) -> Self {
        let view: Option<DependencyView> =
            evidence.dependencies.get(dependency.index()).copied().flatten();
        One {
            status: view.map_or(NOT_CONFIGURED, |view| view.status.as_str()),
            since: history.since(dependency).map(rfc3339),
            circuit_breaker: view.and_then(|view| view.breaker).map(BreakerState::as_str),
            last_error: history.last_error(dependency).map(Noticed::from),
            last_check: history.last_check(dependency).map(Noticed::from),
            members: Vec::new(),
            replicas: None,
        }
    }
}

impl From<MemberView> for OfSeveral {
    fn from(member: MemberView) -> Self {
        OfSeveral {
            name: member.name,
            status: member.view.status.as_str(),
            circuit_breaker: member.view.breaker.map(BreakerState::as_str),
            requests_in_flight: member.in_flight,
        }
    }
}

impl From<Sign> for Noticed {
    fn from(sign: Sign) -> Self {
        Noticed { at: rfc3339(sign.at), result: sign.what }
    }
}
