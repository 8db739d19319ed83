//! How limiter state is kept in a Redis.

use std::time::Duration;

use crate::policy::compiled::FailureMode;
use crate::redis::target::RedisTarget;

use super::names::KeyNames;

/// Settings of the store in Redis.
#[derive(Clone, Debug)]
pub struct RedisSettings {
    /// Where it is.
    pub target: RedisTarget,
    /// Budget of one check; what is not answered by then is decided without Redis.
    pub timeout: Duration,
    /// What decides then, where neither endpoint nor tier say.
    pub on_failure: FailureMode,
    /// Whether tokens may be leased.
    pub leases: bool,
    /// How keys are named.
    pub names: KeyNames,
    /// As how many replicas this one is taken for one of at least; 0: as many as there are.
    pub expected_replicas: u32,
}

impl RedisSettings {
    /// The defaults for this server.
    pub fn new(target: RedisTarget) -> Self {
        RedisSettings {
            target,
            timeout: Duration::from_millis(20),
            on_failure: FailureMode::Local,
            leases: true,
            names: KeyNames::new("tg"),
            expected_replicas: 0,
        }
    }
}
