//! A low RLIMIT_NPROC: of the user's processes, or of those that a run may have.

use nsbox::outcome::LayerStatus;

use crate::harness::skipped;
use crate::host::{Host, PYTHON, everyone};
use crate::user::User;

const KNOB: &str = "ulimit -u, LimitNPROC= in the systemd unit";

fn limited(host: Host, most: u32) -> Host {
    host.entered_by(&["prlimit", &format!("--nproc={most}")], "exec \"$@\"")
}

#[test]
fn exhausted_processes_are_named_with_their_limit() {
    for host in everyone() {
        let root = host.is_roots();
        let host = limited(host, 1);
        if root {
            // Root itself is not held by it: its guest is, who is somebody else.
            let guest = "setpriv --reuid=1879048191 --regid=1879048191 --clear-groups sh -c 'true & wait $!'";
            host.refuses(&["sh", "-c", guest], "Cannot fork");
            host.is_unavailable("run", "failed to start the guest's process: Resource temporarily unavailable", KNOB);
        } else {
            host.refuses(&["sh", "-c", "true & wait $!"], "Cannot fork");
            let cause = "failed to make the namespaces: Resource temporarily unavailable";
            host.is_unavailable("user_namespace", cause, KNOB);
        }
    }
}

#[test]
fn low_limit_that_suffices_is_applied_and_said() {
    for host in [User::root(), User::alone()].into_iter().flatten().map(Host::of) {
        let ran = limited(host, 5).works();
        let rlimits = &ran.outcome.enforced.rlimits;
        assert_eq!(rlimits.status, LayerStatus::Applied);
        let texts = [&rlimits.configured, &rlimits.applied].map(|text| text.clone().unwrap());
        assert!(texts[0].contains("NPROC=65 ") && texts[1].contains("NPROC=5 "), "{rlimits:?}");
        assert!(rlimits.why.as_ref().unwrap().contains("ulimit -H"), "{rlimits:?}");
    }
}

#[test]
fn command_does_without_threads() {
    let Some(user) = User::alone() else {
        skipped("only root can become a user without processes");
        return;
    };
    let host = Host::of(user);
    // The first run, which compiles the guest's runner, takes more.
    host.works();
    // The command itself, init, and the guest.
    let host = limited(host, 3);
    let nsbox = host.path("nsbox").display().to_string();
    let source = "import sys\nprint('ran')\nprint('aloud', file=sys.stderr)\nraise SystemExit(3)";
    let output =
        host.output(&[&nsbox, "run", "--no-check", "--allow-degraded", "--python", PYTHON, "-"], source.as_bytes());
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(3), b"ran\n".as_slice()), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("aloud"), "{output:?}");
    host.assert_nothing_left();
}
