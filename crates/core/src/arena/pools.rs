//! Where chunks come from and go to: each pool has slabs of its own, by size class, and a limit. Slabs
//! are mapped when a chunk needs one, and unmapped when they are unused and not worth keeping.

use std::rc::Rc;

use super::mapping::{HUGE_PAGE_BYTES, Mapping};
use super::slab::{
    CHUNK_BYTES_MAX, CLASSES, Chunk, ChunkId, GENERATION_BITS, PAGE_BYTES, Registration, SLABS_MAX,
    Slab, class_of,
};
use super::{Arena, Exhausted, Pool};

/// Chunks from this length on are in huge pages: of direct reads of 4 KiB into 8 MiB a disk did 4% more so
/// (C: 9%). Cached reads gained nothing, smaller chunks would not, and the first byte that is touched brings
/// 2 MiB in.
const HUGE_CHUNK_BYTES_MIN: usize = 1 << 20;

impl Arena {
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
            self.unused_bytes[pool as usize] -= slab.mapping.len();
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
        let huge = chunk_bytes >= HUGE_CHUNK_BYTES_MIN && slab_bytes >= HUGE_PAGE_BYTES;
        let mapping = match Mapping::new(slab_bytes, huge) {
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
                released += slab.mapping.len();
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
        self.stats[pool].mapped_bytes -= slab.mapping.len();
        self.unused_bytes[pool] -= slab.mapping.len();
        // The number is reused with generations that no id of the old slab has.
        let newest = slab.chunks.iter().map(|chunk| chunk.generation).max().unwrap_or(0);
        self.next_generation = self.next_generation.max(following(newest));
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

    pub(super) fn give_back(&mut self, id: ChunkId) {
        let Ok((slab, place)) = self.find(id) else { unreachable!("checked by the callers") };
        let pool = slab.pool as usize;
        let chunk = &mut slab.chunks[place];
        chunk.used_before = true;
        chunk.generation = following(chunk.generation);
        let was_full = slab.free.is_empty();
        slab.free.push(place as u16);
        let (class, chunk_bytes) = (slab.class, slab.chunk_bytes);
        let (unused, slab_bytes) = (slab.is_unused(), slab.mapping.len());
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
}

/// The generation after this one. Never 0: the first chunk of the first slab would be number 0 then, which
/// says that there is none.
const fn following(generation: u32) -> u32 {
    let next = (generation + 1) & ((1 << GENERATION_BITS) - 1);
    if next == 0 { 1 } else { next }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generation_after_the_last_is_the_first_and_no_number_is_0() {
        assert_eq!(following(1), 2);
        assert_eq!(following((1 << GENERATION_BITS) - 1), 1);
        assert_ne!(ChunkId::new(0, 0, following((1 << GENERATION_BITS) - 1)).number(), 0);
    }
}
