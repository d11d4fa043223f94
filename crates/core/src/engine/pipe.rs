//! Pipes of the engine's own, for splices between two files.

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use rustix::pipe::fcntl_setpipe_size;

use super::Engine;
use crate::files::{BadFile, FileHandle, FileKind};

/// What a pipe is asked to hold: as much as the kernel allows to anybody. `pipe(7)`.
const PIPE_BYTES: usize = 1 << 20;

/// A pipe in the file table.
#[derive(Clone, Copy, Debug)]
pub struct Pipe {
    /// The end to read from, and its descriptor.
    pub reader: (FileHandle, RawFd),
    /// The end to write to, and its descriptor.
    pub writer: (FileHandle, RawFd),
    /// How many bytes it holds.
    pub bytes: usize,
}

impl Engine {
    /// Makes a pipe, whose ends are files like others: to be closed by whoever asked.
    ///
    /// # Errors
    /// The errno of `pipe2(2)`; EMFILE when the file table is full.
    pub fn make_pipe(&mut self) -> io::Result<Pipe> {
        let full = |_: BadFile| io::Error::from_raw_os_error(libc::EMFILE);
        let (reader, writer) = io::pipe()?;
        // Another user's pipes may have used up what may be had; then it is as it was made.
        let bytes = fcntl_setpipe_size(&writer, PIPE_BYTES).unwrap_or(64 << 10);
        let reader = self.add_file(OwnedFd::from(reader), FileKind::Plain).map_err(full)?;
        match self.add_file(OwnedFd::from(writer), FileKind::Plain) {
            Ok(writer) => Ok(Pipe { reader, writer, bytes }),
            Err(bad) => {
                if let Ok((_, Some(place))) = self.files.remove(reader.0) {
                    // The registered table has a reference of its own.
                    self.update_file(place, -1);
                }
                Err(full(bad))
            }
        }
    }
}
