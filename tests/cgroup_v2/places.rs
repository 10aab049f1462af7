//! Where a run's cgroup can be: in a scope of one's own, in a leaf of it, beside others, without a controller, on a file system
//! that takes no writes, in the cgroup namespace of a container.

use std::process::Command;

use nsbox::outcome::LayerStatus;
use serde_json::{Value, json};

use crate::harness::{Ran, feed, nsbox, outcome_of};
use crate::scope;
use crate::scope::Scope;
use crate::user::User;

const RUN: [&str; 4] = ["run", "--json", "--no-check", "-"];
const DEGRADED: [&str; 5] = ["run", "--json", "--no-check", "--allow-degraded", "-"];
const DELEGATE: &str = "systemd-run --user --scope -p Delegate=yes";

/// Enters the scope, and becomes the command.
const ALONE: &str = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
/// Enters the scope, and stays in it beside the command.
const BESIDE: &str = "echo $$ > \"$0/cgroup.procs\" && \"$@\"; exit $?";

/// Where a command is, and whose it is.
struct Place<'a> {
    /// A line of sh that goes there: `$0` is the scope, `$@` the command.
    script: &'a str,
    scope: &'a Scope,
    /// Root, where there is none.
    user: Option<&'a User>,
}

impl Place<'_> {
    fn nsbox(&self, args: &[&str]) -> Command {
        let inner = self.user.map_or_else(|| nsbox(args), |user| user.nsbox(&[], args));
        let mut command = Command::new("/bin/sh");
        command.args(["-c", self.script]).arg(self.scope.path()).arg(inner.get_program()).args(inner.get_args());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> Ran {
        outcome_of(self.nsbox(args), b"print('ran')")
    }

    /// A run there has its cgroup.
    #[track_caller]
    fn is_whole(&self) {
        let ran = self.run(&RUN).expect("ok");
        assert_eq!((ran.outcome.enforced.cgroup.version, ran.outcome.degraded), (Some(2), false), "{:#}", ran.json);
        assert_eq!(ran.stdout(), "ran\n");
    }

    /// A run there is refused, for that cause and with that knob; by consent it has no cgroup, and its limits' layers say the
    /// same; and so does doctor.
    #[track_caller]
    fn is_refused(&self, cause: &str, knob: &str) {
        let ran = self.run(&RUN).expect("unavailable").says(cause).says(knob).says("allow_degraded: true");
        assert_eq!((ran.status, ran.stdout().as_str()), (125, ""));
        let ran = self.run(&DEGRADED).expect("ok");
        let cgroup = &ran.outcome.enforced.cgroup;
        assert!(ran.outcome.degraded && cgroup.version.is_none(), "{:#}", ran.json);
        for layer in [&cgroup.memory, &cgroup.pids, &cgroup.cpu] {
            assert_eq!(layer.status, LayerStatus::Missing);
            let why = layer.why.as_deref().unwrap();
            assert!(why.contains(cause) && why.contains(knob), "{why}");
        }
        let said = feed(self.nsbox(&["doctor", "--json"]), b"").stdout;
        let report: Value = serde_json::from_slice(&said).unwrap();
        assert_eq!(report["run"], "degraded", "{report:#}");
        let layer = report["layers"].as_array().unwrap().iter().find(|layer| layer["layer"] == "cgroup").unwrap();
        assert_eq!((&layer["status"], &layer["required"]), (&json!("refused"), &json!(true)), "{layer:#}");
        assert!(layer["found"].as_str().unwrap().contains(cause), "{layer:#}");
        assert!(layer["knobs"].to_string().contains(knob), "{layer:#}");
    }
}

fn as_root<'a>(script: &'a str, scope: &'a Scope) -> Place<'a> {
    Place { script, scope, user: None }
}

fn ordinarily<'a>(script: &'a str, scope: &'a Scope, user: &'a User) -> Place<'a> {
    Place { script, scope, user: Some(user) }
}

#[test]
fn process_alone_in_its_scope_moves_into_a_leaf() {
    let (Some(scope), Some(user)) = (scope(), User::find()) else { return };
    let scope = scope.delegated_to(user.id);
    ordinarily(ALONE, &scope, &user).is_whole();
    assert_eq!(scope.children().len(), 1, "the leaf goes with the scope: {:?}", scope.children());
}

#[test]
fn process_beside_others_is_refused_for_it_must_not_move_them() {
    let (Some(scope), Some(user)) = (scope(), User::find()) else { return };
    let scope = scope.delegated_to(user.id);
    ordinarily(BESIDE, &scope, &user).is_refused("has processes of its own", DELEGATE);
    assert_eq!(scope.children(), [] as [std::path::PathBuf; 0]);
}

#[test]
fn process_in_a_leaf_of_its_scope_has_runs_beside_it() {
    let (Some(scope), Some(user)) = (scope(), User::find()) else { return };
    let scope = scope.delegated_to(user.id);
    let leaf = Scope::under(scope.path()).unwrap().delegated_to(user.id);
    scope.write("cgroup.subtree_control", "+memory +pids +cpu");
    ordinarily(BESIDE, &leaf, &user).is_whole();
    assert_eq!(scope.children(), [leaf.path()], "the run's is gone");
}

#[test]
fn user_whose_cgroup_is_roots_is_refused() {
    let (Some(scope), Some(user)) = (scope(), User::find()) else { return };
    let cause = "Permission denied";
    ordinarily(ALONE, &scope, &user).is_refused(cause, DELEGATE);
    // A leaf of a cgroup whose children have the controllers, and neither is the user's.
    scope.write("cgroup.subtree_control", "+memory +pids +cpu");
    let leaf = Scope::under(scope.path()).unwrap();
    ordinarily(BESIDE, &leaf, &user).is_refused(cause, DELEGATE);
}

#[test]
fn missing_controller_is_named_alone() {
    let (Some(above), Some(user)) = (scope(), User::find()) else { return };
    above.write("cgroup.subtree_control", "+memory +pids");
    let scope = Scope::under(above.path()).unwrap().delegated_to(user.id);
    ordinarily(ALONE, &scope, &user).is_refused("no cgroup hierarchy offers cpu to this process", "Delegate=");
}

#[test]
fn missing_controller_sends_root_further_up() {
    let Some(above) = scope() else { return };
    above.write("cgroup.subtree_control", "+memory +pids");
    let scope = Scope::under(above.path()).unwrap();
    as_root(BESIDE, &scope).is_whole();
    assert!(scope.children().is_empty() && above.children().len() == 1);
}

#[test]
fn root_beside_others_has_runs_where_the_controllers_are_enabled() {
    let Some(scope) = scope() else { return };
    as_root(BESIDE, &scope).is_whole();
    assert!(scope.children().is_empty());
}

#[test]
fn read_only_file_system_is_named() {
    let Some(scope) = scope() else { return };
    let script = "echo $$ > \"$0/cgroup.procs\" && exec unshare -m sh -c '
        mount -o remount,bind,ro /sys/fs/cgroup && exec \"$@\"' sh \"$@\"";
    as_root(script, &scope).is_refused("is mounted read-only", "writable-cgroups=true");
}

/// Becomes the first process of a cgroup namespace, whose hierarchy is mounted with the options `OPTIONS`, as in a container.
const CONTAINER: &str = "echo $$ > \"$0/cgroup.procs\" && exec unshare -C -m sh -c '
    umount /sys/fs/cgroup && mount -t cgroup2 -o OPTIONS cgroup2 /sys/fs/cgroup && exec \"$@\"' sh \"$@\"";

#[test]
fn cgroup_namespace_with_a_mount_of_its_own_is_a_scope() {
    let Some(scope) = scope() else { return };
    as_root(&CONTAINER.replace("OPTIONS", "rw"), &scope).is_whole();
    assert_eq!(scope.children().len(), 1, "made inside the namespace: {:?}", scope.children());
}

#[test]
fn cgroup_namespace_with_a_read_only_mount_is_refused() {
    let Some(scope) = scope() else { return };
    let script = CONTAINER.replace("OPTIONS", "ro");
    as_root(&script, &scope).is_refused("is mounted read-only", "writable-cgroups=true");
}

#[test]
fn cgroup_namespace_with_other_processes_in_its_root_is_refused() {
    let Some(scope) = scope() else { return };
    let script = CONTAINER.replace("OPTIONS", "rw").replace("exec \"$@\"' sh", "{ \"$@\"; exit $?; }' sh");
    as_root(&script, &scope).is_refused("has processes of its own", "leaf");
}

#[test]
fn cgroup_namespace_under_the_mount_of_another_is_told_to_mount_its_own() {
    let Some(scope) = scope() else { return };
    let script = "echo $$ > \"$0/cgroup.procs\" && exec unshare -C \"$@\"";
    as_root(script, &scope).is_refused("another cgroup namespace", "mount -t cgroup2 cgroup2 /sys/fs/cgroup");
}
