"""The pool's zygote: an interpreter that has imported what scripts need, and forks slots on demand.

Loaded by runner.py, whose functions it uses; the further keys of the command line are

    zygote=FD        the supervisor's socket: a word of this file's, then the programs of slots
    preload=MODULE   a module to import (repeated)
    warm_up=FD       a script to run here, so that what it imports and caches is there; in a fork, to see which code runs, which
                     is then put side by side; here again, where it is short; and in a fork, to see which pages strategies
                     touch: a slot that warms up has these copied before its request comes
    repeats=NUMBER   how often it runs here again

It runs no code of a script's. A slot is a fork of it that has been put behind the wall by the supervisor's program (see
`src/sys/init/module.rs`), and serves one request:

    3: a SOCK_SEQPACKET socket to the supervisor, 4: a memfd for a result document that no message holds

    slot        b"r"            ready
    supervisor  b"w"            warm up (at most once), then be ready again; to a slot that is used again: it has been put back, or
                                is new
    supervisor  the request, in messages of at most MESSAGE bytes: 16 bytes of nonce, the length of all in four bytes, and in
                marshal's format b"a" (answer) or b"x" (exit), `__file__`, the source, the arguments, the names of inputs
    supervisor  after b"av" or b"xv" one more message, with the inputs that are values: see inputs.py
    slot        the answer: the nonce, b"i" and the document, or b"m" where the memfd holds it

An answer says that the script ended well; then the slot waits to be killed. Anything else than a good end is told by the
end of the process.
"""

import _imp
import gc
import marshal
import posix
import sys
from time import monotonic

REQUEST, RESULT = 3, 4
MESSAGE = 16384
# The longest document that goes into an answer; the same number is in src/sandbox/line.rs.
INLINE = 65536
NAME = "/work/warm_up.py"
# Where most scripts are.
SCRIPT = "/work/script.py"
PAGE = 4096
POPULATE_READ, POPULATE_WRITE = 22, 23
READ_WRITE, READ_EXECUTE = 3, 5
# What `native.next` says.
ONE_SHOT, RESTORED, THREADS = 1, 2, 3
# Seconds that a warm-up script may take that runs again, and that nsbox's own repetitions may.
SHORT, PATIENCE = 1.0, 0.1
# Bytes of a huge page.
HUGE = 1 << 21


def main(runner, single, repeated):
    """Prepares, says so, and serves until the supervisor is gone."""
    control = int(single["zygote"])
    native = load_native(runner)
    native.gather()
    idle, hooked = keep_idle_hooks()
    runner.prepare_interpreter("/work", single, repeated)
    hooks = runner.hook_imports(None)
    runner.load("collect")
    runner.load("inputs")
    for module in repeated["preload"]:
        try:
            __import__(module)
        except BaseException as error:
            refuse(control, f"import {module}", error)
    hook_forks(hooked)
    # Its first call has been made, which is what the quick way avoids.
    compile("", NAME, "exec")
    runner.compile_quickly = lambda text, file: None
    hot = b""
    if "warm_up" in single:
        text = runner.read_all(int(single["warm_up"]))
        posix.close(int(single["warm_up"]))
        begun = monotonic()
        ended = warm_up(runner, hooks, text)
        if ended.code != 0:
            refuse(control, "run the warm-up script", ended.error)
        check_threads(control)
        if monotonic() - begun < SHORT:
            pack_code(runner, hooks, native, text)
            settle(runner, hooks, text, int(single["repeats"]), control)
    for name in (b"JE_ARROW_MALLOC_CONF", b"MALLOC_TOP_PAD_", b"MALLOC_TRIM_THRESHOLD_", b"MALLOC_MMAP_THRESHOLD_"):
        forget(name)
    end_quickly(runner)
    check_threads(control)
    seed = int(single["seed"]) if "seed" in single else None
    limit = int(single["result_limit"])
    state = find_state()
    script = runner.Script()
    # What is here lives as long as the process: nobody need count who uses it, and no collection looks at it again. Either would
    # copy its pages.
    gc.collect()
    native.keep((gc.get_objects(), None, main.__code__))
    gc.freeze()
    join_segments(native)
    # The interpreter keeps a few ended objects of some types for the next ones; this gives them back, gaps too.
    gc.collect()
    native.close_gaps()
    if "warm_up" in single:
        hot = in_fork(native, lambda: rehearse(runner, hooks, native, text, state, seed))
    if native.serve(control) != 0:
        refuse(control, "take over the socket", OSError("out of descriptors"))
    wiped = wiped_areas()
    # Last, for what is written while there is a fork has its huge page split.
    collapse(native)
    posix.write(control, b"ready")
    kind = native.next()
    if kind == THREADS:
        check_threads(control)
        refuse(control, "fork", RuntimeError("/proc/self/task does not say that it has no threads"))
    if kind not in (ONE_SHOT, RESTORED):
        posix._exit(0)
    # This is a fork.
    if kind == RESTORED:
        native.stand_over(wiped)
    native.enter()
    take_idle_hooks(idle)
    if kind == RESTORED:
        # Here the restorer remembers this process, and puts it back to after each run. Pages that a run has copied are there for
        # the next one; what none has, need not be put back.
        posix.write(REQUEST, b"r")
        if posix.read(REQUEST, MESSAGE) != b"w":
            posix._exit(0)
    serve(runner, hooks, native, hot, state, seed, limit, script, kind == RESTORED)


def keep_idle_hooks():
    """From here on, functions that the standard library registers for forks are kept, where they only renew locks that
    nobody can hold in a process of one thread: a fork that calls them copies 200 pages more. What registers is returned too."""
    idle, register = [], posix.register_at_fork

    def register_at_fork(**functions):
        modules = {getattr(function, "__module__", None) for function in functions.values()}
        if modules and modules <= {"threading", "logging"}:
            idle.append(functions)
        else:
            register(**functions)

    hook_forks(register_at_fork)
    return idle, register


def hook_forks(register):
    """Has modules register their functions for forks so."""
    posix.register_at_fork = register
    if "os" in sys.modules:
        sys.modules["os"].register_at_fork = register


def take_idle_hooks(idle):
    """What they would have done, but for the locks. From here on, the script's own forks call them."""
    for functions in idle:
        posix.register_at_fork(**functions)
    if "threading" in sys.modules:
        thread = sys.modules["threading"].main_thread()
        if hasattr(thread, "_set_native_id"):
            thread._set_native_id()


def end_quickly(runner):
    """From here on, a script that has started no thread and registered nothing for its end is spared what the standard library
    does there, which would change nothing and touches 80 pages."""
    import _thread
    import atexit

    modules = sys.modules
    late = modules["threading"]._threading_atexits if "threading" in modules else []
    atexits = list(late)
    logging = modules.get("logging")
    handlers = list(logging._handlerList) if logging else []
    if logging:
        # The first that was registered, and so the last to run: see below.
        atexit.unregister(logging.shutdown)
    known = atexit._ncallbacks()
    plain_join = runner.join_threads

    def join_threads():
        if _thread._count() or atexit._ncallbacks() != known or late != atexits:
            plain_join()

    def run_exit_handlers():
        if atexit._ncallbacks():
            atexit._run_exitfuncs()
        if logging and logging._handlerList != handlers:
            logging.shutdown()

    runner.run_exit_handlers = run_exit_handlers
    if "threading" in modules:
        runner.join_threads = join_threads


def forget(name):
    """Takes a variable out of the environment that was for the imports alone."""
    posix.environ.pop(name, None)
    posix.unsetenv(name)
    if "os" in sys.modules:
        sys.modules["os"].environb.pop(name, None)


def check_threads(control):
    """A fork of a process with threads has the locks that those held, and nobody to release them."""
    if more := len(posix.listdir("/proc/self/task")) - 1:
        refuse(control, "fork", RuntimeError(f"it has {more} more thread{'s' * (more > 1)}: preload or warm_up starts them"))


def load_native(runner):
    """The extension module; scripts have no way to import it."""
    spec = type(sys.implementation)(name="_nsbox", origin=f"{runner.HOME}/_nsbox.so")
    return _imp.create_dynamic(spec)


def collapse(native):
    """Puts what is there into huge pages, of which a fork copies one entry where it would copy 512."""
    for (begin, end), file, access, _ in areas():
        if access == b"rw-p" and not file:
            for page in range(-(-begin // HUGE) * HUGE, end - HUGE + 1, HUGE):
                native.collapse(page)


def join_segments(native):
    """Makes two areas of each library's four or five, for a fork and an exit pay for every one: what the loader has made
    read-only once it was relocated can be written to again, as the data behind it, and constants are executable, as the text
    beside them. Nothing is both."""
    words, run, end = [], [], None

    def join():
        if any(access == b"r-xp" for _, _, access, _ in run):
            for begin, length, access, accounted in run:
                if access == b"r--p":
                    words.extend((begin, length, READ_WRITE if accounted else READ_EXECUTE))

    for area, file, access, flags in areas():
        if (file, area[0]) != end:
            join()
            run.clear()
        end = file, area[1]
        if file:
            run.append((area[0], area[1] - area[0], access, b"ac" in flags))
    join()
    native.protect(native_words(words))


def in_fork(native, do):
    """The bytes that `do` returns in a fork of this process, which is left as it is."""
    source, sink = posix.pipe()
    if (pid := native.fork()) == 0:
        try:
            found = do()
            while found:
                found = found[posix.write(sink, found) :]
        finally:
            posix._exit(0)
    posix.close(sink)
    found = b"".join(iter(lambda: posix.read(source, 1 << 16), b""))
    posix.close(source)
    posix.waitpid(pid, 0)
    return found


def executed(runner, hooks, text):
    """The addresses of the code objects that the script runs, as native words, in the order of their first call."""
    found = {}

    def note(frame, event, argument):
        found[id(frame.f_code)] = None

    sys.setprofile(note)
    warm_up(runner, hooks, text)
    sys.setprofile(None)
    return native_words(found)


def pack_code(runner, hooks, native, text):
    """Puts code objects side by side. An interpreter writes to those that it runs, to count references to them and what it may
    specialise, and a fork copies the page for each: they are small, and lie scattered over as many pages as there are of them."""
    if sys.version_info >= (3, 14) or sys.abiflags:
        # Their code objects may be others, and those of builds with special flags are.
        return
    kind = type(pack_code.__code__)
    functions = {}
    for function in gc.get_objects():
        if type(function) is type(pack_code):
            functions.setdefault(id(function.__code__), []).append(function)
    packed = {}
    wanted = dict.fromkeys(memoryview(in_fork(native, lambda: executed(runner, hooks, text))).cast("Q"))

    def pack(code):
        if id(code) not in wanted:
            return code
        if id(code) not in packed:
            constants = tuple(pack(value) if type(value) is kind else value for value in code.co_consts)
            size = kind.__basicsize__ + kind.__itemsize__ * (len(code.co_code) // 2)
            packed[id(code)] = native.pack((code.replace(co_consts=constants), size))
        return packed[id(code)]

    for address in wanted:
        for function in functions.get(address, ()):
            function.__code__ = pack(function.__code__)


def rehearse(runner, hooks, native, text, state, seed):
    """In a fork: the pages that a slot will touch, for `populate`: those that this has for itself once it has run the script."""
    before = list(areas())
    reseed(runner, hooks, native, state, seed)
    warm_up(runner, hooks, text)
    # What only the last script of a process does.
    runner.join_threads()
    runner.run_exit_handlers()
    return touched(before)


def touched(before):
    """Ranges of pages in these areas that this process, a fork, has copied (to be written to) or mapped (to be read)."""
    pagemap = posix.open("/proc/self/pagemap", posix.O_RDONLY | posix.O_CLOEXEC)
    words = []
    for (begin, end), _, access, _ in before:
        if access[:1] != b"r" or access[3:] != b"p" or begin >> 63:
            continue
        entries = memoryview(posix.pread(pagemap, (end - begin) // PAGE * 8, begin // PAGE * 8)).cast("Q")
        last = None
        for page, entry in enumerate(entries):
            # proc_pid_pagemap(5): bit 63, present; 61, of a file; 56, mapped by this process alone.
            advice = {0xA0: POPULATE_READ, 0xA1: POPULATE_READ, 0x81: POPULATE_WRITE}.get(entry >> 56 & 0xA1)
            if advice and advice == last:
                words[-2] += PAGE
            elif advice:
                words += [begin + page * PAGE, PAGE, advice]
            last = advice
    posix.close(pagemap)
    return native_words(words)


def wiped_areas():
    """Areas that a fork finds empty (MADV_WIPEONFORK), as native words, begin and length: random number generators are there,
    and a slot that is put back must not draw the same again."""
    words = []
    for (begin, end), _, _, flags in areas():
        if b"wf" in flags or b"dp" in flags:
            words += begin, end - begin
    return native_words(words)


def areas():
    """The areas of this process's memory: begin and end; the file, if it is one's; the access; the flags, as in proc_pid_smaps(5)."""
    area = None
    for line in map(bytes.split, read("/proc/self/smaps").splitlines()):
        if line[0] == b"VmFlags:":
            yield *area, line[1:]
        elif not line[0].endswith(b":"):
            begin, end = (int(address, 16) for address in line[0].split(b"-"))
            area = (begin, end), b" ".join(line[3:]) if line[4] != b"0" else None, line[1]


def native_words(words):
    """Numbers as `native` takes them."""
    return b"".join(word.to_bytes(8, sys.byteorder) for word in words)


def read(path):
    """The content of a file of /proc."""
    with open(path, "rb") as file:
        return file.read()


def refuse(control, what, error):
    """Tells the supervisor why there can be no slots."""
    text = f"{type(error).__name__}: {error}"
    posix.write(control, f"{what}\0{text}".encode("utf-8", "backslashreplace")[:4096])
    posix._exit(1)


def warm_up(runner, hooks, text, kept=False):
    """Runs the warm-up script as a request's is run, from the message to the answer, so that all of it has been done before.
    `kept`: no file is written."""
    message = marshal.dumps((b"a", NAME, text, [], []), 2)
    _, *request = receive(bytes(16) + (20 + len(message)).to_bytes(4, "little") + message)
    script = runner.Script(last=False)
    script.enter(kept, None if kept else SCRIPT)
    script.run(hooks, *request, 1 << 24, bool)
    script.finish()
    nowhere = posix.open("/dev/null", posix.O_WRONLY | posix.O_CLOEXEC)
    answer(runner, nowhere, bytes(16), script.document)
    posix.close(nowhere)
    if not kept:
        posix.unlink(NAME)
    if "linecache" in sys.modules:
        sys.modules["linecache"].cache.pop(NAME, None)
    return script


def settle(runner, hooks, text, repeats, control):
    """Runs the warm-up script so many times more: the interpreter rewrites code that runs often, and while it counts up to that,
    it writes to the pages of the code, which each slot would have to copy."""
    until = monotonic() + PATIENCE
    for _ in range(repeats):
        if monotonic() > until:
            break
        ended = warm_up(runner, hooks, text)
        if ended.code != 0:
            refuse(control, "run the warm-up script again", ended.error)


def find_state():
    """Where the state of numpy's global generator is, for `fill`: 624 words, any of which will do. None where there is none, or
    one that is made in another way."""
    module = sys.modules.get("numpy.random")
    if module is None:
        return None
    module.seed()
    try:
        generator = module.mtrand._rand._bit_generator
        address = generator.ctypes.state_address
        keys = generator.state["state"]["key"]
        import ctypes

        if type(generator).__name__ == "MT19937" and ctypes.string_at(address, keys.nbytes) == keys.tobytes():
            return native_words((address, keys.nbytes))
    except (AttributeError, ImportError, KeyError):
        pass
    return None


def reseed(runner, hooks, native, state, seed):
    """No two slots draw the same numbers, unless they are told to. `state` is what `find_state` found: numpy's own way touches
    hundreds of pages."""
    modules = sys.modules
    if seed is not None:
        for name, hook in runner.seed_with(seed).items():
            hooks.add(name, hook)
        if hooks.waiting and hooks not in sys.meta_path:
            sys.meta_path.insert(0, hooks)
        return
    # `random` seeds itself after a fork; the warm-up has drawn from that.
    if "numpy.random" in modules and not (state and native.fill(state)):
        modules["numpy.random"].seed()
    if "tempfile" in modules:
        # It tells a fork by the pid, and the pids of slots are all alike.
        modules["tempfile"]._name_sequence = None


def serve(runner, hooks, native, hot, state, seed, limit, script, restored):
    """One request's slot, from its fork to its end."""
    reseed(runner, hooks, native, state, seed)
    if restored and seed is None and "random" in sys.modules:
        sys.modules["random"].seed()
    script.enter(restored, None if restored else SCRIPT)
    posix.write(REQUEST, b"r")
    data = posix.read(REQUEST, MESSAGE)
    if data == b"w":
        native.populate(hot)
        # What lies elsewhere than in the rehearsal.
        warm_up(runner, hooks, b"", kept=True)
        sys.modules["__main__"] = script.main
        posix.write(REQUEST, b"r")
        data = posix.read(REQUEST, MESSAGE)
    if len(data) < 20:
        posix._exit(0)
    nonce, (kind, *request) = data[:16], receive(data)
    values = runner.load("inputs").receive(REQUEST) if kind[1:] else ()
    script.run(hooks, *request, limit, bool, None, values)
    if script.is_child:
        script.finish()
        runner.leave(script.code, {0, 1, 2, REQUEST, RESULT})
    if script.code == 0 and kind[:1] == b"a":
        script.finish()
        if script.code == 0 and answer(runner, REQUEST, nonce, script.document):
            # Killed here, mostly. Where the supervisor wants to see the process end by itself, it hangs up.
            posix.read(REQUEST, 1)
        script.hand_back(RESULT)
    else:
        script.hand_back(RESULT)
        script.finish()
    runner.leave(script.code, {0, 1, 2, REQUEST, RESULT})


def receive(data):
    """The request that begins so, without its nonce."""
    total = int.from_bytes(data[16:20], "little")
    while len(data) < total:
        data += posix.read(REQUEST, MESSAGE)
    return marshal.loads(data[20:])


def answer(runner, line, nonce, document):
    """Answers; False where the supervisor does not listen any more."""
    try:
        if len(document) <= INLINE:
            posix.write(line, nonce + b"i" + document)
        else:
            runner.write_all(RESULT, document)
            posix.write(line, nonce + b"m")
    except OSError:
        return False
    return True
