//! Token bucket as an exact integer debt.
//!
//! What is kept is the debt, not the tokens left, so that a changed rate or burst takes effect at
//! once on the state that there is. One token is [`UNITS_PER_TOKEN`] units and a rate of `n` per
//! second pays back `n` units per microsecond: no rounding, ever.

use super::quota::Bucket;
use super::time::Micros;

/// Units of debt that one token stands for: the microseconds of the period.
pub const UNITS_PER_TOKEN: u64 = 1_000_000;

/// The debt left after `elapsed` at `bucket.rate`.
pub fn refilled(debt: u64, bucket: Bucket, elapsed: Micros) -> u64 {
    // A product too large for 64 bits saturates above any debt.
    debt.saturating_sub(elapsed.as_micros().saturating_mul(u64::from(bucket.rate.get())))
}

/// How long until `cost` tokens fit beside `debt`; [`Micros::NEVER`] if they never do.
pub fn wait(debt: u64, bucket: Bucket, cost: u32) -> Micros {
    wait_for(debt, bucket, units(cost))
}

/// The same for so many units.
pub fn wait_for(debt: u64, bucket: Bucket, wanted: u64) -> Micros {
    if wanted > units(bucket.burst.get()) {
        return Micros::NEVER;
    }
    let short = debt.saturating_add(wanted).saturating_sub(units(bucket.burst.get()));
    Micros::from_micros(short.div_ceil(u64::from(bucket.rate.get())))
}

/// How long until the bucket is full again.
pub fn until_whole(debt: u64, bucket: Bucket) -> Micros {
    Micros::from_micros(debt.div_ceil(u64::from(bucket.rate.get())))
}

/// Whole tokens left.
pub fn remaining(debt: u64, bucket: Bucket) -> u32 {
    u32::try_from(left(debt, bucket) / UNITS_PER_TOKEN).unwrap_or(u32::MAX)
}

/// Units that are left.
pub fn left(debt: u64, bucket: Bucket) -> u64 {
    units(bucket.burst.get()).saturating_sub(debt)
}

/// `tokens` in units of debt.
pub const fn units(tokens: u32) -> u64 {
    // Up to 10^15 for LIMIT_MAX tokens, so that Lua's doubles hold twice of it exactly.
    (tokens as u64).saturating_mul(UNITS_PER_TOKEN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    fn bucket(rate: u32, burst: u32) -> Bucket {
        Bucket { rate: NonZeroU32::new(rate).unwrap(), burst: NonZeroU32::new(burst).unwrap() }
    }

    #[test]
    fn a_debt_is_paid_exactly() {
        let free = bucket(5, 10);
        assert_eq!(refilled(10_000_000, free, Micros::from_micros(1)), 9_999_995);
        assert_eq!(refilled(10_000_000, free, Micros::from_micros(2_000_000)), 0);
        assert_eq!(refilled(3, free, Micros::from_micros(1)), 0);
        assert_eq!(refilled(u64::MAX / 2, free, Micros::from_micros(u64::MAX)), 0);
    }

    #[test]
    fn the_wait_is_the_first_microsecond_that_has_room() {
        let odd = bucket(7, 10);
        let debt = units(10);
        let wait = wait(debt, odd, 1);
        let now = |after: u64| refilled(debt, odd, Micros::from_micros(after));
        assert!(super::wait(now(wait.as_micros()), odd, 1).is_zero());
        assert!(!super::wait(now(wait.as_micros() - 1), odd, 1).is_zero());
    }

    #[test]
    fn a_cost_above_the_burst_never_passes() {
        assert_eq!(wait(0, bucket(5, 10), 11), Micros::NEVER);
    }
}
