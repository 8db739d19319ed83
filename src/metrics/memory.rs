//! What is published of memory: what the system and the allocator say, what the program counts
//! itself, and where it goes.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::sys::allocator;
use crate::sys::memory;

use super::cells::{Level, LevelGuard};
use super::exposition::Family;
use super::labels::{AllocatorKind, Generation, ObjectType};
use super::names;
use super::registry::Metrics;
use super::series::{EndpointSeries, ListenerSeries};

/// What other modules hold and count.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    /// Entries of stores and caches in memory.
    pub local_cache_entries: usize,
    /// Leases that have something left.
    pub leases: usize,
    /// Keys of key sets that were fetched.
    pub jwks_keys: usize,
    /// Rounds that the sweep has made over the store in memory.
    pub sweeps: u64,
    /// Expired entries that were freed.
    pub swept: u64,
}

/// What is counted of memory between two scrapes.
#[derive(Debug)]
pub(super) struct MemoryCells {
    buffers: Level,
    held: Mutex<Held>,
}

impl MemoryCells {
    pub(super) fn new(shards: usize) -> Self {
        MemoryCells { buffers: Level::new(shards), held: Mutex::default() }
    }
}

impl Metrics {
    /// A buffer of an upgraded connection is held until the guard is dropped.
    pub fn buffer_held(&self) -> LevelGuard {
        self.memory.buffers.enter()
    }

    /// Connections of callers that are open, of all listeners.
    pub fn connections_open(&self) -> usize {
        let listeners = self.named.lock().listeners.all();
        listeners.iter().map(|listener| listener.active.count()).sum()
    }

    /// What other modules hold, and bytes a second by which memory grows.
    pub fn set_memory(&self, held: Held, growth: f64) {
        *self.memory.held.lock() = held;
        self.handles.gauge(&names::MEMORY_GROWTH, &[]).set(growth);
    }

    /// What can be read now of the process and its allocator.
    pub(super) fn publish_memory(&self) {
        let handles = &self.handles;
        let limit = memory::limit_bytes().unwrap_or(0);
        handles.gauge(&names::MEMORY_LIMIT, &[]).set(limit as f64);
        if let Some(process) = memory::read() {
            // One reading under both names, so that they never contradict each other.
            for desc in [&names::RSS, &names::PROCESS_RSS] {
                handles.gauge(desc, &[]).set(process.resident as f64);
            }
            for desc in [&names::VMS, &names::PROCESS_VMS] {
                handles.gauge(desc, &[]).set(process.virtual_size as f64);
            }
        }
        let figures = allocator::read().unwrap_or_default();
        let kinds = [
            (AllocatorKind::Allocated, figures.allocated),
            (AllocatorKind::Active, figures.active),
            (AllocatorKind::Resident, figures.resident),
            (AllocatorKind::Retained, figures.retained),
            (AllocatorKind::Mapped, figures.mapped),
            (AllocatorKind::Metadata, figures.metadata),
        ];
        for (kind, value) in kinds {
            handles.gauge(&names::ALLOCATOR, &[kind.as_str()]).set(value as f64);
        }
        let held = *self.memory.held.lock();
        let generations = [
            (Generation::Sweep, held.sweeps, held.swept),
            (Generation::Dirty, figures.dirty_purges, figures.dirty_pages),
            (Generation::Muzzy, figures.muzzy_purges, figures.muzzy_pages),
        ];
        for (generation, runs, reclaimed) in generations {
            let labels = [generation.as_str()];
            handles.counter(&names::GC_COLLECTIONS, &labels).absolute(runs);
            handles.counter(&names::GC_COLLECTED, &labels).absolute(reclaimed);
        }
    }

    /// Live objects, all but the series of this very scrape, which are counted last.
    pub(super) fn objects(
        &self,
        endpoints: &[Arc<EndpointSeries>],
        listeners: &[Arc<ListenerSeries>],
    ) -> Family {
        let held = *self.memory.held.lock();
        let counts = [
            (ObjectType::Connections, listeners.iter().map(|it| it.active.count()).sum()),
            (ObjectType::Requests, self.requests_in_flight()),
            (ObjectType::Buffers, self.memory.buffers.count()),
            (ObjectType::LocalCacheEntries, held.local_cache_entries),
            (ObjectType::Leases, held.leases),
            (ObjectType::JwksKeys, held.jwks_keys),
            (ObjectType::WebsocketTunnels, endpoints.iter().map(|it| it.websockets.count()).sum()),
        ];
        let mut family = Family::new(&names::OBJECTS);
        for (kind, count) in counts {
            family.sample(&[kind.as_str()], count);
        }
        family
    }
}
