//! Ties the rooms together. [`Engine::stage`] takes an operation in, [`Engine::turn`] submits and
//! collects and says what the event loop should do next.
//!
//! Knows nothing of JavaScript or libuv. Never blocks, except in [`Engine::shutdown`], and there
//! for no longer than it is told.

mod cancels;
mod end;
mod gather;
mod inline;
mod many;
mod order;
mod pipe;
mod polled;
mod post;
mod publish;
mod registered;
mod stage;
mod stamps;
mod turn;

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use crate::arena::{Arena, ArenaOptions};
use crate::capabilities::{Capabilities, Limits};
use crate::credentials::Credentials;
use crate::files::Files;
use crate::in_flight::{InFlight, Payload};
use crate::peers::Peer;
use crate::reaper::Reaper;
use crate::ring::Ring;
use crate::setup::Setup;
use crate::waiter::Waiter;

use cancels::Cancels;
use gather::Gather;
use order::Order;
use polled::Polled;
use registered::register_file_table;
use stamps::Clock;

pub use inline::InlinePolicy;
pub use many::{MANY_MAX, ManyRequest};
pub use pipe::Pipe;
pub use stamps::Stamps;

/// Completions handed over at once.
pub const BATCH_MAX: usize = 4096;
/// In place of a slot in a [`Completion`]: it is no operation's, and its result is a message that another
/// engine has posted ([`crate::Opcode::MsgRing`]).
pub const MESSAGE_SLOT: u32 = u32::MAX;

/// Operations of a chain, at most, with a polling thread. One that several rings share takes so many
/// entries of each at a time (`IORING_SQPOLL_CAP_ENTRIES_VALUE` in the kernel), and a chain that it
/// takes in two parts is two chains. Whether others will attach is not known when a chain is staged.
const POLLED_CHAIN_MAX: usize = 8;

/// How it is learned that something is complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reap {
    /// The loop sleeps, and the eventfd wakes it.
    #[default]
    Eventfd,
    /// The loop does not sleep while anything is in flight, and looks each time it comes round.
    Poll,
    /// So for 200 µs after something went to the kernel or came from it, which is longer than a disk
    /// takes; then as with `Eventfd`.
    PollBriefly,
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
    /// How completions are found.
    pub reap: Reap,
    /// Poll devices for the completions of direct reads and writes, on a ring beside.
    pub iopoll: bool,
    /// How long what is staged waits for more; zero: for the rest of the turn of the event loop.
    pub flush_delay: Duration,
}

/// A slot's operation is complete with this result: what the system call would return, or a negated
/// errno. Or a message ([`MESSAGE_SLOT`]).
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
    /// The loop may sleep, for at most this long: enter was refused, or missed what a cancel was for,
    /// and is tried again.
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
    /// Messages that other engines have posted.
    pub messages: u64,
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
#[allow(clippy::struct_excessive_bools)] // Each answers a question of its own.
pub struct Engine {
    ring: Ring,
    polled: Option<Box<Polled>>,
    reaper: Reaper,
    arena: Arena,
    files: Files,
    in_flight: InFlight,
    inline: InlinePolicy,
    /// Slots of operations checked and waiting for the next submission, oldest first.
    staged: VecDeque<u32>,
    /// Quiet operations, which go before them.
    urgent: VecDeque<u32>,
    order: Order,
    cancels: Cancels,
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
    /// What was delivered before this turn.
    delivered_before: u64,
    many_started: Option<Instant>,
    /// Submissions since some of many went, while some wait.
    passed_over: u32,
    /// Whether a chain found no room in the submission queue, lately.
    kept_back: bool,
    refused: u32,
    /// Turns since the last completion that ended with the kernel's word that an enter would bring one, and
    /// since when there were many.
    futile: u32,
    futile_since: Option<Instant>,
    readable: bool,
    life: Life,
    /// Its place among those that can be posted to, while it works.
    listed: Option<Peer>,
    /// Whether messages are waited for.
    listening: bool,
    /// Whether the kernel had let go of everything when the engine was closed.
    let_go: bool,
    register: bool,
    buffer_table: Option<Result<(), i32>>,
    registered_files: u32,
    /// Operations of a chain, at most.
    chain_max: usize,
    /// With a polling thread: as whom it opens files.
    polling_as: Option<Credentials>,
    reap: Reap,
    /// With [`Reap::PollBriefly`]: how many operations had gone and come, and since when no more did.
    brisk: (u64, Option<Instant>),
    /// Nothing of these is asked for: no polling thread, no ring that polls, no flush delay, no loop that
    /// polls. One look at this is all that they cost everybody else.
    plain: bool,
    gather: Gather,
    clock: Clock,
    stats: Stats,
}

impl Engine {
    /// Makes the ring, the eventfd and an empty arena.
    ///
    /// # Errors
    /// The errno of `io_uring_setup(2)` ([`Ring::new`]), of `eventfd(2)`, of `io_uring_register(2)` for
    /// restrictions, or EINVAL for an arena whose slab is not a power of two from 64 KiB to 4 MiB.
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
            let limited = ring.limit_workers(options.workers.0, options.workers.1);
            ring.note_refused("REGISTER_IOWQ_MAX_WORKERS", limited.map(drop));
        }
        let mut polled =
            if options.iopoll { Some(Box::new(Polled::new(&options, &ring)?)) } else { None };
        let registered_files = if options.unregistered {
            0
        } else {
            register_file_table(&mut ring, polled.as_deref_mut())
        };
        ring.enable()?;
        if let Some(polled) = &polled {
            polled.ring.enable()?;
        }
        let setup = *ring.granted();
        Ok(Self {
            listed: Some(Peer::list(ring.descriptor())),
            listening: false,
            ring,
            polled,
            reaper,
            arena: Arena::new(options.arena),
            files: Files::new(registered_files),
            in_flight: InFlight::default(),
            inline: options.inline,
            staged: VecDeque::with_capacity(256),
            urgent: VecDeque::new(),
            order: Order::default(),
            cancels: Cancels::default(),
            ready: Vec::new(),
            out: Vec::with_capacity(BATCH_MAX),
            chains: Vec::new(),
            open_chain: 0,
            round: 0,
            turn_started: None,
            inline_bytes_turn: 0,
            delivered_before: 0,
            many_started: None,
            passed_over: 0,
            kept_back: false,
            refused: 0,
            futile: 0,
            futile_since: None,
            readable: false,
            life: Life::Running,
            let_go: false,
            register: !options.unregistered,
            buffer_table: None,
            registered_files,
            chain_max: match setup.sqpoll {
                Some(_) => POLLED_CHAIN_MAX.min(setup.entries as usize),
                None => setup.entries as usize,
            },
            reap: options.reap,
            brisk: (0, None),
            plain: setup.sqpoll.is_none()
                && !options.iopoll
                && options.flush_delay.is_zero()
                && options.reap == Reap::Eventfd,
            gather: Gather::new(options.flush_delay),
            polling_as: setup.sqpoll.map(|_| Credentials::of_now()),
            clock: Clock::default(),
            stats: Stats::default(),
        })
    }

    // ---- what operations leave ----------------------------------------------------------------

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

    /// Takes what became of each of many that were staged at `slot`, by [`Self::stage_many`].
    #[must_use]
    pub fn take_counts(&mut self, slot: u32) -> Option<Vec<i32>> {
        match self.in_flight.take_payload(slot) {
            Some(Payload::Counts(counts)) => Some(counts),
            _ => None,
        }
    }

    // ---- looking in ---------------------------------------------------------------------------

    /// The arena, for taking and giving back chunks.
    #[inline]
    pub const fn arena(&mut self) -> &mut Arena {
        &mut self.arena
    }

    /// The file table.
    pub const fn files(&mut self) -> &mut Files {
        &mut self.files
    }

    /// The ring's descriptor, for other rings to attach to and to post to while this engine lives.
    #[must_use]
    pub fn ring_descriptor(&self) -> RawFd {
        self.ring.descriptor()
    }

    /// The descriptor the event loop waits on.
    #[must_use]
    pub fn wait_descriptor(&self) -> RawFd {
        self.reaper.descriptor()
    }

    /// Starts a thread that calls `wake` when the loop should take a turn, for loops that can watch no
    /// descriptor. Before that turn, [`Self::woken_elsewhere`] takes the place of [`Self::woken`].
    ///
    /// # Errors
    /// The errno of `fcntl(2)`, `eventfd(2)`, `timerfd_create(2)` or `clone(2)`.
    pub fn start_waiter(&self, wake: impl FnMut() -> bool + Send + 'static) -> io::Result<Waiter> {
        Waiter::start(self.reaper.share()?, wake)
    }

    /// Whether the event loop has to stay alive: something is staged, in flight or undelivered, or
    /// messages are waited for.
    #[inline]
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.life == Life::Running
            && (!self.in_flight.is_empty() || !self.ready.is_empty() || self.listening)
    }

    /// Operations staged or with the kernel. Many under one slot count as one.
    #[must_use]
    pub const fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether the operation at `slot` is staged and the kernel has not got it.
    #[must_use]
    pub fn is_staged(&self, slot: u32) -> bool {
        self.in_flight.is_staged(slot)
    }

    /// Counters.
    #[must_use]
    pub const fn stats(&self) -> Stats {
        self.stats
    }

    /// What the kernel granted, and what it refused.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.ring.capabilities()
    }

    /// The limits that hold now.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let limit = |resource| rustix::process::getrlimit(resource).current;
        Limits {
            chain: self.chain_max as u32,
            workers: self.ring.limit_workers(0, 0).ok(),
            memlock_bytes: limit(rustix::process::Resource::Memlock),
            open_files: limit(rustix::process::Resource::Nofile),
        }
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
}

#[cfg(test)]
mod tests;
