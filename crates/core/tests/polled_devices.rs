//! Devices that are polled (IOPOLL): a second ring beside the first takes reads and writes of direct files,
//! and all else goes on as before.

mod common;

use std::fs;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use common::{
    DEADLINE, Directory, Loop, drain, fsync, link, nop, polled, read, restricted, small, timeout,
    write,
};
use node_uring_core::{EngineOptions, FileHandle, Turn};

const CANCELED: i32 = -libc::ECANCELED;

/// Options of an engine that polls devices, on every kind of ring.
fn polling_devices() -> [EngineOptions; 3] {
    [small(), polled(100), restricted(&["read", "write", "fsync"])]
        .map(|options| EngineOptions { iopoll: true, ..options })
}

fn direct(it: &mut Loop, name: &std::path::Path) -> FileHandle {
    let flags = fs::File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(name);
    let fd = flags.expect("a direct file").into_raw_fd();
    it.engine.adopt(fd, true).expect("room")
}

#[test]
fn a_ring_beside_polls_direct_files_and_all_else_works_as_before() {
    let directory = Directory::new();
    let name = directory.join("polled");
    fs::write(&name, vec![7; 1 << 16]).expect("a file");
    for options in polling_devices() {
        let mut it = Loop::new(options);
        let file = direct(&mut it, &name);
        let plain = it.adopt(fs::File::open(&name).expect("a file"));
        let (chunk, other) = (it.chunk(4096), it.chunk(4096));
        // At the end of the file no device is asked: it is 0 wherever it polls.
        assert_eq!(it.complete(&read(0, file, chunk, (0, 4096), 1 << 16)), 0);
        // Whether the device polls is the machine's affair: that it is told, and how, is ours.
        for slot in 0..100 {
            it.stage(&read(slot, file, chunk, (0, 4096), u64::from(slot % 16) * 4096));
        }
        let turn = it.pump();
        let left = it.engine.is_busy();
        assert!(turn != Turn::Block || !left, "nobody is woken for what is polled");
        it.settle();
        let results = it.results();
        assert_eq!(results.len(), 100);
        let odd = results.values().find(|result| ![4096, -libc::EOPNOTSUPP].contains(result));
        assert_eq!(odd, None, "{options:?}");
        it.done.clear();
        // Not of direct files, of a chain, or no reads or writes: the first ring takes them.
        assert_eq!(it.complete(&read(0, plain, other, (0, 4096), 8192)), 4096);
        assert!(it.bytes(other, 0, 4096).iter().all(|&byte| byte == 7));
        it.stage(&link(write(0, file, chunk, (0, 4096), 0)));
        it.stage(&fsync(1, file));
        it.settle();
        assert_eq!((it.results()[&0], it.results()[&1]), (4096, 0));
        it.done.clear();
        assert_eq!(it.complete(&nop(0)), 0);
        assert_eq!(it.complete(&timeout(0, Duration::from_millis(1))), -libc::ETIME);
        it.until_block();
        // Its end finds operations on both rings.
        for slot in 0..20 {
            it.stage(&read(slot, file, chunk, (0, 4096), 0));
            it.stage(&timeout(100 + slot, Duration::from_secs(3600)));
        }
        it.engine.flush();
        assert!(it.engine.shutdown(DEADLINE));
        assert_eq!(it.engine.stats().stale, 0);
    }
}

#[test]
fn a_drain_waits_for_what_is_polled_and_a_cancel_reaches_what_is_not_submitted() {
    let directory = Directory::new();
    let name = directory.join("polled");
    fs::write(&name, vec![7; 1 << 16]).expect("a file");
    let mut it = Loop::new(EngineOptions { iopoll: true, ..small() });
    let file = direct(&mut it, &name);
    let chunk = it.chunk(4096);
    for _ in 0..20 {
        it.stage(&read(0, file, chunk, (0, 4096), 0));
        it.stage(&drain(nop(1)));
        it.stage(&read(2, file, chunk, (0, 4096), 4096));
        it.settle();
        let order: Vec<_> = it.done.iter().map(|completion| completion.slot).collect();
        assert_eq!(order, [0, 1, 2]);
        it.done.clear();
        it.stage(&read(0, file, chunk, (0, 4096), 0));
        assert!(it.engine.cancel(0));
        assert_eq!(it.result(0), CANCELED);
    }
}
