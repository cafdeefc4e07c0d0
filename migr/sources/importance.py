"""importance.jsonl as the stages behind it take it."""

import math
from pathlib import Path
from typing import Any

from migr.errors import InputError
from migr.files.records import read_jsonl
from migr.text.format import MODALITIES


def read_importance(path: str | Path, uncertain: bool = False) -> dict[str, dict[str, float]]:
    """Clip id -> modality -> weight.

    Args:
        path: The file.
        uncertain: Whether clips that are marked `certain: false` have weights too.

    Returns:
        Weights are finite and at least 0.

    Raises:
        InputError: A row is of another kind; names the clip.
    """
    weights: dict[str, dict[str, float]] = {}
    for row in read_jsonl(path, ["clip_id", "importance"], unique="clip_id"):
        values = checked_weights(row["importance"], f"{path}: clip {row['clip_id']!r}")
        weights[row["clip_id"]] = values if uncertain or row.get("certain") is not False else {}
    if not weights:
        raise InputError(f"{path}: no importances in it")
    return weights


def checked_weights(values: Any, where: str) -> dict[str, float]:
    """The weights of a clip; InputError, which begins with `where`, if they are no finite ones of known modalities."""
    if not isinstance(values, dict) or not all(type(weight) in (int, float) for weight in values.values()):
        raise InputError(f"{where}: importance must be {{modality: number}}")
    if unknown := sorted(set(values) - set(MODALITIES)):
        raise InputError(f"{where}: importance of {unknown[0]!r}, which is none of {', '.join(MODALITIES)}")
    if wrong := [name for name, weight in values.items() if not 0 <= weight < math.inf]:
        raise InputError(f"{where}: the importance of {wrong[0]} must be at least 0, not {values[wrong[0]]}")
    return values
