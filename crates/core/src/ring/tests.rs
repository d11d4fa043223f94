//! Rings as they come of their set-up, and completions past a full queue.

use super::*;
use crate::in_flight::Sqe;
use crate::setup::TaskRun;

fn nop_round_trip(ring: &mut Ring) {
    let sqe = Sqe::control(opcode::Nop::new().build().user_data(77));
    assert!(ring.submission().push(&sqe));
    assert_eq!(ring.enter(1, true).expect("enter"), 1);
    let mut seen = Vec::new();
    ring.drain(8, |user_data, result, more| seen.push((user_data, result, more)));
    assert_eq!(seen, [(77, 0, false)]);
}

#[test]
fn every_combination_of_set_up_flags_gives_a_working_ring() {
    for task_run in [TaskRun::Defer, TaskRun::Cooperative, TaskRun::Interrupt] {
        for bits in 0..8u8 {
            let wish = Setup {
                entries: 8,
                cq_entries: 16,
                task_run,
                no_sq_array: bits & 1 != 0,
                submit_all: bits & 2 != 0,
                registered_descriptor: bits & 4 != 0,
                ..Setup::default()
            };
            let mut ring = Ring::new(wish).expect("a ring");
            assert!(ring.granted().task_run >= task_run, "never more than was asked for");
            assert!(wish.no_sq_array || !ring.granted().no_sq_array);
            nop_round_trip(&mut ring);
        }
    }
}

#[test]
fn the_ring_descriptor_is_closed_on_exec() {
    let ring = Ring::new(Setup::default()).expect("a ring");
    // SAFETY: fcntl with F_GETFD takes no pointer.
    let flags = unsafe { libc::fcntl(ring.io.as_raw_fd(), libc::F_GETFD) };
    assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
}

#[test]
fn set_up_reports_the_kernels_own_numbers() {
    let ring = Ring::new(Setup { entries: 5, cq_entries: 9, ..Setup::default() }).expect("a ring");
    assert_eq!((ring.granted().entries, ring.granted().cq_entries), (8, 16));
}

#[test]
fn completions_past_a_full_queue_are_kept_by_the_kernel_and_come_later() {
    let mut ring =
        Ring::new(Setup { entries: 4, cq_entries: 4, ..Setup::default() }).expect("a ring");
    for batch in 0..4u64 {
        for i in 0..4 {
            let entry = opcode::Nop::new().build().user_data(batch * 4 + i);
            assert!(ring.submission().push(&Sqe::control(entry)));
        }
        // Without reap nothing is collected in between: 16 completions for a queue of 4.
        ring.enter(0, false).expect("enter");
    }
    let mut seen = Vec::new();
    for _ in 0..8 {
        ring.enter(0, true).expect("enter");
        ring.drain(64, |user_data, _, _| seen.push(user_data));
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..16).collect::<Vec<_>>());
}
