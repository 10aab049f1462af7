"""Holds one script in a container: its pid 1, and the other end of the supervisor's `src/docker/channel.rs`.

`python3 -sBu -c THIS`, with the engine's attached streams for descriptors. From standard input comes the request: a nonce
of 16 bytes, the length of the rest in four (little endian), then texts `KEY=VALUE`, each with its length before it:

    module:NAME=TEXT    the guest's own modules; `runner` is what runs the script
    source=TEXT         the script, the very text that was checked
    file=PATH           its `__file__`
    arg=, input=        its arguments, the names of its inputs (repeated)
    value=NAME          an input that is a value, in the file /run/nsbox/values/NAME (repeated): see inputs.py
    seed=, cpus=        as in the configuration
    timeout=, cpu_time= in seconds
    output_limit=       in bytes, of each stream: no more than one byte over it is passed on
    result_limit=, artifacts_limit=  in bytes; without the latter no artifacts are read
    stdin=yes           the script reads: for each frame R a piece follows, its length before it in four bytes; the last,
                        of length 0, is the end

To standard output go frames: the nonce, a kind, the length of the rest in four bytes, the rest:

    L  how the kernel says that this process is held, in lines `KEY=VALUE`
    S  the script's first line begins
    R  the next piece of its standard input can be taken
    O, E  what it wrote to its standard output, its standard error
    K  its main process has ended, or was killed, and nothing of it is left
    D  a piece of its document
    A  an artifact: kind (f, d, or o for what is neither), size in eight bytes, path below /output
    B  a piece of the artifact before
    X  how its main process ended and what the kernel counted, in lines `KEY=VALUE`; the last frame

The script is a child with pipes of its own. It has the same user, but cannot reach these streams: this process is not
dumpable, so nothing of it under /proc opens for the child, and no signal of the child's ends the pid 1 of its namespace.
SIGTERM, from the engine or else, ends the script. The end of standard input does too: then the supervisor is gone. That
none of it stays unread here, is what R is for: a stream that is stuck has no end.
"""

import _signal
import posix
import select
import sys

PIECE = 65536
# How long the supervisor may be late with ending a script, before it is ended here.
LATENESS = 2.0
# How long it may then take to read what is handed over, before nobody is thought to read any more. It allows itself less.
HAND_OVER = 15.0
# How long the request may take to come, which is sent as soon as this process is started.
UNHEARD = 20.0
CGROUP = "/sys/fs/cgroup"
STATUS = ("Uid", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")


def read_exactly(size):
    chunks = []
    while size > 0:
        chunk = posix.read(0, min(size, 1 << 20))
        if not chunk:
            posix._exit(1)
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def receive():
    """The nonce, and the request's values by key."""
    nonce = read_exactly(16)
    data = read_exactly(int.from_bytes(read_exactly(4), "little"))
    request, at = {}, 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        key, _, value = data[at + 4 : end].partition(b"=")
        request.setdefault(key.decode(), []).append(value)
        at = end
    return nonce, request


def read_file(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def field(path, name):
    """The number after a name in a file of the cgroup's; the file's only one without a name. None where there is none."""
    for line in read_file(f"{CGROUP}/{path}").splitlines():
        words = line.split()
        if (words[0] == name if name else len(words) == 1) and words[-1].isdigit():
            return int(words[-1])
    return None


def counters():
    """What the container's cgroup has counted, of either version."""
    return {
        "oom_kills": field("memory.events", "oom_kill") or field("memory/memory.oom_control", "oom_kill"),
        "memory_peak": field("memory.peak", "") or field("memory/memory.max_usage_in_bytes", ""),
    }


def processes_peak():
    """The most processes and threads since the container was made, by the engine's own too; None before Linux 6.1."""
    return field("pids.peak", "") or field("pids/pids.peak", "")


def processes():
    """Those of now, this one included."""
    return field("pids.current", "") or field("pids/pids.current", "") or 0


def cpu_counted():
    """CPU seconds of all processes: in all, in user mode, in the kernel. None where nobody counts them."""
    counted = [field("cpu.stat", name) for name in ("usage_usec", "user_usec", "system_usec")]
    if None not in counted:
        return [count / 1e6 for count in counted]
    counted = [field(f"cpuacct/cpuacct.{name}", "") for name in ("usage", "usage_user", "usage_sys")]
    return None if None in counted else [count / 1e9 for count in counted]


def layers():
    """How the kernel holds this process, and so its children."""
    found = {}
    for line in read_file("/proc/self/status").splitlines():
        name, _, value = line.partition(":")
        if name in STATUS:
            found[name] = " ".join(value.split())
    for name in NAMESPACES:
        try:
            found[f"ns:{name}"] = posix.readlink(f"/proc/self/ns/{name}")
        except OSError:
            pass
    found["uid_map"] = " ".join(read_file("/proc/self/uid_map").split())
    found["root"] = "ro" if posix.statvfs("/").f_flag & posix.ST_RDONLY else "rw"
    return found


def lines(values):
    return "".join(f"{key}={value}\n" for key, value in values.items() if value is not None).encode()


def result_file():
    """An empty file that the document is written to, in memory."""
    try:
        return posix.memfd_create("nsbox-result", 0x8)  # MFD_NOEXEC_SEAL: no other may be made here.
    except OSError:
        return posix.open("/dev/shm", posix.O_RDWR | posix.O_TMPFILE | posix.O_CLOEXEC, 0o600)


def set_affinity(cpus, nonce):
    """As many CPUs as the limit, so that libraries which count them start as many threads as can run."""
    allowed = sorted(posix.sched_getaffinity(0))
    wanted = max(1, int(-(-cpus // 1)))
    if wanted < len(allowed):
        offset = nonce[0]
        posix.sched_setaffinity(0, {allowed[(offset + i) % len(allowed)] for i in range(wanted)})


def hide():
    """Makes this process not dumpable: PR_SET_DUMPABLE."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(4, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_DUMPABLE")


# The script's process.


def run_script(request, given, out, err, result, start, go):
    """The child, from its fork to its end."""
    posix.setsid()
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    posix.dup2(given if "stdin" in request else posix.open("/dev/null", posix.O_RDONLY), 0)
    posix.dup2(out, 1)
    posix.dup2(err, 2)
    texts = {key[7:]: values[0] for key, values in request.items() if key.startswith("module:")}
    runner = type(sys)("runner")
    exec(compile(texts["runner"], "runner.py", "exec", dont_inherit=True), runner.__dict__)
    runner.TEXTS.update(texts)
    runner.prepare_interpreter("/work", {}, {"path": []})
    hooks = runner.hook_imports(int(request["seed"][0]) if "seed" in request else None)
    source, file = request["source"][0], request["file"][0].decode()
    arguments = [value.decode("utf-8", "surrogateescape") for value in request.get("arg", ())]
    inputs = [value.decode() for value in request.get("input", ())]
    limit = int(request["result_limit"][0])
    if posix.read(go, 1) != b"g":
        posix._exit(1)
    for fd in range(3, 64):
        if fd not in (result, start):
            try:
                posix.close(fd)
            except OSError:
                pass

    def begin():
        posix.write(start, b"\n")
        posix.close(start)

    names = [value.decode() for value in request.get("value", ())]
    values = [(name, posix.open(f"/run/nsbox/values/{name}", posix.O_RDONLY | posix.O_CLOEXEC)) for name in names]
    script = runner.Script()
    script.run(hooks, file, source, arguments, inputs, limit, begin, values=values)
    script.hand_back(result)
    script.finish()
    runner.leave(script.code, {0, 1, 2, result})


# Pid 1.


class Keeper:
    """Watches the script's process, and tells the supervisor."""

    def __init__(self, nonce, request, main, pipes):
        self.nonce = nonce
        self.request = request
        self.main = main
        self.given, self.out, self.err, self.start = pipes
        self.status = None
        self.why = None
        self.is_last = False
        self.rusage = [0.0, 0.0]
        self.cpu_before = None
        self.peak_before, self.peak_seen = processes_peak(), 0
        limit = int(request["output_limit"][0]) + 1
        self.left = {self.out: limit, self.err: limit}
        self.arrived, self.piece = b"", b""

    def send(self, kind, data=b""):
        data = memoryview(self.nonce + kind + len(data).to_bytes(4, "little") + data)
        while data:
            data = data[posix.write(1, data) :]

    def seconds(self, key):
        return float(self.request[key][0]) if key in self.request else None

    def count(self, ended):
        pid, status, usage = ended
        self.rusage[0] += usage.ru_utime
        self.rusage[1] += usage.ru_stime
        if pid == self.main:
            self.status = status

    def reap(self):
        """Reaps who has ended."""
        try:
            while (ended := posix.wait4(-1, posix.WNOHANG))[0]:
                self.count(ended)
        except ChildProcessError:
            pass

    def kill_all(self):
        """Kills all but this process."""
        try:
            posix.kill(-1, _signal.SIGKILL)
        except ProcessLookupError:
            pass

    def end_all(self):
        """Kills whatever is left, until nothing is."""
        while True:
            self.kill_all()
            try:
                self.count(posix.wait4(-1, 0))
            except ChildProcessError:
                return

    def stop(self, why):
        self.why = self.why or why

    def alarm(self, *_):
        """The supervisor is late. It may be that nobody reads, and this process stands in a write."""
        if self.is_last:
            posix._exit(1)
        self.is_last = True
        self.stop("timeout")
        self.kill_all()

    def begin(self):
        """The script's first line begins."""
        self.cpu_before = cpu_counted()
        self.peak_before = processes_peak()
        _signal.setitimer(_signal.ITIMER_REAL, self.seconds("timeout") + LATENESS, HAND_OVER)
        self.send(b"S")
        if "stdin" in self.request:
            self.send(b"R")

    def relay(self, fd, kind):
        """Passes on a piece of output, as far as it is kept; False at its end."""
        data = posix.read(fd, PIECE)
        kept = data[: self.left[fd]]
        self.left[fd] -= len(kept)
        if kept:
            self.send(kind, kept)
        return bool(data)

    def receive(self):
        """Takes what comes of the script's standard input; False where nothing ever will."""
        data = posix.read(0, PIECE)
        self.arrived += data
        size = int.from_bytes(self.arrived[:4], "little")
        if len(self.arrived) < 4 + size or self.given is None:
            return bool(data)
        self.piece, self.arrived = self.arrived[4:], b""
        if size == 0:
            self.end_input()
        return True

    def give(self):
        """Gives the script of the piece what it takes; False where it must read some first."""
        try:
            self.piece = self.piece[posix.write(self.given, self.piece) :]
        except BlockingIOError:
            return False
        except BrokenPipeError:
            self.end_input()
            return True
        if not self.piece:
            self.send(b"R")
        return not self.piece

    def end_input(self):
        posix.close(self.given)
        self.given, self.piece = None, b""

    def watch(self):
        """Until the main process has ended, or must."""
        wake, waker = posix.pipe()
        posix.set_blocking(waker, False)
        _signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        _signal.signal(_signal.SIGTERM, lambda *_: self.stop("asked"))
        _signal.signal(_signal.SIGALRM, self.alarm)
        cpu_time = self.seconds("cpu_time")
        streams = {self.out: b"O", self.err: b"E"}
        poller = select.poll()
        # In the order in which they are looked at: what begins comes before what it writes.
        for fd in (self.start, self.out, self.err, wake, 0):
            poller.register(fd, select.POLLIN)
        while True:
            self.reap()
            if self.status is not None or self.why:
                return
            self.peak_seen = max(self.peak_seen, processes())
            for fd, _ in poller.poll(20 if cpu_time else 200):
                if fd == self.start:
                    poller.unregister(fd)
                    if posix.read(fd, 1):
                        self.begin()
                elif fd in streams:
                    if not self.relay(fd, streams[fd]):
                        poller.unregister(fd)
                elif fd == wake:
                    posix.read(fd, 512)
                elif fd == 0:
                    if not self.receive():
                        self.stop("gone")
                    if self.piece:
                        poller.register(self.given, select.POLLOUT)
                elif self.give():
                    poller.unregister(fd)
            if cpu_time and sum(self.cpu_used()) > cpu_time:
                self.stop("cpu")

    def cpu_used(self):
        """CPU seconds in user mode and in the kernel since the script's first line."""
        if self.cpu_before is None:
            return self.rusage
        total, user, system = (now - before for now, before in zip(cpu_counted(), self.cpu_before))
        # Of version 1, the parts are counted in ticks, and only the sum is exact.
        share = user / (user + system) if user + system > 0 else 1.0
        return [total * share, total * (1 - share)]

    def processes_peak(self):
        """The script's most processes and threads; where the container's start took more, as seen now and then."""
        peak = processes_peak()
        if peak is not None and peak == self.peak_before:
            peak = min(peak, self.peak_seen)
        return peak

    def hand_over_document(self, result):
        size = min(posix.fstat(result).st_size, int(self.request["result_limit"][0]) + PIECE + 1)
        at = 0
        while at < size and (data := posix.pread(result, min(PIECE, size - at), at)):
            self.send(b"D", data)
            at += len(data)

    def hand_over_artifacts(self, folder, left):
        """Sends the tree, files no further than the limit; nothing changes it any more. Returns what is left of that."""
        for entry in sorted(posix.scandir(b"/output" + folder), key=lambda entry: entry.name):
            path = folder + b"/" + entry.name
            place = b"/output" + path
            kind, size, fd = b"o", 0, None
            try:
                if entry.is_dir(follow_symlinks=False):
                    posix.chmod(place, 0o700)
                    kind = b"d"
                elif entry.is_file(follow_symlinks=False):
                    posix.chmod(place, 0o600)
                    fd = posix.open(place, posix.O_RDONLY | posix.O_NOFOLLOW)
                    kind, size = b"f", posix.fstat(fd).st_size
            except OSError:
                pass  # Its path is too long, or its owner somebody else.
            self.send(b"A", kind + size.to_bytes(8, "little") + path[1:])
            if kind == b"d" and path.count(b"/") < 64:
                left = self.hand_over_artifacts(path, left)
            elif kind == b"f" and size <= left:
                left -= size
                while size > 0 and (data := posix.read(fd, min(PIECE, size))):
                    self.send(b"B", data)
                    size -= len(data)
            if fd is not None:
                posix.close(fd)
        return left

    def close(self, result):
        """All that is to be told once the script is over; returns the exit status."""
        self.end_all()
        self.is_last = True
        _signal.setitimer(_signal.ITIMER_REAL, HAND_OVER)
        # It began, and was over before this process looked.
        if posix.read(self.start, 1):
            self.send(b"S")
        for fd, kind in ((self.out, b"O"), (self.err, b"E")):
            while self.relay(fd, kind):
                pass
        self.send(b"K")
        found = counters()
        found["processes_peak"] = self.processes_peak()
        found["user_us"], found["system_us"] = (int(seconds * 1e6) for seconds in self.cpu_used())
        self.hand_over_document(result)
        if "artifacts_limit" in self.request:
            self.hand_over_artifacts(b"", int(self.request["artifacts_limit"][0]))
        code = posix.waitstatus_to_exitcode(self.status)
        found["signal" if code < 0 else "exit"] = abs(code)
        found["why"] = self.why
        self.send(b"X", lines(found))
        return code if code >= 0 else 128 - code


def main():
    # What the script can send must not interrupt this process; it inherits neither.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    posix.umask(0o022)
    # An engine that is killed while it starts this forgets it, and its streams never end.
    _signal.signal(_signal.SIGALRM, lambda *_: posix._exit(1))
    _signal.setitimer(_signal.ITIMER_REAL, UNHEARD)
    nonce, request = receive()
    _signal.setitimer(_signal.ITIMER_REAL, 0)
    held = layers()
    set_affinity(float(request["cpus"][0]), nonce)
    given, out, err, start, go = (posix.pipe() for _ in range(5))
    result = result_file()
    pid = posix.fork()
    if pid == 0:
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        run_script(request, given[0], out[1], err[1], result, start[1], go[0])
    for fd in (given[0], out[1], err[1], start[1], go[0]):
        posix.close(fd)
    posix.set_blocking(given[1], False)
    keeper = Keeper(nonce, request, pid, (given[1], out[0], err[0], start[0]))
    keeper.send(b"L", lines(held))
    hide()
    posix.write(go[1], b"g")
    posix.close(go[1])
    keeper.watch()
    posix._exit(keeper.close(result))


main()
