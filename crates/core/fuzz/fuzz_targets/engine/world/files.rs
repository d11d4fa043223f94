//! Files: adopted, opened, and the other ends of pipes.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};

use node_uring_core::FileHandle;
use node_uring_core::files::BadFile;

use super::{FILES_MAX, Known, Left, OtherEnd, World, is_open, poll};
use crate::steps::Pick;

impl World<'_> {
    pub(super) fn take_opened(&mut self, slot: u32) {
        let free = !self.out.contains_key(&slot);
        let left = if free { self.left.remove(&slot) } else { None };
        match self.engine.take_opened(slot) {
            Ok((handle, number)) => {
                assert!(left == Some(Left::Opened), "{slot} left no file");
                assert!(is_open(number));
                self.note_file(handle, false);
            }
            Err(bad) => {
                assert_eq!(bad, BadFile::Unknown);
                assert!(left != Some(Left::Opened), "{slot} left a file");
            }
        }
    }

    pub(super) fn take_stat(&mut self, slot: u32) {
        let free = !self.out.contains_key(&slot);
        let left = if free { self.left.remove(&slot) } else { None };
        let stat = self.engine.take_stat(slot);
        assert_eq!(stat.map(|stat| stat.len()), (left == Some(Left::Stat)).then_some(256));
    }

    fn note_file(&mut self, handle: FileHandle, ends: bool) {
        assert!(self.files.iter().all(|known| known.handle != handle), "{handle:?} twice");
        assert!(!self.gone.contains(&handle), "{handle:?} was another file");
        self.files.push(Known { handle, ends });
    }

    fn adopt(&mut self, file: impl Into<OwnedFd>, direct: bool) {
        let handle = self.engine.adopt(file.into().into_raw_fd(), direct).expect("room");
        self.note_file(handle, true);
    }

    pub(super) fn adopt_pipe(&mut self, to_write: bool, direct: bool) {
        if self.files.len() >= FILES_MAX {
            return;
        }
        let (reader, writer) = std::io::pipe().expect("a pipe");
        // `direct` is only a claim: it makes the memory registered and the opcode READ_FIXED.
        if to_write {
            self.adopt(writer, direct);
            self.other_ends.push(OtherEnd::Reader(reader));
        } else {
            self.adopt(reader, direct);
            self.other_ends.push(OtherEnd::Writer(writer));
        }
    }

    pub(super) fn adopt_file(&mut self, direct: bool) {
        if self.files.len() < FILES_MAX
            && let Ok(file) = self.sandbox.file(direct)
        {
            self.adopt(file, direct);
        }
    }

    /// Numbers that are no descriptor of this process. (Others would be closed under somebody's feet.)
    pub(super) fn adopt_number(&mut self, number: RawFd) {
        if !is_open(number) {
            assert_eq!(self.engine.adopt(number, false), Err(BadFile::Unknown));
        }
    }

    pub(super) fn adopt_again(&mut self, index: u8) {
        let handle = self.file(Pick::Live(index));
        if let Ok(number) = self.engine.files().descriptor(handle) {
            assert_eq!(self.engine.adopt(number, false), Err(BadFile::Twice));
        }
    }

    pub(super) fn feed(&mut self, index: u8, bytes: u8) {
        if self.other_ends.is_empty() {
            return;
        }
        let index = index as usize % self.other_ends.len();
        let mut room = [0xab; 256];
        // A pipe that has room, or something in it, does not block for that much.
        match &mut self.other_ends[index] {
            OtherEnd::Writer(writer) if poll(writer.as_raw_fd(), libc::POLLOUT, 0) => {
                let _ = writer.write(&room[..bytes as usize]);
            }
            OtherEnd::Reader(reader) if poll(reader.as_raw_fd(), libc::POLLIN, 0) => {
                let _ = reader.read(&mut room);
            }
            _ => {}
        }
    }
}
