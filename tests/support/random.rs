//! Numbers that are the same for the same seed.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::time::Duration;

/// xorshift64.
pub struct Random(u64);

impl Random {
    /// From any seed.
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Evenly spread, less than `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * u128::from(bound)) >> 64) as u64
    }

    /// Exponentially distributed, of this mean: what lies between arrivals that know nothing of each
    /// other.
    pub fn pause(&mut self, mean: Duration) -> Duration {
        let uniform = (self.below(1 << 53) as f64 + 1.0) / (1_u64 << 53) as f64;
        mean.mul_f64(-uniform.ln())
    }
}
