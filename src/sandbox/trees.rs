//! The inputs of slots, for a caller who may not clone mounts: a helper does it, in the user namespace of the zygote, which is
//! the caller's own.
//!
//! A cold run's init clones them by itself, before it leaves the host's root. A slot's init has never seen that. See
//! open_tree(2), user_namespaces(7).

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use super::mounts::Bind;
use super::nest::hatch;
use super::plan::{Arg, Plan};
use super::zygote::Zygote;
use super::{Error, Sandbox, supervise};
use crate::sys::program::REPORT_TREE;

impl Sandbox {
    /// Clones them, where the supervisor could not.
    pub(super) fn clone_inputs(
        &self,
        zygote: &Zygote,
        inputs: &mut [(Bind, bool)],
        deadline: Instant,
    ) -> Result<(), Error> {
        let Some(namespace) = zygote.user_namespace.as_ref().filter(|_| !inputs.is_empty()) else { return Ok(()) };
        let mut plan = Self::plan_trees(namespace, inputs);
        let (init, control) = hatch(&self.ground.init, 0, None, false)?;
        self.ground.send(&mut plan, &control)?;
        for (bind, _) in inputs {
            let (report, tree) = self.hear_from(zygote, &control, &plan, deadline)?;
            // By path, the slot's init would find what the image has there.
            let tree = tree.filter(|_| report.kind == REPORT_TREE).ok_or(supervise::Error::InitDied)?;
            bind.detach(tree);
        }
        drop(init);
        Ok(())
    }

    fn plan_trees(namespace: &OwnedFd, inputs: &[(Bind, bool)]) -> Plan {
        let mut plan = Plan::new();
        let args = [Arg::Fd(namespace.as_raw_fd()), Arg::Value(libc::CLONE_NEWUSER as u64)];
        plan.call("enter the pool's user namespace", libc::SYS_setns, &args);
        plan.call("make a mount namespace", libc::SYS_unshare, &[Arg::Value(libc::CLONE_NEWNS as u64)]);
        for (bind, _) in inputs {
            let tree = bind.plan_open(&mut plan);
            plan.send(REPORT_TREE, tree);
            plan.close(tree);
        }
        plan
    }
}
