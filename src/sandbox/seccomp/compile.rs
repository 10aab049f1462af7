//! From a profile to a BPF program, short and quick to load. See seccomp(2).
//!
//! The kernel runs a new filter once for every system call number, to learn which it can let through without asking
//! again: a filter that tries number after number makes that quadratic, and loading it dear. So numbers are sorted into
//! runs with the same fate and found by binary search; the few calls that depend on arguments get a block of seccompiler's
//! instructions each.
//!
//! The program's own return values carry the decision: the kernel ignores the data of `SECCOMP_RET_USER_NOTIF`, so that
//! is where the errno, or the order to kill, is kept for the supervisor, which runs the same program to read it.

use std::collections::BTreeMap;

use libc::sock_filter;
use seccompiler::{BpfProgram, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::arch::Arch;
use super::profile::{Action, Condition, LOW_HALF, Op, Profile};
use super::{Error, KILL, NOTICE, Options, Program, neutral};

/// `BPF_LD | BPF_W | BPF_ABS`: load a word of `seccomp_data`.
pub(super) const LOAD: u16 = 0x20;
/// `BPF_JMP | BPF_JA`.
pub(super) const JUMP: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
pub(super) const JUMP_EQ: u16 = 0x15;
/// `BPF_JMP | BPF_JGT | BPF_K`.
pub(super) const JUMP_GT: u16 = 0x25;
/// `BPF_JMP | BPF_JGE | BPF_K`.
pub(super) const JUMP_GE: u16 = 0x35;
/// `BPF_ALU | BPF_AND | BPF_K`.
pub(super) const AND: u16 = 0x54;
/// `BPF_RET | BPF_K`.
pub(super) const RETURN: u16 = 0x06;

/// The bit that marks a call of the x32 ABI, which shares the architecture value of x86_64.
const X32: u32 = 0x4000_0000;
/// How far [`Backwards::near`] looks: a conditional jump reaches 255 instructions, of which the comparisons of one rule
/// (six conditions of six instructions) and the returns and jumps written in between take their share.
const REACH: usize = 200;
/// `BPF_MAXINSNS`.
const MAX_INSTRUCTIONS: usize = 4096;

/// What becomes of one system call: the first rule whose conditions all hold, or else `otherwise`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chain {
    pub rules: Vec<(Vec<Condition>, Action)>,
    pub otherwise: Action,
}

impl Profile {
    /// Compiles the profile for one kind of guest.
    ///
    /// # Errors
    /// [`Error::Contradiction`] where one call gets two actions, [`Error::TooLong`] past the kernel's limit.
    pub fn compile(&self, options: Options) -> Result<Program, Error> {
        let mut chains = self.chains(options)?;
        let mut default = self.default;
        if options.notices {
            neutral::notice(&mut chains, options.arch);
            default = if default == Action::Allow { Action::Notice } else { default };
        }
        let bpf = assemble(&chains, default, options)?;
        Ok(Program { bpf, arch: options.arch })
    }

    /// The fate of every system call that the profile names and the architecture has, by number.
    pub(super) fn chains(&self, options: Options) -> Result<BTreeMap<u32, Chain>, Error> {
        let kernel = kernel_version();
        let mut chains: BTreeMap<u32, Chain> = BTreeMap::new();
        let mut unconditional: BTreeMap<u32, Action> = BTreeMap::new();
        for entry in self.entries.iter().filter(|entry| entry.applies(options.arch, kernel)) {
            for name in &entry.names {
                let Some(number) = options.arch.number(name) else { continue };
                let chain =
                    chains.entry(number).or_insert_with(|| Chain { rules: Vec::new(), otherwise: self.default });
                let clash = || Error::Contradiction { path: self.origin.clone(), name: name.clone() };
                if !entry.conditions.is_empty() {
                    chain.rules.push((entry.conditions.clone(), entry.action));
                } else if unconditional.insert(number, entry.action).is_some_and(|earlier| earlier != entry.action) {
                    return Err(clash());
                } else {
                    chain.otherwise = entry.action;
                }
                // libseccomp drops the conditions of a call that is also named without any: which rule would win is
                // an accident of the order.
                if let Some(action) = unconditional.get(&number) {
                    if chain.rules.iter().any(|(_, other)| other != action) {
                        return Err(clash());
                    }
                    chain.rules.clear();
                }
            }
        }
        for chain in chains.values_mut() {
            // Where two conditions hold at once, the stricter wins. Plain comparisons stand together, since the second
            // of two on one argument need not load it again.
            let is_plain = |conditions: &[Condition]| matches!(conditions, [only] if only.is_plain());
            chain.rules.sort_by_key(|(conditions, action)| (std::cmp::Reverse(*action), !is_plain(conditions)));
        }
        restrict(&mut chains, options);
        Ok(chains)
    }
}

/// Adds what the options ask for over the profile. It only ever tightens.
fn restrict(chains: &mut BTreeMap<u32, Chain>, options: Options) {
    let mut refuse = |name: &str, errno: i32, conditions: &[Condition]| {
        let chain = options.arch.number(name).and_then(|number| chains.get_mut(&number));
        // A call that nobody may make has no chain, or one that allows nothing.
        let Some(chain) = chain else { return };
        let allows = |action: &Action| *action == Action::Allow;
        if !allows(&chain.otherwise) && !chain.rules.iter().any(|(_, action)| allows(action)) {
            return;
        }
        let action = Action::Refuse(u16::try_from(errno).unwrap_or(1));
        if conditions.is_empty() {
            *chain = Chain { rules: Vec::new(), otherwise: action };
        } else {
            chain.rules.insert(0, (conditions.to_vec(), action));
        }
    };
    let masked = |index, mask, value| Condition { index, op: Op::MaskedEq(mask), value };
    if options.require_memfd_noexec {
        // MFD_NOEXEC_SEAL. EACCES is the kernel's own answer under vm.memfd_noexec = 2.
        refuse("memfd_create", libc::EACCES, &[masked(1, 0x8, 0)]);
    }
    if options.shares_host {
        for name in HOST_WIDE {
            refuse(name, libc::EACCES, &[]);
        }
        // A pair of datagram sockets (2, and 3 by another name) can send to any path or abstract name.
        for kind in [2, 3] {
            refuse("socketpair", libc::EACCES, &[masked(1, 0xf, kind)]);
        }
        // A group or everybody: 0, and what is negative as an int.
        refuse("kill", libc::EACCES, &[masked(0, u64::from(u32::MAX), 0)]);
        refuse("kill", libc::EACCES, &[masked(0, 1 << 31, 1 << 31)]);
        // Another process than the caller's own, or all of a group or user.
        let other = |index, value| Condition { index, op: Op::Ne, value };
        for name in ["prlimit64", "sched_setaffinity", "sched_setparam", "sched_setscheduler"] {
            refuse(name, libc::EACCES, &[other(0, 0)]);
        }
        for (name, process) in [("setpriority", 0), ("ioprio_set", 1)] {
            refuse(name, libc::EACCES, &[other(0, process)]);
            refuse(name, libc::EACCES, &[other(1, 0)]);
        }
        // O_TMPFILE without its O_DIRECTORY: a file that nobody can count. O_TRUNC with O_RDONLY: Landlock lets a file that may
        // be read be truncated so, before its ABI 3.
        for (name, flags) in [("open", 1), ("openat", 2)] {
            refuse(name, libc::EACCES, &[masked(flags, 0o20_000_000, 0o20_000_000)]);
            refuse(name, libc::EACCES, &[masked(flags, 0o1003, 0o1000)]);
        }
        // A folder that its owner cannot list, nobody can count either.
        for bit in [0o100, 0o200, 0o400] {
            refuse("mkdir", libc::EACCES, &[masked(1, bit, 0)]);
            refuse("mkdirat", libc::EACCES, &[masked(2, bit, 0)]);
            refuse("umask", libc::EACCES, &[masked(0, bit, bit)]);
        }
    }
    if options.holds_signals {
        for name in ["kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal"] {
            refuse(name, libc::EACCES, &[]);
        }
        // F_SETOWN, F_SETSIG, F_SETOWN_EX: who gets the signals of a descriptor, and which.
        for command in [8, 10, 15] {
            refuse("fcntl", libc::EACCES, &[masked(1, u64::from(u32::MAX), command)]);
        }
    }
}

/// What reaches further than a guest without namespaces of its own may: refused whatever the arguments.
#[rustfmt::skip]
const HOST_WIDE: [&str; 40] = [
    "socket", "connect", "bind",
    // System V IPC and message queues: also those whose number or name is known.
    "shmget", "shmat", "shmctl", "semget", "semop", "semtimedop", "semctl", "msgget", "msgsnd", "msgrcv", "msgctl",
    "mq_open", "mq_unlink",
    // What ends with the run is a process group.
    "setsid", "setpgid",
    // What Landlock does not cover of files: a guest may be the caller's own user.
    "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "utime", "utimes", "utimensat",
    "futimesat", "setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr", "inotify_add_watch",
    // Landlock covers it since ABI 3.
    "truncate",
    // Its flags are behind a pointer.
    "openat2",
    // Memory that is in no process, where the supervisor would see it.
    "memfd_create",
];

/// The running kernel's version and major revision; the oldest there is where it cannot be read.
pub(super) fn kernel_version() -> (u32, u32) {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The value that the filter returns for `action`.
pub(super) fn return_value(action: Action, notify: bool) -> u32 {
    match (action, notify) {
        (Action::Allow, _) | (Action::Notice, false) => libc::SECCOMP_RET_ALLOW,
        (Action::Notice, true) => libc::SECCOMP_RET_USER_NOTIF | NOTICE,
        (Action::Refuse(errno), true) => libc::SECCOMP_RET_USER_NOTIF | u32::from(errno),
        (Action::Kill, true) => libc::SECCOMP_RET_USER_NOTIF | KILL,
        (Action::Refuse(errno), false) | (Action::Probe(errno), _) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
        (Action::Kill, false) => libc::SECCOMP_RET_KILL_PROCESS,
    }
}

/// Where a system call leads.
#[derive(Clone, Copy, PartialEq)]
enum Target {
    Return(u32),
    /// The block at this label.
    Block(Label),
}

/// Numbers with one fate: from `start` to where the next run starts, but for a few of them.
struct Run {
    start: u32,
    target: Target,
    exceptions: Vec<(u32, Target)>,
}

/// More exceptions in one run are dearer to try, one after the other, than they save.
const MAX_EXCEPTIONS: usize = 4;

/// Makes runs of the numbers at which the fate changes: a single number between two runs alike is an exception of one.
fn merge(changes: &[(u32, Target)]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut rest = changes.iter().copied().peekable();
    while let Some((start, target)) = rest.next() {
        let alone = rest.peek().filter(|(next, _)| *next == start + 1).map(|(_, after)| *after);
        match runs.last_mut() {
            Some(run) if run.target == target => {}
            Some(run) if alone == Some(run.target) && run.exceptions.len() < MAX_EXCEPTIONS => {
                run.exceptions.push((start, target));
            }
            _ => runs.push(Run { start, target, exceptions: Vec::new() }),
        }
    }
    runs
}

/// An instruction, counted from the end of the program: jumps only go forward, so it is written backwards.
type Label = usize;

fn assemble(chains: &BTreeMap<u32, Chain>, default: Action, options: Options) -> Result<Vec<sock_filter>, Error> {
    let mut code = Backwards::default();
    let mut changes: Vec<(u32, Target)> = Vec::new();
    let mut extend = |start: u32, target: Target| {
        if changes.last().is_none_or(|(_, last)| *last != target) {
            changes.push((start, target));
        }
    };
    let default = Target::Return(return_value(default, options.notify));
    let mut next = 0;
    for (&number, chain) in chains {
        if number > next {
            extend(next, default);
        }
        let otherwise = return_value(chain.otherwise, options.notify);
        let target = if chain.rules.is_empty() {
            Target::Return(otherwise)
        } else {
            Target::Block(code.block(chain, otherwise, options)?)
        };
        extend(number, target);
        next = number + 1;
    }
    extend(next, default);
    if options.arch == Arch::X86_64 {
        extend(X32, Target::Return(return_value(Action::Kill, options.notify)));
    }
    let root = code.search(&merge(&changes));
    if root + 1 != code.0.len() {
        code.push(JUMP, code.distance(root), 0, 0);
    }
    code.push(LOAD, 0, 0, 0); // seccomp_data.nr
    code.push(RETURN, libc::SECCOMP_RET_KILL_PROCESS, 0, 0);
    code.push(JUMP_EQ, options.arch.audit(), 1, 0);
    code.push(LOAD, 4, 0, 0); // seccomp_data.arch
    code.0.reverse();
    if code.0.len() > MAX_INSTRUCTIONS {
        return Err(Error::TooLong { instructions: code.0.len() });
    }
    Ok(code.0)
}

/// A program, last instruction first.
#[derive(Default)]
struct Backwards(Vec<sock_filter>);

impl Backwards {
    fn push(&mut self, code: u16, k: u32, jt: u8, jf: u8) -> Label {
        self.0.push(sock_filter { code, jt, jf, k });
        self.0.len() - 1
    }

    /// How many instructions lie between the next one to be written and `label`.
    fn distance(&self, label: Label) -> u32 {
        // The length is checked against MAX_INSTRUCTIONS before the program is handed out.
        u32::try_from(self.0.len() - label - 1).unwrap_or(u32::MAX)
    }

    /// A conditional jump: on to `yes` where the comparison holds, to `no` where it does not, both within [`REACH`].
    fn branch(&mut self, code: u16, k: u32, yes: Label, no: Label) -> Label {
        let offset = |label| u8::try_from(self.distance(label)).unwrap_or(u8::MAX);
        let (jt, jf) = (offset(yes), offset(no));
        self.push(code, k, jt, jf)
    }

    /// Writes the rules of one system call.
    fn block(&mut self, chain: &Chain, otherwise: u32, options: Options) -> Result<Label, Error> {
        let mut next = self.near(Target::Return(otherwise));
        // The load that the rule behind begins with, not yet written: the rule before it may have done it already.
        let mut load: Option<u32> = None;
        for (conditions, action) in chain.rules.iter().rev() {
            let conditions = conditions.iter().map(compare).collect::<Result<Vec<_>, _>>();
            let rule = conditions.and_then(SeccompRule::new).map_err(|source| Error::Condition { source })?;
            // Two jumps lead in, which only seccompiler's own chains need. Then come the comparisons: the end is where
            // they lead when all hold, and one past it where one fails.
            let body = BpfProgram::from(rule).split_off(2);
            if let Some(k) = load.filter(|k| body.len() != 2 || body[0].k != *k) {
                next = self.push(LOAD, k, 0, 0);
            }
            let matched = self.near(Target::Return(return_value(*action, options.notify)));
            next = self.near(Target::Block(next));
            let last = self.0.len() + body.len() - 1;
            for (at, instruction) in body.iter().enumerate().skip(1).rev() {
                let target = |offset: u8| match at + 1 + usize::from(offset) {
                    inside if inside < body.len() => last - inside,
                    end if end == body.len() => matched,
                    _ => next,
                };
                let seccompiler::sock_filter { code, k, jt, jf } = *instruction;
                if matches!(code, JUMP_EQ | JUMP_GT | JUMP_GE) {
                    self.branch(code, k, target(jt), target(jf));
                } else {
                    self.push(code, k, 0, 0);
                }
            }
            next = self.0.len() - 1;
            load = Some(body[0].k);
        }
        Ok(load.map_or(next, |k| self.push(LOAD, k, 0, 0)))
    }

    /// Writes a binary search over `runs`, sorted by their first number.
    fn search(&mut self, runs: &[Run]) -> Label {
        match runs {
            [] => self.near(Target::Return(libc::SECCOMP_RET_KILL_PROCESS)),
            [run] => {
                let mut label = self.near(run.target);
                for &(number, target) in &run.exceptions {
                    let exception = self.near(target);
                    label = self.near(Target::Block(label));
                    label = self.branch(JUMP_EQ, number, exception, label);
                }
                label
            }
            _ => {
                let (low, high) = runs.split_at(runs.len() / 2);
                let at_least = self.search(high);
                let below = self.search(low);
                let at_least = self.near(Target::Block(at_least));
                let below = self.near(Target::Block(below));
                self.branch(JUMP_GE, high[0].start, at_least, below)
            }
        }
    }

    /// A label that leads to `target` and is within [`REACH`], also from behind a few more instructions.
    fn near(&mut self, target: Target) -> Label {
        let from = self.0.len().saturating_sub(REACH);
        match target {
            Target::Block(label) if label >= from => label,
            Target::Block(label) => self.push(JUMP, self.distance(label), 0, 0),
            Target::Return(value) => {
                let same = |i: &sock_filter| i.code == RETURN && i.k == value;
                let found = self.0[from..].iter().rposition(same).map(|at| from + at);
                found.unwrap_or_else(|| self.push(RETURN, value, 0, 0))
            }
        }
    }
}

/// One comparison in seccompiler's words, on half the argument where the other half does not count.
fn compare(condition: &Condition) -> Result<SeccompCondition, seccompiler::BackendError> {
    let mut length = SeccompCmpArgLen::Qword;
    let operator = match condition.op {
        Op::Ne => SeccompCmpOp::Ne,
        Op::Lt => SeccompCmpOp::Lt,
        Op::Le => SeccompCmpOp::Le,
        Op::Eq => SeccompCmpOp::Eq,
        Op::Ge => SeccompCmpOp::Ge,
        Op::Gt => SeccompCmpOp::Gt,
        Op::MaskedEq(LOW_HALF) => {
            length = SeccompCmpArgLen::Dword;
            SeccompCmpOp::Eq
        }
        Op::MaskedEq(mask) => {
            if u32::try_from(mask).is_ok() {
                length = SeccompCmpArgLen::Dword;
            }
            SeccompCmpOp::MaskedEq(mask)
        }
    };
    SeccompCondition::new(condition.index, length, operator, condition.value)
}
