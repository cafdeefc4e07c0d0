"""Grounding: the reasoning starts with the dominant modality, and each segment speaks of its own."""

from typing import Any

from migr.text.format import parse
from reward.score import grounding, text_of


def grounding_reward(
    completions: list[Any],
    importance: list[dict[str, float | None]],
    modalities: list[list[str]] | None = None,
    **_: Any,
) -> list[float | None]:
    """`reward.score.grounding` of each completion; None where the clip has no importances.

    Args:
        completions: (n,) responses, as strings or as TRL's message lists.
        importance: The data set's column: modality -> weight (`datasets` fills absent modalities with None).
        modalities: The data set's column: what each clip has; without it, what has an importance.

    Returns:
        (n,) numbers in [0, 1] or None.

    >>> text = "<think><audio>A harsh voice rings out.</audio></think><answer>angry</answer>"
    >>> grounding_reward([text, text], [{"video": 0.2, "audio": 0.8}, {"video": 0.8, "audio": 0.2}])
    [1.0, 0.5]
    """
    weights = [{m: w for m, w in (row or {}).items() if w is not None} for row in importance]
    return [
        grounding(parse(text_of(completion)), weights[i], modalities[i] if modalities is not None else None)
        for i, completion in enumerate(completions)
    ]
