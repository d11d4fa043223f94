//! Each operation does what its system call does, says the same errno, and leaves what it should.

mod common;

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use common::{
    Directory, Loop, close, datasync, fsync, nop, open, path_bytes, pattern, punted, read, skip,
    small, stat, stat_path, timeout, truncate, write,
};
use node_uring_core::engine::InlinePolicy;
use node_uring_core::{EngineOptions, FileHandle};

// ---- reads and writes -------------------------------------------------------------------------

#[test]
fn a_read_gives_what_is_there_and_stops_at_the_end_of_the_file() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let content = pattern(10_000, 1);
    let file = it.adopt(directory.file("file", &content));
    let chunk = it.chunk(16_384);
    let cases = [(0, 10_000, 10_000), (0, 16_384, 10_000), (9_999, 100, 1), (10_000, 1, 0)];
    for (position, length, expected) in cases {
        it.bytes(chunk, 0, 16_384).fill(0xee);
        let count = it.complete(&read(0, file, chunk, (0, length), position));
        assert_eq!(count, expected, "{length} at {position}");
        let count = count as usize;
        assert_eq!(it.bytes(chunk, 0, count), &content[position as usize..][..count]);
        assert!(it.bytes(chunk, count, 16_384 - count).iter().all(|&byte| byte == 0xee));
    }
}

#[test]
fn a_read_touches_its_own_range_of_the_chunk_and_no_other_byte() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let content = pattern(4096, 2);
    let file = it.adopt(directory.file("file", &content));
    let chunk = it.chunk(8192);
    for (offset, length) in [(0, 1), (1, 511), (4095, 2), (8191, 1), (4096, 4096), (100, 4000)] {
        it.bytes(chunk, 0, 8192).fill(0xee);
        let range = (offset as u64, length as u64);
        assert_eq!(it.complete(&read(0, file, chunk, range, 0)), length as i32);
        let bytes = it.bytes(chunk, 0, 8192);
        assert_eq!(&bytes[offset..offset + length], &content[..length]);
        assert!(bytes[..offset].iter().all(|&byte| byte == 0xee));
        assert!(bytes[offset + length..].iter().all(|&byte| byte == 0xee));
    }
}

#[test]
fn a_write_leaves_exactly_its_bytes_at_its_position() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let file = it.adopt(directory.file("file", &[b'.'; 100]));
    let chunk = it.chunk_of(b"0123456789");
    assert_eq!(it.complete(&write(0, file, chunk, (2, 5), 50)), 5);
    assert_eq!(it.complete(&write(0, file, chunk, (0, 10), 98)), 10);
    let mut expected = vec![b'.'; 108];
    expected[50..55].copy_from_slice(b"23456");
    expected[98..].copy_from_slice(b"0123456789");
    assert_eq!(directory.content("file"), expected);
}

#[test]
fn positions_past_4_gib_are_kept_whole() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let file = it.adopt(directory.file("file", b"start"));
    let far = (1 << 32) + 5;
    let chunk = it.chunk_of(b"far");
    assert_eq!(it.complete(&write(0, file, chunk, (0, 3), far)), 3);
    let back = it.chunk(8);
    assert_eq!(it.complete(&read(0, file, back, (0, 8), far)), 3);
    assert_eq!(it.bytes(back, 0, 3), b"far");
    assert_eq!(it.complete(&read(0, file, back, (0, 5), 0)), 5);
    assert_eq!(it.bytes(back, 0, 5), b"start");
}

#[test]
fn a_read_of_a_fifo_gives_the_bytes_that_are_there_and_0_when_its_writer_is_gone() {
    let mut it = Loop::new(small());
    let (fifo, mut writer) = it.fifo();
    let chunk = it.chunk(4096);
    writer.write_all(b"five!").expect("room in the pipe");
    assert_eq!(it.complete(&read(0, fifo, chunk, (0, 4096), 0)), 5);
    drop(writer);
    assert_eq!(it.complete(&read(0, fifo, chunk, (0, 4096), 0)), 0);
}

#[test]
fn an_operation_sent_to_a_kernel_worker_gives_the_same() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let content = pattern(100_000, 3);
    let file = it.adopt(directory.file("file", &content));
    let chunk = it.chunk(100_000);
    assert_eq!(it.complete(&punted(read(0, file, chunk, (0, 100_000), 0))), 100_000);
    assert_eq!(it.bytes(chunk, 0, 100_000), content);
    assert_eq!(it.complete(&punted(write(0, file, chunk, (0, 5000), 100_000))), 5000);
    assert_eq!(directory.content("file")[100_000..], content[..5000]);
    assert_eq!(it.complete(&punted(nop(0))), 0);
    assert_eq!(it.complete(&punted(close(0, file))), 0);
}

#[test]
fn reads_past_the_budget_of_a_turn_go_to_workers_and_give_the_same() {
    let directory = Directory::new();
    let inline = InlinePolicy { small_bytes: 1000, alone_bytes: 8000, turn_bytes: 5000 };
    let mut it = Loop::new(EngineOptions { inline, ..small() });
    let content = pattern(64_000, 4);
    let file = it.adopt(directory.file("file", &content));
    let lengths = [4000, 999, 999, 1000, 1000, 999, 8000];
    let chunks: Vec<_> = lengths.iter().map(|_| it.chunk(8000)).collect();
    for (slot, (&length, &chunk)) in lengths.iter().zip(&chunks).enumerate() {
        it.stage(&read(slot as u32, file, chunk, (0, length), slot as u64 * 8000));
    }
    it.settle();
    for (slot, (&length, &chunk)) in lengths.iter().zip(&chunks).enumerate() {
        assert_eq!(it.result(slot as u32), length as i32);
        let length = length as usize;
        assert_eq!(it.bytes(chunk, 0, length), &content[slot * 8000..][..length]);
    }
    // 4000 and 1000 fill the budget of 5000; short ones do not count; 1000 and 8000 are over it.
    assert_eq!(it.engine.stats().punted, 2);
    assert_eq!(it.complete(&read(0, file, chunks[0], (0, 8000), 0)), 8000);
    assert_eq!(it.engine.stats().punted, 2, "alone, it is inline up to 8000");
    let long = it.chunk(8001);
    assert_eq!(it.complete(&read(0, file, long, (0, 8001), 0)), 8001);
    assert_eq!(it.engine.stats().punted, 3);
}

// ---- errno ------------------------------------------------------------------------------------

#[test]
fn an_operation_that_fails_says_the_errno_of_its_system_call() {
    let directory = Directory::new();
    directory.file("file", b"content");
    let path = directory.join("file");
    let mut it = Loop::new(small());
    let chunk = it.chunk(16);
    let read_only = it.adopt(std::fs::File::open(&path).expect("the file"));
    let mut options = std::fs::File::options();
    let write_only = it.adopt(options.write(true).open(&path).expect("the file"));
    let folder = it.adopt(std::fs::File::open(directory.path()).expect("a directory"));
    let full = it.adopt(std::fs::File::options().write(true).open("/dev/full").expect("/dev/full"));
    let (fifo, _writer) = it.fifo();
    let missing = directory.join("missing");
    let beneath = directory.join("file/beneath");
    let exclusive = libc::O_CREAT | libc::O_EXCL;
    let range = (0, 16);
    let cases = [
        (write(0, read_only, chunk, range, 0), libc::EBADF),
        (read(0, write_only, chunk, range, 0), libc::EBADF),
        (read(0, folder, chunk, range, 0), libc::EISDIR),
        (write(0, full, chunk, range, 0), libc::ENOSPC),
        (fsync(0, fifo), libc::EINVAL),
        (datasync(0, fifo), libc::EINVAL),
        (open(0, path_bytes(&missing), libc::O_RDONLY, 0), libc::ENOENT),
        (open(0, path_bytes(&beneath), libc::O_RDONLY, 0), libc::ENOTDIR),
        (open(0, path_bytes(directory.path()), libc::O_WRONLY, 0), libc::EISDIR),
        (open(0, path_bytes(&path), exclusive, 0o600), libc::EEXIST),
        (open(0, &[b'x'; 256], libc::O_RDONLY, 0), libc::ENAMETOOLONG),
        (stat_path(0, path_bytes(&missing)), libc::ENOENT),
    ];
    for (request, errno) in cases {
        assert_eq!(it.complete(&request), -errno, "{request:?}");
    }
    assert_eq!(directory.content("file"), b"content");
}

// ---- fsync, ftruncate, timeout ----------------------------------------------------------------

#[test]
fn fsync_and_fdatasync_of_a_file_succeed() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let file = it.adopt(directory.file("file", b"content"));
    assert_eq!(it.complete(&fsync(0, file)), 0);
    assert_eq!(it.complete(&datasync(0, file)), 0);
}

#[test]
fn ftruncate_sets_the_length_of_a_file() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let has = it.engine.capabilities().operations.contains(&("ftruncate", true));
    if !has {
        return skip("ftruncate sets the length of a file", "the kernel has no such operation");
    }
    let file = it.adopt(directory.file("file", b"content"));
    assert_eq!(it.complete(&truncate(0, file, 3)), 0);
    assert_eq!(directory.content("file"), b"con");
    assert_eq!(it.complete(&truncate(0, file, 6)), 0);
    assert_eq!(directory.content("file"), b"con\0\0\0");
    assert_eq!(it.complete(&truncate(0, file, (1 << 63) - 1)), -libc::EFBIG);
    let (fifo, _writer) = it.fifo();
    assert_eq!(it.complete(&truncate(0, fifo, 0)), -libc::EINVAL);
}

#[test]
fn a_timeout_completes_with_etime_and_not_before_its_time() {
    let mut it = Loop::new(small());
    for milliseconds in [0, 1, 30] {
        let duration = Duration::from_millis(milliseconds);
        let started = Instant::now();
        assert_eq!(it.complete(&timeout(0, duration)), -libc::ETIME);
        assert!(started.elapsed() >= duration);
    }
}

#[test]
fn timeouts_complete_in_the_order_of_their_ends_not_of_their_staging() {
    let mut it = Loop::new(small());
    for (slot, milliseconds) in [(0, 400), (1, 5), (2, 200)] {
        it.stage(&timeout(slot, Duration::from_millis(milliseconds)));
    }
    it.settle();
    let order: Vec<_> = it.done.iter().map(|completion| completion.slot).collect();
    assert_eq!(order, [1, 2, 0]);
}

// ---- statx ------------------------------------------------------------------------------------

fn at<const N: usize>(stat: &[u8], offset: usize) -> [u8; N] {
    stat[offset..offset + N].try_into().expect("inside struct statx")
}

#[track_caller]
fn check_stat(stat: &[u8], path: &std::path::Path) {
    let metadata = std::fs::metadata(path).expect("it exists");
    assert_eq!(stat.len(), 256);
    assert_eq!(u32::from_ne_bytes(at(stat, 16)), metadata.nlink() as u32);
    assert_eq!(u32::from(u16::from_ne_bytes(at(stat, 28))), metadata.mode());
    assert_eq!(u64::from_ne_bytes(at(stat, 32)), metadata.ino());
    assert_eq!(u64::from_ne_bytes(at(stat, 40)), metadata.size());
    assert_eq!(i64::from_ne_bytes(at(stat, 112)), metadata.mtime());
}

#[test]
fn statx_by_file_and_by_path_says_what_stat_says() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let path = directory.join("file");
    let file = it.adopt(directory.file("file", &[1; 12_345]));
    assert_eq!(it.complete(&stat(0, file)), 0);
    let by_file = it.engine.take_stat(0).expect("a stat");
    check_stat(&by_file, &path);
    assert_eq!(it.complete(&stat_path(0, path_bytes(&path))), 0);
    let by_path = it.engine.take_stat(0).expect("a stat");
    check_stat(&by_path, &path);
    assert_eq!(it.engine.take_stat(0), None, "taken once");
    assert_eq!(it.complete(&stat_path(0, path_bytes(directory.path()))), 0);
    check_stat(&it.engine.take_stat(0).expect("a stat"), directory.path());
}

#[test]
fn a_stat_is_not_to_be_taken_before_it_is_complete() {
    let mut it = Loop::new(small());
    it.stage(&stat_path(0, b"/"));
    assert_eq!(it.engine.take_stat(0), None, "the kernel will write there");
    assert_eq!(it.result(0), 0);
    assert!(it.engine.take_stat(0).is_some());
}

#[test]
fn a_stat_that_failed_or_was_none_leaves_nothing_to_take() {
    let mut it = Loop::new(small());
    assert_eq!(it.complete(&stat_path(0, b"/nothing/there")), -libc::ENOENT);
    assert_eq!(it.engine.take_stat(0), None);
    assert_eq!(it.complete(&stat_path(0, b"/")), 0);
    assert_eq!(it.complete(&nop(0)), 0, "the slot is used again");
    assert_eq!(it.engine.take_stat(0), None);
    assert_eq!(it.engine.take_stat(u32::MAX), None);
}

#[test]
fn many_stats_at_once_each_have_a_buffer_of_their_own() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let files: Vec<FileHandle> =
        (0..200).map(|size| it.adopt(directory.file(&size.to_string(), &vec![0; size]))).collect();
    for (slot, &file) in files.iter().enumerate() {
        it.stage(&stat(slot as u32, file));
    }
    it.settle();
    for slot in 0..200 {
        assert_eq!(it.result(slot), 0);
        let stat = it.engine.take_stat(slot).expect("a stat");
        assert_eq!(u64::from_ne_bytes(at(&stat, 40)), u64::from(slot));
    }
}
