//! The guest's pages: which are its own, what they were, and their writing back.

use super::super::close;
use super::super::execute::{nr, syscall};
use super::{
    COPY, Failure, LIST, MOST_RANGES, PAGE, PREAD, PROCESS_VM_READV, PROCESS_VM_WRITEV, READ_MAP, Range, Region,
    SCHED_YIELD, SHARED, TOO_MANY, WRITE_PAGES, ok,
};

impl Region {
    /// The areas that the guest can write to.
    pub(super) fn list_areas(&mut self) -> Result<(), Failure> {
        let maps = self.open(b"/maps\0")?;
        loop {
            // The kernel gives whole lines.
            let length = self.read(nr::READ, maps)?;
            if length == 0 {
                break;
            }
            for line in self.text.get(..length).unwrap_or_default().split(|b| *b == b'\n') {
                let (begin, rest) = hexadecimal(line);
                let (end, rest) = hexadecimal(rest);
                if rest.get(1) != Some(&b'w') {
                    continue;
                }
                if rest.get(3) == Some(&b's') {
                    return Err((SHARED, 0));
                }
                let Some(place) = self.areas.get_mut(self.area_count) else { return Err((LIST, 0)) };
                *place = Range { begin, length: end.wrapping_sub(begin) };
                self.area_count += 1;
            }
        }
        close(maps);
        Ok(())
    }

    /// Lists the pages that are the guest's alone.
    pub(super) fn scan(&mut self) -> Result<(), Failure> {
        let (mut count, mut note, mut found) = (0, 0, 0);
        for area in self.areas.iter().take(self.area_count) {
            let mut at = area.begin;
            let end = area.begin.wrapping_add(area.length);
            while at < end {
                let wanted = (end.wrapping_sub(at) / PAGE).min(self.entries.len());
                let args = [self.page_map, self.entries.as_mut_ptr() as usize, wanted * 8, at / PAGE * 8, 0, 0];
                // SAFETY: the entries are as many.
                if ok(unsafe { syscall(PREAD, args) }, READ_MAP)? != wanted * 8 {
                    return Err((READ_MAP, 0));
                }
                for entry in self.entries.iter().take(wanted) {
                    // Bit 63: present; 62: swapped out, or on its way; 61: a page of a file; 56: mapped here alone.
                    let is_own = matches!(entry >> 56 & 0xe1, 0x81) || entry >> 62 & 1 == 1;
                    if is_own {
                        while self.note_addresses.get(note).is_some_and(|noted| note < self.noted && *noted < at) {
                            note += 1;
                        }
                        let is_noted = note < self.noted && self.note_addresses.get(note) == Some(&at);
                        found += usize::from(is_noted);
                        let source =
                            self.notes.get(note).filter(|_| is_noted).map_or(at, |frame| frame.0.as_ptr() as usize);
                        let is_wiped = self
                            .wiped
                            .iter()
                            .take(self.wiped_count)
                            .any(|range| at.wrapping_sub(range.begin) < range.length);
                        let source = if is_wiped { self.zeros.0.as_ptr() as usize } else { source };
                        let Some(place) = self.pages.get_mut(count) else { return Err((TOO_MANY, 0)) };
                        *place = (at, source);
                        count += 1;
                    }
                    at = at.wrapping_add(PAGE);
                }
            }
        }
        self.count = count;
        if found == self.noted { Ok(()) } else { Err((READ_MAP, 0)) }
    }

    /// Notes the pages that the guest has changed already.
    pub(super) fn copy_changed(&mut self) -> Result<(), Failure> {
        for (page, _) in self.pages.iter().take(self.count) {
            let Some(frame) = self.notes.get_mut(self.noted) else { return Err((TOO_MANY, 0)) };
            let local = Range { begin: frame.0.as_mut_ptr() as usize, length: PAGE };
            let remote = Range { begin: *page, length: PAGE };
            let args = [self.guest, &raw const local as usize, 1, &raw const remote as usize, 1, 0];
            // SAFETY: the frame is a page.
            ok(unsafe { syscall(PROCESS_VM_READV, args) }, COPY)?;
            // SAFETY: the areas are the guest's, and so this process's: it had them when it forked it, and has changed none.
            let own = unsafe { core::slice::from_raw_parts(*page as *const u64, PAGE / 8) };
            let (copy, _) = frame.0.as_chunks::<8>();
            let is_same = own.iter().zip(copy).all(|(own, copy)| *own == u64::from_ne_bytes(*copy));
            if !is_same {
                let Some(place) = self.note_addresses.get_mut(self.noted) else { return Err((TOO_MANY, 0)) };
                *place = *page;
                self.noted += 1;
            }
        }
        Ok(())
    }

    /// Writes all the guest's own pages as they were, in parts: between two of them, whoever waits for the processor has it.
    /// Likely that is the run's caller, who has been answered by now.
    pub(super) fn write(&mut self) -> Result<(), Failure> {
        let (mut ranges, mut bytes) = (0, 0);
        let mut next = (usize::MAX, usize::MAX);
        for i in 0..self.count {
            let Some(&(page, source)) = self.pages.get(i) else { break };
            if (page, source) == next {
                for list in [&mut self.local, &mut self.remote] {
                    if let Some(range) = list.get_mut(ranges - 1) {
                        range.length += PAGE;
                    }
                }
            } else {
                if ranges == MOST_RANGES {
                    self.write_ranges(ranges, bytes)?;
                    // SAFETY: the call takes no pointer.
                    unsafe { syscall(SCHED_YIELD, [0; 6]) };
                    (ranges, bytes) = (0, 0);
                }
                if let (Some(local), Some(remote)) = (self.local.get_mut(ranges), self.remote.get_mut(ranges)) {
                    *local = Range { begin: source, length: PAGE };
                    *remote = Range { begin: page, length: PAGE };
                    ranges += 1;
                }
            }
            bytes += PAGE;
            next = (page.wrapping_add(PAGE), source.wrapping_add(PAGE));
        }
        self.write_ranges(ranges, bytes)
    }

    fn write_ranges(&self, ranges: usize, bytes: usize) -> Result<(), Failure> {
        let (local, remote) = (self.local.as_ptr() as usize, self.remote.as_ptr() as usize);
        // SAFETY: the lists are as long, and lead to this process's own memory and to the guest's.
        let written = unsafe { syscall(PROCESS_VM_WRITEV, [self.guest, local, ranges, remote, ranges, 0]) };
        if ok(written, WRITE_PAGES)? == bytes { Ok(()) } else { Err((WRITE_PAGES, 0)) }
    }
}

/// A number, and what comes behind the character after it.
fn hexadecimal(text: &[u8]) -> (usize, &[u8]) {
    let digit = |byte: &u8| match *byte {
        decimal @ b'0'..=b'9' => Some(decimal.wrapping_sub(b'0')),
        letter @ b'a'..=b'f' => Some(letter.wrapping_sub(b'a' - 10)),
        _ => None,
    };
    let number = text.iter().map_while(digit).fold(0, |number, digit| number << 4 | usize::from(digit));
    let length = text.iter().map_while(digit).count();
    (number, text.get(length.wrapping_add(1)..).unwrap_or_default())
}
