//! Messages between engines (`IORING_OP_MSG_RING`): each arrives once and as it was, wakes whoever
//! sleeps, completes no operation of the engine that it comes to, and reaches no ring but ours.

mod common;

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use common::{
    DEADLINE, Loop, TASK_RUNS, alone, is_readable, link, nop, post, read, small, timeout,
    with_entries, with_task_run, write,
};
use node_uring_core::engine::MESSAGE_SLOT;
use node_uring_core::{
    EngineOptions, Opcode, Reap, Refusal, Request, Setup, SqPoll, TaskRun, Turn,
};

const CANCELED: i32 = -libc::ECANCELED;

/// Some of which the kernel, or we, would take for an errno, or for none.
const VALUES: [i32; 10] =
    [0, 1, -1, i32::MIN, i32::MAX, -libc::ECANCELED, -libc::EINTR, -512, -516, 1 << 30];

/// Every kind of engine that can be posted to.
fn kinds() -> Vec<EngineOptions> {
    let mut kinds: Vec<_> = TASK_RUNS.map(with_task_run).to_vec();
    let sqpoll = Some(SqPoll { idle_ms: 5, cpu: None });
    let setup = Setup { sqpoll, task_run: TaskRun::Interrupt, ..small().setup };
    kinds.push(EngineOptions { setup, ..small() });
    kinds.push(EngineOptions { reap: Reap::Poll, ..small() });
    kinds
}

/// Takes the messages out of what was delivered.
fn messages(it: &mut Loop) -> Vec<i32> {
    let (messages, others): (Vec<_>, Vec<_>) =
        it.done.drain(..).partition(|completion| completion.slot == MESSAGE_SLOT);
    it.done = others;
    messages.into_iter().map(|message| message.result).collect()
}

/// Plays the event loop until so many have come.
#[track_caller]
fn receive(it: &mut Loop, count: usize) -> Vec<i32> {
    it.engine.set_listening(true);
    it.run_until("messages", |it| it.engine.stats().messages >= count as u64);
    it.engine.set_listening(false);
    messages(it)
}

fn sorted(mut values: Vec<i32>) -> Vec<i32> {
    values.sort_unstable();
    values
}

#[test]
fn a_message_arrives_once_and_as_it_was_whatever_kind_of_engine_it_comes_to() {
    for options in kinds() {
        let (mut from, mut to) = (Loop::new(small()), Loop::new(options));
        let descriptor = to.engine.ring_descriptor();
        for value in VALUES {
            assert_eq!(from.complete(&post(3, descriptor, value)), 0);
        }
        assert_eq!(sorted(receive(&mut to, VALUES.len())), sorted(VALUES.to_vec()));
        to.until_block();
        let stats = to.engine.stats();
        assert_eq!((stats.messages, stats.completed, stats.stale), (VALUES.len() as u64, 0, 0));
        assert_eq!(to.done, [], "and nothing else");
        assert_eq!(from.engine.stats().stale, 0);
    }
}

#[test]
fn an_engine_of_any_kind_may_post_to_others_and_to_itself() {
    for options in kinds() {
        let (mut from, mut to) = (Loop::new(options), Loop::new(small()));
        assert_eq!(from.complete(&post(0, to.engine.ring_descriptor(), 5)), 0);
        assert_eq!(receive(&mut to, 1), [5]);
        let own = from.engine.ring_descriptor();
        for value in VALUES {
            from.stage(&post(value.unsigned_abs() % 8 + 8 * u32::from(value < 0), own, value));
            from.settle();
        }
        assert_eq!(sorted(receive(&mut from, VALUES.len())), sorted(VALUES.to_vec()));
        assert!(from.done.iter().all(|completion| completion.result == 0));
    }
}

#[test]
fn a_message_wakes_a_loop_that_sleeps_with_nothing_in_flight() {
    for options in kinds() {
        let (tell, told) = channel();
        let (ask, asked): (_, Receiver<()>) = channel();
        let thread = std::thread::spawn(move || {
            let mut to = Loop::new(options);
            to.engine.set_listening(true);
            tell.send(to.engine.ring_descriptor()).expect("somebody to tell");
            // `run_until` waits for the eventfd alone, and fails when nobody signals it.
            for count in 1..=200 {
                to.run_until("a message", |it| it.engine.stats().messages >= count);
                tell.send(messages(&mut to)[0]).expect("somebody to tell");
            }
            let _ = asked.recv_timeout(DEADLINE);
        });
        let descriptor = told.recv_timeout(DEADLINE).expect("an engine");
        let mut from = Loop::new(small());
        for value in 0..200 {
            // It has time to fall asleep now and then.
            std::thread::sleep(Duration::from_micros((value as u64 % 4) * 100));
            assert_eq!(from.complete(&post(0, descriptor, value)), 0);
            assert_eq!(told.recv_timeout(DEADLINE), Ok(value));
        }
        drop(ask);
        thread.join().expect("no panic");
    }
}

#[test]
fn a_loop_that_polls_for_an_operation_finds_messages_meanwhile() {
    let mut to = Loop::new(EngineOptions { reap: Reap::Poll, ..small() });
    to.stage(&timeout(0, Duration::from_secs(3600)));
    assert_eq!(to.pump(), Turn::Again);
    let mut from = Loop::new(small());
    assert_eq!(from.complete(&post(0, to.engine.ring_descriptor(), 8)), 0);
    to.run_until("the message", |it| it.engine.stats().messages == 1);
    assert_eq!(messages(&mut to), [8]);
    assert_eq!(to.engine.in_flight(), 1);
}

#[test]
fn messages_of_four_threads_to_one_that_has_work_of_its_own_all_arrive_once() {
    const EACH: i32 = 10_000;
    for options in kinds() {
        let mut to = Loop::new(options);
        let descriptor = to.engine.ring_descriptor();
        let senders = [0, 1, 2, 3].map(|thread| {
            std::thread::spawn(move || {
                let mut from = Loop::new(small());
                for first in (0..EACH).step_by(100) {
                    for at in 0..100 {
                        from.stage(&post(at as u32, descriptor, thread * EACH + first + at));
                    }
                    from.settle();
                    assert!(from.done.drain(..).all(|completion| completion.result == 0));
                }
            })
        });
        let mut seen = vec![0; 4 * EACH as usize];
        let (mut count, mut nops) = (0, 0);
        to.engine.set_listening(true);
        while count < seen.len() {
            to.stage(&nop(1));
            to.run_until("a nop", |it| it.done.iter().any(|done| done.slot == 1));
            nops += 1;
            for message in messages(&mut to) {
                seen[message as usize] += 1;
                count += 1;
            }
            to.done.clear();
        }
        for sender in senders {
            sender.join().expect("no panic");
        }
        to.until_block();
        assert!(seen.iter().all(|&times| times == 1));
        let stats = to.engine.stats();
        assert_eq!((stats.completed, stats.stale), (nops, 0));
    }
}

#[test]
fn messages_past_a_full_queue_are_kept_by_the_kernel() {
    const COUNT: i32 = 5000;
    for task_run in TASK_RUNS {
        let small_queue = with_entries(2, 2).setup;
        let setup = Setup { task_run, ..small_queue };
        let (mut from, mut to) =
            (Loop::new(small()), Loop::new(EngineOptions { setup, ..small() }));
        let descriptor = to.engine.ring_descriptor();
        for value in 0..COUNT {
            // Nobody looks into the other queue, which has room for two.
            assert_eq!(from.complete(&post(0, descriptor, value)), 0, "{value}");
        }
        let came = sorted(receive(&mut to, COUNT as usize));
        assert_eq!(came, (0..COUNT).collect::<Vec<_>>(), "{task_run:?}");
        assert_eq!(to.engine.stats().stale, 0);
        let overflown = to.engine.stats().overflows > 0;
        assert!(overflown || task_run == TaskRun::Defer, "{task_run:?}: it did overflow");
    }
}

#[test]
fn a_message_completes_no_operation_of_the_engine_that_it_comes_to() {
    let (mut from, mut to) = (Loop::new(with_entries(256, 1024)), Loop::new(small()));
    let (fifo, mut writer) = to.fifo();
    let chunk = to.chunk(64);
    for slot in 0..32 {
        to.stage(&read(slot, fifo, chunk, (slot.into(), 1), 0));
    }
    for slot in 32..64 {
        to.stage(&timeout(slot, Duration::from_secs(3600)));
    }
    to.until_block();
    let descriptor = to.engine.ring_descriptor();
    // Whatever the numbers of a request are: where they are understood, they choose ring and value.
    let numbers = [0, 1, 5, 33, 63, 1 << 20, 1 << 30, (1 << 31) - 1, u64::from(u32::MAX)];
    let wide = [(1 << 32) + 5, (1 << 33) + 40, 1 << 63, u64::MAX];
    let mut sent = 0;
    for &number in numbers.iter().chain(&wide) {
        for &other in numbers.iter().chain(&wide) {
            let request = Request {
                slot: sent % 200,
                file: number,
                chunk: other,
                position: number ^ other,
                length: other,
                bytes: &number.to_ne_bytes(),
                ..post(0, descriptor, 0)
            };
            match from.engine.stage(&request) {
                Ok(()) => sent += 1,
                Err(refusal) => {
                    assert_eq!((refusal, other > u32::MAX.into()), (Refusal::Argument, true));
                }
            }
            from.settle();
        }
    }
    assert!(from.done.iter().all(|completion| completion.result == 0));
    assert_eq!(receive(&mut to, sent as usize).len(), sent as usize);
    to.until_block();
    assert_eq!((to.done.len(), to.engine.in_flight(), to.engine.stats().stale), (0, 64, 0));
    // They are what they were.
    std::io::Write::write_all(&mut writer, &[7; 32]).expect("room in the pipe");
    to.run_until("the reads", |it| it.done.len() == 32);
    assert_eq!(to.bytes(chunk, 0, 32), [7; 32]);
    for slot in 32..64 {
        assert!(to.engine.cancel(slot));
    }
    to.settle();
    to.disown([chunk]);
}

#[test]
fn a_number_that_is_no_engines_is_answered_by_the_kernel_and_no_other_ring_is_touched() {
    let mut from = Loop::new(small());
    let file = std::fs::File::open("/dev/null").expect("/dev/null");
    assert_eq!(from.complete(&post(0, file.as_raw_fd(), 1)), -libc::EBADFD);
    assert_eq!(from.complete(&post(0, from.engine.wait_descriptor(), 1)), -libc::EBADFD);
    assert_eq!(from.complete(&post(0, 1_000_000, 1)), -libc::EBADF);
    // A ring as libuv has them, which would take a message's user_data for an address.
    let mut theirs = io_uring::IoUring::new(4).expect("a ring");
    assert_eq!(from.complete(&post(0, theirs.as_raw_fd(), 1)), -libc::EBADFD);
    assert!(theirs.completion().is_empty());
    for offset in [1 << 31, 1 << 32, u64::MAX] {
        let request = Request { offset, ..post(0, 0, 1) };
        assert_eq!(from.engine.stage(&request), Err(Refusal::Argument));
    }
    let request = Request { opcode: Opcode::MsgRing as u32 | 1 << 16, ..post(0, 0, 1) };
    assert_eq!(from.engine.stage(&request), Err(Refusal::Argument), "it has no modifiers");
}

#[test]
fn an_engine_that_is_closed_cannot_be_posted_to() {
    // The tests beside this one open descriptors.
    alone("an_engine_that_is_closed_cannot_be_posted_to", || {
        let (mut from, mut to) = (Loop::new(small()), Loop::new(small()));
        let descriptor = to.engine.ring_descriptor();
        assert_eq!(from.complete(&post(0, descriptor, 1)), 0);
        assert!(to.engine.shutdown(DEADLINE));
        assert_eq!(from.complete(&post(0, descriptor, 1)), -libc::EBADFD, "not gone yet");
        drop(to);
        assert_eq!(from.complete(&post(0, descriptor, 1)), -libc::EBADF);
    });
}

#[test]
fn a_message_on_its_way_reaches_nobody_who_has_the_number_later() {
    alone("a_message_on_its_way_reaches_nobody_who_has_the_number_later", || {
        let mut from = Loop::new(small());
        let to = Loop::new(small());
        let descriptor = to.engine.ring_descriptor();
        from.stage(&post(0, descriptor, 1));
        drop(to);
        let mut next = Loop::new(small());
        assert_eq!(next.engine.ring_descriptor(), descriptor, "the test needs the same number");
        assert_eq!(from.result(0), 0, "it went to the one that was meant, and is gone with it");
        next.until_block();
        assert_eq!((next.engine.stats().messages, next.engine.stats().stale), (0, 0));
        // And a new one to the number is the new one's.
        assert_eq!(from.complete(&post(0, descriptor, 2)), 0);
        assert_eq!(receive(&mut next, 1), [2]);
    });
}

#[test]
fn a_ring_that_was_posted_to_is_gone_when_its_engine_is() {
    alone("a_ring_that_was_posted_to_is_gone_when_its_engine_is", || {
        let rings = || {
            let fds = std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd");
            let links = fds.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
            links.filter(|link| link.to_string_lossy().contains("io_uring")).count()
        };
        let mut from = Loop::new(small());
        for _ in 0..20 {
            let to = Loop::new(small());
            assert_eq!(from.complete(&post(0, to.engine.ring_descriptor(), 1)), 0);
            assert_eq!(from.complete(&post(0, to.engine.ring_descriptor(), 1)), 0);
            assert_eq!(rings(), 3, "one descriptor more, once");
        }
        assert_eq!(rings(), 1);
    });
}

#[test]
fn without_a_descriptor_for_the_first_message_it_is_refused_and_later_ones_need_none() {
    alone(
        "without_a_descriptor_for_the_first_message_it_is_refused_and_later_ones_need_none",
        || {
            use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
            let (mut from, mut to) = (Loop::new(small()), Loop::new(small()));
            let (known, unknown) = (to.engine.ring_descriptor(), Loop::new(small()));
            assert_eq!(from.complete(&post(0, known, 1)), 0);
            let before = getrlimit(Resource::Nofile);
            setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..before }).expect("a limit");
            let refused = from.engine.stage(&post(0, unknown.engine.ring_descriptor(), 2));
            assert_eq!(refused, Err(Refusal::Descriptors));
            assert_eq!(from.complete(&post(0, known, 3)), 0);
            setrlimit(Resource::Nofile, before).expect("the limit of before");
            assert_eq!(receive(&mut to, 2), [1, 3]);
        },
    );
}

#[test]
fn a_message_in_a_chain_goes_when_what_is_before_it_has_succeeded_and_ends_the_chain_when_it_fails()
{
    let (mut from, mut to) = (Loop::new(small()), Loop::new(small()));
    let descriptor = to.engine.ring_descriptor();
    let file = from.adopt(std::fs::File::open("/dev/null").expect("/dev/null"));
    let chunk = from.chunk(1);
    from.stage(&link(nop(0)));
    from.stage(&link(post(1, descriptor, 1)));
    from.stage(&nop(2));
    // It cannot be written.
    from.stage(&link(write(3, file, chunk, (0, 1), 0)));
    from.stage(&post(4, descriptor, 4));
    from.stage(&link(post(5, 1_000_000, 5)));
    from.stage(&post(6, descriptor, 6));
    from.settle();
    let results: HashMap<_, _> = from.results();
    let expected = [0, 0, 0, -libc::EBADF, CANCELED, -libc::EBADF, CANCELED];
    assert_eq!([0, 1, 2, 3, 4, 5, 6].map(|slot| results[&slot]), expected);
    assert_eq!(receive(&mut to, 1), [1]);
    to.until_block();
    assert_eq!(to.engine.stats().messages, 1);
    from.disown([chunk]);
}

#[test]
fn a_message_that_is_cancelled_before_it_is_submitted_is_not_posted() {
    let (mut from, mut to) = (Loop::new(small()), Loop::new(small()));
    from.stage(&post(0, to.engine.ring_descriptor(), 1));
    assert!(from.engine.cancel(0));
    assert_eq!(from.result(0), CANCELED);
    to.until_block();
    assert_eq!(to.engine.stats().messages, 0);
}

#[test]
fn who_listens_is_busy_and_who_does_not_gets_them_all_the_same() {
    let (mut from, mut to) = (Loop::new(small()), Loop::new(small()));
    assert!(!to.engine.is_busy());
    to.engine.set_listening(true);
    assert!(to.engine.is_busy());
    to.engine.set_listening(false);
    assert!(!to.engine.is_busy());
    to.until_block();
    assert_eq!(from.complete(&post(0, to.engine.ring_descriptor(), 9)), 0);
    assert!(is_readable(to.engine.wait_descriptor(), DEADLINE), "it is woken");
    to.engine.woken();
    to.until_block();
    assert_eq!(messages(&mut to), [9]);
    to.engine.set_listening(true);
    assert!(to.engine.shutdown(DEADLINE));
    assert!(!to.engine.is_busy());
}
