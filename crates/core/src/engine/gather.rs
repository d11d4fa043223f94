//! Gathering for longer than a turn: with a flush delay, what is staged waits for more, until the delay
//! is over, the submission queue would be full, somebody cancels, or `flush` is called.

use std::time::{Duration, Instant};

use super::{Engine, Turn};

/// Shorter waits than this are met by coming round: the timers of event loops count in milliseconds.
const TIMED_MIN: Duration = Duration::from_millis(2);

/// How long what is staged waits, and since when it does.
#[derive(Default)]
pub(super) struct Gather {
    delay: Duration,
    since: Option<Instant>,
    /// What was cancelled before it was submitted is to end now.
    hurried: bool,
}

impl Gather {
    pub(super) const fn new(delay: Duration) -> Self {
        Self { delay, since: None, hurried: false }
    }

    #[inline]
    pub(super) const fn is_off(&self) -> bool {
        self.delay.is_zero()
    }

    /// What is staged next waits for the whole delay.
    pub(super) const fn begin_anew(&mut self) {
        self.since = None;
        self.hurried = false;
    }

    /// Nothing that is staged waits any longer.
    pub(super) const fn hurry(&mut self) {
        self.hurried = true;
    }

    /// How long what is staged has still to wait; zero when it has not.
    fn left(&self) -> Duration {
        if self.hurried {
            return Duration::ZERO;
        }
        self.since.map_or(Duration::ZERO, |since| self.delay.saturating_sub(since.elapsed()))
    }
}

impl Engine {
    /// Whether what is staged is to wait for more in this turn.
    #[cold]
    pub(super) fn holds_back(&mut self) -> bool {
        if self.staged.is_empty() {
            return false;
        }
        self.gather.since.get_or_insert_with(Instant::now);
        let full = self.staged.len() >= self.ring.granted().entries as usize;
        let others = self.cancels.wait() || !self.urgent.is_empty() || self.order.has_others();
        !full && !others && !self.gather.left().is_zero()
    }

    /// What the loop does while it waits for more, and nothing else needs it.
    #[cold]
    pub(super) fn wait_for_more(&mut self) -> Turn {
        let left = self.gather.left();
        if left < TIMED_MIN || self.reaper.arm(&mut self.ring) {
            return Turn::Again;
        }
        // The rest, less than what a timer counts in, is met by coming round.
        Turn::Retry { after_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX) - 1 }
    }

    /// Nothing waits any more: the engine ends.
    pub(super) fn stop_gathering(&mut self) {
        self.gather = Gather::default();
    }

    /// Whether something waits for more.
    #[inline]
    pub(super) fn is_gathering(&self) -> bool {
        !self.gather.is_off() && !self.staged.is_empty() && !self.gather.left().is_zero()
    }
}
