//! Puts code objects side by side: an interpreter writes to each that it runs, and a fork copies the page that it is on.

use core::ffi::c_void;
use core::ptr::copy_nonoverlapping;

use super::{PyLong_AsLong, PyTuple_GetItem, map};

/// Bytes that are mapped at a time.
const ROOM: usize = 1 << 20;
const ALIGNMENT: usize = 16;
/// References that nobody gives back: the object stays.
const FOREVER: usize = 1 << 30;

/// What is left of the last mapping: where, and how much.
static mut LEFT: (usize, usize) = (0, 0);

/// `pack((code, size))`: a copy of this object, which nobody else may have used, behind the one before. Both stay as long as the
/// process: what the one holds is the other's.
pub extern "C" fn pack(_: *mut c_void, given: *mut c_void) -> *mut c_void {
    // SAFETY: the interpreter passes a tuple, and its lock is held. A code object has no pointer into itself and is not the
    // garbage collector's; it begins with its count. Python 3.10 to 3.13.
    unsafe {
        let code = PyTuple_GetItem(given, 0);
        let size = PyLong_AsLong(PyTuple_GetItem(given, 1)) as usize;
        Py_IncRef(code);
        let (at, left) = LEFT;
        let needed = size.next_multiple_of(ALIGNMENT);
        let (at, left) = match left.checked_sub(needed) {
            Some(left) => (at, left),
            None => match map(needed.max(ROOM)) {
                Some(at) => (at, needed.max(ROOM).wrapping_sub(needed)),
                None => return code,
            },
        };
        LEFT = (at.wrapping_add(needed), left);
        let copy = at as *mut c_void;
        copy_nonoverlapping(code.cast::<u8>(), copy.cast(), size);
        copy.cast::<usize>().write(FOREVER);
        copy
    }
}

unsafe extern "C" {
    fn Py_IncRef(object: *mut c_void);
}
