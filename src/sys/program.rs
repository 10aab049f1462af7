//! The set-up program that pid 1 of a sandbox executes: a flat list of system calls, built and checked by the supervisor.
//!
//! Shared, word for word, by the supervisor (`sandbox::plan` writes it) and those who execute it (`sys/init/execute.rs`):
//! the freestanding init and the pool's zygote. One message on the control socket holds it all, and carries the
//! descriptors (SCM_RIGHTS):
//!
//! ```text
//! Header | Op * (setup + guest) | u32 * relocations | data
//! ```
//!
//! Native byte order and layout: both ends are one build on one machine.

/// First word of a program; a build's init refuses any other.
pub const MAGIC: u32 = 0x6e73_0003;
/// Largest program in bytes; init reads it into a static buffer.
pub const MAX_PROGRAM: usize = 192 * 1024;
/// Registers that hold what earlier calls returned (descriptors).
pub const OWN_REGISTERS: usize = 64;
/// Registers that hold the descriptors that came with the program, in their order: as many as one message can carry
/// (SCM_MAX_FD).
pub const PASSED_REGISTERS: usize = 253;
/// The register that holds init's end of the control socket.
pub const CONTROL_REGISTER: usize = OWN_REGISTERS + PASSED_REGISTERS;
/// All registers.
pub const REGISTERS: usize = CONTROL_REGISTER + 1;
/// Descriptors of the program have numbers from here on, out of the way of those that the guest gets.
pub const FIRST_DESCRIPTOR: usize = 10;
/// `Op::dst` of a call whose return value is not kept.
pub const NO_REGISTER: u8 = 0xff;

/// `Op::nr` of the pseudo call that stores a 32-bit argument in the data: (data offset, value).
pub const OP_STORE: u16 = 0xff00;

/// How an argument of an [`Op`] is read. Two bits each, first argument lowest.
pub const ARG_VALUE: u16 = 0;
/// The argument is an offset into the data; the call gets its address.
pub const ARG_DATA: u16 = 1;
/// The argument is the number of a register.
pub const ARG_REGISTER: u16 = 2;

/// What stands before the operations.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u32,
    /// How many operations init executes itself, before it reports that it is ready.
    pub setup: u32,
    /// How many operations the guest's process executes, the last of them `execve`.
    pub guest: u32,
    /// How many words of the data hold offsets that must become addresses.
    pub relocations: u32,
    /// Length of the data in bytes.
    pub data: u32,
    /// Register of a pidfd of the supervisor: readable once it is dead.
    pub supervisor: u32,
    /// Register of the socket on which this program's reports go to the supervisor.
    pub control: u32,
    /// `CLONE_NEW*` of the process that executes this program, where init starts one for it (a slot's init).
    pub namespaces: u32,
    /// Register of the socket on which a restorer takes its orders, where one is to stand over the slot; else 0.
    pub restorer: u32,
    /// Keeps the operations aligned.
    pub reserved: u32,
}

/// One system call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Op {
    /// System call number, or [`OP_STORE`].
    pub nr: u16,
    /// Register for the return value, or [`NO_REGISTER`].
    pub dst: u8,
    /// An errno that counts as success, or 0.
    pub tolerate: u8,
    /// How each argument is read.
    pub kinds: u16,
    /// Keeps the arguments aligned.
    pub reserved: u16,
    /// The arguments.
    pub args: [u64; 6],
}

/// What init says: the first word of each message on the control socket.
pub const REPORT_READY: u32 = 1;
/// An operation failed; `index` and `errno` say which and why. Nothing of the guest ran.
pub const REPORT_FAILED: u32 = 2;
/// The guest's main process ended; `code` and `status` are its `si_code` and `si_status`.
pub const REPORT_ENDED: u32 = 3;
/// This message carries the seccomp listener (SCM_RIGHTS).
pub const REPORT_LISTENER: u32 = 4;

/// This message carries the guest's /output folder (SCM_RIGHTS).
pub const REPORT_OUTPUT: u32 = 5;
/// This message carries a pidfd of the slot's init (SCM_RIGHTS); see `Header::namespaces`.
pub const REPORT_SPAWNED: u32 = 6;
/// This message carries the slot's network namespace (SCM_RIGHTS).
pub const REPORT_NETWORK: u32 = 7;
/// This message carries a tree that was cloned for a slot (SCM_RIGHTS).
pub const REPORT_TREE: u32 = 8;
/// The slot's restorer has ended, and nobody stands over the guest any more.
pub const REPORT_ORPHANED: u32 = 9;

/// What the supervisor says: start the guest.
pub const COMMAND_GO: u32 = 1;
/// What it says to a restorer: remember the guest as it is, waiting for its first message. Answered by [`REPORT_READY`], or by
/// [`REPORT_FAILED`] with an index into [`RESTORER_STEPS`].
pub const COMMAND_REMEMBER: u32 = 2;
/// The same: put the guest back to that. `status` of the answer is the number of pages that were written.
pub const COMMAND_RESTORE: u32 = 3;

/// What a restorer does, by index.
pub const RESTORER_STEPS: [&str; 14] = [
    "fork the guest",
    "stop the guest",
    "find the guest waiting for its request",
    "read the guest's registers",
    "open the guest's files in /proc",
    "list the guest's memory, which may have no more than 1,024 writable areas, and 16 that a fork empties",
    "do without shared memory that the guest can write to: what `preload` imports makes some",
    "read the guest's page map",
    "keep to the 4,096 pages that may differ from the zygote's",
    "copy the guest's pages",
    "find one thread, and memory of the same size",
    "find the same open files",
    "write the guest's pages",
    "write the guest's registers",
];

/// A message of init.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// One of the `REPORT_` words.
    pub kind: u32,
    /// Index of the failed operation.
    pub index: u32,
    /// Why it failed.
    pub errno: i32,
    /// `si_code` of the guest's end.
    pub code: i32,
    /// `si_status` of the guest's end.
    pub status: i32,
}
