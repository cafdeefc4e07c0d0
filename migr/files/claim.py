"""Output folders and files: whose run is in one, may this one go on there, and is it finished?

Every command that writes asks here. What a run is depends on the contents of what it reads, not on how their paths
were written; it stands in a record beside the output.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from migr.errors import InputError
from migr.files.growing import lock, parts
from migr.files.records import read_object, sync, sync_all, write_json

BESIDE = ("timings.jsonl", "quarantined.jsonl", "inflight.jsonl", "crash.txt")  # beside predictions.jsonl
FINISHED = "finished"  # key of the record: all output is written
_LONGEST = 60  # characters of a value in an error's line
LOCK = ".running"
_held: dict[Path, IO[bytes]] = {}  # locks last as long as the process


def _let_go() -> None:
    """In a forked process: the lock is its parent's, and must not outlive that where a kill leaves workers behind."""
    for file in _held.values():
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def record_of(out: Path, is_file: bool) -> Path:
    """Where the record of an output stands: run.json in a folder, NAME.run.json beside a file."""
    return out.with_suffix(".run.json") if is_file else out / "run.json"


def claim(
    out: Path, config: Mapping[str, Any], files: Sequence[Path], overwrite: bool = False, shared: bool = False
) -> bool:
    """Take an output for this run: go on with one of the same configuration, discard another only if told to.

    A folder is held (`hold`) from then on.

    Args:
        out: Folder or file that the command writes.
        config: What the run is: JSON values; files and models by their content's digest.
        files: What the run writes, of which something may be there already.
        overwrite: Discard what is there.
        shared: Several processes of this run share the folder, each writes files of its own.

    Returns:
        Whether this very run is finished already.

    Raises:
        InputError: The files of another run are there, or of an unknown one; or another process is at work there.
    """
    record = record_of(out, out in files)
    config = json.loads(json.dumps(config))  # as it will be read back
    beside = [record.parent / name for name in BESIDE] if record.name == "run.json" else []
    # an empty one was opened by a run that found its input at fault
    there = [file for path in files for file in parts(path) if overwrite or file.is_dir() or file.stat().st_size]
    if there and not overwrite and is_finished(out, config, files):
        return True
    if not shared and out not in files:
        hold(out)
    if overwrite:
        for file in (*there, *(file for path in beside for file in parts(path))):
            file.unlink(missing_ok=True)
    write_json(record, config)
    return False


def is_finished(out: Path, config: Mapping[str, Any], files: Sequence[Path]) -> bool:
    """Whether the files that are there are of this very run, and all of it.

    Raises:
        InputError: They are of another run, or of an unknown one.
    """
    record = record_of(out, out in files)
    if not record.exists():
        raise InputError(f"{files[0]}: nothing tells which run wrote it; give another --out, or --overwrite it")
    try:
        old = read_object(record)
    except InputError as error:
        raise InputError(f"{error}: nothing tells which run it was; give another --out, or --overwrite it") from None
    if changed := differences(old, json.loads(json.dumps(config))):
        refuse_other(out, changed)
    return bool(old.get(FINISHED)) and all(path.exists() for path in files)


def finish(out: Path) -> None:
    """Mark the run as finished, once its files are on the disk: the same command finds it and does nothing."""
    record = record_of(out, out.is_file())
    sync_all(out) if out.is_dir() else sync(out)
    write_json(record, {**read_object(record), FINISHED: True})


def refuse_other(out: str | Path, changed: Sequence[str], flag: str = "--out") -> NoReturn:
    """Say what is not the same in two configurations, with both values.

    Raises:
        InputError: Always.
    """
    more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    raise InputError(
        f"{out} holds a run with another {', '.join(changed[:4])}{more}: give another {flag}, or --overwrite it"
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key (value, now value)` for each key whose values differ; in mappings by their own keys."""
    changed = []
    for key in {**old, **new}:
        before, now = old.get(key), new.get(key)
        if key == FINISHED or before == now:
            continue
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            changed += differences(before, now, f"{prefix}{key}.")
        else:
            changed.append(f"{prefix}{key} ({_short(before)}, now {_short(now)})")
    return changed


def hold(folder: Path) -> None:
    """Keep other processes out of a folder for as long as this one lives.

    Raises:
        InputError: Another one is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, own = (folder / LOCK).open("ab"), _held.get(folder.resolve())
    if own is not None and os.path.sameopenfile(file.fileno(), own.fileno()):  # not a folder that took its place
        file.close()
        return
    if not lock(file.fileno(), wait=False):
        file.close()
        raise InputError(f"{folder}: another process is at work in it; wait for it, or give another folder")
    _held[folder.resolve()] = file


def clear(folder: Path) -> None:
    """Discard what is in a folder that this process holds."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _short(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
