//! The links of chains, and cancels: which operation starts when another is over, how one is cancelled
//! wherever it is by then, and what a cancel that missed it means.

use super::{Arrived, InFlight, State};

/// What an operation that the kernel has waits for there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    Nothing,
    /// The link before it is not over.
    Another,
    /// Nor is it, and a cancel has missed this one meanwhile.
    AnotherAndMissed,
}

/// What became of a cancel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cancelling {
    /// The slot has no operation.
    Nothing,
    /// It had not been submitted; it will complete with ECANCELED without a trip to the kernel.
    Doomed,
    /// The kernel has to be asked.
    Ask(Target),
    /// The kernel has to be asked for each of many; `over` when it has none of them.
    Many {
        /// Those that it has.
        targets: Vec<Target>,
        /// The slot can be ended at once.
        over: bool,
    },
}

/// An operation that the kernel has, as a cancel names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its user_data.
    pub user_data: u64,
    /// Whether it is a timeout.
    pub timeout: bool,
}

impl InFlight {
    /// The chain ends with the staged operation at `slot`: what was to follow will not.
    pub fn end_chain(&mut self, slot: u32) {
        self.slots[slot as usize].linked = false;
    }

    /// The links of these slots, in their order, go to the kernel together.
    pub fn link(&mut self, members: &[u32]) {
        for pair in members.windows(2) {
            let behind = &mut self.slots[pair[1] as usize];
            behind.behind = Behind::Another;
            let next = behind.target(pair[1]).user_data;
            self.slots[pair[0] as usize].next = next;
        }
    }

    /// Takes one of the links that cancels have missed and that have started since, by its user_data.
    #[inline]
    pub fn take_started(&mut self) -> Option<u64> {
        self.started.pop()
    }

    /// The operation before the link with this user_data is over.
    #[cold]
    pub(super) fn start_link(&mut self, user_data: u64) {
        let place = &mut self.slots[user_data as u32 as usize];
        // One of a chain that was cut may be over already, and its slot somebody else's.
        if place.target(user_data as u32).user_data != user_data {
            return;
        }
        if std::mem::replace(&mut place.behind, Behind::Nothing) == Behind::AnotherAndMissed {
            self.started.push(user_data);
        }
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
            State::Many(number) => self.cancel_many(number),
        }
    }

    /// EALREADY: a worker is at it, and was told to stop; one that has begun may leave it to a poll all
    /// the same. ENOENT: it is over, or waits for the link before it, or is on its way from a worker to
    /// a poll, and there nobody looks for it. `io_try_cancel` in Linux; `io_uring_prep_cancel(3)`
    /// promises no more.
    #[cold]
    pub(super) fn arrive_of_cancel(&mut self, target: u64, result: i32) -> Arrived {
        let missed = matches!(-result, libc::EALREADY | libc::ENOENT);
        if !missed || self.target_of(target).is_none() {
            return Arrived::Cancelled;
        }
        match self.slots.get_mut(target as u32 as usize) {
            // Nobody finds it before it has started.
            Some(place) if place.behind != Behind::Nothing => {
                place.behind = Behind::AnotherAndMissed;
                Arrived::Cancelled
            }
            _ => Arrived::Missed(target),
        }
    }

    /// The operation with this user_data, if the kernel has it.
    #[must_use]
    pub fn target_of(&self, user_data: u64) -> Option<Target> {
        let slot = user_data as u32;
        let Some(place) = self.slots.get(slot as usize) else {
            return self.many.target_of(user_data);
        };
        let submitted = matches!(place.state, State::Submitted | State::CutOff);
        Some(place.target(slot)).filter(|target| submitted && target.user_data == user_data)
    }
}
