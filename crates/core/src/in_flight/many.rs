//! Many operations of one kind under one slot: reads or writes between one chunk and one file, or
//! nops. What they hold is held by the slot, once, until the last of them is complete; each has its
//! index in its user_data, and its result in a table that becomes the slot's payload.
//!
//! The kernel gets a window of them at a time, however many there are: that is `table.rs`. Here are
//! those of one slot: which is the next, and what became of each.

mod table;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use io_uring::opcode;
use io_uring::squeue::{Entry, Flags};

use super::Target;
use crate::arena::Address;
use crate::files::{self, FileKind};
use crate::operation::{Opcode, transfer_entry};
use crate::ring::readdress;

pub use table::Budget;
pub(super) use table::Table;

/// In the lower half of the user_data of one of many, beside its number and the number's generation.
pub(super) const MANY: u32 = 1 << 31;
const NUMBER_BITS: u32 = 16;
const GENERATION_MASK: u32 = (1 << 14) - 1;
/// The bits of the lower half that are ever set.
pub(super) const USED: u32 = MANY | GENERATION_MASK << NUMBER_BITS | ((1 << NUMBER_BITS) - 1);
/// The result of one that is not complete: no errno and no count of bytes.
const PENDING: i32 = i32::MIN;

/// What the result of one means for all.
enum Taken {
    /// Nobody waits for it.
    Stale,
    /// It is complete.
    Settled,
    /// It goes on with its rest.
    Again,
    /// So does it, and there was nothing else to submit any more.
    MoreAgain,
}

/// How long each of many is.
pub enum Lengths {
    /// All are.
    All(u32),
    /// Each by itself, and where its memory begins.
    Each {
        /// Bytes.
        lengths: Vec<u32>,
        /// Bytes into the memory of all.
        starts: Vec<usize>,
    },
}

impl Lengths {
    /// Each with its own length, one after the other in memory.
    #[must_use]
    pub fn each(lengths: &[u32]) -> Self {
        let starts = lengths.iter().scan(0usize, |next, &length| {
            let start = *next;
            *next += length as usize;
            Some(start)
        });
        Self::Each { starts: starts.collect(), lengths: lengths.to_vec() }
    }

    #[inline]
    fn span(&self, index: usize) -> (usize, u32) {
        match self {
            Self::All(length) => (index * *length as usize, *length),
            Self::Each { lengths, starts } => (starts[index], lengths[index]),
        }
    }
}

/// Many of a kind, on their way.
pub struct Many {
    /// [`Opcode::Nop`], [`Opcode::Read`] or [`Opcode::Write`].
    pub(crate) opcode: Opcode,
    /// The file, unless they are nops; held by the slot.
    pub(crate) target: files::Target,
    /// The slab's place in the buffer table, when it is used.
    pub(crate) fixed: Option<u16>,
    /// The memory of all, one after the other; held by the slot.
    pub(crate) memory: Option<Address>,
    /// Where each goes in the file.
    pub(crate) positions: Vec<u64>,
    /// What kind of file it is.
    pub(crate) kind: FileKind,
    pub(crate) lengths: Lengths,
    /// Whether one that was short goes on with its rest.
    pub(crate) fill: bool,
    /// Whether the submitting thread copies for them.
    pub(crate) inline: bool,
    /// When it was staged, in the engine's count.
    pub(crate) sequence: u64,
    /// What came of each: [`PENDING`] at first.
    pub(crate) results: Vec<i32>,
    slot: u32,
    generation: u32,
    /// The first that was never submitted.
    next: u32,
    /// Those to submit again, for their rest.
    again: Vec<u32>,
    /// Bytes of those that were short, so far.
    partial: HashMap<u32, u32>,
    settled: u32,
    cancelled: bool,
}

impl Many {
    /// `count` of them, none of which is submitted yet.
    #[must_use]
    pub(crate) fn new(opcode: Opcode, target: files::Target, count: usize, sequence: u64) -> Self {
        Self {
            opcode,
            target,
            fixed: None,
            memory: None,
            positions: Vec::new(),
            kind: FileKind::Plain,
            lengths: Lengths::All(0),
            fill: false,
            inline: false,
            sequence,
            results: vec![PENDING; count],
            slot: 0,
            generation: 0,
            next: 0,
            again: Vec::new(),
            partial: HashMap::new(),
            settled: 0,
            cancelled: false,
        }
    }

    fn has_more(&self) -> bool {
        (self.next as usize) < self.results.len() || !self.again.is_empty()
    }

    fn user_data(&self, number: u16, index: u32) -> u64 {
        let low = MANY | self.generation << NUMBER_BITS | u32::from(number);
        u64::from(index) << 32 | u64::from(low)
    }

    /// An entry of the kind, to be readdressed for each.
    fn template(&self) -> Entry {
        match self.memory {
            Some(memory) => {
                let (target, fixed) = (self.target, self.fixed);
                self.kind.apart(transfer_entry(self.opcode, target, fixed, memory, 0, 0))
            }
            None => opcode::Nop::new().build(),
        }
    }

    /// The next one to submit.
    #[inline]
    fn next_index(&mut self) -> Option<u32> {
        if !self.again.is_empty() {
            return self.again.pop();
        }
        if (self.next as usize) < self.results.len() {
            self.next += 1;
            return Some(self.next - 1);
        }
        None
    }

    /// The entry of one of them. `to_worker` decides, by its length, who copies for it.
    #[inline(always)]
    #[allow(clippy::inline_always)] // Or the entry is made in memory, and each move of it waits.
    fn entry(
        &self,
        template: &Entry,
        number: u16,
        index: u32,
        to_worker: impl FnOnce(u32) -> bool,
    ) -> Entry {
        let user_data = self.user_data(number, index);
        let mut entry = template.clone();
        let Some(memory) = self.memory else { return entry.user_data(user_data) };
        let (start, length) = self.lengths.span(index as usize);
        let done = self.done_before(index);
        let rest = length - done;
        let Some(address) = memory.part(start + done as usize, rest as usize) else {
            unreachable!("the whole was held with room for all of them");
        };
        let position = self.kind.position(self.positions[index as usize] + u64::from(done));
        readdress(&mut entry, address, position, user_data);
        if self.inline && to_worker(rest) { entry.flags(Flags::ASYNC) } else { entry }
    }

    /// Bytes of one that was short, so far.
    #[inline]
    fn done_before(&self, index: u32) -> u32 {
        if self.partial.is_empty() { 0 } else { self.partial.get(&index).copied().unwrap_or(0) }
    }

    /// Takes the result of one.
    #[inline(always)]
    #[allow(clippy::inline_always)] // As `InFlight::arrive_of_many`.
    fn take(&mut self, index: u32, result: i32) -> Taken {
        if self.results.get(index as usize) != Some(&PENDING) || index >= self.next {
            return Taken::Stale;
        }
        let whole = result >= 0
            && (result == 0 || !self.fill || self.lengths.span(index as usize).1 == result as u32);
        if !whole || !self.partial.is_empty() {
            return self.take_part(index, result);
        }
        self.settle(index, result);
        Taken::Settled
    }

    /// The same where it, or another before it, was short or failed.
    #[cold]
    fn take_part(&mut self, index: u32, result: i32) -> Taken {
        let (_, length) = self.lengths.span(index as usize);
        let done = self.done_before(index) + result.max(0) as u32;
        let short = self.fill && result > 0 && done < length;
        // A signal, or a stop of the process, took a worker out of it: it has moved nothing.
        let interrupted = result == -libc::EINTR;
        if (short || interrupted) && !self.cancelled {
            let had_more = self.has_more();
            self.partial.insert(index, done);
            self.again.push(index);
            return if had_more { Taken::Again } else { Taken::MoreAgain };
        }
        // As read(2) and write(2): what was moved counts, and the error comes at the next call.
        self.settle(index, if done > 0 { done as i32 } else { result });
        Taken::Settled
    }

    fn settle(&mut self, index: u32, result: i32) {
        self.results[index as usize] = result;
        self.settled += 1;
    }

    /// Ends all that the kernel has not got.
    fn cancel(&mut self) {
        self.cancelled = true;
        for index in std::mem::take(&mut self.again) {
            // One that was interrupted has moved nothing yet.
            let done = self.done_before(index) as i32;
            self.settle(index, if done > 0 { done } else { -libc::ECANCELED });
        }
        for index in self.next..self.results.len() as u32 {
            self.settle(index, -libc::ECANCELED);
        }
        self.next = self.results.len() as u32;
    }

    fn is_with_kernel(&self, index: u32) -> bool {
        index < self.next && self.results[index as usize] == PENDING && !self.again.contains(&index)
    }

    /// Those that the kernel has.
    fn targets(&self, number: u16) -> impl Iterator<Item = Target> {
        (0..self.next)
            .filter(|&index| self.is_with_kernel(index))
            .map(move |index| Target { user_data: self.user_data(number, index), timeout: false })
    }
}
