//! What the kernel holds, by slot and generation, until an operation's last CQE: its chunks, its
//! files, its path, `statx` buffer, iovecs, timespec or descriptor.
//!
//! The one place where an [`Sqe`] is made, so that nothing reaches the kernel that is not held here.

mod held;
mod links;
mod many;

use io_uring::opcode;
use io_uring::squeue::{self, Entry};

use crate::arena::Arena;
use crate::files::Files;
use crate::operation::{DRAIN, HARDLINK, LINK, Prepared, QUIET, Refusal};

use links::Behind;
use many::Table;

pub use held::{Held, Payload};
pub use links::{Cancelling, Target};
pub use many::{Budget, Lengths, Many};

/// Most slots: operations at once in one queue, waiting ones aside.
pub const SLOTS_MAX: u32 = 1 << 20;
/// A user_data that no operation has.
const NOBODY: u64 = u64::MAX;
/// Set in the user_data of a cancel, beside that of the operation it is to cancel.
const CANCEL: u64 = 1 << 30;
/// The user_data of completions that other engines post into our queue. It is this constant and never
/// made of what a caller gives, and names no slot and none of many: whatever is posted, no operation
/// completes by it.
const MESSAGE: u64 = 1 << 29;
const _: () = assert!(MESSAGE as u32 >= SLOTS_MAX && MESSAGE as u32 & many::MANY == 0);
const _: () = assert!(CANCEL as u32 >= SLOTS_MAX && CANCEL as u32 & many::USED == 0);
const _: () = assert!(CANCEL != MESSAGE);

/// -ERESTART_RESTARTBLOCK to -ERESTARTSYS, which no system call returns.
const RESTARTS: std::ops::RangeInclusive<i32> = -516..=-512;

/// The result of a system call. ERESTARTSYS and its kin are the kernel's own: one that a signal
/// interrupted would be started again. A worker that is taken out of an openat(2) lets them through.
#[inline]
fn as_system_call(result: i32) -> i32 {
    if RESTARTS.contains(&result) { -libc::EINTR } else { result }
}

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

/// The user_data of a cancel of the operation that has `target`.
#[must_use]
pub(crate) const fn cancel_user_data(target: u64) -> u64 {
    target | CANCEL
}

/// The user_data that a message has in the queue it is posted to.
#[must_use]
pub(crate) const fn message_user_data() -> u64 {
    MESSAGE
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
    /// Stands for many, of which some may be with the kernel.
    Many(u16),
}

struct Slot {
    generation: u32,
    state: State,
    /// Whether the chain that it is a member of goes on behind it.
    linked: bool,
    /// Whether it waits for all that was staged before it.
    drain: bool,
    /// Whether it does not keep the event loop alive.
    quiet: bool,
    /// The user_data of the link behind it, which starts when it is over, or [`NOBODY`].
    next: u64,
    behind: Behind,
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
    /// A cancel's own completion: what it was for is over, or will be soon, or has yet to start.
    Cancelled,
    /// The same, but the kernel did not find the operation with this user_data, or not at rest, and
    /// still has it.
    Missed(u64),
    /// Another engine posted this.
    Message(i32),
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
    /// It waits for all that was staged before it.
    pub drain: bool,
    /// Bytes that the submitting thread would copy for it inside enter.
    pub inline_bytes: u32,
}

/// The slots.
#[derive(Default)]
pub struct InFlight {
    slots: Vec<Slot>,
    /// Slots in use by operations that are waited for, and by quiet ones.
    busy: u32,
    quiet: u32,
    /// Operations that are waited for and that the kernel has; those of many aside.
    with_kernel: u32,
    many: Table,
    /// Links that a cancel has missed before they could start, and that have started since.
    started: Vec<u64>,
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
                drain: false,
                quiet: false,
                next: NOBODY,
                behind: Behind::Nothing,
                inline_bytes: 0,
                held: Held::default(),
                sqe: Sqe::default(),
            });
        }
        self.slots[index].state == State::Free
    }

    /// Keeps what the operation holds, and its SQE until [`Self::submit`]. The slot is free:
    /// [`Self::is_free`]. `prepare` writes the SQE, all but its user_data, where it is kept: each move of
    /// one waits for the stores that have made it (9 ns of a nop).
    ///
    /// # Errors
    /// Those of `prepare`; the slot is free then.
    ///
    /// # Panics
    /// When the slot is not free.
    #[inline]
    pub(crate) fn launch(
        &mut self,
        slot: u32,
        prepare: impl FnOnce(&mut Entry) -> Result<Prepared, Refusal>,
    ) -> Result<(), Refusal> {
        let place = &mut self.slots[slot as usize];
        assert!(place.state == State::Free, "a slot carries one operation");
        let Prepared { held, flags, inline_bytes } = prepare(&mut place.sqe.0)?;
        place.generation = place.generation.wrapping_add(1);
        place.state = State::Staged;
        place.linked = flags & (LINK | HARDLINK) != 0;
        place.drain = flags & DRAIN != 0;
        place.quiet = flags & QUIET != 0;
        (place.next, place.behind) = (NOBODY, Behind::Nothing);
        place.inline_bytes = inline_bytes;
        place.held = held;
        place.sqe.0.set_user_data(u64::from(place.generation) << 32 | u64::from(slot));
        *if place.quiet { &mut self.quiet } else { &mut self.busy } += 1;
        Ok(())
    }

    /// The SQE of a staged operation, on its way into the submission queue.
    #[inline]
    pub fn submit(&mut self, slot: u32, to_worker: bool) -> &Sqe {
        let place = &mut self.slots[slot as usize];
        debug_assert_eq!(place.state, State::Staged);
        place.state = State::Submitted;
        self.with_kernel += u32::from(!place.quiet);
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
            drain: place.drain,
            inline_bytes: place.inline_bytes,
        }
    }

    /// Whether the operation at `slot` is staged and not yet submitted; of many, none of them.
    #[must_use]
    pub fn is_staged(&self, slot: u32) -> bool {
        self.slots.get(slot as usize).is_some_and(|place| match place.state {
            State::Staged | State::Doomed => true,
            State::Many(number) => !self.many_has_begun(number),
            _ => false,
        })
    }

    /// A CQE came: lets go of what the operation held, unless more are to come.
    #[inline(always)]
    #[allow(clippy::inline_always)] // Called from two places; as a function of its own: 23 instructions.
    pub fn arrive(
        &mut self,
        user_data: u64,
        result: i32,
        more: bool,
        arena: &mut Arena,
        files: &mut Files,
    ) -> Arrived {
        let slot = user_data as u32;
        let Some(place) = self.slots.get(slot as usize) else {
            if user_data == MESSAGE {
                return Arrived::Message(result);
            }
            if user_data & CANCEL != 0 {
                return self.arrive_of_cancel(user_data & !CANCEL, result);
            }
            return self.arrive_of_many(user_data, as_system_call(result), arena, files);
        };
        let submitted = matches!(place.state, State::Submitted | State::CutOff);
        if !submitted || u64::from(place.generation) != user_data >> 32 {
            return Arrived::Stale;
        }
        if more {
            return Arrived::More;
        }
        let result = as_system_call(result);
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
        let quiet = place.quiet;
        if matches!(place.state, State::Submitted | State::CutOff) && !quiet {
            self.with_kernel -= 1;
        }
        place.state = State::Free;
        *if quiet { &mut self.quiet } else { &mut self.busy } -= 1;
        if let Some(chunk) = place.held.chunk.take() {
            arena.unhold(chunk);
        }
        if let Some(file) = place.held.file.take() {
            files.unhold(file);
        }
        if let Some(payload) = place.held.payload.take() {
            payload.unhold(arena, files);
            place.held.payload = payload.after(result).map(Box::new);
        }
        if place.next != NOBODY {
            let next = std::mem::replace(&mut place.next, NOBODY);
            self.start_link(next);
        }
    }

    /// Takes what the last operation at `slot` left.
    pub fn take_payload(&mut self, slot: u32) -> Option<Payload> {
        let place = self.slots.get_mut(slot as usize).filter(|place| place.state == State::Free)?;
        place.held.payload.take().map(|payload| *payload)
    }

    /// Operations staged or with the kernel, quiet ones aside. Many under one slot count as one.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.busy as usize
    }

    /// Whether nothing is staged or with the kernel but quiet operations.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.busy == 0
    }

    /// Quiet operations, staged or with the kernel.
    #[inline]
    #[must_use]
    pub const fn quiet(&self) -> usize {
        self.quiet as usize
    }

    /// Single operations that the kernel has, quiet ones aside.
    #[inline]
    #[must_use]
    pub const fn with_kernel(&self) -> usize {
        self.with_kernel as usize
    }

    /// Every operation that is with the kernel.
    pub fn submitted(&self) -> impl Iterator<Item = Target> {
        (0..)
            .zip(&self.slots)
            .filter(|(_, place)| matches!(place.state, State::Submitted | State::CutOff))
            .map(|(slot, place)| place.target(slot))
            .chain(self.many.targets())
    }

    /// The operation at `slot`, as a cancel names it. It is with the kernel.
    #[must_use]
    pub fn target(&self, slot: u32) -> Target {
        self.slots[slot as usize].target(slot)
    }

    /// Keeps everything for ever: the kernel still holds it.
    pub fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.slots));
        (self.busy, self.quiet, self.with_kernel) = (0, 0, 0);
    }
}

#[cfg(test)]
mod tests;
