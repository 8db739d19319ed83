//! The caller's address, and what is told of forwarding fields that were not believed.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::metrics::edge_labels::IdentityError;
use crate::policy::facts::RequestFacts;
use crate::policy::forwarded::{ClientAddress, ForwardedFault};

use super::gate::{Active, Gate};
use super::headers::Present;

/// The address that the request comes from. Fields that were not believed are counted; that they
/// come from a private address, as those of an ingress do, is said in the log, once.
pub fn of(gate: &Gate, active: &Active, facts: &RequestFacts<'_>, present: Present) -> IpAddr {
    if !present.names_others() {
        return facts.peer.to_canonical();
    }
    let ClientAddress { address, fault } = active.policy.client_address(facts.peer, facts.headers);
    if let Some(fault) = fault {
        let reason = match fault {
            ForwardedFault::Untrusted => IdentityError::XffUntrusted,
            ForwardedFault::Malformed => IdentityError::XffMalformed,
            ForwardedFault::Conflict => IdentityError::XffConflict,
        };
        gate.metrics.identity_error(reason);
        if fault == ForwardedFault::Untrusted && is_private(address) && gate.untrusted.is_first() {
            tracing::warn!(
                peer = %address,
                "a peer with a private address sends X-Forwarded-For or Forwarded, and \
                 server.trusted_proxies does not name it: if it is a proxy, all callers behind it \
                 share one quota, until its network is added there (said once)"
            );
        }
    }
    address
}

/// Something that is done once in the life of a process, whichever worker comes first.
#[derive(Debug, Default)]
pub struct Once(AtomicBool);

impl Once {
    /// True for the first who asks, and nobody else.
    pub fn is_first(&self) -> bool {
        // Read first: a line that is only read stays in every core's cache.
        !self.0.load(Relaxed) && !self.0.swap(true, Relaxed)
    }
}

/// Whether the internet does not route the address: a proxy of the operator's own may have it, an
/// unknown caller not. A proxy on the same machine has that of loopback.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            // RFC 6598: between a provider and its customers, and the pods of some clusters.
            let [first, second, ..] = v4.octets();
            let is_shared = first == 100 && second & 0xc0 == 64;
            v4.is_private() || v4.is_loopback() || v4.is_link_local() || is_shared
        }
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_loopback() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_proxies_of_one_s_own_are_private() {
        let table = [
            ("10.0.0.1", true),
            ("172.16.0.1", true),
            ("172.31.255.255", true),
            ("172.32.0.1", false),
            ("192.168.1.1", true),
            ("127.0.0.2", true),
            ("169.254.1.1", true),
            ("100.64.0.1", true),
            ("100.127.255.255", true),
            ("100.63.255.255", false),
            ("100.128.0.0", false),
            ("203.0.113.7", false),
            ("::1", true),
            ("fd00::1", true),
            ("fe80::1", true),
            ("2001:db8::1", false),
        ];
        for (address, expected) in table {
            assert_eq!(is_private(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn of_many_one_is_first() {
        let once = Once::default();
        let firsts: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| (0..1_000).filter(|_| once.is_first()).count()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(firsts, 1);
    }
}
