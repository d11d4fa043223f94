//! The raw N-API functions: what JavaScript calls once an operation, and what touches the memory of
//! JavaScript's buffers.
//!
//! A raw call costs 10-20 ns, a napi-rs method 225. The memory of a caller's buffer is looked up and
//! copied from or to within one call; its address is never kept and never given to the kernel.

pub mod exposed;
mod many;

use std::ffi::{CStr, c_void};
use std::ptr;
use std::rc::Rc;

use napi::bindgen_prelude::Object;
use napi::{Env, sys};
use node_uring_core::arena::{BadChunk, Exhausted};
use node_uring_core::{ChunkId, Engine, Pool, Refusal, Request};

use crate::event_loop::Shared;

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
    (c"copyRuns", many::copy_runs),
    (c"flush", flush),
    (c"cancel", cancel),
    (c"take", take),
    (c"disown", disown),
    (c"copyOut", copy_out),
    (c"expose", expose),
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

/// The arguments of a raw call.
struct Call<'a, const N: usize> {
    env: sys::napi_env,
    arguments: [sys::napi_value; N],
    shared: &'a Shared,
}

impl<const N: usize> Call<'_, N> {
    /// # Safety
    /// Called at the start of a function made by [`functions`], with its own parameters.
    #[inline]
    unsafe fn read(env: sys::napi_env, info: sys::napi_callback_info) -> Option<Self> {
        let mut arguments = [ptr::null_mut(); N];
        let (mut count, mut data) = (N, ptr::null_mut());
        // SAFETY: `arguments` has room for the count given; missing ones become undefined. The data
        // is the function's own strong count, alive for the length of the call.
        let shared = unsafe {
            if sys::napi_get_cb_info(
                env,
                info,
                &raw mut count,
                arguments.as_mut_ptr(),
                ptr::null_mut(),
                &raw mut data,
            ) != sys::Status::napi_ok
            {
                return None;
            }
            &*data.cast_const().cast::<Shared>()
        };
        Some(Self { env, arguments, shared })
    }

    /// An unsigned integer: a number without a fraction, or a bigint below 2^63.
    #[inline]
    #[allow(clippy::float_cmp)] // Exactly equal is what "without a fraction" means.
    fn integer(&self, index: usize) -> Option<u64> {
        let mut number = 0.0;
        // SAFETY: the out-pointer is a local; any value may be asked.
        let status =
            unsafe { sys::napi_get_value_double(self.env, self.arguments[index], &raw mut number) };
        if status != sys::Status::napi_ok {
            return self.bigint(index);
        }
        let whole = number as u64;
        (whole as f64 == number && number < 9_223_372_036_854_775_808.0).then_some(whole)
    }

    #[cold]
    fn bigint(&self, index: usize) -> Option<u64> {
        let (mut number, mut lossless) = (0, false);
        // SAFETY: out-pointers are locals; any value may be asked.
        let status = unsafe {
            sys::napi_get_value_bigint_uint64(
                self.env,
                self.arguments[index],
                &raw mut number,
                &raw mut lossless,
            )
        };
        (status == sys::Status::napi_ok && lossless).then_some(number)
    }

    #[inline]
    fn small(&self, index: usize) -> Option<u32> {
        let mut number = 0;
        // SAFETY: the out-pointer is a local; any value may be asked.
        let status =
            unsafe { sys::napi_get_value_uint32(self.env, self.arguments[index], &raw mut number) };
        (status == sys::Status::napi_ok).then_some(number)
    }

    /// The bytes of a `Uint8Array` argument right now, or `None` when it is none. A detached or
    /// shrunk one has fewer bytes than it had.
    #[inline]
    fn memory(&self, index: usize) -> Option<(*mut u8, usize)> {
        let (kind, data, bytes) = self.typed_array(index)?;
        (kind == sys::TypedarrayType::uint8_array).then_some((data.cast(), bytes))
    }

    /// The kind, the memory and the number of elements of a typed array argument right now, or `None`
    /// when it is none.
    #[inline]
    fn typed_array(&self, index: usize) -> Option<(i32, *mut c_void, usize)> {
        let (mut kind, mut length, mut data) = (0, 0usize, ptr::null_mut());
        // SAFETY: out-pointers are locals; a value that is no typed array gives an error status.
        let status = unsafe {
            sys::napi_get_typedarray_info(
                self.env,
                self.arguments[index],
                &raw mut kind,
                &raw mut length,
                &raw mut data,
                ptr::null_mut(),
                ptr::null_mut(),
            )
        };
        (status == sys::Status::napi_ok).then_some((kind, data, length))
    }

    /// `length` bytes of a `Uint8Array` argument from `offset`, or `None` when it has not got them.
    #[inline]
    fn range(&self, index: usize, offset: u64, length: u64) -> Option<*mut u8> {
        let (data, bytes) = self.memory(index)?;
        let end = offset.checked_add(length)?;
        if end > bytes as u64 {
            return None;
        }
        // SAFETY: offset <= bytes, so the result is inside the array's memory or one past its end.
        Some(unsafe { data.add(offset as usize) })
    }

    fn is_array_buffer(&self, index: usize) -> bool {
        let mut is = false;
        // SAFETY: the out-pointer is a local; any value may be asked.
        unsafe { sys::napi_is_arraybuffer(self.env, self.arguments[index], &raw mut is) };
        is
    }

    fn detach(&self, index: usize) -> bool {
        // SAFETY: the argument is an ArrayBuffer. Its memory is the arena's, which stays.
        let status = unsafe { sys::napi_detach_arraybuffer(self.env, self.arguments[index]) };
        status == sys::Status::napi_ok
    }

    fn number(&self, number: f64) -> sys::napi_value {
        let mut value = ptr::null_mut();
        // SAFETY: the out-pointer is a local.
        unsafe { sys::napi_create_double(self.env, number, &raw mut value) };
        value
    }

    /// `undefined` for done, the refusal's number otherwise.
    #[inline]
    fn answer(&self, outcome: Result<(), i32>) -> sys::napi_value {
        match outcome {
            Ok(()) => ptr::null_mut(),
            Err(code) => self.number(f64::from(code)),
        }
    }

    fn with_engine<T>(&self, work: impl FnOnce(&mut Engine) -> Result<T, i32>) -> Result<T, i32> {
        match self.shared.engine.borrow_mut().as_mut() {
            Some(engine) => work(engine),
            None => Err(Refusal::Closed as i32),
        }
    }
}

fn refused(bad: BadChunk) -> i32 {
    Refusal::from(bad) as i32
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

/// `take(pool, length, source?, sourceOffset?)`: a chunk's number; 0 when the pool is at its limit,
/// -1 when it can never hold that much, -2 when the source has not got the bytes, else a negated
/// errno past -1000. With a source, its bytes are copied in. Memory for users (pool 0) is zeroed.
unsafe extern "C" fn take(env: sys::napi_env, info: sys::napi_callback_info) -> sys::napi_value {
    // SAFETY: these are the function's own parameters.
    let Some(call) = (unsafe { Call::<4>::read(env, info) }) else { return ptr::null_mut() };
    let answer = (|| {
        let pool = call.small(0).and_then(Pool::from_number)?;
        let length = call.integer(1)?;
        let source = call.integer(3).map(|offset| call.range(2, offset, length));
        if source == Some(None) {
            return Some(-2.0);
        }
        let mut engine = call.shared.engine.borrow_mut();
        let arena = engine.as_mut()?.arena();
        let id = match arena.take(pool, length as usize) {
            Ok(id) => id,
            Err(Exhausted::Limit) => return Some(0.0),
            Err(Exhausted::TooLong) => return Some(-1.0),
            Err(Exhausted::Kernel(errno)) => return Some(-1000.0 - f64::from(errno)),
        };
        if let Some(Some(source)) = source {
            let target = arena.bytes(id, 0, length as usize).ok()?;
            // SAFETY: `source` has `length` bytes (`range`), `target` is arena memory of that length
            // that was free until now, so they cannot overlap... unless JavaScript passes a view of
            // arena memory, which is another chunk: chunks do not overlap either.
            unsafe { ptr::copy_nonoverlapping(source, target.as_mut_ptr(), target.len()) };
        } else if pool == Pool::Alloc {
            arena.zero(id).ok()?;
        }
        Some(id.number() as f64)
    })();
    call.number(answer.unwrap_or(-2.0))
}

/// `disown(chunk, buffer?)`: the owner lets go. With its `ArrayBuffer`, detaches that first, so that
/// nobody sees the memory any more; refused while an operation holds the chunk.
unsafe extern "C" fn disown(env: sys::napi_env, info: sys::napi_callback_info) -> sys::napi_value {
    // SAFETY: these are the function's own parameters.
    let Some(call) = (unsafe { Call::<2>::read(env, info) }) else { return ptr::null_mut() };
    let outcome = call.integer(0).ok_or(BAD_CALL).and_then(|number| {
        let id = ChunkId::from_number(number);
        let detach = call.is_array_buffer(1);
        let address = call.with_engine(|engine| {
            let arena = engine.arena();
            if detach && arena.in_flight(id).map_err(refused)? {
                return Err(refused(BadChunk::InFlight));
            }
            arena.expose(id, 0).map(|(address, _)| address).map_err(refused)
        })?;
        // The engine is not borrowed here: detaching may run finalizers.
        if detach && !call.detach(1) {
            return Err(BAD_CALL);
        }
        if detach {
            exposed::given_back(env, address);
        }
        call.with_engine(|engine| engine.arena().disown(id).map_err(refused))
    });
    call.answer(outcome)
}

/// `copyOut(chunk, offset, target, targetOffset, length)`: copies a chunk's bytes into a `Uint8Array`
/// and lets the chunk go, also when the copy fails because the target is gone or too short.
unsafe extern "C" fn copy_out(
    env: sys::napi_env,
    info: sys::napi_callback_info,
) -> sys::napi_value {
    // SAFETY: these are the function's own parameters.
    let Some(call) = (unsafe { Call::<5>::read(env, info) }) else { return ptr::null_mut() };
    let outcome = (|| {
        let id = ChunkId::from_number(call.integer(0).ok_or(BAD_CALL)?);
        let offset = call.integer(1).ok_or(BAD_CALL)?;
        let target_offset = call.integer(3).ok_or(BAD_CALL)?;
        let length = call.integer(4).ok_or(BAD_CALL)?;
        let target = call.range(2, target_offset, length);
        call.with_engine(|engine| {
            let arena = engine.arena();
            let source = arena.bytes(id, offset as usize, length as usize).map_err(refused)?;
            if let Some(target) = target {
                // SAFETY: `target` has `length` bytes (`range`), looked up in this call with no
                // JavaScript in between; `source` is a bounce chunk, which no ArrayBuffer covers.
                unsafe { ptr::copy(source.as_ptr(), target, source.len()) };
            }
            arena.disown(id).map_err(refused)?;
            if target.is_some() { Ok(()) } else { Err(BUFFER_GONE) }
        })
    })();
    call.answer(outcome)
}

/// `expose(chunk, length)`: an `ArrayBuffer` over the chunk's memory, which becomes the chunk's owner:
/// the chunk is free when the buffer is collected (or was given back by `disown`). undefined where
/// the runtime does not allow external buffers.
unsafe extern "C" fn expose(env: sys::napi_env, info: sys::napi_callback_info) -> sys::napi_value {
    // SAFETY: these are the function's own parameters.
    let Some(call) = (unsafe { Call::<2>::read(env, info) }) else { return ptr::null_mut() };
    let (Some(number), Some(length)) = (call.integer(0), call.integer(1)) else {
        return call.answer(Err(BAD_CALL));
    };
    let chunk = ChunkId::from_number(number);
    let found =
        call.with_engine(|engine| engine.arena().expose(chunk, length as usize).map_err(refused));
    let (address, mapping) = match found {
        Ok(found) => found,
        Err(code) => return call.answer(Err(code)),
    };
    // SAFETY: the function's data holds a strong count; this one is made beside it and turned into a
    // weak one at once.
    let shared = unsafe {
        let data = ptr::from_ref(call.shared);
        Rc::increment_strong_count(data);
        Rc::downgrade(&Rc::from_raw(data))
    };
    // SAFETY: `address` and `mapping` are of the same chunk.
    unsafe { exposed::expose(env, chunk, address, mapping, shared) }.unwrap_or(ptr::null_mut())
}
