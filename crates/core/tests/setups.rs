//! Every combination of set-up flags does the same: one suite of scenarios, run on each.

mod common;

use std::io::{Read, Write};
use std::time::Duration;

use common::{
    DEADLINE, Directory, Loop, TASK_RUNS, close, datasync, is_readable, link, nop, open,
    path_bytes, pattern, punted, read, skip, stat, timeout, write,
};
use node_uring_core::{EngineOptions, OperationSet, Refusal, Setup, SqPoll, TaskRun};

const CANCELED: i32 = -libc::ECANCELED;

type Scenario = fn(&mut Loop, &Directory);

const SCENARIOS: &[(&str, Scenario)] = &[
    ("a nop comes back at once", |it, _| assert_eq!(it.complete(&nop(0)), 0)),
    ("a file is opened, written, synced, read, stated and closed", |it, directory| {
        let path = directory.join("through");
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC;
        assert!(it.complete(&open(0, path_bytes(&path), flags, 0o600)) >= 0);
        let (file, _) = it.engine.take_opened(0).expect("it was opened");
        let bytes = pattern(9000, 1);
        let chunk = it.chunk_of(&bytes);
        it.stage(&link(write(1, file, chunk, (0, 9000), 3)));
        it.stage(&datasync(2, file));
        it.settle();
        assert_eq!((it.result(1), it.result(2)), (9000, 0));
        let back = it.chunk(9000);
        assert_eq!(it.complete(&read(0, file, back, (0, 9000), 3)), 9000);
        assert_eq!(it.bytes(back, 0, 9000), bytes);
        assert_eq!(it.complete(&punted(read(0, file, back, (0, 9000), 8000))), 1003);
        assert_eq!(it.complete(&stat(0, file)), 0);
        let stat = it.engine.take_stat(0).expect("a stat");
        assert_eq!(stat[40..48], 9003u64.to_ne_bytes());
        assert_eq!(it.complete(&close(0, file)), 0);
        assert_eq!(it.engine.stage(&close(0, file)), Err(Refusal::UnknownFile));
        it.disown([chunk, back]);
    }),
    ("a late completion wakes the loop", |it, _| {
        let (fifo, mut writer) = it.fifo();
        let chunk = it.chunk(4);
        for _ in 0..20 {
            it.stage(&read(0, fifo, chunk, (0, 4), 0));
            it.until_block();
            writer.write_all(b"late").expect("room in the pipe");
            assert!(is_readable(it.engine.wait_descriptor(), DEADLINE));
            it.engine.woken();
            assert_eq!(it.result(0), 4);
        }
        assert_eq!(it.complete(&close(0, fifo)), 0);
        it.disown([chunk]);
    }),
    ("a timeout wakes the loop", |it, _| {
        assert_eq!(it.complete(&timeout(0, Duration::from_millis(2))), -libc::ETIME);
    }),
    ("a broken chain is cancelled behind the break", |it, _| {
        let file = it.adopt(std::fs::File::open("/dev/null").expect("/dev/null"));
        let chunk = it.chunk(1);
        it.stage(&link(nop(0)));
        it.stage(&link(write(1, file, chunk, (0, 1), 0)));
        it.stage(&nop(2));
        it.stage(&nop(3));
        it.settle();
        let results = it.results();
        let expected = [0, -libc::EBADF, CANCELED, 0];
        assert_eq!([0, 1, 2, 3].map(|slot| results[&slot]), expected);
        assert_eq!(it.complete(&close(4, file)), 0);
        it.disown([chunk]);
    }),
    ("cancels reach what is in flight and what is not", |it, _| {
        let (fifo, _writer) = it.fifo();
        let chunk = it.chunk(1);
        it.stage(&read(0, fifo, chunk, (0, 1), 0));
        it.stage(&timeout(1, Duration::from_secs(3600)));
        it.until_block();
        it.stage(&read(2, fifo, chunk, (0, 1), 0));
        assert!([0, 1, 2].iter().all(|&slot| it.engine.cancel(slot)));
        it.settle();
        let results = it.results();
        assert_eq!([0, 1, 2].map(|slot| results[&slot]), [CANCELED; 3]);
        assert_eq!(it.complete(&close(3, fifo)), 0);
        it.disown([chunk]);
    }),
    ("more than both queues hold completes once each", |it, _| {
        let (mut reader, pipe) = it.fifo_to_write();
        let bytes = pattern(500, 2);
        let chunk = it.chunk_of(&bytes);
        for slot in 0..500 {
            it.stage(&nop(slot));
            it.stage(&write(500 + slot, pipe, chunk, (slot.into(), 1), 0));
        }
        it.settle();
        assert_eq!(it.results().len(), 1000);
        let mut came = vec![0; 500];
        reader.read_exact(&mut came).expect("the bytes");
        came.sort_unstable();
        let mut sent = bytes;
        sent.sort_unstable();
        assert_eq!(came, sent);
        assert_eq!(it.complete(&close(1000, pipe)), 0);
        it.disown([chunk]);
    }),
    ("all that completes at once is kept", |it, _| {
        let (fifo, mut writer) = it.fifo();
        let chunk = it.chunk(300);
        for slot in 0..300 {
            it.stage(&read(slot, fifo, chunk, (slot.into(), 1), 0));
        }
        it.until_block();
        writer.write_all(&[1; 300]).expect("room in the pipe");
        it.settle();
        assert!(it.results().values().all(|&result| result == 1));
        assert_eq!(it.bytes(chunk, 0, 300), [1; 300]);
        assert_eq!(it.complete(&close(300, fifo)), 0);
        it.disown([chunk]);
    }),
];

#[test]
fn every_combination_of_set_up_flags_does_the_same() {
    let directory = Directory::new();
    for task_run in TASK_RUNS {
        for bits in 0..16u8 {
            let wish = Setup {
                entries: 8,
                cq_entries: 16,
                task_run,
                no_sq_array: bits & 1 != 0,
                submit_all: bits & 2 != 0,
                registered_descriptor: bits & 4 != 0,
                ..Setup::default()
            };
            let unregistered = bits & 8 != 0;
            let options = EngineOptions { setup: wish, unregistered, ..EngineOptions::default() };
            let mut it = Loop::new(options);
            let granted = it.engine.capabilities().setup;
            if format!("{granted:?}") != format!("{wish:?}") {
                skip(
                    "every combination of set-up flags does the same",
                    &format!("the kernel gave {granted:?} for {wish:?}"),
                );
                continue;
            }
            assert_eq!(it.engine.registered_files() == 0, unregistered);
            play(&mut it, &directory);
        }
    }
}

/// Plays every scenario, and ends with operations in flight.
fn play(it: &mut Loop, directory: &Directory) {
    let setup = it.engine.capabilities().setup;
    for (title, scenario) in SCENARIOS {
        println!("{title}: {setup:?}, {} registered files", it.engine.registered_files());
        let before = it.books();
        scenario(it, directory);
        it.settle();
        let mut after = it.books();
        after.forget_mapped_bytes();
        let mut expected = before;
        expected.forget_mapped_bytes();
        assert_eq!(after, expected, "something is still held");
        assert_eq!(it.engine.stats().stale, 0);
        it.done.clear();
    }
    let (fifo, _writer) = it.fifo();
    let chunk = it.chunk(1);
    for slot in 0..50 {
        it.stage(&read(slot, fifo, chunk, (0, 1), 0));
    }
    it.turn();
    assert!(it.engine.shutdown(DEADLINE), "{setup:?}");
}

/// A set-up that asks for something by name, on the plainest ring.
fn asking(setup: Setup) -> Setup {
    Setup { entries: 8, cq_entries: 16, task_run: TaskRun::Interrupt, ..setup }
}

#[test]
fn a_polling_thread_awake_or_asleep_does_the_same() {
    let directory = Directory::new();
    // The kernel counts in ticks: the shortest is asleep before most submissions.
    for idle_ms in [1, 1000] {
        for (no_sq_array, registered_descriptor) in [(true, true), (false, false)] {
            let sqpoll = Some(SqPoll { idle_ms, cpu: None });
            let setup =
                Setup { sqpoll, no_sq_array, registered_descriptor, ..asking(Setup::default()) };
            play(&mut Loop::new(EngineOptions { setup, ..EngineOptions::default() }), &directory);
        }
    }
}

#[test]
fn rings_that_share_a_polling_thread_do_the_same() {
    let directory = Directory::new();
    let sqpoll = Some(SqPoll { idle_ms: 100, cpu: Some(0) });
    let setup = Setup { sqpoll, ..asking(Setup::default()) };
    let first = Loop::new(EngineOptions { setup, ..EngineOptions::default() });
    let sqpoll = Some(SqPoll { idle_ms: 100, cpu: None });
    let attach = Some(first.engine.ring_descriptor());
    let setup = Setup { sqpoll, attach, ..asking(Setup::default()) };
    let mut second = Loop::new(EngineOptions { setup, ..EngineOptions::default() });
    play(&mut second, &directory);
    // Whose ring it was is gone; the thread stays for the other.
    let mut third = Loop::new(EngineOptions { setup, ..EngineOptions::default() });
    drop(first);
    play(&mut third, &directory);
}

#[test]
fn a_ring_restricted_to_what_is_used_does_the_same() {
    let directory = Directory::new();
    let names = ["read", "write", "fsync", "openat", "statx"];
    let restrict = Some(OperationSet::named(&names).expect("known names"));
    for task_run in TASK_RUNS {
        let setup = Setup { restrict, ..asking(Setup::default()) };
        let setup = Setup { task_run, ..setup };
        play(&mut Loop::new(EngineOptions { setup, ..EngineOptions::default() }), &directory);
    }
}
