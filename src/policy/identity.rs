//! What a limit is kept for.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Longest id of a user or key, in bytes.
pub const IDENTIFIER_BYTES_MAX: usize = 256;

/// Whether a user or key may have this id: not empty, at most [`IDENTIFIER_BYTES_MAX`] long, no
/// control characters.
pub fn is_identifier(id: &str) -> bool {
    (1..=IDENTIFIER_BYTES_MAX).contains(&id.len()) && !id.chars().any(char::is_control)
}

/// The kind of an identity, as the `identifier_type` label says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum IdentifierType {
    /// An address, or the prefix that it belongs to.
    Ip = 0,
    /// A user of a verified token or certificate.
    User = 1,
    /// The id of an API key.
    Key = 2,
}

impl IdentifierType {
    /// Every kind, in the order of their discriminants.
    pub const ALL: [IdentifierType; 3] =
        [IdentifierType::Ip, IdentifierType::User, IdentifierType::Key];

    /// `ip`, `user` or `key`.
    pub const fn as_str(self) -> &'static str {
        match self {
            IdentifierType::Ip => "ip",
            IdentifierType::User => "user",
            IdentifierType::Key => "key",
        }
    }
}

/// An identity: `ip:203.0.113.7`, `ip:2001:db8:1:2::/64`, `user:42`, `key:acme`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// An address folded to its prefix.
    Ip(IpPrefix),
    /// A user, by the token's claim.
    User(Arc<str>),
    /// An API key, by its id, never by the key.
    Key(Arc<str>),
}

/// An address with its host bits cleared, and the length of the prefix that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpPrefix {
    address: IpAddr,
    length: u8,
}

/// How much of an address makes an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixLengths {
    /// 0 to 32; 32 is the whole address.
    pub ipv4: u8,
    /// 0 to 128; 64 is what one customer usually gets.
    pub ipv6: u8,
}

impl Default for PrefixLengths {
    fn default() -> Self {
        PrefixLengths { ipv4: 32, ipv6: 64 }
    }
}

impl IpPrefix {
    /// Folds an address to its prefix. An IPv4 address mapped into IPv6 is the IPv4 address.
    pub fn new(address: IpAddr, lengths: PrefixLengths) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => {
                let length = lengths.ipv4.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                let address = IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask));
                IpPrefix { address, length }
            }
            IpAddr::V6(v6) => {
                let length = lengths.ipv6.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                let address = IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask));
                IpPrefix { address, length }
            }
        }
    }

    /// The address, host bits cleared.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The length of the prefix, if it is not the whole address.
    pub fn partial(&self) -> Option<u8> {
        let whole = if self.address.is_ipv4() { 32 } else { 128 };
        Some(self.length).filter(|length| *length != whole)
    }
}

impl Identity {
    /// The identity's kind.
    pub fn identifier_type(&self) -> IdentifierType {
        match self {
            Identity::Ip(_) => IdentifierType::Ip,
            Identity::User(_) => IdentifierType::User,
            Identity::Key(_) => IdentifierType::Key,
        }
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.partial() {
            None => write!(f, "{}", self.address),
            Some(length) => write!(f, "{}/{length}", self.address),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Ip(prefix) => write!(f, "ip:{prefix}"),
            Identity::User(id) => write!(f, "user:{id}"),
            Identity::Key(id) => write!(f, "key:{id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(address: &str, lengths: PrefixLengths) -> String {
        Identity::Ip(IpPrefix::new(address.parse().unwrap(), lengths)).to_string()
    }

    #[test]
    fn addresses_fold_to_their_prefix() {
        let default = PrefixLengths::default();
        assert_eq!(written("203.0.113.7", default), "ip:203.0.113.7");
        assert_eq!(written("2001:db8:1:2:3::4", default), "ip:2001:db8:1:2::/64");
        assert_eq!(written("::ffff:203.0.113.7", default), "ip:203.0.113.7");
        let whole = PrefixLengths { ipv4: 24, ipv6: 128 };
        assert_eq!(written("203.0.113.7", whole), "ip:203.0.113.0/24");
        assert_eq!(written("2001:db8::1", whole), "ip:2001:db8::1");
        assert_eq!(written("2001:db8::1", PrefixLengths { ipv4: 0, ipv6: 0 }), "ip:::/0");
    }
}
