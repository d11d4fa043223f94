//! From what JavaScript stages to an SQE: one row an operation, and every check that keeps the
//! kernel inside the arena and the file table.
//!
//! TypeScript validates first and says it better; what is refused here is a mistake of ours or an
//! attack. Adding an operation is a row in [`Opcode`], in [`KERNEL_OPCODES`] and in `calls.rs`.

mod calls;
mod prepare;
mod vectors;

use io_uring::opcode;
use io_uring::squeue::Flags;

use crate::arena::BadChunk;
use crate::files::BadFile;
use crate::in_flight::Held;

pub use prepare::prepare;
pub(crate) use prepare::{file_offset, fixed_slab, transfer_entry};

/// Most bytes that one read or write moves: the kernel's MAX_RW_COUNT, 2 GiB - 4 KiB. `read(2)`.
pub const TRANSFER_BYTES_MAX: u64 = 0x7fff_f000;
/// Bytes of `struct statx`. `statx(2)`.
pub const STATX_BYTES: usize = 256;

/// What can be staged. The numbers are the binding's; `src/operations.ts` has the same list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// Nothing, there and back (5.1).
    Nop = 0,
    /// `pread(2)` into `chunk[offset, offset + length)` from `position`; READ_FIXED where it helps (5.6).
    Read = 1,
    /// `pwrite(2)` from `chunk[offset, offset + length)` to `position`; WRITE_FIXED where it helps (5.6).
    Write = 2,
    /// `fsync(2)`; `length` 1 asks for `fdatasync(2)` (5.1).
    Fsync = 3,
    /// `ftruncate(2)` to `position` bytes (6.9).
    Ftruncate = 4,
    /// `openat(2)` of the path in `bytes` with flags `offset` and mode `length`, from the directory
    /// `file` if there is one; `openat2(2)` with the resolve flags `position` unless they are 0 (5.6).
    Openat = 5,
    /// `close(2)`: takes the file out of the table (5.6).
    Close = 6,
    /// `statx(2)` of the file, or of the path in `bytes`; `length` is the mask, `offset` the flags (5.6).
    Statx = 7,
    /// A timeout of `position` nanoseconds; completes with ETIME, or with 0 when `length` other
    /// operations have completed first, if `length` is not 0 (5.4). `offset` has flags:
    /// [`TIMEOUT_ABSOLUTE`], [`TIMEOUT_SUCCEEDS`].
    Timeout = 8,
    /// Bounds the operation that is linked before it to `position` nanoseconds (5.5). `offset` as
    /// for a timeout.
    LinkTimeout = 9,
    /// `renameat2(2)` of the path in the first `length` of `bytes` to the path in the rest, with
    /// flags `offset` (5.11).
    Renameat = 10,
    /// `unlinkat(2)` of the path in `bytes` with flags `offset` (5.11).
    Unlinkat = 11,
    /// `fallocate(2)` of `length` bytes from `position` with mode `offset` (5.6).
    Fallocate = 12,
    /// `posix_fadvise(2)` on `length` bytes from `position` with advice `offset` (5.6).
    Fadvise = 13,
    /// `sync_file_range(2)` of `length` bytes from `position` with flags `offset` (5.2).
    SyncFileRange = 14,
    /// `linkat(2)`: the path in the first `length` of `bytes` gets the one in the rest, too, with flags
    /// `offset` (5.15).
    Linkat = 15,
    /// `symlinkat(2)`: the path in the rest of `bytes` leads to what is in the first `length` (5.15).
    Symlinkat = 16,
    /// `mkdirat(2)` of the path in `bytes` with mode `length` (5.15).
    Mkdirat = 17,
    /// `splice(2)` of `length` bytes to the file from the one whose handle is `chunk`; `offset` says
    /// whose is `position`: [`SPLICE_FROM`], [`SPLICE_TO`], or neither's (5.7).
    Splice = 18,
    /// `poll(2)` for the events `offset`, once; completes with those that are there (5.1).
    PollAdd = 19,
    /// `send(2)` of `chunk[offset, offset + length)` (5.6).
    Send = 20,
    /// `recv(2)` into `chunk[offset, offset + length)`; modifiers are MSG_PEEK and MSG_WAITALL (5.6).
    Recv = 21,
    /// `preadv2(2)` from `position` into the [`vectors`](Request::bytes) in `bytes` (5.1).
    Readv = 22,
    /// `pwritev2(2)` to `position` from the vectors in `bytes` (5.1).
    Writev = 23,
    /// Puts the lower 32 bits of `length`, as they are, into the completion queue of another engine of
    /// this process, whose ring's descriptor is `offset` (5.18). EBADFD where that is none of ours.
    MsgRing = 24,
}

/// Flag of a timeout: it ends at `position` nanoseconds of CLOCK_MONOTONIC, not after as many.
pub const TIMEOUT_ABSOLUTE: u64 = 1;
/// Flag of a timeout: that its time comes does not break a chain (5.16; left out before).
pub const TIMEOUT_SUCCEEDS: u64 = 2;

/// Of a splice: `position` is in the file that it reads from, or in the one that it writes to.
pub const SPLICE_FROM: u64 = 1;
/// See [`SPLICE_FROM`].
pub const SPLICE_TO: u64 = 2;

/// Each operation's name, and the kernel's code for the probe.
pub const KERNEL_OPCODES: &[(&str, u8)] = &[
    ("nop", opcode::Nop::CODE),
    ("read", opcode::Read::CODE),
    ("write", opcode::Write::CODE),
    ("read_fixed", opcode::ReadFixed::CODE),
    ("write_fixed", opcode::WriteFixed::CODE),
    ("fsync", opcode::Fsync::CODE),
    ("ftruncate", opcode::Ftruncate::CODE),
    ("openat", opcode::OpenAt::CODE),
    ("close", opcode::Close::CODE),
    ("statx", opcode::Statx::CODE),
    ("timeout", opcode::Timeout::CODE),
    ("link_timeout", opcode::LinkTimeout::CODE),
    ("renameat", opcode::RenameAt::CODE),
    ("unlinkat", opcode::UnlinkAt::CODE),
    ("openat2", opcode::OpenAt2::CODE),
    ("fallocate", opcode::Fallocate::CODE),
    ("fadvise", opcode::Fadvise::CODE),
    ("sync_file_range", opcode::SyncFileRange::CODE),
    ("linkat", opcode::LinkAt::CODE),
    ("symlinkat", opcode::SymlinkAt::CODE),
    ("mkdirat", opcode::MkDirAt::CODE),
    ("splice", opcode::Splice::CODE),
    ("poll_add", opcode::PollAdd::CODE),
    ("send", opcode::Send::CODE),
    ("recv", opcode::Recv::CODE),
    ("readv", opcode::Readv::CODE),
    ("writev", opcode::Writev::CODE),
    ("msg_ring", opcode::MsgRingData::CODE),
    ("async_cancel", opcode::AsyncCancel::CODE),
];

impl Opcode {
    const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Nop,
            1 => Self::Read,
            2 => Self::Write,
            3 => Self::Fsync,
            4 => Self::Ftruncate,
            5 => Self::Openat,
            6 => Self::Close,
            7 => Self::Statx,
            8 => Self::Timeout,
            9 => Self::LinkTimeout,
            10 => Self::Renameat,
            11 => Self::Unlinkat,
            12 => Self::Fallocate,
            13 => Self::Fadvise,
            14 => Self::SyncFileRange,
            15 => Self::Linkat,
            16 => Self::Symlinkat,
            17 => Self::Mkdirat,
            18 => Self::Splice,
            19 => Self::PollAdd,
            20 => Self::Send,
            21 => Self::Recv,
            22 => Self::Readv,
            23 => Self::Writev,
            24 => Self::MsgRing,
            _ => return None,
        })
    }

    /// Flags of the system call itself that may be asked for: `preadv2(2)`, `recv(2)`.
    const fn modifiers(self) -> i32 {
        match self {
            Self::Read | Self::Readv => libc::RWF_NOWAIT | RWF_DONTCACHE,
            Self::Write | Self::Writev => {
                libc::RWF_DSYNC | libc::RWF_NOWAIT | libc::RWF_APPEND | RWF_DONTCACHE
            }
            Self::Recv => libc::MSG_PEEK | libc::MSG_WAITALL,
            _ => 0,
        }
    }
}

/// Why something was not staged. The numbers are the binding's; `src/backend.ts` has the same list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Refusal {
    /// The engine was closed.
    Closed = 1,
    /// enter failed for good; the engine takes nothing more.
    Failed = 2,
    /// The slot's operation is not complete.
    SlotBusy = 3,
    /// The slot's number is past the table's limit.
    SlotRange = 4,
    /// No such operation, or unknown flags.
    UnknownOpcode = 5,
    /// The handle names no open file.
    UnknownFile = 6,
    /// The file still has operations in flight.
    FileInFlight = 7,
    /// The chunk is nobody's, or was given back.
    UnknownChunk = 8,
    /// The range leaves the chunk.
    Range = 9,
    /// A position, length or flag the kernel would misread.
    Argument = 10,
    /// The bytes are no path.
    Path = 11,
    /// The chain is longer than the submission queue, or than a polling thread takes whole.
    ChainTooLong = 12,
    /// The process is another user or group than the one that the polling thread opens files as.
    Credentials = 13,
    /// The process has no descriptor left that the operation needs.
    Descriptors = 14,
}

impl From<BadChunk> for Refusal {
    fn from(bad: BadChunk) -> Self {
        match bad {
            BadChunk::Unknown => Self::UnknownChunk,
            BadChunk::Range => Self::Range,
            BadChunk::InFlight => Self::SlotBusy,
        }
    }
}

impl From<BadFile> for Refusal {
    fn from(bad: BadFile) -> Self {
        match bad {
            BadFile::InFlight => Self::FileInFlight,
            BadFile::Unknown | BadFile::Twice | BadFile::Full => Self::UnknownFile,
        }
    }
}

/// Flag beside the opcode: the next operation starts only when this one has succeeded
/// (IOSQE_IO_LINK). A short read or write counts as failed.
pub const LINK: u32 = 1 << 8;
/// Flag beside the opcode: the next operation starts when this one has ended (IOSQE_IO_HARDLINK).
pub const HARDLINK: u32 = 1 << 9;
/// Flag beside the opcode: starts when all that was staged before has completed; what is staged
/// later starts when it has (with its whole chain, where it begins one). As IOSQE_IO_DRAIN, but the
/// engine itself waits: behind the kernel's flag a cancel would wait for what it is to cancel.
pub const DRAIN: u32 = 1 << 10;
/// Flag beside the opcode: goes to a kernel worker at once (IOSQE_ASYNC).
pub const ASYNC: u32 = 1 << 11;
/// Flag beside the opcode: does not keep the event loop alive, goes before everything staged and
/// waits for no drain. For the engine's user to watch over other operations with a timeout.
pub const QUIET: u32 = 1 << 12;
/// Modifiers beside the opcode, from this bit on: flags of the system call itself, RWF_ of a read or a
/// write, MSG_ of a recv. A kernel or file that cannot do it says EOPNOTSUPP.
pub const MODIFIER_SHIFT: u32 = 16;
const MODIFIERS: u32 = 0x7fff << MODIFIER_SHIFT;
const KNOWN_FLAGS: u32 = LINK | HARDLINK | DRAIN | ASYNC | QUIET | MODIFIERS;
/// Reads and writes leave nothing in the page cache (6.14). `libc` does not know it yet.
const RWF_DONTCACHE: i32 = 0x80;

/// One operation as it is staged. What each number means is said by its [`Opcode`]; 0 for `file` and
/// `chunk` names none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// [`Opcode`] with flags ([`LINK`] …).
    pub opcode: u32,
    /// Where the completion goes.
    pub slot: u32,
    /// [`FileHandle`].
    pub file: u64,
    /// [`ChunkId`].
    pub chunk: u64,
    /// Bytes into the chunk.
    pub offset: u64,
    /// Bytes to move.
    pub length: u64,
    /// Bytes into the file.
    pub position: u64,
    /// A path, copied before the call returns; of a vectored operation three native `f64` for each
    /// vector: chunk, offset, length, none of which is read as anything but a whole number.
    pub bytes: &'a [u8],
}

impl Request<'_> {
    /// Flags for the system call itself, which [`decode`] has checked.
    #[inline]
    pub(crate) const fn modifiers(&self) -> i32 {
        ((self.opcode & MODIFIERS) >> MODIFIER_SHIFT) as i32
    }
}

/// An operation that passed the checks, beside its SQE: what it holds, and what the engine has to know
/// to publish it.
pub struct Prepared {
    pub(crate) held: Held,
    /// Its flags: [`LINK`] …
    pub(crate) flags: u32,
    /// Bytes that the submitting thread would copy for it inside enter; 0 when it would not.
    pub(crate) inline_bytes: u32,
}

/// Splits the opcode's number from its flags.
///
/// # Errors
/// [`Refusal::UnknownOpcode`].
#[inline]
pub fn decode(number: u32) -> Result<(Opcode, u32), Refusal> {
    let opcode = Opcode::from_number(number & 0xff).ok_or(Refusal::UnknownOpcode)?;
    let flags = number & !0xff;
    if flags == 0 {
        return Ok((opcode, 0));
    }
    let modifiers = (flags & MODIFIERS) >> MODIFIER_SHIFT;
    if modifiers as i32 & !opcode.modifiers() != 0 {
        return Err(Refusal::Argument);
    }
    // A quiet operation overtakes others, so it can be in no chain and no order.
    let in_order = flags & (LINK | HARDLINK | DRAIN) != 0;
    if flags & !KNOWN_FLAGS != 0 || (flags & QUIET != 0 && in_order) {
        return Err(Refusal::UnknownOpcode);
    }
    Ok((opcode, flags))
}

pub(crate) fn sqe_flags(flags: u32) -> Flags {
    let mut sqe = Flags::empty();
    for (ours, theirs) in
        [(LINK, Flags::IO_LINK), (HARDLINK, Flags::IO_HARDLINK), (ASYNC, Flags::ASYNC)]
    {
        if flags & ours != 0 {
            sqe |= theirs;
        }
    }
    sqe
}
