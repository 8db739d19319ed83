//! The mirror of `tiers.yaml` to a compiled policy.
//!
//! Collects every error, not the first. Owns what names may look like and which limits make sense.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::config_path;
use crate::limiter::quota::{Bucket, LimitSet, Mode};
use crate::policy::compiled::{Assigned, NO_RULE, Policy, PolicyParts, Rule, Tier};
use crate::policy::identity::{Identity, IpPrefix, PrefixLengths};
use crate::policy::plan::TierId;
use crate::policy::route::{Pattern, Router};

use super::compile::{failure_mode, host_bits, not_defined};
use super::report::{Path, Problem, Report, Step, nearest};
use super::schema_tiers::{
    DispositionSpec, Endpoint, LimitSpec, Matching, ModeSpec, TestSpec, TiersFile,
};
use super::tree::Mark;
use super::unsupported::refuse_in_tiers;
use super::url::{self, quoted};
use super::value::Ordered;

/// Identities that a policy names by index: 16 bits.
const INDICES_MAX: usize = u16::MAX as usize;
/// Sets of limits that rules keep, one per tier and rule.
const RULE_LIMITS_MAX: usize = 1 << 22;
/// They are label values, and parts of Redis keys.
const NAME_BYTES_MAX: usize = 64;
/// Longest user or key.
const IDENTIFIER_BYTES_MAX: usize = 256;

/// What `tollgate check` verifies of the policy.
#[derive(Clone, Debug)]
pub struct PolicyTest {
    /// The field: `tests[2]`.
    pub path: String,
    /// Its place in the tiers file.
    pub mark: Option<Mark>,
    /// The request's method.
    pub method: Method,
    /// Its path, without a query.
    pub target: String,
    /// The caller's address.
    pub ip: IpAddr,
    /// Its header fields.
    pub headers: HeaderMap,
    /// The tier that the caller must have.
    pub tier: Option<String>,
    /// The rule that it must meet; [`NO_RULE`] for none.
    pub endpoint: Option<String>,
    /// Who the caller must be, as identities are written.
    pub identity: Option<String>,
    /// What the request must cost.
    pub cost: Option<u32>,
    /// What must happen before any limit is asked.
    pub disposition: Option<DispositionSpec>,
}

/// Tiers by name, in the order of the file.
struct Names<'a> {
    list: Vec<&'a str>,
    index: HashMap<&'a str, usize>,
}

impl Names<'_> {
    fn find(&self, path: Path, name: &str, report: &mut Report<'_>) -> Option<usize> {
        let index = self.index.get(name).copied();
        if index.is_none() {
            report.value(path, not_defined("tier", name, self.list.iter().copied()));
        }
        index
    }
}

/// Compiles the parts that this file gives; the caller adds those of the other file. Whether they
/// may be used, the report says.
pub fn parts(file: &TiersFile, prefixes: PrefixLengths, report: &mut Report<'_>) -> PolicyParts {
    refuse_in_tiers(file, report);
    let none = Ordered::default();
    let specs = file.tiers.as_ref().unwrap_or(&none);
    let names = Names {
        list: specs.iter().map(|(name, _)| name).collect(),
        index: specs.iter().enumerate().map(|(index, (name, _))| (name, index)).collect(),
    };
    if let Some(problem) = too_many(specs.0.len(), INDICES_MAX, "tiers") {
        report.key(config_path!["tiers"], problem);
        return PolicyParts::default();
    }
    let tiers = tiers(specs, report);
    let default_tier = default_tier(file, &names, report);
    let rule_cells = tiers.len().saturating_mul(file.endpoints.len());
    let too_many = too_many(file.endpoints.len(), INDICES_MAX, "rules")
        .or_else(|| too_many(rule_cells, RULE_LIMITS_MAX, "rules times tiers"));
    if let Some(problem) = too_many {
        report.key(config_path!["endpoints"], problem);
        return PolicyParts::default();
    }
    let (rules, router) = endpoints(&file.endpoints, &tiers, &names, report);
    PolicyParts {
        default_tier,
        subscriptions: subscriptions(
            file.subscriptions.as_ref().unwrap_or(&Ordered::default()),
            &names,
            report,
        ),
        networks: networks(&file.networks, &names, report),
        identities: identities(&file.identities, prefixes, &names, report),
        tiers,
        rules,
        router,
        mode: mode(file.mode),
        trusted_proxies: Vec::new(),
        prefixes,
    }
}

/// Reads `tests:` against the policy's names.
pub fn tests(file: &TiersFile, report: &mut Report<'_>) -> Vec<PolicyTest> {
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
        test(index, spec, report)
    };
    file.tests.iter().enumerate().filter_map(read).collect()
}

fn too_many(count: usize, most: usize, what: &str) -> Option<Problem> {
    let problem = || Problem::new(format!("{count} {what}")).expected(format!("at most {most}"));
    (count > most).then(problem)
}

fn mode(mode: ModeSpec) -> Mode {
    match mode {
        ModeSpec::Enforce => Mode::Enforce,
        ModeSpec::Shadow => Mode::Shadow,
    }
}

fn tiers(specs: &Ordered<LimitSpec>, report: &mut Report<'_>) -> Vec<Tier> {
    if specs.0.is_empty() {
        let problem = Problem::new("no tiers").expected("at least one");
        report.value(config_path!["tiers"], problem);
    }
    let tier = |(name, spec): (&str, &LimitSpec)| {
        let path = config_path!["tiers", name];
        if let Some(problem) = bad_name(name, &["any", "deny"]) {
            report.key(path.clone(), problem);
        } else if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            let lower = name.to_ascii_lowercase();
            let problem = Problem::new(quoted(name)).expected("lower case");
            report.key(path.clone(), problem.hint(format!("did you mean \"{lower}\"?")));
        }
        Tier {
            name: name.into(),
            limits: limit_set(&path, spec, report),
            on_failure: spec.on_failure.map(failure_mode),
        }
    };
    specs.iter().map(tier).collect()
}

fn default_tier(file: &TiersFile, names: &Names<'_>, report: &mut Report<'_>) -> usize {
    let path = config_path!["default_tier"];
    let is_known = names.index.contains_key(file.default_tier.as_str());
    // No tiers at all is reported as just that.
    if names.list.is_empty() {
        return 0;
    }
    if !is_known && !report.is_set(&path) {
        let problem = Problem::new("not set, and its default \"free\" is no tier here")
            .expected(super::report::one_of(names.list.iter().copied()));
        // Above all others stands what every file has: its tiers.
        report.key(config_path!["tiers"], problem);
        return 0;
    }
    names.find(path, &file.default_tier, report).unwrap_or(0)
}

/// The limits of a tier, or of a rule for one tier.
fn limit_set(path: &[Step], spec: &LimitSpec, report: &mut Report<'_>) -> LimitSet {
    let below = |key: &str| [path, &[Step::from(key)]].concat();
    let mut window = |key: &str, number: Option<u32>| {
        if number == Some(0) {
            report.value(below(key), Problem::new("0").expected("at least 1"));
        }
        number.and_then(NonZeroU32::new)
    };
    let rate = window("per_second", spec.per_second);
    let burst = window("burst", spec.burst);
    let minute = window("per_minute", spec.per_minute);
    let hour = window("per_hour", spec.per_hour);
    window("per_day", spec.per_day);
    window("per_month", spec.per_month);
    window("concurrency", spec.concurrency);
    if burst.is_some() && spec.per_second.is_none() {
        let problem = Problem::new("burst without per_second").expected("both, or neither");
        report.key(below("burst"), problem);
    }
    let second = rate.map(|rate| Bucket { rate, burst: burst.unwrap_or(rate) });
    let set = LimitSet { second, minute, hour };
    warn_of_odd_limits(path, &set, report);
    set
}

/// Limits that are no errors, and hardly what was meant.
fn warn_of_odd_limits(path: &[Step], set: &LimitSet, report: &mut Report<'_>) {
    let below = |key: &str| [path, &[Step::from(key)]].concat();
    let wide = |number: NonZeroU32| u64::from(number.get());
    if let Some(Bucket { rate, burst }) = set.second
        && burst < rate
    {
        let problem = Problem::new(format!("burst {burst} is below per_second {rate}"));
        report.warn(below("burst"), problem.hint("requests at the same moment get the burst only"));
    }
    let in_a_minute =
        set.second.map(|bucket| wide(bucket.burst) + wide(bucket.rate).saturating_mul(60));
    if let (Some(most), Some(minute)) = (in_a_minute, set.minute)
        && wide(minute) > most
    {
        let problem = Problem::new(format!("{minute} is never reached"));
        let problem = problem.hint(format!("per_second and burst let {most} pass in a minute"));
        report.warn(below("per_minute"), problem);
    }
    if let (Some(minute), Some(hour)) = (set.minute, set.hour)
        && minute > hour
    {
        let problem = Problem::new(format!("{minute} is never reached"));
        report.warn(below("per_minute"), problem.hint(format!("per_hour is {hour}")));
    }
}

/// What is wrong with a name of a tier or a rule: it becomes a label and a part of keys.
fn bad_name(name: &str, reserved: &[&str]) -> Option<Problem> {
    if reserved.contains(&name) {
        let problem = Problem::new(format!("{} is a reserved name", quoted(name)));
        return Some(problem.expected("another name"));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let is_good = begins && name.len() <= NAME_BYTES_MAX && name.bytes().all(plain);
    let expected = "up to 64 letters, digits, and any of _-. behind the first";
    (!is_good).then(|| Problem::new(quoted(name)).expected(expected))
}

fn subscriptions(
    specs: &Ordered<String>,
    names: &Names<'_>,
    report: &mut Report<'_>,
) -> HashMap<Box<str>, usize> {
    let mut subscriptions = HashMap::with_capacity(specs.0.len());
    for (name, tier) in specs.iter() {
        let path = || config_path!["subscriptions", name];
        if name.is_empty() {
            report.key(path(), Problem::new("an empty name").expected("a subscription"));
        }
        let Some(tier) = names.find(path(), tier, report) else { continue };
        if subscriptions.insert(name.to_ascii_lowercase().into(), tier).is_some() {
            let found = format!("{} is given twice, letters' case aside", quoted(name));
            report.key(path(), Problem::new(found));
        }
    }
    subscriptions
}

fn networks(
    specs: &Ordered<String>,
    names: &Names<'_>,
    report: &mut Report<'_>,
) -> Vec<(ipnet::IpNet, usize)> {
    let mut seen: HashMap<ipnet::IpNet, &str> = HashMap::with_capacity(specs.0.len());
    let mut networks = Vec::with_capacity(specs.0.len());
    for (text, tier) in specs.iter() {
        let path = || config_path!["networks", text];
        let tier = names.find(path(), tier, report);
        match url::network(text) {
            Ok((network, has_host_bits)) => {
                if has_host_bits {
                    report.warn(path(), host_bits(text, &network));
                }
                if let Some(first) = seen.insert(network, text) {
                    let found = format!("the same network as {}", quoted(first));
                    report.key(path(), Problem::new(found));
                }
                networks.extend(tier.map(|tier| (network, tier)));
            }
            Err(problem) => report.key(path(), problem),
        }
    }
    networks
}

fn identities(
    specs: &Ordered<String>,
    prefixes: PrefixLengths,
    names: &Names<'_>,
    report: &mut Report<'_>,
) -> HashMap<Identity, Assigned> {
    let mut seen: HashMap<Identity, &str> = HashMap::with_capacity(specs.0.len());
    let mut identities = HashMap::with_capacity(specs.0.len());
    for (text, value) in specs.iter() {
        let path = || config_path!["identities", text];
        let assigned = if value == "deny" {
            Some(Assigned::Deny)
        } else if let Some(tier) = names.index.get(value.as_str()) {
            u16::try_from(*tier).ok().map(|tier| Assigned::Tier(TierId(tier)))
        } else {
            let known = names.list.iter().copied().chain(["deny"]);
            report.value(path(), not_defined("tier", value, known));
            None
        };
        match identity(text, prefixes) {
            Ok(identity) => {
                if let Some(first) = seen.insert(identity.clone(), text) {
                    let found = format!("the same identity ({identity}) as {}", quoted(first));
                    report.key(path(), Problem::new(found));
                }
                identities.extend(assigned.map(|assigned| (identity, assigned)));
            }
            Err(problem) => report.key(path(), problem),
        }
    }
    identities
}

/// Reads an identity as it is written, an address folded to its prefix.
///
/// # Errors
/// What was found and what was expected.
pub fn identity(text: &str, prefixes: PrefixLengths) -> Result<Identity, Problem> {
    let wrong = || Problem::new(quoted(text));
    let Some((kind, id)) = text.split_once(':') else {
        let problem = wrong().expected("ip:ADDRESS, user:ID or key:ID");
        return Err(match text.parse::<IpAddr>() {
            Ok(_) => problem.hint(format!("did you mean \"ip:{text}\"?")),
            Err(_) => problem,
        });
    };
    let is_plain =
        !id.is_empty() && id.len() <= IDENTIFIER_BYTES_MAX && !id.chars().any(char::is_control);
    let expected = "1 to 256 bytes without control characters behind the colon";
    match kind {
        "user" | "key" if !is_plain => Err(wrong().expected(expected)),
        "user" => Ok(Identity::User(id.into())),
        "key" => Ok(Identity::Key(id.into())),
        "ip" => address_identity(id, prefixes),
        _ => Err(wrong().expected_one_of(kind, ["ip", "user", "key"]))
            .map_err(|problem| problem.expected("ip:ADDRESS, user:ID or key:ID")),
    }
}

fn address_identity(text: &str, prefixes: PrefixLengths) -> Result<Identity, Problem> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        return Err(Problem::new(quoted(text)).expected("an address behind \"ip:\""));
    };
    let address = address.to_canonical();
    let kept = if address.is_ipv4() { prefixes.ipv4 } else { prefixes.ipv6 };
    if let Some(length) = length
        && length.parse() != Ok(kept)
    {
        let problem = Problem::new(format!("{} has another prefix than identities", quoted(text)));
        let problem = problem.expected(format!("an address, or /{kept}"));
        return Err(problem.hint("to give a network a tier, use networks"));
    }
    Ok(Identity::Ip(IpPrefix::new(address, prefixes)))
}

fn endpoints(
    specs: &[Endpoint],
    tiers: &[Tier],
    names: &Names<'_>,
    report: &mut Report<'_>,
) -> (Vec<Rule>, Router) {
    let mut rules = Vec::with_capacity(specs.len());
    let mut patterns = Vec::with_capacity(specs.len());
    // A rule that is no pattern is left out; the others keep their place in the file here.
    let mut places = Vec::with_capacity(specs.len());
    let mut seen: HashMap<&str, usize> = HashMap::with_capacity(specs.len());
    for (index, spec) in specs.iter().enumerate() {
        let name = rule_name(index, spec, &mut seen, report);
        rules.push(rule(index, name, spec, (tiers, names), report));
        if let Some(pattern) = pattern(index, spec, report) {
            patterns.push(pattern);
            places.push(index);
        }
    }
    match Router::new(&patterns) {
        Ok(router) => (rules, router),
        Err(errors) => {
            for error in errors {
                let index = places.get(error.pattern).copied().unwrap_or(error.pattern);
                report.value(config_path!["endpoints", index, "path"], Problem::new(error.message));
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
    if spec.exempt {
        for (key, is_given) in [("cost", spec.cost != 1), ("limits", !spec.limits.0.is_empty())] {
            if is_given {
                report.warn(at(key), Problem::new("without effect: the rule is exempt"));
            }
        }
    } else {
        check_cost(index, spec.cost, tiers, &limits, report);
    }
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
    }
}

fn pattern(index: usize, spec: &Endpoint, report: &mut Report<'_>) -> Option<Pattern> {
    let at = |key: &str| config_path!["endpoints", index, key];
    let methods = methods(index, &spec.methods, report);
    if let Some(host) = &spec.host {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
        if host.is_empty() || !host.bytes().all(plain) {
            let problem = Problem::new(quoted(host)).expected("a host's name, without a scheme");
            report.value(at("host"), problem);
        }
    }
    let path = || config_path!["endpoints", index, "headers"];
    let headers = fields(&path(), &spec.headers, report);
    let Some(path) = &spec.path else {
        let problem = Problem::new("missing").expected("a path, such as /api/**");
        report.value(at("path"), problem);
        return None;
    };
    Some(Pattern {
        path: path.clone(),
        methods,
        host: spec.host.clone(),
        headers,
        strict_only: spec.matching == Matching::Strict,
    })
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

fn fields(
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

fn test(index: usize, spec: &TestSpec, report: &mut Report<'_>) -> Option<PolicyTest> {
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
    let headers = fields(&at("headers"), &spec.headers, report).into_iter().collect();
    let (method, target) = parsed?;
    let path = config_path!["tests", index];
    Some(PolicyTest {
        mark: report.place(&path),
        path: super::report::written(&path),
        method,
        target,
        ip: ip?,
        headers,
        tier: spec.expect.tier.clone(),
        endpoint: spec.expect.endpoint.clone(),
        identity: spec.expect.identity.clone(),
        cost: spec.expect.cost,
        disposition: spec.expect.disposition,
    })
}

/// Puts the parts together, with what the other file gives.
pub fn policy(mut parts: PolicyParts, trusted_proxies: Vec<ipnet::IpNet>) -> Policy {
    parts.trusted_proxies = trusted_proxies;
    Policy::new(parts)
}
