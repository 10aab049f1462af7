//! Makes the zygote's objects immortal, where the interpreter knows of such: CPython 3.12 and 3.13 (PEP 683).
//!
//! Nobody counts references to them any more, so a slot that only uses them has no page to copy for it; that is half of all
//! pages that it would copy. None of them would end before the process does.

use core::ffi::{c_char, c_int, c_void};

use super::{PyBool_FromLong, PyTuple_GetItem, map};

/// What is in the place of a count that nobody changes: `_Py_IMMORTAL_REFCNT`.
const IMMORTAL: u64 = 0xffff_ffff;
/// `Py_tp_traverse`.
const TRAVERSE: c_int = 71;
/// Objects that are known and not looked into yet.
const MOST: usize = 4 << 20;
/// What a code object holds: it is no object of the garbage collector's, and so tells nobody.
const OF_CODE: [&core::ffi::CStr; 7] =
    [c"co_consts", c"co_names", c"co_name", c"co_qualname", c"co_filename", c"co_linetable", c"co_exceptiontable"];

type Visit = extern "C" fn(*mut c_void, *mut c_void) -> c_int;
type Traverse = extern "C" fn(*mut c_void, Visit, *mut c_void) -> c_int;

/// A stack, in memory that the kernel gives when it is touched.
struct Pending {
    objects: *mut *mut c_void,
    count: usize,
}

/// `keep((objects, None, code))`: these, and whatever they hold, from there on; `code` is any code object.
pub extern "C" fn keep(_: *mut c_void, given: *mut c_void) -> *mut c_void {
    // SAFETY: the interpreter passes a tuple, and its lock is held. An object begins with its count and its type.
    unsafe {
        let [objects, none, code] = [0, 1, 2].map(|i| PyTuple_GetItem(given, i));
        if none.cast::<u64>().read() != IMMORTAL {
            return PyBool_FromLong(0);
        }
        let Some(room) = map(MOST * size_of::<usize>()) else { return PyBool_FromLong(0) };
        let mut pending = Pending { objects: room as *mut _, count: 0 };
        for i in 0..PyList_Size(objects) {
            let object = PyList_GetItem(objects, i);
            object.cast::<u64>().write(IMMORTAL);
            look_into(object, type_of(code), &mut pending);
            while let Some(count) = pending.count.checked_sub(1) {
                pending.count = count;
                look_into(*pending.objects.add(count), type_of(code), &mut pending);
            }
        }
        super::unmap(room, MOST * size_of::<usize>());
        PyBool_FromLong(1)
    }
}

unsafe fn type_of(object: *mut c_void) -> *mut c_void {
    // SAFETY: an object begins with its count and its type.
    unsafe { object.cast::<*mut c_void>().add(1).read() }
}

unsafe fn look_into(object: *mut c_void, code: *mut c_void, pending: &mut Pending) {
    let into = (&raw mut *pending).cast::<c_void>();
    // SAFETY: as the garbage collector does.
    unsafe {
        let kind = type_of(object);
        visit(kind, into);
        if kind == code {
            for name in OF_CODE {
                let held = PyObject_GetAttrString(object, name.as_ptr());
                if held.is_null() {
                    PyErr_Clear();
                } else {
                    visit(held, into);
                }
            }
        } else if PyObject_IS_GC(object) != 0 {
            let traverse = PyType_GetSlot(kind, TRAVERSE);
            if !traverse.is_null() {
                core::mem::transmute::<*mut c_void, Traverse>(traverse)(object, visit, into);
            }
        }
    }
}

/// Called with each object that one holds.
extern "C" fn visit(object: *mut c_void, pending: *mut c_void) -> c_int {
    // SAFETY: `pending` is what `look_into` has passed; its memory is for so many.
    unsafe {
        let pending = &mut *pending.cast::<Pending>();
        // Immortal are the negative ones of 32 bits.
        if (object.cast::<i32>().read()) >= 0 && pending.count < MOST {
            object.cast::<u64>().write(IMMORTAL);
            pending.objects.add(pending.count).write(object);
            pending.count = pending.count.wrapping_add(1);
        }
    }
    0
}

unsafe extern "C" {
    fn PyList_Size(list: *mut c_void) -> isize;
    fn PyList_GetItem(list: *mut c_void, at: isize) -> *mut c_void;
    fn PyType_GetSlot(kind: *mut c_void, slot: c_int) -> *mut c_void;
    fn PyObject_GetAttrString(object: *mut c_void, name: *const c_char) -> *mut c_void;
    fn PyErr_Clear();
    // Not of the stable ABI; since 3.9.
    fn PyObject_IS_GC(object: *mut c_void) -> c_int;
}
