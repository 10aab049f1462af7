"""Compiles the guest's own modules for this interpreter; run as a script inside the sandbox.

`result` maps each module's name to the content of its `.pyc`. The hash is not checked at run time: the folder is
read-only to every guest, and is named after the digest of its sources.
"""

import _frozen_importlib_external
import _io
import posix

folder = "/run/nsbox/guest"
result = {}
for name in posix.listdir(folder):
    if name.endswith(".py"):
        with _io.open(f"{folder}/{name}", "rb") as file:
            source = file.read()
        code = compile(source, f"{folder}/{name}", "exec", dont_inherit=True, optimize=2)
        result[name[:-3]] = bytes(_frozen_importlib_external._code_to_hash_pyc(code, bytes(8), False))
