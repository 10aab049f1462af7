//! Starts the init of a sandbox in new namespaces, from a host of any size and any number of threads.
//!
//! The child shares the caller's memory and the caller's thread sleeps until it has executed init (`CLONE_VM |
//! CLONE_VFORK`), so the cost does not grow with the host's memory; the child runs on a stack of its own, with every
//! signal blocked, and makes system calls only: it allocates nothing and takes no lock. See clone(2), user_namespaces(7),
//! capabilities(7), posix_spawn(3).

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "system calls take and return whole registers: descriptors, pids and errnos fit both ways"
)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::wait::{Id, WaitPidFlag, waitid};

use super::fd::pidfd_kill;

/// Every namespace of a sandbox but the cgroup namespace, which init unshares once it is in its cgroup.
pub(crate) const NAMESPACES: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS) as u64;

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const STACK: usize = 64 * 1024;
/// What init needs inside its user namespace until the guest starts: to mount, to become the guest's user and to empty
/// the bounding set; and a zygote, to enter the namespaces of slots (setns(2) asks for
/// CAP_SYS_CHROOT, and for CAP_SYS_PTRACE over an init that is not dumpable). It gets them through `execve` as ambient capabilities, and nothing else.
const INIT_CAPABILITIES: [u64; 6] =
    [CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_SYS_CHROOT, CAP_SYS_PTRACE, CAP_SYS_ADMIN];
const CAP_SETGID: u64 = 6;
const CAP_SETUID: u64 = 7;
const CAP_SETPCAP: u64 = 8;
const CAP_SYS_CHROOT: u64 = 18;
const CAP_SYS_PTRACE: u64 = 19;
const CAP_SYS_ADMIN: u64 = 21;

/// What to start.
pub(crate) struct Spawn<'a> {
    /// The init binary.
    pub init: BorrowedFd<'a>,
    /// Init's end of the control socket.
    pub control: BorrowedFd<'a>,
    /// The namespaces to make: `CLONE_NEW*`.
    pub namespaces: u64,
    /// The cgroup v2 folder to start in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Whether to give up the supplementary groups first (needs CAP_SETGID).
    pub drop_groups: bool,
}

/// A started init; dropped, it is killed and reaped, and with it all that is in its pid namespace.
#[derive(Debug)]
pub(crate) struct Init {
    /// Readable once it and all in its pid namespace are gone.
    pub pidfd: OwnedFd,
    /// Its pid in the caller's pid namespace; valid until it is reaped.
    pub pid: libc::pid_t,
    /// Whether it is in the cgroup asked for; a kernel or seccomp filter without clone3 cannot put it there.
    pub in_cgroup: bool,
    /// Whether clone3 made it, not clone.
    pub clone3: bool,
}

impl Drop for Init {
    fn drop(&mut self) {
        // It may be dead already, or reaped: then both calls say so at once.
        pidfd_kill(self.pidfd.as_fd()).ok();
        waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::__WALL).ok();
    }
}

/// clone(2)'s `struct clone_args`, up to `cgroup` (Linux 5.7).
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Shared with the child, which lives in this memory until its `execve`.
struct Shared {
    init: RawFd,
    argv: [*const libc::c_char; 3],
    control: RawFd,
    inner: CloneArgs,
    pid: i64,
    pidfd: RawFd,
    in_cgroup: bool,
    clone3: bool,
    failed: Option<(&'static str, i32)>,
}

/// A failed start: the step, and why.
#[derive(Debug, thiserror::Error)]
#[error("failed to {step}")]
pub(crate) struct SpawnError {
    pub step: &'static str,
    #[source]
    pub source: io::Error,
}

/// Starts init. Returns once it has been executed.
pub(crate) fn spawn(what: Spawn<'_>) -> Result<Init, SpawnError> {
    let number = CString::new(what.control.as_raw_fd().to_string()).unwrap_or_default();
    // Not zeroed: each of its pages would be a page fault.
    let mut stacks = Box::<[u8]>::new_uninit_slice(2 * STACK);
    let base = (stacks.as_mut_ptr() as u64).next_multiple_of(64);
    let half = (STACK - 64) as u64;
    let mut shared = Shared {
        init: what.init.as_raw_fd(),
        argv: [c"nsbox-init".as_ptr(), number.as_ptr(), std::ptr::null()],
        control: what.control.as_raw_fd(),
        inner: CloneArgs::default(),
        pid: -1,
        pidfd: -1,
        in_cgroup: what.cgroup.is_some(),
        clone3: true,
        failed: None,
    };
    shared.inner = CloneArgs {
        flags: what.namespaces
            | (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD) as u64
            | if what.drop_groups { libc::CLONE_PARENT as u64 } else { 0 }
            | if what.cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 },
        pidfd: &raw mut shared.pidfd as u64,
        stack: base,
        stack_size: half,
        cgroup: what.cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
        ..CloneArgs::default()
    };
    let outer = CloneArgs {
        // The descriptor table is shared so that the inner clone's pidfd appears in the caller's.
        flags: (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES) as u64,
        stack: base + half,
        stack_size: half,
        ..CloneArgs::default()
    };
    let blocked = block_signals();
    if what.drop_groups {
        // SAFETY: `shared` and the stacks outlive the child, for this thread sleeps until it is done with them.
        let pid = unsafe { clone(&outer, without_groups, &raw mut shared) };
        if pid < 0 {
            shared.failed = Some(("start a process", -pid as i32));
        } else {
            // SAFETY: the process just made; it has no exit signal, so no other wait can have taken it.
            unsafe { libc::waitpid(pid as libc::pid_t, std::ptr::null_mut(), libc::__WALL) };
        }
    } else {
        start_init(&mut shared);
    }
    restore_signals(&blocked);
    // SAFETY: the kernel made this descriptor for us; nothing else knows it.
    let pidfd = (shared.pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(shared.pidfd) });
    match (shared.failed, pidfd) {
        (None, Some(pidfd)) => {
            let pid = shared.pid as libc::pid_t;
            Ok(Init { pidfd, pid, in_cgroup: shared.in_cgroup, clone3: shared.clone3 })
        }
        (failed, pidfd) => {
            if pidfd.is_some() {
                // SAFETY: as above: the child that failed to execute has ended and is ours to reap.
                unsafe { libc::waitpid(shared.pid as libc::pid_t, std::ptr::null_mut(), libc::__WALL) };
            }
            let (step, errno) = failed.unwrap_or(("start init", libc::EIO));
            Err(SpawnError { step, source: io::Error::from_raw_os_error(errno) })
        }
    }
}

/// Clones the process that becomes init; runs in the caller or, to give up groups first, in the outer child.
fn start_init(shared: &mut Shared) {
    let shared_ptr = &raw mut *shared;
    // SAFETY: the child uses `shared` and its stack only until its execve, and this thread sleeps until then.
    let pid = unsafe { clone(&shared.inner, become_init, shared_ptr) };
    if pid < 0 {
        shared.failed = Some(("make the namespaces", -pid as i32));
    } else {
        shared.pid = pid;
    }
}

/// The outer child: without supplementary groups, it clones init as its own sibling, and ends.
extern "C" fn without_groups(shared: *mut Shared) -> ! {
    // SAFETY: the caller of `clone` keeps it alive and sleeps. The raw call changes this task's groups alone.
    unsafe {
        if raw(libc::SYS_setgroups, [0; 6]) < 0 {
            (*shared).failed = Some(("give up the supplementary groups", libc::EPERM));
        } else {
            start_init(&mut *shared);
        }
        raw(libc::SYS_exit, [0; 6]);
    }
    unreachable()
}

/// The inner child: keeps the control socket and the capabilities, and executes init.
extern "C" fn become_init(shared: *mut Shared) -> ! {
    // SAFETY: the caller of `clone` keeps `shared` alive and sleeps until this has executed or ended.
    unsafe {
        let shared = &mut *shared;
        let control = shared.control as u64;
        if control > 0 {
            raw(libc::SYS_close_range, [0, control - 1, CLOSE_RANGE_CLOEXEC, 0, 0, 0]);
        }
        raw(libc::SYS_close_range, [control + 1, u64::from(u32::MAX), CLOSE_RANGE_CLOEXEC, 0, 0, 0]);
        raw(libc::SYS_fcntl, [control, libc::F_SETFD as u64, 0, 0, 0, 0]);
        // Without a user namespace there are none but the caller's own.
        let is_mapped = shared.inner.flags & libc::CLONE_NEWUSER as u64 != 0;
        let errno = if is_mapped { keep_capabilities() } else { 0 };
        if errno != 0 {
            shared.failed = Some(("keep the capabilities for the set-up", errno));
        } else {
            let environment: [*const libc::c_char; 1] = [std::ptr::null()];
            let result = raw(
                libc::SYS_execveat,
                [
                    shared.init as u64,
                    c"".as_ptr() as u64,
                    shared.argv.as_ptr() as u64,
                    environment.as_ptr() as u64,
                    libc::AT_EMPTY_PATH as u64,
                    0,
                ],
            );
            shared.failed = Some(("execute init", -result as i32));
        }
        raw(libc::SYS_exit, [127, 0, 0, 0, 0, 0]);
    }
    unreachable()
}

const CLOSE_RANGE_CLOEXEC: u64 = 4;

/// Makes init's capabilities ambient: its user has no root in the namespace, so `execve` would drop them.
fn keep_capabilities() -> i32 {
    let header = [0x2008_0522_u32, 0]; // _LINUX_CAPABILITY_VERSION_3, this task.
    let low = INIT_CAPABILITIES.iter().fold(0, |set, capability| set | 1_u32 << capability);
    let sets = [low, low, low, 0, 0, 0];
    // SAFETY: header and sets have the kernel's layout and outlive the calls; raw, so this task alone changes.
    unsafe {
        let result = raw(libc::SYS_capset, [header.as_ptr() as u64, sets.as_ptr() as u64, 0, 0, 0, 0]);
        if result < 0 {
            return -result as i32;
        }
        for capability in INIT_CAPABILITIES {
            let raise = libc::PR_CAP_AMBIENT_RAISE as u64;
            let result = raw(libc::SYS_prctl, [libc::PR_CAP_AMBIENT as u64, raise, capability, 0, 0, 0]);
            if result < 0 {
                return -result as i32;
            }
        }
    }
    0
}

fn unreachable() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

/// clone3(2), or clone(2) where a seccomp filter around us refuses the former because its flags are behind a pointer.
///
/// # Safety
/// `shared` and the stack must outlive the child or its `execve`, and `flags` must hold CLONE_VFORK.
unsafe fn clone(args: &CloneArgs, child: extern "C" fn(*mut Shared) -> !, shared: *mut Shared) -> i64 {
    let size = size_of::<CloneArgs>() as u64;
    // SAFETY: the caller's promise.
    let result = unsafe { enter(libc::SYS_clone3, [&raw const *args as u64, size, 0, 0, 0], child, shared) };
    if result != -i64::from(libc::ENOSYS) && result != -i64::from(libc::EPERM) {
        return result;
    }
    // SAFETY: as above. The flags that clone(2) does not know are dropped; exit signal 0 is the low byte.
    unsafe {
        (*shared).clone3 = false;
        if args.flags & CLONE_INTO_CGROUP != 0 {
            (*shared).in_cgroup = false;
        }
        let flags = args.flags & !CLONE_INTO_CGROUP;
        enter(libc::SYS_clone, [flags, args.stack + args.stack_size, args.pidfd, 0, 0], child, shared)
    }
}

/// Makes the call; in the child, on its new stack, calls `child`.
#[cfg(target_arch = "x86_64")]
unsafe fn enter(nr: i64, a: [u64; 5], child: extern "C" fn(*mut Shared) -> !, shared: *mut Shared) -> i64 {
    let result: i64;
    // SAFETY: the child never returns from `child`; the parent resumes with its registers and its stack as they were.
    unsafe {
        std::arch::asm!("syscall", "test rax, rax", "jnz 2f", "xor ebp, ebp", "mov rdi, r12", "call r13", "ud2", "2:",
            in("r12") shared, in("r13") child, inlateout("rax") nr => result,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4],
            lateout("rcx") _, lateout("r11") _);
    }
    result
}

/// A system call that leaves errno, which the child shares with its parent's thread, alone.
#[cfg(target_arch = "x86_64")]
unsafe fn raw(nr: i64, a: [u64; 6]) -> i64 {
    let result: i64;
    // SAFETY: the caller's promise about the pointers among the arguments.
    unsafe {
        std::arch::asm!("syscall", inlateout("rax") nr => result, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
            in("r10") a[3], in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// Blocks every signal: a handler of the host's must not run in the child, on the host's memory.
fn block_signals() -> libc::sigset_t {
    // SAFETY: both sets are initialised before use; the call cannot fail with these arguments.
    unsafe {
        let mut all = std::mem::zeroed();
        let mut before = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        before
    }
}

fn restore_signals(before: &libc::sigset_t) {
    // SAFETY: the set that `block_signals` gave.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const *before, std::ptr::null_mut()) };
}
