//! What a replay comes to, as programs read it.

use serde::Serialize;

use crate::limiter::time::Timestamp;
use crate::policy::compiled::{NO_RULE, Policy};
use crate::policy::identity::Identity;

use super::logs::LeftOut;
use super::moment::shown;
use super::replay::By;
use super::simulation::{Recorded, Simulation};
use super::tally::{Counts, LimitCounts, Person};

/// Identities that are listed: those that are blocked most, then those that ask most.
pub const IDENTITIES_MAX: usize = 10_000;
/// Of those, how many are told of in full.
const WORST_MAX: usize = 100;

/// Names in one note.
const NAMES_MAX: usize = 10;

/// Everything that a replay comes to.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Requests that were replayed.
    pub requests: u64,
    /// Those that pass.
    pub allowed: u64,
    /// Those that are refused.
    pub blocked: u64,
    /// Those that pass, and that a limit in shadow would have refused.
    pub shadow_blocked: u64,
    /// By tier.
    pub by_tier: Named,
    /// By endpoint rule; `other` met none.
    pub by_endpoint: Named,
    /// By identity, at most [`IDENTITIES_MAX`] of them.
    pub by_identity: Named,
    /// By limit: requests that were checked for it, those that it refused, the others.
    pub by_limit: Named,
    /// What limits in shadow would have refused, by limit.
    pub shadow_by_limit: Pairs,
    /// The first request's moment; `None`: there was none.
    pub from: Option<String>,
    /// The last one's.
    pub to: Option<String>,
    /// Seconds between both.
    pub seconds: u64,
    /// How many identities there are.
    pub identities: Identities,
    /// Those that are blocked most.
    pub worst: Vec<Worst>,
    /// Over time.
    pub timeline: TimelineSummary,
    /// What the log says of its own requests.
    pub recorded: Compared,
    /// The policy to compare with, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<Compared>,
    /// Lines of the logs.
    pub lines: u64,
    /// Lines that were not replayed.
    pub left_out: Left,
    /// What has to be known to read the numbers.
    pub notes: Vec<String>,
}

/// Counts by name, in the order in which they are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named(pub Vec<(String, Three)>);

/// Numbers by name, likewise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pairs(pub Vec<(String, u64)>);

/// What came, what passed, what did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Three {
    /// All.
    pub requests: u64,
    /// Not refused.
    pub allowed: u64,
    /// Refused.
    pub blocked: u64,
}

/// How many identities there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Identities {
    /// All of them.
    pub total: u64,
    /// Those of whom anything is refused.
    pub blocked: u64,
    /// Those in `by_identity`.
    pub listed: u64,
}

/// A caller who is blocked much.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Worst {
    /// Who.
    pub identity: String,
    /// Its tier.
    pub tier: String,
    /// Its requests.
    pub requests: u64,
    /// Those that are refused.
    pub blocked: u64,
    /// Those that are refused, and were not before.
    pub newly_blocked: u64,
    /// When the first one is.
    pub first_blocked: Option<String>,
    /// By which limits, the most frequent one first.
    pub by_limit: Pairs,
}

/// Counts over time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TimelineSummary {
    /// Seconds of each slot.
    pub slot_seconds: u64,
    /// Unix second at which the first one begins.
    pub from: u64,
    /// Requests by slot.
    pub requests: Vec<u64>,
    /// Those that are refused.
    pub blocked: Vec<u64>,
    /// Those that limits in shadow would have refused.
    pub shadow_blocked: Vec<u64>,
    /// Those that were refused before.
    pub before_blocked: Vec<u64>,
}

/// What was refused before, and what differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// Refused before.
    pub blocked: u64,
    /// Refused now, and not before.
    pub newly_blocked: u64,
    /// Refused before, and not now.
    pub freed: u64,
    /// Those that limits in shadow would have refused, by tollgate's own log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow_blocked: Option<u64>,
    /// Those of which that differs now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow_differs: Option<u64>,
    /// The same by tier, where anything differs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by_tier: Vec<Difference>,
    /// By endpoint, likewise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by_endpoint: Vec<Difference>,
    /// By identity: those with the most that is new, and those with the most that is freed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by_identity: Vec<Difference>,
}

/// What differs of one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Of what.
    pub name: String,
    /// Its requests.
    pub requests: u64,
    /// Refused now, and not before.
    pub newly_blocked: u64,
    /// Refused before, and not now.
    pub freed: u64,
}

/// Lines that were not replayed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Left {
    /// All of them.
    pub total: u64,
    /// Not written as the format says.
    pub unreadable: u64,
    /// No request.
    pub no_request: u64,
    /// Of nobody.
    pub nobody: u64,
    /// Answered by tollgate before any limit was asked.
    pub own_answers: u64,
    /// With a path that tollgate refuses with 400.
    pub bad_path: u64,
    /// Some that are unreadable.
    pub examples: Vec<String>,
}

impl Summary {
    /// Of a replay that is over.
    pub fn of(simulation: &Simulation<'_>) -> Self {
        let (policy, tally) = (simulation.policy(), &simulation.tally);
        let mut names: Vec<(&Identity, u32)> = simulation.reader.callers.identities().collect();
        names.sort_unstable_by_key(|(_, number)| *number);
        let people: Vec<(&Identity, &Person)> =
            names.into_iter().map(|(identity, _)| identity).zip(&tally.people).collect();
        let asked = people.iter().filter(|(_, person)| person.counts.requests > 0);
        let blocked = people.iter().filter(|(_, person)| person.counts.blocked > 0);
        let listed = listed(&people);
        let (from, to) = match tally.span {
            Some((from, to)) => (Some(shown(from)), Some(shown(to))),
            None => (None, None),
        };
        let worst = listed.iter().take(WORST_MAX).filter(|(_, it)| it.counts.blocked > 0);
        let all = tally.all;
        Summary {
            requests: all.requests,
            allowed: all.allowed(),
            blocked: all.blocked,
            shadow_blocked: all.shadow,
            by_tier: Named::of(tier_names(policy).zip(&tally.by_tier)),
            by_endpoint: Named::of(endpoint_names(policy).zip(&tally.by_endpoint)),
            by_identity: Named(
                listed.iter().map(|(name, it)| (name.to_string(), Three::of(&it.counts))).collect(),
            ),
            by_limit: by_limit(policy, simulation),
            shadow_by_limit: shadow_by_limit(policy, simulation),
            from,
            to,
            seconds: tally.span.map_or(0, |(from, to)| to.since(from).as_secs_ceil()),
            identities: Identities {
                total: asked.count() as u64,
                blocked: blocked.count() as u64,
                listed: listed.len() as u64,
            },
            worst: worst.map(|(name, person)| Worst::of(name, person, policy)).collect(),
            timeline: TimelineSummary::of(simulation),
            recorded: Compared::with(simulation.recorded),
            against: simulation.against().map(|_| compared(policy, simulation, &people)),
            lines: simulation.reader.lines,
            left_out: Left::of(&simulation.reader.left_out),
            notes: notes(simulation),
        }
    }

    /// The share of requests that are refused.
    pub fn blocked_share(&self) -> f64 {
        share(self.blocked, self.requests)
    }
}

/// A part of a whole; nothing of nothing is none.
pub fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Those that are blocked most, then those that ask most, as many as are listed.
fn listed<'a>(people: &[(&'a Identity, &'a Person)]) -> Vec<(&'a Identity, &'a Person)> {
    let rank = |person: &Person| (person.counts.blocked, person.counts.requests);
    let mut listed: Vec<(&Identity, &Person)> =
        people.iter().filter(|(_, it)| it.counts.requests > 0).copied().collect();
    // The first request of an identity decides between equals, by the sort's being stable.
    listed.sort_by_key(|(_, person)| std::cmp::Reverse(rank(person)));
    listed.truncate(IDENTITIES_MAX);
    listed
}

fn tier_names(policy: &Policy) -> impl Iterator<Item = String> {
    policy.tiers().iter().map(|tier| tier.name.to_string())
}

fn endpoint_names(policy: &Policy) -> impl Iterator<Item = String> {
    let rules = policy.rules().iter().map(|rule| rule.name.to_string());
    rules.chain(std::iter::once(NO_RULE.to_owned()))
}

fn by_limit(policy: &Policy, simulation: &Simulation<'_>) -> Named {
    let three = |counts: LimitCounts| Three {
        requests: counts.requests,
        allowed: counts.requests.saturating_sub(counts.blocked),
        blocked: counts.blocked,
    };
    let limits = simulation.tally.limits();
    let mut named: Vec<(String, Three)> =
        limits.map(|(by, counts)| (by.name(policy), three(counts))).collect();
    let listed = simulation.tally.listed;
    if listed > 0 {
        let three = Three { requests: listed, allowed: 0, blocked: listed };
        named.push((By::List.name(policy), three));
    }
    named.sort_by_key(|(_, three)| std::cmp::Reverse(three.blocked));
    Named(named)
}

fn shadow_by_limit(policy: &Policy, simulation: &Simulation<'_>) -> Pairs {
    let limits = simulation.tally.limits().filter(|(_, counts)| counts.shadow > 0);
    let mut named: Vec<(String, u64)> =
        limits.map(|(by, counts)| (by.name(policy), counts.shadow)).collect();
    named.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    Pairs(named)
}

fn compared(
    policy: &Policy,
    simulation: &Simulation<'_>,
    people: &[(&Identity, &Person)],
) -> Compared {
    let tally = &simulation.tally;
    let differences = |names: &mut dyn Iterator<Item = (String, Counts)>| -> Vec<Difference> {
        let all = names.map(|(name, counts)| Difference::of(name, &counts));
        all.filter(|it| it.newly_blocked + it.freed > 0).collect()
    };
    let mut changed: Vec<&(&Identity, &Person)> =
        people.iter().filter(|(_, it)| it.counts.newly + it.counts.freed > 0).collect();
    changed.sort_by_key(|(_, it)| std::cmp::Reverse((it.counts.newly, it.counts.freed)));
    let newly = changed.iter().filter(|(_, it)| it.counts.newly > 0).take(WORST_MAX);
    let freed = changed.iter().filter(|(_, it)| it.counts.newly == 0).take(WORST_MAX);
    let by_identity = newly.chain(freed);
    Compared {
        blocked: simulation.before_blocked,
        newly_blocked: tally.all.newly,
        freed: tally.all.freed,
        by_tier: differences(&mut tier_names(policy).zip(tally.by_tier.iter().copied())),
        by_endpoint: differences(
            &mut endpoint_names(policy).zip(tally.by_endpoint.iter().copied()),
        ),
        by_identity: by_identity
            .map(|(name, person)| Difference::of(name.to_string(), &person.counts))
            .collect(),
        ..Compared::default()
    }
}

fn notes(simulation: &Simulation<'_>) -> Vec<String> {
    let policy = simulation.policy();
    let mut notes = Vec::new();
    let patterns = policy.rules().iter().zip(policy.router().patterns());
    let unmet: Vec<&str> = patterns
        .filter(|(_, pattern)| !pattern.headers.is_empty())
        .map(|(rule, _)| &*rule.name)
        .collect();
    if !unmet.is_empty() {
        let names = unmet.join(", ");
        notes.push(format!(
            "rules that ask for header fields met nothing, as logs have none: {names}"
        ));
    }
    let tiers = simulation.reader.callers.tiers();
    let mut unknown: Vec<&str> = tiers.filter(|tier| !policy.knows_plan(tier)).collect();
    unknown.sort_unstable();
    unknown.dedup();
    if !unknown.is_empty() {
        let names: Vec<String> =
            unknown.iter().take(NAMES_MAX).map(|it| format!("{it:?}")).collect();
        notes.push(format!(
            "the log names tiers that the policy does not know, which count as none: {}",
            names.join(", ")
        ));
    }
    if simulation.endless() > 0 {
        notes.push(format!(
            "{} requests met a limit of concurrency, and the log does not say how long they \
             lasted: for them it was not tried",
            simulation.endless()
        ));
    }
    if simulation.late() > 0 {
        notes.push(format!(
            "{} lines stood too far from their place in time, and were replayed late",
            simulation.late()
        ));
    }
    if simulation.evictions() > 0 {
        notes.push(format!(
            "the state of {} callers was forgotten for want of room: they may have passed more \
             than their limits let them",
            simulation.evictions()
        ));
    }
    notes
}

impl Named {
    fn of<'a>(counts: impl Iterator<Item = (String, &'a Counts)>) -> Self {
        let asked = counts.filter(|(_, counts)| counts.requests > 0);
        Named(asked.map(|(name, counts)| (name, Three::of(counts))).collect())
    }
}

impl Serialize for Named {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, three)| (name, three)))
    }
}

impl Serialize for Pairs {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, count)| (name, count)))
    }
}

impl Three {
    fn of(counts: &Counts) -> Self {
        let Counts { requests, blocked, .. } = *counts;
        Three { requests, allowed: counts.allowed(), blocked }
    }
}

impl Worst {
    fn of(identity: &Identity, person: &Person, policy: &Policy) -> Self {
        let mut by: Vec<(By, u64)> = person.by.to_vec();
        by.sort_by_key(|(by, count)| (std::cmp::Reverse(*count), *by));
        let tier = policy.tier(person.tier).map_or("", |tier| &tier.name);
        Worst {
            identity: identity.to_string(),
            tier: tier.to_owned(),
            requests: person.counts.requests,
            blocked: person.counts.blocked,
            newly_blocked: person.counts.newly,
            first_blocked: person.first_blocked.map(shown),
            by_limit: Pairs(by.into_iter().map(|(by, count)| (by.name(policy), count)).collect()),
        }
    }
}

impl TimelineSummary {
    fn of(simulation: &Simulation<'_>) -> Self {
        let timeline = &simulation.tally.timeline;
        let mut summary =
            TimelineSummary { slot_seconds: timeline.width(), ..TimelineSummary::default() };
        for (begin, slot) in timeline.slots() {
            if summary.requests.is_empty() {
                summary.from = begin.since(Timestamp::EPOCH).as_secs_ceil();
            }
            summary.requests.push(slot.requests);
            summary.blocked.push(slot.blocked);
            summary.shadow_blocked.push(slot.shadow);
            summary.before_blocked.push(slot.before);
        }
        summary
    }
}

impl Compared {
    fn with(recorded: Recorded) -> Self {
        let Recorded { blocked, newly, freed, shadow, shadow_differs } = recorded;
        let shadow = Some((shadow, shadow_differs)).filter(|(was, _)| *was > 0);
        Compared {
            blocked,
            newly_blocked: newly,
            freed,
            shadow_blocked: shadow.map(|(was, _)| was),
            shadow_differs: shadow.map(|(_, differs)| differs),
            ..Compared::default()
        }
    }
}

impl Difference {
    fn of(name: String, counts: &Counts) -> Self {
        let Counts { requests, newly, freed, .. } = *counts;
        Difference { name, requests, newly_blocked: newly, freed }
    }
}

impl Left {
    fn of(left_out: &LeftOut) -> Self {
        let LeftOut { unreadable, no_request, nobody, own_answers, bad_path, examples } = left_out;
        let example = |it: &super::logs::Example| {
            format!("{}:{}: expected {}, found {}", it.file, it.line, it.expected, it.text)
        };
        Left {
            total: left_out.total(),
            unreadable: *unreadable,
            no_request: *no_request,
            nobody: *nobody,
            own_answers: *own_answers,
            bad_path: *bad_path,
            examples: examples.iter().map(example).collect(),
        }
    }
}
