//! Extended headers of a tar entry, pax(1): what the tar crate does not judge or know.

use std::io::{self, Read};

use nix::sys::time::TimeSpec;
use tar::{Entry, EntryType};

use super::unpack::Problem;

const ATTRIBUTE: &str = "SCHILY.xattr.";
const CAPABILITY: &str = "security.capability";
/// A tar's block, which no number fills.
const BLOCK: usize = 512;
/// What a map of holes may take.
const MAX_MAP: usize = 1 << 20;

/// What the extended headers of one entry say.
#[derive(Debug, Default)]
pub(crate) struct Pax {
    /// The time of the last change, with its fraction.
    pub time: Option<TimeSpec>,
    /// Names of the extended attributes.
    pub attributes: Vec<String>,
    /// The path of a sparse file, whose entry has a made-up one.
    pub sparse_name: Option<Vec<u8>>,
    /// The size of a sparse file with its holes; its entry starts with a map of them then.
    pub real_size: Option<u64>,
}

impl Pax {
    /// Reads them. A key that says two things is refused: readers differ in which one they take.
    pub(crate) fn read(entry: &mut Entry<'_, impl Read>) -> Result<Self, Problem> {
        let is_global = entry.header().entry_type() == EntryType::XGlobalHeader;
        if is_global {
            return Self::refuse_global(entry);
        }
        let mut pax = Self::default();
        let mut seen: Vec<String> = Vec::new();
        let mut version = (None, None);
        let Some(extensions) = entry.pax_extensions().map_err(|_| Problem::Headers)? else { return Ok(pax) };
        for extension in extensions {
            let extension = extension.map_err(|_| Problem::Headers)?;
            let key = extension.key().map_err(|_| Problem::Headers)?;
            let value = extension.value_bytes();
            if seen.iter().any(|seen| seen == key) {
                return Err(Problem::Headers);
            }
            seen.push(key.to_owned());
            let number =
                || str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok()).ok_or(Problem::Headers);
            match key {
                "mtime" => pax.time = Some(parse_time(value).ok_or(Problem::Headers)?),
                // The tar crate has it by now, unless it is no number.
                "size" => drop(number()?),
                "GNU.sparse.major" => version.0 = Some(number()?),
                "GNU.sparse.minor" => version.1 = Some(number()?),
                "GNU.sparse.name" => pax.sparse_name = Some(value.to_vec()),
                "GNU.sparse.realsize" => pax.real_size = Some(number()?),
                _ if key.starts_with("GNU.sparse.") => return Err(Problem::Sparse),
                _ => pax.attributes.extend(key.strip_prefix(ATTRIBUTE).map(str::to_owned)),
            }
        }
        match (version, &pax.sparse_name, pax.real_size) {
            ((None, None), None, None) => Ok(pax),
            ((Some(1), Some(0)), Some(_), Some(_)) if entry.header().entry_type() == EntryType::Regular => Ok(pax),
            _ => Err(Problem::Sparse),
        }
    }

    /// A header for all entries to come: nsbox takes a comment, as git writes it, and nothing that would change them.
    fn refuse_global(entry: &mut Entry<'_, impl Read>) -> Result<Self, Problem> {
        let mut text = Vec::new();
        entry.take(MAX_MAP as u64).read_to_end(&mut text).map_err(|_| Problem::Headers)?;
        for extension in tar::PaxExtensions::new(&text) {
            match extension.map_err(|_| Problem::Headers)?.key() {
                Ok("comment" | "mtime" | "atime" | "ctime" | "uid" | "gid" | "uname" | "gname" | "charset") => {}
                _ => return Err(Problem::Headers),
            }
        }
        Ok(Self::default())
    }

    /// What the unpacker notes of the attributes.
    pub(crate) fn note(&self) -> &'static str {
        if self.attributes.iter().any(|name| name == CAPABILITY) {
            "file capabilities dropped"
        } else {
            "extended attributes dropped"
        }
    }

    /// The map at the start of a sparse file of format 1.0: decimal numbers, one a line, padded to a block: how many
    /// pieces there are, then offset and size of each.
    pub(crate) fn read_map(entry: &mut impl Read) -> io::Result<Vec<(u64, u64)>> {
        let damaged = || io::Error::from(io::ErrorKind::InvalidData);
        let mut text = Vec::new();
        let mut numbers = Vec::new();
        let mut wanted = 1;
        let mut at = 0;
        while numbers.len() < wanted {
            if let Some(end) = text[at..].iter().position(|byte| *byte == b'\n') {
                let number = str::from_utf8(&text[at..at + end]).ok().and_then(|text| text.parse::<u64>().ok());
                numbers.push(number.ok_or_else(damaged)?);
                at += end + 1;
                if numbers.len() == 1 {
                    let pieces = usize::try_from(numbers[0]).ok().filter(|count| *count <= MAX_MAP / 4);
                    wanted = 1 + 2 * pieces.ok_or_else(damaged)?;
                }
            } else if text.len() < MAX_MAP && text.len() - at < BLOCK {
                let mut block = [0; BLOCK];
                entry.read_exact(&mut block)?;
                text.extend_from_slice(&block);
            } else {
                return Err(damaged());
            }
        }
        Ok(numbers[1..].chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }
}

/// Seconds with an optional fraction.
fn parse_time(value: &[u8]) -> Option<TimeSpec> {
    let text = str::from_utf8(value).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanoseconds = format!("{fraction:0<9.9}").parse::<u32>().ok()?;
    let seconds = seconds.parse::<i64>().ok()?;
    // A time before 1970 counts its fraction the other way: kept to the second.
    let nanoseconds = if seconds < 0 || text.starts_with('-') { 0 } else { nanoseconds };
    Some(TimeSpec::new(seconds, nanoseconds.into()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn time_keeps_its_fraction() {
        let parsed = |text: &str| parse_time(text.as_bytes()).map(|time| (time.tv_sec(), time.tv_nsec()));
        assert_eq!(parsed("17.25"), Some((17, 250_000_000)));
        assert_eq!(parsed("17"), Some((17, 0)));
        assert_eq!(parsed("17.1234567899"), Some((17, 123_456_789)));
        assert_eq!(parsed("-3.5"), Some((-3, 0)));
        assert_eq!(parsed("now"), None);
        assert_eq!(parsed("1.x"), None);
    }

    #[test]
    fn map_of_holes_is_read_and_its_lies_are_not() {
        let map = |text: &str| {
            let mut block = text.as_bytes().to_vec();
            block.resize(block.len().next_multiple_of(512), 0);
            Pax::read_map(&mut &block[..]).ok()
        };
        assert_eq!(map("2\n0\n10\n4096\n5\n"), Some(vec![(0, 10), (4096, 5)]));
        assert_eq!(map("0\n"), Some(vec![]));
        for refused in ["", "2\n0\n10\n", "x\n", "99999999999\n", "-1\n"] {
            assert_eq!(map(refused), None, "{refused}");
        }
    }
}
