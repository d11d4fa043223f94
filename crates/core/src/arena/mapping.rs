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

/// Bytes of a huge page of x86-64 and arm64 (with pages of 4 KiB).
pub(super) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Memory from mmap, unmapped when the last reference goes: the arena's, or that of a buffer that
/// JavaScript still holds.
pub struct Mapping {
    start: NonNull<u8>,
    length_bytes: usize,
}

impl Mapping {
    /// Maps zeroed, private memory that a fork does not copy: libuv forks plainly, and copying the
    /// page tables of a registered 64 MiB arena made each `spawn` 20 ms slower. Pages are faulted in
    /// at first touch. With `huge` they are huge ones where the kernel has some to spare: it begins where
    /// one does, at a multiple of [`HUGE_PAGE_BYTES`].
    pub(super) fn new(length_bytes: usize, huge: bool) -> io::Result<Self> {
        let spare_bytes = if huge { HUGE_PAGE_BYTES } else { 0 };
        let mut mapping = Self::map(length_bytes.checked_add(spare_bytes).ok_or_else(no_memory)?)?;
        if huge {
            mapping.keep_aligned(length_bytes)?;
            // SAFETY: the range is the mapping just made, whole; HUGEPAGE changes no content. A kernel that
            // has no huge pages refuses.
            let _ = unsafe {
                madvise(mapping.start.as_ptr().cast(), length_bytes, Advice::LinuxHugepage)
            };
        }
        // SAFETY: the range is the mapping just made, whole; DONTFORK changes no content.
        unsafe { madvise(mapping.start.as_ptr().cast(), length_bytes, Advice::LinuxDontFork) }?;
        Ok(mapping)
    }

    fn map(length_bytes: usize) -> io::Result<Self> {
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
        let start = NonNull::new(start.cast()).ok_or_else(no_memory)?;
        Ok(Self { start, length_bytes })
    }

    /// Unmaps all but `length_bytes` from the first place on where a huge page begins. There is room for
    /// that much.
    fn keep_aligned(&mut self, length_bytes: usize) -> io::Result<()> {
        let from = self.start.as_ptr();
        let before = from.align_offset(HUGE_PAGE_BYTES);
        let behind = self.length_bytes - before - length_bytes;
        // SAFETY: both ranges are of the mapping, and nobody knows of it yet.
        unsafe {
            if before > 0 {
                munmap(from.cast(), before)?;
                self.start = self.start.add(before);
                self.length_bytes -= before;
            }
            if behind > 0 {
                munmap(self.start.add(length_bytes).as_ptr().cast(), behind)?;
            }
        }
        self.length_bytes = length_bytes;
        Ok(())
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

fn no_memory() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOMEM)
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the last reference, so no slab, no exposed ArrayBuffer and (the arena leaks
        // mappings that the kernel still holds) no operation refers to the range.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.length_bytes) };
        debug_assert!(unmapped.is_ok());
    }
}
