//! How an engine is made, as JavaScript says it and as the core takes it.

use napi_derive::napi;
use node_uring_core::arena::ArenaOptions;
use node_uring_core::engine::InlinePolicy;
use node_uring_core::{EngineOptions as CoreOptions, Setup, TaskRun};

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
}

/// The same for the core.
pub fn core_options(options: &EngineOptions) -> CoreOptions {
    CoreOptions {
        setup: Setup {
            entries: options.entries,
            cq_entries: options.cq_entries,
            task_run: match options.task_run {
                0 => TaskRun::Defer,
                1 => TaskRun::Cooperative,
                _ => TaskRun::Interrupt,
            },
            ..Setup::default()
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
    }
}
