//! Installs a program in init, which the guest inherits it from, and hands its listener to the supervisor.

use super::Program;
use crate::sandbox::plan::{Arg, Plan};
use crate::sys::program::REPORT_LISTENER;

impl Program {
    /// Plans the seccomp filter and the hand-over of its listener to the supervisor.
    pub(in crate::sandbox) fn plan(&self, plan: &mut Plan) {
        const NEW_LISTENER: u64 = 1 << 3;
        let mut bpf = Vec::with_capacity(self.bpf.len() * size_of::<libc::sock_filter>());
        for instruction in self.bpf.iter() {
            bpf.extend_from_slice(&instruction.code.to_ne_bytes());
            bpf.extend_from_slice(&[instruction.jt, instruction.jf]);
            bpf.extend_from_slice(&instruction.k.to_ne_bytes());
        }
        let program = plan.data(&bpf);
        // struct sock_fprog: u16 length, padding, pointer.
        let mut fprog = [0; 16];
        let length = u16::try_from(self.bpf.len()).unwrap_or(u16::MAX);
        fprog[..2].copy_from_slice(&length.to_ne_bytes());
        let fprog = plan.data(&fprog);
        plan.point(fprog, 8, program);
        let args = [Arg::Value(libc::SECCOMP_SET_MODE_FILTER.into()), Arg::Value(NEW_LISTENER), Arg::Data(fprog)];
        let listener = plan.open("install the seccomp filter", libc::SYS_seccomp, &args);

        plan.send(REPORT_LISTENER, listener);
        plan.close(listener);
    }
}
