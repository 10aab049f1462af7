//! Names and numbers of the system calls of the architectures that nsbox runs on, see syscalls(2).
//!
//! A profile names system calls, a filter sees numbers: this is the only place that turns one into the other.

use std::str::FromStr;

/// A processor architecture whose system calls nsbox knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arch {
    /// 64-bit x86, without its 32-bit (`int 0x80`) and x32 entrances.
    X86_64,
    /// 64-bit ARM, without its 32-bit entrance.
    Aarch64,
}

/// Numbers that 64-bit kernels leave to the 64-bit-time calls of 32-bit ones.
const RESERVED_FOR_32_BIT: std::ops::RangeInclusive<u32> = 403..=423;

impl Arch {
    /// The architecture that this program was compiled for.
    #[cfg(target_arch = "x86_64")]
    pub const HOST: Self = Self::X86_64;
    /// The architecture that this program was compiled for.
    #[cfg(target_arch = "aarch64")]
    pub const HOST: Self = Self::Aarch64;

    /// The number of the system call `name`, `None` where this architecture has none of that name.
    #[must_use]
    pub fn number(self, name: &str) -> Option<u32> {
        // libseccomp, and so every profile, says newfstatat on both; the generic table of the kernel says fstatat.
        let name = if self == Self::Aarch64 && name == "newfstatat" { "fstatat" } else { name };
        let number = match self {
            Self::X86_64 => syscalls::x86_64::Sysno::from_str(name).ok()?.id(),
            Self::Aarch64 => syscalls::aarch64::Sysno::from_str(name).ok()?.id(),
        };
        u32::try_from(number).ok().filter(|number| !RESERVED_FOR_32_BIT.contains(number))
    }

    /// The name of the system call `number`, `None` where this architecture has none of that number.
    #[must_use]
    pub fn name(self, number: u32) -> Option<&'static str> {
        if RESERVED_FOR_32_BIT.contains(&number) {
            return None;
        }
        let number = usize::try_from(number).ok()?;
        let name = match self {
            Self::X86_64 => syscalls::x86_64::Sysno::new(number)?.name(),
            Self::Aarch64 => syscalls::aarch64::Sysno::new(number)?.name(),
        };
        Some(if name == "fstatat" { "newfstatat" } else { name })
    }

    /// `AUDIT_ARCH_*` of linux/audit.h: what the kernel puts into `seccomp_data.arch`.
    pub(super) const fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::Aarch64 => 0xc000_00b7,
        }
    }

    /// The name in the `arches` conditions of a Docker profile.
    pub(super) const fn docker_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// The name in the `architectures` and `archMap` of a profile.
    pub(super) const fn oci_name(self) -> &'static str {
        match self {
            Self::X86_64 => "SCMP_ARCH_X86_64",
            Self::Aarch64 => "SCMP_ARCH_AARCH64",
        }
    }
}

/// Whether `name` is a system call of any architecture that a Docker profile may speak of.
pub(super) fn is_known(name: &str) -> bool {
    // ARM's private calls, which the tables leave out.
    const ARM_PRIVATE: [&str; 5] = ["breakpoint", "cacheflush", "set_tls", "usr26", "usr32"];
    Arch::X86_64.number(name).is_some()
        || Arch::Aarch64.number(name).is_some()
        || syscalls::x86::Sysno::from_str(name).is_ok()
        || syscalls::arm::Sysno::from_str(name).is_ok()
        || syscalls::riscv64::Sysno::from_str(name).is_ok()
        || syscalls::s390x::Sysno::from_str(name).is_ok()
        || ARM_PRIVATE.contains(&name)
        // libseccomp's own names for calls of PowerPC and of both time ABIs of ARM.
        || matches!(name, "swapcontext" | "sync_file_range2" | "arm_sync_file_range")
}

/// The system call whose name is nearest to `name`, where one is near enough to be what was meant.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    syscalls::x86_64::Sysno::iter()
        .map(|call| (strsim::jaro_winkler(name, call.name()), call.name()))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, nearest)| nearest)
}
