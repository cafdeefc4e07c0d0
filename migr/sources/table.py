"""Any CSV, XLSX or JSON Lines file with `path` and `label`: the way in for clips of one's own.

Columns: `path` (relative to the root, or absolute and below it) and `label` (a label or a synonym; empty for none).
Optional: `split`, `clip_id` (default: the path without its ending), `transcript`. Other columns are kept, except those
that are measured here (`duration`, `fps`, ...).
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from migr.clips.manifest import recorded_root
from migr.errors import InputError
from migr.files.records import Row, iter_jsonl, read_json
from migr.sources.listed import Listed, once
from migr.sources.spreadsheet import spreadsheet_rows
from migr.text.labels import LabelSet

_MEASURED = ("has_video", "has_audio", "duration", "fps", "frames", "width", "height", "sample_rate")


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
    seen, rows = dict[str, str](), list[Row]()
    for table in tables:
        start, prefix = _start(table, root), f"{_name(table)}/" if len(tables) > 1 else ""
        for number, given in lines(table, ("path", "label")):
            row = _row(f"{table}:{number}", given, start, root, labels, split)
            row["clip_id"] = prefix + row["clip_id"]
            once(f"{table}:{number}", row["clip_id"], seen)
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


def _row(where: str, given: Row, start: Path, root: Path, labels: LabelSet, split: str) -> Row:
    path = given["path"]
    if not isinstance(path, str) or not path.strip():
        raise InputError(f"{where}: path must be a non-empty text, not {path!r}")
    if "://" not in path:
        whole = start / path
        bases = [base for base in (root.absolute(), root.resolve()) if whole.is_relative_to(base)]
        path = (whole.relative_to(bases[0]) if bases else whole).as_posix()  # absolute: refused as outside the root
    clip_id = str(given.get("clip_id") or Path(path).with_suffix("").as_posix())
    row = {"clip_id": clip_id, "path": path, "label": _label(where, given["label"], labels)}
    row["split"] = given.get("split") or split
    for key in ("split", "transcript"):
        if not isinstance(given.get(key), str | None):
            raise InputError(f"{where}: {key} must be a text, not {given[key]!r}")
    rest = {key: value for key, value in given.items() if key not in row and key not in _MEASURED}
    return row | {key: value for key, value in rest.items() if key != "transcript" or value}


def _label(where: str, given: Any, labels: LabelSet) -> str | None:
    if given is None or given == "":
        return None
    label = labels.canonical(given) if isinstance(given, str) else None
    if label is None:
        raise InputError(
            f"{where}: label {given!r} is not one of {', '.join(labels.labels)}, nor a known synonym "
            f"(--labels {labels.name}; a file with one label a line, `happy: joy, joyful`, adds synonyms)"
        )
    return label


def lines(table: Path, required: tuple[str, ...]) -> Iterator[tuple[int, Row]]:
    """The rows of a CSV, XLSX or JSON Lines file with their line (or row) numbers.

    Raises:
        InputError: No such file, another ending, not text, a required column is absent; names file and line.
    """
    if table.suffix == ".jsonl":
        for row, number in zip(iter_jsonl(table, required), _numbers(table), strict=False):
            yield number, row
        return
    if table.suffix == ".xlsx":
        need = f"the columns {', '.join(required)}"
        yield from spreadsheet_rows(table, lambda names: set(required) <= set(names), need)
        return
    if table.suffix != ".csv":
        raise InputError(f"{table}: must end in .csv, .xlsx or .jsonl")
    if not table.is_file():
        raise InputError(f"{table}: no such file")
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            if missing := [name for name in required if name not in (reader.fieldnames or [])]:
                raise InputError(f"{table}:1: the first line must name the columns; {', '.join(missing)} is not there")
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(f"{table}:{reader.line_num}: another number of columns than in the first line")
                yield reader.line_num, row
        except csv.Error as error:
            raise InputError(f"{table}:{reader.line_num}: not valid CSV ({error})") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{table}: not UTF-8 text ({error}); save it as UTF-8") from None


def _numbers(path: Path) -> Iterator[int]:
    with path.open(encoding="utf-8") as file:
        yield from (number for number, line in enumerate(file, 1) if line.strip())
