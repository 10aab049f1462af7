//! The supervisor's end of a seccomp user notification. seccomp_unotify(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A refused or fatal call that waits for the supervisor's word.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Notification {
    /// Names the notification in the answer.
    pub id: u64,
    /// System call number.
    pub nr: i32,
    /// The call's arguments; pointers among them are the guest's and are never followed.
    pub args: [u64; 6],
}

// _IOWR('!', 0, struct seccomp_notif), _IOWR('!', 1, struct seccomp_notif_resp).
const NOTIF_RECV: u64 = ioctl(0, size_of::<libc::seccomp_notif>());
const NOTIF_SEND: u64 = ioctl(1, size_of::<libc::seccomp_notif_resp>());

const fn ioctl(number: u64, size: usize) -> u64 {
    3 << 30 | (size as u64) << 16 | (b'!' as u64) << 8 | number
}

/// Takes the next notification, which a poll has announced with POLLIN; `None` when the caller has gone meanwhile.
pub(crate) fn receive(listener: BorrowedFd<'_>) -> io::Result<Option<Notification>> {
    // SAFETY: the kernel demands a zeroed structure, and all-zero is valid for it.
    let mut notification: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the request matches the structure, which outlives the call.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_RECV, &raw mut notification) };
    if result == 0 {
        let libc::seccomp_data { nr, args, .. } = notification.data;
        return Ok(Some(Notification { id: notification.id, nr, args }));
    }
    let error = io::Error::last_os_error();
    // ENOENT: the caller was killed between the poll and the read.
    if error.raw_os_error() == Some(libc::ENOENT) { Ok(None) } else { Err(error) }
}

/// Makes the call fail with `errno`.
pub(crate) fn refuse(listener: BorrowedFd<'_>, id: u64, errno: i32) -> io::Result<()> {
    send(listener, libc::seccomp_notif_resp { id, val: 0, error: -errno, flags: 0 })
}

/// Lets the call run. What its pointers lead to may change until it does: only for one that may run whatever that is.
pub(crate) fn let_run(listener: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    // SECCOMP_USER_NOTIF_FLAG_CONTINUE, Linux 5.5.
    send(listener, libc::seccomp_notif_resp { id, val: 0, error: 0, flags: 1 })
}

fn send(listener: BorrowedFd<'_>, answer: libc::seccomp_notif_resp) -> io::Result<()> {
    // SAFETY: the request matches the structure, which outlives the call.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_SEND, &raw const answer) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENOENT) { Ok(()) } else { Err(error) }
}
