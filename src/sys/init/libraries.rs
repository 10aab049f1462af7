//! Puts what libraries have written when they were loaded where a fork need not copy it: into a file of memory, sealed, of which
//! the zygote maps private copies.
//!
//! A fork copies the page table entries of private memory that has been written to, and a record of it (`anon_vma`) for each area,
//! and its exit undoes that; relocations alone are a thousand pages in a hundred areas, of which a slot uses few. A private copy of
//! a file that nobody has written to since has neither: what is used is mapped, or copied, when it is.

use core::ffi::{c_int, c_void};
use core::ptr::slice_from_raw_parts;

use super::{MAP_PRIVATE, MMAP, PAGE, PROT_READ_WRITE, PyBool_FromLong, close, nr, syscall};

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

/// `share()`: once, when all segments of libraries that were ever writable are writable again.
pub extern "C" fn share(_: *mut c_void, _: *mut c_void) -> *mut c_void {
    // SAFETY: takes no pointer but the name, which ends with a NUL. The interpreter's lock is held, and there is one thread.
    unsafe {
        let create = |flags| syscall(MEMFD_CREATE, [c"nsbox-libraries".as_ptr() as usize, flags, 0, 0, 0, 0]);
        let file = FLAGS.into_iter().map(create).find(|file| *file >= 0);
        if let Some(file) = file {
            let mut place = (file as usize, 0_usize);
            dl_iterate_phdr(share_one, (&raw mut place).cast());
            syscall(nr::FCNTL, [place.0, F_ADD_SEALS, SEALS, 0, 0, 0]);
            close(place.0);
        }
        PyBool_FromLong(file.is_some().into())
    }
}

/// The writable segments of a library, with what is zero in the file.
extern "C" fn share_one(library: *const Library, _: usize, place: *mut c_void) -> c_int {
    // SAFETY: the C library passes what is loaded, and `share` the place. Each page is replaced by a copy of itself: nothing writes to
    // it in between.
    unsafe {
        let (file, offset) = &mut *place.cast::<(usize, usize)>();
        let segments = &*slice_from_raw_parts((*library).segments, (*library).count.into());
        for segment in segments.iter().filter(|segment| segment.kind == PT_LOAD && segment.flags & PF_W != 0) {
            let from = (*library).base.wrapping_add(segment.address);
            let begin = from & !(PAGE - 1);
            let length = from.wrapping_add(segment.length).next_multiple_of(PAGE).wrapping_sub(begin);
            if syscall(PWRITE, [*file, begin, length, *offset, 0, 0]) == length as isize {
                syscall(MMAP, [begin, length, PROT_READ_WRITE, MAP_PRIVATE | MAP_FIXED, *file, *offset]);
            }
            *offset = offset.wrapping_add(length);
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
