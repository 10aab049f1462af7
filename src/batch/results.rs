//! The results file of a loop: a line of JSON for each iteration, whole after any interruption.
//!
//! A line is one write(2) and in the kernel's hands when the next run begins, so a killed loop loses none; to disk it goes at least
//! every second and at the end, so that a power cut costs the records of one second. What was cut in the middle is taken
//! away on resuming, with the records of runs that were cancelled and of those that nothing ran for, as after the death of
//! an engine: those iterations are run again, and stand there once. The file is under flock(2) meanwhile: two loops cannot
//! share it.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead as _, BufReader, BufWriter, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::record::Row;
use super::{Batch, Error};
use crate::event::is_at;
use crate::outcome::Verdict;

/// What a power cut may cost.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// The results file of a loop under way.
#[derive(Debug)]
pub struct Results {
    path: PathBuf,
    file: File,
    /// Its bytes: whole lines.
    length: u64,
    synced: Instant,
}

impl Results {
    /// Begins a results file; its folders are made.
    ///
    /// # Errors
    /// [`Error::Exists`] where there are results already, [`Error::Busy`] where another loop has just begun them, [`Error::Open`].
    pub fn create(path: &Path) -> Result<Self, Error> {
        let results = Self::open(path)?;
        if results.length > 0 {
            return Err(Error::Exists { path: path.to_path_buf() });
        }
        Ok(results)
    }

    /// Goes on with a results file of the same strategies, or begins it: takes away what an interruption left, and gives the
    /// records that stay.
    ///
    /// # Errors
    /// [`Error`] where the file is no results file, of another list of strategies or in use.
    pub fn resume(path: &Path, batch: &Batch) -> Result<(Self, Vec<Row>), Error> {
        let mut results = Self::open(path)?;
        let failed = |source| Error::Open { path: path.to_path_buf(), source };
        let mut rows = Vec::new();
        let mut seen = HashSet::new();
        let mut repeats = false;
        let mut whole = 0;
        let mut reader = BufReader::new(&results.file);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            reader.read_until(b'\n', &mut line).map_err(failed)?;
            if line.last() != Some(&b'\n') {
                break;
            }
            let row =
                Row::read(&line).map_err(|source| Error::Malformed { path: path.into(), line: number, source })?;
            whole += line.len() as u64;
            let expected = batch.strategy(row.iteration).unwrap_or(Path::new("")).to_string_lossy();
            if row.strategy != expected {
                return Err(Error::OtherList {
                    path: path.to_path_buf(),
                    iteration: row.iteration,
                    expected: expected.into_owned(),
                    found: row.strategy,
                });
            }
            if is_repeated(row.verdict) {
                repeats = true;
            } else if seen.insert(row.iteration) {
                rows.push(row);
            } else {
                return Err(Error::Repeated { path: path.into(), line: number, iteration: row.iteration });
            }
        }
        if whole < results.length {
            results.file.set_len(whole).map_err(failed)?;
            results.length = whole;
        }
        if repeats {
            results = results.without_repeated().map_err(failed)?;
        }
        Ok((results, rows))
    }

    fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Open { path: path.to_path_buf(), source };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Busy { path: path.to_path_buf() }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let about = file.metadata().map_err(failed)?;
        // Whoever resumed it meanwhile has put another file in its place.
        if !is_at(&about, path).map_err(failed)? {
            return Err(Error::Busy { path: path.to_path_buf() });
        }
        Ok(Self { path: path.to_path_buf(), file, length: about.len(), synced: Instant::now() })
    }

    /// Puts a copy without the iterations that are run again in the file's place, all at once.
    fn without_repeated(mut self) -> io::Result<Self> {
        let mut name = OsString::from(&self.path);
        name.push(".new");
        let name = PathBuf::from(name);
        let copy = OpenOptions::new().read(true).append(true).create(true).open(&name)?;
        // Locked before it has the name that others look for; what a killed loop left in it is gone.
        copy.try_lock()?;
        copy.set_len(0)?;
        self.file.rewind()?;
        let mut to = BufWriter::new(&copy);
        for line in BufReader::new(&self.file).split(b'\n') {
            let line = line?;
            if !is_repeated(Row::read(&line)?.verdict) {
                to.write_all(&line)?;
                to.write_all(b"\n")?;
            }
        }
        to.flush()?;
        drop(to);
        copy.sync_data()?;
        fs::rename(&name, &self.path)?;
        let length = copy.metadata()?.len();
        Ok(Self { file: copy, length, ..self })
    }

    /// Appends the line of a record.
    ///
    /// # Errors
    /// [`Error::Write`]; the file then ends with the record before.
    pub fn append(&mut self, line: &[u8]) -> Result<(), Error> {
        let written = self.file.write_all(line).and_then(|()| {
            self.length += line.len() as u64;
            if self.synced.elapsed() < SYNC_EVERY {
                return Ok(());
            }
            self.synced = Instant::now();
            self.file.sync_data()
        });
        written.map_err(|source| {
            // Where even that is refused, resuming does it.
            self.file.set_len(self.length).ok();
            Error::Write { path: self.path.clone(), source }
        })
    }

    /// Puts all of it on the disk.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn finish(self) -> Result<(), Error> {
        self.file.sync_data().map_err(|source| Error::Write { path: self.path, source })
    }
}

/// Whether resuming runs an iteration again that ended so.
fn is_repeated(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Cancelled | Verdict::Unavailable)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Record;
    use super::*;
    use crate::outcome::Outcome;

    fn batch() -> Batch {
        Batch::new(vec!["a.py".into(), "b.py".into()]).iterations(10)
    }

    fn line(iteration: u64, verdict: Verdict) -> Vec<u8> {
        let strategy = batch().strategy(iteration).unwrap().to_string_lossy().into_owned();
        Record { iteration, strategy, outcome: Outcome::new("01J", verdict) }.to_line().unwrap()
    }

    fn iterations(rows: &[Row]) -> Vec<u64> {
        rows.iter().map(|row| row.iteration).collect()
    }

    #[test]
    fn results_cut_at_any_byte_are_mended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let lines: Vec<Vec<u8>> = (0..3).map(|i| line(i, Verdict::Ok)).collect();
        let all = lines.concat();
        for cut in 0..=all.len() {
            fs::write(&path, &all[..cut]).unwrap();
            let (mut results, rows) = Results::resume(&path, &batch()).unwrap();
            let whole = all[..cut].iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(rows.len(), whole, "cut at {cut}");
            results.append(&line(7, Verdict::Error)).unwrap();
            results.finish().unwrap();
            let expected = [lines[..whole].concat(), line(7, Verdict::Error)].concat();
            assert_eq!(fs::read(&path).unwrap(), expected, "cut at {cut}");
        }
    }

    #[test]
    fn iterations_that_came_to_nothing_are_taken_out_to_run_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let ok = |i| line(i, Verdict::Ok);
        let text =
            [ok(0), line(1, Verdict::Cancelled), ok(2), line(3, Verdict::Unavailable), b"{\"cut".to_vec()].concat();
        fs::write(&path, text).unwrap();
        fs::write(folder.path().join("results.jsonl.new"), "left by a killed loop").unwrap();
        let (mut results, rows) = Results::resume(&path, &batch()).unwrap();
        assert_eq!(iterations(&rows), [0, 2]);
        results.append(&ok(1)).unwrap();
        assert!(matches!(Results::resume(&path, &batch()), Err(Error::Busy { .. })), "the new file is locked too");
        drop(results);
        assert_eq!(fs::read(&path).unwrap(), [ok(0), ok(2), ok(1)].concat());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn results_that_do_not_fit_are_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let refused = |text: &[u8], code: &str| {
            fs::write(&path, text).unwrap();
            assert_eq!(Results::resume(&path, &batch()).unwrap_err().code(), code);
            assert_eq!(fs::read(&path).unwrap(), text);
        };
        let ok = line(0, Verdict::Ok);
        refused(b"hello\n", "loop.malformed");
        refused(&[ok.as_slice(), b"\n", &ok].concat(), "loop.malformed");
        refused(&[ok.as_slice(), &ok].concat(), "loop.repeated");
        let other = String::from_utf8(ok.clone()).unwrap().replace("a.py", "c.py");
        refused(other.as_bytes(), "loop.other-list");
        fs::write(&path, &ok).unwrap();
        assert_eq!(Results::create(&path).unwrap_err().code(), "loop.exists");
    }

    #[test]
    fn write_that_fails_leaves_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let mut results = Results::create(&path).unwrap();
        results.append(&line(0, Verdict::Ok)).unwrap();
        // A descriptor that cannot be written to, as on a disk that is full.
        results.file = File::open(&path).unwrap();
        assert_eq!(results.append(&line(1, Verdict::Ok)).unwrap_err().code(), "loop.write");
        assert_eq!(fs::read(&path).unwrap(), line(0, Verdict::Ok));
    }
}
