//! A tmpfs that does not know `nr_inodes`.

use std::path::Path;

use crate::harness::require;
use crate::host::{Host, everyone};

const CAUSE: &str = "failed to limit the tmpfs's inodes: Invalid argument";
const KNOB: &str = "a kernel whose tmpfs takes size and nr_inodes";

/// A host where the fsconfig(2) of that number of every process is refused, as the kernel refuses an unknown option.
fn refusing(host: Host, number: u32) -> Host {
    let inject = format!("inject=fsconfig:error=EINVAL:when={number}");
    host.entered_by(&["strace", "-f", "-o", "/dev/null", "-e", "trace=fsconfig", "-e", &inject], "exec \"$@\"")
}

#[test]
fn tmpfs_without_a_limit_of_inodes_is_refused_and_named() {
    if !require(Path::new("/usr/bin/strace").exists(), "strace") {
        return;
    }
    for host in everyone() {
        // Of a run: /proc's option and its making, then the tmpfs's size and inodes.
        let host = refusing(host, 4);
        let ran = host.run(&[]).expect("unavailable").says(CAUSE).says(KNOB);
        assert_eq!((ran.status, ran.stdout().as_str()), (125, ""));
        let report = host.doctor();
        let summary = report["summary"].as_str().unwrap();
        assert!(report["run"] == "refused" && summary.contains(CAUSE) && summary.contains(KNOB), "{report:#}");
        host.assert_nothing_left();
    }
    for host in everyone() {
        // Of doctor's own probe: the tmpfs alone.
        let tmpfs = refusing(host, 2).layer("tmpfs");
        assert!(tmpfs["status"] == "refused" && tmpfs["found"].as_str().unwrap().contains(CAUSE), "{tmpfs:#}");
        assert!(tmpfs["knobs"].to_string().contains(KNOB), "{tmpfs:#}");
    }
}
