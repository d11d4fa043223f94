//! Cancel: hits the one operation that was meant, and no later one in its slot.

mod common;

use std::collections::HashSet;
use std::io::Write;
use std::time::Duration;

use common::{
    Directory, Loop, TASK_RUNS, fsync, nop, open, path_bytes, punted, read, small, timeout,
    with_entries, with_task_run, write,
};
use node_uring_core::{Refusal, Turn};

const CANCELED: i32 = -libc::ECANCELED;

#[test]
fn an_operation_cancelled_before_submission_costs_no_enter_and_does_nothing() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let file = it.adopt(directory.file("file", b""));
    let chunk = it.chunk_of(b"unwanted");
    it.stage(&write(0, file, chunk, (0, 8), 0));
    assert!(it.engine.cancel(0));
    assert!(it.engine.cancel(0), "again");
    assert!(it.engine.is_staged(0), "the kernel does not have it");
    assert_eq!(it.turn(), Turn::Deliver);
    assert_eq!(it.result(0), CANCELED);
    let stats = it.engine.stats();
    assert_eq!((stats.enters, stats.cancels, stats.completed), (0, 0, 1));
    assert_eq!(directory.content("file"), b"");
    assert_eq!(it.bytes(chunk, 0, 8), b"unwanted", "nothing holds the chunk");
}

#[test]
fn a_fifo_read_in_flight_is_cancelled_and_lets_its_chunk_go() {
    for task_run in TASK_RUNS {
        for make in [std::convert::identity, punted] {
            let mut it = Loop::new(with_task_run(task_run));
            let (fifo, mut writer) = it.fifo();
            let chunk = it.chunk(16);
            it.stage(&make(read(0, fifo, chunk, (0, 16), 0)));
            it.until_block();
            assert!(it.engine.cancel(0));
            assert_eq!(it.result(0), CANCELED, "{task_run:?}");
            writer.write_all(b"too late").expect("room in the pipe");
            assert!(it.bytes(chunk, 0, 16).iter().all(|&byte| byte == 0));
            assert_eq!(it.complete(&read(0, fifo, chunk, (0, 16), 0)), 8, "and took no byte");
        }
    }
}

#[test]
fn a_cancel_hits_that_one_of_a_thousand_equal_reads_and_no_other() {
    let mut it = Loop::new(small());
    let (fifo, mut writer) = it.fifo();
    let chunks: Vec<_> = (0..1000).map(|_| it.chunk(1)).collect();
    for (slot, &chunk) in chunks.iter().enumerate() {
        it.stage(&read(slot as u32, fifo, chunk, (0, 1), 0));
    }
    it.until_block();
    let targets = [0, 1, 499, 500, 777, 999];
    for slot in targets {
        assert!(it.engine.cancel(slot));
        assert_eq!(it.result(slot), CANCELED);
        it.until_block();
        assert!(it.done.is_empty(), "no other");
    }
    writer.write_all(&[7; 994]).expect("room in the pipe");
    it.settle();
    let results = it.results();
    assert_eq!(results.len(), 994);
    assert!(results.values().all(|&result| result == 1));
    assert!(targets.iter().all(|slot| !results.contains_key(slot)));
}

#[test]
fn cancelling_a_free_slot_is_false_and_does_nothing() {
    let mut it = Loop::new(small());
    assert_eq!([0, 255, 256, 1 << 20, u32::MAX].map(|slot| it.engine.cancel(slot)), [false; 5]);
    assert_eq!(it.complete(&nop(3)), 0);
    assert!(!it.engine.cancel(3), "complete");
    it.until_block();
    assert_eq!(it.engine.stats().cancels, 0);
}

#[test]
fn a_cancel_that_comes_after_the_completion_does_not_hit_the_next_operation_of_the_slot() {
    for task_run in TASK_RUNS {
        let mut it = Loop::new(with_task_run(task_run));
        let (fifo, mut writer) = it.fifo();
        let chunk = it.chunk(1);
        it.stage(&nop(0));
        it.engine.flush();
        // In the completion queue by now: the engine does not know.
        assert!(it.engine.cancel(0));
        assert_eq!(it.result(0), 0, "{task_run:?}: its true result");
        it.stage(&read(0, fifo, chunk, (0, 1), 0));
        it.until_block();
        it.until_block();
        assert!(it.done.is_empty(), "{task_run:?}: the cancel was not for this one");
        writer.write_all(b"x").expect("room in the pipe");
        assert_eq!(it.result(0), 1, "{task_run:?}");
    }
}

#[test]
fn a_slot_used_again_after_a_cancel_never_gets_the_old_completion() {
    for task_run in TASK_RUNS {
        let mut it = Loop::new(with_task_run(task_run));
        let (fifo, mut writer) = it.fifo();
        let chunk = it.chunk(1);
        let (mut cancelled, mut read_in_time) = (0, 0);
        for round in 0..1000 {
            it.stage(&read(0, fifo, chunk, (0, 1), 0));
            it.until_block();
            // Sometimes the byte is first, sometimes the cancel; never both.
            if round % 2 == 0 {
                writer.write_all(b"x").expect("room in the pipe");
            }
            assert!(it.engine.cancel(0));
            let first = it.result(0);
            assert_eq!(it.complete(&nop(0)), 0, "{task_run:?}, {round}: after {first}");
            match first {
                1 => read_in_time += 1,
                CANCELED if round % 2 == 0 => {
                    assert_eq!(it.complete(&read(0, fifo, chunk, (0, 1), 0)), 1);
                    cancelled += 1;
                }
                CANCELED => cancelled += 1,
                other => panic!("{other}"),
            }
        }
        assert_eq!(cancelled + read_in_time, 1000);
        assert!(cancelled >= 500);
        assert_eq!(it.engine.stats().stale, 0);
    }
}

#[test]
fn cancels_go_before_everything_that_is_staged() {
    let mut it = Loop::new(with_entries(2, 64));
    let (fifo, _writer) = it.fifo();
    for slot in 0..40 {
        let chunk = it.chunk(1);
        it.stage(&read(slot, fifo, chunk, (0, 1), 0));
    }
    assert_eq!(it.turn(), Turn::Again, "two are with the kernel, the others wait");
    assert!(it.engine.cancel(0));
    assert!(it.engine.cancel(1));
    it.run_until("both to be cancelled", |it| it.done.len() == 2);
    assert_eq!(it.results(), [(0, CANCELED), (1, CANCELED)].into());
    assert!(it.engine.stats().submitted <= 6, "36 still wait: {:?}", it.engine.stats());
}

#[test]
fn everything_can_be_cancelled_at_once_with_a_small_queue() {
    let mut it = Loop::new(with_entries(2, 4));
    let (fifo, _writer) = it.fifo();
    for slot in 0..300 {
        let chunk = it.chunk(1);
        it.stage(&read(slot, fifo, chunk, (0, 1), 0));
    }
    it.until_block();
    for slot in 300..400 {
        it.stage(&timeout(slot, Duration::from_secs(3600)));
    }
    for slot in 0..400 {
        assert!(it.engine.cancel(slot));
    }
    it.settle();
    let results = it.results();
    assert_eq!(results.len(), 400);
    assert!(results.values().all(|&result| result == CANCELED));
    assert_eq!(it.engine.stats().cancels, 300, "those that had been submitted");
}

#[test]
fn a_timeout_is_cancelled() {
    let mut it = Loop::new(small());
    it.stage(&timeout(0, Duration::from_secs(3600)));
    it.until_block();
    assert!(it.engine.cancel(0));
    assert_eq!(it.result(0), CANCELED);
}

#[test]
fn an_open_that_waits_for_a_fifos_other_end_is_cancelled() {
    let directory = Directory::new();
    let path = directory.join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
        .expect("a FIFO");
    let mut it = Loop::new(small());
    let mut it_began = 0;
    for _ in 0..200 {
        // By a worker: tried inline first, an open of a FIFO does not wait for its other end.
        it.stage(&punted(open(0, path_bytes(&path), libc::O_RDONLY, 0)));
        it.until_block();
        std::thread::yield_now();
        assert!(it.engine.cancel(0));
        let result = it.result(0);
        // Before it began, or while it waited.
        assert!([CANCELED, -libc::EINTR].contains(&result), "{result}");
        it_began += i32::from(result == -libc::EINTR);
    }
    println!("{it_began} of 200 had begun");
    assert_eq!(common::descriptors_on(&path), 0);
}

#[test]
fn the_completion_of_a_cancel_itself_is_nobodys_and_counts_as_nothing() {
    let mut it = Loop::new(small());
    let (fifo, _writer) = it.fifo();
    let chunk = it.chunk(1);
    it.stage(&read(0, fifo, chunk, (0, 1), 0));
    it.until_block();
    for _ in 0..10 {
        assert!(it.engine.cancel(0), "ten cancels of one");
    }
    it.settle();
    it.until_block();
    assert_eq!(it.results(), [(0, CANCELED)].into());
    let stats = it.engine.stats();
    assert_eq!((stats.completed, stats.stale, stats.cancels), (1, 0, 10));
}

#[test]
fn what_is_cancelled_while_thousands_complete_completes_once() {
    let mut it = Loop::new(with_entries(16, 32));
    let mut expected = HashSet::new();
    for slot in 0..3000 {
        it.stage(&nop(slot));
        expected.insert(slot);
        if slot % 3 == 0 {
            it.engine.cancel(slot);
        }
        if slot % 50 == 0 {
            it.turn();
            it.engine.cancel(slot);
        }
    }
    it.settle();
    let results = it.results();
    assert_eq!(results.keys().copied().collect::<HashSet<_>>(), expected);
    assert!(results.values().all(|&result| result == 0 || result == CANCELED));
}

#[test]
fn a_file_can_be_closed_as_soon_as_its_cancelled_operation_is_delivered() {
    let mut it = Loop::new(small());
    let (fifo, _writer) = it.fifo();
    let chunk = it.chunk(1);
    it.stage(&read(0, fifo, chunk, (0, 1), 0));
    it.until_block();
    it.engine.cancel(0);
    assert_eq!(it.engine.stage(&common::close(1, fifo)), Err(Refusal::FileInFlight));
    assert_eq!(it.result(0), CANCELED);
    assert_eq!(it.complete(&common::close(1, fifo)), 0);
    assert_eq!(it.engine.stage(&fsync(1, fifo)), Err(Refusal::UnknownFile));
}

/// A worker that finds nothing to read leaves the read to a poll. The kernel does not find what is on
/// its way between the two, nor does a worker that was told to stop look again once it has begun:
/// `io_wq_submit_work`, `io_try_cancel`.
#[test]
fn a_read_is_cancelled_wherever_it_is_between_a_worker_and_its_poll() {
    for task_run in TASK_RUNS {
        let mut it = Loop::new(with_task_run(task_run));
        let (fifo, _writer) = it.fifo();
        let chunk = it.chunk(16);
        for round in 0..40_000 {
            it.stage(&punted(read(0, fifo, chunk, (0, 16), 0)));
            it.until_block();
            for _ in 0..round % 512 * 2 {
                std::hint::spin_loop();
            }
            assert!(it.engine.cancel(0));
            assert_eq!(it.result(0), CANCELED, "{task_run:?}");
        }
    }
}

#[test]
fn more_that_are_cancelled_before_submission_than_a_turn_delivers_all_end_without_a_sleep() {
    let mut it = Loop::new(small());
    for slot in 0..10_000 {
        it.stage(&nop(slot));
        assert!(it.engine.cancel(slot));
    }
    while it.engine.is_busy() {
        assert_ne!(it.turn(), Turn::Block, "there are some to deliver");
    }
    assert_eq!(it.results().len(), 10_000);
    assert_eq!(it.engine.stats().submitted, 0);
}
