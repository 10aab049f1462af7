//! The same attacks that a sandbox is put to: raw system calls, and what a careless launcher leaves open.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::{PYTHON, args, everyone};
use crate::harness::judge;
use crate::user::User;

fn attacks(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/isolation").join(name).display().to_string()
}

/// Runs an input as `__main__`; what the check thinks of that does not matter here.
const DRIVER: &str =
    "import runpy, sys\nsys.argv[0] = inputs['attack']\nrunpy.run_path(inputs['attack'], run_name='__main__')\n";

/// The command that runs an attack of the isolation suite under the lenient policy.
fn attack(user: &User, name: &str, arguments: &[&str]) -> Command {
    let driver = user.path("driver.py");
    fs::write(&driver, DRIVER).unwrap();
    let mut flags = vec!["--json".to_owned(), format!("--input=attack={}", attacks(name))];
    flags.extend(arguments.iter().map(|argument| format!("--arg={argument}")));
    flags.push(driver.display().to_string());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let args = args(user, &flags);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    user.nsbox(&[], &args)
}

/// What an attack says of itself inside.
#[track_caller]
fn inside(command: &mut Command) -> Value {
    let ran = judge(&command.output().unwrap()).expect("ok");
    serde_json::from_str(&ran.stdout()).unwrap_or_else(|error| panic!("{error}: {ran:#?}"))
}

/// Raw calls for which the whole run is killed.
const FATAL: [&str; 15] = [
    "acct",
    "bpf",
    "delete_module",
    "finit_module",
    "init_module",
    "ioperm",
    "iopl",
    "kexec_file_load",
    "kexec_load",
    "pivot_root",
    "reboot",
    "swapoff",
    "swapon",
    "userfaultfd",
    "x32_getpid",
];

/// All raw calls that there are, by name.
fn calls() -> Vec<String> {
    let text = fs::read_to_string(attacks("guest/kernel.py")).unwrap();
    let (_, attacks) = text.split_once("ATTACKS = {").unwrap();
    let names = attacks.lines().filter_map(|line| line.strip_prefix("    \"")?.split_once("\": "));
    names.map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn raw_calls_are_refused_from_the_main_thread_a_second_one_and_after_exec() {
    let calls: Vec<String> = calls().into_iter().filter(|name| !FATAL.contains(&name.as_str())).collect();
    for user in everyone() {
        for mode in ["main", "thread", "exec"] {
            let mut command = attack(&user, "guest/kernel.py", &[&calls.join(","), mode]);
            let said: BTreeMap<String, String> = serde_json::from_value(inside(&mut command)).unwrap();
            assert_eq!(said.len(), calls.len());
            let done: Vec<&String> = said.iter().filter(|(_, how)| *how == "ok").map(|(name, _)| name).collect();
            assert_eq!(done, Vec::<&String>::new(), "uid {}, from {mode}: {said:#?}", user.id);
        }
    }
}

#[test]
fn fatal_calls_kill_the_run() {
    let users = everyone();
    for (index, name) in FATAL.iter().enumerate() {
        let (user, mode) = (&users[index % users.len()], ["main", "thread", "exec"][index % 3]);
        let output = attack(user, "guest/kernel.py", &[name, mode]).output().unwrap();
        let ran = judge(&output).expect("violation").says(name);
        assert_eq!(ran.stdout(), "", "{name}: the script went on");
    }
}

/// The command, started by a hostile launcher, with a terminal or with pipes.
fn hostile(user: &User, kind: &str, command: &Command) -> Command {
    let place = user.path(&format!("hostile-{kind}")).display().to_string();
    let mut words = vec![PYTHON.to_owned(), attacks("outside/hostile.py"), place, kind.to_owned()];
    words.push(command.get_program().to_string_lossy().into_owned());
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    let mut outer = user.command(&words);
    for (name, value) in command.get_envs() {
        outer.env(name, value.unwrap_or_default());
    }
    outer
}

#[test]
fn inherited_state_is_not_the_scripts() {
    for user in everyone() {
        let said = inside(&mut hostile(&user, "pipes", &attack(&user, "guest/inherited.py", &[])));
        assert_eq!(said["leaks"], json!([]), "{said:#}");
        let fds: Vec<&str> = said["fds"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fds, ["0", "1", "2", "4"], "stdin, stdout, stderr and the result's memfd alone: {said:#}");
        for (name, how) in said["init"].as_object().unwrap() {
            assert_eq!(how, "EACCES", "/proc/1/{name}");
        }
        assert_eq!((&said["preloaded"], &said["sitecustomized"]), (&json!(false), &json!(false)));
        assert_eq!((&said["stdin"], &said["fds"]["0"]), (&json!(""), &json!("/dev/null")));
        let said = inside(&mut hostile(&user, "tty", &attack(&user, "guest/inherited.py", &[])));
        assert_eq!(said["terminal"]["ttys"], json!([]), "{said:#}");
        assert_ne!(said["terminal"]["dev_tty"], "ok");
        assert_eq!(said["terminal"]["tiocsti"], "EPERM");
    }
}
