//! A host whose /proc is masked: the kernel refuses a new one, in which the masked could be seen.

use crate::harness::{is_root, skipped};
use crate::host::everyone;

#[test]
fn masked_proc_is_named_with_the_way_to_unmask_it() {
    if !is_root() {
        skipped("only root can mask a folder of /proc");
        return;
    }
    for host in everyone() {
        let host = host.prepared_by(&["unshare", "--mount"], "mount -t tmpfs tmpfs /proc/fs; exec \"$@\"");
        let mount = "unshare -Urmpf sh -c 'mount -t proc proc /mnt'";
        host.refuses(&["sh", "-c", mount], "permission denied");
        host.is_unavailable(
            "procfs",
            "failed to make the guest's /proc: Operation not permitted",
            "unmask /proc: docker run --security-opt systempaths=unconfined",
        );
    }
}
