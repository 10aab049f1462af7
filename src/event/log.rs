//! Appends lines to the log's file.
//!
//! A line is one `write(2)` to a descriptor opened with `O_APPEND`: on a local file system the kernel holds the inode's lock from
//! finding the end to the last byte, whatever the length, so lines of other processes fall before or after it, never into it.
//! That is why there is no `flock(2)`: it would add nothing to this, and one stopped process that holds it would stop every
//! run. (NFS has no atomic append; there a log belongs to one machine.) What a lock could not mend either is a disk that fills up
//! in the middle of a line: the cut line is ended with a newline before the next one, so that it spoils no other.

use std::fs::{File, OpenOptions, create_dir_all};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::Event;

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
}

impl Error {
    /// A stable name of the error, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Open { .. } => "event.open",
            Self::Write { .. } => "event.write",
        }
    }
}

/// A file that was last written to longer ago is not being written to.
const AT_REST: Duration = Duration::from_secs(1);

/// What is told of the first line that is lost.
type OnFailure = Box<dyn Fn(&Error) + Send + Sync>;

/// An event log. Writing to it never fails and never stops a run: the first failure is told to
/// [`on_failure`](Self::on_failure), and each lost line is counted in [`lost`](Self::lost).
///
/// ```
/// use nsbox::event::{Event, EventType, Log};
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("logs/events.json.log");
/// let log = Log::open(&path).on_failure(|error| eprintln!("warning: {error}"));
/// log.write(&Event::new(EventType::SandboxModeEnabled, "the sandbox is on"));
/// assert_eq!(std::fs::read_to_string(&path)?.lines().count(), 1);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Log {
    /// None writes nothing.
    path: Option<PathBuf>,
    file: OnceLock<File>,
    /// Whether the file ends within a line.
    cut: AtomicBool,
    lost: AtomicU64,
    told: AtomicBool,
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

    fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            file: OnceLock::new(),
            cut: AtomicBool::new(false),
            lost: AtomicU64::new(0),
            told: AtomicBool::new(false),
            on_failure: None,
        }
    }

    /// Calls `tell` once, at the first line that is lost.
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
            if !self.told.swap(true, Ordering::Relaxed)
                && let Some(tell) = &self.on_failure
            {
                tell(&error);
            }
        }
    }

    fn append(&self, path: &Path, event: &Event) -> Result<(), Error> {
        let file = self.file(path).map_err(|source| Error::Open { path: path.to_path_buf(), source })?;
        let failed = |source| Error::Write { path: path.to_path_buf(), source };
        let mut line = Vec::with_capacity(512);
        if self.cut.load(Ordering::Relaxed) {
            line.push(b'\n');
        }
        serde_json::to_writer(&mut line, event).map_err(|e| failed(e.into()))?;
        line.push(b'\n');
        let written = write_once(file, &line).map_err(failed)?;
        self.cut.store(written < line.len(), Ordering::Relaxed);
        if written == line.len() {
            return Ok(());
        }
        // What is missing is not sent after: other processes may have written since, and it would stand in their midst.
        Err(failed(io::Error::new(ErrorKind::WriteZero, format!("{written} of {} bytes were taken", line.len()))))
    }

    fn file(&self, path: &Path) -> io::Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = open(path)?;
        self.cut.store(ends_cut(&file), Ordering::Relaxed);
        // Of two threads that come here at once, one's file is kept and the other's closed.
        Ok(self.file.get_or_init(|| file))
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("path", &self.path).field("lost", &self.lost()).finish_non_exhaustive()
    }
}

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

/// Whether a file ends within a line that nobody will finish.
///
/// The size grows while a `write(2)` goes on, so the last byte of a file at rest alone tells; a write sets the time as it begins.
fn ends_cut(file: &File) -> bool {
    let Ok(about) = file.metadata() else { return false };
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::sync::Arc;

    use super::*;
    use crate::event::EventType;

    const LOG: &str = "NSBOX_TEST_LOG";
    const NUMBER: &str = "NSBOX_TEST_NUMBER";
    const LINES: usize = 100;

    fn event(who: usize, line: usize) -> Event {
        // Every tenth line is longer than a pipe or a page would take at once.
        let filler = if line.is_multiple_of(10) { 300_000 } else { 50 + line };
        Event::new(EventType::ExecutionModeSelected, "m")
            .fact("who", who)
            .fact("line", line)
            .fact("filler", who.to_string().repeat(filler))
    }

    fn append_all(log: &Log, who: usize) {
        for line in 0..LINES {
            log.write(&event(who, line));
        }
    }

    /// Each writer's lines are all there, whole and in its order.
    fn assert_whole(path: &Path, writers: usize) {
        let text = std::fs::read_to_string(path).unwrap();
        let mut next = vec![0; writers];
        for line in text.lines() {
            let read: Event = serde_json::from_str(line).unwrap();
            let figure = |name: &str| usize::try_from(read.facts[name].as_u64().unwrap()).unwrap();
            let (who, number) = (figure("who"), figure("line"));
            assert_eq!(number, next[who], "lines of writer {who}");
            assert_eq!(read.facts, event(who, number).facts);
            next[who] += 1;
        }
        assert_eq!(next, vec![LINES; writers]);
    }

    fn child(path: &Path, number: usize, limit: &str) -> Child {
        Command::new("sh")
            .args(["-c", &format!("{limit} exec \"$@\""), "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "event::log::tests::child_appends", "--ignored"])
            .env(LOG, path)
            .env(NUMBER, number.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    #[test]
    #[ignore = "the child process of the tests below"]
    fn child_appends() {
        let log = Log::open(std::env::var_os(LOG).unwrap());
        append_all(&log, std::env::var(NUMBER).unwrap().parse().unwrap());
        assert_eq!(log.lost(), 0);
    }

    #[test]
    fn log_of_16_processes_has_every_line_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/events.log");
        let children: Vec<Child> = (0..16).map(|number| child(&path, number, "")).collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        assert_whole(&path, 16);
    }

    #[test]
    fn log_of_16_threads_has_every_line_whole() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(folder.path().join("a/events.log"));
        std::thread::scope(|scope| {
            for who in 0..16 {
                let log = &log;
                scope.spawn(move || append_all(log, who));
            }
        });
        assert_eq!(log.lost(), 0);
        assert_whole(log.path().unwrap(), 16);
    }

    #[test]
    fn line_cut_by_a_limit_spoils_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.log");
        // The file may not grow beyond a few hundred bytes: the child's first, long line is cut, its others are lost.
        let status = child(&path, 3, "trap '' XFSZ; ulimit -f 1;").wait().unwrap();
        assert!(!status.success(), "the child has lost lines");
        assert!(!std::fs::read(&path).unwrap().ends_with(b"\n"), "the last line is cut");
        let long_ago = std::time::SystemTime::now() - 2 * AT_REST;
        File::options().append(true).open(&path).unwrap().set_modified(long_ago).unwrap();

        let log = Log::open(&path);
        log.write(&event(1, 1));
        log.write(&event(1, 2));
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().map(serde_json::from_str::<Event>).collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].is_err());
        assert!(lines[1].is_ok() && lines[2].is_ok());
    }

    fn told() -> (Arc<AtomicU64>, impl Fn(&Error) + Send + Sync + 'static) {
        let times = Arc::new(AtomicU64::new(0));
        let inner = Arc::clone(&times);
        (times, move |_: &Error| _ = inner.fetch_add(1, Ordering::Relaxed))
    }

    #[test]
    fn full_disk_is_told_once_and_counted() {
        let (times, tell) = told();
        let log = Log::open("/dev/full").on_failure(tell);
        append_all(&log, 0);
        assert_eq!((times.load(Ordering::Relaxed), log.lost()), (1, LINES as u64));
    }

    #[test]
    fn log_that_cannot_be_opened_is_told_once_and_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let parent = folder.path().join("file");
        std::fs::write(&parent, "not a folder").unwrap();
        let (times, tell) = told();
        let log = Log::open(parent.join("events.log")).on_failure(tell);
        log.write(&event(0, 1));
        log.write(&event(0, 2));
        assert_eq!((times.load(Ordering::Relaxed), log.lost()), (1, 2));

        std::fs::remove_file(&parent).unwrap();
        log.write(&event(0, 3));
        assert_eq!(log.lost(), 2);
        assert_eq!(std::fs::read_to_string(log.path().unwrap()).unwrap().lines().count(), 1);
    }

    #[test]
    fn fifo_without_a_reader_never_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IWUSR).unwrap();
        let log = Log::open(&path);
        // Opened for reading too, the FIFO has a reader: this very process. Its buffer fills up, then lines are lost.
        for line in 0..100 {
            log.write(&event(0, line));
        }
        assert!(log.lost() > 0);
    }

    #[test]
    fn log_that_is_off_keeps_nothing() {
        let log = Log::off();
        log.write(&event(0, 0));
        assert_eq!((log.path(), log.lost()), (None, 0));
    }
}
