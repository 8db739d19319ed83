//! How many connections each address has: bounded, where that is configured.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::policy::identity::{IpPrefix, PrefixLengths};

/// Connections come and go on all workers.
const SHARDS: usize = 16;

/// Connections by address, as many entries as there are addresses with one: no more than there may
/// be connections.
#[derive(Debug)]
pub struct AddressCounts {
    most: NonZeroU32,
    prefixes: PrefixLengths,
    hasher: RandomState,
    shards: [Mutex<HashMap<IpAddr, u32>>; SHARDS],
}

/// One connection of an address; dropping it ends that.
#[derive(Debug)]
pub struct AddressGuard {
    counts: Arc<AddressCounts>,
    address: IpAddr,
}

impl AddressCounts {
    /// At most `most` for each address, where those with the same prefix are one, as in limits.
    pub fn new(most: NonZeroU32, prefixes: PrefixLengths) -> Arc<Self> {
        Arc::new(AddressCounts {
            most,
            prefixes,
            hasher: RandomState::new(),
            shards: Default::default(),
        })
    }

    /// Counts a connection; `None`: the address has as many as it may.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Option<AddressGuard> {
        let address = IpPrefix::new(address, self.prefixes).address();
        let mut shard = self.shard(address)?.lock();
        let count = shard.entry(address).or_insert(0);
        if *count >= self.most.get() {
            return None;
        }
        *count = count.saturating_add(1);
        Some(AddressGuard { counts: Arc::clone(self), address })
    }

    fn shard(&self, address: IpAddr) -> Option<&Mutex<HashMap<IpAddr, u32>>> {
        let hash = usize::try_from(self.hasher.hash_one(address) >> 32).unwrap_or_default();
        self.shards.get(hash.checked_rem(SHARDS)?)
    }
}

impl Drop for AddressGuard {
    fn drop(&mut self) {
        let Some(shard) = self.counts.shard(self.address) else { return };
        if let Entry::Occupied(mut entry) = shard.lock().entry(self.address) {
            *entry.get_mut() = entry.get().saturating_sub(1);
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_connections_and_no_more() {
        let prefixes = PrefixLengths { ipv4: 32, ipv6: 64 };
        let counts = AddressCounts::new(NonZeroU32::new(2).unwrap(), prefixes);
        let at = |text: &str| counts.enter(text.parse().unwrap());
        let (first, second) = (at("192.0.2.1"), at("192.0.2.1"));
        assert!(first.is_some() && second.is_some());
        assert!(at("192.0.2.1").is_none());
        // The same address by another name, another one, and one of somebody's many.
        assert!(at("::ffff:192.0.2.1").is_none());
        let other = at("192.0.2.2");
        let (third, fourth) = (at("2001:db8::1"), at("2001:db8::2"));
        assert!(other.is_some() && third.is_some() && fourth.is_some());
        assert!(at("2001:db8::3").is_none());
        drop(first);
        let again = at("192.0.2.1");
        assert!(again.is_some() && at("192.0.2.1").is_none());
        drop((again, second, other, third, fourth));
        assert!(counts.shards.iter().all(|it| it.lock().is_empty()), "nothing is kept");
    }
}
