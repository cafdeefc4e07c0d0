"""The gates for text that comes from outside: JSON, YAML and plain text, each with bounds and named errors."""

import json
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from migr.errors import InputError, printable

DEEPEST = 100  # levels of lists and objects
LONGEST_LINE = 64 << 20  # bytes
LARGEST = 1 << 30  # bytes of a file that is one JSON value


def parse_json(text: str | bytes, finite: bool = True) -> Any:
    """One JSON value from text: the gate for all JSON that comes from outside.

    Refused are NaN, infinity and what overflows to it (with `finite`), whole numbers of more than 300 digits, a key
    that stands twice in an object, and more than 100 levels. Half a UTF-16 pair (what cutting an emoji leaves, written
    as an escape) becomes U+FFFD.

    Raises:
        ValueError: It is not such JSON, or not UTF-8; says why.
    """
    try:
        value = (_STRICT if finite else _LOOSE).decode(text := decoded(text))
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST} levels") from None
    if text.count("[") + text.count("{") > DEEPEST:
        _check_depth(value)
    return _mend(value) if has_halves(value, text) else value


def decoded(text: str | bytes) -> str:
    """UTF-8 text, without the mark that some editors put before it. A ValueError says at which byte it is none."""
    try:
        return text if isinstance(text, str) else text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: byte {error.start}") from None


def has_halves(value: Any, text: str) -> bool:
    """Whether a JSON value, read from this text, has half a UTF-16 pair in one of its strings."""
    return ("\\ud" in text or "\\uD" in text) and bool(_HALF.search(json.dumps(value, ensure_ascii=False)))


def note_halves(path: Path, count: int) -> None:
    """Say once of a file how many of its lines have half a character, which is read as U+FFFD."""
    if count and path not in _NOTED:
        _NOTED.add(path)
        print(printable(f"note: {path}: half a character in {count} lines, read as \ufffd"), file=sys.stderr)


def is_file(path: Path) -> bool:
    """Whether there is such a file; no path is too long for the question."""
    try:
        return path.is_file()
    except OSError:
        return False


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file to read, or one line that says why not."""
    if not is_file(path):
        raise InputError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of `key: value` lines, of 1 MiB at most. Values are built from plain types alone.

    Raises:
        InputError: It cannot be read, is no mapping with text as keys, repeats a key, has aliases (a few lines of them
            can stand for 10^9 values), or nests deeper than 20 levels.
    """
    path = Path(path)
    with opened(path) as file:
        text = file.read((1 << 20) + 1)
    if len(text) > 1 << 20:
        raise InputError(f"{path}: more than 1 MiB")
    depth = 0
    try:
        for event in yaml.parse(text.decode("utf-8-sig"), yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise InputError(f"{path}:{event.start_mark.line + 1}: an alias (*{event.anchor}); write the value out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > 20:
                raise InputError(f"{path}:{event.start_mark.line + 1}: nested deeper than 20 levels")
        value = yaml.load(text.decode("utf-8-sig"), _Loader) or {}  # noqa: S506  (a subclass of SafeLoader)
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())[:400]}") from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InputError(f"{path}: expected `key: value` lines")
    return value


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that refuses a key that stands twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _ in node.value]
        if len(set(map(str, names))) < len(names):
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a key stands there twice")
        return super().construct_mapping(node, deep)


def read_text(path: str | Path, largest: int = 1 << 20) -> str:
    """Read a UTF-8 text file.

    Raises:
        InputError: There is no such file, it is no UTF-8 text, or has more than `largest` bytes.
    """
    path = Path(path)
    with opened(path) as file:
        text = file.read(largest + 1)
    if len(text) > largest:
        raise InputError(f"{path}: more than {largest} bytes")
    try:
        return decoded(text)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} stands there twice")
    return row


def _integer(text: str) -> int:
    if len(text) > 300:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:80]} is too large a number")
    return value


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant)
_LOOSE = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)
_NOTED: set[Path] = set()
_HALF = re.compile("[\ud800-\udfff]")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            part
            for whole in level
            if isinstance(whole, dict | list)
            for part in (whole.values() if isinstance(whole, dict) else whole)
        ]
        if not level:
            return
    raise ValueError(f"nested deeper than {DEEPEST} levels")


def _mend(value: Any) -> Any:
    """The value with U+FFFD in place of each half of a UTF-16 pair."""
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, list):
        return [_mend(part) for part in value]
    if isinstance(value, dict):
        return {_mend(key): _mend(part) for key, part in value.items()}
    return value


def whole(text: str) -> str:
    """Text with U+FFFD (the visible sign for what could not be read) in place of each half of a UTF-16 pair."""
    return _HALF.sub("\ufffd", text)
