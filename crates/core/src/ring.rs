//! The ring itself: set-up with its fallbacks, registration calls, enter, and the two queues.
//!
//! May touch the kernel. Never decides when to enter (that is `engine`) and never makes an SQE:
//! it takes only [`Sqe`](crate::in_flight::Sqe)s, which `in_flight` makes over resources that it keeps.

mod descriptors;
mod entries;
mod keeper;
mod registration;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;
use std::sync::atomic::{Ordering, fence};

use io_uring::{EnterFlags, IoUring, Probe, cqueue, opcode};

use crate::capabilities::{self, Capabilities};
use crate::setup::Setup;

pub use descriptors::descriptor_flags;
pub(crate) use descriptors::{duplicate, is_open, own_descriptor};
pub use entries::Submission;
pub(crate) use entries::readdress;

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

    /// An enter that submits nothing: fetches what the kernel holds back ([`Self::wants_enter`]).
    ///
    /// # Errors
    /// The errno of enter.
    pub fn fetch(&self) -> io::Result<()> {
        self.call_enter(0, 0, EnterFlags::GETEVENTS).map(drop)
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

    /// Whether the polling thread sleeps, or has not come round yet since it was woken.
    pub fn sleeps(&mut self) -> bool {
        self.io.submission().need_wakeup()
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

    /// An entry that cancels the operation with this user_data; it points at nothing.
    #[must_use]
    pub(crate) fn cancel_entry(target: u64) -> io_uring::squeue::Entry {
        opcode::AsyncCancel::new(target).build()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.granted.registered_descriptor {
            self.unregister_own_descriptor();
        }
    }
}

#[cfg(test)]
mod tests;
