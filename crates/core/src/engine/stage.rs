//! Taking operations in.

use std::os::fd::AsRawFd;

use io_uring::{opcode, types};

use super::{Engine, Life};
use crate::files::FileHandle;
use crate::in_flight::{Held, Payload, SLOTS_MAX};
use crate::operation::{self, DRAIN, HARDLINK, LINK, Opcode, Prepared, QUIET, Refusal, Request};

impl Engine {
    /// Checks an operation and takes hold of what it touches; the next submission carries it.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing is held and the slot is as it was. A chain that was to go on with
    /// it is cancelled whole: its operations complete with ECANCELED, and the next begins anew.
    #[inline]
    pub fn stage(&mut self, request: &Request) -> Result<(), Refusal> {
        let staged = self.take_in(request);
        if staged.is_err() && self.open_chain > 0 {
            self.cancel_open_chain();
        }
        staged
    }

    #[cold]
    fn cancel_open_chain(&mut self) {
        let members = self.staged.len() - self.open_chain..;
        for &slot in self.staged.range(members) {
            self.in_flight.cancel(slot);
            self.in_flight.end_chain(slot);
        }
        self.open_chain = 0;
    }

    #[inline]
    fn take_in(&mut self, request: &Request) -> Result<(), Refusal> {
        self.check_life()?;
        self.check_slot(request.slot)?;
        let (opcode, flags) = operation::decode(request.opcode)?;
        if flags & DRAIN != 0 && self.open_chain > 0 {
            // A chain drains as a whole, by its first member, or not at all.
            return Err(Refusal::Argument);
        }
        if self.open_chain + 1 > self.chain_max {
            return Err(Refusal::ChainTooLong);
        }
        let for_polled = !self.plain && self.check_otherwise(request, opcode, flags)?;
        if opcode == Opcode::Close {
            self.launch_close(request, flags)?;
        } else if opcode == Opcode::MsgRing {
            self.launch_post(request, flags)?;
        } else {
            if request.chunk != 0 && matches!(opcode, Opcode::Read | Opcode::Write) {
                self.register_slab_of(request);
            }
            let Self { in_flight, arena, files, .. } = self;
            in_flight.launch(request.slot, |entry| {
                operation::prepare(request, opcode, flags, entry, arena, files)
            })?;
        }
        if for_polled && let Some(polled) = &mut self.polled {
            polled.staged.push_back(request.slot);
            return Ok(());
        }
        // A close waits for nothing but what uses its file: no drain keeps it.
        let overtakes = opcode == Opcode::Close && self.open_chain == 0 && self.order.has_drains();
        if flags & QUIET != 0 || overtakes {
            self.urgent.push_back(request.slot);
            self.order.set_others(true);
            return Ok(());
        }
        self.open_chain = if flags & (LINK | HARDLINK) != 0 { self.open_chain + 1 } else { 0 };
        if flags & DRAIN != 0 {
            self.order.stage_drain();
        }
        self.staged.push_back(request.slot);
        Ok(())
    }

    /// Whether the process may still do it, and whether it goes to the ring that polls.
    #[cold]
    fn check_otherwise(
        &mut self,
        request: &Request,
        opcode: Opcode,
        flags: u32,
    ) -> Result<bool, Refusal> {
        if let Some(who) = &self.polling_as
            && !request.bytes.is_empty()
            && who.have_changed()
        {
            return Err(Refusal::Credentials);
        }
        Ok(self.is_for_polled(request, opcode, flags))
    }

    #[inline]
    pub(super) const fn check_life(&self) -> Result<(), Refusal> {
        match self.life {
            Life::Running => Ok(()),
            Life::Failed { .. } => Err(Refusal::Failed),
            Life::Closed => Err(Refusal::Closed),
        }
    }

    #[inline]
    pub(super) fn check_slot(&mut self, slot: u32) -> Result<(), Refusal> {
        if slot >= SLOTS_MAX {
            return Err(Refusal::SlotRange);
        }
        if self.in_flight.is_free(slot) { Ok(()) } else { Err(Refusal::SlotBusy) }
    }

    /// A close takes the file out of the table first, so that nothing staged later can reach it.
    fn launch_close(&mut self, request: &Request, flags: u32) -> Result<(), Refusal> {
        if flags & (LINK | HARDLINK | QUIET) != 0 {
            return Err(Refusal::Argument);
        }
        let (descriptor, place) = self.files.remove(FileHandle::from_number(request.file))?;
        if let Some(place) = place {
            // The registered table has a reference of its own, which would keep the file open.
            self.update_file(place, -1);
        }
        self.in_flight.launch(request.slot, |entry| {
            *entry = opcode::Close::new(types::Fd(descriptor.as_raw_fd()))
                .build()
                .flags(operation::sqe_flags(flags));
            let mut held = Held::default();
            held.keep(Payload::Closing(descriptor));
            Ok(Prepared { held, flags, inline_bytes: 0 })
        })
    }
}
