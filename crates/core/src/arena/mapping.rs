//! Memory from `mmap(2)`, and the addresses in it: the only places where either is made.
//!
//! A mapping is unmapped when nobody refers to it any more. An address is valid while its hold lasts;
//! who holds what is the arena's to know.

use std::io;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// An address in the arena, with the bytes that may be touched there. Made only here; valid while
/// the hold lasts that it was given with.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    start: NonNull<u8>,
    length_bytes: usize,
}

impl Address {
    /// The first byte.
    #[must_use]
    pub const fn as_ptr(self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Bytes that may be touched.
    #[must_use]
    pub const fn len(self) -> usize {
        self.length_bytes
    }

    /// Whether nothing may be touched.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.length_bytes == 0
    }

    /// A part of it, or `None` when that leaves it.
    #[inline]
    #[must_use]
    pub fn part(self, offset_bytes: usize, length_bytes: usize) -> Option<Self> {
        if offset_bytes.checked_add(length_bytes)? > self.length_bytes {
            return None;
        }
        // SAFETY: the offset is inside the memory that `self` names, or one past its end.
        let start = unsafe { self.start.add(offset_bytes) };
        Some(Self { start, length_bytes })
    }
}

/// Memory from mmap, unmapped when the last reference goes: the arena's, or that of a buffer that
/// JavaScript still holds.
pub struct Mapping {
    start: NonNull<u8>,
    length_bytes: usize,
}

impl Mapping {
    /// Maps zeroed, private memory that a fork does not copy: libuv forks plainly, and copying the
    /// page tables of a registered 64 MiB arena made each `spawn` 20 ms slower. Pages are faulted in
    /// at first touch.
    pub(super) fn new(length_bytes: usize) -> io::Result<Self> {
        // SAFETY: an anonymous mapping at an address of the kernel's choosing touches no memory that
        // exists.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                length_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        let Some(start) = NonNull::new(start.cast()) else {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        };
        let mapping = Self { start, length_bytes };
        // SAFETY: the range is the mapping just made, whole; DONTFORK changes no content.
        unsafe { madvise(mapping.start.as_ptr().cast(), length_bytes, Advice::LinuxDontFork) }?;
        Ok(mapping)
    }

    pub(super) const fn len(&self) -> usize {
        self.length_bytes
    }

    /// All of it.
    #[inline]
    pub(super) const fn whole(&self) -> Address {
        Address { start: self.start, length_bytes: self.length_bytes }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the last reference, so no slab, no exposed ArrayBuffer and (the arena leaks
        // mappings that the kernel still holds) no operation refers to the range.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.length_bytes) };
        debug_assert!(unmapped.is_ok());
    }
}
