"""Makes a guest's root of a Debian tree and a folder of wheels; run in that tree by its own Python.

    chroot TREE env -i PYTHONHASHSEED=0 /usr/bin/python3 -S -s -B /build/install.py

`/build` holds this file, `cut.txt`, `wheels/*.whl` and `guest/*.py`; who calls removes it afterwards. Both engines call it,
`nsbox image build` and `docker build`, so both images hold the same files. Nothing of a wheel is run: it is unpacked
as the specification of wheels says (its scripts and headers left out, since nothing installs or compiles in the guest),
`cut.txt` is applied, and every module is compiled. Same input, same bytes: bytecode carries the digest of its source
and no time, and each file is compiled in a process that has compiled nothing before, since what an interpreter has
seen shows in the bytecode it writes. Prints
`begin STAGE BYTES` for each stage, then `done BYTES` on the way.
"""

import base64
import csv
import fnmatch
import hashlib
import os
import platform
import posixpath
import py_compile
import re
import runpy
import shutil
import stat
import struct
import sys
import sysconfig
import zipfile
from pathlib import Path

BUILD = Path("/build")
SITE = Path(sysconfig.get_path("purelib"))
STDLIB = Path(sysconfig.get_path("stdlib"))
GUEST = Path("/run/nsbox/guest")
TAG = sys.implementation.cache_tag
# Where a wheel's `.data` goes; scripts and headers are for those who install and compile.
DATA = {"purelib": SITE, "platlib": SITE, "data": Path("/usr/local")}
ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnsbox:x:1000:1000:nsbox:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "group": "root:x:0:\nnsbox:x:1000:\nnogroup:x:65534:\n",
    "hostname": "nsbox\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}


def cutter():
    """A function that tells whether a path, counted from the root, is cut."""
    lines = (line.strip() for line in (BUILD / "cut.txt").read_text().splitlines())
    rules = [(not line.startswith("!"), line.lstrip("!")) for line in lines if line and not line.startswith("#")]
    rules = [(cuts, re.compile(fnmatch.translate(pattern))) for cuts, pattern in rules]

    def is_cut(path):
        verdict = False
        for cuts, pattern in rules:
            if cuts != verdict and pattern.match(path):
                verdict = cuts
        return verdict

    return is_cut


def check_tags(wheel):
    """Ends the build where a wheel is for another interpreter or machine, which would show at its import only."""
    pythons, abis, platforms = (part.split(".") for part in wheel.stem.split("-")[-3:])
    minor = sys.version_info.minor
    fits = f"cp3{minor}" in pythons or "py3" in pythons or f"py3{minor}" in pythons
    fits = fits or ("abi3" in abis and any(p[:3] == "cp3" and int(p[3:]) <= minor for p in pythons))
    if not fits or not any(p == "any" or p.endswith(platform.machine()) for p in platforms):
        sys.exit(f"{wheel.name} is not for CPython 3.{minor} on {platform.machine()}")


def place(name):
    """Where a wheel's entry goes, or None."""
    first, _, rest = name.partition("/")
    if not first.endswith(".data"):
        return SITE / name
    kind, _, rest = rest.partition("/")
    return DATA[kind] / rest if kind in DATA else None


def stripped(data):
    """A shared library without symbols and debugging information: what follows all that is loaded, and the table that
    leads there, which no loader reads."""
    if data[:6] != b"\x7fELF\x02\x01":
        return data
    headers, size, count = struct.unpack_from("<Q", data, 32) + struct.unpack_from("<HH", data, 54)
    ends = [headers + size * count]
    for at in range(headers, ends[0], size):
        _kind, _flags, offset, _, _, length = struct.unpack_from("<IIQQQQ", data, at)
        ends.append(offset + length)
    data = bytearray(data[: max(ends)])
    struct.pack_into("<Q", data, 40, 0)
    struct.pack_into("<HHH", data, 58, 0, 0, 0)
    return bytes(data)


def normal(name):
    """A project's name, as all its spellings have it in common."""
    return re.sub("[-_.]+", "-", name).lower()


def remove(project):
    """Takes away what the base had of a project: another version's files must not mix with those of the lock."""
    for info in SITE.glob("*.dist-info"):
        if normal(info.name.rpartition("-")[0]) == project:
            with (info / "RECORD").open(newline="") as file:
                files = [SITE / row[0] for row in csv.reader(file)]
            for path in files:
                path.unlink(missing_ok=True)
                for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
                    compiled.unlink()
            shutil.rmtree(info)


def install(wheel, is_cut):
    """Unpacks one wheel; what it says of its files (RECORD) becomes what is there."""
    check_tags(wheel)
    remove(normal(wheel.name.partition("-")[0]))
    rows, record = [], None
    with zipfile.ZipFile(wheel) as archive:
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            name = posixpath.normpath(info.filename)
            target = place(name)
            if target is None or info.is_dir() or is_cut(str(target)[1:]):
                continue
            if name.startswith(("/", "../")):
                sys.exit(f"{wheel.name} names a file outside of itself: {info.filename}")
            if re.fullmatch(r"[^/]+\.dist-info/RECORD(\.jws|\.p7s)?", name):
                record = target.with_name("RECORD")
                continue
            data = stripped(archive.read(info))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            if info.external_attr >> 16 & stat.S_IXUSR:
                target.chmod(0o755)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append((posixpath.relpath(target, SITE), f"sha256={digest}", len(data)))
    if record is None:
        sys.exit(f"{wheel.name} has no RECORD: it is no wheel")
    with record.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([*sorted(rows), (posixpath.relpath(record, SITE), "", "")])


def cut_tree(is_cut):
    """Applies the cut to what Debian's packages brought, and removes the folders that it empties."""
    for folder, names, files in os.walk("/", topdown=False):
        if folder == "/build" or folder.startswith("/build/"):
            continue
        entries = [*files, *(name for name in names if os.path.islink(os.path.join(folder, name)))]
        paths = [os.path.join(folder, name) for name in entries]
        cut = [path for path in paths if is_cut(path[1:])]
        for path in cut:
            os.unlink(path)
        if is_cut(folder[1:] + "/") and not os.listdir(folder):
            os.rmdir(folder)


def in_fresh_processes(work, items):
    """Calls `work` for each item in a process of its own, as many at a time as there are CPUs."""
    running, failed = 0, 0
    most = len(os.sched_getaffinity(0))
    for item in [*items, *[None] * most]:
        if running == most or item is None:
            if running:
                failed += os.wait()[1] != 0
                running -= 1
        if item is not None:
            if os.fork() == 0:
                work(item)
                os._exit(0)
            running += 1
            print("done", os.path.getsize(item), flush=True)
    if failed:
        sys.exit(f"{failed} modules could not be compiled")


def compile_module(path):
    """Writes a module's bytecode; a file that is no Python of this version (a template, say) has none."""
    try:
        py_compile.compile(path, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    except (py_compile.PyCompileError, UnicodeDecodeError):
        pass


def compile_all():
    modules = sorted(str(path) for top in {SITE, STDLIB, STDLIB.parent / "python3"} for path in top.rglob("*.py"))
    print("begin compiling", sum(map(os.path.getsize, modules)), flush=True)
    in_fresh_processes(compile_module, modules)


def link_duplicates():
    """One file under several names becomes hard links: wheels cannot hold links, so they hold copies."""
    seen = {}
    for path in sorted(SITE.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_size:
            content = (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mode)
            if (first := seen.setdefault(content, path)) != path:
                path.unlink()
                path.hardlink_to(first)


def install_guest():
    """nsbox's runner, named and compiled as in its store; the compiler is no part of it."""
    GUEST.mkdir(parents=True, exist_ok=True)
    for source in sorted((BUILD / "guest").glob("*.py")):
        shutil.copyfile(source, GUEST / source.name)
    for name, code in runpy.run_path(str(GUEST / "compile.py"))["result"].items():
        if name != "compile":
            (GUEST / f"{name}.{TAG}.pyc").write_bytes(code)
    (GUEST / "compile.py").unlink()


def main():
    is_cut = cutter()
    install_guest()
    wheels = sorted((BUILD / "wheels").glob("*.whl"))
    cut_tree(is_cut)
    print("begin installing", sum(wheel.stat().st_size for wheel in wheels), flush=True)
    for wheel in wheels:
        install(wheel, is_cut)
        print("done", wheel.stat().st_size, flush=True)
    link_duplicates()
    compile_all()
    for name, text in ETC.items():
        Path("/etc", name).write_text(text)
    # The guest's own places, for engines that do not make them.
    for name in ("input", "output", "work", "tmp", "root", "dev", "proc", "sys"):
        Path("/", name).mkdir(exist_ok=True)
    Path("/root").chmod(0o755)
    if os.path.exists("/sbin/ldconfig"):
        os.spawnv(os.P_WAIT, "/sbin/ldconfig", ["ldconfig", "-X"])
        shutil.rmtree("/var/cache/ldconfig", ignore_errors=True)


main()
