//! Drives an engine from libuv's loop: prepare (about to block) and poll (the eventfd fired) take a
//! turn, and what the turn answers is done to the idle and timer handles.
//!
//! Decides nothing. Owns the handles until libuv has closed them. No borrow of the engine is alive
//! while JavaScript runs.

mod uv;

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::ptr;
use std::rc::Rc;
use std::time::Duration;

use napi::bindgen_prelude::{ArrayBuffer, FnArgs, Function};
use napi::{Env, JsValue, sys};
use node_uring_core::{Completion, Engine, Turn};

use crate::stage::exposed;
use uv::{Handle, Kind, Uv};

/// How long the end of an environment waits for the kernel to let go of what was cancelled. What it
/// keeps longer is leaked, which is sound: the memory is ours and never V8's.
const TEARDOWN_PATIENCE: Duration = Duration::from_secs(2);

/// An engine with what JavaScript and libuv need to reach it. One for each queue, on one thread.
pub struct Shared {
    /// `None` once closed. Borrowed for the length of one call, never across JavaScript.
    pub engine: RefCell<Option<Engine>>,
    env: sys::napi_env,
    uv: Uv,
    handles: Handles,
    /// Keep the loop alive while busy; false after `queue.unref()`.
    wanted: Cell<bool>,
    /// Whether the poll handle is referenced now.
    referenced: Cell<bool>,
    idling: Cell<bool>,
    /// Whether `pump` is on the stack: what is staged now goes in one of its rounds.
    pumping: Cell<bool>,
    closing: Cell<bool>,
    open_handles: Cell<u32>,
    deliver: Cell<sys::napi_ref>,
    pairs: Cell<sys::napi_ref>,
    context: Cell<sys::napi_async_context>,
    hook: Cell<sys::napi_async_cleanup_hook_handle>,
}

struct Handles {
    prepare: *mut Handle,
    poll: *mut Handle,
    idle: *mut Handle,
    timer: *mut Handle,
}

impl Handles {
    const fn all(&self) -> [*mut Handle; 4] {
        [self.prepare, self.poll, self.idle, self.timer]
    }
}

/// Why there is no event loop to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoLoop {
    /// The process does not export libuv's functions.
    Symbols,
    /// A call of libuv or N-API failed.
    Failed,
}

impl Shared {
    /// Joins `engine` to the environment's loop. `deliver(count, slot, result)` gets completions:
    /// a single one as its arguments, more as pairs in `pairs`; a count below 0 is the errno that
    /// ended the engine.
    pub fn start(
        env: &Env,
        engine: Engine,
        deliver: &Function<FnArgs<(i32, i32, i32)>, ()>,
        pairs: &ArrayBuffer,
    ) -> Result<Rc<Self>, NoLoop> {
        let env = env.raw();
        let uv = Uv::find().ok_or(NoLoop::Symbols)?;
        let descriptor = engine.wait_descriptor();
        let shared = Rc::new(Self {
            engine: RefCell::new(Some(engine)),
            env,
            uv,
            handles: Handles {
                prepare: new_handle(&uv, Kind::Prepare),
                poll: new_handle(&uv, Kind::Poll),
                idle: new_handle(&uv, Kind::Idle),
                timer: new_handle(&uv, Kind::Timer),
            },
            wanted: Cell::new(true),
            referenced: Cell::new(false),
            idling: Cell::new(false),
            pumping: Cell::new(false),
            closing: Cell::new(false),
            open_handles: Cell::new(0),
            deliver: Cell::new(ptr::null_mut()),
            pairs: Cell::new(ptr::null_mut()),
            context: Cell::new(ptr::null_mut()),
            hook: Cell::new(ptr::null_mut()),
        });
        // SAFETY: both are values of the call that we are in.
        unsafe { shared.keep_javascript(deliver.raw(), pairs.raw()) }?;
        Self::join(&shared, descriptor)?;
        Ok(shared)
    }

    /// # Safety
    /// `deliver` and `pairs` are a function and an `ArrayBuffer` of an open handle scope.
    unsafe fn keep_javascript(
        &self,
        deliver: sys::napi_value,
        pairs: sys::napi_value,
    ) -> Result<(), NoLoop> {
        let (mut deliver_ref, mut pairs_ref) = (ptr::null_mut(), ptr::null_mut());
        let (mut name, mut context) = (ptr::null_mut(), ptr::null_mut());
        let text = c"io_uring";
        // SAFETY: every out-pointer is a local that outlives its call; `text` has the length given.
        let made = unsafe {
            check(sys::napi_create_reference(self.env, deliver, 1, &raw mut deliver_ref))
                && check(sys::napi_create_reference(self.env, pairs, 1, &raw mut pairs_ref))
                && check(sys::napi_create_string_utf8(
                    self.env,
                    text.as_ptr(),
                    text.count_bytes() as isize,
                    &raw mut name,
                ))
                && check(sys::napi_async_init(self.env, ptr::null_mut(), name, &raw mut context))
        };
        self.deliver.set(deliver_ref);
        self.pairs.set(pairs_ref);
        self.context.set(context);
        if made { Ok(()) } else { Err(NoLoop::Failed) }
    }

    /// Starts the handles, all unreferenced, and asks to be told when the environment ends.
    fn join(shared: &Rc<Self>, descriptor: c_int) -> Result<(), NoLoop> {
        let (uv, handles) = (&shared.uv, &shared.handles);
        let mut uv_loop = ptr::null_mut();
        // SAFETY: the out-pointer outlives the call.
        if !check(unsafe { sys::napi_get_uv_event_loop(shared.env, &raw mut uv_loop) }) {
            return Err(NoLoop::Failed);
        }
        let uv_loop: *mut uv::Loop = uv_loop.cast();
        // SAFETY: the loop is this thread's and alive; each handle is memory of libuv's own size for
        // its kind, freed only by `closed`, after libuv has let it go. `data` is the first field.
        unsafe {
            if (uv.poll_init)(uv_loop, handles.poll, descriptor) != 0 {
                return Err(NoLoop::Failed);
            }
            (uv.prepare_init)(uv_loop, handles.prepare);
            (uv.idle_init)(uv_loop, handles.idle);
            (uv.timer_init)(uv_loop, handles.timer);
            for handle in handles.all() {
                // One strong count for each handle, given back in `closed`.
                (*handle).data = Rc::into_raw(Rc::clone(shared)).cast_mut().cast();
                (uv.unref)(handle);
            }
            shared.open_handles.set(4);
            (uv.prepare_start)(handles.prepare, on_prepare);
            (uv.poll_start)(handles.poll, uv::READABLE, on_poll);
        }
        let mut hook = ptr::null_mut();
        // SAFETY: the argument stays valid until the handles are closed, which removes the hook.
        unsafe {
            sys::napi_add_async_cleanup_hook(
                shared.env,
                Some(on_environment_end),
                Rc::as_ptr(shared).cast_mut().cast(),
                &raw mut hook,
            );
        }
        shared.hook.set(hook);
        Ok(())
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
            // SAFETY: the poll handle is open.
            unsafe { (self.uv.reference)(self.handles.poll) };
            self.referenced.set(true);
        }
    }

    /// References the poll handle exactly while the engine is busy and the queue is wanted.
    fn update_reference(&self) {
        if self.closing.get() {
            return;
        }
        let busy = self.engine.borrow().as_ref().is_some_and(Engine::is_busy);
        if busy && self.wanted.get() {
            self.keep_alive();
        } else if self.referenced.get() {
            // SAFETY: the poll handle is open.
            unsafe { (self.uv.unref)(self.handles.poll) };
            self.referenced.set(false);
        }
    }

    /// `queue.ref()` and `queue.unref()`.
    pub fn set_wanted(&self, wanted: bool) {
        self.wanted.set(wanted);
        self.update_reference();
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
                    if !self.deliver_completions() {
                        return;
                    }
                }
                Turn::Failed(errno) => {
                    self.call(&[-errno, 0, 0]);
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
                    self.start_timer(after_ms);
                    break;
                }
            }
        }
    }

    fn set_idling(&self, idling: bool) {
        if self.idling.replace(idling) == idling || self.closing.get() {
            return;
        }
        // SAFETY: the idle handle is open. An active idle handle keeps the loop from sleeping, even
        // when it is unreferenced; its callback does nothing.
        unsafe {
            if idling {
                (self.uv.idle_start)(self.handles.idle, on_nothing);
            } else {
                (self.uv.idle_stop)(self.handles.idle);
            }
        }
    }

    fn start_timer(&self, after_ms: u32) {
        if !self.closing.get() {
            // SAFETY: the timer handle is open. It only wakes the loop: prepare takes the turn.
            unsafe {
                (self.uv.timer_start)(self.handles.timer, on_nothing, u64::from(after_ms), 0);
            }
        }
    }

    /// Hands the engine's completions to JavaScript; false when nobody is there any more.
    fn deliver_completions(&self) -> bool {
        let single = {
            let engine = self.engine.borrow();
            let Some(engine) = engine.as_ref() else { return false };
            match engine.completions() {
                [only] => Some([1, only.slot as i32, only.result]),
                _ => None,
            }
        };
        match single {
            Some(arguments) => self.call(&arguments),
            None => self.call_with_pairs(),
        }
    }

    fn call_with_pairs(&self) -> bool {
        let Some(scope) = Scope::open(self.env) else { return false };
        let count = {
            let engine = self.engine.borrow();
            let Some(engine) = engine.as_ref() else { return false };
            let completions = engine.completions();
            // SAFETY: the reference was made by `keep_javascript` and lives until `closed`.
            let room = unsafe { pairs_memory(self.env, self.pairs.get()) };
            let Some(room) = room.filter(|(_, bytes)| size_of_val(completions) <= *bytes) else {
                return false;
            };
            // SAFETY: `room` is the memory of an ArrayBuffer of at least this size, looked up just
            // now and written before any JavaScript runs again. `Completion` is two 32-bit numbers.
            unsafe {
                ptr::copy_nonoverlapping(completions.as_ptr(), room.0, completions.len());
            }
            completions.len()
        };
        self.call_in(&scope, &[count as i32, 0, 0])
    }

    fn call(&self, arguments: &[i32; 3]) -> bool {
        Scope::open(self.env).is_some_and(|scope| self.call_in(&scope, arguments))
    }

    /// Calls `deliver`; microtasks and nextTicks run before this returns (`napi_make_callback`; a
    /// plain `napi_call_function` would leave them to the next callback of somebody else).
    fn call_in(&self, _scope: &Scope, arguments: &[i32; 3]) -> bool {
        let env = self.env;
        let (mut function, mut receiver, mut result) =
            (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
        let mut values = [ptr::null_mut(); 3];
        // SAFETY: a handle scope is open; the reference and the context were made by
        // `keep_javascript` and live until `closed`; out-pointers are locals.
        let status = unsafe {
            if !check(sys::napi_get_reference_value(env, self.deliver.get(), &raw mut function))
                || !check(sys::napi_get_global(env, &raw mut receiver))
            {
                return false;
            }
            for (value, &argument) in values.iter_mut().zip(arguments) {
                sys::napi_create_int32(env, argument, value);
            }
            sys::napi_make_callback(
                env,
                self.context.get(),
                receiver,
                function,
                values.len(),
                values.as_ptr(),
                &raw mut result,
            )
        };
        check(status) || self.report_exception()
    }

    /// Hands a pending exception to the process as uncaught. False when there is none to take: then
    /// JavaScript is gone (a worker that terminates), and nothing can be delivered any more.
    fn report_exception(&self) -> bool {
        let (mut pending, mut exception) = (false, ptr::null_mut());
        // SAFETY: out-pointers are locals; a handle scope is open.
        unsafe {
            check(sys::napi_is_exception_pending(self.env, &raw mut pending))
                && pending
                && check(sys::napi_get_and_clear_last_exception(self.env, &raw mut exception))
                && check(sys::napi_fatal_exception(self.env, exception))
        }
    }

    /// Ends the engine and gives the handles back to libuv. Returns whether the kernel let go of
    /// everything within `patience`. Safe to call from inside a delivery, and twice.
    pub fn close(&self, patience: Duration) -> bool {
        let clean = match self.engine.borrow_mut().take() {
            Some(mut engine) => engine.shutdown(patience),
            None => true,
        };
        if !self.closing.replace(true) {
            for handle in self.handles.all() {
                // SAFETY: the handle is open and closed only here.
                unsafe { (self.uv.close)(handle, on_closed) };
            }
        }
        clean
    }

    /// libuv has let go of all handles: nothing reaches us from the loop any more.
    fn closed(&self) {
        // SAFETY: each was made by `start` and is given up once. During teardown the environment
        // still takes these calls: the hook below has not been removed yet.
        unsafe {
            sys::napi_delete_reference(self.env, self.deliver.replace(ptr::null_mut()));
            sys::napi_delete_reference(self.env, self.pairs.replace(ptr::null_mut()));
            sys::napi_async_destroy(self.env, self.context.replace(ptr::null_mut()));
            sys::napi_remove_async_cleanup_hook(self.hook.replace(ptr::null_mut()));
        }
    }
}

/// The memory behind the pairs' `ArrayBuffer`, and its length in bytes.
///
/// # Safety
/// `reference` is a live reference to an `ArrayBuffer`, and a handle scope is open.
unsafe fn pairs_memory(
    env: sys::napi_env,
    reference: sys::napi_ref,
) -> Option<(*mut Completion, usize)> {
    let (mut value, mut data, mut bytes) = (ptr::null_mut(), ptr::null_mut(), 0usize);
    // SAFETY: by contract; out-pointers are locals.
    let found = unsafe {
        check(sys::napi_get_reference_value(env, reference, &raw mut value))
            && check(sys::napi_get_arraybuffer_info(env, value, &raw mut data, &raw mut bytes))
    };
    found.then_some((data.cast(), bytes))
}

/// A handle scope: a libuv callback has none of its own.
pub struct Scope {
    env: sys::napi_env,
    scope: sys::napi_handle_scope,
}

impl Scope {
    /// `None` when the environment does not allow it any more.
    pub fn open(env: sys::napi_env) -> Option<Self> {
        let mut scope = ptr::null_mut();
        // SAFETY: the environment is alive: its end closes the handles whose callbacks lead here.
        check(unsafe { sys::napi_open_handle_scope(env, &raw mut scope) })
            .then_some(Self { env, scope })
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        // SAFETY: opened by `open`, closed once, in order.
        unsafe { sys::napi_close_handle_scope(self.env, self.scope) };
    }
}

/// Whether an N-API call succeeded.
pub const fn check(status: sys::napi_status) -> bool {
    status == sys::Status::napi_ok
}

/// Memory for a libuv handle, zeroed, aligned for any of its fields.
fn new_handle(uv: &Uv, kind: Kind) -> *mut Handle {
    // SAFETY: a pure look-up.
    let bytes = unsafe { (uv.handle_size)(kind as u32) };
    // SAFETY: calloc takes no pointer; what it returns is freed by `on_closed` alone.
    let memory = unsafe { libc::calloc(1, bytes) };
    assert!(!memory.is_null(), "out of memory");
    memory.cast()
}

/// The [`Shared`] of a handle, for the length of a callback.
///
/// # Safety
/// `handle` is one of ours and not closed: it carries a strong count.
unsafe fn shared_of(handle: *mut Handle) -> Rc<Shared> {
    // SAFETY: `data` came from `Rc::into_raw`; the count is raised so that this clone is its own.
    unsafe {
        let data: *const Shared = (*handle).data.cast_const().cast();
        Rc::increment_strong_count(data);
        Rc::from_raw(data)
    }
}

extern "C" fn on_nothing(_: *mut Handle) {}

extern "C" fn on_prepare(handle: *mut Handle) {
    // SAFETY: libuv passes the handle that the callback was started with.
    unsafe { shared_of(handle) }.pump();
}

extern "C" fn on_poll(handle: *mut Handle, _status: c_int, _events: c_int) {
    // SAFETY: as `on_prepare`.
    let shared = unsafe { shared_of(handle) };
    if let Some(engine) = shared.engine.borrow_mut().as_mut() {
        engine.woken();
    }
    shared.pump();
}

extern "C" fn on_closed(handle: *mut Handle) {
    // SAFETY: libuv has let the handle go: its strong count is taken back, its memory freed.
    let shared = unsafe {
        let shared = Rc::from_raw((*handle).data.cast_const().cast::<Shared>());
        libc::free(handle.cast());
        shared
    };
    shared.open_handles.set(shared.open_handles.get() - 1);
    if shared.open_handles.get() == 0 {
        shared.closed();
    }
}

/// The environment ends (a worker stops, or the main script is done): everything is cancelled before
/// the memory goes. Not called by `process.exit`, an uncaught throw or a signal on the main thread.
unsafe extern "C" fn on_environment_end(_: sys::napi_async_cleanup_hook_handle, data: *mut c_void) {
    // SAFETY: the hook is removed when the handles are closed; until then they keep `Shared` alive.
    let shared = unsafe {
        Rc::increment_strong_count(data.cast_const().cast::<Shared>());
        Rc::from_raw(data.cast_const().cast::<Shared>())
    };
    shared.close(TEARDOWN_PATIENCE);
}
