//! What operators, probes and Prometheus ask tollgate for, on a port of its own.
//!
//! Runs on the control thread, so that no worker ever waits for a scrape. [`state::AdminState`] is
//! all that it may look at; the answers are plain functions of it, so that the data port can give
//! the same ones.

pub mod access;
pub mod answers;
pub mod api;
mod body;
mod calls;
pub mod failures;
pub mod health;
mod health_details;
mod operator;
pub mod parameters;
pub mod server;
pub mod slow;
pub mod state;
pub mod top;
pub mod usage;
