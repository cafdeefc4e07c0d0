"""metrics.json of a finished evaluation, also of one that was counted before a rate was there."""

import sys
from pathlib import Path
from typing import Any

from eval.figures.rates import NAMES
from eval.figures.shape import Metrics
from migr.files.records import Row, read_object
from migr.files.shape import check_shape

_GROUPS = ("per_class", "per_dominant")


def read_metrics(folder: Path) -> Row:
    """The figures of a folder of eval/consistency.py, each rate of today among them.

    A rate that was not counted yet is None with a denominator of 0, as one without clips is; a line on stderr says so.

    Raises:
        InputError: There is no metrics.json, or it is not what eval/consistency.py writes; names the place in it.
    """
    path = folder / "metrics.json"
    metrics = read_object(path)
    for key in (*_GROUPS, "settings"):
        metrics[key] = metrics.get(key) or {}
    if isinstance(metrics.get("judge"), dict):
        for name, value in (("accuracy", None), ("n", 0)):
            metrics["judge"].setdefault(name, value)
    missing = [name for name in NAMES if name not in metrics]
    for part in (metrics, *_parts(metrics)):
        for name in NAMES:
            part.setdefault(name, None)
            part.setdefault(f"{name}_n", 0)
            if part.setdefault(f"{name}_ci95", None) is not None and part[name] is None:
                part[f"{name}_ci95"] = None
    check_shape(Metrics, metrics, str(path))
    if missing:
        print(
            f"note: {folder}: counted before there was {', '.join(missing)}, shown as –; eval/consistency.py "
            "--predictions and --judgements with the files of that run counts it again",
            file=sys.stderr,
        )
    return metrics


def _parts(metrics: Row) -> list[Any]:
    """The figures of each class and each dominant modality."""
    groups = [metrics[key].values() for key in _GROUPS if isinstance(metrics[key], dict)]
    return [part for group in groups for part in group if isinstance(part, dict)]
