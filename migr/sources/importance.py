"""importance.jsonl as the stages behind it take it."""

import math
from pathlib import Path

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
        values, where = row["importance"], f"{path}: clip {row['clip_id']}"
        if not isinstance(values, dict) or not all(type(weight) in (int, float) for weight in values.values()):
            raise InputError(f"{where}: importance must be {{modality: number}}")
        if unknown := sorted(set(values) - set(MODALITIES)):
            raise InputError(f"{where}: importance of {unknown[0]!r}, which is none of {', '.join(MODALITIES)}")
        if wrong := [name for name, weight in values.items() if not 0 <= weight < math.inf]:
            raise InputError(f"{where}: the importance of {wrong[0]} must be at least 0, not {values[wrong[0]]}")
        weights[row["clip_id"]] = values if uncertain or row.get("certain") is not False else {}
    return weights
