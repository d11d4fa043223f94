//! The ring itself: set-up with its fallbacks, registration calls, enter, and the two queues.
//!
//! May touch the kernel. Never decides when to enter (that is `engine`) and never makes an SQE:
//! it takes only [`Sqe`]s, which `in_flight` makes over resources that it keeps.

mod keeper;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{Ordering, fence};

use io_uring::squeue::Entry;
use io_uring::{EnterFlags, IoUring, Probe, SubmissionQueue, cqueue, opcode};

use crate::arena::Address;
use crate::capabilities::{self, Capabilities};
use crate::in_flight::{Sqe, Sqes};
use crate::setup::Setup;

/// `struct io_uring_rsrc_update`.
#[repr(C)]
struct RsrcUpdate {
    offset: u32,
    resv: u32,
    data: u64,
}

/// An `io_uring` instance, used by one thread.
pub struct Ring {
    io: IoUring,
    granted: Setup,
    /// What was asked for and refused, with its errno.
    refused: Vec<(&'static str, i32)>,
    /// What enter is given as `fd`: the descriptor, or its index when it is registered.
    enter_fd: RawFd,
    enter_flags: u32,
    /// Most entries that the kernel is offered at once: how tests make it take a part, which it does
    /// by itself only when it runs out of memory.
    #[cfg(test)]
    pub(crate) offered_max: u32,
}

/// Where RLIMIT_MEMLOCK is small, the submission queue is not made smaller than this: with it the
/// queues take two pages.
const ENTRIES_MIN: u32 = 8;

impl Ring {
    /// Sets a ring up with the best of `wish` that the kernel accepts. Where the queues are more than
    /// RLIMIT_MEMLOCK allows they are made smaller: [`Self::granted`] has their sizes.
    ///
    /// # Errors
    /// The errno of `io_uring_setup(2)`: ENOSYS and EPERM where `io_uring` is missing or forbidden,
    /// ENOMEM where RLIMIT_MEMLOCK is too small even for 8 entries, EMFILE; EINVAL when even a plain ring
    /// is refused, or a ring to attach to is none or has no polling thread; ENXIO where it is no
    /// descriptor; EOPNOTSUPP where IORING_FEAT_NODROP (5.5) is missing, without which completions
    /// can be lost, or IORING_FEAT_SQPOLL_NONFIXED (5.11) for a polling thread.
    pub fn new(mut wish: Setup) -> io::Result<Self> {
        loop {
            match Self::of_size(wish) {
                // At once much smaller: other rings of this user share what is left.
                Err(error)
                    if error.raw_os_error() == Some(libc::ENOMEM) && wish.entries > ENTRIES_MIN =>
                {
                    wish.entries = (wish.entries / 4).max(ENTRIES_MIN);
                    wish.cq_entries = (wish.cq_entries / 4).max(2 * wish.entries);
                }
                outcome => return outcome,
            }
        }
    }

    fn of_size(wish: Setup) -> io::Result<Self> {
        let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
        for rung in wish.ladder() {
            match rung.build() {
                Ok(io) => return Self::with(io, &wish, rung),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = error,
                Err(error) => return Err(error),
            }
        }
        Err(refused)
    }

    fn with(io: IoUring, wish: &Setup, mut granted: Setup) -> io::Result<Self> {
        let thread_takes_all = io.params().is_feature_sqpoll_nonfixed();
        if !io.params().is_feature_nodrop() || (wish.sqpoll.is_some() && !thread_takes_all) {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        granted.entries = io.params().sq_entries();
        granted.cq_entries = io.params().cq_entries();
        let mut ring = Self {
            enter_fd: io.as_raw_fd(),
            enter_flags: 0,
            io,
            refused: granted.lost(wish).into_iter().map(|name| (name, libc::EINVAL)).collect(),
            granted,
            #[cfg(test)]
            offered_max: u32::MAX,
        };
        if granted.registered_descriptor {
            let registered = ring.register_own_descriptor();
            ring.granted.registered_descriptor = registered.is_ok();
            ring.note_refused("REGISTER_RING_FDS", registered);
        }
        keeper::keep();
        Ok(ring)
    }

    /// Registers the ring's own descriptor for this thread, `IORING_REGISTER_RING_FDS` (5.18).
    /// `io_uring_register(2)`. The crate's own call forgets the index with each `Submitter`.
    fn register_own_descriptor(&mut self) -> io::Result<()> {
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
    fn unregister_own_descriptor(&self) {
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

    /// The ring's descriptor, for others to attach to.
    #[must_use]
    pub fn descriptor(&self) -> RawFd {
        self.io.as_raw_fd()
    }

    /// Notes that the kernel refused something that the ring works without.
    pub(crate) fn note_refused(&mut self, what: &'static str, outcome: io::Result<()>) {
        if let Err(error) = outcome {
            self.refused.push((what, error.raw_os_error().unwrap_or(libc::EIO)));
        }
    }

    /// What the kernel granted, features and operations included.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        let mut probe = Probe::new();
        let probed = self.io.submitter().register_probe(&mut probe).is_ok();
        Capabilities {
            setup: self.granted,
            features: capabilities::features(self.io.params()),
            operations: capabilities::operations(probed.then_some(&probe)),
            refused: self.refused.clone(),
        }
    }

    /// The granted set-up.
    #[must_use]
    pub const fn granted(&self) -> &Setup {
        &self.granted
    }

    /// Entries pushed and not yet taken by the kernel.
    #[inline]
    pub fn unsubmitted(&mut self) -> usize {
        self.io.submission().len()
    }

    /// Opens the submission queue for writing; what was pushed is published when it is dropped.
    #[inline]
    pub fn submission(&mut self) -> Submission<'_> {
        Submission { sq: self.io.submission() }
    }

    /// One `io_uring_enter(2)`: submits all that was pushed, waits for `min_complete` completions.
    /// With `reap`, IORING_ENTER_GETEVENTS runs the deferred completion work of this thread.
    /// Returns how many entries the kernel took.
    ///
    /// # Errors
    /// The errno of enter. EAGAIN, EBUSY and EINTR leave what was not taken in the queue.
    #[inline]
    pub fn enter(&mut self, min_complete: u32, reap: bool) -> io::Result<usize> {
        let to_submit = self.unsubmitted() as u32;
        #[cfg(test)]
        let to_submit = to_submit.min(self.offered_max);
        let flags = if reap { EnterFlags::GETEVENTS } else { EnterFlags::empty() };
        self.call_enter(to_submit, min_complete, flags)
    }

    #[inline]
    fn call_enter(
        &self,
        to_submit: u32,
        min_complete: u32,
        flags: EnterFlags,
    ) -> io::Result<usize> {
        // SAFETY: no pointer is passed; the SQEs it makes the kernel read are covered by `push`.
        let taken = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.enter_fd,
                to_submit,
                min_complete,
                self.enter_flags | flags.bits(),
                ptr::null::<libc::c_void>(),
                0usize,
            )
        };
        if taken < 0 { Err(io::Error::last_os_error()) } else { Ok(taken as usize) }
    }

    /// With a polling thread, in place of [`Self::enter`]: wakes it when it sleeps and there is
    /// something for it, and with `reap` fetches what an overflown completion queue held back.
    /// Returns whether it took a system call.
    ///
    /// # Errors
    /// The errno of enter; EOWNERDEAD when the thread is gone.
    pub fn wake(&mut self, reap: bool) -> io::Result<bool> {
        let sq = self.io.submission();
        let mut flags = EnterFlags::empty();
        // need_wakeup() has a SeqCst fence before its look, after the entries were published: either
        // we see the flag that the thread has set, or it sees the entries when it looks once more.
        if !sq.is_empty() && sq.need_wakeup() {
            flags |= EnterFlags::SQ_WAKEUP;
        }
        if reap && sq.cq_overflow() {
            flags |= EnterFlags::GETEVENTS;
        }
        drop(sq);
        if flags.is_empty() {
            return Ok(false);
        }
        self.call_enter(0, 0, flags).map(|_| true)
    }

    /// Whether the kernel holds completions that only an enter brings into the queue: deferred work
    /// (IORING_SQ_TASKRUN) or an overflown completion queue (IORING_SQ_CQ_OVERFLOW).
    #[inline]
    pub fn wants_enter(&mut self) -> bool {
        let sq = self.io.submission();
        sq.taskrun() || sq.cq_overflow()
    }

    /// Whether the completion queue has overflown: the kernel keeps the rest for us (NODROP).
    #[inline]
    pub fn overflown(&mut self) -> bool {
        self.io.submission().cq_overflow()
    }

    /// Hands each completion that is in the queue, at most `at_most`, to `each`.
    #[inline]
    pub fn drain(&mut self, at_most: usize, mut each: impl FnMut(u64, i32, bool)) {
        let mut cq = self.io.completion();
        for _ in 0..at_most {
            let Some(cqe) = cq.next() else { break };
            each(cqe.user_data(), cqe.result(), cqueue::more(cqe.flags()));
        }
    }

    /// Whether a completion is waiting in the queue.
    #[inline]
    pub fn has_completions(&mut self) -> bool {
        !self.io.completion().is_empty()
    }

    /// Turns the registered eventfd off: we are about to look ourselves (5.8).
    #[inline]
    pub fn disable_eventfd(&mut self) {
        self.io.completion().disable_eventfd();
    }

    /// Turns the registered eventfd on, and says whether something came before it was on, which it
    /// will then not tell. The fence pairs with the kernel's own between posting a completion (or
    /// setting TASKRUN) and reading the eventfd's flag.
    #[inline]
    pub fn enable_eventfd_and_look(&mut self) -> bool {
        self.io.completion().enable_eventfd();
        fence(Ordering::SeqCst);
        self.has_completions() || self.wants_enter()
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

    /// An entry that cancels the operation with this user_data; it points at nothing.
    #[must_use]
    pub(crate) fn cancel_entry(target: u64) -> io_uring::squeue::Entry {
        opcode::AsyncCancel::new(target).build()
    }
}

/// Places of `struct io_uring_sqe` in its 64 bytes, as eight words. `io_uring_enter(2)`.
const SQE_WORDS: usize = 8;
const OFF: usize = 1;
const ADDR: usize = 2;
const LEN_AND_RW_FLAGS: usize = 3;
const USER_DATA: usize = 4;
const _: () = assert!(size_of::<Entry>() == SQE_WORDS * 8 && align_of::<Entry>() <= 8);

/// Makes an entry of a read or write the next one of its kind: other memory, another place in the
/// file. In place, because an entry that is built anew is moved through memory, where each move waits
/// for the stores before it (7 ns of a nop's 60).
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
    sq: SubmissionQueue<'ring>,
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

    /// Writes all of them; false, and none is written, when the queue has not got the room.
    #[inline]
    pub fn push_all(&mut self, sqes: &Sqes) -> bool {
        // SAFETY: as `push`: `Sqes` are made by `in_flight` alone, over what it holds.
        unsafe { self.sq.push_multiple(sqes.entries()) }.is_ok()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.granted.registered_descriptor {
            self.unregister_own_descriptor();
        }
    }
}

/// Whether `fd` is a descriptor of this process.
#[must_use]
pub(crate) fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD takes no pointer, and any number may be asked.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

/// Takes over a descriptor that the kernel has just given us (the result of an open), or that the
/// caller says is now ours (adopt). It is closed when the returned value is dropped.
///
/// Passing a descriptor that somebody else closes as well is the caller's mistake to avoid; it can
/// make a later operation fail with EBADF or reach another file, as with any descriptor in Node.
#[must_use]
pub(crate) fn own_descriptor(fd: RawFd) -> OwnedFd {
    // SAFETY: asserted by both callers: `fd` is an open descriptor and nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The flags that a descriptor was opened with, F_GETFL of `fcntl(2)`.
///
/// # Errors
/// EBADF when it is not open.
pub fn descriptor_flags(fd: RawFd) -> io::Result<i32> {
    // SAFETY: F_GETFL takes no pointer, and any number may be asked.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    if flags < 0 { Err(io::Error::last_os_error()) } else { Ok(flags) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::TaskRun;

    fn nop_round_trip(ring: &mut Ring) {
        let sqe = Sqe::control(opcode::Nop::new().build().user_data(77));
        assert!(ring.submission().push(&sqe));
        assert_eq!(ring.enter(1, true).expect("enter"), 1);
        let mut seen = Vec::new();
        ring.drain(8, |user_data, result, more| seen.push((user_data, result, more)));
        assert_eq!(seen, [(77, 0, false)]);
    }

    #[test]
    fn every_combination_of_set_up_flags_gives_a_working_ring() {
        for task_run in [TaskRun::Defer, TaskRun::Cooperative, TaskRun::Interrupt] {
            for bits in 0..8u8 {
                let wish = Setup {
                    entries: 8,
                    cq_entries: 16,
                    task_run,
                    no_sq_array: bits & 1 != 0,
                    submit_all: bits & 2 != 0,
                    registered_descriptor: bits & 4 != 0,
                    ..Setup::default()
                };
                let mut ring = Ring::new(wish).expect("a ring");
                assert!(ring.granted().task_run >= task_run, "never more than was asked for");
                assert!(wish.no_sq_array || !ring.granted().no_sq_array);
                nop_round_trip(&mut ring);
            }
        }
    }

    #[test]
    fn the_ring_descriptor_is_closed_on_exec() {
        let ring = Ring::new(Setup::default()).expect("a ring");
        // SAFETY: fcntl with F_GETFD takes no pointer.
        let flags = unsafe { libc::fcntl(ring.io.as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    }

    #[test]
    fn set_up_reports_the_kernels_own_numbers() {
        let ring =
            Ring::new(Setup { entries: 5, cq_entries: 9, ..Setup::default() }).expect("a ring");
        assert_eq!((ring.granted().entries, ring.granted().cq_entries), (8, 16));
    }

    #[test]
    fn completions_past_a_full_queue_are_kept_by_the_kernel_and_come_later() {
        let mut ring =
            Ring::new(Setup { entries: 4, cq_entries: 4, ..Setup::default() }).expect("a ring");
        for batch in 0..4u64 {
            for i in 0..4 {
                let entry = opcode::Nop::new().build().user_data(batch * 4 + i);
                assert!(ring.submission().push(&Sqe::control(entry)));
            }
            // Without reap nothing is collected in between: 16 completions for a queue of 4.
            ring.enter(0, false).expect("enter");
        }
        let mut seen = Vec::new();
        for _ in 0..8 {
            ring.enter(0, true).expect("enter");
            ring.drain(64, |user_data, _, _| seen.push(user_data));
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..16).collect::<Vec<_>>());
    }
}
