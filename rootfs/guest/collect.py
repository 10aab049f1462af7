"""Writes what a script left in `result`, `metrics`, `signal` and `report` as one CBOR document.

Loaded after the script, only where there is something to hand back. The document (RFC 8949) is a map

    {"v": 1, "names": {NAME: VALUE, ...}, "error": {"type", "message", "traceback"}, "notes": [TEXT, ...]}

with `error` only after an uncaught exception, or `{"v": 1, "over_limit": LIMIT}` where it would be larger than allowed.
Beyond CBOR's own types a VALUE may be

    tag 2, 3                               an integer of more than 64 bits
    tag 258 [VALUE, ...]                   a set
    tag 27 ["array", DTYPE, SHAPE, BYTES]  a numpy array of a type that CBOR does not know, little endian, in C order
    tag 40 [SHAPE, tag 64..86 BYTES]       a numpy array of numbers (RFC 8746), with as many axes as SHAPE is long
    tag 27 ["arrow", KIND, BYTES]          a pandas object as an Arrow IPC stream; KIND is frame, series or index
    tag 27 ["split", KIND, {...}]          the same without pyarrow: "columns", "index" and each column's "data"
    tag 27 ["repr", TYPE, TEXT]            an object that has no value outside Python

The script's own methods are not called where the type's own will do. What they raise is a note: no result fails a run.
"""

import sys
from _struct import pack

VERSION = 1
MAX_DEPTH = 64
# The supervisor takes no more, whatever their size: each costs it some memory.
MAX_VALUES = 4_000_000
MAX_NOTES = 100
MAX_TEXT = 4096
# The longest integer that Python itself turns into decimal digits unasked has 4,300 of them.
MAX_INTEGER_BITS = 14_284

# numpy's kind and size to the tag of RFC 8746 (little endian).
TYPED_ARRAYS = {
    "u1": 64, "u2": 69, "u4": 70, "u8": 71, "i1": 72, "i2": 77, "i4": 78, "i8": 79, "f2": 84, "f4": 85, "f8": 86,
}  # fmt: skip


class OverLimit(Exception):
    """The document has grown past its limit."""


class Unrepresentable(Exception):
    """The value has no form outside Python; the argument says why."""


def document(namespace, names, error, limit):
    """The document of a run: `names` of the script's `namespace`, and `error` from `describe_error` or None."""
    encoder = Encoder(limit)
    try:
        encoder.head(5, 4 if error else 3)
        encoder.plain("v", VERSION, "names")
        encoder.head(5, len(names))
        for name in names:
            encoder.text(name)
            encoder.value(namespace[name], name, 1)
        if error:
            encoder.plain("error", error)
        encoder.plain("notes", encoder.notes)
    except OverLimit:
        encoder = Encoder(MAX_TEXT)
        encoder.plain({"v": VERSION, "over_limit": limit})
    return b"".join(encoder.chunks)


def describe_error(error, text):
    """The entry `error` of the document; `text` is the traceback as printed."""
    name = type_name(type(error)).removeprefix("builtins.").removeprefix("__main__.")
    try:
        message = str(error)
    except BaseException:
        message = "the exception's own __str__ failed"
    # The end of a traceback says more than its beginning.
    return {"type": name, "message": message[:MAX_TEXT], "traceback": text[-16 * MAX_TEXT :]}


class Encoder:
    """Writes values as CBOR; `where` names the place of a value in the notes, as Python would write it."""

    def __init__(self, limit):
        self.limit = limit
        self.size = 0
        self.count = 0
        self.chunks = []
        self.notes = []
        self.open = set()
        self.writers = {
            type(None): self.null,
            bool: lambda value, where, depth: self.put(b"\xf5" if value else b"\xf4"),
            int: self.integer,
            float: lambda value, where, depth: self.put(b"\xfb" + pack(">d", value)),
            str: lambda value, where, depth: self.text(value, where),
            bytes: lambda value, where, depth: self.binary(value),
            bytearray: lambda value, where, depth: self.binary(value),
            memoryview: lambda value, where, depth: self.binary(value.tobytes()),
            list: lambda value, where, depth: self.sequence(list.__iter__(value), list.__len__(value), where, depth),
            tuple: lambda value, where, depth: self.sequence(tuple.__iter__(value), tuple.__len__(value), where, depth),
            range: lambda value, where, depth: self.sequence(value, len(value), where, depth),
            set: lambda value, where, depth: self.members(set.__iter__(value), set.__len__(value), where, depth),
            frozenset: lambda value, where, depth: self.members(
                frozenset.__iter__(value), frozenset.__len__(value), where, depth
            ),
            dict: self.mapping,
        }
        # What a script cannot have made without importing it is not imported for it.
        for module, kinds in LIBRARIES.items():
            if module in sys.modules:
                for name, write in kinds.items():
                    kind = getattr(sys.modules[module], name, None)
                    if isinstance(kind, type):
                        self.writers[kind] = write.__get__(self)

    # Bytes.

    def put(self, chunk):
        self.size += len(chunk)
        if self.size > self.limit:
            raise OverLimit
        self.chunks.append(chunk)

    def head(self, major, argument):
        major <<= 5
        if argument < 24:
            self.put(bytes((major | argument,)))
        elif argument < 1 << 8:
            self.put(bytes((major | 24, argument)))
        elif argument < 1 << 16:
            self.put(pack(">BH", major | 25, argument))
        elif argument < 1 << 32:
            self.put(pack(">BI", major | 26, argument))
        else:
            self.put(pack(">BQ", major | 27, argument))

    def binary(self, data):
        if self.size + len(data) > self.limit:
            raise OverLimit
        self.head(2, len(data))
        self.put(bytes(data))

    def text(self, value, where=""):
        if self.size + str.__len__(value) > self.limit:
            raise OverLimit
        try:
            data = str.encode(value, "utf-8")
        except UnicodeEncodeError:
            data = str.encode(value, "utf-8", "replace")
            self.note(where, "holds lone surrogates, written as '?'")
        self.head(3, len(data))
        self.put(data)

    def note(self, where, text):
        if len(self.notes) < MAX_NOTES:
            self.notes.append(f"{where[:200]}: {text}"[:MAX_TEXT])
        elif len(self.notes) == MAX_NOTES:
            self.notes.append("further notes are left out")

    def tagged(self, name, length):
        """The begin of what CBOR has no type for: tag 27, a list of this length, its name."""
        self.head(6, 27)
        self.head(4, length)
        self.text(name)

    def plain(self, *values):
        for value in values:
            self.value(value, "", 0)

    # Any value.

    def value(self, value, where, depth):
        """Writes `value`, or a note in its place."""
        self.count += 1
        if self.count > MAX_VALUES - MAX_NOTES - 100:
            raise OverLimit
        chunks, size = len(self.chunks), self.size
        mark = id(value)
        fresh = mark not in self.open
        try:
            if depth > MAX_DEPTH:
                raise Unrepresentable(f"is nested more than {MAX_DEPTH} deep")
            if not fresh:
                raise Unrepresentable("contains itself")
            self.open.add(mark)
            self.writer(value)(value, where, depth)
        except OverLimit:
            raise
        except BaseException as error:
            # A SystemExit of the script's own methods among them.
            # Half a value is none: take back what it has written.
            del self.chunks[chunks:]
            self.size = size
            why = str(error) if type(error) is Unrepresentable else f"could not be read ({type_name(type(error))})"
            self.opaque(value, where, why)
        finally:
            if fresh:
                self.open.discard(mark)

    def writer(self, value):
        """How to write a value of this type, from the nearest of its base classes that is known."""
        kind = type(value)
        write = self.writers.get(kind)
        if write is None:
            for base in type.__dict__["__mro__"].__get__(kind):
                write = self.writers.get(base)
                # An IntEnum is an enum before it is an int.
                if write is not None and base in (int, str, float) and self.is_enum(kind):
                    write = self.enum
                if write is not None:
                    break
                if "__dataclass_fields__" in base.__dict__:
                    write = self.dataclass
                    break
            if write is None:
                raise Unrepresentable("has no form outside Python")
            self.writers[kind] = write
        return write

    def is_enum(self, kind):
        return "enum" in sys.modules and issubclass(kind, sys.modules["enum"].Enum)

    def opaque(self, value, where, why):
        """What is left of an object without a form: its type. Its own `repr` is not asked."""
        name = type_name(type(value))
        self.note(where, f"{name} {why}")
        self.tagged("repr", 3)
        self.text(name)
        self.text(f"<{name} object>")

    # Plain Python.

    def integer(self, value, where="", depth=0):
        value = int.__int__(value)
        if -(1 << 64) <= value < 1 << 64:
            self.head(1, -1 - value) if value < 0 else self.head(0, value)
            return
        if value.bit_length() > MAX_INTEGER_BITS:
            raise Unrepresentable(f"is an integer of {value.bit_length()} bits, the most is {MAX_INTEGER_BITS}")
        self.head(6, 3 if value < 0 else 2)
        value = -1 - value if value < 0 else value
        self.binary(value.to_bytes((value.bit_length() + 7) // 8, "big"))

    def sequence(self, values, length, where, depth):
        self.head(4, length)
        read = 0
        for value in values:
            if read == length:
                raise Unrepresentable("grew while it was read")
            self.value(value, f"{where}[{read}]", depth + 1)
            read += 1
        if read != length:
            raise Unrepresentable("shrank while it was read")

    def members(self, values, length, where, depth):
        self.head(6, 258)
        self.sequence(values, length, where, depth)

    def mapping(self, value, where, depth):
        self.pairs(dict.items(value), where, depth)

    def pairs(self, items, where, depth):
        """A map with text for keys: of two keys that read the same, the later is kept, as in JSON."""
        entries = {}
        for key, value in items:
            text = key if type(key) is str else self.key(key)
            if text in entries:
                self.note(where, f"two keys read {text[:100]!r}: the later value is kept")
            entries[text] = value
        self.head(5, len(entries))
        for text, value in entries.items():
            self.text(text, where)
            self.value(value, f"{where}[{text[:100]!r}]", depth + 1)

    def key(self, key):
        """A key as text."""
        if key is None or isinstance(key, (bool, int, float)) and type(key).__module__ == "builtins":
            return repr(key) if not isinstance(key, int) or key.bit_length() <= MAX_INTEGER_BITS else "<integer>"
        if isinstance(key, str):
            return str.__str__(key)
        if type(key) is tuple:
            return f"({', '.join(map(self.key, key))})"
        inner = Encoder(MAX_TEXT)
        try:
            # Dates, enums, numpy scalars: whatever reads as one text or number when it is a value.
            inner.value(key, "", 0)
            if not inner.notes:
                return read_scalar(b"".join(inner.chunks))
        except (OverLimit, ValueError):
            pass
        return f"<{type_name(type(key)).removeprefix('builtins.')}>"

    def dataclass(self, value, where, depth):
        fields = type(value).__dataclass_fields__.items()
        fields = [name for name, field in fields if field._field_type.name == "_FIELD"]
        self.pairs(((name, object.__getattribute__(value, name)) for name in fields), where, depth)

    # The standard library.

    def enum(self, value, where, depth):
        self.value(object.__getattribute__(value, "_value_"), where, depth + 1)

    def isoformat(self, value, where, depth):
        """Dates and times, in the form of the nearest class of the library: pandas' keeps nanoseconds."""
        for base in type(value).__mro__:
            if base.__module__ in ("datetime", "pandas", "pandas._libs.tslibs.timestamps"):
                return self.text(base.isoformat(value))

    def duration(self, value, where, depth):
        self.text(iso_duration((value.days * 86_400 + value.seconds) * 10**9 + value.microseconds * 1000))

    def pandas_duration(self, value, where, depth):
        self.text(sys.modules["pandas"].Timedelta.isoformat(value))

    def as_text(self, value, where, depth):
        """Types whose text is their value: Decimal, Fraction, UUID, paths."""
        for base in type(value).__mro__:
            if base.__module__ in TEXT_MODULES and "__str__" in base.__dict__:
                return self.text(base.__str__(value))

    def deque(self, value, where, depth):
        self.sequence(iter(value), len(value), where, depth)

    # numpy.

    def scalar(self, value, where, depth):
        numpy = sys.modules["numpy"]
        kind = value.dtype.kind
        if kind == "M":
            return self.plain(None if numpy.isnat(value) else str(numpy.datetime_as_string(value)))
        if kind == "m":
            if numpy.isnat(value):
                return self.plain(None)
            return self.text(iso_duration(int(value.astype("m8[ns]").astype("i8"))))
        if kind == "f":
            return self.put(b"\xfb" + pack(">d", float(value)))
        if kind in "cV":
            return self.array(numpy.asarray(value), where, depth, flat=False)
        self.value(numpy.generic.item(value), where, depth + 1)

    def array(self, value, where, depth, flat=True):
        numpy = sys.modules["numpy"]
        if "numpy.ma" in sys.modules and isinstance(value, numpy.ma.MaskedArray):
            self.note(where, "is a masked array: its masked places are written as null")
            return self.value(value.tolist(), where, depth + 1)
        value = numpy.asarray(value)
        kind = value.dtype.kind
        if kind == "V" or (kind == "f" and value.dtype.itemsize > 8):
            if kind == "f":
                self.note(where, f"{value.dtype} is written as float64")
                value = value.astype("f8")
            else:
                self.note(where, "the field names of a structured array are left out")
                return self.value(value.tolist(), where, depth + 1)
        if kind == "c" and value.dtype.itemsize > 16:
            self.note(where, f"{value.dtype} is written as complex128")
            value = value.astype("c16")
        if flat and value.ndim == 0:
            return self.value(value[()], where, depth + 1)
        if kind not in "biufcMm" or str(value.dtype) in ("datetime64", "timedelta64"):
            # Text and Python objects: a list of what they hold.
            return self.value(value.tolist(), where, depth + 1)
        if self.size + value.nbytes > self.limit:
            raise OverLimit
        data = numpy.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes()
        tag = TYPED_ARRAYS.get(f"{kind}{value.dtype.itemsize}")
        if tag is None:
            self.tagged("array", 4)
            self.text(str(value.dtype.newbyteorder("=")))
            self.shape(value)
        else:
            self.head(6, 40)
            self.head(4, 2)
            self.shape(value)
            self.head(6, tag)
        self.binary(data)

    def shape(self, value):
        self.head(4, value.ndim)
        for length in value.shape:
            self.head(0, length)

    # pandas.

    def table(self, kind, value, where, depth):
        size = int(value.memory_usage(index=True).sum() if kind == "frame" else value.memory_usage())
        if size > 16 * max(self.limit, 1 << 20):
            # Text repeats and compresses into dictionaries, numbers do not: this cannot fit, do not try.
            raise OverLimit
        data = arrow_stream(kind, value)
        if data is not None:
            self.tagged("arrow", 3)
            self.text(kind)
            return self.binary(data)
        self.tagged("split", 3)
        self.text(kind)
        if kind == "frame":
            columns, index = list(value.columns), value.index
            data = [value.iloc[:, position] for position in range(value.shape[1])]
        else:
            columns, index, data = [value.name], value.index if kind == "series" else None, [value]
        self.head(5, 3)
        self.text("columns")
        self.value([None if name is None else self.key(name) for name in columns], where, depth + 1)
        self.text("index")
        self.value(None if index is None else column_values(index), where, depth + 1)
        self.text("data")
        self.sequence(map(column_values, data), len(data), where, depth + 1)

    def null(self, value, where, depth):
        self.put(b"\xf6")


# The types of libraries, by the module that defines them.
LIBRARIES = {
    "enum": {"Enum": Encoder.enum},
    "datetime": {
        "date": Encoder.isoformat,
        "datetime": Encoder.isoformat,
        "time": Encoder.isoformat,
        "timedelta": Encoder.duration,
    },
    "decimal": {"Decimal": Encoder.as_text},
    "fractions": {"Fraction": Encoder.as_text},
    "uuid": {"UUID": Encoder.as_text},
    "pathlib": {"PurePath": Encoder.as_text},
    "collections": {"deque": Encoder.deque},
    "numpy": {"generic": Encoder.scalar, "float64": Encoder.scalar, "ndarray": Encoder.array},
    "pandas": {
        "Timestamp": Encoder.isoformat,
        "Timedelta": Encoder.pandas_duration,
        "Period": Encoder.as_text,
        "Interval": Encoder.as_text,
        "DataFrame": lambda self, *place: self.table("frame", *place),
        "Series": lambda self, *place: self.table("series", *place),
        "Index": lambda self, *place: self.table("index", *place),
    },
    "pandas._libs.tslibs.nattype": {"NaTType": Encoder.null},
    "pandas._libs.missing": {"NAType": Encoder.null},
}
TEXT_MODULES = (
    "decimal", "_decimal", "_pydecimal", "fractions", "uuid", "pathlib", "pathlib._local", "pandas",
    "pandas._libs.tslibs.period", "pandas._libs.interval",
)  # fmt: skip


def type_name(kind):
    """The full name of a class, whatever its metaclass would answer."""
    parts = [type.__dict__[part].__get__(kind) for part in ("__module__", "__qualname__")]
    return ".".join(part[:200] if type(part) is str else "?" for part in parts)


def iso_duration(nanoseconds):
    """An ISO 8601 duration in days and seconds."""
    sign = "-" if nanoseconds < 0 else ""
    days, rest = divmod(abs(nanoseconds), 86_400 * 10**9)
    seconds, fraction = divmod(rest, 10**9)
    point = f".{fraction:09}".rstrip("0") if fraction else ""
    return f"{sign}P{days}DT{seconds}{point}S"


def read_scalar(data):
    """The text of a single text or integer in CBOR."""
    major, argument = data[0] >> 5, data[0] & 31
    width = 0 if argument < 24 else 1 << (argument - 24)
    number = int.from_bytes(data[1 : 1 + width], "big") if width else argument
    if major == 0:
        return str(number)
    if major == 1:
        return str(-1 - number)
    if major == 3:
        return data[1 + width :].decode()
    raise ValueError("not a text or integer")


def column_values(column):
    """The values of a column or index as numpy numbers, or else as a list."""
    values = column.values
    return values if type(values).__module__ == "numpy" and values.dtype.kind in "biufcMm" else column.tolist()


def arrow_stream(kind, value):
    """The Arrow IPC stream of a pandas object, or None where pyarrow is missing or has no type for a column."""
    threading = sys.modules["threading"]
    is_over = getattr(threading, "_SHUTTING_DOWN", False)
    try:
        # pyarrow's first use registers for the end of all threads, which is over: it needs none of its own here.
        threading._SHUTTING_DOWN = False
        import pyarrow.ipc
        if kind == "series":
            value = value.to_frame(name=value.name)
        elif kind == "index":
            value = value.to_frame(index=False)
        table = pyarrow.Table.from_pandas(value, nthreads=1)
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue()
    except Exception:
        return None
    finally:
        threading._SHUTTING_DOWN = is_over
