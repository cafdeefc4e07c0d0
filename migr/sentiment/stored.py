"""What stands in for numpy's objects in a pickle: a description of an array, whose numbers stay in the file.

Nothing of numpy's own `__reduce__` and `__setstate__` is called: shape, type and bytes are noted, checked against each
other, and turned into an array by `numpy.frombuffer` over the mapped file.
"""

import codecs
import mmap
import re
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

KINDS = re.compile(r"[fiu][1248]|b1|[US]\d{1,6}|O[48]?")
MAX_DIMENSIONS = 8
_CHUNK = 1 << 22  # bytes of escaped text that are decoded at a time


class Damaged(ValueError):
    """The pickle says something that cannot be; the reader adds file and place."""


@dataclass(frozen=True)
class Bytes:
    """Bytes that were left in the file: where they start, how many, and whether protocol 2 wrote them as text."""

    data: mmap.mmap
    start: int
    size: int
    escaped: bool = False  # latin-1 characters written as UTF-8

    def __len__(self) -> int:
        return self.size

    def buffer(self) -> mmap.mmap | memoryview:
        """The bytes themselves: mapped from the file, or where they are escaped from an unnamed temporary one."""
        if not self.escaped:
            return memoryview(self.data)[self.start : self.start + self.size]
        with tempfile.TemporaryFile() as file:
            decode = codecs.getincrementaldecoder("utf-8")().decode
            for at in range(self.start, self.start + self.size, _CHUNK):
                end = min(at + _CHUNK, self.start + self.size)
                file.write(decode(self.data[at:end], end == self.start + self.size).encode("latin-1"))
            file.flush()
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.tell() else memoryview(b"")


class DType:
    """Stands in for `numpy.dtype`."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        code = code.decode("latin-1") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not KINDS.fullmatch(code):
            raise Damaged(f"an array of type {str(code)[:40]!r}; numbers, strings and objects are read")
        self.code, self.order = code, "|"

    def set_state(self, state: Any) -> None:
        """What numpy keeps of a type: (version, byte order, no fields, ...)."""
        order = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise Damaged("an array with named fields; write plain arrays instead")
        self.order = order

    @property
    def holds_objects(self) -> bool:
        """Whether its arrays hold Python objects."""
        return self.code.startswith("O")

    def real(self) -> np.dtype[Any]:
        """Numpy's own."""
        return np.dtype(self.order + self.code if self.order in "<>" else self.code)


class Array:
    """Stands in for `numpy.ndarray`. `shape` is known once it is built; `numbers()` gives what it holds."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.stored: tuple[int, ...] = ()  # the shape before its axes are turned
        self.dtype: DType | None = None
        self.fortran = False
        self.content: Any = None
        self.axes: tuple[int, ...] | None = None
        self.mapped: NDArray[Any] | None = None

    def set(self, shape: Any, dtype: Any, fortran: Any, content: Any, axes: Any = None) -> "Array":
        """Note what it is; sizes must agree. `axes`: how its axes are turned once it is there."""
        if not isinstance(dtype, DType) or not isinstance(shape, tuple) or len(shape) > MAX_DIMENSIONS:
            raise Damaged("an array without type or shape")
        count = 1
        for length in shape:
            if type(length) is not int or length < 0:
                raise Damaged(f"an array of the shape {str(shape)[:60]}")
            count *= length
        if dtype.holds_objects:
            if not isinstance(content, list) or len(content) != count:
                raise Damaged(f"an array of {count} objects that does not hold them")
        elif not isinstance(content, bytes | bytearray | Bytes):
            raise Damaged("an array without bytes")
        else:
            size = count * dtype.real().itemsize
            exact = not (isinstance(content, Bytes) and content.escaped)  # escaped ones are counted when decoded
            if (len(content) != size) if exact else not size <= len(content) <= 2 * size:
                raise Damaged(f"an array of the shape {shape} and type {dtype.code} that has {len(content)} bytes")
        if axes is not None and (not isinstance(axes, tuple) or sorted(axes) != list(range(len(shape)))):
            raise Damaged(f"an array whose axes are turned by {str(axes)[:40]}")
        self.dtype, self.fortran, self.content, self.axes = dtype, bool(fortran), content, axes
        self.stored, self.shape = shape, shape if axes is None else tuple(shape[axis] for axis in axes)
        return self

    def set_state(self, state: Any) -> None:
        """What numpy keeps of an array: (version, shape, type, whether Fortran order, content)."""
        _, shape, dtype, fortran, content = state
        self.set(shape, dtype, fortran, content)

    def objects(self) -> list[Any] | None:
        """What an array of objects holds, one behind the other; None for other arrays."""
        return self.content if self.dtype is not None and self.dtype.holds_objects else None

    def numbers(self) -> NDArray[Any]:
        """The array, mapped from the file where it was left there; not for objects."""
        if self.mapped is None:
            if self.dtype is None or self.dtype.holds_objects:
                raise Damaged("objects where numbers should be")
            content: Any = self.content.buffer() if isinstance(self.content, Bytes) else self.content
            flat = np.frombuffer(content, self.dtype.real()) if len(content) else np.empty(0, self.dtype.real())
            if flat.size != int(np.prod(self.shape, dtype=object)):
                raise Damaged(f"an array of the shape {self.shape} that has {flat.size} numbers")
            _check_text(flat)
            self.mapped = flat.reshape(self.stored, order="F" if self.fortran else "C")
            if self.axes is not None:
                self.mapped = self.mapped.transpose(self.axes)
        return self.mapped


def scalar(dtype: Any, content: Any) -> Any:
    """A numpy number or string as a plain one."""
    if not isinstance(dtype, DType) or dtype.holds_objects or not isinstance(content, bytes):
        raise Damaged("a number without type or bytes")
    real = dtype.real()
    if len(content) != real.itemsize:
        raise Damaged(f"a number of type {dtype.code} with {len(content)} bytes")
    array = np.frombuffer(content, real) if content else np.array([""])
    _check_text(array)
    return array[0].item()


def _check_text(flat: NDArray[Any]) -> None:
    """Raise `Damaged` where an array of strings holds what is no character: numpy makes strings of anything."""
    if flat.dtype.kind == "U" and flat.size and flat.dtype.itemsize:
        codes = np.frombuffer(flat, flat.dtype.str.replace("U" + str(flat.dtype.itemsize // 4), "u4"))
        if (codes > 0x10FFFF).any() or ((codes >= 0xD800) & (codes < 0xE000)).any():
            raise Damaged("strings that hold no characters")
