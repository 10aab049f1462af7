//! In a container as Docker makes it: no user namespaces, no mounts, no CAP_SYS_PTRACE, no cgroup to write to.

use std::sync::Arc;

use crate::engine::{BASE, Engine};
use crate::harness::{Ran, feed, judge};
use crate::user::User;
use crate::{args, everyone};

/// The tests' engine with its base image.
fn engine() -> Option<Arc<Engine>> {
    Engine::shared().filter(|engine| engine.has_base())
}

/// Runs words in a throw-away container of the base image, as the user.
fn words(engine: &Engine, user: &User, words: &[&str], input: &str) -> std::process::Output {
    let home = user.path("").display().to_string();
    let volume = format!("{home}:{home}");
    let variables = [format!("HOME={home}"), format!("NSBOX_STORE={home}/store"), "NSBOX_EVENT_LOG=none".to_owned()];
    let mut all = vec!["run", "--rm", "--interactive", "--network=none", "--volume", &volume];
    all.extend(variables.iter().flat_map(|variable| ["--env", variable.as_str()]));
    let become_it = user.become_it();
    all.push(BASE);
    all.extend(become_it.iter().map(String::as_str).chain(words.iter().copied()));
    feed(engine.docker(all), input.as_bytes())
}

/// A run there, under the lenient policy.
#[track_caller]
fn run(engine: &Engine, user: &User, flags: &[&str], source: &str) -> Ran {
    let (nsbox, args) = (user.path("nsbox").display().to_string(), args(user, &[flags, &["--json", "-"]].concat()));
    let all: Vec<&str> = [nsbox.as_str()].into_iter().chain(args.iter().map(String::as_str)).collect();
    judge(&words(engine, user, &all, source))
}

#[test]
fn container_without_namespaces_runs_scripts_and_holds_them() {
    let Some(engine) = engine() else { return };
    for user in everyone() {
        let made = words(&engine, &user, &["unshare", "--user", "true"], "");
        assert!(!made.status.success(), "the container makes user namespaces: {made:?}");

        let ran = run(&engine, &user, &[], "import os\nresult = os.getuid()").expect("ok").says("isolation: weak");
        assert_eq!(ran.json["result"].as_u64() == Some(user.id.into()), user.id != 0, "root's guest is somebody else");

        let read = "try: open('/etc/passwd')\nexcept OSError as error: print(error.errno)";
        assert_eq!(run(&engine, &user, &[], read).expect("ok").stdout(), "13\n");

        // Root of a container may not look into processes of another user, but for what is done about that.
        let grow = "x = []\nwhile True: x.append(b'x' * 1_000_000)";
        run(&engine, &user, &["--memory", "64m", "--timeout", "60s"], grow).expect("oom");
        let fill = "import time\nfor n in range(40): open(str(n), 'wb').write(b'x' * 1_000_000)\ntime.sleep(600)";
        run(&engine, &user, &["--disk", "4m", "--timeout", "60s"], fill).expect("output-limit").says("--disk");
        run(&engine, &user, &["--timeout", "300ms"], "while True: pass").expect("timeout");
    }
}
