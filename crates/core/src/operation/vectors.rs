//! Vectored reads and writes: an array of ranges of chunks, which the operation holds each, and the
//! iovecs over them, which `in_flight` owns.

use io_uring::opcode;
use io_uring::squeue::Entry;

use super::prepare::{file_offset, hold_file, on};
use super::{Opcode, Refusal, Request, TRANSFER_BYTES_MAX};
use crate::arena::{Arena, ChunkId};
use crate::files::Files;
use crate::in_flight::{Held, Payload};

/// Most vectors of one operation: the kernel's UIO_MAXIOV. `readv(2)`.
pub const VECTORS_MAX: usize = 1024;
/// Bytes of a vector as it is staged: three `f64`.
const VECTOR_BYTES: usize = 24;

/// The entry of a vectored read or write, with a hold on each of its chunks, and what of it the thread that
/// submits it may copy.
pub(super) fn vectored(
    request: &Request,
    opcode: Opcode,
    held: &mut Held,
    arena: &mut Arena,
    files: &mut Files,
) -> Result<(Entry, u32), Refusal> {
    let position = file_offset(request.position)?;
    let modifiers = request.modifiers();
    let count = request.bytes.len() / VECTOR_BYTES;
    if count == 0 || count > VECTORS_MAX || !request.bytes.len().is_multiple_of(VECTOR_BYTES) {
        return Err(Refusal::Argument);
    }
    let (target, kind) = hold_file(request, held, files)?;
    let position = kind.position(position);
    let mut chunks = Vec::with_capacity(count);
    let iovecs = iovecs_over(request.bytes, &mut chunks, arena);
    let ((iovecs, bytes), refused) = match iovecs {
        Ok(iovecs) => (iovecs, None),
        Err(refusal) => ((Vec::new(), 0), Some(refusal)),
    };
    let (pointer, count) = (iovecs.as_ptr(), iovecs.len() as u32);
    // Kept before anything is refused, so that what is held already is let go with it.
    held.keep(Payload::Vectors { chunks, _iovecs: iovecs });
    if let Some(refusal) = refused {
        return Err(refusal);
    }
    let copied_inline = opcode == Opcode::Readv && !kind.is_direct();
    let entry = kind.apart(on(target, |fd| {
        if opcode == Opcode::Readv {
            opcode::Readv::new(fd, pointer, count).offset(position).rw_flags(modifiers).build()
        } else {
            opcode::Writev::new(fd, pointer, count).offset(position).rw_flags(modifiers).build()
        }
    }));
    Ok((entry, if copied_inline { bytes } else { 0 }))
}

/// One iovec for each vector, and their bytes. `chunks` has those that are held, also after a refusal.
fn iovecs_over(
    bytes: &[u8],
    chunks: &mut Vec<ChunkId>,
    arena: &mut Arena,
) -> Result<(Vec<libc::iovec>, u32), Refusal> {
    let mut iovecs = Vec::with_capacity(bytes.len() / VECTOR_BYTES);
    let mut total = 0;
    for vector in bytes.chunks_exact(VECTOR_BYTES) {
        let (chunk, offset, length) = (whole(vector, 0)?, whole(vector, 1)?, whole(vector, 2)?);
        total += length;
        if length > TRANSFER_BYTES_MAX || total > TRANSFER_BYTES_MAX {
            return Err(Refusal::Argument);
        }
        let id = ChunkId::from_number(chunk);
        let address = arena.hold(id, offset as usize, length as usize)?;
        chunks.push(id);
        let (iov_base, iov_len) = (address.as_ptr().cast(), address.len());
        iovecs.push(libc::iovec { iov_base, iov_len });
    }
    Ok((iovecs, total as u32))
}

/// The number at this place of a vector, which has no fraction and is below 2^53.
#[allow(clippy::float_cmp)] // Exactly equal is what "no fraction" means.
fn whole(vector: &[u8], place: usize) -> Result<u64, Refusal> {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&vector[place * 8..][..8]);
    let number = f64::from_ne_bytes(bytes);
    let whole = number as u64;
    let exact = whole as f64 == number && number < 9_007_199_254_740_992.0;
    if exact { Ok(whole) } else { Err(Refusal::Argument) }
}
