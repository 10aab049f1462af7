//! A limit on what the tar crate reads between two entries: it holds long names and extended headers in memory, whatever
//! size they claim.

use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

/// What the headers of one entry may take: its long names, extended attributes and map of holes.
pub(crate) const MAX_HEADERS: u64 = 1 << 20;

/// What an archive's reader may still give before it counts as a flood of headers, and whether it has come to its end.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    left: Cell<u64>,
    ended: Cell<bool>,
}

impl Meter {
    /// Headers follow, and nothing else.
    pub(crate) fn expect_headers(&self) {
        self.left.set(MAX_HEADERS);
    }

    /// Content follows, which has limits of its own; whether the headers were within theirs.
    pub(crate) fn expect_content(&self) -> bool {
        self.left.replace(u64::MAX) != 0
    }

    /// Whether the last read found nothing more.
    pub(crate) fn ended(&self) -> bool {
        self.ended.get()
    }
}

/// A metered reader.
pub(crate) struct Metered<R> {
    pub stream: R,
    pub meter: Rc<Meter>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.meter.left.get();
        let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if most == 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let count = self.stream.read(&mut buffer[..most])?;
        self.meter.ended.set(count == 0 && !buffer.is_empty());
        if left != u64::MAX {
            self.meter.left.set(left - count as u64);
        }
        Ok(count)
    }
}

impl<R: Seek> Seek for Metered<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.stream.seek(to)
    }
}
