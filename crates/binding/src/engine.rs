//! The typed class: set-up, cold calls, counters. Converts, and calls the core.

use std::rc::Rc;
use std::time::Duration;

use napi::bindgen_prelude::{ArrayBuffer, Buffer, FnArgs, Function, Object};
use napi::{Either, Env};
use napi_derive::napi;
use node_uring_core::files::BadFile;
use node_uring_core::{Engine as Core, FileHandle, Pool};

use crate::capabilities::{EngineCapabilities, capabilities_of};
use crate::event_loop::{NoLoop, Shared, has_handles};
use crate::options::{EngineOptions, core_options, wants_own_thread};
use crate::stage;

/// An opened file.
#[napi(object)]
pub struct Opened {
    /// The handle to stage operations with.
    pub file: f64,
    /// The descriptor's number.
    pub fd: i32,
}

/// A pipe, whose ends are files.
#[napi(object)]
pub struct Pipe {
    /// The end to read from.
    pub reader: Opened,
    /// The end to write to.
    pub writer: Opened,
    /// How many bytes it holds.
    pub bytes: u32,
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
    /// Messages that other engines have posted.
    pub messages: f64,
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

/// When operations went to the kernel and were found complete, in nanoseconds of `process.hrtime`.
#[napi(object)]
pub struct EngineStamps {
    /// What was staged last was in the submission queue, and enter was next.
    pub entered_ns: f64,
    /// Completions were found last, before they were handed over.
    pub reaped_ns: f64,
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
    /// `io_uring_setup(2)`, `eventfd(2)`, of what joining the event loop takes; -5 (EIO) where N-API refuses that.
    ///
    /// `deliver(count, slot, result)` gets completions: one as its arguments, more as pairs of 32-bit
    /// numbers in `pairs` (at least 32 KiB); a negative count is the errno that ended the engine;
    /// one of 0 asks for `cameRound` when the loop has come round.
    #[napi]
    #[allow(clippy::needless_pass_by_value)]
    pub fn start(
        &mut self,
        env: Env,
        options: EngineOptions,
        deliver: Function<FnArgs<(i32, i32, i32)>, ()>,
        pairs: ArrayBuffer,
    ) -> i32 {
        let core = match new_core(&options) {
            Ok(core) => core,
            Err(errno) => return -errno,
        };
        let own_thread = wants_own_thread(&options);
        match Shared::start(&env, core, &deliver, &pairs, own_thread) {
            Ok(shared) => {
                self.shared = Some(shared);
                0
            }
            Err(NoLoop(errno)) => -errno,
        }
    }

    /// What an engine with these options would be granted, without keeping one: it is made, asked, and
    /// closed, and joins no event loop. A number is the negated errno that refused it.
    #[napi]
    #[allow(clippy::needless_pass_by_value)]
    pub fn probe(options: EngineOptions) -> Either<EngineCapabilities, i32> {
        match new_core(&options) {
            Ok(mut core) => {
                core.try_registered_memory();
                let own_thread = wants_own_thread(&options) || !has_handles();
                Either::A(capabilities_of(&core, own_thread))
            }
            Err(errno) => Either::B(-errno),
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

    /// Makes a pipe; a negated errno when there is none to be had.
    #[napi]
    pub fn make_pipe(&self) -> Either<Pipe, i32> {
        let errno = |error: std::io::Error| -error.raw_os_error().unwrap_or(libc::EMFILE);
        let opened = |(file, fd): (FileHandle, i32)| Opened { file: file.number() as f64, fd };
        match self.with(|core| core.make_pipe().map_err(errno)) {
            Some(Ok(pipe)) => Either::A(Pipe {
                reader: opened(pipe.reader),
                writer: opened(pipe.writer),
                bytes: pipe.bytes as u32,
            }),
            Some(Err(errno)) => Either::B(errno),
            None => Either::B(-libc::EBADF),
        }
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

    /// Notes from now on the two moments that `stamps` gives, or no longer.
    #[napi]
    pub fn measure(&self, on: bool) {
        self.with(|core| core.measure(on));
    }

    /// The last of the moments that `measure` notes; null when closed.
    #[napi]
    pub fn stamps(&self) -> Option<EngineStamps> {
        self.with(|core| {
            let stamps = core.stamps();
            EngineStamps {
                entered_ns: stamps.entered_ns as f64,
                reaped_ns: stamps.reaped_ns as f64,
            }
        })
    }

    /// `queue.ref()` (true) and `queue.unref()` (false).
    #[napi]
    pub fn set_wanted(&self, wanted: bool) {
        if let Some(shared) = &self.shared {
            shared.set_wanted(wanted);
        }
    }

    /// Whether messages of other engines are waited for: it keeps the event loop alive as an operation
    /// does. They are delivered in either case, with -1 for a slot.
    #[napi]
    pub fn set_listening(&self, listening: bool) {
        if let Some(shared) = &self.shared {
            shared.set_listening(listening);
        }
    }

    /// The event loop has come round, as a call with a count of 0 had asked.
    #[napi]
    pub fn came_round(&self) {
        if let Some(shared) = &self.shared {
            shared.came_round();
        }
    }

    /// Cancels what is in flight, waits at most `patienceMs` for the kernel, and closes. Returns
    /// whether the kernel let go of everything. Completions are not delivered any more.
    #[napi]
    pub fn close(&self, patience_ms: u32) -> bool {
        let patience = Duration::from_millis(u64::from(patience_ms));
        self.shared.as_ref().is_none_or(|shared| shared.close(patience))
    }

    /// The ring's descriptor, for other engines of this process to attach to and to post to; null when
    /// closed.
    #[napi]
    pub fn handle(&self) -> Option<i32> {
        self.with(|core| core.ring_descriptor())
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
                messages: counters.messages as f64,
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
        let own_thread = self.shared.as_ref().is_some_and(|shared| shared.has_own_thread());
        self.with(|core| capabilities_of(core, own_thread))
    }

    fn with<T>(&self, work: impl FnOnce(&mut Core) -> T) -> Option<T> {
        let shared = self.shared.as_ref()?;
        shared.engine.borrow_mut().as_mut().map(work)
    }
}

/// Makes the core's engine; or an errno.
fn new_core(options: &EngineOptions) -> Result<Core, i32> {
    let options = core_options(options).map_err(|_unknown_name| libc::EINVAL)?;
    Core::new(options).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
}
