//! A user with a home, a copy of the command, and an interpreter that it may read: an ordinary one, or root. Of a suite
//! that includes `harness/mod.rs` beside it.
#![allow(dead_code, reason = "each suite uses a part of it")]

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
        let id = if is_root() { NOBODY } else { nix::unistd::geteuid().as_raw() };
        Some(Self::of(id))
    }

    /// Root; `None` where the tests run as somebody else.
    pub fn root() -> Option<Self> {
        is_root().then(|| Self::of(0))
    }

    /// An ordinary user who has no other process; `None` where the tests cannot choose who they are.
    pub fn alone() -> Option<Self> {
        is_root().then(|| Self::of(0x6000_0000 + std::process::id()))
    }

    fn of(id: u32) -> Self {
        // Not under target: its folders may be closed to others.
        let home = tempfile::tempdir_in("/tmp").unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let (built, own) = (env!("CARGO_BIN_EXE_nsbox"), home.path().join("nsbox"));
        // Tens of megabytes, where it is not on the same file system.
        fs::hard_link(built, &own).or_else(|_| fs::copy(built, &own).map(drop)).unwrap();
        chown(home.path(), Some(id), Some(id)).unwrap();
        Self { home, id }
    }

    /// A place of its own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// The words that become this user and execute the words after them.
    pub fn become_it(&self) -> Vec<String> {
        if !is_root() || self.id == 0 {
            return Vec::new();
        }
        let ids = [format!("--reuid={}", self.id), format!("--regid={}", self.id)];
        let rest = ["--clear-groups", "--inh-caps=-all"].map(str::to_owned);
        ["setpriv".to_owned()].into_iter().chain(ids).chain(rest).collect()
    }

    /// A command in this user's environment.
    pub fn command(&self, words: &[String]) -> Command {
        let clean = nsbox::<&str>([]);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env("HOME", self.home.path()).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.current_dir("/");
        for (name, value) in clean.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("NSBOX_STORE", self.path("store")).stdin(Stdio::null());
        command
    }

    /// `nsbox ARGS`, by this user, whose processes are put into `cgroups` first.
    pub fn nsbox(&self, cgroups: &[PathBuf], args: &[&str]) -> Command {
        let mut words = vec!["/bin/sh".to_owned(), "-c".to_owned()];
        let enter = cgroups.iter().map(|folder| format!("echo $$ > {}/cgroup.procs && ", folder.display()));
        words.push(enter.collect::<String>() + "exec \"$@\"");
        words.push("sh".to_owned());
        words.extend(self.become_it());
        words.push(self.path("nsbox").display().to_string());
        words.extend(args.iter().map(|arg| (*arg).to_owned()));
        self.command(&words)
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
