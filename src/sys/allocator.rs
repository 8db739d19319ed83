//! The allocator's own statistics.
#![expect(
    unsafe_code,
    reason = "purges have no typed reader: `raw::read` trusts its caller with the type of a value"
)]

use std::hint::black_box;
use std::sync::OnceLock;

use tikv_jemalloc_ctl::{epoch, raw, stats, thread};

/// Bytes of the allocation that tells whether jemalloc is the allocator: larger than what a thread
/// keeps in hand, and never asked for otherwise.
const PROBE_BYTES: usize = 100_003;

/// What jemalloc says: bytes as of the moment, counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AllocatorFigures {
    /// Bytes that the program has asked for and not given back.
    pub allocated: u64,
    /// Bytes in pages that hold any of them.
    pub active: u64,
    /// Bytes in pages that the allocator believes to lie in memory: active ones, its own, and
    /// those that are free and not yet given back.
    pub resident: u64,
    /// Bytes of address space that it keeps for later, without memory behind it.
    pub retained: u64,
    /// Bytes of address space in use.
    pub mapped: u64,
    /// Bytes of its own books.
    pub metadata: u64,
    /// How often it gave back dirty pages: those that were written to and are free.
    pub dirty_purges: u64,
    /// How many such pages.
    pub dirty_pages: u64,
    /// How often it gave back muzzy pages: those that the kernel may take, and has been told so.
    pub muzzy_purges: u64,
    /// How many such pages.
    pub muzzy_pages: u64,
}

/// What the allocator says, or `None` where it is not jemalloc. Adds up every arena: some
/// tens of microseconds, for a scrape and not for a request.
pub fn read() -> Option<AllocatorFigures> {
    static IS_JEMALLOC: OnceLock<bool> = OnceLock::new();
    if !*IS_JEMALLOC.get_or_init(|| is_jemalloc().unwrap_or(false)) {
        return None;
    }
    epoch::advance().ok()?;
    Some(AllocatorFigures {
        allocated: bytes(stats::allocated::read())?,
        active: bytes(stats::active::read())?,
        resident: bytes(stats::resident::read())?,
        retained: bytes(stats::retained::read())?,
        mapped: bytes(stats::mapped::read())?,
        metadata: bytes(stats::metadata::read())?,
        dirty_purges: of_all_arenas(b"stats.arenas.4096.dirty_npurge\0")?,
        dirty_pages: of_all_arenas(b"stats.arenas.4096.dirty_purged\0")?,
        muzzy_purges: of_all_arenas(b"stats.arenas.4096.muzzy_npurge\0")?,
        muzzy_pages: of_all_arenas(b"stats.arenas.4096.muzzy_purged\0")?,
    })
}

fn bytes(read: tikv_jemalloc_ctl::Result<usize>) -> Option<u64> {
    read.ok().and_then(|bytes| u64::try_from(bytes).ok())
}

/// A count over all arenas, which 4096 stands for (`MALLCTL_ARENAS_ALL`).
fn of_all_arenas(name: &'static [u8]) -> Option<u64> {
    // SAFETY: `read` gives jemalloc a place for one value of the type that it is asked for, and
    // the four names above are `uint64_t` in jemalloc's manual ("stats.arenas.<i>.dirty_npurge"
    // and its siblings). The names end in a zero byte, and jemalloc refuses a place of another
    // size than the value's.
    unsafe { raw::read::<u64>(name) }.ok()
}

/// Whether an allocation of this program is one of jemalloc's: it is linked in either way.
fn is_jemalloc() -> tikv_jemalloc_ctl::Result<bool> {
    let allocated = thread::allocatedp::read()?;
    let before = allocated.get();
    drop(black_box(Vec::<u8>::with_capacity(black_box(PROBE_BYTES))));
    let grown = allocated.get().wrapping_sub(before);
    Ok(grown >= u64::try_from(PROBE_BYTES).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_allocator_is_not_taken_for_jemalloc() {
        // Tests of the library run with the system's own.
        assert_eq!(read(), None);
    }

    #[test]
    fn the_counts_are_there_under_their_names() {
        for name in [&b"stats.arenas.4096.dirty_npurge\0"[..], b"stats.arenas.4096.muzzy_purged\0"]
        {
            assert!(of_all_arenas(name).is_some(), "{}", String::from_utf8_lossy(name));
        }
        assert_eq!(of_all_arenas(b"stats.arenas.4096.no_such\0"), None);
        assert_eq!(of_all_arenas(b"stats.arenas.4096.nthreads\0"), None, "four bytes, not eight");
    }
}
