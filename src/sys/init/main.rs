//! Pid 1 of a sandbox: executes the set-up program, starts the guest, reaps, and dies with its supervisor.
//!
//! Freestanding (no libc, no allocator, no runtime): `execve` of it costs a few pages, it inherits nothing of the
//! supervisor's memory or environment, and it can be read whole. `build.rs` compiles it; the supervisor keeps it in a
//! sealed memfd. Called as `nsbox-init CONTROL`, where CONTROL is the descriptor of a `SOCK_SEQPACKET` socket.
//!
//! Where the guest is a zygote, each further program on that socket is one for the init of a slot: a child in namespaces
//! of its own, pid 1 there.
//!
//! See pid_namespaces(7), clone(2), waitid(2), signalfd(2).
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::mem::size_of;
use core::ptr::addr_of_mut;

#[allow(dead_code)]
mod execute;
use execute::program::*;
use execute::{
    Buffer, Program, SIGCHLD, child_signals, close_all_but, load, nr, occupy, reap, report, report_descriptor, syscall,
    wait,
};

const RT_SIGACTION: usize = 13;
const NANOSLEEP: usize = 35;
const GETPID: usize = 39;
const CLONE: usize = 56;
const KILL: usize = 62;
const PRCTL: usize = 157;
const EXIT_GROUP: usize = 231;

const SIGKILL: usize = 9;
const NO_SUCH_PROCESS: isize = -3;
const CLONE_VM: usize = 0x100;
const CLONE_PIDFD: usize = 0x1000;
const CLONE_VFORK: usize = 0x4000;
const PR_SET_NAME: usize = 15;
/// Exit status when the supervisor is gone or the program is not one: nobody is left to read it.
const ABANDONED: usize = 1;
/// No process has this pid.
const NOBODY: isize = -1;

// The kernel enters with argc at the stack pointer, and no return address.
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "mov rdi, rsp", "and rsp, -16", "call {main}", "ud2", main = sym main);

static mut PROGRAM: Buffer = Buffer([0; MAX_PROGRAM]);
#[repr(C, align(64))]
struct Stack([u8; 16 * 1024]);
static mut GUEST_STACK: Stack = Stack([0; 16 * 1024]);

fn exit(status: usize) -> ! {
    loop {
        // SAFETY: exit_group takes no pointer.
        unsafe { syscall(EXIT_GROUP, [status, 0, 0, 0, 0, 0]) };
    }
}

/// The guest's process up to its execve; the address space is init's, which sleeps until then (CLONE_VFORK).
unsafe extern "C" fn guest(program: *mut Program) -> ! {
    // SAFETY: init does not run while this does.
    let program = unsafe { &mut *program };
    let first = program.header.setup;
    // SAFETY: the counts are the header's.
    unsafe { program.execute(first, first + program.header.guest) };
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
             guest = sym guest, in("r12") program, inlateout("rax") CLONE as isize => result,
             in("rdi") CLONE_VM | CLONE_VFORK | SIGCHLD as usize, in("rsi") stack, in("rdx") 0, in("r10") 0, in("r8") 0,
             lateout("rcx") _, lateout("r11") _);
    }
    result
}

/// Starts the init of a slot, whose program came next on the control socket; `false` where that was none.
unsafe fn spawn(control: usize) -> bool {
    // SAFETY: the guest has been started, so the buffer holds nothing that is needed any more.
    let Some(mut program) = (unsafe { load(control, addr_of_mut!(PROGRAM)) }) else { return false };
    let mut pidfd = -1_i32;
    let flags = program.header.namespaces as usize | CLONE_PIDFD | SIGCHLD as usize;
    // SAFETY: without CLONE_VM the child has a copy of this memory, the stack included.
    let result = unsafe { syscall(CLONE, [flags, 0, &raw mut pidfd as usize, 0, 0, 0]) };
    match result {
        0 => {
            let supervisor = program.registers[program.header.supervisor as usize % REGISTERS] as i32;
            let setup = program.header.setup;
            // SAFETY: the program was checked by `load`.
            if !unsafe { program.execute(0, setup) } {
                exit(ABANDONED);
            }
            report(program.control, REPORT_READY, 0, 0, 0, 0);
            serve(program.control, supervisor, NOBODY)
        }
        1.. => report_descriptor(program.control, REPORT_SPAWNED, pidfd),
        _ => report(program.control, REPORT_FAILED, u32::MAX, -result as i32, 0, 0),
    }
    program.close_passed();
    if pidfd >= 0 {
        // SAFETY: close takes no pointer.
        unsafe { syscall(nr::CLOSE, [pidfd as usize, 0, 0, 0, 0, 0]) };
    }
    true
}

/// Reaps until the guest has ended, the supervisor has, or it wishes so; starts the inits of slots meanwhile.
fn serve(control: usize, supervisor: i32, guest: isize) -> ! {
    let signals = child_signals();
    if signals < 0 {
        report(control, REPORT_FAILED, u32::MAX, -signals as i32, 0, 0);
        exit(ABANDONED);
    }
    // The guest's ends of its pipes must not live on in pid 1, or their readers would never see the end.
    close_all_but([control as i32, supervisor, signals as i32]);
    // SAFETY: the name is NUL-terminated.
    unsafe { syscall(PRCTL, [PR_SET_NAME, c"nsbox-init".as_ptr() as usize, 0, 0, 0, 0]) };
    loop {
        let [said, orphaned, child] = wait([control as i32, supervisor, signals as i32]);
        if child {
            reap(signals as usize, |pid, code, status| {
                if pid as isize == guest {
                    report(control, REPORT_ENDED, 0, 0, code, status);
                    end(0, guest, signals as usize);
                }
            });
        }
        // A slot's init is told nothing more. A zygote's is: programs, or else that this ends.
        // SAFETY: the guest has been started.
        if orphaned || said && (guest == NOBODY || !unsafe { spawn(control) }) {
            end(ABANDONED, guest, signals as usize);
        }
    }
}

/// Ends. Where that does not end a pid namespace, the guest's process group is killed and reaped before: orphans of it are
/// children of this process (PR_SET_CHILD_SUBREAPER).
fn end(status: usize, guest: isize, signals: usize) -> ! {
    // SAFETY: no call but nanosleep takes a pointer, to its two words.
    unsafe {
        while guest != NOBODY && syscall(GETPID, [0; 6]) != 1 {
            if syscall(KILL, [-guest as usize, SIGKILL, 0, 0, 0, 0]) == NO_SUCH_PROCESS {
                break;
            }
            let pause = [0_usize, 100_000];
            syscall(NANOSLEEP, [pause.as_ptr() as usize, 0, 0, 0, 0, 0]);
            reap(signals, |_, _, _| {});
        }
    }
    exit(status)
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
    let Some(mut program) = (unsafe { load(control, addr_of_mut!(PROGRAM)) }) else { exit(ABANDONED) };
    let supervisor = program.registers[program.header.supervisor as usize % REGISTERS] as i32;
    // Ignored signals survive execve; the guest starts with every one at its default.
    for signal in 1..=64 {
        let action = [0_usize; 4];
        // SAFETY: a zeroed kernel sigaction is SIG_DFL. SIGKILL and SIGSTOP answer EINVAL, as they should.
        unsafe { syscall(RT_SIGACTION, [signal, action.as_ptr() as usize, 0, 8, 0, 0]) };
    }
    let setup = program.header.setup;
    // SAFETY: the program was checked by `load`.
    if !unsafe { program.execute(0, setup) } {
        exit(ABANDONED);
    }
    report(control, REPORT_READY, 0, 0, 0, 0);

    let mut command = 0_u32;
    if wait([control as i32, supervisor, -1])[1] {
        exit(ABANDONED);
    }
    // SAFETY: `command` is four bytes.
    let read = unsafe { syscall(nr::READ, [control, &raw mut command as usize, 4, 0, 0, 0]) };
    if read != 4 || command != COMMAND_GO {
        exit(ABANDONED);
    }
    // SAFETY: `start_guest` returns in the parent alone. SIGCHLD is blocked since before this program began.
    let guest = unsafe { start_guest(&raw mut program) };
    if guest < 0 {
        report(control, REPORT_FAILED, u32::MAX, -guest as i32, 0, 0);
        exit(ABANDONED);
    }
    serve(control, supervisor, guest)
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
