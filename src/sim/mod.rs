//! What a policy would have done: access logs, replayed through the limiter in virtual time.
//!
//! The way of a line: [`lines`] unpacks, [`mod@line`] reads it by its format, [`callers`] and [`routes`]
//! say who sent it and which rules it meets, [`record`] puts requests in order, [`replay`] decides each
//! as the proxy does, [`tally`] counts, [`summary`] says what came of it, and [`text`] and [`report`]
//! show that. [`fit`] looks for other limits, [`suggest`] for a
//! whole policy.

pub mod callers;
mod combined;
pub mod fit;
mod json;
pub mod line;
pub mod lines;
pub mod logs;
pub mod moment;
mod own;
pub mod record;
pub mod replay;
pub mod report;
pub mod routes;
pub mod simulation;
pub mod suggest;
pub mod summary;
pub mod tally;
pub mod templates;
pub mod text;
pub mod timeline;
