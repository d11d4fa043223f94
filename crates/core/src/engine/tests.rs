//! What an engine does when the kernel takes a part of what it is offered. The kernel does that by
//! itself only when it runs out of memory, so here it is offered less than there is: it then really
//! starts the first part of a chain alone. All else of the engine is tested from outside, in `tests/`.

use std::fs::File;
use std::os::fd::IntoRawFd;
use std::time::Duration;

use super::*;
use crate::arena::Pool;
use crate::files::{BadFile, FileHandle};
use crate::operation::{LINK, Opcode, Request};

const CANCELED: i32 = -libc::ECANCELED;

/// An engine whose kernel takes at most `offered_max` entries at each enter.
fn engine(offered_max: u32) -> Engine {
    let setup = Setup { entries: 8, cq_entries: 32, ..Setup::default() };
    let mut engine = Engine::new(EngineOptions { setup, ..Default::default() }).expect("an engine");
    engine.ring.offered_max = offered_max;
    engine
}

fn null() -> File {
    File::options().read(true).write(true).open("/dev/null").expect("/dev/null")
}

fn adopt(engine: &mut Engine, file: File) -> FileHandle {
    engine.adopt(file.into_raw_fd(), false).expect("room")
}

fn nop(slot: u32, flags: u32) -> Request<'static> {
    Request { opcode: Opcode::Nop as u32 | flags, slot, ..Request::default() }
}

fn stage(engine: &mut Engine, request: &Request) {
    assert_eq!(engine.stage(request), Ok(()), "{request:?}");
}

/// Turns until nothing is in flight. The results by slot, and what was said besides Deliver.
fn settle(engine: &mut Engine) -> (Vec<(u32, i32)>, Vec<Turn>) {
    let (mut results, mut said) = (Vec::new(), Vec::new());
    let started = Instant::now();
    while engine.is_busy() {
        assert!(started.elapsed() < Duration::from_secs(20), "{results:?} {said:?}");
        match engine.turn() {
            Turn::Deliver => {
                results.extend(engine.completions().iter().map(|c| (c.slot, c.result)));
            }
            turn => said.push(turn),
        }
    }
    results.sort_unstable();
    (results, said)
}

#[test]
fn operations_that_the_kernel_takes_one_at_a_time_all_complete() {
    let mut engine = engine(1);
    for slot in 0..20 {
        stage(&mut engine, &nop(slot, 0));
    }
    let (results, said) = settle(&mut engine);
    assert_eq!(results, (0..20).map(|slot| (slot, 0)).collect::<Vec<_>>());
    assert!(
        said.iter().all(|turn| *turn == Turn::Again),
        "no wait while there is progress: {said:?}"
    );
}

#[test]
fn a_turn_does_not_say_block_while_a_part_is_not_taken() {
    let mut engine = engine(1);
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    let fifo = engine.adopt(std::os::fd::OwnedFd::from(reader).into_raw_fd(), false).expect("room");
    let chunk = engine.arena().take(Pool::Alloc, 1).expect("a chunk");
    for slot in 0..3 {
        let request = Request {
            opcode: Opcode::Read as u32,
            slot,
            file: fifo.number(),
            chunk: chunk.number(),
            length: 1,
            ..Request::default()
        };
        stage(&mut engine, &request);
    }
    let said: Vec<_> = (0..4).map(|_| engine.turn()).collect();
    assert_eq!(said, [Turn::Again, Turn::Again, Turn::Block, Turn::Block]);
    assert_eq!(engine.stats().submitted, 3);
}

#[test]
fn the_part_of_a_chain_that_started_by_itself_does_not_count_as_done() {
    for taken in 1..5 {
        let mut engine = engine(taken);
        stage(&mut engine, &nop(9, 0));
        for slot in 0..4 {
            stage(&mut engine, &nop(slot, if slot < 3 { LINK } else { 0 }));
        }
        let (results, _) = settle(&mut engine);
        // One entry goes before the chain. A boundary before the chain does it no harm.
        let together = if taken == 1 { 1 } else { taken - 1 };
        let expected: Vec<_> = (0..4)
            .map(|slot| (slot, if slot < together { 0 } else { CANCELED }))
            .chain([(9, 0)])
            .collect();
        assert_eq!(results, expected, "{taken} at a time");
        assert_eq!(engine.stats().stale, 0);
    }
}

#[test]
fn a_link_that_fails_in_the_part_that_started_by_itself_keeps_its_errno() {
    let mut engine = engine(1);
    stage(&mut engine, &nop(0, LINK));
    let fsync = Request {
        opcode: Opcode::Fsync as u32,
        slot: 1,
        file: adopt(&mut engine, null()).number(),
        ..Request::default()
    };
    stage(&mut engine, &fsync);
    let (results, _) = settle(&mut engine);
    assert_eq!(results, [(0, 0), (1, -libc::EINVAL)]);
}

#[test]
fn chains_that_wait_behind_a_boundary_are_watched_at_the_next_one() {
    // Two chains of three in one queue, taken four at a time: the second is cut after its first.
    let mut engine = engine(4);
    for slot in 0..6 {
        stage(&mut engine, &nop(slot, if slot % 3 < 2 { LINK } else { 0 }));
    }
    let (results, _) = settle(&mut engine);
    assert_eq!(results, [(0, 0), (1, 0), (2, 0), (3, 0), (4, CANCELED), (5, CANCELED)]);
    assert!(engine.chains.is_empty());
}

#[test]
fn chains_that_a_polling_thread_takes_are_not_remembered() {
    let sqpoll = Some(crate::setup::SqPoll { idle_ms: 10, cpu: None });
    let task_run = crate::setup::TaskRun::Interrupt;
    let setup = Setup { entries: 8, cq_entries: 32, sqpoll, task_run, ..Setup::default() };
    let mut engine = Engine::new(EngineOptions { setup, ..Default::default() }).expect("an engine");
    for _ in 0..3 {
        stage(&mut engine, &nop(0, LINK));
        stage(&mut engine, &nop(1, 0));
        assert_eq!(settle(&mut engine).0, [(0, 0), (1, 0)]);
    }
    assert!(engine.chains.is_empty());
}

#[test]
fn a_cancel_that_has_missed_one_of_many_does_not_take_one_of_the_next_for_it() {
    let mut engine = engine(8);
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let fifo = adopt(&mut engine, File::from(std::os::fd::OwnedFd::from(reader)));
    let chunk = engine.arena().take(Pool::Alloc, 1).expect("a chunk");
    let mut begin = |engine: &mut Engine| {
        let reads = ManyRequest {
            opcode: Opcode::Read as u32,
            slot: 0,
            file: fifo.number(),
            chunk: chunk.number(),
            offset: 0,
            count: 1,
            lengths: crate::in_flight::Lengths::All(1),
            positions: vec![0],
            fill: true,
        };
        assert_eq!(engine.stage_many(reads), Ok(()));
        while engine.turn() == Turn::Deliver {}
        let target = engine.in_flight.submitted().next().expect("the kernel has it");
        assert_eq!(engine.in_flight.target_of(target.user_data), Some(target));
        std::io::Write::write_all(&mut writer, b"x").expect("room");
        target.user_data
    };
    let first = begin(&mut engine);
    assert_eq!(settle(&mut engine).0, [(0, 1)]);
    let second = begin(&mut engine);
    assert_eq!(engine.in_flight.target_of(first), None);
    assert_eq!(settle(&mut engine).0, [(0, 1)]);
    assert_eq!(engine.in_flight.target_of(second), None);
}

/// A read of an empty FIFO at slot 1 that was cut off from the nop before it. The writing end.
fn cut_off_read(engine: &mut Engine) -> std::io::PipeWriter {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let fifo = adopt(engine, File::from(std::os::fd::OwnedFd::from(reader)));
    let chunk = engine.arena().take(Pool::Alloc, 1).expect("a chunk");
    stage(engine, &nop(0, LINK));
    let read = Request {
        opcode: Opcode::Read as u32,
        slot: 1,
        file: fifo.number(),
        chunk: chunk.number(),
        length: 1,
        ..Request::default()
    };
    stage(engine, &read);
    let started = Instant::now();
    while (engine.stats().submitted, engine.in_flight()) != (2, 1) {
        assert!(started.elapsed() < Duration::from_secs(20), "a worker has the nop");
        engine.turn();
    }
    writer
}

#[test]
fn a_link_that_started_by_itself_is_cancelled_like_any_other() {
    let mut engine = engine(1);
    let _writer = cut_off_read(&mut engine);
    assert!(engine.cancel(1));
    let (results, _) = settle(&mut engine);
    assert_eq!(results, [(1, CANCELED)]);
}

#[test]
fn a_link_that_started_by_itself_is_cancelled_at_the_end() {
    let mut engine = engine(1);
    let _writer = cut_off_read(&mut engine);
    assert!(engine.shutdown(Duration::from_secs(2)));
}

#[test]
fn a_file_that_a_cut_off_open_gave_is_closed() {
    let path = std::env::temp_dir().join(format!("node-uring-cut-off-{}", std::process::id()));
    File::create(&path).expect("a file");
    let mut engine = engine(1);
    stage(&mut engine, &nop(0, LINK));
    let open = Request {
        opcode: Opcode::Openat as u32,
        slot: 1,
        bytes: std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()),
        ..Request::default()
    };
    stage(&mut engine, &open);
    let (results, _) = settle(&mut engine);
    assert_eq!(results, [(0, 0), (1, CANCELED)]);
    assert_eq!(engine.take_opened(1), Err(BadFile::Unknown));
    let links = std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd").flatten();
    let still_open = links.filter_map(|link| std::fs::read_link(link.path()).ok());
    assert_eq!(still_open.filter(|target| *target == path).count(), 0);
    std::fs::remove_file(&path).expect("the file");
}

#[test]
fn a_cut_off_close_that_ran_does_not_close_the_number_again() {
    let mut engine = engine(1);
    let file = adopt(&mut engine, null());
    let number = engine.files().descriptor(file).expect("open");
    stage(&mut engine, &nop(0, LINK));
    let close = Request {
        opcode: Opcode::Close as u32,
        slot: 1,
        file: file.number(),
        ..Request::default()
    };
    stage(&mut engine, &close);
    // Until the kernel has closed it, and before its completion is looked at.
    let started = Instant::now();
    while std::fs::read_link(format!("/proc/self/fd/{number}")).is_ok_and(|to| is_null(&to)) {
        assert!(started.elapsed() < Duration::from_secs(20));
        engine.flush();
    }
    // F_DUPFD gives the lowest free number from `number` up, which others of this
    // process may have been faster to take.
    let taken = rustix::io::fcntl_dupfd_cloexec(null(), number).expect("a descriptor");
    let (results, _) = settle(&mut engine);
    assert_eq!(results, [(0, 0), (1, CANCELED)]);
    assert!(rustix::io::fcntl_getfd(&taken).is_ok(), "ours, and still open");
}

fn is_null(target: &std::path::Path) -> bool {
    target.as_os_str() == "/dev/null"
}

/// Chains as (entries before it, its slots), entries taken, which slots are cut off, what remains.
type Cut =
    (&'static [(usize, &'static [u32])], usize, &'static [u32], &'static [(usize, &'static [u32])]);

#[test]
fn the_arithmetic_of_cuts() {
    let cuts: &[Cut] = &[
        (&[(0, &[1, 2, 3])], 3, &[], &[]),
        (&[(0, &[1, 2, 3])], 0, &[], &[(0, &[1, 2, 3])]),
        (&[(0, &[1, 2, 3])], 1, &[2, 3], &[]),
        (&[(0, &[1, 2, 3])], 2, &[3], &[]),
        (&[(5, &[1, 2])], 7, &[], &[]),
        (&[(5, &[1, 2])], 100, &[], &[]),
        (&[(5, &[1, 2])], 6, &[2], &[]),
        (&[(5, &[1, 2])], 5, &[], &[(0, &[1, 2])]),
        (&[(5, &[1, 2])], 4, &[], &[(1, &[1, 2])]),
        (&[(5, &[1, 2])], 0, &[], &[(5, &[1, 2])]),
        (&[(0, &[1, 2]), (2, &[3, 4]), (6, &[5, 6])], 3, &[4], &[(3, &[5, 6])]),
        (&[(0, &[1, 2]), (2, &[3, 4]), (6, &[5, 6])], 2, &[], &[(0, &[3, 4]), (4, &[5, 6])]),
    ];
    for (index, (chains, taken, cut_off, remain)) in cuts.iter().enumerate() {
        let mut engine = engine(0);
        let owned = |chains: &[(usize, &[u32])]| {
            chains.iter().map(|(before, slots)| (*before, slots.to_vec())).collect::<Vec<_>>()
        };
        for slot in 0..8 {
            stage(&mut engine, &nop(slot, 0));
        }
        engine.publish();
        engine.chains = owned(chains);
        engine.note_cut_chains(*taken);
        assert_eq!(engine.chains, owned(remain), "{index}");
        engine.chains.clear();
        engine.ring.offered_max = u32::MAX;
        let (results, _) = settle(&mut engine);
        for (slot, result) in results {
            let expected = if cut_off.contains(&slot) { CANCELED } else { 0 };
            assert_eq!(result, expected, "{index}: slot {slot}");
        }
    }
}

#[test]
fn the_moments_of_a_nop_are_noted_in_their_order_while_somebody_measures() {
    let mut engine = engine(8);
    stage(&mut engine, &nop(0, 0));
    settle(&mut engine);
    assert_eq!(engine.stamps(), Stamps::default(), "nobody measures");
    engine.measure(true);
    stage(&mut engine, &nop(0, 0));
    settle(&mut engine);
    let first = engine.stamps();
    assert!(0 < first.entered_ns && first.entered_ns <= first.reaped_ns, "{first:?}");
    stage(&mut engine, &nop(0, 0));
    settle(&mut engine);
    let second = engine.stamps();
    assert!(first.reaped_ns <= second.entered_ns, "{first:?} {second:?}");
    assert!(second.entered_ns <= second.reaped_ns, "{second:?}");
    engine.measure(false);
    assert_eq!(engine.stamps(), Stamps::default());
}
