//! Where a run's cgroup can be: in a scope of one's own, in a leaf of it, beside others, without a controller, on a file system
//! that takes no writes, in the cgroup namespace of a container.

use std::process::Command;

use nsbox::outcome::LayerStatus;

use crate::harness::{Ran, nsbox, outcome_of};
use crate::scope;
use crate::scope::Scope;
use crate::user::User;

const RUN: [&str; 4] = ["run", "--json", "--no-check", "-"];
const DEGRADED: [&str; 5] = ["run", "--json", "--no-check", "--allow-degraded", "-"];

/// Enters the scope, and becomes the command.
const ALONE: &str = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
/// Enters the scope, and stays in it beside the command.
const BESIDE: &str = "echo $$ > \"$0/cgroup.procs\" && \"$@\"; exit $?";

/// Lets a shell run `inner` as `script` says: `$0` is the scope, `$@` the command.
fn through(script: &str, scope: &Scope, inner: &Command) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).arg(scope.path()).arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// As root.
#[track_caller]
fn root(script: &str, scope: &Scope, args: &[&str]) -> Ran {
    outcome_of(through(script, scope, &nsbox(args)), b"print('ran')")
}

/// As an ordinary user.
#[track_caller]
fn ordinary(script: &str, scope: &Scope, user: &User, args: &[&str]) -> Ran {
    outcome_of(through(script, scope, &user.nsbox(&[], args)), b"print('ran')")
}

#[track_caller]
fn is_whole(ran: Ran) {
    let ran = ran.expect("ok");
    assert_eq!((ran.outcome.enforced.cgroup.version, ran.outcome.degraded), (Some(2), false), "{:#}", ran.json);
    assert_eq!(ran.stdout(), "ran\n");
}

/// Nothing ran, and the message has these words.
#[track_caller]
fn is_refused(ran: Ran, words: &[&str]) {
    let mut ran = ran.expect("unavailable");
    assert_eq!((ran.status, ran.stdout().as_str()), (125, ""));
    for word in words {
        ran = ran.says(word);
    }
}

/// It ran without a cgroup, and the limits' layers say why in these words.
#[track_caller]
fn is_degraded(ran: Ran, words: &[&str]) {
    let ran = ran.expect("ok");
    let cgroup = &ran.outcome.enforced.cgroup;
    assert!(ran.outcome.degraded && cgroup.version.is_none(), "{:#}", ran.json);
    for layer in [&cgroup.memory, &cgroup.pids, &cgroup.cpu] {
        assert_eq!(layer.status, LayerStatus::Missing);
        let why = layer.why.as_deref().unwrap();
        assert!(words.iter().all(|word| why.contains(word)), "{why}");
    }
}

#[test]
fn process_alone_in_its_scope_moves_into_a_leaf() {
    let (Some(scope), Some(user)) = (scope(), User::find()) else { return };
    let scope = scope.delegated_to(user.id);
    is_whole(ordinary(ALONE, &scope, &user, &RUN));
    assert_eq!(scope.children().len(), 1, "the leaf goes with the scope: {:?}", scope.children());
}

#[test]
fn process_beside_others_is_refused_for_it_must_not_move_them() {
    let (Some(scope), Some(user)) = (scope(), User::find()) else { return };
    let scope = scope.delegated_to(user.id);
    let words = ["has processes of its own", "systemd-run --user --scope -p Delegate=yes", "allow_degraded: true"];
    is_refused(ordinary(BESIDE, &scope, &user, &RUN), &words);
    is_degraded(ordinary(BESIDE, &scope, &user, &DEGRADED), &words);
    assert_eq!(scope.children(), [] as [std::path::PathBuf; 0]);
}

#[test]
fn process_in_a_leaf_of_its_scope_has_runs_beside_it() {
    let (Some(scope), Some(user)) = (scope(), User::find()) else { return };
    let scope = scope.delegated_to(user.id);
    let leaf = Scope::under(scope.path()).unwrap().delegated_to(user.id);
    scope.write("cgroup.subtree_control", "+memory +pids +cpu");
    is_whole(ordinary(BESIDE, &leaf, &user, &RUN));
    assert_eq!(scope.children(), [leaf.path()], "the run's is gone");
}

#[test]
fn user_whose_cgroup_is_roots_is_refused() {
    let (Some(scope), Some(user)) = (scope(), User::find()) else { return };
    let words = ["systemd-run --user --scope -p Delegate=yes", "allow_degraded: true"];
    is_refused(ordinary(ALONE, &scope, &user, &RUN), &words);
    is_degraded(ordinary(ALONE, &scope, &user, &DEGRADED), &words);
    // A leaf of a cgroup whose children have the controllers, and neither is the user's.
    scope.write("cgroup.subtree_control", "+memory +pids +cpu");
    let leaf = Scope::under(scope.path()).unwrap();
    is_refused(ordinary(BESIDE, &leaf, &user, &RUN), &words);
}

#[test]
fn missing_controller_is_named_alone() {
    let (Some(above), Some(user)) = (scope(), User::find()) else { return };
    above.write("cgroup.subtree_control", "+memory +pids");
    let scope = Scope::under(above.path()).unwrap().delegated_to(user.id);
    let words = ["no cgroup hierarchy offers cpu to this process", "Delegate="];
    is_refused(ordinary(ALONE, &scope, &user, &RUN), &words);
    is_degraded(ordinary(ALONE, &scope, &user, &DEGRADED), &words);
}

#[test]
fn missing_controller_sends_root_further_up() {
    let Some(above) = scope() else { return };
    above.write("cgroup.subtree_control", "+memory +pids");
    let scope = Scope::under(above.path()).unwrap();
    is_whole(root(BESIDE, &scope, &RUN));
    assert!(scope.children().is_empty() && above.children().len() == 1);
}

#[test]
fn root_beside_others_has_runs_where_the_controllers_are_enabled() {
    let Some(scope) = scope() else { return };
    is_whole(root(BESIDE, &scope, &RUN));
    assert!(scope.children().is_empty());
}

#[test]
fn read_only_file_system_is_named() {
    let Some(scope) = scope() else { return };
    let script = "echo $$ > \"$0/cgroup.procs\" && exec unshare -m sh -c '
        mount -o remount,bind,ro /sys/fs/cgroup && exec \"$@\"' sh \"$@\"";
    let words = ["mounted read-only", "writable-cgroups=true", "allow_degraded: true"];
    is_refused(root(script, &scope, &RUN), &words);
    is_degraded(root(script, &scope, &DEGRADED), &words);
}

/// Becomes the first process of a cgroup namespace, whose hierarchy is mounted with the options `OPTIONS`, as in a container.
const CONTAINER: &str = "echo $$ > \"$0/cgroup.procs\" && exec unshare -C -m sh -c '
    umount /sys/fs/cgroup && mount -t cgroup2 -o OPTIONS cgroup2 /sys/fs/cgroup && exec \"$@\"' sh \"$@\"";

#[test]
fn cgroup_namespace_with_a_mount_of_its_own_is_a_scope() {
    let Some(scope) = scope() else { return };
    is_whole(root(&CONTAINER.replace("OPTIONS", "rw"), &scope, &RUN));
    assert_eq!(scope.children().len(), 1, "made inside the namespace: {:?}", scope.children());
}

#[test]
fn cgroup_namespace_with_a_read_only_mount_is_refused() {
    let Some(scope) = scope() else { return };
    is_refused(root(&CONTAINER.replace("OPTIONS", "ro"), &scope, &RUN), &["mounted read-only"]);
}

#[test]
fn cgroup_namespace_with_other_processes_in_its_root_is_refused() {
    let Some(scope) = scope() else { return };
    let script = CONTAINER.replace("OPTIONS", "rw").replace("exec \"$@\"' sh", "{ \"$@\"; exit $?; }' sh");
    is_refused(root(&script, &scope, &RUN), &["has processes of its own", "leaf"]);
}

#[test]
fn cgroup_namespace_under_the_mount_of_another_is_told_to_mount_its_own() {
    let Some(scope) = scope() else { return };
    let script = "echo $$ > \"$0/cgroup.procs\" && exec unshare -C \"$@\"";
    let words = ["another cgroup namespace", "mount -t cgroup2 cgroup2 /sys/fs/cgroup"];
    is_refused(root(script, &scope, &RUN), &words);
    is_degraded(root(script, &scope, &DEGRADED), &words);
}
