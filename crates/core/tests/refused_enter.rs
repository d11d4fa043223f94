//! Enter refused: EAGAIN, EBUSY and EINTR keep the work and back off; anything else ends the engine.
//! The refusals are the kernel's own, or come from a gate that stands before the real system call.

mod common;

use std::io::Write;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use common::gate::Gate;
use common::{
    DEADLINE, Loop, TASK_RUNS, alone, descriptors_like, is_readable, link, nop, post, read,
    replace_descriptor, skip, small, unregister_ring_descriptor, with_entries, with_task_run,
};
use node_uring_core::{EngineOptions, Refusal, Setup, TaskRun, Turn};

const TRANSIENT: [i32; 3] = [libc::EAGAIN, libc::EBUSY, libc::EINTR];
const NO_GATE: &str = "seccomp_unotify(2) is not to be had";

/// Runs `body` behind a gate, or says that it cannot.
fn gated(title: &str, body: impl FnOnce(&Gate) + Send) {
    if !Gate::run(body) {
        skip(title, NO_GATE);
    }
}

#[test]
fn an_enter_that_is_refused_keeps_the_work_for_the_next_one() {
    gated("an enter that is refused keeps the work for the next one", |gate| {
        for errno in TRANSIENT {
            let mut it = Loop::new(small());
            gate.refuse(errno, 3);
            it.stage(&nop(0));
            assert_eq!([it.turn(), it.turn(), it.turn()], [Turn::Again; 3], "{errno}");
            assert!(it.engine.is_busy());
            assert_eq!(it.turn(), Turn::Deliver, "{errno}");
            assert_eq!(it.done.len(), 1);
            assert_eq!(it.turn(), Turn::Block);
            assert_eq!(it.engine.stats().refusals, 3);
        }
    });
}

#[test]
fn refusals_that_go_on_are_met_with_a_timer_that_doubles_to_32_ms() {
    gated("refusals that go on are met with a timer that doubles to 32 ms", |gate| {
        let mut it = Loop::new(small());
        gate.shut(libc::EAGAIN);
        it.stage(&nop(0));
        let said: Vec<_> = (0..12).map(|_| it.turn()).collect();
        assert_eq!(said[..4], [Turn::Again; 4]);
        let waits = [1, 2, 4, 8, 16, 32, 32, 32];
        assert_eq!(said[4..], waits.map(|after_ms| Turn::Retry { after_ms }));
        gate.open();
        assert_eq!(it.result(0), 0);
        assert_eq!(it.pump(), Turn::Block);
        gate.shut(libc::EAGAIN);
        it.stage(&nop(0));
        assert_eq!(it.turn(), Turn::Again, "the count begins anew");
        gate.open();
        it.settle();
    });
}

#[test]
fn an_enter_that_takes_nothing_and_says_no_error_backs_off_too() {
    gated("an enter that takes nothing and says no error backs off too", |gate| {
        let mut it = Loop::new(small());
        gate.shut(0);
        it.stage(&nop(0));
        for _ in 0..4 {
            it.turn();
        }
        assert_eq!(it.turn(), Turn::Retry { after_ms: 1 });
        gate.open();
        assert_eq!(it.result(0), 0);
    });
}

#[test]
fn work_staged_while_enter_is_refused_goes_with_the_rest_and_in_order() {
    gated("work staged while enter is refused goes with the rest and in order", |gate| {
        let mut it = Loop::new(with_entries(4, 64));
        let (fifo, mut writer) = it.fifo();
        gate.shut(libc::EAGAIN);
        for slot in 0..10 {
            let chunk = it.chunk(1);
            // Each waits for the one before: the bytes come in the order of the slots.
            let request = read(slot, fifo, chunk, (0, 1), 0);
            it.stage(&if slot % 4 == 3 || slot == 9 { request } else { link(request) });
            it.turn();
        }
        assert!(matches!(it.turn(), Turn::Retry { .. }), "a full queue does not make it spin");
        gate.open();
        writer.write_all(b"0123456789").expect("room in the pipe");
        it.settle();
        assert_eq!(it.results().values().filter(|&&result| result == 1).count(), 10);
    });
}

#[test]
fn a_completion_that_waits_in_the_kernel_does_not_make_a_refused_loop_spin() {
    gated("a completion that waits in the kernel does not make a refused loop spin", |gate| {
        for task_run in TASK_RUNS {
            let mut it = Loop::new(with_task_run(task_run));
            let (fifo, mut writer) = it.fifo();
            let chunk = it.chunk(1);
            it.stage(&read(0, fifo, chunk, (0, 1), 0));
            it.until_block();
            gate.shut(libc::EAGAIN);
            it.stage(&nop(1));
            writer.write_all(b"x").expect("room in the pipe");
            let said: Vec<_> = (0..20).map(|_| it.turn()).collect();
            let waits = said.iter().filter(|turn| matches!(turn, Turn::Retry { .. })).count();
            assert!(waits > 10, "{task_run:?}: {said:?}");
            gate.open();
            it.settle();
            assert_eq!(it.results()[&0], 1, "{task_run:?}");
        }
    });
}

#[test]
fn what_completes_is_delivered_while_there_is_no_memory_to_submit_more() {
    gated("what completes is delivered while there is no memory to submit more", |gate| {
        for task_run in TASK_RUNS {
            for errno in [libc::EAGAIN, libc::EBUSY, 0] {
                let mut it = Loop::new(with_task_run(task_run));
                let (fifo, mut writer) = it.fifo();
                let chunk = it.chunk(1);
                it.stage(&read(0, fifo, chunk, (0, 1), 0));
                it.until_block();
                gate.shut_for_submissions(errno);
                it.stage(&nop(1));
                it.turn();
                writer.write_all(b"x").expect("room in the pipe");
                assert_eq!(it.result(0), 1, "{task_run:?}, {errno}");
                assert!(it.engine.is_busy(), "the other waits");
                gate.open();
                it.settle();
            }
        }
    });
}

#[test]
fn what_is_in_the_completion_queue_is_delivered_although_enter_is_refused() {
    gated("what is in the completion queue is delivered although enter is refused", |gate| {
        let mut it = Loop::new(with_task_run(TaskRun::Interrupt));
        it.stage(&nop(0));
        it.engine.flush();
        gate.shut(libc::EBUSY);
        it.stage(&nop(1));
        assert_eq!(it.turn(), Turn::Deliver);
        assert_eq!(it.done[0].slot, 0);
        gate.open();
        it.settle();
        assert_eq!(it.done.len(), 2);
    });
}

#[test]
fn a_late_completion_wakes_a_loop_that_waits_to_try_again() {
    gated("a late completion wakes a loop that waits to try again", |gate| {
        let mut it = Loop::new(small());
        let (fifo, mut writer) = it.fifo();
        let chunk = it.chunk(1);
        it.stage(&read(0, fifo, chunk, (0, 1), 0));
        it.until_block();
        gate.shut(libc::EAGAIN);
        it.stage(&nop(1));
        let waits = (0..10).any(|_| matches!(it.turn(), Turn::Retry { .. }));
        assert!(waits, "{:?}", it.said);
        writer.write_all(b"x").expect("room in the pipe");
        assert!(is_readable(it.engine.wait_descriptor(), DEADLINE));
        gate.open();
        it.engine.woken();
        it.settle();
    });
}

#[test]
fn a_cancel_before_submission_is_delivered_although_enter_is_refused() {
    gated("a cancel before submission is delivered although enter is refused", |gate| {
        let mut it = Loop::new(with_entries(2, 8));
        gate.shut(libc::EAGAIN);
        it.stage(&nop(0));
        it.stage(&nop(1));
        it.turn();
        it.stage(&nop(2));
        it.stage(&link(nop(3)));
        it.stage(&nop(4));
        assert!(it.engine.cancel(2));
        assert!(it.engine.cancel(4));
        // The queue is full of the first two, but the others need no room there.
        for _ in 0..10 {
            it.turn();
        }
        let canceled = -libc::ECANCELED;
        assert_eq!(it.results(), [(2, canceled), (3, canceled), (4, canceled)].into());
        gate.open();
        it.settle();
    });
}

#[test]
fn an_operation_cancelled_while_it_waits_in_a_refused_queue_is_cancelled_by_the_kernel() {
    gated("an operation cancelled while it waits in a refused queue is cancelled", |gate| {
        let mut it = Loop::new(small());
        let (fifo, _writer) = it.fifo();
        let chunk = it.chunk(1);
        gate.refuse(libc::EAGAIN, 2);
        it.stage(&read(0, fifo, chunk, (0, 1), 0));
        it.turn();
        assert!(it.engine.cancel(0));
        assert_eq!(it.result(0), -libc::ECANCELED);
    });
}

#[test]
fn shutdown_does_not_wait_longer_than_told_when_enter_is_refused() {
    gated("shutdown does not wait longer than told when enter is refused", |gate| {
        let mut it = Loop::new(small());
        it.stage(&nop(0));
        gate.shut(libc::EAGAIN);
        it.turn();
        let started = Instant::now();
        assert!(!it.engine.shutdown(Duration::from_millis(50)));
        assert!(started.elapsed() < DEADLINE);
        assert!(!it.engine.shutdown(Duration::from_millis(50)), "the answer stays the same");
        gate.open();
    });
}

// ---- the end of an engine ---------------------------------------------------------------------

/// What every engine does whose enter failed with `errno`.
#[track_caller]
fn is_over(it: &mut Loop, errno: i32) {
    let busy_before = it.engine.in_flight();
    assert_eq!(it.pump(), Turn::Failed(errno));
    assert_eq!([it.turn(), it.turn()], [Turn::Block; 2], "said once");
    assert!(!it.engine.is_busy(), "the loop may end");
    assert_eq!(it.engine.in_flight(), busy_before, "held for ever");
    let enters = it.engine.stats().enters;
    assert_eq!(it.engine.stage(&nop(999)), Err(Refusal::Failed));
    it.engine.cancel(0);
    it.engine.flush();
    assert_eq!(it.turn(), Turn::Block);
    assert_eq!(it.engine.stats().enters, enters, "enter is not called again");
    let started = Instant::now();
    assert!(!it.engine.shutdown(Duration::from_secs(3600)), "the kernel may still hold memory");
    assert!(started.elapsed() < DEADLINE, "and there is nothing to wait for");
    assert_eq!(it.engine.stage(&nop(999)), Err(Refusal::Closed));
}

#[test]
fn any_other_errno_of_enter_ends_the_engine_and_is_said_once() {
    gated("any other errno of enter ends the engine and is said once", |gate| {
        for errno in [libc::EBADF, libc::ENXIO, libc::EFAULT, libc::EINVAL, libc::EEXIST, 4095] {
            let mut it = Loop::new(small());
            let (fifo, _writer) = it.fifo();
            let chunk = it.chunk(16);
            it.stage(&read(0, fifo, chunk, (0, 16), 0));
            it.until_block();
            it.stage(&nop(1));
            gate.refuse(errno, 1);
            is_over(&mut it, errno);
            it.engine.arena().disown(chunk).expect("owned");
            let used = it.engine.arena().stats(node_uring_core::Pool::Alloc).used_bytes;
            assert_eq!(used, 4096, "the kernel may still write there");
        }
    });
}

#[test]
fn a_failure_in_a_flush_is_told_by_the_next_turn() {
    gated("a failure in a flush is told by the next turn", |gate| {
        let mut it = Loop::new(small());
        it.stage(&nop(0));
        gate.refuse(libc::EBADF, 1);
        it.engine.flush();
        is_over(&mut it, libc::EBADF);
    });
}

#[test]
fn a_failed_engine_cannot_be_posted_to_and_listens_no_more() {
    gated("a failed engine cannot be posted to and listens no more", |gate| {
        let mut it = Loop::new(small());
        let mut from = Loop::new(small());
        it.engine.set_listening(true);
        it.stage(&nop(0));
        gate.refuse(libc::EBADF, 1);
        assert_eq!(it.pump(), Turn::Failed(libc::EBADF));
        assert!(!it.engine.is_busy());
        let answer = from.complete(&post(0, it.engine.ring_descriptor(), 1));
        assert_eq!(answer, -libc::EBADFD);
    });
}

#[test]
fn a_failed_engine_does_not_keep_its_descriptor_readable() {
    gated("a failed engine does not keep its descriptor readable", |gate| {
        let mut it = Loop::new(small());
        let (fifo, mut writer) = it.fifo();
        let chunk = it.chunk(1);
        it.stage(&read(0, fifo, chunk, (0, 1), 0));
        it.until_block();
        writer.write_all(b"x").expect("room in the pipe");
        let descriptor = it.engine.wait_descriptor();
        assert!(is_readable(descriptor, DEADLINE));
        gate.refuse(libc::EBADF, 1);
        it.engine.woken();
        assert_eq!(it.pump(), Turn::Failed(libc::EBADF));
        for _ in 0..3 {
            if is_readable(descriptor, Duration::ZERO) {
                it.engine.woken();
            }
            assert_eq!(it.turn(), Turn::Block);
        }
        assert!(!is_readable(descriptor, Duration::ZERO), "the loop would spin for ever");
    });
}

/// An engine whose ring's descriptor number is known: nobody else makes rings in this process.
fn with_known_ring(registered_descriptor: bool) -> Option<(Loop, RawFd)> {
    let before = descriptors_like("[io_uring]");
    let base = small();
    let setup = Setup { registered_descriptor, ..base.setup };
    let it = Loop::new(EngineOptions { setup, ..base });
    let mut new = descriptors_like("[io_uring]");
    new.retain(|fd| !before.contains(fd));
    let granted = it.engine.capabilities().setup.registered_descriptor;
    (granted == registered_descriptor && new.len() == 1).then(|| (it, new[0]))
}

#[test]
fn a_ring_whose_descriptor_became_another_file_ends_the_engine() {
    alone("a_ring_whose_descriptor_became_another_file_ends_the_engine", || {
        let Some((mut it, ring)) = with_known_ring(false) else {
            panic!("the ring's descriptor was not found");
        };
        let null = std::fs::File::open("/dev/null").expect("/dev/null");
        replace_descriptor(ring, &null);
        it.stage(&nop(0));
        is_over(&mut it, libc::EOPNOTSUPP);
    });
}

#[test]
fn a_ring_whose_registered_descriptor_was_taken_away_ends_the_engine() {
    let name = "a_ring_whose_registered_descriptor_was_taken_away_ends_the_engine";
    alone(name, || {
        let Some((mut it, ring)) = with_known_ring(true) else {
            return skip(&name.replace('_', " "), "ring descriptors cannot be registered");
        };
        unregister_ring_descriptor(ring);
        it.stage(&nop(0));
        is_over(&mut it, libc::EBADF);
    });
}
