//! Reads the statistics of a log and its rotated files, in parallel, whatever stands in them.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::num::NonZero;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::de::value::StrDeserializer;
use serde::de::{self, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::{Run, Statistics, fell_back, plausible};
use crate::event::{EventType, open_all};
use crate::outcome::{Backend, Timings, Verdict};

/// No line of nsbox's own is longer; a longer one is passed over without being held.
const MAX_LINE: u64 = 16 << 20;
/// Malformed lines that are named; the rest is counted.
const NAMED: usize = 5;
/// A share of a file that is worth a thread.
const WORTH_A_THREAD: u64 = 1 << 20;

/// Why a log could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The log could not be opened.
    #[error("failed to open the event log {}", path.display())]
    Open {
        /// The log.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The log, or one of its rotated files, could not be read to its end.
    #[error("failed to read the event log {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// A stable name of the error, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Open { .. } => "stats.open",
            Self::Read { .. } => "stats.read",
        }
    }
}

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Reading {
    /// The files, oldest first.
    pub files: Vec<PathBuf>,
    /// Their lines.
    pub lines: u64,
    /// The lines that are no events.
    pub malformed: u64,
    /// The first of those.
    pub first_malformed: Vec<Malformed>,
}

/// A line that is no event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Malformed {
    /// Its file.
    pub file: PathBuf,
    /// Its number, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub why: String,
}

impl Statistics {
    /// The statistics of the log at `path` and of its rotated files `path.1`, `path.2` and so on.
    ///
    /// Lines that are no events are counted and named in the [`Reading`]; they never stop it.
    ///
    /// # Errors
    /// [`Error`] when a file cannot be opened or read.
    pub fn of_log(path: &Path) -> Result<(Self, Reading), Error> {
        let files = open_all(path).map_err(|source| Error::Open { path: path.to_path_buf(), source })?;
        let (mut statistics, mut reading) = (Self::default(), Reading::default());
        for (path, file) in files {
            let parts = read(&file).map_err(|source| Error::Read { path: path.clone(), source })?;
            let mut before = 0;
            for part in parts {
                statistics.merge(&part.statistics);
                let named = part.named.into_iter().map(|(line, why)| Malformed {
                    file: path.clone(),
                    line: before + line,
                    why,
                });
                reading.first_malformed.extend(named);
                reading.first_malformed.truncate(NAMED);
                reading.malformed += part.malformed;
                before += part.lines;
            }
            reading.lines += before;
            reading.files.push(path);
        }
        Ok((statistics, reading))
    }
}

/// What was read of one share of a file.
#[derive(Default)]
struct Part {
    statistics: Statistics,
    lines: u64,
    malformed: u64,
    /// The first malformed lines, by their number in this share.
    named: Vec<(u64, String)>,
}

/// Reads a file in shares of its bytes; a line belongs to the share that it begins in.
fn read(file: &File) -> io::Result<Vec<Part>> {
    let about = file.metadata()?;
    if !about.is_file() {
        // A pipe has no places: it is read once, to its end.
        return Part::read(file, 0, u64::MAX).map(|part| vec![part]);
    }
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get) as u64;
    let share = about.len().div_ceil(threads).max(WORTH_A_THREAD);
    let shares = (0..about.len()).step_by(usize::try_from(share).unwrap_or(usize::MAX));
    let shares = shares.map(|start| start..about.len().min(start.saturating_add(share)));
    std::thread::scope(|scope| {
        let readers: Vec<_> = shares.map(|share| scope.spawn(move || read_share(file, share))).collect();
        let panicked = || Err(io::Error::other("a reader panicked"));
        readers.into_iter().map(|reader| reader.join().unwrap_or_else(|_| panicked())).collect()
    })
}

fn read_share(file: &File, share: Range<u64>) -> io::Result<Part> {
    // From the byte before: if it ends a line, the next one begins in this share.
    let from = share.start.saturating_sub(1);
    let mut input = BufReader::with_capacity(1 << 20, At { file, position: from });
    let skipped = if share.start > 0 { input.skip_until(b'\n')? as u64 } else { 0 };
    Part::read(input, from + skipped, share.end)
}

/// A file from some place on, apart from its other readers.
struct At<'a> {
    file: &'a File,
    position: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Part {
    /// Reads the lines that begin at `position` or later and before `end`.
    fn read(input: impl Read, mut position: u64, end: u64) -> io::Result<Self> {
        let mut input = BufReader::new(input);
        let mut part = Self::default();
        let mut line = Vec::new();
        while position < end {
            line.clear();
            let mut length = input.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? as u64;
            if length == 0 {
                break;
            }
            let too_long = length == MAX_LINE && line.last() != Some(&b'\n');
            if too_long {
                length += input.skip_until(b'\n')? as u64;
            }
            position += length;
            part.lines += 1;
            let read = if too_long { Err(format!("it is longer than {} MiB", MAX_LINE >> 20)) } else { parse(&line) };
            match read {
                Ok(Some(run)) => part.statistics.count(&run),
                Ok(None) => {}
                Err(why) => {
                    part.malformed += 1;
                    if part.named.len() < NAMED {
                        part.named.push((part.lines, why));
                    }
                }
            }
        }
        Ok(part)
    }
}

/// What statistics need of an [`Event`](crate::event::Event), borrowed from its line.
#[derive(Deserialize)]
struct Line<'a> {
    timestamp: Timestamp,
    #[serde(borrow)]
    event_type: Cow<'a, str>,
    mode: Option<Backend>,
    id: Option<IgnoredAny>,
    verdict: Option<Verdict>,
    timings: Option<Timings>,
    attempts: Option<Vec<IgnoredAny>>,
}

/// The run that a line closes, if it does.
fn parse(line: &[u8]) -> Result<Option<Run>, String> {
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    // A type that is not known is a later version's: an event, but of no run that is counted here.
    let name: StrDeserializer<'_, de::value::Error> = StrDeserializer::new(&line.event_type);
    let closing = EventType::deserialize(name).ok().filter(|event_type| event_type.closes_run());
    let (Some(closing), Some(_), Some(verdict), Some(timings)) = (closing, line.id, line.verdict, line.timings) else {
        return Ok(None);
    };
    if !plausible(timings) {
        return Err("its timings are negative, or longer than anything lasts".to_owned());
    }
    let attempts = line.attempts.map_or(0, |attempts| attempts.len());
    let fell_back = fell_back(closing, attempts);
    Ok(Some(Run { ended: line.timestamp, backend: line.mode, verdict, timings, fell_back }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVENT: &str = r#"{"timestamp":"2026-01-31T12:00:00.000000Z","level":"INFO","logger":"nsbox","message":"m","event_type":"namespace_execution_success","iteration_num":null,"mode":"namespace","id":"01J","verdict":"ok","timings":{"check_ms":1.0,"queue_ms":0.0,"setup_ms":2.0,"run_ms":3.0,"teardown_ms":4.0}}"#;

    proptest! {
        #[test]
        fn hostile_line_never_panics_and_is_one_line(line: Vec<u8>) {
            prop_assume!(!line.contains(&b'\n'));
            let text = [line.as_slice(), b"\n", EVENT.as_bytes(), b"\n"].concat();
            let part = Part::read(text.as_slice(), 0, u64::MAX).unwrap();
            prop_assert_eq!(part.lines, 2);
            prop_assert_eq!(part.statistics.counts.values().sum::<u64>(), 1);
        }

        #[test]
        fn mutilated_event_is_read_or_named(at in 0..EVENT.len(), byte: u8, cut: bool) {
            let mut line = EVENT.as_bytes().to_vec();
            if cut { line.truncate(at) } else { line[at] = byte }
            prop_assume!(!line.contains(&b'\n') && !line.is_empty());
            let part = Part::read(line.as_slice(), 0, u64::MAX).unwrap();
            prop_assert_eq!((part.lines, part.named.len() as u64), (1, part.malformed));
        }

        #[test]
        fn shares_of_a_file_are_the_whole(lengths in proptest::collection::vec(0_usize..300, 1..60), cuts in proptest::collection::vec(0.0..1.0, 0..6), ended: bool) {
            let mut text: Vec<u8> = Vec::new();
            for (i, length) in lengths.iter().enumerate() {
                // Every third is malformed; its number must be right in whichever share it is.
                text.extend(if i % 3 == 0 { "x".repeat(*length) } else { format!("{EVENT}{}", " ".repeat(*length)) }.bytes());
                text.push(b'\n');
            }
            if !ended {
                text.extend(b"{\"cut");
            }
            let mut file = tempfile::tempfile().unwrap();
            io::Write::write_all(&mut file, &text).unwrap();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "small")]
            let mut bounds: Vec<u64> = cuts.iter().map(|cut| (cut * text.len() as f64) as u64).collect();
            bounds.extend([0, text.len() as u64]);
            bounds.sort_unstable();
            let parts: Vec<Part> =
                bounds.windows(2).filter(|w| w[0] < w[1]).map(|w| read_share(&file, w[0]..w[1]).unwrap()).collect();
            let whole = Part::read(text.as_slice(), 0, u64::MAX).unwrap();
            prop_assert_eq!(parts.iter().map(|part| part.lines).sum::<u64>(), whole.lines);
            prop_assert_eq!(parts.iter().map(|part| part.malformed).sum::<u64>(), whole.malformed);
            let mut before = 0;
            let mut named = Vec::new();
            for part in &parts {
                named.extend(part.named.iter().map(|(line, _)| before + line));
                before += part.lines;
            }
            named.truncate(NAMED);
            prop_assert_eq!(named, whole.named.iter().map(|(line, _)| *line).collect::<Vec<_>>());
        }
    }

    #[test]
    fn line_without_end_is_passed_over() {
        let long = io::repeat(b'x').take(3 * MAX_LINE);
        let rest = format!("\n{EVENT}\n");
        let part = Part::read(long.chain(rest.as_bytes()), 0, u64::MAX).unwrap();
        assert_eq!((part.lines, part.malformed), (2, 1));
        assert_eq!(part.named, [(1, "it is longer than 16 MiB".to_owned())]);
    }

    #[test]
    fn what_cannot_be_a_run_is_malformed_or_none() {
        let with = |from: &str, to: &str| parse(EVENT.replace(from, to).as_bytes()).map(|run| run.is_some());
        assert_eq!(with("x", "x"), Ok(true));
        for (from, to) in
            [("3.0", "-3.0"), ("3.0", "1e300"), ("\"ok\"", "\"fine\""), ("2026-01-31T", "yesterday "), ("3.0", "null")]
        {
            assert!(with(from, to).is_err(), "{to}");
        }
        for (from, to) in [
            ("namespace_execution_success", "limit_exceeded"),
            ("namespace_execution_success", "warp_drive_engaged"),
            ("namespace_execution_success", "\\u0077\\n"),
            (r#""01J""#, "null"),
            (r#""verdict":"ok","#, ""),
        ] {
            assert_eq!(with(from, to), Ok(false), "{to}");
        }
    }
}
