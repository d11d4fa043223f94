//! The kernel's hold on memory: until the completion, whatever the owner does; and registered memory,
//! which direct files use.

mod common;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use common::{Directory, Loop, alone, nop, open, path_bytes, pattern, read, skip, small, write};
use node_uring_core::arena::{BadChunk, Exhausted};
use node_uring_core::{ArenaOptions, ChunkId, EngineOptions, FileHandle, Pool, Refusal, Turn};

// ---- who holds a chunk ------------------------------------------------------------------------

#[test]
fn a_chunk_disowned_in_flight_is_nobody_elses_until_the_completion() {
    let arena =
        ArenaOptions { slab_bytes: 64 << 10, max_bytes: [64 << 10; 3], ..ArenaOptions::default() };
    let mut it = Loop::new(EngineOptions { arena, ..small() });
    let (fifo, mut writer) = it.fifo();
    let doomed = it.chunk(4096);
    it.stage(&read(0, fifo, doomed, (0, 4096), 0));
    it.until_block();
    it.disown([doomed]);
    // All the rest of the pool: 15 chunks, none of them the one that the kernel will write to.
    let others: Vec<_> = (0..15).map(|_| it.chunk(4096)).collect();
    assert_eq!(it.engine.arena().take(Pool::Alloc, 1), Err(Exhausted::Limit));
    for &other in &others {
        it.bytes(other, 0, 4096).fill(0x55);
    }
    writer.write_all(&[0xaa; 4096]).expect("room in the pipe");
    assert_eq!(it.result(0), 4096);
    for &other in &others {
        assert!(it.bytes(other, 0, 4096).iter().all(|&byte| byte == 0x55));
    }
    let last = it.chunk(4096);
    assert_eq!(it.bytes(last, 0, 4096)[0], 0xaa, "that one, now free");
}

#[test]
fn bytes_and_another_owner_are_refused_while_the_kernel_may_write() {
    let mut it = Loop::new(small());
    let (fifo, mut writer) = it.fifo();
    let chunk = it.chunk(100);
    it.stage(&read(0, fifo, chunk, (0, 50), 0));
    for submitted in [false, true] {
        assert_eq!(it.engine.arena().bytes(chunk, 50, 50).unwrap_err(), BadChunk::InFlight);
        assert_eq!(it.engine.arena().in_flight(chunk), Ok(true), "{submitted}");
        it.until_block();
    }
    writer.write_all(b"x").expect("room in the pipe");
    assert_eq!(it.result(0), 1);
    assert_eq!(it.engine.arena().in_flight(chunk), Ok(false));
    assert_eq!(it.bytes(chunk, 0, 1), b"x");
}

#[test]
fn a_chunk_shared_by_several_operations_is_held_until_the_last() {
    let mut it = Loop::new(small());
    let (first, mut to_first) = it.fifo();
    let (second, mut to_second) = it.fifo();
    let chunk = it.chunk(100);
    it.stage(&read(0, first, chunk, (0, 50), 0));
    it.stage(&read(1, second, chunk, (50, 50), 0));
    it.until_block();
    to_first.write_all(b"1").expect("room in the pipe");
    assert_eq!(it.result(0), 1);
    assert_eq!(it.engine.arena().bytes(chunk, 0, 1).unwrap_err(), BadChunk::InFlight);
    it.disown([chunk]);
    assert_eq!(it.engine.arena().stats(Pool::Alloc).used_bytes, 4096);
    to_second.write_all(b"2").expect("room in the pipe");
    assert_eq!(it.result(1), 1);
    assert_eq!(it.engine.arena().stats(Pool::Alloc).used_bytes, 0);
}

#[test]
fn a_disowned_chunk_takes_no_new_operation_although_one_is_in_flight() {
    let mut it = Loop::new(small());
    let (fifo, _writer) = it.fifo();
    let chunk = it.chunk(100);
    it.stage(&read(0, fifo, chunk, (0, 50), 0));
    it.disown([chunk]);
    let again = read(1, fifo, chunk, (0, 50), 0);
    assert_eq!(it.engine.stage(&again), Err(Refusal::UnknownChunk));
    assert!(it.engine.cancel(0));
    it.settle();
    assert_eq!(it.engine.arena().disown(chunk), Err(BadChunk::Unknown));
}

#[test]
fn a_chunk_of_a_cancelled_operation_is_free_when_that_is_delivered() {
    let mut it = Loop::new(small());
    let (fifo, _writer) = it.fifo();
    let (before, after) = (it.chunk(1), it.chunk(1));
    it.stage(&read(0, fifo, before, (0, 1), 0));
    it.until_block();
    it.stage(&read(1, fifo, after, (0, 1), 0));
    it.engine.cancel(0);
    it.engine.cancel(1);
    it.disown([before, after]);
    it.settle();
    assert_eq!(it.engine.arena().stats(Pool::Alloc).used_bytes, 0);
}

#[test]
fn pools_have_limits_of_their_own_and_a_refused_chunk_takes_nothing() {
    let arena = ArenaOptions {
        slab_bytes: 64 << 10,
        max_bytes: [128 << 10, 64 << 10, 0],
        ..ArenaOptions::default()
    };
    let mut it = Loop::new(EngineOptions { arena, ..small() });
    let arena = it.engine.arena();
    assert_eq!(arena.take(Pool::Result, 1), Err(Exhausted::TooLong));
    assert_eq!(arena.take(Pool::Bounce, (64 << 10) + 1), Err(Exhausted::TooLong));
    assert_eq!(arena.take(Pool::Alloc, usize::MAX), Err(Exhausted::TooLong));
    assert!(arena.take(Pool::Bounce, 64 << 10).is_ok());
    assert_eq!(arena.take(Pool::Bounce, 1), Err(Exhausted::Limit));
    let first = arena.take(Pool::Alloc, 128 << 10).expect("all of it");
    assert_eq!(arena.take(Pool::Alloc, 1), Err(Exhausted::Limit));
    assert_eq!(arena.stats(Pool::Alloc).used_bytes, 128 << 10);
    assert_eq!(arena.disown(first), Ok(()));
    assert!((0..32).all(|_| arena.take(Pool::Alloc, 4096).is_ok()), "in other sizes");
}

#[test]
fn an_arena_of_impossible_slabs_is_refused() {
    for slab_bytes in [0, 1, 4096, 65_537, 96 << 10, 8 << 20, usize::MAX] {
        let arena = ArenaOptions { slab_bytes, ..ArenaOptions::default() };
        let engine = node_uring_core::Engine::new(EngineOptions { arena, ..small() });
        let errno = engine.err().and_then(|error| error.raw_os_error());
        assert_eq!(errno, Some(libc::EINVAL), "{slab_bytes}");
    }
}

// ---- registered memory ------------------------------------------------------------------------

/// Opens `name` for direct I/O, or says why not.
fn open_direct(directory: &Directory, name: &str) -> Result<File, String> {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(directory.join(name))
        .map_err(|error| format!("the build directory has no O_DIRECT: {error}"))
}

fn adopt_direct(it: &mut Loop, file: File) -> FileHandle {
    let fd = std::os::fd::IntoRawFd::into_raw_fd(file);
    it.engine.adopt(fd, true).expect("room in the file table")
}

#[test]
fn direct_reads_and_writes_through_registered_memory_move_the_right_bytes() {
    let title = "direct reads and writes through registered memory move the right bytes";
    let directory = Directory::new();
    let content = pattern(1 << 20, 5);
    directory.file("file", &content).sync_all().expect("on the disk");
    let direct = match open_direct(&directory, "file") {
        Ok(file) => file,
        Err(reason) => return skip(title, &reason),
    };
    let mut it = Loop::new(small());
    let file = adopt_direct(&mut it, direct);
    if it.engine.buffer_table() != Some(Ok(())) {
        return skip(title, "the kernel registers no buffers");
    }
    assert_eq!(it.engine.arena().registered_bytes(), 0, "not before it is used");
    let chunks: Vec<_> = (0..64).map(|_| it.chunk(16 << 10)).collect();
    for (slot, &chunk) in chunks.iter().enumerate() {
        it.stage(&read(slot as u32, file, chunk, (0, 16 << 10), slot as u64 * (16 << 10)));
    }
    it.settle();
    assert_eq!(it.engine.arena().registered_bytes(), 2 << 20, "the slab that they are in");
    let mut expected = content;
    for (slot, &chunk) in chunks.iter().enumerate() {
        assert_eq!(it.result(slot as u32), 16 << 10);
        let part = slot * (16 << 10)..(slot + 1) * (16 << 10);
        assert_eq!(it.bytes(chunk, 0, 16 << 10), &expected[part.clone()], "{slot}");
        let new = pattern(16 << 10, 1000 + slot as u32);
        it.bytes(chunk, 0, 16 << 10).copy_from_slice(&new);
        // From the middle of the chunk, so that the address counts.
        expected[part.start + 4096..part.start + 8192].copy_from_slice(&new[8192..12_288]);
        let position = part.start as u64 + 4096;
        it.stage(&write(slot as u32, file, chunk, (8192, 4096), position));
    }
    it.settle();
    assert!(it.results().values().all(|&result| result == 4096));
    assert_eq!(directory.content("file"), expected);
}

/// Pinned pages stay those that were pinned, although the mapping has others by now: a read that
/// arrives in the mapping was not READ_FIXED.
#[test]
fn a_direct_read_uses_the_registered_pages_and_a_cached_one_does_not() {
    let title = "a direct read uses the registered pages and a cached one does not";
    let directory = Directory::new();
    directory.file("file", &[7; 8192]).sync_all().expect("on the disk");
    let direct = match open_direct(&directory, "file") {
        Ok(file) => file,
        Err(reason) => return skip(title, &reason),
    };
    let mut it = Loop::new(small());
    let cached = it.adopt(File::open(directory.join("file")).expect("the file"));
    let file = adopt_direct(&mut it, direct);
    if it.engine.buffer_table() != Some(Ok(())) {
        return skip(title, "the kernel registers no buffers");
    }
    let chunk = it.chunk(4096);
    assert_eq!(it.complete(&read(0, cached, chunk, (0, 4096), 0)), 4096);
    assert_eq!(it.engine.arena().registered_bytes(), 0, "a cached file pins nothing");
    assert_eq!(it.complete(&read(0, file, chunk, (0, 4096), 0)), 4096);
    assert_eq!(it.bytes(chunk, 0, 4096), [7; 4096]);
    let exposed = it.engine.arena().expose(chunk, 4096).expect("a chunk").0.as_ptr();
    common::drop_pages(exposed, 4096);
    assert_eq!(it.complete(&read(0, file, chunk, (0, 4096), 4096)), 4096);
    assert_eq!(it.bytes(chunk, 0, 4096), [0; 4096], "it went to the pinned page");
    assert_eq!(it.complete(&read(0, cached, chunk, (0, 4096), 4096)), 4096);
    assert_eq!(it.bytes(chunk, 0, 4096), [7; 4096], "it went where the mapping says");
}

#[test]
fn a_file_opened_with_o_direct_through_the_ring_is_direct() {
    let title = "a file opened with O_DIRECT through the ring is direct";
    let directory = Directory::new();
    directory.file("file", &pattern(4096, 6)).sync_all().expect("on the disk");
    let mut it = Loop::new(small());
    for (slot, flags, is_direct) in [(0, libc::O_RDONLY, false), (1, libc::O_DIRECT, true)] {
        let result = it.complete(&open(slot, path_bytes(&directory.join("file")), flags, 0));
        if result == -libc::EINVAL {
            return skip(title, "the build directory has no O_DIRECT");
        }
        let (file, _) = it.engine.take_opened(slot).expect("it was opened");
        assert_eq!(it.engine.files().is_direct(file), is_direct);
        let chunk = it.chunk(4096);
        assert_eq!(it.complete(&read(slot, file, chunk, (0, 4096), 0)), 4096);
        assert_eq!(it.bytes(chunk, 0, 4096), pattern(4096, 6));
        let registered = it.engine.arena().registered_bytes() > 0;
        let possible = it.engine.buffer_table() == Some(Ok(()));
        assert_eq!(registered, is_direct && possible);
    }
}

#[test]
fn an_unaligned_direct_read_says_einval_and_lets_its_chunk_go() {
    let title = "an unaligned direct read says EINVAL and lets its chunk go";
    let directory = Directory::new();
    directory.file("file", &[1; 8192]).sync_all().expect("on the disk");
    let direct = match open_direct(&directory, "file") {
        Ok(file) => file,
        Err(reason) => return skip(title, &reason),
    };
    let mut it = Loop::new(small());
    let file = adopt_direct(&mut it, direct);
    let chunk = it.chunk(8192);
    let result = it.complete(&read(0, file, chunk, (0, 4096), 1));
    if result >= 0 {
        return skip(title, "this file system does direct I/O at any position");
    }
    assert_eq!(result, -libc::EINVAL);
    assert_eq!(it.engine.arena().in_flight(chunk), Ok(false));
}

#[test]
fn a_slab_too_long_to_pin_at_a_stroke_is_used_unregistered() {
    let title = "a slab too long to pin at a stroke is used unregistered";
    let directory = Directory::new();
    directory.file("file", &pattern(8192, 7)).sync_all().expect("on the disk");
    let direct = match open_direct(&directory, "file") {
        Ok(file) => file,
        Err(reason) => return skip(title, &reason),
    };
    let mut it = Loop::new(small());
    let file = adopt_direct(&mut it, direct);
    let long = it.chunk((16 << 20) + 1);
    assert_eq!(it.complete(&read(0, file, long, (16 << 20 >> 1, 8192), 0)), 8192);
    assert_eq!(it.bytes(long, 16 << 20 >> 1, 8192), pattern(8192, 7));
    assert_eq!(it.engine.arena().registered_bytes(), 0);
}

#[test]
fn an_engine_that_was_told_not_to_registers_nothing() {
    let directory = Directory::new();
    directory.file("file", &pattern(4096, 8)).sync_all().expect("on the disk");
    let mut it = Loop::new(EngineOptions { unregistered: true, ..small() });
    assert_eq!(it.engine.registered_files(), 0);
    let Ok(direct) = open_direct(&directory, "file") else {
        return skip(
            "an engine that was told not to registers nothing",
            "the build directory has no O_DIRECT",
        );
    };
    let file = adopt_direct(&mut it, direct);
    let chunk = it.chunk(4096);
    assert_eq!(it.complete(&read(0, file, chunk, (0, 4096), 0)), 4096);
    assert_eq!(it.bytes(chunk, 0, 4096), pattern(4096, 8));
    assert_eq!((it.engine.arena().registered_bytes(), it.engine.buffer_table()), (0, None));
}

fn pinned_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmPin:")).expect("VmPin");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn registered_slabs_that_are_let_go_are_unpinned_and_their_numbers_used_again() {
    let name = "registered_slabs_that_are_let_go_are_unpinned_and_their_numbers_used_again";
    alone(name, || {
        let title = name.replace('_', " ");
        let directory = Directory::new();
        let content = pattern(64 << 10, 9);
        directory.file("file", &content).sync_all().expect("on the disk");
        let direct = match open_direct(&directory, "file") {
            Ok(file) => file,
            Err(reason) => return skip(&title, &reason),
        };
        let mut it = Loop::new(small());
        let file = adopt_direct(&mut it, direct);
        if it.engine.buffer_table() != Some(Ok(())) {
            return skip(&title, "the kernel registers no buffers");
        }
        let mut seen: Vec<ChunkId> = Vec::new();
        let before = pinned_kib();
        for round in 0..30u64 {
            // A slab each, let go with its chunk.
            let chunks: Vec<_> = (0..3).map(|_| it.chunk(6 << 20)).collect();
            for (slot, &chunk) in chunks.iter().enumerate() {
                let position = (round + slot as u64) % 16 * 4096;
                it.stage(&read(slot as u32, file, chunk, (4096, 4096), position));
            }
            it.settle();
            if round == 0 && it.engine.arena().registered_bytes() < 18 << 20 {
                return skip(&title, "RLIMIT_MEMLOCK is too small");
            }
            assert_eq!(it.engine.arena().registered_bytes(), 18 << 20);
            assert_eq!(pinned_kib() - before, 18 << 10, "{round}");
            for (slot, &chunk) in chunks.iter().enumerate() {
                assert_eq!(it.result(slot as u32), 4096);
                let from = ((round as usize + slot) % 16) * 4096;
                assert_eq!(it.bytes(chunk, 4096, 4096), &content[from..from + 4096]);
                assert!(!seen.contains(&chunk), "an id of old comes back");
                seen.push(chunk);
            }
            it.disown(chunks);
            assert_eq!(it.engine.arena().registered_bytes(), 0);
            assert_eq!(it.pump(), Turn::Block);
            assert_eq!(pinned_kib(), before, "{round}: pages of nobody are pinned");
        }
        let numbers: std::collections::HashSet<_> =
            seen.iter().map(|id| id.number() >> 10 & ((1 << 14) - 1)).collect();
        assert_eq!(numbers.len(), 3, "slab numbers are used again: {numbers:?}");
        for &id in &seen {
            let stale = read(0, file, id, (0, 4096), 0);
            assert_eq!(it.engine.stage(&stale), Err(Refusal::UnknownChunk));
        }
        drop(it);
    });
}

#[test]
fn finding_out_whether_memory_can_be_registered_leaves_none_taken_and_none_pinned() {
    let name = "finding_out_whether_memory_can_be_registered_leaves_none_taken_and_none_pinned";
    alone(name, || {
        let mut it = Loop::new(small());
        let (books, before) = (it.books(), pinned_kib());
        it.engine.try_registered_memory();
        if it.engine.buffer_table() != Some(Ok(())) {
            return skip(&name.replace('_', " "), "the kernel registers no buffers");
        }
        let mut after = it.books();
        after.forget_mapped_bytes();
        assert_eq!(after, books);
        assert_eq!(pinned_kib(), before);
    });
}

#[test]
fn pinned_memory_is_free_when_the_engine_is_gone() {
    alone("pinned_memory_is_free_when_the_engine_is_gone", || {
        let directory = Directory::new();
        directory.file("file", &[1; 4096]).sync_all().expect("on the disk");
        let before = pinned_kib();
        for _ in 0..5 {
            let Ok(direct) = open_direct(&directory, "file") else {
                return skip(
                    "pinned memory is free when the engine is gone",
                    "the build directory has no O_DIRECT",
                );
            };
            let mut it = Loop::new(small());
            let file = adopt_direct(&mut it, direct);
            let chunk = it.chunk(4096);
            assert_eq!(it.complete(&read(0, file, chunk, (0, 4096), 0)), 4096);
        }
        // The kernel ends a ring a little after its close.
        let deadline = std::time::Instant::now() + common::DEADLINE;
        while pinned_kib() > before {
            assert!(std::time::Instant::now() < deadline, "{} KiB stay pinned", pinned_kib());
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    });
}

#[test]
fn a_buffer_over_a_chunk_outlives_the_engine() {
    let mut it = Loop::new(small());
    let chunk = it.chunk_of(b"still here");
    let (address, mapping) = it.engine.arena().expose(chunk, 10).expect("a chunk");
    assert_eq!(it.complete(&nop(0)), 0);
    drop(it);
    assert_eq!(common::peek(address, &mapping), b"still here");
}
