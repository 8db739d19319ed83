//! How often one address may make tollgate check a signature in vain.
//!
//! A wrong signature costs as much as a right one, so a flood of wrong tokens, each another one, is
//! an attack on the processor. Every address has a token bucket of failures; while it is empty,
//! tokens that are not known already are taken for invalid without a look at their signature. That
//! never concerns a caller whose token has been verified before.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use parking_lot::Mutex;

use crate::limiter::time::{Micros, Timestamp};
use crate::policy::identity::{IpPrefix, PrefixLengths};

/// Failures that an address may have at once.
pub const BURST: u64 = 50;
/// Failures a second that come back.
pub const PER_SECOND: u64 = 10;
/// Addresses that are told apart. Two that share a place push each other out, which favours them.
const PLACES: usize = 4096;
/// What one failure weighs, in microseconds of waiting.
const FAILURE: u64 = 1_000_000 / PER_SECOND;

/// The failures of every address, in a table of constant size.
#[derive(Debug)]
pub struct FailureThrottle {
    seed: RandomState,
    places: Box<[Mutex<Place>]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    owner: u64,
    /// When all failures are forgiven.
    clear_at: Timestamp,
}

impl Default for FailureThrottle {
    fn default() -> Self {
        let places = (0..PLACES).map(|_| Mutex::default()).collect();
        FailureThrottle { seed: RandomState::new(), places }
    }
}

impl FailureThrottle {
    /// Whether one more signature of this address is worth a look.
    pub fn admits(&self, address: IpAddr, now: Timestamp) -> bool {
        let owner = self.owner(address);
        let Some(place) = self.place(owner) else { return true };
        let place = place.lock();
        place.owner != owner || debt(place.clear_at, now) <= (BURST - 1) * FAILURE
    }

    /// One more failure.
    pub fn failed(&self, address: IpAddr, now: Timestamp) {
        let owner = self.owner(address);
        let Some(place) = self.place(owner) else { return };
        let mut place = place.lock();
        let owed = if place.owner == owner { debt(place.clear_at, now) } else { 0 };
        let owed = (owed + FAILURE).min(BURST * FAILURE);
        *place = Place { owner, clear_at: now.plus(Micros::from_micros(owed)) };
    }

    fn owner(&self, address: IpAddr) -> u64 {
        self.seed.hash_one(IpPrefix::new(address, PrefixLengths::default()))
    }

    fn place(&self, owner: u64) -> Option<&Mutex<Place>> {
        self.places.get(usize::try_from(owner).unwrap_or_default() % PLACES)
    }
}

/// A clock that stepped back leaves no debt above the bucket's size.
fn debt(clear_at: Timestamp, now: Timestamp) -> u64 {
    clear_at.since(now).as_micros().min(BURST * FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_failures_then_so_many_a_second() {
        let throttle = FailureThrottle::default();
        let [one, same, other]: [IpAddr; 3] =
            ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(|it| it.parse().unwrap());
        let at = |micros: u64| Timestamp::from_micros(1_000_000_000 + micros);
        for _ in 0..BURST {
            assert!(throttle.admits(one, at(0)));
            throttle.failed(one, at(0));
        }
        assert!(!throttle.admits(one, at(0)) && !throttle.admits(same, at(99_999)));
        assert!(throttle.admits(other, at(0)));
        assert!(throttle.admits(one, at(100_000)));
        throttle.failed(one, at(100_000));
        assert!(!throttle.admits(one, at(199_999)) && throttle.admits(one, at(200_000)));
        for _ in 0..1_000 {
            throttle.failed(one, at(200_000));
        }
        assert!(throttle.admits(one, at(300_000)), "nobody owes more than the burst");
        assert!(!throttle.admits(one, at(0)), "a step back forgives nothing");
    }
}
