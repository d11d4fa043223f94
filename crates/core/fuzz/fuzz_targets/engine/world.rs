//! An engine and what is known of it from outside. Before each call the answer is predicted from the
//! documentation alone; the engine may not differ.

mod end;
mod files;
mod many;
mod staging;

use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use node_uring_core::engine::InlinePolicy;
use node_uring_core::{
    ArenaOptions, ChunkId, Completion, Engine, EngineOptions, FileHandle, Opcode, Pool, Setup,
    TaskRun, Turn,
};

use crate::memory::{Memory, Writable};
use crate::sandbox::Sandbox;
use crate::steps::{Plan, Step};

const POOLS: [Pool; 3] = [Pool::Alloc, Pool::Bounce, Pool::Result];
const OPCODES: [Opcode; 12] = [
    Opcode::Nop,
    Opcode::Read,
    Opcode::Write,
    Opcode::Fsync,
    Opcode::Ftruncate,
    Opcode::Openat,
    Opcode::Close,
    Opcode::Statx,
    Opcode::Timeout,
    Opcode::LinkTimeout,
    Opcode::Renameat,
    Opcode::Unlinkat,
];
const SLOTS_MAX: u32 = 1 << 20;
/// Whatever takes longer hangs. libFuzzer's own limit is higher: this one says what was out.
const DEADLINE: Duration = Duration::from_secs(10);
const FILES_MAX: usize = 100;

/// A file in the table.
struct Known {
    handle: FileHandle,
    /// Whether reads and writes end without a cancel, once the other ends of pipes are closed.
    ends: bool,
}

/// An operation that was accepted and has not been delivered.
struct Out {
    opcode: Opcode,
    file: Option<FileHandle>,
    chunk: Option<ChunkId>,
    writable: Option<Writable>,
    length: u64,
    /// Whether it ends without a cancel.
    ends: bool,
    /// Whether it keeps no loop alive.
    quiet: bool,
    /// The bytes of each, when they are many.
    many: Option<Vec<u32>>,
}

/// What a completed operation left at its slot.
#[derive(PartialEq)]
enum Left {
    Opened,
    Stat,
    /// Of many of so many bytes each.
    Counts(Vec<u32>),
}

enum OtherEnd {
    Writer(std::io::PipeWriter),
    Reader(std::io::PipeReader),
}

pub struct World<'a> {
    engine: Engine,
    sandbox: &'a Sandbox,
    entries: usize,
    memory: Memory,
    files: Vec<Known>,
    gone: Vec<FileHandle>,
    other_ends: Vec<OtherEnd>,
    out: HashMap<u32, Out>,
    left: HashMap<u32, Left>,
    open_chain: usize,
    accepted: u64,
}

impl<'a> World<'a> {
    pub fn new(plan: &Plan, sandbox: &'a Sandbox) -> Self {
        let entries = 1 << (plan.entries_shift % 7);
        let task_runs = [TaskRun::Defer, TaskRun::Cooperative, TaskRun::Interrupt];
        let setup = Setup {
            entries,
            cq_entries: entries << (plan.cq_shift % 3),
            task_run: task_runs[plan.task_run as usize % 3],
            no_sq_array: plan.no_sq_array,
            submit_all: plan.submit_all,
            registered_descriptor: plan.registered_descriptor,
            ..Setup::default()
        };
        let arena = ArenaOptions {
            slab_bytes: 64 << 10,
            // Smaller than a slab, or with room for a chunk that needs a slab alone.
            max_bytes: if plan.small_pools {
                [50_000, 4096, 100]
            } else {
                [256 << 10, 128 << 10, 5 << 20]
            },
            retain_bytes: [64 << 10; 3],
        };
        let inline = if plan.inline_small {
            InlinePolicy { small_bytes: 10, alone_bytes: 2000, turn_bytes: 1000 }
        } else {
            InlinePolicy::default()
        };
        let unregistered = plan.unregistered;
        let options = EngineOptions { setup, arena, inline, unregistered, ..Default::default() };
        let engine = Engine::new(options).expect("an engine");
        let entries = engine.capabilities().setup.entries as usize;
        let mut world = Self {
            engine,
            sandbox,
            entries,
            memory: Memory::default(),
            files: Vec::new(),
            gone: Vec::new(),
            other_ends: Vec::new(),
            out: HashMap::new(),
            left: HashMap::new(),
            open_chain: 0,
            accepted: 0,
        };
        world.adopt_file(false);
        world.adopt_pipe(false, false);
        for length in [100, 4096, 5000] {
            world.memory.take(world.engine.arena(), Pool::Alloc, length);
        }
        world
    }

    pub fn take(&mut self, step: Step) {
        match step {
            Step::Stage(staging) => self.stage(&staging),
            Step::Many(herd) => self.stage_many(&herd),
            Step::Turn => drop(self.turn()),
            Step::Flush => self.engine.flush(),
            Step::Woken => self.engine.woken(),
            Step::Cancel(slot) => self.cancel(slot.0),
            Step::Take { pool, length } => {
                let pool = POOLS[pool as usize % 3];
                self.memory.take(self.engine.arena(), pool, length.0);
            }
            Step::Disown(pick) => {
                let id = self.chunk(pick);
                self.memory.disown(self.engine.arena(), id);
            }
            Step::Hold { chunk, offset, length } => {
                let id = self.chunk(chunk);
                self.memory.hold_by_hand(self.engine.arena(), id, offset.0, length.0);
            }
            Step::Unhold(index) => {
                self.memory.unhold_by_hand(self.engine.arena(), index as usize);
            }
            Step::Fill { chunk, byte } => {
                let id = self.chunk(chunk);
                self.memory.fill(self.engine.arena(), id, byte);
            }
            Step::Zero(pick) => {
                let id = self.chunk(pick);
                self.memory.zero(self.engine.arena(), id);
            }
            Step::TakeOpened(slot) => self.take_opened(slot.0),
            Step::TakeStat(slot) => self.take_stat(slot.0),
            Step::TakeCounts(slot) => self.take_counts(slot.0),
            Step::AdoptPipe { to_write, direct } => self.adopt_pipe(to_write, direct),
            Step::AdoptFile { direct } => self.adopt_file(direct),
            Step::AdoptNumber(number) => self.adopt_number(number),
            Step::AdoptAgain(index) => self.adopt_again(index),
            Step::Feed { pipe, bytes } => self.feed(pipe, bytes),
            Step::HangUp(index) => {
                if !self.other_ends.is_empty() {
                    self.other_ends.swap_remove(index as usize % self.other_ends.len());
                }
            }
        }
        self.check_books();
    }

    fn turn(&mut self) -> Turn {
        let turn = self.engine.turn();
        match turn {
            Turn::Deliver => {
                let completions = self.engine.completions().to_vec();
                assert!(!completions.is_empty(), "Deliver has something to deliver");
                for completion in completions {
                    self.note_completed(completion);
                }
                self.check_memory();
            }
            Turn::Failed(errno) => panic!("enter failed with {errno}"),
            Turn::Block => {
                // An open chain waits for its end; all else is with the kernel.
                assert_eq!(self.engine.is_busy(), self.loud() > 0);
            }
            Turn::Again | Turn::Retry { .. } => {}
        }
        turn
    }

    fn note_completed(&mut self, Completion { slot, result }: Completion) {
        let out = self.out.remove(&slot);
        let out = out.unwrap_or_else(|| panic!("{slot} is nobody's, or came twice: {result}"));
        let plausible = match out.opcode {
            _ if result == -libc::ECANCELED => true,
            _ if let Some(many) = &out.many => result as usize == many.len(),
            Opcode::Nop => result == 0,
            // 0: so many others have completed.
            Opcode::Timeout => result == -libc::ETIME || (result == 0 && out.length > 0),
            // 4095 is the last errno; 512 to 531 are the kernel's own and never shown.
            _ if result < 0 => (-4095..0).contains(&result) && !(-531..=-512).contains(&result),
            Opcode::Read | Opcode::Write => result as u64 <= out.length,
            Opcode::Openat => result > 2,
            _ => result == 0,
        };
        assert!(plausible, "{:?} gave {result}", out.opcode);
        match (out.opcode, result) {
            _ if let Some(many) = out.many => drop(self.left.insert(slot, Left::Counts(many))),
            (Opcode::Openat, 0..) => drop(self.left.insert(slot, Left::Opened)),
            (Opcode::Statx, 0) => drop(self.left.insert(slot, Left::Stat)),
            _ => {}
        }
        if let Some(writable) = &out.writable {
            self.memory.written(writable);
        }
        if let Some(id) = out.chunk {
            self.memory.unhold(id);
        }
    }

    /// Operations that keep the loop alive.
    fn loud(&self) -> usize {
        self.out.values().filter(|out| !out.quiet).count()
    }

    fn check_memory(&self) {
        self.memory.check(self.out.values().filter_map(|out| out.writable.as_ref()));
    }

    fn check_books(&mut self) {
        assert_eq!(self.engine.in_flight(), self.loud());
        assert_eq!(self.engine.files().len(), self.files.len());
        for pool in POOLS {
            let stats = self.engine.arena().stats(pool);
            assert_eq!(stats.used_bytes, self.memory.used_bytes(pool), "{pool:?}");
            assert!(stats.mapped_bytes >= stats.used_bytes);
        }
        let stats = self.engine.stats();
        assert_eq!(stats.stale, 0, "a completion of nobody");
        assert_eq!(stats.completed, self.accepted - self.out.len() as u64);
    }
}

fn is_open(number: RawFd) -> bool {
    // SAFETY: F_GETFD takes no pointer, and any number may be asked.
    unsafe { libc::fcntl(number, libc::F_GETFD) != -1 }
}

/// Whether the descriptor is ready within so many milliseconds.
fn poll(number: RawFd, events: i16, timeout_ms: i32) -> bool {
    // SAFETY: the callers' descriptors are open during the call.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let started = Instant::now();
    loop {
        let mut ready = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
        let left = timeout_ms.saturating_sub(started.elapsed().as_millis() as i32).max(0);
        // SAFETY: one pollfd, ours.
        match unsafe { libc::poll(&raw mut ready, 1, left) } {
            // libFuzzer's own alarm.
            -1 => {}
            count => return count == 1,
        }
    }
}
