"""Any CSV, XLSX or JSON Lines file with `path` and `label`: the way in for clips of one's own.

Columns: `path` (relative to the root, or absolute and below it) and `label` (a label or a synonym; empty for none).
Optional: `split`, `clip_id` (default: the path without its ending), `transcript`. Other columns are kept, except those
that are measured here (`duration`, `fps`, ...).
"""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from migr.clips.manifest import recorded_root
from migr.errors import InputError
from migr.files.records import Row, numbered_jsonl, read_json
from migr.sources.listed import Listed, once
from migr.sources.tables import check_name, names_of, read_table
from migr.text.labels import LabelSet

_MEASURED = (
    *("has_video", "has_audio", "duration", "fps", "frames", "width", "height", "sample_rate"),
    *("video_codec", "audio_codec", "rotated", "variable_rate", "hidden_frames", "audio_start", "video_start"),
    *("silent", "reader"),
)
_TABLES = (".csv", ".tsv", ".txt", ".xlsx", ".xlsm")


def read(tables: Sequence[Path], root: Path, labels: LabelSet, split: str) -> Listed:
    """The clips of one table, or of several.

    Args:
        tables: Files that end in .csv, .xlsx or .jsonl. A manifest of stages/data.py is one, too: its paths are
            relative to the root that it records. The clip ids of several are put behind the source of each
            (`dfew/00042`).
        root: Folder that the paths are relative to; that of all clips.
        labels: What labels must mean.
        split: The split of rows that name none.

    Raises:
        InputError: A row is wrong or names an unknown label; names file and line.
    """
    places, rows = dict[str, str](), list[Row]()
    for table in tables:
        start, prefix = _start(table, root), f"{_name(table)}/" if len(tables) > 1 else ""
        for number, cells in lines(table, ("path", "label")):
            row = _row(f"{table}:{number}", cells, start, root, labels, split)
            row["clip_id"] = prefix + row["clip_id"]
            once(f"{table}:{number}", row["clip_id"], places)
            rows.append(row)
    if not rows:
        raise InputError(f"{', '.join(map(str, tables))}: no rows in it")
    return Listed(root.resolve(), labels, rows)


def _start(table: Path, root: Path) -> Path:
    """The folder that a table's own paths are relative to."""
    recorded = recorded_root(table)
    return root.absolute() if recorded == table.parent else recorded.absolute()


def _name(table: Path) -> str:
    """What a table's clip ids are put behind: the source in the data.json beside it, else its own name."""
    record = table.parent / "data.json"
    facts = read_json(record) if record.is_file() else {}
    return str(facts["source"]) if isinstance(facts, dict) and "source" in facts else table.stem


def _row(where: str, cells: Row, start: Path, root: Path, labels: LabelSet, split: str) -> Row:
    path = cells["path"]
    if not isinstance(path, str) or not path.strip():
        raise InputError(f"{where}: path must be a non-empty text, not {path!r}")
    if "://" not in path:
        whole = start / as_on_disk(start, path.strip())
        bases = [base for base in (root.absolute(), root.resolve()) if whole.is_relative_to(base)]
        path = (whole.relative_to(bases[0]) if bases else whole).as_posix()  # absolute: refused as outside the root
    clip_id = str(cells.get("clip_id") or Path(path).with_suffix("").as_posix())
    for name in (path, clip_id):
        check_name(where, name)
    row = {"clip_id": clip_id, "path": path, "label": _label(where, cells["label"], labels)}
    row["split"] = cells.get("split") or cells.get("mode") or split  # `mode` in MOSI, MOSEI and CH-SIMS
    for key in ("split", "transcript"):
        if not isinstance(cells.get(key), str | None):
            raise InputError(f"{where}: {key} must be a text, not {cells[key]!r}")
    rest = {key: value for key, value in cells.items() if key not in row and key not in _MEASURED}
    return row | {key: value for key, value in rest.items() if key != "transcript" or value}


def _label(where: str, value: Any, labels: LabelSet) -> str | None:
    if value is None or value == "":
        return None
    label = labels.canonical(value) if isinstance(value, str) else None
    if label is None:
        try:
            float(value)
            hint = "a number is no emotion: name a column of scores `sentiment`, and leave label empty"
        except (TypeError, ValueError):
            hint = f"--labels {labels.name}; a file with one label a line, `happy: joy, joyful`, adds synonyms"
        raise InputError(
            f"{where}: label {value!r} is not one of {', '.join(labels.labels)}, nor a known synonym ({hint})"
        )
    return label


def as_on_disk(folder: Path, path: str) -> str:
    """A path as the file system has it: tables come with back slashes, another form of é, and without leading zeros.

    Returns:
        The path itself if it is there, or if nothing (or more than one thing) there goes by its name.
    """
    if os.path.exists(folder / path):  # also of a path that no file can have
        return path
    place = PurePosixPath(path.replace("\\", "/"))
    parts: list[str] = []
    for part in place.parts:
        here = folder.joinpath(*parts)
        if not os.path.exists(here / part):
            same = _entries(here).get(_folded(part), [])
            part = same[0] if len(same) == 1 else part
        parts.append(part)
    return PurePosixPath(*parts).as_posix()


@lru_cache(maxsize=64)
def _entries(folder: Path) -> dict[str, list[str]]:
    """What a folder holds, by its folded name."""
    entries: dict[str, list[str]] = {}
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        entries.setdefault(_folded(name), []).append(name)
    return entries


def _folded(name: str) -> str:
    """A file's name without what programs change in it: the form of its letters, and zeros before a number."""
    return names_of(name)[-1] + PurePosixPath(unicodedata.normalize("NFC", name)).suffix


def lines(table: Path, required: tuple[str, ...]) -> Iterator[tuple[int, Row]]:
    """The rows of a table or JSON Lines file with their line (or row) numbers.

    Raises:
        InputError: No such file, another ending, not text, a required column is absent; names file and line.
    """
    ending = table.suffix.casefold()
    if ending == ".jsonl":
        yield from numbered_jsonl(table, required)
        return
    if ending not in _TABLES:
        raise InputError(f"{table}: must end in {', '.join(_TABLES)} or .jsonl")
    need = f"the columns {', '.join(required)}"
    if "path" in required:
        need += " (of a table like CH-SIMS' with video_id and clip_id, make a column path: video_id/clip_id.mp4)"
    yield from read_table(table, lambda names: set(required) <= set(names), need)
