//! Endpoint rules, from their mirror to patterns and compiled rules.
//!
//! Collects every error, not the first. What a path may look like, and which of two rules wins, is
//! the router's to say.

use std::collections::HashMap;

use http::{HeaderName, HeaderValue, Method};

use crate::config_path;
use crate::limiter::quota::{LIMIT_MAX, LimitSet};
use crate::policy::compiled::{NO_RULE, Rule, Tier};
use crate::policy::pattern::{PathPattern, parse_host};
use crate::policy::route::{Pattern, Router};

use super::compile::{failure_mode, not_defined};
use super::compile_limits::{Names, bad_name, limit_set, mode, too_large};
use super::report::{Problem, Report, Step, nearest};
use super::schema_tiers::{Endpoint, Matching};
use super::url::quoted;
use super::value::Ordered;
use super::warnings;

/// Compiles every rule, and the router that finds them.
pub fn endpoints(
    specs: &[Endpoint],
    tiers: &[Tier],
    names: &Names<'_>,
    report: &mut Report<'_>,
) -> (Vec<Rule>, Router) {
    let mut rules = Vec::with_capacity(specs.len());
    let mut patterns = Vec::with_capacity(specs.len());
    let mut seen: HashMap<&str, usize> = HashMap::with_capacity(specs.len());
    for (index, spec) in specs.iter().enumerate() {
        let name = rule_name(index, spec, &mut seen, report);
        rules.push(rule(index, name, spec, (tiers, names), report));
        patterns.push(pattern(index, spec, report));
        warnings::unreachable(index, spec, report);
    }
    match Router::new(&patterns) {
        Ok(router) => (rules, router),
        Err(errors) => {
            for error in errors {
                let path = config_path!["endpoints", error.pattern, "path"];
                report.value(path, Problem::new(error.message));
            }
            (rules, Router::default())
        }
    }
}

fn rule_name<'a>(
    index: usize,
    spec: &'a Endpoint,
    seen: &mut HashMap<&'a str, usize>,
    report: &mut Report<'_>,
) -> &'a str {
    let path = || config_path!["endpoints", index, "name"];
    let Some(name) = spec.name.as_deref() else {
        report.value(path(), Problem::new("missing").expected("a name, for labels and answers"));
        return "";
    };
    if let Some(problem) = bad_name(name, &[NO_RULE, "tier"]) {
        report.value(path(), problem);
    }
    if let Some(first) = seen.get(name) {
        let found = format!("{} is the name of endpoints[{first}] already", quoted(name));
        report.value(path(), Problem::new(found).expected("another name"));
    } else {
        seen.insert(name, index);
    }
    name
}

fn rule(
    index: usize,
    name: &str,
    spec: &Endpoint,
    (tiers, names): (&[Tier], &Names<'_>),
    report: &mut Report<'_>,
) -> Rule {
    let at = |key: &str| config_path!["endpoints", index, key];
    let mut any = None;
    let mut limits: Box<[Option<LimitSet>]> = vec![None; tiers.len()].into();
    let mut named = vec![false; if spec.limits.0.is_empty() { 0 } else { tiers.len() }];
    for (tier, spec) in spec.limits.iter() {
        let path = config_path!["endpoints", index, "limits", tier];
        for (key, is_given) in
            [("priority", spec.priority.is_some()), ("on_failure", spec.on_failure.is_some())]
        {
            if is_given {
                let path = [path.as_slice(), &[Step::from(key)]].concat();
                report.key(path, Problem::new("a tier's key").expected("limits only"));
            }
        }
        let set = limit_set(&path, spec, report);
        let set = (!set.is_unlimited()).then_some(set);
        if tier == "any" {
            any = set;
        } else if let Some(tier) = names.index.get(tier).copied() {
            if let Some((limit, named)) = limits.get_mut(tier).zip(named.get_mut(tier)) {
                (*limit, *named) = (set, true);
            }
        } else {
            let known = names.list.iter().copied().chain(["any"]);
            report.key(path, not_defined("tier", tier, known));
        }
    }
    if any.is_some() {
        let unnamed = limits.iter_mut().zip(&named).filter(|(_, is_named)| !**is_named);
        unnamed.for_each(|(limit, _)| *limit = any);
    }
    if spec.slow_threshold.is_some_and(|it| it.0.is_zero()) {
        report.value(at("slow_threshold"), Problem::new("0").expected("a duration above zero"));
    }
    if !spec.exempt {
        check_cost(index, spec.cost, tiers, &limits, report);
    }
    warnings::rule(index, spec, (&limits, &named), (tiers, names), report);
    Rule {
        name: name.into(),
        cost: spec.cost,
        exempt: spec.exempt,
        mode: mode(spec.mode),
        limits,
        on_failure: spec.on_failure.map(failure_mode),
        slow_threshold: spec.slow_threshold.map(|it| it.0),
    }
}

/// A cost above a limit that it is spent from would never pass.
fn check_cost(
    index: usize,
    cost: u32,
    tiers: &[Tier],
    limits: &[Option<LimitSet>],
    report: &mut Report<'_>,
) {
    let path = || config_path!["endpoints", index, "cost"];
    if cost == 0 {
        let problem = Problem::new("0").expected("at least 1");
        return report.value(path(), problem.hint("a rule without limits is `exempt: true`"));
    }
    // Limits are at least 1, and so is nearly every cost.
    if cost == 1 {
        return;
    }
    let tightest = |(tier, own): (&Tier, &Option<LimitSet>)| {
        let of_tier = tier.limits.cost_max().map(|most| (most, false));
        let of_rule = own.and_then(|own| own.cost_max()).map(|most| (most, true));
        let name = tier.name.clone();
        of_tier.into_iter().chain(of_rule).min().map(|(most, is_own)| (most, is_own, name))
    };
    let tightest = tiers.iter().zip(limits).filter_map(tightest).min_by_key(|(most, ..)| *most);
    if let Some((most, is_own, tier)) = tightest
        && cost > most
    {
        let whose = if is_own { "the rule's limits for tier" } else { "the limits of tier" };
        let expected = format!("at most {most}, the least of {whose} \"{tier}\"");
        report.value(path(), Problem::new(cost.to_string()).expected(expected));
    } else if cost > LIMIT_MAX {
        report.value(path(), too_large(cost));
    }
}

/// What the router gets to see of a rule. Of one that is wrong it sees a path that is nobody
/// else's: half a rule would seem to clash with others, and leaving it out would shift their
/// places.
fn pattern(index: usize, spec: &Endpoint, report: &mut Report<'_>) -> Pattern {
    let at = |key: &str| config_path!["endpoints", index, key];
    let mut is_sound = !report.is_silent_below(&["endpoints".into(), index.into()]);
    let methods = methods(index, &spec.methods, report);
    let headers = fields(&at("headers"), &spec.headers, report);
    is_sound &= methods.len() == spec.methods.len() && headers.len() == spec.headers.0.len();
    if let Some(Err(message)) = spec.host.as_deref().map(parse_host) {
        report.value(at("host"), Problem::new(message));
        is_sound = false;
    }
    match &spec.path {
        Some(path) if is_sound => Pattern {
            path: path.clone(),
            methods,
            host: spec.host.clone(),
            headers,
            strict_only: spec.matching == Matching::Strict,
        },
        other => {
            match other.as_deref().map(PathPattern::parse) {
                None => {
                    let problem = Problem::new("missing").expected("a path, such as /api/**");
                    report.value(at("path"), problem);
                }
                Some(Err(messages)) => messages
                    .into_iter()
                    .for_each(|message| report.value(at("path"), Problem::new(message))),
                Some(Ok(_)) => {}
            }
            Pattern { path: format!("/endpoints-{index}-is-wrong"), ..Pattern::default() }
        }
    }
}

fn methods(index: usize, texts: &[String], report: &mut Report<'_>) -> Vec<Method> {
    const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    let mut methods = Vec::with_capacity(texts.len());
    for (place, text) in texts.iter().enumerate() {
        let path = || config_path!["endpoints", index, "methods", place];
        match Method::from_bytes(text.as_bytes()) {
            Ok(method) if !text.bytes().any(|byte| byte.is_ascii_lowercase()) => {
                methods.push(method);
            }
            _ => {
                let problem = Problem::new(quoted(text)).expected("a method in capitals");
                report.value(
                    path(),
                    match nearest(text, KNOWN) {
                        Some(near) => problem.hint(format!("did you mean \"{near}\"?")),
                        None => problem,
                    },
                );
            }
        }
    }
    methods
}

/// Header fields by name and exact value.
pub fn fields(
    path: &[Step],
    specs: &Ordered<String>,
    report: &mut Report<'_>,
) -> Vec<(HeaderName, HeaderValue)> {
    let mut fields = Vec::with_capacity(specs.0.len());
    for (name, value) in specs.iter() {
        let below = || [path, &[Step::from(name)]].concat();
        match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
            (Ok(name), Ok(value)) => fields.push((name, value)),
            (Err(_), _) => {
                let problem = Problem::new(quoted(name)).expected("the name of a header field");
                report.key(below(), problem);
            }
            (_, Err(_)) => {
                let problem = Problem::new(quoted(value)).expected("a header field's value");
                report.value(below(), problem);
            }
        }
    }
    fields
}
