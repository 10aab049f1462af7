//! Receives a set-up program and executes it: shared by the freestanding init (`main.rs`) and the extension module of the
//! pool's zygote (`module.rs`). No libc, no allocator.

use core::arch::asm;
use core::mem::size_of;

#[path = "../program.rs"]
#[allow(dead_code, missing_docs)]
pub mod program;
use program::*;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("nsbox-init knows the system call convention of x86_64 alone");

pub mod nr {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const CLOSE: usize = 3;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const SENDMSG: usize = 46;
    pub const RECVMSG: usize = 47;
    pub const FCNTL: usize = 72;
    pub const WAITID: usize = 247;
    pub const PPOLL: usize = 271;
    pub const SIGNALFD4: usize = 289;
    pub const CLOSE_RANGE: usize = 436;
}

pub const SIGCHLD: u64 = 17;
const POLLIN: i16 = 1;
const P_ALL: usize = 0;
const WNOHANG: usize = 1;
const WEXITED: usize = 4;
pub const WALL: usize = 0x4000_0000;
const SFD_CLOEXEC: usize = 0o2_000_000;
pub const F_DUPFD_CLOEXEC: usize = 1030;
const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
const MSG_NOSIGNAL: usize = 0x4000;
/// Of `struct cmsghdr` and the descriptors behind it, in words of 8 bytes.
const RIGHTS: usize = 2 + PASSED_REGISTERS.div_ceil(2);

/// Where a program is received.
#[repr(C, align(64))]
pub struct Buffer(pub [u8; MAX_PROGRAM]);

/// A program in place: addresses resolved, lengths checked.
pub struct Program {
    pub header: Header,
    ops: *const Op,
    data: *mut u8,
    pub registers: [i64; REGISTERS],
    /// Where its reports go.
    pub control: usize,
    /// How many descriptors came with it.
    passed: usize,
}

/// Makes a system call.
///
/// # Safety
/// What the call may touch is the caller's to promise.
pub unsafe fn syscall(nr: usize, a: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the kernel's x86_64 convention; the rest is the caller's promise.
    unsafe {
        asm!("syscall", inlateout("rax") nr as isize => result, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
             in("r10") a[3], in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// Sends a message without descriptors.
pub fn report(control: usize, kind: u32, index: u32, errno: i32, code: i32, status: i32) {
    let message = Report { kind, index, errno, code, status };
    let mut iov = [&raw const message as usize, size_of::<Report>()];
    let header = [0, 0, iov.as_mut_ptr() as usize, 1, 0, 0, 0_usize];
    // A supervisor that does not take the message is dead, which the poll loop sees.
    // SAFETY: the message outlives the call.
    unsafe { syscall(nr::SENDMSG, [control, header.as_ptr() as usize, MSG_NOSIGNAL, 0, 0, 0]) };
}

/// Sends a message that carries a descriptor.
pub fn report_descriptor(control: usize, kind: u32, fd: i32) {
    let message = Report { kind, index: 0, errno: 0, code: 0, status: 0 };
    let mut iov = [&raw const message as usize, size_of::<Report>()];
    // struct cmsghdr: length (header and one descriptor), level SOL_SOCKET, type SCM_RIGHTS; the descriptor.
    let mut rights = [20_u64, 1 | 1 << 32, u64::from(fd as u32)];
    let header = [0, 0, iov.as_mut_ptr() as usize, 1, rights.as_mut_ptr() as usize, 24, 0_usize];
    // SAFETY: all of it outlives the call.
    unsafe { syscall(nr::SENDMSG, [control, header.as_ptr() as usize, MSG_NOSIGNAL, 0, 0, 0]) };
}

/// Receives a program and its descriptors; `None` at the end of the socket, or where the message is not a program.
///
/// # Safety
/// Nothing else uses the buffer, now or as long as the program is used.
pub unsafe fn load(socket: usize, buffer: *mut Buffer) -> Option<Program> {
    let base = buffer.cast::<u8>();
    let mut rights = [0_u64; RIGHTS];
    let mut iov = [base as usize, MAX_PROGRAM];
    // struct msghdr: name, name length, iov, iov count, control, control length, flags.
    let mut message = [0, 0, iov.as_mut_ptr() as usize, 1, rights.as_mut_ptr() as usize, RIGHTS * 8, 0];
    // SAFETY: the buffer is the caller's promise, and the rest outlives the call.
    let length = unsafe { syscall(nr::RECVMSG, [socket, message.as_mut_ptr() as usize, MSG_CMSG_CLOEXEC, 0, 0, 0]) };
    if length < size_of::<Header>() as isize {
        return None;
    }
    // SAFETY: the buffer is aligned and longer than a header.
    let header = unsafe { base.cast::<Header>().read() };
    let ops = size_of::<Header>();
    let relocations = ops + (header.setup + header.guest) as usize * size_of::<Op>();
    let data = (relocations + header.relocations as usize * 4).next_multiple_of(16);
    if header.magic != MAGIC || data + header.data as usize != length as usize {
        return None;
    }
    let mut registers = [-1; REGISTERS];
    registers[CONTROL_REGISTER] = socket as i64;
    // The one control message is of SCM_RIGHTS: no other was asked for. Its length counts the 16 bytes of its header.
    let passed = (rights[0] as usize).saturating_sub(16) / 4;
    for (i, register) in registers[OWN_REGISTERS..CONTROL_REGISTER].iter_mut().take(passed).enumerate() {
        *register = i64::from((rights[2 + i / 2] >> (32 * (i % 2))) as i32);
    }
    registers[CONTROL_REGISTER] = registers[header.control as usize % REGISTERS];
    let control = registers[CONTROL_REGISTER] as usize;
    // SAFETY: all offsets lie within the `length` bytes that were read; the supervisor aligned each pointer slot to 8.
    unsafe {
        let data = base.add(data);
        for i in 0..header.relocations as usize {
            let slot = data.add(base.add(relocations).cast::<u32>().add(i).read() as usize).cast::<u64>();
            slot.write(data as u64 + slot.read());
        }
        Some(Program { header, ops: base.add(ops).cast(), data, registers, control, passed })
    }
}

impl Program {
    /// Executes operations `from..to`; the first that fails is reported, and ends it with `false`.
    ///
    /// # Safety
    /// `from..to` lies within the header's counts.
    pub unsafe fn execute(&mut self, from: u32, to: u32) -> bool {
        for index in from..to {
            // SAFETY: the header's counts were checked against the message's length.
            let op = unsafe { self.ops.add(index as usize).read() };
            let mut args = [0_usize; 6];
            for (i, arg) in args.iter_mut().enumerate() {
                *arg = match (op.kinds >> (2 * i)) & 3 {
                    ARG_DATA => self.data as usize + op.args[i] as usize,
                    ARG_REGISTER => self.registers[op.args[i] as usize % REGISTERS] as usize,
                    _ => op.args[i] as usize,
                };
            }
            if op.nr == OP_STORE {
                // SAFETY: the supervisor made the offset, inside the data and aligned to 4.
                unsafe { (args[0] as *mut u32).write_unaligned(args[1] as u32) };
                continue;
            }
            // SAFETY: the supervisor built the call and owns what it does; its pointers lead into the data.
            let result = unsafe { syscall(op.nr as usize, args) };
            if result < 0 && (op.tolerate == 0 || -result != op.tolerate as isize) {
                report(self.control, REPORT_FAILED, index, -result as i32, 0, 0);
                return false;
            }
            if op.dst != NO_REGISTER {
                self.registers[op.dst as usize % REGISTERS] = result as i64;
            }
        }
        true
    }

    /// Closes the descriptors that came with it.
    pub fn close_passed(&self) {
        for fd in self.registers[OWN_REGISTERS..].iter().take(self.passed) {
            // SAFETY: close takes no pointer.
            unsafe { syscall(nr::CLOSE, [*fd as usize, 0, 0, 0, 0, 0]) };
        }
    }
}

/// Occupies the numbers below [`FIRST_DESCRIPTOR`], so that the descriptors of a program get higher ones.
pub fn occupy(control: usize) {
    // SAFETY: fcntl takes no pointer here.
    while (0..FIRST_DESCRIPTOR as isize - 1)
        .contains(&unsafe { syscall(nr::FCNTL, [control, F_DUPFD_CLOEXEC, 0, 0, 0, 0]) })
    {}
}

/// Closes all descriptors but these.
pub fn close_all_but<const COUNT: usize>(mut keep: [i32; COUNT]) {
    keep.sort_unstable();
    let mut next = 0;
    for fd in keep {
        if fd > next {
            // SAFETY: close_range takes no pointer.
            unsafe { syscall(nr::CLOSE_RANGE, [next as usize, fd as usize - 1, 0, 0, 0, 0]) };
        }
        next = fd + 1;
    }
    // SAFETY: as above.
    unsafe { syscall(nr::CLOSE_RANGE, [next as usize, u32::MAX as usize, 0, 0, 0, 0]) };
}

/// A descriptor that is readable when a child changes state. SIGCHLD must be blocked, and is then.
pub fn child_signals() -> isize {
    let mask = 1_u64 << (SIGCHLD - 1);
    // SAFETY: the mask is eight bytes.
    unsafe {
        syscall(nr::RT_SIGPROCMASK, [0, &raw const mask as usize, 0, 8, 0, 0]);
        syscall(nr::SIGNALFD4, [usize::MAX, &raw const mask as usize, 8, SFD_CLOEXEC, 0, 0])
    }
}

#[repr(C)]
struct PollFd {
    fd: i32,
    events: i16,
    revents: i16,
}

/// Sleeps until one of them is readable; a negative descriptor is passed over.
pub fn wait(descriptors: [i32; 3]) -> [bool; 3] {
    let mut set = descriptors.map(|fd| PollFd { fd, events: POLLIN, revents: 0 });
    // SAFETY: the set outlives the call.
    unsafe { syscall(nr::PPOLL, [set.as_mut_ptr() as usize, set.len(), 0, 0, 0, 0]) };
    [set[0].revents != 0, set[1].revents != 0, set[2].revents != 0]
}

/// Reaps every child that has ended: its pid, `si_code` and `si_status`.
pub fn reap(signals: usize, mut ended: impl FnMut(i32, i32, i32)) {
    // Emptied before the reaping, so that a child that ends meanwhile is signalled again.
    let mut drained = [0_u64; 16];
    // SAFETY: one signalfd_siginfo is 128 bytes. The descriptor is readable, so this does not block.
    unsafe { syscall(nr::READ, [signals, drained.as_mut_ptr() as usize, 128, 0, 0, 0]) };
    loop {
        let mut info = [0_u32; 32];
        // SAFETY: siginfo_t is 128 bytes.
        let result =
            unsafe { syscall(nr::WAITID, [P_ALL, 0, info.as_mut_ptr() as usize, WNOHANG | WEXITED | WALL, 0, 0]) };
        // siginfo_t: si_signo, si_errno, si_code, padding, si_pid, si_uid, si_status.
        if result < 0 || info[4] == 0 {
            return;
        }
        ended(info[4] as i32, info[2] as i32, info[6] as i32);
    }
}
