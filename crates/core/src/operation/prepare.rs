//! The checks and the SQE of each operation: one arm an operation, which says what it holds.

use std::ffi::CString;

use io_uring::opcode;
use io_uring::squeue::{self, Entry, Flags};
use io_uring::types::{self, TimeoutFlags, Timespec};

use super::{
    Opcode, Prepared, Refusal, Request, STATX_BYTES, TIMEOUT_ABSOLUTE, TIMEOUT_SUCCEEDS,
    TRANSFER_BYTES_MAX, sqe_flags,
};
use crate::arena::{Address, Arena, ChunkId, Registration};
use crate::files::{FileHandle, Files, Target};
use crate::in_flight::{Held, Payload};

/// Bytes of a path with its NUL. `path_resolution(7)`.
const PATH_BYTES_MAX: usize = 4096;

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
            let count = u32::try_from(request.length).map_err(|_| Refusal::Argument)?;
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
        Opcode::Renameat => {
            let flags = u32::try_from(request.offset).map_err(|_| Refusal::Argument)?;
            let length = usize::try_from(request.length).map_err(|_| Refusal::Argument)?;
            let (old, new) = request.bytes.split_at_checked(length).ok_or(Refusal::Argument)?;
            let paths = [path(old)?, path(new)?];
            let here = types::Fd(libc::AT_FDCWD);
            let entry = opcode::RenameAt::new(here, paths[0].as_ptr(), here, paths[1].as_ptr());
            held.keep(Payload::Paths { _paths: paths.into() });
            entry.flags(flags).build()
        }
        Opcode::Unlinkat => {
            let flags = u32::try_from(request.offset).map_err(|_| Refusal::Argument)? as i32;
            let path = path(request.bytes)?;
            let entry = opcode::UnlinkAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr());
            held.keep(Payload::Paths { _paths: vec![path] });
            entry.flags(flags).build()
        }
        Opcode::Close => unreachable!("the engine prepares a close, which changes the file table"),
    };
    Ok(Prepared {
        entry: if flags == 0 { entry } else { entry.flags(sqe_flags(flags)) },
        held,
        flags,
        inline_bytes,
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
    let fixed = fixed_slab(arena, id, direct);
    let entry = transfer_entry(opcode, target, fixed, address, position);
    let length = request.length as u32;
    let copied_inline = opcode == Opcode::Read && !direct;
    Ok((entry, if copied_inline { length } else { 0 }))
}

/// The slab's place in the buffer table, for operations of a direct file. Pinned pages save 15-23% of
/// the CPU of an O_DIRECT operation and nothing of a cached one.
pub(crate) fn fixed_slab(arena: &mut Arena, id: ChunkId, direct: bool) -> Option<u16> {
    match arena.slab(id) {
        Ok((number, _, Registration::Registered)) if direct => Some(number as u16),
        _ => None,
    }
}

/// The entry of a read or a write of all of `address`, which lies in the slab `fixed` if there is one.
#[inline(always)]
#[allow(clippy::inline_always)] // As `prepare`.
pub(crate) fn transfer_entry(
    opcode: Opcode,
    target: Target,
    fixed: Option<u16>,
    address: Address,
    position: u64,
) -> Entry {
    let (pointer, length) = (address.as_ptr(), address.len() as u32);
    on(target, |fd| match (opcode, fixed) {
        (Opcode::Read, None) => opcode::Read::new(fd, pointer, length).offset(position).build(),
        (Opcode::Read, Some(slab)) => {
            opcode::ReadFixed::new(fd, pointer, length, slab).offset(position).build()
        }
        (_, None) => opcode::Write::new(fd, pointer, length).offset(position).build(),
        (_, Some(slab)) => {
            opcode::WriteFixed::new(fd, pointer, length, slab).offset(position).build()
        }
    })
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
pub(crate) fn file_offset(number: u64) -> Result<u64, Refusal> {
    if i64::try_from(number).is_ok() { Ok(number) } else { Err(Refusal::Argument) }
}

fn path(bytes: &[u8]) -> Result<CString, Refusal> {
    if bytes.is_empty() || bytes.len() >= PATH_BYTES_MAX {
        return Err(Refusal::Path);
    }
    CString::new(bytes).map_err(|_| Refusal::Path)
}
