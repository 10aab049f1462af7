//! Inside a container of Docker's: as it comes, with CAP_SYS_ADMIN and no filter, and with all that a run needs.

use std::sync::Arc;

use crate::engine::Engine;
use crate::harness::judge;
use crate::host::{Host, everyone};

/// `--privileged` in the parts of it that matter here.
const ADMIN: [&str; 2] = ["--cap-add=SYS_ADMIN", "--security-opt=seccomp=unconfined"];
const UNMASKED: &str = "--security-opt=systempaths=unconfined";
const CGROUPS: [&str; 2] = ["--cgroupns=host", "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw"];

/// The tests' engine with its base image.
fn engine() -> Option<Arc<Engine>> {
    Engine::shared().filter(|engine| engine.has_base())
}

#[test]
fn docker_as_it_comes_refuses_user_namespaces() {
    let Some(engine) = engine() else { return };
    for host in everyone() {
        let host = host.inside(&engine, &[]);
        host.refuses(&["unshare", "--user", "true"], "Operation not permitted");
        host.is_unavailable(
            "user_namespace",
            "failed to make the namespaces: Operation not permitted",
            "a seccomp filter is around this process; in a container: docker run --security-opt seccomp=unconfined",
        );
    }
}

#[test]
fn docker_without_a_filter_masks_proc() {
    let Some(engine) = engine() else { return };
    for flags in [&ADMIN[..], &ADMIN[1..]] {
        let flags = [flags, &CGROUPS].concat();
        for host in everyone() {
            let host = host.inside(&engine, &flags);
            let mount = "unshare -Urmpf sh -c 'mount -t proc proc /mnt'";
            host.refuses(&["sh", "-c", mount], "permission denied");
            host.is_unavailable(
                "procfs",
                "failed to make the guest's /proc: Operation not permitted",
                "unmask /proc: docker run --security-opt systempaths=unconfined",
            );
        }
    }
}

#[test]
fn docker_without_a_writable_cgroup_degrades_by_consent() {
    let Some(engine) = engine() else { return };
    let flags = [&ADMIN[..], &[UNMASKED]].concat();
    for host in everyone().into_iter().filter(Host::is_roots) {
        let host = host.inside(&engine, &flags);
        let folder = "cd /sys/fs/cgroup; [ ! -d memory ] || cd memory; mkdir nsbox-test && rmdir nsbox-test";
        host.refuses(&["sh", "-c", folder], "Read-only file system");
        let knobs = ["docker run --security-opt writable-cgroups=true", &CGROUPS.join(" ")];
        let ran = host.run(&[]).expect("unavailable").says("is mounted read-only");
        knobs.iter().fold(ran, |ran, knob| ran.says(knob));
        assert_eq!(host.doctor()["run"], "degraded");
        let cgroup = host.layer("cgroup");
        assert!(cgroup["found"].as_str().unwrap().contains("is mounted read-only"), "{cgroup:#}");
        assert!(knobs.iter().all(|knob| cgroup["knobs"].to_string().contains(knob)), "{cgroup:#}");
        let ran = host.run(&["--allow-degraded"]).expect("ok");
        let why = ran.outcome.enforced.cgroup.memory.why.unwrap();
        assert!(ran.outcome.degraded && why.contains("is mounted read-only"), "{why}");
        host.assert_nothing_left();
    }
}

#[test]
fn docker_unmasked_with_cgroups_works() {
    let Some(engine) = engine() else { return };
    // CAP_SYS_ADMIN is not needed, but does no harm.
    for flags in [&ADMIN[..], &ADMIN[1..]] {
        let flags = [flags, &[UNMASKED], &CGROUPS].concat();
        for host in everyone() {
            let host = host.inside(&engine, &flags);
            host.works();
            if host.is_roots() {
                host.script(&["--memory", "64m"], "block = bytearray(100 << 20)").expect("oom");
            }
        }
    }
}

#[test]
fn docker_as_it_comes_serves_ast_only() {
    let Some(engine) = engine() else { return };
    for host in everyone() {
        let host = host.inside(&engine, &[]);
        let nsbox = host.path("nsbox").display().to_string();
        let words = [&nsbox, "run", "--json", "--backend", "ast-only", "--python", crate::host::PYTHON, "-"];
        let ran = judge(&host.output(&words, b"import math\nmetrics = {'root': math.sqrt(2)}"));
        let ran = ran.expect("ok").says("isolation: weak");
        assert_eq!(ran.json["metrics"]["root"], 2_f64.sqrt());
        assert_eq!(ran.json["enforced"]["landlock"]["status"], "applied");
        host.assert_nothing_left();
    }
}
