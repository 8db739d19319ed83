//! How often an address may present a wrong token: a bucket of its own, in a table of bounded size.
//!
//! While a bucket is empty no token of its address is looked at, the right one neither: else a
//! refusal would tell a guess that is wrong from one that is right. Other addresses do not notice,
//! unless so many guess at once that the table is full: those that have no place in it share one.

use std::collections::HashMap;
use std::net::IpAddr;

use parking_lot::Mutex;

use crate::limiter::time::{Micros, Timestamp};
use crate::policy::identity::{IpPrefix, PrefixLengths};

/// Wrong tokens that an address may present at once.
pub const BURST: u64 = 10;
/// How long one of them takes to be forgiven, in seconds.
pub const FORGIVEN_AFTER: u64 = 6;
/// Addresses that are told apart; of IPv6, networks of /64.
const ADDRESSES_MAX: usize = 1_024;
const FAILURE: u64 = FORGIVEN_AFTER * 1_000_000;

/// The wrong tokens of every address.
#[derive(Debug, Default)]
pub struct TokenFailures(Mutex<Buckets>);

/// When all failures are forgiven.
#[derive(Debug, Default)]
struct Buckets {
    by_address: HashMap<IpPrefix, Timestamp>,
    of_others: Timestamp,
}

impl TokenFailures {
    /// Whether a token of this address is looked at.
    ///
    /// # Errors
    /// Not for so many seconds, at least 1.
    pub fn admits(&self, address: IpAddr, now: Timestamp) -> Result<(), u64> {
        let buckets = self.0.lock();
        let is_full = buckets.by_address.len() >= ADDRESSES_MAX;
        let clear_at = match buckets.by_address.get(&key(address)) {
            Some(clear_at) => *clear_at,
            None if is_full => buckets.of_others,
            None => return Ok(()),
        };
        let owed = owed(clear_at, now);
        let most = (BURST - 1) * FAILURE;
        if owed <= most { Ok(()) } else { Err(Micros::from_micros(owed - most).as_secs_ceil()) }
    }

    /// One more wrong one.
    pub fn failed(&self, address: IpAddr, now: Timestamp) {
        let mut buckets = self.0.lock();
        let key = key(address);
        if buckets.by_address.len() >= ADDRESSES_MAX && !buckets.by_address.contains_key(&key) {
            buckets.by_address.retain(|_, clear_at| owed(*clear_at, now) > 0);
        }
        let has_room = buckets.by_address.len() < ADDRESSES_MAX;
        let clear_at = if has_room || buckets.by_address.contains_key(&key) {
            buckets.by_address.entry(key).or_default()
        } else {
            &mut buckets.of_others
        };
        let owed = (owed(*clear_at, now) + FAILURE).min(BURST * FAILURE);
        *clear_at = now.plus(Micros::from_micros(owed));
    }
}

fn key(address: IpAddr) -> IpPrefix {
    IpPrefix::new(address, PrefixLengths::default())
}

/// A clock that stepped back leaves no debt above the bucket's size.
fn owed(clear_at: Timestamp, now: Timestamp) -> u64 {
    clear_at.since(now).as_micros().min(BURST * FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(1_700_000_000_000_000 + seconds * 1_000_000)
    }

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + number).into()
    }

    #[test]
    fn a_burst_of_wrong_tokens_then_one_at_a_time() {
        let failures = TokenFailures::default();
        for _ in 0..BURST {
            assert_eq!(failures.admits(address(1), at(0)), Ok(()));
            failures.failed(address(1), at(0));
        }
        assert_eq!(failures.admits(address(1), at(0)), Err(FORGIVEN_AFTER));
        assert_eq!(failures.admits(address(1), at(FORGIVEN_AFTER - 1)), Err(1));
        assert_eq!(failures.admits(address(2), at(0)), Ok(()), "another address");
        assert_eq!(failures.admits(address(1), at(FORGIVEN_AFTER)), Ok(()));
        failures.failed(address(1), at(FORGIVEN_AFTER));
        assert!(failures.admits(address(1), at(FORGIVEN_AFTER)).is_err());
        // The clock steps back by a year: no more than the bucket is owed.
        assert_eq!(failures.admits(address(1), Timestamp::from_micros(0)), Err(FORGIVEN_AFTER));
    }

    #[test]
    fn a_full_table_forgets_nobody_who_still_owes() {
        let failures = TokenFailures::default();
        for number in 0..u32::try_from(ADDRESSES_MAX).unwrap() {
            failures.failed(address(number), at(0));
        }
        for _ in 0..BURST {
            failures.failed(address(50_000), at(1));
        }
        assert!(failures.admits(address(60_000), at(1)).is_err(), "who has no place shares one");
        assert_eq!(failures.admits(address(7), at(1)), Ok(()));
        assert_eq!(failures.0.lock().by_address.len(), ADDRESSES_MAX);
        // Once those are forgiven there is room again.
        failures.failed(address(60_000), at(FORGIVEN_AFTER));
        assert_eq!(failures.admits(address(60_000), at(FORGIVEN_AFTER)), Ok(()));
        assert_eq!(failures.0.lock().by_address.len(), 1);
    }
}
