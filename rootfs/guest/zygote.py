"""The pool's zygote: an interpreter that has imported what scripts need, and forks slots on demand.

Loaded by runner.py, whose functions it uses; the further keys of the command line are

    zygote=FD        the supervisor's socket: a word of this file's, then the programs of slots
    preload=MODULE   a module to import (repeated)
    layout=FD        a memfd with what an earlier zygote has found out for memory.py's `lay_out`, or for that
    warm_up=FD       a script to run here, so that what it imports and caches is there; and in forks, to see what strategies write to:
                     that is put side by side (see memory.py), and a slot that warms up has it copied before its request comes
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
import _thread
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
# What `native.next` says.
ONE_SHOT, RESTORED, THREADS = 1, 2, 3
# Seconds that a warm-up script may take that runs again, and that nsbox's own repetitions may.
SHORT, PATIENCE = 1.0, 0.1
# Whether the interpreter knows objects that nobody counts references to; of the others, slots write to each that they use.
IMMORTAL = sys.version_info >= (3, 12)


def main(runner, single, repeated):
    """Prepares, says so, and serves until the supervisor is gone."""
    control = int(single["zygote"])
    seed = int(single["seed"]) if "seed" in single else None
    native, memory = load_native(runner), runner.load("memory")
    native.gather()
    text = None
    if "warm_up" in single:
        text = runner.read_all(int(single["warm_up"]))
        posix.close(int(single["warm_up"]))
    layout = int(single["layout"])

    def prepared():
        hooks, idle, state, script = prepare(runner, native, memory, control, text, single, repeated)
        return hooks, idle, state, script, lambda: rehearse(runner, hooks, native, memory, text, idle, state, script, seed)

    if text is not None and not IMMORTAL and not sys.abiflags:
        memory.lay_out(native, control, layout, lambda: prepared()[-1])
    posix.close(layout)
    hooks, idle, state, script, rehearsal = prepared()
    hot = memory.in_fork(native.fork, rehearsal) if text is not None else b""
    if native.serve(control) != 0:
        refuse(control, "take over the socket", OSError("out of descriptors"))
    wiped = memory.wiped_areas()
    if not native.share(wiped):
        refuse(control, "seal what libraries wrote", OSError("a seal was refused"))
    memory.enlarge_text(native, hot)
    # Last, for what is written while there is a fork has its huge page split.
    memory.collapse(native)
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
    serve(runner, hooks, native, hot, state, seed, int(single["result_limit"]), script, kind == RESTORED)


def prepare(runner, native, memory, control, text, single, repeated):
    """Does what all slots find done: the imports, the warm-up. What they need of it: the hooks of imports, those of forks, where
    numpy's generator is, a script's module."""
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
    if text is not None:
        begun = monotonic()
        ended = warm_up(runner, hooks, text)
        if ended.code != 0:
            refuse(control, "run the warm-up script", ended.error)
        check_threads(control)
        look_up(runner, native, ended)
        if monotonic() - begun < SHORT:
            if IMMORTAL:
                memory.pack_code(native, lambda: warm_up(runner, hooks, text))
            settle(runner, hooks, text, int(single["repeats"]), control)
    for name in (b"JE_ARROW_MALLOC_CONF", b"MALLOC_TOP_PAD_", b"MALLOC_TRIM_THRESHOLD_", b"MALLOC_MMAP_THRESHOLD_"):
        forget(name)
    end_quickly(runner)
    check_threads(control)
    state = find_state(memory)
    script = runner.Script()
    native.laid_out()
    # What is here lives as long as the process: nobody need count who uses it, and no collection looks at it again. Either would
    # copy its pages.
    gc.collect()
    native.keep((gc.get_objects(), None, main.__code__))
    gc.freeze()
    memory.join_segments(native)
    # The interpreter keeps a few ended objects of some types for the next ones; this gives them back, gaps too.
    gc.collect()
    memory.use_up_spares()
    native.close_gaps()
    return hooks, idle, state, script


def keep_idle_hooks():
    """From here on, functions that the standard library registers for forks are kept, where they only take, leave and renew locks
    that nobody can hold in a process of one thread: a fork that calls them copies 200 pages more, and splits huge pages of the
    zygote's. What registers is returned too."""
    idle, register = [], posix.register_at_fork
    locks = type(_thread.allocate_lock()), _thread.RLock

    def is_idle(function):
        of_lock = isinstance(getattr(function, "__self__", None), locks)
        return of_lock or getattr(function, "__module__", None) in {"threading", "logging"}

    def register_at_fork(**functions):
        if all(map(is_idle, functions.values())):
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


def look_up(runner, native, script):
    """Looks up what forks alone do, for the interpreter's cache of what types have: for each of these it lets go of another name,
    wherever that lies, and a slot would copy its page to count one reference less."""
    modules = sys.modules
    things, functions = [native, posix, runner, script], [serve, reseed, take_idle_hooks, type(script).enter, type(script).run]
    if "threading" in modules:
        thread = modules["threading"].main_thread()
        things += modules["threading"], thread
        functions.append(getattr(type(thread), "_set_native_id", serve))
    if "random" in modules:
        things.append(modules["random"]._inst)
        functions.append(type(modules["random"]._inst).seed)
    if "tempfile" in modules:
        things.append(modules["tempfile"])
    names = {name for function in functions for name in function.__code__.co_names}
    for thing in things:
        for name in names & {*vars(thing), *vars(type(thing))}:
            getattr(thing, name)


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


def rehearse(runner, hooks, native, memory, text, idle, state, script, seed):
    """In a fork: the pages that a slot will touch, for `populate`: those that this has for itself once it has done what a slot does
    for a request, which here is the warm-up script."""
    before = list(memory.areas())
    take_idle_hooks(idle)
    reseed(runner, hooks, native, state, seed)
    if seed is None and "random" in sys.modules:
        sys.modules["random"].seed()
    script.enter(False, SCRIPT)
    warm_up(runner, hooks, b"", kept=True)
    sys.modules["__main__"] = script.main
    warm_up(runner, hooks, text, script=script)
    return memory.touched(before)


def refuse(control, what, error):
    """Tells the supervisor why there can be no slots."""
    text = f"{type(error).__name__}: {error}"
    posix.write(control, f"{what}\0{text}".encode("utf-8", "backslashreplace")[:4096])
    posix._exit(1)


def warm_up(runner, hooks, text, kept=False, script=None):
    """Runs the warm-up script as a request's is run, from the message to the answer, so that all of it has been done before.
    `kept`: no file is written; `script`: what has entered already, the process's last."""
    message = marshal.dumps((b"a", NAME, text, [], []), 2)
    _, *request = receive(bytes(16) + (20 + len(message)).to_bytes(4, "little") + message)
    if script is None:
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


def find_state(memory):
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
            return memory.native_words((address, keys.nbytes))
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
