//! Drains, quiet operations, and the rows that chains are made of: timeouts, renames, unlinks.

mod common;

use std::io::Write;
use std::time::{Duration, Instant};

use common::{
    Directory, Loop, close, drain, link, link_timeout, nop, path_bytes, quiet, read, rename, small,
    timeout, unlink, with_entries,
};
use node_uring_core::operation::{TIMEOUT_ABSOLUTE, TIMEOUT_SUCCEEDS};
use node_uring_core::{Refusal, Request, Turn};

const CANCELED: i32 = -libc::ECANCELED;
const ETIME: i32 = -libc::ETIME;

fn slots(it: &Loop) -> Vec<u32> {
    it.done.iter().map(|done| done.slot).collect()
}

#[test]
fn a_drain_starts_when_all_before_it_is_complete_and_what_follows_waits_for_it() {
    let mut it = Loop::new(small());
    let (fifo, mut writer) = it.fifo();
    let chunk = it.chunk(1);
    it.stage(&read(0, fifo, chunk, (0, 1), 0));
    it.stage(&drain(nop(1)));
    it.stage(&nop(2));
    it.until_block();
    assert_eq!(slots(&it), [], "the read holds them back");
    writer.write_all(b"x").expect("written");
    it.settle();
    assert_eq!(slots(&it), [0, 1, 2]);
}

#[test]
fn a_chain_that_drains_is_complete_before_what_follows_starts() {
    let mut it = Loop::new(small());
    it.stage(&nop(9));
    let first = Request { offset: TIMEOUT_SUCCEEDS, ..timeout(0, Duration::from_millis(20)) };
    it.stage(&drain(link(first)));
    it.stage(&link(nop(1)));
    it.stage(&nop(2));
    it.stage(&nop(3));
    it.settle();
    assert_eq!(slots(&it), [9, 0, 1, 2, 3]);
    assert_eq!(it.results()[&2], 0);
}

#[test]
fn cancels_and_quiet_operations_do_not_wait_for_a_drain() {
    let mut it = Loop::new(small());
    let (fifo, _writer) = it.fifo();
    let chunk = it.chunk(1);
    it.stage(&read(0, fifo, chunk, (0, 1), 0));
    it.stage(&drain(nop(1)));
    it.stage(&link(nop(2)));
    it.stage(&nop(3));
    it.stage(&nop(4));
    it.until_block();
    it.stage(&quiet(timeout(5, Duration::from_millis(1))));
    assert_eq!(it.result(5), ETIME);
    assert!(it.engine.cancel(3));
    assert_eq!((it.result(2), it.result(3)), (CANCELED, CANCELED));
    assert!(it.engine.cancel(1));
    assert_eq!((it.result(1), it.result(4)), (CANCELED, 0));
    assert!(it.engine.cancel(0));
    assert_eq!(it.result(0), CANCELED);
}

#[test]
fn a_drain_is_one_also_when_another_that_waits_is_cancelled() {
    let mut it = Loop::new(small());
    let (fifo, mut writer) = it.fifo();
    let chunk = it.chunk(1);
    it.stage(&read(0, fifo, chunk, (0, 1), 0));
    let waits = Request { offset: TIMEOUT_SUCCEEDS, ..timeout(1, Duration::from_millis(20)) };
    it.stage(&drain(waits));
    it.stage(&drain(nop(2)));
    it.stage(&nop(3));
    it.stage(&nop(4));
    it.until_block();
    assert!(it.engine.cancel(2) && it.engine.cancel(3));
    assert_eq!((it.result(2), it.result(3)), (CANCELED, CANCELED));
    writer.write_all(b"x").expect("written");
    it.settle();
    assert_eq!(slots(&it), [0, 1, 4]);
}

#[test]
fn a_drain_whose_chain_has_yet_to_end_is_one_also_when_another_before_it_is_cancelled() {
    let mut it = Loop::new(small());
    let (fifo, mut writer) = it.fifo();
    let chunk = it.chunk(1);
    it.stage(&read(0, fifo, chunk, (0, 1), 0));
    it.stage(&drain(nop(1)));
    let waits = Request { offset: TIMEOUT_SUCCEEDS, ..timeout(2, Duration::from_millis(20)) };
    it.stage(&drain(link(waits)));
    assert!(it.engine.cancel(1));
    assert_eq!(it.result(1), CANCELED);
    it.stage(&nop(3));
    it.stage(&nop(4));
    writer.write_all(b"x").expect("written");
    it.settle();
    assert_eq!(slots(&it), [0, 2, 3, 4]);
}

#[test]
fn what_is_cancelled_behind_a_drain_that_the_kernel_has_ends_at_once() {
    let mut it = Loop::new(small());
    let (fifo, _writer) = it.fifo();
    let chunk = it.chunk(1);
    it.stage(&drain(read(0, fifo, chunk, (0, 1), 0)));
    it.stage(&nop(1));
    it.stage(&link(nop(2)));
    it.stage(&nop(3));
    it.stage(&drain(nop(4)));
    it.until_block();
    for cancelled in [1, 3, 4] {
        assert!(it.engine.cancel(cancelled));
    }
    assert_eq!([1, 2, 3, 4].map(|slot| it.result(slot)), [CANCELED; 4]);
    assert!(it.engine.cancel(0));
    assert_eq!(it.result(0), CANCELED);
}

#[test]
fn a_close_does_not_wait_for_a_drain_that_the_kernel_has() {
    let mut it = Loop::new(small());
    let (fifo, _writer) = it.fifo();
    let (other, writer) = it.fifo();
    let chunk = it.chunk(1);
    it.stage(&drain(read(0, fifo, chunk, (0, 1), 0)));
    it.until_block();
    it.stage(&close(1, other));
    assert_eq!(it.result(1), 0);
    drop(writer);
    assert!(it.engine.cancel(0));
    assert_eq!(it.result(0), CANCELED);
}

#[test]
fn a_drain_does_not_wait_for_quiet_operations_whether_they_are_over_or_not() {
    let mut it = Loop::new(small());
    it.stage(&quiet(nop(0)));
    it.stage(&quiet(timeout(1, Duration::from_secs(3600))));
    it.pump();
    assert_eq!(slots(&it), [0]);
    assert_eq!(it.complete(&drain(nop(2))), 0);
    assert_eq!(it.complete(&nop(3)), 0);
}

#[test]
fn more_quiet_operations_than_entries_all_complete() {
    let mut it = Loop::new(with_entries(4, 64));
    let (fifo, _writer) = it.fifo();
    let chunk = it.chunk(1);
    // Somebody keeps the loop alive.
    it.stage(&read(100, fifo, chunk, (0, 1), 0));
    it.until_block();
    for slot in 0..30 {
        it.stage(&quiet(timeout(slot, Duration::from_millis(200))));
    }
    it.until_block();
    assert_eq!(it.engine.stats().submitted, 31, "it sleeps when the kernel has them all");
    for slot in 0..30 {
        assert_eq!(it.result(slot), ETIME, "{slot}");
    }
}

#[test]
fn drains_one_behind_the_other_run_one_by_one() {
    let mut it = Loop::new(with_entries(4, 8));
    for slot in 0..100 {
        it.stage(&drain(nop(slot)));
    }
    it.settle();
    assert_eq!(slots(&it), (0..100).collect::<Vec<_>>());
}

#[test]
fn a_quiet_operation_keeps_no_loop_alive_and_is_given_back_at_the_end() {
    let mut it = Loop::new(small());
    it.stage(&quiet(timeout(0, Duration::from_secs(3600))));
    it.until_block();
    assert!(!it.engine.is_busy());
    assert_eq!(it.engine.stats().submitted, 1);
    let started = Instant::now();
    assert!(it.engine.shutdown(Duration::ZERO), "the kernel let go of it");
    assert!(started.elapsed() < common::DEADLINE);
}

#[test]
fn the_end_waits_for_a_quiet_operation_as_for_any_other() {
    let mut it = Loop::new(small());
    let (fifo, _writer) = it.fifo();
    let chunk = it.chunk(1);
    it.stage(&quiet(read(0, fifo, chunk, (0, 1), 0)));
    it.until_block();
    assert!(it.engine.shutdown(common::DEADLINE));
    assert_eq!(it.engine.stats().cancels, 1, "its memory is the kernel's until it was asked");
    assert_eq!(it.engine.arena().in_flight(chunk), Ok(false));
}

#[test]
fn a_quiet_operation_that_was_not_submitted_is_cancelled_without_the_kernel() {
    let mut it = Loop::new(small());
    it.stage(&quiet(timeout(0, Duration::from_secs(3600))));
    assert!(it.engine.cancel(0));
    assert_eq!(it.turn(), Turn::Deliver);
    assert_eq!(it.results()[&0], CANCELED);
    assert_eq!(it.engine.stats().submitted, 0);
}

#[test]
fn a_quiet_operation_is_in_no_chain_and_drains_nothing() {
    let mut it = Loop::new(small());
    for bad in [link(quiet(nop(0))), drain(quiet(nop(0)))] {
        assert_eq!(it.engine.stage(&bad), Err(Refusal::UnknownOpcode));
    }
}

#[test]
fn a_timeout_linked_to_a_shorter_link_timeout_is_cancelled_by_it() {
    let mut it = Loop::new(small());
    it.stage(&link(timeout(0, Duration::from_secs(60))));
    it.stage(&link_timeout(1, Duration::from_millis(5)));
    it.settle();
    assert_eq!((it.results()[&0], it.results()[&1]), (CANCELED, ETIME));
}

#[test]
fn a_link_timeout_that_was_not_needed_is_cancelled() {
    let mut it = Loop::new(small());
    it.stage(&link(nop(0)));
    it.stage(&link_timeout(1, Duration::from_secs(60)));
    it.settle();
    assert_eq!((it.results()[&0], it.results()[&1]), (0, CANCELED));
}

#[test]
fn a_timeout_ends_after_so_many_completions_or_at_a_point_in_time() {
    let mut it = Loop::new(small());
    let counted = Request { length: 3, ..timeout(0, Duration::from_secs(60)) };
    it.stage(&counted);
    it.until_block();
    for slot in 1..=3 {
        it.stage(&nop(slot));
    }
    assert_eq!(it.result(0), 0);
    // The clock of `Instant` is CLOCK_MONOTONIC, whose zero is long past.
    let past = Request { offset: TIMEOUT_ABSOLUTE, ..timeout(4, Duration::from_nanos(1)) };
    assert_eq!(it.complete(&past), ETIME);
    let unknown = Request { offset: 4, ..timeout(5, Duration::ZERO) };
    assert_eq!(it.engine.stage(&unknown), Err(Refusal::Argument));
}

#[test]
fn a_timeout_breaks_a_chain_unless_it_is_to_succeed() {
    for (offset, behind) in [(0, CANCELED), (TIMEOUT_SUCCEEDS, 0)] {
        let mut it = Loop::new(small());
        it.stage(&link(Request { offset, ..timeout(0, Duration::from_millis(2)) }));
        it.stage(&nop(1));
        it.settle();
        assert_eq!((it.results()[&0], it.results()[&1]), (ETIME, behind));
    }
}

#[test]
fn a_name_is_changed_and_taken_away() {
    let directory = Directory::new();
    directory.file("old", b"content");
    let mut it = Loop::new(small());
    let (old, new) = (directory.join("old"), directory.join("new"));
    let (old, new) = (path_bytes(&old), path_bytes(&new));
    let paths = [old, new].concat();
    assert_eq!(it.complete(&rename(0, &paths, old.len())), 0);
    assert_eq!(directory.content("new"), b"content");
    assert_eq!(it.complete(&rename(0, &paths, old.len())), -libc::ENOENT);
    assert_eq!(it.complete(&unlink(0, new)), 0);
    assert_eq!(it.complete(&unlink(0, new)), -libc::ENOENT);
    let too_long = rename(0, &paths, paths.len() + 1);
    assert_eq!(it.engine.stage(&too_long), Err(Refusal::Argument));
    assert_eq!(it.engine.stage(&rename(0, &paths, paths.len())), Err(Refusal::Path));
}

#[test]
fn only_the_first_member_of_a_chain_can_drain() {
    let mut it = Loop::new(small());
    it.stage(&link(nop(0)));
    assert_eq!(it.engine.stage(&drain(nop(1))), Err(Refusal::Argument));
    it.settle();
    assert_eq!(it.results()[&0], CANCELED, "what it was to follow is cancelled");
    it.engine.stage_many(common::many_nops(2, 100)).expect("staged");
    assert_eq!(it.result(2), 100, "nothing waits for a drain that is none");
}

#[test]
fn a_drain_is_over_when_all_of_its_chain_is_though_the_bound_of_an_operation_comes_first() {
    let mut it = Loop::new(small());
    let (fifo, _writer) = it.fifo();
    let chunk = it.chunk(1);
    it.stage(&drain(link(read(0, fifo, chunk, (0, 1), 0))));
    it.stage(&link_timeout(1, Duration::from_millis(5)));
    it.stage(&nop(2));
    it.settle();
    assert_eq!(slots(&it)[2], 2, "{:?}", it.done);
    assert_eq!(it.result(0), CANCELED);
    assert_eq!(it.result(1), ETIME);
}

#[test]
fn a_close_ends_the_chain_that_it_is_the_last_of_also_where_that_drains() {
    let mut it = Loop::new(small());
    let (fifo, _writer) = it.fifo();
    it.stage(&drain(link(timeout(0, Duration::from_millis(1)))));
    it.stage(&close(1, fifo));
    it.stage(&nop(2));
    it.settle();
    assert_eq!(it.results()[&0], -libc::ETIME);
    assert_eq!(it.results()[&2], 0, "no member of the chain");
}
