//! Many operations of one kind under one slot: reads or writes between one chunk and one file, or
//! nops. What they hold is held by the slot, once, until the last of them is complete; each has its
//! index in its user_data, and its result in a table that becomes the slot's payload.
//!
//! The kernel gets a window of them at a time, however many there are.

use std::collections::{HashMap, VecDeque};

use io_uring::opcode;
use io_uring::squeue::{Entry, Flags};

use super::{Arrived, Cancelling, Held, InFlight, Payload, State, Target};
use crate::arena::{Address, Arena};
use crate::files::{self, Files};
use crate::operation::{Opcode, transfer_entry};
use crate::ring::{Submission, readdress};

/// In the lower half of the user_data of one of many, beside its number and the number's generation.
pub(super) const MANY: u32 = 1 << 31;
const NUMBER_BITS: u32 = 16;
const GENERATION_MASK: u32 = (1 << 14) - 1;
/// The result of one that is not complete: no errno and no count of bytes.
const PENDING: i32 = i32::MIN;

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
            Some(memory) => transfer_entry(self.opcode, self.target, self.fixed, memory, 0, 0),
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

    /// Makes `entry` that of the next to submit; false when there is none. `to_worker` decides, by its
    /// length, who copies for it.
    #[inline]
    fn next_into(
        &mut self,
        entry: &mut Entry,
        number: u16,
        to_worker: impl FnOnce(u32) -> bool,
    ) -> bool {
        let Some(index) = self.next_index() else { return false };
        let user_data = self.user_data(number, index);
        let Some(memory) = self.memory else {
            entry.set_user_data(user_data);
            return true;
        };
        let (start, length) = self.lengths.span(index as usize);
        let done = self.done_before(index);
        let rest = length - done;
        let Some(address) = memory.part(start + done as usize, rest as usize) else {
            unreachable!("the whole was held with room for all of them");
        };
        let position = self.positions[index as usize] + u64::from(done);
        readdress(entry, address, position, user_data);
        if self.inline && to_worker(rest) {
            *entry = entry.clone().flags(Flags::ASYNC);
        }
        true
    }

    /// Bytes of one that was short, so far.
    #[inline]
    fn done_before(&self, index: u32) -> u32 {
        if self.partial.is_empty() { 0 } else { self.partial.get(&index).copied().unwrap_or(0) }
    }

    /// Takes the result of one. False when nobody waits for it.
    #[inline]
    fn take(&mut self, index: u32, result: i32) -> bool {
        if self.results.get(index as usize) != Some(&PENDING) || index >= self.next {
            return false;
        }
        let mut total = result;
        if self.memory.is_some() {
            let (_, length) = self.lengths.span(index as usize);
            let done = self.done_before(index) + result.max(0) as u32;
            if self.fill && result > 0 && done < length && !self.cancelled {
                self.partial.insert(index, done);
                self.again.push(index);
                return true;
            }
            // As read(2) and write(2): what was moved counts, and the error comes at the next call.
            if done > 0 {
                total = done as i32;
            }
        }
        self.settle(index, total);
        true
    }

    fn settle(&mut self, index: u32, result: i32) {
        self.results[index as usize] = result;
        self.settled += 1;
    }

    /// Ends all that the kernel has not got.
    fn cancel(&mut self) {
        self.cancelled = true;
        for index in std::mem::take(&mut self.again) {
            let done = self.partial.get(&index).map_or(-libc::ECANCELED, |&done| done as i32);
            self.settle(index, done);
        }
        for index in self.next..self.results.len() as u32 {
            self.settle(index, -libc::ECANCELED);
        }
        self.next = self.results.len() as u32;
    }

    /// Those that the kernel has.
    fn targets(&self, number: u16) -> impl Iterator<Item = Target> {
        (0..self.next)
            .filter(|&index| {
                self.results[index as usize] == PENDING && !self.again.contains(&index)
            })
            .map(move |index| Target { user_data: self.user_data(number, index), timeout: false })
    }
}

/// What may still be submitted now.
pub struct Budget {
    /// Entries.
    pub entries: usize,
    /// Bytes that the submitting thread copies inside enter.
    pub inline_bytes: usize,
}

/// All of them, by number.
#[derive(Default)]
pub(super) struct Table {
    places: Vec<Option<Many>>,
    vacant: Vec<u16>,
    generation: u32,
    /// Those that have more to submit, in the order of their next turn.
    active: VecDeque<u16>,
    with_kernel: usize,
    /// How many there are.
    count: usize,
    burst: Sqes,
}

/// Entries that are made before the first of them is copied into the queue: copied one by one, each
/// copy would wait for the stores that had just made it.
const BURST: usize = 32;

/// As [`super::Sqe`], some of them.
#[derive(Default)]
pub struct Sqes {
    entries: Vec<Entry>,
    length: usize,
    /// Whether all of them are of the kind at hand, without flags that one alone has.
    primed: bool,
}

impl Sqes {
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries[..self.length]
    }

    /// Makes all of them entries of these many.
    fn prime(&mut self, many: &Many) {
        let template = many.template();
        self.entries.clear();
        self.entries.resize(BURST, template);
        self.primed = true;
    }
}

impl Table {
    pub(super) fn targets(&self) -> impl Iterator<Item = Target> {
        (0..)
            .zip(&self.places)
            .filter_map(|(number, many)| many.as_ref().map(|many| many.targets(number)))
            .flatten()
    }
}

impl InFlight {
    /// Whether another [`Self::launch_many`] has room.
    #[must_use]
    pub fn has_room_for_many(&self) -> bool {
        !self.many.vacant.is_empty() || self.many.places.len() < 1 << NUMBER_BITS
    }

    /// Keeps what they all hold, and their table, until the last is complete. The slot is free
    /// ([`Self::is_free`]) and there is room ([`Self::has_room_for_many`]).
    pub(crate) fn launch_many(&mut self, slot: u32, held: Held, mut many: Many) {
        let number = self.many.vacant.pop().unwrap_or_else(|| {
            self.many.places.push(None);
            (self.many.places.len() - 1) as u16
        });
        self.many.generation = (self.many.generation + 1) & GENERATION_MASK;
        many.slot = slot;
        many.generation = self.many.generation;
        let place = &mut self.slots[slot as usize];
        assert!(place.state == State::Free, "a slot carries one operation");
        place.generation = place.generation.wrapping_add(1);
        place.state = State::Many(number);
        (place.linked, place.drain, place.quiet) = (false, false, false);
        place.held = held;
        self.busy += 1;
        self.many.places[number as usize] = Some(many);
        self.many.count += 1;
        self.many.active.push_back(number);
    }

    /// Whether there are any.
    #[must_use]
    pub const fn has_many(&self) -> bool {
        self.many.count > 0
    }

    /// Operations of many that the kernel has.
    #[must_use]
    pub const fn many_with_kernel(&self) -> usize {
        self.many.with_kernel
    }

    /// Whether some of many, staged before `sequence`, wait for their submission.
    #[must_use]
    pub fn many_waiting(&self, before: u64) -> bool {
        self.many.active.iter().any(|&number| self.many_at(number).sequence < before)
    }

    /// Whether many that were staged before `sequence` are not complete.
    #[must_use]
    pub fn many_before(&self, sequence: u64) -> bool {
        self.many.places.iter().flatten().any(|many| many.sequence < sequence)
    }

    fn many_at(&self, number: u16) -> &Many {
        let Some(many) = &self.many.places[number as usize] else {
            unreachable!("what is active is there");
        };
        many
    }

    /// Submits of those staged before `sequence`, each in its turn, as far as budget and queue go.
    pub(crate) fn submit_many(
        &mut self,
        sq: &mut Submission,
        before: u64,
        budget: &mut Budget,
        mut to_worker: impl FnMut(u32) -> bool,
    ) {
        let Table { places, active, with_kernel, burst, .. } = &mut self.many;
        for _ in 0..active.len() {
            let Some(number) = active.pop_front() else { return };
            let Some(many) = &mut places[number as usize] else { continue };
            if many.sequence >= before {
                active.push_back(number);
                continue;
            }
            burst.prime(many);
            loop {
                let most = budget.entries.min(sq.room()).min(BURST);
                burst.length = 0;
                while burst.length < most && budget.inline_bytes > 0 {
                    let mut inline_bytes = 0;
                    let mut punted = false;
                    let entry = &mut burst.entries[burst.length];
                    let some = many.next_into(entry, number, |length| {
                        punted = to_worker(length);
                        inline_bytes = if punted { 0 } else { length as usize };
                        punted
                    });
                    if !some {
                        break;
                    }
                    burst.length += 1;
                    burst.primed &= !punted;
                    budget.inline_bytes = budget.inline_bytes.saturating_sub(inline_bytes);
                }
                if burst.length == 0 {
                    break;
                }
                sq.push_all(burst);
                *with_kernel += burst.length;
                budget.entries -= burst.length;
                if !burst.primed {
                    burst.prime(many);
                }
            }
            burst.primed = false;
            if many.has_more() {
                active.push_back(number);
            }
        }
    }

    #[inline]
    pub(super) fn arrive_of_many(
        &mut self,
        user_data: u64,
        result: i32,
        arena: &mut Arena,
        files: &mut Files,
    ) -> Arrived {
        let (low, index) = (user_data as u32, (user_data >> 32) as u32);
        let number = low as u16;
        let Some(Some(many)) = self.many.places.get_mut(number as usize) else {
            return Arrived::Stale;
        };
        if low & MANY == 0 || (low & !MANY) >> NUMBER_BITS != many.generation {
            return Arrived::Stale;
        }
        let had_more = many.has_more();
        if !many.take(index, result) {
            return Arrived::Stale;
        }
        self.many.with_kernel -= 1;
        if many.settled as usize == many.results.len() {
            let count = if many.cancelled { -libc::ECANCELED } else { many.settled as i32 };
            let slot = self.finish_many(number);
            self.end(slot, count, arena, files);
            return Arrived::Complete(slot, count);
        }
        if !had_more && many.has_more() {
            self.many.active.push_back(number);
        }
        Arrived::More
    }

    pub(super) fn cancel_many(&mut self, number: u16) -> Cancelling {
        let Some(Some(many)) = self.many.places.get_mut(number as usize) else {
            unreachable!("a slot of many has its table");
        };
        let targets: Vec<_> = many.targets(number).collect();
        many.cancel();
        let over = many.settled as usize == many.results.len();
        self.many.active.retain(|&other| other != number);
        if over {
            let slot = self.finish_many(number);
            self.slots[slot as usize].state = State::Doomed;
        }
        Cancelling::Many { targets, over }
    }

    /// The slots that stand for many.
    #[must_use]
    pub fn slots_of_many(&self) -> Vec<u32> {
        self.many.places.iter().flatten().map(|many| many.slot).collect()
    }

    /// Turns the table into its slot's payload. The slot has yet to be ended.
    fn finish_many(&mut self, number: u16) -> u32 {
        let Some(many) = self.many.places[number as usize].take() else {
            unreachable!("finished once");
        };
        self.many.vacant.push(number);
        self.many.count -= 1;
        let place = &mut self.slots[many.slot as usize];
        place.held.payload = Some(Box::new(Payload::Counts(many.results)));
        many.slot
    }
}
