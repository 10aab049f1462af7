"""Raw system calls, each in a forked child: `kernel.py NAMES main|thread|exec` prints {name: how it went}.

How it went: "ok" and the call did its work, the name of the errno, or the signal that killed the child.
"""

import ctypes, errno, json, mmap, os, platform, signal, socket, struct, subprocess, sys, tempfile, threading, time

libc = ctypes.CDLL(None, use_errno=True)
NR = dict(
    ptrace=101, syslog=103, personality=135, mknod=133, modify_ldt=154, pivot_root=155, adjtimex=159, chroot=161,
    acct=163, settimeofday=164, mount=165, umount2=166, swapon=167, swapoff=168, reboot=169, sethostname=170, iopl=172,
    ioperm=173, init_module=175, delete_module=176, quotactl=179, remap_file_pages=216, clock_settime=227,
    kexec_load=246, add_key=248, request_key=249, keyctl=250, migrate_pages=256, unshare=272, splice=275, tee=276,
    vmsplice=278, move_pages=279, perf_event_open=298, fanotify_init=300, name_to_handle_at=303,
    open_by_handle_at=304, clock_adjtime=305, setns=308, process_vm_readv=310, process_vm_writev=311, kcmp=312,
    finit_module=313, seccomp=317, memfd_create=319, kexec_file_load=320, bpf=321, userfaultfd=323, clone=56,
    setresuid=117, setgroups=116, capset=126, ioctl=16, shmget=29, io_uring_setup=425, io_uring_register=427,
    open_tree=428, move_mount=429, fsopen=430, pidfd_open=434, clone3=435, pidfd_getfd=438, process_madvise=440,
    mount_setattr=442, memfd_secret=447,
)
P = ctypes.c_void_p


def call(name, *args):
    """The result, or OSError."""
    number = NR[name] if isinstance(name, str) else name
    result = libc.syscall(ctypes.c_long(number), *[arg if isinstance(arg, (P, bytes)) or hasattr(arg, "contents") else
                          (arg if isinstance(arg, ctypes.Array) else ctypes.c_long(arg)) for arg in args])
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def buffer(data):
    return ctypes.create_string_buffer(data, len(data))


def vector(text):
    """An iovec over `text`; the text is kept alive beside it."""
    keep = buffer(text)
    iov = buffer(struct.pack("QQ", ctypes.addressof(keep), len(text)))
    iov.keep = keep
    return iov


def pipe_of(text):
    read, write = os.pipe()
    os.write(write, text)
    return read, write


def child_of_clone(result):
    if result == 0:
        os._exit(0)
    os.waitpid(result, 0)


def machine_code(code):
    """Calls `code` from a fresh executable page and returns what it left in eax."""
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()


def int80():
    # push rbx; mov eax, 20 (getpid of i386); int 0x80; pop rbx; ret
    if machine_code(b"\x53\xb8\x14\x00\x00\x00\xcd\x80\x5b\xc3") != os.getpid():
        raise OSError(errno.ENOSYS, "")


def x32():
    if call(0x40000000 | 39) != os.getpid():
        raise OSError(errno.ENOSYS, "")


def memfd_exec(flags):
    fd = call("memfd_create", buffer(b"program\0"), flags)
    with open("/bin/true" if os.path.exists("/bin/true") else sys.executable, "rb") as program:
        os.write(fd, program.read(1 << 26))
    child_of_exec(f"/proc/self/fd/{fd}")


def tmp_exec(folder):
    fd, path = tempfile.mkstemp(dir=folder)
    os.write(fd, b"#!/bin/sh\nexit 0\n")
    os.fchmod(fd, 0o755)
    os.close(fd)
    try:
        child_of_exec(path)
    finally:
        os.unlink(path)


def child_of_exec(path):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(path, [path])
        except OSError as error:
            os.write(write, str(error.errno).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    failed = os.read(read, 16)
    if failed:
        raise OSError(int(failed), "")


def device(mode):
    path = tempfile.mktemp()
    os.mknod(path, mode | 0o600, os.makedev(1, 3))
    os.unlink(path)


def own_mounts():
    """Outside, what is mounted must not stay; inside, the guest is nobody's root and goes on to the call itself."""
    if os.getuid() == 0:
        call("unshare", 0x20000)
        call("mount", buffer(b"none\0"), buffer(b"/\0"), 0, 0x44000, 0)


def bind_mount():
    own_mounts()
    call("mount", buffer(b"/tmp\0"), buffer(b"/tmp\0"), 0, 0x1000, 0)


def remount():
    if os.getuid() == 0:
        bind_mount()
    call("mount", 0, buffer(b"/tmp\0"), 0, 0x1000 | 0x20, 0)


def mount_setattr():
    if os.getuid() == 0:
        bind_mount()
    call("mount_setattr", -100, buffer(b"/tmp\0"), 0, buffer(struct.pack("QQQQ", 1, 0, 0, 0)), 32)


def umount():
    own_mounts()
    call("umount2", buffer(b"/proc\0"), 2)


def own_chroot():
    call("chroot", buffer(b"/tmp\0"))


def now():
    return buffer(struct.pack("qq", *divmod(time.clock_gettime_ns(time.CLOCK_REALTIME), 10**9)))


def set_time_of_day():
    seconds, nanos = divmod(time.clock_gettime_ns(time.CLOCK_REALTIME), 10**9)
    call("settimeofday", buffer(struct.pack("qq", seconds, nanos // 1000)), 0)


def handle():
    out = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
    call("name_to_handle_at", -100, buffer(b"/\0"), out, buffer(b"\0" * 8), 0)
    return out


def setuid_file():
    """Whether a set-uid root copy would run as root: writes its mode, and reads it back."""
    fd, path = tempfile.mkstemp()
    try:
        os.fchmod(fd, 0o4755)
        os.fchown(fd, 0, 0)
    finally:
        os.unlink(path)


def tty(request):
    """TIOCSTI on a terminal of one's own where there is one, else on stdin."""
    try:
        fd = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
        libc.grantpt(fd), libc.unlockpt(fd)
        libc.ptsname.restype = ctypes.c_char_p
        if os.getpid() != os.getpgrp():
            os.setsid()  # the leader of a session gets it as its own, which an ordinary user's must be
        fd = os.open(libc.ptsname(fd), os.O_RDWR)
        keep.append(fd)
    except OSError:
        fd = 0
    call("ioctl", fd, request, buffer(b"x"))


keep = []
USERNS = 0x10000000


def sched_setattr():
    call(314, 0, buffer(struct.pack("IIQiIQQQ", 48, 0, 0, 0, 0, 0, 0, 0)), 0)


ATTACKS = {
    # the kernel's large interfaces
    "io_uring_setup": lambda: call("io_uring_setup", 4, buffer(b"\0" * 120)),
    "userfaultfd": lambda: call("userfaultfd", 1),
    "bpf": lambda: call("bpf", 0, buffer(struct.pack("IIII", 2, 4, 4, 1) + b"\0" * 112), 128),
    "perf_event_open": lambda: call(
        "perf_event_open", buffer(struct.pack("IIQ", 1, 112, 0) + b"\0" * 24 + struct.pack("Q", 1 << 5) + b"\0" * 64),
        0, -1, -1, 0),
    "keyctl": lambda: call("keyctl", 0, -3, 1),
    "add_key": lambda: call("add_key", buffer(b"user\0"), buffer(b"nsbox-test\0"), buffer(b"x"), 1, -2),
    "fanotify_init": lambda: call("fanotify_init", 0, 0),
    "modify_ldt": lambda: call("modify_ldt", 0, buffer(b"\0" * 64), 64),
    "seccomp": lambda: call("seccomp", 2, 0, buffer(struct.pack("I", 0x80000000))),
    # other processes
    "ptrace": lambda: call("ptrace", 0, 0, 0, 0),
    "process_vm_readv": lambda: call("process_vm_readv", os.getpid(), vector(b"abc"), 1, vector(b"xyz"), 1, 0),
    "process_vm_writev": lambda: call("process_vm_writev", os.getpid(), vector(b"abc"), 1, vector(b"xyz"), 1, 0),
    "pidfd_getfd": lambda: call("pidfd_getfd", call("pidfd_open", os.getpid(), 0), 1, 0),
    "kcmp": lambda: call("kcmp", os.getpid(), os.getpid(), 0, 1, 1),
    "move_pages": lambda: call("move_pages", 0, 0, 0, 0, 0, 0),
    # modules, time, machine
    "kexec_load": lambda: call("kexec_load", 0, 0, 0, 0),
    "kexec_file_load": lambda: call("kexec_file_load", -1, -1, 0, 0, 4),
    "init_module": lambda: call("init_module", 0, 0, 0),
    "finit_module": lambda: call("finit_module", -1, buffer(b"\0"), 0),
    "delete_module": lambda: call("delete_module", buffer(b"no_such_module\0"), 0),
    "clock_settime": lambda: call("clock_settime", 0, now()),
    "settimeofday": set_time_of_day,
    "adjtimex": lambda: call("adjtimex", buffer(b"\0" * 256)),
    "clock_adjtime": lambda: call("clock_adjtime", 0, buffer(b"\0" * 256)),
    "reboot": lambda: call("reboot", 0, 0, 0, 0),
    "swapon": lambda: call("swapon", buffer(b"/no/such\0"), 0),
    "swapoff": lambda: call("swapoff", buffer(b"/no/such\0")),
    "quotactl": lambda: call("quotactl", 0x80000100, 0, 0, 0),
    "acct": lambda: call("acct", buffer(b"/no/such\0")),
    "iopl": lambda: call("iopl", 0),
    "ioperm": lambda: call("ioperm", 0x80, 1, 0),
    "syslog": lambda: call("syslog", 10, 0, 0),
    "sethostname": lambda: call("sethostname", buffer(socket.gethostname().encode()), len(socket.gethostname())),
    "personality": lambda: call("personality", 0x40000),
    "sched_setattr": sched_setattr,
    # namespaces
    "unshare": lambda: call("unshare", USERNS),
    "clone_newuser": lambda: child_of_clone(call("clone", USERNS | signal.SIGCHLD, 0, 0, 0, 0)),
    "clone3_newuser": lambda: child_of_clone(
        call("clone3", buffer(struct.pack("QQQQQQQQ", USERNS, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)), 64)),
    "setns": lambda: call("setns", os.open("/proc/self/ns/uts", os.O_RDONLY), 0),
    # other ways into the kernel
    "x32_getpid": x32,
    "int80_getpid": int80,
    # sockets
    "vsock": lambda: socket.socket(40, socket.SOCK_STREAM).close(),
    "alg": lambda: socket.socket(38, socket.SOCK_SEQPACKET).close(),
    "packet": lambda: socket.socket(17, socket.SOCK_RAW).close(),
    "netlink_netfilter": lambda: socket.socket(16, socket.SOCK_RAW, 12).close(),
    "netlink_route": lambda: socket.socket(16, socket.SOCK_RAW, 0).close(),
    "raw_icmp": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close(),
    # memory
    "memfd_exec": lambda: memfd_exec(0),
    "memfd_exec_flag": lambda: memfd_exec(0x10),
    "vmsplice": lambda: call("vmsplice", os.pipe()[1], vector(b"abc"), 1, 0),
    "splice": lambda: call("splice", pipe_of(b"abc")[0], 0, os.pipe()[1], 0, 3, 0),
    "tee": lambda: call("tee", pipe_of(b"abc")[0], os.pipe()[1], 3, 0),
    # file systems
    "name_to_handle_at": lambda: handle() and None,
    "open_by_handle_at": lambda: call("open_by_handle_at", os.open("/", os.O_RDONLY), buffer(struct.pack("Ii", 0, 0)), 0),
    "mknod_char": lambda: device(0o020000),
    "mknod_block": lambda: device(0o060000),
    "bind_mount": bind_mount,
    "remount": remount,
    "umount2": umount,
    "pivot_root": lambda: call("pivot_root", buffer(b"/no/such\0"), buffer(b"/no/such\0")),
    "chroot": own_chroot,
    "fsopen": lambda: call("fsopen", buffer(b"tmpfs\0"), 0),
    "open_tree": lambda: call("open_tree", -100, buffer(b"/tmp\0"), 1),
    "mount_setattr": lambda: mount_setattr(),
    "exec_from_tmp": lambda: tmp_exec("/tmp"),
    "exec_from_work": lambda: tmp_exec("/work" if os.path.isdir("/work") and os.access("/work", os.W_OK) else "/tmp"),
    "exec_from_shm": lambda: tmp_exec("/dev/shm"),
    "setuid_root_file": setuid_file,
    # ids
    "setresuid_root": lambda: call("setresuid", 0, 0, 0),
    "setresuid_other": lambda: call("setresuid", 1001, 1001, 1001),
    "setgroups": lambda: call("setgroups", 1, buffer(struct.pack("I", 0))),
    "capset": lambda: call("capset", buffer(struct.pack("II", 0x20080522, 0)), buffer(struct.pack("6I", 1, 1, 0, 0, 0, 0))),
    # terminals
    "tiocsti": lambda: tty(0x5412),
    "tiocsti_high_bits": lambda: tty(0x5412 | 1 << 32),
    "tioclinux": lambda: call("ioctl", 0, 0x541C, buffer(b"\0" * 8)),
}


def attempt(attack):
    try:
        attack()
        return "ok"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))


def in_thread(attack):
    said = []
    thread = threading.Thread(target=lambda: said.append(attempt(attack)))
    thread.start()
    thread.join()
    return said[0]


def in_child(attack, how):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        said = "?"
        try:
            said = how(attack)
        except BaseException as error:
            said = repr(error)
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    said = b""
    while piece := os.read(read, 4096):
        said += piece
    os.close(read)
    status = os.waitpid(pid, 0)[1]
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else said.decode()


def main():
    names, mode = sys.argv[1:3]
    if mode == "exec":
        sys.exit(subprocess.run([sys.executable, __file__, names, "main"]).returncode)
    chosen = names.split(",")
    how = in_thread if mode == "thread" else attempt
    print(json.dumps({name: in_child(ATTACKS[name], how) for name in chosen}))


main()
