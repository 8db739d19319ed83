//! How often one address may make tollgate check a signature in vain.
//!
//! A wrong signature costs as much as a right one, so a flood of wrong tokens, each another one, is
//! an attack on the processor. The process has a token bucket of failures: while it is not empty,
//! every signature is looked at. Once it is, each address has a bucket of its own; while that is
//! empty too, tokens that are not known already are taken for invalid without a look. That concerns
//! neither whose token has been verified before, nor who shares an address with a few mistakes.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::limiter::time::{Micros, Timestamp};
use crate::policy::identity::{IpPrefix, PrefixLengths};

/// Failures that an address may have at once.
pub const BURST: u64 = 50;
/// Failures of an address that come back each second.
pub const PER_SECOND: u64 = 10;
/// Failures that the process bears at once before it tells addresses apart.
pub const PROCESS_BURST: u64 = 200;
/// Failures of the process that come back each second: at 50 µs each, half a percent of a core.
pub const PROCESS_PER_SECOND: u64 = 100;
/// Addresses that are told apart. Two that share a place push each other out, which favours them.
const PLACES: usize = 4096;
/// What one failure weighs, in microseconds of waiting.
const FAILURE: u64 = 1_000_000 / PER_SECOND;
const PROCESS_FAILURE: u64 = 1_000_000 / PROCESS_PER_SECOND;

/// The failures of the process and of every address, in a table of constant size.
#[derive(Debug)]
pub struct FailureThrottle {
    /// When all of the process's are forgiven, in microseconds.
    process: AtomicU64,
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
        FailureThrottle { process: AtomicU64::new(0), seed: RandomState::new(), places }
    }
}

impl FailureThrottle {
    /// Whether one more signature of this address is worth a look.
    pub fn admits(&self, address: IpAddr, now: Timestamp) -> bool {
        if self.process_debt(now) <= (PROCESS_BURST - 1) * PROCESS_FAILURE {
            return true;
        }
        let owner = self.owner(address);
        let Some(place) = self.place(owner) else { return true };
        let mut place = place.lock();
        let owed = place.clear_at.since(now).as_micros();
        if owed > BURST * FAILURE {
            // The clock has stepped back: no more than a full debt, and that from now on.
            place.clear_at = now.plus(Micros::from_micros(BURST * FAILURE));
        }
        place.owner != owner || owed <= (BURST - 1) * FAILURE
    }

    /// One more failure.
    pub fn failed(&self, address: IpAddr, now: Timestamp) {
        // Two at the same moment may count as one: what is bounded is a rate.
        let owed = (self.process_debt(now) + PROCESS_FAILURE).min(PROCESS_BURST * PROCESS_FAILURE);
        self.process.store(now.plus(Micros::from_micros(owed)).as_micros(), Ordering::Relaxed);
        let owner = self.owner(address);
        let Some(place) = self.place(owner) else { return };
        let mut place = place.lock();
        let owed = if place.owner == owner { debt(place.clear_at, now) } else { 0 };
        let owed = (owed + FAILURE).min(BURST * FAILURE);
        *place = Place { owner, clear_at: now.plus(Micros::from_micros(owed)) };
    }

    fn process_debt(&self, now: Timestamp) -> u64 {
        let most = PROCESS_BURST * PROCESS_FAILURE;
        let clear_at = Timestamp::from_micros(self.process.load(Ordering::Relaxed));
        let owed = clear_at.since(now).as_micros();
        if owed > most {
            // As with an address, whose clock it is too.
            let clear_at = now.plus(Micros::from_micros(most));
            self.process.store(clear_at.as_micros(), Ordering::Relaxed);
        }
        owed.min(most)
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

    /// So many addresses, none of which shares a place with `one`: the newer of two would take it.
    fn crowd(throttle: &FailureThrottle, one: IpAddr, count: u64) -> Vec<IpAddr> {
        let place = |address| throttle.place(throttle.owner(address)).map(std::ptr::from_ref);
        let hosts = (0..).map(|host: u64| format!("2001:db8:1:{host:x}::1").parse().unwrap());
        hosts
            .filter(|host| place(*host) != place(one))
            .take(usize::try_from(count).unwrap())
            .collect()
    }

    #[test]
    fn a_burst_of_failures_then_so_many_a_second() {
        let throttle = FailureThrottle::default();
        let [one, same, other]: [IpAddr; 3] =
            ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(|it| it.parse().unwrap());
        let at = |micros: u64| Timestamp::from_micros(1_000_000_000 + micros);
        for _ in 0..PROCESS_BURST {
            assert!(throttle.admits(one, at(0)), "the process bears it");
            throttle.failed(one, at(0));
        }
        assert!(!throttle.admits(one, at(0)) && !throttle.admits(same, at(0)));
        assert!(throttle.admits(other, at(0)));
        assert!(throttle.admits(one, at(10_000)), "the process bears one more");
        let busy = |throttle: &FailureThrottle, micros| {
            for address in crowd(throttle, one, PROCESS_BURST) {
                throttle.failed(address, at(micros));
            }
        };
        busy(&throttle, 99_999);
        assert!(!throttle.admits(one, at(99_999)) && throttle.admits(one, at(100_000)));
        throttle.failed(one, at(100_000));
        busy(&throttle, 199_999);
        assert!(!throttle.admits(one, at(199_999)) && throttle.admits(one, at(200_000)));
        for _ in 0..1_000 {
            throttle.failed(one, at(200_000));
        }
        busy(&throttle, 300_000);
        assert!(throttle.admits(one, at(300_000)), "nobody owes more than the burst");
        assert!(!throttle.admits(one, at(0)), "a step back forgives nothing");
    }

    #[test]
    fn a_clock_that_steps_back_prolongs_nothing() {
        let throttle = FailureThrottle::default();
        let one = "192.0.2.1".parse().unwrap();
        let at = |seconds: u64| Timestamp::from_micros(seconds * 1_000_000);
        let late = at(10_000);
        for _ in 0..PROCESS_BURST {
            throttle.failed(one, late);
        }
        assert!(!throttle.admits(one, late));
        // An hour back: what is owed is owed from there.
        let before = at(10_000 - 3_600);
        assert!(!throttle.admits(one, before));
        assert!(throttle.admits(one, before.plus(Micros::SECOND)), "the process bears more again");
        for address in crowd(&throttle, one, PROCESS_BURST) {
            throttle.failed(address, before);
        }
        assert!(!throttle.admits(one, before));
        assert!(throttle.admits(one, before.plus(Micros::from_micros(FAILURE))));
    }
}
