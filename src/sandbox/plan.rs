//! The set-up of one sandbox as data: every system call that init will make, in order, each with the name of its step.
//!
//! Built and complete before the first side effect inside the sandbox; `sys/init/main.rs` executes it. A call that
//! fails comes back as an index into [`Plan::steps`].

use std::borrow::Cow;
use std::ffi::{CStr, OsStr};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;

use crate::sys::program::{
    ARG_DATA, ARG_REGISTER, ARG_VALUE, CONTROL_REGISTER, Header, MAGIC, MAX_PROGRAM, NO_REGISTER, OP_STORE,
    OWN_REGISTERS, Op, PASSED_REGISTERS, Report,
};

/// A descriptor that an earlier call of the plan returns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Register(u8);

/// Bytes in the plan's data, by offset.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Data(u32);

/// An argument of a planned call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arg<'a> {
    /// As it is.
    Value(u64),
    /// A descriptor of the supervisor's, which goes to init with the plan; or a special one such as `AT_FDCWD`.
    Fd(RawFd),
    /// Init's end of the control socket.
    Control,
    /// What an earlier call returned.
    Register(Register),
    /// The address of data placed earlier.
    Data(Data),
    /// The address of a NUL-terminated copy.
    Text(&'a OsStr),
    /// The address of a copy.
    Bytes(&'a [u8]),
}

/// A planned set-up.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    ops: Vec<Op>,
    steps: Vec<Cow<'static, str>>,
    /// Where the guest's part begins, if there is one.
    guest: Option<usize>,
    relocations: Vec<u32>,
    data: Vec<u8>,
    registers: u8,
    passed: Vec<RawFd>,
    /// Where the control socket is now, once it has been moved.
    moved: Option<Register>,
    slot: Option<Slot>,
}

/// What the plan of a slot says of its executor.
#[derive(Debug, Clone, Copy)]
struct Slot {
    control: RawFd,
    namespaces: u32,
    restorer: Option<RawFd>,
}

/// Why a plan cannot be carried out.
#[derive(Debug, thiserror::Error)]
#[error(
    "the set-up of this run takes {bytes} bytes and {descriptors} descriptors, {MAX_PROGRAM} and {PASSED_REGISTERS} are allowed: pass fewer or shorter arguments, variables and inputs"
)]
pub struct TooLong {
    bytes: usize,
    descriptors: usize,
}

impl Plan {
    pub(crate) fn new() -> Self {
        Self {
            ops: Vec::with_capacity(192),
            steps: Vec::with_capacity(192),
            data: Vec::with_capacity(16384),
            ..Self::default()
        }
    }

    /// A plan of a slot's, whose reports go to the socket `control`. Sent to an init, a child of it in the new `namespaces`
    /// (`CLONE_NEW*`) executes it.
    pub(crate) fn of_slot(control: RawFd, namespaces: libc::c_int) -> Self {
        Self { slot: Some(Slot { control, namespaces: namespaces.cast_unsigned(), restorer: None }), ..Self::new() }
    }

    /// A plan for a zygote, of a slot whose guest a restorer stands over that takes its orders from the socket `orders`.
    pub(crate) fn of_restored_slot(control: RawFd, orders: RawFd) -> Self {
        Self { slot: Some(Slot { control, namespaces: 0, restorer: Some(orders) }), ..Self::new() }
    }

    /// Plans a call whose result is not needed.
    pub(crate) fn call(&mut self, step: impl Into<Cow<'static, str>>, nr: libc::c_long, args: &[Arg<'_>]) {
        self.push(step.into(), nr, args, NO_REGISTER, 0);
    }

    /// Plans a call for which `errno` is as good as success.
    pub(crate) fn call_tolerating(
        &mut self,
        errno: i32,
        step: impl Into<Cow<'static, str>>,
        nr: libc::c_long,
        args: &[Arg<'_>],
    ) {
        self.push(step.into(), nr, args, NO_REGISTER, u8::try_from(errno).unwrap_or(0));
    }

    /// Plans a call that returns a descriptor.
    pub(crate) fn open(&mut self, step: impl Into<Cow<'static, str>>, nr: libc::c_long, args: &[Arg<'_>]) -> Register {
        let register = self.registers;
        // Registers are few because descriptors are closed at once; the oldest are free again by then.
        self.registers = if usize::from(register) + 1 == OWN_REGISTERS { 0 } else { register + 1 };
        self.push(step.into(), nr, args, register, 0);
        Register(register)
    }

    /// Plans the store of an earlier result in data, at `offset` bytes from its start.
    pub(crate) fn store(&mut self, data: Data, offset: u32, register: Register) {
        let args = [Arg::Data(Data(data.0 + offset)), Arg::Register(register)];
        self.push(Cow::Borrowed("store a descriptor"), i64::from(OP_STORE), &args, NO_REGISTER, 0);
    }

    /// Plans the move of the control socket to the descriptor `to`.
    pub(crate) fn move_control(&mut self, to: u64) {
        let args = [Arg::Control, Arg::Value(to), Arg::Value(0)];
        self.moved = Some(self.open("move the control socket", libc::SYS_dup3, &args));
    }

    /// Plans the close of an earlier result.
    pub(crate) fn close(&mut self, register: Register) {
        self.call("close a descriptor", libc::SYS_close, &[Arg::Register(register)]);
    }

    /// Plans a message to the supervisor that carries a descriptor. unix(7), SCM_RIGHTS.
    pub(crate) fn send(&mut self, kind: u32, descriptor: Register) {
        let mut report = [0; size_of::<Report>()];
        report[..4].copy_from_slice(&kind.to_ne_bytes());
        let report = self.data(&report);
        let mut iov = [0; 16];
        iov[8..].copy_from_slice(&(size_of::<Report>() as u64).to_ne_bytes());
        let iov = self.data(&iov);
        self.point(iov, 0, report);
        // struct cmsghdr: u64 length (header and one descriptor), i32 level, i32 type; the descriptor; padding.
        let mut rights = [0; 24];
        rights[..8].copy_from_slice(&20_u64.to_ne_bytes());
        rights[8..12].copy_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
        rights[12..16].copy_from_slice(&libc::SCM_RIGHTS.to_ne_bytes());
        let rights = self.data(&rights);
        self.store(rights, 16, descriptor);
        // struct msghdr: name, name length, iov, iov count, control, control length, flags.
        let mut header = [0; 56];
        header[24..32].copy_from_slice(&1_u64.to_ne_bytes());
        header[40..48].copy_from_slice(&24_u64.to_ne_bytes());
        let header = self.data(&header);
        self.point(header, 16, iov);
        self.point(header, 32, rights);
        let args = [Arg::Control, Arg::Data(header), Arg::Value(libc::MSG_NOSIGNAL as u64)];
        self.call("hand a descriptor to the supervisor", libc::SYS_sendmsg, &args);
    }

    /// Everything planned so far is init's own; what follows is done by the guest's process.
    pub(crate) fn begin_guest(&mut self) {
        self.guest = Some(self.ops.len());
    }

    /// Places bytes, aligned for any structure.
    pub(crate) fn data(&mut self, bytes: &[u8]) -> Data {
        self.data.resize(self.data.len().next_multiple_of(8), 0);
        let offset = self.data.len();
        self.data.extend_from_slice(bytes);
        Data(narrow(offset))
    }

    /// Places a NUL-terminated string.
    pub(crate) fn text(&mut self, text: &OsStr) -> Data {
        let data = self.data(text.as_bytes());
        self.data.push(0);
        data
    }

    /// Places a null-terminated array of pointers to NUL-terminated strings: argv or envp.
    pub(crate) fn strings<S: AsRef<OsStr>>(&mut self, strings: impl IntoIterator<Item = S>) -> Data {
        let texts: Vec<Data> = strings.into_iter().map(|text| self.text(text.as_ref())).collect();
        let array = self.data(&vec![0; (texts.len() + 1) * 8]);
        for (i, text) in texts.into_iter().enumerate() {
            self.point(array, narrow(i) * 8, text);
        }
        array
    }

    /// Writes the address of `target` into `data`, at `offset` bytes from its start.
    pub(crate) fn point(&mut self, data: Data, offset: u32, target: Data) {
        let slot = data.0 + offset;
        self.data[slot as usize..slot as usize + 8].copy_from_slice(&u64::from(target.0).to_ne_bytes());
        self.relocations.push(slot);
    }

    /// What the operation at `index` was to do.
    pub(crate) fn step(&self, index: u32) -> &str {
        self.steps.get(index as usize).map_or("start the guest's process", |step| step)
    }

    /// The message that its executor reads, and the descriptors that go with it. `supervisor` is a pidfd of this process.
    pub(crate) fn encode(&mut self, supervisor: RawFd) -> Result<(Vec<u8>, &[RawFd]), TooLong> {
        let setup = self.guest.unwrap_or(self.ops.len());
        let supervisor = self.pass(supervisor);
        let control = self.slot.map_or(narrow(CONTROL_REGISTER), |slot| self.pass(slot.control));
        let restorer = self.slot.and_then(|slot| slot.restorer).map_or(0, |orders| self.pass(orders));
        let header = Header {
            magic: MAGIC,
            setup: narrow(setup),
            guest: narrow(self.ops.len() - setup),
            relocations: narrow(self.relocations.len()),
            data: narrow(self.data.len()),
            supervisor,
            control,
            namespaces: self.slot.map_or(0, |slot| slot.namespaces),
            restorer,
            reserved: 0,
        };
        let mut message = Vec::with_capacity(self.data.len() + self.ops.len() * size_of::<Op>() + 512);
        for word in [header.magic, header.setup, header.guest, header.relocations, header.data] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        for word in [header.supervisor, header.control, header.namespaces, header.restorer, header.reserved] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        for op in &self.ops {
            message.extend_from_slice(&op.nr.to_ne_bytes());
            message.extend_from_slice(&[op.dst, op.tolerate]);
            message.extend_from_slice(&op.kinds.to_ne_bytes());
            message.extend_from_slice(&op.reserved.to_ne_bytes());
            op.args.iter().for_each(|arg| message.extend_from_slice(&arg.to_ne_bytes()));
        }
        self.relocations.iter().for_each(|slot| message.extend_from_slice(&slot.to_ne_bytes()));
        message.resize(message.len().next_multiple_of(16), 0);
        message.extend_from_slice(&self.data);
        if message.len() > MAX_PROGRAM || self.passed.len() > PASSED_REGISTERS {
            return Err(TooLong { bytes: message.len(), descriptors: self.passed.len() });
        }
        Ok((message, &self.passed))
    }

    /// The register that will hold a descriptor of the supervisor's.
    fn pass(&mut self, fd: RawFd) -> u32 {
        let index = self.passed.iter().position(|passed| *passed == fd).unwrap_or_else(|| {
            self.passed.push(fd);
            self.passed.len() - 1
        });
        narrow(OWN_REGISTERS + index)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the numbers of system calls are small")]
    #[expect(clippy::cast_sign_loss, reason = "AT_FDCWD too fills a register by sign extension")]
    fn push(&mut self, step: Cow<'static, str>, nr: libc::c_long, args: &[Arg<'_>], dst: u8, tolerate: u8) {
        let mut op = Op { nr: nr as u16, dst, tolerate, kinds: 0, reserved: 0, args: [0; 6] };
        for (i, arg) in args.iter().enumerate() {
            let (kind, value) = match *arg {
                Arg::Value(value) => (ARG_VALUE, value),
                Arg::Fd(fd) if fd < 0 => (ARG_VALUE, fd as u64),
                Arg::Fd(fd) => (ARG_REGISTER, u64::from(self.pass(fd))),
                Arg::Control => {
                    let at = self.moved.map_or(narrow(CONTROL_REGISTER), |register| register.0.into());
                    (ARG_REGISTER, u64::from(at))
                }
                Arg::Register(register) => (ARG_REGISTER, u64::from(register.0)),
                Arg::Data(data) => (ARG_DATA, u64::from(data.0)),
                Arg::Text(text) => (ARG_DATA, u64::from(self.text(text).0)),
                Arg::Bytes(bytes) => (ARG_DATA, u64::from(self.data(bytes).0)),
            };
            op.kinds |= kind << (2 * i);
            op.args[i] = value;
        }
        self.ops.push(op);
        self.steps.push(step);
    }
}

/// An offset or a count as the program holds it. A plan that outgrows it has outgrown [`MAX_PROGRAM`] long before.
fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// A C string literal as a path argument.
pub(crate) fn literal(text: &'static CStr) -> Arg<'static> {
    Arg::Text(OsStr::from_bytes(text.to_bytes()))
}
