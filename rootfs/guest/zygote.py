"""The pool's zygote: an interpreter that has imported what scripts need, and forks slots on demand.

Loaded by runner.py, whose functions it uses; the further keys of the command line are

    zygote=FD        the supervisor's socket: a word of this file's, then the programs of slots
    preload=MODULE   a module to import (repeated)
    warm_up=FD       a script to run once here, so that what it imports and caches is there, and once in each slot, so
                     that the pages it touches are the slot's own before the request comes

It runs no code of a script's. A slot is a fork of it that has been put behind the wall by the supervisor's program (see
`src/sys/init/module.rs`), and serves one request:

    3: a SOCK_SEQPACKET socket to the supervisor, 4: a memfd for a result document that no message holds

    supervisor  b"w" or b"p"    warm up, or be ready as you are
    slot        b"r"            ready
    supervisor  the request, in messages of at most MESSAGE bytes: 16 bytes of nonce, then texts, each with its length in
                four bytes before it: b"a" (answer) or b"x" (exit), the source, `__file__`, the number of arguments, the
                arguments, the names of inputs
    slot        the answer: the nonce, b"i" and the document, or b"m" where the memfd holds it

An answer says that the script ended well; then the slot waits to be killed. Anything else than a good end is told by the
end of the process.
"""

import _imp
import gc
import posix
import sys

REQUEST, RESULT = 3, 4
MESSAGE = 16384
# The longest document that goes into an answer; the same number is in src/sandbox/slot.rs.
INLINE = 65536
NAME = "/work/warm_up.py"


def main(runner, single, repeated):
    """Prepares, says so, and serves until the supervisor is gone."""
    control = int(single["zygote"])
    native = load_native(runner)
    runner.prepare_interpreter("/work", single, repeated)
    hooks = runner.hook_imports(None)
    runner.load("collect")
    for module in repeated["preload"]:
        try:
            __import__(module)
        except BaseException as error:
            refuse(control, f"import {module}", error)
    script = None
    if "warm_up" in single:
        script = runner.read_all(int(single["warm_up"]))
        posix.close(int(single["warm_up"]))
        ended = warm_up(runner, hooks, script)
        if ended.code != 0:
            refuse(control, "run the warm-up script", ended.error)
    check_threads(control)
    seed = int(single["seed"]) if "seed" in single else None
    limit = int(single["result_limit"])
    # What is here lives as long as the process: no collection looks at it again, and so none copies its pages.
    gc.collect()
    gc.freeze()
    if native.serve(control) != 0:
        refuse(control, "take over the socket", OSError("out of descriptors"))
    posix.write(control, b"ready")
    while native.next():
        # A hook of os.register_at_fork may have started one.
        check_threads(control)
        try:
            pid = posix.fork()
        except OSError as error:
            native.forked(-error.errno)
            continue
        if pid == 0:
            native.enter()
            serve(runner, hooks, script, seed, limit)
        native.forked(pid)
    posix._exit(0)


def check_threads(control):
    """A fork of a process with threads has the locks that those held, and nobody to release them."""
    if more := len(posix.listdir("/proc/self/task")) - 1:
        refuse(control, "fork", RuntimeError(f"it has {more} more thread{'s' * (more > 1)}: preload or warm_up starts them"))


def load_native(runner):
    """The extension module; scripts have no way to import it."""
    spec = type(sys.implementation)(name="_nsbox", origin=f"{runner.HOME}/_nsbox.so")
    return _imp.create_dynamic(spec)


def refuse(control, what, error):
    """Tells the supervisor why there can be no slots."""
    text = f"{type(error).__name__}: {error}"
    posix.write(control, f"{what}\0{text}".encode("utf-8", "backslashreplace")[:4096])
    posix._exit(1)


def warm_up(runner, hooks, script):
    """Runs the warm-up script the way a request's runs, its collection included."""
    ended = runner.Ended(hooks, NAME, script, [], [], 1 << 24, bool)
    runner.release(ended.main.__dict__)
    posix.unlink(NAME)
    if "linecache" in sys.modules:
        sys.modules["linecache"].cache.pop(NAME, None)
    return ended


def reseed(runner, seed):
    """No two slots draw the same numbers, unless they are told to."""
    modules = sys.modules
    if seed is not None:
        for name, hook in runner.seed_with(seed).items():
            if name in modules:
                hook(modules[name])
        return
    # `random` seeds itself after a fork; the warm-up has drawn from that.
    if "numpy.random" in modules:
        modules["numpy.random"].seed()
    if "tempfile" in modules:
        # It tells a fork by the pid, and the pids of slots are all alike.
        modules["tempfile"]._name_sequence = None


def serve(runner, hooks, script, seed, limit):
    """One request's slot, from its fork to its end."""
    main = sys.modules["__main__"]
    if posix.read(REQUEST, 1) == b"w" and script is not None:
        warm_up(runner, hooks, script)
        sys.modules["__main__"] = main
    reseed(runner, seed)
    posix.write(REQUEST, b"r")
    nonce, texts = receive()
    if nonce is None:
        posix._exit(0)
    mode, source, file, count, *rest = texts
    rest = [text.decode("utf-8", "surrogateescape") for text in rest]
    count = int(count)
    ended = runner.Ended(hooks, file.decode(), source, rest[:count], rest[count:], limit, bool)
    if ended.is_child:
        ended.finish()
        runner.leave(ended.code, {0, 1, 2, REQUEST, RESULT})
    if ended.code == 0 and mode == b"a":
        ended.finish()
        if ended.code == 0 and answer(runner, nonce, ended.document):
            # Killed here, mostly. Where the supervisor wants to see the process end by itself, it hangs up.
            posix.read(REQUEST, 1)
        ended.hand_back(RESULT)
    else:
        ended.hand_back(RESULT)
        ended.finish()
    runner.leave(ended.code, {0, 1, 2, REQUEST, RESULT})


def receive():
    """The nonce and the texts of the request."""
    data = posix.read(REQUEST, MESSAGE)
    if len(data) < 20:
        return None, None
    total = int.from_bytes(data[16:20], "little")
    while len(data) < total:
        data += posix.read(REQUEST, MESSAGE)
    texts, at = [], 20
    while at < total:
        length = int.from_bytes(data[at : at + 4], "little")
        texts.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return data[:16], texts


def answer(runner, nonce, document):
    """Answers; False where the supervisor does not listen any more."""
    try:
        if len(document) <= INLINE:
            posix.write(REQUEST, nonce + b"i" + document)
        else:
            runner.write_all(RESULT, document)
            posix.write(REQUEST, nonce + b"m")
    except OSError:
        return False
    return True
