//! A ring that a thread keeps from its first queue on until it ends, and uses for nothing.
//!
//! Kernels from 2026 on (seen on 6.18.44) end a thread's io-wq workers when its last ring is closed.
//! There, after some thousand queues and millions of operations, a thread can get into a state in which
//! no worker is made for it any more: whatever needs one (an open, a long read) stays in the kernel for
//! ever, on every ring that the thread makes from then on. docs/safety.md has what was seen. While a
//! thread has a ring its workers are not ended, and this has not been seen.
//!
//! It has no descriptor: the kernel holds it in the thread's table of registered rings
//! (`IORING_SETUP_REGISTERED_FD_ONLY`, Linux 6.5; older kernels do not end workers that way) and lets it
//! go when the thread ends.

use std::io;
use std::ptr::{self, NonNull};

const IORING_SETUP_NO_MMAP: u32 = 1 << 14;
const IORING_SETUP_REGISTERED_FD_ONLY: u32 = 1 << 15;
const IORING_SETUP_NO_SQARRAY: u32 = 1 << 16;

/// `struct io_uring_params`, 120 bytes. `io_uring_setup(2)`.
#[repr(C)]
#[derive(Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    rest: [u32; 7],
    sq_offsets: [u32; 8],
    /// Where the submission queue's entries are.
    entries_address: u64,
    cq_offsets: [u32; 8],
    /// Where both queues are.
    queues_address: u64,
}

/// The memory of this thread's kept ring, which the kernel has pinned; `None` where there can be none.
struct Keeper(#[allow(dead_code)] Option<Memory>);

thread_local! {
    static KEEPER: Keeper = Keeper(make().ok());
}

/// Makes this thread keep a ring, if it does not. Where it can't be made the thread does without: it is
/// no more than a precaution.
pub fn keep() {
    // A thread that ends makes none any more.
    let _ = KEEPER.try_with(|_| ());
}

/// Whether this thread keeps one.
#[cfg(test)]
pub fn is_kept() -> bool {
    KEEPER.try_with(|keeper| keeper.0.is_some()).unwrap_or(false)
}

fn make() -> io::Result<Memory> {
    let memory = Memory::map()?;
    let address = memory.0.as_ptr() as u64;
    let mut params = Params {
        flags: IORING_SETUP_NO_MMAP | IORING_SETUP_REGISTERED_FD_ONLY | IORING_SETUP_NO_SQARRAY,
        entries_address: address,
        queues_address: address + page_bytes() as u64,
        ..Params::default()
    };
    // SAFETY: `params` is ours and outlives the call. The memory named in it is ours, lies in whole
    // pages, and holds one entry (64 bytes) and the queues of one entry (under 256 bytes); the kernel
    // pins the pages, so that they outlive the mapping for as long as it needs them.
    let index = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, ptr::from_mut(&mut params)) };
    // What is returned is an index among the thread's registered rings, and nobody's descriptor.
    if index < 0 { Err(io::Error::last_os_error()) } else { Ok(memory) }
}

/// `IORING_SETUP_NO_MMAP` takes whole pages: one for the entries, one for both queues.
fn page_bytes() -> usize {
    // SAFETY: sysconf(3) touches no memory of ours.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(4096)
}

/// Pages of our own, which no child gets.
struct Memory(NonNull<libc::c_void>);

impl Memory {
    fn map() -> io::Result<Self> {
        // SAFETY: new anonymous pages; nobody else knows of them.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                2 * page_bytes(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        let mapped = if address == libc::MAP_FAILED { None } else { NonNull::new(address) };
        let memory = Self(mapped.ok_or_else(io::Error::last_os_error)?);
        // SAFETY: the pages were mapped just now. Copy on write in a child must not part us from them.
        unsafe { libc::madvise(address, 2 * page_bytes(), libc::MADV_DONTFORK) };
        Ok(memory)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, unmapped once, and nothing of ours points into it. The kernel may
        // still have the pages, which are its own by then.
        unsafe { libc::munmap(self.0.as_ptr(), 2 * page_bytes()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Ring;
    use crate::setup::Setup;

    #[test]
    fn a_thread_keeps_a_ring_from_its_first_on_where_the_kernel_lets_it() {
        let possible = make().is_ok();
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc");
        let mut numbers = release.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        // IORING_SETUP_NO_SQARRAY is of 6.6.
        assert_eq!(possible, version >= (6, 6), "{release}");
        let thread = std::thread::spawn(move || {
            for _ in 0..3 {
                let setup = Setup { entries: 8, cq_entries: 16, ..Setup::default() };
                drop(Ring::new(setup).expect("a ring"));
                assert_eq!(is_kept(), possible);
            }
        });
        thread.join().expect("no panic");
    }
}
