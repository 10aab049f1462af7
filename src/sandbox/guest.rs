//! The guest's process: its command line, environment, descriptors, and the runner that it executes.
//!
//! The runner is the Python under `rootfs/guest`. It is kept in the store, one folder per content, and compiled once for
//! each interpreter version, inside a sandbox.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::lane;
use super::plan::{Arg, Plan, literal};
use super::rlimits::{self, Rlimit};
use crate::config::{Config, Slots};
use crate::image::Interpreter;

/// Where the guest sees the runner.
const RUNNER_FOLDER: &str = "/run/nsbox/guest";
/// The runner's files.
const FILES: [(&str, &str); 7] = [
    ("runner", include_str!("../../rootfs/guest/runner.py")),
    ("collect", include_str!("../../rootfs/guest/collect.py")),
    ("relocate", include_str!("../../rootfs/guest/relocate.py")),
    ("inputs", include_str!("../../rootfs/guest/inputs.py")),
    ("memory", include_str!("../../rootfs/guest/memory.py")),
    ("network_hint", include_str!("../../rootfs/guest/network_hint.py")),
    ("zygote", include_str!("../../rootfs/guest/zygote.py")),
];
/// The pid 1 of a container.
pub(crate) const CONTAINER: &str = include_str!("../../rootfs/guest/container.py");
/// The zygote's extension module, compiled by `build.rs`.
const MODULE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/nsbox-module.so"));
/// The script that compiles them, run inside a sandbox; its `result` maps a name to the content of its `.pyc`.
pub(crate) const COMPILE: &str = include_str!("../../rootfs/guest/compile.py");

/// The shortest slice of a CPU's time that the kernel gives, in nanoseconds.
const SLICE: u64 = 100_000;
/// How libraries are told the number of threads to start.
const THREADS: [&str; 4] = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"];

/// Keeps pyarrow's allocator from starting a thread when it is imported; of a zygote, which takes it back (see zygote.py).
const ARROW_MALLOC: (&str, &str) = ("JE_ARROW_MALLOC_CONF", "background_thread:false");

/// Has the C library's allocator keep 64 MiB of address space ahead, give none back below 128 MiB, and serve anything up to
/// 32 MiB from it: a slot that maps or unmaps memory is not used again. mallopt(3). Taken back like the one above.
const ROOMY_MALLOC: [(&str, &str); 3] =
    [("MALLOC_TOP_PAD_", "67108864"), ("MALLOC_TRIM_THRESHOLD_", "134217728"), ("MALLOC_MMAP_THRESHOLD_", "33554432")];

/// The guest's umask.
pub(crate) const UMASK: u32 = 0o022;

/// The descriptors of a script's process beside stdin, stdout and stderr: the script's text, a sealed memfd; an empty memfd
/// for the result document; a pipe, in which a byte says that the script begins; a socket with the values that it is given,
/// where there are some.
const SCRIPT: [&str; 4] = ["code", "result", "start", "values"];
/// Those of a zygote: its socket; a memfd for what it finds out for the next ones; the warm-up script, a sealed memfd.
const ZYGOTE: [&str; 3] = ["zygote", "layout", "warm_up"];
/// How often the zygote runs nsbox's own warm-up script once more; the effects of another's may add up, so that is run once more.
const REPEATS: u32 = 16;

/// The descriptors that a guest's process is given, by the numbers that they have here.
#[derive(Debug, Clone)]
pub(crate) struct Descriptors {
    /// Its standard input; `None` is the guest's own /dev/null.
    pub stdin: Option<RawFd>,
    /// Its standard output and error; `None` is the guest's own /dev/null.
    pub output: Option<[RawFd; 2]>,
    /// Those from 3 on, in their order.
    pub further: Vec<RawFd>,
}

impl Descriptors {
    /// The first descriptor that the guest does not keep.
    fn first_free(&self) -> u64 {
        3 + self.further.len() as u64
    }

    /// Plans that they have their numbers; whatever else is open has others.
    pub(crate) fn plan(&self, plan: &mut Plan) {
        let give = |plan: &mut Plan, from: Arg<'_>, to: u64| {
            plan.call("hand a descriptor to the guest", libc::SYS_dup3, &[from, Arg::Value(to), Arg::Value(0)]);
        };
        let [out, err] = self.output.map_or([None; 2], |output| output.map(Some));
        let standard = [self.stdin, out, err];
        let further = self.further.iter().copied().map(Some);
        for (fd, to) in standard.into_iter().chain(further).zip(0..) {
            if let Some(fd) = fd {
                give(plan, Arg::Fd(fd), to);
            }
        }
        for (fd, to) in standard.into_iter().zip(0..) {
            if fd.is_none() {
                let direction = if to == 0 { libc::O_RDONLY as u64 } else { libc::O_WRONLY as u64 };
                let flags = Arg::Value(direction | libc::O_CLOEXEC as u64);
                let args = [Arg::Fd(libc::AT_FDCWD), literal(c"/dev/null"), flags];
                let null = plan.open("open the guest's /dev/null", libc::SYS_openat, &args);
                give(plan, Arg::Register(null), to);
            }
        }
    }

    /// Plans that the guest keeps no others, of which init may need some until its `execve`.
    pub(crate) fn plan_close_on_exec(&self, plan: &mut Plan) {
        let on_exec = Arg::Value(4); // CLOSE_RANGE_CLOEXEC: a failure before execve can still be reported.
        let args = [Arg::Value(self.first_free()), Arg::Value(u64::from(u32::MAX)), on_exec];
        plan.call("close all other descriptors", libc::SYS_close_range, &args);
    }

    /// Plans the close of all others but the control socket; the descriptor after the last of the guest's.
    pub(crate) fn plan_close(&self, plan: &mut Plan) -> u64 {
        let control = self.first_free();
        plan.move_control(control);
        let args = [Arg::Value(control + 1), Arg::Value(u64::from(u32::MAX)), Arg::Value(0)];
        plan.call("close all other descriptors", libc::SYS_close_range, &args);
        control
    }
}

/// The runner's folder in the store.
#[derive(Debug, Clone)]
pub(crate) struct Runner {
    /// Bound at /run/nsbox.
    pub folder: PathBuf,
    /// The file to execute, in the guest.
    file: String,
    tag: String,
}

impl Runner {
    /// Puts the runner into the store if it is not there.
    pub(crate) fn install(store: &Path, tag: &str) -> io::Result<Self> {
        let folder = store.join(format!("guest-{}", env!("GUEST_DIGEST")));
        let inner = folder.join("guest");
        let compiled = format!("runner.{tag}.pyc");
        let mut file = format!("{RUNNER_FOLDER}/{compiled}");
        if !inner.join(&compiled).exists() {
            if !inner.join("runner.py").exists() {
                write(&inner, "_nsbox.so", MODULE)?;
                // runner.py last: where it is, all are.
                for (name, text) in FILES.iter().rev() {
                    write(&inner, &format!("{name}.py"), text.as_bytes())?;
                }
            }
            file = format!("{RUNNER_FOLDER}/runner.py");
        }
        Ok(Self { folder, file, tag: tag.to_owned() })
    }

    /// The same for a guest that sees the host as it is.
    pub(crate) fn on_host(self) -> Self {
        let name = self.file.rsplit('/').next().unwrap_or_default();
        let file = self.folder.join("guest").join(name).to_string_lossy().into_owned();
        Self { file, ..self }
    }

    /// Whether it has yet to be compiled for this interpreter.
    pub(crate) fn is_source(&self) -> bool {
        self.file.ends_with("/runner.py")
    }

    /// Stores what [`COMPILE`] made.
    pub(crate) fn store_compiled(&mut self, files: &[(&str, &[u8])]) -> io::Result<()> {
        let known = |name: &str| FILES.iter().any(|(file, _)| *file == name);
        let mut files: Vec<_> = files.iter().copied().filter(|(name, _)| known(name)).collect();
        files.sort_by_key(|(name, _)| *name == "runner");
        if files.len() != FILES.len() {
            return Err(io::Error::other("the interpreter did not compile the runner"));
        }
        for (name, bytes) in files {
            write(&self.folder.join("guest"), &format!("{name}.{}.pyc", self.tag), bytes)?;
        }
        self.file = format!("{RUNNER_FOLDER}/runner.{}.pyc", self.tag);
        Ok(())
    }
}

/// Writes a file that others may be reading or writing at this moment: they see the old content or the new.
fn write(folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    let thread = nix::unistd::gettid();
    let temporary = folder.join(format!(".{name}.{}.{thread}", std::process::id()));
    fs::write(&temporary, content)?;
    // The guest's user is somebody else, whatever this process's umask is.
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o644))?;
    for ancestor in folder.ancestors().take(2) {
        fs::set_permissions(ancestor, fs::Permissions::from_mode(0o755))?;
    }
    fs::rename(temporary, folder.join(name))
}

/// The modules of a guest that runs one script, by name.
pub(crate) fn modules() -> impl Iterator<Item = (&'static str, &'static str)> {
    FILES.into_iter().filter(|(name, _)| !["relocate", "zygote"].contains(name))
}

/// What to run.
#[derive(Debug)]
pub(crate) struct Command<'a> {
    pub runner: &'a Runner,
    pub python: &'a Interpreter,
    pub task: Task<'a>,
    /// Whether it runs without a sandbox: it has the caller's environment and network.
    pub on_host: bool,
    /// The folder that holds what stands for /work, /tmp, /input and /output, where they are not mounted.
    pub root: Option<&'a Path>,
}

/// What the runner is for.
#[derive(Debug)]
pub(crate) enum Task<'a> {
    /// One script.
    Script {
        /// `__file__` in the guest.
        file: &'a str,
        args: &'a [String],
        /// Names; with `=PATH` where they are not under /input.
        inputs: Vec<String>,
        /// Whether it is given values.
        has_values: bool,
    },
    /// A pool's slots.
    Zygote {
        /// Its nice value.
        nice: i32,
    },
}

impl Command<'_> {
    /// Its command line.
    pub(crate) fn argv(&self, config: &Config) -> Vec<OsString> {
        let mut argv: Vec<OsString> = vec![
            self.python.executable.clone().into(),
            // No site (its work is in sys.path already), no user site, no .pyc files, no buffering.
            "-SsBu".into(),
            self.runner.file.clone().into(),
            format!("result_limit={}", config.limits.result).into(),
        ];
        let (descriptors, args): (&[&str], &[String]) = match &self.task {
            Task::Script { file, args, inputs, has_values } => {
                argv.push(format!("file={file}").into());
                argv.extend(inputs.iter().map(|name| format!("input={name}").into()));
                (if *has_values { &SCRIPT } else { &SCRIPT[..3] }, args)
            }
            Task::Zygote { .. } => {
                argv.extend(config.preload.iter().map(|module| format!("preload={module}").into()));
                let repeats = if config.warm_up == "default" { REPEATS } else { 1 };
                argv.push(format!("repeats={repeats}").into());
                (if config.warm_up == "none" { &ZYGOTE[..2] } else { &ZYGOTE }, &[])
            }
        };
        argv.extend(descriptors.iter().zip(3..).map(|(key, fd)| format!("{key}={fd}").into()));
        if self.python.prefix != self.python.base_prefix {
            argv.push(keyed("prefix=", &self.python.prefix));
        }
        argv.extend(self.python.sys_path.iter().map(|path| keyed("path=", path)));
        argv.extend(self.on_host.then(|| "network=yes".into()));
        argv.extend(self.root.map(|root| keyed("root=", root)));
        argv.extend(config.seed.map(|seed| format!("seed={seed}").into()));
        argv.push("--".into());
        argv.extend(args.iter().map(OsString::from));
        argv
    }

    /// Its whole environment.
    pub(crate) fn environment(&self, config: &Config) -> Vec<OsString> {
        let mut fixed = fixed_environment(config);
        if self.on_host {
            fixed.retain(|(name, _)| name.starts_with("PYTHON"));
            let own: Vec<String> = fixed.iter().map(|(name, _)| name.clone()).collect();
            let inherited = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
            fixed.extend(inherited.filter(|(name, _)| !own.contains(name)));
        }
        fixed.extend(self.python.env.iter().cloned());
        fixed.retain(|(name, _)| !config.env.contains_key(name));
        fixed.extend(config.env.iter().map(|(name, value)| (name.clone(), value.into())));
        if matches!(self.task, Task::Zygote { .. }) {
            // A process with threads cannot be forked safely: whoever asks for more gets them in a fresh interpreter.
            fixed.retain(|(name, _)| !THREADS.contains(&name.as_str()));
            fixed.extend(THREADS.map(|name| (name.to_owned(), "1".into())));
            fixed.retain(|(name, _)| name != ARROW_MALLOC.0);
            fixed.push((ARROW_MALLOC.0.to_owned(), ARROW_MALLOC.1.into()));
            if config.slots == Slots::Restored {
                fixed.retain(|(name, _)| ROOMY_MALLOC.iter().all(|(own, _)| own != name));
                fixed.extend(ROOMY_MALLOC.map(|(name, value)| (name.to_owned(), value.into())));
            }
        }
        fixed
            .into_iter()
            .map(|(name, value)| {
                let mut variable = OsString::from(name + "=");
                variable.push(value);
                variable
            })
            .collect()
    }

    /// Plans what the guest's process does last before its first instruction.
    pub(crate) fn plan(&self, plan: &mut Plan, config: &Config, fds: &Descriptors, rlimits: &[Rlimit]) {
        let argv = plan.strings(self.argv(config));
        let environment = plan.strings(self.environment(config));
        let path = plan.text(self.python.executable.as_os_str());
        fds.plan(plan);
        fds.plan_close_on_exec(plan);
        plan_unblock(plan);
        rlimits::plan_open_files(plan, rlimits);
        let step = format!("execute {}", self.python.executable.display());
        plan.call(step, libc::SYS_execve, &[Arg::Data(path), Arg::Data(argv), Arg::Data(environment)]);
    }
}

/// The variables that every guest has, whatever its image.
pub(crate) fn fixed_environment(config: &Config) -> Vec<(String, OsString)> {
    let threads = lane::processors(config.limits.cpus);
    let mut fixed: Vec<(String, OsString)> = [
        ("PATH", "/usr/local/bin:/usr/bin:/bin"),
        ("HOME", crate::image::HOME),
        ("LANG", "C.UTF-8"),
        ("TZ", "UTC"),
        ("PYTHONDONTWRITEBYTECODE", "1"),
        ("PYTHONUNBUFFERED", "1"),
        ("PYTHONNOUSERSITE", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.into()))
    .to_vec();
    fixed.extend(THREADS.map(|name| (name.to_owned(), threads.to_string().into())));
    if let Some(seed) = config.seed {
        // CPython takes 32 bits.
        fixed.push(("PYTHONHASHSEED".to_owned(), (seed & 0xffff_ffff).to_string().into()));
    }
    fixed
}

/// Plans the guest's signal mask: none is blocked.
pub(crate) fn plan_unblock(plan: &mut Plan) {
    let args = [Arg::Value(libc::SIG_SETMASK as u64), Arg::Bytes(&[0; 8]), Arg::Value(0), Arg::Value(8)];
    plan.call("unblock the guest's signals", libc::SYS_rt_sigprocmask, &args);
}

/// Plans how all that follows is scheduled, at the same nice value as before: `SCHED_BATCH` interrupts nobody when it wakes up,
/// `SCHED_OTHER` is what everybody else has. Either with the shortest slice there is, so that of slots, what they are made
/// with and their callers none keeps another from a CPU for longer. sched_setattr(2); before Linux 6.12 slices are left alone.
pub(crate) fn plan_scheduling(plan: &mut Plan, policy: i32, nice: i32) {
    let mut attributes = Vec::with_capacity(48);
    for half in [48_u32, policy.unsigned_abs(), 0, 0, nice.cast_unsigned(), 0] {
        attributes.extend(half.to_ne_bytes());
    }
    for word in [SLICE, 0, 0] {
        attributes.extend(word.to_ne_bytes());
    }
    let args = [Arg::Value(0), Arg::Bytes(&attributes), Arg::Value(0)];
    plan.call("set the scheduling policy", libc::SYS_sched_setattr, &args);
}

fn keyed(key: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(key);
    argument.push(path);
    argument
}

/// Whether a name can be an input: one path component that is a Python-friendly word.
pub(crate) fn is_input_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && !name.starts_with('.')
        && name.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(byte))
}

/// The guest's path for a script: its own file name, made harmless, in the working directory.
pub(crate) fn script_path(name: &str) -> String {
    let name = Path::new(name).file_name().map_or("script.py".into(), |name| name.to_string_lossy());
    let harmless: String = name.chars().map(|c| if c.is_control() || c == '/' { '_' } else { c }).take(100).collect();
    debug_assert!(!harmless.as_bytes().contains(&0) && !Path::new(&harmless).as_os_str().as_bytes().is_empty());
    format!("/work/{harmless}")
}
