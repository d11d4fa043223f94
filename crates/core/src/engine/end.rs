//! The end of an engine: everything is cancelled, and the kernel gets a bounded time to let go.

use std::time::{Duration, Instant};

use super::{Engine, Life};
use crate::in_flight::Target;

impl Engine {
    /// Cancels everything, waits at most `patience` for the kernel to let go, and closes. Returns
    /// whether it let go; if not, the memory and the descriptors that it may still use are kept for ever.
    pub fn shutdown(&mut self, patience: Duration) -> bool {
        if self.life == Life::Closed {
            return self.let_go;
        }
        self.listed = None;
        let clean = self.life == Life::Running && self.cancel_and_wait(patience);
        self.life = Life::Closed;
        self.let_go = clean;
        self.ready.clear();
        self.out.clear();
        if !clean {
            self.arena.leak();
            self.files.leak();
            self.in_flight.leak();
        }
        clean
    }

    /// What has to be given back: slots, and those of many.
    const fn held_by_kernel(&self) -> usize {
        self.in_flight.len() + self.in_flight.quiet() + self.in_flight.many_with_kernel()
    }

    fn cancel_and_wait(&mut self, patience: Duration) -> bool {
        self.reaper.disarm(&mut self.ring);
        self.stop_gathering();
        self.ready.extend(self.staged.drain(..));
        self.ready.extend(self.urgent.drain(..));
        if let Some(polled) = &mut self.polled {
            self.ready.extend(polled.staged.drain(..));
        }
        self.open_chain = 0;
        for slot in self.in_flight.slots_of_many() {
            self.cancel(slot);
        }
        let started = Instant::now();
        let mut asked = false;
        loop {
            if self.submit(true).is_err() {
                return false;
            }
            let before = self.held_by_kernel();
            while self.collect() {}
            self.cancels.forget_missed();
            if self.held_by_kernel() == 0 {
                return true;
            }
            // A timeout that nobody waits for goes as soon as its cancel has been looked at.
            let patience =
                if self.in_flight.is_empty() { patience.max(QUIET_PATIENCE) } else { patience };
            if asked && started.elapsed() >= patience {
                return false;
            }
            let stuck = self.held_by_kernel() == before;
            if asked && stuck && (!self.cancels.wait() || self.refused > 0) {
                std::thread::sleep(Duration::from_micros(100));
            }
            // Again when nothing ends by it: a hard link starts when the one before it has been
            // cancelled, and the kernel does not find an operation that is on its way between two
            // queues. Each by its user_data: to cancel any (ASYNC_CANCEL_ANY) the kernel looks at all
            // for each, and 8,000 reads of a FIFO took 20 s in a few system calls.
            if !self.cancels.wait() && (stuck || !asked) {
                let targets: Vec<Target> = self.in_flight.submitted().collect();
                for target in targets {
                    self.ask_to_cancel(target);
                }
            }
            asked = true;
        }
    }
}

/// How long the end waits for quiet operations alone, at least.
const QUIET_PATIENCE: Duration = Duration::from_millis(100);

impl Drop for Engine {
    fn drop(&mut self) {
        self.shutdown(Duration::from_millis(100));
    }
}
