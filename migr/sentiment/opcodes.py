"""Read a pickle of dicts, lists, strings, numbers and numpy arrays without running anything that it asks for.

Python's own reader calls what a file names. This one has a table of the opcodes that data need (protocols 2 to 5),
knows seven names (numpy's array, type and their makers, bytes), puts own stand-ins in their place (`stored.py`), and
refuses all others by name. Long arrays are not read: their place is noted and they are mapped from disk, so memory does
not depend on
the file's size.
"""

import codecs
import mmap
import struct
from pathlib import Path
from typing import Any

from migr.errors import InputError
from migr.sentiment.stored import Array, Bytes, Damaged, DType, scalar

MAX_OBJECTS = 3_000_000  # a file of 23,000 clips has under one million
MAX_INTEGER = 16  # bytes of one whole number
LONG = 1 << 16  # bytes; longer ones stay in the file


class _Class:
    """Stands in for a name of numpy's, which is never called as it is."""


def _encode(text: Any, encoding: Any) -> bytes | Bytes:
    """`_codecs.encode`: how protocols below 3 write bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise Damaged(f"bytes in the encoding {str(encoding)[:20]!r}")
    if isinstance(text, Bytes):
        return Bytes(text.data, text.start, text.size, escaped=True)
    return codecs.encode(text, "latin-1")


def _reconstruct(*_: Any) -> Array:
    return Array()


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any = "C", axes: Any = None) -> Array:
    return Array().set(shape, dtype, order == "F", content, axes)


def _empty_bytes() -> bytes:
    """`bytes()`: how protocol 2 writes them."""
    return b""


NAMES: dict[str, Any] = {"numpy.ndarray": _Class(), "numpy.dtype": DType, "_codecs.encode": _encode}
NAMES |= {"__builtin__.bytes": _empty_bytes, "builtins.bytes": _empty_bytes}
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and numpy 2
    NAMES |= {f"{_core}.multiarray._reconstruct": _reconstruct, f"{_core}.multiarray.scalar": scalar}
    NAMES[f"{_core}.numeric._frombuffer"] = _frombuffer

_MARK = object()
_STRUCTS = {
    0x4A: struct.Struct("<i"),  # BININT
    0x4B: struct.Struct("<B"),  # BININT1
    0x4D: struct.Struct("<H"),  # BININT2
    0x47: struct.Struct(">d"),  # BINFLOAT
}
# opcode -> (bytes of its length, what it holds)
_SIZED = {
    0x58: (4, "text"), 0x8C: (1, "text"), 0x8D: (8, "text"),
    0x42: (4, "bytes"), 0x43: (1, "bytes"), 0x8E: (8, "bytes"), 0x96: (8, "bytes"),
    0x54: (4, "bytes"), 0x55: (1, "bytes"),  # the strings of Python 2
    0x8A: (1, "integer"), 0x8B: (4, "integer"),
}  # fmt: skip
_CONSTANTS = {0x4E: None, 0x88: True, 0x89: False}
_EMPTY = {0x7D: dict, 0x5D: list, 0x29: tuple}
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
_PUTS = {0x71: 1, 0x72: 4}
_GETS = {0x68: 1, 0x6A: 4}


class _Reader:
    """One pass over the opcodes: a stack, and the memo of what was put aside."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at, self.size = data, 0, len(data)
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.objects = 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > self.size - self.at:
            raise Damaged("the file ends here: it was cut off")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, count: int) -> int:
        """The next bytes as a whole number."""
        return int.from_bytes(self.take(count), "little")

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.objects += 1
        if self.objects > MAX_OBJECTS:
            raise Damaged(f"more than {MAX_OBJECTS:,} objects: no table of clips")
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        """Take what stands above the last mark, and the mark."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                items = self.stack[place + 1 :]
                del self.stack[place:]
                return items
        raise Damaged("a list that never began")

    def sized(self, width: int, kind: str) -> Any:
        """A string, bytes or whole number that says its length first."""
        count = self.number(width)
        if count > self.size - self.at:
            raise Damaged("something longer than the file")
        if kind == "integer":
            if count > MAX_INTEGER:
                raise Damaged(f"a whole number of {count} bytes")
            return int.from_bytes(self.take(count), "little", signed=True)
        if count >= LONG:
            self.at += count
            return Bytes(self.data, self.at - count, count)
        content = self.take(count)
        return content.decode("utf-8", "surrogatepass") if kind == "text" else content

    def line(self) -> str:
        """Bytes up to the end of the line."""
        end = self.data.find(b"\n", self.at, self.at + 256)
        if end < 0:
            raise Damaged("a name without an end")
        return self.take(end - self.at + 1)[:-1].decode("utf-8", "replace")

    def name(self, module: Any, name: Any) -> Any:
        """The stand-in of a name; all others are refused."""
        qualified = f"{module}.{name}"
        if qualified in NAMES:
            return NAMES[qualified]
        if qualified.startswith(("torch.", "collections.OrderedDict")):
            raise Damaged(f'{qualified}, a torch tensor: write the features as arrays (MMSA-FET: return_type="np")')
        printable = "".join(c if c.isprintable() else "?" for c in qualified[:80])
        raise Damaged(f"a call of {printable}, which no data need; it was refused, and nothing was run")

    def read(self) -> Any:
        """Everything up to the end mark."""
        stack = self.stack
        while True:
            code = self.take(1)[0]
            if code in _STRUCTS:
                form = _STRUCTS[code]
                self.push(form.unpack(self.take(form.size))[0])
            elif code in _SIZED:
                self.push(self.sized(*_SIZED[code]))
            elif code in _GETS:
                self.push(self.memo[self.number(_GETS[code])])
            elif code in _PUTS:
                self.memo[self.number(_PUTS[code])] = stack[-1]
            elif code == 0x94:  # MEMOIZE
                self.memo[len(self.memo)] = stack[-1]
            elif code in _CONSTANTS:
                self.push(_CONSTANTS[code])
            elif code in _EMPTY:
                self.push(_EMPTY[code]())
            elif code == 0x28:  # MARK
                self.push(_MARK)
            elif code in _TUPLES:
                count = _TUPLES[code]
                parts = tuple(stack[-count:])
                if len(parts) < count:
                    raise Damaged("a tuple of nothing")
                del stack[-count:]
                self.push(parts)
            elif code == 0x74:  # TUPLE
                self.push(tuple(self.since_mark()))
            elif code == 0x61:  # APPEND
                value = stack.pop()
                _list(stack[-1]).append(value)
            elif code == 0x65:  # APPENDS
                values = self.since_mark()
                _list(stack[-1]).extend(values)
            elif code == 0x73:  # SETITEM
                value, key = stack.pop(), stack.pop()
                _put(stack[-1], key, value)
            elif code == 0x75:  # SETITEMS
                pairs = self.since_mark()
                for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                    _put(stack[-1], key, value)
            elif code == 0x63:  # GLOBAL
                self.push(self.name(self.line(), self.line()))
            elif code == 0x93:  # STACK_GLOBAL
                name, module = stack.pop(), stack.pop()
                self.push(self.name(module, name))
            elif code == 0x52:  # REDUCE
                arguments, call = stack.pop(), stack.pop()
                if not isinstance(arguments, tuple) or not any(call is known for known in NAMES.values()):
                    raise Damaged("a call of something that is no name")
                self.push(call(*arguments))
            elif code == 0x62:  # BUILD
                state = stack.pop()
                if not isinstance(stack[-1], Array | DType) or not isinstance(state, tuple):
                    raise Damaged("the state of something that has none")
                stack[-1].set_state(state)
            elif code == 0x80:  # PROTO
                if not 2 <= (protocol := self.number(1)) <= 5:
                    raise Damaged(f"protocol {protocol}; 2 to 5 are read")
            elif code == 0x95:  # FRAME: the frame's content follows in place
                self.take(8)
            elif code == 0x30:  # POP
                stack.pop()
            elif code == 0x2E:  # STOP
                if len(stack) != 1:
                    raise Damaged("more than one thing in it")
                return stack[0]
            else:
                raise Damaged(f"the opcode {code:#04x}, which no data need")


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Damaged("something is appended to what is no list")
    return value


def _put(table: Any, key: Any, value: Any) -> None:
    if not isinstance(table, dict) or not isinstance(key, str | bytes | int):
        raise Damaged("a dict with keys that are no strings")
    table[key.decode("latin-1") if isinstance(key, bytes) else key] = value


def read_pickle(path: str | Path) -> tuple[Any, mmap.mmap | None]:
    """Read a pickle's data.

    Returns:
        Dicts, lists, tuples, strings, bytes, numbers and `stored.Array`s (numpy scalars are plain numbers; arrays of
        objects hold a list), and the mapped file, whose pages the reader of long arrays gives back (`release`).

    Raises:
        InputError: No pickle, a damaged one, or one that asks for more than data; names the file and the byte.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(2)
        if start[:1] != b"\x80":
            kind = {
                b"PK": "a zip file, perhaps torch.save's",
                b"\x1f\x8b": "gzip: unpack it",
                b"ve": "a Git LFS pointer",
            }
            what = kind.get(start, "no pickle of protocol 2 to 5" if start else "empty")
            raise InputError(f"{path}: {what}; expected the .pkl file as it is downloaded")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    reader = _Reader(data)
    try:
        return reader.read(), data
    except Damaged as error:
        raise InputError(f"{path}: byte {reader.at}: {error}") from None
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: byte {reader.at}: damaged ({type(error).__name__})") from None


def release(data: mmap.mmap) -> None:
    """Give the pages of a mapped file back, so that a long pass over it does not count as memory."""
    data.madvise(mmap.MADV_DONTNEED)
