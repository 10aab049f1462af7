//! The restorer: stands over the guest of a slot that is used again, and puts it back to what it was before its request.
//!
//! It is the guest's parent. When it forked it, both had the same memory, and it never writes to any of that again: its stack
//! and its notes lie in a region that the guest does not have. So it holds what each page should be, at the very address; a
//! page that the guest had changed before it was remembered is in its notes. What the guest has changed is told by the
//! kernel: a page that is mapped by the guest alone is not the restorer's any more (proc_pid_pagemap(5), bit 56). Once such,
//! always such: so the page map is read again only where the kernel has counted page faults.
//!
//! It lives in the zygote's pid namespace, where the guest can neither see nor signal it, and has the zygote's capabilities:
//! the guest is not dumpable, and CAP_SYS_PTRACE reaches it. It believes nothing of the guest's: registers are set, not
//! looked at; whether anything but memory has changed, the supervisor knows by seccomp, and the few things that need no
//! system call (the stack's growth) are compared here. See ptrace(2), process_vm_writev(2).

mod pages;

use core::arch::asm;
use core::ptr::addr_of_mut;

use super::execute::program::*;
use super::execute::{Program, SIGCHLD, WALL, nr, reap, report, syscall, wait};
use super::{
    EXIT_GROUP, MADVISE, MAP_ANONYMOUS, MAP_PRIVATE, MMAP, O_CLOEXEC, OPEN, PR_SET_DUMPABLE, PRCTL, PROT_READ_WRITE,
    close,
};

const LSEEK: usize = 8;
const PREAD: usize = 17;
const SCHED_YIELD: usize = 24;
const NANOSLEEP: usize = 35;
const CLONE: usize = 56;
const WAIT4: usize = 61;
const PTRACE: usize = 101;
const SCHED_SETAFFINITY: usize = 203;
const SCHED_GETAFFINITY: usize = 204;
const GETDENTS: usize = 217;
const PIPE2: usize = 293;
const PROCESS_VM_READV: usize = 310;
const PROCESS_VM_WRITEV: usize = 311;

const PTRACE_CONT: usize = 7;
const PTRACE_DETACH: usize = 17;
const PTRACE_GETREGSET: usize = 0x4204;
const PTRACE_SETREGSET: usize = 0x4205;
const PTRACE_SEIZE: usize = 0x4206;
const PTRACE_INTERRUPT: usize = 0x4207;
const PTRACE_EVENT_STOP: u32 = 128;
const NT_PRSTATUS: usize = 1;
const NT_X86_XSTATE: usize = 0x202;
const EINVAL: isize = 22;
const CLD_EXITED: i32 = 1;
const CLD_KILLED: i32 = 2;
const MADV_DONTFORK: usize = 10;
const PR_GET_TID_ADDRESS: usize = 40;
const PR_SET_THP_DISABLE: usize = 41;
const PR_SET_MEMORY_MERGE: usize = 67;
const PR_SET_NAME: usize = 15;
const CLONE_CHILD_CLEARTID: usize = 0x0020_0000;
const CLONE_CHILD_SETTID: usize = 0x0100_0000;

/// Of `struct user_regs_struct`, in words: the result, and the number, of a system call; its first argument.
const RAX: usize = 10;
const RDI: usize = 14;
const ORIG_RAX: usize = 15;
/// A call that a signal has interrupted, and that begins anew.
const ERESTARTSYS: usize = -512_isize as usize;
/// The guest's end of its line; the same number is in zygote.py.
const REQUEST: usize = 3;
/// The guest's descriptors are those below this number; the same is in `sandbox/guest.rs`.
const DESCRIPTORS: usize = 5;

const PAGE: usize = 4096;
/// Pages that are the guest's alone. More take longer than another guest.
const MOST_PAGES: usize = 4096;
/// Pages among them that were no longer the restorer's when they were remembered.
const MOST_NOTES: usize = 1024;
const MOST_AREAS: usize = 1024;
/// Written at once, which takes some 50 microseconds.
const MOST_RANGES: usize = 64;
/// Looks, each after a twentieth of a millisecond, whether the guest is waiting for its first message.
const MOST_LOOKS: usize = 2000;

// Indexes of RESTORER_STEPS.
const FORK: u32 = 0;
const STOP: u32 = 1;
const FIND: u32 = 2;
const READ_REGISTERS: u32 = 3;
const OPEN_FILES: u32 = 4;
const LIST: u32 = 5;
const SHARED: u32 = 6;
const READ_MAP: u32 = 7;
const TOO_MANY: u32 = 8;
const COPY: u32 = 9;
const THREADS: u32 = 10;
const DIFFERENT_FILES: u32 = 11;
const WRITE_PAGES: u32 = 12;
const WRITE_REGISTERS: u32 = 13;

/// What went wrong, and the kernel's word on it.
type Failure = (u32, i32);

/// Bytes at two addresses, of this process and of the guest.
#[repr(C)]
#[derive(Clone, Copy)]
struct Range {
    begin: usize,
    length: usize,
}

#[repr(C, align(4096))]
struct Frame([u8; PAGE]);

/// All that the restorer writes to. Made of zeros.
#[repr(C)]
struct Region {
    stack: [Frame; 8],
    notes: [Frame; MOST_NOTES],
    note_addresses: [usize; MOST_NOTES],
    noted: usize,
    /// The guest's own pages, ascending, and where their content is.
    pages: [(usize, usize); MOST_PAGES],
    count: usize,
    areas: [Range; MOST_AREAS],
    area_count: usize,
    /// Areas that a fork empties, and so does this (MADV_WIPEONFORK): random number generators in them must not repeat.
    wiped: [Range; 16],
    wiped_count: usize,
    entries: [u64; 4096],
    text: [u8; 16384],
    local: [Range; MOST_RANGES],
    remote: [Range; MOST_RANGES],
    registers: [usize; 32],
    extended: [u8; 16384],
    extended_length: usize,
    guest: usize,
    control: usize,
    orders: usize,
    signals: usize,
    /// The guest waits at its end for a byte, and ends where none comes.
    gate: [i32; 2],
    page_map: usize,
    stat: usize,
    size_file: usize,
    folder: usize,
    /// Page faults of the guest's when its pages were last looked at, and pages of address space that it has.
    faults: usize,
    size: usize,
    is_seized: bool,
    zeros: Frame,
}

/// Forks the guest, and returns there. The restorer never returns. `wiped` are words, two for each area that forks empty.
///
/// # Safety
/// The program's first part has yet to be executed; there is one thread, and nothing else uses `program`.
pub unsafe fn stand_over(program: &mut Program, signals: usize, wiped: *const usize, count: usize) {
    // SAFETY: the counts are the header's. New memory is zeros, which every field of the region may be.
    unsafe {
        let setup = program.header.setup;
        if !program.execute(0, setup) {
            exit();
        }
        let length = size_of::<Region>();
        let at = syscall(MMAP, [0, length, PROT_READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, usize::MAX, 0]);
        if at <= 0 {
            fail(program.control, FORK, -at as i32);
        }
        // Huge pages, and pages merged for their content, would be mapped in ways that tell nothing of who wrote to them. Before
        // Linux 6.4 nobody can have all of a process's pages merged.
        let split = syscall(PRCTL, [PR_SET_THP_DISABLE, 1, 0, 0, 0, 0]);
        let unmerged = syscall(PRCTL, [PR_SET_MEMORY_MERGE, 0, 0, 0, 0, 0]);
        let unshared = syscall(MADVISE, [at as usize, length, MADV_DONTFORK, 0, 0, 0]);
        for result in [split, if unmerged == -EINVAL { 0 } else { unmerged }, unshared] {
            if result < 0 {
                fail(program.control, FORK, -result as i32);
            }
        }
        let region = at as *mut Region;
        (*region).control = program.control;
        (*region).orders = register(program, program.header.restorer);
        (*region).signals = signals;
        if count / 2 > (*region).wiped.len() {
            fail(program.control, LIST, 0);
        }
        for i in 0..count / 2 {
            let range =
                Range { begin: wiped.add(2 * i).read_unaligned(), length: wiped.add(2 * i + 1).read_unaligned() };
            if let Some(place) = (*region).wiped.get_mut(i) {
                *place = range;
                (*region).wiped_count = i + 1;
            }
        }
        // The C library keeps the thread's id there, and locks by it.
        let mut thread = 0_usize;
        let result = syscall(PRCTL, [PR_GET_TID_ADDRESS, &raw mut thread as usize, 0, 0, 0, 0]);
        if result < 0 || thread == 0 {
            fail(program.control, FORK, -result as i32);
        }
        let result = syscall(PIPE2, [addr_of_mut!((*region).gate) as usize, O_CLOEXEC, 0, 0, 0, 0]);
        if result < 0 {
            fail(program.control, FORK, -result as i32);
        }
        let [gate, far_gate] = (*region).gate;
        syscall(PRCTL, [PR_SET_DUMPABLE, 1, 0, 0, 0, 0]);
        let flags = CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD as usize;
        let top = (addr_of_mut!((*region).stack) as usize).wrapping_add(size_of::<[Frame; 8]>());
        // The parent is on its own stack before it writes anything; the child goes on here.
        asm!("syscall", "test rax, rax", "jz 2f", "mov rsp, r12", "mov rdi, r13", "mov rsi, rax", "call {run}", "ud2", "2:",
             run = sym run, in("r12") top, in("r13") region, inlateout("rax") CLONE as isize => _,
             in("rdi") flags, in("rsi") 0, in("rdx") 0, in("r10") thread, in("r8") 0,
             lateout("rcx") _, lateout("r11") _);
        close(far_gate as usize);
        let mut byte = 0_u8;
        let is_let = syscall(nr::READ, [gate as usize, &raw mut byte as usize, 1, 0, 0, 0]) == 1;
        close(gate as usize);
        if !is_let || syscall(PRCTL, [PR_SET_DUMPABLE, 0, 0, 0, 0, 0]) != 0 {
            exit();
        }
    }
}

fn register(program: &Program, index: u32) -> usize {
    program.registers.get(index as usize).map_or(usize::MAX, |fd| *fd as usize)
}

fn exit() -> ! {
    loop {
        // SAFETY: exit_group takes no pointer.
        unsafe { syscall(EXIT_GROUP, [1, 0, 0, 0, 0, 0]) };
    }
}

fn fail(control: usize, step: u32, errno: i32) -> ! {
    report(control, REPORT_FAILED, step, errno, 0, 0);
    exit()
}

unsafe extern "C" fn run(region: *mut Region, guest: isize) -> ! {
    // SAFETY: nobody else has the region.
    let region = unsafe { &mut *region };
    if guest < 0 {
        fail(region.control, FORK, -guest as i32);
    }
    region.guest = guest as usize;
    let [_, gate] = region.gate;
    super::execute::close_all_but([region.control as i32, region.orders as i32, region.signals as i32, gate]);
    if let Err((step, errno)) = region.open_files() {
        fail(region.control, step, errno);
    }
    // SAFETY: the name ends with a NUL; the byte is one.
    unsafe {
        syscall(PRCTL, [PR_SET_NAME, c"nsbox-restorer".as_ptr() as usize, 0, 0, 0, 0]);
        let hidden = syscall(PRCTL, [PR_SET_DUMPABLE, 0, 0, 0, 0, 0]);
        if hidden < 0 {
            fail(region.control, FORK, -hidden as i32);
        }
        let byte = 1_u8;
        syscall(nr::WRITE, [gate as usize, &raw const byte as usize, 1, 0, 0, 0]);
    }
    close(gate as usize);
    loop {
        let [ordered, child, _] = wait([region.orders as i32, region.signals as i32, -1]);
        if child {
            let (guest, control) = (region.guest as i32, region.control);
            reap(region.signals, |pid, code, status| {
                if pid == guest {
                    report(control, REPORT_ENDED, 0, 0, code, status);
                    exit();
                }
            });
        }
        if !ordered {
            continue;
        }
        let mut order = 0_u32;
        // SAFETY: the word is four bytes.
        let done = match unsafe { syscall(nr::READ, [region.orders, &raw mut order as usize, 4, 0, 0, 0]) } {
            4 if order == COMMAND_REMEMBER => region.remember(),
            4 if order == COMMAND_RESTORE => region.restore(),
            // The supervisor has let go of the slot, and ends it.
            _ => exit(),
        };
        match done {
            Ok(()) => report(region.orders, REPORT_READY, 0, 0, 0, region.count as i32),
            // It stays stopped: there is nothing to be done with it.
            Err((step, errno)) => report(region.orders, REPORT_FAILED, step, errno, 0, 0),
        }
    }
}

fn ok(result: isize, step: u32) -> Result<usize, Failure> {
    if result < 0 { Err((step, -result as i32)) } else { Ok(result as usize) }
}

impl Region {
    fn ptrace(&self, request: usize, what: usize, data: usize) -> isize {
        // SAFETY: what the request points to is the caller's own.
        unsafe { syscall(PTRACE, [request, self.guest, what, data, 0, 0]) }
    }

    /// Stops the guest wherever it is.
    fn stop(&mut self) -> Result<(), Failure> {
        if !self.is_seized {
            ok(self.ptrace(PTRACE_SEIZE, 0, 0), STOP)?;
            self.is_seized = true;
        }
        ok(self.ptrace(PTRACE_INTERRUPT, 0, 0), STOP)?;
        let mut status = 0_u32;
        // SAFETY: the status is four bytes.
        ok(unsafe { syscall(WAIT4, [self.guest, &raw mut status as usize, WALL, 0, 0, 0]) }, STOP)?;
        match (status & 0x7f, status >> 16) {
            (0x7f, PTRACE_EVENT_STOP) => Ok(()),
            // A signal was first.
            (0x7f, _) => Err((STOP, 0)),
            (signal, _) => {
                let end = (status >> 8 & 0xff) as i32;
                let (code, status) = if signal == 0 { (CLD_EXITED, end) } else { (CLD_KILLED, signal as i32) };
                report(self.control, REPORT_ENDED, 0, 0, code, status);
                exit()
            }
        }
    }

    fn go_on(&mut self) -> Result<(), Failure> {
        self.is_seized = false;
        ok(self.ptrace(PTRACE_DETACH, 0, 0), STOP).map(drop)
    }

    /// Reads or sets the general registers.
    fn general(&mut self, request: usize) -> isize {
        let mut place = Range { begin: addr_of_mut!(self.registers) as usize, length: size_of::<[usize; 27]>() };
        self.ptrace(request, NT_PRSTATUS, &raw mut place as usize)
    }

    /// The same of all others, of which there are as many as the kernel says.
    fn extended(&mut self, request: usize, length: usize) -> Result<usize, isize> {
        let mut place = Range { begin: addr_of_mut!(self.extended) as usize, length };
        let result = self.ptrace(request, NT_X86_XSTATE, &raw mut place as usize);
        if result < 0 { Err(result) } else { Ok(place.length) }
    }

    fn remember(&mut self) -> Result<(), Failure> {
        for _ in 0..MOST_LOOKS {
            self.stop()?;
            ok(self.general(PTRACE_GETREGSET), READ_REGISTERS)?;
            let is = |register: usize, value: usize| self.registers.get(register) == Some(&value);
            if is(ORIG_RAX, nr::READ) && is(RAX, ERESTARTSYS) && is(RDI, REQUEST) {
                return self.note();
            }
            ok(self.ptrace(PTRACE_CONT, 0, 0), STOP)?;
            let pause = [0_usize, 50_000];
            // SAFETY: the pause is two words.
            unsafe { syscall(NANOSLEEP, [pause.as_ptr() as usize, 0, 0, 0, 0, 0]) };
        }
        Err((FIND, 0))
    }

    /// Takes note of a guest that is stopped in the right place.
    fn note(&mut self) -> Result<(), Failure> {
        let room = self.extended.len();
        self.extended_length = self.extended(PTRACE_GETREGSET, room).map_err(|e| (READ_REGISTERS, -e as i32))?;
        self.list_areas()?;
        self.scan()?;
        self.copy_changed()?;
        self.scan()?;
        self.size = self.address_space()?;
        self.look_at_files()?;
        let threads;
        (threads, self.faults) = self.threads_and_faults()?;
        if threads != 1 {
            return Err((THREADS, 0));
        }
        self.join_its_processors();
        self.go_on()
    }

    /// Runs where the guest may run, so that the pages it gets are in that processor's caches.
    fn join_its_processors(&mut self) {
        let place = self.text.as_mut_ptr() as usize;
        // SAFETY: the place is longer than any set.
        unsafe {
            let length = syscall(SCHED_GETAFFINITY, [self.guest, self.text.len(), place, 0, 0, 0]);
            if length > 0 {
                syscall(SCHED_SETAFFINITY, [0, length as usize, place, 0, 0, 0]);
            }
        }
    }

    /// Opens what is read again and again, before the guest goes on and becomes one that nobody may look into: these files then
    /// belong to nobody whom the user namespace knows.
    fn open_files(&mut self) -> Result<(), Failure> {
        self.page_map = self.open(b"/pagemap\0")?;
        self.folder = self.open(b"/fd\0")?;
        self.stat = self.open(b"/stat\0")?;
        self.size_file = self.open(b"/statm\0")?;
        Ok(())
    }

    fn restore(&mut self) -> Result<(), Failure> {
        self.stop()?;
        let (threads, faults) = self.threads_and_faults()?;
        if threads != 1 || self.address_space()? != self.size {
            return Err((THREADS, 0));
        }
        self.look_at_files()?;
        if faults != self.faults {
            self.scan()?;
            self.faults = faults;
        }
        self.write()?;
        let length = self.extended_length;
        self.extended(PTRACE_SETREGSET, length).map_err(|e| (WRITE_REGISTERS, -e as i32))?;
        ok(self.general(PTRACE_SETREGSET), WRITE_REGISTERS)?;
        self.go_on()
    }

    /// Opens a file of the guest's in /proc.
    fn open(&mut self, name: &[u8]) -> Result<usize, Failure> {
        let mut digits = [0_u8; 20];
        let (mut rest, mut length) = (self.guest, 0);
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
            length += 1;
            if rest == 0 {
                break;
            }
        }
        let path = b"/proc/".iter().chain(digits.iter().skip(20 - length)).chain(name);
        for (place, byte) in self.text.iter_mut().zip(path) {
            *place = *byte;
        }
        let path = self.text.as_ptr() as usize;
        // SAFETY: the path ends with a NUL.
        ok(unsafe { syscall(OPEN, [path, O_CLOEXEC, 0, 0, 0, 0]) }, OPEN_FILES)
    }

    /// Reads from `fd` into `text`, from its offset on or from its begin.
    fn read(&mut self, call: usize, fd: usize) -> Result<usize, Failure> {
        let place = self.text.as_mut_ptr() as usize;
        // SAFETY: the place has this length.
        ok(unsafe { syscall(call, [fd, place, self.text.len(), 0, 0, 0]) }, OPEN_FILES)
    }

    /// Pages of address space that the guest has. proc_pid_statm(5).
    fn address_space(&mut self) -> Result<usize, Failure> {
        let length = self.read(PREAD, self.size_file)?;
        Ok(self.text.iter().take(length).map_while(|b| b.checked_sub(b'0').filter(|d| *d < 10)).fold(0, push))
    }

    /// How many threads the guest has, and page faults that it has had. proc_pid_stat(5).
    fn threads_and_faults(&mut self) -> Result<(usize, usize), Failure> {
        let length = self.read(PREAD, self.stat)?;
        let (mut threads, mut faults) = (0, 0);
        let text = self.text.get(..length).unwrap_or_default();
        // The second field is a name, in parentheses, that may hold anything.
        let after = text.rsplit(|b| *b == b')').next().unwrap_or_default();
        for (i, field) in after.split(|b| *b == b' ').enumerate() {
            let number = field.iter().map_while(|b| b.checked_sub(b'0').filter(|d| *d < 10)).fold(0, push);
            match i + 2 {
                10 | 12 => faults += number,
                20 => threads = number,
                _ => {}
            }
        }
        Ok((threads, faults))
    }

    /// Whether the guest's descriptors are those that it began with. That they are the same still, seccomp has seen to.
    fn look_at_files(&mut self) -> Result<(), Failure> {
        // SAFETY: lseek takes no pointer.
        unsafe { syscall(LSEEK, [self.folder, 0, 0, 0, 0, 0]) };
        let length = self.read(GETDENTS, self.folder)?;
        let (mut at, mut found) = (0, 0);
        while at < length {
            // struct linux_dirent64: inode, offset, u16 length, u8 type, name.
            let byte = |offset: usize| self.text.get(at.wrapping_add(offset)).copied().unwrap_or(0);
            let step = usize::from(u16::from_ne_bytes([byte(16), byte(17)]));
            match (byte(19), byte(20), byte(21)) {
                (b'.', 0, _) | (b'.', b'.', 0) => {}
                (digit @ b'0'..=b'9', 0, _) if usize::from(digit - b'0') < DESCRIPTORS => found += 1,
                _ => return Err((DIFFERENT_FILES, 0)),
            }
            if step == 0 {
                break;
            }
            at = at.wrapping_add(step);
        }
        if found == DESCRIPTORS { Ok(()) } else { Err((DIFFERENT_FILES, 0)) }
    }
}

fn push(number: usize, digit: u8) -> usize {
    number.wrapping_mul(10).wrapping_add(usize::from(digit))
}
