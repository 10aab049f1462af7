//! Pid 1 of a sandbox: executes the set-up program, starts the guest, reaps, and dies with its supervisor.
//!
//! Freestanding (no libc, no allocator, no runtime): `execve` of it costs a few pages, it inherits nothing of the
//! supervisor's memory or environment, and it can be read whole. `build.rs` compiles it; the supervisor keeps it in a
//! sealed memfd. Called as `nsbox-init CONTROL`, where CONTROL is the descriptor of a `SOCK_SEQPACKET` socket.
//!
//! See pid_namespaces(7), clone(2), waitid(2), signalfd(2).
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::mem::size_of;
use core::ptr::addr_of_mut;

#[path = "../program.rs"]
#[allow(dead_code, missing_docs)]
mod program;
use program::*;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("nsbox-init knows the system call convention of x86_64 alone");

mod nr {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const RT_SIGACTION: usize = 13;
    pub const CLONE: usize = 56;
    pub const RECVMSG: usize = 47;
    pub const FCNTL: usize = 72;
    pub const PRCTL: usize = 157;
    pub const EXIT_GROUP: usize = 231;
    pub const WAITID: usize = 247;
    pub const PPOLL: usize = 271;
    pub const SIGNALFD4: usize = 289;
    pub const CLOSE_RANGE: usize = 436;
}

const SIGCHLD: u64 = 17;
const CLONE_VM: usize = 0x100;
const CLONE_VFORK: usize = 0x4000;
const POLLIN: i16 = 1;
const P_ALL: usize = 0;
const WNOHANG: usize = 1;
const WEXITED: usize = 4;
const WALL: usize = 0x4000_0000;
const PR_SET_NAME: usize = 15;
const F_DUPFD_CLOEXEC: usize = 1030;
const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
/// Of `struct cmsghdr` and the descriptors behind it, in words of 8 bytes.
const RIGHTS: usize = 2 + PASSED_REGISTERS.div_ceil(2);
/// Exit status when the supervisor is gone or the program is not one: nobody is left to read it.
const ABANDONED: usize = 1;

// The kernel enters with argc at the stack pointer, and no return address.
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "mov rdi, rsp", "and rsp, -16", "call {main}", "ud2", main = sym main);

#[repr(C, align(64))]
struct Buffer([u8; MAX_PROGRAM]);
static mut PROGRAM: Buffer = Buffer([0; MAX_PROGRAM]);
#[repr(C, align(64))]
struct Stack([u8; 16 * 1024]);
static mut GUEST_STACK: Stack = Stack([0; 16 * 1024]);

/// A program in place: addresses resolved, lengths checked.
struct Program {
    header: Header,
    ops: *const Op,
    data: *mut u8,
    registers: [i64; REGISTERS],
    control: usize,
}

unsafe fn syscall(nr: usize, a: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the kernel's x86_64 convention; what the call may touch is the caller's to promise.
    unsafe {
        asm!("syscall", inlateout("rax") nr as isize => result, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
             in("r10") a[3], in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

fn exit(status: usize) -> ! {
    loop {
        // SAFETY: exit_group takes no pointer.
        unsafe { syscall(nr::EXIT_GROUP, [status, 0, 0, 0, 0, 0]) };
    }
}

fn report(control: usize, kind: u32, index: u32, errno: i32, code: i32, status: i32) {
    let message = Report { kind, index, errno, code, status };
    // A supervisor that does not take the message is dead, which the poll loop sees.
    // SAFETY: the message outlives the call.
    unsafe { syscall(nr::WRITE, [control, &raw const message as usize, size_of::<Report>(), 0, 0, 0]) };
}

/// Receives the program and its descriptors, or ends: there is no supervisor to serve.
unsafe fn load(control: usize) -> Program {
    let base = addr_of_mut!(PROGRAM).cast::<u8>();
    let mut rights = [0_u64; RIGHTS];
    let mut iov = [base as usize, MAX_PROGRAM];
    // struct msghdr: name, name length, iov, iov count, control, control length, flags.
    let mut message = [0, 0, iov.as_mut_ptr() as usize, 1, rights.as_mut_ptr() as usize, RIGHTS * 8, 0];
    // SAFETY: the program's buffer is static, this is the only thread, and the rest outlives the call.
    let length =
        unsafe { syscall(nr::RECVMSG, [control, message.as_mut_ptr() as usize, MSG_CMSG_CLOEXEC, 0, 0, 0]) };
    if length < size_of::<Header>() as isize {
        exit(ABANDONED);
    }
    // SAFETY: the buffer is aligned and longer than a header.
    let header = unsafe { base.cast::<Header>().read() };
    let ops = size_of::<Header>();
    let relocations = ops + (header.setup + header.guest) as usize * size_of::<Op>();
    let data = (relocations + header.relocations as usize * 4).next_multiple_of(16);
    if header.magic != MAGIC || data + header.data as usize != length as usize {
        exit(ABANDONED);
    }
    let mut registers = [-1; REGISTERS];
    registers[CONTROL_REGISTER] = control as i64;
    // The one control message is of SCM_RIGHTS: no other was asked for. Its length counts the 16 bytes of its header.
    let passed = (rights[0] as usize).saturating_sub(16) / 4;
    for (i, register) in registers[OWN_REGISTERS..CONTROL_REGISTER].iter_mut().take(passed).enumerate() {
        *register = i64::from((rights[2 + i / 2] >> (32 * (i % 2))) as i32);
    }
    // SAFETY: all offsets lie within the `length` bytes that were read; the supervisor aligned each pointer slot to 8.
    unsafe {
        let data = base.add(data);
        for i in 0..header.relocations as usize {
            let slot = data.add(base.add(relocations).cast::<u32>().add(i).read() as usize).cast::<u64>();
            slot.write(data as u64 + slot.read());
        }
        Program { header, ops: base.add(ops).cast(), data, registers, control }
    }
}

/// Occupies the numbers below [`FIRST_DESCRIPTOR`], so that the descriptors of the program get higher ones.
fn occupy(control: usize) {
    // SAFETY: fcntl takes no pointer here.
    while (0..FIRST_DESCRIPTOR as isize - 1)
        .contains(&unsafe { syscall(nr::FCNTL, [control, F_DUPFD_CLOEXEC, 0, 0, 0, 0]) })
    {}
}

/// Executes operations `from..to`; the first that fails is reported and ends the process.
unsafe fn execute(program: &mut Program, from: u32, to: u32) {
    for index in from..to {
        // SAFETY: the header's counts were checked against the message's length.
        let op = unsafe { program.ops.add(index as usize).read() };
        let mut args = [0_usize; 6];
        for (i, arg) in args.iter_mut().enumerate() {
            *arg = match (op.kinds >> (2 * i)) & 3 {
                ARG_DATA => program.data as usize + op.args[i] as usize,
                ARG_REGISTER => program.registers[op.args[i] as usize % REGISTERS] as usize,
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
            report(program.control, REPORT_FAILED, index, -result as i32, 0, 0);
            exit(ABANDONED);
        }
        if op.dst != NO_REGISTER {
            program.registers[op.dst as usize % REGISTERS] = result as i64;
        }
    }
}

/// The guest's process up to its execve; the address space is init's, which sleeps until then (CLONE_VFORK).
unsafe extern "C" fn guest(program: *mut Program) -> ! {
    // SAFETY: init does not run while this does.
    let program = unsafe { &mut *program };
    let first = program.header.setup;
    // SAFETY: as in main.
    unsafe { execute(program, first, first + program.header.guest) };
    exit(ABANDONED)
}

/// Starts the guest's process and returns its pid once it has executed the interpreter.
unsafe fn start_guest(program: *mut Program) -> isize {
    let result: isize;
    // SAFETY: the child runs on a stack of its own and never returns from `guest`; the parent resumes after the syscall
    // with its registers as they were.
    unsafe {
        let stack = addr_of_mut!(GUEST_STACK).cast::<u8>().add(size_of::<Stack>());
        asm!("syscall", "test rax, rax", "jnz 2f", "mov rdi, r12", "call {guest}", "ud2", "2:",
             guest = sym guest, in("r12") program, inlateout("rax") nr::CLONE as isize => result,
             in("rdi") CLONE_VM | CLONE_VFORK | SIGCHLD as usize, in("rsi") stack, in("rdx") 0, in("r10") 0, in("r8") 0,
             lateout("rcx") _, lateout("r11") _);
    }
    result
}

#[repr(C)]
struct PollFd {
    fd: i32,
    events: i16,
    revents: i16,
}

/// Sleeps until the supervisor says something, dies, or (with `signals`) a child changes state.
fn wait(control: usize, supervisor: i32, signals: i32) -> [bool; 3] {
    let mut set = [control as i32, supervisor, signals].map(|fd| PollFd { fd, events: POLLIN, revents: 0 });
    // SAFETY: the set outlives the call; a negative descriptor is passed over by the kernel.
    unsafe { syscall(nr::PPOLL, [set.as_mut_ptr() as usize, set.len(), 0, 0, 0, 0]) };
    [set[0].revents != 0, set[1].revents != 0, set[2].revents != 0]
}

/// Reaps every child that has ended; the guest's own end is reported, and ends the sandbox.
fn reap(control: usize, guest: isize) {
    loop {
        let mut info = [0_u32; 32];
        // SAFETY: siginfo_t is 128 bytes.
        let result =
            unsafe { syscall(nr::WAITID, [P_ALL, 0, info.as_mut_ptr() as usize, WNOHANG | WEXITED | WALL, 0, 0]) };
        // siginfo_t: si_signo, si_errno, si_code, padding, si_pid, si_uid, si_status.
        if result < 0 || info[4] == 0 {
            return;
        }
        if info[4] as isize == guest {
            report(control, REPORT_ENDED, 0, 0, info[2] as i32, info[6] as i32);
            exit(0);
        }
    }
}

unsafe extern "C" fn main(stack: *const usize) -> ! {
    // SAFETY: the kernel's initial stack: argc, argv..., null.
    let control = unsafe {
        if stack.read() != 2 {
            exit(ABANDONED);
        }
        decimal(stack.add(2).read() as *const u8)
    };
    occupy(control);
    // SAFETY: the static buffers are used by this thread alone.
    let mut program = unsafe { load(control) };
    let supervisor = program.registers[program.header.supervisor as usize % REGISTERS] as i32;
    // Ignored signals survive execve; the guest starts with every one at its default.
    for signal in 1..=64 {
        let action = [0_usize; 4];
        // SAFETY: a zeroed kernel sigaction is SIG_DFL. SIGKILL and SIGSTOP answer EINVAL, as they should.
        unsafe { syscall(nr::RT_SIGACTION, [signal, action.as_ptr() as usize, 0, 8, 0, 0]) };
    }
    let setup = program.header.setup;
    // SAFETY: the program was checked by `load`.
    unsafe { execute(&mut program, 0, setup) };
    report(control, REPORT_READY, 0, 0, 0, 0);

    let mut command = 0_u32;
    if wait(control, supervisor, -1)[1] {
        exit(ABANDONED);
    }
    // SAFETY: `command` is four bytes.
    let read = unsafe { syscall(nr::READ, [control, &raw mut command as usize, 4, 0, 0, 0]) };
    if read != 4 || command != COMMAND_GO {
        exit(ABANDONED);
    }
    // SAFETY: the mask is eight bytes. SIGCHLD is blocked since before this program began.
    let signals = unsafe {
        let mask = 1_u64 << (SIGCHLD - 1);
        syscall(nr::SIGNALFD4, [usize::MAX, &raw const mask as usize, 8, 0o2000000, 0, 0])
    };
    // SAFETY: `start_guest` returns in the parent alone.
    let guest = unsafe { start_guest(&raw mut program) };
    if signals < 0 || guest < 0 {
        report(control, REPORT_FAILED, u32::MAX, -(signals.min(guest)) as i32, 0, 0);
        exit(ABANDONED);
    }
    close_all_but([control as i32, supervisor, signals as i32]);
    loop {
        let [said, orphaned, child] = wait(control, supervisor, signals as i32);
        if child {
            // Emptied before the reaping, so that a child that ends meanwhile is signalled again.
            let mut drained = [0_u64; 16];
            // SAFETY: one signalfd_siginfo is 128 bytes. The descriptor is readable, so this does not block.
            unsafe { syscall(nr::READ, [signals as usize, drained.as_mut_ptr() as usize, 128, 0, 0, 0]) };
            reap(control, guest);
        }
        // The supervisor says nothing more: a readable control socket is its end, or its wish that this ends.
        if said || orphaned {
            exit(ABANDONED);
        }
    }
}

/// The guest's ends of its pipes must not live on in pid 1, or their readers would never see the end.
fn close_all_but(mut keep: [i32; 3]) {
    keep.sort_unstable();
    let mut next = 0;
    for fd in keep {
        if fd > next {
            // SAFETY: close_range takes no pointer.
            unsafe { syscall(nr::CLOSE_RANGE, [next as usize, fd as usize - 1, 0, 0, 0, 0]) };
        }
        next = fd + 1;
    }
    // SAFETY: as above; the name is NUL-terminated.
    unsafe {
        syscall(nr::CLOSE_RANGE, [next as usize, u32::MAX as usize, 0, 0, 0, 0]);
        syscall(nr::PRCTL, [PR_SET_NAME, c"nsbox-init".as_ptr() as usize, 0, 0, 0, 0]);
    }
}

unsafe fn decimal(mut text: *const u8) -> usize {
    let mut value = 0;
    // SAFETY: arguments end with a NUL.
    unsafe {
        while (b'0'..=b'9').contains(&text.read()) {
            value = value * 10 + (text.read() - b'0') as usize;
            text = text.add(1);
        }
    }
    value
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    exit(ABANDONED)
}

// The compiler may call these; there is no C library to hold them. Written in assembly, for a loop would be turned
// back into a call of itself.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's contract is memcpy's.
    unsafe { asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _) };
    to
}
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's contract is memset's.
    unsafe { asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") byte as u8) };
    to
}
