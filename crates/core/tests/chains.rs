//! Chains of links: published whole or not at all, ended by what breaks them, and never joined by an
//! operation that was not meant to be in them.

mod common;

use std::io::{Read, Write};
use std::time::Duration;

use common::{
    Directory, Loop, close, datasync, fsync, hardlink, link, nop, read, small, timeout,
    with_entries, write,
};
use node_uring_core::{FileHandle, Refusal, Request, Turn};

const CANCELED: i32 = -libc::ECANCELED;

/// A file that every write to fails on, with EBADF.
fn read_only(it: &mut Loop) -> FileHandle {
    it.adopt(std::fs::File::open("/dev/null").expect("/dev/null"))
}

#[test]
fn a_write_and_its_fdatasync_both_succeed() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let file = it.adopt(directory.file("file", b""));
    let chunk = it.chunk_of(b"to the disk");
    it.stage(&link(write(0, file, chunk, (0, 11), 0)));
    it.stage(&datasync(1, file));
    it.settle();
    assert_eq!((it.result(0), it.result(1)), (11, 0));
    assert_eq!(directory.content("file"), b"to the disk");
}

#[test]
fn a_link_that_fails_cancels_all_behind_it() {
    let mut it = Loop::new(small());
    let file = read_only(&mut it);
    let chunk = it.chunk(8);
    it.stage(&link(nop(0)));
    it.stage(&link(write(1, file, chunk, (0, 8), 0)));
    it.stage(&link(nop(2)));
    it.stage(&nop(3));
    it.settle();
    let results = it.results();
    assert_eq!([0, 1, 2, 3].map(|slot| results[&slot]), [0, -libc::EBADF, CANCELED, CANCELED]);
}

#[test]
fn a_chain_ends_with_its_first_unlinked_operation() {
    let mut it = Loop::new(small());
    let file = read_only(&mut it);
    let chunk = it.chunk(8);
    it.stage(&link(write(0, file, chunk, (0, 8), 0)));
    it.stage(&nop(1));
    it.stage(&nop(2));
    it.stage(&link(nop(3)));
    it.stage(&nop(4));
    it.settle();
    let results = it.results();
    assert_eq!([1, 2, 3, 4].map(|slot| results[&slot]), [CANCELED, 0, 0, 0]);
}

#[test]
fn a_hard_link_that_fails_cancels_nothing() {
    let mut it = Loop::new(small());
    let file = read_only(&mut it);
    let chunk = it.chunk(8);
    it.stage(&hardlink(write(0, file, chunk, (0, 8), 0)));
    it.stage(&nop(1));
    it.settle();
    assert_eq!((it.result(0), it.result(1)), (-libc::EBADF, 0));
}

#[test]
fn a_short_read_breaks_the_link() {
    let directory = Directory::new();
    let mut it = Loop::new(small());
    let file = it.adopt(directory.file("file", b"five!"));
    let chunk = it.chunk(16);
    it.stage(&link(read(0, file, chunk, (0, 16), 0)));
    it.stage(&nop(1));
    it.settle();
    assert_eq!((it.result(0), it.result(1)), (5, CANCELED));
}

#[test]
fn a_short_write_breaks_the_link() {
    let mut it = Loop::new(small());
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::NONBLOCK).expect("O_NONBLOCK");
    let pipe = it.adopt(writer);
    let bytes = common::pattern(1 << 20, 9);
    let chunk = it.chunk_of(&bytes);
    it.stage(&link(write(0, pipe, chunk, (0, 1 << 20), 0)));
    it.stage(&link(nop(1)));
    it.stage(&nop(2));
    it.settle();
    let written = it.result(0);
    assert!((1..1 << 20).contains(&written), "{written}: as much as the pipe holds");
    assert_eq!((it.result(1), it.result(2)), (CANCELED, CANCELED));
    let mut came = vec![0; written as usize];
    reader.read_exact(&mut came).expect("the bytes");
    assert_eq!(came, bytes[..written as usize]);
}

#[test]
fn the_operations_of_a_chain_run_in_its_order() {
    let mut it = Loop::new(small());
    let (mut reader, pipe) = it.fifo_to_write();
    let bytes: Vec<u8> = (0..50).collect();
    let chunk = it.chunk_of(&bytes);
    for slot in 0..50 {
        let request = write(slot, pipe, chunk, (slot.into(), 1), 0);
        it.stage(&if slot < 49 { link(request) } else { request });
    }
    it.settle();
    let mut came = [0; 50];
    reader.read_exact(&mut came).expect("the bytes");
    assert_eq!(came[..], bytes[..]);
}

/// A chain that the kernel gets in two parts is two chains: the second part would run although the
/// first failed.
#[test]
fn a_chain_is_submitted_whole_however_full_the_queue_is() {
    for before in 0..=9 {
        for length in 2..=8 {
            let mut it = Loop::new(with_entries(8, 64));
            let file = read_only(&mut it);
            let chunk = it.chunk(8);
            for slot in 0..before {
                it.stage(&nop(slot));
            }
            it.stage(&link(write(100, file, chunk, (0, 8), 0)));
            for member in 1..length {
                let request = nop(100 + member);
                it.stage(&if member < length - 1 { link(request) } else { request });
            }
            it.stage(&nop(200));
            it.settle();
            let results = it.results();
            let case = format!("{length} behind {before}");
            assert_eq!(results[&100], -libc::EBADF, "{case}");
            for member in 1..length {
                assert_eq!(results[&(100 + member)], CANCELED, "{case}: {member}");
            }
            assert!((0..before).all(|slot| results[&slot] == 0), "{case}");
            assert_eq!(results[&200], 0, "{case}: it was not in the chain");
        }
    }
}

#[test]
fn chains_that_fill_the_queue_several_times_over_stay_chains() {
    let mut it = Loop::new(with_entries(8, 32));
    let file = read_only(&mut it);
    let chunk = it.chunk(8);
    for chain in 0..100 {
        let slot = chain * 10;
        it.stage(&link(write(slot, file, chunk, (0, 8), 0)));
        for member in 1..=chain % 7 {
            it.stage(&link(nop(slot + member)));
        }
        it.stage(&nop(slot + 9));
        it.stage(&nop(slot + 8));
    }
    it.settle();
    for (slot, result) in it.results() {
        let expected = match slot % 10 {
            0 => -libc::EBADF,
            8 => 0,
            _ => CANCELED,
        };
        assert_eq!(result, expected, "{slot}");
    }
}

#[test]
fn a_chain_may_be_as_long_as_the_submission_queue() {
    for entries in [1, 2, 4, 8] {
        let mut it = Loop::new(with_entries(entries, 64));
        for slot in 0..entries - 1 {
            it.stage(&link(nop(slot)));
        }
        it.stage(&nop(entries - 1));
        it.settle();
        assert_eq!(it.results().len(), entries as usize);
        assert!(it.results().values().all(|&result| result == 0));
    }
}

#[test]
fn a_chain_longer_than_the_submission_queue_is_refused_cancelled_whole_and_in_nobodys_way() {
    for entries in [1, 2, 4, 8] {
        let mut it = Loop::new(with_entries(entries, 64));
        for slot in 0..entries {
            it.stage(&link(nop(slot)));
        }
        assert_eq!(it.engine.stage(&nop(entries)), Err(Refusal::ChainTooLong));
        assert_eq!(it.complete(&nop(99)), 0, "the next is not in it");
        it.settle();
        let results = it.results();
        assert_eq!(results.len(), entries as usize);
        assert!(results.values().all(|&result| result == CANCELED));
        assert_eq!(it.engine.stats().submitted, 1, "nothing of it was submitted");
    }
}

#[test]
fn a_chain_whose_next_operation_is_refused_is_cancelled_whole_and_joined_by_nobody() {
    let directory = Directory::new();
    let refused: [fn(FileHandle) -> Request<'static>; 4] = [
        |_| fsync(50, FileHandle::from_number(0)),
        |file| Request { length: 9, ..fsync(50, file) },
        |file| link(close(50, file)),
        |_| nop(0),
    ];
    for (index, request) in refused.into_iter().enumerate() {
        let mut it = Loop::new(small());
        let file = it.adopt(directory.file(&index.to_string(), b""));
        let chunk = it.chunk_of(b"never written");
        it.stage(&nop(10));
        it.stage(&link(write(0, file, chunk, (0, 13), 0)));
        it.stage(&link(nop(1)));
        assert!(it.engine.stage(&request(file)).is_err());
        it.stage(&nop(11));
        it.stage(&link(nop(12)));
        it.stage(&nop(13));
        it.settle();
        let results = it.results();
        assert_eq!([0, 1].map(|slot| results[&slot]), [CANCELED; 2], "{index}");
        assert_eq!([10, 11, 12, 13].map(|slot| results[&slot]), [0; 4], "{index}");
        assert_eq!(directory.content(&index.to_string()), b"");
        assert_eq!(it.complete(&close(60, file)), 0, "nothing holds it");
    }
}

#[test]
fn a_chain_whose_end_is_not_staged_waits_and_does_not_keep_the_loop_awake() {
    let mut it = Loop::new(small());
    let (mut reader, pipe) = it.fifo_to_write();
    let chunk = it.chunk_of(b"ab");
    it.stage(&nop(10));
    it.stage(&link(write(0, pipe, chunk, (0, 1), 0)));
    it.until_block();
    assert_eq!(it.result(10), 0, "what is before it goes");
    assert_eq!(it.engine.stats().submitted, 1);
    assert!(it.engine.is_busy());
    it.engine.flush();
    assert_eq!(it.turn(), Turn::Block);
    assert_eq!(it.engine.stats().submitted, 1, "not published without its end");
    it.stage(&write(1, pipe, chunk, (1, 1), 0));
    it.settle();
    assert_eq!(it.results().len(), 2);
    let mut came = [0; 2];
    reader.read_exact(&mut came).expect("both bytes");
    assert_eq!(&came, b"ab");
}

#[test]
fn cancelling_any_operation_of_a_chain_before_submission_cancels_all_of_it_and_nothing_else() {
    for cancelled in 0..4 {
        let mut it = Loop::new(small());
        it.stage(&nop(10));
        for slot in 0..4 {
            it.stage(&if slot < 3 { link(nop(slot)) } else { nop(slot) });
        }
        it.stage(&nop(11));
        assert!(it.engine.cancel(cancelled));
        it.settle();
        let results = it.results();
        assert_eq!([0, 1, 2, 3].map(|slot| results[&slot]), [CANCELED; 4]);
        assert_eq!([10, 11].map(|slot| results[&slot]), [0; 2]);
        assert_eq!(it.engine.stats().submitted, 2);
    }
}

#[test]
fn a_chain_cancelled_before_its_end_is_staged_is_cancelled_with_its_end() {
    let mut it = Loop::new(small());
    it.stage(&link(nop(0)));
    assert!(it.engine.cancel(0));
    it.until_block();
    it.stage(&link(nop(1)));
    it.stage(&nop(2));
    it.stage(&nop(3));
    it.settle();
    let results = it.results();
    assert_eq!([0, 1, 2, 3].map(|slot| results[&slot]), [CANCELED, CANCELED, CANCELED, 0]);
}

#[test]
fn cancelling_the_running_head_of_a_chain_cancels_what_waits_behind_it() {
    let mut it = Loop::new(small());
    let (fifo, _writer) = it.fifo();
    let chunk = it.chunk(8);
    it.stage(&link(read(0, fifo, chunk, (0, 8), 0)));
    it.stage(&link(nop(1)));
    it.stage(&nop(2));
    it.until_block();
    assert!(it.engine.cancel(0));
    it.settle();
    let results = it.results();
    assert_eq!([0, 1, 2].map(|slot| results[&slot]), [CANCELED; 3]);
}

/// The kernel does not find a link that has not started: it is asked again when it has.
#[test]
fn a_link_that_waits_behind_a_running_one_is_cancelled_once_it_has_started() {
    for hard in [false, true] {
        let mut it = Loop::new(small());
        let (fifo, mut writer) = it.fifo();
        let chunk = it.chunk(2);
        let first = read(0, fifo, chunk, (0, 1), 0);
        it.stage(&if hard { hardlink(first) } else { link(first) });
        it.stage(&read(1, fifo, chunk, (1, 1), 0));
        it.until_block();
        assert!(it.engine.cancel(1));
        it.until_block();
        assert!(it.done.is_empty());
        writer.write_all(b"x").expect("room in the pipe");
        it.settle();
        assert_eq!((it.result(0), it.result(1)), (1, CANCELED));
        assert_eq!(it.pump(), Turn::Block, "nothing is asked for any more");
    }
}

#[test]
fn a_hard_chain_that_is_cancelled_is_cancelled_link_by_link_each_asked_for_twice() {
    let mut it = Loop::new(with_entries(256, 1024));
    let (fifo, _writer) = it.fifo();
    let chunk = it.chunk(200);
    for slot in 0..199 {
        it.stage(&hardlink(read(slot, fifo, chunk, (u64::from(slot), 1), 0)));
    }
    it.stage(&read(199, fifo, chunk, (199, 1), 0));
    it.until_block();
    for slot in 0..200 {
        assert!(it.engine.cancel(slot));
    }
    it.settle();
    assert!(it.results().values().all(|&result| result == CANCELED));
    let cancels = it.engine.stats().cancels;
    assert!(cancels <= 2 * 200, "{cancels} cancels");
}

#[test]
fn a_timeout_is_a_link_that_always_breaks() {
    let mut it = Loop::new(small());
    it.stage(&link(timeout(0, Duration::from_millis(1))));
    it.stage(&nop(1));
    it.stage(&hardlink(timeout(2, Duration::from_millis(1))));
    it.stage(&nop(3));
    it.settle();
    let results = it.results();
    let etime = -libc::ETIME;
    assert_eq!([0, 1, 2, 3].map(|slot| results[&slot]), [etime, CANCELED, etime, 0]);
}

#[test]
fn a_close_may_end_a_chain_and_closes_even_when_the_chain_breaks() {
    let directory = Directory::new();
    for breaks in [false, true] {
        let mut it = Loop::new(small());
        let name = if breaks { "breaks" } else { "holds" };
        let file = it.adopt(directory.file(name, b""));
        let (broken, chunk) = (read_only(&mut it), it.chunk(1));
        it.stage(&if breaks { link(write(0, broken, chunk, (0, 1), 0)) } else { link(nop(0)) });
        it.stage(&close(1, file));
        it.settle();
        assert_eq!(it.result(1), if breaks { CANCELED } else { 0 });
        assert_eq!(common::descriptors_on(&directory.join(name)), 0);
    }
}
