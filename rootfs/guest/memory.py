"""Where things lie in the memory of the pool's zygote, which zygote.py loads: a fork of it copies each page that it writes to."""

import _signal
import gc
import posix
import sys

PAGE = 4096
# Bytes of a huge page.
HUGE = 1 << 21
POPULATE_READ, POPULATE_WRITE = 22, 23
READ_WRITE, READ_EXECUTE = 3, 5
# What `native.lay_out` is told.
RECORD, APART, TOGETHER = 1, 2, 3
# Seconds that a fork may take that goes ahead of the zygote, and bytes that one finds at most.
AHEAD, MOST_FOUND = 5, 1 << 20
# Bytes mapped of text that are worth a huge page: four faults.
MUCH_TEXT = 64 * PAGE
# Arrays that hold what numpy had kept for others.
USED_UP = []


def lay_out(native, control, layout, prepared):
    """Has what slots write to allocated side by side: see `src/sys/init/layout.rs`. Two forks go ahead, unless `layout` has what
    those of an earlier zygote found; where one fails or takes long, all lies as it comes. `prepared` prepares, and returns what a
    slot does, of which the fork returns `touched`."""

    def begin(how):
        # With no ended objects kept for the next ones, and the next collection as far away, all three allocate in one order.
        gc.collect()
        native.lay_out((how, found))

    def go_ahead():
        # The zygote itself will tell of what fails.
        posix.dup2(posix.open("/dev/null", posix.O_WRONLY | posix.O_CLOEXEC), control)
        _signal.alarm(AHEAD)
        begin(how)
        words = memoryview(in_fork(native.fork, prepared())).cast("Q")
        ranges = (words[i : i + 3] for i in range(0, len(words), 3))
        return native.found(native_words(word for *range, advice in ranges if advice == POPULATE_WRITE for word in range))

    found = posix.pread(layout, MOST_FOUND, 0)
    if not found:
        for how in (RECORD, APART):
            found = in_fork(posix.fork, go_ahead)
            if not found:
                return
        posix.pwrite(layout, found, 0)
    begin(TOGETHER)


def pack_code(native, run):
    """Puts the code objects that this runs side by side. An interpreter writes to those that it runs, to count references to them
    and what it may specialise, and a fork copies the page for each: they are small, and lie scattered over as many pages."""
    if sys.version_info >= (3, 14) or sys.abiflags:
        # Their code objects may be others, and those of builds with special flags are.
        return
    kind = type(pack_code.__code__)
    functions = {}
    for function in gc.get_objects():
        if type(function) is type(pack_code):
            functions.setdefault(id(function.__code__), []).append(function)
    packed = {}
    wanted = dict.fromkeys(memoryview(in_fork(native.fork, lambda: executed(run))).cast("Q"))

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


def executed(run):
    """The addresses of the code objects that this runs, as native words, in the order of their first call."""
    found = {}

    def note(frame, event, argument):
        found[id(frame.f_code)] = None

    sys.setprofile(note)
    run()
    sys.setprofile(None)
    return native_words(found)


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


def use_up_spares():
    """numpy keeps blocks of up to 1,024 bytes that were freed for the next arrays, seven of each size, wherever they lie. From here
    on there are none: see `src/sys/init/heap.rs`."""
    empty = getattr(sys.modules.get("numpy"), "empty", None)
    if callable(empty):
        USED_UP.extend(empty(size, "u1") for size in range(1, 1024) for _ in range(7))


def enlarge_text(native, touched):
    """Puts the text that slots run into huge pages; `touched` is what the function of that name returned in a rehearsal. Of a
    library's file each slot has it mapped anew, 16 pages a fault."""
    words = memoryview(touched).cast("Q")
    read = [words[i : i + 2] for i in range(0, len(words), 3) if words[i + 2] == POPULATE_READ]
    for (begin, end), file, access, _ in list(areas()):
        if access == b"r-xp" and file:
            for page in range(-(-begin // HUGE) * HUGE, end - HUGE + 1, HUGE):
                used = sum(max(0, min(at + length, page + HUGE) - max(at, page)) for at, length in read)
                if used >= MUCH_TEXT:
                    native.enlarge_text(page)


def collapse(native):
    """Puts what is there into huge pages, of which a fork copies one entry where it would copy 512."""
    for (begin, end), file, access, _ in areas():
        if access == b"rw-p" and not file:
            for page in range(-(-begin // HUGE) * HUGE, end - HUGE + 1, HUGE):
                native.collapse(page)


def in_fork(fork, do):
    """The bytes that `do` returns in a fork of this process, which is left as it is; none where it fails."""
    source, sink = posix.pipe()
    if (pid := fork()) == 0:
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
