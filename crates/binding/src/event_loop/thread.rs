//! The driver for `reap: 'thread'`, and for runtimes that do not export libuv's functions: a thread of
//! the core waits on the eventfd and calls JavaScript's thread by a thread-safe function of N-API.
//!
//! There is no prepare phase to hook into: what is staged asks for a call of that same function, which
//! comes when the loop comes round, once for all that was staged until then.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::ptr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use napi::sys;
use node_uring_core::Waiter;

use super::{Driver, NoLoop, Shared, check};

/// The thread-safe function, and the thread that calls it.
#[derive(Default)]
pub struct Thread {
    /// Null before `join` and after `close`. It holds a strong count of its `Shared`, which
    /// `on_finalized` gives back.
    function: Cell<sys::napi_threadsafe_function>,
    waiter: RefCell<Option<Waiter>>,
    /// When the first of the calls came between which the loop may not have come round.
    since: Cell<Option<Instant>>,
    /// JavaScript was asked to have the loop come round: until then there is no turn.
    deferred: Cell<bool>,
}

/// The pointer that the thread has.
struct Function(sys::napi_threadsafe_function);

// SAFETY: that it may be called by any thread is what a thread-safe function is for. The thread ends
// before the function is released (`close`).
unsafe impl Send for Function {}

impl Function {
    /// Asks for a call on JavaScript's thread. One that is waiting already will do for this one, too.
    /// False when the function is being closed.
    fn call(&self, by: By) -> bool {
        let data = by as usize as *mut c_void;
        let mode = sys::ThreadsafeFunctionCallMode::nonblocking;
        // SAFETY: the function is open: see `Send` above, and `Thread::come_round`.
        let status = unsafe { sys::napi_call_threadsafe_function(self.0, data, mode) };
        status != sys::Status::napi_closing
    }
}

/// Calls that take turns without the loop coming round between them: for as long as a turn itself may
/// deliver.
const STREAK_MAX: Duration = Duration::from_micros(200);

/// Who asked for a call.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
enum By {
    Staging = 0,
    Waiter = 1,
}

impl Thread {
    /// Makes the function, unreferenced, and starts the thread.
    pub fn join(&self, shared: &Rc<Shared>) -> Result<(), NoLoop> {
        let env = shared.env;
        let (mut name, mut function) = (ptr::null_mut(), ptr::null_mut());
        let text = c"io_uring";
        let context = Rc::into_raw(Rc::clone(shared)).cast_mut().cast::<c_void>();
        // SAFETY: out-pointers are locals; `text` has the length given. The context is a strong count.
        // One call at a time may wait: it stands for all.
        let made = unsafe {
            check(sys::napi_create_string_utf8(
                env,
                text.as_ptr(),
                text.count_bytes() as isize,
                &raw mut name,
            )) && check(sys::napi_create_threadsafe_function(
                env,
                ptr::null_mut(),
                ptr::null_mut(),
                name,
                1,
                1,
                ptr::null_mut(),
                Some(on_finalized),
                context,
                Some(on_call),
                &raw mut function,
            ))
        };
        if !made {
            // SAFETY: nobody else has the count that was made above.
            drop(unsafe { Rc::from_raw(context.cast_const().cast::<Shared>()) });
            return Err(NoLoop::NAPI);
        }
        self.function.set(function);
        self.set_referenced(env, false);
        let theirs = Function(function);
        let waiter = match shared.engine.borrow().as_ref() {
            Some(engine) => engine
                .start_waiter(move || theirs.call(By::Waiter))
                .map_err(|error| NoLoop(error.raw_os_error().unwrap_or(libc::EIO))),
            None => Err(NoLoop::NAPI),
        };
        match waiter {
            Ok(waiter) => {
                self.waiter.replace(Some(waiter));
                Ok(())
            }
            Err(reason) => {
                self.close();
                Err(reason)
            }
        }
    }

    pub fn set_referenced(&self, env: sys::napi_env, referenced: bool) {
        let function = self.function.get();
        // SAFETY: the function is open: callers look whether it is being closed.
        unsafe {
            if referenced {
                sys::napi_ref_threadsafe_function(env, function);
            } else {
                sys::napi_unref_threadsafe_function(env, function);
            }
        }
    }

    /// Has the loop come round.
    pub fn come_round(&self) {
        Function(self.function.get()).call(By::Staging);
    }

    /// Whether a call is to take a turn now. What is asked for while a call lasts, and while what it has
    /// settled goes on, follows it at once, up to a thousand times, and timers and all other I/O wait
    /// (`ThreadSafeFunction::Dispatch` in Node). Nothing says when the loop has come round: after a while
    /// JavaScript is asked for a `setImmediate`.
    fn may_turn(&self, shared: &Shared) -> bool {
        if self.deferred.get() {
            return false;
        }
        let since = self.since.get().unwrap_or_else(Instant::now);
        self.since.set(Some(since));
        // What does not keep the process alive must not do so by a `setImmediate`.
        let goes_on = since.elapsed() < STREAK_MAX || !shared.wanted.get();
        if !goes_on {
            self.deferred.set(true);
            shared.javascript.call(&[0, 0, 0]);
        }
        goes_on
    }

    /// The loop has come round.
    pub fn came_round(&self) {
        self.deferred.set(false);
        self.since.set(Some(Instant::now()));
    }

    pub fn wake_after(&self, after_ms: u32) {
        if let Some(waiter) = self.waiter.borrow().as_ref() {
            waiter.wake_after(Duration::from_millis(u64::from(after_ms)));
        }
    }

    /// Ends the thread, then the function; called once.
    pub fn close(&self) {
        self.waiter.take();
        let function = self.function.replace(ptr::null_mut());
        // SAFETY: made by `join`, and released once: its only thread has ended.
        unsafe {
            sys::napi_release_threadsafe_function(
                function,
                sys::ThreadsafeFunctionReleaseMode::abort,
            );
        }
    }
}

/// On JavaScript's thread, asked for by [`Function::call`].
unsafe extern "C" fn on_call(
    env: sys::napi_env,
    _: sys::napi_value,
    context: *mut c_void,
    data: *mut c_void,
) {
    if env.is_null() {
        return;
    }
    // SAFETY: the context is a strong count that `on_finalized` gives back, after the last call; the
    // count is raised so that this clone is its own.
    let shared = unsafe {
        let context = context.cast_const().cast::<Shared>();
        Rc::increment_strong_count(context);
        Rc::from_raw(context)
    };
    if data as usize == By::Waiter as usize
        && let Some(engine) = shared.engine.borrow_mut().as_mut()
    {
        engine.woken_elsewhere();
    }
    let Driver::Thread(thread) = &shared.driver else { return };
    let turns = thread.may_turn(&shared);
    // What is staged until it comes round asks for no other call.
    shared.idling.set(!turns);
    if turns {
        shared.pump();
    }
}

unsafe extern "C" fn on_finalized(_: sys::napi_env, _: *mut c_void, context: *mut c_void) {
    // SAFETY: the strong count of `join`, taken back once: no call comes any more.
    let shared = unsafe { Rc::from_raw(context.cast_const().cast::<Shared>()) };
    shared.closed();
}
