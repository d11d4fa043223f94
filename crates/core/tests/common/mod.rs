//! What the tests share: a stand-in for the event loop, builders of requests, files and pipes.
//!
//! Nothing here waits without a deadline: a test that would hang fails instead.

// Each test file is a crate of its own and uses a part of this. What is unsafe in the tests is here.
#![allow(dead_code, unsafe_code)]

pub mod gate;

use std::collections::HashMap;
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use node_uring_core::arena::{Address, PoolStats};
use node_uring_core::operation::{ASYNC, HARDLINK, LINK};
use node_uring_core::{
    ChunkId, Completion, Engine, EngineOptions, FileHandle, Mapping, Opcode, Pool, Refusal,
    Request, Setup, TaskRun, Turn,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// No test waits longer than this for anything; what takes longer hangs.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Says on stdout that a test could not be done here.
pub fn skip(title: &str, reason: &str) {
    println!("skipped: {title} — {reason}");
}

/// Runs the test `name` in a process of its own, for what the tests beside it would disturb: looks at
/// all descriptors or all pinned memory.
#[track_caller]
pub fn alone(name: &str, body: impl FnOnce()) {
    const MARK: &str = "NODE_URING_ALONE";
    if std::env::var_os(MARK).is_some() {
        return body();
    }
    let binary = std::env::current_exe().expect("this test");
    let output = std::process::Command::new(binary)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(MARK, "1")
        .output()
        .expect("a child");
    let said = String::from_utf8_lossy(&output.stdout);
    let also = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{also}");
    for line in said.lines().filter(|line| line.starts_with("skipped: ")) {
        println!("{line}");
    }
}

/// Options with small queues, which fill up soon.
pub fn small() -> EngineOptions {
    with_entries(64, 256)
}

/// Options with these queues.
pub fn with_entries(entries: u32, cq_entries: u32) -> EngineOptions {
    EngineOptions { setup: Setup { entries, cq_entries, ..Setup::default() }, ..Default::default() }
}

/// Options with this kind of task running.
pub fn with_task_run(task_run: TaskRun) -> EngineOptions {
    let small = small();
    EngineOptions { setup: Setup { task_run, ..small.setup }, ..small }
}

/// Every kind of task running.
pub const TASK_RUNS: [TaskRun; 3] = [TaskRun::Defer, TaskRun::Cooperative, TaskRun::Interrupt];

/// Whether `fd` becomes readable within `patience`.
pub fn is_readable(fd: RawFd, patience: Duration) -> bool {
    // SAFETY: the callers' descriptors (an engine's eventfd, a pipe's end) are open during the call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left)) {
            Ok(count) => return count == 1,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}

/// An engine in the hands of an event loop that does what `turn` says.
pub struct Loop {
    pub engine: Engine,
    /// What was delivered, oldest first.
    pub done: Vec<Completion>,
    /// What `turn` said, `Deliver` included.
    pub said: Vec<Turn>,
}

impl Loop {
    pub fn new(options: EngineOptions) -> Self {
        let engine = Engine::new(options).expect("an engine");
        Self { engine, done: Vec::new(), said: Vec::new() }
    }

    /// Stages what must not be refused.
    #[track_caller]
    pub fn stage(&mut self, request: &Request) {
        assert_eq!(self.engine.stage(request), Ok(()), "{request:?}");
    }

    /// One turn. Keeps what it delivers.
    pub fn turn(&mut self) -> Turn {
        let turn = self.engine.turn();
        if turn == Turn::Deliver {
            assert!(!self.engine.completions().is_empty(), "Deliver has something to deliver");
            self.done.extend_from_slice(self.engine.completions());
        }
        self.said.push(turn);
        turn
    }

    /// Turns until it says something other than `Deliver`.
    pub fn pump(&mut self) -> Turn {
        loop {
            match self.turn() {
                Turn::Deliver => {}
                turn => return turn,
            }
        }
    }

    /// Turns until the loop may sleep, without sleeping.
    #[track_caller]
    pub fn until_block(&mut self) {
        let started = Instant::now();
        loop {
            match self.pump() {
                Turn::Block => return,
                Turn::Again => {}
                turn => panic!("{turn:?} on the way to Block"),
            }
            assert!(started.elapsed() < DEADLINE, "it never said Block");
        }
    }

    /// Plays the event loop until `enough`.
    #[track_caller]
    pub fn run_until(&mut self, what: &str, mut enough: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let turn = self.turn();
            if enough(self) {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "it took too long: {what}; {}", self.describe());
            match turn {
                Turn::Deliver | Turn::Again => {}
                Turn::Block => {
                    assert!(self.engine.is_busy(), "nothing left to wait for: {what}");
                    if !is_readable(self.engine.wait_descriptor(), left) {
                        panic!("nobody woke the loop: {what}; {}", self.describe());
                    }
                    self.engine.woken();
                }
                Turn::Retry { after_ms } => {
                    let patience = Duration::from_millis(after_ms.into()).min(left);
                    if is_readable(self.engine.wait_descriptor(), patience) {
                        self.engine.woken();
                    }
                }
                Turn::Failed(errno) => panic!("enter failed with {errno}: {what}"),
            }
        }
    }

    fn describe(&self) -> String {
        let stats = self.engine.stats();
        format!("{} done, {} in flight, {stats:?}", self.done.len(), self.engine.in_flight())
    }

    /// Plays the event loop until nothing is staged or in flight.
    #[track_caller]
    pub fn settle(&mut self) {
        self.run_until("all to complete", |this| !this.engine.is_busy());
    }

    /// Plays the event loop until the operation at `slot` is complete; forgets it and returns its
    /// result.
    #[track_caller]
    pub fn result(&mut self, slot: u32) -> i32 {
        let is_it = |completion: &Completion| completion.slot == slot;
        if !self.done.iter().any(is_it) {
            self.run_until("one to complete", |this| this.done.iter().any(is_it));
        }
        let index = self.done.iter().position(is_it).expect("it is done");
        self.done.remove(index).result
    }

    /// Stages and plays the event loop until it is complete.
    #[track_caller]
    pub fn complete(&mut self, request: &Request) -> i32 {
        assert!(self.done.iter().all(|completion| completion.slot != request.slot));
        self.stage(request);
        self.result(request.slot)
    }

    /// The results of all that is done, by slot. Fails when a slot completed twice.
    #[track_caller]
    pub fn results(&self) -> HashMap<u32, i32> {
        let mut results = HashMap::new();
        for completion in &self.done {
            let twice = results.insert(completion.slot, completion.result);
            assert_eq!(twice, None, "slot {} completed twice", completion.slot);
        }
        results
    }

    /// Gives a file to the engine.
    #[track_caller]
    pub fn adopt(&mut self, file: impl Into<OwnedFd>) -> FileHandle {
        self.engine.adopt(file.into().into_raw_fd(), false).expect("room in the file table")
    }

    /// Makes an empty FIFO whose reading end is the engine's.
    #[track_caller]
    pub fn fifo(&mut self) -> (FileHandle, PipeWriter) {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        (self.adopt(reader), writer)
    }

    /// Makes a FIFO whose writing end is the engine's.
    #[track_caller]
    pub fn fifo_to_write(&mut self) -> (PipeReader, FileHandle) {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        (reader, self.adopt(writer))
    }

    /// Takes a chunk for the test, as if for a user's buffer.
    #[track_caller]
    pub fn chunk(&mut self, length_bytes: usize) -> ChunkId {
        self.engine.arena().take(Pool::Alloc, length_bytes).expect("a chunk")
    }

    /// Takes a chunk that has these bytes.
    #[track_caller]
    pub fn chunk_of(&mut self, bytes: &[u8]) -> ChunkId {
        let chunk = self.chunk(bytes.len());
        self.bytes(chunk, 0, bytes.len()).copy_from_slice(bytes);
        chunk
    }

    #[track_caller]
    pub fn bytes(&mut self, chunk: ChunkId, offset: usize, length: usize) -> &mut [u8] {
        self.engine.arena().bytes(chunk, offset, length).expect("bytes of a chunk at rest")
    }

    /// Gives chunks back.
    #[track_caller]
    pub fn disown(&mut self, chunks: impl IntoIterator<Item = ChunkId>) {
        for chunk in chunks {
            assert_eq!(self.engine.arena().disown(chunk), Ok(()));
        }
    }

    /// What the engine holds, to compare with later.
    pub fn books(&mut self) -> Books {
        let pools = [Pool::Alloc, Pool::Bounce, Pool::Result];
        Books {
            pools: pools.map(|pool| self.engine.arena().stats(pool)),
            files: self.engine.files().len(),
            in_flight: self.engine.in_flight(),
            busy: self.engine.is_busy(),
        }
    }
}

/// What an engine holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Books {
    pools: [PoolStats; 3],
    files: usize,
    in_flight: usize,
    busy: bool,
}

impl Books {
    /// Unused slabs stay mapped for the next taker.
    pub fn forget_mapped_bytes(&mut self) {
        for pool in &mut self.pools {
            pool.mapped_bytes = 0;
        }
    }
}

// ---- requests ---------------------------------------------------------------------------------

pub fn nop(slot: u32) -> Request<'static> {
    Request { opcode: Opcode::Nop as u32, slot, ..Request::default() }
}

fn transfer(
    opcode: Opcode,
    slot: u32,
    file: FileHandle,
    chunk: ChunkId,
    (offset, length): (u64, u64),
    position: u64,
) -> Request<'static> {
    let (file, chunk) = (file.number(), chunk.number());
    let opcode = opcode as u32;
    Request { opcode, slot, file, chunk, offset, length, position, ..Request::default() }
}

/// Reads `range` (offset, length) of the chunk from `position`.
pub fn read(
    slot: u32,
    file: FileHandle,
    chunk: ChunkId,
    range: (u64, u64),
    position: u64,
) -> Request<'static> {
    transfer(Opcode::Read, slot, file, chunk, range, position)
}

/// Writes `range` (offset, length) of the chunk to `position`.
pub fn write(
    slot: u32,
    file: FileHandle,
    chunk: ChunkId,
    range: (u64, u64),
    position: u64,
) -> Request<'static> {
    transfer(Opcode::Write, slot, file, chunk, range, position)
}

pub fn fsync(slot: u32, file: FileHandle) -> Request<'static> {
    let file = file.number();
    Request { opcode: Opcode::Fsync as u32, slot, file, ..Request::default() }
}

pub fn datasync(slot: u32, file: FileHandle) -> Request<'static> {
    Request { length: 1, ..fsync(slot, file) }
}

pub fn truncate(slot: u32, file: FileHandle, position: u64) -> Request<'static> {
    Request { opcode: Opcode::Ftruncate as u32, position, ..fsync(slot, file) }
}

pub fn close(slot: u32, file: FileHandle) -> Request<'static> {
    Request { opcode: Opcode::Close as u32, ..fsync(slot, file) }
}

pub fn open(slot: u32, path: &[u8], flags: i32, mode: u32) -> Request<'_> {
    let (offset, length) = (flags as u64, u64::from(mode));
    let opcode = Opcode::Openat as u32;
    Request { opcode, slot, offset, length, bytes: path, ..Request::default() }
}

pub fn stat_path(slot: u32, path: &[u8]) -> Request<'_> {
    let length = u64::from(libc::STATX_BASIC_STATS);
    let opcode = Opcode::Statx as u32;
    Request { opcode, slot, length, bytes: path, ..Request::default() }
}

pub fn stat(slot: u32, file: FileHandle) -> Request<'static> {
    Request { file: file.number(), ..stat_path(slot, b"") }
}

pub fn timeout(slot: u32, duration: Duration) -> Request<'static> {
    let position = duration.as_nanos() as u64;
    Request { opcode: Opcode::Timeout as u32, slot, position, ..Request::default() }
}

/// The next request is linked behind this one.
pub fn link(request: Request<'_>) -> Request<'_> {
    Request { opcode: request.opcode | LINK, ..request }
}

/// The next request is linked behind this one, whatever comes of it.
pub fn hardlink(request: Request<'_>) -> Request<'_> {
    Request { opcode: request.opcode | HARDLINK, ..request }
}

/// Sent to a kernel worker at once.
pub fn punted(request: Request<'_>) -> Request<'_> {
    Request { opcode: request.opcode | ASYNC, ..request }
}

// ---- files ------------------------------------------------------------------------------------

/// A directory of its own on the disk that cargo builds on, removed at the end.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("node-uring-{}-{count}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes a file with this content, open for reading and writing.
    pub fn file(&self, name: &str, content: &[u8]) -> File {
        let path = self.join(name);
        let mut options = File::options();
        let mut file =
            options.read(true).write(true).create_new(true).open(path).expect("a new file");
        file.write_all(content).expect("its content");
        file
    }

    pub fn content(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.join(name)).expect("the file")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn path_bytes(path: &Path) -> &[u8] {
    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())
}

/// How many descriptors of this process are open on `path`. Tests run side by side: all descriptors
/// cannot be counted, those of a file of one's own can.
pub fn descriptors_on(path: &Path) -> usize {
    let path = path.canonicalize().expect("it exists");
    let links = std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd").flatten();
    links.filter(|link| std::fs::read_link(link.path()).is_ok_and(|target| target == path)).count()
}

/// Descriptors of this process whose target reads like `text`.
pub fn descriptors_like(text: &str) -> Vec<RawFd> {
    let links = std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd").flatten();
    links
        .filter(|link| {
            std::fs::read_link(link.path()).is_ok_and(|to| to.to_string_lossy().contains(text))
        })
        .filter_map(|link| link.file_name().to_str()?.parse().ok())
        .collect()
}

/// Puts `file` in the place of whatever the descriptor `fd` was.
pub fn replace_descriptor(fd: RawFd, file: &File) {
    // SAFETY: dup2 takes no pointer. What breaks is what the test wants to break.
    let done = unsafe { libc::dup2(file.as_raw_fd(), fd) };
    assert_eq!(done, fd);
}

/// Takes the first registered ring descriptor of this thread away, `IORING_UNREGISTER_RING_FDS`.
pub fn unregister_ring_descriptor(ring: RawFd) {
    const UNREGISTER_RING_FDS: libc::c_uint = 21;
    // struct io_uring_rsrc_update: an offset of 0, and nothing.
    let mut update = [0u64; 2];
    // SAFETY: the call reads one update, ours, of this size.
    let done = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring,
            UNREGISTER_RING_FDS,
            update.as_mut_ptr(),
            1,
        )
    };
    assert_eq!(done, 1);
}

/// Takes the pages of a mapping away; at the next touch there are new ones, all zero.
pub fn drop_pages(start: *mut u8, length_bytes: usize) {
    // SAFETY: the callers name whole pages of a chunk that they own and that no operation holds.
    let done = unsafe { libc::madvise(start.cast(), length_bytes, libc::MADV_DONTNEED) };
    assert_eq!(done, 0);
}

/// The bytes of an exposed chunk, whose mapping is alive.
pub fn peek(address: Address, _mapping: &Rc<Mapping>) -> Vec<u8> {
    // SAFETY: `_mapping` keeps the memory mapped, and no operation holds the chunk.
    unsafe { std::slice::from_raw_parts(address.as_ptr(), address.len()) }.to_vec()
}

/// Bytes that tell their position: no two places of a short file look alike.
pub fn pattern(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 16) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Every refusal, so that a test can say which it met.
pub const REFUSALS: [Refusal; 12] = [
    Refusal::Closed,
    Refusal::Failed,
    Refusal::SlotBusy,
    Refusal::SlotRange,
    Refusal::UnknownOpcode,
    Refusal::UnknownFile,
    Refusal::FileInFlight,
    Refusal::UnknownChunk,
    Refusal::Range,
    Refusal::Argument,
    Refusal::Path,
    Refusal::ChainTooLong,
];
