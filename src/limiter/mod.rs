//! The arithmetic of limits: token bucket, strict sliding window, quotas of days and months, places
//! for requests at once; several of them all or nothing.
//!
//! Pure and `std` only: no I/O, no clock, no randomness, no locks, no logging. The time is an
//! argument, state is handed in and changed in place. `run`, `explain`, `simulate` and the tests
//! call this very code; `store/redis/check.lua` is its twin, held to it by the shared vectors.

pub mod bucket;
pub mod calendar;
pub mod check;
pub mod decision;
pub mod own;
pub mod quota;
pub mod refund;
pub mod share;
pub mod time;
pub mod window;
