//! Which thread may interrupt which: sched_setscheduler(2), getpriority(2).

use std::io;

/// Makes the calling thread one that interrupts no other when it wakes up (`SCHED_BATCH`), at no loss of its share.
pub(crate) fn be_patient() -> io::Result<()> {
    let normal = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameter outlives the call; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const normal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The calling thread's nice value: -20 to 19.
pub(crate) fn nice() -> io::Result<i32> {
    // The system call counts from 40 down to 1, so that no result is also an error's.
    // SAFETY: it takes no pointer; 0 is the calling thread.
    let counted = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, 0) };
    i32::try_from(counted)
        .ok()
        .filter(|counted| *counted > 0)
        .map(|counted| 20 - counted)
        .ok_or_else(io::Error::last_os_error)
}
