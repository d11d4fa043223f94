//! A polling thread (SQPOLL) submits instead of enter: it sleeps without work, is woken, is shared by
//! rings that attach to another's, and takes chains whole.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{
    DEADLINE, Directory, Loop, alone, link, many_nops, nop, open, path_bytes, polled, read, skip,
    small, stat_path, write,
};
use node_uring_core::{Engine, EngineOptions, Refusal, Setup};

const CANCELED: i32 = -libc::ECANCELED;

fn attached(to: &Engine, options: EngineOptions) -> EngineOptions {
    let setup = Setup { attach: Some(to.ring_descriptor()), ..options.setup };
    EngineOptions { setup, ..options }
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

/// Completes nops of slots from 1 on, each staged again at once, until the one at slot 0 is over.
#[track_caller]
fn beside_nops(it: &mut Loop, count: u32) {
    for slot in 1..=count {
        it.stage(&nop(slot));
    }
    it.run_until("what goes beside single operations", |it| {
        let over = it.done.drain(..).map(|done| done.slot).collect::<Vec<_>>();
        for &slot in over.iter().filter(|&&slot| slot != 0) {
            it.stage(&nop(slot));
        }
        over.contains(&0)
    });
}

#[test]
fn many_are_done_beside_more_single_operations_than_the_queue_holds() {
    for entries in [1, 2, 8] {
        let options = polled(100);
        let setup = Setup { entries, cq_entries: 64, ..options.setup };
        let mut it = Loop::new(EngineOptions { setup, ..options });
        it.engine.stage_many(many_nops(0, 1000)).expect("staged");
        beside_nops(&mut it, 60);
    }
}

#[test]
fn a_chain_is_done_beside_many_that_fill_the_queue() {
    let options = polled(100);
    let setup = Setup { entries: 8, cq_entries: 64, ..options.setup };
    let mut it = Loop::new(EngineOptions { setup, ..options });
    it.engine.stage_many(many_nops(0, 1 << 20)).expect("staged");
    it.turn();
    for slot in (2..100).step_by(2) {
        it.stage(&link(nop(slot)));
        it.stage(&nop(slot + 1));
        it.run_until("a chain", |it| it.done.iter().any(|done| done.slot == slot + 1));
        assert!(it.done.iter().all(|done| done.slot != 0), "before many are over");
    }
    it.settle();
}
