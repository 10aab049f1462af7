//! The zygote's extension module `_nsbox`: forks slots by the supervisor's programs, and tells it how they ended.
//!
//! Freestanding like init: it needs the interpreter's stable ABI and no C library, so one build serves every CPython from
//! 3.10 on, of any image. `build.rs` compiles it; the zygote (`rootfs/guest/zygote.py`) loads it:
//!
//! ```text
//! gather()              once, first: from here on the interpreter's objects are allocated in a few places
//! lay_out((mode, identities)), laid_out(), found(ranges) -> identities
//!                       what slots write to is allocated side by side: see `layout.rs`
//! collapse(address)     makes one huge page of the 2 MiB there, where that is worth it: see `huge.rs`
//! enlarge_text(address) puts the text there into one
//! populate(ranges)      makes pages present before they are touched: native words, three for each range, its begin, its
//!                       length and MADV_POPULATE_READ or MADV_POPULATE_WRITE (Linux 5.14; before, nothing is done)
//! protect(ranges)       changes what may be done with pages: the same, with PROT_READ and others
//! share(wiped)          makes what libraries have written so far shared by forks: see `libraries.rs`
//! close_gaps()          from here on what is allocated lies side by side: see `heap.rs`
//! pack((code, size)) -> code  puts a copy of a code object beside the last one: see `code.rs`
//! keep((objects, None, code))  makes objects immortal, and all that they hold: see `immortal.rs`
//! fill(place) -> bool    fills memory with random bytes: native words, its address and its length
//! fork() -> pid         without the interpreter's hooks, for a child that ends soon; -errno where it fails
//! serve(control)        once: takes over the control socket
//! next() -> number      forks a child for each slot's program that comes, and returns in these: 1, its first part has been
//!                       executed; 2, it wants a restorer. In the parent: 0, the supervisor is gone; 3, there are threads
//! stand_over(wiped)     in the child, where a restorer is wanted: makes this process one, executes the first part, forks, and
//!                       returns in the child of that. Native words, two for each area that a fork empties
//! enter()               in the child: executes the second part; ends the process where that fails
//! ```
//!
//! The fork is as Python's own, with its hooks and the C library's, but for Python's code: what that touches in the parent is
//! copied once more for each child, and there were 20 pages of it. The child becomes a member of the slot's pid namespace by the
//! program's first part, a setns(2) that the parent takes back.
#![no_std]

use core::ffi::{c_char, c_int, c_long, c_void};
use core::ptr::{addr_of_mut, null, null_mut};

mod code;
#[allow(dead_code)]
mod execute;
mod heap;
mod huge;
mod immortal;
mod layout;
mod libraries;
mod restorer;
use execute::program::*;
use execute::{Buffer, Program, child_signals, load, nr, occupy, reap, report, syscall, wait};

const OPEN: usize = 2;
const STAT: usize = 4;
const MMAP: usize = 9;
const MPROTECT: usize = 10;
const MUNMAP: usize = 11;
const MADVISE: usize = 28;
const FORK: usize = 57;
const EXIT_GROUP: usize = 231;
const PRCTL: usize = 157;
const SETNS: usize = 308;
const GETRANDOM: usize = 318;
const PROT_READ_WRITE: usize = 3;
const MAP_PRIVATE: usize = 0x02;
const MAP_ANONYMOUS: usize = 0x20;
const MADV_DONTNEED: usize = 4;
const PAGE: usize = 4096;
const HUGE_PAGE: usize = 2 << 20;
const PR_SET_DUMPABLE: usize = 4;
const O_CLOEXEC: usize = 0o2_000_000;
const CLONE_NEWPID: usize = 0x2000_0000;
/// Slots alive at once; the supervisor asks for fewer.
const MOST: usize = 1024;
/// Where arenas of the interpreter's allocator are put together, in bytes.
const PLACE: usize = 16 << 20;
const MOST_PLACES: usize = 32;
const MOST_FREE: usize = 256;

/// What lives from call to call. The interpreter's lock is held in each, and there is one thread.
struct State {
    control: usize,
    signals: usize,
    /// The zygote's own pid namespace.
    home: usize,
    program: Option<Program>,
    /// The pid of each slot, 0 where there is none; the socket for the report of its end; what that is.
    slots: [(i32, usize, u32); MOST],
}

static mut BUFFER: Buffer = Buffer([0; MAX_PROGRAM]);
static mut STATE: State = State { control: 0, signals: 0, home: 0, program: None, slots: [(0, 0, 0); MOST] };

fn state() -> &'static mut State {
    // SAFETY: see `State`; no function keeps the reference while it calls another.
    unsafe { &mut *addr_of_mut!(STATE) }
}

fn close(fd: usize) {
    // SAFETY: close takes no pointer.
    unsafe { syscall(nr::CLOSE, [fd, 0, 0, 0, 0, 0]) };
}

/// Back to the zygote's own pid namespace, for its own next children.
fn go_home() {
    // SAFETY: setns takes no pointer.
    unsafe { syscall(SETNS, [state().home, CLONE_NEWPID, 0, 0, 0, 0]) };
}

extern "C" fn serve(_: *mut c_void, control: *mut c_void) -> *mut c_void {
    // SAFETY: the interpreter passes an object; the path ends with a NUL.
    unsafe {
        let control = PyLong_AsLong(control) as usize;
        occupy(control);
        let home = syscall(OPEN, [c"/proc/self/ns/pid".as_ptr() as usize, O_CLOEXEC, 0, 0, 0, 0]);
        let signals = child_signals();
        if home < 0 || signals < 0 {
            return PyLong_FromLong(home.min(signals) as c_long);
        }
        // Nobody looks into what all slots come from.
        syscall(PRCTL, [PR_SET_DUMPABLE, 0, 0, 0, 0, 0]);
        let state = state();
        (state.control, state.signals, state.home) = (control, signals as usize, home as usize);
        PyLong_FromLong(0)
    }
}

/// Arenas of the interpreter's allocator, in places of [`PLACE`] bytes each.
struct Arenas {
    /// The begin of each place.
    places: [usize; MOST_PLACES],
    count: usize,
    /// How much of the last place is taken.
    taken: usize,
    /// Arenas in places that were given back, with their lengths.
    free: [(usize, usize); MOST_FREE],
    /// The next place, mapped ahead.
    reserve: usize,
    /// Whether the first [`PLACE`] bytes that are given back keep their pages, and how many have: a slot that is used again makes no
    /// such calls.
    keeps: bool,
    kept: usize,
    /// How many arenas were asked for, and where the last of them is, with its length.
    made: usize,
    newest: (usize, usize),
}

static mut ARENAS: Arenas = Arenas {
    places: [0; MOST_PLACES],
    count: 0,
    taken: 0,
    free: [(0, 0); MOST_FREE],
    reserve: 0,
    keeps: false,
    kept: 0,
    made: 0,
    newest: (0, 0),
};

fn arenas() -> &'static mut Arenas {
    // SAFETY: the interpreter's lock is held whenever it allocates, and no function keeps the reference.
    unsafe { &mut *addr_of_mut!(ARENAS) }
}

fn unmap(at: usize, length: usize) {
    // SAFETY: nothing is in it any more.
    unsafe { syscall(MUNMAP, [at, length, 0, 0, 0, 0]) };
}

fn map(length: usize) -> Option<usize> {
    // SAFETY: new memory, wherever the kernel likes.
    let at = unsafe { syscall(MMAP, [0, length, PROT_READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, usize::MAX, 0]) };
    (at > 0).then_some(at as usize)
}

impl Arenas {
    // Without an index or a sum that could panic: there is no runtime to do it.
    fn allocate(&mut self, size: usize) -> Option<usize> {
        if size > PLACE {
            return map(size);
        }
        if let Some(free) = self.free.iter_mut().find(|free| free.1 == size) {
            return Some(core::mem::take(free).0);
        }
        if self.count == 0 || self.taken.wrapping_add(size) > PLACE {
            let Some(place) = self.places.get_mut(self.count) else { return map(size) };
            *place = match core::mem::take(&mut self.reserve) {
                0 => map(PLACE)?,
                reserve => reserve,
            };
            (self.count, self.taken) = (self.count.wrapping_add(1), 0);
        }
        let place = self.places.get(self.count.wrapping_sub(1))?;
        let found = place.wrapping_add(self.taken);
        self.taken = self.taken.wrapping_add(size);
        Some(found)
    }

    /// Has the next arena begin with a huge page.
    fn align(&mut self) {
        if let Some(place) = self.places.get(self.count.wrapping_sub(1)) {
            self.taken = place.wrapping_add(self.taken).next_multiple_of(HUGE_PAGE).wrapping_sub(*place);
        }
    }

    fn release(&mut self, at: usize, size: usize) {
        let is_here = self.places.iter().take(self.count).any(|place| at.wrapping_sub(*place) < PLACE);
        if !is_here {
            return unmap(at, size);
        }
        self.kept = if self.keeps { self.kept.wrapping_add(size) } else { usize::MAX };
        if self.kept > PLACE {
            // SAFETY: nothing is in it any more.
            unsafe { syscall(MADVISE, [at, size, MADV_DONTNEED, 0, 0, 0]) };
        }
        if let Some(free) = self.free.iter_mut().find(|free| free.1 == 0) {
            *free = (at, size);
        }
    }
}

extern "C" fn allocate_arena(_: *mut c_void, size: usize) -> *mut c_void {
    let arenas = arenas();
    let Some(at) = arenas.allocate(size) else { return null_mut() };
    (arenas.made, arenas.newest) = (arenas.made.wrapping_add(1), (at, size));
    at as *mut c_void
}

extern "C" fn release_arena(_: *mut c_void, at: *mut c_void, size: usize) {
    arenas().release(at as usize, size);
}

extern "C" fn gather(_: *mut c_void, _: *mut c_void) -> *mut c_void {
    let mut allocator = ArenaAllocator { context: null_mut(), allocate: allocate_arena, release: release_arena };
    // SAFETY: the functions live as long as the process. Arenas from before are unmapped by `release_arena`, as they would
    // have been.
    unsafe {
        PyObject_SetArenaAllocator(&raw mut allocator);
        PyBool_FromLong(1)
    }
}

/// Makes a system call for each range of `ranges`, a bytes object of native words, three for each: its begin, its length and
/// what the call does there.
///
/// # Safety
/// The call changes no content. What is not there, or cannot be, is left alone.
unsafe fn for_each(ranges: *mut c_void, nr: usize) -> *mut c_void {
    // SAFETY: the interpreter passes the object, and nobody changes it.
    unsafe {
        let words = PyBytes_AsString(ranges).cast::<usize>();
        for i in 0..PyBytes_Size(ranges) as usize / (3 * size_of::<usize>()) {
            let [begin, length, what] = words.add(3 * i).cast::<[usize; 3]>().read_unaligned();
            syscall(nr, [begin, length, what, 0, 0, 0]);
        }
        PyBool_FromLong(1)
    }
}

extern "C" fn populate(_: *mut c_void, ranges: *mut c_void) -> *mut c_void {
    // SAFETY: madvise(2) changes no content with either advice.
    unsafe { for_each(ranges, MADVISE) }
}

extern "C" fn protect(_: *mut c_void, ranges: *mut c_void) -> *mut c_void {
    // SAFETY: mprotect(2) changes no content; the zygote takes no right away.
    unsafe { for_each(ranges, MPROTECT) }
}

extern "C" fn fill(_: *mut c_void, place: *mut c_void) -> *mut c_void {
    // SAFETY: the interpreter passes a bytes object, of the address and the length of memory that may hold any bytes.
    unsafe {
        let [address, length] = PyBytes_AsString(place).cast::<[usize; 2]>().read_unaligned();
        let filled = syscall(GETRANDOM, [address, length, 0, 0, 0, 0]);
        PyBool_FromLong(c_long::from(filled == length as isize))
    }
}

extern "C" fn fork(_: *mut c_void, _: *mut c_void) -> *mut c_void {
    // SAFETY: there is one thread, and the child has a copy of its stack. The interpreter's lock is held.
    unsafe { PyLong_FromLong(syscall(FORK, [0; 6]) as c_long) }
}

extern "C" fn next(_: *mut c_void, _: *mut c_void) -> *mut c_void {
    loop {
        let State { control, signals, .. } = *state();
        let [said, ended, _] = wait([control as i32, signals as i32, -1]);
        if ended {
            reap(signals, |pid, code, status| {
                let Some(slot) = state().slots.iter_mut().find(|slot| slot.0 == pid) else { return };
                report(slot.1, slot.2, 0, 0, code, status);
                close(slot.1);
                *slot = (0, 0, 0);
            });
        }
        if !said {
            continue;
        }
        // SAFETY: the last program has been executed. The counts are the header's.
        unsafe {
            let Some(mut program) = load(control, addr_of_mut!(BUFFER)) else { return PyLong_FromLong(0) };
            let setup = program.header.setup;
            let is_restored = program.header.restorer != 0;
            if !is_restored && !program.execute(0, setup) {
                program.close_passed();
                go_home();
                continue;
            }
            state().program = Some(program);
            // The kernel refuses new ones from here on: there is nobody else to make one, and in another pid namespace nobody can.
            if !is_alone() {
                return PyLong_FromLong(3);
            }
            PyOS_BeforeFork();
            let pid = libc_fork();
            if pid == 0 {
                PyOS_AfterFork_Child();
                return PyLong_FromLong(if is_restored { 2 } else { 1 });
            }
            let pid = if pid < 0 { -*__errno_location() } else { pid };
            PyOS_AfterFork_Parent();
            forked(pid);
        }
    }
}

/// Whether this process has no threads: a directory of so many entries has as many links, and two; proc_pid_task(5).
fn is_alone() -> bool {
    // struct stat, whose third word is the number of links.
    let mut stat = [0_u64; 18];
    // SAFETY: the path ends with a NUL, and the kernel fills in no more than the structure.
    let result =
        unsafe { syscall(STAT, [c"/proc/self/task".as_ptr() as usize, stat.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    result == 0 && stat[2] == 3
}

/// In the parent, after the fork; `pid` is -errno where it failed.
fn forked(pid: i32) {
    go_home();
    if let Some(program) = state().program.take() {
        // SAFETY: fcntl takes no pointer here.
        let kept = unsafe { syscall(nr::FCNTL, [program.control, execute::F_DUPFD_CLOEXEC, 0, 0, 0, 0]) };
        match state().slots.iter_mut().find(|slot| slot.0 == 0) {
            Some(slot) if pid > 0 && kept >= 0 => {
                // A restorer reports the guest's end itself.
                let kind = if program.header.restorer == 0 { REPORT_ENDED } else { REPORT_ORPHANED };
                *slot = (pid, kept as usize, kind);
            }
            _ => report(program.control, REPORT_FAILED, u32::MAX, -pid.min(kept as i32).min(0), 0, 0),
        }
        program.close_passed();
    }
}

extern "C" fn stand_over(_: *mut c_void, wiped: *mut c_void) -> *mut c_void {
    let signals = state().signals;
    // SAFETY: the interpreter passes a bytes object, and its lock is held; there is one thread.
    unsafe {
        let count = PyBytes_Size(wiped) as usize / size_of::<usize>();
        let arenas = arenas();
        (arenas.keeps, arenas.reserve) = (true, map(PLACE).unwrap_or(0));
        if let Some(program) = state().program.as_mut() {
            restorer::stand_over(program, signals, PyBytes_AsString(wiped).cast::<usize>(), count);
        }
        PyBool_FromLong(1)
    }
}

extern "C" fn enter(_: *mut c_void, _: *mut c_void) -> *mut c_void {
    // SAFETY: the counts are the header's; exit_group takes no pointer; the interpreter's lock is held.
    unsafe {
        if let Some(mut program) = state().program.take() {
            let first = program.header.setup;
            if program.execute(first, first + program.header.guest) {
                return PyBool_FromLong(1);
            }
        }
        syscall(EXIT_GROUP, [1, 0, 0, 0, 0, 0]);
        null_mut()
    }
}

// CPython's stable ABI.

type Method = extern "C" fn(*mut c_void, *mut c_void) -> *mut c_void;

unsafe extern "C" {
    fn PyLong_AsLong(object: *mut c_void) -> c_long;
    fn PyLong_FromLong(value: c_long) -> *mut c_void;
    fn PyBool_FromLong(value: c_long) -> *mut c_void;
    fn PyBytes_AsString(object: *mut c_void) -> *mut c_char;
    fn PyTuple_GetItem(tuple: *mut c_void, at: isize) -> *mut c_void;
    fn PyBytes_Size(object: *mut c_void) -> isize;
    fn PyOS_BeforeFork();
    fn PyOS_AfterFork_Parent();
    fn PyOS_AfterFork_Child();
    // Of the C library that the interpreter has loaded, for its own hooks.
    #[link_name = "fork"]
    fn libc_fork() -> c_int;
    fn __errno_location() -> *mut c_int;
    // Not of the stable ABI, and the same since 3.4.
    fn PyObject_SetArenaAllocator(allocator: *mut ArenaAllocator);
    fn PyModule_Create2(definition: *mut Definition, version: c_int) -> *mut c_void;
}

/// `struct PyObjectArenaAllocator`.
#[repr(C)]
struct ArenaAllocator {
    context: *mut c_void,
    allocate: extern "C" fn(*mut c_void, usize) -> *mut c_void,
    release: extern "C" fn(*mut c_void, *mut c_void, usize),
}

/// `struct PyMethodDef`.
#[repr(C)]
struct MethodDefinition {
    name: *const c_char,
    method: Option<Method>,
    flags: c_int,
    doc: *const c_char,
}

/// `struct PyModuleDef`, its `PyModuleDef_HEAD_INIT` written out.
#[repr(C)]
struct Definition {
    references: isize,
    kind: *mut c_void,
    init: *mut c_void,
    index: isize,
    copy: *mut c_void,
    name: *const c_char,
    doc: *const c_char,
    size: isize,
    methods: *mut MethodDefinition,
    rest: [*mut c_void; 4],
}

const METH_NOARGS: c_int = 4;
const METH_O: c_int = 8;
/// `PYTHON_ABI_VERSION`: the stable one.
const ABI: c_int = 3;

const fn method(name: &'static core::ffi::CStr, method: Method, flags: c_int) -> MethodDefinition {
    MethodDefinition { name: name.as_ptr(), method: Some(method), flags, doc: null() }
}

static mut METHODS: [MethodDefinition; 19] = [
    method(c"collapse", huge::collapse, METH_O),
    method(c"enlarge_text", huge::enlarge_text, METH_O),
    method(c"gather", gather, METH_NOARGS),
    method(c"populate", populate, METH_O),
    method(c"protect", protect, METH_O),
    method(c"share", libraries::share, METH_O),
    method(c"fill", fill, METH_O),
    method(c"keep", immortal::keep, METH_O),
    method(c"close_gaps", heap::close_gaps, METH_NOARGS),
    method(c"pack", code::pack, METH_O),
    method(c"lay_out", layout::lay_out, METH_O),
    method(c"laid_out", layout::laid_out, METH_NOARGS),
    method(c"found", layout::found, METH_O),
    method(c"fork", fork, METH_NOARGS),
    method(c"serve", serve, METH_O),
    method(c"next", next, METH_NOARGS),
    method(c"stand_over", stand_over, METH_O),
    method(c"enter", enter, METH_NOARGS),
    MethodDefinition { name: null(), method: None, flags: 0, doc: null() },
];
static mut DEFINITION: Definition = Definition {
    references: 1,
    kind: null_mut(),
    init: null_mut(),
    index: 0,
    copy: null_mut(),
    name: c"_nsbox".as_ptr(),
    doc: null(),
    size: -1,
    methods: null_mut(),
    rest: [null_mut(); 4],
};

/// Called by the interpreter's import of the module.
#[unsafe(no_mangle)]
pub extern "C" fn PyInit__nsbox() -> *mut c_void {
    // SAFETY: called once, with the interpreter's lock held.
    unsafe {
        let definition = addr_of_mut!(DEFINITION);
        (*definition).methods = addr_of_mut!(METHODS).cast();
        PyModule_Create2(definition, ABI)
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {
        // SAFETY: exit_group takes no pointer.
        unsafe { syscall(EXIT_GROUP, [1, 0, 0, 0, 0, 0]) };
    }
}
