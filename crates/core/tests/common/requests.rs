//! Requests by the names of their operations.

use std::time::Duration;

use node_uring_core::engine::ManyRequest;
use node_uring_core::in_flight::Lengths;
use node_uring_core::operation::{ASYNC, DRAIN, HARDLINK, LINK, MODIFIER_SHIFT, QUIET};
use node_uring_core::{ChunkId, FileHandle, Opcode, Refusal, Request};

pub fn nop(slot: u32) -> Request<'static> {
    Request { opcode: Opcode::Nop as u32, slot, ..Request::default() }
}

fn transfer(
    opcode: Opcode,
    slot: u32,
    file: FileHandle,
    chunk: ChunkId,
    (offset, length): (u64, u64),
    position: u64,
) -> Request<'static> {
    let (file, chunk) = (file.number(), chunk.number());
    let opcode = opcode as u32;
    Request { opcode, slot, file, chunk, offset, length, position, ..Request::default() }
}

/// Reads `range` (offset, length) of the chunk from `position`.
pub fn read(
    slot: u32,
    file: FileHandle,
    chunk: ChunkId,
    range: (u64, u64),
    position: u64,
) -> Request<'static> {
    transfer(Opcode::Read, slot, file, chunk, range, position)
}

/// Writes `range` (offset, length) of the chunk to `position`.
pub fn write(
    slot: u32,
    file: FileHandle,
    chunk: ChunkId,
    range: (u64, u64),
    position: u64,
) -> Request<'static> {
    transfer(Opcode::Write, slot, file, chunk, range, position)
}

pub fn fsync(slot: u32, file: FileHandle) -> Request<'static> {
    let file = file.number();
    Request { opcode: Opcode::Fsync as u32, slot, file, ..Request::default() }
}

pub fn datasync(slot: u32, file: FileHandle) -> Request<'static> {
    Request { length: 1, ..fsync(slot, file) }
}

pub fn truncate(slot: u32, file: FileHandle, position: u64) -> Request<'static> {
    Request { opcode: Opcode::Ftruncate as u32, position, ..fsync(slot, file) }
}

pub fn close(slot: u32, file: FileHandle) -> Request<'static> {
    Request { opcode: Opcode::Close as u32, ..fsync(slot, file) }
}

pub fn open(slot: u32, path: &[u8], flags: i32, mode: u32) -> Request<'_> {
    let (offset, length) = (flags as u64, u64::from(mode));
    let opcode = Opcode::Openat as u32;
    Request { opcode, slot, offset, length, bytes: path, ..Request::default() }
}

pub fn stat_path(slot: u32, path: &[u8]) -> Request<'_> {
    let length = u64::from(libc::STATX_BASIC_STATS);
    let opcode = Opcode::Statx as u32;
    Request { opcode, slot, length, bytes: path, ..Request::default() }
}

pub fn stat(slot: u32, file: FileHandle) -> Request<'static> {
    Request { file: file.number(), ..stat_path(slot, b"") }
}

pub fn timeout(slot: u32, duration: Duration) -> Request<'static> {
    let position = duration.as_nanos() as u64;
    Request { opcode: Opcode::Timeout as u32, slot, position, ..Request::default() }
}

/// The next request is linked behind this one.
pub fn link(request: Request<'_>) -> Request<'_> {
    Request { opcode: request.opcode | LINK, ..request }
}

/// The next request is linked behind this one, whatever comes of it.
pub fn hardlink(request: Request<'_>) -> Request<'_> {
    Request { opcode: request.opcode | HARDLINK, ..request }
}

/// Sent to a kernel worker at once.
pub fn punted(request: Request<'_>) -> Request<'_> {
    Request { opcode: request.opcode | ASYNC, ..request }
}

/// Starts when all staged before is complete; what is staged later waits for it.
pub fn drain(request: Request<'_>) -> Request<'_> {
    Request { opcode: request.opcode | DRAIN, ..request }
}

/// Keeps no loop alive, and goes before all others.
pub fn quiet(request: Request<'_>) -> Request<'_> {
    Request { opcode: request.opcode | QUIET, ..request }
}

/// Bounds what is linked before it.
pub fn link_timeout(slot: u32, duration: Duration) -> Request<'static> {
    Request { opcode: Opcode::LinkTimeout as u32, ..timeout(slot, duration) }
}

pub fn unlink(slot: u32, path: &[u8]) -> Request<'_> {
    Request { opcode: Opcode::Unlinkat as u32, slot, bytes: path, ..Request::default() }
}

/// `paths` are both paths, one after the other; the first has `length` bytes.
pub fn rename(slot: u32, paths: &[u8], length: usize) -> Request<'_> {
    let (opcode, length) = (Opcode::Renameat as u32, length as u64);
    Request { opcode, slot, length, bytes: paths, ..Request::default() }
}

pub fn many_nops(slot: u32, count: usize) -> ManyRequest {
    let lengths = Lengths::All(0);
    let opcode = Opcode::Nop as u32;
    let positions = Vec::new();
    ManyRequest {
        opcode,
        slot,
        file: 0,
        chunk: 0,
        offset: 0,
        count,
        lengths,
        positions,
        fill: false,
    }
}

/// Reads of `length` bytes each into the chunk, one after the other.
pub fn many_reads(
    slot: u32,
    file: FileHandle,
    chunk: ChunkId,
    length: u32,
    positions: &[u64],
) -> ManyRequest {
    ManyRequest {
        opcode: Opcode::Read as u32,
        file: file.number(),
        chunk: chunk.number(),
        lengths: Lengths::All(length),
        positions: positions.to_vec(),
        fill: true,
        ..many_nops(slot, positions.len())
    }
}

/// Every refusal, so that a test can say which it met.
pub const REFUSALS: [Refusal; 13] = [
    Refusal::Closed,
    Refusal::Failed,
    Refusal::SlotBusy,
    Refusal::SlotRange,
    Refusal::UnknownOpcode,
    Refusal::UnknownFile,
    Refusal::FileInFlight,
    Refusal::UnknownChunk,
    Refusal::Range,
    Refusal::Argument,
    Refusal::Path,
    Refusal::ChainTooLong,
    Refusal::Credentials,
];

/// An operation on a file with these numbers.
pub fn on_file(
    opcode: Opcode,
    slot: u32,
    file: FileHandle,
    [offset, length, position]: [u64; 3],
) -> Request<'static> {
    let (opcode, file) = (opcode as u32, file.number());
    Request { opcode, slot, file, offset, length, position, ..Request::default() }
}

/// An operation on a path, or on two of which the first has `length` bytes.
pub fn on_path(opcode: Opcode, slot: u32, bytes: &[u8], offset: u64, length: u64) -> Request<'_> {
    Request { opcode: opcode as u32, slot, bytes, offset, length, ..Request::default() }
}

/// The bytes of vectors: each a chunk, an offset and a length.
pub fn vectors(ranges: &[(ChunkId, u64, u64)]) -> Vec<u8> {
    let numbers = ranges
        .iter()
        .flat_map(|&(chunk, offset, length)| [chunk.number() as f64, offset as f64, length as f64]);
    numbers.flat_map(f64::to_ne_bytes).collect()
}

/// A vectored read or write.
pub fn vectored(
    opcode: Opcode,
    slot: u32,
    file: FileHandle,
    bytes: &[u8],
    position: u64,
) -> Request<'_> {
    let (opcode, file) = (opcode as u32, file.number());
    Request { opcode, slot, file, bytes, position, ..Request::default() }
}

/// With flags of the system call itself.
pub fn modified(request: Request<'_>, modifiers: i32) -> Request<'_> {
    Request { opcode: request.opcode | (modifiers as u32) << MODIFIER_SHIFT, ..request }
}

/// Posts `value` to the engine whose ring has this descriptor.
pub fn post(slot: u32, descriptor: i32, value: i32) -> Request<'static> {
    let (offset, length) = (descriptor as u64, u64::from(value as u32));
    Request { opcode: Opcode::MsgRing as u32, slot, offset, length, ..Request::default() }
}
