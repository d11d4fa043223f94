//! All memory that the kernel reads and writes for data: page-aligned slabs from mmap, cut into
//! chunks of one size class a slab.
//!
//! Knows who may hold a chunk: one owner (the JavaScript side) and any number of operations. A chunk
//! is free again when nobody holds it. A mapping lives as long as the arena or an exposed
//! `ArrayBuffer` refers to it, whichever is longer. Never gives out an address without a hold.

use std::io;
use std::ptr::NonNull;
use std::rc::Rc;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Smallest chunk, and the alignment of every chunk: the page.
pub const PAGE_BYTES: usize = 4096;
/// Largest slab that is cut into chunks; a longer chunk has a slab of its own.
pub const SLAB_BYTES_MAX: usize = PAGE_BYTES << CHUNK_BITS;
/// Longest chunk. One SQE's length is 32 bits, and the kernel stops at 2 GiB - 4 KiB by itself.
pub const CHUNK_BYTES_MAX: usize = 1 << 40;

const CHUNK_BITS: u32 = 10;
const SLAB_BITS: u32 = 14;
const GENERATION_BITS: u32 = 29;
const SLABS_MAX: usize = 1 << SLAB_BITS;
const POOLS: usize = 3;
/// Size classes 4 KiB, 8 KiB … SLAB_BYTES_MAX.
const CLASSES: usize = CHUNK_BITS as usize + 1;

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

/// Names a chunk of one moment: slab, place in it, and how often that place had been given out.
/// Fits the 53 bits of a JavaScript number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkId(u64);

impl ChunkId {
    const fn new(slab: usize, chunk: usize, generation: u32) -> Self {
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

    const fn slab(self) -> usize {
        (self.0 >> CHUNK_BITS) as usize & (SLABS_MAX - 1)
    }

    const fn chunk(self) -> usize {
        self.0 as usize & ((1 << CHUNK_BITS) - 1)
    }

    const fn generation(self) -> u64 {
        self.0 >> (SLAB_BITS + CHUNK_BITS)
    }
}

/// An address in the arena, with the bytes that may be touched there. Made only here; valid while
/// the hold lasts that it was given with.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    start: NonNull<u8>,
    length_bytes: usize,
}

impl Address {
    /// The first byte.
    #[must_use]
    pub const fn as_ptr(self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Bytes that may be touched.
    #[must_use]
    pub const fn len(self) -> usize {
        self.length_bytes
    }

    /// Whether nothing may be touched.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.length_bytes == 0
    }

    /// A part of it, or `None` when that leaves it.
    #[inline]
    #[must_use]
    pub fn part(self, offset_bytes: usize, length_bytes: usize) -> Option<Self> {
        if offset_bytes.checked_add(length_bytes)? > self.length_bytes {
            return None;
        }
        // SAFETY: the offset is inside the memory that `self` names, or one past its end.
        let start = unsafe { self.start.add(offset_bytes) };
        Some(Self { start, length_bytes })
    }
}

/// Memory from mmap, unmapped when the last reference goes: the arena's, or that of a buffer that
/// JavaScript still holds.
pub struct Mapping {
    start: NonNull<u8>,
    length_bytes: usize,
}

impl Mapping {
    /// Maps zeroed, private memory that a fork does not copy: libuv forks plainly, and copying the
    /// page tables of a registered 64 MiB arena made each `spawn` 20 ms slower. Pages are faulted in
    /// at first touch.
    fn new(length_bytes: usize) -> io::Result<Self> {
        // SAFETY: an anonymous mapping at an address of the kernel's choosing touches no memory that
        // exists.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                length_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        let Some(start) = NonNull::new(start.cast()) else {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        };
        let mapping = Self { start, length_bytes };
        // SAFETY: the range is the mapping just made, whole; DONTFORK changes no content.
        unsafe { madvise(mapping.start.as_ptr().cast(), length_bytes, Advice::LinuxDontFork) }?;
        Ok(mapping)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the last reference, so no slab, no exposed ArrayBuffer and (the arena leaks
        // mappings that the kernel still holds) no operation refers to the range.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.length_bytes) };
        debug_assert!(unmapped.is_ok());
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

struct Chunk {
    generation: u32,
    /// Whether the JavaScript side holds it (an ArrayBuffer, or an operation's bounce memory).
    owned: bool,
    /// Whether somebody has had it since it was mapped; untouched memory is zero by itself.
    used_before: bool,
    /// Operations that hold it.
    holds: u32,
    /// What was asked for; at most the chunk's size.
    length_bytes: usize,
}

struct Slab {
    mapping: Rc<Mapping>,
    pool: Pool,
    class: usize,
    chunk_bytes: usize,
    registration: Registration,
    /// Free places, used last in, first out: what was touched last is warm.
    free: Vec<u16>,
    chunks: Vec<Chunk>,
}

impl Slab {
    fn is_unused(&self) -> bool {
        self.free.len() == self.chunks.len()
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

    /// Takes a chunk of at least `length_bytes` for its owner. O(1) but for a new slab's mmap.
    ///
    /// # Errors
    /// [`Exhausted`] when the pool's limit, or the kernel, does not allow it.
    ///
    /// # Panics
    /// When the arena's own books are wrong.
    #[inline]
    pub fn take(&mut self, pool: Pool, length_bytes: usize) -> Result<ChunkId, Exhausted> {
        let class = class_of(length_bytes);
        let number = match self.partial.get(pool as usize).and_then(|of| of.get(class)) {
            Some(slabs) if !slabs.is_empty() => slabs[slabs.len() - 1],
            _ => self.grow(pool, class, length_bytes)?,
        };
        let index = number as usize;
        let slab = self.slabs[index].as_mut().expect("a partial slab is mapped");
        if slab.is_unused() {
            self.unused_bytes[pool as usize] -= slab.mapping.length_bytes;
        }
        let place = slab.free.pop().expect("a partial slab has a free chunk");
        if slab.free.is_empty() && slab.class < CLASSES {
            self.partial[pool as usize][slab.class].pop();
        }
        let chunk = &mut slab.chunks[place as usize];
        debug_assert!(!chunk.owned && chunk.holds == 0, "a free chunk is held by nobody");
        chunk.owned = true;
        chunk.length_bytes = length_bytes;
        self.stats[pool as usize].used_bytes += slab.chunk_bytes;
        Ok(ChunkId::new(index, place as usize, chunk.generation))
    }

    /// Maps a slab for chunks of `class`, or for one long chunk.
    fn grow(&mut self, pool: Pool, class: usize, length_bytes: usize) -> Result<u16, Exhausted> {
        let chunk_bytes = if class < CLASSES {
            PAGE_BYTES << class
        } else {
            length_bytes.checked_next_multiple_of(PAGE_BYTES).ok_or(Exhausted::TooLong)?
        };
        let limit = self.options.max_bytes[pool as usize];
        // A pool whose limit is below a slab has smaller ones.
        let usual_bytes = self.options.slab_bytes.min(limit.max(PAGE_BYTES));
        let slab_bytes = chunk_bytes.max(1 << usual_bytes.ilog2());
        if slab_bytes > limit || length_bytes > CHUNK_BYTES_MAX {
            return Err(Exhausted::TooLong);
        }
        if self.stats[pool as usize].mapped_bytes + slab_bytes > limit {
            self.release_unused(pool, slab_bytes);
            if self.stats[pool as usize].mapped_bytes + slab_bytes > limit {
                return Err(Exhausted::Limit);
            }
        }
        let number = match self.vacant.pop() {
            Some(number) => number,
            None if self.slabs.len() < SLABS_MAX => {
                self.slabs.push(None);
                (self.slabs.len() - 1) as u16
            }
            None => return Err(Exhausted::Limit),
        };
        let mapping = match Mapping::new(slab_bytes) {
            Ok(mapping) => Rc::new(mapping),
            Err(error) => {
                self.vacant.push(number);
                return Err(Exhausted::Kernel(error.raw_os_error().unwrap_or(libc::ENOMEM)));
            }
        };
        let count = slab_bytes / chunk_bytes;
        let generation = self.next_generation;
        let chunks = (0..count)
            .map(|_| Chunk {
                generation,
                owned: false,
                used_before: false,
                holds: 0,
                length_bytes: 0,
            })
            .collect();
        self.slabs[number as usize] = Some(Slab {
            mapping,
            pool,
            class,
            chunk_bytes,
            registration: Registration::Untried,
            free: (0..count as u16).rev().collect(),
            chunks,
        });
        if class < CLASSES {
            self.partial[pool as usize][class].push(number);
        }
        self.stats[pool as usize].mapped_bytes += slab_bytes;
        self.unused_bytes[pool as usize] += slab_bytes;
        Ok(number)
    }

    /// Unmaps unused slabs of `pool` until `wanted_bytes` have been let go.
    fn release_unused(&mut self, pool: Pool, wanted_bytes: usize) {
        let mut released = 0;
        for index in 0..self.slabs.len() {
            if released >= wanted_bytes {
                break;
            }
            let unused = self.slabs[index].as_ref().filter(|s| s.pool == pool && s.is_unused());
            if let Some(slab) = unused {
                released += slab.mapping.length_bytes;
                self.retire(index);
            }
        }
    }

    /// Lets an unused slab go. Its mapping is unmapped now, or when the last buffer over it goes.
    fn retire(&mut self, index: usize) {
        let Some(slab) = self.slabs[index].take() else { return };
        debug_assert!(slab.is_unused());
        let pool = slab.pool as usize;
        if slab.class < CLASSES {
            self.partial[pool][slab.class].retain(|&number| number as usize != index);
        }
        self.stats[pool].mapped_bytes -= slab.mapping.length_bytes;
        self.unused_bytes[pool] -= slab.mapping.length_bytes;
        // The number is reused with generations that no id of the old slab has.
        let newest = slab.chunks.iter().map(|chunk| chunk.generation).max().unwrap_or(0);
        self.next_generation = self.next_generation.max(newest + 1) & ((1 << GENERATION_BITS) - 1);
        if slab.registration == Registration::Registered {
            self.retired.push(index as u16);
        } else {
            self.vacant.push(index as u16);
        }
    }

    /// The next registered slab that was let go: the engine empties its table entry, and the number
    /// becomes vacant. (The pages stay pinned until then; nobody can reach them.)
    pub fn take_retired(&mut self) -> Option<u32> {
        let number = self.retired.pop()?;
        self.vacant.push(number);
        Some(u32::from(number))
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

    fn give_back(&mut self, id: ChunkId) {
        let Ok((slab, place)) = self.find(id) else { unreachable!("checked by the callers") };
        let pool = slab.pool as usize;
        let chunk = &mut slab.chunks[place];
        chunk.used_before = true;
        chunk.generation = (chunk.generation + 1) & ((1 << GENERATION_BITS) - 1);
        let was_full = slab.free.is_empty();
        slab.free.push(place as u16);
        let (class, chunk_bytes) = (slab.class, slab.chunk_bytes);
        let (unused, slab_bytes) = (slab.is_unused(), slab.mapping.length_bytes);
        self.stats[pool].used_bytes -= chunk_bytes;
        if was_full && class < CLASSES {
            self.partial[pool][class].push(id.slab() as u16);
        }
        if unused {
            self.unused_bytes[pool] += slab_bytes;
            // A long chunk's slab fits nobody else; other slabs stay for the next taker, to a limit.
            if class == CLASSES || self.unused_bytes[pool] > self.options.retain_bytes[pool] {
                self.retire(id.slab());
            }
        }
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
        let whole = Address { start: slab.mapping.start, length_bytes: slab.mapping.length_bytes };
        Ok((number, whole, slab.registration))
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
        self.slabs.iter().flatten().filter(registered).map(|s| s.mapping.length_bytes).sum()
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

impl Slab {
    #[inline]
    fn address(
        &self,
        place: usize,
        offset_bytes: usize,
        length_bytes: usize,
    ) -> Result<Address, BadChunk> {
        let end = offset_bytes.checked_add(length_bytes).ok_or(BadChunk::Range)?;
        if end > self.chunks[place].length_bytes {
            return Err(BadChunk::Range);
        }
        // SAFETY: place * chunk_bytes + end <= mapping.length_bytes, since a chunk's length is at
        // most chunk_bytes and places are below length_bytes / chunk_bytes.
        let start = unsafe { self.mapping.start.add(place * self.chunk_bytes + offset_bytes) };
        Ok(Address { start, length_bytes })
    }
}

/// The size class that fits `length_bytes`; CLASSES for a chunk that needs a slab of its own.
#[inline]
const fn class_of(length_bytes: usize) -> usize {
    if length_bytes > SLAB_BYTES_MAX {
        return CLASSES;
    }
    let pages = length_bytes.saturating_sub(1) / PAGE_BYTES;
    (usize::BITS - pages.leading_zeros()) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn small() -> Arena {
        Arena::new(ArenaOptions {
            slab_bytes: 64 << 10,
            max_bytes: [256 << 10; 3],
            retain_bytes: [64 << 10; 3],
        })
    }

    #[test]
    fn a_size_class_is_the_smallest_power_of_two_pages_that_fits() {
        for (length, class) in
            [(0, 0), (1, 0), (4096, 0), (4097, 1), (8192, 1), (8193, 2), (4 << 20, 10)]
        {
            assert_eq!(class_of(length), class, "{length}");
        }
        assert_eq!(class_of((4 << 20) + 1), CLASSES);
    }

    #[test]
    fn chunks_are_page_aligned_and_apart() {
        let mut arena = small();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..32 {
            let id = arena.take(Pool::Alloc, 4096).expect("a chunk");
            let (address, _) = arena.expose(id, 4096).expect("its address");
            assert_eq!(address.as_ptr() as usize % PAGE_BYTES, 0);
            assert!(seen.insert(address.as_ptr() as usize), "given out once");
        }
    }

    #[test]
    fn a_chunk_that_an_operation_holds_is_not_given_out_again_when_its_owner_goes() {
        let mut arena = small();
        let id = arena.take(Pool::Alloc, 4096).expect("a chunk");
        let held = arena.hold(id, 0, 4096).expect("a hold").as_ptr();
        arena.disown(id).expect("its owner goes");
        for _ in 0..63 {
            let other = arena.take(Pool::Alloc, 4096).expect("a chunk");
            assert_ne!(arena.expose(other, 1).expect("exposed").0.as_ptr(), held);
        }
        assert_eq!(arena.take(Pool::Alloc, 4096), Err(Exhausted::Limit));
        arena.unhold(id);
        let again = arena.take(Pool::Alloc, 4096).expect("free now");
        assert_eq!(arena.expose(again, 1).expect("exposed").0.as_ptr(), held);
        assert_ne!(again, id, "a new generation");
        assert_eq!(arena.hold(id, 0, 1).unwrap_err(), BadChunk::Unknown);
    }

    #[test]
    fn an_owner_can_let_go_only_once() {
        let mut arena = small();
        let id = arena.take(Pool::Alloc, 10).expect("a chunk");
        assert_eq!(arena.disown(id), Ok(()));
        assert_eq!(arena.disown(id), Err(BadChunk::Unknown));
    }

    #[test]
    fn a_range_outside_the_length_that_was_asked_for_is_refused() {
        let mut arena = small();
        let id = arena.take(Pool::Bounce, 100).expect("a chunk");
        assert!(arena.hold(id, 0, 100).is_ok());
        for (offset, length) in [(0, 101), (100, 1), (101, 0), (usize::MAX, 1), (1, usize::MAX)] {
            assert_eq!(arena.hold(id, offset, length).unwrap_err(), BadChunk::Range);
        }
    }

    #[test]
    fn pools_do_not_starve_each_other() {
        let mut arena = small();
        while arena.take(Pool::Alloc, 4096).is_ok() {}
        assert!(arena.take(Pool::Bounce, 4096).is_ok());
        assert_eq!(arena.stats(Pool::Alloc).used_bytes, 256 << 10);
    }

    #[test]
    fn an_unused_slab_of_another_class_makes_room_at_the_limit() {
        let mut arena = small();
        let ids: Vec<_> = (0..64).map(|_| arena.take(Pool::Alloc, 4096).expect("4 KiB")).collect();
        assert_eq!(arena.take(Pool::Alloc, 65536), Err(Exhausted::Limit));
        for id in ids {
            arena.disown(id).expect("owned");
        }
        assert!(arena.stats(Pool::Alloc).mapped_bytes <= 64 << 10, "the rest was unmapped");
        for _ in 0..4 {
            arena.take(Pool::Alloc, 65536).expect("64 KiB, where 4 KiB chunks were");
        }
    }

    #[test]
    fn a_reused_chunk_is_zeroed() {
        let mut arena = small();
        let id = arena.take(Pool::Alloc, 4096).expect("a chunk");
        arena.bytes(id, 0, 4096).expect("bytes").fill(7);
        arena.disown(id).expect("owned");
        let id = arena.take(Pool::Alloc, 4096).expect("the same");
        arena.zero(id).expect("owned");
        assert!(arena.bytes(id, 0, 4096).expect("bytes").iter().all(|&byte| byte == 0));
    }

    #[test]
    fn bytes_are_refused_while_the_kernel_may_write_them() {
        let mut arena = small();
        let id = arena.take(Pool::Bounce, 4096).expect("a chunk");
        arena.hold(id, 0, 4096).expect("a hold");
        assert_eq!(arena.bytes(id, 0, 1).unwrap_err(), BadChunk::InFlight);
        arena.unhold(id);
        assert!(arena.bytes(id, 0, 1).is_ok());
    }

    #[test]
    fn a_mapping_outlives_the_arena_while_a_buffer_refers_to_it() {
        let mut arena = small();
        let id = arena.take(Pool::Alloc, 4096).expect("a chunk");
        let (address, mapping) = arena.expose(id, 4096).expect("exposed");
        drop(arena);
        assert_eq!(Rc::strong_count(&mapping), 1);
        // SAFETY: `mapping` keeps the range mapped.
        unsafe { address.as_ptr().write(1) };
    }

    #[test]
    fn memory_of_the_arena_is_not_copied_to_children() {
        let mut arena = small();
        let id = arena.take(Pool::Alloc, 4096).expect("a chunk");
        let start = arena.expose(id, 1).expect("exposed").0.as_ptr() as usize;
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        let mut inside = false;
        for line in smaps.lines() {
            let range = line.split_whitespace().next().and_then(|word| word.split_once('-'));
            let bound = |text| usize::from_str_radix(text, 16).ok();
            if let Some((Some(from), Some(to))) = range.map(|(from, to)| (bound(from), bound(to))) {
                inside = (from..to).contains(&start);
            } else if inside && line.starts_with("VmFlags:") {
                assert!(line.split_whitespace().any(|flag| flag == "dc"), "{line}");
                return;
            }
        }
        panic!("the slab is not in smaps");
    }

    proptest! {
        #[test]
        fn any_number_used_as_a_chunk_id_is_refused_or_names_a_live_chunk(
            numbers in proptest::collection::vec(any::<u64>(), 64), offset: usize, length: usize,
        ) {
            let mut arena = small();
            let id = arena.take(Pool::Alloc, 5000).expect("a chunk");
            for number in numbers {
                let guess = ChunkId::from_number(number);
                if guess != id {
                    prop_assert_eq!(arena.hold(guess, offset, length).unwrap_err(), BadChunk::Unknown);
                    prop_assert_eq!(arena.disown(guess), Err(BadChunk::Unknown));
                }
            }
        }

        /// Any order of take, hold, unhold and disown keeps the books: no address is given twice,
        /// and when all is let go nothing counts as used.
        #[test]
        fn the_books_balance(steps in proptest::collection::vec((0..4u8, 0..9000usize, any::<u16>()), 1..300)) {
            let mut arena = small();
            let mut owned: Vec<ChunkId> = Vec::new();
            let mut held: Vec<ChunkId> = Vec::new();
            for (what, length, pick) in steps {
                let pick = pick as usize;
                match what {
                    0 => if let Ok(id) = arena.take(Pool::Alloc, length) {
                        prop_assert!(!owned.contains(&id) && !held.contains(&id));
                        owned.push(id);
                    },
                    1 if !owned.is_empty() => {
                        let id = owned[pick % owned.len()];
                        arena.hold(id, 0, 0).expect("owned");
                        held.push(id);
                    }
                    2 if !held.is_empty() => arena.unhold(held.swap_remove(pick % held.len())),
                    3 if !owned.is_empty() => {
                        let id = owned.swap_remove(pick % owned.len());
                        prop_assert_eq!(arena.disown(id), Ok(()));
                    }
                    _ => {}
                }
            }
            for id in held { arena.unhold(id); }
            for id in owned { prop_assert_eq!(arena.disown(id), Ok(())); }
            prop_assert_eq!(arena.stats(Pool::Alloc).used_bytes, 0);
            prop_assert!(arena.stats(Pool::Alloc).mapped_bytes <= 64 << 10);
        }
    }
}
