//! A file's bytes as shared memory of this process.
//!
//! A count that was stored here belongs to the kernel: a process that is killed between any two
//! instructions loses none of it. A write per count would cost a system call per request, and a
//! buffer would be lost with the process; so the mapping is worth the `unsafe`, which is in this
//! file alone.
#![expect(unsafe_code, reason = "the standard library has no mapping of a file")]

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Written where a file system cannot reserve room.
const ZEROS: [u8; 4096] = [0; 4096];

/// A file, mapped shared and writable, as words. Unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the words are atomics, which any thread may use; the mapping is owned by this value
// alone, which any thread may drop: unmapping is bound to no thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; there is no way to the words but as shared atomics.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Makes a new, empty file so many words long and maps it. The disk's room is taken first:
    /// on a full disk a page without room behind it would end the process when it is written to.
    ///
    /// # Errors
    /// No room; the file cannot be mapped.
    pub fn of_new(file: &File, words: usize) -> io::Result<Self> {
        let too_large = || io::Error::from(io::ErrorKind::FileTooLarge);
        let bytes = words.checked_mul(size_of::<AtomicU64>()).ok_or_else(too_large)?;
        reserve(file, bytes)?;
        // SAFETY: no address is asked for, so that the kernel takes a free one; the length is not
        // zero, or it says EINVAL; what comes back is `bytes` long, readable and writable, and
        // nobody else's until `drop`. The file may be written by others, which is why all of it is
        // atomics, of which any bits are a value. Should the file be cut short by somebody, the
        // next access ends the process: memory is never taken for something else.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )?
        };
        let start = NonNull::new(start.cast()).ok_or_else(too_large)?;
        Ok(Mapping { start, words })
    }
}

impl AsRef<[AtomicU64]> for Mapping {
    fn as_ref(&self) -> &[AtomicU64] {
        // SAFETY: mapped in `of_new` with this length, on a page's boundary, and not unmapped before
        // `self` is dropped, which the borrow outlives not.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let bytes = self.words.saturating_mul(size_of::<AtomicU64>());
        // SAFETY: the mapping of `of_new`, whole; no borrow of it is left.
        // That it fails can only be a fault of ours, and leaves the mapping as it is.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), bytes) };
    }
}

/// Takes the disk's room for so many bytes, all zero.
fn reserve(file: &File, bytes: usize) -> io::Result<()> {
    use std::io::Write;
    let length = u64::try_from(bytes).unwrap_or(u64::MAX);
    match fallocate(file, FallocateFlags::empty(), 0, length) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
        Err(error) => return Err(error.into()),
    }
    let mut left = bytes;
    while left > 0 {
        let zeros = ZEROS.get(..left.min(ZEROS.len())).unwrap_or_default();
        (&mut &*file).write_all(zeros)?;
        left = left.saturating_sub(zeros.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    fn file() -> (tempfile::TempDir, File) {
        let directory = tempfile::tempdir().unwrap();
        let mut options = File::options();
        options.read(true).write(true).create_new(true);
        let file = options.open(directory.path().join("words")).unwrap();
        (directory, file)
    }

    #[test]
    fn what_is_stored_is_in_the_file_at_once_and_after() {
        let (directory, file) = file();
        let mapping = Mapping::of_new(&file, 1000).unwrap();
        assert!(mapping.as_ref().iter().all(|word| word.load(Relaxed) == 0));
        mapping.as_ref()[999].store(u64::from_le_bytes(*b"tollgate"), Relaxed);
        let read = || std::fs::read(directory.path().join("words")).unwrap();
        assert_eq!((read().len(), &read()[7992..]), (8000, &b"tollgate"[..]));
        drop(mapping);
        assert_eq!(&read()[7992..], b"tollgate");
    }

    #[test]
    fn nothing_is_not_mapped() {
        let (_directory, file) = file();
        assert!(Mapping::of_new(&file, 0).is_err());
        assert!(Mapping::of_new(&file, usize::MAX).is_err());
    }
}
