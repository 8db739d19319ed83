//! The mirror of `tiers.yaml` to the parts of a policy: tiers, and who is on which.
//!
//! Collects every error, not the first.

use std::collections::HashMap;
use std::net::IpAddr;

use http::{HeaderMap, Method};

use crate::config_path;
use crate::policy::caller::Credential;
use crate::policy::compiled::{Assigned, PolicyParts, Tier};
use crate::policy::identity::{Identity, IdentityFault, PrefixLengths};
use crate::policy::plan::TierId;

use super::compile::{failure_mode, host_bits, not_defined};
use super::compile_limits::{Names, bad_name, limit_set, mode};
use super::compile_rules::endpoints;
use super::report::{Problem, Report, nearest, one_of};
use super::schema_tiers::{DispositionSpec, LimitSpec, TiersFile};
use super::tree::Mark;
use super::unsupported::refuse_in_tiers;
use super::url::{self, quoted};
use super::value::Ordered;

/// Identities that a policy names by index: 16 bits.
const INDICES_MAX: usize = u16::MAX as usize;
/// Sets of limits that rules keep, one per tier and rule.
const RULE_LIMITS_MAX: usize = 1 << 22;

/// One request, and what must come of it.
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
    /// What the caller presents beside it.
    pub credential: Option<Credential>,
    /// Its header fields.
    pub headers: HeaderMap,
    /// The tier that the caller must have.
    pub tier: Option<String>,
    /// The rule that it must meet; `other` for none.
    pub endpoint: Option<String>,
    /// Who the caller must be, as identities are written.
    pub identity: Option<String>,
    /// What the request must cost.
    pub cost: Option<u32>,
    /// What must happen before any limit is asked.
    pub disposition: Option<DispositionSpec>,
}

/// Compiles the parts that this file gives; the caller adds those of the other file. Whether they
/// may be used, the report says.
pub fn parts(file: &TiersFile, prefixes: PrefixLengths, report: &mut Report<'_>) -> PolicyParts {
    refuse_in_tiers(file, report);
    let (no_tiers, no_plans) = (Ordered::default(), Ordered::default());
    let specs = file.tiers.as_ref().unwrap_or(&no_tiers);
    let names = Names::new(specs);
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
    let plans = file.subscriptions.as_ref().unwrap_or(&no_plans);
    let (rules, router) = endpoints(&file.endpoints, &tiers, &names, report);
    PolicyParts {
        default_tier,
        subscriptions: subscriptions(plans, &names, report),
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

fn too_many(count: usize, most: usize, what: &str) -> Option<Problem> {
    let problem = || Problem::new(format!("{count} {what}")).expected(format!("at most {most}"));
    (count > most).then(problem)
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
            .expected(one_of(names.list.iter().copied()));
        // Above all others stands what every file has: its tiers.
        report.key(config_path!["tiers"], problem);
        return 0;
    }
    names.find(path, &file.default_tier, report).unwrap_or(0)
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
    Identity::parse(text, prefixes).map_err(|fault| {
        let wrong = |expected: &str| Problem::new(quoted(text)).expected(expected);
        let of_kind = "ip:ADDRESS, user:ID or key:ID";
        let address = text.split_once(':').map_or(text, |(_, address)| address);
        match fault {
            IdentityFault::Kind => match text.split_once(':') {
                None if text.parse::<IpAddr>().is_ok() => {
                    wrong(of_kind).hint(format!("did you mean \"ip:{text}\"?"))
                }
                None => wrong(of_kind),
                Some((kind, id)) => match nearest(kind, ["ip", "user", "key"]) {
                    Some(near) => wrong(of_kind).hint(format!("did you mean \"{near}:{id}\"?")),
                    None => wrong(of_kind),
                },
            },
            IdentityFault::Id => {
                wrong("1 to 256 bytes without control characters behind the colon")
            }
            IdentityFault::Address => {
                Problem::new(quoted(address)).expected("an address behind \"ip:\"")
            }
            IdentityFault::Prefix(kept) => {
                let problem =
                    Problem::new(format!("{} has another prefix than identities", quoted(address)));
                let problem = problem.expected(format!("an address, or /{kept}"));
                problem.hint("to give a network a tier, use networks")
            }
        }
    })
}
