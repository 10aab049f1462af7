//! An ordinary user with a home, a copy of the command, and an interpreter that it may read.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::harness::{Ran, is_root, nsbox, outcome_of, require};

/// Owns nothing.
pub const NOBODY: u32 = 65534;

/// The user's own folder, with all that is in it.
pub struct User {
    home: TempDir,
    /// Its user id.
    pub id: u32,
}

impl User {
    /// `None` where this machine has no such user, which is said.
    pub fn find() -> Option<Self> {
        let found = require(Path::new("/usr/bin/python3").exists(), "/usr/bin/python3, which every user may read")
            && require(
                user_namespaces(),
                "user namespace for ordinary users (sysctl kernel.unprivileged_userns_clone=1)",
            );
        if !found {
            return None;
        }
        // Not under target: its folders may be closed to others.
        let home = tempfile::tempdir_in("/tmp").unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_nsbox"), home.path().join("nsbox")).unwrap();
        let mut id = nix::unistd::geteuid().as_raw();
        if is_root() {
            id = NOBODY;
            chown(home.path(), Some(id), Some(id)).unwrap();
        }
        Some(Self { home, id })
    }

    /// A place of its own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// `nsbox ARGS`, by this user, whose processes are put into `cgroups` first.
    pub fn nsbox(&self, cgroups: &[PathBuf], args: &[&str]) -> Command {
        let mut words = vec!["/bin/sh".to_owned(), "-c".to_owned()];
        let enter = cgroups.iter().map(|folder| format!("echo $$ > {}/cgroup.procs && ", folder.display()));
        words.push(enter.collect::<String>() + "exec \"$@\"");
        words.push("sh".to_owned());
        if is_root() {
            let ids = [format!("--reuid={}", self.id), format!("--regid={}", self.id)];
            words.push("setpriv".to_owned());
            words.extend(ids);
            words.extend(["--clear-groups", "--inh-caps=-all"].map(str::to_owned));
        }
        words.push(self.path("nsbox").display().to_string());
        words.extend(args.iter().map(|arg| (*arg).to_owned()));
        let clean = nsbox::<&str>([]);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env("HOME", self.home.path()).env("PATH", "/usr/bin:/bin").current_dir("/");
        for (name, value) in clean.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("NSBOX_STORE", self.path("store")).stdin(Stdio::null());
        command
    }

    /// Runs a script that the check does not see.
    #[track_caller]
    pub fn run(&self, cgroups: &[PathBuf], flags: &[&str], source: &str) -> Ran {
        let args = [&["run", "--json", "--no-check"], flags, &["-"]].concat();
        outcome_of(self.nsbox(cgroups, &args), source.as_bytes())
    }
}

/// Whether an ordinary user may make one.
fn user_namespaces() -> bool {
    let mut command = Command::new(if is_root() { "setpriv" } else { "unshare" });
    if is_root() {
        command.args([
            &format!("--reuid={NOBODY}"),
            &format!("--regid={NOBODY}"),
            "--clear-groups",
            "--inh-caps=-all",
            "unshare",
        ]);
    }
    command
        .args(["--user", "--map-root-user", "true"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
