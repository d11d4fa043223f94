//! What the slots keep, and for how long.

use std::os::fd::OwnedFd;

use super::*;
use crate::arena::ArenaOptions;

fn launch_holding(in_flight: &mut InFlight, slot: u32, held: Held) -> u64 {
    let launched = in_flight.launch(slot, |entry| {
        *entry = opcode::Nop::new().build();
        Ok(Prepared { held, flags: 0, inline_bytes: 0 })
    });
    assert_eq!(launched, Ok(()));
    in_flight.submit(slot, false).entry().get_user_data()
}

fn launch(in_flight: &mut InFlight, slot: u32) -> u64 {
    assert!(in_flight.is_free(slot));
    launch_holding(in_flight, slot, Held::default())
}

#[test]
fn a_completion_of_an_old_generation_or_an_unknown_slot_is_stale() {
    let mut arena = Arena::new(ArenaOptions::default());
    let mut files = Files::default();
    let mut in_flight = InFlight::default();
    let first = launch(&mut in_flight, 3);
    let arrive = |f: &mut InFlight, data, arena: &mut Arena, files: &mut Files| {
        f.arrive(data, 1, false, arena, files)
    };
    assert_eq!(arrive(&mut in_flight, first, &mut arena, &mut files), Arrived::Complete(3, 1));
    assert_eq!(arrive(&mut in_flight, first, &mut arena, &mut files), Arrived::Stale);
    let second = launch(&mut in_flight, 3);
    assert_ne!(first, second);
    assert_eq!(arrive(&mut in_flight, first, &mut arena, &mut files), Arrived::Stale);
    assert_eq!(arrive(&mut in_flight, 9999, &mut arena, &mut files), Arrived::Stale);
    assert_eq!(in_flight.len(), 1, "the second is still out");
}

#[test]
fn a_cancel_that_found_nothing_names_what_is_still_out() {
    let mut arena = Arena::new(ArenaOptions::default());
    let mut files = Files::default();
    let mut in_flight = InFlight::default();
    let first = launch(&mut in_flight, 3);
    let mut arrive =
        |f: &mut InFlight, data, result| f.arrive(data, result, false, &mut arena, &mut files);
    for (result, arrived) in [
        (0, Arrived::Cancelled),
        (-libc::EALREADY, Arrived::Missed(first)),
        (-libc::ENOENT, Arrived::Missed(first)),
        (-libc::EINVAL, Arrived::Cancelled),
    ] {
        assert_eq!(arrive(&mut in_flight, cancel_user_data(first), result), arrived);
    }
    assert_eq!(in_flight.len(), 1, "none of them is its end");
    assert_eq!(arrive(&mut in_flight, first, 1), Arrived::Complete(3, 1));
    let over = arrive(&mut in_flight, cancel_user_data(first), -libc::ENOENT);
    assert_eq!(over, Arrived::Cancelled, "nobody has the slot");
    let second = launch(&mut in_flight, 3);
    let late = arrive(&mut in_flight, cancel_user_data(first), -libc::ENOENT);
    assert_eq!(late, Arrived::Cancelled, "the first is over");
    assert_eq!(in_flight.target_of(second).map(|target| target.user_data), Some(second));
    assert_eq!(in_flight.target_of(first), None);
    assert_eq!(in_flight.target_of(message_user_data()), None);
}

#[test]
fn a_message_is_none_of_the_slots_and_none_of_many_and_keeps_its_value() {
    let mut arena = Arena::new(ArenaOptions::default());
    let mut files = Files::default();
    let mut in_flight = InFlight::default();
    let mut message = |f: &mut InFlight, value, more| {
        f.arrive(message_user_data(), value, more, &mut arena, &mut files)
    };
    assert_eq!(message(&mut in_flight, 5, false), Arrived::Message(5), "with no slot in the table");
    // The longest table there is.
    launch(&mut in_flight, 0);
    launch(&mut in_flight, SLOTS_MAX - 1);
    for value in [0, -512, -516, i32::MIN, i32::MAX] {
        assert_eq!(message(&mut in_flight, value, false), Arrived::Message(value));
        assert_eq!(message(&mut in_flight, value, true), Arrived::Message(value));
    }
    assert_eq!(in_flight.len(), 2);
}

#[test]
fn an_errno_of_the_kernels_own_becomes_eintr() {
    let mut arena = Arena::new(ArenaOptions::default());
    let mut files = Files::default();
    let mut in_flight = InFlight::default();
    for (theirs, ours) in
        [(-511, -511), (-512, -libc::EINTR), (-516, -libc::EINTR), (-517, -517), (512, 512)]
    {
        let data = launch(&mut in_flight, 0);
        let arrived = in_flight.arrive(data, theirs, false, &mut arena, &mut files);
        assert_eq!(arrived, Arrived::Complete(0, ours));
    }
}

#[test]
fn everything_is_held_until_the_last_cqe() {
    let mut arena = Arena::new(ArenaOptions::default());
    let mut files = Files::default();
    let mut in_flight = InFlight::default();
    let chunk = arena.take(crate::arena::Pool::Bounce, 10).expect("a chunk");
    arena.hold(chunk, 0, 10).expect("a hold");
    assert!(in_flight.is_free(0));
    let held = Held { chunk: Some(chunk), ..Held::default() };
    let data = launch_holding(&mut in_flight, 0, held);
    assert_eq!(in_flight.arrive(data, 1, true, &mut arena, &mut files), Arrived::More);
    assert_eq!(arena.in_flight(chunk), Ok(true));
    in_flight.arrive(data, 1, false, &mut arena, &mut files);
    assert_eq!(arena.in_flight(chunk), Ok(false));
}

#[test]
fn a_close_that_never_ran_closes_and_one_that_ran_does_not_close_again() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    // Not by the number: tests beside this one may have it by then.
    let is_closed = |result: i32| {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(Payload::Closing(OwnedFd::from(writer)).after(result));
        let mut fds = [PollFd::new(&reader, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("poll");
        fds[0].revents().contains(PollFlags::HUP)
    };
    assert!(is_closed(-libc::ECANCELED));
    assert!(!is_closed(0), "the kernel's close ended it; here nobody did");
    assert!(!is_closed(-libc::EIO), "the number is free whatever close says");
}

#[test]
fn an_open_may_give_the_number_0() {
    use std::os::fd::IntoRawFd;
    let opening =
        Payload::Opening { path: std::ffi::CString::default(), _how: None, direct: false };
    let Some(Payload::Opened { descriptor, .. }) = opening.after(0) else {
        panic!("nobody would close it");
    };
    // It is this process's standard input.
    assert_eq!(descriptor.into_raw_fd(), 0);
}
