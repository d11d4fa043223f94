//! The raw functions of chunks: taken and let go, copied out of, shown to JavaScript.

use std::ptr;
use std::rc::Rc;

use napi::sys::{self, TypedarrayType};
use node_uring_core::arena::{self, BadChunk, Exhausted};
use node_uring_core::{Arena, ChunkId, Pool, Refusal};

use super::call::Call;
use super::{BAD_CALL, BUFFER_GONE, exposed};

fn refused(bad: BadChunk) -> i32 {
    Refusal::from(bad) as i32
}

impl<const N: usize> Call<'_, N> {
    /// Copies `(offset, length)` of a bounce chunk to a place of a `Uint8Array`: `(argument, offset)`. False
    /// when that has not got the room (any more).
    fn copy_from(
        &self,
        arena: &mut Arena,
        id: ChunkId,
        (offset, length): (u64, u64),
        (index, target_offset): (usize, u64),
    ) -> Result<bool, i32> {
        let source = arena.bytes(id, offset as usize, length as usize).map_err(refused)?;
        let Some(target) = self.range(index, target_offset, length) else { return Ok(false) };
        // SAFETY: `target` has `length` bytes (`range`), looked up in this call with no JavaScript in
        // between; `source` is a bounce chunk, which no ArrayBuffer covers.
        unsafe { arena::copy(source.as_ptr(), target, source.len()) };
        Ok(true)
    }
}

/// `take(pool, length, source?, sourceOffset?)`: a chunk's number; 0 when the pool is at its limit,
/// -1 when it can never hold that much, -2 when the source has not got the bytes, else a negated
/// errno past -1000. With a source, its bytes are copied in. Memory for users (pool 0) is zeroed.
pub unsafe extern "C" fn take(
    env: sys::napi_env,
    info: sys::napi_callback_info,
) -> sys::napi_value {
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
            unsafe { arena::copy(source, target.as_mut_ptr(), target.len()) };
        } else if pool == Pool::Alloc {
            arena.zero(id).ok()?;
        }
        Some(id.number() as f64)
    })();
    call.number(answer.unwrap_or(-2.0))
}

/// `disown(chunk, buffer?)`: the owner lets go. With its `ArrayBuffer`, detaches that first, so that
/// nobody sees the memory any more; refused while an operation holds the chunk.
pub unsafe extern "C" fn disown(
    env: sys::napi_env,
    info: sys::napi_callback_info,
) -> sys::napi_value {
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
pub unsafe extern "C" fn copy_out(
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
        call.with_engine(|engine| {
            let arena = engine.arena();
            let copied = call.copy_from(arena, id, (offset, length), (2, target_offset))?;
            arena.disown(id).map_err(refused)?;
            if copied { Ok(()) } else { Err(BUFFER_GONE) }
        })
    })();
    call.answer(outcome)
}

/// `copyRuns(chunk, runs, target, targetOffset)`: copies runs of a chunk's bytes, each an offset and a length
/// in a `Float64Array`, to the same places of a `Uint8Array` from an offset on, and lets the chunk go,
/// also when the target has not got the room.
pub unsafe extern "C" fn copy_runs(
    env: sys::napi_env,
    info: sys::napi_callback_info,
) -> sys::napi_value {
    // SAFETY: these are the function's own parameters.
    let Some(call) = (unsafe { Call::<4>::read(env, info) }) else { return ptr::null_mut() };
    let outcome = (|| {
        let id = ChunkId::from_number(call.integer(0).ok_or(BAD_CALL)?);
        // SAFETY: the kind with its element; no JavaScript runs while it is used.
        let runs = unsafe { call.elements::<f64>(1, TypedarrayType::float64_array) };
        let runs = runs.ok_or(BAD_CALL)?;
        let start = call.integer(3).ok_or(BAD_CALL)?;
        call.with_engine(|engine| {
            let arena = engine.arena();
            let mut copied = true;
            for run in runs.chunks_exact(2) {
                let (offset, length) = (run[0] as u64, run[1] as u64);
                let at = start.saturating_add(offset);
                copied = call.copy_from(arena, id, (offset, length), (2, at))?;
                if !copied {
                    break;
                }
            }
            arena.disown(id).map_err(refused)?;
            if copied { Ok(()) } else { Err(BUFFER_GONE) }
        })
    })();
    call.answer(outcome)
}

/// `expose(chunk, length)`: an `ArrayBuffer` over the chunk's memory, which becomes the chunk's owner:
/// the chunk is free when the buffer is collected (or was given back by `disown`). undefined where
/// the runtime does not allow external buffers.
pub unsafe extern "C" fn expose(
    env: sys::napi_env,
    info: sys::napi_callback_info,
) -> sys::napi_value {
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
