"""Gives a script its inputs that are values: plain ones, arrays, tables.

Loaded only where there are some. One message on a socket has their names, a line each, and with them (SCM_RIGHTS) a memfd
for each that nobody can change; `src/sandbox/input/write.rs` says how the value lies there. What is plain is read; the rest
is mapped private and writable: a page that the script writes to is copied for it alone. The descriptors are closed before the
script's first line.
"""

import marshal
import posix
import sys

HEAD = 16
PROT_READ_WRITE, MAP_PRIVATE = 3, 2
# MSG_CMSG_CLOEXEC, SOL_SOCKET, SCM_RIGHTS; AF_UNIX, SOCK_SEQPACKET.
CMSG_CLOEXEC, SOCKET, RIGHTS, UNIX, SEQPACKET = 0x40000000, 1, 1, 1, 5
# As many bytes and descriptors as one message of the supervisor's can have.
LONGEST, MOST = 16384, 253


def receive(line, is_last=False):
    """The names and descriptors that come with the next message on a line of the supervisor's; whether that is its last."""
    import _socket

    socket = _socket.socket(UNIX, SEQPACKET, 0, line)
    try:
        names, rights, _, _ = socket.recvmsg(LONGEST, _socket.CMSG_SPACE(4 * MOST), CMSG_CLOEXEC)
    finally:
        if is_last:
            socket.close()
        else:
            socket.detach()
    data = b"".join(data for level, kind, data in rights if (level, kind) == (SOCKET, RIGHTS))
    fds = memoryview(data[: len(data) // 4 * 4]).cast("i").tolist()
    names = names.decode().split("\n")
    if len(fds) != len(names):
        # The limit of open files has left no room for some. What is left of it is for the error's own report.
        for fd in fds:
            posix.close(fd)
        fds = [None] * len(names)
    return list(zip(names, fds))


def give(namespace, values):
    """Makes each value a global, and an entry of `inputs`. Returns the exception that says why one cannot be, or None."""
    inputs = namespace.setdefault("inputs", {})
    for name, fd in values:
        try:
            if fd is None:
                raise OSError("the limit of open files leaves no room for it")
            inputs[name] = namespace[name] = read(fd)
        except ModuleNotFoundError as error:
            return ModuleNotFoundError(f"the input {name!r} holds {error}", name=error.name)
        except BaseException as error:
            return RuntimeError(f"the input {name!r} could not be read: {type(error).__name__}: {error}")
        finally:
            if fd is not None:
                posix.close(fd)
    return None


def read(fd):
    """The value in a memfd."""
    head = posix.pread(fd, HEAD, 0)
    at, length = int.from_bytes(head[:8], "little"), int.from_bytes(head[8:], "little")
    value, has_places = marshal.loads(posix.pread(fd, length, at))
    return build(value, map_private(fd, at)) if has_places else value


def map_private(fd, length):
    """The begin of a file as memory that can be written to, as long as this process lives.

    `mmap` would keep a descriptor open, and numpy imports ctypes in any case.
    """
    ctypes = need("ctypes", "an array or a table")
    mmap = ctypes.CDLL(None, use_errno=True).mmap
    mmap.restype = ctypes.c_void_p
    mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    address = mmap(None, length, PROT_READ_WRITE, MAP_PRIVATE, fd, 0)
    if address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, f"{posix.strerror(number)} (mapping {length} bytes)")
    return (ctypes.c_char * length).from_address(address)


def build(value, memory):
    """The same value, with what its tuples stand for."""
    kind = type(value)
    if kind is list:
        for position, item in enumerate(value):
            if type(item) in NESTED:
                value[position] = build(item, memory)
    elif kind is dict:
        for key, item in value.items():
            if type(item) in NESTED:
                value[key] = build(item, memory)
    elif kind is tuple:
        return BUILDERS[value[0]](memory, *value[1:])
    return value


def need(module, what):
    """A module of the image's."""
    try:
        __import__(module)
    except ImportError as error:
        why = "is not in the image" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        raise ModuleNotFoundError(f"{what}, which needs {module}, and {module} {why}", name=module) from None
    return sys.modules[module]


def array(memory, dtype, shape, offset):
    return need("numpy", "an array").ndarray(shape, dtype, memory, offset)


def split(memory, kind, columns, index, data):
    pandas = need("pandas", "a table")
    data = build(data, memory)
    if index is not None:
        index = labels(pandas, build(index, memory))
    if kind == "index":
        return labels(pandas, data[0], columns[0])
    if kind == "series":
        return pandas.Series(data[0], index=index, name=columns[0], copy=False)
    frame = pandas.DataFrame(dict(enumerate(data)), index=index, copy=False)
    frame.columns = columns
    return frame


def labels(pandas, values, name=None):
    """An index; of several levels where its labels are lists."""
    if type(values) is list and values and all(type(label) is list for label in values):
        return pandas.MultiIndex.from_tuples(map(tuple, values))
    return pandas.Index(values, name=name)


def arrow(memory, kind, offset, length):
    need("pandas", "a table")
    pyarrow, ipc = need("pyarrow", "a table"), need("pyarrow.ipc", "a table")
    buffer = pyarrow.py_buffer(memory)
    options = ipc.IpcReadOptions(use_threads=False)
    table = ipc.open_stream(buffer.slice(offset, length), options=options).read_all()
    frame = frame_of(table, memory, buffer.address)
    if kind == "frame":
        return frame
    if kind == "series":
        series = frame.iloc[:, 0]
        series.name = name_of(table, frame.columns[0])
        return series
    return index_of(frame)


def frame_of(table, memory, address):
    """A `DataFrame`: numbers and times where they lie, if none is missing; all else, and the index, as pyarrow makes it."""
    pandas = sys.modules["pandas"]
    if not table.schema.metadata and table.num_columns:
        arrays = [in_place(column, None, memory, address) for column in table.columns]
        if all(array is not None for array in arrays):
            # Nothing is left for pyarrow to make, which takes as long as all the rest.
            frame = pandas.DataFrame(dict(enumerate(arrays)), copy=False)
            frame.columns = table.schema.names
            return frame
    metadata = table.schema.pandas_metadata or {}
    index = {level for level in metadata.get("index_columns", ()) if isinstance(level, str)}
    positions = [position for position, name in enumerate(table.schema.names) if name not in index]
    # What the whole of it would be: labels and types.
    model = to_pandas(table.schema.empty_table())
    if len(positions) != model.shape[1]:
        return to_pandas(table).copy()
    columns = {
        position: in_place(table.column(position), dtype, memory, address)
        for position, dtype in zip(positions, model.dtypes)
    }
    others = [position for position in range(table.num_columns) if columns.get(position) is None]
    # Copied, for a single column of a type would be Arrow's own memory, which is read-only.
    rest = to_pandas(table.select(others)).copy()
    converted = (rest.iloc[:, position].array for position in range(rest.shape[1]))
    arrays = [next(converted) if columns[position] is None else columns[position] for position in positions]
    frame = pandas.DataFrame(dict(enumerate(arrays)), index=rest.index, copy=False)
    frame.columns = model.columns
    frame.attrs = rest.attrs
    return frame


def to_pandas(table):
    """Without threads, which would be there before the script's first line, and in the way of its forks."""
    return table.to_pandas(use_threads=False)


def in_place(column, dtype, memory, address):
    """A column's numbers as an array on the mapped memory; None where pandas needs them in another form, such as `dtype`."""
    numpy, types = sys.modules["numpy"], sys.modules["pyarrow"].types
    if column.num_chunks != 1 or column.null_count:
        return None
    kind = column.type
    if types.is_integer(kind) or types.is_floating(kind):
        own = numpy.dtype(kind.to_pandas_dtype())
    elif types.is_timestamp(kind) and kind.tz is None or types.is_duration(kind):
        own = numpy.dtype(f"{'M' if types.is_timestamp(kind) else 'm'}8[{kind.unit}]")
    else:
        return None
    chunk = column.chunk(0)
    begin = chunk.buffers()[1].address - address + chunk.offset * own.itemsize
    if dtype is not None and own != dtype or not 0 <= begin <= len(memory) - len(chunk) * own.itemsize:
        return None
    return numpy.ndarray(len(chunk), own, memory, begin)


def name_of(table, label):
    """The name of a series; pandas writes None as text into Arrow."""
    columns = (table.schema.pandas_metadata or {}).get("columns", ())
    field = table.schema.names[0]
    return None if any(column["field_name"] == field and column["name"] is None for column in columns) else label


def index_of(frame):
    """An index of the columns that stand for its levels; a level without a name is called by its position."""
    pandas = sys.modules["pandas"]
    names = [None if name == position else name for position, name in enumerate(frame.columns)]
    if len(names) == 1:
        return pandas.Index(frame.iloc[:, 0].array, name=names[0])
    return pandas.MultiIndex.from_frame(frame, names=names)


NESTED = (list, dict, tuple)
BUILDERS = {"array": array, "arrow": arrow, "split": split}
