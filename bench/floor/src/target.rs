//! The file that is read or written, the memory for it, and the SQEs that join the two.

#![allow(unsafe_code)] // vouches for the addresses in SQEs and in buffer registration

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use io_uring::{opcode, squeue, types};

use crate::arguments::{FileSettings, Kind};
use crate::memory::Blocks;
use crate::random::Offsets;
use crate::ring::{Ring, Sqe};

#[derive(Debug)]
pub struct Target<'a> {
    settings: &'a FileSettings,
    is_write: bool,
    /// Never closed: see [`Blocks`].
    file: ManuallyDrop<File>,
    /// What SQEs name the file by: its descriptor or, with `FIXED_FILE`, its registered index.
    descriptor: (types::Fd, squeue::Flags),
    file_bytes: u64,
    memory: Blocks,
    /// The block of memory of the next operation.
    next_block: u32,
}

impl<'a> Target<'a> {
    /// Opens the file and maps the memory.
    pub fn open(settings: &'a FileSettings, kind: Kind) -> Result<Self, String> {
        let is_write = kind == Kind::Write;
        let path = settings.path.display();
        let mut file = OpenOptions::new()
            .read(!is_write)
            .write(is_write)
            .custom_flags(if settings.direct { libc::O_DIRECT } else { 0 })
            .open(&settings.path)
            .map_err(|error| format!("{path}: {error}"))?;
        if settings.pre_read {
            pre_read(&settings.path).map_err(|error| format!("{path}: {error}"))?;
        }
        // Seeking and not stat: it knows the size of a block device too.
        let file_bytes = file.seek(SeekFrom::End(0)).map_err(|error| format!("{path}: {error}"))?;
        if file_bytes < u64::from(settings.block_bytes) {
            return Err(format!("{path} is smaller than a block"));
        }
        let memory = Blocks::map(settings.memory_blocks, settings.block_bytes)
            .map_err(|error| format!("mmap: {error}"))?;
        let descriptor = (types::Fd(file.as_raw_fd()), squeue::Flags::empty());
        let file = ManuallyDrop::new(file);
        Ok(Self { settings, is_write, file, descriptor, file_bytes, memory, next_block: 0 })
    }

    /// Registers what the settings ask for. What the kernel refuses is an error, never a fallback.
    pub fn register(&mut self, ring: &Ring) -> Result<(), String> {
        if self.settings.fixed_buffers {
            let iovecs = self.memory.iovecs(self.settings.block_bytes);
            // SAFETY: `Blocks` are never unmapped.
            let registered = unsafe { ring.register_buffers(&iovecs) };
            registered.map_err(|error| format!("IORING_REGISTER_BUFFERS: {error}"))?;
        }
        if self.settings.registered_file {
            let index = ring.register_file(self.file.as_raw_fd());
            let index = index.map_err(|error| format!("IORING_REGISTER_FILES: {error}"))?;
            self.descriptor = (types::Fd(index), squeue::Flags::FIXED_FILE);
        }
        Ok(())
    }

    pub fn offsets(&self) -> Offsets {
        let block_bytes = self.settings.block_bytes;
        Offsets::new(self.settings.seed, self.file_bytes / u64::from(block_bytes), block_bytes)
    }

    pub fn block_bytes(&self) -> u32 {
        self.settings.block_bytes
    }

    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The operation of a slot at a position in bytes; its result is to be the block's length. It takes the
    /// next block of memory. Completions may come out of their order, and then one may still be on its way
    /// there: what is read is looked at by nobody, what is written is the same.
    #[inline]
    pub fn sqe(&mut self, slot: u32, offset: u64) -> Sqe {
        let (fd, flags) = self.descriptor;
        let block = self.next_block;
        self.next_block = if block + 1 == self.settings.memory_blocks { 0 } else { block + 1 };
        let address = self.memory.address(block);
        let length_bytes = self.settings.block_bytes;
        let entry = match (self.is_write, self.settings.fixed_buffers) {
            (false, false) => opcode::Read::new(fd, address, length_bytes).offset(offset).build(),
            (true, false) => opcode::Write::new(fd, address, length_bytes).offset(offset).build(),
            (false, true) => opcode::ReadFixed::new(fd, address, length_bytes, block as u16)
                .offset(offset)
                .build(),
            (true, true) => opcode::WriteFixed::new(fd, address, length_bytes, block as u16)
                .offset(offset)
                .build(),
        };
        // SAFETY: `Blocks` are never unmapped, the file is never closed.
        unsafe { Sqe::new(entry.flags(flags), slot) }
    }
}

/// Brings the file into the page cache, through a descriptor without `O_DIRECT`.
fn pre_read(path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Wait;
    use std::path::PathBuf;

    const BLOCK_BYTES: u32 = 4096;

    /// A file of eight blocks and a tail, each byte its block's number; removed when dropped.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("floor-{}-{name}", std::process::id()));
            let bytes: Vec<u8> =
                (0..8 * BLOCK_BYTES + 100).map(|i| (i / BLOCK_BYTES) as u8).collect();
            std::fs::write(&path, bytes).unwrap();
            Self(path)
        }

        fn settings(&self, fixed_buffers: bool, registered_file: bool) -> FileSettings {
            FileSettings {
                path: self.0.clone(),
                block_bytes: BLOCK_BYTES,
                memory_blocks: 6,
                direct: false,
                pre_read: true,
                fixed_buffers,
                registered_file,
                seed: 1,
            }
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn drive(settings: &FileSettings, kind: Kind) -> Blocks {
        let mut ring = Ring::set_up(4).unwrap();
        let mut target = Target::open(settings, kind).unwrap();
        target.register(&ring).unwrap();
        let mut offsets = target.offsets();
        let mut session = ring.start().unwrap();
        session
            .drive(64, 4, Wait::One, BLOCK_BYTES, |slot| target.sqe(slot, offsets.next()))
            .unwrap();
        target.memory
    }

    #[test]
    fn every_way_to_read_fills_the_slots_with_whole_blocks() {
        let scratch = Scratch::new("read");
        for (fixed, registered) in [(false, false), (true, false), (false, true), (true, true)] {
            let memory = drive(&scratch.settings(fixed, registered), Kind::Read);
            for block in 0..6 {
                let block = memory.copy(block);
                assert!(block[0] < 8 && block.iter().all(|byte| *byte == block[0]));
            }
        }
    }

    #[test]
    fn every_way_to_write_overwrites_blocks_and_keeps_the_size() {
        for (fixed, registered) in [(false, false), (true, false), (false, true), (true, true)] {
            let scratch = Scratch::new("write");
            let memory = drive(&scratch.settings(fixed, registered), Kind::Write);
            let written = std::fs::read(&scratch.0).unwrap();
            assert_eq!(written.len(), 8 * BLOCK_BYTES as usize + 100);
            let sources: Vec<_> = (0..6).map(|block| memory.copy(block)).collect();
            let blocks = written.chunks_exact(BLOCK_BYTES as usize);
            assert!(blocks.clone().any(|block| sources.iter().any(|source| source == block)));
            assert!(written[8 * BLOCK_BYTES as usize..].iter().all(|byte| *byte == 8));
        }
    }

    #[test]
    fn a_file_shorter_than_a_block_is_refused() {
        let scratch = Scratch::new("short");
        let settings = FileSettings { block_bytes: 1 << 20, ..scratch.settings(false, false) };
        assert!(Target::open(&settings, Kind::Read).unwrap_err().contains("smaller than a block"));
    }
}
