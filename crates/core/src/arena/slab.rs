//! A slab: a mapping cut into chunks of one size, and the names of chunks. Keeps for each chunk who holds
//! it; when it is given out or given back is decided above (`arena`, `pools.rs`).

use std::rc::Rc;

use super::mapping::{Address, Mapping};
use super::{BadChunk, Pool};

/// Smallest chunk, and the alignment of every chunk: the page.
pub const PAGE_BYTES: usize = 4096;
/// Largest slab that is cut into chunks; a longer chunk has a slab of its own.
pub const SLAB_BYTES_MAX: usize = PAGE_BYTES << CHUNK_BITS;
/// Longest chunk. One SQE's length is 32 bits, and the kernel stops at 2 GiB - 4 KiB by itself.
pub const CHUNK_BYTES_MAX: usize = 1 << 40;

const CHUNK_BITS: u32 = 10;
const SLAB_BITS: u32 = 14;
pub(super) const GENERATION_BITS: u32 = 29;
pub(super) const SLABS_MAX: usize = 1 << SLAB_BITS;
/// Size classes 4 KiB, 8 KiB … SLAB_BYTES_MAX.
pub(super) const CLASSES: usize = CHUNK_BITS as usize + 1;

/// Names a chunk of one moment: slab, place in it, and how often that place had been given out.
/// Fits the 53 bits of a JavaScript number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkId(u64);

impl ChunkId {
    pub(super) const fn new(slab: usize, chunk: usize, generation: u32) -> Self {
        Self(
            (generation as u64) << (SLAB_BITS + CHUNK_BITS)
                | (slab as u64) << CHUNK_BITS
                | chunk as u64,
        )
    }

    /// From the number that JavaScript keeps; any number is accepted here and checked at use.
    #[must_use]
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// The number that JavaScript keeps.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    pub(super) const fn slab(self) -> usize {
        (self.0 >> CHUNK_BITS) as usize & (SLABS_MAX - 1)
    }

    pub(super) const fn chunk(self) -> usize {
        self.0 as usize & ((1 << CHUNK_BITS) - 1)
    }

    pub(super) const fn generation(self) -> u64 {
        self.0 >> (SLAB_BITS + CHUNK_BITS)
    }
}

/// Whether a slab is in the ring's buffer table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registration {
    /// Not tried yet.
    Untried,
    /// Registered: READ_FIXED and WRITE_FIXED may use it.
    Registered,
    /// The kernel refused, or the slab is too large to pin at a stroke.
    Refused,
}

pub(super) struct Chunk {
    pub(super) generation: u32,
    /// Whether the JavaScript side holds it (an ArrayBuffer, or an operation's bounce memory).
    pub(super) owned: bool,
    /// Whether somebody has had it since it was mapped; untouched memory is zero by itself.
    pub(super) used_before: bool,
    /// Operations that hold it.
    pub(super) holds: u32,
    /// What was asked for; at most the chunk's size.
    pub(super) length_bytes: usize,
}

pub(super) struct Slab {
    pub(super) mapping: Rc<Mapping>,
    pub(super) pool: Pool,
    pub(super) class: usize,
    pub(super) chunk_bytes: usize,
    pub(super) registration: Registration,
    /// Free places, used last in, first out: what was touched last is warm.
    pub(super) free: Vec<u16>,
    pub(super) chunks: Vec<Chunk>,
}

impl Slab {
    pub(super) fn is_unused(&self) -> bool {
        self.free.len() == self.chunks.len()
    }

    /// A part of the chunk at `place`, within the length that was asked for.
    #[inline]
    pub(super) fn address(
        &self,
        place: usize,
        offset_bytes: usize,
        length_bytes: usize,
    ) -> Result<Address, BadChunk> {
        let end = offset_bytes.checked_add(length_bytes).ok_or(BadChunk::Range)?;
        if end > self.chunks[place].length_bytes {
            return Err(BadChunk::Range);
        }
        let start = place * self.chunk_bytes + offset_bytes;
        self.mapping.whole().part(start, length_bytes).ok_or(BadChunk::Range)
    }
}

/// The size class that fits `length_bytes`; CLASSES for a chunk that needs a slab of its own.
#[inline]
pub(super) const fn class_of(length_bytes: usize) -> usize {
    if length_bytes > SLAB_BYTES_MAX {
        return CLASSES;
    }
    let pages = length_bytes.saturating_sub(1) / PAGE_BYTES;
    (usize::BITS - pages.leading_zeros()) as usize
}
