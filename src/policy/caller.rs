//! Who is asking, as far as it is known before the policy is asked.

use std::net::IpAddr;
use std::sync::Arc;

use super::identity::Identity;

/// What a verified credential says of its bearer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The user or key that it names.
    pub identity: Identity,
    /// A tier or a subscription, as the token or key carries it.
    pub subscription: Option<Arc<str>>,
}

/// Who is asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Where the request comes from: the socket's peer, or whom trusted proxies name.
    pub address: IpAddr,
    /// What was presented and verified; without it, the address is who is asking.
    pub credential: Option<Credential>,
    /// The subscription that a database knows of the credential's user.
    pub bought: Option<Arc<str>>,
    /// What an operator has said of it, while it holds.
    pub ordered: Option<Ordered>,
}

/// What an operator has said of a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ordered {
    /// It has this tier.
    Tier(Arc<str>),
    /// This identity, which is the caller's or their address's, is refused.
    Denied(Identity),
}

impl Caller {
    /// Somebody of whom the address alone is known.
    pub fn by_address(address: IpAddr) -> Self {
        Caller { address, credential: None, bought: None, ordered: None }
    }
}
