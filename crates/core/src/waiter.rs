//! A thread that waits where no event loop can: on the engine's eventfd, on a timer, and on being told
//! to stop. It wakes whoever drives the engine, and touches nothing of the engine itself.
//!
//! What crosses threads are three descriptors, and the kernel is between: there is no memory that both
//! sides write. (`tests/loom_wakeup.rs` has this way to be woken as well.)

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// The thread, until it is dropped.
pub struct Waiter {
    timer: Arc<OwnedFd>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Waiter {
    /// Starts a thread that calls `wake` each time `signal` became readable, which it clears first,
    /// and each time the timer is over. `wake` says whether to go on.
    ///
    /// # Errors
    /// The errno of `eventfd(2)`, `timerfd_create(2)` or `clone(2)`.
    pub fn start(
        signal: OwnedFd,
        mut wake: impl FnMut() -> bool + Send + 'static,
    ) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = Arc::new(timerfd_create(TimerfdClockId::Monotonic, flags)?);
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let theirs = (Arc::clone(&timer), Arc::clone(&stop));
        let name = "uring-reaper".to_owned();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let (timer, stop) = theirs;
            while wait(&signal, &timer, &stop) && wake() {}
        })?;
        Ok(Self { timer, stop, thread: Some(thread) })
    }

    /// Wakes once more after `delay`, unless told otherwise before.
    pub fn wake_after(&self, delay: Duration) {
        // Zero would turn it off.
        let delay = delay.max(Duration::from_nanos(1));
        let value = Timespec {
            tv_sec: delay.as_secs().cast_signed(),
            tv_nsec: i64::from(delay.subsec_nanos()),
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        // It fails only for a bad descriptor or a bad time, and these are neither.
        let _ = timerfd_settime(&*self.timer, TimerfdTimerFlags::empty(), &once);
    }
}

impl Drop for Waiter {
    /// Stops the thread and waits for it: `wake` is not called any more.
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits for either to be readable and clears it; false when it is to stop.
fn wait(signal: &OwnedFd, timer: &OwnedFd, stop: &OwnedFd) -> bool {
    let mut waits =
        [signal, timer, stop].map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN));
    // EINTR, or no memory for the moment: again. What is readable stays so.
    while poll(&mut waits, None).is_err() {}
    if !waits[2].revents().is_empty() {
        return false;
    }
    for readable in [signal, timer] {
        let mut count = [0u8; 8];
        // EAGAIN: it was the other one.
        let _ = rustix::io::read(readable, &mut count);
    }
    true
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Instant;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn started() -> (Waiter, OwnedFd, Receiver<()>) {
        let signal = eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd");
        let (send, receive) = channel();
        let theirs = signal.try_clone().expect("a descriptor");
        let waiter = Waiter::start(theirs, move || send.send(()).is_ok()).expect("a thread");
        (waiter, signal, receive)
    }

    #[test]
    fn each_signal_wakes_once_and_is_cleared() {
        let (waiter, signal, woken) = started();
        for _ in 0..100 {
            rustix::io::write(&signal, &1u64.to_ne_bytes()).expect("a signal");
            assert_eq!(woken.recv_timeout(DEADLINE), Ok(()));
        }
        std::thread::sleep(Duration::from_millis(20));
        assert!(woken.try_recv().is_err(), "and no more often");
        drop(waiter);
    }

    #[test]
    fn a_timer_wakes_when_it_is_over_and_the_last_one_counts() {
        let (waiter, _signal, woken) = started();
        let from = Instant::now();
        waiter.wake_after(Duration::from_secs(3600));
        waiter.wake_after(Duration::from_millis(20));
        assert_eq!(woken.recv_timeout(DEADLINE), Ok(()));
        assert!(from.elapsed() >= Duration::from_millis(20));
        waiter.wake_after(Duration::ZERO);
        assert_eq!(woken.recv_timeout(DEADLINE), Ok(()), "at once");
    }

    #[test]
    fn nothing_wakes_once_it_was_dropped() {
        let (waiter, signal, woken) = started();
        waiter.wake_after(Duration::from_millis(1));
        drop(waiter);
        while woken.try_recv().is_ok() {}
        rustix::io::write(&signal, &1u64.to_ne_bytes()).expect("a signal");
        assert!(woken.recv_timeout(Duration::from_millis(20)).is_err());
    }

    #[test]
    fn it_ends_by_itself_when_wake_says_so() {
        let signal = eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd");
        let theirs = signal.try_clone().expect("a descriptor");
        let (send, woken) = channel();
        let waiter = Waiter::start(theirs, move || {
            let _ = send.send(());
            false
        });
        let waiter = waiter.expect("a thread");
        rustix::io::write(&signal, &1u64.to_ne_bytes()).expect("a signal");
        assert_eq!(woken.recv_timeout(DEADLINE), Ok(()));
        // The thread gave its end of the channel up.
        assert_eq!(
            woken.recv_timeout(DEADLINE),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected)
        );
        drop(waiter);
    }
}
