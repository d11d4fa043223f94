//! The raw functions of many operations at once: arrays of numbers are copied out of JavaScript's
//! memory, and results into it, within the call.

use napi::sys::{self, TypedarrayType};
use node_uring_core::engine::ManyRequest;
use node_uring_core::in_flight::Lengths;

use super::call::Call;
use super::{BAD_CALL, BUFFER_GONE};

impl<const N: usize> Call<'_, N> {
    /// Positions: a `Float64Array` of whole numbers, a `BigInt64Array` or a `BigUint64Array`. Negative
    /// and fractional ones give `None`.
    fn positions(&self, index: usize) -> Option<Vec<u64>> {
        // SAFETY: each kind with its element; copied before this returns.
        unsafe {
            if let Some(numbers) = self.elements::<f64>(index, TypedarrayType::float64_array) {
                #[allow(clippy::float_cmp)] // Exactly equal is what "whole" means.
                let whole = |&number: &f64| number as u64 as f64 == number;
                // Not collected into an `Option`, which grows as it goes: 10 allocations for 1024.
                let all = numbers.iter().all(whole);
                return all.then(|| numbers.iter().map(|&number| number as u64).collect());
            }
            if let Some(numbers) = self.elements::<u64>(index, TypedarrayType::biguint64_array) {
                return Some(numbers.to_vec());
            }
            let numbers = self.elements::<i64>(index, TypedarrayType::bigint64_array)?;
            let all = numbers.iter().all(|&number| number >= 0);
            all.then(|| numbers.iter().map(|&number| number as u64).collect())
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
