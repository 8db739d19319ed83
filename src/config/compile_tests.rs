//! The policy's own `tests:`, read against its names.
//!
//! Nothing is run here: `tollgate check` does that, through the very plan that requests get.

use std::net::{IpAddr, Ipv4Addr};

use http::Method;

use crate::config_path;
use crate::policy::caller::Credential;
use crate::policy::compiled::NO_RULE;
use crate::policy::identity::{Identity, PrefixLengths};

use super::compile::not_defined;
use super::compile_rules::fields;
use super::compile_tiers::{self, PolicyTest};
use super::report::{Problem, Report, written};
use super::schema_tiers::{TestSpec, TiersFile};
use super::url::quoted;

/// Reads `tests:` against the policy's names.
pub fn tests(
    file: &TiersFile,
    prefixes: PrefixLengths,
    report: &mut Report<'_>,
) -> Vec<PolicyTest> {
    let tiers: Vec<&str> =
        file.tiers.iter().flat_map(|tiers| tiers.iter().map(|(name, _)| name)).collect();
    let rules: Vec<&str> = file
        .endpoints
        .iter()
        .filter_map(|endpoint| endpoint.name.as_deref())
        .chain([NO_RULE])
        .collect();
    let read = |(index, spec): (usize, &TestSpec)| {
        let at = |key: &str| config_path!["tests", index, "expect", key];
        let expect = &spec.expect;
        if let Some(tier) = &expect.tier
            && !tiers.contains(&tier.as_str())
        {
            report.value(at("tier"), not_defined("tier", tier, tiers.iter().copied()));
        }
        if let Some(rule) = &expect.endpoint
            && !rules.contains(&rule.as_str())
        {
            report.value(at("endpoint"), not_defined("rule", rule, rules.iter().copied()));
        }
        test(index, spec, prefixes, report)
    };
    file.tests.iter().enumerate().filter_map(read).collect()
}

fn test(
    index: usize,
    spec: &TestSpec,
    prefixes: PrefixLengths,
    report: &mut Report<'_>,
) -> Option<PolicyTest> {
    let at = |key: &str| config_path!["tests", index, key];
    let expected = "a method and a path, such as GET /fo/history/2025";
    let Some(request) = &spec.request else {
        report.value(at("request"), Problem::new("missing").expected(expected));
        return None;
    };
    let parsed = request.split_once(' ').and_then(|(method, target)| {
        let target = target.trim();
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        let is_path = path.starts_with('/') || path == "*";
        let method = Method::from_bytes(method.as_bytes()).ok()?;
        is_path.then(|| (method, path.to_owned()))
    });
    if parsed.is_none() {
        report.value(at("request"), Problem::new(quoted(request)).expected(expected));
    }
    let ip = match spec.ip.as_deref().map(str::parse) {
        None => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        Some(Ok(ip)) => Some(ip),
        Some(Err(_)) => {
            let found = quoted(spec.ip.as_deref().unwrap_or(""));
            report.value(at("ip"), Problem::new(found).expected("an address"));
            None
        }
    };
    let credential = credential(index, spec, prefixes, report);
    let headers = fields(&at("headers"), &spec.headers, report).into_iter().collect();
    let (method, target) = parsed?;
    let path = config_path!["tests", index];
    Some(PolicyTest {
        mark: report.place(&path),
        path: written(&path),
        method,
        target,
        ip: ip?,
        credential,
        headers,
        tier: spec.expect.tier.clone(),
        endpoint: spec.expect.endpoint.clone(),
        identity: spec.expect.identity.clone(),
        cost: spec.expect.cost,
        disposition: spec.expect.disposition,
    })
}

/// What the test says that was presented and verified.
fn credential(
    index: usize,
    spec: &TestSpec,
    prefixes: PrefixLengths,
    report: &mut Report<'_>,
) -> Option<Credential> {
    let at = |key: &str| config_path!["tests", index, key];
    let subscription = spec.subscription.as_deref().map(Into::into);
    let Some(text) = &spec.identity else {
        if subscription.is_some() {
            let problem = Problem::new("subscription without identity").expected("both");
            let hint = "who is known by address only has no subscription";
            report.key(at("subscription"), problem.hint(hint));
        }
        return None;
    };
    let expected = "user:ID or key:ID";
    match compile_tiers::identity(text, prefixes) {
        Ok(Identity::Ip(_)) => {
            let problem = Problem::new(quoted(text)).expected(expected);
            report.value(at("identity"), problem.hint("the address is `ip`"));
            None
        }
        Ok(identity) => Some(Credential { identity, subscription }),
        Err(problem) => {
            let is_kind = text.starts_with("user:") || text.starts_with("key:");
            let problem = if is_kind { problem } else { problem.expected(expected) };
            report.value(at("identity"), problem);
            None
        }
    }
}
