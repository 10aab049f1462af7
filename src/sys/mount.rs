//! Detached mounts: open_tree(2) and mount_setattr(2).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::fd::own;

pub(crate) const OPEN_TREE_CLONE: u64 = 1;
pub(crate) const AT_RECURSIVE: u64 = 0x8000;
pub(crate) const AT_EMPTY_PATH: u64 = 0x1000;
pub(crate) const MOUNT_ATTR_RDONLY: u64 = 0x1;
pub(crate) const MOUNT_ATTR_NOSUID: u64 = 0x2;
pub(crate) const MOUNT_ATTR_NODEV: u64 = 0x4;
pub(crate) const MOUNT_ATTR_NOEXEC: u64 = 0x8;
pub(crate) const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;
pub(crate) const MOVE_MOUNT_F_EMPTY_PATH: u64 = 0x4;
pub(crate) const MS_PRIVATE: u64 = 1 << 18;

/// mount_setattr(2)'s `struct mount_attr`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MountAttr {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// Propagation type.
    pub propagation: u64,
    /// User namespace of an idmapped mount.
    pub userns: u64,
}

/// A detached copy of the mount tree at `path` (needs CAP_SYS_ADMIN over the caller's mount namespace).
pub(crate) fn open_tree(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let flags = OPEN_TREE_CLONE | AT_RECURSIVE | libc::O_CLOEXEC as u64;
    // SAFETY: the path outlives the call.
    own(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// Changes the attributes of a detached mount tree.
pub(crate) fn mount_setattr(tree: BorrowedFd<'_>, attr: MountAttr) -> io::Result<()> {
    let flags = AT_EMPTY_PATH | AT_RECURSIVE;
    // SAFETY: path and attributes outlive the call; the size is that of the structure.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The kernel's Landlock ABI version. landlock_create_ruleset(2).
pub(crate) fn landlock_abi() -> io::Result<i32> {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the attributes must be null and their size zero.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, VERSION) };
    if abi < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(abi).map_err(io::Error::other) }
}

/// A Landlock ruleset; `attributes` is the kernel's `struct landlock_ruleset_attr`. landlock_create_ruleset(2).
pub(crate) fn landlock_ruleset(attributes: &[u64]) -> io::Result<OwnedFd> {
    let (start, size) = (attributes.as_ptr(), size_of_val(attributes));
    // SAFETY: the attributes are as long as the size says.
    let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, start, size, 0) };
    match i32::try_from(fd) {
        // SAFETY: the kernel made this descriptor for us; nothing else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Allows `rights` in and below a file or folder. landlock_add_rule(2).
pub(crate) fn landlock_allow(ruleset: &OwnedFd, rights: u64, place: &impl AsRawFd) -> io::Result<()> {
    const PATH_BENEATH: u32 = 1;
    // struct landlock_path_beneath_attr, packed: u64 allowed_access, s32 parent_fd.
    let mut rule = [0_u8; 12];
    rule[..8].copy_from_slice(&rights.to_ne_bytes());
    rule[8..].copy_from_slice(&place.as_raw_fd().to_ne_bytes());
    // SAFETY: the rule has the kernel's layout.
    let result =
        unsafe { libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), PATH_BENEATH, rule.as_ptr(), 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
