//! How runs end, what they leave, and what their outcomes say.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nsbox::config::Resolver;
use nsbox::event::Log;
use nsbox::outcome::{Backend, LayerStatus};
use nsbox::router::Router;
use nsbox::sandbox::{Stream, Watch};
use serde_json::json;

use super::{PYTHON, args, everyone, run};
use crate::harness::{alone, judge, nsbox, outcome_of, patiently, until};
use crate::user::User;

fn is_there(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}

/// Folders of runs in a user's place for temporary files.
fn folders(place: &Path) -> Vec<String> {
    let names = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("nsbox-")).collect()
}

#[test]
fn result_comes_back_and_the_outcome_says_what_is_weak() {
    for user in everyone() {
        let source = "import os\nprint('out')\nresult = {'uid': os.getuid(), 'list': [1, 2.5, None]}\nmetrics = {'sharpe_ratio': 1.5}";
        let ran = run(&user, &[], source).expect("ok").says("isolation: weak");
        assert_eq!((ran.stdout().as_str(), ran.outcome.backend), ("out\n", Some(Backend::AstOnly)));
        assert_eq!(
            (&ran.json["metrics"], &ran.json["result"]["list"]),
            (&json!({"sharpe_ratio": 1.5}), &json!([1, 2.5, null]))
        );
        assert!(ran.outcome.degraded);
        let uid = u32::try_from(ran.json["result"]["uid"].as_u64().unwrap()).unwrap();
        let enforced = &ran.outcome.enforced;
        assert_eq!(uid == user.id, user.id != 0, "root's guest is somebody else");
        assert_eq!(enforced.user_map.status == LayerStatus::Applied, user.id == 0);
        for layer in
            [&enforced.namespaces, &enforced.root, &enforced.cgroup.memory, &enforced.cgroup.pids, &enforced.cgroup.cpu]
        {
            assert_eq!(layer.status, LayerStatus::Missing);
            assert!(layer.why.as_ref().unwrap().contains("isolation: weak"), "{layer:?}");
        }
        for layer in
            [&enforced.capabilities, &enforced.no_new_privs, &enforced.seccomp, &enforced.landlock, &enforced.rlimits]
        {
            assert_eq!(layer.status, LayerStatus::Applied, "{layer:?}");
        }
    }
}

#[test]
fn what_the_outcome_claims_is_true_of_the_process() {
    for user in everyone() {
        let source = "print(open('/proc/self/status').read(), open('/proc/self/limits').read())";
        let said = run(&user, &[], source).expect("ok").stdout();
        let line = |key: &str| said.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(line(set), "0000000000000000", "{set}");
        }
        assert_eq!((line("NoNewPrivs:"), line("Seccomp:")), ("1".to_owned(), "2".to_owned()));
        if user.id == 0 {
            assert_eq!((line("CapBnd:"), line("Groups:")), ("0000000000000000".to_owned(), String::new()));
        }
        assert_eq!(line("Max open files").split_whitespace().next().unwrap(), "1024");
        assert_eq!(line("Max core file size").split_whitespace().next().unwrap(), "0");
    }
}

#[test]
fn every_verdict_is_told() {
    for user in everyone() {
        let verdicts = [
            ("error", 1, "raise ValueError('no')", &[][..]),
            ("error", 7, "raise SystemExit(7)", &[]),
            (
                "timeout",
                124,
                "import signal\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
                &["--timeout", "500ms"],
            ),
            ("timeout", 124, "while True: pass", &["--cpu-time", "300ms"]),
            ("oom", 137, "x = []\nwhile True: x.append(b'x' * 1_000_000)", &["--memory", "64m"]),
            ("signal", 139, "import ctypes\nctypes.string_at(0)", &[]),
            ("violation", 159, "import ctypes\nctypes.CDLL(None).syscall(321, 0, 0, 0)", &[]),
            ("output-limit", 122, "while True: print('x' * 1000)", &["--output-limit", "4k", "--output-limit-kill"]),
            ("output-limit", 122, "result = 'x' * 20_000_000", &[]),
        ];
        for (verdict, status, source, flags) in verdicts {
            let ran = run(&user, flags, source).expect(verdict);
            assert_eq!(ran.status, status, "{source}");
            assert_eq!(ran.outcome.backend, Some(Backend::AstOnly));
        }
    }
}

#[test]
fn source_that_the_check_refuses_does_not_run() {
    let args = ["run", "--json", "--backend", "ast-only", "--python", PYTHON, "-"];
    let ran = crate::harness::outcome_of(nsbox(args), b"import os").expect("rejected").says("NSB101");
    assert_eq!(ran.status, 126);
    let unchecked = ["run", "--json", "--no-check", "--backend", "ast-only", "--python", PYTHON, "-"];
    let ran = crate::harness::outcome_of(nsbox(unchecked), b"print(1)").expect("unavailable").says("--no-check");
    assert_eq!((ran.status, ran.stdout()), (125, String::new()));
}

#[test]
fn forks_end_at_their_limit_and_with_the_script() {
    for user in everyone() {
        let source = "
import os, time
children = []
try:
    while len(children) < 500:
        child = os.fork()
        if child == 0:
            time.sleep(600)
        children.append(child)
except OSError as error:
    print(error.errno, *children)
";
        let said = run(&user, &["--pids", "20"], source).expect("ok").stdout();
        let words: Vec<&str> = said.split_whitespace().collect();
        assert_eq!(words[0], nix::libc::EAGAIN.to_string(), "{said}");
        // An ordinary user's other processes come and go, and are counted.
        let most = if user.id == 0 { 20 } else { 60 };
        assert!((2..=most).contains(&words.len()), "{said}");
        assert!(words[1..].iter().all(|pid| !is_there(pid)), "they outlived the run: {said}");
    }
}

#[test]
fn file_over_its_limit_is_refused() {
    for user in everyone() {
        let config = user.path("limits.yaml");
        fs::write(&config, "limits:\n  file_size: 1m\n").unwrap();
        let source = "
try:
    open('big', 'wb').write(b'x' * 3_000_000)
except OSError as error:
    print(error.errno)
open('small', 'wb').write(b'x' * 1000)
";
        assert_eq!(
            run(&user, &["--config", config.to_str().unwrap()], source).expect("ok").stdout(),
            format!("{}\n", nix::libc::EFBIG)
        );
    }
}

#[test]
fn files_over_the_disk_limit_together_end_the_run() {
    let sleep = "\nimport time\ntime.sleep(600)";
    let large = "for n in range(40): open(str(n), 'wb').write(b'x' * 1_000_000)";
    let many = "for n in range(20_000): open(str(n), 'w').close()";
    let deep = "import os\nfor n in range(40):\n    os.makedirs(f'{n}/deep')\n    open(f'{n}/deep/file', 'wb').write(b'x' * 1_000_000)";
    for user in everyone() {
        for source in [large, many, deep] {
            let source = source.to_owned() + sleep;
            run(&user, &["--disk", "4m", "--timeout", "60s"], &source).expect("output-limit").says("--disk");
        }
        // What cannot be looked into cannot be made.
        let hidden = "import os\ntry: os.mkdir('hidden', 0o300)\nexcept OSError as error: print(error.errno)";
        assert_eq!(run(&user, &[], hidden).expect("ok").stdout(), "13\n");
    }
}

#[test]
fn paths_of_the_guest_lead_into_the_folder_of_the_run() {
    for user in everyone() {
        fs::write(user.path("prices.csv"), "1,2").unwrap();
        // Root's guest is another user, who may not read it by itself.
        fs::set_permissions(user.path("prices.csv"), fs::Permissions::from_mode(0o600)).unwrap();
        chown(user.path("prices.csv"), Some(user.id), Some(user.id)).unwrap();
        let input = format!("prices.csv={}", user.path("prices.csv").display());
        let output = user.path("artifacts").display().to_string();
        let source = "
def read(path='/input/prices.csv'):
    return open(path).read()
print(read(), [open(path).read() for path in ('/input/prices.csv', '../input/prices.csv')])
for path in ('/work/own', '/tmp/own', 'own', '/output/made.txt'):
    with open(path, 'a') as file:
        file.write('made')
print(open('/work/own').read(), '/inputs', '/inpu')
";
        let ran = run(&user, &["--input", &input, "--output", &output], source).expect("ok");
        assert_eq!(ran.stdout(), "1,2 ['1,2', '1,2']\nmademade /inputs /inpu\n");
        assert_eq!(fs::read_to_string(user.path("artifacts/made.txt")).unwrap(), "made");
    }
}

#[test]
fn interpreter_that_the_guest_may_not_execute_is_named() {
    // Only root's guest is another user.
    for user in everyone().into_iter().filter(|user| user.id == 0) {
        let closed = user.path("closed");
        fs::create_dir(&closed).unwrap();
        let venv = closed.join("venv").display().to_string();
        let made = Command::new(PYTHON).args(["-m", "venv", "--without-pip", &venv]).status().unwrap();
        assert!(made.success());
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        let interpreter = format!("{venv}/bin/python3");
        // Init's last word and its end race.
        for _ in 0..20 {
            let args = args(&user, &["--json", "-"]);
            let args = args.iter().map(|arg| if arg == PYTHON { &interpreter } else { arg.as_str() });
            let ran = outcome_of(user.nsbox(&[], &args.collect::<Vec<_>>()), b"pass").expect("unavailable");
            ran.says("failed to execute").says("Permission denied");
        }
    }
}

#[test]
fn panic_of_the_caller_ends_the_run() {
    if !alone("runs::panic_of_the_caller_ends_the_run") {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let policy = home.path().join("policy.yaml");
    fs::write(&policy, super::policy::lenient()).unwrap();
    let keys = [("backend", "ast-only"), ("policy", policy.to_str().unwrap()), ("python", PYTHON)];
    let resolver = keys.iter().fold(Resolver::new(), |resolver, (key, value)| resolver.flag(*key, *value, *key));
    let router = Router::new(resolver.resolve().unwrap().config, Log::off());
    let mut said = Vec::new();
    let mut sink = |_: Stream, bytes: &[u8]| {
        said.extend_from_slice(bytes);
        assert!(!said.ends_with(b"\n"), "the caller's own fault");
    };
    let watch = Watch { sink: Some(&mut sink), cancel: None };
    catch_unwind(AssertUnwindSafe(|| router.run(FAMILY, watch))).unwrap_err();
    let said = String::from_utf8(said).unwrap();
    assert_eq!(said.split_whitespace().count(), 2, "{said}");
    assert!(!said.split_whitespace().any(is_there), "{said} outlived the caller's interest");
}

#[test]
fn inputs_are_read_and_artifacts_collected() {
    for user in everyone() {
        fs::write(user.path("prices.csv"), "1,2").unwrap();
        let input = format!("prices={}", user.path("prices.csv").display());
        let output = user.path("artifacts").display().to_string();
        let source = "
import os
print(open(inputs['prices']).read())
try:
    open(inputs['prices'], 'a')
except OSError as error:
    print(error.errno)
open(os.environ['NSBOX_OUTPUT'] + '/made.txt', 'w').write('made')
";
        let ran = run(&user, &["--input", &input, "--output", &output], source).expect("ok");
        assert_eq!(ran.stdout(), "1,2\n13\n");
        assert_eq!(ran.json["artifacts"][0]["path"], "made.txt");
        assert_eq!(fs::read_to_string(user.path("artifacts/made.txt")).unwrap(), "made");
    }
}

/// A script that has started a child, and says both pids.
const FAMILY: &str = "
import os, time
child = os.fork()
if child == 0:
    time.sleep(600)
print(os.getpid(), child, flush=True)
time.sleep(600)
";

/// Starts it; the command and both pids.
fn family(user: &User) -> (std::process::Child, Vec<String>) {
    let script = user.path("family.py");
    fs::write(&script, FAMILY).unwrap();
    let args = args(user, &[&script.display().to_string()]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut command = user.nsbox(&[], &args);
    let mut child = command.env("TMPDIR", user.path("")).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line).unwrap();
    let pids: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    assert_eq!(pids.len(), 2, "{line}");
    (child, pids)
}

#[test]
fn killed_supervisor_takes_the_run_along_and_the_next_removes_its_folder() {
    for user in everyone() {
        let (mut supervisor, pids) = family(&user);
        assert!(pids.iter().all(|pid| is_there(pid)));
        assert_eq!(folders(&user.path("")).len(), 1);
        supervisor.kill().unwrap();
        supervisor.wait().unwrap();
        until("the script and its child are gone", || !pids.iter().any(|pid| is_there(pid)));
        let args = args(&user, &["--json", "-"]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut command = user.nsbox(&[], &args);
        command.env("TMPDIR", user.path(""));
        judge(&crate::harness::feed(command, b"pass")).expect("ok");
        assert_eq!(folders(&user.path("")), Vec::<String>::new());
    }
}

#[test]
fn interrupted_run_is_cancelled_and_leaves_nothing() {
    for user in everyone() {
        let (supervisor, pids) = family(&user);
        let begun = Instant::now();
        kill(Pid::from_raw(supervisor.id().cast_signed()), Signal::SIGINT).unwrap();
        let output = supervisor.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130));
        assert!(begun.elapsed() < patiently(Duration::from_secs(5)));
        assert!(!pids.iter().any(|pid| is_there(pid)));
        assert_eq!(folders(&user.path("")), Vec::<String>::new());
    }
}
