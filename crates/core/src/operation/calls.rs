//! The checks and the SQE of every operation but the hottest: one arm an operation, which says what it
//! holds. What an arm has taken hold of when it fails, its caller lets go.

use std::ffi::CString;
use std::os::fd::RawFd;

use io_uring::opcode;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{self, TimeoutFlags, Timespec};

use super::prepare::{file_offset, hold_file, on};
use super::{
    HARDLINK, LINK, Opcode, Refusal, Request, SPLICE_FROM, SPLICE_TO, STATX_BYTES,
    TIMEOUT_ABSOLUTE, TIMEOUT_SUCCEEDS, TRANSFER_BYTES_MAX,
};
use crate::arena::{Address, Arena, ChunkId};
use crate::files::{FileHandle, Files, Target};
use crate::in_flight::{Held, Payload};

/// Bytes of a path with its NUL. `path_resolution(7)`.
const PATH_BYTES_MAX: usize = 4096;
/// Where paths begin that are not absolute.
const HERE: types::Fd = types::Fd(libc::AT_FDCWD);

/// # Panics
/// For those that are prepared elsewhere: nops, reads and writes, also vectored; closes and messages, by the
/// engine.
pub(super) fn call(
    request: &Request,
    opcode: Opcode,
    held: &mut Held,
    arena: &mut Arena,
    files: &mut Files,
) -> Result<Entry, Refusal> {
    let Request { offset, length, position, .. } = *request;
    Ok(match opcode {
        Opcode::Fsync => {
            let datasync = match length {
                0 => types::FsyncFlags::empty(),
                1 => types::FsyncFlags::DATASYNC,
                _ => return Err(Refusal::Argument),
            };
            let target = hold_file(request, held, files)?.0;
            on(target, |fd| opcode::Fsync::new(fd).flags(datasync).build())
        }
        Opcode::Ftruncate => {
            let length = file_offset(position)?;
            let target = hold_file(request, held, files)?.0;
            on(target, |fd| opcode::Ftruncate::new(fd, length).build())
        }
        Opcode::Fallocate => {
            let (mode, from) = (number(offset)? as i32, file_offset(position)?);
            let length = file_offset(length)?;
            let target = hold_file(request, held, files)?.0;
            on(target, |fd| opcode::Fallocate::new(fd, length).offset(from).mode(mode).build())
        }
        Opcode::Fadvise => {
            let (advice, from) = (number(offset)? as i32, file_offset(position)?);
            let length = number(length)?.into();
            let target = hold_file(request, held, files)?.0;
            on(target, |fd| opcode::Fadvise::new(fd, length, advice).offset(from).build())
        }
        Opcode::SyncFileRange => {
            let (flags, from) = (number(offset)?, file_offset(position)?);
            let length = number(length)?;
            let target = hold_file(request, held, files)?.0;
            on(target, |fd| {
                opcode::SyncFileRange::new(fd, length).offset(from).flags(flags).build()
            })
        }
        Opcode::PollAdd => {
            let events = number(offset)?;
            let target = hold_file(request, held, files)?.0;
            on(target, |fd| opcode::PollAdd::new(fd, events).build())
        }
        Opcode::Send => {
            let (target, address) = hold_both(request, held, arena, files)?;
            let (pointer, length) = (address.as_ptr(), address.len() as u32);
            // Or one that is short would count as a success (`min_ret` of `io_send`, io_uring/net.c).
            let linked = request.opcode & (LINK | HARDLINK) != 0;
            let flags = if linked { libc::MSG_WAITALL } else { 0 };
            on(target, |fd| opcode::Send::new(fd, pointer, length).flags(flags).build())
        }
        Opcode::Recv => {
            let (target, address) = hold_both(request, held, arena, files)?;
            let (pointer, length) = (address.as_ptr(), address.len() as u32);
            let flags = request.modifiers();
            on(target, |fd| opcode::Recv::new(fd, pointer, length).flags(flags).build())
        }
        Opcode::Splice => splice(request, held, files)?,
        Opcode::Openat => openat(request, held, files)?,
        Opcode::Statx => statx(request, held, files)?,
        Opcode::Renameat => {
            let (old, new) = two_paths(request, held)?;
            opcode::RenameAt::new(HERE, old, HERE, new).flags(number(offset)?).build()
        }
        Opcode::Linkat => {
            let (old, new) = two_paths(request, held)?;
            opcode::LinkAt::new(HERE, old, HERE, new).flags(number(offset)? as i32).build()
        }
        Opcode::Symlinkat => {
            let (target, link) = two_paths(request, held)?;
            opcode::SymlinkAt::new(HERE, target, link).build()
        }
        Opcode::Unlinkat => {
            let flags = number(offset)? as i32;
            opcode::UnlinkAt::new(HERE, one_path(request, held)?).flags(flags).build()
        }
        Opcode::Mkdirat => {
            let mode = number(length)? & 0o7777;
            opcode::MkDirAt::new(HERE, one_path(request, held)?).mode(mode).build()
        }
        Opcode::Timeout => {
            let count = number(length)?;
            let (timespec, timing) = timespec(request)?;
            let entry = opcode::Timeout::new(&raw const *timespec).count(count).flags(timing);
            held.keep(Payload::Timeout { _time: timespec });
            entry.build()
        }
        Opcode::LinkTimeout => {
            let (timespec, timing) = timespec(request)?;
            let entry = opcode::LinkTimeout::new(&raw const *timespec).flags(timing);
            held.keep(Payload::Timeout { _time: timespec });
            entry.build()
        }
        Opcode::Nop
        | Opcode::Read
        | Opcode::Write
        | Opcode::Readv
        | Opcode::Writev
        | Opcode::Close
        | Opcode::MsgRing => {
            unreachable!("prepared elsewhere")
        }
    })
}

/// The time of a timeout, and how it counts.
fn timespec(request: &Request) -> Result<(Box<Timespec>, TimeoutFlags), Refusal> {
    let nanoseconds = file_offset(request.position)?;
    if request.offset & !(TIMEOUT_ABSOLUTE | TIMEOUT_SUCCEEDS) != 0 {
        return Err(Refusal::Argument);
    }
    let mut flags = TimeoutFlags::empty();
    flags.set(TimeoutFlags::ABS, request.offset & TIMEOUT_ABSOLUTE != 0);
    flags.set(TimeoutFlags::ETIME_SUCCESS, request.offset & TIMEOUT_SUCCEEDS != 0);
    let timespec =
        Timespec::new().sec(nanoseconds / 1_000_000_000).nsec((nanoseconds % 1_000_000_000) as u32);
    Ok((Box::new(timespec), flags))
}

fn openat(request: &Request, held: &mut Held, files: &mut Files) -> Result<Entry, Refusal> {
    let flags = number(request.offset)? as i32 | libc::O_CLOEXEC;
    let mode = number(request.length)? & 0o7777;
    let direct = flags & libc::O_DIRECT != 0;
    let path = path(request.bytes)?;
    let from = if request.file == 0 { HERE } else { types::Fd(descriptor(request, held, files)?) };
    let (entry, how) = if request.position == 0 {
        (opcode::OpenAt::new(from, path.as_ptr()).flags(flags).mode(mode).build(), None)
    } else {
        // openat2(2) refuses a mode where nothing is made.
        let makes = flags & (libc::O_CREAT | libc::O_TMPFILE & !libc::O_DIRECTORY) != 0;
        let how = types::OpenHow::new()
            .flags(u64::from(flags as u32))
            .mode(if makes { mode.into() } else { 0 })
            .resolve(request.position);
        let how = Box::new(how);
        (opcode::OpenAt2::new(from, path.as_ptr(), &raw const *how).build(), Some(how))
    };
    held.keep(Payload::Opening { path, _how: how, direct });
    // By a worker: an open tried at once is tried with O_NONBLOCK, which opens a FIFO without waiting
    // for its other side, or refuses it with ENXIO. fifo(7).
    Ok(entry.flags(Flags::ASYNC))
}

fn statx(request: &Request, held: &mut Held, files: &mut Files) -> Result<Entry, Refusal> {
    let mask = number(request.length)?;
    let flags = number(request.offset)? as i32;
    let mut buffer = vec![0u64; STATX_BYTES / 8];
    let (fd, path, flags) = if request.file == 0 {
        (libc::AT_FDCWD, path(request.bytes)?, flags)
    } else {
        (descriptor(request, held, files)?, CString::default(), flags | libc::AT_EMPTY_PATH)
    };
    let entry = opcode::Statx::new(types::Fd(fd), path.as_ptr(), buffer.as_mut_ptr().cast())
        .flags(flags)
        .mask(mask)
        .build();
    held.keep(Payload::Stat { path, buffer });
    Ok(entry)
}

/// From a file, whose handle is in `chunk`, to another; one of them is a pipe.
fn splice(request: &Request, held: &mut Held, files: &mut Files) -> Result<Entry, Refusal> {
    // What the kernel takes for "no position": pipes have none, and others go on from their own.
    const NONE: i64 = -1;
    if request.length > TRANSFER_BYTES_MAX {
        return Err(Refusal::Argument);
    }
    let position = file_offset(request.position)? as i64;
    let (from_position, to_position) = match request.offset {
        0 if position == 0 => (NONE, NONE),
        SPLICE_FROM => (position, NONE),
        SPLICE_TO => (NONE, position),
        _ => return Err(Refusal::Argument),
    };
    let to = hold_file(request, held, files)?.0;
    let handle = FileHandle::from_number(request.chunk);
    let from = files.hold(handle)?.0;
    held.keep(Payload::Splicing { from: handle });
    let length = request.length as u32;
    Ok(on(to, |to| match from {
        Target::Descriptor(fd) => {
            opcode::Splice::new(types::Fd(fd), from_position, to, to_position, length).build()
        }
        Target::Registered(index) => {
            opcode::Splice::new(types::Fixed(index), from_position, to, to_position, length).build()
        }
    }))
}

/// Holds the file and the range of the chunk.
fn hold_both(
    request: &Request,
    held: &mut Held,
    arena: &mut Arena,
    files: &mut Files,
) -> Result<(Target, Address), Refusal> {
    if request.length > TRANSFER_BYTES_MAX {
        return Err(Refusal::Argument);
    }
    let target = hold_file(request, held, files)?.0;
    let id = ChunkId::from_number(request.chunk);
    let address = arena.hold(id, request.offset as usize, request.length as usize)?;
    held.chunk = Some(id);
    Ok((target, address))
}

/// Holds the file and gives its descriptor, for operations that have no use for IOSQE_FIXED_FILE.
fn descriptor(request: &Request, held: &mut Held, files: &mut Files) -> Result<RawFd, Refusal> {
    hold_file(request, held, files)?;
    Ok(files.descriptor(FileHandle::from_number(request.file))?)
}

/// Keeps the path in `bytes`, and gives its address.
fn one_path(request: &Request, held: &mut Held) -> Result<*const libc::c_char, Refusal> {
    let path = path(request.bytes)?;
    let pointer = path.as_ptr();
    held.keep(Payload::Paths { _paths: vec![path] });
    Ok(pointer)
}

/// Keeps the paths in the first `length` of `bytes` and in the rest, and gives their addresses.
fn two_paths(
    request: &Request,
    held: &mut Held,
) -> Result<(*const libc::c_char, *const libc::c_char), Refusal> {
    let length = usize::try_from(request.length).map_err(|_| Refusal::Argument)?;
    let (first, second) = request.bytes.split_at_checked(length).ok_or(Refusal::Argument)?;
    let paths = vec![path(first)?, path(second)?];
    let pointers = (paths[0].as_ptr(), paths[1].as_ptr());
    held.keep(Payload::Paths { _paths: paths });
    Ok(pointers)
}

fn path(bytes: &[u8]) -> Result<CString, Refusal> {
    if bytes.is_empty() || bytes.len() >= PATH_BYTES_MAX {
        return Err(Refusal::Path);
    }
    CString::new(bytes).map_err(|_| Refusal::Path)
}

fn number(number: u64) -> Result<u32, Refusal> {
    u32::try_from(number).map_err(|_| Refusal::Argument)
}
