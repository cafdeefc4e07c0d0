"""Files of a long run: they grow row by row, survive a kill, and are shared by shards.

A row is written by one system call, so a process that is killed leaves whole rows and at most one that is cut off. A
power cut can leave more: a lost tail, blocks of zeros. From its first line that is no row a file counts as not written:
what was lost is done again, and what stood behind is put aside into `NAME.damaged`.

The journal says which clips the engine was working on, so that the next run knows on which clips an engine died.
"""

import faulthandler
import fcntl
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from migr.errors import InputError, printable
from migr.files.parsing import LONGEST_LINE, parse_json
from migr.files.records import Row, atomic

_SYNC_EVERY = 5.0  # seconds: what a power cut can cost; a kill costs nothing
_AGAIN = "run the same command again: it goes on where it stopped"


class Growing:
    """A JSON Lines file to which this process alone appends; use it in a `with` statement.

    Args:
        path: The file.
        key: Under which each row is named.

    Raises:
        InputError: Another process is writing to it, or it cannot be written (the disk is full).
    """

    def __init__(self, path: Path, key: str = "clip_id"):
        self.path, self.key = path, key

    def __enter__(self) -> "Growing":
        with _plainly(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("ab+", buffering=0)
        if not lock(self.file.fileno(), wait=False):
            self.file.close()
            raise InputError(f"{self.path}: another process is writing to it; wait for it, or give another --out")
        self.length = _whole(self.path, self.key)
        self._put_aside()
        self.file.truncate(self.length)
        self.synced = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        with _plainly(self.path), self.file:
            os.fsync(self.file.fileno())

    def _put_aside(self) -> None:
        """Keep what stands behind the first damaged line, but for a single row that a kill has cut off."""
        self.file.seek(self.length)
        first = self.file.readline()
        if first.endswith(b"\n"):
            aside = self.path.with_name(f"{self.path.name}.damaged")
            with _plainly(aside), aside.open("ab") as file:
                file.write(first)
                shutil.copyfileobj(self.file, file)
            note = f"note: {self.path}: damaged after {self.length} bytes; what stood there is in {aside.name}"
            print(printable(note), file=sys.stderr)
        self.file.seek(0, os.SEEK_END)

    def append(self, row: Row) -> None:
        """Write a row and hand it to the operating system; every few seconds also to the disk."""
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        try:
            with _plainly(self.path):
                rest = memoryview(line)
                while rest:
                    rest = rest[self.file.write(rest) :]
                if time.monotonic() - self.synced > _SYNC_EVERY:
                    os.fsync(self.file.fileno())
                    self.synced = time.monotonic()
        except InputError:
            self.file.truncate(self.length)
            raise
        self.length += len(line)


def ids_in(paths: Iterable[Path]) -> set[str]:
    """The clip ids of files that may still grow, up to the first line that is not whole."""
    return {row["clip_id"] for path in paths for row in _rows(path)}


def parts(path: Path) -> list[Path]:
    """A file and its shards' (`predictions.jsonl`, `predictions.0.jsonl`, …) as far as they are there."""
    numbered = re.compile(re.escape(path.stem) + r"\.\d+" + re.escape(path.suffix))
    files = [file for file in path.parent.glob(f"{path.stem}.*") if numbered.fullmatch(file.name)]
    return [*([path] if path.exists() else []), *sorted(files)]


def part(path: Path, shard: tuple[int, int]) -> Path:
    """The file that this shard writes: `path` itself where there is only one."""
    return path.with_suffix(f".{shard[0]}{path.suffix}") if shard[1] > 1 else path


def busy(paths: Iterable[Path]) -> Path | None:
    """The first of the files to which a process is writing now."""
    for path in paths:
        with path.open("rb") as file:
            if not lock(file.fileno(), wait=False):
                return path
    return None


def merge(path: Path, order: Sequence[str], latest: bool = False) -> None:
    """Put a file and its shards' into one, in the given order; clips outside the order follow as they stand.

    Args:
        path: The file.
        order: Clip ids.
        latest: Of several rows of a clip the last counts, as in notes that a rerun writes again; else that is an error.

    Raises:
        InputError: Two shards hold different rows of a clip.
    """
    files = parts(path)
    with ExitStack() as stack:
        handles = [stack.enter_context(file.open("rb")) for file in files]

        def line(place: tuple[int, int, int]) -> bytes:
            handles[place[0]].seek(place[1])
            return handles[place[0]].read(place[2])

        rows = 0
        where: dict[str, tuple[int, int, int]] = {}  # clip -> file, start and length of its line: texts stay on disk
        for number, file in enumerate(files):
            start = 0
            for row, length in _lines(file):
                name, place = row["clip_id"], (number, start, length)
                if not latest and name in where and line(where[name]) != line(place):
                    raise InputError(f"{file}: clip {name!r} stands otherwise in {files[where[name][0]]}: delete one")
                if latest or name not in where:
                    where[name] = place
                rows += 1
                start += length
        sorted_ids = [name for name in order if name in where]
        known = set(sorted_ids)
        sorted_ids += [name for name in where if name not in known]
        if not where or (files == [path] and sorted_ids == list(where) and rows == len(where)):
            return
        with _plainly(path), atomic(path) as out:
            for name in sorted_ids:
                out.write(line(where[name]).decode())
    for file in files:
        if file != path:
            file.unlink()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is at this place in this folder."""
    with (folder / ".lock").open("w") as file:
        lock(file.fileno(), wait=True)
        yield


class Journal:
    """Which clips are with the engine, and what it died of with each: `inflight.jsonl`, beside `crash.txt`.

    A kill from outside says nothing about a clip and is not counted. Counted are exceptions of the engine, fatal
    signals (faulthandler writes them to `crash.txt`) and a kill for want of memory (the kernel counts those). Ours.

    Attributes:
        deaths: Clip id -> what the engine died of, once for each time that it died with this clip unfinished.
    """

    def __init__(self, path: Path, done: set[str]):
        self.path, self.done = path, done
        self.crash = path.with_name(path.name.replace("inflight", "crash")).with_suffix(".txt")
        self.deaths: dict[str, list[str]] = {}
        self.given: set[str] = set()
        self._file: IO[bytes] | None = None
        kills = _oom_kills()
        for row in _rows(path) if path.exists() else ():
            if row["clip_id"] is not None:
                self.given.add(row["clip_id"])
            elif isinstance(row.get("deaths"), dict) and isinstance(row.get("oom_kills"), int):
                self.deaths, kills = row["deaths"], row["oom_kills"]
        cause = self.crash.read_text(errors="replace").partition("\n")[0] if self.crash.exists() else ""
        if cause or _oom_kills() > kills:
            self.died(cause or "killed for want of memory")

    def __enter__(self) -> "Journal":
        self._restart()
        self._faults = self.crash.open("w")
        self._were_on = faulthandler.is_enabled()
        faulthandler.enable(self._faults)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        faulthandler.disable()
        if self._were_on and sys.__stderr__ is not None:
            faulthandler.enable(sys.__stderr__)
        self._faults.close()
        assert self._file is not None
        self._file.close()
        if kind is None:
            self.path.unlink(missing_ok=True)
            self.crash.unlink(missing_ok=True)

    def give(self, clip_id: str) -> None:
        """Note that a clip goes to the engine, before anything is done with it."""
        self.given.add(clip_id)
        assert self._file is not None, "use it in a `with` statement"
        with _plainly(self.path):
            self._file.write(json.dumps({"clip_id": clip_id}).encode() + b"\n")

    def died(self, cause: str) -> list[str]:
        """Note a death of the engine for the clips that it had; returns them."""
        lost = sorted(self.given - self.done)
        self.deaths |= {name: [*self.deaths.get(name, []), cause] for name in lost}
        self._restart()
        return lost

    def _restart(self) -> None:
        self.given = set()
        header = {"clip_id": None, "deaths": self.deaths, "oom_kills": _oom_kills()}
        with _plainly(self.path):
            with atomic(self.path) as file:
                file.write(json.dumps(header) + "\n")
            if self._file is not None:
                self._file.close()
            self._file = self.path.open("ab", buffering=0)


def shard_of(text: str | None, environ: Mapping[str, str]) -> tuple[int, int]:
    """This process's number and the number of processes, from `--shard K/N` or from what torchrun and accelerate set.

    Raises:
        InputError: Not two numbers with 0 <= K < N.
    """
    if text is None:
        return int(environ.get("RANK", 0)), int(environ.get("WORLD_SIZE", 1))
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not int(match[1]) < int(match[2]):
        raise InputError(f"--shard {text}: expected K/N with K from 0 to N - 1, for example 0/4")
    return int(match[1]), int(match[2])


@contextmanager
def _plainly(path: Path) -> Iterator[None]:
    """One line for a full disk or a folder that cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); make room, then {_AGAIN}") from error


def lock(descriptor: int, wait: bool) -> bool:
    """Lock an open file for this process; False if another has it. A file system without locks gives True."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _whole(path: Path, key: str) -> int:
    """Length of a file up to its first line that is not whole, in bytes."""
    return sum(length for _, length in _lines(path, key))


def _lines(path: Path, key: str = "clip_id") -> Iterator[tuple[Row, int]]:
    """The rows of a file up to its first line that is not whole, and the length of each one's line in bytes."""
    with path.open("rb") as file:
        while (line := file.readline(LONGEST_LINE)).endswith(b"\n"):
            try:
                row = parse_json(line)
                if not isinstance(row[key], str | None):
                    return
            except (ValueError, KeyError, TypeError):
                return
            yield row, len(line)


def _rows(path: Path) -> Iterator[Row]:
    return (row for row, _ in _lines(path))


def _oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since it started; 0 where it does not say."""
    try:
        match = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) if match else 0
