//! tollgate: a rate-limiting reverse proxy.

pub mod clock;
pub mod config;
pub mod limiter;
pub mod policy;
pub mod store;
