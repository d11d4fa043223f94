//! Copies between an arena and memory of JavaScript.

use super::PAGE_BYTES;

/// Destinations fewer than so many bytes past the source, page by page, are copied to by vectors.
const NEAR_BYTES: usize = 64;

/// Copies bytes, as `memcpy(3)` does, but for destinations that begin a little behind the source within their
/// page: there the `rep movsb` and `rep movsq` that C libraries have for longer copies are up to 17 times
/// slower on AMD's Zen 3 and 4 (glibc bug 30994; 64 KiB took 22 µs in place of 1.3). That is where an array
/// of V8 is beside a chunk: chunks begin with a page, and what `malloc(3)` maps 16 bytes into one.
///
/// # Safety
/// `source` can be read and `target` written for `length_bytes`, and they do not overlap.
#[inline]
pub unsafe fn copy(source: *const u8, target: *mut u8, length_bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    let done = match (target as usize).wrapping_sub(source as usize) % PAGE_BYTES {
        // SAFETY: the caller's.
        0..NEAR_BYTES => unsafe { by_vectors(source, target, length_bytes) },
        _ => 0,
    };
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    // SAFETY: the caller's; what is done is not past the end.
    unsafe { source.add(done).copy_to_nonoverlapping(target.add(done), length_bytes - done) };
}

/// Copies all but the last bytes, fewer than 64; how many it has copied. On its own, or the compiler would
/// see that the two do not overlap and make a memcpy of it.
///
/// # Safety
/// As [`copy`].
#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[allow(clippy::cast_ptr_alignment)] // `loadu` and `storeu` take any.
unsafe fn by_vectors(source: *const u8, target: *mut u8, length_bytes: usize) -> usize {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_storeu_si128};
    let mut done = 0;
    while length_bytes - done >= 64 {
        // SAFETY: the caller's; 64 bytes from here on are within the length. SSE2 is part of x86-64.
        unsafe {
            let (from, to) =
                (source.add(done).cast::<__m128i>(), target.add(done).cast::<__m128i>());
            let four = [0, 1, 2, 3].map(|at| _mm_loadu_si128(from.add(at)));
            for (at, vector) in four.into_iter().enumerate() {
                _mm_storeu_si128(to.add(at), vector);
            }
        }
        done += 64;
    }
    done
}
