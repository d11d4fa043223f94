//! Properties: any request in any order never panics and never loses an operation; and a file under
//! random reads and writes, many at once, is what a `Vec<u8>` is.

mod common;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use common::{
    DEADLINE, Directory, Loop, TASK_RUNS, close, datasync, is_readable, link, punted, read,
    truncate, write,
};
use node_uring_core::engine::InlinePolicy;
use node_uring_core::{
    ArenaOptions, ChunkId, EngineOptions, FileHandle, Pool, Refusal, Request, Setup, TaskRun, Turn,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn config(cases: u32) -> ProptestConfig {
    // Shrinking what hangs takes a deadline each time.
    ProptestConfig {
        cases,
        max_shrink_time: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

// ---- anything goes ----------------------------------------------------------------------------

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
    prop_oneof![20 => 0..24u32, 1 => any::<u32>(), 1 => Just(1 << 20), 1 => Just((1 << 20) - 1)]
}

fn wild() -> impl Strategy<Value = Wild> {
    let flags =
        prop::sample::select(vec![0, 0, 0, 1 << 8, 1 << 8, 1 << 9, 1 << 11, 1 << 8 | 1 << 11]);
    let opcode = prop_oneof![
        20 => (0..9u32, flags).prop_map(|(opcode, flags)| opcode | flags),
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

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => wild().prop_map(Step::Stage),
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
        let arena =
            ArenaOptions { slab_bytes: 64 << 10, max_bytes: [1 << 20; 3], retain_bytes: 64 << 10 };
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
        let request = Request {
            opcode: wild.opcode,
            slot: wild.slot,
            file: Self::resolve(wild.file, &files),
            chunk: Self::resolve(wild.chunk, &chunks),
            offset: wild.offset,
            length: wild.length,
            position: wild.position,
            bytes: &wild.bytes,
        };
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

    fn note_done(&mut self) {
        for completion in std::mem::take(&mut self.it.done) {
            let known = self.out.remove(&completion.slot);
            assert!(known.is_some(), "{completion:?} is nobody's, or came twice");
        }
        assert_eq!(self.it.engine.in_flight(), self.out.len());
    }

    fn turn(&mut self) -> Turn {
        let turn = self.it.turn();
        assert!(!matches!(turn, Turn::Failed(_) | Turn::Retry { .. }), "{turn:?}");
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
            assert!(Instant::now() < deadline, "lost: {:?}", self.out);
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
    #![proptest_config(config(400))]
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
                let directory = Directory::new();
                std::env::set_current_dir(directory.path()).expect("a directory");
                directory
            };
        }
        PLACE.with(|directory| {
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

// ---- a file is a Vec<u8> ----------------------------------------------------------------------

#[derive(Clone, Debug)]
struct Access {
    is_write: bool,
    position: usize,
    length: usize,
    to_worker: bool,
    seed: u32,
}

#[derive(Clone, Debug)]
enum Round {
    /// Those of them that touch no byte that another writes, all at once.
    Together(Vec<Access>),
    /// A write at or past the end, with or without a datasync linked behind it.
    Extend {
        gap: usize,
        length: usize,
        datasync: bool,
        seed: u32,
    },
    Truncate(usize),
}

const FILE_BYTES: usize = 256 << 10;

fn access() -> impl Strategy<Value = Access> {
    let length = prop_oneof![1..600usize, 4000..4200usize, 0..40_000usize];
    (any::<bool>(), 0..FILE_BYTES, length, prop::bool::weighted(0.1), any::<u32>()).prop_map(
        |(is_write, position, length, to_worker, seed)| Access {
            is_write,
            position,
            length,
            to_worker,
            seed,
        },
    )
}

fn round() -> impl Strategy<Value = Round> {
    prop_oneof![
        8 => vec(access(), 1..40).prop_map(Round::Together),
        1 => (0..5000usize, 1..9000usize, any::<bool>(), any::<u32>()).prop_map(
            |(gap, length, datasync, seed)| Round::Extend { gap, length, datasync, seed }
        ),
        1 => (0..FILE_BYTES).prop_map(Round::Truncate),
    ]
}

struct Modelled {
    it: Loop,
    file: FileHandle,
    model: Vec<u8>,
}

impl Modelled {
    /// Leaves out what touches bytes that another one writes, and what a write would make longer.
    fn choose(&self, accesses: &[Access]) -> Vec<Access> {
        let mut chosen: Vec<Access> = Vec::new();
        for access in accesses {
            let mut access = access.clone();
            if access.is_write {
                let Some(room) = self.model.len().checked_sub(access.position) else { continue };
                access.length = access.length.min(room);
            }
            let end = access.position + access.length;
            let clash = chosen.iter().any(|other| {
                (access.is_write || other.is_write)
                    && access.position < other.position + other.length
                    && other.position < end
            });
            if !clash {
                chosen.push(access);
            }
        }
        chosen
    }

    fn together(&mut self, accesses: &[Access]) {
        let accesses = self.choose(accesses);
        let total: usize = accesses.iter().map(|access| access.length).sum();
        let chunk = self.it.chunk(total);
        self.it.bytes(chunk, 0, total).fill(0xee);
        let mut expected = vec![0xee; total];
        let mut offset = 0;
        let mut counts = Vec::new();
        for (slot, access) in accesses.iter().enumerate() {
            let (slot, position) = (slot as u32, access.position as u64);
            let range = (offset as u64, access.length as u64);
            let place = offset..offset + access.length;
            let left = self.model.len().saturating_sub(access.position);
            let count = access.length.min(left);
            let request = if access.is_write {
                let bytes = common::pattern(access.length, access.seed);
                expected[place.clone()].copy_from_slice(&bytes);
                self.model[access.position..][..count].copy_from_slice(&bytes[..count]);
                write(slot, self.file, chunk, range, position)
            } else {
                if count > 0 {
                    let from = access.position..access.position + count;
                    expected[offset..offset + count].copy_from_slice(&self.model[from]);
                }
                read(slot, self.file, chunk, range, position)
            };
            if access.is_write {
                self.it.bytes(chunk, offset, access.length).copy_from_slice(&expected[place]);
            }
            counts.push((request, access.to_worker, count));
            offset += access.length;
        }
        // Only now: `bytes` is refused in flight.
        for (request, to_worker, _) in &counts {
            self.it.stage(&if *to_worker { punted(*request) } else { *request });
        }
        self.it.settle();
        let results = self.it.results();
        for (request, _, count) in counts {
            assert_eq!(results[&request.slot], count as i32, "{request:?}");
        }
        assert!(self.it.bytes(chunk, 0, total) == expected, "bytes differ");
        self.it.done.clear();
        self.it.disown([chunk]);
    }

    fn extend(&mut self, gap: usize, length: usize, sync: bool, seed: u32) {
        let bytes = common::pattern(length, seed);
        let position = self.model.len() + gap;
        self.model.resize(position, 0);
        self.model.extend_from_slice(&bytes);
        let chunk = self.it.chunk_of(&bytes);
        let request = write(0, self.file, chunk, (0, length as u64), position as u64);
        if sync {
            self.it.stage(&link(request));
            self.it.stage(&datasync(1, self.file));
        } else {
            self.it.stage(&request);
        }
        self.it.settle();
        assert_eq!(self.it.result(0), length as i32);
        assert!(!sync || self.it.result(1) == 0);
        self.it.disown([chunk]);
    }

    fn truncate(&mut self, length: usize) {
        let result = self.it.complete(&truncate(0, self.file, length as u64));
        if result == 0 {
            self.model.resize(length, 0);
        } else {
            assert_eq!(result, -libc::EINVAL, "a kernel before 6.9");
        }
    }
}

proptest! {
    #![proptest_config(config(40))]
    #[test]
    fn a_file_under_reads_and_writes_is_what_a_vec_is(
        rounds in vec(round(), 1..30),
        entries in prop::sample::select(vec![2u32, 8, 64]),
        task_run in prop::sample::select(TASK_RUNS.to_vec()),
        turn_bytes in prop::sample::select(vec![0u32, 10_000, 128 << 10]),
    ) {
        let directory = Directory::new();
        let setup = Setup { entries, cq_entries: entries * 2, task_run, ..Setup::default() };
        let inline = InlinePolicy { small_bytes: 1000, alone_bytes: 20_000, turn_bytes };
        let mut it = Loop::new(EngineOptions { setup, inline, ..EngineOptions::default() });
        let model = common::pattern(FILE_BYTES, entries);
        let file = it.adopt(directory.file("file", &model));
        let mut modelled = Modelled { it, file, model };
        for round in rounds {
            match round {
                Round::Together(accesses) => modelled.together(&accesses),
                Round::Extend { gap, length, datasync, seed } => {
                    modelled.extend(gap, length, datasync, seed);
                }
                Round::Truncate(length) => modelled.truncate(length),
            }
            prop_assert!(directory.content("file") == modelled.model, "the file differs");
        }
    }
}

/// The kinds of task running that the properties choose from are all there are.
#[test]
fn the_properties_run_on_each_kind_of_task_running() {
    assert_eq!(TASK_RUNS, [TaskRun::Defer, TaskRun::Cooperative, TaskRun::Interrupt]);
}
