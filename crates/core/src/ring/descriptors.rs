//! File descriptors as numbers: whether one is open, taking one over, a second one, how it was opened.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Whether `fd` is a descriptor of this process.
#[must_use]
pub(crate) fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD takes no pointer, and any number may be asked.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

/// Takes over a descriptor that the kernel has just given us (an open, a duplicate), or that the
/// caller says is now ours (adopt). It is closed when the returned value is dropped.
///
/// Passing a descriptor that somebody else closes as well is the caller's mistake to avoid; it can
/// make a later operation fail with EBADF or reach another file, as with any descriptor in Node.
#[must_use]
pub(crate) fn own_descriptor(fd: RawFd) -> OwnedFd {
    // SAFETY: asserted by all callers: `fd` is an open descriptor and nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A second descriptor of the same open file, not inherited by programs that are executed.
/// `fcntl(2)`, `F_DUPFD_CLOEXEC`.
///
/// # Errors
/// EBADF when it is not open, EMFILE when the process has none left.
pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // Past those that programs expect to be their standard streams.
    const LEAST: RawFd = 3;
    // SAFETY: F_DUPFD_CLOEXEC takes no pointer, and any number may be asked.
    let duplicate = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, LEAST) };
    if duplicate < 0 { Err(io::Error::last_os_error()) } else { Ok(own_descriptor(duplicate)) }
}

/// The flags that a descriptor was opened with, F_GETFL of `fcntl(2)`.
///
/// # Errors
/// EBADF when it is not open.
pub fn descriptor_flags(fd: RawFd) -> io::Result<i32> {
    // SAFETY: F_GETFL takes no pointer, and any number may be asked.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    if flags < 0 { Err(io::Error::last_os_error()) } else { Ok(flags) }
}
