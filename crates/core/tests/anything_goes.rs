//! Any request in any order never panics, never ends the engine, and is never lost.

mod common;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use common::{DEADLINE, Directory, Loop, TASK_RUNS, cases, close, is_readable, vectors, workers};
use node_uring_core::engine::{MESSAGE_SLOT, ManyRequest};
use node_uring_core::in_flight::Lengths;
use node_uring_core::operation::{ASYNC, DRAIN, HARDLINK, LINK, QUIET};
use node_uring_core::{
    ArenaOptions, ChunkId, EngineOptions, FileHandle, Opcode, Pool, Refusal, Request, Setup, Turn,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// One of ours, or any number.
#[derive(Clone, Copy, Debug)]
enum Pick {
    Ours(u8),
    Number(u64),
}

#[derive(Clone, Debug)]
struct Wild {
    opcode: u32,
    slot: u32,
    file: Pick,
    chunk: Pick,
    offset: u64,
    length: u64,
    position: u64,
    bytes: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Step {
    Stage(Wild),
    Many { wild: Wild, count: usize, length: u32, each: bool, fill: bool },
    TakeCounts(u32),
    Turn,
    Flush,
    Woken,
    Cancel(u32),
    TakeOpened(u32),
    TakeStat(u32),
    TakeChunk(usize, usize),
    Disown(Pick),
    Adopt(i32),
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..10_000u64,
        2 => Just(0),
        1 => prop::sample::select(vec![1 << 31, 1 << 32, 1 << 63, u64::MAX, i64::MAX as u64]),
        1 => any::<u64>(),
    ]
}

fn pick() -> impl Strategy<Value = Pick> {
    prop_oneof![8 => any::<u8>().prop_map(Pick::Ours), 1 => number().prop_map(Pick::Number)]
}

fn slot() -> impl Strategy<Value = u32> {
    // Slots far apart cost a table: 200 MB for the last one. staging.rs uses that, once.
    prop_oneof![20 => 0..24u32, 1 => 0..5000u32, 1 => (1 << 20)..=u32::MAX]
}

fn wild() -> impl Strategy<Value = Wild> {
    let flags = [0, 0, 0, 0, LINK, LINK, HARDLINK, ASYNC, LINK | ASYNC, DRAIN, DRAIN | LINK, QUIET];
    let flags = prop::sample::select(flags.to_vec());
    let opcode = prop_oneof![
        20 => (0..25u32, flags).prop_map(|(opcode, flags)| opcode | flags),
        1 => any::<u32>(),
    ];
    // No slashes: whatever is opened or made is in the directory of the test.
    let byte = any::<u8>().prop_map(|byte| if byte == b'/' { b'_' } else { byte });
    let bytes = prop_oneof![
        prop::sample::select(vec![b"file".to_vec(), b"fifo".to_vec(), b".".to_vec()]),
        vec(byte, 0..20),
    ];
    (opcode, slot(), pick(), pick(), number(), number(), number(), bytes).prop_map(
        |(opcode, slot, file, chunk, offset, length, position, bytes)| Wild {
            opcode,
            slot,
            file,
            chunk,
            offset,
            length,
            position,
            bytes,
        },
    )
}

fn wild_many() -> impl Strategy<Value = Step> {
    let count = prop_oneof![4 => 0..40usize, 1 => 0..3000usize, 1 => any::<usize>()];
    let length = prop_oneof![4 => 0..300u32, 1 => any::<u32>()];
    (wild(), count, length, any::<bool>(), any::<bool>()).prop_map(
        |(wild, count, length, each, fill)| Step::Many { wild, count, length, each, fill },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => wild().prop_map(Step::Stage),
        4 => wild_many(),
        2 => slot().prop_map(Step::TakeCounts),
        6 => Just(Step::Turn),
        2 => Just(Step::Flush),
        1 => Just(Step::Woken),
        4 => slot().prop_map(Step::Cancel),
        2 => slot().prop_map(Step::TakeOpened),
        2 => slot().prop_map(Step::TakeStat),
        2 => (0..3usize, 0..9000usize).prop_map(|(pool, length)| Step::TakeChunk(pool, length)),
        2 => pick().prop_map(Step::Disown),
        1 => prop_oneof![Just(-1), Just(i32::MAX), Just(i32::MIN)].prop_map(Step::Adopt),
    ]
}

const POOLS: [Pool; 3] = [Pool::Alloc, Pool::Bounce, Pool::Result];

/// The engine, and what is known of it from outside.
struct Wilderness {
    it: Loop,
    files: Vec<FileHandle>,
    chunks: Vec<ChunkId>,
    /// Accepted and not delivered.
    out: HashMap<u32, Wild>,
}

impl Wilderness {
    fn new(directory: &Directory, setup: Setup) -> Self {
        let arena = ArenaOptions {
            slab_bytes: 64 << 10,
            max_bytes: [1 << 20; 3],
            retain_bytes: [64 << 10; 3],
        };
        let options = EngineOptions { setup, arena, ..EngineOptions::default() };
        let mut it = Loop::new(options);
        let path = directory.join("file");
        let mut open = File::options();
        open.read(true).write(true);
        let plain = open.open(&path).expect("the file");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut files = vec![it.adopt(plain), it.adopt(reader), it.adopt(writer)];
        files.push(it.adopt(File::open(directory.path()).expect("the directory")));
        if let Ok(direct) = open.custom_flags(libc::O_DIRECT).open(&path) {
            files.push(it.engine.adopt(direct.into_raw_fd(), true).expect("room"));
        }
        let chunks = (0..3).map(|count| it.chunk(4096 << count)).collect();
        Self { it, files, chunks, out: HashMap::new() }
    }

    fn resolve(pick: Pick, ours: &[u64]) -> u64 {
        match pick {
            Pick::Ours(index) if !ours.is_empty() => ours[index as usize % ours.len()],
            Pick::Ours(_) => 0,
            Pick::Number(number) => number,
        }
    }

    fn stage(&mut self, wild: &Wild) {
        let files: Vec<_> = self.files.iter().map(|file| file.number()).collect();
        let chunks: Vec<_> = self.chunks.iter().map(|chunk| chunk.number()).collect();
        let mut request = Request {
            opcode: wild.opcode,
            slot: wild.slot,
            file: Self::resolve(wild.file, &files),
            chunk: Self::resolve(wild.chunk, &chunks),
            offset: wild.offset,
            length: wild.length,
            position: wild.position,
            bytes: &wild.bytes,
        };
        let vector = (ChunkId::from_number(request.chunk), request.offset, request.length);
        let vectors = vectors(&vec![vector; 1 + wild.bytes.len() % 5]);
        match wild.opcode & 0xff {
            // Otherwise they would be refused at the first look.
            op if op == Opcode::Readv as u32 || op == Opcode::Writev as u32 => {
                (request.bytes, request.chunk) = (&vectors, 0);
            }
            op if op == Opcode::Splice as u32 => {
                request.chunk = files[request.length as usize % files.len()];
            }
            // A file system may have 4 GiB to give.
            op if op == Opcode::Fallocate as u32 => request.length %= 1 << 20,
            _ => {}
        }
        match self.it.engine.stage(&request) {
            Ok(()) => {
                let before = self.out.insert(wild.slot, wild.clone());
                assert!(before.is_none(), "two in one slot: {before:?} and {wild:?}");
            }
            Err(Refusal::SlotBusy) => assert!(self.out.contains_key(&wild.slot), "{wild:?}"),
            Err(Refusal::Closed | Refusal::Failed) => panic!("{wild:?} ended the engine"),
            Err(_) => {}
        }
    }

    fn stage_many(&mut self, wild: &Wild, count: usize, length: u32, each: bool, fill: bool) {
        let files: Vec<_> = self.files.iter().map(|file| file.number()).collect();
        let chunks: Vec<_> = self.chunks.iter().map(|chunk| chunk.number()).collect();
        let listed = count.min(5000);
        let lengths = if each {
            Lengths::each(&(0..listed as u32).map(|at| length & at).collect::<Vec<_>>())
        } else {
            Lengths::All(length)
        };
        let request = ManyRequest {
            opcode: wild.opcode,
            slot: wild.slot,
            file: Self::resolve(wild.file, &files),
            chunk: Self::resolve(wild.chunk, &chunks),
            offset: wild.offset,
            count,
            lengths,
            positions: vec![wild.position; listed],
            fill,
        };
        // As long as these nops take, nothing else may be lost; more of them only take longer.
        if request.opcode == Opcode::Nop as u32 && count > 10_000 {
            return;
        }
        if self.it.engine.stage_many(request).is_ok() {
            let wild = Wild { opcode: wild.opcode & 0xff, ..wild.clone() };
            let before = self.out.insert(wild.slot, wild);
            assert!(before.is_none(), "two in one slot: {before:?}");
        }
    }

    fn note_done(&mut self) {
        for completion in std::mem::take(&mut self.it.done) {
            // Any number may be the ring of this engine, or of a test beside this one.
            if completion.slot == MESSAGE_SLOT {
                continue;
            }
            let known = self.out.remove(&completion.slot);
            assert!(known.is_some(), "{completion:?} is nobody's, or came twice");
        }
        let loud = self.out.values().filter(|wild| wild.opcode & QUIET == 0).count();
        assert_eq!(self.it.engine.in_flight(), loud);
    }

    fn turn(&mut self) -> Turn {
        let turn = self.it.turn();
        assert!(!matches!(turn, Turn::Failed(_)), "{turn:?}");
        assert_eq!(self.it.engine.stats().refusals, 0, "enter takes them all");
        self.note_done();
        turn
    }

    fn take(&mut self, step: &Step) {
        let engine = &mut self.it.engine;
        match step {
            Step::Stage(wild) => self.stage(wild),
            Step::Turn => drop(self.turn()),
            Step::Flush => engine.flush(),
            Step::Woken => engine.woken(),
            Step::Cancel(slot) => {
                assert_eq!(engine.cancel(*slot), self.out.contains_key(slot), "{slot}");
            }
            Step::Many { wild, count, length, each, fill } => {
                self.stage_many(wild, *count, *length, *each, *fill);
            }
            Step::TakeCounts(slot) => {
                if engine.take_counts(*slot).is_some() {
                    assert!(!self.out.contains_key(slot));
                }
            }
            Step::TakeOpened(slot) => {
                if let Ok((file, _)) = engine.take_opened(*slot) {
                    assert!(!self.out.contains_key(slot));
                    self.files.push(file);
                }
            }
            Step::TakeStat(slot) => {
                if let Some(stat) = engine.take_stat(*slot) {
                    assert_eq!(stat.len(), 256);
                }
            }
            Step::TakeChunk(pool, length) => {
                if let Ok(chunk) = engine.arena().take(POOLS[*pool], *length) {
                    assert!(!self.chunks.contains(&chunk));
                    self.chunks.push(chunk);
                }
            }
            Step::Disown(Pick::Ours(index)) if !self.chunks.is_empty() => {
                let index = *index as usize % self.chunks.len();
                assert_eq!(engine.arena().disown(self.chunks.swap_remove(index)), Ok(()));
            }
            Step::Disown(Pick::Ours(_)) => {}
            Step::Disown(Pick::Number(number)) => {
                let chunk = ChunkId::from_number(*number);
                if !self.chunks.contains(&chunk) {
                    assert!(engine.arena().disown(chunk).is_err());
                }
            }
            Step::Adopt(fd) => assert!(engine.adopt(*fd, false).is_err()),
        }
    }

    /// Cancels and waits until everything is delivered, then gives everything back.
    fn end(mut self) {
        // A refusal ends a chain that is still open.
        let nonsense = Request { opcode: 77, slot: 5000, ..Request::default() };
        assert!(self.it.engine.stage(&nonsense).is_err());
        let deadline = Instant::now() + DEADLINE;
        while !self.out.is_empty() {
            assert!(Instant::now() < deadline, "lost: {:?}{}", self.out, workers());
            for &slot in self.out.keys() {
                assert!(self.it.engine.cancel(slot));
            }
            if self.turn() == Turn::Block {
                // A hard link starts when the one before it was cancelled: ask again soon.
                let patience = Duration::from_millis(1);
                if is_readable(self.it.engine.wait_descriptor(), patience) {
                    self.it.engine.woken();
                }
            }
        }
        assert!(!self.it.engine.is_busy());
        for chunk in std::mem::take(&mut self.chunks) {
            assert_eq!(self.it.engine.arena().disown(chunk), Ok(()));
        }
        for pool in POOLS {
            assert_eq!(self.it.engine.arena().stats(pool).used_bytes, 0, "{pool:?}");
        }
        for file in std::mem::take(&mut self.files) {
            // Those that were not closed on the way are held by nobody.
            if self.it.engine.files().descriptor(file).is_ok() {
                assert_eq!(self.it.complete(&close(0, file)), 0);
            }
        }
        assert!(self.it.engine.files().is_empty());
        assert_eq!(self.it.engine.stats().stale, 0);
        assert!(self.it.engine.shutdown(DEADLINE));
    }
}

proptest! {
    #![proptest_config(cases(400))]
    #[test]
    fn any_requests_in_any_order_never_panic_and_each_accepted_one_completes_once(
        steps in vec(step(), 1..120),
        entries in prop::sample::select(vec![1u32, 2, 4, 16, 64]),
        task_run in prop::sample::select(TASK_RUNS.to_vec()),
        leave in any::<bool>(),
    ) {
        thread_local! {
            // Paths without a slash are of this directory: the process is this test file's own.
            static PLACE: Directory = {
                let directory = Directory::in_memory();
                std::env::set_current_dir(directory.path()).expect("a directory");
                directory
            };
        }
        PLACE.with(|directory| {
            // Requests of the last case may have put anything in its place: a folder, a link.
            let _ = std::fs::remove_dir_all(directory.join("file"));
            let _ = std::fs::remove_file(directory.join("file"));
            drop(directory.file("file", &[1; 10_000]));
            let setup = Setup { entries, cq_entries: entries * 2, task_run, ..Setup::default() };
            let mut wilderness = Wilderness::new(directory, setup);
            for step in &steps {
                wilderness.take(step);
            }
            if leave {
                assert!(wilderness.it.engine.shutdown(DEADLINE), "{:?}", wilderness.out);
            } else {
                wilderness.end();
            }
        });
    }
}
