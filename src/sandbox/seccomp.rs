//! The seccomp layer: which system calls the guest may make, and what becomes of the others. See seccomp(2).
//!
//! A [`Profile`] is a file in the format of OCI and Docker; [`Profile::compile`] makes a [`Program`] of it, which the
//! sandbox loads last, after every other layer stands (Landlock among them, whose calls it refuses). What the file
//! refuses is turned into a notification: the supervisor asks [`Program::decide`], records the call by
//! [`syscall_name`] and answers. A 32-bit call (`int 0x80`) is killed by the kernel at once, since its numbers mean other
//! things.
//!
//! A filter without arguments is enough to hold most calls. Where arguments count, they count as the kernel reads them:
//! an `int` is compared in its low 32 bits. What lies behind a pointer cannot be seen, and is never relied on.

mod arch;
mod builtin;
mod compile;
mod install;
mod neutral;
mod oci;
mod profile;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::borrow::Cow;
use std::path::PathBuf;

use libc::sock_filter;

pub use arch::Arch;
pub use profile::Profile;

/// In the data of `SECCOMP_RET_USER_NOTIF`: end the sandbox. Smaller values are the errno to answer with.
const KILL: u32 = 0xffff;
/// In the same: let it run.
const NOTICE: u32 = 0xfffe;

/// For which guest a profile is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Options {
    /// Whether `memfd_create` fails with `EACCES` without `MFD_NOEXEC_SEAL`: for a sandbox that could not set
    /// `vm.memfd_noexec` in its process namespace, which takes root.
    pub require_memfd_noexec: bool,
    /// Whether the guest has no namespaces of its own (`ast-only`): sockets, System V IPC, message queues, new process
    /// groups, signals to groups and settings of other processes are then refused with `EACCES`, whatever the profile
    /// says, and what Landlock does not cover of files: modes, owners, times, attributes, watches. AF_UNIX stream pairs stay.
    pub shares_host: bool,
    /// Whether signals are refused too, to the own process as well: where Landlock does not keep them inside.
    pub holds_signals: bool,
    /// Whether a supervisor listens. Without one the kernel refuses and kills by itself, and nothing is reported.
    pub notify: bool,
    /// Whether a supervisor is told of each call that it lets run and that may leave more behind than memory: see
    /// `neutral.rs`. For a slot that is to be used again; without `notify` it has no effect.
    pub notices: bool,
    /// The architecture of the guest.
    pub arch: Arch,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            require_memfd_noexec: false,
            shares_host: false,
            holds_signals: false,
            notify: true,
            notices: false,
            arch: Arch::HOST,
        }
    }
}

/// What the supervisor answers to a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// The call fails with this errno, and the guest goes on.
    Refuse(i32),
    /// The sandbox is killed, the verdict is `violation`.
    Kill,
    /// The call runs, as the profile allows; what it leaves behind, no run after this one may see.
    LetRun,
}

/// A compiled filter, ready for `SECCOMP_SET_MODE_FILTER`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The instructions, as `struct sock_fprog` takes them; at most 4096.
    pub bpf: Vec<sock_filter>,
    arch: Arch,
}

impl Program {
    /// The answer to a notification for the system call `nr` with `args`, as they stand in `struct seccomp_notif`.
    ///
    /// Runs the filter itself, so that it can never disagree with what the kernel did.
    #[must_use]
    pub fn decide(&self, nr: i32, args: &[u64; 6]) -> Denial {
        let value = self.run(self.arch.audit(), nr, args);
        match (value & libc::SECCOMP_RET_ACTION_FULL, value & libc::SECCOMP_RET_DATA) {
            (libc::SECCOMP_RET_USER_NOTIF, KILL) | (libc::SECCOMP_RET_KILL_PROCESS, _) => Denial::Kill,
            (libc::SECCOMP_RET_USER_NOTIF, NOTICE) => Denial::LetRun,
            (libc::SECCOMP_RET_USER_NOTIF | libc::SECCOMP_RET_ERRNO, errno) => {
                Denial::Refuse(i32::try_from(errno).unwrap_or(libc::EPERM))
            }
            // The kernel does not ask about what the filter allows.
            _ => Denial::Refuse(libc::EPERM),
        }
    }

    /// Whether the guest's own program can be started behind it.
    pub(crate) fn lets_start(&self) -> bool {
        // As init does: clone(CLONE_VM | CLONE_VFORK | SIGCHLD), execve.
        [("clone", 0x4111), ("execve", 0)].into_iter().all(|(name, first)| {
            let number = self.arch.number(name).map_or(-1, u32::cast_signed);
            self.run(self.arch.audit(), number, &[first, 0, 0, 0, 0, 0]) == libc::SECCOMP_RET_ALLOW
        })
    }

    /// What the filter returns, as the kernel would run it: the instructions that [`compile`] and seccompiler write.
    fn run(&self, arch: u32, nr: i32, args: &[u64; 6]) -> u32 {
        let word = |offset: u32| match offset {
            0 => nr.cast_unsigned(),
            4 => arch,
            _ => {
                // Little endian: the low half of an argument comes first. The instruction pointer is never loaded.
                let arg = offset.checked_sub(16).and_then(|at| args.get(usize::try_from(at / 8).ok()?)).copied();
                let half = arg.unwrap_or(0) >> (offset % 8 * 8);
                u32::try_from(half & 0xffff_ffff).unwrap_or(0)
            }
        };
        let (mut at, mut accumulator) = (0, 0);
        while let Some(&sock_filter { code, jt, jf, k }) = self.bpf.get(at) {
            let jump = |holds: bool| usize::from(if holds { jt } else { jf });
            at += 1 + match code {
                compile::LOAD => {
                    accumulator = word(k);
                    0
                }
                compile::AND => {
                    accumulator &= k;
                    0
                }
                compile::JUMP => usize::try_from(k).unwrap_or(usize::MAX / 2),
                compile::JUMP_EQ => jump(accumulator == k),
                compile::JUMP_GT => jump(accumulator > k),
                compile::JUMP_GE => jump(accumulator >= k),
                compile::RETURN => return k,
                _ => break,
            };
        }
        libc::SECCOMP_RET_KILL_PROCESS
    }
}

/// The built-in profile `name` (`default` or `strict`), compiled ahead of time for a guest of its own namespaces.
///
/// # Errors
/// [`Error::UnknownProfile`] for another name.
pub fn builtin_program(name: &str, options: Options) -> Result<Program, Error> {
    let Options { require_memfd_noexec, shares_host, holds_signals, notify, notices, arch } = options;
    let is_row = |row: &&builtin::Row| (row.0, row.1, row.2) == (name, arch, require_memfd_noexec);
    match builtin::TABLE.iter().find(is_row) {
        Some((.., packed)) if notify && !shares_host && !holds_signals && !notices => {
            Ok(Program { bpf: packed.iter().copied().map(unpack).collect(), arch })
        }
        _ => Profile::builtin(name)?.compile(options),
    }
}

/// An instruction of the built-in table.
fn unpack(packed: u64) -> sock_filter {
    let [_, code, jt, jf, k @ ..] = packed.to_be_bytes();
    sock_filter { code: u16::from(code), jt, jf, k: u32::from_be_bytes(k) }
}

/// The program of `name`: a built-in profile, or the path of a file (it holds a `/` or ends in `.json`).
///
/// # Errors
/// Those of [`Profile::load`] and [`builtin_program`].
pub fn program(name: &str, options: Options) -> Result<Program, Error> {
    if name.contains('/') || name.ends_with(".json") {
        Profile::load(std::path::Path::new(name))?.compile(options)
    } else {
        builtin_program(name, options)
    }
}

/// The name of the system call `nr` of this machine, as `violations` reports it: `syscall_NR` for one that is newer than
/// this program, and `x32_NAME` for a call of the x32 ABI.
#[must_use]
pub fn syscall_name(nr: i64) -> Cow<'static, str> {
    let name = |nr: i64| u32::try_from(nr).ok().and_then(|number| Arch::HOST.name(number));
    let x32 = nr & !0x4000_0000;
    match (name(nr), name(x32)) {
        (Some(name), _) => name.into(),
        (None, Some(name)) if x32 != nr => format!("x32_{name}").into(),
        _ => format!("syscall_{nr}").into(),
    }
}

/// Why a profile could not be read or compiled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error("failed to read the seccomp profile {}", path.display())]
    Read {
        /// The profile.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a profile.
    #[error("failed to parse the seccomp profile {}", path.display())]
    Parse {
        /// The profile.
        path: PathBuf,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
    /// No built-in profile has this name.
    #[error("unknown seccomp profile '{name}': use default, strict or the path of a file")]
    UnknownProfile {
        /// The name.
        name: String,
    },
    /// The profile is for other machines.
    #[error("the seccomp profile {} does not list {arch}, which this machine is", path.display())]
    Architecture {
        /// The profile.
        path: PathBuf,
        /// This machine, in the words of the profile.
        arch: &'static str,
    },
    /// No architecture has a system call of this name.
    #[error("unknown system call '{name}' at {}:{line}{hint}", path.display())]
    UnknownSyscall {
        /// The profile.
        path: PathBuf,
        /// The line of the name.
        line: usize,
        /// The name.
        name: String,
        /// What may have been meant, or nothing.
        hint: String,
    },
    /// An entry names no system call.
    #[error("an entry of the seccomp profile {} has no names (its comment: '{comment}')", path.display())]
    Nameless {
        /// The profile.
        path: PathBuf,
        /// The comment of the entry.
        comment: String,
    },
    /// An action that nsbox or Docker cannot enforce.
    #[error("unsupported action in the seccomp profile {} for {entry}: {reason}", path.display())]
    Action {
        /// The profile.
        path: PathBuf,
        /// The system calls of the entry.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// System calls have six arguments.
    #[error("the seccomp profile {} compares argument {index} of {entry}: arguments are 0 to 5", path.display())]
    Argument {
        /// The profile.
        path: PathBuf,
        /// The system calls of the entry.
        entry: String,
        /// The argument.
        index: u8,
    },
    /// Two conditions on one argument, which container runtimes read in different ways.
    #[error(
        "the seccomp profile {} compares argument {index} of {entry} twice in one entry, which some runtimes read as \
         'or': write one entry for each, or one masked comparison", path.display()
    )]
    RepeatedArgument {
        /// The profile.
        path: PathBuf,
        /// The system calls of the entry.
        entry: String,
        /// The argument.
        index: u8,
    },
    /// A call with two unconditional actions, or with one and a condition that differs.
    #[error(
        "the seccomp profile {} gives '{name}' two different actions, one of them without conditions: remove one",
        path.display()
    )]
    Contradiction {
        /// The profile.
        path: PathBuf,
        /// The system call.
        name: String,
    },
    /// A condition that cannot be compiled.
    #[error("failed to compile a condition of the seccomp profile")]
    Condition {
        /// What the compiler said.
        source: seccompiler::BackendError,
    },
    /// The kernel takes 4096 instructions.
    #[error(
        "the seccomp profile compiles to {instructions} instructions, past the kernel's 4096: use fewer conditions"
    )]
    TooLong {
        /// The length.
        instructions: usize,
    },
}

impl Error {
    /// A stable name of the failure, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Read { .. } => "seccomp-read",
            Self::Parse { .. } => "seccomp-parse",
            Self::UnknownProfile { .. } => "seccomp-unknown-profile",
            Self::Architecture { .. } => "seccomp-architecture",
            Self::UnknownSyscall { .. } => "seccomp-unknown-syscall",
            Self::Nameless { .. } => "seccomp-nameless",
            Self::Action { .. } => "seccomp-action",
            Self::Argument { .. } => "seccomp-argument",
            Self::RepeatedArgument { .. } => "seccomp-repeated-argument",
            Self::Contradiction { .. } => "seccomp-contradiction",
            Self::Condition { .. } => "seccomp-condition",
            Self::TooLong { .. } => "seccomp-too-long",
        }
    }
}
