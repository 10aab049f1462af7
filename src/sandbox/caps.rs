//! Takes every capability from init, and so from the guest: no set keeps one, no `execve` gives one back.
//!
//! See capabilities(7), PR_SET_SECUREBITS(2const), PR_SET_NO_NEW_PRIVS(2const).

use super::plan::{Arg, Plan};

/// Highest capability number that a kernel may have; those that it lacks answer EINVAL.
const CAPABILITIES: u64 = 64;
/// NOROOT, NO_SETUID_FIXUP, KEEP_CAPS off, NO_CAP_AMBIENT_RAISE, and each of them locked.
const SECUREBITS: u64 = 0b1110_1111;
/// _LINUX_CAPABILITY_VERSION_3.
const VERSION: u32 = 0x2008_0522;

/// Plans it; nothing that needs a capability may follow.
pub(crate) fn plan_drop(plan: &mut Plan) {
    plan_bound(plan);
    plan_clear(plan);
}

/// Plans that no `execve` gives a capability, now or later, to this process or those that it forks: only what is ambient
/// stays.
pub(crate) fn plan_bound(plan: &mut Plan) {
    for capability in 0..CAPABILITIES {
        let args = [Arg::Value(libc::PR_CAPBSET_DROP as u64), Arg::Value(capability)];
        plan.call_tolerating(libc::EINVAL, "empty the bounding set", libc::SYS_prctl, &args);
    }
    prctl(plan, "lock the secure bits", libc::PR_SET_SECUREBITS, SECUREBITS, 0);
    prctl(plan, "set no_new_privs", libc::PR_SET_NO_NEW_PRIVS, 1, 0);
}

/// Plans that every set is empty, after [`plan_bound`].
pub(crate) fn plan_clear(plan: &mut Plan) {
    prctl(plan, "clear the ambient set", libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0);
    let header: Vec<u8> = [VERSION, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    plan.call("drop all capabilities", libc::SYS_capset, &[Arg::Bytes(&header), Arg::Bytes(&[0; 24])]);
    prctl(plan, "hide init from the guest", libc::PR_SET_DUMPABLE, 0, 0);
}

fn prctl(plan: &mut Plan, step: &'static str, option: i32, a: u64, b: u64) {
    let args = [Arg::Value(option.unsigned_abs().into()), Arg::Value(a), Arg::Value(b), Arg::Value(0), Arg::Value(0)];
    plan.call(step, libc::SYS_prctl, &args);
}
