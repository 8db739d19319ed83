//! tollgate: a rate-limiting reverse proxy.

pub mod admin;
pub mod clock;
pub mod commands;
pub mod config;
pub mod errors;
pub mod health;
pub mod identity;
pub mod limiter;
pub mod log;
pub mod metrics;
pub mod otlp;
pub mod overrides;
pub mod policy;
pub mod proxy;
pub mod redis;
pub mod sim;
pub mod store;
pub mod subscriptions;
pub mod sys;
pub mod tls;
pub mod top;
pub mod trace;
pub mod usage;
