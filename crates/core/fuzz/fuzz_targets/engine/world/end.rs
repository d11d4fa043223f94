//! The end of an input: everything completes or is cancelled, and nothing is left.

use std::time::{Duration, Instant};

use node_uring_core::{Opcode, Refusal, Request, Turn};

use super::{DEADLINE, POOLS, World, poll};
use crate::steps::Ending;

impl World<'_> {
    pub fn end(mut self, ending: Ending) {
        // A refusal ends a chain that is still open.
        self.stage_request(&Request { opcode: 77, ..Request::default() });
        match ending {
            Ending::Cancel => self.settle(true),
            Ending::Wait => self.settle(false),
            Ending::Shutdown => self.shut_down(),
        }
        self.check_memory();
        while !self.memory.held.is_empty() {
            self.memory.unhold_by_hand(self.engine.arena(), 0);
        }
        while let Some(&id) = self.memory.owned.first() {
            self.memory.disown(self.engine.arena(), id);
        }
        for pool in POOLS {
            let stats = self.engine.arena().stats(pool);
            assert_eq!(stats.used_bytes, 0, "{pool:?}");
            assert!(stats.mapped_bytes <= 64 << 10, "{pool:?} keeps {}", stats.mapped_bytes);
        }
        if !matches!(ending, Ending::Shutdown) {
            self.close_files();
            self.check_books();
            assert!(self.engine.shutdown(DEADLINE), "nothing is in flight");
        }
        assert_eq!(self.engine.turn(), Turn::Block);
        assert_eq!(self.engine.stage(&Request::default()), Err(Refusal::Closed));
    }

    /// Until nothing is out: by cancelling all of it, or by closing the other ends of pipes and
    /// cancelling only what would never end.
    fn settle(&mut self, cancel_all: bool) {
        if !cancel_all {
            self.other_ends.clear();
        }
        let started = Instant::now();
        while !self.out.is_empty() {
            let what = || self.out.values().map(|out| out.opcode).collect::<Vec<_>>();
            assert!(started.elapsed() < DEADLINE, "lost: {:?}", what());
            let cancels: Vec<u32> = self
                .out
                .iter()
                .filter(|(_, out)| cancel_all || !out.ends)
                .map(|(&slot, _)| slot)
                .collect();
            for &slot in &cancels {
                self.cancel(slot);
            }
            match self.turn() {
                Turn::Block if cancels.is_empty() => {
                    if !poll(self.engine.wait_descriptor(), libc::POLLIN, 5000) {
                        panic!("nobody woke the loop: {:?}", self.engine.stats());
                    }
                    self.engine.woken();
                }
                // A hard link starts when the one before it was cancelled: ask again soon.
                Turn::Block => {
                    if poll(self.engine.wait_descriptor(), libc::POLLIN, 1) {
                        self.engine.woken();
                    }
                }
                Turn::Retry { after_ms } => {
                    std::thread::sleep(Duration::from_millis(after_ms.into()))
                }
                _ => {}
            }
            self.check_books();
        }
        assert!(!self.engine.is_busy());
    }

    fn shut_down(&mut self) {
        assert!(self.engine.shutdown(DEADLINE), "the kernel keeps something");
        assert_eq!(self.engine.in_flight(), 0);
        assert!(!self.engine.is_busy() && self.engine.completions().is_empty());
        for (slot, out) in std::mem::take(&mut self.out) {
            assert!(!self.engine.cancel(slot));
            if let Some(writable) = &out.writable {
                self.memory.written(writable);
            }
            if let Some(id) = out.chunk {
                self.memory.unhold(id);
            }
        }
    }

    fn close_files(&mut self) {
        while let Some(known) = self.files.first() {
            let (opcode, file) = (Opcode::Close as u32, known.handle.number());
            self.stage_request(&Request { opcode, file, slot: 0, ..Request::default() });
            self.settle(false);
        }
        assert!(self.engine.files().is_empty());
    }
}
