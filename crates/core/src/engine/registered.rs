//! The files and the memory that operations name, and their places in the tables that are registered with
//! the rings: a file when it comes, a slab when a direct operation first uses it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::Engine;
use super::polled::Polled;
use crate::arena::{ChunkId, Pool, Registration};
use crate::files::{BadFile, FileHandle, FileKind};
use crate::in_flight::Payload;
use crate::operation::Request;
use crate::ring::{self, Ring};

/// Places in the registered file table; files past it are named by descriptor.
const REGISTERED_FILES: u32 = 1024;
/// Places in the registered buffer table; slabs past it are used unregistered.
const REGISTERED_SLABS: u32 = 4096;
/// Slabs past this size are not pinned: it would hold the thread up for too long.
const REGISTERED_SLAB_BYTES_MAX: usize = 16 << 20;

impl Engine {
    /// Takes the file that the open at `slot` gave into the table.
    ///
    /// # Errors
    /// [`BadFile`]; the descriptor is closed then.
    pub fn take_opened(&mut self, slot: u32) -> Result<(FileHandle, RawFd), BadFile> {
        match self.in_flight.take_payload(slot) {
            Some(Payload::Opened { descriptor, direct }) => {
                let kind = FileKind::of(&descriptor, direct);
                self.add_file(descriptor, kind)
            }
            _ => Err(BadFile::Unknown),
        }
    }

    /// Takes over an open descriptor: the queue closes it.
    ///
    /// # Errors
    /// [`BadFile::Unknown`] when it is no open descriptor, [`BadFile::Twice`] when this queue owns
    /// it already, [`BadFile::Full`].
    pub fn adopt(&mut self, fd: RawFd, direct: bool) -> Result<FileHandle, BadFile> {
        if !ring::is_open(fd) {
            return Err(BadFile::Unknown);
        }
        if self.files.owns(fd) {
            return Err(BadFile::Twice);
        }
        let descriptor = ring::own_descriptor(fd);
        let kind = FileKind::of(&descriptor, direct);
        self.add_file(descriptor, kind).map(|(handle, _)| handle)
    }

    pub(super) fn add_file(
        &mut self,
        descriptor: OwnedFd,
        kind: FileKind,
    ) -> Result<(FileHandle, RawFd), BadFile> {
        let fd = descriptor.as_raw_fd();
        let (handle, place) = self.files.insert(descriptor, kind)?;
        if let Some(place) = place {
            let registered = self.update_file(place, fd);
            self.files.set_registered(handle, registered);
        }
        if kind.is_direct() {
            self.make_buffer_table();
        }
        Ok((handle, fd))
    }

    /// Registers an empty buffer table, once.
    fn make_buffer_table(&mut self) {
        if self.register && self.buffer_table.is_none() {
            let table = self.ring.register_buffer_table(REGISTERED_SLABS);
            let table = table.and_then(|()| match &self.polled {
                Some(polled) => polled.ring.register_buffer_table(REGISTERED_SLABS),
                None => Ok(()),
            });
            self.buffer_table = Some(table.map_err(|error| errno(&error)));
        }
    }

    /// Finds out whether arena memory can be registered, as the first direct operation does, by
    /// pinning a slab.
    pub fn try_registered_memory(&mut self) {
        self.make_buffer_table();
        let Ok(chunk) = self.arena.take(Pool::Alloc, 1) else { return };
        if let (Some(Ok(())), Ok((number, memory, _))) = (self.buffer_table, self.arena.slab(chunk))
        {
            let pinned = self.update_buffer(number, Some(memory));
            let _ = self.update_buffer(number, None);
            self.buffer_table = Some(pinned.map_err(|error| errno(&error)));
        }
        let _ = self.arena.disown(chunk);
    }

    /// Pins the slab of a direct operation's chunk when it is first used for one.
    #[inline]
    pub(super) fn register_slab_of(&mut self, request: &Request) {
        if !matches!(self.buffer_table, Some(Ok(()))) {
            return;
        }
        let Ok((number, memory, Registration::Untried)) =
            self.arena.slab(ChunkId::from_number(request.chunk))
        else {
            return;
        };
        if !self.files.is_direct(FileHandle::from_number(request.file)) {
            return;
        }
        let fits = number < REGISTERED_SLABS && memory.len() <= REGISTERED_SLAB_BYTES_MAX;
        let refused = if fits { self.update_buffer(number, Some(memory)).err() } else { None };
        let outcome = if fits && refused.is_none() {
            Registration::Registered
        } else {
            Registration::Refused
        };
        if let Some(error) = refused
            && self.arena.registered_bytes() == 0
        {
            // Not even the first: RLIMIT_MEMLOCK has no room for any.
            self.buffer_table = Some(Err(error.raw_os_error().unwrap_or(libc::ENOMEM)));
        }
        self.arena.set_registration(number, outcome);
    }

    /// Empties the buffer-table entries of slabs that were let go, so that their pages are free.
    pub(super) fn unregister_retired(&mut self) {
        while let Some(number) = self.arena.take_retired() {
            let _ = self.update_buffer(number, None);
        }
    }
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EINVAL)
}

/// Registers a table with as many places as are useful and RLIMIT_NOFILE allows; 0 where there is
/// none. `io_uring_register(2)`.
pub(super) fn register_file_table(ring: &mut Ring, polled: Option<&mut Polled>) -> u32 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let places = limit.map_or(REGISTERED_FILES, |limit| {
        REGISTERED_FILES.min(limit.min(u64::from(u32::MAX)) as u32)
    });
    let registered = match polled {
        Some(polled) => polled.ring.register_file_table(places),
        None => Ok(()),
    };
    let registered = registered.and_then(|()| ring.register_file_table(places));
    let has = registered.is_ok();
    ring.note_refused("REGISTER_FILES2", registered);
    if has { places } else { 0 }
}
