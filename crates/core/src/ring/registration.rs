//! What is registered with a ring, `io_uring_register(2)`: its own descriptor, restrictions, the eventfd,
//! caps on workers, the tables of files and of buffers.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

use io_uring::EnterFlags;

use super::Ring;
use crate::arena::Address;

/// `struct io_uring_rsrc_update`.
#[repr(C)]
struct RsrcUpdate {
    offset: u32,
    resv: u32,
    data: u64,
}

impl Ring {
    /// Registers the ring's own descriptor for this thread, `IORING_REGISTER_RING_FDS` (5.18).
    /// `io_uring_register(2)`. The crate's own call forgets the index with each `Submitter`.
    pub(super) fn register_own_descriptor(&mut self) -> io::Result<()> {
        const IORING_REGISTER_RING_FDS: libc::c_uint = 20;
        let mut update = RsrcUpdate { offset: u32::MAX, resv: 0, data: self.io.as_raw_fd() as u64 };
        // SAFETY: `update` is ours and outlives the call, which reads and writes just this struct.
        let done = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                self.io.as_raw_fd(),
                IORING_REGISTER_RING_FDS,
                ptr::from_mut(&mut update),
                1,
            )
        };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        self.enter_fd = update.offset as RawFd;
        self.enter_flags = EnterFlags::REGISTERED_RING.bits();
        Ok(())
    }

    /// Gives the registered descriptor back, `IORING_UNREGISTER_RING_FDS`. It is a reference to the
    /// ring: while this thread has it, closing the descriptor ends nothing, and registered files and
    /// pinned memory stay.
    pub(super) fn unregister_own_descriptor(&self) {
        const IORING_UNREGISTER_RING_FDS: libc::c_uint = 21;
        let mut update = RsrcUpdate { offset: self.enter_fd as u32, resv: 0, data: 0 };
        // SAFETY: `update` is ours and outlives the call, which reads just this struct.
        unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                self.io.as_raw_fd(),
                IORING_UNREGISTER_RING_FDS,
                ptr::from_mut(&mut update),
                1,
            );
        }
    }

    /// Locks a restricted ring to its operations and lets it work; nothing for others. All that is
    /// registered only once is registered before. `io_uring_register(2)`.
    ///
    /// # Errors
    /// The errno of `io_uring_register(2)`; EINVAL before 5.10.
    pub fn enable(&self) -> io::Result<()> {
        let Some(operations) = self.granted.restrict else { return Ok(()) };
        self.io.submitter().register_restrictions(&mut operations.restrictions())?;
        self.io.submitter().register_enable_rings()
    }

    /// Makes the kernel signal `eventfd` at completions. `io_uring_register_eventfd(3)`; the
    /// `_async` variant never fires for deferred task work and hangs.
    ///
    /// # Errors
    /// The errno of `io_uring_register(2)`.
    pub fn register_eventfd(&self, eventfd: RawFd) -> io::Result<()> {
        self.io.submitter().register_eventfd(eventfd)
    }

    /// Caps the kernel's worker threads of this thread, `IORING_REGISTER_IOWQ_MAX_WORKERS` (5.15);
    /// 0 leaves a cap as it is.
    ///
    /// Returns the caps of before.
    ///
    /// # Errors
    /// The errno of `io_uring_register(2)`.
    pub fn limit_workers(&self, bounded: u32, unbounded: u32) -> io::Result<(u32, u32)> {
        let mut caps = [bounded, unbounded];
        self.io.submitter().register_iowq_max_workers(&mut caps)?;
        Ok((caps[0], caps[1]))
    }

    /// Registers an empty table for `slots` files (5.19).
    ///
    /// # Errors
    /// The errno of `io_uring_register(2)`; EMFILE past RLIMIT_NOFILE.
    pub fn register_file_table(&self, slots: u32) -> io::Result<()> {
        self.io.submitter().register_files_sparse(slots)
    }

    /// Puts `fd` into the file table at `slot`; -1 empties it. Operations in flight keep their file.
    ///
    /// # Errors
    /// The errno of `io_uring_register(2)`.
    pub fn update_file(&self, slot: u32, fd: RawFd) -> io::Result<()> {
        self.io.submitter().register_files_update(slot, &[fd]).map(drop)
    }

    /// Registers an empty table for `slabs` buffers (5.19).
    ///
    /// # Errors
    /// The errno of `io_uring_register(2)`.
    pub fn register_buffer_table(&self, slabs: u32) -> io::Result<()> {
        self.io.submitter().register_buffers_sparse(slabs)
    }

    /// Puts a slab into the buffer table at `slot`, or empties it with `None`. Pins its pages, and
    /// so faults all of them in: about 0.3 ms for each MiB.
    ///
    /// # Errors
    /// The errno of `io_uring_register(2)`; ENOMEM where RLIMIT_MEMLOCK does not allow it.
    pub fn update_buffer(&self, slot: u32, slab: Option<Address>) -> io::Result<()> {
        let (base, length) =
            slab.map_or((ptr::null_mut(), 0), |address| (address.as_ptr(), address.len()));
        let iovec = libc::iovec { iov_base: base.cast(), iov_len: length };
        // SAFETY: an `Address` is of arena memory; the arena empties the entry before it unmaps the
        // slab, and the kernel keeps the pages of operations in flight pinned by itself.
        unsafe { self.io.submitter().register_buffers_update(slot, &[iovec], None) }
    }
}
