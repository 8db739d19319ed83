//! What is known of the state of this process and of what it depends on.
//!
//! Values only: who measures sets them, who answers probes reads them. Nothing here does I/O or
//! reads a clock.

pub mod breaker;
pub mod dependency;
pub mod detector;
pub mod heartbeat;
pub mod history;
pub mod loops;
pub mod memory;
pub mod pressure;
pub mod readiness;
pub mod recent;
pub mod reloads;
pub mod shared_breaker;
pub mod signs;
pub mod slow;
pub mod tasks;
pub mod trend;
pub mod upstream;
pub mod upstreams;
pub mod verdict;
