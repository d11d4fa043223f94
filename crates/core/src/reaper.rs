//! How a completion that comes late wakes the event loop: an eventfd, registered with the ring,
//! that is on only while the loop may sleep.
//!
//! Polling the ring's own descriptor hangs under DEFER_TASKRUN (nobody runs the deferred work), and
//! so does `IORING_REGISTER_EVENTFD_ASYNC`. A plain registered eventfd that stays on wakes the loop
//! about twice for each completion; turning it off while we look ourselves halves that.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::event::{EventfdFlags, eventfd};

use crate::ring::Ring;

/// The eventfd and whether it is on.
pub struct Reaper {
    eventfd: OwnedFd,
    armed: bool,
}

impl Reaper {
    /// Makes the eventfd and registers it, turned off.
    ///
    /// # Errors
    /// The errno of `eventfd(2)` or `io_uring_register(2)`.
    pub fn new(ring: &mut Ring) -> io::Result<Self> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        ring.register_eventfd(eventfd.as_raw_fd())?;
        ring.disable_eventfd();
        Ok(Self { eventfd, armed: false })
    }

    /// The descriptor to wait on: readable when a completion came while armed.
    #[must_use]
    pub fn descriptor(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }

    /// The same descriptor for another thread, which may keep it longer than we live.
    ///
    /// # Errors
    /// The errno of `fcntl(2)`: EMFILE.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.eventfd.try_clone()
    }

    /// We are awake and look for completions ourselves.
    #[inline]
    pub fn disarm(&mut self, ring: &mut Ring) {
        if self.armed {
            ring.disable_eventfd();
            self.armed = false;
        }
    }

    /// The loop may sleep unless this says true: something came before the eventfd was on.
    #[inline]
    pub fn arm(&mut self, ring: &mut Ring) -> bool {
        self.armed = true;
        let came = ring.enable_eventfd_and_look();
        if came {
            self.disarm(ring);
        }
        came
    }

    /// The loop sleeps for a time, although the kernel says that an enter would bring something: whatever
    /// else comes wakes it. True when there is a completion, and it may not sleep.
    #[cold]
    pub fn arm_all_the_same(&mut self, ring: &mut Ring) -> bool {
        self.armed = true;
        ring.enable_eventfd_and_look();
        ring.has_completions()
    }

    /// Makes the descriptor unreadable again.
    pub fn clear(&self) {
        let mut count = [0u8; 8];
        // EAGAIN: it was not readable. There is nothing else that it could say.
        let _ = rustix::io::read(&self.eventfd, &mut count);
    }
}
