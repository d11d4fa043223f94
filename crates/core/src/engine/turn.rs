//! A turn: everything staged goes to the kernel in one enter, and what is complete is collected.

use std::io;
use std::time::{Duration, Instant};

use super::{BATCH_MAX, Completion, Engine, Life, Reap, Turn};
use crate::in_flight::{Arrived, Sqe, control_user_data};
use crate::ring::Ring;

/// A turn looks at the clock after each so many rounds. With 1024 operations always in flight the
/// median gap of a 1 ms timer is 1.16 ms with 4 rounds, 2.7 with 16, 15.7 with 64.
const ROUNDS_UNTIMED: u32 = 4;
/// Rounds that a turn has at most: with one short operation at a time, 16 rounds cost 843 ns an
/// operation and 4 cost 947, and all 16 are over in 14 µs.
const ROUNDS_MAX: u32 = 64;
/// A turn delivers no more when this much time has gone since its first delivery.
pub(super) const TURN_MAX: Duration = Duration::from_micros(200);
/// Refusals of enter that are met with another loop iteration; later ones wait for a timer.
const REFUSALS_UNTIMED: u32 = 4;
/// Longest wait before enter is tried again, in milliseconds: 2^5.
const RETRY_SHIFT_MAX: u32 = 5;
/// Bytes that the submitting thread copies inside one enter, beyond which the rest waits for the next:
/// what bounds how long enter takes, and with it how late a timer can be.
pub(super) const INLINE_ENTER_BYTES: u32 = 1 << 20;
/// Cancels asked for in one enter. What they cancel stays in the list they are looked up in until the
/// kernel has completed it, of which it does 20 in an enter (`IO_LOCAL_TW_DEFAULT_MAX`).
const CANCELS_MAX: usize = 16;

/// What reads of the page cache cost the thread that submits them: it copies inside enter.
#[derive(Clone, Copy, Debug)]
pub struct InlinePolicy {
    /// Reads shorter than this are always inline: handing one over costs more than the copy.
    pub small_bytes: u32,
    /// A read that is alone, nothing staged or in flight beside it, is inline up to this length.
    pub alone_bytes: u32,
    /// Otherwise reads are inline until this many bytes were submitted in a turn; the rest goes whole
    /// to kernel workers (IOSQE_ASYNC), where several cores copy.
    pub turn_bytes: u32,
}

impl Default for InlinePolicy {
    fn default() -> Self {
        Self { small_bytes: 64 << 10, alone_bytes: 1 << 20, turn_bytes: 128 << 10 }
    }
}

impl InlinePolicy {
    /// Whether a read goes to a kernel worker; counts it against the turn's bytes if not.
    #[inline]
    pub(super) fn punts(self, inline_bytes: u32, alone: bool, turn_bytes: &mut u32) -> bool {
        if inline_bytes < self.small_bytes || (alone && inline_bytes <= self.alone_bytes) {
            return false;
        }
        let total = turn_bytes.saturating_add(inline_bytes);
        if total > self.turn_bytes {
            return true;
        }
        *turn_bytes = total;
        false
    }
}

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
            self.many_started = None;
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

    /// Fills `out`; false when nothing is complete.
    #[inline]
    pub(super) fn collect(&mut self) -> bool {
        let Self { ring, in_flight, arena, files, out, ready, stats, .. } = self;
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
                Arrived::Stale => stats.stale += 1,
                Arrived::More | Arrived::Control => {}
            }
        });
        if !self.plain {
            self.collect_polled();
        }
        let Self { out, stats, clock, .. } = self;
        stats.completed += out.len() as u64;
        if out.is_empty() {
            return false;
        }
        clock.note_reaped();
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
            return turn;
        }
        // What only an enter brings into the queue is no reason to spin while enter is refused.
        let came = self.reaper.arm(&mut self.ring);
        if came && (refused <= REFUSALS_UNTIMED || self.ring.has_completions()) {
            return Turn::Again;
        }
        match refused {
            0 => Turn::Block,
            1..=REFUSALS_UNTIMED => Turn::Again,
            _ => {
                Turn::Retry { after_ms: 1 << (refused - REFUSALS_UNTIMED - 1).min(RETRY_SHIFT_MAX) }
            }
        }
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
        let polls = self.reap == Reap::Poll && self.refused == 0 && !self.in_flight.is_empty();
        polls.then_some(Turn::Again)
    }

    /// Whether there is something that could be submitted now.
    #[inline]
    fn wants_to_publish(&self) -> bool {
        // A chain whose end is not staged waits for it, however often we come round.
        let staged = self.staged.len() > self.open_chain && !self.order.is_blocked();
        staged || !self.urgent.is_empty() || self.wants_many() || !self.cancels.is_empty()
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
        let staged = !self.staged.is_empty() || !self.cancels.is_empty() || self.order.has_others();
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
                Ok(())
            }
            Err(error) => self.enter_refused(&error),
        }
    }

    #[cold]
    pub(super) fn enter_refused(&mut self, error: &io::Error) -> Result<(), ()> {
        match error.raw_os_error() {
            // EAGAIN: no memory for the requests now. EBUSY: completions must be collected
            // first. EINTR: a signal. The entries stay in the queue. `io_uring_enter(2)`.
            Some(libc::EAGAIN | libc::EBUSY | libc::EINTR) => {
                self.stats.refusals += 1;
                self.refused = self.refused.saturating_add(1);
                Ok(())
            }
            // Anything else says that the ring itself is gone (EBADF, EBADFD, ENXIO; EOWNERDEAD: its
            // polling thread) or that we are wrong about it (EFAULT, EINVAL, EEXIST): nothing can
            // be relied on any more.
            errno => {
                let errno = errno.unwrap_or(libc::EIO);
                self.life = Life::Failed { errno, told: false };
                Err(())
            }
        }
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

    /// Moves what is staged into the submission queue: cancels first, chains whole or not at all.
    pub(super) fn publish(&mut self) {
        if !self.publish_cancels() || !self.publish_urgent() {
            return;
        }
        let any_staged = !self.staged.is_empty();
        self.publish_staged();
        if any_staged {
            self.clock.note_entered();
        }
        if !self.plain && self.staged.is_empty() {
            self.gather.begin_anew();
        }
        self.publish_many();
    }

    /// False when the queue is full.
    fn publish_cancels(&mut self) -> bool {
        let mut sq = self.ring.submission();
        for _ in 0..CANCELS_MAX {
            let Some(&target) = self.cancels.back() else { break };
            let entry = Ring::cancel_entry(target).user_data(control_user_data());
            if !sq.push(&Sqe::control(entry)) {
                return false;
            }
            self.cancels.pop_back();
            self.stats.cancels += 1;
        }
        true
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
                sq.push(self.in_flight.submit(slot, false));
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
                let went = (!waiting.drain || self.may_drain()) && self.publish_chain();
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
            let to_worker =
                self.inline.punts(waiting.inline_bytes, alone, &mut self.inline_bytes_turn);
            self.stats.punted += u64::from(to_worker);
            if !to_worker {
                inline_left = inline_left.saturating_sub(waiting.inline_bytes);
            }
            sq.push(self.in_flight.submit(slot, to_worker));
        }
    }

    /// Publishes the chain at the front of what is staged, or the single operation that drains.
    /// False when it has to wait: for room, or for its end to be staged. A chain split over two
    /// submissions would be two chains.
    fn publish_chain(&mut self) -> bool {
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
            return false;
        }
        let members: Vec<u32> = self.staged.drain(..length).collect();
        let before = sq.len();
        for &slot in &members {
            sq.push(self.in_flight.submit(slot, false));
        }
        drop(sq);
        if drains {
            let last = self.in_flight.target(members[length - 1]);
            self.order.start_drain(last.user_data);
        }
        if length > 1 {
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
