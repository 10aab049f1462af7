//! A host that refuses something, and what holds of every one: a run works with everything armed, or it is `unavailable`
//! and doctor says the same; nothing of the script ran then, and nothing is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use nsbox::outcome::{Ended, Enforced, Layer, LayerStatus};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use serde_json::Value;

use crate::engine::{BASE, Engine};
use crate::harness::{Ran, children, comm, feed, judge};
use crate::scope::{Delegation, Scope};
use crate::user::User;

/// An interpreter that each user may read.
pub const PYTHON: &str = "/usr/bin/python3";
/// Puts the filter in its first argument around itself, with a listener if the second says so, and executes the others.
const LOADER: &str = "
import ctypes, os, struct, sys
filter = open(sys.argv[1], 'rb').read()
text = ctypes.create_string_buffer(filter)
program = struct.pack('HxxxxxxP', len(filter) // 8, ctypes.addressof(text))
libc, zero = ctypes.CDLL(None, use_errno=True), ctypes.c_ulong(0)
assert libc.prctl(38, ctypes.c_ulong(1), zero, zero, zero) == 0, 'PR_SET_NO_NEW_PRIVS'
listener = libc.syscall(317, 1, 8 if sys.argv[2] == 'listener' else 0, program)
if listener < 0:
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
if listener > 0:
    os.set_inheritable(listener, True)
os.execvp(sys.argv[3], sys.argv[3:])
";
/// Tells by a file on the host, if ever a line of it ran outside of a sandbox.
const SCRIPT: &str = "
import os
try:
    open(os.environ.get('HOME', '') + '/ran', 'x')
except OSError:
    pass
print('ran')
metrics = {'two': 1 + 1}
";

/// Where a program is started: by whom, through which words, with which calls refused.
pub struct Host {
    user: Arc<User>,
    /// What root's cgroups are made in; an ordinary user makes none.
    cgroup: Option<Arc<Cgroup>>,
    /// The words before those that become the user; they execute the words after them.
    outer: Vec<String>,
    /// The words after them.
    inner: Vec<String>,
    /// The interpreter of its runs.
    python: String,
}

/// Everyone who can be had here: root, where the tests run as root, and an ordinary user.
pub fn everyone() -> Vec<Host> {
    [User::root(), User::find()].into_iter().flatten().map(Host::of).collect()
}

impl Host {
    /// This machine as it is, for that user.
    pub fn of(user: User) -> Self {
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let cgroup = (user.id == 0).then(|| Arc::new(Cgroup::make()));
        Self::by(Arc::new(user), cgroup)
    }

    /// The same user's machine without refusals.
    pub fn plain(&self) -> Self {
        Self::by(Arc::clone(&self.user), self.cgroup.clone())
    }

    fn by(user: Arc<User>, cgroup: Option<Arc<Cgroup>>) -> Self {
        Self { user, cgroup, outer: Vec::new(), inner: Vec::new(), python: PYTHON.to_owned() }
    }

    /// Whether the user is root.
    pub fn is_roots(&self) -> bool {
        self.user.id == 0
    }

    /// A place in the user's home.
    pub fn path(&self, name: &str) -> PathBuf {
        self.user.path(name)
    }

    /// Executes a line of sh first, as who runs the tests; `$@` are the words to go on with.
    pub fn prepared_by(mut self, words: &[&str], line: &str) -> Self {
        self.outer = sh(words, line);
        self
    }

    /// The same, as the user.
    pub fn entered_by(mut self, words: &[&str], line: &str) -> Self {
        self.inner = sh(words, line);
        self
    }

    /// With another interpreter.
    pub fn with_python(mut self, python: &Path) -> Self {
        self.python = python.display().to_string();
        self
    }

    /// Inside a throw-away container of the base image, with these flags of `docker run`.
    pub fn inside(mut self, engine: &Engine, flags: &[&str]) -> Self {
        let socket = format!("unix://{}", engine.socket().display());
        let (home, store) = (self.path("").display().to_string(), self.path("store").display().to_string());
        let words = ["docker", "--host", &socket, "run", "--rm", "--interactive", "--network=none"];
        let volume = format!("{home}:{home}");
        let variables = [format!("HOME={home}"), format!("NSBOX_STORE={store}"), "NSBOX_EVENT_LOG=none".to_owned()];
        self.outer = words.map(str::to_owned).to_vec();
        self.outer.extend(["--volume".to_owned(), volume]);
        self.outer.extend(variables.into_iter().flat_map(|variable| ["--env".to_owned(), variable]));
        self.outer.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self.outer.push(BASE.to_owned());
        self
    }

    /// A filter around the user's processes refuses these calls.
    pub fn refusing(mut self, calls: &[libc::c_long], errno: i32) -> Self {
        let words = self.filter("plain", calls, errno);
        self.inner.splice(0..0, words);
        self
    }

    /// A supervisor around the user's processes listens to a filter of theirs.
    pub fn listened_to(mut self) -> Self {
        let words = self.listener();
        self.inner.splice(0..0, words);
        self
    }

    /// The words that put a filter with a listener around the words after them.
    pub fn listener(&self) -> Vec<String> {
        self.filter("listener", &[libc::SYS_acct], libc::EPERM)
    }

    fn filter(&self, kind: &str, calls: &[libc::c_long], errno: i32) -> Vec<String> {
        let file = self.path(&format!("{kind}-filter"));
        fs::write(&file, filter(calls, errno)).unwrap();
        [PYTHON, "-c", LOADER, &file.display().to_string(), kind].map(str::to_owned).to_vec()
    }

    /// Runs a program there.
    pub fn output(&self, words: &[&str], input: &[u8]) -> Output {
        let program = words.iter().map(|word| (*word).to_owned());
        let cgroup = self.cgroup.iter().flat_map(|cgroup| cgroup.enter());
        let whole: Vec<String> = cgroup
            .chain(self.outer.iter().cloned())
            .chain(self.user.become_it())
            .chain(self.inner.iter().cloned())
            .chain(program)
            .collect();
        feed(self.user.command(&whole), input)
    }

    /// Fails unless a program fails there, and says so; and succeeds without the refusals.
    #[track_caller]
    pub fn refuses(&self, words: &[&str], says: &str) {
        let output = self.output(words, b"");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(says), "{words:?} says {said:?}: {output:?}");
        let output = self.plain().output(words, b"");
        assert!(output.status.success(), "without the refusal, {words:?}: {output:?}");
    }

    /// A run there.
    #[track_caller]
    pub fn run(&self, flags: &[&str]) -> Ran {
        self.script(flags, SCRIPT)
    }

    /// A run of another script.
    #[track_caller]
    pub fn script(&self, flags: &[&str], source: &str) -> Ran {
        let nsbox = self.path("nsbox").display().to_string();
        let degrade: &[&str] = if self.is_roots() { &[] } else { &["--allow-degraded"] };
        let words =
            [&[nsbox.as_str(), "run", "--json", "--no-check", "--python", &self.python], degrade, flags, &["-"]]
                .concat();
        judge(&self.output(&words, source.as_bytes()))
    }

    /// What doctor says there.
    #[track_caller]
    pub fn doctor(&self) -> Value {
        let nsbox = self.path("nsbox").display().to_string();
        let words = [nsbox.as_str(), "doctor", "--json", "--python", &self.python];
        let output = self.output(&words, b"");
        let report: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let allowed = report["run"] == "allowed";
        assert_eq!(output.status.code(), Some(i32::from(!allowed)), "{report:#}");
        report
    }

    /// A layer of what doctor says there.
    #[track_caller]
    pub fn layer(&self, name: &str) -> Value {
        layer(&self.doctor(), name)
    }

    /// A run there works, with everything armed that the user can have without a refusal; and doctor says so.
    #[track_caller]
    pub fn works(&self) -> Ran {
        let ran = self.works_with(&[]);
        assert_eq!(self.doctor()["run"], if self.is_roots() { "allowed" } else { "degraded" });
        self.assert_nothing_left();
        ran
    }

    /// The same, with flags that doctor does not know.
    #[track_caller]
    pub fn works_with(&self, flags: &[&str]) -> Ran {
        let ran = self.run(flags).expect("ok");
        assert_eq!((ran.stdout().as_str(), &ran.json["metrics"]["two"]), ("ran\n", &serde_json::json!(2)));
        self.assert_armed(&ran.outcome.enforced);
        assert_eq!(ran.outcome.degraded, !self.is_roots(), "{:#}", ran.json["enforced"]);
        ran
    }

    /// A run there is `unavailable` for that cause, with that knob; doctor names both, in that layer; and the same run works
    /// without the refusals.
    #[track_caller]
    pub fn is_unavailable(&self, layer: &str, cause: &str, knob: &str) {
        // Twice, for the store is new to the first alone.
        for _ in 0..2 {
            let ran = self.run(&[]).expect("unavailable").says(cause).says(knob);
            assert_eq!((ran.status, ran.stdout().as_str(), ran.outcome.ended), (125, "", Ended::NotStarted));
            assert_eq!(ran.outcome.enforced, Enforced::default(), "nothing is claimed of what never was");
            self.assert_nothing_left();
        }
        let report = self.doctor();
        self.assert_nothing_left();
        assert_eq!(report["run"], "refused", "{report:#}");
        let summary = report["summary"].as_str().unwrap();
        assert!(summary.contains(cause) && summary.contains(knob), "{summary}");
        let found = self::layer(&report, layer);
        assert_eq!(found["status"], "refused", "{found:#}");
        assert!(found["found"].as_str().unwrap().contains(cause), "{found:#}");
        assert!(found["knobs"].to_string().contains(knob) || layer == "run", "{found:#}");
        self.plain().works();
    }

    /// All walls are there; an ordinary user lacks the cgroup alone.
    #[track_caller]
    fn assert_armed(&self, enforced: &Enforced) {
        let walls = [
            &enforced.namespaces,
            &enforced.user_map,
            &enforced.root,
            &enforced.capabilities,
            &enforced.no_new_privs,
            &enforced.seccomp,
            &enforced.rlimits,
            &enforced.memfd_noexec,
        ];
        let limits = [&enforced.cgroup.memory, &enforced.cgroup.pids, &enforced.cgroup.cpu];
        let limits: &[&Layer] = if self.is_roots() { &limits } else { &[] };
        for layer in walls.into_iter().chain(limits.iter().copied()) {
            assert_eq!(layer.status, LayerStatus::Applied, "{enforced:#?}");
        }
    }

    /// No process, no cgroup, no mount, no file of a script's, and nothing half-made in the store.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        // This process adopts whatever outlives its parent: an init of a sandbox would be its child.
        let orphans: Vec<u32> =
            children(std::process::id()).into_iter().filter(|pid| comm(*pid) == "nsbox-init").collect();
        assert!(orphans.is_empty(), "{orphans:?}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let home = self.path("").display().to_string();
        assert!(!mounts.contains(&home), "{mounts}");
        let left: Vec<PathBuf> = self.cgroup.iter().flat_map(|cgroup| cgroup.left()).collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(!self.path("ran").exists(), "a line of the script ran outside");
        for shelf in fs::read_dir(self.path("store")).into_iter().flatten().flatten() {
            for entry in fs::read_dir(shelf.path()).into_iter().flatten().flatten() {
                let name = entry.file_name().into_string().unwrap();
                assert!(name == ".lock" || !name.starts_with('.'), "{} is unfinished", entry.path().display());
            }
        }
    }
}

/// A cgroup of the test's own, in which nsbox, as root, makes those of its runs, and nobody else does.
struct Cgroup {
    /// Where the command is, which has runs beside it; version 2 alone. Dropped before what it is in.
    leaf: Option<Scope>,
    made: Delegation,
}

impl Cgroup {
    fn make() -> Self {
        let made = Delegation::to(0).unwrap();
        let leaf = match &made {
            Delegation::V1(_) => None,
            Delegation::V2(scope) => {
                scope.write("cgroup.subtree_control", "+memory +pids +cpu");
                Some(Scope::under(scope.path()).unwrap())
            }
        };
        Self { leaf, made }
    }

    /// Words that execute the words after them in it. The shell stays, or nsbox would take the leaf for its own.
    fn enter(&self) -> Vec<String> {
        let folders = self.leaf.as_ref().map_or_else(|| self.made.folders(), |leaf| vec![leaf.path().to_path_buf()]);
        let enter = folders.iter().map(|folder| format!("echo $$ >{}/cgroup.procs; ", folder.display()));
        sh(&[], &(enter.collect::<String>() + "\"$@\"; exit"))
    }

    /// The cgroups in it of runs that are over.
    fn left(&self) -> Vec<PathBuf> {
        let folders = self.made.folders();
        let entries = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap().flatten());
        let leaf = self.leaf.as_ref().map(Scope::path);
        entries.map(|entry| entry.path()).filter(|path| path.is_dir() && Some(path.as_path()) != leaf).collect()
    }
}

fn layer(report: &Value, name: &str) -> Value {
    report["layers"].as_array().unwrap().iter().find(|layer| layer["layer"] == name).unwrap().clone()
}

/// Words that execute a line of sh, in which `$@` are the words after them. `words` come before the shell.
fn sh(words: &[&str], line: &str) -> Vec<String> {
    words.iter().copied().chain(["sh", "-ec", line, "sh"]).map(str::to_owned).collect()
}

/// A filter that answers these calls with that errno, as `struct sock_filter[]`.
fn filter(calls: &[libc::c_long], errno: i32) -> Vec<u8> {
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    let action = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, TargetArch::x86_64).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    let bytes = program.iter().map(|line| {
        let [code, k] = [line.code.to_ne_bytes().to_vec(), line.k.to_ne_bytes().to_vec()];
        [code, vec![line.jt, line.jf], k].concat()
    });
    bytes.flatten().collect()
}
