//! Appends lines to the log's file.
//!
//! A line is one `write(2)` to a descriptor opened with `O_APPEND`: on a local file system the kernel holds the inode's lock from
//! finding the end to the last byte, whatever the length, so lines of other processes fall before or after it, never into it.
//! That is why there is no `flock(2)`: it would add nothing to this, and one stopped process that holds it would stop every
//! run. (NFS has no atomic append; there a log belongs to one machine.) What a lock could not mend either is a disk that fills up
//! in the middle of a line: the cut line is ended with a newline before the next one, so that it spoils no other.
//!
//! Before each line the log looks whether its path still leads to the file that it has open, so a log that was rotated, by
//! another process or another program, or removed, goes on in a new file.

use std::fs::{self, File, OpenOptions, create_dir_all};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::Event;
use super::rotate::{Rotation, is_at};
use crate::config::{Config, MOST_LOGS_KEPT};

/// Why a line is not in the log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file could not be opened or made.
    #[error("failed to open the event log {}; choose another with `event_log`, or `event_log: none`", path.display())]
    Open {
        /// The log.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The line could not be written, or not whole.
    #[error("failed to write to the event log {}; lines are being lost", path.display())]
    Write {
        /// The log.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The full file could not be put aside. No line is lost by that.
    #[error(
        "failed to rotate the event log {}, so it grows beyond `event_log_max`; let nsbox rename files in its folder, \
         or choose another with `event_log`", path.display()
    )]
    Rotate {
        /// The log.
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
            Self::Open { .. } => "event.open",
            Self::Write { .. } => "event.write",
            Self::Rotate { .. } => "event.rotate",
        }
    }
}

/// A file that was last written to longer ago is not being written to.
const AT_REST: Duration = Duration::from_secs(1);

/// How often a line is written again because its file was removed meanwhile; each time, `event_log_keep` files have been filled.
const TRIES: usize = 3;

/// What is told of the first failure.
type OnFailure = Box<dyn Fn(&Error) + Send + Sync>;

/// An event log. Writing to it never fails and never stops a run: the first failure is told to
/// [`on_failure`](Self::on_failure), and each lost line is counted in [`lost`](Self::lost).
///
/// ```
/// use nsbox::event::{Event, EventType, Log};
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("logs/events.json.log");
/// let log = Log::open(&path).rotate(64 << 20, 8).on_failure(|error| eprintln!("warning: {error}"));
/// log.write(&Event::new(EventType::SandboxModeEnabled, "the sandbox is on"));
/// assert_eq!(std::fs::read_to_string(&path)?.lines().count(), 1);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Log {
    /// None writes nothing.
    path: Option<PathBuf>,
    rotation: Option<Rotation>,
    /// The file that lines go to now.
    current: Mutex<Option<Arc<Current>>>,
    lost: AtomicU64,
    told: AtomicBool,
    /// Whether a rotation has failed; then none is tried again.
    stuck: AtomicBool,
    on_failure: Option<OnFailure>,
}

impl Log {
    /// The log at this path. The file and its folders are made when the first line is written.
    #[must_use]
    pub fn open(path: impl Into<PathBuf>) -> Self {
        Self::new(Some(path.into()))
    }

    /// A log that keeps nothing (`event_log: none`).
    #[must_use]
    pub fn off() -> Self {
        Self::new(None)
    }

    /// The log that a configuration asks for: its `event_log`, `event_log_max` and `event_log_keep`.
    #[must_use]
    pub fn configured(config: &Config) -> Self {
        let log = config.event_log.as_ref().map_or_else(Self::off, Self::open);
        match config.event_log_max {
            Some(max) => log.rotate(max, config.event_log_keep),
            None => log,
        }
    }

    fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            rotation: None,
            current: Mutex::new(None),
            lost: AtomicU64::new(0),
            told: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            on_failure: None,
        }
    }

    /// Puts a file aside, as `LOG.1`, before it would grow beyond `max` bytes, and keeps `keep` of those, 1 to 999.
    #[must_use]
    pub fn rotate(mut self, max: u64, keep: u32) -> Self {
        self.rotation = Some(Rotation { max, keep: keep.clamp(1, MOST_LOGS_KEPT) });
        self
    }

    /// Calls `tell` at the first line that is lost, and at a rotation that failed: once for each.
    #[must_use]
    pub fn on_failure(mut self, tell: impl Fn(&Error) + Send + Sync + 'static) -> Self {
        self.on_failure = Some(Box::new(tell));
        self
    }

    /// The file, if any.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// How many lines could not be written.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Appends a line. Each line is tried, also after one that was lost.
    pub fn write(&self, event: &Event) {
        let Some(path) = &self.path else { return };
        if let Err(error) = self.append(path, event) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            self.tell(&self.told, &error);
        }
    }

    fn tell(&self, told: &AtomicBool, error: &Error) {
        if !told.swap(true, Ordering::Relaxed)
            && let Some(tell) = &self.on_failure
        {
            tell(error);
        }
    }

    fn append(&self, path: &Path, event: &Event) -> Result<(), Error> {
        let failed = |source| Error::Write { path: path.to_path_buf(), source };
        // The newline before it is written where the file ends within a line.
        let mut line = Vec::with_capacity(512);
        line.push(b'\n');
        serde_json::to_writer(&mut line, event).map_err(|e| failed(e.into()))?;
        line.push(b'\n');
        for _ in 0..TRIES {
            let current = self.current(path, line.len()).map_err(|source| Error::Open { path: path.into(), source })?;
            current.append(&line).map_err(failed)?;
            if !current.is_removed(path) {
                return Ok(());
            }
        }
        Err(failed(io::Error::other("each file was removed as soon as the line was in it")))
    }

    /// The file that a line of this length goes to, rotated and opened where it must be.
    fn current(&self, path: &Path, line: usize) -> io::Result<Arc<Current>> {
        let mut slot = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rotation) = self.rotation
            && !self.stuck.load(Ordering::Relaxed)
            && fs::metadata(path).is_ok_and(|about| rotation.is_due(&about, line))
            && let Err(source) = rotation.rotate(path, line)
        {
            self.tell(&self.stuck, &Error::Rotate { path: path.to_path_buf(), source });
        }
        if let Some(current) = &*slot
            // A path that cannot be looked at any more is no reason to leave a file that is open.
            && is_at(&current.about, path).unwrap_or(true)
        {
            return Ok(Arc::clone(current));
        }
        Ok(Arc::clone(slot.insert(Arc::new(Current::open(path)?))))
    }
}

/// A file of the log.
struct Current {
    file: File,
    /// What it was when it was opened; which it is.
    about: fs::Metadata,
    /// Whether it ends within a line.
    cut: AtomicBool,
}

impl Current {
    fn open(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        let about = file.metadata()?;
        let cut = AtomicBool::new(ends_cut(&file, &about));
        Ok(Self { file, about, cut })
    }

    /// Writes a line, which begins and ends with a newline.
    fn append(&self, line: &[u8]) -> io::Result<()> {
        let line = if self.cut.load(Ordering::Relaxed) { line } else { &line[1..] };
        self.refuse_signal(line.len())?;
        let written = write_once(&self.file, line)?;
        self.cut.store(written < line.len(), Ordering::Relaxed);
        if written == line.len() {
            return Ok(());
        }
        // What is missing is not sent after: other processes may have written since, and it would stand in their midst.
        Err(io::Error::new(ErrorKind::WriteZero, format!("{written} of {} bytes were taken", line.len())))
    }

    /// Fails where write(2) would do more than fail: beyond RLIMIT_FSIZE it sends SIGXFSZ, of which this process would die.
    fn refuse_signal(&self, line: usize) -> io::Result<()> {
        let (limit, _) = getrlimit(Resource::RLIMIT_FSIZE)?;
        if limit == RLIM_INFINITY {
            return Ok(());
        }
        let about = self.file.metadata()?;
        if about.is_file() && about.len().saturating_add(line as u64) > limit {
            return Err(io::Error::new(ErrorKind::FileTooLarge, "the limit of file sizes is reached (ulimit -f)"));
        }
        Ok(())
    }

    /// Whether nobody will ever read what was written: the file has lost its last name.
    fn is_removed(&self, path: &Path) -> bool {
        self.file.metadata().is_ok_and(|now| now.is_file() && now.nlink() == 0)
            && is_at(&self.about, path).is_ok_and(|there| !there)
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("path", &self.path).field("lost", &self.lost()).finish_non_exhaustive()
    }
}

/// Opens a log for appending; the file and its folders are made where they are missing.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let open = |readable| {
        // A FIFO that nobody reads must not block the run: with O_NONBLOCK it is an error; to a file it means nothing.
        OpenOptions::new().read(readable).append(true).create(true).custom_flags(libc::O_NONBLOCK).open(path)
    };
    match open(true) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            create_dir_all(path.parent().unwrap_or(path))?;
            open(true)
        }
        // Not to be read back, but perhaps to be written.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => open(false),
        other => other,
    }
}

/// Whether a file ends within a line that nobody will finish.
///
/// The size grows while a `write(2)` goes on, so the last byte of a file at rest alone tells; a write sets the time as it begins.
fn ends_cut(file: &File, about: &fs::Metadata) -> bool {
    let at_rest = about.modified().is_ok_and(|time| time.elapsed().is_ok_and(|age| age > AT_REST));
    let mut last = [b'\n'];
    about.is_file()
        && at_rest
        && matches!(file.read_at(&mut last, about.len().saturating_sub(1)), Ok(1))
        && last != [b'\n']
}

/// One `write(2)`, repeated only where a signal kept it from beginning.
fn write_once(mut file: &File, line: &[u8]) -> io::Result<usize> {
    loop {
        match file.write(line) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
