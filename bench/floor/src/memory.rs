//! The memory that reads fill and writes empty: page-aligned blocks of one anonymous mapping.

#![allow(unsafe_code)] // mmap(2)

use std::io;
use std::ptr::{self, NonNull};

const PAGE_BYTES: usize = 4096;

/// One buffer of a block each. Never unmapped: a run that fails half-way leaves operations in flight, and
/// the kernel may use this memory until the process is gone.
#[derive(Debug)]
pub struct Blocks {
    start: NonNull<u8>,
    stride_bytes: usize,
    count: usize,
}

impl Blocks {
    /// Maps `count` blocks of at least `block_bytes`, present from the start, filled with noise (so
    /// that no file system or device below finds zeros to skip).
    pub fn map(count: u32, block_bytes: u32) -> io::Result<Self> {
        let count = count as usize;
        let stride_bytes = (block_bytes as usize).next_multiple_of(PAGE_BYTES);
        let length_bytes = count.checked_mul(stride_bytes).ok_or(io::ErrorKind::OutOfMemory)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let start = unsafe { libc::mmap(ptr::null_mut(), length_bytes, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;

        let mut noise = crate::random::Offsets::new(0, u64::MAX, 1);
        for word in 0..length_bytes / 8 {
            // SAFETY: `word * 8 + 8 <= length_bytes`, the mapping is page aligned, writable and
            // known to nobody else yet.
            unsafe { start.cast::<u64>().add(word).write(noise.next()) };
        }
        Ok(Self { start, stride_bytes, count })
    }

    /// Where a block begins. Valid for as long as the process lives.
    #[inline]
    pub fn address(&self, block: u32) -> *mut u8 {
        assert!((block as usize) < self.count, "block {block} of {}", self.count);
        self.start.as_ptr().wrapping_add(block as usize * self.stride_bytes)
    }

    /// One entry a block, as buffer registration takes them.
    pub fn iovecs(&self, block_bytes: u32) -> Vec<libc::iovec> {
        assert!(block_bytes as usize <= self.stride_bytes);
        (0..self.count as u32)
            .map(|block| libc::iovec {
                iov_base: self.address(block).cast(),
                iov_len: block_bytes as usize,
            })
            .collect()
    }

    /// The first page of a block that nothing is in flight on.
    #[cfg(test)]
    pub fn copy(&self, block: u32) -> Vec<u8> {
        // SAFETY: a block holds at least a page, always mapped; its operations are complete.
        unsafe { std::slice::from_raw_parts(self.address(block), PAGE_BYTES) }.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_page_aligned_and_do_not_overlap() {
        let blocks = Blocks::map(3, 5000).unwrap();
        let iovecs = blocks.iovecs(5000);
        assert_eq!(iovecs.len(), 3);
        for (index, iovec) in iovecs.iter().enumerate() {
            assert_eq!(iovec.iov_base.addr(), blocks.address(0).addr() + index * 8192);
            assert_eq!((iovec.iov_base.addr() % PAGE_BYTES, iovec.iov_len), (0, 5000));
        }
    }

    #[test]
    fn a_mapping_larger_than_any_memory_is_an_error() {
        assert!(Blocks::map(u32::MAX, u32::MAX).is_err());
    }
}
