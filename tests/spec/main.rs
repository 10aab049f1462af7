//! `nsbox spec`: what it prints is what `nsbox run` does, and an OCI runtime can do the same with it.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Output};

use nix::unistd::geteuid;
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

const SYSTEM_PYTHON: &str = "/usr/bin/python3";

/// What a guest sees of itself: the kernel's word for each thing, as one line of JSON.
const CONFESSION: &str = r#"
import json
def words(name):
    with open("/proc/self/" + name) as file:
        return [word for word in file.read().split("\0") if word]
with open("/proc/self/mountinfo") as file:
    mounts = [line.split(" ") for line in file]
with open("/proc/self/status") as file:
    status = {line.split(":")[0]: line.partition(":")[2].strip() for line in file}
print(json.dumps({
    "args": words("cmdline"), "env": words("environ"), "hostname": open("/etc/hostname").read().strip(),
    "mounts": {mount[4]: mount[5].split(",") + mount[-1].strip().split(",") for mount in mounts},
    "caps": [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "uid": status["Uid"].split(), "umask": status["Umask"], "no_new_privs": status["NoNewPrivs"],
}))
"#;

fn nsbox(store: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nsbox"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("NSBOX_")) {
        command.env_remove(name);
    }
    command.env("NSBOX_STORE", store);
    command
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("strategy.py"), CONFESSION).unwrap();
        std::fs::write(folder.path().join("prices.csv"), "close\n1\n").unwrap();
        Self { folder }
    }

    /// The same options for a run and its description.
    fn nsbox(&self, command: &str) -> Command {
        let path = |name: &str| self.folder.path().join(name);
        let mut nsbox = nsbox(&path("store"));
        nsbox.args([command, "--python", SYSTEM_PYTHON, "--memory", "512m", "--disk", "8m", "--cpus", "0.25"]);
        nsbox.args(["--pids", "32", "--seed", "7", "--env", "MODE=fast", "--cpu-time", "20s", "--arg", "--quick"]);
        nsbox.args(["--no-check", "--allow-degraded"]);
        nsbox.arg("--input").arg(format!("prices={}", path("prices.csv").display()));
        nsbox.arg("--output").arg(path("results"));
        nsbox
    }

    fn spec(&self) -> Value {
        let script = self.folder.path().join("strategy.py");
        serde_json::from_str(&text(&self.nsbox("spec").arg(script).output().unwrap())).unwrap()
    }
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|item| item.as_str().unwrap()).collect()
}

#[test]
fn spec_reads_back_as_the_types_of_the_format() {
    let written = Place::new().spec();
    let spec: Spec = serde_json::from_value(written.clone()).unwrap();
    assert_eq!(serde_json::to_value(&spec).unwrap(), written);
    let linux = spec.linux().as_ref().unwrap();
    let seccomp = linux.seccomp().as_ref().unwrap();
    assert!(
        seccomp.architectures().as_ref().is_some_and(|all| all.len() == 1),
        "Docker's archMap is not in the format"
    );
    let resources = linux.resources().as_ref().unwrap();
    let memory = resources.memory().as_ref().unwrap();
    assert_eq!((memory.limit(), memory.swap()), (Some(512 << 20), Some(512 << 20)));
    let cpu = resources.cpu().as_ref().unwrap();
    assert_eq!((cpu.quota(), cpu.period()), (Some(25_000), Some(100_000)));
    assert_eq!(resources.pids().as_ref().unwrap().limit(), 32);
    let host = linux.uid_mappings().as_ref().unwrap()[0].host_id();
    assert!(if geteuid().is_root() { host > 65_534 } else { host == geteuid().as_raw() }, "{host}");
    assert_eq!(linux.namespaces().as_ref().unwrap().len(), 7);
}

#[test]
fn spec_is_what_a_run_does() {
    let place = Place::new();
    let spec = place.spec();
    let script = place.folder.path().join("strategy.py");
    let output = place.nsbox("run").arg("--json").arg(script).output().unwrap();
    let outcome: Value = serde_json::from_str(&text(&output)).unwrap();
    let seen: Value = serde_json::from_str(outcome["stdout"].as_str().unwrap())
        .unwrap_or_else(|error| panic!("{error}: {outcome:#}"));

    let process = &spec["process"];
    assert_eq!(seen["args"], process["args"]);
    let environment = |value| strings(value).into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(environment(&seen["env"]), environment(&process["env"]));
    assert_eq!(seen["hostname"], spec["hostname"]);
    assert_eq!(seen["uid"], json!(["1000"; 4].map(String::from)));
    assert_eq!((&process["user"]["uid"], &process["user"]["gid"]), (&json!(1000), &json!(1000)));
    assert_eq!(seen["umask"], format!("{:04o}", process["user"]["umask"].as_u64().unwrap()));
    assert_eq!((&seen["no_new_privs"], &process["noNewPrivileges"]), (&json!("1"), &json!(true)));
    for set in seen["caps"].as_array().unwrap() {
        assert_eq!(set, "0000000000000000");
    }
    for set in process["capabilities"].as_object().unwrap().values() {
        assert_eq!(set, &json!([]));
    }
    let limits = process["rlimits"].as_array().unwrap().iter();
    let limits =
        limits.map(|limit| format!("{}={}", &limit["type"].as_str().unwrap()["RLIMIT_".len()..], limit["hard"]));
    assert_eq!(outcome["enforced"]["rlimits"]["applied"], limits.collect::<Vec<_>>().join(" "));

    // Every mount of the run is in the description, with its options; /dev is there to keep runtimes out of it.
    let mounts = spec["mounts"].as_array().unwrap();
    let described: BTreeSet<&str> = mounts.iter().map(|mount| mount["destination"].as_str().unwrap()).collect();
    let real = seen["mounts"].as_object().unwrap();
    let real_targets: BTreeSet<&str> = real.keys().map(String::as_str).filter(|target| *target != "/").collect();
    // A mount below a bound folder comes with it.
    let below =
        |target: &&&str| !described.iter().any(|other| Path::new(target).starts_with(other) && *other != "/dev");
    assert_eq!(real_targets.difference(&described).filter(below).count(), 0, "{real_targets:?} {described:?}");
    assert_eq!(described.difference(&real_targets).collect::<Vec<_>>(), [&"/dev"]);
    for mount in mounts.iter().filter(|mount| mount["destination"] != "/dev") {
        let (target, options) = (mount["destination"].as_str().unwrap(), strings(&mount["options"]));
        let held = strings(&real[target]);
        for option in options {
            let wanted = match option {
                "rbind" | "rprivate" | "uid=1000" | "gid=1000" => continue,
                // One tmpfs belongs to all three, so its mode is the first one's; the kernel counts sizes in kilobytes.
                option if option.starts_with("mode=") => continue,
                option if option.starts_with("size=") => {
                    format!("size={}k", option["size=".len()..].parse::<u64>().unwrap() / 1024)
                }
                option => option.to_owned(),
            };
            assert!(held.contains(&wanted.as_str()), "{target}: {wanted} is not in {held:?}");
        }
    }
    assert_eq!(spec["root"]["readonly"], true);
    assert!(strings(&real["/"]).contains(&"ro"));
}

#[test]
fn crun_runs_the_same_script() {
    let crun = Command::new("crun").arg("--version").output().is_ok_and(|output| output.status.success());
    if !crun || !geteuid().is_root() {
        let missing = if crun { "the tests do not run as root" } else { "crun is not installed" };
        assert!(crun || std::env::var_os("NSBOX_TEST_MUST_RUN").is_none(), "NSBOX_TEST_MUST_RUN is set, but {missing}");
        eprintln!("skipped: {missing}");
        return;
    }
    let place = Place::new();
    let spec = place.spec();
    let file = |name: &str| place.folder.path().join(name);
    std::fs::write(file("config.json"), spec.to_string()).unwrap();
    for name in ["result", "start"] {
        File::create(file(name)).unwrap();
    }
    // crun knows no hybrid cgroups: it gets a plain version 2 in a mount namespace of its own, and makes none.
    let script = "{ [ -e /sys/fs/cgroup/cgroup.controllers ] || mount -t cgroup2 none /sys/fs/cgroup; } && cd \"$0\" && exec crun --cgroup-manager=disabled --root crun \
                  run --preserve-fds 3 nsbox-spec-$$ 3<strategy.py 4<>result 5>start";
    let output = Command::new("unshare").args(["-m", "sh", "-c", script]).arg(place.folder.path()).output().unwrap();
    let seen: Value = serde_json::from_str(&text(&output)).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert_eq!(seen["args"], spec["process"]["args"]);
    assert_eq!(seen["uid"], json!(["1000"; 4].map(String::from)));
    assert_eq!(seen["caps"], json!(["0000000000000000"; 5].map(String::from)));
    assert_eq!(std::fs::read(file("start")).unwrap().len(), 1, "the runner says that the script begins");
}

#[test]
fn memfds_are_sealed_against_execution() {
    let spec = Place::new().spec();
    let calls = spec["linux"]["seccomp"]["syscalls"].as_array().unwrap();
    let of = |name: &str| calls.iter().filter(|call| strings(&call["names"]).contains(&name)).collect::<Vec<_>>();
    let memfd = of("memfd_create");
    assert_eq!(memfd.len(), 2, "{memfd:?}");
    for (call, (action, flag)) in memfd.iter().zip([("SCMP_ACT_ALLOW", 8), ("SCMP_ACT_ERRNO", 0)]) {
        assert_eq!(call["action"], action);
        assert_eq!(call["args"], json!([{"index": 1, "value": 8, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ"}]));
    }
    assert_eq!(of("read")[0]["action"], "SCMP_ACT_ALLOW");
}

#[test]
fn schema_is_the_outcomes() {
    let store = tempfile::tempdir().unwrap();
    let printed = text(&nsbox(store.path()).args(["spec", "--schema"]).output().unwrap());
    assert_eq!(serde_json::from_str::<Value>(&printed).unwrap(), nsbox::outcome::Outcome::json_schema());
}
