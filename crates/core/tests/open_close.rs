//! Opening, adopting and closing: every descriptor has one owner, and ends with it.

mod common;

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use common::{
    DEADLINE, Directory, Loop, alone, close, descriptors_on, fsync, nop, open, path_bytes, read,
    skip, small, stat_path, vectored, vectors, with_entries, write,
};
use node_uring_core::files::BadFile;
use node_uring_core::{Engine, Opcode, Refusal};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn an_opened_file_is_read_and_written_by_its_handle() {
    let directory = Directory::new();
    let path = directory.join("new");
    let mut it = Loop::new(small());
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
    let fd = it.complete(&open(7, path_bytes(&path), flags, 0o640));
    let (file, number) = it.engine.take_opened(7).expect("it was opened");
    assert_eq!(number, fd);
    let chunk = it.chunk_of(b"hello");
    assert_eq!(it.complete(&write(0, file, chunk, (0, 5), 0)), 5);
    assert_eq!(directory.content("new"), b"hello");
    let mode = std::fs::metadata(&path).expect("the file").permissions().mode();
    assert_eq!(mode & 0o7777 & !0o640, 0, "no more than was asked for");
    assert_eq!(it.engine.take_opened(7), Err(BadFile::Unknown), "taken once");
}

#[test]
fn an_opened_descriptor_is_closed_on_exec() {
    let directory = Directory::new();
    directory.file("file", b"");
    let path = directory.join("file");
    let mut it = Loop::new(small());
    let fd = it.complete(&open(0, path_bytes(&path), libc::O_RDONLY, 0));
    assert_closed_on_exec(fd);
}

#[test]
fn the_descriptors_of_an_engine_are_closed_on_exec() {
    let it = Loop::new(small());
    assert_closed_on_exec(it.engine.ring_descriptor());
    assert_closed_on_exec(it.engine.wait_descriptor());
}

#[track_caller]
fn assert_closed_on_exec(fd: i32) {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).expect("fdinfo");
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags");
    let flags = i32::from_str_radix(flags.trim(), 8).expect("octal");
    assert_eq!(flags & libc::O_CLOEXEC, libc::O_CLOEXEC);
}

#[test]
fn a_file_that_was_opened_and_never_taken_is_closed_when_its_slot_is_used_again() {
    let directory = Directory::new();
    directory.file("file", b"");
    let path = directory.join("file");
    let mut it = Loop::new(small());
    for _ in 0..50 {
        assert!(it.complete(&open(0, path_bytes(&path), libc::O_RDONLY, 0)) >= 0);
        assert_eq!(descriptors_on(&path), 1);
    }
    assert_eq!(it.complete(&nop(0)), 0);
    assert_eq!(descriptors_on(&path), 0);
}

#[test]
fn a_file_that_was_opened_and_never_taken_is_closed_with_the_engine() {
    let directory = Directory::new();
    directory.file("file", b"");
    let path = directory.join("file");
    let mut it = Loop::new(small());
    for slot in 0..10 {
        assert!(it.complete(&open(slot, path_bytes(&path), libc::O_RDONLY, 0)) >= 0);
    }
    assert_eq!(descriptors_on(&path), 10);
    drop(it);
    assert_eq!(descriptors_on(&path), 0);
}

#[test]
fn a_taken_file_is_open_until_it_is_closed_and_its_handle_is_of_no_use_afterwards() {
    let directory = Directory::new();
    directory.file("file", b"");
    let path = directory.join("file");
    let mut it = Loop::new(small());
    assert!(it.complete(&open(0, path_bytes(&path), libc::O_RDONLY, 0)) >= 0);
    let (file, _) = it.engine.take_opened(0).expect("it was opened");
    assert_eq!(it.complete(&nop(0)), 0);
    assert_eq!(descriptors_on(&path), 1);
    it.stage(&close(0, file));
    assert_eq!(it.engine.stage(&fsync(1, file)), Err(Refusal::UnknownFile), "gone when staged");
    assert_eq!(it.result(0), 0);
    assert_eq!(descriptors_on(&path), 0);
    assert_eq!(it.engine.stage(&close(0, file)), Err(Refusal::UnknownFile));
    assert!(it.engine.files().is_empty());
}

#[test]
fn a_closed_file_has_no_reference_left_in_the_registered_table() {
    let mut it = Loop::new(small());
    let (mut reader, file) = it.fifo_to_write();
    let chunk = it.chunk_of(b"last");
    assert_eq!(it.complete(&write(0, file, chunk, (0, 4), 0)), 4);
    assert_eq!(it.complete(&close(0, file)), 0);
    it.until_block();
    let mut last = [0; 4];
    reader.read_exact(&mut last).expect("what was written");
    assert_eq!(&last, b"last");
    let ended = common::is_readable(reader.as_raw_fd(), DEADLINE);
    assert!(ended, "somebody can still write");
    assert_eq!(reader.read(&mut last).expect("the end of the pipe"), 0);
}

#[test]
fn a_close_cancelled_before_submission_closes_all_the_same() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let file = it.adopt(directory.file("file", b""));
    it.stage(&close(0, file));
    assert!(it.engine.cancel(0));
    assert_eq!(it.result(0), -libc::ECANCELED);
    assert_eq!(descriptors_on(&directory.join("file")), 0);
}

#[test]
fn a_close_that_the_kernel_ran_never_closes_the_number_a_second_time() {
    let directory = Directory::new();
    let path = directory.join("file");
    let mut it = Loop::new(small());
    let file = it.adopt(directory.file("file", b""));
    let fd = it.engine.files().descriptor(file).expect("open");
    it.stage(&close(0, file));
    it.engine.flush();
    // Others of this process may have taken the number by now; whoever has it, keeps it.
    let others: Vec<_> = (0..50).map(|_| std::fs::File::open(&path).expect("the file")).collect();
    assert_eq!(it.result(0), 0);
    assert_eq!(it.complete(&nop(0)), 0);
    drop(it);
    assert_eq!(descriptors_on(&path), 50, "one of them may be {fd}");
    drop(others);
}

#[test]
fn a_descriptor_is_adopted_once() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let file = it.adopt(directory.file("file", b""));
    let fd = it.engine.files().descriptor(file).expect("open");
    assert_eq!(it.engine.adopt(fd, false), Err(BadFile::Twice));
    assert_eq!(it.complete(&fsync(0, file)), 0, "and is as good as before");
}

#[test]
fn a_number_that_is_no_descriptor_is_not_adopted() {
    let mut it = Loop::new(small());
    for number in [-1, -2, i32::MIN, i32::MAX] {
        assert_eq!(it.engine.adopt(number, false), Err(BadFile::Unknown), "{number}");
    }
    assert!(it.engine.files().is_empty());
}

#[test]
fn what_was_not_opened_cannot_be_taken() {
    let mut it = Loop::new(small());
    assert_eq!(it.engine.take_opened(0), Err(BadFile::Unknown));
    assert_eq!(it.engine.take_opened(u32::MAX), Err(BadFile::Unknown));
    assert_eq!(it.complete(&open(0, b"/nothing/there", libc::O_RDONLY, 0)), -libc::ENOENT);
    assert_eq!(it.engine.take_opened(0), Err(BadFile::Unknown));
    it.stage(&open(0, b"/", libc::O_RDONLY, 0));
    assert_eq!(it.engine.take_opened(0), Err(BadFile::Unknown), "under way");
    assert!(it.result(0) >= 0);
    assert!(it.engine.take_opened(0).is_ok());
    assert_eq!(it.complete(&stat_path(0, b"/")), 0);
    assert_eq!(it.engine.take_opened(0), Err(BadFile::Unknown), "a statx opens nothing");
}

// ---- the registered table ---------------------------------------------------------------------

#[test]
fn the_next_file_in_a_place_of_the_registered_table_is_read_not_the_one_before() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let chunk = it.chunk(1);
    for count in 0..100u8 {
        let file = it.adopt(directory.file(&count.to_string(), &[count]));
        assert_eq!(it.complete(&read(0, file, chunk, (0, 1), 0)), 1);
        assert_eq!(it.bytes(chunk, 0, 1)[0], count);
        assert_eq!(it.complete(&close(0, file)), 0);
    }
}

fn set_descriptors(most: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum }).expect("a lower limit");
}

#[test]
fn files_past_the_registered_table_are_used_like_those_in_it() {
    let name = "files_past_the_registered_table_are_used_like_those_in_it";
    alone(name, || {
        let limit = getrlimit(Resource::Nofile).maximum;
        if limit.is_some_and(|limit| limit < 1500) {
            return skip(&name.replace('_', " "), "RLIMIT_NOFILE is too low");
        }
        set_descriptors(1500);
        let directory = Directory::new();
        let mut it = Loop::new(small());
        let registered = it.engine.registered_files() as usize;
        assert!(registered < 1200, "{registered}");
        let chunk = it.chunk(1200);
        let files: Vec<_> = (0..1200u64)
            .map(|count| it.adopt(directory.file(&count.to_string(), &[count as u8])))
            .collect();
        for (slot, &file) in files.iter().enumerate() {
            it.stage(&read(slot as u32, file, chunk, (slot as u64, 1), 0));
        }
        it.settle();
        assert!(it.results().values().all(|&result| result == 1));
        let expected: Vec<_> = (0..1200u64).map(|count| count as u8).collect();
        assert_eq!(it.bytes(chunk, 0, 1200), expected);
        it.done.clear();
        for (slot, &file) in files.iter().enumerate() {
            it.stage(&close(slot as u32, file));
        }
        it.settle();
        assert!(it.results().values().all(|&result| result == 0));
        assert!(it.engine.files().is_empty());
    });
}

#[test]
fn a_small_limit_of_descriptors_makes_the_registered_table_small_and_nothing_else() {
    alone("a_small_limit_of_descriptors_makes_the_registered_table_small_and_nothing_else", || {
        let directory = Directory::new();
        set_descriptors(64);
        let mut it = Loop::new(small());
        assert!(it.engine.registered_files() <= 64);
        let file = it.adopt(directory.file("file", b"content"));
        let chunk = it.chunk(7);
        assert_eq!(it.complete(&read(0, file, chunk, (0, 7), 0)), 7);
        let path = directory.join("file");
        let mut opened = 0;
        let result = loop {
            let result = it.complete(&open(opened, path_bytes(&path), libc::O_RDONLY, 0));
            if result < 0 {
                break result;
            }
            opened += 1;
        };
        assert_eq!(result, -libc::EMFILE);
        // What was not taken is closed when the slot is used again, so there is room for one.
        assert!(it.complete(&open(0, path_bytes(&path), libc::O_RDONLY, 0)) >= 0);
        assert_eq!(it.complete(&read(2000, file, chunk, (0, 7), 0)), 7);
    });
}

#[test]
fn engines_that_come_and_go_leave_no_descriptor_behind() {
    alone("engines_that_come_and_go_leave_no_descriptor_behind", || {
        let directory = Directory::new();
        let count = || std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd").count();
        let before = count();
        for round in 0..30 {
            let mut it = Loop::new(small());
            let (fifo, mut writer) = it.fifo();
            let chunk = it.chunk(1);
            it.stage(&read(0, fifo, chunk, (0, 1), 0));
            it.adopt(directory.file(&round.to_string(), b""));
            let path = directory.join(&round.to_string());
            it.stage(&open(1, path_bytes(&path), libc::O_RDONLY, 0));
            if round % 2 == 0 {
                writer.write_all(b"x").expect("room in the pipe");
                it.settle();
            }
            // An engine that cannot be made leaves nothing either.
            assert!(Engine::new(with_entries(0, 8)).is_err());
        }
        assert_eq!(count(), before);
    });
}

/// Linux refuses any position but 0 on a socket with ESPIPE, also that of what a short write has left.
#[test]
fn a_socket_has_no_positions() {
    let (mine, mut theirs) = UnixStream::pair().expect("a pair");
    let mut it = Loop::new(small());
    let socket = it.engine.adopt(mine.into_raw_fd(), false).expect("room");
    let chunk = it.chunk_of(b"hello");
    assert_eq!(it.complete(&write(0, socket, chunk, (0, 5), 12345)), 5);
    let mut came = [0; 5];
    theirs.read_exact(&mut came).expect("what was written");
    assert_eq!(&came, b"hello");
    theirs.write_all(b"world").expect("room");
    assert_eq!(it.complete(&read(0, socket, chunk, (0, 5), 1 << 40)), 5);
    assert_eq!(it.bytes(chunk, 0, 5), b"world");
    theirs.write_all(b"again").expect("room");
    let into = vectors(&[(chunk, 0, 2), (chunk, 2, 3)]);
    assert_eq!(it.complete(&vectored(Opcode::Readv, 0, socket, &into, 1 << 40)), 5);
    assert_eq!(it.bytes(chunk, 0, 5), b"again");
}
