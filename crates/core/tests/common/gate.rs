//! A gate before `io_uring_enter(2)` and `io_uring_setup(2)`: refuses real calls of one thread with an
//! errno of the test's choosing, by seccomp's user notification. The engine needs no seam for it and
//! pays for none.
//!
//! `seccomp_unotify(2)`. The filter is of the thread that calls [`Gate::run`]'s body and ends with it.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;

/// What the gate does. Shared between the test and the gate keeper.
#[derive(Default)]
pub struct Gate {
    /// Calls that are still to be refused; below 0 for all.
    refuse: AtomicI32,
    /// The errno; 0 for "took nothing, no error".
    errno: AtomicI32,
    /// Whether only calls that submit something are refused.
    submissions: AtomicBool,
    /// Set-up flags that this kernel does not have.
    unknown_flags: AtomicU32,
}

impl Gate {
    /// The next `count` calls of enter are refused with `errno`.
    pub fn refuse(&self, errno: i32, count: i32) {
        self.errno.store(errno, Ordering::SeqCst);
        self.refuse.store(count, Ordering::SeqCst);
    }

    /// Every call of enter is refused with `errno`, until [`Gate::open`].
    pub fn shut(&self, errno: i32) {
        self.submissions.store(false, Ordering::SeqCst);
        self.refuse(errno, -1);
    }

    /// Every call of enter that submits something is, as where there is no memory for requests.
    pub fn shut_for_submissions(&self, errno: i32) {
        self.submissions.store(true, Ordering::SeqCst);
        self.refuse(errno, -1);
    }

    /// No call is refused any more.
    pub fn open(&self) {
        self.refuse.store(0, Ordering::SeqCst);
    }

    /// From now on `io_uring_setup(2)` refuses these flags with EINVAL, as an older kernel does.
    pub fn forget_flags(&self, flags: u32) {
        self.unknown_flags.store(flags, Ordering::SeqCst);
    }

    /// The errno that the call is refused with, if it is.
    fn judge(&self, call: &libc::seccomp_data) -> Option<i32> {
        if i64::from(call.nr) == libc::SYS_io_uring_setup {
            // struct io_uring_params: sq_entries, cq_entries, flags.
            let params = call.args[1] as *const [u32; 3];
            // SAFETY: the caller is a thread of ours that waits for our answer, and its second
            // argument is the address of the params that it means the kernel to read.
            let flags = unsafe { (*params)[2] };
            let unknown = self.unknown_flags.load(Ordering::SeqCst);
            return (flags & unknown != 0).then_some(libc::EINVAL);
        }
        if self.submissions.load(Ordering::SeqCst) && call.args[1] == 0 {
            return None;
        }
        let left = self.refuse.load(Ordering::SeqCst);
        if left > 0 {
            self.refuse.store(left - 1, Ordering::SeqCst);
        }
        (left != 0).then(|| self.errno.load(Ordering::SeqCst))
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
                match self.judge(&call.data) {
                    None => answer.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
                    Some(errno) => answer.error = -errno,
                }
                libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer);
            }
        }
    }
}

/// Where `nr` and the second argument (its low half) are in `struct seccomp_data`.
const NUMBER: u32 = 0;
const SECOND_ARGUMENT: u32 = if cfg!(target_endian = "little") { 24 } else { 28 };

fn step(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const GIVE: u32 = libc::BPF_RET | libc::BPF_K;

/// Runs `body` in a thread of its own in which the system call `number` fails with `errno`, for the
/// given second argument or for all. Returns false, without running it, where that cannot be had.
#[track_caller]
pub fn forbid(number: i64, second: Option<u32>, errno: i32, body: impl FnOnce() + Send) -> bool {
    let refuse = step(GIVE, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32);
    let allow = step(GIVE, 0, 0, libc::SECCOMP_RET_ALLOW);
    let mut filter = match second {
        None => vec![step(LOAD, 0, 0, NUMBER), step(EQUAL, 0, 1, number as u32), refuse, allow],
        Some(second) => vec![
            step(LOAD, 0, 0, NUMBER),
            step(EQUAL, 0, 3, number as u32),
            step(LOAD, 0, 0, SECOND_ARGUMENT),
            step(EQUAL, 0, 1, second),
            refuse,
            allow,
        ],
    };
    thread::scope(|scope| {
        let test = scope.spawn(move || {
            let done = filter_thread(&mut filter, 0).is_some();
            if done {
                body();
            }
            done
        });
        test.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Puts the filter that asks the keeper on this thread.
fn install() -> Option<OwnedFd> {
    let (enter, setup) = (libc::SYS_io_uring_enter as u32, libc::SYS_io_uring_setup as u32);
    let mut filter = [
        step(LOAD, 0, 0, NUMBER),
        step(EQUAL, 1, 0, enter),
        step(EQUAL, 0, 1, setup),
        step(GIVE, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
        step(GIVE, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let listener = filter_thread(&mut filter, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
    // SAFETY: the kernel just gave us this descriptor.
    Some(unsafe { OwnedFd::from_raw_fd(listener) })
}

/// Puts a filter on this thread, for the rest of its life.
fn filter_thread(filter: &mut [libc::sock_filter], flags: libc::c_ulong) -> Option<i32> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: `program` and `filter` outlive the calls, which copy them.
    let done = unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return None;
        }
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    (done >= 0).then_some(done as i32)
}
