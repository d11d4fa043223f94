//! Drives an engine from the event loop: each time the loop is about to block, or was woken, it takes a
//! turn, and what the turn answers is done to the loop by a driver: libuv's handles, or a thread where
//! there are none to be had.
//!
//! Decides nothing. No borrow of the engine is alive while JavaScript runs.

mod handles;
mod javascript;
mod thread;
mod uv;

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::rc::Rc;
use std::time::Duration;

use napi::bindgen_prelude::{ArrayBuffer, FnArgs, Function};
use napi::{Env, JsValue, sys};
use node_uring_core::{Engine, Turn};

use crate::stage::exposed;
use handles::Handles;
use javascript::Javascript;
use thread::Thread;
use uv::Uv;

pub use javascript::{Scope, check};

/// How long the end of an environment waits for the kernel to let go of what was cancelled. What it
/// keeps longer is leaked, which is sound: the memory is ours and never V8's.
const TEARDOWN_PATIENCE: Duration = Duration::from_secs(2);

/// An engine with what JavaScript and the event loop need to reach it. One for each queue, on one
/// thread.
pub struct Shared {
    /// `None` once closed. Borrowed for the length of one call, never across JavaScript.
    pub engine: RefCell<Option<Engine>>,
    env: sys::napi_env,
    driver: Driver,
    javascript: Javascript,
    /// Keep the loop alive while busy; false after `queue.unref()`.
    wanted: Cell<bool>,
    /// Whether the driver keeps the loop alive now.
    referenced: Cell<bool>,
    idling: Cell<bool>,
    /// Whether `pump` is on the stack: what is staged now goes in one of its rounds.
    pumping: Cell<bool>,
    closing: Cell<bool>,
    hook: Cell<sys::napi_async_cleanup_hook_handle>,
}

/// What moves the loop as a turn answers.
enum Driver {
    Handles(Handles),
    Thread(Thread),
}

/// Why there is no event loop to join: a call of libuv, of N-API or of the kernel failed, with this errno.
/// N-API has none: EIO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoLoop(pub i32);

impl NoLoop {
    const NAPI: Self = Self(libc::EIO);
}

/// Whether the process exports libuv's functions, without which a thread of ours waits.
pub fn has_handles() -> bool {
    Uv::find().is_some()
}

impl Shared {
    /// Joins `engine` to the environment's loop. `deliver(count, slot, result)` gets completions:
    /// a single one as its arguments, more as pairs in `pairs`; a count below 0 is the errno that
    /// ended the engine, and a count of 0 asks for [`Self::came_round`] when the loop has come round. With
    /// `own_thread` a thread waits, also where there are libuv's functions.
    pub fn start(
        env: &Env,
        engine: Engine,
        deliver: &Function<FnArgs<(i32, i32, i32)>, ()>,
        pairs: &ArrayBuffer,
        own_thread: bool,
    ) -> Result<Rc<Self>, NoLoop> {
        let env = env.raw();
        let uv = if own_thread { None } else { Uv::find() };
        let descriptor = engine.wait_descriptor();
        // SAFETY: both are values of the call that we are in.
        let javascript = unsafe { Javascript::keep(env, deliver.raw(), pairs.raw()) }?;
        let shared = Rc::new(Self {
            engine: RefCell::new(Some(engine)),
            env,
            driver: uv.map_or_else(
                || Driver::Thread(Thread::default()),
                |uv| Driver::Handles(Handles::new(uv)),
            ),
            javascript,
            wanted: Cell::new(true),
            referenced: Cell::new(false),
            idling: Cell::new(false),
            pumping: Cell::new(false),
            closing: Cell::new(false),
            hook: Cell::new(std::ptr::null_mut()),
        });
        let joined = match &shared.driver {
            Driver::Handles(handles) => handles.join(&shared, descriptor),
            Driver::Thread(thread) => thread.join(&shared),
        };
        if let Err(reason) = joined {
            // Nothing of the driver may be left to do it when that is closed, and the ring takes descriptors.
            shared.closing.set(true);
            drop(shared.engine.borrow_mut().take());
            shared.javascript.forget();
            return Err(reason);
        }
        let mut hook = std::ptr::null_mut();
        // SAFETY: the argument stays valid until the driver is closed, which removes the hook.
        unsafe {
            sys::napi_add_async_cleanup_hook(
                env,
                Some(on_environment_end),
                Rc::as_ptr(&shared).cast_mut().cast(),
                &raw mut hook,
            );
        }
        shared.hook.set(hook);
        Ok(shared)
    }

    /// Whether a thread of ours waits for completions, and not libuv.
    pub const fn has_own_thread(&self) -> bool {
        matches!(self.driver, Driver::Thread(_))
    }

    /// Something was staged or is to be cancelled: the loop must stay alive, and come round before it
    /// sleeps. About 10 ns, once after idleness.
    #[inline]
    pub fn staged(&self) {
        // Prepare handles run one after the other: a continuation of another queue's completion may
        // have staged this when our prepare was over. Prepare stops the idle handle again.
        if !self.pumping.get() {
            self.set_idling(true);
        }
        self.keep_alive();
    }

    #[inline]
    fn keep_alive(&self) {
        if !self.referenced.get() && self.wanted.get() && !self.closing.get() {
            self.set_referenced(true);
        }
    }

    fn set_referenced(&self, referenced: bool) {
        self.referenced.set(referenced);
        match &self.driver {
            Driver::Handles(handles) => handles.set_referenced(referenced),
            Driver::Thread(thread) => thread.set_referenced(self.env, referenced),
        }
    }

    /// Keeps the loop alive exactly while the engine is busy and the queue is wanted.
    fn update_reference(&self) {
        if self.closing.get() {
            return;
        }
        let busy = self.engine.borrow().as_ref().is_some_and(Engine::is_busy);
        if busy && self.wanted.get() {
            self.keep_alive();
        } else if self.referenced.get() {
            self.set_referenced(false);
        }
    }

    /// `queue.ref()` and `queue.unref()`.
    pub fn set_wanted(&self, wanted: bool) {
        self.wanted.set(wanted);
        self.update_reference();
    }

    /// Whether messages are waited for.
    pub fn set_listening(&self, listening: bool) {
        if let Some(engine) = self.engine.borrow_mut().as_mut() {
            engine.set_listening(listening);
        }
        // Without a prepare phase nobody has taken a turn yet, and only a turn lets a message wake us.
        if listening && !self.pumping.get() {
            self.set_idling(true);
        }
        self.update_reference();
    }

    /// The loop has come round, as was asked for.
    pub fn came_round(&self) {
        if let Driver::Thread(thread) = &self.driver {
            thread.came_round();
        }
        self.idling.set(false);
        self.pump();
    }

    /// Takes turns until the engine says what the loop should do, and does it.
    fn pump(&self) {
        self.pumping.set(true);
        self.take_turns();
        self.pumping.set(false);
        exposed::end_turn(self.env);
        self.update_reference();
    }

    fn take_turns(&self) {
        loop {
            let turn = match self.engine.borrow_mut().as_mut() {
                Some(engine) => engine.turn(),
                None => return,
            };
            match turn {
                Turn::Deliver => {
                    if !self.javascript.deliver(&self.engine) {
                        return;
                    }
                }
                Turn::Failed(errno) => {
                    self.javascript.call(&[-errno, 0, 0]);
                }
                Turn::Block => {
                    self.set_idling(false);
                    break;
                }
                Turn::Again => {
                    self.set_idling(true);
                    break;
                }
                Turn::Retry { after_ms } => {
                    self.set_idling(false);
                    self.wake_after(after_ms);
                    break;
                }
            }
        }
    }

    /// Whether the loop is to come round without sleeping.
    fn set_idling(&self, idling: bool) {
        if self.idling.replace(idling) == idling || self.closing.get() {
            return;
        }
        match &self.driver {
            Driver::Handles(handles) => handles.set_idling(idling),
            // Once asked for, it comes round once: `on_call` begins by taking that back.
            Driver::Thread(thread) if idling => thread.come_round(),
            Driver::Thread(_) => {}
        }
    }

    fn wake_after(&self, after_ms: u32) {
        if !self.closing.get() {
            match &self.driver {
                Driver::Handles(handles) => handles.wake_after(after_ms),
                Driver::Thread(thread) => thread.wake_after(after_ms),
            }
        }
    }

    /// Ends the engine and gives the driver back. Returns whether the kernel let go of everything
    /// within `patience`. Safe to call from inside a delivery, and twice.
    pub fn close(&self, patience: Duration) -> bool {
        let clean = match self.engine.borrow_mut().take() {
            Some(mut engine) => engine.shutdown(patience),
            None => true,
        };
        if !self.closing.replace(true) {
            match &self.driver {
                Driver::Handles(handles) => handles.close(),
                Driver::Thread(thread) => thread.close(),
            }
        }
        clean
    }

    /// The driver is gone: nothing reaches us from the loop any more.
    fn closed(&self) {
        self.javascript.forget();
        // SAFETY: it was made by `start` and is given up once.
        unsafe { sys::napi_remove_async_cleanup_hook(self.hook.replace(std::ptr::null_mut())) };
    }
}

/// The environment ends (a worker stops, or the main script is done): everything is cancelled before
/// the memory goes. Not called by `process.exit`, an uncaught throw or a signal on the main thread.
unsafe extern "C" fn on_environment_end(_: sys::napi_async_cleanup_hook_handle, data: *mut c_void) {
    // SAFETY: the hook is removed when the driver is closed; until then it keeps `Shared` alive.
    let shared = unsafe {
        Rc::increment_strong_count(data.cast_const().cast::<Shared>());
        Rc::from_raw(data.cast_const().cast::<Shared>())
    };
    shared.close(TEARDOWN_PATIENCE);
}
