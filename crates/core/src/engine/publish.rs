//! From what is staged to the submission queue: cancels first, then quiet operations, what is staged in its
//! order, many last. Chains go whole or not at all.

use super::Engine;
use super::inline::INLINE_ENTER_BYTES;

/// Submissions in a row that may leave no room for many: single operations go before them, and a polling
/// thread takes no more of those than come.
const PASSES_MAX: u32 = 8;

impl Engine {
    /// Moves what is staged into the submission queue, as far as there is room.
    pub(super) fn publish(&mut self) {
        if !self.publish_cancels() || !self.publish_urgent() {
            return;
        }
        let many_first = self.passed_over >= PASSES_MAX;
        if many_first {
            self.publish_many();
        }
        let any_staged = !self.staged.is_empty();
        self.kept_back = false;
        self.publish_staged();
        if any_staged {
            self.clock.note_entered();
        }
        if !self.plain && self.staged.is_empty() {
            self.gather.begin_anew();
        }
        // A chain that has no room gets none where a polling thread takes one entry and another fills its place.
        let no_room = self.kept_back && self.polling_as.is_some();
        if !many_first && !no_room {
            self.publish_many();
        }
    }

    fn publish_urgent(&mut self) -> bool {
        if self.urgent.is_empty() {
            return true;
        }
        let mut sq = self.ring.submission();
        while let Some(slot) = self.urgent.pop_front() {
            if self.in_flight.staged(slot).doomed {
                self.ready.push(slot);
            } else if sq.room() > 0 {
                let pushed = sq.push(self.in_flight.submit(slot, false));
                debug_assert!(pushed, "there was room");
            } else {
                self.urgent.push_front(slot);
                return false;
            }
        }
        true
    }

    fn publish_staged(&mut self) {
        let alone = self.in_flight.len() == 1;
        let mut inline_left = INLINE_ENTER_BYTES;
        if self.order.waits(&self.in_flight) {
            return self.sweep_doomed();
        }
        let mut sq = self.ring.submission();
        while let Some(&slot) = self.staged.front() {
            let waiting = self.in_flight.staged(slot);
            if waiting.drain || waiting.linked {
                drop(sq);
                let may_go = inline_left > 0 && (!waiting.drain || self.may_drain());
                let went = may_go && self.publish_chain(&mut inline_left);
                // What is behind a drain waits for it.
                if !went || self.order.waits(&self.in_flight) {
                    return self.sweep_doomed();
                }
                sq = self.ring.submission();
                continue;
            }
            if waiting.doomed {
                self.staged.pop_front();
                self.ready.push(slot);
                continue;
            }
            if sq.room() == 0 || inline_left == 0 {
                return;
            }
            self.staged.pop_front();
            let to_worker = self.inline.hands_over(
                waiting.inline_bytes,
                alone,
                &mut self.inline_bytes_turn,
                &mut inline_left,
            );
            self.stats.punted += u64::from(to_worker);
            let pushed = sq.push(self.in_flight.submit(slot, to_worker));
            debug_assert!(pushed, "there was room");
        }
    }

    /// Publishes the chain at the front of what is staged, or the single operation that drains.
    /// False when it has to wait: for room, or for its end to be staged. A chain split over two
    /// submissions would be two chains. Its reads are copied by whoever copies others, and take of the bytes
    /// that are left for this enter: they all may run in it.
    fn publish_chain(&mut self, inline_left: &mut u32) -> bool {
        let in_flight = &self.in_flight;
        let links = self.staged.iter().take_while(|&&slot| in_flight.staged(slot).linked).count();
        let length = links + 1;
        if length > self.staged.len() {
            return false;
        }
        // None of it has started. A chain that lost a member would run differently from what was
        // asked, so it is cancelled whole. That needs no room.
        let drains = in_flight.staged(self.staged[0]).drain;
        if self.staged.range(..length).any(|&slot| in_flight.staged(slot).doomed) {
            self.ready.extend(self.staged.drain(..length));
            if drains {
                self.order.drop_drain();
            }
            return true;
        }
        let mut sq = self.ring.submission();
        // A polling thread that several rings share takes the first eight entries of a queue.
        let may_be_cut = length > 1 && self.polling_as.is_some() && !sq.is_empty();
        if length > sq.room() || may_be_cut {
            self.kept_back = true;
            return false;
        }
        let members: Vec<u32> = self.staged.drain(..length).collect();
        let before = sq.len();
        for &slot in &members {
            let to_worker = self.inline.hands_over(
                self.in_flight.staged(slot).inline_bytes,
                false,
                &mut self.inline_bytes_turn,
                inline_left,
            );
            self.stats.punted += u64::from(to_worker);
            let pushed = sq.push(self.in_flight.submit(slot, to_worker));
            debug_assert!(pushed, "there was room for all of it");
        }
        drop(sq);
        if drains {
            self.order.start_drain();
        }
        if length > 1 {
            self.in_flight.link(&members);
            self.chains.push((before, members));
        }
        true
    }

    /// The kernel may take fewer entries than there are (it ran out of memory). If it stopped inside
    /// a chain, the rest of the chain starts by itself at the next enter, and may not count.
    pub(super) fn note_cut_chains(&mut self, taken: usize) {
        for (before, slots) in std::mem::take(&mut self.chains) {
            if taken >= before + slots.len() {
                continue;
            }
            let cut = taken.saturating_sub(before);
            if cut == 0 {
                self.chains.push((before - taken, slots));
            } else {
                for &slot in &slots[cut..] {
                    self.in_flight.cut_off(slot);
                }
            }
        }
    }
}
