//! What a caller passes in: a script, what it is given, and how the run is watched and stopped.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::evidence::Stream;
use super::input::{Input, InputError, Values};
use crate::outcome::Value;

/// Text to run, and what it is given.
#[derive(Debug, Default)]
pub struct Script {
    pub(crate) name: String,
    pub(crate) source: Vec<u8>,
    pub(crate) args: Vec<String>,
    pub(crate) inputs: Vec<(String, PathBuf)>,
    pub(crate) values: Values,
    pub(crate) stdin: Stdin,
    pub(crate) artifacts: Option<PathBuf>,
    pub(crate) iteration: Option<u64>,
}

/// The guest's standard input.
#[derive(Default)]
pub enum Stdin {
    /// Nothing: the guest's own /dev/null.
    #[default]
    Empty,
    /// A stream of the caller's, copied through a pipe: the guest never holds the caller's own descriptor.
    Stream(Box<dyn Read + Send>),
}

impl std::fmt::Debug for Stdin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Self::Empty) { "Empty" } else { "Stream" })
    }
}

impl<S: Into<Vec<u8>>> From<S> for Script {
    fn from(source: S) -> Self {
        Self { name: "script.py".to_owned(), source: source.into(), ..Self::default() }
    }
}

impl Script {
    /// The file name that findings, tracebacks and `__file__` show.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// That name.
    pub(crate) fn shown(&self) -> &str {
        &self.name
    }

    /// The same script once more, without its standard input, which can be read but once.
    pub(crate) fn again(&self) -> Self {
        Self {
            name: self.name.clone(),
            source: self.source.clone(),
            args: self.args.clone(),
            inputs: self.inputs.clone(),
            values: self.values.clone(),
            stdin: Stdin::Empty,
            artifacts: self.artifacts.clone(),
            iteration: self.iteration,
        }
    }

    /// Takes its standard input away.
    pub(crate) fn take_stdin(&mut self) -> Stdin {
        std::mem::take(&mut self.stdin)
    }

    /// Adds to `sys.argv`.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Shows a file or folder of the host, read-only, as `/input/NAME`.
    #[must_use]
    pub fn input(mut self, name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        self.inputs.push((name.into(), path.into()));
        self
    }

    /// Gives the script a value as the global `name`, ready, and as `inputs[name]`: anything plain, an
    /// [`Array`](crate::outcome::Array), a [`Table`](crate::outcome::Table), or what another script returned as `result`.
    /// The script may write to it; nothing of that comes back. For more than one script see [`Script::give`].
    ///
    /// `name` is a name of Python's in ASCII, at most 64 letters, digits and underscores: no keyword, nothing that begins with
    /// two underscores, and none of `inputs`, `result`, `metrics`, `signal`, `report`. A run under another one, under one
    /// given twice, or with more than 128 values is refused, as verdict `unavailable`.
    ///
    /// ```
    /// use nsbox::sandbox::Script;
    ///
    /// let script = Script::from("result = fast < slow").value("fast", 10)?.value("slow", 30)?;
    /// # Ok::<(), nsbox::sandbox::InputError>(())
    /// ```
    ///
    /// # Errors
    /// As [`Input::new`].
    pub fn value(self, name: impl Into<String>, value: impl Into<Value>) -> Result<Self, InputError> {
        Ok(self.give(name, &Input::new(value)?))
    }

    /// Gives the script a value that other scripts are given too, as [`Script::value`] does, without another copy of it.
    #[must_use]
    pub fn give(mut self, name: impl Into<String>, input: &Input) -> Self {
        self.values.push((name.into(), input.clone()));
        self
    }

    /// Gives the script a writable `/output`, and copies what it leaves there into `folder` on the host.
    #[must_use]
    pub fn artifacts(mut self, folder: impl Into<PathBuf>) -> Self {
        self.artifacts = Some(folder.into());
        self
    }

    /// The iteration of a loop that this run is: `iteration_num` of its events.
    #[must_use]
    pub fn iteration(mut self, number: u64) -> Self {
        self.iteration = Some(number);
        self
    }

    /// What the script reads from its standard input.
    #[must_use]
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.stdin = stdin;
        self
    }
}

/// Ends the runs that it was given to, from any thread; cloned handles are one.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<(PipeReader, PipeWriter)>);

impl Cancel {
    /// A handle that nobody has used yet.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self(Arc::new((reader, writer))))
    }

    /// Ends every run that has this handle, now or later.
    pub fn cancel(&self) {
        // The only failure is a pipe that is full: cancelled already.
        (&self.0.1).write_all(&[1]).ok();
    }

    /// Whether anybody has.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        let mut watched = [PollFd::new(self.descriptor(), PollFlags::POLLIN)];
        matches!(poll(&mut watched, PollTimeout::ZERO), Ok(1))
    }

    /// A descriptor that cancels when a byte is written to it: for a signal handler, which may do little else.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn trigger(&self) -> io::Result<OwnedFd> {
        Ok(self.0.1.try_clone()?.into())
    }

    /// Readable once it was used; the byte stays there.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

/// Gets the guest's output as it comes.
pub type Sink<'a> = dyn FnMut(Stream, &[u8]) + Send + 'a;

/// What a caller may watch or stop a run by.
#[derive(Default)]
pub struct Watch<'a> {
    /// Gets the guest's output as it comes, up to the output limit. It must not block: the run's clock waits for it.
    pub sink: Option<&'a mut Sink<'a>>,
    /// Ends the run.
    pub cancel: Option<Cancel>,
}
