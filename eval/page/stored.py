"""metrics.json of a finished evaluation, also of one that was counted before a rate was there."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.figures.codes import CELLS
from eval.figures.rates import NAMES
from migr.errors import InputError
from migr.files.records import Row, read_object

_GROUPS = ("per_class", "per_dominant")


def read_metrics(folder: Path) -> Row:
    """The figures of a folder of eval/consistency.py, each rate of today among them.

    A rate that was not counted yet is None with a denominator of 0, as one without clips is; a line on stderr says so.

    Raises:
        InputError: There is no metrics.json, or it is not what eval/consistency.py writes.
    """
    path = folder / "metrics.json"
    metrics = read_object(path, n=int, n_unparseable=int, n_judge_failed=int, cells=dict, confusion=dict)
    for key in (*_GROUPS, "settings"):
        metrics[key] = metrics.get(key) or {}
        if not isinstance(metrics[key], dict):
            raise InputError(f"{path}: {key} must be an object")
    if lacking := [name for name in CELLS if not _is_count(metrics["cells"].get(name))]:
        raise InputError(f"{path}: cells: {lacking[0]} must be a number of clips")
    if not all(isinstance(metrics["confusion"].get(key), list) for key in ("labels", "counts")):
        raise InputError(f"{path}: confusion must have the lists labels and counts")
    judge = metrics.get("judge")
    if judge is not None and not (isinstance(judge, dict) and isinstance(judge.get("name"), str)):
        raise InputError(f"{path}: judge must be null or an object with a name")
    if judge is not None:
        judge.setdefault("accuracy", None)
    if missing := [name for name in NAMES if name not in metrics]:
        print(
            f"note: {folder}: counted before there was {', '.join(missing)}, shown as –; eval/consistency.py "
            "--predictions and --judgements with the files of that run counts it again",
            file=sys.stderr,
        )
    for where, part in _parts(metrics):
        if not isinstance(part, dict):
            raise InputError(f"{path}: {where}must be an object")
        for name in NAMES:
            _complete(part, name, f"{path}: {where}{name}")
    return metrics


def _parts(metrics: Row) -> Iterator[tuple[str, Any]]:
    """The figures over all clips, and those of each class and each dominant modality."""
    yield "", metrics
    for key in _GROUPS:
        yield from ((f"{key}: {name}: ", part) for name, part in metrics[key].items())


def _complete(part: Row, name: str, where: str) -> None:
    """Add a rate that is not there; check one that is.

    Raises:
        InputError: The rate, its interval or its denominator is none.
    """
    value, bounds = part.setdefault(name, None), part.setdefault(f"{name}_ci95", None)
    count = part.setdefault(f"{name}_n", 0)
    if value is None:
        part[f"{name}_ci95"] = None
    elif not (_is_share(value) and isinstance(bounds, list) and len(bounds) == 2 and all(map(_is_share, bounds))):
        raise InputError(f"{where} must be a fraction, with an interval [low, high] under {name}_ci95")
    if not _is_count(count):
        raise InputError(f"{where}_n must be a number of clips")


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
