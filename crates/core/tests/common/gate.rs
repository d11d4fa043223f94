//! A gate before `io_uring_enter(2)`: refuses real calls of one thread with an errno of the test's
//! choosing, by seccomp's user notification. The engine needs no seam for it and pays for none.
//!
//! `seccomp_unotify(2)`. The filter is of the thread that calls [`Gate::run`]'s body and ends with it.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

/// What the gate does. Shared between the test and the gate keeper.
#[derive(Default)]
pub struct Gate {
    /// Calls that are still to be refused; below 0 for all.
    refuse: AtomicI32,
    /// The errno; 0 for "took nothing, no error".
    errno: AtomicI32,
    passed: AtomicU64,
    refused: AtomicU64,
}

impl Gate {
    /// The next `count` calls of enter are refused with `errno`.
    pub fn refuse(&self, errno: i32, count: i32) {
        self.errno.store(errno, Ordering::SeqCst);
        self.refuse.store(count, Ordering::SeqCst);
    }

    /// Every call of enter is refused with `errno`, until [`Gate::open`].
    pub fn shut(&self, errno: i32) {
        self.refuse(errno, -1);
    }

    /// No call is refused any more.
    pub fn open(&self) {
        self.refuse.store(0, Ordering::SeqCst);
    }

    /// Calls that went to the kernel, and calls that were refused.
    pub fn calls(&self) -> (u64, u64) {
        (self.passed.load(Ordering::SeqCst), self.refused.load(Ordering::SeqCst))
    }

    fn judge(&self) -> Option<i32> {
        let left = self.refuse.load(Ordering::SeqCst);
        if left == 0 {
            self.passed.fetch_add(1, Ordering::SeqCst);
            return None;
        }
        if left > 0 {
            self.refuse.store(left - 1, Ordering::SeqCst);
        }
        self.refused.fetch_add(1, Ordering::SeqCst);
        Some(self.errno.load(Ordering::SeqCst))
    }

    /// Runs `body` in a thread of its own, behind a gate. Returns false, without running it, where
    /// the kernel has no such filter or forbids it.
    #[track_caller]
    pub fn run(body: impl FnOnce(&Self) + Send) -> bool {
        let gate = &Self::default();
        let (to_keeper, listeners) = mpsc::channel::<OwnedFd>();
        thread::scope(|scope| {
            let keeper = scope.spawn(move || {
                let Ok(listener) = listeners.recv() else { return false };
                gate.keep(&listener);
                true
            });
            let test = scope.spawn(move || {
                // The filter must not be on the keeper, which is a thread already.
                let Some(listener) = install() else {
                    drop(to_keeper);
                    return;
                };
                to_keeper.send(listener).expect("the keeper waits");
                body(gate);
            });
            // The keeper ends when the last thread behind the filter has, panicking or not.
            if let Err(panic) = test.join() {
                std::panic::resume_unwind(panic);
            }
            keeper.join().expect("the keeper")
        })
    }

    fn keep(&self, listener: &OwnedFd) {
        let fd = listener.as_raw_fd();
        loop {
            let mut ready = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd, ours.
            let count = unsafe { libc::poll(&raw mut ready, 1, -1) };
            if count < 0 {
                continue;
            }
            if ready.revents & libc::POLLIN == 0 {
                return;
            }
            // SAFETY: all zero is a value of these structs, and what RECV asks for; both outlive
            // their calls, which read and write no more than them.
            unsafe {
                let mut call: libc::seccomp_notif = std::mem::zeroed();
                if libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) != 0 {
                    continue;
                }
                let mut answer: libc::seccomp_notif_resp = std::mem::zeroed();
                answer.id = call.id;
                match self.judge() {
                    None => answer.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
                    Some(errno) => answer.error = -errno,
                }
                libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer);
            }
        }
    }
}

/// Puts the filter on this thread.
fn install() -> Option<OwnedFd> {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let give = (libc::BPF_RET | libc::BPF_K) as u16;
    let enter = libc::SYS_io_uring_enter as u32;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // `nr` is the first word of seccomp_data. Every architecture of ours numbers enter 426.
    let mut filter = [
        step(load, 0, 0, 0),
        step(equal, 0, 1, enter),
        step(give, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
        step(give, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: `program` and `filter` outlive the calls, which copy them.
    let listener = unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return None;
        }
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    // SAFETY: the kernel just gave us this descriptor.
    (listener >= 0).then(|| unsafe { OwnedFd::from_raw_fd(listener as i32) })
}
