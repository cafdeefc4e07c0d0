"""Grounding: the reasoning starts with the dominant modality, and each segment speaks of its own."""

from typing import Any

from migr.text.format import parse
from reward.format import text_of
from reward.score import LONGEST, grounding


def grounding_reward(completions: list[Any], importance: list[dict[str, float | None]], **_: Any) -> list[float | None]:
    """`reward.score.grounding` of each completion; None where the clip has no importances.

    Args:
        completions: Responses as strings or as TRL's message lists.
        importance: The data set's column: modality -> weight (`datasets` fills absent modalities with None).

    Returns:
        One number or None a completion.
    """
    weights = [{m: w for m, w in (row or {}).items() if w is not None} for row in importance]
    return [
        grounding(parse(text_of(completion)[:LONGEST]), row)
        for completion, row in zip(completions, weights, strict=True)
    ]
