//! Entries in memory: the submission queue, open for writing, and an entry readdressed.

use std::ptr;

use io_uring::SubmissionQueue;
use io_uring::squeue::Entry;

use crate::arena::Address;
use crate::in_flight::Sqe;

/// Places of `struct io_uring_sqe` in its 64 bytes, as eight words. `io_uring_enter(2)`.
const SQE_WORDS: usize = 8;
const OFF: usize = 1;
const ADDR: usize = 2;
const LEN_AND_RW_FLAGS: usize = 3;
const USER_DATA: usize = 4;
const _: () = assert!(size_of::<Entry>() == SQE_WORDS * 8 && align_of::<Entry>() <= 8);
// `len` is the lower half of its word.
const _: () = assert!(cfg!(target_endian = "little"));

/// Makes an entry of a read or write the next one of its kind: other memory, another place in the
/// file. Where that is inlined the entry is made in registers, and written once, into the queue: built
/// anew for each, 1024 nops at once take 5 ns more each.
#[inline]
pub(crate) fn readdress(entry: &mut Entry, memory: Address, position: u64, user_data: u64) {
    let words = ptr::from_mut(entry).cast::<[u64; SQE_WORDS]>();
    // SAFETY: an `Entry` is the kernel's struct and nothing else, of this size and alignment (asserted
    // above), and any bits are a valid one. The words written are those of `off`, `addr`, `len` (with
    // `rw_flags`, which stays) and `user_data`; the address is of arena memory that the caller holds.
    unsafe {
        (*words)[OFF] = position;
        (*words)[ADDR] = memory.as_ptr() as u64;
        let flags = (*words)[LEN_AND_RW_FLAGS] & !u64::from(u32::MAX);
        (*words)[LEN_AND_RW_FLAGS] = flags | memory.len() as u64;
        (*words)[USER_DATA] = user_data;
    }
}

/// The submission queue, open for writing.
pub struct Submission<'ring> {
    pub(super) sq: SubmissionQueue<'ring>,
}

impl Submission<'_> {
    /// Entries that can still be pushed before an enter.
    #[inline]
    #[must_use]
    pub fn room(&self) -> usize {
        self.sq.capacity() - self.sq.len()
    }

    /// Entries pushed and not yet taken by the kernel.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.sq.len()
    }

    /// Whether the kernel has taken everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sq.is_empty()
    }

    /// Writes one entry; false when the queue is full.
    #[inline]
    pub fn push(&mut self, sqe: &Sqe) -> bool {
        // SAFETY: an `Sqe` is made by `in_flight` alone, which owns (or holds, in the arena and the
        // file table) all that it points at until the operation's last CQE is collected.
        unsafe { self.sq.push(sqe.entry()) }.is_ok()
    }
}
