//! What an operation holds until its last CQE, and what it leaves to be taken.

use std::ffi::CString;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::types::{OpenHow, Timespec};

use crate::arena::{Arena, ChunkId};
use crate::files::{FileHandle, Files};
use crate::ring::own_descriptor;

/// What an operation needs beside a chunk and a file, and what it leaves to be taken.
pub enum Payload {
    /// The path of an open under way.
    Opening {
        /// Read by the kernel.
        path: CString,
        /// Read by the kernel, of an `openat2(2)`.
        _how: Option<Box<OpenHow>>,
        /// Whether O_DIRECT is among the flags.
        direct: bool,
    },
    /// What an open gave; closed unless it is taken.
    Opened {
        /// Ours since the completion.
        descriptor: OwnedFd,
        /// Whether it was opened O_DIRECT.
        direct: bool,
    },
    /// A `statx`, under way or done.
    Stat {
        /// Read by the kernel.
        path: CString,
        /// `struct statx`, written by the kernel. A Vec, because a Box may not be written behind its
        /// owner's back.
        buffer: Vec<u64>,
    },
    /// A timeout's duration, or its end.
    Timeout {
        /// Read by the kernel.
        _time: Box<Timespec>,
    },
    /// Paths that nothing is left of.
    Paths {
        /// Read by the kernel.
        _paths: Vec<CString>,
    },
    /// What a vectored operation moves bytes between, beside its file.
    Vectors {
        /// Held, each as often as it is here.
        chunks: Vec<ChunkId>,
        /// Read by the kernel; over those chunks.
        _iovecs: Vec<libc::iovec>,
    },
    /// The other file of a splice.
    Splicing {
        /// Held.
        from: FileHandle,
    },
    /// The ring that is posted to.
    Posting {
        /// Named to the kernel; so the ring is there until the operation is over.
        _ring: Arc<OwnedFd>,
    },
    /// What became of each of many: bytes, or a negated errno.
    Counts(Vec<i32>),
    /// The descriptor that a close is about to end.
    Closing(OwnedFd),
}

/// All that an operation holds. Small: it is moved once for each operation, and most have no payload.
#[derive(Default)]
pub struct Held {
    pub(crate) chunk: Option<ChunkId>,
    pub(crate) file: Option<FileHandle>,
    pub(crate) payload: Option<Box<Payload>>,
}

impl Held {
    pub(crate) fn keep(&mut self, payload: Payload) {
        self.payload = Some(Box::new(payload));
    }

    /// Lets go of everything: nothing came of the operation.
    #[cold]
    pub(crate) fn release(self, arena: &mut Arena, files: &mut Files) {
        let Self { chunk, file, payload } = self;
        if let Some(chunk) = chunk {
            arena.unhold(chunk);
        }
        if let Some(file) = file {
            files.unhold(file);
        }
        if let Some(payload) = payload {
            payload.unhold(arena, files);
        }
    }
}

impl Payload {
    /// Lets go of the chunks and files that are held for it.
    pub(super) fn unhold(&self, arena: &mut Arena, files: &mut Files) {
        match self {
            Self::Vectors { chunks, .. } => chunks.iter().for_each(|&chunk| arena.unhold(chunk)),
            Self::Splicing { from } => files.unhold(*from),
            _ => {}
        }
    }

    /// What is left to be taken once the operation is over with `result`.
    pub(super) fn after(self, result: i32) -> Option<Self> {
        match self {
            Self::Opening { direct, .. } if result >= 0 => {
                Some(Self::Opened { descriptor: own_descriptor(result), direct })
            }
            Self::Closing(descriptor) => {
                // Linux frees the number whatever close(2) returns, so it must not be closed again:
                // it may be somebody else's by now. Only a close that never ran leaves it to us.
                if result != -libc::ECANCELED {
                    let _ = descriptor.into_raw_fd();
                }
                None
            }
            Self::Stat { .. } if result == 0 => Some(self),
            Self::Counts(_) => Some(self),
            _ => None,
        }
    }
}
