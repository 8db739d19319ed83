//! What the operating system and the allocator say of this process.
//!
//! Readings only: nothing here is kept, judged or published, and no files but [`allocator`] and
//! [`mapping`] may be unsafe. Where something cannot be read there is `None`, never a made-up number.

pub mod allocator;
pub mod mapping;
pub mod memory;
