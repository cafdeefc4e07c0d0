"""Files made wrong: valid ones of each kind, changed where their structure is and where it is not.

A change is three numbers, so that hypothesis can draw it, repeat it and make it smaller.
"""

import io
import json
import struct
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migr.errors import InputError, printable

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 3, 1.5, -0.0, 1e308, 10**12, 10**250, 10**320, float("nan"), float("-inf")),
    *("", " ", "x", "happy", "\0", "é" * 40, "y" * 5000, "\ud83d", "../../etc/passwd", "/etc/passwd", "http://a/b"),
    *("a\nerror: forged \x1b[2J", "1e999", "9" * 5000, "²", "<think><answer>", "{a}", "%s", "\u202e"),
    *([], {}, [[]], [None], [1, "a"], {"a": None}, {"": {}}, [{}], [["a", 1]], {"a": {"b": [1]}}, ["happy"] * 3),
    json.loads("[" * 40 + "]" * 40),
]
TOKENS = [
    *(b'"', b"'", b",", b";", b"\t", b"|", b":", b"{", b"}", b"[", b"]", b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf"),
    *(
        b"9" * 5000,
        b"1E+11",
        b"#REF!",
        b"NaN",
        b"null",
        b"- ",
        b"&a ",
        b"*a",
        b"!!python/object:os.system ",
        b"\\ud83d",
    ),
    *(
        b"<think>",
        b"</think>",
        b"<answer>",
        b"</answer>",
        b"<video>",
        b"</audio>",
        b"<|im_end|>",
        b"\\",
        b"\xc3",
        b"=1+1",
    ),
    *(
        b"[" * 200,
        b"\x80\x04",
        b"cos\nsystem\n",
        b"R",
        b".",
        b"t",
        b"0",
        b"-",
        b" ",
        b"..",
        b"\xe2\x80\xa8",
        b"\x1b[2J",
    ),
    *("²".encode(), b"&#0;", b"<!DOCTYPE a [", b"<c/>", b"1.5", b"-1", b"\x00\x00\x00\x00\x00\x00\x00\x80"),
]
Change = tuple[int, int, int]
FILES = 50  # of an example: what hypothesis does for each takes longer than what most readers do for one
NUMBERS = 3  # changes at most of a file, of three numbers of two bytes
SIZE = 2 * 3 * NUMBERS


def changes_of(numbers: bytes) -> list[Change]:
    """One to three changes out of `SIZE` drawn bytes."""
    what, *rest = struct.unpack(f"<{3 * NUMBERS}H", numbers)
    values = [what // NUMBERS, *rest]
    return [(values[i], values[i + 1], values[i + 2]) for i in range(0, 3 * (1 + what % NUMBERS), 3)]


def changed(content: bytes, kind: str, changes: Sequence[Change]) -> bytes:
    """A file's content with changes; kind is "json", "jsonl", "zip" or "bytes" ("text" is the same)."""
    for change in changes:
        structured = change[0] % 4 and kind in _STRUCTURED
        content = _STRUCTURED[kind](content, change) if structured else _bytes(content, change)
    return content


def _bytes(content: bytes, change: Change) -> bytes:
    what, place, size = change
    at, token = place % (len(content) + 1), TOKENS[size % len(TOKENS)]
    end = at + 1 + size % 40
    return [
        content[:at] + token + content[at:],
        content[:at] + token + content[at + len(token) :],
        content[:at],
        content[:at] + content[end:],
        content[:at] + bytes(min(end, len(content)) - at) + content[end:],
        content[:at] + content[at:end] * 2 + content[end:],
        content[:at] + bytes([size % 256]) + content[at + 1 :],
        content[at:] + content[:at],
    ][what // 4 % 8]


def _json(content: bytes, change: Change) -> bytes:
    what, place, size = change
    try:
        root = [json.loads(content)]
    except (ValueError, RecursionError):
        return _bytes(content, change)
    nodes: list[tuple[Any, Any]] = []
    waiting: list[tuple[Any, Any]] = [(root, 0)]
    while waiting:
        holder, key = waiting.pop()
        nodes.append((holder, key))
        value = holder[key]
        if isinstance(value, dict | list):
            waiting += [(value, k) for k in (value if isinstance(value, dict) else range(len(value)))]
    holder, key = nodes[place % len(nodes)]
    value = VALUES[size % len(VALUES)]
    action = what // 4 % 6
    if action <= 2:
        holder[key] = value
    elif action == 3 and holder is not root:
        del holder[key]
    elif action == 4:
        holder[key] = [holder[key]] if size % 2 else {"a": holder[key]}
    elif isinstance(holder[key], dict):
        holder[key] = {**holder[key], str(value)[:50]: value}
    elif isinstance(holder[key], list):
        holder[key] = [*holder[key], *holder[key][:1], value]
    else:
        holder[key] = str(holder[key])
    return json.dumps(root[0]).encode()


def _lines(content: bytes, change: Change) -> bytes:
    lines = content.splitlines()
    if not lines:
        return _bytes(content, change)
    at = change[2] % len(lines)
    if change[0] // 4 % 7 == 6:
        lines.insert(at, lines[change[1] % len(lines)])
    else:
        lines[at] = _json(lines[at], change)
    return b"\n".join(lines) + b"\n"


def _members(content: bytes, change: Change) -> bytes:
    """One file of an archive changed."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # an archive that an earlier change has broken
        return _bytes(content, change)
    if not members:
        return _bytes(content, change)
    name = sorted(members)[change[1] % len(members)]
    members[name] = _bytes(members[name], (change[0], change[1] // 7, change[2]))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for member, text in members.items():
            archive.writestr(member, text)
    return out.getvalue()


_STRUCTURED: dict[str, Callable[[bytes, Change], bytes]] = {"json": _json, "jsonl": _lines, "zip": _members}


@dataclass(frozen=True)
class Reader:
    """What reads a file.

    Attributes:
        file: The file's name in its folder.
        content: A valid one.
        kind: As for `changed`.
        read: Given the folder, with the file in it.
        beside: Further files, which stay as they are.
    """

    file: str
    content: bytes
    kind: str
    read: Callable[[Path], Any]
    beside: dict[str, bytes]


SECONDS = 20.0  # of processor time that no file of a few kilobytes may take


def prepare(reader: Reader, folder: Path) -> Path:
    """Write a reader's files, and read them; returns the file that is to be changed."""
    for name, content in {**reader.beside, reader.file: reader.content}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    reader.read(folder)
    return folder / reader.file


def fuzz(reader: Reader, folder: Path, files: int) -> None:
    """Read so many changed files: each is read, or refused by an InputError, in a time that its size allows."""
    path = prepare(reader, folder)
    each = min(FILES, files)

    # One example more: hypothesis begins with zeros alone.
    @settings(max_examples=1 + -(-files // each), deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(min_size=SIZE * each, max_size=SIZE * each))
    def attempt(numbers: bytes) -> None:
        for i in range(each):
            content = changed(reader.content, reader.kind, changes_of(numbers[SIZE * i : SIZE * (i + 1)]))
            path.write_bytes(content)
            start = time.perf_counter()
            try:
                reader.read(folder)
            except InputError as error:
                assert printable(str(error)), "an error says nothing"
            except Exception as error:
                error.add_note(f"the file: {content[:2000]!r}")
                raise
            if time.perf_counter() - start > SECONDS:  # the clock of the processor takes a millisecond to ask
                check_seconds(reader, folder)

    attempt()


def check_seconds(reader: Reader, folder: Path) -> None:
    """Once more by the processor's clock: the machine may have been busy."""
    start = time.process_time()
    with suppress(InputError):
        reader.read(folder)
    assert time.process_time() - start < SECONDS, "no file of this size may take so long"
