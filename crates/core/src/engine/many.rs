//! Many operations of a kind by one call: thousands of reads or writes between one chunk and one file,
//! or nops. They share a slot and complete together; what is single goes before them.

use std::time::Instant;

use super::Engine;
use super::inline::INLINE_ENTER_BYTES;
use super::turn::TURN_MAX;
use crate::arena::ChunkId;
use crate::files::{FileHandle, Target};
use crate::in_flight::{Budget, Held, Lengths, Many};
use crate::operation::{self, Opcode, Refusal, Request, TRANSFER_BYTES_MAX};

/// Operations of many that the kernel has at once, of all manys of an engine: more than any device
/// has queues for, and few enough that a single operation beside them is not lost among them.
const WITH_KERNEL_MAX: usize = 1024;
/// Most of them in one call.
pub const MANY_MAX: usize = 1 << 20;

/// Many operations as they are staged.
pub struct ManyRequest {
    /// [`Opcode::Nop`], [`Opcode::Read`] or [`Opcode::Write`], without flags.
    pub opcode: u32,
    /// Where the completion of all goes: how many they were, or ECANCELED.
    pub slot: u32,
    /// [`FileHandle`].
    pub file: u64,
    /// [`ChunkId`].
    pub chunk: u64,
    /// Where the memory of the first begins in the chunk, in bytes; the others follow.
    pub offset: u64,
    /// How many.
    pub count: usize,
    /// Bytes of each.
    pub lengths: Lengths,
    /// Where each goes in the file.
    pub positions: Vec<u64>,
    /// Whether one that was short goes on with its rest.
    pub fill: bool,
}

impl Engine {
    /// Checks them all and takes hold of what they touch; the next submissions carry them.
    /// [`Engine::take_counts`] has what became of each, when the slot is complete.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing is held and the slot is as it was.
    pub fn stage_many(&mut self, request: ManyRequest) -> Result<(), Refusal> {
        self.check_life()?;
        self.check_slot(request.slot)?;
        let (opcode, flags) = operation::decode(request.opcode)?;
        if flags != 0 || !matches!(opcode, Opcode::Nop | Opcode::Read | Opcode::Write) {
            return Err(Refusal::UnknownOpcode);
        }
        if request.count == 0 || request.count > MANY_MAX || !self.in_flight.has_room_for_many() {
            return Err(Refusal::Argument);
        }
        let mut held = Held::default();
        let sequence = self.order.next();
        let mut many = if opcode == Opcode::Nop {
            Many::new(opcode, Target::Descriptor(-1), request.count, sequence)
        } else {
            self.many_transfers(&request, opcode, sequence, &mut held)?
        };
        many.positions = request.positions;
        many.lengths = request.lengths;
        many.fill = request.fill;
        self.in_flight.launch_many(request.slot, held, many);
        self.order.set_others(true);
        Ok(())
    }

    fn many_transfers(
        &mut self,
        request: &ManyRequest,
        opcode: Opcode,
        sequence: u64,
        held: &mut Held,
    ) -> Result<Many, Refusal> {
        if request.positions.len() != request.count {
            return Err(Refusal::Argument);
        }
        for &position in &request.positions {
            operation::file_offset(position)?;
        }
        let (longest, total) = match &request.lengths {
            Lengths::All(length) => (u64::from(*length), u64::from(*length) * request.count as u64),
            Lengths::Each { lengths, .. } if lengths.len() != request.count => {
                return Err(Refusal::Argument);
            }
            Lengths::Each { lengths, .. } => (
                u64::from(lengths.iter().copied().max().unwrap_or(0)),
                lengths.iter().copied().map(u64::from).sum(),
            ),
        };
        if longest > TRANSFER_BYTES_MAX {
            return Err(Refusal::Argument);
        }
        self.register_slab_of(&Request {
            file: request.file,
            chunk: request.chunk,
            ..Request::default()
        });
        let file = FileHandle::from_number(request.file);
        let (target, kind) = self.files.hold(file)?;
        let direct = kind.is_direct();
        let chunk = ChunkId::from_number(request.chunk);
        let memory = match self.arena.hold(chunk, request.offset as usize, total as usize) {
            Ok(memory) => memory,
            Err(bad) => {
                self.files.unhold(file);
                return Err(bad.into());
            }
        };
        (held.chunk, held.file) = (Some(chunk), Some(file));
        let mut many = Many::new(opcode, target, request.count, sequence);
        many.memory = Some(memory);
        many.kind = kind;
        many.fixed = operation::fixed_slab(&mut self.arena, chunk, direct);
        many.inline = opcode == Opcode::Read && !direct;
        Ok(many)
    }

    /// As many as the queue, the kernel and others beside them have room for.
    pub(super) fn publish_many(&mut self) {
        let room = WITH_KERNEL_MAX
            .min(self.ring.granted().cq_entries as usize)
            .saturating_sub(self.in_flight.many_with_kernel());
        let mut budget = Budget { entries: room, inline_bytes: INLINE_ENTER_BYTES };
        let before = self.order.before();
        let Self { ring, in_flight, inline, inline_bytes_turn, stats, .. } = self;
        let with_kernel = in_flight.many_with_kernel();
        let mut sq = ring.submission();
        in_flight.submit_many(&mut sq, before, &mut budget, |length, left| {
            let punted = inline.hands_over(length, false, inline_bytes_turn, left);
            stats.punted += u64::from(punted);
            punted
        });
        drop(sq);
        let went = in_flight.many_with_kernel() > with_kernel;
        let waits = room > 0 && in_flight.many_waiting(before);
        self.passed_over = if waits && !went { self.passed_over + 1 } else { 0 };
        let more = self.in_flight.has_many() || !self.urgent.is_empty();
        self.order.set_others(more);
    }

    /// Whether some of many can be submitted before others of them complete.
    pub(super) fn wants_many(&self) -> bool {
        let most = WITH_KERNEL_MAX.min(self.ring.granted().cq_entries as usize);
        self.order.has_others()
            && self.in_flight.many_with_kernel() < most
            && self.in_flight.many_waiting(self.order.before())
    }

    /// Whether a turn that has nothing to deliver submits more of them: as long as it has time.
    pub(super) fn goes_on_with_many(&mut self) -> bool {
        if self.refused > 0 || !self.wants_many() {
            return false;
        }
        let started = self.many_started.get_or_insert_with(Instant::now);
        started.elapsed() < TURN_MAX
    }
}
