//! A single operation: what it becomes, or whether it has to be refused.

use node_uring_core::operation::{
    ASYNC, DRAIN, HARDLINK, LINK, QUIET, TIMEOUT_ABSOLUTE, TIMEOUT_SUCCEEDS, TRANSFER_BYTES_MAX,
};
use node_uring_core::{ChunkId, FileHandle, Opcode, Request};

use super::{OPCODES, Out, SLOTS_MAX, World};
use crate::sandbox::Sandbox;
use crate::steps::{Pick, Staging};

impl World<'_> {
    pub(super) fn chunk(&self, pick: Pick) -> ChunkId {
        let choose = |from: &[ChunkId], index: u8| match from {
            [] => ChunkId::from_number(0),
            _ => from[index as usize % from.len()],
        };
        match pick {
            Pick::Live(index) => choose(&self.memory.owned, index),
            Pick::Gone(index) => choose(&self.memory.gone, index),
            Pick::Number(number) => ChunkId::from_number(number),
        }
    }

    pub(super) fn file(&self, pick: Pick) -> FileHandle {
        match pick {
            Pick::Live(index) if !self.files.is_empty() => {
                self.files[index as usize % self.files.len()].handle
            }
            Pick::Gone(index) if !self.gone.is_empty() => {
                self.gone[index as usize % self.gone.len()]
            }
            Pick::Live(_) | Pick::Gone(_) => FileHandle::from_number(0),
            Pick::Number(number) => FileHandle::from_number(number),
        }
    }

    pub(super) fn stage(&mut self, staging: &Staging) {
        let path = Sandbox::tame(&staging.path.0);
        let request = Request {
            opcode: staging.opcode.0 | staging.flags.0,
            slot: staging.slot.0,
            file: self.file(staging.file).number(),
            chunk: self.chunk(staging.chunk).number(),
            offset: staging.offset.0,
            length: staging.length.0,
            position: staging.position.0,
            bytes: &path,
        };
        self.stage_request(&request);
    }

    pub(super) fn stage_request(&mut self, request: &Request) {
        let expected = self.expect(request);
        match (self.engine.stage(request), expected) {
            (Ok(()), Some(out)) => self.note_staged(request, out),
            (Err(_), None) => self.open_chain = 0,
            (answer, expected) => {
                let expected = if expected.is_some() { "accepted" } else { "refused" };
                panic!("{request:?} should be {expected}: {answer:?}");
            }
        }
    }

    /// What a request becomes, or `None` when it has to be refused.
    fn expect(&self, request: &Request) -> Option<Out> {
        let opcode = *OPCODES.get((request.opcode & 0xff) as usize)?;
        let flags = request.opcode & !0xff;
        let quiet = flags & QUIET != 0;
        let known = flags & !(LINK | HARDLINK | DRAIN | ASYNC | QUIET) == 0
            && !(quiet && flags & (LINK | HARDLINK | DRAIN) != 0);
        let free = request.slot < SLOTS_MAX && !self.out.contains_key(&request.slot);
        let drains_late = flags & DRAIN != 0 && self.open_chain > 0;
        if !known || !free || drains_late || self.open_chain + 1 > self.entries {
            return None;
        }
        let fits = |number: u64, bits: u32| number < 1 << bits;
        let handle = FileHandle::from_number(request.file);
        let live = self.files.iter().find(|known| known.handle == handle);
        let is_path = |bytes: &[u8]| !bytes.is_empty() && bytes.len() < 4096 && !bytes.contains(&0);
        let path = is_path(request.bytes);
        let timing = request.offset & !(TIMEOUT_ABSOLUTE | TIMEOUT_SUCCEEDS) == 0;
        let chunk = ChunkId::from_number(request.chunk);
        let mut out = Out {
            opcode,
            file: Some(handle),
            chunk: None,
            writable: None,
            length: request.length,
            ends: true,
            quiet,
            many: None,
        };
        let holds = match opcode {
            Opcode::Nop => false,
            Opcode::Timeout | Opcode::LinkTimeout => {
                out.ends = false;
                let counts = opcode == Opcode::LinkTimeout || fits(request.length, 32);
                if !fits(request.position, 63) || !timing || !counts {
                    return None;
                }
                false
            }
            Opcode::Unlinkat => {
                if !path || !fits(request.offset, 32) {
                    return None;
                }
                false
            }
            Opcode::Renameat => {
                let at = usize::try_from(request.length).ok()?;
                let (old, new) = request.bytes.split_at_checked(at)?;
                if !is_path(old) || !is_path(new) || !fits(request.offset, 32) {
                    return None;
                }
                false
            }
            Opcode::Openat => {
                // A FIFO's open waits for its other end.
                out.ends = false;
                if !path || !fits(request.offset, 32) || !fits(request.length, 32) {
                    return None;
                }
                // Beginning at a directory that is open.
                request.file != 0
            }
            Opcode::Read | Opcode::Write => {
                out.chunk = Some(chunk);
                out.ends = live?.ends;
                if request.length > TRANSFER_BYTES_MAX
                    || !fits(request.position, 63)
                    || !self.memory.allows(chunk, request.offset, request.length)
                {
                    return None;
                }
                true
            }
            Opcode::Fsync => {
                if request.length > 1 {
                    return None;
                }
                true
            }
            Opcode::Ftruncate => {
                if !fits(request.position, 63) {
                    return None;
                }
                true
            }
            Opcode::Statx => {
                if !fits(request.length, 32)
                    || !fits(request.offset, 32)
                    || (request.file == 0 && !path)
                {
                    return None;
                }
                request.file != 0
            }
            Opcode::Close => {
                let busy = self.out.values().any(|out| out.file == Some(handle));
                if flags & (LINK | HARDLINK | QUIET) != 0 || live.is_none() || busy {
                    return None;
                }
                false
            }
            other => unreachable!("{other:?} is not among those that are modelled"),
        };
        if !holds {
            out.file = None;
        } else if live.is_none() {
            return None;
        }
        Some(out)
    }

    fn note_staged(&mut self, request: &Request, mut out: Out) {
        if let Some(id) = out.chunk {
            let place = self.memory.hold(id, request.offset, request.length);
            out.writable = (out.opcode == Opcode::Read).then_some(place);
        }
        if out.opcode == Opcode::Close {
            let index = self.files.iter().position(|it| it.handle.number() == request.file);
            self.gone.push(self.files.remove(index.expect("it was live")).handle);
        }
        let linked = request.opcode & (LINK | HARDLINK) != 0;
        if !out.quiet {
            self.open_chain = if linked { self.open_chain + 1 } else { 0 };
        }
        self.left.remove(&request.slot);
        self.accepted += 1;
        self.out.insert(request.slot, out);
    }

    pub(super) fn cancel(&mut self, slot: u32) {
        assert_eq!(self.engine.cancel(slot), self.out.contains_key(&slot), "cancel {slot}");
    }
}
