//! The raw N-API functions: what JavaScript calls once an operation, and what touches the memory of
//! JavaScript's buffers.
//!
//! A raw call costs 10-20 ns, a napi-rs method 225. The memory of a caller's buffer is looked up and
//! copied from or to within one call; its address is never kept and never given to the kernel.

mod call;
pub mod exposed;
mod many;
mod memory;

use std::ffi::{CStr, c_void};
use std::ptr;
use std::rc::Rc;

use napi::bindgen_prelude::Object;
use napi::{Env, sys};
use node_uring_core::{Refusal, Request};

use crate::event_loop::Shared;

use call::Call;

/// More refusals of this module's own, beside the core's. `src/backend.ts` has the same list.
const BUFFER_GONE: i32 = 64;
const BAD_CALL: i32 = 65;

type Raw = unsafe extern "C" fn(sys::napi_env, sys::napi_callback_info) -> sys::napi_value;

/// The functions by their names in JavaScript.
const FUNCTIONS: [(&CStr, Raw); 11] = [
    (c"stage", stage::<8>),
    (c"stageBare", stage::<2>),
    (c"stageMany", many::stage_many),
    (c"takeCounts", many::take_counts),
    (c"copyRuns", memory::copy_runs),
    (c"flush", flush),
    (c"cancel", cancel),
    (c"take", memory::take),
    (c"disown", memory::disown),
    (c"copyOut", memory::copy_out),
    (c"expose", memory::expose),
];

/// Makes an object of the raw functions, each keeping `shared` alive.
pub fn functions<'env>(env: &'env Env, shared: &Rc<Shared>) -> Option<Object<'env>> {
    let env = env.raw();
    let mut object = ptr::null_mut();
    // SAFETY: out-pointers are locals throughout; names end with NUL. The data of a function is a
    // strong count of `shared`, given back by `release` when the function is collected, so no call
    // finds it gone.
    unsafe {
        if sys::napi_create_object(env, &raw mut object) != sys::Status::napi_ok {
            return None;
        }
        for (name, callback) in FUNCTIONS {
            let mut function = ptr::null_mut();
            let data = Rc::into_raw(Rc::clone(shared)).cast_mut().cast::<c_void>();
            let made = sys::napi_create_function(
                env,
                name.as_ptr(),
                name.count_bytes() as isize,
                Some(callback),
                data,
                &raw mut function,
            ) == sys::Status::napi_ok
                && sys::napi_add_finalizer(
                    env,
                    function,
                    data,
                    Some(release),
                    ptr::null_mut(),
                    ptr::null_mut(),
                ) == sys::Status::napi_ok;
            if !made {
                drop(Rc::from_raw(data.cast_const().cast::<Shared>()));
                return None;
            }
            sys::napi_set_named_property(env, object, name.as_ptr(), function);
        }
    }
    Some(Object::from_raw(env, object))
}

unsafe extern "C" fn release(_: sys::napi_env, data: *mut c_void, _: *mut c_void) {
    // SAFETY: one strong count was put into each function by `functions`.
    drop(unsafe { Rc::from_raw(data.cast_const().cast::<Shared>()) });
}

/// `stage(opcode, slot, file, chunk, offset, length, position, bytes?)`, and
/// `stageBare(opcode, slot)`, where all the others are 0: reading eight arguments costs 10 ns more
/// than reading two, which is 5% of a nop.
unsafe extern "C" fn stage<const N: usize>(
    env: sys::napi_env,
    info: sys::napi_callback_info,
) -> sys::napi_value {
    // SAFETY: these are the function's own parameters.
    let Some(call) = (unsafe { Call::<N>::read(env, info) }) else { return ptr::null_mut() };
    let outcome = (|| {
        let bad = BAD_CALL;
        let mut request = Request {
            opcode: call.small(0).ok_or(bad)?,
            slot: call.small(1).ok_or(bad)?,
            ..Request::default()
        };
        if N > 2 {
            request.file = call.integer(2).ok_or(bad)?;
            request.chunk = call.integer(3).ok_or(bad)?;
            request.offset = call.integer(4).ok_or(bad)?;
            request.length = call.integer(5).ok_or(bad)?;
            request.position = call.integer(6).ok_or(bad)?;
            // What has bytes has no chunk: reads and writes do not look for them.
            if request.chunk == 0
                && let Some((data, bytes)) = call.memory(7)
                && bytes > 0
            {
                // SAFETY: the memory of a typed array that is an argument of this call. No JavaScript
                // runs before `stage` has copied it.
                request.bytes = unsafe { std::slice::from_raw_parts(data, bytes) };
            }
        }
        call.with_engine(|engine| engine.stage(&request).map_err(|refusal| refusal as i32))
    })();
    if outcome.is_ok() {
        call.shared.staged();
    }
    call.answer(outcome)
}

/// `flush()`: submits what is staged now.
unsafe extern "C" fn flush(env: sys::napi_env, info: sys::napi_callback_info) -> sys::napi_value {
    // SAFETY: these are the function's own parameters.
    let Some(call) = (unsafe { Call::<0>::read(env, info) }) else { return ptr::null_mut() };
    call.answer(call.with_engine(|engine| {
        engine.flush();
        Ok(())
    }))
}

/// `cancel(slot)`: undefined when there was something to cancel.
unsafe extern "C" fn cancel(env: sys::napi_env, info: sys::napi_callback_info) -> sys::napi_value {
    // SAFETY: these are the function's own parameters.
    let Some(call) = (unsafe { Call::<1>::read(env, info) }) else { return ptr::null_mut() };
    let outcome = call.small(0).ok_or(BAD_CALL).and_then(|slot| {
        let free = Refusal::SlotRange as i32;
        call.with_engine(|engine| if engine.cancel(slot) { Ok(()) } else { Err(free) })
    });
    if outcome.is_ok() {
        call.shared.staged();
    }
    call.answer(outcome)
}
