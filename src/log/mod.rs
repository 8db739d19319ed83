//! Lines that leave the process: the access log's, and tollgate's own.
//!
//! Whoever has a line never waits for it to be written: it goes into a bounded queue, or is
//! dropped and counted. A thread of its own writes.

pub mod access;
mod address;
pub mod json;
pub mod limit;
pub mod query;
pub mod queue;
pub mod writer;
