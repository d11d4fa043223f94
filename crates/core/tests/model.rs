//! A file under random reads and writes, many at once, is what a `Vec<u8>` is.

mod common;

use common::{Directory, Loop, TASK_RUNS, cases, datasync, link, punted, read, truncate, write};
use node_uring_core::engine::InlinePolicy;
use node_uring_core::{EngineOptions, FileHandle, Setup};
use proptest::collection::vec;
use proptest::prelude::*;

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
    #![proptest_config(cases(60))]
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
