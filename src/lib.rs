//! tollgate: a rate-limiting reverse proxy.

pub mod clock;
pub mod limiter;
pub mod metrics;
pub mod policy;
pub mod store;
