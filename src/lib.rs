//! tollgate: a rate-limiting reverse proxy.

pub mod admin;
pub mod clock;
pub mod config;
pub mod health;
pub mod limiter;
pub mod metrics;
pub mod policy;
pub mod store;
