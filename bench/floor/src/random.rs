//! Where each operation goes: block-aligned positions, spread evenly over the whole file.

/// What splitmix64 adds at each step: 2^64 over the golden ratio.
const INCREMENT: u64 = 0x9e37_79b9_7f4a_7c15;

/// An endless sequence of positions in bytes, the same for the same seed.
#[derive(Debug)]
pub struct Offsets {
    /// Never 0, which xorshift cannot leave.
    state: u64,
    blocks: u64,
    block_bytes: u64,
}

impl Offsets {
    /// `blocks` is at least 1.
    pub fn new(seed: u64, blocks: u64, block_bytes: u32) -> Self {
        assert!(blocks > 0, "a file without a block has no positions");
        // The finish of splitmix64: neighbouring seeds begin far apart.
        let mut state = seed.wrapping_add(INCREMENT);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^= state >> 31;
        Self {
            // One seed of 2^64 mixes to 0.
            state: if state == 0 { INCREMENT } else { state },
            blocks,
            block_bytes: u64::from(block_bytes),
        }
    }

    /// xorshift64 and one multiplication in place of a division: about 1 ns.
    #[inline]
    pub fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let block = (u128::from(self.state) * u128::from(self.blocks)) >> 64;
        block as u64 * self.block_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(seed: u64, blocks: u64, block_bytes: u32, count: usize) -> Vec<u64> {
        let mut offsets = Offsets::new(seed, blocks, block_bytes);
        (0..count).map(|_| offsets.next()).collect()
    }

    #[test]
    fn positions_are_aligned_and_reach_every_block_about_equally_often() {
        let mut hits = [0_u32; 100];
        for offset in take(1, 100, 512, 100_000) {
            assert_eq!(offset % 512, 0);
            hits[(offset / 512) as usize] += 1;
        }
        assert!(hits.iter().all(|count| (800..1200).contains(count)), "{hits:?}");
    }

    #[test]
    fn a_seed_decides_the_sequence() {
        assert_eq!(take(7, 1 << 20, 4096, 50), take(7, 1 << 20, 4096, 50));
        assert_ne!(take(7, 1 << 20, 4096, 50), take(8, 1 << 20, 4096, 50));
    }

    #[test]
    fn the_seed_that_mixes_to_zero_does_not_stop_at_position_zero() {
        // This seed cancels the constant that is added to it.
        let seed = 0_u64.wrapping_sub(INCREMENT);
        assert!(take(seed, 1 << 20, 4096, 10).iter().all(|&offset| offset > 0));
    }

    #[test]
    fn one_block_is_always_position_zero() {
        assert!(take(3, 1, 4096, 10).iter().all(|&offset| offset == 0));
    }
}
