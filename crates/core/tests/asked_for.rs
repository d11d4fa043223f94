//! What a set-up asks for by name does what it says: who looks for completions, how long what is staged
//! waits for more, operations that a ring is restricted to. Polling threads have `polling_thread.rs`, devices
//! that are polled `polled_devices.rs`; that all else works on such rings is shown by `setups.rs`.

mod common;

use std::fs;
use std::os::fd::IntoRawFd;
use std::time::{Duration, Instant};

use common::{
    DEADLINE, Directory, Loop, is_readable, link, nop, open, path_bytes, polled, read, restricted,
    small, timeout, truncate, write,
};
use node_uring_core::{EngineOptions, Reap, Turn};

const CANCELED: i32 = -libc::ECANCELED;

#[test]
fn a_loop_that_polls_does_not_sleep_while_anything_is_in_flight_and_nobody_is_woken() {
    for options in [small(), polled(1000)] {
        let mut it = Loop::new(EngineOptions { reap: Reap::Poll, ..options });
        it.until_block();
        let (fifo, mut writer) = it.fifo();
        let chunk = it.chunk(4);
        it.stage(&read(0, fifo, chunk, (0, 4), 0));
        for _ in 0..100 {
            assert_eq!(it.turn(), Turn::Again);
        }
        std::io::Write::write_all(&mut writer, b"late").expect("room in the pipe");
        assert_eq!(it.result(0), 4);
        assert_eq!(it.bytes(chunk, 0, 4), b"late");
        assert!(!is_readable(it.engine.wait_descriptor(), Duration::ZERO), "the eventfd was off");
        assert_eq!(it.complete(&nop(0)), 0);
        it.until_block();
        assert_eq!(it.engine.stats().wakeups, 0);
    }
}

#[test]
fn a_loop_that_polls_briefly_sleeps_when_nothing_goes_or_comes_for_long_and_is_woken() {
    for options in [small(), polled(1000)] {
        let mut it = Loop::new(EngineOptions { reap: Reap::PollBriefly, ..options });
        it.until_block();
        let (fifo, mut writer) = it.fifo();
        let chunk = it.chunk(4);
        let mut looked = 0;
        for _ in 0..50 {
            it.stage(&read(0, fifo, chunk, (0, 4), 0));
            looked += u32::from(it.pump() == Turn::Again);
            it.until_block();
            std::io::Write::write_all(&mut writer, b"late").expect("room in the pipe");
            let woken = is_readable(it.engine.wait_descriptor(), DEADLINE);
            assert!(woken, "the loop sleeps, and nothing wakes it");
            it.engine.woken();
            assert_eq!(it.result(0), 4);
        }
        assert!(looked > 0, "it slept at once each time");
        it.until_block();
        assert_eq!(it.pump(), Turn::Block, "with nothing in flight");
    }
}

#[test]
fn a_waiter_wakes_a_loop_that_can_watch_no_descriptor() {
    let mut it = Loop::new(small());
    let (fifo, mut writer) = it.fifo();
    let chunk = it.chunk(4);
    let (send, woken) = std::sync::mpsc::channel();
    let waiter = it.engine.start_waiter(move || send.send(()).is_ok()).expect("a thread");
    for round in 1..=50 {
        it.stage(&read(0, fifo, chunk, (0, 4), 0));
        it.until_block();
        std::io::Write::write_all(&mut writer, b"late").expect("room in the pipe");
        woken.recv_timeout(DEADLINE).expect("it was woken");
        it.engine.woken_elsewhere();
        it.until_block();
        assert_eq!(it.done.len(), round, "what it was woken for is there");
    }
    assert_eq!(it.engine.stats().wakeups, 50);
    drop(waiter);
}

fn gathering(delay: Duration) -> EngineOptions {
    EngineOptions { flush_delay: delay, ..small() }
}

#[test]
fn what_is_staged_waits_for_more_and_goes_in_one_submission_when_the_delay_is_over() {
    for delay in [Duration::from_micros(500), Duration::from_millis(50)] {
        let mut it = Loop::new(gathering(delay));
        let from = Instant::now();
        for slot in 0..5 {
            it.stage(&nop(slot));
            let turn = it.pump();
            let late = from.elapsed() >= delay;
            assert!(late || turn != Turn::Block, "nothing would wake it: {turn:?}");
        }
        it.settle();
        assert!(from.elapsed() >= delay);
        assert_eq!(it.results().len(), 5);
        let stats = it.engine.stats();
        // On a machine that is stopped in between there are more.
        assert!(stats.submitting_enters == 1 || from.elapsed() > 2 * delay, "{stats:?}");
    }
}

#[test]
fn what_waits_for_more_is_submitted_by_flush_by_a_full_queue_and_by_a_cancel() {
    let hour = Duration::from_secs(3600);
    let mut it = Loop::new(gathering(hour));
    it.stage(&nop(0));
    assert!(matches!(it.pump(), Turn::Retry { .. }));
    it.engine.flush();
    assert_eq!(it.result(0), 0);
    for slot in 0..64 {
        it.stage(&nop(slot));
    }
    it.settle();
    assert_eq!(it.results().len(), 64);
    it.done.clear();
    it.stage(&nop(0));
    it.stage(&timeout(1, hour));
    it.engine.flush();
    it.stage(&nop(2));
    assert!(it.engine.cancel(1));
    it.settle();
    assert_eq!((it.results()[&1], it.results()[&2]), (CANCELED, 0));
    it.done.clear();
    // Cancelled before it was submitted.
    it.stage(&nop(0));
    assert!(matches!(it.pump(), Turn::Retry { .. }));
    assert!(it.engine.cancel(0));
    assert_eq!(it.result(0), CANCELED);
    it.stage(&nop(0));
    assert!(matches!(it.pump(), Turn::Retry { .. }), "what comes later waits again");
}

#[test]
fn completions_come_while_something_waits_for_more() {
    let mut it = Loop::new(gathering(Duration::from_secs(3600)));
    let (fifo, mut writer) = it.fifo();
    let chunk = it.chunk(4);
    it.stage(&read(0, fifo, chunk, (0, 4), 0));
    it.engine.flush();
    it.stage(&nop(1));
    assert!(matches!(it.pump(), Turn::Retry { .. }));
    std::io::Write::write_all(&mut writer, b"late").expect("room in the pipe");
    assert!(is_readable(it.engine.wait_descriptor(), DEADLINE), "the loop is woken");
    it.engine.woken();
    it.pump();
    assert_eq!(it.results()[&0], 4);
    assert!(it.engine.shutdown(DEADLINE), "it ends at once");
}

#[test]
fn what_waits_for_more_goes_to_a_polling_thread_in_the_end() {
    let options = EngineOptions { flush_delay: Duration::from_millis(5), ..polled(100) };
    let mut it = Loop::new(options);
    for slot in 0..20 {
        assert_eq!(it.complete(&nop(slot)), 0);
    }
    for slot in 0..500 {
        it.stage(&nop(slot));
    }
    it.settle();
    assert_eq!(it.results().len(), 500);
}

#[test]
fn the_kernel_refuses_what_a_ring_is_not_restricted_to() {
    let directory = Directory::new();
    let name = directory.join("file");
    fs::write(&name, [7; 100]).expect("a file");
    let mut it = Loop::new(restricted(&["read"]));
    let file = it.adopt(fs::File::options().read(true).write(true).open(&name).expect("a file"));
    let chunk = it.chunk(100);
    assert_eq!(it.complete(&read(0, file, chunk, (0, 100), 0)), 100);
    assert_eq!(it.complete(&write(0, file, chunk, (0, 100), 0)), -libc::EACCES);
    assert_eq!(it.complete(&truncate(0, file, 0)), -libc::EACCES);
    assert_eq!(it.complete(&open(0, path_bytes(&name), libc::O_RDONLY, 0)), -libc::EACCES);
    assert_eq!(it.complete(&nop(0)), 0);
    assert_eq!(fs::read(&name).expect("the file"), [7; 100]);
    // What was asked of it does not go on, and neither does what is linked behind it.
    it.stage(&link(write(0, file, chunk, (0, 1), 0)));
    it.stage(&nop(1));
    it.settle();
    assert_eq!((it.results()[&0], it.results()[&1]), (-libc::EACCES, CANCELED));
}

#[test]
fn a_restricted_ring_tells_its_capabilities_and_limits() {
    let it = Loop::new(restricted(&["read"]));
    let plain = Loop::new(small());
    let (ours, theirs) = (it.engine.capabilities(), plain.engine.capabilities());
    assert_eq!(ours.operations, theirs.operations, "what the kernel has");
    assert_eq!(ours.refused, theirs.refused);
    assert_eq!(it.engine.limits().workers, plain.engine.limits().workers);
}

#[test]
fn a_restricted_ring_registers_files_and_memory() {
    let directory = Directory::new();
    let name = directory.join("direct");
    fs::write(&name, [5; 4096]).expect("a file");
    let mut it = Loop::new(restricted(&["read", "write"]));
    let direct = fs::File::options().read(true).write(true).open(&name).expect("a file");
    let file = it.engine.adopt(direct.into_raw_fd(), true).expect("room");
    let chunk = it.chunk(4096);
    assert_eq!(it.complete(&read(0, file, chunk, (0, 4096), 0)), 4096);
    assert_eq!(it.complete(&write(0, file, chunk, (0, 4096), 4096)), 4096);
    assert_eq!(it.engine.buffer_table(), Some(Ok(())));
    assert!(it.engine.arena().registered_bytes() > 0);
    assert!(it.engine.registered_files() > 0);
}
