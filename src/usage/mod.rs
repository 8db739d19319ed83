//! Usage metering for billing: what each identity has used, by minute, counted once.
//!
//! A worker counts into a *segment* (`segment`): a file of the journal (`journal`) that is mapped
//! into memory, so that a count is a few stores and a killed process loses none. After the time of
//! `usage.flush` it lets go of the segment, which from then on never changes: it is a *batch*, with
//! the id of the process and a sequence number. A thread of its own (`flush`) hands batches to the
//! sink (`file`, `redis`, `postgres`) one after the other; a sink remembers the last number that it
//! took of each worker, so that a batch that comes again counts once, whatever became of its rows.
//!
//! Workers wait for nobody here, and nothing here decides anything about a request.

pub mod file;
mod files;
pub mod flush;
pub mod journal;
pub mod page;
pub mod postgres;
pub mod record;
pub mod redis;
pub mod segment;
pub mod sink;
pub mod writer;
