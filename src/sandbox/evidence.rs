//! What a run leaves its supervisor with: all that its outcome is told from.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Instant;

use super::cgroup::Counters;
use super::measure::Measure;

/// One of the guest's two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Why the supervisor killed a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kill {
    /// The wall-time limit.
    Timeout,
    /// The CPU-time limit.
    CpuTime,
    /// The memory limit, by the cgroup's event or by measuring.
    Memory,
    /// More in files than allowed, where no file system of the run's own says so.
    Disk,
    /// More output than allowed, and `output_kill` is set.
    Output(Stream),
    /// A call that the profile kills for.
    Violation(i32),
    /// The caller's wish.
    Cancelled,
}

/// How the guest's main process ended, by init's waitid(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It called exit with this status.
    Exited(i32),
    /// This signal killed it.
    Signalled(i32),
}

/// A stream's bytes, up to its limit.
#[derive(Debug, Default)]
pub(crate) struct Captured {
    /// What was kept.
    pub bytes: Vec<u8>,
    /// Whether there was more.
    pub truncated: bool,
}

impl Captured {
    /// Keeps what fits under the limit, and tells how many bytes that were.
    pub(crate) fn keep(&mut self, bytes: &[u8], limit: u64) -> usize {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let kept = bytes.len().min(limit.saturating_sub(self.bytes.len()));
        self.bytes.extend_from_slice(&bytes[..kept]);
        self.truncated |= kept < bytes.len();
        kept
    }
}

/// All that is known of a run that is over.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    /// Init's word on the main process; `None` when init was killed before it could say.
    pub end: Option<End>,
    /// Why the supervisor killed it, if it did before the end was known.
    pub kill: Option<Kill>,
    /// Standard output.
    pub stdout: Captured,
    /// Standard error.
    pub stderr: Captured,
    /// Refused calls by number, with how often.
    pub violations: BTreeMap<i32, u64>,
    /// Calls that ran, and that may have left more than memory behind; counted where a slot is to be used again.
    pub told: u64,
    /// When the script's first line began; `None` when it never did.
    pub started: Option<Instant>,
    /// When the main process ended or was killed.
    pub ended: Option<Instant>,
    /// Peaks by measuring, where there is no cgroup.
    pub measured: Option<Measure>,
    /// A warm run's answer: it ended well, and this is its document.
    pub answer: Option<Vec<u8>>,
    /// What the cgroup had counted when the answer came.
    pub counters: Option<Counters>,
    /// The document, where it came as bytes.
    pub document: Option<Vec<u8>>,
    /// The memfd that the guest could write its result document to.
    pub result: Option<File>,
    /// The guest's /output, where artifacts were asked for.
    pub output: Option<OwnedFd>,
}
