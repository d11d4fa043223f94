//! Posting to other engines of this process: `IORING_OP_MSG_RING` (5.18) with `IORING_MSG_DATA`.

use std::os::fd::{AsRawFd, RawFd};

use io_uring::{opcode, types};

use super::Engine;
use crate::in_flight::{Held, Payload, message_user_data};
use crate::operation::{self, Prepared, Refusal, Request};
use crate::{peers, ring};

/// No descriptor: the kernel says EBADF.
const NONE: RawFd = -1;

impl Engine {
    /// Whether messages of other engines are waited for, which keeps the event loop alive. They are
    /// delivered in either case.
    pub const fn set_listening(&mut self, listening: bool) {
        self.listening = listening;
    }

    /// A descriptor that is no ring of ours is answered by the kernel all the same, in its place in a
    /// chain: what is named to it then is none (EBADF), or our eventfd, which is no ring (EBADFD).
    pub(super) fn launch_post(&mut self, request: &Request, flags: u32) -> Result<(), Refusal> {
        let descriptor = RawFd::try_from(request.offset).map_err(|_| Refusal::Argument)?;
        let value = u32::try_from(request.length).map_err(|_| Refusal::Argument)?;
        let mut held = Held::default();
        let named = match peers::find(descriptor).map_err(|_| Refusal::Descriptors)? {
            Some(peer) => {
                let named = peer.as_raw_fd();
                held.keep(Payload::Posting { _ring: peer });
                named
            }
            None if ring::is_open(descriptor) => self.reaper.descriptor(),
            None => NONE,
        };
        let to = types::Fd(named);
        self.in_flight.launch(request.slot, |entry| {
            let value = value.cast_signed();
            *entry = opcode::MsgRingData::new(to, value, message_user_data(), None)
                .build()
                .flags(operation::sqe_flags(flags));
            Ok(Prepared { held, flags, inline_bytes: 0 })
        })
    }
}
