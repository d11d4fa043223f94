//! What a set-up asks for by name does what it says: a polling thread, one that is shared, operations
//! that a ring is restricted to. That all else works on such rings is shown by `setups.rs`.

mod common;

use std::fs;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use common::{
    DEADLINE, Directory, Loop, alone, drain, fsync, is_readable, link, nop, open, path_bytes, read,
    skip, small, stat_path, timeout, truncate, write,
};
use node_uring_core::{
    Engine, EngineOptions, FileHandle, OperationSet, Reap, Refusal, Setup, SqPoll, TaskRun, Turn,
};

const CANCELED: i32 = -libc::ECANCELED;

fn polled(idle_ms: u32) -> EngineOptions {
    let sqpoll = Some(SqPoll { idle_ms, cpu: None });
    let setup = Setup { sqpoll, task_run: TaskRun::Interrupt, ..small().setup };
    EngineOptions { setup, ..small() }
}

fn attached(to: &Engine, options: EngineOptions) -> EngineOptions {
    let setup = Setup { attach: Some(to.ring_descriptor()), ..options.setup };
    EngineOptions { setup, ..options }
}

fn restricted(names: &[&str]) -> EngineOptions {
    let restrict = Some(OperationSet::named(names).expect("known names"));
    EngineOptions { setup: Setup { restrict, ..small().setup }, ..small() }
}

fn errno_of(options: EngineOptions) -> Option<i32> {
    Engine::new(options).err().and_then(|error| error.raw_os_error())
}

/// The polling threads of this process.
fn polling_threads() -> Vec<std::path::PathBuf> {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc/self/task").flatten();
    tasks
        .map(|task| task.path())
        .filter(|task| {
            fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("iou-sqp"))
        })
        .collect()
}

/// Waits until the process has so many: a thread that has just been made does not bear its name yet.
#[track_caller]
fn assert_polling_threads(count: usize) {
    let started = Instant::now();
    while polling_threads().len() != count && started.elapsed() < DEADLINE / 4 {
        std::thread::yield_now();
    }
    assert_eq!(polling_threads().len(), count);
}

/// User and system time of a thread, in ticks of 10 ms. `proc_pid_stat(5)`.
fn ticks(task: &std::path::Path) -> u64 {
    let stat = fs::read_to_string(task.join("stat")).expect("its stat");
    // The name, in brackets, is the second field.
    let fields: Vec<_> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    [11, 12].iter().map(|&field| fields[field].parse::<u64>().expect("ticks")).sum()
}

#[test]
fn nothing_enters_the_kernel_while_the_polling_thread_is_awake() {
    let mut it = Loop::new(polled(10_000));
    assert_eq!(it.complete(&nop(0)), 0);
    let before = it.engine.stats();
    for _ in 0..1000 {
        assert_eq!(it.complete(&nop(0)), 0);
    }
    let after = it.engine.stats();
    assert_eq!(after.enters, before.enters);
    assert_eq!(after.submitted - before.submitted, 1000);
}

#[test]
fn a_polling_thread_sleeps_without_work_and_is_woken_by_it() {
    alone("a_polling_thread_sleeps_without_work_and_is_woken_by_it", || {
        let mut it = Loop::new(polled(10));
        assert_eq!(it.complete(&nop(0)), 0);
        let [thread] = polling_threads().try_into().expect("one thread");
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(200));
            let asleep = ticks(&thread);
            std::thread::sleep(Duration::from_millis(500));
            assert!(ticks(&thread) - asleep <= 2, "it sleeps: at most 20 of 500 ms");
            let before = it.engine.stats().enters;
            assert_eq!(it.complete(&nop(0)), 0);
            assert_eq!(it.engine.stats().enters - before, 1, "the one that wakes it");
        }
    });
}

#[test]
fn a_wake_up_that_comes_as_the_polling_thread_falls_asleep_is_not_lost() {
    let mut it = Loop::new(polled(1));
    // Pauses around the time after which it sleeps.
    for step in 0..400u64 {
        assert_eq!(it.complete(&nop(0)), 0);
        std::thread::sleep(Duration::from_micros(step % 100 * 100));
    }
}

#[test]
fn attached_rings_share_one_polling_thread_and_others_have_their_own() {
    alone("attached_rings_share_one_polling_thread_and_others_have_their_own", || {
        let mut first = Loop::new(polled(100));
        let options = attached(&first.engine, polled(100));
        let mut more: Vec<_> = (0..4).map(|_| Loop::new(options)).collect();
        for it in more.iter_mut().chain([&mut first]) {
            assert_eq!(it.complete(&nop(0)), 0);
        }
        assert_polling_threads(1);
        let mut other = Loop::new(polled(100));
        assert_eq!(other.complete(&nop(0)), 0);
        assert_polling_threads(2);
        drop((first, other));
        // Those that attached keep theirs.
        assert_polling_threads(1);
        assert_eq!(more[0].complete(&nop(0)), 0);
    });
}

#[test]
fn what_is_no_ring_with_a_polling_thread_cannot_be_attached_to() {
    let plain = Engine::new(small()).expect("an engine");
    assert_eq!(errno_of(attached(&plain, polled(100))), Some(libc::EINVAL));
    let to = |attach| {
        let options = polled(100);
        EngineOptions { setup: Setup { attach: Some(attach), ..options.setup }, ..options }
    };
    assert_eq!(errno_of(to(1_000_000)), Some(libc::ENXIO));
    assert_eq!(errno_of(to(0)), Some(libc::EINVAL));
}

#[test]
fn a_chain_stays_whole_where_rings_share_a_polling_thread() {
    let mut first = Loop::new(polled(1000));
    let second = Loop::new(attached(&first.engine, polled(1000)));
    let directory = Directory::new();
    let name = directory.join("read-only");
    fs::write(&name, b"").expect("a file");
    let file = first.adopt(fs::File::open(&name).expect("a file"));
    let chunk = first.chunk(1);
    // Eight entries are taken at a time: the chain would begin in one eight and end in the next.
    for before in 0..16 {
        for _ in 0..20 {
            for slot in 0..before {
                first.stage(&nop(slot));
            }
            first.stage(&link(write(30, file, chunk, (0, 1), 0)));
            first.stage(&link(nop(31)));
            first.stage(&nop(32));
            first.settle();
            let results = first.results();
            let chain = [30, 31, 32].map(|slot| results[&slot]);
            assert_eq!(chain, [-libc::EBADF, CANCELED, CANCELED], "behind {before}");
            first.done.clear();
        }
    }
    drop(second);
}

#[test]
fn a_chain_longer_than_a_polling_thread_takes_whole_is_refused() {
    let mut it = Loop::new(polled(100));
    assert_eq!(it.engine.limits().chain, 8);
    for slot in 0..7 {
        it.stage(&link(nop(slot)));
    }
    it.stage(&nop(7));
    it.settle();
    assert!(it.results().values().all(|&result| result == 0));
    it.done.clear();
    for slot in 0..8 {
        it.stage(&link(nop(slot)));
    }
    assert_eq!(it.engine.stage(&nop(8)), Err(Refusal::ChainTooLong));
    it.settle();
    assert!(it.results().values().all(|&result| result == CANCELED));
}

#[test]
fn a_polling_thread_is_not_asked_to_open_what_the_process_may_not_any_more() {
    if !rustix::process::geteuid().is_root() {
        skip(
            "a polling thread is not asked to open what the process may not any more",
            "needs root",
        );
        return;
    }
    // The kernel's set*id calls are of the thread: this one alone becomes somebody else.
    let become_nobody = || {
        let nobody = rustix::process::Uid::from_raw(65534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).expect("root may");
    };
    let become_other_groups = || {
        rustix::thread::set_thread_groups(&[rustix::process::Gid::from_raw(65534)])
            .expect("root may");
    };
    let become_group = || {
        let nobody = rustix::process::Gid::from_raw(65534);
        rustix::thread::set_thread_res_gid(nobody, nobody, nobody).expect("root may");
    };
    let directory = Directory::new();
    let secret = directory.join("secret");
    fs::write(&secret, b"secret").expect("a file");
    let changes: [&(dyn Fn() + Sync); 3] = [&become_nobody, &become_other_groups, &become_group];
    for change in changes {
        std::thread::scope(|scope| {
            let work = scope.spawn(|| {
                let mut it = Loop::new(polled(100));
                let path = path_bytes(&secret);
                assert!(it.complete(&open(0, path, libc::O_RDONLY, 0)) >= 0);
                let (file, _) = it.engine.take_opened(0).expect("it was opened");
                change();
                let refused = Err(Refusal::Credentials);
                assert_eq!(it.engine.stage(&open(0, path, libc::O_RDONLY, 0)), refused);
                assert_eq!(it.engine.stage(&stat_path(0, path)), refused);
                let chunk = it.chunk(6);
                assert_eq!(it.complete(&read(0, file, chunk, (0, 6), 0)), 6, "it was opened");
            });
            work.join().expect("no panic");
        });
    }
}

#[test]
fn a_loop_that_polls_does_not_sleep_while_anything_is_in_flight_and_nobody_is_woken() {
    for options in [small(), polled(1000)] {
        let mut it = Loop::new(EngineOptions { reap: Reap::Poll, ..options });
        it.until_block();
        let (fifo, mut writer) = it.fifo();
        let chunk = it.chunk(4);
        it.stage(&read(0, fifo, chunk, (0, 4), 0));
        for _ in 0..100 {
            assert_eq!(it.turn(), Turn::Again);
        }
        std::io::Write::write_all(&mut writer, b"late").expect("room in the pipe");
        assert_eq!(it.result(0), 4);
        assert_eq!(it.bytes(chunk, 0, 4), b"late");
        assert!(!is_readable(it.engine.wait_descriptor(), Duration::ZERO), "the eventfd was off");
        assert_eq!(it.complete(&nop(0)), 0);
        it.until_block();
        assert_eq!(it.engine.stats().wakeups, 0);
    }
}

#[test]
fn a_loop_that_polls_briefly_sleeps_when_nothing_goes_or_comes_for_long_and_is_woken() {
    for options in [small(), polled(1000)] {
        let mut it = Loop::new(EngineOptions { reap: Reap::PollBriefly, ..options });
        it.until_block();
        let (fifo, mut writer) = it.fifo();
        let chunk = it.chunk(4);
        let mut looked = 0;
        for _ in 0..50 {
            it.stage(&read(0, fifo, chunk, (0, 4), 0));
            looked += u32::from(it.pump() == Turn::Again);
            it.until_block();
            std::io::Write::write_all(&mut writer, b"late").expect("room in the pipe");
            let woken = is_readable(it.engine.wait_descriptor(), DEADLINE);
            assert!(woken, "the loop sleeps, and nothing wakes it");
            it.engine.woken();
            assert_eq!(it.result(0), 4);
        }
        assert!(looked > 0, "it slept at once each time");
        it.until_block();
        assert_eq!(it.pump(), Turn::Block, "with nothing in flight");
    }
}

#[test]
fn a_waiter_wakes_a_loop_that_can_watch_no_descriptor() {
    let mut it = Loop::new(small());
    let (fifo, mut writer) = it.fifo();
    let chunk = it.chunk(4);
    let (send, woken) = std::sync::mpsc::channel();
    let waiter = it.engine.start_waiter(move || send.send(()).is_ok()).expect("a thread");
    for round in 1..=50 {
        it.stage(&read(0, fifo, chunk, (0, 4), 0));
        it.until_block();
        std::io::Write::write_all(&mut writer, b"late").expect("room in the pipe");
        woken.recv_timeout(DEADLINE).expect("it was woken");
        it.engine.woken_elsewhere();
        it.until_block();
        assert_eq!(it.done.len(), round, "what it was woken for is there");
    }
    assert_eq!(it.engine.stats().wakeups, 50);
    drop(waiter);
}

fn gathering(delay: Duration) -> EngineOptions {
    EngineOptions { flush_delay: delay, ..small() }
}

#[test]
fn what_is_staged_waits_for_more_and_goes_in_one_submission_when_the_delay_is_over() {
    for delay in [Duration::from_micros(500), Duration::from_millis(50)] {
        let mut it = Loop::new(gathering(delay));
        let from = Instant::now();
        for slot in 0..5 {
            it.stage(&nop(slot));
            let turn = it.pump();
            let late = from.elapsed() >= delay;
            assert!(late || turn != Turn::Block, "nothing would wake it: {turn:?}");
        }
        it.settle();
        assert!(from.elapsed() >= delay);
        assert_eq!(it.results().len(), 5);
        let stats = it.engine.stats();
        // On a machine that is stopped in between there are more.
        assert!(stats.submitting_enters == 1 || from.elapsed() > 2 * delay, "{stats:?}");
    }
}

#[test]
fn what_waits_for_more_is_submitted_by_flush_by_a_full_queue_and_by_a_cancel() {
    let hour = Duration::from_secs(3600);
    let mut it = Loop::new(gathering(hour));
    it.stage(&nop(0));
    assert!(matches!(it.pump(), Turn::Retry { .. }));
    it.engine.flush();
    assert_eq!(it.result(0), 0);
    for slot in 0..64 {
        it.stage(&nop(slot));
    }
    it.settle();
    assert_eq!(it.results().len(), 64);
    it.done.clear();
    it.stage(&nop(0));
    it.stage(&timeout(1, hour));
    it.engine.flush();
    it.stage(&nop(2));
    assert!(it.engine.cancel(1));
    it.settle();
    assert_eq!((it.results()[&1], it.results()[&2]), (CANCELED, 0));
    it.done.clear();
    // Cancelled before it was submitted.
    it.stage(&nop(0));
    assert!(matches!(it.pump(), Turn::Retry { .. }));
    assert!(it.engine.cancel(0));
    assert_eq!(it.result(0), CANCELED);
    it.stage(&nop(0));
    assert!(matches!(it.pump(), Turn::Retry { .. }), "what comes later waits again");
}

#[test]
fn completions_come_while_something_waits_for_more() {
    let mut it = Loop::new(gathering(Duration::from_secs(3600)));
    let (fifo, mut writer) = it.fifo();
    let chunk = it.chunk(4);
    it.stage(&read(0, fifo, chunk, (0, 4), 0));
    it.engine.flush();
    it.stage(&nop(1));
    assert!(matches!(it.pump(), Turn::Retry { .. }));
    std::io::Write::write_all(&mut writer, b"late").expect("room in the pipe");
    assert!(is_readable(it.engine.wait_descriptor(), DEADLINE), "the loop is woken");
    it.engine.woken();
    it.pump();
    assert_eq!(it.results()[&0], 4);
    assert!(it.engine.shutdown(DEADLINE), "it ends at once");
}

#[test]
fn what_waits_for_more_goes_to_a_polling_thread_in_the_end() {
    let options = EngineOptions { flush_delay: Duration::from_millis(5), ..polled(100) };
    let mut it = Loop::new(options);
    for slot in 0..20 {
        assert_eq!(it.complete(&nop(slot)), 0);
    }
    for slot in 0..500 {
        it.stage(&nop(slot));
    }
    it.settle();
    assert_eq!(it.results().len(), 500);
}

#[test]
fn the_kernel_refuses_what_a_ring_is_not_restricted_to() {
    let directory = Directory::new();
    let name = directory.join("file");
    fs::write(&name, [7; 100]).expect("a file");
    let mut it = Loop::new(restricted(&["read"]));
    let file = it.adopt(fs::File::options().read(true).write(true).open(&name).expect("a file"));
    let chunk = it.chunk(100);
    assert_eq!(it.complete(&read(0, file, chunk, (0, 100), 0)), 100);
    assert_eq!(it.complete(&write(0, file, chunk, (0, 100), 0)), -libc::EACCES);
    assert_eq!(it.complete(&truncate(0, file, 0)), -libc::EACCES);
    assert_eq!(it.complete(&open(0, path_bytes(&name), libc::O_RDONLY, 0)), -libc::EACCES);
    assert_eq!(it.complete(&nop(0)), 0);
    assert_eq!(fs::read(&name).expect("the file"), [7; 100]);
    // What was asked of it does not go on, and neither does what is linked behind it.
    it.stage(&link(write(0, file, chunk, (0, 1), 0)));
    it.stage(&nop(1));
    it.settle();
    assert_eq!((it.results()[&0], it.results()[&1]), (-libc::EACCES, CANCELED));
}

#[test]
fn a_restricted_ring_tells_its_capabilities_and_limits() {
    let it = Loop::new(restricted(&["read"]));
    let plain = Loop::new(small());
    let (ours, theirs) = (it.engine.capabilities(), plain.engine.capabilities());
    assert_eq!(ours.operations, theirs.operations, "what the kernel has");
    assert_eq!(ours.refused, theirs.refused);
    assert_eq!(it.engine.limits().workers, plain.engine.limits().workers);
}

#[test]
fn a_restricted_ring_registers_files_and_memory() {
    let directory = Directory::new();
    let name = directory.join("direct");
    fs::write(&name, [5; 4096]).expect("a file");
    let mut it = Loop::new(restricted(&["read", "write"]));
    let direct = fs::File::options().read(true).write(true).open(&name).expect("a file");
    let file = it.engine.adopt(direct.into_raw_fd(), true).expect("room");
    let chunk = it.chunk(4096);
    assert_eq!(it.complete(&read(0, file, chunk, (0, 4096), 0)), 4096);
    assert_eq!(it.complete(&write(0, file, chunk, (0, 4096), 4096)), 4096);
    assert_eq!(it.engine.buffer_table(), Some(Ok(())));
    assert!(it.engine.arena().registered_bytes() > 0);
    assert!(it.engine.registered_files() > 0);
}

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
