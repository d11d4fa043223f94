//! The ring: set-up with its fallbacks, registration, and the loop that is measured.
//!
//! The io-uring crate's queues are used as they are. Writing the SQEs once and patching them in
//! place saves 1.5 ns of 62 on a batched NOP and nothing on a read: not worth a second mapping.

#![allow(unsafe_code)] // io_uring_enter(2), pushing SQEs, registering buffers

use std::io;
use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{Builder, EnterFlags, IoUring, Submitter, cqueue, opcode, squeue};

use crate::arguments::Wait;

type Flag = (&'static str, fn(&mut Builder) -> &mut Builder);

const SUBMIT_ALL: Flag = ("SUBMIT_ALL", Builder::setup_submit_all);
const SINGLE_ISSUER: Flag = ("SINGLE_ISSUER", Builder::setup_single_issuer);
const DEFER_TASKRUN: Flag = ("DEFER_TASKRUN", Builder::setup_defer_taskrun);
const COOP_TASKRUN: Flag = ("COOP_TASKRUN", Builder::setup_coop_taskrun);
const TASKRUN_FLAG: Flag = ("TASKRUN_FLAG", Builder::setup_taskrun_flag);
const NO_SQARRAY: Flag = ("NO_SQARRAY", Builder::setup_no_sqarray);

/// Sets of flags, best first, each with the kernel that brought it; the first that the kernel takes
/// is used.
const LADDER: [&[Flag]; 6] = [
    &[SUBMIT_ALL, SINGLE_ISSUER, DEFER_TASKRUN, TASKRUN_FLAG, NO_SQARRAY], // 6.6
    &[SUBMIT_ALL, SINGLE_ISSUER, DEFER_TASKRUN, TASKRUN_FLAG],             // 6.1
    &[SUBMIT_ALL, SINGLE_ISSUER, COOP_TASKRUN, TASKRUN_FLAG],              // 6.0
    &[SUBMIT_ALL, COOP_TASKRUN, TASKRUN_FLAG],                             // 5.19
    &[SUBMIT_ALL],                                                         // 5.18
    &[],
];

/// An SQE whose memory the kernel may use for as long as it likes.
pub struct Sqe(Entry);

impl Sqe {
    /// Takes an entry and the slot that its completion is to name.
    ///
    /// # Safety
    ///
    /// The memory and the descriptor that the entry names stay valid until the process ends.
    ///
    /// # References
    ///
    /// `io_uring_enter(2)`
    #[inline]
    pub unsafe fn new(entry: Entry, slot: u32) -> Self {
        Self(entry.user_data(u64::from(slot)))
    }

    #[inline]
    pub fn nop(slot: u32) -> Self {
        // SAFETY: a NOP names neither memory nor a descriptor.
        unsafe { Self::new(opcode::Nop::new().build(), slot) }
    }
}

pub struct Ring {
    inner: IoUring,
    /// Indexed as [`LADDER`].
    rung: usize,
    /// Whether enter names the ring by its registered index (5.18); known once started.
    registered: bool,
}

impl Ring {
    /// Sets up a ring for at least `entries` operations in flight.
    pub fn set_up(entries: u32) -> Result<Self, String> {
        for rung in 0..LADDER.len() {
            match Self::set_up_on(rung, entries) {
                Ok(ring) => return Ok(ring),
                // A flag that this kernel does not know, or a combination that it does not allow.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(format!("io_uring_setup: {error}")),
            }
        }
        Err(format!("io_uring_setup refuses {entries} entries even without flags"))
    }

    fn set_up_on(rung: usize, entries: u32) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        for (_, set) in LADDER[rung] {
            set(&mut builder);
        }
        Ok(Self { inner: builder.build(entries)?, rung, registered: false })
    }

    /// Registers the buffers; buffer `i` is the `i`th entry.
    ///
    /// # Safety
    ///
    /// The memory stays mapped until the process ends.
    ///
    /// # References
    ///
    /// `io_uring_register(2)`, `IORING_REGISTER_BUFFERS`
    pub unsafe fn register_buffers(&self, buffers: &[libc::iovec]) -> io::Result<()> {
        // SAFETY: passed on to the caller.
        unsafe { self.inner.submitter().register_buffers(buffers) }
    }

    /// Registers one file and returns its index.
    pub fn register_file(&self, fd: RawFd) -> io::Result<i32> {
        self.inner.submitter().register_files(&[fd]).map(|()| 0)
    }

    /// Registers the ring's descriptor where the kernel can (5.18) and hands out the queues.
    pub fn start(&mut self) -> Result<Session<'_>, String> {
        let (mut submitter, submission, completion) = self.inner.split();
        self.registered = match submitter.register_ring_fd() {
            Ok(()) => true,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => false,
            Err(error) => return Err(format!("IORING_REGISTER_RING_FDS: {error}")),
        };
        Ok(Session { submitter, submission, completion })
    }

    pub fn setup_flags(&self) -> impl Iterator<Item = &'static str> {
        LADDER[self.rung].iter().map(|(name, _)| *name)
    }

    pub fn is_registered(&self) -> bool {
        self.registered
    }

    pub fn entries(&mut self) -> usize {
        self.inner.submission().capacity()
    }

    pub fn completion_entries(&mut self) -> usize {
        self.inner.completion().capacity()
    }
}

/// Why a round ended early.
#[derive(Debug)]
pub enum Failure {
    Enter(io::Error),
    /// An operation's result was not the expected one.
    Result {
        slot: u64,
        result: i32,
    },
}

impl Failure {
    /// The message, for an operation of this name that was to return `expected`.
    pub fn explain(self, operation: &str, expected: u32) -> String {
        match self {
            Self::Enter(error) => format!("io_uring_enter: {error}"),
            Self::Result { slot, result } if result >= 0 => {
                format!("{operation} in slot {slot} returned {result} in place of {expected}")
            }
            Self::Result { slot, result } => {
                let error = io::Error::from_raw_os_error(-result);
                let hint = match -result {
                    libc::EINVAL => " (with --direct, --block must suit the device)",
                    libc::EBADF | libc::EFAULT => " (the floor's own mistake)",
                    _ => "",
                };
                format!("{operation} in slot {slot} failed: {error}{hint}")
            }
        }
    }
}

/// The queues of a ring that has started. One submitter for its whole life: the registered index is
/// kept in there and would be forgotten with it.
pub struct Session<'a> {
    submitter: Submitter<'a>,
    submission: squeue::SubmissionQueue<'a>,
    completion: cqueue::CompletionQueue<'a>,
}

impl Session<'_> {
    /// Runs `operations`, at most `batch` of them in flight, and returns how often it entered.
    /// `sqe` makes the next operation of a slot; each must return `expected`.
    ///
    /// After a failure operations may still be in flight, and the session must not be used again.
    pub fn drive(
        &mut self,
        operations: u64,
        batch: u32,
        wait: Wait,
        expected: u32,
        mut sqe: impl FnMut(u32) -> Sqe,
    ) -> Result<u64, Failure> {
        let Self { submitter, submission, completion } = self;
        let mut in_flight = operations.min(u64::from(batch)) as u32;
        let mut waiting = operations - u64::from(in_flight);
        let mut enters = 0;
        for slot in 0..in_flight {
            push(submission, &sqe(slot));
        }

        while in_flight > 0 {
            submission.sync();
            let min_complete = match wait {
                Wait::Batch => in_flight,
                Wait::One => 1,
            };
            enter(submitter, submission.len() as u32, min_complete).map_err(Failure::Enter)?;
            enters += 1;

            submission.sync();
            completion.sync();
            for entry in &mut *completion {
                let (slot, result) = (entry.user_data(), entry.result());
                if result != expected as i32 {
                    return Err(Failure::Result { slot, result });
                }
                if waiting > 0 {
                    waiting -= 1;
                    push(submission, &sqe(slot as u32));
                } else {
                    in_flight -= 1;
                }
            }
            // The kernel must see these as consumed before it is asked to wait: it counts what lies
            // in the queue.
            completion.sync();
        }
        Ok(enters)
    }
}

#[inline]
fn push(submission: &mut squeue::SubmissionQueue<'_>, sqe: &Sqe) {
    // SAFETY: whoever made the `Sqe` promised that what it names outlives the operation.
    let pushed = unsafe { submission.push(&sqe.0) };
    assert!(pushed.is_ok(), "one SQE a slot, and the queue has room for all slots");
}

#[inline]
fn enter(submitter: &Submitter<'_>, to_submit: u32, min_complete: u32) -> io::Result<()> {
    let flags = EnterFlags::GETEVENTS.bits();
    // SAFETY: without an argument enter reads nothing but the ring; `push` vouches for its entries.
    match unsafe { submitter.enter::<libc::sigset_t>(to_submit, min_complete, flags, None) } {
        Ok(_) => Ok(()),
        // A signal, before anything was submitted: the loop comes back with the same entries.
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rung_that_this_kernel_takes_completes_batches_and_a_remainder() {
        for rung in 0..LADDER.len() {
            let Ok(mut ring) = Ring::set_up_on(rung, 8) else {
                eprintln!("skipped rung {rung}: this kernel refuses it");
                continue;
            };
            let mut session = ring.start().unwrap();
            let mut made = [0; 8];
            let enters = session.drive(20, 8, Wait::Batch, 0, |slot| {
                made[slot as usize] += 1;
                Sqe::nop(slot)
            });
            assert_eq!(enters.unwrap(), 3, "8 + 8 + 4 on rung {rung}");
            assert_eq!(made, [3, 3, 3, 3, 2, 2, 2, 2]);
            assert_eq!(session.drive(3, 8, Wait::One, 0, Sqe::nop).unwrap(), 1);
        }
    }

    #[test]
    fn a_result_that_was_not_expected_ends_the_round() {
        let mut ring = Ring::set_up(4).unwrap();
        let failure = ring.start().unwrap().drive(4, 4, Wait::Batch, 1, Sqe::nop).unwrap_err();
        assert_eq!(failure.explain("nop", 1), "nop in slot 0 returned 0 in place of 1");
        let failure = Failure::Result { slot: 3, result: -libc::EIO };
        assert!(failure.explain("read", 4096).starts_with("read in slot 3 failed: Input/output"));
    }
}
