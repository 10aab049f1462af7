//! A Docker engine of the tests' own, and an image for it: started by the first test that asks, ended by its pid with the
//! last one, with nothing of it left. Of a suite that includes `harness/mod.rs` beside it.
//!
//! It lives in a mount namespace of its own, so that its mounts, its images (in memory: to remove them from a disk takes
//! longer than a test) and what it puts into /run end with it. It makes no network device and no rule of a firewall. Its
//! cgroups are under a parent of its own name.
#![allow(dead_code, reason = "each suite uses a part of it")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::harness::{is_root, require, skipped};

/// The name of the base image in every engine: Debian's smallest variant, with its Python.
pub const BASE: &str = "nsbox-test-base";
/// How long an engine may take to answer, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts the engine in a mount namespace, and ends it when its own standard input ends: when the test drops the engine,
/// and when the test's process dies in whichever way. `$1` is the engine's folder, the others its command line. Where there
/// is a file `again` in that folder, an engine that has ended is started once more.
const KEEPER: &str = r#"
folder=$1; shift
private='
    for place in /run "$0/data" /etc/docker; do [ ! -d "$place" ] || mount -t tmpfs tmpfs "$place"; done
    ended=
    trap "ended=1; kill \$!" TERM
    while :; do
        "$@" &
        # A signal ends a wait, but not what is waited for.
        until wait $!; do kill -0 $! 2>/dev/null || break; done
        [ -z "$ended" ] && rm "$0/again" 2>/dev/null || exit
        # Its containerd dies with it, a little later, and would be taken for one that can be used.
        while kill -0 "$(cat "$0/exec/containerd/containerd.pid")" 2>/dev/null; do sleep 0.05; done
    done'
unshare --mount --propagation private sh -c "$private" "$folder" "$@" >"$folder/log" 2>&1 &
engine=$!
while read -r _; do :; done
kill "$engine" 2>/dev/null
wait "$engine"
# What it leaves where it was killed itself: the processes of its containers, and their shims.
find /sys/fs/cgroup -path "*/$(basename "$folder")*" -name cgroup.procs -exec cat {} + | xargs --no-run-if-empty kill -9
for comm in $(grep --files-with-matches containerd-shim /proc/[0-9]*/comm 2>/dev/null); do
    shim=$(basename "$(dirname "$comm")")
    if grep --quiet --text "$folder" "/proc/$shim/cmdline" 2>/dev/null; then kill -9 "$shim"; fi
done
find /sys/fs/cgroup -depth -type d -path "*/$(basename "$folder")*" -exec rmdir {} +
rm -rf "$folder"
"#;

/// A running engine; ended when dropped.
pub struct Engine {
    /// Socket, data, log. The keeper removes it.
    folder: PathBuf,
    keeper: Child,
    base: OnceLock<bool>,
}

impl Engine {
    /// The engine of this process's tests. `None` where there can be none, which is said.
    pub fn shared() -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<Engine>> = Mutex::new(Weak::new());
        if !is_root() {
            skipped("only root can start a Docker engine");
            return None;
        }
        let mut shared = SHARED.lock().unwrap();
        if let Some(engine) = shared.upgrade() {
            return Some(engine);
        }
        let found = ["dockerd", "docker", "unshare"].into_iter().all(|name| require(on_path(name), name));
        if !found {
            return None;
        }
        let engine = Arc::new(Self::start());
        *shared = Arc::downgrade(&engine);
        Some(engine)
    }

    /// An engine of a test's own, to be ended by it.
    pub fn start() -> Self {
        // In /tmp, for the path of a socket has 108 bytes.
        let folder = TempDir::with_prefix_in("nsbox-engine-", "/tmp").unwrap().keep();
        let file = |name: &str| folder.join(name).display().to_string();
        fs::write(folder.join("config.json"), "{}").unwrap();
        fs::create_dir(folder.join("data")).unwrap();
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER, "sh", &folder.display().to_string()]);
        keeper.args([
            "dockerd",
            "--host",
            &format!("unix://{}", file("socket")),
            "--config-file",
            &file("config.json"),
        ]);
        keeper.args(["--data-root", &file("data"), "--exec-root", &file("exec"), "--pidfile", &file("pid")]);
        let parent = format!("/{}", folder.file_name().unwrap().display());
        keeper.args(["--cgroup-parent", &parent, "--exec-opt", "native.cgroupdriver=cgroupfs"]);
        keeper.args(["--bridge=none", "--iptables=false", "--ip-forward=false"]);
        // A group of its own: an interrupt at the terminal is for the tests alone, and their end is the engine's.
        let keeper = keeper.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0).spawn().unwrap();
        let engine = Self { folder, keeper, base: OnceLock::new() };
        engine.until_it_answers();
        engine
    }

    #[track_caller]
    fn until_it_answers(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.docker(["version"]).output().unwrap().status.success() {
            assert!(Instant::now() < deadline, "dockerd does not answer: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The pid of its daemon.
    pub fn daemon(&self) -> Pid {
        let pid = fs::read_to_string(self.folder.join("pid")).unwrap();
        Pid::from_raw(pid.trim().parse().unwrap())
    }

    /// Kills its daemon, with the signal that nothing can be done about.
    pub fn kill(&self) {
        kill(self.daemon(), Signal::SIGKILL).unwrap();
    }

    /// The same; and starts it once more, on what it had. Returns once it answers.
    pub fn kill_and_restart(&self) {
        fs::write(self.folder.join("again"), "").unwrap();
        self.kill();
        let deadline = Instant::now() + PATIENCE;
        // It is taken away once the death is noticed.
        while self.folder.join("again").exists() {
            assert!(Instant::now() < deadline, "dockerd does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        self.until_it_answers();
    }

    /// The cgroups of its containers.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let own = self.folder.file_name().unwrap();
        let below = |folder: &Path| -> Vec<PathBuf> {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
            entries.filter(|path| path.is_dir() && !path.is_symlink()).collect()
        };
        let mut pending = vec![PathBuf::from("/sys/fs/cgroup")];
        let mut found = Vec::new();
        while let Some(folder) = pending.pop() {
            if folder.parent().and_then(Path::file_name) == Some(own) {
                found.push(folder.clone());
            }
            pending.extend(below(&folder));
        }
        found
    }

    /// The processes of its containers, by name. One that runc has not made a container's yet is called `runc:[2:INIT]`.
    pub fn processes(&self) -> Vec<String> {
        let lists =
            self.cgroups().into_iter().filter_map(|folder| fs::read_to_string(folder.join("cgroup.procs")).ok());
        // Each hierarchy lists them.
        let pids: BTreeSet<String> =
            lists.flat_map(|list| list.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
        let names = pids.iter().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok());
        names.map(|name| name.trim_end().to_owned()).collect()
    }

    /// The processes that hold its containers.
    pub fn shims(&self) -> usize {
        let own = self.folder.to_str().unwrap();
        let read = |process: &Path, name: &str| fs::read(process.join(name)).unwrap_or_default();
        let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        let shims = processes.filter(|process| read(process, "comm").starts_with(b"containerd-shim"));
        shims.filter(|shim| String::from_utf8_lossy(&read(shim, "cmdline")).contains(own)).count()
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// What it said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// `docker ARGS` of this engine.
    pub fn docker<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", format!("unix://{}", self.socket().display())).env("DOCKER_CONFIG", &self.folder);
        command.args(args).stdin(Stdio::null());
        command
    }

    /// Imports a tarball of a root file system as the image `name`.
    #[track_caller]
    pub fn import(&self, tarball: &Path, name: &str) {
        let output = self.docker(["import", &tarball.display().to_string(), name]).output().unwrap();
        assert!(output.status.success(), "docker import: {output:?}");
    }

    /// Imports the base image, once; `false` where there is none, which is said.
    #[must_use]
    pub fn has_base(&self) -> bool {
        *self.base.get_or_init(|| {
            let tarball = base_tarball();
            if let Some(tarball) = &tarball {
                self.import(tarball, BASE);
            }
            tarball.is_some()
        })
    }

    /// Runs a command in a throw-away container of the base image, with these flags of `docker run`.
    pub fn run(&self, flags: &[&str], command: &[&str]) -> Output {
        let args = [&["run", "--rm", "--network=none"], flags, &[BASE], command].concat();
        self.docker(args).output().unwrap()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        self.keeper.wait().unwrap();
        assert!(!self.folder.exists() || std::thread::panicking(), "{} is left", self.folder.display());
    }
}

/// A tarball of Debian's (or Ubuntu's) smallest variant with its Python, of this machine's own release, so that the
/// machine's programs run in it. Made once and kept under `target`; `None` where it cannot be made, which is said.
pub fn base_tarball() -> Option<PathBuf> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    if !require(suite.is_some() && on_path("mmdebstrap"), "mmdebstrap, on Debian or Ubuntu") {
        return None;
    }
    let suite = suite?;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let tarball = folder.join(format!("base-{suite}.tar"));
    // One suite makes it, the others wait.
    let lock = File::create(folder.join("base.lock")).unwrap();
    lock.lock().unwrap();
    if !tarball.exists() {
        let aside = folder.join("base-unfinished.tar");
        let mut command = Command::new("mmdebstrap");
        command.args(["--quiet", "--variant=minbase", "--include=python3"]);
        for docs in ["doc", "man", "locale"] {
            command.arg(format!("--dpkgopt=path-exclude=/usr/share/{docs}/*"));
        }
        let output = command.arg(suite).arg(&aside).stdin(Stdio::null()).output().unwrap();
        let made = output.status.success();
        if !require(made, &format!("way to make a base image: {}", String::from_utf8_lossy(&output.stderr))) {
            return None;
        }
        fs::rename(aside, &tarball).unwrap();
    }
    Some(tarball)
}

fn on_path(program: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|folder| folder.join(program).is_file())
}
