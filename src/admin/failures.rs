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

/// What an address has to wait for whose tokens are not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Until one is, at least 1.
    pub seconds: u64,
    /// Whether it is the first to be told so since its failures were last all forgiven.
    pub is_first: bool,
}

#[derive(Debug, Default)]
struct Buckets {
    by_address: HashMap<IpPrefix, Bucket>,
    of_others: Bucket,
}

#[derive(Debug, Default)]
struct Bucket {
    /// When all failures are forgiven.
    clear_at: Timestamp,
    /// Whether somebody was told to wait since there were none.
    is_told: bool,
}

impl TokenFailures {
    /// Whether a token of this address is looked at.
    ///
    /// # Errors
    /// Not yet.
    pub fn admits(&self, address: IpAddr, now: Timestamp) -> Result<(), Wait> {
        let mut buckets = self.0.lock();
        let Buckets { by_address, of_others } = &mut *buckets;
        let is_full = by_address.len() >= ADDRESSES_MAX;
        let bucket = match by_address.get_mut(&key(address)) {
            Some(bucket) => bucket,
            None if is_full => of_others,
            None => return Ok(()),
        };
        let owed = owed(bucket.clear_at, now);
        let most = (BURST - 1) * FAILURE;
        if owed <= most {
            return Ok(());
        }
        let seconds = Micros::from_micros(owed - most).as_secs_ceil();
        let is_first = !std::mem::replace(&mut bucket.is_told, true);
        Err(Wait { seconds, is_first })
    }

    /// One more wrong one.
    pub fn failed(&self, address: IpAddr, now: Timestamp) {
        let mut buckets = self.0.lock();
        let key = key(address);
        if buckets.by_address.len() >= ADDRESSES_MAX && !buckets.by_address.contains_key(&key) {
            buckets.by_address.retain(|_, it| owed(it.clear_at, now) > 0);
        }
        let has_room = buckets.by_address.len() < ADDRESSES_MAX;
        let bucket = if has_room || buckets.by_address.contains_key(&key) {
            buckets.by_address.entry(key).or_default()
        } else {
            &mut buckets.of_others
        };
        let owed = owed(bucket.clear_at, now);
        bucket.is_told &= owed > 0;
        let owed = (owed + FAILURE).min(BURST * FAILURE);
        bucket.clear_at = now.plus(Micros::from_micros(owed));
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
        let wait = |seconds, is_first| Err(Wait { seconds, is_first });
        assert_eq!(failures.admits(address(1), at(0)), wait(FORGIVEN_AFTER, true));
        assert_eq!(failures.admits(address(1), at(FORGIVEN_AFTER - 1)), wait(1, false));
        assert_eq!(failures.admits(address(2), at(0)), Ok(()), "another address");
        assert_eq!(failures.admits(address(1), at(FORGIVEN_AFTER)), Ok(()));
        failures.failed(address(1), at(FORGIVEN_AFTER));
        assert!(failures.admits(address(1), at(FORGIVEN_AFTER)).is_err());
        // The clock steps back by a year: no more than the bucket is owed.
        let long_ago = Timestamp::from_micros(0);
        assert_eq!(failures.admits(address(1), long_ago), wait(FORGIVEN_AFTER, false));
    }

    #[test]
    fn who_has_to_wait_is_news_once_until_all_is_forgiven() {
        let failures = TokenFailures::default();
        let is_news = |number: u32, now: Timestamp| {
            failures.admits(address(number), now).is_err_and(|wait| wait.is_first)
        };
        let guess = |number: u32, now: Timestamp| {
            for _ in 0..BURST {
                failures.failed(address(number), now);
            }
        };
        guess(1, at(0));
        assert!(is_news(1, at(0)));
        // One guess whenever one is admitted, for an hour: the same burst.
        for seconds in (FORGIVEN_AFTER..3_600).step_by(6) {
            assert_eq!(failures.admits(address(1), at(seconds)), Ok(()));
            failures.failed(address(1), at(seconds));
            assert!(failures.admits(address(1), at(seconds)).is_err() && !is_news(1, at(seconds)));
        }
        guess(2, at(3_600));
        assert!(is_news(2, at(3_600)), "another address");
        let forgiven = 3_600 + BURST * FORGIVEN_AFTER;
        guess(1, at(forgiven));
        assert!(is_news(1, at(forgiven)), "another burst");
        assert!(!is_news(1, at(forgiven)));
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
