//! What an old, small or locked kernel does not have: each is refused by a filter on the thread, and
//! the engine goes on without it or says the kernel's errno.

mod common;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use common::gate::{Gate, forbid};
use common::{
    DEADLINE, Directory, Loop, close, link, nop, open, path_bytes, read, skip, small, write,
};
use node_uring_core::{Engine, TaskRun};

const NO_FILTER: &str = "seccomp(2) is not to be had";

/// Numbers of `io_uring_register(2)`.
const REGISTER_EVENTFD: u32 = 4;
const REGISTER_FILES_UPDATE: u32 = 6;
const REGISTER_PROBE: u32 = 8;
const REGISTER_FILES2: u32 = 13;
const REGISTER_BUFFERS2: u32 = 15;
const REGISTER_BUFFERS_UPDATE: u32 = 16;
const REGISTER_RING_FDS: u32 = 20;

#[test]
fn an_engine_that_cannot_be_set_up_says_the_errno() {
    for errno in [libc::ENOSYS, libc::EPERM, libc::EACCES, libc::ENOMEM, libc::EMFILE, libc::EINVAL]
    {
        let ran = forbid(libc::SYS_io_uring_setup, None, errno, || {
            let error = Engine::new(small()).err().expect("no engine");
            assert_eq!(error.raw_os_error(), Some(errno));
        });
        if !ran {
            return skip("an engine that cannot be set up says the errno", NO_FILTER);
        }
    }
}

const SUBMIT_ALL: u32 = 1 << 7;
const COOP_TASKRUN: u32 = 1 << 8;
const TASKRUN_FLAG: u32 = 1 << 9;
const SINGLE_ISSUER: u32 = 1 << 12;
const DEFER_TASKRUN: u32 = 1 << 13;
const NO_SQARRAY: u32 = 1 << 16;

#[test]
fn a_kernel_without_a_set_up_flag_gives_the_next_best_ring() {
    // By the version that brought what is missing: the kernel is the one before it.
    let before_6_6 = NO_SQARRAY;
    let before_6_1 = before_6_6 | DEFER_TASKRUN;
    let before_6_0 = before_6_1 | SINGLE_ISSUER;
    let before_5_19 = before_6_0 | COOP_TASKRUN | TASKRUN_FLAG;
    let before_5_18 = before_5_19 | SUBMIT_ALL;
    let kernels = [
        (0, TaskRun::Defer, true, true),
        (before_6_6, TaskRun::Defer, false, true),
        (before_6_1, TaskRun::Cooperative, false, true),
        (before_6_0, TaskRun::Cooperative, false, true),
        (before_5_19, TaskRun::Interrupt, false, true),
        (before_5_18, TaskRun::Interrupt, false, false),
    ];
    let ran = Gate::run(|gate| {
        for (unknown, task_run, no_sq_array, submit_all) in kernels {
            gate.forget_flags(unknown);
            let mut it = Loop::new(small());
            let granted = it.engine.capabilities().setup;
            let given = (granted.task_run, granted.no_sq_array, granted.submit_all);
            assert_eq!(given, (task_run, no_sq_array, submit_all));
            let (fifo, mut writer) = it.fifo();
            let chunk = it.chunk(4);
            it.stage(&read(0, fifo, chunk, (0, 4), 0));
            it.until_block();
            writer.write_all(b"late").expect("room in the pipe");
            assert_eq!(it.result(0), 4);
        }
    });
    if !ran {
        skip("a kernel without a set-up flag gives the next best ring", NO_FILTER);
    }
}

#[test]
fn an_engine_without_an_eventfd_is_none() {
    let ran = forbid(libc::SYS_io_uring_register, Some(REGISTER_EVENTFD), libc::EINVAL, || {
        let error = Engine::new(small()).err().expect("no engine");
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "it could never be woken");
    });
    if !ran {
        skip("an engine without an eventfd is none", NO_FILTER);
    }
}

/// Opens, writes, reads, through cached and direct files; fails a chain; closes.
fn use_everything(what: u32) {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let path = directory.join("file");
    let flags = libc::O_RDWR | libc::O_CREAT;
    assert!(it.complete(&open(0, path_bytes(&path), flags, 0o600)) >= 0);
    let (file, _) = it.engine.take_opened(0).expect("it was opened");
    let chunk = it.chunk_of(&common::pattern(8192, what));
    assert_eq!(it.complete(&write(0, file, chunk, (0, 8192), 0)), 8192);
    let back = it.chunk(8192);
    assert_eq!(it.complete(&read(0, file, back, (0, 8192), 0)), 8192);
    assert_eq!(it.bytes(back, 0, 8192), common::pattern(8192, what));
    std::fs::File::open(&path).and_then(|file| file.sync_all()).expect("on the disk");
    if let Ok(direct) = File::options().read(true).custom_flags(libc::O_DIRECT).open(&path) {
        let fd = std::os::fd::IntoRawFd::into_raw_fd(direct);
        let direct = it.engine.adopt(fd, true).expect("room");
        it.bytes(back, 0, 8192).fill(0);
        for _ in 0..2 {
            assert_eq!(it.complete(&read(0, direct, back, (4096, 4096), 4096)), 4096);
            assert_eq!(it.bytes(back, 4096, 4096), &common::pattern(8192, what)[4096..]);
        }
        let registers = [REGISTER_BUFFERS2, REGISTER_BUFFERS_UPDATE];
        assert!(!registers.contains(&what) || it.engine.arena().registered_bytes() == 0);
        assert_eq!(it.complete(&close(0, direct)), 0);
    }
    it.stage(&link(nop(1)));
    it.stage(&nop(2));
    it.settle();
    let reader_gone = it.fifo_to_write();
    drop(reader_gone.0);
    assert_eq!(it.complete(&write(3, reader_gone.1, chunk, (0, 1), 0)), -libc::EPIPE);
    for (slot, file) in [(4, file), (5, reader_gone.1)] {
        assert_eq!(it.complete(&close(slot, file)), 0);
    }
    assert_eq!(it.engine.registered_files() == 0, what == REGISTER_FILES2);
    let granted = it.engine.capabilities();
    assert_eq!(granted.setup.registered_descriptor, what != REGISTER_RING_FDS);
    assert_eq!(granted.operations.iter().any(|(_, has)| *has), what != REGISTER_PROBE);
    assert!(it.engine.shutdown(DEADLINE));
}

#[test]
fn without_any_one_registration_everything_works_all_the_same() {
    for what in [
        REGISTER_FILES_UPDATE,
        REGISTER_PROBE,
        REGISTER_FILES2,
        REGISTER_BUFFERS2,
        REGISTER_BUFFERS_UPDATE,
        REGISTER_RING_FDS,
    ] {
        for errno in [libc::EINVAL, libc::ENOMEM] {
            let ran =
                forbid(libc::SYS_io_uring_register, Some(what), errno, || use_everything(what));
            if !ran {
                let title = "without any one registration everything works all the same";
                return skip(title, NO_FILTER);
            }
        }
    }
}
