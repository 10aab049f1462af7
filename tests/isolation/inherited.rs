//! What a careless launcher leaves open: descriptors, folders, the environment, a terminal; and who init is.

use std::process::{Command, Output};

use nsbox::outcome::Verdict;
use serde_json::{Value, json};

use crate::harness::{self, PYTHON, attacks, folder, inside, is_root, parse, said, script};

/// Starts `command` from a hostile launcher, with a terminal or with pipes.
fn hostile(command: &Command, kind: &str) -> Output {
    let launcher = attacks("../outside/hostile.py");
    let place = folder().join(format!("hostile-{}", harness::serial()));
    let mut outer = Command::new(PYTHON);
    outer.arg(launcher).arg(place).arg(kind).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        outer.env(name, value.unwrap_or_default());
    }
    outer.output().expect("the launcher starts")
}

fn outside(kind: &str) -> Value {
    let mut command = Command::new(PYTHON);
    command.arg(attacks("inherited.py"));
    let output = hostile(&command, kind);
    // The terminal echoes what TIOCSTI pushed into it.
    let start = output.stdout.iter().position(|byte| *byte == b'{').unwrap_or_default();
    serde_json::from_slice(&output.stdout[start..]).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn sandboxed(kind: &str) -> Value {
    let driver = harness::driver();
    let mut command = harness::command(&driver, &["--arg", "/input/inherited.py"]);
    command.arg("--input").arg(format!("inherited.py={}", attacks("inherited.py").display()));
    let outcome = parse(&hostile(&command, kind));
    assert_eq!(outcome.verdict, Verdict::Ok, "{outcome:#?}");
    said(&outcome)
}

#[test]
fn inherited_state_is_seen_outside_and_not_inside() {
    let outside = outside("pipes");
    let leaks = outside["leaks"].as_array().expect("leaks").len();
    assert!(leaks >= 5, "outside the launcher's state is there: {outside:#}");
    assert!(outside["fds"].as_object().expect("fds").len() >= 7, "{outside:#}");
    assert_eq!(outside["sitecustomized"], true);
    assert_eq!(outside["preloaded"], true, "libthread_db of the C library is preloaded: {outside:#}");

    let inside = sandboxed("pipes");
    assert_eq!(inside["leaks"], json!([]), "{inside:#}");
    let fds: Vec<&str> = inside["fds"].as_object().expect("fds").keys().map(String::as_str).collect();
    assert_eq!(fds, ["0", "1", "2", "4"], "stdin, stdout, stderr and the result's memfd alone: {inside:#}");
    assert_eq!(inside["fds"]["0"], "/dev/null");
    assert!(inside["fds"]["1"].as_str().is_some_and(|target| target.starts_with("pipe:")));
    assert!(inside["fds"]["4"].as_str().is_some_and(|target| target.starts_with("/memfd:nsbox-result")));
    assert_eq!(inside["stdin"], "");
    assert_eq!(inside["cwd"], "/work");
    assert_eq!((&inside["preloaded"], &inside["sitecustomized"]), (&json!(false), &json!(false)));
    for name in inside["env"].as_array().expect("env") {
        let name = name.as_str().expect("a name");
        let known = ["PATH", "HOME", "LANG", "TZ"].contains(&name)
            || name.ends_with("_NUM_THREADS")
            || (name.starts_with("PYTHON") && name != "PYTHONPATH");
        assert!(known, "{name} is not of the guest's own environment");
    }
}

#[test]
fn init_is_closed_to_the_guest() {
    let inside = sandboxed("pipes");
    for (name, how) in inside["init"].as_object().expect("init") {
        assert_eq!(how, "EACCES", "/proc/1/{name}");
    }
    // The same files are open to their owner outside.
    let own = "import json, os\nprint(json.dumps([open(f'/proc/self/{n}', 'rb').read(1) != b'' for n in ('environ', 'exe', 'maps')]))";
    assert_eq!(harness::outside(own), json!([true, true, true]));
}

#[test]
fn terminal_of_the_launcher_is_out_of_reach() {
    let outside = outside("tty");
    assert_eq!(outside["terminal"]["ttys"], json!([0, 1, 2]));
    assert_eq!(outside["terminal"]["dev_tty"], "ok");
    let pushed = &outside["terminal"]["tiocsti"];
    assert!(pushed == "ok" || pushed == "EIO", "EIO where the kernel has it off (dev.tty.legacy_tiocsti): {pushed}");
    let inside = sandboxed("tty");
    assert_eq!(inside["terminal"]["ttys"], json!([]), "{inside:#}");
    assert_eq!(inside["terminal"]["dev_tty"], "ENOENT");
    assert_eq!(inside["terminal"]["tiocsti"], "EPERM");
    assert_eq!(inside["sid"], 1, "a session of the sandbox's own init");
}

#[test]
fn output_file_of_the_caller_cannot_be_cut_or_read_back() {
    let source = "import os\n\
        for act in (lambda: os.ftruncate(1, 0), lambda: os.lseek(1, 0, 0), lambda: os.pread(1, 64, 0),\n            \
        lambda: os.ftruncate(os.open('/proc/self/fd/1', os.O_RDWR), 0)):\n    \
        try: act()\n    \
        except OSError as error: os.write(2, f'{error.errno} '.encode())\n";
    let run = |mut command: Command, name: &str| {
        let path = folder().join(name);
        std::fs::write(&path, "precious").expect("a file");
        let file = std::fs::File::options().read(true).append(true).open(&path).expect("the file");
        let output = command.stdout(file).output().expect("it starts");
        (std::fs::read_to_string(path).expect("the file"), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let path = script("truncate_stdout.py", source);
    let mut outside = Command::new(PYTHON);
    outside.arg(&path);
    assert_eq!(run(outside, "stdout-outside").0, "", "outside the file is cut");
    let json = harness::command(&path, &[]);
    let mut plain = Command::new(json.get_program());
    plain.args(json.get_args().filter(|arg| *arg != "--json"));
    for (name, value) in json.get_envs() {
        plain.env(name, value.unwrap_or_default());
    }
    let (left, errors) = run(plain, "stdout-inside");
    assert_eq!(left, "precious");
    // EINVAL and ESPIPE of a pipe. Opened anew it could not be cut either, and where it is another user's it does not open.
    let reopened = if is_root() { libc::EACCES } else { libc::EINVAL };
    // Behind it may stand the warning of a host that has no cgroup for this user.
    assert_eq!(errors.split("nsbox: ").next().unwrap_or_default().trim(), format!("22 29 29 {reopened}"), "{errors}");
}

#[test]
fn host_is_not_known_to_the_guest() {
    let source = r"
import json, os, socket
found = {}
def look(path):
    try:
        with open(path, 'rb') as file: return file.read(4096).decode(errors='replace')
    except OSError as error: return error.errno
for path in ('/etc/machine-id', '/etc/hostname', '/proc/sys/kernel/random/boot_id', '/proc/cmdline', '/proc/version',
             '/proc/kallsyms', '/proc/slabinfo', '/proc/timer_list', '/proc/vmallocinfo', '/proc/net/dev', '/proc/sys/kernel/core_pattern',
             '/proc/sysrq-trigger', '/proc/kcore', '/proc/keys', '/proc/interrupts', '/sys/kernel/uevent_seqnum'):
    found[path] = look(path)
found['name'] = socket.gethostname()
found['nodename'] = os.uname().nodename
found['pids'] = sorted(int(name) for name in os.listdir('/proc') if name.isdigit())
print(json.dumps(found))
";
    let outside = harness::outside(source);
    assert!(outside["/proc/sys/kernel/random/boot_id"].is_string());
    assert!(outside["/proc/cmdline"].is_string());
    assert!(outside["pids"].as_array().expect("pids").len() > 5);
    let inside = said(&inside("identity", source, &[]));
    for (path, found) in inside.as_object().expect("an object") {
        if path.starts_with("/proc/") || path.starts_with("/sys/") {
            assert_eq!(found, libc::ENOENT, "{path}");
        }
    }
    assert_eq!((&inside["name"], &inside["nodename"]), (&json!("nsbox"), &json!("nsbox")));
    assert_ne!(inside["/etc/machine-id"], outside["/etc/machine-id"]);
    assert_eq!(inside["/etc/hostname"], "nsbox\n");
    assert_eq!(inside["pids"], json!([1, 2]), "init and the script alone");
}
