//! The arguments of a raw call, each looked up as what it should be, and its answer.

use std::ffi::c_void;
use std::{ptr, slice};

use napi::sys;
use node_uring_core::{Engine, Refusal};

use crate::event_loop::Shared;

/// The arguments of a raw call.
pub(super) struct Call<'a, const N: usize> {
    pub(super) env: sys::napi_env,
    arguments: [sys::napi_value; N],
    pub(super) shared: &'a Shared,
}

impl<const N: usize> Call<'_, N> {
    /// # Safety
    /// Called at the start of a function made by [`functions`], with its own parameters.
    #[inline]
    pub(super) unsafe fn read(env: sys::napi_env, info: sys::napi_callback_info) -> Option<Self> {
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
    pub(super) fn integer(&self, index: usize) -> Option<u64> {
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
    pub(super) fn small(&self, index: usize) -> Option<u32> {
        let mut number = 0;
        // SAFETY: the out-pointer is a local; any value may be asked.
        let status =
            unsafe { sys::napi_get_value_uint32(self.env, self.arguments[index], &raw mut number) };
        (status == sys::Status::napi_ok).then_some(number)
    }

    /// The bytes of a `Uint8Array` argument right now, or `None` when it is none. A detached or
    /// shrunk one has fewer bytes than it had.
    #[inline]
    pub(super) fn memory(&self, index: usize) -> Option<(*mut u8, usize)> {
        let (kind, data, bytes) = self.typed_array(index)?;
        (kind == sys::TypedarrayType::uint8_array).then_some((data.cast(), bytes))
    }

    /// The kind, the memory and the number of elements of a typed array argument right now, or `None`
    /// when it is none.
    #[inline]
    pub(super) fn typed_array(&self, index: usize) -> Option<(i32, *mut c_void, usize)> {
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

    /// The elements of a typed array argument of this kind; empty for a detached one.
    ///
    /// # Safety
    /// `T` is the element of `kind`. The result is not used after JavaScript has run again.
    pub(super) unsafe fn elements<T>(&self, index: usize, kind: i32) -> Option<&[T]> {
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

    /// `length` bytes of a `Uint8Array` argument from `offset`, or `None` when it has not got them.
    #[inline]
    pub(super) fn range(&self, index: usize, offset: u64, length: u64) -> Option<*mut u8> {
        let (data, bytes) = self.memory(index)?;
        let end = offset.checked_add(length)?;
        if end > bytes as u64 {
            return None;
        }
        // SAFETY: offset <= bytes, so the result is inside the array's memory or one past its end.
        Some(unsafe { data.add(offset as usize) })
    }

    pub(super) fn is_array_buffer(&self, index: usize) -> bool {
        let mut is = false;
        // SAFETY: the out-pointer is a local; any value may be asked.
        unsafe { sys::napi_is_arraybuffer(self.env, self.arguments[index], &raw mut is) };
        is
    }

    pub(super) fn detach(&self, index: usize) -> bool {
        // SAFETY: the argument is an ArrayBuffer. Its memory is the arena's, which stays.
        let status = unsafe { sys::napi_detach_arraybuffer(self.env, self.arguments[index]) };
        status == sys::Status::napi_ok
    }

    pub(super) fn number(&self, number: f64) -> sys::napi_value {
        let mut value = ptr::null_mut();
        // SAFETY: the out-pointer is a local.
        unsafe { sys::napi_create_double(self.env, number, &raw mut value) };
        value
    }

    /// `undefined` for done, the refusal's number otherwise.
    #[inline]
    pub(super) fn answer(&self, outcome: Result<(), i32>) -> sys::napi_value {
        match outcome {
            Ok(()) => ptr::null_mut(),
            Err(code) => self.number(f64::from(code)),
        }
    }

    pub(super) fn with_engine<T>(
        &self,
        work: impl FnOnce(&mut Engine) -> Result<T, i32>,
    ) -> Result<T, i32> {
        match self.shared.engine.borrow_mut().as_mut() {
            Some(engine) => work(engine),
            None => Err(Refusal::Closed as i32),
        }
    }
}
