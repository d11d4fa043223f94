//! The operations beside reads, writes and syncs: each does what its system call does, says the same
//! errno, and lets go of what it held.

mod common;

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use common::{
    Directory, Loop, close, link, modified, nop, on_file, on_path, open, path_bytes, pattern, read,
    skip, small, vectored, vectors, write,
};
use node_uring_core::operation::{SPLICE_FROM, SPLICE_TO};
use node_uring_core::{FileHandle, Opcode, Refusal, Request};

/// Of `openat2(2)`.
const RESOLVE_BENEATH: u64 = 0x08;

/// Whether the kernel has the operation; says so when it has not.
fn has(it: &Loop, name: &'static str, title: &str) -> bool {
    let has = it.engine.capabilities().operations.contains(&(name, true));
    if !has {
        skip(title, "the kernel has no such operation");
    }
    has
}

fn both(first: &Path, second: &Path) -> (Vec<u8>, u64) {
    let (first, second) = (path_bytes(first), path_bytes(second));
    ([first, second].concat(), first.len() as u64)
}

// ---- on a file --------------------------------------------------------------------------------

#[test]
fn fallocate_makes_a_file_longer_or_only_takes_its_room() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let file = it.adopt(directory.file("file", b"content"));
    let keep_size = libc::FALLOC_FL_KEEP_SIZE as u64;
    assert_eq!(it.complete(&on_file(Opcode::Fallocate, 0, file, [0, 100, 4096])), 0);
    assert_eq!(directory.content("file").len(), 4196);
    assert_eq!(it.complete(&on_file(Opcode::Fallocate, 0, file, [keep_size, 1 << 20, 0])), 0);
    let metadata = std::fs::metadata(directory.join("file")).expect("it exists");
    assert_eq!((metadata.len(), metadata.blocks() * 512 >= 1 << 20), (4196, true));
    let nothing = on_file(Opcode::Fallocate, 0, file, [0, 0, 0]);
    assert_eq!(it.complete(&nothing), -libc::EINVAL);
}

#[test]
fn fadvise_and_sync_file_range_succeed_on_a_file_and_say_espipe_of_a_fifo() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let file = it.adopt(directory.file("file", b"content"));
    let (fifo, _writer) = it.fifo();
    for (opcode, offset) in [
        (Opcode::Fadvise, libc::POSIX_FADV_DONTNEED as u64),
        (Opcode::SyncFileRange, u64::from(libc::SYNC_FILE_RANGE_WRITE)),
    ] {
        assert_eq!(it.complete(&on_file(opcode, 0, file, [offset, 7, 0])), 0);
        assert_eq!(it.complete(&on_file(opcode, 0, fifo, [offset, 7, 0])), -libc::ESPIPE);
        assert_eq!(it.complete(&on_file(opcode, 0, file, [1 << 20, 7, 0])), -libc::EINVAL);
    }
}

#[test]
fn a_poll_completes_with_the_events_that_came_and_not_before() {
    let mut it = Loop::new(small());
    let (fifo, mut writer) = it.fifo();
    let (readable, hung_up) = (libc::POLLIN as u64, i32::from(libc::POLLHUP));
    it.stage(&on_file(Opcode::PollAdd, 0, fifo, [readable, 0, 0]));
    it.until_block();
    assert!(it.results().is_empty(), "nothing has come");
    writer.write_all(b"!").expect("room");
    assert_eq!(it.result(0), i32::from(libc::POLLIN));
    drop(writer);
    let both = it.complete(&on_file(Opcode::PollAdd, 1, fifo, [readable, 0, 0]));
    assert_eq!(both, i32::from(libc::POLLIN) | hung_up);
}

#[test]
fn a_poll_that_is_cancelled_lets_its_file_go() {
    let mut it = Loop::new(small());
    let (fifo, _writer) = it.fifo();
    it.stage(&on_file(Opcode::PollAdd, 0, fifo, [libc::POLLIN as u64, 0, 0]));
    it.until_block();
    assert_eq!(it.engine.stage(&close(1, fifo)), Err(Refusal::FileInFlight));
    assert!(it.engine.cancel(0));
    assert_eq!(it.result(0), -libc::ECANCELED);
    assert_eq!(it.complete(&close(1, fifo)), 0);
}

#[test]
fn send_and_recv_move_bytes_over_a_socket_and_peek_leaves_them() {
    let mut it = Loop::new(small());
    let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
    let socket = it.adopt(ours);
    let chunk = it.chunk_of(b"..hello..");
    let transfer = |opcode, slot, (offset, length)| Request {
        chunk: chunk.number(),
        ..on_file(opcode, slot, socket, [offset, length, 0])
    };
    assert_eq!(it.complete(&transfer(Opcode::Send, 0, (2, 5))), 5);
    let mut got = [0; 5];
    theirs.read_exact(&mut got).expect("what was sent");
    assert_eq!(&got, b"hello");
    it.stage(&transfer(Opcode::Recv, 1, (0, 9)));
    it.until_block();
    theirs.write_all(b"world").expect("room");
    assert_eq!(it.result(1), 5);
    assert_eq!(it.bytes(chunk, 0, 9), b"worldlo..");
    theirs.write_all(b"peek").expect("room");
    let peek = modified(transfer(Opcode::Recv, 2, (0, 9)), libc::MSG_PEEK);
    assert_eq!(it.complete(&peek), 4);
    assert_eq!(it.complete(&transfer(Opcode::Recv, 3, (0, 9))), 4, "they are there again");
    drop(theirs);
    assert_eq!(it.complete(&transfer(Opcode::Recv, 4, (0, 9))), 0);
    assert_eq!(it.complete(&transfer(Opcode::Send, 5, (0, 9))), -libc::EPIPE);
}

#[test]
fn a_send_that_another_is_linked_behind_sends_all_or_fails() {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    let mut it = Loop::new(small());
    let socket = it.adopt(ours);
    let content = pattern(4 << 20, 3);
    let chunk = it.chunk_of(&content);
    let send = Request {
        chunk: chunk.number(),
        ..on_file(Opcode::Send, 0, socket, [0, content.len() as u64, 0])
    };
    it.stage(&link(send));
    it.stage(&nop(1));
    it.until_block();
    assert!(it.results().is_empty(), "a part of it has no room");
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; 4 << 20];
        theirs.read_exact(&mut got).map(|()| got)
    });
    assert_eq!((it.result(0), it.result(1)), (4 << 20, 0));
    assert!(reader.join().expect("no panic").expect("all of it") == content);
}

// ---- splice -----------------------------------------------------------------------------------

fn splice(slot: u32, from: FileHandle, to: FileHandle, numbers: [u64; 3]) -> Request<'static> {
    Request { chunk: from.number(), ..on_file(Opcode::Splice, slot, to, numbers) }
}

#[test]
fn splice_moves_bytes_from_a_file_into_a_pipe_and_on_into_another_file() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let content = pattern(9000, 1);
    let from = it.adopt(directory.file("from", &content));
    let to = it.adopt(directory.file("to", b"."));
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let (reader, writer) = (it.adopt(reader), it.adopt(writer));
    assert_eq!(it.complete(&splice(0, from, writer, [SPLICE_FROM, 8000, 500])), 8000);
    assert_eq!(it.complete(&splice(1, reader, to, [SPLICE_TO, 8000, 1])), 8000);
    assert_eq!(directory.content("to")[1..], content[500..8500]);
    assert_eq!(it.complete(&splice(2, from, writer, [SPLICE_FROM, 8000, 9000])), 0, "at the end");
    let no_pipe = splice(3, from, to, [SPLICE_FROM, 1, 0]);
    assert_eq!(it.complete(&no_pipe), -libc::EINVAL);
}

#[test]
fn a_splice_holds_both_of_its_files_until_it_is_over() {
    let mut it = Loop::new(small());
    let (from, _writer) = it.fifo();
    let (_reader, to) = it.fifo_to_write();
    it.stage(&splice(0, from, to, [0, 1, 0]));
    it.until_block();
    for file in [from, to] {
        assert_eq!(it.engine.stage(&close(1, file)), Err(Refusal::FileInFlight));
    }
    assert!(it.engine.cancel(0));
    assert!(it.result(0) < 0);
    for file in [from, to] {
        assert_eq!(it.complete(&close(1, file)), 0);
        it.done.clear();
    }
}

#[test]
fn a_splice_that_is_refused_holds_neither_of_its_files() {
    let mut it = Loop::new(small());
    let (file, _writer) = it.fifo();
    let gone = FileHandle::from_number(0);
    for (request, refusal) in [
        (splice(0, gone, file, [0, 1, 0]), Refusal::UnknownFile),
        (splice(0, file, gone, [0, 1, 0]), Refusal::UnknownFile),
        (splice(0, file, file, [0, 1, 7]), Refusal::Argument),
        (splice(0, file, file, [3, 1, 0]), Refusal::Argument),
        (splice(0, file, file, [SPLICE_FROM, 1, 1 << 63]), Refusal::Argument),
        (splice(0, file, file, [0, 1 << 31, 0]), Refusal::Argument),
    ] {
        assert_eq!(it.engine.stage(&request), Err(refusal), "{request:?}");
    }
    assert_eq!(it.complete(&close(0, file)), 0);
}

// ---- vectors ----------------------------------------------------------------------------------

#[test]
fn readv_and_writev_move_bytes_between_a_file_and_ranges_of_chunks_in_their_order() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let file = it.adopt(directory.file("file", b"0123456789"));
    let (one, two) = (it.chunk_of(b"abcdefgh"), it.chunk_of(b"ABCDEFGH"));
    let out = vectors(&[(two, 2, 3), (one, 0, 1), (two, 0, 2)]);
    assert_eq!(it.complete(&vectored(Opcode::Writev, 0, file, &out, 2)), 6);
    assert_eq!(directory.content("file"), b"01CDEaAB89");
    let into = vectors(&[(one, 6, 2), (two, 1, 4), (one, 0, 6)]);
    assert_eq!(it.complete(&vectored(Opcode::Readv, 0, file, &into, 1)), 9, "the file ends");
    assert_eq!(it.bytes(one, 0, 8), b"B89def1C");
    assert_eq!(it.bytes(two, 0, 8), b"ADEaAFGH");
}

#[test]
fn a_vectored_read_holds_every_chunk_until_it_is_over() {
    let mut it = Loop::new(small());
    let (fifo, mut writer) = it.fifo();
    let chunks = [it.chunk(4096), it.chunk(4096), it.chunk(4096)];
    let bytes = vectors(&chunks.map(|chunk| (chunk, 0, 2)));
    it.stage(&vectored(Opcode::Readv, 0, fifo, &bytes, 0));
    it.until_block();
    let before = it.books();
    it.disown(chunks);
    assert_eq!(it.books(), before, "the kernel may write there still");
    writer.write_all(b"abcdef").expect("room");
    assert_eq!(it.result(0), 6);
    assert_ne!(it.books(), before);
}

#[test]
fn vectors_that_are_refused_leave_nothing_held() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let file = it.adopt(directory.file("file", b"content"));
    let (chunk, gone) = (it.chunk(100), it.chunk(100));
    it.disown([gone]);
    let half = f64::to_ne_bytes(0.5);
    let cases = [
        (Vec::new(), Refusal::Argument),
        (vectors(&[(chunk, 0, 1)])[..23].to_vec(), Refusal::Argument),
        ([vectors(&[(chunk, 0, 1)]), vec![0]].concat(), Refusal::Argument),
        (vectors(&vec![(chunk, 0, 1); 1025]), Refusal::Argument),
        (vectors(&[(chunk, 0, 1), (chunk, 0, 1 << 31)]), Refusal::Argument),
        (vectors(&[(chunk, 0, 1), (chunk, 1 << 53, 1)]), Refusal::Argument),
        ([vectors(&[(chunk, 0, 1)]), half.repeat(3)].concat(), Refusal::Argument),
        (vectors(&[(chunk, 0, 1), (chunk, 100, 1)]), Refusal::Range),
        (vectors(&[(chunk, 0, 1), (gone, 0, 1)]), Refusal::UnknownChunk),
    ];
    for (bytes, refusal) in cases {
        let request = vectored(Opcode::Readv, 0, file, &bytes, 0);
        assert_eq!(it.engine.stage(&request), Err(refusal));
    }
    assert_eq!(it.engine.arena().in_flight(chunk), Ok(false));
    assert_eq!(it.complete(&close(0, file)), 0);
}

#[test]
fn the_most_vectors_are_one_operation() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let file = it.adopt(directory.file("file", b""));
    let content = pattern(4096, 1);
    let chunk = it.chunk_of(&content);
    let ranges: Vec<_> = (0..1024).map(|at| (chunk, at * 4, 4)).collect();
    let bytes = vectors(&ranges);
    assert_eq!(it.complete(&vectored(Opcode::Writev, 0, file, &bytes, 0)), 4096);
    assert_eq!(it.engine.stats().submitted, 1);
    assert_eq!(directory.content("file"), content);
}

// ---- flags of the system call -----------------------------------------------------------------

#[test]
fn flags_of_preadv2_reach_the_kernel() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let file = it.adopt(directory.file("file", b"content"));
    let (fifo, _writer) = it.fifo();
    let chunk = it.chunk_of(b"more");
    let nowait = modified(read(0, fifo, chunk, (0, 4), 0), libc::RWF_NOWAIT);
    assert_eq!(it.complete(&nowait), -libc::EAGAIN);
    let append = modified(write(0, file, chunk, (0, 4), 0), libc::RWF_APPEND | libc::RWF_DSYNC);
    assert_eq!(it.complete(&append), 4);
    assert_eq!(directory.content("file"), b"contentmore");
    let bytes = vectors(&[(chunk, 0, 2), (chunk, 2, 2)]);
    let append = modified(vectored(Opcode::Writev, 0, file, &bytes, 0), libc::RWF_APPEND);
    assert_eq!(it.complete(&append), 4);
    assert_eq!(directory.content("file"), b"contentmoremore");
}

#[test]
fn flags_that_an_operation_does_not_take_are_refused() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let file = it.adopt(directory.file("file", b"content"));
    let chunk = it.chunk(8);
    for request in [
        modified(nop(0), 1),
        modified(read(0, file, chunk, (0, 8), 0), libc::RWF_HIPRI),
        modified(read(0, file, chunk, (0, 8), 0), libc::RWF_APPEND),
        modified(read(0, file, chunk, (0, 8), 0), 0x4000),
        modified(write(0, file, chunk, (0, 8), 0), 0x20),
        modified(on_file(Opcode::Fsync, 0, file, [0; 3]), libc::RWF_DSYNC),
    ] {
        assert_eq!(it.engine.stage(&request), Err(Refusal::Argument), "{request:?}");
    }
}

// ---- paths ------------------------------------------------------------------------------------

#[test]
fn linkat_symlinkat_and_mkdirat_make_what_they_say() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let title = "linkat, symlinkat and mkdirat make what they say";
    if !["linkat", "symlinkat", "mkdirat"].into_iter().all(|name| has(&it, name, title)) {
        return;
    }
    directory.file("file", b"content");
    let [file, hard, soft, folder] =
        ["file", "hard", "soft", "folder"].map(|name| directory.join(name));
    let (paths, length) = both(&file, &hard);
    assert_eq!(it.complete(&on_path(Opcode::Linkat, 0, &paths, 0, length)), 0);
    assert_eq!(it.complete(&on_path(Opcode::Linkat, 0, &paths, 0, length)), -libc::EEXIST);
    assert_eq!(std::fs::metadata(&hard).expect("it exists").nlink(), 2);
    let (paths, length) = both(Path::new("where/ever"), &soft);
    assert_eq!(it.complete(&on_path(Opcode::Symlinkat, 0, &paths, 0, length)), 0);
    assert_eq!(std::fs::read_link(&soft).expect("a link"), Path::new("where/ever"));
    let mkdir = on_path(Opcode::Mkdirat, 0, path_bytes(&folder), 0, 0o700);
    assert_eq!(it.complete(&mkdir), 0);
    assert_eq!(it.complete(&mkdir), -libc::EEXIST);
    let mode = std::fs::metadata(&folder).expect("it exists").permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
    let rmdir = libc::AT_REMOVEDIR as u64;
    let remove = on_path(Opcode::Unlinkat, 0, path_bytes(&folder), rmdir, 0);
    assert_eq!(it.complete(&remove), 0);
    assert!(!folder.exists());
}

#[test]
fn statx_of_a_link_itself_does_not_follow_it() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    directory.file("file", b"content");
    let link = directory.join("link");
    std::os::unix::fs::symlink("file", &link).expect("a link");
    let mask = u64::from(libc::STATX_BASIC_STATS);
    for (flags, kind) in [(0, libc::S_IFREG), (libc::AT_SYMLINK_NOFOLLOW, libc::S_IFLNK)] {
        let request = on_path(Opcode::Statx, 0, path_bytes(&link), flags as u64, mask);
        assert_eq!(it.complete(&request), 0);
        let stat = it.engine.take_stat(0).expect("a stat");
        let mode = u32::from(u16::from_ne_bytes([stat[28], stat[29]]));
        assert_eq!(mode & libc::S_IFMT, kind);
    }
}

#[test]
fn openat_begins_at_a_directory_and_openat2_keeps_beneath_it() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    directory.file("file", b"content");
    let inside = directory.join("inside");
    std::fs::create_dir(&inside).expect("a directory");
    let from = it.adopt(std::fs::File::open(&inside).expect("a directory"));
    let beneath = |path, position| Request {
        file: from.number(),
        position,
        ..open(0, path, libc::O_RDONLY, 0)
    };
    assert!(it.complete(&beneath(b"../file", 0)) >= 0);
    assert!(it.engine.take_opened(0).is_ok());
    assert_eq!(it.complete(&beneath(b"missing", 0)), -libc::ENOENT);
    if !has(&it, "openat2", "openat2 keeps beneath a directory") {
        return;
    }
    assert_eq!(it.complete(&beneath(b"../file", RESOLVE_BENEATH)), -libc::EXDEV);
    let make = Request {
        offset: (libc::O_CREAT | libc::O_RDWR) as u64,
        length: 0o600,
        ..beneath(b"made", RESOLVE_BENEATH)
    };
    assert!(it.complete(&make) >= 0);
    assert!(inside.join("made").exists());
    assert_eq!(it.complete(&beneath(b"made", 1 << 40)), -libc::EINVAL);
}

#[test]
fn openat2_is_told_a_mode_where_a_file_is_made_and_nowhere_else() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    if !has(&it, "openat2", "openat2 is told a mode where a file is made") {
        return;
    }
    drop(directory.file("file", b"content"));
    let from = it.adopt(std::fs::File::open(directory.path()).expect("a directory"));
    let beneath = |path, flags| Request {
        file: from.number(),
        position: RESOLVE_BENEATH,
        ..open(0, path, flags, 0o640)
    };
    for (path, flags, mode) in [
        (&b"file"[..], libc::O_RDONLY, 0o100_644),
        (b"new", libc::O_RDWR | libc::O_CREAT, 0o100_640),
        (b".", libc::O_RDWR | libc::O_TMPFILE, 0o100_640),
    ] {
        let result = it.complete(&beneath(path, flags));
        if result == -libc::EOPNOTSUPP && flags & libc::O_TMPFILE == libc::O_TMPFILE {
            skip("openat2 is told a mode where a file is made", "no O_TMPFILE here");
            continue;
        }
        assert!(result >= 0, "{path:?}: {result}");
        let (file, _) = it.engine.take_opened(0).expect("a file");
        assert_eq!(it.complete(&common::stat(0, file)), 0);
        let stat = it.engine.take_stat(0).expect("a stat");
        let stx_mode = u16::from_ne_bytes([stat[28], stat[29]]);
        assert_eq!(stx_mode & 0o100_700, mode & 0o100_700, "{path:?}");
    }
}

#[test]
fn the_sticky_bit_and_its_kin_are_a_part_of_the_mode() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    if !has(&it, "mkdirat", "the sticky bit is a part of the mode") {
        return;
    }
    let (folder, file) = (directory.join("made"), directory.join("opened"));
    let mode = |path: &Path| std::fs::metadata(path).expect("made").permissions().mode();
    assert_eq!(it.complete(&on_path(Opcode::Mkdirat, 0, path_bytes(&folder), 0, 0o1700)), 0);
    assert_eq!(mode(&folder) & 0o7777, 0o1700);
    let flags = libc::O_CREAT | libc::O_WRONLY;
    assert!(it.complete(&open(0, path_bytes(&file), flags, 0o4700)) >= 0);
    assert_eq!(mode(&file) & 0o7777, 0o4700);
}

#[test]
fn a_directory_is_not_closed_while_a_file_is_opened_from_it() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let fifo = directory.join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .expect("a FIFO");
    let from = it.adopt(std::fs::File::open(directory.path()).expect("a directory"));
    it.stage(&Request { file: from.number(), ..open(0, b"fifo", libc::O_RDONLY, 0) });
    it.until_block();
    assert_eq!(it.engine.stage(&close(1, from)), Err(Refusal::FileInFlight));
    assert!(it.engine.cancel(0));
    assert!(it.result(0) < 0);
    assert_eq!(it.complete(&close(1, from)), 0);
}
