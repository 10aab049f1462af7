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
use super::profile::{Action, Condition, Op, Profile};
use super::{Error, KILL, Options, Program};

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
        let chains = self.chains(options)?;
        let bpf = assemble(&chains, self.default, options)?;
        Ok(Program { bpf: bpf.into(), arch: options.arch })
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
            // Where two conditions hold at once, the stricter wins.
            chain.rules.sort_by_key(|(_, action)| std::cmp::Reverse(*action));
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
    if options.shares_host_ipc {
        for name in ["socket", "connect", "bind", "shmget", "semget", "msgget", "mq_open"] {
            refuse(name, libc::EACCES, &[]);
        }
        // A pair of datagram sockets (2, and 3 by another name) can send to any path or abstract name.
        for kind in [2, 3] {
            refuse("socketpair", libc::EACCES, &[masked(1, 0xf, kind)]);
        }
    }
}

/// The running kernel's version and major revision; the oldest there is where it cannot be read.
fn kernel_version() -> (u32, u32) {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The value that the filter returns for `action`.
pub(super) fn return_value(action: Action, notify: bool) -> u32 {
    match (action, notify) {
        (Action::Allow, _) => libc::SECCOMP_RET_ALLOW,
        (Action::Refuse(errno), true) => libc::SECCOMP_RET_USER_NOTIF | u32::from(errno),
        (Action::Kill, true) => libc::SECCOMP_RET_USER_NOTIF | KILL,
        (Action::Refuse(errno), false) | (Action::Probe(errno), _) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
        (Action::Kill, false) => libc::SECCOMP_RET_KILL_PROCESS,
    }
}

/// Where a run of numbers leads.
#[derive(Clone, Copy, PartialEq)]
enum Target {
    Return(u32),
    /// The block at this label.
    Block(Label),
}

/// An instruction, counted from the end of the program: jumps only go forward, so it is written backwards.
type Label = usize;

fn assemble(chains: &BTreeMap<u32, Chain>, default: Action, options: Options) -> Result<Vec<sock_filter>, Error> {
    let mut code = Backwards::default();
    let mut runs: Vec<(u32, Target)> = Vec::new();
    let mut extend = |start: u32, target: Target| {
        if runs.last().is_none_or(|(_, last)| *last != target) {
            runs.push((start, target));
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
    let root = code.search(&runs);
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

    /// Writes the rules of one system call.
    fn block(&mut self, chain: &Chain, otherwise: u32, options: Options) -> Result<Label, Error> {
        let mut label = self.push(RETURN, otherwise, 0, 0);
        for (conditions, action) in chain.rules.iter().rev() {
            self.push(RETURN, return_value(*action, options.notify), 0, 0);
            let conditions = conditions.iter().map(compare).collect::<Result<Vec<_>, _>>();
            let rule = conditions.and_then(SeccompRule::new).map_err(|source| Error::Condition { source })?;
            // Two jumps lead in, which only a chain of rules needs; then come the comparisons, which skip the one
            // instruction behind them, the return above, where they fail.
            for instruction in BpfProgram::from(rule).iter().skip(2).rev() {
                label = self.push(instruction.code, instruction.k, instruction.jt, instruction.jf);
            }
        }
        Ok(label)
    }

    /// Writes a binary search over `runs`, sorted by their first number.
    fn search(&mut self, runs: &[(u32, Target)]) -> Label {
        match runs {
            [] => self.near(Target::Return(libc::SECCOMP_RET_KILL_PROCESS)),
            [(_, target)] => self.near(*target),
            _ => {
                let (low, high) = runs.split_at(runs.len() / 2);
                let at_least = self.search(high);
                let below = self.search(low);
                // Should one be out of reach, reaching it takes an instruction, which moves the other one away.
                let at_least = self.near(Target::Block(at_least));
                let below = self.near(Target::Block(below));
                let offset = |label| u8::try_from(self.distance(label)).unwrap_or(u8::MAX);
                let (jt, jf) = (offset(at_least), offset(below));
                self.push(JUMP_GE, high[0].0, jt, jf)
            }
        }
    }

    /// A label for `target` that a conditional jump can reach, which is 255 instructions far, with one to spare.
    fn near(&mut self, target: Target) -> Label {
        const REACH: usize = 240;
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
        Op::MaskedEq(mask) => {
            if u32::try_from(mask).is_ok() {
                length = SeccompCmpArgLen::Dword;
            }
            SeccompCmpOp::MaskedEq(mask)
        }
    };
    SeccompCondition::new(condition.index, length, operator, condition.value)
}
