//! The checks and the SQE of each operation: those of the hot path here, the others by `calls.rs`.

use io_uring::opcode;
use io_uring::squeue::{self, Entry};
use io_uring::types;

use super::calls::call;
use super::vectors::vectored;
use super::{Opcode, Prepared, Refusal, Request, TRANSFER_BYTES_MAX, sqe_flags};
use crate::arena::{Address, Arena, ChunkId, Registration};
use crate::files::{FileHandle, FileKind, Files, Target};
use crate::in_flight::Held;

/// Checks a request, takes hold of what it touches, and writes its SQE into `entry`. Holds nothing when
/// it fails.
///
/// `closing` is the descriptor of a [`Opcode::Close`], which the engine has taken out of the table.
///
/// # Errors
/// [`Refusal`].
///
/// # Panics
/// For a close and a message, which the engine prepares itself.
#[inline]
pub fn prepare(
    request: &Request,
    opcode: Opcode,
    flags: u32,
    entry: &mut Entry,
    arena: &mut Arena,
    files: &mut Files,
) -> Result<Prepared, Refusal> {
    let mut held = Held::default();
    let mut inline_bytes = 0;
    let made = match opcode {
        Opcode::Nop => {
            *entry = opcode::Nop::new().build();
            Ok(())
        }
        Opcode::Read | Opcode::Write => transfer(request, opcode, entry, &mut held, arena, files)
            .map(|bytes| inline_bytes = bytes),
        Opcode::Readv | Opcode::Writev => {
            vectored(request, opcode, &mut held, arena, files).map(|(made, bytes)| {
                *entry = made;
                inline_bytes = bytes;
            })
        }
        _ => call(request, opcode, &mut held, arena, files).map(|made| *entry = made),
    };
    match made {
        Ok(()) => {
            if flags != 0 {
                *entry = entry.clone().flags(sqe_flags(flags));
            }
            Ok(Prepared { held, flags, inline_bytes })
        }
        Err(refusal) => {
            held.release(arena, files);
            Err(refusal)
        }
    }
}

fn transfer(
    request: &Request,
    opcode: Opcode,
    entry: &mut Entry,
    held: &mut Held,
    arena: &mut Arena,
    files: &mut Files,
) -> Result<u32, Refusal> {
    if request.length > TRANSFER_BYTES_MAX {
        return Err(Refusal::Argument);
    }
    let position = file_offset(request.position)?;
    let (target, kind) = hold_file(request, held, files)?;
    let (position, direct) = (kind.position(position), kind.is_direct());
    let id = ChunkId::from_number(request.chunk);
    let address = arena.hold(id, request.offset as usize, request.length as usize)?;
    held.chunk = Some(id);
    let fixed = fixed_slab(arena, id, direct);
    *entry = transfer_entry(opcode, target, fixed, address, position, request.modifiers());
    if kind == FileKind::Terminal {
        *entry = kind.apart(entry.clone());
    }
    let length = request.length as u32;
    let copied_inline = opcode == Opcode::Read && !direct;
    Ok(if copied_inline { length } else { 0 })
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
/// `modifiers` are RWF_ flags. `preadv2(2)`.
#[inline(always)]
#[allow(clippy::inline_always)] // As `prepare`.
pub(crate) fn transfer_entry(
    opcode: Opcode,
    target: Target,
    fixed: Option<u16>,
    address: Address,
    position: u64,
    modifiers: i32,
) -> Entry {
    let (pointer, length) = (address.as_ptr(), address.len() as u32);
    on(target, |fd| match (opcode, fixed) {
        (Opcode::Read, None) => {
            opcode::Read::new(fd, pointer, length).offset(position).rw_flags(modifiers).build()
        }
        (Opcode::Read, Some(slab)) => opcode::ReadFixed::new(fd, pointer, length, slab)
            .offset(position)
            .rw_flags(modifiers)
            .build(),
        (_, None) => {
            opcode::Write::new(fd, pointer, length).offset(position).rw_flags(modifiers).build()
        }
        (_, Some(slab)) => opcode::WriteFixed::new(fd, pointer, length, slab)
            .offset(position)
            .rw_flags(modifiers)
            .build(),
    })
}

pub(super) fn hold_file(
    request: &Request,
    held: &mut Held,
    files: &mut Files,
) -> Result<(Target, FileKind), Refusal> {
    let handle = FileHandle::from_number(request.file);
    let found = files.hold(handle)?;
    held.file = Some(handle);
    Ok(found)
}

/// Builds an entry for a file however it is named. An index into the registered table travels in
/// the same field as a descriptor, told apart by IOSQE_FIXED_FILE.
pub(super) fn on(target: Target, build: impl FnOnce(types::Fd) -> Entry) -> Entry {
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
