//! What operators, probes and Prometheus ask tollgate for, on a port of its own.
//!
//! Runs on the control thread, so that no worker ever waits for a scrape. [`state::AdminState`] is
//! all that it may look at; the answers are plain functions of it, so that the data port can give
//! the same ones.

pub mod access;
pub mod answers;
pub mod api;
mod body;
pub mod calls;
pub mod explain;
pub mod failures;
pub mod health;
mod health_details;
mod identities;
mod operator;
pub mod page;
pub mod parameters;
mod policy;
pub mod server;
pub mod slow;
mod snapshot;
pub mod state;
pub mod stream;
pub mod top;
pub mod usage;
