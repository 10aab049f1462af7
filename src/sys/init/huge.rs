//! Puts pages into huge ones, of which a fork copies one entry where it would copy 512.

use core::ffi::c_void;

use super::{HUGE_PAGE, MADVISE, PAGE, PyBool_FromLong, PyLong_AsLong, layout, syscall};

const MINCORE: usize = 27;
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
