//! What the tests share: a stand-in for the event loop, builders of requests, files and pipes.
//!
//! Nothing here waits without a deadline: a test that would hang fails instead.

// Each test file is a crate of its own and uses a part of this.
#![allow(dead_code)]

mod files;
pub mod gate;
pub mod marks;
mod requests;

use std::collections::HashMap;
use std::io::{PipeReader, PipeWriter};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::time::{Duration, Instant};

use node_uring_core::arena::PoolStats;
use node_uring_core::{
    ChunkId, Completion, Engine, EngineOptions, FileHandle, OperationSet, Pool, Request, Setup,
    SqPoll, TaskRun, Turn,
};
use proptest::prelude::ProptestConfig;

pub use files::*;
pub use requests::*;

/// No test waits longer than this for anything; what takes longer hangs. A busy disk was seen to need
/// many seconds for an fsync.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Says on stdout that a test could not be done here; on a line of its own, whatever was begun there.
pub fn skip(title: &str, reason: &str) {
    println!("\nskipped: {title} — {reason}");
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

/// How many cases a property has, unless `PROPTEST_CASES` in the environment says otherwise.
pub fn cases(cases: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    ProptestConfig {
        cases: asked.unwrap_or(cases),
        // Shrinking what hangs takes a deadline each time.
        max_shrink_time: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
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

/// Options of a ring with a polling thread that sleeps after so long without work.
pub fn polled(idle_ms: u32) -> EngineOptions {
    let sqpoll = Some(SqPoll { idle_ms, cpu: None });
    let setup = Setup { sqpoll, task_run: TaskRun::Interrupt, ..small().setup };
    EngineOptions { setup, ..small() }
}

/// Options of a ring that takes these operations only.
pub fn restricted(names: &[&str]) -> EngineOptions {
    let restrict = Some(OperationSet::named(names).expect("known names"));
    EngineOptions { setup: Setup { restrict, ..small().setup }, ..small() }
}

/// Every kind of task running.
pub const TASK_RUNS: [TaskRun; 3] = [TaskRun::Defer, TaskRun::Cooperative, TaskRun::Interrupt];

/// An engine in the hands of an event loop that does what `turn` says.
pub struct Loop {
    pub engine: Engine,
    /// What was delivered, oldest first.
    pub done: Vec<Completion>,
    /// What `turn` said lately, `Deliver` included.
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
        // Bounded: an engine that spins would fill the machine's memory with its answers.
        if self.said.len() == 4096 {
            self.said.clear();
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

    /// Turns until the loop may sleep for as long as it likes.
    #[track_caller]
    pub fn until_block(&mut self) {
        let started = Instant::now();
        let refusals = self.engine.stats().refusals;
        let polled = self.engine.capabilities().setup.sqpoll.is_some();
        let mut waits = 0;
        loop {
            match self.pump() {
                Turn::Block => return,
                Turn::Again => {}
                // A polling thread is behind, or a cancel has missed what it is for. Or the kernel says
                // that there is work where there is none, and that it goes on to say.
                Turn::Retry { after_ms } if polled || self.engine.stats().refusals == refusals => {
                    waits += 1;
                    if waits > 20 && !polled {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(after_ms.into()));
                }
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
                    let woken = is_readable(self.engine.wait_descriptor(), left);
                    assert!(woken, "nobody woke the loop: {what}; {}", self.describe());
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
        let (done, in_flight) = (self.done.len(), self.engine.in_flight());
        format!("{done} done, {in_flight} in flight, {stats:?}{}", workers())
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
