//! All the manys of an engine: which number is whose, whose turn it is, and how many of each go.

use std::collections::VecDeque;

use super::{GENERATION_MASK, MANY, Many, NUMBER_BITS, Taken};
use crate::arena::Arena;
use crate::files::Files;
use crate::in_flight::{Arrived, Cancelling, Held, InFlight, Payload, Sqe, State, Target};
use crate::ring::Submission;

/// Entries that move no bytes, of each many in one enter: what the kernel keeps of so many is still in the
/// first cache when it is looked at again. 1024 nops by one call cost 52 ns each, by one enter 56. Of
/// reads so few an enter cost more than they save.
const BARE_ENTER_MAX: usize = 128;

/// What may still be submitted now.
pub struct Budget {
    /// Entries.
    pub entries: usize,
    /// Bytes that the submitting thread copies inside enter.
    pub inline_bytes: u32,
}

/// All of them, by number.
#[derive(Default)]
pub(in crate::in_flight) struct Table {
    places: Vec<Option<Many>>,
    vacant: Vec<u16>,
    generation: u32,
    /// Those that have more to submit, in the order of their next turn.
    active: VecDeque<u16>,
    with_kernel: usize,
    /// How many there are.
    count: usize,
}

impl Table {
    pub(in crate::in_flight) fn targets(&self) -> impl Iterator<Item = Target> {
        (0..)
            .zip(&self.places)
            .filter_map(|(number, many)| many.as_ref().map(|many| many.targets(number)))
            .flatten()
    }

    /// The one with this user_data, if the kernel has it.
    pub(in crate::in_flight) fn target_of(&self, user_data: u64) -> Option<Target> {
        let (number, index) = (user_data as u16, (user_data >> 32) as u32);
        let many = self.places.get(number as usize)?.as_ref()?;
        let is_it = many.user_data(number, index) == user_data && many.is_with_kernel(index);
        is_it.then_some(Target { user_data, timeout: false })
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

    /// Whether the kernel got any of them.
    pub(in super::super) fn many_has_begun(&self, number: u16) -> bool {
        self.many_at(number).next > 0
    }

    fn many_at(&self, number: u16) -> &Many {
        let Some(many) = &self.many.places[number as usize] else {
            unreachable!("what is active is there");
        };
        many
    }

    /// Submits of those staged before `sequence`, each in its turn, as far as budget and queue go. By its
    /// length `to_worker` says whether one goes to a worker, or takes what it costs of the budget's bytes.
    pub(crate) fn submit_many(
        &mut self,
        sq: &mut Submission,
        before: u64,
        budget: &mut Budget,
        mut to_worker: impl FnMut(u32, &mut u32) -> bool,
    ) {
        let Table { places, active, with_kernel, .. } = &mut self.many;
        for _ in 0..active.len() {
            let Some(number) = active.pop_front() else { return };
            let Some(many) = &mut places[number as usize] else { continue };
            if many.sequence >= before {
                active.push_back(number);
                continue;
            }
            let template = many.template();
            let most = if many.memory.is_some() { usize::MAX } else { BARE_ENTER_MAX };
            for _ in 0..budget.entries.min(sq.room()).min(most) {
                if budget.inline_bytes == 0 {
                    break;
                }
                let Some(index) = many.next_index() else { break };
                let entry = many.entry(&template, number, index, |length| {
                    to_worker(length, &mut budget.inline_bytes)
                });
                let pushed = sq.push(&Sqe(entry));
                debug_assert!(pushed, "no more are taken than there is room for");
                *with_kernel += 1;
                budget.entries -= 1;
            }
            if many.has_more() {
                active.push_back(number);
            }
        }
    }

    #[inline(always)]
    #[allow(clippy::inline_always)] // Each of many comes here: as a function of its own, 2 ns of 50.
    pub(in crate::in_flight) fn arrive_of_many(
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
        match many.take(index, result) {
            Taken::Stale => return Arrived::Stale,
            Taken::MoreAgain => self.many.active.push_back(number),
            Taken::Settled | Taken::Again => {}
        }
        self.many.with_kernel -= 1;
        if (many.settled as usize) < many.results.len() {
            return Arrived::More;
        }
        let count = if many.cancelled { -libc::ECANCELED } else { many.settled as i32 };
        let slot = self.finish_many(number);
        self.end(slot, count, arena, files);
        Arrived::Complete(slot, count)
    }

    pub(in crate::in_flight) fn cancel_many(&mut self, number: u16) -> Cancelling {
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
