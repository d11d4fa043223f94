//! The order that drains ask for: an operation with [`DRAIN`](crate::operation::DRAIN) starts when all
//! that was staged before it is complete, and what was staged after it starts when it is.
//!
//! Kept here and not by IOSQE_IO_DRAIN, behind which the kernel would keep a cancel waiting for what
//! it is to cancel, and a timeout for what it is to watch.

use std::collections::VecDeque;

use super::Engine;
use crate::in_flight::InFlight;

/// When something was staged that drains have to know of, and which drains there are.
#[derive(Default)]
pub(super) struct Order {
    /// Counts drains and manys as they are staged.
    sequence: u64,
    /// Of the drains that are staged, oldest first.
    waiting: VecDeque<u64>,
    /// The drain that the kernel has: when it was staged.
    running: Option<u64>,
    /// Whether what is staged had to wait for a drain when it was last looked at.
    blocked: bool,
    /// Whether there may be something beside what is staged in order: many, or urgent.
    others: bool,
}

impl Order {
    pub(super) fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    pub(super) fn stage_drain(&mut self) {
        let sequence = self.next();
        self.waiting.push_back(sequence);
    }

    /// The drain at the front is over before it began.
    pub(super) fn drop_drain(&mut self) {
        self.waiting.pop_front();
    }

    /// The drain at the front goes to the kernel.
    pub(super) fn start_drain(&mut self) {
        self.running = self.waiting.pop_front();
    }

    /// Whether all that is staged waits for a drain that the kernel has. It starts when the kernel has
    /// nothing, and gets nothing beside: so it is over, with all its members, in whatever order they come
    /// (a bound whose time is up comes first), when the kernel has nothing again.
    #[inline]
    pub(super) fn waits(&mut self, in_flight: &InFlight) -> bool {
        self.blocked = self.running.is_some() && in_flight.with_kernel() > 0;
        if !self.blocked {
            self.running = None;
        }
        self.blocked
    }

    /// Whether there is a drain, staged or with the kernel.
    #[inline]
    pub(super) fn has_drains(&self) -> bool {
        self.running.is_some() || !self.waiting.is_empty()
    }

    /// Only many that were staged before this may go.
    pub(super) fn before(&self) -> u64 {
        self.running.or(self.waiting.front().copied()).unwrap_or(u64::MAX)
    }

    #[inline]
    pub(super) const fn is_blocked(&self) -> bool {
        self.blocked
    }

    #[inline]
    pub(super) const fn has_others(&self) -> bool {
        self.others
    }

    pub(super) const fn set_others(&mut self, others: bool) {
        self.others = others;
    }
}

impl Engine {
    /// Whether the drain at the front may start: all that was staged before it is complete.
    pub(super) fn may_drain(&mut self) -> bool {
        let before = self.order.waiting.front().copied().unwrap_or(0);
        let polled = self.polled.as_ref().is_some_and(|polled| polled.is_busy());
        let others = polled || self.in_flight.many_before(before);
        let may = self.in_flight.with_kernel() == 0 && !others;
        self.order.blocked = !may;
        may
    }

    /// What was cancelled ends now, though it stands behind what waits. A chain ends whole.
    pub(super) fn sweep_doomed(&mut self) {
        let in_flight = &self.in_flight;
        if !self.staged.iter().any(|&slot| in_flight.staged(slot).doomed) {
            return;
        }
        let complete = self.staged.len() - self.open_chain;
        let mut kept = VecDeque::with_capacity(self.staged.len());
        let mut drains = VecDeque::with_capacity(self.order.waiting.len());
        let mut start = 0;
        while start < complete {
            let rest = self.staged.range(start..);
            let links = rest.take_while(|&&slot| in_flight.staged(slot).linked).count();
            let members = self.staged.range(start..=start + links);
            let drains_it = in_flight.staged(self.staged[start]).drain;
            let sequence = if drains_it { self.order.waiting.pop_front() } else { None };
            if members.clone().any(|&slot| in_flight.staged(slot).doomed) {
                self.ready.extend(members);
            } else {
                kept.extend(members);
                drains.extend(sequence);
            }
            start += links + 1;
        }
        kept.extend(self.staged.range(complete..));
        drains.append(&mut self.order.waiting);
        (self.staged, self.order.waiting) = (kept, drains);
    }
}
