//! Every byte of every slab that has a chunk of ours, twice: as it is, and as it should be. Nothing but
//! a read in flight may change a byte, and it only in its own range: the rest of its chunk, the
//! neighbours and what is free are the canaries. AddressSanitizer does not see what the kernel writes.

use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use node_uring_core::arena::{Arena, BadChunk};
use node_uring_core::{ChunkId, Mapping, Pool};

/// A chunk that its owner or an operation has.
struct Chunk {
    pool: usize,
    slab: usize,
    /// In the slab.
    start: usize,
    length: usize,
    owned: bool,
    /// Operations, and holds of the input's own.
    holds: u32,
}

struct Slab {
    /// Keeps it mapped while we look.
    _mapping: Rc<Mapping>,
    shadow: Vec<u8>,
    chunks: usize,
}

impl Slab {
    fn now(&self, start: usize) -> Vec<u8> {
        let start = std::ptr::with_exposed_provenance::<u8>(start);
        let mut now = Vec::with_capacity(self.shadow.len());
        // SAFETY: `_mapping` keeps the whole slab mapped. The kernel may write parts of it meanwhile:
        // nothing is made of those bytes but a comparison that allows for any value.
        unsafe {
            std::ptr::copy_nonoverlapping(start, now.as_mut_ptr(), self.shadow.len());
            now.set_len(self.shadow.len());
        }
        now
    }
}

/// A part of a slab that a read in flight may write.
#[derive(Clone)]
pub struct Writable {
    slab: usize,
    range: Range<usize>,
}

/// What is known of the arena from outside.
#[derive(Default)]
pub struct Memory {
    chunks: HashMap<ChunkId, Chunk>,
    slabs: HashMap<usize, Slab>,
    /// Oldest first.
    pub owned: Vec<ChunkId>,
    pub gone: Vec<ChunkId>,
    /// The input's own holds.
    pub held: Vec<ChunkId>,
}

impl Memory {
    pub fn take(&mut self, arena: &mut Arena, pool: Pool, length: usize) {
        let Ok(id) = arena.take(pool, length) else { return };
        assert!(!self.gone.contains(&id), "an id is given once");
        let (address, mapping) = arena.expose(id, length).expect("it was just taken");
        let (_, whole, _) = arena.slab(id).expect("it was just taken");
        let (base, start) = (whole.as_ptr().expose_provenance(), address.as_ptr() as usize);
        assert!(start % 4096 == 0 && address.len() == length);
        assert!(base <= start && start + length <= base + whole.len(), "it leaves its slab");
        let slab = self.slabs.entry(base).or_insert_with(|| {
            let shadow = vec![0; whole.len()];
            let mut slab = Slab { _mapping: mapping, shadow, chunks: 0 };
            slab.shadow = slab.now(base);
            slab
        });
        slab.chunks += 1;
        let start = start - base;
        let chunk = Chunk { pool: pool as usize, slab: base, start, length, owned: true, holds: 0 };
        for (other, it) in &self.chunks {
            let apart = start + length <= it.start || it.start + it.length <= start;
            // Chunks of no length have a place of their own too.
            assert!(it.slab != base || (apart && it.start != start), "{id:?} is in {other:?}");
        }
        assert!(self.chunks.insert(id, chunk).is_none(), "{id:?} is somebody's");
        self.owned.push(id);
    }

    /// Whether an operation may use this range of the chunk.
    pub fn allows(&self, id: ChunkId, offset: u64, length: u64) -> bool {
        self.chunks.get(&id).is_some_and(|chunk| {
            let end = offset.checked_add(length);
            chunk.owned && end.is_some_and(|end| end <= chunk.length as u64)
        })
    }

    pub fn used_bytes(&self, pool: Pool) -> usize {
        let size = |chunk: &Chunk| match chunk.length {
            0..=4096 => 4096,
            long if long > 4 << 20 => long.next_multiple_of(4096),
            length => length.next_power_of_two(),
        };
        self.chunks.values().filter(|chunk| chunk.pool == pool as usize).map(size).sum()
    }

    /// An operation holds the chunk. Returns where it is.
    pub fn hold(&mut self, id: ChunkId, offset: u64, length: u64) -> Writable {
        let chunk = self.chunks.get_mut(&id).expect("allowed");
        chunk.holds += 1;
        let start = chunk.start + offset as usize;
        Writable { slab: chunk.slab, range: start..start + length as usize }
    }

    pub fn unhold(&mut self, id: ChunkId) {
        self.chunks.get_mut(&id).expect("held").holds -= 1;
        self.forget(id);
    }

    /// A read is over: what it wrote, wherever in its range, is how it should be from now on.
    pub fn written(&mut self, writable: &Writable) {
        let slab = self.slabs.get_mut(&writable.slab).expect("its chunk is held");
        let now = slab.now(writable.slab);
        slab.shadow[writable.range.clone()].copy_from_slice(&now[writable.range.clone()]);
    }

    pub fn hold_by_hand(&mut self, arena: &mut Arena, id: ChunkId, offset: u64, length: u64) {
        let allowed = self.allows(id, offset, length);
        let held = arena.hold(id, offset as usize, length as usize);
        assert_eq!(held.is_ok(), allowed, "{id:?} {offset} {length}");
        if let Ok(address) = held {
            let place = self.hold(id, offset, length);
            let start = address.as_ptr() as usize;
            assert_eq!(start..start + address.len(), {
                place.slab + place.range.start..place.slab + place.range.end
            });
            self.held.push(id);
        }
    }

    pub fn unhold_by_hand(&mut self, arena: &mut Arena, index: usize) {
        if !self.held.is_empty() {
            let id = self.held.swap_remove(index % self.held.len());
            arena.unhold(id);
            self.unhold(id);
        }
    }

    pub fn disown(&mut self, arena: &mut Arena, id: ChunkId) {
        let owned = self.owned.iter().position(|&it| it == id);
        let disowned = arena.disown(id);
        let Some(index) = owned else {
            assert_eq!(disowned, Err(BadChunk::Unknown), "{id:?}");
            return;
        };
        assert_eq!(disowned, Ok(()), "{id:?}");
        self.owned.remove(index);
        self.gone.push(id);
        self.chunks.get_mut(&id).expect("owned").owned = false;
        self.forget(id);
    }

    /// Nobody has the chunk any more.
    fn forget(&mut self, id: ChunkId) {
        let chunk = &self.chunks[&id];
        if chunk.owned || chunk.holds > 0 {
            return;
        }
        let slab = self.slabs.get_mut(&chunk.slab).expect("it has a chunk");
        slab.chunks -= 1;
        if slab.chunks == 0 {
            self.slabs.remove(&chunk.slab);
        }
        self.chunks.remove(&id);
    }

    /// What `Arena::bytes` and `Arena::zero` have to answer for the whole of a chunk.
    fn touchable(&self, id: ChunkId) -> Result<usize, BadChunk> {
        match self.chunks.get(&id) {
            Some(chunk) if chunk.owned && chunk.holds > 0 => Err(BadChunk::InFlight),
            Some(chunk) if chunk.owned => Ok(chunk.length),
            _ => Err(BadChunk::Unknown),
        }
    }

    /// Writes all of a chunk as its owner.
    pub fn fill(&mut self, arena: &mut Arena, id: ChunkId, byte: u8) {
        let length = match self.touchable(id) {
            Ok(length) => length,
            Err(bad) => {
                assert_eq!(arena.bytes(id, 0, 0).map(|_| ()), Err(bad));
                assert_eq!(arena.in_flight(id).unwrap_or(false), bad == BadChunk::InFlight);
                return;
            }
        };
        assert_eq!(arena.in_flight(id), Ok(false));
        assert_eq!(arena.bytes(id, 0, length + 1).map(|_| ()), Err(BadChunk::Range));
        assert_eq!(arena.bytes(id, length, 1).map(|_| ()), Err(BadChunk::Range));
        arena.bytes(id, 0, length).expect("its owner's").fill(byte);
        self.shadow(id).fill(byte);
    }

    pub fn zero(&mut self, arena: &mut Arena, id: ChunkId) {
        let before = match self.touchable(id) {
            Ok(_) => self.shadow(id).to_vec(),
            Err(bad) => {
                // A chunk that was never used is zero by itself, and its owner may say so at any time.
                let zeroed = arena.zero(id);
                assert!(zeroed == Err(bad) || (zeroed == Ok(()) && bad == BadChunk::InFlight));
                return;
            }
        };
        assert_eq!(arena.zero(id), Ok(()));
        let now = arena.bytes(id, 0, before.len()).expect("its owner's").to_vec();
        // The owner's own bytes may stay where the chunk was never another's.
        assert!(now == before || now.iter().all(|&byte| byte == 0), "{id:?}");
        self.shadow(id).copy_from_slice(&now);
    }

    fn shadow(&mut self, id: ChunkId) -> &mut [u8] {
        let chunk = &self.chunks[&id];
        let slab = self.slabs.get_mut(&chunk.slab).expect("it has a chunk");
        &mut slab.shadow[chunk.start..chunk.start + chunk.length]
    }

    /// Compares everything. `writable` are the ranges of the reads in flight.
    pub fn check<'a>(&self, writable: impl Iterator<Item = &'a Writable> + Clone) {
        for (&start, slab) in &self.slabs {
            let now = slab.now(start);
            if now == slab.shadow {
                continue;
            }
            for (place, (now, before)) in now.iter().zip(&slab.shadow).enumerate() {
                let allowed =
                    || writable.clone().any(|it| it.slab == start && it.range.contains(&place));
                assert!(
                    now == before || allowed(),
                    "byte {place} of the slab at {start:#x} was {before:#x} and is {now:#x}"
                );
            }
        }
    }
}
