//! Who asks most, and who is refused most: heavy hitters, minute by minute.
//!
//! Each worker counts with the Space-Saving algorithm (Metwally, Agrawal, El Abbadi: Efficient
//! Computation of Frequent and Top-k Elements in Data Streams, ICDT 2005): [`space_saving::COUNTERS`]
//! counters, however many identities there are. What the workers have counted is merged as in
//! Agarwal et al., Mergeable Summaries, PODS 2012, which keeps the bounds: of an identity that is
//! listed, `count` is at most what it did plus `error`, never less than what it did; one that did
//! more than a hundredth of a minute's total is never missing.
//!
//! Nothing here does I/O or reads a clock, and a worker never waits for whoever reads.

pub mod minutes;
pub mod space_saving;
pub mod summary;
pub mod talkers;

#[cfg(test)]
mod tests;
