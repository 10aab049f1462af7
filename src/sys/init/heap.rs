//! Takes what is free between the zygote's objects, so that what a slot makes lies side by side in memory that nobody has used.
//!
//! Imports leave gaps all over the heap. An allocator fills these first, and each is on another page, which a fork copies to put
//! one object there. They are taken here and never given back: a fork shares them as they are.

use core::ffi::c_void;

use super::{HUGE_PAGE, PLACE, PyBool_FromLong, arenas};

/// The interpreter's own allocator serves blocks of up to so many bytes, in sizes that are so far apart.
const LARGEST: usize = 512;
const STEP: usize = 16;
/// The C library's serves larger ones, from mappings of their own above this at the earliest.
const LARGEST_CHUNK: usize = 96 << 10;
/// What it takes in front of each.
const HEAD: usize = 8;
/// Chunks of the largest size that lie one behind the other only where the heap ends.
const IN_ROW: usize = 8;
/// How many of them may fit into gaps.
const MOST_CHUNKS: usize = 256;
/// How much may be taken of it in all.
const MOST_TAKEN: usize = 64 << 20;

/// `close_gaps()`
pub extern "C" fn close_gaps(_: *mut c_void, _: *mut c_void) -> *mut c_void {
    // SAFETY: the interpreter's lock is held, and there is one thread. What is allocated is never touched.
    unsafe {
        close_pools();
        close_chunks();
        PyBool_FromLong(1)
    }
}

/// The interpreter's allocator has pools of one size each, in arenas. Once all that are there are full, it asks for an arena.
unsafe fn close_pools() {
    let most = arenas().count.wrapping_mul(PLACE) / LARGEST;
    let made = arenas().made;
    // What is new begins with a huge page: one that old objects are in would be split for it.
    arenas().align();
    let mut left = most;
    while arenas().made == made && left > 0 {
        // SAFETY: see `close_gaps`.
        unsafe { PyObject_Malloc(LARGEST) };
        left = left.wrapping_sub(1);
    }
    let new = arenas().newest;
    let mut size = STEP;
    while size <= LARGEST && arenas().made != made {
        // Gaps are no more than all that there is.
        let mut left = most.wrapping_mul(LARGEST / STEP);
        // SAFETY: see `close_gaps`.
        while left > 0 && (unsafe { PyObject_Malloc(size) } as usize).wrapping_sub(new.0) >= new.1 {
            left = left.wrapping_sub(1);
        }
        size = size.wrapping_add(STEP);
    }
}

/// The C library's allocator (glibc's; others are left alone) fills gaps before it goes on at the top of its heap. What comes from
/// there lies one behind the other.
unsafe fn close_chunks() {
    // SAFETY: see `close_gaps`.
    unsafe {
        let stride = (LARGEST_CHUNK + HEAD).next_multiple_of(STEP);
        let mut last = malloc(LARGEST_CHUNK) as usize;
        let (mut in_row, mut tries) = (0, 0);
        while in_row < IN_ROW {
            let next = malloc(LARGEST_CHUNK) as usize;
            in_row = if next.wrapping_sub(last) == stride { in_row + 1 } else { 0 };
            last = next;
            tries += 1;
            if tries == MOST_CHUNKS {
                return;
            }
        }
        let top = last.wrapping_sub(stride.wrapping_mul(IN_ROW));
        while last >= top {
            free(last as *mut c_void);
            last = last.wrapping_sub(stride);
        }
        // Up to the next huge page.
        malloc(top.next_multiple_of(HUGE_PAGE).wrapping_sub(top));
        let mut taken = 0_usize;
        let mut size = LARGEST_CHUNK - STEP + HEAD;
        while size >= STEP + HEAD && taken < MOST_TAKEN {
            loop {
                let found = malloc(size);
                if found as usize >= top || found.is_null() {
                    free(found);
                    break;
                }
                taken = taken.wrapping_add(size);
            }
            size = size.wrapping_sub(STEP);
        }
    }
}

unsafe extern "C" {
    fn malloc(size: usize) -> *mut c_void;
    fn free(memory: *mut c_void);
    fn PyObject_Malloc(size: usize) -> *mut c_void;
}
