//! `nsbox doctor` on this machine as it is, and on worse ones: an ordinary user without a cgroup, no user namespaces
//! left, filters around that refuse clone3 or the mounts.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use serde_json::Value;

const SYSTEM_PYTHON: &str = "/usr/bin/python3";
/// An id without privileges, for the tests that root starts.
const NOBODY: &str = "65534";

/// A copy of the program that everybody may execute, and a store that `NOBODY` owns.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        // By another process: what this one has just written cannot be executed while a test beside it forks.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_nsbox")).arg(folder.path()).status().unwrap();
        assert!(copied.success());
        let store = folder.path().join("store");
        std::fs::create_dir(&store).unwrap();
        if is_root() {
            let nobody = NOBODY.parse().ok();
            std::os::unix::fs::chown(&store, nobody, nobody).unwrap();
        }
        Self { folder }
    }

    fn nsbox(&self) -> PathBuf {
        self.folder.path().join("nsbox")
    }

    /// `program` as an ordinary user: `NOBODY`, or who runs the tests.
    fn as_user(&self, program: &Path) -> Command {
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        self.at_home(&mut command);
        command
    }

    /// With this place's store, and none of the caller's settings (nor what cargo sets for the build).
    fn at_home(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("NSBOX_")) {
            command.env_remove(name);
        }
        command.env("NSBOX_STORE", self.folder.path().join("store")).current_dir("/");
    }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn doctor_args(command: &mut Command) -> &mut Command {
    command.args(["doctor", "--json", "--python", SYSTEM_PYTHON])
}

/// The findings, and the exit status.
fn findings(output: &Output) -> (Value, Option<i32>) {
    let text = String::from_utf8_lossy(&output.stdout);
    // A test that runs itself again has the harness's heading before the findings.
    let json = text.find('{').map_or("", |at| &text[at..]);
    let report = serde_json::from_str(json);
    let stderr = String::from_utf8_lossy(&output.stderr);
    (report.unwrap_or_else(|error| panic!("{error}: {text}{stderr}")), output.status.code())
}

fn layer<'a>(report: &'a Value, name: &str) -> &'a Value {
    let layers = report["layers"].as_array().unwrap();
    layers.iter().find(|layer| layer["layer"] == name).unwrap_or_else(|| panic!("no {name} in {report:#}"))
}

fn status<'a>(report: &'a Value, name: &str) -> &'a str {
    layer(report, name)["status"].as_str().unwrap()
}

fn knobs(report: &Value, name: &str) -> String {
    layer(report, name)["knobs"].to_string()
}

#[test]
fn root_has_every_required_layer_and_nothing_is_left() {
    if !is_root() {
        // CI runs the suite as root and as an ordinary user; each test is for one of them at least.
        eprintln!("skipped: the tests run as an ordinary user");
        return;
    }
    let place = Place::new();
    let mut command = Command::new(place.nsbox());
    place.at_home(&mut command);
    doctor_args(&mut command).env("NSBOX_STORE", place.folder.path().join("root-store"));
    let child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let (report, code) = findings(&child.wait_with_output().unwrap());
    for layer in report["layers"].as_array().unwrap() {
        assert!(layer["required"] == false || layer["status"] == "allowed", "{layer:#}");
        assert!(
            !layer["tried"].as_str().unwrap().is_empty() && !layer["found"].as_str().unwrap().is_empty(),
            "{layer:#}"
        );
    }
    assert_eq!((report["run"].as_str(), code), (Some("allowed"), Some(0)), "{report:#}");
    assert_eq!(report["summary"], "nsbox run works here");
    let left = cgroups_of(Path::new("/sys/fs/cgroup"), pid, 6);
    assert!(left.is_empty(), "{left:?}");
}

/// The cgroups that carry the pid of their owner in their names, at most `depth` folders down.
fn cgroups_of(folder: &Path, pid: u32, depth: u8) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("nsbox-") && name.split('-').nth(2) == Some(&pid.to_string()) {
            found.push(entry.path());
        } else if depth > 0 {
            found.extend(cgroups_of(&entry.path(), pid, depth - 1));
        }
    }
    found
}

#[test]
fn text_names_each_layer_and_ends_with_the_verdict() {
    let place = Place::new();
    let output = place.as_user(&place.nsbox()).args(["doctor", "--python", SYSTEM_PYTHON]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for name in ["user namespace", "user map", "procfs", "seccomp", "landlock", "cgroup memory", "store", "docker"] {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name} is not in {text}");
    }
    let verdict = text.trim_end().lines().last().unwrap();
    assert!(verdict.starts_with("nsbox run "), "{verdict}");
    assert_eq!(output.status.success(), verdict == "nsbox run works here", "{text}");
}

#[test]
fn ordinary_user_without_a_cgroup_is_told_how_to_get_one() {
    let place = Place::new();
    let (report, code) = findings(&doctor_args(&mut place.as_user(&place.nsbox())).output().unwrap());
    for name in ["user_namespace", "user_map", "tmpfs", "procfs", "root", "capabilities", "seccomp", "store", "image"] {
        assert_eq!(status(&report, name), "allowed", "{report:#}");
    }
    if status(&report, "cgroup") == "allowed" {
        // A user to whom one was delegated.
        assert_eq!((report["run"].as_str(), code), (Some("allowed"), Some(0)), "{report:#}");
        return;
    }
    assert_eq!(status(&report, "cgroup"), "refused");
    for knob in ["systemd-run --user --scope -p Delegate=yes", "allow_degraded"] {
        assert!(knobs(&report, "cgroup").contains(knob), "{report:#}");
    }
    assert_eq!((report["run"].as_str(), code), (Some("degraded"), Some(1)), "{report:#}");
    assert!(report["summary"].as_str().unwrap().contains("degraded: the memory limit"), "{report:#}");
}

#[test]
fn exhausted_user_namespaces_are_named_with_their_sysctl() {
    let place = Place::new();
    let mut command = place.as_user(Path::new("unshare"));
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" \"$@\"";
    command.args(["-U", "-r", "sh", "-c", script]).arg(place.nsbox());
    let (report, code) = findings(&doctor_args(&mut command).output().unwrap());
    assert_eq!(status(&report, "user_namespace"), "refused", "{report:#}");
    assert!(knobs(&report, "user_namespace").contains("sysctl -w user.max_user_namespaces="), "{report:#}");
    assert_eq!(status(&report, "seccomp"), "untried", "{report:#}");
    assert_eq!((report["run"].as_str(), code), (Some("refused"), Some(1)), "{report:#}");
    assert!(report["summary"].as_str().unwrap().starts_with("nsbox run does not work here: "), "{report:#}");
}

#[test]
fn user_namespace_of_root_alone_is_no_place_for_a_guest() {
    if !is_root() {
        eprintln!("skipped: only root can map root");
        return;
    }
    let place = Place::new();
    let mut command = Command::new("unshare");
    place.at_home(&mut command);
    command.args(["-U", "-r"]).arg(place.nsbox());
    let (report, code) = findings(&doctor_args(&mut command).output().unwrap());
    assert_eq!(status(&report, "user_namespace"), "allowed", "{report:#}");
    assert_eq!(status(&report, "user_map"), "refused", "{report:#}");
    assert_eq!(code, Some(1));
}

/// Runs this very test again, which there puts a filter around itself and becomes `program`.
fn refusing(test: &str, program: &Path, args: &[&str], calls: &[(libc::c_long, i32)]) -> Output {
    const PROGRAM: &str = "NSBOX_TEST_FILTERED";
    if let Some(program) = std::env::var_os(PROGRAM) {
        let mut filters = BTreeMap::<i32, Vec<i64>>::new();
        for (call, errno) in calls {
            filters.entry(*errno).or_default().push(*call);
        }
        for (errno, calls) in filters {
            let rules = calls.into_iter().map(|call| (call, Vec::new())).collect();
            let action = SeccompAction::Errno(errno.unsigned_abs());
            let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, TargetArch::x86_64).unwrap();
            let program: BpfProgram = filter.try_into().unwrap();
            seccompiler::apply_filter(&program).unwrap();
        }
        panic!("{}", Command::new(program).args(args).exec());
    }
    let place = Place::new();
    let mut command = Command::new(std::env::current_exe().unwrap());
    place.at_home(&mut command);
    if is_root() {
        // Root's own store: the program keeps root's rights.
        command.env("NSBOX_STORE", place.folder.path().join("root-store"));
    }
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(PROGRAM, program);
    command.env("NSBOX_EVENT_LOG", "none").output().unwrap()
}

#[test]
fn refused_clone3_is_replaced_and_said() {
    let calls = [(libc::SYS_clone3, libc::ENOSYS)];
    let nsbox = Path::new(env!("CARGO_BIN_EXE_nsbox"));
    let args = ["doctor", "--json", "--python", SYSTEM_PYTHON];
    let (report, _) = findings(&refusing("refused_clone3_is_replaced_and_said", nsbox, &args, &calls));
    assert_eq!(status(&report, "clone3"), "degraded", "{report:#}");
    assert_eq!(status(&report, "user_namespace"), "allowed", "{report:#}");
    assert_ne!(report["run"], "refused", "{report:#}");
}

#[test]
fn refused_clone3_does_not_keep_a_script_from_running() {
    // Of both processes, so in no folder of this one's.
    let script = Path::new(env!("CARGO_TARGET_TMPDIR")).join("signal.py");
    std::fs::write(&script, "print('Signal: BUY')").unwrap();
    let calls = [(libc::SYS_clone3, libc::ENOSYS)];
    let nsbox = Path::new(env!("CARGO_BIN_EXE_nsbox"));
    let path = script.display().to_string();
    let args = ["run", "--allow-degraded", "--python", SYSTEM_PYTHON, &path];
    let output = refusing("refused_clone3_does_not_keep_a_script_from_running", nsbox, &args, &calls);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("Signal: BUY") && output.status.success(), "{output:?}");
}

#[test]
fn mounts_refused_inside_a_user_namespace_are_told_from_a_refused_namespace() {
    let calls = [(libc::SYS_fsopen, libc::EPERM)];
    let nsbox = Path::new(env!("CARGO_BIN_EXE_nsbox"));
    let args = ["doctor", "--json", "--python", SYSTEM_PYTHON];
    let test = "mounts_refused_inside_a_user_namespace_are_told_from_a_refused_namespace";
    let (report, code) = findings(&refusing(test, nsbox, &args, &calls));
    assert_eq!(status(&report, "user_namespace"), "allowed", "{report:#}");
    assert_eq!(status(&report, "mount_namespace"), "allowed", "{report:#}");
    assert_eq!(status(&report, "tmpfs"), "refused", "{report:#}");
    assert!(layer(&report, "tmpfs")["found"].as_str().unwrap().contains("failed to open a tmpfs"), "{report:#}");
    assert!(knobs(&report, "tmpfs").contains("seccomp=unconfined"), "{report:#}");
    assert_eq!((report["run"].as_str(), code), (Some("refused"), Some(1)), "{report:#}");
}
