//! Appends lines to the log's file.
//!
//! A line is one `write(2)` with `O_APPEND`, so lines of other processes fall before or after it, never into it. That alone would do
//! if writers never died and disks never filled up: both can cut a line, and the next one would go on in it. So each line is
//! written under flock(2), where the last byte tells whether a newline is missing, and where the file is put aside when it is
//! full ([`rotate`](super::rotate)). A stopped process that holds the lock stops nobody: whoever has waited long enough writes without it.
//!
//! Before each line the log looks whether its path still leads to the file that it has open, so a log that was rotated, by
//! another process or another program, or removed, goes on in a new file.

use std::fs::{self, File, OpenOptions, TryLockError, create_dir_all};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

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

/// How long a writer waits for the lock, which nobody holds for longer than a line takes.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_micros(50);
/// How often a line begins anew because its file was put aside meanwhile.
const TRIES: u32 = 100;

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
    current: Mutex<Option<Current>>,
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
        // A lock belongs to what open(2) gives: it excludes other processes, this excludes other threads.
        let mut slot = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        for attempt in 0.. {
            let kept = slot.take().filter(|current| current.is_at(path));
            let current = match kept {
                Some(current) => current,
                None => Current::open(path).map_err(|source| Error::Open { path: path.to_path_buf(), source })?,
            };
            let current = slot.insert(current);
            let locked = current.lock();
            if locked && attempt < TRIES && (!current.is_at(path) || self.put_aside(current, path, line.len())) {
                // Explicitly: a process that is being started may have this descriptor too, for a moment.
                current.unlock();
                continue;
            }
            let appended = current.append(&line);
            if locked {
                current.unlock();
            }
            return appended.map_err(failed);
        }
        Ok(())
    }

    /// Rotates the log if this line would be too much for its file, which is locked.
    fn put_aside(&self, current: &Current, path: &Path, line: usize) -> bool {
        let Some(rotation) = self.rotation.filter(|_| !self.stuck.load(Ordering::Relaxed)) else { return false };
        if !current.file.metadata().is_ok_and(|about| rotation.is_due(&about, line)) {
            return false;
        }
        let rotated = rotation.rotate(path);
        if let Err(source) = rotated {
            self.tell(&self.stuck, &Error::Rotate { path: path.to_path_buf(), source });
            return false;
        }
        true
    }
}

/// A file of the log.
struct Current {
    file: File,
    /// What it was when it was opened; which it is.
    about: fs::Metadata,
    /// Whether the lock is still worth waiting for.
    patient: bool,
}

impl Current {
    fn open(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        let about = file.metadata()?;
        let patient = about.is_file();
        Ok(Self { file, about, patient })
    }

    /// Whether the log is still this file. A path that cannot be looked at any more is no reason to leave it.
    fn is_at(&self, path: &Path) -> bool {
        is_at(&self.about, path).unwrap_or(true)
    }

    /// Whether the file could be locked.
    fn lock(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while self.patient {
            match self.file.try_lock() {
                Ok(()) => return true,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOOK_EVERY),
                Err(_) => self.patient = false,
            }
        }
        false
    }

    fn unlock(&self) {
        // It cannot fail for a file that was locked.
        self.file.unlock().unwrap_or_default();
    }

    /// Writes a line, which begins and ends with a newline; the first is left out where the file does not end within a line.
    fn append(&self, line: &[u8]) -> io::Result<()> {
        let about = self.file.metadata()?;
        let mut last = [b'\n'];
        if about.is_file() && about.len() > 0 {
            // A log that may not be read back is taken for whole.
            self.file.read_at(&mut last, about.len() - 1).unwrap_or_default();
        }
        let line = if last == [b'\n'] { &line[1..] } else { line };
        refuse_signal(&about, line.len())?;
        let written = write_once(&self.file, line)?;
        if written == line.len() {
            return Ok(());
        }
        // What is missing is not sent after: without the lock, it could stand in the midst of others.
        Err(io::Error::new(ErrorKind::WriteZero, format!("{written} of {} bytes were taken", line.len())))
    }
}

/// Fails where write(2) would do more than fail: beyond RLIMIT_FSIZE it sends SIGXFSZ, of which this process would die.
fn refuse_signal(file: &fs::Metadata, line: usize) -> io::Result<()> {
    let (limit, _) = getrlimit(Resource::RLIMIT_FSIZE)?;
    if limit != RLIM_INFINITY && file.is_file() && file.len().saturating_add(line as u64) > limit {
        return Err(io::Error::new(ErrorKind::FileTooLarge, "the limit of file sizes is reached (ulimit -f)"));
    }
    Ok(())
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("path", &self.path).field("lost", &self.lost()).finish_non_exhaustive()
    }
}

/// Opens a log for appending; the file and its folders are made where they are missing.
fn open(path: &Path) -> io::Result<File> {
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

/// One `write(2)`, repeated only where a signal kept it from beginning.
fn write_once(mut file: &File, line: &[u8]) -> io::Result<usize> {
    loop {
        match file.write(line) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
