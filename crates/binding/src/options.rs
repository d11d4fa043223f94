//! How an engine is made, as JavaScript says it and as the core takes it.

use std::time::Duration;

use napi_derive::napi;
use node_uring_core::arena::ArenaOptions;
use node_uring_core::engine::InlinePolicy;
use node_uring_core::{EngineOptions as CoreOptions, OperationSet, Reap, Setup, SqPoll, TaskRun};

/// How an engine is made; all lengths in bytes. `src/options.ts` has the defaults and checks them.
#[napi(object)]
pub struct EngineOptions {
    /// Entries of the submission queue; the kernel rounds up to a power of two.
    pub entries: u32,
    /// Entries of the completion queue.
    pub cq_entries: u32,
    /// The best kind of task running to try: 0 deferred (6.1), 1 cooperative (5.19), 2 neither.
    pub task_run: u32,
    /// Bytes of an arena slab: a power of two from 64 KiB to 4 MiB.
    pub slab_bytes: u32,
    /// Most bytes of user memory (`alloc`).
    pub alloc_bytes: f64,
    /// Most bytes of bounce memory.
    pub bounce_bytes: f64,
    /// Most bytes of results that are given away without a copy.
    pub result_bytes: f64,
    /// Reads shorter than this are always copied by the submitting thread.
    pub inline_small_bytes: u32,
    /// A read that is alone is, up to this length.
    pub inline_alone_bytes: u32,
    /// Otherwise, until this many bytes were submitted in a turn.
    pub inline_turn_bytes: u32,
    /// Most kernel workers for files (bounded work); 0 leaves the kernel's cap.
    pub bounded_workers: u32,
    /// Most kernel workers for the rest; 0 leaves the kernel's cap.
    pub unbounded_workers: u32,
    /// Register files and memory with the ring where that is possible.
    pub register: bool,
    /// How completions are found: 0 by the event loop, 1 by a thread, 2 by looking all the time, 3 by
    /// looking for a short time and then by the event loop.
    pub reap: Option<u32>,
    /// Microseconds that what is staged waits for more; 0 for the rest of the turn of the event loop.
    pub flush_delay_us: Option<u32>,
    /// Poll devices for the completions of direct reads and writes.
    pub iopoll: Option<bool>,
    /// As if the process did not export libuv's functions; for tests.
    pub hide_libuv: Option<bool>,
    /// What is not even tried: `NO_SQARRAY`, `SUBMIT_ALL`, `REGISTER_RING_FDS`.
    pub left_out: Option<Vec<String>>,
    /// With a polling thread: milliseconds without work after which it sleeps.
    pub sqpoll_idle_ms: Option<u32>,
    /// The CPU that the polling thread stays on.
    pub sqpoll_cpu: Option<u32>,
    /// The descriptor of a ring to share the polling thread with.
    pub attach: Option<i32>,
    /// Names of the operations that the ring is restricted to.
    pub restrict: Option<Vec<String>>,
}

const REAP_THREAD: u32 = 1;
const REAP_POLL: u32 = 2;
const REAP_POLL_BRIEFLY: u32 = 3;

/// Whether a thread is to wait for completions, and not the event loop.
pub fn wants_own_thread(options: &EngineOptions) -> bool {
    options.reap == Some(REAP_THREAD) || options.hide_libuv == Some(true)
}

/// The same for the core.
///
/// # Errors
/// A name of an operation that is none.
pub fn core_options(options: &EngineOptions) -> Result<CoreOptions, &str> {
    let restrict = match &options.restrict {
        Some(names) => {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            Some(OperationSet::named(&names)?)
        }
        None => None,
    };
    let tries = |name: &str| !options.left_out.iter().flatten().any(|left_out| left_out == name);
    Ok(CoreOptions {
        setup: Setup {
            entries: options.entries,
            cq_entries: options.cq_entries,
            task_run: match options.task_run {
                0 => TaskRun::Defer,
                1 => TaskRun::Cooperative,
                _ => TaskRun::Interrupt,
            },
            no_sq_array: tries("NO_SQARRAY"),
            submit_all: tries("SUBMIT_ALL"),
            registered_descriptor: tries("REGISTER_RING_FDS"),
            sqpoll: options
                .sqpoll_idle_ms
                .map(|idle_ms| SqPoll { idle_ms, cpu: options.sqpoll_cpu }),
            attach: options.attach,
            restrict,
            iopoll: false,
        },
        arena: ArenaOptions {
            slab_bytes: options.slab_bytes as usize,
            max_bytes: [options.alloc_bytes, options.bounce_bytes, options.result_bytes]
                .map(|bytes| bytes as usize),
            ..ArenaOptions::default()
        },
        inline: InlinePolicy {
            small_bytes: options.inline_small_bytes,
            alone_bytes: options.inline_alone_bytes,
            turn_bytes: options.inline_turn_bytes,
        },
        workers: (options.bounded_workers, options.unbounded_workers),
        unregistered: !options.register,
        iopoll: options.iopoll == Some(true),
        flush_delay: Duration::from_micros(options.flush_delay_us.unwrap_or(0).into()),
        reap: match options.reap {
            Some(REAP_POLL) => Reap::Poll,
            Some(REAP_POLL_BRIEFLY) => Reap::PollBriefly,
            _ => Reap::Eventfd,
        },
    })
}
