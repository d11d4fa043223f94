//! What `Engine::turn` says, and that the loop can rely on it: nothing is left behind when it says
//! Block, and whatever comes later makes the descriptor readable.

mod common;

use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::marks::set_taskrun;
use common::{
    DEADLINE, Loop, TASK_RUNS, is_readable, nop, read, small, timeout, with_entries, with_task_run,
};
use node_uring_core::{TaskRun, Turn};

/// A ring is one thread's own. This does not compile when `Engine` is `Send`: `f` is ambiguous then.
const _: fn() = {
    trait AmbiguousIfSend<A> {
        fn f() {}
    }
    struct Sent;
    impl<T> AmbiguousIfSend<()> for T {}
    impl<T: Send> AmbiguousIfSend<Sent> for T {}
    <node_uring_core::Engine as AmbiguousIfSend<_>>::f
};

/// Long enough for the kernel to tell what it is going to tell.
const A_WHILE: Duration = Duration::from_millis(20);

#[test]
fn an_idle_engine_blocks_and_does_not_call_enter() {
    let mut it = Loop::new(small());
    for _ in 0..10 {
        assert_eq!(it.turn(), Turn::Block);
    }
    assert_eq!(it.engine.stats().enters, 0);
}

#[test]
fn a_nop_is_delivered_in_the_turn_that_submits_it() {
    let mut it = Loop::new(small());
    it.stage(&nop(5));
    assert_eq!(it.turn(), Turn::Deliver);
    assert_eq!((it.done[0].slot, it.done[0].result), (5, 0));
    assert_eq!(it.turn(), Turn::Block);
    let stats = it.engine.stats();
    assert_eq!((stats.enters, stats.submitting_enters, stats.submitted), (1, 1, 1));
}

#[test]
fn all_that_is_staged_goes_in_one_enter() {
    let mut it = Loop::new(small());
    for slot in 0..64 {
        it.stage(&nop(slot));
    }
    assert_eq!(it.turn(), Turn::Deliver);
    assert_eq!(it.done.len(), 64);
    assert_eq!(it.engine.stats().enters, 1);
}

#[test]
fn nothing_is_left_unsubmitted_when_a_turn_says_block() {
    for count in [1, 3, 4, 5, 8, 11, 40] {
        let mut it = Loop::new(with_entries(4, 64));
        let (fifo, _writer) = it.fifo();
        for slot in 0..count {
            let chunk = it.chunk(16);
            it.stage(&read(slot, fifo, chunk, (0, 16), 0));
        }
        it.until_block();
        assert_eq!(it.engine.stats().submitted, u64::from(count), "taken by the kernel");
        assert!(it.done.is_empty());
    }
}

#[test]
fn a_turn_that_could_not_submit_everything_says_again() {
    let mut it = Loop::new(with_entries(4, 64));
    let (fifo, _writer) = it.fifo();
    for slot in 0..10 {
        let chunk = it.chunk(16);
        it.stage(&read(slot, fifo, chunk, (0, 16), 0));
    }
    assert_eq!([it.turn(), it.turn(), it.turn()], [Turn::Again, Turn::Again, Turn::Block]);
}

#[test]
fn a_turn_ends_although_each_delivery_stages_more() {
    let mut it = Loop::new(small());
    it.stage(&nop(0));
    let mut rounds = 0;
    while it.turn() == Turn::Deliver {
        it.stage(&nop(0));
        rounds += 1;
        assert!(rounds <= 64, "timers wait");
    }
    assert_eq!(it.said.last(), Some(&Turn::Again), "and comes round for the rest");
    assert!(rounds >= 4, "but not at once");
    it.settle();
}

#[test]
fn a_turn_ends_when_a_thousand_are_delivered_however_few_rounds_that_took() {
    let mut it = Loop::new(with_entries(512, 4096));
    for slot in 0..4096 {
        it.stage(&nop(slot));
    }
    assert_eq!(it.pump(), Turn::Again);
    assert_eq!(it.done.len(), 1024);
    it.settle();
    assert_eq!(it.done.len(), 4096);
}

#[test]
fn what_a_flush_submitted_is_delivered_by_the_next_turn() {
    let mut it = Loop::new(small());
    it.stage(&nop(1));
    it.engine.flush();
    assert_eq!(it.engine.stats().submitted, 1);
    assert_eq!(it.turn(), Turn::Deliver);
    assert_eq!(it.done[0].slot, 1);
}

#[test]
fn a_flush_with_nothing_staged_does_not_call_enter() {
    let mut it = Loop::new(small());
    it.engine.flush();
    assert_eq!(it.engine.stats().enters, 0);
}

#[test]
fn a_late_completion_makes_the_descriptor_readable_while_the_loop_sleeps() {
    for task_run in TASK_RUNS {
        let mut it = Loop::new(with_task_run(task_run));
        let (fifo, mut writer) = it.fifo();
        let chunk = it.chunk(16);
        it.stage(&read(0, fifo, chunk, (0, 16), 0));
        it.until_block();
        let descriptor = it.engine.wait_descriptor();
        assert!(!is_readable(descriptor, A_WHILE), "{task_run:?}: nothing has come yet");
        writer.write_all(b"late").expect("room in the pipe");
        assert!(is_readable(descriptor, DEADLINE), "{task_run:?}");
        it.engine.woken();
        assert_eq!(it.turn(), Turn::Deliver, "{task_run:?}");
        assert_eq!(it.result(0), 4);
        assert_eq!(it.pump(), Turn::Block);
        assert!(!is_readable(descriptor, A_WHILE), "{task_run:?}: told once");
    }
}

#[test]
fn a_timeout_makes_the_descriptor_readable_while_the_loop_sleeps() {
    for task_run in TASK_RUNS {
        let mut it = Loop::new(with_task_run(task_run));
        it.stage(&timeout(0, Duration::from_millis(5)));
        it.until_block();
        assert!(is_readable(it.engine.wait_descriptor(), DEADLINE), "{task_run:?}");
        it.engine.woken();
        assert_eq!(it.result(0), -libc::ETIME);
    }
}

#[test]
fn a_late_completion_leaves_the_descriptor_alone_while_the_loop_is_awake_and_is_not_missed() {
    for task_run in TASK_RUNS {
        let mut it = Loop::new(with_task_run(task_run));
        let (fifo, mut writer) = it.fifo();
        let chunk = it.chunk(16);
        it.stage(&read(0, fifo, chunk, (0, 16), 0));
        it.until_block();
        it.stage(&nop(1));
        assert_eq!(it.turn(), Turn::Deliver, "in the middle of a turn");
        writer.write_all(b"late").expect("room in the pipe");
        let descriptor = it.engine.wait_descriptor();
        assert!(!is_readable(descriptor, A_WHILE), "{task_run:?}: we are awake");
        assert_eq!(it.pump(), Turn::Block);
        assert_eq!(it.result(0), 4, "{task_run:?}");
    }
}

/// The last moment: after the enter of the last round, before the eventfd is armed. Cannot be hit on
/// purpose from here, so the other thread writes whenever it likes, often.
#[test]
fn no_byte_of_a_fifo_race_is_missed() {
    const BYTES: u32 = 100_000;
    let share = [BYTES, BYTES / 10, BYTES / 10];
    for (task_run, bytes) in TASK_RUNS.into_iter().zip(share) {
        let mut it = Loop::new(with_task_run(task_run));
        let (fifo, mut writer) = it.fifo();
        let chunk = it.chunk(1);
        let received = AtomicU32::new(0);
        thread::scope(|scope| {
            let received = &received;
            scope.spawn(move || {
                for sent in 0..bytes {
                    let started = Instant::now();
                    while received.load(Ordering::Acquire) < sent {
                        if started.elapsed() > DEADLINE {
                            return;
                        }
                        thread::yield_now();
                    }
                    // From "while the other still delivers" to "long asleep".
                    for _ in 0..sent % 64 * (sent % 8) {
                        std::hint::spin_loop();
                    }
                    writer.write_all(&[sent as u8]).expect("a reader");
                }
            });
            for count in 0..bytes {
                it.stage(&read(0, fifo, chunk, (0, 1), 0));
                assert_eq!(it.result(0), 1, "{task_run:?}, byte {count}");
                assert_eq!(it.bytes(chunk, 0, 1)[0], count as u8, "{task_run:?}");
                it.said.clear();
                received.store(count + 1, Ordering::Release);
            }
        });
        assert!(it.engine.stats().wakeups > 0, "{task_run:?}: it slept at times");
    }
}

#[test]
fn a_wake_up_that_was_for_nothing_is_cleared() {
    for task_run in TASK_RUNS {
        let mut it = Loop::new(with_task_run(task_run));
        let (fifo, mut writer) = it.fifo();
        let chunk = it.chunk(1);
        it.stage(&read(0, fifo, chunk, (0, 1), 0));
        it.until_block();
        writer.write_all(b"x").expect("room in the pipe");
        let descriptor = it.engine.wait_descriptor();
        assert!(is_readable(descriptor, DEADLINE));
        // libuv calls prepare before poll: the turn takes the completion, and the news come after.
        it.until_block();
        assert_eq!(it.done.len(), 1, "{task_run:?}");
        it.engine.woken();
        it.until_block();
        assert!(!is_readable(descriptor, A_WHILE), "{task_run:?}: the loop would spin");
    }
}

#[test]
fn an_engine_is_busy_from_stage_to_delivery() {
    let mut it = Loop::new(small());
    assert!(!it.engine.is_busy());
    it.stage(&nop(0));
    assert!(it.engine.is_busy());
    assert_eq!(it.turn(), Turn::Deliver);
    assert!(!it.engine.is_busy());
    it.stage(&nop(0));
    assert!(it.engine.cancel(0));
    it.engine.flush();
    assert!(it.engine.is_busy(), "cancelled, and not delivered yet");
    it.settle();
    assert_eq!(it.done.len(), 2);
}

/// A worker that is held up in `io_req_local_work_add` sets IORING_SQ_TASKRUN when its work has been run
/// already, and no enter takes the flag back.
#[test]
fn work_that_the_kernel_speaks_of_and_that_is_not_there_makes_no_loop_spin() {
    for task_run in [TaskRun::Defer, TaskRun::Cooperative] {
        let mut it = Loop::new(with_task_run(task_run));
        let (fifo, mut writer) = it.fifo();
        let chunk = it.chunk(1);
        it.stage(&read(0, fifo, chunk, (0, 1), 0));
        it.until_block();
        set_taskrun(it.engine.ring_descriptor(), it.engine.capabilities().setup.entries);
        let sleeps = |turn: &Turn| matches!(turn, Turn::Retry { .. });
        let started = Instant::now();
        while !sleeps(&it.turn()) {
            assert!(started.elapsed() < DEADLINE, "{task_run:?}: it spins");
        }
        let said: Vec<_> = (0..2560).map(|_| it.turn()).collect();
        assert_eq!(said.iter().filter(|turn| sleeps(turn)).count(), 10, "{task_run:?}");
        assert!(said.iter().all(|turn| sleeps(turn) || *turn == Turn::Again));
        assert!(sleeps(said.last().expect("the last")), "the loop sleeps");
        writer.write_all(b"x").expect("room in the pipe");
        assert!(is_readable(it.engine.wait_descriptor(), DEADLINE), "what comes wakes it");
        it.engine.woken();
        assert_eq!(it.result(0), 1, "{task_run:?}");
        it.until_block();
    }
}
