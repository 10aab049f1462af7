"""Stands in for the guest's own folders where nothing can be mounted (ast-only): literal paths lead into the run's folder.

A script names its files by literals under /input, /output, /work and /tmp: nothing else passes the check. Those literals
are constants of its code, and are changed there, so that one script works on every backend. This is no wall: a path that
is put together at run time fails, for the host has none of these folders or does not show them.
"""

PLACES = {"/input": "input", "/output": "output", "/work": "work", "/tmp": "tmp"}


def relocate(code, root):
    """The same code object, with the literal paths of the guest's folders below `root`, in nested code too."""
    return code.replace(co_consts=tuple(moved(constant, root) for constant in code.co_consts))


def moved(constant, root):
    if isinstance(constant, str):
        place, slash, rest = constant[1:].partition("/")
        folder = PLACES.get("/" + place) if constant[:1] == "/" else None
        return constant if folder is None else f"{root}/{folder}{slash}{rest}"
    if isinstance(constant, (tuple, frozenset)):
        return type(constant)(moved(item, root) for item in constant)
    return relocate(constant, root) if isinstance(constant, type(relocate.__code__)) else constant
