"""Runs one script inside the sandbox, as `python3 script.py` would, and hands back what it left.

The first code of the guest: trusted, but inside the wall, so nothing it says is believed without the kernel's word.
`python3 -S -s -B -u runner.py KEY=VALUE... -- ARGS...`, where the keys are

    file=PATH           the script's `__file__`; its text is written there
    code=FD             descriptor of the script's text (UTF-8), the very text that was checked
    result=FD           descriptor for the result document (CBOR, see collect.py)
    start=FD            one byte is written here when the script's own time begins
    result_limit=BYTES  size limit of the result document
    path=DIR            one more folder of modules (repeated)
    prefix=DIR          `sys.prefix` of a virtual environment
    seed=N              seeds `random` and `numpy.random`
    input=NAME          a file or folder at /input/NAME (repeated); NAME=PATH, where nothing is mounted there
    values=FD           socket with the inputs that are values: see inputs.py
    root=DIR            what stands for /work, /tmp, /input and /output is in it: see relocate.py
    network=yes         there is no sandbox, so a network

With zygote=FD it runs no script itself: see zygote.py, which has the further keys.

It is on the path of every cold run, so it imports only what an interpreter has loaded at its start; whatever else is
needed is imported at the moment of need.
"""

import _frozen_importlib_external
import _imp
import _io
import _thread
import builtins
import marshal
import posix
import sys

RESULT_NAMES = ("result", "metrics", "signal", "report")


def parse(arguments):
    """Splits the command line into the protocol's keys and the script's own arguments."""
    single = {}
    repeated = {"path": [], "input": [], "preload": []}
    for position, argument in enumerate(arguments):
        if argument == "--":
            return single, repeated, arguments[position + 1 :]
        key, _, value = argument.partition("=")
        if key in repeated:
            repeated[key].append(value)
        else:
            single[key] = value
    return single, repeated, []


LOADED = {}
# The guest's own modules where they are no files: see container.py.
TEXTS = {}


def load(name):
    """Loads another of the guest's own modules, without giving scripts a way to import it."""
    if name in LOADED:
        return LOADED[name]
    if name in TEXTS:
        code = compile(TEXTS[name], f"{name}.py", "exec", dont_inherit=True)
    else:
        code = read_code(f"{HOME}/{name}")
    LOADED[name] = module = type(sys)(name)
    exec(code, module.__dict__)
    return module


def read_code(stem):
    """A module's code object, compiled before or now."""
    try:
        with _io.open(f"{stem}.{sys.implementation.cache_tag}.pyc", "rb") as file:
            return marshal.loads(file.read()[16:])
    except FileNotFoundError:
        with _io.open(f"{stem}.py", "rb") as file:
            return compile(file.read(), f"{stem}.py", "exec", dont_inherit=True)


# Import hooks: work on a module the moment it is imported, at no cost where it is not.


class Hooks:
    """A finder that lets the others find, and calls a hook once the module has run."""

    def __init__(self):
        self.waiting = {}

    def add(self, name, hook):
        """Calls `hook(module)` after the import of `name`; at once where it is imported already."""
        if name in sys.modules:
            hook(sys.modules[name])
        else:
            self.waiting[name] = hook

    def find_spec(self, name, path=None, target=None):
        hook = self.waiting.pop(name, None)
        if hook is None:
            return None
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                run_after(spec.loader, hook)
                return spec
        return None


def run_after(loader, hook):
    """Makes `loader` call `hook(module)` after its next module."""

    def exec_module(module):
        del loader.exec_module
        loader.exec_module(module)
        hook(module)

    loader.exec_module = exec_module


def seed_with(seed):
    """The hooks that seed the generators of `random` and `numpy.random`."""
    # numpy takes one 32-bit word, or several.
    words = seed if seed < 1 << 32 else [seed & 0xFFFFFFFF, seed >> 32]
    return {"random": lambda module: module.seed(seed), "numpy.random": lambda module: module.seed(words)}


class SiteBuiltin:
    """`exit`, `quit`, `help` and their like, which `-S` leaves out; made when first used."""

    def __init__(self, name):
        self.name = name

    def real(self):
        import _sitebuiltins

        if self.name in ("exit", "quit"):
            return _sitebuiltins.Quitter(self.name, "Ctrl-D (i.e. EOF)")
        if self.name == "help":
            return _sitebuiltins._Helper()
        return _sitebuiltins._Printer(self.name, sys.copyright if self.name == "copyright" else "See python.org.")

    def __call__(self, *args, **kwargs):
        return self.real()(*args, **kwargs)

    def __repr__(self):
        return repr(self.real())


# Before the script.


def read_all(fd):
    """The whole content of a memfd, wherever its offset stands."""
    size = posix.fstat(fd).st_size
    chunks = []
    while size > 0:
        chunk = posix.pread(fd, size, sum(map(len, chunks)))
        if not chunk:
            break
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def write_all(fd, data):
    """Makes `data` the whole content of a memfd."""
    posix.ftruncate(fd, 0)
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += posix.pwrite(fd, view[done:], done)


def open_script(path):
    """The script's own file, which tools read."""
    return posix.open(path, posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC, 0o644)


def write_script(fd, data):
    """Puts the script there."""
    while data:
        data = data[posix.write(fd, data) :]
    posix.close(fd)


def prepare_interpreter(folder, single, repeated):
    """What `site` would have done; `folder` is the script's."""
    sys.path[0] = folder
    sys.path += repeated["path"]
    if "prefix" in single:
        sys.prefix = sys.exec_prefix = single["prefix"]
    for name in ("exit", "quit", "help", "copyright", "credits", "license"):
        setattr(builtins, name, SiteBuiltin(name))


def new_main():
    """A fresh `__main__`, as CPython makes it for a script whose name is to come."""
    main = type(sys)("__main__")
    loader = _frozen_importlib_external.SourceFileLoader("__main__", None)
    main.__dict__.update(__annotations__={}, __builtins__=builtins, __cached__=None, __file__=None, __loader__=loader)
    sys.modules["__main__"] = main
    return main


def hook_imports(seed, network=False):
    """Arms what waits for an import, whatever the script: seeds and, without a network, the hint."""
    hooks = Hooks()
    if not network:
        for name in ("socket", "curl_cffi.curl"):
            hooks.add(name, lambda module: load("network_hint").install(module))
    if seed is not None:
        for name, hook in seed_with(seed).items():
            hooks.add(name, hook)
    sys.meta_path.insert(0, hooks)
    return hooks


def keep_source(hooks, file, text):
    """Gives tracebacks the source lines of the text that runs."""
    # No modification time: the entry outlives any change of the file.
    entry = (len(text), None, text.splitlines(True), file)
    if linecache := sys.modules.get("linecache"):
        linecache.cache[file] = entry
    else:
        hooks.add("linecache", lambda linecache: linecache.cache.update({file: entry}))


class Compiled(BaseException):
    """Stops `exec` between compiling and running."""


def compile_quickly(text, file):
    """The script's code object; None where `compile` has an error or a warning to report.

    The first call of `compile` makes all the types of syntax trees, 1.4 ms that `exec` does not need. So `exec` compiles,
    and a profile function takes the code from the frame that it is about to run.
    """
    namespace, found = {}, []

    def take(frame, event, argument):
        if event == "call" and frame.f_globals is namespace:
            found.append(frame.f_code)
            raise Compiled

    stderr, sys.stderr = sys.stderr, _io.StringIO()
    sys.setprofile(take)
    try:
        exec(text, namespace)
    except BaseException:
        pass
    finally:
        sys.setprofile(None)
        warnings, sys.stderr = sys.stderr.getvalue(), stderr
    if warnings or not found:
        return None
    _imp._fix_co_filename(found[0], file)
    return found[0]


def run(main, text, file, root):
    """Runs the script; its uncaught exception, free of this file's frames, or None."""
    try:
        code = compile_quickly(text, file) or compile(text, file, "exec", dont_inherit=True)
        if root is not None:
            code = load("relocate").relocate(code, root)
        exec(code, main.__dict__)
    except BaseException as error:
        return error.with_traceback(error.__traceback__.tb_next)
    return None


def exit_code_of(error):
    """The exit status that CPython gives an uncaught exception; prints the text of a `SystemExit` that carries one."""
    if error is None:
        return 0
    if not isinstance(error, SystemExit):
        return 1
    code = error.code
    if code is None:
        return 0
    if isinstance(code, int):
        # As C does: a long, cut to the eight bits that an exit status has; -1 where it is no long.
        return code & 0xFF if -(1 << 63) <= code < 1 << 63 else 0xFF
    try:
        print(code, file=sys.stderr)
    except Exception:
        pass
    return 1


def format_with_hook(error):
    """The traceback as CPython prints it, from the interpreter's own printer."""
    stderr, sys.stderr = sys.stderr, _io.StringIO()
    try:
        sys.__excepthook__(type(error), error, error.__traceback__)
        return sys.stderr.getvalue()
    finally:
        sys.stderr = stderr


def is_unchanged(path, data):
    """Whether the file still holds the text that runs."""
    try:
        with _io.open(path, "rb") as file:
            return file.read(len(data) + 1) == data
    except OSError:
        return False


def report(error, file, data):
    """Prints an uncaught exception as CPython does, and describes it for the result document."""
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    try:
        # The interpreter's printer is fast and prints hints that `traceback` does not, but before 3.13 it reads the
        # lines from the file: not when that no longer holds the text that ran.
        if is_unchanged(file, data):
            text = format_with_hook(error)
        else:
            import traceback

            text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception:
        text = f"{type(error).__name__}: the traceback could not be formatted\n"
    try:
        if sys.excepthook is not sys.__excepthook__:
            sys.excepthook(type(error), error, error.__traceback__)
        elif sys.stderr is not None:
            sys.stderr.write(text)
    except BaseException:
        posix.write(2, text.encode("utf-8", "backslashreplace"))
    return load("collect").describe_error(error, text)


def join_threads():
    """Waits for the threads that are not daemons."""
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()


def run_exit_handlers():
    if "atexit" in sys.modules:
        sys.modules["atexit"]._run_exitfuncs()


def flush_output():
    """Flushes what the script printed; False where that fails, for which CPython exits with 120."""
    for stream, must in ((sys.stdout, True), (sys.stderr, False)):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except Exception:
            if must:
                return False
    return True


def release(namespace):
    """Frees what the script left, last made first: its `__del__` methods run, its open files are written out."""
    for name in reversed(list(namespace)):
        if name != "__builtins__":
            namespace[name] = None


def holds_open_files(known):
    """Whether a descriptor is open for writing that the protocol does not know: its buffer may not be written out."""
    folder = "/proc/self/fd"
    try:
        names = posix.listdir(folder)
    except OSError:
        return True
    for name in names:
        if int(name) not in known:
            try:
                # The owner's bits of the link say how the descriptor was opened.
                if posix.lstat(f"{folder}/{name}").st_mode & 0o200:
                    return True
            except OSError:
                pass  # The descriptor of the listing itself, closed by now.
    return False


def finish(error, code, main, last=True):
    """What CPython does once a script has ended; returns the exit code."""
    if last:
        run_exit_handlers()
    if _thread._count() == 0:
        # A daemon thread would see its globals vanish.
        release(main.__dict__)
    if not flush_output():
        code = 120
    if isinstance(error, KeyboardInterrupt):
        import _signal

        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
        posix.kill(posix.getpid(), _signal.SIGINT)
        code = 130
    return code


def leave(code, known):
    """Ends the process as CPython would, without the time that finalising an interpreter with pandas takes.

    `known` are the descriptors that nothing is left to be written to.
    """
    if holds_open_files(known):
        sys.exit(code)
    posix._exit(code)


class Script:
    """A script: what can be made before its text is known, its run, and what it leaves."""

    def __init__(self, last=True):
        """`last`: no other script runs in this process."""
        self.last, self.main = last, new_main()
        self.enter()

    def enter(self, kept=False, ahead=None):
        """It will run in this process. `kept`: no file is written; `ahead`: where its file is made now, to be renamed if need be."""
        self.process, self.kept = posix.getpid(), kept
        self.ahead = (ahead, open_script(ahead)) if ahead else None

    def run(self, hooks, file, data, arguments, inputs, limit, begin, root=None, values=()):
        """Runs it to its end: its uncaught exception, its exit code, the document of what it leaves. `begin` is called right
        before its first line; `values`: inputs by name and descriptor."""
        text = data.decode("utf-8").removeprefix("\ufeff")
        if not self.kept:
            made, fd = self.ahead or (file, open_script(file))
            if made != file:
                posix.rename(made, file)
            write_script(fd, data)
        sys.argv[:] = [file, *arguments]
        sys.orig_argv[:] = [sys.executable, *sys.argv]
        main = self.main
        main.__file__ = main.__loader__.path = file
        if inputs:
            main.inputs = {name: path or f"/input/{name}" for name, _, path in (text.partition("=") for text in inputs)}
        keep_source(hooks, file, text)
        error = load("inputs").give(main.__dict__, values) if values else None
        begin()
        self.error = error = error or run(main, text, file, root)
        self.code = exit_code_of(error)
        failure = None if error is None or isinstance(error, SystemExit) else report(error, file, data)
        if self.last:
            # To Python this is the end: no thread pool takes work afterwards.
            join_threads()
        self.document = b""
        # A child that the script forked also comes by here: the document is its parent's.
        self.is_child = posix.getpid() != self.process
        if not self.is_child:
            names = [name for name in RESULT_NAMES if name in main.__dict__] if self.code == 0 else []
            if names or failure:
                self.document = load("collect").document(main.__dict__, names, failure, limit)

    def hand_back(self, result_fd):
        """Writes the document."""
        try:
            if self.document:
                write_all(result_fd, self.document)
        except OSError as refused:
            print(f"nsbox: the result could not be written: {refused}", file=sys.stderr)
            self.code = self.code or 1

    def finish(self):
        self.code = finish(self.error, self.code, self.main, self.last)


def main():
    """The whole of a run."""
    single, repeated, arguments = parse(sys.argv[1:])
    if "zygote" in single:
        return load("zygote").main(sys.modules[__name__], single, repeated)
    file, result_fd, start_fd = single["file"], int(single["result"]), int(single["start"])
    data = read_all(int(single["code"]))
    posix.close(int(single["code"]))
    prepare_interpreter(file.rpartition("/")[0] or "/", single, repeated)
    hooks = hook_imports(int(single["seed"]) if "seed" in single else None, "network" in single)
    posix.set_inheritable(result_fd, False)

    def begin():
        posix.write(start_fd, b"\n")
        posix.close(start_fd)

    limit, root = int(single["result_limit"]), single.get("root")
    values = load("inputs").receive(int(single["values"]), True) if "values" in single else ()
    script = Script()
    script.run(hooks, file, data, arguments, repeated["input"], limit, begin, root, values)
    script.hand_back(result_fd)
    script.finish()
    leave(script.code, {0, 1, 2, result_fd})


if __name__ == "__main__":
    HOME = sys.path[0]
    main()
