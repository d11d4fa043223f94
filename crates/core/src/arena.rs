//! All memory that the kernel reads and writes for data: page-aligned slabs from mmap, cut into
//! chunks of one size class a slab.
//!
//! Knows who may hold a chunk: one owner (the JavaScript side) and any number of operations. A chunk
//! is free again when nobody holds it. A mapping lives as long as the arena or an exposed
//! `ArrayBuffer` refers to it, whichever is longer. Never gives out an address without a hold.

mod copy;
mod mapping;
mod pools;
mod slab;

use std::rc::Rc;

pub use copy::copy;
pub use mapping::{Address, Mapping};
pub use slab::{CHUNK_BYTES_MAX, ChunkId, PAGE_BYTES, Registration, SLAB_BYTES_MAX};

use slab::{CLASSES, Slab};

const POOLS: usize = 3;

/// Who the memory is for. Each pool has a limit of its own, so that none can starve another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Pool {
    /// `queue.alloc`: visible to users, in place.
    Alloc = 0,
    /// Copies of plain buffers on their way to or from the kernel; never visible to users.
    Bounce = 1,
    /// Results of `bytesAt`, given away as `ArrayBuffer`s.
    Result = 2,
}

impl Pool {
    /// The pool with this number in the binding.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Alloc),
            1 => Some(Self::Bounce),
            2 => Some(Self::Result),
            _ => None,
        }
    }
}

/// Limits of the arena.
#[derive(Clone, Copy, Debug)]
pub struct ArenaOptions {
    /// Bytes of one slab: a power of two from 64 KiB to 4 MiB.
    pub slab_bytes: usize,
    /// Bytes that each pool may map, by [`Pool`].
    pub max_bytes: [usize; POOLS],
    /// Bytes of unused slabs that each pool keeps mapped for the next taker, by [`Pool`]. Results are
    /// collected late and many at once, and faulting their memory in again costs more than the read.
    pub retain_bytes: [usize; POOLS],
}

impl Default for ArenaOptions {
    fn default() -> Self {
        Self {
            slab_bytes: 2 << 20,
            max_bytes: [1 << 30, 64 << 20, 1 << 30],
            retain_bytes: [32 << 20, 32 << 20, 128 << 20],
        }
    }
}

/// Why no chunk was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exhausted {
    /// The pool is at its limit; a chunk that is given back makes room.
    Limit,
    /// No pool of this arena can ever hold a chunk of this length.
    TooLong,
    /// mmap failed with this errno.
    Kernel(i32),
}

/// Why a chunk could not be used as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadChunk {
    /// It names no chunk, or one that was given back.
    Unknown,
    /// The range leaves the chunk.
    Range,
    /// An operation holds it.
    InFlight,
}

/// Bytes of one pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Bytes mapped.
    pub mapped_bytes: usize,
    /// Bytes in chunks that somebody holds, rounded up to their size class.
    pub used_bytes: usize,
}

/// The slabs and who holds their chunks.
pub struct Arena {
    options: ArenaOptions,
    /// By slab number, which is also the slab's place in the ring's buffer table.
    slabs: Vec<Option<Slab>>,
    vacant: Vec<u16>,
    /// Slabs with a free chunk, by pool and class.
    partial: [[Vec<u16>; CLASSES]; POOLS],
    stats: [PoolStats; POOLS],
    unused_bytes: [usize; POOLS],
    /// Registered slabs that were let go and whose table entries the engine has to empty.
    retired: Vec<u16>,
    /// Generation for chunks of a new slab: past all that the slab number ever had.
    next_generation: u32,
}

impl Arena {
    /// An arena without a slab.
    #[must_use]
    pub fn new(options: ArenaOptions) -> Self {
        Self {
            options,
            slabs: Vec::new(),
            vacant: Vec::new(),
            partial: Default::default(),
            stats: Default::default(),
            unused_bytes: [0; POOLS],
            retired: Vec::new(),
            next_generation: 1,
        }
    }

    #[inline]
    fn find(&mut self, id: ChunkId) -> Result<(&mut Slab, usize), BadChunk> {
        let slab =
            self.slabs.get_mut(id.slab()).and_then(Option::as_mut).ok_or(BadChunk::Unknown)?;
        let place = id.chunk();
        match slab.chunks.get(place) {
            Some(chunk) if u64::from(chunk.generation) == id.generation() => Ok((slab, place)),
            _ => Err(BadChunk::Unknown),
        }
    }

    /// Finds a chunk whose owner still has it.
    #[inline]
    fn find_owned(&mut self, id: ChunkId) -> Result<(&mut Slab, usize), BadChunk> {
        let (slab, place) = self.find(id)?;
        if slab.chunks[place].owned { Ok((slab, place)) } else { Err(BadChunk::Unknown) }
    }

    /// Holds a chunk for an operation and gives the address of `length_bytes` at `offset_bytes`.
    ///
    /// # Errors
    /// [`BadChunk`] when the chunk is not its owner's any more or the range leaves it.
    #[inline]
    pub fn hold(
        &mut self,
        id: ChunkId,
        offset_bytes: usize,
        length_bytes: usize,
    ) -> Result<Address, BadChunk> {
        let (slab, place) = self.find_owned(id)?;
        let address = slab.address(place, offset_bytes, length_bytes)?;
        slab.chunks[place].holds += 1;
        Ok(address)
    }

    /// Lets go of an operation's hold. The chunk is free if its owner has gone.
    ///
    /// # Panics
    /// Without a hold: then somebody else's would be let go.
    #[inline]
    pub fn unhold(&mut self, id: ChunkId) {
        let Ok((slab, place)) = self.find(id) else {
            unreachable!("a held chunk keeps its generation");
        };
        let chunk = &mut slab.chunks[place];
        assert!(chunk.holds > 0, "unhold follows hold");
        chunk.holds -= 1;
        if chunk.holds == 0 && !chunk.owned {
            self.give_back(id);
        }
    }

    /// The owner lets go. The chunk is free now, or when the last operation has let go.
    ///
    /// # Errors
    /// [`BadChunk::Unknown`] when the owner had let go before.
    #[inline]
    pub fn disown(&mut self, id: ChunkId) -> Result<(), BadChunk> {
        let (slab, place) = self.find_owned(id)?;
        let chunk = &mut slab.chunks[place];
        chunk.owned = false;
        if chunk.holds == 0 {
            self.give_back(id);
        }
        Ok(())
    }

    /// The bytes of an owned chunk that no operation holds.
    ///
    /// # Errors
    /// [`BadChunk`]; `InFlight` while the kernel may write there.
    #[inline]
    pub fn bytes(
        &mut self,
        id: ChunkId,
        offset_bytes: usize,
        length_bytes: usize,
    ) -> Result<&mut [u8], BadChunk> {
        let (slab, place) = self.find_owned(id)?;
        if slab.chunks[place].holds > 0 {
            return Err(BadChunk::InFlight);
        }
        let address = slab.address(place, offset_bytes, length_bytes)?;
        // SAFETY: `address` is inside the slab's mapping, which `self` keeps mapped for as long as
        // the result borrows it. No operation holds the chunk, so the kernel does not touch it. When
        // JavaScript sees the same memory it runs on this thread, and not while a borrow is alive.
        Ok(unsafe { std::slice::from_raw_parts_mut(address.as_ptr(), address.len()) })
    }

    /// Fills a chunk with zeros unless it has never been used since it was mapped, when it is zero.
    ///
    /// # Errors
    /// As [`Arena::bytes`].
    pub fn zero(&mut self, id: ChunkId) -> Result<(), BadChunk> {
        let (slab, place) = self.find_owned(id)?;
        let (used_before, length) =
            (slab.chunks[place].used_before, slab.chunks[place].length_bytes);
        if used_before {
            self.bytes(id, 0, length)?.fill(0);
        }
        Ok(())
    }

    /// Where an owned chunk is, and the mapping to keep, for an `ArrayBuffer` over it.
    ///
    /// # Errors
    /// [`BadChunk`].
    pub fn expose(
        &mut self,
        id: ChunkId,
        length_bytes: usize,
    ) -> Result<(Address, Rc<Mapping>), BadChunk> {
        let (slab, place) = self.find_owned(id)?;
        let address = slab.address(place, 0, length_bytes)?;
        Ok((address, Rc::clone(&slab.mapping)))
    }

    /// Whether an operation holds this chunk.
    ///
    /// # Errors
    /// [`BadChunk::Unknown`].
    pub fn in_flight(&mut self, id: ChunkId) -> Result<bool, BadChunk> {
        let (slab, place) = self.find_owned(id)?;
        Ok(slab.chunks[place].holds > 0)
    }

    /// The pool an owned chunk is of.
    ///
    /// # Errors
    /// [`BadChunk::Unknown`].
    pub fn pool(&mut self, id: ChunkId) -> Result<Pool, BadChunk> {
        self.find_owned(id).map(|(slab, _)| slab.pool)
    }

    /// The slab of a chunk: its place in the buffer table, its memory, and whether it is registered.
    ///
    /// # Errors
    /// [`BadChunk::Unknown`].
    #[inline]
    pub fn slab(&mut self, id: ChunkId) -> Result<(u32, Address, Registration), BadChunk> {
        let number = id.slab() as u32;
        let (slab, _) = self.find_owned(id)?;
        Ok((number, slab.mapping.whole(), slab.registration))
    }

    /// Notes what came of registering a slab.
    pub fn set_registration(&mut self, number: u32, registration: Registration) {
        if let Some(Some(slab)) = self.slabs.get_mut(number as usize) {
            slab.registration = registration;
        }
    }

    /// Bytes of slabs in the ring's buffer table.
    #[must_use]
    pub fn registered_bytes(&self) -> usize {
        let registered = |slab: &&Slab| slab.registration == Registration::Registered;
        self.slabs.iter().flatten().filter(registered).map(|s| s.mapping.len()).sum()
    }

    /// Bytes of a pool.
    #[must_use]
    pub const fn stats(&self, pool: Pool) -> PoolStats {
        self.stats[pool as usize]
    }

    /// Keeps every mapping for ever: the kernel still holds operations into them.
    pub fn leak(&mut self) {
        for slab in self.slabs.iter().flatten() {
            std::mem::forget(Rc::clone(&slab.mapping));
        }
    }
}

#[cfg(test)]
mod tests;
