//! A store on a file system with a quirk: noexec and nosuid, overlayfs, read-only; and inputs on overlayfs.

use crate::harness::{is_root, skipped};
use crate::host::{Host, everyone};

/// Everyone, with a folder of theirs mounted from these lines of sh.
fn mounted(lines: &str) -> Vec<Host> {
    if !is_root() {
        skipped("only root can mount a file system for the store");
        return Vec::new();
    }
    let mount = |host: Host| {
        let line = format!("mkdir -p -m 777 $NSBOX_STORE; {lines}; exec \"$@\"");
        host.prepared_by(&["unshare", "--mount"], &line)
    };
    everyone().into_iter().map(mount).collect()
}

const OVERLAY: &str = "mkdir -p $HOME/layers; mount -t tmpfs tmpfs $HOME/layers; cd $HOME/layers; mkdir lower upper work; \
                       mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay $NSBOX_STORE; cd /; chmod 777 $NSBOX_STORE";

#[test]
fn store_that_may_not_execute_serves_the_hosts_python() {
    for host in mounted("mount -t tmpfs -o noexec,nosuid,nodev,mode=0777 tmpfs $NSBOX_STORE") {
        host.refuses(&["sh", "-c", "cp /bin/true $NSBOX_STORE && $NSBOX_STORE/true"], "Permission denied");
        host.works();
    }
}

#[test]
fn store_on_overlayfs_works() {
    for host in mounted(OVERLAY) {
        let kind = host.output(&["sh", "-c", "stat -f -c %T $NSBOX_STORE"], b"");
        assert_eq!(kind.stdout, b"overlayfs\n", "{kind:?}");
        host.works();
    }
}

#[test]
fn store_that_is_read_only_is_named() {
    for host in mounted("mount -t tmpfs -o ro tmpfs $NSBOX_STORE") {
        host.refuses(&["sh", "-c", "mkdir $NSBOX_STORE/x && rmdir $NSBOX_STORE/x"], "Read-only file system");
        host.is_unavailable("store", "Read-only file system", "NSBOX_STORE");
    }
}

#[test]
fn interpreter_that_may_not_be_executed_is_named() {
    let line = "mkdir -p $HOME/py; mount -t tmpfs -o noexec,mode=0755 tmpfs $HOME/py; cd $HOME/py; mkdir bin lib; \
                cp $(readlink -f /usr/bin/python3) bin/python3; for lib in /usr/lib/python3.*; do \
                mkdir lib/${lib##*/}; mount --bind $lib lib/${lib##*/}; done; cd /";
    for host in mounted(line) {
        let python = host.path("py/bin/python3");
        host.refuses(&["sh", "-c", &format!("[ ! -f {0} ] || {0} -c pass", python.display())], "Permission denied");
        let host = host.with_python(&python);
        let cause = format!("failed to execute {}: Permission denied", python.display());
        host.is_unavailable("run", &cause, "mount -o remount,exec of the file system");
        let layers = host.doctor()["layers"].to_string();
        assert!(
            layers.contains("on a file system mounted noexec") && layers.contains("mount -o remount,exec"),
            "{layers}"
        );
    }
}

#[test]
fn inputs_on_overlayfs_are_shown_or_named() {
    let line = format!(
        "{OVERLAY}; mkdir -m 755 $NSBOX_STORE/open; echo 1 >$NSBOX_STORE/open/file; mkdir -m 700 $NSBOX_STORE/closed; \
         chown -R $(stat -c %u $HOME) $NSBOX_STORE/open $NSBOX_STORE/closed"
    );
    for host in mounted(&line) {
        let flag = |name: &str| format!("{name}={}", host.path("store").join(name).display());
        host.works_with(&["--input", &flag("open")]);
        let ran = host.run(&["--input", &flag("closed")]);
        if host.is_roots() {
            // An ordinary user's guest is that user.
            let ran = ran.expect("unavailable").says("failed to open the input closed=").says("Invalid argument");
            ran.says("has no idmapped mounts").says("chmod -R o+rX");
        } else {
            ran.expect("ok");
        }
        host.assert_nothing_left();
    }
}
