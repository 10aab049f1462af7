//! No Landlock, or an old one: a run works without it or with what it has, and says so.

use std::path::Path;

use nsbox::outcome::LayerStatus;

use crate::harness::require;
use crate::host::{PYTHON, everyone};

/// Prints the Landlock ABI; an error where there is none.
const ABI: &str = "
import ctypes, os
abi = ctypes.CDLL(None, use_errno=True).syscall(444, None, ctypes.c_size_t(0), 1)
if abi < 0:
    raise SystemExit(f'no Landlock: {os.strerror(ctypes.get_errno())}')
print(abi)
";

#[test]
fn absent_landlock_is_no_obstacle_and_is_said() {
    // Not built in, and built in but not enabled at boot.
    for (errno, says) in [(libc::ENOSYS, "Function not implemented"), (libc::EOPNOTSUPP, "Operation not supported")] {
        for host in everyone() {
            let host = host.refusing(&[libc::SYS_landlock_create_ruleset], errno);
            host.refuses(&[PYTHON, "-c", ABI], says);
            let ran = host.works();
            let landlock = &ran.outcome.enforced.landlock;
            assert_eq!((landlock.status, &landlock.applied), (LayerStatus::Missing, &None));
            assert!(landlock.why.as_ref().unwrap().contains("lsm=landlock"), "{landlock:?}");
            let layer = host.layer("landlock");
            assert_eq!((&layer["status"], &layer["required"]), (&"refused".into(), &false.into()));
            assert!(layer["knobs"].to_string().contains("landlock in its lsm= boot parameter"), "{layer:#}");
        }
    }
}

#[test]
fn old_landlock_is_used_as_far_as_it_goes() {
    if !require(Path::new("/usr/bin/strace").exists(), "strace") {
        return;
    }
    for host in everyone() {
        // An older one than this kernel's.
        let newest = host.output(&[PYTHON, "-c", ABI], b"").stdout;
        let newest: i32 = String::from_utf8(newest).unwrap().trim().parse().unwrap_or(0);
        if !require(newest > 0, "Landlock") {
            return;
        }
        for abi in 1..=newest.min(7) {
            let host = host.plain();
            // The answer to nsbox's question alone is another; its init, which is not traced, makes a real ruleset.
            let answer = format!("inject=landlock_create_ruleset:retval={abi}");
            let words = ["strace", "-o", "/dev/null", "-e", "trace=landlock_create_ruleset", "-e", &answer];
            let host = host.entered_by(&words, "exec \"$@\"");
            let told = host.output(&[PYTHON, "-c", ABI], b"");
            assert_eq!(told.stdout, format!("{abi}\n").into_bytes(), "{told:?}");
            let ran = host.works();
            let landlock = &ran.outcome.enforced.landlock;
            let applied = Some(format!("ABI {abi}"));
            assert_eq!((landlock.status, &landlock.applied), (LayerStatus::Applied, &applied));
            let layer = host.layer("landlock");
            assert_eq!(layer["status"], if abi < 6 { "degraded" } else { "allowed" }, "{layer:#}");
            assert_eq!(layer["knobs"].to_string().contains("Linux 6.12 or newer"), abi < 6, "{layer:#}");
        }
    }
}
