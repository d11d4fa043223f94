//! The typed class: set-up, cold calls, counters. Converts, and calls the core.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use napi::Env;
use napi::bindgen_prelude::{ArrayBuffer, Buffer, FnArgs, Function, Object};
use napi_derive::napi;
use node_uring_core::arena::ArenaOptions;
use node_uring_core::engine::InlinePolicy;
use node_uring_core::files::BadFile;
use node_uring_core::{Engine as Core, EngineOptions as CoreOptions, Pool, Setup, TaskRun};

use crate::event_loop::{NoLoop, Shared};
use crate::stage;

/// How an engine is made; all lengths in bytes. `src/queue.ts` has the defaults and checks them.
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

/// An opened file.
#[napi(object)]
pub struct Opened {
    /// The handle to stage operations with.
    pub file: f64,
    /// The descriptor's number.
    pub fd: i32,
}

/// Counters since the engine was started, and gauges of now.
#[napi(object)]
pub struct EngineStats {
    /// SQEs that the kernel took, cancels included.
    pub submitted: f64,
    /// Operations completed.
    pub completed: f64,
    /// Operations staged or with the kernel now.
    pub in_flight: u32,
    /// Calls of `io_uring_enter(2)`.
    pub enters: f64,
    /// Those that submitted something.
    pub submitting_enters: f64,
    /// Those that were refused with EAGAIN, EBUSY or EINTR, and tried again.
    pub refusals: f64,
    /// Enters that found the completion queue overflown.
    pub overflows: f64,
    /// CQEs of nobody, dropped. Anything but 0 is a bug here or in the kernel.
    pub stale: f64,
    /// Reads handed to a kernel worker because of their length.
    pub punted: f64,
    /// Cancels asked of the kernel.
    pub cancels: f64,
    /// Times that the eventfd woke the event loop.
    pub wakeups: f64,
    /// Files open in the table now.
    pub files: u32,
    /// Bytes of user memory mapped, and in use.
    pub alloc_mapped_bytes: f64,
    /// See `allocMappedBytes`.
    pub alloc_used_bytes: f64,
    /// Bytes of bounce memory mapped, and in use.
    pub bounce_mapped_bytes: f64,
    /// See `bounceMappedBytes`.
    pub bounce_used_bytes: f64,
    /// Bytes of results mapped, and in use.
    pub result_mapped_bytes: f64,
    /// See `resultMappedBytes`.
    pub result_used_bytes: f64,
    /// Bytes of the arena that are registered with the ring.
    pub registered_bytes: f64,
}

/// What the kernel granted.
#[napi(object)]
pub struct EngineCapabilities {
    /// Entries of the submission queue.
    pub entries: u32,
    /// Entries of the completion queue.
    pub cq_entries: u32,
    /// Set-up flags in use, by their names in `io_uring_setup(2)` without `IORING_SETUP_`.
    pub setup_flags: Vec<String>,
    /// Whether enter is called by the registered ring descriptor.
    pub registered_descriptor: bool,
    /// Features, by their names in `io_uring_setup(2)` without `IORING_FEAT_`, in lower case.
    pub features: HashMap<String, bool>,
    /// Operations, by their names in `io_uring_enter(2)` without `IORING_OP_`, in lower case.
    pub operations: HashMap<String, bool>,
    /// Places in the registered file table; 0 when files are named by descriptor.
    pub registered_files: u32,
    /// Whether arena memory is registered: null before the first direct file, 0 for yes, else the
    /// errno that refused it.
    pub registered_memory: Option<i32>,
}

/// An engine: a ring joined to this thread's event loop.
#[napi]
pub struct Engine {
    shared: Option<Rc<Shared>>,
}

#[napi]
impl Engine {
    /// An engine that is not started.
    #[napi(constructor)]
    #[allow(clippy::new_without_default, clippy::must_use_candidate)]
    pub fn new() -> Self {
        Self { shared: None }
    }

    /// Makes the ring and joins the event loop. Returns 0, or a negated errno: of
    /// `io_uring_setup(2)`, `eventfd(2)`; -95 (EOPNOTSUPP) also where the process does not export
    /// libuv's functions.
    ///
    /// `deliver(count, slot, result)` gets completions: one as its arguments, more as pairs of 32-bit
    /// numbers in `pairs` (at least 32 KiB); a negative count is the errno that ended the engine.
    #[napi]
    #[allow(clippy::needless_pass_by_value)]
    pub fn start(
        &mut self,
        env: Env,
        options: EngineOptions,
        deliver: Function<FnArgs<(i32, i32, i32)>, ()>,
        pairs: ArrayBuffer,
    ) -> i32 {
        let core = match Core::new(core_options(&options)) {
            Ok(core) => core,
            Err(error) => return -error.raw_os_error().unwrap_or(libc::EIO),
        };
        match Shared::start(&env, core, &deliver, &pairs) {
            Ok(shared) => {
                self.shared = Some(shared);
                0
            }
            Err(NoLoop::Symbols) => -libc::EOPNOTSUPP,
            Err(NoLoop::Failed) => -libc::EIO,
        }
    }

    /// The raw functions: what is called once an operation; `src/backend.ts` has their types. null
    /// before `start`.
    #[napi(ts_return_type = "object | null")]
    #[must_use]
    pub fn functions<'env>(&self, env: &'env Env) -> Option<Object<'env>> {
        stage::functions(env, self.shared.as_ref()?)
    }

    /// Takes the file that the open at `slot` gave into the file table; null when there is none or
    /// the table is full.
    #[napi]
    pub fn take_opened(&self, slot: u32) -> Option<Opened> {
        self.with(|core| {
            core.take_opened(slot)
                .ok()
                .map(|(handle, fd)| Opened { file: handle.number() as f64, fd })
        })
        .flatten()
    }

    /// Takes a descriptor over. Returns its handle; -17 (EEXIST) when this engine owns it already,
    /// -24 (EMFILE) when the table is full, -9 (EBADF) when the engine is closed.
    #[napi]
    pub fn adopt(&self, fd: i32, direct: bool) -> f64 {
        self.with(|core| match core.adopt(fd, direct) {
            Ok(handle) => handle.number() as f64,
            Err(BadFile::Twice) => -f64::from(libc::EEXIST),
            Err(_) => -f64::from(libc::EMFILE),
        })
        .unwrap_or(-f64::from(libc::EBADF))
    }

    /// The flags that a descriptor was opened with, or a negated errno. F_GETFL of `fcntl(2)`.
    #[napi]
    #[allow(clippy::unused_self)] // A method, so that a backend has all it needs in one object.
    pub fn descriptor_flags(&self, fd: i32) -> i32 {
        node_uring_core::ring::descriptor_flags(fd)
            .unwrap_or_else(|error| -error.raw_os_error().unwrap_or(libc::EBADF))
    }

    /// Takes the 256 bytes of `struct statx` that the operation at `slot` left, or null.
    #[napi]
    pub fn take_stat(&self, slot: u32) -> Option<Buffer> {
        self.with(|core| core.take_stat(slot)).flatten().map(Buffer::from)
    }

    /// Whether the operation at `slot` is staged and the kernel has not got it.
    #[napi]
    pub fn is_staged(&self, slot: u32) -> bool {
        self.with(|core| core.is_staged(slot)).unwrap_or(false)
    }

    /// `queue.ref()` (true) and `queue.unref()` (false).
    #[napi]
    pub fn set_wanted(&self, wanted: bool) {
        if let Some(shared) = &self.shared {
            shared.set_wanted(wanted);
        }
    }

    /// Cancels what is in flight, waits at most `patienceMs` for the kernel, and closes. Returns
    /// whether the kernel let go of everything. Completions are not delivered any more.
    #[napi]
    pub fn close(&self, patience_ms: u32) -> bool {
        let patience = Duration::from_millis(u64::from(patience_ms));
        self.shared.as_ref().is_none_or(|shared| shared.close(patience))
    }

    /// Counters; null when closed.
    #[napi]
    pub fn stats(&self) -> Option<EngineStats> {
        self.with(|core| {
            let counters = core.stats();
            let (in_flight, files) = (core.in_flight() as u32, core.files().len() as u32);
            let arena = core.arena();
            let [alloc, bounce, result] =
                [Pool::Alloc, Pool::Bounce, Pool::Result].map(|pool| arena.stats(pool));
            EngineStats {
                submitted: counters.submitted as f64,
                completed: counters.completed as f64,
                in_flight,
                enters: counters.enters as f64,
                submitting_enters: counters.submitting_enters as f64,
                refusals: counters.refusals as f64,
                overflows: counters.overflows as f64,
                stale: counters.stale as f64,
                punted: counters.punted as f64,
                cancels: counters.cancels as f64,
                wakeups: counters.wakeups as f64,
                files,
                alloc_mapped_bytes: alloc.mapped_bytes as f64,
                alloc_used_bytes: alloc.used_bytes as f64,
                bounce_mapped_bytes: bounce.mapped_bytes as f64,
                bounce_used_bytes: bounce.used_bytes as f64,
                result_mapped_bytes: result.mapped_bytes as f64,
                result_used_bytes: result.used_bytes as f64,
                registered_bytes: arena.registered_bytes() as f64,
            }
        })
    }

    /// What the kernel granted; null when closed.
    #[napi]
    pub fn capabilities(&self) -> Option<EngineCapabilities> {
        self.with(|core| {
            let granted = core.capabilities();
            let named = |pairs: &[(&str, bool)]| {
                pairs.iter().map(|&(name, has)| (name.to_owned(), has)).collect()
            };
            EngineCapabilities {
                entries: granted.setup.entries,
                cq_entries: granted.setup.cq_entries,
                setup_flags: setup_flags(&granted.setup),
                registered_descriptor: granted.setup.registered_descriptor,
                features: named(&granted.features),
                operations: named(&granted.operations),
                registered_files: core.registered_files(),
                registered_memory: core.buffer_table().map(|table| table.err().unwrap_or(0)),
            }
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Core) -> T) -> Option<T> {
        let shared = self.shared.as_ref()?;
        shared.engine.borrow_mut().as_mut().map(work)
    }
}

fn core_options(options: &EngineOptions) -> CoreOptions {
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

fn setup_flags(setup: &Setup) -> Vec<String> {
    let task_run: &[&str] = match setup.task_run {
        TaskRun::Defer => &["SINGLE_ISSUER", "DEFER_TASKRUN", "TASKRUN_FLAG"],
        TaskRun::Cooperative => &["COOP_TASKRUN", "TASKRUN_FLAG"],
        TaskRun::Interrupt => &[],
    };
    let others = [("NO_SQARRAY", setup.no_sq_array), ("SUBMIT_ALL", setup.submit_all)];
    let others = others.iter().filter(|(_, on)| *on).map(|(name, _)| name);
    ["CLAMP", "CQSIZE"].iter().chain(task_run).chain(others).map(ToString::to_string).collect()
}
