//! More than there is room for: backpressure inside the engine, never an error, never a loss.

mod common;

use std::io::Write;

use common::{
    Directory, Loop, TASK_RUNS, link, nop, pattern, read, small, with_entries, with_task_run, write,
};
use node_uring_core::{EngineOptions, Setup, TaskRun};

#[test]
fn more_operations_than_entries_all_complete_once() {
    for (entries, cq_entries) in [(1, 1), (1, 2), (2, 2), (2, 4), (4, 4), (64, 64), (1024, 4096)] {
        let mut it = Loop::new(with_entries(entries, cq_entries));
        for slot in 0..5000 {
            it.stage(&nop(slot));
        }
        it.settle();
        let results = it.results();
        assert_eq!(results.len(), 5000, "{entries} and {cq_entries}");
        assert!(results.values().all(|&result| result == 0));
        let stats = it.engine.stats();
        assert_eq!((stats.submitted, stats.completed, stats.stale), (5000, 5000, 0));
    }
}

#[test]
fn more_reads_than_entries_each_have_their_own_bytes() {
    let directory = Directory::new();
    let content = pattern(64 << 10, 11);
    for (entries, cq_entries) in [(1, 1), (2, 2), (8, 16), (64, 256)] {
        let mut it = Loop::new(with_entries(entries, cq_entries));
        let file = it.adopt(directory.file(&entries.to_string(), &content));
        let chunk = it.chunk(2000 * 32);
        for slot in 0..2000 {
            let position = u64::from(slot) * 37 % 65_000;
            it.stage(&read(slot, file, chunk, (u64::from(slot) * 32, 32), position));
        }
        it.settle();
        let results = it.results();
        for slot in 0..2000 {
            assert_eq!(results[&(slot as u32)], 32);
            let position = slot * 37 % 65_000;
            let bytes = it.bytes(chunk, slot * 32, 32);
            assert_eq!(bytes, &content[position..position + 32], "{entries}: {slot}");
        }
    }
}

#[test]
fn thirty_thousand_writes_of_eight_bytes_leave_exactly_their_bytes() {
    let directory = Directory::new();
    let mut it = Loop::new(with_entries(256, 512));
    let file = it.adopt(directory.file("file", b""));
    let content = pattern(30_000 * 8, 12);
    let chunk = it.chunk_of(&content);
    for slot in 0..30_000 {
        // In an order of their own, to places of their own.
        let place = u64::from(slot) * 7919 % 30_000 * 8;
        it.stage(&write(slot, file, chunk, (place, 8), place));
    }
    it.settle();
    let results = it.results();
    assert_eq!(results.len(), 30_000);
    assert!(results.values().all(|&result| result == 8));
    assert_eq!(directory.content("file"), content);
}

/// All at once: one write to the FIFO ends every read, and the queue has room for a few.
#[test]
fn completions_past_the_completion_queue_are_kept_and_come_in_good_order() {
    for task_run in TASK_RUNS {
        let setup = Setup { entries: 4, cq_entries: 4, task_run, ..Setup::default() };
        let mut it = Loop::new(EngineOptions { setup, ..EngineOptions::default() });
        let (fifo, mut writer) = it.fifo();
        let chunk = it.chunk(1000);
        for slot in 0..1000 {
            it.stage(&read(slot, fifo, chunk, (slot.into(), 1), 0));
        }
        it.until_block();
        assert_eq!(it.engine.in_flight(), 1000);
        let bytes = pattern(1000, 13);
        writer.write_all(&bytes).expect("room in the pipe");
        it.settle();
        let results = it.results();
        assert_eq!(results.len(), 1000, "{task_run:?}");
        assert!(results.values().all(|&result| result == 1));
        let mut came = it.bytes(chunk, 0, 1000).to_vec();
        let mut sent = bytes;
        came.sort_unstable();
        sent.sort_unstable();
        assert_eq!(came, sent, "{task_run:?}: each byte once");
        assert!(it.engine.stats().overflows > 0, "{task_run:?}: or this tests nothing");
    }
}

#[test]
fn an_overflown_queue_does_not_hold_up_what_is_staged_meanwhile() {
    for task_run in TASK_RUNS {
        let mut it = Loop::new(EngineOptions {
            setup: Setup { entries: 2, cq_entries: 2, task_run, ..Setup::default() },
            ..with_task_run(task_run)
        });
        // Never collected in between: 100 completions for a queue of 2.
        for slot in 0..100 {
            it.stage(&nop(slot));
            it.engine.flush();
        }
        for slot in 100..200 {
            it.stage(&nop(slot));
        }
        it.settle();
        assert_eq!(it.results().len(), 200, "{task_run:?}");
    }
}

#[test]
fn more_completions_than_one_delivery_holds_come_in_several() {
    let mut it = Loop::new(with_entries(8192, 16_384));
    for slot in 0..10_000 {
        it.stage(&nop(slot));
    }
    for slot in 10_000..16_000 {
        it.stage(&nop(slot));
        it.engine.cancel(slot);
    }
    it.settle();
    assert_eq!(it.results().len(), 16_000);
    let completed = it.engine.stats().completed;
    assert_eq!(completed, 16_000);
}

#[test]
fn work_goes_on_while_it_is_delivered() {
    let mut it = Loop::new(with_entries(8, 8));
    let total = 20_000;
    let mut staged = 0;
    while staged < 64 {
        it.stage(&nop(staged));
        staged += 1;
    }
    let mut seen = 0;
    it.run_until("all of them", |it| {
        for completion in std::mem::take(&mut it.done) {
            assert_eq!(completion.result, 0);
            seen += 1;
            if staged < total {
                // In the slot that has just become free.
                assert_eq!(it.engine.stage(&nop(completion.slot)), Ok(()));
                staged += 1;
            }
        }
        seen == total
    });
    assert!(!it.engine.is_busy());
}

#[test]
fn a_ring_of_one_entry_does_everything_but_chains() {
    for task_run in TASK_RUNS {
        let directory = Directory::new();
        let setup = Setup { entries: 1, cq_entries: 1, task_run, ..Setup::default() };
        let mut it = Loop::new(EngineOptions { setup, ..EngineOptions::default() });
        let file = it.adopt(directory.file("file", b"content"));
        let (fifo, mut writer) = it.fifo();
        let (chunk, late) = (it.chunk(16), it.chunk(16));
        it.stage(&read(0, fifo, late, (0, 16), 0));
        it.stage(&read(1, file, chunk, (0, 16), 0));
        it.until_block();
        assert_eq!(it.result(1), 7);
        assert_eq!(it.bytes(chunk, 0, 7), b"content");
        writer.write_all(b"x").expect("room in the pipe");
        assert_eq!(it.result(0), 1, "{task_run:?}");
        it.stage(&read(0, fifo, late, (0, 16), 0));
        it.until_block();
        assert!(it.engine.cancel(0));
        assert_eq!(it.result(0), -libc::ECANCELED);
        it.stage(&link(nop(2)));
        assert!(it.engine.stage(&nop(3)).is_err());
        assert_eq!(it.result(2), -libc::ECANCELED);
    }
}

#[test]
fn queues_that_the_kernel_makes_longer_are_used_whole() {
    let setup = Setup { entries: 5, cq_entries: 9, task_run: TaskRun::Defer, ..Setup::default() };
    let mut it = Loop::new(EngineOptions { setup, ..small() });
    let granted = it.engine.capabilities().setup;
    assert_eq!((granted.entries, granted.cq_entries), (8, 16));
    for slot in 0..8 {
        it.stage(&nop(slot));
    }
    it.settle();
    assert_eq!(it.engine.stats().enters, 1);
}

#[test]
fn impossible_queues_are_refused_with_einval() {
    for (entries, cq_entries) in [(0, 8), (8, 4), (8, 0)] {
        let engine = node_uring_core::Engine::new(with_entries(entries, cq_entries));
        let errno = engine.err().and_then(|error| error.raw_os_error());
        assert_eq!(errno, Some(libc::EINVAL), "{entries} and {cq_entries}");
    }
}
