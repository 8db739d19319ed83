//! Who asks, which tier they are on, which endpoint rules they meet, and what that costs.
//!
//! Pure: no I/O, no async, no clock, no locks. A [`compiled::Policy`] is compiled once from the
//! operator's file and then answers `plan` for every request.

pub mod caller;
pub mod compiled;
pub mod describe;
pub mod explain;
pub mod facts;
pub mod forwarded;
pub mod identity;
pub mod overrides;
pub mod path;
pub mod pattern;
pub mod plan;
pub mod route;
pub mod table;
pub mod tier;
