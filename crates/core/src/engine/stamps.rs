//! When operations go to the kernel and when they are found complete, for those who measure the way
//! of a nop in stages. Off it costs one branch for each submission and one for each collection.

use super::Engine;

/// The two moments, in nanoseconds of `CLOCK_MONOTONIC`; 0 for one that has not come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamps {
    /// What was staged last was in the submission queue, and enter was next.
    pub entered_ns: u64,
    /// Completions were found last, before they were handed over.
    pub reaped_ns: u64,
}

/// Notes them while somebody measures.
#[derive(Debug, Default)]
pub(super) struct Clock {
    on: bool,
    stamps: Stamps,
}

impl Clock {
    #[inline]
    pub(super) fn note_entered(&mut self) {
        if self.on {
            self.stamps.entered_ns = now_ns();
        }
    }

    #[inline]
    pub(super) fn note_reaped(&mut self) {
        if self.on {
            self.stamps.reaped_ns = now_ns();
        }
    }
}

impl Engine {
    /// Notes from now on when operations go and come, or no longer; both moments are 0 then.
    pub fn measure(&mut self, on: bool) {
        self.clock = Clock { on, stamps: Stamps::default() };
    }

    /// The last of both moments.
    #[must_use]
    pub const fn stamps(&self) -> Stamps {
        self.clock.stamps
    }
}

/// What `process.hrtime` reads in Node: `uv_hrtime` is `CLOCK_MONOTONIC`.
#[cold]
fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}
