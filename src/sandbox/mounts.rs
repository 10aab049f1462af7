//! What the guest sees as its file system: a read-only root, one private tmpfs, its own /proc, six device nodes.
//!
//! Every tree is a detached mount that is made read-only before it is attached, so nothing is ever writable, not even
//! for a moment. See mount_namespaces(7), pivot_root(2), fsopen(2), open_tree(2), tmpfs(5), proc(5).

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::plan::{Arg, Plan, Register, literal};
use crate::sys::mount::{
    AT_EMPTY_PATH, AT_RECURSIVE, MOUNT_ATTR_IDMAP, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY, MOVE_MOUNT_F_EMPTY_PATH, MS_PRIVATE, MountAttr, OPEN_TREE_CLONE, mount_setattr, open_tree,
};
use crate::sys::program::REPORT_OUTPUT;

/// The device nodes of the guest, each bound from the host's.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
const FSCONFIG_SET_STRING: u64 = 1;
const FSCONFIG_CMD_CREATE: u64 = 6;
/// Attributes of what the guest may write to.
pub(crate) const WRITABLE: u64 = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
const READ_ONLY: u64 = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;

/// Folders of one tmpfs, so that one limit holds for all: where each is made, where it is bound, its mode. The last bind
/// covers the tmpfs itself.
pub(crate) const SHARED: [(&CStr, &str, u64); 3] =
    [(c"tmp/work", "work", 0o755), (c"tmp/shm", "dev/shm", 0o1777), (c"tmp/tmp", "tmp", 0o1777)];
/// What the tmpfs of the inputs' mount points may hold.
pub(crate) const INPUT_BYTES: u64 = 1 << 20;

/// Inodes for the mount points of so many inputs.
pub(crate) fn input_inodes(inputs: usize) -> u64 {
    2 * inputs as u64 + 16
}

/// A tree to bind, read-only.
#[derive(Debug)]
pub(crate) struct Bind {
    tree: Tree,
    source: PathBuf,
    target: PathBuf,
    attributes: u64,
}

/// Whether this process may clone mounts: tried, for a capability in a user namespace says nothing of the mounts around.
pub(crate) fn may_clone() -> bool {
    open_tree(Path::new("/dev/null")).is_ok()
}

/// Where the tree comes from.
#[derive(Debug)]
enum Tree {
    /// Cloned by the supervisor, whose privilege reaches what the guest's user cannot walk to.
    Detached(OwnedFd),
    /// To be cloned by init, which has the caller's own user id and no more.
    Path,
}

impl Bind {
    /// A bind of `source` at `target` (relative to the guest's root). `privileged`: the caller may clone mounts.
    pub(crate) fn new(source: &Path, target: &Path, privileged: bool) -> io::Result<Self> {
        Self::with(source, target, READ_ONLY, privileged)
    }

    fn with(source: &Path, target: &Path, attributes: u64, privileged: bool) -> io::Result<Self> {
        let tree = if privileged {
            let tree = open_tree(source)?;
            mount_setattr(tree.as_fd(), attribute(attributes))?;
            Tree::Detached(tree)
        } else {
            Tree::Path
        };
        let target = target.strip_prefix("/").unwrap_or(target).to_path_buf();
        Ok(Self { tree, source: source.to_path_buf(), target, attributes })
    }

    /// Shows the tree through an idmapped mount.
    pub(crate) fn map_ids(&self, namespace: &OwnedFd) -> io::Result<()> {
        let Tree::Detached(tree) = &self.tree else { return Ok(()) };
        let userns = u64::from(namespace.as_raw_fd().unsigned_abs());
        mount_setattr(tree.as_fd(), MountAttr { set: MOUNT_ATTR_IDMAP, userns, ..MountAttr::default() })
    }

    /// The binds of the device nodes.
    pub(crate) fn devices(privileged: bool) -> io::Result<Vec<Self>> {
        let attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC;
        DEVICES
            .iter()
            .map(|name| Self::with(&Path::new("/dev").join(name), &Path::new("dev").join(name), attributes, privileged))
            .collect()
    }

    /// Its path on the host.
    pub(crate) fn source(&self) -> &Path {
        &self.source
    }

    /// Its path in the guest, relative to the root.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// `MOUNT_ATTR_*` that it has.
    pub(crate) fn attributes(&self) -> u64 {
        self.attributes
    }

    /// Takes the tree that somebody else has cloned.
    pub(crate) fn detach(&mut self, tree: OwnedFd) {
        self.tree = Tree::Detached(tree);
    }

    /// Plans the cloning of the tree at its path.
    pub(crate) fn plan_open(&self, plan: &mut Plan) -> Register {
        let source = self.source.display();
        let flags = OPEN_TREE_CLONE | AT_RECURSIVE | libc::O_CLOEXEC as u64;
        let path = Arg::Text(self.source.as_os_str());
        let tree = plan.open(
            format!("open {source} for the guest"),
            libc::SYS_open_tree,
            &[Arg::Fd(libc::AT_FDCWD), path, Arg::Value(flags)],
        );
        set_attributes(plan, format!("make {source} read-only"), tree, self.attributes);
        tree
    }

    fn plan(&self, plan: &mut Plan, target: &OsStr) {
        let (tree, opened) = match &self.tree {
            Tree::Detached(fd) => (Arg::Fd(fd.as_raw_fd()), None),
            Tree::Path => {
                let tree = self.plan_open(plan);
                (Arg::Register(tree), Some(tree))
            }
        };
        attach(plan, format!("attach {} at /{}", self.source.display(), target.display()), tree, target);
        if let Some(tree) = opened {
            plan.close(tree);
        }
    }
}

/// The guest's file system.
#[derive(Debug)]
pub(crate) struct View {
    /// The root: all mount points, synthetic files and links.
    pub root: Bind,
    /// Binds over the root, parents first.
    pub binds: Vec<Bind>,
    /// What is the run's own.
    pub private: Private,
}

/// What one run has for itself: a tmpfs, its inputs, its output. Made anew for each slot of a pool.
#[derive(Debug, Default)]
pub(crate) struct Private {
    /// Binds over the private tmpfs, whose mount points are made there.
    pub late_binds: Vec<(Bind, bool)>,
    /// Binds under /input, with whether each is a folder.
    pub inputs: Vec<(Bind, bool)>,
    /// Bytes and inodes of the private tmpfs.
    pub disk: (u64, u64),
    /// Bytes of /output, where artifacts are asked for.
    pub output: Option<u64>,
}

impl View {
    /// Everything that must be done while init still has the caller's user id: it may have to walk to the sources.
    pub(crate) fn plan_binds(&self, plan: &mut Plan) {
        let private = libc::MS_REC | libc::MS_PRIVATE;
        let none = Arg::Value(0);
        plan.call("make the mounts private", libc::SYS_mount, &[none, literal(c"/"), none, Arg::Value(private), none]);
        // proc first: the kernel allows it only where another proc is in full view. Kept for later in a register.
        // The new root goes over /proc, the one folder that is surely there.
        self.root.plan(plan, OsStr::new("/proc"));
        plan.call("enter the new root", libc::SYS_chdir, &[literal(c"/proc")]);
        for bind in &self.binds {
            bind.plan(plan, bind.target.as_os_str());
        }
    }

    /// Leaves the host's root for the new one.
    pub(crate) fn plan_pivot(plan: &mut Plan) {
        let here = literal(c".");
        plan.call("pivot into the new root", libc::SYS_pivot_root, &[here, here]);
        let detach = Arg::Value(libc::MNT_DETACH as u64);
        plan.call("leave the host's root", libc::SYS_umount2, &[here, detach]);
        plan.call("enter /work", libc::SYS_chdir, &[literal(c"/work")]);
    }
}

impl Private {
    /// The guest's own tmpfs and inputs; the files that are made in them are made by the guest's user.
    pub(crate) fn plan(&self, plan: &mut Plan) {
        let (bytes, inodes) = self.disk;
        tmpfs(plan, "tmp", bytes, inodes, "0755", WRITABLE);
        for (folder, _, mode) in SHARED {
            plan.call("make a folder of the tmpfs", libc::SYS_mkdir, &[literal(folder), Arg::Value(mode)]);
            // mkdir is subject to the umask.
            plan.call("open a folder of the tmpfs", libc::SYS_chmod, &[literal(folder), Arg::Value(mode)]);
        }
        for (folder, target, _) in SHARED {
            let flags = Arg::Value(OPEN_TREE_CLONE | libc::O_CLOEXEC as u64);
            let tree = plan.open(
                "open a folder of the tmpfs",
                libc::SYS_open_tree,
                &[Arg::Fd(libc::AT_FDCWD), literal(folder), flags],
            );
            attach(plan, format!("attach the tmpfs at /{target}"), Arg::Register(tree), OsStr::new(target));
            plan.close(tree);
        }
        if let Some(bytes) = self.output {
            tmpfs(plan, "output", bytes, inodes, "0755", WRITABLE);
            // Held by the supervisor, the tmpfs outlives the guest and can be read when nobody writes to it any more.
            let flags = Arg::Value((libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) as u64);
            let args = [Arg::Fd(libc::AT_FDCWD), literal(c"output"), flags];
            let folder = plan.open("open /output for the supervisor", libc::SYS_openat, &args);
            plan.send(REPORT_OUTPUT, folder);
            plan.close(folder);
        }
        for (bind, folder) in &self.late_binds {
            mount_point(plan, &bind.target, *folder);
            bind.plan(plan, bind.target.as_os_str());
        }
        if !self.inputs.is_empty() {
            tmpfs(plan, "input", INPUT_BYTES, input_inodes(self.inputs.len()), "0755", WRITABLE);
            for (bind, folder) in &self.inputs {
                mount_point(plan, &bind.target, *folder);
                bind.plan(plan, bind.target.as_os_str());
            }
            let attr = plan.data(&bytes_of(attribute(MOUNT_ATTR_RDONLY)));
            plan.call(
                "make /input read-only",
                libc::SYS_mount_setattr,
                &[
                    Arg::Fd(libc::AT_FDCWD),
                    literal(c"input"),
                    Arg::Value(0),
                    Arg::Data(attr),
                    Arg::Value(size_of::<MountAttr>() as u64),
                ],
            );
        }
    }

    /// Whether a zygote's can be where its init, of whose mounts those of slots are copies, does not see it: those over the tmpfs
    /// are copied from there.
    pub(crate) fn may_be_apart(&self) -> bool {
        self.late_binds.is_empty()
    }

    /// The same by a zygote, in a mount namespace of its own, where [`Private::may_be_apart`]: slots need not unmount it.
    pub(crate) fn plan_apart(&self, plan: &mut Plan) {
        let namespace = [Arg::Value(libc::CLONE_NEWNS as u64)];
        plan.call("make the zygote's mount namespace", libc::SYS_unshare, &namespace);
        plan.call("enter the root", libc::SYS_chdir, &[literal(c"/")]);
        self.plan(plan);
        plan.call("enter /work", libc::SYS_chdir, &[literal(c"/work")]);
    }

    /// The same in place of a zygote's, whose tree the slot's init has a copy of. `late` are the targets of the zygote's
    /// late binds, with whether each is a folder.
    pub(crate) fn plan_over(&self, plan: &mut Plan, late: &[(PathBuf, bool)]) {
        plan.call("enter the root", libc::SYS_chdir, &[literal(c"/")]);
        // While the zygote's /proc is in view: see plan_proc.
        let proc = plan_proc(plan);
        let flags = OPEN_TREE_CLONE | AT_RECURSIVE | libc::O_CLOEXEC as u64;
        let copies: Vec<Register> = late
            .iter()
            .map(|(target, _)| {
                let step = format!("copy the mount /{}", target.display());
                let args = [Arg::Fd(libc::AT_FDCWD), Arg::Text(target.as_os_str()), Arg::Value(flags)];
                plan.open(step, libc::SYS_open_tree, &args)
            })
            .collect();
        let detach = Arg::Value(libc::MNT_DETACH as u64);
        plan.call("detach the zygote's /proc", libc::SYS_umount2, &[literal(c"proc"), detach]);
        if !late.is_empty() {
            // As it could not be apart. Each takes the kernel as long as most of a slot's other mounts together.
            for (_, target, _) in SHARED {
                let step = format!("detach the zygote's /{target}");
                plan.call(step, libc::SYS_umount2, &[Arg::Text(OsStr::new(target)), detach]);
                if target == "tmp" {
                    // The folder of the tmpfs covers the tmpfs itself.
                    plan.call("detach the zygote's tmpfs", libc::SYS_umount2, &[literal(c"tmp"), detach]);
                }
            }
        }
        self.plan(plan);
        for ((target, folder), copy) in late.iter().zip(copies) {
            mount_point(plan, target, *folder);
            attach(plan, format!("attach the mount /{}", target.display()), Arg::Register(copy), target.as_os_str());
            plan.close(copy);
        }
        attach_proc(plan, proc);
    }

    /// Where the late binds are, with whether each is a folder.
    pub(crate) fn late_targets(&self) -> Vec<(PathBuf, bool)> {
        self.late_binds.iter().map(|(bind, folder)| (bind.target.clone(), *folder)).collect()
    }
}

/// The guest's own /proc: `subset=pid` leaves nothing in it but its own processes, so nothing needs a mask.
///
/// Made before anything covers the host's: the kernel allows a new proc only where one is in full view.
pub(crate) fn plan_proc(plan: &mut Plan) -> Register {
    let context = plan.open("open a proc file system", libc::SYS_fsopen, &[literal(c"proc"), Arg::Value(1)]);
    configure(plan, "limit /proc to processes", context, "subset", "pid");
    create(plan, "make the guest's /proc", context, WRITABLE)
}

/// Attaches the /proc that [`plan_proc`] made.
pub(crate) fn attach_proc(plan: &mut Plan, proc: Register) {
    attach(plan, "attach /proc".to_owned(), Arg::Register(proc), OsStr::new("proc"));
    plan.close(proc);
}

/// Mounts a tmpfs of at most `bytes` and `inodes` at `target`.
pub(crate) fn tmpfs(plan: &mut Plan, target: &'static str, bytes: u64, inodes: u64, mode: &str, attributes: u64) {
    let context = plan.open("open a tmpfs", libc::SYS_fsopen, &[literal(c"tmpfs"), Arg::Value(1)]);
    configure(plan, "limit the tmpfs's size", context, "size", &bytes.to_string());
    configure(plan, "limit the tmpfs's inodes", context, "nr_inodes", &inodes.to_string());
    configure(plan, "set the tmpfs's mode", context, "mode", mode);
    let mount = create(plan, "make the tmpfs", context, attributes);
    attach(plan, format!("attach the tmpfs at /{target}"), Arg::Register(mount), OsStr::new(target));
    plan.close(mount);
}

fn configure(plan: &mut Plan, step: &'static str, context: Register, key: &str, value: &str) {
    let (key, value) = (Arg::Text(OsStr::new(key)), Arg::Text(OsStr::new(value)));
    let command = Arg::Value(FSCONFIG_SET_STRING);
    plan.call(step, libc::SYS_fsconfig, &[Arg::Register(context), command, key, value, Arg::Value(0)]);
}

fn create(plan: &mut Plan, step: &'static str, context: Register, attributes: u64) -> Register {
    let none = Arg::Value(0);
    let command = Arg::Value(FSCONFIG_CMD_CREATE);
    plan.call(step, libc::SYS_fsconfig, &[Arg::Register(context), command, none, none, none]);
    let flags = Arg::Value(1); // FSMOUNT_CLOEXEC
    let mount = plan.open(step, libc::SYS_fsmount, &[Arg::Register(context), flags, Arg::Value(attributes)]);
    plan.close(context);
    mount
}

fn attach(plan: &mut Plan, step: String, tree: Arg<'_>, target: &OsStr) {
    plan.call(
        step,
        libc::SYS_move_mount,
        &[tree, literal(c""), Arg::Fd(libc::AT_FDCWD), Arg::Text(target), Arg::Value(MOVE_MOUNT_F_EMPTY_PATH)],
    );
}

fn set_attributes(plan: &mut Plan, step: String, tree: Register, attributes: u64) {
    let attr = plan.data(&bytes_of(attribute(attributes)));
    plan.call(
        step,
        libc::SYS_mount_setattr,
        &[
            Arg::Register(tree),
            literal(c""),
            Arg::Value(AT_EMPTY_PATH | AT_RECURSIVE),
            Arg::Data(attr),
            Arg::Value(size_of::<MountAttr>() as u64),
        ],
    );
}

/// Makes `target` and what leads to it, as a folder or an empty file.
fn mount_point(plan: &mut Plan, target: &Path, folder: bool) {
    let mut ancestors: Vec<&Path> = target.ancestors().skip(1).filter(|path| path.components().count() > 1).collect();
    ancestors.reverse();
    let step = || format!("make the mount point /{}", target.display());
    for ancestor in ancestors {
        let path = Arg::Text(ancestor.as_os_str());
        plan.call_tolerating(libc::EEXIST, step(), libc::SYS_mkdir, &[path, Arg::Value(0o755)]);
    }
    let path = Arg::Text(target.as_os_str());
    if folder {
        plan.call_tolerating(libc::EEXIST, step(), libc::SYS_mkdir, &[path, Arg::Value(0o755)]);
    } else {
        let mode = Arg::Value(u64::from(libc::S_IFREG | 0o644));
        plan.call_tolerating(libc::EEXIST, step(), libc::SYS_mknod, &[path, mode, Arg::Value(0)]);
    }
}

fn attribute(set: u64) -> MountAttr {
    MountAttr { set, propagation: MS_PRIVATE, ..MountAttr::default() }
}

fn bytes_of(attr: MountAttr) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip([attr.set, attr.clear, attr.propagation, attr.userns]) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}
