//! Which rule a path meets, which others it nearly met, and why.
//!
//! Every question is put to a router made of the rules in question: there is no second search.

use super::super::compiled::{Policy, Rule};
use super::super::facts::RequestFacts;
use super::super::path::Readings;
use super::super::pattern::{PathPattern, Segment};
use super::super::plan::{Plan, RuleId};
use super::super::route::{Matched, PathError, Pattern, Router};
use super::{Look, Step, tier_name};
use crate::limiter::quota::Mode;

/// Most rules that are told of for having been met nearly.
const NEAR_MISSES_MAX: usize = 5;

/// The readings of the path, and the rule that each meets.
///
/// # Errors
/// The path is refused.
pub fn rule(policy: &Policy, facts: &RequestFacts<'_>) -> Result<Step, PathError> {
    let readings = Readings::of(facts.path.as_bytes())?;
    let matched = policy.router().find(facts)?;
    let endpoint = matched.strict.or(matched.lenient);
    let meets = |reading: &[u8], rule: Option<RuleId>| {
        let reading = shown(reading);
        match rule {
            None => format!("{reading} meets no rule"),
            Some(_) => format!(
                "{reading} meets {}: {}",
                policy.endpoint_name(rule),
                rule.and_then(|it| pattern(policy, it)).map(text).unwrap_or_default()
            ),
        }
    };
    let of_strict = meets(readings.strict(), matched.strict);
    let looked_at = if readings.agree() && matched.strict == matched.lenient {
        vec![Look::new("path", of_strict, true)]
    } else {
        let of_lenient = meets(readings.lenient(), matched.lenient);
        vec![
            Look::new("strictly", of_strict, matched.strict.is_some() || endpoint.is_none()),
            Look::new("leniently", of_lenient, matched.strict.is_none() && endpoint.is_some()),
        ]
    };
    let mut notes = Vec::new();
    if matched.strict != matched.lenient {
        notes.push(match (matched.strict, matched.lenient) {
            (Some(_), Some(_)) => "The limits of both rules hold.".to_owned(),
            _ => {
                "One reading is enough: the rule holds however a backend reads the path.".to_owned()
            }
        });
    }
    for further in &matched.further {
        notes.push(format!(
            "Some backends would read it as {}: that rule holds as well.",
            policy.endpoint_name(Some(*further))
        ));
    }
    for winner in matched.rules() {
        notes.extend(runner_up(policy, facts, winner));
    }
    notes.extend(near_misses(policy, facts, matched));
    let result = policy.endpoint_name(endpoint).to_owned();
    Ok(Step { name: "rule", result, looked_at, notes })
}

/// What the rules make of the request's limits: sentences on exempt, shadow and cost.
pub fn effects(policy: &Policy, facts: &RequestFacts<'_>, plan: &Plan<'_>) -> Vec<String> {
    let matched = policy.router().find(facts).unwrap_or_default();
    let met: Vec<&Rule> = matched.rules().filter_map(|id| policy.rule(id)).collect();
    let tier = tier_name(policy, plan.tier);
    let every =
        |holds: &dyn Fn(&Rule) -> bool| matched.all(|id| policy.rule(id).is_some_and(holds));
    let mut notes = Vec::new();
    if every(&|rule| rule.exempt) {
        notes.push(format!("{} is exempt: no limit is asked.", names(&met)));
        return notes;
    }
    let has_limits = |rule: &Rule| rule.limits.iter().any(Option::is_some);
    for rule in &met {
        let name = &rule.name;
        let own = rule.limits.get(usize::from(plan.tier.0)).copied().flatten();
        if rule.exempt {
            notes.push(format!("{name} is exempt, but the other reading is not: limits hold."));
        } else if has_limits(rule) && own.is_none() {
            notes.push(format!("{name} has no limits for {tier}: the tier's alone hold."));
        } else if has_limits(rule) && rule.mode == Mode::Shadow {
            notes.push(format!("{name} is in shadow: its limits count and report, never refuse."));
        }
        if rule.cost != 1 && rule.cost == plan.cost {
            notes.push(format!("{name} costs {} tokens of every limit.", rule.cost));
        }
    }
    if policy.mode() == Mode::Shadow {
        notes.push("mode: shadow holds for all: nothing refuses.".to_owned());
    } else if every(&|rule| rule.mode == Mode::Shadow && !has_limits(rule)) {
        let name = names(&met);
        notes.push(format!("{name} is in shadow and has no limits: the tier's never refuse here."));
    }
    notes
}

/// A request's mode: the rule's, or that of all.
pub fn mode(policy: &Policy, endpoint: Option<RuleId>) -> Mode {
    let rule = endpoint.and_then(|id| policy.rule(id));
    if policy.mode() == Mode::Shadow {
        Mode::Shadow
    } else {
        rule.map_or(Mode::Enforce, |it| it.mode)
    }
}

/// Bytes as they may be printed: whatever is no plain character is escaped.
pub fn shown(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for char in String::from_utf8_lossy(bytes).chars() {
        match char {
            '"' | '\'' | '\\' => text.push(char),
            _ => text.extend(char.escape_debug()),
        }
    }
    text
}

fn names(rules: &[&Rule]) -> String {
    rules.iter().map(|rule| &*rule.name).collect::<Vec<_>>().join(" and ")
}

fn pattern(policy: &Policy, rule: RuleId) -> Option<&Pattern> {
    policy.router().patterns().get(usize::from(rule.0))
}

/// A pattern as the file has it, in short. The values of fields are nobody's business.
fn text(pattern: &Pattern) -> String {
    let methods: Vec<&str> = pattern.methods.iter().map(http::Method::as_str).collect();
    let mut text = methods.join(",");
    if !text.is_empty() {
        text.push(' ');
    }
    text.push_str(&pattern.path);
    if let Some(host) = &pattern.host {
        text.push_str(&format!(" on {host}"));
    }
    for (name, _) in &pattern.headers {
        text.push_str(&format!(" with {name}"));
    }
    if pattern.strict_only {
        text.push_str(" (match: strict)");
    }
    text
}

/// What the request would meet if the rule were not there, and why it does not.
fn runner_up(policy: &Policy, facts: &RequestFacts<'_>, winner: RuleId) -> Option<String> {
    let index = usize::from(winner.0);
    let mut others = policy.router().patterns().to_vec();
    let won = (index < others.len()).then(|| others.remove(index))?;
    let matched = Router::new(&others).ok()?.find(facts).ok()?;
    let other = matched.strict.or(matched.lenient)?;
    let lost = others.get(usize::from(other.0))?;
    // Those behind the one that is left out have moved up.
    let other = if other.0 < winner.0 { other } else { RuleId(other.0.checked_add(1)?) };
    let [won_name, lost_name] = [winner, other].map(|id| policy.endpoint_name(Some(id)));
    let is_met = policy.router().find(facts).ok()?.rules().any(|met| met == other);
    (!is_met)
        .then(|| format!("{won_name} wins over {lost_name} ({}): {}.", text(lost), why(&won, lost)))
}

/// Why one of two patterns that the same request meets goes before the other.
fn why(won: &Pattern, lost: &Pattern) -> String {
    let (Ok(one), Ok(other)) = (PathPattern::parse(&won.path), PathPattern::parse(&lost.path))
    else {
        return "it is more specific".to_owned();
    };
    let literal = |bytes: &[u8]| shown(bytes);
    for (place, segment) in one.strict.iter().enumerate() {
        let place = place + 1;
        return match (segment, other.strict.get(place - 1)) {
            (Segment::Literal(own), Some(Segment::Any)) => {
                format!("in segment {place}, {} is closer than a {{name}}", literal(own))
            }
            (Segment::Literal(own), None) => {
                format!("in segment {place}, {} is closer than /**", literal(own))
            }
            (Segment::Any, None) => format!("in segment {place}, a {{name}} is closer than /**"),
            _ => continue,
        };
    }
    if other.below && !one.below {
        return "the path itself is closer than /**".to_owned();
    }
    let reasons = [
        (won.host.is_some() && lost.host.is_none(), "it names the host"),
        (!won.methods.is_empty() && lost.methods.is_empty(), "it names the method"),
        (won.headers.len() > lost.headers.len(), "it names more header fields"),
    ];
    let reason = reasons.into_iter().find_map(|(holds, reason)| holds.then_some(reason));
    reason.unwrap_or("it is more specific").to_owned()
}

/// Rules whose path fits, and something else does not.
fn near_misses(policy: &Policy, facts: &RequestFacts<'_>, matched: Matched) -> Vec<String> {
    let meets = |pattern: Pattern| {
        let matched = Router::new(&[pattern]).ok().and_then(|it| it.find(facts).ok());
        matched.is_some_and(|it| it.rules().next().is_some())
    };
    let bare = |pattern: &Pattern| Pattern {
        path: pattern.path.clone(),
        strict_only: pattern.strict_only,
        ..Pattern::default()
    };
    let misses = |(index, pattern): (usize, &Pattern)| {
        let id = RuleId(u16::try_from(index).ok()?);
        let has_conditions =
            pattern.host.is_some() || !pattern.methods.is_empty() || !pattern.headers.is_empty();
        if !has_conditions || matched.rules().any(|it| it == id) || !meets(bare(pattern)) {
            return None;
        }
        let methods = Pattern { methods: pattern.methods.clone(), ..bare(pattern) };
        let host = Pattern { host: pattern.host.clone(), ..bare(pattern) };
        let headers = Pattern { headers: pattern.headers.clone(), ..bare(pattern) };
        let missing: Vec<&str> = [(methods, "method"), (host, "host"), (headers, "header fields")]
            .into_iter()
            .filter_map(|(pattern, what)| (!meets(pattern)).then_some(what))
            .collect();
        let name = policy.endpoint_name(Some(id));
        (!missing.is_empty()).then(|| {
            let missing = missing.join(" and ");
            format!("{name} ({}) has this path, but another {missing}.", text(pattern))
        })
    };
    let patterns = policy.router().patterns().iter().enumerate();
    patterns.filter_map(misses).take(NEAR_MISSES_MAX).collect()
}
