//! Many operations under one slot: each has its own result, whatever becomes of the others, and what
//! they hold is held until the last is complete.

mod common;

use std::io::Write;
use std::time::Duration;

use common::{
    Directory, Loop, close, drain, link, many_nops, many_reads, nop, pattern, quiet, read, small,
    timeout, vectored, vectors, with_entries,
};
use node_uring_core::engine::{MANY_MAX, ManyRequest};
use node_uring_core::in_flight::Lengths;
use node_uring_core::operation::{DRAIN, LINK};
use node_uring_core::{Opcode, Refusal, Turn};

const CANCELED: i32 = -libc::ECANCELED;

/// An order that visits all of `0..count` and is not the natural one.
fn scrambled(count: u64) -> Vec<u64> {
    (0..count).map(|at| at * 7919 % count).collect()
}

fn counts(it: &mut Loop, slot: u32) -> Vec<i32> {
    it.engine.take_counts(slot).expect("the counts of many")
}

#[test]
fn many_more_than_the_queues_hold_complete_as_one_each_with_its_own_bytes() {
    let directory = Directory::new();
    let content = pattern(5003 * 16, 1);
    let mut it = Loop::new(with_entries(8, 16));
    let file = it.adopt(directory.file("file", &content));
    let chunk = it.chunk(5003 * 16);
    let positions: Vec<u64> = scrambled(5003).iter().map(|at| at * 16).collect();
    it.engine.stage_many(many_reads(3, file, chunk, 16, &positions)).expect("staged");
    assert_eq!(it.result(3), 5003);
    assert_eq!(counts(&mut it, 3), vec![16; 5003]);
    assert_eq!(it.engine.take_counts(3), None, "taken once");
    for (index, &position) in positions.iter().enumerate() {
        let read = it.bytes(chunk, index * 16, 16).to_vec();
        assert_eq!(read, content[position as usize..][..16], "read {index}");
    }
    assert!(!it.engine.is_busy());
}

#[test]
fn one_enter_does_so_many_short_reads_however_few_bytes_they_are() {
    let directory = Directory::new();
    let mut it = Loop::new(with_entries(4096, 4096));
    let file = it.adopt(directory.file("file", &pattern(4096, 1)));
    let chunk = it.chunk(1000 * 16);
    it.engine.stage_many(many_reads(0, file, chunk, 16, &[0; 1000])).expect("staged");
    it.engine.flush();
    assert_eq!(it.engine.stats().submitted, 512, "of many");
    assert_eq!(it.result(0), 1000);
    for slot in 0..1000 {
        it.stage(&read(slot, file, chunk, (u64::from(slot) * 16, 16), 0));
    }
    it.engine.flush();
    assert_eq!(it.engine.stats().submitted, 1000 + 512, "of single ones");
    it.settle();
}

#[test]
fn one_enter_copies_so_much_for_vectors_and_chains_too() {
    const LENGTH: u64 = 60_000;
    let directory = Directory::new();
    let mut it = Loop::new(with_entries(1024, 4096));
    let file = it.adopt(directory.file("file", &pattern(LENGTH as usize, 1)));
    let chunk = it.chunk(LENGTH as usize);
    let ranges = vectors(&[(chunk, 0, LENGTH / 2), (chunk, LENGTH / 2, LENGTH / 2)]);
    for slot in 0..100 {
        it.stage(&vectored(Opcode::Readv, slot, file, &ranges, 0));
    }
    it.engine.flush();
    assert_eq!(it.engine.stats().submitted, 18, "1 MiB of vectors");
    it.settle();
    for slot in (0..200).step_by(2) {
        it.stage(&link(read(slot, file, chunk, (0, LENGTH), 0)));
        it.stage(&nop(slot + 1));
    }
    it.engine.flush();
    assert_eq!(it.engine.stats().submitted, 100 + 2 * 18, "1 MiB of chains");
    it.settle();
    assert_eq!(it.engine.stats().punted, 0);
    // What is longer, and not alone, goes to workers.
    let long = it.chunk(4 << 20);
    let whole = vectors(&[(long, 0, 4 << 20)]);
    for slot in (0..6).step_by(2) {
        it.stage(&link(vectored(Opcode::Readv, slot, file, &whole, 0)));
        it.stage(&vectored(Opcode::Readv, slot + 1, file, &whole, 0));
    }
    it.settle();
    assert_eq!(it.engine.stats().punted, 6);
}

#[test]
fn reads_across_the_end_count_what_there_was_and_failing_ones_say_their_errno() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let file = it.adopt(directory.file("file", &pattern(100, 1)));
    let chunk = it.chunk(4 * 40);
    let positions = [0, 80, 100, i64::MAX as u64];
    it.engine.stage_many(many_reads(0, file, chunk, 40, &positions)).expect("staged");
    assert_eq!(it.result(0), 4);
    assert_eq!(counts(&mut it, 0), [40, 20, 0, -libc::EINVAL]);
}

#[test]
fn lengths_of_their_own_lie_one_after_the_other_in_memory() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let file = it.adopt(directory.file("file", b""));
    let chunk = it.chunk_of(b"threefivesxseven!!");
    let request = ManyRequest {
        opcode: Opcode::Write as u32,
        lengths: Lengths::each(&[5, 4, 0, 3, 6]),
        ..many_reads(0, file, chunk, 0, &[13, 9, 0, 6, 0])
    };
    it.engine.stage_many(request).expect("staged");
    assert_eq!(it.result(0), 5);
    assert_eq!(counts(&mut it, 0), [5, 4, 0, 3, 6]);
    assert_eq!(directory.content("file"), b"even!!sxsfivethree");
}

#[test]
fn a_short_read_goes_on_when_it_is_to_fill_and_not_otherwise() {
    let (fill, rest) = ((true, [6]), (false, [3]));
    for (fill, expected) in [fill, rest] {
        let mut it = Loop::new(small());
        let (fifo, mut writer) = it.fifo();
        let chunk = it.chunk(6);
        let request = ManyRequest { fill, ..many_reads(0, fifo, chunk, 6, &[0]) };
        it.engine.stage_many(request).expect("staged");
        it.until_block();
        writer.write_all(b"one").expect("written");
        if fill {
            it.run_until("the first half", |it| it.engine.stats().submitted == 2);
            writer.write_all(b"two").expect("written");
        }
        assert_eq!(it.result(0), 1);
        assert_eq!(counts(&mut it, 0), expected);
        let length = expected[0] as usize;
        assert_eq!(it.bytes(chunk, 0, length), &b"onetwo"[..length]);
    }
}

#[test]
fn cancelled_many_end_with_what_each_had_come_to_and_hold_nothing() {
    let mut it = Loop::new(with_entries(8, 16));
    let before = it.books();
    let (fifo, mut writer) = it.fifo();
    let chunk = it.chunk(3000);
    it.engine.stage_many(many_reads(0, fifo, chunk, 1, &vec![0; 3000])).expect("staged");
    it.until_block();
    writer.write_all(b"ab").expect("written");
    it.run_until("two bytes", |it| it.engine.stats().submitted >= 18);
    assert!(it.engine.cancel(0));
    assert_eq!(it.result(0), CANCELED);
    let counts = counts(&mut it, 0);
    assert_eq!(counts.iter().filter(|&&count| count == 1).count(), 2);
    assert_eq!(counts.iter().filter(|&&count| count == CANCELED).count(), 2998);
    it.disown([chunk]);
    it.stage(&close(1, fifo));
    it.settle();
    let mut after = it.books();
    after.forget_mapped_bytes();
    assert_eq!(after, before);
}

#[test]
fn many_that_were_never_submitted_are_cancelled_without_a_system_call() {
    let mut it = Loop::new(small());
    it.engine.stage_many(many_nops(7, 100)).expect("staged");
    assert!(it.engine.cancel(7));
    let enters = it.engine.stats().enters;
    assert_eq!(it.turn(), Turn::Deliver);
    assert_eq!(it.engine.stats().enters, enters);
    assert_eq!(it.result(7), CANCELED);
    assert_eq!(counts(&mut it, 7), vec![CANCELED; 100]);
}

#[test]
fn what_many_hold_cannot_be_closed_freed_or_staged_over() {
    let mut it = Loop::new(small());
    let (fifo, mut writer) = it.fifo();
    let chunk = it.chunk(2);
    it.engine.stage_many(many_reads(0, fifo, chunk, 1, &[0, 0])).expect("staged");
    assert_eq!(it.engine.stage(&close(1, fifo)), Err(Refusal::FileInFlight));
    assert_eq!(it.engine.stage(&nop(0)), Err(Refusal::SlotBusy));
    assert_eq!(it.engine.arena().in_flight(chunk), Ok(true));
    it.until_block();
    writer.write_all(b"x").expect("written");
    it.run_until("one of two", |it| it.engine.stats().wakeups > 0);
    assert_eq!(it.engine.arena().in_flight(chunk), Ok(true), "one is still out");
    writer.write_all(b"y").expect("written");
    assert_eq!(it.result(0), 2);
    assert_eq!(it.engine.arena().in_flight(chunk), Ok(false));
}

#[test]
fn what_leaves_the_chunk_or_is_no_transfer_is_refused_and_holds_nothing() {
    let mut it = Loop::new(small());
    let file = it.adopt(std::fs::File::open("/dev/zero").expect("/dev/zero"));
    let chunk = it.chunk(64);
    let good = || many_reads(0, file, chunk, 16, &[0, 0, 0, 0]);
    let bad = [
        (ManyRequest { offset: 1, ..good() }, Refusal::Range),
        (ManyRequest { lengths: Lengths::All(17), ..good() }, Refusal::Range),
        (ManyRequest { lengths: Lengths::each(&[16, 16, 16, 17]), ..good() }, Refusal::Range),
        (ManyRequest { lengths: Lengths::each(&[16, 16, 16]), ..good() }, Refusal::Argument),
        (ManyRequest { lengths: Lengths::All(u32::MAX), ..good() }, Refusal::Argument),
        (ManyRequest { count: 3, ..good() }, Refusal::Argument),
        (ManyRequest { positions: vec![0, 0, 0, 1 << 63], ..good() }, Refusal::Argument),
        (ManyRequest { chunk: chunk.number() + 1, ..good() }, Refusal::UnknownChunk),
        (ManyRequest { file: file.number() + 1, ..good() }, Refusal::UnknownFile),
        (ManyRequest { opcode: Opcode::Fsync as u32, ..good() }, Refusal::UnknownOpcode),
        (ManyRequest { slot: u32::MAX, ..good() }, Refusal::SlotRange),
        (many_nops(0, 0), Refusal::Argument),
        (many_nops(0, usize::MAX), Refusal::Argument),
        (many_nops(0, MANY_MAX + 1), Refusal::Argument),
        (ManyRequest { opcode: Opcode::Read as u32 | LINK, ..good() }, Refusal::UnknownOpcode),
        (ManyRequest { opcode: Opcode::Read as u32 | DRAIN, ..good() }, Refusal::UnknownOpcode),
    ];
    for (request, refusal) in bad {
        assert_eq!(it.engine.stage_many(request), Err(refusal));
    }
    assert_eq!(it.engine.arena().in_flight(chunk), Ok(false));
    assert!(!it.engine.is_busy());
    it.engine.stage_many(good()).expect("staged");
    assert_eq!(it.result(0), 4);
    assert_eq!(it.complete(&close(1, file)), 0, "nothing holds the file");
}

#[test]
fn a_single_operation_overtakes_many() {
    let mut it = Loop::new(with_entries(64, 256));
    it.engine.stage_many(many_nops(0, 100_000)).expect("staged");
    while it.turn() == Turn::Deliver {}
    it.stage(&nop(1));
    it.run_until("the single one", |it| it.done.iter().any(|done| done.slot == 1));
    assert!(it.done.iter().all(|done| done.slot != 0), "many are not over yet");
    assert_eq!(it.result(0), 100_000);
}

#[test]
fn several_manys_share_the_queue() {
    let mut it = Loop::new(with_entries(8, 16));
    for slot in 0..50 {
        it.engine.stage_many(many_nops(slot, 1000)).expect("staged");
    }
    it.settle();
    for slot in 0..50 {
        assert_eq!(it.result(slot), 1000);
        assert_eq!(counts(&mut it, slot), vec![0; 1000]);
    }
}

#[test]
fn a_drain_waits_for_many_before_it_and_many_behind_it_wait_for_it() {
    let mut it = Loop::new(with_entries(8, 16));
    it.engine.stage_many(many_nops(0, 5000)).expect("staged");
    it.stage(&drain(timeout(1, Duration::from_millis(30))));
    it.engine.stage_many(many_nops(2, 5000)).expect("staged");
    it.stage(&nop(3));
    it.settle();
    let order: Vec<u32> = it.done.iter().map(|done| done.slot).collect();
    assert_eq!(order[..2], [0, 1]);
    assert_eq!(it.results()[&1], -libc::ETIME);
    assert_eq!((it.results()[&2], it.results()[&3]), (5000, 0));
}

#[test]
fn a_drain_that_is_over_at_once_comes_behind_many_that_were_not_submitted() {
    let mut it = Loop::new(with_entries(8, 16));
    it.engine.stage_many(many_nops(0, 5000)).expect("staged");
    it.stage(&drain(nop(1)));
    it.settle();
    let order: Vec<u32> = it.done.iter().map(|done| done.slot).collect();
    assert_eq!(order, [0, 1]);
}

#[test]
fn many_behind_a_drain_that_waits_are_not_submitted_and_the_loop_sleeps_meanwhile() {
    let mut it = Loop::new(small());
    let (fifo, mut writer) = it.fifo();
    let chunk = it.chunk(1);
    it.stage(&read(0, fifo, chunk, (0, 1), 0));
    it.stage(&drain(nop(1)));
    it.engine.stage_many(many_nops(2, 100)).expect("staged");
    assert_eq!(it.pump(), Turn::Block);
    assert!(it.engine.is_staged(2), "the drain is to come first");
    assert_eq!(it.engine.stats().submitted, 1);
    writer.write_all(b"x").expect("room");
    it.settle();
    let order: Vec<u32> = it.done.iter().map(|done| done.slot).collect();
    assert_eq!(order, [0, 1, 2]);
}

#[test]
fn the_loop_sleeps_while_a_drain_waits_for_many_that_the_kernel_has() {
    let mut it = Loop::new(small());
    let (fifo, mut writer) = it.fifo();
    let chunk = it.chunk(2);
    it.engine.stage_many(many_reads(0, fifo, chunk, 1, &[0, 0])).expect("staged");
    it.stage(&drain(nop(1)));
    assert!(it.engine.is_staged(0));
    it.until_block();
    assert!(!it.engine.is_staged(0));
    assert_eq!(it.pump(), Turn::Block);
    writer.write_all(b"xy").expect("room");
    it.settle();
    assert_eq!((it.done[0].slot, it.done[1].slot), (0, 1));
}

#[test]
fn cancels_that_come_late_do_not_reach_the_many_that_come_after() {
    let mut it = Loop::new(small());
    let (fifo, mut writer) = it.fifo();
    let chunk = it.chunk(200);
    let reads = || many_reads(0, fifo, chunk, 1, &[0; 200]);
    it.engine.stage_many(reads()).expect("staged");
    it.until_block();
    // They complete faster than the kernel can be asked for each.
    writer.write_all(&[1; 200]).expect("room");
    assert!(it.engine.cancel(0));
    it.result(0);
    it.engine.stage_many(reads()).expect("staged");
    it.until_block();
    writer.write_all(&[2; 200]).expect("room");
    assert_eq!(it.result(0), 200);
    assert_eq!(counts(&mut it, 0), [1; 200]);
}

#[test]
fn many_that_were_cancelled_are_cancelled_again_and_nobody_else_for_them() {
    let mut it = Loop::new(small());
    it.engine.stage_many(many_nops(0, 100)).expect("staged");
    assert!(it.engine.cancel(0));
    it.engine.stage_many(many_nops(1, 100)).expect("staged");
    assert!(it.engine.cancel(0));
    assert_eq!((it.result(0), it.result(1)), (CANCELED, 100));
    assert!(!it.engine.cancel(0));
}

#[test]
fn many_in_the_slot_of_a_quiet_operation_keep_the_loop_alive_until_they_are_over() {
    let mut it = Loop::new(small());
    it.stage(&quiet(nop(0)));
    it.pump();
    assert_eq!(it.done.pop().map(|done| done.slot), Some(0));
    it.engine.stage_many(many_nops(0, 100)).expect("staged");
    assert!(it.engine.is_busy());
    assert_eq!(it.result(0), 100);
    assert!(!it.engine.is_busy());
}

#[test]
fn there_are_no_more_manys_at_once_than_can_be_told_apart() {
    let mut it = Loop::new(with_entries(1024, 4096));
    for slot in 0..1 << 16 {
        it.engine.stage_many(many_nops(slot, 1)).expect("staged");
    }
    assert_eq!(it.engine.stage_many(many_nops(1 << 16, 1)), Err(Refusal::Argument));
    it.settle();
    let results = it.results();
    assert!((0..1 << 16).all(|slot| results.get(&slot) == Some(&1)));
    it.engine.stage_many(many_nops(1 << 16, 1)).expect("staged");
    assert_eq!(it.result(1 << 16), 1);
}

#[test]
fn many_of_a_socket_have_no_positions() {
    let (mine, mut theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let mut it = Loop::new(small());
    let socket = it.adopt(mine);
    let chunk = it.chunk(6);
    theirs.write_all(b"abcdef").expect("room");
    it.engine.stage_many(many_reads(0, socket, chunk, 3, &[7, 1 << 40])).expect("staged");
    assert_eq!(it.result(0), 2);
    assert_eq!(counts(&mut it, 0), [3, 3]);
}

#[test]
fn many_do_not_wait_for_a_drain_that_was_cancelled() {
    let mut it = Loop::new(small());
    it.stage(&drain(nop(0)));
    assert!(it.engine.cancel(0));
    assert_eq!(it.result(0), CANCELED);
    it.engine.stage_many(many_nops(1, 100)).expect("staged");
    assert_eq!(it.result(1), 100);
}

#[test]
fn the_end_of_an_engine_gets_many_back() {
    let mut it = Loop::new(small());
    let (fifo, _writer) = it.fifo();
    let chunk = it.chunk(2000);
    it.engine.stage_many(many_reads(0, fifo, chunk, 1, &vec![0; 2000])).expect("staged");
    it.engine.stage_many(many_nops(1, 2000)).expect("staged");
    it.stage(&read(2, fifo, chunk, (0, 1), 0));
    it.until_block();
    assert!(it.engine.shutdown(common::DEADLINE), "the kernel let go of all of them");
}
