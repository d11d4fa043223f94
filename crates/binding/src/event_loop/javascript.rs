//! What a queue keeps of JavaScript: the function that gets completions, the memory that their pairs
//! are written to, and the context that the calls are made in.

use std::cell::{Cell, RefCell};
use std::ptr;

use napi::sys;
use node_uring_core::{Completion, Engine};

use super::NoLoop;

/// References into JavaScript, from [`Javascript::keep`] to [`Javascript::forget`].
pub struct Javascript {
    env: sys::napi_env,
    deliver: Cell<sys::napi_ref>,
    pairs: Cell<sys::napi_ref>,
    context: Cell<sys::napi_async_context>,
}

impl Javascript {
    /// # Safety
    /// `deliver` and `pairs` are a function and an `ArrayBuffer` of an open handle scope.
    pub unsafe fn keep(
        env: sys::napi_env,
        deliver: sys::napi_value,
        pairs: sys::napi_value,
    ) -> Result<Self, NoLoop> {
        let (mut deliver_ref, mut pairs_ref) = (ptr::null_mut(), ptr::null_mut());
        let (mut name, mut context) = (ptr::null_mut(), ptr::null_mut());
        let text = c"io_uring";
        // SAFETY: every out-pointer is a local that outlives its call; `text` has the length given.
        let made = unsafe {
            check(sys::napi_create_reference(env, deliver, 1, &raw mut deliver_ref))
                && check(sys::napi_create_reference(env, pairs, 1, &raw mut pairs_ref))
                && check(sys::napi_create_string_utf8(
                    env,
                    text.as_ptr(),
                    text.count_bytes() as isize,
                    &raw mut name,
                ))
                && check(sys::napi_async_init(env, ptr::null_mut(), name, &raw mut context))
        };
        let (deliver, pairs) = (Cell::new(deliver_ref), Cell::new(pairs_ref));
        let kept = Self { env, deliver, pairs, context: Cell::new(context) };
        if made {
            return Ok(kept);
        }
        kept.forget();
        Err(NoLoop::NAPI)
    }

    /// Lets go of all of it. May be called again.
    pub fn forget(&self) {
        // SAFETY: each was made by `keep` and is given up once; N-API refuses null. During teardown the
        // environment still takes these calls: its cleanup hook has not been removed yet.
        unsafe {
            sys::napi_delete_reference(self.env, self.deliver.replace(ptr::null_mut()));
            sys::napi_delete_reference(self.env, self.pairs.replace(ptr::null_mut()));
            sys::napi_async_destroy(self.env, self.context.replace(ptr::null_mut()));
        }
    }

    /// Hands the engine's completions to JavaScript; false when nobody is there any more.
    pub fn deliver(&self, engine: &RefCell<Option<Engine>>) -> bool {
        let single = {
            let engine = engine.borrow();
            let Some(engine) = engine.as_ref() else { return false };
            match engine.completions() {
                [only] => Some([1, only.slot as i32, only.result]),
                _ => None,
            }
        };
        match single {
            Some(arguments) => self.call(&arguments),
            None => self.call_with_pairs(engine),
        }
    }

    fn call_with_pairs(&self, engine: &RefCell<Option<Engine>>) -> bool {
        let Some(scope) = Scope::open(self.env) else { return false };
        let count = {
            let engine = engine.borrow();
            let Some(engine) = engine.as_ref() else { return false };
            let completions = engine.completions();
            // SAFETY: the reference was made by `keep` and lives until `forget`.
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

    /// Calls `deliver` with these; false when nobody is there any more.
    pub fn call(&self, arguments: &[i32; 3]) -> bool {
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
        // `keep` and live until `forget`; out-pointers are locals.
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
