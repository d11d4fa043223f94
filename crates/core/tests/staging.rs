//! What is refused when it is staged, that each refusal says why, and that it leaves nothing held.

mod common;

use std::time::Duration;

use common::{
    Directory, Loop, REFUSALS, close, fsync, hardlink, link, nop, open, quiet, read, small, stat,
    stat_path, timeout, truncate, with_entries, write,
};
use node_uring_core::files::FILES_MAX;
use node_uring_core::in_flight::SLOTS_MAX;
use node_uring_core::operation::TRANSFER_BYTES_MAX;
use node_uring_core::{ChunkId, FileHandle, Opcode, Refusal, Request};

/// What a case may use: nothing of it is in flight but a read on `fifo`, at slot 100.
struct Scene {
    file: FileHandle,
    gone: FileHandle,
    fifo: FileHandle,
    chunk: ChunkId,
    disowned: ChunkId,
}

const LONG: &[u8] = &[b'x'; 4096];
type Case = fn(&Scene) -> Request<'static>;

/// Requests, by what they are refused with. The chunk is 100 bytes long.
const CASES: &[(Refusal, Case)] = &[
    (Refusal::SlotBusy, |_| nop(100)),
    (Refusal::SlotRange, |_| nop(SLOTS_MAX)),
    (Refusal::SlotRange, |_| nop(u32::MAX)),
    (Refusal::UnknownOpcode, |_| Request { opcode: 25, ..nop(0) }),
    (Refusal::UnknownOpcode, |_| Request { opcode: 255, ..nop(0) }),
    // IOSQE_IO_DRAIN would be the next flag: a cancel would wait behind what it is to cancel.
    (Refusal::UnknownOpcode, |_| Request { opcode: 1 << 13, ..nop(0) }),
    (Refusal::UnknownOpcode, |_| Request { opcode: 1 << 12 | 1 << 10, ..nop(0) }),
    (Refusal::UnknownOpcode, |_| Request { opcode: 1 << 31, ..nop(0) }),
    (Refusal::UnknownFile, |s| read(0, s.gone, s.chunk, (0, 1), 0)),
    (Refusal::UnknownFile, |s| write(0, FileHandle::from_number(0), s.chunk, (0, 1), 0)),
    (Refusal::UnknownFile, |s| fsync(0, s.gone)),
    (Refusal::UnknownFile, |s| truncate(0, s.gone, 0)),
    (Refusal::UnknownFile, |s| stat(0, s.gone)),
    (Refusal::UnknownFile, |s| close(0, s.gone)),
    (Refusal::UnknownFile, |s| {
        close(0, FileHandle::from_number(s.file.number() + FILES_MAX as u64))
    }),
    (Refusal::UnknownFile, |_| fsync(0, FileHandle::from_number(u64::MAX))),
    (Refusal::FileInFlight, |s| close(0, s.fifo)),
    (Refusal::UnknownChunk, |s| read(0, s.file, s.disowned, (0, 1), 0)),
    (Refusal::UnknownChunk, |s| write(0, s.file, ChunkId::from_number(0), (0, 1), 0)),
    (Refusal::UnknownChunk, |s| read(0, s.file, ChunkId::from_number(u64::MAX), (0, 1), 0)),
    (Refusal::Range, |s| read(0, s.file, s.chunk, (0, 101), 0)),
    (Refusal::Range, |s| write(0, s.file, s.chunk, (100, 1), 0)),
    (Refusal::Range, |s| read(0, s.file, s.chunk, (101, 0), 0)),
    (Refusal::Range, |s| read(0, s.file, s.chunk, (u64::MAX, 1), 0)),
    (Refusal::Range, |s| write(0, s.file, s.chunk, (u64::MAX, TRANSFER_BYTES_MAX), 0)),
    (Refusal::Range, |s| read(0, s.file, s.chunk, (0, TRANSFER_BYTES_MAX), 0)),
    (Refusal::Argument, |s| read(0, s.file, s.chunk, (0, TRANSFER_BYTES_MAX + 1), 0)),
    (Refusal::Argument, |s| write(0, s.file, s.chunk, (0, u64::MAX), 0)),
    (Refusal::Argument, |s| read(0, s.file, s.chunk, (0, 1), 1 << 63)),
    (Refusal::Argument, |s| write(0, s.file, s.chunk, (0, 1), u64::MAX)),
    (Refusal::Argument, |s| truncate(0, s.file, 1 << 63)),
    (Refusal::Argument, |s| Request { length: 2, ..fsync(0, s.file) }),
    (Refusal::Argument, |_| Request { offset: 1 << 32, ..open(0, b"x", 0, 0) }),
    (Refusal::Argument, |_| Request { length: 1 << 32, ..open(0, b"x", 0, 0) }),
    (Refusal::Argument, |s| Request { length: 1 << 32, ..stat(0, s.file) }),
    (Refusal::Argument, |_| Request { position: 1 << 63, ..timeout(0, Duration::ZERO) }),
    (Refusal::Argument, |s| link(close(0, s.file))),
    (Refusal::Argument, |s| hardlink(close(0, s.file))),
    (Refusal::Argument, |s| quiet(close(0, s.file))),
    (Refusal::Path, |_| open(0, b"", 0, 0)),
    (Refusal::Path, |_| open(0, b"a\0b", 0, 0)),
    (Refusal::Path, |_| open(0, LONG, 0, 0)),
    (Refusal::Path, |_| stat_path(0, b"")),
    (Refusal::Path, |_| stat_path(0, b"\0")),
];

#[test]
fn what_is_refused_leaves_nothing_held_and_the_slot_free() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let file = it.adopt(directory.file("file", b"content"));
    let gone = it.adopt(directory.file("gone", b""));
    assert_eq!(it.complete(&close(0, gone)), 0);
    let (fifo, _writer) = it.fifo();
    let (chunk, busy, disowned) = (it.chunk(100), it.chunk(100), it.chunk(100));
    it.disown([disowned]);
    it.stage(&read(100, fifo, busy, (0, 100), 0));
    it.until_block();
    let scene = Scene { file, gone, fifo, chunk, disowned };
    let before = it.books();
    for (index, (refusal, case)) in CASES.iter().enumerate() {
        let request = case(&scene);
        assert_eq!(it.engine.stage(&request), Err(*refusal), "{index}: {request:?}");
        assert_eq!(it.books(), before, "{index}: {request:?}");
        if request.slot == 0 {
            assert_eq!(it.complete(&nop(0)), 0, "{index}: the slot is free");
        }
        // Each can still be used by itself.
        assert_eq!(it.complete(&read(1, file, chunk, (0, 7), 0)), 7);
    }
    assert_eq!(it.engine.stats().stale, 0);
}

#[test]
fn every_refusal_is_met_by_a_test() {
    let met = |refusal: &Refusal| CASES.iter().any(|(of_case, _)| of_case == refusal);
    let elsewhere = [
        Refusal::Closed,       // shutdown.rs
        Refusal::Failed,       // refused_enter.rs
        Refusal::ChainTooLong, // chains.rs
        Refusal::Credentials,  // polling_thread.rs
    ];
    for refusal in REFUSALS {
        assert!(met(&refusal) != elsewhere.contains(&refusal), "{refusal:?}");
    }
}

#[test]
fn a_refused_operation_is_never_submitted() {
    let mut it = Loop::new(small());
    assert_eq!(it.engine.stage(&Request { opcode: 77, ..nop(0) }), Err(Refusal::UnknownOpcode));
    it.until_block();
    assert_eq!((it.engine.stats().enters, it.engine.is_busy()), (0, false));
}

#[test]
fn a_slot_takes_one_operation_at_a_time_until_its_completion_is_delivered() {
    let mut it = Loop::new(small());
    it.stage(&nop(3));
    assert_eq!(it.engine.stage(&nop(3)), Err(Refusal::SlotBusy), "staged");
    it.engine.flush();
    assert_eq!(it.engine.stage(&nop(3)), Err(Refusal::SlotBusy), "submitted");
    assert_eq!(it.result(3), 0);
    it.stage(&nop(3));
    it.engine.cancel(3);
    it.engine.flush();
    assert_eq!(it.engine.stage(&nop(3)), Err(Refusal::SlotBusy), "cancelled, not delivered");
    assert_eq!(it.result(3), -libc::ECANCELED);
    assert_eq!(it.complete(&nop(3)), 0);
}

#[test]
fn the_last_slot_is_as_good_as_the_first() {
    let mut it = Loop::new(small());
    assert_eq!(it.complete(&nop(SLOTS_MAX - 1)), 0);
}

#[test]
fn a_zero_length_at_the_end_of_a_chunk_is_inside_it() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let file = it.adopt(directory.file("file", b"content"));
    let chunk = it.chunk(100);
    assert_eq!(it.complete(&read(0, file, chunk, (100, 0), 0)), 0);
    assert_eq!(it.complete(&write(0, file, chunk, (100, 0), 1 << 40)), 0);
    assert_eq!(directory.content("file"), b"content");
}

#[test]
fn a_path_may_have_4095_bytes_and_no_more() {
    let mut it = Loop::new(small());
    let mut path = b"/".to_vec();
    path.extend(b"./".repeat(2047));
    assert_eq!(path.len(), 4095);
    assert!(it.complete(&open(0, &path, libc::O_RDONLY, 0)) >= 0);
    path.push(b'.');
    let request = open(0, &path, libc::O_RDONLY, 0);
    assert_eq!(it.engine.stage(&request), Err(Refusal::Path));
}

#[test]
fn the_bytes_of_a_path_are_copied_before_stage_returns() {
    let directory = Directory::new();
    directory.file("there", b"");
    let mut it = Loop::new(small());
    let mut path = common::path_bytes(&directory.join("there")).to_vec();
    it.stage(&open(0, &path, libc::O_RDONLY, 0));
    path.fill(b'?');
    assert!(it.result(0) >= 0);
}

#[test]
fn a_full_submission_queue_refuses_nothing() {
    let mut it = Loop::new(with_entries(1, 2));
    for slot in 0..1000 {
        it.stage(&nop(slot));
    }
    it.settle();
    assert_eq!(it.results().len(), 1000);
}

#[test]
fn each_opcode_of_ours_is_known_by_its_number() {
    let numbers = [
        Opcode::Nop,
        Opcode::Read,
        Opcode::Write,
        Opcode::Fsync,
        Opcode::Ftruncate,
        Opcode::Openat,
        Opcode::Close,
        Opcode::Statx,
        Opcode::Timeout,
        Opcode::LinkTimeout,
        Opcode::Renameat,
        Opcode::Unlinkat,
        Opcode::Fallocate,
        Opcode::Fadvise,
        Opcode::SyncFileRange,
        Opcode::Linkat,
        Opcode::Symlinkat,
        Opcode::Mkdirat,
        Opcode::Splice,
        Opcode::PollAdd,
        Opcode::Send,
        Opcode::Recv,
        Opcode::Readv,
        Opcode::Writev,
    ];
    for (number, opcode) in numbers.into_iter().enumerate() {
        assert_eq!(node_uring_core::operation::decode(number as u32), Ok((opcode, 0)));
    }
}
