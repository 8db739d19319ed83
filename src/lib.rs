//! tollgate: a rate-limiting reverse proxy.

pub mod limiter;
pub mod policy;
