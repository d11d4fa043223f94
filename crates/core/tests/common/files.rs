//! Files, descriptors and memory of the tests. What is unsafe in the tests is here and in `gate`.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use node_uring_core::Mapping;
use node_uring_core::arena::Address;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A directory of its own, removed at the end.
pub struct Directory(PathBuf);

impl Directory {
    /// On the disk that cargo builds on.
    pub fn new() -> Self {
        Self::beneath(Path::new(env!("CARGO_TARGET_TMPDIR")))
    }

    /// In memory where that is to be had: a disk that is busy elsewhere takes seconds for an fsync.
    pub fn in_memory() -> Self {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { Self::beneath(memory) } else { Self::new() }
    }

    fn beneath(parent: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("node-uring-{}-{count}", std::process::id());
        let path = parent.join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes a file with this content, open for reading and writing.
    pub fn file(&self, name: &str, content: &[u8]) -> File {
        let path = self.join(name);
        let mut options = File::options();
        let mut file =
            options.read(true).write(true).create_new(true).open(path).expect("a new file");
        file.write_all(content).expect("its content");
        file
    }

    pub fn content(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.join(name)).expect("the file")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn path_bytes(path: &Path) -> &[u8] {
    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())
}

/// How many descriptors of this process are open on `path`. Tests run side by side: all descriptors
/// cannot be counted, those of a file of one's own can.
pub fn descriptors_on(path: &Path) -> usize {
    let path = path.canonicalize().expect("it exists");
    let links = std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd").flatten();
    links.filter(|link| std::fs::read_link(link.path()).is_ok_and(|target| target == path)).count()
}

/// Descriptors of this process whose target reads like `text`.
pub fn descriptors_like(text: &str) -> Vec<RawFd> {
    let links = std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd").flatten();
    links
        .filter(|link| {
            std::fs::read_link(link.path()).is_ok_and(|to| to.to_string_lossy().contains(text))
        })
        .filter_map(|link| link.file_name().to_str()?.parse().ok())
        .collect()
}

/// Puts `file` in the place of whatever the descriptor `fd` was.
pub fn replace_descriptor(fd: RawFd, file: &File) {
    // SAFETY: dup2 takes no pointer. What breaks is what the test wants to break.
    let done = unsafe { libc::dup2(file.as_raw_fd(), fd) };
    assert_eq!(done, fd);
}

/// Takes the first registered ring descriptor of this thread away, `IORING_UNREGISTER_RING_FDS`.
pub fn unregister_ring_descriptor(ring: RawFd) {
    const UNREGISTER_RING_FDS: libc::c_uint = 21;
    // struct io_uring_rsrc_update: an offset of 0, and nothing.
    let mut update = [0u64; 2];
    // SAFETY: the call reads one update, ours, of this size.
    let done = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring,
            UNREGISTER_RING_FDS,
            update.as_mut_ptr(),
            1,
        )
    };
    assert_eq!(done, 1);
}

/// Takes the pages of a mapping away; at the next touch there are new ones, all zero.
pub fn drop_pages(start: *mut u8, length_bytes: usize) {
    // SAFETY: the callers name whole pages of a chunk that they own and that no operation holds.
    let done = unsafe { libc::madvise(start.cast(), length_bytes, libc::MADV_DONTNEED) };
    assert_eq!(done, 0);
}

/// The bytes of an exposed chunk, whose mapping is alive.
pub fn peek(address: Address, _mapping: &Rc<Mapping>) -> Vec<u8> {
    // SAFETY: `_mapping` keeps the memory mapped, and no operation holds the chunk.
    unsafe { std::slice::from_raw_parts(address.as_ptr(), address.len()) }.to_vec()
}

/// Bytes that tell their position: no two places of a short file look alike.
pub fn pattern(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 16) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Whether `fd` becomes readable within `patience`.
pub fn is_readable(fd: RawFd, patience: Duration) -> bool {
    // SAFETY: the callers' descriptors (an engine's eventfd, a pipe's end) are open during the call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left)) {
            Ok(count) => return count == 1,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}

/// What the kernel's workers of this process are doing, where we may know: one that waits for a disk
/// looks like a hang.
pub fn workers() -> String {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc/self/task").flatten();
    let mut found = String::new();
    for task in tasks {
        let about = |what| std::fs::read_to_string(task.path().join(what)).unwrap_or_default();
        let name = about("comm");
        if name.starts_with("iou-") {
            found = found + "\n" + &name + &about("stack");
        }
    }
    found
}
