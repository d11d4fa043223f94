//! Ties the rooms together. [`Engine::stage`] takes an operation in, [`Engine::turn`] submits and
//! collects and says what the event loop should do next.
//!
//! Knows nothing of JavaScript or libuv. Never blocks, except in [`Engine::shutdown`], and there
//! for no longer than it is told.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use io_uring::{opcode, types};

use crate::arena::{Arena, ArenaOptions, ChunkId, Registration};
use crate::files::{BadFile, FileHandle, Files};
use crate::in_flight::{
    Arrived, Cancelling, Held, InFlight, Payload, SLOTS_MAX, Sqe, Target, control_user_data,
};
use crate::operation::{self, HARDLINK, LINK, Opcode, Prepared, Refusal, Request};
use crate::reaper::Reaper;
use crate::ring::{Capabilities, Ring, Setup};

/// Completions handed over at once.
pub const BATCH_MAX: usize = 4096;
/// A turn looks at the clock after each so many rounds. With 1024 operations always in flight the
/// median gap of a 1 ms timer is 1.16 ms with 4 rounds, 2.7 with 16, 15.7 with 64.
const ROUNDS_UNTIMED: u32 = 4;
/// Rounds that a turn has at most: with one short operation at a time, 16 rounds cost 843 ns an
/// operation and 4 cost 947, and all 16 are over in 14 µs.
const ROUNDS_MAX: u32 = 64;
/// A turn delivers no more when this much time has gone since its first delivery.
const TURN_MAX: Duration = Duration::from_micros(200);
/// Refusals of enter that are met with another loop iteration; later ones wait for a timer.
const REFUSALS_UNTIMED: u32 = 4;
/// Longest wait before enter is tried again, in milliseconds: 2^5.
const RETRY_SHIFT_MAX: u32 = 5;
/// Slabs past this size are not pinned: it would hold the thread up for too long.
const REGISTERED_SLAB_BYTES_MAX: usize = 16 << 20;
/// Cancels asked for in one enter. What they cancel stays in the list they are looked up in until the
/// kernel has completed it, of which it does 20 in an enter (`IO_LOCAL_TW_DEFAULT_MAX`).
const CANCELS_MAX: usize = 16;
/// Places in the registered file table; files past it are named by descriptor.
const REGISTERED_FILES: u32 = 1024;
/// Places in the registered buffer table; slabs past it are used unregistered.
const REGISTERED_SLABS: u32 = 4096;

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
        Self { small_bytes: 64 << 10, alone_bytes: 256 << 10, turn_bytes: 128 << 10 }
    }
}

impl InlinePolicy {
    /// Whether a read goes to a kernel worker; counts it against the turn's bytes if not.
    #[inline]
    fn punts(self, inline_bytes: u32, alone: bool, turn_bytes: &mut u32) -> bool {
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

/// How an engine is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct EngineOptions {
    /// The ring.
    pub setup: Setup,
    /// The arena.
    pub arena: ArenaOptions,
    /// When cached reads go to kernel workers.
    pub inline: InlinePolicy,
    /// Caps on the kernel's workers (bounded, unbounded); 0 leaves the kernel's own.
    pub workers: (u32, u32),
    /// Leave files and memory unregistered.
    pub unregistered: bool,
}

/// A slot's operation is complete with this result: what the system call would return, or a negated
/// errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Completion {
    /// The slot.
    pub slot: u32,
    /// The result.
    pub result: i32,
}

/// What the event loop should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Hand over [`Engine::completions`], then call `turn` again.
    Deliver,
    /// The loop may sleep: the eventfd wakes it.
    Block,
    /// The loop must come round without sleeping: there is more to do.
    Again,
    /// The loop may sleep, for at most this long: enter was refused and is tried again.
    Retry {
        /// Milliseconds.
        after_ms: u32,
    },
    /// enter failed with this errno. Everything in flight is lost to us; said once.
    Failed(i32),
}

/// Counters, since the engine was made unless a name says otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// SQEs that the kernel took, cancels included.
    pub submitted: u64,
    /// Operations completed.
    pub completed: u64,
    /// Calls of enter.
    pub enters: u64,
    /// Calls of enter that submitted something.
    pub submitting_enters: u64,
    /// Calls of enter refused with EAGAIN, EBUSY or EINTR.
    pub refusals: u64,
    /// Turns that found the completion queue overflown.
    pub overflows: u64,
    /// CQEs of nobody, dropped.
    pub stale: u64,
    /// Reads sent to a kernel worker by the inline policy.
    pub punted: u64,
    /// Cancels asked of the kernel.
    pub cancels: u64,
    /// Times the loop was woken by the eventfd.
    pub wakeups: u64,
}

/// Whether the engine still works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Running,
    /// enter failed with this errno.
    Failed {
        errno: i32,
        told: bool,
    },
    Closed,
}

/// A ring with all it needs, for one thread.
pub struct Engine {
    ring: Ring,
    reaper: Reaper,
    arena: Arena,
    files: Files,
    in_flight: InFlight,
    inline: InlinePolicy,
    /// Slots of operations checked and waiting for the next submission, oldest first.
    staged: VecDeque<u32>,
    /// user_data of operations to cancel, the next one last; they go before everything staged.
    cancels: VecDeque<u64>,
    /// Slots that are over without the kernel: cancelled before submission. They are free, and what
    /// they hold is let go, when they are delivered, like all others.
    ready: Vec<u32>,
    /// What the next delivery hands over.
    out: Vec<Completion>,
    /// Chains in the submission queue: entries before the chain, then its slots.
    chains: Vec<(usize, Vec<u32>)>,
    open_chain: usize,
    round: u32,
    turn_started: Option<Instant>,
    inline_bytes_turn: u32,
    refused: u32,
    readable: bool,
    life: Life,
    /// Whether the kernel had let go of everything when the engine was closed.
    let_go: bool,
    register: bool,
    buffer_table: Option<Result<(), i32>>,
    registered_files: u32,
    stats: Stats,
}

impl Engine {
    /// Makes the ring, the eventfd and an empty arena.
    ///
    /// # Errors
    /// The errno of `io_uring_setup(2)` ([`Ring::new`]), of `eventfd(2)`, or EINVAL for an arena
    /// whose slab is not a power of two from 64 KiB to 4 MiB.
    pub fn new(options: EngineOptions) -> io::Result<Self> {
        let slab_bytes = options.arena.slab_bytes;
        let slab_fits = (64 << 10..=crate::arena::SLAB_BYTES_MAX).contains(&slab_bytes);
        if !slab_fits || !slab_bytes.is_power_of_two() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut ring = Ring::new(options.setup)?;
        let reaper = Reaper::new(&mut ring)?;
        if options.workers != (0, 0) {
            // A kernel before 5.15 has no caps; its workers are then as many as it likes.
            let _ = ring.limit_workers(options.workers.0, options.workers.1);
        }
        let wanted = if options.unregistered { 0 } else { registered_file_places() };
        let registered_files = match ring.register_file_table(wanted) {
            Ok(()) => wanted,
            Err(_) => 0,
        };
        Ok(Self {
            ring,
            reaper,
            arena: Arena::new(options.arena),
            files: Files::new(registered_files),
            in_flight: InFlight::default(),
            inline: options.inline,
            staged: VecDeque::with_capacity(256),
            cancels: VecDeque::new(),
            ready: Vec::new(),
            out: Vec::with_capacity(BATCH_MAX),
            chains: Vec::new(),
            open_chain: 0,
            round: 0,
            turn_started: None,
            inline_bytes_turn: 0,
            refused: 0,
            readable: false,
            life: Life::Running,
            let_go: false,
            register: !options.unregistered,
            buffer_table: None,
            registered_files,
            stats: Stats::default(),
        })
    }

    // ---- staging ------------------------------------------------------------------------------

    /// Checks an operation and takes hold of what it touches; the next submission carries it.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing is held and the slot is as it was. A chain that was to go on with
    /// it is cancelled whole: its operations complete with ECANCELED, and the next begins anew.
    #[inline]
    pub fn stage(&mut self, request: &Request) -> Result<(), Refusal> {
        let staged = self.take_in(request);
        if staged.is_err() && self.open_chain > 0 {
            self.cancel_open_chain();
        }
        staged
    }

    #[cold]
    fn cancel_open_chain(&mut self) {
        let members = self.staged.len() - self.open_chain..;
        for &slot in self.staged.range(members) {
            self.in_flight.cancel(slot);
            self.in_flight.end_chain(slot);
        }
        self.open_chain = 0;
    }

    #[inline]
    fn take_in(&mut self, request: &Request) -> Result<(), Refusal> {
        match self.life {
            Life::Running => {}
            Life::Failed { .. } => return Err(Refusal::Failed),
            Life::Closed => return Err(Refusal::Closed),
        }
        if request.slot >= SLOTS_MAX {
            return Err(Refusal::SlotRange);
        }
        if !self.in_flight.is_free(request.slot) {
            return Err(Refusal::SlotBusy);
        }
        let (opcode, flags) = operation::decode(request.opcode)?;
        if self.open_chain + 1 > self.ring.granted().entries as usize {
            return Err(Refusal::ChainTooLong);
        }
        let prepared = match opcode {
            Opcode::Close => self.prepare_close(request, flags)?,
            Opcode::Read | Opcode::Write if request.chunk != 0 => {
                self.register_slab_of(request);
                operation::prepare(request, opcode, flags, &mut self.arena, &mut self.files)?
            }
            _ => operation::prepare(request, opcode, flags, &mut self.arena, &mut self.files)?,
        };
        self.open_chain = if prepared.linked { self.open_chain + 1 } else { 0 };
        self.in_flight.launch(request.slot, prepared);
        self.staged.push_back(request.slot);
        Ok(())
    }

    /// A close takes the file out of the table first, so that nothing staged later can reach it.
    fn prepare_close(&mut self, request: &Request, flags: u32) -> Result<Prepared, Refusal> {
        if flags & (LINK | HARDLINK) != 0 {
            return Err(Refusal::Argument);
        }
        let (descriptor, place) = self.files.remove(FileHandle::from_number(request.file))?;
        if let Some(place) = place {
            // The registered table has a reference of its own, which would keep the file open.
            let _ = self.ring.update_file(place, -1);
        }
        let entry = opcode::Close::new(types::Fd(descriptor.as_raw_fd())).build();
        let entry = entry.flags(operation::sqe_flags(flags));
        let mut held = Held::default();
        held.keep(Payload::Closing(descriptor));
        Ok(Prepared { entry, held, linked: false, inline_bytes: 0 })
    }

    /// Pins the slab of a direct operation's chunk when it is first used for one.
    #[inline]
    fn register_slab_of(&mut self, request: &Request) {
        if !matches!(self.buffer_table, Some(Ok(()))) {
            return;
        }
        let Ok((number, memory, Registration::Untried)) =
            self.arena.slab(ChunkId::from_number(request.chunk))
        else {
            return;
        };
        if !self.files.is_direct(FileHandle::from_number(request.file)) {
            return;
        }
        let fits = number < REGISTERED_SLABS && memory.len() <= REGISTERED_SLAB_BYTES_MAX;
        let registered = fits && self.ring.update_buffer(number, Some(memory)).is_ok();
        let outcome = if registered { Registration::Registered } else { Registration::Refused };
        self.arena.set_registration(number, outcome);
    }

    /// Cancels the operation at `slot`. It completes with ECANCELED, or with its true result when it
    /// was faster. Returns whether there was one.
    pub fn cancel(&mut self, slot: u32) -> bool {
        match self.in_flight.cancel(slot) {
            Cancelling::Nothing => false,
            Cancelling::Doomed => true,
            Cancelling::Ask(target) => {
                self.ask_to_cancel(target);
                true
            }
        }
    }

    /// Those are first that the kernel finds first. It looks for a timeout from the oldest on
    /// (`io_timeout_extract`), for all else in a hash table whose lists begin with the newest
    /// (`io_poll_find`). The other way round, 65,536 operations take it many seconds.
    fn ask_to_cancel(&mut self, target: Target) {
        if target.timeout {
            self.cancels.push_front(target.user_data);
        } else {
            self.cancels.push_back(target.user_data);
        }
    }

    // ---- the turn -----------------------------------------------------------------------------

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
        }
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
        self.rest()
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
    fn collect(&mut self) -> bool {
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
        stats.completed += out.len() as u64;
        !out.is_empty()
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
        // A chain whose end is not staged waits for it, however often we come round.
        let staged = self.staged.len() > self.open_chain;
        if refused == 0 && (staged || !self.cancels.is_empty()) {
            return Turn::Again;
        }
        if !self.ready.is_empty() || self.ring.has_completions() {
            return Turn::Again;
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

    /// The eventfd became readable.
    pub fn woken(&mut self) {
        self.readable = true;
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
    fn submit(&mut self, reap: bool) -> Result<(), ()> {
        if !self.staged.is_empty() || !self.cancels.is_empty() {
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
            Err(error) => match error.raw_os_error() {
                // EAGAIN: no memory for the requests now. EBUSY: completions must be collected
                // first. EINTR: a signal. The entries stay in the queue. `io_uring_enter(2)`.
                Some(libc::EAGAIN | libc::EBUSY | libc::EINTR) => {
                    self.stats.refusals += 1;
                    self.refused = self.refused.saturating_add(1);
                    Ok(())
                }
                // Anything else says that the ring itself is gone (EBADF, EBADFD, ENXIO) or that we
                // are wrong about it (EFAULT, EINVAL, EEXIST): nothing can be relied on any more.
                errno => {
                    let errno = errno.unwrap_or(libc::EIO);
                    self.life = Life::Failed { errno, told: false };
                    Err(())
                }
            },
        }
    }

    /// Moves what is staged into the submission queue: cancels first, chains whole or not at all.
    fn publish(&mut self) {
        let alone = self.in_flight.len() == 1;
        let mut sq = self.ring.submission();
        for _ in 0..CANCELS_MAX {
            let Some(&target) = self.cancels.back() else { break };
            let entry = Ring::cancel_entry(target).user_data(control_user_data());
            if !sq.push(&Sqe::control(entry)) {
                return;
            }
            self.cancels.pop_back();
            self.stats.cancels += 1;
        }
        while let Some(&slot) = self.staged.front() {
            let waiting = self.in_flight.staged(slot);
            if waiting.linked {
                drop(sq);
                if !self.publish_chain() {
                    return;
                }
                sq = self.ring.submission();
                continue;
            }
            if waiting.doomed {
                self.staged.pop_front();
                self.ready.push(slot);
                continue;
            }
            if sq.room() == 0 {
                return;
            }
            self.staged.pop_front();
            let to_worker =
                self.inline.punts(waiting.inline_bytes, alone, &mut self.inline_bytes_turn);
            self.stats.punted += u64::from(to_worker);
            sq.push(self.in_flight.submit(slot, to_worker));
        }
    }

    /// Publishes the chain at the front of what is staged. False when it has to wait: for room, or
    /// for its end to be staged. A chain split over two submissions would be two chains.
    fn publish_chain(&mut self) -> bool {
        let in_flight = &self.in_flight;
        let links = self.staged.iter().take_while(|&&slot| in_flight.staged(slot).linked).count();
        let length = links + 1;
        if length > self.staged.len() {
            return false;
        }
        // None of it has started. A chain that lost a member would run differently from what was
        // asked, so it is cancelled whole. That needs no room.
        if self.staged.range(..length).any(|&slot| in_flight.staged(slot).doomed) {
            self.ready.extend(self.staged.drain(..length));
            return true;
        }
        let mut sq = self.ring.submission();
        if length > sq.room() {
            return false;
        }
        let members: Vec<u32> = self.staged.drain(..length).collect();
        let before = sq.len();
        for &slot in &members {
            sq.push(self.in_flight.submit(slot, false));
        }
        self.chains.push((before, members));
        true
    }

    /// The kernel may take fewer entries than there are (it ran out of memory). If it stopped inside
    /// a chain, the rest of the chain starts by itself at the next enter, and may not count.
    fn note_cut_chains(&mut self, taken: usize) {
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

    // ---- what operations leave ----------------------------------------------------------------

    /// Takes the file that the open at `slot` gave into the table.
    ///
    /// # Errors
    /// [`BadFile`]; the descriptor is closed then.
    pub fn take_opened(&mut self, slot: u32) -> Result<(FileHandle, RawFd), BadFile> {
        match self.in_flight.take_payload(slot) {
            Some(Payload::Opened { descriptor, direct }) => self.add_file(descriptor, direct),
            _ => Err(BadFile::Unknown),
        }
    }

    /// Takes over an open descriptor: the queue closes it.
    ///
    /// # Errors
    /// [`BadFile::Unknown`] when it is no open descriptor, [`BadFile::Twice`] when this queue owns
    /// it already, [`BadFile::Full`].
    pub fn adopt(&mut self, fd: RawFd, direct: bool) -> Result<FileHandle, BadFile> {
        if !crate::ring::is_open(fd) {
            return Err(BadFile::Unknown);
        }
        if self.files.owns(fd) {
            return Err(BadFile::Twice);
        }
        self.add_file(crate::ring::own_descriptor(fd), direct).map(|(handle, _)| handle)
    }

    fn add_file(
        &mut self,
        descriptor: OwnedFd,
        direct: bool,
    ) -> Result<(FileHandle, RawFd), BadFile> {
        let fd = descriptor.as_raw_fd();
        let (handle, place) = self.files.insert(descriptor, direct)?;
        if let Some(place) = place {
            let registered = self.ring.update_file(place, fd).is_ok();
            self.files.set_registered(handle, registered);
        }
        if direct && self.register && self.buffer_table.is_none() {
            let table = self.ring.register_buffer_table(REGISTERED_SLABS);
            let errno = |error: io::Error| error.raw_os_error().unwrap_or(libc::EINVAL);
            self.buffer_table = Some(table.map_err(errno));
        }
        Ok((handle, fd))
    }

    /// Takes the 256 bytes of `struct statx` that the operation at `slot` left.
    #[must_use]
    pub fn take_stat(&mut self, slot: u32) -> Option<Vec<u8>> {
        match self.in_flight.take_payload(slot) {
            Some(Payload::Stat { buffer, .. }) => {
                Some(buffer.iter().flat_map(|word| word.to_ne_bytes()).collect())
            }
            _ => None,
        }
    }

    // ---- looking in ---------------------------------------------------------------------------

    /// The arena, for taking and giving back chunks.
    #[inline]
    pub const fn arena(&mut self) -> &mut Arena {
        &mut self.arena
    }

    /// Empties the buffer-table entries of slabs that were let go, so that their pages are free.
    fn unregister_retired(&mut self) {
        while let Some(number) = self.arena.take_retired() {
            let _ = self.ring.update_buffer(number, None);
        }
    }

    /// The file table.
    pub const fn files(&mut self) -> &mut Files {
        &mut self.files
    }

    /// The descriptor the event loop waits on.
    #[must_use]
    pub fn wait_descriptor(&self) -> RawFd {
        self.reaper.descriptor()
    }

    /// Whether the event loop has to stay alive: something is staged, in flight or undelivered.
    #[inline]
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.life == Life::Running && (!self.in_flight.is_empty() || !self.ready.is_empty())
    }

    /// Operations staged or with the kernel.
    #[must_use]
    pub const fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Counters.
    #[must_use]
    pub const fn stats(&self) -> Stats {
        self.stats
    }

    /// What the kernel granted.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.ring.capabilities()
    }

    /// Places in the registered file table; 0 when files are named by descriptor.
    #[must_use]
    pub const fn registered_files(&self) -> u32 {
        self.registered_files
    }

    /// Whether arena memory is registered: not yet tried, yes, or the errno that refused it.
    #[must_use]
    pub const fn buffer_table(&self) -> Option<Result<(), i32>> {
        self.buffer_table
    }

    // ---- the end ------------------------------------------------------------------------------

    /// Cancels everything, waits at most `patience` for the kernel to let go, and closes. Returns
    /// whether it let go; if not, the memory it may still touch is kept for ever.
    pub fn shutdown(&mut self, patience: Duration) -> bool {
        if self.life == Life::Closed {
            return self.let_go;
        }
        let clean = self.life == Life::Running && self.cancel_and_wait(patience);
        self.life = Life::Closed;
        self.let_go = clean;
        self.ready.clear();
        self.out.clear();
        if !clean {
            self.arena.leak();
            self.in_flight.leak();
        }
        clean
    }

    fn cancel_and_wait(&mut self, patience: Duration) -> bool {
        self.reaper.disarm(&mut self.ring);
        self.ready.extend(self.staged.drain(..));
        self.open_chain = 0;
        let started = Instant::now();
        let mut asked = false;
        loop {
            if self.submit(true).is_err() {
                return false;
            }
            let before = self.in_flight.len();
            while self.collect() {}
            if self.in_flight.is_empty() {
                return true;
            }
            if asked && started.elapsed() >= patience {
                return false;
            }
            let stuck = self.in_flight.len() == before;
            if asked && stuck && (self.cancels.is_empty() || self.refused > 0) {
                std::thread::sleep(Duration::from_micros(100));
            }
            // Again when nothing ends by it: a hard link starts when the one before it has been
            // cancelled, and the kernel does not find an operation that is on its way between two
            // queues. Each by its user_data: to cancel any (ASYNC_CANCEL_ANY) the kernel looks at all
            // for each, and 8,000 reads of a FIFO took 20 s in a few system calls.
            if self.cancels.is_empty() && (stuck || !asked) {
                let targets: Vec<Target> = self.in_flight.submitted().collect();
                for target in targets {
                    self.ask_to_cancel(target);
                }
            }
            asked = true;
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shutdown(Duration::from_millis(100));
    }
}

/// As many places as are useful and RLIMIT_NOFILE allows. `io_uring_register(2)`.
fn registered_file_places() -> u32 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(REGISTERED_FILES, |limit| {
        REGISTERED_FILES.min(limit.min(u64::from(u32::MAX)) as u32)
    })
}

#[cfg(test)]
mod tests;
