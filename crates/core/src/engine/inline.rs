//! Who copies the data of cached reads: the thread that submits them, inside enter, or kernel workers
//! (IOSQE_ASYNC). ARCHITECTURE.md has the measurements.

/// Bytes that the submitting thread copies inside one enter, beyond which the rest waits for the next:
/// what bounds how long enter takes, and with it how late a timer can be.
pub(super) const INLINE_ENTER_BYTES: u32 = 1 << 20;
/// A read counts as so many of these at least: 16 bytes take half as long as 4 KiB.
const INLINE_MIN_BYTES: u32 = 2 << 10;

/// What a read that is inline takes of [`INLINE_ENTER_BYTES`]; nothing where there is none.
#[inline]
const fn cost_bytes(inline_bytes: u32) -> u32 {
    match inline_bytes {
        1..INLINE_MIN_BYTES => INLINE_MIN_BYTES,
        _ => inline_bytes,
    }
}

/// What reads of the page cache cost the thread that submits them: it copies inside enter.
#[derive(Clone, Copy, Debug)]
pub struct InlinePolicy {
    /// Reads shorter than this are always inline: handing one over costs more than the copy.
    pub small_bytes: u32,
    /// A read that is alone, nothing staged or in flight beside it, is inline up to this length.
    pub alone_bytes: u32,
    /// Otherwise reads are inline until this many bytes were submitted in a turn; the rest goes whole
    /// to kernel workers (IOSQE_ASYNC), where several cores copy.
    pub turn_bytes: u32,
}

impl Default for InlinePolicy {
    fn default() -> Self {
        Self { small_bytes: 64 << 10, alone_bytes: 1 << 20, turn_bytes: 128 << 10 }
    }
}

impl InlinePolicy {
    /// Whether a read goes to a kernel worker; counts it against the turn's bytes if not.
    #[inline]
    pub(super) fn punts(self, inline_bytes: u32, alone: bool, turn_bytes: &mut u32) -> bool {
        if inline_bytes < self.small_bytes || (alone && inline_bytes <= self.alone_bytes) {
            return false;
        }
        let total = turn_bytes.saturating_add(inline_bytes);
        if total > self.turn_bytes {
            return true;
        }
        *turn_bytes = total;
        false
    }

    /// The same, and takes what it copies if it does not of what the enter may copy.
    #[inline]
    pub(super) fn hands_over(
        self,
        inline_bytes: u32,
        alone: bool,
        turn_bytes: &mut u32,
        enter_bytes: &mut u32,
    ) -> bool {
        let punted = self.punts(inline_bytes, alone, turn_bytes);
        if !punted {
            *enter_bytes = enter_bytes.saturating_sub(cost_bytes(inline_bytes));
        }
        punted
    }
}
