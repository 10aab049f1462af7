//! Without a cgroup: refused, and by consent rlimits and a supervisor that measures.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nsbox::outcome::LayerStatus;
use serde_json::json;

use crate::harness::{Ran, is_root, require, skipped};
use crate::user::User;

fn degraded(user: &User, flags: &[&str], source: &str) -> Ran {
    user.run(&[], &[&["--allow-degraded"], flags].concat(), source)
}

/// A user without a cgroup. Root becomes one; of an ordinary user it is found out what it was given.
fn user() -> Option<User> {
    let user = User::find()?;
    let without = is_root() || user.run(&[], &[], "pass").verdict() == "unavailable";
    require(without, "user without a cgroup").then_some(user)
}

#[test]
fn run_without_a_cgroup_is_refused_with_the_knob() {
    let Some(user) = user() else { return };
    let ran = user.run(&[], &[], "print('ran')").expect("unavailable");
    assert_eq!((ran.status, ran.stdout().as_str()), (125, ""));
    ran.says("cgroup").says("Delegate=yes").says("allow_degraded: true");
}

#[test]
fn degraded_run_names_what_is_missing() {
    let Some(user) = user() else { return };
    let ran = degraded(&user, &["--memory", "100m", "--pids", "9", "--cpus", "1"], "print('ran')").expect("ok");
    assert!(ran.outcome.degraded);
    let cgroup = &ran.outcome.enforced.cgroup;
    assert_eq!(cgroup.version, None);
    for (layer, configured) in [(&cgroup.memory, "100m"), (&cgroup.pids, "9"), (&cgroup.cpu, "1")] {
        assert_eq!((layer.status, layer.configured.as_deref()), (LayerStatus::Missing, Some(configured)));
        assert!(layer.why.as_ref().is_some_and(|why| !why.is_empty()), "{layer:?}");
    }
    let enforced = &ran.outcome.enforced;
    for layer in [&enforced.namespaces, &enforced.user_map, &enforced.root, &enforced.capabilities, &enforced.seccomp] {
        assert_eq!(layer.status, LayerStatus::Applied, "the walls are all there: {layer:?}");
    }
}

#[test]
fn degraded_run_says_so_to_people() {
    let Some(user) = user() else { return };
    let command = user.nsbox(&[], &["run", "--allow-degraded", "--no-check", "-"]);
    let output = crate::harness::feed(command, b"print('ran')");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), b"ran\n".as_slice()));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("degraded"), "{said}");
}

#[test]
fn degraded_verdicts_hold() {
    let Some(user) = user() else { return };
    let status = |flags: &[&str], source: &str, verdict: &str| {
        let ran = degraded(&user, flags, source).expect(verdict);
        assert!(ran.outcome.degraded);
        ran.status
    };
    assert_eq!(status(&[], "metrics = 1", "ok"), 0);
    assert_eq!(status(&[], "raise SystemExit(3)", "error"), 3);
    assert_eq!(status(&["--timeout", "300ms"], "while True: pass", "timeout"), 124);
    assert_eq!(status(&["--cpu-time", "300ms"], "while True: pass", "timeout"), 124);
    assert_eq!(status(&[], "import os\nos.kill(os.getpid(), 11)", "signal"), 139);
    assert_eq!(status(&[], "import ctypes\nctypes.CDLL(None).syscall(175, 0, 0, 0)", "violation"), 159);
    assert_eq!(status(&["--output-limit", "1k", "--output-limit-kill"], "print('x' * 5000)", "output-limit"), 122);
}

#[test]
fn degraded_memory_is_measured() {
    let Some(user) = user() else { return };
    let source = "block = bytearray(MIB << 20)\nimport time\ntime.sleep(WAIT)";
    let over = source.replace("MIB", "150").replace("WAIT", "20");
    let ran = degraded(&user, &["--memory", "100m"], &over).expect("oom");
    assert_eq!(ran.status, 137);
    assert!(ran.outcome.usage.peak_memory_bytes.unwrap() > 100 << 20);
    let under = source.replace("MIB", "50").replace("WAIT", "0.3");
    let ran = degraded(&user, &["--memory", "100m"], &under).expect("ok");
    assert!((50 << 20..100 << 20).contains(&ran.outcome.usage.peak_memory_bytes.unwrap()));
    // Children together.
    let family = "import os, time\nfor _ in range(3):\n    os.fork()\nblock = bytearray(25 << 20)\ntime.sleep(20)";
    degraded(&user, &["--memory", "100m"], family).expect("oom");
}

#[test]
fn degraded_processes_have_their_limit() {
    let Some(user) = user() else { return };
    let source = r#"
import threading
stop = threading.Event()
count = 1
try:
    while count < 30:
        threading.Thread(target=stop.wait).start()
        count += 1
except RuntimeError:
    pass
stop.set()
metrics = {"threads": count}
"#;
    let ran = degraded(&user, &["--pids", "8"], source).expect("ok");
    assert_eq!(ran.json["metrics"], json!({"threads": 8}));
}

#[test]
fn guest_is_1000_inside_and_the_caller_outside() {
    let Some(user) = user() else { return };
    let source = r#"
import os
open("/output/file", "w").write("x")
status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
result = [os.getuid(), os.getgid(), os.getgroups(), open("/proc/self/uid_map").read().split()]
report = {name: status[name] for name in ["CapPrm", "CapEff", "CapBnd", "CapAmb", "CapInh", "NoNewPrivs", "Seccomp"]}
"#;
    let output = user.path("output");
    let ran = degraded(&user, &["--output", output.to_str().unwrap()], source).expect("ok");
    // A namespace's own view of the caller's id is the overflow id of whoever is not mapped.
    let result = &ran.json["result"];
    assert_eq!((&result[0], &result[1]), (&json!(1000), &json!(1000)));
    assert_eq!((&result[3][0], &result[3][2]), (&json!("1000"), &json!("1")));
    let none = "0000000000000000";
    let expected = json!({"CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none, "CapInh": none, "NoNewPrivs": "1", "Seccomp": "2"});
    assert_eq!(ran.json["report"], expected);
    let file = fs::metadata(output.join("file")).unwrap();
    let group = if is_root() { user.id } else { nix::unistd::getegid().as_raw() };
    assert_eq!((file.uid(), file.gid()), (user.id, group));
    let map = format!("uid 1000 is {} outside", user.id);
    assert!(ran.outcome.enforced.user_map.applied.unwrap().contains(&map));
}

#[test]
fn what_the_caller_may_not_read_is_no_input() {
    if !is_root() {
        // The run of this suite as root is the one that must show it.
        skipped("only root can make a file that is another's");
        return;
    }
    let Some(user) = user() else { return };
    let secret = user.path("secret");
    fs::write(&secret, "of root").unwrap();
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&secret, Some(0), Some(0)).unwrap();
    let input = format!("secret={}", secret.display());
    let ran = degraded(&user, &["--input", &input], "print(open('/input/secret').read())");
    assert_ne!(ran.verdict(), "ok");
    assert!(!ran.stdout().contains("of root"));
}

#[test]
fn input_of_the_caller_alone_is_readable() {
    let Some(user) = user() else { return };
    let own = user.path("own");
    fs::write(&own, "of the caller").unwrap();
    fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&own, Some(user.id), None).unwrap();
    let input = format!("own={}", own.display());
    let ran = degraded(&user, &["--input", &input], "print(open('/input/own').read())").expect("ok");
    assert_eq!(ran.stdout(), "of the caller\n");
}
