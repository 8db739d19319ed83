//! Watches the memory of this process, and says what is published of it.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;

use crate::clock;
use crate::health::memory::{MemoryView, MemoryWatch, Sample, Schedule};
use crate::identity::identifier::Identifier;
use crate::metrics::memory::Held;
use crate::metrics::registry::Metrics;
use crate::store::memory::MemoryStore;
use crate::store::redis::RedisShared;
use crate::subscriptions::Subscriptions;
use crate::sys::{allocator, memory};

/// What is known of the memory's growth: written by one task, read by who asks.
#[derive(Debug)]
pub struct SharedWatch {
    schedule: Schedule,
    watch: Mutex<MemoryWatch>,
}

impl SharedWatch {
    /// Nothing known yet.
    pub fn new(schedule: Schedule) -> Self {
        SharedWatch { schedule, watch: Mutex::new(MemoryWatch::new(schedule)) }
    }

    /// The memory as it is now. Reads some small files of `/proc` and adds up the allocator's
    /// arenas: for the control thread.
    pub fn view(&self) -> MemoryView {
        MemoryView {
            resident: memory::read().map(|memory| memory.resident),
            limit: memory::limit_bytes(),
            allocated: allocator::read().map(|figures| figures.allocated),
            growth: self.watch.lock().growth(),
        }
    }
}

/// When the detector does what.
pub fn schedule() -> Schedule {
    #[cfg(feature = "leak-drill")]
    return super::drill::schedule();
    #[cfg(not(feature = "leak-drill"))]
    Schedule::default()
}

/// Samples and evaluates, for ever, on the control thread: less than a tenth of a millisecond every
/// half minute, and a few milliseconds at the most every five minutes.
pub async fn watch(shared: Arc<SharedWatch>, metrics: Arc<Metrics>) {
    let started = clock::monotonic();
    let mut interval = tokio::time::interval(shared.schedule.sample);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = shared.watch.lock().growth().verdict;
    loop {
        interval.tick().await;
        let Some(memory) = memory::read() else { return };
        let slack = allocator::read().map_or(0, |it| it.resident.saturating_sub(it.allocated));
        let sample = Sample {
            resident: memory.resident.saturating_add(memory.swapped),
            slack,
            connections: metrics.connections_open() as u64,
        };
        let at = clock::monotonic().saturating_duration_since(started);
        let growth = {
            let mut watch = shared.watch.lock();
            watch.observe(at, sample);
            watch.growth()
        };
        if growth.verdict != last {
            let bytes_per_second = growth.bytes_per_second.round();
            let verdict = growth.verdict.as_str();
            tracing::info!(verdict, bytes_per_second, rss_bytes = memory.resident, "memory");
            last = growth.verdict;
        }
    }
}

/// Hands over to the metrics what is held elsewhere.
pub fn publish(
    metrics: &Metrics,
    shared: &SharedWatch,
    store: &MemoryStore,
    redis: Option<&RedisShared>,
    identifier: &Identifier,
    subscriptions: Option<&Subscriptions>,
) {
    let users = subscriptions.map_or(0, Subscriptions::users_remembered);
    let denials = redis.map_or(0, |redis| redis.denials().len());
    let entries = store.len().saturating_add(identifier.tokens_remembered());
    let held = Held {
        local_cache_entries: entries.saturating_add(users).saturating_add(denials),
        leases: redis.map_or(0, |redis| redis.leases().figures().held),
        jwks_keys: identifier.keys_fetched(),
        sweeps: store.sweeps(),
        swept: store.swept(),
    };
    metrics.set_memory(held, shared.watch.lock().growth().bytes_per_second);
}
