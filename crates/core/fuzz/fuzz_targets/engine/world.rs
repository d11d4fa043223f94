//! An engine and what is known of it from outside. Before each call the answer is predicted from the
//! documentation alone; the engine may not differ.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use node_uring_core::engine::InlinePolicy;
use node_uring_core::files::BadFile;
use node_uring_core::operation::{
    ASYNC, DRAIN, HARDLINK, LINK, QUIET, TIMEOUT_ABSOLUTE, TIMEOUT_SUCCEEDS, TRANSFER_BYTES_MAX,
};
use node_uring_core::{
    ArenaOptions, ChunkId, Completion, Engine, EngineOptions, FileHandle, Opcode, Pool, Refusal,
    Request, Setup, TaskRun, Turn,
};

use crate::memory::{Memory, Writable};
use crate::sandbox::Sandbox;
use crate::steps::{Ending, Pick, Plan, Staging, Step};

const POOLS: [Pool; 3] = [Pool::Alloc, Pool::Bounce, Pool::Result];
pub const OPCODES: [Opcode; 12] = [
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
pub const SLOTS_MAX: u32 = 1 << 20;
/// Whatever takes longer hangs. libFuzzer's own limit is higher: this one says what was out.
const DEADLINE: Duration = Duration::from_secs(10);
const FILES_MAX: usize = 100;

/// A file in the table.
pub struct Known {
    pub handle: FileHandle,
    /// Whether reads and writes end without a cancel, once the other ends of pipes are closed.
    pub ends: bool,
}

/// An operation that was accepted and has not been delivered.
pub struct Out {
    pub opcode: Opcode,
    pub file: Option<FileHandle>,
    pub chunk: Option<ChunkId>,
    pub writable: Option<Writable>,
    pub length: u64,
    /// Whether it ends without a cancel.
    pub ends: bool,
    /// Whether it keeps no loop alive.
    pub quiet: bool,
    /// The bytes of each, when they are many.
    pub many: Option<Vec<u32>>,
}

/// What a completed operation left at its slot.
#[derive(PartialEq)]
pub enum Left {
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
    pub engine: Engine,
    sandbox: &'a Sandbox,
    entries: usize,
    pub memory: Memory,
    pub files: Vec<Known>,
    gone: Vec<FileHandle>,
    other_ends: Vec<OtherEnd>,
    pub out: HashMap<u32, Out>,
    pub left: HashMap<u32, Left>,
    open_chain: usize,
    pub accepted: u64,
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

    // ---- staging ------------------------------------------------------------------------------

    pub fn chunk(&self, pick: Pick) -> ChunkId {
        let choose = |from: &[ChunkId], index: u8| match from {
            [] => ChunkId::from_number(0),
            _ => from[index as usize % from.len()],
        };
        match pick {
            Pick::Live(index) => choose(&self.memory.owned, index),
            Pick::Gone(index) => choose(&self.memory.gone, index),
            Pick::Number(number) => ChunkId::from_number(number),
        }
    }

    pub fn file(&self, pick: Pick) -> FileHandle {
        match pick {
            Pick::Live(index) if !self.files.is_empty() => {
                self.files[index as usize % self.files.len()].handle
            }
            Pick::Gone(index) if !self.gone.is_empty() => {
                self.gone[index as usize % self.gone.len()]
            }
            Pick::Live(_) | Pick::Gone(_) => FileHandle::from_number(0),
            Pick::Number(number) => FileHandle::from_number(number),
        }
    }

    fn stage(&mut self, staging: &Staging) {
        let path = Sandbox::tame(&staging.path.0);
        let request = Request {
            opcode: staging.opcode.0 | staging.flags.0,
            slot: staging.slot.0,
            file: self.file(staging.file).number(),
            chunk: self.chunk(staging.chunk).number(),
            offset: staging.offset.0,
            length: staging.length.0,
            position: staging.position.0,
            bytes: &path,
        };
        self.stage_request(&request);
    }

    fn stage_request(&mut self, request: &Request) {
        let expected = self.expect(request);
        match (self.engine.stage(request), expected) {
            (Ok(()), Some(out)) => self.note_staged(request, out),
            (Err(_), None) => self.open_chain = 0,
            (answer, expected) => {
                let expected = if expected.is_some() { "accepted" } else { "refused" };
                panic!("{request:?} should be {expected}: {answer:?}");
            }
        }
    }

    /// What a request becomes, or `None` when it has to be refused.
    fn expect(&self, request: &Request) -> Option<Out> {
        let opcode = *OPCODES.get((request.opcode & 0xff) as usize)?;
        let flags = request.opcode & !0xff;
        let quiet = flags & QUIET != 0;
        let known = flags & !(LINK | HARDLINK | DRAIN | ASYNC | QUIET) == 0
            && !(quiet && flags & (LINK | HARDLINK | DRAIN) != 0);
        let free = request.slot < SLOTS_MAX && !self.out.contains_key(&request.slot);
        if !known || !free || self.open_chain + 1 > self.entries {
            return None;
        }
        let fits = |number: u64, bits: u32| number < 1 << bits;
        let handle = FileHandle::from_number(request.file);
        let live = self.files.iter().find(|known| known.handle == handle);
        let is_path = |bytes: &[u8]| !bytes.is_empty() && bytes.len() < 4096 && !bytes.contains(&0);
        let path = is_path(request.bytes);
        let timing = request.offset & !(TIMEOUT_ABSOLUTE | TIMEOUT_SUCCEEDS) == 0;
        let chunk = ChunkId::from_number(request.chunk);
        let mut out = Out {
            opcode,
            file: Some(handle),
            chunk: None,
            writable: None,
            length: request.length,
            ends: true,
            quiet,
            many: None,
        };
        let holds = match opcode {
            Opcode::Nop => false,
            Opcode::Timeout | Opcode::LinkTimeout => {
                out.ends = false;
                let counts = opcode == Opcode::LinkTimeout || fits(request.length, 32);
                if !fits(request.position, 63) || !timing || !counts {
                    return None;
                }
                false
            }
            Opcode::Unlinkat => {
                if !path || !fits(request.offset, 32) {
                    return None;
                }
                false
            }
            Opcode::Renameat => {
                let at = usize::try_from(request.length).ok()?;
                let (old, new) = request.bytes.split_at_checked(at)?;
                if !is_path(old) || !is_path(new) || !fits(request.offset, 32) {
                    return None;
                }
                false
            }
            Opcode::Openat => {
                // A FIFO's open waits for its other end.
                out.ends = false;
                if !path || !fits(request.offset, 32) || !fits(request.length, 32) {
                    return None;
                }
                false
            }
            Opcode::Read | Opcode::Write => {
                out.chunk = Some(chunk);
                out.ends = live?.ends;
                if request.length > TRANSFER_BYTES_MAX
                    || !fits(request.position, 63)
                    || !self.memory.allows(chunk, request.offset, request.length)
                {
                    return None;
                }
                true
            }
            Opcode::Fsync => {
                if request.length > 1 {
                    return None;
                }
                true
            }
            Opcode::Ftruncate => {
                if !fits(request.position, 63) {
                    return None;
                }
                true
            }
            Opcode::Statx => {
                if !fits(request.length, 32) || (request.file == 0 && !path) {
                    return None;
                }
                request.file != 0
            }
            Opcode::Close => {
                let busy = self.out.values().any(|out| out.file == Some(handle));
                if flags & (LINK | HARDLINK | QUIET) != 0 || live.is_none() || busy {
                    return None;
                }
                false
            }
        };
        if !holds {
            out.file = None;
        } else if live.is_none() {
            return None;
        }
        Some(out)
    }

    fn note_staged(&mut self, request: &Request, mut out: Out) {
        if let Some(id) = out.chunk {
            let place = self.memory.hold(id, request.offset, request.length);
            out.writable = (out.opcode == Opcode::Read).then_some(place);
        }
        if out.opcode == Opcode::Close {
            let index = self.files.iter().position(|it| it.handle.number() == request.file);
            self.gone.push(self.files.remove(index.expect("it was live")).handle);
        }
        let linked = request.opcode & (LINK | HARDLINK) != 0;
        if !out.quiet {
            self.open_chain = if linked { self.open_chain + 1 } else { 0 };
        }
        self.left.remove(&request.slot);
        self.accepted += 1;
        self.out.insert(request.slot, out);
    }

    fn cancel(&mut self, slot: u32) {
        assert_eq!(self.engine.cancel(slot), self.out.contains_key(&slot), "cancel {slot}");
    }

    // ---- the turn -----------------------------------------------------------------------------

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

    // ---- files --------------------------------------------------------------------------------

    fn take_opened(&mut self, slot: u32) {
        let free = !self.out.contains_key(&slot);
        let left = if free { self.left.remove(&slot) } else { None };
        match self.engine.take_opened(slot) {
            Ok((handle, number)) => {
                assert!(left == Some(Left::Opened), "{slot} left no file");
                assert!(is_open(number));
                self.note_file(handle, false);
            }
            Err(bad) => {
                assert_eq!(bad, BadFile::Unknown);
                assert!(left != Some(Left::Opened), "{slot} left a file");
            }
        }
    }

    fn take_stat(&mut self, slot: u32) {
        let free = !self.out.contains_key(&slot);
        let left = if free { self.left.remove(&slot) } else { None };
        let stat = self.engine.take_stat(slot);
        assert_eq!(stat.map(|stat| stat.len()), (left == Some(Left::Stat)).then_some(256));
    }

    fn note_file(&mut self, handle: FileHandle, ends: bool) {
        assert!(self.files.iter().all(|known| known.handle != handle), "{handle:?} twice");
        assert!(!self.gone.contains(&handle), "{handle:?} was another file");
        self.files.push(Known { handle, ends });
    }

    fn adopt(&mut self, file: impl Into<OwnedFd>, direct: bool) {
        let handle = self.engine.adopt(file.into().into_raw_fd(), direct).expect("room");
        self.note_file(handle, true);
    }

    fn adopt_pipe(&mut self, to_write: bool, direct: bool) {
        if self.files.len() >= FILES_MAX {
            return;
        }
        let (reader, writer) = std::io::pipe().expect("a pipe");
        // `direct` is only a claim: it makes the memory registered and the opcode READ_FIXED.
        if to_write {
            self.adopt(writer, direct);
            self.other_ends.push(OtherEnd::Reader(reader));
        } else {
            self.adopt(reader, direct);
            self.other_ends.push(OtherEnd::Writer(writer));
        }
    }

    fn adopt_file(&mut self, direct: bool) {
        if self.files.len() < FILES_MAX
            && let Ok(file) = self.sandbox.file(direct)
        {
            self.adopt(file, direct);
        }
    }

    /// Numbers that are no descriptor of this process. (Others would be closed under somebody's feet.)
    fn adopt_number(&mut self, number: RawFd) {
        if !is_open(number) {
            assert_eq!(self.engine.adopt(number, false), Err(BadFile::Unknown));
        }
    }

    fn adopt_again(&mut self, index: u8) {
        let handle = self.file(Pick::Live(index));
        if let Ok(number) = self.engine.files().descriptor(handle) {
            assert_eq!(self.engine.adopt(number, false), Err(BadFile::Twice));
        }
    }

    fn feed(&mut self, index: u8, bytes: u8) {
        if self.other_ends.is_empty() {
            return;
        }
        let index = index as usize % self.other_ends.len();
        let mut room = [0xab; 256];
        // A pipe that has room, or something in it, does not block for that much.
        match &mut self.other_ends[index] {
            OtherEnd::Writer(writer) if poll(writer.as_raw_fd(), libc::POLLOUT, 0) => {
                let _ = writer.write(&room[..bytes as usize]);
            }
            OtherEnd::Reader(reader) if poll(reader.as_raw_fd(), libc::POLLIN, 0) => {
                let _ = reader.read(&mut room);
            }
            _ => {}
        }
    }

    // ---- the end ------------------------------------------------------------------------------

    pub fn end(mut self, ending: Ending) {
        // A refusal ends a chain that is still open.
        self.stage_request(&Request { opcode: 77, ..Request::default() });
        match ending {
            Ending::Cancel => self.settle(true),
            Ending::Wait => self.settle(false),
            Ending::Shutdown => self.shut_down(),
        }
        self.check_memory();
        while !self.memory.held.is_empty() {
            self.memory.unhold_by_hand(self.engine.arena(), 0);
        }
        while let Some(&id) = self.memory.owned.first() {
            self.memory.disown(self.engine.arena(), id);
        }
        for pool in POOLS {
            let stats = self.engine.arena().stats(pool);
            assert_eq!(stats.used_bytes, 0, "{pool:?}");
            assert!(stats.mapped_bytes <= 64 << 10, "{pool:?} keeps {}", stats.mapped_bytes);
        }
        if !matches!(ending, Ending::Shutdown) {
            self.close_files();
            self.check_books();
            assert!(self.engine.shutdown(DEADLINE), "nothing is in flight");
        }
        assert_eq!(self.engine.turn(), Turn::Block);
        assert_eq!(self.engine.stage(&Request::default()), Err(Refusal::Closed));
    }

    /// Until nothing is out: by cancelling all of it, or by closing the other ends of pipes and
    /// cancelling only what would never end.
    fn settle(&mut self, cancel_all: bool) {
        if !cancel_all {
            self.other_ends.clear();
        }
        let started = Instant::now();
        while !self.out.is_empty() {
            let what = || self.out.values().map(|out| out.opcode).collect::<Vec<_>>();
            assert!(started.elapsed() < DEADLINE, "lost: {:?}", what());
            let cancels: Vec<u32> = self
                .out
                .iter()
                .filter(|(_, out)| cancel_all || !out.ends)
                .map(|(&slot, _)| slot)
                .collect();
            for &slot in &cancels {
                self.cancel(slot);
            }
            match self.turn() {
                Turn::Block if cancels.is_empty() => {
                    if !poll(self.engine.wait_descriptor(), libc::POLLIN, 5000) {
                        panic!("nobody woke the loop: {:?}", self.engine.stats());
                    }
                    self.engine.woken();
                }
                // A hard link starts when the one before it was cancelled: ask again soon.
                Turn::Block => {
                    if poll(self.engine.wait_descriptor(), libc::POLLIN, 1) {
                        self.engine.woken();
                    }
                }
                Turn::Retry { after_ms } => {
                    std::thread::sleep(Duration::from_millis(after_ms.into()))
                }
                _ => {}
            }
            self.check_books();
        }
        assert!(!self.engine.is_busy());
    }

    fn shut_down(&mut self) {
        assert!(self.engine.shutdown(DEADLINE), "the kernel keeps something");
        assert_eq!(self.engine.in_flight(), 0);
        assert!(!self.engine.is_busy() && self.engine.completions().is_empty());
        for (slot, out) in std::mem::take(&mut self.out) {
            assert!(!self.engine.cancel(slot));
            if let Some(writable) = &out.writable {
                self.memory.written(writable);
            }
            if let Some(id) = out.chunk {
                self.memory.unhold(id);
            }
        }
    }

    fn close_files(&mut self) {
        while let Some(known) = self.files.first() {
            let (opcode, file) = (Opcode::Close as u32, known.handle.number());
            self.stage_request(&Request { opcode, file, slot: 0, ..Request::default() });
            self.settle(false);
        }
        assert!(self.engine.files().is_empty());
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
