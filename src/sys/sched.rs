//! Which thread may interrupt which: sched_setscheduler(2).

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
