//! A policy for a log: tiers by what its callers really ask, and rules for the endpoints that cost
//! most, as a `tiers.yaml` with a comment on every number.
//!
//! Tiers: where the log names some, each of those is given what nearly all of its callers need. Where it
//! names none, `free` is given what nearly all callers need, and the few who need more are named one by
//! one with a tier above it.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use crate::limiter::quota::{LIMIT_MAX, LimitSet, Period};
use crate::policy::identity::Identity;
use crate::policy::pattern::PathPattern;

use super::fit::{Demand, blocked, rounded, same_caller, with, yaml};
use super::simulation::{Simulation, UNKNOWN};
use super::summary::share;
use super::text::{number, percent};

/// What a limit leaves above what was seen.
const HEAD_ROOM: f64 = 1.5;
/// Of a tier's callers, those that its limits are made for.
const CALLERS: f64 = 0.95;
/// Of those above it, those that the next tier is made for.
const CALLERS_ABOVE: f64 = 0.9;
/// Callers who are named.
const NAMED_MAX: usize = 200;
/// Rules that are proposed.
const RULES_MAX: usize = 8;
/// A heavy endpoint takes so many times as long as the others.
const HEAVY_TIMES: f64 = 3.0;
/// And so much of all time.
const HEAVY_SHARE: f64 = 0.02;
/// Requests of an endpoint before anything is said of it.
const REQUESTS_MIN: u64 = 50;

/// What one caller needs: the smallest limits that refuse it nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Need {
    second: u64,
    minute: u64,
    hour: u64,
}

/// One caller.
struct Caller<'a> {
    identity: &'a Identity,
    tier: Option<String>,
    need: Need,
    requests: u64,
}

/// A tier as it is proposed.
struct Proposed<'a> {
    name: String,
    set: LimitSet,
    /// Those that it was made for, by what they need.
    callers: Vec<&'a Caller<'a>>,
    /// Requests of theirs that it refuses.
    blocked: u64,
    requests: u64,
    hit: usize,
}

/// An endpoint, by its template.
#[derive(Default)]
struct Endpoint {
    requests: u64,
    micros: u64,
    timed: u64,
    demands: Vec<Demand>,
}

/// The policy as YAML.
pub fn suggest(simulation: &Simulation<'_>, logs: &str) -> String {
    let demands = all_demands(simulation);
    let callers = callers(simulation, &demands);
    let mut out = String::new();
    head(&mut out, simulation, logs, callers.len());
    if callers.is_empty() {
        out.push_str("# No request: nothing to go by.\n");
        return out;
    }
    let by_identity: HashMap<u32, &[Demand]> = demands
        .chunk_by(same_caller)
        .filter_map(|own| Some((own.first()?.identity, own)))
        .collect();
    let tiers = tiers(&callers, &by_identity, simulation);
    write_tiers(&mut out, &tiers);
    write_named(&mut out, &tiers);
    let rules = rules(simulation);
    write_rules(&mut out, simulation, rules, &tiers);
    out
}

fn head(out: &mut String, simulation: &Simulation<'_>, logs: &str, callers: usize) {
    let (requests, span) = (simulation.tally.all.requests, simulation.tally.span);
    let _ = write!(
        out,
        "# Proposed by `tollgate simulate --suggest` from {logs}:\n# {} requests of {} callers",
        number(requests),
        number(callers as u64)
    );
    if let Some((from, to)) = span {
        let shown = super::moment::shown;
        let _ = write!(out, ", {} to {} UTC", shown(from), shown(to));
    }
    let _ = write!(
        out,
        ".\n#\n# Each limit is what {:.0} % of a tier's callers needed at their busiest moment, and \
         {HEAD_ROOM} times that for\n# growth. What a tier would have refused in the log stands behind \
         it. Try it before it is in force:\n#   tollgate simulate --tiers THIS_FILE LOG\n# and in front \
         of real traffic with `mode: shadow`.\n\n",
        CALLERS * 100.0
    );
}

fn all_demands(simulation: &Simulation<'_>) -> Vec<Demand> {
    let kept = simulation.kept.iter().flatten();
    let mut demands: Vec<Demand> = kept
        .filter_map(|kept| {
            let entry = simulation.reader.callers.get(kept.caller)?;
            Some(Demand { identity: entry.identity, cost: 1, at: kept.at })
        })
        .collect();
    demands.sort_by_key(|demand| (demand.identity, demand.at));
    demands
}

fn callers<'a>(simulation: &'a Simulation<'_>, demands: &[Demand]) -> Vec<Caller<'a>> {
    let names: HashMap<u32, &Identity> =
        simulation.reader.callers.identities().map(|(name, number)| (number, name)).collect();
    demands
        .chunk_by(same_caller)
        .filter_map(|own| {
            let number = own.first()?.identity;
            let tier = simulation.reader.callers.tier_of(number);
            Some(Caller {
                identity: names.get(&number)?,
                tier: tier.map(str::to_lowercase),
                need: Need::of(own),
                requests: own.len() as u64,
            })
        })
        .collect()
}

impl Need {
    /// Of a caller's requests, in the order of time.
    fn of(own: &[Demand]) -> Self {
        // A window's oldest sub-bucket counts whole: one more than the window is long.
        let minute = most_within(own, 61_000_000);
        let hour = most_within(own, 61 * 60_000_000);
        // The rate r with a burst of 2 r lets at most r (T + 2) pass in T seconds: from the most that
        // this asks for, it is not far to what is enough.
        let least = |seconds: u64| most_within(own, seconds * 1_000_000 + 1).div_ceil(seconds + 2);
        let mut second = [0, 1, 2, 5, 10, 30].into_iter().map(least).max().unwrap_or(1);
        let refuses = |rate: u64| {
            let rate = u32::try_from(rate).unwrap_or(LIMIT_MAX);
            blocked(own, &with(LimitSet::default(), Period::Second, rate)) > 0
        };
        while refuses(second) && second < u64::from(LIMIT_MAX) {
            second += second / 8 + 1;
        }
        Need { second, minute, hour }
    }

    fn of_period(&self, period: Period) -> u64 {
        match period {
            Period::Second => self.second,
            Period::Minute => self.minute,
            _ => self.hour,
        }
    }
}

/// The most requests within any span of so many microseconds.
fn most_within(own: &[Demand], micros: u64) -> u64 {
    let (mut first, mut most) = (0, 0);
    for (last, demand) in own.iter().enumerate() {
        while own.get(first).is_some_and(|it| demand.at.since(it.at).as_micros() >= micros) {
            first += 1;
        }
        most = most.max(last + 1 - first.min(last));
    }
    most as u64
}

/// The value that such a share of them does not exceed.
fn quantile(mut values: Vec<u64>, share: f64) -> u64 {
    values.sort_unstable();
    let place = (values.len() as f64 * share).ceil() as usize;
    values.get(place.saturating_sub(1)).or(values.last()).copied().unwrap_or(0)
}

fn limits_for(callers: &[&Caller<'_>], share: f64) -> LimitSet {
    let mut set = LimitSet::default();
    for period in Period::SLIDING {
        let needs = callers.iter().map(|it| it.need.of_period(period)).collect();
        let limit = (quantile(needs, share) as f64 * HEAD_ROOM).ceil();
        set = with(set, period, rounded((limit as u32).max(1)));
    }
    set
}

fn fits(caller: &Caller<'_>, set: &LimitSet) -> bool {
    Period::SLIDING.into_iter().all(|period| {
        let limit = set.quota_and_limit(period).map_or(u64::MAX, |(quota, _)| u64::from(quota));
        caller.need.of_period(period) <= limit
    })
}

fn tiers<'a>(
    callers: &'a [Caller<'a>],
    demands: &HashMap<u32, &[Demand]>,
    simulation: &Simulation<'_>,
) -> Vec<Proposed<'a>> {
    let mut by_name: BTreeMap<&str, Vec<&Caller<'_>>> = BTreeMap::new();
    for caller in callers {
        by_name.entry(caller.tier.as_deref().unwrap_or_default()).or_default().push(caller);
    }
    let is_named = by_name.keys().filter(|name| !name.is_empty()).count() > 0;
    let groups: Vec<(String, Vec<&Caller<'_>>, LimitSet)> = if is_named {
        // Who has none is taken for `free`.
        let nameless = by_name.remove("").unwrap_or_default();
        if !nameless.is_empty() {
            by_name.entry("free").or_default().extend(nameless);
        }
        let limits = |callers: &[&Caller<'_>]| limits_for(callers, CALLERS);
        by_name
            .into_iter()
            .map(|(name, callers)| {
                let set = limits(&callers);
                (name.to_owned(), callers, set)
            })
            .collect()
    } else {
        graded(callers)
    };
    let numbers: HashMap<&Identity, u32> = simulation.reader.callers.identities().collect();
    groups
        .into_iter()
        .filter(|(_, callers, _)| !callers.is_empty())
        .map(|(name, callers, set)| {
            let own = |caller: &&Caller<'_>| {
                let demands = numbers.get(caller.identity).and_then(|it| demands.get(it));
                demands.map_or(0, |own| blocked(own, &set))
            };
            let refused: Vec<u64> = callers.iter().map(own).collect();
            Proposed {
                name,
                set,
                blocked: refused.iter().sum(),
                requests: callers.iter().map(|it| it.requests).sum(),
                hit: refused.iter().filter(|it| **it > 0).count(),
                callers,
            }
        })
        .collect()
}

/// Of callers of whom no tier is known: most in the lowest one, the others above it.
fn graded<'a>(callers: &'a [Caller<'a>]) -> Vec<(String, Vec<&'a Caller<'a>>, LimitSet)> {
    let mut rest: Vec<&Caller<'_>> = callers.iter().collect();
    let mut groups = Vec::new();
    for (name, share) in [("free", CALLERS), ("premium", CALLERS_ABOVE), ("enterprise", 1.0)] {
        let set = limits_for(&rest, share);
        let (own, above) = rest.into_iter().partition(|caller| fits(caller, &set));
        groups.push((name.to_owned(), own, set));
        rest = above;
        if rest.is_empty() {
            break;
        }
    }
    groups
}

fn write_tiers(out: &mut String, tiers: &[Proposed<'_>]) {
    let default = tiers.iter().find(|tier| tier.name == "free").or(tiers.first());
    let default = default.map_or("free", |tier| &tier.name);
    let _ = writeln!(out, "default_tier: {default}\ntiers:");
    for tier in tiers {
        let at = |period: Period, share: f64| {
            quantile(tier.callers.iter().map(|it| it.need.of_period(period)).collect(), share)
        };
        let line = |period: Period| {
            format!(
                "half {}, 95 % {}, 99 % {}, most {}",
                number(at(period, 0.5)),
                number(at(period, 0.95)),
                number(at(period, 0.99)),
                number(at(period, 1.0)),
            )
        };
        let _ = writeln!(
            out,
            "  # {} callers, {} requests. At their busiest, in a minute: {};\n  # in an hour: {}.\n  \
             # Refuses {} of their requests, of {} callers.\n  {}: {}",
            number(tier.callers.len() as u64),
            number(tier.requests),
            line(Period::Minute),
            line(Period::Hour),
            percent(tier.blocked, tier.requests),
            number(tier.hit as u64),
            tier.name,
            yaml(&tier.set),
        );
    }
}

/// Those that need more than the lowest tier has, where nothing else says so.
fn write_named(out: &mut String, tiers: &[Proposed<'_>]) {
    let is_named = tiers.iter().any(|tier| tier.callers.iter().any(|it| it.tier.is_some()));
    let mut above: Vec<(&str, &Caller<'_>)> = tiers
        .iter()
        .skip(1)
        .flat_map(|tier| tier.callers.iter().map(|caller| (&*tier.name, *caller)))
        .collect();
    if is_named || above.is_empty() {
        return;
    }
    above.sort_by_key(|(_, caller)| std::cmp::Reverse(caller.requests));
    let _ = writeln!(
        out,
        "\n# Callers who asked more than the lowest tier has. Who among them is welcome to it? Take out \
         who is\n# not; a token's or key's tier goes better with users than a list.\nidentities:"
    );
    for (tier, caller) in above.iter().take(NAMED_MAX) {
        let name = serde_json::to_string(&caller.identity.to_string()).unwrap_or_default();
        let Need { minute, hour, .. } = caller.need;
        let _ = writeln!(
            out,
            "  {name}: {tier}  # {} requests, at most {} in a minute, {} in an hour",
            number(caller.requests),
            number(minute),
            number(hour)
        );
    }
    if above.len() > NAMED_MAX {
        let _ = writeln!(out, "  # and {} more", above.len() - NAMED_MAX);
    }
}

/// The endpoints, by their templates.
fn rules(simulation: &Simulation<'_>) -> BTreeMap<String, Endpoint> {
    let mut endpoints: BTreeMap<String, Endpoint> = BTreeMap::new();
    let Some(templates) = &simulation.reader.templates else { return endpoints };
    let mut names: HashMap<u32, String> = HashMap::new();
    for kept in simulation.kept.iter().flatten() {
        let name =
            names.entry(kept.template).or_insert_with(|| templates.name(kept.template)).clone();
        let endpoint = endpoints.entry(name).or_default();
        endpoint.requests += 1;
        if kept.lasts != UNKNOWN {
            endpoint.micros += u64::from(kept.lasts);
            endpoint.timed += 1;
        }
        if let Some(entry) = simulation.reader.callers.get(kept.caller) {
            let demand = Demand { identity: entry.identity, cost: 1, at: kept.at };
            endpoint.demands.push(demand);
        }
    }
    endpoints
}

fn write_rules(
    out: &mut String,
    simulation: &Simulation<'_>,
    mut endpoints: BTreeMap<String, Endpoint>,
    tiers: &[Proposed<'_>],
) {
    let timed: u64 = endpoints.values().map(|it| it.timed).sum();
    if timed == 0 {
        out.push_str(
            "\n# The log does not say how long requests took, so that none can be told to be heavy. With \
             nginx,\n# add rt=$request_time behind the combined format.\n",
        );
        return;
    }
    let micros: u64 = endpoints.values().map(|it| it.micros).sum();
    let requests: u64 = endpoints.values().map(|it| it.requests).sum();
    let is_heavy = |it: &Endpoint| {
        let others = share(micros.saturating_sub(it.micros), requests.saturating_sub(it.requests));
        let own = share(it.micros, it.timed.max(1));
        let is_slow = others == 0.0 || own >= others * HEAVY_TIMES;
        is_slow && it.requests >= REQUESTS_MIN && share(it.micros, micros) >= HEAVY_SHARE
    };
    endpoints.retain(|name, it| PathPattern::parse(name).is_ok() && is_heavy(it));
    let mut heavy: Vec<(String, Endpoint)> = endpoints.into_iter().collect();
    heavy.sort_by_key(|(_, it)| std::cmp::Reverse(it.micros));
    heavy.truncate(RULES_MAX);
    if heavy.is_empty() {
        let _ = writeln!(
            out,
            "\n# No endpoint takes {HEAVY_TIMES} times as long as the others and {:.0} % of all time.",
            HEAVY_SHARE * 100.0
        );
        return;
    }
    let _ = writeln!(out, "\n# Endpoints that cost most for each request.\nendpoints:");
    let numbers: HashMap<&Identity, u32> = simulation.reader.callers.identities().collect();
    for (index, (path, mut endpoint)) in heavy.into_iter().enumerate() {
        endpoint.demands.sort_by_key(|demand| (demand.identity, demand.at));
        let mean = share(endpoint.micros, endpoint.timed.max(1)) / 1000.0;
        let _ = writeln!(
            out,
            "  # {} requests, {mean:.0} ms each, {} of all time.\n  - name: {}\n    path: {}\n    limits:",
            number(endpoint.requests),
            percent(endpoint.micros, micros),
            rule_name(&path, index),
            serde_json::to_string(&path).unwrap_or_default(),
        );
        let needs: HashMap<u32, u64> = endpoint
            .demands
            .chunk_by(same_caller)
            .filter_map(|own| Some((own.first()?.identity, Need::of(own).minute)))
            .collect();
        for tier in tiers {
            let own = tier.callers.iter().filter_map(|it| numbers.get(it.identity));
            let own: Vec<u64> = own.filter_map(|number| needs.get(number).copied()).collect();
            if own.is_empty() {
                continue;
            }
            let count = own.len();
            let limit = (quantile(own, CALLERS) as f64 * HEAD_ROOM).ceil() as u32;
            let set = with(LimitSet::default(), Period::Minute, rounded(limit.max(1)));
            let _ = writeln!(
                out,
                "      {}: {}  # asked by {} callers",
                tier.name,
                yaml(&set),
                number(count as u64)
            );
        }
    }
}

/// A rule's name of a path's words.
fn rule_name(path: &str, index: usize) -> String {
    let words: Vec<&str> =
        path.split('/').filter(|it| !it.is_empty() && !it.contains(['{', '*'])).collect();
    let is_plain = |it: char| it.is_ascii_alphanumeric() || it == '-' || it == '_';
    let name = words.join("-").to_ascii_lowercase();
    let name: String = name.chars().map(|it| if is_plain(it) { it } else { '-' }).collect();
    let name: String = name.chars().take(40).collect();
    if name.is_empty() { format!("endpoint-{index}") } else { format!("{name}-{index}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::time::Timestamp;

    #[test]
    fn what_a_caller_needs_refuses_it_nothing() {
        let mut random = 7_u64;
        for _ in 0..200 {
            let mut at = 1_700_000_000_000_000;
            let own: Vec<Demand> = (0..120)
                .map(|_| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    at += (random >> 40) % 4_000_000 / (1 + (random >> 20) % 40);
                    Demand { identity: 0, cost: 1, at: Timestamp::from_micros(at) }
                })
                .collect();
            let need = Need::of(&own);
            for period in [Period::Minute, Period::Hour] {
                let limit = u32::try_from(need.of_period(period)).unwrap();
                assert_eq!(blocked(&own, &with(LimitSet::default(), period, limit)), 0);
            }
            let rate = u32::try_from(need.second).unwrap();
            assert_eq!(blocked(&own, &with(LimitSet::default(), Period::Second, rate)), 0);
        }
    }

    #[test]
    fn quantiles_are_values_of_the_list() {
        for (values, share, expected) in [
            (vec![], 0.5, 0),
            (vec![7], 0.01, 7),
            (vec![3, 1, 2], 0.5, 2),
            (vec![1, 2, 3, 4], 1.0, 4),
        ] {
            assert_eq!(quantile(values, share), expected);
        }
    }
}
