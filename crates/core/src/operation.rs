//! From what JavaScript stages to an SQE: one row an operation, and every check that keeps the
//! kernel inside the arena and the file table.
//!
//! TypeScript validates first and says it better; what is refused here is a mistake of ours or an
//! attack. Adding an operation is a row in [`Opcode`], in [`KERNEL_OPCODES`] and in [`prepare`].

use std::ffi::CString;

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{self, Timespec};
use io_uring::{opcode, squeue};

use crate::arena::{Arena, BadChunk, ChunkId, Registration};
use crate::files::{BadFile, FileHandle, Files, Target};
use crate::in_flight::{Held, Payload};

/// Most bytes that one read or write moves: the kernel's MAX_RW_COUNT, 2 GiB - 4 KiB. `read(2)`.
pub const TRANSFER_BYTES_MAX: u64 = 0x7fff_f000;
/// Bytes of `struct statx`. `statx(2)`.
pub const STATX_BYTES: usize = 256;
/// Bytes of a path with its NUL. `path_resolution(7)`.
const PATH_BYTES_MAX: usize = 4096;

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
    /// `openat(2)` of the path in `bytes` with flags `offset` and mode `length` (5.6).
    Openat = 5,
    /// `close(2)`: takes the file out of the table (5.6).
    Close = 6,
    /// `statx(2)` of the file, or of the path in `bytes`; `length` is the mask (5.6).
    Statx = 7,
    /// A timeout of `position` nanoseconds; completes with ETIME (5.4).
    Timeout = 8,
}

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
            _ => return None,
        })
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
/// Flag beside the opcode: goes to a kernel worker at once (IOSQE_ASYNC).
pub const ASYNC: u32 = 1 << 11;
/// IOSQE_IO_DRAIN is not among them: a cancel would wait behind it for what it is to cancel.
const KNOWN_FLAGS: u32 = LINK | HARDLINK | ASYNC;

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
    /// A path, copied before the call returns.
    pub bytes: &'a [u8],
}

/// An operation that passed the checks: its SQE without user_data, what it holds, and what the
/// engine has to know to publish it.
pub struct Prepared {
    pub(crate) entry: Entry,
    pub(crate) held: Held,
    /// Whether the chain goes on behind it.
    pub(crate) linked: bool,
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
    if flags & !KNOWN_FLAGS == 0 { Ok((opcode, flags)) } else { Err(Refusal::UnknownOpcode) }
}

/// Checks a request, takes hold of what it touches, and makes its SQE. Holds nothing when it fails.
///
/// `closing` is the descriptor of a [`Opcode::Close`], which the engine has taken out of the table.
///
/// # Errors
/// [`Refusal`].
///
/// # Panics
/// For a close, which the engine prepares itself.
#[inline(always)]
#[allow(clippy::inline_always)] // Or the SQE is moved through memory twice: 15 ns of a nop.
pub fn prepare(
    request: &Request,
    opcode: Opcode,
    flags: u32,
    arena: &mut Arena,
    files: &mut Files,
) -> Result<Prepared, Refusal> {
    let mut held = Held::default();
    let mut inline_bytes = 0;
    let entry = match opcode {
        Opcode::Nop => opcode::Nop::new().build(),
        Opcode::Read | Opcode::Write => {
            let (entry, bytes) = transfer(request, opcode, &mut held, arena, files)?;
            inline_bytes = bytes;
            entry
        }
        Opcode::Fsync => {
            let datasync = match request.length {
                0 => types::FsyncFlags::empty(),
                1 => types::FsyncFlags::DATASYNC,
                _ => return Err(Refusal::Argument),
            };
            let target = hold_file(request, &mut held, files)?.0;
            on(target, |fd| opcode::Fsync::new(fd).flags(datasync).build())
        }
        Opcode::Ftruncate => {
            let length = file_offset(request.position)?;
            let target = hold_file(request, &mut held, files)?.0;
            on(target, |fd| opcode::Ftruncate::new(fd, length).build())
        }
        Opcode::Openat => {
            let flags = u32::try_from(request.offset).map_err(|_| Refusal::Argument)? as i32;
            let mode = u32::try_from(request.length).map_err(|_| Refusal::Argument)?;
            let path = path(request.bytes)?;
            let entry = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr())
                .flags(flags | libc::O_CLOEXEC)
                .mode(mode & 0o7777)
                .build()
                // By a worker: an open tried at once is tried with O_NONBLOCK, which opens a FIFO
                // without waiting for its other side, or refuses it with ENXIO. fifo(7).
                .flags(Flags::ASYNC);
            held.keep(Payload::Opening { path, direct: flags & libc::O_DIRECT != 0 });
            entry
        }
        Opcode::Statx => statx(request, &mut held, files)?,
        Opcode::Timeout => {
            let nanoseconds = file_offset(request.position)?;
            let timespec = Timespec::new()
                .sec(nanoseconds / 1_000_000_000)
                .nsec((nanoseconds % 1_000_000_000) as u32);
            let timespec = Box::new(timespec);
            let entry = opcode::Timeout::new(&raw const *timespec).build();
            held.keep(Payload::Timeout { _duration: timespec });
            entry
        }
        Opcode::Close => unreachable!("the engine prepares a close, which changes the file table"),
    };
    Ok(Prepared {
        entry: if flags == 0 { entry } else { entry.flags(sqe_flags(flags)) },
        held,
        linked: flags & (LINK | HARDLINK) != 0,
        inline_bytes,
    })
}

fn transfer(
    request: &Request,
    opcode: Opcode,
    held: &mut Held,
    arena: &mut Arena,
    files: &mut Files,
) -> Result<(Entry, u32), Refusal> {
    if request.length > TRANSFER_BYTES_MAX {
        return Err(Refusal::Argument);
    }
    let position = file_offset(request.position)?;
    let (target, direct) = hold_file(request, held, files)?;
    let id = ChunkId::from_number(request.chunk);
    let address = match arena.hold(id, request.offset as usize, request.length as usize) {
        Ok(address) => address,
        Err(bad) => {
            files.unhold(FileHandle::from_number(request.file));
            held.file = None;
            return Err(bad.into());
        }
    };
    held.chunk = Some(id);
    let (pointer, length) = (address.as_ptr(), request.length as u32);
    // Pinned pages save 15-23% of the CPU of an O_DIRECT operation and nothing of a cached one.
    let fixed = match arena.slab(id) {
        Ok((number, _, Registration::Registered)) if direct => Some(number as u16),
        _ => None,
    };
    let entry = on(target, |fd| match (opcode, fixed) {
        (Opcode::Read, None) => opcode::Read::new(fd, pointer, length).offset(position).build(),
        (Opcode::Read, Some(slab)) => {
            opcode::ReadFixed::new(fd, pointer, length, slab).offset(position).build()
        }
        (_, None) => opcode::Write::new(fd, pointer, length).offset(position).build(),
        (_, Some(slab)) => {
            opcode::WriteFixed::new(fd, pointer, length, slab).offset(position).build()
        }
    });
    let copied_inline = opcode == Opcode::Read && !direct;
    Ok((entry, if copied_inline { length } else { 0 }))
}

fn statx(request: &Request, held: &mut Held, files: &mut Files) -> Result<Entry, Refusal> {
    let mask = u32::try_from(request.length).map_err(|_| Refusal::Argument)?;
    let mut buffer = vec![0u64; STATX_BYTES / 8];
    let (fd, path, flags) = if request.file == 0 {
        (libc::AT_FDCWD, path(request.bytes)?, 0)
    } else {
        // STATX has no use for IOSQE_FIXED_FILE (EBADF): it wants the descriptor itself.
        hold_file(request, held, files)?;
        let fd = files.descriptor(FileHandle::from_number(request.file))?;
        (fd, CString::default(), libc::AT_EMPTY_PATH)
    };
    let entry = opcode::Statx::new(types::Fd(fd), path.as_ptr(), buffer.as_mut_ptr().cast())
        .flags(flags)
        .mask(mask)
        .build();
    held.keep(Payload::Stat { path, buffer });
    Ok(entry)
}

fn hold_file(
    request: &Request,
    held: &mut Held,
    files: &mut Files,
) -> Result<(Target, bool), Refusal> {
    let handle = FileHandle::from_number(request.file);
    let found = files.hold(handle)?;
    held.file = Some(handle);
    Ok(found)
}

/// Builds an entry for a file however it is named. An index into the registered table travels in
/// the same field as a descriptor, told apart by IOSQE_FIXED_FILE.
fn on(target: Target, build: impl FnOnce(types::Fd) -> Entry) -> Entry {
    match target {
        Target::Descriptor(fd) => build(types::Fd(fd)),
        Target::Registered(index) => {
            build(types::Fd(index as i32)).flags(squeue::Flags::FIXED_FILE)
        }
    }
}

/// An offset that the kernel reads as written: below 2^63, so never -1, "the current position".
fn file_offset(number: u64) -> Result<u64, Refusal> {
    if i64::try_from(number).is_ok() { Ok(number) } else { Err(Refusal::Argument) }
}

fn path(bytes: &[u8]) -> Result<CString, Refusal> {
    if bytes.is_empty() || bytes.len() >= PATH_BYTES_MAX {
        return Err(Refusal::Path);
    }
    CString::new(bytes).map_err(|_| Refusal::Path)
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
