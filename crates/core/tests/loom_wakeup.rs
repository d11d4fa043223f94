//! That no completion is slept through: every interleaving, and every reordering that the memory model
//! allows, of a turn that ends (`Engine::turn`, `Reaper`) and a kernel that completes two operations
//! meanwhile. A lost wake-up is a deadlock, which loom reports.
//!
//! It is a model: the ring's words are loom's atomics, the kernel is a thread that does what
//! io_uring/io_uring.c and io_uring/eventfd.c do. The order of the steps is `Engine::turn`'s.
//!
//!     RUSTFLAGS='--cfg loom' cargo test -p node-uring-core --test loom_wakeup --release
#![cfg(loom)]

// Not loom's: dropping that one while a deadlock unwinds aborts the process.
use std::sync::Arc;

use loom::sync::atomic::{AtomicU32, Ordering, fence};
use loom::sync::{Condvar, Mutex};
use loom::thread;

const EVENTFD_DISABLED: u32 = 1;
const TASKRUN: u32 = 1;
const OPERATIONS: u32 = 2;

/// What both sides see.
struct Shared {
    /// Deferred work that the kernel has for this thread; its own list, not of the ring.
    work: AtomicU32,
    sq_flags: AtomicU32,
    cq_tail: AtomicU32,
    cq_flags: AtomicU32,
    /// Whether it is readable, and whether a waiter is to stop.
    eventfd: (Mutex<(bool, bool)>, Condvar),
    /// Whether a waiter has asked for a turn: a thread-safe function, which one call waits for.
    called: (Mutex<bool>, Condvar),
}

/// How the loop goes about it, as it is or with a step left out.
#[derive(Clone, Copy)]
struct Way {
    /// DEFER_TASKRUN: a completion becomes work, which sets TASKRUN, and an enter posts it.
    deferred: bool,
    fenced: bool,
    looks_again: bool,
    clears_before_looking: bool,
    /// Not the loop waits for the eventfd, but a thread (`Waiter`), which then calls the loop.
    waiter: Option<Waiting>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    ClearsThenCalls,
    CallsThenClears,
}

const AS_IT_IS: Way = Way {
    deferred: true,
    fenced: true,
    looks_again: true,
    clears_before_looking: true,
    waiter: None,
};

/// io_req_local_work_add, or io_cq_unlock_post where completions are posted at once.
fn complete(shared: &Shared, way: Way, posted: u32) {
    if way.deferred {
        // Only the first work since the last run tells.
        if shared.work.fetch_add(1, Ordering::AcqRel) != 0 {
            return;
        }
        shared.sq_flags.fetch_or(TASKRUN, Ordering::Relaxed);
    } else {
        shared.cq_tail.store(posted, Ordering::Release);
    }
    // A posted completion has the barrier of wq_has_sleeper(). Deferred work has the atomic_or itself:
    // a full barrier on x86; on arm64 the kernel's memory model does not promise one.
    fence(Ordering::SeqCst);
    if shared.cq_flags.load(Ordering::Relaxed) & EVENTFD_DISABLED == 0 {
        shared.eventfd.0.lock().unwrap().0 = true;
        shared.eventfd.1.notify_one();
    }
}

/// The waiter's thread until it is told to stop.
fn wait_and_call(shared: &Shared, how: Waiting) {
    let call = || {
        *shared.called.0.lock().unwrap() = true;
        shared.called.1.notify_one();
    };
    loop {
        let mut eventfd = shared.eventfd.0.lock().unwrap();
        while *eventfd == (false, false) {
            eventfd = shared.eventfd.1.wait(eventfd).unwrap();
        }
        if eventfd.1 {
            return;
        }
        if how == Waiting::CallsThenClears {
            drop(eventfd);
            call();
            shared.eventfd.0.lock().unwrap().0 = false;
        } else {
            eventfd.0 = false;
            drop(eventfd);
            call();
        }
    }
}

/// The loop sleeps until it is woken; whether it is then told by the eventfd itself.
fn sleep(shared: &Shared, way: Way) -> bool {
    if way.waiter.is_some() {
        let mut called = shared.called.0.lock().unwrap();
        while !*called {
            called = shared.called.1.wait(called).unwrap();
        }
        *called = false;
        return false;
    }
    let mut eventfd = shared.eventfd.0.lock().unwrap();
    while !eventfd.0 {
        eventfd = shared.eventfd.1.wait(eventfd).unwrap();
    }
    true
}

/// The thread of the event loop until both operations are collected.
fn play_the_loop(shared: &Shared, way: Way) {
    let (mut head, mut readable) = (0, false);
    loop {
        // Reaper::disarm.
        shared.cq_flags.fetch_or(EVENTFD_DISABLED, Ordering::Release);
        // Ring::enter, where wants_enter says so: __io_run_local_work takes the flag back, then runs
        // what there is.
        if shared.sq_flags.load(Ordering::Acquire) & TASKRUN != 0 {
            shared.sq_flags.fetch_and(!TASKRUN, Ordering::AcqRel);
            let done = shared.work.swap(0, Ordering::AcqRel);
            let tail = shared.cq_tail.load(Ordering::Relaxed);
            shared.cq_tail.store(tail + done, Ordering::Release);
        }
        if readable && way.clears_before_looking {
            shared.eventfd.0.lock().unwrap().0 = false;
        }
        // Engine::collect.
        head = shared.cq_tail.load(Ordering::Acquire).max(head);
        if head == OPERATIONS {
            return;
        }
        // Reaper::arm: Ring::enable_eventfd_and_look.
        shared.cq_flags.fetch_and(!EVENTFD_DISABLED, Ordering::Release);
        if way.fenced {
            fence(Ordering::SeqCst);
        }
        let came = shared.cq_tail.load(Ordering::Acquire) != head
            || shared.sq_flags.load(Ordering::Acquire) & TASKRUN != 0;
        if readable && !way.clears_before_looking {
            shared.eventfd.0.lock().unwrap().0 = false;
        }
        readable = false;
        if came && way.looks_again {
            continue;
        }
        // Turn::Block: epoll.
        readable = sleep(shared, way);
    }
}

fn explore(way: Way) {
    let mut model = loom::model::Builder::new();
    // Without a bound it finds no more, and takes 10 s of CPU instead of 0.3.
    // With a third thread, 4 takes 70 s.
    model.preemption_bound = Some(if way.waiter.is_some() { 3 } else { 4 });
    model.check(move || {
        let shared = Arc::new(Shared {
            work: AtomicU32::new(0),
            sq_flags: AtomicU32::new(0),
            cq_tail: AtomicU32::new(0),
            cq_flags: AtomicU32::new(EVENTFD_DISABLED),
            eventfd: (Mutex::new((false, false)), Condvar::new()),
            called: (Mutex::new(false), Condvar::new()),
        });
        let kernel = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || (1..=OPERATIONS).for_each(|count| complete(&shared, way, count)))
        };
        let waiter = way.waiter.map(|how| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || wait_and_call(&shared, how))
        });
        play_the_loop(&shared, way);
        shared.eventfd.0.lock().unwrap().1 = true;
        shared.eventfd.1.notify_one();
        kernel.join().unwrap();
        if let Some(waiter) = waiter {
            waiter.join().unwrap();
        }
    });
}

#[test]
fn no_deferred_completion_is_slept_through() {
    explore(AS_IT_IS);
}

#[test]
fn no_posted_completion_is_slept_through() {
    explore(Way { deferred: false, ..AS_IT_IS });
}

#[test]
fn no_completion_is_slept_through_where_a_thread_waits() {
    for deferred in [true, false] {
        explore(Way { deferred, waiter: Some(Waiting::ClearsThenCalls), ..AS_IT_IS });
    }
}

// Each step is needed, and the model would notice its loss.

#[test]
#[should_panic(expected = "deadlock")]
fn without_another_look_a_deferred_completion_is_slept_through() {
    explore(Way { looks_again: false, ..AS_IT_IS });
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_another_look_a_posted_completion_is_slept_through() {
    explore(Way { deferred: false, looks_again: false, ..AS_IT_IS });
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_fence_a_completion_is_slept_through() {
    explore(Way { deferred: false, fenced: false, ..AS_IT_IS });
}

#[test]
#[should_panic(expected = "deadlock")]
fn an_eventfd_that_is_cleared_after_the_look_forgets_a_completion() {
    explore(Way { clears_before_looking: false, ..AS_IT_IS });
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_waiter_that_clears_after_it_called_forgets_a_completion() {
    explore(Way { waiter: Some(Waiting::CallsThenClears), ..AS_IT_IS });
}
