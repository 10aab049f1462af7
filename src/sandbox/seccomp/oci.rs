//! A profile in the types of the OCI specification, as it applies to this guest and this kernel.

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch as OciArch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

use super::arch::Arch;
use super::compile::kernel_version;
use super::profile::{Action, Condition, Op, Profile};

const MEMFD_CREATE: &str = "memfd_create";
const MFD_NOEXEC_SEAL: u64 = 0x8;

impl Profile {
    /// The profile without what Docker adds to the format: entries for other machines and kernels are left out, and
    /// memfds must be sealed against execution, since no runtime sets `vm.memfd_noexec`.
    pub(crate) fn oci(&self) -> Result<LinuxSeccomp, OciSpecError> {
        let kernel = kernel_version();
        let mut syscalls = Vec::new();
        for entry in self.entries.iter().filter(|entry| entry.applies(Arch::HOST, kernel)) {
            let names = || entry.names.iter().filter(|name| *name != MEMFD_CREATE).cloned().collect::<Vec<_>>();
            let conditions = entry.conditions.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
            if !names().is_empty() {
                syscalls.push(syscall(names(), entry.action, conditions)?);
            }
            if entry.action == Action::Allow && entry.names.iter().any(|name| name == MEMFD_CREATE) {
                let name = || vec![MEMFD_CREATE.to_owned()];
                syscalls.push(syscall(name(), Action::Allow, vec![sealed(MFD_NOEXEC_SEAL)?])?);
                let errno = Action::Refuse(libc::EACCES.unsigned_abs().try_into().unwrap_or(u16::MAX));
                syscalls.push(syscall(name(), errno, vec![sealed(0)?])?);
            }
        }
        let (action, errno) = oci_action(self.default);
        let seccomp = LinuxSeccompBuilder::default().default_action(action).architectures([match Arch::HOST {
            Arch::X86_64 => OciArch::ScmpArchX86_64,
            Arch::Aarch64 => OciArch::ScmpArchAarch64,
        }]);
        let seccomp = match errno {
            Some(errno) => seccomp.default_errno_ret(errno),
            None => seccomp,
        };
        seccomp.syscalls(syscalls).build()
    }
}

fn syscall(names: Vec<String>, action: Action, args: Vec<LinuxSeccompArg>) -> Result<LinuxSyscall, OciSpecError> {
    let (action, errno) = oci_action(action);
    let mut syscall = LinuxSyscallBuilder::default().names(names).action(action);
    if let Some(errno) = errno {
        syscall = syscall.errno_ret(errno);
    }
    if !args.is_empty() {
        syscall = syscall.args(args);
    }
    syscall.build()
}

fn oci_action(action: Action) -> (LinuxSeccompAction, Option<u32>) {
    match action {
        Action::Allow | Action::Notice => (LinuxSeccompAction::ScmpActAllow, None),
        Action::Probe(errno) | Action::Refuse(errno) => (LinuxSeccompAction::ScmpActErrno, Some(errno.into())),
        Action::Kill => (LinuxSeccompAction::ScmpActKillProcess, None),
    }
}

/// That the bit of memfd_create's flags is as in `value`.
fn sealed(value: u64) -> Result<LinuxSeccompArg, OciSpecError> {
    condition(&Condition { index: 1, op: Op::MaskedEq(MFD_NOEXEC_SEAL), value })
}

fn condition(condition: &Condition) -> Result<LinuxSeccompArg, OciSpecError> {
    let arg = LinuxSeccompArgBuilder::default().index(condition.index);
    let arg = match condition.op {
        // The value is the mask, the second value what is left under it.
        Op::MaskedEq(mask) => arg.value(mask).value_two(condition.value),
        _ => arg.value(condition.value),
    };
    arg.op(match condition.op {
        Op::Ne => LinuxSeccompOperator::ScmpCmpNe,
        Op::Lt => LinuxSeccompOperator::ScmpCmpLt,
        Op::Le => LinuxSeccompOperator::ScmpCmpLe,
        Op::Eq => LinuxSeccompOperator::ScmpCmpEq,
        Op::Ge => LinuxSeccompOperator::ScmpCmpGe,
        Op::Gt => LinuxSeccompOperator::ScmpCmpGt,
        Op::MaskedEq(_) => LinuxSeccompOperator::ScmpCmpMaskedEq,
    })
    .build()
}
