//! A hand in the memory that a ring shares with the kernel: sets what the kernel would.

#![allow(unsafe_code)]

use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

/// Where `struct io_rings` of Linux has the entries of the submission queue, and its flags; the first is
/// looked at, so that another layout is noticed.
const SQ_ENTRIES: usize = 24;
const SQ_FLAGS: usize = 36;
const PAGE: usize = 4096;
const IORING_SQ_TASKRUN: u32 = 1 << 2;

/// Says that an enter would bring something, as a worker does that was held up until it was no more so.
pub fn set_taskrun(ring: RawFd, entries: u32) {
    // SAFETY: a new mapping of one page of the ring's memory, at no address of anybody's; it is unmapped
    // below, and nothing outlives that. The kernel and the engine look at the flags atomically.
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let rings = libc::mmap(ptr::null_mut(), PAGE, protection, libc::MAP_SHARED, ring, 0);
        assert_ne!(rings, libc::MAP_FAILED);
        assert_eq!(*rings.byte_add(SQ_ENTRIES).cast::<u32>(), entries, "the layout is another");
        (*rings.byte_add(SQ_FLAGS).cast::<AtomicU32>())
            .fetch_or(IORING_SQ_TASKRUN, Ordering::SeqCst);
        libc::munmap(rings, PAGE);
    }
}
