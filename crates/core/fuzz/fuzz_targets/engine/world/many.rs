//! Many operations by one call: what is taken, what it holds, and what it leaves.

use node_uring_core::engine::ManyRequest;
use node_uring_core::in_flight::Lengths;
use node_uring_core::operation::TRANSFER_BYTES_MAX;
use node_uring_core::{ChunkId, FileHandle, Opcode};

use super::{Left, OPCODES, Out, SLOTS_MAX, World};
use crate::steps::Herd;

/// More than the kernel is given of them at a time, and few enough to go on.
const COUNT_MAX: usize = 1500;

impl World<'_> {
    pub(super) fn stage_many(&mut self, herd: &Herd) {
        let (count, lengths) = if herd.lengths.is_empty() {
            (herd.count as usize % COUNT_MAX, Lengths::All(herd.length.0 as u32))
        } else {
            let lengths: Vec<u32> = herd.lengths.iter().map(|&length| length.into()).collect();
            (lengths.len(), Lengths::each(&lengths))
        };
        // Most lists are as long as they should be.
        let more = if herd.positions_more % 16 == 1 { isize::from(herd.positions_more) } else { 0 };
        let request = ManyRequest {
            opcode: herd.opcode.0 | herd.flags.as_ref().map_or(0, |flags| flags.0),
            slot: herd.slot.0,
            file: self.file(herd.file).number(),
            chunk: self.chunk(herd.chunk).number(),
            offset: herd.offset.0,
            count,
            lengths,
            positions: vec![herd.position.0; count.saturating_add_signed(more)],
            fill: herd.fill,
        };
        let bytes = match &request.lengths {
            Lengths::All(length) => vec![*length; request.count],
            Lengths::Each { lengths, .. } => lengths.clone(),
        };
        let (slot, offset) = (request.slot, request.offset);
        let total = bytes.iter().map(|&it| u64::from(it)).sum();
        let expected = self.expect_many(&request, bytes, total);
        match (self.engine.stage_many(request), expected) {
            (Ok(()), Some(mut out)) => {
                if let Some(id) = out.chunk {
                    let place = self.memory.hold(id, offset, total);
                    out.writable = (out.opcode == Opcode::Read).then_some(place);
                }
                self.left.remove(&slot);
                self.accepted += 1;
                self.out.insert(slot, out);
            }
            // Unlike a single one it leaves a chain open.
            (Err(_), None) => {}
            (answer, expected) => {
                let expected = if expected.is_some() { "accepted" } else { "refused" };
                panic!("{herd:?} should be {expected}: {answer:?}");
            }
        }
    }

    fn expect_many(&self, request: &ManyRequest, bytes: Vec<u32>, total: u64) -> Option<Out> {
        let opcode = *OPCODES.get(request.opcode as usize)?;
        let free = request.slot < SLOTS_MAX && !self.out.contains_key(&request.slot);
        let kind = matches!(opcode, Opcode::Nop | Opcode::Read | Opcode::Write);
        if !free || !kind || request.count == 0 {
            return None;
        }
        let mut out = Out {
            opcode,
            file: None,
            chunk: None,
            writable: None,
            length: total,
            ends: true,
            quiet: false,
            many: Some(bytes),
        };
        if opcode == Opcode::Nop {
            // They have no memory: their lengths and positions mean nothing.
            out.many = Some(vec![0; request.count]);
            return Some(out);
        }
        let handle = FileHandle::from_number(request.file);
        let live = self.files.iter().find(|known| known.handle == handle)?;
        let chunk = ChunkId::from_number(request.chunk);
        let lengths = out.many.iter().flatten();
        if request.positions.len() != request.count
            || request.positions.iter().any(|&position| position >= 1 << 63)
            || lengths.clone().any(|&length| u64::from(length) > TRANSFER_BYTES_MAX)
            || !self.memory.allows(chunk, request.offset, total)
        {
            return None;
        }
        (out.ends, out.file, out.chunk) = (live.ends, Some(handle), Some(chunk));
        Some(out)
    }

    pub(super) fn take_counts(&mut self, slot: u32) {
        let free = !self.out.contains_key(&slot);
        let left = if free { self.left.remove(&slot) } else { None };
        match (self.engine.take_counts(slot), left) {
            (Some(counts), Some(Left::Counts(bytes))) => {
                assert_eq!(counts.len(), bytes.len());
                for (count, length) in counts.into_iter().zip(bytes) {
                    let right = if count < 0 { count >= -4095 } else { count as u32 <= length };
                    assert!(right, "{count} of {length} bytes");
                }
            }
            (None, Some(Left::Counts(_))) => panic!("{slot} left its counts"),
            (Some(_), _) => panic!("{slot} left no counts"),
            (None, _) => {}
        }
    }
}
