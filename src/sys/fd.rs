//! Descriptors that no crate wraps: pidfds, and taking ownership of ones received over a socket.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A pidfd of `pid`; readable once the process is dead. pidfd_open(2).
pub(crate) fn pidfd_open(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointer.
    own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// Sends SIGKILL to the process behind `pidfd`. pidfd_send_signal(2).
pub(crate) fn pidfd_kill(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, null, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes a descriptor that the kernel has just made for this process (a system call's result, or SCM_RIGHTS).
pub(crate) fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: callers pass only descriptors that nothing else owns yet.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The descriptor that a raw call returned, or its errno.
#[expect(clippy::cast_possible_truncation, reason = "descriptors are ints")]
pub(super) fn own(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(adopt(result as RawFd)) }
}
