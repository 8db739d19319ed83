//! Who sends the requests of a log: each caller once, with what the policies say of it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use foldhash::quality::RandomState;

use crate::policy::caller::{Caller, Credential};
use crate::policy::compiled::Policy;
use crate::policy::identity::{Identity, is_identifier};
use crate::policy::tier::Resolved;

use super::line::{IdentityFrom, Line};

/// Callers that a replay can tell apart. One takes some 300 bytes.
pub const CALLERS_MAX: usize = 20_000_000;

/// What one policy says of a caller.
#[derive(Clone, Debug)]
pub struct Known {
    /// Who it is.
    pub identity: Identity,
    /// Its tier, and whether it is refused.
    pub resolved: Resolved,
}

/// One caller, as it stands in the log.
#[derive(Debug)]
pub struct Entry {
    /// What the policies say: the one that is tried, then the one that it is compared with.
    pub known: [Option<Known>; 2],
    /// Its identity by the policy that is tried: what it is counted by. Callers that differ in the log
    /// may be one identity.
    pub identity: u32,
}

/// Why a line's caller is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallerFault {
    /// Neither a user nor an address is known.
    Nobody,
    /// There are too many already.
    TooMany,
}

/// All callers of a log.
#[derive(Debug)]
pub struct Callers<'p> {
    policies: [Option<&'p Policy>; 2],
    from: IdentityFrom,
    /// Whether a policy refuses addresses, so that a user's counts as well.
    needs_addresses: bool,
    by_text: HashMap<Box<[u8]>, u32, RandomState>,
    entries: Vec<Entry>,
    by_identity: HashMap<Identity, u32>,
    /// What the log says of an identity's tier, by its number: what it said last.
    tiers: Vec<Option<Arc<str>>>,
    key: Vec<u8>,
}

/// Who a line says it is.
#[derive(Clone, Copy)]
enum Who<'a> {
    Address(&'a str),
    User(&'a str),
    Written(&'a str),
}

impl<'p> Callers<'p> {
    /// None yet, for the policy that is tried and the one that it is compared with.
    pub fn new(policies: [Option<&'p Policy>; 2], from: IdentityFrom) -> Self {
        Callers {
            policies,
            from,
            needs_addresses: policies.iter().flatten().any(|it| it.refuses_addresses()),
            by_text: HashMap::default(),
            entries: Vec::new(),
            by_identity: HashMap::new(),
            tiers: Vec::new(),
            key: Vec::new(),
        }
    }

    /// The number of a line's caller.
    ///
    /// # Errors
    /// It has none, or there are too many.
    pub fn number(&mut self, line: &Line<'_>) -> Result<u32, CallerFault> {
        let who = self.who(line)?;
        let is_address = matches!(who, Who::Address(_));
        let connected = line.address.as_deref().filter(|_| self.needs_addresses && !is_address);
        self.key.clear();
        let (kind, text) = match who {
            Who::Address(text) => (b'a', text),
            Who::User(text) => (b'u', text),
            Who::Written(text) => (b'w', text),
        };
        self.key.push(kind);
        for part in [Some(text), line.tier.as_deref(), connected.map(without_port)] {
            self.key.extend_from_slice(part.unwrap_or_default().as_bytes());
            self.key.push(0);
        }
        if let Some(number) = self.by_text.get(&*self.key) {
            return Ok(*number);
        }
        if self.entries.len() >= CALLERS_MAX {
            return Err(CallerFault::TooMany);
        }
        let caller = caller_of(who, line).ok_or(CallerFault::Nobody)?;
        let number = u32::try_from(self.entries.len()).map_err(|_| CallerFault::TooMany)?;
        let known = self.policies.map(|policy| policy.map(|policy| known(policy, &caller)));
        let [Some(Known { identity, .. }), _] = &known else { return Err(CallerFault::Nobody) };
        let next = u32::try_from(self.by_identity.len()).map_err(|_| CallerFault::TooMany)?;
        let identity = *self.by_identity.entry(identity.clone()).or_insert(next);
        self.entries.push(Entry { known, identity });
        let place = usize::try_from(identity).unwrap_or(0);
        self.tiers.resize(self.tiers.len().max(place + 1), None);
        if let Some(tier) = self.tiers.get_mut(place)
            && line.tier.is_some()
        {
            *tier = line.tier.as_deref().map(Into::into);
        }
        self.by_text.insert(self.key.clone().into(), number);
        Ok(number)
    }

    /// A caller by its number.
    pub fn get(&self, number: u32) -> Option<&Entry> {
        self.entries.get(usize::try_from(number).ok()?)
    }

    /// Every identity with its number.
    pub fn identities(&self) -> impl Iterator<Item = (&Identity, u32)> {
        self.by_identity.iter().map(|(identity, number)| (identity, *number))
    }

    /// The tier that the log says an identity has.
    pub fn tier_of(&self, identity: u32) -> Option<&str> {
        self.tiers.get(usize::try_from(identity).ok()?)?.as_deref()
    }

    /// Every tier that the log names, as often as identities have it.
    pub fn tiers(&self) -> impl Iterator<Item = &str> {
        self.tiers.iter().flatten().map(|tier| &**tier)
    }

    fn who<'a>(&self, line: &'a Line<'_>) -> Result<Who<'a>, CallerFault> {
        let user = line.user.as_deref().filter(|user| is_identifier(user)).map(Who::User);
        let written = line.identity.as_deref();
        let is_address = |text: &&str| text.starts_with("ip:");
        let address = written
            .filter(is_address)
            .map(Who::Written)
            .or_else(|| line.address.as_deref().map(without_port).map(Who::Address));
        let known = match &self.from {
            IdentityFrom::Log => written.map(Who::Written).or(user),
            IdentityFrom::Address => None,
            IdentityFrom::User => {
                user.or_else(|| written.filter(|it| !is_address(it)).map(Who::Written))
            }
            IdentityFrom::Field(_) => {
                line.named.as_deref().filter(|name| is_identifier(name)).map(Who::User)
            }
        };
        known.or(address).ok_or(CallerFault::Nobody)
    }
}

fn known(policy: &Policy, caller: &Caller) -> Known {
    let identity = policy.identity_of(caller);
    let resolved = policy.resolve(&identity, caller);
    Known { identity, resolved }
}

/// What a policy is to be asked about. An address has the tier that the policy gives it, whatever the
/// log says; a user, the one of the log, as if a token carried it.
fn caller_of(who: Who<'_>, line: &Line<'_>) -> Option<Caller> {
    let connected = line.address.as_deref().and_then(address);
    let identity = match who {
        Who::Address(text) => return address(text).map(Caller::by_address),
        Who::User(id) => Identity::User(id.into()),
        Who::Written(text) => Identity::parse_written(text)?,
    };
    if let Identity::Ip(prefix) = &identity {
        return Some(Caller::by_address(prefix.address()));
    }
    let subscription: Option<Arc<str>> = line.tier.as_deref().map(Into::into);
    Some(Caller {
        address: connected.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        credential: Some(Credential { identity, subscription }),
        bought: None,
        ordered: None,
    })
}

fn address(text: &str) -> Option<IpAddr> {
    without_port(text).parse().ok()
}

/// An address without the port behind it and the brackets around it: of one caller, no two ports make
/// two.
fn without_port(text: &str) -> &str {
    if let Some(rest) = text.strip_prefix('[') {
        return rest.split_once(']').map_or(text, |(address, _)| address);
    }
    match text.split_once(':') {
        Some((address, port)) if !port.contains(':') => address,
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::compiled::{PolicyParts, Tier};

    fn policy() -> Policy {
        let tier =
            |name: &str| Tier { name: name.into(), limits: Default::default(), on_failure: None };
        Policy::new(PolicyParts {
            tiers: vec![tier("free"), tier("premium")],
            networks: vec![("10.0.0.0/8".parse().unwrap(), 1)],
            ..PolicyParts::default()
        })
    }

    fn line<'a>(address: &'a str, user: &'a str, written: &'a str, tier: &'a str) -> Line<'a> {
        let some = |text: &'a str| Some(text).filter(|text| !text.is_empty()).map(Into::into);
        Line {
            address: some(address),
            user: some(user),
            identity: some(written),
            tier: some(tier),
            named: some(user),
            ..Line::default()
        }
    }

    #[test]
    fn who_a_line_is_counted_for() {
        let policy = policy();
        let field = || IdentityFrom::Field("sub".into());
        for (from, line, expected) in [
            (IdentityFrom::Log, line("192.0.2.7", "", "", ""), Ok("ip:192.0.2.7 free")),
            (IdentityFrom::Log, line("192.0.2.7:80", "", "", ""), Ok("ip:192.0.2.7 free")),
            (IdentityFrom::Log, line("[2001:db8::1]:80", "", "", ""), Ok("ip:2001:db8::/64 free")),
            (IdentityFrom::Log, line("10.1.1.1", "", "", ""), Ok("ip:10.1.1.1 premium")),
            (IdentityFrom::Log, line("10.1.1.1", "a", "", ""), Ok("user:a free")),
            (IdentityFrom::Log, line("10.1.1.1", "a", "", "Premium"), Ok("user:a premium")),
            (IdentityFrom::Log, line("", "", "ip:10.1.1.1", "free"), Ok("ip:10.1.1.1 premium")),
            (IdentityFrom::Log, line("", "", "ip:2001:db8::/48", ""), Ok("ip:2001:db8::/64 free")),
            (IdentityFrom::Log, line("", "", "key:k", "premium"), Ok("key:k premium")),
            (IdentityFrom::Log, line("host.example", "", "", ""), Err(CallerFault::Nobody)),
            (IdentityFrom::Log, line("", "", "", ""), Err(CallerFault::Nobody)),
            (IdentityFrom::Address, line("192.0.2.7", "a", "user:b", ""), Ok("ip:192.0.2.7 free")),
            (
                IdentityFrom::User,
                line("192.0.2.7", "", "ip:192.0.2.9", ""),
                Ok("ip:192.0.2.9 free"),
            ),
            (IdentityFrom::User, line("192.0.2.7", "", "user:b", ""), Ok("user:b free")),
            (field(), line("192.0.2.7", "c", "user:b", ""), Ok("user:c free")),
            (field(), line("192.0.2.7", "", "", ""), Ok("ip:192.0.2.7 free")),
            (field(), line("192.0.2.7", "a\u{7}", "", ""), Ok("ip:192.0.2.7 free")),
        ] {
            let mut callers = Callers::new([Some(&policy), None], from.clone());
            let found = callers.number(&line).map(|number| {
                let known = callers.get(number).unwrap().known[0].clone().unwrap();
                format!("{} {}", known.identity, policy.tier(known.resolved.tier).unwrap().name)
            });
            assert_eq!(found.as_deref(), expected.as_deref(), "{from:?} {line:?}");
        }
    }

    #[test]
    fn one_identity_is_counted_once() {
        let policy = policy();
        let mut callers = Callers::new([Some(&policy), None], IdentityFrom::Log);
        let mut number = |text| callers.number(&line(text, "", "", "")).unwrap();
        let numbers =
            ["2001:db8::1", "2001:db8::2", "[2001:db8::1]:80", "[2001:db8::1]:81"].map(&mut number);
        assert_eq!(numbers, [0, 1, 0, 0]);
        assert_eq!(callers.get(0).unwrap().identity, callers.get(1).unwrap().identity);
        assert_eq!(callers.identities().count(), 1);
    }
}
