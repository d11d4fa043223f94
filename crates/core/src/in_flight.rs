//! What the kernel holds, by slot and generation, until an operation's last CQE: its chunk, its
//! file, its path, `statx` buffer, timespec or descriptor.
//!
//! The one place where an [`Sqe`] is made, so that nothing reaches the kernel that is not held here.

use std::ffi::CString;
use std::os::fd::{IntoRawFd, OwnedFd};

use io_uring::opcode;
use io_uring::squeue::{self, Entry};
use io_uring::types::Timespec;

use crate::arena::{Arena, ChunkId};
use crate::files::{FileHandle, Files};
use crate::operation::Prepared;
use crate::ring::own_descriptor;

/// Most slots: operations at once in one queue, waiting ones aside.
pub const SLOTS_MAX: u32 = 1 << 20;
/// The slot in the user_data of entries that are nobody's operation: cancels.
const CONTROL: u64 = u32::MAX as u64;

/// -ERESTART_RESTARTBLOCK to -ERESTARTSYS, which no system call returns.
const RESTARTS: std::ops::RangeInclusive<i32> = -516..=-512;

/// An SQE over resources that this module keeps, or over none.
pub struct Sqe(Entry);

impl Default for Sqe {
    fn default() -> Self {
        Self(opcode::Nop::new().build())
    }
}

impl Sqe {
    /// An entry that points at nothing (a cancel, a nop) and whose completion nobody waits for.
    #[must_use]
    pub(crate) const fn control(entry: Entry) -> Self {
        Self(entry)
    }

    #[inline]
    pub(crate) const fn entry(&self) -> &Entry {
        &self.0
    }
}

/// The user_data of entries whose completion nobody waits for.
#[must_use]
pub(crate) const fn control_user_data() -> u64 {
    CONTROL
}

/// What an operation needs beside a chunk and a file, and what it leaves to be taken.
pub enum Payload {
    /// The path of an open under way.
    Opening {
        /// Read by the kernel.
        path: CString,
        /// Whether O_DIRECT is among the flags.
        direct: bool,
    },
    /// What an open gave; closed unless it is taken.
    Opened {
        /// Ours since the completion.
        descriptor: OwnedFd,
        /// Whether it was opened O_DIRECT.
        direct: bool,
    },
    /// A `statx`, under way or done.
    Stat {
        /// Read by the kernel.
        path: CString,
        /// `struct statx`, written by the kernel. A Vec, because a Box may not be written behind its
        /// owner's back.
        buffer: Vec<u64>,
    },
    /// A timeout's duration.
    Timeout {
        /// Read by the kernel.
        _duration: Box<Timespec>,
    },
    /// The descriptor that a close is about to end.
    Closing(OwnedFd),
}

/// All that an operation holds. Small: it is moved once for each operation, and most have no payload.
#[derive(Default)]
pub struct Held {
    pub(crate) chunk: Option<ChunkId>,
    pub(crate) file: Option<FileHandle>,
    pub(crate) payload: Option<Box<Payload>>,
}

impl Held {
    pub(crate) fn keep(&mut self, payload: Payload) {
        self.payload = Some(Box::new(payload));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// Checked and held, not yet in the submission queue.
    Staged,
    /// As `Staged`, but to be cancelled instead of submitted.
    Doomed,
    /// In the submission queue or with the kernel.
    Submitted,
    /// As `Submitted`, cut off from the chain it was linked into: it may have run out of order.
    CutOff,
}

struct Slot {
    generation: u32,
    state: State,
    /// Whether the chain that it is a member of goes on behind it.
    linked: bool,
    /// Bytes that the submitting thread would copy for it.
    inline_bytes: u32,
    held: Held,
    /// Kept here from staging to submission; each operation overwrites all of it.
    sqe: Sqe,
}

impl Slot {
    fn target(&self, slot: u32) -> Target {
        let timeout = matches!(self.held.payload.as_deref(), Some(Payload::Timeout { .. }));
        Target { user_data: u64::from(self.generation) << 32 | u64::from(slot), timeout }
    }
}

/// What a completion means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// The slot's operation is complete with this result.
    Complete(u32, i32),
    /// More of the same operation will come.
    More,
    /// A cancel's own completion.
    Control,
    /// Nobody's: an unknown slot or an old generation.
    Stale,
}

/// A staged operation, as publishing sees it.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// It is to be cancelled instead of submitted.
    pub doomed: bool,
    /// The chain that it is a member of goes on behind it.
    pub linked: bool,
    /// Bytes that the submitting thread would copy for it inside enter.
    pub inline_bytes: u32,
}

/// What became of a cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelling {
    /// The slot has no operation.
    Nothing,
    /// It had not been submitted; it will complete with ECANCELED without a trip to the kernel.
    Doomed,
    /// The kernel has to be asked.
    Ask(Target),
}

/// An operation that the kernel has, as a cancel names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its user_data.
    pub user_data: u64,
    /// Whether it is a timeout.
    pub timeout: bool,
}

/// The slots.
#[derive(Default)]
pub struct InFlight {
    slots: Vec<Slot>,
    busy: u32,
}

impl InFlight {
    /// Whether an operation can be launched at `slot`. Makes the table longer where needed.
    ///
    /// # Errors
    /// `false` for busy; see [`SLOTS_MAX`] for the table's limit, which the caller checks.
    #[inline]
    pub fn is_free(&mut self, slot: u32) -> bool {
        let index = slot as usize;
        if index >= self.slots.len() {
            let length = (index + 1).next_power_of_two().max(256);
            self.slots.resize_with(length, || Slot {
                generation: 0,
                state: State::Free,
                linked: false,
                inline_bytes: 0,
                held: Held::default(),
                sqe: Sqe::default(),
            });
        }
        self.slots[index].state == State::Free
    }

    /// Keeps what the operation holds, and its SQE until [`Self::submit`]. The slot is free:
    /// [`Self::is_free`].
    ///
    /// # Panics
    /// When the slot is not free.
    #[inline(always)]
    #[allow(clippy::inline_always)] // Or the SQE is moved through memory twice: 15 ns of a nop.
    pub fn launch(&mut self, slot: u32, prepared: Prepared) {
        let Prepared { entry, held, linked, inline_bytes } = prepared;
        let place = &mut self.slots[slot as usize];
        assert!(place.state == State::Free, "a slot carries one operation");
        place.generation = place.generation.wrapping_add(1);
        place.state = State::Staged;
        place.linked = linked;
        place.inline_bytes = inline_bytes;
        place.held = held;
        place.sqe.0 = entry;
        place.sqe.0.set_user_data(u64::from(place.generation) << 32 | u64::from(slot));
        self.busy += 1;
    }

    /// The SQE of a staged operation, on its way into the submission queue.
    #[inline]
    pub fn submit(&mut self, slot: u32, to_worker: bool) -> &Sqe {
        let place = &mut self.slots[slot as usize];
        debug_assert_eq!(place.state, State::Staged);
        place.state = State::Submitted;
        if to_worker {
            let sqe = std::mem::take(&mut place.sqe);
            place.sqe = Sqe(sqe.0.flags(squeue::Flags::ASYNC));
        }
        &place.sqe
    }

    /// What publishing has to know of a staged operation.
    #[inline]
    #[must_use]
    pub fn staged(&self, slot: u32) -> Waiting {
        let place = &self.slots[slot as usize];
        Waiting {
            doomed: place.state == State::Doomed,
            linked: place.linked,
            inline_bytes: place.inline_bytes,
        }
    }

    /// The chain ends with the staged operation at `slot`: what was to follow will not.
    pub fn end_chain(&mut self, slot: u32) {
        self.slots[slot as usize].linked = false;
    }

    /// The kernel took the chain in two submissions, and the part from `slot` on started by itself.
    /// Its result is reported as ECANCELED, whatever it was: nobody may rely on its order.
    pub fn cut_off(&mut self, slot: u32) {
        self.slots[slot as usize].state = State::CutOff;
    }

    /// Finds out how to cancel the operation at `slot`.
    pub fn cancel(&mut self, slot: u32) -> Cancelling {
        let Some(place) = self.slots.get_mut(slot as usize) else { return Cancelling::Nothing };
        match place.state {
            State::Free => Cancelling::Nothing,
            State::Staged | State::Doomed => {
                place.state = State::Doomed;
                Cancelling::Doomed
            }
            State::Submitted | State::CutOff => Cancelling::Ask(place.target(slot)),
        }
    }

    /// A CQE came: lets go of what the operation held, unless more are to come.
    #[inline]
    pub fn arrive(
        &mut self,
        user_data: u64,
        result: i32,
        more: bool,
        arena: &mut Arena,
        files: &mut Files,
    ) -> Arrived {
        let slot = user_data as u32;
        if user_data == CONTROL {
            return Arrived::Control;
        }
        let Some(place) = self.slots.get(slot as usize) else { return Arrived::Stale };
        let submitted = matches!(place.state, State::Submitted | State::CutOff);
        if !submitted || u64::from(place.generation) != user_data >> 32 {
            return Arrived::Stale;
        }
        if more {
            return Arrived::More;
        }
        // ERESTARTSYS and its kin are the kernel's own: a system call that a signal interrupted would
        // be started again. An openat(2) cancelled in a worker lets them through.
        let result = if RESTARTS.contains(&result) { -libc::EINTR } else { result };
        let cut_off = place.state == State::CutOff && result >= 0;
        // The payload is told what happened: an open gave a descriptor, a close took one.
        self.end(slot, result, arena, files);
        if cut_off {
            self.slots[slot as usize].held.payload = None;
            return Arrived::Complete(slot, -libc::ECANCELED);
        }
        Arrived::Complete(slot, result)
    }

    /// The operation at `slot` is over with `result`: lets go of its chunk and file, and turns its
    /// payload into what can be taken.
    #[inline]
    pub fn end(&mut self, slot: u32, result: i32, arena: &mut Arena, files: &mut Files) {
        let place = &mut self.slots[slot as usize];
        place.state = State::Free;
        self.busy -= 1;
        if let Some(chunk) = place.held.chunk.take() {
            arena.unhold(chunk);
        }
        if let Some(file) = place.held.file.take() {
            files.unhold(file);
        }
        if let Some(payload) = place.held.payload.take() {
            place.held.payload = payload.after(result).map(Box::new);
        }
    }

    /// Takes what the last operation at `slot` left.
    pub fn take_payload(&mut self, slot: u32) -> Option<Payload> {
        let place = self.slots.get_mut(slot as usize).filter(|place| place.state == State::Free)?;
        place.held.payload.take().map(|payload| *payload)
    }

    /// Operations staged or with the kernel.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.busy as usize
    }

    /// Whether nothing is staged or with the kernel.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.busy == 0
    }

    /// Every operation that is with the kernel.
    pub fn submitted(&self) -> impl Iterator<Item = Target> {
        (0..)
            .zip(&self.slots)
            .filter(|(_, place)| matches!(place.state, State::Submitted | State::CutOff))
            .map(|(slot, place)| place.target(slot))
    }

    /// Keeps everything for ever: the kernel still holds it.
    pub fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.slots));
        self.busy = 0;
    }
}

impl Payload {
    /// What is left to be taken once the operation is over with `result`.
    fn after(self, result: i32) -> Option<Self> {
        match self {
            Self::Opening { direct, .. } if result >= 0 => {
                Some(Self::Opened { descriptor: own_descriptor(result), direct })
            }
            Self::Closing(descriptor) => {
                // Linux frees the number whatever close(2) returns, so it must not be closed again:
                // it may be somebody else's by now. Only a close that never ran leaves it to us.
                if result != -libc::ECANCELED {
                    let _ = descriptor.into_raw_fd();
                }
                None
            }
            Self::Stat { .. } if result == 0 => Some(self),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::ArenaOptions;

    fn launch_holding(in_flight: &mut InFlight, slot: u32, held: Held) -> u64 {
        let entry = opcode::Nop::new().build();
        in_flight.launch(slot, Prepared { entry, held, linked: false, inline_bytes: 0 });
        in_flight.submit(slot, false).entry().get_user_data()
    }

    fn launch(in_flight: &mut InFlight, slot: u32) -> u64 {
        assert!(in_flight.is_free(slot));
        launch_holding(in_flight, slot, Held::default())
    }

    #[test]
    fn a_completion_of_an_old_generation_or_an_unknown_slot_is_stale() {
        let mut arena = Arena::new(ArenaOptions::default());
        let mut files = Files::default();
        let mut in_flight = InFlight::default();
        let first = launch(&mut in_flight, 3);
        let arrive = |f: &mut InFlight, data, arena: &mut Arena, files: &mut Files| {
            f.arrive(data, 1, false, arena, files)
        };
        assert_eq!(arrive(&mut in_flight, first, &mut arena, &mut files), Arrived::Complete(3, 1));
        assert_eq!(arrive(&mut in_flight, first, &mut arena, &mut files), Arrived::Stale);
        let second = launch(&mut in_flight, 3);
        assert_ne!(first, second);
        assert_eq!(arrive(&mut in_flight, first, &mut arena, &mut files), Arrived::Stale);
        assert_eq!(arrive(&mut in_flight, 9999, &mut arena, &mut files), Arrived::Stale);
        assert_eq!(in_flight.len(), 1, "the second is still out");
        assert_eq!(in_flight.arrive(CONTROL, 0, false, &mut arena, &mut files), Arrived::Control);
    }

    #[test]
    fn an_errno_of_the_kernels_own_becomes_eintr() {
        let mut arena = Arena::new(ArenaOptions::default());
        let mut files = Files::default();
        let mut in_flight = InFlight::default();
        for (theirs, ours) in
            [(-511, -511), (-512, -libc::EINTR), (-516, -libc::EINTR), (-517, -517), (512, 512)]
        {
            let data = launch(&mut in_flight, 0);
            let arrived = in_flight.arrive(data, theirs, false, &mut arena, &mut files);
            assert_eq!(arrived, Arrived::Complete(0, ours));
        }
    }

    #[test]
    fn everything_is_held_until_the_last_cqe() {
        let mut arena = Arena::new(ArenaOptions::default());
        let mut files = Files::default();
        let mut in_flight = InFlight::default();
        let chunk = arena.take(crate::arena::Pool::Bounce, 10).expect("a chunk");
        arena.hold(chunk, 0, 10).expect("a hold");
        assert!(in_flight.is_free(0));
        let held = Held { chunk: Some(chunk), ..Held::default() };
        let data = launch_holding(&mut in_flight, 0, held);
        assert_eq!(in_flight.arrive(data, 1, true, &mut arena, &mut files), Arrived::More);
        assert_eq!(arena.in_flight(chunk), Ok(true));
        in_flight.arrive(data, 1, false, &mut arena, &mut files);
        assert_eq!(arena.in_flight(chunk), Ok(false));
    }

    #[test]
    fn a_close_that_never_ran_closes_and_one_that_ran_does_not_close_again() {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        // Not by the number: tests beside this one may have it by then.
        let is_closed = |result: i32| {
            let (reader, writer) = std::io::pipe().expect("a pipe");
            drop(Payload::Closing(OwnedFd::from(writer)).after(result));
            let mut fds = [PollFd::new(&reader, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("poll");
            fds[0].revents().contains(PollFlags::HUP)
        };
        assert!(is_closed(-libc::ECANCELED));
        assert!(!is_closed(0), "the kernel's close ended it; here nobody did");
        assert!(!is_closed(-libc::EIO), "the number is free whatever close says");
    }
}
