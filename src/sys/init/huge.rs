//! Puts pages into huge ones, of which a fork copies one entry where it would copy 512, or would have text mapped anew.

use core::ffi::c_void;
use core::ptr::copy_nonoverlapping;

use super::{HUGE_PAGE, MADVISE, MPROTECT, PAGE, PyBool_FromLong, PyLong_AsLong, layout, map, syscall, unmap};

const MREMAP: usize = 25;
const MINCORE: usize = 27;
/// `MREMAP_MAYMOVE` and `MREMAP_FIXED`.
const REPLACE: usize = 3;
const PROT_READ_EXECUTE: usize = 5;
const MADV_COLLAPSE: usize = 25;
/// Pages that are worth a huge one, of 512: where there are fewer, they are copied sooner than a huge one is split that is written to.
const MANY: usize = 64;

/// `collapse(address) -> bool`: one huge page of the 2 MiB there, where enough of it is used.
pub extern "C" fn collapse(_: *mut c_void, address: *mut c_void) -> *mut c_void {
    let mut pages = [0_u8; HUGE_PAGE / PAGE];
    // SAFETY: the interpreter passes an object. mincore(2) writes a byte for each page; madvise(2) changes no content with
    // MADV_COLLAPSE (Linux 6.1), and where it fails, the pages stay as they are. Those that each slot writes to had better be small.
    unsafe {
        let begin = PyLong_AsLong(address) as usize;
        let known = syscall(MINCORE, [begin, HUGE_PAGE, pages.as_mut_ptr() as usize, 0, 0, 0]);
        let is_worth = known != 0 || pages.iter().filter(|page| **page & 1 != 0).count() >= MANY;
        let is_cold = !layout::overlaps(begin, begin.wrapping_add(HUGE_PAGE));
        let done = is_worth && is_cold && syscall(MADVISE, [begin, HUGE_PAGE, MADV_COLLAPSE, 0, 0, 0]) == 0;
        PyBool_FromLong(done.into())
    }
}

/// `enlarge_text(address) -> bool`: one huge page in place of the 2 MiB of text there, where the kernel has one.
pub extern "C" fn enlarge_text(_: *mut c_void, address: *mut c_void) -> *mut c_void {
    // SAFETY: the interpreter passes an object: where text is that nobody writes to. What replaces it is the same, can be executed once
    // nobody can write to it any more, and lies where it begins and ends with a huge page.
    unsafe {
        let text = PyLong_AsLong(address) as usize;
        let Some(found) = map(2 * HUGE_PAGE) else { return PyBool_FromLong(0) };
        let copy = found.next_multiple_of(HUGE_PAGE);
        let before = copy.wrapping_sub(found);
        unmap(found, before);
        unmap(copy.wrapping_add(HUGE_PAGE), HUGE_PAGE.wrapping_sub(before));
        copy_nonoverlapping(text as *const u8, copy as *mut u8, HUGE_PAGE);
        let done = syscall(MADVISE, [copy, HUGE_PAGE, MADV_COLLAPSE, 0, 0, 0]) == 0
            && syscall(MPROTECT, [copy, HUGE_PAGE, PROT_READ_EXECUTE, 0, 0, 0]) == 0
            && syscall(MREMAP, [copy, HUGE_PAGE, HUGE_PAGE, REPLACE, text, 0]) > 0;
        if !done {
            unmap(copy, HUGE_PAGE);
        }
        PyBool_FromLong(done.into())
    }
}
