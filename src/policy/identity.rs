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

/// Why a text is no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityFault {
    /// It begins with none of the three kinds and a colon.
    #[error("expected ip:ADDRESS, user:ID or key:ID")]
    Kind,
    /// The id of a user or key is none.
    #[error("expected 1 to 256 bytes without control characters behind the colon")]
    Id,
    /// What stands behind `ip:` is no address.
    #[error("expected an address behind \"ip:\"")]
    Address,
    /// An address with a prefix of another length than identities have.
    #[error("has another prefix than identities, expected an address, or /{0}")]
    Prefix(u8),
}

impl Identity {
    /// Reads an identity as it is written. An address folds to its prefix.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str, prefixes: PrefixLengths) -> Result<Self, IdentityFault> {
        let (kind, id) = text.split_once(':').ok_or(IdentityFault::Kind)?;
        match kind {
            "user" | "key" if !is_identifier(id) => Err(IdentityFault::Id),
            "user" => Ok(Identity::User(id.into())),
            "key" => Ok(Identity::Key(id.into())),
            "ip" => Self::parse_address(id, prefixes),
            _ => Err(IdentityFault::Kind),
        }
    }

    fn parse_address(text: &str, prefixes: PrefixLengths) -> Result<Self, IdentityFault> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| IdentityFault::Address)?;
        let address = address.to_canonical();
        let kept = if address.is_ipv4() { prefixes.ipv4 } else { prefixes.ipv6 };
        if length.is_some_and(|length| length.parse() != Ok(kept)) {
            return Err(IdentityFault::Prefix(kept));
        }
        Ok(Identity::Ip(IpPrefix::new(address, prefixes)))
    }

    /// Reads what was written by another process, whatever its prefixes.
    pub fn parse_written(text: &str) -> Option<Self> {
        let prefix = text.strip_prefix("ip:").and_then(|text| text.split_once('/'));
        let whole = PrefixLengths { ipv4: 32, ipv6: 128 };
        let lengths = match prefix {
            None => whole,
            Some((_, length)) => {
                let length = length.parse().ok()?;
                PrefixLengths { ipv4: length, ipv6: length }
            }
        };
        Self::parse(text, lengths).ok()
    }

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
    fn what_is_written_is_read_again() {
        let lengths = PrefixLengths { ipv4: 24, ipv6: 64 };
        for (text, expected) in [
            ("ip:192.0.2.7", Ok("ip:192.0.2.0/24")),
            ("ip:192.0.2.7/24", Ok("ip:192.0.2.0/24")),
            ("ip:2001:db8::7", Ok("ip:2001:db8::/64")),
            ("ip:::ffff:192.0.2.7", Ok("ip:192.0.2.0/24")),
            ("user:a:b", Ok("user:a:b")),
            ("key:acme", Ok("key:acme")),
            ("ip:192.0.2.7/32", Err(IdentityFault::Prefix(24))),
            ("ip:host", Err(IdentityFault::Address)),
            ("user:", Err(IdentityFault::Id)),
            ("key:a\n", Err(IdentityFault::Id)),
            ("42", Err(IdentityFault::Kind)),
            ("User:42", Err(IdentityFault::Kind)),
        ] {
            let read = Identity::parse(text, lengths);
            assert_eq!(read.clone().map(|it| it.to_string()), expected.map(str::to_owned));
            if let Ok(identity) = read {
                assert_eq!(Identity::parse_written(&identity.to_string()), Some(identity));
            }
        }
        assert_eq!(Identity::parse_written("ip:1.2.3.4/300"), None);
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
