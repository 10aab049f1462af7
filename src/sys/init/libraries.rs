//! Puts what libraries have written when they were loaded where a fork need not copy it: into a file of memory, sealed, of which
//! the zygote maps private copies.
//!
//! A fork copies the page table entries of private memory that has been written to, and a record of it (`anon_vma`) for each area,
//! and its exit undoes that; relocations alone are a thousand pages in a hundred areas, of which a slot uses few. A private copy of
//! a file that nobody has written to since has neither: what is used is mapped, or copied, when it is.

use core::ffi::{c_int, c_void};
use core::ptr::slice_from_raw_parts;

use super::{
    MAP_PRIVATE, MMAP, PAGE, PROT_READ_WRITE, PyBool_FromLong, PyBytes_AsString, PyBytes_Size, close, nr, syscall,
};

const PWRITE: usize = 18;
const MEMFD_CREATE: usize = 319;
/// `MFD_CLOEXEC` and `MFD_ALLOW_SEALING`; with `MFD_NOEXEC_SEAL`, where the kernel knows it (Linux 6.3).
const FLAGS: [usize; 2] = [0xb, 0x3];
const MAP_FIXED: usize = 0x10;
const F_ADD_SEALS: usize = 1033;
/// `F_SEAL_SEAL`, `F_SEAL_SHRINK`, `F_SEAL_GROW` and `F_SEAL_WRITE`.
const SEALS: usize = 0xf;
const PT_LOAD: u32 = 1;
const PF_W: u32 = 2;

/// What is passed from library to library: the file, how long it is, and the areas that forks find empty, words, two for each.
struct Sharing {
    file: usize,
    length: usize,
    wiped: *const [usize; 2],
    count: usize,
}

/// `share(wiped)`: once, when all segments of libraries that were ever writable are writable again. `wiped`: native words, two for
/// each area that a fork empties, its begin and its length; what is there stays as it is. False where the file could not be sealed.
pub extern "C" fn share(_: *mut c_void, wiped: *mut c_void) -> *mut c_void {
    // SAFETY: the interpreter passes a bytes object, and its lock is held; there is one thread. The file's name ends with a NUL.
    unsafe {
        let create = |flags| syscall(MEMFD_CREATE, [c"nsbox-libraries".as_ptr() as usize, flags, 0, 0, 0, 0]);
        let mut is_sealed = true;
        if let Some(file) = FLAGS.into_iter().map(create).find(|file| *file >= 0) {
            let count = PyBytes_Size(wiped) as usize / size_of::<[usize; 2]>();
            let wiped = PyBytes_AsString(wiped).cast::<[usize; 2]>();
            let mut sharing = Sharing { file: file as usize, length: 0, wiped, count };
            dl_iterate_phdr(share_one, (&raw mut sharing).cast());
            is_sealed = syscall(nr::FCNTL, [sharing.file, F_ADD_SEALS, SEALS, 0, 0, 0]) == 0;
            close(sharing.file);
        }
        PyBool_FromLong(is_sealed.into())
    }
}

/// The writable segments of a library, with what is zero in the file.
extern "C" fn share_one(library: *const Library, _: usize, sharing: *mut c_void) -> c_int {
    // SAFETY: the C library passes what is loaded, and `share` the rest. Each page is replaced by a copy of itself: nothing writes to
    // it in between.
    unsafe {
        let Sharing { file, length: offset, wiped, count } = &mut *sharing.cast::<Sharing>();
        let segments = &*slice_from_raw_parts((*library).segments, (*library).count.into());
        for segment in segments.iter().filter(|segment| segment.kind == PT_LOAD && segment.flags & PF_W != 0) {
            let from = (*library).base.wrapping_add(segment.address);
            let begin = from & !(PAGE - 1);
            let end = from.wrapping_add(segment.length).next_multiple_of(PAGE);
            let is_wiped = (0..*count).any(|i| {
                let [at, length] = wiped.add(i).read_unaligned();
                at < end && begin < at.wrapping_add(length)
            });
            let length = end.wrapping_sub(begin);
            if !is_wiped && syscall(PWRITE, [*file, begin, length, *offset, 0, 0]) == length as isize {
                syscall(MMAP, [begin, length, PROT_READ_WRITE, MAP_PRIVATE | MAP_FIXED, *file, *offset]);
                *offset = offset.wrapping_add(length);
            }
        }
    }
    0
}

/// `struct dl_phdr_info`, as far as it is used; dl_iterate_phdr(3).
#[repr(C)]
struct Library {
    base: usize,
    name: *const u8,
    segments: *const Segment,
    count: u16,
}

/// `Elf64_Phdr`; elf(5).
#[repr(C)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: usize,
    address: usize,
    physical: usize,
    stored: usize,
    length: usize,
    alignment: usize,
}

type Callback = extern "C" fn(*const Library, usize, *mut c_void) -> c_int;

unsafe extern "C" {
    // Of the C library that the interpreter has loaded.
    fn dl_iterate_phdr(callback: Callback, data: *mut c_void) -> c_int;
}
