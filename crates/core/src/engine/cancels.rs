//! Cancelling: what the kernel has not got ends by itself, for all else it is asked, and asked again
//! for what it missed.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::Engine;
use super::turn::RETRY_SHIFT_MAX;
use crate::in_flight::{Cancelling, InFlight, Sqe, Target, cancel_user_data};
use crate::ring::Ring;

/// Cancels asked for in one enter. What they cancel stays in the list they are looked up in until the
/// kernel has completed it, of which it does 20 in an enter (`IO_LOCAL_TW_DEFAULT_MAX`).
const CANCELS_MAX: usize = 16;

/// The cancels of an engine.
#[derive(Default)]
pub(super) struct Cancels {
    /// user_data of operations to cancel, the next one last; they go before everything staged.
    waiting: VecDeque<u64>,
    /// user_data of those that a cancel has missed.
    missed: Vec<u64>,
    /// How often in a row some were missed.
    tries: u32,
    /// When the kernel is asked for them again.
    due: Option<Instant>,
}

impl Cancels {
    /// Whether some have yet to be submitted.
    #[inline]
    pub(super) fn wait(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Asks for links that cancels have missed before they had started.
    #[inline]
    pub(super) fn ask_for_started(&mut self, in_flight: &mut InFlight) {
        while let Some(started) = in_flight.take_started() {
            self.waiting.push_back(started);
        }
    }

    /// The kernel still has this operation, which a cancel was for.
    #[cold]
    pub(super) fn miss(&mut self, target: u64) {
        self.missed.push(target);
    }

    /// More is cancelled: what that misses is asked for soon, unless there are others to wait with.
    fn begin_anew(&mut self) {
        if self.missed.is_empty() {
            self.tries = 0;
        }
    }

    /// The end asks again for all, by itself.
    pub(super) fn forget_missed(&mut self) {
        self.missed.clear();
    }

    /// Whether some that a cancel has missed are still with the kernel.
    fn miss_some(&mut self, in_flight: &InFlight) -> bool {
        while let Some(&last) = self.missed.last() {
            if in_flight.target_of(last).is_some() {
                return true;
            }
            self.missed.pop();
        }
        self.due = None;
        false
    }

    /// How long until the kernel is to be asked again. What no signal interrupts, a write to a frozen file
    /// system, is missed each time.
    fn left(&mut self) -> Duration {
        let now = Instant::now();
        let patience = Duration::from_millis(1 << self.tries.min(RETRY_SHIFT_MAX));
        self.due.get_or_insert_with(|| now + patience).saturating_duration_since(now)
    }
}

impl Engine {
    /// Cancels the operation at `slot`. It completes with ECANCELED, or with its true result when it
    /// was faster. Returns whether there was one.
    pub fn cancel(&mut self, slot: u32) -> bool {
        match self.in_flight.cancel(slot) {
            Cancelling::Nothing => false,
            Cancelling::Doomed => {
                self.gather.hurry();
                true
            }
            Cancelling::Ask(target) => {
                self.cancels.begin_anew();
                self.ask_to_cancel(target);
                true
            }
            Cancelling::Many { targets, over } => {
                self.cancels.begin_anew();
                for target in targets {
                    self.ask_to_cancel(target);
                }
                if over {
                    self.ready.push(slot);
                }
                true
            }
        }
    }

    /// Those are first that the kernel finds first. It looks for a timeout from the oldest on
    /// (`io_timeout_extract`), for all else in a hash table whose lists begin with the newest
    /// (`io_poll_find`). The other way round, 65,536 operations take it many seconds.
    pub(super) fn ask_to_cancel(&mut self, target: Target) {
        if target.timeout {
            self.cancels.waiting.push_front(target.user_data);
        } else {
            self.cancels.waiting.push_back(target.user_data);
        }
    }

    /// False when the queue is full.
    pub(super) fn publish_cancels(&mut self) -> bool {
        let mut sq = self.ring.submission();
        for _ in 0..CANCELS_MAX {
            let Some(&target) = self.cancels.waiting.back() else { break };
            let entry = Ring::cancel_entry(target).user_data(cancel_user_data(target));
            if !sq.push(&Sqe::control(entry)) {
                return false;
            }
            self.cancels.waiting.pop_back();
            self.stats.cancels += 1;
        }
        true
    }

    /// Asks again for what cancels have missed, when it is time.
    #[inline]
    pub(super) fn look_after_missed(&mut self) {
        if !self.cancels.missed.is_empty() {
            self.ask_for_missed();
        }
    }

    #[cold]
    fn ask_for_missed(&mut self) {
        if !self.cancels.miss_some(&self.in_flight) || !self.cancels.left().is_zero() {
            return;
        }
        (self.cancels.due, self.cancels.tries) = (None, self.cancels.tries.saturating_add(1));
        let mut asked = HashSet::new();
        for target in std::mem::take(&mut self.cancels.missed) {
            // Once, however often it was cancelled and missed.
            if let Some(target) = self.in_flight.target_of(target)
                && asked.insert(target.user_data)
            {
                self.ask_to_cancel(target);
            }
        }
    }

    /// In how many milliseconds the loop is to come round for what cancels have missed.
    #[inline]
    pub(super) fn missed_after_ms(&mut self) -> Option<u32> {
        if self.cancels.missed.is_empty() || !self.cancels.miss_some(&self.in_flight) {
            return None;
        }
        // Rounded up: a timer that is early would come round for nothing.
        Some(self.cancels.left().as_millis() as u32 + 1)
    }
}
