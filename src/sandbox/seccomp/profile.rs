//! A seccomp profile: the OCI format with Docker's additions, read, checked and explained.
//!
//! One file serves the namespace backend and `docker run --security-opt seccomp=FILE`. What Docker's engine would ignore
//! or read in another way is refused here, so that both enforce the same thing. `comment` says why an entry is there; one
//! that begins with `probe:` marks a call that honest libraries try and do without: it is refused, and not reported.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Error;
use super::arch::{self, Arch};

/// The comment prefix of entries that are refused without being reported.
const PROBE: &str = "probe:";

/// What becomes of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Action {
    /// It runs.
    Allow,
    /// It runs, and is told to the supervisor before. In no file: see `neutral.rs`.
    Notice,
    /// It fails with this errno, and nobody is told.
    Probe(u16),
    /// It fails with this errno and is reported.
    Refuse(u16),
    /// The sandbox ends, and the call is reported.
    Kill,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errno = |errno: u16| nix::errno::Errno::from_raw(i32::from(errno));
        match *self {
            Self::Allow => f.write_str("allow"),
            Self::Notice => f.write_str("allow (told)"),
            Self::Probe(number) => write!(f, "{:?} (unreported)", errno(number)),
            Self::Refuse(number) => write!(f, "{:?}", errno(number)),
            Self::Kill => f.write_str("kill"),
        }
    }
}

/// How an argument is compared; unsigned, 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Ne,
    Lt,
    Le,
    Eq,
    Ge,
    Gt,
    /// Equal in the bits of this mask.
    MaskedEq(u64),
}

/// One comparison of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// Which argument, 0 to 5.
    pub index: u8,
    pub op: Op,
    pub value: u64,
}

/// The mask of an `int`: what the kernel reads of such an argument.
pub(super) const LOW_HALF: u64 = 0xffff_ffff;

impl Condition {
    /// Whether this compares an `int` with one value.
    pub(super) fn is_plain(&self) -> bool {
        self.op == Op::MaskedEq(LOW_HALF)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, op, value } = self;
        let sign = match op {
            Op::MaskedEq(mask) => return write!(f, "arg{index} & {mask:#x} == {value:#x}"),
            Op::Ne => "!=",
            Op::Lt => "<",
            Op::Le => "<=",
            Op::Eq => "==",
            Op::Ge => ">=",
            Op::Gt => ">",
        };
        write!(f, "arg{index} {sign} {value:#x}")
    }
}

/// One entry of a profile: these calls, under all these conditions, get this action.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub names: Vec<String>,
    pub action: Action,
    pub conditions: Vec<Condition>,
    pub comment: String,
    includes: Option<Filter>,
    excludes: Option<Filter>,
}

impl Entry {
    /// Whether the entry counts for a guest without capabilities on `arch` and this kernel.
    pub(super) fn applies(&self, arch: Arch, kernel: (u32, u32)) -> bool {
        let has_arch = |filter: &Filter| filter.arches.iter().any(|name| name == arch.docker_name());
        let has_kernel = |filter: &Filter| filter.min_kernel.is_some_and(|KernelVersion(least)| kernel >= least);
        let included = self.includes.as_ref().is_none_or(|filter| {
            filter.caps.is_empty()
                && (filter.arches.is_empty() || has_arch(filter))
                && (filter.min_kernel.is_none() || has_kernel(filter))
        });
        let excluded = self.excludes.as_ref().is_some_and(|filter| has_arch(filter) || has_kernel(filter));
        included && !excluded
    }

    fn condition(&self) -> String {
        self.conditions.iter().map(Condition::to_string).collect::<Vec<_>>().join(" and ")
    }
}

/// A seccomp profile, read and checked; [`Profile::compile`] makes a filter of it.
#[derive(Debug, Clone)]
pub struct Profile {
    pub(super) origin: PathBuf,
    pub(super) default: Action,
    pub(super) entries: Vec<Entry>,
}

impl Profile {
    /// The text of a built-in profile (`default` or `strict`), as Docker takes it; `None` for another name.
    #[must_use]
    pub fn builtin_text(name: &str) -> Option<&'static str> {
        match name {
            "default" => Some(include_str!("../../../seccomp/default.json")),
            "strict" => Some(include_str!("../../../seccomp/strict.json")),
            _ => None,
        }
    }

    /// The built-in profile `default` or `strict`.
    ///
    /// # Errors
    /// [`Error::UnknownProfile`] for another name.
    pub fn builtin(name: &str) -> Result<Self, Error> {
        let text = Self::builtin_text(name).ok_or_else(|| Error::UnknownProfile { name: name.to_owned() })?;
        Self::parse(Path::new(name), text)
    }

    /// The profile of this name, a built-in one or the path of a file, as [`program`](super::program) takes it.
    ///
    /// # Errors
    /// Those of [`Profile::load`] and [`Profile::builtin`].
    pub fn named(name: &str) -> Result<Self, Error> {
        if name.contains('/') || name.ends_with(".json") { Self::load(Path::new(name)) } else { Self::builtin(name) }
    }

    /// Reads the profile in the file `path`.
    ///
    /// # Errors
    /// The file cannot be read, is not a profile, names an unknown system call or asks for what nsbox cannot enforce.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Reads the profile `text`; `origin` is what errors call it.
    ///
    /// # Errors
    /// As [`Profile::load`], but for reading the file.
    pub fn parse(origin: &Path, text: &str) -> Result<Self, Error> {
        let file: File =
            serde_json::from_str(text).map_err(|source| Error::Parse { path: origin.to_owned(), source })?;
        let origin = origin.to_owned();
        if !file.serves(Arch::HOST) {
            return Err(Error::Architecture { path: origin, arch: Arch::HOST.oci_name() });
        }
        let default = action(&file.default_action, file.default_errno_ret, false).map_err(|reason| Error::Action {
            path: origin.clone(),
            entry: "defaultAction".to_owned(),
            reason,
        })?;
        let mut entries = Vec::with_capacity(file.syscalls.len());
        for raw in file.syscalls {
            entries.push(raw.check(&origin, text)?);
        }
        Ok(Self { origin, default, entries })
    }

    /// A table of the profile, one line per system call and condition: name, action, condition, why.
    #[must_use]
    pub fn show(&self) -> String {
        let mut rows: Vec<[String; 4]> = Vec::new();
        for entry in &self.entries {
            for name in &entry.names {
                rows.push([name.clone(), entry.action.to_string(), entry.condition(), entry.comment.clone()]);
            }
        }
        rows.sort_by(|a, b| a[0].cmp(&b[0]));
        rows.insert(0, ["SYSCALL", "ACTION", "CONDITION", "WHY"].map(str::to_owned));
        rows.push([
            "(all others)".to_owned(),
            self.default.to_string(),
            String::new(),
            "not in the profile".to_owned(),
        ]);
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let (name, action, condition) = (width(0), width(1), width(2));
        let line = |[a, b, c, why]: &[String; 4]| format!("{a:name$}  {b:action$}  {c:condition$}  {why}\n");
        rows.iter().map(line).collect()
    }

    /// What the profile does with the system call `name` and why; `None` where no architecture has such a call.
    #[must_use]
    pub fn explain(&self, name: &str) -> Option<String> {
        let mut text = String::new();
        for entry in self.entries.iter().filter(|entry| entry.names.iter().any(|listed| listed == name)) {
            let when = if entry.conditions.is_empty() { String::new() } else { format!(" if {}", entry.condition()) };
            text += &format!("{name}: {}{when}: {}\n", entry.action, entry.comment);
        }
        let unconditional =
            self.entries.iter().any(|entry| entry.conditions.is_empty() && entry.names.iter().any(|n| n == name));
        if !unconditional {
            if !arch::is_known(name) {
                return None;
            }
            let otherwise = if text.is_empty() { "" } else { " otherwise" };
            text += &format!("{name}: {}{otherwise}: the default of the profile\n", self.default);
        }
        Some(text)
    }
}

/// Reads an action and its errno; the error says what is wrong with it.
fn action(name: &str, errno: Option<u32>, probe: bool) -> Result<Action, String> {
    let errno = match errno {
        None => 1, // EPERM, as the OCI specification has it.
        Some(errno) => u16::try_from(errno)
            .ok()
            .filter(|errno| (1..=4095).contains(errno))
            .ok_or_else(|| format!("errno {errno} is not between 1 and 4095"))?,
    };
    match name {
        "SCMP_ACT_ALLOW" => Ok(Action::Allow),
        "SCMP_ACT_ERRNO" if probe => Ok(Action::Probe(errno)),
        "SCMP_ACT_ERRNO" => Ok(Action::Refuse(errno)),
        "SCMP_ACT_KILL_PROCESS" => Ok(Action::Kill),
        other => Err(format!("{other} is not one of SCMP_ACT_ALLOW, SCMP_ACT_ERRNO, SCMP_ACT_KILL_PROCESS")),
    }
}

/// A profile as it is written. Unknown keys are errors: what is not understood is not enforced.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    default_action: String,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<ArchMap>>,
    syscalls: Vec<RawEntry>,
}

impl File {
    /// Whether the profile is meant for `arch`; its sub-architectures are never let in.
    fn serves(&self, arch: Arch) -> bool {
        let listed = self.architectures.as_ref().is_none_or(|names| names.iter().any(|name| name == arch.oci_name()));
        let mapped = self.arch_map.as_ref().is_none_or(|maps| maps.iter().any(|m| m.architecture == arch.oci_name()));
        listed && mapped
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ArchMap {
    architecture: String,
    #[serde(rename = "subArchitectures")]
    _sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawEntry {
    #[serde(default)]
    names: Vec<String>,
    /// Docker's old spelling of `names`.
    name: Option<String>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<RawCondition>>,
    #[serde(default)]
    comment: String,
    includes: Option<Filter>,
    excludes: Option<Filter>,
}

impl RawEntry {
    fn check(mut self, path: &Path, text: &str) -> Result<Entry, Error> {
        self.names.extend(self.name);
        let label = || self.names.join(", ");
        for name in &self.names {
            if !arch::is_known(name) {
                return Err(Error::UnknownSyscall {
                    path: path.to_owned(),
                    line: line_of(text, name),
                    hint: arch::nearest(name).map_or_else(String::new, |near| format!(": did you mean '{near}'?")),
                    name: name.clone(),
                });
            }
        }
        if self.names.is_empty() {
            return Err(Error::Nameless { path: path.to_owned(), comment: self.comment });
        }
        let action = action(&self.action, self.errno_ret, self.comment.starts_with(PROBE))
            .map_err(|reason| Error::Action { path: path.to_owned(), entry: label(), reason })?;
        let conditions: Vec<Condition> = self.args.unwrap_or_default().into_iter().map(Into::into).collect();
        for (at, condition) in conditions.iter().enumerate() {
            if condition.index > 5 {
                return Err(Error::Argument { path: path.to_owned(), entry: label(), index: condition.index });
            }
            // runc reads two conditions on one argument as "either", crun as "both".
            if conditions[..at].iter().any(|earlier| earlier.index == condition.index) {
                return Err(Error::RepeatedArgument { path: path.to_owned(), entry: label(), index: condition.index });
            }
        }
        Ok(Entry {
            names: self.names,
            action,
            conditions,
            comment: self.comment,
            includes: self.includes,
            excludes: self.excludes,
        })
    }
}

/// The line on which `name` is first written, from 1.
fn line_of(text: &str, name: &str) -> usize {
    let at = text.find(&format!("\"{name}\"")).unwrap_or(0);
    1 + text[..at].matches('\n').count()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawCondition {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: RawOp,
}

#[derive(Deserialize)]
enum RawOp {
    #[serde(rename = "SCMP_CMP_NE")]
    Ne,
    #[serde(rename = "SCMP_CMP_LT")]
    Lt,
    #[serde(rename = "SCMP_CMP_LE")]
    Le,
    #[serde(rename = "SCMP_CMP_EQ")]
    Eq,
    #[serde(rename = "SCMP_CMP_GE")]
    Ge,
    #[serde(rename = "SCMP_CMP_GT")]
    Gt,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEq,
}

impl From<RawCondition> for Condition {
    fn from(raw: RawCondition) -> Self {
        let op = match raw.op {
            RawOp::Ne => Op::Ne,
            RawOp::Lt => Op::Lt,
            RawOp::Le => Op::Le,
            RawOp::Eq => Op::Eq,
            RawOp::Ge => Op::Ge,
            RawOp::Gt => Op::Gt,
            // `value` is the mask and `valueTwo` what is to be left of the argument under it.
            RawOp::MaskedEq => {
                return Self { index: raw.index, op: Op::MaskedEq(raw.value), value: raw.value_two & raw.value };
            }
        };
        Self { index: raw.index, op, value: raw.value }
    }
}

/// Docker's conditions on the container and the host.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Filter {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
    min_kernel: Option<KernelVersion>,
}

/// `4.8`: version and major revision.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct KernelVersion((u32, u32));

impl TryFrom<String> for KernelVersion {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.split_once('.')
            .and_then(|(version, major)| Some(Self((version.parse().ok()?, major.parse().ok()?))))
            .ok_or_else(|| format!("'{text}' is not a kernel version such as \"4.8\""))
    }
}
