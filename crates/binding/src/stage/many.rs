//! The raw functions of many operations at once: arrays of numbers are copied out of JavaScript's
//! memory, and results into it, within the call.

use std::slice;

use napi::sys::{self, TypedarrayType};
use node_uring_core::ChunkId;
use node_uring_core::engine::ManyRequest;
use node_uring_core::in_flight::Lengths;

use super::{BAD_CALL, BUFFER_GONE, Call, refused};

impl<const N: usize> Call<'_, N> {
    /// The elements of a typed array argument of this kind; empty for a detached one.
    ///
    /// # Safety
    /// `T` is the element of `kind`. The result is not used after JavaScript has run again.
    unsafe fn elements<T>(&self, index: usize, kind: i32) -> Option<&[T]> {
        let (found, data, length) = self.typed_array(index)?;
        if found != kind {
            return None;
        }
        if length == 0 {
            return Some(&[]);
        }
        // SAFETY: N-API gives the array's own memory and how many elements it has now; typed arrays
        // are aligned to their elements. By contract it is not used for longer than that holds.
        Some(unsafe { slice::from_raw_parts(data.cast::<T>(), length) })
    }

    /// Positions: a `Float64Array` of whole numbers, a `BigInt64Array` or a `BigUint64Array`. Negative
    /// and fractional ones give `None`.
    fn positions(&self, index: usize) -> Option<Vec<u64>> {
        // SAFETY: each kind with its element; copied before this returns.
        unsafe {
            if let Some(numbers) = self.elements::<f64>(index, TypedarrayType::float64_array) {
                #[allow(clippy::float_cmp)] // Exactly equal is what "whole" means.
                let whole =
                    |&number: &f64| (number as u64 as f64 == number).then_some(number as u64);
                return numbers.iter().map(whole).collect();
            }
            if let Some(numbers) = self.elements::<u64>(index, TypedarrayType::biguint64_array) {
                return Some(numbers.to_vec());
            }
            let numbers = self.elements::<i64>(index, TypedarrayType::bigint64_array)?;
            numbers.iter().map(|&number| u64::try_from(number).ok()).collect()
        }
    }

    /// Lengths: one number for all, or a `Uint32Array` with one for each.
    fn lengths(&self, index: usize) -> Option<Lengths> {
        if let Some(length) = self.small(index) {
            return Some(Lengths::All(length));
        }
        // SAFETY: the kind with its element; copied before this returns.
        unsafe { self.elements::<u32>(index, TypedarrayType::uint32_array) }.map(Lengths::each)
    }
}

/// `stageMany(opcode, slot, file, chunk, offset, lengths, positions, fill)`; for nops the count stands in
/// place of the positions.
pub unsafe extern "C" fn stage_many(
    env: sys::napi_env,
    info: sys::napi_callback_info,
) -> sys::napi_value {
    // SAFETY: these are the function's own parameters.
    let Some(call) = (unsafe { Call::<8>::read(env, info) }) else { return std::ptr::null_mut() };
    let outcome = (|| {
        let positions = call.positions(6);
        let count = match &positions {
            Some(positions) => positions.len(),
            None => call.small(6).ok_or(BAD_CALL)? as usize,
        };
        let request = ManyRequest {
            opcode: call.small(0).ok_or(BAD_CALL)?,
            slot: call.small(1).ok_or(BAD_CALL)?,
            file: call.integer(2).ok_or(BAD_CALL)?,
            chunk: call.integer(3).ok_or(BAD_CALL)?,
            offset: call.integer(4).ok_or(BAD_CALL)?,
            count,
            lengths: call.lengths(5).ok_or(BAD_CALL)?,
            positions: positions.unwrap_or_default(),
            fill: call.small(7).ok_or(BAD_CALL)? != 0,
        };
        call.with_engine(|engine| engine.stage_many(request).map_err(|refusal| refusal as i32))
    })();
    if outcome.is_ok() {
        call.shared.staged();
    }
    call.answer(outcome)
}

/// `takeCounts(slot, target, offset)`: writes what became of each of many that were staged at `slot` into
/// an `Int32Array`, from an element on. They are gone afterwards, also when the target has no room.
pub unsafe extern "C" fn take_counts(
    env: sys::napi_env,
    info: sys::napi_callback_info,
) -> sys::napi_value {
    // SAFETY: these are the function's own parameters.
    let Some(call) = (unsafe { Call::<3>::read(env, info) }) else { return std::ptr::null_mut() };
    let outcome = (|| {
        let slot = call.small(0).ok_or(BAD_CALL)?;
        let offset = call.integer(2).ok_or(BAD_CALL)? as usize;
        let counts = call.with_engine(|engine| engine.take_counts(slot).ok_or(BAD_CALL))?;
        let (kind, data, length) = call.typed_array(1).ok_or(BUFFER_GONE)?;
        let end = offset.checked_add(counts.len()).ok_or(BUFFER_GONE)?;
        if kind != TypedarrayType::int32_array || end > length {
            return Err(BUFFER_GONE);
        }
        // SAFETY: the array has room for `end` elements, looked up in this call with no JavaScript in
        // between; the counts are memory of ours, so the two do not overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(
                counts.as_ptr(),
                data.cast::<i32>().add(offset),
                counts.len(),
            );
        }
        Ok(())
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
    let Some(call) = (unsafe { Call::<4>::read(env, info) }) else { return std::ptr::null_mut() };
    let outcome = (|| {
        let id = ChunkId::from_number(call.integer(0).ok_or(BAD_CALL)?);
        // SAFETY: the kind with its element; no JavaScript runs while it is used.
        let runs = unsafe { call.elements::<f64>(1, TypedarrayType::float64_array) };
        let runs = runs.ok_or(BAD_CALL)?;
        let start = call.integer(3).ok_or(BAD_CALL)?;
        call.with_engine(|engine| {
            let arena = engine.arena();
            let mut outcome = Ok(());
            for run in runs.chunks_exact(2) {
                let (offset, length) = (run[0] as u64, run[1] as u64);
                let source = arena.bytes(id, offset as usize, length as usize).map_err(refused)?;
                let target = start.checked_add(offset).and_then(|at| call.range(2, at, length));
                let Some(target) = target else {
                    outcome = Err(BUFFER_GONE);
                    break;
                };
                // SAFETY: `target` has `length` bytes (`range`), looked up in this call with no
                // JavaScript in between; `source` is a bounce chunk, which no ArrayBuffer covers.
                unsafe { std::ptr::copy(source.as_ptr(), target, source.len()) };
            }
            arena.disown(id).map_err(refused)?;
            outcome
        })
    })();
    call.answer(outcome)
}
