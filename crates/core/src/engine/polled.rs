//! The second ring of an engine that polls devices (`IORING_SETUP_IOPOLL`): reads and writes of direct
//! files go there, and everything else, which such a ring refuses with EINVAL, to the first.
//!
//! Nobody is woken for what is on it: its completions are found by an enter each time the loop comes
//! round, which it does without sleeping while there are any.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use super::{BATCH_MAX, Completion, Engine, EngineOptions};
use crate::arena::Address;
use crate::files::FileHandle;
use crate::in_flight::Arrived;
use crate::operation::{DRAIN, HARDLINK, LINK, Opcode, QUIET, Request};
use crate::ring::Ring;
use crate::setup::Setup;

/// The ring, and what is on its way there and on it.
pub(super) struct Polled {
    pub(super) ring: Ring,
    pub(super) staged: VecDeque<u32>,
    pub(super) with_kernel: usize,
}

impl Polled {
    /// As the engine's own ring, and with the same polling thread if that has one.
    pub(super) fn new(options: &EngineOptions, first: &Ring) -> io::Result<Self> {
        let shared = options.setup.sqpoll.map(|_| first.descriptor());
        let attach = shared.or(options.setup.attach);
        let ring = Ring::new(Setup { iopoll: true, attach, ..options.setup })?;
        Ok(Self { ring, staged: VecDeque::new(), with_kernel: 0 })
    }

    pub(super) fn is_busy(&self) -> bool {
        self.with_kernel > 0 || !self.staged.is_empty()
    }
}

impl Engine {
    /// Whether the operation goes to the polled ring. One of a chain does not: the others cannot.
    pub(super) fn is_for_polled(&mut self, request: &Request, opcode: Opcode, flags: u32) -> bool {
        self.polled.is_some()
            && matches!(opcode, Opcode::Read | Opcode::Write)
            && flags & (LINK | HARDLINK | DRAIN | QUIET) == 0
            && self.open_chain == 0
            && !self.order.has_drains()
            && self.files.is_direct(FileHandle::from_number(request.file))
    }

    /// Submits what is staged for it and looks for what is complete.
    pub(super) fn submit_polled(&mut self) -> Result<(), ()> {
        let Self { polled: Some(polled), in_flight, ready, stats, .. } = self else {
            return Ok(());
        };
        let mut sq = polled.ring.submission();
        while let Some(&slot) = polled.staged.front() {
            if in_flight.staged(slot).doomed {
                ready.push(slot);
            } else if sq.room() > 0 {
                sq.push(in_flight.submit(slot, false));
                polled.with_kernel += 1;
                stats.submitted += 1;
            } else {
                break;
            }
            polled.staged.pop_front();
        }
        drop(sq);
        if polled.with_kernel == 0 {
            return Ok(());
        }
        let entered = if polled.ring.granted().sqpoll.is_some() {
            polled.ring.wake(true).map(u64::from)
        } else {
            polled.ring.enter(0, true).map(|_| 1)
        };
        match entered {
            Ok(enters) => {
                stats.enters += enters;
                Ok(())
            }
            // Some kernels say here that a device does not poll. What is on it completes all the same,
            // by interrupt, and is found when it is looked for again.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                stats.refusals += 1;
                Ok(())
            }
            Err(error) => self.enter_refused(&error),
        }
    }

    /// Adds what is complete on it to what is delivered next.
    #[cold]
    pub(super) fn collect_polled(&mut self) {
        let Self { polled: Some(polled), in_flight, arena, files, out, stats, .. } = self else {
            return;
        };
        let with_kernel = &mut polled.with_kernel;
        polled.ring.drain(BATCH_MAX - out.len(), |user_data, result, more| {
            *with_kernel -= 1;
            match in_flight.arrive(user_data, result, more, arena, files) {
                Arrived::Complete(slot, result) => out.push(Completion { slot, result }),
                // Nobody can post to this ring: it is not listed. Nor are cancels submitted to it.
                Arrived::Stale | Arrived::Message(_) | Arrived::Missed(_) => stats.stale += 1,
                Arrived::More | Arrived::Cancelled => {}
            }
        });
    }

    /// Names `fd` in the tables of both rings, or in none; -1 empties the place.
    pub(super) fn update_file(&mut self, place: u32, fd: RawFd) -> bool {
        let first = self.ring.update_file(place, fd).is_ok();
        let both = first
            && self.polled.as_ref().is_none_or(|polled| polled.ring.update_file(place, fd).is_ok());
        if first && !both {
            let _ = self.ring.update_file(place, -1);
        }
        both
    }

    /// Registers a slab with both rings, or with none; `None` empties the place.
    pub(super) fn update_buffer(&mut self, number: u32, slab: Option<Address>) -> io::Result<()> {
        self.ring.update_buffer(number, slab)?;
        let Some(polled) = &self.polled else { return Ok(()) };
        polled.ring.update_buffer(number, slab).inspect_err(|_| {
            let _ = self.ring.update_buffer(number, None);
        })
    }
}
