//! A turn: everything staged goes to the kernel in one enter, and what is complete is collected.

use std::io;
use std::time::{Duration, Instant};

use super::{BATCH_MAX, Completion, Engine, Life, MESSAGE_SLOT, Reap, Turn};
use crate::in_flight::Arrived;

/// A turn looks at the clock after each so many rounds. With 1024 operations always in flight the
/// median gap of a 1 ms timer is 1.16 ms with 4 rounds, 2.7 with 16, 15.7 with 64.
const ROUNDS_UNTIMED: u32 = 4;
/// Rounds that a turn has at most: with one short operation at a time, 16 rounds cost 843 ns an
/// operation and 4 cost 947, and all 16 are over in 14 µs.
const ROUNDS_MAX: u32 = 64;
/// A turn delivers no more when it has delivered so many: each runs JavaScript, a quarter to half a
/// microsecond, and a few rounds of a thousand are over before anybody looks at the clock.
const DELIVERED_MAX: u64 = 1024;
/// A turn delivers no more when this much time has gone since its first delivery.
pub(super) const TURN_MAX: Duration = Duration::from_micros(200);
/// How long the loop looks for completions before it sleeps, with [`Reap::PollBriefly`].
const BRIEFLY: Duration = TURN_MAX;
/// Refusals of enter that are met with another loop iteration; later ones wait for a timer.
const REFUSALS_UNTIMED: u32 = 4;
/// When turns bring nothing although the kernel goes on saying that an enter would, there is one sleep in
/// so many of them, ...
const FUTILE_TURNS: u32 = 256;
/// ... once it has gone on for so long. It may be true: the kernel tries an operation 128 times, each in an
/// enter, on a file that is always ready and is not, before a worker gets it (`APOLL_MAX_RETRY`).
const FUTILE_MIN: Duration = Duration::from_secs(1);
/// Longest wait before the kernel is asked again, in milliseconds: 2^5.
pub(super) const RETRY_SHIFT_MAX: u32 = 5;

impl Engine {
    /// Submits all that is staged, collects what is complete, and says what to do next.
    ///
    /// Call it again after each [`Turn::Deliver`], until it says something else.
    pub fn turn(&mut self) -> Turn {
        if self.life != Life::Running {
            return self.after_the_end();
        }
        if self.round == 0 {
            self.reaper.disarm(&mut self.ring);
            self.inline_bytes_turn = 0;
            self.delivered_before = self.delivered();
            self.many_started = None;
            self.look_after_missed();
        }
        loop {
            if self.submit(true).is_err() {
                return self.after_the_end();
            }
            if self.readable {
                // Only now: the enter above ran the work that the eventfd told of, and what it would
                // have told since then is looked for when the turn ends.
                self.reaper.clear();
                self.readable = false;
            }
            if self.may_deliver() && self.collect() {
                self.round += 1;
                return Turn::Deliver;
            }
            if !self.goes_on_with_many() {
                return self.rest();
            }
        }
    }

    fn after_the_end(&mut self) -> Turn {
        self.round = 0;
        if self.readable {
            // Nobody looks any more, and the loop must not be woken for ever.
            self.reaper.clear();
            self.readable = false;
        }
        match self.life {
            Life::Failed { errno, told: false } => {
                self.life = Life::Failed { errno, told: true };
                Turn::Failed(errno)
            }
            _ => Turn::Block,
        }
    }

    /// Bounds the rounds of a turn, so that timers and other I/O keep theirs.
    #[inline]
    fn may_deliver(&mut self) -> bool {
        match self.round {
            0 => true,
            _ if self.delivered() - self.delivered_before >= DELIVERED_MAX => false,
            1 => {
                self.turn_started = Some(Instant::now());
                true
            }
            round if round >= ROUNDS_MAX => false,
            // A look at the clock costs 25 ns, a round of one operation a microsecond.
            round if round % ROUNDS_UNTIMED != 0 => true,
            _ => self.turn_started.is_none_or(|started| started.elapsed() < TURN_MAX),
        }
    }

    /// Completions and messages, since the beginning.
    const fn delivered(&self) -> u64 {
        self.stats.completed + self.stats.messages
    }

    /// Fills `out`; false when nothing is complete.
    #[inline]
    pub(super) fn collect(&mut self) -> bool {
        let Self { ring, in_flight, arena, files, out, ready, stats, cancels, .. } = self;
        let messages = stats.messages;
        out.clear();
        if !ready.is_empty() {
            let take = ready.len().min(BATCH_MAX);
            let result = -libc::ECANCELED;
            out.extend(ready.drain(..take).map(|slot| {
                in_flight.end(slot, result, arena, files);
                Completion { slot, result }
            }));
        }
        ring.drain(BATCH_MAX - out.len(), |user_data, result, more| {
            match in_flight.arrive(user_data, result, more, arena, files) {
                Arrived::Complete(slot, result) => out.push(Completion { slot, result }),
                Arrived::Message(value) => {
                    stats.messages += 1;
                    out.push(Completion { slot: MESSAGE_SLOT, result: value });
                }
                Arrived::Stale => stats.stale += 1,
                Arrived::Missed(target) => cancels.miss(target),
                Arrived::More | Arrived::Cancelled => {}
            }
        });
        cancels.ask_for_started(in_flight);
        if !self.plain {
            self.collect_polled();
        }
        let Self { out, stats, clock, .. } = self;
        stats.completed += out.len() as u64 - (stats.messages - messages);
        if out.is_empty() {
            return false;
        }
        clock.note_reaped();
        self.futile = 0;
        true
    }

    /// What the last [`Turn::Deliver`] hands over.
    #[inline]
    #[must_use]
    pub fn completions(&self) -> &[Completion] {
        &self.out
    }

    /// The turn is over: nothing was complete, or it has had its rounds.
    fn rest(&mut self) -> Turn {
        self.unregister_retired();
        self.round = 0;
        self.turn_started = None;
        let refused = self.refused;
        let gathering = !self.plain && self.is_gathering();
        if refused == 0 && !gathering && self.wants_to_publish() {
            return Turn::Again;
        }
        if !self.ready.is_empty() || self.ring.has_completions() {
            return Turn::Again;
        }
        if !self.plain
            && let Some(turn) = self.rest_otherwise(gathering)
        {
            return match (turn, self.missed_after_ms()) {
                (Turn::Retry { after_ms }, Some(sooner)) => {
                    Turn::Retry { after_ms: after_ms.min(sooner) }
                }
                _ => turn,
            };
        }
        // What only an enter brings into the queue is no reason to spin while enter is refused.
        let came = self.reaper.arm(&mut self.ring);
        if came && self.ring.has_completions() {
            return Turn::Again;
        }
        if came && refused <= REFUSALS_UNTIMED {
            return self.rest_in_vain();
        }
        match refused {
            0 => match self.missed_after_ms() {
                Some(after_ms) => Turn::Retry { after_ms },
                None => Turn::Block,
            },
            1..=REFUSALS_UNTIMED => Turn::Again,
            _ => {
                Turn::Retry { after_ms: 1 << (refused - REFUSALS_UNTIMED - 1).min(RETRY_SHIFT_MAX) }
            }
        }
    }

    /// The kernel says that an enter would bring something. A worker that is held up between adding its
    /// work and setting the flag (`io_req_local_work_add` in Linux) sets it when the work is done: no enter
    /// takes it back, and the loop must not spin until something else completes.
    fn rest_in_vain(&mut self) -> Turn {
        self.futile = self.futile.wrapping_add(1);
        if !self.futile.is_multiple_of(FUTILE_TURNS) {
            return Turn::Again;
        }
        let now = Instant::now();
        if self.futile == FUTILE_TURNS {
            self.futile_since = Some(now);
        }
        let lasts = self.futile_since.is_some_and(|since| now - since >= FUTILE_MIN);
        if !lasts || self.reaper.arm_all_the_same(&mut self.ring) {
            return Turn::Again;
        }
        Turn::Retry { after_ms: 1 << RETRY_SHIFT_MAX }
    }

    /// What else keeps the loop from sleeping, where more was asked for than that completions wake it.
    #[cold]
    fn rest_otherwise(&mut self, gathering: bool) -> Option<Turn> {
        if self.polled.as_ref().is_some_and(|polled| polled.is_busy()) {
            return Some(Turn::Again);
        }
        if self.refused == 0 && gathering {
            return Some(self.wait_for_more());
        }
        // The eventfd stays off: nobody is to be woken.
        let polls = self.refused == 0 && !self.in_flight.is_empty() && self.polls();
        polls.then_some(Turn::Again)
    }

    /// Whether to look again, and not to sleep, while something is in flight.
    fn polls(&mut self) -> bool {
        match self.reap {
            Reap::Eventfd => false,
            Reap::Poll => true,
            // Who comes round to a thread that is waking up wakes it again and again.
            Reap::PollBriefly if self.ring.sleeps() => false,
            Reap::PollBriefly => {
                let moved = self.stats.submitted + self.stats.completed;
                let (seen, since) = &mut self.brisk;
                if *seen != moved {
                    (*seen, *since) = (moved, Some(Instant::now()));
                }
                since.is_some_and(|since| since.elapsed() < BRIEFLY)
            }
        }
    }

    /// Whether there is something that could be submitted now.
    #[inline]
    fn wants_to_publish(&self) -> bool {
        // What waits for a drain waits for what the kernel has. That was looked at before the last completions
        // were collected; where it has nothing now, nothing would wake us.
        let blocked = self.order.is_blocked() && self.kernel_has_any();
        // A chain whose end is not staged waits for it, however often we come round.
        let staged = self.staged.len() > self.open_chain && !blocked;
        staged || !self.urgent.is_empty() || self.wants_many() || self.cancels.wait()
    }

    fn kernel_has_any(&self) -> bool {
        let polled = self.polled.as_ref().is_some_and(|polled| polled.is_busy());
        polled || self.in_flight.with_kernel() > 0 || self.in_flight.many_with_kernel() > 0
    }

    /// The eventfd became readable.
    pub fn woken(&mut self) {
        self.readable = true;
        self.stats.wakeups += 1;
    }

    /// A waiter was woken by the eventfd, and has cleared it.
    pub fn woken_elsewhere(&mut self) {
        self.stats.wakeups += 1;
    }

    /// Submits what is staged now, without collecting: for callers who compute before they await.
    pub fn flush(&mut self) {
        if self.life == Life::Running {
            let _ = self.submit(false);
        }
    }

    /// One enter for everything staged that the submission queue has room for. With `reap`, also
    /// when nothing is staged but the kernel holds completions back.
    pub(super) fn submit(&mut self, reap: bool) -> Result<(), ()> {
        if self.plain { self.submit_by_enter(reap, true) } else { self.submit_otherwise(reap) }
    }

    /// The same where something else than an enter of what is staged was asked for.
    #[cold]
    fn submit_otherwise(&mut self, reap: bool) -> Result<(), ()> {
        self.submit_polled()?;
        let publish = self.gather.is_off() || !reap || !self.holds_back();
        if self.polling_as.is_some() {
            self.submit_to_thread(reap, publish)
        } else {
            self.submit_by_enter(reap, publish)
        }
    }

    #[inline(always)]
    #[allow(clippy::inline_always)] // Each round of a turn comes through here.
    fn submit_by_enter(&mut self, reap: bool, publish: bool) -> Result<(), ()> {
        let staged = !self.staged.is_empty() || self.cancels.wait() || self.order.has_others();
        if staged && publish {
            self.publish();
        }
        let pending = self.ring.unsubmitted();
        if pending == 0 && !(reap && self.ring.wants_enter()) {
            self.refused = 0;
            return Ok(());
        }
        self.stats.enters += 1;
        self.stats.overflows += u64::from(self.ring.overflown());
        match self.ring.enter(0, reap) {
            Ok(taken) => {
                self.stats.submitted += taken as u64;
                self.stats.submitting_enters += u64::from(taken > 0);
                // Part of them is progress; none at all is a refusal without an errno.
                self.refused = match taken {
                    0 if pending > 0 => self.refused.saturating_add(1),
                    _ => u32::from(taken < pending),
                };
                if !self.chains.is_empty() {
                    self.note_cut_chains(taken);
                }
            }
            Err(error) => self.enter_refused(&error)?,
        }
        if self.refused > 0 && reap { self.fetch_all_the_same() } else { Ok(()) }
    }

    /// An enter that could not submit all has not looked for completions either (`io_uring_enter` in
    /// Linux), and what it lacks may be what these give back.
    #[cold]
    fn fetch_all_the_same(&mut self) -> Result<(), ()> {
        if !self.ring.wants_enter() {
            return Ok(());
        }
        self.stats.enters += 1;
        match self.ring.fetch() {
            Err(error) if !is_refusal(&error) => self.enter_refused(&error),
            // Refused as well: the one before it counts.
            _ => Ok(()),
        }
    }

    #[cold]
    pub(super) fn enter_refused(&mut self, error: &io::Error) -> Result<(), ()> {
        if is_refusal(error) {
            self.stats.refusals += 1;
            self.refused = self.refused.saturating_add(1);
            return Ok(());
        }
        // Anything else says that the ring itself is gone (EBADF, EBADFD, ENXIO; EOWNERDEAD: its
        // polling thread) or that we are wrong about it (EFAULT, EINVAL, EEXIST): nothing can be
        // relied on any more.
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        self.life = Life::Failed { errno, told: false };
        self.listed = None;
        Err(())
    }

    /// The same with a polling thread, which takes what is published by itself: no system call while
    /// it is awake.
    fn submit_to_thread(&mut self, reap: bool, publish: bool) -> Result<(), ()> {
        // Cancels and many are counted where they go. What leaves the lists and is not over goes too.
        let (went, lists) = (self.went_uncounted(), self.staged.len() + self.urgent.len());
        let ready = self.ready.len();
        if publish {
            self.publish();
        }
        // The thread takes a chain whole: `publish_chain` saw to that.
        self.chains.clear();
        let left = lists - self.staged.len() - self.urgent.len() - (self.ready.len() - ready);
        let published = (left as u64) + (self.went_uncounted() - went);
        self.stats.submitted += published;
        self.stats.submitting_enters += u64::from(published > 0);
        // The queue is full: the thread is slower than we are, and there is no use in spinning.
        let still = published == 0 && self.ready.len() == ready;
        let stuck = still && publish && self.wants_to_publish();
        self.refused = if stuck { self.refused.saturating_add(1) } else { 0 };
        self.stats.overflows += u64::from(reap && self.ring.overflown());
        match self.ring.wake(reap) {
            Ok(entered) => {
                self.stats.enters += u64::from(entered);
                Ok(())
            }
            Err(error) => {
                self.stats.enters += 1;
                self.enter_refused(&error)
            }
        }
    }

    const fn went_uncounted(&self) -> u64 {
        self.stats.cancels + self.in_flight.many_with_kernel() as u64
    }
}

/// Whether enter is to be tried again. EAGAIN: no memory for the requests now. EBUSY: completions must
/// be collected first. EINTR: a signal. The entries stay in the queue. `io_uring_enter(2)`.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::EINTR))
}
