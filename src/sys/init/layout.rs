//! Lays side by side what slots write to.
//!
//! A slot writes to a thousand objects or two, if only to count references to them, and they lie scattered over as many pages as
//! imports left them on: a fork copies each of these pages. Where an object lies is decided once, when it is allocated. So two
//! forks go ahead, and do all that the zygote is about to do: the first finds which allocations are on pages that are written to;
//! the second puts each of these on a page of its own, and finds which are written to themselves. The zygote puts these side by
//! side.
//!
//! Allocations are told apart by what came before: the sizes of the last few, and how often the same sizes came in that order. All
//! three processes do the same, so nearly all is found again; what is not lies where it would have lain anyway.

use core::ffi::{c_int, c_void};
use core::ptr::{addr_of_mut, copy_nonoverlapping, null, null_mut};
use core::slice;

use super::{
    HUGE_PAGE, PAGE, PyBool_FromLong, PyBytes_AsString, PyBytes_Size, PyLong_AsLong, PyTuple_GetItem, map, unmap,
};

const WORD: usize = size_of::<usize>();
/// What is kept in front of a placed allocation: its identity, and nothing, for the alignment.
const HEAD: usize = 16;
/// The largest allocation that is placed.
const LARGEST: usize = PAGE - HEAD;
/// An identity: bits for its size, and for how often its context has come.
const SIZE_BITS: u32 = 12;
const TIMES_BITS: u32 = 32;
/// Different contexts.
const CONTEXTS: usize = 1 << 20;
/// Room for addresses that were given out, and how far apart these are about.
const MOST_LIVE: usize = 1 << 22;
const SPACING: usize = 32;
/// Allocations that get a page of their own at most.
const MOST_APART: usize = 1 << 16;
/// Bytes of the area where they lie side by side, of which only what is used takes memory.
const TOGETHER: usize = 16 << 20;
/// 2^64 by the golden ratio (Knuth, The Art of Computer Programming, 6.4).
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
/// Bytes of a line of the processor's caches.
const LINE: usize = 64;
/// `PYMEM_DOMAIN_MEM` and `PYMEM_DOMAIN_OBJ`: what the interpreter's lock is held for.
const MEM: c_int = 1;
const OBJ: c_int = 2;

/// What `lay_out` is told to do.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Nothing,
    Record,
    Apart,
    Together,
}

struct Layout {
    mode: Mode,
    /// The sizes of the last allocations.
    history: u64,
    /// How often each context has come, [`CONTEXTS`] numbers.
    times: *mut u32,
    /// What is to be placed: a table of identities by hash, 0 where there is none, and how many words it has.
    wanted: (*mut u64, usize),
    /// Addresses and the identities of what is there, by hash, [`MOST_LIVE`] pairs.
    live: *mut [u64; 2],
    count: usize,
    /// What is on each page of the area, where each has one.
    owners: *mut u64,
    /// Where they are placed: from, to, and the first byte that is free.
    area: (usize, usize, usize),
    /// The interpreter's own allocators.
    plain: [Allocator; 2],
}

const NONE: Allocator =
    Allocator { context: null_mut(), allocate: None, allocate_zeroed: None, reallocate: None, release: None };
static mut LAYOUT: Layout = Layout {
    mode: Mode::Nothing,
    history: 0,
    times: null_mut(),
    wanted: (null_mut(), 0),
    live: null_mut(),
    count: 0,
    owners: null_mut(),
    area: (0, 0, 0),
    plain: [NONE; 2],
};

fn layout() -> &'static mut Layout {
    // SAFETY: the interpreter's lock is held whenever it allocates in these domains, and no function keeps the reference while it
    // calls one that takes another.
    unsafe { &mut *addr_of_mut!(LAYOUT) }
}

/// Whether this address is where allocations are placed.
fn holds(address: usize) -> bool {
    let (begin, end, _) = layout().area;
    (begin..end).contains(&address)
}

/// Whether allocations are placed between these addresses.
pub fn overlaps(from: usize, to: usize) -> bool {
    let (begin, end, _) = layout().area;
    begin < to && from < end
}

const fn size_of_identity(identity: u64) -> usize {
    identity as usize % (1 << SIZE_BITS)
}

const fn slot(key: u64, capacity: usize) -> usize {
    // Of the upper half, which depends on all bits of the key.
    (key.wrapping_mul(GOLDEN) >> 32) as usize & capacity.wrapping_sub(1)
}

impl Layout {
    /// What tells an allocation of this size that comes now; 0 where it is too large to be placed.
    fn identify(&mut self, size: usize) -> u64 {
        self.history = self.history << 16 | (size as u64 & 0xffff);
        if size > LARGEST {
            return 0;
        }
        let context = (self.history.wrapping_mul(GOLDEN) >> 44) as usize % CONTEXTS;
        // SAFETY: there are so many numbers.
        let times = unsafe { &mut *self.times.add(context) };
        *times = times.wrapping_add(1);
        (context as u64) << (TIMES_BITS + SIZE_BITS) | u64::from(*times) << SIZE_BITS | size as u64
    }

    fn is_wanted(&self, identity: u64) -> bool {
        let (words, capacity) = self.wanted;
        let mut at = slot(identity, capacity);
        loop {
            // SAFETY: the capacity is a power of two, and the table is never full.
            match unsafe { words.add(at).read() } {
                0 => return false,
                found if found == identity => return true,
                _ => at = at.wrapping_add(1) & capacity.wrapping_sub(1),
            }
        }
    }

    /// Room for an allocation of this identity, which is zero; none where it is not to be placed.
    fn place(&mut self, identity: u64, size: usize) -> Option<usize> {
        if self.wanted.1 == 0 || identity == 0 || !self.is_wanted(identity) {
            return None;
        }
        let (begin, end, at) = self.area;
        let length = HEAD.wrapping_add(size.max(1).next_multiple_of(HEAD));
        let is_apart = self.mode == Mode::Apart;
        let taken = if is_apart { PAGE } else { length };
        if end.wrapping_sub(at) < taken {
            return None;
        }
        self.area.2 = at.wrapping_add(taken);
        let page = at.wrapping_sub(begin) / PAGE;
        // Not all at the same place of their page: they would take the same lines of the processor's caches from each other.
        let shift = page.wrapping_mul(LINE).checked_rem(taken.wrapping_sub(length).wrapping_add(HEAD)).unwrap_or(0)
            & !(HEAD - 1);
        let at = at.wrapping_add(shift);
        // SAFETY: the area is this one's, and nothing is there yet. There are as many owners as pages apart.
        unsafe {
            (at as *mut u64).write(identity);
            if is_apart {
                self.owners.add(page).write(identity);
            }
        }
        Some(at.wrapping_add(HEAD))
    }

    /// Notes that this is where an allocation is. Which have ended nobody notes: they would only be placed for nothing.
    fn note(&mut self, address: usize, identity: u64) {
        // Neighbours are neighbours here too, for the processor's caches.
        let mut at = address / SPACING % MOST_LIVE;
        loop {
            // SAFETY: there are so many pairs, and the table is never full.
            let pair = unsafe { &mut *self.live.add(at) };
            if pair[0] == address as u64 {
                pair[1] = identity;
                return;
            }
            if pair[0] == 0 {
                // Beyond, what is allocated stays where it is.
                if self.count < MOST_LIVE / 4 * 3 {
                    *pair = [address as u64, identity];
                    self.count = self.count.wrapping_add(1);
                }
                return;
            }
            at = at.wrapping_add(1) % MOST_LIVE;
        }
    }

    /// Has `found` called with the identity of each allocation that is on one of these pages, ranges in their order.
    fn find(&self, ranges: &[[usize; 2]], mut found: impl FnMut(u64)) {
        let is_in = |begin: usize, length: usize| {
            let last = ranges.partition_point(|range| range[0] < begin.wrapping_add(length)).wrapping_sub(1);
            ranges.get(last).is_some_and(|range| begin < range[0].wrapping_add(range[1]))
        };
        if !self.live.is_null() {
            // SAFETY: there are so many pairs.
            for [address, identity] in unsafe { slice::from_raw_parts(self.live, MOST_LIVE) } {
                if *identity != 0 && is_in(*address as usize, size_of_identity(*identity).max(1)) {
                    found(*identity);
                }
            }
        }
        let (begin, _, top) = self.area;
        let mut page = begin;
        while page < top && !self.owners.is_null() {
            if is_in(page, PAGE) {
                // SAFETY: an allocation is on each page up to there, and this is its.
                found(unsafe { self.owners.add(page.wrapping_sub(begin) / PAGE).read() });
            }
            page = page.wrapping_add(PAGE);
        }
    }
}

/// `lay_out((mode, identities))`: from here on, 1: notes what is allocated; 2: puts each of these on a page of its own; 3: puts
/// them side by side. Once in a process; False where there is no memory for it, and nothing is done.
pub extern "C" fn lay_out(_: *mut c_void, given: *mut c_void) -> *mut c_void {
    // SAFETY: the interpreter passes a tuple of a number and of bytes, and its lock is held.
    unsafe {
        let identities = PyTuple_GetItem(given, 1);
        let count = (PyBytes_Size(identities) as usize / WORD).min(MOST_APART);
        let identities = PyBytes_AsString(identities).cast::<u64>();
        let mode = match PyLong_AsLong(PyTuple_GetItem(given, 0)) {
            1 => Mode::Record,
            2 => Mode::Apart,
            _ => Mode::Together,
        };
        PyBool_FromLong(begin(mode, identities, count).is_some().into())
    }
}

unsafe fn begin(mode: Mode, identities: *const u64, count: usize) -> Option<()> {
    let layout = layout();
    // SAFETY: what is mapped is zero, and is there as long as it is used. The hooks live as long as the process and call those that
    // are there, as PyMem_SetAllocator wants it where the interpreter has objects already.
    unsafe {
        layout.times = map(CONTEXTS * size_of::<u32>())? as *mut u32;
        if mode == Mode::Record {
            layout.live = map(MOST_LIVE * size_of::<[u64; 2]>())? as *mut [u64; 2];
        } else {
            let capacity = count.wrapping_mul(2).next_power_of_two();
            layout.wanted = (map(capacity.wrapping_mul(WORD))? as *mut u64, capacity);
            for i in 0..count {
                let identity = identities.add(i).read_unaligned();
                let mut at = slot(identity, capacity);
                while layout.wanted.0.add(at).read() != 0 {
                    at = at.wrapping_add(1) & capacity.wrapping_sub(1);
                }
                layout.wanted.0.add(at).write(identity);
            }
            // Where huge pages begin and end, for these pages shall stay small, and those beside them need not.
            let length = if mode == Mode::Apart { count.wrapping_mul(PAGE) } else { TOGETHER };
            let found = map(length.wrapping_add(HUGE_PAGE))?;
            let area = found.next_multiple_of(HUGE_PAGE);
            let before = area.wrapping_sub(found);
            unmap(found, before);
            unmap(area.wrapping_add(length), HUGE_PAGE.wrapping_sub(before));
            layout.area = (area, area.wrapping_add(length), area);
            if mode == Mode::Apart {
                layout.owners = map(count.wrapping_mul(WORD))? as *mut u64;
            }
        }
        layout.mode = mode;
        for (domain, plain) in [MEM, OBJ].into_iter().zip(&mut layout.plain) {
            PyMem_GetAllocator(domain, plain);
        }
        let [mem, obj] = layout.plain;
        set(MEM, Allocator { context: mem.context, ..hooks::<0>() });
        set(OBJ, Allocator { context: obj.context, ..hooks::<1>() });
    }
    Some(())
}

/// `laid_out()`: what is allocated from here on lies where it comes. What has been placed stays.
pub extern "C" fn laid_out(_: *mut c_void, _: *mut c_void) -> *mut c_void {
    let layout = layout();
    if layout.mode != Mode::Nothing {
        layout.mode = Mode::Nothing;
        let [mem, obj] = layout.plain;
        // SAFETY: as in `begin`. What is unmapped is used by nobody: the plain functions allocate.
        unsafe {
            let (first, second) = (hooks::<0>(), hooks::<1>());
            set(MEM, Allocator { reallocate: first.reallocate, release: first.release, ..mem });
            set(OBJ, Allocator { reallocate: second.reallocate, release: second.release, ..obj });
        }
        unmap(layout.times as usize, CONTEXTS * size_of::<u32>());
        unmap(layout.wanted.0 as usize, layout.wanted.1.wrapping_mul(WORD));
        layout.wanted = (null_mut(), 0);
        let (_, end, top) = layout.area;
        layout.area.1 = top.next_multiple_of(HUGE_PAGE).min(end);
        unmap(layout.area.1, end.wrapping_sub(layout.area.1));
    }
    // SAFETY: takes no pointer.
    unsafe { PyBool_FromLong(1) }
}

/// `found(ranges) -> identities`: the allocations on these pages, native words, two for each range: its begin and its length.
pub extern "C" fn found(_: *mut c_void, ranges: *mut c_void) -> *mut c_void {
    // SAFETY: the interpreter passes a bytes object, whose content begins at a multiple of a word and which nobody changes; its lock
    // is held. What is new is as long as what is written there.
    unsafe {
        let count = PyBytes_Size(ranges) as usize / size_of::<[usize; 2]>();
        let ranges = slice::from_raw_parts(PyBytes_AsString(ranges).cast::<[usize; 2]>(), count);
        let mut count = 0_usize;
        layout().find(ranges, |_| count = count.wrapping_add(1));
        let new = PyBytes_FromStringAndSize(null(), count.wrapping_mul(WORD) as isize);
        if !new.is_null() {
            let mut at = PyBytes_AsString(new).cast::<u64>();
            layout().find(ranges, |identity| {
                at.write_unaligned(identity);
                at = at.add(1);
            });
        }
        new
    }
}

extern "C" fn allocate<const DOMAIN: usize>(context: *mut c_void, size: usize) -> *mut c_void {
    placed(size, |plain| {
        let allocate = plain.get(DOMAIN)?.allocate?;
        Some(allocate(context, size))
    })
}

extern "C" fn allocate_zeroed<const DOMAIN: usize>(context: *mut c_void, count: usize, size: usize) -> *mut c_void {
    // The interpreter has looked whether the product is too large.
    placed(count.wrapping_mul(size), |plain| {
        let allocate_zeroed = plain.get(DOMAIN)?.allocate_zeroed?;
        Some(allocate_zeroed(context, count, size))
    })
}

/// Room for so many bytes: where the plan puts it, zero, or where the interpreter's own function does.
fn placed(size: usize, plainly: impl FnOnce(&[Allocator; 2]) -> Option<*mut c_void>) -> *mut c_void {
    let layout = layout();
    let identity = layout.identify(size);
    if let Some(at) = layout.place(identity, size) {
        return at as *mut c_void;
    }
    let found = plainly(&layout.plain).unwrap_or(null_mut());
    if layout.mode == Mode::Record && identity != 0 && !found.is_null() {
        layout.note(found as usize, identity);
    }
    found
}

extern "C" fn reallocate<const DOMAIN: usize>(context: *mut c_void, old: *mut c_void, size: usize) -> *mut c_void {
    let layout = layout();
    let plain = layout.plain.get(DOMAIN).copied();
    let Some(Allocator { allocate: Some(allocate), reallocate: Some(reallocate), release: Some(release), .. }) = plain
    else {
        return null_mut();
    };
    let identity = if layout.mode == Mode::Nothing { 0 } else { layout.identify(size) };
    // SAFETY: what is placed has its identity in front, which says how long it is. All are as long as what is copied, and the new
    // one is nobody else's.
    unsafe {
        if holds(old as usize) {
            let had = size_of_identity(old.byte_sub(HEAD).cast::<u64>().read());
            if size <= had {
                return old;
            }
            let new = layout.place(identity, size).map_or_else(|| allocate(context, size), |at| at as *mut c_void);
            if !new.is_null() {
                copy_nonoverlapping(old.cast::<u8>(), new.cast(), had);
            }
            return new;
        }
        let new = reallocate(context, old, size);
        if new.is_null() {
            return new;
        }
        if let Some(at) = layout.place(identity, size) {
            copy_nonoverlapping(new.cast::<u8>(), at as *mut u8, size);
            release(context, new);
            return at as *mut c_void;
        }
        if layout.mode == Mode::Record && identity != 0 {
            layout.note(new as usize, identity);
        }
        new
    }
}

extern "C" fn release<const DOMAIN: usize>(context: *mut c_void, old: *mut c_void) {
    let layout = layout();
    // Nothing else is put where something has been placed.
    if holds(old as usize) {
        return;
    }
    if let Some(Allocator { release: Some(release), .. }) = layout.plain.get(DOMAIN) {
        release(context, old);
    }
}

const fn hooks<const DOMAIN: usize>() -> Allocator {
    Allocator {
        context: null_mut(),
        allocate: Some(allocate::<DOMAIN>),
        allocate_zeroed: Some(allocate_zeroed::<DOMAIN>),
        reallocate: Some(reallocate::<DOMAIN>),
        release: Some(release::<DOMAIN>),
    }
}

unsafe fn set(domain: c_int, mut allocator: Allocator) {
    // SAFETY: the interpreter copies it.
    unsafe { PyMem_SetAllocator(domain, &raw mut allocator) };
}

/// `PyMemAllocatorEx`, the same since CPython 3.5.
#[repr(C)]
#[derive(Clone, Copy)]
struct Allocator {
    context: *mut c_void,
    allocate: Option<extern "C" fn(*mut c_void, usize) -> *mut c_void>,
    allocate_zeroed: Option<extern "C" fn(*mut c_void, usize, usize) -> *mut c_void>,
    reallocate: Option<extern "C" fn(*mut c_void, *mut c_void, usize) -> *mut c_void>,
    release: Option<extern "C" fn(*mut c_void, *mut c_void)>,
}

unsafe extern "C" {
    fn PyMem_GetAllocator(domain: c_int, allocator: *mut Allocator);
    fn PyMem_SetAllocator(domain: c_int, allocator: *mut Allocator);
    fn PyBytes_FromStringAndSize(bytes: *const u8, size: isize) -> *mut c_void;
}
